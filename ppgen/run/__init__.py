"""The run folder: everything that a fit leaves behind.

config.json              program, its arguments, the fit's options, versions, seed, the data's fingerprint
program.py               a copy of the program's file, when it was the user's
parameters.safetensors   what the program is evaluated with (the EMA, or the best, where asked for)
example.safetensors      some rows of the data: what a program needs to be set up again
state.safetensors        to go on from: parameters, EMA, optimiser, random state, step
metrics.csv              one row each so many steps; ELBO in nats over the whole data set
posterior.nc             written by `ppgen diagnose`

Each file is written atomically, parameters are never pickled, and nothing but program.py is ever run, once it is
trusted (`ppgen.run.trust`). While a fit is at work a file `lock` says which (`ppgen.run.lock`).
"""

from __future__ import annotations

import csv
import inspect
import io
import logging
import platform
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import ppgen
from ppgen import catalog
from ppgen import data as data_module
from ppgen.check import running_of
from ppgen.errors import PpgenError, nearest, reason
from ppgen.gaps import dropped, note_dropped
from ppgen.handlers import without_validation
from ppgen.memory import require_memory
from ppgen.program import Pair, Program, arguments
from ppgen.run.config import read_config
from ppgen.run.example import read_example
from ppgen.run.files import read_tree
from ppgen.run.parameters import constrained, fill_store
from ppgen.run.trust import find_in_run
from ppgen.structure import Structure
from ppgen.structure import inspect as inspect_program

log = logging.getLogger("ppgen")

METRICS = ("step", "elbo", "elbo_se", "lr", "grad_norm", "bad_steps", "valid_elbo", "valid_elbo_se")


class Run:
    """A fitted program with its record. `Run.load(path)` gives it back.

    Attributes:
        program: the fitted program, ready to be sampled and evaluated.
        config: what config.json holds.
        structure: its sites and plates.
        path: the run folder, None for a fit that was asked for none.
        rows: metrics, one dict a row.
        loss: Pyro's loss, or a function, where the fit was given one in place of an objective of ppgen's.
    """

    def __init__(
        self,
        program: Program,
        config: dict[str, Any],
        structure: Structure,
        example: dict[str, Tensor],
        path: Path | None,
    ):
        self.program, self.config, self.structure, self.example, self.path = program, config, structure, example, path
        self.rows: list[dict[str, float]] = []
        self.loss: Any = None

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """metrics.csv by column; nan where a row has no value."""
        return {k: np.array([r.get(k, np.nan) for r in self.rows], dtype=float) for k in METRICS}

    @property
    def params(self) -> dict[str, Tensor]:
        """The fitted parameters by the names that Pyro gives them, constrained: what `pyro.param(name)` would give."""
        with default_dtype(self.dtype):
            return constrained(self.program, self.example)

    def to_pyro(self) -> None:
        """Writes the parameters into Pyro's global store, so that `pyro.param(name)` and Pyro's own tools find them."""
        with default_dtype(self.dtype):
            fill_store(self.program, self.example)

    def __enter__(self) -> Run:
        """Within `with run:` Pyro's global store holds this run's parameters; after it, what it held before."""
        self._store: Any = {k: dict(v) for k, v in pyro.get_param_store().get_state().items()}
        pyro.clear_param_store()
        self.to_pyro()
        return self

    def __exit__(self, *_: object) -> None:
        pyro.clear_param_store()
        pyro.get_param_store().set_state(self._store)

    def data(self, split: str | None = None, source: Any = None, dtype: torch.dtype | None = None) -> data_module.Table:
        """The data of the run (or of another `source`).

        Args:
            split: of the source; None takes the rows that were fitted.
            dtype: None takes the program's.

        Raises:
            PpgenError: the run was fitted to tensors in memory, and no source is given.
        """
        recorded = self.config["data"]
        fitted = source is None and split is None and dtype in (None, self.dtype)
        source = recorded.get("source") if source is None else source
        if source is None:
            raise PpgenError("the run was fitted to data in memory, which it does not keep; pass the data (--data)")
        loaded = data_module.load(
            source,
            split or recorded.get("split", "all"),
            columns=recorded.get("columns"),
            data_dir=recorded.get("data_dir"),
            types=self.program.types,
        )
        table = prepare_columns(loaded, self.program, dtype or self.dtype)
        if fitted:
            self.warn_of_changes(table)
        return table

    def warn_of_changes(self, table: Mapping[str, Any]) -> None:
        """Says which columns are not those that were fitted any more, as where their file was written anew."""
        recorded = self.config["data"].get("contents", {})
        found = data_module.fingerprint({n: table[n] for n in recorded if n in table})["columns"]
        if changed := [n for n in recorded if found.get(n) != recorded[n]]:
            log.warning(
                "%s: %s changed since the run was fitted, and figures are of the file as it is now; restore it, or fit "
                "again", self.config["data"].get("source"), ", ".join(changed),
            )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.config["fit"]["precision"])

    @classmethod
    def load(
        cls, path: str | Path, program: Program | Callable[..., Any] | None = None,
        given: Mapping[str, Any] | None = None, *, trust: bool = False,
    ) -> Run:  # fmt: skip
        """Reads a run folder and builds its program with the parameters that the fit left.

        Args:
            program: the program or Pyro model, where the run cannot build it by itself (it was made from objects in
                memory).
            given: arguments of the model that were objects no file holds (functions, modules), by name.
            trust: runs the folder's program.py, whoever wrote it, in this process; without it, and without a program,
                only where the fit was made in this account or `ppgen trust` allowed it (`ppgen.run.trust`).

        Raises:
            PpgenError: no run folder, a damaged file, a program that cannot be built again or is not trusted.
        """
        path = Path(path)
        config = read_config(path)
        example = in_dtype(
            read_example(path / "example.safetensors", given or {}), dtype_of(config["fit"]["precision"])
        )
        parameters = read_tree(path / "parameters.safetensors")
        with torch.random.fork_rng():
            program, structure = rebuild(config, example, path, program, trust=trust)
        load_parameters(program, parameters, path)
        require_finite(program, path)
        program.eval()
        run = cls(program, config, structure, example, path)
        run.rows = _read_metrics(path / "metrics.csv")
        return run


