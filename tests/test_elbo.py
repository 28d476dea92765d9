"""The ELBOs of affine decoders against quadrature in NumPy, each other, and their definitions."""

import dense_reference as dense
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import kl_divergence as dense_kl
from elbo_cases import ALL, COLUMNS, RTOL, UNITS, float32_keeps, posterior, setting
from hypothesis import given
from hypothesis import strategies as st

from glmvae import (
    Affine,
    AffineModel,
    Posterior,
    affine_posterior,
    elbo_exact,
    elbo_profile,
    elbo_quadratic,
    expected_remainder_bounds,
    fit,
    kl_divergence,
    moments,
)
from glmvae import posterior as best_of_fit
from glmvae.families import Gaussian
from glmvae.rows import as_rows
from glmvae.variational import gaussian_kl, predictor_moments, spread_of

SEEDS = st.integers(0, 2**32 - 1)

# KL divergence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [True, False])
def test_kl_divergence(per_row, dtype):
    q = posterior(np.random.default_rng(0), dtype, per_row=per_row)
    expected = dense_kl(np.asarray(q.mean, np.float64), np.asarray(q.covariance, np.float64))
    np.testing.assert_allclose(kl_divergence(q), expected, rtol=RTOL[str(dtype)])
    assert kl_divergence(q).shape == q.mean.shape[:1]
    prior = Posterior(jnp.zeros((3, 2), dtype), jnp.eye(2, dtype=dtype)[None])
    np.testing.assert_allclose(kl_divergence(prior), 0.0)


@pytest.mark.any_precision
def test_kl_divergence_by_sampling(dtype):
    q = Posterior(np.asarray([[0.5, -1.0]], dtype), np.asarray([[[0.5, 0.2], [0.2, 0.8]]], dtype))
    z = np.random.default_rng(0).multivariate_normal(q.mean[0], q.covariance[0], 20000)
    inverse, log_det = np.linalg.inv(q.covariance[0]), np.linalg.slogdet(q.covariance[0])[1]
    away = z - q.mean[0]
    gap = -0.5 * (np.einsum("nk,kl,nl->n", away, inverse, away) + log_det) + 0.5 * np.sum(z**2, axis=1)
    assert abs(gap.mean() - float(kl_divergence(q)[0])) < 5 * gap.std() / np.sqrt(len(gap))


