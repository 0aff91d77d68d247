"""A fitted model at new rows: one run with its latents held, which of these a guide can tell there, and new groups.

Global latents are those of the fitted rows. A group that was not fitted is found by where the program fails, and its
latents are drawn from the model.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ppgen.check.given_columns import columns_of, other_values
from ppgen.data import Table, argument_of, tensors
from ppgen.enumerated import drawn_discrete
from ppgen.errors import PpgenError, first_line
from ppgen.handlers import HoldGroups, NewGroup, Unobserve
from ppgen.inference.evaluation.sample import forward_sites
from ppgen.program import Program
from ppgen.run.trees import Fitted
from ppgen.sites import sample_sites
from ppgen.terms import guide_run, holding, latents_of


class Model(NamedTuple):
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
        return _guide_draw(self.fitted, without(self.rows, self.hidden), self.same, self.reads)


def without(rows: Mapping[str, Tensor], hidden: Collection[str]) -> dict[str, Tensor]:
    return {k: v for k, v in rows.items() if k not in hidden}


def reads_of(fitted: Fitted, data: Mapping[str, Tensor]) -> tuple[bool, dict[str, set[str]]]:
    """Whether the guide draws latents of new rows, and by column those of them that it draws without regard to it.

    It does where the rows have all that it read at the fit, unless what it draws is the same at other values of all of
    them: then it knows the fitted rows alone, by parameters of their own. So does a guide that was written for the
    program where it runs without what is missing, if it reads a column that the model observes.
    """
    program, s = fitted.program, fitted.structure
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


def grown(model: Model, held: Mapping[str, Tensor]) -> dict[str, int]:
    """The plates that have to be larger than at the fit, and their sizes: told by where the program fails.

    A column has new groups for a plate of G where the program runs with the column cut at G - 1, and not beyond.

    Raises:
        PpgenError: a new group that is refused, or whose latents cannot be drawn.
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
    model: Model, held: Mapping[str, Tensor], which: Sequence[str], sizes: Sequence[int]
) -> dict[str, Tensor] | None:
    """The columns cut at the first of some numbers of groups at which the program runs; None where it runs at none."""
    for g in sizes:
        cut = {c: model.rows[c].clamp(max=g - 1) for c in which}
        if _fails(model, held, {**model.rows, **cut}) is None:
            return cut
    return None


def _no_plate(model: Model, held: Mapping[str, Tensor], which: Sequence[str]) -> None:
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


def _fails(model: Model, held: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Exception | None:
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
    model: Model, held: Mapping[str, Tensor], cut: Mapping[str, Tensor], column: str, groups: Mapping[str, int]
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


def _beyond(model: Model, column: str, groups: int) -> str:
    row = int((model.rows[column] >= groups).nonzero()[0])
    words, code = model.rows.words.get(column, ()), int(model.rows[column][row])
    name = repr(words[code]) if code < len(words) else str(code)
    return (
        f"the column {column!r} has the group {name} in row {row} (counting from 0), and {model.fitted.program.name} "
        f"was fitted to {groups} groups (0 to {groups - 1})"
    )
