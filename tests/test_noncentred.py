"""Latents drawn as u = (z - loc) / scale: the same posterior, by another vector."""

import math

import pyro
import pytest
import torch
from known import SCHOOLS
from pyro.distributions import (
    Gamma,
    HalfCauchy,
    HalfNormal,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
)

from ppgen import PpgenError, Program
from ppgen.engine import log_joint
from ppgen.inference import infer, mcmc
from ppgen.inference.sampling import infer as ladder
from ppgen.inference.verdicts.findings import load_findings, verdict

FEW = {"predictive": False, "prior": False}


def _schools(y, sigma):
    mu, tau = pyro.sample("mu", Normal(0.0, 5.0)), pyro.sample("tau", HalfCauchy(5.0))
    with pyro.plate("school", 8):
        pyro.sample("y", Normal(pyro.sample("theta", Normal(mu, tau)), sigma), obs=y)


def _t(loc, scale):
    return StudentT(4.0, loc, scale)


def _exact() -> tuple[float, float]:
    """E mu and E tau, by quadrature: given tau, all but tau is normal."""
    y, variance = SCHOOLS["y"].double(), SCHOOLS["sigma"].double() ** 2
    t = torch.linspace(-9.0, 6.0, 4001).double()
    tau = t.exp()
    w = 1 / (variance + tau[:, None] ** 2)
    precision, mean = w.sum(-1) + 1 / 25, (w @ y) / (w.sum(-1) + 1 / 25)
    lp = 0.5 * (w.log().sum(-1) - w @ y**2 + precision * mean**2 - precision.log()) + t
    p = (lp + HalfCauchy(torch.tensor(5.0).double()).log_prob(tau)).softmax(0)
    return float(p @ mean), float(p @ tau)


@pytest.mark.parametrize("kind", ["normal", "student", "laplace", "lognormal", "vector", "chain"])
def test_the_density_is_that_of_the_latents_in_other_coordinates(kind: str):
    root = torch.tensor([[1.0, 0.0], [0.5, 2.0]])

    def model(y):
        s = pyro.sample("s", HalfNormal(1.0))
        if kind == "chain":
            z = pyro.sample("z", Normal(1.0, s))
            z = pyro.sample("z2", Normal(z, s * z.exp()))
        elif kind == "vector":
            with pyro.plate("g", 3):
                z = pyro.sample("z", MultivariateNormal(s.expand(2), scale_tril=s * root.to(s))).sum()
        else:
            of = {
                "normal": Normal,
                "student": lambda m, s: StudentT(4.0, m, s),
                "laplace": Laplace,
                "lognormal": LogNormal,
            }
            with pyro.plate("g", 3):
                z = pyro.sample("z", of[kind](s, 2 * s)).sum()
        pyro.sample("y", Normal(z, 1.0), obs=y)

    torch.set_default_dtype(torch.float64)
    program, data = Program.from_pair(model), {"y": torch.tensor(0.7)}
    own, other = log_joint(program, data), log_joint(program, data, noncentred="all")
    assert own.noncentred == () and other.noncentred == (("z", "z2") if kind == "chain" else ("z",))
    u = torch.randn(5, own.dim, generator=torch.Generator().manual_seed(0))
    z = other.unflatten(u)
    assert torch.allclose(other.flatten(z), u)
    scale = {"normal": 3 * (2 * z["s"]).log(), "vector": 3 * (2 * z["s"].log() + math.log(2))}
    scale |= {k: scale["normal"] for k in ("student", "laplace", "lognormal")}
    scale["chain"] = 2 * z["s"].log() + z["z"] if kind == "chain" else 0.0
    assert torch.allclose(other(u), own(own.flatten(z)) + scale[kind])
    if kind == "normal":
        assert torch.allclose(z["z"], z["s"][:, None] * (1 + 2 * u[:, 1:]))


def test_a_named_latent_is_and_no_other():
    program, data = Program.from_pair(_schools), SCHOOLS
    assert log_joint(program, data, noncentred="mu").noncentred == ("mu",)
    assert log_joint(program, data, noncentred=["theta"]).moving == ("theta",)

    def located(y):
        pyro.sample("y", Normal(pyro.sample("z", Normal(pyro.sample("m", Normal(0.0, 1.0)), 2.0)), 1.0), obs=y)

    assert log_joint(Program.from_pair(located), {"y": torch.tensor(0.5)}, noncentred="all").noncentred == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"noncentred": "thet"},
            "noncentred names 'thet', and .* the latents mu, tau, theta .did you mean 'theta'",
        ),
        ({"noncentred": "tau"}, "'tau' .*has no location and scale to be non-centred by"),
        ({"noncentred": "all", "marginal": "theta"}, "leave out noncentred .--noncentred., or marginal"),
        ({"noncentred": "all", "through": True}, "leave out noncentred .--noncentred., or through"),
    ],
)
def test_what_cannot_be_non_centred_is_said(options, message):
    with pytest.raises(PpgenError, match=message):
        mcmc(_schools, SCHOOLS, **options)


def test_chains_of_a_funnel():
    tree = mcmc(_schools, SCHOOLS, noncentred="all", **FEW)
    mu, tau = _exact()
    assert verdict(load_findings(tree)) == "fine" and tree.attrs["noncentred"] == "theta"
    for name, exact in (("mu", mu), ("tau", tau)):
        draws = tree["posterior"][name].values
        assert abs(draws.mean() - exact) < 4 * draws.std() / 1500**0.5


def test_normals_or_chains_of_a_funnel(monkeypatch):
    monkeypatch.setattr(ladder, "LADDER", (ladder.noncentred,))
    tree = infer(_schools, SCHOOLS, **FEW)
    mu, tau = _exact()
    assert tree.attrs["verdict"] == "fine"
    for name, exact in (("mu", mu), ("tau", tau)):
        draws = tree["posterior"][name].values
        assert abs(draws.mean() - exact) < 5 * draws.std() / 1500**0.5


def test_nothing_to_non_centre(monkeypatch):
    def model(y):
        pyro.sample("y", Normal(0.0, pyro.sample("s", Gamma(2.0, 2.0))), obs=y)

    monkeypatch.setattr(ladder, "LADDER", (ladder.noncentred,))
    with pytest.raises(PpgenError, match="has no latent whose scale depends on other latents"):
        infer(model, {"y": torch.tensor(0.5)}, **FEW)
