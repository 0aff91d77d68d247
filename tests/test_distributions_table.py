"""Every distribution of Pyro x {one draw, many draws, gradient}: the same program, run once, and K times.

    z ~ N(m, 1)                    the guide's and the model's
    x ~ d(q + sigmoid(z) (p - q))  in the guide; in the model from p towards q; observed where d cannot be drawn

so that the parameters differ from draw to draw, and q gets a gradient. Noise is common: a recorded run's random numbers
are handed to the program, draw by draw.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_distributions import DISTRIBUTIONS, LOOP, NO_ROW, RECORDED, REFUSED, Known
from pyro import poutine
from scipy.stats import ks_2samp, rankdata
from torch import Tensor, nn
from torch.distributions import von_mises
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen import PpgenError, Program, rows
from ppgen.check import check, running_of
from ppgen.draws import FEW, ManyTerms, one_draw
from ppgen.engine.graphs.von_mises import drawn_von_mises
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run

K = 7
UNQUANTISED = ("RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough")
LONG = {
    "DiscreteHMM", "GammaGaussianHMM", "GaussianHMM", "GaussianMRF", "IndependentHMM", "LKJCorrCholesky",
    "MixtureOfDiagNormalsSharedCovariance", "SineBivariateVonMises", "Stable", "StableWithLogProb", "Truncated Gamma",
}  # fmt: skip
ROWS = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in DISTRIBUTIONS]
RANDOM = [n for n, k in DISTRIBUTIONS.items() if k.value is None and k.way == RECORDED and n != "Delta"]

every = pytest.mark.parametrize("name", ROWS)


class Pair(Program):
    """See above."""

    def __init__(self, known: Known):
        super().__init__()
        self.known, self.m = known, nn.Parameter(torch.tensor(0.3))
        self.q = nn.ParameterList([nn.Parameter(t) for t in known.tensors(known.q)])

    def d(self, part: str, z: Tensor) -> Any:
        """The distribution at z."""
        own, fixed = list(self.q), self.known.tensors(self.known.p)
        a, b = (
            (own, fixed)
            if part == "guide" or self.known.value is not None
            else (fixed, self.known.tensors(self.known.q))
        )
        found = self.known(*(u + torch.sigmoid(z) * (v - u) for u, v in zip(a, b, strict=True)))
        return found.expand((3,)) if self.known.plate else found

    def observed(self) -> Tensor | None:
        return None if self.known.value is None else self.known.tensors([self.known.value])[0]

    def x(self, part: str, z: Tensor) -> None:
        with pyro.plate("three", 3) if self.known.plate else contextlib.nullcontext():
            d, value = self.d(part, z), self.observed()
            pyro.sample("x", d, obs=value.expand(d.shape()) if self.known.plate and value is not None else value)

    def model(self, y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        self.x("model", z)
        with rows(y):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, y):
        z = pyro.sample("z", dist.Normal(self.m, 1.0))
        if self.known.value is None:
            self.x("guide", z)


@cache
def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[Pair, dict[str, Tensor], Structure]:
    data = {"y": torch.tensor([0.5]).to(dtype)}
    program = Pair(DISTRIBUTIONS[name]).setup(data)
    return program, data, check(program, data, learn=False)


def test_every_distribution_of_pyro_has_a_row_or_a_reason():
    kinds = {n for n, c in vars(dist).items() if inspect.isclass(c) and issubclass(c, torch.distributions.Distribution)}
    named = {n.split()[0] for n in (*DISTRIBUTIONS, *REFUSED)}
    assert not named & set(NO_ROW)
    assert kinds - named - set(NO_ROW) == set()
    assert set(NO_ROW) <= kinds


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence(name, double):
    known, said = REFUSED[name]
    data = {"y": torch.tensor([0.5]).double()}
    program = Pair(known)
    with pytest.raises(PpgenError, match=said), running_of(program, data):
        check(program.setup(data), data)


# -- one draw ---------------------------------------------------------------------------------------


@every
def test_the_terms_of_one_draw_are_those_of_pyros_trace(name, double):
    program, data, structure = made(name)
    q = guide_run(program, data)
    p = poutine.trace(poutine.replay(lambda: program.call("model", data), trace=q)).get_trace()
    found = {(t.role == "guide", t.site): t for t in one_draw(program, data, structure, q=q)}
    for trace, guide in ((p, False), (q, True)):
        trace.compute_log_prob()
        for site in ("z", "x") if guide is False or program.known.value is None else ("z",):
            node, term = trace.nodes[site], found[guide, site]
            assert term.value.shape == node["fn"].shape() and term.log_prob.shape == node["fn"].batch_shape
            torch.testing.assert_close(term.value, node["value"], equal_nan=True)
            torch.testing.assert_close(term.log_prob, node["log_prob"])


# -- many draws -------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Keeps what is drawn, of all draws at once."""

    def __init__(self):
        super().__init__()
        self.drawn: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.drawn.append(out.detach().clone())
        return out


