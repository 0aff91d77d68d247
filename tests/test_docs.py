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

    def run(page: str, *options: str) -> tuple[int, str, str]:
        (tmp_path / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(DOCS)!r})\n"
            "extensions = ['myst_parser', 'run_directive']\nexclude_patterns = ['_build']\n"
        )
        (tmp_path / "index.md").write_text("# Page\n\n" + page)
        out = tmp_path / "_build" / "text"
        command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "-b", "text", *options, str(tmp_path), str(out)]
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


def test_what_was_run_is_not_run_again(build, tmp_path):
    log = tmp_path / "log"
    picture = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    page = (
        block("python", f"a = open({str(log)!r}, 'a').write('x')\nimport time\nstamp = time.time_ns()\nstamp")
        + block("file value.py", "value = 7")
        + block("python", picture, ":alt: a line")
    )
    code, said, first = build(page)
    assert code == 0, said
    kept = sorted((tmp_path / "_build" / "outputs" / "index").iterdir())
    assert [p.suffix for p in kept].count(".png") == 1 and len(kept) == 4
    code, said, second = build(page)  # nothing runs: the same time is shown
    assert code == 0 and second == first and log.read_text() == "x"
    code, said, third = build("Other words.\n\n" + page, "-D", "language=ja")
    assert code == 0 and third.replace("画像", "image") == first.replace("Page\n****\n", "Page\n****\n\nOther words.\n")
    assert log.read_text() == "x"
    # a block more: those before it run once more, for what they leave, and show what they showed
    code, said, fourth = build(page + block("python", "import value\n(a, value.value, stamp > 0)"))
    assert code == 0 and fourth.startswith(first.split("import matplotlib")[0]) and "(1, 7, True)" in fourth
    assert log.read_text() == "xx"
    code, said, fifth = build(page.replace("a = open", "b = open"))  # the first block differs: all run
    assert code == 0 and fifth != first and log.read_text() == "xxx"
    assert len(list((tmp_path / "_build" / "outputs" / "index").iterdir())) == 4  # what no block asks for is gone


def test_words_are_read_without_running(build, tmp_path):
    page = block("python", "1 / 0", ":alt: a line") + "Words.\n"
    code, said, text = build(page, "-D", "run_examples=0")
    assert code == 0 and "Words." in text and "1 / 0" in text and "[image: a line]" in text, said


def test_a_kept_output_is_of_this_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import kept_outputs

    (tmp_path / "ppgen").mkdir()
    (tmp_path / "ppgen" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(kept_outputs, "ROOT", tmp_path)
    keys = []
    for change in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "ppgen" / "a.py").write_text(change)
        kept_outputs.source_key.cache_clear()
        keys.append(kept_outputs.next_key("", "python", "a"))
    kept_outputs.source_key.cache_clear()
    assert keys[0] == keys[2] != keys[1]
    assert kept_outputs.next_key(keys[0], "python", "b") != kept_outputs.next_key(keys[1], "python", "b")
