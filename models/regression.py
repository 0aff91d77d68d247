r"""Regression by a formula: common effects, effects that vary over groups, and a family for the response.

    η = α + (X - means) β + Σ_g Z_g r_g[group]            α: the intercept at the means of the columns
    r_g[j] ~ N(0, diag(sd_g) L_g L_gᵀ diag(sd_g))         L_g L_gᵀ ~ LKJ(1) where they are correlated, else I
    y_i ~ family(η_i, ...)

Families and links stand in `ppgen.formula.families`, the scales of the priors in `ppgen.formula.priors`, the models of
columns with missing cells in `ppgen.formula.gaps`; r_g[j] is a factor times a latent z_gj, of which one or the other
has the scale of the effect (`ppgen.formula.centring`).

Sources: Data Analysis Using Regression and Multilevel/Hierarchical Models (Gelman & Hill 2007); Fitting Linear
Mixed-Effects Models Using lme4 (Bates et al. 2015), for the formulas; Generating random correlation matrices based on
vines and extended onion method (Lewandowski, Kurowicka, Joe 2009).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppgen
from ppgen.data.cells.levels import Levels
from ppgen.distributions.status import WithStatus
from ppgen.errors import PpgenError, first_of
from ppgen.formula.centring import centre, of_latents
from ppgen.formula.design import STARTS, Design, Group, dimensions, exposure, matrix
from ppgen.formula.expressions import compute
from ppgen.formula.families import FAMILIES
from ppgen.formula.gaps import filled, missing_cells
from ppgen.formula.priors import Priors, described, priors_of
from ppgen.formula.separation import unbounded
from ppgen.formula.spreads import far_from_zero, untold
from ppgen.gaps import require_how

log = logging.getLogger("ppgen")

_SHOWN = 12  # priors in the log
_TOO_FAR = 100  # sds from a column's mean to 0, where its effects vary over groups beside an intercept's


class Regression(ppgen.Program):
    """The program that `ppgen.models.regression` makes of a formula and a table. It has no guide: a fit gives it one.

    Args:
        formula: as it was given.
        family: of `ppgen.formula.families.FAMILIES`.
        design: terms, levels and means, of `ppgen.formula.read`.
        priors: locations and scales, of `ppgen.formula.priors`.
    """

    starts = STARTS

    def __init__(self, formula: str, family: str, design: Design, priors: Priors):
        super().__init__()
        self.formula, self.family, self.design, self.priors = formula, family, design, priors
        self.codes = {k: Levels(*v) for k, v in design["levels"].items()}
        response = design["response"]
        categories = response["categories"]
        if categories and response["y"] not in self.codes:
            self.categories = {response["y"]: categories}
        self.dims, self.coords = dimensions(design, family)
        self.drawn_columns = tuple(gap["name"] for gap in design.get("gaps", []))
        self.unreported = tuple(f"{s}_{g['name']}" for g in design["groups"] for s in ("z", "chol"))
        self.unreported += tuple(f"z_{name}" for name in self.drawn_columns)
        self.centred_latents = tuple(f"z_{g['name']}" for g in design["groups"] if any(g.get("centred", [])))
        self.exposure = exposure(design)
        self.__dict__["model"] = _named(self._joint, design)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            PpgenError: always: a formula says more than the data do.
        """
        raise PpgenError(
            "a regression is named by its formula, as in ppgen fit 'y ~ x + (1 | group)' --family gaussian"
        )

    def describe_priors(self) -> dict[str, str]:
        """Each prior in words, by the name that `priors=` of `regression` states it by."""
        return described(self.design, self.priors)

    def _joint(self, **columns: Tensor | None) -> Tensor:
        """p(y, latents | columns)."""
        design, family = self.design, FAMILIES[self.family]
        response = design["response"]
        obs = columns.pop(response["y"], None)
        status = columns.pop(response["status"], None) if response["status"] else None
        given = {k: v for k, v in columns.items() if v is not None}
        zero = _zero(given, obs)
        rows = ppgen.rows(*given.values(), status, obs)
        read, given = given, filled(design.get("gaps", []), given)
        eta, beta = self._predictor(given, zero)
        beside: dict[str, Any] = {}
        if self.family == "ordered":
            beside["cutpoints"] = self._cutpoints(zero)
            at_means = zero.new_tensor(design["means"]) @ beta if design["means"] else zero
            pyro.deterministic("cutpoints", beside["cutpoints"] + at_means, event_dim=1)  # where all columns are 0
        for site, (name, arguments) in self.priors["beside"].items():
            prior = getattr(dist, name)(*(zero + a for a in arguments))
            beside[site] = pyro.sample(site, prior)
        if design.get("gaps"):
            for place, x in missing_cells(design, self.priors["gaps"], read, zero, rows).items():
                eta = eta + (x[..., None] if self.family == "categorical" else x) * beta[place]
        trials = response["trials"]
        if trials is not None:
            beside["trials"] = given[trials].to(zero) if isinstance(trials, str) else zero + trials
        likelihood = family.likelihood(eta, **beside)
        if status is not None:
            of = response["status_of"]
            likelihood = WithStatus(likelihood, status.to(zero) if of is None else zero.new_tensor(of)[status])
        if obs is not None and family.kind != "categories":
            obs = obs.to(zero)
        with rows:
            return pyro.sample(response["y"], likelihood, obs=obs)

    def _predictor(self, given: Mapping[str, Tensor], zero: Tensor) -> tuple[Tensor, Tensor]:
        """η, (N,), or (N, K - 1) of a categorical response; one value where nothing varies by row; and β."""
        design = self.design
        several = [design["response"]["categories"] - 1] if self.family == "categorical" else []
        eta = at_means = beta = zero
        if design["matrix"]["terms"]:
            loc, scale = zero.new_tensor(self.priors["slopes"]).mT
            prior = dist.Normal(loc, scale) if not several else dist.Normal(loc[:, None], scale[:, None])
            beta = pyro.sample("beta", prior.expand([len(loc), *several]).to_event())
            means = zero.new_tensor(design["means"])
            eta, at_means = eta + (matrix(design["matrix"], given, zero) - means) @ beta, means @ beta
        if design["intercept"]:
            loc, scale = self.priors["intercept"]
            alpha = pyro.sample("alpha", dist.Normal(zero + loc, scale).expand(several).to_event())
            pyro.deterministic("Intercept", alpha - at_means)  # where all columns are 0
            eta = eta + alpha
        for group in design["groups"]:
            eta = eta + _varying(group, given, zero.new_tensor(self.priors["spread"][group["name"]]))
        for offset in design["offsets"]:
            eta = eta + compute(offset, {k: v.to(zero) for k, v in given.items()})
        return eta, beta

    def _cutpoints(self, zero: Tensor) -> Tensor:
        """The cutpoints at the means of the columns, by the probabilities of the categories there."""
        design = self.design
        shares = pyro.sample("shares", dist.Dirichlet(zero.new_ones(design["response"]["categories"])))
        below = shares.cumsum(-1)[..., :-1].clamp(1e-7, 1 - 1e-7)
        return below.log() - (-below).log1p()


