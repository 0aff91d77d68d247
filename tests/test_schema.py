"""Every DataTree that ppgen makes, against ArviZ's schema: groups, dimensions, coordinates, attributes.

The names are those of ArviZ's InferenceData schema; arviz-stats must take the trees without a warning.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from known import SCHOOLS, NormalMean, normal, ppca

from ppgen.inference import fit, mcmc, posterior, predict
from ppgen.models import EightSchools
from ppgen.run.files import read_netcdf, write_netcdf

DRAWN = {"posterior", "posterior_predictive", "predictions", "prior", "prior_predictive", "log_likelihood",
         "sample_stats", "log_prior"}  # fmt: skip
GIVEN = {"observed_data", "constant_data", "predictions_constant_data"}
X = {"x": normal(20) + 1.0}


def schools(**how):
    return fit(EightSchools(), SCHOOLS, steps=20, lr=0.03, **how)


TREES = {
    "a guide": lambda: posterior(schools(), SCHOOLS, draws=50),
    "a flow guide": lambda: posterior(schools(guide="flow(hidden=(8,))", engine="eager", starts=2), SCHOOLS, draws=50),
    "a corrected guide": lambda: posterior(fit(NormalMean(), X, steps=0, starts=2), X, draws=50, corrected=True),
    "latents of rows": lambda: posterior(fit(ppca(), {"x": normal(30, 4)}, steps=0), {"x": normal(30, 4)}, draws=50),
    "predictions": lambda: predict(schools(), {"sigma": torch.tensor([3.0, 4.0, 5.0])}, draws=50),
    "a sampler": lambda: mcmc(EightSchools(), SCHOOLS, chains=4, draws=50, warmup=50, seed=0),
}


@pytest.fixture(scope="module", params=list(TREES))
def tree(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short run has its R-hat warnings
        return TREES[request.param]()


def test_groups_and_their_dimensions(tree):
    assert set(tree.children) <= DRAWN | GIVEN and tree.children
    for name, group in tree.children.items():
        values = group.dataset.data_vars
        assert values, f"{name} is empty"
        for variable in values.values():
            if name in DRAWN:
                assert variable.dims[:2] == ("chain", "draw"), (name, variable.dims)
            else:
                assert "chain" not in variable.dims and "draw" not in variable.dims
            assert all(d in group.coords for d in variable.dims), "every dimension has a coordinate"
            assert np.isfinite(variable.values).all() or variable.dtype.kind not in "f"


def test_groups_that_belong_together(tree):
    groups = tree.children
    if "observed_data" in groups:
        seen = groups["observed_data"].dataset
        for other in ("posterior_predictive", "prior_predictive"):
            if other in groups:
                for name, value in groups[other].dataset.data_vars.items():
                    assert value.dims[2:] == seen[name].dims and value.shape[2:] == seen[name].shape
    if "log_likelihood" in groups:
        assert set(groups["log_likelihood"].dataset.data_vars) == set(groups["observed_data"].dataset.data_vars)
    if "sample_stats" in groups and "posterior" in groups:
        sizes = {g: (groups[g].sizes["chain"], groups[g].sizes["draw"]) for g in ("sample_stats", "posterior")}
        assert len(set(sizes.values())) == 1


def test_attributes(tree):
    for node in (tree, *tree.children.values()):
        assert node.attrs["inference_library"] == "ppgen" and node.attrs["inference_library_version"]
    for node in tree.children.values():
        assert {"created_at", "creation_library", "creation_library_version"} <= set(node.attrs)


def test_there_and_back(tree, tmp_path):
    if "posterior" not in tree.children:
        pytest.skip("read_netcdf reads posteriors")
    write_netcdf(tmp_path / "t.nc", tree)
    again = read_netcdf(tmp_path / "t.nc")
    for name, group in tree.children.items():
        for key, value in group.dataset.data_vars.items():
            assert np.array_equal(value.values, again[name][key].values) and again[name][key].dims == value.dims


@pytest.mark.filterwarnings("error")
def test_arviz_takes_it(tree):
    import arviz_stats

    if "posterior" not in tree.children:
        pytest.skip("nothing to summarise")
    table = arviz_stats.summary(tree, kind="stats", round_to="none")
    assert np.isfinite(table["mean"]).all()
    assert arviz_stats.hdi(tree).data_vars
