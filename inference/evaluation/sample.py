"""Draws from p_θ*: the model run forward with x unobserved.

`sample` draws (x, z) from the joint; `reconstruct` draws z from the guide at x and gives E[x | z].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import BetaBinomial, Binomial
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.check import Checked, check, check_with_runs, running_of
from ppgen.check.agreement import observed_fit
from ppgen.check.given_columns import other_values
from ppgen.check.indices import warn_of_negative_indices
from ppgen.data import Nested, argument_of, n_rows, put_together, row_columns, take
from ppgen.distributions import Flat
from ppgen.draws import Many, settle
from ppgen.errors import PpgenError, nearest, whole_number
from ppgen.handlers import Holder, Unobserve, whole_plates, without_validation
from ppgen.nested import asked_rows
from ppgen.program import Program, arguments
from ppgen.run import Run, default_dtype, prepare_columns
from ppgen.sites import innermost, is_deterministic, observed_columns, plate_dim, sample_sites, seen_in, support_of
from ppgen.structure import Structure
from ppgen.terms import holding, whole_value
from ppgen.terms import run as run_once

log = logging.getLogger("ppgen")

CHUNK = 1000  # rows at once


def program_of(run: Run | Program) -> Program:
    """The program of a run, or itself; refused is anything else, as a bare function of Pyro."""
    if not isinstance(run, Run | Program):
        raise PpgenError(
            f"{getattr(run, '__name__', None) or type(run).__name__} is neither a run nor a program: fit it first, "
            "run = fit(model, data), or make a program of it, ppgen.Program.from_pair(model, guide)"
        )
    return run.program if isinstance(run, Run) else run


def as_program(run: Run | Program | Callable) -> Run | Program:
    """A run or a program as it is, and a Pyro model as the program that it makes."""
    return run if isinstance(run, Run | Program) or not callable(run) else Program.from_pair(run)


def require_run(run: Any, what: str) -> None:
    """Refuses what is no run, for a function that is called so."""
    if program_of(run) is run:
        raise PpgenError(f"{what} takes a run, and {run.name} is a program: fit it first, run = fit(program, data)")


def dtype_of_program(program: Program) -> torch.dtype:
    """The dtype that a program computes in: that of its parameters."""
    return next((p.dtype for p in program.parameters() if p.is_floating_point()), torch.get_default_dtype())


@torch.no_grad()
def sample(
    run: Run | Program | Callable, n: int = 1, *, given: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """n independent draws of every site from the model, the learned θ in place.

    Args:
        run: a run, a program, or a Pyro model as a function.
        n: number of draws.
        given: holds something fixed: columns that the model takes (a label, covariates, an observed column), or sites
            by name, with a value for all draws or one a draw (n leading). Anything else is an error. That is an
            intervention: what is drawn before is not conditioned on it, as in `posterior` and `predict`.
        seed: the seed of the draws; None goes on with torch's random state.

    Returns:
        For each site, values with n leading. The rows of a program whose latents are all local are its draws: shape
        (n, ...). A program with global latents, or given columns of another number of rows, draws n data sets: shape
        (n, rows, ...), of one row where no column tells their number.

    Raises:
        PpgenError: a given name that is no column and no site, or a value of another shape; a column that the model
            cannot do without.
    """
    run = as_program(run)
    program = program_of(run)
    n = whole_number("n", n, 1)
    if apart := program.draws_apart():
        log.warning("%s", apart)
    structure = run.structure if isinstance(run, Run) else None
    constant = () if structure is None else set(program.columns) - set(structure.row_columns)
    rows = [k for k in given or {} if k not in constant]  # a row's values, or those of a site
    given = prepare_columns(given, program, dtype_of_program(program), rows) if given else {}
    example = run.example if isinstance(run, Run) else {}
    columns = constants_of(example) | {k: v for k, v in given.items() if argument_of(k, given) in program.columns}
    of_rows = columns if structure is None else structure.row_columns
    constants = {k: v for k, v in columns.items() if not isinstance(v, Tensor) or k not in of_rows}
    columns = {k: v for k, v in columns.items() if k not in constants}
    plates = {"data"} if structure is None else {"data", *structure.row_plates}
    with ready(run, {**example, **given}, seed, guide=False):
        rest, unobserved, whole = stand_ins(program, example, given)
        warn_of_negative_indices(program, {**example, **columns, **constants}, tuple(columns))

        def model(rows: Mapping[str, Tensor]) -> Any:
            with running_of(program, rows), Unobserve(unobserved):
                return program.call("model", rows)

        if by_row := whole and all(v.dim() == 0 or len(v) in (1, n) for v in columns.values()):
            each = {k: v.expand(n, *v.shape[1:]) for k, v in columns.items()}
            each |= {k: v[torch.arange(n) % len(v)] for k, v in rest.items()}
            try:
                sites = forward_sites(model, {k: v[:2] for k, v in each.items()} | constants, min(n, 2))
                by_row = all(row_dim_of(s, plates) is not None for s in sites.values())
            except PpgenError:
                if not rest:
                    raise
                by_row, whole = False, False  # written for the fitted number of rows
        if not by_row:
            columns = {k: v if v.dim() else v[None] for k, v in columns.items()}
            columns |= constants | ({k: v[:1] for k, v in rest.items()} if whole else rest)
            sites = forward_sites(model, columns, 1)
        names = {k for k, s in sites.items() if not is_deterministic(s)}
        held = {k: v for k, v in given.items() if k not in {**columns, **constants}}
        _require_known(program, held.keys(), names)
        held = {k: _one_a_draw(k, v, sites[k], n, plates if by_row else set()) for k, v in held.items()}
        if by_row:
            drawn = _by_rows(model, n, held, each, constants, plates)
            few = {k: v[:2] for k, v in each.items()} | constants
            with asked_rows(min(n, 2)), _Hold({k: v[:2] for k, v in held.items()}, plates):
                _warn_of_causes(lambda: model(few), observed_columns(sites, {k: few[k] for k in columns}))
        else:
            drawn = _by_draws(program, model, n, held, columns)
            one = poutine.condition(lambda: model(columns), {k: v[0] for k, v in held.items()})
            _warn_of_causes(one, observed_columns(sites, columns))
        for name in names & set(drawn):
            counts_in_range(name, drawn[name], sites[name]["fn"])
        _say_flat({k: s for k, s in sites.items() if k in names and k not in held})
        return drawn


def _require_known(program: Program, held: Collection[str], sites: Collection[str]) -> None:
    for name in {*held} - {*sites}:
        raise PpgenError(
            f"{name!r} is neither a column nor a site of {program.name}"
            f"{nearest(name, {*sites, *program.columns})}; its sites are {', '.join(sorted(sites))}"
        )


def _warn_of_causes(run: Callable[[], Any], observed: Mapping[str, str]) -> None:
    """Names the given columns whose distributions depend on what is drawn, which is not conditioned on them, by two
    runs of the model. Of a site that is held by its name nothing is said: that is an intervention.

    Args:
        observed: the columns, by the sites that observe them.
    """
    if not observed:
        return
    with torch.random.fork_rng(devices=[]):
        one, other = (sample_sites(poutine.trace(run).get_trace(), deterministic=False) for _ in range(2))
    pairs = {
        k: [s[n]["fn"].log_prob(s[n]["value"]) for s in (one, other)]
        for n, k in observed.items()
        if n in one and n in other
    }
    if caused := [k for k, (a, b) in pairs.items() if not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)]:
        log.warning(
            "sample does not condition on the given column%s %s, whose distribution depends on what is drawn: that is "
            "of its prior; draws given an observation are those of `posterior` and `predict`", "s" * (len(caused) > 1),
            ", ".join(map(repr, caused)),
        )  # fmt: skip


def _say_flat(sites: Mapping[str, Any]) -> None:
    """That what has no prior distribution has no prior draws either."""
    flat = [name for name, s in sites.items() if isinstance(innermost(s["fn"]), Flat)]
    if flat:
        log.warning(
            "the prior of %s is flat and has no draws: the values given are starting points, and what follows from "
            "them is no sample; take `posterior` and `predict`, or give it a proper prior", ", ".join(map(repr, flat)),
        )  # fmt: skip


Model = Callable[[Mapping[str, Tensor]], Any]


def forward_sites(model: Model, columns: Mapping[str, Tensor], rows: int) -> dict[str, dict[str, Any]]:
    """The sites of one run, that leaves the random state as it was."""
    with torch.random.fork_rng(), asked_rows(rows):
        trace = poutine.trace(lambda: model(columns)).get_trace()
    observed_fit(trace, rows, rows)
    return sample_sites(trace)


def constants_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, words and objects that a run was fitted with: they hold until others are given."""
    return {k: v for k, v in example.items() if not isinstance(v, Tensor | Nested)}


