"""The flow program against closed forms, quadrature and what Pyro computes from its parts."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import AffineTransform

import ppgen
from ppgen.distributions.dequantize import Cell, Quantised, find_grid, logit_cells
from ppgen.errors import PpgenError
from ppgen.inference import fit
from ppgen.inference.evaluation.loglik import loglik
from ppgen.inference.evaluation.sample import sample
from ppgen.models import Flow
from ppgen.models.flow import _check_density
from ppgen.transforms import FAMILIES

SMALL = {"transforms": 2, "hidden": (8, 8)}


def correlated(n=400, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=g)
    return torch.stack((5 + 3 * z[:, 0], -100 + 20 * (0.8 * z[:, 0] + 0.6 * z[:, 1])), 1)


def made(**settings):
    torch.manual_seed(0)
    return Flow(**{"features": 2, **SMALL, **settings})


@pytest.mark.parametrize("base", ["normal", "student", "uniform"])
def test_density_of_unstandardised_data_integrates_to_one(base):
    flow = made(base=base).double().prepare({"x": correlated()}).eval()
    n = 300
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    axis, weight = (12 * u).sinh() / 200, (12 * u).cosh() * 12 / 200 * 2 / n  # heavy tails: far out
    grid = torch.cartesian_prod(axis, axis) * flow.scale + flow.loc
    with torch.no_grad():
        mass = flow.log_prob(grid).exp() @ (torch.cartesian_prod(weight, weight).prod(-1) * flow.scale.prod())
    assert abs(mass - 1) < 3e-3


def test_standardisation_is_counted_and_undone():
    x = correlated()
    flow = made(family="maf").prepare({"x": x}).eval()
    assert torch.allclose(flow.loc, x.mean(0)) and torch.allclose(flow.scale, x.std(0))
    plain = copy.deepcopy(flow)
    plain.loc.zero_()
    plain.scale.fill_(1)
    expected = plain.log_prob((x - flow.loc) / flow.scale) - flow.scale.log().sum()
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-4)
    torch.manual_seed(0)
    a = flow.density().sample((5,))
    torch.manual_seed(0)
    assert torch.allclose(a, plain.density().sample((5,)) * flow.scale + flow.loc, atol=1e-3)


def test_whitening_is_counted_and_undone():
    x = correlated().double()
    flow = made(family="maf", whiten=True).double().prepare({"x": x}).eval()
    unit = (x - flow.loc) / flow.scale
    white = flow.whitening.inv(unit)
    assert torch.allclose(white.T @ white / len(x), torch.eye(2).double(), atol=1e-5)
    plain = copy.deepcopy(flow)
    plain.loc.zero_()
    plain.scale.fill_(1)
    plain.whitening = None
    covariance = (len(x) - 1) / len(x) * torch.corrcoef(x.T)  # standard deviations have N - 1 below them
    expected = plain.log_prob(white) - flow.scale.log().sum() - torch.logdet(covariance) / 2
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-5)
    torch.manual_seed(0)
    a = flow.density().sample((5,))
    torch.manual_seed(0)
    b = plain.density().sample((5,))
    assert torch.allclose(a, flow.whitening(b) * flow.scale + flow.loc, atol=1e-4)


def test_a_run_with_every_option_is_loaded_as_it_was_saved(tmp_path):
    x = correlated()
    how = {"bins": 4, "bound": 4.0, "residual": True, "dropout": 0.1}
    flow = made(family="nsf_coupling", mix="lu", whiten=True, settings=how)
    run = fit(flow, {"x": x}, steps=3, batch_size=100, engine="trace", out=tmp_path / "run")
    again = ppgen.Run.load(tmp_path / "run")
    assert torch.equal(again.program.whitening.root, run.program.whitening.root) and again.program.whitening.measured
    assert torch.equal(again.program.log_prob(x), run.program.log_prob(x))


def test_a_linear_flow_learns_the_normal_that_made_the_data():
    x = correlated(2000)
    run = fit(Flow(2, family="lu", transforms=1), {"x": x}, steps=400, lr=0.03, engine="eager")
    expected = dist.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()
    found = loglik(run, {"x": x})
    assert found.best.kind == "exact"
    assert abs(found.best.mean - expected.item()) < 0.01


@pytest.mark.parametrize("family", ["nsf", "gf", "residual"])
def test_fits_samples_and_is_saved(family, tmp_path):
    x = correlated()
    run = fit(made(family=family), {"x": x}, steps=3, batch_size=100, engine="eager", out=tmp_path / "run")
    again = ppgen.Run.load(tmp_path / "run")
    assert torch.equal(again.program.loc, run.program.loc) and again.program.prepared
    assert torch.equal(again.program.log_prob(x), run.program.log_prob(x))
    draws = sample(again, 50, seed=0)["x"]
    assert draws.shape == (50, 2) and draws.isfinite().all()


@pytest.mark.parametrize("family", ["nsf", "realnvp", "gf", "residual", "cnf"])
def test_engines_agree(family):
    """An adaptive solver has no graph: there the engine falls back, and the result is the same."""
    x, found = correlated(60), {}
    for engine in ("eager", "trace"):
        depth = 1 if family == "cnf" else 2
        run = fit(made(family=family, transforms=depth), {"x": x}, steps=3, batch_size=20, lr=1e-2, engine=engine)
        with torch.no_grad():
            found[engine] = run.program.log_prob(x)
    assert torch.allclose(found["eager"], found["trace"], atol=1e-3)


def test_an_empty_guide_makes_pyros_elbo_the_log_likelihood():
    x = correlated(30)
    flow = made().prepare({"x": x}).eval()
    elbo = -Trace_ELBO().loss(flow.model, flow.guide, x)
    assert elbo == pytest.approx(flow.log_prob(x).sum().item(), rel=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("ncsf", "cnf", "ffjord")])
def test_default_depth_stays_finite_far_out(family):
    flow = made(family=family, transforms=5).prepare({"x": correlated()})
    x = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]) * flow.scale + flow.loc
    log_p = flow.log_prob(x)
    log_p.sum().backward()
    assert log_p.isfinite().all() and all(p.grad.isfinite().all() for p in flow.parameters())


# -- conditional densities ----------------------------------------------------------------------------


def test_conditional_density_learns_the_regression():
    g = torch.Generator().manual_seed(0)
    c = 10 + 4 * torch.randn(2000, 1, generator=g)
    x = 3 * c + 2 * torch.randn(2000, 1, generator=g)
    flow = Flow(1, family="maf", context=1, transforms=1, hidden=(16,))
    run = fit(flow, {"x": x, "context": c}, steps=600, lr=0.01, engine="eager")
    exact = dist.Normal(3 * c, 2.0).log_prob(x).mean().item()
    assert loglik(run, {"x": x, "context": c}).best.mean > exact - 0.05
    at = torch.tensor([[6.0], [14.0]]).repeat_interleave(2000, 0)
    draws = sample(run, 4000, given={"context": at}, seed=1)["x"].reshape(2, 2000)
    assert torch.allclose(draws.mean(1), torch.tensor([18.0, 42.0]), atol=0.8)
    assert torch.allclose(draws.std(1), torch.tensor([2.0, 2.0]), atol=0.4)


def test_the_context_is_standardised_as_x_is():
    """In other units of the context, the same density."""
    x, c = correlated().double(), 3 + 5 * correlated(seed=7).double()
    flow = made(family="maf", context=2).double().prepare({"x": x, "context": c}).eval()
    assert torch.allclose(flow.context_loc, c.mean(0)) and torch.allclose(flow.context_scale, c.std(0))
    other = copy.deepcopy(flow)
    other.context_loc.zero_()
    other.context_scale.fill_(1)
    unit = (c - c.mean(0)) / c.std(0)
    assert torch.allclose(flow.log_prob(x, c), other.log_prob(x, unit))
    assert not torch.allclose(flow.log_prob(x, c), flow.log_prob(x, c + 1), atol=1e-3)


def test_a_context_of_one_number_may_come_without_its_dimension():
    flow = made(context=1)
    x, c = torch.randn(7, 2), torch.randn(7)
    assert torch.equal(flow.log_prob(x, c), flow.log_prob(x, c[:, None]))


def test_a_context_that_is_missing_has_its_sentence():
    x, c = correlated(), torch.randn(400, 3)
    run = fit(made(context=3), {"x": x, "context": c}, steps=2, engine="eager")
    for ask in (
        lambda: sample(run, 4),
        lambda: loglik(run, {"x": x}),
        lambda: fit(made(context=3), {"x": x}, steps=2),
    ):
        with pytest.raises(PpgenError, match="no context was given; pass the column context"):
            ask()
    with pytest.raises(PpgenError, match="last dimension must be 3"):
        run.program.log_prob(x, c[:, :2])


# -- discrete data -------------------------------------------------------------------------------------


class KnownCells(ppgen.Program):
    """v ~ N(m, s²) in index units, x its cell: P(x = k) is a difference of normal distribution functions."""

    def __init__(self, loc, scale, levels):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(loc))
        self.s, self.levels = scale, levels

    def model(self, x=None):
        with ppgen.rows(x):
            v = pyro.sample("v", dist.Normal(self.m.expand(2), self.s).to_event(1))
            pyro.sample("x", Quantised(v, 0.0, self.levels - 1.0, self.levels), obs=x)

    def guide(self, x):
        with ppgen.rows(x):
            pyro.sample("v", Cell(x))

    def log_mass(self, k):
        edges = torch.arange(1.0, self.levels).double()
        cdf = dist.Normal(self.m.double(), self.s).cdf(edges)
        mass = torch.cat((cdf, cdf.new_ones(1))) - torch.cat((cdf.new_zeros(1), cdf))
        return mass.log()[k.long()].sum(-1)


def test_bits_per_dim_of_a_known_distribution():
    known = KnownCells(8.0, 2.0, 17)
    torch.manual_seed(0)
    v = 8 + 2 * torch.randn(300, 2)
    x = v.floor().clamp(1, 15)  # the end cells reach to infinity, which the noise does not
    true = (-known.log_mass(x).mean() / (2 * math.log(2))).item()
    found = loglik(known, {"x": x}, particles=500, seed=0)
    elbo, iw = found.bounds
    assert abs(found.bits_per_dim(iw) - true) < 4 * iw.mean_se / (2 * math.log(2)) + 2e-4
    # the ELBO is E_u log p(x + u): by quadrature
    u = (torch.arange(2000) + 0.5) / 2000
    exact = dist.Normal(8.0, 2.0).log_prob(x[..., None] + u).mean(-1).sum(-1).mean().item()
    assert abs(elbo.mean - exact) < 4 * elbo.mean_se
    assert elbo.mean < -true * 2 * math.log(2)


def test_a_uniform_distribution_has_log2_of_its_levels():
    class Even(ppgen.Program):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def model(self, x=None):
            with ppgen.rows(x):
                unit = dist.Uniform(torch.zeros(3), 1.0).to_event(1)
                sixteen = AffineTransform(0 * self.unused, 16.0, event_dim=1)
                v = pyro.sample("v", dist.TransformedDistribution(unit, [sixteen]))
                pyro.sample("x", Quantised(v, 0.0, 1.0, 16), obs=x)

        def guide(self, x):
            with ppgen.rows(x):
                pyro.sample("v", Cell(x * 15))

    x = torch.randint(16, (20, 3)) / 15
    found = loglik(Even(), {"x": x}, particles=3)
    assert all(found.bits_per_dim(b) == pytest.approx(4.0, abs=1e-6) for b in found.bounds)


def test_logit_cells_count_their_jacobian():
    parts = logit_cells(8, 0.05)
    p = dist.TransformedDistribution(dist.Normal(0.3, 1.2), parts)
    v = torch.linspace(-0.4, 8.4, 20001)[1:-1]
    assert torch.trapezoid(p.log_prob(v).exp(), v) == pytest.approx(1.0, abs=2e-3)
    u = 0.05 + 0.9 * v / 8
    by_hand = dist.Normal(0.3, 1.2).log_prob(u.logit()) + (0.9 / 8 / (u * (1 - u))).log()
    assert torch.allclose(p.log_prob(v), by_hand, atol=1e-3)


@pytest.mark.parametrize("dequantise", ["uniform", "variational"])
def test_discrete_data_end_to_end(dequantise):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (300, 3), generator=g) / 4
    x[:, 1] = x[:, 0]  # duplicated and nevertheless fine: these are probabilities
    settings = Flow.from_data({"x": x})
    assert (settings["levels"], settings["high"]) == (5, 1.0)
    flow = Flow(**settings, **SMALL, family="maf", dequantise=dequantise)
    run = fit(flow, {"x": x}, steps=40, batch_size=100, lr=5e-3, engine="eager")
    found = loglik(run, {"x": x}, particles=20)
    assert found.best.kind == "lower" and found.dims == 3
    assert 0 < found.bits_per_dim(found.best) < 4
    draws = sample(run, 40, seed=0)["x"]
    assert torch.equal((draws * 4).round() / 4, draws) and draws.min() >= 0 and draws.max() <= 1
    with pytest.raises(PpgenError, match="ppgen evaluate"):
        run.program.log_prob(x)


def test_variational_noise_is_a_density_in_the_cell():
    torch.manual_seed(0)
    flow = Flow(2, **SMALL, levels=4, high=3.0, dequantise="variational").double()
    q = flow.dequantised(torch.tensor([[1.0, 3.0]]).double())
    n = 300
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    v = torch.cartesian_prod(u, u) + torch.tensor([1.0, 3.0])
    assert (q.log_prob(v).exp().mean() - 1).abs() < 5e-3
    draws = q.expand([50]).sample()
    assert (draws.floor() == torch.tensor([1.0, 3.0])).all()


def test_quantised_and_its_cells():
    v = torch.tensor([[0.0, 1.2, 7.9], [-3.0, 4.0, 99.0]])
    d = Quantised(v, 0.0, 7.0, 8)
    assert torch.equal(d.sample(), torch.tensor([[0.0, 1, 7], [0, 4, 7]]))
    assert torch.equal(d.log_prob(d.sample()), torch.zeros(2))
    assert torch.equal(d.log_prob(d.sample().flip(0)), torch.full((2,), -torch.inf))
    assert d.expand([5, 2]).sample((3,)).shape == (3, 5, 2, 3)
    assert Cell(torch.full((100000, 1), 255.0)).rsample().max() <= 256  # rounded up to the edge, and let pass


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 1, 1], (0.0, 1.0, 2)),
        ([0, 16, 5], (0.0, 16.0, 17)),
        ([0.0, 200.0, 3.0], (0.0, 255.0, 256)),
        ([0.0, 1 / 255, 1.0], (0.0, 1.0, 256)),
        ([0.0, 300.0, 3.0], None),
        ([-1.0, 0.0, 1.0], (-1.0, 1.0, 3)),
        ([-1.0, 0.0, 2.0], None),
        ([0.13713, 0.72117, 0.50031], None),
        ([2.0, 2.0, 2.0], (0.0, 2.0, 3)),
        ([0.5, 0.5], None),
    ],
)
def test_grids_are_found(values, found):
    assert find_grid(torch.tensor(values)) == found


# -- bad input ------------------------------------------------------------------------------------------


def test_a_column_with_one_value_in_many_rows_is_said(caplog):
    """A normal beside a coin, and an income that is 0 for a third; not numbers that are rounded as people do."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(300, 2, generator=draw)
    coin = torch.cat((z[:, :1], (z[:, 1:] > 0).float()), 1)
    income = torch.cat((z[:, :1], z[:, 1:].exp() * (z[:, 1:] > -0.43)), 1)
    for x in (coin, income):
        caplog.clear()
        fit(Flow(2, **SMALL), {"x": x}, steps=1)
        values, counts = x[:, 1].unique(return_counts=True)
        said = f"as column 1 {values[counts.argmax()]:g} in {100 * counts.max() / 300:.0f}% of them"
        assert f"1 of the 2 columns of x have one value in many rows, {said}" in caplog.text
    caplog.clear()
    fit(Flow(1, context=1, **SMALL), {"x": coin[:, :1], "context": coin[:, 1]}, steps=1)
    fit(Flow(2, **SMALL), {"x": torch.cat((170 + 8 * z[:, :1], (50 + 80 * z[:, 1:]).round() / 10), 1)}, steps=1)
    assert "one value in many rows" not in caplog.text


