"""Generative models as probabilistic programs, on Pyro.

A model is a :class:`~ppgen.Program`: a ``model``, which writes down p(x, z), and a ``guide``,
which writes down q(z | x). ``ppgen.models`` has the catalogue of them, ``ppgen.inference`` the
algorithms that fit, bound, sample and diagnose any of them.

Every public name is imported when it is first asked for, so that ``import ppgen`` (and with it
``ppgen --help``) costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ppgen import data, inference, models
    from ppgen.differential_equations import ode
    from ppgen.errors import PpgenError
    from ppgen.nested import rows, sample
    from ppgen.program import Program
    from ppgen.run import Run, load_program

_HOME = {
    "Program": "ppgen.program",
    "ode": "ppgen.differential_equations",
    "rows": "ppgen.nested",
    "sample": "ppgen.nested",
    "Run": "ppgen.run",
    "load_program": "ppgen.run",
    "PpgenError": "ppgen.errors",
}
_MODULES = ("data", "inference", "models")

__all__ = [
    "PpgenError",
    "Program",
    "Run",
    "__version__",
    "data",
    "inference",
    "load_program",
    "models",
    "ode",
    "rows",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"ppgen.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ppgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
