"""The guides that a name makes: the flow guide's laws and oracles, and where a guide begins."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import SCHOOLS, GuidedNormalMean, NormalMean, Regression, draws_agree, few, normal, weights
from programs import PROGRAMS
from torch import Tensor

import ppgen
from ppgen import PpgenError, Program, Run
from ppgen.check import check
from ppgen.draws import ManyTerms
from ppgen.engine.density import low_rank
from ppgen.engine.density.batch_and_match import best_gaussian
from ppgen.engine.density.inverse_hessian import HISTORY, Dense, LimitedMemory
from ppgen.guides import file_of, guide_names, parse
from ppgen.guides.flow import _Pushed, _Stack
from ppgen.guides.pathfinder import _LowRankNormal
from ppgen.inference import diagnose, fit, loglik, posterior, resume
from ppgen.inference.training import guide_init
from ppgen.terms import run as run_once

ALONE = {"predictive": False, "prior": False}  # a tree of the posterior's draws only
SINGLE = {"precision": "64-true", "engine": "eager"}


def shaken(stack: _Stack, by: float = 0.3) -> _Stack:
    """A stack that is no longer the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return stack


# -- its density -----------------------------------------------------------------------------------


@pytest.mark.parametrize("features, context", [(1, 0), (1, 2), (4, 0), (4, 2)])
def test_density_of_a_stack_is_that_of_the_change_of_variables(features, context):
    torch.manual_seed(0)
    stack = shaken(_Stack(features, context, 2, (8,))).double()
    e = torch.randn(5, features).double()
    c = torch.randn(5, context).double() if context else None
    u, ladj = stack.push(e, c)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: stack.push(v, None if c is None else c[i])[0], e[i]
        )
        assert float(ladj[i].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)
    back, other = stack.pull(u, c)
    assert torch.allclose(back, e, atol=1e-5) and torch.allclose(other, -ladj, atol=1e-5)


def test_what_it_drew_it_knows_the_density_of():
    torch.manual_seed(0)
    fn = _Pushed(shaken(_Stack(3, 0, 2, (8,)))).expand([4])
    u = fn.rsample()
    assert u.shape == (4, 3)
    assert torch.allclose(fn.log_prob(u), fn.log_prob(u.clone()), atol=1e-3)


def test_a_stack_begins_as_the_gaussian_it_is_given():
    stack = _Stack(3)
    L = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.1, 0.0], [-1.0, 0.3, 4.0]])
    stack.start_at(torch.tensor([1.0, 2.0, 3.0]), L)
    u = torch.tensor([1.0, 2.0, 3.0]) + normal(6, 3).clamp(-2.4, 2.4) @ L.T
    expected = dist.MultivariateNormal(torch.tensor([1.0, 2.0, 3.0]), scale_tril=L).log_prob(u)
    assert torch.allclose(_Pushed(stack).log_prob(u), expected, atol=1e-4)


# -- any program -----------------------------------------------------------------------------------

CONTINUOUS = [
    "normal_normal", "minibatch", "eight_schools", "reparam_handler", "logistic_full_covariance", "hierarchical",
    "nested_plates", "correlated_normal", "autoregression_loop", "counts", "mask_and_scale", "condition_handler",
    "factor_and_deterministic", "constrained_params", "beta_bernoulli", "dirichlet_categorical", "gamma_guide",
]  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("amortised", [False, True])
def test_any_program_takes_it(name, amortised):
    case = PROGRAMS[name]
    torch.manual_seed(0)
    program = case.program()
    program.setup(case.data, f"flow(hidden=(4,), amortised={amortised})")
    structure = check(program, case.data, learn=False)
    program.setup(case.data, "AutoDiagonalNormal")
    program.setup(case.data, f"flow(hidden=(4,), amortised={amortised})")
    w = weights(program, case.data, structure, 6)
    assert w.shape[0] == 6 and torch.isfinite(w).all()
    t = run_once(program, case.data)
    for site in structure.latents:
        assert t.p.nodes[site]["fn"].support.check(t.p.nodes[site]["value"]).all()


