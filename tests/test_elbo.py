"""The ELBOs of affine decoders against quadrature in NumPy, each other, and their definitions."""

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import kl_divergence as dense_kl
from elbo_cases import ALL, COLUMNS, RTOL, UNITS, float32_keeps, posterior, setting
from hypothesis import given
from hypothesis import strategies as st
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Posterior,
    Rows,
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
from glmvae.families import Bernoulli
from glmvae.model import predictor_moments
from glmvae.rows import as_rows

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


# Transformations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "binomial_columns", "poisson"]))
def test_jit_vmap_and_eager_agree(name, dtype):
    s = setting(name, dtype)
    x = jnp.asarray(s.x)

    def everything(beta, x, q, model):
        model = model.with_beta(beta)
        return (
            elbo_exact(model, x, q),
            elbo_quadratic(model, x, q, expand_at="null"),
            affine_posterior(model, x),
            elbo_profile(model, moments(x, family=model.family)),
        )

    betas = jnp.asarray([0.5, 2.0], dtype)
    jitted = jax.jit(everything)
    mapped = jax.jit(jax.vmap(everything, in_axes=(0, None, None, None)))(betas, x, s.q, s.model)
    eager = [everything(beta, x, s.q, s.model) for beta in betas]
    compiled = [jitted(beta, x, s.q, s.model) for beta in betas]
    for a, b, first, second, both in zip(*map(jax.tree.leaves, (*eager, *compiled, mapped)), strict=True):
        for value, other in ((first, a), (second, b), (both[0], a), (both[1], b)):
            scale = RTOL[str(dtype)] * (1 + np.abs(other).max())
            np.testing.assert_allclose(value, other, rtol=RTOL[str(dtype)], atol=scale)


@pytest.mark.parametrize("name", float32_keeps(["bernoulli"], ["bernoulli", "gamma"]))
def test_the_gradient_in_the_decoder_and_the_posterior(name, dtype):
    s = setting(name, dtype, fields=("offset", "covariates", "missing", "weight"))
    root = np.linalg.cholesky(np.asarray(s.q.covariance, float))

    def objective(decoder, mean, root):
        q = Posterior(mean, root @ jnp.swapaxes(root, 1, 2))
        values = elbo_exact(AffineModel(decoder, s.objective), s.rows, q)
        return jnp.average(values, weights=s.rows.weight)

    got = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(s.model.decoder, s.q.mean, root.astype(dtype))
    _, expected = dense.elbo_and_gradient(s.problem, s.decoder, np.asarray(s.q.mean, float), root)
    rtol = 10 * RTOL[str(dtype)]
    parts = (got[0].loadings, got[0].intercept, got[0].coefficients, *got[1:])
    for mine, reference in zip(parts, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=rtol, atol=rtol * np.abs(reference).max())


@pytest.mark.any_precision
def test_bad_values_under_jit_are_nan(dtype):
    s = setting("bernoulli", dtype)
    x = s.x.copy()
    x[3, 1] = 7.0
    for f in (elbo_exact, elbo_quadratic):
        row = np.asarray(jax.jit(f)(s.model, x, s.q))
        assert np.isnan(row[3])
        assert np.isfinite(np.delete(row, 3)).all()
    of_beta = jax.jit(lambda beta: elbo_exact(s.model.with_beta(beta), s.x, s.q))
    assert np.isnan(of_beta(-1.0)).all()
    assert np.isfinite(of_beta(1.0)).all()
    indefinite = Posterior(s.q.mean, -jnp.asarray(s.q.covariance))
    assert np.isnan(elbo_exact(s.model, s.x, indefinite)).all()


@pytest.mark.any_precision
@pytest.mark.parametrize("name", ALL)
def test_float32_stays_float32(name, dtype):
    s = setting(name, np.float32, beta=np.float64(0.5), phi=np.float64(0.8))

    def everything(x):
        return [
            elbo_exact(s.model, x, s.q),
            elbo_quadratic(s.model, x, s.q, expand_at="null"),
            affine_posterior(s.model, x),
            elbo_profile(s.model, moments(x, family=s.family)),
        ]

    out = jax.eval_shape(everything, s.x)  # dtypes need no compilation
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {np.dtype("float32")}


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("function", [elbo_exact, elbo_quadratic])
def test_bad_input_is_named(function):
    x, q = np.zeros((2, 3)), Posterior(np.zeros((2, 1)), np.eye(1)[None])
    model = AffineModel(Affine(np.zeros((3, 1)), np.zeros(3)), Bernoulli())

    def rows(**fields):
        return lambda: function(model, Rows(x, **fields), q)

    all_refused(
        [
            (lambda: function(model, np.full((2, 3), 1.5), q), ValueError, r"x: .*1.5 at \[0, 0\]"),
            (lambda: function(model, np.full((2, 3), np.nan), q), ValueError, r"x: .*nan at \[0, 0\]"),
            (lambda: function(model, np.zeros((2, 2)), q), ValueError, "x: expected 3 columns"),
            (lambda: function(model, np.zeros(3), q), ValueError, "x: expected 2 dimensions"),
            (lambda: function(model.decoder, x, q), TypeError, "model: .*Affine"),
            (lambda: function(Bernoulli(), x, q), TypeError, "model: .*Bernoulli"),
            (lambda: function(model, x, np.zeros((2, 1))), TypeError, "posterior: "),
            (lambda: function(model, x, Posterior(np.zeros((3, 1)), q[1])), ValueError, "posterior.mean: .*2 rows"),
            (lambda: function(model, x, Posterior(np.zeros((2, 2)), q[1])), ValueError, "posterior.mean: .*1 columns"),
            (lambda: function(model, x, Posterior(q[0], np.eye(2)[None])), ValueError, r"covariance: .*\(1, 1, 1\)"),
            (lambda: function(model, x, Posterior(q[0], np.eye(1))), ValueError, r"covariance\[None\]"),
            (rows(covariates=np.ones((2, 1))), ValueError, "covariates: "),
            (rows(trials=np.ones((2, 3))), ValueError, "trials: "),
        ]
    )


@pytest.mark.any_precision
def test_a_stream_of_rows(dtype):
    s = setting("poisson", dtype)
    whole = elbo_quadratic(s.model, s.x, s.q, expand_at="null")

    def batches():
        return iter([s.x[:15], s.x[15:]])

    np.testing.assert_allclose(elbo_quadratic(s.model, batches, s.q, expand_at="null"), whole, rtol=1e-12)
    np.testing.assert_allclose(elbo_exact(s.model, batches(), s.q), elbo_exact(s.model, s.x, s.q), rtol=1e-12)
    np.testing.assert_allclose(
        affine_posterior(s.model, batches()).mean, affine_posterior(s.model, s.x).mean, rtol=1e-12
    )
    short, long = (Posterior(q, s.q.covariance[:1]) for q in (s.q.mean[:20], np.tile(s.q.mean, (2, 1))))
    all_refused(
        [
            (lambda: elbo_quadratic(s.model, batches(), s.q, expand_at="null"), ValueError, "several passes"),
            (lambda: elbo_exact(s.model, batches(), short), ValueError, "posterior: expected at least 40 rows"),
            (lambda: elbo_exact(s.model, batches(), long), ValueError, "posterior: expected 40 rows"),
            (lambda: jax.jit(lambda q: elbo_exact(s.model, batches(), q))(s.q), TypeError, "x: under a transformation"),
        ]
    )
