"""A Sphinx directive that runs the examples: what a page shows is what the code prints.

    ```{run} python           runs in the page's namespace; a last line's value is shown, unless ; ends it
    ```{run} sh               runs in bash -e, with ppgen on the PATH
    ```{run} file my_model.py   writes the file for the blocks after it

All blocks of a page run in their order, in one temporary folder of the page's own. A block that fails
fails the build. Open matplotlib figures are shown under the block, and closed. What a block gave is kept
(kept_outputs.py): a page whose blocks have all been run before is not run again. With `-D run_examples=0`
nothing is run and nothing is shown below the code, which suffices for reading the words. Options:

    :hide-code:    show only what the block gives
    :hide-output:  show only the code
    :image: PATH   show this PNG, made by the block, below it (several: separated by blanks)
    :alt: TEXT     what the pictures show
    :fails: TEXT   the block must fail, and TEXT must stand in what it says, which is shown
    :timeout: N    seconds for a shell block (600)

A fenced example of Python or shell that is not run is an error: `text` is for what is no example.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from kept_outputs import Outputs, Result, next_key
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

FENCE = re.compile(r"^\s*(?:```+|~~~+)\s*(python|py|pycon|sh|bash|shell|console)\b", re.MULTILINE)

EMPTY = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # one clear pixel


def take_style() -> None:
    """Pictures of the pages look as those of `ppgen plot` do."""
    import matplotlib

    from ppgen.style import settings

    matplotlib.rcParams.update(settings())


class Page:
    """What the blocks of one page share: a folder, a namespace, the results kept of an earlier build."""

    def __init__(self, name: str, kept: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="ppgen-docs-"))
        # A module without a file, as a notebook's is; classes made on the page are found in it.
        module = sys.modules["example"] = types.ModuleType("example")
        self.namespace: dict[str, Any] = module.__dict__
        self.name = name.replace("/", "-")
        self.outputs = Outputs(kept, self.name)
        self.key, self.blocks = "", 0
        self.skipped: list[Callable[[], Any]] = []  # blocks whose results were kept, and that have not run

    def catch_up(self) -> None:
        """Runs the blocks that were skipped: the next one may need what they left."""
        while self.skipped:
            self.skipped.pop(0)()

    def python(self, code: str) -> str:
        """Runs code, and returns what it printed and the value of its last line."""
        self.blocks += 1
        source = f"<{self.name}, block {self.blocks}>"
        linecache.cache[source] = (len(code), None, code.splitlines(True), source)
        tree = ast.parse(code, source)
        if "matplotlib" in code:
            take_style()
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with self.inside(), contextlib.redirect_stdout(printed):
            exec(compile(tree, source, "exec"), self.namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), source, "eval"), self.namespace)
                if value is not None and not code.rstrip().endswith(";"):
                    print(repr(value))
        return printed.getvalue()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In the page's folder, from where the files it wrote can be imported."""
        with contextlib.chdir(self.folder):
            sys.path.insert(0, str(self.folder))
            try:
                yield
            finally:
                sys.path.remove(str(self.folder))

    def leave(self) -> None:
        """Takes the folder away, and what was imported from it."""
        for name, module in list(sys.modules.items()):
            if name == "example" or str(getattr(module, "__file__", None)).startswith(str(self.folder)):
                del sys.modules[name]
        if "pyro" in sys.modules:
            sys.modules["pyro"].clear_param_store()
        shutil.rmtree(self.folder, ignore_errors=True)

    def shell(self, code: str, timeout: int) -> str:
        """Runs code in bash, and returns what it printed; RuntimeError with it when it failed."""
        path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if run.returncode:
            raise RuntimeError(run.stdout + f"[exit code {run.returncode}]")
        return run.stdout


