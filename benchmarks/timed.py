"""Training a net with a clock that runs for the steps alone: neither compilation nor evaluation counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from glmvae import monitor, training
from glmvae.nets import VAE

# Entries of x in an evaluation (its first rows), and draws a row where the ELBO is not exact: the same at every step.
ENTRIES, SAMPLES = 2_000_000, 4


class Curve(NamedTuple):
    """ELBO (nats per row) and its standard error at some steps, and the seconds of training until then."""

    vae: VAE
    steps: list[int]
    seconds: list[float]
    elbos: list[float]
    errors: list[float]
    diverged: bool = False

    def as_dict(self) -> dict[str, Any]:
        """All but the net."""
        return {k: v for k, v in self._asdict().items() if k != "vae"}


def train_timed(
    key: Array,
    vae: VAE,
    x: Array,
    *,
    steps: int,
    every: int,
    beta: float = 1.0,
    dispersion: Array | None = None,
    optimizer: optax.GradientTransformation = training.ADAM,
    until: float | None = None,
    progress: Callable[[int, float], None] = lambda step, elbo: None,
) -> Curve:
    """Train for ``steps`` steps, or until the ELBO is ``until`` or not finite, looking every ``every`` steps."""
    train_key, elbo_key = jax.random.split(key)
    seen = x[: max(1, ENTRIES // x.shape[1])]
    phi = jnp.ones((), x.dtype) if dispersion is None else dispersion

    def look(net: VAE) -> tuple[float, float]:
        at = monitor.evaluate(elbo_key, net, seen, beta=beta, dispersion=phi, num_samples=SAMPLES)
        return float(at.train_elbo), float(at.train_error)

    elbo, error = look(vae)
    curve = Curve(vae, [0], [0.0], [elbo], [error])
    settings: dict[str, Any] = {
        "batch_size": min(100, x.shape[0]),
        "chunk_size": every,
        "beta": beta,
        "dispersion": dispersion,
        "optimizer": optimizer,
    }
    training.train(train_key, vae, x, steps=1, **settings)  # compiles
    clock = time.perf_counter()

    def after_chunk(run: training.Run) -> bool:
        nonlocal clock
        jax.block_until_ready(run.vae.output_layer.kernel[...])
        curve.seconds.append(curve.seconds[-1] + time.perf_counter() - clock)
        elbo, error = look(run.vae)
        curve.steps.append(run.step)
        curve.elbos.append(elbo)
        curve.errors.append(error)
        progress(run.step, elbo)
        clock = time.perf_counter()
        return until is not None and elbo >= until

    try:
        run = training.train(train_key, vae, x, steps=steps, callbacks=[after_chunk], **settings)
    except training.NonFiniteLoss as error:  # a result: the curve ends where it still was finite
        return curve._replace(vae=error.run.vae, diverged=True)
    if run.stopped == "interrupt":
        raise KeyboardInterrupt
    return curve._replace(vae=run.vae)
