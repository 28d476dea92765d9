"""softplus and its Gaussian expectations against mpmath, at 25 digits and more."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from glmvae.families.softplus_calculus import _RULES, expected_excess, sigmoid, softplus_derivative

# The claim of the documentation; the rule reaches 1e-11, and the rest is room for other machines' exp.
RELATIVE_64 = 1e-10
# Single precision: r is about e^(v/2 - |m|) or a Gaussian density e^-(m/sd)^2/2, and an exponent E rounds by E eps.
# The largest here is (30 / 1.5)^2 / 2 = 200, where a standard deviation just leaves the first rule: 200 eps = 2.4e-5.
RELATIVE_32 = 3e-5
# Below it the sum is peaked where E is small.
RELATIVE_32_NARROW = 2e-6
# A handful of operations, one polynomial.
FEW_ROUNDINGS = 16

# Exactly representable in float32, so that both precisions are held against one reference.
MEANS = (0.0, 0.5, 3.0, 12.0, 22.0, 30.0)
# Both sides of either precision's change of rule (1.5 and 2.25) and both ends.
DEVIATIONS = (2.0**-13, 0.125, 0.5, 1.0, 1.4375, 1.5625, 2.1875, 2.3125, 5.0, 10.0)


def expected_softplus(mean, variance):
    return jnp.maximum(mean, 0.0) + expected_excess(0, mean, variance)


def expected_sigmoid(mean, variance):
    return jnp.heaviside(mean, 0.5) + expected_excess(1, mean, variance)


def tolerance(dtype):
    return RELATIVE_64 if dtype == jnp.float64 else RELATIVE_32


@functools.cache
def excess(mean, deviation):
    """E r, E r' and E r'' at -|mean| by a trapezoid rule, 20 digits of 25."""
    with mp.workdps(25):
        m, s = mp.mpf(mean), mp.mpf(deviation)
        step = mp.mpf(1) / (3 * max(s, 1))
        peak = min(s, m / s)
        totals = [mp.mpf(0)] * 3
        for k in range(-int(10 / step), int(10 / step) + 1):
            z = peak + k * step
            e = mp.exp(s * z - m)
            weight = mp.exp(-(z**2) / 2)
            terms = (mp.log1p(e), e / (1 + e), e / (1 + e) ** 2)
            totals = [t + weight * term for t, term in zip(totals, terms, strict=True)]
        return [t * step / mp.sqrt(2 * mp.pi) for t in totals]


def relative_error(value, exact):
    return float(abs((mp.mpf(float(value)) - exact) / exact)) if exact else abs(float(value))


def test_the_reference_agrees_with_adaptive_quadrature():
    with mp.workdps(30):
        f = lambda z: mp.log1p(mp.exp(2 * z - 3)) * mp.npdf(z)  # noqa: E731
        assert abs(excess(3.0, 2.0)[0] - mp.quad(f, [-15, -5, 0, 1.5, 5, 15])) < mp.mpf(10) ** -20


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_the_excess_is_relatively_exact(deviation, dtype):
    mean = -jnp.asarray(MEANS, dtype)
    for order in range(3):
        values = expected_excess(order, mean, jnp.asarray(deviation**2, dtype))
        assert values.dtype == dtype
        for m, value in zip(MEANS, values, strict=True):
            # sigmoid is 1/2 at 0, and so is the step it is taken from
            exact = mp.mpf(0) if order == 1 and m == 0 else excess(m, deviation)[order]
            assert relative_error(value, exact) < tolerance(dtype), (order, m)


@pytest.mark.parametrize("deviation", [0.125, 1.5625, 10.0])
def test_expectations_on_both_sides(deviation, dtype):
    variance = jnp.asarray(deviation**2, dtype)
    for m in MEANS:
        e0, e1, _ = excess(m, deviation)
        for sign in (-1.0, 1.0):
            mean = jnp.asarray(sign * m, dtype)
            soft = e0 + max(sign * m, 0.0)
            sig = mp.mpf(0.5) if m == 0 else (e1 if sign < 0 else 1 - e1)
            assert relative_error(expected_softplus(mean, variance), soft) < tolerance(dtype)
            assert relative_error(expected_sigmoid(mean, variance), sig) < tolerance(dtype)


def test_a_rule_of_fewer_nodes_would_not_pass(monkeypatch, dtype):
    # Were the integrand easy, the test above would show nothing.
    monkeypatch.setitem(_RULES, str(dtype), (10, *_RULES[str(dtype)][1:]))
    with jax.disable_jit():  # so that no compiled rule of the right length is reused
        value = expected_excess(0, jnp.asarray(-3.0, dtype), jnp.asarray(1.4375**2, dtype))
    assert relative_error(value, excess(3.0, 1.4375)[0]) > 3 * tolerance(dtype)


