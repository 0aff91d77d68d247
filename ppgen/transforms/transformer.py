r"""An autoregressive transform whose conditioner is a causal transformer.

    z_i = Φ⁻¹(F_i(x_i | x_<i, c)),   F_i a mixture of K normals, its parameters linear in the i-th output h_i(x_<i, c)
    log |det ∂z/∂x| = Σ_i log ∂z_i/∂x_i

One transform over N(0, I) is the density Π_i Σ_k w_k N(x_i; μ_k, σ_k²) with w_k = 1/K. What the network learns of one
place it knows of all others, which a masked network does not. The density takes one pass, a draw one for each feature.

Sources: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762); Transformation Autoregressive Networks
(Oliva et al., 2018, arXiv:1801.09819), a recurrent conditioner; Gaussianization Flows (Meng et al., 2020,
arXiv:2003.01941), the univariate map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.nets import CausalTransformer
from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Pair, gather
from ppgen.transforms.conditioner import START
from ppgen.transforms.univariate.elementwise import Mixtures


class TransformerAutoregressive(FlowTransform):
    """One transform of (..., D) vectors. The network sees asinh(x_i), which is x_i near 0 and its logarithm far out.

    Args:
        features: D.
        context: features of the context c, 0 for none.
        width, layers, heads: of the transformer, see `ppgen.nets.CausalTransformer`.
        components: K.
        order: the place of each feature in the order; 0, 1, ... if None.

    Raises:
        PpgenError: a size below 1; a width that is no multiple of the heads; an order that is no permutation.
    """

    order: Tensor

    def __init__(
        self, features: int, context: int = 0, width: int = 64, layers: int = 2, heads: int = 4, components: int = 8,
        order: Sequence[int] | Tensor | None = None,
    ):  # fmt: skip
        super().__init__((features,), context)
        order = torch.arange(features) if order is None else torch.as_tensor(order)
        if sorted(order.tolist()) != list(range(features)):
            raise PpgenError(f"order has to hold each of 0, ..., {features - 1} once, and is {order.tolist()}")
        self.register_buffer("order", order)
        self.net = CausalTransformer(1 + context, width, features, width, layers, heads, output_gain=START)
        self.within = Mixtures(1, width + context, components, hidden=(width,) if context else ())

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What features 0, ..., n are conditioned on, of the n before: (..., n) -> (..., n + 1, width + context)."""
        tokens = x.asinh()[..., None]
        if context is None:
            return self.net(tokens).to(x.dtype)
        context = context[..., None, :].expand(*x.shape[:-1], x.shape[-1] + 1, -1)
        return torch.cat([self.net(torch.cat([tokens, context[..., 1:, :]], -1)).to(x.dtype), context], -1)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        x = x[..., self.order.argsort()]
        z, ladj = self.within.pull(x[..., None], self._given(x[..., :-1], context))
        return z[..., 0][..., self.order], ladj.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        z = z[..., self.order.argsort()]
        x = z[..., :0]
        for i in range(self.shape[0]):
            new, _ = self.within.push(z[..., i, None], self._given(x, context)[..., -1, :])
            x = torch.cat([x, new], -1)
        return x[..., self.order], None


def transformer(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Sequence[int] | Tensor | None = None,
    heads: int = 4, components: int = 8,
) -> FlowTransform | Conditional:  # fmt: skip
    """`TransformerAutoregressive` with as many layers as `hidden` has entries, all of one width.

    >>> from pyro.distributions import Normal, TransformedDistribution
    >>> p = TransformedDistribution(Normal(torch.zeros(3), 1.0).to_event(1), [transformer(3)])
    >>> p.log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    if len(set(hidden)) != 1:
        raise PpgenError(f"the layers of a transformer are of one width, and hidden={tuple(hidden)}; give one as often")
    made = TransformerAutoregressive(features, context, hidden[0], len(hidden), heads, components, order)
    return gather(made)
