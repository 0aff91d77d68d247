"""A formula at a table: its terms, read by formulae, as a design that needs formulae no longer.

What is made here is held against formulae's own matrix of the same rows before it is given out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch

from ppgen.data import Table
from ppgen.data.cells.levels import text_of
from ppgen.data.cells.types import ASKED
from ppgen.errors import PpgenError, first_line, install, require_known
from ppgen.formula.blocks import Block, Formula, parse
from ppgen.formula.design import Design, Group, Matrix, Part, matrix
from ppgen.formula.expressions import FUNCTIONS, compute, translated
from ppgen.formula.families import FAMILIES
from ppgen.formula.gaps import gaps_of, plain_names
from ppgen.formula.polynomials import polynomials
from ppgen.formula.response import response_of
from ppgen.formula.table import CodedTable

_AS_PYTHON = str.maketrans({"{": "I(", "}": ")", ":": "@", "\n": " "})  # a formula is Python's grammar but for these
_TOLERANCE = 1e-8  # of a design matrix, against formulae's
_OWN = ("Intercept", "alpha", "beta", "category", "chol", "corr", "cutpoints", "data", "sd", "shares", "term")


def names_in(text: str) -> list[str]:
    """The columns that a formula names, in order; names of functions are none.

    >>> names_in("p(y, n) ~ np.log(x) + x:g + C(k) + (1 | school/room)")
    ['y', 'n', 'x', 'g', 'k', 'school', 'room']
    """
    return _columns(parse(text), text)


def _columns(formula: Formula, text: str) -> list[str]:
    """The columns that a formula names, in order."""
    left, right = _used(formula)
    for part in (formula.common, *(b.terms for b in formula.blocks)):
        _require_terms(_tree(part), part)
    if formula.y in right:
        raise PpgenError(f"the response {formula.y!r} of {text!r} stands on the right as well; leave it out there")
    return list(dict.fromkeys(left + right))


def _used(formula: Formula) -> tuple[list[str], list[str]]:
    """The columns on either side, as often as they stand there."""
    left = [n for n in (formula.y, formula.trials, formula.status) if isinstance(n, str)]
    right = [n for part in (formula.common, *(b.terms for b in formula.blocks)) for n in _names(_tree(part))]
    return left, right + [c for b in formula.blocks for factor in b.factors for c in factor]


def _tree(terms: str) -> ast.expr:
    """Terms as Python reads them; those that are no expression are refused."""
    try:
        return ast.parse(terms.translate(_AS_PYTHON).strip(), mode="eval").body
    except SyntaxError as e:
        raise PpgenError(
            f"the terms {terms!r} cannot be read; expected columns and calls joined by +, -, :, *, /, as in "
            "'1 + x + log(z) + x:g' (a column's name is letters, digits and _)"
        ) from e


def _names(tree: ast.expr) -> list[str]:
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    functions = {id(n.func) for n in calls} | {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    functions |= {id(n) for call in calls for a in call.args[1:] for n in ast.walk(a)}  # C(k, Sum)
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in functions]
    return [n.id for n in sorted(named, key=lambda n: (n.lineno, n.col_offset))]


def _fillable(formula: Formula) -> list[str]:
    """The columns that are terms by themselves, and stand nowhere else: their missing cells can be drawn."""
    left, right = _used(formula)
    return [n for n in plain_names(_tree(formula.common)) if (left + right).count(n) == 1]


def _require_terms(node: ast.expr, terms: str) -> None:
    """Refuses a power of a column outside of I() and {}, which a formula takes as the column, and other operations."""
    if "{" in terms:
        return
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and isinstance(node.left, ast.Name):
            power = ast.unparse(node)
            raise PpgenError(
                f"{power!r} in a formula is {node.left.id!r} itself, no power of it; write I({power}) or {{{power}}} "
                "for the power"
            )
        _require_terms(node.left, terms)
        _require_terms(node.right, terms)
    elif isinstance(node, ast.IfExp | ast.BoolOp | ast.Compare | ast.Lambda | ast.Subscript):
        raise PpgenError(
            f"the terms {terms!r} cannot be read: {ast.unparse(node)!r} is no term; compute it as a column of the "
            "table, and name that"
        )


def design_of(text: str, family: str, data: Any, missing: str = "error") -> tuple[Design, Table]:
    """The design of a formula at a table, and the columns and codes of the table's rows.

    Args:
        data: a DataFrame, a `Table`, or columns by name.
        missing: what is done with missing cells (`ppgen.gaps`).

    Raises:
        PpgenError: a family that is not known; a formula that cannot be read, or has no place in this family.
    """
    require_known("family", family, FAMILIES)
    formula = parse(text)
    table = CodedTable(data, _columns(formula, text), _fillable(formula), missing)
    response = response_of(formula, family, table)
    common, offsets = _matrix(formula.common, table)
    blocks = [(block, *_matrix(block.terms, table)) for block in formula.blocks]
    groups = _named_apart([g for block in blocks for g in _groups(*block, table)])
    intercept, slopes = [] in common["terms"], _without_intercept(common)
    like = torch.zeros((), dtype=torch.float64)
    means = matrix(slopes, table.coded, like).mean(0) if slopes["terms"] else like.new_zeros(0)
    centred = intercept or family == "ordered"
    design: Design = {
        "response": response,
        "intercept": intercept and family != "ordered",
        "matrix": slopes,
        "means": (means if centred else torch.zeros_like(means)).tolist(),
        "offsets": offsets,
        "groups": groups,
        "levels": {k: (v.columns, v.values, v.new) for k, v in table.levels.items()},
        "arguments": _arguments([slopes, *(g["matrix"] for g in groups)], offsets, groups),
    }
    if table.gone:
        real = [n for n, own in table.raw.types.items() if own.kind == "real" and own.why == ASKED]
        design["gaps"] = gaps_of(slopes, table.coded, table.gone, real)
    _require_names(design, family)
    _require_spread(design, family, table)
    return design, table.coded


def _require_spread(design: Design, family: str, table: CodedTable) -> None:
    """Refuses a response of one value that the effects can give, with a sigma: at σ -> 0 the posterior is
    σ^(effects - rows), which has no end."""
    effects = (
        len(design["matrix"]["labels"]) + 1 + sum(g["size"] * len(g["matrix"]["labels"]) for g in design["groups"])
    )
    y = table.raw[design["response"]["y"]]
    seen = y[~y.isnan()]
    if "sigma" not in FAMILIES[family].beside or design["response"]["status"] or design["offsets"]:
        return
    if len(seen) > effects and bool((seen == seen[0]).all()) and (seen[0] == 0 or _has_constant(design, table)):
        raise PpgenError(
            f"the response {design['response']['y']!r} is {float(seen[0]):g} in every row that has a value, so that "
            f"the posterior of a {family}'s sigma has no end at 0 and cannot be normalised; name a response that varies"
        )


def _has_constant(design: Design, table: CodedTable) -> bool:
    """Whether some sum of the effects is 1 in every row: an intercept, or a coefficient for every level."""
    own = design["matrix"]
    if design["intercept"] or any([] in g["matrix"]["terms"] for g in design["groups"]) or not own["terms"]:
        return True
    x = matrix(own, table.coded, torch.zeros((), dtype=torch.float64)).nan_to_num()
    one = torch.ones(len(x), dtype=x.dtype)
    return bool((x @ (torch.linalg.pinv(x) @ one) - one).abs().max() < _TOLERANCE)


def _arguments(matrices: list[Matrix], offsets: list[str], groups: list[Group]) -> list[str]:
    parts = [part for own in matrices for term in own["terms"] for part in term]
    found = [n for part in parts for n in ([part["codes"]] if "codes" in part else _names(_tree(part["x"])))]
    found += [n for text in offsets for n in _names(_tree(text))]
    return list(dict.fromkeys([*found, *(g["codes"] for g in groups)]))


def _require_names(design: Design, family: str) -> None:
    """Refuses a response or group called like a latent, and a column that formulae takes for the intercept."""
    response = design["response"]
    names = [response["y"], *(g["name"] for g in design["groups"])]
    own = {*_OWN, *FAMILIES[family].beside}
    own |= {f"{s}_{g['name']}" for g in design["groups"] for s in ("sd", "chol", "corr", "z", "r")}
    for gap in design.get("gaps", []):
        own |= {f"{gap['name']}_unobserved", *(f"{s}_{gap['name']}" for s in ("alpha", "beta", "sigma", "z", "seen"))}
    if clash := [n for n in names if n in own] + [n for n in design["arguments"] if n == "Intercept"]:
        raise PpgenError(
            f"the column {clash[0]!r} is called like a site of the regression's own; rename it, as with --columns "
            f"{clash[0]}_={clash[0]}"
        )


def _without_intercept(own: Matrix) -> Matrix:
    labels = [label for label in own["labels"] if label != "Intercept"] if [] in own["terms"] else own["labels"]
    return {"terms": [t for t in own["terms"] if t], "labels": labels}


def _squeezed(text: str) -> str:
    return re.sub(r"[\s()]", "", text)


def _written(terms: str) -> dict[str, str]:
    """The calls of some terms, by their text without parentheses."""
    calls = [ast.unparse(n) for n in ast.walk(_tree(terms)) if isinstance(n, ast.Call)]
    written = {_squeezed(call): call for call in calls}
    if both := [(call, written[_squeezed(call)]) for call in calls if call != written[_squeezed(call)]]:
        raise PpgenError(
            f"{both[0][0]!r} and {both[0][1]!r} differ by their parentheses alone, and cannot be told apart in one "
            "formula; compute one of them as a column of the table"
        )
    return written


def _matrix(terms: str, table: CodedTable) -> tuple[Matrix, list[str]]:
    """The design of some terms, and their offsets.

    Calls are computed as they are written: the names that formulae gives them have lost the parentheses within, log(a +
    b / 2) of log((a + b) / 2).
    """
    written = _written(terms)
    read = _apart(_formulae(terms, table), table, written)
    made: Matrix = {"terms": [], "labels": []}
    offsets: list[str] = []
    for term in read.terms.values():
        if term.kind == "offset":
            call = written.get(_squeezed(term.name), term.name)
            offsets.append(translated(call.removeprefix("offset(").removesuffix(")"), table.numbers))
        else:
            components = [] if term.kind == "intercept" else term.components
            made["terms"].append([_part(component, table, written) for component in components])
            made["labels"] += [
                _label(str(v), components, written) for v in (term.labels if components else ["Intercept"])
            ]
    _require_same(made, offsets, read, terms, table)
    return made, offsets


def _apart(read: Any, table: CodedTable, written: Mapping[str, str]) -> Any:
    """Terms with components of their own: of g / x formulae has one g in g and in g:x, with the contrasts of the
    latter, so that they are read again as it has written them out."""
    terms = [t for t in read.terms.values() if t.kind not in ("intercept", "offset")]
    components = [c for t in terms for c in t.components]
    if len(components) == len({id(c) for c in components}):
        return read
    kinds = {t.kind for t in read.terms.values()}
    names = [":".join(written.get(_squeezed(c.name), c.name) for c in t.components) for t in terms]
    offsets = [written.get(_squeezed(n), n) for n, t in read.terms.items() if t.kind == "offset"]
    return _formulae(" + ".join(["1" if "intercept" in kinds else "0", *names, *offsets]), table)


def _label(label: str, components: Sequence[Any], written: Mapping[str, str]) -> str:
    """formulae's, with calls and fractions as they are written: in float32 it has 0.10000000149011612."""
    for name in [c.name for c in components if c.kind == "numeric"]:
        own = written.get(_squeezed(name), name)
        label = label.replace(name, own) if own.count("(") > name.count("(") else label
    levels = [v for c in components if c.kind == "categoric" for v in c.levels if isinstance(v, float)]
    for v in levels:
        label = label if v.is_integer() else label.replace(f"[{v}]", f"[{text_of(v)}]")
    return label


