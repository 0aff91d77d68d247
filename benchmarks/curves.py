"""ELBO of the held-out rows against CPU time, of several runs: a table and a picture.

    python benchmarks/curves.py "mixture prior=RUN:402" "flow prior=RUN:398" [--picture FILE]

Each run is given with a name and the CPU seconds of its training, as `benchmarks/binarized_mnist.py` prints them; its
steps are taken to have cost the same. Figures are nats a held-out row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ppgen.run import Run


def curve(path: str, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds, and the ELBO of a held-out row then."""
    run = Run.load(path)
    steps, elbo = (run.metrics[name][np.isfinite(run.metrics["valid_elbo"])] for name in ("step", "valid_elbo"))
    return steps * seconds / steps[-1], elbo / run.config["data"]["valid_rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN:SECONDS")
    parser.add_argument("--at", type=float, nargs="+", default=[25, 50, 100, 200, 300, 400], help="CPU seconds")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    curves = {}
    for each in options.runs:
        name, rest = each.split("=", 1)
        run, seconds = rest.rsplit(":", 1)
        curves[name] = curve(run, float(seconds))
    print("| CPU s | " + " | ".join(f"{s:g}" for s in options.at) + " |")
    print("|---|" + "--:|" * len(options.at))
    for name, (t, elbo) in curves.items():
        cells = [f"{np.interp(s, t, elbo):.2f}" if t[0] <= s <= 1.02 * t[-1] else "" for s in options.at]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.picture:
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
        for name, (t, elbo) in curves.items():
            ax.plot(t, elbo, label=name)
        low = min(np.interp(options.at[0], t, elbo) for t, elbo in curves.values())
        ax.set(
            xscale="log",
            xlabel="CPU seconds of training",
            ylabel="ELBO, nats a held-out row",
            ylim=(low, None),
            xlim=(options.at[0], None),
        )
        ax.legend(frameon=False)
        figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
