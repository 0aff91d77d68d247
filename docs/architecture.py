"""The rooms of the code and who imports whom, read from the imports: `python docs/architecture.py` writes the picture.

A room is a folder, or the files at the top of ppgen/ and of inference/. An arrow is an import, of whatever depth.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOUSES = {"ppgen": "ppgen", "models": "ppgen.models", "inference": "ppgen.inference"}
# From what reads to what is read: an import may only go down, or stay in its floor.
FLOORS = (
    ("cli",),
    ("inference.report",),
    ("inference.evaluation", "inference.verdicts", "inference.sampling", "inference.diffusion", "inference.training"),
    ("inference", "inference.gradients", "inference.objectives"),
    ("models",),
    ("run", "pyro_compat"),
    ("check", "chains", "engine", "guides", "distributions", "formula", "transforms", "nets", "data", "ppgen"),
)  # fmt: skip
# Doors, which open all rooms by name and are no part of one: re-exports, and the list of models.
DOORS = {"ppgen", "ppgen.__main__", "ppgen.catalog", "ppgen.inference", "ppgen.models"}


def files() -> dict[str, Path]:
    """Every file by its module's name; the links in ppgen/ are not followed."""
    found = {}
    for folder, package in HOUSES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT / folder).with_suffix("").parts)
            if folder == "ppgen" and parts[0] in ("models", "inference"):
                continue
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the project that a file imports, inside functions as well; doors are none."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{a.name}" for a in node.names}
            found |= {n if n in modules else node.module for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return {n for n in found if n in modules} - DOORS


def room(module: str, path: Path) -> str:
    """inference.training, engine, models, ...; `ppgen` and `inference` for the files at their top."""
    folder = path.parent.relative_to(ROOT).parts
    if folder[0] == "models":
        return "models"
    parts = folder if folder[0] == "inference" else folder[1:2]
    return ".".join(parts[:2]) or "ppgen"


def graph() -> dict[str, dict[str, int]]:
    """How many files of a room import from another."""
    modules = files()
    arrows: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, path in modules.items():
        if name in DOORS:
            continue
        here = room(name, path)
        for other in {room(n, modules[n]) for n in imported(path, modules)} - {here}:
            arrows[here][other] += 1
    return {a: dict(sorted(b.items())) for a, b in sorted(arrows.items())}


def circles() -> list[list[str]]:
    """Files that import each other, directly or through others."""
    modules = files()
    edges = {n: imported(p, modules) - {n} for n, p in modules.items() if n not in DOORS}
    found, done, path = [], set(), []

    def walk(node: str) -> None:
        if node in path:
            found.append(path[path.index(node) :])
            return
        if node in done:
            return
        path.append(node)
        for other in sorted(edges[node]):
            walk(other)
        path.pop()
        done.add(node)

    for name in edges:
        walk(name)
    return found


def upwards() -> list[str]:
    """Arrows that go up a floor."""
    floor = {r: i for i, rooms in enumerate(FLOORS) for r in rooms}
    return [f"{a} -> {b}" for a, arrows in graph().items() for b in arrows if floor[b] < floor[a]]


def table() -> str:
    """The arrows as text: what docs/architecture.md holds."""
    return "\n".join(f"{a:22} -> {', '.join(b)}" for a, b in graph().items())


def draw(out: Path) -> None:
    """The floors from top to bottom, a box a room, an arrow an import between floors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ppgen.style import BLUE, GREY

    figure, axis = plt.subplots(figsize=(12, 7))
    place = {}
    for i, rooms in enumerate(FLOORS):
        for j, name in enumerate(rooms):
            place[name] = ((j + 0.5) / len(rooms) * 10, -1.6 * i)
    for a, arrows in graph().items():
        for b in arrows:
            if place[a][1] != place[b][1]:
                axis.annotate("", place[b], place[a], arrowprops={"arrowstyle": "->", "color": GREY, "lw": 0.7,
                              "shrinkA": 16, "shrinkB": 16})  # fmt: skip
    for name, (x, y) in place.items():
        axis.text(x, y, name.removeprefix("inference."), ha="center", va="center", fontsize=10,
                  bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": BLUE})  # fmt: skip
    axis.set_xlim(-0.3, 10.3)
    axis.set_ylim(-1.6 * len(FLOORS) + 0.8, 0.8)
    axis.axis("off")
    figure.savefig(out, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "_static" / "architecture.png")
    print(table())
