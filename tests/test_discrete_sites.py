"""Discrete latents that are summed out: log p(x), posterior, predictions and verdicts, against sums by hand.

Each row of CASES has `table`: log p(x, d | z) of every configuration d of the discrete sites, by unit (a row where they
are local to it, else the data set), written without Pyro; and it is held against Pyro's log joint. From it follow

    log p(x | z) = Σ_units logsumexp_d table,      p(d | z, x) = softmax_d table

and, by a sum over a grid of the continuous latents (or a closed form), log p(x).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import draws_agree, few, normal
from pyro import poutine
from torch import Tensor, nn

from ppgen import PpgenError, Program, rows
from ppgen.check import check
from ppgen.engine.density.joint import log_joint
from ppgen.enumerated import drawn_discrete, summed_terms
from ppgen.inference import compare, diagnose, fit, loglik, mcmc, posterior, predict
from ppgen.inference.evaluation.compare import held_out, loo
from ppgen.run import Run, default_dtype

Latents = dict[str, Tensor]
SETTINGS = {"objective": "enumerate", "precision": "64-true"}


pytestmark = pytest.mark.usefixtures("double")


def t(*values: Any) -> Tensor:
    return torch.tensor(values).double()


# -- the programs -------------------------------------------------------------------------------------
# Written for one draw, as Pyro's tutorials write them: `means[k]`, no leading dimensions.


class Mixture(Program):
    """k ~ Categorical, x | k ~ N: everything latent is local and discrete."""

    def __init__(self):
        super().__init__()
        self.weights, self.means = nn.Parameter(t(0.2, 0.5, 0.3)), nn.Parameter(t(-2.0, 0.3, 1.5))

    def model(self, x=None):
        with rows(x):
            k = pyro.sample("k", dist.Categorical(self.weights / self.weights.sum()))
            pyro.sample("x", dist.Normal(self.means[k], 0.7), obs=x)


class TwoSites(Program):
    """A discrete site that depends on another, and an observed one on both."""

    def __init__(self):
        super().__init__()
        self.gap = nn.Parameter(t(1.0)[0])

    def model(self, x=None):
        with rows(x):
            a = pyro.sample("a", dist.Bernoulli(0.3)).long()
            b = pyro.sample("b", dist.Categorical(t([0.7, 0.2, 0.1], [0.1, 0.3, 0.6])[a]))
            pyro.sample("x", dist.Normal(t(-1.0, 0.0, 2.0)[b] + self.gap * a, 0.8), obs=x)


START, MOVE, LEVEL = t(0.6, 0.4), t([0.9, 0.1], [0.3, 0.7]), t(-1.0, 1.0)


class Chains(Program):
    """A hidden Markov model, one sequence a row."""

    def __init__(self, steps: int = 4):
        super().__init__()
        self.steps, self.shift = steps, nn.Parameter(t(0.0)[0])

    def model(self, x):
        with rows(x):
            z = None
            for i in pyro.markov(range(self.steps)):
                z = pyro.sample(f"z_{i}", dist.Categorical(START if z is None else MOVE[z]))
                pyro.sample(f"x_{i}", dist.Normal(LEVEL[z] + self.shift, 1.0), obs=x[:, i])


class OneChain(Program):
    """One sequence, whose steps are the rows: no plate."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(t(0.0)[0])

    def model(self, x):
        z = None
        for i in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{i}", dist.Categorical(START if z is None else MOVE[z]))
            pyro.sample(f"x_{i}", dist.Normal(LEVEL[z] + self.shift, 1.0), obs=x[i])


class FixedChange(Program):
    """One change of a Poisson rate, the rates being parameters: tau is global."""

    def __init__(self):
        super().__init__()
        self.log_rates = nn.Parameter(t(4.0, 1.0).log())

    def model(self, year, disasters=None):
        n = year.shape[0]
        tau = pyro.sample("tau", dist.Categorical(logits=torch.zeros(n)))
        with rows(year):
            rate = torch.where(torch.arange(n) < tau, *self.log_rates.exp())
            pyro.sample("disasters", dist.Poisson(rate), obs=disasters)


class Recapture(Program):
    """Cormack-Jolly-Seber: animals that were marked at occasion 0, alive with probability 0.8 an interval, seen with
    probability 0.4."""

    def __init__(self):
        super().__init__()
        self.alive, self.seen = nn.Parameter(t(0.8)[0]), nn.Parameter(t(0.4)[0])

    def model(self, seen):
        with rows(seen):
            z = torch.ones(())
            for i in pyro.markov(range(seen.shape[1])):
                z = pyro.sample(f"z_{i}", dist.Bernoulli(z * self.alive))
                pyro.sample(f"seen_{i}", dist.Bernoulli(z * self.seen), obs=seen[:, i])


