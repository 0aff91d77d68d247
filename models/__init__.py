"""The catalogue of models: one Pyro program a file, found by its file's name."""

from ppgen.models.diffusion import Diffusion
from ppgen.models.eight_schools import EightSchools
from ppgen.models.flow import Flow
from ppgen.models.flow_matching import FlowMatching
from ppgen.models.image_flow import ImageFlow
from ppgen.models.ppca import PPCA
from ppgen.models.vae import VAE

__all__ = ["PPCA", "VAE", "Diffusion", "EightSchools", "Flow", "FlowMatching", "ImageFlow"]
