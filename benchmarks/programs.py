"""What `benchmarks/engine.py` times: each in Pyro and in PyTorch by hand, the classical ones in NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ppgen
from ppgen.program import Program

Loss = Callable[[], Tensor]


class Entry(NamedTuple):
    """One program.

    program: makes it; data: its batch; objective: its name; guide: an autoguide, or None for its own; hide: latents
    that are summed out; by_hand: (parameters, loss) in plain PyTorch, the same estimator; numpyro: (model, data).
    """

    program: Callable[[], Program]
    data: dict[str, Tensor]
    objective: str
    guide: str | None
    hide: tuple[str, ...]
    by_hand: Callable[[], tuple[list[Tensor], Loss]] | None
    numpyro: Callable[[], tuple[Callable, dict[str, Any]]] | None


def _normal(x: Tensor, loc: Any, scale: Tensor) -> Tensor:
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.9189385332046727


def _auto_normal(*shapes: tuple[int, ...]) -> tuple[list[Tensor], Callable[[], tuple[list[Tensor], Tensor]]]:
    """A mean-field guide by hand: draws on the real line, and log q."""
    locs = [(0.1 * torch.randn(s)).requires_grad_() for s in shapes]
    scales = [torch.full(s, -2.2).requires_grad_() for s in shapes]

    def draw() -> tuple[list[Tensor], Tensor]:
        z, log_q = [], torch.zeros(())
        for loc, free in zip(locs, scales, strict=True):
            scale, eps = F.softplus(free), torch.randn(loc.shape)
            z.append(loc + scale * eps)
            log_q = log_q + (-0.5 * eps**2 - scale.log() - 0.9189385332046727).sum()
        return z, log_q

    return locs + scales, draw


def _twin(name: str, *arguments: Any) -> Callable[[], tuple[Callable, dict[str, Any]]]:
    """NumPyro's program of that name, imported when it is its turn."""
    return lambda: getattr(import_module("programs_numpyro"), name)(*arguments)


def eight_schools() -> Entry:
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

    def model(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def by_hand():
        parameters, draw = _auto_normal((), (), (8,))

        def loss():
            (mu, u, theta), log_q = draw()
            tau = u.exp()
            log_p = _normal(mu, 0.0, torch.tensor(5.0)) - torch.log1p((tau / 5) ** 2) - 2.0607 + u
            return log_q - log_p - _normal(theta, mu, tau).sum() - _normal(y, theta, sigma).sum()

        return parameters, loss

    def numpyro():
        import numpyro
        import numpyro.distributions as d

        def other(sigma, y):
            mu = numpyro.sample("mu", d.Normal(0.0, 5.0))
            tau = numpyro.sample("tau", d.HalfCauchy(5.0))
            with numpyro.plate("schools", 8):
                theta = numpyro.sample("theta", d.Normal(mu, tau))
                numpyro.sample("y", d.Normal(theta, sigma), obs=y)

        return other, {"sigma": sigma.numpy(), "y": y.numpy()}

    return Entry(
        lambda: Program.from_pair(model), {"sigma": sigma, "y": y}, "sampled", "AutoNormal", (), by_hand, numpyro
    )


def logistic_regression(rows: int = 1000, features: int = 20) -> Entry:
    torch.manual_seed(0)
    x = torch.randn(rows, features)
    y = torch.bernoulli(torch.sigmoid(x @ torch.randn(features)))

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(features), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    def by_hand():
        parameters, draw = _auto_normal((features,))

        def loss():
            (w,), log_q = draw()
            return (
                log_q
                - _normal(w, 0.0, torch.ones(())).sum()
                + F.binary_cross_entropy_with_logits(x @ w, y, reduction="sum")
            )

        return parameters, loss

    def numpyro():
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as d

        def other(x, y):
            w = numpyro.sample("w", d.Normal(jnp.zeros(features), 1.0).to_event(1))
            with numpyro.plate("data", rows):
                numpyro.sample("y", d.Bernoulli(logits=x @ w), obs=y)

        return other, {"x": x.numpy(), "y": y.numpy()}

    return Entry(lambda: Program.from_pair(model), {"x": x, "y": y}, "sampled", "AutoNormal", (), by_hand, numpyro)


def radon() -> Entry:
    torch.manual_seed(0)
    group, x = torch.randint(85, (919,)), torch.randint(2, (919,)).float()
    y = 1.5 - 0.7 * x + 0.3 * torch.randn(85)[group] + 0.7 * torch.randn(919)

    def model(x, group, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("groups", 85):
            a = pyro.sample("a", dist.Normal(mu, tau))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a[group] + b * x, s), obs=y)

    def by_hand():
        parameters, draw = _auto_normal((), (), (85,), (), ())

        def loss():
            (mu, u, a, b, v), log_q = draw()
            tau, s, ten = u.exp(), v.exp(), torch.tensor(10.0)
            log_p = (
                _normal(mu, 0.0, ten) + _normal(b, 0.0, ten) + u + v - 0.9032 - torch.log1p(tau**2) - torch.log1p(s**2)
            )
            return log_q - log_p - _normal(a, mu, tau).sum() - _normal(y, a[group] + b * x, s).sum()

        return parameters, loss

    def numpyro():
        import numpyro
        import numpyro.distributions as d

        def other(x, group, y):
            mu = numpyro.sample("mu", d.Normal(0.0, 10.0))
            tau = numpyro.sample("tau", d.HalfCauchy(1.0))
            with numpyro.plate("groups", 85):
                a = numpyro.sample("a", d.Normal(mu, tau))
            b = numpyro.sample("b", d.Normal(0.0, 10.0))
            s = numpyro.sample("s", d.HalfCauchy(1.0))
            with numpyro.plate("data", 919):
                numpyro.sample("y", d.Normal(a[group] + b * x, s), obs=y)

        return other, {"x": x.numpy(), "group": group.numpy(), "y": y.numpy()}

    data = {"x": x, "group": group, "y": y}
    return Entry(lambda: Program.from_pair(model), data, "sampled", "AutoNormal", (), by_hand, numpyro)


