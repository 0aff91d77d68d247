"""The networks: shapes under any leading dimensions, sizes of signals, gradients, errors."""

import math

import pytest
import torch

from ppgen.errors import PpgenError
from ppgen.nets import MLP, ConvDecoder, ConvEncoder, activation_module, activations

SIDES = (8, 9, 13, 28, 32)


def nets():
    yield "linear", MLP(12, 5, ()), 12, 5
    yield "one width", MLP(12, 5, 30), 12, 5
    for name in activations():
        yield name, MLP(12, 5, (30, 30), name), 12, 5
    yield "residual", MLP(12, 5, (12, 30, 30, 30), residual=True), 12, 5
    for side in SIDES:
        yield f"encoder {side}", ConvEncoder(side, 5, widths=(4, 6), dense=10), side**2, 5
        yield f"decoder {side}", ConvDecoder(5, side, widths=(4, 6), dense=10), 5, side**2
    yield "encoder, three halvings", ConvEncoder(28, 5, 3, (4, 6, 8), dense=10), 3 * 784, 5
    yield "decoder, three halvings", ConvDecoder(5, 28, 3, 2, (4, 6, 8), dense=10), 5, 6 * 784
    yield "encoder with context", ConvEncoder(8, 5, 2, (4, 6), context=3, dense=10), 131, 5


torch.manual_seed(0)
EACH = pytest.mark.parametrize("net, inputs, outputs", [row[1:] for row in nets()], ids=[row[0] for row in nets()])


@EACH
def test_leading_dimensions(net, inputs, outputs):
    x = torch.randn(2, 3, 4, inputs)
    out = net(x)
    assert out.shape == (2, 3, 4, outputs)
    one_by_one = torch.stack([net(row) for row in x.reshape(-1, inputs)]).reshape(out.shape)
    torch.testing.assert_close(out, one_by_one, atol=1e-5, rtol=1e-4)
    assert net(x[0, 0]).shape == (4, outputs)
    assert net(x[:, :0]).shape == (2, 0, 4, outputs)


@EACH
def test_gradient_reaches_every_parameter_and_input(net, inputs, outputs):
    x = torch.randn(20, inputs, requires_grad=True)
    net.zero_grad()
    net(x).square().sum().backward()
    for name, p in [*net.named_parameters(), ("input", x)]:
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    assert (x.grad.abs().sum(0) > 0).all(), "a pixel that nothing looks at"


@EACH
def test_float64(net, inputs, outputs):
    wide = net.double()(torch.randn(3, inputs, dtype=torch.float64))
    assert wide.dtype == torch.float64
    net.float()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"])
def test_signals_keep_their_size_with_depth(activation, residual):
    """Of eight layers; PyTorch's own initialisation leaves 0.003 of a signal under relu."""
    torch.manual_seed(0)
    net = MLP(200, 200, (200,) * 8, activation, residual=residual)
    assert 0.05 < net(torch.randn(500, 200)).std() < 8


@pytest.mark.parametrize("side", SIDES)
def test_convolutions_keep_the_size_of_signals(side):
    torch.manual_seed(0)
    for net, inputs in ((ConvEncoder(side, 40), side**2), (ConvDecoder(20, side), 20)):
        assert 0.3 < net(torch.randn(100, inputs)).std() < 1.5
    assert ConvDecoder(20, side, output_gain=0.1)(torch.randn(100, 20)).std() < 0.15


def test_an_output_gain_scales_the_output():
    torch.manual_seed(0)
    one = MLP(10, 1000)
    torch.manual_seed(0)
    tenth = MLP(10, 1000, output_gain=0.1)
    x = torch.randn(10)
    torch.testing.assert_close(tenth(x), one(x) / 10)


def test_dropout_is_for_training():
    torch.manual_seed(0)
    for net, inputs in ((MLP(10, 3, dropout=0.5), 10), (ConvEncoder(8, 3, dropout=0.5), 64)):
        x = torch.randn(4, inputs)
        assert not torch.equal(net(x), net(x))
        net.eval()
        assert torch.equal(net(x), net(x))


def test_an_image_keeps_its_orientation():
    """A change in one corner of the latent image moves that corner of the output alone."""
    net = ConvDecoder(5, 13, widths=(4, 6), dense=10)
    h = torch.randn(1, *net.start, requires_grad=True)
    out = h
    for i, (layer, side) in enumerate(zip(net.convolutions, net.sides, strict=True)):
        out = layer(net.activation(out) if i else out)[..., :side, :side]
    assert out.shape[-2:] == (13, 13)
    (gradient,) = torch.autograd.grad(out[..., 0, 0].sum(), h)
    assert gradient[..., :2, :2].abs().sum() > 0
    assert gradient[..., -1, -1].abs().sum() == 0


def test_parameters_of_a_value_come_parameter_first():
    torch.manual_seed(0)
    net = ConvDecoder(5, 8, channels=3, outputs=2, widths=(4, 6), dense=10)
    net.convolutions[-1].weight.data[:, 3:] = 0  # the second parameter, all three channels
    net.convolutions[-1].bias.data[3:] = 7
    first, second = net(torch.randn(5)).reshape(2, -1)
    assert (second == 7).all() and first.std() > 0


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: MLP(3, 2, activation="rely"), "did you mean 'relu'"),
        (lambda: MLP(3, 2, (5, 0)), "at least 1"),
        (lambda: MLP(3, 2, dropout=1.0), "dropout=1.0"),
        (lambda: ConvEncoder(7, 2), "side=7"),
        (lambda: ConvDecoder(2, 8, widths=(4,) * 5), "fewer widths"),
        (lambda: ConvDecoder(2, 8, widths=()), "widths="),
        (lambda: activation_module("none"), "take one of"),
    ],
)
def test_what_they_refuse(make, said):
    with pytest.raises(PpgenError, match=said):
        make()


def test_sizes_are_what_the_docstring_says():
    assert sum(p.numel() for p in MLP(784, 40, (200, 200)).parameters()) == math.fsum(
        (784 * 200 + 200, 200 * 200 + 200, 200 * 40 + 40)
    )
