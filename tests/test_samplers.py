"""Counts drawn by the families have the distribution they claim, from the smallest to the largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from glmvae.families import Binomial, CustomFamily, Gamma, Gaussian, NegativeBinomial, Poisson
from glmvae.families.samplers import binomial_counts, poisson_counts
from glmvae.families.trees import replaced

DRAWS, BINS = 40_000, 25
# Of chi-squared on 24 degrees of freedom at a fixed seed: exceeded once in a million.
TOO_FAR = scipy.stats.chi2(BINS - 1).isf(1e-6)


def chi_squared(draws, distribution):
    """Of the counts between the distribution's own quantiles."""
    edges = np.unique(distribution.ppf(np.arange(1, BINS) / BINS))
    expected = np.diff([0.0, *distribution.cdf(edges), 1.0]) * len(draws)
    counted = np.histogram(draws, [-np.inf, *(edges + 0.5), np.inf])[0]
    used = expected > 0
    return np.sum((counted - expected)[used] ** 2 / expected[used])


@pytest.mark.any_precision
@pytest.mark.parametrize("rate", [0.3, 40.0, 99.0, 101.0, 3e3, 1e6, 1e8])
def test_poisson_in_single_precision(rate):
    rate = np.float32(rate)
    draws = np.asarray(poisson_counts(jax.random.key(0), jnp.full(DRAWS, rate)), np.float64)
    assert np.all(draws == np.round(draws))
    assert chi_squared(draws, scipy.stats.poisson(float(rate))) < TOO_FAR
    assert abs(draws.var() / float(rate) - 1) < 5 * np.sqrt((2 + 1 / float(rate)) / DRAWS)


@pytest.mark.any_precision
def test_jaxs_own_would_not_do():
    rate = np.float32(1e8)
    draws = np.asarray(jax.random.poisson(jax.random.key(0), jnp.full(DRAWS, rate)), np.float64)
    assert chi_squared(draws, scipy.stats.poisson(1e8)) > 3 * TOO_FAR


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("trials", "p"),
    [(20, 0.3), (1000, 0.2), (1000, 0.9), (1e5, 1e-5), (1e5, 2e-4), (1e7, 0.5), (1e9, 1e-6), (1e9, 2e-8), (1e9, 1e-9)],
)
def test_binomial_in_single_precision(trials, p):
    logit = np.float32(np.log(p) - np.log1p(-p))
    draws = binomial_counts(jax.random.key(1), jnp.float32(trials), jnp.full(DRAWS, logit))
    draws = np.asarray(draws, np.float64)
    assert np.all((draws == np.round(draws)) & (draws >= 0) & (draws <= trials))
    distribution = scipy.stats.binom(int(trials), 1 / (1 + np.exp(-float(logit))))
    assert chi_squared(draws, distribution) < TOO_FAR


@pytest.mark.any_precision
def test_jaxs_own_binomial_would_not_do():
    draws = jax.random.binomial(jax.random.key(1), jnp.float32(1e9), jnp.full(DRAWS, 1e-6, jnp.float32))
    assert chi_squared(np.asarray(draws, np.float64), scipy.stats.binom(10**9, 1e-6)) > 10 * TOO_FAR


@pytest.mark.any_precision
def test_the_rounded_normal_is_off_by_what_it_says():
    # the distribution function of what is drawn, at every integer, against the exact one
    for rate, allowed in ((100.0, 3e-6), (1000.0, 9e-8)):
        sd = np.sqrt(rate - 1 / 12)
        z = np.linspace(-8, 8, 400_001)
        s, k = rate / sd**3, (rate + 1 / 120) / sd**4
        w = z + (z**2 - 1) * s / 6 + (z**3 - 3 * z) * k / 24 - (2 * z**3 - 5 * z) * s**2 / 36
        counts = np.arange(rate - 6 * sd, rate + 6 * sd).round()
        drawn = scipy.stats.norm.cdf(np.interp((counts + 0.5 - rate) / sd, w, z))
        off = np.max(np.abs(drawn - scipy.stats.poisson(rate).cdf(counts)))
        assert allowed / 3 < off < allowed


@pytest.mark.any_precision
def test_families_draw_with_them():
    key = jax.random.key(2)
    eta = jnp.full(DRAWS, 11.5, jnp.float32)
    draws = np.asarray(Poisson().sample(key, eta), np.float64)
    assert abs(draws.var() / np.exp(11.5) - 1) < 5 * np.sqrt(2 / DRAWS)
    few, many = Binomial(30.0), replaced(Binomial(2e8), few=False)
    for family, n in ((few, 30.0), (many, 2e8)):
        draws = np.asarray(family.sample(key, jnp.full(DRAWS, -3.0, jnp.float32)), np.float64)
        p = 1 / (1 + np.exp(3.0))
        assert abs(draws.mean() - n * p) < 5 * np.sqrt(n * p * (1 - p) / DRAWS) + n * p * 1e-7
    draws = np.asarray(NegativeBinomial(5.0).sample(key, jnp.full(DRAWS, 12.0, jnp.float32)), np.float64)
    mean = 5 * np.exp(12.0)
    assert abs(draws.mean() / mean - 1) < 5 * np.sqrt((1 / mean + 0.2) / DRAWS)


def _normal(key, mean, dispersion):
    return mean + jnp.sqrt(dispersion) * jax.random.normal(key, mean.shape)


@pytest.mark.any_precision
def test_every_dispersion_has_a_draw_of_its_own():
    key, phi = jax.random.key(3), np.full(3, 4.0)
    for family in (Gaussian(), Gamma(), CustomFamily(jnp.exp, sampler=_normal)):
        assert len(set(np.asarray(family.sample(key, 0.0, phi)).tolist())) == 3
        np.testing.assert_array_equal(family.sample(key, 0.0, phi), family.sample(key, np.zeros(3), 4.0))
    assert NegativeBinomial([2.0, 3.0]).sample(key, 0.0).shape == Binomial([2, 3]).sample(key, 0.0).shape == (2,)


@pytest.mark.any_precision
def test_a_rate_that_is_not_finite_has_no_draw():
    draws = Poisson().sample(jax.random.key(0), jnp.float32([np.inf, np.nan, 100.0, -np.inf, 0.0]))
    np.testing.assert_array_equal(np.isnan(draws), [True, True, True, False, False])  # e^100 overflows
    assert float(draws[3]) == 0.0
