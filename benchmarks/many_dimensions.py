"""Guides that are found without a step, in hundreds of dimensions: how near, and at what cost.

    python benchmarks/many_dimensions.py [--guides pathfinder bam_low_rank] [--only normal]

Targets: normals of 300, 500 and 1 000 dimensions whose covariance is a diagonal, of sds over two orders of magnitude,
and five directions of 5 to 30 such sds, known exactly; a logistic regression of 1 000 rows and 300 features, of which
the ELBO compares the guides. Each row is of a process of its own: the largest error of a mean in sd and of a log sd,
ELBO in nats (of a normal 0 where it is exact), k-hat of 4 000 draws, CPU seconds of the search and tracing, and by how
many MB the process grew.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Normal

import ppgen
from ppgen.distributions import Flat

GUIDES = ("pathfinder", "bam_low_rank", "bam")


class Target(NamedTuple):
    model: Callable[..., None]
    data: dict[str, torch.Tensor]
    mean: np.ndarray | None
    sd: np.ndarray | None


def moments(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the normal."""
    generator = torch.Generator().manual_seed(0)
    variance = 10 ** torch.randn(dim, generator=generator).double()
    strong = torch.linalg.qr(torch.randn(dim, 5, generator=generator).double())[0]
    factor = variance.sqrt()[:, None] * strong * torch.tensor([30.0, 20.0, 15.0, 10.0, 5.0]).double()
    return torch.randn(dim, generator=generator).double(), variance.diag() + factor @ factor.mT


def normal(dim: int) -> Target:
    loc, covariance = moments(dim)
    precision = torch.linalg.inv(covariance)
    top = 0.5 * torch.linalg.slogdet(precision)[1] - 0.5 * dim * math.log(2 * math.pi)

    def model(one: torch.Tensor) -> None:
        off = pyro.sample("u", Flat(shape=(dim,), dtype=torch.float64)) - loc
        pyro.factor("normal", top - 0.5 * ((off @ precision) * off).sum(-1))

    return Target(model, {"one": torch.ones(1).double()}, loc.numpy(), covariance.diagonal().sqrt().numpy())


def logistic() -> Target:
    """y ~ Bernoulli(sigmoid(X b)), b ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1000, 300, generator=generator).double()
    b = 0.3 * torch.randn(300, generator=generator).double()
    y = (torch.rand(1000, generator=generator) < torch.sigmoid(X @ b)).double()

    def model(X: torch.Tensor, y: torch.Tensor) -> None:
        u = pyro.sample("u", Normal(torch.zeros(300).to(X), 1.0).to_event(1))
        with ppgen.rows(X):
            pyro.sample("y", Bernoulli(logits=X @ u), obs=y)

    return Target(model, {"X": X, "y": y}, None, None)


TARGETS: dict[str, Callable[[], Target]] = {
    "normal, 300": lambda: normal(300),
    "normal, 500": lambda: normal(500),
    "normal, 1 000": lambda: normal(1000),
    "logistic, 300": logistic,
}


def measured(target: Target, guide: str) -> str:
    from ppgen.inference import fit, posterior
    from ppgen.inference.evaluation.psis import smoothed

    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run = fit(ppgen.Program.from_pair(target.model), target.data, guide=guide, steps=0, precision="64-true")
    seconds = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    tree = posterior(run, target.data, draws=4000, predictive=False, prior=False)
    log_w = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values.reshape(-1, 1)
    off = ""
    if target.mean is not None and target.sd is not None:
        x = tree["posterior"]["u"].values[0]
        mean = np.abs((x.mean(0) - target.mean) / target.sd).max()
        off = f"{mean:.2f} / {np.abs(np.log(x.std(0) / target.sd)).max():.2f}"
    k = float(smoothed(log_w)[1][0])
    return f"{off} | {log_w.mean():.1f} | {k:.2f} | {seconds:.1f} | {grown:.0f} |"


def _child(sender: Any, target: Target, guide: str) -> None:
    try:
        sender.send(measured(target, guide))
    except Exception as e:
        sender.send(f"{type(e).__name__}: {e}"[:150])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guides", nargs="+", default=list(GUIDES))
    parser.add_argument("--only", nargs="*", default=[""], help="parts of targets' names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print("| target | guide | mean / log sd | ELBO | k-hat | CPU s | MB |\n|---|---|--:|--:|--:|--:|--:|")
    for name, make in TARGETS.items():
        if any(part in name for part in options.only):
            target = make()
            for guide in options.guides:
                here, there = multiprocessing.Pipe(duplex=False)
                process = multiprocessing.get_context("fork").Process(target=_child, args=(there, target, guide))
                process.start()
                print(f"| {name} | {guide} | {here.recv()}", flush=True)
                process.join()


if __name__ == "__main__":
    main()
