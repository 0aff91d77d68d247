r"""Many draws of a program, each by itself: one run as a function of its noise, batched.

A program is only ever run for one draw. `Many` records such a run as a graph of tensor operations, takes the random
numbers out of it (`ppgen.engine.graphs.noise`), and maps it over S sets of them with `torch.func.vmap`: the program
sees one draw, and never a dimension that it does not know. A draw that depends on a value (Gamma, Poisson, Categorical)
stays in the graph, and is made anew for each. What is recorded is compared with a run of the program itself. Where a
program cannot be recorded, or an operation cannot be batched, the draws are made one after the other, and the log says
so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, fx, nn
from torch.nn.utils.stateless import _reparametrize_module

from ppgen.engine.graphs.executable import executable
from ppgen.engine.graphs.graph import in_own_memory, is_in_place
from ppgen.engine.graphs.noise import hoist
from ppgen.engine.graphs.together import kept_whole
from ppgen.engine.graphs.trace import Traced, Untraceable, trace
from ppgen.enumerated import summed_terms
from ppgen.errors import PpgenError, first_line
from ppgen.memory import require_memory
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term, run, terms

log = logging.getLogger("ppgen")

OURS = 0x5EED_0F_99  # a seed that nobody writes into a program

FEW = 16  # draws that are made one after the other: recording a run costs as much
BLOCK = 2**23  # entries of the largest tensor of a batch: bounds the memory
MOST_RECORDINGS = 64  # kept in a process

One = Callable[..., list[Tensor]]
DrawTerms = Callable[..., list[Term]]  # of the signature of `one_draw`


class Many:
    """S runs of a function of one draw: called with S, it gives the function's tensors with S leading.

    Args:
        one: one draw: tensors -> tensors, the same number at each call.
        inputs: examples of its arguments that are the same for all draws, and may differ from call to call. Without
            any, what the function closes over keeps its values.
        each: examples of its further arguments, of which each draw has its own (without the leading dimension).
        name: of the program, for the log.
        gradient: whether gradients with respect to `inputs` are to be taken through it.
    """

    def __init__(
        self, one: One, inputs: Sequence[Tensor] = (), each: Sequence[Tensor] = (), *, name: str, gradient: bool = False
    ):
        self.one, self.name, self.gradient = one, name, gradient
        self.examples, self.shared = [*inputs, *each], len(inputs)
        self.device = next((t.device for t in self.examples), torch.device("cpu"))
        self.recorded, self.batched = False, True
        self.graph: Recording | None = None  # None: cannot be recorded, or was not yet
        self.constants: tuple[Tensor, ...] = ()
        if gradient:
            self._record()

    def _record(self) -> None:
        self.recorded = True
        try:
            traced = trace(self.one, self.examples, differentiable=self.gradient, held=not self.shared)
        except Untraceable as e:
            return self._say(str(e))
        if why := _differs(self.one, traced, self.examples, self.gradient):  # of this function: an equal graph tells
            _look_for_own_seed(self.one, traced, self.examples, self.name)
            return self._say(why)  # neither what it draws beside torch's generator nor a gradient of its own
        inputs, each = self.examples[: self.shared], self.examples[self.shared :]
        key = _key(traced, self.shared, self.gradient)
        if new := key not in _recordings:
            if len(_recordings) == MOST_RECORDINGS:
                del _recordings[next(iter(_recordings))]
            _recordings[key] = Recording(traced, self.shared, len(each), self.gradient)
        self.graph, self.constants = _recordings[key], traced.constants
        if new and self.graph.writes:  # which may want room, and is found out by two draws
            with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):
                self._block(2, inputs, [torch.stack([v, v]) for v in each])

    def _say(self, why: str) -> None:
        log.info("the draws of %s are made one after the other: %s", self.name, why)

    def __call__(self, draws: int, inputs: Sequence[Tensor] = (), each: Sequence[Tensor] = ()) -> list[Tensor]:
        """The tensors of S draws, S leading.

        Args:
            draws: S.
            inputs, each: as the examples; of `each`, S leading.
        """
        if not self.recorded and draws > FEW:
            self._record()
        if self.graph is None:
            first = self.one(*inputs, *(v[0] for v in each))
            self._require_memory([v[None] for v in first], draws)
            return _stacked([first, *(self.one(*inputs, *(v[i] for v in each)) for i in range(1, draws))])
        at_once = draws if self.gradient else max(1, min(draws, BLOCK // self.graph.largest))
        out: list[Tensor] = []  # made once, for all draws: parts that are joined take twice the memory
        for start in range(0, draws, at_once):
            s = min(at_once, draws - start)
            part = self._block(s, inputs, [v[start : start + s] for v in each])
            if start == 0:
                self._require_memory(part, draws)
                if s == draws:
                    return part
                out = [v.new_empty((draws, *v.shape[1:])) for v in part]
            for whole, some in zip(out, part, strict=True):
                whole[start : start + s] = some
        return out

    def _require_memory(self, some: Sequence[Tensor], draws: int) -> None:
        """Refuses draws that would not fit all together, told by some of them."""
        size = sum(v.numel() * v.element_size() * draws // max(1, len(v)) for v in some)
        require_memory(
            2 * size, f"a result of {draws} draws of {self.name}, while it is put together,", "take fewer draws "
            "(draws=, --draws; of chains, fewer of them) or rows: the error of a mean of a hundred draws is a tenth of "
            "a standard deviation",
        )  # fmt: skip

    def _block(self, draws: int, inputs: Sequence[Tensor], each: Sequence[Tensor]) -> list[Tensor]:
        assert self.graph is not None
        recording, n = self.graph, len(each)
        noise = [d.many(draws, self.device) for d in recording.noise]

        def one(which: Tensor, *own: Tensor) -> list[Tensor]:
            return list(recording.run(which, *inputs, *own[:n], *self.constants, *own[n:]))

        while self.batched:
            state = torch.get_rng_state()
            try:
                return torch.func.vmap(one, randomness="different")(
                    torch.zeros(draws, device=self.device), *each, *noise
                )
            except (RuntimeError, NotImplementedError) as e:
                torch.set_rng_state(state)  # a try that fails has drawn some numbers
                if recording.widen():
                    continue
                self._say(first_line(e))
                self.batched = False
        return _stacked(
            [one(torch.zeros((), device=self.device), *(v[i] for v in (*each, *noise))) for i in range(draws)]
        )


class Recording:
    """A recorded run of one draw, for `torch.func.vmap`: what is made of its graph alone, whatever the values.

    Args:
        shared, own: how many inputs are the same for all draws, and how many further ones are of each draw.

    Attributes:
        run: (which, inputs, constants, noise) -> the function's tensors; `which` is mapped over, whatever else is.
        noise: the draws that it takes as inputs.
        largest: entries of the largest tensor that is another one in each draw.
        writes: whether it writes in place.
    """

    def __init__(self, traced: Traced, shared: int, own: int, gradient: bool):
        self.gradient = gradient
        graph, self.noise, _ = hoist(traced.graph)
        run = self._executable(graph)
        self.run: Callable[..., Any] = lambda _, *tensors: run(*tensors)
        self.narrow: fx.GraphModule | None = graph  # as long as it has room for one draw only
        self.writes = any(is_in_place(n) for n in graph.graph.nodes)
        each = slice(shared, shared + own)
        nodes = list(graph.graph.nodes) if self.writes else _of_each_draw(graph, each, len(self.noise))
        self.largest = max((n.meta["like"][0].numel() for n in nodes if "like" in n.meta), default=1)

    def _executable(self, graph: fx.GraphModule) -> Callable[..., Any]:
        return executable(graph if self.gradient else kept_whole(graph), gradient=self.gradient)

    def widen(self) -> bool:
        """Whether what is written in place is now given room for all draws, and was not before."""
        if self.narrow is None:
            return False
        self.run, self.narrow = self._executable(in_own_memory(self.narrow)), None
        return True


def _of_each_draw(graph: fx.GraphModule, inputs: slice, noise: int) -> list[fx.Node]:
    """The nodes that depend on random numbers, or on an input of each draw: not those of parameters and columns alone.

    Args:
        inputs: which placeholders are inputs of each draw.
        noise: how many of the last ones are.
    """
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    each = {*placeholders[inputs], *placeholders[len(placeholders) - noise :]}
    for node in graph.graph.nodes:
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if drawn or any(n in each for n in node.all_input_nodes):
            each.add(node)
    return list(each)


_recordings: dict[Any, Recording] = {}  # by `_key`, of this process


def _key(traced: Traced, shared: int, gradient: bool) -> Any:
    """All that a `Recording` is made of: every node of the graph with its operation, arguments, shape and dtype.

    A program is recorded at every call, and parameters and what else it closes over are inputs of the graph: only the
    work that follows from an equal graph is left out.
    """
    nodes = list(traced.graph.graph.nodes)
    whole = all(n.op not in ("get_attr", "call_module") for n in nodes)  # nothing is held by the graph
    known = tuple((n.op, n.target, n.name, str(n.args), str(n.kwargs), n.meta.get("like")) for n in nodes)
    return known, shared, gradient, None if whole else object()


def _stacked(runs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    if any([v.shape for v in one] != [v.shape for v in runs[0]] for one in runs):
        raise SitesDiffer
    return [torch.stack(list(values)) for values in zip(*runs, strict=True)]


class SitesDiffer(PpgenError):
    """Values decide which sites a run has, so that its draws cannot be stacked."""

    def __init__(self) -> None:
        super().__init__(
            "the program has other sites or shapes from draw to draw, and draws that differ cannot be stacked; a fit "
            "takes objective='Trace_ELBO', which runs them one by one"
        )


def settle(names: list[str], found: Sequence[str]) -> None:
    """Keeps the names of what a run gives.

    Raises:
        SitesDiffer: other names than those of the run before.
    """
    if names and names != list(found):
        raise SitesDiffer
    names[:] = found


def _differs(one: One, recorded: Traced, inputs: Sequence[Tensor], gradient: bool) -> str:
    """What the recorded run gives else than the function itself, from one random state; '' where nothing."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradient):
        start = torch.get_rng_state()
        inputs = [t.detach().requires_grad_(gradient and t.requires_grad) for t in inputs]
        own = one(*inputs)
        torch.set_rng_state(start)
        if gradient:
            ours = list(executable(recorded.graph, gradient=True)(*inputs, *recorded.constants))
        else:
            ours = list(recorded(*inputs))
        for a, b in zip(own, ours, strict=True):
            if a.shape != b.shape or not _near(a, b):
                return "its recorded run gives other values (does it draw from Python's random, or count its calls?)"
        if gradient:
            try:
                pairs = list(zip(_gradients(own, inputs), _gradients(ours, inputs), strict=True))
            except RuntimeError as e:
                return f"no gradient goes through its recorded run: {first_line(e)}"
            for g, traced in pairs:
                if (g is None) != (traced is None) or g is not None and traced is not None and not _near(g, traced):
                    return "its recorded run has other gradients (a part without gradient, or a gradient of its own)"
    return ""


