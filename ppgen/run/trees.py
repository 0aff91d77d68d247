"""What a tree of posterior draws keeps, so that predictions can be made of it: the program's name, words, structure.

In the attributes of a tree that `ppgen.inference.mcmc` made:

program            JSON: as in a run's config.json; `file` is a path, `run` the folder of a run that was sampled
types              JSON: by column, its type, with the words behind its codes
columns            JSON: the column that each observed site observes, by site
constants          JSON: numbers and words among the arguments, by name
row_columns, summed    JSON: names
dtype              that of the computation
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppgen import catalog
from ppgen.data import ColumnType, Table, argument_of, as_tensors, is_literal, type_of_record
from ppgen.data.ranges import ranges
from ppgen.errors import PpgenError
from ppgen.program import Program, arguments
from ppgen.run import Run, default_dtype, describe_program
from ppgen.run.trust import find_file, trust
from ppgen.structure import Site, Structure, inspect

if TYPE_CHECKING:
    from xarray import DataTree


class Fitted(NamedTuple):
    """A program with what is known of it: a run, a tree of draws, or the program alone.

    Attributes:
        example: the rows that were fitted, or some of them; empty where none are known.
        draws: of each latent, (chains, draws, ...); None where the guide draws.
        ranges: of the columns that were fitted (`ppgen.data.ranges`).
    """

    program: Program
    structure: Structure | None
    example: Mapping[str, Tensor]
    draws: dict[str, Tensor] | None
    dtype: torch.dtype
    ranges: Mapping[str, list[list[float]]] = {}


def tree_record(
    run: Run | Program, program: Program, structure: Structure, data: Mapping[str, Any], observed: Mapping[str, str]
) -> dict[str, str]:
    """The attributes that `opened` reads.

    Args:
        data: what was sampled from; its numbers and words are kept.
        observed: the column that each observed site observes.
    """
    kept = {
        "program": _described(run, program, structure),
        "types": {k: own.kept() for k, own in (program.types or {}).items()},
        "columns": dict(observed),
        "row_columns": list(structure.row_columns),
        "summed": list(structure.summed),
        "constants": {k: v for k, v in data.items() if is_literal(v)},
    }
    return {k: json.dumps(v) for k, v in kept.items()} | {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch.")
    }


def _described(run: Run | Program, program: Program, structure: Structure) -> dict[str, Any]:
    if isinstance(run, Run):
        return {"run": str(run.path.resolve())} if run.path is not None else {"why": "its run was kept in memory"}
    if next(program.parameters(), None) is not None:
        return {"why": "it has parameters, which a tree does not keep"}
    spec, file = describe_program(program, structure, None)
    if file is None:
        return spec
    spec["file"] = str(file.resolve())
    trust(file.read_bytes(), spec)
    return spec


def opened(tree: DataTree, program: Run | Program | Callable | None = None, given: Any = None) -> Fitted:
    """A tree of draws with its program.

    Args:
        program: where the tree does not say it, or it lies elsewhere now.
        given: data that have the arguments that a tree does not keep: objects, and containers of columns.
    """
    if "row_columns" not in tree.attrs:
        raise PpgenError(
            "this tree does not say what it is of, as one of a guide's draws, or of an older version; predict from the "
            "run folder, or sample again with ppgen mcmc"
        )
    kept = {k: json.loads(tree.attrs[k]) for k in ("program", "columns", "row_columns", "summed", "constants")}
    made = _found(kept["program"]) if program is None else program
    made = made.program if isinstance(made, Run) else made
    made = made if isinstance(made, Program) else Program.from_pair(made)
    made.types = _types_of(tree)
    dtype = torch.float64 if tree.attrs["dtype"] == "float64" else torch.float32
    originals = json.loads(tree.attrs.get("original_names", "{}"))
    example = Table({**kept["constants"], **_fitted_columns(tree, kept["columns"], originals)}, made.types)
    example.update(_not_kept(made, given, example))
    changed = {original: own for own, original in originals.items()}
    with default_dtype(dtype):
        structure = inspect(
            made, example, enumerated=tuple(kept["summed"]), rows=tuple(kept["row_columns"]), guide=False
        )
    draws = {}
    for name in (*structure.latents, *structure.summed):
        own = changed.get(name, name)
        if own not in tree["posterior"]:
            raise PpgenError(
                f"the draws have no {name!r}, a latent of {made.name}; name the program that they were made with"
            )
        draws[name] = _as_in_a_run(torch.as_tensor(tree["posterior"][own].values), structure[name])
    return Fitted(made, structure, example, draws, dtype, ranges(example, kept["row_columns"]))


def _as_in_a_run(values: Tensor, site: Site) -> Tensor:
    """With the dimensions of 1 that keep a plate in its place, as `dim=-2`, which a tree leaves out."""
    shape = torch.broadcast_shapes(site.value_shape, site.batch_shape + site.event_shape)
    return values.reshape(*values.shape[:2], *shape) if values[0, 0].numel() == math.prod(shape) else values


def _types_of(tree: DataTree) -> dict[str, ColumnType]:
    if "types" in tree.attrs:
        return {k: type_of_record(v) for k, v in json.loads(tree.attrs["types"]).items()}
    words = json.loads(tree.attrs.get("words", "{}"))  # of an older version
    return {k: ColumnType(k, "categorical", tuple(v)) for k, v in words.items()}


def _not_kept(program: Program, given: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are no tensors, numbers or words: as they are given now, containers with the fitted columns."""
    table = as_tensors(given) if isinstance(given, Mapping) else {}
    parts = {argument_of(c, table) for c in table if c not in example and argument_of(c, table) != c}
    objects = {k: v for k, v in table.items() if not isinstance(v, Tensor) and not is_literal(v)}
    found = {k: v for k, v in objects.items() if k not in example and k not in parts}
    for name in arguments(program.model).needed:
        if name not in example and name not in found:
            raise PpgenError(
                f"a tree keeps tensors, numbers and words, and not what the argument {name!r} of {program.name} was; "
                "pass it as it was sampled with, or predict from a run; where the tree is of another program, pass that"
            )
    return found


def _found(spec: Mapping[str, Any]) -> Run | Program:
    if spec.get("run"):
        return Run.load(spec["run"])
    if not (spec.get("model") or spec.get("file")):
        raise PpgenError(
            f"the tree does not name its program ({spec.get('why', 'made in memory')}); pass it: predict(tree, data, "
            "program=...) (--program FILE)"
        )
    if spec.get("file") and not Path(spec["file"]).is_file():
        raise PpgenError(
            f"the program of these draws, {spec['file']}, is not there; name it with program= (--program FILE)"
        )
    found = find_file(spec, "read it, and name it with program= (--program FILE)")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["arguments"].items()}
    made = catalog.build(found, arguments)
    made.missing, made.gaps = spec.get("missing", "error"), spec.get("gaps", {})
    return made


def _fitted_columns(tree: DataTree, columns: Mapping[str, str], originals: Mapping[str, str]) -> dict[str, Tensor]:
    """The columns that a tree keeps, by the program's names.

    Args:
        columns: the column that each observed site observes, by site.
        originals: the program's names of what the tree calls otherwise.
    """
    constant, observed = ({originals.get(n, n): v for n, v in _held(tree, group).items()}
                          for group in ("constant_data", "observed_data"))  # fmt: skip
    return constant | {columns[n]: v for n, v in observed.items() if n in columns}


def _held(tree: DataTree, group: str) -> dict[str, Tensor]:
    found = tree[group].dataset.data_vars if group in tree.children else {}
    return {str(n): torch.as_tensor(v.values) for n, v in found.items()}
