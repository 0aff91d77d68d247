"""The guide's draws as an ArviZ-schema `xarray.DataTree`: what ArviZ does for a sampler, it does for a fit.

Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, log_prior (of each latent, given those
before it, of its value on its own scale), sample_stats (log_p, log_q), observed_data, constant_data; from `predict`:
predictions, predictions_constant_data. The guide's draws are independent: (chain = 1, draw = S). Dimensions are the
plates, with coordinates of the program's `coords`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.chains.chain import require_few_states
from ppgen.check import running_of, unvalidated
from ppgen.check.agreement import observed_in_support
from ppgen.check.auxiliary import auxiliary_fault
from ppgen.check.indices import indexed_sizes, warn_of_negative_indices
from ppgen.check.missing import validate
from ppgen.data import n_rows, tensors, words_of
from ppgen.draws import Many, one_draw, say_own_seed
from ppgen.enumerated import drawn_discrete
from ppgen.errors import PpgenError, whole_number
from ppgen.gaps import COVARIATE, counts, gap_rows, with_gaps
from ppgen.handlers import Unobserve
from ppgen.inference.evaluation import psis
from ppgen.inference.evaluation.sample import dtype_of_program, program_of, ready, structure_of
from ppgen.inference.sampling.weighted import guide_tails
from ppgen.program import Program
from ppgen.run import Run, prepare_columns, versions
from ppgen.sites import (
    given_value,
    is_deterministic,
    is_event,
    is_factor,
    is_selected,
    masked_values,
    masks_of,
    observed_columns,
    rows_seen,
    sample_sites,
    scaled_site,
)
from ppgen.structure import Structure
from ppgen.terms import (
    Term,
    Traces,
    drawn_density,
    guide_run,
    holding,
    laid_out,
    latents_of,
    term,
    terms,
    total,
    value_of,
)
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

Arrays = dict[str, np.ndarray]
LOOKS = 16  # draws of the latents, to see whether they say what is masked


@torch.no_grad()
def posterior(
    run: Run | Program,
    data: Any,
    *,
    draws: int = 1000,
    seed: int | None = 0,
    predictive: bool = True,
    prior: bool = True,
    corrected: bool = False,
) -> DataTree:
    """Draws z ~ q(z | x), with the model's predictions, and the log-probabilities that diagnose them.

    Args:
        run: a run, or a fitted program.
        data: the columns: for an amortised guide any rows.
        draws: S.
        seed: of the draws.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.
        corrected: resamples more of the guide's draws by their importance weights (`ppgen.inference.evaluation.psis`),
            so that they are draws from the posterior; only where k-hat allows it.

    Returns:
        Groups as above; each variable has the dimensions chain, draw, its plates, its event dimensions. In
        sample_stats, log_p = log p(x, z) and log_q = log q(z | x), by row where every latent is local.

        Discrete latents that were summed out are drawn from p(d | x, z) at each draw of the others; log_p has them
        summed out.

    Raises:
        PpgenError: a program without latents (it has no posterior); data that the program does not take; weights that
            cannot be trusted.
    """
    program = program_of(run)
    require_few_states(program)
    data = prepare_columns(data, program, dtype_of_program(program))
    draws = whole_number("draws", draws, 2)
    validate(program, data)
    with ready(run, data, seed):
        structure = structure_of(run, data)
        warn_of_negative_indices(program, data, structure.row_columns)
        if not structure.names("latent"):
            raise PpgenError(
                f"{program.name} has no latent to infer, so no posterior; its log p(x) is exact: evaluate it"
            )
        with torch.random.fork_rng():
            once = run_once(program, data)
            here = sample_sites(once.p, factors=True)
            if corrected and (why := drawn_density(once)):
                raise PpgenError(f"{why}: the guide's draws have no weights to be corrected by; leave it out")
            if corrected and (fault := auxiliary_fault(program, data, once, structure)):
                raise PpgenError(f"the guide's draws have no weights to be corrected by: {fault}")
        for name in structure.names("observed"):
            observed_in_support(name, here[name], unvalidated(program, data))
        groups = Groups(program, data, structure, predictive=predictive, prior=prior)
        drawn = max(psis.PROPOSALS * draws, 4000) if corrected else draws
        with running_of(program, data):
            found = {g: {n: v.numpy()[None] for n, v in values.items()} for g, values in groups(drawn).items()}
        if corrected:
            drawn_all = found
            found = psis.corrected(found, structure, draws, seed)
            _warn_of_tails(program, data, structure, drawn_all)
        return tree_of(program, structure, here, found, data)


def _warn_of_tails(
    program: Program, data: Mapping[str, Tensor], structure: Structure, found: Mapping[str, Arrays]
) -> None:
    """Says where the posterior has tails that no weights of draws give it."""
    log_w = (found["sample_stats"]["log_p"] - found["sample_stats"]["log_q"])[0]
    drawn = {n: found["posterior"][n][0] for n in structure.latents}
    heavy = guide_tails(program, data, structure, drawn, log_w.reshape(len(log_w), -1))
    if heavy is not None:
        log.warning("%s", heavy.told)


class Groups:
    """Draws of every group of a posterior's tree: groups(S) gives tensors with S leading, by group and name.

    Args:
        program, data, structure: set up, and as they were checked.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.
        posterior: with posterior and log_prior, and sample_stats where the guide draws.
        pointwise: with log_likelihood.
        single: floats of a row each in float32: log_likelihood and predictions.
        latents: examples of one draw of each latent, without the leading dimension; their draws are passed to each
            call, and the guide is not used. None: the guide draws.
    """

    def __init__(
        self,
        program: Program,
        data: Mapping[str, Tensor],
        structure: Structure,
        *,
        predictive: bool,
        prior: bool,
        posterior: bool = True,
        pointwise: bool = True,
        single: bool = False,
        latents: Mapping[str, Tensor] | None = None,
    ):
        self.posterior, self.pointwise, self.single = posterior, pointwise, single
        self.program, self.data, self.structure = program, data, structure
        self.predictive = predictive and bool(structure.names("observed"))
        self.prior = prior and not any(s.distribution == "Flat" for s in structure.sites)
        self.given = None if latents is None else list(latents)
        self.names: list[tuple[str, str]] = []
        self._undrawn: set[str] = set()
        self._many = Many(self._one, each=list((latents or {}).values()), name=program.name)

    def __call__(self, draws: int, latents: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        each = [latents[n] for n in self.given] if latents is not None and self.given is not None else []
        values = self._many(draws, each=each)  # which tells the names as well
        out: dict[str, dict[str, Tensor]] = {}
        for (group, name), value in zip(self.names, values, strict=True):
            out.setdefault(group, {})[name] = value
        prior = [v for g in ("prior", "prior_predictive") for v in out.get(g, {}).values()]
        unlike = self.given is None and self._many.graph is None and draws > 1 and prior  # the guide's draws differ
        if unlike and all(torch.equal(v, v[:1].expand_as(v)) for v in prior):
            say_own_seed(self.program.name)
        return out

    def _one(self, *given: Tensor) -> list[Tensor]:
        latents = None if self.given is None else dict(zip(self.given, given, strict=True))
        found = {(g, n): self._kept(g, v) for g, n, v in self._values(latents)}
        self.names = list(found)
        return list(found.values())

    def _kept(self, group: str, value: Tensor) -> Tensor:
        small = self.single and group in _BY_ROW and value.dtype == torch.float64
        return value.float() if small else value

    def _values(self, latents: dict[str, Tensor] | None) -> Iterator[tuple[str, str, Tensor]]:
        """Group, name and value of everything, of one draw."""
        program, data, structure = self.program, self.data, self.structure
        q = guide_run(program, data) if latents is None else None
        t = run_once(program, data, q=q, latents=latents)
        held = latents_of(q) if q is not None else dict(latents or {})
        found = terms(t) if not structure.summed else one_draw(program, data, structure, q=q, latents=latents)
        if structure.summed:
            held |= drawn_discrete(program, data, structure.nesting, held, structure.summed)
            t = run_once(program, data, latents=held)
        if self.posterior:
            for name, site in sample_sites(t.p).items():
                if is_deterministic(site) or not site["is_observed"]:
                    yield "posterior", name, value_of(site if q is None else _redrawn(site))[0]
        if self.pointwise:
            yield from (("log_likelihood", n, v) for n, v in _pointwise(self._by_row(found, held), t, self.structure))
        if self.posterior:
            yield from self._densities(t, found, q is not None)
        model = Unobserve(undrawn=self._undrawn)(lambda: program.call("model", data))
        if self.predictive:
            with holding(held):
                sites = sample_sites(poutine.trace(model).get_trace())
            for name, site in sites.items():
                if site["infer"].get("was_observed"):
                    yield "posterior_predictive", name, value_of(site)[0]
        if self.prior:
            sites = sample_sites(poutine.trace(model).get_trace(), deterministic=False)
            for name, site in sites.items():
                if not site.get("fixed"):
                    group = "prior_predictive" if site["infer"].get("was_observed") else "prior"
                    yield group, name, value_of(site)[0]

    def _by_row(self, found: Sequence[Term], held: Mapping[str, Tensor]) -> Sequence[Term]:
        """The terms with the discrete latents of a row summed out, and those held that rows share: these would make
        one sum of all rows."""
        shared = [n for n in self.structure.summed if not self.structure.is_local(n)]
        if not shared or len(shared) == len(self.structure.summed):
            return found
        given = {n: v for n, v in held.items() if n in shared or n not in self.structure.summed}
        return one_draw(self.program, self.data, self.structure, latents=given)

    def _densities(self, t: Traces, found: Sequence[Term], guide: bool) -> Iterator[tuple[str, str, Tensor]]:
        for name in self.structure.latents:
            yield "log_prior", name, laid_out(t.p.nodes[name], term(t.p.nodes[name]).log_density, 0)[0]
        if guide:
            for name, value in _log_p_q(found, self.structure).items():
                yield "sample_stats", name, value


_BY_ROW = ("log_likelihood", "posterior_predictive", "prior_predictive")


def _redrawn(site: dict[str, Any]) -> dict[str, Any]:
    """A latent of partly observed rows, drawn from the model in the rows where it is used nowhere.

    A guide does not learn it there (`ppgen.terms.partly_masked`), and the log joint has its density.
    """
    missing = site.get("partly")
    if not isinstance(missing, Tensor):
        return site
    fn = site["fn"]
    drawn = fn.rsample() if fn.has_rsample else fn.sample()
    return {**site, "value": torch.where(missing.reshape(missing.shape + (1,) * fn.event_dim), site["value"], drawn)}


def _pointwise(found: Sequence[Term], t: Traces, structure: Structure) -> Iterator[tuple[str, Tensor]]:
    """The masked log-likelihood of each observed value; of each row, where latents of the row were summed out, and
    where a factor has a term for each.
    """
    inside: set[str] = set()
    if any(map(structure.is_local, structure.summed)):
        summed = [f for f in found if f.role == "summed"]
        inside = {n for f in summed for n in f.site.split("+")}
        if inside - {""}:
            yield summed[0].site, total(summed, keep=structure.row_plates)
    for name, site in sample_sites(t.p, factors=True, deterministic=False).items():
        if is_factor(site) and (not structure.is_local(name) or site["infer"].get(COVARIATE)):
            continue  # a sum over rows, a part of the prior, or a term of a row's covariate
        if site["is_observed"] and name not in inside and not site.get("fixed"):
            one = term(site)
            yield name, laid_out(site, one.log_density, 0)[0]


def _log_p_q(found: Sequence[Term], structure: Structure) -> dict[str, Tensor]:
    """log p(x, z) and log q(z | x) of one draw: by row where every latent is local; without the weights of rows."""
    if structure.weighed:
        found = [f._replace(log_prob=f.log_density) for f in found]
    keep = structure.row_plates if structure.by_row else frozenset()
    parts = {"log_p": [f for f in found if f.sign > 0], "log_q": [f for f in found if f.sign < 0]}
    p = total(parts["log_p"], keep=keep)
    return {"log_p": p, "log_q": -total(parts["log_q"], keep=keep) if parts["log_q"] else torch.zeros_like(p)}


def is_observed(column: Tensor, sites: Mapping[str, dict]) -> bool:
    """Whether a column is what some site observes, by whatever name."""
    given = (given_value(s) for s in sites.values() if s["is_observed"])
    return any(v.data_ptr() == column.data_ptr() and v.numel() == column.numel() for v in given)


def dims_of(program: Program, name: str, batch: list[str], ndim: int) -> list[str]:
    """The plates, then the names that the program gives its event's dimensions, if as many as there are."""
    event = list(program.dims.get(name, ()))
    if len(event) != ndim - len(batch):
        own = sum(d.startswith(f"{name}_dim_") for d in batch)  # batch dimensions without a plate
        event = [f"{name}_dim_{own + i}" for i in range(ndim - len(batch))]
    return [*batch, *event]


