"""The PixelCNN on images so small that every one can be counted, and what its network sees."""

import itertools

import pytest
import torch
from known import binary, normal

from ppgen import PpgenError
from ppgen.inference import loglik, sample
from ppgen.models import PixelCNN
from ppgen.nets import MaskedConvNet

SMALL = {"width": 6, "layers": 2, "window": 1}
KINDS = [((3, 3), 2, 1), ((2, 4), 2, 2), ((2, 2), 3, 1), ((2, 1, 3), 2, 1)]  # features, levels, patch


def made(features: tuple[int, ...], levels: int, patch: int) -> PixelCNN:
    torch.manual_seed(0)
    model = PixelCNN(features, levels, patch=patch, **SMALL).double().eval()
    torch.nn.init.normal_(model.net.last.weight, std=0.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("features", "levels", "patch"), KINDS)
def test_every_image_counted(features, levels, patch):
    """P sums to 1, and is a product of the patches' probabilities, each by a network that saw no later patch."""
    model = made(features, levels, patch)
    every = itertools.product(range(levels), repeat=len(model.zero))
    x = torch.tensor(list(every)).double() / (levels - 1)
    found = loglik(model, {"x": x})
    log_p = torch.tensor(found.best.values)
    assert found.best.kind == "exact" and float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    by_hand, rows, image = 0.0, range(len(x)), x.reshape(-1, *model.image)
    for i in range(model.places[0]):
        for j in range(model.places[1]):
            here = (slice(None), slice(None), slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
            before = torch.zeros_like(image)
            before[:, :, : i * patch] = image[:, :, : i * patch]
            before[:, :, here[2], : j * patch] = image[:, :, here[2], : j * patch]
            p = model.log_probs(model.patches(before.flatten(1)))[:, :, i, j]
            digits = (image[here].flatten(1) * (levels - 1)).int().tolist()
            k = [sum(d * levels**n for n, d in enumerate(row)) for row in digits]
            by_hand = by_hand + p[rows, k]
    torch.testing.assert_close(log_p, by_hand)


def test_draws_are_as_frequent_as_it_says():
    model, n = made((2, 4), 2, 2), 20_000
    drawn = sample(model, n, seed=0)["x"]
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8))).double()
    p = torch.tensor(loglik(model, {"x": x}).best.values).exp()
    share = (drawn @ 2.0 ** torch.arange(7.0, -1, -1).double()).long().bincount(minlength=256) / n
    assert (abs(share - p) < 4.5 * (p * (1 - p) / n).sqrt() + 1e-3).all()


def test_the_network_sees_places_before_alone_and_features_up_to_each():
    torch.manual_seed(0)
    net = MaskedConvNet(2, 3, 4, layers=2, window=2, output_gain=1.0).double()
    x, h = normal(2, 3, 4).double(), normal(4, 3, 4, seed=1).double()
    by_x, by_h = torch.autograd.functional.jacobian(net, (x, h))  # (3, 3, 4, channels, 3, 4)
    place = torch.arange(12)
    for found, later in ((by_x, place[:, None] <= place), (by_h, place[:, None] < place)):
        reaches = (found.abs().sum((0, 3)) > 0).reshape(12, 12)
        assert not reaches[later].any()
    assert reaches.diagonal().all()  # the features of the place itself
    near = (by_x.abs().sum((0, 3)) > 0).reshape(12, 12)
    assert all(near[i, i - 1] for i in (1, 2, 3, 5, 6, 7)) and all(near[i, i - 4] for i in range(4, 12))


def test_patches_and_their_numbers_come_back():
    model, x = made((2, 4), 2, 2), binary(5, 8).double()
    patches = model.patches(x)
    assert torch.equal(model.flat(patches), x)
    assert torch.equal(model.values(model.numbers(patches)), patches)
    ternary = made((2, 2), 3, 1)
    y = torch.tensor([[0.0, 0.5, 1.0, 0.5]]).double()
    assert torch.equal(ternary.flat(ternary.patches(y)), y) and ternary.numbers(ternary.patches(y)).max() == 2


def test_features_reach_the_image():
    torch.manual_seed(0)
    model = PixelCNN(16, patch=2, context=True, **SMALL)
    h = normal(3, 6, 2, 2).requires_grad_()
    log_p = torch.tensor(0.0) + model.log_probs(model.patches(binary(3, 16)), h).sum()
    assert (torch.autograd.grad(log_p, h)[0] != 0).any(1).all()
    assert sample(model, 3, given={"h": h.detach()})["x"].shape == (3, 16)


def test_errors():
    assert PixelCNN.from_data({"x": binary(3, 16)})["levels"] == 2
    for options, message in (
        ({"features": 10}, "a square image"),
        ({"features": 9, "patch": 2}, "one that divides both"),
        ({"features": 16, "levels": 17, "patch": 2}, "17\\^4 values of a patch"),
        ({"features": 16, "layers": 0}, "sizes of at least 1"),
    ):
        with pytest.raises(PpgenError, match=message):
            PixelCNN(**options)
    with pytest.raises(PpgenError, match="pass a column h"):
        sample(PixelCNN(16, context=True, **SMALL), 2)
