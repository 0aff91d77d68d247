"""The semi-supervised VAE: its bounds against quadrature, what a known label does, the classifier's gradient, a fit."""

import math

import pytest
import torch
from known import binary
from pyro.infer import TraceEnum_ELBO
from torch.distributions import Normal

from ppgen import PpgenError
from ppgen.check import check
from ppgen.inference import Objective, fit, loglik, sample
from ppgen.models import SemiSupervisedVAE

NAN = math.nan
Y = torch.tensor([0.0, NAN, 2.0, NAN, NAN, 1.0]).double()


@pytest.fixture(scope="module")
def made() -> tuple[SemiSupervisedVAE, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    program = SemiSupervisedVAE(5, 3, latent=1, hidden=(4,)).double()
    for p in program.parameters():
        p.data += 0.3 * torch.randn_like(p)
    data = {"x": binary(6, 5).double(), "y": Y}
    return fit(program, data, steps=0, precision="64-true").program, data


@torch.no_grad()
def joints(program: SemiSupervisedVAE, x: torch.Tensor, *, elbo: bool = False) -> torch.Tensor:
    """log p(x, y) of every label, (N, C), on a grid of z, k = 1; or L(x, y), the guide's ELBO of it."""
    z = torch.linspace(-9, 9, 2001).double()
    step, found = float(z[1] - z[0]), []
    for c in range(3):
        label = torch.tensor(float(c)).double()
        log_p = program.vae.decode(z[:, None], label).log_prob(x[:, None, :]) + Normal(0.0, 1.0).log_prob(z)
        log_p = log_p + program.label_logits.log_softmax(-1)[c]
        q = program.vae.encode(x[:, None, :], label).log_prob(z[:, None])
        found.append((q.exp() * (log_p - q)).sum(-1) * step if elbo else log_p.logsumexp(-1) + math.log(step))
    return torch.stack(found, -1)


def test_importance_weights_average_to_the_quadrature(made):
    program, data = made
    found = loglik(program, data, particles=10_000, seed=0).best
    log_p = joints(program, data["x"])
    exact = torch.where(Y.isnan(), log_p.logsumexp(-1), log_p.gather(-1, Y.nan_to_num().long()[:, None])[:, 0])
    assert found.se.max() < 0.03
    assert (abs(found.values - exact.numpy()) < 4 * found.se + 1e-6).all()


def test_its_elbo_is_the_papers(made):
    """L(x, y) where the label is known, Σ_y q(y | x) (L(x, y) − log q(y | x)) where it is not."""
    program, data = made
    bound = Objective(program, check(program, data), 6, gradient="enumerated", particles=1000)
    with torch.no_grad():
        rows = sum(t.log_prob.mean(0) for t in bound.terms(data) if t.site != "classifier")
        spread = sum(t.log_prob for t in bound.terms(data)).std(0) / 1000**0.5
    L, log_q = joints(program, data["x"], elbo=True), program.classify(data["x"]).detach()
    U = (log_q.exp() * (L - log_q)).sum(-1)
    exact = torch.where(Y.isnan(), U, L.gather(-1, Y.nan_to_num().long()[:, None])[:, 0])
    assert spread.max() < 0.05
    assert ((rows - exact).abs() < 4.5 * spread + 1e-3).all(), (rows, exact, spread)


def test_its_loss_and_gradient_are_pyros(made):
    """TraceEnum_ELBO from one random state."""
    program, data = made
    parameters = list(program.parameters())
    found = []
    for pyros in (False, True):
        torch.manual_seed(3)
        if pyros:
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            loss = elbo.differentiable_loss(lambda: program.call("model", data), lambda: program.call("guide", data))
        else:
            bound = Objective(program, check(program, data), 6, objective="sampled", gradient="enumerated")
            torch.manual_seed(3)
            loss = 6 * bound(data)[0]
        found.append((loss, torch.autograd.grad(loss, parameters)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_classifier_learns_from_labels_and_the_bound_has_nothing_of_it(made):
    program, data = made
    data = data | {"y": torch.tensor([0.0, 1, 2, 0, 1, 2]).double()}
    bound = Objective(program, check(program, data), 6)
    loss, _ = bound(data)
    weight = next(p for n, p in reversed(list(program.classifier.named_parameters())) if n.endswith("weight"))
    (g,) = torch.autograd.grad(loss, weight)
    log_q = program.classify(data["x"]).gather(-1, data["y"].long()[:, None]).sum()
    (own,) = torch.autograd.grad(-program.alpha * log_q / 6, weight)
    torch.testing.assert_close(g, own)


def test_draws_of_a_label_and_of_all():
    torch.manual_seed(0)
    program = SemiSupervisedVAE(5, 3, latent=1, hidden=(4,))
    drawn = sample(program, 6, seed=0)
    assert drawn["x"].shape == (6, 5) and set(drawn["y"].tolist()) <= {0, 1, 2}
    assert (drawn["label"] == drawn["y"]).all()


def test_it_learns_two_patterns_from_a_few_labels():
    """Rows near 1111 0000 or 0000 1111, four labels of each kind: all others follow."""
    torch.manual_seed(0)
    kind = torch.arange(100) % 2
    x = torch.where(torch.rand(100, 8) < 0.1, 1.0, 0.0)
    x = (x - torch.where((torch.arange(8) < 4) == (kind[:, None] == 0), 1.0, 0.0)).abs()
    y = torch.full((100,), NAN)
    y[:8] = kind[:8].float()
    run = fit(SemiSupervisedVAE(8, 2, latent=1, hidden=(16,)), {"x": x, "y": y}, steps=100, lr=0.02, seed=0)
    assert (run.program.classify(x).argmax(-1) == kind).float().mean() > 0.95


@pytest.mark.parametrize("label", [3.0, -1.0, 0.5])
def test_a_label_that_is_none_beside_unknown_ones(made, label):
    program, data = made
    wrong = data | {"y": torch.tensor([0.0, NAN, label, NAN, NAN, 1.0]).double()}
    fresh = SemiSupervisedVAE(5, 3, latent=1, hidden=(4,))
    for ask in (lambda: loglik(program, wrong), lambda: fit(fresh, wrong, steps=1)):
        with pytest.raises(PpgenError, match=f"has {label:g} in row 2 .*expected one whole number a row from 0 to 2"):
            ask()


def test_errors():
    with pytest.raises(PpgenError, match="at least 2 classes"):
        SemiSupervisedVAE(3, 1)
    with pytest.raises(PpgenError, match="a column y of labels"):
        SemiSupervisedVAE.from_data({"x": torch.zeros(3, 2)})
