"""A whole gradient step as one compiled graph: draws, gradient, clipping, finite test, optimiser, average.

Small parameters lie in one flat vector, and the optimiser's state beside them, so that their update is one
kernel. The module's parameters and the `state` of the torch optimiser are views of these vectors: what the
graph writes is there at once for whoever saves, loads or reads them, and another engine can go on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ppgen.engine.compiling.compile import compiled
from ppgen.engine.compiling.optimisers import bias_corrections, functional
from ppgen.engine.graphs.gradient import Gradient
from ppgen.engine.graphs.noise import Noise, hoist
from ppgen.engine.graphs.trace import Traced, Untraceable, trace

SMALL = 8192  # elements of a parameter that joins the flat vector
CHUNK = 64  # steps a call, at most
NOISE_BYTES = 2**20  # draws kept ready for the steps of a call
ROUNDED = 2**-8  # of bfloat16, relative to a number


class _Layout:
    """Where parameters and optimiser state lie: a slot for all small parameters of a dtype, one for each large one."""

    def __init__(
        self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, keys: tuple[str, ...], counted: bool,
        averages: list[Tensor] | None,
    ):  # fmt: skip
        self.parameters, self.optimizer = parameters, optimizer
        small: dict[torch.dtype, list[int]] = {}
        self.slots: list[list[int]] = []
        for i, p in enumerate(parameters):
            if p.numel() <= SMALL:
                small.setdefault(p.dtype, []).append(i)
            else:
                self.slots.append([i])
        self.slots += list(small.values())
        self.values = [self._gather(slot, [p.detach() for p in parameters]) for slot in self.slots]
        old = [optimizer.state.get(p, {}) for p in parameters]
        self.state = {
            k: [
                self._gather(s, [_or_zero(o.get(k), p) for o, p in zip(old, parameters, strict=True)])
                for s in self.slots
            ]
            for k in keys
        }
        counts = [float(o.get("step", 0.0)) for o in old]
        if counted and len(set(counts)) > 1:
            raise Untraceable("the parameters have made different numbers of steps")
        self.counts = torch.tensor(counts, dtype=torch.float32)
        self.corrections = _corrections(self.counts[0] + 1, optimizer.param_groups[0])
        self.averages = [] if averages is None else [self._gather(slot, averages) for slot in self.slots]
        self._bind(keys, counted, averages)

    def _gather(self, slot: list[int], tensors: Sequence[Tensor]) -> Tensor:
        if len(slot) == 1 and tensors[slot[0]].numel() > SMALL and tensors[slot[0]].is_contiguous():
            return tensors[slot[0]].detach()
        return torch.cat([tensors[i].detach().reshape(-1) for i in slot])

    def _bind(self, keys: tuple[str, ...], counted: bool, averages: list[Tensor] | None) -> None:
        states: list[dict[str, Any]] = [
            {"step": self.counts[i]} if counted else {} for i in range(len(self.parameters))
        ]
        for s, slot in enumerate(self.slots):
            views = self.views(s, self.values[s])
            for i, view in zip(slot, views, strict=True):
                self.parameters[i].data = view
            for k in keys:
                for i, view in zip(slot, self.views(s, self.state[k][s]), strict=True):
                    states[i][k] = view
            if averages is not None:
                for i, view in zip(slot, self.views(s, self.averages[s]), strict=True):
                    averages[i].data = view
        for p, state in zip(self.parameters, states, strict=True):
            if state:
                self.optimizer.state[p] = state
        self._state = self.optimizer.state
        self._places = [p.data_ptr() for p in self.parameters]

    def views(self, s: int, tensor: Tensor) -> list[Tensor]:
        """The slot's tensor as one view a parameter."""
        shapes = [self.parameters[i].shape for i in self.slots[s]]
        if len(shapes) == 1:
            return [tensor.view(shapes[0])]
        return [part.view(shape) for part, shape in zip(tensor.split([x.numel() for x in shapes]), shapes, strict=True)]

    def written(self) -> list[Tensor]:
        """All tensors that a step changes: values, state, averages, counts, corrections."""
        state = [t for part in self.state.values() for t in part]
        return [*self.values, *state, *self.averages, self.counts, self.corrections]

    def count(self) -> None:
        """Reads how many steps were made from the optimiser's state: others may have made some."""
        steps = [float(self.optimizer.state.get(p, {}).get("step", 0.0)) for p in self.parameters]
        self.counts.copy_(torch.tensor(steps))
        self.corrections.copy_(_corrections(self.counts[0] + 1, self.optimizer.param_groups[0]))

    @property
    def stale(self) -> bool:
        """Whether somebody put other tensors in the place of these."""
        return self.optimizer.state is not self._state or self._places != [p.data_ptr() for p in self.parameters]


