"""Programs within programs: the same as the program written out by hand, and right where all is known exactly."""

import copy
from pathlib import Path

import pyro
import pytest
import torch
from known import KnownChain
from pyro import poutine
from pyro.distributions import Categorical, HalfNormal, MixtureSameFamily, Normal
from torch import nn

import ppgen
from ppgen.errors import PpgenError
from ppgen.inference import elbo_decomposition, fit, loglik, mcmc, plot, posterior, report, sample
from ppgen.inference.training.fit import resume
from ppgen.models import PPCA, VAE, Diffusion, EightSchools, Flow
from ppgen.terms import run, terms

N = 6


def within(prior):
    """Outer programs: x | z linear with z = ppgen.sample("z", prior)."""

    class Outer(ppgen.Program):
        def __init__(self):
            super().__init__()
            self.prior = prior
            self.W = nn.Parameter(torch.randn(2, 4))
            self.encoder = nn.Linear(4, 4)

        def model(self, x=None):
            with ppgen.rows(x):
                z = self.z()
                return pyro.sample("x", Normal(z @ self.W, 0.5).to_event(1), obs=x)

        def z(self):
            return ppgen.sample("z", self.prior)

        def guide(self, x):
            with ppgen.rows(x):
                loc, raw = self.encoder(x).chunk(2, -1)
                z = pyro.sample("z", Normal(loc, raw.exp()).to_event(1))
                self.inner_guide(z)

        def inner_guide(self, z):
            pass

    return Outer


class Mixture(ppgen.Program):
    """Three normals."""

    def __init__(self):
        super().__init__()
        self.logits, self.loc = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3, 2))

    def density(self):
        return MixtureSameFamily(Categorical(logits=self.logits), Normal(self.loc, 0.7).to_event(1))

    def model(self, x=None):
        with ppgen.rows(x):
            return pyro.sample("x", self.density(), obs=x)


def flow():
    return Flow(2, transforms=1, hidden=(6,))


def small_vae(features=2):
    return VAE(features, latent=2, hidden=(6,), likelihood="normal")


def chain(steps=8):
    return Diffusion(2, steps=steps, hidden=(6,), loc=[0.0, 0.0], scale=[1.0, 1.0])


def by_hand_density(self):
    return pyro.sample("z", self.prior.density())


def by_hand_ppca(p, name):
    u = pyro.sample(f"{name}/z", Normal(p.zero, 1.0).to_event(1))
    return pyro.sample(name, Normal(u @ p.W.mT + p.mu, p.sigma).to_event(1))


def by_hand_ppca_guide(p, name, value):
    return pyro.sample(f"{name}/z", p._around((value - p.mu) @ p.V.mT))


def by_hand_chain(p, name):
    z = pyro.sample(f"{name}/z_{p.steps}", p.base())
    for i, (s, t) in zip(reversed(range(p.steps)), p.grid(), strict=True):
        z = pyro.sample(f"{name}/z_{i}", p.reverse(z, s, t))
    return pyro.sample(name, p.likelihood(z))


def by_hand_chain_guide(p, name, x):
    z = pyro.sample(f"{name}/z_{p.steps}", p.forward(x, 1.0))
    for i, (s, t) in zip(reversed(range(p.steps)), p.grid(), strict=True):
        z = pyro.sample(f"{name}/z_{i}", p.posterior(z, x, s, t))


class Inside(PPCA):
    """PPCA whose latent has a prior of its own: a program with one within, to be put within a third."""

    def __init__(self, prior):
        super().__init__(2, latent=2)
        self.prior = prior

    def model(self, x=None):
        with ppgen.rows(x):
            z = ppgen.sample("z", self.prior)
            return pyro.sample("x", Normal(z @ self.W.mT + self.mu, self.sigma).to_event(1), obs=x)


class Groups(ppgen.Program):
    """A hierarchical model: effects of groups, from a program."""

    def __init__(self, effects, by_hand=False):
        super().__init__()
        self.effects, self.by_hand = effects, by_hand

    def model(self, g, y=None):
        scale = pyro.sample("scale", HalfNormal(g.new_ones(()).double()))
        with pyro.plate("group", 3):
            theta = (
                pyro.sample("theta", self.effects.density()) if self.by_hand else ppgen.sample("theta", self.effects)
            )
        with ppgen.rows(g):
            return pyro.sample("y", Normal(theta[g].sum(-1), scale), obs=y)


class Observed(ppgen.Program):
    """A decoder that is a program with latents: x is its observed column."""

    def __init__(self, decoder, by_hand=False):
        super().__init__()
        self.decoder, self.by_hand = decoder, by_hand
        self.encoder = nn.Linear(2, 2)

    def model(self, x=None):
        with ppgen.rows(x):
            c = pyro.sample("c", Normal(torch.zeros(()).double(), 1.0))
            if not self.by_hand:
                return ppgen.sample("x", self.decoder, obs=x, context=c[..., None])
            return pyro.sample("x", self.decoder.density(c[..., None]), obs=x)

    def guide(self, x):
        loc, raw = self.encoder(x).unbind(-1)
        with ppgen.rows(x):
            pyro.sample("c", Normal(loc, raw.exp()))