class GlobalAndLocal(Program):
    """A discrete site for all rows, above one in each."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(t(-1.0, 1.0))

    def model(self, x=None):
        g = pyro.sample("g", dist.Bernoulli(0.4)).long()
        with rows(x):
            k = pyro.sample("k", dist.Bernoulli(t(0.2, 0.7)[g])).long()
            pyro.sample("x", dist.Normal(self.means[k], 1.0), obs=x)


class Guided(Program):
    """With a guide that is a normal on an unconstrained scale for each latent of `sites`."""

    sites: dict[str, tuple[float, float]]  # location and scale
    link: Any = None  # from the normal to the latent

    def __init__(self):
        super().__init__()
        self.locs = nn.ParameterDict({n: nn.Parameter(torch.as_tensor(m).double()) for n, (m, _) in self.sites.items()})

    def guide(self, *_, **__):
        for name, (_, s) in self.sites.items():
            scale = torch.as_tensor(s).double().expand(self.locs[name].shape)
            q = dist.Normal(self.locs[name], scale)
            q = dist.TransformedDistribution(q, [self.link]) if self.link is not None else q
            pyro.sample(name, q.to_event(self.locs[name].dim()))


class Change(Guided):
    """The change point of a statistician: two unknown rates around an unknown year."""

    sites = {"early": (math.log(3.8), 0.32), "late": (math.log(1.0), 0.6)}
    link = torch.distributions.ExpTransform()

    def model(self, year, disasters=None):
        n = year.shape[0]
        early = pyro.sample("early", dist.Exponential(0.5))
        late = pyro.sample("late", dist.Exponential(0.5))
        tau = pyro.sample("tau", dist.Categorical(logits=torch.zeros(n)))
        with rows(year):
            rate = torch.where(torch.arange(n) < tau, early, late)
            pyro.sample("disasters", dist.Poisson(rate), obs=disasters)


class Means(Guided):
    """A mixture whose means are latent."""

    sites = {"mu": ((-1.6, 1.4), 0.6)}

    def model(self, x=None):
        mu = pyro.sample("mu", dist.Normal(t(-2.0, 2.0), 1.0).to_event(1))
        with rows(x):
            k = pyro.sample("k", dist.Categorical(t(0.4, 0.6)))
            pyro.sample("x", dist.Normal(mu[k], 1.0), obs=x)


class Occupancy(Guided):
    """Sites are occupied with probability psi; where they are, each of 3 visits finds it with probability p."""

    sites = {"psi": (0.6, 0.9), "p": (0.0, 0.6)}
    link = torch.distributions.SigmoidTransform()

    def model(self, found):
        psi = pyro.sample("psi", dist.Beta(2.0, 2.0))
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with rows(found):
            z = pyro.sample("z", dist.Bernoulli(psi))
            pyro.sample("found", dist.Bernoulli(z[..., None] * p * torch.ones(3)).to_event(1), obs=found)


class Classes(Guided):
    """Latent classes: K = 2, with shares w and answers p to J questions."""

    sites = {"p": (((0.5, 0.4, -0.1), (-0.2, 0.1, 0.5)), 1.1)}
    link = torch.distributions.SigmoidTransform()

    def model(self, q=None):
        with pyro.plate("class", 2):
            p = pyro.sample("p", dist.Beta(2.0 * torch.ones(3), 2.0).to_event(1))
        with rows(q):
            c = pyro.sample("c", dist.Categorical(t(0.6, 0.4)))
            pyro.sample("q", dist.Bernoulli(p[c, :]).to_event(1), obs=q)

    def guide(self, *_, **__):
        q = dist.TransformedDistribution(dist.Normal(self.locs["p"], 1.1), [self.link])
        with pyro.plate("class", 2):
            pyro.sample("p", q.to_event(1))


class Beside(Program):
    """A normal mean, and a mixture beside it: the guide is the posterior, so that every weight is p(x, y)."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(t(0.0)[0])

    def model(self, x=None, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with rows(x, y):
            pyro.sample("x", dist.Normal(m, 1.5), obs=x)
            k = pyro.sample("k", dist.Categorical(t(0.4, 0.6)))
            pyro.sample("y", dist.Normal(LEVEL[k], 0.5), obs=y)

    def guide(self, x, y):
        precision = 1 / 4 + len(x) / 2.25
        pyro.sample("m", dist.Normal(x.sum() / 2.25 / precision + self.shift, precision**-0.5))


# -- what is known of them ----------------------------------------------------------------------------


class Case(NamedTuple):
    """How to make a program, its columns, and its tables.

    Attributes:
        sites: the discrete sites, with the number of values of each.
        table: of latents (S, ...): log p(x, d | z), (S, units, configurations), the last site the fastest.
        by_row: whether a unit is a row.
        log_prior: of latents, log p(z), (S,).
        observed: the sites that are observed.
        grid: points (G, ...) of the continuous latents and log weights (G,) of a quadrature.
    """

    make: Callable[[], Program]
    data: dict[str, Tensor]
    sites: dict[str, int]
    table: Callable[[Latents], Tensor]
    by_row: bool
    log_prior: Callable[[Latents], Tensor] = lambda z: torch.zeros(())
    observed: tuple[str, ...] = ("x",)
    grid: Callable[[], tuple[Latents, Tensor]] | None = None

    @property
    def configurations(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(n) for n in self.sites.values())))

    def log_joint(self, z: Latents) -> Tensor:
        """log p(x, z), (S,)."""
        return self.log_prior(z) + self.table(z).logsumexp(-1).sum(-1)

    def evidence(self) -> float:
        """log p(x)."""
        if self.grid is None:
            return float(self.log_joint({}))
        z, log_weight = self.grid()
        return float((self.log_joint(z) + log_weight).logsumexp(0))


CASES: dict[str, Case] = {}


def _paths(states: int, steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(states), repeat=steps)))


def _normal(x: Tensor, loc: Tensor, scale: float) -> Tensor:
    return dist.Normal(loc, scale).log_prob(x)


X = normal(6).double() * 1.5
CASES["mixture"] = Case(
    Mixture, {"x": X}, {"k": 3}, by_row=True,
    table=lambda z: (t(0.2, 0.5, 0.3).log() + _normal(X[:, None], t(-2.0, 0.3, 1.5), 0.7))[None],
)  # fmt: skip


def _two_sites(z: Latents) -> Tensor:
    a, b = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    log_p = t(0.7, 0.3).log()[a] + t([0.7, 0.2, 0.1], [0.1, 0.3, 0.6]).log()[a, b]
    return (log_p + _normal(X[:, None], t(-1.0, 0.0, 2.0)[b] + a, 0.8))[None]


CASES["two sites"] = Case(TwoSites, {"x": X}, {"a": 2, "b": 3}, _two_sites, by_row=True)

SEQUENCES = normal(3, 4, seed=2).double() * 1.5


def _chain(x: Tensor) -> Tensor:
    """log p(x, path) of sequences (rows, steps): (1, rows, paths)."""
    path = _paths(2, x.shape[1])
    log_p = START.log()[path[:, 0]] + MOVE.log()[path[:, :-1], path[:, 1:]].sum(-1)
    return (log_p + _normal(x[:, None], LEVEL[path], 1.0).sum(-1))[None]


CASES["chains"] = Case(
    Chains, {"x": SEQUENCES}, {f"z_{i}": 2 for i in range(4)}, lambda z: _chain(SEQUENCES), by_row=True,
    observed=tuple(f"x_{i}" for i in range(4)),
)  # fmt: skip
CASES["one chain"] = Case(
    OneChain, {"x": SEQUENCES[0]}, {f"z_{i}": 2 for i in range(4)}, lambda z: _chain(SEQUENCES[:1]), by_row=False,
    observed=tuple(f"x_{i}" for i in range(4)),
)  # fmt: skip

DISASTERS = t(4, 5, 3, 5, 2, 6, 1, 0, 2, 1, 0, 1)
YEARS = {"year": torch.arange(12.0).double(), "disasters": DISASTERS}


def _change(early: Tensor, late: Tensor, keep: Tensor | None = None) -> Tensor:
    """log p(y, tau) of rates (S,): (S, 1, n); of the rows in `keep` only."""
    n = len(DISASTERS)
    before = torch.arange(n) < torch.arange(n)[:, None]  # (tau, rows)
    rate = torch.where(before, early[:, None, None], late[:, None, None])
    log_p = dist.Poisson(rate).log_prob(DISASTERS)
    return (log_p * (1.0 if keep is None else keep)).sum(-1)[:, None] - math.log(n)


CASES["fixed change"] = Case(
    FixedChange, YEARS, {"tau": 12}, lambda z: _change(t(4.0), t(1.0)), by_row=False, observed=("disasters",)
)

SEEN = t([1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0])


def _recapture(z: Latents) -> Tensor:
    path = _paths(2, 3).double()
    before = torch.cat([torch.ones(len(path), 1), path[:, :-1]], 1)
    log_p = _bernoulli(before * 0.8, path).sum(-1)
    return (log_p + _bernoulli(path * 0.4, SEEN[:, None]).sum(-1))[None]


def _bernoulli(p: Tensor, x: Tensor) -> Tensor:
    return torch.log(torch.where(x == 1, p, 1 - p).clamp_min(torch.finfo(p.dtype).eps))


