"""Every broken program and every broken table has its one sentence, before the first step."""

from __future__ import annotations

import math
from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ppgen import PpgenError, Program, rows
from ppgen.check import check
from ppgen.inference import fit, loglik, mcmc, posterior

X = torch.linspace(-2.0, 2.0, 40)


def local_model(x=None):
    theta = pyro.param("theta", torch.tensor(1.0))
    with rows(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta * z, 1.0), obs=x)


def local_guide(x):
    a = pyro.param("a", torch.tensor(0.3))
    with rows(x):
        pyro.sample("z", dist.Normal(a * x, 1.0))


def scale_model(x=None):
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, s), obs=x)


def positive(loc_only=False):
    m = pyro.param("m", torch.tensor(0.0))
    pyro.sample("s", dist.LogNormal(m, 1.0))


# -- broken guides ---------------------------------------------------------------------------------


def guide_missing(x):
    pyro.param("a", torch.tensor(0.3))


def guide_extra(x):
    local_guide(x)
    pyro.sample("zz", dist.Normal(0.0, 1.0))


def guide_samples_observed(x):
    a = pyro.param("a", torch.tensor(0.3))
    with rows(x):
        pyro.sample("z", dist.Normal(a * x, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0))


def guide_narrow(x):
    a = pyro.param("a", torch.tensor(0.3))
    with rows(x):
        pyro.sample("z", dist.LogNormal(a * x, 1.0))


def guide_wide(x):
    pyro.sample("s", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


def guide_no_plate(x):
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


def guide_batch_no_plate(x):
    pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.3)) * x, 1.0))


def guide_other_size(x):
    with pyro.plate("data", len(x) // 2):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


def guide_event(x):
    a = pyro.param("a", torch.tensor(0.3))
    with rows(x):
        pyro.sample("z", dist.Normal(a * x[:, None].expand(-1, 3), 1.0).to_event(1))


def guide_discrete(x):
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    with rows(x):
        pyro.sample("z", dist.Bernoulli(p))


def guide_nan(x):
    a = pyro.param("a", torch.tensor(-1.0))
    with rows(x):
        pyro.sample("z", dist.Normal(torch.sqrt(a) * x, 1.0))


# -- broken models ---------------------------------------------------------------------------------


def model_unobserved(x=None):
    with rows(x):
        z = pyro.sample("z", dist.Normal(pyro.param("t", torch.tensor(0.0)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))


def model_bernoulli(x=None):
    with rows(x):
        pyro.sample("x", dist.Bernoulli(logits=pyro.param("l", torch.tensor(0.0))), obs=x)


def model_wrong_shape(x=None):
    with rows(x):
        pyro.sample("x", dist.Normal(pyro.param("t", torch.zeros(3)), 1.0).to_event(1), obs=x)


def model_column_beside_row(x=None):
    t = pyro.param("t", torch.tensor(0.0))
    with rows(x):
        pyro.sample("x", dist.Normal(t * x[:, None], 1.0), obs=x)


def model_fixed_plate(x=None):
    t = pyro.param("t", torch.tensor(0.0))
    with pyro.plate("N", 40):
        pyro.sample("x", dist.Normal(t, 1.0), obs=x)


def model_fixed_plate_sized(x=None):
    t = pyro.param("t", torch.tensor(0.0))
    with pyro.plate("N", 40):
        pyro.sample("x", dist.Normal(t.expand(40), 1.0), obs=x)


def model_no_plate(x=None):
    t = pyro.param("t", torch.tensor(0.0))
    pyro.sample("x", dist.Normal(t.expand(len(x)), 1.0).to_event(1), obs=x)


def model_unplated(x=None):
    t = pyro.param("t", torch.tensor(0.0))
    pyro.sample("x", dist.Normal(t.expand(len(x)), 1.0), obs=x)


def model_unused(x=None):
    pyro.param("unused.one", torch.tensor(0.0))
    local_model(x)


def model_no_parameters(x=None):
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def model_detached(x=None):
    t = pyro.param("t", torch.tensor(0.0)).detach()
    with rows(x):
        pyro.sample("x", dist.Normal(t, 1.0), obs=x)


def model_crashes(x=None):
    with rows(x):
        pyro.sample("x", dist.Normal(torch.zeros(3) @ torch.zeros(4), 1.0), obs=x)


def model_discrete(x=None):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with rows(x):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def guide_improper(x=None):
    with rows(x):
        pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))


