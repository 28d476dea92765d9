"""E log p of the logistic families, its derivative and its weight, by the cheapest rule that is good enough.

    E (x t - n softplus(t)) = (x m - n softplus(m)) - n gap,     t ~ N(m, v),  gap = E softplus(t) - softplus(m)

All entries are looked at first: where every Gaussian is narrow, or no trials are many, one rule serves all.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from glmvae.families.logistic_gap import NARROW, Gaps, mixture, series, trapezoid
from glmvae.families.logistic_mixture import expected_logistic
from glmvae.families.softplus_calculus import expected_excess, sigmoid, softplus
from glmvae.families.special import log_shares_by_each, logistic_deviance, logistic_kernel, logistic_residual

Terms = tuple[Array, Array, Array]

# Trials up to which x t - n softplus(t) and log C(n, x) are so small that their sum loses nothing.
_FEW = 16
# Trials from which the mixture's error is too much where the series could do; and where it could not, in the tails,
# |m| beyond the third, which up to a standard deviation of the fourth take the trapezoid rule.
_LIMITS = {"float64": (1e3, 1e5, 3.0, 6.0), "float32": (64.0, 256.0, 6.0, 6.0)}


class Kind(NamedTuple):
    """How trials and the rest of them come from x and the family's parameter, and what is known of them."""

    given_trials: bool
    few: bool

    def rest(self, x: Array, parameter: Array) -> Array:
        """n - x: the parameter is n, or n - x itself."""
        return parameter - x if self.given_trials else parameter

    def trials(self, x: Array, parameter: Array) -> Array:
        return parameter if self.given_trials else x + parameter


def many(trials: Any) -> Any:
    """Where the value is a deviance, and log p has its saturated part apart."""
    return trials > _FEW


def at_mean(kind: Kind, x: Array, parameter: Array, t: Array) -> Array:
    """Minus the value at v = 0: the deviance where trials are many, minus x t - n softplus(t) where they are few."""
    rest, trials = kind.rest(x, parameter), kind.trials(x, parameter)
    if kind.few:
        return logistic_kernel(x, rest, t)
    return jnp.where(many(trials), logistic_deviance(x, rest, t), logistic_kernel(x, rest, t))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def logistic_terms(kind: Kind, x: Array, parameter: Array, mean: Array, variance: Array) -> Terms:
    """(value, gradient, weight) at phi = 1."""
    shape = jnp.broadcast_shapes(x.shape, parameter.shape, mean.shape, variance.shape)
    mean, variance = jnp.broadcast_to(mean, shape), jnp.broadcast_to(variance, shape)
    n, rest = kind.trials(x, parameter), kind.rest(x, parameter)
    if kind.few:
        excess, tail, slope = expected_logistic(mean, variance)
        kink = x * jnp.maximum(-mean, 0.0) + rest * jnp.maximum(mean, 0.0)
        gradient = jnp.where(mean > 0, n * tail - rest, x - n * tail)
        return -(kink + n * excess), gradient, n * slope
    gap, shift, slope = _gaps_of_all(n, mean, variance)
    value = -(at_mean(kind, x, parameter, mean) + n * gap)
    return value, logistic_residual(x, rest, mean) - n * shift, n * slope


def _gaps_of_all(n: Array, mean: Array, variance: Array) -> Gaps:
    narrow = variance <= NARROW[mean.dtype.name]
    some, many, tail, widest = _LIMITS[mean.dtype.name]
    exact = ~narrow & (n > many) & (jnp.abs(mean) > tail) & (variance <= widest**2)
    found = _where(narrow & (n > some), series(mean, variance), mixture(mean, variance))

    def with_trapezoid(found: Gaps) -> Gaps:
        return _where(exact, trapezoid(mean, jnp.sqrt(jnp.where(exact, variance, 0.0))), found)

    return jax.lax.cond(jnp.any(exact), with_trapezoid, lambda found: found, found)


def _where(condition: Array, one: Gaps, other: Gaps) -> Gaps:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


@partial(logistic_terms.defjvp, symbolic_zeros=True)
def _logistic_terms_jvp(kind: Kind, primals: tuple, tangents: tuple) -> tuple[Terms, Terms]:
    x, parameter, mean, variance = primals
    value, gradient, weight = logistic_terms(kind, *primals)
    zero = jnp.zeros_like(value)
    dx, dparameter, dm, dv = (zero if isinstance(t, SymbolicZero) else t for t in tangents)
    n = kind.trials(x, parameter)
    by_value, by_gradient, by_weight = gradient * dm - 0.5 * weight * dv, -weight * dm, zero
    if not all(isinstance(t, SymbolicZero) for t in tangents[2:]):
        # d/dm E f = E f', d/dv E f = E f'' / 2
        third, fourth = (n * expected_excess(order, mean, variance) for order in (3, 4))
        by_gradient, by_weight = by_gradient - 0.5 * third * dv, third * dm + 0.5 * fourth * dv
    if not all(isinstance(t, SymbolicZero) for t in tangents[:2]):
        rest = kind.rest(x, parameter)
        dn, drest = kind.trials(dx, dparameter), kind.rest(dx, dparameter)
        gap, shift, slope = mixture(mean, variance)
        by_x, by_rest = (softplus(t) + gap for t in (-mean, mean))
        if not kind.few:
            entropy = log_shares_by_each(x, rest)
            by_x, by_rest = (b + jnp.where(many(n), e, 0.0) for b, e in zip((by_x, by_rest), entropy, strict=True))
        by_value = by_value - by_x * dx - by_rest * drest
        by_gradient = by_gradient + dx - (sigmoid(mean) + shift) * dn
        by_weight = by_weight + slope * dn
    return (value, gradient, weight), (by_value, by_gradient, by_weight)
