"""Pictures of a posterior on its own: which there are, and what they show."""

import numpy as np
import pytest
from known import SCHOOLS

from ppgen.inference import fit, mcmc, posterior
from ppgen.inference.report.tree_plots import (
    _energy_figure,
    _latents_figure,
    _predictive_figure,
    _ranks_figure,
    plot_tree,
)
from ppgen.models import EightSchools


@pytest.fixture(scope="module")
def tree():
    return mcmc(EightSchools(), SCHOOLS, chains=8, draws=50, warmup=60, engine="trace", prior=False)


def test_every_picture(tree, tmp_path):
    files = plot_tree(tree, tmp_path / "plots")
    assert [f.stem for f in files] == ["latents", "ranks", "energy", "predictive"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)


def test_what_was_observed_is_in_the_legend(tree):
    figure = _predictive_figure(tree)
    assert figure is not None
    assert any("observed" in text.get_text() for text in figure.legends[0].get_texts())


def test_what_is_not_there_is_not_drawn(tmp_path):
    guide = posterior(fit(EightSchools(), SCHOOLS, steps=0), SCHOOLS, draws=20, predictive=False, prior=False)
    assert [f.stem for f in plot_tree(guide, tmp_path)] == ["latents"]
    assert _ranks_figure(guide) is _energy_figure(guide) is _predictive_figure(guide) is None


def test_the_ranks_of_a_chain_apart(tree):
    """A chain at the upper end of all draws has all its ranks there: its ECDF lies below the uniform one's."""
    apart = tree.copy(deep=True)
    apart["posterior"]["mu"].values[3] += 1000
    axis = _ranks_figure(apart).axes[0]
    assert axis.get_title().startswith("mu, R-hat") and axis.get_legend().get_texts()[0].get_text() == "chain 3"
    off = next(line for line in axis.get_lines() if line.get_label() == "chain 3").get_ydata()
    assert off.min() == pytest.approx(-7 / 8, abs=0.01) and np.abs(off).max() == -off.min()


def test_intervals_of_all_chains(tree):
    axis = _latents_figure(tree).axes[0]
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert labels[:2] == ["mu", "tau"] and "theta[A]" in labels
    medians = axis.collections[-1].get_offsets()
    assert medians[0, 0] == pytest.approx(np.median(tree["posterior"]["mu"]))
