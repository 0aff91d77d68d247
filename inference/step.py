"""One gradient step, run as the engine says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.check import bad_number
from ppgen.errors import PpgenError, nearest
from ppgen.inference.elbo import Objective
from ppgen.structure import trace_pair

ENGINES = ("eager", "trace", "compile", "auto")
MAX_BAD_STEPS = 10  # so many losses in a row that are not finite end the fit


class StepResult(NamedTuple):
    elbo: float  # nats over all rows
    grad_norm: float  # of the loss in nats a row, before clipping
    finite: bool  # False: nothing was changed


Step = Callable[[Mapping[str, Tensor], float, float], StepResult]


def make_step(
    objective: Any, optimizer: Any, fabric: Any, *, engine: str, clip: float | None, parameters: list[Tensor]
) -> Step:
    """A function (batch, lr, kl_weight) -> StepResult that moves the parameters once."""
    if engine not in ENGINES:
        raise PpgenError(f"there is no engine {engine!r}{nearest(engine, ENGINES)}; they are {', '.join(ENGINES)}")
    parameters = [p for p in parameters if p.requires_grad]

    def gradients(batch: Mapping[str, Tensor], kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        optimizer.zero_grad()
        loss, elbo = objective(batch, kl_weight)
        if loss.requires_grad:
            fabric.backward(loss)
        present = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(present) if present else torch.zeros(())
        if clip is not None and present:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        return loss, elbo, norm

    def step(batch: Mapping[str, Tensor], lr: float, kl_weight: float) -> StepResult:
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, elbo, norm = gradients(batch, kl_weight)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            if isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.LBFGS):
                optimizer.step(lambda: gradients(batch, kl_weight)[0])
            else:
                optimizer.step()
        return StepResult(float(elbo), float(norm), finite)

    return step


def bad_site(objective: Objective, batch: Mapping[str, Tensor], random_state: Tensor) -> str:
    """Which site's log-probability is not finite: the step is run again from its random state."""
    parameters = {n: p for n, p in objective.program.named_parameters() if not torch.isfinite(p).all()}
    if parameters:
        return f"the parameter {next(iter(parameters))!r} is not finite"
    with torch.random.fork_rng(), torch.no_grad():
        torch.set_rng_state(random_state)
        try:
            t = trace_pair(objective.program, batch, particles=objective.particles, structure=objective.structure)
        except Exception as e:
            return f"{type(e).__name__}: {str(e).splitlines()[0]}"
        for trace, part in ((t.q, "guide"), (t.p, "model")):
            for name, site in trace.nodes.items():
                if site["type"] != "sample":
                    continue
                if site["value"].is_floating_point() and not torch.isfinite(site["value"]).all():
                    return f"the value of the site {name!r} of the {part} went bad"
                bad = bad_number(site["fn"].log_prob(site["value"]))
                if bad:
                    return f"log_prob at the site {name!r} of the {part} is {bad}"
    return "every site is finite, and a gradient is not"
