"""The autoregressive model on an alphabet so small that every row can be counted."""

import itertools
import math

import pytest
import torch
from known import normal

from ppgen import PpgenError
from ppgen.inference import fit, loglik, sample
from ppgen.models import Autoregressive
from ppgen.nets import CausalTransformer

D, K = 3, 3
ROWS = torch.tensor(list(itertools.product(range(K), repeat=D))).double() / 2  # every row of levels 0, 0.5, 1


def made() -> Autoregressive:
    torch.manual_seed(0)
    model = Autoregressive(D, K, width=8, layers=2, heads=2).double().eval()
    torch.nn.init.normal_(model.net.last.weight, std=0.4)
    return model


@torch.no_grad()
def test_every_row_counted():
    """P sums to 1, is a product of its conditionals, and is what loglik says and draws follow."""
    model, n = made(), 20_000
    found = loglik(model, {"x": ROWS})
    log_p = torch.tensor(found.best.values)
    assert found.best.kind == "exact" and float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    by_hand = torch.zeros(len(ROWS)).double()
    for d in range(D):
        p = model.net(torch.eye(K).double()[(2 * ROWS[:, :d]).long()])[:, -1].softmax(-1)
        by_hand += p[torch.arange(len(ROWS)), (2 * ROWS[:, d]).long()].log()
    torch.testing.assert_close(log_p, by_hand)
    drawn, p = sample(model, n, seed=0)["x"], log_p.exp()
    share = torch.stack([(drawn == x).all(-1).double().mean() for x in ROWS])
    assert (abs(share - p) < 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_the_network_sees_what_came_before_alone():
    torch.manual_seed(0)
    net = CausalTransformer(2, 3, length=5, width=8, heads=2).double()
    jacobian = torch.autograd.functional.jacobian(net, torch.randn(4, 2).double())  # (outputs, 3, inputs, 2)
    reaches = jacobian.abs().sum((1, 3)) > 0
    assert torch.equal(reaches, torch.ones(5, 4).tril(-1).bool())
    x = torch.randn(2, 4, 2).double()
    torch.testing.assert_close(net(x)[:, :3], net(x[:, :2]))  # of the first, as of all


@pytest.mark.slow
def test_it_learns_what_goes_together():
    """x_1 = x_2 a coin, x_3 another: log P(x) = −2 log 2."""
    torch.manual_seed(1)
    x = (torch.rand(2000, 2) < 0.5).float()[:, [0, 0, 1]]
    run = fit(Autoregressive(3, width=16), {"x": x}, steps=300, batch_size=256, lr=0.01, schedule="cosine")
    assert abs(loglik(run, {"x": x}).best.mean + 2 * math.log(2)) < 0.01


def test_errors():
    assert Autoregressive.from_data({"x": ROWS}) == {"features": [3], "levels": 3, "low": 0.0, "high": 1.0}
    with pytest.raises(PpgenError, match="take the model flow"):
        Autoregressive.from_data({"x": normal(12, 3)})
    with pytest.raises(PpgenError, match="at least 2 levels"):
        Autoregressive(3, 1)
    with pytest.raises(PpgenError, match="a multiple of heads"):
        Autoregressive(3, width=9, heads=2)
