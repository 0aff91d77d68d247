"""The VAE: its likelihoods are normalised, its densities batch-safe, every parameter learns."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.poutine import condition, trace
from scipy import special, stats

from ppgen import Run
from ppgen.errors import PpgenError
from ppgen.inference import fit, loglik, sample
from ppgen.models import VAE
from ppgen.nested import asked_rows

SMALL = {"latent": 3, "hidden": (8, 7)}
CASES = {
    "bernoulli": {"features": 6, "likelihood": "bernoulli"},
    "normal": {"features": 6, "likelihood": "normal", "low": -2.0, "high": 5.0},
    "normal, a scale each": {"features": 6, "likelihood": "normal", "noise": "feature"},
    "logistic": {"features": 6, "likelihood": "logistic", "levels": 17},
    "categorical": {"features": 6, "likelihood": "categorical", "levels": 5},
    "bytes": {"features": 6, "likelihood": "logistic", "low": 0, "high": 255},
    "labels": {"features": 6, "likelihood": "bernoulli", "classes": 4},
    "array": {"features": (3, 2), "likelihood": "logistic"},
    "dropout": {"features": 6, "likelihood": "bernoulli", "dropout": 0.2},
    "convolutions, 8": {"features": 64, "likelihood": "logistic", "levels": 17, "net": "conv"},
    "convolutions, 28": {"features": (28, 28), "likelihood": "categorical", "levels": 3, "net": "conv"},
    "convolutions, 32": {
        "features": (3, 32, 32), "likelihood": "bernoulli", "net": "conv", "classes": 4,
    },
}  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[VAE, dict]:
    """A program of that case, and eleven rows for it."""
    torch.manual_seed(0)
    vae = VAE(**SMALL, **CASES[case])
    for p in vae.parameters():  # away from the even start, so that nothing holds by chance
        p.data += 0.1 * torch.randn_like(p)
    x = torch.rand(11, *vae.shape)
    if vae.likelihood == "normal":
        x = vae.low + 3 * x
    else:
        levels = 2 if vae.likelihood == "bernoulli" else vae.levels
        x = vae.low + (x * (levels - 1)).round() / (levels - 1) * (vae.high - vae.low)
    return vae, {"x": x} | ({"y": torch.arange(11) % 4} if vae.classes else {})


def log_joint(vae, data, z):
    t = trace(condition(vae.model, {"z": z})).get_trace(**data)
    t.compute_log_prob()
    return t.nodes["x"]["log_prob"] + t.nodes["z"]["log_prob"]


@EACH
def test_particles_at_once_equal_one_after_the_other(case):
    vae, data = made(case)
    vae.eval()
    z = torch.randn(5, 1, 11, 3)
    together = log_joint(vae, data, z)
    assert together.shape == (5, 1, 11)
    torch.testing.assert_close(together, torch.stack([log_joint(vae, data, one) for one in z]), atol=1e-3, rtol=1e-4)


@EACH
def test_elbo_of_vectorised_particles(case):
    vae, data = made(case)
    vae.eval()

    n = 100 if "convolutions" in case else 2000
    with torch.no_grad():
        many = Trace_ELBO(n, vectorize_particles=True, max_plate_nesting=1)
        elbo = -many.loss(vae.model, vae.guide, **data)
        q = vae.encode(**data)
        z = q.sample((n,))
        terms = log_joint(vae, data, z) - q.log_prob(z)
    se = terms.sum(-1).std().item() * math.sqrt(2 / n)
    assert abs(elbo - terms.sum(-1).mean().item()) < 4 * se


@EACH
def test_gradient_reaches_every_parameter(case):
    vae, data = made(case)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, **data).backward()
    for name, p in vae.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


@EACH
def test_generation_and_its_values(case):
    vae, data = made(case)
    given = {"y": data["y"]} if vae.classes else {}
    with asked_rows(11), torch.no_grad():
        x = vae.model(**given)
    fn = vae.decode(torch.randn(11, 3), **given)
    assert x.shape == (11, *vae.shape) and fn.event_shape == vae.shape
    assert fn.support.check(x).all()
    assert fn.mean.shape == x.shape
    assert fn.log_prob(data["x"]).shape == (11,)


@EACH
def test_float64(case):
    vae, data = made(case)
    vae.double()
    data["x"] = data["x"].double()
    if vae.likelihood in ("logistic", "categorical"):  # float32 roundings are still on the grid
        assert vae.decode(torch.zeros(11, 3).double(), data.get("y")).support.check(data["x"]).all()
    for part in (vae.model, vae.guide):
        t = trace(part).get_trace(**data)
        t.compute_log_prob()
        for name in ("x", "z"):
            if name in t.nodes and name != "data":
                assert t.nodes[name]["value"].dtype == t.nodes[name]["log_prob"].dtype == torch.float64


@pytest.mark.parametrize("case", ["bernoulli", "logistic", "categorical", "bytes"])
def test_the_likelihood_sums_to_one(case):
    """Over all values of one pixel, the others held; the product over pixels then is normalised."""
    vae, data = made(case)
    fn = vae.decode(3 * torch.randn(11, 3)).base_dist
    log_p = fn.log_prob(fn.enumerate_support())
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(11, 6), atol=1e-5, rtol=0)


def test_log_prob_of_a_datum_by_quadrature():
    """log p(x) with one latent dimension: quadrature over z against importance sampling."""
    torch.manual_seed(0)
    vae = VAE(4, latent=1, hidden=(8,), likelihood="logistic", levels=5).double()
    vae.decoder.last.weight.data *= 10
    x = torch.tensor([[0.0, 0.25, 1.0, 0.5]]).double()
    grid = torch.linspace(-9, 9, 2001).double()[:, None, None]
    with torch.no_grad():
        exact = (log_joint(vae, {"x": x}, grid)[:, 0].exp().sum() * 18 / 2000).log()
        proposal = Normal(torch.zeros(1, 1).double(), 1.5).to_event(1)
        z = proposal.sample((100_000,))
        w = (log_joint(vae, {"x": x}, z) - proposal.log_prob(z))[:, 0].exp()
    se = w.std() / w.mean() / 100_000**0.5
    assert abs(w.mean().log() - exact) < 4 * se and se < 0.005


@pytest.mark.parametrize("case", ["normal", "normal, a scale each"])
def test_the_learned_scale_has_a_floor(case):
    vae, data = made(case)
    vae.noise.data -= 1000
    fn = vae.decode(torch.zeros(3)).base_dist
    assert (fn.scale > 0).all() and fn.log_prob(data["x"]).isfinite().all()
    assert vae.noise.shape == ((6,) if vae.noise.dim() else ())


def test_extreme_weights_give_finite_densities():
    for case in ("logistic", "bernoulli", "normal", "categorical"):
        vae, data = made(case)
        for factor in (1e3, -1e3):
            vae.encoder.last.weight.data *= factor
            loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, **data)
            loss.backward()
            assert loss.isfinite()
            assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_labels_matter_and_are_needed():
    vae, data = made("labels")
    z = torch.randn(11, 3)
    logits = vae.decode(z, data["y"]).base_dist.logits
    assert not torch.allclose(logits, vae.decode(z, (data["y"] + 1) % 4).base_dist.logits)
    with pytest.raises(PpgenError, match="labels y, and got none"):
        vae.guide(data["x"])
    with asked_rows(3), pytest.raises(PpgenError, match="to sample from it given="):
        vae.model()
    for wrong, said in (
        (torch.full((11,), 4), "has 4, expected one label a row out of 0 to 3"),
        (torch.full((11,), -1), "has -1"),
        (torch.zeros(11, 1), r"shape \(11, 1\)"),
    ):
        with pytest.raises(PpgenError, match=said):
            vae.guide(data["x"], wrong)


def test_labels_are_left_alone_without_classes():
    vae, data = made("logistic")
    vae.guide(data["x"], torch.full((11,), 99))
    with asked_rows(5):
        assert vae.model(y=torch.zeros(11)).shape == (5, 6)


def test_integers_and_booleans():
    for case, dtype in (("bytes", torch.uint8), ("bernoulli", torch.bool), ("bernoulli", torch.int64)):
        vae, data = made(case)
        values = data["x"].to(dtype)
        z = torch.randn(11, 3)
        torch.testing.assert_close(log_joint(vae, {"x": values}, z), log_joint(vae, {"x": values.float()}, z))
        pyro.set_rng_seed(0)
        vae.guide(values)


def levels(n, low=0.0, high=1.0):
    return low + torch.arange(n).repeat(4)[:, None].float() / (n - 1) * (high - low)


NORMAL = {"likelihood": "normal"}
DATA = {
    "binary": (levels(2), {"likelihood": "bernoulli"}),
    "binary, booleans": (levels(2).bool(), {"likelihood": "bernoulli"}),
    "binary, bytes": (levels(2).to(torch.uint8), {"likelihood": "bernoulli"}),
    "all zero": (torch.zeros(5, 3), {"likelihood": "bernoulli"}),
    "k/16": (levels(17), {"likelihood": "logistic", "levels": 17, "low": 0.0, "high": 1.0}),
    "k/255": (levels(256), {"likelihood": "logistic", "levels": 256, "low": 0.0, "high": 1.0}),
    "k/255, double": (levels(256).double(), {"likelihood": "logistic", "levels": 256}),
    "few of k/255": (levels(256)[::7], {"likelihood": "logistic", "levels": 256}),
    "around zero": (levels(256, -1.0), {"likelihood": "logistic", "levels": 256, "low": -1.0, "high": 1.0}),
    "spins": (levels(2, -1.0), {"likelihood": "logistic", "levels": 2, "low": -1.0}),
    "bytes": (levels(256, 0, 255).to(torch.uint8), {"likelihood": "logistic", "levels": 256, "high": 255.0}),
    "dark bytes": (levels(101, 0, 100).to(torch.uint8), {"likelihood": "logistic", "levels": 256}),
    "0 to 16": (levels(17, 0, 16), {"likelihood": "logistic", "levels": 17, "high": 16.0}),
    "counts": (torch.arange(1000)[:, None], NORMAL),
    "reals": (torch.randn(900, 2), NORMAL),
    "few reals": (torch.rand(5, 2), NORMAL),
    "grid but for one": (torch.cat([levels(17), torch.tensor([[0.7071]])]), NORMAL),
    "with a NaN": (torch.cat([torch.randn(9, 1), torch.tensor([[math.nan]])]), NORMAL),
}


@pytest.mark.parametrize("x, expected", DATA.values(), ids=DATA)
def test_the_likelihood_suits_the_data(x, expected):
    found = VAE.from_data({"x": x, "y": torch.zeros(len(x))})
    assert found["features"] == x.shape[1]
    assert expected.items() <= found.items()
    vae = VAE(**SMALL, **found)
    if not torch.isnan(x.float()).any():
        assert vae.decode(torch.zeros(len(x), 3)).support.check(x).all()
        t = trace(vae.model).get_trace(x)
        assert t.log_prob_sum().isfinite()


def test_a_value_off_the_grid_beyond_the_first_million():
    x = torch.zeros(1_100_000, 1)
    x[::2] = 0.5
    assert VAE.from_data({"x": x})["levels"] == 3
    x[-1] = 0.7071
    assert VAE.from_data({"x": x})["likelihood"] == "normal"


def test_units_of_real_data():
    x = 50 + 4 * torch.randn(2000, 3)
    found = VAE.from_data({"x": x})
    assert found["low"] == pytest.approx(46, abs=0.3) and found["high"] == pytest.approx(54, abs=0.3)
    fn = VAE(**found).decode(torch.randn(100, 20)).base_dist
    assert fn.mean.mean().item() == pytest.approx(50, abs=1)
    assert 1 < fn.scale.max() < 4


@pytest.mark.parametrize("likelihood", ["normal", "logistic"])
def test_the_decoders_number_is_the_middle_of_the_range(likelihood):
    """A decoder that says 0 says the middle, of a scale of half the range times softplus(noise), or a tenth of it."""
    vae = VAE(3, latent=2, hidden=(4,), likelihood=likelihood, levels=17, low=2.0, high=10.0)
    torch.nn.init.zeros_(vae.decoder.last.weight)
    torch.nn.init.zeros_(vae.decoder.last.bias)
    fn = vae.decode(torch.randn(5, 2)).base_dist
    zero = math.log(2.0)  # softplus(0)
    scale = 4 * (math.log1p(math.exp(-0.43)) + 1e-3) if likelihood == "normal" else 8 * (0.1 * zero + 0.1 / 16)
    assert torch.allclose(fn.loc, torch.tensor(6.0)) and torch.allclose(fn.scale, torch.tensor(scale))


def test_features_of_images():
    assert VAE.from_data({"x": torch.rand(4, 3, 8, 8)})["features"] == [3, 8, 8]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"likelihood": "bernouli"}, "did you mean 'bernoulli'"),
        ({"net": "cnn"}, "take one of mlp, conv"),
        ({"noise": "none"}, "noise='none'"),
        ({"latent": 0}, "latent=0"),
        ({"features": ()}, r"features=\(\)"),
        ({"classes": -1}, "classes=-1"),
        ({"low": 1.0}, "low < high"),
        ({"features": 65, "net": "conv"}, "square image"),
        ({"features": 75, "net": "conv"}, "square image"),
        ({"features": (4, 5), "net": "conv"}, "square image"),
        ({"features": 49, "net": "conv"}, "side=7"),
        ({"activation": "rel"}, "did you mean 'relu'"),
    ],
)
def test_what_it_refuses(arguments, said):
    with pytest.raises(PpgenError, match=said):
        VAE(**{"features": 64} | arguments)


def test_data_that_it_refuses():
    for data in ({"y": torch.zeros(3)}, {"x": torch.zeros(3)}, {"x": torch.zeros(0, 3)}):
        with pytest.raises(PpgenError, match="column x of shape"):
            VAE.from_data(data)


def test_it_learns_two_prototypes():
    """Data are two patterns with every bit flipped at random one time in twenty."""
    torch.manual_seed(0)
    patterns = (torch.rand(2, 20) < 0.5).float()
    which = torch.randint(2, (2000,))
    x = (patterns[which] - (torch.rand(2000, 20) < 0.05).float()).abs()
    p = torch.where(patterns == 1, 0.95, 0.05)
    each = torch.distributions.Bernoulli(p).log_prob(x[:, None]).sum(-1) - math.log(2)
    best = each.logsumexp(-1).mean().item()
    vae = VAE(20, latent=1, hidden=(20,))
    optimiser = torch.optim.Adam(vae.parameters(), lr=0.01)
    elbo = Trace_ELBO()
    for step in range(500):
        batch = x[torch.arange(100) + 100 * (step % 20)]
        optimiser.zero_grad()
        (elbo.differentiable_loss(vae.model, vae.guide, batch) / 100).backward()
        optimiser.step()
    reached = -elbo.loss(vae.model, vae.guide, x) / 2000
    assert best - 1.0 < reached < best + 0.3


@pytest.mark.parametrize(
    ("prior", "bounds"), [("mixture", ["elbo", "iw"]), ("flow", ["elbo", "iw"]), ("diffusion", ["elbo"])]
)
def test_a_learned_prior_is_trained_saved_and_drawn_from(prior, bounds, tmp_path):
    torch.manual_seed(0)
    x = {"x": (torch.rand(64, 6) < 0.3).float()}
    vae = VAE(6, latent=3, hidden=(8,), prior=prior, components=2 if prior == "mixture" else 0)
    own = [n for n, _ in vae.named_parameters() if n.startswith(("prior_", "latents"))]
    before = {n: p.clone() for n, p in vae.named_parameters()}
    run = fit(vae, x, steps=30, lr=0.01, seed=0, out=tmp_path / "run")
    assert own and all(not torch.equal(before[n], vae.get_parameter(n)) for n in own if before[n].abs().sum())
    again = Run.load(tmp_path / "run")
    found, same = (loglik(r, x, particles=5, seed=1) for r in (run, again))
    assert [b.name for b in found.bounds] == (["elbo"] if prior == "diffusion" else ["elbo", "iw"])
    assert [b.mean for b in found.bounds] == [b.mean for b in same.bounds]
    assert sample(again, 4, seed=0)["z"].shape == (4, 3)


@torch.no_grad()
def test_one_latent_whose_prior_is_a_flow():
    """It was refused: a coupling has two parts. Importance weights average to log p(x) by quadrature."""
    torch.manual_seed(0)
    vae = VAE(3, latent=1, hidden=(4,), prior="flow").double().eval()
    for p in vae.latents.parameters():
        p.data += 0.05 * torch.randn_like(p)
    last = [m for m in vae.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor([1.0, 2.0]))  # wider than the prior: bounded weights
    x, z = torch.tensor([[1.0, 0, 1], [0.0, 0, 1]]).double(), torch.linspace(-12, 12, 4001).double()[:, None]
    prior = torch.as_tensor(loglik(vae.latents, {"x": z}).best.values)
    log_p = [torch.logsumexp(prior + vae.decode(z).log_prob(one), 0) + math.log(24 / 4000) for one in x]
    found = loglik(vae, {"x": x}, particles=50_000).best
    assert found.se.max() < 0.05 and (abs(found.values - torch.stack(log_p).numpy()) < 4 * found.se).all()


@pytest.mark.parametrize("wrong", [{"prior": "flow", "components": 3}, {"prior": "mixture"}, {"prior": "vamp"}])
def test_priors_that_there_are_not(wrong):
    with pytest.raises(PpgenError, match="prior="):
        VAE(6, **wrong)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "zinb"])
def test_counts_against_quadrature(likelihood):
    """k = 1: log p(x) on a grid of z, the probabilities by scipy; with an exposure."""
    torch.manual_seed(0)
    vae = VAE(3, latent=1, hidden=(4,), likelihood=likelihood).double()
    for p in vae.parameters():
        p.data += 0.3 * torch.randn_like(p)
    last = [m for m in vae.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor([0.0, 1.0]))  # wider than the prior: bounded weights
    x, exposure = torch.tensor([[0.0, 2, 1], [4, 0, 0]]).double(), torch.tensor([1.0, 2.5]).double()
    z = torch.linspace(-8, 8, 1601).double()
    with torch.no_grad():
        out = vae.decoder(z[:, None]).reshape(len(z), vae.numbers, 3)
        phi = 1.0 if likelihood == "poisson" else vae.log_phi.exp().numpy()
        mean = (out[:, 0] + vae.log_mean).exp()[:, None] * exposure[:, None]  # (z, row, feature)
    poisson = likelihood == "poisson"
    p = stats.poisson.pmf(x, mean) if poisson else stats.nbinom.pmf(x, phi, phi / (phi + mean.numpy()))
    if likelihood == "zinb":
        gate = special.expit(out[:, 1].numpy())[:, None]
        p = gate * (x.numpy() == 0) + (1 - gate) * p
    exact = np.log((p.prod(-1) * stats.norm.pdf(z)[:, None]).sum(0) * 0.01)
    found = loglik(vae, {"x": x, "exposure": exposure}, particles=10_000, seed=0).best
    assert found.se.max() < 0.02
    assert (abs(found.values - exact) < 4 * found.se + 1e-6).all()


def test_counts_begin_at_the_level_of_the_data():
    x = torch.poisson(torch.tensor([5.0, 100.0]).expand(200, 2))
    run = fit(
        VAE(2, latent=1, hidden=(4,), likelihood="poisson"), {"x": x, "exposure": torch.full((200,), 2.0)}, steps=0
    )
    torch.testing.assert_close(run.program.log_mean.exp(), x.mean(0) / 2, rtol=0.01, atol=0.0)
