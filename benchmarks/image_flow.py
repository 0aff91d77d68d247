"""Images by a flow: bits/dim of Glow or TarFlow on MNIST, or another data set of images, on dequantised pixels.

    PPGEN_DATA=<folder with mnist.npz> python benchmarks/image_flow.py --data mnist --steps 6000

The figure is E_q[log p(v)], q uniform in the cells, one draw a test row: a lower bound on log P(x), so an upper bound
on bits/dim, as in the papers. What they report for MNIST: RealNVP 1.06 (Dinh et al., 2017, arXiv:1605.08803), Glow
1.05 (Kingma & Dhariwal, 2018, arXiv:1807.03039), FFJORD 0.99 (Grathwohl et al., 2019, arXiv:1810.01367). Rows are
those of the train split but the last --valid-rows; the parameters kept are those best on these. Test rows are looked
at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from ppgen import data
from ppgen.inference import fit, loglik, resume
from ppgen.models import ImageFlow
from ppgen.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--scales", type=int)
    parser.add_argument("--glow-steps", type=int, default=8, help="a scale, or blocks of tarflow")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--family", default="glow")
    parser.add_argument("--patch", type=int, default=2, help="of tarflow, as are --layers and --bins")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--bins", type=int, default=0)
    parser.add_argument("--margin", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--valid-rows", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=1, help="of the bound at the end")
    parser.add_argument("--dequantise", default="uniform")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed trains the networks in bfloat16")
    parser.add_argument("--engine", default="compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", type=Path, help="a run of this script that was stopped; it ends at --steps")
    parser.add_argument("--evaluate", type=Path, help="a run of this script, evaluated again")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    whole, test = (data.load(o.data, s, data_dir=o.data_dir)["x"] for s in ("train", "test"))
    train, valid = whole[: -o.valid_rows], whole[-o.valid_rows :]
    start, cpu = time.perf_counter(), time.process_time()

    def say(row: dict[str, float]) -> None:
        bits = [-row[k] / n / pixels / 0.6931 for k, n in (("elbo", len(train)), ("valid_elbo", len(valid)))]
        now = time.perf_counter() - start
        print(f"step {row['step']}: train {bits[0]:.4f}, valid {bits[1]:.4f} bits/dim, {now:.0f} s", flush=True)

    torch.manual_seed(0)
    settings = ImageFlow.from_data({"x": whole})
    pixels = torch.Size(settings["shape"]).numel()
    if o.scales:
        settings["scales"] = o.scales
    if o.evaluate:
        run = Run.load(o.evaluate)
    elif o.resume:
        run = resume(o.resume, {"x": train}, valid={"x": valid}, steps=o.steps, report=say)
    else:
        program = ImageFlow(**settings, steps=o.glow_steps, hidden=o.hidden, margin=o.margin, dequantise=o.dequantise,
                            family=o.family, patch=o.patch, layers=o.layers, bins=o.bins)  # fmt: skip
        print(f"{sum(p.numel() for p in program.parameters())} parameters, {settings}", flush=True)
        run = fit(program, {"x": train}, valid={"x": valid}, steps=o.steps, batch_size=o.batch_size, lr=o.lr,
                  schedule="cosine", clip=50.0, ema=0.999, patience=1000, engine=o.engine, precision=o.precision,
                  out=o.out, log_every=max(1, o.steps // 25), report=say)  # fmt: skip
    spent = time.perf_counter() - start, time.process_time() - cpu
    found = loglik(run, {"x": test}, particles=o.particles)
    print(
        json.dumps(
            {
                **{
                    f"{b.name}, bits/dim ({b.kind} bound on log P)": round(found.bits_per_dim(b), 4)
                    for b in found.bounds
                },
                "se over rows": round(found.best.rows_se / pixels / 0.6931, 4),
                "parameters": sum(p.numel() for p in run.program.parameters()),
                "fit, wall s and cpu s": [round(t) for t in spent],
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
