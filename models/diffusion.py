r"""The diffusion model: a chain of latents from noise to data, whose guide has nothing to learn but the schedule.

    z_1 ~ N(0, s² I),   z_s | z_t ~ N(μ_θ(z_t, s, t), v),   x | z_0 ~ p(x | z_0)          1 = t_T > ... > t_0 = 0
    guide:  z_1 | x ~ N(α_1 x, σ_1²),   z_s | z_t, x ~ q(z_s | z_t, x)

μ_θ is the mean of q(z_s | z_t, x) with x̂_θ(z_t, t) put in x's place; `ppgen.chains.gaussian_chain` has the algebra. The
network may give x̂ as it is or by way of something that is easier to learn:

    data  x̂      noise  ε      velocity  α ε − σ x      flow  ε − x      edm  x̂ = c_skip z + c_out F(c_in z)
    levels  what each value may be before z's own evidence on it is taken in:
            `ppgen.distributions.grid_normal.posterior_mean`

Sources: Denoising Diffusion Probabilistic Models (Ho et al., 2020, arXiv:2006.11239); Variational Diffusion Models
(Kingma et al., 2021, arXiv:2107.00630); Progressive Distillation (Salimans & Ho, 2022, arXiv:2202.00512), velocity;
Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022, arXiv:2206.00364), edm.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, Normal, TorchDistribution
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

import ppgen
from ppgen.chains.chain import flat_rows
from ppgen.chains.gaussian_chain import PROCESSES, VARIANCES, WEIGHTINGS, GaussianChain, shares
from ppgen.chains.schedules import make_schedule
from ppgen.data import moments, warn_of_unseen_labels
from ppgen.data.files.images import channels_first
from ppgen.distributions.dequantize import find_grid
from ppgen.distributions.grid_normal import GridNormal, levels_numbers, posterior_mean
from ppgen.errors import PpgenError, lacking, nearest
from ppgen.nets import TimeMLP, UNet

__all__ = ["Diffusion"]

PREDICTIONS = ("data", "noise", "velocity", "edm", "flow", "levels")
LIKELIHOODS = ("normal", "discrete", "bernoulli")
log = logging.getLogger("ppgen")
ATOMS = 8  # at most, beside the ends


class Diffusion(GaussianChain):
    """A diffusion model of x, or with `classes` > 0 of x given a label y.

    The columns are x, (N, D) or images (N, C, H, W), and y, labels 0, 1, ... of shape (N,). Draws of x are flat.

    Args:
        features: D, or the shape (C, H, W) of an image.
        net: "mlp", or "unet" for images.
        hidden: widths of the residual blocks of the mlp, or of the levels of the U-Net; None: (128, 128, 128) and
            (32, 64, 64).
        steps: T of the chain; 0 trains its limit T → ∞, the explicit chain then having 1 000 steps.
        process: "vp", "ve", "sub-vp" or "ot", see `ppgen.chains.gaussian_chain`.
        schedule: see `ppgen.chains.schedules`. Times uniform in log-SNR suit the ELBO, whose costs lie at low noise,
            where the other curves hardly come; "cosine" suits the reweightings.
        prediction: what the network gives: "data", "noise", "velocity", "edm" or "flow"; "levels" for data on a grid.
        variance: of the reverse steps: "posterior", "forward" or "learned" between these.
        likelihood: "normal", of scale σ_0 / α_0; "discrete": its restriction to a grid of `levels`; "bernoulli".
        weighting: "elbo", or "simple", "min_snr", "edm", "flow": what is then trained on is no bound on log p(x),
            while the figures that are shown stay those of the ELBO.
        importance: draws times in proportion to the root of a running mean of the squared cost, instead of uniformly.
        classes: number of labels, 0 for none.
        label_dropout: share of the rows whose label is hidden in training, which guidance needs.
        levels, low, high: the grid of values of a discrete likelihood.
        atoms: levels, from 0, that have mass of their own in the prediction "levels"; none: the two ends.
        loc, scale: of the data, for the normal likelihood; measured by `prepare` where None.
        gamma_low, gamma_high: −log SNR at t = 0 and t = 1. None for the first: a noise of a sixth of a level, or for
            continuous data of e⁻⁵ standard deviations.
        data_scale: σ_data of "edm": the standard deviation of the data in the units of the chain.
        fourier: exponents of waves of the input, see `ppgen.nets.UNet`.
        blocks, attention, patch: of the U-Net.

    Raises:
        PpgenError: an argument out of range; a schedule that saturates; labels missing, or out of range.
    """

    rows_a_step = 128

    loc: Tensor
    scale: Tensor
    prepared: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        net: str = "mlp",
        hidden: Sequence[int] | None = None,
        steps: int = 1000,
        process: str = "vp",
        schedule: str = "loglinear",
        prediction: str = "velocity",
        variance: str = "posterior",
        likelihood: str = "normal",
        weighting: str = "elbo",
        importance: bool = False,
        classes: int = 0,
        label_dropout: float = 0.1,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        atoms: Sequence[int] = (),
        loc: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        gamma_low: float | None = None,
        gamma_high: float = 6.0,
        data_scale: float = 1.0,
        blocks: int = 1,
        attention: int = 8,
        fourier: Sequence[int] = (),
        patch: int = 1,
    ):
        super().__init__()
        self.shape = torch.Size((features,) if isinstance(features, int) else features)
        self.shapes = {"x": self.shape}
        self.steps, self.limit = steps or 1000, steps == 0
        self.process, self.prediction, self.variance = process, prediction, variance
        self.likelihood_name, self.weighting, self.importance = likelihood, weighting, importance
        self.classes, self.label_dropout, self.data_scale = classes, label_dropout, data_scale
        self.categories = {"y": classes} if classes else {}
        self.levels, self.low, self.high = (2 if likelihood == "bernoulli" else levels), float(low), float(high)
        self.atoms = tuple(int(k) for k in atoms)
        self._require_options(net, schedule, steps, levels)
        if gamma_low is None:
            gamma_low = -10.0 if likelihood == "normal" else 2 * math.log(2 / (self.levels - 1) / 6)
        self.schedule, self.range = make_schedule(schedule, gamma_low, gamma_high), (gamma_low, gamma_high)
        nearest = max(2, math.ceil(3 * (self.levels - 1) * math.exp(gamma_low / 2)))
        self.window = None if schedule == "learned" else nearest  # levels that have mass at t = 0, if that noise stays
        size = math.prod(self.shape)
        numbers = levels_numbers(self.levels, self.atoms) if prediction == "levels" else 1
        numbers += variance == "learned"
        self.net: nn.Module
        if net == "mlp":
            self.net = TimeMLP(size, numbers * size, hidden or (128,) * 3, classes, fourier)
        else:
            self.net = UNet(self.shape, numbers, hidden or (32, 64, 64), blocks, attention, classes, fourier, patch)
        self._register_units(size, loc, scale)
        self.register_buffer("history", torch.ones(32) if importance else None)

    def _require_options(self, net: str, schedule: str, steps: int, levels: int) -> None:
        _one_of("net", net, ("mlp", "unet"))
        _one_of("process", self.process, PROCESSES)
        _one_of("prediction", self.prediction, PREDICTIONS)
        _one_of("variance", self.variance, VARIANCES)
        _one_of("likelihood", self.likelihood_name, LIKELIHOODS)
        _one_of("weighting", self.weighting, WEIGHTINGS)
        if not 0 <= self.label_dropout < 1 or not self.data_scale > 0:
            raise PpgenError(
                f"Diffusion got label_dropout={self.label_dropout} and data_scale={self.data_scale}; expected a share "
                "of the labels from 0 to below 1, and a positive scale"
            )
        sizes = self.shape and min(self.shape) >= 1 and self.classes >= 0 and steps >= 0
        if not sizes or levels < 2 or not self.low < self.high:
            raise PpgenError(
                f"Diffusion got features={tuple(self.shape)}, classes={self.classes}, steps={steps}, levels={levels}, "
                f"low={self.low}, high={self.high}; expected features of at least 1, classes and steps of at least 0, "
                "at least 2 levels and low < high"
            )
        if schedule == "learned" and self.weighting != "elbo":
            raise PpgenError(
                f"weighting={self.weighting!r} is no bound, and a learned schedule would undo it; take "
                "schedule='cosine', or weighting='elbo'"
            )
        if self.prediction == "levels" and self.likelihood_name == "normal":
            raise PpgenError("prediction='levels' is for data on a grid of levels; take 'velocity' for continuous data")
        if not all(0 <= k < self.levels for k in self.atoms) or len(set(self.atoms)) < len(self.atoms):
            raise PpgenError(
                f"Diffusion got atoms={list(self.atoms)}; expected different levels from 0 to {self.levels - 1}"
            )

    def _register_units(self, size: int, loc: Sequence[float] | None, scale: Sequence[float] | None) -> None:
        """The buffers that x is standardised by; whether they are known, or left to `prepare`."""
        middle, half = torch.tensor((self.low + self.high) / 2), torch.tensor((self.high - self.low) / 2)
        known = self.likelihood_name != "normal" or (loc is not None and scale is not None)
        if self.likelihood_name == "normal":
            middle, half = _vector("loc", loc, size, 0.0), _vector("scale", scale, size, 1.0)
        self.register_buffer("loc", middle.expand(size).clone())
        self.register_buffer("scale", half.expand(size).clone())
        self.register_buffer("prepared", torch.tensor(float(known)))
        self.register_buffer("zero", torch.zeros(size), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments that follow from the data: the shape and net, the likelihood, location and scale."""
        x = data.get("x")
        if x is None or x.dim() not in (2, 3, 4) or len(x) == 0:
            needed = "a column x, (rows, features), (rows, height, width) or (rows, channels, height, width)"
            raise lacking(f"Diffusion needs {needed}", data, "name or gather it with columns= (--columns x=...)")
        x = x[:, None] if x.dim() == 3 else channels_first("x", x)
        arguments: dict[str, Any] = {"features": x.shape[1] if x.dim() == 2 else list(x.shape[1:])}
        found = find_grid(x)
        if found is None:
            mean, spread = moments(x.flatten(1))
            spread = torch.where(spread > 0, spread, 1.0)  # of one row nan
            return arguments | {"loc": mean.tolist(), "scale": spread.tolist()}
        low, high, levels = found
        arguments |= {"likelihood": "bernoulli"} if found == (0.0, 1.0, 2) else {
            "likelihood": "discrete", "low": low, "high": high, "levels": levels
        }  # fmt: skip
        arguments["prediction"] = "levels"
        if len(atoms := _atoms(x[:10_000], low, high, levels)) > 2:
            arguments["atoms"] = atoms
        if levels > 32:  # waves of 16, 8 and 4 levels a period
            arguments["fourier"] = [round(math.log2((levels - 1) / period)) for period in (16, 8, 4)]
        side = math.isqrt(x.shape[1])
        if x.dim() == 2 and side >= 8 and side**2 == x.shape[1]:
            arguments["features"] = [1, side, side]
        if isinstance(arguments["features"], list):
            halvings = next((n for n in (2, 1) if all(s % 2**n == 0 for s in arguments["features"][1:])), 0)
            arguments |= {"net": "unet", "hidden": [32, 64, 64][: halvings + 1]}
        return arguments

    @classmethod
    def common_from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """Those of `from_data` that do not go with its own prediction and network."""
        own = ("prediction", "atoms", "fourier")
        return {k: v for k, v in Diffusion.from_data(data).items() if k not in own}

    # -- the program -------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """p_θ(x, z_0..z_1), or given y."""
        columns = self.context({} if y is None else {"y": y})
        with ppgen.rows(x, y if self.classes else None):
            z = pyro.sample(f"z_{self.steps}", self.base())
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.reverse(z, s, t, **columns))
            return pyro.sample("x", self.likelihood(z, **columns), obs=None if x is None else self.values(x))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z | x)."""
        with ppgen.rows(x):
            z = pyro.sample(f"z_{self.steps}", self.forward(x, 1.0))
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.posterior(z, x, s, t))

    def predict(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """x̂(z_t, t), and the number that says where a learned variance lies.

        With a column `guidance` w, x̂ = x̂(z) + w (x̂(z, y) − x̂(z)), the label being left out in the first (Ho &
        Salimans, 2022, arXiv:2207.12598).
        """
        guidance = columns.pop("guidance", None)
        if guidance is not None:
            if not self.classes or not self.label_dropout:
                raise PpgenError(
                    "guidance needs a model that knows the data with and without their label; fit one with classes= "
                    "and label_dropout= (--set classes=10)"
                )
            y = columns["y"].expand(z.shape[:-1])
            if bool((y == self.classes).all()):
                raise PpgenError(
                    "guidance pushes draws towards a label, and got none; pass given={'y': ...} (--given y=3)"
                )
            both = torch.stack([y, torch.full_like(y, self.classes)])
            guess, raw = self.predict(z.expand(2, *z.shape), t, y=both)
            return guess[1] + guidance * (guess[0] - guess[1]), None if raw is None else raw[0]
        gamma, alpha, sigma = self.coefficients(t)
        a, s = shares("vp", gamma)
        h = z / (alpha**2 + sigma**2).sqrt()  # a x + s ε, whatever the process
        u = (gamma[..., 0] - self.range[0]) / (self.range[1] - self.range[0])
        fed, spread = h, (s**2 + (self.data_scale * a) ** 2).sqrt()
        if self.prediction == "edm":
            fed = h / spread
        out = self.net(fed, u.expand(z.shape[:-1]), columns.get("y"))
        raw = None
        if self.variance == "learned":
            out, raw = out[..., : -len(self.zero)], out[..., -len(self.zero) :]
        if self.prediction == "levels":
            return posterior_mean(out, z / alpha, gamma.exp(), self.levels, self.atoms), raw
        if self.prediction == "data":
            return out, raw
        if self.prediction == "noise":
            return (h - s * out) / a, raw
        if self.prediction == "velocity":
            return a * h - s * out, raw
        if self.prediction == "flow":
            return (h - s * out) / (a + s), raw
        skip, reach = a * (self.data_scale / spread) ** 2, s * self.data_scale / spread
        return skip * h + reach * out, raw

    def likelihood(self, z: Tensor, **columns: Tensor) -> TorchDistribution:
        """p(x | z_0): z_0 / α_0 with a noise of σ_0 / α_0, as it is or restricted to the values that x can have."""
        gamma, alpha, _ = self.coefficients(0.0)
        mean, scale = z / alpha, (gamma / 2).exp()
        if self.likelihood_name == "normal":
            return Normal(self.loc + self.scale * mean, self.scale * scale).to_event(1)
        if self.likelihood_name == "bernoulli":
            return Bernoulli(logits=2 * mean / scale**2).to_event(1)
        mean, scale = self.loc + self.scale * mean, (self.scale * scale).expand_as(mean)
        return GridNormal(mean, scale, self.low, self.high, self.levels, window=self.window).to_event(1)

    # -- data --------------------------------------------------------------------------------------------

    def prepare(self, data: dict[str, Tensor]) -> Diffusion:
        """Location and scale of continuous data, and whether the schedule can be told apart from step to step."""
        self.require_increasing()
        with pyro.validation_enabled(True):
            self.context(data)
        if self.classes and "y" not in data:
            log.warning(
                "%s has %d classes, and the data no column y: it learns x alone, and draws given a label are not "
                "learned; name the labels with columns= (--columns y=...), or leave classes out",
                self.name, self.classes,
            )  # fmt: skip
        warn_of_unseen_labels(data, self.categories, self.name)
        if not self.prepared:
            loc, scale = units(self.measured(data))
            self.loc.copy_(loc)
            self.scale.copy_(scale)
            self.prepared.fill_(1.0)
        return self

    def measured(self, data: dict[str, Tensor]) -> Tensor:
        """The values that location and scale are of, (..., D)."""
        return self.values(data["x"])

    def values(self, x: Tensor) -> Tensor:
        """x flat, as floats."""
        return flat_rows(x, self.shape, self.zero, "Diffusion")

    def encode(self, x: Tensor) -> Tensor:
        return (self.values(x) - self.loc) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x

    def context(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """The label as the network takes it: number `classes` where it is not known."""
        if not self.classes:
            return {}
        y = data.get("y")
        if y is None:
            if not self.label_dropout:
                raise PpgenError(
                    f"Diffusion(classes={self.classes}) is conditional on the labels y, and got none; pass a column "
                    "y, and to sample from it given={'y': ...} (--given y=3)"
                )
            return {"y": torch.full((), self.classes, device=self.zero.device)}
        if is_validation_enabled() and (y.dim() > 1 or bool(((y < 0) | (y >= self.classes) | (y != y.long())).any())):
            raise PpgenError(
                f"column y of Diffusion(classes={self.classes}) has shape {tuple(y.shape)} and values from "
                f"{float(y.min()):g} to {float(y.max()):g}; expected one label a row out of 0 to {self.classes - 1}"
            )
        return {"y": y.long()}

    def hide(self, columns: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The columns with a share of the labels hidden: number `classes`."""
        if not self.classes or not self.label_dropout:
            return columns
        hidden = torch.rand(columns["y"].shape, dtype=self.zero.dtype) < self.label_dropout
        return columns | {"y": torch.where(hidden, self.classes, columns["y"])}


