"""The ELBOs of affine decoders as functions: under jit, vmap and grad, of streams, in float32, and of bad arguments."""

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elbo_cases import ALL, RTOL, float32_keeps, setting
from tables import all_refused, refused

from glmvae import (
    Affine,
    AffineModel,
    Posterior,
    Rows,
    affine_posterior,
    bracket,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    log_likelihood,
    moments,
)
from glmvae.families import Bernoulli, Poisson

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


@pytest.mark.any_precision
def test_a_missing_entry_that_overflows_has_no_gradient():
    """Of the loadings of its column those of the other rows alone."""
    missing = np.array([[False, True], [False, False]])
    rows = Rows(np.array([[1.0, 2.0], [3.0, 0.0]], np.float32), missing=missing)
    mean, covariance = np.array([[200.0], [0.1]], np.float32), np.full((2, 1, 1), 0.1, np.float32)
    loadings = np.array([[0.01], [1.0]], np.float32)

    def exact(loadings, kept):
        model = AffineModel(Affine(loadings, np.zeros(2, np.float32)), Poisson())
        return elbo_exact(model, rows.map(lambda a: a[kept]), Posterior(mean[kept], covariance[kept])).sum()

    def sampled(loadings, kept):
        decoder, q = Affine(loadings, np.zeros(2, np.float32)), Posterior(mean[kept], covariance[kept])
        return elbo_monte_carlo(jax.random.key(0), decoder, rows.map(lambda a: a[kept]), q, Poisson(), num_samples=3)[0]

    alone = jax.grad(exact)(loadings, slice(1, 2))
    np.testing.assert_allclose(jax.grad(exact)(loadings, slice(0, 2))[1], alone[1], rtol=1e-5)
    gradient = jax.grad(lambda loadings: sampled(loadings, slice(0, 2)).sum())(loadings)
    assert np.isfinite(gradient).all()
    assert mean[0] > np.log(np.finfo(np.float32).max)  # what overflows in the missing entry


@pytest.mark.any_precision
def test_the_mean_of_a_posterior_is_not_for_all_rows_but_a_covariance_is():
    """In memory as in a stream, which tells its rows at its end; a stream of one row has one mean."""
    s = setting("gaussian", np.float64)
    x, q = s.x, affine_posterior(s.model, s.x)
    assert q.covariance.shape[0] == 1

    def every(stream, q):
        decoder = s.model.decoder
        yield lambda: elbo_exact(s.model, stream(), q)
        yield lambda: elbo_quadratic(s.model, stream(), q)
        yield lambda: bracket(s.model, stream(), q)
        yield lambda: elbo_taylor(decoder, stream(), q, s.objective)
        yield lambda: elbo_monte_carlo(jax.random.key(0), decoder, stream(), q, s.objective, num_samples=2)
        yield lambda: log_likelihood(jax.random.key(0), decoder, stream(), posterior=q, objective=s.objective)

    one = Posterior(q.mean[:1], q.covariance)
    for good, bad in zip(
        every(lambda: iter([x[:20], x[20:]]), q), every(lambda: iter([x[:20], x[20:]]), one), strict=True
    ):
        assert jax.tree.leaves(good())[0].shape == (len(x),)
        assert not refused(bad, ValueError, f"posterior.mean: expected {len(x)} rows, as many as x has, got 1")
    for good in every(lambda: iter([x[:1]]), one):
        assert jax.tree.leaves(good())[0].shape == (1,)
