"""Everything that is asked of :mod:`glmvae`: data, the closed form and its lines, the nets, training, looking at them.

A run is looked at on at most :data:`SEEN` rows of train and of test, evenly spaced, always the same; at its end on all.
An affine decoder's ELBO is exact, that of a ReLU net a Monte Carlo estimate with the same draws each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks.reproduce.setups import Setup
from glmvae import (
    AffineOptimum,
    RefinedOptimum,
    activity,
    datasets,
    elbo_exact,
    families,
    fit,
    initializers,
    moments,
    monitor,
    nets,
    posterior,
    tighten,
    training,
)
from glmvae.families import Family
from glmvae.rows import as_rows
from glmvae.variational import predictor_moments

#: Rows of train and of test in a curve, and draws of z a row where the ELBO is not exact.
SEEN, SAMPLES = 2_000, 8
#: Steps between two checkpoints, at most: what a stop can lose.
CHUNK = 1_000
#: Rounds of the tightened bound, at most.
ROUNDS = 500


class Optima(NamedTuple):
    """Of one data set, family, kappa and beta: expanded at zero (the paper), at the null model, and tightened."""

    family: Family
    closed: AffineOptimum
    null: AffineOptimum
    tightened: RefinedOptimum | None


@cache
def rows(data: str) -> tuple[Array, Array]:
    """Train and test.

    Raises:
        FileNotFoundError: the data are not in GLMVAE_DATA_DIR; nothing is downloaded.
    """
    found = datasets.load(data, download=False)
    return jnp.asarray(found.train, jnp.float32), jnp.asarray(found.test, jnp.float32)


@cache
def optima(data: str, family: str, latent_dim: int, beta: float) -> Optima:
    """The closed forms, and the tightened one where the family has it."""
    model = getattr(families, family)()
    summary = moments(rows(data)[0], family=model)
    closed = fit(summary, model, latent_dim, beta=beta)
    null = fit(summary, model, latent_dim, beta=beta, expand_at="null")
    tightened = tighten(closed, summary, max_rounds=ROUNDS) if model.is_logistic else None
    return Optima(model, closed, null, tightened)


def optima_of(setup: Setup) -> Optima:
    """Those of a setup."""
    return optima(setup.data, setup.family, setup.latent_dim, setup.beta)


def start_of(setup: Setup) -> nets.VAE:
    """The net at step 0."""
    best, columns = optima_of(setup), rows(setup.data)[0].shape[1]
    build_key, start_key, _, _ = _keys(setup)
    wide, narrow = setup.widths
    sizes: dict[str, Any] = {"encoder_widths": (wide, columns)}
    if setup.decoder == "relu":
        sizes = {"encoder_widths": (wide, narrow), "decoder_widths": (narrow, wide)}
    make: dict[str, Callable[..., nets.VAE]] = {"affine": nets.canonical, "relu": nets.deep}
    objective = best.closed.model.objective
    vae = make[setup.decoder](build_key, columns, setup.latent_dim, objective, dtype=jnp.float32, **sizes)
    starts: dict[str, tuple[Callable[..., nets.VAE], Any]] = {
        "he": (initializers.he, best.closed),
        "mle-b": (initializers.mle_b, best.closed),
        "closed-form": (initializers.pass_through, best.closed),
        "tightened": (initializers.pass_through, best.tightened),
    }
    initializer, optimum = starts[setup.start]
    return initializer(start_key, vae, optimum)


def train_to(
    setup: Setup, start: nets.VAE, step: int, checkpoint: Path, after_chunk: Callable[[int], None]
) -> tuple[nets.VAE, bool]:
    """The net after so many steps, from the checkpoint on; and whether it was interrupted before.

    Raises:
        Diverged: a loss or a weight was not finite.
        ValueError: the checkpoint is of another run, or of another version of the library.
    """

    def callback(run: training.Run) -> None:
        after_chunk(run.step)

    try:
        run = training.train(
            _keys(setup)[2],
            start,
            rows(setup.data)[0],
            steps=step,
            batch_size=setup.batch_size,
            optimizer=_adam(setup.learning_rate),
            beta=_rising(setup.beta, setup.steps // 2) if setup.annealed else None,
            chunk_size=CHUNK,
            callbacks=[callback],
            checkpoint=checkpoint,
        )
    except training.NonFiniteLoss as error:
        raise Diverged(error.step, error.run.vae) from error
    return run.vae, run.stopped is not None


class Diverged(FloatingPointError):
    """A loss or a weight was not finite at ``step``; ``vae`` is the last net that was good."""

    def __init__(self, step: int, vae: nets.VAE) -> None:
        super().__init__(f"diverged at step {step}")
        self.step, self.vae = step, vae


def look(setup: Setup, vae: nets.VAE) -> dict[str, float]:
    """ELBOs (nats per row, at the setup's own beta), their Monte Carlo errors, and active units, on the rows seen."""
    at = _evaluate(setup, vae, *(seen(x) for x in rows(setup.data)))
    return {**_elbos(at), "active": int(at.active_units)}


def look_at_all(setup: Setup, vae: nets.VAE) -> dict[str, Any]:
    """The same on all rows, with the activity and the KL divergence of every unit."""
    at = _evaluate(setup, vae, *rows(setup.data))
    return {**_elbos(at), "kl": np.asarray(at.kl).tolist(), "activity": np.asarray(at.activity).tolist()}


def corollary_1(optimum: AffineOptimum, x: Array) -> float:
    """The error of L-hat at eta = 0 in the paper's own words: E eta^4 / 192, nats a row; 0 for Gaussian data.

    ``monitor.reference`` knows sharper bounds.
    """
    if optimum.family.is_quadratic:
        return 0.0
    q = posterior(optimum, x)
    mean, variance = predictor_moments(optimum.model.decoder, as_rows(x), q)
    return float(jnp.mean(jnp.sum(mean**4 + 6 * mean**2 * variance + 3 * variance**2, axis=1)) / 192)


@cache
def lines(data: str, family: str, latent_dim: int, beta: float) -> dict[str, dict[str, float]]:
    """What a curve is held against, on all rows and on those seen.

    L-hat at its optimum; L-hat and the error of Corollary 1, above which that optimum's ELBO cannot be; that ELBO
    itself; the ELBO of the tightened optimum; and that of no latent unit at all.
    """
    best, (train, test) = optima(data, family, latent_dim, beta), rows(data)
    mean = jnp.mean(train, axis=0)
    if best.tightened is not None:  # a column that never varies on train may on test
        mean = jnp.clip(mean, 0.5 / len(train), 1 - 0.5 / len(train))
    found = {}
    for name, x in {"train": train, "test": test, "seen_train": seen(train), "seen_test": seen(test)}.items():
        at = monitor.reference(best.closed, x)
        found[name] = {"elbo_taylor": float(at.elbo_taylor), "elbo_exact": float(at.elbo_exact)}
        found[name]["corollary_1"] = found[name]["elbo_taylor"] + corollary_1(best.closed, x)
        log_prob = best.family.log_prob(x, best.family.link(mean)[None], best.closed.dispersion)
        found[name]["no_unit"] = float(jnp.sum(jnp.mean(log_prob, axis=0)))
        if best.tightened is not None:
            elbo = elbo_exact(best.tightened, x, posterior(best.tightened, x))
            found[name]["tightened"] = float(jnp.mean(elbo))
    return found


def predicted(setup: Setup) -> dict[str, list[float]]:
    """The activity (21) of every unit by each of the :class:`Optima`."""
    _, *of = optima_of(setup)
    named = zip(Optima._fields[1:], of, strict=True)
    return {name: np.asarray(activity(optimum)).tolist() for name, optimum in named if optimum is not None}


def seen(x: Array) -> Array:
    """The rows of a curve."""
    return x[np.linspace(0, len(x) - 1, min(SEEN, len(x))).round().astype(int)]


def _elbos(at: monitor.Evaluation) -> dict[str, float]:
    names = ("train_elbo", "train_error", "test_elbo", "test_error")
    return {name: float(getattr(at, name)) for name in names}


def _evaluate(setup: Setup, vae: nets.VAE, x: Array, test: Array) -> monitor.Evaluation:
    return monitor.evaluate(_keys(setup)[3], vae.with_beta(setup.beta), x, test=test, num_samples=SAMPLES)


def _keys(setup: Setup) -> tuple[Array, ...]:
    """For the net's shape, its start, the batches and noise, and the draws of an evaluation."""
    return tuple(jax.random.split(jax.random.key(setup.seed), 4))


@cache
def _adam(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate)


@cache
def _rising(beta: float, until: int) -> Callable[[Array], Array]:
    """Linear from 0 to beta, then constant. One function for equal arguments, so that it compiles once."""

    def schedule(step: Array) -> Array:
        return beta * jnp.minimum(1.0, step / until)

    return schedule
