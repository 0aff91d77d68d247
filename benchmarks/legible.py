"""How many draws of a model of MNIST are legible: of how many a classifier that was trained on MNIST is sure.

    PPGEN_DATA=<folder with binarized_mnist.npz or mnist.npz> python benchmarks/legible.py RUN [--draws 64]

A small convolutional classifier learns the labels of the training rows of the run's data set, grey or binarised.
"Sure" is a largest probability above 0.9; how many test rows it is sure of, and how many of these it has right, say
what that is worth. A diffusion is drawn from by a sampler: `--sampler`, `--sampler-steps`; `--labels` asks for each
digit in turn, with `--guidance`, and says how many are sure to be the digit that was asked for.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ppgen import data
from ppgen.inference import sample, sample_diffusion
from ppgen.run import Run

SURE = 0.9


def classifier() -> nn.Module:
    """(N, 1, 28, 28) -> (N, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip


def train(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """The classifier of these rows, (N, 784), and labels."""
    torch.manual_seed(0)
    net = classifier()
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % (len(x) // 100) == 0:
            order = torch.randperm(len(x))
        rows = order[100 * (step % (len(x) // 100)) :][:100]
        loss = nn.functional.cross_entropy(net(x[rows].reshape(-1, 1, 28, 28)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval()


@torch.no_grad()
def sureness(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each row, and which it is of."""
    p, label = net(x.reshape(-1, 1, 28, 28)).softmax(-1).max(-1)
    return p, label


def _drawn(run: Run, o: argparse.Namespace, labels: Tensor | None) -> Tensor:
    if o.sampler is None and labels is None:
        return sample(run, o.draws, seed=o.seed)["x"]
    given = None if labels is None else {"y": labels}
    return sample_diffusion(run, o.draws, o.sampler, o.sampler_steps, given=given, guidance=o.guidance, seed=o.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--picture", type=Path, help="of the first 64 draws")
    parser.add_argument("--sampler", help="of a diffusion")
    parser.add_argument("--sampler-steps", type=int)
    parser.add_argument("--labels", action="store_true", help="of a diffusion with classes: 0, 1, ..., 9, 0, 1, ...")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--data", help="whose classifier, for a run that does not name its data")
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    torch.set_num_threads(1)
    run = Run.load(o.run)
    source = o.data or run.config["data"]["source"]
    rows = {s: data.load(source, s, data_dir=o.data_dir) for s in ("train", "test")}
    net = train(rows["train"]["x"], rows["train"]["y"].long(), o.epochs)
    p, label = sureness(net, rows["test"]["x"])
    sure, right = p > SURE, label == rows["test"]["y"]
    share, of_these = (float(v.float().mean()) for v in (sure, right[sure]))
    print(f"classifier: {right.float().mean():.2%} of test rows; sure of {share:.2%}, right on {of_these:.2%} of these")
    start = time.process_time()
    asked = torch.arange(o.draws) % 10 if o.labels else None
    x = _drawn(run, o, asked).reshape(-1, 784)
    seconds = time.process_time() - start
    p, label = sureness(net, x)
    n = int((p > SURE).sum())
    se = (n / o.draws * (1 - n / o.draws) / o.draws) ** 0.5
    print(f"{n} of {o.draws} draws ({n / o.draws:.1%} ± {se:.1%}) are legible; drawn in {seconds:.1f} CPU s")
    if asked is not None:
        print(f"{int(((p > SURE) & (label == asked)).sum())} are sure to be the digit that was asked for")
    print(f"labels 0 to 9: {label.bincount(minlength=10).tolist()}; not sure: {(p <= SURE).nonzero()[:64, 0].tolist()}")
    if o.picture:
        import matplotlib.pyplot as plt

        tiles = nn.functional.pad(x[:64].reshape(-1, 28, 28), (2, 2, 2, 2)).reshape(-1, 16, 32, 32)
        image = tiles.permute(0, 2, 1, 3).reshape(-1, 512)
        plt.imsave(o.picture, image.repeat_interleave(2, 0).repeat_interleave(2, 1), cmap="gray_r")


if __name__ == "__main__":
    main()