def test_data_without_a_density_have_their_sentence():
    x = torch.randn(100, 3)
    cases = [
        (torch.cat((x, torch.ones(100, 1)), 1), "column 3 of x is constant .1 in 100 rows"),
        (torch.cat((x, 2 * x[:, 1:2] - 5), 1), "columns 1 and 3 of x are the same up to shift and scale"),
        (torch.cat((x, x.sum(1, keepdim=True)), 1), "columns 0, 1, 2, 3 of x are linearly dependent"),
        ((100 * x).round(), "whole numbers only.*dequantise them"),
        (x.index_fill(0, torch.tensor([7]), math.nan), "column 0 of x is nan in row 7"),
    ]
    for bad, message in cases:
        with pytest.raises(PpgenError, match=message):
            _check_density(bad)
        if not bad.isnan().any():
            with pytest.raises(PpgenError, match=message):
                fit(Flow(bad.shape[1], **SMALL), {"x": bad}, steps=1)
            with pytest.raises(PpgenError, match=message):
                Flow.from_data({"x": bad})
    _check_density(x)
    _check_density(x.double() * torch.tensor([1e-6, 1.0, 1e6]).double())
    with pytest.raises(PpgenError, match="NaN|nan"):
        fit(Flow(3, **SMALL), {"x": cases[-1][0]}, steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "nfs"}, "did you mean 'nsf'"),
        ({"base": "norml"}, "did you mean 'normal'"),
        ({"base": dist.Normal(0.0, 1.0)}, "event shape"),
        ({"family": "ncsf", "base": "student"}, "whose base is uniform"),
        ({"levels": 1}, "at least 2 levels"),
        ({"levels": 4, "margin": 0.0}, "0 < margin"),
        ({"dequantise": "none"}, "take one of uniform, variational"),
        ({"mix": "rotate"}, "did you mean 'rotation'"),
        ({"settings": {"bns": 4}}, "do not take all of bns"),
        ({"family": "lu", "settings": {"bins": 4}}, "do not take all of bins"),
        ({"family": "ncsf", "whiten": True}, "whiten=True is for continuous data"),
        ({"loc": [0.0]}, "expected 2 finite ones"),
        ({"loc": [0.0, 0.0], "scale": [1.0, 0.0]}, "positive for a scale"),
        ({"features": 1, "family": "realnvp"}, "two features at least"),
        ({"family": "planar", "context": 1}, "have no context"),
    ],
)
def test_wrong_arguments_have_their_sentence(settings, message):
    with pytest.raises(PpgenError, match=message):
        made(**settings)


