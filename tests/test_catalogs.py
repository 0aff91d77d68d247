"""docs/catalogs.py: the Japanese pages say what the English ones say now."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

pytest.importorskip("sphinx")

import catalogs  # noqa: E402
import japanese_search  # noqa: E402
from babel.messages.catalog import Catalog  # noqa: E402

TUTORIALS = {"index", "start", "generative_models", "write_your_own"}
OTHERS = {"infer", "posteriors", "flows", "diffusion", "when_not_to_believe"}


def test_every_message_of_the_translated_pages_is_translated():
    assert set(catalogs.pages()) >= TUTORIALS | OTHERS
    assert catalogs.problems() == [], "run `python docs/catalogs.py`, and translate what it names"


def catalog(**messages: str) -> Catalog:
    made = Catalog("ja")
    for text, string in messages.items():
        made.add(text, string)
    return made


def test_what_is_missing_or_other_is_named(monkeypatch):
    monkeypatch.setattr(catalogs, "_formulas", lambda page: {"x = y"})
    english = catalog(**dict.fromkeys(["one", "two", "see `a` and $b$", "{doc}`start`", "[a](b.md)", " x = y "], ""))
    japanese = catalog(**{"see `a` and $b$": "$b$ と `a`", "{doc}`start`": "`start`", "[a](b.md)": "[あ](c.md)"})
    japanese.add("two", "二", flags=["fuzzy"])
    japanese.add("gone", "無")
    japanese.add(" x = y ", " x = z ")
    assert [re.sub(r"^page: ", "", s) for s in catalogs.compare("page", english, japanese)] == [
        "(b.md), (c.md) is not the same in '[a](b.md)'",
        "`start`, {doc}`start` is not the same in '{doc}`start`'",
        "a formula was changed: ' x = y '",
        "fuzzy translation of 'two'",
        "no translation of 'one'",
        "on the page no more: 'gone'",
    ]
    assert catalogs.compare("page", catalog(**{"see `a`": ""}), catalog(**{"see `a`": "`a` を見よ"})) == []


def test_update_keeps_the_old_japanese_of_changed_english(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogs, "FOLDER", tmp_path)
    monkeypatch.setattr(catalogs, "_formulas", lambda page: {"x = y"})

    def update(*messages: str) -> str:
        monkeypatch.setattr(catalogs, "templates", lambda names: {"page": catalog(**dict.fromkeys(messages, ""))})
        catalogs.update(["page"])
        return (tmp_path / "page.po").read_text()

    text = update("The sum of two numbers is a number.", " x = y ")
    assert text.count('msgid " x = y "\nmsgstr " x = y "') == 1 and text.count('number."\nmsgstr ""') == 1
    (tmp_path / "page.po").write_text(text.replace('number."\nmsgstr ""', 'number."\nmsgstr "数の和は数である。"'))
    assert update("The sum of two numbers is a number.", " x = y ") == (tmp_path / "page.po").read_text()
    text = update("The sum of three numbers is a number.")
    assert '#, fuzzy\nmsgid "The sum of three numbers is a number."\nmsgstr "数の和は数である。"' in text
    assert "two" not in text and "x = y" not in text


def test_the_japanese_readme_is_as_the_english_one():
    """The same headings in number and level, code blocks and spans, pictures and links."""
    english, japanese = ((ROOT / name).read_text() for name in ("README.md", "README.ja.md"))
    blocks = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert blocks.findall(japanese) == blocks.findall(english)
    english, japanese = (blocks.sub("", text) for text in (english, japanese))
    headings = re.compile("^#+ ", re.MULTILINE)
    assert headings.findall(japanese) == headings.findall(english)
    own = {"(README.ja.md)", "(README.md)"}
    assert catalogs.parts(japanese) - own == catalogs.parts(english) - own
    assert "(README.ja.md)" in english[:200] and "(README.md)" in japanese[:200]


def test_a_compound_is_found_by_its_pairs():
    indexed = japanese_search.pairs("変分推論はELBOを、`log_prob` の和で。台")
    assert set(japanese_search.pairs("変分推論")) == {"変分", "分推", "推論"} <= set(indexed)
    assert {"ELBO", "log_prob", "台"} <= set(indexed) and "論は" in indexed and "、" not in "".join(indexed)
