"""A start that a guide's parameters are relative to, and Pyro's three Gaussian autoguides with one.

    u = loc₀ + L₀ v,   v: what the guide's parameters say, N(0, I) at first

A step of an optimizer is of one size in every parameter. Of parameters in the latents' own units one size is too much
for the narrow directions of a posterior and too little for the wide ones; in units of the start it is the same share of
a standard deviation in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import distributions as dist
from pyro.infer import autoguide as autoguides
from pyro.infer.autoguide.utils import deep_setattr
from torch import Tensor, nn


class Started(nn.Module):
    """Mixin: the buffers `start_loc` (D,) and `start_tril` (D, D), which are there once a start was found."""

    start_loc: Tensor
    start_tril: Tensor

    @property
    def start(self) -> tuple[Tensor, Tensor] | None:
        """loc₀ and L₀; None where no start was found."""
        return (self.start_loc, self.start_tril) if "start_loc" in self._buffers else None

    def keep_start(self, loc: Tensor, scale_tril: Tensor) -> None:
        for name, value in (("start_loc", loc), ("start_tril", scale_tril)):
            # in one layout, so that a run read back rounds as it did
            self.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}start_loc" in state:  # saved after a start was found
            self.keep_start(state[f"{prefix}start_loc"], state[f"{prefix}start_tril"])
        super()._load_from_state_dict(state, prefix, *args)

    def started(self, loc: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
        """N(loc, scale_tril scale_trilᵀ) of v, as a law of u."""
        if (start := self.start) is None:
            return loc, scale_tril
        first, root = start
        return first + root @ loc, root @ scale_tril


class AutoMultivariateNormal(Started, autoguides.AutoMultivariateNormal):
    """Pyro's, in units of its start."""

    loc: Any

    def start_at(self, places: Mapping[str, slice], loc: Tensor, scale_tril: Tensor) -> None:
        self.keep_start(loc, scale_tril)
        self.loc.detach().zero_()
        self.scale, self.scale_tril = torch.ones_like(loc), torch.eye(len(loc)).to(loc)

    def _normal(self) -> tuple[Tensor, Tensor]:
        scale: Any = self.scale
        return self.started(self.loc, scale[..., None] * self.scale_tril)

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        loc, scale_tril = self._normal()
        return dist.transforms.LowerCholeskyAffine(loc, scale_tril=scale_tril)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        loc, scale_tril = self._normal()
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        loc, scale_tril = self._normal()
        return loc, scale_tril.pow(2).sum(-1).sqrt()


class AutoDiagonalNormal(Started, autoguides.AutoDiagonalNormal):
    """Pyro's, in units of its start, whose correlations it has no place for."""

    loc: Any

    def start_at(self, places: Mapping[str, slice], loc: Tensor, scale_tril: Tensor) -> None:
        self.keep_start(loc, scale_tril.norm(dim=-1))
        self.loc.detach().zero_()
        self.scale = torch.ones_like(loc)

    def _normal(self) -> tuple[Tensor, Tensor]:
        own: Any = (self.loc, self.scale)  # parameters, of which Pyro's annotations do not tell
        if (start := self.start) is None:
            return own
        loc, sd = start
        return loc + sd * own[0], sd * own[1]

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        return dist.transforms.AffineTransform(*self._normal())

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        return dist.Normal(*self._normal()).to_event(1)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._normal()


class AutoNormal(Started, autoguides.AutoNormal):
    """Pyro's, in units of its start, whose correlations it has no place for."""

    _event_dims: Any

    def start_at(self, places: Mapping[str, slice], loc: Tensor, scale_tril: Tensor) -> None:
        order = torch.cat([torch.arange(places[n].start, places[n].stop) for n in self._event_dims])
        self.keep_start(loc[order], scale_tril.norm(dim=-1)[order])
        for name in self._event_dims:
            site_loc, _ = super()._get_loc_and_scale(name)
            site_loc.detach().zero_()
            deep_setattr(self.scales, name, torch.ones_like(site_loc))

    def _get_loc_and_scale(self, name: str) -> tuple[Tensor, Tensor]:
        loc, scale = super()._get_loc_and_scale(name)
        if (begun := self.start) is None:
            return loc, scale
        first = 0
        for other in self._event_dims:
            if other == name:
                break
            first += super()._get_loc_and_scale(other)[0].numel()
        start, sd = (v[first : first + loc.numel()].reshape(loc.shape) for v in begun)
        return start + sd * loc, sd * scale


STARTED = {g.__name__: g for g in (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal)}
