r"""A program within a program: `z = ppgen.sample("z", program)` in a model, and `ppgen.rows`.

    p(x, z, u) = p(x | z) p_inner(z, u)          q(z, u | x) = q(z | x) q_inner(u | z)

`program` is any `ppgen.Program`: a flow, a mixture, a VAE, a chain, a hierarchical model. Its observed site becomes the
site "z" of the outer model, its others join as "z/u". Where z has a value, observed or drawn by the outer guide, the
inner model is conditioned on it, and the inner guide q_inner(u | z) is run on it as a part of the outer guide. What
follows is one pair of programs, with one joint density, for every algorithm. Where z has no value, the inner model
generates.

A chain of more than a few latents (a diffusion model of a thousand steps) is not written out: it contributes terms of
its ELBO at times that are drawn (`ppgen.chains.chain_terms`), so that there is an ELBO of the whole, and no
importance-weighted bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from torch import Tensor
from torch.distributions import constraints

from ppgen.errors import PpgenError, nearest
from ppgen.gaps import without_gaps
from ppgen.handlers import Holder, free_name, open_handlers
from ppgen.sites import is_deterministic, is_same, sample_sites

log = logging.getLogger("ppgen")

_ROWS: ContextVar[int] = ContextVar("rows", default=1)


class _Running(NamedTuple):
    """A program that runs, which part of it ("model", "guide", or its model for the sake of the inner guides), and on
    which columns."""

    program: Any
    part: str
    data: Mapping[str, Any]


_RUNNING: ContextVar[_Running | None] = ContextVar("running", default=None)
_INNER: ContextVar[str | None] = ContextVar("inner", default=None)  # the plate of an inner program's rows; "": none
_IN_ROWS: ContextVar[bool] = ContextVar("in rows", default=False)  # whether the plates around stand for its rows
_BY_TIMES: ContextVar[bool] = ContextVar("by times", default=False)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


# -- rows --------------------------------------------------------------------------------------------


class _EnclosingPlate:
    """In place of the plate over rows: the plates around the program are its rows."""

    def __init__(self, plates: list[Any]):
        self.size = int(plates[-1].size) if plates else 1

    def __enter__(self) -> Tensor:
        self._entered = _IN_ROWS.set(True)
        return torch.arange(self.size)

    def __exit__(self, *_: object) -> None:
        _IN_ROWS.reset(self._entered)


def rows(*columns: Tensor | None) -> Any:
    """The plate "data" over the rows of the data.

    Its size is the length of the first column that is there; where all are None (the program is
    run forward, to generate) it is the number of rows that was asked for, see `asked_rows`.

    >>> import torch
    >>> rows(torch.zeros(7, 2)).size
    7
    >>> with asked_rows(3):
    ...     rows(None).size
    3
    """
    inner = _INNER.get()
    if inner == "":
        return _EnclosingPlate(_open_plates())
    return pyro.plate(inner or "data", next((len(column) for column in columns if column is not None), _ROWS.get()))


def asked_rows(n: int) -> AbstractContextManager[None]:
    """Within it, `rows(None)` is a plate of n rows."""
    return _set(_ROWS, n)


# -- the statement -----------------------------------------------------------------------------------


def sample(
    name: str,
    program: Any,
    *,
    obs: Tensor | None = None,
    column: str | None = None,
    rows: int | None = None,
    freeze: bool = False,
    **columns: Any,
) -> Tensor:
    """A site whose distribution is a program.

    Args:
        name: of the site. The program's other sites are called name/site, its plates name/plate.
        program: a `ppgen.Program`, or a Pyro model. One that the outer program does not hold as a module is registered
            with it.
        obs: the value that is observed; None: a latent, which the outer guide draws under `name`.
        column: the column of the program that is the value, and the name of the site that observes it; None: the
            first argument of its model that is not among `columns`.
        rows: None: within plates the program is run for one row in each of their elements, its `ppgen.rows` being
            these plates; outside of plates for one. A number: for a table of so many rows, with a plate of its own.
        freeze: whether the program is held as it is, a model that was fitted elsewhere: its parameters are not
            trained, and it runs in eval mode (batch norm, dropout). One program is held wherever it is used.
        **columns: the program's other columns, with the dimensions of the plates around the statement.

    Returns:
        The value, (plates, a row of the column); with `rows` (rows, plates, a row of the column).

    The program's own guide runs on the value where it reads one. A program without a guide, or whose guide has learnt
    its rows by heart, leaves its latents to the outer guide.

    Raises:
        PpgenError: what is no program; columns that the program does not have; a value that no site of its own
            observes as it is; rows that the plates do not account for; a program with latents within a guide.

    Example: a linear decoder whose prior is a flow.

    >>> import pyro, torch, ppgen
    >>> from pyro.distributions import Normal
    >>> class Decoder(ppgen.Program):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.prior = ppgen.models.Flow(2, transforms=1, hidden=(4,))
    ...         self.weights = torch.nn.Parameter(torch.ones(2, 3))
    ...     def model(self, x=None):
    ...         with ppgen.rows(x):
    ...             z = ppgen.sample("z", self.prior)
    ...             return pyro.sample("x", Normal(z @ self.weights, 1.0).to_event(1), obs=x)
    >>> ppgen.inference.sample(Decoder(), 5)["z"].shape
    torch.Size([5, 2])
    """
    running = _RUNNING.get()
    program = _as_program(name, program, running)
    column = _column_of(name, program, column, columns)
    value = obs if obs is not None else _held(name)
    scope = _Scope(name, program, column, obs, rows)
    if running is not None:
        _require_same_words(name, running, program, {**columns, column: obs}, freeze=freeze)
    first = running is not None and _adopt(running.program, program, name, freeze)
    if running is not None and running.part == "inner guides" and value is not None:
        _run_inner_guide(scope, columns | {column: value})
        return value
    by_times = _by_times(program)
    if value is None or not by_times:
        with _PlatesOnly(scope.plates) if by_times else nullcontext(), scope, scope.as_part(), _registering(program):
            program.call("model", columns if value is None else columns | {column: value})
        value = _generated(scope, running)
        if first:
            _warn_of_priors(scope)
            _require_rows(scope)
            _require_observed_as_it_is(scope, columns)
    assert value is not None
    if by_times:
        _sample_times(scope, columns | {column: value})
    return value


def run_inner_guides(program: Any, data: Mapping[str, Any], own: poutine.Trace) -> None:
    """Runs the guides of the programs within a model at what the outer guide drew, as a part of the outer guide.

    Args:
        program: the outer one, whose model is run for the plates and columns of its `sample` statements.
        data: the columns.
        own: the trace of its own guide.
    """
    with _InnerGuidesOnly(own), poutine.replay(trace=own):
        program.call("inner guides", data)


def running_part(program: Any, part: str, data: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Marks which part of which program runs, and on which columns."""
    return _set(_RUNNING, _Running(program, part, data))


