"""The marginal likelihood: exact where it can be, within its standard error elsewhere, and honest about it."""

from __future__ import annotations

import warnings

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from tables import all_refused

from glmvae import Affine, AffineModel, Objective, Posterior, Rows, best_posterior, elbo_exact
from glmvae.families import Bernoulli, Gaussian, Mixed, Poisson
from glmvae.likelihood import effective_sample_size, log_likelihood

N, D = 12, 4
KEY = jax.random.key(3)
#: A log-density of a dozen nats, in the precision of the suite.
ROUNDING = {"float64": 1e-11, "float32": 2e-5}


def decoder(units, dtype, covariates=0):
    rng = np.random.default_rng(units)
    coefficients = rng.normal(size=(covariates, D)).astype(dtype) if covariates else None
    return Affine(rng.normal(size=(D, units)).astype(dtype), rng.normal(size=D).astype(dtype), coefficients)


def counts(dtype, seed=0):
    return np.random.default_rng(seed).poisson(1.5, size=(N, D)).astype(dtype)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_gaussian_columns_are_exact_whatever_beta(beta, dtype):
    rng = np.random.default_rng(0)
    x, offset, c = (rng.normal(size=s).astype(dtype) for s in ((N, D), (N,), (N, 1)))
    missing = rng.random((N, D)) < 0.3
    missing[:, 0] = False
    phi = np.array([0.5, 1.0, 2.0, 0.25], dtype)
    model = AffineModel(decoder(2, dtype, covariates=1), Objective(Gaussian(), beta, phi))
    value, error = log_likelihood(KEY, model, Rows(x, offset=offset, covariates=c, missing=missing))
    mean = np.asarray(model.intercept, float) + offset[:, None] + c @ np.asarray(model.coefficients)
    covariance = np.asarray(model.loadings, float) @ np.asarray(model.loadings, float).T + np.diag(phi)
    for i in range(N):
        seen = ~missing[i]
        density = multivariate_normal(mean[i, seen], covariance[np.ix_(seen, seen)])
        truth = density.logpdf(x[i, seen])
        assert abs(float(value[i]) - truth) < ROUNDING[dtype.name] * (1 + abs(truth))
    np.testing.assert_array_equal(error, 0)
    if beta != 1:  # its own beta-ELBO is another number
        rows = Rows(x, offset=offset, covariates=c, missing=missing)
        assert np.min(value - elbo_exact(model, rows, best_posterior(model, rows))) > 0.1


CASES = {
    "poisson": (Poisson(), dense.Poisson(), {}),
    "bernoulli": (Bernoulli(), dense.Binomial(), {"missing": np.random.default_rng(1).random((N, D)) < 0.3}),
    "with an offset": (Poisson(), dense.Poisson(), {"offset": np.linspace(-1, 1, N)}),
}


@pytest.mark.float64
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("units", [1, 2])
def test_within_its_error_of_quadrature(name, units, dtype):
    family, reference, fields = CASES[name]
    x = counts(dtype) if family == Poisson() else (counts(dtype) > 1).astype(dtype)
    affine = decoder(units, dtype)
    model = AffineModel(Affine(2.5 * affine.loadings, affine.intercept), Objective(family, beta=2.0))
    value, error = log_likelihood(KEY, model, Rows(x, **fields), num_samples=4000)
    p = dense.problem(x, reference, **fields)
    truth = quadrature(p, dense.decoder(model.loadings, model.intercept))
    assert np.all(np.abs(value - truth) < 5 * error + 1e-9)
    assert np.all(error < 0.1)
    # Were it only the ELBO, this would be seen
    plain = model.with_beta(1.0)
    elbo = elbo_exact(plain, Rows(x, **fields), best_posterior(plain, Rows(x, **fields)))
    assert np.sum(truth - elbo) > 5 * np.sqrt(np.sum(error**2))


def quadrature(p, d):
    """log p(x) by the trapezoid rule in every latent dimension."""
    if d.loadings.shape[1] == 1:
        return dense.log_likelihood(p, d)
    grid = np.linspace(-7, 7, 141)
    step, logs = grid[1] - grid[0], []
    for first in grid:
        z = np.stack([np.full_like(grid, first), grid], axis=1)
        eta = d.intercept + p.offset[:, None] + z @ d.loadings.T
        log_p = np.where(p.missing[:, None], 0.0, p.family.log_prob(p.x[:, None], eta, p.phi)).sum(axis=-1)
        logs.append(log_p - 0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi) + 2 * np.log(step))
    return logsumexp(np.concatenate(logs, axis=1), axis=1)


