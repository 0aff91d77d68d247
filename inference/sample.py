"""Draws from p_θ*: the model run forward with x unobserved.

`sample` draws (x, z) from the joint; `reconstruct` draws z from the guide at x and gives E[x | z].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from ppgen.check import check, columns
from ppgen.data import n_rows, row_columns, take
from ppgen.errors import PpgenError, nearest
from ppgen.handlers import Unobserve
from ppgen.program import Program, arguments, asked_rows
from ppgen.run import Run, default_dtype, prepare_columns
from ppgen.sites import is_deterministic, sample_sites
from ppgen.structure import Structure, trace_pair

CHUNK = 1000  # rows at once


def program_of(run: Run | Program) -> Program:
    return run.program if isinstance(run, Run) else run


def dtype_of_program(program: Program) -> torch.dtype:
    """The dtype that a program computes in: that of its parameters."""
    return next((p.dtype for p in program.parameters() if p.is_floating_point()), torch.get_default_dtype())


@torch.no_grad()
def sample(
    run: Run | Program, n: int = 1, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """n independent draws of every site from the model, the learned θ in place.

    Args:
        run: a run, or a program.
        n: number of draws.
        given: holds something fixed: columns that the model takes (a label, covariates), or sites by name, with
            a value for all draws or one a draw (n leading). Anything else is an error.
        seed: the seed of the draws; None goes on with torch's random state.

    Returns:
        For each site that was drawn, values with n leading. The rows of a program whose latents are all
        local are its draws: shape (n, ...). A program with global latents, or with covariates given, draws n data
        sets: shape (n, rows, ...).

    Raises:
        PpgenError: a given name that is no column and no site; a column that the model cannot do without.
    """
    program = program_of(run)
    if not isinstance(n, int) or n < 1:
        raise PpgenError(f"n is {n!r}; expected a whole number of at least 1")
    given = prepare_columns(given or {}, program, dtype_of_program(program)) if given else {}
    columns = {k: v for k, v in given.items() if k in program.columns}
    needed = arguments(program.model).needed
    for name in needed:
        if name not in columns:
            raise PpgenError(
                f"model() of {program.name} cannot be run without the column {name!r}; pass it: "
                f"given={{{name!r}: ...}} "
                "(--given file)"
            )
    with ready(run, given, seed, guide=False):
        one = _probe(program, columns)
        names = {k for k, s in one.items() if not is_deterministic(s)}
        for name in given:
            if name not in names and name not in columns:
                raise PpgenError(
                    f"{name!r} is neither a column nor a site of "
                    f"{program.name}{nearest(name, names | set(program.columns))}; "
                    f"its sites are {', '.join(sorted(names))}"
                )
        values = {k: v for k, v in given.items() if k in names}  # an observed site's own column is a value to hold
        columns = {k: v for k, v in columns.items() if k not in values or k in needed}
        local = all(any(f.name == "data" for f in s["cond_indep_stack"]) for s in one.values())
        if local and all(v.dim() == 0 or len(v) in (1, n) for v in columns.values()):
            return _by_rows(program, n, values, columns)
        return _by_draws(program, n, values, columns)


def _probe(program: Program, columns: Mapping[str, Tensor]) -> dict[str, dict]:
    """The sites of one forward run."""
    with torch.random.fork_rng():
        return sample_sites(poutine.trace(lambda: program.call("model", columns)).get_trace())


def _by_rows(
    program: Program, n: int, values: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every draw is a row of one run; runs are cut into blocks of rows."""
    values = {k: _each(v, n) for k, v in values.items()}
    columns = {k: _each(v, n) for k, v in columns.items()}
    parts = []
    for start in range(0, n, CHUNK):
        block = slice(start, start + CHUNK)
        held = {k: v[block] for k, v in values.items()}
        rows = {k: v[block] for k, v in columns.items()}
        with asked_rows(min(CHUNK, n - start)):
            run = poutine.condition(Unobserve()(lambda rows=rows: program.call("model", rows)), held)
            trace = poutine.trace(run).get_trace()
        parts.append({k: s["value"].expand(s["fn"].shape()) for k, s in sample_sites(trace).items()})
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _each(value: Tensor, n: int) -> Tensor:
    """One value a draw: as it is where n lead, else the one value for all."""
    if value.dim() and len(value) in (1, n):
        return value.expand(n, *value.shape[1:])
    return value.expand(n, *value.shape)


