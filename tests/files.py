"""Programs as text, for the files that tests write."""

from __future__ import annotations

LINE = '''"""z ~ N(0, 1), x | z ~ N(a z, 0.5)."""
import pyro
import torch
from pyro.distributions import Normal

import ppgen

data = {"x": torch.linspace(-2.0, 2.0, 40)}


class Line(ppgen.Program):
    """A line.

    Args:
        a: the slope to
            begin with.
    """

    def __init__(self, a: float = 1.0):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a))
        self.encoder = torch.nn.Linear(1, 2)

    def model(self, x=None):
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(0.0, 1.0))
            return pyro.sample("x", Normal(self.a * z, 0.5), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x[:, None]).unbind(-1)
        with ppgen.rows(x):
            pyro.sample("z", Normal(loc, log_scale.exp()))
'''
