r"""Importance weights along a chain, of one path or the other, step by step.

    w = p(x, z_0..z_1) / q(z_0..z_1 | x),  z ~ q(z | x)      log 1/K Σ_k w_k ≤ log p(x) in expectation
    w = π(x) q(z | x) / p(x, z),  (x, z) ~ p                 draws of the model, weighed to a density π

The first is the guide as a proposal for the posterior: the importance-weighted bound. The second is the reverse chain
as a proposal for a target π(x), known but for its constant Z: the mean of w is Z, and k-hat and the effective number of
draws say whether to believe it.

Sources: Importance Weighted Autoencoders (Burda et al., 2016, arXiv:1509.00519); Pareto smoothed importance sampling
(Vehtari et al., 2024, arXiv:1507.02646).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.inference.diffusion.elbo_decomposition import require_chain, require_in_support
from ppgen.inference.evaluation.sample import dtype_of_program, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns


class _Weighed(NamedTuple):
    """Draws of the reverse chain with their weights to a target.

    Attributes:
        x: (n, D).
        log_w: (n,): log π(x) q(z | x) − log p(x, z).
        khat: Pareto shape of the largest weights: below 0.7 the draws can be corrected by them.
        ess: (Σ w)² / Σ w².
    """

    x: Tensor
    log_w: Tensor
    khat: float
    ess: float


@torch.no_grad()
def chain_weights(
    run: Run | Program,
    data: Mapping[str, Tensor],
    *,
    particles: int = 10,
    steps: int | None = None,
    seed: int | None = 0,
) -> Tensor:
    """log p(x, z) − log q(z | x) of `particles` whole paths z ~ q(z | x) of each row: (particles, rows).

    Their log-mean-exp over particles is a lower bound on log p(x) of the chain with `steps` steps, whatever the guide;
    their mean is its ELBO.

    Args:
        steps: T; None takes the chain's own. Each step is a network call.
    """
    program = require_chain(run)
    columns = prepare_columns(data, program, dtype_of_program(program))
    with ready(run, columns, seed, guide=False), program.running():
        x, context = columns["x"], program.context(columns)
        require_in_support(program, columns)
        q = program.forward(x, 1.0, **context)
        z = q.sample((particles,))
        log_w = program.base(**context).log_prob(z) - q.log_prob(z)
        for s, t in program.grid(steps):
            q = program.posterior(z, x, s, t)
            below = q.sample()
            log_w = log_w + program.reverse(z, s, t, **context).log_prob(below) - q.log_prob(below)
            z = below
        return log_w + program.likelihood(z, **context).log_prob(program.values(x))


@torch.no_grad()
def importance_sample(
    run: Run | Program,
    log_density: Callable[[Tensor], Tensor],
    n: int = 1000,
    *,
    steps: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int | None = 0,
) -> _Weighed:
    """n draws of the reverse chain, weighed to a target density π(x).

    Args:
        log_density: log π, (n, D) -> (n,), up to a constant.
        steps: T; None takes the chain's own.
        given: other columns of the model, one a draw.
    """
    from ppgen.inference.evaluation.psis import pareto_k

    program = require_chain(run)
    columns = prepare_columns(given, program, dtype_of_program(program), program.columns) if given else {}
    with ready(run, columns, seed, guide=False), program.running():
        context = program.context(columns)
        base = program.base(**context).expand([n])
        z = base.sample()
        path = [z]  # x is known last, and q(z | x) needs it
        log_p = base.log_prob(z)
        grid = program.grid(steps)
        for s, t in grid:
            p = program.reverse(path[-1], s, t, **context)
            path.append(p.sample())
            log_p = log_p + p.log_prob(path[-1])
        likelihood = program.likelihood(path[-1], **context)
        x = likelihood.sample()
        log_w = log_density(x) - log_p - likelihood.log_prob(x) + program.forward(x, 1.0, **context).log_prob(path[0])
        for (s, t), z, below in zip(grid, path, path[1:], strict=False):
            log_w = log_w + program.posterior(z, x, s, t).log_prob(below)
        w = np.asarray(log_w.double())
        relative = np.exp(w - w.max())
        return _Weighed(x, log_w, float(pareto_k(w[:, None])[0]), float(relative.sum() ** 2 / (relative**2).sum()))
