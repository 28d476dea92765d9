"""What the loop over rows calls: steps of the posteriors of a block, and the sums that the decoder needs.

A pass is a function ``(rows, posteriors, decoder, objective, change, steps, tolerance) -> (Sums, posteriors)``, one for
each bound; :func:`exact_steps` has no sums. Of :data:`EQUATIONS` steps it takes none and hands back, in place of the
posteriors, what a step of theirs is made of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from glmvae._numerics import unpacked, upper_triangle
from glmvae.ascent.posteriors import full_rows, steps_of
from glmvae.ascent.row_posteriors import RowPosteriors
from glmvae.ascent.terms import Terms, entry_terms, exact_terms, held_weight
from glmvae.model import Affine
from glmvae.rows import Rows, weighted_sum
from glmvae.variational import Posterior, packed_curvature

# In place of a number of steps: none, and of every row that weighs anything normal equations of its mean, C mu = h with
# C = W' diag(w) W (packed, where the covariance was) and h = W' (g + w W mu) (where the mean was), w here a
# :func:`~glmvae.ascent.terms.held_weight`. All of ``gram`` is the sum of the weights themselves.
EQUATIONS = -1


class Sums(NamedTuple):
    """What a pass sums up over rows, each times its weight.

    ``elbo`` is without what depends on x alone. ``before`` and ``after`` are the values of the bound by column before
    the steps of the q and after them. ``gram`` (d, r (r + 1) / 2, packed) is of w E z~ z~', ``score`` (d, r) of the
    gradient of the bound in (W_j, b_j, B_j), less the part that the spread of z takes, ``spread`` of E z~ z~', all with
    z~ = (z, 1, covariates), r long. ``entries`` (d,) counts what was observed, ``num_rows`` the rows.
    """

    num_rows: Array
    elbo: Array
    before: Array
    after: Array
    gram: Array
    score: Array
    spread: Array
    entries: Array


def _pass(terms: Terms, rows: Rows, old: RowPosteriors, decoder: Affine, *args: Any) -> tuple[Sums, RowPosteriors]:
    objective, change, steps, tolerance = args
    known, before = steps_of(terms, rows, old, decoder, objective, change, jnp.maximum(steps, 0), tolerance)
    q = known.q
    row_weight = rows.weight[:, None]
    weight = known.weight * row_weight
    ones = jnp.ones((q.mean.shape[0], 1), q.mean.dtype)
    covariates = [] if rows.covariates is None else [full_rows(rows.covariates, rows)]
    mean = jnp.concatenate([q.mean, ones, *covariates], axis=1)
    first, second, _ = upper_triangle(mean.shape[1])
    # E z~ z~', packed: it begins with the entries of which both are latent
    rest = len(first) - q.covariance.shape[1]
    moment = mean[:, first] * mean[:, second] + jnp.pad(q.covariance, ((0, 0), (0, rest)))
    linear = q.mean @ decoder.loadings.T  # m less what does not depend on z
    response = known.gradient + known.weight * linear
    entries = jnp.ones_like(known.value) if rows.missing is None else jnp.where(rows.missing, 0.0, 1.0)
    counts = row_weight > 0

    def of_rows() -> tuple[Array, Array, Array]:
        held = held_weight(objective, known.gradient, known.weight)
        called = jnp.where(counts, known.gradient + held * linear, 0.0) @ decoder.loadings
        curvature = packed_curvature(decoder.loadings, jnp.where(counts, held, 0.0))
        summed = weighted_sum(rows, known.weight)[:, None]
        return called, curvature, jnp.broadcast_to(summed, (len(summed), len(first)))

    def of_columns() -> tuple[Array, Array, Array]:
        return q.mean, q.covariance, weight.T @ moment

    of_mean, of_covariance, gram = jax.lax.cond(steps == EQUATIONS, of_rows, of_columns)
    return Sums(
        jnp.sum(rows.weight),
        weighted_sum(rows, known.elbo),
        before,
        weighted_sum(rows, known.value),
        gram,
        (row_weight * response).T @ mean,
        jnp.sum(row_weight * moment, axis=0),
        weighted_sum(rows, entries),
    ), q._replace(mean=of_mean, covariance=of_covariance)


def exact_pass(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[Sums, RowPosteriors]:
    """A pass under the exact ELBO."""
    return _pass(exact_terms, rows, old, *args)


def entry_pass(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[Sums, RowPosteriors]:
    """A pass under Jaakkola and Jordan's bound by entry."""
    return _pass(entry_terms, rows, old, *args)


def exact_steps(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[None, Posterior]:
    """Steps of the q alone, under the exact ELBO, from posteriors that the rows may share."""
    n = rows.x.shape[0]
    old = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape[1:])), old)
    q = steps_of(exact_terms, rows, old, *args)[0].q
    return None, Posterior(q.mean, unpacked(q.covariance, q.mean.shape[1]))
