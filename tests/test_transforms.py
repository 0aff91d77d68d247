"""One table of all flow transforms x the laws that each keeps. A transform is one row."""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
import zuko
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import ConditionalTransformedDistribution, TransformedDistribution
from torch import nn
from torch.distributions import ComposeTransform

import ppgen.transforms as T
from ppgen import normal
from ppgen.engine import compiled, trace
from ppgen.errors import PpgenError
from ppgen.transforms import FAMILIES, continuous, stack
from ppgen.transforms.continuous import _trace
from ppgen.transforms.residual import _log_det, _spectral_bound
from ppgen.transforms.univariate.mixture import Gaussianize
from ppgen.transforms.univariate.roots import solve_increasing
from ppgen.transforms.univariate.splines import Spline

HIDDEN = (8, 8)
SLOW_SOLVER = {"cnf", "ffjord"}  # adaptive: values by tolerance, graph not traceable
NO_CONTEXT = {"lu", "planar", "radial", "sylvester"}
SLOW = {*SLOW_SOLVER, "unaf"}
SOME_SLOW = [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAMILIES]
CONTEXTUAL = [f for f in FAMILIES if f not in NO_CONTEXT]


class Chain(nn.Module):
    """A family's stack with its parameters, in float64, away from its initial values."""

    def __init__(self, family, features=2, transforms=2, context=0):
        super().__init__()
        torch.manual_seed(len(family) + features)
        if family in SLOW_SOLVER:
            transforms = 1
        self.parts = nn.ModuleList(stack(family, features, transforms, HIDDEN, context))
        self.family, self.features = family, features
        self.double().eval()
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.1 * torch.randn_like(p))

    def transform(self, context=None):
        parts = [p.condition(context) if isinstance(p, T.Conditional) else p for p in self.parts]
        return ComposeTransform(parts)

    def distribution(self, context=None):
        p = next(self.parameters())
        base = dist.Normal(torch.zeros(self.features).to(p), 1.0).to_event(1)
        if self.family == "ncsf":
            bound = torch.full((self.features,), math.pi).to(p)
            base = dist.Uniform(-bound, bound).to_event(1)
        parts = self.transform(context).parts
        if context is not None:
            base = base.expand(context.shape[:-1])
        return TransformedDistribution(base, parts)

    def values(self, *shape, dtype=torch.float64):
        x = torch.randn(*shape, self.features, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return (x.clamp(-3, 3) if self.family == "ncsf" else 1.5 * x).to(dtype)


def images(shape):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


SINGLES = {
    "actnorm": (lambda: T.ActNorm(3), (3,)),
    "actnorm images": (lambda: T.ActNorm((2, 2, 2)), (2, 2, 2)),
    "lu5": (lambda: T.LULinear(5), (5,)),
    "lu without permutation": (lambda: T.LULinear(3, permute=False), (3,)),
    "conv1x1": (lambda: T.conv1x1((3, 2, 2)), (3, 2, 2)),
    "orthogonal": (lambda: T.Orthogonal(3), (3,)),
    "whitening": (lambda: T.Whitening(3).measure(torch.randn(9, 3)), (3,)),
    "residual spline coupling": (lambda: T.spline_coupling(4, hidden=HIDDEN, residual=True, bins=4), (4,)),
    "permutation": (lambda: T.Permutation([2, 0, 1]), (3,)),
    "squeeze": (lambda: T.Squeeze((1, 4, 2)), (1, 4, 2)),
    "split": (lambda: T.Split((2, 2, 2)), (2, 2, 2)),
    "conv coupling": (lambda: T.ConvCoupling((3, 2, 2), 4), (3, 2, 2)),
    "glow": (lambda: T.glow((1, 4, 4), levels=2, steps=1, hidden=4), (1, 4, 4)),
    "tarflow": (lambda: T.tarflow((1, 4, 4), 2, 2, width=4, layers=1, heads=2), (1, 4, 4)),
    "tarflow, splines": (lambda: T.tarflow((1, 4, 4), 2, 2, width=4, layers=1, heads=2, bins=4), (1, 4, 4)),
    "two passes": (lambda: T.spline(4, hidden=HIDDEN, passes=2), (4,)),
    "one feature": (lambda: T.maf(1), (1,)),
    "inverse": (lambda: T.Inverse(T.realnvp(3, hidden=HIDDEN)), (3,)),
}
KEPT = [
    "affine_autoregressive", "affine_coupling", "batchnorm", "block_autoregressive", "householder",
    "matrix_exponential", "neural_autoregressive", "permute", "planar", "polynomial", "radial", "spline",
    "spline_autoregressive", "spline_coupling", "sylvester",
]  # fmt: skip
OPTIONS = {"matrix_exponential": {"iterations": 24}, "block_autoregressive": {"residual": "gated"}}
for name in KEPT:
    SINGLES[f"Pyro's {name}"] = (lambda name=name: T.keep(name, 2, **OPTIONS.get(name, {})), (2,))
WITH_PARAMETERS = [s for s in SINGLES if s not in ("permutation", "squeeze", "whitening", "Pyro's permute")]


def single(name):
    torch.manual_seed(1)
    with default_double():
        make, shape = SINGLES[name]
        t = make().double().eval()
    with torch.no_grad():
        for p in t.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return t, images(shape)


class default_double:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


def log_det_by_autograd(f, x):
    """log |det ∂f/∂x| of each row, events flattened."""
    found = []
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: f(v).flatten(), row)
        found.append(torch.linalg.slogdet(jacobian.flatten(1)).logabsdet)
    return torch.stack(found)


