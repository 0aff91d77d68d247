"""A Sphinx extension that indexes Japanese by pairs of characters, as the browser then splits what is searched for.

Sphinx's own index of Japanese has words, and the browser cannot tell where a word ends: a compound is not found.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.search import SearchLanguage

JAPANESE = "\u3005-\u3007\u3041-\u30ff\u3400-\u9fff"
RUNS = re.compile(rf"[{JAPANESE}]+|[^\W{JAPANESE}]+")

SPLIT = """
const JAPANESE = "\\u3005-\\u3007\\u3041-\\u30ff\\u3400-\\u9fff";
const RUNS = new RegExp(`[${JAPANESE}]+|(?:(?![${JAPANESE}])[\\\\p{L}\\\\p{N}_])+`, "gu");

function splitQuery(query) {
  return (query.match(RUNS) || []).flatMap((run) =>
    new RegExp(`^[${JAPANESE}]{2}`).test(run)
      ? Array.from({ length: run.length - 1 }, (_, i) => run.slice(i, i + 2))
      : [run]
  );
}
"""


def pairs(text: str) -> list[str]:
    """The words of a text, and each pair of neighbors where it is Japanese.

    >>> pairs("変分推論 ELBO")
    ['変分', '分推', '推論', 'ELBO']
    """
    found = []
    for run in RUNS.findall(text):
        japanese = re.match(f"[{JAPANESE}]{{2}}", run)
        found += [run[i : i + 2] for i in range(len(run) - 1)] if japanese else [run]
    return found


class Japanese(SearchLanguage):
    lang = "ja"
    language_name = "Japanese"
    js_splitter_code = SPLIT

    def split(self, input: str) -> list[str]:
        return pairs(input)

    def stem(self, word: str) -> str:
        return word

    def word_filter(self, stemmed_word: str) -> bool:
        return len(stemmed_word) > 1


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_search_language(Japanese)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
