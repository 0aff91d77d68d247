"""Hierarchical and large posteriors whose truth is known: errors, and effective draws a CPU second of the whole call.

    python benchmarks/whole_calls.py [--methods chees marginal through infer nuts] [--only groups] [--seeds 1] [--out F]
    python benchmarks/whole_calls.py --export DIR    # data and truths for whole_calls_numpyro.py
    python benchmarks/whole_calls.py --evidence      # what Laplace's method gives beside quadrature, no chains
    python benchmarks/whole_calls.py --methods marginal --beside DIR    # and beside moments of whole_calls_numpyro.py
    python benchmarks/whole_calls.py --floor 5409 [--draws 1000]    # R-hat of chains that are in their target

marginal: `mcmc(..., marginal=)` of the target's inner latents. through: a smooth flow guide is fitted, and 64 chains of
1 000 draws (--draws) go through it; what the fit took is in the last column. The CPU seconds are those of a process's
first call, from the model to the tree of draws, tracing and compiling included: each row is of a process of its own,
and torch keeps its compiled code for the next. What takes more than --cap of them is cut. Columns: the largest error of
a mean in sd, and of a log sd, over all latents; the largest R-hat and the least bulk ESS of a latent; what the checks
say. With --out, lines that the file has are not run again. With --beside, the last column has the largest difference of
a mean, and of an sd, of a latent from that of the other's chains, in Monte Carlo standard errors of both.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from hard_targets import TARGETS, Cut, Target, at_most, begun, keep
from loops import garch, lotka_volterra
from many_dimensions import moments
from posteriordb_tables import cpu
from pyro.distributions import Binomial, Gamma, HalfCauchy, HalfNormal, Normal, Poisson
from scipy.special import gammaln
from torch import Tensor

from ppgen import Program, rows
from ppgen.distributions import Flat
from ppgen.engine import log_joint
from ppgen.engine.density.laplace import LaplaceMarginal
from ppgen.inference.sampling.mcmc import run_chains

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SD = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
Z = np.linspace(-8, 8, 641)  # of a standard normal, for sums


class Moments(NamedTuple):
    """Of each latent."""

    mean: np.ndarray
    sd: np.ndarray


def averaged(p: np.ndarray, means: list[np.ndarray], squares: list[np.ndarray]) -> Moments:
    """Of conditional first and second moments (grid, ...) over a grid whose points have mass p."""
    first, second = (np.concatenate([np.atleast_1d(p @ x) for x in each]) for each in (means, squares))
    return Moments(first, np.sqrt(second - first**2))


def mass(lp: np.ndarray) -> np.ndarray:
    return np.exp(lp - lp.max()) / np.exp(lp - lp.max()).sum()


def grid(m: tuple[float, float], s: tuple[float, float], points: int = 81) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.meshgrid(np.linspace(*m, points), np.linspace(*s, points))
    return one.ravel(), two.ravel()


# -- centred eight schools ---------------------------------------------------------------------------------


def schools(y: Tensor, sd: Tensor) -> None:
    m, s = pyro.sample("m", Normal(0.0, 5.0)), pyro.sample("s", HalfCauchy(5.0))
    with rows(y):
        pyro.sample("y", Normal(pyro.sample("a", Normal(m, s)), sd), obs=y)


def schools_log_joint(m: np.ndarray, log_s: np.ndarray) -> np.ndarray:
    """log p(y, m, log s), each effect integrated out in closed form."""
    s = np.exp(log_s)
    v = s[..., None] ** 2 + SD**2
    each = -0.5 * (Y - m[..., None]) ** 2 / v - 0.5 * np.log(2 * math.pi * v)
    prior = -(m**2) / 50 - 0.5 * math.log(2 * math.pi * 25) + math.log(2 / (5 * math.pi)) - np.log1p((s / 5) ** 2)
    return each.sum(-1) + prior + log_s


def eight_schools() -> Target:
    m, log_s = grid((-25, 33), (-10, 7), 801)
    p, s = mass(schools_log_joint(m, log_s)), np.exp(log_s)
    w = s[:, None] ** 2 / (s[:, None] ** 2 + SD**2)
    a = w * Y + (1 - w) * m[:, None]
    found = averaged(p, [m, log_s, a], [m**2, log_s**2, a**2 + w * SD**2])

    def functions(d: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([d["m"][:, None], np.log(d["s"])[:, None], d["a"]], 1)

    return Target(schools, {"y": torch.tensor(Y), "sd": torch.tensor(SD)}, functions, *found)


def schools_evidence() -> None:
    """By Laplace's method on the traced model (exact here), summed over a grid, beside the closed form on the same."""
    joint = LaplaceMarginal(
        log_joint(Program.from_pair(schools), {"y": torch.tensor(Y), "sd": torch.tensor(SD)}), ("a",)
    )
    m, log_s = grid((-25, 33), (-10, 7), 201)
    cell = math.log(58 / 200 * 17 / 200)
    u = torch.tensor(np.stack([m, log_s], -1))
    ours = torch.cat([joint.value_and_grad(part)[0] for part in u.split(201)])
    exact = np.logaddexp.reduce(schools_log_joint(m, log_s)) + cell
    found = float(torch.logsumexp(ours, 0)) + cell
    print(f"eight schools, log p(y): closed form {exact:.5f}, Laplace's method {found:.5f}", flush=True)


