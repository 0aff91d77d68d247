"""A guide that draws all latents as one vector in their unconstrained space, from a law that a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from ppgen.errors import PpgenError
from ppgen.guides._latents import emit, places, require_whole_plates


class VectorGuide(nn.Module):
    """Abstract: a file's guide has `law`, and `search` to find it.

    Args:
        name: of its file.
        sites: the latents of a run of the model, by name.
        batches: whether a fit by minibatches asks for it.

    Raises:
        PpgenError: minibatches.
    """

    amortised = False
    columns: tuple[str, ...] = ()

    def __init__(self, name: str, sites: Mapping[str, dict[str, Any]], batches: bool):
        super().__init__()
        if batches:
            raise PpgenError(
                f"the guide {name} is found on all rows at once, and this fit takes minibatches; leave batch_size out "
                "(--batch-size), or take --guide flow"
            )
        require_whole_plates(sites)
        self.name = self.spec = name
        self.latents = places(sites, {})
        self.dim = self.latents[-1].stop

    def law(self) -> TorchDistribution:
        """Of the vector, (dim,)."""
        raise NotImplementedError

    def forward(self, **columns: Any) -> None:
        frames = {f for latent in self.latents for f in latent.frames}
        plates = {name: pyro.plate(name, size, dim=dim) for name, dim, size in sorted(frames)}
        u = pyro.sample(f"_{self.name}", self.law(), infer={"is_auxiliary": True})
        for latent in self.latents:
            emit(latent, u, plates)

    def order(self, values: Mapping[str, slice]) -> torch.Tensor:
        """Where the entries of its vector stand in one whose places are `values`."""
        return torch.cat([torch.arange(values[a.name].start, values[a.name].stop) for a in self.latents])

    def require_few(self, most: int) -> None:
        """
        Raises:
            PpgenError: more latents than matrices can be kept of.
        """
        if self.dim > most:
            raise PpgenError(
                f"the guide {self.name} keeps the covariances of all latents, at most {most}, and there are {self.dim} "
                "of them; take --guide bam_low_rank or --guide flow"
            )
