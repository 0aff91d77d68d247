"""What one run shows of a program: its sites, plates, shapes, and what is local to a row of the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppgen.data import n_rows, row_columns, take
from ppgen.sites import is_delta, is_deterministic, is_factor, sample_sites, scaled_site, stem, support_of
from ppgen.terms import Runnable, Traces, is_equal, run, value_of, whole_value


@dataclass(frozen=True)
class Site:
    """A sample site as it stood in the first trace.

    Attributes:
        role: latent, observed, fixed (a latent that was conditioned), auxiliary, factor, deterministic.
        dims: names of the value's dimensions outside of its event: plates, and the site's name and a number.
        plates: names of the plates around it, from the outermost in.
        subsampled: whether one of them holds a part of what it stands for.
        lengthens: whether its own shape follows the number of rows, and no row plate says so; False where the program
            does not run on a row more.
        loops: names of the sequential plates around it.
        repeated: whether a row more has another site like it: it stands in a loop over the rows.
    """

    name: str
    role: str
    distribution: str
    plates: tuple[str, ...]
    dims: tuple[str, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    discrete: bool
    reparametrised: bool
    value_shape: tuple[int, ...]
    enumerated: bool = False
    subsampled: bool = False
    lengthens: bool = False
    loops: tuple[str, ...] = ()
    repeated: bool = False


@dataclass(frozen=True)
class Structure:
    """The sites of a program on given data, and which of its plates run over the rows.

    Attributes:
        sites: of the model, in order, then the guide's auxiliary ones.
        row_plates: names of the plates whose size follows the number of rows.
        row_columns: names of the data columns that are rows, as against constants.
        nesting: how many batch dimensions the program's sites take, in plates or not.
        weighed: the guide's site whose log-density a `poutine.scale` multiplies, as all others of a row: by the row's
            weight; "" where there is none.
        off_scale: one that it multiplies by another number than other sites: q^w is no density to weigh draws by.
        alike: the latents that have one scale and one mask in model and guide.
    """

    sites: tuple[Site, ...]
    row_plates: frozenset[str]
    row_columns: tuple[str, ...]
    nesting: int
    weighed: str = ""
    off_scale: str = ""
    alike: frozenset[str] = frozenset()

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
    def summed(self) -> tuple[str, ...]:
        """The discrete latents that are summed out."""
        return tuple(s.name for s in self.sites if s.enumerated)

    @property
    def locals(self) -> tuple[str, ...]:
        return tuple(n for n in self.latents if self.is_local(n))

    @property
    def globals(self) -> tuple[str, ...]:
        return tuple(n for n in self.latents if not self.is_local(n))

    @property
    def lengthening(self) -> tuple[str, ...]:
        """The latents whose length is the number of rows, outside of a row plate: the function of a GP at the rows."""
        return tuple(s.name for s in self.sites if s.role == "latent" and s.lengthens)

    @property
    def of_rows(self) -> frozenset[str]:
        """The latents of which each row has its own: local ones, and those of a sequential plate over the rows."""
        rows = self.row_plates
        return frozenset(s.name for s in self.sites if s.role == "latent" and rows & {*s.plates, *s.loops})

    @property
    def numbered(self) -> tuple[str, ...]:
        """The latents of a loop over the rows that is no plate, as over times: each is of the row of its number."""
        return tuple(s.name for s in self.sites if s.role == "latent" and s.repeated and s.name not in self.of_rows)

    @property
    def subsampled(self) -> bool:
        """Whether a plate holds a part of what it stands for, drawn anew in each run."""
        return any(s.subsampled for s in self.sites)

    @property
    def row_plate(self) -> str:
        """The name of the rows' dimension."""
        return next((p for s in self.sites for p in s.plates if p in self.row_plates), "data")

    @property
    def by_row(self) -> bool:
        """Whether log p(x, z) − log q(z | x) is a sum over rows: nothing global is drawn, summed, observed or added."""
        roles = self.names("latent", "observed", "fixed", "factor", "auxiliary")
        return all(self.is_local(n) for n in roles)


def inspect(
    program: Runnable,
    data: Mapping[str, Any],
    *,
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    guide: bool = True,
) -> Structure:
    """Runs the program once and reads its structure; the random state is left as it was.

    Args:
        enumerated: the latents that are summed out.
        rows: the row columns, as the whole data set tells them; told by these data where empty.
        guide: whether to look at the guide as well; the model alone tells all but the guide's own sites.

    Raises whatever the program raises: `ppgen.check.check` puts it into a sentence.
    """
    with torch.random.fork_rng(), torch.no_grad(), program.in_brief():
        t = run(program, data, guide=guide)
        return structure_of(t, longer_run(program, data, rows), data, enumerated=enumerated, rows=rows)


def structure_of(
    t: Traces,
    longer: Traces | None,
    data: Mapping[str, Any],
    *,
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
) -> Structure:
    """The structure that a run shows, beside one on a row more."""
    model, drawn = sample_sites(t.p, factors=True), sample_sites(t.q, factors=True)
    least = min((s["rank"] for s in model.values() if "rank" in s), default=0)
    sites = tuple(
        _site(s, drawn.get(n), enumerated, "fixed" if s.get("rank", 0) > least else "") for n, s in model.items()
    )
    sites += tuple(_site(s, s, (), "auxiliary") for n, s in drawn.items() if n not in model)
    plates = row_plates(t, longer, data, rows)
    grown = {} if longer is None else sample_sites(longer.p, factors=True)
    more = {stem(n) for n in grown if n not in model}
    sites = tuple(
        replace(s, lengthens=_lengthens(s, grown.get(s.name), plates), repeated=stem(s.name) in more) for s in sites
    )
    found = Structure(
        sites=sites,
        row_plates=plates,
        row_columns=rows or row_columns(data),
        nesting=nesting_of(model.values(), drawn.values()),
    )
    scaled = "" if found.subsampled else scaled_site({n: s for n, s in drawn.items() if not is_delta(s)})
    alike = scaled and _alike([s for s in (*model.values(), *drawn.values()) if not is_deterministic(s)], plates)
    equal = {n for n, s in drawn.items() if n in model and _same(model[n], s, "scale") and _same(model[n], s, "mask")}
    return replace(found, weighed=scaled if alike else "", off_scale="" if alike else scaled, alike=frozenset(equal))


