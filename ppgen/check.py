"""The contract's checks: one traced execution of both parts, before the first step.

Each failure is one sentence that names the site, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from ppgen import data as data_module
from ppgen.errors import PpgenError, nearest
from ppgen.handlers import is_factor
from ppgen.program import _VARIADIC, Program, _parameters
from ppgen.structure import PARTICLES, Structure, Traces, inspect, trace_pair


def check(
    program: Program, data: Mapping[str, Any], *, batch_size: int | None = None, enumerated: tuple[str, ...] = ()
) -> Structure:
    """Runs every check of the contract and returns the program's structure. The random state is left as it was.

    Args:
        program: set up already (`Program.setup`).
        data: the columns, all rows.
        batch_size: rows a step, if fewer than all.
        enumerated: discrete latents that are summed out: the guide does not have them.

    Raises:
        PpgenError: one sentence on the first thing that is wrong.
    """
    columns(program, data)
    data_module.validate(data)
    n = data_module.n_rows(data)
    minibatch = batch_size is not None and batch_size < n
    batch = data_module.take(data, torch.arange(batch_size)) if minibatch else data
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        apart = _run(program, batch, apart=True)
        _sites_match(apart, enumerated)
        _observed_fit(apart.p, n, batch_size if minibatch else n)
        _plates_fit(apart)
        _supports(apart)
        t = _run(program, batch)
        structure = inspect(program, batch, enumerated=enumerated, rows=data_module.row_columns(data))
        if minibatch:
            _minibatch(program, structure, t, batch_size, n)
        _log_probs(t, structure, enumerated)
        if not enumerated:
            _gradients(program, t)
            return _batch_safe(program, batch, structure)
    return structure


# -- columns -------------------------------------------------------------------------------------


def columns(program: Program, data: Mapping[str, Any]) -> None:
    """Every column has its argument, and every argument that must have one its column."""
    parameters = _parameters(program.model)
    names = [p.name for p in parameters if p.kind not in _VARIADIC]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    for name in needed:
        if name not in data:
            raise PpgenError(
                f"model({', '.join(names)}) of {program.name} needs the column {name!r}, and the data have "
                f"{', '.join(map(repr, data)) or 'none'}{nearest(name, data)}; "
                f"name it with columns={{{name!r}: ...}} (--columns {name}=...)"
            )
    if any(p.kind in _VARIADIC for p in parameters):
        return
    for name in data:
        if name not in names:
            raise PpgenError(
                f"the data's column {name!r} is taken by no argument of model({', '.join(names)}) of {program.name}"
                f"{nearest(name, names)}; leave it out, or name the columns that are wanted with columns= (--columns)"
            )


# -- running it ----------------------------------------------------------------------------------


def _run(program: Program, data: Mapping[str, Any], apart: bool = False) -> Traces:
    """Both traces; `apart`, the model draws latents of its own, so that a guide's shapes cannot upset it."""
    with running_of(program, data), torch.enable_grad():
        if not apart:
            return trace_pair(program, data)
        traces = (poutine.trace(lambda part=part: program.call(part, data)).get_trace() for part in ("model", "guide"))
        return Traces(*map(prune_subsample_sites, traces))


@contextmanager
def running_of(program: Program, data: Mapping[str, Any]) -> Iterator[None]:
    """Whatever a program raises when it is run on data, as one sentence."""
    try:
        yield
    except PpgenError:
        raise
    except Exception as e:
        if "ImproperUniform" in str(e) or "improper" in str(e).lower():
            raise PpgenError(
                f"{program.name} has an ImproperUniform prior, which cannot start an autoguide; write "
                "ppgen.distributions.Flat(support) in its place, which starts at a feasible point"
            ) from e
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in data.items() if isinstance(v, Tensor))
        raise PpgenError(
            f"{program.name} failed on a batch with {shapes}: {type(e).__name__}{_user_line(e)}: {_first_line(e)}; "
            "run with --debug to see the traceback"
        ) from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or "no message").splitlines()[0]


