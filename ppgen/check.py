"""The contract's checks: one traced execution of both parts, before the first step.

Each failure is one sentence that names the site, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppgen import data as data_module
from ppgen.agreement import observed_fit, plates_fit, plates_of, shape_table, sites_match, supports_match
from ppgen.errors import PpgenError, nearest
from ppgen.program import Program, arguments
from ppgen.sites import is_deterministic, sample_sites
from ppgen.structure import PARTICLES, Structure, Traces, inspect, trace_pair


def check(
    program: Program,
    data: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    learn: bool = True,
) -> Structure:
    """Runs every check of the contract and returns the program's structure. The random state is left as it was.

    Args:
        program: set up already (`Program.setup`).
        data: the columns, all rows.
        batch_size: rows a step, if fewer than all.
        enumerated: discrete latents that are summed out: the guide does not have them.
        rows: the row columns, where these data are a few rows that do not tell them.
        learn: whether it is to be trained: then each parameter must get a gradient.

    Raises:
        PpgenError: one sentence on the first thing that is wrong.
    """
    columns(program, data)
    program = program.brief()
    data_module.validate(data)
    rows = rows or data_module.row_columns(data)
    n = data_module.n_rows(data, rows)
    size = min(batch_size or n, n)
    minibatch = size < n
    batch = data_module.take(data, torch.arange(size)) if minibatch else data
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        apart = _run(program, batch, apart=True)
        sites_match(apart, enumerated)
        observed_fit(apart.p, n, size)
        plates_fit(apart)
        supports_match(apart)
        t = _run(program, batch)
        structure = inspect(program, batch, enumerated=enumerated, rows=rows)
        if minibatch:
            _minibatch(program, structure, t, size, n)
        _log_probs(t, structure, enumerated)
        if not enumerated:
            if learn:
                _gradients(program, t)
            return batch_safe(program, batch, structure)
    return structure


# -- columns -------------------------------------------------------------------------------------


def columns(program: Program, data: Mapping[str, Any]) -> None:
    """Every column has its argument, and every argument that must have one its column."""
    names, needed, takes_any = arguments(program.model)
    for name in needed:
        if name not in data:
            raise PpgenError(
                f"model({', '.join(names)}) of {program.name} needs the column {name!r}, and the data have "
                f"{', '.join(map(repr, data)) or 'none'}{nearest(name, data)}; "
                f"name it with columns={{{name!r}: ...}} (--columns {name}=...)"
            )
    if takes_any:
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
        twice = re.match(r"Multiple sample sites named '(.*)'", str(e))
        if twice:
            raise PpgenError(
                f"{program.name} uses the name {twice[1]!r} twice in one run; give each site a name of its own, and "
                "make a plate once: data = ppgen.rows(x), then `with data:` as often as it is wanted"
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


# -- numbers -------------------------------------------------------------------------------------


def _log_probs(t: Traces, structure: Structure, enumerated: tuple[str, ...]) -> None:
    for trace, part in ((t.p, "model"), (t.q, "guide")):
        for name, site in sample_sites(trace).items():
            if name in enumerated:
                continue
            try:
                trace.compute_log_prob(site_filter=lambda n, s, name=name: n == name)
            except Exception as e:
                raise PpgenError(
                    f"log_prob at the site {name!r} of the {part} failed: {_first_line(e.__cause__ or e)}; "
                    f"look at its shapes ({shape_table(trace)})"
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
    loss = sum(s["log_prob"].sum() for trace in t for s in sample_sites(trace).values() if "log_prob" in s)
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
    replaced = program._autoguide is not None and type(program).guide is not Program.guide  # its parameters rest
    for name, g in zip(parameters, gradients, strict=True):
        if g is None and not replaced:
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
            fixed = [(plate, size) for plate, size in plates_of(sample_sites(t.p)[name]) if size in (n, batch_size)]
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
    if program.fixed_rows and (structure.locals or auxiliary_local):
        raise PpgenError(
            f"the latent {(structure.locals or auxiliary_local)[0]!r} has one value a row, and an autoguide learns "
            "one posterior for each "
            f"of the rows that it was made with; local latents need an amortised guide under minibatches: write "
            "guide(x), or leave out "
            f"batch_size so that all {n} rows are passed"
        )


def batch_safe(program: Program, data: Mapping[str, Any], structure: Structure, *, guide: bool = True) -> Structure:
    """Runs two particles at once, and compares each one's log joint with that of a run of its own.

    Args:
        guide: whether its latents are the guide's draws; else the model's own.

    Returns:
        The structure, with what was found in `batch_safe` and `unsafe_reason`.
    """
    if not structure.latents:
        return structure

    def unsafe(reason: str) -> Structure:
        return dataclasses.replace(structure, batch_safe=False, unsafe_reason=reason)

    with torch.no_grad():
        try:
            p, q = trace_pair(program, data, particles=2, structure=structure, guide=guide)
            p.compute_log_prob()
        except Exception as e:
            return unsafe(f"{type(e).__name__}{_user_line(e)}: {_first_line(e)}")
        dim = -structure.nesting - 1
        for k in range(2):
            values = {
                n: _pick(s["value"], dim - s["fn"].event_dim, k)
                for n, s in sample_sites(p).items()
                if n in structure.latents
            }
            one = poutine.trace(poutine.condition(lambda: program.call("model", data), values)).get_trace()
            one.compute_log_prob()
            for n, s in sample_sites(p).items():
                if is_deterministic(s):
                    continue
                many, single = s["log_prob"], sample_sites(one)[n]["log_prob"]
                if many.dim() < -dim or many.shape[dim] != 2:
                    return unsafe(f"the site {n!r} does not follow the plate of particles")
                if not torch.allclose(many.select(dim, k).sum(), single.sum(), rtol=1e-3, atol=1e-3):
                    return unsafe(f"the site {n!r} mixes the particles")
    return structure


def _pick(value: Tensor, dim: int, k: int) -> Tensor:
    if value.dim() < -dim or value.shape[dim] == 1:
        return value
    return value.select(dim, k)


def require_batch_safe(program: Program, structure: Structure, particles: int) -> None:
    """Several particles at once ask for a program whose operations leave leading dimensions alone."""
    if particles > 1 and not structure.batch_safe:
        raise PpgenError(
            f"{program.name} does not run with {particles} particles at once ({structure.unsafe_reason}); write its "
            "tensor operations "
            f"for leading dimensions, such as (X * beta[..., None, :]).sum(-1) in place of X @ beta, or take "
            "particles=1"
        )


__all__ = [
    "PARTICLES", "bad_number", "batch_safe", "check", "columns", "parameter_name", "require_batch_safe", "running_of",
]  # fmt: skip