@pytest.mark.parametrize("amortised", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_traced_step_is_an_eager_one(amortised):
    runs = [
        fit(Crossed(), CROSSED, steps=4, lr=0.01, guide=f"flow(transforms=1, hidden=(4,), amortised={amortised})",
            engine=engine, log_every=1, particles=2, starts=0)
        for engine in ("eager", "trace")
    ]  # fmt: skip
    assert torch.allclose(*(torch.tensor(r.metrics["elbo"]) for r in runs), rtol=1e-5)


class Crossed(Program):
    """A latent in two plates, rows right of units; one that is a simplex; a global scale."""

    def model(self, x=None):
        s = pyro.sample("s", dist.Gamma(2.0, 2.0))
        with ppgen.rows(x):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("unit", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, s))
                pyro.sample("x", dist.Normal((p * torch.arange(3.0)).sum(-1) + z, 1.0), obs=x)


CROSSED = {"x": normal(5)}


@pytest.mark.parametrize("amortised", [False, True])
def test_plates_and_constraints(amortised):
    torch.manual_seed(0)
    program = Crossed().setup(CROSSED, f"flow(hidden=(4,), amortised={amortised})")
    structure = check(program, CROSSED)
    assert structure.locals == ("p", "z") and structure.globals == ("s",)
    one = run_once(program, CROSSED).p.nodes
    assert one["p"]["value"].shape == (5, 3) and one["z"]["value"].shape == (2, 5) and one["s"]["value"].shape == ()
    many = {t.site: t.value for t in ManyTerms(program, CROSSED, structure)(7, CROSSED) if t.role == "prior"}
    assert many["p"].shape == (7, 5, 3) and many["z"].shape == (7, 2, 5) and many["s"].shape == (7,)
    assert torch.allclose(many["p"].sum(-1), torch.ones(()))
    tree = posterior(program, CROSSED, draws=6)
    assert tree["posterior"]["z"].shape == (1, 6, 2, 5)
    if amortised:
        assert loglik(program, {"x": normal(9)}, particles=3).rows == 9


@pytest.mark.parametrize("amortised", [False, True])
def test_the_vectors_of_given_latents_are_those_that_it_drew(amortised):
    torch.manual_seed(0)
    program = Crossed().setup(CROSSED, f"flow(hidden=(4,), amortised={amortised})")
    q = run_once(program, CROSSED).q
    values = {n: q.nodes[n]["value"] for n in ("s", "p", "z")}
    found = program.autoguide.auxiliaries(values)
    assert set(found) == ({"_flow", "_flow_rows"} if amortised else {"_flow"})
    for site, vector in found.items():
        assert torch.allclose(vector, q.nodes[site]["value"], atol=1e-4), site


# -- posteriors that are known ---------------------------------------------------------------------

# of each guide of a file of ppgen/guides, options with which a fit takes a second
OWN: dict[str, dict] = {"flow": {"hidden": (4,)}, "bam": {}, "bam_low_rank": {"rank": 2}, "pathfinder": {}}


def test_every_guide_has_a_row():
    own = {n for n in guide_names() if file_of(n)}
    assert own == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_it_finds_a_normal_posterior(name):
    x, exact = normal(20) + 1.0, NormalMean().posterior(normal(20) + 1.0)
    guide = f"{name}({', '.join(f'{k}={v!r}' for k, v in OWN[name].items())})"
    run = fit(NormalMean(), {"x": x}, steps=300, lr=0.02, schedule="cosine", particles=8, guide=guide, **SINGLE)
    m = posterior(run, {"x": x}, draws=2000, **ALONE)["posterior"]["m"].values[0]
    assert abs(m.mean() - float(exact.loc)) < 0.15 * float(exact.scale)
    assert m.std() == pytest.approx(float(exact.scale), rel=0.1)


