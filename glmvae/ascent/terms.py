"""The bounds that an ascent can climb: for every entry, a value, its gradient and its weight.

    terms(objective, rows, m, v) -> (value, gradient, weight)

of eta ~ N(m, v): the expected log-likelihood or a lower bound of it, its derivative in m, and a positive weight, minus
the second derivative or what stands in for it. The value leaves out what depends on x alone (``saturated_log_prob``).
Another bound is another such function.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from glmvae.model import Objective
from glmvae.rows import Rows, observed
from glmvae.tangents import tangent_terms

Terms = Callable[[Objective, Rows, Array, Array], tuple[Array, Array, Array]]


def exact_terms(objective: Objective, rows: Rows, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """E log p itself."""
    terms = objective.family.for_rows(rows).expected_terms(rows.x, mean, variance, objective.dispersion_of_entries)
    return _masked(rows, terms)


def entry_terms(objective: Objective, rows: Rows, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Jaakkola and Jordan's bound of it, with the best xi for every entry."""
    family = objective.family.for_rows(rows)
    return _masked(rows, tangent_terms(family, rows.x, mean, variance, objective.dispersion_of_entries))


def _masked(rows: Rows, terms: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    value, gradient, weight = (observed(rows, jnp.broadcast_to(term, rows.x.shape)) for term in terms)
    return value, gradient, weight
