r"""When a fit may stop: its averaged iterates have stopped moving.

At a constant learning rate the parameters λ_t of a stochastic optimiser end up wandering about a place, and the mean of
what they say is nearer to it than any of them. What they say is told by a probe: the latents that the guide draws, and
the log-probabilities of some observed rows, at noise that is the same for all t. (Weights of a network may wander along
directions that change nothing; a probe does not.) Its unit is the spread over the draws, the posterior's sd. In phases,
each with a quarter of the learning rate of the one before:

1. wait until the probe is stationary: split R-hat of a late window is below 1.1, or its halves differ by less than 0.02
   units; by less than 0.15 after the learning rate has fallen once, since a slow wandering about a place that is known
   to be near has a high R-hat for long, and matters only by how far it goes;
2. average from there until the Monte Carlo standard error of the mean probe (by batch means) is below 0.08 units;
3. where that mean has moved by less than 0.15 units since the phase before, the fit has converged, and the average of
   the parameters is kept; else, or where 60 iterates were not enough for the second, the learning rate falls.

Each is asked of all entries of the probe but the worst hundredth.

Sources: Robust, Accurate Stochastic Optimization for Variational Inference (Dhaka et al., 2020, arXiv:2009.00666), for
R-hat, averages and their standard error; Robust, Automated, and Accurate Black-box Variational Inference (Welandawe et
al., 2022, arXiv:2203.15945), for the falling learning rate and the choice of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppgen.data import n_rows, take
from ppgen.draws import Many, one_draw, parameters_as
from ppgen.inference.training.optimise import move_average
from ppgen.program import Program
from ppgen.structure import Structure

EVERY = 20  # steps an iterate
FALL = 0.25  # of the learning rate
CHECK = 10  # iterates a check
LEAST = 30  # iterates in a window
ENOUGH = 60  # iterates of an average that is still not precise: the learning rate is what makes it so
MOST = 400  # iterates that are remembered: then every second is forgotten
DRAWS, ROWS, ENTRIES = 8, 64, 2000  # of the probe, at most
R_HAT, SMALL, ERROR, MOVED = 1.1, 0.02, 0.08, 0.15


@dataclass
class Convergence:
    """Where a fit stands on its way to convergence: all of it is in a checkpoint, as `vars`.

    Attributes:
        phase: how often the learning rate has fallen.
        converged: whether it may stop.
        average: of the program's state since the probe became stationary; None before.
    """

    phase: int = 0
    converged: bool = False
    averaging: bool = False
    seen: int = 0  # iterates of this part of the phase
    stride: int = 1  # of these, which are remembered
    count: int = 0  # of states in the average
    iterates: Tensor = field(default_factory=lambda: torch.empty(0))  # (n, draws, entries) of the probe
    average: dict[str, Tensor] | None = None
    last: Tensor = field(default_factory=lambda: torch.empty(0))  # the mean of the phase before

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return FALL**self.phase

    @torch.no_grad()
    def note(self, state: Mapping[str, Tensor], probed: Tensor) -> None:
        """Takes in an iterate, `EVERY` steps after the one before.

        Args:
            state: the program's.
            probed: what a `Probe` says of it.
        """
        if self.averaging:
            self._average(state)
        if self.seen % self.stride == 0:
            self.iterates = probed[None] if not len(self.iterates) else torch.cat((self.iterates, probed[None]))
        self.seen += 1
        if len(self.iterates) > MOST:
            self.iterates, self.stride = self.iterates[::2].clone(), 2 * self.stride
        if len(self.iterates) >= LEAST and self.seen % (CHECK * self.stride) == 0:
            self._check()

    def _check(self) -> None:
        n, u = len(self.iterates), _unit(self.iterates)
        if not self.averaging:
            windows = {max(LEAST, int(n * share)) for share in (0.95, 0.75, 0.5, 0.35)}
            if any(self._settled(self.iterates[-w:], u) for w in windows):
                self.averaging, self.count, self.average = True, 0, None
                self._forget()
            return
        if not self._settled(self.iterates, u):
            if _most(_split_r_hat(self.iterates)) > 2 * R_HAT:  # it was not stationary: begin the average anew
                self.count, self.average = 0, None
                self._forget()
            return
        mean, precise = self.iterates.mean(0), _most(_mcse(self.iterates) / u) < ERROR
        if precise and self.phase and _most((mean - self.last).abs() / u) < MOVED:
            self.converged = True
        elif n >= ENOUGH or precise and not self.phase:
            self.last, self.averaging = mean, False
            self.phase += 1
            self._forget()

    def _settled(self, iterates: Tensor, u: Tensor) -> bool:
        """Whether a window is stationary, by the measure of this phase."""
        return _stationary(iterates, u, MOVED if self.phase else SMALL)

    def _forget(self) -> None:
        self.seen, self.stride, self.iterates = 0, 1, torch.empty(0)

    def _average(self, state: Mapping[str, Tensor]) -> None:
        self.count += 1
        average = self.average = {} if self.average is None else self.average
        here = {k: v.to(average[k]) if k in average else v for k, v in state.items()}  # of a checkpoint on the CPU
        move_average(average, here, 1 / self.count)


class Probe:
    """What a program says at noise of one seed, (draws, entries): latents, log-probabilities of observed sites.

    Args:
        program: in whatever mode; it is probed in eval mode.
        data: the columns, of which the first rows are taken.
    """

    def __init__(self, program: Program, data: Mapping[str, Tensor], structure: Structure):
        if not (program.fixed_rows and structure.locals):
            rows = structure.row_columns
            data = take(data, slice(0, min(ROWS, n_rows(data, rows))), rows)
        self.program, self.data, self.structure = program, data, structure
        # Parameters are inputs: a compiled step moves them to other memory.
        self._names = list(dict(program.named_parameters()))
        self._many = Many(self._one, self._parameters(), name=program.name)

    def _parameters(self) -> list[Tensor]:
        own = dict(self.program.named_parameters())
        return [own[n].detach() for n in self._names]

    def _one(self, *parameters: Tensor) -> list[Tensor]:
        found = []
        with parameters_as(self.program, dict(zip(self._names, parameters, strict=True))):
            drawn = one_draw(self.program, self.data, self.structure)
        for t in drawn:
            if t.role == "prior" and t.value.is_floating_point():
                found.append(t.value)
            elif t.role in ("likelihood", "factor", "summed"):
                found.append(t.log_density)
        return [torch.cat([v.reshape(-1) for v in found])]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        training = self.program.training
        self.program.eval()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                found = self._many(DRAWS, self._parameters())[0].cpu()
        finally:
            self.program.train(training)
        return found[:, :: -(-found.shape[1] // ENTRIES)]


def _unit(iterates: Tensor) -> Tensor:
    """The spread of the mean probe over its draws, by entry; over the entries, where draws do not differ."""
    mean = iterates.mean(0)
    spread = mean.std(0)
    overall = mean.std().clamp_min(1e-12)
    return torch.where(spread > 1e-6 * overall, spread, overall)


def _split_r_hat(iterates: Tensor) -> Tensor:
    """Split R-hat of one chain of iterates, (n, ...) -> (...): 1 where its halves tell the same mean, or nothing moves.

    >>> bool(_split_r_hat(torch.arange(100.0)) > 1.5)
    True
    """
    half = len(iterates) // 2
    parts = torch.stack((iterates[-2 * half : -half], iterates[-half:])).double()
    within = parts.var(1).mean(0)
    between = parts.mean(1).var(0)
    r = ((half - 1) / half + between / within.clamp_min(1e-300)).sqrt()
    return torch.where(within > 0, r, 1.0)


def _stationary(iterates: Tensor, u: Tensor, small: float) -> bool:
    """Whether the halves of a window tell the same mean: by R-hat, or to within so many units."""
    r = _split_r_hat(iterates)
    half = len(iterates) // 2
    drift = (iterates[-half:].mean(0) - iterates[-2 * half : -half].mean(0)).abs()
    return _most(torch.where(drift < small * u, 1.0, r)) < R_HAT


def _mcse(iterates: Tensor) -> Tensor:
    """Standard error of the mean by batch means: √n batches of √n iterates."""
    size = max(2, int(len(iterates) ** 0.5))
    batches = len(iterates) // size
    means = iterates[-batches * size :].unflatten(0, (batches, size)).mean(1)
    return means.std(0) / batches**0.5


def _most(values: Tensor) -> float:
    """The largest value but for a hundredth of them."""
    return float(values.double().flatten().quantile(0.99, interpolation="higher"))
