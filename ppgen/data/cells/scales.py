"""Words whose order everybody knows: scales of answers, sizes, months, days of the week."""

from __future__ import annotations

from collections.abc import Collection

_MONTHS = "january february march april may june july august september october november december"
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
_OTHER_CALENDARS = (  # German, French, Spanish
    "januar februar märz april mai juni juli august september oktober november dezember",
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "montag dienstag mittwoch donnerstag freitag samstag|sonnabend sonntag",
    "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "lunes martes miércoles jueves viernes sábado domingo",
)
CALENDARS = (
    tuple(f"{m}|{m[:3]}|{m[:4]}" for m in _MONTHS.split()),
    tuple(f"{d}|{d[:3]}|{d[:4]}|{d[:5]}" for d in _DAYS.split()),
    *(tuple(words.split()) for words in _OTHER_CALENDARS),
)
_ROMAN = "i ii iii iv v vi vii viii ix x xi xii"
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve"
SCALES: tuple[tuple[str, ...], ...] = (
    (
        "no|n|nein|nej|nei|nee|non|n\u00e3o|nao|\u043d\u0435\u0442|\u3044\u3044\u3048|\u5426",
        "yes|y|ja|j|oui|s\u00ed|si|sim|\u0434\u0430|\u306f\u3044|\u662f",
    ),
    ("without", "with"),
    ("control", "case|treated|treatment"),
    ("very low", "low|lo", "medium|moderate|mid|middle|normal|med|average", "high|hi", "very high"),
    ("very small|tiny", "small", "medium", "large|big", "very large|extra large|huge"),
    ("xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl"),
    ("very bad", "bad", "ok|okay|neutral|average|fair", "good", "very good", "excellent"),
    ("very poor", "poor", "ok|okay|neutral|average|fair", "good", "very good", "excellent"),
    (
        "strongly disagree|completely disagree|totally disagree",
        "disagree|mostly disagree",
        "somewhat disagree|slightly disagree|rather disagree",
        "neutral|undecided|neither agree nor disagree|neither",
        "somewhat agree|slightly agree|rather agree",
        "agree|mostly agree",
        "strongly agree|completely agree|totally agree",
    ),
    (
        "very dissatisfied|very unsatisfied",
        "dissatisfied|unsatisfied",
        "somewhat dissatisfied|slightly dissatisfied",
        "neutral|neither satisfied nor dissatisfied",
        "somewhat satisfied|slightly satisfied",
        "satisfied",
        "very satisfied",
    ),
    ("very unlikely", "unlikely", "somewhat unlikely", "neutral", "somewhat likely", "likely", "very likely"),
    (
        "never",
        "almost never|very rarely",
        "rarely|seldom",
        "sometimes|occasionally",
        "often|frequently|usually",
        "almost always|very often",
        "always",
    ),
    ("not at all", "slightly|a little", "somewhat|moderately", "very|quite a bit|a lot", "extremely"),
    ("hourly", "daily", "weekly", "monthly", "quarterly", "yearly|annually"),
    tuple(_ROMAN.split()),
    tuple(_NUMERALS.split()),
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
