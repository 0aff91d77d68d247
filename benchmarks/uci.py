"""Tables of UCI as density estimation: held-out log-likelihood of the same flows by ppgen, zuko, nflows and normflows.

    python benchmarks/uci.py --data-dir FOLDER [--sets kin40k parkinsons] [--families maf nsf nsf_coupling]

FOLDER/NAME.npz holds data (N, D) and test_mask, ten packed folds, of which the first is the test set here. Columns of
fewer than 60 different values are left out; to the others uniform noise is added, as wide as the median gap between
their values, so that they have a density; they are standardised by the training rows. A tenth of these is held out: of
the steps, those best on it are reported. All contestants see the same rows in the same order, with Adam and batches of
512, and have the architectures of benchmarks/flows.py. Figures are exact, in nats a row of the standardised columns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import flows
import numpy as np
import pyro
import torch
from torch import Tensor

SETS = ("kin40k", "parkinsons", "elevators", "pol", "wine")


def load(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Train, valid and test rows."""
    file, g = np.load(path), np.random.default_rng(0)
    x = file["data"].astype(np.float64)
    held_out = np.unpackbits(file["test_mask"], axis=1, count=len(x))[0].astype(bool)
    kept = []
    for column in x.T:
        values = np.unique(column)
        if len(values) >= 60:
            kept.append(column + (g.random(len(x)) - 0.5) * np.median(np.diff(values)))
    x = np.stack(kept, 1)
    rest = x[~held_out][g.permutation((~held_out).sum())]
    n = len(rest) // 10
    mean, sd = rest[n:].mean(0), rest[n:].std(0)
    return tuple(torch.from_numpy((part - mean) / sd).float() for part in (rest[n:], rest[:n], x[held_out]))  # type: ignore[return-value]


@torch.no_grad()
def mean_and_se(c: flows.Contestant, x: Tensor) -> tuple[float, float]:
    values = torch.cat([c.log_prob(part) for part in x.split(2000)]).double()
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def score(c: flows.Contestant, parts: tuple[Tensor, Tensor, Tensor], steps: int) -> tuple[float, float, float]:
    """Test mean, its standard error, and CPU seconds of the steps."""
    train, valid, test = parts
    order, best, found, spent = torch.Generator().manual_seed(3), -np.inf, (np.nan, np.nan), 0.0
    for step in range(1, steps + 1):
        batch = train[torch.randint(len(train), (flows.BATCH,), generator=order)]
        began = time.process_time()
        c.step(batch)
        spent += time.process_time() - began
        if step % 50 == 0 and (now := mean_and_se(c, valid)[0]) > best:
            best, found = now, mean_and_se(c, test)
    return *found, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--families", nargs="+", default=["maf", "nsf_coupling"])
    parser.add_argument("--peers", nargs="*", default=["zuko", "nflows", "normflows"])
    parser.add_argument("--engine", default="trace")
    parser.add_argument("--steps", type=int, default=1000)
    o = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    for name in o.sets:
        parts = load(o.data_dir / f"{name}.npz")
        sizes = "/".join(str(len(p)) for p in parts)
        print(f"\n{name}: {parts[0].shape[1]}-D, {sizes} rows, {o.steps} steps", flush=True)
        for family in o.families:
            for contestant, c in flows.contestants(family, parts[0], [o.engine], o.peers).items():
                mean, se, spent = score(c, parts, o.steps)
                print(f"  {family:14s}{contestant:16s}{mean:9.3f} ± {se:.3f} nats a row{spent:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
