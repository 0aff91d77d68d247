"""What a function does to tensors, recorded while it runs: held against make_fx, which records fake tensors."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.engine import Untraceable, trace
from ppgen.engine.compiling.background import _packed, _unpacked
from ppgen.engine.graphs.executable import executable
from ppgen.engine.graphs.graph import simplify
from ppgen.engine.graphs.record import BYTES, Unrecordable, record
from ppgen.engine.graphs.without_dynamo import _gradients, leave_out, take_step

HELD = torch.ones(3)
MASK = torch.tensor([True, False, True])
leave_out()


def gradient(x: Tensor) -> list[Tensor]:
    """By autograd, through a draw and a tensor that is closed over."""
    x = x.detach().requires_grad_()
    loss = (F.softplus(x) * torch.randn(3) * HELD).sum() + x.exp().prod() * 0.5
    (grad,) = torch.autograd.grad(loss, x)
    return [loss.detach(), grad]


def batched(x: Tensor) -> Any:
    """By torch.func."""
    return torch.func.vmap(torch.func.grad_and_value(lambda z: (z * HELD).square().sum().log1p()))(x.expand(2, 3))


def written(x: Tensor) -> Tensor:
    y = torch.zeros(3, 3)
    y[1] = x
    y.mul_(torch.tensor(2.0))
    return y[:, 0]


def of_two(x: Tensor) -> list[Any]:
    values, places = x.max(0)
    return [values, None, places, x.split(1)[2]]


def normalised(x: Tensor) -> Tensor:
    return F.batch_norm(x[:, None], torch.zeros(1), torch.ones(1), training=True)


def masked(x: Tensor) -> Tensor:
    return x[MASK]


@pytest.mark.parametrize("fn", [gradient, batched, written, of_two, normalised], ids=lambda fn: fn.__name__)
def test_the_graph_is_that_of_make_fx(fn: Callable[..., Any]):
    x = torch.tensor([0.5, -1.0, 2.0])
    with torch.random.fork_rng():
        ours = record(fn, [x])
        theirs = make_fx(lambda *inputs: fn(*inputs), tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    assert simplify(copy.deepcopy(ours))[0].code == simplify(copy.deepcopy(theirs))[0].code
    assert [type(out) for out in _list(seeded(ours, x))] == [type(out) for out in _list(seeded(fn, x))]
    torch.testing.assert_close(seeded(ours, x), seeded(fn, x), rtol=1e-6, atol=0.0)


def seeded(fn: Callable[..., Any], x: Tensor) -> Any:
    torch.manual_seed(0)
    return fn(x)


def _list(out: Any) -> Any:
    return out if isinstance(out, (list, tuple)) else [out]


def branches(x: Tensor) -> Tensor:
    return x + 1 if x[0] > 0 else x


def takes_out(x: Tensor) -> Tensor:
    return x * sum(x.tolist())


def counts(x: Tensor) -> Tensor:
    return x[x > 0]


def counts_what_it_wrote(x: Tensor) -> Tensor:
    """The tensor that decides is none that an operation on x gave: x was written to a part of it."""
    mask = torch.zeros(3, dtype=torch.bool)
    mask[:2] = x[:2] > 0
    return x[mask]


def changes_what_it_holds(x: Tensor) -> Tensor:
    return HELD.add_(x)


def changes_a_part_of_it(x: Tensor) -> Tensor:
    HELD[0].mul_(x[0])
    return x + HELD


def is_equal(x: Tensor) -> Tensor:
    return x * float(torch.equal(x, HELD))


REFUSED = [branches, counts, counts_what_it_wrote, changes_what_it_holds, changes_a_part_of_it, is_equal]


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_what_reads_values_or_changes_what_it_holds_is_refused(fn: Callable[..., Any]):
    with pytest.raises(Unrecordable):
        record(fn, [torch.tensor([0.5, -1.0, 2.0])])
    assert torch.equal(HELD, torch.ones(3))


@pytest.mark.parametrize("fn", [takes_out, counts, counts_what_it_wrote], ids=lambda fn: fn.__name__)
def test_what_is_refused_is_traced_without_its_values_or_not_at_all(fn: Callable[..., Any]):
    graph = trace(fn, [torch.tensor([0.5, -1.0, 2.0])])
    other = torch.tensor([-0.5, 3.0, 1.0])
    assert torch.equal(graph(other), fn(other))
    with pytest.raises(Untraceable, match=r"test_record\.py:\d+: "):
        trace(branches, [other])


def test_inputs_are_left_alone_and_large_ones_are_not_run():
    x, y = torch.zeros(3), torch.ones(2, 1).expand(2, 3)
    graph = record(lambda a, b: a.add_(1) + b, [x, y])
    assert torch.equal(x, torch.zeros(3)) and graph(x, y).shape == (2, 3) and torch.equal(x, torch.ones(3))
    with pytest.raises(Unrecordable, match="large"):
        record(torch.sin, [torch.zeros(BYTES // 4 + 1)])
    with pytest.raises(Unrecordable, match="MiB"):
        record(lambda x: (x[:, None, None] + torch.zeros(2900, 1)) * torch.ones(2900), [torch.zeros(1)])


def test_a_tensor_that_was_made_of_others_is_no_constant():
    made = torch.ones(3, requires_grad=True).exp()
    with pytest.raises(Unrecordable, match="another's making"):
        record(lambda x: x * made, [torch.zeros(3)])
    torch.testing.assert_close(trace(lambda x: x * made, [torch.zeros(3)])(torch.ones(3)), made.detach())


def test_places_of_a_mask_that_is_known():
    x = torch.tensor([0.5, -1.0, 2.0])
    assert torch.equal(trace(masked, [x])(x), x[MASK])


GROUP = torch.tensor([2, 0, 1])


def by_groups(x: Tensor) -> Tensor:
    """As a loop over rows of data reads them."""
    total = torch.zeros(())
    for i in range(3):
        if GROUP[i] > 0 and HELD[i].item() == 1.0:
            total = total + x[GROUP[i]] * (i + 1) + x[GROUP.tolist()[i]].square()
    return total


def of_its_input(x: Tensor) -> Tensor:
    return x[x.argmax()] if x.tolist()[0] > 0 else x[0]


def test_what_is_held_is_read_and_what_follows_from_inputs_is_not():
    x = torch.tensor([0.5, -1.0, 2.0])
    both = torch.func.vmap(torch.func.grad_and_value(by_groups))
    for fn, at in (
        (by_groups, x),
        (lambda y: y * float(HELD.numpy()[0]), x),
        (both, x.expand(2, 3) * torch.tensor([[1.0], [3.0]])),
    ):
        graph = trace(fn, [torch.zeros_like(at)], held=True)
        assert all(torch.equal(a, b) for a, b in zip(_all(graph(at)), _all(fn(at)), strict=True))
        with pytest.raises(Untraceable):
            trace(fn, [at])
    for fn in (of_its_input, lambda y: by_groups(y) * y.sum().item(), lambda y: by_groups(torch.rand(3) + float(y[0]))):
        with pytest.raises(Untraceable):
            trace(fn, [x], held=True)


def through_numpy(x: Tensor) -> Tensor:
    room = torch.zeros(3)
    shared = room.numpy()
    room.copy_(x.detach())
    return x * float(shared[0])


def through_data(x: Tensor) -> Tensor:
    room = torch.zeros(3)
    room.data = x.detach()
    return x * room[0].item()


UNSEEN = {
    "numbers of a list": lambda x: torch.tensor([x[0], 1.0, x[1]]), "of a new one": lambda x: HELD.new_tensor([x[0]]),
    "of a typed one": lambda x: torch.FloatTensor([x[0], x[1]]), "whole numbers": lambda x: torch.tensor([x[0].long()]),
    "truths": lambda x: torch.tensor([x[0] > 0]), "memory of numpy": through_numpy, "memory of another": through_data,
    "memory of a capsule": lambda x: x * torch.from_dlpack(x.detach() * 2),
}  # fmt: skip


@pytest.mark.parametrize("way", UNSEEN)
def test_no_value_of_an_input_leaves_torch_unseen(way: str):
    """Baked into the graph, it would be that of the recording at every other input."""
    x = torch.tensor([0.5, -1.0, 2.0])
    for fn in (UNSEEN[way], torch.func.grad(lambda z: (z.sum() * UNSEEN[way](z)).sum())):
        for held in (False, True):
            with pytest.raises(Untraceable):
                trace(fn, [x], held=held)
    graph = trace(lambda z: z * torch.tensor([HELD[0], 2.0, HELD[1]]), [x], held=True)  # as what is held may
    assert torch.equal(graph(x), x * torch.stack([HELD[0], torch.tensor(2.0), HELD[1]]))


PLACES = {
    "k": lambda x, j, k: x[k], "jk": lambda x, j, k: x[j, k], "1k": lambda x, j, k: x[1, k],
    "k1": lambda x, j, k: x[k, 1], "all k": lambda x, j, k: x[:, k], "all jk": lambda x, j, k: x[:, j, k],
    "all k1": lambda x, j, k: x[:, k, 1], "k slice": lambda x, j, k: x[k, :, 0:1], "part k": lambda x, j, k: x[1:3, k],
}  # fmt: skip


@pytest.mark.parametrize("form", PLACES)
def test_a_whole_number_that_was_drawn_says_a_place(form: str):
    """`probs[z]` of one z: torch would take its value out."""
    fn, x = PLACES[form], torch.randn(4, 3, 3)
    graph = trace(fn, [x, torch.tensor(0), torch.tensor(0)])
    for j, k in ((torch.tensor(2), torch.tensor(1)), (torch.tensor(-1), torch.tensor(-2))):
        ours, own = graph(x, j, k), fn(x, j, k)
        assert torch.equal(ours, own) and ours.shape == own.shape


def views_what_it_writes(x: Tensor) -> Tensor:
    made = torch.zeros(3)
    part = made[1:]
    made.copy_(x)
    return (HELD * part.tolist()[0]).sum()


def test_a_list_of_what_has_no_content_ends_no_process():
    """`tolist` of a tensor within torch.func reads memory, which a fake one has none of."""
    with pytest.raises(Untraceable, match="takes the tensor out of torch"):
        trace(torch.func.grad_and_value(views_what_it_writes), [torch.zeros(3)], held=True)


def _all(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_a_graph_keeps_no_tensors_of_its_own():
    """Inductor hands each to the compiled code as one more input, which is then not kept for the next run."""
    for fn in (lambda x: x * HELD + torch.tensor(2.0), masked):
        made = trace(fn, [torch.zeros(3)])
        assert not list(made.graph.buffers()) and not list(made.graph.parameters()) and made.constants


def test_a_graph_for_another_process_is_the_same():
    """Pickled as a GraphModule, its draws would be drawn once, where it is read."""

    def fn(x: Tensor) -> list[Tensor]:
        return [x.split(1)[0] + torch.randn(3)[1:].new_zeros(2) * HELD[0], x.clone().clamp_(min=0.1, max=float("inf"))]

    graph = trace(fn, [torch.zeros(3)]).graph
    assert _unpacked(pickle.loads(pickle.dumps(_packed(graph)))).code == graph.code and "randn" in graph.code


def test_a_factor_that_does_not_exist_ends_no_recording():
    graph = record(lambda x: torch.linalg.cholesky(x).diagonal(), [-torch.eye(2)])
    assert torch.equal(graph(4 * torch.eye(2)), torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("spec", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_a_step_is_that_of_torch(spec: str):
    found = []
    for step in (take_step, lambda of: of.step()):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = getattr(torch.optim, spec)([p], lr=0.1)
        for k in range(3):
            p.grad = torch.tensor([0.5, float(k)])
            step(optimizer)
        found.append(p.detach())
    assert torch.equal(*found)


def test_gradients_of_a_function_are_those_of_torch(monkeypatch):
    """With and without weights, through functorch's levels, 0 for what the value does not depend on."""

    def fn(x: Tensor, y: Tensor) -> Tensor:
        return (x**3).sum()

    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.ones(2)

    def found() -> list[Tensor]:
        grads = torch.func.grad(fn, argnums=(0, 1))(x, y)
        second = torch.func.vmap(torch.func.grad(lambda z: torch.func.grad(lambda u: (u**3).sum())(z).sum()))(x[None])
        return [*grads, second, torch.func.vjp(lambda z: z.exp(), x)[1](x)[0], torch.func.grad(lambda z: x.sum())(y)]

    own = found()
    monkeypatch.setattr("torch._functorch.eager_transforms._autograd_grad", _gradients)
    assert all(map(torch.equal, own, found()))


