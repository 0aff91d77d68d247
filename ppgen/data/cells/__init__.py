"""The cells of a column -> its type and its numbers."""