def _atoms(x: Tensor, low: float, high: float, levels: int) -> list[int]:
    """The ends of the grid, and those of the `ATOMS` most frequent levels that are more frequent than most."""
    k = ((x.flatten() - low) * ((levels - 1) / (high - low))).round().long()
    share = torch.bincount(k, minlength=levels).double() / len(k)
    frequent = [int(i) for i in share.topk(min(ATOMS, levels)).indices if share[i] > 1.5 / levels]
    return sorted({0, levels - 1, *frequent})


def _one_of(argument: str, value: str, names: Any) -> None:
    if value not in names:
        raise PpgenError(
            f"Diffusion got {argument}={value!r}{nearest(str(value), names)}; take one of {', '.join(names)}"
        )


def _vector(name: str, values: Sequence[float] | None, size: int, default: float) -> Tensor:
    if values is None:
        return torch.full((size,), default)
    vector = torch.as_tensor(values, dtype=torch.get_default_dtype())
    if vector.dim() > 1 or vector.numel() not in (1, size):
        raise PpgenError(f"Diffusion got {name} of {vector.numel()} numbers for {size} features; pass one a feature")
    return vector.expand(size)


def units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each value, (rows, D) -> (D,) each; 1 for the latter of what does not vary."""
    loc, scale = (m.to(x) for m in moments(x))
    return loc, torch.where(scale > 0, scale, 1.0)
