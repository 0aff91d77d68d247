"""Graphs of many small operations, run without compiling: `interpreted`; see there."""
