r"""A diffusion bridge: from the rows of one data set to those of another, by a chain of noisy states between.

    z_1 = x0,    z_s | z_t ~ N((1 − s/t) x̂_θ(z_t, t) + (s/t) z_t,  σ² s (t − s) / t),    x | z_0 ~ p(x | z_0)
    guide:  z_t | x, x0 ~ N((1 − t) x + t x0,  σ² t (1 − t))

The guide is Brownian motion that is held at both ends: the stochastic interpolant of the pair. That is the diffusion of
process "ve", γ(t) = log σ² t, with z_1 given in place of drawn, so that q(z_s | z_t, x), its KL and the reverse steps
are those of any Gaussian chain; training on the ELBO is bridge matching, E |x − x̂(z_t)|² / (2 σ² t²) over t.

The network sees z_t alone. The states then have the guide's distribution at each t, and x that of the data, whatever
the pairs; but the pair (x0, x) keeps its own distribution only if that is the one of a Schrödinger bridge: of optimal
transport with entropy, cost |x0 − x|² / (2 σ²). Pairs by optimal transport come close to it for small σ.

The ELBO is a bound on log p(x | x0), of x given its partner; in the limit of many steps it is tight for such pairs, and
below for others. There is none on log p(x): that would take the density of x0.

Sources: Stochastic Interpolants (Albergo et al., 2023, arXiv:2303.08797); I²SB (Liu et al., 2023, arXiv:2302.05872);
Simulation-free Schrödinger bridges via score and flow matching (Tong et al., 2023, arXiv:2307.03672), pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor

import ppgen
from ppgen.chains.pairs import optimal_pairs
from ppgen.errors import PpgenError, lacking, nearest
from ppgen.models.diffusion import Diffusion, units

PAIRS = ("rows", "ot")
TINY = 1e-12  # variance of z_t, in that of z_1's step, where t is 1 but for rounding


class DiffusionBridge(Diffusion):
    """A bridge from x0 to x, both (N, D) or images (N, C, H, W). Draws of x are flat.

    Args:
        features, net, hidden, blocks, attention, fourier: as for `Diffusion`.
        noise: σ, in the units of the chain, in which x0 and x together have unit variance.
        pairs: "rows": those of the data; "ot": in training each batch is paired anew by optimal transport, for data
            sets whose rows do not belong together.
        steps: T of the chain; 0 trains its limit T → ∞, the explicit chain then having 200 steps.
        loc, scale: of x0 and x together; measured by `prepare` where None.

    Raises:
        PpgenError: an argument out of range; a column x0 missing, or of another size.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        net: str = "mlp",
        hidden: Sequence[int] | None = None,
        noise: float = 0.5,
        pairs: str = "rows",
        steps: int = 0,
        loc: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        blocks: int = 1,
        attention: int = 8,
        fourier: Sequence[int] = (),
    ):
        if pairs not in PAIRS or not noise > 0:
            raise PpgenError(
                f"DiffusionBridge got pairs={pairs!r}{nearest(str(pairs), PAIRS)} and noise={noise}; expected one of "
                f"{', '.join(PAIRS)}, and a positive noise"
            )
        end = 2 * math.log(noise)
        super().__init__(
            features, net, hidden, steps, "ve", "loglinear", "data", "posterior", loc=loc, scale=scale,
            gamma_low=end - 10.0, gamma_high=end, blocks=blocks, attention=attention, fourier=fourier,
        )  # fmt: skip
        self.steps = steps or 200
        self.shapes = {"x": self.shape, "x0": self.shape}
        self.noise, self.pairs = float(noise), pairs
        self.samplers = ("dpmpp_sde", "ancestral")

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The features, and the location and scale of both columns."""
        x0, x = data.get("x0"), data.get("x")
        if x0 is None or x is None or x.shape != x0.shape or x.dim() not in (2, 4) or len(x) == 0:
            needed = "columns x0 and x of one shape, (rows, features) or (rows, channels, height, width)"
            remedy = "name or gather them with columns= (--columns x0=... x=...)"
            raise lacking(f"DiffusionBridge needs {needed}", data, remedy)
        loc, scale = units(torch.cat([x0.flatten(1), x.flatten(1)]))
        return {
            "features": x.shape[1] if x.dim() == 2 else list(x.shape[1:]),
            "net": "mlp" if x.dim() == 2 else "unet", "loc": loc.tolist(), "scale": scale.tolist(),
        }  # fmt: skip

    # -- the program -------------------------------------------------------------------------------------

    def model(self, x0: Tensor, x: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """p_θ(x, z_0.. | x0)."""
        columns = self.context({"x0": x0})
        with ppgen.rows(x0):
            z = columns["x0"]
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.reverse(z, s, t))
            return pyro.sample("x", self.likelihood(z, **columns), obs=None if x is None else self.values(x))

    def guide(self, x0: Tensor, x: Tensor) -> None:  # type: ignore[override]
        """q(z | x, x0)."""
        z = self.context({"x0": x0})["x0"]
        with ppgen.rows(x0):
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.posterior(z, x, s, t))

    def predict(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> tuple[Tensor, None]:
        """x̂(z_t, t) = z_t + c(t) f(z_t, t), c² = 2 t² + σ² t: about E |x − z_t|² a value."""
        u = (self.gamma(t)[..., 0] - self.range[0]) / (self.range[1] - self.range[0])
        share = self.share(t)
        reach = (2 * share**2 + self.noise**2 * share).sqrt()
        return z + reach * self.net(z, u.expand(z.shape[:-1]), None), None

    # -- the conditionals that differ from those of a diffusion ------------------------------------------

    def share(self, t: Tensor | float) -> Tensor:
        """The bridge's own time, from e^-10 at t = 0 to 1 at t = 1, (..., 1)."""
        return (self.gamma(t) - self.range[1]).exp()

    def spread(self, t: Tensor | float) -> Tensor:
        """1, about: x0 and x are of unit variance."""
        return torch.ones_like(self.share(t))

    def left(self, t: Tensor | float) -> Tensor:
        """The variance of x given z_t, where x0 and x are independent normals."""
        share = self.share(t)
        return 1 / (1 + (1 - share) ** 2 / (share**2 + self.noise**2 * share * (1 - share)))

    def base(self, **columns: Tensor) -> TorchDistribution:
        """z_1 is x0."""
        return Delta(columns["x0"]).to_event(1)

    def forward(self, x: Tensor, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """q(z_t | x, x0)."""
        if isinstance(t, float) and t == 1.0:
            return self.base(**columns)
        share = self.share(t)
        mean = (1 - share) * self.encode(x) + share * columns["x0"]
        variance = self.noise**2 * (share * (1 - share)).clamp(min=TINY)
        return Normal(mean, variance.sqrt().expand(mean.shape)).to_event(1)

    def prior(self, x: Tensor, **columns: Tensor) -> Tensor:
        """Nothing: z_1 is known."""
        return torch.zeros_like(self.encode(x)[..., 0])

    def likelihood(self, z: Tensor, **columns: Tensor) -> TorchDistribution:
        """p(x | z_0, x0): what z_0 says of x by itself."""
        share = self.share(0.0)
        mean = (z - share * columns["x0"]) / (1 - share)
        spread = self.noise * (share / (1 - share)).sqrt()
        return Normal(self.loc + self.scale * mean, self.scale * spread).to_event(1)

    # -- data --------------------------------------------------------------------------------------------

    def measured(self, data: dict[str, Tensor]) -> Tensor:
        """Both columns together."""
        return torch.cat([self.values(data["x0"]), self.values(data["x"])])

    def context(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """x0 in the units of the chain."""
        if "x0" not in data:
            raise PpgenError("DiffusionBridge starts from x0, and got none; pass given={'x0': ...} (--given x0.npz)")
        return {"x0": self.encode(data["x0"])}

    def hide(self, columns: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """With pairs="ot" the rows of x0 in the order of their partners."""
        if self.pairs == "rows":
            return columns
        return {"x0": columns["x0"][optimal_pairs(self.encode(x), columns["x0"])]}
