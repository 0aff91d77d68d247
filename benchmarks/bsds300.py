"""BSDS300 patches, 63-D: the exact test log-likelihood of a neural spline flow, in nats.

    python benchmarks/bsds300.py --data-dir FOLDER --transforms 6 --steps 38000 --lr 0.0015 --weight-decay 0.01

FOLDER/bsds300_patches.npz holds train, valid and test, (N, 8, 8) grey levels of 0 to 255. They are made continuous as
in Masked Autoregressive Flow (Papamakarios et al., 2017, arXiv:1705.07057), section 4.2: (x + u) / 256 with u uniform
on (0, 1), less the patch's mean, without the last pixel. The rows that are trained on are the patches turned and
mirrored, each with noise of its own; valid and test are as they are. The flow is RQ-NSF (coupling) of Neural Spline
Flows (Durkan et al., 2019, arXiv:1906.04032). The parameters kept are those best on the valid rows that are followed;
test rows are looked at once, at the end.

Beside the flow's density p, that of the mixture of its eight views is printed: Σ_g p(g x) / 8, g the symmetries of the
square, which leave volumes as they are also of 63 of 64 pixels that sum to 0. It is a density like any other, and no
worse on average over the views than p, by Jensen's inequality.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen.inference import fit, loglik, resume
from ppgen.models import Flow
from ppgen.run import Run


def continuous(patches: np.ndarray, seed: int) -> Tensor:
    """(N, 8, 8) levels -> (N, 63) float32."""
    x = (torch.from_numpy(patches).reshape(len(patches), -1).double() + _noise(len(patches), seed)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1].float()


def _noise(n: int, seed: int) -> Tensor:
    return torch.rand(n, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(patches: np.ndarray) -> list[np.ndarray]:
    """The patches under the eight symmetries of the square."""
    turned = [np.rot90(p, k, axes=(1, 2)) for p in (patches, patches.transpose(0, 2, 1)) for k in range(4)]
    return [np.ascontiguousarray(p) for p in turned]


def view(rows: Tensor, g: int) -> Tensor:
    """Rows (N, 63) under the g-th symmetry, (N, 63)."""
    x = torch.cat((rows, -rows.sum(1, keepdim=True)), 1).reshape(-1, 8, 8)
    return torch.rot90(x.mT if g >= 4 else x, g % 4, dims=(1, 2)).flatten(1)[:, :-1].contiguous()


def of_views(run: Run, rows: Tensor) -> tuple[float, float]:
    """log Σ_g p(g x) / 8 in nats: mean over the rows, and its standard error."""
    each = np.stack([loglik(run, {"x": view(rows, g)}).best.values for g in range(8)])
    mixed = np.logaddexp.reduce(each, 0) - math.log(8)
    return float(mixed.mean()), float(mixed.std() / len(mixed) ** 0.5)


def gaussian(train: Tensor, test: Tensor) -> float:
    """Mean test log-density of one Gaussian: the floor."""
    d = torch.distributions.MultivariateNormal(train.double().mean(0), train.double().mT.cov())
    return d.log_prob(test.double()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--family", default="nsf_coupling")
    parser.add_argument("--transforms", type=int, default=8)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128, 128])
    parser.add_argument("--bins", type=int, default=8)
    parser.add_argument("--bound", type=float, default=8.0)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--base", default="normal")
    parser.add_argument("--mix", default="lu")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--clip", type=float, default=5.0)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--copies", type=int, default=8, help="of the patches, each turned and with noise of its own")
    parser.add_argument("--engine", default="compile")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed trains the networks in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--valid-rows", type=int, default=5000, help="for the log; all 10 000 at the end")
    parser.add_argument("--no-test", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", type=Path, help="a run of this script that was stopped; it ends at --steps")
    parser.add_argument("--evaluate", type=Path, help="a run of this script, evaluated again")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    file = np.load(o.data_dir / "bsds300_patches.npz")
    valid, test = continuous(file["valid"], 1), continuous(file["test"], 2)
    seen = views(file["train"])
    train = torch.cat([continuous(seen[i % 8], 100 + i) for i in range(o.copies)])
    print(f"Gaussian: test {gaussian(train[: len(file['train'])], test):.2f} nats", flush=True)

    start, cpu = time.perf_counter(), time.process_time()

    def say(row: dict[str, float]) -> None:
        train_, valid_ = row["elbo"] / len(train), row["valid_elbo"] / o.valid_rows
        now = time.perf_counter() - start
        print(f"step {row['step']}: train {train_:.2f}, valid {valid_:.2f} nats a row, {now:.0f} s", flush=True)

    if o.evaluate:
        run = Run.load(o.evaluate)
    elif o.resume:
        followed = {"x": valid[: o.valid_rows]}
        run = resume(o.resume, {"x": train}, valid=followed, steps=o.steps, report=say)
    else:
        torch.manual_seed(0)
        settings: dict = {}
        if o.family.startswith("nsf"):
            settings |= {"bins": o.bins, "bound": o.bound}
        if o.family == "transformer":
            settings |= {"heads": o.heads, "components": o.components}
        if o.family in ("nsf_coupling", "realnvp"):
            settings |= {"residual": True, "dropout": o.dropout}
        flow = Flow(63, family=o.family, transforms=o.transforms, hidden=o.hidden, base=o.base,
                    mix=None if o.mix == "none" else o.mix, whiten=True, settings=settings)  # fmt: skip
        flow.prepare({"x": train})
        print(f"{sum(p.numel() for p in flow.parameters())} parameters", flush=True)
        run = fit(
            flow, {"x": train}, valid={"x": valid[: o.valid_rows]}, steps=o.steps, batch_size=o.batch_size, lr=o.lr,
            optimizer=f"AdamW(weight_decay={o.weight_decay})", schedule="cosine", clip=o.clip, ema=o.ema,
            engine=o.engine, precision=o.precision, patience=1000, seed=0, out=o.out, log_every=max(1, o.steps // 50),
            report=say,
        )  # fmt: skip
    spent = time.perf_counter() - start, time.process_time() - cpu
    parts = {"valid": valid} if o.no_test else {"valid": valid, "test": test}
    results = {k: loglik(run, {"x": rows}).best for k, rows in parts.items()}
    mixed = {k: of_views(run, rows) for k, rows in parts.items()}
    print(" ".join(["python", *sys.argv]))
    print(
        json.dumps(
            {
                **{f"{k} ({b.kind}, nats a row)": f"{b.mean:.2f} ± {b.rows_se:.2f}" for k, b in results.items()},
                **{f"{k}, mixture of 8 views": f"{mean:.2f} ± {se:.2f}" for k, (mean, se) in mixed.items()},
                "parameters": sum(p.numel() for p in run.program.parameters()),
                "wall s, cpu s": [round(t) for t in spent],
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
