"""The ELBO by Monte Carlo beside the exact one, and whether its standard error is honest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elbo_cases import ALL, float32_keeps, setting

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Posterior,
    Rows,
    elbo_exact,
    elbo_monte_carlo,
    elbo_quadratic,
    log_likelihood,
)
from glmvae.families import Binomial, Poisson


@pytest.mark.parametrize("name", float32_keeps(["binomial"], ALL))
def test_monte_carlo_agrees_with_the_exact_elbo(name, dtype):
    # small enough that no rare large rate decides the mean
    s = setting(name, dtype, size=0.25 if name in ("poisson", "gamma") else 0.6)
    value, error = elbo_monte_carlo(jax.random.key(1), s.model.decoder, s.x, s.q, s.objective, num_samples=2000)
    exact = elbo_exact(s.model, s.x, s.q)
    assert value.dtype == error.dtype == dtype
    # By row, and for the mean, whose standard error is 40 times smaller against the total.
    assert np.all(np.abs(value - exact) < 5 * error)
    total = np.sqrt(np.sum(np.asarray(error) ** 2)) / len(s.x)
    assert abs(float(jnp.mean(value - exact))) < 5 * total
    # The quadratic is told apart from it (except where it is exact, or the spread of so small a setting hides it).
    away = np.asarray(value - elbo_quadratic(s.model, s.x, s.q))
    if name in ("bernoulli", "bernoulli_grey", "bernoulli_tanh", "binomial", "binomial_columns"):
        assert abs(away.mean()) > 5 * total
    elif name not in ("gaussian", "poisson"):
        assert np.any(np.abs(away) > 5 * np.asarray(error))


@pytest.mark.any_precision
def test_the_standard_error_is_honest(dtype):
    s = setting("bernoulli", dtype)
    decoder, objective = s.model.decoder, s.objective
    _, error = elbo_monte_carlo(jax.random.key(0), decoder, s.x, s.q, objective, num_samples=100)
    # that of 100 draws, over that of 25: the spread of many such means
    draws = [elbo_monte_carlo(jax.random.key(i), decoder, s.x, s.q, objective, num_samples=25)[0] for i in range(2, 12)]
    spread = np.stack(draws).std(axis=0, ddof=1)
    ratio = np.sqrt(np.mean(spread**2) / 4) / np.sqrt(np.mean(np.asarray(error) ** 2))
    assert 0.8 < ratio < 1.25


@pytest.mark.any_precision
def test_one_draw_has_no_standard_error_and_says_so(dtype):
    s = setting("bernoulli", dtype)
    with jax.debug_nans(True):
        value, error = elbo_monte_carlo(jax.random.key(0), s.model.decoder, s.x, s.q, s.objective, num_samples=1)
    assert np.isfinite(value).all()
    assert np.isnan(error).all()


@pytest.mark.any_precision
def test_a_row_draws_the_same_beside_others(dtype):
    """Whatever the blocks: 1200 rows are several, 8 rows one."""
    rng = np.random.default_rng(0)
    x, decoder = (
        rng.poisson(1.0, size=(1200, 400)).astype(dtype),
        Affine(np.ones((400, 1), dtype), np.zeros(400, dtype)),
    )
    q = Posterior(rng.normal(size=(1200, 1)).astype(dtype), np.ones((1, 1, 1), dtype))
    objective, key = Objective(Binomial(100)), jax.random.key(3)
    many, _ = elbo_monte_carlo(key, decoder, x, q, objective, num_samples=2)
    few, _ = elbo_monte_carlo(key, decoder, x[:8], Posterior(q.mean[:8], q.covariance), objective, num_samples=2)
    np.testing.assert_allclose(many[:8], few, rtol=1e-12)
    other, _ = elbo_monte_carlo(key, decoder, x[1:9], Posterior(q.mean[1:9], q.covariance), objective, num_samples=2)
    assert np.abs(many[1:9] - other).max() > 1.0


@pytest.mark.any_precision
def test_covariates_under_a_transformation_of_the_decoder_alone():
    """Rows that are not traced take several draws at once, each with the covariates of its row."""
    rng = np.random.default_rng(0)
    rows = Rows(rng.poisson(1.0, (6, 3)).astype("float32"), covariates=rng.normal(size=(6, 1)).astype("float32"))
    q = Posterior(jnp.zeros((6, 1)), jnp.full((1, 1, 1), 0.5))
    model = AffineModel(Affine(jnp.full((3, 1), 0.4), jnp.zeros(3), jnp.ones((1, 3))), Poisson())

    def elbo(loadings):
        decoder = Affine(loadings, model.decoder.intercept, model.decoder.coefficients)
        value, _ = elbo_monte_carlo(jax.random.key(0), decoder, rows, q, model.objective, num_samples=4)
        return value.sum()

    def likelihood(loadings):
        other = AffineModel(Affine(loadings, model.decoder.intercept, model.decoder.coefficients), model.objective)
        return log_likelihood(jax.random.key(0), other, rows, num_samples=4, posterior=q)[0].sum()

    several = jnp.stack([model.loadings, 2 * model.loadings])
    for f in (elbo, likelihood):
        np.testing.assert_allclose(jax.vmap(f)(several), [f(w) for w in several], rtol=1e-5)
    slope = jax.grad(elbo)(model.loadings)
    np.testing.assert_allclose(slope, jax.jit(jax.grad(elbo))(model.loadings), rtol=1e-4)
    up, down = (elbo(model.loadings.at[1, 0].add(h)) for h in (1e-2, -1e-2))
    np.testing.assert_allclose(slope[1, 0], (up - down) / 2e-2, rtol=1e-2)


@pytest.mark.any_precision
def test_draws_that_agree_have_a_standard_error_with_a_derivative():
    q = Posterior(jnp.zeros((2, 0)), jnp.zeros((1, 0, 0)))

    def error(intercept):
        decoder = Affine(jnp.zeros((2, 0)), intercept)
        return elbo_monte_carlo(jax.random.key(0), decoder, np.ones((2, 2)), q, Poisson(), num_samples=5)[1].sum()

    assert error(jnp.zeros(2)) == 0
    np.testing.assert_array_equal(jax.grad(error)(jnp.zeros(2)), 0.0)