def test_a_dense_grid_in_single_precision():
    # The claim of RELATIVE_32 between the points above, against the float64 rule that mpmath vouches for.
    mean = -np.linspace(0, 30, 61, dtype=np.float32)[:, None]
    deviation = np.concatenate([np.geomspace(1e-4, 10, 60), np.linspace(1.45, 1.55, 11)]).astype(np.float32)
    for order in range(3):
        value = np.asarray(expected_excess(order, jnp.asarray(mean), jnp.asarray(deviation**2)))
        assert value.dtype == np.float32
        with jax.enable_x64(True):
            exact = expected_excess(order, jnp.asarray(mean, jnp.float64), jnp.asarray(deviation**2, jnp.float64))
            exact = np.asarray(exact)
        error = np.abs(value - exact) / np.where(exact == 0, 1, exact)
        assert np.max(error) < RELATIVE_32
        assert np.max(error[:, deviation <= 1.5]) < RELATIVE_32_NARROW


@pytest.mark.float64
def test_the_two_rules_meet_without_a_step():
    widest = _RULES["float64"][2]
    mean = -jnp.linspace(0.0, 30.0, 61)
    below = expected_excess(0, mean, jnp.asarray(widest**2))
    above = expected_excess(0, mean, jnp.asarray(widest**2 * (1 + 1e-15)))
    np.testing.assert_allclose(above, below, rtol=RELATIVE_64)


def test_no_spread_is_the_function_itself(dtype):
    x = jnp.asarray([-30.0, -1.0, 0.0, 2.0, 30.0], dtype)
    v = jnp.zeros((), dtype)
    rtol = FEW_ROUNDINGS * 4 * jnp.finfo(dtype).eps  # 64 (20) equal terms summed
    np.testing.assert_allclose(expected_softplus(x, v), jnp.logaddexp(x, 0.0), rtol=rtol)
    np.testing.assert_allclose(expected_sigmoid(x, v), sigmoid(x), rtol=rtol)


def test_a_very_wide_gaussian(dtype):
    for m in (0.0, 30.0):
        value = expected_softplus(jnp.asarray(-m, dtype), jnp.asarray(1e4, dtype))
        assert relative_error(value, excess(m, 100.0)[0]) < tolerance(dtype)


# Derivatives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.125, 1.0, 5.0])
def test_derivatives_are_the_next_expectations(deviation, dtype):
    # d/dm E f = E f', d/dv E f = E f'' / 2
    v = jnp.asarray(deviation**2, dtype)
    for m in (3.0, 22.0):
        mean = jnp.asarray(-m, dtype)
        e = excess(m, deviation)
        by_mean, by_variance = jax.grad(expected_softplus, argnums=(0, 1))(mean, v)
        assert by_mean.dtype == by_variance.dtype == dtype
        assert relative_error(by_mean, e[1]) < tolerance(dtype)
        assert relative_error(by_variance, e[2] / 2) < tolerance(dtype)
        assert relative_error(jax.grad(jax.grad(expected_softplus))(mean, v), e[2]) < tolerance(dtype)
        assert relative_error(jax.grad(expected_sigmoid)(mean, v), e[2]) < tolerance(dtype)


def test_derivatives_without_spread(dtype):
    # where differentiating sqrt(v) would give infinity
    zero = jnp.zeros((), dtype)
    for m in (-3.0, 0.0, 2.0):
        by_mean, by_variance = jax.grad(expected_softplus, argnums=(0, 1))(jnp.asarray(m, dtype), zero)
        p = 1 / (1 + np.exp(-m))
        rtol = FEW_ROUNDINGS * 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(by_mean, p, rtol=rtol)
        np.testing.assert_allclose(by_variance, p * (1 - p) / 2, rtol=rtol)


def test_differentiating_the_root_of_the_variance_would_fail(dtype):
    def naive(v):
        z = jnp.linspace(-8.0, 8.0, 33, dtype=dtype)
        return jnp.sum(jax.nn.softplus(jnp.sqrt(v) * z) * jnp.exp(-(z**2) / 2))

    assert not jnp.isfinite(jax.grad(naive)(jnp.zeros((), dtype)))


@pytest.mark.parametrize("x", [-30.0, -2.0, 0.0, 1.5, 30.0])
def test_softplus_derivatives_of_every_order(x, dtype):
    with mp.workdps(50):
        exact = mp.taylor(lambda t: mp.log1p(mp.exp(t)), x, 5)
        exact = [c * mp.factorial(k) for k, c in enumerate(exact)]
    rtol = FEW_ROUNDINGS * float(jnp.finfo(dtype).eps)
    f = functools.partial(softplus_derivative, 0)
    for order, (value, slope) in enumerate(itertools.pairwise(exact)):
        argument = jnp.asarray(x, dtype)
        for computed in (softplus_derivative(order, argument), f(argument)):
            assert computed.dtype == dtype
            # where a derivative passes through 0 it has the rounding of its argument, times its slope
            assert float(abs(mp.mpf(float(computed)) - value) / (abs(value) + abs(slope))) < rtol, order
        f = jax.grad(f)


def test_differentiating_softplus_automatically_would_fail():
    x = jnp.asarray(30.0, jnp.float32)
    assert float(jax.grad(jax.grad(jax.nn.softplus))(x)) == 0.0  # e^-30 = 9e-14
    np.testing.assert_allclose(softplus_derivative(2, x), np.exp(-30.0), rtol=FEW_ROUNDINGS * 6e-8)
