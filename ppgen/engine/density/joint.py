r"""The log joint of a program as a function of one unconstrained vector, traced, for samplers that run many chains.

    log p(x, z(u)) + Σ_i log |det ∂z_i / ∂u_i|,    z_i = biject_to(support_i)(u_i)

The program is interpreted once. Many chains at once are `torch.func.vmap` of the one-chain function, recorded as
one graph of batched operations.

Source: Stan's transforms of constrained variables (Stan reference manual, Constraint transforms).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.engine.compiling.tiers import fastest
from ppgen.engine.density.leapfrog import large_step, leapfrog_step
from ppgen.engine.density.pathfinder import Density
from ppgen.engine.graphs.executable import executable
from ppgen.engine.graphs.graph import forgiving, in_own_memory
from ppgen.engine.graphs.trace import Traced, Untraceable, trace
from ppgen.enumerated import require_summable, summed_terms
from ppgen.errors import PpgenError, nearest
from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import require_bijection, sample_sites, support_of
from ppgen.structure import nesting_of
from ppgen.supports import Placing, Transforms, is_bounded, located, moving, scaled, transform_of
from ppgen.terms import Traces, drawn_density, run, terms
from ppgen.terms import total as log_joint_of

log = logging.getLogger("ppgen")

aten = torch.ops.aten

RUNS = 20  # of the model, whose latents are compared
FUSED_DIM = 200  # beyond it a leapfrog step is no graph of its own: that of the gradient serves for all
BLOCK = 64  # vectors a call, where the graph of one call is to serve for any number of them


class _Block(NamedTuple):
    """A latent's place in the vector. `shape` is that of its unconstrained value."""

    start: int
    stop: int
    shape: torch.Size
    transform: Any


