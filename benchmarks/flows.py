"""Flows beside zuko, nflows and normflows: CPU time a training step, time to sample, held-out log-likelihood.

    python benchmarks/flows.py [--families maf nsf nsf_coupling] [--engines trace compile] [--steps 300] [--repeats 5]
    python benchmarks/flows.py --families nsf realnvp --engines trace --seeds 6    (held-out log-likelihood only)

One process, one thread; the contestants take turns, and the medians of the turns are printed, in CPU time. All have
the same architecture (5 transforms, networks of 64-64, splines of 8 bins on [-5, 5]; each peer's own initial values),
the same 8-D data, batches of 512 in the same order, and Adam. A peer that is not installed, or lacks a family, is left
out. Draws of ppgen are those of `ppgen.inference.compiled_sampler` under its engines. All families take long: name
some.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

D, BATCH, LAYERS, HIDDEN, BINS = 8, 512, 5, (64, 64), 8
LR = 1e-3
FAMILIES = [
    "maf", "iaf", "nsf", "realnvp", "nice", "nsf_coupling", "gf", "bpf", "sospf", "naf", "unaf", "residual", "cnf",
]  # fmt: skip


class Contestant(NamedTuple):
    """What is timed: `step(x)` trains on a batch, `log_prob(x)` and `sample(n)` use the result."""

    step: Callable[[Tensor], object]
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]


def data(n: int, seed: int) -> Tensor:
    """Two bananas in 8 dimensions, standardised: what a flow makes of other scales is no part of the comparison."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=g)
    side = torch.where(torch.rand(n, 1, generator=g) < 0.5, -1.0, 1.0)
    x = 0.6 * z + 0.7 * side
    x[:, 1::2] = (0.5 * z[:, 1::2] + 0.6 * (x[:, ::2] ** 2 - 0.85)) / 0.773
    x[:, ::2] /= 0.922
    return x