def rebuild(
    config: dict[str, Any], example: dict[str, Tensor], path: Path,
    program: Program | Callable[..., Any] | None = None, *, trust: bool = False,
) -> tuple[Program, Structure]:  # fmt: skip
    """The program of a config, set up on the example rows, with fresh parameters."""
    spec = config["program"]
    if program is None:
        if not (spec.get("model") or spec.get("file")):
            raise PpgenError(
                f"the run {path} was fitted to a program made in memory ({spec.get('why', 'no file')}); pass it: "
                "Run.load(path, program)"
            )
        found = find_in_run(path, spec, trusted=trust)
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["arguments"].items()}
        program = catalog.build(found, arguments)
    program = program if isinstance(program, Program) else Program.from_pair(program)
    types = config["data"].get("types")
    program.types = None if types is None else {name: data_module.type_of_record(own) for name, own in types.items()}
    program.missing, program.gaps = spec.get("missing", "error"), spec.get("gaps", {})
    program.dropped = spec.get("dropped", 0), config["data"]["rows"]
    program.to(dtype_of(config["fit"]["precision"]))
    enumerated = tuple(spec["enumerated"])
    with default_dtype(dtype_of(config["fit"]["precision"])):
        rows = tuple(config["data"]["row_columns"])
        with running_of(program, example), without_validation():
            program.setup(example, spec["guide"], hide=enumerated, rows=rows)
        return program, inspect_program(program, example, enumerated=enumerated, rows=rows)


def load_program(path: str | Path, *, trust: bool = False) -> Program:
    """The program of a run folder with its fitted parameters: to be a part of another one (`ppgen.sample`).

    Args:
        trust: as of `Run.load`.

    Raises:
        PpgenError: as `Run.load`.
    """
    return Run.load(path, trust=trust).program


