r"""How much of a gradient is signal, for each objective and estimator, by group of parameters.

    signal-to-noise ratio = ‖E g‖ / √tr Cov g,     ‖E g‖² ≈ ‖ḡ‖² − tr S / R

g is the gradient of the loss a row at fixed parameters and fixed rows, over the draws of the latents; ḡ and S are mean
and covariance of R of them. A ratio below 1/√R cannot be told from 0.

Source: Tighter Variational Bounds are Not Necessarily Better (Rainforth et al. 2018, arXiv:1802.04537).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.data import n_rows
from ppgen.errors import PpgenError
from ppgen.inference import objectives
from ppgen.inference.objective import Objective
from ppgen.run import Run, prepare_columns

CHOICES = (
    "analytic", "sampled", "sampled sticking", "sampled score", "iwae", "miwae", "piwae", "ciwae", "dreg", "gdreg",
    "vimco", "rws", "cubo", "wake_sleep", "tvo", "renyi", "enumerate", "tc",
)  # fmt: skip


class GradientNoise(NamedTuple):
    """Of one objective and estimator, and one group of parameters.

    Attributes:
        choice: the objective, and the gradient's estimator where it is named.
        group: the module that the parameters are of.
        size: how many numbers.
        signal, noise: ‖E g‖ and √tr Cov g, of the loss in nats a row.
        ratio: the first over the second.
        seconds: of one gradient of all groups.
    """

    choice: str
    group: str
    size: int
    signal: float
    noise: float
    ratio: float
    seconds: float


def gradient_noise(
    run: Run, data: Any, *, choices: Sequence[str] | None = None, particles: int = 8, repeats: int = 100,
    seed: int = 0,
) -> tuple[list[GradientNoise], dict[str, str]]:  # fmt: skip
    """The ratio for each choice, at the run's parameters, on all rows at once.

    Args:
        run: fitted, or of no steps.
        data: columns. A guide that has learnt its rows by heart takes all that it was fitted to.
        choices: an objective each, with an estimator behind it where it is not the default ("sampled sticking"). None:
            all; of a long chain "subsampled" alone, as others take a network call for each of its steps.
        particles: draws of the latents a gradient.
        repeats: R, at least 2.

    Returns:
        The rows, and why a choice was refused.

    Raises:
        PpgenError: fewer repeats than 2; an objective that does not exist.
    """
    if repeats < 2:
        raise PpgenError(f"repeats is {repeats}; a variance needs 2 at least")
    program, structure = run.program, run.structure
    table = prepare_columns(data, program, run.dtype)
    if choices is None:
        own = ("subsampled",) if program.subsamples else ()
        choices = own if program.repeats else (*own, *CHOICES)
    found: list[GradientNoise] = []
    refused: dict[str, str] = {}
    for choice in choices:
        name, _, estimator = choice.partition(" ")
        objectives.formula(name)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                bound = Objective(
                    program, structure, n_rows(table, structure.row_columns), objective=name,
                    gradient=estimator or "pathwise", particles=particles,
                )  # fmt: skip
                found += _measured(choice, bound, table, repeats)
        except PpgenError as e:
            refused[choice] = str(e)
    return found, refused


def _measured(choice: str, bound: Objective, table: Mapping[str, Any], repeats: int) -> list[GradientNoise]:
    named = {n.removeprefix("program."): p for n, p in bound.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}
    squares: dict[str, float] = {}
    took = []
    for _ in range(repeats):
        began = time.process_time()
        gradients = torch.autograd.grad(bound(table)[0], list(named.values()), allow_unused=True)
        took.append(time.process_time() - began)
        groups: dict[str, list[Tensor]] = {}
        for (name, p), g in zip(named.items(), gradients, strict=True):
            groups.setdefault(name.partition(".")[0], []).append((torch.zeros_like(p) if g is None else g).flatten())
        for group, parts in groups.items():
            g = torch.cat(parts).double()
            sums[group] = sums.get(group, torch.zeros_like(g)) + g
            squares[group] = squares.get(group, 0.0) + float(g @ g)
    rows = []
    for group, total in sums.items():
        mean = total / repeats
        variance = max(squares[group] - repeats * float(mean @ mean), 0.0) / (repeats - 1)
        signal = max(float(mean @ mean) - variance / repeats, 0.0) ** 0.5
        ratio = signal / variance**0.5 if variance else float("inf") if signal else 0.0
        rows.append(GradientNoise(choice, group, len(mean), signal, variance**0.5, ratio, sorted(took)[repeats // 2]))
    return rows
