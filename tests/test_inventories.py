"""The names that the documentation links to exist, and Sphinx reads their inventories."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))
from inventories import ALIASES, PROJECTS, inventory, write

NAMES = [name for _, names in PROJECTS.values() for name in names]


def test_every_name_exists():
    for name in NAMES:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
    assert set(ALIASES.values()) <= set(NAMES)


def test_sphinx_reads_them(tmp_path):
    from sphinx.util.inventory import InventoryFile

    mapping = write(tmp_path)
    assert set(mapping) == set(PROJECTS) and all(Path(path).is_file() for _, path in mapping.values())
    found = InventoryFile.loads(inventory("torch"), uri="https://torch").data["py:class"]
    assert found["torch.Tensor"].uri == "https://torch/tensors.html#torch.Tensor" == found["Tensor"].uri


def test_every_public_name_is_in_the_reference():
    """models and inference give all that they export, less what is excluded, which has a place of its own."""
    import ppgen

    text = {p.stem: p.read_text() for p in (Path(__file__).parent.parent / "docs" / "api").glob("*.md")}
    whole = {"__version__", "data", "inference", "models"}
    assert [n for n in set(ppgen.__all__) - whole if f":: ppgen.{n}\n" not in text["programs"]] == []
    for page in ("inference", "models"):
        assert f"automodule:: ppgen.{page}\n   :members:\n   :imported-members:\n" in text[page]
        excluded = re.findall(r":exclude-members: (.*)", text[page])
        own = [n for names in excluded for n in names.split(", ")]
        assert [n for n in own if f"autoclass:: ppgen.{page}.{n}\n" not in text[page]] == []
