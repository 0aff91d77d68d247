"""Data that would silently become something else: words, labels, indices, huge rows; what a terminal would obey."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Beta, Normal, OrderedLogistic
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import ppgen
from ppgen import cli, data
from ppgen.data import ColumnType, as_tensors
from ppgen.data.cells.categories import recoded
from ppgen.data.cells.figures import kind_of_text
from ppgen.errors import PpgenError
from ppgen.frames import owner
from ppgen.inference import fit, loglik, mcmc, posterior, predict, sample
from ppgen.models import PPCA, VAE, Diffusion, Flow, FlowMatching, ImageFlow, Radon
from ppgen.run import Run

COUNTIES = ["ash", "elm", "oak"]


# -- text that is plainly something else -------------------------------------------------------------

FIGURES = {
    "thousands": (["1,234", "5,678", "10,001"], "may be 1234 or 1.234"),
    "thousands and a point": (["1,234", "5,678.5"], [1234, 5678.5]),
    "millions": (["1,234", "1,234,567"], [1234, 1234567]),
    "decimal commas": (["1,5", "2,5", "10,5"], [1.5, 2.5, 10.5]),
    "decimal commas and points between thousands": (["1.234,5", "2,5"], [1234.5, 2.5]),
    "commas of both kinds": (["1,5", "1,234.5"], "comma as the decimal mark, and others with a point"),
    "currency": (["$5", "$10", "7"], [5, 10, 7]),
    "currencies": (["$5", "7 €"], r"different units \(\$; €\)"),
    "currency codes": (["CHF 5", "7.50 CHF"], [5, 7.5]),
    "grouped as in Python": (["1_000", "12_500"], [1000, 12500]),
    "months": (["2024-01", "2023-12"], [31, 0]),
    "percent": (["5%", "10 %"], [5, 10]),
    "some in percent": (["5%", "10"], "different units"),
    "accounting": (["(1,234)", "5,678.0"], [-1234, 5678]),
    "grouped by blanks": (["1 234", "5 678 901"], [1234, 5678901]),
    "a minus sign of its own": (["\u22121.5", "\u22122"], [-1.5, -2]),
    "dates": (["2024-01-02", "2023-12-31"], [2, 0]),
    "days first": (["31.12.2023", "01.02.2024"], [0, 32]),
    "either day or month": (["01/02/2024", "03/02/2024"], "in more than one way .*%d/%m/%Y, %m/%d/%Y"),
    "dates of two forms": (["31.12.2023", "01/02/2024"], "is none of their form"),
    "named months": (["3 Jan 2024", "3 Feb 2024"], [0, 31]),
    "stamps": (["2024-01-02T10:30:00Z", "2024-01-02 10:30:00.0+01:00"], [0.4375, 0.3958333]),
    "lengths of time": (["00:10:00", "10:30"], [600, 37800]),
    "times of day": (["1:02 pm", "1:02 am"], [46920, 3720]),
    "spans": (["1 days 02:00:00", "3 days"], [93600, 259200]),
    "dollars of another country": (["US$5", "US$ 6.50"], [5, 6.5]),
    "powers of ten": (["1×10^3", "2 x 10^-4"], [1000, 2e-4]),
    "months in words": (["Jan 2020", "Mar 2020"], [0, 60]),
    "weekdays": (["Mon 6 Jan 2020", "Tue 7 Jan 2020"], [0, 1]),
    "mostly": (["$5", "$6", "$7", "many"], "'many' in row 3"),
    "gaps among them": (["$5", "?", "N/A"], [5, np.nan, np.nan]),
}


@pytest.mark.parametrize(("cells", "expected"), FIGURES.values(), ids=FIGURES)
def test_text_that_is_plainly_a_number_is_that_number_or_a_sentence_and_no_category(cells, expected):
    if isinstance(expected, str):
        with pytest.raises(PpgenError, match=f"'x'.*{expected}.*types=x="):
            as_tensors({"x": cells})
    else:
        np.testing.assert_allclose(as_tensors({"x": cells})["x"], expected, rtol=1e-5)
    assert as_tensors(pd.DataFrame({"x": pd.Categorical(cells)}))["x"].tolist() == list(pd.Categorical(cells).codes)


@pytest.mark.parametrize("word", ["oak", "Q1", "18-25", "A-2", "1st", "12b", "St. Louis", "yes", "n/a", "#3", ""])
def test_words_with_digits_are_words(word):
    assert kind_of_text(word) == "word"


def test_text_in_another_encoding_says_so(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,y\n1,2\n".encode("latin1"))
    with pytest.raises(PpgenError, match="not UTF-8.*save it as UTF-8"):
        data.load(tmp_path / "t.csv")


def test_a_tensor_dataset_is_columns_and_another_is_refused():
    found = as_tensors(TensorDataset(torch.zeros(5, 3), torch.ones(5)))
    assert found["x"].shape == (5, 3) and found["y"].shape == (5,)
    with pytest.raises(PpgenError, match="does not name its columns"):
        as_tensors(DataLoader(TensorDataset(*[torch.zeros(2)] * 3)).dataset)


# -- words keep their codes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def radon(tmp_path_factory):
    """A run of Radon from a file of words, and a call of the command line."""
    folder = tmp_path_factory.mktemp("radon")
    rows = [f"{c},{i % 2}.0,{5.0 * j + 0.01 * i}" for j, c in enumerate(COUNTIES) for i in range(6)]
    (folder / "train.csv").write_text("county,floor,y\n" + "\n".join(rows[::-1]) + "\n")
    (folder / "new.csv").write_text("county,floor\noak,0.0\nash,1.0\noak,1.0\n")
    (folder / "unseen.csv").write_text("county,floor\nbirch,0.0\n")

    def call(*args: object):
        return CliRunner().invoke(cli.app, [str(a) for a in args])

    done = call("fit", "radon", "-d", folder / "train.csv", "--steps", 2, "-q", "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder, call


def test_the_same_word_has_the_same_code_in_every_later_table(radon):
    folder, _ = radon
    run = Run.load(folder / "run")
    table = pd.DataFrame({"county": ["oak", "ash", "oak"], "floor": [0.0, 1.0, 1.0]})
    wider = table.assign(county=pd.Categorical(table.county, ["teak", "oak", "ash"]))  # a category that no row has
    as_lists = {"county": ["oak", "ash", "oak"], "floor": [0.0, 1.0, 1.0]}
    from_file = data.load(folder / "new.csv")
    for rows in (table, wider, as_lists, from_file):
        tree = predict(run, rows, draws=3)
        assert tree.predictions_constant_data.county.values.tolist() == ["oak", "ash", "oak"]
    by_word = sample(run, 3, given={"county": "oak", "floor": 0.0}, seed=0)
    by_code = sample(run, 3, given={"county": torch.tensor(2), "floor": 0.0}, seed=0)
    assert torch.equal(by_word["y"], by_code["y"])


def test_held_words_keep_their_codes_on_the_command_line(radon):
    folder, call = radon
    drawn = []
    (folder / "codes.csv").write_text("county,floor\n2,0.0\n0,1.0\n2,1.0\n")
    for given in ([folder / "new.csv"], [folder / "codes.csv"]):
        out = folder / "draws.npz"
        done = call("sample", folder / "run", "-n", 4, "--given", *given, "--out", out)
        assert done.exit_code == 0, done.output
        drawn.append(np.load(out)["y"])
    assert np.array_equal(*drawn)


def test_a_word_that_the_fit_did_not_see_is_named_by_every_command(radon):
    folder, call = radon
    for command in (["predict", folder / "run", "--data"], ["sample", folder / "run", "--given"]):
        done = call(*command, folder / "unseen.csv")
        assert done.exit_code == 2 and "'county' has 'birch', which the fit did not see" in done.stderr, done.output
    run = Run.load(folder / "run")
    for f in (loglik, posterior):
        with pytest.raises(PpgenError, match="'birch', which the fit did not see"):
            f(run, {"county": ["birch"], "floor": [0.0], "y": [1.0]})
    with pytest.raises(PpgenError, match=r"'county' was words at the fit \('ash' is 0.*and 5 is the code of none"):
        loglik(run, {"county": [5], "floor": [0.0], "y": [1.0]})


def test_numbers_in_place_of_words_are_said(caplog):
    with caplog.at_level(logging.INFO, "ppgen"):
        recoded(as_tensors({"g": [0, 1]}), {"g": ColumnType("g", "binary", ("a", "b"))})
    assert "'g' was words at the fit, and is passed as numbers: 0 is 'a'" in caplog.text


# -- images ------------------------------------------------------------------------------------------

IMAGES = torch.randint(0, 17, (40, 8, 8), generator=torch.Generator().manual_seed(0)) / 8 - 1  # in [-1, 1]
FAMILIES = {
    "vae": (VAE, {"hidden": (4,)}),
    "diffusion": (Diffusion, {"net": "mlp", "hidden": (4,), "steps": 20}),
    "flow_matching": (FlowMatching, {"net": "mlp", "hidden": (4,), "steps": 20}),
    "image_flow": (ImageFlow, {"steps": 1, "hidden": 4}),
    "flow": (Flow, {"transforms": 1, "hidden": (4,)}),
    "ppca": (PPCA, {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_arrays_of_images_are_what_their_rows_are_in_every_family(name):
    make, settings = FAMILIES[name]
    bounds = []
    for shape in ((8, 8), (1, 8, 8)):
        x = IMAGES.reshape(40, *shape)
        torch.manual_seed(0)
        program = make(**{**make.from_data({"x": x}), **settings})
        run = fit(program, {"x": x}, steps=2, engine="eager", seed=1)
        bounds.append(run.rows[-1]["elbo"])
        assert sample(run, 2)["x"].numel() == 128
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


def test_a_model_of_rows_takes_images_of_as_many_values():
    flow = Flow(64, transforms=1, hidden=(4,), loc=[0.0] * 64, scale=[1.0] * 64)
    run = fit(flow, {"x": IMAGES.flatten(1) + 0.01 * torch.randn(40, 64)}, steps=1, engine="eager")
    one, other = (loglik(run, {"x": x}, particles=2).bounds[0].values.sum() for x in (IMAGES, IMAGES.flatten(1)))
    assert one == other
    with pytest.raises(PpgenError):
        loglik(run, {"x": IMAGES[:, :7]}, particles=2)


# -- labels and indices ------------------------------------------------------------------------------

X, Y = torch.rand(12, 4), torch.arange(12) % 3
LABELLED = {
    "vae": lambda: VAE(4, latent=2, hidden=(4,), likelihood="normal", classes=3),
    "diffusion": lambda: Diffusion(4, hidden=(8,), classes=3, label_dropout=0.0, steps=20),
}
WRONG = {
    "-1": (Y - 1, "has -1 in row 0"),
    "the hidden slot": (Y + 1, "has 3 in row 2"),
    "fractional": (Y + 0.5, "has 0.5 in row 0"),
    "nan": (torch.where(Y == 1, torch.nan, Y.float()), "has nan in row 1"),
    "one-hot": (torch.eye(3)[Y], r"shape \(12, 3\).*one-hot: pass y.argmax"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_out_of_range_are_refused_at_fit_evaluate_and_sample(name):
    run = fit(LABELLED[name](), {"x": X, "y": Y.float()}, steps=1, engine="eager")
    for wrong, sentence in WRONG.values():
        for f in (
            lambda y: fit(LABELLED[name](), {"x": X, "y": y}, steps=1, engine="eager"),
            lambda y: loglik(run, {"x": X, "y": y}, particles=2),
            lambda y: sample(run, 12, given={"y": y}),
        ):
            with pytest.raises(PpgenError, match=f"column 'y' of .*{sentence}"):
                f(wrong)
    assert len(sample(run, 2, given={"y": 2})["x"]) == 2


def test_groups_out_of_range_are_refused():
    def rows(*county: float):
        return {"county": torch.tensor(county), "floor": torch.zeros(len(county)), "y": torch.zeros(len(county))}

    run = fit(Radon(3), rows(0.0, 1.0, 2.0), steps=1, engine="eager")
    for f in (lambda d: fit(Radon(3), d, steps=1), lambda d: predict(run, d, draws=2), lambda d: loglik(run, d)):
        with pytest.raises(PpgenError, match="'county' of Radon has -1 in row 1.*from 0 to 2"):
            f(rows(0, -1))
    with pytest.raises(PpgenError, match="--new-groups draw"):
        predict(run, rows(0, 3), draws=2)
    assert predict(run, rows(0, 3), draws=2, new_groups="draw").predictions.y.shape == (1, 2, 2)


class Groups(ppgen.Program):
    """Intercepts of three groups."""

    def model(self, g, shift, y=None):
        with pyro.plate("groups", 3):
            a = pyro.sample("a", Normal(0.0, 1.0))
        with ppgen.rows(g):
            return pyro.sample("y", Normal(a[..., g] + shift, 1.0), obs=y)


def test_numbers_that_are_names_of_groups_are_said(caplog):
    few = torch.tensor([20200102, 20200103])
    assert Radon.from_data({"county": few})["counties"] == 20200104
    assert "county goes up to 20200103 in 2 rows" in caplog.text and "number those that there are from 0" in caplog.text


def test_a_negative_index_of_a_program_of_ones_own_is_said(caplog):
    rows = {"g": torch.tensor([0, 1, -1]), "shift": torch.tensor([-5, 0, 1]), "y": torch.zeros(3)}
    sound = rows | {"g": torch.tensor([0, 1, 2])}
    run = fit(Groups(), sound, steps=1, engine="eager")
    assert "index" not in caplog.text
    for f in (
        lambda: fit(Groups(), rows, steps=1, engine="eager"),
        lambda: loglik(run, rows, particles=2),
        lambda: predict(run, rows, draws=2),
        lambda: mcmc(Groups(), rows, chains=4, draws=4, warmup=20),
        lambda: sample(run, 2, given={k: v for k, v in rows.items() if k != "y"}),
    ):
        caplog.clear()
        f()
        said = [r.getMessage() for r in caplog.records if "an index in Groups" in r.getMessage()]
        assert len(said) == 1 and "'g'" in said[0] and "-1 in row 2" in said[0], caplog.text


def test_words_in_alphabetical_order_where_order_matters_are_said(caplog):
    class Ordinal(ppgen.Program):
        def model(self, x, rating=None):
            b = pyro.sample("b", Normal(0.0, 1.0))
            with ppgen.rows(x):
                return pyro.sample("rating", OrderedLogistic(b * x, torch.tensor([-1.0, 1.0])), obs=rating)

    words = ["bad", "good", "awful", "bad"]
    fit(Ordinal(), {"x": torch.randn(4), "rating": words}, steps=1, engine="eager")
    assert "alphabetical order ('awful' is 0, 'bad' is 1, 'good' is 2)" in caplog.text
    caplog.clear()
    in_order = pd.DataFrame({"x": np.zeros(4), "rating": pd.Categorical(words, ["bad", "awful", "good"])})
    fit(Ordinal(), in_order, steps=1, engine="eager")
    assert "alphabetical" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float64])
def test_zeros_and_ones_of_a_file_are_observed_by_a_bernoulli(dtype):
    class Coin(ppgen.Program):
        def model(self, y=None):
            p = pyro.sample("p", Beta(1.0, 1.0))
            with ppgen.rows(y):
                return pyro.sample("y", Bernoulli(p), obs=y)

    y = torch.tensor([0, 1, 1, 0, 1])
    one = loglik(fit(Coin(), {"y": y.to(dtype)}, steps=2, engine="eager"), {"y": y.to(dtype)}, particles=20).best
    two = loglik(fit(Coin(), {"y": y.float()}, steps=2, engine="eager"), {"y": y.float()}, particles=20).best
    assert np.array_equal(one.values, two.values)


# -- what cannot be right ----------------------------------------------------------------------------


def test_one_huge_row_is_named_and_no_column_is_called_another(caplog):
    x = torch.randn(500, 2)
    x[7] = 1e7
    Flow(2).prepare({"x": x})
    data.validate({"x": x})
    assert "feature 0 of column 'x' is 1e+07 in row 7" in caplog.text
    caplog.clear()
    data.validate({"x": torch.randn(500, 2), "y": torch.randn(500).exp()})
    assert not caplog.records
    with pytest.raises(PpgenError, match="are the same up to shift and scale"):
        Flow(2).prepare({"x": x[:, :1].repeat(1, 2)})


def test_one_row_is_no_density(caplog):
    with pytest.raises(PpgenError, match="one row, which tells no density"):
        Flow.from_data({"x": torch.randn(1, 2)})
    fit(Flow(2, transforms=1, hidden=(4,)), {"x": torch.randn(1, 2)}, steps=1, engine="eager")
    assert "one row, which tells no density" in caplog.text


def test_complex_numbers_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 2)) * 1j)
    with pytest.raises(PpgenError, match="'x' holds complex numbers.*real and imaginary parts"):
        data.load(tmp_path / "x.npy")
    with pytest.raises(PpgenError, match="complex numbers"):
        fit(Flow(2), {"x": torch.ones(5, 2, dtype=torch.cfloat)}, steps=1)


# -- what is printed ---------------------------------------------------------------------------------

PROGRAM = """
import pyro, torch, ppgen
from pyro.distributions import Normal


