"""The guide's draws as an ArviZ-schema `xarray.DataTree`: what ArviZ does for a sampler, it does for a fit.

Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, sample_stats (log_p, log_q),
observed_data, constant_data; from `predict`: predictions, predictions_constant_data. The guide's draws are
independent: (chain = 1, draw = S). Dimensions are the plates, with coordinates of the program's `coords`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from xarray import DataTree

from ppgen.check import columns
from ppgen.data import row_columns
from ppgen.distributions import Flat
from ppgen.errors import PpgenError
from ppgen.handlers import Unobserve
from ppgen.inference.elbo import log_weights
from ppgen.inference.sample import dtype_of_program, program_of, ready
from ppgen.program import Program, arguments
from ppgen.run import Run, prepare_columns, versions
from ppgen.sites import innermost, is_deterministic, sample_sites
from ppgen.structure import PARTICLES, Structure, Traces, inspect, trace_pair

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
) -> DataTree:
    """Draws z ~ q(z | x), with the model's predictions, and the log-probabilities that diagnose them.

    Args:
        run: a run, or a fitted program.
        data: the columns: for an amortised guide any rows.
        draws: S.
        seed: of the draws.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.

    Returns:
        Groups as above; each variable has the dimensions chain, draw, its plates, its event dimensions. In
        sample_stats, log_p = log p(x, z) and log_q = log q(z | x), by row where every latent is local.

    Raises:
        PpgenError: a program without latents (it has no posterior); data that the program does not take.
    """
    program = program_of(run)
    data = prepare_columns(data, program, dtype_of_program(program))
    columns(program, data)
    if draws < 2:
        raise PpgenError(f"draws is {draws}; expected at least 2")
    with ready(run, data, seed):
        structure = _structure(run, program, data)
        if not structure.latents:
            raise PpgenError(
                f"{program.name} has no latent to infer, so no posterior; its log p(x) is exact: evaluate it"
            )
        groups: dict[str, list[Arrays]] = {}
        for k in _blocks(draws, data, structure):
            for group, arrays in _draw(program, data, structure, k, predictive, prior).items():
                groups.setdefault(group, []).append(arrays)
        found = {g: {n: np.concatenate([p[n] for p in parts])[None] for n in parts[0]} for g, parts in groups.items()}
        observed, constant = _data_groups(program, data, structure)
        return _tree(program, structure, found, observed, constant, data)


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
    data = prepare_columns(data, program, dtype_of_program(program))
    with ready(run, data, seed):
        trained = run.structure if isinstance(run, Run) else None
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
            n: _dims(n, [f.name for f in sites[n]["cond_indep_stack"] if f.vectorized], found[n].ndim - 2)
            for n in names
        }
        structure_like = {d: size for n in names for d, size in zip(dims[n], found[n].shape[2:], strict=True)}
        constant = {n: v.numpy() for n, v in data.items() if n not in names}
        row_plate = _row_plate(trained) if trained else "data"
        constant_dims = {
            n: _column_dims(n, v, trained.row_columns if trained else row_columns(data), row_plate)
            for n, v in data.items()
            if n in constant
        }
        for n, v in constant.items():
            structure_like |= dict(zip(constant_dims[n], v.shape, strict=True))
        return _from_dict(
            {"predictions": found} | ({"predictions_constant_data": constant} if constant else {}),
            dims | constant_dims, _coords(program, structure_like),
        )  # fmt: skip


def _structure(run: Run | Program, program: Program, data: Mapping[str, Tensor]) -> Structure:
    """The run's record, with the plates' sizes of these data."""
    if isinstance(run, Run):
        return run.structure
    return inspect(program, data)


def _blocks(draws: int, data: Mapping[str, Tensor], structure: Structure) -> list[int]:
    """Draws at once: as many as fit, one where the program does not run with particles."""
    if not structure.batch_safe:
        return [1] * draws
    at_once = max(1, min(draws, BLOCK // max(1, sum(v.numel() for v in data.values()))))
    return [min(at_once, draws - i) for i in range(0, draws, at_once)]


def _draw(
    program: Program, data: Mapping[str, Tensor], structure: Structure, k: int, predictive: bool, prior: bool
) -> dict[str, Arrays]:
    """k draws of every group, k leading."""
    t = trace_pair(program, data, particles=k, structure=structure)
    out: dict[str, Arrays] = {"posterior": {}, "log_likelihood": {}}
    for name, site in sample_sites(t.p).items():
        if is_deterministic(site):
            # Pyro calls all of its dimensions event ones; the shape of a single run tells them from the particles
            shape = structure[name].value_shape
            out["posterior"][name] = site["value"].reshape(-1, *shape).expand(k, *shape).numpy()
        elif not site["is_observed"]:
            out["posterior"][name] = _array(site, site["value"], k, structure)
        else:
            value = site["fn"].log_prob(site["value"])
            out["log_likelihood"][name] = _array(site, value, k, structure, event=False)
    out["sample_stats"] = {
        "log_p": _log_prob(t, structure, "p"),
        "log_q": _log_prob(t, structure, "q"),
    }
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
                n: _array(s, s["value"], k, structure) for n, s in sites if not s["infer"].get("was_observed")
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


def _data_groups(program: Program, data: Mapping[str, Tensor], structure: Structure) -> tuple[Arrays, Arrays]:
    """Observed values by site, and the columns that are no observed site."""
    p, _ = trace_pair(program, data)
    observed = {
        n: _array(s, s["value"], 1, structure)[0]
        for n, s in sample_sites(p).items()
        if s["is_observed"] and not is_deterministic(s)
    }
    taken = {id(s["value"]) for s in sample_sites(p).values() if s["is_observed"]}
    constant = {
        n: v.numpy() for n, v in data.items() if n not in observed and id(v) not in taken and n in program.columns
    }
    return observed, constant


def _dims(name: str, plates: list[str], ndim: int) -> list[str]:
    return [*plates, *(f"{name}_dim_{i}" for i in range(ndim - len(plates)))]


def _column_dims(name: str, value: Tensor, rows: Collection[str], row_dim: str = "data") -> list[str]:
    if name in rows and value.dim():
        return [row_dim, *(f"{name}_dim_{i}" for i in range(value.dim() - 1))]
    return [f"{name}_dim_{i}" for i in range(value.dim())]


def _coords(program: Program, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A coordinate for every dimension: the program's labels where they fit, else 0, 1, ..."""
    given = program.coords
    return {d: list(given[d]) if d in given and len(given[d]) == n else np.arange(n) for d, n in sizes.items()}


