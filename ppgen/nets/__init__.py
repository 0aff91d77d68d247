"""Neural networks that models are made of: plain torch modules that act on the last dimension.

They take any leading dimensions, so that rows and particles may be batched as they come.
"""

from ppgen.nets.attention import CausalTransformer
from ppgen.nets.conv import ConvDecoder, ConvEncoder
from ppgen.nets.masked_conv import MaskedConvNet
from ppgen.nets.mlp import MLP, activation_module, activations
from ppgen.nets.time import TimeEmbedding, TimeMLP
from ppgen.nets.unet import UNet

__all__ = [
    "MLP",
    "CausalTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "MaskedConvNet",
    "TimeEmbedding",
    "TimeMLP",
    "UNet",
    "activation_module",
    "activations",
]
