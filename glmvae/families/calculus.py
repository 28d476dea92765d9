"""What a family gets from its functions alone: derivatives, inverses and Gaussian expectations, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Of the trapezoid rule.
_NODES, _WINDOW = 64, 8.8
# Halvings of a bracket of one octave, or of (-1, 1).
_HALVINGS = 75


def reads(f: Callable[..., Array], position: int, *arguments: Any) -> bool:
    """Whether f(*arguments) depends on the argument at that position, whatever the values; shapes do for arrays."""
    program = jax.make_jaxpr(f)(*arguments).jaxpr
    entering = program.invars[position]
    return any(entering is used for used in [*program.outvars, *(v for eqn in program.eqns for v in eqn.invars)])


def derivative(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """f' of a function that works entry by entry."""
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def gaussian_expectation(f: Callable[[Array], Any], mean: Array, variance: Array) -> Any:
    """E f(eta) for eta ~ N(mean, variance), entry by entry, by a trapezoid rule; f may return a pytree."""
    mean, variance = jnp.broadcast_arrays(mean, variance)
    z = np.linspace(-_WINDOW, _WINDOW, _NODES)
    weights = np.exp(-0.5 * z**2) / np.sum(np.exp(-0.5 * z**2))
    # sqrt has no derivative at 0, where the expectation does not depend on it.
    sd = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    rule = jnp.asarray(np.stack([z, weights], axis=1), mean.dtype)

    # A loop, not 64 copies of a user's function: those took minutes to compile.
    def add(total: Any, node: Array) -> tuple[Any, None]:
        return jax.tree.map(lambda t, v: t + node[1] * v, total, f(mean + node[0] * sd)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(f, mean))
    return jax.lax.scan(add, zeros, rule)[0]


def inverse(mean: Callable[[Array], Array], target: Array) -> Array:
    """The eta with mean(eta) = target, for a monotone mean that works entry by entry.

    By doubling a bracket and bisecting it to the last digit; infinite where the target lies at or beyond what the mean
    tends to. Differentiable to any order, in the target and in what the mean depends on (implicit function theorem).
    """
    # The mean is called for several arguments at once, since it may be a long program.
    largest = float(jnp.finfo(target.dtype).max)
    one = jnp.ones_like(target)
    right, left, last, first = mean(jnp.stack([one, -one, largest * one, -largest * one]))
    sign = jnp.where(right >= left, 1.0, -1.0).astype(target.dtype)
    at_most, at_least = jnp.where(sign > 0, last, first), jnp.where(sign > 0, first, last)  # what the mean tends to

    def widen(bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, _ = bracket
        at_low, at_high = mean(sign * jnp.stack([low, high]))
        below, above = (at_low > target) & (low > -largest / 2), (at_high < target) & (high < largest / 2)
        new_low = jnp.where(below, 2 * low, jnp.where(above, high, low))
        new_high = jnp.where(above, 2 * high, jnp.where(below, low, high))
        return new_low, new_high, jnp.any(below | above)

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * low + 0.5 * high
        below = mean(sign * middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    def solve(_: Any, start: Array) -> Array:
        low, high, _ = jax.lax.while_loop(lambda bracket: bracket[2], widen, (start - 1, start + 1, jnp.asarray(True)))
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
        root = 0.5 * low + 0.5 * high
        return sign * jnp.where(target >= at_most, jnp.inf, jnp.where(target <= at_least, -jnp.inf, root))

    def slope(g: Callable[[Array], Array], y: Array) -> Array:
        return y / g(jnp.ones_like(y))

    return jax.lax.custom_root(lambda t: mean(t) - target, jnp.zeros_like(target), solve, slope)


# Compiled, for eager calls: a loop over a closure would be compiled each time it is met.


@jax.jit
def inverse_of_mean(family: Any, mean: Array) -> Array:
    """The linear predictor of a mean."""
    return inverse(family.mean, mean)


@jax.jit
def terms_by_quadrature(
    family: Any, x: Array, mean: Array, variance: Array, dispersion: Array
) -> tuple[Array, Array, Array]:
    """``Family.expected_terms`` from log_normalizer, natural_parameter and mean alone."""

    def terms(eta: Array) -> tuple[Array, Array, Array, Array]:
        theta, slope = family.natural_parameter(eta), family.natural_parameter_derivative(eta)
        residual = x - family.mean(eta)
        bend = derivative(family.natural_parameter_derivative)(eta) * residual
        return x * theta - family.log_normalizer(theta), slope * residual, slope * family.mean_derivative(eta), bend

    shape = jnp.broadcast_shapes(x.shape, mean.shape, variance.shape)
    value, gradient, fisher, bend = gaussian_expectation(terms, jnp.broadcast_to(mean, shape), variance)
    weight = fisher if family.curvature_is_constant else jnp.where(fisher > bend, fisher - bend, fisher)
    return value / dispersion, gradient / dispersion, weight / dispersion


def half_spread(family: Any, mean: Array, variance: Any, eta0: Array, phi: Any) -> Array:
    """The mean over rows of w (y - eta0)^2 / 2, w and y of an expansion at eta0, from the mean and variance of x."""
    return 0.5 * (variance + (mean - family.mean(eta0)) ** 2) / (phi * family.variance_function(eta0))
