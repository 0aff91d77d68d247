"""What one traced run shows of a program: its sites, plates, shapes, and what is local to a row of the data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from ppgen.data import n_rows, row_columns, take
from ppgen.handlers import Minibatch
from ppgen.program import Program
from ppgen.sites import is_deterministic, is_factor, sample_sites

PARTICLES = "particles"  # the plate of particles, left of every plate of the program


class Traces(NamedTuple):
    """One run of both parts: p the model's trace, at the guide's latents; q the guide's."""

    p: poutine.Trace
    q: poutine.Trace


@dataclass(frozen=True)
class Site:
    """A sample site as it stood in the first trace. Shapes leave out the plate of particles."""

    name: str
    role: str  # latent, observed, auxiliary, factor, deterministic
    distribution: str
    plates: tuple[str, ...]  # from the outermost in
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    discrete: bool
    reparametrised: bool
    value_shape: tuple[int, ...]
    enumerated: bool = False


@dataclass(frozen=True)
class Structure:
    """The sites of a program on given data, and which of its plates run over the rows.

    Attributes:
        sites: of the model, in order, then the guide's auxiliary ones.
        row_plates: names of the plates whose size follows the number of rows.
        row_columns: names of the data columns that are rows, as against constants.
        nesting: how many batch dimensions the program's plates take.
        batch_safe: whether the program runs with several particles at once, and gives the same log joint.
        unsafe_reason: why it does not.
    """

    sites: tuple[Site, ...]
    row_plates: frozenset[str]
    row_columns: tuple[str, ...]
    nesting: int
    batch_safe: bool = True
    unsafe_reason: str = ""

    def names(self, *roles: str) -> tuple[str, ...]:
        """The names of the sites of those roles."""
        return tuple(s.name for s in self.sites if s.role in roles)

    def __getitem__(self, name: str) -> Site:
        return next(s for s in self.sites if s.name == name)

    def is_local(self, name: str) -> bool:
        """Whether a site has one value a row: it stands inside a row plate."""
        return bool(self.row_plates & set(self[name].plates))

    @property
    def latents(self) -> tuple[str, ...]:
        """The latent sites that the guide draws (those summed out are left out)."""
        return tuple(s.name for s in self.sites if s.role == "latent" and not s.enumerated)

    @property
    def locals(self) -> tuple[str, ...]:
        return tuple(n for n in self.latents if self.is_local(n))

    @property
    def globals(self) -> tuple[str, ...]:
        return tuple(n for n in self.latents if not self.is_local(n))

    @property
    def by_row(self) -> bool:
        """Whether log p(x, z) − log q(z | x) is a sum over rows: nothing global is drawn, observed or added."""
        return all(self.is_local(n) for n in (*self.latents, *self.names("observed", "factor", "auxiliary")))


def trace_pair(
    program: Program,
    data: Mapping[str, Any],
    *,
    particles: int = 1,
    structure: Structure | None = None,
    weight: float = 1.0,
    guide: bool = True,
) -> Traces:
    """Runs the guide, then the model at its latents, and keeps both traces.

    Args:
        particles: 1, or S > 1 draws at once: a plate of size S left of every plate of the program,
            so that every log-probability has shape (S, ..., rows).
        structure: needed where particles > 1 or weight != 1.
        weight: N/B where data are B of N rows.
        guide: whether there is one; without it the model draws its own latents, and q is empty.
    """
    with ExitStack() as stack:
        if weight != 1.0:
            assert structure is not None
            stack.enter_context(Minibatch(weight, structure.row_plates))
        if particles > 1:
            assert structure is not None
            stack.enter_context(pyro.plate(PARTICLES, particles, dim=-structure.nesting - 1))
        q = poutine.trace(lambda: program.call("guide", data) if guide else None).get_trace()
        p = poutine.trace(poutine.replay(lambda: program.call("model", data), trace=q)).get_trace()
    return Traces(prune_subsample_sites(p), prune_subsample_sites(q))


def inspect(
    program: Program,
    data: Mapping[str, Any],
    *,
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    guide: bool = True,
) -> Structure:
    """Traces the program once and reads its structure; the random state is left as it was.

    Args:
        enumerated: the latents that are summed out.
        rows: the row columns, as the whole data set tells them; told by these data where empty.
        guide: whether to look at the guide as well; the model alone tells all but the guide's own sites.

    Raises whatever the program raises: `ppgen.check.check` puts it into a sentence.
    """
    program = program.brief()
    with torch.random.fork_rng(), torch.no_grad():
        p, q = trace_pair(program, data, guide=guide)
        model, drawn = sample_sites(p, factors=True), sample_sites(q, factors=True)
        sites = tuple(_site(s, drawn.get(n), enumerated) for n, s in model.items())
        sites += tuple(_site(s, s, (), "auxiliary") for n, s in drawn.items() if n not in model)
        frames = [f for s in (*model.values(), *drawn.values()) for f in s["cond_indep_stack"]]
        return Structure(
            sites=sites,
            row_plates=row_plates(program, data, frames, rows),
            row_columns=rows or row_columns(data),
            nesting=max((-f.dim for f in frames if f.vectorized), default=0),
        )


def _name(fn: Any) -> str:
    """The distribution's own name, without what only shapes or masks it: HalfCauchy, LogNormal, ..."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def _site(node: dict[str, Any], guide: dict[str, Any] | None, enumerated: tuple[str, ...], role: str = "") -> Site:
    fn = node["fn"]
    if not role:
        if is_deterministic(node):
            role = "deterministic"
        elif is_factor(node):
            role = "factor"
        else:
            role = "observed" if node["is_observed"] else "latent"
    frames = sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    support = None if role in ("factor", "deterministic") else fn.support
    return Site(
        name=node["name"],
        role=role,
        distribution=_name(fn),
        plates=tuple(f.name for f in frames),
        batch_shape=tuple(fn.batch_shape),
        event_shape=tuple(fn.event_shape),
        support="" if support is None else str(support),
        discrete=bool(support is not None and support.is_discrete),
        reparametrised=bool((guide or node)["fn"].has_rsample),  # it is the guide that draws
        value_shape=tuple(node["value"].shape),
        enumerated=node["name"] in enumerated,
    )


def row_plates(program: Program, data: Mapping[str, Any], frames: list, rows: tuple[str, ...]) -> frozenset[str]:
    """The plates that grow when a row is added to the data."""
    sizes = {f.name: f.size for f in frames}
    if not row_columns(data):
        return frozenset()
    n = n_rows(data, rows)
    more = take(data, torch.cat([torch.arange(n), torch.zeros(1, dtype=torch.long)]), rows)
    try:
        p = poutine.trace(lambda: program.call("model", more)).get_trace()
    except Exception:  # written for one number of rows: told by the size alone
        return frozenset(name for name, size in sizes.items() if size == n)
    grown = {f.name: f.size for s in sample_sites(p, factors=True).values() for f in s["cond_indep_stack"]}
    return frozenset(name for name, size in sizes.items() if grown.get(name, size) != size or name == "data")
