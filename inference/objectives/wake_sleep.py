r"""Wake-sleep: the guide on what the model dreams, the model on what the guide makes of the data.

    wake, θ:    Σ_k ∇_θ log p_θ(x, z_k) / K,      z_k ~ q(z | x) at the data
    sleep, φ:   Σ_k ∇_φ log q_φ(z'_k | x'_k) / K,   (x'_k, z'_k) ~ p_θ: that of −E_p(x) KL(p(z | x) ‖ q(z | x))

The guide is fitted where the model puts data, without a weight and a bias: amortised inference for a simulator. It
needs no derivative along a draw, so that discrete latents may be drawn, and a guide that reads its columns: a flow
does. What is reported is the importance-weighted bound at the data.

Source: The wake-sleep algorithm for unsupervised neural networks (Hinton, Dayan, Frey, Neal 1995); neural posterior
estimation by the same loss: Fast ε-free Inference of Simulation Models (Papamakarios & Murray 2016, arXiv:1605.06376).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.draws import one_draw
from ppgen.errors import PpgenError
from ppgen.handlers import Unobserve
from ppgen.inference.bounds import Setting, log_mean_exp, log_weights, of_weights, over_rows, with_gradient_of
from ppgen.program import Program
from ppgen.sites import is_delta, is_same, sample_sites
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run, model_run, term

SUMMARY = "wake-sleep: the guide on draws of the model (KL(p || q)), the model on draws of the guide"
TERMS = "drawn"
PATHWISE = False
PATHS = False
OF_A_PART = "the guide learns the posterior of as many rows as a step has"
DRAWS = 1
DREAMS = True
_BEGIN = 200  # draws of the model, with whose moments a flow begins

log = logging.getLogger("ppgen")


def require(program: Program, data: Mapping[str, Any], structure: Structure) -> None:
    """Lets a flow begin at the model's draws, and says where the guide reads nothing of what the model draws: the best
    one is then the prior, whatever the data.
    """
    with torch.no_grad():
        begin_at = getattr(program._autoguide, "begin_at", None)
        dreams = [_dream(program, data) for _ in range(_BEGIN if begin_at else 1)]
        if begin_at:
            begin_at([columns for _, columns in dreams], [_latents(dream) for dream, _ in dreams])
    columns = dreams[0][1]
    drawn = {k: v for k, v in columns.items() if v is not data[k]}
    if not structure.latents or not drawn or any(not v.is_floating_point() for v in drawn.values()):
        return
    drawn = {k: v.detach().requires_grad_() for k, v in drawn.items()}
    with torch.enable_grad():
        sites = sample_sites(guide_run(program, columns | drawn), deterministic=False).values()
        log_q = sum(s["fn"].log_prob(s["value"].detach()).sum() for s in sites)
        read = isinstance(log_q, Tensor) and log_q.requires_grad
        slopes = torch.autograd.grad(log_q, list(drawn.values()), allow_unused=True) if read else ()
    if all(slope is None for slope in slopes):
        log.warning(
            "objective='wake_sleep' fits the guide to draws of the model, and that of %s reads nothing of %s, so that "
            "it becomes the prior, whatever the data are; write one that reads it, or leave objective out",
            program.name, ", ".join(map(repr, drawn)),
        )  # fmt: skip


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw at the data, with the gradient of the model; log q of the model's draw is the guide's
    `target`.

    Raises:
        PpgenError: a guide that does not draw the model's latents by name; a column that the model does not draw.
    """
    with torch.no_grad():
        q = guide_run(program, data)
        dream, columns = _dream(program, data)
    terms = one_draw(program, data, structure, q=q)
    given = _given(program, dream)
    read = poutine.trace(poutine.replay(lambda: program.call("guide", columns), trace=given)).get_trace()
    sites = sample_sites(read, deterministic=False)
    strange = [
        n for n, s in sites.items()
        if s["value"].requires_grad or given is dream and (n not in dream.nodes or is_delta(s))
    ]  # fmt: skip
    if strange:
        raise PpgenError(
            f"objective='wake_sleep' asks the guide for log q of the model's draws, and {program.name}'s draws "
            f"{strange[0]!r} in a way of its own; take guide='flow' (--guide), or write one of the model's latents"
        )
    found = {n: term(s, "guide").log_prob for n, s in sites.items()}
    return [t._replace(target=found[t.site]) if t.role == "guide" else t for t in terms]


def _dream(program: Program, data: Mapping[str, Any]) -> tuple[poutine.Trace, dict[str, Any]]:
    """A run of the model that draws everything, and the columns that it gives."""
    with Unobserve():
        dream = model_run(program, data)
    columns = dict(data)
    for name, site in sample_sites(dream, deterministic=False).items():
        if "observed" in site:
            own = [k for k, v in data.items() if isinstance(v, Tensor) and is_same(v, site["observed"])]
            if not own:
                raise PpgenError(
                    f"objective='wake_sleep' puts the model's draw of {name!r} in the place of the column that is "
                    f"observed there, and {program.name} observes none as it is; write obs=column"
                )
            columns[own[0]] = site["value"].to(data[own[0]])
    return dream, columns


def _given(program: Program, dream: poutine.Trace) -> poutine.Trace:
    """The model's draws as the guide makes them: a flow has drawn a vector, of which it writes the latents."""
    if (auxiliaries := getattr(program._autoguide, "auxiliaries", None)) is None:
        return dream
    given = poutine.Trace()
    for name, value in auxiliaries(_latents(dream)).items():
        given.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={"is_auxiliary": True})
    return given


def _latents(dream: poutine.Trace) -> dict[str, Tensor]:
    return {n: s["value"] for n, s in sample_sites(dream, deterministic=False).items() if "observed" not in s}


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound, with the gradients above."""
    _, bound = of_weights(log_mean_exp, [t._replace(target=None) for t in terms], s)
    wake = log_weights([t for t in terms if t.role != "guide"], s, target=True)
    sleep = [t for t in terms if t.role == "guide"]
    dreamt = -log_weights(sleep, s._replace(kl_weight=1.0), target=True) if sleep else torch.zeros_like(wake)
    return with_gradient_of(bound, over_rows((wake + dreamt).mean(0), s)), bound