# -- the laws of every family -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_inverse_of_forward_is_the_value_and_the_reverse(family):
    chain = Chain(family, 3)
    t, x = chain.transform(), chain.values(7)
    tolerance = 1e-4 if family in SLOW_SOLVER else 1e-8
    with torch.no_grad():
        z = t.inv(x)
        again = chain.transform()(z.clone())
        assert torch.allclose(again, x, atol=tolerance)
        assert torch.allclose(chain.transform().inv(again.clone()), z, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_det_is_that_of_autograds_jacobian(family):
    chain = Chain(family, 3)
    x = chain.values(5)
    t = chain.transform()
    with torch.no_grad():
        z = t.inv(x).clone()
        ladj = t.log_abs_det_jacobian(z, x)
        sampled = chain.transform()(z)
        after_call = chain.transform().log_abs_det_jacobian(z, sampled)
    exact = log_det_by_autograd(chain.transform().inv, x)
    if family == "ffjord":  # unbiased: the mean of many estimates
        estimates = torch.stack([chain.transform().log_abs_det_jacobian(z, x).detach() for _ in range(60)])
        error, sd = estimates.mean(0) + exact, estimates.std(0) / 60**0.5
        assert (error.abs() < 4 * sd + 1e-3).all()
        return
    tolerance = 2e-3 if family in SLOW_SOLVER else 1e-8
    assert torch.allclose(-ladj, exact, atol=tolerance)
    assert torch.allclose(after_call, ladj, atol=tolerance)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_density_of_own_samples_is_the_bases_less_the_log_det(family):
    if family == "ffjord":
        pytest.skip("its log-density is an estimate")
    chain = Chain(family)
    p = chain.distribution()
    with torch.no_grad():
        torch.manual_seed(5)
        z = p.base_dist.sample((5,))
        torch.manual_seed(5)
        x = p.sample((5,))
        remembered = p.log_prob(x)
        afresh = chain.distribution().log_prob(x.clone())
        expected = p.base_dist.log_prob(z) - log_det_by_autograd(chain.transform(), z)
    tolerance = 2e-3 if family in SLOW_SOLVER else 1e-6
    assert torch.allclose(remembered, expected, atol=tolerance)
    assert torch.allclose(afresh, expected, atol=tolerance)


@pytest.mark.parametrize("family", [f for f in SOME_SLOW if "ffjord" not in str(f)])
def test_density_integrates_to_one(family):
    chain = Chain(family)
    n, reach = (100 if family in SLOW_SOLVER | {"naf", "unaf"} else 200), math.pi if family == "ncsf" else 14.0
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    if family == "ncsf":
        axis, weight = math.pi * middle, torch.full((n,), 2 * math.pi / n, dtype=torch.float64)
    else:  # points close together near 0, by a sinh
        scale = math.asinh(4 * reach)
        axis, weight = (scale * middle).sinh() / 4, (scale * middle).cosh() * scale / 4 * 2 / n
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = (chain.distribution().log_prob(grid).exp() * torch.cartesian_prod(weight, weight).prod(-1)).sum()
    assert abs(mass - 1) < 2e-3, float(mass)


def test_a_transformers_features_follow_those_before_them_in_its_order():
    torch.manual_seed(0)
    order = [2, 0, 3, 1]
    t = T.transformer(4, hidden=HIDDEN, heads=2, order=order)
    jacobian = torch.autograd.functional.jacobian(t.inv, torch.randn(4))
    before = torch.tensor(order)[:, None] >= torch.tensor(order)
    assert torch.equal(jacobian != 0, before)
    with pytest.raises(PpgenError, match="order has to hold each of 0, ..., 3 once"):
        T.transformer(4, order=[0, 0, 1, 2])
    with pytest.raises(PpgenError, match="of one width"):
        T.transformer(4, hidden=(8, 16))


def test_a_transformers_density_is_the_product_of_its_mixtures():
    torch.manual_seed(0)
    t, x = T.transformer(3, hidden=HIDDEN, heads=2, components=2).double(), torch.randn(5, 3, dtype=torch.float64)
    log_p = dist.TransformedDistribution(dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), [t]).log_prob(x)
    h = t.net(x[:, :-1].asinh()[..., None])
    shift, log_scale = (
        t.within.network(h).unflatten(-1, (2, 2)) + torch.stack([t.within.shift, t.within.scale], 1)
    ).unbind(-2)
    parts = dist.Normal(-shift * (-log_scale).exp(), (-log_scale).exp()).log_prob(x[..., None])
    assert torch.allclose(log_p, (parts.logsumexp(-1) - math.log(2)).sum(-1), atol=1e-10)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "ffjord"])