def gaussian_mixture(enumerated: bool = True) -> Entry:
    """Its components summed out by Pyro, or by the distribution itself (as in NumPyro): the same loss."""
    torch.manual_seed(0)
    x = torch.randn(200) + 3 * torch.randint(3, (200,))

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            if enumerated:
                k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)
            else:
                pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)), obs=x)

    def by_hand():
        parameters, draw = _auto_normal((2,), (3,))
        sticks = torch.distributions.StickBreakingTransform()

        def loss():
            (u, loc), log_q = draw()
            weights = sticks(u)
            log_p = sticks.log_abs_det_jacobian(u, weights) + 0.6931 + _normal(loc, 0.0, torch.tensor(5.0)).sum()
            log_x = (weights.log() + _normal(x[:, None], loc, torch.ones(()))).logsumexp(-1)
            return log_q - log_p - log_x.sum()

        return parameters, loss

    def numpyro():
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as d

        def other(x):
            weights = numpyro.sample("weights", d.Dirichlet(jnp.ones(3)))
            with numpyro.plate("components", 3):
                loc = numpyro.sample("loc", d.Normal(0.0, 5.0))
            with numpyro.plate("data", 200):
                numpyro.sample("x", d.MixtureSameFamily(d.Categorical(weights), d.Normal(loc, 1.0)), obs=x)

        return other, {"x": x.numpy()}

    objective, hidden = ("enumerate", ("k",)) if enumerated else ("sampled", ())
    return Entry(lambda: Program.from_pair(model), {"x": x}, objective, "AutoNormal", hidden, by_hand, numpyro)


