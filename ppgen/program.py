"""The one abstraction: a generative model is a pair of Pyro programs, `model` and `guide`.

    model   p_θ(x, z): latent z and observed x are named `pyro.sample` sites
    guide   q_φ(z | x): the same latent sites; empty where nothing is latent (a flow)

Everything else in ppgen (training, bounds on log p(x), sampling, diagnosis) is a function of such a pair.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from pyro.infer import autoguide as autoguides
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppgen.data import ColumnType, Levels, put_together
from ppgen.errors import PpgenError, nearest
from ppgen.gaps import filling_gaps
from ppgen.guides import file_of, guide_names, make_autoguide, parse, require_guide_options
from ppgen.handlers import LatentSupports, ParamSites, PointMasses, Unrolled, free_name, within
from ppgen.nested import drawn_times, let_go, run_inner_guides, running_part
from ppgen.sites import innermost, require_bijection, sample_sites, support_of
from ppgen.structure import longer_run, row_plates
from ppgen.terms import Term, Traces, run, stacked_terms, terms

log = logging.getLogger("ppgen")

Columns = dict[str, Tensor]


class Program(nn.Module):
    """A generative model as one Pyro program pair. Subclass it and write `model`, and `guide` where one is wanted.

    The argument names of `model` are the names of the data columns; an observed site is
    `pyro.sample("x", d, obs=x)`, and with the column absent (None) the same line samples.
    A subclass without a `guide` of its own is given an autoguide when it is fitted, if it has latents.

    Attributes:
        coords: coordinate labels of its dimensions (plates, and those named in `dims`), by name, for ArviZ (optional).
        dims: names of the dimensions of a site's single value, by site, or of a column's row, for ArviZ (optional).
        categories: how many labels or groups a column has, 0 .. n - 1, by column: other values are refused (optional).
        shapes: the shape of a row's values, by column: arrays of another shape with as many values, as images are, are
            given it (optional).
        codes: what the codes of an argument stand for, by argument: words, numbers that are names, or combinations of
            several columns (`ppgen.data.Levels`); other values are refused, or new groups. A program that says them,
            even none, takes its columns of a table and leaves the rest (optional).
        missing: what is done with missing cells of observed columns: "error", "drop" (their rows), "mask" or "impute"
            (`ppgen.gaps`); gaps: how many each observed site has, as at its fit, and each of `drawn_columns`, which
            are no observed ones: under "impute" the program draws their cells itself; dropped: how many rows were left
            out, and how many were left.
        unreported: sites that tables and pictures of a posterior leave out, as others say the same in the data's terms:
            the latents behind the effects of the groups (optional).
        centred_latents: latents of which the data say so much that chains move them as they are: `noncentred="all"`
            leaves them out (optional).
        exposure: columns in proportion to which a row is expected to count, as trials are, or that are added as they
            are, as an offset is: no effect of them is fitted (optional).
        types: the types of its columns, where they came from a table, by column, as at its fit; None before.

    Example: z ~ N(0, 1), x | z ~ N(θ z, 1), with an amortised guide.

    >>> import pyro, torch, ppgen
    >>> from pyro.distributions import Normal
    >>> class Line(ppgen.Program):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.theta = torch.nn.Parameter(torch.tensor(1.0))
    ...         self.encoder = torch.nn.Linear(1, 2)
    ...     def model(self, x=None):
    ...         with ppgen.rows(x):
    ...             z = pyro.sample("z", Normal(0.0, 1.0))
    ...             return pyro.sample("x", Normal(self.theta * z, 1.0), obs=x)
    ...     def guide(self, x):
    ...         loc, log_scale = self.encoder(x[:, None]).unbind(-1)
    ...         with ppgen.rows(x):
    ...             pyro.sample("z", Normal(loc, log_scale.exp()))
    >>> Line().columns
    ('x',)
    """

    coords: Mapping[str, list] = {}
    dims: Mapping[str, list[str]] = {}
    categories: Mapping[str, int] = {}
    shapes: Mapping[str, Sequence[int]] = {}
    codes: Mapping[str, Levels] | None = None
    types: Mapping[str, ColumnType] | None = None
    missing: str = "error"
    gaps: Mapping[str, int] = {}
    drawn_columns: tuple[str, ...] = ()
    unreported: tuple[str, ...] = ()
    centred_latents: tuple[str, ...] = ()
    exposure: tuple[str, ...] = ()
    dropped: tuple[int, int] = (0, 0)
    arguments: dict[str, Any]  # the constructor's, as they were given

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Program and (args or kwargs):
            raise PpgenError(
                "ppgen.Program is a class to write programs from, and got arguments; of functions, "
                "Program.from_pair(model, guide) makes one"
            )
        # The arguments are kept, so that a run folder can build the same program again.
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs).arguments
        except TypeError:  # wrong arguments: __init__ itself says it better
            bound = {}
        values = dict(list(bound.items())[1:])
        values.update(values.pop("kwargs", {}))
        self.__dict__["arguments"] = values
        return self

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The joint p_θ(x, z) as a Pyro program."""
        raise NotImplementedError(f"{self.name} has no model(): write one, its sites are the joint p(x, z)")

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """q(z | x) as a Pyro program. Not overridden it is empty: nothing is latent, or an autoguide is put in."""

    @staticmethod
    def from_pair(model: Callable, guide: Callable | str | None = None) -> Program:
        """A program out of a plain pair of Pyro functions, which run unchanged.

        `pyro.param` (constraints included), `pyro.module`, PyroModules and bound methods work as in
        Pyro; the parameters live in the program, never in Pyro's global store.

        Args:
            model: a Pyro model: function, bound method or module.
            guide: a function of the same columns; the name of a Pyro autoguide ("AutoNormal"); an
                autoguide; or None: an AutoNormal where the model has latents.

        >>> Program.from_pair(lambda x: None).columns
        ('x',)
        """
        return Pair(model, guide)

    def prepare(self, data: Columns) -> Program:
        """Looks at all rows of the data, before a fit's first step: for standardisation and the like."""
        return self

    # -- where a family has something better than its plain run ---------------------------------------

    starts: int = 0  # of the search that a guide by name begins at, where a fit asks for no number
    rows_a_step: int | None = None  # of many, where a fit is given no batch_size and the program's own guide; None: all
    gaussian_steps = False  # whether it is a chain of Gaussian conditionals, which samplers and an ODE can be run on

    @property
    def inner_programs(self) -> list[Program]:
        """The programs that are part of it (`ppgen.sample`)."""
        return [m for m in self.modules() if isinstance(m, Program) and m is not self]

    guide_is_fixed = False  # whether no gradient goes through what its guide draws: it has no parameters, or no spread
    is_chain = False  # whether it is a chain of latents, whose ELBO is a sum over times

    @property
    def subsamples(self) -> bool:
        """Whether its terms can be drawn at random (`subsampled_terms`): it is a chain, or has one within."""
        return self.is_chain or any(p.is_chain for p in self.inner_programs)

    def subsampled_terms(self, data: Columns, draws: int) -> list[Term]:
        """An unbiased estimate of the terms of the ELBO that does not run the whole program: draws leading."""
        with drawn_times():
            found = [terms(run(self, data), closed_form=True) for _ in range(draws)]
        return stacked_terms(found)

    @property
    def repeats(self) -> bool:
        """Whether its sites repeat too often to be run one by one: a chain of a thousand steps."""
        return False

    def draws_apart(self) -> str | None:
        """A sentence on how draws of `model` differ from what it was trained to draw; None: they do not."""
        return next((said for p in self.inner_programs if (said := p.draws_apart())), None)

    @contextmanager
    def in_brief(self) -> Iterator[None]:
        """Within it, the program has the same contract and parameters and few sites: what is checked."""
        with ExitStack() as stack:
            for p in self.inner_programs:
                stack.enter_context(p.in_brief())
            yield

    # -- what the rest of ppgen asks of a program ------------------------------------------------

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the data columns: the arguments of `model`."""
        return arguments(self.model).names

    @property
    def has_guide(self) -> bool:
        """Whether the program has a guide of its own, or was given one."""
        return type(self).guide is not Program.guide or self._autoguide is not None

    @property
    def default_guide(self) -> str:
        """The autoguide that a fit gives it where it has latents and no guide."""
        return "AutoNormal"

    @property
    def _draws_itself(self) -> bool:
        """Whether its guide was written for it, and may draw any of its sites."""
        return self.has_guide and self._autoguide is None

    @property
    def _autoguide(self) -> nn.Module | None:
        return self._modules.get("autoguide")

    @property
    def fixed_rows(self) -> bool:
        """Whether its guide has one posterior for the rows that it was made with, as Pyro's autoguides have."""
        guide = self._autoguide
        return guide is not None and not getattr(guide, "amortised", False)

    @property
    def guide_columns(self) -> tuple[str, ...]:
        """The names of the columns that its guide reads; none where it has learnt its rows by heart."""
        guide = self._autoguide
        return arguments(self.guide).names if guide is None else tuple(getattr(guide, "columns", ()))

    def call(self, part: str, data: Mapping[str, Any]) -> Any:
        """Runs `model` or `guide` (named by `part`) on those columns of data that it takes.

        The guides of programs within it run after its own, at what that drew ("inner guides": the model, for them).
        """
        fn: Callable = self._autoguide or self.guide if part == "guide" else self.model
        # an autoguide takes what the model takes
        takes = arguments(self.model if fn is self._autoguide else fn)
        for name in takes.needed:
            if name not in data:
                raise PpgenError(
                    f"{part}() of {self.name} needs the column {name!r}, and the data have {_list(data)}"
                    f"{nearest(name, data)}; name it with columns= (--columns {name}=...)"
                )
        # A flow remembers the last x that it inverted: the same tensor at the next step would be answered from memory.
        own = self.__dict__.get("written", ())
        given = put_together({
            k: (v.clone() if k in own else v.view_as(v)) if isinstance(v, Tensor) else v for k, v in data.items()
        })  # fmt: skip
        many = given.pop(takes.many, ()) if takes.many else ()
        by_place = len(many) or isinstance(fn, _AUTOGUIDES) and _OF_HANDLERS & given.keys()
        first = [given.pop(name) for name in takewhile(given.__contains__, takes.names)] if by_place else []
        kwargs = given if takes.any else {name: given[name] for name in takes.names if name in given}
        if isinstance(fn, AutoMessenger):  # it runs the model itself, whose observed sites are no sites of the guide
            fn = poutine.block(fn, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
            part = "model"
        gaps = filling_gaps(self) if part == "model" else nullcontext()
        points = PointMasses(self) if part == "model" and not self._draws_itself else nullcontext()
        with self.running([*first, *many, *kwargs.values()]), running_part(self, part, data), gaps, points:
            if part != "guide" or not self.__dict__.get("_composed"):
                with nullcontext() if part in self.__dict__.get("looked", ()) else self._looking_for_writes(part, data):
                    return fn(*first, *many, **kwargs)
            with poutine.trace() as own_trace:
                fn(*first, *many, **kwargs)
            run_inner_guides(self, data, own_trace.trace)
            return None

    @contextmanager
    def _looking_for_writes(self, part: str, data: Mapping[str, Any]) -> Iterator[None]:
        """The first run of a part: columns that it writes into are as before after it, and later runs have copies."""
        tensors = {k: v for k, v in data.items() if isinstance(v, Tensor) and not v.is_inference()}
        before = {k: (v._version, v.clone()) for k, v in tensors.items()}
        yield
        written = [k for k, v in tensors.items() if v._version != before[k][0]]
        for k in written:
            tensors[k].copy_(before[k][1])
        self.__dict__["looked"] = {*self.__dict__.get("looked", ()), part}
        self.__dict__["written"] = {*self.__dict__.get("written", ()), *written}
        if written:
            log.warning(
                "%s writes into %s: each run begins with a copy of what was passed, where Pyro would go on from what "
                "was written", self.name, _list(written),
            )  # fmt: skip

    @property
    def name(self) -> str:
        """What messages call the program."""
        return type(self).__name__

    @contextmanager
    def running(self, given: Collection[Any] = ()) -> Iterator[None]:
        """Parameters come from this program alone, not from Pyro's global store; `given` is what it is called with."""
        with pyro.settings.context(module_local_params=True), ParamSites(self, given):
            yield

    def setup(
        self, data: Columns, guide: str | None = None, hide: tuple[str, ...] = (), rows: tuple[str, ...] = ()
    ) -> Program:
        """As `first_run`; `hide` are the latents that the guide leaves out (those that are summed out)."""
        self.first_run(data, guide, hide=lambda site: site["name"] in hide, rows=rows)
        return self

    def first_run(
        self,
        data: Columns,
        guide: str | None = None,
        *,
        hide: Callable[[dict[str, Any]], bool] = lambda site: False,
        rows: tuple[str, ...] = (),
    ) -> Traces:
        """The first run of both parts: makes the guide and registers every `pyro.param` site.

        Args:
            data: the columns, or a batch of them.
            guide: name of the guide that is to replace the program's (`ppgen.guides`); None keeps it.
            hide: which latent sites the guide leaves out; those of an inner program with a guide of its own as well.
            rows: the row columns, where these data are too few to tell.

        Returns:
            The traces of both parts, the model's at latents of its own.

        Raises:
            PpgenError: a discrete latent that the named guide has no place for.
        """
        shown, hide = hide, lambda site: shown(site) or bool(site.get("inner"))
        let_go(self)
        with self.collecting(), self.in_brief():
            if guide is None:
                known = self.__dict__.get("_composed")
                q = poutine.trace(lambda: self.call("guide", data)).get_trace()
                p = poutine.trace(lambda: self.call("model", data)).get_trace()
                if self.__dict__.get("_composed") != known:  # with the guides of the programs within, which p has shown
                    q = poutine.trace(lambda: self.call("guide", data)).get_trace()
                return Traces(p, q)
            if (file := file_of(guide)) is not None:
                p = poutine.trace(lambda: self.call("model", data)).get_trace()
                sites = _latents(p, guide, hide)
                if sites:
                    self.set_autoguide(self._own_guide(file.Guide, guide, p, sites, data, rows))
            else:
                p = self._make_autoguide(guide, data, hide)
            return Traces(p, poutine.trace(lambda: self.call("guide", data)).get_trace())

    def _own_guide(
        self, made: Any, spec: str, p: poutine.Trace, sites: dict[str, Any], data: Columns, rows: tuple[str, ...]
    ) -> nn.Module:
        own = Traces(p, poutine.Trace())
        over = row_plates(own, longer_run(self, data, rows, guide=False), data, rows)
        stacks = [f for s in sample_sites(p).values() for f in s["cond_indep_stack"]]
        dims = {f.name: f.dim for f in stacks if f.vectorized and f.name in over}
        name, options = parse(spec)
        require_guide_options(name, made, options)
        return made(sites, dims, data, rows, **options)

    def _make_autoguide(self, spec: str, data: Columns, hide: Callable[[dict[str, Any]], bool]) -> poutine.Trace:
        """Puts an autoguide in; the model's trace as its prototype ran it."""
        model = _Recorded(self)
        shown = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and hide(site))
        self.set_autoguide(make_autoguide(spec, shown))
        try:
            self.call("guide", data)
        except Exception:
            p = poutine.Trace()
            with suppress(Exception):
                p = poutine.trace(lambda: self.call("model", data)).get_trace()
            _latents(p, spec, hide)  # says what it has no place for, if that was it
            raise
        assert model.trace is not None
        if not _latents(model.trace, spec, hide):
            del self._modules["autoguide"]
        return model.trace

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Within it, parameters that the program did not have yet are registered; the random state is left alone."""
        self.__dict__["_collecting"] = True
        try:
            with torch.no_grad(), torch.random.fork_rng(), pyro.poutine.block():
                yield
        finally:
            self.__dict__["_collecting"] = False
        for p in self.parameters():
            if 0 in p.stride() and p.numel() > 1:  # made of an expanded tensor: its entries would be one in memory
                p.data = p.data.contiguous()

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Within it, a `pyro.param` that no run had reached before is registered: in an eager step of a fit."""
        self.__dict__["_growing"] = True
        try:
            yield
        finally:
            self.__dict__["_growing"] = False

    def train(self, mode: bool = True) -> Program:
        """Training or eval mode, of all modules but programs that are held (`ppgen.sample(..., freeze=True)`)."""
        return super().train(mode and "held" not in self.__dict__)

    def set_autoguide(self, guide: nn.Module) -> None:
        """Replaces the guide by an autoguide."""
        for part in guide.modules():
            if isinstance(part, autoguides.AutoGuide):
                # Autoguides trace the model within a block, where the program's own handler would not be reached.
                part._model = (_with_parameters(self, part._model[0]),)
        self.add_module("autoguide", guide)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model forward, as a PyroModule would."""
        with self.running():
            return self.model(*args, **kwargs)


_AUTOGUIDES = (autoguides.AutoGuide, AutoMessenger)
_OF_HANDLERS = {"context", "fn"}  # keywords that Pyro's handlers take for their own where they wrap a function


class Pair(Program):
    """The program that `Program.from_pair` makes."""

    pair: tuple[Callable, Callable | str | None]

    def __init__(self, model: Callable, guide: Callable | str | None = None):
        super().__init__()
        self.__dict__["arguments"] = {}
        self.__dict__["pair"] = (model, guide)
        self.__dict__["model"] = model
        # A bound method hides the parameters of its owner from Pyro's ELBO modules; here they are registered, once.
        for owner in {id(m): m for m in map(_owner, (model, guide)) if m is not None}.values():
            self.add_module(free_name(self, type(owner).__name__.lower()), owner)
        if isinstance(guide, _AUTOGUIDES):
            self.set_autoguide(guide)
        elif callable(guide):
            self.__dict__["guide"] = guide
        elif isinstance(guide, str):
            parse(guide)
        elif guide is not None:
            raise PpgenError(
                f"guide is {guide!r}; expected a function, an autoguide, None, or a name: {', '.join(guide_names())}"
            )

    @property
    def default_guide(self) -> str:
        return self.pair[1] if isinstance(self.pair[1], str) else "AutoNormal"

    @property
    def has_guide(self) -> bool:
        return callable(self.pair[1]) or self._autoguide is not None

    @property
    def name(self) -> str:
        model = within(self.pair[0])
        return getattr(model, "__name__", type(model).__name__)


def _owner(fn: Any) -> nn.Module | None:
    """The module that a bound method belongs to, or the callable itself where it is one."""
    fn = within(fn)
    owner = getattr(fn, "__self__", fn)
    return owner if isinstance(owner, nn.Module) and not isinstance(owner, _AUTOGUIDES) else None


def _with_parameters(program: Program, model: Callable) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        with Unrolled(), ParamSites(program, given), running_part(program, "model", {}), PointMasses(program):
            return model(*args, **kwargs)

    return run


class _Recorded:
    """A model that an autoguide can begin at, and the trace of its first run."""

    def __init__(self, program: Program):
        self.program, self.model = program, program.model
        self.trace: poutine.Trace | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.trace is not None:
            with LatentSupports(), PointMasses(self.program), filling_gaps(self.program):
                return self.model(*args, **kwargs)
        with poutine.trace() as tracer, LatentSupports(), PointMasses(self.program), filling_gaps(self.program):
            result = self.model(*args, **kwargs)
        self.trace = tracer.trace
        return result


def _latents(p: poutine.Trace, spec: str, hide: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    """The latents of a run of the model that a named guide draws."""
    sites = sample_sites(prune_subsample_sites(p.copy()), deterministic=False)
    found = {n: s for n, s in sites.items() if not s["is_observed"] and not hide(s)}
    for name, site in found.items():
        if site["fn"].has_enumerate_support:
            raise PpgenError(
                f"the discrete latent {name!r} has no place in {spec}, whose latents are continuous; sum it out with "
                "objective='enumerate' (--objective enumerate), or write a guide that samples it"
            )
        if (support := support_of(site["fn"])) is not None and support.is_discrete:
            raise PpgenError(
                f"the discrete latent {name!r} has no place in {spec}, whose latents are continuous, and "
                f"{type(innermost(site['fn'])).__name__} has too many values to sum it out; write a guide that samples "
                "it, or give it a distribution of few values"
            )
        require_bijection(name, site["fn"])
    return found


class _Arguments(NamedTuple):
    """The arguments of a model or guide: names of columns."""

    names: tuple[str, ...]
    needed: tuple[str, ...]  # those without a default
    any: bool  # takes whatever is passed: **kwargs
    many: str = ""  # the name of *args


def arguments(fn: Callable) -> _Arguments:
    """What a function, method or module takes.

    >>> arguments(lambda sigma, y=None: None)
    _Arguments(names=('sigma', 'y'), needed=('sigma',), any=False, many='')
    """
    fn = within(fn)
    fn = fn.forward if isinstance(fn, nn.Module) else fn
    function = getattr(fn, "__func__", fn)
    seen = _SEEN[function is fn]
    if function not in seen:
        seen[function] = _read(fn)
    return seen[function]


# of functions and of methods: a step asks each time, and to read a signature takes as long as a small site
_SEEN: tuple[WeakKeyDictionary[Callable, _Arguments], ...] = (WeakKeyDictionary(), WeakKeyDictionary())


def _read(fn: Callable) -> _Arguments:
    parameters = inspect.signature(fn).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return _Arguments(
        names=tuple(p.name for p in named),
        needed=tuple(p.name for p in named if p.default is p.empty),
        any=any(p.kind is p.VAR_KEYWORD for p in parameters),
        many=next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), ""),
    )


def _list(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
