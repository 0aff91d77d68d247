"""Finds a model by name, or in a user's own file. Names are file names: the folder is the catalogue."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any, NamedTuple

from ppgen import listing
from ppgen.errors import PpgenError, nearest

_USERS = "ppgen_user_"  # what the modules of users' files are called


class Found(NamedTuple):
    """What `find` found: a Program class or instance, or a pair of functions, and where."""

    target: Any
    spec: dict[str, str]  # as config.json keeps it
    file: Path | None  # the user's file, None for the catalogue's
    data: Any = None  # the data that the user's file names for itself


def names() -> dict[str, str]:
    """The catalogue: model name -> first line of its docstring."""
    return {name: listing.first_line("ppgen.models", name) for name in listing.names("ppgen.models")}


def model(name: str) -> Found:
    """A model of the catalogue, by its name alone.

    Raises:
        PpgenError: no such model.
    """
    known = listing.names("ppgen.models")
    if name not in known:
        raise PpgenError(
            f"there is no model {name!r}{nearest(name, known)}; the catalogue has {', '.join(known)}, "
            "and a program of your own is named as path/to/file.py:Name"
        )
    return Found(_program_class(importlib.import_module(f"ppgen.models.{name}"), name), {"model": name}, None)


def find(spec: str) -> Found:
    """Finds `vae`, `path/to/file.py` or `path/to/file.py:Name`; or a regression by its formula, `y ~ x`.

    A file's Name is a Program class or instance, a function that is the model, or `model,guide`, two functions. Without
    a Name the file has one Program class, or functions `model` and (optionally) `guide`.

    Raises:
        PpgenError: no such model or file; a file that fails to run; several programs to choose from.
    """
    if is_formula(spec):
        return Found(spec, {"model": "regression"}, None)
    if not spec.endswith(".py") and ".py:" not in spec:
        return model(spec)
    path, _, name = spec.rpartition(".py")  # the last: a folder may have it in its name too
    return find_in(Path(path + ".py"), name.removeprefix(":"))


def is_formula(spec: str) -> bool:
    """Whether a program is named by a formula.

    >>> is_formula("y ~ x"), is_formula("~/programs/mine.py"), is_formula("vae")
    (True, False, False)
    """
    response, tilde, _ = spec.partition("~")
    return bool(tilde and response.strip()) and "/" not in response and ".py" not in spec


def stem(spec: str) -> str:
    """What files are called that are made of a program."""
    return "regression" if is_formula(spec) else Path(spec.rpartition(".py")[0] or spec).name


def find_in(file: Path, name: str, text: bytes | None = None, *, alone: bool = False) -> Found:
    """Finds the program of a file.

    Args:
        name: in the file; "" where there is one program.
        text: what the file holds, where it was read before.
        alone: whether its neighbours cannot be imported.
    """
    from ppgen.program import Program

    module = _import_file(file, text, alone)
    if name:
        target = _named(module, name, file)
    elif isinstance(getattr(module, "model", None), Program):
        target, name = module.model, "model"
    elif callable(getattr(module, "model", None)):
        target = (module.model, getattr(module, "guide", None))
    else:
        target = _program_class(module, str(file))
        name = target.__name__
    return Found(target, {"file": "program.py", "name": name}, file, getattr(module, "data", None))


def _named(module: ModuleType, names: str, file: Path) -> Any:
    """What a file has of this name; of a function `f`, or of two, `f,g`, the pair of model and guide."""
    found = []
    for name in names.split(","):
        found.append(getattr(module, name.strip(), None))
        if found[-1] is None:
            raise PpgenError(
                f"{file} has no {name.strip()!r}{nearest(name, vars(module))}; name a Program class or instance in it, "
                "or a function that is the model"
            )
    if len(found) == 2 and all(map(callable, found)):
        return tuple(found)
    if len(found) == 1 and callable(found[0]) and not inspect.isclass(found[0]) and not hasattr(found[0], "from_pair"):
        return found[0], getattr(module, "guide", None) if names == "model" else None
    return found[0] if len(found) == 1 else found


def is_of_a_file(fn: Any) -> bool:
    """Whether a function was found in a file that was named, not one of a script that is running."""
    return str(getattr(fn, "__module__", "")).startswith(_USERS)


def build(
    found: Found, settings: Mapping[str, Any], data: Mapping[str, Any] | None = None, *, missing: str = "error"
) -> Any:
    """Makes the program: the class called with `settings`, over what its `from_data` takes from the data.

    Args:
        missing: what a formula's program does with missing cells (`ppgen.gaps`).
    """
    from ppgen.program import Program

    target = found.target
    if isinstance(target, str):
        return _regression(target, settings, data, missing)
    if isinstance(target, tuple):
        _no_settings(settings, "a pair of functions")
        made = Program.from_pair(*target)
        made.__dict__["found_in"] = found.file, found.spec["name"]
        return made
    if isinstance(target, Program):
        _no_settings(settings, "an instance")
        return target
    if not (inspect.isclass(target) and issubclass(target, Program)):
        raise PpgenError(
            f"{found.spec.get('name')} of {found.file} is {target!r}; expected a Program class or instance, a function "
            "that is the model, or model and guide, as in file.py:model,guide"
        )
    known = inspect.signature(target.__init__).parameters
    for key in settings:
        if key not in known or key == "self":
            arguments = [k for k in known if k != "self"]
            raise PpgenError(
                f"{target.__name__} has no argument {key!r}{nearest(key, arguments)}; it has "
                f"{', '.join(arguments) or 'none'}"
            )
    derived = _derived(target, data) if data is not None and hasattr(target, "from_data") else {}
    try:
        return target(**{**derived, **settings})
    except PpgenError:
        raise
    except Exception as e:
        shown = ", ".join(f"{k}={v!r}" for k, v in {**derived, **settings}.items())
        raise PpgenError(
            f"{target.__name__}({shown}) failed: {type(e).__name__}: {e}; give it arguments that it takes, with --set"
        ) from e


def _derived(target: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a class reads off the data."""
    words = [k for k, v in data.items() if isinstance(v, list)]
    try:
        return target.from_data(data)
    except PpgenError:
        raise
    except Exception as e:
        if not words:
            raise
        raise PpgenError(
            f"{target.__name__} cannot be made for these data, whose column {words[0]!r} is a list of "
            f"{type(data[words[0]][0]).__name__} values and no numbers; name columns of numbers (--columns)"
        ) from e


