"""Bias and variance of every objective's gradient on a linear-Gaussian model, against closed forms.

    python benchmarks/gradients.py [--particles 8] [--repeats 4000]

z ~ N(0, I_2), x | z ~ N(W z + m, 0.5 I_3), 20 rows; the guide is N(A x, diag s), s half as wide again as the posterior.
The reference is exact: autograd through the closed form of the ELBO, of log p(x), of E_p KL(p(z | x), q) over the
model's own data, of the chi-square bound, of Rényi's bound or of the thermodynamic one, the latter three of infinitely
many draws; of the importance-weighted bound it is `iwae` with 40 times the repeats, of as many draws as are in a group.
Bias in standard errors of the mean, largest over the parameters of the group, and relative to the reference's norm;
variance as a ratio to that of `sampled`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from functools import cache

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen import Program, rows
from ppgen.check import check
from ppgen.inference import Objective

NOISE = 0.5**0.5


class Linear(Program):
    """The model above: theta = (W, m), phi = (A, log s)."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.W = torch.nn.Parameter(torch.randn(3, 2, generator=g).double())
        self.m = torch.nn.Parameter(torch.randn(3, generator=g).double())
        precision = torch.eye(2).double() + self.W.detach().T @ self.W.detach() / NOISE**2
        self.A = torch.nn.Parameter(torch.linalg.solve(precision, self.W.detach().T / NOISE**2) * 0.9)
        self.log_s = torch.nn.Parameter((1.5 * precision.inverse().diagonal().sqrt()).log())

    def model(self, x: Tensor | None = None) -> None:
        with rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(self.W), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T + self.m, NOISE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with rows(x):
            pyro.sample("z", dist.Normal((x - self.m.detach()) @ self.A.T, self.log_s.exp()).to_event(1))

    # -- closed forms, a row ---------------------------------------------------------------------------

    def marginal(self) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.m, self.W @ self.W.T + NOISE**2 * torch.eye(3).double())

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        precision = torch.eye(2).double() + self.W.T @ self.W / NOISE**2
        mean = torch.linalg.solve(precision, self.W.mT @ (x - self.m).mT / NOISE**2).mT
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def q(self, x: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal((x - self.m.detach()) @ self.A.T, torch.diag_embed((2 * self.log_s).exp()))

    def elbo(self, x: Tensor) -> Tensor:
        kl = torch.distributions.kl_divergence(self.q(x), self.posterior(x))
        return (self.marginal().log_prob(x) - kl).mean()

    def evidence(self, x: Tensor) -> Tensor:
        return self.marginal().log_prob(x).mean()

    def chi(self, x: Tensor) -> Tensor:
        """-1/2 log E_q (p(z | x) / q)^2, for the guide."""
        return -0.5 * self._between(x, 2.0)[0].mean()

    def renyi(self, x: Tensor, alpha: float = 0.5) -> Tensor:
        """1/(1 - alpha) log E_q (p(x, z) / q)^(1 - alpha)."""
        return self.evidence(x) + self._between(x, 1 - alpha)[0].mean() / (1 - alpha)

    def thermodynamic(self, x: Tensor, intervals: int = 5, first: float = 0.03) -> Tensor:
        """The left Riemann sum of E_pi log p(x, z) / q over beta, pi in proportion to q^(1 - beta) p^beta."""
        betas = [0.0, *torch.logspace(math.log10(first), 0, intervals).tolist()]
        p, q, total = self.posterior(x), self.q(x), self.evidence(x)
        for beta, above in itertools.pairwise(betas):
            pi = self._between(x, beta)[1]
            for sign, one in ((1, p), (-1, q)):
                spread = (one.precision_matrix @ pi.covariance_matrix).diagonal(dim1=-2, dim2=-1).sum(-1)
                total = total + sign * (above - beta) * (one.log_prob(pi.loc) - 0.5 * spread).mean()
        return total

    def _between(self, x: Tensor, power: float) -> tuple[Tensor, dist.MultivariateNormal]:
        """log of the integral of q^(1 - power) p(z | x)^power, and the density in proportion to it."""
        p, q = self.posterior(x), self.q(x)
        a, b = power * p.precision_matrix, (1 - power) * q.precision_matrix
        h = (a @ p.loc[..., None] + b @ q.loc[..., None])[..., 0]
        pi = dist.MultivariateNormal(torch.linalg.solve(a + b, h[..., None])[..., 0], precision_matrix=a + b)
        at = pi.loc
        return power * p.log_prob(at) + (1 - power) * q.log_prob(at) - pi.log_prob(at), pi

    def forward_kl(self, x: Tensor) -> Tensor:
        """-E KL(p(z | x), q) over x from the model, up to what does not depend on the guide."""
        mean, cov = self.m.detach(), (self.W @ self.W.T + NOISE**2 * torch.eye(3).double()).detach()
        gain = self.posterior(torch.eye(3).double() + mean).loc.detach().T - self.A  # p's mean less q's, of x - m
        spread = (gain @ cov @ gain.T).diagonal() + self.posterior(mean).covariance_matrix.diagonal().detach()
        return -(self.log_s + spread / (2 * (2 * self.log_s).exp())).sum()


THETA, PHI = ("W", "m"), ("A", "log_s")
# The closed form of the gradient of theta, of phi; "iwae", "iwae of half": by these, and by halves of two
EXACT: dict[str, tuple[str | None, str | None]] = {
    "analytic": ("elbo", "elbo"), "sampled": ("elbo", "elbo"), "sampled sticking": ("elbo", "elbo"),
    "sampled score": ("elbo", "elbo"), "iwae": ("iwae", "iwae"), "dreg": ("iwae", "iwae"), "gdreg": ("iwae", "iwae"),
    "piwae(groups=2)": ("iwae", "iwae of half"), "vimco": ("iwae", "iwae"), "rws": ("evidence", None),
    "cubo": ("evidence", "chi"), "wake_sleep": ("elbo", "forward_kl"),
    "miwae(groups=2)": ("iwae of half", "iwae of half"), "ciwae(beta=0.5)": ("elbo, iwae", "elbo, iwae"),
    "renyi(alpha=0.5)": ("renyi", "renyi"), "tvo": ("thermodynamic", "thermodynamic"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=4000)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    program = Linear()
    x = program.marginal().sample((20,)).detach()
    program.setup({"x": x}, None)
    structure = check(program, {"x": x})

    def gradients(choice: str, repeats: int, particles: int = options.particles) -> dict[str, Tensor]:
        name, _, estimator = choice.partition(" ")
        bound = Objective(program, structure, 20, objective=name, gradient=estimator or "pathwise", particles=particles)
        return _of(program, lambda: -bound({"x": x})[0], repeats)

    @cache
    def reference(name: str) -> dict[str, Tensor]:
        if name.startswith("iwae"):
            k = options.particles // (2 if name.endswith("half") else 1)
            return {n: g.mean(0) for n, g in gradients("iwae", 40 * options.repeats, k).items()}
        return {n: g[0] for n, g in _of(program, lambda: getattr(program, name)(x), 1).items()}

    reference("iwae")
    plain = gradients("sampled", options.repeats)
    print("| objective, gradient | theta: bias / s.e. | relative | variance | phi: bias / s.e. | relative | variance |")
    print("|---|" + "--:|" * 6)
    for choice, names in EXACT.items():
        found, cells = gradients(choice, options.repeats), []
        for group, closed in zip((THETA, PHI), names, strict=True):
            g, base = (torch.cat([one[k].flatten(1) for k in group], 1) for one in (found, plain))
            parts = [reference(n) for n in closed.split(", ")] if closed else []
            exact = (
                torch.cat([(sum(part[k] for part in parts) / len(parts)).flatten() for k in group]) if parts else None
            )
            cells += _cells(g, base, exact)
        print(f"| {choice} | {' | '.join(cells)} |", flush=True)


def _of(program: Program, value: Callable[[], Tensor], repeats: int) -> dict[str, Tensor]:
    names, parameters = zip(*program.named_parameters(), strict=True)
    each = [torch.autograd.grad(value(), parameters, allow_unused=True) for _ in range(repeats)]
    zeros = [torch.zeros_like(p) for p in parameters]
    return {
        n: torch.stack([z if e[i] is None else e[i] for e in each])
        for i, (n, z) in enumerate(zip(names, zeros, strict=True))
    }


def _cells(g: Tensor, base: Tensor, reference: Tensor | None) -> list[str]:
    variance = f"{float(g.var(0).sum() / base.var(0).sum()):.3g}"
    if reference is None:
        return ["", "", variance]
    off, se = g.mean(0) - reference, g.std(0) / len(g) ** 0.5
    worst = float((off.abs() / (se + 1e-12)).max()) if float(off.abs().max()) > 1e-10 else 0.0
    return [f"{worst:.1f}", f"{float(off.norm() / reference.norm()):.1%}", variance]


if __name__ == "__main__":
    main()
