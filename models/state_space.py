r"""The linear-Gaussian state-space model of series: the Kalman filter and smoother give its exact posterior.

    z_0 ~ N(m, diag(s²)),   z_t | z_{t-1} ~ N(A z_{t-1}, diag(q²)),   x_t | z_t ~ N(C z_t + d, diag(r²))
                                                            z_t: (k,), x_t: (D,), A: (k, k), C: (D, k)

For log p(x) the states are integrated out, in log2 T rounds of pairs of steps (`ppgen.distributions.gaussian_hmm`).
That, the filter and the smoother are computed in float64.

Sources: A New Approach to Linear Filtering and Prediction Problems (Kalman 1960); Maximum Likelihood Estimates of
Linear Dynamic Systems (Rauch, Tung, Striebel 1965), for the smoother; Temporal parallelization of Bayesian smoothers
(Särkkä & García-Fernández 2019, arXiv:1905.13002), for the pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import GaussianHMM, Normal, constraints
from torch import Tensor, nn

import ppgen
from ppgen.data.precision import wide
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError, lacking


class _States(NamedTuple):
    """Means (..., T, k) and covariances (..., T, k, k) of normal states."""

    mean: Tensor
    cov: Tensor

    def to(self, like: Tensor) -> _States:
        """In another dtype."""
        return _States(self.mean.to(like), self.cov.to(like))


class _Parts(NamedTuple):
    """The parameters, as the equations have them."""

    A: Tensor
    C: Tensor
    d: Tensor
    m: Tensor
    s: Tensor
    q: Tensor
    r: Tensor

    def hmm(self, C: Tensor) -> GaussianHMM:
        """Pyro's distribution of x − d with the observation matrices (..., T, D, k)."""
        start, step, noise = (Normal(m, s).to_event(1) for m, s in ((self.m, self.s), (0.0, self.q), (0.0, self.r)))
        return GaussianHMM(start, self.A.mT, step, C.mT, noise, duration=C.shape[-3])

    def ahead(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the next state."""
        return mean @ self.A.mT, self.A @ cov @ self.A.mT + (self.q**2).diag()


class _Series(Expanding):
    """Series of the model, (T, D), states integrated out; of the cells with seen = 0 nothing is said.

    A cell that is not seen has a row of zeros in C and the value d: it says nothing of the states, and its own density
    is known, and taken off.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(self, program: StateSpace, duration: int, seen: Tensor | None = None):
        self.program, self.seen = program, seen
        super().__init__(torch.Size(), torch.Size((duration, len(program.d))), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., T, D) -> (...)."""
        p = self.program.parts()
        noise, away = Normal(0.0, p.r), wide(value) - p.d
        if self.seen is None:
            return p.hmm(p.C.expand(*value.shape, -1)).log_prob(away).to(self.program.d)
        away = torch.where(self.seen > 0, away, 0.0)
        unseen = torch.where(self.seen > 0, 0.0, noise.log_prob(torch.zeros_like(away))).sum((-1, -2))
        return (p.hmm(p.C * self.seen[..., None]).log_prob(away) - unseen).to(self.program.d)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Step by step."""
        p, shape = self.program, torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            z, x = p.m + p.s * torch.randn(*shape, len(p.m)).to(p.m), []
            for _ in range(self.event_shape[0]):
                z = z @ p.A.mT + p.q * torch.randn_like(z)
                x.append(z @ p.C.mT + p.d + p.r * torch.randn(*shape, len(p.d)).to(p.d))
            return torch.stack(x, -2)


class StateSpace(ppgen.Program):
    """Real series x: (N, T, D); `seen`, (N, T, D) of 0 and 1, where x is known (none: everywhere).

    What stands in x where it is not seen counts for nothing: 0 will do, or nan.

    Args:
        features: D.
        latent: k, the number of states.
        duration: T of series that are generated.

    Attributes:
        A, C, d, m: the parameters of those names; log_s, log_q, log_r the logarithms of the standard deviations.

    Raises:
        PpgenError: an argument out of range; a column x that is no (N, T, D).
    """

    dims = {"x": ["time", "feature"]}

    def __init__(self, features: int, latent: int = 2, duration: int = 50):
        super().__init__()
        if min(features, latent, duration) < 1:
            raise PpgenError(
                f"StateSpace got features={features}, latent={latent}, duration={duration}; expected at least 1 of each"
            )
        self.duration = duration
        self.A = nn.Parameter(0.9 * torch.eye(latent))
        self.C = nn.Parameter(torch.randn(features, latent) / latent**0.5)
        self.d, self.m = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(latent))
        self.log_s, self.log_q = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.full((latent,), -1.0))
        self.log_r = nn.Parameter(torch.full((features,), -1.0))

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features and of steps."""
        if "x" not in data or data["x"].dim() != 3:
            needed = "StateSpace needs a column x of shape (series, steps, features)"
            raise lacking(needed, data, "name it with columns= (--columns x=...)")
        return {"features": data["x"].shape[-1], "duration": data["x"].shape[-2]}

    s = property(lambda self: self.log_s.exp(), doc="The standard deviations of z_0.")
    q = property(lambda self: self.log_q.exp(), doc="Those of a step.")
    r = property(lambda self: self.log_r.exp(), doc="Those of x_t given z_t.")

    def model(self, x: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """p(x), with x of shape (N, T, D)."""
        with ppgen.rows(x, seen):
            return pyro.sample("x", _Series(self, self.duration if x is None else x.shape[-2], seen), obs=x)

    def parts(self) -> _Parts:
        """The parameters in float64."""
        return _Parts(*map(wide, (self.A, self.C, self.d, self.m, self.s, self.q, self.r)))

    @torch.no_grad()
    def filter(self, x: Tensor, seen: Tensor | None = None) -> _States:
        """The states given what was seen so far, p(z_t | x_{1:t}): (..., T, D) -> (..., T, k) and (..., T, k, k)."""
        return self._filter(x, seen).to(self.d)

    def _filter(self, x: Tensor, seen: Tensor | None) -> _States:
        p, x = self.parts(), wide(x) if seen is None else torch.where(seen > 0, wide(x), 0.0)
        eye, mean = torch.eye(len(p.m)).to(p.m), p.m.expand(*x.shape[:-2], -1)
        cov = (p.s**2).diag().expand(*mean.shape, -1)
        means: list[Tensor] = []
        covs: list[Tensor] = []
        for t in range(x.shape[-2]):
            mean, cov = p.ahead(mean, cov)
            C = p.C if seen is None else p.C * seen[..., t, :, None]
            gain = torch.linalg.solve(C @ cov @ C.mT + (p.r**2).diag(), C @ cov).mT  # (..., k, D)
            mean = mean + (gain @ (x[..., t, :] - p.d - (C @ mean[..., None])[..., 0])[..., None])[..., 0]
            cov = (eye - gain @ C) @ cov
            means, covs = [*means, mean], [*covs, cov]
        return _States(torch.stack(means, -2), torch.stack(covs, -3))

    @torch.no_grad()
    def smooth(self, x: Tensor, seen: Tensor | None = None) -> _States:
        """The states given the whole series, p(z_t | x_{1:T}): (..., T, D) -> (..., T, k) and (..., T, k, k)."""
        p, found = self.parts(), self._filter(x, seen)
        mean, cov = found.mean[..., -1, :], found.cov[..., -1, :, :]
        means, covs = [mean], [cov]
        for t in range(x.shape[-2] - 2, -1, -1):
            before, own = found.mean[..., t, :], found.cov[..., t, :, :]
            ahead, spread = p.ahead(before, own)
            gain = torch.linalg.solve(spread, p.A @ own).mT
            mean = before + (gain @ (mean - ahead)[..., None])[..., 0]
            cov = own + gain @ (cov - spread) @ gain.mT
            means, covs = [mean, *means], [cov, *covs]
        return _States(torch.stack(means, -2), torch.stack(covs, -3)).to(self.d)

    @torch.no_grad()
    def forecast(self, x: Tensor, steps: int, seen: Tensor | None = None) -> _States:
        """The next values, p(x_{T+h} | x_{1:T}), h = 1 ... H = steps: (..., T, D) -> (..., H, D) and (..., H, D, D)."""
        p, found = self.parts(), self._filter(x, seen)
        mean, cov = found.mean[..., -1, :], found.cov[..., -1, :, :]
        means: list[Tensor] = []
        covs: list[Tensor] = []
        for _ in range(steps):
            mean, cov = p.ahead(mean, cov)
            means.append(mean @ p.C.mT + p.d)
            covs.append(p.C @ cov @ p.C.mT + (p.r**2).diag())
        return _States(torch.stack(means, -2), torch.stack(covs, -3)).to(self.d)
