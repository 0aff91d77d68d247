r"""Draws from a Gaussian chain, each sampler one function of (program, steps, z): from z ~ p(z_1) to a state at t = 0.

    ancestral   z_s ~ p_θ(z_s | z_t)                                   Ho et al. (2020, arXiv:2006.11239)
    ddim        z_s = α_s x̂ + √(σ_s² − τ²) ε̂ + τ ξ,  τ² = η² c σ_s²     Song et al. (2021, arXiv:2010.02502)
    heun        a second-order step of dy/dσ = (y − x̂) / σ, y = z / α,  Karras et al. (2022, arXiv:2206.00364)
                after noise is added back where `churn` asks for it     (their algorithm 2)
    dpmpp       z_s = σ_s / σ_t z_t − α_s (e^(−h) − 1) D,               Lu et al. (2022, arXiv:2211.01095), 2M
                D = x̂ extrapolated over half a step of λ = −γ / 2
    dpmpp_sde   the same of the reverse SDE
    unipc       z_s = σ_s / σ_t z_t + α_s Σ_j c_j x̂_j, the c_j exact    Zhao et al. (2023, arXiv:2302.04867); p states
                where x̂ is a polynomial in λ through the x̂_j           predict, p + 1 correct
    deis        z_s = α_s (z_t / α_t + Σ_j c_j ε̂_j),  c_j exact where   Zhang & Chen (2022, arXiv:2204.13902), tAB
                ε̂ is a polynomial in t through the last p of the ε̂_j
    consistency z_s = z_0 α_s / α_0 + noise, z_0 by one step of ddim    Song et al. (2023, arXiv:2303.01469), after
                                                                        `ppgen.inference.diffusion.distil`
    ode         the probability-flow ODE, solved adaptively             Song et al. (2021, arXiv:2011.13456)

x̂ = E[x | z_t] is `program.denoise`, ε̂ = (z − α x̂) / σ. All but the last call it once a step (heun twice).
`sample_diffusion` is what users call: it draws z_1, runs a sampler, and ends with x ~ p(x | z_0).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from inspect import signature
from itertools import count
from numbers import Integral
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.data import n_rows
from ppgen.errors import PpgenError, nearest, require_known
from ppgen.inference.diffusion.ode import flow
from ppgen.inference.diffusion.variance_error import variance_error
from ppgen.inference.evaluation.sample import dtype_of_program, program_of, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns

__all__ = [
    "SAMPLERS", "ancestral", "consistency", "ddim", "deis", "dpmpp", "dpmpp_sde", "heun", "heun_step", "jump", "ode",
    "sample_diffusion", "unipc",
]  # fmt: skip

FEW = 64  # values a row
STEPS = {"ddim": 200, "dpmpp_sde": 100}  # of samplers that need more than 50
SHORT = 200  # steps up to which a chain that was trained at these alone is drawn from by them
# options that have a least value: whether it is above 0
LEAST = {"eta": False, "churn": False, "churn_noise": True, "tolerance": True}
BLOCK = 2**18  # values at once: bounds the memory
WIDER, ROWS = 0.15, 32  # share by which draws of many jumps are farther from their mean than those of one; of rows
OFF = 0.05  # share of the variance that a sampler's steps may leave or add without a word
log = logging.getLogger("ppgen")
Watch = Callable[[float, Tensor], object]  # called with the time and the state after every step


def ancestral(program: GaussianChain, steps: int, z: Tensor, *, watch: Watch | None = None, **columns: Any) -> Tensor:
    """The chain itself, of any number of steps."""
    for s, t in program.sampling_grid(steps):
        z = _seen(watch, s, program.reverse(z, s, t, **columns).sample())
    return z


def ddim(
    program: GaussianChain, steps: int, z: Tensor, *, eta: float = 0.0, watch: Watch | None = None, **columns: Any
) -> Tensor:
    """Deterministic at η = 0; at η = 1 the chain with its posterior variance; above it noisier, if steps are short."""
    for s, t in program.sampling_grid(steps):
        (gamma_s, alpha_s, sigma_s), (gamma_t, alpha_t, sigma_t) = (program.coefficients(u) for u in (s, t))
        x = program.denoise(z, t, **columns)
        noise = (z - alpha_t * x) / sigma_t
        tau = eta * (-torch.expm1(gamma_s - gamma_t)).sqrt() * sigma_s
        if eta > 1 and bool(tau > sigma_s):
            raise PpgenError(f"a step of {steps} cannot have the noise of eta={eta}; take eta=1, or more steps")
        z = alpha_s * x + (sigma_s**2 - tau**2).clamp(min=0).sqrt() * noise
        z = _seen(watch, s, z + tau * torch.randn_like(z) if eta else z)
    return z


def heun(
    program: GaussianChain,
    steps: int,
    z: Tensor,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.05, 50.0),
    churn_noise: float = 1.003,
    watch: Watch | None = None,
    **columns: Any,
) -> Tensor:
    """EDM's sampler: `churn`, `churn_range` and `churn_noise` are its S_churn, (S_tmin, S_tmax) and S_noise."""
    for s, t in program.sampling_grid(steps):
        (_, alpha_s, _), (gamma_t, alpha_t, _) = (program.coefficients(u) for u in (s, t))
        level = (gamma_t / 2).exp()
        y = z / alpha_t
        if churn and churn_range[0] <= float(level) <= churn_range[1]:
            raised = level * (1 + min(churn / steps, math.sqrt(2) - 1))
            t = float(program.times_of(2 * raised.log()))
            gamma_t, alpha_t, _ = program.coefficients(t)
            raised = (gamma_t / 2).exp()  # no further than the chain's end
            y = y + (raised**2 - level**2).clamp(min=0).sqrt() * churn_noise * torch.randn_like(y)
        z = _seen(watch, s, alpha_s * heun_step(program, y, s, t, **columns))
    return z


