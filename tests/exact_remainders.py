"""The remainder of the quadratic and its expectation by their definitions, in mpmath, with digits to spare."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np

from glmvae.families import Gamma, NegativeBinomial, Poisson


def kernel(family, x):
    """log p at phi = 1, less K, its derivative, and Fisher's weight, as functions of t."""
    p = lambda t: 1 / (1 + mp.exp(-t))  # noqa: E731
    if isinstance(family, Gamma):
        return lambda t: -x * mp.exp(-t) - t, lambda t: x * mp.exp(-t) - 1, lambda t: mp.mpf(1)
    if isinstance(family, Poisson):
        return lambda t: x * t - mp.exp(t), lambda t: x - mp.exp(t), mp.exp
    if isinstance(family, NegativeBinomial):
        n, weight = x + mp.mpf(float(family.size)), lambda t: (n - x) * p(t)
    else:
        n, weight = mp.mpf(float(family.trials)), lambda t: n * p(t) * (1 - p(t))
    return lambda t: x * t - n * mp.log1p(mp.exp(t)), lambda t: x - n * p(t), weight


def exact_remainder(family, phi, eta, eta0=0.0, x=1.0):
    """R2 by its definition, with digits to spare, at the numbers given."""
    with mp.workdps(80):
        rho = mp.mpf(float(family.activation_scale))
        t, t0 = rho * mp.mpf(eta), rho * mp.mpf(eta0)
        value, slope, weight = kernel(family, mp.mpf(float(x)))
        quadratic = value(t0) + slope(t0) * (t - t0) - weight(t0) * (t - t0) ** 2 / 2
        return (value(t) - quadratic) / mp.mpf(float(phi))


def expected_remainder(family, phi, m, v, eta0, x):
    """E R2: in closed form where E exp is, else by a rule that is right to some 1e-9 of it."""
    if isinstance(family, Poisson | Gamma):
        rho, m, v, eta0 = (mp.mpf(float(a)) for a in (family.activation_scale, m, v, eta0))
        value, slope, weight = kernel(family, mp.mpf(float(x)))
        t, s, t0 = rho * m, rho**2 * v, rho * eta0
        # E exp(+-t) = exp(+-t) exp(s / 2), so at t +- s / 2 the exponential is right and the linear part is not
        sign, linear = (-1, -1) if isinstance(family, Gamma) else (1, mp.mpf(float(x)))
        expected = value(t + sign * s / 2) - linear * sign * s / 2
        quadratic = value(t0) + slope(t0) * (t - t0) - weight(t0) * ((t - t0) ** 2 + s) / 2
        return (expected - quadratic) / mp.mpf(float(phi))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    root = mp.sqrt(mp.mpf(float(v)))
    terms = [
        w * exact_remainder(family, phi, mp.mpf(float(m)) + root * t, eta0, x)
        for t, w in zip(nodes, weights, strict=True)
    ]
    return mp.fsum(terms) / mp.fsum(weights)


# Those of a Poisson family of one's own, within 1e-6


def count_bounds(step, start, x, dispersion):
    value = -jnp.exp(start) * (jnp.expm1(step) - step - 0.5 * step**2) / dispersion
    return value - 1e-6, value + 1e-6


def expected_count_bounds(mean, variance, start, x, dispersion):
    value = -jnp.exp(start) * (jnp.exp(mean + variance / 2) - 1 - mean - 0.5 * (mean**2 + variance)) / dispersion
    return value - 1e-6, value + 1e-6
