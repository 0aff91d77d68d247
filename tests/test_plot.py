"""Pictures: which are made for which program, and that they show the figures that they say."""

import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
from matplotlib.image import imread
from pyro.distributions import Bernoulli, Normal
from torch import nn, tensor

import ppgen
from ppgen.inference import diagnose, fit, plot
from ppgen.inference import sample as draw
from ppgen.inference.report.figures import save
from ppgen.inference.report.interpolation import interpolation_figure
from ppgen.inference.report.plot import GOOD_K, elbo_figure, khat_figure, latent_figure, reconstructions_figure
from ppgen.inference.report.sample_plots import samples_figure
from ppgen.models import EightSchools

matplotlib.use("agg")


class Linear(ppgen.Program):
    """z ~ N(0, I), x | z by a linear decoder: bits of an image, or reals."""

    def __init__(self, features: int, latent: int = 2, bits: bool = False):
        super().__init__()
        self.latent, self.bits = latent, bits
        self.decoder, self.encoder = nn.Linear(latent, features), nn.Linear(features, 2 * latent)
        self.log_scale = nn.Parameter(tensor(0.0))

    def model(self, x=None):
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(torch.zeros(self.latent), 1.0).to_event(1))
            loc = self.decoder(z)
            d = Bernoulli(logits=loc + 0 * self.log_scale) if self.bits else Normal(loc, self.log_scale.exp())
            return pyro.sample("x", d.to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with ppgen.rows(x):
            pyro.sample("z", Normal(loc, log_scale.exp()).to_event(1))


class Gaussian(ppgen.Program):
    """x ~ N(m, s): nothing is latent. Its column has another name than its site."""

    def __init__(self):
        super().__init__()
        self.m, self.log_s = nn.Parameter(tensor(0.0)), nn.Parameter(tensor(0.0))

    def model(self, heights=None):
        with ppgen.rows(heights):
            return pyro.sample("x", Normal(self.m, self.log_s.exp()), obs=heights)


@pytest.fixture(scope="module")
def points():
    """Points of a plane, fitted with held-out rows followed."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * tensor([2.0, 0.5]) + 1.0
    data, valid = {"x": x[:150]}, {"x": x[150:]}
    return fit(Linear(2), data, valid=valid, steps=300, lr=0.02, log_every=10, seed=0), data


@pytest.fixture(scope="module")
def images():
    x = (torch.rand(60, 64, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    data = {"x": x}
    return fit(Linear(64, latent=3, bits=True), data, steps=20, log_every=5, seed=0), data


@pytest.fixture(scope="module")
def schools():
    data = ppgen.data.load("eight_schools")
    return fit(EightSchools(), data, steps=100, lr=0.05, log_every=10, seed=0), data


@pytest.fixture(scope="module")
def gaussian():
    data = {"heights": torch.linspace(-1.0, 3.0, 50)}
    return fit(Gaussian(), data, steps=20, log_every=5, seed=0), data


def labels(figure):
    return " | ".join(t for a in figure.axes for t in (a.get_xlabel(), a.get_ylabel(), a.get_title()))


# ---------------------------------------------------------------- which pictures


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("points", {"elbo", "samples", "reconstructions", "latent", "khat"}),
        ("images", {"elbo", "samples", "reconstructions", "interpolation", "latent", "khat"}),
        ("schools", {"elbo", "samples", "reconstructions", "latent"}),
        ("gaussian", {"elbo", "samples"}),
    ],
)
def test_only_pictures_that_make_sense_are_made(which, expected, request, tmp_path):
    run, data = request.getfixturevalue(which)
    files = plot(run, data, tmp_path / "plots")
    assert {f.stem for f in files} == expected
    assert sorted((tmp_path / "plots").iterdir()) == sorted(files), "nothing but the pictures is left"
    for file in files:
        assert imread(file).shape[1] > 300 and imread(file).std() > 0.01, f"{file.name} is empty"
    assert plt.get_fignums() == [], "figures of pyplot are left open"


def test_errors(points, tmp_path):
    run, data = points
    with pytest.raises(ppgen.PpgenError, match="pass out="):
        plot(run, data)
    with pytest.raises(ppgen.PpgenError, match="fitted to data in memory"):
        plot(run, None, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ppgen.PpgenError, match="choose another place"):
        plot(run, data, tmp_path / "file")


# ---------------------------------------------------------------- what they show


def test_elbo_is_in_nats_a_row_with_its_error(points):
    run, _ = points
    figure = elbo_figure(run)
    fitted, held_out = figure.axes[0].lines
    np.testing.assert_allclose(fitted.get_ydata(), run.metrics["elbo"] / 150)
    np.testing.assert_allclose(held_out.get_ydata(), run.metrics["valid_elbo"] / 50)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at = run.metrics["step"][5]
    heights = band[band[:, 0] == at, 1]
    assert heights.max() - heights.min() == pytest.approx(4 * run.metrics["elbo_se"][5] / 150)
    assert "step" in labels(figure) and "nats a row" in labels(figure)


def test_elbo_of_a_program_with_global_latents_is_that_of_the_data_set(schools):
    run, _ = schools
    figure = elbo_figure(run)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), run.metrics["elbo"])
    assert figure.axes[0].get_ylabel() == "nats"


def test_samples_are_those_of_sample(points):
    run, data = points
    drawn = draw(run, 50, seed=3)
    seen, shown = samples_figure(run, data, drawn=drawn).axes
    np.testing.assert_allclose(seen.collections[0].get_offsets(), data["x"], rtol=1e-6)
    np.testing.assert_allclose(shown.collections[0].get_offsets(), drawn["x"], rtol=1e-6)
    alone = samples_figure(run, drawn=drawn)
    assert len(alone.axes) == 1


def test_image_samples_stand_beside_their_means(images):
    run, _ = images
    drawn = draw(run, 9, seed=3)
    left, right = (axis.images[0].get_array() for axis in samples_figure(run, drawn=drawn).axes)
    assert left.shape == right.shape == (26, 26)  # 3 x 3 tiles of 8 x 8, a pixel between them
    np.testing.assert_allclose(left[9:17, 18:26], drawn["x"][5].reshape(8, 8))
    with torch.no_grad():
        mean = torch.sigmoid(run.program.decoder(drawn["z"][5])).reshape(8, 8)
    np.testing.assert_allclose(right[9:17, 18:26], mean, rtol=1e-5)


def test_images_between_minus_one_and_one_are_images(images):
    run, data = images
    centred = Linear(64, latent=3)
    moved = fit(centred, {"x": 2 * data["x"] - 1}, steps=2, engine="eager")
    drawn = {"x": 2 * data["x"][:9] - 1, "z": torch.zeros(9, 3)}
    shown = samples_figure(moved, drawn=drawn).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[9:17, 18:26], data["x"][5].reshape(8, 8))
    again = reconstructions_figure(moved, {"x": 2 * data["x"] - 1}).axes[0].images[0].get_array()
    np.testing.assert_allclose(again[:8, :8], data["x"][0].reshape(8, 8))


def test_a_column_may_have_another_name_than_its_site(gaussian):
    figure = samples_figure(*gaussian)
    assert "data" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_reconstructions(points, images, schools, gaussian):
    figure = reconstructions_figure(*images)
    shown, x = figure.axes[0].images[0].get_array(), images[1]["x"]
    np.testing.assert_allclose(shown[:8, 9:17], x[1].reshape(8, 8))
    np.testing.assert_allclose(shown[18:26, 9:17], x[11].reshape(8, 8))
    assert "z ~ q(z | x)" in labels(reconstructions_figure(*images))
    x = reconstructions_figure(*points).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(x, points[1]["x"][:300], rtol=1e-6)
    figure = reconstructions_figure(*schools)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [f"y[{c}]" for c in "ABCDEFGH"]
    np.testing.assert_allclose(figure.axes[0].collections[-1].get_offsets()[:, 0], schools[1]["y"])
    assert reconstructions_figure(*gaussian) is None


@pytest.mark.parametrize(("objective", "said"), [("analytic(free_bits=0.5)", "free_bits=0.5, not on it"), ("iwae", "")])
def test_the_picture_of_the_elbo_says_that_another_thing_was_trained_on(images, objective, said):
    run = fit(Linear(64, latent=3, bits=True), images[1], steps=4, log_every=1, objective=objective, engine="eager")
    title = elbo_figure(run).axes[0].get_title()
    assert title.startswith("A lower bound on log p(x)") and title.endswith(said) and ("trained" in title) == bool(said)


def test_interpolation_goes_from_one_row_to_the_next_through_z(points, images, schools, gaussian):
    run, data = images
    tiles = interpolation_figure(run, data).axes[0].images[0].get_array()
    assert tiles.shape == (8 * 9 - 1, 11 * 9 - 1)  # eight lines of eleven images, a pixel between them
    x = data["x"].reshape(-1, 8, 8)
    np.testing.assert_allclose(tiles[9:17, :8], x[2])
    np.testing.assert_allclose(tiles[9:17, -8:], x[3])
    with torch.no_grad():
        loc, raw = run.program.encoder(data["x"][2:4]).chunk(2, -1)
        middle = run.program.decoder(loc.mean(0)).reshape(8, 8)
        shown = torch.logit(tensor(np.array(tiles[9:17, 5 * 9 : 5 * 9 + 8])))
        # means of 20 draws of both ends: their difference has this standard deviation in each logit
        sd = ((run.program.decoder.weight**2 @ (raw.exp() ** 2).sum(0)) / (4 * 20)).sqrt().reshape(8, 8)
    assert (shown - middle).abs().max() < 4.5 * sd.max() and sd.max() < 0.4
    assert all(interpolation_figure(*other) is None for other in (points, schools, gaussian))


def test_latent_shows_kl_and_labels(points):
    run, data = points
    d = diagnose(run, data, draws=20, rows=20, particles=50)
    y = (data["x"][:, 0] > 1).long()
    means, kl = latent_figure(run, data, d, y).axes
    heights = [bar.get_height() for bar in kl.patches]
    np.testing.assert_allclose(heights, np.sort(d.kl["z"])[::-1], rtol=1e-6)
    assert [len(c.get_offsets()) for c in means.collections] == [int((y == 0).sum()), int((y == 1).sum())]
    assert "KL(q, p), nats a row" in labels(means.figure)


def test_latent_of_global_latents_is_intervals(schools):
    run, data = schools
    (axis,) = latent_figure(run, data).axes
    names = [t.get_text() for t in axis.get_yticklabels()]
    assert "mu" in names and "eta[A]" in names and "theta[H]" in names


def test_khat_is_that_of_the_diagnosis(points):
    run, data = points
    d = diagnose(run, data, draws=20, rows=20, particles=100)
    k, ess = khat_figure(d).axes
    np.testing.assert_allclose(np.asarray(k.collections[0].get_offsets())[:, 1], np.sort(d.khat))
    assert sum(bar.get_height() for bar in ess.patches) == len(d.ess)
    assert f"{(d.khat > GOOD_K).mean():.0%}" in k.get_title()
    assert khat_figure(None) is None


def test_a_label_that_the_program_does_not_take_colours_the_latents(points, tmp_path, monkeypatch):
    run, data = points
    shown = []
    module = sys.modules["ppgen.inference.report.plot"]
    monkeypatch.setattr(module, "latent_figure", lambda run, data, d, label, seed: shown.append((set(data), label)))
    monkeypatch.setattr(module.sample_plots, "samples_figure", lambda *_, **__: None)
    for other in ("elbo_figure", "reconstructions_figure", "khat_figure"):
        monkeypatch.setattr(module, other, lambda *_, **__: None)
    y = (data["x"][:, 0] > 1).long()
    plot(run, {**data, "y": y}, tmp_path)
    plot(run, {**data, "y": torch.arange(150.0)}, tmp_path)
    assert [columns for columns, _ in shown] == [{"x"}, {"x"}]
    assert torch.equal(shown[0][1], y) and shown[1][1] is None, "real numbers are no label"


def test_save_is_atomic(points, tmp_path):
    figure = elbo_figure(points[0])
    (tmp_path / "old.png").write_bytes(b"old")

    def broken(*args, **kwargs):
        raise RuntimeError("in the middle")

    figure.savefig, kept = broken, figure.savefig
    with pytest.raises(RuntimeError):
        save(figure, tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"old"
    figure.savefig = kept
    assert save(figure, tmp_path / "old.png") == tmp_path / "old.png"
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]


@pytest.mark.parametrize("most", [-17_500.0, 1.06e6, 12.345678])
def test_labels_of_an_axis_do_not_run_into_each_other(most):
    from ppgen.inference.report.figures import intervals_figure

    figure = intervals_figure(
        np.linspace(0, most, 60).reshape(20, 3),
        [f"r_clinic[Clinic number {i}, x]" for i in range(3)],
        "value",
        "Latents",
    )
    figure.draw_without_rendering()
    (axis,) = figure.axes
    low, high = sorted(axis.get_xlim())
    shown = [t for t, x in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True) if low <= x <= high]
    ends = sorted((t.get_window_extent().x0, t.get_window_extent().x1) for t in shown if t.get_text())
    assert len(ends) > 1 and all(b[0] > a[1] + 8 for a, b in zip(ends[:-1], ends[1:], strict=True))


def test_a_picture_of_the_first_entries_says_so():
    from ppgen.inference.report.figures import intervals_figure

    for n, said in ((40, "Latents"), (41, "Latents (the first 40 of 41 entries)")):
        figure = intervals_figure(np.zeros((5, n)), [f"z[{i}]" for i in range(n)], "value", "Latents")
        assert figure.axes[0].get_title() == said


def test_svg(tmp_path):
    run = fit(Gaussian(), {"heights": torch.randn(20)}, steps=30, log_every=2)
    data = {"heights": torch.randn(20)}
    files = plot(run, data, tmp_path / "a", format="svg")
    again = plot(run, data, tmp_path / "b", format="svg")
    assert files and all(f.suffix == ".svg" and "<svg" in f.read_text() for f in files)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
    with pytest.raises(ppgen.PpgenError, match="none of png, svg"):
        plot(run, data, tmp_path / "c", format="pdf")
