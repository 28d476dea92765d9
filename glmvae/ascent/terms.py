"""The bounds that an ascent can climb: for every entry, a value, its gradient and its weight.

    terms(objective, rows, m, v) -> (value, gradient, weight)

of eta ~ N(m, v): the expected log-likelihood or a lower bound of it, its derivative in m, and a positive weight, minus
the second derivative or what stands in for it. The value leaves out what depends on x alone (``saturated_log_prob``).
Another bound is another such function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from glmvae.model import Objective
from glmvae.rows import Rows, observed
from glmvae.tangents import tangent_terms

# A ratio g / w below which g / t is w, to half as much.
_SMALL = 1e-3

Terms = Callable[[Objective, Rows, Array, Array], tuple[Array, Array, Array]]


def exact_terms(objective: Objective, rows: Rows, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """E log p itself."""
    terms = objective.family.for_rows(rows).expected_terms(rows.x, mean, variance, objective.dispersion_of_entries)
    return _masked(rows, terms)


def entry_terms(objective: Objective, rows: Rows, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Jaakkola and Jordan's bound of it, with the best xi for every entry."""
    family = objective.family.for_rows(rows)
    return _masked(rows, tangent_terms(family, rows.x, mean, variance, objective.dispersion_of_entries))


def held_weight(objective: Objective, gradient: Array, weight: Array) -> Array:
    """Weights (n, d) under which one step of least squares overshoots in no entry, where weights know no bound.

    As eta rises by t such a weight grows by a factor of e^t at most (Poisson's does), so that the gradient is used up
    at t = log(1 + g / w) at the earliest: g / t takes the place of w. The others are as they are.
    """

    def of(member: Any, gradient: Array, weight: Array) -> Array:
        if member.is_logistic or member.is_quadratic:
            return weight
        known = jnp.finfo(weight.dtype)
        ratio = jnp.minimum(jnp.maximum(gradient, 0.0) / jnp.maximum(weight, known.tiny), known.max)
        return jnp.where(ratio > _SMALL, gradient / jnp.log1p(ratio), weight)

    held: Array = objective.family.by_member(of, gradient, weight)
    return held


def _masked(rows: Rows, terms: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    value, gradient, weight = (observed(rows, jnp.broadcast_to(term, rows.x.shape)) for term in terms)
    return value, gradient, weight