def _regression(formula: str, settings: Mapping[str, Any], data: Mapping[str, Any] | None, missing: str) -> Any:
    from ppgen.models import regression

    known = ("family", "priors")
    for key in settings:
        if key not in known:
            raise PpgenError(f"a formula has no setting {key!r}{nearest(key, known)}; it has family and priors")
    return regression(formula, data=data, missing=missing, **settings)


def arguments(spec: str) -> list[dict[str, str]]:
    """A program's constructor arguments: name, default ("from the data" where `from_data` gives it), and what
    its docstring says."""
    target = find(spec).target
    if not inspect.isclass(target):
        raise PpgenError(f"{spec} is no Program class, so it takes no arguments; ppgen check shows its sites")
    said = _documented(inspect.getdoc(target) or "") | _documented(inspect.getdoc(target.__init__) or "")
    listed = []
    for p in list(inspect.signature(target.__init__).parameters.values())[1:]:
        required = "from the data" if hasattr(target, "from_data") else "(required)"
        default = required if p.default is p.empty else repr(p.default)
        listed.append({"name": p.name, "default": default, "help": said.get(p.name, "")})
    return listed


def _documented(doc: str) -> dict[str, str]:
    """The entries of a docstring's Args section, each on one line.

    >>> _documented("x\\n\\nArgs:\\n    a: first\\n        of two\\n    b, c: more\\n\\nReturns: y")
    {'a': 'first of two', 'b': 'more', 'c': 'more'}
    """
    found: dict[str, str] = {}
    names: list[str] = []
    lines = iter(doc.split("\n"))
    for line in lines:
        if line.strip() == "Args:":
            break
    for line in lines:
        if not line.strip():
            continue
        if not line.startswith("    "):
            break
        head, colon, text = line.strip().partition(":")
        if colon and not line.startswith("     "):
            names = [n.split("(")[0].strip() for n in head.split(",")]
            found |= dict.fromkeys(names, text.strip())
        else:
            found |= {n: f"{found[n]} {line.strip()}" for n in names}
    return found


def parse_settings(items: list[str]) -> dict[str, Any]:
    """`key=value` items as from the shell; values are Python literals, else strings.

    >>> parse_settings(["latent=8", "hidden=(64, 64)", "likelihood=normal"])
    {'latent': 8, 'hidden': (64, 64), 'likelihood': 'normal'}
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise PpgenError(f"--set {item} is no setting; expected key=value, as in --set latent=8")
        try:
            settings[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key.strip()] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return settings


def _no_settings(settings: Mapping[str, Any], what: str) -> None:
    if settings:
        raise PpgenError(
            f"the program is {what}, which takes no arguments, and {', '.join(settings)} was set; name a Program class"
        )


def _program_class(module: ModuleType, where: str) -> Any:
    from ppgen.program import Program

    found = [
        o
        for o in vars(module).values()
        if inspect.isclass(o)
        and issubclass(o, Program)
        and o.__module__ == module.__name__
        and not o.__name__.startswith("_")
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(c.__name__ for c in found)
    raise PpgenError(
        f"{where} has several programs ({listed}); name one, as in {where}:{found[0].__name__}"
        if found
        else f"{where} has neither a Program class nor a function model; write one, as ppgen new shows"
    )


def _import_file(file: Path, text: bytes | None, alone: bool) -> ModuleType:
    if not file.is_file():
        raise PpgenError(f"there is no file {file}; name a Python file, or a model of the catalogue (ppgen list)")
    name = f"{_USERS}{file.stem}_{abs(hash(str(file.resolve()))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.resolve().parent)
    if not alone:
        sys.path.insert(0, folder)  # its neighbours can be imported, as when it is run
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside the user's file
    try:  # of the text itself: a cache beside it may be of another
        source = file.read_bytes() if text is None else text
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as e:
        if isinstance(e, PpgenError):
            raise
        line = _last_line(e.__traceback__, file)
        if isinstance(e, SyntaxError) and Path(e.filename or "").resolve() == file.resolve():
            line = e.lineno
        raise PpgenError(
            f"{file}{f' line {line}' if line else ''} fails when it is run: {type(e).__name__}: {e}; mend it first"
        ) from e
    finally:
        sys.dont_write_bytecode = bytecode
        if not alone and folder in sys.path:
            sys.path.remove(folder)
    return module


def _last_line(tb: Any, file: Path) -> int | None:
    lines = [n for frame, n in walk_tb(tb) if Path(frame.f_code.co_filename).resolve() == file.resolve()]
    return lines[-1] if lines else None
