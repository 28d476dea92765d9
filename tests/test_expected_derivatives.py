"""The expected gradient and weight of log p against automatic differentiation of the expected log p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import run

from glmvae.families import Bernoulli, Binomial, CustomFamily, Gaussian, Poisson, Support

# Differences of quadratures of known accuracy; float32 has 20 nodes.
RELATIVE = {"float64": 1e-8, "float32": 2e-4}


def _log_activation(eta):
    return -jnp.exp(-eta)


def _gamma_normalizer(theta):
    return -jnp.log(-theta)


def _cubed(eta):
    return eta + eta**3 / 3


def _square(theta):
    return theta**2 / 2


FAMILIES = [
    Gaussian(),
    Gaussian(activation_scale=0.5),
    Bernoulli(),
    Binomial(5, activation_scale=2.0),
    Poisson(),
    Poisson(activation_scale=0.5),
    CustomFamily(jnp.exp, limits=Support(0.0)),
    CustomFamily(_gamma_normalizer, activation=_log_activation, limits=Support(0.0, open_lower=True)),
]


def _points(dtype):
    mean, variance = np.meshgrid([-2.0, -0.3, 0.4, 1.5], [1e-3, 0.2, 1.0])
    x = np.where(mean > 0, 1.0, 0.25)
    return (a.ravel().astype(dtype) for a in (x, mean, variance))


@jax.jit
def derivatives(family, x, mean, variance, phi):
    """The first and the second, entry by entry."""

    def value(x, m, v):
        return family.expected_log_prob(x, m, v, phi)

    first = jax.grad(value, 1)
    return jax.vmap(first)(x, mean, variance), jax.vmap(jax.grad(first, 1))(x, mean, variance)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: repr(f).partition("<")[0])
def test_they_are_the_derivatives_of_the_expected_log_prob(family, dtype):
    x, mean, variance = _points(dtype)
    phi = dtype.type(0.7)
    gradient, second = map(np.asarray, derivatives(family, x, mean, variance, phi))
    _, got_gradient, got_weight = map(np.asarray, run("expected_terms", family, x, mean, variance, phi))
    tolerance = RELATIVE[dtype.name]
    np.testing.assert_allclose(got_gradient, gradient, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(got_weight, -second, rtol=tolerance, atol=tolerance)
    assert got_gradient.dtype == got_weight.dtype == dtype
    # Control: the derivatives at the mean, without the expectation, are another thing.
    if not isinstance(family, Gaussian):
        at_mean = np.asarray(run("expected_terms", family, x, mean, np.zeros_like(variance), phi)[1])
        assert not np.allclose(at_mean, gradient, rtol=tolerance, atol=tolerance)


def test_a_curvature_that_is_not_positive_is_replaced_by_its_expectation(dtype):
    family = CustomFamily(_square, activation=_cubed)
    x, mean, variance = (np.full(1, v, dtype) for v in (30.0, 1.0, 0.01))
    _, second = derivatives(family, x, mean, variance, dtype.type(1.0))
    assert np.asarray(second)[0] > 0  # log p is convex there
    assert np.asarray(run("expected_terms", family, x, mean, variance)[2])[0] > 0


@pytest.mark.float64
@pytest.mark.parametrize("mean", [0.0, 1e-9])
def test_a_third_derivative_does_not_depend_on_its_order(mean):
    """Of the trials once and of the mean twice it is - E sigmoid'(t), at a mean of 0 too."""

    def value(n, m):
        family = Binomial(n[None])
        return family.expected_log_prob(jnp.full((1, 1), 2.0), m[None, None], jnp.full((1, 1), 0.5))[0, 0]

    z = np.linspace(-9.0, 9.0, 2001)
    mass = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    share = 1 / (1 + np.exp(-mean - 0.5**0.5 * z))
    expected = -mass @ (share * (1 - share))
    for order in ((1, 1, 0), (1, 0, 1), (0, 1, 1)):
        derivative = value
        for argument in order:
            derivative = jax.grad(derivative, argument)
        np.testing.assert_allclose(jax.jit(derivative)(jnp.asarray(5.0), jnp.asarray(mean)), expected, rtol=1e-9)