class FusedStep:
    """Compiles, and runs up to K steps a call.

    Args:
        gradient: of the objective.
        optimizer: of torch.optim; Adam, AdamW, SGD and RMSprop become part of the graph.
        clip: largest norm of the gradient.
        averages: an exponential average of each of the gradient's parameters, updated as they are.
        layouts: where several steps of one optimiser, for batches of other shapes, find each other's layout.

    Raises:
        Untraceable: an optimiser, or options of it, without a functional form.
    """

    def __init__(
        self, gradient: Gradient, optimizer: torch.optim.Optimizer, *, clip: float | None = None,
        averages: list[Tensor] | None = None, layouts: dict[tuple[int, ...], _Layout] | None = None,
    ):  # fmt: skip
        form = functional(optimizer)
        if form is None:
            raise Untraceable(
                f"the optimizer {type(optimizer).__name__} with these options has no functional form here"
            )
        self.update, self.keys, counted = form
        self.gradient, self.optimizer, self.clip = gradient, optimizer, clip
        trained = set(map(id, gradient.trained))
        average = None
        if averages is not None:
            average = [a for p, a in zip(gradient.parameters, averages, strict=True) if id(p) in trained]
        self._counted, self._averages, self._layouts = counted, average, {} if layouts is None else layouts
        self.lay_out()
        self.graph, draws, complete = hoist(gradient.traced.graph)
        self.chunk = max(1, min(CHUNK, NOISE_BYTES // max(Noise.bytes_a_step(draws), 1)))
        self._ahead = self.chunk if complete else 1  # what is drawn in the graph must wait for its turn
        self.noise = Noise(draws, self._ahead)
        self.unused = [p.detach() for p in gradient.parameters if id(p) not in trained]
        self.traced: Traced | None = None
        self._single: tuple[_Layout, list[Tensor], Tensor, Tensor] | None = None

    def lay_out(self) -> None:
        """Gathers parameters and state anew, or takes the layout that another step of this optimiser has made."""
        parameters = self.gradient.trained
        place = tuple(map(id, parameters))
        found = self._layouts.get(place)
        if found is None or found.stale:
            found = _Layout(parameters, self.optimizer, self.keys, self._counted, self._averages)
        self._layouts[place] = self.layout = found

    # -- the step, as a function of tensors --------------------------------------------------------

    def _fixed(self) -> list[Tensor]:
        """The inputs that are the same tensors at every step."""
        rest = [*self.gradient.others, *self.unused, *self.gradient.traced.constants]
        return [*self.layout.written(), *rest]

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        layout, gradient, o = self.layout, self.gradient, self.optimizer.param_groups[0]
        rest = list(inputs)

        def pop(n: int) -> list[Tensor]:
            taken, rest[:] = rest[:n], rest[n:]
            return taken

        n = len(layout.slots)
        values = pop(n)
        states = {k: pop(n) for k in self.keys}
        averages = pop(n) if layout.averages else []
        counts, corrections = pop(2)
        others, unused = pop(len(gradient.others)), pop(len(self.unused))
        constants = pop(len(gradient.traced.constants))
        (result,) = pop(1)
        (row,) = pop(1)
        noise = self.noise.split(tuple(pop(len(self._noise_example))))
        lr, kl, decay = row[0], row[1], row[2]
        dtype = values[0].dtype

        views: dict[int, Tensor] = {}
        for s, slot in enumerate(layout.slots):
            views |= {id(layout.parameters[i]): v for i, v in zip(slot, layout.views(s, values[s]), strict=True)}
        spare = iter(unused)
        parameters = [views[id(p)] if id(p) in views else next(spare) for p in gradient.parameters]
        weight = [kl.to(dtype)] if gradient.warm_up else []
        out = self.graph(*parameters, *others, *weight, *rest, *constants, *noise)
        loss, elbo, gradients, buffers = gradient.outputs(out)

        slots = [
            gradients[i[0]] if values[s].dim() > 1 else torch.cat([gradients[j].reshape(-1) for j in i])
            for s, i in enumerate(layout.slots)
        ]
        norm = torch.sqrt(sum((g * g).sum() for g in slots))  # type: ignore[arg-type]
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        if self.clip is not None:
            coefficient = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            slots = [g * coefficient for g in slots]
        for s, g in enumerate(slots):
            old = {k: states[k][s] for k in self.keys}
            new, state = self.update(values[s], g, old, corrections, lr, o)
            if averages:
                averages[s].copy_(torch.where(finite, torch.lerp(averages[s], new, (1 - decay).to(dtype)), averages[s]))
            values[s].copy_(torch.where(finite, new, values[s]))
            for k, value in state.items():
                old[k].copy_(torch.where(finite, value, old[k]))
        done = counts + finite
        corrections.copy_(_corrections(done[0] + 1, o))
        counts.copy_(done)
        by_id = {id(t): x for t, x in zip(gradient.others, others, strict=True)}
        for buffer, value in zip(gradient.changed, buffers, strict=True):
            target = by_id[id(buffer)]
            target.copy_(torch.where(finite, value, target))
        result.copy_(torch.stack([elbo.to(dtype), norm.to(dtype), finite.to(dtype)]))
        return []  # what a graph returns must be allocated; what it writes lies ready

    # -- compiling and running ---------------------------------------------------------------------

    def build(self, batch: Mapping[str, Any]) -> FusedStep:
        """Traces the step around the gradient's graph, and compiles it."""
        graph, inputs = self.record(batch)
        return self.run_by(compiled(graph, inputs))

    def record(self, batch: Mapping[str, Any]) -> tuple[fx.GraphModule, list[Tensor]]:
        """The step around the gradient's graph, as a graph of its own, and inputs to compile it for."""
        state = torch.random.get_rng_state()
        self._noise_example = self.noise.take(1)[0]
        torch.random.set_rng_state(state)
        row = torch.tensor([1e-3, 1.0, 0.5], dtype=torch.float64)
        result = torch.zeros(3, dtype=self.layout.values[0].dtype)
        example = [*self._fixed(), result, row, *self._noise_example]
        example += [batch[k] for k in self.gradient.columns]
        changed = {id(t) for t in (*self.layout.written(), *self.gradient.changed, result)}
        self._written = [i for i, t in enumerate(example) if id(t) in changed]
        example = [t.detach() for t in example]
        self.traced = trace(self._step, _fresh(example, self._written))
        self._extra = list(self.traced.constants)
        self._example = _fresh([*example, *self._extra], self._written)
        return self.traced.graph, self._example

    def run_by(self, run: Callable[[list[Tensor]], Any]) -> FusedStep:
        """Steps are run by this compiled graph from now on.

        Raises:
            Untraceable: it gives other numbers than the graph.
        """
        with torch.random.fork_rng(devices=[]):
            self._agree(run, self._example, self._written)
        self._run = run
        self._example = []
        return self

    def _agree(self, run: Any, inputs: list[Tensor], written: list[int]) -> None:
        """Runs the compiled step and its graph from one state.

        Raises:
            Untraceable: they give different numbers.
        """
        assert self.traced is not None
        start = torch.random.get_rng_state()
        graph = Traced(self.traced.graph, ())
        n = len(self.layout.values)

        def after(call: Callable[..., Any], rounded: float = 0.0) -> list[Tensor]:
            torch.random.set_rng_state(start)
            tensors = _fresh(inputs, written)
            for i in written[:n] if rounded else ():
                tensors[i].mul_(1 + rounded * torch.rand_like(tensors[i]).sub(0.5).sign())
            torch.random.set_rng_state(start)
            call(*tensors)
            return [tensors[i].double() for i in written[n:]]  # new values: a gradient of 0 but for rounding moves any

        expected, found = after(graph), after(lambda *tensors: run(list(tensors)))
        # Inductor rounds to bfloat16 less often than the graph's single operations do: where terms cancel, the sums
        # differ as much as the graph's own do at values rounded to it.
        half = any(node.kwargs.get("dtype") is torch.bfloat16 for node in graph.graph.graph.nodes)
        near = after(graph, ROUNDED) if half else expected
        for a, b, c in zip(expected, found, near, strict=True):
            most = (0.1 if half else 1e-3) * a.abs().max() + 4 * (a - c).abs().max() + 1e-12
            if torch.isfinite(a).all() and not (a - b).abs().max() <= most:
                raise Untraceable("the compiled step gives other numbers than the graph that it was made from")

    def __call__(
        self, batches: Sequence[Mapping[str, Any]], rows: Sequence[tuple[float, float, float]]
    ) -> list[list[float]]:
        """Runs one step a row (lr, kl_weight, decay of the average) and gives [elbo, norm, finite] of each."""
        if self.layout.stale:
            self.lay_out()
        fixed, run = self._fixed(), self._run
        drawn = len(self._noise_example)
        at, end = len(fixed), len(fixed) + 2 + drawn
        arguments: list[Any] = [*fixed, *[None] * (2 + drawn), *self._columns(batches[0]), *self._extra]
        table = torch.tensor(rows, dtype=torch.float64).unbind(0)
        results = torch.empty(len(rows), 3, dtype=fixed[0].dtype)
        out = results.unbind(0)
        batch = batches[0]
        for start in range(0, len(rows), self._ahead):
            for k, draws in enumerate(self.noise.take(min(self._ahead, len(rows) - start)), start):
                if batches[k] is not batch:
                    batch = batches[k]
                    arguments[end : end + len(self.gradient.columns)] = self._columns(batch)
                arguments[at], arguments[at + 1] = out[k], table[k]
                arguments[at + 2 : end] = draws
                run(arguments)
        return results.tolist()

    def one(self, columns: Sequence[Tensor], lr: float) -> list[float]:
        """One step on a batch given by its tensors, with as little as possible around it: [elbo, norm, finite]."""
        if self.layout.stale:
            self.lay_out()
        if self._single is None or self._single[0] is not self.layout:
            result, row = torch.zeros(3, dtype=self.layout.values[0].dtype), torch.ones(3, dtype=torch.float64)
            self._single = self.layout, self._fixed(), result, row
            self._lr = 1.0
        _, fixed, result, row = self._single
        if lr != self._lr:
            row[0] = self._lr = lr
        self._run([*fixed, result, row, *self.noise.take(1)[0], *columns, *self._extra])
        return result.tolist()

    def _columns(self, batch: Mapping[str, Any]) -> list[Tensor]:
        return [batch[k].detach() for k in self.gradient.columns]


def _corrections(t: Tensor, o: Mapping[str, Any]) -> Tensor:
    """Adam's, of a step to come: a power within the loop over the parameters costs more than the rest of it."""
    return torch.stack(bias_corrections(t.double(), o.get("betas", (0.0, 0.0))))


def _fresh(inputs: list[Tensor], written: list[int]) -> list[Tensor]:
    """The inputs, those that are written to as copies."""
    return [t.clone() if i in written else t for i, t in enumerate(inputs)]


def _or_zero(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value
