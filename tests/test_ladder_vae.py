"""The ladder VAE: its log p(x) by quadrature, the product of two densities, what reaches x."""

import pytest
import torch
from known import binary
from torch.distributions import Bernoulli, Normal

from ppgen import PpgenError
from ppgen.inference import loglik
from ppgen.models import LadderVAE
from ppgen.models.ladder_vae import _product
from ppgen.terms import run, terms


def made(inference: str = "precision", skip: bool = False) -> LadderVAE:
    torch.manual_seed(0)
    program = LadderVAE(4, (1, 1), (5, 3), inference, skip).double().eval()
    for p in program.parameters():
        p.data += 0.3 * torch.randn_like(p)
    for rung in program.rungs:  # a guide that is wide and not far off: weights of finite variance
        rung.numbers.last.weight.data.mul_(0.3)
        rung.numbers.last.bias.data[1:] = 0.8
    return program


@torch.no_grad()
def by_quadrature(program: LadderVAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x) of each row with k = (1, 1), on a grid over z_2 and z_1's distance from its mean."""
    u = torch.linspace(-7, 7, 281).double()
    log_p = Normal(0.0, 1.0).log_prob(u) + (u[1] - u[0]).log()
    low, top = program.rungs
    h = top.down(u[:, None], None)
    p = low.prior(h)
    z = p.loc + p.scale * u  # (z_2, z_1)
    h = low.down(z[..., None], h[:, None].expand(-1, len(u), -1))
    logits = program.base.decoder(h)
    found = Bernoulli(logits=logits).log_prob(x[:, None, None]).sum(-1)
    return (found + log_p[:, None] + log_p).logsumexp((-2, -1))


@pytest.mark.parametrize(("inference", "skip"), [("precision", False), ("residual", True)])
def test_importance_weights_average_to_the_quadrature(inference, skip):
    program, x = made(inference, skip), binary(6, 4).double()
    found = loglik(program, {"x": x}, particles=2000, seed=0)
    exact = by_quadrature(program, x)
    assert (abs(torch.tensor(found.best.values) - exact) < 4 * torch.tensor(found.best.se) + 1e-3).all()
    assert found.bounds[0].mean < float(exact.mean()) - 0.01  # the guide is no posterior here


def test_the_product_is_in_proportion_to_both_densities():
    a, b = Normal(torch.tensor([0.3, -2.0]), torch.tensor([0.5, 3.0])), Normal(torch.tensor([1.0, 0.0]), 0.8)
    z = torch.linspace(-2, 2, 9)[:, None].expand(9, 2)
    left = _product(a, b).log_prob(z) - a.log_prob(z) - b.log_prob(z)
    torch.testing.assert_close(left, left[:1].expand(9, 2))


@pytest.mark.parametrize("inference", ["precision", "residual"])
def test_a_guide_that_saw_nothing_is_the_prior(inference):
    """Numbers of 0 differ in nothing from p(z_i | z_{i+1}); evidence of no precision adds nothing to it."""
    program, x = made(inference), binary(3, 4).double()
    for rung in program.rungs:
        rung.numbers.last.weight.data.zero_()
        rung.numbers.last.bias.data.zero_()
        if inference == "precision":
            rung.numbers.last.bias.data[1:] = 1e6
    h = torch.randn(3, 3).double()
    p, q = program.rungs[0].prior(h), program.rungs[0].posterior(program.read(x)[0], h)
    torch.testing.assert_close(q.loc, p.loc, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(q.scale, p.scale, rtol=1e-3, atol=1e-6)


def test_with_skip_all_latents_reach_x_without_it_the_lowest_alone():
    z_1, z_2 = torch.zeros(2, 1).double(), torch.tensor([[-2.0], [2.0]]).double()
    for skip in (False, True):
        low, top = made(skip=skip).rungs
        h = low.down(z_1, top.down(z_2, None))
        assert torch.allclose(h[0], h[1]) is not skip


def test_its_divergence_is_that_of_each_layer():
    """Each KL in closed form, at the values drawn above: as Sønderby et al. have it."""
    program, x = made(), binary(5, 4).double()
    torch.manual_seed(0)
    found = {t.site: t for t in terms(run(program, {"x": x}), closed_form=True)}
    assert {site: t.role for site, t in found.items()} == {"z_1": "kl", "z_2": "kl", "x": "likelihood"}
    h = program.rungs[1].down(found["z_2"].value, None)
    q, p = program.rungs[0].posterior(program.read(x)[0], h), program.rungs[0].prior(h)
    torch.testing.assert_close(found["z_1"].log_prob, -torch.distributions.kl_divergence(q, p).sum(-1))


def test_what_it_says():
    with pytest.raises(PpgenError, match="as many of each"):
        LadderVAE(4, (3, 2), (5,))
    with pytest.raises(PpgenError, match="take precision or residual"):
        LadderVAE(4, inference="precison")
