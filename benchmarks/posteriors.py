"""How near every way to a posterior comes to reference draws, and at what cost: 23 posteriors of posteriordb.

    python benchmarks/posteriors.py --data-dir DIR [--methods chees nuts flow numpyro] [--only kidiq] [--out F]

For each posterior and method: the largest error of a mean in reference sd, the largest error of log sd, the largest
R-hat (chains) or k-hat (guides, and their draws corrected by PSIS), CPU seconds, and the least bulk effective draws of
any coordinate a CPU second. Every thread counts, and so does a compiler that was called. Seconds are warm-up and draws;
those of tracing and compiling stand beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import posteriordb
import torch
from posteriordb_tables import chained, cpu, errors, reported

METHODS = ("chees", "nuts", "mcmc", "infer", "normal", "mvn", "flow", "numpyro", "numpyro-svi", "pyro")
GUIDES = {"normal": "AutoNormal", "mvn": "AutoMultivariateNormal", "flow": "flow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="the folder of posteriordb")
    parser.add_argument("--methods", nargs="+", default=["chees"], choices=METHODS)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of posteriors' names")
    parser.add_argument("--steps", type=int, default=500, help="of a guide's fit: the same for every posterior")
    parser.add_argument(
        "--numpyro", nargs="+", default=["1", "4", "64", "4 dense", "64 dense"],
        help="chains of NumPyro's NUTS, vectorised, with a diagonal or a dense metric",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, one a posterior and method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    run = {
        "chees": chees, "nuts": nuts, "mcmc": whole_call, "infer": whole_call, "numpyro": numpyro_nuts,
        "numpyro-svi": numpyro_svi, "pyro": pyro_nuts,
        **{name: lambda p, o, g=guide: guided(p, o, g) for name, guide in GUIDES.items()},
    }  # fmt: skip
    print(f"{'posterior':28} {'method':14} mean/sd log sd   R-hat  k-hat build s    CPU s   ESS   ESS/s  remarks")
    for name in posteriordb.NAMES:
        if not any(part in name for part in options.only):
            continue
        posterior = posteriordb.load(options.data_dir, name)
        for method in options.methods:
            options.method = method
            for row in rows(run[method], posterior, options, method):
                row = {"posterior": name, **row}
                print(line(row), flush=True)
                if options.out:
                    with options.out.open("a") as f:
                        f.write(json.dumps(row) + "\n")


def rows(
    run: Callable[..., Iterable[dict[str, Any]]], p: posteriordb.Posterior, options: argparse.Namespace, method: str
) -> Iterator[dict[str, Any]]:
    """Of one method, as they come; one that fails says why, and the table goes on."""
    try:
        yield from run(p, options)
    except Exception as e:
        yield {"method": method, "remark": f"{type(e).__name__}: {e}"[:90]}


def line(row: dict[str, Any]) -> str:
    def cell(key: str, form: str) -> str:
        width = int(form.split(".")[0])
        return format(row[key], form) if row.get(key) is not None else " " * (width - 1) + "-"

    cells = [cell(k, f) for k, f in (
        ("mean", "7.3f"), ("log_sd", "6.3f"), ("rhat", "7.3f"), ("khat", "6.2f"), ("build", "7.1f"),
        ("seconds", "8.2f"), ("ess", "6.0f"), ("ess_s", "7.0f"),
    )]  # fmt: skip
    return f"{row['posterior'].split('-')[-1][:28]:28} {row['method']:14} {' '.join(cells)}  {row.get('remark', '')}"


# -- ppgen -------------------------------------------------------------------------------------------------


def chees(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [_chains(p, "chees", 64, 250, 400, options.seed)]


def nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [_chains(p, "nuts", 4, 1000, 500, options.seed)]


def whole_call(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`mcmc` or `infer` from the model to the tree, its checks too: tracing, building and compiling counted."""
    from ppgen import inference
    from ppgen.inference.verdicts.findings import load_findings, verdict

    method: str = options.method
    begun = cpu()
    tree = getattr(inference, method)(p.program(), p.columns, seed=options.seed, predictive=False, prior=False)
    seconds = cpu() - begun
    x = p.stacked(reported({str(n): v.values for n, v in tree["posterior"].data_vars.items()}))
    return [{"method": method, "remark": verdict(load_findings(tree))} | chained(p, x, seconds)]


