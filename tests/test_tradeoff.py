"""Rate and distortion: the curve is that of the optima, the water-filling is Gaussian's, the exact points are exact."""

from __future__ import annotations

import dense_reference as dense
import jax
import numpy as np
import pytest
from tables import all_refused

from glmvae import Rows, elbo_exact, fit, kl_divergence, moments, posterior, refine
from glmvae.families import Bernoulli, Gaussian, Poisson
from glmvae.tradeoff import rate_distortion

N, D, K = 60, 5, 2
BETAS = [0.25, 0.5, 1.0, 2.0, 8.0]
RELATIVE = {"float64": 1e-10, "float32": 1e-4}


def table(dtype, name):
    return dense.draw(name, rows=N, columns=D).astype(dtype)


@pytest.mark.parametrize("dispersion", [None, 0.7])
def test_gaussian_water_filling_by_hand(dispersion, dtype):
    x = table(dtype, "gaussian")
    curve = rate_distortion(x, Gaussian(), K, BETAS, dispersion=dispersion)
    values = np.linalg.eigvalsh(np.cov(x.T.astype(float), bias=True))[::-1]
    for i, beta in enumerate(BETAS):
        phi = dispersion or float(fit(x, Gaussian(), K, beta=beta).dispersion)
        whitened = values / phi
        active = whitened[:K] > beta
        rate = 0.5 * np.sum(np.log(whitened[:K][active] / beta))
        water = np.sum(np.minimum(whitened[:K], beta)) + np.sum(whitened[K:])
        distortion = 0.5 * (water + D * np.log(2 * np.pi * phi))
        np.testing.assert_allclose(curve.rate[i], rate, rtol=RELATIVE[dtype.name], atol=RELATIVE[dtype.name])
        np.testing.assert_allclose(curve.distortion[i], distortion, rtol=RELATIVE[dtype.name])
        assert int(curve.active_units[i]) == np.sum(active)
    assert np.all(np.diff(curve.rate) <= 0)
    assert np.all(np.diff(curve.distortion) >= 0)
    assert float(curve.rate[0]) > 0.5
    assert len(set(np.asarray(curve.active_units).tolist())) > 1


@pytest.mark.parametrize(("family", "name", "at"), [(Bernoulli(), "bernoulli", "zero"), (Poisson(), "poisson", "null")])
def test_the_curve_is_that_of_the_optima(family, name, at, dtype):
    data = moments(table(dtype, name), family=family)
    curve = rate_distortion(data, family, K, BETAS, expand_at=at)
    for i, beta in enumerate(BETAS):
        optimum = fit(data, family, K, beta=beta, expand_at=at)
        value = -curve.distortion[i] - beta * curve.rate[i]
        np.testing.assert_allclose(value, optimum.elbo_taylor, rtol=RELATIVE[dtype.name])
    assert curve.exact is None


@pytest.mark.float64
@pytest.mark.parametrize(("family", "name"), [(Bernoulli(), "bernoulli"), (Gaussian(), "gaussian")])
def test_the_slope_is_minus_beta(family, name, dtype):
    """Also where the dispersion moves with beta: it is part of what is maximised."""
    data = moments(table(dtype, name), family=family)
    fine = np.linspace(0.3, 0.8, 21)
    curve = rate_distortion(data, family, K, fine)
    slope = np.diff(curve.distortion) / np.diff(curve.rate)
    np.testing.assert_allclose(slope, -0.5 * (fine[1:] + fine[:-1]), rtol=1e-3)
    # The rate of another number of units is no partner of this distortion
    other = rate_distortion(data, family, 1, fine)
    assert np.max(np.abs(np.diff(curve.distortion) / np.diff(other.rate) / slope - 1)) > 0.1