class LogJoint:
    """log p(x, z(u)) + log |det ∂z/∂u| of one u or of many.

    Attributes:
        blocks: by latent, its place in u, its shape there, and the transform to its support; of those that move, the
            one of the first run.
        moving: latents whose transform depends on others, and is asked of each run: by their support, or non-centred.
        noncentred: latents whose place in u is that of (z - loc) / scale.
        dim: the length of u.
        latents: the names of the sites in it, in order.
        labels: of the entries of u: `mu`, `theta[0]`, ...
        summed: discrete latents that are summed out.
        alone: whether `leapfrog` has found that chains cannot be run together.
        improper: latents whose prior is no density that integrates to one: it is flat, scaled or masked.
        proper: whether the latents' terms are the log-density of draws from the prior: none is improper, and none may
            depend on a discrete latent.
    """

    def __init__(
        self, program: Program, data: Mapping[str, Any], *, engine: str = "trace", calls: int = 0,
        noncentred: str | Sequence[str] = (),
    ):  # fmt: skip
        """
        Args:
            program: set up already; its parameters stay as they are.
            data: the columns.
            engine: eager, trace, compile, or auto: compile where `calls` calls earn the compilation back.
            calls: how many calls are expected.
            noncentred: latents that are to be, or "all": those whose scale depends on other latents, but for those that
                the program knows to be better as they are (`centred_latents`).

        Raises:
            PpgenError: a discrete latent that cannot be summed out, no latent, a log-density that is itself drawn, or a
                latent that cannot be non-centred.
        """
        self.program, self.data, self.engine, self.calls = program, dict(data), engine, calls
        self._untraced = False  # whether it turned out that it cannot be traced
        self.alone = False  # whether it turned out that chains cannot be run together
        self._with_room: dict[bool, Callable[[Tensor], Tensor]] = {}  # `one` from its recording, by `prior`
        self._same_sites = False  # whether draws from the prior have been seen to have the same latents
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation():
            sites = prune_subsample_sites(poutine.trace(self._model).get_trace())
            if drawn := drawn_density(Traces(sites, poutine.Trace())):
                raise PpgenError(
                    f"{drawn}, and {program.name} has no log joint that can be climbed or sampled; give the site a "
                    "log_prob that is a function of its value, or fit a guide (its ELBO may be drawn)"
                )
        self.noncentred = self._named(noncentred, sites)
        self.blocks: dict[str, _Block] = {}
        start = 0
        summed: list[str] = []
        for name in sites.stochastic_nodes:
            site = sites.nodes[name]
            support = support_of(site["fn"])
            if support is not None and support.is_discrete:
                if not site["fn"].has_enumerate_support:
                    raise PpgenError(
                        f"the latent {name!r} is discrete and has no place in an unconstrained vector, and "
                        f"{type(site['fn']).__name__} has too many values to sum it out; sum it out of the model by "
                        "hand, or fit the program with a guide for it"
                    )
                summed.append(name)
                continue
            require_bijection(name, site["fn"])
            transform = transform_of(site["fn"], name in self.noncentred)
            shape = transform.inv(site["value"]).shape
            self.blocks[name] = _Block(start, start + shape.numel(), shape, transform)
            start += shape.numel()
        self.summed = tuple(summed)
        self.improper = tuple(n for n in self.blocks if not _is_density(sites.nodes[n]))
        self.proper = not self.improper and not summed
        self._nesting = nesting_of(sample_sites(sites, factors=True).values())
        if summed and not start:
            raise PpgenError(
                f"the latent {summed[0]!r} is discrete, and {program.name} has none that is continuous for a chain to "
                "move; its posterior is known exactly: run = fit(program, data, objective='enumerate', steps=0) sums "
                "it out, and posterior(run, data) draws from it (ppgen fit --objective enumerate --steps 0)"
            )
        if not start:
            raise PpgenError(f"{program.name} has no latent; its log-likelihood is a number (ppgen loglik)")
        if summed:
            with without_validation():
                require_summable(program, self.data, self._nesting, summed)
        self.dim, self.latents = start, tuple(self.blocks)
        self.moving = self._moving(sites)
        self.labels = tuple(label for name, b in self.blocks.items() for label in entry_labels(name, b.shape))
        self._require_one_value({n: sites.nodes[n]["value"] for n in self.blocks})
        self._graphs: dict[tuple, Callable[..., Any]] = {}

    def _named(self, noncentred: str | Sequence[str], sites: Any) -> tuple[str, ...]:
        """Refuses what is no latent, or has no location and no scale."""
        if noncentred == "all":
            left = [n for n in sites.stochastic_nodes if n not in self.program.centred_latents]
            return tuple(scaled(self._model, sites.nodes, left))
        names = (noncentred,) if isinstance(noncentred, str) else tuple(noncentred)
        for name in names:
            if name not in sites.stochastic_nodes:
                raise PpgenError(
                    f"noncentred names {name!r}, and {self.program.name} has the latents "
                    f"{', '.join(sites.stochastic_nodes)}{nearest(name, sites.stochastic_nodes)}"
                )
            if located(fn := sites.nodes[name]["fn"]) is None:
                raise PpgenError(
                    f"the latent {name!r} ({type(fn).__name__}) has no location and scale to be non-centred "
                    "by, as a normal, a Student's t, a Laplace, a Cauchy and what is made of them have; leave it out"
                )
        return names

    def _moving(self, sites: Any) -> tuple[str, ...]:
        """Those whose support depends on other latents; refused where these are summed out."""
        self._held = {n: sites.nodes[n]["value"] for n in self.summed}
        found = moving(self._model, sites.nodes, [n for n in self.blocks if n not in self.noncentred])
        if found and self.summed:
            at = {n: sites.nodes[n]["value"] for n in self.blocks}
            if by_summed := moving(lambda: run(self.program, self.data, latents=at), sites.nodes, found):
                raise PpgenError(
                    f"the support of {by_summed[0]!r} depends on a discrete latent, which is summed out, so that it "
                    "has no one place in an unconstrained vector; draw a share of it from Uniform(0, 1), and scale that"
                )
        return (*found, *self.noncentred)

    def _require_one_value(self, latents: Mapping[str, Tensor]) -> None:
        """Refuses a program that draws something that is no site, so that its density is another one at each call."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(LinAlgError, RuntimeError):
            u = self.flatten(latents).to(torch.get_default_dtype())
            one, two = self.one(u), self.one(u)
            if torch.isfinite(one) and not torch.allclose(one, two, rtol=1e-4, atol=1e-4):
                raise PpgenError(
                    f"the log joint of {self.program.name} is drawn anew at each call, or changes with what an earlier "
                    f"call left behind (two at one point differ by {float((one - two).abs()):.2g} nats), so that it "
                    "cannot be climbed or sampled; draw what it draws at a pyro.sample site, let each call begin alike "
                    "(a counter, a buffer), or fit a guide (its ELBO may be drawn)"
                )

    def __call__(self, u: Tensor) -> Tensor:
        """(..., dim) -> (...): nats."""
        (value,) = self._run("value", u)
        return value

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) -> (...) in nats and (..., dim), of the dtype of u, whatever the program computes in."""
        value, grad = self._run("grad", u)
        return value.to(u), grad.to(u)

    def prior_value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density of `prior`'s draws, where the prior is `proper`, and its gradient; see `value_and_grad`."""
        value, grad = self._run("prior", u)
        return value, grad

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]:
        """One leapfrog step of many chains, in the coordinates y in which the metric is the identity.

            u = centre + root y,   p += step/2 ∇_y log p,   y += step p,   p += step/2 ∇_y log p

        Args:
            y, p, g: (chains, dim): position, momentum, gradient of the log joint in y.
            step: the step size, a scalar tensor.
            centre, root: (dim,), and (dim,), lower-triangular (dim, dim), or (dim, 1 + rank); see `outward`.

        Returns:
            y, p, g, and log p (chains,) at the new place; NaN where it cannot be evaluated.
        """

        def fn(*inputs):  # annotations would go into the graph
            return leapfrog_step(both, *inputs)

        both = torch.func.vmap(torch.func.grad_and_value(self.one), randomness="different")
        # Compiled code reads memory as the example had it, and a Cholesky factor comes column by column.
        inputs = [x.contiguous() for x in (y, p, g, step, centre, root)]
        key = ("leapfrog", y.shape, y.dtype, root.shape)
        if self.engine == "eager" or self.alone:
            return leapfrog_step(self._chain_by_chain, *inputs)
        if self.dim > FUSED_DIM:
            return large_step(self.value_and_grad, *inputs)
        if key not in self._graphs:
            example = [x.clone() for x in inputs]  # one tensor given twice would be one input
            try:
                self._graphs[key] = self.build(fn, example)
            except PpgenError as e:  # an operation that cannot be batched
                log.info("%s; its chains are run one after the other", e)
                self.alone = True
                return leapfrog_step(self._chain_by_chain, *inputs)
        return list(self._graphs[key](*inputs))

    def require_same_sites(self) -> None:
        """Of a program whose control flow may read values; one that could be traced has none that does.

        Raises:
            PpgenError: a latent is drawn at some values of the others only.
        """
        if self._same_sites:
            return
        expected = {*self.blocks, *self.summed}
        for seed in range(RUNS):
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation():
                    torch.manual_seed(seed)
                    found = prune_subsample_sites(poutine.trace(self._model).get_trace()).stochastic_nodes
            except (RuntimeError, ValueError):  # a draw from the prior at which the model cannot be run
                continue
            if differ := sorted(expected.symmetric_difference(found)):
                raise PpgenError(
                    f"{self.program.name} draws the latent {differ[0]!r} in some runs and not in others, so that its "
                    "posterior has no fixed number of latents; draw it in every run, and use it in those that need it "
                    "(torch.where)"
                )
        self._same_sites = True

    def _chain_by_chain(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value of each chain."""
        self.require_same_sites()
        value, grad = torch.full_like(u[:, 0], torch.nan), torch.full_like(u, torch.nan)
        for i, row in enumerate(u):
            with contextlib.suppress(LinAlgError, ValueError):  # a factor that does not exist
                value[i], grad[i] = self._by_autograd(row) if self._untraced else self._one_traced(row)
        return grad, value

    def _one_traced(self, u: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self.value_and_grad(u)
        except LinAlgError:
            raise
        except (PpgenError, RuntimeError) as e:  # an operation that torch.func has no gradient of
            log.info("%s; it is run as it stands", e)
            self._untraced = True
            return self._by_autograd(u)

    def _by_autograd(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of one chain, by the program itself."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self.one(u)
            (grad,) = torch.autograd.grad(value, u)
        return value.detach(), grad

    def unflatten(self, u: Tensor) -> dict[str, Tensor]:
        """The latents by name, on their own supports, with u's leading dimensions."""
        lead = u.shape[:-1]
        if not self.moving:
            return {n: b.transform(u[..., b.start : b.stop].reshape(lead + b.shape)) for n, b in self.blocks.items()}
        values = self._one_by_one(lambda v: self._placed(v["u"])[0], {"u": u.reshape(-1, self.dim)})
        return {n: v.reshape(lead + v.shape[1:]) for n, v in values.items()}

    def flatten(self, latents: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `unflatten`."""
        if not self.moving:
            return self._joined({n: b.transform.inv(latents[n]) for n, b in self.blocks.items()})
        first, b = next((latents[n], b) for n, b in self.blocks.items())
        lead = first.shape[: first.dim() - len(b.transform.forward_shape(b.shape))]
        flat = {n: latents[n].reshape(-1, *latents[n].shape[len(lead) :]) for n in self.blocks}
        return self._joined(self._one_by_one(self._inverse, flat)).reshape(*lead, self.dim)

    def vectors(self, draws: Mapping[str, Any], lead: int) -> Tensor:
        """Draws of each latent as vectors; after the first `lead` dimensions they are of any shape of its size.

        Raises:
            PpgenError: a latent of another size.
        """
        values: dict[str, Tensor] = {}
        for name, one in self.unflatten(torch.zeros(self.dim)).items():
            v = torch.as_tensor(draws[name])
            if v.shape[lead:].numel() != one.numel():
                raise PpgenError(
                    f"the draws of {name!r} have shape {tuple(v.shape[lead:])}, and {self.program.name} on these data "
                    f"has {tuple(one.shape)}; take draws for the same data"
                )
            values[name] = v.reshape(v.shape[:lead] + one.shape).to(torch.get_default_dtype())
        return self.flatten(values)

    def _joined(self, inner: Mapping[str, Tensor]) -> Tensor:
        """One vector of unconstrained values."""
        parts = []
        for name, b in self.blocks.items():
            v = inner[name]
            parts.append(v.reshape(v.shape[: v.dim() - len(b.shape)] + (-1,)))
        return torch.cat(parts, -1)

    def _inverse(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unconstrained values of one value of each latent, by the supports in a run at them."""
        with without_validation(), Transforms(self.moving, self.noncentred) as seen:
            run(self.program, self.data, latents=latents | self._held)
        own = {n: b.transform for n, b in self.blocks.items()} | seen.found
        return {n: t.inv(latents[n]) for n, t in own.items()}

    def _placed(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The latents of one vector, and log |det ∂z/∂u|."""
        inner = {n: u[b.start : b.stop].view(b.shape) for n, b in self.blocks.items()}
        if self.moving:
            with without_validation(), Placing(inner, self._held, self.noncentred) as at:
                self._model()
            return at.values, at.log_det
        latents, total = {}, torch.zeros((), dtype=u.dtype)
        for name, b in self.blocks.items():
            latents[name] = b.transform(inner[name])
            total = total + b.transform.log_abs_det_jacobian(inner[name], latents[name]).sum()
        return latents, total

    def _one_by_one(self, fn: Callable[..., dict[str, Tensor]], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """fn of each row of its inputs, by runs of the program: together, or one after the other where that fails."""
        with torch.no_grad():
            try:
                return torch.func.vmap(fn, randomness="different", chunk_size=BLOCK)(inputs)
            except (RuntimeError, ValueError) as e:
                log.info("%s; latents are placed one draw at a time", e)
                each = [fn(dict(zip(inputs, row, strict=True))) for row in zip(*inputs.values(), strict=True)]
                return {n: torch.stack([one[n] for one in each]) for n in each[0]}

    @property
    def bounded(self) -> set[str]:
        """The latents whose support ends on both sides, the same in each run."""
        return {n for n, b in self.blocks.items() if n not in self.moving and is_bounded(b.transform)}

    @property
    def places(self) -> dict[str, slice]:
        """Where each latent is in u."""
        return {n: slice(b.start, b.stop) for n, b in self.blocks.items()}

    def place(self, u: Tensor, names: Sequence[str] = ()) -> str:
        """Where a vector is, in words: `mu = 1.5, theta = (0.2, 3)`, the first of its latents, or of these."""
        words, values = [], self.unflatten(u)
        for name in (names or self.latents)[:3]:
            value = values[name]
            first = [f"{v:.3g}" for v in value.flatten()[:3].tolist()]
            more = ", ..." if value.numel() > 3 else ""
            words.append(f"{name} = {first[0]}" if value.numel() == 1 else f"{name} = ({', '.join(first)}{more})")
        return ", ".join(words) + (", ..." if len(names or self.latents) > 3 else "")

    # -- one chain ---------------------------------------------------------------------------------

    def _model(self) -> Any:
        return self.program.call("model", self.data)

    def one(self, u: Tensor, prior: bool = False) -> Tensor:
        """Of one vector, by the program itself, or by its recording where many chains at once need that."""
        if prior in self._with_room:
            return self._with_room[prior](u)
        latents, total = self._placed(u)
        with without_validation():
            if self.summed:
                found = summed_terms(self.program, self.data, self._nesting, latents=latents)
            else:
                found = terms(run(self.program, self.data, latents=latents))
        return total + log_joint_of([t for t in found if t.role == "prior"] if prior else found)

    def _give_room(self) -> bool:
        """Whether what the program writes in place is now given room for all chains, and was not before.

        `p = torch.zeros(3); p[0] = f(z)` cannot be batched as it stands, as p has room for the z of one chain.
        """
        if self._with_room:
            return False
        with contextlib.suppress(Untraceable):
            for prior in (False, True):
                one = partial(self.one, prior=prior)
                recorded = trace(one, [torch.zeros(self.dim)], differentiable=True, held=True)
                run_it = executable(in_own_memory(recorded.graph), gradient=True)
                self._with_room[prior] = partial(_roomy, run_it, recorded.constants)
            return True
        return False

    def prior(self) -> Tensor:
        """One draw from the prior, (dim,); from torch's random state."""
        with torch.no_grad(), without_validation():
            nodes = poutine.trace(self._model).get_trace().nodes
        drawn = self.flatten({name: nodes[name]["value"] for name in self.blocks})
        return drawn.to(torch.get_default_dtype())  # a prior made of float32 tensors draws such

    # -- many --------------------------------------------------------------------------------------

    def _function(self, kind: str, many: bool) -> Callable[[Tensor], Any]:
        if kind in ("grad", "prior"):
            one = torch.func.grad_and_value(partial(self.one, prior=kind == "prior"))
            both: Callable[[Tensor], Any] = torch.func.vmap(one, randomness="different") if many else one
            return lambda u: both(u)[::-1]
        if many and self.summed:  # Pyro reads `value.data`, which vmap alone does not allow
            of_all = self._function("grad", many)
            return lambda u: of_all(u)[:1]
        value: Callable[[Tensor], Any] = torch.func.vmap(self.one, randomness="different") if many else self.one
        return lambda u: (value(u),)

    def _run(self, kind: str, u: Tensor) -> Any:
        lead = u.shape[:-1]
        flat = (u.detach().reshape(-1, self.dim) if u.dim() > 1 else u.detach()).contiguous()
        if self.engine == "eager" and flat.dim() > 1 and kind != "prior":
            grad, value = self._chain_by_chain(flat)
            return value.reshape(lead), *([grad.reshape(u.shape)] if kind == "grad" else [])
        key = (kind, flat.shape, flat.dtype)
        if key not in self._graphs:
            self._graphs[key] = self.build(self._function(kind, flat.dim() > 1), [flat])
        value, *grad = self._graphs[key](flat)
        return value.reshape(lead), *(g.reshape(u.shape) for g in grad)

    def build(self, fn: Callable[..., Any], example: Sequence[Tensor]) -> Callable[..., Any]:
        """A function of tensors as this joint's engine runs it."""
        if self.engine == "eager":
            return fn
        try:
            traced = trace(fn, example, held=True)
        except Untraceable as e:
            if self._give_room():
                return self.build(fn, example)
            raise PpgenError(
                f"the log joint of {self.program.name} cannot be traced: {e}; take engine='eager', one chain at a time"
            ) from e
        traced = Traced(forgiving(traced.graph), traced.constants)
        return (
            traced if self.engine == "trace" else fastest(traced, example, self.engine, self.calls, self.program.name)
        )


def log_joint(
    program: Program, data: Mapping[str, Any], *, engine: str = "trace", calls: int = 0,
    noncentred: str | Sequence[str] = (),
) -> LogJoint:  # fmt: skip
    """The traced log joint of a program on data, and its gradient, for one vector or for many chains at once.

    >>> import pyro, torch
    >>> from pyro.distributions import Exponential, Normal
    >>> def model(x):
    ...     s = pyro.sample("s", Exponential(1.0))
    ...     pyro.sample("x", Normal(0.0, s), obs=x)
    >>> data = {"x": torch.tensor(1.0)}
    >>> joint = log_joint(Program.from_pair(model), data)
    >>> joint.dim, joint(torch.zeros(1)), joint.value_and_grad(torch.zeros(64, 1))[1].shape
    (1, tensor(-2.4189), torch.Size([64, 1]))
    """
    return LogJoint(program, data, engine=engine, calls=calls, noncentred=noncentred)


def _is_density(site: Mapping[str, Any]) -> bool:
    """Whether a latent's term is the log-density of its draws."""
    fn, scale = site["fn"], site["scale"]
    masked = site["mask"] is not None
    while hasattr(fn, "base_dist"):
        masked, fn = masked or hasattr(fn, "_mask"), fn.base_dist
    return not isinstance(scale, Tensor) and scale == 1.0 and not masked and type(fn).__name__ != "Flat"


def in_blocks(both: Density, block: int = BLOCK) -> Density:
    """A log-density and its gradient (of a `LogJoint`) at any number of vectors, always by the graph of `block`."""

    def density(u: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for part in u.split(block):
            full = torch.cat([part, part[-1:].expand(block - len(part), -1)]) if len(part) < block else part
            value, gradient = both(full)
            values.append(value[: len(part)])
            gradients.append(gradient[: len(part)])
        return torch.cat(values), torch.cat(gradients)

    return density


def _roomy(run_it: Callable[..., Any], constants: Sequence[Tensor], u: Tensor) -> Tensor:
    return run_it(u, u, *constants)


def entry_labels(name: str, shape: torch.Size) -> list[str]:
    """Of each entry of a value: mu, or theta[0, 1]."""
    return [f"{name}[{', '.join(map(str, index))}]" if index else name for index in np.ndindex(*shape)]