def _chains(p: posteriordb.Posterior, kernel: str, C: int, S: int, W: int, seed: int) -> dict[str, Any]:
    """The graphs are built before the clock starts."""
    from ppgen.engine import log_joint
    from ppgen.inference.sampling.mcmc import run_chains
    from ppgen.inference.verdicts.findings import FINE, worst_first
    from ppgen.inference.verdicts.mcmc_diagnostics import findings
    from ppgen.run import default_dtype

    with default_dtype(torch.float64):
        torch.manual_seed(seed)
        begun = cpu()
        joint = log_joint(p.program().setup(p.columns), p.columns, engine="auto", calls=10**6)
        if kernel == "chees":
            y = torch.zeros(C, joint.dim)
            root = torch.eye(joint.dim)  # these posteriors are small: the metric is dense
            joint.leapfrog(y, y, y, torch.tensor(0.0), y[0], root)
        else:
            joint.value_and_grad(torch.zeros(joint.dim))
            run_chains(joint, kernel, 1, 4, 20)  # nutpie takes two seconds to be loaded
        built = cpu()
        found = run_chains(joint, kernel, C, S, W, seed=seed)
        done = cpu()
        x = p.stacked(reported({n: v.movedim(0, 1).numpy() for n, v in joint.unflatten(found.u).items()}))
        said = worst_first(f for f in findings(found, joint) if f.verdict != FINE)
    row = chained(p, x, done - built) | {"build": built - begun}
    divergent = int(found.stats["diverging"].sum())
    remark = "; ".join([f"{found.steps} leapfrog steps, {divergent} divergent", *(f.measure for f in said)])
    return {"method": kernel, "remark": remark[:150], "findings": [f.as_dict() for f in said]} | row


def guided(p: posteriordb.Posterior, options: argparse.Namespace, guide: str) -> list[dict[str, Any]]:
    """The guide's draws, and the same corrected by their smoothed importance weights, whatever k-hat is."""
    from ppgen.inference import fit, posterior
    from ppgen.inference.evaluation.psis import resampled, smoothed

    short = next(k for k, v in GUIDES.items() if v == guide)
    begun = cpu()
    run = fit(
        p.program(), p.columns, steps=options.steps, lr=0.01, schedule="cosine", particles=16, guide=guide,
        precision="64-true", seed=options.seed, starts=8,
    )  # fmt: skip
    seconds = cpu() - begun
    rows = []
    tree = posterior(run, p.columns, draws=10_000, predictive=False, prior=False, seed=options.seed)
    log_w, k = smoothed((tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values.reshape(-1, 1))
    x = p.stacked(reported({n: v.values for n, v in tree["posterior"].data_vars.items()}))
    rows.append({"method": short, "khat": float(k[0]), "seconds": seconds} | errors(p, x))
    chosen = resampled(log_w[:, 0], 10_000, np.random.default_rng(options.seed))
    rows.append({"method": f"{short} + PSIS", "khat": float(k[0]), "seconds": seconds} | errors(p, x[:, chosen]))
    return rows


# -- peers -------------------------------------------------------------------------------------------------


def pyro_nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    import pyro
    from pyro.infer import MCMC, NUTS

    from ppgen.run import default_dtype

    with default_dtype(torch.float64), pyro.validation_enabled(False):
        pyro.set_rng_seed(options.seed)
        begun = cpu()
        sampler = MCMC(NUTS(p.model), num_samples=300, warmup_steps=300, disable_progbar=True)
        sampler.run(**p.columns)
        seconds = cpu() - begun
        draws = {n: v.numpy() for n, v in sampler.get_samples(group_by_chain=True).items()}
    return [{"method": "Pyro NUTS"} | chained(p, p.stacked(reported(draws)), seconds)]


def numpyro_nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from posteriors_numpyro import sampled

    for setting in options.numpyro:
        draws, seconds, build = sampled(p, setting, options.seed)
        x = p.stacked(reported(draws))
        yield {"method": f"NumPyro x {setting}", "build": build} | chained(p, x, seconds)


def numpyro_svi(p: posteriordb.Posterior, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from posteriors_numpyro import fitted

    for short in ("normal", "mvn"):
        draws, seconds, build = fitted(p, GUIDES[short], options.steps, options.seed)
        yield {"method": f"NumPyro {short}", "build": build, "seconds": seconds} | errors(p, p.stacked(reported(draws)))


if __name__ == "__main__":
    main()
