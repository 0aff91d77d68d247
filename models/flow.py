r"""The normalising flow: an easy base, an invertible map, an exact log-likelihood; nothing is latent.

    z ~ base,   x = m + s f_θ(z; c):   log p(x | c) = log p_base(z) - log |det ∂f/∂z| - Σ_d log s_d

m and s are the mean and standard deviation of the data, kept with the parameters. Discrete x (`levels` > 0) is the
cell of a latent v that has such a density, see `ppgen.distributions.dequantize`; log P(x) has then a bound instead of
a value.

Sources: Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021, arXiv:1912.02762), and
those of the families in `ppgen.transforms`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, StudentT, TorchDistribution, TransformedDistribution, Uniform
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, SigmoidTransform
from torch.nn.functional import softplus

import ppgen
from ppgen.data import blocks, moments
from ppgen.distributions import grid
from ppgen.distributions.dequantize import Cell, Quantised, find_grid, logit_cells, require_grid
from ppgen.errors import PpgenError, lacking, nearest
from ppgen.transforms import Conditional, FlowTransform, Whitening, stack

BASES = ("normal", "student", "uniform")
DEQUANTISE = ("uniform", "variational")
ATOM, MOST_ROWS = 0.1, 10_000  # share of the rows with one value from which on it is said, and of how many rows

log = logging.getLogger("ppgen")


class Flow(ppgen.Program):
    """A density p(x), or p(x | context), by a flow of any family.

    The columns are x, (N, D), and with `context` > 0 context, (N, C) numbers (or (N,) for C = 1), which is then
    needed wherever the program runs, sampling included. Data are standardised: mean and standard deviation come from
    `from_data` (the command line), from `prepare`, or from the first rows that a fit sees; log p(x) is that of the
    data as they are.

    Args:
        features: D.
        family: see `ppgen.transforms.FAMILIES`: nsf, maf, iaf, realnvp, nice, nsf_coupling, naf, unaf, sospf, bpf,
            transformer, gf, residual, cnf, ffjord, ...; "ncsf" is for angles in [-π, π), which are left as they are.
        transforms: how many are stacked.
        hidden: widths of each transform's network.
        context: C, 0 for none.
        base: "normal"; "student", its degrees of freedom learned by feature, for heavy tails; "uniform" on (0, 1)^D,
            stretched to ℝ by a logit (for "ncsf" the uniform on the torus, as is "normal"); or a distribution of
            event shape (D,), which stays fixed.
        levels: of discrete data, 0 for continuous ones.
        low, high: least and greatest level's value.
        dequantise: "uniform" noise, or "variational": a conditional flow of the noise given x, learned.
        margin: a of the logit that maps the cells to ℝ, see `ppgen.distributions.dequantize.logit_cells`.
        mix: a linear map between two transforms: "lu", "rotation" or "shuffle", see `ppgen.transforms.stack`.
        whiten: x is not only standardised but made uncorrelated, by the covariance of the first data that `prepare`
            sees, of more than D rows.
        settings: further keywords of the family's transforms, as {"bins": 16, "bound": 8.0}.
        loc, scale, context_loc, context_scale: mean and standard deviation of the data's columns; measured by
            `prepare` where None.

    Raises:
        PpgenError: an argument out of range; data without a density: constant or duplicated columns, whole numbers.
    """

    rows_a_step = 256

    loc: Tensor
    scale: Tensor
    context_loc: Tensor
    context_scale: Tensor
    prepared: Tensor
    zero: Tensor

    def __init__(
        self,
        features: int,
        family: str = "nsf",
        transforms: int = 5,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        base: str | Distribution = "normal",
        levels: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        dequantise: str = "uniform",
        margin: float = 0.05,
        mix: str | None = None,
        whiten: bool = False,
        settings: Mapping[str, Any] | None = None,
        loc: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        context_loc: Sequence[float] | None = None,
        context_scale: Sequence[float] | None = None,
    ):
        super().__init__()
        self.transforms = nn.ModuleList(
            stack(family, features, transforms, hidden, context, mix=mix, **dict(settings or {}))
        )
        self.features, self.circular, self.context_features = features, family == "ncsf", context
        self.shapes = {"x": (features,)}
        self.levels, self.low, self.high, self.margin = levels, low, high, margin
        self._require_options(family, dequantise, whiten)
        self.base = _check_base(base, features, self.circular)
        if base == "student":
            self.raw_df = nn.Parameter(torch.full((features,), 9.0))
        self.whitening = Whitening(features) if whiten else None
        self.noise: nn.ModuleList | None = None
        if levels and dequantise == "variational":
            self.noise = nn.ModuleList(stack("realnvp", features, 2, (32, 32), features))
        given = {"loc": loc, "scale": scale, "context_loc": context_loc, "context_scale": context_scale}
        for name, values in given.items():
            size = context if name.startswith("context") else features
            neutral = torch.ones(size) if name.endswith("scale") else torch.zeros(size)
            self.register_buffer(name, neutral if values is None else _vector(name, values, size))
        self.register_buffer("prepared", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(features), persistent=False)
        if loc is not None and scale is not None:
            self._standardise(self.loc, self.scale)

    def _require_options(self, family: str, dequantise: str, whiten: bool) -> None:
        _one_of("dequantise", dequantise, DEQUANTISE)
        for t in self.transforms:
            flow = t.transform if isinstance(t, Conditional) else t
            assert isinstance(flow, FlowTransform)
            for direction in ("pull", "push"):
                flow.require(direction)
        if whiten and (self.levels or self.circular):
            raise PpgenError("whiten=True is for continuous data on the real line; leave it out")
        if self.levels:
            require_grid(self.low, self.high, self.levels)
            if self.circular or not 0 < self.margin < 0.5:
                raise PpgenError(
                    f"Flow got levels={self.levels}, family={family!r}, margin={self.margin}; expected "
                    "0 < margin < 0.5, and no family of angles for discrete data"
                )

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments that follow from the data: sizes, levels where the values lie on a grid, standardisation."""
        x = _column(data)
        if len(x) < 2:
            raise PpgenError("x has one row, which tells no density; give a flow two rows at least, better thousands")
        arguments: dict[str, Any] = {"features": x.shape[1]}
        if "context" in data:
            arguments["context"] = 1 if data["context"].dim() == 1 else data["context"].shape[1]
        found = find_grid(x)
        if found is not None:
            arguments |= dict(zip(("low", "high", "levels"), found, strict=True))
        else:
            _check_density(x)
        arguments |= {"loc": _mean(x).tolist(), "scale": _spread(x).tolist()}
        if "context" in data:
            c = data["context"].reshape(len(x), -1)
            arguments |= {"context_loc": _mean(c).tolist(), "context_scale": _spread(c).tolist()}
        return arguments

    # -- the program ---------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """p(x | context); for discrete data p(v, x | context)."""
        with ppgen.rows(x, context if self.context_features else None):
            density = self.density(context)
            if not self.levels:
                return pyro.sample("x", density, obs=None if x is None else self._values(x))
            v = pyro.sample("v", density)
            quantised = Quantised(v, self.low, self.high, self.levels)
            return pyro.sample("x", quantised, obs=None if x is None else self._values(x))

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        """Empty for continuous data; q(v | x) for discrete ones."""
        if self.levels and x is not None:
            with ppgen.rows(x):
                pyro.sample("v", self.dequantised(x))

    def density(self, context: Tensor | None = None) -> TorchDistribution:
        """p(x | context), exact; of v for discrete data."""
        c = self._context(context)
        base = self._base()
        parts: list[Any] = list(self.transforms)
        if c is not None:
            base = base.expand(c.shape[:-1])
            parts = [t.condition(c) if isinstance(t, Conditional) else t for t in parts]
        if self.base == "uniform" and not self.circular:
            parts.insert(0, SigmoidTransform().inv)
        if self.whitening is not None:
            parts.append(self.whitening)
        if not self.circular:
            parts.append(AffineTransform(self.loc, self.scale, event_dim=1))
        if self.levels:
            parts += logit_cells(self.levels, self.margin)
        return TransformedDistribution(base, parts)

    def dequantised(self, x: Tensor) -> Cell:
        """q(v | x), v in x's cell."""
        k = grid(self.low, self.high, self.levels).position(self._values(x)).round()
        if self.noise is None:
            return Cell(k)
        c = (k + 0.5) / self.levels * 4 - 2
        noise = Normal(self.zero, 1.0).to_event(1).expand(c.shape[:-1])
        layers: list[Any] = list(self.noise)
        return Cell(k, TransformedDistribution(noise, [t.condition(c) for t in layers]))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The exact log p(x | context) of continuous data in nats, (..., D) -> (...)."""
        if self.levels:
            raise PpgenError("the probability of discrete x is an integral; take a bound on it with ppgen evaluate")
        return self.density(context).log_prob(self._values(x))

    def _base(self) -> TorchDistribution:
        if isinstance(self.base, Distribution):
            return self.base
        one = self.zero + 1
        if self.circular:
            return Uniform(-math.pi * one, math.pi * one).to_event(1)
        if self.base == "uniform":
            return Uniform(self.zero, one).to_event(1)
        if self.base == "student":
            return StudentT(1 + softplus(self.raw_df), self.zero, one).to_event(1)
        return Normal(self.zero, one).to_event(1)

    def _values(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else x.to(self.zero.dtype)

    def _context(self, context: Tensor | None) -> Tensor | None:
        n = self.context_features
        if not n:
            return None
        if context is None:
            raise PpgenError(
                f"the flow is p(x | context) with {n} context feature(s), and no context was given; pass the column "
                "context (when sampling: --given FILE, or given={'context': ...})"
            )
        c = context.to(self.zero.dtype)
        if n == 1 and c.shape[-1:] != (1,):
            c = c[..., None]
        if c.shape[-1] != n:
            raise PpgenError(
                f"the flow has {n} context feature(s), and the column context is of shape {tuple(context.shape)}; its "
                f"last dimension must be {n}"
            )
        return (c - self.context_loc) / self.context_scale

    # -- what the data tell ---------------------------------------------------------------------------

    def setup(self, data: dict[str, Tensor], *args: Any, **kwargs: Any) -> Flow:
        """Before the first step: standardises by these rows, if nothing was recorded yet; see `Program.setup`."""
        if not self.prepared and "x" in data:
            self.prepare(data)
        if self.training and "x" in data:
            with torch.no_grad(), torch.random.fork_rng():  # ActNorm layers begin with these rows
                x = _column(data)
                self.density(data.get("context")).log_prob(self.dequantised(x).sample() if self.levels else x)
        super().setup(data, *args, **kwargs)
        return self

    @torch.no_grad()
    def prepare(self, data: dict[str, Tensor]) -> Flow:
        """Records mean and standard deviation of these rows, once; all later data are standardised by them.

        Raises:
            PpgenError: rows that have no density.
        """
        x = self._values(_column(data))
        if x.shape[1] != self.features:
            raise PpgenError(
                f"the flow has features={self.features}, and x is of shape {tuple(x.shape)}; make it with "
                f"features={x.shape[1]}"
            )
        if self.circular:
            _check_angles(x)
        elif not self.levels:
            _check_density(x)
            _warn_of_atoms(x)
        if not self.prepared:
            self._standardise_by(x, data)
        if self.whitening is not None and not self.whitening.measured and len(x) > self.features:
            self.whitening.measure((x.double() - self.loc) / self.scale)
        return self

    def _standardise_by(self, x: Tensor, data: dict[str, Tensor]) -> None:
        self._standardise(_mean(x), _spread(x))
        if self.context_features:
            if "context" not in data:
                self._context(None)
            c = data["context"].to(self.zero.dtype).reshape(len(x), -1)
            self.context_loc.copy_(_mean(c))
            self.context_scale.copy_(_spread(c))

    @torch.no_grad()
    def _standardise(self, mean: Tensor, sd: Tensor) -> None:
        """From mean and standard deviation of the data, those of what the transforms give."""
        if self.levels:
            # of v, uniform within its cell; then of its logit, to first order
            cells = grid(self.low, self.high, self.levels)
            mean, variance = cells.position(mean) + 0.5, (sd / cells.step).square() + 1 / 12
            share = self.margin + (1 - 2 * self.margin) * mean / self.levels
            sd = variance.sqrt() * (1 - 2 * self.margin) / self.levels / (share * (1 - share))
            mean = share.logit()
        self.loc.copy_(mean)
        self.scale.copy_(sd)
        self.prepared.fill_(1)


def _warn_of_atoms(x: Tensor) -> None:
    """Says that a column has one value in many rows, as codes, small counts and incomes of 0 have."""
    if len(x) <= 20:
        return
    some = x[:MOST_ROWS]
    values = some.mode(0).values
    share = (some == values).double().mean(0)
    found = (share >= ATOM).nonzero()[:, 0].tolist()
    if found:
        j = int(share.argmax())
        log.warning(
            "%d of the %d columns of x have one value in many rows, as column %d %g in %.0f%% of them: a flow can "
            "raise its density there without bound, so that log p(x) tells little; name such columns as context= "
            "(p(x | context), Flow(context=%d)), or write a program in which they have distributions of their own",
            len(found), x.shape[1], j, values[j].item(), 100 * float(share[j]), len(found),
        )  # fmt: skip


def _check_density(x: Tensor) -> None:
    """Raises PpgenError where the rows x, (N, D), cannot have a density on ℝ^D; few rows are not judged by."""
    if not all(b.isfinite().all() for b in blocks(x)):
        row, column = (~x.isfinite()).nonzero()[0].tolist()
        raise PpgenError(f"column {column} of x is {x[row, column].item()} in row {row}; drop or fill such rows")
    if len(x) <= 20:
        return
    constant = torch.stack([(b == x[0]).all(0) for b in blocks(x)]).all(0).nonzero()[:, 0].tolist()
    if constant:
        raise PpgenError(
            f"column {constant[0]} of x is constant ({x[0, constant[0]].item():g} in {len(x)} rows), so that its "
            "density is infinite; drop it, or if other rows differ, show them all to prepare() first"
        )
    if all((b == b.round()).all() for b in blocks(x)):
        raise PpgenError(
            "x has whole numbers only, whose density a flow can raise without bound; dequantise them: Flow(levels=..., "
            "low=..., high=...), or add uniform noise"
        )
    if len(x) < 2 * x.shape[1] + 20:
        return
    mean, sd = moments(x)
    norm = sd * (len(x) - 1) ** 0.5
    units = ((b.double() - mean) / norm for b in blocks(x))
    correlation = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    huge = torch.zeros(0, dtype=torch.bool)
    for unit in units:
        correlation += unit.mT @ unit
        huge = torch.cat([huge, (unit.square() > 0.5).any(1)])  # a row that is most of a column's variance
    if huge.any():
        _check_density(x[~huge])  # `ppgen.data.validate` names it
        return
    twins = (correlation.abs().triu(1) > 1 - 1e-9).nonzero()
    if len(twins):
        i, j = twins[0].tolist()
        raise PpgenError(
            f"columns {i} and {j} of x are the same up to shift and scale, so that the density is infinite; drop one"
        )
    values, vectors = torch.linalg.eigh(correlation)
    if values[0] < 1e-9:
        involved = (vectors[:, 0].abs() > 1e-3).nonzero()[:, 0].tolist()
        raise PpgenError(
            f"columns {', '.join(map(str, involved))} of x are linearly dependent, so that the density is infinite; "
            "drop one of them"
        )


def _check_angles(x: Tensor) -> None:
    if not ((x >= -math.pi) & (x < math.pi)).all():
        raise PpgenError(
            f"family 'ncsf' is for angles in [-pi, pi), and x goes from {x.min().item():g} to {x.max().item():g}; wrap "
            "them, or take family 'nsf'"
        )


def _mean(x: Tensor) -> Tensor:
    return moments(x)[0]


def _spread(x: Tensor) -> Tensor:
    """Standard deviations of the columns; 1 for those that do not vary."""
    if len(x) < 2:
        return torch.ones_like(x[0], dtype=torch.float64)
    sd = moments(x)[1]
    most = torch.stack([b.double().abs().amax(0) for b in blocks(x)]).amax(0)
    return torch.where(sd > 1e-12 * most.clamp_min(1e-300), sd, 1.0)


def _column(data: dict[str, Tensor]) -> Tensor:
    if "x" not in data or data["x"].dim() < 2:
        needed = "Flow needs a column x of shape (rows, features)"
        raise lacking(needed, data, "name or gather it with columns= (--columns x=a+b)")
    return data["x"].flatten(1)


def _check_base(base: str | Distribution, features: int, circular: bool) -> str | Distribution:
    if isinstance(base, Distribution):
        if base.event_shape != (features,):
            raise PpgenError(
                f"the base has event shape {tuple(base.event_shape)}; expected ({features},), as in "
                f"Normal(torch.zeros({features}), 1.0).to_event(1)"
            )
        return base
    _one_of("base", base, BASES)
    if circular and base == "student":
        raise PpgenError("family 'ncsf' is for angles, whose base is uniform; leave base out")
    return base


def _vector(name: str, values: Sequence[float], size: int) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.get_default_dtype()).reshape(-1)
    if len(vector) != size or not vector.isfinite().all() or (name.endswith("scale") and not (vector > 0).all()):
        raise PpgenError(f"{name} has {len(vector)} number(s); expected {size} finite ones, positive for a scale")
    return vector


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PpgenError(f"{name} is {value!r}{nearest(str(value), known)}; take one of {', '.join(known)}")
