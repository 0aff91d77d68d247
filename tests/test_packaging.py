"""The house rules: what is installed is what is here, both catalogues stay flat, imports go one way."""

import ast
import configparser
import importlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

import ppgen

ROOT = Path(__file__).resolve().parent.parent
CATALOGUES = ("models", "inference")
CORE = sorted(p for p in (ROOT / "ppgen").rglob("*.py") if not set(CATALOGUES) & set(p.parts[-2:-1]))
MODELS, INFERENCE = (sorted((ROOT / name).rglob("*.py")) for name in CATALOGUES)
CLI = [p for p in CORE if p.parent.name == "cli"]
MEMBERS = [p for p in MODELS + INFERENCE if not p.name.startswith("_")]
HEAVY = {"torch", "pyro", "numpy", "sklearn", "pandas", "xarray", "matplotlib", "arviz_base"}


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def package_folders() -> dict[str, Path]:
    """Every package that the folders hold, by its installed name."""
    found = {}
    for init in (ROOT / "ppgen").rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts[1:2] not in {(name,) for name in CATALOGUES}:
            found[".".join(parts)] = init.parent
    for name in CATALOGUES:
        inits = (ROOT / name).rglob("__init__.py")
        found |= {".".join(["ppgen", *init.parent.relative_to(ROOT).parts]): init.parent for init in inits}
    return found


def module_name(path: Path) -> str:
    return ".".join(["ppgen", *path.relative_to(ROOT).with_suffix("").parts])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- what is installed


def test_packages_are_the_folders():
    listed = config()["options"]["packages"].split()
    assert sorted(listed) == sorted(package_folders())


def test_package_dir_maps_the_two_catalogues():
    lines = config()["options"]["package_dir"].strip().splitlines()
    mapping = dict(re.split(r"\s*=\s*", line) for line in lines)
    assert mapping == {"ppgen": "ppgen"} | {f"ppgen.{name}": name for name in CATALOGUES}


def folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir() and p.name != "__pycache__"]


def test_models_are_flat_and_algorithms_in_rooms():
    assert folders(ROOT / "models") == []
    for room in folders(ROOT / "inference"):
        assert folders(room) == ([room / "kernels"] if room.name == "sampling" else [])
        assert (room / "__init__.py").read_text().startswith('"""')
        if room.name != "objectives":  # the folder is the list of them
            assert len(list(room.glob("*.py"))) <= 13, f"{room.name} has more than a dozen doors"


@pytest.mark.parametrize("name", CATALOGUES)
def test_link_and_folder_are_one_module(name):
    link = ROOT / "ppgen" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"
    importlib.import_module(f"ppgen.{name}")
    twins = [m for m in sys.modules if m == name or m.startswith(f"{name}.")]
    assert twins == [], "imported a second time under a top-level name"


def test_coverage_and_version():
    assert config()["coverage:run"]["source"].split() == ["ppgen", *CATALOGUES]
    assert re.fullmatch(r"\d+\.\d+\.\d+", ppgen.__version__)


def test_tested_versions_lie_in_the_ranges():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {p.name.lower(): p for p in pins if p.marker is None or p.marker.evaluate()}
    extras = dict(config()["options.extras_require"])
    wanted = config()["options"]["install_requires"]
    wanted += "".join(extras[name] for name in ("test", "docs", "lint"))
    for line in wanted.strip().splitlines():
        if not line or line.startswith("#"):
            continue
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate():
            (pin,) = here[need.name.lower()].specifier
            assert need.specifier.contains(pin.version), f"{need} excludes the tested {pin}"


def test_version_and_requirements_stand_the_same_in_every_place():
    """setup.cfg decides; citation, pages and the conda recipe follow (by the names that conda has)."""
    from packaging.requirements import Requirement

    assert f"version: {ppgen.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for page in ("README.md", "README.ja.md", "docs/start.md"):  # from the folder where `make dist` was called
        wheel = f"pip install 'dist/ppgen_pyro-{ppgen.__version__}-py3-none-any.whl[formula]'"
        assert wheel in (ROOT / page).read_text(), page
    recipe = (ROOT / ".github/conda/meta.yaml").read_text()
    assert f'version: "{ppgen.__version__}"' in recipe
    lines = config()["options"]["install_requires"].strip().splitlines()
    needs = [Requirement(line) for line in lines if not line.startswith("#")]
    needs = [n for n in needs if n.marker is None or n.marker.evaluate({"python_version": "3.12"})]
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    for need in needs:
        line = re.search(rf"- {conda.get(need.name, need.name)} (\S+)", recipe)
        assert line, f"the conda recipe lacks {need.name}"
        assert set(line[1].split(",")) == {str(s) for s in need.specifier}, need