class Loud(ppgen.Program):
    def model(self, y=None):
        z = pyro.sample("z\\x1b[31m\\u202e", Normal(0.0, 1.0))
        with ppgen.rows(y):
            return pyro.sample("y", Normal(z, 1.0), obs=y)


class Broken(ppgen.Program):
    def model(self, y=None):
        return torch.zeros(3) @ torch.zeros(4)


def whose():
    import sys
    return sys._getframe()
"""


def test_escapes_in_names_reach_no_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud.py").write_text(PROGRAM)
    (tmp_path / "y.csv").write_text("y\n1.5\n2\n.3\n")
    (tmp_path / "bad.csv").write_text("q\x1b]0;title\x07,y\n1,2\n2,3\n")
    commands = [
        "check loud.py:Loud -d y.csv",
        "fit loud.py:Loud -d y.csv --steps 20 -q --out run",
        "sample run -n 2 --out s.npz",
        "check ppca -d bad.csv",
        "check pp\x1b[2Jca",
        "fit ppca -d y\x1b[2J.csv",
    ]
    for command in commands:
        done = CliRunner().invoke(cli.app, command.split(" "))
        assert done.exit_code == (2 if "pp" in command else 0), done.output
        assert not set("\x1b\x07\u202e") & set(done.output), repr(done.output)
        assert "\\x1b" in done.output or command.startswith("fit loud"), done.output


def test_a_users_line_is_named_wherever_the_file_lies(tmp_path, monkeypatch):
    folder = tmp_path / "ppgen" / "inference" / "torch"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(PROGRAM)
    (folder / "y.csv").write_text("y\n1.5\n2\n.3\n")
    done = CliRunner().invoke(cli.app, ["check", f"{folder / 'mine.py'}:Broken", "-d", str(folder / "y.csv")])
    assert done.exit_code == 2 and "at mine.py:15" in done.stderr, done.output
    monkeypatch.syspath_prepend(str(folder))
    import mine

    assert owner(mine.whose()) == "own" and owner(sys._getframe()) == "own"
    assert [owner(f) for f in _frames_of_a_fit()].count("own") >= 1


def _frames_of_a_fit():
    """The frames that are running within a model's run."""
    seen: list = []

    class Looks(ppgen.Program):
        def model(self, y=None):
            frame = sys._getframe()
            while frame is not None and not seen:
                kinds = owner(frame)
                assert kinds == "own" or frame.f_globals["__name__"].partition(".")[0] != __name__
                frame = frame.f_back
            seen.append(sys._getframe())
            with ppgen.rows(y):
                return pyro.sample("y", Normal(pyro.sample("z", Normal(0.0, 1.0)), 1.0), obs=y)

    Looks().setup({"y": torch.zeros(2)}, "AutoNormal")
    return seen