def load_parameters(program: Program, values: Mapping[str, Tensor], path: Path | None = None) -> None:
    """Loads a state dict in place; a `pyro.param` site of another size takes the saved one."""
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise PpgenError(f"the parameters{f' in {path}' if path else ''} are no tensors by name; fit again")
    for name, value in values.items():
        own = program._parameters.get(name)
        if name.startswith("param:") and (own is None or own.shape != value.shape):
            program.register_parameter(name, nn.Parameter(value.clone()))
    try:
        result = program.load_state_dict(dict(values), strict=False)
    except RuntimeError as e:
        raise PpgenError(
            f"the parameters{f' in {path}' if path else ''} do not fit {program.name}: "
            f"{str(e).splitlines()[-1].strip()}; was the program changed since?"
        ) from e
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise PpgenError(
            f"the parameters{f' in {path}' if path else ''} are not those of {program.name}: {wrong[0]!r} is on one "
            "side only; was the program changed since?"
        )


def require_finite(program: Program, path: Path | None) -> None:
    """
    Raises:
        PpgenError: a parameter that is not finite, so that every figure would be nan.
    """
    for name, value in program.named_parameters():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise PpgenError(
                f"{bad} of {value.numel()} values of the parameter {name!r}{f' in {path}' if path else ''} are not "
                "finite; fit again, with a smaller lr or clip=1"
            )


def describe_program(program: Program, structure: Structure, guide: str | None) -> tuple[dict[str, Any], Path | None]:
    """The `program` entry of config.json, and the user's file where there is one to copy."""
    module = inspect.getmodule(type(program))
    spec: dict[str, Any] = {"guide": guide, "enumerated": [s.name for s in structure.sites if s.enumerated]}
    if program.missing != "error":
        spec |= {"missing": program.missing, "gaps": dict(program.gaps), "dropped": program.dropped[0]}
    file: Path | None = None
    if isinstance(program, Pair):
        model, own_guide = program.pair
        file = _source(model)
        same = guide is not None or own_guide is None or isinstance(own_guide, str) or _source(own_guide) == file
        names = [getattr(f, "__qualname__", ".") for f in (model, own_guide) if callable(f)]
        usual = names in (["model"], ["model", "guide"])
        by_name = all(map(_is_by_its_name, filter(callable, (model, own_guide))))
        named = by_name and (usual or catalog.is_of_a_file(model))
        if (file is None or not same or not named) and "found_in" in program.__dict__:  # a module, or what wraps one
            file, name = program.__dict__["found_in"]
            return spec | {"file": "program.py", "name": name, "arguments": {}}, file
        if file is None or not same or not named:
            return spec | {"arguments": {}, "why": "its functions are not `model` and `guide` of one file"}, None
        return spec | {"file": "program.py", "name": "" if usual else ",".join(names), "arguments": {}}, file
    arguments = dict(program.arguments)
    if not _is_json(arguments):
        return spec | {"arguments": {}, "why": "its constructor was given objects"}, None
    spec["arguments"] = arguments
    name = type(program).__module__
    if name.startswith("ppgen.models."):
        return spec | {"model": name.removeprefix("ppgen.models.")}, None
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file() or "." in type(program).__qualname__:
        return spec | {"why": "its class stands in no file"}, None
    return spec | {"file": "program.py", "name": type(program).__name__}, file


def _is_by_its_name(fn: Any) -> bool:
    """Whether its module has this function, and no other that it wraps, under its name."""
    return getattr(inspect.getmodule(fn), getattr(fn, "__qualname__", "."), None) is fn


