"""Draws, predictions and log-likelihoods beside the same by hand in torch.

    python benchmarks/evaluation.py [--repeats 5] [--only sample VAE]

CPU milliseconds of a call in this process, the least of some, in turns; ppgen's first call stands apart. By hand is
what somebody would write who knows the model: the same draws, values and sums, in the same dtype, without plates,
trees, checks or names.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Cauchy, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from ppgen.inference import fit, loglik, posterior, predict, sample
from ppgen.models import VAE, EightSchools, LogisticRegression

LEAST = 0.3  # seconds of a measurement
Call = Callable[[], Any]
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])


def schools(n: int) -> tuple[Call, Call]:
    def by_hand() -> dict[str, Tensor]:
        mu, tau = 5 * torch.randn(n), 5 * Cauchy(0.0, 1.0).sample((n,)).abs()
        eta = torch.randn(n, 8)
        theta = mu[:, None] + tau[:, None] * eta
        return {"mu": mu, "tau": tau, "eta": eta, "theta": theta, "y": theta + SIGMA * torch.randn(n, 8)}

    program = EightSchools()
    return lambda: sample(program, n, given={"sigma": SIGMA}), by_hand


def logistic(n: int) -> tuple[Any, dict[str, Tensor]]:
    x = torch.randn(n, 10)
    y = Bernoulli(logits=x @ torch.linspace(-1, 1, 10)).sample()
    data = {"x": x, "y": y}
    return fit(LogisticRegression(10), data, steps=20, engine="trace"), data


def weights_of(draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a guide like the fit's: α and β, (draws, 11), and log q."""
    loc, scale = torch.zeros(11), torch.full((11,), 0.1)
    z = loc + scale * torch.randn(draws, 11)
    log_q = Normal(loc, scale).log_prob(z).sum(-1)
    return z[:, 0], z[:, 1:], log_q


PRIOR = Normal(torch.zeros(11), torch.tensor([5.0] + [2.5] * 10))


def of_posterior(n: int, draws: int) -> tuple[Call, Call]:
    run, data = logistic(n)
    x, y = data["x"], data["y"]

    def by_hand() -> list[Tensor]:
        a, b, log_q = weights_of(draws)
        logits = b @ x.T + a[:, None]
        log_lik = -binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none")
        log_prior = PRIOR.log_prob(torch.cat([a[:, None], b], 1))
        z = PRIOR.sample((draws,))
        new = [torch.bernoulli(torch.sigmoid(v)) for v in (logits, z[:, 1:] @ x.T + z[:, :1])]
        return [a, b, log_q, log_lik, log_lik.sum(1) + log_prior.sum(1), log_prior, z, *new]

    return lambda: posterior(run, data, draws=draws), by_hand


def of_predict(n: int, draws: int) -> tuple[Call, Call]:
    run, data = logistic(n)
    x = data["x"]

    def by_hand() -> list[Tensor]:
        a, b, _ = weights_of(draws)
        logits = b @ x.T + a[:, None]
        return [a, b, torch.bernoulli(torch.sigmoid(logits))]

    return lambda: predict(run, {"x": x}, draws=draws), by_hand


def of_loglik(n: int, particles: int) -> tuple[Call, Call]:
    run, data = logistic(n)
    x, y = data["x"], data["y"]

    def by_hand() -> list[Tensor]:
        a, b, log_q = weights_of(particles)
        logits = b @ x.T + a[:, None]
        log_p = -binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").sum(1)
        log_w = log_p + PRIOR.log_prob(torch.cat([a[:, None], b], 1)).sum(1) - log_q
        return [log_w.mean(), log_w.logsumexp(0) - math.log(particles)]

    return lambda: loglik(run, data, particles=particles), by_hand


def of_vae(n: int, particles: int) -> tuple[Call, Call]:
    """784-200-20, a row at a time 100 particles: encoder once, decoder of every draw."""
    program = VAE(784, latent=20, hidden=(200,))
    x = torch.bernoulli(torch.full((n, 784), 0.3))
    run = fit(program, {"x": x}, steps=2, engine="trace", batch_size=32)
    encoder, decoder = (getattr(run.program, name) for name in ("encoder", "decoder"))

    def by_hand() -> list[Tensor]:
        parts = []
        for rows in x.split(64):
            loc, raw = encoder(rows).chunk(2, -1)
            scale = torch.nn.functional.softplus(raw) + 1e-6
            e = torch.randn(particles, *loc.shape)
            z = loc + scale * e
            logits = decoder(z)
            log_p = -binary_cross_entropy_with_logits(logits, rows.expand_as(logits), reduction="none").sum(-1)
            log_w = log_p - 0.5 * (z**2).sum(-1) + (scale.log() + 0.5 * e**2).sum(-1)
            parts.append(torch.stack([log_w.mean(0), log_w.logsumexp(0) - math.log(particles)]))
        return parts

    return lambda: loglik(run, {"x": x}, particles=particles), by_hand


ROWS: dict[str, Callable[[], tuple[Call, Call]]] = {
    "sample(eight_schools), 1 000 draws": lambda: schools(1000),
    "sample(eight_schools), 10 000 draws": lambda: schools(10_000),
    "sample(eight_schools), 100 000 draws": lambda: schools(100_000),
    "posterior of logistic regression, 1 000 rows, 1 000 draws": lambda: of_posterior(1000, 1000),
    "posterior of logistic regression, 10 000 rows, 1 000 draws": lambda: of_posterior(10_000, 1000),
    "predict of logistic regression, 10 000 rows, 1 000 draws": lambda: of_predict(10_000, 1000),
    "loglik of logistic regression, 10 000 rows, 1 000 particles": lambda: of_loglik(10_000, 1000),
    "loglik of a VAE, 500 rows, 100 particles": lambda: of_vae(500, 100),
}


def seconds(call: Call, least: float = 0.0) -> float:
    """Of a call, the mean over as many as take so many seconds: the clock of a process may have steps of 10 ms."""
    begun, calls = time.process_time(), 0
    with torch.no_grad():
        while not calls or time.process_time() - begun < least:
            call()
            calls += 1
    return (time.process_time() - begun) / calls


def measured(make: Callable[[], tuple[Call, Call]], repeats: int) -> Iterator[float]:
    """Seconds: ppgen's first call, the least of the further ones, the least by hand."""
    ours, by_hand = make()
    yield seconds(ours)
    seconds(by_hand)
    pairs = [(seconds(ours, LEAST), seconds(by_hand, LEAST)) for _ in range(repeats)]
    yield from (min(times) for times in zip(*pairs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of rows' names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    print("| | first call, ms | ppgen, ms | by hand, ms | ratio |\n|---|--:|--:|--:|--:|")
    for name, make in ROWS.items():
        if any(part in name for part in options.only):
            first, ours, by_hand = (1000 * s for s in measured(make, options.repeats))
            print(f"| {name} | {first:.1f} | {ours:.2f} | {by_hand:.2f} | {ours / by_hand:.1f} |", flush=True)


if __name__ == "__main__":
    main()
