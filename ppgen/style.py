"""How pictures of `ppgen plot`, report, documentation and benchmarks look: colours, and matplotlib's settings.

The colours are told apart with any kind of colour vision, and each stands 3 : 1 against white, which WCAG 2.2 (1.4.11)
asks of graphics; tests/test_style.py computes both. Nothing is imported here, so that the documentation can read it.
"""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"  # what is drawn or fitted; what it is beside; what is behind
LABELS = ("#0072B2", "#D55E00", "#6B24B2", "#8C4658", "#8C0000", "#3600D9", "#B28659", "#D96CA3", "#8C0069", "#665933")
DENSITY, IMAGE = "viridis", "gray"  # maps of a density, of a picture's pixels
# For names in letters that matplotlib's own font lacks: those of these that are installed, in this order.
FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic",
    "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK KR", "Apple SD Gothic Neo", "Malgun Gothic",
)  # fmt: skip

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "image.cmap": DENSITY,
    "legend.frameon": False,
}


def settings() -> dict[str, object]:
    """STYLE with the cycle of colours: what `matplotlib.rcParams.update` takes."""
    from cycler import cycler

    return STYLE | {"axes.prop_cycle": cycler(color=LABELS)}
