"""A program made ready for its log joint: its data's columns, its dtype, its parameters, and draws from its prior.

Some draws from a prior are places where a model cannot be run (a matrix that has no Cholesky factor): `somewhere` tries
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.check import columns, running_of, unvalidated
from ppgen.check.agreement import NOTHING, observed_fit, observed_in_support
from ppgen.check.counted import warn_of_rows_counted_again
from ppgen.check.held import warn_of_held_data
from ppgen.check.indices import warn_of_negative_indices
from ppgen.check.missing import validate
from ppgen.data import Table, n_rows, row_columns
from ppgen.draws import Many
from ppgen.engine import LogJoint
from ppgen.engine.density.laplace import LaplaceMarginal
from ppgen.errors import PpgenError, first_line, first_of, of_dtypes
from ppgen.gaps import find_gaps
from ppgen.handlers import without_validation
from ppgen.inference.evaluation.posterior import name_in
from ppgen.inference.evaluation.sample import as_program, dtype_of_program, program_of, ready
from ppgen.program import Program, arguments
from ppgen.run import Run, default_dtype, dtype_of, prepare_columns
from ppgen.sites import sample_sites
from ppgen.structure import Site, Structure, inspect, longer_run
from ppgen.supports import moving
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

TRIES = 50


class Prepared(NamedTuple):
    """A program that can be run on data, its columns prepared, and those that have a row each.

    run: the run that the program is of, or the program.
    """

    run: Run | Program
    program: Program
    data: Table
    rows: tuple[str, ...]

    def structure(self, joint: LogJoint) -> Structure:
        """Told by the model alone: a guide is not needed, and not looked at."""
        found = somewhere(
            lambda: inspect(self.program, self.data, enumerated=joint.summed, rows=self.rows, guide=False)
        )
        warn_of_rows_counted_again(self.program, self.data, found)
        warn_of_held_data(found, lambda: longer_run(self.program, self.data, found.row_columns, guide=False))
        return found


@contextmanager
def prepared(
    run: Run | Program | Callable[..., Any], data: Any, seed: int, precision: str | None = None, *, guide: bool = False,
    learned: bool = False,
) -> Iterator[Prepared]:  # fmt: skip
    """Within it, a program is set up on data, seeded, in the dtype that `precision` means (of `mcmc`); with its guide
    where that is asked for.

    Args:
        learned: whether parameters that no run has learned are refused; else a warning says that they are held.
    """
    run = as_program(run)
    program = program_of(run)
    dtype = _dtype(program, data, precision)
    with default_dtype(dtype), without_validation(), _in(program, dtype):
        if not isinstance(run, Run):
            program.types = None
        table = prepare_columns(data, program, dtype_of_program(program))
        program.types = table.types if program.types is None else program.types
        columns(program, table)
        if not isinstance(run, Run):
            table.log_notes()
            find_gaps(program, table)
        validate(program, table, fits=not isinstance(run, Run))
        warn_of_negative_indices(program, table)
        with ready(run, table, seed, guide=guide), running_of(program, table):
            rows = run.structure.row_columns if isinstance(run, Run) else row_columns(table)
            _require_observed(program, table, n_rows(table, rows), new=not isinstance(run, Run))
            if not isinstance(run, Run):
                _look_for_parameters(program, table, learned)
            yield Prepared(run, program, table, rows)


def _look_for_parameters(program: Program, data: Mapping[str, Any], learned: bool) -> None:
    """Where they have to be `learned`, refuses parameters that the log joint depends on and no run has learned."""
    free = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not free:
        return
    with program.in_brief(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        log_p = somewhere(lambda: run_once(program, data, guide=False)).p.log_prob_sum()
    if not log_p.requires_grad:
        return
    slopes = torch.autograd.grad(log_p, list(free.values()), allow_unused=True)
    names = [n for n, slope in zip(free, slopes, strict=True) if slope is not None]
    first = first_of(names, 3)
    if names and learned:
        raise PpgenError(
            f"{program.name} has parameters to learn ({first}), and a posterior is given them; fit it, and pass the run"
        )
    if names:
        log.warning(
            "%s has parameters that no run has learned (%s): they are held at the values that they have now; fit it, "
            "and pass the run, for those of the data", program.name, first,
        )  # fmt: skip


def _require_observed(program: Program, data: Mapping[str, Any], n: int, new: bool) -> None:
    """Runs the model once, in which a new program gets the parameters that it makes as it runs.

    Args:
        n: the number of rows.
    """
    with torch.random.fork_rng(devices=[]):
        with program.collecting() if new else nullcontext():
            p = somewhere(lambda: run_once(program, data, guide=False)).p
        observed_fit(p, n, n, counted_once=False)
        found = any(s["is_observed"] for s in sample_sites(p, factors=True, deterministic=False).values())
        observed = {n: s for n, s in sample_sites(p, deterministic=False).items() if s["is_observed"]}
        left_out = [name for name in arguments(program.model).names if data.get(name) is None]
        if left_out and not found:
            log.warning("%s, and the draws are of its prior; %s", *NOTHING)
        try:
            by_latents = moving(lambda: program.call("model", data), p.nodes, observed)
        except (LinAlgError, ValueError):  # a draw that the model cannot be run at
            return
    for name, site in observed.items():
        if name not in by_latents:
            observed_in_support(name, site, unvalidated(program, data))


def vectors_of(joint: LogJoint, tree: DataTree) -> Tensor:
    """A tree's draws as vectors of a log joint, (chains, draws, dim)."""
    own = tree["posterior"].dataset
    return joint.vectors({n: own[name_in(tree, n)].values for n in joint.latents}, 2)


