"""Entries of rows held to the support of their columns, as they are passed over or looked at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import _checks, _frames
from glmvae.families import Family
from glmvae.families.support import refuse_value
from glmvae.rows import Rows

# Rows looked at together.
_BLOCK = 1000


def inside(rows: Rows, family: Family | None) -> Array:
    """Whether each entry is finite and in the support, or missing."""
    held = jnp.isfinite(rows.x) if family is None else family.for_rows(rows).support.contains(rows.x)
    return held if rows.missing is None else held | rows.missing


def all_inside(rows: Rows, family: Family | None, summand: Any = None) -> Array:
    """Whether all are."""
    return jnp.all(inside(rows, family))


def refuse_empty(entries: Any, column_names: tuple[str, ...] | None, name: str = "missing") -> None:
    """Raise for the first column of which no row has an entry, from how many each has, (d,).

    Raises:
        ValueError: there is one.
    """
    none = np.asarray(entries) == 0
    if none.any():
        column = int(np.argmax(none))
        where = f"[{column}]{_frames.shown(column, column_names)}"
        raise ValueError(f"{name}: expected an entry in every column, got none at {where}")


def refuse_weightless(total: Any) -> None:
    """Raise where the weights of the rows sum to what the precision in use cannot hold."""
    if not np.isfinite(total) or float(total) <= 0:
        raise ValueError(f"weight: expected a sum that {np.asarray(total).dtype} can hold, got {float(total):g}")


def refuse_entry(
    rows: Rows, family: Family | None, first_row: int, name: str, column_names: tuple[str, ...] | None
) -> None:
    """Raise for the first entry of some rows that is not finite or out of the support."""
    for start in range(0, rows.num_rows, _BLOCK):
        part = _part(rows, slice(start, start + _BLOCK))
        with _checks.at_once():
            bad = ~np.asarray(inside(part.map(jax.device_put), family))
        if bad.any():
            _refuse_above_trials(part, bad, family, first_row + start, name, column_names)
            refuse_value(np.asarray(part.x), bad, family, (first_row + start, 0), name, column_names)


def _refuse_above_trials(
    rows: Rows, bad: np.ndarray, family: Family | None, first_row: int, name: str, column_names: tuple[str, ...] | None
) -> None:
    """Raise for the first bad entry if it is a number and its row brought the trials: the support ends at these."""
    row, column = (int(i) for i in np.argwhere(bad)[0])
    value, where = _checks.first_bad(np.asarray(rows.x), bad, (first_row, 0), column_names)
    member = None if family is None or rows.trials is None else family.of_column(column)
    if member is not None and member.needs_trials and np.isfinite(value):
        trials = np.broadcast_to(np.asarray(rows.trials), bad.shape)[row, column]
        raise ValueError(
            f"{name}: expected values in the support [0, {trials:g}] of {member!r}, the entry having {trials:g} "
            f"trials, got {value:g}{where}"
        )


def look_at(rows: Rows, family: Family | None, name: str) -> None:
    """Raise for the first entry that is not finite or out of the support, where the family can be looked at."""
    if _checks.concrete(family):
        refuse_entry(rows, family, 0, name, rows.column_names)


def _part(rows: Rows, part: slice) -> Rows:
    return rows.map(lambda leaf: leaf if leaf.shape[0] != rows.num_rows else leaf[part])
