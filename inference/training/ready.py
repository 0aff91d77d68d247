"""Before the first step: options and columns are checked, and one pass makes the guide and finds where it begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import pyro
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from ppgen import data as data_module
from ppgen.check import Checked, checked, columns, running_of
from ppgen.check.agreement import subsampled
from ppgen.check.missing import validate
from ppgen.check.word_order import warn_of_word_order
from ppgen.draws import one_draw, parameters_as
from ppgen.engine.graphs.noise import python_randomness
from ppgen.errors import PpgenError, of_dtypes, require_known
from ppgen.gaps import find_gaps
from ppgen.guides import file_of, guide_spec, parse
from ppgen.handlers import without_validation
from ppgen.inference import gradients, objectives
from ppgen.inference.objective import Objective, make_objective
from ppgen.inference.pyro_objective import is_ours, loss_of
from ppgen.inference.training.defaults import LEAST
from ppgen.inference.training.guide_init import start_at
from ppgen.inference.training.optimise import check_optimizer, learning_rate
from ppgen.inference.training.step import ENGINES
from ppgen.program import Program
from ppgen.run import (
    default_dtype,
    dtype_of,
    prepare_columns,
)
from ppgen.run.config import PRECISIONS
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Traces, model_run

log = logging.getLogger("ppgen")


def check_options(o: dict[str, Any], valid: Any, loss: Any) -> None:
    least = {
        "steps": 0,
        "batch_size": 1,
        "particles": 1,
        "kl_warmup": 0,
        "patience": 1,
        "log_every": 1,
        "starts": 0,
        "checkpoint_every": 1,
    }
    for name, low in least.items():
        if o[name] is not None and (not isinstance(o[name], Integral) or not low <= o[name] < 2**53):
            raise PpgenError(f"{name} is {o[name]!r}; expected a whole number of at least {low}, below 2**53")
    for name in ("lr", "clip"):
        known = o[name] is None or isinstance(o[name], Real) and 0 < o[name] < 1e30  # beyond which it is no float32
        if not known:
            raise PpgenError(f"{name} is {o[name]!r}; expected a positive number, below 1e30")
    # config.json holds Python's numbers
    o |= {name: int(v) for name, v in o.items() if isinstance(v, Integral) and not isinstance(v, bool)}
    o |= {name: float(v) for name, v in o.items() if isinstance(v, Real) and not isinstance(v, Integral)}
    if o["ema"] is not None and not 0 < o["ema"] < 1:
        raise PpgenError(f"ema is {o['ema']!r}; expected a decay between 0 and 1, such as 0.999")
    if o["until"] not in (None, "converged"):
        raise PpgenError(f"until is {o['until']!r}; expected 'converged', or None to take all steps")
    for name, default in (("schedule", "constant"), ("ema", None), ("patience", None)):
        if o["until"] and o[name] != default:
            raise PpgenError(
                f"until='converged' lowers the learning rate and averages by itself, and {name} is {o[name]!r}; leave "
                f"{name} out"
            )
    if o["patience"] is not None and valid is None:
        raise PpgenError(
            "patience counts on the ELBO of held-out rows, and valid has none; pass valid= (a split: --split train)"
        )
    # Each of these says what there is; here, before a folder is made.
    learning_rate(o["schedule"] or "constant", 1.0, 0, 1)
    check_optimizer(o["optimizer"], o["lr"] or LEAST)
    require_known("engine", o["engine"], ENGINES)
    require_known("precision", o["precision"], get_args(PRECISIONS))
    gradients.named(o["gradient"])
    if loss is None and o["objective"] is not None:
        objectives.formula(o["objective"])
    for name in ("batch_size", "gradient", "particles", "kl_warmup") if loss is not None else ():
        if o[name] not in (None, "pathwise", 1 if name == "particles" else 0):
            raise PpgenError(
                f"the objective {o['objective']} is run as Pyro runs it, on all rows with its own draws, and {name} "
                f"is {o[name]!r}; leave {name} out (subsample with pyro.plate, give the object its particles)"
            )


class Ready(NamedTuple):
    """A program before its first step.

    Attributes:
        guide: the name of the guide that was made; None where the program has its own, or needs none.
        checked: what the checks found.
        example: the rows that set the program up again.
        loss: Pyro's, or a function, where no objective of ppgen's is trained.
    """

    guide: str | None
    checked: Checked
    example: dict[str, Tensor]
    loss: Any


def begun(
    program: Program, tables: tuple[Any, Any], o: dict[str, Any], loss: Any, *, either: bool
) -> tuple[data_module.Table, data_module.Table | None, Ready]:
    """The columns of the rows and of those held out, and the first pass; in float64, if the program asks for it.

    Args:
        either: whether the precision may be another than `o` says, which then says it.
    """
    data, valid = tables
    now, dtype = dict(o), dtype_of(o["precision"])
    try:
        with default_dtype(dtype):
            train_data = _training_columns(program, data, dtype)
            valid_data = None if valid is None else prepare_columns(valid, program, dtype)
            held_out = 0 if valid_data is None else data_module.n_rows(valid_data)
            ready = _ready(program, train_data, now, loss, held_out)
    except PpgenError as e:
        if not (either and dtype == torch.float32 and of_dtypes(e)):
            raise
        try:
            found = begun(program, tables, double := {**o, "precision": "64-true"}, loss, either=False)
        except PpgenError as other:
            raise e if of_dtypes(other) else other from None
        log.info("%s holds float64 tensors: computed in float64 (precision=64-true)", program.name)
        o |= double
        return found
    o |= now
    return train_data, valid_data, ready


def _ready(program: Program, data: Mapping[str, Tensor], o: dict[str, Any], loss: Any, held_out: int) -> Ready:
    """One pass: the first run makes the guide, a run of the pair is checked, the guide finds where to begin.

    Args:
        held_out: how many rows are; 0: none.
    """
    dtype = dtype_of(o["precision"])
    program.to(dtype)
    program.train()
    n, rows = data_module.n_rows(data), data_module.row_columns(data)
    o["batch_size"] = o["batch_size"] or rows_a_step(program, n, o["guide"], o["objective"])
    size = min(o["batch_size"] or n, n)
    first = data_module.take(data, torch.arange(size), rows)
    guide, summed = _guide_of(program, o, n), _summed(o["objective"])
    with running_of(program, data), without_validation():
        program.prepare(dict(data))
        apart = program.first_run(first, guide, hide=summed, rows=rows)
    program.to(dtype).train()  # with the programs within that the first run has added
    made = program._autoguide if guide is not None else None
    guide = None if made is None else getattr(made, "spec", guide)
    enumerated = _enumerated(apart, summed)
    plain = o["objective"] is None
    o["objective"] = o["objective"] or (
        "enumerate" if enumerated else "subsampled" if program.subsamples else "analytic"
    )
    if o["objective"] == "enumerate" and o["kl_warmup"]:
        raise PpgenError("kl_warmup has no meaning with objective='enumerate'; leave it out")
    found = checked(
        program, first, apart, data=data, enumerated=enumerated, rows=rows, along_paths=_along_paths(o)
    )  # fmt: skip
    warn_of_word_order(sample_sites(found.run.p), first)
    if plain and (name := _of_pyro(found, apart, o, size == n)):
        o["objective"], loss = name, loss_of(name)
    if enumerated:
        with running_of(program, first), without_validation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            one_draw(program, first, found.structure)  # says what cannot be summed out
    bound = make_objective(program, found.structure, n, o, loss)  # says what does not go together
    if isinstance(bound, Objective):
        if hasattr(bound.estimator, "require"):
            with running_of(program, first), without_validation(), torch.random.fork_rng(devices=[]):
                bound.estimator.require(program, first, found.structure)
        with running_of(program, first), without_validation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            bound.require_densities(found.run)
        bound.require_all_rows(size, trained=True)
        bound.require_all_rows(held_out or n, "held-out rows (--valid-split none)")
    _begin(program, first, o, guide if size == n else "", enumerated)
    return Ready(guide, found, _example(program, data, first, found), loss)


def _begin(program: Program, rows: Mapping[str, Any], o: dict[str, Any], guide: str | None, enumerated: Any) -> None:
    """Where a guide that is made by name begins: at what a search on all rows finds, if it is to; `starts` of the
    options then says of how many.

    Args:
        guide: its name, if a step has all rows.
    """
    file = file_of(guide) if guide else None
    starts = (file.STARTS if file else program.starts) if o["starts"] is None else o["starts"]
    searches = hasattr(program._autoguide, "search")
    begun = False
    if guide and (searches or starts and not enumerated):
        begun = start_at(program, rows, max(starts, 1) if searches else starts, o["seed"])
    if begun:
        o["starts"] = starts
    elif o["starts"]:
        log.warning(
            "starts=%d did nothing: it is for a guide that is made by name (a flow, AutoNormal, AutoDiagonalNormal, "
            "AutoMultivariateNormal, bam, bam_low_rank, pathfinder) and begins at a normal of all rows' log joint, "
            "which this fit has not; leave starts (--starts) out, or take such a guide and all rows a step",
            o["starts"],
        )  # fmt: skip


def _training_columns(program: Program, data: Any, dtype: torch.dtype) -> data_module.Table:
    """The columns, checked; their types are the program's from now on. Without types, codes are those of an earlier
    fit."""
    if data_module.as_tensors(data).types:
        program.types = None
    table = prepare_columns(data, program, dtype)
    program.types = table.types if program.types is None else program.types
    columns(program, table)
    table.log_notes()
    find_gaps(program, table)
    validate(program, table, fits=True)
    return table


def _along_paths(o: Mapping[str, Any]) -> bool:
    """Whether the gradient takes derivatives of the model in its latents."""
    own = objectives.named(o["objective"]) if o["objective"] and is_ours(o["objective"]) else None
    estimator = gradients.named(getattr(own, "GRADIENT", o["gradient"]))
    return getattr(estimator, "PATHS", True) and getattr(own, "PATHS", True)


def rows_a_step(program: Program, rows: int, guide: str | None = None, objective: Any = None) -> int | None:
    """The batch_size of a fit that is given none; None: all rows."""
    few = program.rows_a_step
    return few if few and rows > 4 * few and guide is None and loss_of(objective) is None else None


def _of_pyro(found: Checked, apart: Traces, o: dict[str, Any], whole: bool) -> str:
    """The loss of Pyro's that a program needs: its sites depend on values, or its guide asks for enumeration."""
    if found.differ:
        return "TraceEnum_ELBO" if found.structure.summed else "Trace_ELBO"
    drawn = sample_sites(apart.q).items()
    asked = [n for n, s in drawn if s["infer"].get("enumerate") and s["fn"].has_enumerate_support]
    if asked and not found.structure.summed and o["gradient"] == "pathwise":
        o["gradient"] = "enumerated"
    elif asked and whole and o["particles"] == 1 and o["gradient"] == "pathwise" and not o["kl_warmup"]:
        return "TraceEnum_ELBO"
    elif asked:
        log.info("%r is drawn, not enumerated: Pyro's TraceEnum_ELBO takes all rows and one draw", asked[0])
    return ""