def column_dims(program: Program, name: str, value: Tensor, rows: Collection[str], row_dim: str) -> list[str]:
    return dims_of(program, name, [row_dim] if name in rows and value.dim() else [], value.dim())


def coords_of(program: Program, sizes: Mapping[str, int], data: Mapping[str, Any], row_dim: str) -> dict[str, Any]:
    """A coordinate for every dimension: the program's labels, or words, where they fit, else 0, 1, ...

    Words are those of the column of the dimension's name; or of the column that the model indexes this dimension with,
    the only one of its size.

    Args:
        data: the columns, with their types.
    """
    given = {**words_of(program.types), **program.coords}
    labels = {d: list(given[d]) for d, n in sizes.items() if d in given and len(given[d]) == n}
    rest = {d: n for d, n in sizes.items() if d not in labels and d != row_dim}
    if rest and (indexed := indexed_sizes(program, data)):
        words = words_of(program.types)
        for d, n in rest.items():
            columns = [c for c, own in indexed.items() if n in own and len(words.get(c, ())) == n]
            if len(columns) == 1 and list(rest.values()).count(n) == 1:
                labels[d] = list(words[columns[0]])
    return {d: labels.get(d, np.arange(n)) for d, n in sizes.items()}


def tree_of(
    program: Program,
    structure: Structure,
    here: Mapping[str, dict],
    found: dict[str, Arrays],
    data: Mapping[str, Tensor],
) -> DataTree:
    """The tree of what was drawn, (chain, draw, ...) by group and site, with observed and constant data.

    Args:
        here: the sites of a run by name, factors too.
    """
    observed = {n: value_of(with_gaps(here[n]))[0].numpy() for n in structure.names("observed")}
    constant = {n: v.numpy() for n, v in tensors(data).items() if n not in observed and not is_observed(v, here)}
    sizes: dict[str, int] = {}
    dims: dict[str, list[str]] = {}
    known = {s.name for s in structure.sites}
    gaps = gap_rows(program, data)
    found = {g: {n: v[..., gaps[n][1]] if n in gaps else v for n, v in own.items()} for g, own in found.items()}
    for group_name, group in found.items():
        for name, value in group.items():
            own = structure[name].dims if name in known else (structure.row_plate,)
            own = (gaps[name][0],) if name in gaps else own
            if group_name == "sample_stats":
                dims[name] = [structure.row_plate] if value.ndim == 3 else []
            elif name not in dims or len(dims[name]) < value.ndim - 2:
                dims[name] = dims_of(program, name, list(own)[: value.ndim - 2], value.ndim - 2)
            sizes |= dict(zip(dims[name], value.shape[2:], strict=False))
    for name, array in observed.items():
        if len(dims.get(name, ())) < array.ndim:  # a log-likelihood lacks those of the event
            dims[name] = dims_of(program, name, list(structure[name].dims)[: array.ndim], array.ndim)
        sizes |= dict(zip(dims[name], array.shape, strict=False))
    row_dim = structure.row_plate
    over_rows = {n for n in structure.row_columns if len(data[n]) == sizes.get(row_dim, len(data[n]))}
    of_columns = {n: column_dims(program, n, data[n], over_rows, row_dim) for n in constant}
    for name, array in constant.items():
        sizes |= dict(zip(of_columns[name], array.shape, strict=True))
    groups: dict[str, Any] = {g: found[g] for g in _ORDER if g in found}
    groups |= {g: own for g, own in (("observed_data", observed), ("constant_data", constant)) if own}
    tree = tree_from(
        groups,
        dims,
        coords_of(program, sizes, data, structure.row_plate) | {d: rows for d, rows in gaps.values() if d in sizes},
        of_columns,
        row_dim=structure.row_plate,
        unrecorded=json.dumps(sorted(_unrecorded(program, structure, observed, here, data))),
        masked=json.dumps(
            _masked({n: v for n, v in observed.items() if n not in found.get("log_likelihood", ())}, here)
        ),
        scaled=scaled_site({n: here[n] for n in here if n in observed or n in found.get("log_likelihood", ())}),
        direct=json.dumps(sorted(observed_columns({n: here[n] for n in observed}, data))),
        **_shown_record(program, structure, data),
    )
    return _without_masked(tree, structure, here)