def heun_step(program: GaussianChain, y: Tensor, s: Tensor | float, t: Tensor | float, /, **columns: Any) -> Tensor:
    """y = z / α at s, from y at t."""
    (gamma_s, alpha_s, _), (gamma_t, alpha_t, _) = program.coefficients(s), program.coefficients(t)
    level_s, level = (gamma_s / 2).exp(), (gamma_t / 2).exp()
    slope = (y - program.denoise(y * alpha_t, t, **columns)) / level
    ahead = y + (level_s - level) * slope
    there = (ahead - program.denoise(ahead * alpha_s, s, **columns)) / level_s
    return y + (level_s - level) * (slope + there) / 2


def dpmpp(program: GaussianChain, steps: int, z: Tensor, *, watch: Watch | None = None, **columns: Any) -> Tensor:
    """DPM-Solver++(2M); the last of fewer than 15 steps is of first order, for stability."""
    middle = Middle(program, steps, columns)
    for s, t in program.sampling_grid(steps):
        step, x = middle(z, s, t)
        (_, alpha_s, sigma_s), (_, _, sigma_t) = program.coefficients(s), program.coefficients(t)
        z = _seen(watch, s, sigma_s / sigma_t * z - alpha_s * torch.expm1(-step) * x)
    return z


def dpmpp_sde(program: GaussianChain, steps: int, z: Tensor, *, watch: Watch | None = None, **columns: Any) -> Tensor:
    """SDE-DPM-Solver++(2M): fresh noise at every step."""
    middle = Middle(program, steps, columns)
    for s, t in program.sampling_grid(steps):
        step, x = middle(z, s, t)
        (_, alpha_s, sigma_s), (_, _, sigma_t) = program.coefficients(s), program.coefficients(t)
        kept = -torch.expm1(-2 * step)
        z = sigma_s / sigma_t * (-step).exp() * z + alpha_s * kept * x
        z = _seen(watch, s, z + sigma_s * kept.sqrt() * torch.randn_like(z))
    return z


