"""The Japanese catalogs, docs/locale/ja/LC_MESSAGES/PAGE.po: one for each page that is translated.

    python docs/catalogs.py          updates them after an English page has changed, and says what is left to do
    python docs/catalogs.py PAGE     begins the catalog of one page more

Sphinx compiles them at build. A message whose English changed keeps its old Japanese, marked fuzzy, until someone
has read both and taken the mark away; a message that is on no page any more is deleted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "locale" / "ja" / "LC_MESSAGES"
CONF = """
extensions = ["myst_parser", "run_directive"]
gettext_compact = run_examples = False
include_patterns = {pages}
{markup}
"""

HEADER = """# Japanese of docs/{page}.md
msgid ""
msgstr ""
"Language: ja\\n"
"Content-Type: text/plain; charset=utf-8\\n"

"""

CODE = re.compile(r"(?:\{[\w:]+\})?(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)  # a role's content, and a code span
FORMULA = re.compile(r"\$[^$]+\$")
LINK = re.compile(r"(?<=\])\([^()\s]+\)|<https?://[^>\s]+>")
BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)


def pages() -> list[str]:
    """The pages that are translated."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.po"))


def templates(names: Iterable[str]) -> dict[str, Catalog]:
    """The messages of these pages as they are now, by Sphinx's gettext builder; no example is run."""
    markup = re.search(r"^myst_enable_extensions = .*$", (DOCS / "conf.py").read_text(), re.MULTILINE)
    assert markup, "docs/conf.py has no myst_enable_extensions"
    with tempfile.TemporaryDirectory() as out:
        Path(out, "conf.py").write_text(
            CONF.format(pages=["index.md", *(f"{name}.md" for name in names)], markup=markup[0])
        )
        command = [sys.executable, "-m", "sphinx", "-Q", "-b", "gettext", "-c", out, str(DOCS), out]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(DOCS)})
        return {name: _read(Path(out, f"{name}.pot")) for name in names}


def _read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale="ja")


def parts(text: str) -> set[str]:
    """Code, roles, formulas and targets of links in a message: what a translation keeps as it is.

    >>> sorted(parts("{doc}`start` has $x$, `a b` and [this](https://example.org)."))
    ['$x$', '(https://example.org)', '`a b`', '{doc}`start`']
    """
    rest = CODE.sub("", text)
    return {match[0] for match in CODE.finditer(text)} | {*FORMULA.findall(rest), *LINK.findall(rest)}


def _formulas(page: str) -> set[str]:
    """The formulas of a page that stand by themselves: messages for gettext, but none to translate."""
    return {formula.strip() for formula in BLOCK.findall((DOCS / f"{page}.md").read_text())}


def compare(page: str, template: Catalog, catalog: Catalog) -> list[str]:
    """A sentence for each message of the page that is untranslated, fuzzy or on it no more, or has other `parts`."""
    now, there = {m.id for m in template if m.id}, {m.id: m for m in catalog if m.id}
    found = [f"on the page no more: {text!r}" for text in [*(set(there) - now), *catalog.obsolete]]
    formulas = _formulas(page)
    for text in now:
        message = there.get(text)
        if message is None or not message.string:
            found.append(f"no translation of {text!r}")
        elif message.fuzzy:
            found.append(f"fuzzy translation of {text!r}")
        elif text.strip() in formulas:
            found += [f"a formula was changed: {text!r}"] * (message.string != text)
        elif changed := parts(text) ^ parts(message.string):
            found.append(f"{', '.join(sorted(changed))} is not the same in {text!r}")
    return [f"{page}: {sentence}" for sentence in sorted(found)]


def problems() -> list[str]:
    """What is wrong with the catalogs, a sentence each."""
    return [s for page, now in templates(pages()).items() for s in compare(page, now, _read(FOLDER / f"{page}.po"))]


def update(names: Iterable[str]) -> None:
    """Writes the catalogs of these pages: new messages empty, those of changed English fuzzy, others as they are."""
    for page, template in templates(names).items():
        path = FOLDER / f"{page}.po"
        path.parent.mkdir(parents=True, exist_ok=True)
        catalog = _read(path) if path.exists() else Catalog("ja")
        catalog.update(template)
        formulas = _formulas(page)
        for message in catalog:
            if message.id and message.id.strip() in formulas:
                message.string, message.flags = message.id, set()
        write(page, catalog)


def write(page: str, catalog: Catalog) -> None:
    """Writes a page's catalog, with no flag but fuzzy."""
    for message in catalog:
        message.flags &= {"fuzzy"}
    with (FOLDER / f"{page}.po").open("wb") as file:
        file.write(HEADER.format(page=page).encode())
        write_po(file, catalog, width=0, omit_header=True, no_location=True, ignore_obsolete=True)


if __name__ == "__main__":
    update(sorted({*pages(), *sys.argv[1:]}))
    print("\n".join(problems()) or "every message is translated")
