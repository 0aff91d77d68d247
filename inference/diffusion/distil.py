r"""Distillation of a Gaussian chain into a sampler of one step: a consistency function.

    f(z_t, t) = z_t / α_t − (ρ_t − ρ_0) ε̂_θ(z_t, t),   ρ = σ / α         where the ODE from z_t ends, z_0 / α_0

f(z_0, 0) = z_0 / α_0 by its form, and along a path of the chain's ODE f is constant. So it is trained on two times of
a grid that follow each other: z_t ~ q(z_t | x), z_s by one step of the chain's ODE (`heun`), and

    loss  E |f_θ(z_t, t) − f_θ⁻(z_s, s)|²,   no gradient through θ⁻ = θ

f_θ is one step of `ddim` of a program of the chain's kind, and starts as the chain itself. The sampler `consistency`
draws by it: of one step it is f; of more, noise is added back between. There is no log p(x) of these draws. Where a
step ends far from the ODE's end after training, or its draws are narrower or wider along some direction, that is said.

Sources: Consistency Models (Song et al., 2023, arXiv:2303.01469), algorithm 2 and the sampler, algorithm 1; Improved
Techniques for Training Consistency Models (Song & Dhariwal, 2023, arXiv:2310.14189), θ⁻ = θ and grids that grow.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.data import n_rows, take
from ppgen.errors import PpgenError
from ppgen.inference.diffusion.samplers import chain_of, heun, heun_step, jump
from ppgen.inference.evaluation.sample import dtype_of_program, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns

FIRST = 4  # intervals
COMPARED = 256  # rows at which a step is compared with the ODE
FAR = 0.25  # standard deviations of the draws
NARROWER = 0.1  # share of a standard deviation, along one of the first `DIRECTIONS` principal directions of the draws
DIRECTIONS = 16
LEAST = 1e-3  # of the widest: below it a direction is none

log = logging.getLogger("ppgen")


def distil(
    run: Run | Program,
    data: Mapping[str, Tensor],
    *,
    steps: int = 2000,
    intervals: int = 32,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int | None = 0,
    program: GaussianChain | None = None,
    report: Callable[[int, int], object] | None = None,
) -> GaussianChain:
    """A program whose sampler `consistency` draws in one step what the chain's ODE draws in many.

    Args:
        run: a run, or a program: a Gaussian chain, which stays as it is.
        data: the columns; the chain's own training data.
        steps: of Adam, its learning rate falling from lr to 0 along a cosine.
        intervals: of the grid of times, in each of which the ODE takes one step: from 4 they double to that many.
        batch_size: rows a step.
        program: what is trained, with the chain's process, schedule and units; None: a copy of the chain.
        report: called with (steps done, of how many).

    Raises:
        PpgenError: a program that is no Gaussian chain, or whose draws follow no ODE; one to train that is not alike.
    """
    teacher = chain_of(run, "distil")
    if teacher.samplers and "heun" not in teacher.samplers:
        raise PpgenError(f"distil follows the ODE of a chain, and {teacher.name} has none; fit model diffusion")
    if teacher.sampled_only:
        raise PpgenError(
            f"distil learns at many times at once, and {teacher.name} knows one; pass the chain of its own"
        )
    if steps < 0 or intervals < 1 or batch_size < 1:
        raise PpgenError(
            f"steps is {steps}, intervals {intervals}, batch_size {batch_size}; expected steps of at least 0, and at "
            "least 1 of the others"
        )
    columns = prepare_columns(data, teacher, dtype_of_program(teacher))
    student = copy.deepcopy(teacher) if program is None else program
    _require_alike(teacher, student)
    student.sampler, student.samplers, student.sampled_only = ("consistency", 1), ("consistency",), True
    # in its state, which a chain of the plain kind then refuses to load: its samplers would draw what is of no model
    student.register_buffer("distilled", torch.ones(()))
    held = {id(p) for p in student.schedule.parameters()}  # states are of the teacher's
    trained = [p for p in student.parameters() if p.requires_grad and id(p) not in held]
    optimizer = torch.optim.Adam(trained, lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with ready(run, columns, seed, guide=False), teacher.running(), student.running():
        student.eval()
        for i in range(steps):
            grid = _intervals(i / steps, intervals)
            rows = torch.randint(n_rows(columns), (batch_size,))
            loss = _consistency_loss(teacher, student, take(columns, rows), grid)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
            if report is not None:
                report(i + 1, steps)
        if steps:
            _warn_if_far(teacher, student, columns, 2 * intervals)
    return student


def _require_alike(teacher: GaussianChain, student: GaussianChain) -> None:
    """Refuses two whose states or units are not the same."""
    x, t = torch.stack([torch.zeros_like(teacher.zero), torch.ones_like(teacher.zero)]), torch.linspace(0, 1, 5)
    with torch.no_grad():
        one, other = ([*p.coefficients(t), p.decode(x)] for p in (teacher, student))
        alike = student.zero.shape == teacher.zero.shape and all(
            torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5) for a, b in zip(one, other, strict=True)
        )
    if not alike:
        raise PpgenError(
            f"the program to train, {student.name}, has another process, schedule, location or scale than "
            f"{teacher.name}, which is distilled; make it with the same (loc and scale are those of the fitted chain, "
            "loc=run.program.loc.tolist())"
        )


@torch.no_grad()
def _warn_if_far(teacher: GaussianChain, student: GaussianChain, data: Mapping[str, Tensor], intervals: int) -> None:
    """Says where one step of the student does not end where the teacher's ODE does."""
    rows = min(n_rows(data), COMPARED)
    columns: dict[str, Any] = teacher.context(dict(take(data, torch.randperm(n_rows(data))[:rows])))
    z = teacher.base().expand([2, rows]).sample()
    ends = heun(teacher, intervals, z, **columns) / teacher.coefficients(0.0)[1]
    spread = (ends[0] - ends[1]).square().mean().div(2).sqrt()  # of one row's columns
    jumps = jump(student, z, 1.0, **columns)
    off = float((jumps - ends).square().mean().sqrt() / spread)
    flat = ends.flatten(0, -2)
    _, size, rows_along = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    along = rows_along[size > LEAST * size[0]][:DIRECTIONS].T
    share = (jumps.flatten(0, -2) @ along).std(0) / (flat @ along).std(0) - 1
    worst = float(share[share.abs().argmax()])
    if off < FAR and not abs(worst) < NARROWER:
        log.warning(
            "one step of the distilled %s draws a standard deviation that is %.2g%% too %s along a direction of x, "
            "beside the ODE; train it longer (steps=), or draw from the chain",
            student.name, 100 * abs(worst), "large" if worst > 0 else "small",
        )  # fmt: skip
    if not off < FAR:
        log.warning(
            "one step of the distilled %s ends %.2g standard deviations of its draws (root mean square) from where the "
            "ODE does, so that its draws are of another distribution; train it longer (steps=), or draw from the chain",
            student.name, off,
        )  # fmt: skip