def unipc(
    program: GaussianChain, steps: int, z: Tensor, *, order: int = 2, watch: Watch | None = None, **columns: Any
) -> Tensor:
    """UniPC of that order, p: one network call a step, and an error of order p + 1 once p states are known."""
    if order < 1:
        raise PpgenError(f"order is {order}; expected at least 1, as in 2")
    before: tuple[Tensor, Tensor] | None = None
    lambdas: list[float] = []
    guesses: list[Tensor] = []
    for s, t in program.sampling_grid(steps):
        (_, alpha_s, sigma_s), (gamma, alpha, sigma) = program.coefficients(s), program.coefficients(t)
        guesses, lambdas = [program.denoise(z, t, **columns), *guesses], [-float(gamma) / 2, *lambdas]
        if before is not None:  # what is known at t now corrects the step that led there; its x̂ stays
            z = _exponential_step(*before, lambdas[1], lambdas[0], alpha, sigma, lambdas, guesses)
        guesses, lambdas = guesses[:order], lambdas[:order]
        before = z, sigma
        there = -float(program.gamma(s)) / 2
        z = _seen(watch, s, _exponential_step(z, sigma, lambdas[0], there, alpha_s, sigma_s, lambdas, guesses))
    return z


def _exponential_step(
    z: Tensor, sigma: Tensor, start: float, end: float, alpha_end: Tensor, sigma_end: Tensor,
    nodes: list[float], guesses: list[Tensor],
) -> Tensor:  # fmt: skip
    """z at λ = end, x̂ being the polynomial through `guesses` at λ = `nodes`: the rest of the ODE is solved exactly."""
    h = end - start
    moments = [-math.expm1(-h)]  # ∫ e^(τ − h) τ^k dτ over a step
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    return sigma_end / sigma * z + alpha_end * _integral([node - start for node in nodes], moments, guesses)


def deis(
    program: GaussianChain, steps: int, z: Tensor, *, order: int = 3, watch: Watch | None = None, **columns: Any
) -> Tensor:
    """tAB-DEIS of order 1, which is `ddim`, 2 or 3: one network call a step, and at order 3 one more for the first."""
    if order not in (1, 2, 3):
        raise PpgenError(f"order is {order}; expected 1, 2 or 3")
    times: list[float] = []
    guesses: list[Tensor] = []

    def noise(z: Tensor, t: float) -> Tensor:
        _, alpha, sigma = program.coefficients(t)
        return (z - alpha * program.denoise(z, t, **columns)) / sigma

    def stepped(z: Tensor, s: float, t: float, times: list[float], guesses: list[Tensor]) -> Tensor:
        (_, alpha_s, _), (_, alpha, _) = program.coefficients(s), program.coefficients(t)
        nodes = [(node - t) / (s - t) for node in times]
        return alpha_s * (z / alpha + _integral(nodes, _level_moments(program, s, t, len(nodes)), guesses))

    for s, t in program.sampling_grid(steps):
        guesses, times = [noise(z, t), *guesses][:order], [t, *times][:order]
        ahead = stepped(z, s, t, times, guesses)
        if len(times) == 1 and order == 3 and steps > 1:  # a first step of order 1 would leave its error in all others
            ahead = stepped(z, s, t, [s, t], [noise(ahead, s), *guesses])
        z = _seen(watch, s, ahead)
    return z


def _level_moments(program: GaussianChain, s: float, t: float, n: int) -> list[float]:
    """∫ v^k dρ for k < n over the step from t to s, in parts: ρ = σ / α, and v goes from 0 at t to 1 at s."""
    v, w = (torch.as_tensor(a) / 2 for a in np.polynomial.legendre.leggauss(24))
    v = v + 0.5
    times = torch.cat([t + (s - t) * v, v.new_tensor([s, t])])
    level = (program.gamma(times)[:, 0].double() / 2).exp()
    inner, end, start = level[:-2], float(level[-2]), float(level[-1])
    return [end - start] + [end - k * float((w * v ** (k - 1) * inner).sum()) for k in range(1, n)]


