r"""The importance-weighted bound by score functions, each with a baseline from the other draws: for discrete latents.

    ∇L̂ + Σ_k (L̂ − L̂_{−k}) ∇ log q(z_k | x),   L̂ = log 1/K Σ_k w_k

L̂_{−k} has in the place of w_k the geometric mean of the others. Unbiased for the gradient of E L̂; no derivative with
respect to a latent is taken.

Source: Variational Inference for Monte Carlo Objectives (Mnih & Rezende 2016, arXiv:1602.06725).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, of_weights, over_rows, scored, with_gradient_of
from ppgen.terms import Term

SUMMARY = "importance-weighted bound by score functions with a baseline a draw"
TERMS = "drawn"
PATHWISE = False
GRADIENT = "score"


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The bound, with the gradient above of the same with KL-weighted terms."""
    _, log_w, log_q = scored(terms, s)
    value = log_mean_exp(log_w)
    k = len(log_w)
    mean_of_others = (log_w.sum(0) - log_w) / (k - 1)
    each = torch.eye(k, dtype=torch.bool, device=log_w.device).view(k, k, *[1] * (log_w.dim() - 1))
    without = log_mean_exp(torch.where(each, mean_of_others, log_w[:, None]))  # (left out, ...)
    surrogate = value + ((value - without).detach() * log_q).sum(0)
    target, bound = of_weights(log_mean_exp, terms, s)
    return with_gradient_of(target, over_rows(surrogate, s)), bound