class _StandIns(NamedTuple):
    """Columns that a model cannot do without, though it only observes them: rows that were fitted give the shape.

    Attributes:
        columns: those, by name.
        unobserved: the sites that observe them, which are to be drawn all the same.
        whole: whether each is observed by one site, or by none, as what a factor reads; else by several, row by row.
    """

    columns: dict[str, Any]
    unobserved: set[str]
    whole: bool = True


def stand_ins(
    program: Program, example: Mapping[str, Any], given: Mapping[str, Any], *, held: bool = False
) -> _StandIns:
    """What stands in for the columns that are missing.

    Args:
        held: whether the latents have values already, so that priors that are made of the data do not count.
    """
    takes = arguments(program.model)
    had = {**constants_of(example), **given}
    others = [argument_of(k, example) for k in example] if takes.any or takes.many else []
    missing = [name for name in dict.fromkeys([*takes.needed, *others]) if name not in had]
    if not missing:
        return _StandIns({}, set())
    if example:
        sites = forward_sites(lambda rows: program.call("model", rows), example, 1)
        observed = {column: site for site, column in observed_columns(sites, example).items()}
        if all(name in observed for name in missing):
            alike, seen = {k: example[k] for k in missing}, {observed[k] for k in missing}
            if not _reads_values(program, example, alike, sites, held=True):
                return _StandIns(alike, seen)
        parts = {k: v for k, v in example.items() if argument_of(k, example) in missing}
        by = {k: seen_in(sites, v) if isinstance(v, Tensor) else [] for k, v in parts.items()}
        if any(by.values()) and not _reads_values(program, example, parts, sites, held):
            whole = all(argument_of(k, example) in observed or not names for k, names in by.items())
            return _StandIns(parts, {n for names in by.values() for n in names}, whole)
        missing = [name for name in missing if name not in observed] or missing
    raise PpgenError(
        f"model() of {program.name} cannot be run without the column {missing[0]!r}; pass it: "
        f"given={{{missing[0]!r}: ...}} (--given file)"
    )


