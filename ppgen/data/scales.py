"""Words whose order everybody knows: scales of answers, sizes, months, days of the week."""

from __future__ import annotations

from collections.abc import Collection

_MONTHS = "january february march april may june july august september october november december"
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
CALENDARS = (
    tuple(f"{m}|{m[:3]}|{m[:4]}" for m in _MONTHS.split()),
    tuple(f"{d}|{d[:3]}|{d[:4]}|{d[:5]}" for d in _DAYS.split()),
)
SCALES = (
    ("very low", "low", "medium|moderate|mid|middle|normal", "high", "very high"),
    ("very small|tiny", "small", "medium", "large|big", "very large|extra large|huge"),
    ("xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl"),
    ("very bad", "bad", "ok|okay|neutral|average|fair", "good", "very good", "excellent"),
    ("very poor", "poor", "ok|okay|neutral|average|fair", "good", "very good", "excellent"),
    ("strongly disagree", "disagree", "neutral|undecided|neither agree nor disagree", "agree", "strongly agree"),
    ("very dissatisfied", "dissatisfied", "neutral", "satisfied", "very satisfied"),
    ("very unlikely", "unlikely", "neutral", "likely", "very likely"),
    ("never", "rarely|seldom", "sometimes", "often|frequently", "always"),
    ("none|no", "mild", "moderate", "severe", "very severe"),
    ("short", "medium", "long"),
    ("slow", "medium", "fast"),
    ("beginner", "intermediate", "advanced", "expert"),
    ("primary", "secondary", "tertiary"),
    ("first", "second", "third", "fourth", "fifth"),
)


def known_order(words: Collection[str]) -> tuple[tuple[str, ...], bool] | None:
    """The words in the order of a scale that holds them all, and whether it is a calendar, which goes round.

    >>> known_order(["high", "low", "medium"])
    (('low', 'medium', 'high'), False)
    >>> known_order(["oak", "ash"])
    """
    for calendar, scales in ((True, CALENDARS), (False, SCALES)):
        for scale in scales:
            place = {own: i for i, step in enumerate(scale) for own in step.split("|")}
            places = {word: place.get(word.casefold().strip(".")) for word in words}
            found = [p for p in places.values() if p is not None]
            if len(found) == len(words) == len(set(found)) and len(words) > 1:
                return tuple(sorted(words, key=lambda w: places[w] or 0)), calendar
    return None
