"""The guide's draws as an ArviZ-schema `xarray.DataTree`: what ArviZ does for a sampler, it does for a fit.

Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, sample_stats (log_p, log_q),
observed_data, constant_data; from `predict`: predictions, predictions_constant_data. The guide's draws are
independent: (chain = 1, draw = S). Dimensions are the plates, with coordinates of the program's `coords`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.agreement import observed_in_support
from ppgen.chain import require_few_states
from ppgen.check import columns, running_of
from ppgen.data import row_columns, validate
from ppgen.distributions import Flat
from ppgen.errors import PpgenError
from ppgen.handlers import Unobserve
from ppgen.inference import psis
from ppgen.inference.elbo import log_weights
from ppgen.inference.sample import dtype_of_program, program_of, ready, structure_of
from ppgen.program import Program
from ppgen.run import Run, prepare_columns, versions
from ppgen.sites import innermost, is_deterministic, sample_sites
from ppgen.structure import PARTICLES, Structure, Traces, trace_pair

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

BLOCK = 2**22  # values at once: bounds the memory

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def posterior(
    run: Run | Program,
    data: Any,
    *,
    draws: int = 1000,
    seed: int | None = 0,
    predictive: bool = True,
    prior: bool = True,
    corrected: bool = False,
) -> DataTree:
    """Draws z ~ q(z | x), with the model's predictions, and the log-probabilities that diagnose them.

    Args:
        run: a run, or a fitted program.
        data: the columns: for an amortised guide any rows.
        draws: S.
        seed: of the draws.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.
        corrected: resamples more of the guide's draws by their importance weights (`ppgen.inference.psis`), so that
            they are draws from the posterior; only where k-hat allows it.

    Returns:
        Groups as above; each variable has the dimensions chain, draw, its plates, its event dimensions. In
        sample_stats, log_p = log p(x, z) and log_q = log q(z | x), by row where every latent is local.

        Latents that were summed out are not in it, nor are log-probabilities that would need their sum.

    Raises:
        PpgenError: a program without latents (it has no posterior); data that the program does not take; weights that
            cannot be trusted.
    """
    program = program_of(run)
    require_few_states(program)
    data = prepare_columns(data, program, dtype_of_program(program))
    if not isinstance(draws, int) or draws < 2:
        raise PpgenError(f"draws is {draws!r}; expected a whole number of at least 2")
    validate(data)
    with ready(run, data, seed):
        structure = structure_of(run, data)
        if not structure.latents:
            raise PpgenError(
                f"{program.name} has no latent to infer, so no posterior; its log p(x) is exact: evaluate it"
            )
        with torch.random.fork_rng():
            here = sample_sites(trace_pair(program, data).p)
        for name in structure.names("observed"):
            observed_in_support(name, here[name])
        groups: dict[str, list[Arrays]] = {}
        drawn = max(psis.PROPOSALS * draws, 4000) if corrected else draws
        for k in blocks(drawn, data, structure):
            t = trace_pair(program, data, particles=k, structure=structure)
            made = groups_of(program, data, structure, here, t, k, predictive=predictive, prior=prior)
            if "log_likelihood" in made:
                made["sample_stats"] = {"log_p": _log_prob(t, structure, "p"), "log_q": _log_prob(t, structure, "q")}
            for group, arrays in made.items():
                groups.setdefault(group, []).append(arrays)
        found = {g: {n: np.concatenate([p[n] for p in parts])[None] for n in parts[0]} for g, parts in groups.items()}
        if corrected:
            found = psis.corrected(found, structure, draws, seed)
        return tree_of(program, structure, here, found, data)


@torch.no_grad()
def predict(run: Run | Program, data: Any, *, draws: int = 1000, seed: int | None = 0) -> DataTree:
    """Posterior predictive on new rows: z ~ q, then x ~ p_θ(x | z) at the new columns.

    Global latents are drawn from the guide, local ones too where the new rows have what the guide reads (else
    from the model, given the global ones). Observed columns, if passed, are never returned as predictions.

    Returns:
        The groups predictions and predictions_constant_data.

    Raises:
        PpgenError: a column that the model cannot do without.
    """
    program = program_of(run)
    require_few_states(program)
    data = prepare_columns(data, program, dtype_of_program(program))
    if not isinstance(draws, int) or draws < 1:
        raise PpgenError(f"draws is {draws!r}; expected a whole number of at least 1")
    columns(program, data)
    if data:
        validate(data)
    with ready(run, data, seed), running_of(program, data):
        trained = run.structure if isinstance(run, Run) else None
        with torch.random.fork_rng():
            given = sample_sites(poutine.trace(lambda: program.call("model", data)).get_trace())
        parts = []
        for _ in range(draws):
            q = _guide_draw(program, data, run if isinstance(run, Run) else None)
            model = Unobserve()(lambda: program.call("model", data))
            p = poutine.trace(poutine.condition(model, q)).get_trace()
            parts.append(
                {
                    n: s["value"].numpy()
                    for n, s in sample_sites(p).items()
                    if s["infer"].get("was_observed") or _free(s, q, trained)
                }
            )
        names = parts[0].keys()
        found = {n: np.stack([p[n] for p in parts])[None] for n in names}
        sites = sample_sites(p)
        dims = {
            n: _dims(program, n, [f.name for f in sites[n]["cond_indep_stack"] if f.vectorized], found[n].ndim - 2)
            for n in names
        }
        structure_like = {d: size for n in names for d, size in zip(dims[n], found[n].shape[2:], strict=True)}
        constant = {n: v.numpy() for n, v in data.items() if n not in names and not _is_observed(v, given)}
        row_plate = _row_plate(trained) if trained else "data"
        constant_dims = {
            n: _column_dims(program, n, v, trained.row_columns if trained else row_columns(data), row_plate)
            for n, v in data.items()
            if n in constant
        }
        for n, v in constant.items():
            structure_like |= dict(zip(constant_dims[n], v.shape, strict=True))
        return _from_dict(
            {"predictions": found} | ({"predictions_constant_data": constant} if constant else {}),
            dims | constant_dims, _coords(program, structure_like),
        )  # fmt: skip


def blocks(draws: int, data: Mapping[str, Tensor], structure: Structure) -> list[int]:
    """Draws at once: as many as fit, one where the program does not run with particles."""
    if not structure.batch_safe or any(s.enumerated for s in structure.sites):
        return [1] * draws
    at_once = max(1, min(draws, BLOCK // max(1, sum(v.numel() for v in data.values()))))
    return [min(at_once, draws - i) for i in range(0, draws, at_once)]


def groups_of(
    program: Program,
    data: Mapping[str, Tensor],
    structure: Structure,
    here: Mapping[str, dict],
    t: Traces,
    k: int,
    *,
    predictive: bool,
    prior: bool,
) -> dict[str, Arrays]:
    """k draws of every group, k leading, from the traces of k particles; `here` are the sites of a single run."""
    out: dict[str, Arrays] = {"posterior": {}, "log_likelihood": {}}
    summed = {s.name for s in structure.sites if s.enumerated}
    for name, site in sample_sites(t.p).items():
        if name in summed:
            continue
        if is_deterministic(site):
            out["posterior"][name] = _deterministic(site, here[name]["value"], k)
        elif not site["is_observed"]:
            out["posterior"][name] = _array(site, site["value"], k, structure)
        else:
            value = site["fn"].log_prob(site["value"])
            out["log_likelihood"][name] = _array(site, value, k, structure, event=False)
    if summed:
        out = {"posterior": out["posterior"]}
    with pyro.plate(PARTICLES, k, dim=-structure.nesting - 1) if k > 1 else poutine.mask(mask=True):
        model = Unobserve()(lambda: program.call("model", data))
        if predictive:
            p = poutine.trace(poutine.replay(model, trace=t.q)).get_trace()
            out["posterior_predictive"] = {
                n: _array(s, s["value"], k, structure)
                for n, s in sample_sites(p).items()
                if s["infer"].get("was_observed")
            }
        if prior and not any(isinstance(innermost(s["fn"]), Flat) for s in sample_sites(t.p).values()):
            p = poutine.trace(model).get_trace()
            sites = sample_sites(p, deterministic=False).items()
            out["prior"] = {
                n: _array(s, s["value"], k, structure)
                for n, s in sites
                if not s["infer"].get("was_observed") and n not in summed
            }
            out["prior_predictive"] = {
                n: _array(s, s["value"], k, structure) for n, s in sites if s["infer"].get("was_observed")
            }
    return out


def _log_prob(t: Traces, structure: Structure, which: str) -> np.ndarray:
    """log p(x, z) or log q(z | x): (K, rows) or (K,)."""
    empty = poutine.Trace()
    pair = Traces(t.p, empty) if which == "p" else Traces(empty, t.q)
    value = log_weights(pair, structure)
    return (value if which == "p" else -value).numpy()


def _array(site: dict, value: Tensor, k: int, structure: Structure, event: bool = True) -> np.ndarray:
    """A site's values as (k, its plates from the outermost in, its event)."""
    event_dim = site["fn"].event_dim if event else 0
    if event:
        value = value.expand(torch.broadcast_shapes(value.shape, site["fn"].shape()))
    batch = value.shape[: value.dim() - event_dim]
    rest = value.shape[value.dim() - event_dim :]
    value = value.reshape((1,) * (structure.nesting + 1 - len(batch)) + tuple(batch) + tuple(rest))
    plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES}
    lead = value.shape[0]
    keep = [value.shape[1 + i] for i, d in enumerate(range(-structure.nesting, 0)) if d in plates]
    value = value.reshape((lead, *keep, *rest))
    return value.expand(k, *value.shape[1:]).numpy()