def _user_line(e: BaseException) -> str:
    """The innermost frame that is neither torch's, Pyro's nor ppgen's own."""
    found, tb = "", e.__traceback__
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if not any(part in file for part in ("/torch/", "/pyro/", "/ppgen/", "contextlib")):
            found = f" at {file.rsplit('/', 1)[-1]}:{tb.tb_lineno}"
        tb = tb.tb_next
    return found


# -- sites ---------------------------------------------------------------------------------------


def _nodes(trace: poutine.Trace) -> dict[str, dict]:
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}


def _is_latent(site: dict) -> bool:
    return not site["is_observed"]


def _sites_match(t: Traces, enumerated: tuple[str, ...]) -> None:
    model, guide = _nodes(t.p), _nodes(t.q)
    if not any(s["is_observed"] and not s["infer"].get("_deterministic") for s in model.values()):
        raise PpgenError(
            "the model has no observed site, so there is nothing to learn from; write the likelihood as "
            "pyro.sample(name, distribution, obs=column), and pass that column"
        )
    latent = [n for n, s in model.items() if _is_latent(s)]
    for name in latent:
        if name in guide or name in enumerated:
            continue
        site = model[name]
        if site["fn"].has_enumerate_support and site["fn"].support.is_discrete:
            raise PpgenError(
                f"the discrete latent {name!r} ({type(site['fn']).__name__}) has no site in the guide; sum it out with "
                "elbo='enumerate' (--elbo enumerate), or write a guide that samples it"
            )
        raise PpgenError(
            f"the guide has no site {name!r}, which is a latent of the model{nearest(name, guide)}; sample it in the "
            "guide, "
            "observe it in the model, or ask for an autoguide with guide='AutoNormal' (--guide AutoNormal)"
        )
    for name, site in guide.items():
        if name in model and not _is_latent(model[name]):
            raise PpgenError(f"the guide samples {name!r}, which the model observes; take it out of the guide")
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise PpgenError(
                f"the guide has the site {name!r}, which the model lacks{nearest(name, model)}; add it to the model, "
                "remove it, "
                'or mark it with infer={"is_auxiliary": True}'
            )


def _observed_fit(p: poutine.Trace, n: int, rows: int) -> None:
    for name, site in _nodes(p).items():
        if not site["is_observed"] or is_factor(site):
            continue
        found, fn = tuple(site["value"].shape), site["fn"]
        expected = tuple(fn.batch_shape) + tuple(fn.event_shape)
        if _broadcast(found, expected) != expected:
            fixed = [f for f in site["cond_indep_stack"] if f.size == n != rows]
            if fixed:
                raise PpgenError(
                    f"the plate {fixed[0].name!r} has {n} rows whatever the batch, and the batch has {rows}; take "
                    "its size from the "
                    f"column that is passed, as in pyro.plate({fixed[0].name!r}, len(x))"
                )
            raise PpgenError(
                f"the observed site {name!r} is given values of shape {found}, and its distribution has the shape "
                f"{expected} "
                f"(batch {tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}); make the two "
                f"agree{_sizes_hint(site, found)}"
            )


def _sizes_hint(site: dict, found: tuple[int, ...]) -> str:
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.size not in (1, *found):
            return f": the plate {frame.name!r} has size {frame.size}"
    return ""


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(a, b))
    except RuntimeError:
        return None


def _plates_fit(t: Traces) -> None:
    model, guide = _nodes(t.p), _nodes(t.q)
    for trace, part in ((t.q, "guide"), (t.p, "model")):
        for name, site in _nodes(trace).items():
            _site_in_plates(trace, name, site, part)
    for name in model.keys() & guide.keys():
        p, q = model[name], guide[name]
        if not _is_latent(p):
            continue
        frames_p, frames_q = _frames(p), _frames(q)
        sizes_q = {name: size for name, size in frames_q}
        for plate, size in frames_p:
            if plate not in sizes_q:
                if sizes_q and size in sizes_q.values():
                    continue  # the same plate under another name
                raise PpgenError(
                    f"the latent {name!r} stands in the plate {plate!r} of size {size} in the model, and the guide "
                    "forgot that plate "
                    f"(its plates: {', '.join(sizes_q) or 'none'}); sample it within the same plate in the guide"
                )
            if sizes_q[plate] != size:
                raise PpgenError(
                    f"the plate {plate!r} around the latent {name!r} has size {size} in the model and "
                    f"{sizes_q[plate]} in the guide; "
                    "give both the same size"
                )
        p_shape = tuple(p["fn"].batch_shape) + tuple(p["fn"].event_shape)
        q_shape = tuple(q["value"].shape)
        if _broadcast(p_shape, q_shape) != p_shape or len(q["fn"].event_shape) != len(p["fn"].event_shape):
            raise PpgenError(
                f"the latent {name!r} has batch shape {tuple(p['fn'].batch_shape)} and event shape "
                f"{tuple(p['fn'].event_shape)} in the "
                f"model, and {tuple(q['fn'].batch_shape)} and {tuple(q['fn'].event_shape)} in the guide; make them "
                "equal, "
                "for example with .to_event(1)"
            )