CASES["recapture"] = Case(
    Recapture, {"seen": SEEN}, {f"z_{i}": 2 for i in range(3)}, _recapture, by_row=True,
    observed=tuple(f"seen_{i}" for i in range(3)),
)  # fmt: skip


def _global_and_local(z: Latents) -> Tensor:
    g, k = torch.tensor(list(itertools.product((0, 1), *[(0, 1)] * 3))).split([1, 3], 1)  # (16, 1), (16, 3)
    log_p = t(0.6, 0.4).log()[g[:, 0]] + _bernoulli(t(0.2, 0.7)[g].expand(-1, 3), k).sum(-1)
    return (log_p + _normal(X[:3], t(-1.0, 1.0)[k], 1.0).sum(-1))[None, None]


CASES["global and local"] = Case(
    GlobalAndLocal, {"x": X[:3]}, {"g": 2, "k_0": 2, "k_1": 2, "k_2": 2}, _global_and_local, by_row=False
)


def _grid(link: Any, *axes: Tensor) -> tuple[Tensor, Tensor]:
    """Points of a product grid, (G, axes), on the latents' scale, and the logs of their volumes there."""
    u = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    z = u if link is None else link(u)
    volume = sum(math.log(float(a[1] - a[0])) for a in axes)
    return z, volume + (torch.zeros(len(u)) if link is None else link.log_abs_det_jacobian(u, z).sum(-1))


def _change_grid() -> tuple[Latents, Tensor]:
    line = torch.linspace(-4.0, 3.5, 151)
    z, weight = _grid(Change.link, line, line)
    return {"early": z[:, 0], "late": z[:, 1]}, weight


CASES["change"] = Case(
    Change, YEARS, {"tau": 12}, lambda z: _change(z["early"], z["late"]), by_row=False, observed=("disasters",),
    log_prior=lambda z: sum(dist.Exponential(0.5).log_prob(z[n]) for n in ("early", "late")), grid=_change_grid,
)  # fmt: skip

MIXED = torch.cat([normal(4, seed=3) - 1.8, normal(6, seed=4) + 1.5]).double()


def _means(z: Latents, x: Tensor = MIXED) -> Tensor:
    return t(0.4, 0.6).log() + _normal(x[:, None], z["mu"][:, None, :], 1.0)


def _means_grid() -> tuple[Latents, Tensor]:
    line = torch.linspace(-6.0, 6.0, 121)
    z, weight = _grid(None, line, line)
    return {"mu": z}, weight


CASES["means"] = Case(
    Means, {"x": MIXED}, {"k": 2}, _means, by_row=True, grid=_means_grid,
    log_prior=lambda z: _normal(z["mu"], t(-2.0, 2.0), 1.0).sum(-1),
)  # fmt: skip

FOUND = t([0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1])


def _occupancy(z: Latents) -> Tensor:
    psi, p = z["psi"][:, None], z["p"][:, None, None]
    there = psi.log() + _bernoulli(p.expand(-1, *FOUND.shape), FOUND).sum(-1)
    absent = (1 - psi).log() + _bernoulli(torch.zeros(1, 1, 1), FOUND).sum(-1)
    return torch.stack([absent, there], -1)


def _occupancy_grid() -> tuple[Latents, Tensor]:
    line = torch.linspace(-7.0, 9.0, 161)
    z, weight = _grid(Occupancy.link, line, line)
    return {"psi": z[:, 0], "p": z[:, 1]}, weight


CASES["occupancy"] = Case(
    Occupancy, {"found": FOUND}, {"z": 2}, _occupancy, by_row=True, observed=("found",), grid=_occupancy_grid,
    log_prior=lambda z: dist.Beta(2.0, 2.0).log_prob(z["psi"]),
)  # fmt: skip

ANSWERS = t([1, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1])


def _classes(z: Latents) -> Tensor:
    return t(0.6, 0.4).log() + _bernoulli(z["p"][:, None], ANSWERS[:, None]).sum(-1)


CASES["classes"] = Case(
    Classes, {"q": ANSWERS}, {"c": 2}, _classes, by_row=True, observed=("q",),
    log_prior=lambda z: dist.Beta(2.0, 2.0).log_prob(z["p"]).sum((-1, -2)),
)  # fmt: skip


def _classes_evidence() -> float:
    """Given the classes, answers are beta-binomial: a sum over 2^5 assignments."""
    total = []
    for c in _paths(2, len(ANSWERS)):
        log_p = t(0.6, 0.4).log()[c].sum()
        for k in range(2):
            yes, no = ANSWERS[c == k].sum(0), (1 - ANSWERS[c == k]).sum(0)
            log_p = log_p + (_log_beta(2 + yes, 2 + no) - _log_beta(t(2.0), t(2.0))).sum()
        total.append(log_p)
    return float(torch.stack(total).logsumexp(0))


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


ALL_SUMMED = ["mixture", "two sites", "chains", "one chain", "fixed change", "recapture", "global and local"]
DRAWN = ["change", "means", "occupancy", "classes"]


@cache
def evidence(name: str) -> float:
    return _classes_evidence() if name == "classes" else CASES[name].evidence()


@cache
def fitted(name: str) -> Run:
    """At the parameters that it was made with."""
    return fit(CASES[name].make(), CASES[name].data, steps=0, **SETTINGS)


def latents(tree, name: str) -> Latents:
    """The continuous latents of a tree, (S, ...)."""
    c = CASES[name]
    sites = getattr(c.make(), "sites", {})
    return {n: torch.as_tensor(tree["posterior"][n].values).flatten(0, 1) for n in sites}


def configurations(tree, name: str) -> Tensor:
    """Which configuration each draw of each unit is in, (S, units)."""
    c, index = CASES[name], None
    for site, n in c.sites.items():
        base, _, row = site.partition("_") if name == "global and local" else (site, "", "")
        value = torch.as_tensor(np.array(tree["posterior"][base].values)).flatten(0, 1)
        value = value[:, int(row)] if row else value
        value = value.reshape(len(value), -1).round().long()
        assert value.min() >= 0 and value.max() < n, site
        index = value if index is None else index * n + value
    return index


def conditionals_agree(tree, name: str) -> None:
    """The discrete sites are draws from p(d | z, x) at each draw's own z."""
    p = CASES[name].table(latents(tree, name)).softmax(-1)  # (S or 1, units, configurations)
    index = configurations(tree, name)
    S, units, K = len(index), *p.shape[1:]
    assert index.shape == (S, units)
    p = p.expand(S, units, K)
    seen = torch.nn.functional.one_hot(index, K).double().sum(0)
    expected, error = p.sum(0), (p * (1 - p)).sum(0).sqrt()
    off = (seen - expected).abs() / (5 * error + 5)  # + 5: of those that are hardly ever seen
    often = expected > 50
    assert off.max() < 1, (seen, expected)
    assert ((seen - expected).abs() / error.clamp_min(1e-9))[often].max() < 4.5, (seen, expected)


