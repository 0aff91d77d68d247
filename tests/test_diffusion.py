"""The diffusion model: its likelihoods, networks, labels, and the ends of what it can be asked."""

import json
import math

import numpy as np
import pytest
import torch
from known import KnownChain, binary, grey, normal, subsampled
from typer.testing import CliRunner

from ppgen import PpgenError, Run, cli
from ppgen.chains.gaussian_chain import PROCESSES
from ppgen.inference import diagnose, fit, loglik, posterior, predict, sample
from ppgen.inference.diffusion.elbo_decomposition import chain_elbo, elbo_decomposition
from ppgen.inference.diffusion.path_weights import chain_weights
from ppgen.inference.diffusion.samplers import SAMPLERS, sample_diffusion
from ppgen.models import VAE, Diffusion, FlowMatching, MaskedDiffusion


def trained(x, updates=400, **options):
    torch.manual_seed(0)
    return fit(Diffusion(x.shape[1], hidden=(32, 32), **options), {"x": x}, steps=updates, lr=0.005, batch_size=64)


def test_it_learns_a_gaussian():
    known = KnownChain()
    x = known.data.sample((2000,)).float()
    run = trained(x, 1200, steps=0)
    found = loglik(run, {"x": known.data.sample((500,)).float()}, particles=50)
    assert found.best.kind == "lower" and found.dims is None
    assert -float(known.data.entropy()) - 0.25 < found.best.mean < -float(known.data.entropy()) + 0.15
    drawn = sample_diffusion(run, 2000, "dpmpp", 25, seed=0)
    assert ((drawn.mean(0) - x.mean(0)).abs() < 0.15).all() and ((drawn.std(0) / x.std(0) - 1).abs() < 0.15).all()


def test_the_elbo_by_strata_is_that_of_the_closed_form():
    """With so many rows, 4.5 standard errors are below 2% of what the steps cost."""
    known = KnownChain(steps=20, low=-5.0)
    x = known.data.sample((100_000,))
    steps = -float(known.expected_terms()["steps"].sum())
    for times in (20, 7):
        found = chain_elbo(known, {"x": x}, times=times).best
        assert abs(found.mean - known.expected_elbo()) < 4.5 * found.rows_se < 0.02 * steps
    assert chain_elbo(known, {"x": x[:5]}, times=100).particles == 20  # the whole chain, once


def test_the_ledger_keeps_the_terms_apart():
    """With so many rows, five standard errors of each interval are below 2% of it."""
    known = KnownChain(steps=10)
    x = known.data.sample((120_000,))
    found, exact = elbo_decomposition(known, {"x": x}), known.expected_terms()
    assert found.kl.shape == (10,) and found.dims is None
    assert (5 * found.kl_se < 0.02 * found.kl).all()
    assert (abs(found.kl + exact["steps"].numpy()) < 5 * found.kl_se).all()
    assert abs(found.prior + float(exact["prior"])) < 5 * found.prior_se
    assert abs(found.reconstruction + float(exact["data"])) < 5 * found.reconstruction_se
    assert found.bits_per_dim(1.0) is None


def test_the_standard_errors_of_the_ledger():
    known, n = KnownChain(steps=10), 40_000
    found = elbo_decomposition(known, {"x": known.data.sample((n,))})
    exact = {name: sd.numpy() / n**0.5 for name, sd in known.term_deviations().items()}
    assert found.kl_se == pytest.approx(exact["steps"], rel=0.05)
    assert found.prior_se == pytest.approx(exact["prior"].item(), rel=0.05)
    assert found.reconstruction_se == pytest.approx(exact["data"].item(), rel=0.03)
    assert found.elbo_se == pytest.approx(math.sqrt(sum((sd**2).sum() for sd in exact.values())), rel=0.05)


def test_the_standard_error_of_a_chains_elbo():
    """Over seeds, of rows one by one. The strata differ so little here that it is the spread between all terms."""
    known = KnownChain(steps=50, schedule="loglinear", low=-0.1, high=0.1)
    x = known.data.sample((1000,))
    found = [loglik(known, {"x": x}, particles=50, seed=s).best for s in range(20)]
    spread = np.stack([b.values for b in found]).var(0, ddof=1).mean()
    assert spread / np.stack([b.se**2 for b in found]).mean() == pytest.approx(1.0, abs=0.05)


def test_bits_of_the_ledger_are_of_base_two_and_by_value():
    found = elbo_decomposition(Diffusion(3, hidden=(8,), likelihood="discrete", levels=17), {"x": grey(12, 3)})
    assert found.dims == 3
    assert found.bits_per_dim(3 * math.log(17)) == pytest.approx(math.log2(17))