def test_mixed_precision_is_the_networks_alone(family):
    chain = Chain(family, 3).float()
    x = chain.values(9, dtype=torch.float32)
    with torch.no_grad():
        exact = chain.distribution().log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            z = chain.transform().inv(x)
            rounded = chain.distribution().log_prob(x)
            draws = chain.distribution().sample((9,))
    assert z.dtype == rounded.dtype == draws.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize("family", SOME_SLOW)
def test_gradients_reach_every_parameter_from_both_directions(family):
    chain = Chain(family, 3).train()
    x = chain.values(16)
    chain.distribution().log_prob(x).sum().backward()
    _all_have_gradients(chain)
    chain.zero_grad()
    chain.distribution().rsample((16,)).square().sum().backward()
    if family != "nice":
        _all_have_gradients(chain)


def _all_have_gradients(chain):
    for name, p in chain.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in SLOW_SOLVER])
def test_gradients_of_sampling_are_right(family):
    """The derivative of a sample by a parameter, against a difference quotient."""
    chain = Chain(family, 2)
    p = next(q for q in chain.parameters() if q.numel())
    z = chain.values(3) if family == "ncsf" else 0.5 * chain.values(3)
    x = chain.transform()(z)
    weights = torch.linspace(1, 2, 6, dtype=torch.float64).reshape(3, 2)
    (gradient,) = torch.autograd.grad((x * weights).sum(), p, allow_unused=True)
    gradient = torch.zeros_like(p) if gradient is None else gradient
    direction = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0))
    sums = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            p.add_(h * direction)
            sums.append((chain.transform()(z.clone()) * weights).sum())
            p.sub_(h * direction)
    assert torch.allclose((gradient * direction).sum(), (sums[0] - sums[1]) / 2e-5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_float32_agrees_with_float64(family):
    chain = Chain(family)
    x = chain.values(20)
    with torch.no_grad():
        torch.manual_seed(0)
        wide = chain.distribution().log_prob(x)
        chain.float()
        torch.manual_seed(0)
        narrow = chain.distribution().log_prob(x.float())
        z = chain.transform().inv(x.float())
        back = chain.transform()(z.clone())
    assert narrow.dtype == back.dtype == torch.float32
    if family != "ffjord":  # its noise differs with the dtype
        assert torch.allclose(narrow.double(), wide, atol=5e-3)
    assert torch.allclose(back.double(), x, atol=2e-3)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in SLOW_SOLVER])
def test_batch_shapes(family):
    chain = Chain(family)
    p = chain.distribution()
    for shape in ((), (4,), (3, 1, 4)):
        x = chain.values(*shape)
        log_p = p.log_prob(x)
        assert log_p.shape == shape
        assert torch.allclose(log_p.flatten(), p.log_prob(x.reshape(-1, 2)))
        assert p.rsample(shape).shape == (*shape, 2)
    assert p.expand([5]).sample().shape == (5, 2)
    assert (p.event_shape, p.batch_shape) == ((2,), ())
    t = chain.transform()
    assert t.domain.event_dim == t.codomain.event_dim == 1 and t.bijective
    assert t.forward_shape((7, 2)) == t.inverse_shape((7, 2)) == (7, 2)


@pytest.mark.parametrize("family", CONTEXTUAL)
def test_conditioning_is_row_by_row(family):
    chain = Chain(family, context=3)
    x = chain.values(4)
    c = torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        tolerance = 2e-3 if family in SLOW_SOLVER else 1e-8
        z = chain.transform(c).inv(x)
        rows = torch.stack([chain.transform(ci).inv(xi) for ci, xi in zip(c, x, strict=True)])
        assert torch.allclose(z, rows, atol=tolerance)
        other = chain.transform(c + 1).inv(x)
        assert not torch.allclose(other, z, atol=1e-3)
        if family != "ffjord":
            a = chain.distribution(c).log_prob(x)
            # one value at every context, and every value at one
            assert torch.allclose(chain.distribution(c).log_prob(x[0])[0], a[0], atol=tolerance)
            assert chain.distribution(c[:, None]).log_prob(x).shape == (4, 4)
        assert chain.distribution(c).sample((2,)).shape == (2, 4, 2)


@pytest.mark.parametrize("family", CONTEXTUAL)
def test_a_missing_or_wrong_context_has_its_sentence(family):
    part = next(p for p in stack(family, 2, 1, HIDDEN, context=3) if isinstance(p, T.Conditional))
    with pytest.raises(PpgenError, match="no context was given"):
        part.transform(torch.zeros(2))
    with pytest.raises(PpgenError, match="last dimension must be 3"):
        part.condition(torch.zeros(4)).inv(torch.zeros(2))