def _one_level(name: str, values: list[str]) -> PpgenError:
    return PpgenError(
        f"the column {name!r} has the one level {values[0]!r} in these data, which tell nothing of its effect beside "
        "an intercept's; leave it out of the formula"
    )


def _part(component: Any, table: CodedTable, written: Mapping[str, str]) -> Part:
    if component.kind == "categoric":
        column, *others = [n for n in component.var_names if n in table.frame]
        if others:
            raise PpgenError(f"{component.name!r} is of several columns; compute it as one of the table")
        values = [text_of(v) for v in component.levels]
        name = table.codes([column], values, new=False)
        order = [values.index(v) for v in table.levels[name].values]
        contrasts = np.asarray(component.contrast_matrix.matrix, dtype=float)[order]
        n = len(order)
        if not contrasts.size:
            raise _one_level(column, values)
        for first in (0, 1):
            if np.array_equal(contrasts, np.eye(n)[:, first:]):
                return {"codes": name, "indicators": [n, first]}
        return {"codes": name, "contrasts": contrasts.tolist()}
    if component.name.partition("(")[0] in ("bs", "poly"):
        return polynomials(component, table.numbers)
    return {"x": translated(written.get(_squeezed(component.name), component.name), table.numbers)}


def _groups(block: Block, own: Matrix, offsets: list[str], table: CodedTable) -> list[Group]:
    if offsets or not own["terms"]:
        raise PpgenError(f"the group effects ({block.terms} | ...) have an offset or no terms; leave them out")
    return [_group(own, factor, block.correlated, table) for factor in block.factors]


