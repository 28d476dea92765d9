"""The parts of a log probability, without the cancellation of their textbook forms (Loader 2000).

    log p(x | mu) = saturated(x) - deviance(x, mu)

where ``saturated`` is log p at mu = x. Its log Gammas cancel by hand, up to Stirling's remainder

    delta(k) = log k! - (k + 1/2) log k + k - log(2 pi) / 2

and the deviance is 0 at mu = x, of second order about it, and never negative, so large counts keep their digits. What
is compiled here is so for eager calls, which otherwise run a hundred small programs.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.families.softplus_calculus import sigmoid, softplus

# Terms of Stirling's series, and from where they do (to 1e-16 and 4e-8).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_STIRLING_FROM = {"float64": 10, "float32": 3}
# Terms of log((1 + r) / (1 - r)) for |r| <= 1/3, and of e^w for |w| <= 1.
_ATANH_TERMS = {"float64": 17, "float32": 8}
# How near a count is to its mean where their difference alone is looked at, and the terms that takes.
_NEAR, _NEAR_TERMS = 0.25, {"float64": 10, "float32": 5}
_EXP_TERMS = {"float64": 18, "float32": 10}
# Degree of log Gamma(1 + k) / k on [0, 1].
_LGAMMA_DEGREE = {"float64": 22, "float32": 9}


def polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """sum_j coefficients[j] x^j."""
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


# log k! ---------------------------------------------------------------------------------------------------


@functools.cache
def _lgamma_coefficients(degree: int) -> tuple[float, ...]:
    """Of log Gamma(1 + k) / k in 2 k - 1, lowest first, by interpolation."""
    points = np.polynomial.chebyshev.chebpts1(degree + 1)
    values = [math.lgamma(1 + (u + 1) / 2) / ((u + 1) / 2) for u in points.tolist()]
    return tuple(np.polynomial.chebyshev.cheb2poly(np.polynomial.chebyshev.chebfit(points, values, degree)).tolist())


@jax.jit
def stirling_parts(k: Array) -> tuple[Array, Array]:
    """(L, D) with k log k - k - log k! = -log(L) / 2 - D.

    2 pi k and delta(k) from k = 1 on; below, 1 and all of it, which is 0 at k = 0.
    """
    name = k.dtype.name
    from_, small = _STIRLING_FROM[name], k < 1
    safe = jnp.where(small, 1.0, k)
    # delta(k) = delta(k + 1) + atanh(r) / r - 1, r = 1 / (2 k + 1)
    steps = jnp.zeros_like(k)
    atanh = (0.0, *(1 / (2 * j + 1) for j in range(1, _ATANH_TERMS[name])))
    for i in range(from_ - 1):
        steps = steps + polynomial(atanh, (1 / (2 * (safe + i) + 1)) ** 2)
    is_low = safe < from_
    inverse = 1 / jnp.where(is_low, safe + (from_ - 1), safe)
    delta = inverse * polynomial(_STIRLING, inverse**2) + jnp.where(is_low, steps, 0.0)

    below = jnp.where(k < 0, 0.0, jnp.where(small, k, 1.0))  # a clip has half the derivative at 0
    log_factorial = below * polynomial(_lgamma_coefficients(_LGAMMA_DEGREE[name]), 2 * below - 1)
    whole = log_factorial + below - x_log(below)
    return jnp.where(small, 1.0, 2 * math.pi * safe), jnp.where(small, whole, delta)


def positive(x: Array) -> Array:
    """x, no less than the smallest normal number."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def finite_log(x: Array) -> Array:
    """log x, but 0 where x is: in derivatives of log p with respect to x or n these infinities cancel."""
    return jnp.log(jnp.where(x <= 0, 1.0, x))


@jax.custom_jvp
def x_log(x: Array) -> Array:
    """x log x, 0 where x is."""
    return jnp.where(x == 0, 0.0, x * jnp.log(jnp.where(x == 0, 1.0, x)))


@x_log.defjvp
def _x_log_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return x_log(x), (finite_log(x) + 1) * dx


@jax.jit
def log_poisson_saturated(x: Array) -> Array:
    """x log x - x - log x!: the log probability of x at the rate x."""
    size, delta = stirling_parts(x)
    return -0.5 * jnp.log(size) - delta


@jax.custom_jvp
def _in_order(x: Array, rest: Array) -> tuple[Array, Array]:
    """The smaller and the larger; where they are equal one derivative each, not the halves of both."""
    return jnp.minimum(x, rest), jnp.maximum(x, rest)


@_in_order.defjvp
def _in_order_jvp(primals: tuple, tangents: tuple) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (x, rest), (dx, drest) = primals, tangents
    return _in_order(x, rest), (jnp.where(x < rest, dx, drest), jnp.where(x < rest, drest, dx))


@jax.jit
def log_binomial_saturated(x: Array, rest: Array) -> Array:
    """log C(n, x) + x log(x / n) + (n - x) log((n - x) / n), n = x + rest."""
    # in this order 0 and n are exact
    less, more = _in_order(x, rest)
    (a, da), (b, db), (n, dn) = stirling_parts(less), stirling_parts(more), stirling_parts(x + rest)
    return -0.5 * jnp.log(a * (b / n)) - (da + (db - dn))


@jax.jit
def log_choose(x: Array, rest: Array) -> Array:
    """log C(x + rest, x)."""
    return log_binomial_saturated(x, rest) - log_shares(x, rest)