def model_no_init(x=None):
    t = pyro.param("t")
    with rows(x):
        pyro.sample("x", dist.Normal(t, 1.0), obs=x)


def model_two_columns(x, y=None):
    t = pyro.param("t", torch.tensor(0.0))
    with rows(x):
        pyro.sample("y", dist.Normal(t * x, 1.0), obs=y)


def model_sequential(x):
    t = pyro.param("t", torch.tensor(0.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(t, 1.0), obs=x[i])


def model_two_scales(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
    with rows(x), pyro.poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def moving_model(x):
    b = pyro.sample("b", dist.HalfNormal(5.0))
    with rows(x):
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(b), b))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


BROKEN = {
    "a support that depends on a latent": (
        moving_model, None, {"x": X}, {}, ["latent 'z' (Uniform) depends on other", "ppgen infer"],
    ),
    # name: (model, guide, data, options, what the sentence must say)
    "guide lacks a site": (local_model, guide_missing, {"x": X}, {}, ["no site 'z'", "AutoNormal"]),
    "guide has a site too many": (local_model, guide_extra, {"x": X}, {}, ["'zz'", "did you mean 'z'", "is_auxiliary"]),
    "guide samples the observed": (local_model, guide_samples_observed, {"x": X}, {}, ["'x'", "observes"]),
    "guide too narrow": (local_model, guide_narrow, {"x": X}, {}, ["'z'", "(-inf, inf)", "(0, inf)", "narrower"]),
    "guide discrete": (local_model, guide_discrete, {"x": X}, {}, ["'z'", "discrete"]),
    "guide forgot the plate": (local_model, guide_no_plate, {"x": X}, {}, ["'z'", "plate 'data' of size 40", "forgot"]),
    "guide batch without plate": (local_model, guide_batch_no_plate, {"x": X}, {}, ["'z'", "plate 'data'", "forgot"]),
    "guide's plate of another size": (local_model, guide_other_size, {"x": X}, {}, ["'data'", "40", "20"]),
    "guide's event": (local_model, guide_event, {"x": X}, {}, ["'z'", "(3,)"]),
    "guide gives nan": (local_model, guide_nan, {"x": X}, {}, ["'z'", "nan"]),
    "grey under Bernoulli": (model_bernoulli, None, {"x": X.abs() / 2}, {}, ["'x'", "{0, 1}", "grey", "binarise"]),
    "wrong shape": (model_wrong_shape, None, {"x": torch.zeros(40, 5)}, {}, ["'x'", "(40, 5)", "(40, 3)"]),
    "(N, 1) beside (N,)": (model_column_beside_row, None, {"x": X}, {}, ["'x'", "(40, 40)", "no plate"]),
    "plate of a fixed size": (model_fixed_plate_sized, None, {"x": X}, {"batch_size": 10}, ["'N'", "40", "whatever"]),
    "plate of a fixed size, broadcast": (model_fixed_plate, None, {"x": X}, {"batch_size": 10}, ["'N'", "40"]),
    "no plate over the rows": (model_no_plate, None, {"x": X}, {"batch_size": 10}, ["'x'", "no plate", "ppgen.rows"]),
    "no site": (lambda x: None, None, {"x": X}, {}, ["no sample site"]),
    "a batch of a sequential plate": (
        model_sequential, None, {"x": X}, {"batch_size": 10}, ["'x_0'", "sequential plate 'data'", "subsample_size=10"],
    ),
    "two scales in one sum": (model_two_scales, lambda x: None, {"x": X}, {}, ["'z' and 'x'", "different scales"]),
    "detached": (model_detached, None, {"x": X}, {}, ["detached"]),
    "model raises": (model_crashes, None, {"x": X}, {}, ["RuntimeError", "test_check.py"]),
    "discrete latent, no guide": (model_discrete, None, {"x": X}, {}, ["'z'", "enumerate"]),
    "discrete latent, autoguide": (model_discrete, "AutoNormal", {"x": X}, {}, ["'z'", "--objective enumerate"]),
    "improper guide": (local_model, guide_improper, {"x": X}, {}, ["'z'", "flat", "no distribution"]),
    "param without value": (model_no_init, None, {"x": X}, {}, ["'t'", "initial value"]),
    "autoguide with local latents": (local_model, None, {"x": X}, {"batch_size": 10}, ["'z'", "amortised"]),
    "column missing": (model_two_columns, None, {"y": X}, {}, ["'x'", "--columns"]),
    "column too many": (local_model, local_guide, {"x": X, "label": X}, {}, ["'label'", "no argument"]),
    "nan in the data": (local_model, local_guide, {"x": torch.full((4,), float("nan"))}, {}, ["'x'"]),
    "inf in the data": (local_model, local_guide, {"x": torch.tensor([1.0, float("inf")])}, {}, ["'x'"]),
    "no rows": (local_model, local_guide, {"x": torch.zeros(0)}, {}, ["x (0,)", "at least one row"]),
    "no columns": (local_model, local_guide, {}, {}, ["x"]),
    "unknown guide": (scale_model, "AutoNormall", {"x": X}, {}, ["AutoNormal"]),
    "unknown objective": (local_model, local_guide, {"x": X}, {"objective": "analytical"}, ["'analytic'"]),
    "unknown optimizer": (local_model, local_guide, {"x": X}, {"optimizer": "Adan"}, ["'Adam'"]),
    "unknown optimizer option": (local_model, local_guide, {"x": X}, {"optimizer": "Adam(beta=1)"}, ["'betas'"]),
    "unknown schedule": (local_model, local_guide, {"x": X}, {"schedule": "cosin"}, ["'cosine'"]),
    "unknown engine": (local_model, local_guide, {"x": X}, {"engine": "jit"}, ["trace"]),
    "unknown precision": (local_model, local_guide, {"x": X}, {"precision": "12"}, ["precision"]),
    "unknown device": (local_model, local_guide, {"x": X}, {"device": "gppu"}, ["device"]),
    "lr of zero": (local_model, local_guide, {"x": X}, {"lr": 0.0}, ["lr"]),
    "batch_size of zero": (local_model, local_guide, {"x": X}, {"batch_size": 0}, ["batch_size"]),
    "patience without valid": (local_model, local_guide, {"x": X}, {"patience": 3}, ["patience", "valid"]),
    "negative seed": (local_model, local_guide, {"x": X}, {"seed": -1}, ["seed"]),
}  # fmt: skip


