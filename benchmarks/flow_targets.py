"""The flow guide's gradient: along the path of the draw, or sticking the landing; targets whose draws are exact.

    python benchmarks/flow_targets.py [--data-dir DIR] [--seeds 3] [--steps 400] [--only normal] [--seconds S] [--out F]
    python benchmarks/flow_targets.py --table --out F

The flow of `--guide flow` begins at the normal that a guide begins at (`engine.batch_and_match`), and is fitted by Adam
(rate 0.01, a cosine, 16 draws a step) in three ways:

    pathwise    ∇_φ (log p(u) − log q_φ(u)), u = f_φ(e)
    sticking    the same with φ held in log q_φ(u): its gradient is v ∇_φ u, v = ∇_u log q = J⁻ᵀ ∇_e log q, J = ∂u/∂e
                by as many backward passes as there are dimensions, all at once: no pass of the flow's inverse
    longer      pathwise, with as many steps as take the CPU seconds of sticking

Of 10 000 draws without weights: the largest error of a mean in sd and of a log sd, the mean over coordinates of the
Wasserstein distance in sd, and k-hat. 14 targets are synthetic, of the kinds of Agrawal & Domke (2024,
arXiv:2412.08824): scales, correlations, funnels, curves, modes, tails, bounds. With --data-dir six of posteriordb as
well. Lines that F has are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from posteriordb_tables import cpu, reported
from torch import Tensor
from torch.distributions import MixtureSameFamily, MultivariateNormal, Normal, StudentT

DRAWS, PARTICLES, RATE = 10_000, 16, 0.01
KINDS = ("pathwise", "sticking", "longer")
POSTERIORS = ("eight_schools_noncentered", "momhs", "logvolume", "gp_regr", "hmm_example", "gauss_mix")


class Target(NamedTuple):
    """log p(u), (n, dim) -> (n,); draws of what is compared, (n, k); and the same of draws u."""

    dim: int
    log_prob: Callable[[Tensor], Tensor]
    exact: np.ndarray
    functions: Callable[[Tensor], np.ndarray] = lambda u: u.numpy()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def normal(cov: Tensor) -> Target:
    law = MultivariateNormal(torch.zeros(len(cov)), covariance_matrix=cov)
    return Target(len(cov), law.log_prob, (noise(DRAWS, len(cov)) @ law.scale_tril.mT).numpy())


def ill_conditioned() -> Target:
    turn = torch.linalg.qr(noise(10, 10))[0]
    return normal(turn @ torch.diag(10 ** torch.linspace(-4, 4, 10)) @ turn.mT)


def funnel(sd: float, dim: int = 10) -> Target:
    """v ~ N(0, sd), x ~ N(0, e^(v/2))."""
    z = noise(DRAWS, dim)
    z[:, 0] *= sd
    z[:, 1:] *= (z[:, :1] / 2).exp()

    def log_prob(u: Tensor) -> Tensor:
        v = u[:, :1]
        return Normal(0.0, sd).log_prob(u[:, 0]) + (-0.5 * u[:, 1:] ** 2 * (-v).exp() - v / 2).sum(-1)

    return Target(dim, log_prob, z.numpy())


def chain(scale: float, dim: int) -> Target:
    """x_1 ~ N(0, 1), x_(i+1) ~ N(x_i², scale)."""
    z = noise(DRAWS, dim)
    x = [z[:, 0]]
    for i in range(1, dim):
        x.append(x[-1] ** 2 + scale * z[:, i])

    def log_prob(u: Tensor) -> Tensor:
        after = Normal(u[:, :-1] ** 2, scale).log_prob(u[:, 1:]).sum(-1)
        return Normal(0.0, 1.0).log_prob(u[:, 0]) + after

    return Target(dim, log_prob, torch.stack(x, -1).numpy())


def modes(apart: float, dim: int) -> Target:
    """Two normals of unequal mass, so many sd apart."""
    means = torch.stack([torch.zeros(dim), torch.full((dim,), apart / dim**0.5)])
    each = MultivariateNormal(means, torch.eye(dim).expand(2, dim, dim))
    law = MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.6, 0.4])), each)
    second = torch.rand(DRAWS, generator=torch.Generator().manual_seed(2)) < 0.4
    return Target(dim, law.log_prob, (noise(DRAWS, dim) + means[second.long()]).numpy())


def student(df: float, dim: int) -> Target:
    """Independent; arcsinh of them is compared."""
    exact = np.arcsinh(np.random.default_rng(1).standard_t(df, (DRAWS, dim)))
    return Target(dim, lambda u: StudentT(df).log_prob(u).sum(-1), exact, lambda u: np.arcsinh(u.numpy()))


def log_gamma(shape: float, dim: int) -> Target:
    """Logarithms of Gamma(shape, 1)."""
    exact = np.log(np.random.default_rng(1).gamma(shape, size=(DRAWS, dim)))
    return Target(dim, lambda u: (shape * u - u.exp()).sum(-1), exact)


def logit_beta(a: float, dim: int) -> Target:
    """Logits of Beta(a, a)."""
    p = np.random.default_rng(1).beta(a, a, (DRAWS, dim))
    log_prob = torch.nn.functional.logsigmoid
    return Target(dim, lambda u: a * (log_prob(u) + log_prob(-u)).sum(-1), np.log(p) - np.log1p(-p))


def horseshoe(dim: int) -> Target:
    """log λ_i, λ_i ~ HalfCauchy, and z_i ~ N(0, λ_i), of which the arcsinh is compared."""
    z = noise(DRAWS, 2 * dim)
    scale = np.abs(np.random.default_rng(1).standard_cauchy((DRAWS, dim)))
    exact = np.concatenate([np.log(scale), np.arcsinh(z[:, :dim].numpy() * scale)], 1)

    def log_prob(u: Tensor) -> Tensor:
        w, x = u[:, :dim], u[:, dim:]
        return (w - (2 * w).exp().log1p() - 0.5 * x**2 * (-2 * w).exp() - w).sum(-1)

    return Target(2 * dim, log_prob, exact, lambda u: torch.cat([u[:, :dim], u[:, dim:].asinh()], 1).numpy())


def correlated() -> Tensor:
    i = torch.arange(10.0)
    return 0.9 ** (i[:, None] - i).abs()


TARGETS: dict[str, Callable[[], Target]] = {
    "normal, diagonal, 10-D": lambda: normal(torch.diag(10 ** torch.linspace(-2, 2, 10))),
    "normal, dense, 10-D": lambda: normal(correlated()),
    "normal, ill-conditioned, 10-D": ill_conditioned,
    "funnel, sd 1, 10-D": lambda: funnel(1.0),
    "funnel, sd 3, 10-D": lambda: funnel(3.0),
    "banana, 2-D": lambda: chain(0.5, 2),
    "banana, narrow, 2-D": lambda: chain(0.1, 2),
    "Rosenbrock, 4-D": lambda: chain(0.5, 4),
    "modes 3 apart, 5-D": lambda: modes(3.0, 5),
    "modes 8 apart, 2-D": lambda: modes(8.0, 2),
    "Student's t, 3, 10-D": lambda: student(3.0, 10),
    "log gamma, 0.5, 5-D": lambda: log_gamma(0.5, 5),
    "logit beta, 0.5, 5-D": lambda: logit_beta(0.5, 5),
    "horseshoe, 2 x 3-D": lambda: horseshoe(3),
}


class _Known(torch.autograd.Function):
    """A log joint with the gradient that came with it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, target: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        lp, g = target(u.detach())
        ctx.save_for_backward(g)
        return lp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][:, None] * ctx.saved_tensors[0], None


