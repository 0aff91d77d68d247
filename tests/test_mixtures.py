"""The mixture against torch's own."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ppgen.distributions.mixtures import NormalMixture


def make(dtype=torch.float64, k=7, d=5):
    g = torch.Generator().manual_seed(0)
    logits, loc, raw = (torch.randn(*s, generator=g, dtype=dtype) for s in ((k,), (k, d), (k, d)))
    scale = (0.3 * raw).exp()
    return NormalMixture(logits, 2 * loc, scale), MixtureSameFamily(
        Categorical(logits=logits), Independent(Normal(2 * loc, scale), 1)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_log_prob_and_its_gradient_equal_torchs(dtype, tolerance):
    ours, theirs = make(dtype)
    x = torch.randn(11, 3, 5, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 3
    x.requires_grad_()
    a, b = ours.log_prob(x), theirs.log_prob(x)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (a, b)), rtol=1e-3, atol=1e-3)


def test_draws_have_the_mixtures_moments():
    ours, theirs = make()
    torch.manual_seed(0)
    x = ours.expand([4]).sample((100_000,))
    assert x.shape == (100_000, 4, 5) and ours.expand([4]).log_prob(x[0]).shape == (4,)
    x = x.reshape(-1, 5)
    se = theirs.stddev / len(x) ** 0.5
    assert ((x.mean(0) - theirs.mean).abs() < 4 * se).all()
    torch.testing.assert_close(x.var(0), theirs.variance, rtol=0.02, atol=0)
    torch.testing.assert_close(ours.mean, theirs.mean)
