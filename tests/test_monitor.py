"""An evaluation against the core's ELBOs on all rows at once, and the reference line against Corollary 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glmvae import elbo_exact, expected_remainder_bounds, fit, initializers, kl_divergence, monitor, nets, posterior
from glmvae.families import Bernoulli, CustomFamily, Gaussian, Poisson

COLUMNS, LATENT = 5, 2
# Sums over 1203 rows in another order.
ROUNDING = {"float32": 1e-5, "float64": 1e-12}


def counts(dtype, rows=1203):  # two full blocks and a part of one
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, COLUMNS))
    return jnp.asarray(rng.poisson(np.exp(0.4 * eta)), dtype)


@pytest.fixture(scope="module", params=["canonical", pytest.param("deep", marks=pytest.mark.float64)])
def started(request):
    x = counts(jnp.result_type(float))
    optimum = fit(x, Poisson(), LATENT)
    key = jax.random.key(0)
    if request.param == "canonical":
        vae = nets.canonical(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    else:
        vae = nets.deep(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,), decoder_widths=(8,))
    return initializers.pass_through(key, vae, optimum), optimum, x


def test_an_evaluation_is_that_of_all_rows_at_once(started, dtype):
    vae, optimum, x = started
    at = monitor.evaluate(jax.random.key(1), vae, x, test=x[:7], num_samples=50, step=3)
    expected = elbo_exact(optimum.loadings, optimum.intercept, x, posterior(optimum, x), Poisson())
    if vae.affine_decoder:
        tolerance = ROUNDING[str(dtype)] * abs(float(expected.mean()))
        assert float(at.train_error) == float(at.test_error) == 0
    else:
        tolerance = 5 * float(at.train_error)
        assert 0 < float(at.train_error) < float(at.test_error)
    assert abs(float(at.train_elbo - expected.mean())) <= tolerance
    # rows counted twice, as they would be were the last block not weighted, show
    expected = np.asarray(expected)
    twice = np.concatenate([expected[:1000], expected[703:]]).mean()
    assert abs(float(twice - expected.mean())) > 10 * ROUNDING[str(dtype)]
    test_gap = abs(float(at.test_elbo - expected[:7].mean()))
    assert test_gap <= (ROUNDING[str(dtype)] * 10 if vae.affine_decoder else 5 * float(at.test_error))
    q = vae.encoder(x)
    np.testing.assert_allclose(at.kl.sum(), kl_divergence(q).mean(), rtol=ROUNDING[str(dtype)])
    np.testing.assert_allclose(at.activity, np.var(np.asarray(q.mean), axis=0), rtol=10 * ROUNDING[str(dtype)])
    assert int(at.active_units) == 2
    assert int(at.step) == 3
    assert at.train_elbo.dtype == dtype


@pytest.mark.any_precision
def test_a_pruned_unit_is_not_active(dtype):
    x = counts(dtype)
    optimum = fit(x, Poisson(), LATENT, beta=float(fit(x, Poisson(), LATENT).eigenvalues[1]) * 1.01)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    at = monitor.evaluate(jax.random.key(1), initializers.pass_through(jax.random.key(0), vae, optimum), x)
    assert int(at.active_units) == 1
    assert float(at.kl[1]) == 0
    assert jnp.isnan(at.test_elbo)


def test_beta_and_dispersion_enter(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, COLUMNS)), dtype)
    optimum = fit(x, Gaussian(), LATENT, beta=0.1, dispersion=0.5)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Gaussian(), encoder_widths=(8,))
    vae = initializers.pass_through(jax.random.key(0), vae, optimum)
    at = monitor.evaluate(jax.random.key(1), vae, x, beta=0.1, dispersion=0.5)
    np.testing.assert_allclose(at.train_elbo, optimum.elbo_taylor, rtol=ROUNDING[str(dtype)])
    for wrong in ({"beta": 1.0, "dispersion": 0.5}, {"beta": 0.1, "dispersion": 1.0}, {"beta": 0.0, "dispersion": 0.5}):
        off = monitor.evaluate(jax.random.key(1), vae, x, **wrong)
        assert abs(float(off.train_elbo - optimum.elbo_taylor)) > 0.01


@pytest.mark.parametrize(
    "family", [Poisson(), *(pytest.param(f, marks=pytest.mark.float64) for f in (Bernoulli(), Gaussian()))], ids=repr
)
def test_the_bracket_holds_the_exact_elbo_of_the_optimum(family, dtype):
    x = jnp.minimum(counts(dtype), 1.0) if isinstance(family, Bernoulli) else counts(dtype)
    optimum = fit(x, family, LATENT, dispersion=1.0)
    line = monitor.reference(optimum, x, family)
    q = posterior(optimum, x)
    exact = elbo_exact(optimum.loadings, optimum.intercept, x, q, family).mean()
    slack = ROUNDING[str(dtype)] * 10
    np.testing.assert_allclose(line.elbo_exact, exact, rtol=slack)
    np.testing.assert_allclose(line.elbo_taylor, optimum.elbo_taylor, rtol=slack)
    assert line.lower - slack <= exact <= line.upper + slack
    mean = q.mean @ optimum.loadings.T + optimum.intercept
    variance = jnp.diagonal(optimum.loadings @ optimum.covariance @ optimum.loadings.T)
    lower, upper = expected_remainder_bounds(family, mean, variance)
    np.testing.assert_allclose(line.lower, optimum.elbo_taylor + lower.sum(1).mean(), rtol=slack)
    np.testing.assert_allclose(line.upper, optimum.elbo_taylor + upper.sum(1).mean(), rtol=slack)
    if isinstance(family, Gaussian):
        assert float(line.upper) == float(line.lower)
    else:
        assert not float(optimum.elbo_taylor) + 2 * slack >= exact >= float(optimum.elbo_taylor) - 2 * slack


@pytest.mark.any_precision
def test_a_family_without_remainder_bounds_has_no_bracket(dtype):
    x = counts(dtype)
    poisson = CustomFamily(jnp.exp)
    line = monitor.reference(fit(x, poisson, LATENT, dispersion=1.0), x, poisson)
    assert jnp.isnan(line.lower)
    assert jnp.isnan(line.upper)
    assert jnp.isfinite(line.elbo_exact)


@pytest.mark.any_precision
def test_bad_arguments_are_named(started):
    vae, optimum, x = started
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="x: expected 5 columns"):
        monitor.evaluate(key, vae, x[:, :3])
    with pytest.raises(ValueError, match="test: expected values in the support"):
        monitor.evaluate(key, vae, x, test=-x)
    with pytest.raises(ValueError, match="beta: expected a finite number of at least 0"):
        monitor.evaluate(key, vae, x, beta=-1.0)
    with pytest.raises(ValueError, match="dispersion: expected a positive"):
        monitor.evaluate(key, vae, x, dispersion=0.0)
    with pytest.raises(ValueError, match="x: expected 5 columns"):
        monitor.reference(optimum, x[:, :3], Poisson())
    deep = nets.deep(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,), decoder_widths=(8,))
    with pytest.raises(ValueError, match="num_samples: expected an integer of at least 1"):
        monitor.evaluate(key, deep, x, num_samples=0)