def _guide_of(program: Program, o: dict[str, Any], rows: int) -> str | None:
    """The named guide that is to be made, if any: the one asked for, or an autoguide where the program has none."""
    ours = o["objective"] is not None and is_ours(o["objective"])
    dreams = ours and getattr(objectives.named(o["objective"]), "DREAMS", False)
    guide = o["guide"] or (None if program.has_guide else "flow" if dreams else program.default_guide)
    batches = o["batch_size"] is not None and rows > o["batch_size"]  # a batch has other rows at every step
    if (batches or dreams) and guide is not None and (file := file_of(guide)) is not None:
        return guide_spec(guide, **{**file.BATCHES, **parse(guide)[1]})
    return guide


def _summed(objective: str | None) -> Callable[[dict[str, Any]], bool]:
    """Which latents an objective sums out where the guide does not draw them: those that can be, if it sums any.

    With others those that ask for it by infer={"enumerate": ...}.
    """
    ours = objective is not None and is_ours(objective)
    terms = objectives.named(str(objective)).TERMS if ours else ""
    sums = terms == "summed"

    def hide(site: dict[str, Any]) -> bool:
        asked = terms != "subsampled" and site["infer"].get("enumerate") is not None
        return (sums or asked) and not site["is_observed"] and site["fn"].has_enumerate_support

    return hide


