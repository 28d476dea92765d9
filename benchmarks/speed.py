"""A step of ``glmvae.training`` against the same step written by hand, and against PyTorch, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import packages
from benchmarks.timing import Clock, clocked, in_turn, ratio, timed
from glmvae import nets, training
from glmvae.families import Bernoulli

Bare = tuple[list[tuple[jax.Array, jax.Array]], Any, Any, jax.Array]
#: Edge of the square matrices whose product says what the machine can do, and products a call.
_EDGE, _PRODUCTS = 1024, 10


def step_time(
    *,
    columns: int = 784,
    latent_dim: int = 20,
    widths: tuple[int, int] = (2000, 1000),
    batch_size: int = 100,
    steps: int = 100,
    repeats: int = 5,
    peers: bool = False,
) -> dict[str, Any]:
    """Median seconds a step of the library, of bare JAX and, if wanted and installed, of PyTorch, interleaved.

    ``steps`` steps at a time: enough of them that a call takes tenths of a second. The library's are those of the
    second chunk of a run, which begins with checks and copies of the data and the net that are no part of a step.
    """
    x = jax.random.uniform(jax.random.key(0), (20 * batch_size, columns))
    wide, narrow = widths
    shapes = [(columns, wide), (wide, narrow), (narrow, latent_dim), (narrow, latent_dim)]
    shapes += [(latent_dim, narrow), (narrow, wide), (wide, columns)]
    contestants = _contestants(shapes, x, batch_size, steps, peers)
    first = {name: timed(run).seconds for name, run in contestants.items()}
    times = in_turn(contestants, rounds=repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    rate = _PRODUCTS * 2 * _EDGE**3 / median["matmul"]
    # a forward product, and two backward: one for the weights, one for the layer below (the first layer has none)
    products = sum(rows * outputs for rows, outputs in shapes)
    work = 2 * batch_size * (3 * products - shapes[0][0] * shapes[0][1])
    ours = median["glmvae"] / steps
    result = {
        "net": "-".join(str(w) for w in (columns, wide, narrow, latent_dim, narrow, wide, columns)),
        "batch_size": batch_size,
        "steps": steps,
        "seconds": ours,
        "bare_seconds": median["bare"] / steps,
        "ratio_to_bare": ratio(times["glmvae"], times["bare"]),
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": work / ours / rate,
        "adam_seconds": median["adam"] / steps,
        "parts_seconds": work / rate + median["adam"] / steps,
        "first_call_seconds": first["glmvae"],
    }
    if "torch" in median:
        result["torch_seconds"] = median["torch"] / steps
        result["speed_over_torch"] = ratio(times["torch"], times["glmvae"])
    return result


def _contestants(
    shapes: list[tuple[int, int]], x: jax.Array, batch_size: int, steps: int, peers: bool
) -> dict[str, Callable[[], float]]:
    """What is timed: each returns the seconds of ``steps`` steps, or of the products."""
    square = jax.random.normal(jax.random.key(2), (_EDGE, _EDGE))
    multiply = jax.jit(jnp.matmul)
    found = {
        "glmvae": _ours(shapes, x, batch_size, steps),
        "bare": clocked(_bare(shapes, x, batch_size, steps)),
        "adam": clocked(_adam(shapes, steps)),
        "matmul": clocked(lambda: [multiply(square, square) for _ in range(_PRODUCTS)]),
    }
    if peers and packages.peer("torch") is not None:
        found["torch"] = clocked(_torch(shapes, np.asarray(x), batch_size, steps))
    return found


def _ours(shapes: list[tuple[int, int]], x: jax.Array, batch_size: int, steps: int) -> Callable[[], float]:
    (columns, wide), (_, narrow), (_, latent_dim) = shapes[:3]
    widths: dict[str, Any] = {"encoder_widths": (wide, narrow), "decoder_widths": (narrow, wide)}
    vae = nets.deep(jax.random.key(1), columns, latent_dim, Bernoulli(), dtype=jnp.float32, **widths)
    settings: dict[str, Any] = {"steps": 2 * steps, "chunk_size": steps, "batch_size": batch_size}

    def run() -> float:
        clock = Clock()
        laps: list[float] = []

        def after_chunk(run: training.Run) -> None:
            jax.block_until_ready(run.vae.output_layer.kernel[...])
            laps.append(clock.lap()[0])

        training.train(jax.random.key(0), vae, x, callbacks=[after_chunk], **settings)
        return laps[1]

    return run


def _bare(shapes: list[tuple[int, int]], x: jax.Array, batch_size: int, steps: int) -> Callable[[], Any]:
    """The gradient and Adam written out for this one net and family, in one compiled loop."""
    keys = jax.random.split(jax.random.key(1), len(shapes))
    weights = [jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(keys, shapes, strict=True)]
    start = [(w, jnp.zeros(w.shape[1])) for w in weights]
    latent_dim = shapes[2][1]

    def loss(p: list, batch: jax.Array, noise: jax.Array) -> jax.Array:
        def affine(h: jax.Array, i: int) -> jax.Array:
            return h @ p[i][0] + p[i][1]

        h = jax.nn.relu(affine(jax.nn.relu(affine(batch, 0)), 1))
        mean, log_variance = affine(h, 2), affine(h, 3)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        eta = affine(jax.nn.relu(affine(jax.nn.relu(affine(z, 4)), 5)), 6)
        kl = 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, axis=1)
        return -jnp.mean(jnp.sum(batch * eta - jax.nn.softplus(eta), axis=1) - kl)

    @jax.jit
    def loop(state: Bare, x: jax.Array, key: jax.Array) -> Bare:
        def body(i: jax.Array, state: Bare) -> Bare:
            p, m, v, t = state
            batch = jax.lax.dynamic_slice_in_dim(x, (i * batch_size) % x.shape[0], batch_size)
            noise = jax.random.normal(jax.random.fold_in(key, i), (batch_size, latent_dim))
            g = jax.grad(loss)(p, batch, noise)
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            rate, correction = 1e-4 / (1 - 0.9**t), 1 - 0.999**t
            p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v / correction) + 1e-8), p, m, v)
            return p, m, v, t

        return jax.lax.fori_loop(0, steps, body, state)

    zeros = jax.tree.map(jnp.zeros_like, start)
    state = (start, zeros, zeros, jnp.zeros(()))
    return lambda: loop(state, x, jax.random.key(0))


def _adam(shapes: list[tuple[int, int]], steps: int) -> Callable[[], Any]:
    """The update alone, of weights of these shapes, from gradients that are there."""
    weights = [jnp.ones(s) for s in shapes]

    @jax.jit
    def loop(weights: list[jax.Array], memory: Any, gradients: list[jax.Array]) -> tuple[list[jax.Array], Any]:
        def body(_: jax.Array, state: tuple[list[jax.Array], Any]) -> tuple[Any, Any]:
            updates, memory = training.ADAM.update(gradients, state[1], state[0])
            return optax.apply_updates(state[0], updates), memory

        return jax.lax.fori_loop(0, steps, body, (weights, memory))

    memory = training.ADAM.init(weights)
    return lambda: loop(weights, memory, weights)


def _torch(shapes: list[tuple[int, int]], x: np.ndarray, batch_size: int, steps: int) -> Callable[[], Any]:
    """The same net in PyTorch, eager, with its fused Adam."""
    torch: Any = packages.peer("torch")
    functional = torch.nn.functional
    layers = torch.nn.ModuleList([torch.nn.Linear(*s) for s in shapes])
    for layer in layers:
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.Adam(layers.parameters(), lr=1e-4, fused=True)
    data = torch.from_numpy(x.copy())

    def steps_taken() -> None:
        for i in range(steps):
            first = (i * batch_size) % len(data)
            batch = data[first : first + batch_size]
            h = functional.relu(layers[1](functional.relu(layers[0](batch))))
            mean, log_variance = layers[2](h), layers[3](h)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            eta = layers[6](functional.relu(layers[5](functional.relu(layers[4](z)))))
            kl = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1)
            nll = functional.binary_cross_entropy_with_logits(eta, batch, reduction="none").sum(1)
            adam.zero_grad(set_to_none=True)
            (nll + kl).mean().backward()
            adam.step()

    return steps_taken
