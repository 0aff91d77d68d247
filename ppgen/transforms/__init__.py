"""Invertible maps with their log-determinants, as Pyro transforms: one family a file."""
