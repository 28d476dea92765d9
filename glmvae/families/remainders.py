"""Enclosures of Taylor remainders, floating point included, and of their Gaussian expectations (Corollary 1).

    exponential   e^d - 1 - d - d^2 / 2
    softplus      f(t0 + d) - f(t0) - f'(t0) d - f''(t0) d^2 / 2

An enclosure is a pair (lower, upper); an end that overflows is infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae.families.softplus_calculus import softplus, softplus_derivative

# Gauss-Legendre nodes on [0, 1]: for |d| <= 2 the singularities of both third derivatives lie outside the Bernstein
# ellipse of 6.4, so 14 nodes leave 6.4^-28 < 1e-22 of the integral.
_POINTS, _WEIGHTS = (a.copy() for a in np.polynomial.legendre.leggauss(14))
_POINTS, _WEIGHTS = (_POINTS + 1) / 2, _WEIGHTS / 2
_NEAR = 2.0
# Rounding units allowed for: of the value itself (sums of one sign), and of the largest term of a difference.
_ROUNDING = 32


class Interval(NamedTuple):
    """lower <= value <= upper."""

    lower: Array
    upper: Array

    def scaled(self, factor: Array, units: ArrayLike = 1.0) -> Interval:
        """Times a number that is not negative and known to so many rounding units."""
        lower, upper = (jnp.where(factor == 0, 0.0, factor * end) for end in self)
        eps = (1 + 2 * jnp.asarray(units, lower.dtype)) * jnp.finfo(lower.dtype).eps
        return interval(lower - eps * jnp.abs(lower), upper + eps * jnp.abs(upper))

    def negated(self) -> Interval:
        return Interval(-self.upper, -self.lower)

    def plus(self, other: Interval) -> Interval:
        lower, upper = self.lower + other.lower, self.upper + other.upper
        eps = jnp.finfo(lower.dtype).eps
        return interval(lower - eps * jnp.abs(lower), upper + eps * jnp.abs(upper))

    def within(self, other: Interval) -> Interval:
        """What it has in common with bounds known otherwise."""
        return Interval(jnp.maximum(self.lower, other.lower), jnp.minimum(self.upper, other.upper))


def interval(lower: Array, upper: Array) -> Interval:
    """Bounds that may have overflowed: away from the value they are infinite, towards it the largest number."""
    largest = float(jnp.finfo(lower.dtype).max)
    lower = jnp.where(jnp.isnan(lower), -jnp.inf, jnp.minimum(lower, largest))
    return Interval(lower, jnp.where(jnp.isnan(upper), jnp.inf, jnp.maximum(upper, -largest)))


def around(value: Array, error: Array) -> Interval:
    """value -+ error; everything where either is no number."""
    known = jnp.isfinite(value) & jnp.isfinite(error)
    return Interval(jnp.where(known, value - error, -jnp.inf), jnp.where(known, value + error, jnp.inf))


def between(lower: Array, upper: Array, units: ArrayLike = 4.0) -> Interval:
    """From one number to another, each known to so many rounding units."""
    eps = jnp.asarray(units, lower.dtype) * jnp.finfo(lower.dtype).eps
    return interval(lower - eps * jnp.abs(lower), upper + eps * jnp.abs(upper))


def _enclosed(
    third: Callable[[Array], Array],
    delta: Array,
    parts: Callable[[Array], list[Array]],
    sizes: Callable[[Array], list[Array]],
    third_size: Callable[[Array], Array] | None = None,
) -> Interval:
    """delta^3 int (1 - s)^2 / 2 third(s delta) ds near 0, where it does not cancel, the sum of parts(delta) far out.

    The sizes are what 32 rounding units may move: the absolute values of the terms, and a little more where what they
    are made of is rounded already.
    """
    eps, tiny = jnp.finfo(delta.dtype).eps, jnp.finfo(delta.dtype).tiny
    near = jnp.abs(delta) <= _NEAR
    step, far = jnp.where(near, delta, 0.0), jnp.where(near, 0.0, delta)

    def integral(f: Callable[[Array], Array]) -> Array:
        nodes = zip(_POINTS.tolist(), _WEIGHTS.tolist(), strict=True)
        return sum((0.5 * w * (1 - s) ** 2 * f(s * step) for s, w in nodes), jnp.zeros_like(step))

    value = jnp.where(near, step**3 * integral(third), sum(parts(far)))
    size = jnp.abs(step) ** 3 * integral(third_size or third)
    size = jnp.where(near, size, sum(jnp.abs(part) for part in sizes(far)))
    # A product that underflows may be off by the smallest normal number.
    return around(value, _ROUNDING * (eps * size + jnp.where(delta == 0, 0.0, tiny)))


@jax.jit
def exponential_remainder(delta: Array) -> Interval:
    """Of e^delta - 1 - delta - delta^2 / 2, between delta^3 / 6 and delta^3 e^delta / 6."""
    units = 4 + 2 * jnp.abs(delta)  # e^delta has those of delta, times it

    def parts(d: Array) -> list[Array]:
        return [jnp.exp(d) * (1 + jnp.abs(d) / _ROUNDING), -jnp.ones_like(d), -d, -0.5 * d**2]

    found = _enclosed(jnp.exp, delta, lambda d: [jnp.exp(d), -jnp.ones_like(d), -d, -0.5 * d**2], parts)
    cube = delta**3 / 6
    return found.within(between(cube, cube * jnp.exp(delta), units))


@jax.jit
def expected_exponential(mean: Array, variance: Array) -> Interval:
    """Of its expectation for delta ~ N(mean, variance): its own at m + v / 2, and m v / 2 + v^2 / 8."""
    eps = _ROUNDING * jnp.finfo(mean.dtype).eps
    centre = mean + 0.5 * variance
    # the rounding of the centre moves the remainder by its derivative, e^a - 1 - a <= a^2 e^max(a, 0) / 2
    moved = jnp.finfo(mean.dtype).eps * (jnp.abs(mean) + variance)
    slope = 0.5 * (jnp.abs(centre) + moved) ** 2 * jnp.exp(jnp.maximum(centre, 0.0) + moved)
    parts = (0.5 * mean * variance, 0.125 * variance**2)
    rest = around(parts[0] + parts[1], eps * (jnp.abs(parts[0]) + parts[1]) + moved * slope)
    return exponential_remainder(centre).plus(rest)


@jax.jit
def logistic_remainder(t0: Array, delta: Array) -> Interval:
    """Of the softplus remainder; at t0 = 0 it lies in [-delta^4 / 192, 0]."""

    def third(step: Array) -> Array:
        # p (1 - p) (1 - 2 p), the last factor as -tanh so that it is exact near 0
        t = t0 + step
        return -softplus_derivative(2, t) * jnp.tanh(0.5 * t)

    def size(step: Array) -> Array:
        # the rounding of t0, times the fourth derivative, which is less than the second
        t = t0 + step
        return softplus_derivative(2, t) * (jnp.abs(jnp.tanh(0.5 * t)) + jnp.abs(t0) / _ROUNDING)

    def parts(d: Array) -> list[Array]:
        value, slope, bend = (softplus_derivative(k, t0) for k in range(3))
        return [softplus(t0 + d), -value, -slope * d, -0.5 * bend * d**2]

    def sizes(d: Array) -> list[Array]:
        return [part * (1 + jnp.abs(t0) / _ROUNDING) for part in parts(d)]

    found = _enclosed(third, delta, parts, sizes, size)
    centred = jnp.where(t0 == 0, 0.0, jnp.inf)
    return found.within(between(jnp.where(t0 == 0, -(delta**4) / 192, -jnp.inf), centred))


@jax.jit
def expected_logistic(t0: Array, mean: Array, variance: Array) -> Interval:
    """Of its expectation for delta ~ N(mean, variance), by moments about t0 or from the remainder at the mean.

    f'''(t0) E delta^3 / 6 + E delta^4 / 24 [-1/8, 1/24]                           -1/8 <= f'''' <= 1/24
    remainder(m) + gap - f''(t0) v / 2,   gap in [0, v / 8], and in f''(t0 + m) v / 2 + v^2 / 8 [-1/8, 1/24]
    """
    eps = _ROUNDING * jnp.finfo(mean.dtype).eps * (1 + jnp.abs(t0))
    third = mean**3 + 3 * mean * variance
    third_size = jnp.abs(mean) ** 3 + 3 * jnp.abs(mean) * variance
    fourth = mean**4 + 6 * mean**2 * variance + 3 * variance**2
    slope = -softplus_derivative(2, t0) * jnp.tanh(0.5 * t0) / 6
    size = eps * (softplus_derivative(2, t0) * third_size + fourth / 192)
    moments = interval(slope * third - fourth / 192 - size, slope * third + fourth / 576 + size)
    moments = moments.within(between(-jnp.inf * jnp.ones_like(size), jnp.where(t0 == 0, 0.0, jnp.inf)))

    half, square = 0.5 * variance, 0.125 * variance**2
    bend = softplus_derivative(2, t0 + mean) * half
    error = eps * ((1 + jnp.abs(mean)) * bend + square)
    gap = interval(bend - square / 8 - error, bend + square / 24 + error)
    gap = gap.within(between(jnp.zeros_like(half), 0.25 * half))
    quadratic = softplus_derivative(2, t0) * half
    from_mean = logistic_remainder(t0, mean).plus(gap).plus(around(-quadratic, eps * quadratic))
    return moments.within(from_mean)
