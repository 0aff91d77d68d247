"""Operations that are kept whole beside the same, one draw after the other."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli

from ppgen.engine.graphs.executable import executable
from ppgen.engine.graphs.together import _addmm, _cross_entropy, kept_whole
from ppgen.engine.graphs.trace import trace

ROWS, DRAWS = 5, 9


@pytest.mark.parametrize("dims", [(0, None, None), (1, None, None), (0, 0, None), (0, None, 0), (0, 0, 1)])
def test_draws_of_each_argument(double, dims):
    """x, the target, the weights: each with draws or without."""
    x, target, w = torch.randn(DRAWS, ROWS, 4), (torch.rand(DRAWS, ROWS, 7) > 0.5).double(), torch.randn(DRAWS, 4, 7)
    b, whole = torch.randn(7), [x, target, w]

    def model(x, target, w):
        return [-_cross_entropy(_addmm(b, x, w), target), _addmm(b, x, w).sum(0)]

    def by_torch(x, target, w):
        logits = b + x @ w
        return [Bernoulli(logits=logits).log_prob(target), logits.sum(0)]

    inputs = [v[0] if d is None else v.movedim(0, d) for v, d in zip(whole, dims, strict=True)]
    ours = torch.func.vmap(model, in_dims=dims)(*inputs)
    one = [by_torch(*(v[0 if d is None else i] for v, d in zip(whole, dims, strict=True))) for i in range(DRAWS)]
    for a, each in zip(ours, zip(*one, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(each))


def test_a_graph_with_them_and_one_without():
    net, target = torch.nn.Linear(4, 7), torch.ones(ROWS, 7)
    traced = trace(lambda z: [Bernoulli(logits=net(z)).log_prob(target)], [torch.randn(ROWS, 4)])
    graph = kept_whole(traced.graph)
    assert {_addmm, _cross_entropy} <= {n.target for n in graph.graph.nodes}
    z = torch.randn(DRAWS, ROWS, 4)
    with torch.no_grad():
        run = executable(graph)
        (ours,) = torch.func.vmap(lambda z: run(z, *traced.constants))(z)
        torch.testing.assert_close(ours, Bernoulli(logits=net(z)).log_prob(target))
    other = trace(lambda z: [z.sin()], [z]).graph
    assert kept_whole(other) is other