@pytest.mark.parametrize("family", SOME_SLOW)
def test_saved_loaded_copied_and_pickled_after_use(family, tmp_path):
    chain, x = Chain(family), Chain(family).values(3)
    t = chain.transform()
    t.log_abs_det_jacobian(t.inv(x), x)  # leaves memories with graphs behind, which must not be in the way
    chain.distribution().rsample()
    copied, pickled = copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))
    torch.save(chain.state_dict(), tmp_path / "state.pt")
    loaded = Chain(family)
    for p in loaded.parameters():
        p.data.zero_()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt"))
    with torch.no_grad():
        torch.manual_seed(0)  # the noise of ffjord's trace is among what its solver chooses its steps by
        expected = t.inv(x)
        for other in (copied, pickled, loaded):
            torch.manual_seed(0)
            assert torch.equal(other.transform().inv(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", SOME_SLOW)
def test_extreme_inputs_stay_finite(family, dtype):
    if family == "ncsf":
        pytest.skip("its values are angles")
    chain = Chain(family).to(dtype)
    x = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 0.0], [0.0, -1e4]], dtype=dtype)
    log_p = chain.distribution().log_prob(x)
    assert log_p.isfinite().all()
    log_p.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in chain.parameters())
    with torch.no_grad():
        out = chain.transform()(0.01 * x)
    assert out.isfinite().all()


TRACED = [f for f in FAMILIES if f not in SLOW_SOLVER]


def loss_and_gradients(chain):
    """A function of the parameters' values and x, and these values."""
    names, parameters = zip(*chain.named_parameters(), strict=True)

    def f(*inputs):
        *values, x = inputs
        with torch.nn.utils.stateless._reparametrize_module(chain, dict(zip(names, values, strict=True))):
            loss = -chain.distribution().log_prob(x).mean()
            return [loss, *torch.autograd.grad(loss, values)]

    return f, [p.detach().clone().requires_grad_() for p in parameters]


@pytest.mark.parametrize("family", TRACED)
def test_traced_graph_equals_eager(family):
    chain = Chain(family, 3, transforms=1)
    f, values = loss_and_gradients(chain)
    x = chain.values(6)
    graph = trace(f, [*values, x])
    for at in (values, [(p + 0.01).detach().requires_grad_() for p in values]):
        for own, traced in zip(f(*at, x), graph(*at, x), strict=True):
            assert torch.allclose(own, traced, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("family", TRACED)
def test_compiled_graph_equals_eager(family):
    chain = Chain(family, 3, transforms=1)
    f, values = loss_and_gradients(chain)
    inputs = [*values, chain.values(6)]
    graph = trace(f, inputs)
    inputs = [t.detach() for t in (*inputs, *graph.constants)]
    run = compiled(graph.graph, inputs)
    for moved in (0.0, 0.01):
        at = [t + moved for t in inputs[: len(values)]]
        own = f(*(t.clone().requires_grad_() for t in at), inputs[len(values)])
        for a, b in zip(own, run([*at, *inputs[len(values) :]]), strict=True):
            assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in SLOW_SOLVER])
def test_nothing_is_remembered_beyond_a_step(family):
    """torch's cache would give the old density for the same tensor after an optimiser's step."""
    chain = Chain(family)
    p = chain.distribution()
    with torch.no_grad():
        x = p.sample((4,))
        p.log_prob(x)
        for q in chain.parameters():
            q.add_(0.05)
        assert torch.allclose(p.log_prob(x), chain.distribution().log_prob(x.clone()), atol=1e-10)
        before = p.log_prob(x)
    after = p.log_prob(x)  # the same tensor, now with gradients
    assert after.requires_grad and torch.allclose(before, after.detach(), atol=1e-10)
    t, z = chain.transform().parts[0], chain.values(4)  # z lives on, as a guide's draw does
    with torch.no_grad():
        x = t(z)
        assert t.inv(x) is z
        for q in chain.parameters():
            q.add_(0.05)
        assert torch.equal(t.inv(x), t.inv(x.clone())) and not torch.allclose(t.inv(x), z, atol=1e-3)


@pytest.mark.parametrize("family", ["maf", "realnvp", "nsf"])
def test_draws_that_were_written_into_have_the_density_of_what_they_are(family):
    """x = p.rsample(); x.clamp_(...); p.log_prob(x) had the density of the draw before it was clamped."""
    chain = Chain(family)
    p = chain.distribution()
    torch.manual_seed(0)
    for draw in (p.sample, p.rsample):
        x = draw((5,))
        p.log_prob(x)
        x.mul_(1.5)
        assert torch.equal(p.log_prob(x), chain.distribution().log_prob(x.clone()))
    t, z = chain.transform().parts[0], chain.values(4)
    with torch.no_grad():
        x = t(z)
        x.add_(0.5)
        assert torch.equal(t.log_abs_det_jacobian(z, x), t.log_abs_det_jacobian(t.inv(x.clone()), x.clone()))
    with torch.inference_mode():
        assert torch.isfinite(p.log_prob(p.sample((3,)))).all()


def test_the_inverse_of_gaussianization_has_its_own_dtype():
    """It took torch's default one, and a float32 flow failed where that is float64."""
    parts = nn.ModuleList(stack("gf", 2, 2, HIDDEN))
    with default_double():
        x = torch.randn(4, 2, dtype=torch.float32)
        z = ComposeTransform(list(parts)).inv(x)
        assert ComposeTransform(list(copy.deepcopy(parts)))(z.detach().clone()).dtype == torch.float32