def _tree(
    program: Program,
    structure: Structure,
    found: dict[str, Arrays],
    observed: Arrays,
    constant: Arrays,
    data: Mapping[str, Tensor],
) -> DataTree:
    sizes: dict[str, int] = {}
    dims: dict[str, list[str]] = {}
    row_plate = _row_plate(structure)
    for group in found.values():
        for name, value in group.items():
            if name in ("log_p", "log_q"):
                dims[name] = [row_plate] if value.ndim == 3 else []
            elif name not in dims or len(dims[name]) < value.ndim - 2:
                dims[name] = _dims(name, list(structure[name].plates)[: value.ndim - 2], value.ndim - 2)
            sizes |= dict(zip(dims[name], value.shape[2:], strict=False))
    for name, array in constant.items():
        dims[name] = _column_dims(name, data[name], structure.row_columns, row_plate)
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

    tree = from_dict(
        groups,
        dims=dims,
        coords=coords,
        pred_dims=dims,
        pred_coords=coords,
        attrs={"/": {"inference_library": "ppgen", **versions()}},
    )
    return tree


def _guide_draw(program: Program, data: Mapping[str, Tensor], run: Run | None) -> dict[str, Tensor]:
    """Values for the latents that the guide can tell at these rows; the model draws the others.

    An amortised guide reads the rows. An autoguide knows the local latents of the fitted rows only, as does a
    guide whose column the new rows lack.
    """
    if run is None:
        return {n: s["value"] for n, s in sample_sites(poutine.trace(lambda: program.call("guide", data)).get_trace())}
    needed = [] if program._autoguide is not None else arguments(program.guide).names
    reads = bool(needed) and all(n in data for n in needed)
    same = all(n in run.example and torch.equal(v, run.example[n]) for n, v in data.items())
    source = data if reads or same else run.example
    q = poutine.trace(lambda: program.call("guide", source)).get_trace()
    told = {n: s["value"] for n, s in sample_sites(q).items()}
    return told if reads or same else {n: v for n, v in told.items() if n not in run.structure.locals}


def _free(site: dict, drawn: Mapping[str, Tensor], structure: Structure | None) -> bool:
    """An observed site whose column was left out: the model sampled it."""
    observed = structure.names("observed") if structure is not None else ()
    return site["name"] in observed and site["name"] not in drawn