def _deterministic(site: dict, single: Tensor, k: int) -> np.ndarray:
    """A deterministic site's values as (k, its plates, the rest). Pyro calls all of its dimensions event ones: the
    shape in a single run tells them from the particles, and plates are the leading ones."""
    value = site["value"].reshape(-1, *single.shape)
    dims = {f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES}
    nesting = max((-d for d in dims), default=0)
    kept = [n for i, n in enumerate(single.shape) if i >= nesting or i - nesting in dims or n > 1]
    return value.reshape(-1, *kept).expand(k, *kept).numpy()


def _is_observed(column: Tensor, sites: Mapping[str, dict]) -> bool:
    """Whether a column is what some site observes, by whatever name."""
    return any(s["is_observed"] and s["value"].data_ptr() == column.data_ptr() for s in sites.values())


def _dims(program: Program, name: str, plates: list[str], ndim: int) -> list[str]:
    """The plates, then the names that the program gives its event's dimensions, if as many as there are."""
    event = list(program.dims.get(name, ()))
    if len(event) != ndim - len(plates):
        event = [f"{name}_dim_{i}" for i in range(ndim - len(plates))]
    return [*plates, *event]


def _column_dims(program: Program, name: str, value: Tensor, rows: Collection[str], row_dim: str) -> list[str]:
    return _dims(program, name, [row_dim] if name in rows and value.dim() else [], value.dim())