def _intervals(done: float, most: int) -> int:
    """Of the grid, at that share of the training: few at first, so that what is known at t = 0 soon comes to t = 1.

    >>> [_intervals(done, 16) for done in (0.0, 0.3, 0.4, 0.7, 1.0)]
    [4, 4, 8, 16, 16]
    """
    first = min(FIRST, most)
    return min(most, first * 2 ** int(done * (math.ceil(math.log2(most / first)) + 1)))


def _consistency_loss(
    teacher: GaussianChain, student: GaussianChain, data: Mapping[str, Tensor], intervals: int
) -> Tensor:
    """The mean squared distance over rows, each at one interval of the grid drawn at random."""
    x = data["x"]
    columns = teacher.hide(teacher.context(dict(data)), x)
    i = torch.randint(intervals, (len(x),))
    s, t = (teacher.time(k / intervals) for k in (i, i + 1))
    with torch.no_grad():
        coupled = teacher.coupled(x, t[None], **columns)
        z = teacher.forward(x, t, **columns).sample() if coupled is None else coupled[0]
        (_, alpha_s, _), (_, alpha, _) = teacher.coefficients(s), teacher.coefficients(t)
        below = alpha_s * heun_step(teacher, z / alpha, s, t, **columns)
        end = jump(student, below, s, **columns)
    return ((jump(student, z, t, **columns) - end) ** 2).sum(-1).mean()
