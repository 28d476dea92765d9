"""Checks of moments: made by hand, or by a pass over data that the precision in use cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from glmvae import _checks, _settings
from glmvae.entries import refuse_weightless
from glmvae.families import Family
from glmvae.families.checks import check_family

if TYPE_CHECKING:
    from glmvae.statistics import Moments

# Rounding units of a variance that its largest possible value is allowed; correlations of moments made by hand.
_ROUNDING = 1e4
_SLACK = 1e-3


def in_precision(tree: Any, dtype: DTypeLike) -> Any:
    """The tree with the floating arrays of it in one precision; Python's numbers follow by themselves."""

    def cast(leaf: Any) -> Any:
        is_array = isinstance(leaf, Array | np.ndarray | np.generic)
        return jnp.asarray(leaf, dtype) if is_array and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def check_held(data: Moments, low: Any, high: Any, column_names: tuple[str, ...] | None = None) -> None:
    """The precision in use holds the covariance of data whose columns lie between ``low`` and ``high``.

    Raises:
        ValueError: the weights or the covariance overflow or underflow; it names the column.
    """
    refuse_weightless(data.count)
    covariance = np.asarray(data.covariance)
    dtype, variance = covariance.dtype, np.diagonal(covariance)
    over = ~np.isfinite(covariance).all(axis=0)
    with np.errstate(over="ignore"):
        over |= (variance == variance.max()) & ~np.isfinite(variance.sum(dtype=dtype))  # so would their eigenvalues
        under = _underflows(np.asarray(high, np.float64) - np.asarray(low, np.float64), dtype)
    for bad, what in ((over, "overflows"), (under, "underflows")):
        if bad.any():
            column = int(np.argmax(bad))
            named = column if column_names is None else f'{column}, "{column_names[column]}",'
            raise ValueError(
                f"x: the covariance {what} in {dtype}; rescale the data (column {named} goes from "
                f"{float(low[column]):g} to {float(high[column]):g})"
            )


def held_or_nan(data: Moments, low: Array, high: Array) -> Moments:
    """Of traced data: NaN where :func:`check_held` would raise."""
    bad = _underflows(high - low, data.mean.dtype) | ~(data.count > 0)
    covariance = jnp.where(bad[:, None] | bad[None], jnp.nan, data.covariance)
    return data._replace(mean=jnp.where(bad, jnp.nan, data.mean), covariance=covariance)


def _underflows(spread: Any, dtype: DTypeLike) -> Any:
    """Whether columns that vary by so much have a variance without digits."""
    numbers = np.finfo(dtype)
    return (spread > 0) & (spread < np.sqrt(numbers.tiny / numbers.eps))


def check_parts(data: Moments, name: str) -> dict[str, Any]:
    """The parts of Moments, numbers of one precision whose shapes fit.

    Raises:
        TypeError: parts that are not numbers, no family.
        ValueError: it names the part and its shape, or the first entry that is not finite.
    """
    mean = _checks.numeric(data.mean, f"{name}.mean")
    if mean.ndim != 1 or not mean.shape[0]:
        raise ValueError(f"{name}.mean: expected shape (d,), got shape {mean.shape}")
    d, dtype = mean.shape[0], mean.dtype
    parts: dict[str, Any] = {
        "count": _settings.positive(data.count, f"{name}.count", dtype=dtype),
        "mean": _checks.finite(mean, f"{name}.mean"),
        "covariance": _covariance(data.covariance, f"{name}.covariance", d, dtype),
    }
    for part in ("base_statistic", "at_offset", "trials", "null_log_prob"):
        if (value := getattr(data, part)) is not None:
            parts[part] = _checks.vector(value, f"{name}.{part}", d).astype(dtype)
    if data.family is not None:
        check_family(data.family, f"{name}.family")
    return parts


def check_covariates(covariates: Any, mean: Array, name: str) -> tuple[Array, Array, Array]:
    """The mean (p,), covariance (p, p) and cross-covariance (p, d) of covariates.

    Raises:
        ValueError, TypeError: as :func:`check_parts`.
    """
    first = _checks.numeric(covariates.mean, f"{name}.mean")
    if first.ndim != 1 or not first.shape[0]:
        raise ValueError(f"{name}.mean: expected shape (p,), got shape {first.shape}")
    p, d = first.shape[0], mean.shape[0]
    cross = _checks.matrix(covariates.cross, f"{name}.cross", rows=p, columns=d)
    spread = _covariance(covariates.covariance, f"{name}.covariance", p, mean.dtype)
    return _checks.finite(first, f"{name}.mean").astype(mean.dtype), spread, cross.astype(mean.dtype)


def _covariance(value: Any, name: str, size: int, dtype: DTypeLike) -> Array:
    result = _checks.matrix(value, name, rows=size, columns=size).astype(dtype)
    if _checks.concrete(result):
        host = np.asarray(result)
        diagonal = np.diagonal(host)
        if (diagonal < 0).any():
            raise ValueError(
                f"{name}: expected variances of at least 0, got one below at {_checks.first_index(diagonal < 0)}"
            )
        most = np.outer(np.sqrt(diagonal), np.sqrt(diagonal))
        gap = np.abs(host - host.T) > _SLACK * most
        if gap.any():
            raise ValueError(
                f"{name}: expected a symmetric matrix, got another entry across {_checks.first_index(gap)}"
            )
        beyond = np.abs(host) > (1 + _SLACK) * most
        if beyond.any():
            raise ValueError(f"{name}: expected no correlation beyond 1, got one at {_checks.first_index(beyond)}")
    return result


def check_possible(data: Moments, family: Family, name: str) -> None:
    """Some data of the family have these moments: means inside the support, and variances no larger than it allows.

    Raises:
        ValueError: it names the first column that is beyond.
    """
    if not _checks.concrete((data, family)):
        return
    mean = np.asarray(data.mean)
    lower, upper = (np.asarray(limit, mean.dtype) for limit in family.support[:2])
    rounding = _ROUNDING * np.finfo(mean.dtype).eps
    with np.errstate(invalid="ignore"):
        allowed = np.where(np.isfinite(lower) & np.isfinite(upper), (mean - lower) * (upper - mean), np.inf)
        slack = rounding * np.where(np.isfinite(upper - lower), (upper - lower) ** 2, 1.0)
    for bad, part, values in (
        (~((mean >= lower) & (mean <= upper)), "mean", mean),
        (
            np.diagonal(np.asarray(data.covariance)) > allowed + slack,
            "covariance",
            np.diagonal(np.asarray(data.covariance)),
        ),
    ):
        if bad.any():
            column = int(np.argmax(bad))
            member = family.of_column(column)
            raise ValueError(
                f"{name}.{part}: expected moments of data in the support {member.support} of {member!r}, got "
                f"{float(values[column]):g} in column {column}"
            )
