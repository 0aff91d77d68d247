"""Guides that any program can be given by name: Pyro's autoguides by theirs, others one a file, by the file's name.

A name may have keywords: `flow`, `flow(transforms=8)`, `AutoLowRankMultivariateNormal(rank=5)`.

A file has

    SUMMARY     what it is, for `ppgen list`
    STARTS      starting points that are tried for it where a fit asks for no number (`Guide.start_at`)
    BATCHES     options that a fit by minibatches gives it
    DREAMS      options that a fit to draws of the model gives it (optional)
    Guide       (sites, over_rows, data, rows, **options) -> a module that samples the latents, see `flow.Guide`;
                with `start_at` it begins at a Gaussian, with `search` it finds itself on all rows (`bam.Guide`), with
                `begin_at` and `auxiliaries` it is fitted to draws of the model

Adding one is adding its file, and its row in the table of laws (`OWN` in tests/test_guides.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

from pyro.infer import autoguide as autoguides
from torch import nn

from ppgen.errors import PpgenError, nearest
from ppgen.folder import Folder, call_of, require_options
from ppgen.guides._law import Coordinates, coordinates
from ppgen.guides._started import STARTED

__all__ = [
    "Coordinates",
    "coordinates",
    "file_of",
    "guide_names",
    "guide_spec",
    "make_autoguide",
    "parse",
    "require_guide_options",
]

_FOLDER = Folder(__name__, "guide")


def _autoguide_names() -> tuple[str, ...]:
    """The names of Pyro's autoguides."""
    abstract = {"AutoGuide", "AutoContinuous", "AutoCallable", "AutoGuideList", "AutoNormalizingFlow"}
    return tuple(
        sorted(
            n
            for n, o in vars(autoguides).items()
            if inspect.isclass(o) and issubclass(o, autoguides.AutoGuide) and n not in abstract
        )
    )


def guide_names() -> tuple[str, ...]:
    """Every name that `--guide` takes.

    >>> "AutoNormal" in guide_names() and "flow" in guide_names()
    True
    """
    return (*_autoguide_names(), *_FOLDER.names())


def file_of(spec: str) -> ModuleType | None:
    """The file of a guide of this folder; None for one of Pyro's."""
    name = parse(spec)[0]
    return _FOLDER.named(name) if name in _FOLDER.names() else None


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """A guide's name and its keywords.

    Raises:
        PpgenError: no such guide, or text that cannot be read.

    >>> parse("flow(transforms=8)")
    ('flow', {'transforms': 8})
    """
    name = spec.partition("(")[0]
    if name not in guide_names():
        raise PpgenError(
            f"there is no guide {name!r}{nearest(name, guide_names())}; the guides are {', '.join(guide_names())}"
        )
    return call_of(spec, "guide", "flow(transforms=8)")


def guide_spec(spec: str, **more: Any) -> str:
    """The guide with further keywords.

    >>> guide_spec("flow(transforms=8)", amortised=True)
    'flow(transforms=8, amortised=True)'
    """
    name, options = parse(spec)
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in {**options, **more}.items())})"


def make_autoguide(spec: str, model: Callable) -> nn.Module:
    """Pyro's autoguide of that name for a model.

    Raises:
        PpgenError: a keyword that it does not take.
    """
    name, options = parse(spec)
    made = STARTED.get(name) or getattr(autoguides, name)
    require_guide_options(name, made, options)
    return made(model, **options)


def require_guide_options(name: str, made: Callable, options: Collection[str]) -> None:
    """
    Raises:
        PpgenError: a keyword that the guide does not take.
    """
    require_options(f"guide {name}", made, options, but=("model", "sites", "over_rows", "data", "rows", "rest"))
