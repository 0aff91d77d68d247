"""The VQ-VAE: its log p(x) summed over all codes, its gradient by hand, its running means by their recursion."""

import itertools
import math

import pytest
import torch
from known import binary
from torch import Tensor

from ppgen import PpgenError
from ppgen.check import check
from ppgen.engine.graphs.gradient import Gradient
from ppgen.inference import Objective, diagnose, fit, loglik, sample
from ppgen.models import VQVAE

L, K, D = 2, 3, 4
CODES = torch.tensor(list(itertools.product(range(K), repeat=L))).double()  # every z
ROWS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=D))).double()  # every x


def made(prior: str = "uniform", **options: float) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(D, L, K, 2, (5,), prior, **options).double()
    torch.nn.init.normal_(model.vae.decoder.last.weight)
    if prior == "autoregressive":
        torch.nn.init.normal_(model.latents.net.last.weight, std=0.2)
    return model


@pytest.mark.parametrize(
    "rows, shape, codes", [(1437, (64,), (4, 32)), (40, (8,), (2, 8)), (9000, (28, 28), (16, 64)), (1, (40,), (2, 8))]
)
def test_data_say_how_many_codes(rows, shape, codes):
    found = VQVAE.from_data({"x": torch.eye(2)[0, 0].expand(rows, *shape)})
    assert (found["latent"], found["codebook"]) == codes


@torch.no_grad()
def joint(model: VQVAE) -> Tensor:
    """log p(x, z) of every x and z: (x, z)."""
    prior = torch.full((len(CODES),), -L * math.log(K), dtype=torch.double)
    if model.latents is not None:
        prior = torch.tensor(loglik(model.latents, {"x": CODES}).best.values)
    logits = model.vae.decoder(model.codebook[CODES.long()].flatten(1))
    return prior + torch.distributions.Bernoulli(logits=logits).log_prob(ROWS[:, None]).sum(-1)


@torch.no_grad()
def nearest(model: VQVAE, x: Tensor) -> Tensor:
    u = model.encode(x)
    return torch.stack([(u - e).norm(dim=-1) for e in model.codebook], -1).argmin(-1)


@pytest.mark.parametrize("prior", ["uniform", "autoregressive"])
def test_every_code_counted(prior):
    """The bound is log p(x, z) at the nearest codes; the best of all codes are at most L log K below log p(x)."""
    model = made(prior).eval()
    log_joint = joint(model)
    log_p = log_joint.logsumexp(1)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    z = nearest(model, ROWS)
    assert torch.equal(model.quantize(ROWS), z.double()) and len(z.unique(dim=0)) > 1
    at_z = log_joint[torch.arange(len(ROWS)), z[:, 0] * K + z[:, 1]]
    found = loglik(model, {"x": ROWS}, particles=3)
    for bound in found.bounds:  # importance weights that are all alike: no tighter
        assert bound.kind == "lower"
        torch.testing.assert_close(torch.tensor(bound.values), at_z)
    assert (at_z < log_p).all() and (log_joint.amax(1) > log_p - L * math.log(K)).all()


def test_draws_go_through_a_prior_that_was_fitted():
    """Codes, and rows of each, are as frequent as the autoregressive prior and the decoder say."""
    model, n = made("autoregressive").eval(), 10_000
    drawn, p = sample(model, n, seed=0), joint(model).exp()
    for which, exact in ((drawn["z"], p.sum(0)), (drawn["x"], p.sum(1))):
        every = CODES if which is drawn["z"] else ROWS
        share = torch.stack([(which == v).all(-1).double().mean() for v in every])
        assert (abs(share - exact) < 4.5 * (exact * (1 - exact) / n).sqrt()).all()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_gradient_by_hand(decay):
    model, x = made(commitment=0.7, decay=decay).train(), ROWS[:9]
    bound = Objective(model, check(model, {"x": x}), len(x))
    table = model.codebook.detach().clone()
    z, u = nearest(model, x), model.encode(x)
    e = table[z].requires_grad_()
    log_lik = torch.distributions.Bernoulli(logits=model.vae.decoder(e.flatten(1))).log_prob(x).sum()
    loss, elbo = bound({"x": x})
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(loss * len(x), parameters), strict=True))
    assert float(elbo) == pytest.approx(float(log_lik.detach()) - len(x) * L * math.log(K), abs=1e-9)
    (through,) = torch.autograd.grad(-log_lik, e, retain_graph=True)
    pull = through + 2 * 0.7 * (u - e).detach()  # at u, of each row and place
    encoder = torch.autograd.grad(u, list(model.vae.encoder.parameters()), pull)
    for (name, _), g in zip(model.vae.encoder.named_parameters(), encoder, strict=True):
        torch.testing.assert_close(found[f"vae.encoder.{name}"], g)
    decoder = torch.autograd.grad(-log_lik, list(model.vae.decoder.parameters()))
    for (name, _), g in zip(model.vae.decoder.named_parameters(), decoder, strict=True):
        torch.testing.assert_close(found[f"vae.decoder.{name}"], g)
    by_code = torch.stack([(2 * (e - u))[z == k].sum(0) for k in range(K)]).detach()
    if decay:
        assert "codebook" not in found
    else:
        torch.testing.assert_close(found["codebook"], by_code)