def _varying(group: Group, given: Mapping[str, Tensor], scale: Tensor) -> Tensor:
    """The sum of a row's columns times the effects of its group: (N,)."""
    name = group["name"]
    sd = pyro.sample(f"sd_{name}", dist.HalfNormal(scale).to_event(1))
    chol = None
    if group["correlated"]:
        chol = pyro.sample(f"chol_{name}", dist.LKJCholesky(len(scale), scale.new_ones(())))
        pyro.deterministic(f"corr_{name}", chol @ chol.mT)
    prior, root = of_latents(sd, chol, group.get("centred", ()), scale)
    with pyro.plate(name, group["size"]):
        z = pyro.sample(f"z_{name}", prior)
        r = pyro.deterministic(f"r_{name}", z * root if chol is None else z @ root.mT, event_dim=1)
    return (r[given[group["codes"]]] * matrix(group["matrix"], given, scale)).sum(-1)


def _zero(given: Mapping[str, Tensor], obs: Tensor | None) -> Tensor:
    """A scalar of the dtype and device of the data."""
    tensors = [v for v in (*given.values(), obs) if v is not None]
    dtype = next((v.dtype for v in tensors if v.is_floating_point()), torch.get_default_dtype())
    return torch.zeros((), dtype=dtype, device=tensors[0].device if tensors else None)


def _named(run: Callable[..., Tensor], design: Design) -> Callable[..., Tensor]:
    """The model as a function of its columns, by name: what is observed, and what says how, may be left out."""
    response = design["response"]
    trials = [response["trials"]] if isinstance(response["trials"], str) else []
    needed = list(dict.fromkeys([*design["arguments"], *trials]))
    optional = [n for n in (response["status"], response["y"]) if n is not None]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(n, kind) for n in needed if n not in optional]
    parameters += [inspect.Parameter(n, kind, default=None) for n in optional]
    signature = inspect.Signature(parameters)

    def model(*values: Any, **columns: Any) -> Tensor:
        bound = signature.bind(*values, **columns)
        return run(**bound.arguments)

    model.__signature__ = signature  # type: ignore[attr-defined]
    return model


