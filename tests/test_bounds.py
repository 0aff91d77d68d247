"""Formulas on terms: weights by row, what N/B multiplies, the score function's costs, on terms written by hand."""

from __future__ import annotations

import math

import torch

from ppgen.inference.bounds import Setting, _part, log_mean_exp, log_weights, over_rows, score_function
from ppgen.inference.objectives import analytic
from ppgen.terms import Term, sum_to

DATA = frozenset(["data"])
NOTHING = torch.empty(0)


def term(role: str, log_prob, dims=("data",), **more) -> Term:
    rows = DATA & set(dims)
    value = torch.as_tensor(log_prob).double()
    return Term(role, role, NOTHING, value, more.pop("density", value), dims, frozenset(rows), **more)


P = term("prior", [[1.0, 2.0], [3.0, 4.0]])  # two draws of two rows
Q = term("guide", [[0.5, 0.5], [1.0, 1.0]], order=0)
X = term("likelihood", torch.arange(12.0).reshape(2, 3, 2), ("rater", "data"))


def test_weights_by_row_sum_over_every_other_plate():
    s = Setting(DATA, by_row=True, n_over_b=5.0)
    expected = P.log_prob - Q.log_prob + X.log_prob.sum(1)
    assert torch.equal(log_weights([P, Q, X], s), expected), "N/B stands outside of the log of a mean"
    assert float(over_rows(log_mean_exp(expected), s)) == float(5 * (expected.logsumexp(0) - math.log(2)).sum())


def test_one_weight_for_all_rows_has_n_over_b_inside():
    s = Setting(DATA, by_row=False, n_over_b=5.0)
    prior = term("prior", [1.0, 2.0], ())
    assert torch.equal(log_weights([prior, X], s), prior.log_prob + 5 * X.log_prob.sum((1, 2)))


def test_the_kl_weight_is_that_of_latents_in_the_target_only():
    s = Setting(DATA, by_row=True, kl_weight=0.25)
    assert torch.equal(_part(P, s, target=True), 0.25 * P.log_prob)
    assert torch.equal(_part(P, s, target=False), P.log_prob)
    assert torch.equal(_part(Q, s, target=True), -0.25 * Q.log_prob)
    assert torch.equal(_part(X, s, target=True), X.log_prob)


def test_a_reweighted_term_is_trained_on_and_not_reported():
    t = X._replace(target=2 * X.log_prob)
    s = Setting(DATA, by_row=True)
    assert torch.equal(_part(t, s, target=True), 2 * X.log_prob) and torch.equal(_part(t, s, target=False), X.log_prob)


def test_the_score_functions_cost_is_that_of_the_same_row_less_the_other_draws_mean():
    log_q = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double().requires_grad_()
    q = term("guide", log_q.detach(), density=log_q, order=0, pathwise=False)
    s = Setting(DATA, by_row=True)
    cost = P.log_prob + X.log_prob.sum(1) - log_q.detach()
    (gradient,) = torch.autograd.grad(score_function([P, X, q], s)[0], log_q)
    assert torch.allclose(gradient, cost - cost.flip(0))


def test_a_dimension_that_is_no_plate_belongs_to_one_draw():
    """A latent of batch shape (2,) without a plate: its score is joint, its cost everything."""
    log_q = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double().requires_grad_()
    q = term("guide", log_q.detach(), ("guide_dim_0",), density=log_q, order=0, pathwise=False)
    cost = X.log_prob.sum((1, 2)) - log_q.detach().sum(1)
    (gradient,) = torch.autograd.grad(score_function([X, q], Setting(DATA, by_row=False))[0], log_q)
    assert torch.allclose(gradient, (cost - cost.flip(0))[:, None].expand(2, 2))


def test_a_term_without_rows_is_the_same_for_each():
    one = term("prior", [1.0, 2.0], ())
    assert sum_to(one, one.log_prob, DATA, lead=1).shape == (2, 1)


def test_free_bits_count_rows_and_no_elements_of_plates_within():
    kl = term("kl", -torch.full((1, 2, 3), 0.5), ("data", "g"))
    target, bound = analytic.objective([kl], Setting(DATA, by_row=True), free_bits=1.0)
    assert (float(target), float(bound)) == (-3.0, -3.0)  # 1.5 nats a row: more than the one that is free
    assert float(analytic.objective([kl], Setting(DATA, by_row=True), free_bits=2.0)[0]) == -4.0
