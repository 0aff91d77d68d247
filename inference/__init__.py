"""The algorithm catalogue: fit, bound, sample and diagnose any :class:`ppgen.Program`."""
