r"""How probable the data are under the learned model: one log p(x) for every family of models.

    exact     no latents: log p(x) is the model's log-probability
    estimate  the same, where the model draws it without bias, as a flow does with a Hutchinson trace
    lower     ELBO = E_q[log w],  and  L_K = E log 1/K Σ_k w_k ≤ log p(x),  w_k = p(x, z_k) / q(z_k | x)

per datum where every latent is local to a row; one figure for all rows where some latent is global.
L_K rises to log p(x) with K (Burda et al. 2016, arXiv:1509.00519). Nats; bits/dim = −log p(x) / (D ln 2) where
the observed values are discrete, D their number a row.

Of a log-density that is itself drawn, l + ε with E ε = 0, a mean over draws is unbiased and a log mean of exponentials
is not: E exp ε > 1, and L_K may lie above log p(x). Then there is an ELBO, and no L_K and no weights. A factor that is
another one at each run, at the same latents, is such a log-density. Noise that the model draws outside of its sites and
that only moves the parameters of distributions is not: it is a latent that is drawn from its prior, and bounds are of
p(x) with it integrated out, which is said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.check import unvalidated
from ppgen.check.agreement import observed_in_support
from ppgen.check.auxiliary import auxiliary_fault
from ppgen.check.indices import warn_of_negative_indices
from ppgen.check.missing import validate
from ppgen.check.own_seed import seeds_itself
from ppgen.data import n_rows, take
from ppgen.data.precision import precision_for
from ppgen.draws import ManyTerms, SitesDiffer, one_draw
from ppgen.engine.graphs.gradient import shapes
from ppgen.engine.graphs.record import Largest
from ppgen.errors import PpgenError
from ppgen.inference.bounds import Setting, log_weights
from ppgen.inference.diffusion.elbo_decomposition import chain_elbo, require_chain
from ppgen.inference.diffusion.ode import ode_loglik
from ppgen.inference.diffusion.samplers import chain_of
from ppgen.inference.evaluation.estimates import Bound, LogLik, warn_of_scales
from ppgen.inference.evaluation.sample import dtype_of_program, forward_sites, program_of, ready, structure_of
from ppgen.program import Program
from ppgen.run import Run, default_dtype, prepare_columns
from ppgen.sites import is_delta, observed_columns, sample_sites
from ppgen.structure import Structure, shorter_run
from ppgen.terms import Term, Traces, drawn_density, stacked_terms, terms, unnamed_noise
from ppgen.terms import run as run_once

log = logging.getLogger("ppgen")

BLOCK = 2**21  # particles x rows x observed values at once: bounds the memory
LARGE, MOST_ENTRIES = 512, 2**25  # rows that always go together; entries of the largest tensor of more
MOST_TERMS = 2**26  # rows x particles at once, where the latents are shared
MOST_PARTICLES = 100  # particles at once, by which the rows of a block are counted
MOST_ESTIMATES = 20  # draws of a log-density that is drawn
COMPARED, COMPARED_ROWS = 256, 64  # log-densities of a site, of so many rows, evaluated anew to see if they differ,
MOST_COMPARED, MOST_RUNS = 2048, 16  # of all sites, and runs of the model
ODE_DRAWS = 4  # of z_0 and of Hutchinson's noise a row


class NoWeights(PpgenError):
    """There are no weights that tell how far a guide is from the posterior."""


class DrawnDensity(NoWeights):
    """The log-density of a site is itself drawn, as that of a long chain within is."""


@torch.no_grad()
def loglik(
    run: Run | Program,
    data: Any,
    *,
    particles: int | None = None,
    seed: int | None = 0,
    keep_weights: bool = False,
    ode: bool = False,
) -> LogLik:
    """log p(x) of each row: exact where nothing is latent, else the ELBO and the importance-weighted bound.

    Args:
        run: a run, or a program that was fitted.
        data: the columns.
        particles: K, draws of z a row; for a chain of more than a few steps, how many of its times are drawn. None:
            1 000, and 100 times of a chain.
        seed: of the draws.
        keep_weights: keeps all log weights (particles x rows of them).
        ode: for a Gaussian chain, log p(x) by its probability-flow ODE as well.

    Raises:
        PpgenError: data that the program does not take; a guide that is a point, whose ELBO is no bound; weights
            that are nan.
        DrawnDensity: they are asked for where the log-density of a site is itself drawn.
    """
    with _precise(run, data):
        return _evaluated(run, data, particles, seed, keep_weights, ode)


def _evaluated(
    run: Run | Program, data: Any, particles: int | None, seed: int | None, keep_weights: bool, ode: bool
) -> LogLik:
    """`loglik`, in the precision of now."""
    program = program_of(run)
    by_times = program.is_chain and not keep_weights and (ode or program.repeats)
    particles = (100 if by_times else 1000) if particles is None else particles
    if particles < 1:
        raise PpgenError(f"particles is {particles}; expected at least 1")
    data = prepare_columns(data, program, dtype_of_program(program))
    require_observed(run, data)
    validate(program, data)
    if by_times:
        return _of_chain(run, data, particles, seed, ode)
    if ode:
        raise PpgenError(f"{program.name} is no Gaussian chain, and so has no ODE; leave ode (--ode) out")
    with ready(run, data, seed):
        structure = structure_of(run, data)
        warn_of_negative_indices(program, data, structure.row_columns)
        with torch.random.fork_rng():
            few = _few(program, data, structure, COMPARED_ROWS)
            once, again = (run_once(program, few) for _ in range(2))
            require_no_point(program, few, once, again, structure)
        dims = _discrete_dims(once, n_rows(few, structure.row_columns), structure)
        warn_of_scales(sample_sites(once.p, factors=True), structure)
        n = n_rows(data, structure.row_columns)
        per = "row" if structure.by_row else "data set"
        if not structure.latents and not structure.names("auxiliary"):
            return LogLik((_no_latents(program, data, structure, particles),), per, n, 1, None, dims)
        drawn, noise = _drawn(program, few, once, per)
        if drawn and keep_weights:
            raise DrawnDensity(
                f"{drawn}: importance weights, k-hat and bounds by them cannot be formed; report the ELBO (loglik), or "
                "give the site a log_prob that is a function of its value"
            )
        many = _Blocks(program, structure)
        parts = [
            _reduce(*many.log_weights(block, particles), own, keep_weights)
            for block, own in _blocks(program, data, structure, particles)
        ]
        elbo, elbo_se, iw, iw_se, ess = (torch.cat([p[i] for p in parts]).numpy() for i in range(5))
        if np.isnan(elbo).any():
            raise PpgenError(
                f"the log weight of row {int(np.isnan(elbo).argmax())} is nan: the program fails there; run ppgen "
                "check on these data"
            )
        bounds: tuple[Bound, ...] = (Bound("elbo", "lower", elbo, elbo_se), Bound("iw", "lower", iw, iw_se))
        if drawn:
            log.warning("%s: no importance-weighted bound can be formed, and the ELBO is one if their mean is", drawn)
            return LogLik(bounds[:1], per, n, particles, None, dims)
        kept = torch.cat([p[5] for p in parts], 1).numpy() if keep_weights else None
        return LogLik(bounds, per, n, particles, ess, dims, kept, noise)


@contextmanager
def _precise(run: Run | Program, data: Any) -> Iterator[None]:
    """Within it, a program whose data ask for float64 (`precision_for`) is in it; a run keeps what it was fitted in."""
    program = program_of(run)
    tensors = [t for t in (*program.parameters(), *program.buffers()) if t.is_floating_point()]
    own = {t.dtype for t in tensors} or {torch.get_default_dtype()}
    if own != {torch.float32} or any(t.device.type != "cpu" for t in tensors):
        wanted = None
    elif isinstance(run, Run):
        wanted = None if tensors else run.config["fit"]["precision"]
    else:
        wanted = precision_for(data, "cpu")
    if wanted != "64-true":
        yield
        return
    with default_dtype(torch.float64):
        program.to(torch.float64)
        try:
            yield
        finally:
            program.to(torch.float32)


def _drawn(program: Program, few: Mapping[str, Tensor], once: Traces, per: str) -> tuple[str, str]:
    """Which log-density of a run is drawn, in words; and the site of noise that is integrated out, which is said.

    Args:
        few, once: rows, and a run on them.
        per: what the figures are for.
    """
    with torch.random.fork_rng():
        sites = terms(once)
        if (drawn := drawn_density(once, min(COMPARED, MOST_COMPARED // len(sites)))) or program.is_chain:
            return drawn, ""
        calls = min(max(COMPARED // max(sum(t.log_prob.numel() for t in sites), 1), 1), MOST_RUNS)
        name, factor = unnamed_noise(program, few, once.p, calls)
    if factor:
        return f"the factor {name!r} is drawn anew at each call", ""
    if name:
        log.warning(
            "the log_prob of %r differs between runs at the same latents, as %s draws what is no site: log p(x) of "
            "each %s is with that integrated out; draw it at a pyro.sample site to infer it",
            name, program.name, per,
        )  # fmt: skip
    return "", name


def _of_chain(run: Run | Program, data: Mapping[str, Tensor], times: int, seed: int | None, ode: bool) -> LogLik:
    """The ELBO by times drawn at random, and the ODE's figure after it."""
    found = chain_elbo(run, data, times=times, seed=seed)
    if not ode:
        program = require_chain(run)
        if not program.draws_by_steps:
            log.warning(
                "the ELBO is of the explicit chain of %s, by which it is not drawn from: log p(x) of its draws is that "
                "of the ODE, ode=True (--ode)", program.name,
            )  # fmt: skip
        return found
    program = chain_of(run, "the ODE")
    with ready(run, data, seed, guide=False):
        return found._replace(bounds=(*found.bounds, ode_loglik(program, data, draws=min(times, ODE_DRAWS))))


