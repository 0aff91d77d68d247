"""`ppgen sample`: draws from a fitted model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli.options import app, check_suffix, out_option
from ppgen.console import print_json, say
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from torch import Tensor

    from ppgen.data import Table
    from ppgen.run import Run


@app.command(short_help="Draw from a fitted model.")
def sample(
    run: opt.RunPath,
    n: Annotated[
        int | None, typer.Option("-n", help="Number of draws; of each row that is filled in. [default: 64; 1 a row]")
    ] = None,
    out: Annotated[Path | None, out_option(".png, .npz (all sites) or .csv. [default: RUN/samples.png]")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|KEY=VALUE",
            help="Columns or sites to hold fixed: a file, or y=3. The other latents are the prior's: to predict, ppgen "
            "predict. A diffusion fills in the empty cells of x.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="A diffusion's: ancestral, ddim, heun, dpmpp, dpmpp_sde, unipc, deis, ode. "
            "[default: dpmpp or dpmpp_sde; of a short chain ancestral]"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of the sampler. [default: 50; dpmpp_sde 100, ddim 200, ancestral the chain's]")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the label, with --given y=3.")] = None,
    particles: Annotated[
        int | None, typer.Option(help="To fill in by, each a network call a step. [default: 64]")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 none, 1 that of the chain.")] = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Draw from the fitted model, p(x) at the learned parameters, or with rows of x given p(what is missing | rest).

    Latents are drawn from the prior, also with --given; posterior predictions of new rows are `ppgen predict`.
    """
    from ppgen import inference
    from ppgen.run import Run

    fitted = Run.load(run)
    path = out or run / "samples.png"
    check_suffix(path, (".png", ".npz", ".csv"))
    held = _held(given or [], fitted)
    how = {"sampler": sampler, "steps": steps, "guidance": guidance, "eta": eta, "particles": particles}
    drawn = _filled(fitted, n, held, seed, how, json)
    if drawn is not None:
        n, held = len(drawn["x"]), _without_x(held)
    elif particles is not None:
        raise PpgenError("--particles is for rows to fill in, and --given holds no x; leave it out, or give x")
    else:
        n = 64 if n is None else n
        drawn = _by_sampler(fitted, n, held, seed, {k: v for k, v in how.items() if v is not None}, json)
        if drawn is None:
            drawn = inference.sample(fitted, n, given=held, seed=seed)
    _write(path, fitted, drawn, held)
    prior = [name for name in fitted.structure.globals if name in drawn and name not in (held or {})]
    if json:
        sites = {k: list(v.shape) for k, v in drawn.items()}
        print_json({"out": str(path), "n": n, "sites": sites, "conditions_on": sorted(held or {}), "prior": prior})
    else:
        on = f" given {', '.join(sorted(held))}" if held else ""
        say(f"{n} draws of {', '.join(drawn)}{on} in {path}")
        if prior:
            say(f"{', '.join(prior)} from the prior, not from the fitted data; to predict: ppgen predict {run}")


def _write(path: Path, run: Run, drawn: dict[str, Any], held: dict[str, Any] | None) -> None:
    if path.suffix.lower() != ".png":
        _write_draws(path, drawn, run.structure.names("observed"))
        return
    from ppgen.inference.report.figures import save
    from ppgen.inference.report.sample_plots import samples_figure

    figure = samples_figure(run, drawn=drawn, given=_columns(held, run))
    if figure is None:
        raise PpgenError(f"{run.program.name} has nothing that could be drawn; write the sites with --out x.npz")
    save(figure, path)


def _write_draws(path: Path, drawn: Mapping[str, Tensor], observed: Iterable[str]) -> None:
    """Writes draws of `ppgen.inference.sample`, n leading, atomically.

    Args:
        path: .npz (arrays by site, their shapes kept), or .csv (columns x_0, x_1, ... of the observed sites).
    """
    import io
    import zipfile

    import numpy as np

    from ppgen.run.files import write_atomic, write_csv

    arrays = {name: value.detach().cpu().numpy() for name, value in drawn.items()}
    out = io.BytesIO()
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:  # numpy's own savez has names of its own
            for name, value in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
                    np.lib.format.write_array(f, value, allow_pickle=False)
        write_atomic(path, out.getvalue())
        return
    # as text in numpy, which writes a float32 in as few digits as it has
    flat = {name: arrays[name].reshape(len(arrays[name]), -1).astype(str) for name in observed if name in arrays}
    head = [name if v.shape[1] == 1 else f"{name}_{i}" for name, v in flat.items() for i in range(v.shape[1])]
    write_csv(path, head, zip(*(column for v in flat.values() for column in v.T.tolist()), strict=True))