def drawn_times() -> AbstractContextManager[None]:
    """Within it, short chains that are part of a program give drawn terms of their ELBO as well, as long ones do."""
    return _set(_BY_TIMES, True)


def _by_times(program: Any) -> bool:
    """Whether a program within another gives drawn terms: a long chain, and any chain within `drawn_times`."""
    return bool(program.repeats or _BY_TIMES.get() and program.is_chain)


def _generated(scope: _Scope, running: _Running | None) -> Tensor:
    """The value of the run within a scope."""
    name, program = scope.name, scope.program.name
    if scope.value is None:
        raise PpgenError(
            f"ppgen.sample({name!r}): {program} has no site named {scope.column!r}, as its column is; name the site "
            "that observes a column as the column"
        )
    if running is not None and running.part == "guide" and scope.others:
        raise PpgenError(
            f"ppgen.sample({name!r}) in a guide: {program} has the latent {scope.others[0]!r}, so that the density of "
            "its draws is not known; take a program without latents there, such as a flow"
        )
    return scope.value


def _as_program(name: str, program: Any, running: _Running | None) -> Any:
    """A program as it is, and a Pyro model as the program that it makes, one for each outer program."""
    if hasattr(program, "inner_programs"):
        return program
    if not callable(program):
        instead = "its .program" if hasattr(program, "program") else "a ppgen.Program or a Pyro model"
        raise PpgenError(f"ppgen.sample({name!r}) got {type(program).__name__}, which is no program; pass {instead}")
    if running is None:
        raise PpgenError(
            f"ppgen.sample({name!r}) got a function where no program runs; pass ppgen.Program.from_pair(function), "
            "made once"
        )
    made: dict[Any, Any] = running.program.__dict__.setdefault("_of_functions", {})
    if program not in made:
        made[program] = running.program.from_pair(program)
    return made[program]