class _Blocks:
    """Log weights of blocks of rows: what is recorded of a block serves all of its shape."""

    def __init__(self, program: Program, structure: Structure):
        self.program, self.structure = program, structure
        self._many: dict[tuple, ManyTerms] = {}

    def log_weights(self, data: Mapping[str, Tensor], draws: int) -> tuple[Tensor, Tensor]:
        """log w, (draws, values): one value a row where the weights are a row's own; and what rows count, (values,) or
        one number for all. Observed values are checked."""
        t = run_once(self.program, data)
        for name in self.structure.names("observed"):
            observed_in_support(name, t.p.nodes[name], unvalidated(self.program, data))
        if draws == 1 and not self.structure.summed:
            found = stacked_terms([terms(t)])
        else:
            key = shapes(data)
            if key not in self._many:
                self._many[key] = ManyTerms(self.program, data, self.structure)
            try:
                # draws whose terms, one for each row, are together in memory
                most = max(1, MOST_TERMS // max(n_rows(data, self.structure.row_columns), 1))
                if most < draws:
                    parts = [min(most, draws - done) for done in range(0, draws, most)]
                    each = [self._weights(self._many[key](part, data)) for part in parts]
                    return torch.cat([log_w for log_w, _ in each]), each[0][1]
                found = self._many[key](draws, data)
            except SitesDiffer:
                one = [one_draw(self.program, data, self.structure) for _ in range(draws)]
                each = [self._weights(stacked_terms([found])) for found in one]
                return torch.cat([log_w for log_w, _ in each]), each[0][1]
        return self._weights(found)

    def _weights(self, found: Sequence[Term]) -> tuple[Tensor, Tensor]:
        s = Setting.of(self.structure).weighed(found, self.structure)
        log_w = log_weights(found, s)
        return log_w if log_w.dim() > 1 else log_w[:, None], torch.as_tensor(s.weights)


def _no_latents(program: Program, data: Mapping[str, Tensor], structure: Structure, particles: int) -> Bound:
    """log p(x) as the model gives it; a mean of draws where its log-density, or a bound on it, is itself drawn."""
    many, blocks = _Blocks(program, structure), list(_blocks(program, data, structure, 1))

    def evaluate() -> Tensor:
        return torch.cat([many.log_weights(b, 1)[0][0, own] for b, own in blocks]).double()

    values = evaluate()
    few = _few(program, data, structure, 4) if structure.by_row else data
    if torch.equal(many.log_weights(few, 1)[0], many.log_weights(few, 1)[0]):
        return Bound("exact", "exact", values.numpy(), np.zeros(len(values)))
    draws = torch.stack([values, *(evaluate() for _ in range(max(1, min(particles, MOST_ESTIMATES) - 1)))])
    with torch.random.fork_rng(devices=[]):  # a chain draws terms of a bound, and a trace of Hutchinson's is unbiased
        chain = any(s["infer"].get("drawn") for s in sample_sites(run_once(program, few).p).values())
    name, kind = ("elbo", "lower") if chain else ("estimate", "estimate")
    return Bound(name, kind, draws.mean(0).numpy(), (draws.std(0) / len(draws) ** 0.5).numpy())


def _blocks(
    program: Program, data: Mapping[str, Tensor], structure: Structure, particles: int
) -> Iterator[tuple[dict[str, Tensor], slice]]:
    """Blocks of rows of one size, and which of a block's rows are new; all rows where the weights are no row's own."""
    rows = structure.row_columns
    n, width = n_rows(data, rows), max(1, sum(data[c][0].numel() for c in rows if c in data))
    size = min(n, max(1, BLOCK // (width * min(particles, MOST_PARTICLES))))
    if size > LARGE and structure.by_row:
        size = min(size, _rows_within(program, data, structure))
    with torch.random.fork_rng(devices=[]):
        whole = size < n and structure.by_row and _few(program, data, structure, size) is data
    if not structure.by_row or program.fixed_rows or whole:
        yield dict(data), slice(None)
        return
    for i in range(0, n, size):
        first = min(i, n - size)  # the last block reaches back, so that all have one shape
        yield take(data, slice(first, first + size), rows), slice(i - first, None)


def _rows_within(program: Program, data: Mapping[str, Tensor], structure: Structure) -> int:
    """How many rows make no tensor of more than `MOST_ENTRIES`, by a run of a few: a network may make much of a row."""
    with torch.random.fork_rng(devices=[]):
        few = _few(program, data, structure, COMPARED_ROWS)
        if few is data:
            return n_rows(data, structure.row_columns)
        with Largest() as made:
            for trace in run_once(program, few):
                trace.compute_log_prob()
    return max(LARGE, MOST_ENTRIES * COMPARED_ROWS // max(made.entries, 1))


def require_observed(run: Run | Program, data: Mapping[str, Any]) -> None:
    """Refuses data without a column that the fitted program observes."""
    absent = [n for n in run.example if n not in data] if isinstance(run, Run) else []
    if not absent or not isinstance(run, Run):
        return
    program = run.program
    sites = forward_sites(lambda rows: program.call("model", rows), run.example, 1)
    observed = set(observed_columns(sites, run.example).values())
    if gone := [n for n in absent if n in observed]:
        raise PpgenError(
            f"the data have no column {gone[0]!r}, which {program.name} was fitted to, and so no likelihood; add that "
            "column, or predict it (ppgen predict)"
        )


def require_no_point(
    program: Program, few: Mapping[str, Tensor], once: Traces, again: Traces, structure: Structure
) -> None:
    """
    Args:
        few: rows.
        once, again: two runs on them.
    """
    one, two = once.q.nodes, again.q.nodes
    for name in structure.latents:
        if name in one and name in two and is_delta(one[name]) and torch.equal(one[name]["value"], two[name]["value"]):
            if seeds_itself(program, few):
                raise PpgenError(
                    f"{program.name} sets the seed itself each time it is run, so that its draws are all one, and no "
                    "mean is one over draws; take that out of it (torch.manual_seed, pyro.set_rng_seed), and fit again"
                )
            raise PpgenError(
                f"the guide gives the latent {name!r} as a point, and log p(x, {name}) at a point is no bound on "
                "log p(x); fit with a guide that has a spread (--guide AutoNormal, or AutoLaplaceApproximation)"
            )
    if fault := auxiliary_fault(program, few, once, structure):
        raise PpgenError(f"there is no bound on log p(x): {fault}")


def _few(program: Program, data: Mapping[str, Tensor], structure: Structure, n: int) -> Mapping[str, Tensor]:
    """The first n rows; all where the program runs on these only."""
    found = shorter_run(program, data, n, structure.row_columns)
    return data if found is None else found[0]


def _reduce(log_w: Tensor, counts: Tensor, own: slice, keep: bool) -> tuple[Tensor, ...]:
    """ELBO, its s.e., the importance-weighted bound, its s.e. (delta method), each times what a row counts, and
    ESS = (Σ w)² / Σ w²."""
    log_w = log_w[:, own].double()
    counts = counts.expand(log_w.shape[1:]) if counts.numel() == 1 else counts[own]
    k = len(log_w)
    elbo = log_w.mean(0)
    total, squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    ess = (2 * total - squares).exp()
    elbo_se = log_w.std(0) / math.sqrt(k) if k > 1 else torch.full_like(elbo, math.nan)
    iw_se = ((1 / ess - 1 / k).clamp(min=0) * k / (k - 1)).sqrt() if k > 1 else elbo_se  # sd of w over its mean, √K
    bounds = (counts * v for v in (elbo, elbo_se, total - math.log(k), iw_se))
    return *bounds, ess, log_w if keep else log_w[:0]


def _discrete_dims(once: Traces, rows: int, structure: Structure) -> int | None:
    """Observed values a row, if all are discrete, by a run on so many rows."""
    if any(not structure[name].discrete for name in structure.names("observed")):
        return None
    return sum(once.p.nodes[n]["value"].numel() for n in structure.names("observed")) // rows or None