def _enumerated(apart: Traces, summed: Callable[[dict[str, Any]], bool]) -> tuple[str, ...]:
    """The latents that are summed out."""
    drawn = sample_sites(apart.q)
    return tuple(n for n, s in sample_sites(apart.p, deterministic=False).items() if n not in drawn and summed(s))


def _example(
    program: Program, data: Mapping[str, Tensor], first: Mapping[str, Tensor], found: Checked
) -> dict[str, Tensor]:
    """The rows that set the program up again: two, or all where it needs all.

    It does where it runs on no fewer, where its guide knows them one by one, where its latents are as many as the
    rows, where it reads the global latents or their number off them, and for Laplace's approximation.
    """
    structure, longer = found.structure, found.longer
    if isinstance(program._autoguide, AutoLaplaceApproximation):
        return dict(data)
    if any(subsampled(s, f.name) for t in found.run for s in sample_sites(t).values() for f in s["cond_indep_stack"]):
        return dict(data)
    if any(not structure.is_local(n) for n in structure.summed):  # known only where all rows are
        return dict(data)
    if longer is None or (program.fixed_rows or not len(longer.q.nodes)) and structure.locals:
        return dict(first)
    if sample_sites(longer.p).keys() != sample_sites(found.run.p).keys():  # a site a row, in a loop
        return dict(data)
    if _follow_the_rows(structure, found.run, longer, program._autoguide is None):
        return dict(data)
    few = data_module.take(first, slice(0, 2), structure.row_columns)
    scalars = all(s.value_shape == s.event_shape == () for s in structure.sites if s.name in structure.globals)
    if scalars and all(map(structure.is_local, (*structure.names("observed"), *structure.names("factor")))):
        return few
    return few if _same_shapes(program, few, structure, found.run) else dict(data)


