"""docs/mathml.py and docs/site_check.py: formulas without a script, links that end somewhere, nothing fetched.

Also that commands named in the pages are there, and that no heading makes a page wider than a phone.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS))

pytest.importorskip("sphinx")
pytest.importorskip("latex2mathml")

import mathml  # noqa: E402
import site_check  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.stem)
def test_every_formula_is_rendered(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for block, inline in FORMULA.findall(text):
        made = mathml.rendered(block or inline, "block" if block else "inline")
        assert made.startswith("<math") and "\\" not in made


def test_an_unknown_command_is_an_error():
    with pytest.raises(ExtensionError, match="nonsense"):
        mathml.rendered(r"\nonsense{x}", "inline")


def test_links_and_loads(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="sub/two.html#here">a</a><a href="sub/two.html#gone">b</a><a href="three.html">c</a>'
        '<a href="https://example.org/x">d</a><script src="https://example.org/x.js"></script><img src="no.png">'
    )
    (tmp_path / "sub" / "two.html").write_text('<p id="here"></p><a href="../index.html">up</a><a href="#here">a</a>')
    assert site_check.problems(tmp_path) == [
        "index.html loads https://example.org/x.js from another site",
        "index.html links to sub/two.html#gone, where there is no such anchor",
        "index.html links to three.html, which is no file",
        "index.html links to no.png, which is no file",
    ]


def test_another_language_is_left_out(tmp_path):
    (tmp_path / "ja").mkdir()
    (tmp_path / "index.html").write_text('<a href="ja/index.html">a</a><a href="ja/gone.html">b</a>')
    (tmp_path / "ja" / "index.html").write_text('<a href="../index.html">a</a><a href="../gone.html">b</a>')
    assert site_check.problems(tmp_path, without=tmp_path / "ja") == []
    assert site_check.problems(tmp_path) == [
        "index.html links to ja/gone.html, which is no file",
        "ja/index.html links to ../gone.html, which is no file",
    ]


def test_what_is_named_for_screen_readers_is_in_the_theme():
    """docs/_static/reach.js finds parts of the theme's pages by their classes."""
    furo = Path(pytest.importorskip("furo").__file__).parent / "theme" / "furo" / "page.html"
    classes = re.findall(r"\.([a-z]+-[a-z-]+)\b", (DOCS / "_static" / "reach.js").read_text())
    assert {"content-icon-container", "sidebar-drawer", "toc-drawer"} <= set(classes)
    assert all(f'class="{name}' in furo.read_text() for name in classes if name != "table-wrapper")


def test_functions_and_relations_have_their_spaces():
    made = mathml.rendered(r"z \sim \log p, \log(x)", "inline")
    assert "<mo>&#x223C;</mo>" in made and made.count("<mspace") == 1


PAGES = [
    p for p in [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.glob("gallery/*.py")] if "_build" not in p.parts
]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def commands(page: Path, word: str) -> list[tuple[str, list[str]]]:
    """What stands after a word on the page, and the options on the same line, one command each."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    text = re.sub(r"(`[^`\n]+)\n([^`\n]+`)", r"\1 \2", text)  # code within a sentence, over two lines
    found = re.findall(rf"\b{word} ([\w/.-]+)([^`\n]*)", text)
    return [(name, OPTION.findall(re.split(r" #|[|;]|&&", rest)[0])) for name, rest in found]


def test_commands_of_the_pages_are_there_with_their_options():
    """A page's examples run in its build; what stands in a sentence or a table does not."""
    from typer.main import get_command

    from ppgen.cli import app

    own = {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)}
        for name, c in get_command(app).commands.items()
    }
    of_all = {"--help", "--debug", "--verbose", "-v"}
    named = [(page.name, *use) for page in PAGES for use in commands(page, "ppgen") if use[0] in own]
    assert len(named) > 200 and set(own) == {name for _, name, _ in named}
    assert {name for page in PAGES for name in re.findall("`ppgen ([a-z]+)", page.read_text())} <= set(own)
    assert [(page, name, o) for page, name, options in named for o in options if o not in own[name] | of_all] == []


def test_benchmarks_of_the_pages_are_there_with_their_options():
    named = [
        (page.name, *use) for page in PAGES for use in commands(page, "python") if use[0].startswith("benchmarks/")
    ]
    assert len(named) > 30
    source = {name: (DOCS.parent / name).read_text() for _, name, _ in named}
    assert [(page, name, o) for page, name, options in named for o in options if f'"{o}"' not in source[name]] == []


def test_no_column_is_named_by_a_formula_alone():
    """axe-core takes MathML in a table's head for nothing."""
    heads = [
        (page.name, row) for page in PAGES for row in re.findall(r"^\|(.*)\|\n\|[-:| ]+\|$", page.read_text(), re.M)
    ]
    assert len(heads) > 50
    assert [
        (page, cell) for page, row in heads for cell in row.split("|") if re.fullmatch(r" *\$[^$]+\$ *", cell)
    ] == []


HEADINGS = "\n\n".join(f"## {n}{' i' * n}" for n in range(1, 60))  # some end where a line does
MEASURE = """<body><script>
const found = {};
for (const width of [320, 390, 740, 900]) {
  const frame = document.createElement('iframe'); frame.width = width; frame.height = 800; frame.src = 'index.html';
  frame.onload = () => { const page = frame.contentDocument.documentElement;
    found[width] = page.scrollWidth - page.clientWidth;  // a scroll bar is not the page's
    if (Object.keys(found).length == 4) document.body.innerHTML = '<pre>' + JSON.stringify(found) + '</pre>'; };
  document.body.append(frame);
}
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_headings_of_any_length_do_not_widen_the_page(tmp_path):
    (tmp_path / "index.md").write_text(f"# Page\n\n{HEADINGS}\n")
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser']\nhtml_theme = 'furo'\n"
        f"templates_path = [{str(DOCS / '_templates')!r}]\n"
        f"html_static_path = [{str(DOCS / '_static')!r}]\nhtml_css_files = ['run.css']\n"
    )
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", str(tmp_path), str(out)], check=True)
    assert "<h1>Search</h1>" in (out / "search.html").read_text()  # which the theme's page lacks
    (out / "measure.html").write_text(MEASURE)
    flags = ["--headless", "--no-sandbox", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=20000", "--dump-dom", (out / "measure.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert json.loads(re.search(r"<pre>(.*?)</pre>", done.stdout)[1]) == dict.fromkeys(["320", "390", "740", "900"], 0)
