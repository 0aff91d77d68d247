"""`infer` on 23 posteriors of posteriordb, many seeds: what it says beside how far it is from reference draws.

    python benchmarks/infer.py --data-dir DIR [--seeds 3] [--only kidiq] [--out F.jsonl] [--rungs gaussian chees]

One JSON line a posterior and seed, with the method, the verdict, the largest error of a mean in reference sd and of a
log sd, CPU seconds, and those of tracing and compiling, which stand apart; so do imports. With --out the runs that the
file has already are left out, so that it can be stopped and gone on with. Trees are without predictions. At the end the
table: how many are said to be believed, of these how many are within 0.1 sd and 0.15 in log sd, and how many are
silently off by more than 0.3.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import posteriordb
import torch
from posteriordb_tables import cpu, errors, reported

CLOSE, FAR = (0.1, 0.15), (0.3, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="the folder of posteriordb")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of posteriors' names")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--rungs", nargs="+", help="methods in place of all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further run is begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = [json.loads(line) for line in options.out.open()] if options.out and options.out.exists() else []
    done = {(r["posterior"], r["seed"]) for r in rows}
    _imports()
    began = time.monotonic()
    for seed in range(options.seeds):
        for name in posteriordb.NAMES:
            wanted = any(part in name for part in options.only) and (name, seed) not in done
            if not wanted or time.monotonic() - began > options.seconds:
                continue
            row = measured(posteriordb.load(options.data_dir, name), seed, options.rungs)
            print(line(row), flush=True)
            rows.append(row)
            if options.out:
                with options.out.open("a") as f:
                    f.write(json.dumps(row) + "\n")
    if rows:
        summary(rows)


def _imports() -> None:
    """A posterior of one latent: what is imported only when it is needed is counted to no other."""
    import pyro

    from ppgen.inference import infer

    infer(lambda one: pyro.sample("m", pyro.distributions.Normal(0.0, 1.0)), {"one": torch.ones(1)}, predictive=False)


def measured(p: posteriordb.Posterior, seed: int, rungs: list[str] | None) -> dict[str, Any]:
    from ppgen.inference.sampling import infer

    ladder = infer.LADDER
    if rungs:
        infer.LADDER = tuple(r for r in ladder if r.__name__ in rungs)
    begun, trace = cpu(), _clock_of_traces()
    try:
        tree = infer.infer(p.program(), p.columns, seed=seed, predictive=False, prior=False)
    except Exception as e:
        return {"posterior": p.name, "seed": seed, "method": "none", "verdict": "none", "remark": str(e)[:200]}
    finally:
        infer.LADDER = ladder
    seconds = cpu() - begun
    group: Any = tree["posterior"]
    x = p.stacked(reported({n: v.values for n, v in group.data_vars.items()}))
    tried = json.loads(tree.attrs["tried"])
    return {
        "posterior": p.name, "seed": seed, "method": tree.attrs["method"], "verdict": tree.attrs["verdict"],
        "seconds": seconds - trace[0], "building": trace[0],
        "remark": "; ".join(w for t in tried for w in t["why"])[:300],
    } | errors(p, x)  # fmt: skip


def _clock_of_traces() -> list[float]:
    """CPU seconds from now on of tracing and compiling the log joint and the draws of the tree, in a list of one."""
    from ppgen import draws
    from ppgen.engine.density import joint

    spent = [0.0]
    for owner, name in ((joint.LogJoint, "build"), (draws.Many, "_record")):
        setattr(owner, name, _timed(getattr(owner, name), spent))
    return spent


def _timed(build: Any, spent: list[float]) -> Any:
    plain = getattr(build, "plain", build)

    def timed(*args: Any) -> Any:
        begun = cpu()
        try:
            return plain(*args)
        finally:
            spent[0] += cpu() - begun

    timed.plain = plain  # type: ignore[attr-defined]
    return timed


def line(r: dict[str, Any]) -> str:
    if "mean" not in r:
        return f"{r['posterior'][:40]:40} {r['seed']:2} {r['remark'][:100]}"
    return (
        f"{r['posterior'][:40]:40} {r['seed']:2} {r['method']:9} {r['verdict']:5} mean {r['mean']:.3f} "
        f"log sd {r['log_sd']:.3f}  {r['seconds']:6.2f} s + {r['building']:.2f} s building  {r['remark'][:90]}"
    )


def summary(rows: list[dict[str, Any]]) -> None:
    ran = [r for r in rows if "mean" in r]
    believed = [r for r in ran if r["verdict"] == "fine"]
    right = [r for r in ran if r["mean"] <= CLOSE[0] and r["log_sd"] <= CLOSE[1]]
    close = [r for r in believed if r in right]
    silent = [r for r in believed if r["mean"] > FAR[0] or r["log_sd"] > FAR[1]]
    seconds = np.array([r["seconds"] for r in ran])
    print(f"{len(rows)} runs of {len({r['posterior'] for r in rows})} posteriors")
    print(f"said to be believed {len(believed)}, of which within {CLOSE[0]} sd and {CLOSE[1]} in log sd {len(close)}")
    print(f"right {len(right)}, of which said to be believed {len(close)}; silently off by over 0.3: {len(silent)}")
    long = int((seconds > 10).sum())
    print(f"CPU seconds: median {np.median(seconds):.2f}, {long} runs above 10, most {seconds.max():.1f}")
    for method in sorted({r["method"] for r in ran}):
        print(f"  by {method}: {sum(r['method'] == method for r in ran)}")


if __name__ == "__main__":
    main()