def _same_shapes(program: Program, few: Mapping[str, Tensor], structure: Structure, t: Traces) -> bool:
    """Whether the program runs on a few rows, as one that reads `y[11]` does not, with global latents of the same
    shapes: not where the rows tell the number of groups."""
    counts = parameters_as(program, {name: b.clone() for name, b in program.named_buffers()})  # of batch norm
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation(), program.in_brief(), counts:
            own = model_run(program, few).nodes
    except Exception:  # written for one number of rows
        return False
    names = [n for n in (*structure.globals, *structure.summed) if not structure.is_local(n)]
    return all(n in own and own[n]["value"].shape == t.p.nodes[n]["value"].shape for n in names if n in t.p.nodes)


def _follow_the_rows(structure: Structure, t: Traces, longer: Traces, own_guide: bool) -> bool:
    """Whether global latents have another shape on a row more, or another distribution in the guide."""
    p, q = (sample_sites(trace) for trace in t)
    longer_p, longer_q = (sample_sites(trace) for trace in longer)
    for name in (*structure.globals, *structure.summed):
        if not structure.is_local(name) and p[name]["value"].shape != longer_p[name]["value"].shape:
            return True
        if (
            own_guide
            and name in q
            and (
                name not in longer_q
                or not torch.equal(*(g[name]["fn"].log_prob(q[name]["value"]).detach() for g in (q, longer_q)))
            )
        ):
            return True
    return False


@contextmanager
def one_seed(seed: int) -> Iterator[None]:
    """Seeds torch, numpy and random, and gives the caller's random state back."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise PpgenError(f"seed is {seed}; expected a whole number from 0 to 4294967295")
    with torch.random.fork_rng(), python_randomness():
        pyro.set_rng_seed(int(seed))
        yield
