"""The pictures of the front page, one a family: `python docs/front_pictures.py` fits four small models and writes them.

There are no words in them, so that they serve the site in every language. Two to three minutes on one core; names
of pictures (bayes, flow, diffusion, vae) make these alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import ppgen
from ppgen.inference import fit, mcmc, sample, sample_diffusion
from ppgen.inference.report.figures import figure_of
from ppgen.models import VAE, Diffusion, EightSchools, Flow
from ppgen.style import BLUE, DENSITY, IMAGE, ORANGE

OUT = Path(__file__).parent / "_static"
INCHES, DPI = 3.2, 150  # all four are squares of one size


def square(name: str):
    """A figure with one axis that fills it and is written to docs/_static/front_NAME.png by `write`."""
    figure, (axis,) = figure_of(INCHES, INCHES)
    figure.set_layout_engine("none")
    axis.set_position([0.02, 0.02, 0.96, 0.96])
    axis.set_axis_off()
    return axis, lambda: figure.savefig(
        OUT / f"front_{name}.png", dpi=DPI, facecolor="white", metadata={"Software": ""}
    )


def vae() -> None:
    """Means of 36 draws of a variational autoencoder of the 8 x 8 digits."""
    data = ppgen.data.load("digits", "train")
    model = VAE(**VAE.from_data(data), latent=8, dropout=0.1)
    run = fit(model, data, steps=3000, batch_size=128, lr=2e-3, schedule="cosine", seed=0)
    z = sample(run, 36, seed=3)["z"]
    with torch.no_grad():
        images = run.program.eval().decode(z, None).mean.reshape(6, 6, 8, 8)
    canvas = np.full((6 * 9 - 1, 6 * 9 - 1), float(images.max()))
    for row in range(6):
        for column in range(6):
            canvas[9 * row : 9 * row + 8, 9 * column : 9 * column + 8] = images[row, column]
    axis, write = square("vae")
    axis.imshow(canvas, cmap=IMAGE, interpolation="nearest")
    write()


def flow() -> None:
    """The density of a neural spline flow of the checkerboard."""
    data = ppgen.data.load("checkerboard", "train")
    torch.manual_seed(0)
    model = Flow(features=2, family="nsf_coupling", transforms=6).prepare(data)
    run = fit(model, data, steps=2500, batch_size=256, lr=3e-3, schedule="cosine", seed=0)
    low, high = float(data["x"].min()) - 0.3, float(data["x"].max()) + 0.3
    line = torch.linspace(low, high, 320)
    with torch.no_grad():
        density = run.program.log_prob(torch.cartesian_prod(line, line)).exp().reshape(320, 320).T
    axis, write = square("flow")
    axis.imshow(density, origin="lower", cmap=DENSITY, vmax=float(density.quantile(0.99)), extent=(low, high) * 2)
    write()


def diffusion() -> None:
    """1 500 draws of a diffusion model of the rings: where each begins as noise, and where it ends."""
    data = ppgen.data.load("rings", "train")
    torch.manual_seed(0)
    model = Diffusion(2, hidden=(64, 64), steps=0)
    run = fit(model, data, steps=3000, batch_size=256, lr=3e-3, schedule="cosine", ema=0.99, seed=0)
    path: list[torch.Tensor] = []
    drawn = sample_diffusion(run, 1500, "ode", 60, seed=0, watch=lambda t, z: path.append(z))
    begin = run.program.decode(path[0])
    axis, write = square("diffusion")
    for z, x in zip(begin[:150], drawn[:150], strict=True):
        axis.plot([z[0], x[0]], [z[1], x[1]], color=ORANGE, lw=0.5, alpha=0.6, zorder=1)
    axis.plot(*begin[:150].T, ".", ms=3, color=ORANGE, zorder=2)
    axis.plot(*drawn.T, ".", ms=1.6, color=BLUE, zorder=3)
    middle, half = (drawn.amax(0) + drawn.amin(0)) / 2, 0.62 * float((drawn.amax(0) - drawn.amin(0)).max())
    axis.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    write()


def schools() -> None:
    """Eight schools: what each measured, and the posterior of its effect, median, 50% and 90%."""
    data = ppgen.data.load("eight_schools")
    tree = mcmc(EightSchools(), data, seed=0)
    theta = tree.posterior["theta"].stack(draws=("chain", "draw")).transpose("draws", ...).values
    order = np.argsort(data["y"].numpy())
    axis, write = square("bayes")
    for at, school in enumerate(order):
        for low, high, width in ((0.05, 0.95, 2.0), (0.25, 0.75, 6.0)):
            axis.hlines(at, *np.quantile(theta[:, school], [low, high]), color=BLUE, lw=width)
        axis.plot(np.median(theta[:, school]), at, "o", ms=6, color="white", mec=BLUE, zorder=3)
        axis.plot(float(data["y"][school]), at, "D", ms=6, color=ORANGE, zorder=4)
    axis.set_ylim(-0.8, 7.8)
    write()


PICTURES = {"bayes": schools, "flow": flow, "diffusion": diffusion, "vae": vae}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
