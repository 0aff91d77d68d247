"""The image flow: its density, its bounds, its pictures' grid."""

import math

import pytest
import torch

import ppgen
from ppgen.errors import PpgenError
from ppgen.inference import fit
from ppgen.inference.evaluation.loglik import loglik
from ppgen.inference.evaluation.sample import sample
from ppgen.models import ImageFlow


def pictures(n=200):
    """4x4 pictures of 4 levels: a column brighter than the rest, so that there is something to learn."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (n, 4, 4), generator=g)
    x[torch.arange(n), :, torch.randint(0, 4, (n,), generator=g)] += 2
    return x.flatten(1) / 3


def made(**settings):
    torch.manual_seed(0)
    return ImageFlow((1, 4, 4), **{"scales": 2, "steps": 2, "hidden": 8, "levels": 4, **settings})


@pytest.mark.parametrize("settings", [{}, {"family": "tarflow"}, {"family": "tarflow", "bins": 4}])
def test_density_is_autograds_change_of_variables(settings):
    flow = made(**settings).double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    p = flow.density()
    v = (3 * torch.rand(3, 16) + 0.5).double()

    def to_base(v):
        for t in reversed(p.transforms):
            v = t.inv(v)
        return v

    for row in v:
        jacobian = torch.autograd.functional.jacobian(to_base, row)
        expected = p.base_dist.log_prob(to_base(row)) + torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(p.log_prob(row), expected, atol=1e-8)
    draws = p.sample((5,))
    assert draws.shape == (5, 16) and draws.isfinite().all()


def test_pixels_are_standardised_by_the_first_rows_only():
    x = pictures()
    flow = made(margin=0.05)
    state = torch.get_rng_state()
    flow.prepare({"x": x})
    assert torch.equal(state, torch.get_rng_state())
    v = flow.dequantised(x).sample()
    logits = (v / 4 * 0.9 + 0.05).logit()
    unit = (logits - flow.loc) / flow.scale
    assert abs(unit.mean()) < 0.02 and abs(unit.std() - 1) < 0.02
    assert len(flow.loc.unique()) == len(flow.scale.unique()) == 1
    before = flow.loc.clone()
    assert torch.equal(flow.prepare({"x": 1 - x}).loc, before)


def test_learns_samples_and_is_saved(tmp_path):
    x = pictures()
    before = loglik(made().setup({"x": x}).eval(), {"x": x}, particles=5)
    run = fit(made(), {"x": x}, steps=150, batch_size=50, lr=5e-3, engine="eager", out=tmp_path / "run")
    found = loglik(run, {"x": x}, particles=20)
    assert found.dims == 16 and found.best.kind == "lower"
    # no better than the source's own rate allows
    least = (16 * math.log(2) + math.log(4)) / (16 * math.log(2))
    assert least < found.bits_per_dim(found.best) < before.bits_per_dim(before.best) - 0.2
    again = ppgen.Run.load(tmp_path / "run")
    draws = sample(again, 20, seed=0)["x"]
    assert torch.equal(draws, sample(run, 20, seed=0)["x"])
    assert torch.equal((3 * draws).round() / 3, draws) and draws.shape == (20, 16)


@pytest.mark.slow
def test_tarflow_learns():
    x = pictures()
    run = fit(made(family="tarflow", hidden=16), {"x": x}, steps=400, batch_size=50, lr=5e-3, schedule="cosine")
    found = loglik(run, {"x": x}, particles=20)
    least = (16 * math.log(2) + math.log(4)) / (16 * math.log(2))
    assert least < found.bits_per_dim(found.best) < 1.7
    draws = sample(run, 20, seed=0)["x"]
    assert torch.equal((3 * draws).round() / 3, draws)


@pytest.mark.slow
def test_noise_that_is_learned_starts_in_its_cell_and_tightens_the_bound():
    x = pictures()
    flow = made(dequantise="variational").setup({"x": x}).eval()
    q = flow.dequantised(x)
    v = q.sample()
    assert ((v >= q.k) & (v <= q.k + 1)).all()
    u = (v - q.k).flatten()
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.01  # about uniform to begin with
    found = []
    for how in ("uniform", "variational"):
        run = fit(made(dequantise=how), {"x": x}, steps=100, batch_size=50, lr=5e-3, engine="trace")
        found.append(loglik(run, {"x": x}, particles=20))
    uniform, learned = (f.bits_per_dim(f.bounds[0]) for f in found)
    assert (16 * math.log(2) + math.log(4)) / (16 * math.log(2)) < learned < uniform - 0.05
    with pytest.raises(PpgenError, match="uniform, variational"):
        made(dequantise="gaussian")


@pytest.mark.slow
def test_networks_train_in_bfloat16_and_the_rest_does_not():
    x = pictures()
    runs = [
        fit(made(), {"x": x}, steps=30, batch_size=50, lr=5e-3, engine="trace", precision=p)
        for p in ("32-true", "bf16-mixed")
    ]
    whole, mixed = (loglik(r, {"x": x}, particles=5) for r in runs)
    assert abs(whole.best.mean - mixed.best.mean) < 0.05 * abs(whole.best.mean)
    assert {p.dtype for p in runs[1].program.parameters()} == {torch.float32}


def test_actnorm_began_with_the_first_batch():
    flow = made().setup({"x": pictures()})
    layers = [m for m in flow.modules() if type(m).__name__ == "ActNorm"]
    assert layers and all(m.is_ready for m in layers)


def test_flat_and_shaped_images_are_the_same():
    flow, x = made().eval(), pictures(5)
    a, b = (flow.dequantised(v).k for v in (x, x.reshape(5, 1, 4, 4)))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.randint(0, 17, (9, 64)) / 16, {"shape": [1, 8, 8], "scales": 2, "levels": 17}),
        (torch.randint(0, 256, (9, 3, 6, 6)), {"shape": [3, 6, 6], "scales": 1, "levels": 256, "high": 255.0}),
    ],
)
def test_arguments_from_the_data(x, found):
    settings = ImageFlow.from_data({"x": x})
    assert {k: settings[k] for k in found} == found
    ImageFlow(**settings, steps=1, hidden=4)


def test_bad_input_has_its_sentence():
    cases = [
        (lambda: ImageFlow.from_data({"x": torch.randn(9, 16)}), "take the model flow"),
        (lambda: ImageFlow.from_data({"x": torch.zeros(9, 15)}), "no square grey image"),
        (lambda: ImageFlow.from_data({"y": torch.zeros(9, 16)}), "needs a column x of images"),
        (lambda: made(levels=1), "at least 2 levels"),
        (lambda: made(family="tarflo"), "did you mean 'tarflow'"),
        (lambda: made(family="tarflow", patch=3), "sides divisible by the patch's"),
        (lambda: made(family="tarflow", bins=1), "expected 0 for affine maps, or at least 2"),
        (lambda: made(margin=0.6), "0 < margin < 0.5"),
        (lambda: ImageFlow((1, 6, 6)), "divisible by 2"),
        (lambda: made().dequantised(torch.zeros(2, 9)), "16 values"),
    ]
    for ask, message in cases:
        with pytest.raises(PpgenError, match=message):
            ask()