@pytest.mark.parametrize("units", [UNITS, 1, 0])
def test_what_rows_of_one_covariance_share(units, dtype):
    rng = np.random.default_rng(0)
    half = rng.normal(size=(units, units))
    covariance, loadings = half @ half.T + np.eye(units), rng.normal(size=(COLUMNS, units))
    shared = spread_of(jnp.asarray(covariance, dtype), jnp.asarray(loadings, dtype))
    q = Posterior(jnp.asarray(rng.normal(size=(4, units)), dtype), jnp.asarray(covariance, dtype)[None])
    decoder = Affine(jnp.asarray(loadings, dtype), jnp.zeros(COLUMNS, dtype))
    variance = predictor_moments(decoder, as_rows(jnp.zeros((4, COLUMNS), dtype)), q)[1]
    np.testing.assert_allclose(np.broadcast_to(variance, (1, COLUMNS))[0], shared.variance, rtol=RTOL[str(dtype)])
    value = gaussian_kl(q.mean, jnp.asarray(shared.trace, dtype), jnp.asarray(shared.log_det, dtype))
    np.testing.assert_allclose(value, kl_divergence(q), rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    if units == UNITS:  # Control: no covariance
        assert np.isnan(spread_of(np.diag([-1.0, *[1.0] * (units - 1)]), loadings).log_det)


# The exact ELBO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("name", float32_keeps(["bernoulli", "poisson"], ALL))
def test_exact_equals_numpy_quadrature(name, per_row, dtype):
    s = setting(name, dtype, per_row=per_row)
    got = elbo_exact(s.model, s.x, s.q)
    np.testing.assert_allclose(got, s.dense(), rtol=RTOL[str(dtype)])
    assert got.dtype == dtype
    # the spread of q matters: at its mean alone the value is another
    point = s.dense(q=(s.q.mean, 1e-12 * np.eye(UNITS)[None])) + 0.7 * dense_kl(s.q.mean, 1e-12 * np.eye(UNITS))
    assert np.abs(got + 0.7 * np.asarray(kl_divergence(s.q)) - point).max() > 1e-2


# L-hat in eta ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["bernoulli_tanh"], ALL))
def test_quadratic_equals_its_definition(name, dtype):
    s = setting(name, dtype)
    eta0 = np.array([0.3, -0.2, 0.1, 0.0])
    got = elbo_quadratic(s.model, s.x, s.q, expand_at=eta0)
    expected = s.dense(dense.quadratic(np.asarray(eta0, dtype).astype(float)))
    np.testing.assert_allclose(got, expected, rtol=RTOL[str(dtype)])
    if name != "gaussian":
        assert np.abs(got - elbo_quadratic(s.model, s.x, s.q)).max() > 1e-2


@pytest.mark.parametrize("point", ["zero", "null"])
@pytest.mark.parametrize("name", float32_keeps(["bernoulli_tanh", "poisson"], dense.MODELS))
def test_profile_is_the_mean_at_the_best_posterior(name, point, dtype):
    s = setting(name, dtype)
    profile = elbo_profile(s.model, moments(s.x, family=s.family), expand_at=point)
    q = affine_posterior(s.model, s.x, expand_at=point)
    assert q.covariance.shape == (1, UNITS, UNITS)
    rtol = RTOL[str(dtype)]

    def value(q):
        return elbo_quadratic(s.model, s.x, q, expand_at=point).mean()

    np.testing.assert_allclose(profile, value(q), rtol=10 * rtol)
    for worse in (s.q, Posterior(q.mean + 0.1, q.covariance), Posterior(q.mean, 1.2 * q.covariance)):
        assert value(worse) < profile


@pytest.mark.any_precision
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e5])
def test_the_profile_beside_a_column_in_other_units(scale):
    """In float32: what a unit leaves of an eigenvalue of 10^8 used to be 7 nats off."""
    x = (np.random.default_rng(0).normal(size=(200, 6)) * [scale, 1, 1, 1, 1, 1]).astype(np.float32)
    data = moments(x, family=Gaussian())
    best = fit(data, Gaussian(), 2)
    np.testing.assert_allclose(elbo_profile(best, data), best.elbo_taylor, rtol=1e-5)


@pytest.mark.any_precision
def test_the_profile_of_other_moments(dtype):
    """Covariates, weights; and of working residuals it is what ``fit`` maximises."""
    s = setting("poisson", dtype, fields=("covariates", "weight"))
    q = affine_posterior(s.model, s.rows, expand_at="null")
    rows = elbo_quadratic(s.model, s.rows, q, expand_at="null")
    profile = elbo_profile(s.model, moments(s.rows, family=s.family), expand_at="null")
    np.testing.assert_allclose(profile, np.average(rows, weights=s.fields["weight"]), rtol=1e-12)
    assert abs(float(profile - jnp.mean(rows))) > 1e-3
    for name in ("gaussian", "bernoulli_tanh"):
        s = setting(name, dtype, fields=("offset", "covariates"))
        data = moments(s.rows, family=s.family)
        best = fit(data, s.family, UNITS, beta=0.7, dispersion=0.8)
        np.testing.assert_allclose(elbo_profile(best, data), best.elbo_taylor, rtol=1e-12)
        assert float(elbo_profile(s.model, data)) < float(best.elbo_taylor) - 1e-3


# Bounds ----------------------------------------------------------------------------------------------------

# Each row sums some ten terms of at most a few times the value's own size; after rounding the two sides may cross
# by that many units of it.
UNITS_OF_ROUNDING = 64


def rounding(dtype, *values):
    return UNITS_OF_ROUNDING * np.finfo(dtype).eps * (1 + sum(np.abs(np.asarray(v)) for v in values))


@given(
    seed=SEEDS,
    name=st.sampled_from(["bernoulli", "bernoulli_grey", "bernoulli_tanh", "binomial", "binomial_columns"]),
    size=st.sampled_from([1e-3, 0.1, 1.0, 5.0]),
    beta=st.sampled_from([0.01, 1.0, 10.0]),
    fields=st.sampled_from([(), ("offset", "missing")]),
)
def test_quadratic_at_zero_is_below_the_exact_elbo(seed, name, size, beta, fields, dtype):
    s = setting(name, dtype, seed, size=size, beta=beta, phi=1.0, fields=fields)
    exact = np.asarray(elbo_exact(s.model, s.rows, s.q))
    bound = np.asarray(elbo_quadratic(s.model, s.rows, s.q))
    assert np.all(bound <= exact + rounding(dtype, exact, bound, beta * kl_divergence(s.q)))