def test_of_a_gaussian_posterior_it_begins_as_the_posterior():
    x, y = normal(40, 4, seed=1), normal(40, seed=2)
    run = fit(Regression(), {"x": x, "y": y}, steps=0, guide="flow", **SINGLE)
    tree = posterior(run, {"x": x, "y": y}, draws=1500, predictive=False, prior=False)
    b = tree["posterior"]["b"].values[0]
    exact = Regression().posterior(x, y)
    draws_agree(b, exact.loc, exact.variance)


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"])
def test_pyros_gaussian_guides_begin_there_too(guide):
    x = normal(20) + 1.0
    run = fit(NormalMean(), {"x": x}, steps=0, guide=guide, starts=2, **SINGLE)
    exact = NormalMean().posterior(x)
    m = posterior(run, {"x": x}, draws=4000, **ALONE)["posterior"]["m"].values[0]
    draws_agree(m, exact.loc, exact.variance)


def _rate(x=None):
    rate = pyro.sample("rate", dist.Gamma(0.6, 0.5))
    with ppgen.rows(x):
        pyro.sample("x", dist.Exponential(rate), obs=x)


@pytest.mark.slow
def test_a_skewed_posterior():
    """One observation of an exponential: the posterior is Gamma(1.6, 0.5 + x), a Gaussian guide of log rate misses."""
    data = {"x": torch.tensor([0.4])}
    run = fit(Program.from_pair(_rate), data, steps=400, lr=0.02, schedule="cosine", particles=16, guide="flow",
              precision="64-true", engine="trace", objective="iwae")  # fmt: skip
    found = diagnose(run, data, draws=50, particles=4000)
    assert found.khat[0] < 0.6 and found.ess[0] > 2000
    rate = posterior(run, data, draws=3000, corrected=True)["posterior"]["rate"].values[0]
    draws_agree(rate, 1.6 / 0.9, 1.6 / 0.9**2)


class Measured(Program):
    """m ~ N(0, 2), z_i ~ N(m, 1), x_i ~ N(z_i, 1): given m, E[z_i | x] = (m + x_i) / 2; m | x is normal."""

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with ppgen.rows(x):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @staticmethod
    def mean(x: Tensor) -> dist.Normal:
        precision = 1 / 4 + len(x) / 2
        return dist.Normal(x.sum() / 2 / precision, precision**-0.5)


@pytest.mark.slow
def test_local_latents_are_amortised_under_minibatches():
    x = 3 + 1.5 * normal(300)
    run = fit(Measured(), {"x": x}, batch_size=50, steps=1500, lr=0.01, schedule="cosine", guide="flow", particles=4,
              engine="trace")  # fmt: skip
    assert "amortised=True" in run.config["program"]["guide"] and not run.program.fixed_rows
    tree = posterior(run, {"x": x}, draws=1000)["posterior"]
    exact = Measured.mean(x)
    m, z = tree["m"].values[0], tree["z"].values[0]
    assert abs(m.mean() - float(exact.loc)) < 0.5 * float(exact.scale)
    assert m.std() / float(exact.scale) == pytest.approx(1, abs=0.3)
    shrunk = (float(exact.loc) + x.numpy()) / 2
    assert abs(z.mean(0) - shrunk).mean() < 0.08
    assert z.std(0).mean() == pytest.approx(math.sqrt(0.5 + 0.25 * float(exact.variance)), abs=0.08)


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_comes_back_and_goes_on(tmp_path):
    options = {"guide": "flow(hidden=(4,))", "steps": 6, "seed": 3, "log_every": 2, "engine": "eager"}
    whole = fit(ppgen.models.EightSchools(), SCHOOLS, **options)
    fit(ppgen.models.EightSchools(), SCHOOLS, out=tmp_path / "run", **(options | {"steps": 4}))
    again = resume(tmp_path / "run", SCHOOLS, steps=6)
    for key, value in whole.program.state_dict().items():
        assert torch.equal(value, again.program.state_dict()[key]), key
    loaded = Run.load(tmp_path / "run")
    a, b = (posterior(r, SCHOOLS, draws=5, **ALONE)["posterior"]["mu"].values for r in (again, loaded))
    assert (a == b).all()


def test_an_amortised_run_comes_back_from_two_rows(tmp_path):
    x = normal(30)
    fit(Measured(), {"x": x}, batch_size=10, steps=2, guide="flow(hidden=(4,))", out=tmp_path / "run", engine="eager")
    loaded = Run.load(tmp_path / "run")
    assert len(loaded.example["x"]) == 2
    assert loglik(loaded, {"x": normal(11)}, particles=3).rows == 11


