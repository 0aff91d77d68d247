"""The colours of pictures and of the report: told apart with any colour vision, with contrast, written once."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from ppgen.style import BLUE, GREY, LABELS, ORANGE, settings

ROOT = Path(__file__).resolve().parent.parent

# What protan-, deuteran- and tritanopes see of linear RGB (Machado, Oliveira & Fernandes, 2009, severity 1).
SEEN = [
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
]
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str = "#ffffff") -> float:
    """WCAG's ratio of relative luminances."""
    dark, light = sorted(float(XYZ[1] @ linear(c)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str) -> float:
    """The least CIELAB distance of two colours over the kinds of colour vision."""
    return min(float(np.linalg.norm(lab(m @ linear(a)) - lab(m @ linear(b)))) for m in SEEN)


def test_the_measures_are_those_of_their_sources():
    assert contrast("#000000") == pytest.approx(21) and contrast("#777777") == pytest.approx(4.48, abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.1)
    assert distance("#882255", "#555555") < 2  # what a deuteranope takes for one colour


def test_colours_are_told_apart_and_stand_out():
    assert min(contrast(c) for c in (BLUE, ORANGE, GREY, *LABELS)) >= 3
    assert min(distance(a, b) for a, b in itertools.combinations((BLUE, ORANGE, GREY), 2)) > 25
    assert min(distance(a, b) for a, b in itertools.combinations(LABELS, 2)) > 15


def test_words_of_the_report_can_be_read_in_light_and_dark():
    source = (ROOT / "ppgen" / "templates" / "report.html.jinja").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", line)) for line in source.splitlines() if "--ink:" in line]
    assert len(schemes) == 2
    for scheme in schemes:
        for words, behind in itertools.product(("ink", "soft", "link", "wrong", "look", "fine"), ("paper", "tint")):
            assert contrast(scheme[words], scheme[behind]) >= 4.5, (words, behind)
        assert contrast(scheme["ink"], scheme["line"]) >= 4.5  # of an observed site, on its box


def test_no_picture_has_a_colour_of_its_own():
    """A colour is written in ppgen/style.py; what draws takes it from there, or from the cycle that is set there."""
    written = [ROOT / "inference", ROOT / "models", ROOT / "ppgen", ROOT / "benchmarks"]
    files = [p for top in written for p in top.rglob("*.py")]
    files += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs").glob("*.py"))
    plain = r"white|black|k[\"']|none|C\d|gray_r|Greys"  # neither hue nor choice
    literal = re.compile(rf"[\"']#[0-9a-fA-F]{{6}}[\"']|\b(?:cmap|color|colour)=[\"'](?!{plain})")
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p in files for m in literal.finditer(p.read_text())]
    assert [f for f in found if not f.startswith("ppgen/style.py")] == []


def test_figures_have_the_style():
    from ppgen.inference.report.figures import figure_of

    _, (axis,) = figure_of(2, 2)
    assert not axis.spines["top"].get_visible() and axis.spines["left"].get_visible()
    assert axis.plot([0, 1])[0].get_color() == BLUE
    assert settings()["image.cmap"] == "viridis"


@pytest.mark.parametrize("format", ["png", "svg"])
def test_letters_of_other_fonts_are_drawn_and_those_of_none_are_named(format, monkeypatch, caplog):
    """ℊ is in STIX, which comes with matplotlib, and not in its own font: as 年 is in the fonts of style.FONTS."""
    from ppgen.inference.report import figures

    def drawn(*fonts: str) -> bytes:
        monkeypatch.setattr(figures, "FONTS", fonts)
        figure, (axis,) = figures.figure_of(2, 2)
        axis.set_yticks([0], ["ℊ"])  # made after the figure, as most labels are
        return figures.rendered(figure, format)

    boxes = drawn("not installed")
    (record,) = caplog.records
    assert "boxes in place of ℊ," in record.getMessage()
    caplog.clear()
    assert drawn("not installed", "STIXGeneral") != boxes and caplog.records == []