# -- single transforms ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLES)
def test_single_transforms_have_both_directions_and_their_log_det(name):
    t, x = single(name)
    z = t.inv(x)
    z = z.detach().clone()
    assert torch.allclose(t(z), x, atol=1e-6)
    assert z.shape == t.inverse_shape(x.shape) and t.forward_shape(z.shape) == x.shape
    ladj = t.log_abs_det_jacobian(z, x)
    assert ladj.shape == x.shape[:1]
    assert torch.allclose(ladj, log_det_by_autograd(t, z), atol=1e-6)
    pulled = t.inv.log_abs_det_jacobian(x.clone(), z.clone())
    assert torch.allclose(-pulled, ladj, atol=1e-6)
    assert torch.allclose(t.inv(t(z).detach().clone()), z, atol=1e-6)
    assert t.inv.inv is t
    copied, pickled = copy.deepcopy(t), pickle.loads(pickle.dumps(t))
    assert torch.equal(copied.inv(x), t.inv(x.clone())) and torch.equal(pickled.inv(x), t.inv(x.clone()))
    assert t(z[0]).shape == x[0].shape and t.inv(x[:, None]).shape == z[:, None].shape


@pytest.mark.parametrize("bins", [0, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_a_patch_depends_on_those_before_it(backward, bins):
    """The Jacobian of a block of TarFlow is triangular in its own order of the patches; within one it is diagonal, and
    with splines triangular."""
    torch.manual_seed(0)
    with default_double():
        t = T.PatchAutoregressive((2, 4, 6), 2, 8, 1, 2, backward, bins)
        torch.nn.init.normal_(t.net.last.weight)
        x = torch.randn(2, 4, 6)
    assert torch.equal(t.image(t.patches(x)), x) and t.patches(x).shape == (6, 8)
    corner = [x[:, :2, :2], x[:, 2:, 4:]][backward]
    assert torch.equal(t.patches(x)[0].sort().values, corner.flatten().sort().values)
    jacobian = torch.autograd.functional.jacobian(lambda p: t.patches(t.pull(t.image(p))[0]), t.patches(x)) != 0
    between, within = jacobian.any(3).any(1), jacobian.diagonal(dim1=0, dim2=2)
    assert torch.equal(between, torch.ones(6, 6).tril().bool())
    pixels = torch.eye(8).bool()[..., None].expand(8, 8, 6)
    if bins:  # below the diagonal a unit of the masked network may rest
        assert torch.equal(within & pixels, pixels) and not within.permute(2, 0, 1).triu(1).any()
        assert within.sum() > pixels.sum()
    else:
        assert torch.equal(within, pixels)
    with torch.no_grad():
        (z, down), (_, up) = t.pull(x), t.push(t.pull(x)[0])
    assert torch.allclose(up, -down) and down.abs() > 1e-3 and torch.allclose(t.push(z)[0], x)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_single_transforms_have_gradients_in_the_density(name):
    t, x = single(name)
    z = t.inv(x)
    (z.square().sum() + t.log_abs_det_jacobian(z, x).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in t.parameters())


@pytest.mark.parametrize("name", ["Pyro's planar", "Pyro's sylvester", "Pyro's polynomial", "Pyro's radial"])
def test_gradient_of_a_density_through_a_solved_inverse(name):
    t, x = single(name)
    base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    def log_p():
        return TransformedDistribution(base, [t]).log_prob(x.clone()).sum()

    log_p().backward()
    for p in t.parameters():
        direction = torch.ones_like(p)
        with torch.no_grad():
            p.add_(1e-5 * direction)
            up = log_p()
            p.sub_(2e-5 * direction)
            down = log_p()
            p.add_(1e-5 * direction)
        assert torch.allclose((p.grad * direction).sum(), (up - down) / 2e-5, rtol=1e-4, atol=1e-6)


def test_extra_terms_of_the_residual_series_are_unbiased():
    torch.manual_seed(0)
    with default_double():
        t = T.Residual(5, hidden=(16,), exact_up_to=0, terms=2)
    x = torch.randn(3, 5, dtype=torch.float64)
    exact = log_det_by_autograd(t.inv, x)
    draws = torch.stack([t.pull(x)[1].detach() for _ in range(1500)])
    error, se = draws.mean(0) - exact, draws.std(0) / 1500**0.5
    assert (error.abs() < 4 * se).all() and (se < 0.07).all()


def test_the_roulette_of_the_residual_series_is_weighed():
    """J is about −0.58 I: all terms are of one sign. Without the weights the mean would be off by 0.37."""
    torch.manual_seed(0)
    with default_double():
        t = T.Residual(5, hidden=(16,), exact_up_to=0, terms=2)
        with torch.no_grad():
            t.weights[1].copy_(-0.6 * t.weights[0].mT)
            t.biases[0].fill_(2.4)  # where the slope is largest
    x = torch.zeros(200, 5, dtype=torch.float64)
    exact = log_det_by_autograd(t.inv, x[:1])
    draws = torch.stack([t.pull(x)[1].detach().mean() for _ in range(400)])
    se = float(draws.std()) / 400**0.5
    assert float(exact) < -2 and abs(float(draws.mean() - exact)) < 4 * se < 0.2


def test_residual_layers_keep_their_lipschitz_bound():
    torch.manual_seed(0)
    t = T.Residual(4, hidden=(16, 16), lipschitz=0.9).double()
    with torch.no_grad():
        for p in t.parameters():
            p.mul_(20)
        x = 10 * torch.randn(500, 4, dtype=torch.float64)
        y = x + 0.01 * torch.randn_like(x)
        g = [t.pull(v)[0] - v for v in (x, y)]
        slopes = (g[0] - g[1]).norm(dim=-1) / (x - y).norm(dim=-1)
    assert slopes.max() <= 0.9**3 + 1e-9
    z = t.inv(x)
    assert torch.allclose(t(z.detach().clone()), x, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 6), (2, 7), (7, 2)])