# -- where a guide begins --------------------------------------------------------------------------


def test_a_start_far_away_and_badly_scaled():
    """N((3000, -0.01), diag(50², 0.002²)) with correlation 0.9, from starts in [-2, 2]."""
    loc, sd = torch.tensor([3000.0, -0.01]).double(), torch.tensor([50.0, 0.002]).double()
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double() * sd[:, None] * sd
    target = dist.MultivariateNormal(loc, cov)

    def score(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().double().requires_grad_()
            value = target.log_prob(u)
            return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    with ppgen.run.default_dtype(torch.float64):
        found = best_gaussian(score, 2, starts=2)
    assert torch.allclose(found.loc, loc, rtol=1e-3)
    assert torch.allclose(found.scale_tril @ found.scale_tril.T, cov, rtol=0.05)
    assert found.elbo == pytest.approx(0.0, abs=0.01)


def test_a_start_in_a_funnel_is_where_the_mass_is():
    """Neal's funnel: v ~ N(0, 3), x ~ N(0, e^{v/2}): the density rises without end as v falls."""

    def score(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = dist.Normal(0.0, 3.0).log_prob(u[:, 0])
            value = value + dist.Normal(0.0, (u[:, :1] / 2).exp(), validate_args=False).log_prob(u[:, 1:]).sum(-1)
            return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    found = best_gaussian(score, 6, starts=4)
    assert abs(float(found.loc[0])) < 3 and found.elbo > -4


def test_no_start_is_no_error():
    assert best_gaussian(lambda u: (u.sum(-1) * math.nan, u), 2, starts=2) is None


def test_heavy_tails_do_not_kill_a_start():
    """A rate under a very wide log-normal prior: Pyro's own start is often far off."""

    def model(x=None):
        a = pyro.sample("a", dist.LogNormal(0.0, 10.0))
        b = pyro.sample("b", dist.HalfCauchy(1000.0))
        with ppgen.rows(x):
            pyro.sample("x", dist.Normal(a, b), obs=x)

    data = {"x": 5 + 0.1 * normal(50)}
    run = fit(Program.from_pair(model), data, steps=0, guide="AutoNormal", starts=8, **SINGLE)
    a = posterior(run, data, draws=500, **ALONE)["posterior"]["a"].values
    assert abs(a.mean() - 5) < 0.05 and a.std() < 0.05


# -- what cannot be ----------------------------------------------------------------------------------


def test_names():
    assert "flow" in guide_names() and "AutoNormal" in guide_names()
    with pytest.raises(PpgenError, match="did you mean 'flow'"):
        parse("flwo")
    with pytest.raises(PpgenError, match="cannot be read"):
        parse("flow(transforms=")
    with pytest.raises(PpgenError, match="flow has no option 'layers'"):
        fit(NormalMean(), {"x": normal(3)}, steps=0, guide="flow(layers=3)")
    run = fit(NormalMean(), {"x": normal(3)}, steps=0, guide="AutoNormal(init_scale=0.5)")
    assert float(run.program.autoguide.scales.m.detach()) == pytest.approx(0.5)


def test_pyros_guides_of_local_latents_are_refused_under_minibatches():
    with pytest.raises(PpgenError, match="local latents need an amortised guide"):
        fit(Measured(), {"x": normal(20)}, batch_size=5, guide="AutoNormal")


def test_a_plate_that_subsamples_a_latent_by_itself():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    with pytest.raises(PpgenError, match="draws 3 of 9 rows by itself"):
        fit(Program.from_pair(model), {"x": normal(9)}, guide="flow")


def test_a_guide_of_its_own_is_replaced():
    run = fit(GuidedNormalMean(), {"x": normal(20)}, steps=0, guide="flow", **SINGLE)
    assert run.program.fixed_rows and run.program.guide_columns == ()


class Stretched(Program):
    """b ~ N(0, 100²) of five columns that are nearly one, y ~ N(X b, 0.1): sds from 0.01 to 100."""

    def model(self, x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(5), 100.0).to_event(1))
        with ppgen.rows(x):
            pyro.sample("y", dist.Normal(x @ b, 0.1), obs=y)

    @staticmethod
    def data() -> dict[str, Tensor]:
        x = normal(30, 1) + 0.001 * normal(30, 5, seed=1)
        return {"x": x.double(), "y": normal(30, seed=2).double()}

    @staticmethod
    def posterior(x: Tensor, y: Tensor) -> dist.MultivariateNormal:
        precision = x.T @ x / 0.01 + torch.eye(5).double() / 1e4
        return dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.01), precision_matrix=precision)


