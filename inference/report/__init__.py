"""Figures and the page: they read records, and compute nothing."""
