"""What a Gaussian's spread adds to softplus and sigmoid at its mean.

For t ~ N(m, v): E softplus(t) - softplus(m), E sigmoid(t) - sigmoid(m) and E sigmoid'(t), by one of three rules.

Narrow: the series in v / 2 of the heat equation, sum_k (v / 2)^k / k! softplus^(2k)(m), without one transcendental
function beyond p = sigmoid(m): with u = p (1 - p) every even derivative is u times a polynomial in u.

Wide: the mixture of normal distributions (:mod:`glmvae.families.logistic_mixture`), whose error is absolute.

Wide, and many trials that multiply that error: with d = sqrt(v) Z, q = 1 - p,

    softplus(m + d) + softplus(m - d) - 2 softplus(m) = log(1 + c),     c = 4 p q sinh^2(d / 2)

so E softplus(t) - softplus(m) = E log(1 + c) / 2 has no cancellation however small p or q, and neither have its
derivatives. The expectation is a trapezoid rule in Z > 0: softplus is singular pi away from the real line, so its step
h leaves exp(-2 pi^2 / (h s) + pi^2 / (2 s^2)), s = sqrt(v), and the wider the Gaussian the more nodes it takes.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.families.logistic_mixture import expected_logistic
from glmvae.families.special import polynomial

Gaps = tuple[Array, Array, Array]

# Per precision: the variance up to which the series holds, and its terms.
NARROW = {"float64": 0.05, "float32": 0.15}
_TERMS = {"float64": 12, "float32": 8}
# The logarithm of the trapezoid rule's error, and its window beyond one standard deviation of t.
_DIGITS = {"float64": (36.0, 8.2), "float32": (19.0, 5.4)}


@functools.cache
def even_derivatives(terms: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients in u, lowest first, of softplus^(2k) / u for k = 1, 2, ..."""
    # u' = u (1 - 2 p), and (1 - 2 p)^2 = 1 - 4 u
    u = np.polynomial.Polynomial([0.0, 1.0])
    now, found = u, []
    for _ in range(terms):
        found.append(tuple(now.coef[1:].tolist()))
        slope = now.deriv()
        now = slope.deriv() * u**2 * (1 - 4 * u) + slope * u * (1 - 6 * u)
    return tuple(found)


def series(mean: Array, variance: Array) -> Gaps:
    """The three for variances up to ``NARROW``, relatively exact."""
    limit, terms = NARROW[mean.dtype.name], _TERMS[mean.dtype.name]
    half = 0.5 * jnp.minimum(variance, limit)
    small = jnp.exp(-jnp.abs(mean))
    larger = 1 / (1 + small)
    u, tanh = small * larger**2, jnp.sign(mean) * (1 - small) * larger
    coefficients = even_derivatives(terms + 1)
    value = slope = bend = jnp.zeros(jnp.broadcast_shapes(mean.shape, variance.shape), mean.dtype)
    for k in range(terms, 0, -1):  # Horner's scheme in v / 2
        by_u = tuple((j + 1) * c for j, c in enumerate(coefficients[k - 1]))
        value = (polynomial(coefficients[k - 1], u) + value) * half / k
        slope = (polynomial(by_u, u) + slope) * half / k
        bend = (polynomial(coefficients[k], u) + bend) * half / k
    return u * value, -tanh * u * slope, u * (1 + bend)


def trapezoid(mean: Array, deviation: Array) -> Gaps:
    """The three, relatively exact, in time that grows with the square of the largest deviation."""
    digits, window = _DIGITS[mean.dtype.name]
    largest = jnp.max(deviation, initial=math.pi / math.sqrt(2 * digits))  # of less a Gaussian alone needs the step
    step = (2 * math.pi**2 / largest) / (digits + 0.5 * (math.pi / largest) ** 2)
    nodes = jnp.ceil((largest + window) / step).astype(jnp.int32)
    small = jnp.exp(-jnp.abs(mean))
    larger = 1 / (1 + small)
    product, tanh = small * larger**2, jnp.sign(mean) * (1 - small) * larger

    def add(k: Array, total: Gaps) -> Gaps:
        gap, shift, bend = total
        z = k.astype(step.dtype) * step
        grown = jnp.expm1(0.5 * z * deviation)
        ratio = product * (grown + grown / (1 + grown)) ** 2
        inverse = 1 / (1 + ratio)
        weight = step / math.sqrt(2 * math.pi) * jnp.exp(-0.5 * z * z)
        part = weight * ratio * inverse
        return gap + weight * jnp.log1p(ratio), shift + part, bend + part * inverse

    zeros = jnp.zeros(jnp.broadcast_shapes(mean.shape, deviation.shape), mean.dtype)
    gap, shift, bend = jax.lax.fori_loop(1, nodes + 1, add, (zeros, zeros, zeros))
    return gap, -tanh * shift, product * (1 - 2 * shift) + tanh**2 * bend


def mixture(mean: Array, variance: Array) -> Gaps:
    """The three to an absolute error of 5e-8 (float32) or 3e-12 (float64)."""
    excess, tail, slope = expected_logistic(mean, variance)
    small = jnp.exp(jnp.where(mean > 0, -mean, mean))  # not of abs, as there
    gap = small / (1 + small) - tail
    return excess - jnp.log1p(small), jnp.where(mean > 0, gap, -gap), slope
