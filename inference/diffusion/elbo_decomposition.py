r"""The bound of a chain, term by term: where its nats go.

    −ELBO = KL(q(z_1 | x), p(z_1))  +  Σ_i KL_i  −  E log p(x | z_0)
            prior                      each time     reconstruction

A row's times are drawn one in each of K equal strata, so that K = T takes every step of the chain once: the ELBO of the
explicit program, its z_t drawn anew for every step. Blocks of rows and times are as large as fits into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.chains.chain import Chain
from ppgen.chains.chain_terms import reconstruction, terms
from ppgen.check.agreement import observed_in_support
from ppgen.data import n_rows, take
from ppgen.errors import PpgenError, require_known
from ppgen.inference.evaluation.estimates import Bound, LogLik
from ppgen.inference.evaluation.sample import dtype_of_program, program_of, ready
from ppgen.nested import drawn_times
from ppgen.program import Program
from ppgen.run import Run, prepare_columns
from ppgen.terms import run as run_once

__all__ = ["ElboDecomposition", "chain_elbo", "chains_within", "elbo_decomposition"]

BLOCK = 2**19  # rows x times x observed values at once


class ElboDecomposition(NamedTuple):
    """The terms of the bound, nats a row, means over the rows.

    Attributes:
        prior, reconstruction: what the ends cost: KL(q(z_1 | x), p(z_1)), and −E log p(x | z_0).
        times: the ends of the intervals of time, from 0 to 1.
        kl: what each interval costs, one fewer.
        prior_se, reconstruction_se, kl_se: Monte Carlo standard errors.
        gamma: −log SNR at `times`, nan where the program has no schedule.
        dims: observed values a row, where they are discrete: nats over dims · ln 2 are bits/dim. Else None.
        rows: number of rows.
    """

    prior: float
    prior_se: float
    times: np.ndarray
    kl: np.ndarray
    kl_se: np.ndarray
    reconstruction: float
    reconstruction_se: float
    gamma: np.ndarray
    dims: int | None
    rows: int

    @property
    def elbo(self) -> float:
        """Nats a row: a lower bound on log p(x)."""
        return -(self.prior + float(self.kl.sum()) + self.reconstruction)

    @property
    def elbo_se(self) -> float:
        return math.sqrt(self.prior_se**2 + self.reconstruction_se**2 + float((self.kl_se**2).sum()))

    def bits_per_dim(self, nats: float) -> float | None:
        """A cost in nats a row as bits/dim; None where the observed values are continuous."""
        return None if self.dims is None else nats / (self.dims * math.log(2))


@torch.no_grad()
def elbo_decomposition(
    run: Run | Program,
    data: Mapping[str, Tensor],
    *,
    within: str | None = None,
    intervals: int = 50,
    seed: int | None = 0,
) -> ElboDecomposition:
    """The terms of a chain's bound on data.

    Args:
        within: the site whose distribution is a chain, "z" or "z/u", of a program that has one within
            (`ppgen.sample`): its bound at one draw of the guides a row.
        intervals: of time, each one draw a row; with T steps at most T.
        seed: of the draws.

    Raises:
        PpgenError: a program that is no chain, or that has none at that site.
    """
    if within is None:
        program = require_chain(run)
        columns: Mapping[str, Tensor] = prepare_columns(data, program, dtype_of_program(program))
    else:
        found = chains_within(run, data, seed=seed)
        require_known("chain", within, tuple(found) or ("none",))
        program, columns = found[within]
    return _decomposed(program, columns, intervals, seed)


def chains_within(
    run: Run | Program, data: Mapping[str, Tensor], *, seed: int | None = 0
) -> dict[str, tuple[Chain, dict[str, Tensor]]]:
    """By site, the chains within a program and their columns, a row for each element of the plates around them, where
    the guides have drawn their values."""
    program = program_of(run)
    columns = prepare_columns(data, program, dtype_of_program(program))
    with ready(run, columns, seed), drawn_times():
        nodes = run_once(program, columns).p.nodes
    sites = {n: s["infer"]["chain"] for n, s in nodes.items() if s["type"] == "sample" and "chain" in s["infer"]}
    return {n.removesuffix(f"/{own}"): (chain, rows) for n, (own, chain, rows) in sites.items()}


def _decomposed(program: Chain, columns: Mapping[str, Tensor], intervals: int, seed: int | None) -> ElboDecomposition:
    k = min(intervals, program.steps) if not program.limit else intervals
    with ready(program, columns, seed, guide=False):
        found = [_of_rows(program, batch, k, 1) for batch in _blocks(program, columns, k)]
        cost, start, end = (torch.cat([f[i] for f in found], 1).double() for i in range(3))
        n = cost.shape[1]
        times = torch.linspace(0, 1, k + 1)
        schedule = getattr(program, "schedule", None)
        gamma = schedule(times) if schedule is not None else torch.full_like(times, math.nan)

        def se(x: Tensor) -> Tensor:
            return x.std(-1) / math.sqrt(n) if n > 1 else torch.full(x.shape[:-1], math.nan)

        return ElboDecomposition(
            prior=-float(start.mean()), prior_se=float(se(start[0])), times=times.numpy(),
            kl=(cost.mean(1) / k).numpy(), kl_se=(se(cost) / k).numpy(),
            reconstruction=-float(end.mean()), reconstruction_se=float(se(end[0])), gamma=gamma.numpy(),
            dims=_dims(program, columns), rows=n,
        )  # fmt: skip


@torch.no_grad()
def chain_elbo(run: Run | Program, data: Mapping[str, Tensor], *, times: int = 100, seed: int | None = 0) -> LogLik:
    """The ELBO of each row: all T terms of the chain where times >= T, else one of each of `times` strata.

    Args:
        times: network calls a row.
        seed: of the draws.
    """
    program = require_chain(run)
    columns = prepare_columns(data, program, dtype_of_program(program))
    k = times if program.limit else min(times, program.steps)
    parts: list[Tensor] = []
    with ready(run, columns, seed, guide=False):
        n = n_rows(columns)
        for batch in _blocks(program, columns, k):
            cost, start, end = _of_rows(program, batch, k, k)
            parts.append((start + end - cost).double())
        values = torch.cat(parts, 1)
    se = values.std(0) / math.sqrt(k) if k > 1 else torch.full((n,), math.nan)
    bound = Bound("elbo", "lower", values.mean(0).numpy(), se.numpy())
    return LogLik((bound,), "row", n, k, None, _dims(program, columns))


def _of_rows(program: Chain, batch: Mapping[str, Tensor], k: int, ends: int) -> tuple[Tensor, Tensor, Tensor]:
    """T KL at one time of each of k strata, (k, rows); prior and reconstruction, (ends, rows)."""
    with program.running():
        x, columns = batch["x"], program.context(dict(batch))
        n = len(x)
        require_in_support(program, batch)
        start = -program.prior(x, **columns).expand(ends, n)
        u = torch.rand(k, n, dtype=start.dtype, device=start.device)
        t = (torch.arange(k, dtype=u.dtype, device=u.device)[:, None] + u) / k
        cost = terms(program, x, t.clamp(max=1 - 1e-6), columns)[0]
        return cost, start, torch.stack([reconstruction(program, x, columns) for _ in range(ends)])


def require_in_support(program: Chain, columns: Mapping[str, Tensor]) -> None:
    """Refuses values of x that p(x | z_0) cannot give, whose log-probability would be that of others."""
    values, first = program.values(columns["x"]), take(columns, slice(0, 1))
    fn = program.likelihood(torch.zeros_like(values[:1]), **program.context(dict(first)))
    observed_in_support("x", {"fn": fn, "value": values, "mask": None})


def _blocks(program: Chain, columns: Mapping[str, Tensor], k: int) -> Iterator[dict[str, Tensor]]:
    n, width = n_rows(columns), program.values(columns["x"][:1]).numel()
    size = max(1, BLOCK // (width * k))
    for i in range(0, n, size):
        yield take(columns, slice(i, i + size))


def _dims(program: Chain, columns: Mapping[str, Tensor]) -> int | None:
    """Observed values a row, if they are discrete."""
    few = take(columns, slice(0, 1))
    with program.running():
        context = program.context(dict(few))
        values = program.values(few["x"])
        discrete = program.likelihood(torch.zeros_like(values), **context).support.is_discrete
    return values.shape[-1] if discrete else None


def require_chain(run: Run | Program) -> Chain:
    """The program, which has to be a chain."""
    program = program_of(run)
    if not isinstance(program, Chain):
        part = any(p.is_chain for p in program.inner_programs)
        remedy = "for one within it take elbo_decomposition(..., within=)" if part else "take model diffusion"
        raise PpgenError(f"{program.name} is no chain of latents, which this is for; {remedy}")
    return program