def test_a_batch_without_a_plate_is_one_sum():
    """Legal in Pyro: nothing says that its entries are rows, and their log-probabilities add up."""
    run = fit(Program.from_pair(model_unplated), {"x": X}, steps=300, lr=0.1)
    assert abs(float(run.program.get_parameter("param:t")) - float(X.mean())) < 1e-2


def test_a_program_without_parameters_is_warned_of_and_its_elbo_computed(caplog):
    run = fit(Program.from_pair(model_no_parameters), {"x": X}, steps=3, log_every=1)
    assert "no parameters to learn" in caplog.text
    exact = float(dist.Normal(0.0, 1.0).log_prob(X).sum())
    assert run.metrics["elbo"] == pytest.approx([exact] * 3)


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name, tmp_path):
    model, guide, data, options, said = BROKEN[name]
    with pytest.raises(PpgenError) as e:
        fit(Program.from_pair(model, guide), data, steps=5, out=tmp_path / "run", **options)
    message = str(e.value)
    for part in said:
        assert part in message, message
    assert "\n" not in message
    assert not (tmp_path / "run").exists(), "a fit that was refused leaves no folder"


def test_a_loss_that_goes_bad_names_its_site_and_keeps_the_checkpoint(tmp_path):
    class Explodes(Program):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(1.0))

        def model(self, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(self.t, torch.where(self.t > 1.02, torch.nan, 1.0)), obs=x)

    with pytest.raises(PpgenError) as e:
        fit(Explodes(), {"x": X + 5}, steps=200, lr=0.01, out=tmp_path / "run", checkpoint_every=1)
    message = str(e.value)
    assert "'x'" in message and "nan" in message and "--resume" in message
    from ppgen import Run

    kept = Run.load(tmp_path / "run", Explodes())
    assert 1.0 < kept.program.t.item() < 1.05