@jax.custom_jvp
def log_shares(x: Array, rest: Array) -> Array:
    """x log(x / n) + rest log(rest / n), n = x + rest, whichever of the two is small."""
    less, more = jnp.minimum(x, rest), jnp.maximum(x, rest)
    share = less / positive(x + rest)
    other = 1 - share
    # log1p(-share), by what 1 - share rounds off; that of XLA is 120 rounding units off at -0.414 (float64)
    log_other = jnp.log(other) + ((1 - other) - share) / other
    return less * jnp.log(positive(share)) + more * log_other


@log_shares.defjvp
def _log_shares_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, rest), (dx, drest) = primals, tangents
    by_x, by_rest = log_shares_by_each(x, rest)
    return log_shares(x, rest), by_x * dx + by_rest * drest


def log_shares_by_each(x: Array, rest: Array) -> tuple[Array, Array]:
    """The derivatives of ``log_shares``: log(x / n) and log(rest / n), with the logarithm that is finite."""
    log_n = finite_log(x + rest)
    return finite_log(x) - log_n, finite_log(rest) - log_n


@jax.jit
def stirling(k: Array) -> Array:
    """k log k - k - log Gamma(k)."""
    _, delta = stirling_parts(k)
    large = k >= 1
    return jnp.where(large, 0.5, 1.0) * jnp.log(jnp.where(large, k / (2 * math.pi), k)) - delta


# Deviances ------------------------------------------------------------------------------------------------


def _deviance_part(x: Array, mean: Array, gap: Array) -> Array:
    """x log(x / mean) - gap, where gap = x - mean is below mean / 4: Loader's series, with r = gap / (x + mean)."""
    r = gap / positive(x + mean)
    terms = tuple(1 / (2 * j + 3) for j in range(_NEAR_TERMS[x.dtype.name]))
    return gap * r + 2 * x * r**3 * polynomial(terms, r**2)


@jax.jit
def exp_remainder(w: Array) -> Array:
    """e^w - 1 - w, to full relative precision: w^2 / 2 near 0."""
    near = jnp.abs(w) < 1
    close = jnp.where(near, w, 0.0)
    series = close**2 * polynomial(tuple(1 / math.factorial(j + 2) for j in range(_EXP_TERMS[w.dtype.name])), close)
    far = jnp.where(near, 1.0, w)
    large = jnp.expm1(far)
    return jnp.where(near, series, jnp.where(jnp.isinf(large), large, large - far))


@jax.custom_jvp
@jax.jit
def poisson_deviance(x: Array, t: Array) -> Array:
    """x log(x / mu) - x + mu at mu = e^t: half the unit deviance."""
    mu = jnp.exp(t)
    gap = x - mu
    near = jnp.abs(gap) < _NEAR * mu
    apart = jnp.where(jnp.isinf(mu), mu, x_log(x) - x * (t + 1) + mu)
    return jnp.where(near, _deviance_part(x, mu, jnp.where(near, gap, 0.0)), apart)


@poisson_deviance.defjvp
def _poisson_deviance_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, t), (dx, dt) = primals, tangents
    return poisson_deviance(x, t), (jnp.exp(t) - x) * dt + (finite_log(x) - t) * dx


def logistic_residual(x: Array, rest: Array, t: Array) -> Array:
    """x - n sigmoid(t), n = x + rest, as x sigmoid(-t) - rest sigmoid(t)."""
    return x * sigmoid(-t) - rest * sigmoid(t)


@jax.custom_jvp
@jax.jit
def logistic_kernel(x: Array, rest: Array, t: Array) -> Array:
    """x softplus(-t) + rest softplus(t), a sum of positive terms: minus x t - n softplus(t)."""
    kink = x * jnp.maximum(-t, 0.0) + rest * jnp.maximum(t, 0.0)
    return kink + (x + rest) * jnp.log1p(jnp.exp(-jnp.abs(t)))


@logistic_kernel.defjvp
def _logistic_kernel_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, rest, t), (dx, drest, dt) = primals, tangents
    tangent = softplus(-t) * dx + softplus(t) * drest - logistic_residual(x, rest, t) * dt
    return logistic_kernel(x, rest, t), tangent


@jax.custom_jvp
@jax.jit
def logistic_deviance(x: Array, rest: Array, t: Array) -> Array:
    """x log(x / (n p)) + rest log(rest / (n q)), p = sigmoid(t), q = 1 - p, n = x + rest: half the unit deviance."""
    n = x + rest
    small = jnp.exp(-jnp.abs(t))
    share = n / (1 + small)
    size, other = jnp.where(t < 0, small, 1.0) * share, jnp.where(t < 0, 1.0, small) * share
    gap = logistic_residual(x, rest, t)
    near = jnp.abs(gap) < _NEAR * jnp.minimum(size, other)
    gap = jnp.where(near, gap, 0.0)
    close = _deviance_part(x, size, gap) + _deviance_part(rest, other, -gap)
    return jnp.where(near, close, logistic_kernel(x, rest, t) + log_shares(x, rest))


@logistic_deviance.defjvp
def _logistic_deviance_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, rest, t), (dx, drest, dt) = primals, tangents
    by_x, by_rest = log_shares_by_each(x, rest)
    tangent = (by_x + softplus(-t)) * dx + (by_rest + softplus(t)) * drest - logistic_residual(x, rest, t) * dt
    return logistic_deviance(x, rest, t), tangent
