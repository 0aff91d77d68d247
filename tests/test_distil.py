"""Consistency functions of Gaussian data, which are known in closed form."""

import math

import pytest
import torch
from known import KnownChain, normal
from test_samplers import gaussian_flow, moments_agree

from ppgen import PpgenError
from ppgen.inference import Guided, distil, loglik, sample, sample_diffusion
from ppgen.inference.diffusion.distil import _consistency_loss, _warn_if_far
from ppgen.inference.diffusion.samplers import ddim, heun_step, jump
from ppgen.models import VDM, Diffusion, DiffusionBridge


class KnownConsistency(KnownChain):
    """Whose jump from any time ends where the ODE ends."""

    samplers = ("consistency",)

    def predict(self, z, t, **columns):
        (gamma, alpha, _), (_, alpha_0, _) = self.coefficients(t), self.coefficients(0.0)
        level, first = (gamma / 2).exp(), (self.gamma(0.0) / 2).exp()
        end = gaussian_flow(self, z, t, 0.0) / alpha_0
        share = torch.where(level > first, level / (level - first), 0.0)
        return z / alpha - share * (z / alpha - end), None


@torch.no_grad()
def test_a_jump_is_a_step_of_ddim_and_stands_still_at_the_end():

    known, z = KnownChain(low=-6.0, high=4.0), normal(4, 2).double()
    _, alpha, _ = known.coefficients(0.0)
    torch.testing.assert_close(alpha * jump(known, z, 1.0), ddim(known, 1, z))
    torch.testing.assert_close(jump(known, z, 0.0), z / alpha)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_draws_of_the_known_function_are_of_the_data(steps):
    known = KnownConsistency(low=-9.0, high=9.0)
    moments_agree(sample_diffusion(known, 20_000, steps=steps, sampler="consistency", seed=1), known)


@torch.no_grad()
def test_the_loss_of_the_known_function_is_the_error_of_a_step():
    """It falls with the sixth power of the step, as that of Heun's squared does."""
    teacher, student = (cls(low=-3.0, high=3.0, schedule="loglinear") for cls in (KnownChain, KnownConsistency))
    data, losses = {"x": normal(3000, 2).double()}, []
    for intervals in (10, 20):
        torch.manual_seed(0)
        losses.append(float(_consistency_loss(teacher, student, data, intervals)))
    assert math.log2(losses[0] / losses[1]) == pytest.approx(6, abs=0.5)
    torch.manual_seed(0)
    assert float(_consistency_loss(teacher, teacher, data, 20)) > 1000 * losses[1]


@torch.no_grad()
def test_the_step_of_the_ode():
    known, z = KnownChain(low=-3.0, high=3.0), normal(4, 2).double()
    (_, alpha_s, _), (_, alpha, _) = known.coefficients(0.48), known.coefficients(0.5)
    step = alpha_s * heun_step(known, z / alpha, 0.48, 0.5)
    torch.testing.assert_close(step, gaussian_flow(known, z, 0.5, 0.48), rtol=1e-3, atol=1e-3)


def test_the_teacher_stays_and_its_copy_learns():
    torch.manual_seed(0)
    teacher = Diffusion(2, hidden=(4,), classes=2, loc=[0.0], scale=[1.0])
    torch.nn.init.normal_(teacher.net.last.weight)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    data, seen = {"x": normal(20, 2), "y": torch.arange(20) % 2}, []
    made = distil(teacher, data, steps=3, batch_size=8, report=lambda i, n: seen.append((i, n)))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items()) and not teacher.samplers
    assert not torch.equal(made.net.last.weight, teacher.net.last.weight) and seen[-1] == (3, 3)
    assert sample_diffusion(made, 3, given={"y": 1}, seed=0).shape == (3, 2)
    with pytest.raises(PpgenError, match="take consistency"):
        sample_diffusion(made, 3, "ddim")
    with pytest.raises(PpgenError, match="'consistency' is for what distil makes"):
        sample_diffusion(teacher, 3, "consistency")
    with pytest.raises(PpgenError, match="many times at once, and Guided knows one"):
        distil(Guided(teacher, lambda x, z, t: -(x**2).sum(-1)), data)
    with pytest.raises(PpgenError, match="intervals 0"):
        distil(teacher, data, intervals=0)
    with pytest.raises(PpgenError, match="DiffusionBridge has none"):
        distil(DiffusionBridge(2, hidden=(4,)), data)


