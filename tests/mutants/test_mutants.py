"""Would the tests notice? Bugs planted one at a time, each of which some test has to see.

The rows are in `table_*.py`, by area. What is slow here is `make mutants`; `-k NAME` plants one of them.
"""

from __future__ import annotations

import re

import pytest
import table_chains
import table_core
import table_data
import table_evidence
import table_fitting
import table_models
import table_nested
import table_programs
import table_pyro_compat
import table_runs
import table_sampling
import table_transforms
from planting import ROOT, Mutant, PlantingError, complaint, planted, run, sources

TABLES = {
    "core": table_core.MUTANTS,
    "chains": table_chains.MUTANTS,
    "transforms": table_transforms.MUTANTS,
    "models": table_models.MUTANTS,
    "sampling": table_sampling.MUTANTS,
    "evidence": table_evidence.MUTANTS,
    "fitting": table_fitting.MUTANTS,
    "data": table_data.MUTANTS,
    "programs": table_programs.MUTANTS,
    "nested": table_nested.MUTANTS,
    "pyro_compat": table_pyro_compat.MUTANTS,
    "runs": table_runs.MUTANTS,
}
LEAST = 200  # rows: a bug may lose its place in the source, and is then planted elsewhere
MUTANTS = {m.name: m for table in TABLES.values() for m in table}


def test_every_bug_can_be_planted():
    """Nothing here runs a test: a refactoring that loses a row is seen at once."""
    rows = [m for table in TABLES.values() for m in table]
    assert len(rows) == len(MUTANTS) >= LEAST, "rows of the same name, or fewer than there were"
    texts, lost = {path: path.read_text() for path in sources()}, []
    for m in rows:
        try:
            path, text = planted(m, texts=texts)
            compile(text, path, "exec")
            assert text != texts[path], f"{m.name} changes nothing"
        except PlantingError as e:
            lost.append(str(e))
    assert not lost, "\n".join(lost)


def test_every_row_names_tests_that_are_there():
    for m in MUTANTS.values():
        for test in m.tests.split():
            file, name = re.match(r"(tests/\w+\.py)::(\w+)", test).groups()
            assert f"def {name}(" in (ROOT / file).read_text(), f"{m.name}: there is no test {test}"


def test_a_snippet_is_found_once():
    with pytest.raises(PlantingError, match="lost is found 0 times, and has to be found once"):
        planted(Mutant("lost", "this is no code of ours at all", "", ""))
    with pytest.raises(PlantingError, match=r"common is found \d+ times \(in .*_"):
        planted(Mutant("common", "from __future__ import annotations", "", ""))


@pytest.mark.slow
def test_a_bug_that_breaks_the_import_proves_nothing():
    row = next(iter(MUTANTS.values()))
    assert complaint(*run(row.tests.split(), row._replace(new="1 +"))) == "the tests did not run"
    assert "no_such_name" in complaint(*run(row.tests.split(), row._replace(new="no_such_name")))


@pytest.mark.slow
@pytest.mark.parametrize("area", list(TABLES))
def test_nothing_fails_where_nothing_is_planted(area):
    code, output = run(sorted({i for m in TABLES[area] for i in m.tests.split()}), limit=1800)
    assert code == 0, output[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MUTANTS))
def test_it_is_noticed(name):
    code, output = run(MUTANTS[name].tests.split(), MUTANTS[name])
    assert not (why := complaint(code, output)), f"{name}: {why}\n{output[-5000:]}"
