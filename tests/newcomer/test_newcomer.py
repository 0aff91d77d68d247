"""Someone new: the wheel, an empty environment and an empty folder, and every block of README and of the start page.

The environment is fresh and has ppgen from the wheel alone; what ppgen depends on is read from the environment that
runs the tests, so that nothing is downloaded. No block may fail or warn, and nothing may be left that is not named.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?:\{run\} )?(sh|python)\n((?::[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT = {
    "README.md": {"runs", "x.png", "y.png", "my_model.py", "answer.nc", "schools.nc"},
    "docs/start.md": {"runs", "samples.png"},
}
SECONDS = 900
pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """An environment, the home of its user, and an empty folder to work in."""

    bin: Path
    home: Path
    folder: Path

    def run(self, words: list[str]) -> subprocess.CompletedProcess:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PPGEN", "XDG", "PYTEST", "MPL"))}
        env = kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (wheel,) = built.glob("*.whl")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # an editable ppgen there is not seen
    return folder


@pytest.fixture
def place(environment, tmp_path) -> Place:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    return Place(environment / "bin", tmp_path / "home", tmp_path / "work")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and code of a page's blocks in order; the Python blocks are one script, as a reader's session is one.

    What begins with make is for a clone, and tried there by the tests' own target.
    """
    found = [(language, code) for language, _, code in FENCE.findall((ROOT / page).read_text())]
    found = [(language, code) for language, code in found if not code.startswith("make ")]
    scripts = [code for language, code in found if language == "python"]
    return [b for b in found if b[0] == "sh"] + [("python", "\n".join(scripts))]


def test_the_command_is_the_wheel_s(place):
    found = place.run(["python", "-c", "import ppgen; print(ppgen.__file__)"])
    assert found.stdout.startswith(str(place.bin.parent)), found
    assert place.run(["ppgen", "--version"]).returncode == 0


@pytest.mark.parametrize("page", LEFT)
def test_every_block_of_the_page_runs_without_a_warning(page, place):
    for language, code in blocks(page):
        begin = time.monotonic()
        found = place.run(["bash", "-euo", "pipefail", "-c", code] if language == "sh" else ["python", "-c", code])
        print(f"{page}, {language}: {time.monotonic() - begin:.0f} s, {code.splitlines()[0]}")
        assert found.returncode == 0, f"{code}\n{found.stdout}\n{found.stderr}"
        assert not re.search(r"warning|traceback", found.stderr, re.IGNORECASE), f"{code}\n{found.stderr}"
    assert {p.name for p in place.folder.iterdir()} == LEFT[page]
    strays = {p.relative_to(place.home).as_posix() for p in place.home.rglob("*") if p.is_file()}
    assert {s for s in strays if not s.startswith((".cache/", ".config/matplotlib"))} == set()
    print(f"{page}, left in the user's home: {sorted({'/'.join(s.split('/')[:2]) for s in strays})}")
