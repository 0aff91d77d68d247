r"""Distillation of a Gaussian chain into a sampler of one step: a consistency function.

    f(z_t, t) = z_t / α_t − (ρ_t − ρ_0) ε̂_θ(z_t, t),   ρ = σ / α         where the ODE from z_t ends, z_0 / α_0

f(z_0, 0) = z_0 / α_0 by its form, and along a path of the chain's ODE f is constant. So it is trained on two times of
a grid that follow each other: z_t ~ q(z_t | x), z_s by one step of the chain's ODE (`heun`), and

    loss  E |f_θ(z_t, t) − f_θ⁻(z_s, s)|²,   no gradient through θ⁻ = θ

f_θ is one step of `ddim` of a program of the chain's kind, and starts as the chain itself. The sampler `consistency`
draws by it: of one step it is f; of more, noise is added back between. There is no log p(x) of these draws.

Sources: Consistency Models (Song et al., 2023, arXiv:2303.01469), algorithm 2 and the sampler, algorithm 1; Improved
Techniques for Training Consistency Models (Song & Dhariwal, 2023, arXiv:2310.14189), θ⁻ = θ and grids that grow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.data import n_rows, take
from ppgen.errors import PpgenError
from ppgen.inference.diffusion.samplers import chain_of, heun_step, jump
from ppgen.inference.evaluation.sample import dtype_of_program, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns

FIRST = 4  # intervals


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
        program: what is trained, with the chain's process and schedule; None: a copy of the chain.
        report: called with (steps done, of how many).

    Raises:
        PpgenError: a program that is no Gaussian chain, or whose draws follow no ODE.
    """
    teacher = chain_of(run, "distil")
    if teacher.samplers and "heun" not in teacher.samplers:
        raise PpgenError(f"distil follows the ODE of a chain, and {teacher.name} has none; fit model diffusion")
    columns = prepare_columns(data, teacher, dtype_of_program(teacher))
    student = copy.deepcopy(teacher) if program is None else program
    student.sampler, student.samplers = ("consistency", 1), ("consistency",)
    trained = [p for p in student.parameters() if p.requires_grad]
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
    return student


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
    x, columns = data["x"], teacher.context(dict(data))
    i = torch.randint(intervals, (len(x),))
    s, t = (teacher.time(k / intervals) for k in (i, i + 1))
    with torch.no_grad():
        z = teacher.forward(x, t, **columns).sample()
        (_, alpha_s, _), (_, alpha, _) = teacher.coefficients(s), teacher.coefficients(t)
        below = alpha_s * heun_step(teacher, z / alpha, s, t, **columns)
        end = jump(student, below, s, **columns)
    return ((jump(student, z, t, **columns) - end) ** 2).sum(-1).mean()