def test_a_parameter_that_comes_late_is_trained():
    calls = []

    def model(x=None):
        calls.append(1)
        late = pyro.param("late", torch.tensor(0.0)) if len(calls) > 30 else torch.tensor(0.0)
        with rows(x):
            pyro.sample("x", dist.Normal(pyro.param("t", torch.tensor(0.0)) + late, 1.0), obs=x)

    run = fit(Program.from_pair(model), {"x": X + 5}, steps=100, lr=0.05, engine="eager")
    assert float(run.params["late"]) > 0.5


WARNED = {
    "guide too wide": (scale_model, guide_wide, ["'s'", "(0, inf)", "LogNormal"]),
    "nothing observed": (model_unobserved, "AutoNormal", ["no observed site"]),
    "parameter without gradient": (model_unused, local_guide, ["'unused.one'", "no gradient"]),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_can_be_run_is_warned_of(case, caplog):
    model, guide, words = WARNED[case]
    fit(Program.from_pair(model, guide), {"x": X}, steps=1)
    assert all(word in caplog.text for word in words)


def two_latents(y):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with rows(y):
        pyro.sample("y", dist.Normal(m, s), obs=y)


def auxiliary_guide(kind):
    """q(m, s) by u ~ N(0, I): m = u_1 + 1, s = exp(u_2 / 2); log |det| = u_2 / 2 - log 2."""

    def guide(y):
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        det = torch.zeros(()) if kind == "determinant" else u[1] / 2 - torch.tensor(2.0).log()
        if kind == "component":
            pyro.sample("m", dist.Normal(u[0] + 1, 0.1))
        else:
            pyro.sample("m", dist.Delta(u[0] + 1))
        pyro.sample("s", dist.Delta((u[1] / 2).exp(), log_density=-det))

    return guide


@pytest.mark.parametrize("kind", ["right", "determinant", "component"])
def test_a_guide_whose_terms_are_not_the_density_of_its_latents_has_no_bound(kind, caplog):
    """Of the right one weights have the mean p(y), by quadrature; the others' bound was above it."""
    y = torch.tensor([0.3, 1.9, 1.1, 0.4, 2.2])
    run = fit(Program.from_pair(two_latents, auxiliary_guide(kind)), {"y": y}, steps=0)
    if kind != "right":
        said = {"determinant": "leaves out", "component": "draws more at auxiliary sites (2 numbers, of 'u' first)"}[
            kind
        ]
        assert said in caplog.text
        with pytest.raises(PpgenError, match="there is no bound on log p"):
            loglik(run, {"y": y})
        with pytest.raises(PpgenError, match=f"no weights to be corrected by.*{said[:9]}"):
            posterior(run, {"y": y}, corrected=True)
        return
    assert "bound" not in caplog.text
    posterior(run, {"y": y}, draws=10)
    m, log_s = torch.meshgrid(torch.linspace(-6, 8, 561).double(), torch.linspace(-4, 4, 321).double(), indexing="ij")
    log_p = dist.Normal(0.0, 2.0).log_prob(m) + dist.Normal(0.0, 1.0).log_prob(log_s)
    log_p = log_p + sum(dist.Normal(m, log_s.exp()).log_prob(v) for v in y)
    exact = float(log_p.flatten().logsumexp(0)) + math.log(0.025 * 0.025)
    bound = loglik(run, {"y": y}, particles=20_000).best
    assert abs(bound.mean - exact) < 4 * bound.mean_se + 1e-3


def fractions_of_rows(y):
    with rows(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Normal(p, 1.0), obs=y)


def guide_of_fractions(y, kind):
    """p = sigmoid(u), u ~ N(13, 0.1): in float32 1 - p has two digits, and with it the derivative p (1 - p)."""
    with rows(y):
        u = pyro.sample("u", dist.Normal(13.0, 0.1), infer={"is_auxiliary": True})
        det = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
        if kind == "undone":
            pyro.factor("undo", -dist.Normal(13.0, 0.1).log_prob(u), has_rsample=True)
            pyro.sample("p", dist.Beta(1.0, 2.0))
        else:
            pyro.sample("p", dist.Delta(u.sigmoid(), log_density=-det if kind == "right" else 0.0 * det))


@pytest.mark.parametrize("kind", ["right", "undone", "determinant"])
@pytest.mark.parametrize("rows", [1, 300])
def test_a_determinant_is_looked_at_whatever_its_precision_and_the_rows(rows, kind, caplog):
    """-log(p (1 - p)) is 13 nats a row; a guide whose factor takes out what it draws beside is right."""
    y = torch.linspace(0, 2, rows)
    run = fit(Program.from_pair(fractions_of_rows, partial(guide_of_fractions, kind=kind)), {"y": y}, steps=0)
    assert ("no bound" in caplog.text) == (kind == "determinant")
    if kind == "determinant":
        with pytest.raises(PpgenError, match="there is no bound on log p"):
            loglik(run, {"y": y})
    else:
        loglik(run, {"y": y}, particles=8)


def rows_summed(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(y):
        pyro.factor("f", dist.Normal(m, 1.0).log_prob(y).sum())


def rows_within_events(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(y):
        pyro.sample("f", dist.Normal(m, 1.0).expand([len(y)]).to_event(1), obs=y)


def rows_one_by_one(y):
    """What is one number for all rows here is of each row: a penalty, a normaliser, an event."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.factor("outside", dist.Normal(m, 1.0).log_prob(y).sum())
    with rows(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("a row", dist.Normal(m + z, 1.0).log_prob(y))
        pyro.factor("penalty", -(m**2))
        pyro.sample("event", dist.Bernoulli(torch.sigmoid(m)), obs=torch.tensor(1.0))


def rows_summed_beside_latents_of_rows(y):
    with rows(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", dist.Normal(z, 1.0).log_prob(y).sum())


def rows_averaged(y):
    """Each of N rows adds an N-th of what all rows do."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(y):
        pyro.factor("mean", dist.Normal(m, 1.0).log_prob(y).mean())
        pyro.factor("penalty", -(m**2) / len(y))
        with pyro.poutine.scale(scale=1 / len(y)):
            pyro.sample("scaled", dist.Normal(m, 1.0).expand([len(y)]).to_event(1), obs=y)


RIGHT = [rows_one_by_one, rows_averaged]


@pytest.mark.parametrize("model", [rows_summed, rows_within_events, rows_summed_beside_latents_of_rows, *RIGHT])
def test_a_sum_over_the_rows_within_their_plate_is_told(model, caplog):
    """Its posterior is of N² rows: N(Σ y / (1/N + N), 1 / (1 + N²)) for N(Σ y / (1 + N), 1 / (1 + N))."""
    y = torch.tensor([0.3, 1.9, 1.1, 0.4, 2.2])
    for run in (partial(fit, steps=1), partial(mcmc, chains=4, warmup=20, draws=5, prior=False, predictive=False)):
        caplog.clear()
        run(model, {"y": y})
        said = [m for m in caplog.messages if "counts once for each row" in m]
        assert len(said) == (model not in RIGHT) and all("'f' within the plate 'data'" in m for m in said)


def test_a_value_that_a_summed_latent_excludes_is_no_fault(caplog):
    """Zeros of their own, by masks of a latent that is summed out: Σ_s p(s) p(y | s), of which one s is impossible."""
    y = torch.tensor([0.0, 2.0, 0.0, 1.0, 3.0])

    def model(y):
        with rows(y):
            s = pyro.sample("s", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            with pyro.poutine.mask(mask=s == 0):
                pyro.sample("y", dist.Poisson(2.0), obs=y)
            with pyro.poutine.mask(mask=s == 1):
                pyro.sample("zero", dist.Delta(torch.tensor(0.0)), obs=y)

    run = fit(Program.from_pair(model), {"y": y}, steps=1)
    exact = torch.log(0.7 * dist.Poisson(2.0).log_prob(y).exp() + 0.3 * (y == 0)).sum()
    assert (
        float(loglik(run, {"y": y}).best.values.sum()) == pytest.approx(float(exact), abs=1e-4)
        and "-inf" not in caplog.text
    )


def test_the_global_store_is_not_written_and_is_where_a_pair_begins():
    pyro.clear_param_store()
    pyro.param("theta", torch.tensor(77.0))
    program = Program.from_pair(local_model, local_guide)
    run = fit(program, {"x": X}, steps=1, lr=1e-6)
    assert set(pyro.get_param_store().keys()) == {"theta"}
    assert pyro.param("theta").item() == 77.0
    assert abs(dict(run.program.named_parameters())["param:theta"].item() - 77.0) < 1e-4
    pyro.clear_param_store()


def test_the_random_state_of_the_caller_is_given_back():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit(Program.from_pair(local_model, local_guide), {"x": X}, steps=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal", "AutoDelta", "AutoIAFNormal"])
def test_sound_programs_pass(guide):
    program = Program.from_pair(scale_model)
    program.setup({"x": X}, guide)
    structure = check(program, {"x": X})
    assert structure.latents == ("s",) and structure.globals == ("s",) and structure.row_plates == {"data"}


def test_structure_tells_rows_from_other_plates():
    def model(x=None):
        with pyro.plate("features", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("cases", len(x)):
            pyro.sample("x", dist.Normal(w.sum(-2), 1.0), obs=x)

    program = Program.from_pair(model)
    program.setup({"x": X[:3]}, "AutoNormal")
    structure = check(program, {"x": X[:3]})  # three rows, three features: the sizes do not tell them apart
    assert structure.row_plates == {"cases"}
    assert structure.globals == ("w",)


def test_pyro_modules_in_a_closure_and_owners_of_methods_are_found():
    net = nn.Linear(1, 2)
    shift = pyro.nn.PyroModule[nn.Linear](1, 1)

    class Owner:
        def model(self, x=None):
            pyro.module("net", net)
            with rows(x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(shift(z[..., None])[..., 0], 1.0), obs=x)

        def guide(self, x):
            loc, scale = net(x[:, None]).unbind(-1)
            with rows(x):
                pyro.sample("z", dist.Normal(loc, scale.exp()))

    owner = Owner()
    run = fit(Program.from_pair(owner.model, owner.guide), {"x": X}, steps=20, lr=0.05)
    names = {n for n, _ in run.program.named_parameters()}
    assert names == {"net.weight", "net.bias", "pyrolinear.weight", "pyrolinear.bias"}
    assert run.metrics["elbo"][-1] > run.metrics["elbo"][0]


def test_a_program_that_sets_the_seed_is_said(caplog):
    """Each run of it begins at one random state; one that puts the state back, or draws from a generator, does not."""

    def own(seeded):
        def model(x=None):
            seeded()
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with rows(x):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return model

    def put_back():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)

    data = {"x": torch.tensor([1.0, 2.0])}
    once = cache(lambda: pyro.set_rng_seed(0))  # at its first run alone
    for harmless in (put_back, once, lambda: torch.rand(3), lambda: torch.Generator().manual_seed(0)):
        fit(Program.from_pair(own(harmless)), data, steps=1)
    assert "sets the seed" not in caplog.text
    for seeded in (lambda: torch.manual_seed(0), lambda: pyro.set_rng_seed(3)):
        caplog.clear()
        run = fit(Program.from_pair(own(seeded)), data, steps=1)
        assert "model sets the seed itself" in caplog.text
    with pytest.raises(PpgenError, match="its draws are all one"):  # and not that its guide is a point
        loglik(run, data, particles=5, seed=3)
