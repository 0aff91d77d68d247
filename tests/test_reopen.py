"""A run can be opened again, whatever its latents or its guide depend on: every command after the fit works on it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from known import few, normal
from torch import nn

from ppgen import Program, Run, rows
from ppgen.inference import diagnose, fit, loglik, plot, posterior, predict, report, sample

T, Y = torch.linspace(-1, 1, 7), normal(7) + 0.5
DATA = {"t": T, "y": Y}


class AsLongAsTheData(Program):
    """A global latent with an entry a row, as one event: z ~ N(0, I), y_i ~ N(z_i, 1)."""

    def model(self, t, y=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(t.shape[0]), 1.0).to_event(1))
        with rows(t):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)


class Process(Program):
    """A Gaussian process whose function values are one event."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.5))

    def model(self, t, y=None):
        k = torch.exp(-0.5 * (t[:, None] - t) ** 2 * (-2 * self.log_scale).exp()) + 1e-3 * torch.eye(len(t))
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(t)), k))
        with rows(t):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)


class ReadByTheGuide(Program):
    """A guide whose parameters are as many as the rows, beside one that reads the global latent off all rows."""

    def model(self, t, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(t):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, t, y=None):
        loc = pyro.param("loc", torch.zeros(len(t)))
        pyro.sample("m", dist.Normal(y.mean(), 0.5))
        with rows(t):
            pyro.sample("z", dist.Normal(loc, 0.7))


class MadeForItsRows(Program):
    """The number of rows is an argument of the program, and its plate and guide have that size."""

    def __init__(self, n=7):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.full((n,), -1.0))

    def model(self, t, y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(self.loc)]).to_event(1))
        with pyro.plate("data", len(self.loc)):
            pyro.sample("y", dist.Normal(z.cumsum(-1), 0.7), obs=y)

    def guide(self, t, y=None):
        pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


@pytest.mark.parametrize(
    "program", few([AsLongAsTheData, Process, ReadByTheGuide, MadeForItsRows], "Process", "MadeForItsRows")
)
def test_a_run_is_opened_again(program, tmp_path):
    first = fit(program(), DATA, steps=60, lr=0.05, out=tmp_path / "run")
    run = Run.load(tmp_path / "run", program())
    assert len(run.example["t"]) == 7, "all rows: on two the program has another shape"
    a, b = (loglik(r, DATA, particles=40).best.mean for r in (first, run))
    assert a == b
    latent = first.structure.latents[-1]
    tree = posterior(run, DATA, draws=30)
    assert tree["posterior"][latent].shape == (1, 30, 7)
    assert predict(run, {"t": T}, draws=5)["predictions"]["y"].shape == (1, 5, 7)
    assert sample(run, 3, given={"t": T}, seed=0)["y"].shape[-1] == 7
    assert diagnose(run, DATA, particles=100, draws=50).findings
    assert plot(run, DATA)
    page = report(run, DATA)
    assert "7" in page.read_text()