def _written_out(outer, z, inner_guide=lambda self, z: None):
    return type("ByHand", (outer,), {"z": z, "inner_guide": inner_guide})


def pairs():
    """By name: the nested program, the same written out by hand, the data."""
    x = torch.randn(N, 4).double()
    out = {}
    for name, prior, z, guide in (
        ("flow", flow(), by_hand_density, lambda self, z: None),
        ("mixture", Mixture(), by_hand_density, lambda self, z: None),
        (
            "PPCA",
            PPCA(2, latent=1),
            lambda s: by_hand_ppca(s.prior, "z"),
            lambda s, z: by_hand_ppca_guide(s.prior, "z", z),
        ),
        (
            "VAE",
            small_vae(),
            lambda s: pyro.sample("z", s.prior.decode(pyro.sample("z/z", s.prior.prior()))),
            lambda s, z: pyro.sample("z/z", s.prior.encode(z)),
        ),
        ("chain", chain(), lambda s: by_hand_chain(s.prior, "z"), lambda s, z: by_hand_chain_guide(s.prior, "z", z)),
        (
            "PPCA in PPCA in PPCA",
            Inside(PPCA(2, latent=1)),
            lambda s: pyro.sample(
                "z", Normal(by_hand_ppca(s.prior.prior, "z/z") @ s.prior.W.mT + s.prior.mu, s.prior.sigma).to_event(1)
            ),
            lambda s, z: by_hand_ppca_guide(s.prior.prior, "z/z", by_hand_ppca_guide(s.prior, "z", z)),
        ),
        (
            "mixture in PPCA in PPCA",
            Inside(Mixture()),
            lambda s: pyro.sample(
                "z",
                Normal(pyro.sample("z/z", s.prior.prior.density()) @ s.prior.W.mT + s.prior.mu, s.prior.sigma).to_event(
                    1
                ),
            ),
            lambda s, z: by_hand_ppca_guide(s.prior, "z", z),
        ),
        (
            "chain in PPCA in PPCA",
            Inside(chain()),
            lambda s: pyro.sample(
                "z", Normal(by_hand_chain(s.prior.prior, "z/z") @ s.prior.W.mT + s.prior.mu, s.prior.sigma).to_event(1)
            ),
            lambda s, z: by_hand_chain_guide(s.prior.prior, "z/z", by_hand_ppca_guide(s.prior, "z", z)),
        ),
    ):
        outer = within(prior)
        nested = outer()
        hand = _written_out(outer, z, guide)()
        hand.load_state_dict(nested.state_dict())
        out[name] = nested, hand, {"x": x}
    effects = flow()
    out["hierarchical"] = Groups(effects), Groups(effects, by_hand=True), {"g": torch.arange(N) % 3, "y": x[:, 0]}
    decoder = Flow(2, context=1, transforms=1, hidden=(6,))
    nested = Observed(decoder)
    hand = Observed(decoder, by_hand=True)
    hand.load_state_dict(nested.state_dict())
    out["observed flow"] = nested, hand, {"x": x[:, :2]}
    return out


torch.manual_seed(0)
PAIRS = pairs()


def both(name):
    """The nested program, and the one written out by hand, set up alike."""
    for program in copy.deepcopy(PAIRS[name])[:2]:
        program = program.double()
        torch.manual_seed(1)
        program.setup(PAIRS[name][2], None if program.has_guide else "AutoNormal")
        yield program