def _unrecorded(
    program: Program, structure: Structure, observed: Collection[str], here: Mapping[str, dict], data: Mapping[str, Any]
) -> set[str]:
    """Observed sites of which what is drawn is no record: censored by a column; an event's; beside a site or factor
    that stands for some of its values; or masked by latents, so that a draw has another number of values."""
    sites = {n: s for n, s in here.items() if not s.get("fixed") and not s["infer"].get(COVARIATE)}
    censored = {
        n
        for n in observed
        if structure[n].distribution == "WithStatus" or is_event(here[n], data) or is_selected(n, sites, data)
    }
    masks = {n: masks_of(here[n]) for n in observed if n not in censored and masks_of(here[n])}
    if not masks:
        return censored
    with torch.random.fork_rng(devices=[]), suppress(LinAlgError, ValueError):  # at a draw from the prior
        for _ in range(LOOKS):
            others = sample_sites(run_once(program, data, guide=False).p)
            censored |= {n for n in masks if n in others and not _same(masks[n], masks_of(others[n]))}
    return censored


def _masked(values: Mapping[str, np.ndarray], here: Mapping[str, dict]) -> dict[str, str]:
    """The bits of which values are masked, of sites that have no log-likelihood of their own to tell: those of rows
    whose latents were summed out."""
    found = {}
    for name, value in values.items():
        if (masked := masked_values(here[name])) is not None:
            entries = (1,) * (value.ndim - masked.dim())
            whole = np.broadcast_to(masked.cpu().numpy().reshape(masked.shape + entries), value.shape)
            found[name] = np.packbits(whole).tobytes().hex()
    return found


