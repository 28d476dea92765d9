"""Blocks of rows: how large, where each begins, and cut on the host, the last padded at weight 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.rows import Rows
from glmvae.stores import Block

# Rows of a block: one rung serves any number of rows.
LADDER = (8, 32, 128, 512, 2048, 8192)
# Entries (rows times columns) of a block, about: the temporaries of a pass are a few dozen times that.
_ENTRIES = 420_000
# A full block takes so many times as long as one of no rows.
_FULL_BLOCK = 64
# Times the least: a layout of larger blocks that is predicted to take no more is taken. Larger ones have their cores
# work together, which the prediction leaves out; and numbers of rows beside each other share their programs more often.
_NEAR = 1.05


def block_size(columns: int, entries: int = _ENTRIES) -> int:
    """Rows of a full block."""
    return max([rung for rung in LADDER if rung * columns <= entries], default=LADDER[0])


def layout(num_rows: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, count, padded size) of blocks that hold so many rows, all of one size: the largest that takes about the
    least time."""
    rungs = [rung for rung in LADDER if rung <= size]
    times = {rung: -(-num_rows // rung) * (rung + size / _FULL_BLOCK) for rung in rungs}
    rung = max(rung for rung in rungs if times[rung] <= _NEAR * min(times.values()))
    for start in range(0, num_rows, rung):
        yield start, min(rung, num_rows - start), rung


def cut_rows(rows: Rows, start: int, count: int, size: int) -> Rows:
    """Rows from ``start`` on, padded to ``size`` at weight 0."""
    cut = rows.map(lambda leaf: _cut(leaf, rows.num_rows, start, count, size))
    weight = np.zeros(size, rows.dtype)
    weight[:count] = 1.0 if rows.weight is None else np.asarray(rows.weight)[start : start + count]
    return cut.replace(weight=weight)


def cut_tree(tree: Any, block: Block, num_rows: int | None) -> Any:
    """Arrays with a leading axis N or 1, cut as the rows are."""

    def cut(leaf: Any) -> Any:  # what the rows share stays one, also beside a single row
        return leaf if leaf.shape[0] == 1 else _cut(leaf, num_rows, block.start, block.count, block.size)

    return jax.tree.map(cut, tree)


def _cut(leaf: Any, num_rows: int | None, start: int, count: int, size: int) -> Any:
    if leaf.shape[0] == 1 and num_rows != 1:  # one for all
        return leaf
    if not lies_on_host(leaf):
        cut = jax.lax.dynamic_slice_in_dim(leaf, start, count)
        return cut if count == size else jnp.concatenate([cut, jnp.repeat(cut[:1], size - count, axis=0)])
    part = np.asarray(leaf)[start : start + count]
    return part if count == size else np.concatenate([part, np.repeat(part[:1], size - count, axis=0)])


def lies_on_host(leaf: Any) -> bool:
    """Whether NumPy sees it without a copy."""
    return not isinstance(leaf, Array) or next(iter(leaf.devices())).platform == "cpu"


def seen_by_host(leaf: Any) -> Any:
    """As NumPy sees it, if without a copy."""
    return np.asarray(leaf) if lies_on_host(leaf) else leaf
