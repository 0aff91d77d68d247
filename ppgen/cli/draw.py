"""`ppgen sample`: draws from a fitted model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.cli.options import Json, RunPath, Seed, app
from ppgen.console import print_json
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from ppgen.run import Run


@app.command(short_help="Draw from a fitted model.")
def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("-n", help="Number of draws.")] = 64,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=".png, .npz (all sites) or .csv. [default: RUN/samples.png]")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option(metavar="FILE|KEY=VALUE", help="Columns or sites to hold fixed: a file, or y=3.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="A diffusion's: ancestral, ddim, heun, dpmpp, dpmpp_sde, ode. [default: dpmpp]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler. [default: 50]")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the label, with --given y=3.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 none, 1 that of the chain.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw from the fitted model, p(x) at the learned parameters."""
    from ppgen import inference
    from ppgen.export import check_suffix, write_draws
    from ppgen.run import Run

    fitted = Run.load(run)
    path = out or run / "samples.png"
    check_suffix(path)
    held = _held(given or [])
    how = {"sampler": sampler, "steps": steps, "guidance": guidance, "eta": eta}
    drawn = _by_sampler(fitted, n, held, seed, {k: v for k, v in how.items() if v is not None}, json)
    if drawn is None:
        drawn = inference.sample(fitted, n, given=held, seed=seed)
    if path.suffix.lower() == ".png":
        from ppgen.inference.plot import samples_figure, save

        figure = samples_figure(fitted, drawn=drawn, given=_columns(held, fitted))
        if figure is None:
            raise PpgenError(f"{fitted.program.name} has nothing that could be drawn; write the sites with --out x.npz")
        save(figure, path)
    else:
        write_draws(path, drawn, fitted.structure.names("observed"))
    if json:
        print_json({"out": str(path), "n": n, "sites": {k: list(v.shape) for k, v in drawn.items()}})
    else:
        print(f"{n} draws of {', '.join(drawn)} in {path}")


def _by_sampler(
    run: Run, n: int, held: dict[str, Any] | None, seed: int, how: dict[str, Any], quiet: bool
) -> dict[str, Any] | None:
    """Draws of a Gaussian chain by a sampler; None where the program is another, or has only a few steps."""
    import sys

    from ppgen.gaussian_chain import GaussianChain
    from ppgen.inference.samplers import draw
    from ppgen.progress import counter

    chain = isinstance(run.program, GaussianChain)
    if not how and not (chain and run.program.brief() is not run.program):
        return None
    with counter("sample", sys.stderr, quiet) as report:
        return {"x": draw(run, n, given=held, seed=seed, report=report, **how)}


def _held(items: list[str]) -> dict[str, Any] | None:
    """--given: files of columns, and key=value."""
    from ppgen import catalog, data

    held: dict[str, Any] = {}
    for item in items:
        if "=" in item and not Path(item).exists():
            held |= data.as_tensors(catalog.parse_settings([item]))
        else:
            held |= data.load(item)
    return held or None


def _columns(held: dict[str, Any] | None, run: Run) -> dict[str, Any]:
    from ppgen.run import prepare_columns

    columns = prepare_columns(held or {}, run.program, run.dtype) if held else {}
    return {k: v for k, v in columns.items() if k in run.program.columns}