def test_the_bound_on_a_norm_holds_is_tight_and_has_its_gradient(shape):
    torch.manual_seed(0)
    for w in (torch.randn(shape).double(), nn.init.orthogonal_(torch.empty(shape)).double()):
        norm = torch.linalg.matrix_norm(w, 2)
        assert norm * (1 - 1e-12) <= _spectral_bound(w) <= 1.02 * norm
    assert torch.autograd.gradcheck(_spectral_bound, torch.randn(shape).double().requires_grad_())
    zero = torch.zeros(shape).requires_grad_()
    _spectral_bound(zero).backward()
    assert zero.grad.isfinite().all()


def test_elimination_without_pivots_is_the_determinant():
    torch.manual_seed(0)
    j = torch.randn(5, 5, 9).double()
    j = 0.95 * j / torch.linalg.matrix_norm(j.movedim(-1, 0), 2)
    assert torch.allclose(_log_det(j), torch.linalg.slogdet(torch.eye(5) + j.movedim(-1, 0)).logabsdet, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_log_of_the_normal_distribution_function_and_its_inverse(dtype, tolerance):
    x = torch.cat((torch.linspace(-60, 9, 2001), torch.tensor([-1e4, -300.0]))).to(dtype)
    expected = torch.special.log_ndtr(x.double())
    assert ((normal.log_cdf(x) - expected).abs() <= tolerance * expected.abs() + 1e-30).all()
    below = x[x < 0]
    assert torch.allclose(normal.quantile(torch.special.log_ndtr(below.double()).to(dtype)), below, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 5e-4)])
