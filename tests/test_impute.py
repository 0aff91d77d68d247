"""Missing values, on a Gaussian, whose conditionals are known."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from known import KnownChain, draws_agree, normal
from typer.testing import CliRunner

from ppgen import PpgenError, cli
from ppgen.inference.diffusion.impute import _resampled, impute
from ppgen.models import Diffusion


def conditional(known, value):
    """Mean and variance of x[1] given x[0]."""
    c = known.data.covariance_matrix
    return known.mean[1] + c[1, 0] / c[0, 0] * (value - known.mean[0]), c[1, 1] - c[1, 0] ** 2 / c[0, 0]


@pytest.mark.parametrize("value", [pytest.param(-1.0, marks=pytest.mark.slow), 2.5])
def test_the_conditional_of_a_gaussian(value):
    """Over runs of 64 particles, one draw of each: independent draws of the conditional."""
    known = KnownChain()
    x = torch.tensor([[value, math.nan]]).double().repeat(2000, 1)
    drawn = impute(known, x, particles=64, steps=100, seed=0)[0]
    assert (drawn[:, 0] == value).all()
    mean, var = conditional(known, value)
    draws_agree(drawn[:, 1], mean, var)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "ot"])
def test_the_conditional_whatever_the_schedule(schedule):
    """At steps that are even in time those of DDPM's schedule gave 2.7 times the variance."""
    known = KnownChain(factor=((1.0, 0.0), (0.8, 0.6)), schedule=schedule)
    drawn = impute(known, torch.tensor([[2.5, math.nan]]).double().repeat(300, 1), draws=20, particles=100, seed=0)
    mean, var = conditional(known, 2.5)
    off = (drawn[..., 1] - mean) / var.sqrt()
    assert 0.94 < float(off.square().mean()) < 1.06  # of 300 rows of 20 draws: 0.018 (between rows)
    assert float(off.mean(0).std()) < 0.3  # 0.22 if independent


def test_setting_the_known_values_without_weights_would_not_do():
    """One particle has no weights: the draw then ignores much of what the known value says."""
    known = KnownChain()
    x = torch.tensor([[2.5, math.nan]]).double().repeat(2000, 1)
    drawn = impute(known, x, particles=1, steps=120, seed=0)[0]
    assert abs(float(drawn[:, 1].mean() - conditional(known, 2.5)[0])) > 0.1


def test_each_step_weighs_a_particle_by_what_it_foresaw(monkeypatch):
    """log w grows by log q(z_s,known | z_t, x̂) at x̂ extrapolated to the middle of the step, no more and no less."""
    module, known, steps = import_module("ppgen.inference.diffusion.impute"), KnownChain(low=-4.0, high=4.0), []
    monkeypatch.setattr(module, "_resampled", lambda z, log_w: (steps.append((z, log_w)), (z, log_w))[1])
    impute(known, torch.tensor([[1.5, math.nan], [math.nan, 0.2]]).double(), particles=5, steps=6, seed=0)
    seen = torch.tensor([[True, False], [False, True]])
    grid = known.sampling_grid(6)  # even in log-SNR: the middle is half a step ahead. The last is of first order
    for i, ((z, before), (below, after), (s, t)) in enumerate(zip(steps, steps[1:], grid[1:], strict=False)):
        (z, earlier), below = z.chunk(2, -1), below[..., :2]
        now = known.denoise(z, t)
        x = now + (now - earlier) / 2 if i < 4 else now
        (_, alpha_s, sigma_s), (_, alpha, sigma) = known.coefficients(s), known.coefficients(t)
        kept = (sigma_s * alpha / (sigma * alpha_s)) ** 2
        mean = kept * alpha_s / alpha * z + alpha_s * (1 - kept) * x
        foreseen = torch.distributions.Normal(mean, sigma_s * (1 - kept).sqrt()).log_prob(below)[:, seen]
        torch.testing.assert_close(after - before, foreseen.detach())


def test_particles_are_resampled_by_their_weights():
    """Systematic resampling: of w K copies each, the whole number below or above; where most count, none."""
    k, names = 1000, torch.arange(1000.0).double()
    log_w = torch.stack([3 * normal(k, seed=1), 0.1 * normal(k, seed=2)], -1).double()
    torch.manual_seed(0)
    z, after = _resampled(names[:, None, None].expand(k, 2, 1), log_w)
    copies = torch.bincount(z[:, 0, 0].long(), minlength=k)
    wanted = k * log_w[:, 0].softmax(0)
    assert ((copies >= wanted.floor() - 1e-9) & (copies <= wanted.ceil() + 1e-9)).all() and (after[:, 0] == 0).all()
    assert torch.equal(z[:, 1, 0], names) and torch.equal(after[:, 1], log_w[:, 1])


def test_nothing_missing_and_everything_missing():
    known = KnownChain()
    x = known.data.sample((2000,))
    assert torch.equal(impute(known, x, particles=2, steps=5)[0], x)
    drawn = impute(known, x, [False, False], particles=2, steps=200, seed=1)[0]
    draws_agree(drawn, known.mean, known.data.variance)


def test_several_draws_of_a_row():
    known = KnownChain()
    x = torch.tensor([[0.0, math.nan], [math.nan, 1.0]]).double()
    drawn = impute(known, x, draws=5, particles=8, steps=10, seed=0)
    assert drawn.shape == (5, 2, 2) and (drawn[:, 0, 0] == 0).all() and (drawn[:, 1, 1] == 1).all()
    assert len(drawn[:, 0, 1].unique()) == 5


