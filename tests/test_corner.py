"""Pictures of densities: the regions hold their shares, the density integrates to one."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.path import Path

from ppgen.inference import fit, plot
from ppgen.inference.report.corner import corner_figure, plane_figure
from ppgen.inference.report.sample_plots import density_figures
from ppgen.models import PPCA, Flow

matplotlib.use("agg")


def seen(figure):
    return [a for a in figure.axes if a.axison]


@pytest.mark.parametrize("d", [2, 5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_panel_for_each_dimension_and_pair(d):
    x = np.random.default_rng(0).normal(size=(200, d))
    figure = corner_figure(x, x[:100], [f"c{i}" for i in range(d)])
    assert len(seen(figure)) == d * (d + 1) // 2
    assert [a.get_xlabel() for a in seen(figure)][-d:] == [f"c{i}" for i in range(d)]


def test_contours_hold_their_share_of_the_draws():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 2)) * [1.0, 3.0]
    x[:, 1] += 2 * x[:, 0]
    figure = corner_figure(x, x, ["a", "b"])
    axis = next(a for a in seen(figure) if a.get_ylabel() == "b")
    lines = next(c for c in axis.collections if not c.filled and len(c.levels) == 2)
    inside = [Path(p.vertices).contains_points(x).mean() for p in lines.get_paths()]
    assert sorted(inside) == pytest.approx([0.5, 0.9], abs=0.04)


@pytest.mark.parametrize("shape", [(200, 1), (200, 9), (20, 3)])
def test_no_figure_of_one_dimension_many_or_few_rows(shape):
    assert corner_figure(np.zeros(shape), np.zeros(shape), ["x"] * shape[1]) is None


@pytest.fixture(scope="module")
def plane():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5]) + 1
    return fit(Flow(2, family="realnvp", transforms=1, hidden=(4,)), {"x": x}, steps=2), {"x": x}


def test_the_density_shown_integrates_to_one(plane, tmp_path):
    run, data = plane
    figure = density_figures(run, data)["density"]
    mesh = figure.axes[1].collections[0]
    (left, bottom), (right, top) = mesh.get_coordinates()[0, 0], mesh.get_coordinates()[-1, -1]
    total = mesh.get_array().mean() * (right - left) * (top - bottom)
    assert total == pytest.approx(1, abs=0.02)
    assert "density.png" in {p.name for p in plot(run, data, tmp_path)}


def test_a_conditional_density_has_no_one_picture(plane):
    x = plane[1]["x"]
    run = fit(Flow(2, transforms=1, hidden=(4,), context=1), {"x": x, "context": x[:, :1]}, steps=1)
    assert plane_figure(run, x.numpy(), x.numpy(), "x") is None


def test_plot_makes_a_corner_of_a_table(tmp_path):
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    run = fit(PPCA(3, latent=1), {"x": x}, steps=2)
    assert "corner.png" in {p.name for p in plot(run, {"x": x}, tmp_path)}
    run.config["data"]["columns"] = {"x": ["height", "weight", "age"]}
    assert "height" in {a.get_xlabel() for a in density_figures(run, {"x": x})["corner"].axes}