def _group(own: Matrix, factor: tuple[str, ...], correlated: bool, table: CodedTable) -> Group:
    values = table.values(factor[0]) if len(factor) == 1 else table.joined(factor)
    name = table.codes(factor, values, new=True)
    size = len(table.levels[name].values)
    if size < 2:
        raise PpgenError(
            f"the column {':'.join(factor)!r} has one group in these data, which tells nothing of a spread; leave its "
            "effects out"
        )
    correlated = correlated and len(own["labels"]) > 1
    return {"name": "_".join(factor), "codes": name, "size": size, "matrix": own, "correlated": correlated}


def _named_apart(groups: list[Group]) -> list[Group]:
    """Two blocks of one factor have names of their own."""
    seen: dict[str, int] = {}
    effects: dict[str, set[str]] = {}
    for group in groups:
        labels = group["matrix"]["labels"]
        before = effects.setdefault(group["name"], set())
        if both := [label for label in labels if label in before]:
            slopes = [label for label in labels if label not in before]
            instead = f"write 0 + {' + '.join(slopes)} in the second" if slopes else "leave one of them out"
            raise PpgenError(
                f"two terms have the effect {both[0]!r} of {group['codes']!r}, and data tell the sum of both alone; "
                f"{instead} ((x | g) is (1 + x | g), and uncorrelated (x || g))"
            )
        before |= set(labels)
        seen[group["name"]] = seen.get(group["name"], 0) + 1
        if seen[group["name"]] > 1:
            group["name"] += f"_{seen[group['name']]}"
    return groups


