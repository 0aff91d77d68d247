"""docs/gallery: every example says what it is, uses public names, and makes one picture; its page and its notebook.

The examples themselves are run by `make docs`, and here where time is measured (slow).
"""

import ast
import json
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SOURCES = sorted((DOCS / "gallery").glob("*.py"))
PUBLIC = {"ppgen", "ppgen.inference", "ppgen.models", "ppgen.pyro_compat"}

pytest.importorskip("sphinx")
sys.path.insert(0, str(DOCS))
from gallery_pages import FAMILIES, TASKS, cells, notebook, outputs, page, tags  # noqa: E402

from ppgen.inference.report.figures import BLUE, GREY, LABELS, ORANGE  # noqa: E402

TEXT = "# %% [markdown]\n# # A title\n#\n# tags: flow, density\n#\n# Words.\n\n# %%\nprint(1)\n"
TEXT += '\n# %% alt="A line"\nx = 2\n'


def imported(tree: ast.Module) -> set[str]:
    """The modules of ppgen that a script imports from."""
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return {name for name in names if name.split(".")[0] == "ppgen"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_an_example_has_title_tags_words_and_one_picture(path):
    source = path.read_text()
    first, *rest = cells(source)
    assert first.words and first.text.startswith("# ") and len(tags(source)) >= 2
    assert len([c for c in rest if c.alt]) == 1
    tree = ast.parse(source)
    assert imported(tree) <= PUBLIC
    colours = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and str(n.value).startswith("#")}
    assert colours <= {BLUE, ORANGE, GREY, *LABELS}


def test_every_task_and_family_has_an_example_and_a_place_in_the_index():
    assert {tag for path in SOURCES for tag in tags(path.read_text())} == {*FAMILIES, *TASKS}
    lines = (DOCS / "gallery" / "index.md").read_text().splitlines()
    assert [line.split("} ")[1] for line in lines if line.startswith("```{gallery}")] == [*TASKS, *FAMILIES]


def test_a_page_runs_its_cells_and_offers_both_downloads():
    made = page(TEXT, "line")
    assert made.startswith("# A title\n\n[flow](index.md#flow) · [density](index.md#density)")
    assert "<line.py>" in made and "line.ipynb" in made and "Words." in made
    assert "```{run} python\n\nprint(1)\n```" in made and "```{run} python\n:alt: A line\n\nx = 2\n```" in made


def test_a_notebook_has_the_cells_with_what_they_gave(tmp_path):
    from docutils import nodes

    (tmp_path / "a.png").write_bytes(b"png")
    printed = nodes.literal_block("1", "1", classes=["run-output"])
    tree = nodes.container("", nodes.container("", printed, classes=["run"]), nodes.container(classes=["run"]))
    tree += nodes.image(uri="a.png")
    made = json.loads(notebook(TEXT, outputs(tree, tmp_path)))
    words, first, second = made["cells"]
    assert words["cell_type"] == "markdown" and words["source"].startswith("# A title")
    assert first["source"] == "print(1)" and first["outputs"][0]["text"] == "1\n"
    assert second["outputs"][0]["data"] == {"image/png": "cG5n"}


def test_the_index_has_the_picture_and_the_title_of_each_page(tmp_path):
    (folder := tmp_path / "gallery").mkdir()
    (folder / "line.py").write_text(TEXT)
    heads = "\n\n".join(f"## {tag}\n\n```{{gallery}} {tag}\n```" for tag in ("flow", "density"))
    (folder / "index.md").write_text(f"# Gallery\n\n```{{toctree}}\nline\n```\n\n{heads}\n")
    (tmp_path / "index.md").write_text("# Site\n\n```{toctree}\ngallery/index\n```\n")
    (tmp_path / "conf.py").write_text(
        f"import sys\nfrom pathlib import Path\n\nsys.path.insert(0, {str(DOCS)!r})\n"
        f"import gallery_pages\n\ngallery_pages.FOLDER = Path({str(folder)!r})\nmyst_heading_anchors = 3\n"
        "extensions = ['myst_parser', 'run_directive', 'gallery_pages']\nhtml_theme = 'basic'\n"
        "source_suffix = {'.md': 'markdown', '.py': 'markdown'}\nexclude_patterns = ['conf.py', 'out']\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "-D", "run_examples=0", str(tmp_path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index, line = ((out / "gallery" / f"{name}.html").read_text() for name in ("index", "line"))
    cards = re.findall(
        r'<a class="reference internal( image-reference)?" href="line.html"><img.*?A title', index, re.DOTALL
    )
    assert len(cards) == 2 and 'href="index.html#flow"' in line and "'../_downloads/line.ipynb'" in line
    assert len(json.loads((out / "_downloads" / "line.ipynb").read_text())["cells"]) == 3
    assert list((out / "_downloads").glob("*/line.py"))


@pytest.mark.parametrize("line", ["", "# tags: flow\n", "# tags: density, flow\n", "# tags: flow, cooking\n"])
def test_tags_that_are_not_known_are_refused(line):
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match="tags"):
        tags(f"# %% [markdown]\n# # A title\n#\n{line}")


@pytest.mark.slow
def test_the_examples_take_few_seconds(monkeypatch, record_property):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    import ppgen.inference
    import ppgen.models  # noqa: F401

    seconds = {}
    for path in SOURCES:
        monkeypatch.setitem(sys.modules, "example", module := types.ModuleType("example"))
        began = time.process_time()
        exec(compile(path.read_text(), path.name, "exec"), module.__dict__)
        seconds[path.stem] = time.process_time() - began
        assert len(plt.get_fignums()) == 1, path.name
        plt.close("all")
        print(f"{path.stem:24} {seconds[path.stem]:5.1f} s")
    assert max(seconds.values()) < 15 and sum(seconds.values()) < 150
