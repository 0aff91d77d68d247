"""Graphs made fast: compiled, kept across runs, a step as one graph, and which way pays."""
