"""NUTS through nutpie, against a closed form; what is said without it."""

import sys

import pytest
from known import NormalMean, normal

from ppgen import PpgenError
from ppgen.inference.sampling.kernels.nuts import _STATS
from ppgen.inference.sampling.mcmc import mcmc

X = normal(20) + 1.0


def test_nuts_on_a_normal_mean():
    pytest.importorskip("nutpie")
    exact = NormalMean().posterior(X)
    tree = mcmc(NormalMean(), {"x": X}, "nuts", chains=8, draws=300, warmup=150)
    m = tree["posterior"]["m"].values
    assert abs(m.mean() - float(exact.loc)) < 0.1 * float(exact.scale)
    assert m.std() == pytest.approx(float(exact.scale), rel=0.1)
    assert set(tree["sample_stats"].data_vars) >= set(_STATS)


def test_nuts_without_nutpie(monkeypatch):
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.raises(PpgenError, match=r"pip install 'ppgen-pyro\[mcmc\]'"):
        mcmc(NormalMean(), {"x": X}, "nuts", chains=2, draws=10, warmup=20)
