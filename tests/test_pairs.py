"""Pairs of least total distance, beside every permutation."""

from itertools import permutations

import torch
from known import normal
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.chains.pairs import optimal_pairs


def test_against_all_permutations():
    for seed in range(10):
        a, b = normal(5, 2, seed=seed), 3 + 2 * normal(5, 2, seed=seed + 100)
        cost = torch.cdist(a, b) ** 2
        totals = {p: float(cost[range(5), p].sum()) for p in permutations(range(5))}
        assert tuple(optimal_pairs(a, b).tolist()) == min(totals, key=totals.get)


def test_the_marginals_stay_and_in_a_line_the_order_does():
    a, b = normal(300, 1), normal(300, 1, seed=1)
    pairs = optimal_pairs(a, b)
    assert torch.equal(pairs.sort().values, torch.arange(300))
    assert torch.equal(b[pairs][a[:, 0].argsort()], b.sort(0).values)


def test_it_is_an_operation_of_a_graph():
    a, b = normal(7, 2), normal(7, 2, seed=2)
    graph = make_fx(lambda a, b: optimal_pairs(a, b), tracing_mode="fake")(a, b)
    assert torch.equal(graph(b, a), optimal_pairs(b, a)) and not torch.equal(graph(b, a), graph(a, b))