def test_more_steps_and_the_limit():
    """On Gaussian data the bound is known: it rises with the steps, to the limit, to log p(x)."""
    known = KnownChain(low=-8.0, high=12.0)
    elbos = [known.expected_elbo(n) for n in (10, 100, 1000, 10_000, 0)]
    gaps = [elbos[-1] - e for e in elbos[1:-1]]
    assert elbos == sorted(elbos) and gaps[1] / gaps[2] == pytest.approx(10, rel=0.1) and gaps[2] < 0.02
    assert elbos[-1] == pytest.approx(-float(known.data.entropy()), abs=2e-3)


def test_frequent_levels_are_atoms():
    x = torch.arange(1020).reshape(170, 6) % 17 / 16
    x[:40, :3] = 15 / 16
    arguments = Diffusion.from_data({"x": x})
    assert arguments["atoms"] == [0, 15, 16] and "atoms" not in FlowMatching.from_data({"x": x})
    assert "atoms" not in Diffusion.from_data({"x": torch.linspace(0, 1, 17).repeat(2, 1)})
    run = fit(Diffusion(**arguments, hidden=(16,), steps=5), {"x": x}, steps=2)
    assert torch.isfinite(torch.tensor(loglik(run, {"x": x[:5]}, particles=2).best.mean))


@pytest.mark.parametrize("likelihood", ["bernoulli", "discrete"])
@pytest.mark.parametrize("prediction", ["levels", "velocity"])
def test_levels(likelihood, prediction):
    x = binary(12, 6) if likelihood == "bernoulli" else grey(12, 6)
    model = Diffusion(6, hidden=(16,), likelihood=likelihood, levels=17, prediction=prediction)
    run = fit(model, {"x": x}, steps=3)
    found = loglik(run, {"x": x}, particles=5)
    assert found.dims == 6 and found.bits_per_dim(found.best) > 0
    drawn = sample_diffusion(run, 5, "ddim", 4, seed=0)
    assert torch.isin((drawn * 16).round().long(), torch.arange(17)).all()
    both = loglik(run, {"x": x[:2]}, particles=3, ode=True)
    assert [b.name for b in both.bounds] == ["elbo", "ode"] and both.best.kind == "lower"


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("prediction", ["data", "noise", "velocity", "flow"])
def test_a_network_that_knows_gives_the_data(prediction, process):
    """What each prediction is of, at the unit-variance state h = a x + s ε: x, ε, v = a ε − s x, ε − x."""
    torch.manual_seed(0)
    model = Diffusion(2, hidden=(8,), prediction=prediction, process=process).double().eval()
    x, noise, t = normal(4, 2).double(), normal(4, 2, seed=1).double(), torch.tensor([0.1, 0.4, 0.6, 0.9]).double()
    gamma, alpha, sigma = model.coefficients(t)
    a, s = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    target = {"data": x, "noise": noise, "velocity": a * noise - s * x, "flow": noise - x}[prediction]
    model.net.forward = lambda *_: target
    torch.testing.assert_close(model.denoise(alpha * x + sigma * noise, t), x)


def test_the_likelihood_has_the_noise_of_the_last_state():
    """z_0 / α_0 has noise of sd e^(γ/2) in the chain's units: normal in those of the data, Bayes' rule on levels."""
    z = normal(5, 2).double()
    model = Diffusion(2, hidden=(8,), loc=[3.0, -1.0], scale=[2.0, 5.0], gamma_low=-2.0).double().eval()
    _, alpha, _ = model.coefficients(0.0)
    expected = torch.distributions.Normal(
        torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 5.0]) * z / alpha, torch.tensor([2.0, 5.0]) * math.exp(-1.0)
    )
    x = normal(5, 2, seed=1).double()
    torch.testing.assert_close(model.likelihood(z).log_prob(x), expected.log_prob(x).sum(-1))
    coins = Diffusion(2, hidden=(8,), likelihood="bernoulli", gamma_low=-1.0).double().eval()
    _, alpha, _ = coins.coefficients(0.0)
    odds = sum(s * -((z / alpha - s) ** 2) / (2 * math.exp(-1.0)) for s in (1, -1))
    torch.testing.assert_close(coins.likelihood(z).base_dist.logits, odds)


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_edm_is_that_of_karras(process):
    """D(y; σ) = c_skip y + c_out F(c_in y) with σ_data = 0.5 in their table 1, y = z / α = x + σ ε."""
    torch.manual_seed(0)
    data, fed = 0.5, []
    model = Diffusion(2, hidden=(8,), prediction="edm", data_scale=data, process=process).double().eval()
    answer = normal(4, 2, seed=5).double()
    model.net.forward = lambda h, *_: (fed.append(h), answer)[1]
    z, t = normal(4, 2).double(), torch.tensor([0.1, 0.4, 0.6, 0.9]).double()
    gamma, alpha, _ = model.coefficients(t)
    y, sigma = z / alpha, (gamma / 2).exp()
    total = sigma**2 + data**2
    torch.testing.assert_close(model.denoise(z, t), data**2 / total * y + sigma * data / total.sqrt() * answer)
    torch.testing.assert_close(fed[0], y / total.sqrt())