@pytest.mark.float64
def test_it_rises_with_the_number_of_draws_from_the_elbo_on(dtype):
    """Of many rows that are one row the mean is an expectation: Burda's bound, the ELBO at one draw."""
    row = counts(dtype)[:1]
    x, model = np.repeat(row, 2000, axis=0), AffineModel(decoder(1, dtype), Poisson())
    q = Posterior(jnp.zeros((2000, 1)), 0.5 * jnp.eye(1)[None])  # a poor one, so that there is a way to go
    reference = dense.decoder(model.loadings, model.intercept)
    truth = float(dense.log_likelihood(dense.problem(row, dense.Poisson()), reference)[0])
    means, errors = [], []
    for num_samples in (1, 4, 32):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few draws are what this is about
            value, error = log_likelihood(KEY, model, x, num_samples=num_samples, posterior=q)
        means.append(float(np.mean(value)))
        errors.append(float(np.std(value)) / 2000**0.5)
    assert np.isnan(log_likelihood(KEY, model, row, num_samples=1)[1]).all()
    assert abs(means[0] - float(elbo_exact(model, x, q)[0])) < 5 * errors[0]
    assert np.all(np.diff(means) > 5 * np.hypot(errors[1:], errors[:-1]))
    assert means[-1] < truth + 5 * errors[-1]
    assert truth - means[0] > 0.3
    # The standard error is the spread of the values, as far as draws are many
    assert abs(float(np.mean(error)) / float(np.std(value)) - 1) < 0.15


def test_any_decoder_draws_as_an_affine_one_does(dtype):
    x, affine = counts(dtype), decoder(2, dtype)
    offset = np.linspace(-1, 1, N).astype(dtype)
    rows, model = Rows(x, offset=offset), AffineModel(affine, Poisson())
    q = best_posterior(model, rows)
    value, error = log_likelihood(KEY, model, rows, num_samples=50, posterior=q)
    for f in (lambda z: affine.loadings @ z + affine.intercept, jax.tree_util.Partial(_affine, affine)):
        found = log_likelihood(KEY, f, rows, objective=Objective(Poisson(), beta=3.0), posterior=q, num_samples=50)
        for a, b in zip(found, (value, error), strict=True):
            np.testing.assert_allclose(a, b, rtol=100 * ROUNDING[dtype.name], atol=ROUNDING[dtype.name])
    bent = log_likelihood(KEY, lambda z: affine(jnp.tanh(z)), rows, objective=Poisson(), posterior=q, num_samples=50)[0]
    assert np.max(np.abs(bent - value)) > 0.1


def _affine(affine, z):
    return affine.loadings @ z + affine.intercept


def test_a_row_is_what_it_is_beside_any_others(dtype):
    x, model = counts(dtype), AffineModel(decoder(2, dtype), Poisson())
    q = best_posterior(model, x)
    first = Posterior(q.mean[:3], q.covariance[:3])
    whole = log_likelihood(KEY, model, x, num_samples=50, posterior=q)
    weighted = Rows(x[:3], weight=np.array([3.0, 1.0, 2.0], dtype))
    part = log_likelihood(KEY, model, weighted, num_samples=50, posterior=first)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[:3], b, rtol=100 * ROUNDING[dtype.name], atol=ROUNDING[dtype.name])
    other = log_likelihood(jax.random.key(4), model, x, num_samples=50, posterior=q)
    assert not np.array_equal(whole[0], other[0])
    one = log_likelihood(KEY, model, x[:1], num_samples=50, posterior=jax.tree.map(lambda a: a[:1], q))
    np.testing.assert_allclose(one[0], whole[0][:1], rtol=ROUNDING[dtype.name])


def test_without_a_latent_unit_nothing_is_left_to_chance(dtype):
    x = counts(dtype)
    for units in (0, 2):
        model = AffineModel(Affine(np.zeros((D, units), dtype), decoder(1, dtype).intercept), Poisson())
        value, error = log_likelihood(KEY, model, x, num_samples=30)
        truth = np.sum(model.family.log_prob(x, model.intercept[None]), axis=1)
        np.testing.assert_allclose(value, truth, rtol=ROUNDING[dtype.name])
        np.testing.assert_allclose(error, 0, atol=1e-3)
        np.testing.assert_allclose(effective_sample_size(KEY, model, x, num_samples=30), 30, rtol=1e-4)


