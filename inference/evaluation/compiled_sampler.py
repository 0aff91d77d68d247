"""Draws again and again: the model run forward as one graph of tensor operations, with no Python in between.

`ppgen.inference.sample` runs the program at every call, which is right for one batch of draws. Where many are wanted,
as of an autoregressive flow with its D passes, most of that time is Python's: a `compiled_sampler` traces the program
once for blocks of n rows, and `engine="compile"` compiles the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.data import tensors
from ppgen.engine import Traced, Untraceable, compiled, trace
from ppgen.engine.compiling.compile import require_compiler
from ppgen.errors import PpgenError, require_known
from ppgen.inference.evaluation.sample import (
    constants_of,
    dtype_of_program,
    forward_sites,
    program_of,
    ready,
    row_dim_of,
    seeded,
)
from ppgen.nested import asked_rows
from ppgen.program import Program
from ppgen.run import Run, prepare_columns
from ppgen.sites import sample_sites
from ppgen.terms import model_run, whole_value

ENGINES = ("trace", "compile")


@torch.no_grad()
def compiled_sampler(
    run: Run | Program, n: int = 1000, *, given: Mapping[str, Any] | None = None, engine: str = "compile"
) -> Callable[..., dict[str, Tensor]]:
    """A function that draws n rows of every site, as one run of the model would, faster from its second call.

    Parameters that are changed later, in place, are those that it draws with.

    Args:
        run: a run, or a program whose latents are all local.
        n: rows a call.
        given: columns that the model needs (a label, a context), of n rows or one; they stay what they are.
        engine: trace or compile.

    Returns:
        f(seed=None) -> values by site, n leading.

    Raises:
        PpgenError: a program whose draws are no rows, or that cannot be traced, or whose trace draws otherwise; no
            such engine; compile without a C++ compiler.

    >>> from ppgen.models import Flow
    >>> draw = compiled_sampler(Flow(2, transforms=1, hidden=(4,)), 7, engine="trace")
    >>> draw(seed=0)["x"].shape
    torch.Size([7, 2])
    """
    require_known("engine", engine, ENGINES)
    if engine == "compile":
        require_compiler()
    program = program_of(run)
    columns = prepare_columns(given, program, dtype_of_program(program), program.columns) if given else {}
    columns, constants = tensors(columns), {k: v for k, v in columns.items() if not isinstance(v, Tensor)}
    constants = constants_of(run.example if isinstance(run, Run) else {}) | constants
    plates = {"data"} if not isinstance(run, Run) else {"data", *run.structure.row_plates}
    names: list[str] = []

    def forward(*values: Tensor) -> list[Tensor]:
        rows = {k: v.expand(n, *v.shape[1:]) for k, v in zip(columns, values, strict=True)} | constants
        with asked_rows(n), program.running():
            found = sample_sites(model_run(program, rows))
        names[:] = list(found)
        return [whole_value(s).movedim(row_dim_of(s, plates) or 0, 0) for s in found.values()]

    with ready(run, columns, None, guide=False):
        few = {k: v[:2] if len(v) > 1 else v.expand(2, *v.shape[1:]) for k, v in columns.items()}
        sites = forward_sites(lambda rows: program.call("model", rows), few | constants, 2)
        whole = [k for k, s in sites.items() if row_dim_of(s, plates) is None]
        if whole:
            raise PpgenError(f"the site {whole[0]!r} of {program.name} is not drawn row by row; draw with sample()")
        inputs = list(columns.values())
        try:
            graph = trace(forward, inputs)
        except Untraceable as e:
            raise PpgenError(f"{program.name} cannot be traced: {e}; draw with sample()") from e
        inputs += graph.constants
        call = compiled(graph.graph, inputs) if engine == "compile" else None
        bare = Traced(graph.graph, ())

    def draw(seed: int | None = None) -> dict[str, Tensor]:
        with torch.no_grad(), seeded(seed):
            return dict(zip(names, bare(*inputs) if call is None else call(inputs), strict=True))

    with torch.random.fork_rng(devices=[]):  # (`sample` draws many rows in several blocks, and so others)
        with ready(run, columns, None, guide=False), seeded(0):
            eager = dict(zip(names, forward(*columns.values()), strict=True))
        ours = draw(seed=0)
    wrong = [k for k, v in eager.items() if not _agree(v, ours[k])]
    if wrong:
        raise PpgenError(
            f"the trace of {program.name} draws other values of {wrong[0]!r} than the program itself: does it draw "
            "from Python's or NumPy's random? Draw with sample()"
        )
    return draw


def _agree(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which a steep map may enlarge in a few entries."""
    near = torch.isclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True)
    return a.shape == b.shape and float(near.double().mean()) > 0.99
