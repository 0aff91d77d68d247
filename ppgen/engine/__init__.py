"""The engine: a Pyro program traced once, and from then on run at the speed of its tensor operations."""

from ppgen.engine.trace import Traced, Untraceable, trace

__all__ = ["Traced", "Untraceable", "trace"]
