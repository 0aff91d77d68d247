"""Masked diffusion on an alphabet so small that every state, path and mask can be counted."""

import itertools
import math

import pytest
import torch
from known import normal

from ppgen import PpgenError
from ppgen.inference import fit, loglik, plot, sample
from ppgen.inference.diffusion.elbo_decomposition import chain_elbo
from ppgen.models import MaskedDiffusion

D, K = 2, 2
STATES = torch.tensor(list(itertools.product(range(K + 1), repeat=D)))  # of z, the mask being K
ROWS = torch.tensor(list(itertools.product(range(K), repeat=D))).float()  # of x


def made(steps: int = 3, features: int = D, levels: int = K) -> MaskedDiffusion:
    torch.manual_seed(0)
    model = MaskedDiffusion(features, levels, 0.0, levels - 1.0, (8,), steps).double().eval()
    torch.nn.init.normal_(model.net.last.weight)
    return model


def table(conditional, states: torch.Tensor = STATES) -> torch.Tensor:
    """The log-probability of each state under a distribution for each row: (rows, states)."""
    return torch.stack([conditional.log_prob(z.expand(*conditional.batch_shape, -1)) for z in states], -1)


@torch.no_grad()
def exact(model: MaskedDiffusion) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x) and the ELBO of every x, by sums over all states of the explicit chain."""
    p, elbo = table(model.base().expand([1])).exp()[0], torch.zeros(len(ROWS)).double()
    q = table(model.forward(ROWS, 1.0)).exp()
    for s, t in model.grid():
        step = table(model.reverse(STATES, s, t))
        back = table(model.posterior(STATES, ROWS[:, None], s, t))  # (x, z_t, z_s)
        assert torch.allclose(step.exp().sum(-1), torch.ones(len(STATES)).double())
        gap = torch.where(back > -math.inf, back.exp() * (step - back), 0.0).sum(-1)
        elbo += torch.where(q > 0, q * gap, 0.0).sum(-1)
        p, q = p @ step.exp(), torch.einsum("xt,xts->xs", q, back.exp())
    kept = [int((z == x).all(-1).nonzero()) for x in ROWS for z in [STATES]]
    return p[kept].log(), elbo


def test_every_path_counted():
    """p sums to 1; the KL of each step in closed form adds up to the ELBO; importance weights average to p."""
    model = made()
    log_p, elbo = exact(model)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    total = torch.zeros(len(ROWS)).double()
    with torch.no_grad():
        for s, t in model.grid():
            weight = table(model.forward(ROWS, t)).exp()
            cost = model.cost(ROWS[:, None], STATES.expand(len(ROWS), -1, -1), torch.tensor(s), torch.tensor(t))
            total -= (weight * cost).sum(-1)
    torch.testing.assert_close(total, elbo)
    assert (elbo < log_p - 1e-3).all()
    found = loglik(model, {"x": ROWS.double()}, particles=4000, seed=0)
    for bound, value in ((found.bounds[0], elbo), (found.best, log_p)):
        assert (abs(torch.tensor(bound.values) - value) < 4.5 * torch.tensor(bound.se) + 1e-3).all()


@torch.no_grad()
def test_the_limit_is_a_sum_over_masks():
    """∫ 1/t t^m (1 − t)^(D − m) dt = B(m, D − m + 1) for each set of m masks."""
    model, x = made(0, 3, 3), torch.tensor([[0.0, 2.0, 1.0]]).double()
    elbo = 0.0
    for hidden in itertools.product([False, True], repeat=3):
        m, z = sum(hidden), torch.where(torch.tensor(hidden), 3, x.long())
        if m:
            log_p = model.predict(z)[0, torch.arange(3), x[0].long()]
            beta = math.factorial(m - 1) * math.factorial(3 - m) / math.factorial(3)
            elbo += beta * float(log_p[torch.tensor(hidden)].sum())
    found = chain_elbo(model, {"x": x.expand(1000, 3)}, times=200).best
    assert abs(found.mean - elbo) < 4.5 * found.rows_se < 0.02 * abs(elbo)


def test_draws_are_of_the_chains_own_distribution():
    model, n = made(), 20_000
    log_p, _ = exact(model)
    drawn = sample(model, n, seed=0)["x"]
    share = torch.stack([(drawn == x).all(-1).double().mean() for x in ROWS])
    p = log_p.exp()
    assert (abs(share - p) < 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_a_state_keeps_what_it_shows():
    model, z = made(features=4, levels=3), torch.tensor([[0, 3, 2, 3]])
    q = model.reverse(z, 0.25, 0.75).base_dist.probs[0]
    assert torch.equal(q[[0, 2]].argmax(-1), z[0, [0, 2]]) and torch.allclose(
        q[[0, 2]].max(-1).values, torch.ones(2).double()
    )
    assert torch.allclose(q[[1, 3], 3], torch.full((2,), 1 / 3).double())  # the share of masks that stay: s / t


@pytest.mark.slow
def test_it_learns_what_goes_together():
    """x_1 = x_2 a coin, x_3 another: log p(x) = −2 log 2, which the limit can reach."""
    torch.manual_seed(1)
    coins = (torch.rand(2000, 2) < 0.5).float()
    run = fit(
        MaskedDiffusion(3, hidden=(32,)),
        {"x": coins[:, [0, 0, 1]]},
        steps=800,
        batch_size=256,
        lr=0.01,
        schedule="cosine",
    )
    assert abs(loglik(run, {"x": coins[:500, [0, 0, 1]]}, particles=200).best.mean + 2 * math.log(2)) < 0.03


def test_its_pictures_are_of_a_chain(tmp_path):
    run = fit(made(9), {"x": ROWS}, steps=2, log_every=1)
    assert {p.stem for p in plot(run, {"x": ROWS}, tmp_path)} == {"elbo", "samples", "ledger"}


def test_levels_of_any_grid():
    x = torch.tensor([[0.0, 1.0, 4.0], [2.0, 3.0, 4.0]])
    arguments = MaskedDiffusion.from_data({"x": x})
    model = MaskedDiffusion(**arguments)
    assert arguments["levels"] == 5 and model.positions(x).tolist() == [[0, 1, 4], [2, 3, 4]]
    z = model.forward(x, 0.0).sample()
    assert torch.equal(model.likelihood(z).sample(), x)
    with pytest.raises(PpgenError, match="take the model diffusion"):
        MaskedDiffusion.from_data({"x": normal(12, 3)})


def test_draws_that_reveal_many_values_at_once_are_said(caplog):
    """Once; the remedy works, and explicit chains and few values go without a word."""
    model = MaskedDiffusion(64, hidden=(4,))
    sample(model, 2500, seed=0)
    (said,) = caplog.messages
    assert "1 value(s) a step (64 in 64)" in said and "run.program.steps = 128" in said
    caplog.clear()
    model.steps = 128
    assert sample(model, 3, seed=0)["x"].shape == (3, 64)
    for silent in (MaskedDiffusion(32, hidden=(4,)), MaskedDiffusion(64, hidden=(4,), steps=9)):
        sample(silent, 2, seed=0)
        loglik(silent, {"x": torch.zeros(2, silent.shape[0])}, particles=4)
    assert not caplog.messages


class Copies(MaskedDiffusion):
    """Of x whose values are all one bit: what is masked is what is seen, and a coin where nothing is."""

    def predict(self, z):
        one, zero = ((z == k).any(-1, keepdim=True) for k in (1, 0))
        p = torch.where(one == zero, 0.5, torch.where(one, 1 - 1e-9, 1e-9)).to(self.zero.dtype).expand(z.shape)
        return torch.stack([torch.log1p(-p), p.log()], -1)


@torch.no_grad()
def test_the_bound_of_the_limit_is_of_draws_that_reveal_one_value_at_a_time():
    """Of D = 8 and T = 16: the first k values that come at once agree with a probability of 2^(1 - k)."""
    steps, d = 16, 8
    model = Copies(d, hidden=(2,)).double()
    model.steps = steps
    drawn = sample(model, 20_000, seed=0)["x"]
    agree = (drawn == drawn[:, :1]).all(1).double()
    exact = 0.0
    for i in range(steps):  # the first i steps reveal nothing, the next k of d
        hidden, rest = (1 - i / steps) ** d, 1 / (steps - i)
        exact += hidden * sum(math.comb(d, k) * rest**k * (1 - rest) ** (d - k) * 2 ** (1 - k) for k in range(1, d + 1))
    assert abs(float(agree.mean()) - exact) < 4 * float(agree.std()) / 20_000**0.5 and exact < 0.9
    x = {"x": torch.zeros(1000, d).double()}
    means, errors = [], []
    for model.limit in (False, True):
        found = loglik(model, x, particles=16).best
        means.append(found.mean)
        errors.append(found.rows_se)
    assert max(errors) < 0.02 and means[0] + 3 * errors[0] < math.log(exact / 2) < means[1] - 3 * errors[1]
    assert abs(means[1] - math.log(0.5)) < 4 * errors[1]