@pytest.mark.parametrize("name", PAIRS)
def test_a_nested_program_is_the_one_written_out_by_hand(name):
    found = []
    for program in both(name):
        torch.manual_seed(2)
        t = terms(run(program, PAIRS[name][2]), closed_form=True)
        values = {(u.site, u.role): u.log_prob.sum() for u in t}
        loss = sum(u.sign * u.log_prob.sum() for u in t)
        parameters = {k: p for k, p in program.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found.append((values, dict(zip(parameters, gradients, strict=True))))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours.keys() == theirs.keys() and our_gradients.keys() == their_gradients.keys()
    for k in ours:
        assert torch.allclose(ours[k], theirs[k], rtol=1e-9), k
    for k, g in our_gradients.items():
        assert (g is None) == (their_gradients[k] is None), k
        assert g is None or torch.allclose(g, their_gradients[k], rtol=1e-6, atol=1e-9), k


@pytest.mark.parametrize("name", PAIRS)
def test_a_model_run_by_itself_generates_as_the_one_written_out_by_hand(name):
    values = []
    for program in both(name):
        torch.manual_seed(3)
        t = poutine.trace(lambda program=program: program.call("model", PAIRS[name][2])).get_trace()
        values.append({n: s["value"] for n, s in t.nodes.items() if s["type"] == "sample" and n != "data"})
    for n, v in values[1].items():
        assert torch.allclose(values[0][n], v), n


def ppca_in_ppca():
    """x | z, z | u linear and Gaussian: log p(x) is known, and so are both posteriors."""
    torch.manual_seed(3)
    prior = PPCA(2, latent=1).double()
    outer = within(prior)().double()
    cov_z = prior.W @ prior.W.mT + prior.sigma**2 * torch.eye(2)
    cov = outer.W.mT @ cov_z @ outer.W + 0.25 * torch.eye(4)
    exact = torch.distributions.MultivariateNormal((prior.mu @ outer.W).detach(), cov.detach())
    prior.match_guide_()
    return outer, exact


def test_ppca_in_ppca_against_its_exact_log_p():
    program, exact = ppca_in_ppca()
    x = exact.sample((400,))
    for p in (program.W, *program.prior.parameters()):
        p.requires_grad_(False)
    fitted = fit(program, {"x": x}, steps=800, lr=0.02, schedule="cosine", seed=0, precision="64-true")
    found = {b.name: b for b in loglik(fitted, {"x": x}, particles=2000, seed=0).bounds}
    truth = float(exact.log_prob(x).mean())
    assert found["elbo"].mean < truth + 1e-9
    assert abs(found["iw"].mean - truth) < 4e-3
    assert found["elbo"].mean < found["iw"].mean - 0.005  # one particle is weaker; five are so by less than their error


def test_a_long_chain_within_gives_the_elbo_of_the_explicit_one():
    torch.manual_seed(0)
    explicit, drawn = (within(chain(steps))() for steps in (8, 8))
    drawn.load_state_dict(explicit.state_dict())
    x = torch.randn(300, 4)
    for p in (explicit, drawn):
        p.setup({"x": x[:4]})
    full = loglik(explicit, {"x": x}, particles=200, seed=0).bounds[0]
    terms_of = drawn.subsampled_terms({"x": x}, 400)
    elbo = sum(t.sign * t.log_prob.reshape(400, -1).double() for t in terms_of).mean(1)
    se = float(elbo.std() / 20 + full.se.mean() / 300**0.5)
    assert abs(float(elbo.mean()) - full.mean) < 4 * se + 0.002 * abs(full.mean)
    assert {t.site for t in terms_of} == {"z/z_1", "z/z", "z", "x"}


def test_a_long_chain_within_has_an_elbo_and_no_importance_weighted_bound(caplog):
    run_ = fit(within(chain(20))(), {"x": torch.randn(40, 4)}, steps=3, seed=0)
    assert run_.config["fit"]["objective"] == "subsampled"
    with caplog.at_level("WARNING"):
        assert [b.name for b in loglik(run_, {"x": torch.randn(5, 4)}, particles=4).bounds] == ["elbo"]
    assert "drawn at random" in caplog.text
    assert sample(run_, 2, seed=0)["z"].shape == (2, 2)
    assert list(posterior(run_, {"x": torch.randn(5, 4)}, draws=4)["posterior"]) == ["z"]
    with pytest.raises(PpgenError, match="no log joint that can be climbed or sampled"):
        mcmc(run_.program, {"x": torch.randn(5, 4)}, draws=4)
    with pytest.raises(PpgenError, match="objective='iwae' would be no bound"):
        fit(run_.program, {"x": torch.randn(5, 4)}, steps=1, objective="iwae", particles=4)


def test_an_observed_long_chain_gives_a_lower_bound_and_no_estimate_of_log_p():
    inner = chain(20)

    def model(x):
        with ppgen.rows(x):
            ppgen.sample("x", inner, obs=x)

    bound = loglik(ppgen.Program.from_pair(model), {"x": torch.randn(3, 2)}, particles=4).best
    assert (bound.name, bound.kind) == ("elbo", "lower")


def test_a_program_of_a_run_folder_is_a_part_of_another(tmp_path):
    x = torch.randn(200, 2)
    fit(Flow(2, transforms=1, hidden=(4,)), {"x": x}, steps=20, seed=0, out=tmp_path / "flow")
    prior = ppgen.load_program(tmp_path / "flow")
    before = float(loglik(prior, {"x": x}).best.mean)

    def model(x):
        with ppgen.rows(x):
            ppgen.sample("x", prior, obs=x, freeze=True)

    found = loglik(ppgen.Program.from_pair(model).setup({"x": x}), {"x": x}).best
    assert found.kind == "exact" and found.mean == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(
    "how", [{"engine": "trace"}, {"particles": 4}, {"batch_size": 16}, {"objective": "iwae", "particles": 3}]
)
def test_a_nested_program_is_fitted_by_every_engine_and_bound(how):
    x = torch.randn(48, 4)
    torch.manual_seed(0)
    program = within(small_vae())()
    found = fit(program, {"x": x}, steps=40, lr=1e-2, seed=0, **how)
    assert found.rows[-1]["elbo"] > found.rows[0]["elbo"]
    assert any(not torch.equal(p, q) for p, q in zip(program.prior.parameters(), small_vae().parameters(), strict=True))


def test_a_fit_of_a_nested_program_resumes_to_the_bit(tmp_path):
    x = torch.randn(48, 4)
    torch.manual_seed(0)
    first = within(small_vae())()
    again, whole = copy.deepcopy(first), copy.deepcopy(first)
    fit(first, {"x": x}, steps=10, seed=0, out=tmp_path / "a", checkpoint_every=5)
    resumed = resume(tmp_path / "a", {"x": x}, program=again, steps=20)
    unbroken = fit(whole, {"x": x}, steps=20, seed=0)
    for (k, p), q in zip(resumed.program.named_parameters(), unbroken.program.parameters(), strict=True):
        assert torch.equal(p, q), k


@pytest.mark.parametrize("how", ["mask", "impute"])
def test_a_program_that_was_fitted_to_missing_cells_is_a_prior_and_a_likelihood(how):
    """Of "impute" it was said that it had no site of its column's name; log p(x) is exact for it."""
    torch.manual_seed(0)
    x = torch.randn(30)
    x[2] = torch.nan
    inner = OneLevel()
    inner.missing = how
    part = fit(inner, {"x": x}, steps=3, guide="AutoNormal", precision="64-true", seed=0).program
    assert part.gaps

    class Outer(ppgen.Program):
        missing = how

        def __init__(self):
            super().__init__()
            self.part = part

        def model(self, y, w):
            with ppgen.rows(y):
                ppgen.sample("y", self.part, obs=y)
                pyro.sample("w", Normal(ppgen.sample("z", self.part), 0.3), obs=w)

    data = {"y": torch.randn(4).double(), "w": torch.randn(4).double()}
    data["y"][1] = torch.nan
    outer = fit(Outer(), data, steps=3, precision="64-true", seed=0).program
    assert outer.gaps == {"y": 1}
    z, u, v, gap = torch.randn(4, 4).double()
    y = torch.where(data["y"].isnan(), gap, data["y"])
    held = {"z": z, "z/u": u, "y/u": v, "y/y_unobserved": gap}
    ours = sum(t.log_prob.sum() for t in terms(run(outer, data, latents=held)))
    of_y = Normal(part.a * v, 0.5).log_prob(y)
    if how == "mask":
        of_y = of_y[~data["y"].isnan()]
    else:  # where a value was seen, nothing depends on the latent in its place, which has its prior
        ours = ours - (Normal(part.a * v, 0.5).log_prob(gap) * ~data["y"].isnan()).sum()
    by_hand = of_y.sum() + Normal(0.0, 1.0).log_prob(torch.cat([u, v])).sum()
    by_hand = by_hand + (Normal(part.a * u, 0.5).log_prob(z) + Normal(z, 0.3).log_prob(data["w"])).sum()
    assert torch.allclose(ours, by_hand, rtol=1e-10)


class SharedMean(ppgen.Program):
    """x ~ N(m, 1), m ~ N(0, 5) for all rows."""

    def model(self, x=None):
        m = pyro.sample("m", Normal(0.0, 5.0))
        with ppgen.rows(x):
            return pyro.sample("x", Normal(m, 1.0), obs=x)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_a_fit_learned_of_latents_that_rows_share_is_said_to_be_left_behind(freeze, caplog):
    """The prior of a fitted Bayesian program stood in for its posterior without a word; of its guide it was said that
    it gets no gradient."""
    torch.manual_seed(0)
    x = torch.randn(20) + 3
    shared, local = (fit(p(), {"x": x}, steps=3, guide="AutoNormal", seed=0).program for p in (SharedMean, OneLevel))

    def outer(part):
        def model(w):
            with ppgen.rows(w):
                pyro.sample("w", Normal(ppgen.sample("z", part, freeze=freeze), 0.3), obs=w)

        return ppgen.Program.from_pair(model)

    for part, said in ((shared, 1), (local, 0), (SharedMean(), 0)):
        caplog.clear()
        fit(outer(part), {"w": x[:5]}, steps=3, seed=0)
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warned) == said and all("'m' has its prior" in m for m in warned), warned


