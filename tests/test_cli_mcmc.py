"""`ppgen mcmc`: what it prints and writes."""

import json
import subprocess
import sys

import xarray as xr


def ppgen(*arguments: str, cwd: object, ok: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ppgen", "mcmc", *arguments]
    done = subprocess.run(command, cwd=str(cwd), capture_output=True, text=True, timeout=200)
    assert (done.returncode == 0) == ok, done.stderr
    return done


FEW = ("--chains", "8", "--draws", "20", "--warmup", "30")


def test_a_table_and_a_file(tmp_path):
    done = ppgen("eight_schools", "--data", "eight_schools", *FEW, "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert {"mu", "tau", "theta[A]"} <= set(said["summary"]) and said["posterior"] == "eight_schools.nc"
    assert any("R-hat" in s for s in said["findings"]) and "R-hat" in done.stderr
    with xr.open_datatree(tmp_path / "eight_schools.nc") as tree:
        assert dict(tree["posterior"].sizes) == {"chain": 8, "draw": 20, "school": 8}
        assert tree.attrs["kernel"] == "chees" and "findings" in tree.attrs


def test_errors_are_one_sentence(tmp_path):
    done = ppgen("eight_schools", "--data", "eight_schools", "--kernel", "gibbs", cwd=tmp_path, ok=False)
    assert done.returncode == 2 and "kernel is 'gibbs'" in done.stderr and "Traceback" not in done.stderr