def test_wrong_columns_have_their_sentence():
    with pytest.raises(PpgenError, match="needs a column x"):
        Flow.from_data({"y": torch.zeros(3, 2)})
    with pytest.raises(PpgenError, match="features=3"):
        made().prepare({"x": torch.randn(50, 3)})
    with pytest.raises(PpgenError, match="angles in"):
        made(family="ncsf").prepare({"x": correlated()})


def test_angles():
    g = torch.Generator().manual_seed(0)
    x = torch.remainder(torch.randn(500, 2, generator=g) + torch.tensor([3.0, 0.0]) + math.pi, 2 * math.pi) - math.pi
    run = fit(made(family="ncsf"), {"x": x}, steps=100, lr=5e-3, engine="eager")
    # better than the uniform density on the torus, and periodic
    assert loglik(run, {"x": x}).best.mean > -2 * math.log(2 * math.pi) + 0.4
    edges = torch.tensor([[-math.pi + 1e-5, 0.3], [math.pi - 1e-5, 0.3]])
    a, b = run.program.log_prob(edges)
    assert sample(run, 100)["x"].abs().max() <= math.pi + 1e-5
    assert a.isfinite() and b.isfinite()


def test_a_flow_is_a_prior_or_a_posterior_in_any_program():
    """One site of a latent-variable model is swapped for a flow, in plain Pyro."""
    from ppgen.transforms import iaf

    torch.manual_seed(0)
    posterior = iaf(2, hidden=(8,))
    shift = nn.Parameter(torch.zeros(2))
    x = torch.tensor([1.0, -2.0])

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide():
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        parts = [posterior, AffineTransform(shift, 1.0, event_dim=1)]
        pyro.sample("z", dist.TransformedDistribution(base, parts))

    optimiser = torch.optim.Adam([*posterior.parameters(), shift], lr=0.03)
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    for _ in range(250):
        optimiser.zero_grad()
        elbo.differentiable_loss(model, guide).backward()
        optimiser.step()
    evidence = dist.Normal(0.0, 1.25**0.5).log_prob(x).sum().item()
    many = Trace_ELBO(num_particles=5000, vectorize_particles=True, max_plate_nesting=0)
    with torch.no_grad():
        assert abs(-many.loss(model, guide) - evidence) < 0.05