class OneLevel(ppgen.Program):
    """x ~ N(a u, 0.5), u ~ N(0, 1)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7))

    def model(self, x=None):
        with ppgen.rows(x):
            u = pyro.sample("u", Normal(0.0 * self.a, 1.0))
            return pyro.sample("x", Normal(self.a * u, 0.5), obs=x)


def test_a_frozen_program_stays_as_it_is():
    inner = flow()
    before = copy.deepcopy(inner.state_dict())

    def model(x):
        with ppgen.rows(x):
            z = ppgen.sample("z", inner, freeze=True)
            pyro.sample(
                "x",
                Normal(
                    z, pyro.param("s", torch.tensor(1.0), constraint=pyro.distributions.constraints.positive)
                ).to_event(1),
                obs=x,
            )

    found = fit(ppgen.Program.from_pair(model, "AutoNormal"), {"x": torch.randn(10, 2)}, steps=10, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in inner.state_dict().items())
    assert "s" in found.params


class Noisy(ppgen.Program):
    """x | c ~ N(net(c), 1), with batch norm and dropout in the net."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))

    def model(self, c, x=None):
        with ppgen.rows(c):
            return pyro.sample("x", Normal(self.net(c), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("engine", ["eager", "trace"])
@pytest.mark.parametrize("is_module", [True, False])
def test_a_frozen_program_is_in_eval_mode(is_module, engine):
    """A fitted network with batch norm and dropout was a likelihood in training mode: the posterior of a location was
    0.35 for 0.62, and the averages of a program that is held moved."""
    torch.manual_seed(0)
    inner, x, c = Noisy(), torch.randn(20, 1), torch.randn(20, 1)
    inner.net(3 + 2 * torch.randn(50, 1))  # moves the averages
    before = copy.deepcopy(inner.state_dict())
    with torch.no_grad():
        by_hand = float(Normal(copy.deepcopy(inner).eval().net(c), 1.0).log_prob(x).sum())

    def model(c, x=None):
        w = pyro.param("w", torch.zeros(()))
        with ppgen.rows(c):
            ppgen.sample("x", inner, obs=x, c=c + 0.0 * w, freeze=True)

    program = ppgen.Program.from_pair(model)
    if is_module:
        program.add_module("inner", inner)
    data = {"c": c, "x": x}
    found = fit(program, data, valid=data, steps=6, log_every=2, engine=engine, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in inner.state_dict().items())
    for row in found.rows:
        assert row["elbo"] == pytest.approx(by_hand, rel=1e-5) and row["valid_elbo"] == pytest.approx(by_hand, rel=1e-5)


class Located(ppgen.Program):
    """x ~ N(m, 1)."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))

    def model(self, x=None):
        with ppgen.rows(x):
            return pyro.sample("x", Normal(self.m, 1.0), obs=x)


def test_one_program_frozen_at_one_of_two_places_is_held_and_that_is_said(caplog):
    inner = Located()

    def model(x, y):
        b = pyro.param("b", torch.zeros(()))
        with ppgen.rows(x):
            ppgen.sample("x", inner, obs=x - b, freeze=True)
            ppgen.sample("y", inner, obs=y)

    fit(ppgen.Program.from_pair(model), {"x": torch.ones(5), "y": torch.ones(5)}, steps=3, lr=0.1, seed=0)
    assert float(inner.m) == 0
    assert [r.getMessage() for r in caplog.records if "held in both" in r.getMessage()] and len(caplog.records) == 1


def test_a_program_that_was_frozen_elsewhere_is_trained_where_it_is_not():
    """It stayed as it was wherever it was used from then on."""
    inner, x = Located(), torch.tensor([1.0, 2.0, 6.0])
    user_held = Located()
    user_held.m.requires_grad_(False)

    def outer(freeze):
        def model(x):
            b = pyro.param("b", torch.zeros(()))
            with ppgen.rows(x):
                ppgen.sample("x", inner, obs=x, freeze=freeze)
                ppgen.sample("y", user_held, obs=x - b, freeze=freeze)

        return ppgen.Program.from_pair(model)

    how = {"steps": 200, "lr": 0.1, "schedule": "cosine", "engine": "trace", "seed": 0}
    fit(outer(True), {"x": x}, **how)
    assert float(inner.m) == 0
    fit(outer(False), {"x": x}, **how)
    assert float(inner.m) == pytest.approx(3.0, abs=1e-2) and float(user_held.m) == 0


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_program_of_another_precision_has_that_of_the_fit(precision):
    inner = Located().to(torch.float32 if precision == "64-true" else torch.float64)

    def model(x):
        with ppgen.rows(x):
            pyro.sample("x", Normal(ppgen.sample("z", inner), 1.0), obs=x)

    fit(ppgen.Program.from_pair(model), {"x": torch.ones(5)}, steps=2, precision=precision, seed=0)
    assert inner.m.dtype == (torch.float64 if precision == "64-true" else torch.float32)


class ByWord(ppgen.Program):
    """x | g ~ N(m_g, 0.1)."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(3))

    def model(self, g, x=None):
        with ppgen.rows(g):
            return pyro.sample("x", Normal(self.m[g], 0.1), obs=x)


@pytest.mark.parametrize("words", [["dog", "eel"], ["dog", "fox"], ["cat", "dog"]])
def test_words_have_the_codes_that_the_program_within_was_fitted_to(words):
    """Of 'dog' and 'eel' the codes are 0 and 1, and those were 'cat' and 'dog' to it: figures were of other groups."""
    inner = ByWord()
    fit(inner, {"g": ["cat", "dog", "eel"], "x": [0.0, 5.0, 9.0]}, steps=0)
    with torch.no_grad():
        inner.m.copy_(torch.tensor([0.0, 5.0, 9.0]))
    own = {"cat": 0.0, "dog": 5.0, "eel": 9.0, "fox": 0.0}
    data = {"g": words * 2, "y": [own[w] for w in words] * 2}

    def outer(codes):
        def model(g, y):
            with ppgen.rows(g):
                ppgen.sample("y", inner, obs=y, g=codes(g), freeze=True)

        return ppgen.Program.from_pair(model)

    exact = float(Normal(0.0, 0.1).log_prob(torch.zeros(())))
    if words == ["cat", "dog"]:
        assert loglik(fit(outer(lambda g: g), data, steps=0), data).best.mean == pytest.approx(exact, abs=1e-4)
        return
    said = "pass these" if "eel" in words else "which has no 'fox'"
    with pytest.raises(PpgenError, match=f"the codes of {words[0]}, {words[1]}, and .* cat, dog, eel, .*{said}"):
        fit(outer(lambda g: g), data, steps=0)
    if "eel" in words:
        found = fit(outer(lambda g: torch.tensor([1, 2])[g]), data, steps=0)
        assert loglik(found, data).best.mean == pytest.approx(exact, abs=1e-4)


def test_a_guide_of_ours_or_pyros_infers_the_value_of_a_long_chain():
    """The value of a chain of drawn terms is a `Delta`, which was taken for a point mass where the guide is made by
    name: z was drawn from the prior at each step, and nothing learned where the data say that it is."""
    inner = Diffusion(2, steps=30, hidden=(6,), loc=[0.0, 0.0], scale=[1.0, 1.0])
    x = torch.tensor([[3.0, -3.0], [2.0, 1.0]])

    def model(x):
        with ppgen.rows(x):
            z = ppgen.sample("z", inner, freeze=True)
            pyro.sample("x", Normal(z, 0.01).to_event(1), obs=x)

    for guide in ("AutoNormal", "flow(transforms=1)"):
        found = fit(ppgen.Program.from_pair(model), {"x": x}, guide=guide, steps=200, lr=0.1, schedule="cosine", seed=0)
        assert found.structure.locals == ("z",)
        z = posterior(found, {"x": x}, draws=100, predictive=False, prior=False)["posterior"]["z"]
        assert abs(z.values.mean((0, 1)) - x.numpy()).max() < 0.05, guide  # the likelihood has a deviation of 0.01


def test_what_a_long_chain_observes_outside_of_plates_is_observed():
    inner = Diffusion(2, steps=30, hidden=(6,), loc=[0.0, 0.0], scale=[1.0, 1.0])

    def model(x):
        b = pyro.sample("b", Normal(0.0, 1.0))
        return ppgen.sample("x", inner, obs=x[0] - b, freeze=True)

    found = fit(ppgen.Program.from_pair(model), {"x": torch.ones(1, 2)}, steps=3, seed=0)
    assert "x" in found.structure.names("observed") and found.structure.globals == ("b",)


def test_chains_sample_the_latents_of_a_program_within():
    """Eight schools whose scores come from a program: as the program by itself."""
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    inner = EightSchools()

    def model(sigma, y=None):
        return ppgen.sample("y", inner, obs=y, sigma=sigma)

    how = {"chains": 16, "draws": 250, "engine": "trace", "predictive": False, "prior": False}
    tree = mcmc(ppgen.Program.from_pair(model), {"sigma": sigma, "y": y}, **how)
    own = mcmc(EightSchools(), {"sigma": sigma, "y": y}, **how)
    a, b = tree["posterior"]["y.mu"].values, own["posterior"]["mu"].values
    assert abs(a.mean() - b.mean()) < 0.2 and abs(a.std() - b.std()) < 0.2


def test_posterior_and_draws_have_the_sites_under_the_name():
    program = within(PPCA(2, latent=1))()
    found = fit(program, {"x": torch.randn(30, 4)}, steps=5, seed=0)
    tree = posterior(found, {"x": torch.randn(3, 4)}, draws=7)
    assert tree["posterior"]["z.z"].shape == (1, 7, 3, 1)
    drawn = sample(found, 5, seed=0)
    assert set(drawn) == {"z/z", "z", "x"} and drawn["z"].shape == (5, 2)


def test_constrained_parameters_within_are_named_and_trained():
    def normal(x=None):
        with ppgen.rows(x):
            s = pyro.param("s", torch.tensor(2.0), constraint=pyro.distributions.constraints.positive)
            return pyro.sample("x", Normal(0.0, s), obs=x)

    inner = ppgen.Program.from_pair(normal)

    def model(x):
        with ppgen.rows(x):
            ppgen.sample("x", inner, obs=x)

    x = 0.5 * torch.randn(500)
    found = fit(ppgen.Program.from_pair(model), {"x": x}, steps=500, lr=0.05, seed=0)
    assert float(found.params["x/s"]) == pytest.approx(float(x.square().mean().sqrt()), rel=1e-2)
    assert list(found.params) == ["x/s"]


def test_what_is_summed_out_is_no_column_of_an_inner_guide():
    inner = VAE(2, latent=1, hidden=(4,), likelihood="normal", classes=2)

    def model(x):
        with ppgen.rows(x):
            k = pyro.sample("k", pyro.distributions.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            ppgen.sample("x", inner, obs=x, y=k)

    with pytest.raises(PpgenError, match="may read the column 'y'.*latent 'k'"):
        fit(ppgen.Program.from_pair(model), {"x": torch.randn(6, 2)}, steps=1)


def test_the_pictures_of_a_run_name_the_sites_within(tmp_path):
    program = within(PPCA(2, latent=1))()
    data = {"x": torch.randn(30, 4)}
    names = {p.stem for p in map(Path, plot(fit(program, data, steps=5, seed=0), data, out=tmp_path))}
    assert {"elbo", "latent"} <= names


class KnownPrior(ppgen.Program):
    """x | z ~ N(z, 0.1² I), z from a chain whose denoiser is exact; the guide has the data's own distribution of z."""

    def __init__(self):
        super().__init__()
        self.chain = KnownChain()
        self.nothing = nn.Parameter(torch.zeros(()).double())

    def model(self, x=None):
        with ppgen.rows(x):
            z = ppgen.sample("z", self.chain)
            return pyro.sample("x", Normal(z, 0.1).to_event(1), obs=x)

    def guide(self, x):
        with ppgen.rows(x):
            data = self.chain.data
            pyro.sample("z", data.expand(x.shape[:1]))


class Deeper(ppgen.Program):
    """The same a level down: y is a noisy x."""

    def __init__(self):
        super().__init__()
        self.inner = KnownPrior()

    def model(self, y=None):
        with ppgen.rows(y):
            x = ppgen.sample("x", self.inner)
            return pyro.sample("y", Normal(x, 0.1).to_event(1), obs=y)

    def guide(self, y):
        with ppgen.rows(y):
            pyro.sample("x", Normal(y, 0.1).to_event(1))


@pytest.mark.parametrize(
    ("outer", "column", "site"), [(KnownPrior, "x", "z"), pytest.param(Deeper, "y", "x/z", marks=pytest.mark.slow)]
)
def test_the_ledger_of_a_chain_within_is_under_its_scope(outer, column, site):
    """The terms of the bound at draws of p(z): those of the chain alone, in closed form."""
    torch.manual_seed(0)
    program = outer().double()
    data = {column: torch.randn(20_000, 2).double()}
    program.setup({column: data[column][:4]}, None)
    prior, steps, reconstruction = (-float(v.sum()) for v in KnownChain().expected_terms().values())
    found = elbo_decomposition(program, data, within=site, seed=0)
    for value, se, truth in (
        (found.prior, found.prior_se, prior),
        (found.kl.sum(), float((found.kl_se**2).sum()) ** 0.5, steps),
        (found.reconstruction, found.reconstruction_se, reconstruction),
    ):
        assert abs(value - truth) < 4.5 * se + 1e-3 * abs(truth)
    assert found.elbo_se < 0.02 * abs(found.elbo)
    with pytest.raises(PpgenError, match=f"no chain 'u'; they are {site}"):
        elbo_decomposition(program, data, within="u")
    with pytest.raises(PpgenError, match="is no chain of latents.*within="):
        elbo_decomposition(program, data)


def test_a_long_chain_within_has_pictures_and_a_report(tmp_path):
    """Both were refused, as diagnose is where there are no weights."""
    data = {"x": torch.randn(30, 4)}
    run_ = fit(within(chain(20))(), data, steps=3, seed=0, out=tmp_path / "r")
    assert {"elbo", "latent", "ledger_z"} <= {p.stem for p in map(Path, plot(run_, data))}
    assert "close to the posterior cannot be told" in report(run_, data).read_text()


class Two(ppgen.Program):
    """Observes twice its column."""

    def model(self, x=None):
        with ppgen.rows(x):
            return pyro.sample("x", Normal(torch.zeros(2), 1.0).to_event(1), obs=None if x is None else 2 * x)


class OwnPlate(ppgen.Program):
    def model(self, x=None):
        with pyro.plate("own", 6):
            return pyro.sample("x", Normal(torch.zeros(2), 1.0).to_event(1), obs=x)


REFUSED = {
    "another thing than its column": (lambda: Two(), {}, "observes another thing than its column 'x'"),
    "a plate of its own": (lambda: OwnPlate(), {}, "opens one of its own.*rows="),
    "no such column": (flow, {"contxt": torch.zeros(6)}, "has no column 'contxt'.*'context'"),
    "no column left": (lambda: PPCA(2), {"x": torch.zeros(6, 2)}, "none is left for the value"),
    "no such value": (flow, {"column": "y"}, "has no column 'y'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_within_is_refused_in_a_sentence(name):
    make, how, sentence = REFUSED[name]
    inner = make()

    def model(x):
        with ppgen.rows(x):
            z = ppgen.sample("z", inner, **how)
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(PpgenError, match=sentence):
        fit(ppgen.Program.from_pair(model), {"x": torch.randn(6, 2)}, steps=1)


def test_rows_without_a_plate_are_refused():
    with pytest.raises(PpgenError, match="pass rows="):
        inner = PPCA(2)
        fit(ppgen.Program.from_pair(lambda x: ppgen.sample("x", inner, obs=x)), {"x": torch.randn(6, 2)}, steps=1)


def test_a_program_with_latents_is_refused_in_a_guide():
    inner = PPCA(2)

    def model(x):
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with ppgen.rows(x):
            ppgen.sample("z", inner)

    with pytest.raises(PpgenError, match="in a guide.*latent 'z/z'"):
        fit(ppgen.Program.from_pair(model, guide), {"x": torch.randn(6, 2)}, steps=1)


@pytest.mark.slow
def test_a_flow_is_a_posterior():
    """q(z | x) as a program: a flow given what the encoder says, against the exact log p(x)."""
    inner, encoder = Flow(1, context=2, transforms=2, hidden=(16,)), nn.Linear(2, 2)

    def model(x):
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", Normal(z.expand(z.shape[:-1] + (2,)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with ppgen.rows(x):
            ppgen.sample("z", inner, context=encoder(x))

    torch.manual_seed(0)
    x = torch.randn(100, 2) + torch.randn(100, 1)
    found = loglik(
        fit(ppgen.Program.from_pair(model, guide), {"x": x}, steps=600, lr=5e-3, seed=0), {"x": x}, particles=500
    )
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1).log_prob(x).mean()
    elbo = found.bounds[0]
    assert elbo.mean < exact + 0.01 and elbo.mean > exact - 0.05


def test_a_table_of_rows_has_a_plate_of_its_own():
    inner = PPCA(2, latent=1)

    def model(x):
        return ppgen.sample("x", inner, obs=x, rows=len(x))

    program = ppgen.Program.from_pair(model)
    x = torch.randn(9, 2)
    t = run(program.setup({"x": x}), {"x": x})
    assert terms(t)[0].dims == ("x/data",) and terms(t)[0].log_prob.shape == (9,)
    own = terms(run(inner, {"x": x}, latents={"z": t.p.nodes["x/z"]["value"]}))
    assert torch.allclose(own[0].log_prob, terms(t)[0].log_prob)


class Amortised(OneLevel):
    """With the exact posterior as guide."""

    def guide(self, x):
        v = self.a**2 + 0.25
        with ppgen.rows(x):
            pyro.sample("u", Normal(self.a * x / v, (0.25 / v) ** 0.5))


def test_a_table_within_a_plate_has_its_own_guide_beside_one_made_by_name():
    """The plate of the table was taken for a latent that the outer guide draws, and the inner guide did not run: "the
    guide has no site 'z/u'"."""
    inner, y = Amortised(), torch.tensor([0.5, 1.0])

    def model(y):
        with pyro.plate("g", 2):
            z = ppgen.sample("z", inner, rows=3, freeze=True)
        with ppgen.rows(y):
            pyro.sample("y", Normal(z.sum(), 0.6), obs=y)

    how = {"steps": 600, "lr": 0.05, "schedule": "cosine", "particles": 4, "engine": "trace", "seed": 0}
    found = fit(ppgen.Program.from_pair(model), {"y": y}, guide="AutoMultivariateNormal", **how)
    covariance = 0.36 * torch.eye(2) + 6 * (0.7**2 + 0.25)
    exact = float(torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(y))
    bound = loglik(found, {"y": y}, particles=2000, seed=0).best
    assert float(bound.values.sum()) == pytest.approx(exact, abs=0.05)


def test_what_is_no_program_is_refused():
    def outer(x):
        m = ppgen.sample("m", 3.0)
        with ppgen.rows(x):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    with pytest.raises(PpgenError, match="got float, which is no program; pass a ppgen.Program or a Pyro model"):
        mcmc(outer, {"x": torch.zeros(3)})


def test_a_program_outside_of_plates_has_one_row():
    """z_t | z_{t-1} of a program in a loop: log p(x) of the joint normal."""

    class Step(ppgen.Program):
        def model(self, before, z=None):
            with ppgen.rows(z, before):
                return pyro.sample("z", Normal(0.8 * before, 0.5), obs=z)

    step = Step()

    def model(x):
        z = torch.zeros(())
        for t in pyro.markov(range(2)):
            z = ppgen.sample(f"z{t}", step, before=z)
            pyro.sample(f"x{t}", Normal(z, 1.0), obs=x[t])

    x = torch.tensor([1.0, -1.0])
    program = ppgen.Program.from_pair(model)
    p = poutine.trace(poutine.condition(lambda: program.call("model", {"x": x}), {"z0": x[0], "z1": x[1]})).get_trace()
    steps = Normal(0.0, 0.5).log_prob(x[0]) + Normal(0.8, 0.5).log_prob(x[1])
    expected = steps + 2 * Normal(0.0, 1.0).log_prob(torch.zeros(()))
    assert float(p.log_prob_sum()) == pytest.approx(float(expected), abs=1e-6)
