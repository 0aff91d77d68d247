"""Which rows of which data a command works on: what the shell says, what a program's file says, what a run recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen import catalog, data
from ppgen.errors import PpgenError
from ppgen.formula.read import names_in
from ppgen.gaps import dropped, note_dropped, require_how
from ppgen.handlers import without_validation
from ppgen.program import Program, arguments
from ppgen.run import Run, prepare_columns
from ppgen.run.trust import find_in_run
from ppgen.sites import sample_sites
from ppgen.terms import model_run

HELD_OUT = "test"


class _Source(NamedTuple):
    """Data as a run records them. `spec` is a name or an absolute path, or None for columns that a program's
    file holds itself (`table`)."""

    spec: str | None
    split: str = "all"
    columns: dict[str, Any] | None = None
    data_dir: str | None = None
    table: Any = None
    rows: int | None = None  # of a large file, no more than the first so many
    types: data.Asked = None

    def load(self, split: str | None = None) -> data.Table:
        """The rows of a split, its own by default."""
        split = split or self.split
        if self.spec is not None:
            return data.load(
                self.spec, split, columns=self.columns, data_dir=self.data_dir, rows=self.rows, types=self.types
            )
        if split != "all":
            raise PpgenError(f"the program's own data have no split {split!r}; leave out --split")
        return data.as_tensors(self.table, self.types)

    def record(self, valid_split: str | None) -> dict[str, Any]:
        """What config.json keeps of it, for `resume` and `Run.data`."""
        kept = {"source": self.spec, "split": self.split, "columns": self.columns, "data_dir": self.data_dir}
        return kept | {"valid_split": valid_split} if self.spec is not None else {}

    @property
    def name(self) -> str:
        return "its own data" if self.spec is None else Path(self.spec).name


def _choose(
    given: str | None,
    found: catalog.Found | None = None,
    *,
    split: str | None = None,
    columns: str | None = None,
    context: str | None = None,
    data_dir: str | None = None,
    rows: int | None = None,
    types: data.Asked = None,
) -> _Source:
    """The data to fit: what was given, or else what the program's file names as `data`.

    Without a split, the rows are the source's train split, or all where it has no splits.

    Args:
        given, found: a name or a path, and the program; columns as in "x=a+b".
        context: the columns, as in "c+d", that become the argument `context`, what a density is conditioned on.
        rows: of a large file, no more than the first so many: for a look at it.
        types: what columns are, as in "a=ordered:low<high".
    """
    chosen = data.parse_columns(columns) if columns else None
    if context is not None:
        chosen = _with_context(chosen, context)
    # The folder is kept with the run, which may be asked for its data where PPGEN_DATA is not set.
    folder = data_dir or os.environ.get("PPGEN_DATA")
    folder = str(Path(folder).expanduser().resolve()) if folder else None
    spec = given if given is not None else found.data if found is not None else None
    if spec is None and found is not None and _takes_nothing(found.target):
        return _Source(None, split or "all", chosen, None, {})
    if spec is None:
        raise PpgenError(
            f"there are no data to fit; name them with --data (built in: {', '.join(data.names())}), or in the "
            'program\'s file, as in data = "moons"'
        )
    if not isinstance(spec, str | Path):
        return _Source(None, split or "all", chosen, None, spec, types=types)
    spec = _absolute(str(spec), found.file if found is not None and given is None else None)
    if split is None:
        split = "train" if data.splits(spec, folder) else "all"
    return _Source(spec, split, chosen, folder, rows=rows, types=types)


def _takes_nothing(target: Any) -> bool:
    """Whether a program has its data in itself: its model takes no arguments."""
    takes = _arguments_of(target)
    return takes is not None and takes.names in ((), ("self",)) and not takes.any and not takes.many


def _arguments_of(target: Any) -> Any:
    """What the model of a program takes, before it is built; None where that is not known."""
    model = target[0] if isinstance(target, tuple) else getattr(target, "model", None)
    return arguments(model) if callable(model) else None


def _with_context(columns: dict[str, Any] | None, context: str) -> dict[str, Any]:
    if columns is None:
        raise PpgenError(
            f"--context {context} says what x is conditioned on, and x itself is not named; add --columns, as in "
            f"--columns x=a+b --context {context}"
        )
    if "context" in columns:
        raise PpgenError(
            f"--context {context} and --columns context=... both name the context; join the columns in one: "
            "--context c+d"
        )
    if "," in context or "=" in context:
        raise PpgenError(f"--context is {context!r}; expected column names joined by +, as in --context c+d")
    chosen = data.parse_columns(f"context={context}")
    names = {argument: [v] if isinstance(v, str) else list(v) for argument, v in {**columns, **chosen}.items()}
    for argument, own in names.items():
        if argument != "context" and (twice := [c for c in own if c in names["context"]]):
            raise PpgenError(
                f"the column {twice[0]!r} is in {argument} and in --context, so that its density given itself is "
                "infinite; leave it in one of them"
            )
    return {**columns, **chosen}


def _absolute(spec: str, file: Path | None) -> str:
    """A path from the root, found beside the program's file where it is not here; names and pipes stay as they are."""
    if spec in data.names():
        return spec
    path = Path(spec).expanduser()
    if file is not None and not path.exists() and (file.parent / path).exists():
        path = file.parent / path
    return str(path.resolve()) if path.is_file() or path.is_dir() else spec


