"""The fields of :class:`~glmvae.rows.Rows`, checked as they are brought."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from glmvae import _checks, _frames, _settings


def checked_fields(
    x: Any, trials: Any, offset: Any, covariates: Any, missing: Any, weight: Any
) -> tuple[tuple[Any, ...], tuple[tuple[int, int], ...]]:
    """The fields, and (row, column) of the first entry that is missing for want of trials, of each column."""
    names = _frames.names_of(x)
    for name, table in (("trials", trials), ("offset", offset), ("missing", missing)):
        refuse_moved(table, names, name, "of x")
    x, missing = _data(x, missing)
    n, d = x.shape
    trials, missing, without = _trials(trials, missing, n, d)
    offset = _offset(offset, missing, n, d)
    if covariates is not None:
        names, covariates = _frames.names_of(covariates), _checks.array(covariates, "covariates")
        if covariates.ndim != 2 or covariates.shape[0] not in (1, n):
            raise ValueError(f"covariates: expected shape ({n}, p), got shape {covariates.shape}")
        _finite(covariates, "covariates", names)
    if weight is not None:
        weight = _checks.array(weight, "weight")
        if weight.shape != (n,):
            raise ValueError(f"weight: expected shape ({n},), one a row, got shape {weight.shape}")
        _settings.not_negative(weight, "weight")
        if _checks.concrete(weight) and not np.any(np.asarray(weight) > 0):
            raise ValueError("weight: expected a positive sum, got 0")
    return (x, trials, offset, covariates, missing, weight), without


def _data(x: Any, missing: Any) -> tuple[Any, Any]:
    """The matrix x, and what is missing of it."""
    mask = None
    if isinstance(x, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(x)
        x = x.data
    x = _checks.array(x, "x")
    _checks.two_dimensional(x, "x")
    if missing is not None:
        missing = _checks.array(missing, "missing", kinds="b")
        if missing.shape not in (x.shape, (1, x.shape[1])):
            raise ValueError(f"missing: expected shape {x.shape} or (1, {x.shape[1]}), got shape {missing.shape}")
    if mask is not None and mask.any():
        missing = mask if missing is None else missing | mask
    return x, missing


def _trials(trials: Any, missing: Any, n: int, d: int) -> tuple[Any, Any, tuple[tuple[int, int], ...]]:
    """Trials of at least 1, what is missing, and where the first of each column is that is so for want of trials."""
    if trials is None:
        return None, missing, ()
    trials = _checks.array(trials, "trials")
    if trials.shape not in ((n, d), (1, d), (n, 1)):
        raise ValueError(f"trials: expected shape ({n}, {d}), (1, {d}) or ({n}, 1), got shape {trials.shape}")
    trials = _harmless(trials, missing, 1)
    _settings.not_negative(trials, "trials")
    if _checks.concrete(trials) and np.all(np.asarray(trials) > 0):
        return trials, missing, ()
    numpy = np if isinstance(trials, np.ndarray) else jnp
    none = numpy.broadcast_to(trials == 0, (n, d))
    first: tuple[tuple[int, int], ...] = ()
    if _checks.concrete((none, missing)):
        alone = np.asarray(none) if missing is None else np.asarray(none) & ~np.asarray(missing)
        first = tuple((int(np.argmax(alone[:, j])), int(j)) for j in np.flatnonzero(alone.any(axis=0)))
    return numpy.where(trials == 0, 1, trials), none if missing is None else none | missing, first


def _offset(offset: Any, missing: Any, n: int, d: int) -> Any:
    """(N, 1), (N, d) or (1, d)."""
    if offset is None:
        return None
    names, offset = _frames.names_of(offset), _checks.array(offset, "offset")
    if offset.shape == (n,):
        offset = offset[:, None]
    if offset.ndim != 2 or offset.shape not in ((n, 1), (n, d), (1, d)):
        advice = ""
        if offset.shape == (d,):
            advice = "; for one a column, offset[None]"
        raise ValueError(
            f"offset: expected shape ({n},) or ({n}, 1), one a row, ({n}, {d}), or (1, {d}), one a column, "
            f"got shape {offset.shape}{advice}"
        )
    offset = _harmless(offset, missing, 0)
    _finite(offset, "offset", names)
    return offset


def _harmless(values: Any, missing: Any, filler: int) -> Any:
    """The values; if one is not finite with a filler where an entry is missing, for nothing is asked of these."""
    if missing is None or not _checks.concrete((values, missing)) or np.isfinite(np.asarray(values)).all():
        return values
    return np.where(np.asarray(missing), np.asarray(filler, values.dtype), np.asarray(values))


def _finite(values: Any, name: str, column_names: tuple[str, ...] | None) -> None:
    """Every entry is finite; of a table the first that is not is told by its column's name."""
    is_named = column_names is not None and len(column_names) == values.shape[1]
    if is_named and (bad := ~np.isfinite(values)).any():
        value, where = _checks.first_bad(values, bad, (0, 0), column_names)
        raise ValueError(f"{name}: expected finite numbers, got {value:g}{where}")
    _checks.finite(values, name)


def refuse_moved(table: Any, names: Any, name: str, whose: str) -> None:
    """A table beside another has no column of that one at another place.

    Raises:
        ValueError: it has; it names the first. A column of a name that the other does not have stands where it stands.
    """
    got = _frames.names_of(table)
    if got is None or names is None or len(got) != len(names):
        return
    for j, (wanted, here) in enumerate(zip(names, got, strict=True)):
        if here != wanted and here in names:
            raise ValueError(f'{name}: expected the columns {whose}, "{wanted}" at {j}, got "{here}"')
