"""The algorithm catalogue: one algorithm a file, each a function of a program or a run."""

from ppgen.inference.calibrate import calibrate
from ppgen.inference.compare import compare
from ppgen.inference.diagnose import diagnose
from ppgen.inference.drawer import drawer
from ppgen.inference.findings import Finding, load_findings, verdict
from ppgen.inference.fit import fit, resume
from ppgen.inference.impute import impute
from ppgen.inference.ledger import ledger
from ppgen.inference.loglik import loglik
from ppgen.inference.mcmc import mcmc
from ppgen.inference.objective import Objective
from ppgen.inference.plot import plot
from ppgen.inference.posterior import posterior, predict
from ppgen.inference.report import report
from ppgen.inference.sample import reconstruct, sample
from ppgen.inference.samplers import draw
from ppgen.inference.tree_plots import plot_tree
from ppgen.inference.weights import chain_weights, weigh

__all__ = [
    "Finding",
    "Objective",
    "calibrate",
    "chain_weights",
    "compare",
    "diagnose",
    "draw",
    "drawer",
    "fit",
    "impute",
    "ledger",
    "load_findings",
    "loglik",
    "mcmc",
    "plot",
    "plot_tree",
    "posterior",
    "predict",
    "reconstruct",
    "report",
    "resume",
    "sample",
    "verdict",
    "weigh",
]
