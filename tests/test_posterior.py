"""`posterior` and `predict`: ArviZ's schema, conjugate targets, netCDF, and ArviZ's own functions on the result."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from known import (
    SCHOOLS,
    GuidedNormalMean,
    GuidedRegression,
    NormalMean,
    Regression,
    binary,
    draws_agree,
    normal,
    ppca,
)
from scipy import stats
from torch import nn
from torch.distributions import constraints, transform_to

from ppgen import PpgenError, Program, Run, rows
from ppgen.inference import fit, posterior, predict
from ppgen.inference.evaluation.posterior import name_in
from ppgen.models import VAE, EightSchools

X = normal(20) + 1.0


@pytest.fixture(scope="module")
def schools():
    """A fitted eight schools, and its tree of 500 draws."""
    pyro.clear_param_store()
    run = fit(EightSchools(), SCHOOLS, steps=500, lr=0.05)
    return run, posterior(run, SCHOOLS, draws=500)


# -- ArviZ's schema --------------------------------------------------------------------------------

GROUPS = {
    "posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior", "sample_stats",
}  # fmt: skip


def shapes(tree: xr.DataTree, group: str) -> dict:
    return {k: dict(v.sizes) for k, v in tree[group].data_vars.items()}


@pytest.mark.filterwarnings("error")
def test_groups_dimensions_and_coordinates_of_eight_schools(schools):
    run, tree = schools
    assert set(tree.children) == GROUPS | {"observed_data", "constant_data"}
    draw, school = {"chain": 1, "draw": 500}, {"school": 8}
    assert shapes(tree, "posterior") == {
        "mu": draw, "tau": draw, "eta": draw | school, "theta": draw | school
    }  # fmt: skip
    assert shapes(tree, "prior") == {"mu": draw, "tau": draw, "eta": draw | school}
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert shapes(tree, group) == {"y": draw | school}
    assert shapes(tree, "log_prior") == {"mu": draw, "tau": draw, "eta": draw | school}
    assert shapes(tree, "sample_stats") == {"log_p": draw, "log_q": draw}
    assert shapes(tree, "observed_data") == {"y": school}
    assert shapes(tree, "constant_data") == {"sigma": school}
    for group in tree.children.values():
        assert set(group.dims) == set(group.coords), "every dimension has a coordinate"
    assert tree["posterior"].coords["school"].values.tolist() == list("ABCDEFGH")
    assert np.array_equal(tree["observed_data"]["y"], SCHOOLS["y"])
    theta = tree["posterior"]["mu"] + tree["posterior"]["tau"] * tree["posterior"]["eta"]
    assert np.allclose(tree["posterior"]["theta"], theta, atol=1e-4)
    assert tree.attrs["inference_library"] == "ppgen" and "torch" in tree.attrs


def test_the_log_prior_is_that_of_the_priors(schools):
    _, tree = schools
    mu, tau, eta = (tree["posterior"][n].values for n in ("mu", "tau", "eta"))
    priors = {"mu": stats.norm(0, 5), "tau": stats.halfcauchy(0, 5), "eta": stats.norm()}
    for name, values in {"mu": mu, "tau": tau, "eta": eta}.items():
        values = priors[name].logpdf(values)
        assert np.allclose(tree["log_prior"][name].values, values, atol=1e-4)


def test_arviz_tells_how_sensitive_a_posterior_is_to_its_prior():
    """m ~ N(0, 1), one x ~ N(m, 1): a prior that has half of the weight, beside one that has a hundredth."""
    from arviz_stats import psense_summary

    def sensitivity(prior):
        run = fit(GuidedNormalMean(prior, 1.0), {"x": torch.full((1,), 4.0)}, steps=0)
        return psense_summary(posterior(run, {"x": torch.full((1,), 4.0)}, draws=4000))["prior"].astype(float)["m"]

    assert sensitivity(1.0) > 0.15 > 0.05 > sensitivity(20.0)


def test_a_posterior_by_row():
    x = normal(6, 4)
    tree = posterior(ppca(), {"x": x}, draws=30)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert tree["log_likelihood"]["x"].sizes == {"chain": 1, "draw": 30, "data": 6}
    assert tree["sample_stats"]["log_q"].sizes == {"chain": 1, "draw": 30, "data": 6}
    assert tree["observed_data"]["x"].dims == ("data", "x_dim_0")
    assert "constant_data" not in tree.children


def test_groups_that_are_not_wanted_are_left_out():
    tree = posterior(ppca(), {"x": normal(6, 4)}, draws=5, predictive=False, prior=False)
    assert set(tree.children) == {"posterior", "log_likelihood", "log_prior", "sample_stats", "observed_data"}


class Nested(Program):
    """Students within schools: plates of 3 schools and of rows, a latent in each and in both, one of 2 events."""

    coords = {"school": ["a", "b", "c"]}

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def model(self, x=None):
        school, data = pyro.plate("school", 3, dim=-2), rows(x)
        with school:
            a = pyro.sample("a", dist.Normal(torch.tensor([[1.0], [2.0], [3.0]]), 0.1))
            pyro.deterministic("a2", a**2)
            pair = pyro.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with data:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with school, data:
            ab = pyro.deterministic("ab", a + b + pair.sum(-1))
            pyro.sample("x", dist.Normal(ab, 1.0), obs=None if x is None else x.T)

    def guide(self, x):
        with pyro.plate("school", 3, dim=-2):
            pyro.sample("a", dist.Normal(torch.tensor([[1.0], [2.0], [3.0]]), 0.1))
            pyro.sample("pair", dist.Normal(torch.zeros(2), self.scale).to_event(1))
        with rows(x):
            pyro.sample("b", dist.Normal(x.mean(-1), 1.0))


@pytest.mark.parametrize("n", [2, 5, 7])
def test_nested_plates_and_rows_of_another_number(n):
    run = fit(Nested(), {"x": normal(20, 3)}, steps=0)
    tree = posterior(run, {"x": normal(n, 3)}, draws=400)
    draw = {"chain": 1, "draw": 400}
    assert shapes(tree, "posterior") == {
        "a": draw | {"school": 3},
        "a2": draw | {"school": 3},
        "pair": draw | {"school": 3, "pair_dim_0": 2},
        "b": draw | {"data": n},
        "ab": draw | {"school": 3, "data": n},
    }
    assert shapes(tree, "observed_data") == {"x": {"school": 3, "data": n}}
    assert tree["posterior"].coords["school"].values.tolist() == ["a", "b", "c"]
    post = {k: v.values[0] for k, v in tree["posterior"].data_vars.items()}
    draws_agree(post["a"], [1.0, 2.0, 3.0], [0.01] * 3)
    assert np.allclose(post["a2"], post["a"] ** 2)
    made = post["a"][:, :, None] + post["b"][:, None, :] + post["pair"].sum(-1)[:, :, None]
    assert np.allclose(post["ab"], made, atol=1e-5)
    loglik = stats.norm(post["ab"], 1.0).logpdf(normal(n, 3).T.numpy())
    assert np.allclose(tree["log_likelihood"]["x"].values[0], loglik, atol=1e-4)


# -- conjugate targets -----------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal", "AutoLaplaceApproximation"])
def test_a_conjugate_normal_mean_is_found(guide, tmp_path):
    exact = NormalMean().posterior(X)
    run = fit(
        NormalMean(), {"x": X}, steps=600, lr=0.05, schedule="cosine", particles=8, guide=guide, out=tmp_path / "r"
    )
    for loaded in (run, Run.load(tmp_path / "r")):
        tree = posterior(loaded, {"x": X}, draws=4000, predictive=False, prior=False)
        m = tree["posterior"]["m"].values.ravel()
        sd = float(exact.scale)
        assert abs(m.mean() - float(exact.loc)) < 4 * sd / 4000**0.5 + 0.03 * sd
        assert m.std() == pytest.approx(sd, rel=0.05)


def test_predictive_distributions():
    program, exact = GuidedNormalMean(), NormalMean().posterior(X)
    tree = posterior(program, {"x": X}, draws=4000)
    draws_agree(tree["posterior"]["m"].values[0], exact.loc, exact.variance)
    variance = float(exact.variance) + 1.5**2
    new = tree["posterior_predictive"]["x"].values[0]
    draws_agree(new[:, 0], exact.loc, variance)
    rho = np.corrcoef(new[:, 0], new[:, 1])[0, 1]  # rows share the mean of their draw
    assert abs(rho - float(exact.variance) / variance) < 4 / 4000**0.5
    draws_agree(tree["prior"]["m"].values[0], 0.0, 4.0)
    draws_agree(tree["prior_predictive"]["x"].values[0][:, 3], 0.0, 4.0 + 1.5**2)


def test_log_p_and_log_q_by_hand():
    program, q = GuidedNormalMean(width=1.3), NormalMean().posterior(X)
    tree = posterior(program, {"x": X}, draws=200)
    m = tree["posterior"]["m"].values[0].astype(float)
    log_q = stats.norm(float(q.loc), 1.3 * float(q.scale)).logpdf(m)
    loglik = stats.norm(m[:, None], 1.5).logpdf(X.numpy())
    assert np.allclose(tree["sample_stats"]["log_q"].values[0], log_q, atol=1e-3)
    assert np.allclose(tree["sample_stats"]["log_p"].values[0], stats.norm(0, 2).logpdf(m) + loglik.sum(1), atol=1e-3)
    assert np.allclose(tree["log_likelihood"]["x"].values[0], loglik, atol=1e-3)


def test_log_p_and_log_q_by_row():
    program, x = ppca(), normal(6, 4)
    tree = posterior(program, {"x": x}, draws=50)
    z = torch.as_tensor(tree["posterior"]["z"].values[0])
    exact = program.posterior(x)
    assert np.allclose(tree["sample_stats"]["log_q"].values[0], exact.log_prob(z).detach(), atol=1e-3)
    # with the posterior as guide, log p - log q is log p(x), whatever the draw
    weight = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values[0]
    assert np.allclose(weight, program.log_prob(x).detach().expand(50, 6), atol=1e-3)


class Positive(Program):
    """A latent on (0, ∞): AutoNormal draws its logarithm, and log q is a density of the latent itself."""

    def model(self, x=None):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Exponential(s), obs=x)


def test_log_weights_of_a_constrained_latent():
    x = X.abs()
    run = fit(Positive(), {"x": x}, steps=500, lr=0.05, schedule="cosine", particles=8)
    tree = posterior(run, {"x": x}, draws=2000)
    w = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values.ravel()
    a, n, total = 2.0, len(x), float(x.sum())  # the Gamma prior is conjugate
    exact = math.lgamma(a + n) - math.lgamma(a) - (a + n) * math.log(1 + total)
    found = np.logaddexp.reduce(w.astype(float)) - math.log(2000)
    assert abs(found - exact) < 4 * np.exp(w - w.max()).std() / np.exp(w - w.max()).mean() / 2000**0.5 + 1e-3
    draws = tree["posterior"]["s"].values.ravel()
    assert abs(draws.mean() - (a + n) / (1 + total)) < 0.03 * (a + n) / (1 + total)


# -- programs that run one particle at a time, or sum latents out ------------------------------------


@pytest.mark.parametrize("as_run", [True, False])
def test_a_program_whose_operations_take_no_leading_dimension(as_run):
    x, y = normal(15, 2), normal(15, seed=1)
    run = fit(GuidedRegression(), {"x": x, "y": y}, steps=0)
    tree = posterior(run if as_run else run.program, {"x": x, "y": y}, draws=400)
    assert tree["posterior"]["b"].sizes == {"chain": 1, "draw": 400, "b_dim_0": 2}
    assert tree["posterior_predictive"]["y"].sizes == {"chain": 1, "draw": 400, "data": 15}
    exact = Regression().posterior(x, y)
    b = tree["posterior"]["b"].values[0]
    draws_agree(b, exact.loc, exact.variance)
    assert np.allclose(
        tree["log_likelihood"]["y"].values[0], stats.norm(b @ x.numpy().T, 1.0).logpdf(y.numpy()), atol=1e-3
    )


def mixture(x=None):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    means = pyro.sample("means", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
    with rows(x):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[..., k], 1.0), obs=x)


def test_latents_that_were_summed_out_are_drawn_from_their_conditional():
    """Replayed in the model they would be draws from their prior, and log-probabilities given them meaningless."""
    x = torch.cat([normal(30) - 3.0, normal(30, seed=1) + 3.0])
    run = fit(Program.from_pair(mixture), {"x": x}, steps=200, lr=0.05, objective="enumerate")
    tree = posterior(run, {"x": x}, draws=300)
    assert set(tree["posterior"].data_vars) == {"means", "k"}
    means, k = tree["posterior"]["means"].values[0], tree["posterior"]["k"].values[0]
    weights = transform_to(constraints.simplex)(run.program.get_parameter("param:weights"))
    p = weights.detach().numpy()
    by_component = stats.norm(means[:, None], 1.0).logpdf(x.numpy()[:, None]) + np.log(p)
    total = np.logaddexp.reduce(by_component, -1)
    assert np.allclose(tree["log_likelihood"]["x"].values[0], total, atol=1e-4)
    log_prior = stats.norm([-3.0, 3.0], 1.0).logpdf(means).sum(-1)
    assert np.allclose(tree["sample_stats"]["log_p"].values[0], total.sum(-1) + log_prior, atol=1e-3)
    ones = np.exp(by_component[..., 1] - total)
    error = np.sqrt((ones * (1 - ones)).sum(0)) / len(k)
    assert np.all(np.abs(k.mean(0) - ones.mean(0)) < 4.5 * error + 1 / len(k)), "but for one draw of a rare value"
    right = (tree["posterior_predictive"]["x"].values > 0).mean()
    assert right == pytest.approx(0.5, abs=0.05)


# -- predictions -----------------------------------------------------------------------------------


def test_predictions_on_new_covariates(tmp_path):
    """The guide reads the coefficients off the fitted rows, which the run keeps."""
    x, y = normal(15, 2), normal(15, seed=1)
    run = fit(GuidedRegression(), {"x": x, "y": y}, steps=0, out=tmp_path / "r")
    run = Run.load(tmp_path / "r", GuidedRegression())
    new = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
    tree = predict(run, {"x": new}, draws=600)
    assert tree["predictions"]["y"].sizes == {"chain": 1, "draw": 600, "data": 3}
    assert np.array_equal(tree["predictions_constant_data"]["x"], new)
    exact = Regression().posterior(x, y)
    variance = (new @ exact.covariance_matrix @ new.T).diagonal() + 1.0
    draws_agree(tree["predictions"]["y"].values[0], new @ exact.loc, variance)


def test_observed_columns_are_not_returned_as_predictions():
    x = normal(15, 2)
    y = torch.full((3,), 1000.0)
    run = fit(Regression(), {"x": x, "y": normal(15, seed=1)}, steps=1, guide="AutoNormal")
    tree = predict(run, {"x": x[:3], "y": y}, draws=20)
    assert np.abs(tree["predictions"]["y"].values).max() < 500
    assert set(tree["predictions_constant_data"].data_vars) == {"x"}


def other_name(x):
    theta = pyro.param("theta", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(theta, 1.0), obs=x)


def other_guide(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, scale))


def test_a_site_by_another_name_than_its_column():
    run = fit(Program.from_pair(other_name, other_guide), {"x": X}, steps=0)
    tree = posterior(run, {"x": X}, draws=10)
    assert "constant_data" not in tree.children and set(tree["observed_data"].data_vars) == {"obs"}
    tree = predict(run, {"x": X}, draws=10)
    assert set(tree.children) == {"predictions"} and set(tree["predictions"].data_vars) == {"obs"}
    assert not np.allclose(tree["predictions"]["obs"].values[0, 0], X)


def test_new_schools_are_predicted_from_their_population(schools):
    run, tree = schools
    new = predict(run, {"sigma": torch.tensor([1e-3, 1e-3, 1e-3])}, draws=1000)["predictions"]["y"].values[0]
    assert new.shape == (1000, 3)
    # theta_new = mu + tau eta, eta from its prior: for each draw Var = tau²
    post = {k: v.values.ravel() for k, v in tree["posterior"].data_vars.items()}
    assert abs(new.mean() - post["mu"].mean()) < 4 * new[:, 0].std() / 500**0.5
    spread = (new[:, 0] - new[:, 1]) / 2**0.5
    assert stats.ks_2samp(spread, post["tau"] * normal(500).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("known", [True, False])
def test_a_laplace_approximation_predicts_from_the_fitted_rows(known, tmp_path):
    run = fit(NormalMean(), {"x": X}, steps=400, lr=0.05, guide="AutoLaplaceApproximation", out=tmp_path / "r")
    exact = NormalMean().posterior(X)
    new = predict(Run.load(tmp_path / "r"), {"x": X[:3]} if known else {}, draws=1000)["predictions"]["x"].values[0]
    assert run.program._autoguide is not None and new.shape == (1000, 3 if known else 1)
    draws_agree(new[:, 0], float(exact.loc), float(exact.variance) + 1.5**2)


# -- netCDF and ArviZ ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_round_trip_through_netcdf(schools, tmp_path):
    import arviz_base

    _, tree = schools
    tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    for read in (arviz_base.convert_to_datatree, xr.open_datatree):
        back = read(str(tmp_path / "posterior.nc"))
        back.load()
        assert set(back.children) == set(tree.children)
        for group in tree.children:
            xr.testing.assert_identical(back[group].to_dataset(), tree[group].to_dataset())
        assert back.attrs["inference_library"] == "ppgen"
        back.close()


@pytest.mark.filterwarnings("error")
def test_arviz_stats_on_the_tree(schools):
    import arviz_stats

    _, tree = schools
    table = arviz_stats.summary(tree, kind="stats", round_to="none")
    assert list(table.index)[:3] == ["mu", "tau", "eta[A]"]
    assert table.loc["mu", "mean"] == pytest.approx(float(tree["posterior"]["mu"].mean()), rel=1e-5)
    hdi = arviz_stats.hdi(tree, prob=0.5)
    assert float(hdi["mu"][0]) < float(tree["posterior"]["mu"].median()) < float(hdi["mu"][1])
    conjugate = posterior(GuidedNormalMean(), {"x": X}, draws=2000)
    loo = arviz_stats.loo(conjugate, reff=1.0)  # independent draws
    assert loo.n_data_points == 20 and loo.elpd == pytest.approx(exact_loo(), abs=0.05)


def exact_loo():
    """Σ_i log p(x_i | the others) of the conjugate model."""
    left = [NormalMean().posterior(torch.cat([X[:i], X[i + 1 :]])) for i in range(len(X))]
    return sum(
        stats.norm(float(m.loc), math.sqrt(float(m.variance) + 1.5**2)).logpdf(float(x))
        for m, x in zip(left, X, strict=True)
    )


@pytest.mark.filterwarnings("error")
def test_loo_of_the_guide_corrects_for_the_guide():
    """`loo_approximate_posterior` reads log_p and log_q: elpd of a conjugate model is known."""
    import arviz_stats

    program = GuidedNormalMean(width=1.15)
    tree = posterior(program, {"x": X}, draws=4000)
    stats_ = tree["sample_stats"]
    found = arviz_stats.loo_approximate_posterior(tree, log_p=stats_["log_p"], log_q=stats_["log_q"])
    assert found.elpd == pytest.approx(exact_loo(), abs=0.05)


@pytest.mark.filterwarnings("error::UserWarning")
def test_arviz_plots_on_the_tree(schools):
    import arviz_plots
    import matplotlib.pyplot as plt

    _, tree = schools
    arviz_plots.plot_dist(tree, var_names=["mu", "tau"], backend="matplotlib")
    arviz_plots.plot_forest(tree, var_names=["theta"], backend="matplotlib")
    arviz_plots.plot_ppc_dist(tree, backend="matplotlib")
    arviz_plots.plot_prior_posterior(tree, var_names=["mu"], backend="matplotlib")
    plt.close("all")


# -- refused ---------------------------------------------------------------------------------------


def out_of_support():
    return fit(VAE(6, 2, (8,)), {"x": binary()}, steps=1)


@pytest.mark.parametrize(
    "make, data, draws, message",
    [
        (ppca, {"x": normal(4, 4)}, 1, "draws is 1"),
        (ppca, {"x": normal(4, 4), "w": normal(4)}, 5, "column 'w'"),
        (ppca, {"x": torch.full((4, 4), math.nan)}, 5, "NaN"),
        (ppca, {"x": normal(4, 3)}, 5, "PPCA failed on a batch"),
        (out_of_support, {"x": torch.cat([binary(3, 6), torch.full((1, 6), 0.5)])}, 5, "Bernoulli"),
        (lambda: fit(EightSchools(), SCHOOLS, steps=1), {k: v[:5] for k, v in SCHOOLS.items()}, 5, "these data have 5"),
        (lambda: fit(EightSchools(), SCHOOLS, steps=1), {"sigma": SCHOOLS["sigma"]}, 5, "no observed site"),
    ],
)
def test_what_has_no_posterior_is_said(make, data, draws, message):
    with pytest.raises(PpgenError, match=message):
        posterior(make(), data, draws=draws)


def test_nothing_latent_has_no_posterior():
    from known import Gaussian

    with pytest.raises(PpgenError, match="no latent to infer"):
        posterior(Gaussian(), {"x": X})


def test_what_cannot_be_predicted_is_said():
    run = fit(EightSchools(), SCHOOLS, steps=1)
    with pytest.raises(PpgenError, match="needs the column 'sigma'"):
        predict(run, {})
    with pytest.raises(PpgenError, match="column 'sgma'.*did you mean 'sigma'"):
        predict(run, SCHOOLS | {"sgma": torch.ones(8)})
    with pytest.raises(PpgenError, match="draws is 0"):
        predict(run, SCHOOLS, draws=0)


def test_a_laplace_approximation_where_the_fit_is_at_no_mode_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z**2, 0.1), obs=x)

    run = fit(Program.from_pair(model), {"x": torch.tensor(4.0)}, steps=1, guide="AutoLaplaceApproximation")
    with pytest.raises(PpgenError, match="not concave there.*more steps"):
        posterior(run, {"x": torch.tensor(4.0)}, draws=4)


@pytest.mark.parametrize("name", ["chain", "draw", "x", "a/x"])
def test_latents_that_are_called_as_dimensions_or_columns_are_in_the_tree(name):
    def model(x, y):
        slope = pyro.sample(name, dist.Normal(0.0, 1.0))
        with pyro.plate("draw" if name == "chain" else "chain", 2):
            pyro.sample("two", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    data = {"x": X, "y": 2 * X}
    run = fit(Program.from_pair(model), data, guide="AutoNormal", steps=0)
    tree = posterior(run, data, draws=10)
    assert dict(tree["posterior"][name_in(tree, name)].sizes) == {"chain": 1, "draw": 10}
    assert dict(tree["constant_data"]["x"].sizes) == {"data": len(X)}
    assert 2 in tree["posterior"]["two"].shape


def test_rows_in_a_sequential_plate_are_all_observed_data():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        for i in pyro.plate("rows", len(y)):
            pyro.factor(f"f_{i}", -0.1 * m**2)
            pyro.sample(f"y_{i}", dist.Normal(m, 1.0), obs=y[i])

    run = fit(model, {"y": X[:4]}, steps=1, guide="AutoNormal", engine="eager")
    tree = posterior(run, {"y": X[:4]}, draws=2, predictive=False, prior=False)
    observed = tree["observed_data"].to_dataset()
    assert [float(observed[f"y_{i}"]) for i in range(4)] == X[:4].tolist()
    assert len(tree["log_likelihood"].data_vars) == 4