def test_wheel_holds_the_packages_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"ppgen"}
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in package_folders().items()
        for path in folder.glob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == expected
    assert {"ppgen/py.typed", "ppgen/templates/program.py.jinja"} <= set(names)


def test_wheel_imports_without_the_checkout(built):
    (wheel,) = built.glob("*.whl")
    code = (
        "import ppgen, ppgen.models, ppgen.inference, importlib.util as u;"
        "print(ppgen.__file__, u.find_spec('models'), u.find_spec('inference'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=built,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(wheel)) and run.stdout.split()[1:] == ["None", "None"]


def test_sdist_holds_the_sources(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {relative(path) for path in CORE + MODELS + INFERENCE}
    assert sources | {"setup.cfg", "pyproject.toml", "LICENSE", "README.md"} <= names


# ---------------------------------------------------------------- every file has its row


def exported(path: Path) -> bool:
    tree = ast.parse((ROOT / path.relative_to(ROOT).parts[0] / "__init__.py").read_text())
    return re.search(rf"\b{path.stem}\b", ast.unparse(tree)) is not None


def importers(path: Path, files: list[Path]) -> list[str]:
    """Those of the files, by name, that import the catalogue's member."""
    return [f.name for f in files if f != path and reaches(f, module_name(path))]


@pytest.mark.parametrize("path", MEMBERS, ids=relative)
def test_member_is_exported_and_tested(path):
    """A member has a line of re-export and tests/test_<name>.py; a helper shared by members of its
    folder has a member and a test that import it."""
    if path.parent.name in ("objectives", "gradients", "kernels"):  # found by name, and in a table of laws
        return
    helper = importers(path, [p for p in MODELS + INFERENCE if p.name != "__init__.py"])
    assert exported(path) or helper, f"name {path.stem} in {path.parent.name}/__init__.py"
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    own = ROOT / "tests" / f"test_{path.stem}.py"
    assert own in tests or (helper and importers(path, tests)), f"write {relative(own)}: its oracle"


@pytest.mark.parametrize("name", CATALOGUES)
def test_exports_exist(name):
    package = importlib.import_module(f"ppgen.{name}")
    assert [export for export in package.__all__ if not hasattr(package, export)] == []


# ---------------------------------------------------------------- imports go one way


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports; a TYPE_CHECKING block imports nothing."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} has a relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = node.orelse
            for child in children:
                walk(child)
            return
        elif top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return found


@cache
def imported(path: Path) -> frozenset[str]:
    return frozenset(imports(path))


def reaches(path: Path, package: str) -> list[str]:
    return sorted(n for n in imported(path) if n == package or n.startswith(package + "."))


@pytest.mark.parametrize("path", CORE + MODELS + INFERENCE, ids=relative)
def test_imports_go_one_way(path):
    forbidden = {"models", "inference", "ppgen.cli"}  # the top-level names are banned everywhere
    if path.name == "__main__.py" or path in CLI:
        forbidden.remove("ppgen.cli")
    if path in MODELS:
        forbidden |= {"ppgen.inference"}
    elif path in INFERENCE:
        forbidden |= {"ppgen.models"}
    elif path not in CLI:
        forbidden |= {"ppgen.models", "ppgen.inference"}
        if path.name == "catalog.py":  # finds models by name, so it looks when it is asked
            forbidden -= {"ppgen.models"}
            assert not any(n.startswith("ppgen.models") for n in imports(path, top_level_only=True))
    assert [name for package in forbidden for name in reaches(path, package)] == []


LAZY = [ROOT / "ppgen" / "__init__.py", ROOT / "ppgen" / "errors.py", *CLI]


@pytest.mark.parametrize("path", LAZY, ids=relative)
def test_no_heavy_import_at_the_top(path):
    assert HEAVY & {name.split(".")[0] for name in imports(path, top_level_only=True)} == set()


@pytest.mark.parametrize("module", ["ppgen", "ppgen.cli"])
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        ppgen.nonsense  # noqa: B018
    assert set(ppgen.__all__) <= set(dir(ppgen))
