"""Training a net with a clock that runs for the steps alone: neither compilation nor evaluation counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from benchmarks.timing import Clock
from glmvae import monitor, nets, training
from glmvae.families import Family
from glmvae.nets import VAE

# Entries of x in an evaluation (its first rows), and draws a row where the ELBO is not exact: the same at every step.
ENTRIES, SAMPLES = 2_000_000, 4


def bearable(x: Array, family: Family) -> tuple[Array, Array] | None:
    """What an encoder standardises its inputs by: the paper's, in [0, 1], stay as they are; no net bears counts."""
    return nets.standardisation(x, family) if float(x.max()) > 1 else None


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
    optimizer: optax.GradientTransformation = training.ADAM,
    until: float | None = None,
    progress: Callable[[int, float], None] = lambda step, elbo: None,
) -> Curve:
    """Train for ``steps`` steps, or until the ELBO is ``until`` or not finite, looking every ``every`` steps."""
    train_key, elbo_key = jax.random.split(key)
    seen = x[: max(1, ENTRIES // x.shape[1])]

    def look(net: VAE) -> tuple[float, float]:
        at = monitor.evaluate(elbo_key, net, seen, num_samples=SAMPLES)
        return float(at.train_elbo), float(at.train_error)

    elbo, error = look(vae)
    curve = Curve(vae, [0], [0.0], [elbo], [error])
    settings: dict[str, Any] = {"batch_size": min(100, x.shape[0]), "chunk_size": every, "optimizer": optimizer}
    training.train(train_key, vae, x, steps=1, **settings)  # compiles
    clock = Clock()

    def after_chunk(run: training.Run) -> bool:
        jax.block_until_ready(run.vae.output_layer.kernel[...])
        curve.seconds.append(curve.seconds[-1] + clock.lap()[0])
        elbo, error = look(run.vae)
        curve.steps.append(run.step)
        curve.elbos.append(elbo)
        curve.errors.append(error)
        progress(run.step, elbo)
        clock.lap()
        return until is not None and elbo >= until

    try:
        run = training.train(train_key, vae, x, steps=steps, callbacks=[after_chunk], **settings)
    except training.NonFiniteLoss as error:  # a result: the curve ends where it still was finite
        return curve._replace(vae=error.run.vae, diverged=True)
    if run.stopped == "interrupt":
        raise KeyboardInterrupt
    return curve._replace(vae=run.vae)
