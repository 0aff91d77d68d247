r"""Which effects that vary over groups are latents themselves (centred), and which are multiples of their sd.

    r_j = sd z_j,  z_j ~ N(0, 1)          where the rows of a group say little: r_j and sd would be in a funnel
    r_j = s z_j,   z_j ~ N(0, (sd/s)²)    where they say much: r_j is known, and r_j / sd and sd would be on a curve

s is the scale of sd's prior, so that z_j is about 1 in all units. How much the rows say is asked at the mode of what
remains when all effects of groups are 0: there the rows of group j have the score S_j and the information I_j on its
effect, and as S_j² / I_j is about (1 + I_j sd²) χ²_1,

    Σ_j S_j² / I_j  /  (the upper quantile of χ²_{J-1})  -  1

is a lower bound of I sd², the data's information in units of the prior's. Of groups within groups, (1 | a/b), the
larger ones are centred where the smaller ones are: chains of one that is centred and one that is not come to no end.

Sources: A general framework for the parametrization of hierarchical models (Papaspiliopoulos, Roberts, Sköld 2007);
Hamiltonian Monte Carlo for hierarchical models (Betancourt, Girolami 2013); Meta-analysis in clinical trials
(DerSimonian, Laird 1986), for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppgen.formula.design import Design, Group
from ppgen.handlers import without_validation
from ppgen.supports import located, transform_of

ENOUGH = 1.0  # information of the data, in units of the prior's
_SDS = 1.96  # of a normal: the upper quantile's
_STEPS = 100  # of L-BFGS

LogJoint = Callable[[Mapping[str, Tensor]], Tensor]


def of_latents(sd: Tensor, chol: Tensor | None, centred: Sequence[bool], scale: Tensor) -> tuple[Any, Tensor]:
    """The prior of a group's z, and the factor of its effects: r = factor z, (K,); r = z factorᵀ, (K, K), with `chol`.

    Args:
        centred: by column, whether its effect is its latent, in units of `scale`; empty where none is.
    """
    zero, one = torch.zeros_like(sd), torch.ones_like(sd)
    root = sd if chol is None else sd[:, None] * chol
    if not any(centred):
        return dist.Normal(zero, 1.0).to_event(1), root
    own = torch.tensor(centred, device=sd.device)
    if chol is None:
        return dist.Normal(zero, torch.where(own, sd / scale, one)).to_event(1), torch.where(own, scale, sd)
    inner = torch.where(own[:, None], root / scale[:, None], one.diag())
    factor = torch.linalg.solve_triangular(inner, root, upper=False, left=False)
    return dist.MultivariateNormal(zero, scale_tril=inner), factor


def centre(design: Design, model: Callable[..., Any], columns: Mapping[str, Tensor]) -> bool:
    """States in the design of which columns the effects are centred; whether some are.

    Args:
        model: p(y, latents | columns), whose effects are multiples of their sd.
        columns: of the rows that have a response, those of numbers in float64.
    """
    if not design["groups"]:
        return False
    y = columns[design["response"]["y"]]
    held = {f"z_{gap['name']}": torch.full(y.shape, gap["fill"]).to(y.device) for gap in design.get("gaps", [])}

    def log_joint(latents: Mapping[str, Tensor]) -> Tensor:
        return poutine.trace(poutine.condition(model, latents)).get_trace(**columns).log_prob_sum()

    with without_validation(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for group in design["groups"]:
            held |= _without_effects(group)
        held |= _mode(lambda: poutine.trace(poutine.condition(model, held)).get_trace(**columns), log_joint, held)
        told = {g["name"]: [b > ENOUGH for b in _bounds(log_joint, held, f"z_{g['name']}")] for g in design["groups"]}
    for group in design["groups"]:
        inner = [g for g in design["groups"] if _is_within(columns[g["codes"]], columns[group["codes"]])]
        if any(told[group["name"]]) and all(all(told[g["name"]]) for g in inner):
            group["centred"] = told[group["name"]]
    return any("centred" in group for group in design["groups"])


def _is_within(inner: Tensor, outer: Tensor) -> bool:
    """Whether groups are parts of larger ones, of which each has several."""
    pairs = torch.stack([inner, outer]).unique(dim=1).shape[1]
    return outer.unique().numel() < inner.unique().numel() == pairs


def _without_effects(group: Group) -> dict[str, Tensor]:
    """Effects of 0, in units of 1."""
    name, one = group["name"], torch.ones(len(group["matrix"]["labels"]), dtype=torch.float64)
    held = {f"sd_{name}": one, f"z_{name}": one.new_zeros(group["size"], len(one))}
    return held | ({f"chol_{name}": one.diag()} if group["correlated"] else {})


def _mode(run: Callable[[], Any], log_joint: LogJoint, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the latents that are not held, in units of their priors."""
    sites = prune_subsample_sites(run())
    laws = {n: sites.nodes[n]["fn"] for n in sites.stochastic_nodes}
    transforms = {n: transform_of(fn, located(fn) is not None) for n, fn in laws.items()}
    u = {n: t.inv(laws[n].mean).detach().requires_grad_() for n, t in transforms.items()}
    optimizer = torch.optim.LBFGS(u.values(), max_iter=_STEPS, line_search_fn="strong_wolfe") if u else None

    def latents() -> dict[str, Tensor]:
        return {n: t(u[n]) for n, t in transforms.items()}

    def loss() -> Tensor:
        for v in u.values():
            v.grad = None
        value = -log_joint({**held, **latents()})
        value.backward()
        return value

    if optimizer is not None:
        optimizer.step(loss)
    return {n: v.detach() for n, v in latents().items()}


def _bounds(log_joint: LogJoint, held: Mapping[str, Tensor], name: str) -> list[float]:
    """By column, a lower bound of the information on a group's effect in units of its prior's; nan if there is none."""
    z = held[name].clone().requires_grad_()
    (score,) = torch.autograd.grad(log_joint({**held, name: z}), z, create_graph=True)
    found: list[float] = []
    for own in score.unbind(1):
        (slope,) = torch.autograd.grad(own.sum(), z, retain_graph=True)  # a row is of one group: this is the diagonal
        information = -slope[:, len(found)] - 1  # less the prior's
        some = information > 1e-9 * information.abs().max()
        freedom = max(int(some.sum()) - 1, 1)
        total = float((own.detach()[some] ** 2 / information[some]).sum())
        found.append(total / _upper(freedom) - 1)
    return found


def _upper(freedom: int) -> float:
    """The 97.5 % quantile of χ² (Wilson and Hilferty 1931)."""
    v = 2 / (9 * freedom)
    return freedom * (1 - v + _SDS * math.sqrt(v)) ** 3