def _reads_values(
    program: Program, example: Mapping[str, Any], parts: Mapping[str, Any], sites: Mapping[str, Any], held: bool
) -> bool:
    """Whether distributions change with the values of columns that are no longer observed: then they are no mere shape.

    Args:
        sites: of the model at the example.
        held: whether only what is observed counts, given the latents, whose prior may be made of the data.
    """
    own = [k for k, s in sites.items() if not held or s["is_observed"] and not is_deterministic(s)]
    latents: dict[str, Tensor] = {}

    def drawn(columns: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        with Unobserve(undrawn=set(sites)), holding(latents):
            return forward_sites(lambda rows: program.call("model", rows), {**example, **columns}, 1)

    values = {k: other_values(v) if isinstance(v, Tensor) else [v] for k, v in parts.items()}
    with suppress(Exception):  # other values may be none that the model can index by
        first = drawn(parts)
        if held:
            latents |= {k: s["value"] for k, s in first.items() if not sites[k]["is_observed"]}
            first = drawn(parts)
        for i in range(max(map(len, values.values()))):
            other = drawn({k: v[min(i, len(v) - 1)] for k, v in values.items()})
            if first.keys() != other.keys() or any(_differ(first[k], other[k]) for k in own):
                return True
        return False
    return True


def _differ(site: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs from one random state draw otherwise at a site: by the draws, or by the distribution where draws
    of two may be the same, or there are none."""
    one, two = site["value"], other["value"]
    support = support_of(site["fn"])
    if not is_deterministic(site) and (site["is_observed"] or support is not None and support.is_discrete):
        one, two = site["fn"].log_prob(one), other["fn"].log_prob(one)
    return not torch.equal(one, two) and not bool(one.isnan().any())


def row_dim_of(site: Mapping[str, Any], plates: set[str]) -> int | None:
    """Which dimension of a site's value, from the left, runs over the rows; None where none does."""
    if (row := plate_dim(site, plates)) is None:
        return None
    # Pyro calls all dimensions of a deterministic site event ones: its plates are the leading dimensions
    plated = (-f.dim for f in site["cond_indep_stack"] if f.vectorized)
    return row + (max(plated) if is_deterministic(site) else len(site["fn"].batch_shape))


def _one_a_draw(name: str, value: Tensor, site: Mapping[str, Any], n: int, plates: set[str]) -> Tensor:
    """A value to hold, n leading."""
    shape = list(site["fn"].shape())
    row_dim = row_dim_of(site, plates)
    if row_dim is not None:
        del shape[row_dim]
    for one in (value, value[None]):  # one a draw, or one for all
        if one.dim() == len(shape) + 1 and len(one) in (1, n) and list(one.shape[1:]) == shape:
            return one.expand(n, *shape)
    raise PpgenError(
        f"the value given for {name!r} has the shape {tuple(value.shape)}; expected {tuple(shape)} for all draws, or "
        f"{(n, *shape)}, one a draw"
    )


def _by_rows(
    model: Model,
    n: int,
    held: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    plates: set[str],
) -> dict[str, Tensor]:
    """Every draw is a row of one run; runs are cut into blocks of rows."""
    parts = []
    for start in range(0, n, CHUNK):
        block = slice(start, start + CHUNK)
        rows = {k: v[block] for k, v in columns.items()} | dict(constants)
        with asked_rows(min(CHUNK, n - start)), _Hold({k: v[block] for k, v in held.items()}, plates):
            sites = sample_sites(poutine.trace(lambda rows=rows: model(rows)).get_trace())
        parts.append({k: whole_value(s).movedim(row_dim_of(s, plates) or 0, 0) for k, s in sites.items()})
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


class _Hold(Holder):
    """Sites are held at values whose rows lead."""

    def __init__(self, values: Mapping[str, Tensor], plates: set[str]):
        super().__init__()
        self.values, self.plates = values, plates

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]].movedim(0, row_dim_of(msg, self.plates) or 0)
            msg["is_observed"] = True