def test_mixed_columns_of_gaussian_ones_alone_are_exact(dtype):
    x, affine = counts(dtype), decoder(2, dtype)
    mixed = Mixed([(Gaussian(), [0, 2]), (Gaussian(), [1, 3])])
    exact = log_likelihood(KEY, AffineModel(affine, Objective(mixed, dispersion=0.5)), x)
    plain = log_likelihood(KEY, AffineModel(affine, Objective(Gaussian(), dispersion=0.5)), x)
    np.testing.assert_allclose(exact[0], plain[0], rtol=ROUNDING[dtype.name])
    np.testing.assert_array_equal(exact[1], 0)
    other = Mixed([(Gaussian(), [0, 2]), (Poisson(), [1, 3])])
    assert np.all(log_likelihood(KEY, AffineModel(affine, Objective(other, dispersion=0.5)), x, num_samples=50)[1] > 0)


def test_few_draws_with_all_the_weight_are_told(dtype):
    x, model = counts(dtype), AffineModel(decoder(2, dtype), Poisson())
    far = Posterior(jnp.full((N, 2), 3.0, dtype), jnp.asarray(0.01 * np.eye(2)[None], dtype))
    size = effective_sample_size(KEY, model, x, num_samples=100, posterior=far)
    assert np.min(size) < 10 < np.min(effective_sample_size(KEY, model, x, num_samples=100))
    assert np.all((size >= 1) & (size <= 100))
    with pytest.warns(UserWarning, match=r"rest on fewer than 10 of 100 draws \(row"):
        value, error = log_likelihood(KEY, model, x, num_samples=100, posterior=far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of 10 draws none can rest on more
        log_likelihood(KEY, model, x, num_samples=10)
    weights = 1 / (1 + 99 * error.astype(float) ** 2)  # the delta method read backwards
    np.testing.assert_allclose(100 * weights, size, rtol=1e-3)
    assert np.all(np.isfinite(value))


def test_it_passes_through_jit(dtype):
    x, model = counts(dtype), AffineModel(decoder(2, dtype), Poisson())
    q = best_posterior(model, x)
    value, error = jax.jit(lambda m, x: log_likelihood(KEY, m, x, num_samples=50, posterior=q))(model, x)
    expected = log_likelihood(KEY, model, x, num_samples=50, posterior=q)
    np.testing.assert_allclose(value, expected[0], rtol=100 * ROUNDING[dtype.name])
    np.testing.assert_allclose(error, expected[1], rtol=1e-2, atol=1e-6)


@pytest.mark.any_precision
def test_arguments_that_do_not_fit(dtype):
    x, model = counts(dtype), AffineModel(decoder(2, dtype), Poisson())
    q = Posterior(jnp.zeros((N, 2)), jnp.eye(2)[None])
    all_refused(
        [
            (lambda: log_likelihood(0, model, x), TypeError, "key: expected one key"),
            (lambda: log_likelihood(KEY, None, x), TypeError, "model: expected an AffineModel"),
            (lambda: log_likelihood(KEY, lambda z: z, x), TypeError, "objective: a decoder that is no affine model"),
            (lambda: log_likelihood(KEY, lambda z: z, x, objective=Poisson()), TypeError, "posterior: a decoder"),
            (lambda: log_likelihood(KEY, model, x, objective=Poisson(), posterior=q), TypeError, "pass its .decoder"),
            (lambda: log_likelihood(KEY, model, x, num_samples=0), ValueError, "num_samples: expected an integer"),
            (lambda: log_likelihood(KEY, model, x, num_samples=1.5), TypeError, "num_samples: expected an integer"),
            (lambda: log_likelihood(KEY, model, x[:, :2]), ValueError, "x: expected 4 columns"),
            (lambda: log_likelihood(KEY, model, -x - 1), ValueError, "x: expected values in the support"),
            (lambda: log_likelihood(KEY, model, x[:3], posterior=q), ValueError, "posterior"),
            (lambda: effective_sample_size(KEY, model, x, posterior=q.mean), TypeError, "posterior: expected"),
        ]
    )
