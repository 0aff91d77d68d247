"""`infer` beside NumPyro's NUTS, nutpie and PyMC's Pathfinder: 23 posteriors of posteriordb.

    python benchmarks/posteriors_peers.py --data-dir DIR --out F [--methods nutpie] [--only kidiq] [--cap 90]
    python benchmarks/posteriors_peers.py --out F --infer G
    python benchmarks/posteriors_peers.py --out F --whole H

The first runs the peers, in an environment that has numpyro, pymc, nutpie, pymc-extras and arviz-stats (ppgen need not
be there), each run in a process of its own that is stopped when it has spent --cap CPU seconds, imports and compiling
among them. Lines that F has already are left out. The second prints the table, with `infer` from the lines of
`benchmarks/infer.py --out G`, medians over seeds. The third prints effective draws a CPU second, with
compiling counted, of `mcmc` and `infer` from `benchmarks/posteriors.py --methods mcmc infer --out H`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import warnings
from pathlib import Path
from typing import Any

import posteriordb_tables
from posteriordb_tables import NAMES, chained, errors, reported

METHODS = ("nutpie", "Pathfinder", "NumPyro x 1", "NumPyro x 4", "NumPyro x 64")
RIGHT = (0.1, 0.15)
WAIT = 4  # seconds by the clock for one of CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of posteriordb")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, read and appended to")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of posteriors' names")
    parser.add_argument("--cap", type=int, default=90, help="CPU seconds of a run")
    parser.add_argument("--infer", type=Path, help="JSON lines of benchmarks/infer.py: print the table, run nothing")
    parser.add_argument("--whole", type=Path, help="JSON lines of benchmarks/posteriors.py: print a table of rates")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.out.open()] if options.out.exists() else []
    if options.infer:
        print(table(rows, [json.loads(line) for line in options.infer.open()]))
        return
    if options.whole:
        print(whole_calls(rows, [json.loads(line) for line in options.whole.open()]))
        return
    done = {(r["posterior"], r["method"]) for r in rows}
    for method in options.methods:
        for name in NAMES:
            if any(part in name for part in options.only) and (name, method) not in done:
                row = {"posterior": name, "method": method} | capped(options.data_dir, name, method, options.cap)
                print(json.dumps(row), flush=True)
                with options.out.open("a") as f:
                    f.write(json.dumps(row) + "\n")


def capped(folder: str, name: str, method: str, cap: int) -> dict[str, Any]:
    """A run in a process of its own; a C++ compiler that it calls counts by the clock, at a load of `WAIT` at most."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(there, folder, name, method, cap))
    process.start()
    there.close()
    try:
        if here.poll(WAIT * cap):
            return here.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    return {"remark": f"stopped at {cap} CPU seconds"}


def _child(sender: Any, folder: str, name: str, method: str, cap: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cap, cap))
    warnings.simplefilter("ignore")
    try:
        row = measured(posteriordb_tables.read(folder, name), method)
    except Exception as e:
        row = {"remark": f"{type(e).__name__}: {e}"[:200]}
    sender.send(row)


def measured(p: posteriordb_tables.Table, method: str) -> dict[str, Any]:
    if method.startswith("NumPyro"):
        from posteriors_numpyro import sampled as numpyro_nuts

        draws, seconds, build = numpyro_nuts(p, method.split()[-1], 0)
        return chained(p, p.stacked(reported(draws)), seconds) | {"build": build}
    import posteriors_pymc

    if p.density not in posteriors_pymc.MODELS:
        return {"remark": "not written"}
    if method == "Pathfinder":
        draws, seconds, build, khat = posteriors_pymc.pathfinder(p, 0)
        return errors(p, p.stacked(reported(draws))) | {"seconds": seconds, "build": build, "khat": khat}
    draws, seconds, build = posteriors_pymc.sampled(p, 0)
    return chained(p, p.stacked(reported(draws)), seconds) | {"build": build}


# -- the table ---------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], inferred: list[dict[str, Any]]) -> str:
    """Markdown: of each posterior and method the errors, bold where they are right, and CPU seconds + compiling."""
    each = {(r["posterior"], r["method"]): r for r in rows}
    head = ["posterior", "infer", *METHODS]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for name in NAMES:
        cells = [_median([r for r in inferred if r["posterior"] == name and "mean" in r])]
        cells += [_cell(each.get((name, m), {})) for m in METHODS]
        lines.append([name.split("-", 1)[1] if not name.startswith("nes") else name.split("-")[0], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def whole_calls(rows: list[dict[str, Any]], own: list[dict[str, Any]]) -> str:
    """Markdown: the least bulk ESS a CPU second of whole calls; of the peers that without compiling as well."""
    each = {(r["posterior"], r["method"]): r for r in [*rows, *own]}
    ours, theirs = ["mcmc", "infer"], [m for m in METHODS if m.startswith("NumPyro")]
    lines = [["posterior", *ours, *theirs], ["---", *["--:"] * (len(ours) + len(theirs))]]
    for name in NAMES:
        cells = [f"{r['ess_s']:.0f}" if "ess" in (r := each.get((name, m), {})) else "" for m in ours]
        for m in theirs:
            r = each.get((name, m), {})
            cells.append(f"{r['ess'] / (r['seconds'] + r['build']):.0f} ({r['ess_s']:.0f})" if "ess" in r else "")
        lines.append([name.split("-", 1)[1] if not name.startswith("nes") else name.split("-")[0], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    return _cell({k: statistics.median(r[k] for r in rows) for k in ("mean", "log_sd", "seconds")}
                 | {"build": statistics.median(r["building"] for r in rows)})  # fmt: skip


def _cell(r: dict[str, Any]) -> str:
    if "mean" not in r:
        return ""
    off = f"{r['mean']:.3f} / {r['log_sd']:.3f}"
    right = r["mean"] <= RIGHT[0] and r["log_sd"] <= RIGHT[1]
    return f"{f'**{off}**' if right else off}, {r['seconds']:.2f} + {r['build']:.2g} s"


if __name__ == "__main__":
    main()