def _integral(nodes: list[float], moments: list[float], values: list[Tensor]) -> Tensor:
    """The integral of the polynomial through the values at the nodes, from those of 1, u, u², ... over the measure."""
    powers = torch.tensor([[u**k for u in nodes] for k in range(len(nodes))], dtype=torch.float64)
    weights = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return torch.stack([c * x for c, x in zip(weights, values, strict=True)]).sum(0)


def consistency(program: GaussianChain, steps: int, z: Tensor, *, watch: Watch | None = None, **columns: Any) -> Tensor:
    """Jumps to t = 0 by a program that `distil` made, noise being added back after all but the last."""
    first = (program.gamma(0.0) / 2).exp()
    for s, t in program.grid(steps):
        gamma, alpha, _ = program.coefficients(s)
        y = jump(program, z, t, **columns)
        if s > 0:
            y = y + (gamma.exp() - first**2).sqrt() * torch.randn_like(y)
        z = _seen(watch, s, alpha * y)
    return z


def jump(program: GaussianChain, z: Tensor, t: Tensor | float, **columns: Any) -> Tensor:
    """z / α at 0, from z at t, by one step of `ddim`."""
    (gamma, alpha, _), first = program.coefficients(t), (program.gamma(0.0) / 2).exp()
    y, level = z / alpha, (gamma / 2).exp()
    return y - (level - first) / level * (y - program.denoise(z, t, **columns))


def ode(
    program: GaussianChain,
    steps: int,
    z: Tensor,
    *,
    tolerance: float = 1e-4,
    watch: Watch | None = None,
    **columns: Any,
) -> Tensor:
    """The probability-flow ODE; the solver chooses its steps, `steps` is how many states `watch` is shown."""
    for s, t in program.grid(steps if watch is not None else 1):
        z = _seen(watch, s, flow(program, z, t, s, tolerance=tolerance, **columns))
    return z


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp": dpmpp,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "deis": deis,
    "consistency": consistency,
    "ode": ode,
}