def test_labels_are_hidden_in_training_only():
    model = Diffusion(3, hidden=(8,), classes=3, label_dropout=0.5, steps=20)
    y = torch.arange(2000) % 3
    hidden = model.hide({"y": y}, y)["y"]
    assert 850 < int((hidden == 3).sum()) < 1150 and torch.equal(hidden[hidden < 3], y[hidden < 3])
    assert torch.equal(model.context({"y": y})["y"], y)
    assert sample(fit(model, {"x": normal(12, 3), "y": y[:12]}, steps=1, batch_size=6), 2, seed=0, given={"y": 1})


def test_few_labels_are_hidden_where_few_are_asked_for():
    """At a label_dropout of a half the share and what it leaves are one."""
    y = torch.arange(20_000) % 3
    hidden = Diffusion(3, hidden=(8,), classes=3, label_dropout=0.1).hide({"y": y}, y)["y"] == 3
    assert abs(float(hidden.double().mean()) - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)


@pytest.mark.parametrize("gamma_low", [-2.0, -4.0, -6.0])
def test_no_level_is_left_out_of_the_likelihood(gamma_low):
    """However wide the noise at t = 0 is, the probabilities of the 17 levels sum to 1 and are those of all levels."""
    model = Diffusion(1, hidden=(8,), likelihood="discrete", levels=17, gamma_low=gamma_low).double()
    z, x = torch.linspace(-1.2, 1.2, 9).double()[:, None, None], torch.linspace(0, 1, 17).double()[:, None]
    log_p = model.likelihood(z).log_prob(x)  # (states, levels)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(9).double(), atol=1e-7)
    _, alpha, sigma = model.coefficients(0.0)
    weight = -0.5 * ((2 * x[:, 0] - 1 - z[:, 0] / alpha) * alpha / sigma) ** 2  # values in [0, 1], states in [-1, 1]
    assert torch.allclose(log_p, weight.log_softmax(-1), atol=1e-6)


# -- the ends of what it can be asked ------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 9, 1000])
def test_any_number_of_steps(steps):
    run = trained(normal(50, 2), 3, steps=steps)
    assert math.isfinite(loglik(run, {"x": normal(5, 2)}, particles=4).best.mean)
    for sampler in SAMPLERS.keys() - {"consistency"}:  # of what `distil` makes alone
        for n in (1, 3):
            assert torch.isfinite(sample_diffusion(run, 4, sampler, n, seed=0)).all(), (sampler, n)


@pytest.mark.slow
def test_a_thousand_steps_of_each_sampler():
    run = trained(normal(50, 2), 3)
    for sampler in SAMPLERS.keys() - {"consistency"}:
        assert torch.isfinite(sample_diffusion(run, 2, sampler, 1000, seed=0)).all(), sampler


def test_one_datum_and_a_constant_column():
    one = trained(normal(1, 2), 3)
    assert math.isfinite(loglik(one, {"x": normal(1, 2)}, particles=4).best.mean)
    x = torch.cat([normal(20, 1), torch.full((20, 1), 3.0)], 1)
    assert math.isfinite(loglik(trained(x, 3), {"x": x}, particles=4).best.mean)


def test_a_schedule_that_saturates_says_so():
    with pytest.raises(PpgenError, match="saturates.*float64"):
        fit(Diffusion(2, hidden=(8,), steps=10_000, gamma_high=-9.999), {"x": normal(4, 2)}, steps=1)


def test_float64_and_back(tmp_path):
    x = normal(20, 2).double()
    run = fit(Diffusion(2, hidden=(8,), steps=30), {"x": x}, steps=2, precision="64-true", out=tmp_path / "run")
    again = Run.load(tmp_path / "run")
    a, b = (sample_diffusion(r, 3, "heun", 4, seed=0) for r in (run, again))
    assert a.dtype == torch.float64 and torch.equal(a, b)