@pytest.mark.parametrize(
    "guide, far",
    [("AutoMultivariateNormal", 0.02), pytest.param("flow(transforms=1, hidden=(4,))", 0.2, marks=pytest.mark.slow)],
)
def test_steps_do_not_take_a_guide_away_from_its_start(guide, far):
    """A step of 0.01 is 0.01 sd in every direction of the posterior, whatever its units and correlations; of a network
    it is one of each of its weights. In absolute units a step goes thousands of sd."""
    data = Stretched.data()
    exact = Stretched.posterior(**data)
    off = []
    for steps in (0, 1, 20):
        run = fit(Stretched(), data, guide=guide, starts=2, steps=steps, lr=0.01, particles=4, **SINGLE)
        draws = posterior(run, data, draws=1000, predictive=False, prior=False)["posterior"]["b"].values[0]
        whitened = torch.linalg.solve_triangular(exact.scale_tril, (torch.tensor(draws) - exact.loc).T, upper=False)
        off.append(float(whitened.mean(1).abs().max()))
        assert torch.allclose(whitened.std(1), torch.ones(5).double(), atol=0.25)
    assert off[1] < off[0] + far and off[2] < 0.5


OF_A_START = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "flow(hidden=(4,))"]


@pytest.mark.parametrize("guide", few(OF_A_START, "AutoMultivariateNormal", "flow(hidden=(4,))"))
def test_a_guide_with_a_start_comes_back(guide, tmp_path):
    fit(ppgen.models.EightSchools(), SCHOOLS, guide=guide, starts=2, steps=3, out=tmp_path / "run", engine="eager")
    again = resume(tmp_path / "run", SCHOOLS, steps=5)
    whole = fit(ppgen.models.EightSchools(), SCHOOLS, guide=guide, starts=2, steps=5, engine="eager")
    runs = (whole, again, Run.load(tmp_path / "run"))
    a, b, c = (posterior(r, SCHOOLS, draws=5, **ALONE)["posterior"]["theta"].values for r in runs)
    assert (a == b).all() and (c == a).all()


def test_an_autoguide_in_units_of_its_start_has_that_median():
    x = normal(20) + 1.0
    exact = NormalMean().posterior(x)
    for guide in ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"):
        run = fit(NormalMean(), {"x": x}, steps=0, guide=guide, starts=2, **SINGLE)
        with run.program.running():
            low, mid = (run.program.autoguide.quantiles([q])["m"] for q in (0.158655, 0.5))
        assert float(mid) == pytest.approx(float(exact.loc), abs=0.02 * float(exact.scale))
        assert float(mid) - float(low) == pytest.approx(float(exact.scale), rel=0.05)


# -- guides that a search finds --------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["bam", "bam_low_rank", "pathfinder"])
def test_of_a_gaussian_posterior_a_search_finds_the_posterior(guide):
    """Four correlated coefficients, no step: mean and every covariance are those of the closed form."""
    x, y = normal(40, 4, seed=1), normal(40, seed=2)
    run = fit(Regression(), {"x": x, "y": y}, steps=0, guide=guide, **SINGLE)
    found, exact = run.program.autoguide.law(), Regression().posterior(x, y)
    assert torch.allclose(found.mean, exact.mean.double(), atol=0.05 * float(exact.variance.max()) ** 0.5)
    tree = posterior(run, {"x": x, "y": y}, draws=2000, corrected=True, predictive=False, prior=False)
    draws_agree(torch.tensor(tree["posterior"]["b"].values[0]), exact.loc, exact.variance)