def of_posteriordb(folder: str, part: str) -> Target:
    import posteriordb

    from ppgen.engine import log_joint

    p = posteriordb.load(folder, next(n for n in posteriordb.NAMES if part in n))
    joint = log_joint(p.program().setup(p.columns), p.columns)

    def functions(u: Tensor) -> np.ndarray:
        return p.stacked(reported({n: v[None].numpy() for n, v in joint.unflatten(u).items()}))[0]

    exact = p.reference.reshape(-1, len(p.names))
    return Target(joint.dim, lambda u: _Known.apply(u, joint.value_and_grad), exact, functions)


# -- fits ----------------------------------------------------------------------------------------------


def fitted(t: Target, kind: str, steps: int, seed: int) -> tuple[Any, float]:
    """The flow, and CPU seconds of its steps."""
    from ppgen.engine.density.batch_and_match import best_gaussian
    from ppgen.guides.flow import _Stack

    def score(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            lp = t.log_prob(u := u.detach().requires_grad_())
            return lp.detach(), torch.autograd.grad(lp.sum(), u)[0]

    torch.manual_seed(seed)
    stack = _Stack(t.dim)
    if (begun := best_gaussian(score, t.dim, seed=seed)) is not None:
        stack.start_at(begun.loc, begun.scale_tril)
    adam = torch.optim.Adam(stack.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    start = cpu()
    for _ in range(steps):
        e = torch.randn(PARTICLES, t.dim)
        log_q, u = (_sticking if kind == "sticking" else _pathwise)(stack, e)
        loss = (log_q - t.log_prob(u)).mean()
        adam.zero_grad()
        loss.backward()
        if all(torch.isfinite(p.grad).all() for p in stack.parameters()):  # as `fit` leaves such a step out
            adam.step()
        schedule.step()
    return stack, cpu() - start


def _pathwise(stack: Any, e: Tensor) -> tuple[Tensor, Tensor]:
    u, ladj = stack.push(e)
    return -0.5 * (e * e).sum(-1) - ladj, u


def _sticking(stack: Any, e: Tensor) -> tuple[Tensor, Tensor]:
    """v u, whose gradient is that of log q_φ(u) at a held φ; up to a constant."""
    e = e.requires_grad_()
    u, ladj = stack.push(e)
    b = torch.autograd.grad(-0.5 * (e * e).sum() - ladj.sum(), e, retain_graph=True)[0]
    each = torch.eye(e.shape[1])[:, None].expand(-1, len(e), -1)
    J = torch.autograd.grad(u, e, each, retain_graph=True, is_grads_batched=True)[0].movedim(0, 1)  # (n, of u, of e)
    v = torch.linalg.solve(J.mT, b)
    return (v * u).sum(-1), u


@torch.no_grad()
def measured(t: Target, stack: Any) -> dict[str, float]:
    from ppgen.inference.evaluation.psis import smoothed

    e = torch.randn(DRAWS, t.dim, generator=torch.Generator().manual_seed(3))
    log_q, u = _pathwise(stack, e)
    log_w = (t.log_prob(u) - log_q).numpy()
    x, exact = t.functions(u), t.exact
    sd = exact.std(0)
    q = (np.arange(1000) + 0.5) / 1000
    apart = np.abs(np.quantile(x, q, axis=0) - np.quantile(exact, q, axis=0)).mean(0) / sd
    return {
        "mean": float(np.abs((x.mean(0) - exact.mean(0)) / sd).max()),
        "log_sd": float(np.abs(np.log(x.std(0) / sd)).max()),
        "wasserstein": float(apart.mean()),
        "khat": float(smoothed(np.nan_to_num(log_w, nan=-math.inf)[:, None])[1][0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of posteriordb")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of targets' names")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no further fit is begun")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = [json.loads(line) for line in options.out.open()] if options.out and options.out.exists() else []
    if options.table:
        return print(table(rows))
    done, began = {(r["target"], r["seed"]) for r in rows}, time.monotonic()
    made = dict(TARGETS)
    for part in POSTERIORS if options.data_dir else ():
        made[part] = lambda part=part: of_posteriordb(options.data_dir, part)  # type: ignore[misc]
    for seed in range(options.seeds):
        for name, make in made.items():
            wanted = any(part in name for part in options.only) and (name, seed) not in done
            if wanted and time.monotonic() - began < options.seconds:
                rows += (new := three(make(), name, seed, options.steps))
                print("\n".join(json.dumps(r) for r in new), flush=True)
                if options.out:
                    with options.out.open("a") as f:
                        f.writelines(json.dumps(r) + "\n" for r in new)
    print(table(rows))


def three(t: Target, name: str, seed: int, steps: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        n = steps if kind != "longer" else round(steps * found[1]["seconds"] / found[0]["seconds"])
        stack, seconds = fitted(t, kind, n, seed)
        row = {"target": name, "kind": kind, "seed": seed, "steps": n, "seconds": seconds}
        found.append(row | measured(t, stack))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians over seeds of mean / log sd / Wasserstein, k-hat."""
    lines = [f"| target | {' | '.join(KINDS)} | steps of longer |", "|---|--:|--:|--:|--:|"]
    for name in dict.fromkeys(r["target"] for r in rows):
        cells = []
        for kind in KINDS:
            mine = [r for r in rows if r["target"] == name and r["kind"] == kind]
            a, b, c, k = (statistics.median(r[m] for r in mine) for m in ("mean", "log_sd", "wasserstein", "khat"))
            cells.append(f"{a:.3f} / {b:.3f} / {c:.3f}, {k:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.median(r['steps'] for r in mine):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
