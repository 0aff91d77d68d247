r"""Posterior predictive at new rows, from a run or from a sampler's draws.

    z ~ p(z | x) (draws of a guide or of chains),   x̃ ~ p_θ(x̃ | z, new columns)

Global latents are the posterior's. A new row's own latents are drawn by an amortised guide where it can read the row,
else from the model given the global ones. The latents of a new group are drawn from the model given the global ones of
the same draw.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppgen.chains.chain import require_few_states
from ppgen.check import columns, running_of
from ppgen.check.across_rows import across_rows
from ppgen.check.given_columns import columns_of, conditioned, other_values
from ppgen.check.indices import indexed_sizes, is_index, warn_of_negative_indices
from ppgen.check.missing import validate
from ppgen.data import Table, argument_of, n_rows, require_labels, row_columns, take, tensors
from ppgen.data.ranges import Beyond, far_outside
from ppgen.draws import Many, settle
from ppgen.enumerated import drawn_discrete
from ppgen.errors import PpgenError, first_line, whole_number
from ppgen.gaps import without_gaps
from ppgen.handlers import HoldGroups, NewGroup, Unobserve, without_validation
from ppgen.inference.evaluation.posterior import column_dims, coords_of, dims_of, is_observed, name_in, tree_from
from ppgen.inference.evaluation.sample import (
    constants_of,
    counts_in_range,
    dtype_of_program,
    forward_sites,
    program_of,
    ready,
    same_column,
    stand_ins,
    whole_trials,
)
from ppgen.program import Program
from ppgen.run import Run, default_dtype, prepare_columns
from ppgen.run.trees import Fitted, opened
from ppgen.sites import innermost, is_deterministic, observed_columns, sample_sites, stem
from ppgen.structure import Structure, longer_run
from ppgen.terms import guide_run, holding, latents_of, value_of

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

NEW_GROUPS = ("error", "draw")
SHOWN = 3  # columns in a sentence
INTERVAL = (0.05, 0.95)  # quantiles of the intervals that are shown


@torch.no_grad()
def predict(
    run: Run | Program | DataTree,
    data: Any,
    *,
    program: Run | Program | Callable | None = None,
    draws: int | None = None,
    seed: int | None = 0,
    new_groups: str = "error",
) -> DataTree:
    """Posterior predictive on new rows: z from the posterior, then x ~ p_θ(x | z) at the new columns.

    Args:
        run: a run, a fitted program, or a tree of `ppgen.inference.mcmc` (or of `ppgen mcmc`, from its file).
        data: the columns of the new rows; those that the model observes may be left out, or None. Where some are given
            and others are not, predictions are of the others, given these; a warning says where that cannot be. All
            given, they are used by an amortised guide alone, which reads them. Text has the codes of the fit.
        program: of a tree that does not name its own, or whose program lies elsewhere now.
        draws: S, or None: 1000. Of a tree the same number of draws of each chain, evenly spaced: the largest that gives
            no more than S in all, but at least one and at most all.
        seed: of the draws.
        new_groups: what to do with a group that was not fitted (a word or a number that no row had, for which the
            latents of a plate have no value): an "error", or "draw" its latents from their distribution given the
            global ones.

    Returns:
        The groups predictions, of the dimensions chain, draw, those of the site; and predictions_constant_data, text in
        words. Where rows are farther from the range of a fitted column than that is wide, a warning says so, and the
        attribute extrapolated, JSON of each such column: rows, farthest, low, high, widths (`ppgen.data.ranges`).

        Global latents are drawn from the guide, local ones too where the new rows have what the guide reads (else from
        the model, given the global ones); discrete global latents that were summed out from p(d | x, z) at the rows
        that were fitted; those of a tree are its own.

    Raises:
        PpgenError: a column that the model cannot do without; a group that was not fitted; other rows, where a latent
            is as long as the fitted ones and stands in no plate; counts that are too large to be drawn.
    """
    if new_groups not in NEW_GROUPS:
        raise PpgenError(f"new_groups is {new_groups!r}; expected 'error', or 'draw' to draw their latents")
    draws = 1000 if draws is None else whole_number("draws", draws, 1)
    fitted = _fitted(run, program, data)
    require_few_states(fitted.program)
    made = fitted.program
    guide = fitted.draws is None
    with default_dtype(fitted.dtype), without_validation():
        given = {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data
        given = Table(given, data.types) if isinstance(data, Table) else given
        rows = prepare_columns(given, made, dtype_of_program(made), new_words=new_groups == "draw", beyond=True)
        _require_groups(fitted, rows)
        with without_gaps(made):
            rows, hidden = _complete(fitted, rows)
        columns(made, rows)
        if rows:
            validate(made, rows)
        known = rows if guide else fitted.example
        with ready(run if isinstance(run, Run) else made, known, seed, guide=guide), running_of(made, rows):
            _known_here(fitted, rows)
            warn_of_negative_indices(made, rows, fitted.structure.row_columns if fitted.structure else ())
            with without_gaps(made):
                return _predictions(fitted, rows, hidden, draws, new_groups == "draw")


def _require_groups(fitted: Fitted, rows: Table) -> None:
    """Refuses a word that the fit did not see, in a column that is no index of groups: its code is no group."""
    types = fitted.program.types or {}
    new = {n: own.levels[len(types[n].levels) :] for n, own in rows.types.items() if n in types and types[n].levels}
    new = {n: words for n, words in new.items() if words}
    groups = indexed_sizes(fitted.program, Table(fitted.example, types), _row_names(fitted)) if new else {}
    for name, words in new.items():
        if name not in groups:
            raise PpgenError(
                f"the column {name!r} has {words[0]!r}, which the fit did not see, and {fitted.program.name} takes its "
                "words as numbers, not as groups; leave these rows out"
            )


def _row_names(fitted: Fitted) -> tuple[str, ...]:
    return fitted.structure.row_columns if fitted.structure is not None else ()


def _fitted(run: Any, program: Run | Program | Callable | None, given: Any) -> Fitted:
    if isinstance(run, Run | Program):
        made = program_of(run)
        structure, example = (run.structure, run.example) if isinstance(run, Run) else (None, {})
        recorded = run.config["data"].get("ranges") if isinstance(run, Run) else None
        return Fitted(made, structure, example, None, dtype_of_program(made), recorded or {})
    if not hasattr(run, "children"):
        raise PpgenError(f"{type(run).__name__} cannot be predicted from; pass a run, a program, or a tree of mcmc")
    return opened(run, program, given)


def _complete(fitted: Fitted, rows: Table) -> tuple[Table, frozenset[str]]:
    """With columns that the model only observes, and the names of these: fitted rows that stand for their shape."""
    rows = Table({**constants_of(fitted.example), **rows}, rows.types)
    if not fitted.example:
        return rows, frozenset()
    try:
        found = stand_ins(fitted.program, fitted.example, rows, held=True)
    except PpgenError:  # a column that is missing and not observed, which the check of columns says
        return rows, frozenset()
    own = fitted.structure.row_columns if fitted.structure is not None else ()
    n = n_rows(rows, tuple(k for k in own if k in rows)) if rows else 1
    rest = {k: v[torch.arange(n) % len(v)] if found.whole and k in own else v for k, v in found.columns.items()}
    return Table({**rows, **rest}, rows.types), frozenset(rest)


def _known_here(fitted: Fitted, rows: Table) -> None:
    """Refuses other rows than the fitted ones, of a model with a latent of their length outside of their plate; says
    that the latents of a loop over the rows, which is no plate, are those of fitted rows."""
    structure = fitted.structure
    if structure is None or not (structure.lengthening or structure.numbered) or _are_fitted(rows, fitted.example):
        return
    sites = forward_sites(lambda given: fitted.program.call("model", given), fitted.example, 1)
    seen = set(observed_columns(sites, fitted.example).values())
    if structure.lengthening and not _are_fitted({k: v for k, v in rows.items() if k not in seen}, fitted.example):
        raise PpgenError(
            f"the latent {structure.lengthening[0]!r} of {fitted.program.name} has the length of the fitted rows and "
            "stands in no plate, so that its values at other rows are not known; write it within the plate of the "
            "rows, or condition on the fitted rows in the model"
        )
    n = min(n_rows(t, structure.row_columns) for t in (rows, fitted.example))
    first, old = (take(t, slice(0, n), structure.row_columns) for t in (rows, fitted.example))
    if structure.numbered and not _are_fitted(first, old):
        log.warning(
            "the latents of %s in its loop over the rows, as %r, are those of the fitted rows, the first new row's of "
            "the first fitted one and so on; for rows of their own write the loop as pyro.plate, and to go on from "
            "the fitted rows pass those first", fitted.program.name, structure.numbered[0],
        )  # fmt: skip


def _are_fitted(rows: Mapping[str, Any], fitted: Mapping[str, Any]) -> bool:
    """Whether these are the rows that were fitted, or go on from them: series by row with further times."""
    other = {n: v for n, v in rows.items() if n not in fitted or not same_column(v, fitted[n])}
    if not all(isinstance(v, Tensor) and isinstance(fitted.get(n), Tensor) for n, v in other.items()):
        return False
    longer = {n for n, v in other.items() if _goes_on(v, fitted[n])}
    return not other or bool(longer) and all(n in longer or _counts_on(v, fitted[n]) for n, v in other.items())


def _goes_on(series: Tensor, fitted: Tensor) -> bool:
    """Whether each row begins with a fitted one, (rows, times, ...), and has times beyond."""
    if series.dim() < 2 or fitted.dim() < 2 or series.shape[1] <= fitted.shape[1]:
        return False
    return same_column(series[:, : fitted.shape[1]], fitted)


def _counts_on(lengths: Tensor, fitted: Tensor) -> bool:
    """Whether whole numbers by row, as the lengths of series, are the fitted ones or larger."""
    whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
    return whole and lengths.shape == fitted.shape and bool((lengths >= fitted).all())


class _Model(NamedTuple):
    """The model at new rows, its latents held.

    Attributes:
        hidden: columns that are there for their shape only.
        same: whether its rows are the fitted ones.
        sizes: of plates that are larger than at the fit.
        kept: observed sites that stay at the columns of the new rows.
        reads: whether the guide draws latents of the new rows.
    """

    fitted: Fitted
    rows: Table
    hidden: frozenset[str]
    same: bool
    sizes: Mapping[str, int]
    grow: bool
    kept: frozenset[str] = frozenset()
    reads: bool = False

    def trace(
        self, held: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None = None, *, observed: bool = False
    ) -> tuple[Any, HoldGroups]:
        """One run, every observed site drawn but those kept, or none (`observed`)."""
        structure, program = self.fitted.structure, self.fitted.program
        fixed = structure.row_plates if structure is not None else frozenset({"data"})
        holding = HoldGroups(held, self.sizes, fixed, grow=self.grow)
        with holding:
            unobserve = Unobserve(only=() if observed else None, keep=self.kept)
            call = unobserve(lambda: program.call("model", self.rows if rows is None else rows))
            return poutine.trace(call).get_trace(), holding

    def holding(self, held: Mapping[str, Tensor], kept: Collection[str]) -> Any:
        """One run, these observed sites at the columns of the new rows."""
        return self._replace(kept=frozenset(kept)).trace(held)[0]

    def observed(self, held: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """The sites of one run at these rows, none that is observed drawn."""
        return sample_sites(self.trace(held, rows, observed=True)[0])

    def drawn(self) -> dict[str, Tensor]:
        """One draw of the latents by the guide."""
        return _guide_draw(self.fitted, _seen(self.rows, self.hidden), self.same, self.reads)


def _predictions(fitted: Fitted, rows: Table, hidden: frozenset[str], draws: int, grow: bool) -> DataTree:
    program, structure = fitted.program, fitted.structure
    model = _Model(fitted, rows, hidden, _are_fitted(rows, fitted.example), {}, grow)
    chains, each = _thinned(fitted, model.same, draws)
    unread: dict[str, set[str]] = {}
    if fitted.draws is None and not model.same:
        reads, unread = _reads(fitted, _seen(rows, hidden))
        model = model._replace(reads=reads)
    with torch.random.fork_rng():
        sample = {n: v[0] for n, v in each.items()} if fitted.draws is not None else model.drawn()
        _say_point(fitted, sample, model)
        sizes = _grown(model, sample)
        if not sizes:
            require_labels(rows, program.categories, program.name, gaps=program.missing == "mask")
        model = model._replace(sizes=sizes)
        observe = functools.partial(model.observed, sample)
        sites = observe(rows)
        _say_joint(fitted, sites)
        roles = _roles(structure)
        if not model.same:
            _say_across_rows(fitted)
            _say_fixed(fitted, {n for n in sites if n not in sample})
        free = any(_free(s, sample, roles) and not s["is_observed"] for s in sites.values())
        kept = conditioned(model.holding, observe, rows, hidden, free, sample, unread)
        model = model._replace(kept=kept)
    dims: dict[str, tuple[str, ...]] = {}
    counts: dict[str, Any] = {}
    names: list[str] = []

    def one(*given: Tensor) -> list[Tensor]:
        q = dict(zip(each, given, strict=True)) if fitted.draws is not None else model.drawn()
        p, _ = model.trace(q)
        drawn = {n: s for n, s in sample_sites(p).items() if n not in model.kept and not s.get("fixed")}
        out = {n: s for n, s in drawn.items() if s["infer"].get("was_observed") or _free(s, q, roles)}
        settle(names, list(out))
        counts.update({n: s["fn"] for n, s in out.items()})
        values = {n: value_of(s) for n, s in out.items()}
        dims.update({n: d for n, (_, d) in values.items()})
        return [v for v, _ in values.values()]

    for name in sites.keys() - model.kept:
        whole_trials(name, sites[name]["fn"])
    many = Many(one, each=[v[0] for v in each.values()], name=program.name)
    drawn = many(chains[0] * chains[1], each=list(each.values()))
    if not names:
        raise PpgenError(
            f"{program.name} has no observed site, only factors, from which nothing can be drawn; write the likelihood "
            "as pyro.sample(..., obs=)"
        )
    for name, value in zip(names, drawn, strict=True):
        counts_in_range(name, value, counts[name])
        _say_infinite(name, value)
    found = {n: v.reshape(*chains, *v.shape[1:]).numpy() for n, v in zip(names, drawn, strict=True)}
    given = {n: v for n, v in tensors(rows).items() if n not in hidden and n not in found}  # a site may have its name
    left = {n: s for n, s in sites.items() if n not in model.kept}
    constant = Table({n: v for n, v in given.items() if not is_observed(v, left)}, rows.types)
    tree = _tree(fitted, found, dims, constant)
    if beyond := _extrapolated(fitted, constant):
        tree.attrs["extrapolated"] = json.dumps([b._asdict() for b in beyond])
        log.warning(
            "%s%s: predictions that far out rest on the form of the model alone, which no fitted row has tried",
            "; ".join(map(str, beyond[:SHOWN])), f"; and {len(beyond) - SHOWN} more" * (len(beyond) > SHOWN),
        )  # fmt: skip
    return tree


def _say_across_rows(fitted: Fitted) -> None:
    if not fitted.example or fitted.structure is None:
        return
    if found := across_rows(fitted.program, fitted.example, fitted.structure):
        log.warning(
            "%r of a row of %s depends on %r of other rows, as in a Gaussian process or a sum along time; new rows "
            "have latents from the prior, so that these predictions do not go on from the fitted rows: for those that "
            "do, fit the new rows among the others, with %r missing there (nan, and --missing mask)",
            found[0], fitted.program.name, found[1], found[0],
        )  # fmt: skip


def _say_fixed(fitted: Fitted, drawn: Collection[str]) -> None:
    """Where a plate of the fitted rows' number has it whatever the rows, so that it may be one of groups."""
    structure = fitted.structure
    own = () if structure is None or not fitted.example else sorted(structure.of_rows & set(drawn))
    if structure is None or not own or longer_run(fitted.program, fitted.example, structure.row_columns, guide=False):
        return
    log.warning(
        "the plate %r of %s has the size of the fitted rows and runs at no other number of them: %r is drawn anew, as "
        "of other rows, and not what was fitted; if these are the groups of the fit, give the values of a group by a "
        "column of its number (%s[group])", structure.row_plate, fitted.program.name, own[0], own[0],
    )  # fmt: skip


