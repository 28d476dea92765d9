"""Mean and covariance of a block of rows, in float32 too; of two sets together; where to centre before a cast.

Of the Gram matrix only the blocks on and above the diagonal are multiplied.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

# Rows whose products are summed at once, and groups of about that many columns, at most so many: they stay in cache,
# and of g^2 pairs of groups only the g (g + 1) / 2 that differ are multiplied. Chosen by timing on 784 columns.
_ROWS = 1024
_GROUP = 112
_MOST_GROUPS = 7


class Centred(NamedTuple):
    """Of rows: the sum of their weights, mean (d,) and covariance (d, d).

    Also the least and largest of each column, (d,), of all rows, whatever they weigh.
    """

    count: Any
    mean: Any
    covariance: Any
    low: Any
    high: Any


def centred_moments(x: Float[Array, "n d"], weight: Float[Array, " n"]) -> Centred:
    """Moments of rows. Every few are centred at their own mean, in cache; the spread of these means is added."""
    n, d = x.shape
    pairs, whole = _pairs(d), x.shape[0] // _ROWS
    grams = [jnp.zeros((i.stop - i.start, j.stop - j.start), x.dtype) for i, j in pairs]

    def add(grams: list[Array], few: tuple[Array, Array]) -> tuple[list[Array], _Few]:
        centred, weight, found = _centred(*few)
        # Transposed once, for good: products of contiguous rows are a tenth faster.
        columns = jax.lax.optimization_barrier(centred.T)
        return [g + (weight[None] * columns[i]) @ columns[j].T for g, (i, j) in zip(grams, pairs, strict=True)], found

    parts = []
    if whole:
        cut = x[: whole * _ROWS].reshape(whole, _ROWS, d), weight[: whole * _ROWS].reshape(whole, _ROWS)
        grams, found = jax.lax.scan(add, grams, cut)
        parts.append(found)
    if whole * _ROWS < n:
        grams, found = add(grams, (x[whole * _ROWS :], weight[whole * _ROWS :]))
        parts.append(jax.tree.map(lambda leaf: leaf[None], found))
    few = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    count = jnp.sum(few.count)
    share = (few.count / divisor(count))[:, None]
    heaviest = few.mean[jnp.argmax(few.count)][None]
    mean = heaviest + jnp.sum(share * (few.mean - heaviest), axis=0, keepdims=True)
    apart, off = few.mean - mean, few.off
    between = (share * apart).T @ apart - (share * off).T @ off
    covariance = _joined(grams, pairs) / divisor(count) + 0.5 * (between + between.T)
    return Centred(count, mean[0], covariance, jnp.min(few.low, axis=0), jnp.max(few.high, axis=0))


class _Few(NamedTuple):
    """Of a few rows; ``off`` is by how much their mean is not where they were centred."""

    count: Array  # type: ignore[assignment]
    mean: Array
    off: Array
    low: Array
    high: Array


def weighted(weight: Array, values: Array) -> Array:
    """weight * values; what stands in a row of weight 0 counts for nothing, whatever it is."""
    return weight * _finite(weight, values)


def _finite(weight: Array, values: Array) -> Array:
    """The values, 0 where those of a row of weight 0 are not finite; others have their part in a derivative."""
    return jnp.where((weight != 0) | jnp.isfinite(values), values, 0.0)


def _centred(rows: Float[Array, "n d"], weight: Float[Array, " n"]) -> tuple[Array, Array, _Few]:
    """Rows less their mean, their weight, and what is to be known of them."""
    weight = jnp.where(weight < 0, jnp.nan, weight)
    each, count = weight[:, None], jnp.sum(weight)
    # From a row that counts: a column that never leaves its value there has variance 0, whatever its mean rounds to.
    first = rows[jnp.argmax(weight != 0)]
    mean = first + jnp.sum(weighted(each, rows - first[None]), axis=0) / divisor(count)
    centred = _finite(each, rows - mean[None])
    off = jnp.sum(each * centred, axis=0) / divisor(count)
    return centred, weight, _Few(count, mean + off, off, jnp.min(rows, axis=0), jnp.max(rows, axis=0))


def _pairs(columns: int) -> list[tuple[slice, slice]]:
    """The groups of columns whose products make the upper half of a Gram matrix."""
    groups = min(max(columns // _GROUP, 1), _MOST_GROUPS)
    edges = [columns * i // groups for i in range(groups + 1)]
    return list(itertools.combinations_with_replacement([slice(*ends) for ends in itertools.pairwise(edges)], 2))


def _joined(grams: list[Array], pairs: list[tuple[slice, slice]]) -> Array:
    """The whole of it; each product stands there twice, so that it is symmetric to the last digit."""
    columns = pairs[-1][1].stop
    whole = jnp.zeros((columns, columns), grams[0].dtype)
    for gram, (i, j) in zip(grams, pairs, strict=True):
        gram = 0.5 * (gram + gram.T) if i == j else gram
        whole = whole.at[j, i].set(gram.T).at[i, j].set(gram)
    return whole


def merged(a: Any, b: Any) -> Any:
    """Moments of two sets of rows taken together (Chan, Golub and LeVeque 1983); what but one of them has is None."""
    count = a.count + b.count
    share, other = b.count / divisor(count), a.count / divisor(count)

    def mean(u: Any, v: Any) -> Any:
        if u is None or v is None:
            return None
        # From the heavier of the two: a part that hardly counts, however far off, costs no digits.
        return jnp.where(share < other, u + share * (v - u), v + other * (u - v))

    def spread(u: Array, v: Array, left: Array, right: Array) -> Array:
        return other * u + share * v + other * share * jnp.outer(left, right)

    gap, covariates = b.mean - a.mean, None
    if a.covariates is not None and b.covariates is not None:
        left, right = a.covariates, b.covariates
        beside = right.mean - left.mean
        covariates = left._replace(
            mean=mean(left.mean, right.mean),
            covariance=spread(left.covariance, right.covariance, beside, beside),
            cross=spread(left.cross, right.cross, beside, gap),
        )
    return a._replace(
        count=count,
        mean=mean(a.mean, b.mean),
        covariance=spread(a.covariance, b.covariance, gap, gap),
        base_statistic=mean(a.base_statistic, b.base_statistic),
        covariates=covariates,
        at_offset=mean(a.at_offset, b.at_offset),
        trials=None if a.trials is None or b.trials is None else jnp.maximum(a.trials, b.trials),
    )


def divisor(value: Any) -> Any:
    """The value, 1 where it is 0."""
    return jnp.where(value == 0, 1.0, value) if isinstance(value, Array) else np.where(value == 0, 1.0, value)
