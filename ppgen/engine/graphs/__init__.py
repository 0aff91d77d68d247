"""A program as a graph: recorded, rewritten, its draws taken out, its gradient."""
