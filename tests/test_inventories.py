"""The names that the documentation links to exist, and Sphinx reads their inventories."""

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
