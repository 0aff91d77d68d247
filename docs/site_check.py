"""A Sphinx extension that reads the built pages: every link within the site ends somewhere, and nothing is fetched.

A page may link to other sites; what a browser loads by itself (scripts, styles, pictures, fonts) has to be in the site.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
NOT_LOADED = {"canonical", "next", "prev", "index", "search", "author"}  # rel= of a <link> that is only told


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {key: value or "" for key, value in attrs}
        self.anchors |= {has[key] for key in ("id", "name") if key in has}
        if tag == "a" and "href" in has:
            self.links.append(has["href"])
        if LOADED.get(tag) in has and not set(has.get("rel", "").split()) & NOT_LOADED:
            self.loads.append(has[LOADED[tag]])


def problems(site: Path, without: Path | None = None) -> list[str]:
    """A sentence for each link that ends nowhere and each thing that a page loads from elsewhere, by page.

    The pages in the folder `without`, and links to them, are left out.
    """
    paths = [path for path in sorted(site.rglob("*.html")) if without not in path.parents]
    pages = {path: Page(path.read_text()) for path in paths}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {url} from another site" for url in page.loads if urlsplit(url).netloc]
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if without in target.parents:
                continue
            known = pages.get(target)
            if not target.is_file():
                found.append(f"{name} links to {url}, which is no file")
            elif known and parts.fragment and unquote(parts.fragment) not in known.anchors:
                found.append(f"{name} links to {url}, where there is no such anchor")
    return found


def check(app: Sphinx, error: Exception | None) -> None:
    """English comes first, without its links to Japanese; Japanese, built into its folder ja, is read with it."""
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir).resolve()
    if found := problems(site.parent) if app.config.language == "ja" else problems(site, without=site / "ja"):
        raise ExtensionError("\n".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