# -- a Gaussian process of counts --------------------------------------------------------------------------

X = np.arange(-10.0, 11, 2)
K = np.array([40, 37, 29, 12, 4, 3, 9, 19, 77, 82, 33])
JITTER = 1e-10


def process(x: Tensor, k: Tensor) -> None:
    """posteriordb's gp_pois_regr: k ~ Poisson(exp f), f = L z of a squared-exponential kernel."""
    rho = pyro.sample("rho", Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", HalfNormal(2.0))
    z = pyro.sample("z", Normal(torch.zeros(len(x)), 1.0).to_event(1))
    cov = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + JITTER * torch.eye(len(x))
    f = pyro.deterministic("f", torch.linalg.cholesky(cov) @ z)
    pyro.sample("k", Poisson(f.exp()).to_event(1), obs=k)


def process_at(
    rho: float, alpha: float, rng: np.random.Generator, n: int = 500
) -> tuple[float, np.ndarray, np.ndarray]:
    """log p(k | rho, alpha), and E f, E f², by importance sampling about the top over z: a t of 7 degrees."""
    L = np.linalg.cholesky(alpha**2 * np.exp(-0.5 * ((X[:, None] - X) / rho) ** 2) + JITTER * np.eye(11))
    top = np.zeros(11)
    for _ in range(100):
        rate = np.exp(L @ top)
        slope, curve = L.T @ (K - rate) - top, np.eye(11) + L.T @ (rate[:, None] * L)
        step = np.linalg.solve(curve, slope)
        top = top + step / max(1.0, np.abs(L @ step).max())
    root = np.linalg.cholesky(np.linalg.inv(curve))
    normals, chi = rng.normal(size=(n, 11)), rng.chisquare(7, n)
    t = np.concatenate([normals, -normals]) * np.sqrt(7 / np.concatenate([chi, chi]))[:, None]
    log_q = (gammaln(9) - gammaln(3.5) - 5.5 * math.log(7 * math.pi) - 9 * np.log1p((t**2).sum(-1) / 7)
             - np.log(np.diag(root)).sum())  # fmt: skip
    z = top + t @ root.T
    f = z @ L.T
    lp = (K * f - np.exp(f) - gammaln(K + 1)).sum(-1) - 0.5 * (z**2).sum(-1) - 5.5 * math.log(2 * math.pi)
    w = lp - log_q
    log_z = float(np.logaddexp.reduce(w)) - math.log(2 * n)
    p = mass(w)
    return log_z, p @ f, p @ f**2


def gp_counts() -> Target:
    rng = np.random.default_rng(0)
    rho, alpha = grid((2.0, 12.0), (0.4, 8.0), 41)
    each = [process_at(r, a, rng) for r, a in zip(rho.tolist(), alpha.tolist(), strict=True)]
    lp = np.array([e[0] for e in each]) + 24 * np.log(rho) - 4 * rho - alpha**2 / 8
    f, f2 = (np.stack([e[i] for e in each]) for i in (1, 2))
    found = averaged(mass(lp), [rho, alpha, f], [rho**2, alpha**2, f2])

    def functions(d: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([d["rho"][:, None], d["alpha"][:, None], d["f"]], 1)

    return Target(process, {"x": torch.tensor(X), "k": torch.tensor(K).double()}, functions, *found)


def process_evidence() -> None:
    """log p(k | ρ, α) and E f: Laplace's method, and with the weights of its draws, beside importance sampling."""
    data = {"x": torch.tensor(X), "k": torch.tensor(K).double()}
    joint = LaplaceMarginal(log_joint(Program.from_pair(process), data), ("z",))
    for rho, alpha in ((4.5, 2.0), (6.0, 3.0), (8.0, 5.0)):
        exact, f, f2 = process_at(rho, alpha, np.random.default_rng(1), 200_000)
        u = torch.tensor([rho, alpha]).log().expand(64, 2)
        prior = Gamma(25.0, 4.0).log_prob(torch.tensor(rho)) + HalfNormal(2.0).log_prob(torch.tensor(alpha))
        at = joint.value_and_grad(u)[0][0] - prior - math.log(rho * alpha)
        whole, log_w = joint.complete(u.repeat(4, 1), torch.Generator().manual_seed(0))
        z, w = joint.whole.unflatten(whole)["z"], log_w.softmax(0)
        cov = alpha**2 * torch.exp(-0.5 * ((data["x"][:, None] - data["x"]) / rho) ** 2) + JITTER * torch.eye(11)
        mean = (w @ (z @ torch.linalg.cholesky(cov).mT)).numpy()
        weighted = float(at + torch.logsumexp(log_w, 0)) - math.log(len(log_w))
        said = f"importance sampling {exact:.4f}, Laplace {float(at):.4f}, weighted {weighted:.4f}"
        off = (np.abs(mean - f) / np.sqrt(f2 - f**2)).max()
        print(
            f"GP of counts, rho {rho:g}, alpha {alpha:g}: {said}; E f off by {off:.3f} sd, {len(w)} draws", flush=True
        )


# -- groups with counts ------------------------------------------------------------------------------------


def poisson_groups(y: Tensor) -> None:
    m, s = pyro.sample("m", Normal(0.0, 2.0)), pyro.sample("s", HalfNormal(2.0))
    with rows(y):
        pyro.sample("y", Poisson(pyro.sample("a", Normal(m, s)).exp()), obs=y)


def binomial_groups(trials: int) -> Callable[..., None]:
    def model(y: Tensor) -> None:
        m, s = pyro.sample("m", Normal(0.0, 2.0)), pyro.sample("s", HalfNormal(2.0))
        with rows(y):
            pyro.sample("y", Binomial(trials, logits=pyro.sample("a", Normal(m, s))), obs=y)

    return model


def of_groups(d: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([d["m"][:, None], d["s"][:, None], d["a"]], 1)


def of_counts(
    model: Callable, y: np.ndarray, log_lik: Callable[[int, np.ndarray], np.ndarray],
    where: tuple[np.ndarray, np.ndarray],
) -> Target:  # fmt: skip
    """Quadrature over m, s, and each group's effect given them.

    Args:
        log_lik: of one count, at effects of any shape.
        where: the grid of m and s.
    """
    m, s = where
    at, log_w = m[:, None] + s[:, None] * Z, -0.5 * Z**2 + math.log((Z[1] - Z[0]) / math.sqrt(2 * math.pi))
    lp, first, second = -(m**2) / 8 - s**2 / 8, {}, {}
    for count, groups in zip(*np.unique(y, return_counts=True), strict=True):
        each = log_lik(int(count), at) + log_w
        top = each.max(-1, keepdims=True)
        w = np.exp(each - top)
        total = w.sum(-1)
        lp = lp + groups * (top[:, 0] + np.log(total))
        first[count], second[count] = ((w * at**i).sum(-1) / total for i in (1, 2))
    a, a2 = (np.stack([x[c] for c in y], -1) for x in (first, second))
    return Target(model, {"y": torch.tensor(y).double()}, of_groups, *averaged(mass(lp), [m, s, a], [m**2, s**2, a2]))


def drawn(n: int, m: float, s: float) -> np.ndarray:
    return m + s * np.random.default_rng(0).normal(size=n)


def counts(m: float, s: float, where: tuple[np.ndarray, np.ndarray]) -> Target:
    y = np.random.default_rng(1).poisson(np.exp(drawn(500, m, s)))
    return of_counts(poisson_groups, y, lambda k, a: k * a - np.exp(a) - math.lgamma(k + 1), where)


def successes(trials: int, m: float, s: float, where: tuple[np.ndarray, np.ndarray]) -> Target:
    y = np.random.default_rng(1).binomial(trials, 1 / (1 + np.exp(-drawn(500, m, s))))
    return of_counts(binomial_groups(trials), y, lambda k, a: k * a - trials * np.logaddexp(0, a), where)


def counts_weighted() -> None:
    """Means of m and s of 500 groups of counts, in sd from the truth, without and with the weights of the draws."""
    target = WHOLE["Poisson, 500 groups"][0]()
    joint = LaplaceMarginal(log_joint(Program.from_pair(target.model), target.data), ("a",))
    u = run_chains(joint, "chees", 64, 60, 60).u
    log_w = torch.stack([joint.complete(each, torch.Generator().manual_seed(i))[1] for i, each in enumerate(u)])
    x, w = torch.stack([u[..., 0], u[..., 1].exp()], -1).flatten(0, 1), log_w.flatten().softmax(0)
    off = [(mean.numpy() - target.mean[:2]) / target.sd[:2] for mean in (x.mean(0), w @ x)]
    said = [f"m {m:+.3f}, s {s:+.3f}" for m, s in off]
    print(f"Poisson, 500 groups: off by {said[0]} sd, weighted {said[1]}, {float(1 / (w @ w)) / len(w):.0%} effective")


# -- normal groups -----------------------------------------------------------------------------------------


def normal_groups(y: Tensor) -> None:
    """(groups, 5)."""
    m, s, e = pyro.sample("m", Normal(0.0, 5.0)), pyro.sample("s", HalfNormal(2.0)), pyro.sample("e", HalfNormal(2.0))
    with rows(y):
        a = pyro.sample("a", Normal(m, s))
        pyro.sample("y", Normal(a[..., None], e).to_event(1), obs=y)


def groups_of_five() -> Target:
    G, n = 300, 5
    y = drawn(G, 1.0, 0.7)[:, None] + np.random.default_rng(1).normal(size=(G, n))
    mean, within = y.mean(1), ((y - y.mean(1, keepdims=True)) ** 2).sum()
    axes = np.linspace(0.75, 1.35, 61), np.linspace(0.5, 1.0, 61), np.linspace(0.92, 1.12, 61)
    m, s, e = (v.ravel() for v in np.meshgrid(*axes))
    v = s**2 + e**2 / n
    between = ((mean - mean.mean()) ** 2).sum() + G * (mean.mean() - m) ** 2
    lp = (-0.5 * G * np.log(v) - 0.5 * between / v - G * (n - 1) * np.log(e) - 0.5 * within / e**2
          - m**2 / 50 - s**2 / 8 - e**2 / 8)  # fmt: skip
    p, w = mass(lp), s**2 / v  # E[a | m, s, e, y] = w ȳ + (1 − w) m, and its variance is w e² / n
    A, B = np.array([p @ w, p @ ((1 - w) * m)]), [p @ w**2, p @ (w * (1 - w) * m), p @ ((1 - w) * m) ** 2]
    a, a2 = A[0] * mean + A[1], p @ (w * e**2 / n) + B[0] * mean**2 + 2 * B[1] * mean + B[2]
    first, second = np.array([p @ x for x in (m, s, e)]), np.array([p @ x**2 for x in (m, s, e)])
    found = Moments(np.concatenate([first, a]), np.sqrt(np.concatenate([second - first**2, a2 - a**2])))

    def functions(d: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.stack([d["m"], d["s"], d["e"]], -1), d["a"]], 1)

    return Target(normal_groups, {"y": torch.tensor(y)}, functions, *found)


def correlated(loc: Tensor, precision: Tensor) -> None:
    off = pyro.sample("u", Flat(shape=(len(loc),), dtype=torch.float64)) - loc
    pyro.factor("normal", -0.5 * ((off @ precision) * off).sum(-1))


def normal_1000() -> Target:
    """Sds over two orders of magnitude, and five directions of 5 to 30 of them."""
    loc, covariance = moments(1000)
    data = {"loc": loc, "precision": torch.linalg.inv(covariance)}
    return Target(correlated, data, lambda d: d["u"], loc.numpy(), covariance.diagonal().sqrt().numpy())


WHOLE: dict[str, tuple[Callable[[], Target], str]] = {  # and the latents that are integrated out by `marginal`
    "eight schools, centred": (eight_schools, "a"),
    "GP of 11 counts": (gp_counts, "z"),
    "Poisson, 500 groups": (lambda: counts(0.5, 0.8, grid((0.2, 0.8), (0.6, 1.05))), "a"),
    "logistic, 500 groups": (lambda: successes(10, -0.5, 1.0, grid((-0.9, -0.1), (0.7, 1.4))), "a"),
    "few counts: Poisson": (lambda: counts(-2.0, 1.0, grid((-4.5, -1.0), (0.01, 2.6))), "a"),
    "few counts: one trial": (lambda: successes(1, 0.5, 1.5, grid((-0.5, 3.0), (0.01, 8.0))), "a"),
    "normal, 300 groups": (groups_of_five, "a"),
    "5 000 row effects": (TARGETS["5 000 row effects"], "z"),
    "simplex, 20-D": (TARGETS["simplex, 20-D"], ""),
    "normal, 1 000-D": (normal_1000, ""),
    "funnel, 10-D": (TARGETS["funnel, 10-D"], ""),
    "banana": (TARGETS["banana"], ""),
    "garch, 200 steps": (garch, ""),
    "Lotka-Volterra, 20 years": (lotka_volterra, ""),
}


# -- what is measured --------------------------------------------------------------------------------------


def judged(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> dict[str, float]:
    """Of draws (chain, draw, latents)."""
    from arviz_stats.base import array_stats

    flat = x.reshape(-1, x.shape[-1])
    each = [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    return {
        "mean": float(np.abs((flat.mean(0) - mean) / sd).max()),
        "log_sd": float(np.abs(np.log(flat.std(0) / sd)).max()),
        "rhat": max(float(array_stats.rhat(e)) for e in each) if len(x) > 1 else math.nan,
        "ess": min(float(array_stats.ess(e)) for e in each),
    }


def rhat_floor(chains: int, draws: int, ess: float) -> None:
    """R-hat of chains that are in their target, autoregressive of order one, so many of their draws effective."""
    from arviz_stats.base import array_stats

    time_, found = chains * draws / ess, []
    rho = (time_ - 1) / (time_ + 1)
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(chains, draws))
        for i in range(1, draws):
            x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * x[:, i]
        found.append(float(array_stats.rhat(x)))
    print(f"{chains} chains of {draws}, {ess:g} effective: R-hat {np.mean(found):.4f}, {max(found):.4f} at the most")


def called(target: Target, inner: str, method: str, seed: int, draws: int) -> Any:
    from ppgen.inference import infer, mcmc

    if method == "infer":
        return infer(target.model, target.data, seed=seed, predictive=False, prior=False)
    if method == "through":
        return through_a_flow(target, seed, draws)
    marginal, kernel = (inner, "chees") if method == "marginal" else ((), method)
    return mcmc(target.model, target.data, kernel, marginal=marginal, seed=seed, predictive=False, prior=False)


def through_a_flow(target: Target, seed: int, draws: int) -> Any:
    from ppgen.inference import fit, mcmc

    began = cpu()
    run = fit(
        Program.from_pair(target.model), target.data, guide="flow(smooth=True)", steps=2000, lr=0.02, schedule="cosine",
        particles=16, precision="64-true", seed=seed, starts=8,
    )  # fmt: skip
    took = cpu() - began
    tree = mcmc(run, target.data, draws=draws, through=True, seed=seed, predictive=False, prior=False)
    tree.attrs["method"] = f"fit {took:.1f} s;"
    return tree


def beside(x: np.ndarray, path: Path) -> dict[str, float]:
    """The largest difference in mean and in sd from another's draws, in Monte Carlo standard errors of both."""
    from arviz_stats.base import array_stats

    theirs, flat = np.load(path), x.reshape(-1, x.shape[-1])
    each, row = [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])], {}
    for of, ours in (("mean", flat.mean(0)), ("sd", flat.std(0))):
        se = np.hypot([float(array_stats.mcse(e, method=of)) for e in each], theirs[f"{of}_se"])
        row[f"{of}_beside"] = float((np.abs(ours - theirs[of]) / se).max())
    return row


def measured(name: str, method: str, seed: int, draws: int, cap: float, others: Path | None = None) -> dict[str, Any]:
    from ppgen.inference.verdicts.findings import load_findings, verdict

    make, inner = WHOLE[name]
    target = make()
    row: dict[str, Any] = {"target": name, "method": method, "seed": seed}
    began = cpu()
    try:
        with at_most(cap):
            tree = called(target, inner, method, seed, draws)
    except Cut:
        return row | {"remark": f"more than {cap:g} CPU s"}
    seconds = cpu() - began
    values = {n: v.values for n, v in tree["posterior"].data_vars.items()}
    shape = next(iter(values.values())).shape[:2]
    x = target.functions({n: v.reshape(-1, *v.shape[2:]) for n, v in values.items()}).reshape(*shape, -1)
    row |= judged(x, target.mean, target.sd) | {"seconds": seconds}
    said = [f for f in load_findings(tree) if f.verdict != "fine" or f.measure == "laplace"]
    remark = "; ".join(f"{f.measure} {f.verdict}" for f in said)
    by = tree.attrs.get("method", "")
    if others is not None and (others / f"{name}.npz").exists():
        row |= beside(x, others / f"{name}.npz")
        by += f"{len(target.mean)} latents: {row['mean_beside']:.1f}, {row['sd_beside']:.1f} s.e.;"
    return row | {"verdict": verdict(load_findings(tree)), "remark": f"{by} {remark}".strip()}


def shown(row: dict[str, Any]) -> str:
    if "mean" not in row:
        return f"| {row['target']} | {row['method']} | | | | | | {row['remark']} |"
    return (
        f"| {row['target']} | {row['method']} | {row['mean']:.3f} / {row['log_sd']:.3f} | {row['rhat']:.3f} "
        f"| {row['ess']:.0f} | {row['seconds']:.1f} | {row['ess'] / row['seconds']:.0f} | {row['remark']} |"
    )


HEAD = (
    "| target | method | mean, sd / log sd | R-hat | ESS | CPU s | ESS a CPU s | |\n|---|---|--:|--:|--:|--:|--:|---|"
)


def exported(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in WHOLE.items():
        target = make()
        data = {f"data_{k}": v.numpy() for k, v in target.data.items()}
        np.savez(folder / f"{name}.npz", mean=target.mean, sd=target.sd, **data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["chees", "marginal"])
    parser.add_argument("--only", nargs="*", default=[""], help="parts of targets' names")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cap", type=float, default=200.0, help="CPU seconds of a call")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--export", type=Path, help="a folder for data and truths")
    parser.add_argument("--draws", type=int, default=1000, help="of each chain through a flow")
    parser.add_argument("--floor", type=float, metavar="ESS", help="R-hat of 64 chains that are in their target")
    parser.add_argument("--beside", type=Path, help="the folder that whole_calls_numpyro.py --moments wrote")
    parser.add_argument("--evidence", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows_ = begun(options.out)
    if options.one:
        print(json.dumps(measured(*json.loads(options.one), options.cap, options.beside)))
        return
    if options.export:
        return exported(options.export)
    if options.floor:
        return rhat_floor(64, options.draws, options.floor)
    if options.evidence:
        schools_evidence()
        process_evidence()
        return counts_weighted()
    print(HEAD)
    done = {(r["target"], r["method"], r["seed"]): r for r in rows_}
    for seed in range(options.seeds):
        for name, (_, inner) in WHOLE.items():
            for method in options.methods:
                if not any(part in name for part in options.only) or (method == "marginal" and not inner):
                    continue
                row = done.get((name, method, seed))
                if row is None:
                    row = apart(name, method, seed, options)
                    keep(row, options.out)
                print(shown(row), flush=True)


def apart(name: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps([name, method, seed, options.draws])]
    command += ["--cap", str(options.cap), *(["--beside", str(options.beside)] if options.beside else [])]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        why = (out.stderr.strip().splitlines() or ["killed"])[-1]
        return {"target": name, "method": method, "seed": seed, "remark": why[:200]}
    return json.loads(out.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
