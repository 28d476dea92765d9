"""What a family can do beyond its density: the logistic form, bounds, a dispersion, the size of its rounding."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from family_cases import run

from glmvae.families import (
    Bernoulli,
    Binomial,
    CustomFamily,
    Exponential,
    Family,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
)
from glmvae.families.softplus_calculus import softplus

# A few dozen rounding units of values of order one.
RELATIVE = {"float64": 1e-12, "float32": 1e-5}

BUILT_IN = [Gaussian(), Bernoulli(), Binomial(40.0), Poisson(), Gamma(), Exponential(), NegativeBinomial(3.0)]


# Capabilities ---------------------------------------------------------------------------------------------------


def test_the_logistic_form_is_the_log_prob(dtype):
    x, eta = jnp.asarray([0.0, 1.0, 1.0], dtype), jnp.asarray([-0.5, 0.25, 2.0], dtype)

    @jax.jit
    def both(family):
        form = family.logistic_form(x)
        t = form.scale * eta
        assembled = form.slope * t - form.trials * softplus(t) + family.log_base_measure(x)
        return assembled, family.log_prob(x, eta)

    for family in (Bernoulli(activation_scale=2.0), Binomial(40.0), NegativeBinomial(3.0, activation_scale=-1.0)):
        np.testing.assert_allclose(*both(family), rtol=20 * RELATIVE[dtype.name])
        assert family.is_logistic
    assert all(f.logistic_form(x) is None and not f.is_logistic for f in (Gaussian(), Poisson(), Gamma()))


@pytest.mark.any_precision
def test_what_is_said_of_each():
    assert [f.curvature_is_constant for f in BUILT_IN] == [True, True, True, True, False, False, False]
    assert [f.remainder_depends_on_x for f in BUILT_IN] == [False, False, False, False, True, True, True]
    assert [f.is_quadratic for f in BUILT_IN] == [True, *[False] * 6]
    assert [f.estimates_dispersion for f in BUILT_IN] == [True, False, False, False, True, False, False]
    assert all(f.has_remainder for f in BUILT_IN)
    mixed = Mixed([(Gaussian(), [0]), (Binomial(None), [1])])
    assert mixed.needs_trials
    assert not any([mixed.is_quadratic, mixed.is_logistic])
    assert mixed.estimates_dispersion
    assert not Mixed([(Bernoulli(), [1]), (NegativeBinomial(2.0), [0])]).estimates_dispersion
    assert Mixed([(Gaussian(), [1]), (Gaussian(activation_scale=2.0), [0])]).is_quadratic
    assert Mixed([(Bernoulli(), [1]), (NegativeBinomial(2.0), [0])]).is_logistic


@pytest.mark.any_precision
def test_without_bounds_a_custom_family_says_what_to_give():
    family = CustomFamily(jnp.exp)
    assert not family.has_remainder
    with pytest.raises(TypeError, match=r"family: CustomFamily.*remainder=f\) with f\(step, start, x, dispersion\)"):
        family.remainder(0.5, 0.0)
    with pytest.raises(TypeError, match=r"family: CustomFamily.*expected_remainder=f\) with f\(mean, variance, start"):
        family.expected_remainder(0.5, 1.0, 0.0)

    class Bare(Family):
        pass

    with pytest.raises(TypeError, match=r"family: Bare\(\) knows no bounds.*give it remainder_of_step"):
        Bare().remainder(0.5, 0.0)
    with pytest.raises(TypeError, match="remainder: expected a function, got int"):
        CustomFamily(jnp.exp, remainder=3)
    with pytest.raises(TypeError, match="cannot estimate a dispersion"):
        Poisson().dispersion_from(jnp.ones(()))


@jax.jit
def slope_in_log_phi(family, log_phi, deviance):
    def value(log_phi):
        scale = jnp.exp(log_phi)
        return -deviance / scale + family.saturated_log_prob(jnp.ones_like(scale), scale)

    return jax.grad(value)(log_phi)


@pytest.mark.parametrize("phi", [0.01, 0.7, 30.0])
def test_the_dispersion_that_maximises_the_expected_log_prob(phi, dtype):
    for family in (Gaussian(), Gamma()):
        deviance = dtype.type(0.5 * phi)
        best = run("dispersion_from", family, deviance)
        assert best.dtype == dtype
        best = np.asarray(best)
        rate = slope_in_log_phi(family, np.log(best), deviance)
        assert rate.dtype == dtype
        assert abs(float(rate)) < 1e3 * RELATIVE[dtype.name] * float(deviance / best + 1)
        assert abs(float(slope_in_log_phi(family, np.log(dtype.type(1.5) * best), deviance))) > 0.01


# Half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_half_precision_is_computed_as_other_data_are():
    default = jnp.result_type(float)
    for half in (jnp.float16, jnp.bfloat16):
        x, eta = jnp.asarray([1.0, 3.0], half), jnp.asarray([0.5, -0.25], half)
        for family, method, values in (
            (Poisson(), "log_prob", (x, eta)),
            (NegativeBinomial(3.0), "log_prob", (x, eta)),
            (Gamma(), "expected_log_prob", (x, eta, eta**2)),
            (Poisson(), "base_statistic", (x,)),
            (Gamma(), "log_base_measure", (x, eta**2)),
            (Poisson(), "null_predictor", (eta**2 / 8,)),
        ):
            value = run(method, family, *values)
            assert value.dtype == default, method
            np.testing.assert_array_equal(value, run(method, family, *(v.astype(default) for v in values)))


# Rounding -------------------------------------------------------------------------------------------------------


def exact_log_prob(family, x, eta, phi):
    x, t, phi = (mp.mpf(float(v)) for v in (x, eta, phi))
    if isinstance(family, Gaussian):
        return -((x - t) ** 2) / phi / 2 - mp.log(2 * mp.pi * phi) / 2
    if isinstance(family, Gamma):
        k = 1 / phi
        return k * (mp.log(k * x) - t - x * mp.exp(-t)) - mp.log(x) - mp.loggamma(k)
    if isinstance(family, Poisson):
        return (x * t - mp.exp(t)) / phi - mp.loggamma(x + 1)
    if isinstance(family, NegativeBinomial):
        r = mp.mpf(float(family.size))
        choose = mp.loggamma(x + r) - mp.loggamma(r) - mp.loggamma(x + 1)
        return (x * t - (x + r) * mp.log1p(mp.exp(t))) / phi + choose
    n = mp.mpf(float(family.trials))
    choose = mp.loggamma(n + 1) - mp.loggamma(x + 1) - mp.loggamma(n - x + 1)
    return (x * t - n * mp.log1p(mp.exp(t))) / phi + (0 if isinstance(family, Bernoulli) else choose)


@jax.jit
def log_prob_and_size(family, x, eta, phi):
    return family.log_prob(x, eta, phi), family.rounding_size(x, eta, jnp.zeros_like(eta), phi)


@pytest.mark.parametrize("family", [*BUILT_IN, Binomial(1e6), NegativeBinomial(1e5)], ids=repr)
def test_rounding_is_within_16_units_of_what_log_prob_is_made_of(family, dtype):
    rng = np.random.default_rng(0)
    size = 150
    eta = rng.normal(size=size) * rng.choice([0.1, 1.0, 8.0], size=size)
    upper = np.asarray(family.support.upper)
    x = np.round(10.0 ** rng.uniform(-1, 5, size=size)) + (isinstance(family, Gamma)) if upper > 1 else rng.random(size)
    x, eta = np.minimum(x, upper).astype(dtype), eta.astype(dtype)
    phi = rng.choice([0.3, 1.0], size=size).astype(dtype)
    got, made_of = map(np.asarray, log_prob_and_size(family, x, eta, phi))
    with mp.workdps(50):
        exact = [exact_log_prob(family, *values) for values in zip(x, eta, phi, strict=True)]
        off = np.array([float(abs(mp.mpf(float(g)) - e)) for g, e in zip(got, exact, strict=True)])
    units = off / (float(jnp.finfo(dtype).eps) * np.asarray(made_of, float) + 1e-300)
    assert np.all(units <= 16), (units.max(), x[units.argmax()], eta[units.argmax()])
    assert np.max(off) > 0  # it does round
