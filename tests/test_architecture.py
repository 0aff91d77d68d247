"""The house: no import goes up, no files import each other, and the page shows the arrows that there are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def house():
    sys.path.insert(0, str(DOCS))
    import architecture

    yield architecture
    sys.path.remove(str(DOCS))


def test_no_arrow_goes_up(house):
    assert house.upwards() == []


def test_no_circle(house):
    assert house.circles() == []


def test_every_room_has_a_floor(house):
    rooms = {house.room(n, p) for n, p in house.files().items()}
    assert rooms == {r for floor in house.FLOORS for r in floor}


def test_the_page_shows_the_arrows_that_there_are(house):
    page = (DOCS / "architecture.md").read_text()
    assert house.table() in page, "run python docs/architecture.py, and put what it prints on docs/architecture.md"


def test_no_algorithm_asks_for_a_family(house):
    """What differs between families is said by the terms that they give."""
    families = ("isinstance(program, Flow", "isinstance(program, VAE", "isinstance(program, Diffusion")
    for name, path in house.files().items():
        if name.startswith(("ppgen.inference", "ppgen.cli")):
            assert not any(question in path.read_text() for question in families), name