def _frames(site: dict) -> list[tuple[str, int]]:
    return [(f.name, f.size) for f in site["cond_indep_stack"] if f.vectorized]


def _site_in_plates(trace: poutine.Trace, name: str, site: dict, part: str) -> None:
    if is_factor(site):
        return
    dims = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    batch = tuple(site["fn"].batch_shape)
    for dim, frame in dims.items():
        if -dim <= len(batch) and batch[dim] not in (1, frame.size):
            raise PpgenError(
                f"the site {name!r} of the {part} has batch shape {batch}, and the plate {frame.name!r} around it "
                f"has size {frame.size} "
                f"at dimension {dim}; make the two agree"
            )
    for i in range(1, len(batch) + 1):
        if batch[-i] > 1 and -i not in dims:
            raise PpgenError(
                f"the site {name!r} of the {part} has batch shape {batch}, and no plate stands for its dimension "
                f"{-i} of size {batch[-i]}; "
                f"put it in a pyro.plate of that size, or make the dimension part of the event with .to_event({i}) "
                f"(shapes: {_shape_table(trace)})"
            )


def _shape_table(trace: poutine.Trace) -> str:
    return ", ".join(
        f"{n} {tuple(s['fn'].batch_shape)}|{tuple(s['fn'].event_shape)}"
        for n, s in _nodes(trace).items()
        if not is_factor(s)
    )


# -- supports ------------------------------------------------------------------------------------


def _supports(t: Traces) -> None:
    guide = _nodes(t.q)
    for name, site in _nodes(t.p).items():
        if is_factor(site) or site["infer"].get("_deterministic"):
            continue
        if site["is_observed"]:
            _observed_in_support(name, site)
        elif name in guide and not _is_delta(guide[name]["fn"]):
            _covers(name, site["fn"].support, guide[name]["fn"].support)


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _observed_in_support(name: str, site: dict) -> None:
    fn, value = site["fn"], site["value"]
    try:
        ok = fn.support.check(value)
    except NotImplementedError:
        return
    if isinstance(site["mask"], Tensor):
        ok = ok | ~site["mask"].expand(ok.shape)
    if bool(ok.all()):
        return
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    inner = _unwrap(fn.support)
    try:
        bad = value[~inner.check(value)].reshape(-1)
    except (IndexError, RuntimeError):
        bad = value.reshape(-1)
    example = f"{bad[0].item():.6g}" if bad.numel() else "some value"
    remedy = "choose a likelihood for such values, or transform the data"
    if type(base).__name__ == "Bernoulli" and bool(((value >= 0) & (value <= 1)).all()):
        remedy = (
            "grey values are no outcomes of a Bernoulli: binarise them (x > 0.5), or take a likelihood for grey values "
            "(for the VAE: --set likelihood=logistic or normal)"
        )
    raise PpgenError(
        f"the observed site {name!r} ({type(base).__name__}) has the support {_describe(fn.support)}, and the data "
        f"have {example} "
        f"({bad.numel()} such values in this batch); {remedy}"
    )


def _unwrap(c: Any) -> Any:
    while isinstance(c, constraints.independent):
        c = c.base_constraint
    return c