def hidden_markov_model(enumerated: bool = True) -> Entry:
    """Its states summed out by Pyro, or by the distribution itself: the same loss."""
    torch.manual_seed(0)
    length, states = 12, 3
    x = torch.randn(length) + torch.randint(3, (length,))

    def model(x):
        step = pyro.sample("step", dist.Dirichlet(torch.ones(states, states)).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
        if not enumerated:
            begin = torch.tensor([0.0, -torch.inf, -torch.inf])
            emission = dist.Normal(loc, 1.0)
            pyro.sample("x", dist.DiscreteHMM(begin, step.log(), emission, duration=length), obs=x)
            return
        z = 0
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])

    def by_hand():
        parameters, draw = _auto_normal((states, states - 1), (states,))
        sticks = torch.distributions.StickBreakingTransform()

        def loss():
            (u, loc), log_q = draw()
            step = sticks(u)
            log_p = sticks.log_abs_det_jacobian(u, step).sum() + 3 * 0.6931
            log_p = log_p + _normal(loc, torch.arange(3.0), torch.ones(())).sum()
            emission, log_step = _normal(x[:, None], loc, torch.ones(())), step.log()
            alpha = log_step[0] + emission[0]
            for t in range(1, length):
                alpha = (alpha[:, None] + log_step).logsumexp(0) + emission[t]
            return log_q - log_p - alpha.logsumexp(0)

        return parameters, loss

    hide = tuple(f"z_{t}" for t in range(length))
    return Entry(
        lambda: Program.from_pair(model),
        {"x": x},
        "enumerate",
        "AutoNormal",
        hide,
        by_hand,
        _twin("hidden_markov_model", x, states),
    )


def probabilistic_pca() -> Entry:
    torch.manual_seed(0)
    x = torch.randn(256, 10) @ torch.randn(10, 10)

    class PPCA(Program):
        def __init__(self):
            super().__init__()
            self.w, self.log_noise = nn.Parameter(torch.randn(3, 10)), nn.Parameter(torch.zeros(()))
            self.encoder, self.log_scale = nn.Linear(10, 3), nn.Parameter(torch.zeros(3))

        def model(self, x=None):
            with ppgen.rows(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.w, self.log_noise.exp()).to_event(1), obs=x)

        def guide(self, x):
            with ppgen.rows(x):
                pyro.sample("z", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))

    def by_hand():
        p = PPCA()

        def loss():
            mean, log_scale = p.encoder(x), p.log_scale
            z = mean + log_scale.exp() * torch.randn(mean.shape)
            kl = 0.5 * (mean**2 + (2 * log_scale).exp() - 1).sum() - len(x) * log_scale.sum()
            return kl - _normal(x, z @ p.w, p.log_noise.exp()).sum()

        return list(p.parameters()), loss

    def numpyro():
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as d

        def other(x):
            w, noise = numpyro.param("w", jnp.ones((3, 10)) * 0.1), numpyro.param("log_noise", 0.0)
            with numpyro.plate("data", 256):
                z = numpyro.sample("z", d.Normal(jnp.zeros(3), 1.0).to_event(1))
                numpyro.sample("x", d.Normal(z @ w, jnp.exp(noise)).to_event(1), obs=x)

        def guide(x):
            weight, bias = numpyro.param("weight", jnp.ones((10, 3)) * 0.1), numpyro.param("bias", jnp.zeros(3))
            scale = numpyro.param("log_scale", jnp.zeros(3))
            with numpyro.plate("data", 256):
                numpyro.sample("z", d.Normal(x @ weight + bias, jnp.exp(scale)).to_event(1))

        other.guide = guide
        return other, {"x": x.numpy()}

    return Entry(PPCA, {"x": x}, "analytic", None, (), by_hand, numpyro)