def _same(masks: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(masks) == len(others) and all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def _drawn_cells(program: Program, data: Mapping[str, Any]) -> dict[str, str]:
    """The rows, or pairs of row and entry, of observed columns whose cells are drawn, by the site of the cells."""
    names = [n for n in program.gaps if program.missing == "impute" and n not in program.drawn_columns]
    columns = {n: v for n in names if isinstance(v := data.get(n), Tensor) and v.is_floating_point()}
    rows = {
        f"{n}_unobserved": v.isnan().nonzero().squeeze(-1).tolist() for n, v in columns.items() if v.dim() in (1, 2)
    }
    return {"drawn_cells": json.dumps(rows)} if rows else {}


def _without_masked(tree: DataTree, structure: Structure, here: Mapping[str, dict]) -> DataTree:
    """Leaves out of log_likelihood the rows that every site masks: they are no data, and LOO does not count them."""
    from xarray import DataTree as Tree

    if "log_likelihood" not in tree.children:
        return tree
    found, row_dim = tree["log_likelihood"].to_dataset(), structure.row_plate
    names = [n for n, v in found.data_vars.items() if row_dim in v.dims]
    masks = [rows_seen(here[n], row_dim) for name in names for n in str(name).split("+") if n in here]
    if not masks or any(m is None for m in masks):
        return tree
    seen = torch.stack([m for m in masks if m is not None]).any(0)
    if not bool(seen.all()):
        tree["log_likelihood"] = Tree(found.isel({row_dim: np.flatnonzero(seen.numpy())}))
    return tree


_ORDER = ("posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior",
          "sample_stats")  # fmt: skip


def tree_from(
    groups: dict[str, Any], dims: dict[str, list[str]], coords: dict[str, Any],
    of_columns: dict[str, list[str]] | None = None, **attrs: str,
) -> DataTree:  # fmt: skip
    """A tree of groups, with ArviZ's names of groups and dimensions.

    Args:
        dims: of each site's value.
        of_columns: the dimensions of the columns in the groups of constants; a site that is called like one, and has
            other dimensions, has another name in the tree.
    """
    from arviz_base import dict_to_dataset, from_dict
    from xarray import DataTree

    of_columns = of_columns or {}
    of_dims = _tree_names([*coords, *(n for group in groups.values() for n in group)])
    all_dims = dims | of_columns
    over = {n for group in groups.values() for n in {d for v in group for d in all_dims.get(v, ())} & group.keys()}
    names = {n: _apart(own, of_dims.values()) if n in over else own for n, own in of_dims.items()}
    clash = {n for n in of_columns.keys() & dims.keys() if list(dims[n]) != list(of_columns[n])}
    sites = {n: _apart(own, names.values()) if n in clash else own for n, own in names.items()}
    own_names = {g: names if g in _CONSTANT else sites for g in groups}
    groups = {g: {own_names[g][n]: v for n, v in group.items()} for g, group in groups.items()}
    dims = {
        found.get(n, n): [of_dims.get(d, d) for d in own]
        for found, of in ((sites, dims), (names, of_columns))
        for n, own in of.items()
    }
    coords = {of_dims[d]: values for d, values in coords.items()}
    changed = {own: name for found in (of_dims, names, sites) for name, own in found.items() if own != name}
    attrs |= {"original_names": json.dumps(changed, ensure_ascii=False)} if changed else {}
    used = versions()
    made_by = {"inference_library": "ppgen", "inference_library_version": used["ppgen"]}
    known = {g: v for g, v in groups.items() if g != "log_prior"}
    tree = from_dict(
        known,
        dims=dims,
        coords=coords,
        pred_dims=dims,
        pred_coords=coords,
        attrs={"/": made_by | used | attrs, **dict.fromkeys(known, made_by)},
        check_conventions=False,  # it warns of more chains than draws, as 64 with 15 draws of each
    )
    if "log_prior" in groups:  # it lacks the dimensions of the event, which `from_dict` knows of log-likelihoods only
        named: Any = dims
        one = dict_to_dataset(groups["log_prior"], dims=named, coords=coords, attrs=made_by, skip_event_dims=True)
        tree["log_prior"] = DataTree(one)
    return tree


_CONSTANT = ("constant_data", "predictions_constant_data")


def _apart(name: str, taken: Collection[str]) -> str:
    """Another name: a variable that is called as a dimension of its group would be a coordinate."""
    while name in taken:
        name += "_"
    return name


def _tree_names(names: Iterable[str]) -> dict[str, str]:
    """The name in a tree of each name of a program: a tree's path is written with slashes, so that names take none, and
    its draws are along the dimensions chain and draw.

    >>> _tree_names(["mu", "a/b", "a.b", "chain"])
    {'mu': 'mu', 'a/b': 'a.b_', 'a.b': 'a.b', 'chain': 'chain_'}
    """
    names = list(dict.fromkeys(names))
    taken, found = {n for n in names if _is_free(n)} | _RESERVED, {}
    for name in names:
        own = name.replace("/", ".")
        if not _is_free(name):
            own = _apart(own, taken)
        taken.add(own)
        found[name] = own
    return found


_RESERVED = {"chain", "draw"}


def _is_free(name: str) -> bool:
    return "/" not in name and name not in _RESERVED


def name_in(tree: DataTree, name: str) -> str:
    """What a tree calls a site."""
    changed: dict[str, str] = json.loads(tree.attrs.get("original_names", "{}"))
    return next((own for own, original in changed.items() if original == name), name)


def _shown_record(program: Program, structure: Structure, data: Mapping[str, Any]) -> dict[str, str]:
    """The attributes that `ppgen.run.shown` reads; what was done with missing cells, and to how many."""
    groups = {p for s in structure.sites for p in s.plates if p not in structure.row_plates}
    whole = program.gaps if program.missing == "impute" else ()  # of columns with drawn cells tables show these alone
    gaps = counts(program, n_rows(data, structure.row_columns) if structure.row_columns else 0)
    found = {"unreported": json.dumps([*program.unreported, *whole]), "group_plates": json.dumps(sorted(groups))}
    return found | ({"missing": json.dumps(gaps)} if gaps else {}) | _drawn_cells(program, data)