# -- the tables against Pyro ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_tables_are_pyros_log_joints(name):
    """Σ_d exp log p(x, z, d), every assignment of every row run through Pyro, at one point z."""
    c = CASES[name]
    program = c.make()
    z = _one_draw(program, c)
    model = poutine.condition(program.model, {n: v[0] for n, v in z.items()})
    if c.by_row:  # a row at a time
        totals = []
        for i in range(len(next(iter(c.data.values())))):
            row = {k: v[i : i + 1] for k, v in c.data.items()}
            base = _log_joint(model, row, dict.fromkeys(c.sites, torch.zeros(1)), prior=list(z))
            values = [
                _log_joint(model, row, {s: t(v) for s, v in zip(c.sites, d, strict=True)}) for d in c.configurations
            ]
            totals.append(torch.stack(values) - base)
        found = torch.stack(totals)
    else:
        found = torch.stack([_log_joint(model, c.data, _assigned(name, d)) for d in c.configurations])[None]
        found = found - (c.log_prior(z) if z else 0.0)
    torch.testing.assert_close(found, c.table(z)[0], atol=1e-6, rtol=1e-6)


def _one_draw(program: Program, c: Case) -> Latents:
    if not getattr(program, "sites", {}):
        return {}
    trace = poutine.trace(program.guide).get_trace(**c.data)
    return {n: trace.nodes[n]["value"].detach()[None] for n in program.sites}


def _assigned(name: str, d: tuple[int, ...]) -> Latents:
    if name == "global and local":
        return {"g": t(d[0])[0], "k": t(*d[1:])}
    return {s: torch.tensor(v) for s, v in zip(CASES[name].sites, d, strict=True)}


def _log_joint(model: Callable, data: dict[str, Tensor], d: Latents, prior: list[str] | None = None) -> Tensor:
    """log p(x, d, z) in all; of the sites in `prior` alone where it is given."""
    fns = {
        n: site["fn"] for n, site in poutine.trace(model).get_trace(**data).nodes.items() if site["type"] == "sample"
    }
    d = {n: v.to(fns[n].sample().dtype) for n, v in d.items()}
    trace = poutine.trace(poutine.condition(model, d)).get_trace(**data)
    trace.compute_log_prob()
    sums = {n: site["log_prob_sum"].detach() for n, site in trace.nodes.items() if "log_prob_sum" in site}
    return sum((v for n, v in sums.items() if prior is None or n in prior), torch.zeros(()))


# -- fit and loglik -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_SUMMED)
@pytest.mark.parametrize("particles", [1, 16])
def test_the_elbo_of_what_is_summed_out_is_exact(name, particles):
    c = CASES[name]
    run = fit(c.make(), c.data, steps=2, lr=1e-12, log_every=1, particles=particles, **SETTINGS)
    assert run.metrics["elbo"] == pytest.approx([evidence(name)] * 2, abs=1e-6)


@pytest.mark.parametrize("name", ALL_SUMMED)
def test_log_p_of_x_is_exact_where_everything_is_summed_out(name):
    c = CASES[name]
    found = loglik(fitted(name), c.data)
    (bound,) = found.bounds
    assert (bound.name, bound.kind) == ("exact", "exact")
    assert found.per == ("row" if c.by_row else "data set")
    assert bound.values == pytest.approx(c.table({})[0].logsumexp(-1).numpy(), abs=1e-6)
    assert (bound.se == 0).all()


@pytest.mark.parametrize("name", ["mixture", "recapture"])
def test_other_rows_than_those_that_were_fitted(name):
    c = CASES[name]
    some = {k: v[[4, 1, 4]] for k, v in c.data.items()}
    expected = c.table({})[0].logsumexp(-1)[[4, 1, 4]]
    assert loglik(fitted(name), some).best.values == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("name", [n for n in DRAWN if n != "classes"])
def test_the_elbo_where_some_are_drawn(name):
    """E_q[log p(x, z) - log q(z)] by quadrature, against the mean of many steps."""
    c = CASES[name]
    program = c.make()
    z, weight = c.grid()
    log_q = _log_q(program, z)
    q = (log_q + weight).exp()
    assert float(q.sum()) == pytest.approx(1, abs=1e-3)
    log_w = c.log_joint(z) - log_q
    exact = float((q * log_w).sum())
    steps, particles = 100, 16
    run = fit(program, c.data, steps=steps, lr=1e-12, log_every=1, particles=particles, engine="trace", **SETTINGS)
    error = float((q * (log_w - exact) ** 2).sum()) ** 0.5 / (steps * particles) ** 0.5
    assert run.metrics["elbo"].mean() == pytest.approx(exact, abs=4 * error)
    found = loglik(fitted(name), c.data, particles=2000).bounds[0]
    assert abs(found.values.sum() - exact) < 4 * float((q * (log_w - exact) ** 2).sum() / 2000) ** 0.5


def _log_q(program: Guided, z: Latents) -> Tensor:
    """log q(z) of many points."""
    total: Any = 0.0
    for name, (_, scale) in program.sites.items():
        q: Any = dist.Normal(program.locs[name].detach(), torch.as_tensor(scale).double())
        q = dist.TransformedDistribution(q, [program.link]) if program.link is not None else q
        log_q = q.log_prob(z[name])
        total = total + log_q.reshape(len(log_q), -1).sum(-1)
    return total


@pytest.mark.parametrize("name", DRAWN)
def test_the_importance_weighted_bound_where_some_are_drawn(name):
    c = CASES[name]
    found = loglik(fitted(name), c.data, particles=2000)
    assert found.per == "data set"  # the rows share z
    assert [(b.name, b.kind) for b in found.bounds] == [("elbo", "lower"), ("iw", "lower")]
    assert found.best.mean_se < 0.1
    assert abs(found.best.values.sum() - evidence(name)) < 4 * found.best.mean_se


BESIDE = {"x": normal(8, seed=5).double(), "y": normal(8, seed=6).double()}


def _beside_evidence() -> float:
    cov = 2.25 * torch.eye(8).double() + 4.0
    x = dist.MultivariateNormal(torch.zeros(8).double(), covariance_matrix=cov).log_prob(BESIDE["x"])
    y = (t(0.4, 0.6).log() + _normal(BESIDE["y"][:, None], LEVEL, 0.5)).logsumexp(-1).sum()
    return float(x + y)


@pytest.mark.parametrize("particles", [1, 8, 12])
def test_every_weight_of_the_posterior_is_the_evidence(particles):
    run = fit(Beside(), BESIDE, steps=2, lr=1e-12, log_every=1, particles=particles, **SETTINGS)
    assert run.metrics["elbo"] == pytest.approx([_beside_evidence()] * 2, abs=1e-8)
    found = loglik(run, BESIDE, particles=particles, keep_weights=True)
    assert found.log_w == pytest.approx(_beside_evidence(), abs=1e-8)
    tree = posterior(run, BESIDE, draws=max(particles, 2))
    stats = tree["sample_stats"]
    assert (stats["log_p"] - stats["log_q"]).values == pytest.approx(_beside_evidence(), abs=1e-8)


# -- posterior ----------------------------------------------------------------------------------------