@pytest.mark.any_precision
def test_elsewhere_the_quadratic_is_no_bound(dtype):
    """At eta0 = 3 the curvature is not the largest: the expansion overshoots far from it."""
    s = setting("bernoulli", dtype, size=3.0, beta=1.0, phi=1.0)
    assert np.any(elbo_quadratic(s.model, s.x, s.q, expand_at=3.0) > elbo_exact(s.model, s.x, s.q) + 1e-2)
    s = setting("poisson", dtype, beta=1.0, phi=1.0)
    assert np.any(elbo_quadratic(s.model, s.x, s.q) > elbo_exact(s.model, s.x, s.q) + 1e-2)


@given(seed=SEEDS, size=st.sampled_from([0.1, 1.0, 5.0]), beta=st.sampled_from([0.1, 1.0, 10.0]))
def test_quadratic_is_exact_for_gaussian(seed, size, beta, dtype):
    s = setting("gaussian", dtype, seed, size=size, beta=beta)
    exact = elbo_exact(s.model, s.x, s.q)
    rtol = 1e-12 if dtype == "float64" else 1e-5
    for point in ("zero", "null", 2.0):
        got = np.asarray(elbo_quadratic(s.model, s.x, s.q, expand_at=point))
        size_of_terms = np.abs(exact) + beta * np.asarray(kl_divergence(s.q))
        assert np.all(np.abs(got - exact) <= rtol * size_of_terms)


@given(
    seed=SEEDS,
    name=st.sampled_from(["gaussian", "bernoulli_tanh", "binomial_columns", "poisson", "gamma", "mixed"]),
    point=st.sampled_from(["zero", "null", "array"]),
    optimal=st.booleans(),
)
def test_the_expected_remainder_brackets_the_exact_elbo(seed, name, point, optimal, dtype):
    s = setting(name, dtype, seed, size=0.5, beta=1.0)
    at = jnp.asarray([0.3, -0.2, 0.1, 0.0], dtype) if point == "array" else point
    best = fit(s.x, s.family, UNITS, dispersion=0.8, expand_at=at)
    model, q = (best.model, best_of_fit(best, s.x)) if optimal else (s.model, s.q)
    mean, variance = predictor_moments(model.decoder, as_rows(s.x), q)
    lower, upper = expected_remainder_bounds(s.family, mean, variance, best.expansion_point, x=s.x, dispersion=0.8)
    quadratic = np.asarray(elbo_quadratic(model, s.x, q, expand_at=at))
    exact = np.asarray(elbo_exact(model, s.x, q))
    slack = rounding(dtype, exact, quadratic, kl_divergence(q), np.square(s.x / 0.8).sum(axis=1))
    low, high = quadratic + lower.sum(axis=-1), quadratic + upper.sum(axis=-1)
    assert np.all(low <= exact + slack)
    assert np.all(exact <= high + slack)
    if name != "gaussian":
        assert np.all(high - low > 0)  # without the remainder the quadratic is another number
        assert np.abs(quadratic - exact).max() > 1e-4


# No latent unit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["binomial_columns", "poisson"]))
def test_without_a_latent_unit_it_is_the_log_likelihood(name, dtype):
    s = setting(name, dtype, fields=("offset", "covariates", "missing"))
    decoder = Affine(np.zeros((COLUMNS, 0), dtype), s.model.intercept, s.model.coefficients)
    model = AffineModel(decoder, s.objective)
    q = affine_posterior(model, s.rows)
    assert q.mean.shape == (len(s.x), 0)
    p, d = s.problem, dense.decoder(decoder.loadings, decoder.intercept, decoder.coefficients)
    eta = d.intercept + p.covariates @ d.coefficients + p.offset
    expected = np.where(p.missing, 0.0, p.family.log_prob(p.x, eta, 0.8)).sum(axis=1)
    np.testing.assert_allclose(elbo_exact(model, s.rows, q), expected, rtol=RTOL[str(dtype)])
    assert np.all(elbo_quadratic(model, s.rows, q) != elbo_exact(model, s.rows, q))