def _coords(program: Program, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A coordinate for every dimension: the program's labels where they fit, else 0, 1, ..."""
    given = program.coords
    return {d: list(given[d]) if d in given and len(given[d]) == n else np.arange(n) for d, n in sizes.items()}


def tree_of(
    program: Program,
    structure: Structure,
    here: Mapping[str, dict],
    found: dict[str, Arrays],
    data: Mapping[str, Tensor],
) -> DataTree:
    """The tree of what was drawn, (chain, draw, ...) by group and site, with observed and constant data."""
    observed = {n: _array(here[n], here[n]["value"], 1, structure)[0] for n in structure.names("observed")}
    constant = {n: v.numpy() for n, v in data.items() if n not in observed and not _is_observed(v, here)}
    sizes: dict[str, int] = {}
    dims: dict[str, list[str]] = {}
    row_plate = _row_plate(structure)
    for group_name, group in found.items():
        for name, value in group.items():
            if group_name == "sample_stats":
                dims[name] = [row_plate] if value.ndim == 3 else []
            elif name not in dims or len(dims[name]) < value.ndim - 2:
                dims[name] = _dims(program, name, list(structure[name].plates)[: value.ndim - 2], value.ndim - 2)
            sizes |= dict(zip(dims[name], value.shape[2:], strict=False))
    for name, array in constant.items():
        dims[name] = _column_dims(program, name, data[name], structure.row_columns, row_plate)
        sizes |= dict(zip(dims[name], array.shape, strict=True))
    groups: dict[str, Any] = {g: found[g] for g in _ORDER if g in found} | {"observed_data": observed}
    if constant:
        groups["constant_data"] = constant
    return _from_dict(groups, dims, _coords(program, sizes))


def _row_plate(structure: Structure) -> str:
    return next((p for s in structure.sites for p in s.plates if p in structure.row_plates), "data")


_ORDER = ("posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "sample_stats")


def _from_dict(groups: dict[str, Any], dims: dict[str, list[str]], coords: dict[str, Any]) -> DataTree:
    from arviz_base import from_dict

    used = versions()
    made_by = {"inference_library": "ppgen", "inference_library_version": used["ppgen"]}
    return from_dict(
        groups,
        dims=dims,
        coords=coords,
        pred_dims=dims,
        pred_coords=coords,
        attrs={"/": made_by | used, **dict.fromkeys(groups, made_by)},
    )


def _guide_draw(program: Program, data: Mapping[str, Tensor], run: Run | None) -> dict[str, Tensor]:
    """Values for the latents that the guide can tell at these rows; the model draws the others.

    Global latents are those of the fitted rows. An amortised guide reads the new ones; an autoguide knows the local
    latents of the fitted rows only, as does a guide whose column the new rows lack.
    """

    def drawn(source: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        guide = poutine.condition(lambda: program.call("guide", source), dict(known))
        return {n: s["value"] for n, s in sample_sites(poutine.trace(guide).get_trace()).items()}

    if run is None:
        return drawn(data, {})
    needed = program.guide_columns
    reads = bool(needed) and all(n in data for n in needed)
    same = all(n in run.example and torch.equal(v, run.example[n]) for n, v in data.items())
    if reads and not run.structure.globals:
        return drawn(data, {})
    told = drawn(run.example, {})
    if same:
        return told
    told = {n: v for n, v in told.items() if n not in run.structure.locals}
    return drawn(data, told) if reads else told


def _free(site: dict, drawn: Mapping[str, Tensor], structure: Structure | None) -> bool:
    """An observed site whose column was left out: the model sampled it."""
    observed = structure.names("observed") if structure is not None else ()
    return site["name"] in observed and site["name"] not in drawn
