"""A bridge between Gaussians, where every answer is known."""

import math
from unittest import mock

import pytest
import torch
from known import draws_agree, normal, subsampled
from torch.distributions import MultivariateNormal, Normal

from ppgen import PpgenError
from ppgen.inference import fit, impute, loglik, plot, sample, sample_diffusion
from ppgen.inference.diffusion.elbo_decomposition import chain_elbo
from ppgen.inference.diffusion.path_weights import chain_weights
from ppgen.inference.diffusion.samplers import SAMPLERS, _usual
from ppgen.models import DiffusionBridge


class KnownBridge(DiffusionBridge):
    """Between jointly normal x0 and x, with x̂ = E[x | z_t] in closed form."""

    def __init__(self, mean0, cov0, mean, cov, cross, **options):
        super().__init__(len(mean), hidden=(2,), loc=[0.0], scale=[1.0], **options)
        self.double().eval()
        self.mean0, self.cov0, self.mean, self.cov, self.cross = (
            torch.as_tensor(v).double() for v in (mean0, cov0, mean, cov, cross)
        )

    def pieces(self, t):
        """E z_t, Cov(x, z_t) and Cov z_t at the bridge's own time t."""
        eye = torch.eye(len(self.mean)).double()
        both = self.cross + self.cross.T
        cov = (1 - t) ** 2 * self.cov + t**2 * self.cov0 + t * (1 - t) * (both + self.noise**2 * eye)
        return (1 - t) * self.mean + t * self.mean0, (1 - t) * self.cov + t * self.cross, cov

    def predict(self, z, t, **columns):
        mean, cross, cov = self.pieces(self.share(t)[..., None])
        off = torch.linalg.solve(cov, (z - mean[..., 0, :])[..., None])
        return self.mean + (cross @ off)[..., 0], None

    def pairs_of(self, n):
        """Draws of x0 and x."""
        whole = torch.cat([torch.cat([self.cov0, self.cross.T], 1), torch.cat([self.cross, self.cov], 1)])
        drawn = MultivariateNormal(torch.cat([self.mean0, self.mean]), whole).sample((n,))
        return drawn[:, : len(self.mean)], drawn[:, len(self.mean) :]


def two(**options) -> KnownBridge:
    """Two dimensions, correlated."""
    cov0, cov = [[1.0, 0.3], [0.3, 0.5]], [[0.6, -0.2], [-0.2, 0.9]]
    return KnownBridge([-1.0, 0.5], cov0, [1.0, 0.0], cov, [[0.3, 0.1], [-0.2, 0.2]], noise=0.7, **options)


def line(cross: float, sd: float = 1.5, noise: float = 1.0) -> KnownBridge:
    """One dimension, variances 1 and sd²."""
    return KnownBridge([0.0], [[1.0]], [0.0], [[sd**2]], [[cross]], noise=noise)


@torch.no_grad()
def test_the_steps_back_are_those_of_the_bridge():
    """q(z_t | x, x0) taken through q(z_s | z_t, x) is q(z_s | x, x0): by their moments, linear in z_t."""
    bridge, x0, x = two(), normal(5, 2).double(), normal(5, 2, seed=1).double()
    for s, t in ((0.2, 0.9), (0.9, 0.97), (0.0, 0.5)):
        there, here = (bridge.forward(x, u, x0=x0).base_dist for u in (t, s))
        q = bridge.posterior(there.loc, x, s, t).base_dist
        slope = bridge.share(s) / bridge.share(t)
        assert torch.allclose(q.loc, here.loc) and torch.allclose(
            q.scale**2 + (slope * there.scale) ** 2, here.scale**2
        )
    assert torch.equal(bridge.forward(x, 1.0, x0=x0).sample(), x0)
    share = bridge.share(0.5)
    assert torch.allclose(bridge.forward(x, 0.5, x0=x0).mean, (1 - share) * x + share * x0)
    assert torch.allclose(bridge.forward(x, 0.5, x0=x0).variance, 0.49 * share * (1 - share))