def regression(
    formula: str,
    family: str = "gaussian",
    data: Any = None,
    priors: Mapping[str, Any] | None = None,
    missing: str = "error",
) -> Regression:
    """A regression as a program, from a formula and the table that it is to be fitted to.

    Args:
        formula: "y ~ 1 + x + x:g + (1 + x | group)", as lme4, brms and bambi write it. The response may be y["yes"],
            p(successes, trials) or censored(time, status).
        family: `ppgen.formula.families.FAMILIES`.
        data: a DataFrame, a table of `ppgen.data.load`, or columns by name. Levels, means and the scales of the
            priors are taken from it; its rows are not kept.
        priors: in place of those that the scales of the data give: a scale, or a pair of location and scale, by name;
            `Regression.describe_priors` shows the names.
        missing: what is done with missing cells. "impute": those of a column on the right that is a term by itself are
            drawn by a linear (of two values: logistic) model of it on the other columns, `ppgen.formula.gaps`, as
            `COLUMN_unobserved`; those of the response by its family. "mask": those of the response are left out.
            "drop": their rows are left out.

    Returns:
        A program, without a guide; it is fitted, sampled and saved as any other, and no longer needs formulae.

    Raises:
        PpgenError: formulae is not installed; a formula, a family, a column or a prior that is not possible; effects
            over groups of a column that is more than a hundred of its sds from 0, beside an intercept's; missing
            cells in a function, an interaction, a group or words of more than two levels, if their rows are kept.
    """
    from ppgen.formula.read import design_of

    if data is None:
        raise PpgenError("regression() needs the table that is to be fitted, for levels and scales; pass data=")
    design, table = design_of(formula, family, data, require_how(missing))
    stated = priors_of(design, family, table, priors)
    made = Regression(formula, family, design, stated)
    if centre(design, made.model, _with_response(made, table)):
        made = Regression(formula, family, design, stated)
    made.missing = missing
    told = [f"{site} ~ {prior}" for site, prior in made.describe_priors().items()]
    log.info("priors, which priors= states otherwise: %s", first_of(told, _SHOWN))
    rows = _with_response(made, table)
    _say_untold(design, family, rows)
    for group in design["groups"]:
        for name, mean, sd in far_from_zero(group["matrix"], table, torch.zeros((), dtype=torch.float64)):
            _far(f"the effects over {group['codes']} are those where {name} is 0, far from its {mean:.6g} ± {sd:.3g}",
                abs(mean) > _TOO_FAR * sd, f"write center({name})")  # fmt: skip
    return made


def _with_response(program: Regression, table: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments, of the rows that have a response; numbers in float64."""
    y = table[program.design["response"]["y"]]
    own = {k: table[k] for k in inspect.signature(program.model).parameters if table.get(k) is not None}
    whole = {*(program.codes or ()), *program.categories}
    return {k: (v if k in whole else v.double())[~y.isnan()] for k, v in own.items()}


def _say_untold(design: Design, family: str, rows: Mapping[str, Tensor]) -> None:
    """Says which coefficients are what their priors say: linear functions of each other, or without a maximum."""
    centred = design["intercept"] or family == "ordered"
    if labels := untold(design["matrix"], rows, torch.zeros((), dtype=torch.float64), centred):
        log.warning(
            "%s: %s, so that each coefficient alone is what its prior says; leave one out, or report what is predicted",
            first_of(labels, _SHOWN),
            "linear functions of each other in these rows" if len(labels) > 1 else "the same in all of these rows",
        )  # fmt: skip
    elif labels := unbounded(design, family, rows):
        log.warning(
            "%s: the likelihood has no maximum, as %s, so that how far from 0 their coefficients are is what the "
            "priors say; state what you mean by priors=, or report what is predicted",
            first_of(labels, _SHOWN),
            "censored rows alone tell of some of these" if design["response"]["status"] else
            "all rows of a level have the same response, or a linear function of the columns separates them",
        )  # fmt: skip


def _far(found: str, too_far: bool, remedy: str) -> None:
    """Refuses what is so far that no draws came of it within minutes."""
    if too_far:
        raise PpgenError(f"{found}: chains do not reach a posterior that narrow; {remedy}, for effects at its mean")
    log.warning("%s: their posterior is so narrow that draws take long; %s", found, remedy)