def _say_point(fitted: Fitted, sample: Mapping[str, Tensor], model: _Model) -> None:
    """Of a guide that gives one value of the global latents: what is not known of them is not in the predictions."""
    found = [] if fitted.structure is None or fitted.draws is not None else fitted.structure.globals
    held = [n for n in found if n in sample and sample[n].is_floating_point()]
    if held and (again := model.drawn()) and all(torch.equal(sample[n], again[n]) for n in held):
        log.warning(
            "the guide of %s gives %r as a point, so that predictions are narrower than what is known of it allows; "
            "fit with a guide that has a spread (--guide AutoNormal, or AutoLaplaceApproximation)",
            fitted.program.name, held[0],
        )  # fmt: skip


def _say_joint(fitted: Fitted, sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Where the rows are one vector whose entries depend on each other: what is drawn is another such vector."""
    known = () if fitted.structure is None else fitted.structure.sites
    for name in [s.name for s in known if s.lengthens and s.role == "observed" and s.name in sites]:
        cov = getattr(fn := innermost(sites[name]["fn"]), "covariance_matrix", None)
        if fn.event_dim and (cov is None or bool((cov - cov.diagonal(dim1=-2, dim2=-1).diag_embed()).any())):
            log.warning(
                "the rows of %s are the entries of one vector %r, which depend on each other, and predictions are of "
                "another such vector: what the fitted entries say of the new ones, beyond the latents, is not in "
                "them; compute the distribution of the new entries given the fitted ones at draws of the latents, as "
                "GaussianProcess.function and ARMA.forecast do", fitted.program.name, name,
            )  # fmt: skip


def _say_infinite(name: str, value: Tensor) -> None:
    """Of predictions (draws, rows, ...) those that are no numbers, as of log(x) where a new x is negative."""
    if value.is_floating_point() and value.dim() > 1 and len(value):
        rows = (~value.isfinite()).flatten(2).any(-1) if value.dim() > 2 else ~value.isfinite()
        bad = rows.any(0).nonzero()[:, 0]
        if len(bad):
            log.warning(
                "predictions of %s are no finite numbers in %d of %d rows, the first of which is %d (counting from 0): "
                "see whether its columns have values at which the model is defined",
                name, len(bad), rows.shape[1], int(bad[0]),
            )  # fmt: skip


def _extrapolated(fitted: Fitted, kept: Table) -> list[Beyond]:
    """The columns of numbers, not of groups, with rows far outside of what was fitted."""
    made, own = fitted.program, _row_names(fitted)
    codes = {*kept.words, *(made.codes or {}), *made.categories, *made.exposure}
    found = far_outside({n: v for n, v in kept.items() if n not in codes}, fitted.ranges)
    groups = {b.column for b in found if is_index(made, kept, b.column, own)}
    return sorted((b for b in found if b.column not in groups), key=lambda b: -b.widths)


def _thinned(fitted: Fitted, same: bool, draws: int) -> tuple[tuple[int, int], dict[str, Tensor]]:
    """Chains and draws, and of a tree the latents that hold for the new rows too, draws leading."""
    if fitted.draws is None:
        return (1, draws), {}
    assert fitted.structure is not None
    chains, length = next(iter(fitted.draws.values())).shape[:2] if fitted.draws else (1, draws)
    n = min(length, max(1, draws // chains))
    index = torch.linspace(0, length - 1, n).round().long()
    own = frozenset() if same else fitted.structure.of_rows
    held = {k: v for k, v in fitted.draws.items() if k not in own}
    each = {k: v[:, index].flatten(0, 1) for k, v in held.items()}
    return (chains, n), {k: v.to(fitted.dtype) if v.is_floating_point() else v for k, v in each.items()}


def _tree(fitted: Fitted, found: dict[str, np.ndarray], dims: Mapping[str, tuple[str, ...]], kept: Table) -> DataTree:
    program, structure = fitted.program, fitted.structure
    all_dims = {n: dims_of(program, n, list(dims[n]), v.ndim - 2) for n, v in found.items()}
    sizes = {d: size for n, v in found.items() for d, size in zip(all_dims[n], v.shape[2:], strict=True)}
    row_plate = structure.row_plate if structure is not None else "data"
    rows = structure.row_columns if structure is not None else row_columns(kept) if kept else ()
    over_rows = {n for n in rows if len(kept.get(n, ())) == sizes.get(row_plate, len(kept.get(n, ())))}
    constant_dims = {n: column_dims(program, n, v, over_rows, row_plate) for n, v in kept.items()}
    for n, v in kept.items():
        sizes |= dict(zip(constant_dims[n], v.shape, strict=True))
    constant = {n: _in_words(v.numpy(), kept.words[n]) if n in kept.words else v.numpy() for n, v in kept.items()}
    groups = {"predictions": found} | ({"predictions_constant_data": constant} if constant else {})
    words = {n: own for n in found if (own := _words_of_site(program, n))}
    coords = coords_of(program, sizes, kept, row_plate)
    said = {"words": json.dumps(words, ensure_ascii=False)} if words else {}
    return tree_from(groups, all_dims, coords, constant_dims, row_dim=row_plate, **said)


def _words_of_site(program: Program, name: str) -> list[str]:
    """The words behind the codes that a site of a column's name draws."""
    if isinstance(program.codes, Mapping) and name in program.codes:
        return list(program.codes[name].values)
    own = (program.types or {}).get(name)
    return [] if own is None else list(own.levels)


def _in_words(codes: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """The words of codes, "" of a missing cell; those beyond, of new groups that were given by number, as they are."""
    return np.array(["" if c != c else words[int(c)] if c < len(words) else str(c) for c in codes])


def _seen(rows: Mapping[str, Tensor], hidden: Collection[str]) -> dict[str, Tensor]:
    return {k: v for k, v in rows.items() if k not in hidden}


def _reads(fitted: Fitted, data: Mapping[str, Tensor]) -> tuple[bool, dict[str, set[str]]]:
    """Whether the guide draws latents of new rows, and by column those of them that it draws without regard to it.

    It does where the rows have all that it read at the fit, unless what it draws is the same at other values of all of
    them: then it knows the fitted rows alone, by parameters of their own. So does a guide that was written for the
    program where it runs without what is missing, if it reads a column that the model observes.
    """
    program, s = fitted.program, fitted.structure
    if program.fixed_rows:
        return False, {}
    taken = [n for n in fitted.example if argument_of(n, fitted.example) in program.guide_columns]
    complete = bool(taken) and all(n in data for n in taken)
    own = frozenset() if s is None else s.of_rows - {*s.summed}
    if not own or not complete and not program._draws_itself:
        return complete, {}
    told = _held_draw(program, fitted.example, {})

    def drawn(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.random.fork_rng(), holding({n: v for n, v in told.items() if n not in own}):  # the same noise
            q = guide_run(program, rows)
        found = {n: v for n, v in latents_of(q).items() if n not in told or n in own}
        return {n: v if v.is_floating_point() and q.nodes[n]["fn"].has_rsample else q.nodes[n]["fn"].log_prob(v)
                for n, v in found.items()}  # fmt: skip

    try:
        first = drawn(data)
        changed = {c: [drawn({**data, c: o}) for o in other_values(v)] for c, v in tensors(data).items()}
    except Exception:
        return complete, {}
    unread = {c: {n for n, v in first.items() if all(torch.equal(v, o[n]) for o in new)} for c, new in changed.items()}
    if complete:
        blind = all(own & first.keys() <= unread[c] for c in unread.keys() & {*taken})
        left_out = any(n not in data for n in fitted.example)
        return not blind, unread if left_out and not blind else {}
    sites = functools.partial(forward_sites, functools.partial(program.call, "model"), rows=1)
    observed = set().union(*columns_of(sites, fitted.example).values())
    return any(len(unread[c]) < len(first) for c in observed & unread.keys()), unread


def _held_draw(program: Program, data: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One draw of the guide's latents, those that are known held."""
    with holding(known):
        return latents_of(guide_run(program, data))


def _guide_draw(fitted: Fitted, data: Mapping[str, Tensor], same: bool, reads: bool) -> dict[str, Tensor]:
    """Values for the latents that the guide can tell at these rows; the model draws the others.

    Global latents are those of the fitted rows. An amortised guide reads the new ones; an autoguide knows the local
    latents of the fitted rows only, as does a guide whose column the new rows lack.
    """
    program, s = fitted.program, fitted.structure
    if s is None or reads and not s.globals and not s.summed:
        return _held_draw(program, data, {})
    told = _held_draw(program, fitted.example, {})
    summed = tuple(s.summed if same else (n for n in s.summed if n not in s.of_rows))
    if summed:
        told |= drawn_discrete(program, fitted.example, s.nesting, told, summed)
    if same:
        return told
    told = {n: v for n, v in told.items() if n not in s.of_rows}
    return _held_draw(program, data, told) | {n: told[n] for n in summed} if reads else told


def _roles(structure: Structure | None) -> dict[str, str]:
    """The role of each site at the fit, and of what may follow on it in a loop."""
    sites = structure.sites if structure is not None else ()
    return {stem(s.name): s.role for s in sites} | {s.name: s.role for s in sites}


def _free(site: dict, drawn: Mapping[str, Tensor], roles: Mapping[str, str]) -> bool:
    """An observed site whose column was left out, or that the fit did not have, as of later times: the model sampled
    it."""
    name = site["name"]
    if not roles or name in drawn or is_deterministic(site):
        return False
    if name in roles:
        return "observed" in (roles[name], roles.get(f"{name}_observed"))  # the latter of imputed cells
    return roles.get(stem(name), "observed") == "observed"


# -- groups that were not fitted -------------------------------------------------------------------


def _grown(model: _Model, held: Mapping[str, Tensor]) -> dict[str, int]:
    """The plates that have to be larger than at the fit, and their sizes: told by where the program fails.

    A column has new groups for a plate of G where the program runs with the column cut at G - 1, and not beyond.
    """
    strict = model._replace(grow=False)
    if not model.fitted.example or _fails(strict, held, model.rows) is None:
        return {}
    with torch.random.fork_rng():  # the number of groups of each plate of latents that is not the rows'
        groups = strict.trace(held, model.fitted.example)[1].groups
    which = _indices(model.rows)
    cut = _cut(strict, held, which, sorted(set(groups.values())))
    if cut is None:
        _no_plate(strict, held, which)
        return {}  # it is something else, which the run itself says
    sizes: dict[str, int] = {}
    for column in which:
        beyond = _plates_of(strict, held, {**model.rows, **cut}, column, groups)
        if beyond and not model.grow:
            raise PpgenError(
                f"{_beyond(model, column, groups[beyond[0]])}; leave these rows out, or draw new groups from their "
                "distribution with new_groups='draw' (--new-groups draw)"
            )
        size = int(model.rows[column].max()) + 1
        sizes |= {plate: max(size, sizes.get(plate, 0)) for plate in beyond}
    why = _fails(model._replace(sizes=sizes), held, model.rows)
    if why is not None:
        raise PpgenError(
            f"{model.fitted.program.name} cannot be run with more groups than it was fitted to (plates "
            f"{', '.join(map(repr, sizes)) or 'none'}; {type(why).__name__}: {first_line(why)}); write the "
            "priors inside of the plate as those of one group, so that they fix no size, or leave the new groups out"
        )
    return sizes


def _cut(
    model: _Model, held: Mapping[str, Tensor], which: Sequence[str], sizes: Sequence[int]
) -> dict[str, Tensor] | None:
    """The columns cut at the first of some numbers of groups at which the program runs; None where it runs at none."""
    for g in sizes:
        cut = {c: model.rows[c].clamp(max=g - 1) for c in which}
        if _fails(model, held, {**model.rows, **cut}) is None:
            return cut
    return None


def _no_plate(model: _Model, held: Mapping[str, Tensor], which: Sequence[str]) -> None:
    """Refuses a group beyond values that stand in no plate."""
    tensors = [*held.values(), *model.fitted.program.parameters()]
    for g in sorted({size for v in tensors for size in v.shape if size > 1}):
        if (cut := _cut(model, held, which, [g])) is None:
            continue
        for column in which:
            if _fails(model, held, {**model.rows, **cut, column: model.rows[column]}) is not None:
                raise PpgenError(
                    f"{_beyond(model, column, g)}, whose values stand in no plate or are parameters, so that a new one "
                    "has no distribution to be drawn from; leave these rows out, or write groups as a plate of latents"
                )


def _fails(model: _Model, held: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Exception | None:
    try:
        with torch.random.fork_rng():
            model.trace(held, rows)
    except (NewGroup, IndexError, RuntimeError, ValueError) as e:
        return e
    return None


def _indices(rows: Table) -> list[str]:
    """The columns that may tell a row's group: whole numbers from 0."""
    whole = {n: v for n, v in tensors(rows).items() if v.dtype == torch.int64 and v.dim() == 1 and len(v)}
    return [n for n, v in whole.items() if v.min() >= 0]


def _plates_of(
    model: _Model, held: Mapping[str, Tensor], cut: Mapping[str, Tensor], column: str, groups: Mapping[str, int]
) -> list[str]:
    """The plates whose latents a column picks beyond their number: those of the largest size that it may be cut at."""
    whole = model.rows[column]
    if _fails(model, held, {**cut, column: whole}) is None:
        return []
    sizes = sorted({g for g in groups.values() if whole.max() >= g}, reverse=True)
    for g in sizes:
        if _fails(model, held, {**cut, column: whole.clamp(max=g - 1)}) is None:
            return [plate for plate, size in groups.items() if size == g]
    return []


def _beyond(model: _Model, column: str, groups: int) -> str:
    row = int((model.rows[column] >= groups).nonzero()[0])
    words, code = model.rows.words.get(column, ()), int(model.rows[column][row])
    name = repr(words[code]) if code < len(words) else str(code)
    return (
        f"the column {column!r} has the group {name} in row {row} (counting from 0), and {model.fitted.program.name} "
        f"was fitted to {groups} groups (0 to {groups - 1})"
    )


# -- summaries -------------------------------------------------------------------------------------


def summaries(tree: DataTree, by: str | None = None) -> list[dict[str, Any]]:
    """Mean, sd and interval (5% to 95%) of every prediction, or of their mean over the rows of a group; of a prediction
    that is a word, the share of the draws with each word.

    Args:
        by: a column of predictions_constant_data; a mean over its rows is taken within each draw.
    """
    row_dim, found = str(tree.attrs["row_dim"]), []
    label = _labels(tree, by) if by is not None else None
    words, levels = _text(tree, row_dim), json.loads(tree.attrs.get("words", "{}"))
    for name, values in tree["predictions"].dataset.data_vars.items():
        if row_dim not in values.dims:
            rows = [("", values.values.reshape(np.prod(values.shape[:2]), 1, -1))]
        else:
            flat = values.transpose("chain", "draw", row_dim, ...).values
            flat = flat.reshape(flat.shape[0] * flat.shape[1], flat.shape[2], -1).astype(float)
            index = values[row_dim].values
            rows = [(index[i], flat[:, [i]]) for i in range(flat.shape[1])]
            if label is not None:
                rows = [(w, flat[:, label == w]) for w in np.unique(label)]
        for place, (key, part) in enumerate(rows):
            for entry in range(part.shape[-1]):
                at, own = entry if part.shape[-1] > 1 else None, levels.get(name, ())
                one = _summary(str(name), key, part[..., entry], at, by, own)
                found.append(one if by is not None or key == "" else {"row": one["row"], **words[place], **one})
    return found


def _text(tree: DataTree, row_dim: str) -> list[dict[str, str]]:
    """The words of each new row, by column."""
    group = tree.children.get("predictions_constant_data")
    columns = {} if group is None else {str(n): v for n, v in group.dataset.data_vars.items() if v.dims == (row_dim,)}
    text = {n: v.values for n, v in columns.items() if v.dtype.kind in "UOT"}
    rows = tree["predictions"].sizes.get(row_dim, 0)
    return [{n: str(v[i]) for n, v in text.items()} for i in range(rows)]


def _summary(
    name: str, key: Any, values: np.ndarray, entry: int | None, by: str | None, words: Sequence[str]
) -> dict[str, Any]:
    mean = values.astype(float).mean(1)
    low, high = np.quantile(mean, INTERVAL)
    site = name if entry is None else f"{name}[{entry}]"
    key = key.item() if isinstance(key, np.generic) else key
    about = {"row": key} if by is None else {by: key, "rows": values.shape[1]}
    if words:
        return {"site": site, **about, "shares": {w: float((values == code).mean()) for code, w in enumerate(words)}}
    figures = {"mean": float(mean.mean()), "sd": float(mean.std(ddof=1)) if len(mean) > 1 else float("nan")}
    return {"site": site, **about, **figures, "5%": float(low), "95%": float(high)}


def _labels(tree: DataTree, by: str) -> np.ndarray:
    group = tree.children.get("predictions_constant_data")
    found = group.dataset.data_vars if group is not None else {}
    by = name_in(tree, by)
    if by not in found:
        raise PpgenError(
            f"there is no column {by!r} of the new rows to group by; they have {', '.join(map(str, found)) or 'none'}"
        )
    return found[by].values
