"""Diffusion beside its peers, on one U-Net: Hugging Face diffusers, and denoising-diffusion-pytorch.

    python benchmarks/denoisers.py speed [--repeats 5] [--engines trace compile] [--precisions 32-true bf16-mixed]
    python benchmarks/denoisers.py bits --data mnist [--seconds 60] [--rows 200]

speed: a training step, and images a second at 20 and 50 network calls. One process, one thread, contestants taking
turns; medians of CPU time. The network is ppgen's for all; for the peers its images lie in memory as in theirs, and in
rows of their own ("lent") channels last, as ppgen has them. bf16-mixed runs matrix products and convolutions in
bfloat16, which pays on CPUs with AMX or AVX512_BF16; the peers run under torch.autocast then.
bits: ppgen's program, and a short training loop on diffusers' scheduler (L_simple, the linear schedule, T = 1000), each
given the same CPU time; both networks are then judged by the same bound, bits/dim of test rows.

A peer that is not installed is left out: pip install diffusers denoising-diffusion-pytorch (which wants torchvision).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[], object]
LR = 2e-3
LAYOUTS = {"": torch.contiguous_format, ", lent": torch.channels_last}  # of images in the peers' networks


def turns(contestants: dict[str, Step], repeats: int) -> dict[str, float]:
    """The median CPU seconds of each, after two turns that do not count: tracing takes part in both."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(repeats + 2):
        for name, run in contestants.items():
            began = time.process_time()
            run()
            if i > 1:
                found[name].append(time.process_time() - began)
    return {name: statistics.median(v) for name, v in found.items()}


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def ours(program: Any, x: Tensor, engine: str, precision: str) -> Callable[[Tensor, float], object]:
    """A training step of ppgen's own loop: step(batch, learning rate)."""
    from ppgen.inference import Objective
    from ppgen.inference.training.optimise import make_fabric, make_optimizer
    from ppgen.inference.training.step import Row, Step
    from ppgen.structure import inspect

    program.train()
    objective = Objective(program, inspect(program, {"x": x[:2]}), len(x), objective="subsampled")
    fabric = make_fabric("cpu", precision)
    wrapped, optimizer = fabric.setup(objective, make_optimizer("Adam", list(objective.parameters()), LR))
    step = Step(wrapped, optimizer, fabric, engine=engine)
    return lambda batch, lr: step([{"x": batch}], [Row(lr, 1.0, 1)])