def labelled(**options):
    torch.manual_seed(0)
    teacher = Diffusion(2, hidden=(4,), classes=2, loc=[0.0], scale=[1.0], **options)
    torch.nn.init.normal_(teacher.net.last.weight)
    return teacher, {"x": normal(40, 2), "y": torch.arange(40) % 2}


def test_a_distilled_chain_has_no_density_and_is_not_mistaken_for_one():
    """Its x̂ is no E[x | z_t]: what the explicit chain or another sampler would draw by it is of no model."""
    teacher, data = labelled()
    made = distil(teacher, data, steps=2, batch_size=8)
    for ask in (lambda: sample(made, 2, given=data), lambda: loglik(made, data), lambda: loglik(made, data, ode=True)):
        with pytest.raises(PpgenError, match="by sample_diffusion alone"):
            ask()
    with pytest.raises(PpgenError, match="leave guidance out"):
        sample_diffusion(made, 2, given={"y": 1}, guidance=2.0)
    with pytest.raises(RuntimeError, match="distilled"):
        labelled()[0].load_state_dict(made.state_dict())
    again = distil(teacher, data, steps=0)
    again.load_state_dict(made.state_dict())
    assert torch.equal(*(sample_diffusion(p, 3, given={"y": 1}, seed=0) for p in (made, again)))


def test_a_share_of_the_labels_is_hidden_from_it_too():
    """Draws without a label are of it."""
    teacher, data = labelled(label_dropout=0.5)
    made = distil(teacher, data, steps=2, batch_size=8)
    assert (made.net.time.label.weight != teacher.net.time.label.weight).any(1).all()


def test_a_learned_schedule_is_held():
    """The states that it learns from are of the chain's schedule."""
    torch.manual_seed(0)
    teacher = VDM(2, hidden=(4,), loc=[0.0], scale=[1.0])
    torch.nn.init.normal_(teacher.net.last.weight)
    made = distil(teacher, {"x": normal(20, 2)}, steps=3, batch_size=8)
    assert all(map(torch.equal, made.schedule.parameters(), teacher.schedule.parameters()))
    assert not torch.equal(made.net.last.weight, teacher.net.last.weight)


@torch.no_grad()
def test_states_of_coupled_noise_are_on_its_paths():
    known, z = KnownChain(low=-3.0, high=3.0), normal(1, 40, 2).double()
    known.coupled = lambda x, t, **columns: z + 0 * t[..., None]
    losses = []
    for x in (torch.zeros(40, 2), torch.ones(40, 2)):
        torch.manual_seed(0)
        losses.append(_consistency_loss(known, known, {"x": x.double()}, 10))
    assert losses[0] == losses[1] > 0


def test_a_step_that_does_not_end_where_the_ode_does_is_said(caplog):
    """How far is known of the exact function's own jump, and of that function after a push by 0.5 sd."""

    class Pushed(KnownConsistency):
        push = 0.0

        def predict(self, z, t, **columns):
            x, raw = super().predict(z, t, **columns)
            return x + self.push * self.eigenvalues.mean().sqrt(), raw

    data = {"x": torch.zeros(300, 2).double()}
    for push, said in ((0.0, False), (0.1, False), (0.5, True)):
        student = Pushed(low=-6.0, high=6.0)
        student.push = push
        caplog.clear()
        torch.manual_seed(0)
        _warn_if_far(KnownChain(low=-6.0, high=6.0), student, data, 60)
        assert (f"ends {push:.2g}" in caplog.text) == said and bool(caplog.text) == said