class Player(TorchDispatchMode):
    """In place of what is drawn, what was drawn for the k-th of K; a von Mises is one operation."""

    def __init__(self, drawn: list[Tensor], k: int):
        super().__init__()
        self.left, self.k = list(drawn), k

    def __enter__(self) -> Any:
        self.patch = mock.patch.object(von_mises, "_rejection_sample", drawn_von_mises)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self.patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            out.copy_(self.left.pop(0).reshape(K, *out.shape)[self.k])
        return out


def weighted(found: list[Term]) -> Tensor:
    """A sum of all that has a gradient, weighed by different numbers, of all draws."""
    total = torch.zeros(())
    for i, x in enumerate(x for t in found for x in (t.log_prob, t.value)):
        if x.requires_grad:
            weights = torch.linspace(1.0, 2.0, x[0].numel()).reshape(x[0].shape)
            total = total + ((i + 1) * weights * x).sum()
    return total


def gradient(program: Pair, found: list[Term]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted(found), list(program.parameters()), materialize_grads=True, allow_unused=True)


def stacked(runs: list[list[Term]]) -> list[Term]:
    return [
        t[0]._replace(value=torch.stack([a.value for a in t]), log_prob=torch.stack([a.log_prob for a in t]))
        for t in zip(*runs, strict=True)
    ]


def way_of(many: ManyTerms) -> str:
    return RECORDED if many.many.graph is not None and many.many.batched else LOOP


@every
def test_many_draws_are_the_program_run_k_times_with_its_gradient(name, double, caplog):
    program, data, structure = made(name)
    with caplog.at_level(logging.INFO, "ppgen"):
        many = ManyTerms(program, data, structure, train=True)
        many(2, data)  # what cannot be batched is found out at the first call
        torch.manual_seed(1)
        with Recorder() as recorder:
            found = many(K, data)
    way = program.known.trained or program.known.way
    said = [r.message for r in caplog.records if r.name == "ppgen"]
    assert way_of(many) == way, f"the table says {way}, and the draws were made {way_of(many)}: {said}"
    assert any("one after the other" in message for message in said) == (way == LOOP)
    torch.manual_seed(1)
    runs = []
    for k in range(K):
        with Player(recorder.drawn, k) if way == RECORDED else contextlib.nullcontext() as player:
            runs.append(one_draw(program, data, structure))
        assert player is None or not player.left
    expected = stacked(runs)
    for ours, own in zip(found, expected, strict=True):
        assert (ours.site, ours.role, ours.dims) == (own.site, own.role, own.dims)
        torch.testing.assert_close(ours.value, own.value, equal_nan=True)
        torch.testing.assert_close(ours.log_prob, own.log_prob)
    for ours, own in zip(gradient(program, found), gradient(program, expected), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-8)
    densities_belong_to_the_values(program, found, K)


def densities_belong_to_the_values(program: Pair, found: list[Term], draws: int) -> None:
    """By the distribution itself, at the values that came with them; and no two draws are one."""
    z = next(t.value for t in found if t.site == "z")
    assert len(z.unique()) == draws
    for t in found:
        if t.site != "x":
            continue
        for k in range(draws):
            d = program.d("guide" if t.role == "guide" else "model", z[k])
            if type(d).__name__ in UNQUANTISED:  # its log_prob is that of what was drawn before it was rounded
                continue
            torch.testing.assert_close(t.log_prob[k], d.log_prob(t.value[k]))
        if program.known.value is None and not isinstance(d, dist.Delta):
            distinct = len(t.value.reshape(draws, -1).unique(dim=0))
            assert distinct == draws if t.pathwise and type(d).__name__ not in UNQUANTISED else distinct > 1


@pytest.mark.parametrize("name", [n for n, k in DISTRIBUTIONS.items() if k.trained not in ("", k.way)])
def test_without_a_gradient_it_can_be_recorded(name, double):
    program, data, structure = made(name)
    many = ManyTerms(program, data, structure)
    found = many(FEW + 1, data)
    assert way_of(many) == program.known.way
    densities_belong_to_the_values(program, found, FEW + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_many_draws_have_the_law_of_draws_one_after_the_other(name):
    """In float32, as programs are run."""
    program, data, structure = made(name, torch.float32)
    many = ManyTerms(program, data, structure)
    found = next(t.value for t in many(3000, data) if (t.site, t.role) == ("x", "guide")).double().numpy()
    assert way_of(many) == RECORDED
    with torch.no_grad():
        own = torch.stack([guide_run(program, data).nodes["x"]["value"] for _ in range(500)]).double().numpy()
    flat, truth = found.reshape(len(found), -1), own.reshape(len(own), -1)
    for i in range(flat.shape[1]):
        a, b = flat[:, i], truth[:, i]
        if np.ptp(b) == 0:
            assert (a == b[0]).all(), i
            continue
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-5, (i, a.mean(), b.mean(), a.std(), b.std())
        u = rankdata(np.concatenate([a, b])) / (len(a) + len(b)) - 0.5
        for v in (u, u**2):
            x, y = v[: len(a)], v[len(a) :]
            assert abs(x.mean() - y.mean()) < 4.5 * np.sqrt(x.var() / len(x) + y.var() / len(y)), i
        ranks = u[: len(a)] - u[: len(a)].mean()
        assert abs((ranks[1:] * ranks[:-1]).mean()) < 4.5 * ranks.var() / np.sqrt(len(a)), f"{i}: not independent"
