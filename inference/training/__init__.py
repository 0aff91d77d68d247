"""Learning: the fit, its loop and steps, when it may stop, many fits at once."""