def test_exact_points(dtype):
    """Gaussian optima lie on the curve; a refined one is its exact ELBO taken apart; weights count."""
    x, weight = table(dtype, "gaussian"), np.linspace(0.5, 2, N).astype(dtype)
    rows = Rows(x, weight=weight)
    optima = [fit(rows, Gaussian(), K, beta=beta) for beta in BETAS[1:3]]
    curve = rate_distortion(rows, Gaussian(), K, BETAS[1:3], optima=optima)
    np.testing.assert_array_equal(curve.exact.beta, BETAS[1:3])
    np.testing.assert_allclose(curve.exact.rate, curve.rate, rtol=1e-3)
    np.testing.assert_allclose(curve.exact.distortion, curve.distortion, rtol=1e-4)
    plain = rate_distortion(x, Gaussian(), K, BETAS[1:3], optima=optima)
    assert np.max(np.abs(plain.exact.rate - curve.exact.rate)) > 1e-3
    counts = table(dtype, "poisson")
    best = refine(fit(counts, Poisson(), K, expand_at="null", beta=1.5), counts)
    found = rate_distortion(counts, Poisson(), K, [1.5], expand_at="null", optima=[best]).exact
    np.testing.assert_allclose(-found.distortion - 1.5 * found.rate, best.elbo, rtol=2e-5)
    np.testing.assert_allclose(found.rate[0], np.mean(kl_divergence(best.posterior)), rtol=2e-2)


@pytest.mark.float64
def test_for_bernoulli_the_distortion_is_at_least_that_of_its_decoder_and_encoder(dtype):
    x = table(dtype, "bernoulli")
    curve = rate_distortion(x, Bernoulli(), K, BETAS[:4])
    gaps = []
    for i, beta in enumerate(BETAS[:4]):
        optimum = fit(x, Bernoulli(), K, beta=beta)
        q = posterior(optimum, x)
        rate = float(np.mean(kl_divergence(q)))
        np.testing.assert_allclose(curve.rate[i], rate, rtol=1e-9, atol=1e-12)  # exact, for the encoder
        gaps.append(float(curve.distortion[i]) - (-float(np.mean(elbo_exact(optimum, x, q))) - beta * rate))
    assert np.min(gaps) > -1e-12
    assert np.max(gaps) > 1e-3


def test_it_reads_well_and_passes_through_transformations(dtype):
    data = moments(table(dtype, "bernoulli"), family=Bernoulli())
    curve = rate_distortion(data, Bernoulli(), K, np.linspace(0.1, 3, 30))
    lines = repr(curve).splitlines()
    assert lines[0] == "RateDistortion: 30 betas, nats per row"
    assert lines[1].split() == ["beta", "rate", "distortion", "units"]
    assert len(lines) <= 2 + 12
    x = table(dtype, "bernoulli")
    text = repr(rate_distortion(x, Bernoulli(), K, BETAS, optima=[fit(x, Bernoulli(), K)]))
    assert text.endswith("exact, of the optimum given")
    traced = jax.jit(lambda b: rate_distortion(data, Bernoulli(), K, b))(np.asarray(BETAS, dtype))
    expected = rate_distortion(data, Bernoulli(), K, BETAS)
    np.testing.assert_allclose(traced.distortion, expected.distortion, rtol=RELATIVE[dtype.name])
    none = rate_distortion(data, Bernoulli(), 0, BETAS)
    np.testing.assert_array_equal(none.rate, 0)


@pytest.mark.any_precision
def test_arguments_that_do_not_fit(dtype):
    x = table(dtype, "bernoulli")
    optimum = fit(x, Bernoulli(), K)
    all_refused(
        [
            (lambda: rate_distortion(x, Bernoulli, K, BETAS), TypeError, "family: expected"),
            (lambda: rate_distortion(x, Bernoulli(), 6, BETAS), ValueError, "latent_dim: expected"),
            (lambda: rate_distortion(x, Bernoulli(), K, 1.0), ValueError, "betas: expected a vector"),
            (lambda: rate_distortion(x, Bernoulli(), K, [1.0, -1.0]), ValueError, "betas: expected a positive"),
            (lambda: rate_distortion(x, Bernoulli(), K, BETAS, optima=[x]), TypeError, r"optima\[0\]: expected"),
            (lambda: rate_distortion(x, Poisson(), K, BETAS, optima=[optimum]), ValueError, r"optima\[0\]: expected"),
            (
                lambda: rate_distortion(moments(x, family=Bernoulli()), Bernoulli(), K, BETAS, optima=[optimum]),
                TypeError,
                "x: the exact rate and distortion of optima need rows",
            ),
        ]
    )
