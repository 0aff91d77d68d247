"""Estimators of the gradient of a bound, one a file, found by the file's name: how the terms of a draw are made.

A file has

    SUMMARY     what it is, for `ppgen list`
    DRAWS       the least number of draws a step that it takes
    SUMS        (optional) whether no latent is left to the score function, which needs the mean of other draws
    PATHWISE    whether derivatives along the paths of all draws are complete, which some objectives need
    PATHS       (optional) whether derivatives along paths are taken at all; True where it is left out
    draw        (program, data, structure, *, closed_form) -> the terms of one draw

The derivative of an objective of these terms is unbiased for that of its bound. A term whose `pathwise` is False has
the score function for its latent (`ppgen.inference.bounds.score_function`).

Adding one is adding its file, and its row in the table of laws (tests/test_gradients.py).
"""

from ppgen.folder import Folder

__all__ = ["named", "names"]

_FOLDER = Folder(__name__, "gradient estimator")
names, named = _FOLDER.names, _FOLDER.named