def _look_for_own_seed(one: One, recorded: Traced, inputs: Sequence[Tensor], name: str) -> None:
    """Where a program that draws leaves torch's random state as it was, or with a seed of its own."""
    if not any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in recorded.graph.graph.nodes):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(OURS)
        before = torch.get_rng_state()
        one(*inputs)
        own = torch.initial_seed() != OURS or torch.equal(before, torch.get_rng_state())
    if own:
        say_own_seed(name)


def say_own_seed(name: str) -> None:
    log.warning(
        "the draws of %s are all made of the same random numbers, as the program sets the seed itself each time it "
        "is run (poutine.seed, torch.manual_seed or pyro.set_rng_seed): what they spread is not its distribution; "
        "take that out of it, and pass the seed: seed= (--seed)", name,
    )  # fmt: skip


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of a sum of all entries of all outputs in which hardly any two weigh the same."""
    value = torch.zeros(()).double()
    for i, o in enumerate(outputs):
        if o.requires_grad:
            weights = torch.linspace(1.0, 2.0, o.numel(), dtype=torch.double, device=o.device)
            value = value + (i + 1.0) * (o.double() * weights.view(o.shape)).sum()
    wanted = [t for t in inputs if t.requires_grad]
    if not value.requires_grad:
        return [None] * len(wanted)
    return torch.autograd.grad(value, wanted, allow_unused=True)


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which a steep map may enlarge in a few entries."""
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return bool((a == b).all())
    scale = float(a[torch.isfinite(a)].abs().max()) if torch.isfinite(a).any() else 1.0
    close = torch.isclose(a, b, rtol=1e-3, atol=1e-5 * max(scale, 1e-30), equal_nan=True)
    return not close.numel() or float(close.double().mean()) > 0.99