def _same(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> bool:
    a, b = one[what], other[what]
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else is_equal(a, b)


def _alike(sites: Sequence[Mapping[str, Any]], plates: frozenset[str]) -> bool:
    """Whether a `poutine.scale` multiplies all sites by one number, or by one number a row."""
    first: Tensor | None = None
    for site in sites:
        scale = torch.as_tensor(site["scale"])
        row = {f.dim for f in site["cond_indep_stack"] if f.name in plates}
        if scale.numel() > 1 and [i - scale.dim() for i, n in enumerate(scale.shape) if n > 1] != list(row):
            return False
        first = scale.flatten() if first is None else first
        if not torch.equal(first, scale.flatten()):
            return False
    return True


def nesting_of(*sites: Iterable[Mapping[str, Any]]) -> int:
    """How many batch dimensions sites take, those of plates and others."""
    found = [0]
    for site in itertools.chain(*sites):
        found += [-f.dim for f in site["cond_indep_stack"] if f.vectorized]
        if not is_deterministic(site):  # Pyro calls all of its dimensions event ones
            found += [len(site["fn"].batch_shape), site["value"].dim() - site["fn"].event_dim]
    return max(found)


def longer_run(
    program: Runnable, data: Mapping[str, Any], rows: tuple[str, ...] = (), *, guide: bool = True
) -> Traces | None:
    """A run on the data and their first row once more; of the model alone, where the guide has a posterior for these
    rows only or does not run on others; None where nothing does. The random state is left as it was."""
    if not row_columns(data):
        return None
    n = n_rows(data, rows)
    more = take(data, torch.cat([torch.arange(n), torch.zeros(1, dtype=torch.long)]), rows)
    for with_guide in (True, False) if guide and not program.fixed_rows else (False,):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                t = run(program, more, guide=with_guide)
                for trace in t:  # the data may not fit the plates, which only a log-probability tells
                    trace.compute_log_prob(lambda _, site: site["is_observed"])
                return t
        except Exception:  # written for one number of rows
            continue
    return None


def shorter_run(
    program: Runnable, data: Mapping[str, Any], n: int, rows: tuple[str, ...]
) -> tuple[Mapping[str, Any], Traces] | None:
    """The first n rows, and a run on them; None where the program runs on these rows only. The random state is left as
    it was."""
    if program.fixed_rows:
        return None
    few = take(data, slice(0, n), rows)
    try:
        with torch.random.fork_rng(devices=[]):
            t = run(program, few)
            for trace in t:
                trace.compute_log_prob()
        return few, t
    except Exception:  # parameters of one value a row, or written for one number of rows
        return None


def row_plates(t: Traces, longer: Traces | None, data: Mapping[str, Any], rows: tuple[str, ...] = ()) -> frozenset[str]:
    """The plates that grow when a row is added to the data; told by their size alone where that could not be run."""
    if not row_columns(data):
        return frozenset()
    sizes = _plate_sizes(t)
    if longer is None:
        return frozenset(name for name, size in sizes.items() if size == n_rows(data, rows))
    grown = _plate_sizes(longer)
    return frozenset(name for name, size in sizes.items() if grown.get(name, size) != size)


def _lengthens(site: Site, grown: Mapping[str, Any] | None, plates: frozenset[str]) -> bool:
    """Whether a site has another shape on a row more, by its distribution: a guide may hold the value's."""
    if grown is None or plates & set(site.plates):
        return False
    fn = grown["fn"]
    return (site.batch_shape, site.event_shape) != (tuple(fn.batch_shape), tuple(fn.event_shape))


def _plate_sizes(t: Traces) -> dict[str, int]:
    sites = [s for trace in t for s in sample_sites(trace, factors=True).values()]
    return {f.name: _plate_size(f, s) for s in sites for f in s["cond_indep_stack"]}


def _plate_size(frame: Any, site: Mapping[str, Any]) -> int:
    """Of a plate without a size of its own, the size that the site's values have along it."""
    if frame.size >= 0:
        return int(frame.size)
    shape = whole_value(site).shape[: -site["fn"].event_dim or None]
    return int(shape[frame.dim]) if len(shape) >= -frame.dim else 1


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
    support = None if role in ("factor", "deterministic") else support_of(fn)
    return Site(
        name=node["name"],
        role=role,
        distribution=_name(fn),
        plates=tuple(f.name for f in frames),
        dims=value_of(node)[1],
        batch_shape=tuple(fn.batch_shape),
        event_shape=tuple(fn.event_shape),
        support="" if support is None else str(support),
        discrete=bool(support is not None and support.is_discrete),
        reparametrised=bool((guide or node)["fn"].has_rsample),  # it is the guide that draws
        value_shape=tuple(node["value"].shape),
        enumerated=node["name"] in enumerated,
        loops=tuple(f.name for f in node["cond_indep_stack"] if not f.vectorized),
        subsampled=any(f.full_size not in (None, f.size) for f in node["cond_indep_stack"]),
    )
