"""PixelVAE: its log p(x) by quadrature, and as one program written out."""

import pyro
import pytest
import torch
from known import binary
from torch import Tensor
from torch.distributions import Normal

import ppgen
from ppgen import PpgenError
from ppgen.check import check
from ppgen.inference import Objective, loglik
from ppgen.models import PixelVAE
from ppgen.models.pixel_cnn import _PixelCategorical


def made(latent: tuple[int, ...], kind: type[PixelVAE] = PixelVAE, prior: str = "normal") -> PixelVAE:
    torch.manual_seed(0)
    how = {"patch": 2, "width": 4, "layers": 1, "window": 1, "net": "mlp", "prior": prior}
    model = kind(16, latent, (5, 4)[: len(latent)], **how).double().eval()
    torch.nn.init.normal_(model.pixels.net.last.weight, std=0.5)
    torch.nn.init.normal_(model.ladder.base.decoder.last.weight, std=0.5)
    for rung in model.ladder.rungs:  # a guide wider than the posterior: weights of finite variance
        rung.numbers.last.bias.data[len(rung.zero) :] = 0.5
    return model


@torch.no_grad()
def by_quadrature(model: PixelVAE, x: Tensor) -> Tensor:
    """log p(x) of each row with k = (1,), on a grid over z."""
    z = torch.linspace(-8, 8, 161).double()[:, None]
    log_p = Normal(0.0, 1.0).log_prob(z[:, 0]) + (z[1, 0] - z[0, 0]).log()
    h = model.features(model.ladder.rungs[0].down(z, None))
    log_lik = torch.stack([_PixelCategorical(model.pixels, h).log_prob(row) for row in x])
    return (log_lik + log_p).logsumexp(-1)


def test_importance_weights_average_to_the_quadrature():
    model, x = made((1,)), binary(4, 16).double()
    found = loglik(model, {"x": x}, particles=2000, seed=0)
    exact = by_quadrature(model, x)
    assert found.best.kind == "lower" and found.best.se.max() < 0.02
    assert (abs(torch.tensor(found.best.values) - exact) < 4 * torch.tensor(found.best.se) + 1e-3).all()
    assert found.bounds[0].mean < float(exact.mean()) - 0.01  # the guide is no posterior here


class Flattened(PixelVAE):
    """The same without programs within it."""

    def model(self, x=None):
        with ppgen.rows(x):
            h = None
            for i, rung in self.ladder.from_the_top():
                flow = self.ladder.top if h is None else None
                z = pyro.sample(f"z_{i}", flow.density() if flow else rung.prior(h).to_event(1))
                h = rung.down(z, h)
            pyro.sample("x", _PixelCategorical(self.pixels, self.features(h)), obs=x)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_nested_and_flattened_are_one(prior):
    """The bound of a batch and its gradient, from the same draws."""
    x, found = binary(6, 16).double(), []
    for kind in (PixelVAE, Flattened):
        model = made((3, 2), kind, prior)
        bound = Objective(model, check(model, {"x": x}), len(x))
        torch.manual_seed(1)
        loss, elbo = bound({"x": x})
        found.append((elbo.detach(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    torch.testing.assert_close(*(elbo for elbo, _ in found), rtol=1e-9, atol=0)
    used = [(a, b) for a, b in zip(found[0][1], found[1][1], strict=True) if a is not None]
    assert len(used) == len(list(model.parameters()))
    for a, b in used:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_images_of_a_side_that_convolutions_take():
    torch.manual_seed(0)
    model = PixelVAE((1, 16, 16), (2,), (4,), patch=2, width=4, layers=1, convolutions=(2, 3))
    assert model.features(torch.zeros(3, 4)).shape == (3, 4, 8, 8)
    assert model.ladder.read(binary(3, 256))[0].shape == (3, 8)


def test_errors():
    with pytest.raises(PpgenError, match="square images"):
        PixelVAE((2, 4))
    with pytest.raises(PpgenError, match="as many of each"):
        PixelVAE(16, (3, 2), (5,))
    with pytest.raises(PpgenError, match="take one of normal, flow, diffusion"):
        PixelVAE(16, prior="mixture")
