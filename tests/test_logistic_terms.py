"""The rules behind E log p of the logistic families against mpmath, each where it is used, and their dispatch."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from glmvae.families import Bernoulli, Binomial, NegativeBinomial
from glmvae.families.logistic_expectation import Kind, logistic_terms
from glmvae.families.logistic_gap import NARROW, even_derivatives, mixture, series, trapezoid
from glmvae.families.logistic_mixture import expected_logistic, kolmogorov_rule, mills_polynomial, mills_ratio
from glmvae.families.softplus_calculus import expected_excess

MEANS = (0.0, 0.3, -1.0, 3.0, -6.0, 12.0, -20.0, 30.0)
# The mixture's error, absolute: of softplus, sigmoid and its slope.
MIXTURE = {"float64": (3e-12, 1e-11, 3e-11), "float32": (5e-7, 2e-7, 4e-7)}
# The series' and the trapezoid rule's, in rounding units, relative; the latter in float64 is exp(-36) of a residue.
SERIES = 16
TRAPEZOID = {"float64": 4000, "float32": 80}


@functools.cache
def nodes(deviation):
    """The rule of ``gaps``: weights, and 4 sinh(s z / 2)^2, whatever the mean."""
    with mp.workdps(40):
        s = mp.mpf(deviation)
        step = mp.mpf(1) / (5 * max(s, 1))
        ks = range(1, int((s + 14) / step) + 1)
        return [(step * mp.npdf(k * step), 4 * mp.sinh(s * k * step / 2) ** 2) for k in ks]


@functools.cache
def gaps(mean, deviation):
    """Jensen's gap of softplus, that of sigmoid, and E sigmoid', from E log(1 + c): 30 digits."""
    with mp.workdps(40):
        m = mp.mpf(mean)
        p, q = 1 / (1 + mp.exp(-m)), 1 / (1 + mp.exp(m))
        totals = [mp.mpf(0)] * 3
        for weight, growth in nodes(deviation):
            c = p * q * growth
            terms = (mp.log1p(c), c / (1 + c), c / (1 + c) ** 2)
            totals = [t + weight * term for t, term in zip(totals, terms, strict=True)]
        return totals[0], (q - p) * totals[1], p * q * (1 - 2 * totals[1]) + (q - p) ** 2 * totals[2]


def errors(rule, deviation, dtype, relative):
    """The largest error of each of the three."""
    mean, variance = np.asarray(MEANS, dtype), np.asarray(deviation, dtype)[()] ** 2
    found = [np.asarray(values) for values in rule(mean, variance)]
    exact = [gaps(float(m), float(np.sqrt(np.float64(variance)))) for m in mean]
    worst = []
    for i, values in enumerate(found):
        off = [
            abs(mp.mpf(float(v)) - e[i]) / (abs(e[i]) if relative and e[i] else 1)
            for v, e in zip(values, exact, strict=True)
        ]
        worst.append(float(max(off)))
    return np.array(worst)


def by_deviation(mean, variance):
    return jax.jit(trapezoid)(mean, np.sqrt(np.broadcast_to(variance, mean.shape)))


@pytest.mark.parametrize("deviation", [1e-4, 0.05, 0.22])
def test_the_series_is_relatively_exact_where_it_is_used(deviation, dtype):
    assert deviation**2 <= NARROW[dtype.name]
    off = errors(jax.jit(series), deviation, dtype, True) / float(jnp.finfo(dtype).eps)
    assert np.all(off <= SERIES), off


def test_the_series_would_not_do_for_a_wider_one(dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NARROW, dtype.name, 100.0)
        off = errors(jax.jit(lambda m, v: series(m, v)), 2.0, dtype, True) / float(jnp.finfo(dtype).eps)
    assert np.all(off > 100 * SERIES)


@pytest.mark.parametrize("deviation", [0.3, 0.8, 2.0, 5.9])
def test_the_trapezoid_rule_is_relatively_exact(deviation, dtype):
    off = errors(by_deviation, deviation, dtype, True) / float(jnp.finfo(dtype).eps)
    assert np.all(off <= TRAPEZOID[dtype.name]), off


@pytest.mark.parametrize("deviation", [1e-3, 0.3, 1.0, 6.0, 20.0])
def test_the_mixture_has_an_absolute_error(deviation, dtype):
    off = errors(jax.jit(mixture), deviation, dtype, False)
    allowed = np.array(MIXTURE[dtype.name]) * max(1.0, deviation / 4)
    assert np.all(off <= allowed), off / allowed
    # and no more than that: trials that multiply it want one of the others
    assert deviation > 1 or np.max(errors(jax.jit(mixture), deviation, dtype, True)) > 1e-4


@pytest.mark.any_precision
def test_even_derivatives_of_softplus():
    x = 0.7
    with mp.workdps(50):
        exact = mp.taylor(lambda t: mp.log1p(mp.exp(t)), x, 8)
    p = 1 / (1 + math.exp(-x))
    u = p * (1 - p)
    for k, coefficients in enumerate(even_derivatives(4), start=1):
        value = u * np.polynomial.polynomial.polyval(u, coefficients)
        np.testing.assert_allclose(value, float(exact[2 * k] * mp.factorial(2 * k)), rtol=1e-12)


@pytest.mark.any_precision
def test_mills_ratio_without_scipy():
    t = np.concatenate([np.linspace(0, 6, 61), np.geomspace(6, 1e8, 40)])
    exact = math.sqrt(math.pi / 2) * scipy.special.erfcx(t / math.sqrt(2))
    np.testing.assert_allclose([mills_ratio(v) for v in t], exact, rtol=1e-13)
    value = np.polynomial.polynomial.polyval((t - 4) / (t + 4), mills_polynomial(20)) / (t + 4)
    np.testing.assert_allclose(value, exact, rtol=1e-13)
    assert (
        np.max(np.abs(np.polynomial.polynomial.polyval((t - 4) / (t + 4), mills_polynomial(5)) / (t + 4) / exact - 1))
        > 1e-5
    )


@pytest.mark.any_precision
def test_the_gauss_rule_of_the_kolmogorov_distribution():
    scales, weights = kolmogorov_rule(16)
    # scipy.stats.kstwobign is that distribution
    moments = [scipy.stats.kstwobign.moment(k) for k in (1, 2)]
    np.testing.assert_allclose([weights @ (scales / 2) ** k for k in (0, 1, 2)], [1.0, *moments], rtol=1e-7)


# All three in their places --------------------------------------------------------------------------------------


def terms(kind, x, parameter, mean, variance):
    """(value, gradient, weight) from the exact gaps of one entry, by mpmath."""
    with mp.workdps(40):
        gap, shift, slope = gaps(float(mean), float(np.sqrt(np.float64(variance))))
        x, parameter, m = (mp.mpf(float(v)) for v in (x, parameter, mean))
        n = parameter if kind.given_trials else x + parameter
        soft = mp.log1p(mp.exp(m))
        value = x * m - n * soft - n * gap
        if not kind.few and n > 16:
            xlogx = lambda t: t * mp.log(t) if t else mp.mpf(0)  # noqa: E731
            value -= xlogx(x) + xlogx(n - x) - xlogx(n)
        return value, x - n / (1 + mp.exp(-m)) - n * shift, n * slope


@pytest.mark.parametrize(
    "kind", [Kind(True, True), Kind(True, False), Kind(False, False)], ids=["few", "trials", "size"]
)
@pytest.mark.parametrize("spread", ["narrow", "wide", "mixed"])
def test_each_entry_has_the_rule_that_is_due(kind, spread, dtype):
    x = np.asarray([0.0, 1.0, 2.0, 14.0, 300.0, 3.0], dtype)
    parameter = np.asarray([1.0, 2.0, 5.0, 40.0, 4000.0, 1e6], dtype)
    if kind.few:
        x, parameter = x[:3], parameter[:3]
    mean = np.asarray([0.5, -2.0, 0.0, -0.75, -2.5, -12.5], dtype)[: x.size]
    wide = np.asarray([4.0, 0.25, 1.0, 0.5, 0.25, 4.0], dtype)[: x.size]
    variance = {"narrow": 1e-3 * wide, "wide": wide, "mixed": np.where(np.arange(x.size) % 2 == 0, wide, 1e-3 * wide)}
    variance = variance[spread].astype(dtype)
    found = jax.jit(logistic_terms, static_argnums=0)(kind, x, parameter, mean, variance)
    found = [np.asarray(values) for values in found]
    n = np.asarray(parameter if kind.given_trials else x + parameter, float)
    eps = float(jnp.finfo(dtype).eps)
    for i in range(x.size):
        exact = terms(kind, x[i], parameter[i], mean[i], variance[i])
        for j, value in enumerate(found):
            # rounding of what it is made of; few trials, or wide and central ones, the mixture's absolute error too
            made_of = max(float(abs(e)) for e in exact[: 2 if j < 2 else 3]) * (1 + abs(float(mean[i])))
            absolute = MIXTURE[dtype.name][j] * (min(n[i], 256) if dtype == np.float32 or n[i] < 1e5 else 0)
            allowed = 64 * eps * made_of + absolute
            assert abs(float(value[i]) - float(exact[j])) <= allowed, (i, j)


@functools.cache
def terms_and_jacobian(family):
    """The family's numbers are known where it is compiled: they choose the rule."""
    x = np.asarray([0.0, 1.0, 1.0])

    def jacobian(m, v):
        ones = jnp.ones(3)
        by_m = jax.jvp(lambda m: family.expected_terms(x, m, v), (m,), (ones,))[1]
        return by_m, jax.jvp(lambda v: family.expected_terms(x, m, v), (v,), (ones,))[1]

    return jax.jit(lambda m, v: family.expected_terms(x, m, v)), jax.jit(jacobian)


