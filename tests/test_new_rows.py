"""Groups that were not fitted: which plate has to be larger, and by how much, told by where the program fails."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.distributions import Normal

from ppgen import PpgenError, Program, rows
from ppgen.data import Table
from ppgen.inference import fit
from ppgen.inference.evaluation.predict import _grown as grown
from ppgen.inference.evaluation.predict import _Model as Model
from ppgen.inference.evaluation.predict import _seen as without
from ppgen.run.trees import Fitted


def model(g, c, y=None):
    with pyro.plate("group", 3):
        theta = pyro.sample("theta", Normal(0.0, 1.0))
    with pyro.plate("clinic", 2):
        u = pyro.sample("u", Normal(0.0, 1.0))
    with rows(g):
        pyro.sample("y", Normal(theta[g] + u[c], 1.0), obs=y)


DATA = {"g": torch.tensor([0, 1, 2, 0]), "c": torch.tensor([0, 1, 1, 0]), "y": torch.zeros(4)}


def _at(g: list[int], c: list[int], grow: bool) -> Model:
    run = fit(Program.from_pair(model), DATA, steps=0, guide="AutoNormal", starts=0)
    fitted = Fitted(run.program, run.structure, run.example, None, torch.float32)
    return Model(fitted, Table({"g": torch.tensor(g), "c": torch.tensor(c)}), frozenset(), False, {}, grow)


@pytest.mark.parametrize(
    "g, c, sizes",
    [([2, 0], [1, 0], {}), ([4, 0], [1, 0], {"group": 5}), ([0, 5], [3, 1], {"group": 6, "clinic": 4})],
)
def test_the_plates_that_grow_are_those_of_new_groups(g, c, sizes):
    new = _at(g, c, grow=True)
    assert grown(new, new.drawn()) == sizes


def test_a_new_group_is_refused_by_its_column_and_row():
    new = _at([0, 4], [1, 0], grow=False)
    with pytest.raises(PpgenError, match=r"'g' has the group 4 in row 1 .* fitted to 3 groups"):
        grown(new, new.drawn())


def test_columns_that_stand_for_their_shape_are_left_out():
    assert without(DATA, {"y"}).keys() == {"g", "c"}
