"""Networks that know what time it is: a multilayer perceptron and a U-Net."""

import pytest
import torch
from torch import nn

from ppgen import PpgenError
from ppgen.nets import TimeMLP, UNet


def shaken(net: nn.Module, by: float = 0.2) -> nn.Module:
    """With other parameters: at first the last layer is 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn_like(p))
    return net.double().eval()


NETS = {
    "mlp": (lambda: TimeMLP(6, 12, (16, 16), classes=3), 6, 12),
    "mlp_fourier": (lambda: TimeMLP(6, 12, (16, 16), classes=3, fourier=(0, 1)), 6, 12),
    "unet": (lambda: UNet((1, 8, 8), 2, (4, 8), attention=4, classes=3), 64, 128),
    "unet_deep": (lambda: UNet((2, 8, 8), 1, (4, 8, 8), blocks=2, attention=0, classes=3, fourier=(0, 3)), 128, 128),
    "unet_patch": (lambda: UNet((2, 8, 4), 3, (4, 8), attention=2, classes=3, fourier=(0, 3), patch=2), 64, 192),
}


@pytest.mark.parametrize("name", NETS)
def test_rows_are_independent_and_know_time_and_label(name):
    make, size, outputs = NETS[name]
    assert not make()(torch.randn(2, size), torch.rand(2)).any()  # at first
    net = shaken(make())
    z, u, y = torch.randn(4, size).double(), torch.rand(4).double(), torch.tensor([0, 1, 2, 3])
    out = net(z, u, y)
    assert out.shape == (4, outputs)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(net(z[order], u[order], y[order]), out[order])
    stacked = net(z.expand(3, 4, size), u.expand(3, 4), y)  # leading dimensions, the label broadcast
    assert torch.allclose(stacked, out.expand(3, 4, outputs))
    for other in (net(z, 1 - u, y), net(z, u, (y + 1) % 4), net(z + 0.1, u, y)):
        assert (other - out).abs().amax(-1).min() > 1e-6
    assert torch.allclose(net(z, u), net(z, u, None))


@pytest.mark.parametrize("name", ["mlp_fourier", "unet_deep"])
@torch.no_grad()
def test_waves_tell_neighbours_apart(name):
    """Half a period of the fastest wave apart, inputs are far apart to the first layer."""
    make, size, _ = NETS[name]
    net = make()
    seen = []
    net.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    z = torch.zeros(1, size)
    for step in (0.0, 2.0 ** -max(net.fourier)):
        net(z + step, torch.zeros(1))
    few = 2 * len(net.fourier) * size
    assert seen[0].numel() == size + few and float((seen[1] - seen[0]).abs().max()) > 0.5


@torch.no_grad()
def test_a_patch_is_the_net_of_its_pixels_side_by_side():
    """Of (1, 8, 8) in squares of 2 x 2: of (4, 4, 4), whose channel 2 i + j is pixel (i, j) of each square."""
    net, inside = UNet((1, 8, 8), widths=(4, 8), patch=2), UNet((4, 4, 4), widths=(4, 8))
    inside.load_state_dict(shaken(net).state_dict())
    z, u = torch.randn(3, 64).double(), torch.rand(3).double()
    squares = z.reshape(3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3)
    found = inside.double()(squares.reshape(3, 64), u).reshape(3, 2, 2, 4, 4).permute(0, 3, 1, 4, 2)
    assert torch.allclose(net(z, u), found.reshape(3, 64))


@torch.no_grad()
def test_what_comes_out_is_not_rounded_in_mixed_precision():
    net = shaken(UNet((1, 8, 8), 2, (4, 8), attention=4)).float()
    z, u = torch.randn(4, 64), torch.rand(4)
    exact = net(z, u)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(z, u)
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, mixed.bfloat16().float())
    assert float((mixed - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_errors():
    with pytest.raises(PpgenError, match=r"hidden=\(8, 16\)"):
        TimeMLP(2, 2, (8, 16))
    with pytest.raises(PpgenError, match="width 4 divides"):
        UNet((1, 6, 6), widths=(4, 4, 4))
    with pytest.raises(PpgenError, match="patch=3"):
        UNet((1, 8, 8), widths=(4,), patch=3)
