"""The larger programs of `programs.py` in NumPyro: the same nets, the same estimator. Each is (model, data).

NumPyro has no autoregressive spline, so the spline flow has no twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from torch import Tensor

Twin = tuple[Callable, dict[str, Any]]


def _param(name: str, *shape: int) -> Array:
    return numpyro.param(name, lambda key: 0.1 * jax.random.normal(key, shape))


def _linear(name: str, x: Array, inputs: int, outputs: int) -> Array:
    return x @ _param(f"{name}.weight", inputs, outputs) + _param(f"{name}.bias", outputs)


def hidden_markov_model(x: Tensor, states: int) -> Twin:
    """Its states summed out by the forward recursion, which is less work than NumPyro's enumeration."""

    def model(x):
        step = numpyro.sample("step", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
        loc = numpyro.sample("loc", dist.Normal(jnp.arange(states, dtype=float), 1.0).to_event(1))
        emission, log_step = dist.Normal(loc, 1.0).log_prob(x[:, None]), jnp.log(step)

        def forward(alpha, e):
            return jax.nn.logsumexp(alpha[:, None] + log_step, axis=0) + e, None

        alpha, _ = jax.lax.scan(forward, log_step[0] + emission[0], emission[1:])
        numpyro.factor("x", jax.nn.logsumexp(alpha))

    return model, {"x": x.numpy()}


def _vae(x: Tensor, encode: Callable, decode: Callable) -> Twin:
    rows, features = x.shape

    def model(x):
        with numpyro.plate("rows", rows):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = jnp.split(encode(x), 2, -1)
        with numpyro.plate("rows", rows):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    model.guide = guide
    return model, {"x": x.numpy()}


def vae(x: Tensor, hidden: int) -> Twin:
    def encode(x):
        return _linear("encoder.1", jax.nn.relu(_linear("encoder.0", x, 784, hidden)), hidden, 40)

    def decode(z):
        return _linear("decoder.1", jax.nn.relu(_linear("decoder.0", z, 20, hidden)), hidden, 784)

    return _vae(x, encode, decode)


def vae_convolutional(x: Tensor) -> Twin:
    layout = ("NCHW", "OIHW", "NCHW")

    def down(name: str, x: Array, inputs: int, outputs: int) -> Array:
        weight = _param(f"{name}.weight", outputs, inputs, 4, 4)
        x = jax.lax.conv_general_dilated(x, weight, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
        return x + _param(f"{name}.bias", outputs, 1, 1)

    def up(name: str, x: Array, inputs: int, outputs: int) -> Array:
        weight = _param(f"{name}.weight", outputs, inputs, 4, 4)
        x = jax.lax.conv_transpose(x, weight, (2, 2), "SAME", dimension_numbers=layout)
        return x + _param(f"{name}.bias", outputs, 1, 1)

    def encode(x):
        x = jax.nn.relu(down("encoder.0", x.reshape(-1, 1, 28, 28), 1, 16))
        x = jax.nn.relu(down("encoder.1", x, 16, 32))
        return _linear("encoder.2", x.reshape(len(x), -1), 1568, 40)

    def decode(z):
        h = jax.nn.relu(_linear("decoder.0", z, 20, 1568)).reshape(-1, 32, 7, 7)
        h = jax.nn.relu(up("decoder.1", h, 32, 16))
        return up("decoder.2", h, 16, 1).reshape(len(z), -1)

    return _vae(x, encode, decode)


def deep_markov_model(x: Tensor, latent: int) -> Twin:
    rows, steps, features = x.shape

    def normal(name: str, h: Array, inputs: int) -> dist.Distribution:
        loc, log_scale = jnp.split(_linear(name, h, inputs, 2 * latent), 2, -1)
        return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)

    def model(x):
        z = jnp.broadcast_to(_param("start", latent), (rows, latent))
        with numpyro.plate("rows", rows):
            for t in range(steps):
                h = jax.nn.relu(_linear("transition.0", z, latent, 32))
                z = numpyro.sample(f"z_{t}", normal("transition.1", h, 32))
                logits = _linear("emission.1", jax.nn.relu(_linear("emission.0", z, latent, 32)), 32, features)
                numpyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])

    def guide(x):
        weight, recurrent = _param("rnn.weight", features, 96), _param("rnn.recurrent", 32, 96)
        bias, other = _param("rnn.bias", 96), _param("rnn.bias_recurrent", 96)

        def gru(h, inputs):
            r, u, n = jnp.split(inputs, 3, -1)
            hr, hu, hn = jnp.split(h @ recurrent + other, 3, -1)
            r, u = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(u + hu)
            h = (1 - u) * jnp.tanh(n + r * hn) + u * h
            return h, h

        inputs = jnp.swapaxes(x, 0, 1) @ weight + bias
        _, h = jax.lax.scan(gru, jnp.zeros((rows, 32)), inputs, reverse=True)
        z = jnp.broadcast_to(_param("start", latent), (rows, latent))
        with numpyro.plate("rows", rows):
            for t in range(steps):
                z = numpyro.sample(f"z_{t}", normal("combine", jnp.concatenate([h[t], z], -1), 32 + latent))

    model.guide = guide
    return model, {"x": x.numpy()}
