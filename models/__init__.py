"""The catalogue of models: one Pyro program a file, found by its file's name."""

from ppgen.models.arma import ARMA
from ppgen.models.autoregressive import Autoregressive
from ppgen.models.clustering_vae import ClusteringVAE
from ppgen.models.count_regression import CountRegression
from ppgen.models.ddpm import DDPM
from ppgen.models.deep_markov import DeepMarkov
from ppgen.models.diffusion import Diffusion
from ppgen.models.diffusion_bridge import DiffusionBridge
from ppgen.models.edm import EDM
from ppgen.models.eight_schools import EightSchools
from ppgen.models.flow import Flow
from ppgen.models.flow_matching import FlowMatching
from ppgen.models.gaussian_mixture import GaussianMixture
from ppgen.models.gaussian_process import GaussianProcess
from ppgen.models.hidden_markov import HiddenMarkov
from ppgen.models.image_flow import ImageFlow
from ppgen.models.ladder_vae import LadderVAE
from ppgen.models.linear_regression import LinearRegression
from ppgen.models.logistic_regression import LogisticRegression
from ppgen.models.masked_diffusion import MaskedDiffusion
from ppgen.models.pixel_cnn import PixelCNN
from ppgen.models.pixel_vae import PixelVAE
from ppgen.models.ppca import PPCA
from ppgen.models.radon import Radon
from ppgen.models.regression import Regression, regression
from ppgen.models.semi_supervised_vae import SemiSupervisedVAE
from ppgen.models.state_space import StateSpace
from ppgen.models.vae import VAE
from ppgen.models.vdm import VDM
from ppgen.models.vq_vae import VQVAE

__all__ = [
    "ARMA",
    "DDPM",
    "EDM",
    "PPCA",
    "VAE",
    "VDM",
    "VQVAE",
    "Autoregressive",
    "ClusteringVAE",
    "CountRegression",
    "DeepMarkov",
    "Diffusion",
    "DiffusionBridge",
    "EightSchools",
    "Flow",
    "FlowMatching",
    "GaussianMixture",
    "GaussianProcess",
    "HiddenMarkov",
    "ImageFlow",
    "LadderVAE",
    "LinearRegression",
    "LogisticRegression",
    "MaskedDiffusion",
    "PixelCNN",
    "PixelVAE",
    "Radon",
    "Regression",
    "SemiSupervisedVAE",
    "StateSpace",
    "regression",
]