ONE_BY_ONE = ("one chain", "global and local")  # a scalar index takes its value out of torch: 5 000 runs of Python


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in ONE_BY_ONE else n for n in CASES])
def test_discrete_sites_are_drawn_from_their_exact_conditional(name):
    c = CASES[name]
    draws = 20_000 if name in ("mixture", "fixed change") else 5000
    tree = posterior(fitted(name), c.data, draws=draws, predictive=False, prior=False)
    conditionals_agree(tree, name)


@pytest.mark.parametrize("name", DRAWN)
def test_weights_of_the_draws_leave_the_discrete_sites_summed_out(name):
    """log_p - log_q is log p(x, z) - log q(z), whether or not both hold log p(d | z, x) as well."""
    c = CASES[name]
    tree = posterior(fitted(name), c.data, draws=50, predictive=False, prior=False)
    z = latents(tree, name)
    expected = c.log_joint(z) - _log_q(c.make(), z)
    found = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values.ravel()
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_groups_and_shapes(name):
    c = CASES[name]
    tree = posterior(fitted(name), c.data, draws=7)
    n = len(next(iter(c.data.values())))
    names = ("g", "k") if name == "global and local" else tuple(c.sites)
    for site in names:
        local = c.by_row or site == "k"
        assert tree["posterior"][site].shape == tree["prior"][site].shape == (1, 7, *([n] if local else [])), site
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        # with the latents of a row summed out, its sites have one likelihood together
        together = group == "log_likelihood" and c.by_row and len(c.observed) > 1
        assert set(tree[group].data_vars) == ({"+".join(c.observed)} if together else set(c.observed)), group
        for v in tree[group].data_vars.values():
            assert v.shape[:2] == (1, 7)


@pytest.mark.parametrize("name", DRAWN)
def test_log_likelihoods_are_given_the_draw(name):
    """log p(x_i | z) with a local site summed out (given d_i, leave-one-out is nats off); log p(x_i | z, d) with a
    global one, whose draw the rows share."""
    c = CASES[name]
    tree = posterior(fitted(name), c.data, draws=20, predictive=False, prior=False)
    z, index = latents(tree, name), configurations(tree, name)
    (site,) = c.observed
    found = torch.as_tensor(tree["log_likelihood"][site].values)[0]
    if name == "change":
        rate = torch.where(torch.arange(12) < index, z["early"][:, None], z["late"][:, None])
        torch.testing.assert_close(found, dist.Poisson(rate).log_prob(DISASTERS))
        return
    torch.testing.assert_close(found, c.table(z).logsumexp(-1))


# -- predictions ---------------------------------------------------------------------------------------


