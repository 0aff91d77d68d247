"""Static binarised MNIST (Larochelle's split): the test negative log-likelihood of a VAE, in nats.

    PPGEN_DATA=<folder with binarized_mnist.npz> python benchmarks/binarized_mnist.py [--epochs 250]

The figure is -L_K, K = 5000 importance samples a row: an upper bound on the negative log-likelihood, as in the tables
that it is compared with. The VAE stays within the parameters of 784-200-200-50 (424 000); `--model ladder` is a
hierarchical one of three layers, `--model pixel_vae` has a flow for its prior and a PixelCNN for its likelihood:

    ... --model pixel_vae --epochs 19 --batch-size 100 --lr 1.5e-3 --clip 50 --engine eager --precision bf16-mixed

Of the epochs, those of the best ELBO on the validation rows are kept (of `--all-rows`, which trains on them too, the
last); the test rows are looked at once, at the end. A run that was stopped goes on where it was, where `--out` names
its folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from ppgen import data
from ppgen.inference import fit, loglik, resume
from ppgen.models import VAE, LadderVAE, PixelVAE
from ppgen.program import Program
from ppgen.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="vae", choices=("vae", "ladder", "pixel_vae"))
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--all-rows", action="store_true", help="train on the validation rows too: no epoch is chosen")
    parser.add_argument("--warmup", type=int, default=5, help="epochs over which the KL gets its weight")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--net", default="mlp", choices=("conv", "mlp"))
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--prior", default="mixture", choices=("normal", "mixture", "flow", "diffusion"))
    parser.add_argument("--components", type=int, default=100)
    parser.add_argument("--objective", default="analytic")
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument("--test-particles", type=int, default=5000)
    parser.add_argument("--test-rows", type=int, default=10_000, help="so many, evenly spaced: they lie by label")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"), help="of the training")
    parser.add_argument("--clip", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--evaluate", type=Path, help="a run of this script, evaluated again")
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)

    splits = {s: data.load("binarized_mnist", s, data_dir=o.data_dir) for s in ("train", "valid", "test")}
    columns = {s: {"x": d["x"]} for s, d in splits.items()}
    columns["test"]["x"] = columns["test"]["x"][:: 10_000 // o.test_rows][: o.test_rows]
    valid: dict[str, torch.Tensor] | None = columns["valid"]
    if o.all_rows:
        columns["train"] = {"x": torch.cat([columns["train"]["x"], columns["valid"]["x"]])}
        valid = None
    rows = len(columns["train"]["x"])
    start, cpu, epoch = time.perf_counter(), time.process_time(), rows // o.batch_size
    if o.evaluate:
        run = Run.load(o.evaluate)
    elif o.out and (o.out / "config.json").exists():
        report = lambda row: print(_line(row, rows, start), flush=True)  # noqa: E731
        run = resume(o.out, columns["train"], valid=valid, report=report, steps=o.epochs * epoch)
    else:
        torch.manual_seed(0)
        program = _program(o)
        print(f"{sum(p.numel() for p in program.parameters())} parameters", flush=True)
        run = fit(
            program, columns["train"], valid=valid, steps=o.epochs * epoch, batch_size=o.batch_size, lr=o.lr,
            schedule="cosine", ema=0.999, patience=1000 if valid else None, kl_warmup=o.warmup * epoch,
            objective=o.objective, particles=o.particles, engine=o.engine, precision=o.precision, clip=o.clip, seed=0,
            out=o.out, log_every=2 * epoch, report=lambda row: print(_line(row, rows, start), flush=True),
        )  # fmt: skip
    trained = time.perf_counter() - start, time.process_time() - cpu
    result = loglik(run, columns["test"], particles=o.test_particles)
    elbo, iw = result.bounds[0], result.bounds[-1]  # of a diffusion prior there is an ELBO alone
    print(
        json.dumps(
            {
                "test nll (upper bound, nats)": round(-iw.mean, 3),
                "monte carlo se": round(iw.mean_se, 3),
                "se over rows": round(iw.rows_se, 3),
                "test -elbo": round(-elbo.mean, 3),
                "importance samples": o.test_particles,
                "test rows": o.test_rows,
                "training wall s, cpu s": [round(t) for t in trained],
                "whole wall s": round(time.perf_counter() - start),
                "threads": torch.get_num_threads(),
            }
        )
    )


def _program(o: argparse.Namespace) -> Program:
    if o.model == "ladder":
        return LadderVAE(784, (40, 24, 16), (300, 200, 100), "residual", True, dropout=o.dropout)
    if o.model == "pixel_vae":
        return PixelVAE(784, (32,), (256,), patch=2, width=64, layers=3, dropout=o.dropout, prior="flow")
    hidden = (16, 32, 48) if o.net == "conv" else (200, 200)
    components = o.components if o.prior == "mixture" else 0
    return VAE(784, latent=50, hidden=hidden, net=o.net, activation="silu", dropout=o.dropout, prior=o.prior,
               components=components)  # fmt: skip


def _line(row: dict[str, float], rows: int, start: float) -> str:
    valid = f"valid {row['valid_elbo'] / 10_000:.2f}, " if "valid_elbo" in row else ""
    return f"step {row['step']}: elbo {row['elbo'] / rows:.2f} nats a row, {valid}{time.perf_counter() - start:.0f} s"


if __name__ == "__main__":
    main()