@pytest.mark.float64
@pytest.mark.parametrize(
    "family", [Bernoulli(), Binomial(3.0), Binomial(50.0), NegativeBinomial(3.0), NegativeBinomial(400.0)], ids=repr
)
@pytest.mark.parametrize("variance", [0.01, 0.8])
def test_derivatives_of_the_terms(family, variance):
    mean, variance = np.asarray([-1.5, 0.0, 2.0]), np.full(3, variance)
    step = 1e-5
    call, jacobian = terms_and_jacobian(family)
    by_m, by_v = jax.tree.map(np.asarray, jacobian(mean, variance))
    for got, moved in ((by_m, (step, 0.0)), (by_v, (0.0, step))):
        ahead, behind = (call(mean + s * moved[0], variance + s * moved[1]) for s in (1, -1))
        ahead, behind = (jax.tree.map(np.asarray, side) for side in (ahead, behind))
        for g, a, b in zip(got, ahead, behind, strict=True):
            np.testing.assert_allclose(g, (a - b) / (2 * step), rtol=1e-5, atol=1e-6 * np.max(np.abs(a)))
    _, gradient, weight = map(np.asarray, call(mean, variance))
    np.testing.assert_allclose(by_m[0], gradient, rtol=1e-12)
    np.testing.assert_allclose(by_v[0], -0.5 * weight, rtol=1e-12)
    assert np.max(np.abs(by_v[0] + weight)) > 0.01  # a missing 1/2