# -- terms of many draws ------------------------------------------------------------------------------


def one_draw(
    program: Program,
    data: Mapping[str, Any],
    structure: Structure,
    *,
    closed_form: bool = False,
    latents: Mapping[str, Tensor] | None = None,
    q: Trace | None = None,
) -> list[Term]:
    """The terms of one run, its discrete latents summed out where the structure says so."""
    if structure.summed:
        return summed_terms(program, data, structure.nesting, latents=latents, q=q)
    once = run(program, data, latents=latents, q=q)
    return terms(once, closed_form=closed_form, alike=structure.alike)


class ManyTerms:
    """The terms of S runs of a program on columns of one shape, S leading: see `Many`.

    Args:
        program, structure: set up and checked.
        data: columns; of each call, columns of the same shapes.
        closed_form: as for `ppgen.terms.terms`.
        draw: makes the terms of one run: `one_draw`, or a gradient estimator's.
        train: whether gradients with respect to the program's parameters are to be taken.
    """

    def __init__(
        self,
        program: Program,
        data: Mapping[str, Any],
        structure: Structure,
        *,
        closed_form: bool = False,
        draw: DrawTerms | None = None,
        train: bool = False,
    ):
        self.program, self.structure, self.closed_form = program, structure, closed_form
        self.draw = draw or one_draw
        self.columns = [k for k, v in data.items() if isinstance(v, Tensor)]
        self.rest = {k: v for k, v in data.items() if k not in self.columns}
        self.parameters = list(dict(program.named_parameters())) if train else []
        self.labels: list[Term] = []
        self.names: list[str] = []
        self.many = Many(self._one, self._inputs(data), name=program.name, gradient=train)

    def _inputs(self, data: Mapping[str, Any]) -> list[Tensor]:
        own = dict(self.program.named_parameters())
        return [own[k] for k in self.parameters] + [data[k] for k in self.columns]

    def _one(self, *tensors: Tensor) -> list[Tensor]:
        n = len(self.parameters)
        theta = dict(zip(self.parameters, tensors[:n], strict=True))
        data = dict(zip(self.columns, tensors[n:], strict=True)) | self.rest
        with parameters_as(self.program, theta):
            found = self.draw(self.program, data, self.structure, closed_form=self.closed_form)
        settle(self.names, [f"{t.role} {t.site}" for t in found])
        self.labels = [t._replace(**dict.fromkeys(_tensors(t), _NOTHING)) for t in found]
        return [x for t in found for x in _tensors(t).values()]

    def __call__(self, draws: int, data: Mapping[str, Any]) -> list[Term]:
        out: Iterator[Any] = iter(self.many(draws, self._inputs(data)))
        return [t._replace(**{name: next(out) for name in _tensors(t)}) for t in self.labels]


def _tensors(t: Term) -> dict[str, Any]:
    """What a term has of each draw."""
    fields = {n: getattr(t, n) for n in ("value", "log_prob", "log_density", "target", "scale", "counts")}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


_NOTHING: Any = torch.empty(0)


def parameters_as(program: nn.Module, values: Mapping[str, Tensor]) -> Any:
    """Within it, the program's parameters are these tensors; after it, its own again, whatever happens."""
    return _reparametrize_module(program, dict(values), tie_weights=True)


def parameters_held(program: nn.Module) -> Any:
    """Within it, the program's parameters are constants."""
    return parameters_as(program, {n: p.detach() for n, p in program.named_parameters()})