def _squared(y):
    th = pyro.sample("th", dist.Normal(0.0, 5.0))
    with ppgen.rows(y):
        pyro.sample("y", dist.Normal(th**2, 1.0), obs=y)


def test_pathfinder_keeps_both_of_two_modes():
    y = {"y": 4 + normal(30)}
    run = fit(Program.from_pair(_squared), y, steps=0, guide="pathfinder", precision="64-true")
    th = posterior(run, y, draws=2000, corrected=True, predictive=False, prior=False)["posterior"]["th"].values
    grid = torch.linspace(-4, 4, 8001).double()
    lp = dist.Normal(0.0, 5.0).log_prob(grid) + dist.Normal(grid[:, None] ** 2, 1.0).log_prob(y["y"]).sum(-1)
    w = lp.softmax(0)
    assert abs((th > 0).mean() - 0.5) < 0.06
    assert np.abs(th).mean() == pytest.approx(float((w * grid.abs()).sum()), abs=0.01)
    assert th.var() == pytest.approx(float((w * grid**2).sum()), rel=0.05)


@pytest.mark.parametrize("guide", ["bam", "bam_low_rank", "pathfinder"])
def test_what_a_search_finds_comes_back(guide, tmp_path):
    run = fit(ppgen.models.EightSchools(), SCHOOLS, steps=0, guide=guide, out=tmp_path / "run")
    a, b = (
        posterior(r, SCHOOLS, draws=5, **ALONE)["posterior"]["theta"].values for r in (run, Run.load(tmp_path / "run"))
    )
    assert (a == b).all()


