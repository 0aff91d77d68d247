"""The Pyro program that a formula stands for, as text: the operations of models/regression.py, with its numbers."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist

from ppgen.errors import PpgenError
from ppgen.formula.design import STARTS, Design, Group, Matrix, Part, dimensions, width
from ppgen.formula.families import FAMILIES
from ppgen.formula.priors import Priors

_OWN = ("alpha", "below", "beta", "cutpoints", "design", "eta", "means", "shares", "zero")
_OF_GROUP = ("chol", "design", "factor", "prior", "r", "sd", "unit", "z")


def program_text(formula: str, family: str, design: Design, priors: Priors, name: str, file: str) -> str:
    """
    Args:
        name: of the class.
        file: that is shown in the usage.
    """
    if gaps := design.get("gaps"):
        raise PpgenError(
            f"the column {gaps[0]['name']!r} has missing cells, and a program that draws them is not printed; print "
            "that of the complete rows (--missing drop)"
        )
    needed, optional = _arguments(design)
    own = {*_OWN, *priors["beside"], *(f"{s}_{g['name']}" for g in design["groups"] for s in _OF_GROUP)}
    own |= {"status"} - {design["response"]["status"]}
    if clash := [n for n in (*needed, *optional) if n in own]:
        raise PpgenError(f"the column {clash[0]!r} is called like a name of the program's own; rename it to print it")
    likelihood = _likelihood(family)
    body = [*_signature(design), *_predictor(design, priors, family), *_response(design, priors, family)]
    model = "\n".join(f"        {line}" if line else "" for line in body[1:])
    dims, coords = dimensions(design, family)
    levels = {k: f"Levels({list(c)!r}, {_listed(list(v))}, new={new})" for k, (c, v, new) in design["levels"].items()}
    attributes = [f"starts = {STARTS}", f"codes = {_mapping(levels)}"]
    attributes += [f"dims = {_mapping({k: repr(v) for k, v in dims.items()})}"] if dims else []
    attributes += [f"coords = {_mapping({k: _listed(v) for k, v in coords.items() if v})}"]
    if design["response"]["categories"] and design["response"]["y"] not in design["levels"]:
        attributes.append(f"categories = {{{design['response']['y']!r}: {design['response']['categories']}}}")
    text = (
        f'class {name}(ppgen.Program):\n    """{_escaped(formula)}, family {family}."""\n\n'
        + "\n".join(f"    {line}" for line in "\n".join(attributes).split("\n"))
        + f"\n\n    {body[0]}\n{model}\n"
    )
    head = (
        f'"""{_escaped(formula)}, family {family}: the program that the formula stands for.\n\n'
        f"    ppgen fit {file} --data TABLE\n\n"
        "The numbers are those of the table that it was written for: means of columns, levels, and the scales of the\n"
        'priors, which are yours to change.\n"""\n\n'
    )
    return head + _imports(likelihood + text) + "\n\n\n" + likelihood + "\n\n" + text


def _escaped(formula: str) -> str:
    return formula.replace("\\", "\\\\").replace('"""', "'''").replace('"', "'")


def _imports(text: str) -> str:
    words = set(re.findall(r"\b[A-Z]\w+", text))
    names = sorted(n for n in words if hasattr(dist, n) and n != "Levels")
    lines = ["import pyro", "import torch", f"from pyro.distributions import {', '.join(names)}", "", "import ppgen",
             "from ppgen.data import Levels"]  # fmt: skip
    lines += ["from ppgen.distributions.status import WithStatus"] * ("WithStatus(" in text)
    lines += ["from ppgen.formula.centring import of_latents"] * ("of_latents(" in text)
    lines += ["from ppgen.formula.design import row_product"] * ("row_product(" in text)
    lines += ["from ppgen.formula.expressions import piecewise"] * ("piecewise(" in text)
    return "\n".join(lines)


def _likelihood(family: str) -> str:
    source = inspect.getsource(FAMILIES[family].likelihood)
    source = re.sub(r": Tensor| -> Any", "", source)
    return re.sub(r"^def \w+", "def likelihood", source)


def _listed(values: Sequence[str]) -> str:
    return repr(list(values))