def _column_of(name: str, program: Any, column: str | None, columns: Mapping[str, Any]) -> str:
    names = program.columns
    for c in (*columns, *(() if column is None else (column,))):
        if c not in names:
            raise PpgenError(
                f"ppgen.sample({name!r}): {program.name} has no column {c!r}{nearest(c, names)}; its columns are "
                f"{', '.join(names) or 'none'}"
            )
    free = [c for c in names if c not in columns]
    if column is None and not free:
        raise PpgenError(
            f"ppgen.sample({name!r}): all columns of {program.name} are given ({', '.join(names) or 'it has none'}), "
            "and none is left for the value; leave the one out that is to be drawn or observed (obs=)"
        )
    return column or free[0]


def _require_same_words(
    name: str, running: _Running, program: Any, columns: Mapping[str, Any], *, freeze: bool
) -> None:
    """Refuses a column of the outer program, passed on as it is, whose codes are of other words than those that the
    inner one, which is held, was fitted to. One that is trained may learn them anew: a warning."""
    types, known_types = running.program.types or {}, program.types or {}
    if not types or not known_types or not getattr(running.program, "_collecting", False):
        return
    given = {k: v for k, v in columns.items() if isinstance(v, Tensor) and k in known_types}
    for own, c in running.data.items():
        for k in (k for k, v in given.items() if own in types and isinstance(c, Tensor) and is_same(v, c)):
            words, known = types[own].levels, known_types[k].levels
            if not words or not known or words == known[: len(words)]:
                continue
            strange = [w for w in words if w not in known]
            remedy = (
                f"which has no {strange[0]!r}; leave its rows out, or fit {program.name} with it" if strange else
                f"where they are torch.tensor({[known.index(w) for w in words]})[{own}]; pass these"
            )  # fmt: skip
            said = (
                f"ppgen.sample({name!r}): the column {own!r} has the codes of {', '.join(map(str, words))}, and {k!r} "
                f"of {program.name} was fitted to those of {', '.join(map(str, known))}, {remedy}"
            )
            if freeze:
                raise PpgenError(said)
            log.warning(said)


def _adopt(outer: Any, program: Any, name: str, freeze: bool) -> bool:
    """Whether this is an outer program's first run: then the inner one's parameters become its own, trained or held."""
    outer.__dict__["_composed"] = True
    if not getattr(outer, "_collecting", False):
        return False
    if all(m is not program for m in outer.modules()):
        outer.add_module(free_name(outer, name.replace("/", "_").replace(".", "_")), program)
        let_go(program)
    uses = outer.__dict__.setdefault("_uses", {})
    others = [n for n, (p, held) in uses.items() if p is program and held != freeze and n != name]
    if others and name not in uses:
        log.warning(
            "ppgen.sample(%r) and ppgen.sample(%r) have the same %s, and only one of them says freeze=True: its "
            "parameters are held in both; give one of them a copy (copy.deepcopy)", others[0], name, program.name,
        )  # fmt: skip
    uses[name] = program, freeze
    if freeze:
        trained = [p for p in program.parameters() if p.requires_grad]
        program.__dict__["held"] = [*program.__dict__.get("held", ()), *trained]
        program.requires_grad_(False).eval()
    return True


def let_go(program: Any) -> None:
    """Undoes what `freeze=True` has held for another outer program."""
    for part in (program, *program.inner_programs):
        for p in part.__dict__.pop("held", ()):
            p.requires_grad_(True)


@contextmanager
def _registering(program: Any) -> Iterator[None]:
    """Within it, the inner program registers the parameters of its `pyro.param` statements where the outer one does."""
    outer, flags = _RUNNING.get(), ("_collecting", "_growing")
    before = {k: program.__dict__.get(k, False) for k in flags}
    if outer is not None:
        program.__dict__.update({k: outer.program.__dict__.get(k, False) for k in flags})
    try:
        yield
    finally:
        program.__dict__.update(before)


def _warn_of_priors(scope: _Scope) -> None:
    """Says that latents which the rows of a fitted program share have their prior, not what its fit learned."""
    told = scope.program.__dict__.setdefault("told_of_priors", set())
    if scope.program.fixed_rows and scope.shared and scope.name not in told:
        told.add(scope.name)
        log.warning(
            "ppgen.sample(%r) takes the model of %s, in which %r has its prior; what the fit of that learned of it is "
            "a guide given its own rows, and is not used here: make it a parameter (torch.nn.Parameter, pyro.param) to "
            "keep it", scope.name, scope.program.name, scope.shared[0].removeprefix(f"{scope.name}/"),
        )  # fmt: skip