@torch.no_grad()
def sample_diffusion(
    run: Run | Program,
    n: int = 1,
    sampler: str | None = None,
    steps: int | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    guidance: float | None = None,
    mean: bool = False,
    seed: int | None = None,
    report: Callable[[int, int], object] | None = None,
    watch: Watch | None = None,
    **how: Any,
) -> Tensor:
    """n draws of x by a sampler, (n, D).

    Args:
        run: a run, or a program: a Gaussian chain.
        sampler: a key of `SAMPLERS`; None chooses one by the number of values a row, see `_usual`.
        steps: of the sampler, even in log-SNR whatever the schedule, unless as many as an explicit chain has; None: 50,
            of `dpmpp_sde` 100, of `ddim` 200, of `ancestral` the chain's own.
        given: other columns of the model (a label y), one value for all draws or one a draw.
        guidance: w of classifier-free guidance, x̂ = x̂(z) + w (x̂(z, y) − x̂(z)); None or 1 is the model itself.
        mean: the mean of p(x | z_0) in place of a draw.
        seed: of the draws; None goes on with torch's random state.
        report: called with (steps done, of how many) as it goes.
        watch: called with the time and the states of the first block of rows after every step.
        how: the sampler's own options (eta, churn, ...).

    Raises:
        PpgenError: no such sampler, or one that is not right for this chain; a program that is no Gaussian chain.
    """
    program = chain_of(run, "the sampler" if sampler is None else f"the sampler {sampler!r}")
    asked = sampler is not None or steps is not None
    sampler, steps = _usual(program, sampler, steps)
    require_known("sampler", sampler, SAMPLERS)
    _require_right(program, sampler, how)
    if not all(isinstance(v, Integral) and v >= 1 for v in (steps, n)):
        raise PpgenError(f"steps is {steps} and n is {n}; expected whole numbers, at least 1 of each")
    columns = prepare_columns(given, program, dtype_of_program(program), program.columns) if given else {}
    if columns and n_rows(columns) not in (1, n):
        raise PpgenError(f"given has {n_rows(columns)} rows for n={n} draws; pass one row, or one a draw")
    if asked and guidance in (None, 1.0):
        _say_off(program, sampler, steps, how)
    with ready(run, columns, seed, guide=False), program.running():
        with pyro.validation_enabled(True):
            context: dict[str, Any] = program.context(columns)
        if guidance is not None and guidance != 1.0:
            if sampler == "consistency":
                raise PpgenError(
                    "guidance bends the paths of a chain, and a distilled one knows where those without guidance end; "
                    "leave guidance out, or draw from the chain itself"
                )
            context["guidance"] = guidance
        most = max(1, BLOCK // len(program.zero))
        blocks, parts = math.ceil(n / most), []
        for b in range(blocks):
            rows = min(most, n - b * most)
            held = {k: _rows_of(v, b * most, rows, n) for k, v in context.items()}
            z = program.base(**held).expand([rows]).sample()
            shown = watch if b == 0 else None
            if shown is not None:
                shown(1.0, z)
            seen = _counted(b * steps, blocks * steps, report, shown)
            start, z = z, SAMPLERS[sampler](program, steps, z, watch=seen if report or watch else None, **how, **held)
            if b == 0 and sampler == "consistency" and steps > 1:
                _say_wider(program, steps, jump(program, start, 1.0, **held), z / program.coefficients(0.0)[1])
            fn = program.likelihood(z, **held)
            parts.append(fn.mean if mean else fn.sample())
        return torch.cat(parts)


def _counted(done: int, of: int, report: Callable[[int, int], object] | None, watch: Watch | None) -> Watch:
    """What a sampler calls after each of its steps, so many being done before."""
    numbers = count(done + 1)

    def seen(time: float, state: Tensor) -> None:
        if report is not None:
            report(next(numbers), of)
        if watch is not None:
            watch(time, state)

    return seen


def _usual(program: GaussianChain, sampler: str | None = None, steps: int | None = None) -> tuple[str, int]:
    """The sampler and its steps, where one or both are not chosen.

    A deterministic sampler adds up the network's errors; a stochastic one forgets them, with enough steps. Of a few
    values a row these are cheap: `dpmpp_sde` at 100 steps below `FEW` values, else `dpmpp` at 50: of normal data of
    any scale both leave a variance that is right to 2%. An explicit chain of few steps is what it was trained as.
    """
    if sampler is None and program.sampler is not None:
        return program.sampler[0], program.sampler[1] if steps is None else steps
    if sampler is None and not program.limit and program.steps <= SHORT and steps in (None, program.steps):
        sampler = "ancestral"
    if sampler is None:
        few = len(program.zero) < FEW and program.draws_by_steps and (steps is None or steps >= 50)
        sampler = "dpmpp_sde" if few or program.samplers and "dpmpp" not in program.samplers else "dpmpp"
    usual = program.steps if sampler == "ancestral" else STEPS.get(sampler, 50)
    return sampler, usual if steps is None else steps


def _say_off(program: GaussianChain, sampler: str, steps: int, how: Mapping[str, Any]) -> None:
    """Says where so many steps draw another variance than the network has, and how many would do.

    Not of the explicit chain, whose steps are the model, nor of a program that only some samplers draw from.
    """
    if sampler == "ancestral" and steps == program.steps and not program.limit:
        return
    if sampler == "ode" or program.samplers or steps > SHORT:
        return
    off = variance_error(program, SAMPLERS[sampler], steps, **how)
    if abs(off) <= OFF:
        return
    enough, left = steps, off
    while abs(left) > OFF / 2 and enough <= 2 * SHORT:
        enough *= 2
        left = variance_error(program, SAMPLERS[sampler], enough, **how)
    more = f"take steps={enough}, or " if abs(left) <= OFF / 2 else ""
    log.warning(
        "%d steps of %s draw a variance that is %g%% too %s where the data are normal and the network is exact; "
        "%sleave sampler and steps (--sampler, --steps) out",
        steps, sampler, float(f"{100 * abs(off):.2g}"), "large" if off > 0 else "small", more,
    )  # fmt: skip


def _say_wider(program: GaussianChain, steps: int, one: Tensor, many: Tensor) -> None:
    """Says where the errors of jumps add up.

    Args:
        one, many: ends of one jump and of so many from the same states, (n, D).
    """
    apart = [(y - y.mean(0)).abs().mean(-1).double() for y in (one, many)]
    first, last = (float(r.mean()) for r in apart)
    if len(one) < ROWS or not first:
        return
    error = math.sqrt(sum(float(r.var()) / len(r) / float(r.mean()) ** 2 for r in apart))
    if last / first - 1 > max(WIDER, 4 * error):
        log.warning(
            "%d steps of the distilled %s draw values that are %.2g%% farther from their mean than those of one step, "
            "as the errors of its steps add up; take fewer steps, or train it longer (steps= of distil), or draw from "
            "the chain", steps, program.name, 100 * (last / first - 1),
        )  # fmt: skip


def chain_of(run: Run | Program, what: str) -> GaussianChain:
    """The program, which has to be a Gaussian chain."""
    program = program_of(run)
    if not isinstance(program, GaussianChain):
        raise PpgenError(f"{what} runs a Gaussian chain backwards, and {program.name} is none; take model diffusion")
    return program


def _require_right(program: GaussianChain, sampler: str, how: Mapping[str, Any]) -> None:
    """Refuses a sampler that does not draw what the chain's own draws are."""
    right = program.samplers
    if sampler == "consistency" and sampler not in right:
        raise PpgenError(f"the sampler 'consistency' is for what distil makes of a chain, and {program.name} is none")
    if right and sampler not in right:
        raise PpgenError(f"the sampler {sampler!r} does not draw from {program.name} as set; take {', '.join(right)}")
    noise = [k for k in ("eta", "churn") if how.get(k)]
    if right and noise and "ancestral" not in right:
        raise PpgenError(f"{program.name} as set is drawn from without fresh noise; leave {noise[0]} out")
    options = [
        n for n, p in signature(SAMPLERS[sampler]).parameters.items() if p.kind is p.KEYWORD_ONLY and n != "watch"
    ]
    for name, value in how.items():
        if name not in options:
            raise PpgenError(
                f"the sampler {sampler!r} has no option {name!r}{nearest(name, options)}; its options are "
                f"{', '.join(options) or 'none'}"
            )
        if name in LEAST and not (value > 0 if LEAST[name] else value >= 0):
            raise PpgenError(f"{name} is {value}; expected {'above' if LEAST[name] else 'at least'} 0")


class Middle:
    """x̂ at the middle of each step of λ = −γ / 2, extrapolated from the step before where there is one.

    Attributes:
        latest: x̂ at the start of the last step.
    """

    def __init__(self, program: GaussianChain, steps: int, columns: dict[str, Any]):
        self.program, self.steps, self.columns = program, steps, columns
        self.latest, self.length = program.zero, torch.empty(0)

    def __call__(self, z: Tensor, s: float, t: float) -> tuple[Tensor, Tensor]:
        """The step of λ from t to s, and x̂."""
        step = (self.program.gamma(t) - self.program.gamma(s)) / 2
        now = x = self.program.denoise(z, t, **self.columns)
        if len(self.length) and not (s == 0.0 and self.steps < 15):
            x = now + (now - self.latest) * step / (2 * self.length)
        self.latest, self.length = now, step
        return step, x


def _seen(watch: Watch | None, time: float, z: Tensor) -> Tensor:
    if watch is not None:
        watch(time, z)
    return z


def _rows_of(value: Any, start: int, rows: int, n: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != n or n == 1:
        return value
    return value[start : start + rows]