@pytest.mark.float64
def test_derivatives_in_the_data_and_the_size():
    def value(x, size):
        family = jax.tree.unflatten(jax.tree.structure(NegativeBinomial(1.0)), [1.0, size])
        return family.expected_log_prob(x, 0.3, 0.5)

    slopes, value = jax.jit(jax.grad(value, (0, 1))), jax.jit(value)
    for x, size in ((2.0, 3.0), (40.0, 3.0)):
        step = 1e-5
        by_x, by_size = slopes(x, size)
        np.testing.assert_allclose(by_x, (value(x + step, size) - value(x - step, size)) / (2 * step), rtol=1e-6)
        np.testing.assert_allclose(by_size, (value(x, size + step) - value(x, size - step)) / (2 * step), rtol=1e-6)


@pytest.mark.any_precision
def test_the_mixture_agrees_with_the_relatively_exact_rule():
    with jax.enable_x64(True):
        mean, deviation = np.meshgrid(np.linspace(-9, 9, 13), [1e-3, 0.3, 1.0, 4.0])
        variance = deviation**2
        excess, tail, slope = map(np.asarray, jax.jit(expected_logistic)(mean, variance))
        exact = jax.jit(lambda m, v: [expected_excess(k, m, v) for k in range(3)])
        exact = [np.asarray(values) for values in exact(mean, variance)]
        np.testing.assert_allclose(excess, exact[0], rtol=0, atol=6e-12)
        np.testing.assert_allclose(slope, exact[2], rtol=0, atol=3e-11)
        expected = np.heaviside(mean, 0.5) + exact[1]
        np.testing.assert_allclose(np.where(mean > 0, 1 - tail, tail), expected, rtol=0, atol=1.2e-11)
        assert np.max(np.abs(expected - scipy.special.expit(mean))) > 0.1