def _moments_of_a_change(weights: Tensor, early: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of Poisson draws by row, of weights (S, tau) that sum to 1."""
    before = (torch.arange(12) < torch.arange(12)[:, None]).double()
    rate = early[:, None, None] * before + late[:, None, None] * (1 - before)  # (S, tau, rows)
    first = (weights[..., None] * rate).sum((0, 1))
    second = (weights[..., None] * (rate + rate**2)).sum((0, 1))
    return first, second - first**2


def _change_moments(name: str) -> tuple[Tensor, Tensor]:
    """Of the guide's rates: q(z) p(tau | z, y)."""
    if name == "fixed change":
        return _moments_of_a_change(_change(t(4.0), t(1.0)).softmax(-1)[:, 0], t(4.0), t(1.0))
    z, weight = CASES[name].grid()
    q = (_log_q(Change(), z) + weight).exp()
    return _moments_of_a_change(q[:, None] * CASES[name].table(z).softmax(-1)[:, 0], z["early"], z["late"])


@pytest.mark.parametrize("name", ["fixed change", "change"])
def test_predictions_of_a_change_point_are_of_its_posterior(name):
    """By the prior of tau they would be the same in every year but for a slope: 2.5 where there are 4."""
    mean, var = _change_moments(name)
    tree = posterior(fitted(name), YEARS, draws=4000)
    draws_agree(tree["posterior_predictive"]["disasters"].values[0], mean, var)
    if name == "fixed change":
        uniform = torch.full((1, 12), 1 / 12)
        draws_agree(tree["prior_predictive"]["disasters"].values[0], *_moments_of_a_change(uniform, t(4.0), t(1.0)))


@pytest.mark.parametrize("name", ["fixed change", "change"])
@pytest.mark.parametrize("reopened", [False, True], ids=["at hand", "reopened"])
def test_predict_of_a_change_point_uses_its_posterior(name, reopened, tmp_path):
    mean, var = _change_moments(name)
    run = fitted(name)
    if reopened:
        program = CASES[name].make()
        fit(program, YEARS, steps=0, out=tmp_path / "run", **SETTINGS)
        run = Run.load(tmp_path / "run", CASES[name].make())
    tree = predict(run, {"year": YEARS["year"]}, draws=2000)
    draws_agree(tree["predictions"]["disasters"].values[0], mean, var)


def test_predictions_of_a_mixture_are_of_the_rows_components():
    p = CASES["mixture"].table({})[0].softmax(-1)
    mean = p @ t(-2.0, 0.3, 1.5)
    tree = posterior(fitted("mixture"), CASES["mixture"].data, draws=4000)
    draws_agree(tree["posterior_predictive"]["x"].values[0], mean, 0.49 + p @ t(-2.0, 0.3, 1.5) ** 2 - mean**2)
    w, m = t(0.2, 0.5, 0.3), t(-2.0, 0.3, 1.5)
    variance = 0.49 + (w * m**2).sum() - (w * m).sum() ** 2
    draws_agree(tree["prior_predictive"]["x"].values[0], (w * m).sum().expand(6), variance.expand(6))


def test_a_site_that_was_seen_is_occupied_in_every_draw():
    tree = posterior(fitted("occupancy"), {"found": FOUND}, draws=500, prior=False)
    seen = FOUND.sum(1) > 0
    z = tree["posterior"]["z"].values[0]
    assert (z[:, seen.numpy()] == 1).all() and 0 < z[:, ~seen.numpy()].mean() < 1
    again = tree["posterior_predictive"]["found"].values[0]
    assert (again.max(-1) <= z).all()  # nothing is found where nothing is


class Lines(Program):
    """A mixture of two regressions, for rows that are new."""

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(t(-1.0, 2.0))

    def model(self, x, y=None):
        with rows(x):
            k = pyro.sample("k", dist.Categorical(t(0.3, 0.7)))
            pyro.sample("y", dist.Normal(self.slopes[k] * x, 0.5), obs=y)


def test_predict_draws_a_new_rows_site_from_the_model():
    run = fit(Lines(), {"x": X, "y": 2 * X}, steps=0, **SETTINGS)
    new = t(1.0, 3.0)
    tree = predict(run, {"x": new}, draws=4000)
    draws_agree(tree["predictions"]["y"].values[0], 1.1 * new, 0.25 + 0.21 * 9 * new**2)


# -- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", few(DRAWN, "means"))
def test_diagnose(name):
    c = CASES[name]
    found = diagnose(fitted(name), c.data, draws=1000, particles=2000)
    assert found.khat.shape == (1,) and found.khat[0] < 0.7
    assert abs(found.bounds.best.values.sum() - evidence(name)) < 4 * found.bounds.best.mean_se
    assert set(getattr(c.make(), "sites", {})) | set(c.sites) <= set(found.tree["posterior"].data_vars)
    if c.grid is not None:
        z, weight = c.grid()
        p = (c.log_joint(z) + weight).softmax(0)
        site, value = next(iter(z.items()))
        value = value.reshape(len(value), -1)[:, 0]
        mean = float((p * value).sum())
        sd = float((p * (value - mean) ** 2).sum()) ** 0.5
        table = found.moments
        row = next(i for i in table.index if i == site or str(i).startswith(f"{site}["))
        n = float(found.ess[0]) / 2  # half as many draws as weights
        assert table.loc[row, "corrected_mean"] == pytest.approx(mean, abs=4 * sd / n**0.5)


def test_leave_one_out_of_a_mixture():
    """log p(x_i | x_-i) by quadrature."""
    z, weight = CASES["means"].grid()
    by_row = _means(z).logsumexp(-1)
    prior = CASES["means"].log_prior(z) + weight
    whole = (prior + by_row.sum(1)).logsumexp(0)
    exact = torch.stack([whole - (prior + by_row.sum(1) - by_row[:, i]).logsumexp(0) for i in range(len(MIXED))])
    score = loo(posterior(fitted("means"), {"x": MIXED}, draws=8000, predictive=False, prior=False))
    assert score.bad == 0
    assert score.values == pytest.approx(exact.numpy(), abs=0.08)  # of 4 seeds: at most 0.02
    assert score.total == pytest.approx(float(exact.sum()), abs=0.2)


def test_leave_one_out_of_a_change_point():
    z, weight = CASES["change"].grid()
    prior = CASES["change"].log_prior(z) + weight

    def evidence_of(keep: Tensor) -> Tensor:
        return (prior + _change(z["early"], z["late"], keep).logsumexp(-1)[:, 0]).logsumexp(0)

    whole = evidence_of(torch.ones(12))
    exact = torch.stack([whole - evidence_of((torch.arange(12) != i).double()) for i in range(12)])
    score = loo(posterior(fitted("change"), YEARS, draws=8000, predictive=False, prior=False))
    assert score.values == pytest.approx(exact.numpy(), abs=0.4)  # rows beside the change: k-hat above 0.7
    assert score.total == pytest.approx(float(exact.sum()), abs=0.7)


@pytest.mark.parametrize("name", ["mixture", "two sites", "recapture"])
def test_held_out_rows_are_scored_exactly(name):
    c = CASES[name]
    score = held_out(fitted(name), c.data)
    assert score.kind == "exact" and score.se == 0
    assert score.values == pytest.approx(c.table({})[0].logsumexp(-1).numpy(), abs=1e-6)


def test_models_with_discrete_sites_are_compared():
    one, two = (held_out(fitted(n), {"x": X}) for n in ("mixture", "two sites"))
    found = compare({"one": one, "two": two})
    assert found.differences[min(found.scores, key=lambda n: found.scores[n].total)][0] == pytest.approx(
        -abs(evidence("mixture") - evidence("two sites")), abs=1e-6
    )


@pytest.mark.parametrize("name", few(DRAWN, "change", "means"))
def test_mcmc_draws_the_discrete_sites_as_well(name):
    c = CASES[name]
    tree = mcmc(c.make(), c.data, chains=16, draws=100, warmup=150, engine="trace")
    conditionals_agree(tree, name)
    assert set(c.observed) == set(tree["posterior_predictive"].data_vars) == set(tree["log_likelihood"].data_vars)
    if name == "change":
        z, weight = c.grid()
        p = (c.log_joint(z) + weight).softmax(0)
        mean, _ = _moments_of_a_change(p[:, None] * c.table(z).softmax(-1)[:, 0], z["early"], z["late"])
        by_chain = tree["posterior_predictive"]["disasters"].values.mean(1)
        off = (by_chain.mean(0) - mean.numpy()) / (by_chain.std(0, ddof=1) / 4)
        assert np.abs(off).max() < 5


@pytest.mark.parametrize("name", ALL_SUMMED)
def test_diagnose_says_what_there_is_to_say_of_an_exact_model(name):
    """There is no guide to doubt: its posterior is exact, or one sentence says so."""
    try:
        found = diagnose(fitted(name), CASES[name].data, draws=100, particles=50)
    except PpgenError as e:
        assert "exact" in str(e)
        return
    assert found.bounds.best.kind == "exact"


# -- a continuous latent that depends on a discrete one ------------------------------------------------


def by_component(x):
    with rows(x):
        c = pyro.sample("c", dist.Categorical(t(0.4, 0.6)))
        u = pyro.sample("u", dist.Normal(1.5 * c, 1.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def one_component(x):
    c = pyro.sample("c", dist.Categorical(t(0.4, 0.6)))
    u = pyro.sample("u", dist.Normal(1.5 * c, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


@pytest.mark.parametrize("model", [by_component, one_component])
def test_a_continuous_latent_may_depend_on_a_discrete_one(model):
    """p(c) is summed out of p(c) p(u | c) at each u, as Pyro's TraceEnum_ELBO does; log p(x) mixes normals."""
    x = t(0.1, 2.0, -1.0, 3.0)
    cov = torch.eye(4) + (torch.eye(4) if model is by_component else torch.ones(4, 4))
    each = [dist.MultivariateNormal(torch.full((4,), 1.5 * k), cov).log_prob(x) for k in (0, 1)]
    if model is by_component:
        each = [dist.Normal(1.5 * k, 2**0.5).log_prob(x) for k in (0, 1)]
    joint = torch.stack(each) + t(0.4, 0.6).log().reshape(2, *[1] * (torch.stack(each).dim() - 1))
    exact, responsibility = float(joint.logsumexp(0).sum()), joint.softmax(0)[1]
    run = fit(Program.from_pair(model), {"x": x}, guide="AutoNormal", steps=400, lr=0.05, particles=4, **SETTINGS)
    found = loglik(run, {"x": x}, particles=4000).best
    total = found.mean * (4 if model is by_component else 1)
    assert found.kind == "lower" and abs(total - exact) < 4 * found.mean_se * 4 + 0.02
    tree = mcmc(model, {"x": x}, chains=32, draws=200, engine="trace", predictive=False, prior=False)
    c = tree["posterior"]["c"].mean(("chain", "draw")).values
    assert np.allclose(c, responsibility, atol=0.03)


def test_what_a_model_closes_over_may_be_of_another_dtype():
    """Tables in float32 in a program that is run in float64, as `mcmc` and `infer` run it; many vectors and one."""
    table, means, x = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([-1.0, 1.5]), torch.tensor([-0.8, 1.1, 1.9])

    def model(x):
        sd, state = pyro.sample("sd", dist.LogNormal(-0.5, 0.3)), 0
        for t in pyro.markov(range(3)):
            state = pyro.sample(f"z_{t}", dist.Categorical(table[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(means[state], sd), obs=x[t])

    u = torch.tensor([[-0.3], [0.2]], dtype=torch.float64)
    paths = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    p = torch.stack([table[path[:-1], path[1:]].prod() * table[0, path[0]] for path in paths])
    likelihood = dist.Normal(means[paths].double(), u.exp()[:, None]).log_prob(x.double()).sum(-1)
    exact = (likelihood + p.log()).logsumexp(-1) + dist.Normal(-0.5, 0.3).log_prob(u[:, 0])
    with default_dtype(torch.float64):
        joint = log_joint(Program.from_pair(model), {"x": x.double()})
        assert torch.allclose(joint(u), exact, atol=1e-5) and torch.allclose(joint(u[0]), exact[0], atol=1e-5)


# -- latents that are read by place -------------------------------------------------------------------

GROUP = torch.tensor([0, 1, 1, 0])


def _m() -> Tensor:
    return pyro.sample("m", dist.Normal(0.0, 1.0))


def _loop_over_groups(y):
    with pyro.plate("groups", 2):
        k = pyro.sample("k", dist.Bernoulli(0.3))
    m = _m()
    for i in range(len(y)):
        pyro.sample(f"y_{i}", dist.Normal(m + 2.0 * k[GROUP[i]], 1.0), obs=y[i])


def _rows_of_groups(y):
    with pyro.plate("groups", 4):
        k = pyro.sample("k", dist.Categorical(torch.full((4,), 0.25)))  # as many values as rows
    m = _m()
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m + k[GROUP], 1.0), obs=y)


def _neighbours(y):
    m = _m()
    with pyro.plate("rows", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(m + 2.0 * k.flip(-1), 1.0), obs=y)


def _sites_of_their_own(y):
    k, m = [pyro.sample(f"k_{j}", dist.Bernoulli(0.3)) for j in range(2)], _m()
    for i, j in enumerate(GROUP.tolist()):
        pyro.sample(f"y_{i}", dist.Normal(m + 2.0 * k[j], 1.0), obs=y[i])


def _largest(y):
    with pyro.plate("groups", 4):
        k = pyro.sample("k", dist.Categorical(torch.full((3,), 1 / 3)))
    pyro.sample("y", dist.Normal(_m() + k.max(), 1.0).expand(y.shape).to_event(1), obs=y)


@pytest.mark.parametrize("model", [_loop_over_groups, _rows_of_groups, _neighbours, _largest])
def test_a_latent_that_is_read_by_place_is_not_summed_out(model):
    with pytest.raises(PpgenError, match="cannot sum 'k' out: .*draw its entries at sites of their own"):
        log_joint(Program.from_pair(model), {"y": t(0.1, 3.0, 2.0, -1.0)})


def _read_by_place_of_one_group(group, y):
    with pyro.plate("groups", 1):
        c = pyro.sample("c", dist.Categorical(torch.ones(2, 1)[pyro.sample("j", dist.Bernoulli(0.5)).long()]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(_m() + t(0.5)[c[group]] + pyro.sample("k", dist.Bernoulli(0.5)), 1.0), obs=y)


def test_the_one_value_of_a_latent_that_is_read_by_place_is_not_summed_out():
    """It ended in a KeyError."""
    with pytest.raises(PpgenError, match="cannot sum .*'c'.* out"):
        log_joint(Program.from_pair(_read_by_place_of_one_group), {"group": torch.zeros(2).long(), "y": t(0.1, 3.0)})


@pytest.mark.parametrize("of", ["groups", "rows"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("values", [1, 2, 3])
def test_draws_of_latents_in_plates_of_one_element_or_of_one_value(of, shape, values):
    """Pyro's packed tensors lose such dimensions: a draw ended in a KeyError or an AssertionError. The data are 10
    standard deviations from all values but one."""
    g, m = shape
    c = torch.arange(g) % values
    k = torch.arange(g * m).reshape(shape) % 2
    y = 10.0 * c[:, None] + 100.0 * k + 0.1

    def model(y):
        dims = (-2, -1) if of == "groups" else (-1, -2)
        with pyro.plate("groups", g, dim=dims[0]):
            c = pyro.sample("c", dist.Categorical(torch.ones(values)))
            with pyro.plate("inner", m, dim=dims[1]):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                pyro.sample("y", dist.Normal(10.0 * c + 100.0 * k, 1.0), obs=y)

    data = {"y": y if of == "groups" else y.T}
    drawn = drawn_discrete(Program.from_pair(model), data, 2, {}, ["c", "k"])
    assert torch.equal(drawn["c"], c[:, None] if of == "groups" else c)
    assert torch.equal(drawn["k"], (k if of == "groups" else k.T).to(drawn["k"].dtype))


class Drawn(Program):
    """What draws besides: dropout, of what depends on k and of what does not, and a plate's part of the rows."""

    def __init__(self, by: str, place: int | slice = slice(None)):
        super().__init__()
        self.by, self.place, self.shift, self.dropout = by, place, nn.Parameter(t(0.0)[0]), nn.Dropout(0.5)

    def model(self, y):
        with pyro.plate("rows", len(y), subsample_size=3 if self.by == "rows" else None) as i:
            k = pyro.sample("k", dist.Categorical(torch.full((3,), 1 / 3)))
            loc = 2.0 * k[self.place] + 3.0 * self.shift
            if self.by != "rows":
                loc = loc + self.dropout(loc if self.by == "k" else y)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y[i])


@pytest.mark.parametrize("by", ["rows", "y", "k"])
def test_programs_that_draw_besides_are_summed_where_they_read_no_place(by):
    y = {"y": t(0.1, 3.0, 2.0, -1.0, 4.6)}
    fit(Drawn(by), y, steps=1, **SETTINGS)
    if by != "k":
        with pytest.raises(PpgenError, match="cannot sum 'k' out"):
            fit(Drawn(by, 0), y, steps=1, **SETTINGS)


def test_a_program_that_asks_for_one_value_says_so_with_a_remedy():
    """Pyro adds a table of shapes to torch's message, at which the sentence ended."""

    def model(y):
        z = pyro.sample("z", dist.Bernoulli(pyro.sample("p", dist.Beta(2.0, 2.0))))
        pyro.sample("y", dist.Normal(1.0 if z.item() == 1 else 0.0, 0.5), obs=y)

    with pytest.raises(PpgenError, match=r"all of its values at once \(.*Scalar\); .* draw its entries at sites"):
        mcmc(model, {"y": torch.tensor(2.3)}, chains=4, draws=10)


def test_entries_at_sites_of_their_own_are_summed_out():
    y, m = t(0.1, 3.0, 2.0, -1.0), t(0.4)
    found = log_joint(Program.from_pair(_sites_of_their_own), {"y": y})(m)
    by_hand = dist.Normal(0.0, 1.0).log_prob(m[0])
    for j in range(2):
        terms = [dist.Normal(m + 2.0 * k, 1.0).log_prob(y[j == GROUP]).sum() + math.log((0.7, 0.3)[k]) for k in (0, 1)]
        by_hand = by_hand + torch.logsumexp(torch.stack(terms), 0)
    assert torch.allclose(found, by_hand)


def test_batch_dimensions_without_a_plate_are_summed_beside_a_latent():
    """As Pyro's plain eight schools has them, with a switch; a mask and an own shape of each site."""
    keep = torch.tensor([True, False, True, True])

    def model(y):
        k, m = pyro.sample("k", dist.Bernoulli(0.3)), _m()
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0))
        with poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(m + 2.0 * k + a[GROUP], 1.0), obs=y)

    y, u = t(0.1, 3.0, 2.0, -1.0), t(0.4, -0.2, 0.3)
    prior = dist.Normal(0.0, 1.0).log_prob(u).sum()
    of_y = [dist.Normal(u[0] + 2.0 * k + u[1:][GROUP], 1.0).log_prob(y)[keep].sum() for k in (0, 1)]
    expected = prior + torch.logsumexp(torch.stack(of_y) + t(0.7, 0.3).log(), 0)
    assert torch.allclose(log_joint(Program.from_pair(model), {"y": y})(u), expected)
    run = fit(model, {"y": y}, steps=2, **SETTINGS)
    tree = posterior(run, {"y": y}, draws=2, predictive=False, prior=False)
    at = {n: torch.as_tensor(tree["posterior"][n].values[0, 0]) for n in ("m", "a")}
    held = log_joint(Program.from_pair(model), {"y": y})(torch.cat([at["m"][None], at["a"]]))
    assert math.isclose(float(tree["sample_stats"]["log_p"][0, 0]), float(held), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("fn", "number"),
    [
        (dist.Binomial(3, 0.4), lambda k: k),
        (dist.OneHotCategorical(t(0.2, 0.5, 0.3)), lambda k: k @ t(0.0, 1.0, 2.0)),
    ],
    ids=["Binomial", "OneHotCategorical"],
)
def test_latents_whose_values_are_no_numbers_from_0_are_drawn(fn, number):
    """20 000 rows alike: each frequency within 5 s.e., 0.018 at most."""
    n, y = 20_000, t(1.3)

    def model():
        with pyro.plate("rows", n):
            k = pyro.sample("k", fn)
            pyro.sample("y", dist.Normal(number(k), 1.0), obs=y.expand(n))

    torch.manual_seed(0)
    drawn = drawn_discrete(Program.from_pair(model), {}, 1, {}, ["k"])["k"]
    values = fn.enumerate_support(expand=False)
    exact = torch.softmax(fn.log_prob(values) + dist.Normal(number(values), 1.0).log_prob(y), 0)
    same = (drawn.unsqueeze(1) == values).reshape(n, len(values), -1).all(-1)
    assert drawn.shape == (n, *fn.event_shape) and drawn.dtype == values.dtype
    assert torch.allclose(same.double().mean(0), exact, atol=0.018)


# -- rows with weights ----------------------------------------------------------------------------------


class Weighed(Program):
    """Rows that count w times: Σ_i w_i log Σ_k π_k N(x_i; m + μ_k, 0.7)."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(t(-2.0, 1.5))

    def model(self, x, w):
        m = pyro.sample("m", dist.Normal(t(0.0)[0], 1.0))
        with rows(x), poutine.scale(scale=w):
            k = pyro.sample("k", dist.Categorical(t(0.3, 0.7)))
            pyro.sample("x", dist.Normal(m + self.means[k], 0.7), obs=x)


def by_row(means: Tensor, x: Tensor, w: Tensor, m: Tensor) -> Tensor:
    """Σ_i, by m."""
    each = dist.Normal(m[:, None, None] + means, 0.7).log_prob(x[:, None]) + t(0.3, 0.7).log()
    return (w * each.logsumexp(-1)).sum(-1)


def test_rows_of_a_mixture_may_have_weights():
    """poutine.scale by a column was refused in Pyro's words, as the scale of a sum had to be one number."""
    torch.manual_seed(0)
    x, w, m, program = torch.randn(8).double(), torch.rand(8).double() + 0.5, t(0.4, -1.0), Weighed()
    structure = check(program.setup({"x": x, "w": w}, "AutoNormal", hide=("k",)), {"x": x, "w": w}, enumerated=("k",))
    for at, exact in zip(m, by_row(program.means, x, w, m), strict=True):
        found = summed_terms(program, {"x": x, "w": w}, structure.nesting, latents={"m": at})
        one = next(f for f in found if f.role == "summed")
        assert one.dims == ("data",) and one.log_prob.sum().item() == pytest.approx(exact.item(), rel=1e-10)
        ours, theirs = (
            torch.autograd.grad(v, program.means, retain_graph=True)[0] for v in (one.log_prob.sum(), exact)
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_weights_of_rows_are_those_of_the_posterior(batch_size):
    """Against a grid over m: by chains, and by a normal guide of all rows and of batches."""
    torch.manual_seed(0)
    x, w = 1.5 * torch.randn(8).double(), torch.rand(8).double() + 0.5
    grid = torch.linspace(-4, 4, 801).double()
    p = (dist.Normal(0.0, 1.0).log_prob(grid) + by_row(t(-2.0, 1.5), x, w, grid)).softmax(0)
    mean = (p * grid).sum()
    sd = float((p * (grid - mean) ** 2).sum() ** 0.5)
    program = Weighed()
    program.means.requires_grad_(False)
    data = {"x": x, "w": w}
    if batch_size is None:
        draws = mcmc(program, data, draws=500, seed=0, predictive=False, prior=False)
    else:
        how = {"steps": 800, "lr": 0.03, "schedule": "cosine", "batch_size": batch_size, "seed": 0}
        draws = posterior(fit(program, data, guide="AutoNormal", **how, **SETTINGS), data, seed=0)
    found = draws["posterior"]["m"]
    assert abs(float(found.mean()) - float(mean)) < 0.08 * sd and abs(float(found.std()) / sd - 1) < 0.1


def test_a_network_of_discrete_latents_is_drawn_from_as_its_refusal_says():
    """Rain, a sprinkler, a wet lawn: p(rain | wet) by all eight cases."""

    def lawn(wet):
        rain = pyro.sample("rain", dist.Bernoulli(0.2))
        on = pyro.sample("on", dist.Bernoulli(0.01 + 0.39 * (1 - rain)))
        p = 0.99 * rain * on + 0.8 * rain * (1 - on) + 0.9 * (1 - rain) * on
        pyro.sample("wet", dist.Bernoulli(p), obs=wet)

    data = {"wet": torch.tensor(1.0)}
    with pytest.raises(PpgenError, match=r"objective='enumerate', steps=0\) sums it out, and posterior\(run, data\)"):
        mcmc(lawn, data)
    run = fit(lawn, data, objective="enumerate", steps=0)
    rain = posterior(run, data, draws=20_000)["posterior"]["rain"].values
    joint = {1: 0.2 * (0.01 * 0.99 + 0.99 * 0.8), 0: 0.8 * 0.4 * 0.9}
    exact = joint[1] / sum(joint.values())
    assert abs(rain.mean() - exact) < 4 * (exact * (1 - exact) / 20_000) ** 0.5
    assert float(loglik(run, data).bounds[-1].values[0]) == pytest.approx(math.log(sum(joint.values())), abs=1e-5)
