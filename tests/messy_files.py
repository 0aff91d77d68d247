"""Text files as people and their spreadsheets leave them, and what is to be made of each.

`MESSY` has, by name, the text of a file, and by column its cells as they are to be read (words for codes), or a part of
a note on it (`Note`); or, in place of the columns, a part of the one sentence that it is refused with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NAN, INF = float("nan"), float("inf")


class Note(NamedTuple):
    """The cells of a column, and a part of what is said of it."""

    cells: list[Any]
    note: str


class Refused(NamedTuple):
    """A part of the sentence that a column is refused with."""

    sentence: str


Known = dict[str, list[Any] | Note | Refused] | str

MESSY: dict[str, tuple[str | bytes, Known]] = {
    "points for thousands": ("a;b\n1.234,5;x\n2.000,25;y\n-3,5;x\n", {"a": [1234.5, 2000.25, -3.5]}),
    "thousands by apostrophes": ("a,b\n1\u2019234.5,x\n12'345.0,y\n", {"a": [1234.5, 12345]}),
    "thousands by narrow blanks": ("a;b\n1\u00a0234,5;x\n12\u202f345,0;y\n", {"a": [1234.5, 12345]}),
    "thousands by lakh": ('a,b\n"1,23,456",x\n"12,34,567",y\n', {"a": [123456, 1234567]}),
    "a second row of units": ("height,sex\ncm,\n170.5,f\n180.5,m\n", {"height": Refused("but 'cm' in row 0")}),
    "two rows of names": ("a,a,b\nmean,sd,mean\n1,2,3\n", "two columns are called 'a'"),
    "a title": ("Sales 2024\n\ntown,n\nUlm,3\n", "delete titles and comments above the names"),
    "a title among blank cells": ("Sales 2024,,\n,,\ntown,n,m\nUlm,3,1\n", "as a title does; delete what stands above"),
    "comments": ("# made by x\na,b\n1,2\n3,4\n", "delete titles and comments"),
    "a row of totals": (
        "town,n\nUlm,3\nBonn,4\nTotal,7\n",
        {"town": Note(["Ulm", "Bonn", "Total"], "looks like a total")},
    ),
    "a total among numbers": ("id,n\n1,3\n2,4\nTotal,7\n", {"id": Refused("but 'Total' in row 2")}),
    "a footnote": ("town,n\nUlm,3\nBonn,4\nSource: office\n", "line 4 has 1 cells, expected 2"),
    "a footnote among blank cells": (
        "town,n\nUlm,3\nBonn,4\nSource: office,\n",
        {"town": Note(["Ulm", "Bonn", "Source: office"], "as a footnote is")},
    ),
    "merged cells": (
        "region,n\nSouth,1\n,2\n,3\nNorth,4\n,5\n,6\n",
        {"region": Note(["South", None, None, "North", None, None], "as merged cells are written")},
    ),
    "a name too few": ("a,b\nr1,1,2\nr2,3,4\n", "give every column a name"),
    "commas in and between": ("a,b\n1,5,2,5\n3,5,4,5\n", "quote numbers with a decimal comma"),
    "units": ("h,w\n170 cm,60kg\n181 cm,70.5kg\n", {"h": [170, 181], "w": [60, 70.5]}),
    "two units": ("h,w\n170 cm,1\n1.81 m,2\n", {"h": Refused("in different units (cm; m)")}),
    "units here and there": ("h,w\n170 cm,1\n181,2\n165 cm,3\n", {"h": Refused("in different units (cm, and none)")}),
    "shares here and there": ("p,w\n10%,1\n0.125,2\n100%,3\n", {"p": Refused("in different units (%, and none)")}),
    "factors": ("a,b\n1.2k,1\n800,2\n5M,3\n", {"a": Note([1200, 800, 5e6], "'1.2k' is read as 1200")}),
    "hours and minutes": ("t,b\n2h 15m,1\n1h 05m,2\n", {"t": [8100, 3900]}),
    "minutes": ("t,b\n15 min,1\n5 min,2\n", {"t": [900, 300]}),
    "yes, TRUE and 1": ("f,x\nyes,1\nno,2\nTRUE,3\n1,4\n0,5\n", {"f": Refused("holds numbers, but 'yes' in row 0")}),
    "true and TRUE": ("f,x\ntrue,1\nTRUE,2\nFalse,3\n", {"f": [1, 1, 0]}),
    "yes and YES": ("f,x\nyes,1\nYES,2\nno,3\n", {"f": Note(["yes", "YES", "no"], "differ by capitals alone")}),
    "typographic signs": ("a,b\n\u22121.5,\u20132\n3.5,\u22124\n", {"a": [-1.5, 3.5], "b": [-2, -4]}),
    "brackets and dollars": ("a,b\n-$5.00,1\n$-6.00,2\n($7.00),3\n", {"a": [-5, -6, -7]}),
    "leading zeros and a gap": ("zip,x\n01234,1\nNA,2\n00012,3\n", {"zip": ["01234", None, "00012"]}),
    "codes as formulas": ('a,b\n="0123",1\n="0456",2\n', {"a": ["0123", "0456"]}),
    "errors of a spreadsheet": ("a,b\n#REF!,1\n#DIV/0!,2\n1.5,3\n#NUM!,4\n", {"a": [NAN, NAN, 1.5, NAN]}),
    "three forms of dates": (
        "d,x\n2024-01-05,1\n06.01.2024,2\n2024-01-07,3\n",
        {"d": Refused("'06.01.2024' in row 1")},
    ),
    "no such day": ("d,x\n2024-01-01,1\n2024-02-30,2\n2024-01-03,3\n", {"d": Refused("'2024-02-30' in row 1")}),
    "days without end": ("d,x\n2024-01-01,1\n9999-12-31,2\n", {"d": Note([0, 2913173], "in the year 9999")}),
    "the year 1": ("d,x\n0001-01-01,1\n0001-02-01,2\n", {"d": [0, 31]}),
    "times of zones": ("d,x\n2024-01-01T10:00:00Z,1\n2024-01-02T10:00:00+02:00,2\n", {"d": [10 / 24, 32 / 24]}),
    "times with and without a zone": (
        "d,x\n2024-01-01T10:00:00+02:00,1\n2024-01-02T10:00:00,2\n2024-01-02,3\n",
        {"d": Note([8 / 24, 34 / 24, 1], "'2024-01-02T10:00:00' has no time zone, as '2024-01-01T10:00:00+02:00' has")},
    ),
    "months of other languages": ("m,x\nMärz,1\nJanuar,2\nFebruar,3\n", {"m": ["März", "Januar", "Februar"]}),
    "answers of seven steps": (
        "q,x\nSomewhat agree,1\nAgree,2\nSomewhat disagree,3\n",
        {"q": ["Somewhat agree", "Agree", "Somewhat disagree"]},
    ),
    "numbered answers": ("q,x\n2 - ok,1\n10 - best,2\n1 - bad,3\n", {"q": ["2 - ok", "10 - best", "1 - bad"]}),
    "bands": ("a,x\n18-25,1\n65+,2\n9-17,3\n", {"a": ["18-25", "65+", "9-17"]}),
    "measured with an error": (
        "a,b\n1.2\u00b10.1,1\n1.5\u00b10.2,2\n",
        {"a": Note(["1.2\u00b10.1", "1.5\u00b10.2"], "begins with a number")},
    ),
    "addresses of computers": ("ip,x\n10.0.0.1,1\n10.0.0.2,2\n", {"ip": ["10.0.0.1", "10.0.0.2"]}),
    "very wide": (",".join(f"c{i}" for i in range(500)) + "\n" + ",".join(["1.5"] * 500) + "\n", {"c499": [1.5]}),
    "one row": ("a,g\n1.5,x\n", {"a": [1.5], "g": ["x"]}),
    "no rows": ("a,b\n", "give at least one row"),
    "nothing": ("", "it is empty"),
    "a mark and semicolons": ("\ufeffa;b\n1,5;x\n2,5;y\n", {"a": [1.5, 2.5], "b": ["x", "y"]}),
    "a line for Excel": ("sep=;\na;b\n1,5;x\n", "delete that line"),
    "quoted line ends": ('a,note\n1,"one\ntwo"\n2,"a ""b"" c"\n', {"a": [1, 2], "note": ["one\ntwo", 'a "b" c']}),
    "a column of gaps": ("a,b\n1,NA\n2,\n", {"a": [1, 2], "b": [NAN, NAN]}),
    "infinite": ("a;b\n1,5;2\n-inf;3\n", {"a": Note([1.5, -INF], "has 1 infinite values")}),
    "beyond what is": ("a,b\n1e400,2\n1.5,3\n", {"a": Note([INF, 1.5], "has 1 infinite values")}),
    "whole numbers beyond 2^53": ("id,x\n9007199254740993,1\n9007199254740995,2\n", {"id": [2**53 + 1, 2**53 + 3]}),
    "these with a gap": (
        "id,x\n9007199254740993,1\nNA,2\n",
        {"id": Note([2.0**53, NAN], "whole numbers of 2^53 or more")},
    ),
    "beyond 64 bits": (
        "id,x\n92233720368547758070,1\n5,2\n",
        {"id": Note([9.223372036854775807e19, 5], "2^53 or more")},
    ),
    "exponents with commas": ("a;b\n1,5E+03;1\n2,5E-01;2\n", {"a": [1500, 0.25]}),
    "exponents of Fortran": ("a,b\n1.5D+03,1\n2.5D-01,2\n", {"a": [1500, 0.25]}),
    "blanks between cells": (
        "a      b  c\n 1.5    2  x\n14.25   5  y\n",
        {"a": [1.5, 14.25], "b": [2, 5], "c": ["x", "y"]},
    ),
    "blanks in words": ("full name\nJohn Smith\nJane Doe\n", {"full name": ["John Smith", "Jane Doe"]}),
    "line ends of old Macs": ("a,b\r1,2\r3,4\r", "carriage returns alone"),
    "a workbook": (b"PK\x03\x04\x14\x00\x06\x00", "call it .xlsx"),
    "two spellings of ö": ("g,x\nK\u00f6ln,1\nKo\u0308ln,2\n", {"g": ["K\u00f6ln", "K\u00f6ln"]}),
    "blanks that are not seen": ("g,x\nUlm\u00a0,1\nUlm,2\n\u200bUlm,3\n", {"g": ["Ulm", "Ulm", "Ulm"]}),
    "points for thousands, by the table": (
        "pop;area\n1.234;0,5\n56.789;12,25\n7;3,0\n",
        {
            "pop": Note([1234, 56789, 7], "'1.234' is read as 1234, by the decimal mark of the table"),
            "area": [0.5, 12.25, 3],
        },
    ),
    "points that may be for thousands": (
        "a;b\n1.234;x\n5.678;y\n",
        {"a": Note([1.234, 5.678], "with a point as the decimal mark (a=real:comma otherwise)")},
    ),
    "points beside commas": ("a;b\n1.25;1,5\n2.125;2,5\n", {"a": [1.25, 2.125], "b": [1.5, 2.5]}),
    "other currencies": ("a;b\nRs. 1,23,456;12,50 z\u0142\nRs. 7;3,20 z\u0142\n", {"a": [123456, 7], "b": [12.5, 3.2]}),
    "yen behind": ('a,b\n"1,234\u5186",1\n"567\u5186",2\n', {"a": [1234, 567]}),
    "signs behind": ("a,b\n5-,1\n3-,2\n2-,3\n", {"a": Note(["5-", "3-", "2-"], "begins with a number")}),
    "days of a form that is not read": (
        "d,x\n14. Februar 2024,1\n3. M\u00e4rz 2024,2\n",
        {"d": Note(["14. Februar 2024", "3. M\u00e4rz 2024"], "looks like a time of a form that is not read")},
    ),
    "single quotes": ("a,b\n'x',1\n'y',2\n", {"a": Note(["'x'", "'y'"], "stands in single quotes")}),
    "yes and no in other languages": (
        "a,b\nja,\u0434\u0430\nnein,\u043d\u0435\u0442\n",
        {"a": ["ja", "nein"], "b": ["\u0434\u0430", "\u043d\u0435\u0442"]},
    ),
    "fixed widths": ("name      age\nann lee    12\nbob         7\n", "as columns of fixed widths have"),
    "another separator": ("a^b\n1^2\n3^4\n", "each has '^' as often as the first"),
    "one name": ("x\n1\t2\n3\t4\n", "its first line has one name, and the others have 2 cells, cut by tabs"),
    "JSON": ('[{"a": 1},\n {"a": 2}]\n', "no table of text, but JSON"),
    "a web page": ("<html><table></table></html>\n", "a web page or XML"),
    "one word": ("c,x\nDE,1\nDE,2\n", {"c": Note(["DE", "DE"], "is 'DE' in every row")}),
    "names that are years": ("town,2001,2002\nUlm,1,2\nBonn,2,3\n", {"2001": [1, 2], "2002": [2, 3]}),
}


def said_of(known: Known, table: Any) -> str:
    """ "" where a table is as it is known to be, else what is wrong."""
    for name, truth in known.items() if isinstance(known, dict) else ():
        own = table.types[name]
        if isinstance(truth, Refused):
            if own.kind != "unclear" or truth.sentence not in own.why:
                return f"{name} is {own}"
            continue
        cells = truth.cells if isinstance(truth, Note) else truth
        values = np.asarray(table[name], dtype=float)
        found = [None if v != v else own.levels[int(v)] for v in values] if own.levels else values.tolist()
        if own.levels and found != cells or not own.levels and not np.allclose(found, cells, equal_nan=True):
            return f"{name} is {found}, {own}"
        if isinstance(truth, Note) and not any(truth.note in note for note in own.notes):
            return f"{name} is said to be {own.notes}"
    return ""
