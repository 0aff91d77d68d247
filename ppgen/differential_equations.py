r"""Differential equations in a program, solved by steps that do not depend on the values.

    dy/dt = f(t, y),   y(t_0) = y0:    y(t_1), ..., y(t_T)

Between two times that are asked for come so many equal steps of Dormand and Prince's method of order 5; each is

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),   y ← y + h Σ_i b_i k_i,   error  h Σ_i (b_i − b̂_i) k_i

with b̂ the weights of order 4. As no step is chosen by what y is, a program with it is recorded, batched, compiled and
differentiated like any other, and the gradient is that of the steps that were taken; a solver that adapts its steps
(`torchdiffeq.odeint`) runs one draw after the other. What is given up is the control of the error: where a program runs
by itself, which every command does first, the error is estimated, and said where it is large.

Source: A family of embedded Runge-Kutta formulae (Dormand & Prince, 1980).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.engine.graphs.record import is_plain
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")

A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # b: the last stage is the next step's first
)
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # b − b̂

_said: set[object] = set()


def ode(
    f: Callable[[Tensor, Tensor], Tensor], y0: Tensor, t: Tensor, *, steps: int = 4, tolerance: float = 1e-3
) -> Tensor:
    """The solution at the times t, of which the first is that of y0, as (T, ...) with y0 of (...).

    Args:
        f: (time, y) -> dy/dt, of y's shape; the time has no dimensions. It may close over latents and parameters.
        y0: any shape.
        t: (T,), increasing or decreasing; a column of the data, say. Two equal times have equal solutions.
        steps: between two times.
        tolerance: of the estimated error, relative to the largest |y| of its component on the way; above it a
            warning says so, once for an f. Errors of values that only many draws at once have are not looked at:
            where the posterior is far from where the program starts, compare with twice the steps.

    Raises:
        PpgenError: times that are not (T,); fewer than one step; an f that gives another shape.

    >>> ode(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0, 2.0]))
    tensor([[1.0000, 1.0000],
            [0.3679, 0.3679],
            [0.1353, 0.1353]])
    """
    if t.dim() != 1 or len(t) < 1 or steps < 1:
        raise PpgenError(
            f"ppgen.ode got times of shape {tuple(t.shape)} and steps={steps}; expected (T,), the first that of y0, "
            "and at least one step between two"
        )
    t = t.to(y0.dtype)
    slope = f(t[0], y0)
    if slope.shape != y0.shape:
        raise PpgenError(
            f"ppgen.ode got an f that gives {tuple(slope.shape)} for y of {tuple(y0.shape)}; give dy/dt of y's shape"
        )
    looked = is_plain(slope)  # a recording has no operations for what is said of one run
    y, found, errors = y0, [y0], []
    for start, end in zip(t, t[1:], strict=False):
        h = (end - start) / steps
        for i in range(steps):
            y, k = _step(f, start + i * h, h, y, slope)
            slope = k[-1]
            if looked:
                with torch.no_grad():
                    errors.append(h * _weighted(E, k))
        found.append(y)
    out = torch.stack(found)
    if errors and is_plain(out):
        _look_at(f, out.detach(), torch.stack(errors), steps, tolerance)
    return out


def _step(
    f: Callable[[Tensor, Tensor], Tensor], t: Tensor, h: Tensor, y: Tensor, slope: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """y after a step, and the slopes k of its stages, the last of which is that at its end."""
    k, at = [slope], y
    for a, c in zip(A[1:], C[1:], strict=True):
        at = y + h * _weighted(a, k)
        k.append(f(t + c * h, at))
    return at, k


def _weighted(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    total = weights[0] * k[0]
    for w, slope in zip(weights[1:], k[1:], strict=True):
        total = total + w * slope if w else total
    return total


def _look_at(f: object, y: Tensor, errors: Tensor, steps: int, tolerance: float) -> None:
    """Says where the errors of all steps together are large."""
    key = getattr(f, "__code__", type(f))
    error = float((errors.abs().sum(0) / y.abs().amax(0).clamp_min(torch.finfo(y.dtype).tiny)).max())
    if error <= tolerance or key in _said:
        return
    _said.add(key)
    what = f"has an error of about {error:.1g} of its largest value" if error < 1 else "does not follow the equation"
    enough = math.ceil(steps * min(max(error / tolerance, 1.1) ** 0.2, 4.0) if error < 1 else 4 * steps)
    log.warning(
        "the solution of a differential equation %s with steps=%d between two times, at values that the program had in "
        "a run; pass ppgen.ode(..., steps=%d), and see whether what you find stays", what, steps, enough,
    )  # fmt: skip