@pytest.mark.parametrize(("share", "said"), [(0.97, False), (0.85, True), (1.15, True)])
def test_draws_of_another_width_along_a_narrow_direction_are_said(caplog, share, said):
    """Of x whose narrow direction has 2% of the variance, so that the distance to the ODE's ends is 0.02 sd."""

    class Stretched(KnownConsistency):
        def predict(self, z, t, **columns):
            _, alpha, sigma = self.coefficients(t)
            x, first = super().predict(z, t, **columns)[0], (self.gamma(0.0) / 2).exp()
            end = z / alpha - (sigma / alpha - first) / (sigma / alpha) * (z / alpha - x)  # of the jump
            narrow = torch.linalg.eigh(self.data.covariance_matrix)[1][:, 0]
            off = (share - 1) * ((end - self.mean) @ narrow)[..., None] * narrow
            return x + off * (sigma / alpha) / (sigma / alpha - first), None

    how = {"factor": ((1.0, 0.0), (0.9, 0.2)), "low": -6.0, "high": 6.0}
    torch.manual_seed(0)
    _warn_if_far(KnownChain(**how), Stretched(**how), {"x": torch.zeros(300, 2).double()}, 60)
    assert ("along a direction of x" in caplog.text) == said == bool(caplog.text), caplog.text
    assert not said or f"15% too {'small' if share < 1 else 'large'}" in caplog.text


@pytest.mark.parametrize(
    ("push", "steps", "said"), [(0.0, 32, False), (0.02, 3, False), (0.06, 32, True), (0.06, 1, False)]
)
def test_errors_of_many_steps_that_add_up_are_said(caplog, push, steps, said):
    """Of jumps to 1 + push times as far from the mean as those of the function that is known in closed form."""

    class Wider(KnownConsistency):
        def predict(self, z, t, **columns):
            (gamma, alpha, _), first = self.coefficients(t), (self.gamma(0.0) / 2).exp()
            end = jump(KNOWN, z, t)
            end, level = self.mean + (1 + push) * (end - self.mean), (gamma / 2).exp()
            share = torch.where(level > first, level / (level - first), 0.0)
            return z / alpha - share * (z / alpha - end), None

    how = {"low": -6.0, "high": 8.0}
    KNOWN = KnownConsistency(**how)
    draws = sample_diffusion(Wider(**how), 4000, "consistency", steps, seed=1)
    one = sample_diffusion(Wider(**how), 4000, "consistency", 1, seed=1)
    wider = float((draws.std(0) / one.std(0)).mean()) - 1
    assert ("farther from their mean than those of one step" in caplog.text) == said, (wider, caplog.text)
    assert (wider > 0.15) == said, wider


@pytest.mark.parametrize("other", [{"process": "ve"}, {"schedule": "cosine"}, {"gamma_low": -5.0}, {"scale": [2.0]}])
def test_what_is_trained_has_the_states_and_units_of_the_chain(other):
    teacher, data = labelled()
    same = {"hidden": (4,), "classes": 2, "loc": [0.0], "scale": [1.0]}
    distil(teacher, data, steps=1, program=Diffusion(2, **same))
    with pytest.raises(PpgenError, match="another process, schedule, location or scale"):
        distil(teacher, data, steps=1, program=Diffusion(2, **same | other))


@pytest.mark.slow
def test_it_learns_the_known_function():
    """Of a network, in one step: beside the map in closed form, and the moments of its draws."""
    known = KnownChain(low=-6.0, high=8.0)
    torch.manual_seed(0)
    student = Diffusion(2, hidden=(32, 32), loc=[0.0], scale=[1.0], gamma_low=-6.0, gamma_high=8.0, schedule="cosine")
    data = {"x": known.data.sample((5000,))}
    made = distil(known, data, program=student.double(), steps=1200, lr=3e-3, batch_size=128)
    with torch.no_grad():
        z = known.base().sample((2000,))
        _, alpha, _ = known.coefficients(0.0)
        end = gaussian_flow(known, z, 1.0, 0.0) / alpha
        off, before = (float(((jump(p, z, 1.0) - end) ** 2).mean().sqrt()) for p in (made, known))
    assert off < 0.15 and off < before / 5
    drawn = sample_diffusion(made, 20_000, seed=1)
    assert float((drawn.mean(0) - known.mean).abs().max()) < 0.12
    assert float((drawn.T.cov() - known.data.covariance_matrix).abs().max()) < 0.12
