"""config.json: what it holds, as dataclasses, and how it is read. Versions before this one are brought up to it.

version 1 (ppgen 0.1 before its first release) has no key `version` and no `history`; its oldest say `elbo` for
`objective`, and lack what later fits could be asked for. Version 2 says `words` for `types`: by column, the words
behind its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppgen.errors import PpgenError
from ppgen.run.files import read_json
from ppgen.run.schema import Count, json_schema, validate

VERSION = 3

PRECISIONS = Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]


@dataclass
class _Program:
    """How the program is built again: `model` of the catalogue, `file` (with `name`), or `why` it cannot be."""

    guide: str | None
    enumerated: list[str]
    arguments: dict[str, Any]
    model: str | None = None
    file: str | None = None
    name: str | None = None
    why: str | None = None
    missing: str = "error"
    gaps: dict[str, int] | None = None
    dropped: int = 0


@dataclass
class _Fit:
    """The options of `ppgen.inference.fit`."""

    steps: int
    until: str | None
    batch_size: int | None
    lr: float
    schedule: str
    optimizer: str
    clip: float | None
    ema: float | None
    kl_warmup: int
    patience: int | None
    objective: str
    gradient: str
    particles: int
    guide: str | None
    starts: int | None
    engine: str
    precision: PRECISIONS
    device: str
    seed: int
    log_every: int
    checkpoint_every: int | None
    strict: bool


@dataclass
class _Data:
    """What was fitted: where it came from, its fingerprint, the types of its columns, their ranges."""

    rows: Count
    row_columns: list[str]
    types: dict[str, dict[str, Any]] | None
    contents: dict[str, Any]
    sha256: str
    ranges: dict[str, list[list[float]]] | None = None
    valid_rows: Count | None = None
    valid_sha256: str | None = None
    source: str | None = None
    split: str | None = None
    columns: dict[str, str | list[str]] | None = None
    data_dir: str | None = None
    valid_split: str | None = None


@dataclass
class _Change:
    """Options that a resume changed, from this step on."""

    step: int
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass
class _Config:
    """All of config.json."""

    version: int
    versions: dict[str, str]
    seed: int
    program: _Program
    fit: _Fit
    data: _Data
    history: list[_Change]
    converged: bool | None = None


def config_schema() -> dict[str, Any]:
    """The JSON schema of config.json: docs/_static/config.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "config.json of a run folder of ppgen"}
    return head | json_schema(_Config)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run folder, as this version writes it."""
    file = path / "config.json"
    if not file.is_file() and path.suffix == ".nc":
        raise PpgenError(
            f"{path} is a posterior, and a run folder is expected; ppgen evaluate, plot and compare take posteriors as "
            f"well, and ppgen diagnose RUN --reference {path} holds a run's guide against it"
        )
    if not file.is_file():
        raise PpgenError(f"{path} is no run folder: it has no config.json; name the folder that ppgen fit --out made")
    config = read_json(file)
    if isinstance(config, dict):
        config = _migrated(config, file)
    validate(config, _Config, str(file))
    return config


def _migrated(config: dict[str, Any], file: Path) -> dict[str, Any]:
    version = config.get("version", VERSION if "history" in config else 1)
    if type(version) is int and version > VERSION:
        raise PpgenError(
            f"{file} is of version {version}, and this ppgen reads versions up to {VERSION}; install a newer ppgen"
        )
    fit, data = config.get("fit"), config.get("data")
    if version not in (1, 2) or not isinstance(fit, dict) or not isinstance(data, dict):
        return config
    if version == 1:
        if "elbo" in fit:
            fit["objective"] = fit.pop("elbo")
        later = {"gradient": "pathwise", "until": None, "starts": None, "strict": True}
        config |= {"history": [], "fit": later | fit}
    words = data.pop("words", None)
    if isinstance(words, dict | None):
        data["types"] = words and {n: {"name": n, "kind": "categorical", "levels": own} for n, own in words.items()}
    return config | {"version": VERSION}
