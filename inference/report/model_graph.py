"""A program's graph as SVG: a node for each site, an arrow to each from those that its distribution depends on, a box
for each plate. White is latent, grey is observed, or a latent that was conditioned; dashed is computed from others."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import is_deterministic
from ppgen.structure import Site, Structure

MOST = 40  # sites: a chain of a thousand steps is no picture
SHOWN = ("latent", "observed", "fixed", "deterministic")
WIDTH, HEIGHT, GAP, PAD = 96, 36, 28, 14


class _Node(NamedTuple):
    """A site in the picture."""

    name: str
    role: str
    distribution: str
    plates: tuple[str, ...]
    level: int
    x: float
    y: float


class _Follow(Messenger):
    """Notes whose values each site's distribution was made of. A tensor carries the names that it was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[str, frozenset[str]] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name, value = msg["name"], msg["value"]
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        made_of = value if is_deterministic(msg) else msg["fn"].log_prob(detach_provenance(value))
        self.parents[name] = get_provenance(made_of) - {name}
        if not msg["is_observed"] or is_deterministic(msg):
            msg["value"] = track_provenance(detach_provenance(value), frozenset({name}))


def _edges_of(program: Program, data: Mapping[str, Tensor], structure: Structure) -> list[tuple[str, str]]:
    """(from, to) for each site whose distribution, or value, depends on another's; none where it cannot be told."""
    names = {s.name for s in structure.sites if s.role in SHOWN}
    follow = _Follow()
    try:
        with torch.random.fork_rng(), torch.no_grad(), without_validation(), follow:
            program.call("model", data)
    except Exception:  # an operation that does not carry the names on
        return []
    return [(a, b) for b, parents in follow.parents.items() for a in sorted(parents) if a in names and b in names]


def _layout(structure: Structure, edges: list[tuple[str, str]]) -> list[_Node]:
    """Places: what depends on nothing on top; sites of the same plates side by side."""
    sites = [s for s in structure.sites if s.role in SHOWN]
    parents: dict[str, list[str]] = {s.name: [a for a, b in edges if b == s.name] for s in sites}
    levels: dict[str, int] = {}
    for s in sites:  # in the order of the program, so that parents come first
        levels[s.name] = 1 + max((levels.get(p, -1) for p in parents[s.name]), default=-1)
    stacks = sorted({s.plates for s in sites})
    left, nodes = 0.0, []
    for stack in stacks:
        block = [s for s in sites if s.plates == stack]
        rows: dict[int, list] = {}
        for s in block:
            rows.setdefault(levels[s.name], []).append(s)
        wide = max(map(len, rows.values()))
        for level, row in rows.items():
            indent = (wide - len(row)) / 2
            for i, s in enumerate(row):
                x = left + (indent + i) * (WIDTH + GAP)
                nodes.append(_Node(s.name, s.role, s.distribution, s.plates, level, x, level * (HEIGHT + 2.2 * GAP)))
        left += wide * (WIDTH + GAP) + 2 * PAD * max(len(stack), 1)
    return nodes


def svg(
    program: Program, data: Mapping[str, Tensor], structure: Structure, rows: int | None = None
) -> tuple[str, str] | None:
    """The picture and its description in words; None where there are too many sites.

    Args:
        rows: of the data; the structure's shapes are those of the few rows that it was read from.
    """
    sites = [s for s in structure.sites if s.role in SHOWN]
    if not 0 < len(sites) <= MOST:
        return None
    edges = _edges_of(program, data, structure)
    sizes = {p: n for s in sites for p, n in zip(s.plates, _plate_sizes(s), strict=False)}
    if rows is not None:
        sizes |= {p: rows for p in structure.row_plates}
    nodes = _layout(structure, edges)
    place = {n.name: n for n in nodes}
    parts = []
    boxes = sorted({n.plates[: i + 1] for n in nodes for i in range(len(n.plates))}, key=len)
    deepest = max((len(n.plates) for n in nodes), default=0)
    for stack in boxes:
        inside = [n for n in nodes if n.plates[: len(stack)] == stack]
        pad = PAD * (deepest - len(stack) + 1)
        x, y = min(n.x for n in inside) - pad, min(n.y for n in inside) - pad
        w = max(n.x for n in inside) + WIDTH + pad - x
        h = max(n.y for n in inside) + HEIGHT + pad + 16 - y
        label = escape(f"{stack[-1]}, {sizes[stack[-1]]}" if stack[-1] in sizes else stack[-1])
        parts.append(f'<rect class="plate" x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="8"/>')
        parts.append(f'<text class="small" x="{x + 8:.0f}" y="{y + h - 6:.0f}">{label}</text>')
    for a, b in edges:
        parts.append(_arrow(place[a], place[b]))
    for n in nodes:
        parts.append(f'<g class="{n.role}"><title>{escape(f"{n.name}: {n.role}, {n.distribution}")}</title>')
        parts.append(f'<rect x="{n.x:.0f}" y="{n.y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="18"/>')
        cx = n.x + WIDTH / 2
        parts.append(f'<text x="{cx:.0f}" y="{n.y + 15:.0f}" text-anchor="middle">{escape(_short(n.name))}</text>')
        small = escape(_short(n.distribution if n.role != "deterministic" else "computed", 16))
        parts.append(f'<text class="small" x="{cx:.0f}" y="{n.y + 29:.0f}" text-anchor="middle">{small}</text></g>')
    margin = PAD * (deepest + 1)
    low_x, low_y = min(n.x for n in nodes) - margin, min(n.y for n in nodes) - margin
    wide = max(n.x for n in nodes) + WIDTH + margin - low_x
    high = max(n.y for n in nodes) + HEIGHT + margin + 18 - low_y
    words = _describe(nodes, edges)
    picture = (
        f'<svg role="img" aria-label="{escape(words, quote=True)}" '
        f'viewBox="{low_x:.0f} {low_y:.0f} {wide:.0f} {high:.0f}" style="max-width:{wide:.0f}px" xmlns="http://www.w3.org/2000/svg">'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z"/></marker></defs>' + "".join(parts) + "</svg>"
    )
    return picture, words


def _describe(nodes: list[_Node], edges: list[tuple[str, str]]) -> str:
    """The graph in a sentence for each site."""
    said = []
    for n in nodes:
        parents = sorted(a for a, b in edges if b == n.name)
        where = f" in plate {', '.join(n.plates)}" if n.plates else ""
        given = f" given {', '.join(parents)}" if parents else ""
        said.append(f"{n.name} ({n.role}, {n.distribution}){where}{given}")
    return "Graph of the model: " + "; ".join(said) + "."


def _plate_sizes(site: Site) -> tuple[int, ...]:
    sizes = tuple(n for n in site.batch_shape if n > 1)
    return sizes if len(sizes) == len(site.plates) else ()


def _arrow(a: _Node, b: _Node) -> str:
    x1, x2 = a.x + WIDTH / 2, b.x + WIDTH / 2
    y1, y2 = (a.y + HEIGHT, b.y - 2) if b.y > a.y else (a.y, b.y + HEIGHT + 2)
    if a.y == b.y:
        x1, x2 = (a.x + WIDTH, b.x - 2) if b.x > a.x else (a.x, b.x + WIDTH + 2)
        y1 = y2 = a.y + HEIGHT / 2
    return f'<line class="edge" x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" marker-end="url(#head)"/>'


def _short(text: str, most: int = 13) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