def _describe(c: Any) -> str:
    c = _unwrap(c)
    bounds = _bounds(c)
    if bounds is not None and not c.is_discrete:
        lower, upper = (float(b.min() if i == 0 else b.max()) for i, b in enumerate(bounds))
        return f"({lower:g}, {upper:g})"
    return str(c).rstrip("()").split(".")[-1].lstrip("_").lower().replace("boolean", "{0, 1}")


def _bounds(c: Any) -> tuple[Tensor, Tensor] | None:
    """Lower and upper end of a one-dimensional support, None for others."""
    c = _unwrap(c)
    if c is constraints.real or str(c) == "Real()":
        return torch.tensor(-math.inf), torch.tensor(math.inf)
    if str(c) == "Boolean()":
        return torch.tensor(0.0), torch.tensor(1.0)
    if not (hasattr(c, "lower_bound") or hasattr(c, "upper_bound")):
        return None
    return (
        torch.as_tensor(getattr(c, "lower_bound", -math.inf), dtype=torch.float64),
        torch.as_tensor(getattr(c, "upper_bound", math.inf), dtype=torch.float64),
    )


def _covers(name: str, p: Any, q: Any) -> None:
    """The guide's support must be the model's: narrower, the ELBO is no bound; wider, it is minus infinity."""
    if p is None or q is None:
        return
    a, b = _bounds(p), _bounds(q)
    said = f"the latent {name!r} has the support {_describe(p)} in the model and {_describe(q)} in the guide"
    if bool(p.is_discrete) != bool(q.is_discrete):
        raise PpgenError(f"{said}, one discrete and one continuous; take a guide distribution of the model's kind")
    if a is None or b is None:
        return
    eps = 1e-6
    if bool((b[0] > a[0] + eps).any()) or bool((b[1] < a[1] - eps).any()):
        raise PpgenError(
            f"{said}, which is narrower, so that the ELBO would be no bound; take a guide distribution that covers it, "
            "for example by transforming a Normal"
        )
    if bool((b[0] < a[0] - eps).any()) or bool((b[1] > a[1] + eps).any()):
        raise PpgenError(
            f"{said}, so that the guide draws values that the model cannot have; take a guide distribution on that "
            "support, "
            "for example a LogNormal for a positive latent"
        )


# -- numbers -------------------------------------------------------------------------------------


def _log_probs(t: Traces, structure: Structure, enumerated: tuple[str, ...]) -> None:
    for trace, part in ((t.p, "model"), (t.q, "guide")):
        for name, site in _nodes(trace).items():
            if name in enumerated:
                continue
            try:
                trace.compute_log_prob(site_filter=lambda n, s, name=name: n == name)
            except Exception as e:
                raise PpgenError(
                    f"log_prob at the site {name!r} of the {part} failed: {_first_line(e.__cause__ or e)}; "
                    f"look at its shapes ({_shape_table(trace)})"
                ) from e
            bad = bad_number(site["log_prob"])
            if bad:
                raise PpgenError(
                    f"log_prob at the site {name!r} of the {part} is {bad} on the first batch, with values from "
                    f"{_extent(site['value'])}; look at that site's parameters and at the scale of the data"
                )


def bad_number(x: Tensor) -> str:
    """'nan', 'inf' or '-inf' where a log-probability has one, else ''."""
    if torch.isfinite(x).all():
        return ""
    return "nan" if torch.isnan(x).any() else ("inf" if (x == math.inf).any() else "-inf")


def _extent(value: Tensor) -> str:
    v = value.detach().double()
    return f"{v.min().item():.4g} to {v.max().item():.4g}"


def _gradients(program: Program, t: Traces) -> None:
    loss = sum(s["log_prob"].sum() for trace in t for s in _nodes(trace).values() if "log_prob" in s)
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not parameters:
        raise PpgenError(
            f"{program.name} has no parameters to learn; make them torch.nn.Parameter, pyro.param or PyroParam, "
            "or give the program a guide that has some (--guide AutoNormal)"
        )
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise PpgenError(
            f"no parameter of {program.name} reaches a site's log_prob; is the model run under no_grad, or detached?"
        )
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, g in zip(parameters, gradients, strict=True):
        if g is None:
            raise PpgenError(
                f"the parameter {parameter_name(name)!r} of {program.name} gets no gradient: no site depends on it; "
                "use it, remove it, "
                "or freeze it with requires_grad_(False)"
            )


