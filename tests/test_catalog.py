"""Finding programs: by name, in a user's file; and one sentence where there is none."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from known import normal

import ppgen
from ppgen import PpgenError, Program, catalog
from ppgen.inference import fit
from ppgen.run import Run

HEAD = """
import pyro
import pyro.distributions as dist
import torch
import ppgen
"""
MINE = (
    HEAD
    + '''
class Mine(ppgen.Program):
    """A normal."""
    def __init__(self, scale=1.0, depth: int = 2):
        super().__init__()
        self.scale, self.depth = scale, depth
        self.mu = torch.nn.Parameter(torch.zeros(()))

    @classmethod
    def from_data(cls, data):
        return {"scale": float(data["x"].std())}

    def model(self, x=None):
        with ppgen.rows(x):
            pyro.sample("x", dist.Normal(self.mu, self.scale), obs=x)
'''
)
PAIR = (
    HEAD
    + """
def model(x=None):
    mu = pyro.param("mu", torch.tensor(0.0))
    with ppgen.rows(x):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
"""
)
GUIDE = """
def guide(x):
    a = pyro.param("a", torch.tensor(0.5))
    with ppgen.rows(x):
        pyro.sample("z", dist.Normal(a * x, 0.7))
"""


@pytest.fixture
def write(tmp_path):
    def to(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return to


# -- the catalogue ---------------------------------------------------------------------------------


def test_the_catalogue_is_the_folder():
    names = catalog.names()
    assert {"vae", "ppca", "eight_schools"} <= set(names)
    assert all(line.strip() for line in names.values()), "a model's file begins with what it is"


@pytest.mark.parametrize("name", list(catalog.names()))
def test_every_name_is_a_program(name):
    found = catalog.find(name)
    assert issubclass(found.target, Program) and found.spec == {"model": name} and found.file is None


def test_settings_over_what_the_data_say():
    data = {"x": (normal(10, 6) > 0).float()}
    program = catalog.build(catalog.find("vae"), {"latent": 3, "hidden": (4,)}, data)
    assert program.arguments == {"features": 6, "likelihood": "bernoulli", "latent": 3, "hidden": (4,)}


# -- a user's file ---------------------------------------------------------------------------------


def test_a_file_with_one_class(write):
    path = write(MINE)
    for spec in (str(path), f"{path}:Mine"):
        found = catalog.find(spec)
        assert found.target.__name__ == "Mine" and found.file == path
        assert found.spec == {"file": "program.py", "name": "Mine"}
    program = catalog.build(found, {"depth": 3}, {"x": torch.tensor([1.0, 3.0])})
    assert (program.depth, program.scale) == (3, pytest.approx(2**0.5))


def test_a_file_with_an_instance(write):
    path = write(MINE + "\nsmall = Mine(scale=0.5)\n")
    program = catalog.build(catalog.find(f"{path}:small"), {})
    assert program.scale == 0.5 and program.arguments == {"scale": 0.5}
    with pytest.raises(PpgenError, match="an instance, which takes no arguments, and depth was set"):
        catalog.build(catalog.find(f"{path}:small"), {"depth": 3})


def test_an_instance_called_model(write):
    program = catalog.build(catalog.find(str(write(MINE + "\nmodel = Mine(scale=0.5)\n"))), {})
    assert type(program).__name__ == "Mine" and program.scale == 0.5


@pytest.mark.parametrize("text, guided", [(PAIR, False), (PAIR + GUIDE, True)])
def test_a_pair_of_functions(write, text, guided):
    program = catalog.build(catalog.find(str(write(text))), {})
    assert program.columns == ("x",) and program.has_guide == guided
    assert len(fit(program, {"x": normal(20)}, steps=3, log_every=1).rows) == 3
    with pytest.raises(PpgenError, match="a pair of functions, which takes no arguments"):
        catalog.build(catalog.find(str(write(text))), {"scale": 1.0})


def test_a_file_names_its_data(write):
    assert catalog.find(str(write("data = 'moons'\n" + MINE))).data == "moons"
    assert catalog.find(str(write(MINE))).data is None


def test_classes_that_were_imported_or_private_are_not_the_files(write):
    path = write("from ppgen.models import VAE\n" + MINE + "\nclass _Base(ppgen.Program):\n    pass\n")
    assert catalog.find(str(path)).target.__name__ == "Mine"


def test_a_file_imports_its_neighbours(write):
    write("WIDTH = 7\n", "neighbour_of_mine.py")
    path = write("from neighbour_of_mine import WIDTH\n" + MINE + "\nwide = Mine(scale=float(WIDTH))\n")
    before = list(sys.path)
    assert catalog.build(catalog.find(f"{path}:wide"), {}).scale == 7.0
    assert sys.path == before


@pytest.mark.parametrize("folder", ["my.python", "v1.py3", "mine.py"])
def test_a_folder_with_py_in_its_name(write, folder):
    path = write(MINE, f"{folder}/mine.py")
    assert catalog.find(f"{path}:Mine").target.__name__ == "Mine"
    assert catalog.find(str(path)).target.__name__ == "Mine"


def test_a_relative_path(write, monkeypatch):
    path = write(MINE)
    monkeypatch.chdir(path.parent)
    assert catalog.find("mine.py:Mine").target.__name__ == "Mine"
    monkeypatch.chdir(path.parent.parent)
    assert catalog.find(f"{path.parent.name}/mine.py").target.__name__ == "Mine"


def test_two_files_of_one_name_are_two_modules(write):
    a = catalog.find(str(write(MINE, "one/mine.py"))).target
    b = catalog.find(str(write(MINE.replace("depth: int = 2", "depth: int = 5"), "two/mine.py"))).target
    assert a().depth == 2 and b().depth == 5


# -- not found -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, said",
    [
        ("vea", "there is no model 'vea'.*did you mean 'vae'"),
        ("zebra", "there is no model 'zebra'.* the catalogue has .*vae"),
        ("", "there is no model ''"),
        ("nothing.py", "there is no file nothing.py"),
        ("nothing.py:Mine", "there is no file nothing.py"),
    ],
)
def test_a_wrong_name(spec, said):
    with pytest.raises(PpgenError, match=said):
        catalog.find(spec)


@pytest.mark.parametrize(
    "text, name, said",
    [
        (MINE, ":Mime", "has no 'Mime'.*did you mean 'Mine'"),
        (
            MINE + "\nclass Other(Mine):\n    pass\n",
            "",
            "several programs .Mine, Other.; name one.*mine.py:Mine",
        ),
        ("x = 1\n", "", "neither a Program class nor a function model"),
        ("", "", "neither a Program class"),
        (MINE, ":torch", "expected a Program class or instance"),
        (MINE, ":HEAD", "has no 'HEAD'"),
    ],
)
def test_a_file_without_the_program(write, text, name, said):
    with pytest.raises(PpgenError, match=said):
        catalog.build(catalog.find(f"{write(text)}{name}"), {})


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("x = 1\ny = (\n", 2, "SyntaxError"),
        ("x = 1\n\nimport no_such_package\n", 3, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        ("x = '\x00'\n", None, "null bytes"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_file_that_fails_to_run(write, monkeypatch, text, line, said, relative):
    path = write(text)
    monkeypatch.chdir(path.parent)
    with pytest.raises(PpgenError, match=said) as caught:
        catalog.find(f"../{path.parent.name}/mine.py" if relative else str(path))
    if line is not None:
        assert f"mine.py line {line} fails when it is run" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"dept": 3}, "Mine has no argument 'dept'.*did you mean 'depth'.*it has scale, depth"),
        ({"self": 3}, "Mine has no argument 'self'"),
    ],
)
def test_a_wrong_setting(write, settings, said):
    with pytest.raises(PpgenError, match=said):
        catalog.build(catalog.find(str(write(MINE))), settings)


def test_a_constructor_that_fails(write):
    text = MINE.replace("super().__init__()", "super().__init__()\n        assert depth > 0, 'no depth'")
    with pytest.raises(PpgenError, match=r"Mine\(depth=0\) failed: AssertionError: no depth; give it"):
        catalog.build(catalog.find(str(write(text))), {"depth": 0})


@pytest.mark.parametrize(
    "items, settings",
    [
        (["a=1", "b=2.5", "c=x", "d=(1, 2)"], {"a": 1, "b": 2.5, "c": "x", "d": (1, 2)}),
        (["a=true", "b=False", "c=None", "d=none"], {"a": True, "b": False, "c": None, "d": None}),
        (["a=b=c"], {"a": "b=c"}),
        (["a="], {"a": ""}),
        ([], {}),
    ],
)
def test_settings_from_the_shell(items, settings):
    assert catalog.parse_settings(items) == settings


@pytest.mark.parametrize("item", ["latent", "=3", ""])
def test_what_is_no_setting(item):
    with pytest.raises(PpgenError, match="is no setting; expected key=value"):
        catalog.parse_settings([item])


def test_the_package_has_the_names():
    assert ppgen.Program is Program


def test_functions_of_any_name(write, tmp_path):
    file = write(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def weighing(x):\n"
        "    m = pyro.sample('m', dist.Normal(0.0, 1.0))\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('x', dist.Normal(m, 1.0), obs=x)\n"
        "def guess(x):\n"
        "    pyro.sample('m', dist.Normal(pyro.param('loc', torch.tensor(0.0)), 0.5))\n"
    )
    data = {"x": torch.tensor([1.0, 2.0])}
    for name, guide, parameters in (("weighing", "AutoNormal", 2), ("weighing,guess", None, 1)):
        program = catalog.build(catalog.find(f"{file}:{name}"), {})
        fit(program, data, steps=2, guide=guide, out=tmp_path / name)
        again = Run.load(tmp_path / name, trust=True)
        assert again.config["program"]["name"] == name
        assert len(list(again.program.parameters())) == parameters


def test_words_where_a_class_reads_off_numbers():
    with pytest.raises(PpgenError, match="whose column 'x' is a list of str values"):
        catalog.build(catalog.model("ppca"), {}, {"x": ["0"], "y": [None, "0"]})