class Run(SphinxDirective):
    required_arguments = 1
    optional_arguments = 1
    has_content = True
    option_spec = {
        "hide-code": directives.flag,
        "hide-output": directives.flag,
        "image": directives.unchanged_required,
        "alt": directives.unchanged_required,
        "fails": directives.unchanged_required,
        "timeout": directives.positive_int,
    }

    def run(self) -> list[nodes.Node]:
        kind, code = self.arguments[0], "\n".join(self.content)
        if kind not in ("file", "python", "sh"):
            raise self.error(f"{kind!r} cannot be run; it is python, sh or file")
        result = self.result(kind, code) if self.config.run_examples else Result("")
        block = nodes.container(classes=["run"])
        if "hide-code" not in self.options:
            caption = nodes.paragraph("", "", nodes.literal("", self.arguments[1])) if kind == "file" else None
            language = "bash" if kind == "sh" else "python"
            block += [n for n in (caption, nodes.literal_block(code, code, language=language)) if n]
        if result.output.strip() and "hide-output" not in self.options:
            text = result.output.rstrip()
            block += nodes.literal_block(text, text, language="text", classes=["run-output"])
        alt = self.options.get("alt", "")
        uris = ["/" + path.relative_to(self.env.srcdir).as_posix() for path in result.pictures]
        if alt and not self.config.run_examples:
            uris = [EMPTY]  # no picture, but its words
        return [block, *(nodes.image(uri=uri, alt=alt) for uri in uris)]

    def result(self, kind: str, code: str) -> Result:
        """What the block gave: kept of an earlier build, or else by running it, after those that were skipped."""
        kept = Path(self.env.srcdir, "_build", "outputs")
        page = self.env.temp_data.setdefault("run_page", None) or Page(self.env.docname, kept)
        self.env.temp_data["run_page"] = page
        page.key = next_key(page.key, *self.arguments, code, self.options.get("fails"), self.options.get("image"))
        result = page.outputs.load(page.key)
        if result is not None:
            page.skipped.append(lambda: (self.execute(page, kind, code), self.pictures(page)))
            return result
        page.catch_up()
        output = self.execute(page, kind, code).replace(str(page.folder) + os.sep, "")
        return page.outputs.save(page.key, output, self.pictures(page))

    def execute(self, page: Page, kind: str, code: str) -> str:
        expected = self.options.get("fails")
        if kind == "file":
            (page.folder / self.arguments[1]).write_text(code + "\n")
            return ""
        try:
            shell = kind == "sh"
            output = page.shell(code, self.options.get("timeout", 600)) if shell else page.python(code)
        except Exception as error:
            said = str(error) if kind == "sh" else f"{type(error).__name__}: {error}"
            if expected is not None and expected in said:
                return said
            detail = said if kind == "sh" else traceback.format_exc()
            raise ExtensionError(f"{self.get_location()}: the example failed\n{code}\n\n{detail}") from None
        if expected is not None:
            raise ExtensionError(f"{self.get_location()}: the example should have failed\n{code}")
        return output

    def pictures(self, page: Page) -> list[Path]:
        """The pictures that the block made, in the page's folder."""
        made = [page.folder / name for name in self.options.get("image", "").split()]
        if "matplotlib.pyplot" in sys.modules:
            import matplotlib.pyplot as plt

            for number in plt.get_fignums():
                made.append(page.folder / f"figure-{number}.png")
                plt.figure(number).savefig(made[-1], dpi=110, bbox_inches="tight")
            plt.close("all")
        for path in made:
            if not path.is_file():
                raise ExtensionError(f"{self.get_location()}: the example made no {path.name}")
        return made


def refuse_idle_examples(app: Sphinx, name: str, source: list[str]) -> None:
    """Every example is run: a plain fence of Python or shell is an error."""
    idle = FENCE.search(source[0])
    if idle:
        line = source[0].count("\n", 0, idle.start(1)) + 1
        raise ExtensionError(f"{name}:{line}: this example is not run; write ```{{run}} python or sh")


def leave_page(app: Sphinx, tree: nodes.document) -> None:
    page = app.env.temp_data.pop("run_page", None)
    if page is not None:
        page.outputs.prune()
        page.leave()


def setup(app: Sphinx) -> dict[str, bool]:
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ["PPGEN_BACKGROUND"] = "0"
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="ppgen-docs-")  # not the user's list of trusted programs
    app.add_config_value("run_examples", True, "env", bool)
    app.add_directive("run", Run)
    app.connect("source-read", refuse_idle_examples)
    app.connect("doctree-read", leave_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