@pytest.mark.parametrize("guide", ["bam", "pathfinder"])
def test_discrete_latents_are_summed_out_of_the_search(guide):
    """A mixture's component of each row is summed out; its two ordered means are found."""

    def model(y):
        m = pyro.sample("m", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        with ppgen.rows(y):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("y", dist.Normal(m[k], 0.5), obs=y)

    y = torch.cat([-2.5 + 0.5 * normal(20), 1.5 + 0.5 * normal(20, seed=1)])
    run = fit(Program.from_pair(model), {"y": y}, steps=0, guide=guide, objective="enumerate", precision="64-true")
    m = posterior(run, {"y": y}, draws=400, **ALONE)["posterior"]["m"].values[0]
    shrunk = [(y[:20].sum() / 0.25 - 2) / 81, (y[20:].sum() / 0.25 + 2) / 81]
    assert m.mean(0) == pytest.approx(torch.stack(shrunk).numpy(), abs=0.05)
    assert m.std(0) == pytest.approx([1 / 9, 1 / 9], rel=0.2)


def test_a_round_of_low_rank_is_that_of_whole_matrices(monkeypatch):
    """With Σ' = 2 V (I + (I + 4 U V)^½)⁻¹ of dense V and U, before the patch."""
    torch.manual_seed(0)
    n, t = 6, 2
    q = low_rank._LowRank(normal(n).double(), normal(n, 2).double(), 0.5 + normal(n, seed=3).double().abs())
    A = normal(n, n, seed=4).double()
    u = q.draw(10, torch.Generator().manual_seed(0))
    g = -(u - 1) @ (A @ A.T + torch.eye(n).double())
    weight = 10 * n / (t + 1)
    share = weight / (1 + weight)
    ub, gb = u.mean(0), g.mean(0)
    S = q.factor @ q.factor.T + q.diagonal.diag()
    V = S + weight * torch.cov(u.T, correction=0) + share * torch.outer(q.loc - ub, q.loc - ub)
    U = weight * torch.cov(g.T, correction=0) + share * torch.outer(gb, gb)
    w, E = torch.linalg.eig(torch.eye(n).double() + 4 * U @ V)
    root = (E @ w.sqrt().diag() @ torch.linalg.inv(E)).real
    exact = 2 * V @ torch.linalg.inv(torch.eye(n).double() + root)
    seen = {}
    monkeypatch.setattr(
        low_rank, "_patch", lambda q, product, whole: seen.update(q=q, at=(product(torch.eye(n).double()), whole))
    )
    low_rank._round(q, u, g, t)
    assert torch.allclose(seen["at"][0], exact) and torch.allclose(seen["at"][1], exact.diagonal())
    assert torch.allclose(seen["q"].loc, (q.loc + weight * (exact @ gb + ub)) / (1 + weight))


def test_a_patch_keeps_a_covariance_of_its_own_form():
    factor, diagonal = normal(30, 2).double(), 0.5 + normal(30, seed=1).double().abs()
    S = factor @ factor.T + diagonal.diag()
    q = low_rank._LowRank(torch.zeros(30).double(), normal(30, 2, seed=2).double(), torch.ones(30).double())
    for _ in range(30):
        q = low_rank._patch(q, lambda x: S @ x, S.diagonal())
    assert torch.allclose(q.factor @ q.factor.T + q.diagonal.diag(), S, atol=1e-4)


def test_low_rank_in_hundreds_of_dimensions():
    """400 latents of two common factors: nearly exact by its ELBO, and by every sd."""
    i = torch.arange(400.0)
    factor, diagonal = torch.stack([torch.sin(i), torch.cos(0.3 * i)], 1), 0.5 + (i % 7) / 7

    def model(one):
        pyro.sample("x", dist.LowRankMultivariateNormal(torch.sin(2 * i).double(), factor.double(), diagonal.double()))
        pyro.factor("one", one.sum())

    one = {"one": torch.zeros(1)}
    run = fit(Program.from_pair(model), one, steps=0, guide="bam_low_rank(rank=8)", precision="64-true")
    found = run.program.autoguide.law()
    sd = (factor.square().sum(1) + diagonal).sqrt()
    assert (found.stddev / sd).log().abs().max() < 0.15 and ((found.mean - torch.sin(2 * i)) / sd).abs().max() < 0.1
    tree = posterior(run, one, draws=500, predictive=False, prior=False)
    gap = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values
    assert abs(gap.mean()) < 0.5


def test_a_search_that_cannot_be_is_refused():
    with pytest.raises(PpgenError, match="bam is found on all rows at once"):
        fit(NormalMean(), {"x": normal(20)}, batch_size=5, guide="bam")
    with pytest.raises(PpgenError, match="rank of the guide bam_low_rank is 0"):
        fit(NormalMean(), {"x": normal(20)}, guide="bam_low_rank(rank=0)")
    with pytest.raises(PpgenError, match="at most 300, and there are 401 of them; take --guide bam_low_rank"):
        fit(Measured(), {"x": normal(400)}, steps=0, guide="bam")


# -- Pathfinder in many dimensions -----------------------------------------------------------------


def _curvatures(pairs: int, dim: int = 50) -> tuple[LimitedMemory, Tensor]:
    """Two paths that have seen so many pairs of a quadratic, and the inverse Hessians that whole matrices come to."""
    A = normal(dim, dim).double()
    P = A @ A.T / dim + torch.eye(dim).double()
    few, whole, i = LimitedMemory(normal(2, dim).double()), Dense(normal(2, dim).double()), torch.arange(2)
    steps = normal(pairs, 2, dim, seed=3).double()
    for s in steps:
        few.update(i, s, s @ P, torch.ones(2, dtype=torch.bool))
    whole.H, whole.fresh[:] = torch.diag_embed(few.diagonal), False
    for s in steps[-HISTORY:]:
        whole.update(i, s, s @ P, torch.ones(2, dtype=torch.bool))
    return few, whole.H


@pytest.mark.parametrize("pairs", [1, 5, HISTORY + 3])
def test_limited_memory_is_bfgs_of_the_last_pairs(pairs):
    few, H = _curvatures(pairs)
    x = normal(2, 50, seed=5).double()
    assert torch.allclose(few.times(torch.arange(2), x), (H @ x[..., None])[..., 0], rtol=1e-7, atol=1e-9)


def test_a_normal_of_limited_memory_is_that_of_its_matrix():
    """Log density, volume, variances, and the covariance of draws, by a linear map of all unit vectors."""
    few, H = _curvatures(6)
    root, usable = few.roots(torch.arange(2))
    loc = normal(2, 50, seed=7).double()
    dense, q = dist.MultivariateNormal(loc, H), _LowRankNormal(loc, root)
    assert usable.all()
    u = loc + 2 * normal(4, 2, 50, seed=8).double()
    assert torch.allclose(q.log_prob(u), dense.log_prob(u)) and torch.allclose(q.variance, dense.variance)
    assert torch.allclose(root.volume(), torch.linalg.slogdet(H)[1] / 2)
    spread = root.spread(torch.eye(50).double()[:, None].expand(50, 2, 50)).movedim(0, -1)
    assert torch.allclose(spread @ spread.mT, H, atol=1e-9)
    assert q.rsample((3,)).shape == (3, 2, 50)


def test_a_path_forgets_its_curvature_and_one_without_any_has_no_normal():
    few, _ = _curvatures(4)
    g = 10 * normal(2, 50).double()
    few.restart(torch.tensor([1]), g[1:])
    _, usable = few.roots(torch.arange(2))
    assert usable.tolist() == [True, False]
    assert torch.allclose(few.times(torch.tensor([1]), g[1:]), g[1:] / g[1:].norm())
    few.update(torch.arange(2), g, -g, torch.ones(2, dtype=torch.bool))  # no positive curvature: nothing is learned
    assert few.fresh.tolist() == [False, True]


def _wide(dim: int, scale: float) -> tuple[Program, Tensor, Tensor]:
    """Independent normals of sds over four orders of magnitude, times `scale`: model, means, sds."""
    sd, loc = scale * 10 ** torch.linspace(-2, 2, dim).double(), torch.sin(torch.arange(dim)).double()

    def model(one):
        pyro.sample("x", dist.Normal(loc, sd).to_event(1))
        pyro.factor("one", one.sum())

    return Program.from_pair(model), loc, sd


def test_pathfinder_in_hundreds_of_dimensions(tmp_path):
    """400 latents of sds from 0.01 to 100: exact after the first curvature; saved and read back."""
    program, loc, sd = _wide(400, 1.0)
    one = {"one": torch.zeros(1)}
    run = fit(program, one, steps=0, guide="pathfinder", starts=4, precision="64-true", out=tmp_path / "run")
    law = run.program.autoguide.law()
    assert torch.allclose(law.stddev, sd, rtol=1e-3) and ((law.mean - loc).abs() < 1e-3 * sd).all()
    tree = posterior(run, one, draws=200, predictive=False, prior=False)
    gap = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values
    assert np.abs(gap).max() < 1e-2
    again = posterior(Run.load(tmp_path / "run", _wide(400, 1.0)[0]), one, draws=200, predictive=False, prior=False)
    assert (again["posterior"]["x"].values == tree["posterior"]["x"].values).all()


def test_low_rank_begins_where_pathfinder_ends():
    """Sds of 1e-4 to 1, where draws of a normal about zero have no good score."""
    program, loc, sd = _wide(400, 0.01)
    one = {"one": torch.zeros(1)}
    run = fit(program, one, steps=0, guide="bam_low_rank(rank=2)", precision="64-true")
    law = run.program.autoguide.law()
    assert (law.stddev / sd).log().abs().max() < 0.1 and ((law.mean - loc).abs() < 0.1 * sd).all()


@pytest.mark.parametrize("guide", ["AutoNormal", "bam", "flow"])
def test_a_latent_of_infinitely_many_values_is_named(guide):
    def model(x):
        k = pyro.sample("k", dist.Poisson(3.0))
        with ppgen.rows(x):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(PpgenError, match=r"'k' has no place in .* and Poisson has too many values to sum it out"):
        fit(Program.from_pair(model), {"x": torch.ones(3)}, guide=guide, steps=0)


def test_a_search_that_fails_without_a_word_ends_no_fit(monkeypatch, caplog):
    """`raise ValueError` has no first line to quote."""

    def fails(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(guide_init, "log_joint", fails)
    with caplog.at_level("INFO", "ppgen"):
        fit(NormalMean(), {"x": torch.randn(9)}, steps=0, guide="AutoNormal", starts=2, **SINGLE)
    assert "no start was found: ValueError" in caplog.text
