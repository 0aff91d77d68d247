r"""A flow as the guide of any program: q(z | x) = f_# N(0, I), in the latents' unconstrained space.

    e ~ N(0, I),   u = loc + L (f_K ∘ ... ∘ f_1)(e),   z_i = biject_to(support_i)(u_i)
    log q(z | x) = log N(e; 0, I) − log |det ∂u/∂e| − Σ_i log |det ∂z_i/∂u_i|

f_k are inverse autoregressive: affine maps and, but for `smooth`, rational-quadratic splines whose parameters depend on
the entries of e before them, so that a draw and its density take one pass. They begin as the identity, f_1 excepted,
which makes the tails heavier: the flow begins as N(loc, L Lᵀ) within 2.5 sd, and its importance weights have a chance
to be bounded.

Global latents are one vector. Latents in a plate over the rows are, where they are few, part of that vector
(one posterior for the rows that were fitted); else, and with minibatches, each row has a vector of its own, and one
flow whose context is the row's columns and the global latents draws them all: rows are independent given the global
latents in the model, and so they are here. Fitted to draws of the model (`wake_sleep`), the flow of the global latents
reads all rows as well.

Sources: Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016, arXiv:1606.04934); Neural
Spline Flows (Durkan et al., 2019, arXiv:1906.04032); Automatic structured variational inference (Ambrogioni et al.,
2021, arXiv:2002.00643), for a guide with the model's plates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ppgen.data import row_columns
from ppgen.errors import PpgenError
from ppgen.guides._latents import emit, places, require_whole_plates, row_frame, vector
from ppgen.guides._started import Started
from ppgen.nets import MLP
from ppgen.transforms import Conditional, FlowTransform, iaf, spline
from ppgen.transforms.change_of_variables import Inverse

SUMMARY = "a flow in the latents' unconstrained space"
STARTS = 8
BATCHES = {"amortised": True}
DREAMS = {"amortised": True, "reads": True}
JOINT = 100  # entries up to which local latents join the global vector
DENSE = 500  # entries up to which L is a full triangle


class _Tails(FlowTransform):
    """x = e, and beyond ±2.5 faster: |x| = |e| + (|e| − 2.5)³ / 10. No parameters.

    Draws so far out are too few to teach a flow its tails, and a normal's are lighter than those of many posteriors (a
    log scale's are exponential), so that a few importance weights would be without bound. These are heavier.
    """

    begin, rate = 2.5, 0.1

    def __init__(self, features: int):
        super().__init__((features,))

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        t = (z.abs() - self.begin).relu()
        return z + self.rate * t**3 * z.sign(), (3 * self.rate * t * t).log1p().sum(-1)

    def pull(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        root = (3 * self.rate) ** 0.5
        beyond = (x.abs() - self.begin).relu()
        t = 2 / root * ((1.5 * root * beyond).asinh() / 3).sinh()  # of t + rate t³ = beyond
        return x + (t - beyond) * x.sign(), -(3 * self.rate * t * t).log1p().sum(-1)


class _Stack(Started):
    """e -> loc + L f(e) of (..., D) vectors, f the identity at first, but for its tails; with its log-determinant.

    Where a start was found, loc and L are in its units: u = loc₀ + L₀ (loc + L f(e)).

    Args:
        features: D.
        context: features of the context, 0 for none.
        transforms: pairs of an affine map and a spline, in alternating orders.
        hidden: widths of each network.
        smooth: affine maps alone, of networks with ELU.
    """

    parts: Any  # a ModuleList of FlowTransforms

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 2,
        hidden: Sequence[int] = (32, 32),
        smooth: bool = False,
    ):
        super().__init__()
        parts: list[FlowTransform] = [_Tails(features)]
        for i in range(transforms):
            order = torch.arange(features)
            order = order.flip(0) if i % 2 else order
            parts.append(_plain(iaf(features, context, hidden, order, activation=nn.ELU if smooth else None)))
            if not smooth:
                parts.append(Inverse(_plain(spline(features, context, hidden, order))))
        for part in parts[1:]:
            _vanish(part)
        self.features = features
        self.parts = nn.ModuleList(parts)
        self.loc = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.full((features,), math.log(0.1)))
        dense = 1 < features <= DENSE
        self.lower = nn.Parameter(torch.zeros(features, features)) if dense else None  # in units of the diagonal

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale_tril: Tensor) -> None:
        """f stays; loc and L are those of N(0, I), in units of this Gaussian."""
        self.keep_start(loc, scale_tril)
        for parameter in (self.loc, self.log_diagonal, *([] if self.lower is None else [self.lower])):
            parameter.zero_()

    def standard(self, u: Tensor) -> Tensor:
        """u without its location and scale, as a network likes its inputs."""
        if self.start is not None:
            return (u - self.start[0]) / self.start[1].norm(dim=-1)
        return (u - self.loc.detach()) * (-self.log_diagonal.detach()).exp()

    def push(self, e: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u and log |det ∂u/∂e|, of shapes (..., D) and (...)."""
        total = self.log_diagonal.sum()
        for part in self.parts:
            e, ladj = part.push(e, context)
            total = total + ladj
        mixed = e if self.lower is None else e + (self.lower.tril(-1) * e[..., None, :]).sum(-1)
        v = self.loc + self.log_diagonal.exp() * mixed
        if self.start is None:
            return v, total
        loc, root = self.start
        return loc + (root * v[..., None, :]).sum(-1), total + root.diagonal().log().sum()

    def pull(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """e and log |det ∂e/∂u|; D passes of each network."""
        total = -self.log_diagonal.sum()
        if self.start is not None:
            loc, root = self.start
            u = torch.linalg.solve_triangular(root, (u - loc)[..., None], upper=False)[..., 0]
            total = total - root.diagonal().log().sum()
        e = (u - self.loc) * (-self.log_diagonal).exp()
        if self.lower is not None:
            unit = self.lower.tril(-1) + torch.eye(self.features).to(u)
            e = torch.linalg.solve_triangular(unit, e[..., None], upper=False, unitriangular=True)[..., 0]
        for part in reversed(self.parts):
            e, ladj = part.pull(e, context)
            total = total + ladj
        return e, total


def _plain(part: FlowTransform | Conditional) -> FlowTransform:
    """The transform that takes its context as an argument."""
    return part.transform if isinstance(part, Conditional) else part


def _vanish(part: FlowTransform) -> None:
    """Parameters of affine maps and splines are 0, where both are the identity."""
    layers = [m for m in part.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    with torch.no_grad():
        for parameter in layers[-1].parameters() if layers else part.parameters():  # of one entry there is no network
            parameter.zero_()


class _Means(nn.Module):
    """Means over rows of features of each: (rows, F) -> (features,), whatever their order."""

    def __init__(self, inputs: int, hidden: Sequence[int]):
        super().__init__()
        self.each = MLP(inputs, hidden[-1], hidden, "elu")

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).mean(0)


class _Pushed(TorchDistribution):
    """The law of push(e), e ~ N(0, I): vectors. What it drew itself it knows the density of without an inverse."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, stack: _Stack, context: Tensor | None = None, batch_shape: Sequence[int] | None = None):
        self.stack, self.context = stack, context
        self._drawn: tuple[Tensor, Tensor] | None = None
        own = () if context is None else context.shape[:-1]
        shape = torch.Size(own if batch_shape is None else batch_shape)
        super().__init__(shape, torch.Size((stack.features,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Pushed:
        return _Pushed(self.stack, self.context, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        e = torch.randn(self._extended_shape(torch.Size(sample_shape))).to(self.stack.loc)
        u, ladj = self.stack.push(e, self.context)
        self._drawn = u, _log_normal(e) - ladj
        return u

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        e, ladj = self.stack.pull(value, self.context)
        return _log_normal(e) + ladj


def _spread(x: Tensor) -> Tensor:
    """The standard deviations of columns; 1 of a constant one."""
    sd = x.std(0, correction=0)
    return torch.where(sd > 1e-6 * x.mean(0).abs(), sd, 1.0)


def _log_normal(e: Tensor) -> Tensor:
    return -0.5 * (e * e).sum(-1) - 0.5 * e.shape[-1] * math.log(2 * math.pi)


class Guide(nn.Module):
    """The flow guide of a program; see above.

    Args:
        sites: the latents of a run of the model, by name.
        over_rows: the plates over the rows, and their dimensions.
        data: columns, or a batch of them.
        rows: the row columns, where the data are too few to tell.
        transforms, hidden: of the flows: pairs of transforms, and widths of their networks.
        amortised: whether local latents are read off their row; None: where they have more than `JOINT` entries.
        reads: whether the global latents are drawn given the rows, a mean over them of features that a network finds
            (Deep Sets, Zaheer et al., 2017, arXiv:1703.06114) where the model has a plate over the rows, and else their
            columns as one vector.
        smooth: without splines, and by networks with ELU: the gradient of its density has no jumps, which would keep
            the steps of chains that go through it short (`mcmc(..., through=True)`).

    Attributes:
        spec: the name and keywords that it is made of again.
        amortised: whether it can be asked about other rows than it was made with.
        columns: the row columns that it reads.

    Raises:
        PpgenError: a latent in a plate that subsamples by itself, or in two plates over the rows.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        sites: Mapping[str, dict[str, Any]],
        over_rows: Mapping[str, int],
        data: Mapping[str, Tensor],
        rows: tuple[str, ...] = (),
        *,
        transforms: int = 2,
        hidden: Sequence[int] = (32, 32),
        amortised: bool | None = None,
        reads: bool = False,
        smooth: bool = False,
    ):
        super().__init__()
        require_whole_plates(sites)
        local = {n for n, s in sites.items() if row_frame(n, s, over_rows) is not None}
        if amortised is None:
            amortised = bool(local) and sum(s["value"].numel() for s in sites.values()) > JOINT
        amortised = amortised and bool(local)
        joint = {n: s for n, s in sites.items() if not (amortised and n in local)}
        self.of_all = places(joint, {})
        self.of_rows = places({n: s for n, s in sites.items() if n not in joint}, over_rows)
        rows = rows or row_columns(data)
        reads = reads and bool(self.of_all) and bool(rows)
        self.amortised = amortised and not reads
        self.columns = rows if amortised or reads else ()
        self.summary: nn.Module | None = None
        features = 0
        if self.columns:
            x = self._table(data)
            self.rows, features = x.shape
            self.register_buffer("mean", x.mean(0))
            self.register_buffer("sd", _spread(x))
        if reads:
            self.summary = _Means(features, hidden) if over_rows else nn.Flatten(0)
        if self.of_all:
            context = 0 if self.summary is None else len(self.summary(x))
            self.flow = _Stack(self.of_all[-1].stop, context, transforms, hidden, smooth)
        if self.of_rows:
            context = features + (self.of_all[-1].stop if self.of_all else 0)
            self.row_flow = _Stack(self.of_rows[-1].stop, context, transforms, hidden, smooth)
        last = "".join(f", {k}=True" for k, v in {"reads": reads, "smooth": smooth}.items() if v)
        self.spec = f"flow(transforms={transforms}, hidden={tuple(hidden)}, amortised={amortised}{last})"

    def forward(self, **columns: Tensor) -> None:
        x = (self._table(columns) - self.mean) / self.sd if self.columns else None
        rows = 0 if x is None else len(x)
        if self.summary is not None and rows != self.rows:
            raise PpgenError(
                f"the flow guide was made for {self.rows} rows at once, and reads {rows}; pass as many, or fit again"
            )
        frames = {f for latent in (*self.of_all, *self.of_rows) for f in latent.frames}
        plates = {name: pyro.plate(name, rows if size is None else size, dim=dim) for name, dim, size in sorted(frames)}
        u: Tensor | None = None
        if self.of_all:
            context = None if self.summary is None else self.summary(x)
            u = pyro.sample("_flow", _Pushed(self.flow, context), infer={"is_auxiliary": True})
            for latent in self.of_all:
                emit(latent, u, plates)
        if not self.of_rows or x is None:
            return
        (name, dim, _) = next(f for f in self.of_rows[0].frames if f[2] is None)
        x = x.reshape(rows, *(1,) * (-dim - 1), -1)
        if u is not None:
            x = torch.cat((x, self.flow.standard(u).expand(*x.shape[:-1], -1)), -1)
        with plates[name]:
            v = pyro.sample("_flow_rows", _Pushed(self.row_flow, x), infer={"is_auxiliary": True})
        for latent in self.of_rows:
            emit(latent, v, plates)

    def _table(self, data: Mapping[str, Tensor]) -> Tensor:
        """The row columns side by side, (rows, features)."""
        for name in self.columns:
            if name not in data or data[name] is None:
                raise PpgenError(f"the flow guide reads the column {name!r}, and the data lack it; pass it")
        like = torch.get_default_dtype()
        return torch.cat([data[n].to(like).reshape(len(data[n]), -1) for n in self.columns], -1)

    @torch.no_grad()
    def begin_at(self, data: Sequence[Mapping[str, Tensor]], draws: Sequence[Mapping[str, Tensor]]) -> None:
        """Begins as independent normals of the moments of these draws of latents, and takes columns in their units."""
        if self.columns:
            x = torch.cat([self._table(columns) for columns in data])
            self.mean, self.sd = x.mean(0), _spread(x)
        for latents, stack in ((self.of_all, "flow"), (self.of_rows, "row_flow")):
            if latents:
                u = torch.stack([vector(latents, values) for values in draws]).flatten(0, -2)
                getattr(self, stack).start_at(u.mean(0), torch.diag(_spread(u)))

    def auxiliaries(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its own draws, by site, of which it would make these values of the latents."""
        of = {"_flow": self.of_all, "_flow_rows": self.of_rows}
        return {site: vector(latents, values) for site, latents in of.items() if latents}

    @torch.no_grad()
    def start_at(self, values: Mapping[str, slice], loc: Tensor, scale_tril: Tensor) -> None:
        """Begins as the Gaussian of these moments of the unconstrained latents, as far as it has a place for them.

        Args:
            values: where each latent stands in loc.
        """
        if self.of_all:
            index = torch.cat([torch.arange(values[a.name].start, values[a.name].stop) for a in self.of_all])
            rows = scale_tril[index]
            self.flow.start_at(loc[index], torch.linalg.cholesky(rows @ rows.T))