def _require_rows(scope: _Scope) -> None:
    """Refuses rows without a plate."""
    assert scope.output is not None
    name, inner = scope.program.name, scope.output["cond_indep_stack"]
    if inner and scope.n is None and scope.plates:
        raise PpgenError(
            f"ppgen.sample({scope.name!r}) stands in a plate, and {name} opens one of its own; write `with "
            "ppgen.rows(x)` in it, which gives way to the plates around, or pass rows= for a table of rows"
        )
    dims = {p.dim for p in scope.plates} | {f.dim for f in inner}
    fn, value = scope.output["fn"], scope.value
    assert value is not None
    shape = np.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
    if any(n > 1 and i - len(shape) not in dims for i, n in enumerate(shape)):
        raise PpgenError(
            f"ppgen.sample({scope.name!r}): {name} has values for a batch of shape {shape}, and the plates around the "
            f"statement have {len(scope.plates)} dimensions; pass rows= for a table of so many rows, or open a plate"
        )


def _require_observed_as_it_is(scope: _Scope, columns: Mapping[str, Any]) -> None:
    """Refuses a program that observes another thing than its column, whose density is not that of the value."""

    def site(given: Mapping[str, Any]) -> dict[str, Any]:
        with _PlatesOnly(scope.plates), poutine.trace() as seen, scope.as_part():
            scope.program.call("model", given)
        return dict(seen.trace.nodes[scope.column])

    drawn = site(columns)["value"]
    own = site({**columns, scope.column: drawn})
    if own["is_observed"] and own["value"].shape == drawn.shape and torch.equal(own["value"].to(drawn.dtype), drawn):
        return
    raise PpgenError(
        f"ppgen.sample({scope.name!r}): {scope.program.name} observes another thing than its column {scope.column!r} "
        f"(a scaled or reshaped one), whose density is not that of {scope.name!r}; let it observe the column as it is"
    )


def _run_inner_guide(scope: _Scope, columns: Mapping[str, Any]) -> None:
    """Refuses a column that may depend on a latent which is summed out, of which the guide would have one value."""
    program = scope.program
    around = next(m for m in reversed(open_handlers()) if isinstance(m, _InnerGuidesOnly))
    by_outer = any(n.startswith(f"{scope.name}/") for n in sample_sites(around.own))
    if not scope.own_guide or _by_times(program) or by_outer:
        return
    read = [k for k, v in columns.items() if k != scope.column and isinstance(v, Tensor)]
    if read and around.summed:
        raise PpgenError(
            f"ppgen.sample({scope.name!r}): the guide of {program.name} may read the column {read[0]!r}, which may "
            f"depend on the latent {around.summed[0]!r} that no guide draws; draw that in the outer program's guide "
            "in place of summing it out"
        )
    scope.guide = True
    with scope, scope.as_part(), _registering(program):
        program.call("guide", columns)


def _sample_times(scope: _Scope, columns: Mapping[str, Any]) -> None:
    """The terms of a chain's ELBO at a value, one step of each row drawn, as sites of the outer model.

    Args:
        columns: with the value.
    """
    name, column, obs, value = scope.name, scope.column, scope.obs, columns[scope.column]
    nesting = max((-p.dim for p in scope.plates), default=0)
    batch = value.shape[:nesting]

    def as_rows(v: Any) -> Any:
        if not isinstance(v, Tensor):
            return v
        own = v.expand(batch) if v.dim() < nesting else v.expand(batch + v.shape[nesting:])
        return own.reshape(-1, *own.shape[nesting:])

    rows = {k: as_rows(v) for k, v in columns.items()}
    for t in scope.program.subsampled_terms(rows, 1):
        role = "prior" if obs is None and t.role == "likelihood" else t.role
        log_prob, target = (None if v is None else v[0].reshape(batch) for v in (t.log_prob, t.target))
        infer = {"role": role, "target": target, "drawn": True}
        if t.site == column:
            at = _Valued(value, log_prob, event_dim=value.dim() - nesting)
            at.support_of = scope.program.support
            pyro.sample(name, at, obs=obs, infer=infer)
        else:
            unit = Unit(log_prob)
            infer["chain"] = t.site, scope.program, rows
            pyro.sample(f"{name}/{t.site}", unit, obs=unit.sample(), infer=infer)


class _Valued(Delta):
    """The value of a chain with its log-density, and the support that the chain says.

    Attributes:
        support_of: a constraint; None: real.
    """

    support_of: Any = None

    @constraints.dependent_property
    def support(self) -> Any:
        return super().support if self.support_of is None else self.support_of

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Valued:
        new: _Valued = super().expand(batch_shape, _instance)
        new.support_of = self.support_of
        return new


# -- handlers ----------------------------------------------------------------------------------------