def of_module(module: nn.Module, log_prob: Callable[[Tensor], Tensor], sample: Callable[[int], Tensor]) -> Contestant:
    """A peer's flow, trained by torch's Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=LR)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()

    return Contestant(step, log_prob, sample)


def of_ppgen(family: str, rows: Tensor, engine: str) -> Contestant:
    """Ours, standardised by the rows; batches are as many as the first of them."""
    from ppgen.errors import PpgenError
    from ppgen.inference import Objective, compiled_sampler
    from ppgen.inference.training.optimise import make_fabric, make_optimizer
    from ppgen.inference.training.step import Row, Step
    from ppgen.models import Flow
    from ppgen.structure import inspect

    d = rows.shape[1]
    transforms = 1 if family == "cnf" else LAYERS
    flow = Flow(d, family=family, transforms=transforms, hidden=HIDDEN).prepare({"x": rows})
    batch = {"x": rows[:BATCH]}
    flow.setup(batch)
    objective = Objective(flow, inspect(flow, batch), BATCH)
    fabric = make_fabric("cpu", "32-true")
    wrapped, optimizer = fabric.setup(objective, make_optimizer("Adam", list(objective.parameters()), LR))
    train = Step(wrapped, optimizer, fabric, engine=engine)
    done = 0

    def step(x: Tensor) -> None:
        nonlocal done
        done += 1
        train([{"x": x}], [Row(LR, 1.0, done)])
        if train.running != engine and done == 2:  # the first step is always eager
            print(f"{family}: steps of ppgen {engine} ran as {train.running}")

    def sample(n: int) -> Tensor:
        if engine == "eager":
            return flow.density().sample((n,))
        if n not in drawers:
            try:
                drawers[n] = compiled_sampler(flow, n, engine=engine)
            except PpgenError:  # a solver that stops when it has converged
                print(f"{family}: draws of ppgen {engine} are eager")
                drawers[n] = lambda: {"x": flow.density().sample((n,))}
        return drawers[n]()["x"]

    drawers: dict[int, Callable[..., dict[str, Tensor]]] = {}
    return Contestant(step, flow.log_prob, sample)


def of_zuko(family: str, d: int) -> Contestant | None:
    import zuko

    # its NICE has affine couplings, as its RealNVP
    narrow = {"hidden_features": (32, 32)}
    make = {
        "maf": lambda: zuko.flows.MAF(d, transforms=LAYERS, hidden_features=HIDDEN),
        "nsf": lambda: zuko.flows.NSF(d, bins=BINS, transforms=LAYERS, hidden_features=HIDDEN),
        "realnvp": lambda: zuko.flows.RealNVP(d, transforms=LAYERS, hidden_features=HIDDEN),
        "naf": lambda: zuko.flows.NAF(d, transforms=LAYERS, hidden_features=HIDDEN, network=narrow),
        "unaf": lambda: zuko.flows.UNAF(d, transforms=LAYERS, hidden_features=HIDDEN, network=narrow),
        "sospf": lambda: zuko.flows.SOSPF(d, transforms=LAYERS, hidden_features=HIDDEN),
        "bpf": lambda: zuko.flows.BPF(d, transforms=LAYERS, hidden_features=HIDDEN),
        "gf": lambda: zuko.flows.GF(d, transforms=LAYERS, hidden_features=HIDDEN),
        "cnf": lambda: zuko.flows.CNF(d, hidden_features=HIDDEN),
    }
    if family not in make:
        return None
    flow = make[family]()
    return of_module(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def of_nflows(family: str, d: int) -> Contestant | None:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    how = {"features": d, "hidden_features": 64, "num_blocks": 2, "use_residual_blocks": False}
    tails = {"num_bins": BINS, "tails": "linear", "tail_bound": 5.0}

    def coupling(i: int, cls: type, **more: object) -> nn.Module:
        mask = torch.tensor([1.0 if j % 2 == i % 2 else -1.0 for j in range(d)])
        return cls(mask, lambda a, b: ResidualNet(a, b, hidden_features=64, num_blocks=1), **more)

    def layer(i: int) -> list[nn.Module]:
        if family == "maf":
            return [transforms.ReversePermutation(d), transforms.MaskedAffineAutoregressiveTransform(**how)]
        if family == "nsf":
            spline = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**how, **tails)
            return [transforms.ReversePermutation(d), spline]
        if family == "realnvp":
            return [coupling(i, transforms.AffineCouplingTransform)]
        if family == "nice":
            return [coupling(i, transforms.AdditiveCouplingTransform)]
        return [coupling(i, transforms.PiecewiseRationalQuadraticCouplingTransform, **tails)]

    if family not in ("maf", "nsf", "realnvp", "nice", "nsf_coupling"):
        return None
    parts = [t for i in range(LAYERS) for t in layer(i)]
    flow = flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([d]))
    return of_module(flow, flow.log_prob, flow.sample)


def of_normflows(family: str, d: int) -> Contestant | None:
    import normflows as nf

    parts: list[nn.Module] = []
    for i in range(LAYERS):
        if family in ("maf", "iaf"):  # its cheap direction is sampling: it is an inverse autoregressive flow
            parts += [nf.flows.MaskedAffineAutoregressive(d, 64, num_blocks=2), nf.flows.Permute(d, mode="swap")]
        elif family == "nsf":
            parts.append(
                nf.flows.AutoregressiveRationalQuadraticSpline(
                    d, 2, 64, num_bins=BINS, tail_bound=5, permute_mask=i % 2 == 1
                )
            )
        elif family == "nsf_coupling":
            parts.append(
                nf.flows.CoupledRationalQuadraticSpline(d, 2, 64, num_bins=BINS, tail_bound=5, reverse_mask=i % 2 == 1)
            )
        elif family == "realnvp":
            mask = torch.tensor([float(j % 2 == i % 2) for j in range(d)])
            scale, shift = (nf.nets.MLP([d, *HIDDEN, d], init_zeros=True) for _ in range(2))
            parts.append(nf.flows.MaskedAffineFlow(mask, shift, scale))
        elif family == "residual":
            parts.append(nf.flows.Residual(nf.nets.LipschitzMLP([d, *HIDDEN, d])))
        else:
            return None
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(d, trainable=False), parts)
    return of_module(flow, flow.log_prob, lambda n: flow.sample(n)[0])


PEERS = ("zuko", "nflows", "normflows")


def contestants(
    family: str, rows: Tensor, engines: list[str], peers: Sequence[str] = PEERS, seed: int = 0
) -> dict[str, Contestant]:
    """All that have the family, for rows like these; the seed is that of their initial values."""
    found: dict[str, Contestant | None] = {}
    for engine in engines:
        torch.manual_seed(seed)
        found[f"ppgen {engine}"] = of_ppgen(family, rows, engine)
    for name, make in (("zuko", of_zuko), ("nflows", of_nflows), ("normflows", of_normflows)):
        if name in peers and importlib.util.find_spec(name) is not None:
            torch.manual_seed(seed)
            found[name] = make(family, rows.shape[1])
    return {name: c for name, c in found.items() if c is not None}


def trained(c: Contestant, rows: Tensor, steps: int, seed: int = 3) -> Contestant:
    """The contestant after so many batches, in the order of the seed."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        c.step(rows[torch.randint(len(rows), (BATCH,), generator=order)])
    return c


