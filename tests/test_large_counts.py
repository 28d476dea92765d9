"""Log probabilities of counts up to 1e9 against mpmath: they keep the digits that their arguments have."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
from family_cases import run

from glmvae.families import Binomial, NegativeBinomial, Poisson
from glmvae.families.special import log_choose, stirling
from glmvae.families.trees import replaced

# Rounding units of |log p| + |x - mu| (1 + |eta|): the first is the result's, the second what rounding eta does.
ALLOWED = 8
DIGITS = 80


def poisson(x, _, eta):
    return x * eta - mp.exp(eta) - mp.loggamma(x + 1), mp.exp(eta)


def binomial(x, n, eta):
    choose = mp.loggamma(n + 1) - mp.loggamma(x + 1) - mp.loggamma(n - x + 1)
    return x * eta - n * mp.log1p(mp.exp(eta)) + choose, n / (1 + mp.exp(-eta))


def negative_binomial(x, r, eta):
    rising = mp.loggamma(x + r) - mp.loggamma(x + 1) - mp.loggamma(r)
    return x * eta - (x + r) * mp.log1p(mp.exp(eta)) + rising, r * mp.exp(eta)


def with_trials(n):
    return replaced(Binomial(5.0), trials=n, few=False)


KINDS = {
    "Poisson": (poisson, lambda n: Poisson()),
    "binomial": (binomial, with_trials),
    "negative binomial": (negative_binomial, NegativeBinomial),
}
AROUND = (-0.5, -0.26, -0.24, -1e-2, -1e-4, 0.0, 1e-3, 0.24, 0.4)
FAR = (-60.0, -18.0, -6.0, -1.0, 0.0, 0.3, 2.0, 7.0, 18.0)
COUNTS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 17.0, 40.0, 3849.0, 1e6, 3.1e7, 1e9)
TRIALS = (1.0, 5.0, 16.0, 17.0, 200.0, 1e4, 5e6, 1e9)
SIZES = (1e-3, 0.7, 3.3, 50.0, 500.0, 1e4, 1e6, 1e9, 1e30)


def grid(kind):
    """(x, n or r, eta): counts, around their own mean and far from it."""
    points = []
    for parameter in {"Poisson": (1.0,), "binomial": TRIALS, "negative binomial": SIZES}[kind]:
        for x in COUNTS:
            if kind == "binomial":
                x = min(x, parameter) if x < 100 else np.floor(parameter * {3849.0: 0.01, 1e6: 0.3}.get(x, 0.7))
            with np.errstate(divide="ignore"):
                odds = {"Poisson": x, "binomial": x / max(parameter - x, 0.1)}.get(kind, x / parameter)
                centre = np.log(odds)
            near = [] if odds == 0 else [centre + by for by in AROUND]
            points += [(x, parameter, e) for e in (*near, *FAR) if kind == "binomial" or e + np.log(parameter) < 60]
    return np.array(points)


def units_off(kind, dtype, log_prob):
    """Rounding units by which each point of the grid is off, relative to what is allowed for one."""
    reference, make = KINDS[kind]
    x, parameter, eta = jnp.asarray(grid(kind), dtype).T
    got = np.asarray(log_prob(make(parameter), x, eta), np.float64)
    off = []
    with mp.workdps(DIGITS):
        for point, value in zip(np.stack([x, parameter, eta], axis=1).astype(float), got, strict=True):
            exact, mean = reference(*(mp.mpf(v) for v in point))
            size = abs(exact) + abs(mp.mpf(point[0]) - mean) * (1 + abs(point[2]))
            # where even that underflows only its being nothing can be asked for
            off.append(float(abs(mp.mpf(value) - exact) / (size + mp.mpf(10) ** -37)))
    return np.array(off) / float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("kind", KINDS)
def test_every_digit_that_the_arguments_have(kind, dtype):
    off = units_off(kind, dtype, functools.partial(run, "log_prob"))
    assert off.max() <= ALLOWED, grid(kind)[off.argmax()]


def test_differences_of_log_gammas_would_not_do(dtype):
    def textbook(family, x, eta):
        n = family.trials
        choose = scipy.special.gammaln(n + 1) - scipy.special.gammaln(x + 1) - scipy.special.gammaln(n - x + 1)
        return x * eta - n * jnp.logaddexp(0.0, eta) + jnp.asarray(choose, x.dtype)

    assert units_off("binomial", dtype, textbook).max() > 1e3 * ALLOWED


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("kind", "x", "parameter", "eta"),
    [
        ("binomial", 3849.0, 5e6, np.log(3849 / 4996151)),
        ("negative binomial", 3.1e7, 500.0, 11.035),
        ("negative binomial", 3.1e9, 500.0, 15.64),
        ("Poisson", 1e6, 1.0, 13.8155),
    ],
)
def test_single_precision_at_the_mode(kind, x, parameter, eta):
    x, parameter, eta = (jnp.float32(v) for v in (x, parameter, eta))
    reference, make = KINDS[kind]
    value = run("log_prob", make(parameter), x, eta)
    assert value.dtype == jnp.float32
    with mp.workdps(DIGITS):
        truth = float(reference(*(mp.mpf(float(v)) for v in (x, parameter, eta)))[0])
    assert -25 < truth < -5
    np.testing.assert_allclose(value, truth, rtol=2e-6)


@pytest.mark.any_precision
@pytest.mark.parametrize("size", [1e6, 1e8, 1e30])
def test_a_large_size_is_the_poisson_limit(size):
    x, mean = jnp.float32([0.0, 1.0, 7.0, 30.0]), jnp.float32([0.5, 1.0, 5.0, 40.0])
    family = NegativeBinomial(jnp.float32(size))
    eta = family.link(mean)
    limit = run("log_prob", Poisson(), x, jnp.log(mean))
    # eta is log(mean / size), and rounds
    slack = 1e3 / size + 4e-7 * np.asarray(jnp.abs(x - mean) * (1 + jnp.abs(eta)) + jnp.abs(limit) + 1)
    assert np.all(np.abs(run("log_prob", family, x, eta) - limit) < slack)
    variance = jnp.float32(0.3)
    here = run("expected_log_prob", family, x, eta, variance, jnp.float32(1.0))
    there = run("expected_log_prob", Poisson(), x, jnp.log(mean), variance, jnp.float32(1.0))
    assert np.all(np.abs(here - there) < 4 * slack)
    assert np.all(np.abs(run("log_prob", NegativeBinomial(jnp.float32(5.0)), x, jnp.log(mean / 5)) - limit) > 0.01)


# Where trials are few the value has K and not the deviance: nobody sees where that changes -----------------------


def test_grey_counts_on_both_sides_of_few(dtype):
    n = jnp.asarray([15.5, 15.999, 16.0, 16.001, 16.5], dtype)
    x = jnp.asarray([3.25, 0.0, 15.5, 0.75, 16.5], dtype)
    eta = jnp.asarray([-0.5, -2.0, 3.0, 0.25, 1.0], dtype)
    got = run("log_prob", with_trials(n), x, eta)
    expected = [float(binomial(*(mp.mpf(float(v)) for v in p))[0]) for p in zip(x, n, eta, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=32 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("k", [1e-3, 0.5, 0.999, 1.0, 2.5, 9.99, 10.0, 1e4, 1e9])
def test_stirlings_remainder(k, dtype):
    k = float(jnp.asarray(k, dtype))
    with mp.workdps(50):
        expected = float(k * mp.log(k) - k - mp.loggamma(k))
    assert abs(float(stirling(jnp.asarray(k, dtype))) - expected) <= 4 * jnp.finfo(dtype).eps * max(1, abs(expected))


def test_log_binomial_coefficients(dtype):
    x = jnp.asarray([0.0, 1.0, 3.0, 0.5, 100.0, 7.0], dtype)
    rest = jnp.asarray([7.0, 1.0, 13.0, 0.25, 1e6, 0.0], dtype)
    with mp.workdps(50):
        exact = [float(mp.log(mp.binomial(float(a) + float(b), float(a)))) for a, b in zip(x, rest, strict=True)]
    units = 8 * float(jnp.finfo(dtype).eps)  # of the value, and of the parts it is the difference of, of order 1
    np.testing.assert_allclose(log_choose(x, rest), exact, rtol=units, atol=units)


# Derivatives in what was observed: those of the parts are infinite at 0 and at n ---------------------------------


# The square of the degree of log k!, 22 or 9, in rounding units, as derivatives of a polynomial are at its ends. Its
# root for the second, which has the fourth power.
SLOPES = {"float64": 1e-12, "float32": 5e-5}
POINTS = [(0.0, 5.0, 0.3), (5.0, 5.0, 0.3), (0.0, 40.0, -2.0), (40.0, 40.0, 1.5), (0.25, 40.0, 0.5)]


def along(f):
    """The derivative of a function of one number, forward: the least to compile."""
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


@functools.cache
def slopes(kind):
    """In x, of log p, of its expectation at variance 0 and of K; the second of log p; the first in the parameter.

    Five programs of (x, parameter, eta), which compile in a third of the time of one.
    """
    make = KINDS[kind][1]
    return [
        jax.jit(jax.grad(lambda x, p, eta: make(p).log_prob(x, eta))),
        jax.jit(lambda x, p, eta: along(lambda x: make(p).expected_log_prob(x, eta, 0 * eta))(x)),
        jax.jit(lambda x, p, eta: along(lambda x: make(p).log_base_measure(x))(x)),
        jax.jit(lambda x, p, eta: along(along(lambda x: make(p).log_prob(x, eta)))(x)),
        jax.jit(lambda x, p, eta: along(lambda p: make(p).log_prob(x, eta))(p)),
    ]


def exact_slopes(kind, x, parameter, eta):
    """The same by mpmath."""
    reference = KINDS[kind][0]
    with mp.workdps(DIGITS):
        t = mp.mpf(eta)
        by_x, second, by_parameter = (
            mp.diff(lambda *v: reference(*v, t)[0], (mp.mpf(x), mp.mpf(parameter)), n) for n in ((1, 0), (2, 0), (0, 1))
        )
        of_base = by_x - t + (mp.log1p(mp.exp(t)) if kind == "negative binomial" else 0)
        return [float(v) for v in (by_x, by_x, of_base, second, by_parameter)]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_in_the_counts_and_the_parameter(kind, dtype):
    for x, parameter, eta in POINTS:
        point = [jnp.asarray(v, dtype) for v in (x, parameter, eta)]
        found = [slope(*point) for slope in slopes(kind)]
        expected = exact_slopes(kind, x, parameter, float(dtype.type(eta)))
        for order, got, exact in zip((1, 1, 1, 2, 1), found, expected, strict=True):
            tolerance = SLOPES[str(dtype)] ** (1 / order)
            np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance, err_msg=f"{x} {parameter}")


# Expectations ---------------------------------------------------------------------------------------------------


def expected_reference(kind, x, parameter, m, v):
    """E log p, by a trapezoid rule in mpmath."""
    reference, _ = KINDS[kind]
    with mp.workdps(40):
        x, parameter, m, v = (mp.mpf(float(value)) for value in (x, parameter, m, v))
        if kind == "Poisson":
            return reference(x, parameter, m)[0] - mp.exp(m) * mp.expm1(v / 2)
        s = mp.sqrt(v)
        step = mp.mpf(1) / (3 * max(1, s))
        nodes = [k * step for k in range(-int((s + 10) / step), int((s + 10) / step) + 1)]
        return mp.fsum(reference(x, parameter, m + s * z)[0] * mp.npdf(z) * step for z in nodes)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("Poisson", [(1e6, 1.0, 13.8155, 1e-6), (1e6, 1.0, 13.81, 1e-5), (40.0, 1.0, 3.5, 0.3)]),
        (
            "binomial",
            [(3849.0, 5e6, -7.1686, 1e-4), (5e5, 1e6, 0.001, 1e-6), (2.0, 1e9, -20.0, 2.0), (90.0, 200.0, 0.0, 0.5)],
        ),
        ("negative binomial", [(3.1e7, 500.0, 11.035, 1e-3), (5.0, 1e8, -17.0, 4.0), (100.0, 3.0, 3.5, 0.1)]),
    ],
)
def test_single_precision_of_the_expectation(kind, points):
    x, parameter, m, v = (jnp.float32(column) for column in zip(*points, strict=True))
    family = KINDS[kind][1](parameter)
    value = run("expected_log_prob", family, x, m, v, jnp.float32(1.0))
    size = run("rounding_size", family, x, m, v, jnp.float32(1.0))
    for i, point in enumerate(zip(x, parameter, m, v, strict=True)):
        exact = expected_reference(kind, *point)
        # the rounding of what is given moves nothing; 16 units of what it is made of, and 5e-8 of the trials' gap
        assert abs(float(value[i]) - float(exact)) <= 16 * 1.2e-7 * float(size[i]), (point, float(exact))
