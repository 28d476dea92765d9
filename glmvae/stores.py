"""What rows keep from pass to pass, and results a row, block by block.

A store that cannot roll back would be wrong: an ascent tries steps and rejects some. So it has three verbs, read, write
into a shadow, commit. This one is in memory; one in a file or one that computes again has the same three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array


class Block(NamedTuple):
    """Which rows: the number of the block, its first row, how many rows it has, and how many with the padding."""

    index: int  # type: ignore[assignment]  # of a tuple
    start: int
    count: int  # type: ignore[assignment]
    size: int


class Store:
    """What rows keep from pass to pass, block by block: read the old, write into a shadow, commit it or let it go."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}
        self._shadow: dict[int, Any] = {}
        self._counts: dict[int, int] = {}

    def read(self, block: Block) -> Any:
        """What the rows of the block keep, None where nothing was committed."""
        return self._kept.get(block.index)

    def write(self, block: Block, value: Any) -> None:
        """For the next commit."""
        self._shadow[block.index] = value
        self._counts[block.index] = block.count

    def commit(self) -> None:
        """What was written is what is read."""
        self._kept, self._shadow = self._shadow, {}

    def replace(self, f: Callable[[Any], Any]) -> None:
        """Put f of what is kept in its place, block by block."""
        self._kept = {index: f(value) for index, value in self._kept.items()}

    def gathered(self) -> Any:
        """All that was committed, row after row, without the padding."""
        return joined([self._kept[i] for i in sorted(self._kept)], [self._counts[i] for i in sorted(self._kept)])


def joined(values: list[Any], counts: list[int]) -> Any:
    """Results of blocks as those of the rows; what is one in every block, and the same in all, the rows share."""
    if len(values) == 1 and all(leaf.shape[0] == counts[0] for leaf in jax.tree.leaves(values[0])):
        return values[0]

    def join(*leaves: Array) -> Array:
        hosts = [np.asarray(leaf) for leaf in leaves]  # where another length compiles nothing
        if all(len(leaf) == 1 and np.array_equal(leaf, hosts[0], equal_nan=True) for leaf in hosts):
            return leaves[0]  # a block is longer
        pairs = zip(hosts, counts, strict=True)
        parts = [leaf[:n] if len(leaf) > 1 else np.broadcast_to(leaf, (n, *leaf.shape[1:])) for leaf, n in pairs]
        return jax.device_put(np.concatenate(parts))

    return jax.tree.map(join, *values)
