"""The algorithm catalogue: one algorithm a file, each a function of a program or a run."""

from ppgen.inference.diffusion.distil import distil
from ppgen.inference.diffusion.elbo_decomposition import ElboDecomposition, elbo_decomposition
from ppgen.inference.diffusion.guidance import Guided, linear_weight
from ppgen.inference.diffusion.impute import impute
from ppgen.inference.diffusion.path_weights import chain_weights, importance_sample
from ppgen.inference.diffusion.samplers import sample_diffusion
from ppgen.inference.evaluation.calibrate import calibrate
from ppgen.inference.evaluation.compare import Score, compare
from ppgen.inference.evaluation.compiled_sampler import compiled_sampler
from ppgen.inference.evaluation.diagnose import Diagnosis, diagnose
from ppgen.inference.evaluation.estimates import Bound, LogLik
from ppgen.inference.evaluation.loglik import loglik
from ppgen.inference.evaluation.posterior import posterior
from ppgen.inference.evaluation.predict import predict
from ppgen.inference.evaluation.sample import reconstruct, sample
from ppgen.inference.objective import Objective
from ppgen.inference.report.plot import plot
from ppgen.inference.report.report import report
from ppgen.inference.report.tree_plots import plot_tree
from ppgen.inference.sampling.evidence import BayesFactors, EvidenceBounds, bayes_factors, evidence
from ppgen.inference.sampling.infer import infer
from ppgen.inference.sampling.mcmc import mcmc
from ppgen.inference.training.fit import fit, resume
from ppgen.inference.training.gradient_noise import GradientNoise, gradient_noise
from ppgen.inference.verdicts.findings import Finding, load_findings, verdict

__all__ = [
    "BayesFactors",
    "Bound",
    "Diagnosis",
    "ElboDecomposition",
    "EvidenceBounds",
    "Finding",
    "GradientNoise",
    "Guided",
    "LogLik",
    "Objective",
    "Score",
    "bayes_factors",
    "calibrate",
    "chain_weights",
    "compare",
    "compiled_sampler",
    "diagnose",
    "distil",
    "elbo_decomposition",
    "evidence",
    "fit",
    "gradient_noise",
    "importance_sample",
    "impute",
    "infer",
    "linear_weight",
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
    "sample_diffusion",
    "verdict",
]