def test_its_figure_is_the_bound_whatever_is_trained_on():
    x = normal(64, 2)
    run = trained(x, 5, weighting="simple", steps=0)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([subsampled(run.program, {"x": x}, 50).elbo.mean() for _ in range(40)])
    found, se = loglik(run, {"x": x}, particles=2000).best, float(drawn.std()) / 40**0.5
    assert abs(found.mean - float(drawn.mean())) < 4.5 * math.hypot(se, found.mean_se)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prediction": "velocty"}, "prediction='velocty'.*velocity"),
        ({"weighting": "simple", "schedule": "learned"}, "no bound"),
        ({"prediction": "levels"}, "continuous data"),
        ({"atoms": [0, 256]}, "different levels from 0 to 255"),
        ({"steps": -1}, "steps=-1"),
        ({"label_dropout": 1.0}, "label_dropout=1.0"),
        ({"data_scale": 0.0}, "data_scale=0.0"),
        ({"features": 6, "net": "unet"}, "UNet got shape"),
        ({"loc": [0.0, 1.0, 2.0], "scale": [1.0, 1.0]}, "loc of 3 numbers"),
    ],
)
def test_errors(how, message):
    with pytest.raises(PpgenError, match=message):
        Diffusion(**({"features": 2, "hidden": (8,)} | how))


def test_its_states_are_no_posterior_to_summarise():
    run = trained(normal(50, 2), 1)
    for ask in (diagnose, posterior, predict):
        with pytest.raises(PpgenError, match="1001 states.*ppgen plot"):
            ask(run, {"x": normal(5, 2)})


def test_errors_of_data():
    model = Diffusion(3, hidden=(8,), classes=2, label_dropout=0.0)
    with pytest.raises(PpgenError, match="conditional on the labels"):
        sample_diffusion(model, 2, "ddim", 2)
    with pytest.raises(PpgenError, match="'y' of Diffusion has 2 in row 2.*from 0 to 1"):
        fit(model, {"x": normal(6, 3), "y": torch.arange(6)}, steps=1)
    with pytest.raises(PpgenError, match="has 7 in row 0"):
        sample_diffusion(model, 2, "ddim", 2, given={"y": 7})
    with pytest.raises(PpgenError, match="rows of 3 values"):
        loglik(Diffusion(3, hidden=(8,)), {"x": normal(6, 4)}, particles=2)


# -- the command line --------------------------------------------------------------------------------


def test_fit_sample_and_evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=normal(60, 2).numpy(), y=np.arange(60) % 2)
    runner = CliRunner()

    def say(*words: str) -> str:
        done = runner.invoke(cli.app, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    how = ["--set", "hidden=[8]", "--set", "classes=2", "--steps", "30", "--log-every", "10", "-q"]
    say("fit", "diffusion", "--data", "data.npz", *how, "--out", "run")
    options = ["--sampler", "heun", "--steps", "3", "--given", "y=1", "--guidance", "2"]
    said = json.loads(say("sample", "run", "-n", "5", *options, "--out", "x.npz", "--json"))
    assert said["sites"] == {"x": [5, 2]} and np.load("x.npz")["x"].shape == (5, 2)
    bounds = json.loads(say("evaluate", "run", "--particles", "4", "--ode", "--json"))["bounds"]
    assert [(b["name"], b["kind"]) for b in bounds] == [("elbo", "lower"), ("ode", "exact")]


@pytest.mark.parametrize("family", [Diffusion, VAE])
def test_labels_that_no_row_has_are_said(family, caplog):
    """Draws given one were by an embedding that nothing had trained."""
    x, y = normal(4, 2), torch.tensor([0, 2, 0, 2])
    family(2, classes=3, hidden=(4,)).prepare({"x": x, "y": y})
    assert "no row has the label 1 of the column 'y'" in caplog.text
    caplog.clear()
    family(2, classes=3, hidden=(4,)).prepare({"x": x[:3], "y": torch.arange(3)})
    family(2, hidden=(4,)).prepare({"x": x, "y": y})
    assert not caplog.text


def test_classes_without_labels_are_said(caplog):
    Diffusion(2, classes=3, hidden=(4,)).prepare({"x": normal(4, 2)})
    assert "the data no column y: it learns x alone" in caplog.text


@pytest.mark.parametrize("bad", [0.5, 3.0, -1.0])
@pytest.mark.parametrize(
    "program",
    [
        Diffusion(2, hidden=(4,), likelihood="discrete", levels=3, high=2.0, prediction="levels"),
        Diffusion(2, hidden=(4,), likelihood="bernoulli"),
        MaskedDiffusion(2, hidden=(4,), levels=3, high=2.0),
    ],
    ids=["discrete", "bernoulli", "masked"],
)
def test_values_that_x_cannot_have_have_no_log_probability(program, bad):
    """Of 3 on the grid 0, 1, 2 log P was 13.4, above 0; one half on it had a figure as well."""
    x = {"x": torch.tensor([[0.0, 1.0], [1.0, bad]])}
    for ask in (loglik, chain_elbo, elbo_decomposition, chain_weights):
        with pytest.raises(PpgenError, match=f"the observed site 'x' .* the data have {bad:g} "):
            ask(program, x)
    assert loglik(program, {"x": torch.tensor([[0.0, 1.0]])}, particles=3).dims == 2