def by_diffusers(net: nn.Module, precision: str, span: tuple[float, float] | None) -> Callable[[Tensor, float], object]:
    """A training step by hand: diffusers adds the noise. `span`: the γ of what the net is told as 0 and 1."""
    import diffusers

    noising = diffusers.DDPMScheduler()
    adam = torch.optim.Adam(net.parameters(), LR)
    times = torch.arange(1000) / 1000
    if span is not None:
        times = (gammas(noising.alphas_cumprod) - span[0]) / (span[1] - span[0])

    def step(batch: Tensor, lr: float) -> None:
        adam.param_groups[0]["lr"] = lr
        z = 2 * batch - 1
        noise, t = torch.randn_like(z), torch.randint(0, 1000, (len(z),))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            guess = net(noising.add_noise(z, noise, t), times[t])
        loss = (guess - noise).pow(2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def gammas(kept: Tensor) -> Tensor:
    """−log SNR of the share of variance that is kept, α²."""
    return (1 - kept).log() - kept.log()


class Images(nn.Module):
    """The U-Net as denoising-diffusion-pytorch calls it: images, whole times."""

    channels = out_dim = 1
    self_condition = False

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        return self.net(x.flatten(1), t / 1000).reshape(x.shape)


def by_lucidrains(net: nn.Module, precision: str) -> tuple[Callable[[Tensor], object], Any]:
    """A training step of denoising-diffusion-pytorch, and its diffusion."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    how = {"objective": "pred_noise", "beta_schedule": "linear", "sampling_timesteps": 20}
    diffusion = GaussianDiffusion(Images(net), image_size=32, timesteps=1000, **how)
    adam = torch.optim.Adam(list(net.parameters()) or [torch.zeros(1)], LR)

    def step(batch: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = diffusion(batch.reshape(-1, 1, 32, 32))
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step, diffusion


def speed(repeats: int, engines: list[str], precisions: list[str]) -> None:
    from ppgen.models import Diffusion

    def model(layout: torch.memory_format = torch.channels_last) -> Diffusion:
        torch.manual_seed(0)
        how = {"prediction": "noise", "schedule": "linear", "likelihood": "discrete", "weighting": "simple"}
        program = Diffusion((1, 32, 32), "unet", (32, 64, 64), blocks=1, **how)
        program.net.layout = layout
        return program

    x = torch.randint(0, 256, (32, 1024)) / 255
    print(f"U-Net of {sum(p.numel() for p in model().parameters())} parameters, 32 x 32, batch 32, one thread")
    diffusers, lucidrains = installed("diffusers"), installed("denoising_diffusion_pytorch", "torchvision")
    contestants: dict[str, Step] = {}
    for p in precisions:
        for engine in engines:
            step = ours(model(), x, engine, p)
            contestants[f"ppgen {engine} {p}"] = lambda step=step: step(x, LR)
        for lent, layout in LAYOUTS.items():
            if diffusers:
                hand = by_diffusers(model(layout).net, p, None)
                contestants[f"diffusers {p}{lent}"] = lambda hand=hand: hand(x, LR)
            if lucidrains:
                other, _ = by_lucidrains(model(layout).net, p)
                contestants[f"denoising-diffusion {p}{lent}"] = lambda other=other: other(x)
    for name, seconds in turns(contestants, repeats).items():
        print(f"training step   {name:32s} {1000 * seconds:8.1f} ms", flush=True)

    without = model().eval()
    without.net = Nothing()
    z = torch.randn(16, 1024)
    for steps in (20, 50):
        with torch.no_grad():
            theirs = peers(model(torch.contiguous_format).eval(), z, steps)
            found = turns({**samplers(model().eval(), z, steps), **theirs}, max(repeats // 2, 1))
            outside = turns({**samplers(without, z, steps), **peers(without, z, steps)}, 5)
        for name, seconds in found.items():
            print(
                f"{steps} calls, 16 images   {name:26s} {16 / seconds:7.1f} images/s   outside the network "
                f"{100 * outside[name] / seconds:5.2f}%",
                flush=True,
            )


class Nothing(nn.Module):
    """A network that takes no time: what is left is the time outside it."""

    def forward(self, z: Tensor, u: Tensor, label: Tensor | None = None) -> Tensor:
        return z


def samplers(program: Any, z: Tensor, steps: int) -> dict[str, Step]:
    """Draws by ppgen: name -> what to time."""
    from ppgen.inference.diffusion.samplers import SAMPLERS

    return {f"ppgen {s}": lambda s=s: SAMPLERS[s](program, steps, z) for s in ("ddim", "dpmpp")}


def peers(program: Any, z: Tensor, steps: int) -> dict[str, Step]:
    """Draws from the same noise by the peers' samplers, of the program's network."""
    runs: dict[str, Step] = {}
    if installed("diffusers"):
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

        for label, cls in (("ddim", DDIMScheduler), ("dpmpp", DPMSolverMultistepScheduler)):

            def sample(cls: Any = cls) -> None:
                scheduler, state = cls(), z
                scheduler.set_timesteps(steps)
                for t in scheduler.timesteps:
                    state = scheduler.step(program.net(state, (t / 1000).expand(16)), t, state).prev_sample

            runs[f"diffusers {label}"] = sample
    if installed("denoising_diffusion_pytorch", "torchvision"):
        _, diffusion = by_lucidrains(program.net, "32-true")
        diffusion.sampling_timesteps = steps
        runs["denoising-diffusion ddim"] = lambda: diffusion.ddim_sample((16, 1, 32, 32))
    return runs


def bits(
    source: str, data_dir: str | None, seconds: float, rows: int, precisions: list[str], contestants: list[str]
) -> None:
    from ppgen import data
    from ppgen.inference.diffusion.elbo_decomposition import chain_elbo
    from ppgen.models import Diffusion

    x, test = (data.load(source, part, data_dir=data_dir)["x"] for part in ("train", "test"))
    test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:rows]]
    arguments = Diffusion.from_data({"x": x}) | {"hidden": (16, 32, 48)[: len(Diffusion.from_data({"x": x})["hidden"])]}
    low, high = arguments.get("low", 0.0), arguments.get("high", 1.0)
    for p in precisions:
        for who in [c for c in contestants if c == "ppgen" or installed(c)]:
            torch.manual_seed(0)
            if who == "ppgen":
                program = Diffusion(**arguments, steps=0)
                step = ours(program, x[:64], "trace", p)
            else:
                from diffusers import DDPMScheduler

                kept = DDPMScheduler().alphas_cumprod
                span = (float(gammas(kept)[0]), float(gammas(kept)[-1]))
                how: dict[str, Any] = {"prediction": "noise", "schedule": "linear", "atoms": (), "steps": 1000}
                program = Diffusion(**{**arguments, **how}, gamma_low=span[0], gamma_high=span[1])
                by_hand = by_diffusers(program.net, p, span)

                def step(batch: Tensor, lr: float, by_hand: Any = by_hand) -> object:
                    return by_hand((batch.flatten(1) - low) / (high - low), lr)

            began, steps = time.process_time(), 0
            while (share := (time.process_time() - began) / seconds) < 1:
                step(x[torch.randint(len(x), (64,))], LR * (1 + math.cos(math.pi * share)) / 2)
                steps += 1
            found = chain_elbo(program.eval(), {"x": test}, times=50)
            b, scale = found.best, 1 / ((found.dims or 1) * math.log(2))
            print(
                f"{source}: {who:10s} {p:11s} {-b.mean * scale:.3f} bits/dim by the bound, Monte Carlo "
                f"± {b.mean_se * scale:.3f}, rows ± {b.rows_se * scale:.3f}; {steps} steps in {seconds:.0f} CPU s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="speed", choices=["speed", "bits"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=["trace"])
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--contestants", nargs="+", default=["ppgen", "diffusers"])
    o = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    if o.what == "speed":
        speed(o.repeats, o.engines, o.precisions)
    else:
        bits(o.data, o.data_dir, o.seconds, o.rows, o.precisions, o.contestants)


if __name__ == "__main__":
    main()