def compare(family: str, options: argparse.Namespace) -> None:
    """Held-out log-likelihood over seeds, of initial values and batches, and its paired difference from the first."""
    train, test = data(20_000, 0), data(5_000, 1)
    nats: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, c in contestants(family, train, options.engines, options.peers, seed).items():
            nats.setdefault(name, []).append(_mean_log_prob(trained(c, train, options.steps, 100 + seed), test))
    first = torch.tensor(next(iter(nats.values())))
    print(f"\n{family}: nats after {options.steps} steps, {options.seeds} seeds")
    for name, values in nats.items():
        mean, se = _mean_se(torch.tensor(values))
        less, its_se = _mean_se(first - torch.tensor(values))
        print(f"{name:16s}{mean:9.3f} ± {se:.3f}; the first less this {less:+.3f} ± {its_se:.3f}", flush=True)


def _mean_se(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def race(family: str, options: argparse.Namespace) -> None:
    """Trains all, then times steps and draws in turns."""
    train, test = data(20_000, 0), data(5_000, 1)
    runs = contestants(family, train, options.engines, options.peers)
    nats = {name: _mean_log_prob(trained(c, train, options.steps), test) for name, c in runs.items()}
    steps: dict[str, list[float]] = {name: [] for name in runs}
    draws: dict[str, list[float]] = {name: [] for name in runs}
    for c in runs.values() if options.draws else ():
        with torch.no_grad():
            c.sample(options.draws)
    for _ in range(options.repeats):
        for name, c in runs.items():
            began = time.process_time()
            for _ in range(options.block):
                c.step(train[:BATCH])
            steps[name].append((time.process_time() - began) * 1000 / options.block)
            with torch.no_grad():
                began = time.process_time()
                if options.draws:
                    c.sample(options.draws)
                draws[name].append((time.process_time() - began) * 1000)
    print(f"\n{family}: {D}-D, {LAYERS} transforms, {HIDDEN}, batch {BATCH}")
    print(f"{'':16s}{'ms a step':>10s}{f'ms for {options.draws} draws':>18s}{f'nats, {options.steps} steps':>18s}")
    for name in runs:
        step, draw = statistics.median(steps[name]), statistics.median(draws[name])
        print(f"{name:16s}{step:10.1f}{draw:18.1f}{nats[name]:18.3f}", flush=True)


def _mean_log_prob(c: Contestant, x: Tensor) -> float:
    return sum(c.log_prob(part).detach().sum().item() for part in x.split(1000)) / len(x)


def main() -> None:
    global LAYERS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--engines", nargs="+", default=["eager", "trace", "compile"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block", type=int, default=10, help="steps a turn")
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--seeds", type=int, default=0, help="compare log-likelihoods over so many, and time nothing")
    parser.add_argument("--transforms", type=int, default=LAYERS)
    parser.add_argument("--draws", type=int, default=512, help="0 leaves them out: their graphs take long to compile")
    options = parser.parse_args()
    LAYERS = options.transforms
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    for family in options.families:
        (compare if options.seeds else race)(family, options)


if __name__ == "__main__":
    main()