def ready(decay: float) -> tuple[VQVAE, Objective]:
    """In training, and checked: its codebook as `prepare` made it."""
    model = made(decay=decay).train()
    bound = Objective(model, check(model, {"x": ROWS}), len(ROWS))
    model.counts.fill_(1.0)
    model.prepare({"x": ROWS})
    return model, bound


def test_running_means_by_their_recursion():
    """By steps of the program, and by those of its traced gradient."""
    model, bound = ready(0.8)
    other, traced = ready(0.8)
    graph = Gradient(traced, {"x": ROWS})
    assert torch.equal(other.codebook, model.codebook)  # a trace moves nothing
    with torch.no_grad():
        u = model.encode(ROWS).flatten(0, 1).numpy()
    table, counts = model.codebook.numpy().copy(), [1.0] * K
    assert all((abs(u - e).sum(1) < 1e-9).any() for e in table)
    sums = table.copy()
    for _ in range(5):
        z = [min(range(K), key=lambda k, v=v: ((v - table[k]) ** 2).sum()) for v in u]
        for k in range(K):
            own = u[[i for i, code in enumerate(z) if code == k]]
            counts[k] = 0.8 * counts[k] + 0.2 * len(own)
            sums[k] = 0.8 * sums[k] + 0.2 * own.sum(0)
            table[k] = sums[k] / counts[k]
        bound({"x": ROWS})
        for buffer, value in zip(graph.changed, graph({"x": ROWS}).buffers, strict=True):
            buffer.copy_(value)
    for program in (model, other):
        torch.testing.assert_close(program.codebook, torch.tensor(table))
    loglik(model, {"x": ROWS}, particles=2)
    torch.testing.assert_close(model.codebook, torch.tensor(table))  # an evaluation moves nothing


def test_a_code_that_none_is_near_stays_where_it_is():
    model, bound = ready(0.5)
    model.codebook[2], model.sums[2], model.counts[2] = 1e3, 0.0, 1e-7
    bound({"x": ROWS})
    assert (model.codebook[2] == 1e3).all() and model.codebook.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "decay"), [("autoregressive", 0.0), ("diffusion", 0.95)])
def test_it_learns(prior, decay):
    """Rows of eight kinds, which three codes of four values can tell apart; the prior learns which codes there are."""
    torch.manual_seed(3)
    kinds = binary(8, 12)
    x = kinds[torch.randint(8, (600,))]
    model = VQVAE(12, 3, 4, 4, (32,), prior, decay=decay)
    run = fit(model, {"x": x}, steps=600, batch_size=200, lr=5e-3, schedule="cosine", seed=0)
    found = loglik(run, {"x": x}, particles=50).bounds[0]
    # kinds that share codes cost some; with a uniform prior it could not be above −3 log 4 = −4.16
    assert -math.log(8) - 1.0 < found.mean < -math.log(8) + 0.05
    drawn, codes = sample(run, 400, seed=0)["z"], run.program.quantize(kinds)
    assert len(codes.unique(dim=0)) > 4 and (drawn[:, None] == codes).all(-1).any(-1).float().mean() > 0.9


def test_a_guide_without_spread_is_not_diagnosed():
    with pytest.raises(PpgenError, match="has no spread: it gives one value of 'z'"):
        diagnose(fit(made(), {"x": ROWS}, steps=0, precision="64-true"), {"x": ROWS}, particles=20)


def test_errors():
    for options, message in (
        ({"codebook": 1}, "a codebook of at least 2"),
        ({"decay": 1.0}, "0 <= decay < 1"),
        ({"prior": "autoregresive"}, "did you mean 'autoregressive'|autoregressive"),
    ):
        with pytest.raises(PpgenError, match=message):
            VQVAE(4, **options)
