r"""Linear transforms: permutations, LU-parametrised matrices and products of Householder reflections.

Each acts on one dimension: the last one of vectors, or the channels of images (..., C, H, W), where it is the
invertible 1x1 convolution of Glow.

Sources: Glow (Kingma & Dhariwal, 2018, arXiv:1807.03039), sections 3.2 and 3.3; Improving Variational Auto-Encoders
using Householder Flow (Tomczak & Welling, 2016, arXiv:1611.09630).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.errors import PpgenError
from ppgen.transforms.change_of_variables import FlowTransform, Pair, full_precision


class LULinear(FlowTransform):
    """z = P L U x with L unit lower and U upper triangular: log |det| is the sum of log |diag U|.

    Args:
        shape: D, or (C, H, W) to mix the channels of images.
        permute: False leaves P out (the identity).
        rotate: it begins as a random rotation; else L and U begin as the identity.
    """

    def __init__(self, shape: int | Sequence[int], permute: bool = True, rotate: bool = True):
        super().__init__((shape,) if isinstance(shape, int) else shape)
        n = self.shape[0]
        if permute and not rotate:
            P, L, U = torch.eye(n)[torch.randperm(n)], torch.eye(n), torch.eye(n)
        elif permute:
            P, L, U = torch.linalg.lu(torch.linalg.qr(torch.randn(n, n)).Q)
        else:
            P = L = U = torch.eye(n)
        self.register_buffer("P", P)
        self.register_buffer("signs", U.diagonal().sign())
        self.lower = nn.Parameter(L.tril(-1))
        self.upper = nn.Parameter(U.triu(1))
        self.log_diagonal = nn.Parameter(U.diagonal().abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        L = self.lower.tril(-1) + torch.eye(self.shape[0]).to(self.lower)
        return L, self.upper.triu(1) + (self.signs * self.log_diagonal.exp()).diag()

    def _columns(self, value: Tensor) -> Tensor:
        """Vectors as the columns of one matrix, (D, rows); each image as its own, (..., C, H W)."""
        if len(self.shape) == 1:
            return value.reshape(-1, self.shape[0]).mT
        return value.reshape(*value.shape[: value.dim() - len(self.shape)], self.shape[0], self.shape[1:].numel())

    def _values(self, columns: Tensor, like: Tensor) -> Tensor:
        return (columns.mT if len(self.shape) == 1 else columns).reshape(like.shape)

    def _ladj(self, value: Tensor) -> Tensor:
        total = self.log_diagonal.sum() * self.shape[1:].numel()
        return total.expand(value.shape[: value.dim() - len(self.shape)])

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        L, U = self._factors()
        return self._values(self.P @ L @ U @ self._columns(x), x), self._ladj(x)

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        L, U = self._factors()
        y = torch.linalg.solve_triangular(L, self.P.mT @ self._columns(z), upper=False, unitriangular=True)
        return self._values(torch.linalg.solve_triangular(U, y, upper=True), z), -self._ladj(z)


def conv1x1(shape: Sequence[int]) -> LULinear:
    """The invertible 1x1 convolution of images of shape (C, H, W), by its LU factors.

    >>> conv1x1((3, 4, 4)).pull(torch.zeros(2, 3, 4, 4))[1].shape
    torch.Size([2])
    """
    if len(shape) != 3:
        raise PpgenError(f"conv1x1 got the shape {tuple(shape)}; expected that of images, (channels, height, width)")
    return LULinear(shape)


class Orthogonal(FlowTransform):
    """z = H_1 ... H_n x with H_i = I - 2 v_i v_iᵀ / |v_i|²: any rotation (n >= D), log |det| = 0.

    Args:
        features: D.
        reflections: n; D if None.
    """

    def __init__(self, features: int, reflections: int | None = None):
        super().__init__((features,))
        self.v = nn.Parameter(torch.randn(features if reflections is None else reflections, features))

    def _turn(self, x: Tensor, v: Tensor) -> Tensor:
        # H_1 ... H_n = I - Vᵀ T V, where T⁻¹ is half of the diagonal of V Vᵀ and what is above it: all at once
        inner = v @ v.mT
        inner = inner.triu(1) + inner.diagonal().diag() / 2
        columns = x.reshape(-1, x.shape[-1]).mT
        turned = columns - v.mT @ torch.linalg.solve_triangular(inner, v, upper=True) @ columns
        return turned.mT.reshape(x.shape)

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._turn(x, self.v), torch.zeros_like(x[..., 0])

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._turn(z, self.v.flip(0)), torch.zeros_like(z[..., 0])


class Permutation(FlowTransform):
    """z_i = x_{order i}.

    Args:
        order: a permutation of 0, ..., D - 1; or D itself, for a random one (kept with the parameters).
    """

    def __init__(self, order: int | Sequence[int] | Tensor):
        index = torch.randperm(order) if isinstance(order, int) else torch.as_tensor(order)
        super().__init__((len(index),))
        if not torch.equal(index.sort().values, torch.arange(len(index))):
            raise PpgenError(f"Permutation got {index.tolist()}; expected each of 0 to {len(index) - 1} once")
        self.register_buffer("order", index)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return x[..., self.order], torch.zeros_like(x[..., 0])

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return z[..., self.order.argsort()], torch.zeros_like(z[..., 0])


class Whitening(FlowTransform):
    r"""z = R⁻¹ x with R Rᵀ = Σ, a fixed covariance: z is uncorrelated, and with R lower triangular it is what each
    feature adds to those before it.

    Args:
        features: D. It begins as the identity; `measure` sets it.
    """

    root: Tensor
    inverse_root: Tensor
    ladj: Tensor

    def __init__(self, features: int):
        super().__init__((features,))
        self.register_buffer("root", torch.eye(features))
        self.register_buffer("inverse_root", torch.eye(features))
        self.register_buffer("ladj", torch.zeros(()))

    @torch.no_grad()
    def measure(self, x: Tensor) -> Whitening:
        """Takes Σ from rows x, (N, D), of mean 0.

        Raises:
            PpgenError: rows that lie in a hyperplane.
        """
        x = x.double()
        root, failed = torch.linalg.cholesky_ex(x.mT @ x / len(x))
        if failed:
            raise PpgenError(
                f"feature {int(failed) - 1} of {x.shape[1]} follows from those before it in these {len(x)} rows, so "
                "that they cannot be whitened; drop it, or give more rows"
            )
        self.root.copy_(root)
        self.inverse_root.copy_(torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False))
        self.ladj.copy_(-root.diagonal().log().sum())
        return self

    @property
    def measured(self) -> bool:
        return bool((self.root != torch.eye(len(self.root)).to(self.root)).any())

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        # in float64: what is left of strongly correlated features is a small difference of large numbers
        z = x.double() @ self.inverse_root.double().mT
        return z.to(x.dtype), self.ladj.expand(x.shape[:-1])

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return z @ self.root.mT, -self.ladj.expand(z.shape[:-1])
