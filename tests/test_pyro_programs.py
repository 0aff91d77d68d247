"""Programs that run in Pyro run here as they stand, and have Pyro's ELBO; what cannot be done is said in one sentence.

python tests/test_pyro_programs.py      writes docs/pyro_programs.md
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pytest
import torch

from ppgen import Program
from ppgen.draws import one_draw
from ppgen.errors import PpgenError
from ppgen.inference import fit, loglik, mcmc, posterior, predict, resume, sample
from ppgen.run import Run, prepare_columns
from ppgen.terms import total

sys.path.insert(0, str(Path(__file__).parent))
from pyro_programs import CASES, Case

PAGE = Path(__file__).parent.parent / "docs" / "pyro_programs.md"


def made(name: str) -> Case:
    pyro.clear_param_store()
    torch.manual_seed(0)
    return CASES[name]()


@cache
def eager(name: str) -> tuple[Case, Run]:
    c = made(name)
    return c, fitted(c, "eager")


def fitted(c: Case, engine: str) -> Run:
    return fit(Program.from_pair(c.model, c.guide), c.data, **{"steps": 4, "engine": engine, "log_every": 1, **c.how})


OPS: dict[str, Callable[[Case, Run], Any]] = {
    "fit": lambda c, run: run,
    "loglik": lambda c, run: loglik(run, c.data, particles=4),
    "posterior": lambda c, run: posterior(run, c.data, draws=12),
    "sample": lambda c, run: sample(run, 12),
    "predict": lambda c, run: predict(run, c.data, draws=6),
    "mcmc": lambda c, run: mcmc(Program.from_pair(c.model), c.data, chains=8, warmup=20, draws=10),
}
FAST = [op for op in OPS if op not in ("fit", "mcmc")]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    pyro.clear_param_store()


def refused(c: Case, op: str, run: Callable[[], Any]) -> None:
    """Does what is asked, or is refused by the sentence that the table has."""
    if op not in c.refused:
        run()
        return
    with pytest.raises(PpgenError) as e:
        run()
    assert c.refused[op] in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", CASES)
def test_the_elbo_is_pyros(name):
    if "fit" in (c := made(name)).refused:
        refused(c, "fit", lambda: fitted(c, "eager"))
        return
    c, run = eager(name)
    assert run.rows[-1]["bad_steps"] == 0 or "wider" in name
    if not c.pyro:
        return
    with torch.no_grad(), run, pyro.validation_enabled(False):
        torch.manual_seed(1)
        ours = float(total(one_draw(run.program, prepare_columns(c.data, run.program, run.dtype), run.structure)))
        torch.manual_seed(1)
        guide = c.guide if callable(c.guide) else run.program._autoguide or (lambda *_, **__: None)
        how = {"max_plate_nesting": run.structure.nesting} if run.structure.summed else {}
        kind = "TraceEnum_ELBO" if run.structure.summed else c.pyro
        theirs = -getattr(pyro.infer, kind)(**how).loss(c.model, guide, **c.data)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_step_is_an_eager_one(name):
    if "fit" in made(name).refused:
        return
    found, expected = fitted(made(name), "trace").metrics, eager(name)[1].metrics
    assert found["elbo"] == pytest.approx(expected["elbo"], rel=2e-3, abs=2e-3)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-3, abs=1e-3)


def test_resumed_where_draws_are_made_together_it_is_the_unbroken_fit(tmp_path):
    """A try to run them together that fails has drawn numbers: it is made before one counts, in each process."""
    c = made("a dirichlet process by sticks")
    how = {"engine": "eager", "log_every": 1}
    unbroken = fit(Program.from_pair(c.model, c.guide), c.data, steps=4, **how)
    fit(Program.from_pair(c.model, c.guide), c.data, steps=2, out=tmp_path / "run", **how)
    resumed = resume(tmp_path / "run", c.data, steps=4, program=Program.from_pair(c.model, c.guide))
    assert list(resumed.metrics["elbo"]) == list(unbroken.metrics["elbo"])


@pytest.mark.parametrize("name", CASES)
def test_what_follows_a_fit(name):
    if "fit" in made(name).refused:
        return
    c, run = eager(name)
    for op in FAST:
        refused(c, op, lambda op=op: OPS[op](c, run))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mcmc(name):
    c = made(name)
    refused(c, "mcmc", lambda: OPS["mcmc"](c, None))


def test_there_are_eighty():
    assert len(CASES) >= 80


def page() -> str:
    rows = []
    for name in CASES:
        c, cells = made(name), []
        for op in OPS:
            cells.append(f"refused: “{c.refused[op]}”" if op in c.refused else "yes" if "fit" not in c.refused else "–")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([
        "# Programs as Pyro users write them", "",
        "Each row is a program of `tests/pyro_programs.py`, run as it stands by `tests/test_pyro_programs.py`: its "
        "ELBO is that of Pyro's `Trace_ELBO` (`TraceEnum_ELBO` where discrete latents are summed out) from the same "
        "random state, a recorded step is an eager one, and what follows a fit runs, or is refused in one sentence. "
        "This page is written by `python tests/test_pyro_programs.py`, and a test holds it to the table.", "",
        "| program | " + " | ".join(OPS) + " |", "|---" * (len(OPS) + 1) + "|", *rows, "",
    ])  # fmt: skip


def test_the_page_is_of_this_table():
    assert PAGE.read_text() == page(), "run python tests/test_pyro_programs.py"


if __name__ == "__main__":
    logging.disable()
    PAGE.write_text(page())
