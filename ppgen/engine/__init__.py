"""The engine: a Pyro program traced once, and from then on run at the speed of its tensor operations.

    trace, Traced, Untraceable   a function of tensors as a plain ATen graph
    traced                       the same function, faster; itself where it cannot be traced
    compiled                     a graph through Inductor
    log_joint                    the log joint and its gradient, one chain or many
    describe                     what a program's trace is made of

`ppgen.inference.training.step` runs the steps of a fit through it.
"""

from ppgen.engine.compiling.compile import compiled, compiler
from ppgen.engine.compiling.describe import describe
from ppgen.engine.density.joint import LogJoint, log_joint
from ppgen.engine.graphs.repeated import traced
from ppgen.engine.graphs.trace import Traced, Untraceable, trace

__all__ = ["LogJoint", "Traced", "Untraceable", "compiled", "compiler", "describe", "log_joint", "trace", "traced"]
