"""Bounds on log p(x), one a file, found by the file's name: functions of the terms of K draws.

A file has

    SUMMARY     what it is, for `ppgen list`
    TERMS       which producer its terms come from: drawn, closed_form, summed, subsampled
    PATHWISE    whether its gradient is right only along the paths of all draws: it is no mean over draws
    objective   (terms, setting) -> (target, bound): what is maximized, whose gradient is that of the (KL-weighted)
                bound, and the bound itself, both in nats over all N rows

Adding one is adding its file, and its row in the table of laws (tests/test_objectives.py).
"""

from ppgen.folder import Folder

__all__ = ["named", "names"]

_FOLDER = Folder(__name__, "objective")
names, named = _FOLDER.names, _FOLDER.named