def _mapping(entries: dict[str, str]) -> str:
    if not entries:
        return "{}"
    return "{\n" + "".join(f"    {k!r}: {v},\n" for k, v in entries.items()) + "}"


def _arguments(design: Design) -> tuple[list[str], list[str]]:
    """Needed, and optional."""
    response = design["response"]
    trials = [response["trials"]] if isinstance(response["trials"], str) else []
    optional = [n for n in (response["status"], response["y"]) if n is not None]
    needed = [n for n in dict.fromkeys([*design["arguments"], *trials]) if n not in optional]
    return needed, optional


def _signature(design: Design) -> list[str]:
    needed, optional = _arguments(design)
    lines = [f"def model({', '.join(['self', *needed, *(f'{n}=None' for n in optional)])}):"]
    lines.append("zero = torch.zeros(())")
    used = {n for own in _matrices(design) for term in own["terms"] for part in term for n in _numbers(part)}
    used |= {n for text in design["offsets"] for n in _words(text)}
    trials = design["response"]["trials"]
    used |= {trials} if isinstance(trials, str) else set()
    for n in needed:
        if n in used:
            lines.append(f"{n} = {n}.to(zero)")
    return lines


def _matrices(design: Design) -> list[Matrix]:
    return [design["matrix"], *(g["matrix"] for g in design["groups"])]


def _numbers(part: Part) -> list[str]:
    return [] if "codes" in part else _words(part["x"])


def _words(text: str) -> list[str]:
    return re.findall(r"(?<![\w.])[A-Za-z_]\w*", text)


def _predictor(design: Design, priors: Priors, family: str) -> list[str]:
    several = design["response"]["categories"] - 1 if family == "categorical" else 0
    slopes, lines, terms = design["matrix"], list[str](), ["zero"]
    if slopes["terms"]:
        loc, scale = (_vector(list(v)) for v in zip(*priors["slopes"], strict=True))
        prior = f"Normal({loc}, {scale}).to_event(1)"
        if several:
            size = f"[{len(priors['slopes'])}, {several}]"
            prior = f"Normal({loc}[:, None], {scale}[:, None]).expand({size}).to_event(2)"
        lines += [*_columns("design", slopes), f"means = {_vector(design['means'])}"]
        lines.append(f'beta = pyro.sample("beta", {prior})')
        terms.append("(design - means) @ beta")
    if design["intercept"]:
        loc, scale = map(repr, priors["intercept"])
        shape = f".expand([{several}]).to_event(1)" if several else ""
        lines.append(f'alpha = pyro.sample("alpha", Normal(zero + {loc}, {scale}){shape})')
        at_zero = "alpha - means @ beta" if slopes["terms"] else "alpha - zero"
        lines.append(f'pyro.deterministic("Intercept", {at_zero})')
        terms.append("alpha")
    lines.append(f"eta = {' + '.join(terms)}")
    for group in design["groups"]:
        lines += _varying(group, priors["spread"][group["name"]])
    return lines + [f"eta = eta + {offset}" for offset in design["offsets"]]


def _varying(group: Group, scales: list[float]) -> list[str]:
    name, n = group["name"], len(scales)
    lines = ["", f'sd_{name} = pyro.sample("sd_{name}", HalfNormal({_vector(scales)}).to_event(1))']
    if group["correlated"]:
        lines.append(f'chol_{name} = pyro.sample("chol_{name}", LKJCholesky({n}, zero + 1.0))')
        lines.append(f'pyro.deterministic("corr_{name}", chol_{name} @ chol_{name}.mT)')
    before, prior, effects = _effects(group, scales)
    lines += [*before, f'with pyro.plate("{name}", {group["size"]}):']
    lines.append(f'    z_{name} = pyro.sample("z_{name}", {prior})')
    lines.append(f'    r_{name} = pyro.deterministic("r_{name}", {effects}, event_dim=1)')
    lines += _columns(f"design_{name}", group["matrix"], rows=group["codes"])
    return [*lines, f"eta = eta + (r_{name}[{group['codes']}] * design_{name}).sum(-1)"]