def test_both_derivatives_of_the_log_of_the_normal_distribution_function(dtype, tolerance):
    """φ / Φ =: h and -h (h + x), also at 0 and where erfc or its square underflows."""
    x = torch.cat((torch.linspace(-60, 60, 601), torch.tensor([0.0, -0.0]))).to(dtype).requires_grad_()
    first = torch.autograd.grad(normal.log_cdf(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0]
    wide = x.detach().double()
    h = (normal.log_density(wide) - torch.special.log_ndtr(wide)).exp()
    assert torch.allclose(first.detach().double(), h, rtol=tolerance, atol=1e-30)
    assert torch.allclose(second.double(), -h * (h + wide), atol=tolerance)


@pytest.mark.parametrize("hidden", [(5,), (5, 4), (5, 4, 6)])
def test_traces_carried_forward_are_those_of_autograds_jacobian(hidden):
    torch.manual_seed(0)
    t = T.Continuous(3, context=2, hidden=hidden).double()
    x, c, noise, at = (torch.randn(shape).double() for shape in ((2, 4, 3), (2, 4, 2), (2, 4, 3), ()))
    v, slopes, weights = t._rate(at, x, c)
    assert torch.allclose(v, t.field.f(at, x, c), atol=1e-12)
    rows = zip(x.reshape(-1, 3), c.reshape(-1, 2), strict=True)
    j = torch.stack([torch.autograd.functional.jacobian(lambda x, c=c: t.field.f(at, x, c), x) for x, c in rows])
    exact, estimate = (_trace(weights, slopes, e).flatten() for e in (None, noise))
    assert torch.allclose(exact, j.diagonal(dim1=1, dim2=2).sum(-1), atol=1e-12)
    e = noise.reshape(-1, 3)
    assert torch.allclose(estimate, torch.einsum("ni,nij,nj->n", e, j, e), atol=1e-12)


def test_a_large_continuous_transform_forgets_its_layers_and_has_the_same_gradient(monkeypatch):
    torch.manual_seed(0)
    t = T.Continuous(3, context=2, hidden=(5, 4), exact=False).double()
    x, c = torch.randn(7, 3).double(), torch.randn(7, 2).double().requires_grad_()
    results = []
    for limit in (10**6, 0):
        monkeypatch.setattr(continuous, "LARGE", limit)
        torch.manual_seed(1)
        z, log_det = t.pull(x, c)
        results.append([z, log_det, *torch.autograd.grad((z**2).sum() + log_det.sum(), [*t.parameters(), c])])
    for kept, again in zip(*results, strict=True):
        assert torch.allclose(kept, again, rtol=1e-12, atol=1e-14)


def test_a_field_that_is_not_finite_is_an_error_and_no_endless_search_for_a_step():
    t = T.Continuous(2)
    with torch.no_grad():
        t.field.ode[0].bias.fill_(math.nan)
    with pytest.raises(PpgenError, match="the ODE cannot be solved"):
        t.pull(torch.zeros(4, 2))


def test_actnorm_begins_with_the_first_batch_in_training_only():
    torch.manual_seed(0)
    t, x = T.ActNorm(3), 5 + 3 * torch.randn(200, 3)
    t.eval()
    assert torch.equal(t.inv(x), x)
    t.train()
    z = t.inv(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(z.std(0), torch.ones(3), atol=1e-5)
    other = T.ActNorm(3)
    other.load_state_dict(t.state_dict())
    assert torch.equal(other.train().inv(2 * x), t.inv(2 * x))  # it does not begin anew
    assert copy.deepcopy(t).is_ready


def test_conv1x1_is_torchs_convolution():
    t, x = single("conv1x1")
    L, U = t._factors()
    weight = (t.P @ L @ U)[:, :, None, None]
    assert torch.allclose(t.inv(x), nn.functional.conv2d(x, weight))


def test_spline_at_its_knots_and_beyond():
    torch.manual_seed(0)
    f = Spline(torch.randn(3, 8), torch.randn(3, 8), 5 * torch.randn(3, 7))
    knots = torch.stack(f.heights).cumsum(0) - 5
    y = torch.cat((knots, knots + 1e-6, torch.tensor([[-5.0], [5.0], [7.0], [-1e4]]).expand(4, 3)))
    x = f.inv(y)
    assert x.isfinite().all() and torch.allclose(f(x), y, atol=1e-3)


@pytest.mark.parametrize(("spread", "scales"), [(3.0, 1.0), (10.0, 2.0)])
def test_quantiles_of_mixtures_with_gaps_and_far_out(spread, scales):
    torch.manual_seed(0)
    f = Gaussianize(spread * torch.randn(500, 8).double(), scales * torch.randn(500, 8).double())
    y = torch.cat((2 * torch.randn(490), torch.linspace(-200, 200, 10))).double().requires_grad_()
    x = f.inv(y)
    assert torch.allclose(f(x), y, atol=1e-9, rtol=1e-12)
    (slope,) = torch.autograd.grad(x.sum(), y)
    assert torch.allclose(slope.log(), -f.log_abs_det_jacobian(x, y), atol=1e-6)
    narrow = Gaussianize(f.shift.float(), f.log_scale.float())
    assert torch.allclose(narrow(narrow.inv(y.float())), y.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_a_mixtures_score_within_a_gap(dtype):
    f = Gaussianize(torch.tensor([[-30.0, 30.0]], dtype=dtype), torch.zeros(1, 2, dtype=dtype))
    y, ladj = f.call_and_ladj(torch.zeros(1, dtype=dtype))
    assert y.abs() < 1e-6 and torch.allclose(ladj, torch.tensor(-450.0, dtype=dtype), rtol=1e-6)


def test_spline_is_zukos():
    torch.manual_seed(0)
    parameters = [torch.randn(50, 8), torch.randn(50, 8), torch.randn(50, 7)]
    x = (3 * torch.randn(50)).double().requires_grad_()
    ours, zukos = ([p.double().requires_grad_() for p in parameters] for _ in range(2))
    found = {}
    for make, own in ((Spline, ours), (zuko.transforms.MonotonicRQSTransform, zukos)):
        z, ladj = make(*own).call_and_ladj(x)
        back = make(*own).inv(z.detach())
        found[make] = z, ladj, back, *torch.autograd.grad((z * z + ladj).sum() + back.sum(), [x, *own])
    for a, b in zip(*found.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(0.01, 10.0))
def test_increasing_functions_are_solved_to_rounding(y, slope):
    target = torch.tensor(y, dtype=torch.float64)

    def f(x):
        return slope * x + x.tanh(), (slope + 1 - x.tanh() ** 2).log()

    x = solve_increasing(f, target, reach=1e8)
    assert torch.allclose(f(x)[0], target, rtol=1e-10, atol=1e-10)


# -- as anyone's Pyro code uses them -----------------------------------------------------------------


def test_torchs_cache_and_composition():
    t = T.maf(3, hidden=HIDDEN)
    cached = t.with_cache(1)
    z = torch.randn(4, 3)
    x = cached(z)
    assert cached(z) is x and cached.inv(x) is z
    assert next(cached.parameters()) is next(t.parameters())
    composed = ComposeTransform([t, T.Permutation(3)], cache_size=1)
    assert torch.allclose(composed.inv(composed(z)), z, atol=1e-5)
    copy.deepcopy(cached)


@pytest.mark.parametrize("passes", [None, 2, 3])
@pytest.mark.parametrize("context", [0, 2])
def test_the_inverse_by_passes_is_that_of_the_whole_network(passes, context):
    torch.manual_seed(0)
    order = torch.randperm(7)
    t = T.Autoregressive(7, context, hidden=(16, 12, 9), order=order, passes=passes).double()
    other = T.Autoregressive(7, context, hidden=(16, 12, 9), passes=passes).double()
    other.load_state_dict(t.state_dict())  # the order with it
    z, c = torch.randn(4, 7).double(), torch.randn(4, context).double() if context else None
    for made in (t, other):
        x = made.push(z, c)[0]
        assert torch.allclose(x, made.conditioner(c).inv(z), atol=1e-10)
        assert torch.allclose(made.pull(x, c)[0], z, atol=1e-10)


def test_conditional_distribution_of_pyro():
    t = T.spline(2, context=3, hidden=HIDDEN)
    p = ConditionalTransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [t, T.realnvp(2)])
    c = torch.randn(5, 3)
    assert p.condition(c).log_prob(torch.randn(5, 2)).shape == (5,)
    assert p.condition(c).sample((4,)).shape == (4, 5, 2)
    inverse = t.inv
    x = torch.randn(5, 2)
    assert torch.allclose(inverse.condition(c).inv(inverse.condition(c)(x).detach().clone()), x, atol=1e-4)


def test_a_sample_and_its_density_take_one_network_call_each_way():
    """As a guide, an IAF draws and scores in one pass; scoring its draw must not invert it."""
    t = T.iaf(4, hidden=HIDDEN)
    calls = []
    t.transform.conditioner.hyper[1].register_forward_hook(lambda *_: calls.append(1))
    p = TransformedDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [t])
    p.log_prob(p.rsample((3,)))
    assert len(calls) == 1
    calls.clear()
    p.log_prob(torch.zeros(3, 4))
    assert len(calls) == 4
    t = T.maf(4, hidden=HIDDEN)
    t.conditioner.hyper[1].register_forward_hook(lambda *_: calls.append(1))
    calls.clear()
    TransformedDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [t]).log_prob(torch.zeros(3, 4))
    assert len(calls) == 1


