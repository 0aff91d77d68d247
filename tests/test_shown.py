"""What tables and pictures of a posterior show: labels beside the values that they belong to, effects by group."""

import json

import numpy as np
import pytest

from ppgen.inference.evaluation.posterior import tree_from
from ppgen.inference.report.figures import groups_figures
from ppgen.inference.sampling.infer import _in_words as tried_in_words
from ppgen.inference.verdicts.findings import Finding, with_words
from ppgen.run.shown import by_group, group_effects, in_words, shown, summarized

TOWNS, TERMS = ["Ulm", "Bonn", "Jena"], ["Intercept", "x"]


@pytest.fixture(scope="module")
def tree():
    """sd comes before r, so that the dimensions of the terms come before those of the towns."""
    rng = np.random.default_rng(0)
    values = {
        "sd": np.array([7.0, 8.0]), "r": np.arange(6.0).reshape(3, 2), "z": np.full((3, 2), 9.0),
        "tau": np.array([0.1, 0.2, 0.3]), "mu": np.array(5.0),
    }  # fmt: skip
    drawn = {k: v + rng.normal(0, 0.01, (2, 100, *v.shape)) for k, v in values.items()}
    dims = {"sd": ["term"], "r": ["town", "term"], "z": ["town", "term"], "tau": ["town"]}
    told = {"unreported": json.dumps(["z"]), "group_plates": json.dumps(["town"])}
    return tree_from({"posterior": drawn}, dims, {"term": TERMS, "town": TOWNS}, **told)


def test_every_label_of_the_summary_has_its_own_figures(tree):
    table = summarized(tree, kind="stats")
    own = tree["posterior"]
    assert list(table.index) == [
        "sd[Intercept]", "sd[x]", *(f"r[{t}, {e}]" for t in TOWNS for e in TERMS), *(f"tau[{t}]" for t in TOWNS), "mu"
    ]  # fmt: skip
    for town in TOWNS:
        for term in TERMS:
            r = own["r"].sel(town=town, term=term).values
            row = table.loc[f"r[{town}, {term}]"]
            assert row["mean"] == pytest.approx(r.mean(), abs=1e-9) and row["sd"] == pytest.approx(r.std(), rel=0.02)


def test_intervals_are_of_90_percent_in_tables_and_pictures(tree):
    """Tables had 89%, pictures 94%, predictions 90%."""
    own = tree["posterior"]["mu"].values
    row = summarized(tree, kind="stats").loc["mu"]
    assert row[["eti90_lb", "eti90_ub"]].tolist() == pytest.approx(np.quantile(own, [0.05, 0.95]).tolist(), abs=1e-3)
    (axes,) = [f.axes for f in groups_figures(tree).values()]
    low, high = axes[2].collections[0].get_segments()[1][:, 0]
    tau = tree["posterior"]["tau"].sel(town="Bonn").values
    assert [low, high] == pytest.approx(np.quantile(tau, [0.05, 0.95]).tolist())


def test_effects_are_tabled_by_group(tree):
    means, sds = by_group(tree)["town"]
    assert list(means.index) == TOWNS and list(means.columns) == ["r[Intercept]", "r[x]", "tau"]
    assert means.loc["Jena"].tolist() == pytest.approx([4.0, 5.0, 0.3], abs=0.01)
    assert sds.loc["Bonn", "r[x]"] == pytest.approx(0.01, rel=0.2)
    assert set(group_effects(tree)) == {"town"} and "z" not in shown(tree)


def test_a_panel_of_the_picture_is_an_effect_by_group(tree):
    (axes,) = [f.axes for f in groups_figures(tree).values()]
    assert [a.get_title() for a in axes] == ["r[Intercept]", "r[x]", "tau"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == TOWNS
    medians = axes[1].collections[-1].get_offsets()
    assert np.asarray(medians) == pytest.approx(np.array([[1.0, 0], [3.0, -1], [5.0, -2]]), abs=0.01)


@pytest.mark.parametrize(
    ("where", "words"),
    [("r[2, 1]", "r[Jena, x]"), ("sd[0]", "sd[Intercept]"), ("mu", "mu"), ("r[7, 0]", "r[7, 0]"), ("w[0]", "w[0]")],
)
def test_findings_name_entries_by_their_words(tree, where, words):
    assert in_words(tree, where) == words
    assert str(with_words(tree, [Finding("ess_bulk", where, 500.0, 400.0, "fine")])[0]).find(words) > 0


def test_what_was_tried_names_entries_by_their_words(tree):
    finding = Finding("ess_bulk", "sd[0]", 50.0, 400.0, "look")
    assert "sd[Intercept]" in tried_in_words(tree, finding) and tried_in_words(tree, "the budget") == "the budget"


def test_a_tree_without_the_attributes_shows_all(tree):
    bare = tree.copy()
    bare.attrs = {}
    assert shown(bare) == list(tree["posterior"].data_vars) and not by_group(bare)
    everything = tree.copy()
    everything.attrs["unreported"] = json.dumps(list(tree["posterior"].data_vars))
    assert shown(everything)


def test_the_noise_behind_groups_and_gaps_is_left_out():
    pd = pytest.importorskip("pandas")
    pytest.importorskip("formulae")
    from ppgen.models import regression

    table = pd.DataFrame({"y": [1.0, 2, 0, 3, 1, 2], "x": [0.0, 1, np.nan, 2, 1, 3], "g": list("aabbcc")})
    made = regression("y ~ x + (1 | g)", data=table, missing="impute")
    assert made.unreported == ("z_g", "chol_g", "z_x")