def _by_draws(
    program: Program, model: Model, n: int, held: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every draw is a run of its own."""
    names: list[str] = []

    def one(*values: Tensor) -> list[Tensor]:
        run = poutine.condition(lambda: model(columns), dict(zip(held, values, strict=True)))
        sites = sample_sites(poutine.trace(run).get_trace())
        settle(names, list(sites))
        return [s["value"] for s in sites.values()]

    values = Many(one, each=[v[0] for v in held.values()], name=program.name)(n, each=list(held.values()))
    return dict(zip(names, values, strict=True))


@torch.no_grad()
def reconstruct(run: Run | Program, data: Any, *, seed: int | None = None, mean: bool = True) -> dict[str, Tensor]:
    """Each observed site given a draw of the guide at the data: E[x | z] (or a draw of x), z ~ q(z | x).

    Returns:
        By observed site, the shape of its data. A draw where there is no mean, as for categories.
    """
    program = program_of(run)
    data = prepare_columns(data, program, dtype_of_program(program))
    with ready(run, data, seed):
        structure_of(run, data)
        t = run_once(program, data)
        found = {}
        for name, site in sample_sites(t.p, deterministic=False).items():
            if site["is_observed"]:
                centre = _mean(site["fn"]) if mean else None
                found[name] = site["fn"].sample() if centre is None else centre.expand(site["fn"].shape())
    return found


def _mean(fn: Any) -> Tensor | None:
    try:
        value = fn.mean
    except NotImplementedError:
        return None
    return None if torch.isnan(value).any() else value


@contextmanager
def ready(run: Run | Program, data: Mapping[str, Tensor], seed: int | None, *, guide: bool = True) -> Iterator[None]:
    """Seeded, in the program's dtype and in eval mode; what it changes it puts back.

    Where the guide is to be run, a Laplace approximation is made from its mode for the while: at the rows that were
    fitted, where they are known.
    """
    program = program_of(run)
    mode, training = program._autoguide, program.training
    program.eval()
    with seeded(seed), default_dtype(dtype_of_program(program)), without_validation():
        if guide and isinstance(mode, AutoLaplaceApproximation):
            fitted = run.example if isinstance(run, Run) else data
            try:
                with program.running(), torch.enable_grad(), torch.random.fork_rng():
                    program.add_module("autoguide", mode.laplace_approximation(**put_together(fitted)))
            except LinAlgError as e:
                raise PpgenError(
                    f"AutoLaplaceApproximation has no Gaussian where the fit of {program.name} ended: the log joint is "
                    "not concave there, so that it is no mode; fit for more steps, or with guide='AutoNormal'"
                ) from e
        try:
            with _all_rows(program, data, guide, maybe=isinstance(run, Program) or run.structure.subsampled):
                yield
        finally:
            if mode is not None:
                program.add_module("autoguide", mode)
            program.train(training)


@contextmanager
def _all_rows(program: Program, data: Mapping[str, Any], guide: bool, *, maybe: bool = True) -> Iterator[None]:
    """Within it, plates that subsample hold all rows, so that figures are of the data, not of a part drawn at random.

    A program that is passed a part of the rows, whose plate tells their number, stays as it is.

    Args:
        guide: whether the guide is to be run as well.
        maybe: whether it is worth looking.
    """
    maybe = maybe and not program.repeats
    if not maybe or not _subsamples(program, data, guide):
        yield
        return
    with whole_plates():
        whole = _subsamples(program, data, guide) is False
    if not whole:
        log.info("%s knows a part of the rows only: what follows is an estimate from that part", program.name)
    with whole_plates() if whole else nullcontext():
        yield


def _subsamples(program: Program, data: Mapping[str, Any], guide: bool) -> bool | None:
    """Whether a plate subsamples; None where the program does not run on these data by themselves."""
    try:
        with program.collecting():
            t = run_once(program, data, guide=guide and program.has_guide)
            t.p.compute_log_prob()
    except Exception:
        return None
    frames = [f for s in sample_sites(t.p, factors=True).values() for f in s["cond_indep_stack"]]
    return any(f.full_size not in (None, f.size) for f in frames)


def same_rows(rows: Mapping[str, Any], fitted: Mapping[str, Any]) -> bool:
    """Whether these are the rows that were fitted."""
    return all(n in fitted and same_column(v, fitted[n]) for n, v in rows.items())


def same_column(a: Any, b: Any) -> bool:
    """Whether two columns are the same, in the precision of the one that has less."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b or bool(a == b)
    both = ((a.to(t.dtype), b.to(t.dtype)) for t in (a, b))
    return a.shape == b.shape and any(bool(((x == y) | (x != x) & (y != y)).all()) for x, y in both)  # a gap is nan


def structure_of(run: Run | Program, data: Mapping[str, Tensor]) -> Structure:
    """The structure of a fitted program on data, which are checked: told by two rows where the guide runs on two."""
    program = program_of(run)
    rows = tuple(c for c in run.structure.row_columns if c in data) if isinstance(run, Run) else row_columns(data)
    enumerated = tuple(s.name for s in run.structure.sites if s.enumerated) if isinstance(run, Run) else ()
    n = n_rows(data, rows)
    if isinstance(run, Run) and program.fixed_rows and run.structure.locals:
        fitted = n_rows(run.example, run.structure.row_columns)
        if n != fitted:
            raise PpgenError(
                f"the guide {type(program._autoguide).__name__} has one posterior for each of the {fitted} rows that "
                f"it was fitted to, and these data have {n}; pass the fitted rows, or fit with a guide(x) that reads "
                "them"
            )
        if not same_rows({c: data[c] for c in rows}, run.example):
            log.warning(
                "the guide %s has one posterior for each of the rows that it was fitted to, and these data have other "
                "values, or the rows in another order: latents are those of the fitted rows, and bounds as loose as "
                "that; fit these rows, or with a guide(x) that reads them", type(program._autoguide).__name__,
            )  # fmt: skip
    few = take(data, slice(0, 2), rows)
    try:
        found = check_with_runs(program, few, rows=rows, enumerated=enumerated, learn=False)
        if n <= 2 or found.structure.row_plates and not _longer_has_more(found):
            return found.structure
    except PpgenError:  # a guide of one number of rows
        if n <= 2:
            raise
    # without a plate over the rows, two of them may show fewer sites than all do: steps of a chain
    return check(program, data, rows=rows, enumerated=enumerated, learn=False)


def _longer_has_more(found: Checked) -> bool:
    """Whether the model has other sites on a row more: a loop over the rows, in a sequential plate or beside one."""
    if found.longer is None:
        return False
    here, longer = (sample_sites(t.p, factors=True).keys() for t in (found.run, found.longer))
    return here != longer


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from this seed, and gives the random state back; None leaves the state as it is."""
    state = torch.get_rng_state()
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        if seed is not None:
            torch.set_rng_state(state)


def whole_trials(name: str, fn: Any) -> None:
    """Refuses a number of trials that is not whole, of which torch draws successes that are not whole either."""
    base = innermost(fn)
    if not isinstance(base, Binomial | BetaBinomial):
        return
    parts = torch.as_tensor(base.total_count) % 1 > 0
    if parts.any():
        where = f" in row {int(parts.nonzero()[0, 0])} (counting from 0)" if parts.dim() == 1 and len(parts) > 1 else ""
        raise PpgenError(
            f"a number of trials of {name!r} is no whole number{where}, so that no successes can be drawn; mend the "
            "column, or leave such rows out"
        )


def counts_in_range(name: str, value: Tensor, fn: Any) -> None:
    """Refuses draws of counts that are negative, or NaN: their rate is beyond what can be drawn."""
    support = support_of(fn)
    if support is None or not support.is_discrete or not value.is_floating_point():
        return
    wrong = (value < getattr(support, "lower_bound", -torch.inf)) | torch.isnan(value)
    if wrong.any():
        raise PpgenError(
            f"{int(wrong.sum())} of {value.numel()} draws of {name!r} ({type(innermost(fn)).__name__}) are counts "
            "beyond what a 64-bit number holds, about 9e18; the prior or posterior reaches such rates: narrow it"
        )
    if infinite := int(torch.isinf(value).sum()):
        log.warning("%d of %d draws of %r are infinite: the prior or posterior reaches infinite rates; narrow it",
                    infinite, value.numel(), name)  # fmt: skip
