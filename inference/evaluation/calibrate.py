r"""Simulation-based calibration: are the posteriors of a pair right on average over data that its model can give?

    θ* ~ p(θ),  x* ~ p(x | θ*),  θ_1 ... θ_L ~ q(θ | x*)      the rank of θ* among them is uniform on 0 ... L

if q is the posterior, for every function of θ and x; here each entry of each latent, and log p(x* | θ), which sees a
guide that ignores the data. Ranks of equal values (discrete latents) are drawn among those that they could be.

A guide that is fitted to one data set is fitted anew to each simulated one, all at once. A guide that reads local
latents off their row needs one fit, to thousands of simulated rows (a run's guide is taken as it is): each further row
is a simulation.

    contraction  1 − Var(θ | x) / Var(θ), mean over the simulations: 0 where the data tell nothing
    z-score      (E[θ | x] − θ*) / sd(θ | x): mean 0 and sd 1 where calibrated

Sources: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al. 2018,
arXiv:1804.06788); Simulation-Based Calibration Checking for Bayesian Computation (Modrák et al. 2023,
arXiv:2211.02383), for the likelihood as a test quantity; Towards a Principled Bayesian Workflow (Betancourt 2020), for
contraction and z-score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.check import check, columns, running_of
from ppgen.check.given_columns import other_values
from ppgen.check.missing import validate
from ppgen.data import n_rows, row_columns, take, tensors
from ppgen.distributions import Flat
from ppgen.distributions.status import WithStatus
from ppgen.draws import Many
from ppgen.engine.density.joint import entry_labels
from ppgen.errors import PpgenError, whole_number
from ppgen.handlers import Unobserve
from ppgen.inference.evaluation import ecdf_bands
from ppgen.inference.evaluation.sample import dtype_of_program, program_of, ready
from ppgen.inference.training.fit import fit
from ppgen.inference.training.refit import refit as fit_each
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding
from ppgen.memory import require_memory
from ppgen.program import Program
from ppgen.run import Run, prepare_columns
from ppgen.sites import given_value, innermost, is_deterministic, is_factor, sample_sites
from ppgen.structure import Structure
from ppgen.terms import Traces, guide_run, latents_of, model_run, run, terms, total, value_of

LEVEL, SURE = 0.05, 0.005  # of all quantities together: below the former chance is suspected, below the latter not
LIKELIHOOD = "log p(x | z)"
BATCH, TRAINING = 256, 40  # rows a step, and how many such batches one network sees


class _Calibration(NamedTuple):
    """What `calibrate` returns. P parameters: the entries of the latents, and the log-likelihood.

    Attributes:
        names: of the parameters.
        ranks: (S, P), each from 0 to draws; u: the same as numbers in [0, 1], ties and steps smoothed by chance.
        draws: L.
        p: probability of such an ECDF of ranks if calibrated, by parameter, corrected for their number.
        contraction, z_mean, z_sd: by parameter; nan for the log-likelihood.
        band: the simultaneous band of the ECDFs, of level 0.05 for all parameters together.
        findings: the first says whether it is calibrated, the others what fails; printed, each is a sentence.
    """

    names: list[str]
    ranks: np.ndarray
    u: np.ndarray
    draws: int
    p: np.ndarray
    contraction: np.ndarray
    z_mean: np.ndarray
    z_sd: np.ndarray
    band: ecdf_bands.Band
    findings: list[Finding]

    def __repr__(self) -> str:  # no arrays
        return "\n".join(map(str, self.findings))

    @property
    def passes(self) -> bool:
        return bool((self.p > LEVEL).all())

    def figures(self) -> dict[str, Any]:
        """What JSON holds of it."""
        per = {n: {"p": float(self.p[i]), "contraction": float(self.contraction[i]), "z_mean": float(self.z_mean[i]),
                   "z_sd": float(self.z_sd[i]), "ecdf": ecdf_bands.ecdf(self.u[:, i]).tolist()}
               for i, n in enumerate(self.names)}  # fmt: skip
        at = {"z": self.band.z.tolist(), "low": self.band.low.tolist(), "high": self.band.high.tolist()}
        return {"simulations": len(self.u), "draws": self.draws, "passes": self.passes, "parameters": per, "band": at,
                "findings": [f.as_dict() for f in self.findings]}  # fmt: skip


def calibrate(
    run: Run | Program,
    data: Any,
    *,
    simulator: Program | None = None,
    simulations: int = 200,
    draws: int = 99,
    refit: bool | None = None,
    guide: str | None = None,
    steps: int = 1000,
    lr: float = 0.05,
    particles: int = 4,
    seed: int = 0,
) -> _Calibration:
    """Calibrates a pair on data simulated by its model (or another program's).

    Args:
        run: a run, whose model keeps its learnt parameters; or a program.
        data: columns: covariates are taken from them, and the shapes of what is simulated.
        simulator: the program that simulates; None: the pair's own model. It has the same sites.
        simulations: S: data sets, or rows where every latent is local and the guide reads rows.
        draws: L, of each posterior.
        refit: whether the guide is fitted to each simulated data set; None: unless it reads local latents off rows.
        guide: name of a guide that replaces the program's.
        steps, lr, particles: of each fit.
        seed: of everything random.

    Raises:
        PpgenError: a model that cannot simulate: an improper prior, an observed site that is no column or has censored
            values; no latents.
    """
    program = program_of(run)
    simulations, draws = whole_number("simulations", simulations, 20), whole_number("draws", draws, 9)
    steps = whole_number("steps", steps, 1)
    require_memory(8 * simulations * draws, f"the ranks of {simulations} simulations among {draws} draws", "take fewer")
    data = prepare_columns(data, program, dtype_of_program(program))
    columns(program, data)
    validate(program, data)
    with ready(run, data, seed):
        if not isinstance(run, Run) or guide is not None:
            named = guide or (None if program.has_guide else program.default_guide)
            with running_of(program, data):
                program.setup(data, named)
        structure = check(program, data, learn=False)
        _require_uncensored(program, data)
        if not structure.latents:
            raise PpgenError(f"{program.name} has no latent, so there is no posterior to calibrate; look at its PPC")
        made = simulator or program
        with running_of(made, data):
            if simulator is not None:
                made.setup(data, None)
            observed = _observed(made, data)
        by_row = structure.by_row and not program.fixed_rows
        if refit is None:
            refit = not by_row
        rng = np.random.default_rng(seed)
        own = {k: v.detach().clone() for k, v in program.state_dict().items()}
        if by_row and not refit:
            if not isinstance(run, Run):
                _, rows_ = _simulated_rows(made, data, structure, observed, TRAINING * BATCH, rng)
                _trained(program, data, rows_, steps, lr, particles, seed)
            true, sets = _simulated_rows(made, data, structure, observed, simulations, rng)
            names, truth, many = _compared(_Posterior(program, structure, sets), true, sets, draws, rows=True)
            program.load_state_dict(own)
            return _calibration(names, truth, many, draws, rng, None if isinstance(run, Run) else steps)
        drawn = [_simulated(made, data, structure, observed) for _ in range(simulations)]
        parameters: list[dict[str, Tensor]] = [{}] * simulations
        if refit:
            changed = {c: torch.stack([x[c] for _, x in drawn]) for c in observed.values()}
            parameters = _fitted(program, structure, data, changed, steps, lr, particles)
        rows, posterior = [], _Posterior(program, structure, data)
        for (true, x), values in zip(drawn, parameters, strict=True):
            program.load_state_dict(own | values)
            rows.append(_compared(posterior, true, dict(data) | x, draws, rows=False))
        program.load_state_dict(own)
        truth, many = (np.concatenate([found[i] for found in rows]) for i in (1, 2))
        return _calibration(rows[0][0], truth, many, draws, rng, steps if refit else None)


# -- simulating ------------------------------------------------------------------------------------


def _observed(program: Program, data: Mapping[str, Tensor]) -> dict[str, str]:
    """The column that each observed site observes."""
    with torch.random.fork_rng(), torch.no_grad():
        trace = model_run(program, data)
    places = {v.data_ptr(): k for k, v in tensors(data).items()}
    found = {}
    for name, site in sample_sites(trace, factors=True).items():
        if is_deterministic(site):
            continue
        if is_factor(site):
            raise PpgenError(f"the factor {name!r} has no draws, so that {program.name} cannot simulate data")
        if isinstance(innermost(site["fn"]), Flat):
            raise PpgenError(
                f"the prior of {name!r} is flat, and no data can be drawn from it; give it a proper prior to calibrate"
            )
        if site["is_observed"] and not site["fixed"]:
            given = given_value(site)
            column = places.get(given.data_ptr()) or _as_numbers(program, data, name, given)
            if column is None or given.shape != data[column].shape:
                raise PpgenError(
                    f"the observed site {name!r} is no column as it stands, so that data cannot be simulated; observe "
                    "the column itself, and transform within the model's distribution"
                )
            found[name] = column
    return found


def _require_uncensored(program: Program, data: Mapping[str, Tensor]) -> None:
    """
    Raises:
        PpgenError: rows are censored, by a column that says so of the recorded values and of no draw.
    """
    with torch.random.fork_rng(), torch.no_grad(), running_of(program, data):
        sites = sample_sites(model_run(program, data))
    for name, site in sites.items():
        fn = innermost(site["fn"])
        if isinstance(fn, WithStatus) and fn.status is not None and bool(fn.status.count_nonzero()):
            n = int(fn.status.expand(fn.batch_shape).count_nonzero())
            raise PpgenError(
                f"{n} of {fn.batch_shape.numel()} values of {name!r} are censored, and what censors a simulated one is "
                "not known; leave out the column that says which (calibrate the program on data where all are seen)"
            )


def _as_numbers(program: Program, data: Mapping[str, Tensor], site: str, given: Tensor) -> str | None:
    """The column that a site observes in another dtype, counts as floats; other values tell that nothing else is done
    to it."""

    def is_cast(values: Tensor, value: Tensor) -> bool:
        return values.shape == value.shape and values.dtype != value.dtype and torch.equal(values.to(value), value)

    for name, own in tensors(data).items():
        if not is_cast(own, given):
            continue
        for other in (*other_values(own), 2 * own + 1):
            with torch.random.fork_rng(), torch.no_grad():
                sites = model_run(program, {**data, name: other}).nodes
            if not is_cast(other, given_value(sites[site])):
                return None
        return name
    return None


@torch.no_grad()
def _simulated(
    program: Program, data: Mapping[str, Tensor], structure: Structure, observed: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Latents and columns, one draw of the joint."""
    with Unobserve():
        sites = sample_sites(model_run(program, data))
    x = {c: sites[s]["value"].expand(data[c].shape).to(data[c].dtype) for s, c in observed.items()}
    return {n: value_of(sites[n])[0] for n in structure.latents}, x


def _simulated_rows(
    program: Program, data: Mapping[str, Tensor], structure: Structure, observed: Mapping[str, str], n: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """n rows of one draw; their covariates are rows of the data, drawn with replacement."""
    rows = structure.row_columns or row_columns(data)
    index = torch.as_tensor(rng.integers(0, n_rows(data, rows), n))
    many = take(data, index, rows)
    true, x = _simulated(program, many, structure, observed)
    return true, many | x


# -- fitting and ranking -----------------------------------------------------------------------------


def _fitted(
    program: Program, structure: Structure, data: Mapping[str, Tensor], changed: Mapping[str, Tensor], steps: int,
    lr: float, particles: int,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """The guide's parameters for each data set; the model's stay as they are."""
    with _guide_alone(program, data) as trained:
        if not trained:
            return [{}] * len(next(iter(changed.values())))
        return fit_each(program, structure, data, changed, steps=steps, lr=lr, particles=particles)


def _trained(
    program: Program, data: Mapping[str, Tensor], simulated: Mapping[str, Tensor], steps: int, lr: float,
    particles: int, seed: int,
) -> None:  # fmt: skip
    """One guide for all simulated rows; the model's parameters stay as they are."""
    precision = "64-true" if dtype_of_program(program) == torch.float64 else "32-true"
    with _guide_alone(program, data) as trained:
        if trained:
            fit(program, simulated, steps=steps, lr=lr, schedule="cosine", batch_size=BATCH, particles=particles,
                precision=precision, seed=seed)  # fmt: skip
    program.eval()


@contextmanager
def _guide_alone(program: Program, data: Mapping[str, Tensor]) -> Iterator[bool]:
    """Within it the guide's own parameters alone are trained; whether it has any."""
    guides, asked = _of_guide(program, data), {n: p.requires_grad for n, p in program.named_parameters()}
    try:
        for name, p in program.named_parameters():
            p.requires_grad_(name in guides)
        with torch.enable_grad():
            yield bool(guides)
    finally:
        for name, p in program.named_parameters():
            p.requires_grad_(asked[name])


def _of_guide(program: Program, data: Mapping[str, Tensor]) -> set[str]:
    """The parameters that the guide depends on and the model does not, but for those that are held."""
    with torch.enable_grad(), torch.random.fork_rng():
        q = guide_run(program, data)
        value = sum(s["fn"].log_prob(s["value"]).sum() + s["value"].sum() for s in sample_sites(q).values())
        p = run(program, data, latents={n: v.detach() for n, v in latents_of(q).items()}).p
        joint = sum(s["fn"].log_prob(s["value"]).sum() for s in sample_sites(p, factors=True).values())
    return _read(program, value) - _read(program, joint)


def _read(program: Program, value: Any) -> set[str]:
    """The parameters that a figure depends on, but for those that are held."""
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not isinstance(value, Tensor) or not value.requires_grad:
        return set()
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {n for n, g in zip(parameters, grads, strict=True) if g is not None}


class _Posterior:
    """Draws of each latent, (L, ...) with its shape in a single run, and log p(x | z): (L,) or, by row, (L, rows).

    Recorded once, for data sets of one shape.
    """

    def __init__(self, program: Program, structure: Structure, data: Mapping[str, Tensor]):
        self.program, self.structure, self.columns = program, structure, list(tensors(data))
        self.constants = {k: v for k, v in data.items() if k not in self.columns}
        self._many = Many(self._one, list(tensors(data).values()), name=program.name)

    def _one(self, *columns: Tensor) -> list[Tensor]:
        data = dict(zip(self.columns, columns, strict=True)) | self.constants
        t = run(self.program, data)
        return [*(value_of(t.p.nodes[n])[0] for n in self.structure.latents), _likelihood(t, self.structure)]

    @torch.no_grad()
    def __call__(self, data: Mapping[str, Tensor], draws: int) -> tuple[dict[str, Tensor], Tensor]:
        *values, logs = self._many(draws, [data[c] for c in self.columns])
        return dict(zip(self.structure.latents, values, strict=True)), logs


def _likelihood(t: Traces, structure: Structure) -> Tensor:
    keep = structure.row_plates if structure.by_row else frozenset()
    return total([found for found in terms(t) if found.role == "likelihood"], keep=keep)


@torch.no_grad()
def _compared(
    posterior: _Posterior, true: Mapping[str, Tensor], data: Mapping[str, Tensor], draws: int, *, rows: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, true values (S, P) and posterior draws (S, L, P): of one data set, S = 1, or of each of its rows."""
    structure = posterior.structure
    values, logs = posterior(data, draws)
    names, x, z = [], [], []
    for n in structure.latents:
        one, many = true[n][None], values[n][None]
        if rows:
            row = next(i for i, d in enumerate(structure[n].dims) if d in structure.row_plates)
            one, many = true[n].movedim(row, 0), values[n].movedim(row + 1, 0)
        names += entry_labels(n, one.shape[1:])
        x.append(one.reshape(len(one), -1).double())
        z.append(many.reshape(len(many), draws, -1).double())
    at_true, logs = _likelihood(run(posterior.program, data, latents=true), structure).double(), logs.double()
    if not rows:
        at_true, logs = at_true.sum()[None], logs.reshape(draws, -1).sum(1, keepdim=True)
    x.append(at_true[:, None])
    z.append(logs.T[..., None])
    return [*names, LIKELIHOOD], torch.cat(x, -1).numpy(), torch.cat(z, -1).numpy()


# -- what the ranks say ------------------------------------------------------------------------------


def _calibration(
    names: list[str], true: np.ndarray, draws: np.ndarray, many: int, rng: np.random.Generator, steps: int | None
) -> _Calibration:
    """Of true values (S, P) and posterior draws (S, L, P), of guides that were fitted in so many steps here."""
    below = (draws < true[:, None]).sum(1)
    ties = (draws == true[:, None]).sum(1)
    ranks = below + rng.integers(0, ties + 1)
    u = (ranks + rng.random(ranks.shape)) / (many + 1)
    tests = len(names)
    p = np.array([ecdf_bands.p_value(column, tests) for column in u.T])
    mean, sd = draws.mean(1), draws.std(1, ddof=1)
    prior = true.var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        contraction = 1 - (sd**2).mean(0) / prior
        z = (mean - true) / sd
    nan = np.array([n == LIKELIHOOD for n in names])
    z_mean, z_sd = np.where(nan, np.nan, z.mean(0)), np.where(nan, np.nan, z.std(0, ddof=1))
    found = _Calibration(
        names, ranks, u, many, p, np.where(nan, np.nan, contraction), z_mean, z_sd, ecdf_bands.band(len(u), tests), []
    )
    return found._replace(findings=_findings(found, steps))


def _findings(c: _Calibration, steps: int | None) -> list[Finding]:
    """All quantities together, then those that fail, the least probable first: four at most."""
    bad = np.flatnonzero(c.p <= LEVEL)
    grades = np.select([c.p <= SURE, c.p <= LEVEL], [WRONG, LOOK], FINE)
    said = {"simulations": len(c.u), "quantities": len(c.names), "failed": [c.names[i] for i in bad]}
    fitted = {} if steps is None else {"steps": steps}
    found = [Finding("calibration", "", float(c.p.min()), LEVEL, str(grades[c.p.argmin()]), said | fitted)]
    for i in bad[np.argsort(c.p[bad])][:4]:
        shape = {"shape": _shape(c.u[:, i]), "simulations": len(c.u)}
        found.append(Finding("calibration", c.names[i], float(c.p[i]), LEVEL, str(grades[i]), shape | fitted))
    return found


def _shape(u: np.ndarray) -> str:
    """In what way ranks are not uniform: the posterior is low, high, narrow or wide."""
    n = len(u)
    lean = (u.mean() - 0.5) / (1 / 12 / n) ** 0.5
    spread = (u.var() - 1 / 12) / (1 / 180 / n) ** 0.5
    if abs(lean) > abs(spread):
        return "low" if lean > 0 else "high"
    return "narrow" if spread > 0 else "wide"
