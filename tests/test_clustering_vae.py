"""The clustering VAE: its bound is that of a VAE with the mixture as its prior; memberships by quadrature; a fit."""

import pytest
import torch
from known import binary, normal
from torch.distributions import Normal

from ppgen import PpgenError
from ppgen.check import check
from ppgen.inference import Objective, fit, loglik
from ppgen.models import VAE, ClusteringVAE


@torch.no_grad()
def made() -> tuple[ClusteringVAE, VAE]:
    """And a VAE with the same networks, whose prior is a mixture in one distribution."""
    torch.manual_seed(0)
    program = ClusteringVAE(5, 3, latent=1, hidden=(4,)).double()
    other = VAE(5, 1, (4,), components=3).double()
    for p in program.parameters():
        p.add_(0.3 * torch.randn_like(p))
    last = [m for m in program.vae.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.0, 2.0]))  # wider than the prior: bounded weights
    other.load_state_dict(program.vae.state_dict(), strict=False)
    for theirs, ours in (
        (other.prior_logits, program.logits),
        (other.prior_loc, program.loc),
        (other.prior_raw, program.raw),
    ):
        theirs.copy_(ours)
    return program, other


def test_the_bound_is_that_of_a_mixture_prior():
    x = binary(6, 5).double()
    found = []
    for program in made():
        found.append(loglik(program, {"x": x}, particles=4000, seed=0))
    ours, theirs = (f.best for f in found)
    assert ours.se.max() < 0.03
    assert (abs(ours.values - theirs.values) < 4 * (ours.se**2 + theirs.se**2) ** 0.5).all()
    elbos = [f.bounds[0] for f in found]
    assert (abs(elbos[0].values - elbos[1].values) < 4 * (elbos[0].se ** 2 + elbos[1].se ** 2) ** 0.5).all()


def test_what_is_trained_on_is_its_elbo():
    """The sum over c at one draw of z is the mixture's log-density: draw by draw, from one random state."""
    x, found = binary(6, 5).double(), []
    for program, gradient in zip(made(), ("enumerated", "pathwise"), strict=True):
        bound = Objective(program, check(program, {"x": x}), 6, objective="sampled", gradient=gradient)
        torch.manual_seed(0)
        found.append(float(bound({"x": x})[1]))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def test_memberships_by_quadrature():
    program, _ = made()
    x, z = binary(4, 5).double(), torch.linspace(-12, 12, 2401).double()
    with torch.no_grad():
        joint = Normal(program.loc[:, 0], program.scale[:, 0]).log_prob(z[:, None]) + program.logits.log_softmax(0)
        q = program.vae.encode(x[:, None]).log_prob(z[:, None]).exp() * 0.01
        exact = q @ joint.softmax(-1)
    torch.manual_seed(0)
    assert (program.memberships(x, 20_000) - exact).abs().max() < 4 * 0.5 / 20_000**0.5


@pytest.mark.slow
def test_it_finds_two_groups():
    kind = torch.arange(200) % 2
    x = 4.0 * kind[:, None] + 0.5 * normal(200, 3)
    torch.manual_seed(0)
    program = ClusteringVAE(**ClusteringVAE.from_data({"x": x}) | {"components": 2, "latent": 1, "hidden": (16,)})
    fit(program, {"x": x}, steps=600, lr=0.01, schedule="cosine", seed=0)
    same = (program.memberships(x).argmax(-1) == kind).float().mean()
    assert max(same, 1 - same) > 0.98


def test_errors():
    with pytest.raises(PpgenError, match="components=1; expected at least 2"):
        ClusteringVAE(3, 1)