def _by_draws(
    program: Program, n: int, values: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every draw is a run of its own."""
    runs = []
    for _ in range(n):
        run = poutine.condition(Unobserve()(lambda: program.call("model", columns)), values)
        runs.append({k: s["value"] for k, s in sample_sites(poutine.trace(run).get_trace()).items()})
    return {k: torch.stack([r[k] for r in runs]) for k in runs[0]}


@torch.no_grad()
def reconstruct(run: Run | Program, data: Any, *, seed: int | None = None, mean: bool = True) -> dict[str, Tensor]:
    """Each observed site given a draw of the guide at the data: E[x | z] (or a draw of x), z ~ q(z | x).

    Returns:
        By observed site, the shape of its data.
    """
    program = program_of(run)
    data = prepare_columns(data, program, dtype_of_program(program))
    with ready(run, data, seed):
        t = trace_pair(program, data)
        found = {}
        for name, site in sample_sites(t.p, deterministic=False).items():
            if site["is_observed"]:
                try:
                    found[name] = site["fn"].mean.expand(site["fn"].shape()) if mean else site["fn"].sample()
                except NotImplementedError:
                    found[name] = site["fn"].sample()
    return found


@contextmanager
def ready(run: Run | Program, data: Mapping[str, Tensor], seed: int | None, *, guide: bool = True) -> Iterator[None]:
    """Seeded, in the program's dtype and in eval mode; what it changes it puts back.

    Where the guide is to be run, a Laplace approximation is made from its mode for the while: at the rows that were
    fitted, where they are known.
    """
    program = program_of(run)
    mode, training = program._autoguide, program.training
    program.eval()
    with seeded(seed), default_dtype(dtype_of_program(program)), pyro.validation_enabled(False):
        if guide and isinstance(mode, AutoLaplaceApproximation):
            fitted = run.example if isinstance(run, Run) else data
            with program.running(), torch.enable_grad(), torch.random.fork_rng():
                program.add_module("autoguide", mode.laplace_approximation(**fitted))
        try:
            yield
        finally:
            if mode is not None:
                program.add_module("autoguide", mode)
            program.train(training)


def structure_of(run: Run | Program, data: Mapping[str, Tensor]) -> Structure:
    """The structure of a fitted program on data, which are checked: told by two rows where the guide runs on two."""
    program = program_of(run)
    columns(program, data)
    rows = tuple(c for c in run.structure.row_columns if c in data) if isinstance(run, Run) else row_columns(data)
    enumerated = tuple(s.name for s in run.structure.sites if s.enumerated) if isinstance(run, Run) else ()
    n = n_rows(data, rows)
    if isinstance(run, Run) and program._autoguide is not None and run.structure.locals:
        fitted = n_rows(run.example, run.structure.row_columns)
        if n != fitted:
            raise PpgenError(
                f"the guide {type(program._autoguide).__name__} has one posterior for each of the {fitted} rows that "
                f"it was fitted to, and these data have {n}; pass the fitted rows, or fit with a guide(x) that reads "
                "them"
            )
    few = take(data, slice(0, 2), rows)
    try:
        return check(program, few, rows=rows, enumerated=enumerated, learn=False)
    except PpgenError:  # a guide of one number of rows
        if n <= 2:
            raise
        return check(program, data, rows=rows, enumerated=enumerated, learn=False)


class seeded:
    """Draws from this seed, and gives the random state back; None leaves the state as it is."""

    def __init__(self, seed: int | None):
        self.seed = seed

    def __enter__(self) -> None:
        if self.seed is not None:
            self.state = torch.get_rng_state()
            torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        if self.seed is not None:
            torch.set_rng_state(self.state)