def _effects(group: Group, scales: list[float]) -> tuple[list[str], str, str]:
    """What stands before the plate, the prior of the latents, and the effects of them."""
    name, own, correlated, n = group["name"], group.get("centred", []), group["correlated"], len(scales)
    if not any(own):
        z = f"(z_{name} @ chol_{name}.mT)" if correlated else f"z_{name}"
        return [], f"Normal(zero.new_zeros({n}), 1.0).to_event(1)", f"sd_{name} * {z}"
    unit = f"unit_{name} = {_vector(scales)}"
    if all(own):
        sd = f"sd_{name} / unit_{name}"
        prior = f"MultivariateNormal(zero.new_zeros({n}), scale_tril=({sd})[:, None] * chol_{name})"
        if not correlated:
            prior = f"Normal(zero.new_zeros({n}), {sd}).to_event(1)"
        return [unit], prior, f"unit_{name} * z_{name}"
    chol, effects = ("None", f"z_{name} * factor_{name}")
    if correlated:
        chol, effects = (f"chol_{name}", f"z_{name} @ factor_{name}.mT")
    made = f"prior_{name}, factor_{name} = of_latents(sd_{name}, {chol}, {own}, unit_{name})"
    return [unit, made], f"prior_{name}", effects


def _columns(name: str, own: Matrix, rows: str = "") -> list[str]:
    labels = list(own["labels"])
    lines = [f"{name} = torch.cat(["]
    for term in own["terms"]:
        parts = [_part(part) for part in term]
        n = math.prod(map(width, term))
        shown, labels = labels[:n], labels[n:]
        text = f"row_product({', '.join(parts)})" if len(parts) > 1 else parts[0] if parts else ""
        lines.append(f"    {text or f'zero.new_ones(len({rows}), 1)'},  # {', '.join(shown)}")
    return [*lines, "], -1)"]


def _part(part: Part) -> str:
    if "indicators" in part:
        n, first = part["indicators"]
        return f"torch.eye({n}).to(zero)[:, {first}:][{part['codes']}]"
    if "codes" in part:
        return f"{_vector(part['contrasts'])}[{part['codes']}]"
    if "breaks" in part:
        return f"piecewise({part['x']}, {_vector(part['breaks'])}, {_vector(part['coefs'])})"
    text = part["x"]
    return f"{text}[:, None]" if text.isidentifier() else f"({text})[:, None]"


def _vector(values: Any) -> str:
    return f"zero.new_tensor({values!r})"


def _response(design: Design, priors: Priors, family: str) -> list[str]:
    response = design["response"]
    y, lines = response["y"], [""]
    beside = ["eta"]
    if family == "ordered":
        lines.append(f'shares = pyro.sample("shares", Dirichlet(zero.new_ones({response["categories"]})))')
        lines.append("below = shares.cumsum(-1)[..., :-1].clamp(1e-7, 1 - 1e-7)")
        lines.append("cutpoints = below.log() - (-below).log1p()")
        at_zero = "cutpoints + means @ beta" if design["matrix"]["terms"] else "cutpoints + zero"
        lines.append(f'pyro.deterministic("cutpoints", {at_zero}, event_dim=1)')
        beside.append("cutpoints=cutpoints")
    for site, (prior, arguments) in priors["beside"].items():
        lines.append(f'{site} = pyro.sample("{site}", {prior}({", ".join(f"zero + {a!r}" for a in arguments)}))')
        beside.append(f"{site}={site}")
    trials = response["trials"]
    if trials is not None:
        beside.append(f"trials={trials}" if isinstance(trials, str) else f"trials=zero + {trials!r}")
    of_y = f"likelihood({', '.join(beside)})"
    if response["status"] is not None:
        status, of = response["status"], response["status_of"]
        seen = f"{status}.to(zero)" if of is None else f"{_vector(of)}[{status}]"
        lines.append(f"status = None if {status} is None else {seen}")
        of_y = f"WithStatus({of_y}, status)"
    if FAMILIES[family].kind != "categories":
        lines.append(f"{y} = None if {y} is None else {y}.to(zero)")
    needed, optional = _arguments(design)
    lines.append(f"with ppgen.rows({', '.join([*needed, *optional])}):")
    return [*lines, f'    return pyro.sample("{y}", {of_y}, obs={y})']
