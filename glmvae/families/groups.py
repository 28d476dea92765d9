"""Groups of columns: what a member of :class:`~glmvae.families.Mixed` is for."""

from __future__ import annotations

from typing import Any

import numpy as np


def group_of(columns: Any, name: str) -> tuple[int, ...]:
    """Columns from 0, of a list or a slice.

    Raises:
        TypeError: they are no integers.
        ValueError: there are none, or one below 0.
    """
    if isinstance(columns, slice):
        if columns.stop is None or any(v is not None and v < 0 for v in (columns.start, columns.stop)):
            raise ValueError(f"{name}: expected a slice with a stop and nothing negative, got {columns}")
        columns = np.arange(columns.stop)[columns]
    array = np.asarray(columns)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected a list of at least one column, got shape {array.shape}")
    if array.min() < 0:
        raise ValueError(f"{name}: expected columns from 0, got {array.min()} at [{array.argmin()}]")
    return tuple(array.tolist())


def index_of(group: tuple[int, ...]) -> slice | np.ndarray:
    """The group as an index; a slice where it is a run, which is cheaper."""
    run = group == tuple(range(group[0], group[-1] + 1))
    return slice(group[0], group[-1] + 1) if run else np.array(group)


def check_cover(groups: list[tuple[int, ...]]) -> None:
    """Every column belongs to one group.

    Raises:
        ValueError: one belongs to none, or to two.
    """
    if not groups:
        raise ValueError("members: expected at least one pair (family, columns), got none")
    counts = np.bincount([column for group in groups for column in group])
    if counts.max() > 1:
        raise ValueError(f"members: expected every column once, got column {np.argmax(counts > 1)} more than once")
    if counts.min() < 1:
        raise ValueError(f"members: expected columns 0 to {counts.size - 1}, got none for column {np.argmin(counts)}")


def text_of(group: tuple[int, ...]) -> str:
    """The group as one would write it."""
    index = index_of(group)
    return f"slice({index.start}, {index.stop})" if isinstance(index, slice) and len(group) > 3 else str(list(group))