class _Scope(Holder):
    """Around an inner program: its sites and plates have the statement's name before their own."""

    def __init__(self, name: str, program: Any, column: str, obs: Tensor | None, n: int | None):
        super().__init__()
        self.name, self.program, self.column, self.obs, self.n = name, program, column, obs, n
        self.own_guide = program.has_guide and not program.fixed_rows
        self.plates = _open_plates()
        self.table = f"rows {id(self)}"  # the plate of a table's rows, until it has its name: "data" may be open around
        self.guide = False  # whether it is the inner guide that runs
        self.value: Tensor | None = None
        self.output: dict[str, Any] | None = None  # the site whose value it is
        self.others: list[str] = []  # its latents beside the value
        self.shared: list[str] = []  # those of them that stand outside of its rows

    @contextmanager
    def as_part(self) -> Iterator[None]:
        """Within it, the program runs as a part of another: `rows` is a plate of n rows, or the plates around; missing
        cells are the outer program's to fill, and those of a fit of its own are no matter."""
        with (
            without_gaps(self.program),
            _set(_IN_ROWS, False),
            _set(_INNER, "" if self.n is None else self.table),
            nullcontext() if self.n is None else asked_rows(self.n),
        ):
            yield

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        prefix = f"{self.name}/"
        msg["cond_indep_stack"] = tuple(
            f._replace(name=prefix + ("data" if f.name == self.table else f.name)) for f in msg["cond_indep_stack"]
        )
        msg.setdefault("inner_names", []).append(msg["name"])
        sized = type(msg["fn"]).__name__ == "_Subsample"
        if not self.guide and msg["name"] == self.column and not sized and not is_deterministic(msg):
            self.output = {**msg}
            msg["name"], msg["output_of"] = self.name, self
            if self.obs is None and msg["is_observed"]:  # the outer handlers have the value, and it is theirs
                msg["is_observed"], msg["value"], msg["done"] = False, None, False
                msg.pop("given", None)
            return
        msg["name"] = prefix + ("data" if msg["name"] == self.table else msg["name"])
        msg["inner"], msg["inner_guide"] = msg.get("inner") or self.own_guide, msg.get("inner_guide") or self.guide
        if not msg["is_observed"] and not sized and "asked" not in msg:
            self.others.append(msg["name"])
            if not (_IN_ROWS.get() or any(f.name == f"{prefix}data" for f in msg["cond_indep_stack"])):
                self.shared.append(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        msg["name"] = msg["inner_names"].pop()  # the handlers within know it by the name that it has there
        if msg.get("output_of") is self:
            self.value = msg["value"]

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["name"] = f"{self.name}/{msg['name']}"  # its value is the inner program's


class _InnerGuidesOnly(Messenger):
    """Lets only the sites of inner guides through, and plates' subsamples that the outer guide did not draw.

    Attributes:
        summed: the latents that the outer guide does not draw.
    """

    def __init__(self, own: poutine.Trace):
        super().__init__()
        self.own = own
        self.summed: list[str] = []

    def _process_message(self, msg: dict[str, Any]) -> None:
        sample = msg["type"] == "sample" and msg["name"] not in self.own
        subsample = sample and type(msg["fn"]).__name__ == "_Subsample"
        if not (sample and (msg.get("inner_guide") or subsample)):
            msg["stop"] = True
            if sample and not msg["is_observed"]:
                self.summed.append(msg["name"])


class _PlatesOnly(Messenger):
    """Hides a run from all handlers but the plates around it."""

    def __init__(self, plates: list[Any]):
        super().__init__()
        self.plates = plates

    def _process_message(self, msg: dict[str, Any]) -> None:
        for plate in reversed(self.plates) if msg["type"] == "sample" else ():
            plate._process_message(msg)
        msg["stop"] = True


_HOLDERS = (ReplayMessenger, ConditionMessenger, BlockMessenger, Holder)


def _held(name: str) -> Any:
    """The value that the handlers around hold for a site of this name, as if it had been reached; None: none does."""
    msg: dict[str, Any] = {
        "type": "sample", "name": name, "fn": Delta(torch.zeros(())), "is_observed": False, "value": None,
        "done": False, "stop": False, "infer": {}, "cond_indep_stack": (), "mask": None, "scale": 1.0, "args": (),
        "kwargs": {}, "continuation": None, "asked": True,
    }  # fmt: skip
    for frame in reversed(open_handlers()):
        if isinstance(frame, _HOLDERS):
            frame._process_message(msg)
            if msg["stop"]:
                break
    return msg["value"]


def _open_plates() -> list[Any]:
    """The plates that are open."""
    return [m for m in open_handlers() if isinstance(m, IndepMessenger) and m._vectorized and m.dim is not None]
