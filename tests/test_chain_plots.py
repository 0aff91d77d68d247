"""Pictures of a chain: as many as there are, of images and of points, none left open."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from known import binary, normal

from ppgen.inference import fit
from ppgen.inference.diffusion.elbo_decomposition import elbo_decomposition
from ppgen.inference.report.chain_plots import SHOWN, _chain_figure, _elbo_figure, chain_figures
from ppgen.inference.report.sample_plots import samples_figure
from ppgen.models import Diffusion

matplotlib.use("agg")


@pytest.mark.parametrize("features", [1, 2, 3])
def test_points(features):
    x = normal(30, features)
    run = fit(Diffusion(features, hidden=(8,), steps=4), {"x": x}, steps=2)
    figures = chain_figures(run, {"x": x}, seed=0)
    assert set(figures) == {"samples", "chain", "ledger"}
    shown = [axis for axis in figures["chain"].axes if axis.has_data()]
    assert len(shown) == SHOWN + 1 and shown[0].get_title() == "t = 1.00" and shown[-1].get_title() == "x"
    assert not plt.get_fignums()


def test_images_of_a_labelled_model():
    x, y = binary(6, 64), torch.arange(6) % 2
    run = fit(
        Diffusion((1, 8, 8), "unet", (4, 8), steps=3, likelihood="bernoulli", classes=2), {"x": x, "y": y}, steps=1
    )
    assert _chain_figure(run, {"y": y}, seed=0) is not None


def test_a_picture_of_draws_that_were_made_runs_no_long_chain(monkeypatch):
    """What is asked is whether a row is an image, and between which values: not its thousand states."""
    run = fit(Diffusion(64, hidden=(4,), steps=1000, likelihood="bernoulli"), {"x": binary(6, 64)}, steps=1)
    calls, predict = [], Diffusion.predict
    monkeypatch.setattr(Diffusion, "predict", lambda self, *a, **k: calls.append(1) or predict(self, *a, **k))
    assert samples_figure(run, drawn={"x": binary(9, 64)}) is not None
    assert len(calls) < 10 and run.program.steps == 1000


def test_a_reweighted_model_says_that_it_was_not_trained_on_the_bound():
    x = normal(20, 2)
    run = fit(Diffusion(2, hidden=(8,), steps=4, weighting="simple"), {"x": x}, steps=1)
    figure = _elbo_figure(elbo_decomposition(run, {"x": x}), run.program)
    said = " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))
    assert "no bound" in said and "nats" in said
