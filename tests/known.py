"""Programs that many tests run: small ones whose log p(x) and posterior are known, and one row a kind of model.

MODELS names every model of the catalogue (a model may have several rows) with the data that it is tried on: each is
put through every law of test_models.py. A file in models/ without a row fails the suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppgen import Program, rows
from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.chains.schedules import make_schedule
from ppgen.draws import ManyTerms
from ppgen.formula.design import Design
from ppgen.formula.priors import Priors
from ppgen.inference.bounds import Setting, log_weights
from ppgen.models import (
    ARMA,
    DDPM,
    EDM,
    PPCA,
    VAE,
    VDM,
    VQVAE,
    Autoregressive,
    ClusteringVAE,
    CountRegression,
    DeepMarkov,
    Diffusion,
    DiffusionBridge,
    EightSchools,
    Flow,
    FlowMatching,
    GaussianMixture,
    GaussianProcess,
    HiddenMarkov,
    ImageFlow,
    LadderVAE,
    LinearRegression,
    LogisticRegression,
    MaskedDiffusion,
    PixelCNN,
    PixelVAE,
    Radon,
    SemiSupervisedVAE,
    StateSpace,
)
from ppgen.models import Regression as ByFormula
from ppgen.structure import Structure


class NormalMean(Program):
    """m ~ N(0, prior), x_i | m ~ N(m, sd): one global latent, conjugate. No guide of its own."""

    def __init__(self, prior: float = 2.0, sd: float = 1.5):
        super().__init__()
        self.prior, self.sd = prior, sd

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(0.0, self.prior))
        with rows(x):
            pyro.sample("x", dist.Normal(m, self.sd), obs=x)

    def posterior(self, x: Tensor) -> dist.Normal:
        """p(m | x)."""
        precision = self.prior**-2 + len(x) * self.sd**-2
        return dist.Normal(x.sum() / self.sd**2 / precision, precision**-0.5)

    def log_evidence(self, x: Tensor) -> float:
        """log p(x_1 ... x_n): x ~ N(0, sd² I + prior² 1 1ᵀ)."""
        x = x.double()
        cov = self.sd**2 * torch.eye(len(x)).double() + self.prior**2
        return float(dist.MultivariateNormal(torch.zeros(len(x)).double(), covariance_matrix=cov).log_prob(x))


class GuidedNormalMean(NormalMean):
    """`NormalMean` whose guide is the posterior, `width` times as wide."""

    def __init__(self, prior: float = 2.0, sd: float = 1.5, width: float = 1.0):
        super().__init__(prior, sd)
        self.log_width = nn.Parameter(torch.tensor(math.log(width)))

    def guide(self, x):
        q = self.posterior(x)
        pyro.sample("m", dist.Normal(q.loc, q.scale * self.log_width.exp()))


class Gaussian(Program):
    """x ~ N(mu, s): nothing is latent, log p(x) is exact."""

    def __init__(self, mu: float = 0.5, scale: float = 2.0):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def model(self, x=None):
        with rows(x):
            pyro.sample("x", dist.Normal(self.mu, self.log_scale.exp()), obs=x)


class Regression(Program):
    """b ~ N(0, I), y | b ~ N(X b, 1), written with `X @ b`: it does not run with several particles at once."""

    def model(self, x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
        with rows(x):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    def posterior(self, x: Tensor, y: Tensor) -> dist.MultivariateNormal:
        """p(b | x, y)."""
        precision = torch.eye(x.shape[-1]) + x.T @ x
        return dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y), precision_matrix=precision)


class GuidedRegression(Regression):
    """`Regression` whose guide is the posterior."""

    def __init__(self):
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(0.0))

    def guide(self, x, y):
        q = self.posterior(x, y)
        pyro.sample("b", dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril * self.log_width.exp()))


class KnownChain(GaussianChain):
    """A chain for x ~ N(m, C) whose denoiser is exact: E[x | z_t] = m + α C (α² C + σ² I)⁻¹ (z_t − α m).

    With many steps it is the diffusion model of these data, and everything about it is known.
    """

    def __init__(self, mean=(1.0, -0.5), factor=((1.0, 0.0), (0.6, 0.5)), steps=1000, schedule="cosine", process="vp",
                 low=-10.0, high=8.0):  # fmt: skip
        super().__init__()
        self.steps, self.process, self.variance = steps, process, "posterior"
        self.schedule = make_schedule(schedule, low, high)
        self.register_buffer("mean", torch.tensor(mean).double())
        self.register_buffer("factor", torch.tensor(factor).double())
        self.register_buffer("zero", torch.zeros_like(self.mean))
        self.nothing = nn.Parameter(torch.zeros(()).double())
        self.eval()

    @property
    def data(self) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.mean, scale_tril=self.factor)

    @property
    def eigenvalues(self) -> Tensor:
        return torch.linalg.eigvalsh(self.data.covariance_matrix)

    def encode(self, x):
        return x

    def decode(self, x):
        return x

    def predict(self, z, t, **columns):
        gamma, alpha, _ = self.coefficients(t)
        c = self.data.covariance_matrix
        precision = torch.linalg.inv(c + gamma.exp()[..., None] * torch.eye(len(c)).double())
        return self.mean + ((z / alpha - self.mean)[..., None, :] @ precision @ c)[..., 0, :] + self.nothing, None

    def likelihood(self, z, **columns):
        gamma, alpha, _ = self.coefficients(0.0)
        return dist.Normal(z / alpha, (gamma / 2).exp().expand(z.shape)).to_event(1)

    def model(self, x=None):
        with rows(x):
            z = pyro.sample(f"z_{self.steps}", self.base())
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.reverse(z, s, t))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        with rows(x):
            z = pyro.sample(f"z_{self.steps}", self.forward(x, 1.0))
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.posterior(z, x, s, t))

    def error(self, gamma: Tensor) -> Tensor:
        """E |x - E[x | z_t]|², (...)."""
        return (self.eigenvalues / (1 + self.eigenvalues * (-gamma[..., None]).exp())).sum(-1)

    def expected_terms(self, steps: int | None = None) -> dict[str, Tensor]:
        """E over data of each term of the ELBO: prior, the KL of each step (its limit's sum for 0), reconstruction."""
        n = self.steps if steps is None else steps
        gamma = self.schedule(torch.linspace(0, 1, n + 1).double()) if n else self.schedule(torch.arange(2).double())
        snr = (-gamma).exp()
        _, alpha, sigma = self.coefficients(1.0)
        total = alpha**2 + sigma**2
        second = alpha**2 * (self.mean @ self.mean + self.eigenvalues.sum())
        d = len(self.mean)
        kl = 0.5 * (d * (sigma**2 / total - 1 - (sigma**2 / total).log()) + second / total)
        if n:
            steps_kl = 0.5 * (snr[:-1] - snr[1:]) * self.error(gamma[1:])
        else:
            log_ratio = torch.log1p(self.eigenvalues * snr[0]) - torch.log1p(self.eigenvalues * snr[1])
            steps_kl = 0.5 * log_ratio.sum()[None]
        return {"prior": -kl, "steps": -steps_kl, "data": -0.5 * d * (math.log(2 * math.pi * math.e) + gamma[:1])}

    def term_deviations(self) -> dict[str, Tensor]:
        """The standard deviation over data and noise of each term of a row's ELBO, as `expected_terms` has them."""
        gamma = self.schedule(torch.linspace(0, 1, self.steps + 1).double())
        snr, c = (-gamma).exp(), self.data.covariance_matrix
        _, alpha, sigma = self.coefficients(1.0)
        length = (2 * (c @ c).trace() + 4 * self.mean @ c @ self.mean).sqrt()  # of |x|²
        errors = self.eigenvalues / (1 + self.eigenvalues * snr[1:, None])  # variances of x - E[x | z_t]
        return {
            "prior": 0.5 * alpha**2 / (alpha**2 + sigma**2) * length,
            "steps": 0.5 * (snr[:-1] - snr[1:]) * (2 * (errors**2).sum(-1)).sqrt(),
            "data": torch.tensor(len(self.mean) / 2).sqrt()[None],
        }

    def expected_elbo(self, steps: int | None = None) -> float:
        """E over data of the ELBO, nats a row; steps = 0 is the limit."""
        return float(sum(v.sum() for v in self.expected_terms(steps).values()))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draws from N(0, 1) that are the same everywhere."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ppca(features: int = 4, latent: int = 2, *, width: float = 1.0, dead: int = 0) -> PPCA:
    """A PPCA whose guide has the posterior's mean, and `width` times its standard deviation in every direction.

    The last `dead` latents reach no feature.
    """
    program = PPCA(features, latent)
    program.W.copy_(normal(features, latent, seed=3))
    program.W[:, latent - dead :] = 0.0
    program.mu.copy_(normal(features, seed=4))
    program.log_sigma.fill_(-0.2)
    program.match_guide_()
    scale = width * nn.functional.softplus(program.raw_diagonal)
    program.raw_below.mul_(width)
    program.raw_diagonal.copy_(scale + torch.log(-torch.expm1(-scale)))
    return program


SCHOOLS = {
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
}


def vae(**options: object) -> Callable[[], VAE]:
    return lambda: VAE(**({"features": 6, "latent": 2, "hidden": (8,)} | options))


def binary(*shape: int) -> Tensor:
    return (normal(*(shape or (12, 6))) > 0).float()


def grey(rows: int, *shape: int, levels: int = 17) -> Tensor:
    """Values k / (levels - 1)."""
    return (torch.sigmoid(normal(rows, *shape)) * (levels - 1)).round() / (levels - 1)


LABELS = torch.arange(12) % 3
COUNTS = torch.tensor([0.0, 2, 1, 0, 4, 1, 3, 0, 0, 1, 7, 2])

# of a formula, as formulae reads it: what a run folder keeps
VARYING: Design = {
    "response": {"y": "y", "trials": None, "status": None, "status_of": None, "categories": 0},
    "intercept": True,
    "matrix": {"terms": [[{"x": "x"}]], "labels": ["x"]},
    "means": [0.25],
    "offsets": [],
    "groups": [
        {"name": "g", "codes": "g", "size": 3, "correlated": True,
         "matrix": {"terms": [[], [{"x": "x"}]], "labels": ["Intercept", "x"]}},
    ],
    "levels": {"g": (["g"], ["a", "b", "c"], True)},
    "arguments": ["x", "g"],
}  # fmt: skip
WIDE: Priors = {
    "intercept": [0.5, 2.5], "slopes": [[0.0, 2.0]], "spread": {"g": [1.5, 1.0]},
    "beside": {"sigma": ("Exponential", [2.0])},
}  # fmt: skip

MODELS: dict[str, tuple[Callable[[], Program], dict[str, Tensor]]] = {
    "vae": (vae(), {"x": binary()}),
    "vae normal": (vae(likelihood="normal", noise="feature", low=-1.0), {"x": normal(12, 6)}),
    "vae logistic": (vae(likelihood="logistic", levels=17), {"x": grey(12, 6)}),
    "vae categorical": (vae(likelihood="categorical", levels=17), {"x": grey(12, 6)}),
    "vae counts": (vae(likelihood="zinb"), {"x": (2 * normal(12, 6)).clamp_min(0).round(), "exposure": 1.0 + LABELS}),
    "vae conditional": (vae(classes=3), {"x": binary(), "y": LABELS}),
    "vae convolutional": (
        vae(features=(8, 8), net="conv", hidden=(4, 8), likelihood="logistic", levels=17),
        {"x": grey(6, 8, 8)},
    ),
    "ladder_vae": (lambda: LadderVAE(6, (3, 2), (8, 4)), {"x": binary()}),
    "ladder_vae convolutional": (
        lambda: LadderVAE((8, 8), (3, 2), (8, 4), skip=True, net="conv", convolutions=(4, 8)),
        {"x": binary(6, 64).reshape(6, 8, 8)},
    ),
    "pixel_cnn": (
        lambda: PixelCNN(16, patch=2, width=4, layers=1, window=1, context=True),
        {"x": binary(6, 16), "h": normal(6, 4, 2, 2)},
    ),
    "pixel_vae": (
        lambda: PixelVAE(16, (3, 2), (6, 4), patch=2, width=4, layers=1, window=1, net="mlp"),
        {"x": binary(6, 16)},
    ),
    "semi_supervised_vae": (
        lambda: SemiSupervisedVAE(6, 3, latent=2, hidden=(8,)),
        {"x": binary(), "y": torch.where(LABELS == 1, torch.nan, LABELS.float())},
    ),
    "clustering_vae": (lambda: ClusteringVAE(6, 3, latent=2, hidden=(8,)), {"x": binary()}),
    "vq_vae": (lambda: VQVAE(6, 2, 3, 2, (8,)), {"x": binary()}),
    "vq_vae running means": (
        lambda: VQVAE(6, 2, 3, 2, (8,), "autoregressive", decay=0.9),
        {"x": binary()},
    ),
    "vq_vae convolutional": (
        lambda: VQVAE(64, 2, 3, 2, (4, 8), net="conv"),
        {"x": binary(6, 64)},
    ),
    "ppca": (lambda: PPCA(4, 2), {"x": normal(12, 4)}),
    "ppca diagonal": (lambda: PPCA(4, 2, posterior_scale="diagonal"), {"x": normal(12, 4)}),
    "flow": (lambda: Flow(2, "nsf", 2, hidden=(8,)), {"x": normal(12, 2)}),
    "flow conditional": (
        lambda: Flow(2, "maf", 2, hidden=(8,), context=3, base="student"),
        {"x": normal(12, 2), "context": normal(12, 3, seed=1)},
    ),
    "flow discrete": (lambda: Flow(4, "realnvp", 2, hidden=(8,), levels=17), {"x": grey(12, 4)}),
    "flow variational": (
        lambda: Flow(4, "maf", 2, hidden=(8,), levels=17, dequantise="variational"),
        {"x": grey(12, 4)},
    ),
    "image_flow": (
        lambda: ImageFlow((1, 4, 4), scales=1, steps=2, hidden=8, levels=17),
        {"x": grey(12, 16)},
    ),
    "image_flow tarflow": (
        lambda: ImageFlow((1, 4, 4), steps=2, hidden=8, levels=17, family="tarflow", layers=1),
        {"x": grey(12, 16)},
    ),
    "image_flow splines": (
        lambda: ImageFlow((1, 4, 4), steps=1, hidden=8, levels=17, family="tarflow", layers=1, bins=4),
        {"x": grey(12, 16)},
    ),
    "diffusion": (lambda: Diffusion(3, hidden=(8,), steps=3), {"x": normal(12, 3)}),
    "diffusion learned": (
        lambda: Diffusion(3, hidden=(8,), steps=3, schedule="learned", variance="learned", gamma_low=-2.0),
        {"x": normal(12, 3)},
    ),
    "diffusion conditional": (
        lambda: Diffusion(3, hidden=(8,), steps=2, classes=3, likelihood="discrete", levels=17),
        {"x": grey(12, 3), "y": LABELS},
    ),
    "flow_matching": (lambda: FlowMatching(3, hidden=(8,), steps=3), {"x": normal(12, 3)}),
    "flow_matching coupled": (
        lambda: FlowMatching(3, hidden=(8,), steps=3, coupling="ot", gamma_high=6.0),
        {"x": normal(12, 3)},
    ),
    "diffusion_bridge": (
        lambda: DiffusionBridge(3, hidden=(8,), steps=3),
        {"x0": normal(12, 3, seed=1), "x": normal(12, 3)},
    ),
    "ddpm": (lambda: DDPM(3, 4, hidden=(8,)), {"x": normal(12, 3)}),
    "vdm": (lambda: VDM(3, hidden=(8,), steps=3, gamma_low=-5.0), {"x": normal(12, 3)}),
    "edm": (lambda: EDM(3, hidden=(8,), steps=3, sigma_min=0.05), {"x": normal(12, 3)}),
    "masked_diffusion": (lambda: MaskedDiffusion(3, 4, hidden=(8,), steps=3), {"x": grey(12, 3, levels=4)}),
    "autoregressive": (lambda: Autoregressive(3, 4, width=8, layers=1, heads=2), {"x": grey(12, 3, levels=4)}),
    "diffusion u-net": (
        lambda: Diffusion((1, 8, 8), "unet", (4, 8), steps=2, likelihood="bernoulli"),
        {"x": binary(6, 64)},
    ),
    "eight_schools": (EightSchools, SCHOOLS),
    "linear_regression": (lambda: LinearRegression(2), {"x": normal(12, 2), "y": normal(12, seed=1)}),
    "linear_regression horseshoe": (
        lambda: LinearRegression(2, prior="horseshoe"),
        {"x": normal(12, 2), "y": normal(12, seed=1)},
    ),
    "logistic_regression": (lambda: LogisticRegression(2), {"x": normal(12, 2), "y": binary(12, 1)[:, 0]}),
    "count_regression": (lambda: CountRegression(2), {"x": normal(12, 2), "y": COUNTS}),
    "count_regression negative_binomial": (
        lambda: CountRegression(2, family="negative_binomial"),
        {"x": normal(12, 2), "exposure": normal(12, seed=2).exp(), "y": COUNTS},
    ),
    "radon": (lambda: Radon(3), {"county": LABELS, "floor": binary(12, 1)[:, 0], "y": normal(12, seed=1)}),
    "regression": (
        lambda: ByFormula("y ~ x + (1 + x | g)", "gaussian", VARYING, WIDE),
        {"x": normal(12, 1)[:, 0], "g": LABELS, "y": normal(12, seed=1)},
    ),
    "gaussian_mixture": (lambda: GaussianMixture(2), {"x": normal(12)}),
    "deep_markov": (
        lambda: DeepMarkov(3, 4, 2, transition=4, emission=4, recurrent=5),
        {"x": binary(12, 4, 3), "length": 2.0 + LABELS},
    ),
    "state_space": (
        lambda: StateSpace(2, 2, 4),
        {"x": normal(12, 4, 2), "seen": (normal(12, 4, 2, seed=1) > -1).float()},
    ),
    "hidden_markov": (lambda: HiddenMarkov(2, 5), {"y": normal(12, 5)}),
    "gaussian_process": (GaussianProcess, {"x": normal(9), "y": normal(12, 9, seed=1)}),
    "arma": (lambda: ARMA(1, 1, 5), {"y": normal(12, 5)}),
    "arma autoregression": (lambda: ARMA(2, 0, 5), {"y": normal(12, 5)}),
    "eight_schools centred": (lambda: EightSchools(centred=True), SCHOOLS),
}

# Classes with nothing of their own but numbers, and options of a site: what their laws show, others show; slow suite.
ALIKE = {"flow_matching coupled", "ddpm", "vdm", "edm", "linear_regression horseshoe", "arma autoregression"}
ALIKE |= {"count_regression negative_binomial", "vq_vae running means", "autoregressive", "diffusion_bridge"}
ALIKE |= {"image_flow tarflow", "image_flow splines", "ladder_vae convolutional", "vq_vae convolutional"}


def few(values: Iterable[Any], *fast: str) -> list[Any]:
    """Parameters of a test, of which those of other names are for the slow suite: what they show, the others show."""
    return [v if getattr(v, "__name__", v) in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


def draws_agree(draws: np.ndarray | Tensor, mean: object, var: object, name: str = "") -> None:
    """Mean and variance of independent draws (leading) are those of theory, to within 4 standard errors."""
    x = np.asarray(draws, dtype=float)
    mean, var, n = np.asarray(mean, dtype=float), np.asarray(var, dtype=float), len(x)
    off = np.abs(x.mean(0) - mean) / (x.std(0) / math.sqrt(n))
    assert (off < 4).all(), (name, "mean", x.mean(0), mean, off)
    square = (x - mean) ** 2
    off = np.abs(square.mean(0) - var) / (square.std(0) / math.sqrt(n))
    assert (off < 4).all(), (name, "variance", square.mean(0), var, off)


def chains_agree(draws: np.ndarray, mean: float, var: float) -> None:
    """Of (chain, draw): mean and variance within 4.5 standard errors, told by the spread over chains."""
    for value, exact in ((draws, mean), ((draws - mean) ** 2, var)):
        per_chain = value.mean(1)
        error = per_chain.std(ddof=1) / math.sqrt(len(per_chain))
        assert abs(per_chain.mean() - exact) < 4.5 * error, (per_chain.mean(), exact, error)


def log_joint_at(program: Program, latents: dict[str, Tensor], data: dict[str, Tensor]) -> float:
    """log p(x, z) in nats."""
    return float(pyro.poutine.trace(pyro.condition(program.model, latents)).get_trace(**data).log_prob_sum())


# -- terms: the one place where tests touch how a bound is computed -----------------------------------


class Subsampled(NamedTuple):
    """One estimate of the ELBO of each row of a chain, and what it is trained on."""

    elbo: Tensor
    target: Tensor


def subsampled(program: Program, data: dict[str, Tensor], times: int = 1) -> Subsampled:
    found = program.subsampled_terms(data, times)
    elbo = sum(t.log_prob.mean(0) for t in found)
    return Subsampled(elbo, sum((t.log_prob if t.target is None else t.target).mean(0) for t in found))


def weights(program: Program, data: dict[str, Tensor], structure: Structure, draws: int) -> Tensor:
    """log w: (draws, rows) where it is a sum over rows, else (draws,)."""
    return log_weights(ManyTerms(program, data, structure)(draws, data), Setting.of(structure))