def _by_sampler(
    run: Run, n: int, held: dict[str, Any] | None, seed: int, how: dict[str, Any], quiet: bool
) -> dict[str, Any] | None:
    """Draws of a Gaussian chain by a sampler; None where the program is another, or has only a few steps."""
    import sys

    from ppgen.cli.progress import counter
    from ppgen.inference.diffusion.samplers import sample_diffusion

    if not how and not (run.program.gaussian_steps and run.program.repeats):
        return None
    with counter("sample", sys.stderr, quiet) as report:
        return {"x": sample_diffusion(run, n, given=held, seed=seed, report=report, **how)}


def _filled(
    run: Run, n: int | None, held: Table | None, seed: int, how: dict[str, Any], quiet: bool
) -> dict[str, Any] | None:
    """Rows of x with their gaps filled in, n times each, a row's draws together; None where no x is held."""
    import sys

    from ppgen.cli.progress import counter
    from ppgen.inference import impute

    if not run.program.gaussian_steps or held is None or "x" not in held:
        return None
    x, held = held["x"], _without_x(held)
    for name in ("sampler", "guidance", "eta"):
        if how[name] is not None:
            raise PpgenError(f"--{name} has no part in filling in x, which --given holds; leave it out")
    if not x.is_floating_point() or not x.isnan().any():
        raise PpgenError("no cell of the x in --given is empty, so that there is nothing to fill in; leave one empty")
    options = {k: how[k] for k in ("steps", "particles") if how[k] is not None}
    with counter("fill in", sys.stderr, quiet) as report:
        filled = impute(run, x, draws=1 if n is None else n, given=held, seed=seed, report=report, **options)
    return {"x": filled.transpose(0, 1).flatten(0, 1)}


def _without_x(held: Table | None) -> Table:
    from ppgen.data import Table

    own = held or Table()
    return own.only(own.keys() - {"x"})


def _held(items: list[str], run: Run) -> Table | None:
    """--given: files of columns, and key=value."""
    from ppgen import catalog, data

    held = data.Table()
    for item in items:
        if "=" in item and not Path(item).exists():
            found = data.as_tensors(catalog.parse_settings([item]))
        else:
            found = _gathered(data.load(item, types=run.program.types), item, run)
        held = data.Table({**held, **found}, {**held.types, **found.types})
    return held or None


def _gathered(columns: Table, file: str, run: Run) -> Table:
    """A file's columns as the program's: as the fit gathered them, or x_0, x_1, ... as `sample` writes them."""
    import torch

    from ppgen import data

    if "x" in columns or not run.program.gaussian_steps:
        return columns
    state: Any = run.program.zero
    size = len(state)
    names = [f"x_{i}" for i in range(size)]
    if set(names) <= set(columns):
        rest = {k: v for k, v in columns.items() if k not in names}
        return data.Table({**rest, "x": torch.stack([columns[name].float() for name in names], -1)}, columns.types)
    if set(columns) <= set(run.program.columns):
        return columns
    chosen = run.config["data"].get("columns")
    if chosen:
        return data.load(file, columns=chosen, types=run.program.types)
    raise PpgenError(
        f"{file} has the columns {', '.join(columns)}, and x of {run.program.name} has {size} values; name them x_0 to "
        f"x_{size - 1}, as sample --out x.csv does, or give x as one matrix (.npz)"
    )


def _columns(held: dict[str, Any] | None, run: Run) -> dict[str, Any]:
    from ppgen.run import prepare_columns

    columns = prepare_columns(held or {}, run.program, run.dtype) if held else {}
    return {k: v for k, v in columns.items() if k in run.program.columns}
