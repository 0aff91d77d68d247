"""Findings as records: what was measured, by which threshold it is judged, and the sentence made from it."""