def _formulae(terms: str, table: CodedTable) -> Any:
    """The common effects of some terms at the table, as formulae reads them."""
    try:
        from formulae import design_matrices
    except ImportError as e:
        raise PpgenError(
            f"a formula is read by the package formulae, which is not installed; {install('formula')}"
        ) from e
    functions = {name: getattr(np, name) for name in FUNCTIONS} | {"np": np, "numpy": np}
    try:
        with redirect_stdout(StringIO()), np.errstate(all="ignore"):  # where it prints that an error comes
            read = design_matrices(terms, table.frame, na_action="error", extra_namespace=functions).common
    except Exception as e:  # of many kinds
        if re.search(r"knots\s*=\s*[\[(]", terms):
            raise PpgenError(
                f"the terms {terms!r} have knots as a list, which formulae does not read; write df=, whose knots are "
                "quantiles of the column, or compute the columns of the spline in the table"
            ) from e
        for name in _names(_tree(terms)):
            if name in table.raw.words and len(values := table.values(name)) == 1:
                raise _one_level(name, values) from e
        raise PpgenError(f"the terms {terms!r} cannot be read: {first_line(e).rstrip('.')}; mend the formula") from e
    if read is None:
        raise PpgenError(f"the terms {terms!r} are none; write 1 for an intercept alone")
    return read


def _require_same(made: Matrix, offsets: Sequence[str], read: Any, terms: str, table: CodedTable) -> None:
    """Refuses other columns than formulae's, as a call that means something else there may make."""
    of_offsets = {t.name: t.kind == "offset" for t in read.terms.values()}
    like = torch.zeros((), dtype=torch.float64)
    ours = [torch.as_tensor(compute(text, table.numbers)).expand(len(table.frame))[:, None] for text in offsets]
    ours += [matrix(made, table.coded, like)] if made["terms"] else []
    names = [n for is_offset in (True, False) for n, own in of_offsets.items() if own == is_offset]
    theirs = [np.broadcast_to(np.ravel(read[n]), len(table.frame)) if of_offsets[n] else read[n] for n in names]
    own, other = torch.cat(ours, -1).numpy(), np.column_stack(theirs).astype(float)
    scale = np.abs(other).max(0) + 1.0
    if own.shape != other.shape or (np.abs(own - other) / scale).max() > _TOLERANCE:
        raise PpgenError(
            f"the columns of {terms!r} are not those that formulae makes of it; compute what is special in it as "
            "columns of the table, and name these"
        )
