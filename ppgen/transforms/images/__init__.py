"""Transforms of images: squeeze, actnorm, 1x1 convolutions, the multi-scale architecture."""