def program_and_rows(
    program: str, settings: list[str] | None, given: str | None, missing: str | None = None, **where: Any
) -> tuple[Program, _Source, data.Table]:
    """A program built for its data, the source of these, and their rows.

    Args:
        program, settings: a model's name or a file, and its arguments as in "latent=8".
        missing: what is done with missing cells (`ppgen.gaps`); None for what the program itself says.
        given, where: of `_choose`.
    """
    found = catalog.find(program)
    how = require_how(getattr(found.target, "missing", "error") if missing is None else missing)
    named = names_in(program) if catalog.is_formula(program) else None
    if named is not None:
        where["columns"] = _named_columns(named, where.get("columns"))
    source = _choose(given, found, **where)
    rows = source.load()
    takes = _arguments_of(found.target)
    if takes is not None:
        for name in takes.needed:
            if name not in rows and name in rows.types:
                rows[name]  # says why it cannot be read
    whole = rows
    if how == "drop" and (names := named or takes and takes.names):
        rows = dropped(rows, [n for n in names if n in rows])
    made = catalog.build(found, catalog.parse_settings(settings or []), rows, missing=how)
    if missing is not None:
        made.missing = missing
    note_dropped(made, whole, rows)
    return made, *_without_label(source, rows, made)


def _named_columns(names: list[str], columns: str | None) -> str:
    """The columns that a formula names, those that are called otherwise in the file as they were given."""
    given = data.parse_columns(columns) if columns else {}
    others = [f"{name}={name}" for name in names if name not in given]
    return ",".join([*([columns] if columns else []), *others])


def _without_label(source: _Source, columns: data.Table, program: Program) -> tuple[_Source, data.Table]:
    """Leaves out the label `y` of a built-in data set for a program that takes none."""
    named = source.spec in data.names() and source.columns is None
    if not named or "y" not in columns or "y" in program.columns or "kwargs" in program.columns:
        return source, columns
    kept = columns.only([name for name in columns if name != "y"])
    return source._replace(columns={name: name for name in kept}), kept


def reads_rows(program: Program, columns: dict[str, Tensor], guide: str | None) -> bool:
    """Whether rows that were not fitted have an ELBO: the guide reads rows, or nothing is latent.

    An autoguide knows the latents of the fitted rows alone.
    """
    if guide is not None or program._autoguide is not None:
        return False
    if program.has_guide:
        return True
    few = data.take(columns, slice(0, 2))
    try:
        with torch.random.fork_rng(), torch.no_grad(), without_validation():
            trace = model_run(program, few)
    except Exception:  # the checks of the fit say what is wrong with it
        return False
    return all(s["is_observed"] for s in sample_sites(trace).values())


def of_run(
    run: Run,
    given: str | None = None,
    split: str | None = None,
    *,
    columns: str | None = None,
    held_out: bool = False,
    label: bool = False,
) -> tuple[str, data.Table]:
    """Data for a fitted run, with their name: other data that were given, or those it was fitted to.

    Args:
        split: of these data; None takes the rows that were fitted.
        held_out: None takes the test split instead, where there is one.
        label: keeps the label of a built-in data set, whether the program takes it or not.
    """
    recorded = run.config["data"]
    if given is None and recorded.get("source") is None:
        source = _Source(None, table=_own_table(run) if run.program.columns else {})
    elif given is None:
        kept = data.parse_columns(columns) if columns else recorded.get("columns")
        source = _Source(recorded["source"], recorded.get("split", "all"), kept, recorded.get("data_dir"))
        if held_out and source.split == "train":
            source = source._replace(split=HELD_OUT)
    else:
        source = _choose(given, columns=columns, data_dir=recorded.get("data_dir"))
        if columns is None and source.spec == recorded.get("source"):
            source = source._replace(columns=recorded.get("columns"))
        splits = data.splits(given, source.data_dir) if source.spec is not None else ()
        source = source._replace(split=HELD_OUT if held_out and HELD_OUT in splits else "all")
    if split is not None:
        source = source._replace(split=split)
    source = source._replace(types=run.program.types)
    loaded = source.load()
    if not label:
        source, loaded = _without_label(source, loaded, run.program)
    table = prepare_columns(loaded, run.program, run.dtype)
    if given is None and columns is None and source.split == recorded.get("split", "all"):
        run.warn_of_changes(table)
    return f"{source.name} ({source.split})", table


def _own_table(run: Run) -> Any:
    """The columns that the program's file holds, out of the copy in the run folder."""
    spec = run.config["program"]
    if run.path is None or not spec.get("file"):
        raise PpgenError("the run was fitted to data in memory, which it does not keep; name the data with --data")
    table = find_in_run(run.path, spec).data
    if table is None or isinstance(table, str | Path):
        raise PpgenError("the run does not say which data it was fitted to; name the data with --data")
    return table