def _source(fn: Any) -> Path | None:
    try:
        file = Path(inspect.getsourcefile(fn) or "")
    except TypeError:
        return None
    return file if file.is_file() else None


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {"python": platform.python_version(), "ppgen": ppgen.__version__}
    for package in ("torch", "pyro-ppl", "numpy", "lightning-fabric", "zuko"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def metrics_text(rows: list[dict[str, float]]) -> str:
    """All of metrics.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, METRICS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: repr(v) if isinstance(v, float) else v for k, v in row.items()})
    return out.getvalue()


def _read_metrics(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        log.warning("%s is not there: the run has no course of its ELBO to show", path)
        return []
    try:
        text = path.read_bytes().decode()
        head, *rows = csv.reader(text.splitlines() or [""])
        if tuple(head) != METRICS or any(len(r) != len(METRICS) for r in rows) or not text.endswith("\n"):
            raise ValueError("it is cut off, or has other columns")
        named = [dict(zip(METRICS, r, strict=True)) for r in rows]
        return [{k: int(v) if k in ("step", "bad_steps") else float(v) for k, v in r.items() if v} for r in named]
    except (ValueError, csv.Error, OSError) as e:
        raise PpgenError(f"{path} is damaged ({reason(e)}); remove it: the run can do without") from e


def prepare_columns(
    data: Any,
    program: Program,
    dtype: torch.dtype,
    rows: Collection[str] = (),
    *,
    new_words: bool = False,
    beyond: bool = False,
) -> data_module.Table:
    """Data as tensors, floats in one dtype, text in the codes of the fit, and constants; a bare table becomes the
    program's first column.

    Args:
        rows: the columns in which a number is a row's value, and no constant.
        new_words: whether words that the fit did not see are taken, as codes of new groups.
        beyond: whether numbers of labels and groups that the program does not have are let pass.
    """
    if not isinstance(data, Mapping):
        data = data_module.as_tensors(data)
        if set(data) == {"x"} and program.columns and "x" not in program.columns:
            data = {program.columns[0]: data["x"]}
    columns = data_module.as_tensors(data)
    columns |= {k: torch.as_tensor(columns[k]) for k in rows if isinstance(columns.get(k), bool | int | float)}
    if isinstance(program.codes, Mapping):  # and not an attribute of the user's own
        columns = data_module.encoded(columns, program.codes, new=new_words).only(program.columns)
    columns = _taken(columns, program)
    if program.types is not None:
        columns = data_module.recoded(columns, program.types, new=new_words, beyond=beyond, only=program.columns)
    gaps = program.missing == "mask"
    columns = data_module.require_labels(columns, program.categories, program.name, beyond=beyond, gaps=gaps)
    if program.missing == "drop" and not beyond:  # new rows are predicted one by one
        columns = note_dropped(program, columns, dropped(columns, columns))
    if isinstance(program.shapes, Mapping):  # and not an attribute of the user's own
        columns = data_module.in_shapes(columns, program.shapes)
    for name, value in data_module.tensors(columns).items():
        if value.is_floating_point() and value.dtype.itemsize > dtype.itemsize:
            log.info(
                "column %r is %s and is computed in %s; precision='64-true' (--precision 64-true) keeps it",
                name, str(value.dtype).removeprefix("torch."), str(dtype).removeprefix("torch."),
            )  # fmt: skip
    for name, value in data_module.tensors(columns).items():
        if value.is_floating_point() and value.dtype != dtype:
            size = value.numel() * dtype.itemsize
            require_memory(size, f"column {name!r} in {str(dtype).removeprefix('torch.')}", "save it in that precision")
    return in_dtype(columns, dtype)


def _taken(columns: data_module.Table, program: Program) -> data_module.Table:
    """Without the columns of a table that no argument of the program takes, which the log names.

    Those that look like an argument that has no column stay, for the check of columns to ask about.
    """
    takes = arguments(program.model)
    free = [n for n in takes.names if n not in columns]
    for name in free:
        if name in columns.types:
            columns[name]  # says why
    if takes.any or set(takes.needed) - set(columns) or not set(takes.names) & set(columns):
        return columns
    unused = [n for n in columns.types if n not in takes.names and n != takes.many]
    unused = [n for n in unused if not nearest(n, free)]
    if unused:
        log.info(
            "%s of the data %s taken by no argument of model(%s) of %s, and left out%s",
            ", ".join(map(repr, unused)), "are" if len(unused) > 1 else "is", ", ".join(takes.names), program.name,
            f"; {', '.join(map(repr, free))} {'have' if len(free) > 1 else 'has'} no column" if free else "",
        )  # fmt: skip
    return columns.only([n for n in columns if n not in unused])


def in_dtype(columns: data_module.Table, dtype: torch.dtype) -> data_module.Table:
    """The same columns, floats in this dtype."""
    made = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in columns.items()}
    return data_module.Table(made, columns.types)


_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    return _DTYPES.get(precision, torch.float32)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it, new tensors have this dtype; after it, the one they had before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
