"""`ppgen mcmc`: what it prints and writes, and what other commands do with that."""

import contextlib
import json

import pytest
import xarray as xr
from known import SCHOOLS
from typer.testing import CliRunner, Result

from ppgen.cli import app
from ppgen.inference import fit, mcmc
from ppgen.inference.evaluation.compare import loo
from ppgen.inference.verdicts.findings import load_findings
from ppgen.models import EightSchools
from ppgen.run.files import read_netcdf, write_netcdf


def ppgen(*arguments: str, cwd: object, code: int = 0) -> Result:
    with contextlib.chdir(str(cwd)):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


FEW = ("--chains", "8", "--draws", "20", "--warmup", "30")


def test_a_table_and_a_file(tmp_path):
    done = ppgen("mcmc", "eight_schools", "--data", "eight_schools", *FEW, "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert {"mu", "tau", "theta[A]"} <= set(said["summary"]) and said["posterior"] == "eight_schools.nc"
    assert any("R-hat" in f["sentence"] for f in said["findings"]) and "R-hat" in done.stderr
    with xr.open_datatree(tmp_path / "eight_schools.nc") as tree:
        assert dict(tree["posterior"].sizes) == {"chain": 8, "draw": 20, "school": 8}
        assert tree.attrs["kernel"] == "chees"
        assert [f.as_dict() for f in load_findings(tree)] == said["findings"] and said["verdict"] != "fine"


def test_errors_are_one_sentence(tmp_path):
    done = ppgen("mcmc", "eight_schools", "--data", "eight_schools", "--kernel", "gibbs", cwd=tmp_path, code=2)
    assert "no kernel 'gibbs'" in done.stderr
    fit(EightSchools(), SCHOOLS, steps=0, out=tmp_path / "run")
    done = ppgen("mcmc", "run", "--set", "centred=True", cwd=tmp_path, code=2)
    assert "--set gives arguments to a program" in done.stderr
    both = ("--data", "eight_schools", "--through-guide", "--marginal", "theta")
    done = ppgen("mcmc", "run", *both, cwd=tmp_path, code=2)
    assert "leave one of the two out" in done.stderr


@pytest.fixture(scope="module")
def posterior_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("posterior") / "schools.nc"
    write_netcdf(path, mcmc(EightSchools(), SCHOOLS, chains=8, draws=50, warmup=60, engine="trace"))
    return path


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # 400 draws are few for PSIS
def test_a_posterior_is_judged_as_it_is(posterior_file):
    """The same estimate as ppgen compare's, and pictures without a program."""
    done = ppgen("evaluate", "schools.nc", "--json", cwd=posterior_file.parent)
    said = json.loads(done.stdout)
    assert said["rows"] == 8 and said["loo"] == pytest.approx(loo(read_netcdf(posterior_file)).total)
    done = ppgen("plot", "schools.nc", "--json", cwd=posterior_file.parent)
    files = [posterior_file.parent / f for f in json.loads(done.stdout)["files"]]
    assert [f.name for f in files] == ["latents.png", "ranks.png", "energy.png", "predictive.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") and f.parent.name == "schools-plots" for f in files)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("evaluate", "schools.nc", "--split", "test"), "--split is for a run, and schools.nc is a posterior"),
        (("plot", "schools.nc", "--data", "x.csv"), "--data is for a run, and schools.nc is a posterior"),
        (("report", "schools.nc"), "schools.nc is a posterior, and a run folder is expected"),
    ],
)
def test_what_a_posterior_cannot_do(posterior_file, arguments, said):
    done = ppgen(*arguments, cwd=posterior_file.parent, code=2)
    assert said in done.stderr