def somewhere(fn: Callable[[], Any]) -> Any:
    """What runs the model at a draw from its prior, where that draw may be one that the model cannot be run at."""
    for left in reversed(range(TRIES)):
        try:
            return fn()
        except (LinAlgError, ValueError) as e:
            if isinstance(e, PpgenError) or not left:
                raise
            torch.rand(1)  # another draw


def prior_of(joint: LogJoint | LaplaceMarginal, sites: Sequence[Site]) -> Callable[[int], Tensor] | None:
    """n draws from the prior, unconstrained, (n, dim); None where it is flat somewhere, or not known."""
    many = Many(lambda: [joint.prior()], name=f"{joint.program.name} from its prior")

    def draws(n: int) -> Tensor:
        try:
            return many(n)[0]
        except (LinAlgError, ValueError):  # at one of them
            return torch.stack([somewhere(joint.prior) for _ in range(n)])

    return draws if sites and not any(s.distribution == "Flat" for s in sites) else None


def _dtype(program: Program, data: Any, precision: str | None) -> torch.dtype:
    """What is computed in."""
    if precision not in (None, "64-true", "32-true"):
        raise PpgenError(f"precision is {precision!r}; expected '64-true', '32-true', or None")
    if precision is not None:
        return dtype_of(precision)
    if (own := next((p.dtype for p in program.parameters() if p.is_floating_point()), None)) is not None:
        return own
    try:
        with default_dtype(torch.float64), without_validation(), program.collecting():
            columns_ = prepare_columns(data, program, torch.float64)
            sites = sample_sites(run_once(program, columns_, guide=False).p, deterministic=False)
            values = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
            latents = {n: v.double() if v.is_floating_point() else v for n, v in values.items()}
            run_once(program, columns_, latents=latents).p.compute_log_prob()
            for site in sites.values():  # a density may take what draws do not
                site["fn"].sample()
    except Exception as e:  # others are said where the model is run for its draws
        if of_dtypes(e):
            log.info("%s holds float32 tensors, so that it is computed in float32 (%s)", program.name, first_line(e))
            return torch.float32
    return torch.float64


@contextmanager
def _in(program: Program, dtype: torch.dtype) -> Iterator[None]:
    """The program's own tensors in this dtype for the while."""
    before = next((p.dtype for p in program.parameters() if p.is_floating_point()), dtype)
    if before == dtype:
        yield
        return
    program.to(dtype)
    try:
        yield
    finally:
        program.to(before)