def test_a_wrong_number_of_features_has_its_sentence():
    with pytest.raises(PpgenError, match=r"event shape \(3,\) and got a value of shape \(5, 2\)"):
        T.maf(3).inv(torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stack("nfs", 2), "did you mean 'nsf'"),
        (lambda: stack("maf", 0), "features=0"),
        (lambda: stack("realnvp", 1), "two features at least"),
        (lambda: stack("maf", 2, mix="Lu"), "did you mean 'lu'"),
        (lambda: stack("maf", 2, bins=4), "do not take all of bins"),
        (lambda: T.Whitening(2).measure(torch.ones(5, 2)), "follows from those before it"),
        (lambda: stack("planar", 2, context=1), "Planar transforms have no context"),
        (lambda: T.Coupling(3, mask=[1, 1, 1]), "both values"),
        (lambda: T.Permutation([0, 0]), "each of 0 to 1 once"),
        (lambda: T.Squeeze((1, 3, 4)), "even height and width"),
        (lambda: T.Split((3, 2, 2)), "even number"),
        (lambda: T.glow((1, 6, 6), levels=2), "divisible by 2"),
        (lambda: T.ConvCoupling((1, 2, 2)), "squeeze the images first"),
        (lambda: T.conv1x1((3,)), "channels, height, width"),
        (lambda: T.keep("planer", 2), "did you mean 'planar'"),
        (lambda: T.Multiscale([[T.Squeeze((1, 4, 4))], [T.ActNorm((4, 2, 2))]]), "half the channels go on"),
    ],
)
def test_wrong_arguments_have_their_sentence(make, message):
    with pytest.raises(PpgenError, match=message):
        make()


@pytest.mark.parametrize("mix", T.MIXES)
def test_mixed_layers_are_one_bijection(mix):
    torch.manual_seed(0)
    parts = nn.ModuleList(stack("realnvp", 4, 3, HIDDEN, mix=mix)).double()
    assert len(parts) == 5
    t, x = ComposeTransform(list(parts)), torch.randn(6, 4).double()
    z = t.inv(x)
    assert torch.allclose(t(z.detach().clone()), x, atol=1e-10)
    found = -t.log_abs_det_jacobian(z, x)
    assert torch.allclose(found, log_det_by_autograd(lambda v: t.inv(v), x), atol=1e-10)


def test_a_missing_direction_has_its_sentence_before_training():
    t = T.keep("block_autoregressive", 2)
    assert t(torch.zeros(3, 2)).shape == (3, 2)
    for ask in (lambda: t.require("pull"), lambda: t.inv(torch.zeros(3, 2))):
        with pytest.raises(PpgenError, match="has no pull .* only push"):
            ask()
    T.Inverse(t).require("pull")


def test_every_family_and_every_kept_transform_has_its_row():
    from ppgen.transforms.from_pyro import _NAMES, _OWN

    assert set(KEPT) == {*_NAMES, *_OWN}
    made = {"Multiscale": "glow", "Mixtures": "gf", "Continuous": "cnf", "Kept": "Pyro's spline"}
    assert all(v in SINGLES or v in FAMILIES for v in made.values())
