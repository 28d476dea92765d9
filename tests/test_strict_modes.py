"""The library's own functions run where JAX is strict: no implicit ranks or dtypes, and no NaN that is meant."""

import contextlib

import jax
import numpy as np
import optax
import pytest

from glmvae import Objective, Rows, fit, initializers, monitor, nets, training
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, Poisson
from glmvae.rows import as_rows

ROWS, COLUMNS = 60, 5


@contextlib.contextmanager
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        yield


def test_the_modes_are_strict(dtype):
    one = jax.numpy.ones(2, dtype)
    for wrong in (lambda: one[None] + one, lambda: one + jax.numpy.ones(2, int), lambda: jax.numpy.log(-one)):
        with strict(), pytest.raises((ValueError, FloatingPointError, jax.dtypes.TypePromotionError)):
            wrong()


def cases():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, size=(ROWS, COLUMNS)).astype(float)
    trials = counts + rng.integers(0, 4, size=counts.shape) + 1
    mixed = Mixed([(Bernoulli(), [0]), (Poisson(), [1, 2]), (Gaussian(), [3, 4])])
    table = np.where(np.arange(COLUMNS) == 0, counts > 1, counts)
    missing, weight, offset = rng.random(counts.shape) < 0.1, rng.random(ROWS) + 0.1, rng.normal(size=(ROWS, 1))
    return {
        "poisson": (Poisson(), Rows(counts, offset=offset, missing=missing, weight=weight)),
        "gaussian, a dispersion a column": (Objective(Gaussian(), dispersion=np.arange(1.0, 6.0)), counts),
        "trials an entry": (Binomial(None), Rows(counts, trials=trials)),
        "trials a column": (Binomial(counts.max(0)), counts),
        "mixed": (Objective(mixed, dispersion=np.ones(COLUMNS)), table),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_nets_train_and_are_watched(name, dtype):
    objective, x = CASES[name]
    cast = as_rows(x).map(lambda leaf: leaf if leaf.dtype == bool and leaf is not x else leaf.astype(dtype))
    family = objective.family if isinstance(objective, Objective) else objective
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 100)))
    with strict():
        standardise = nets.standardisation(cast, family)
        options = {"encoder_widths": (8,), "standardise": standardise, "full_covariance": True, "skip": True}
        vae = nets.deep(jax.random.key(0), COLUMNS, 2, objective, decoder_widths=(8,), **options)
        run = training.train(
            jax.random.key(1),
            vae,
            cast,
            test=cast,
            steps=4,
            batch_size=20,
            optimizer=optimizer,
            beta=lambda step: np.float64(0.5) * step / 4,  # ours is strict, not the schedule
            learn_dispersion=family.fixed_dispersion is None,
            evaluate_every=4,
        )
        assert np.isfinite(run.losses).all()
        assert np.isfinite(run.evaluations.test_elbo).all()


@pytest.mark.parametrize("architecture", ["deep", "canonical"])
def test_starts_and_references(architecture, dtype):
    x = CASES["trials a column"][1].astype(dtype)
    family = CASES["trials a column"][0]
    with strict():
        optimum = fit(x, family, 2)
        line = monitor.reference(optimum, x)
        make = nets.deep if architecture == "deep" else nets.canonical
        widths = {"encoder_widths": (6, 6)} | ({"decoder_widths": (6,)} if architecture == "deep" else {})
        vae = make(jax.random.key(0), COLUMNS, 2, family, **widths)
        for initialize in (initializers.he, initializers.mle_b, initializers.pass_through):
            started = initialize(jax.random.key(1), vae, optimum)
            at = monitor.evaluate(jax.random.key(2), started, x, num_samples=4)
        assert line.lower <= line.elbo_exact <= line.upper
        assert abs(at.train_elbo - line.elbo_exact) <= 5 * at.train_error + 1e-3