@torch.no_grad()
def moments(bridge: KnownBridge, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and covariance of the draws of that many steps, and Cov(x, x0): each step is linear and adds noise."""
    d, mean = len(bridge.mean), bridge.mean0
    cov = cross = bridge.cov0
    for s, t in bridge.grid(steps):
        p = bridge.reverse(torch.cat([torch.zeros(1, d), torch.eye(d)]).double(), s, t).base_dist
        slope = (p.loc[1:] - p.loc[0]).T
        mean, cross = p.loc[0] + slope @ mean, slope @ cross
        cov = slope @ cov @ slope.T + torch.diag(p.scale[0] ** 2)
    return mean, cov, cross


def test_it_carries_one_gaussian_to_the_other():
    """Its moments by recursion go to those of x with the number of steps; draws have those of theirs."""
    bridge = two()
    off = [(moments(bridge, n)[1] - bridge.cov).abs().max() for n in (100, 200)]
    assert float(off[1]) < 0.06 and float(off[0] / off[1]) == pytest.approx(2, abs=0.05)
    assert torch.allclose(moments(bridge, 200)[0], bridge.mean, atol=0.02)
    mean, cov, _ = moments(bridge, 25)
    torch.manual_seed(0)
    x0, _ = bridge.pairs_of(40_000)
    x = sample_diffusion(bridge, 40_000, "ancestral", 25, given={"x0": x0}, seed=1)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).T, upper=False).T
    draws_agree(white, 0.0, 1.0)
    draws_agree(white[:, 0] * white[:, 1], 0.0, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_usual_sampler_leaves_its_variance(noise):
    """Of one normal to independent ones of three scales, to 1%; `ancestral` at 200 steps left 6% too little."""
    bridge, scales = DiffusionBridge(3, hidden=(4,), noise=noise).double(), torch.tensor([0.1, 0.3, 1.0]).double()

    def predict(z, t, **columns):
        h = bridge.share(t)
        variance = ((1 - h) * scales) ** 2 + h**2 + noise**2 * h * (1 - h)
        return (1 - h) * scales**2 / variance * z, None

    bridge.predict = predict
    sampler, steps = _usual(bridge)
    z = torch.zeros(steps + 1, 3).double()
    z[0] = 1.0  # each row has one of the independent parts of a draw, which is linear in them
    parts = iter(torch.eye(steps + 1).double()[1:])
    with mock.patch.object(torch, "randn_like", lambda z: next(parts)[:, None].expand_as(z)):
        z = SAMPLERS[sampler](bridge, steps, z)
    h = bridge.share(0.0)
    exact = ((1 - h) * scales) ** 2 + h**2 + noise**2 * h * (1 - h)
    assert (((z**2).sum(0) / exact - 1).abs() < 0.01).all()
    assert _usual(DiffusionBridge(100, hidden=(4,))) == (sampler, steps)


def entropic(sd: float, noise: float) -> float:
    """The covariance of optimal transport with entropy between N(0, 1) and N(0, sd²)."""
    return (math.sqrt(4 * sd**2 + noise**4) - noise**2) / 2


def carried(bridge: KnownBridge) -> float:
    """Cov(x0, x) of the continuous chain: exp ∫ (d x̂/dz − 1) / t dt, by quadrature over log t."""
    log_t = torch.linspace(-16, 0, 4001).double()
    t = log_t.exp()[:, None, None]
    _, cross, cov = bridge.pieces(t)
    return math.exp(float(torch.trapezoid((cross / cov)[:, 0, 0] - 1, log_t)))


def test_the_pairs_of_a_schroedinger_bridge_are_kept_and_others_are_not():
    sd, noise = 1.5, 1.0
    for cross, kept in ((entropic(sd, noise), True), (0.0, False)):
        bridge = line(cross, sd, noise)
        assert (abs(carried(bridge) - cross) < 1e-4) == kept
        mean, cov, both = moments(bridge, 400)
        assert float(both) == pytest.approx(carried(bridge), abs=0.04) and float(cov) == pytest.approx(sd**2, rel=0.04)


def expected_elbo(bridge: KnownBridge) -> float:
    """E ELBO, nats a row, of the limit: ½ ∫ tr Cov(x | z_t) d(1 / (σ² t)), and the entropy of the last noise."""
    share = float(bridge.share(0.0))
    t = torch.logspace(math.log10(share), 0, 20_001).double()
    _, cross, cov = bridge.pieces(t[:, None, None])
    left = bridge.cov - cross @ torch.linalg.solve(cov, cross.mT)
    errors = left.diagonal(dim1=-2, dim2=-1).sum(-1)
    kl = -0.5 * float(torch.trapezoid(errors, 1 / (bridge.noise**2 * t)))
    last = bridge.noise**2 * share / (1 - share)
    return -kl - len(bridge.mean) / 2 * math.log(2 * math.pi * math.e * last)


def test_its_elbo():
    """Of 60 000 rows at 8 times: 4 standard errors are 2.5% of it."""
    bridge = two()
    torch.manual_seed(0)
    x0, x = bridge.pairs_of(60_000)
    bound = chain_elbo(bridge, {"x0": x0, "x": x}, times=8, seed=0).best
    assert abs(bound.mean - expected_elbo(bridge)) < 4 * bound.rows_se < 0.025 * abs(bound.mean)
    drawn = subsampled(bridge, {"x0": x0, "x": x}, 8).elbo.detach()
    assert abs(float(drawn.mean()) - expected_elbo(bridge)) < 4 * float(drawn.std()) / math.sqrt(len(drawn))


@torch.no_grad()
def test_the_bound_is_on_log_p_of_x_given_x0():
    """Of forty steps, which are linear: log p(x | x0) by its recursion; the weights of whole paths have it as mean."""
    bridge = line(entropic(1.5, 1.0))
    bridge.steps, bridge.limit = 40, False
    x0, x = normal(4, 1).double(), normal(4, 1, seed=1).double()
    mean, variance = x0, torch.zeros(1).double()
    for s, t in bridge.grid():
        at = [bridge.reverse(torch.full((1,), u).double(), s, t).base_dist for u in (0.0, 1.0)]
        slope = at[1].loc - at[0].loc
        mean, variance = at[0].loc + slope * mean, slope**2 * variance + at[0].scale ** 2
    last = [bridge.likelihood(torch.full((4, 1), u).double(), x0=x0).base_dist for u in (0.0, 1.0)]
    slope = last[1].loc - last[0].loc
    exact = Normal(last[0].loc + slope * mean, (slope**2 * variance + last[0].scale ** 2).sqrt()).log_prob(x)[:, 0]
    log_w = chain_weights(bridge, {"x0": x0, "x": x}, particles=10_000, seed=0)
    assert (log_w.mean(0) < exact).all()
    w = (log_w - exact).exp()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / math.sqrt(len(w))).all() and (w.std(0) < 2).all()


def test_the_bound_is_tight_for_the_pairs_of_a_schroedinger_bridge():
    """In the limit: E ELBO = E log p(x | x0), whose variance is that of x less what x0 tells; else it is less."""
    for cross in (entropic(1.5, 1.0), 0.5):
        bridge = line(cross)
        share = float(bridge.share(0.0))
        told = -0.5 * math.log(2 * math.pi * math.e * (1.5**2 - cross**2))
        gap = told - expected_elbo(bridge)
        assert -0.001 < gap < 10 * share if cross > 0.5 else gap > 0.02


def test_batches_are_paired_anew_in_training():
    bridge = DiffusionBridge(2, hidden=(4,), pairs="ot", loc=[0.0], scale=[1.0])
    x0, x = normal(20, 2), normal(20, 2, seed=1)
    paired = bridge.hide({"x0": x0}, x)["x0"]
    assert torch.equal(paired.sort(0).values, x0.sort(0).values)
    assert ((paired - x) ** 2).sum() < ((x0 - x) ** 2).sum()
    assert DiffusionBridge(2, hidden=(4,)).hide({"x0": x0}, x)["x0"] is x0


def test_draws_have_a_row_of_x0_each():
    bridge = DiffusionBridge(2, hidden=(4,), noise=0.1, steps=5)
    x0 = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    x = normal(3, 2)
    bridge.prepare({"x0": x0, "x": x})
    both = torch.cat([x0, x])
    torch.testing.assert_close(bridge.loc, both.mean(0))
    assert (bridge.scale / both.std(0) - 1).abs().max() < 0.2
    for drawn in (
        sample_diffusion(bridge, 3, given={"x0": x0}, seed=0),
        sample(bridge, 3, given={"x0": x0}, seed=0)["x"],
    ):
        assert drawn.shape == (3, 2) and (drawn - x0).abs().max() < 40  # as the untrained network leaves them
    assert sample_diffusion(bridge, 7, given={"x0": x0[:1]}, seed=0).shape == (7, 2)


@pytest.mark.slow
def test_its_pictures(tmp_path):
    data = {"x0": normal(40, 2), "x": normal(40, 2, seed=1)}
    run = fit(DiffusionBridge(2, hidden=(4,)), data, steps=1)
    assert {p.stem for p in plot(run, data, tmp_path)} >= {"samples", "chain", "ledger"}


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["rows", "ot"])
def test_it_learns_to_carry(pairs):
    """From a narrow Gaussian to two modes: a quarter and three quarters of the rows."""
    torch.manual_seed(0)
    x0 = 0.3 * torch.randn(4000, 1) + 3
    x = torch.where(torch.rand(4000, 1) < 0.25, -2.0, 2.0) + 0.2 * torch.randn(4000, 1)
    run = fit(DiffusionBridge(1, hidden=(32, 32), pairs=pairs), {"x0": x0, "x": x}, steps=1500, batch_size=256, lr=3e-3,
              schedule="cosine", ema=0.99, seed=0)  # fmt: skip
    drawn = sample_diffusion(run, 4000, given={"x0": x0}, seed=1)
    low = drawn[:, 0] < 0
    assert abs(float(low.double().mean()) - 0.25) < 0.03
    assert abs(float(drawn[low].mean()) + 2) < 0.05 and abs(float(drawn[~low].mean()) - 2) < 0.05
    assert abs(float(drawn[low].std()) - 0.2) < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: DiffusionBridge(2, pairs="o"), "pairs='o'"),
        (lambda b: DiffusionBridge(2, noise=0.0), "noise=0.0; expected one of rows, ot, and a positive noise"),
        (lambda b: sample_diffusion(b, 2), "starts from x0, and got none; pass given"),
        (lambda b: sample_diffusion(b, 2, "ddim", given={"x0": normal(2, 2)}), "take dpmpp_sde, ancestral"),
        (lambda b: impute(b, normal(2, 2)), "impute follows the steps of a diffusion"),
        (lambda b: loglik(b, {"x0": normal(2, 2), "x": normal(2, 2)}, ode=True), "no ODE that its draws follow"),
        (lambda b: DiffusionBridge.from_data({"x": normal(2, 2)}), "needs columns x0 and x of one shape"),
        (lambda b: sample_diffusion(b, 2, given={"x0": normal(2, 3)}), "rows of 2 values, and x is of shape"),
    ],
)
def test_errors(call, message):
    with pytest.raises(PpgenError, match=message):
        call(DiffusionBridge(2, hidden=(4,)))
