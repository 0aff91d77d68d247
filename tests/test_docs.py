"""The documentation's examples are run in its build, and one that fails fails the build."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"

pytest.importorskip("sphinx")


@pytest.fixture
def build(tmp_path):
    """Builds one page; returns the exit code, what was said, and the text of the page."""

    def run(page: str) -> tuple[int, str, str]:
        (tmp_path / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(DOCS)!r})\n"
            "extensions = ['myst_parser', 'run_directive']\nexclude_patterns = ['_build']\n"
        )
        (tmp_path / "index.md").write_text("# Page\n\n" + page)
        out = tmp_path / "_build" / "text"
        command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "-b", "text", str(tmp_path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        text = out / "index.txt"
        return done.returncode, done.stdout + done.stderr, text.read_text() if text.exists() else ""

    return run


def block(kind: str, code: str, *options: str) -> str:
    return "\n".join([f"```{{run}} {kind}", *options, code, "```", "", ""])


def test_what_a_page_shows_is_what_the_code_prints(build):
    code, said, text = build(
        block("python", "a = 6\nprint('one', a)\na * 7")
        + block("python", "a + 1", ":hide-code:")
        + block("python", "a + 1000;")
        + block("file script.py", "print('from', 'script')")
        + block("sh", "python script.py")
        + block("python", "print('un' + 'seen')", ":hide-output:")
        + block("python", "1 / 0", ":fails: ZeroDivisionError")
        + block("sh", "echo gone; exit 3", ":fails: code 3")
        + block("python", "import script\nscript.__name__")
    )
    assert code == 0, said
    shown = ["one 6", "42", "7", "script.py", "from script", "'script'", "division by zero", "[exit code 3]"]
    assert [s for s in shown if s not in text] == []
    assert "a + 1\n" not in text and "1006" not in text and "unseen" not in text


BROKEN = {
    "raises": (block("python", "x = 1\nx / 0"), "ZeroDivisionError"),
    "exits": (block("sh", "false\ntrue"), "exit code 1"),
    "does not fail": (block("python", "1 + 1", ":fails: Error"), "should have failed"),
    "other error": (block("python", "1 / 0", ":fails: KeyError"), "ZeroDivisionError"),
    "no picture": (block("sh", "true", ":image: x.png"), "made no x.png"),
    "not run": ("```python\n1 / 0\n```\n", "not run"),
    "unknown": (block("ruby", "1"), "cannot be run"),
}


@pytest.mark.parametrize(("page", "why"), BROKEN.values(), ids=BROKEN)
def test_a_failing_example_fails_the_build(build, page, why):
    code, said, _ = build(page)
    assert code != 0 and why in said
