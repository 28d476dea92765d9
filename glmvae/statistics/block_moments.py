"""The moments of one block of rows: compiled, or as it lies on the host; and of two blocks together."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.entries import all_inside
from glmvae.families import Family, Support
from glmvae.families.calculus import reads
from glmvae.rows import Rows, entered
from glmvae.statistics.at_null import joined, log_prob_at_null, moved
from glmvae.statistics.centring import Centred, centred_moments, divisor, weighted
from glmvae.statistics.host_moments import Sums, add, finished, mean_of, sums_on_host
from glmvae.statistics.residuals import brings_residuals, explained


class Beside(NamedTuple):
    """Mean (p,) and covariance (p, p) of covariates, and their covariance (p, d) with x."""

    mean: Any
    covariance: Any
    cross: Any


class Part(NamedTuple):
    """The fields of :class:`~glmvae.statistics.Moments`, and the least and largest value of every column."""

    count: Any
    mean: Any
    covariance: Any
    base_statistic: Any
    covariates: Beside | None
    at_offset: Any
    trials: Any
    null_log_prob: Any
    low: Any
    high: Any


class _Known(NamedTuple):
    """What of a block the family says: means over rows, the most trials of each column, and what it explains of x."""

    base_statistic: Any
    at_offset: Any
    trials: Any
    null_log_prob: Any
    explained: Any


def moments_of_block(rows: Rows, _: None, family: Family | None) -> tuple[Part, None]:
    """The moments of a block, traced."""
    refuse(rows, family)
    known = _known(rows, family)
    near = rows.x if known.explained is None else rows.x - known.explained
    joint = near if not rows.num_covariates else jnp.concatenate([near, _covariates(rows)], axis=1)
    found = centred_moments(joint, rows.weight)
    if known.explained is not None:
        found = found._replace(low=jnp.min(rows.x, axis=0), high=jnp.max(rows.x, axis=0))
    return _part(found, known, rows.num_columns), None


class OnHost(NamedTuple):
    """What adds up to a :class:`Part`, of rows on the host."""

    sums: Sums
    known: _Known

    def finished(self) -> Part:
        """The moments, in double precision."""
        low, high = self.low, self.high
        return _part(Centred(*finished(self.sums), low, high), self.known, len(low))

    @property
    def low(self) -> np.ndarray:
        """The least of every column."""
        return self.sums.low

    @property
    def high(self) -> np.ndarray:
        """The largest of every column."""
        return self.sums.high


def moments_on_host(rows: Rows, _: None, family: Family | None, dtype: Any, fixed: Any) -> tuple[OnHost, None]:
    """The moments of a block that is on the host, as it comes; ``fixed`` is a base statistic that no x changes."""
    refuse(rows, family)
    known = _Known(fixed, None, None, None, None)
    if not needs_no_program(family, fixed, rows):
        known = jax.tree.map(np.asarray, _compiled_known(rows, family, dtype=dtype))
    x, weight, covariates = (np.asarray(part) for part in (rows.x, rows.weight, rows.covariates))
    parts: Any = (x, weight, known.explained, covariates if rows.num_covariates else None)
    known = known._replace(explained=None)
    if weight.all():
        return OnHost(sums_on_host(x, weight, dtype, *parts[2:]), known), None
    counts = weight != 0  # not padding, nor rows that count for nothing
    counts[0] |= not counts.any()
    few = [part if part is None or len(part) != len(counts) else part[counts] for part in parts]
    sums = sums_on_host(few[0], few[1], dtype, *few[2:])
    return OnHost(sums._replace(low=parts[0].min(axis=0), high=parts[0].max(axis=0)), known), None


def needs_no_program(family: Family | None, fixed: Any, rows: Rows) -> bool:
    """Whether the family has nothing to say of single rows; what it says of them is compiled."""
    return family is None or (fixed is not None and not brings_residuals(family, rows))


def _part(found: Centred, known: _Known, d: int) -> Part:
    mean, covariance, covariates = found.mean, found.covariance, None
    if mean.shape[0] > d:
        covariates = Beside(mean[d:], covariance[d:, d:], covariance[d:, :d])
        mean, covariance = mean[:d], covariance[:d, :d]
    of_rows = known.at_offset, known.trials, known.null_log_prob
    return Part(
        found.count, mean, covariance, known.base_statistic, covariates, *of_rows, found.low[:d], found.high[:d]
    )


def refuse(rows: Rows, family: Family | None) -> None:
    """Rows that no moments tell all about.

    Raises:
        ValueError: missing entries; an offset or trials without a family.
    """
    if rows.missing is not None:
        raise ValueError(
            "missing: moments, and with them the closed form, know no missing entries; `refine` takes them (so does a "
            "trial count of 0, which is a missing entry)"
        )
    for name in ("offset", "trials"):
        if family is None and getattr(rows, name) is not None:
            raise ValueError(f"{name}: moments of rows with {name} need the family, moments(x, family=...), got none")


def inside(rows: Rows, family: Family | None, part: Part | OnHost) -> Any:
    """Whether all rows of a block are in the support: where its limits are those of a column, its ends tell."""
    if rows.trials is not None:
        return _all_inside(rows, family)
    support = Support() if family is None else family.support
    numpy: Any = np if isinstance(part.low, np.ndarray) else jnp
    lower, upper, is_open = (numpy.asarray(limit) for limit in support)
    held = numpy.isfinite(part.low) & numpy.isfinite(part.high) & (part.high <= upper)
    return numpy.all(held & ((part.low > lower) | ((part.low == lower) & ~is_open)))


_all_inside = jax.jit(all_inside)


def join(family: Family | None, a: Any, b: Any) -> Any:
    """The moments of two blocks together, and the ends of both; both a :class:`Part`, or both :class:`OnHost`.

    Raises:
        ValueError: blocks that bring different things.
    """
    a, b = (part.finished() if type(a) is not type(b) and isinstance(part, OnHost) else part for part in (a, b))
    if isinstance(a, Part):
        _check_alike(a, b)
        return _joined(a, b, family)
    _check_alike(*(part._replace(sums=part.sums.gram) for part in (a, b)))
    share = b.sums.count.sum() / divisor(a.sums.count.sum() + b.sums.count.sum())
    most = None if a.known.trials is None else np.maximum(a.known.trials, b.known.trials)
    left, right = _at_their_mean(family, a, b, share)
    with np.errstate(invalid="ignore"):  # a statistic out of range in both is infinite, and told when moments are held
        known = jax.tree.map(lambda u, v: u + share * (v - u), left, right)._replace(trials=most)
    return OnHost(add(a.sums, b.sums), known)


def _check_alike(a: Any, b: Any) -> None:
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(part)] for part in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "x: expected every batch to bring an offset, trials and as many covariates as the first, or none"
        )


def _at_their_mean(family: Family | None, a: OnHost, b: OnHost, share: Any) -> tuple[_Known, _Known]:
    """What is known of both, about the mean of them together."""
    if family is None or a.known.null_log_prob is None:
        return a.known, b.known
    columns = len(a.known.null_log_prob)
    left, right = (mean_of(part.sums)[1][:columns] for part in (a, b))
    to, residual = left + share * (right - left), a.known.at_offset is not None
    return tuple(  # type: ignore[return-value]
        known._replace(null_log_prob=np.asarray(_moved(family, known.null_log_prob, mean, to, residual=residual)))
        for known, mean in ((a.known, left), (b.known, right))
    )


_moved = jax.jit(moved, static_argnames="residual")


@jax.jit
def _joined(a: Part, b: Part, family: Family | None) -> Part:
    result: Part = joined(family, a, b)
    return result._replace(low=jnp.minimum(a.low, b.low), high=jnp.maximum(a.high, b.high))


# What the family says -------------------------------------------------------------------------------------


def fixed_statistic(family: Family | None, columns: int, dtype: Any) -> np.ndarray | None:
    """The base statistic (d,) of a family for which it is the same for every x; None for others, and without one."""
    if family is None or family.needs_trials:
        return None
    if reads(family.base_statistic, 0, jax.ShapeDtypeStruct((1, columns), dtype)):
        return None
    return np.asarray(_statistic(family, np.zeros((1, columns), dtype)))[0]


@jax.jit
def _statistic(family: Family, x: Array) -> Array:
    return family.base_statistic(x)


@functools.partial(jax.jit, static_argnames="dtype")
def _compiled_known(rows: Rows, family: Family, *, dtype: Any) -> _Known:
    return _known(entered(rows, family, dtype), family)


def _known(rows: Rows, family: Family | None) -> _Known:
    if family is None:
        return _Known(None, None, None, None, None)
    statistic = _mean(rows, family.for_rows(rows).base_statistic(rows.x))
    trials, at_offset, mean, at_null = None, None, None, None
    residual = brings_residuals(family, rows)
    if family.keeps_log_prob:
        at_null = _mean(rows, log_prob_at_null(family, rows, _mean(rows, rows.x), residual))
    if residual:
        mean, kernel = explained(family, rows)
        at_offset = _mean(rows, kernel)
    if family.needs_trials:
        most = jnp.max(jnp.where(rows.weight[:, None] > 0, rows.trials, 1.0), axis=0)
        trials = jnp.broadcast_to(most, (rows.num_columns,))
    return _Known(statistic, at_offset, trials, at_null, mean)


def _mean(rows: Rows, values: Array) -> Array:
    """The weighted mean over rows."""
    return jnp.sum(weighted(rows.weight[:, None], values), axis=0) / divisor(jnp.sum(rows.weight))


def _covariates(rows: Rows) -> Array:
    return jnp.broadcast_to(rows.covariates, (rows.num_rows, rows.num_covariates))