def parameter_name(name: str) -> str:
    """A parameter's name as the user wrote it: pyro.param sites have their own."""
    return name.removeprefix("param:").replace("/", ".") if name.startswith("param:") else name


# -- minibatches and particles --------------------------------------------------------------------


def _minibatch(program: Program, structure: Structure, t: Traces, batch_size: int, n: int) -> None:
    for name in structure.names("observed"):
        if not structure.is_local(name):
            fixed = [(plate, size) for plate, size in _frames(_nodes(t.p)[name]) if size in (n, batch_size)]
            if fixed:
                raise PpgenError(
                    f"the plate {fixed[0][0]!r} has {fixed[0][1]} rows whatever the batch; take its size from the "
                    "column that is "
                    f"passed, as in pyro.plate({fixed[0][0]!r}, len(x))"
                )
            raise PpgenError(
                f"the observed site {name!r} stands in no plate over the rows, so that a batch of {batch_size} of "
                f"{n} rows cannot be "
                "weighed; write it within `with ppgen.rows(x):`, or leave out batch_size"
            )
    auxiliary_local = [s.name for s in structure.sites if s.role == "auxiliary" and structure.is_local(s.name)]
    if program._autoguide is not None and (structure.locals or auxiliary_local):
        raise PpgenError(
            f"the latent {(structure.locals or auxiliary_local)[0]!r} has one value a row, and an autoguide learns "
            "one posterior for each "
            f"of the rows that it was made with; local latents need an amortised guide under minibatches: write "
            "guide(x), or leave out "
            f"batch_size so that all {n} rows are passed"
        )


def _batch_safe(program: Program, data: Mapping[str, Any], structure: Structure) -> Structure:
    """Runs two particles at once, and compares each one's log joint with that of a run of its own."""
    if not structure.latents:
        return structure

    def unsafe(reason: str) -> Structure:
        return dataclasses.replace(structure, batch_safe=False, unsafe_reason=reason)

    with torch.no_grad():
        try:
            p, q = trace_pair(program, data, particles=2, structure=structure)
            p.compute_log_prob()
        except Exception as e:
            return unsafe(f"{type(e).__name__}{_user_line(e)}: {_first_line(e)}")
        dim = -structure.nesting - 1
        for k in range(2):
            values = {
                n: _pick(s["value"], dim - s["fn"].event_dim, k) for n, s in _nodes(p).items() if n in structure.latents
            }
            one = poutine.trace(poutine.condition(lambda: program.call("model", data), values)).get_trace()
            one.compute_log_prob()
            for n, s in _nodes(p).items():
                if s["infer"].get("_deterministic"):
                    continue
                many, single = s["log_prob"], _nodes(one)[n]["log_prob"]
                if many.dim() < -dim or many.shape[dim] != 2:
                    return unsafe(f"the site {n!r} does not follow the plate of particles")
                if not torch.allclose(many.select(dim, k).sum(), single.sum(), rtol=1e-3, atol=1e-3):
                    return unsafe(f"the site {n!r} mixes the particles")
    return structure


def _pick(value: Tensor, dim: int, k: int) -> Tensor:
    if value.dim() < -dim or value.shape[dim] == 1:
        return value
    return value.narrow(dim, k, 1).reshape(value.shape[:dim] + (1,) + value.shape[dim + 1 :]).squeeze(dim)


def require_batch_safe(program: Program, structure: Structure, particles: int) -> None:
    """Several particles at once ask for a program whose operations leave leading dimensions alone."""
    if particles > 1 and not structure.batch_safe:
        raise PpgenError(
            f"{program.name} does not run with {particles} particles at once ({structure.unsafe_reason}); write its "
            "tensor operations "
            f"for leading dimensions, such as (X * beta[..., None, :]).sum(-1) in place of X @ beta, or take "
            "particles=1"
        )


__all__ = ["PARTICLES", "bad_number", "check", "columns", "parameter_name", "require_batch_safe", "running_of"]
