"""Without latent units: the GLM, in one look at the rows, and without a word of XLA's."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import glmvae.variational
from glmvae import Affine, AffineModel, Rows, best_posterior, elbo_exact, refine
from glmvae.families import Binomial

pytestmark = pytest.mark.float64

RNG = np.random.default_rng(0)


def binomial(d):
    trials = RNG.integers(1, 9, size=(20, d)).astype(float)
    rows = Rows(RNG.binomial(trials.astype(int), 0.4).astype(float), trials=trials)
    return AffineModel(Affine(np.zeros((d, 0)), np.zeros(d)), Binomial(None)), rows


@pytest.fixture
def compiled_anew():
    """Whatever other tests have compiled, in this process or an earlier one."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # which asks for the setting once
    jax.clear_caches()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    reset_cache()


@pytest.mark.usefixtures("compiled_anew")
def test_the_compiler_does_not_go_in_circles(capfd, monkeypatch):
    model, rows = binomial(3)
    best = refine(model, rows)
    elbo_exact(best, rows, best_posterior(best, rows))
    share = np.asarray(rows.x).sum(axis=0) / np.asarray(rows.trials).sum(axis=0)
    np.testing.assert_allclose(best.intercept, np.log(share / (1 - share)), rtol=1e-6)
    assert "circular" not in capfd.readouterr().err
    monkeypatch.setattr(glmvae.variational, "hidden_if_none", lambda variance, decoder: variance)
    model, rows = binomial(4)  # the control: another shape, compiled anew
    elbo_exact(model, rows, best_posterior(model, rows))
    assert "circular" in capfd.readouterr().err


def test_what_is_hidden_has_derivatives():
    model, rows = binomial(3)
    q = best_posterior(model, rows)

    def value(intercept):
        moved = AffineModel(Affine(model.loadings, intercept), model.objective)
        return elbo_exact(moved, rows, q).mean()

    point = np.array([0.3, -0.2, 0.1])
    n, x = np.asarray(rows.trials), np.asarray(rows.x)
    expected = (x - n / (1 + np.exp(-point))).mean(axis=0)
    np.testing.assert_allclose(jax.grad(value)(point), expected, rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(jax.grad(value))(point[None])[0], expected, rtol=1e-9)
