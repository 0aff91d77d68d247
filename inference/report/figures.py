"""What all pictures are made of: axes, tiles of images, intervals, and how a figure is written to a file."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppgen.errors import PpgenError, first_of
from ppgen.run.files import make_folder, write_atomic
from ppgen.run.shown import group_effects
from ppgen.style import BLUE, FONTS, GREY, IMAGE, ORANGE, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import DataTree

INTERVALS = 40  # at most, in a picture
PANELS = 4
FORMATS = ("png", "svg")
LETTERS = 8  # at most, in a sentence

log = logging.getLogger(__name__)


def require_format(format: str) -> None:
    """To be called before anything is computed for a picture."""
    if format not in FORMATS:
        raise PpgenError(f"format {format!r} is none of {', '.join(FORMATS)}; take one of them")


def write_figures(folder: Path, figures: Mapping[str, Figure | None], format: str = "png") -> list[Path]:
    """Writes FOLDER/NAME.FORMAT for each figure that is there.

    Raises:
        PpgenError: a folder that cannot be made.
    """
    make_folder(folder)
    return [save(figure, folder / f"{name}.{format}") for name, figure in figures.items() if figure is not None]


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure, atomically: as SVG where the path ends so, else as PNG."""
    write_atomic(path, rendered(figure, "svg" if Path(path).suffix == ".svg" else "png"))
    return Path(path)


def rendered(figure: Figure, format: str = "png", dpi: int = 150) -> bytes:
    """The figure as PNG or SVG. Letters that its font lacks are of ppgen.style.FONTS; a log names those of no font."""
    import matplotlib
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    installed = {font.name for font in fontManager.ttflist}
    for text in figure.findobj(Text):
        own = text.get_fontfamily()
        text.set_fontfamily([*own, *(name for name in FONTS if name in installed and name not in own)])
    out, metadata = io.BytesIO(), {"Date": None} if format == "svg" else None
    same = matplotlib.rc_context({"svg.hashsalt": "ppgen"})  # the same figure is the same file
    with same, warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph", UserWarning)
        figure.savefig(out, format=format, dpi=dpi, facecolor="white", metadata=metadata)
    _tell_missing_letters(caught)
    return out.getvalue()


def _tell_missing_letters(caught: list[warnings.WarningMessage]) -> None:
    """Logs which letters are boxes in a picture, and warns of the rest anew."""
    import matplotlib

    letters = set()
    for warning in caught:
        if glyph := re.match(r"Glyph (\d+) ", str(warning.message)):
            letters.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if letters:
        shown = first_of(sorted(letters), LETTERS)
        log.warning(
            "a picture has boxes in place of %s, which no font that matplotlib knows has; install one that does "
            "(Noto Sans CJK has those of Chinese, Japanese and Korean), and delete matplotlib's list of fonts, "
            "fontlist-*.json in %s",
            shown, matplotlib.get_cachedir(),
        )  # fmt: skip


def figure_of(width: float, height: float, panels: int = 1, **how: Any) -> tuple[Figure, list[Any]]:
    """A figure in the style of ppgen.style, and its panels from left to right."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings()):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, panels, **how)).ravel())


def image_grid(
    axis: Any,
    images: Tensor,
    shape: tuple[int, ...],
    title: str,
    columns: int | None = None,
    *,
    values: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Tiles images, one pixel apart; `values` are those of black and white."""
    x = images.detach().double().numpy().reshape(-1, *shape)
    x = np.moveaxis(x, 1, -1) if len(shape) == 3 else x[..., None]
    low, top = values
    columns = columns or math.ceil(math.sqrt(len(x)))
    rows, side = math.ceil(len(x) / columns), shape[-1]
    canvas = np.full((rows * (side + 1) - 1, columns * (side + 1) - 1, x.shape[-1]), top)
    for i, image in enumerate(x):
        r, c = (i // columns) * (side + 1), (i % columns) * (side + 1)
        canvas[r : r + side, c : c + side] = image
    canvas = np.clip((canvas - low) / (top - low), 0, 1)
    axis.imshow(
        canvas if canvas.shape[-1] == 3 else canvas[..., 0], cmap=IMAGE, vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def intervals_figure(
    draws: np.ndarray, names: list[str], xlabel: str, title: str, seen: np.ndarray | None = None
) -> Figure:
    """Intervals of the columns, (draws, entries), the first 40 of them, and what was observed of each, where it was."""
    if len(names) > INTERVALS:
        title += f" (the first {INTERVALS} of {len(names)} entries)"
    figure, (axis,) = figure_of(7.4, 0.9 + 0.24 * min(len(names), INTERVALS))
    _draw_intervals(axis, draws, names)
    if seen is not None:
        at = -np.arange(min(len(seen), INTERVALS))
        axis.scatter(seen[:INTERVALS], at, s=26, marker="D", color=ORANGE, zorder=3, label=f"{xlabel}, observed")
    axis.set(xlabel=xlabel, title=title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)  # of all that is drawn by now
    return figure


def groups_figures(tree: DataTree) -> dict[str, Figure | None]:
    """By plate of groups, intervals of each effect, a panel for each, the groups in its order."""
    own: Any = tree["posterior"]
    figures: dict[str, Figure | None] = {}
    for plate, effects in group_effects(tree).items():
        names, words = list(effects)[:PANELS], [str(w) for w in own[plate].values]
        height = 1.1 + 0.24 * min(len(words), INTERVALS)
        figure, axes = figure_of(1.4 + 2.6 * len(names), height, len(names), sharey=True)
        for axis, name in zip(axes, names, strict=True):
            draws = effects[name].stack(drawn=("chain", "draw")).transpose("drawn", plate).values
            _draw_intervals(axis, draws, words)
            axis.axvline(0, color=GREY, lw=0.8)
            axis.set_title(name, fontsize=9)
        handles = axes[0].get_legend_handles_labels()  # the same in every panel
        figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
        some = f", the first {INTERVALS} of {len(words)}" if len(words) > INTERVALS else ""
        figure.suptitle(f"Posterior by {plate}{some}", fontsize=10)
        figures[f"groups_{plate}"] = figure
    return figures


def _draw_intervals(axis: Any, draws: np.ndarray, names: list[str]) -> None:
    """Median, 50% and 90% interval of each column, from the top down."""
    draws, names = draws[:, :INTERVALS], names[:INTERVALS]
    at = -np.arange(len(names))
    for low, high, width, label in ((0.05, 0.95, 1.4, "90% interval"), (0.25, 0.75, 4.0, "50% interval")):
        a, b = np.quantile(draws, [low, high], axis=0)
        axis.hlines(at, a, b, color=BLUE, lw=width, label=label)
    axis.scatter(np.median(draws, 0), at, s=18, color="white", edgecolor=BLUE, zorder=3, label="median")
    axis.set_yticks(at, names, fontsize=8)
    axis.locator_params(axis="x", nbins=4)  # whose labels have room, as -17500 next to -15000 has not
    axis.set_ylim(at[-1] - 0.7, 0.7)