class VAE(Program):
    """784-hidden-20, or convolutional."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def model(self, x=None):
        with ppgen.rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            logits = self.decoder(z.reshape(-1, 20)).reshape(z.shape[:-1] + (784,))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with ppgen.rows(x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def _vae(nets: Callable[[], tuple[nn.Module, nn.Module]], batch: int, twin: str, *sizes: int) -> Entry:
    torch.manual_seed(0)
    x = (torch.rand(batch, 784) > 0.7).float()

    def by_hand():
        p = VAE(*nets())

        def loss():
            loc, log_scale = p.encoder(x).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn(loc.shape)
            kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            return (kl + F.binary_cross_entropy_with_logits(p.decoder(z), x, reduction="sum")) / batch

        return list(p.parameters()), loss

    return Entry(lambda: VAE(*nets()), {"x": x}, "analytic", None, (), by_hand, _twin(twin, x, *sizes))


def _mlp(hidden: int) -> Callable[[], tuple[nn.Module, nn.Module]]:
    return lambda: (
        nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 40)),
        nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, 784)),
    )


def vae_small() -> Entry:
    return _vae(_mlp(64), 32, "vae", 64)


def vae_large() -> Entry:
    return _vae(_mlp(400), 128, "vae", 400)


def vae_convolutional() -> Entry:
    def nets() -> tuple[nn.Module, nn.Module]:
        encoder = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(1568, 40),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.Linear(20, 1568), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Flatten(),
        )  # fmt: skip
        return encoder, decoder

    return _vae(nets, 32, "vae_convolutional")


def spline_flow() -> Entry:
    import zuko

    torch.manual_seed(0)
    x = torch.randn(512, 8).clamp(-3, 3)

    def flow() -> nn.Module:
        return zuko.flows.NSF(8, transforms=5, hidden_features=(64, 64))

    class Flow(Program):
        def __init__(self):
            super().__init__()
            self.flow = flow()

        def model(self, x):
            with ppgen.rows(x):
                pyro.factor("x", self.flow().log_prob(x))

    def by_hand():
        own = flow()
        return list(own.parameters()), lambda: -own().log_prob(x).mean()

    return Entry(Flow, {"x": x}, "sampled", None, (), by_hand, None)


def deep_markov_model() -> Entry:
    torch.manual_seed(0)
    steps, features, latent = 8, 88, 16
    x = (torch.rand(16, steps, features) > 0.9).float()

    class DMM(Program):
        def __init__(self):
            super().__init__()
            self.rnn, self.start = nn.GRU(features, 32, batch_first=True), nn.Parameter(torch.zeros(latent))
            self.transition = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 2 * latent))
            self.emission = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, features))
            self.combine = nn.Linear(32 + latent, 2 * latent)

        def model(self, x):
            z = self.start.expand(len(x), latent)
            with ppgen.rows(x):
                for t in pyro.markov(range(steps)):
                    loc, log_scale = self.transition(z).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t])

        def guide(self, x):
            h = self.rnn(x.flip(1))[0].flip(1)
            z = self.start.expand(len(x), latent)
            with ppgen.rows(x):
                for t in pyro.markov(range(steps)):
                    loc, log_scale = self.combine(torch.cat([h[:, t], z], -1)).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))

    def by_hand():
        p = DMM()

        def loss():
            h = p.rnn(x.flip(1))[0].flip(1)
            z, total = p.start.expand(len(x), latent), torch.zeros(())
            for t in range(steps):
                prior, log_prior = p.transition(z).chunk(2, -1)
                loc, log_scale = p.combine(torch.cat([h[:, t], z], -1)).chunk(2, -1)
                z = loc + log_scale.exp() * torch.randn(loc.shape)
                ratio = (2 * (log_scale - log_prior)).exp() + ((loc - prior) / log_prior.exp()) ** 2
                total = total + (0.5 * (ratio - 1) - log_scale + log_prior).sum()
                total = total + F.binary_cross_entropy_with_logits(p.emission(z), x[:, t], reduction="sum")
            return total / len(x)

        return list(p.parameters()), loss

    return Entry(DMM, {"x": x}, "analytic", None, (), by_hand, _twin("deep_markov_model", x, latent))


ENTRIES: dict[str, Callable[[], Entry]] = {
    "eight schools": eight_schools,
    "logistic regression, 1000 x 20": logistic_regression,
    "logistic regression, 2000 x 100": partial(logistic_regression, 2000, 100),
    "logistic regression, 10⁴ x 20": partial(logistic_regression, 10**4, 20),
    "logistic regression, 10⁵ x 20": partial(logistic_regression, 10**5, 20),
    "logistic regression, 10⁶ x 10": partial(logistic_regression, 10**6, 10),
    "radon-like regression": radon,
    "Gaussian mixture, enumerated": gaussian_mixture,
    "Gaussian mixture, one distribution": partial(gaussian_mixture, enumerated=False),
    "HMM of 12 steps, enumerated": hidden_markov_model,
    "HMM of 12 steps, one distribution": partial(hidden_markov_model, enumerated=False),
    "probabilistic PCA": probabilistic_pca,
    "VAE 784-64-20, batch 32": vae_small,
    "VAE 784-400-20, batch 128": vae_large,
    "convolutional VAE, batch 32": vae_convolutional,
    "spline flow, 8-D, batch 512": spline_flow,
    "deep Markov model, 8 steps": deep_markov_model,
}
