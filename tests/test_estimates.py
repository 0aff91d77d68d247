"""Figures for log p(x): what their means, standard errors and bits/dim are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppgen.inference.evaluation.estimates import Bound, LogLik

ROWS = Bound("elbo", "lower", np.array([-1.0, -3.0, -5.0]), np.array([0.3, 0.0, 0.4]))
ALL = Bound("iw", "lower", np.array([-9.0]), np.array([0.5]))


def test_means_and_standard_errors():
    assert ROWS.mean == -3.0
    assert ROWS.mean_se == pytest.approx(0.5 / 3)
    assert ROWS.rows_se == pytest.approx(2 / math.sqrt(3))
    assert ALL.mean_se == 0.5 and math.isnan(ALL.rows_se)


@pytest.mark.parametrize(("bound", "per"), [(ROWS, "row"), (ALL, "data set")])
def test_bits_per_dim_are_of_a_row_whatever_one_value_is_for(bound, per):
    found = LogLik((bound,), per, 3, 10, None, 4)
    assert found.bits_per_dim(bound) == pytest.approx(3.0 / 4 / math.log(2))
    assert LogLik((bound,), per, 3, 10, None, None).bits_per_dim(bound) is None


def test_printed_a_figure_has_its_kind_and_its_error():
    exact = Bound("exact", "exact", np.array([-2.0, -4.0]), np.zeros(2))
    assert str(LogLik((ROWS, ALL), "row", 3, 10, None, 4)).splitlines() == [
        "elbo (lower bound): -3.00 ± 0.17 nats a row",
        "iw (lower bound): -9.00 ± 0.5 nats a row",
    ]
    assert str(LogLik((exact,), "row", 2, 1, None, None)) == "exact: -3.00 nats a row"
