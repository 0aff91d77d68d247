"""The chorales of J. S. Bach by a deep Markov model: the test negative log-likelihood, in nats a step.

    python benchmarks/chorales.py jsb_chorales.npz [--steps 12000] [--out runs/chorales]

The file has, for each of train, valid and test, the steps of all sequences as packed bits of 88 notes, and `..._len`,
how many each sequence has (229, 76 and 77 sequences, of Boulanger-Lewandowski et al. 2012). The figure is
-Σ_n L_K(x_n) / Σ_n T_n with L_K the bound of K importance weights: an upper bound on the negative log-likelihood. The
paper's own (arXiv:1609.09869) are of one draw. Of the fit, the steps of the best ELBO on the validation sequences are
kept; the test sequences are looked at once, at the end. With --out an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen.inference import fit, loglik, resume
from ppgen.models import DeepMarkov
from ppgen.run import Run

NOTES = 88


def load(path: Path, split: str) -> dict[str, Tensor]:
    """x: (sequences, longest, 88) of 0 and 1, and length: (sequences,)."""
    with np.load(path) as file:
        length = file[f"{split}_len"]
        steps = np.unpackbits(file[split], axis=1)[:, :NOTES]
    x = torch.zeros(len(length), int(length.max()), NOTES)
    for row, part in zip(x, np.split(steps, np.cumsum(length)[:-1]), strict=True):
        row[: len(part)] = torch.from_numpy(part)
    return {"x": x, "length": torch.from_numpy(length).float()}


def nats_a_step(run: Run, data: dict[str, Tensor], particles: int) -> dict[str, float]:
    """The bounds on the negative log-likelihood: of one draw (the ELBO), and of that many weights."""
    result = loglik(run, data, particles=particles)
    steps = float(data["length"].sum())
    first, best = result.bounds[0], result.bounds[-1]
    return {
        "-elbo": round(-float(np.sum(first.values)) / steps, 4),
        f"-iwae-{particles}": round(-float(np.sum(best.values)) / steps, 4),
        "monte carlo se": round(best.mean_se * len(data["x"]) / steps, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--latent", type=int, default=100)
    parser.add_argument("--recurrent", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--engine", default="trace")
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(1)
    splits = {s: load(o.file, s) for s in ("train", "valid", "test")}
    torch.manual_seed(0)
    program = DeepMarkov(NOTES, splits["train"]["x"].shape[1], o.latent, transition=200, emission=100,
                         recurrent=o.recurrent, dropout=o.dropout)  # fmt: skip
    start, cpu = time.perf_counter(), time.process_time()
    seen = {"valid": splits["valid"], "report": lambda row: print(row, round(time.process_time() - cpu), flush=True)}
    if o.out and (o.out / "config.json").exists():
        run = resume(o.out, splits["train"], **seen)
    else:
        run = fit(
            program, splits["train"], steps=o.steps, batch_size=20, lr=o.lr, ema=0.999, clip=10.0, kl_warmup=o.warmup,
            patience=o.steps, engine=o.engine, seed=0, out=o.out, log_every=100, **seen,
        )  # fmt: skip
    seconds = {"training cpu s": round(time.process_time() - cpu), "wall s": round(time.perf_counter() - start)}
    for split in ("train", "valid", "test"):
        print(split, json.dumps(nats_a_step(run, splits[split], o.particles) | seconds), flush=True)


if __name__ == "__main__":
    main()