def test_hooks_of_a_step_are_called():
    called: list[int] = []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: called.append(1))
    take_step(optimizer)
    assert called == [1]


def test_the_function_of_a_graph_binds_what_is_no_literal_and_lets_values_go():
    x = torch.tensor([1.0, -2.0, 3.0])

    def fn(x):
        parts = torch.where(x > 0, x, -torch.inf).to(torch.float64).split([1, 2])
        x.sin()  # nobody uses it
        return [parts[1] * 2, None, torch.full((2,), torch.nan, dtype=torch.float64)]

    recorded = trace(fn, [x])
    a, none, b = executable(recorded.graph, gradient=True)(x, *recorded.constants)
    assert a.tolist() == [-torch.inf, 6.0] and none is None and b.isnan().all() and b.dtype == torch.float64

    held = []  # of each large value: whether it is still there when the next one is made

    def noted(x):
        held.append(sum(ref() is not None for ref in made))
        out = x + 1.0
        made.append(weakref.ref(out))
        return out

    graph = torch.fx.Graph()
    value = graph.placeholder("x")
    for _ in range(4):
        value = graph.call_function(noted, (value,))
    graph.output(value)
    made = []
    executable(torch.fx.GraphModule(torch.nn.Module(), graph))(x)
    assert held == [0, 1, 1, 1]


def test_a_literal_that_is_folded_keeps_its_strides():
    """A chain whose table of transitions is written out ended in "view size is not compatible"."""

    def fn(x):
        return (torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).t() + x).t().view(6)

    recorded = trace(fn, [torch.tensor(1.0)])
    assert executable(recorded.graph)(torch.tensor(2.0), *recorded.constants).tolist() == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