def test_as_many_draws_as_particles_are_draws_by_their_weights():
    """Taken without replacement they were all of the particles, of whatever weight: 0.17 sd off."""
    known, rows = KnownChain(), 400
    drawn = impute(known, torch.tensor([[2.5, math.nan]]).double().repeat(rows, 1), draws=16, particles=16, seed=0)
    mean, var = conditional(known, 2.5)
    means = drawn[..., 1].mean(0)
    # of 16 particles a bias of 1/16 of what one alone has is left
    assert abs(float(means.mean() - mean)) < 0.05 * float(var.sqrt()) + 3 * float(means.std()) / rows**0.5


def test_errors():
    known = KnownChain()
    with pytest.raises(PpgenError, match="draws is 9, particles 4"):
        impute(known, torch.zeros(1, 2).double(), draws=9, particles=4)
    with pytest.raises(PpgenError, match=r"known has the shape \(3,\)"):
        impute(known, torch.zeros(1, 2).double(), [True, False, True])


def test_a_known_value_that_x_cannot_have():
    torch.manual_seed(0)
    model = Diffusion(2, hidden=(4,), likelihood="discrete", levels=5, prediction="levels", steps=4)
    x = torch.tensor([[0.25, math.nan]])
    drawn = impute(model, x, draws=3, particles=4, steps=3, seed=0)
    assert (drawn[..., 0] == 0.25).all() and torch.isin(drawn[..., 1] * 4, torch.arange(5.0)).all()
    with pytest.raises(PpgenError, match="value 0 of row 0 of x is 0.3, outside"):
        impute(model, torch.tensor([[0.3, math.nan]]), steps=3)


# -- the same from the shell ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: columns a and b of a table as x; x with a label y."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    a = torch.randn(60)
    lines = [f"{float(v)},{float(v) + 0.1 * float(e)}" for v, e in zip(a, torch.randn(60), strict=True)]
    (folder / "table.csv").write_text("\n".join(["a,b", *lines]))
    fit("diffusion", "table.csv", "--columns", "x=a+b", "--out", "plain", *SMALL, where=folder)
    np.savez(folder / "labelled.npz", x=torch.randn(60, 2).numpy(), y=torch.randint(0, 3, (60,)).numpy())
    fit("diffusion", "labelled.npz", "--set", "classes=3", "--out", "labelled", *SMALL, where=folder)
    return folder


SMALL = ("--set", "hidden=[8]", "--set", "steps=20", "--steps", "4", "--quiet")


def fit(model, data, *options, where):
    call("fit", model, "--data", where / data, *(where / o if o in ("plain", "labelled") else o for o in options))


def call(*words, code=0):
    result = CliRunner().invoke(cli.app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.stdout + result.stderr


@pytest.mark.parametrize("head", ["a,b", "x_0,x_1"])
def test_a_table_with_gaps(runs, tmp_path, head):
    (tmp_path / "gaps.csv").write_text(f"{head}\n0.5,\n,1.25\n-1,2\n")
    out = tmp_path / "filled.csv"
    how = ("--steps", 5, "--particles", 4, "--out", out)
    said = call("sample", runs / "plain", "--given", tmp_path / "gaps.csv", "-n", 2, *how)
    assert "6 draws of x" in said
    rows = np.loadtxt(out, delimiter=",", skiprows=1)
    assert out.read_text().startswith("x_0,x_1\n") and np.isfinite(rows).all()
    assert rows[[0, 1], 0].tolist() == [0.5, 0.5] and rows[[2, 3], 1].tolist() == [1.25, 1.25]
    assert rows[[4, 5]].tolist() == [[-1.0, 2.0]] * 2
    call("sample", runs / "plain", "--given", tmp_path / "gaps.csv", "--steps", 5, "--out", out)
    assert len(np.loadtxt(out, delimiter=",", skiprows=1)) == 3  # once each
    figure = tmp_path / "filled.png"
    call("sample", runs / "plain", "--given", tmp_path / "gaps.csv", "-n", 20, *how[:2], "--out", figure)
    assert figure.stat().st_size > 1000


def test_gaps_with_a_label(runs, tmp_path):
    np.savez(tmp_path / "gaps.npz", x=np.array([[0.5, np.nan]]))
    out = tmp_path / "filled.npz"
    given = ("--given", tmp_path / "gaps.npz")
    call("sample", runs / "labelled", *given, "--given", "y=2", "-n", 3, "--steps", 4, "--out", out)
    assert np.load(out)["x"].shape == (3, 2)
    call("sample", runs / "labelled", "--given", "y=2", "--guidance", 2, "--steps", 4, "--out", out, "-n", 5)
    assert np.load(out)["x"].shape == (5, 2)


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("a,b\n1,2\n", (), "no cell of the x in --given is empty"),
        ("a,b\n1,\n", ("--sampler", "ddim"), "--sampler has no part in filling in"),
        ("a,b\n1,\n", ("-n", 9, "--particles", 4), "draws is 9, particles 4"),
        ("a,b\n1,\n", ("--particles", 4, "--steps", 0), "steps of at least 1"),
        ("a,c\n1,\n", (), "'b'"),
        (None, ("--particles", 4), "--given holds no x"),
    ],
)
def test_bad_words(runs, tmp_path, text, words, says):
    if text is not None:
        (tmp_path / "gaps.csv").write_text(text)
        words = ("--given", tmp_path / "gaps.csv", *words)
    assert says in call("sample", runs / "plain", *words, "--out", tmp_path / "x.npz", code=2)


def test_a_table_of_other_columns(runs, tmp_path):
    (tmp_path / "gaps.csv").write_text("u,v\n1,\n")
    said = call("sample", runs / "labelled", "--given", tmp_path / "gaps.csv", "--out", tmp_path / "x.npz", code=2)
    assert "has the columns u, v" in said and "x_0 to x_1" in said
