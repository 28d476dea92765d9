"""What a pass over many rows holds: a source that looks, and the most that was held."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from glmvae import Rows
from glmvae.sources import Source


class Measured(Source):
    """Batches of a generator, with what JAX holds at each of them.

    They are wide: the handles of what a block returned, some 6 kB in Python's memory, are little beside its rows.
    """

    num_columns, dtype = 800, np.dtype("float32")

    def __init__(self, count: int) -> None:
        self.count: int = count
        self.held: list[int] = []

    def pieces(self) -> Iterator[Rows]:
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            gc.collect()  # what nobody holds any more is not held
            arrays = jax.block_until_ready(jax.live_arrays())  # or up to 32 blocks wait for their turn
            self.held.append(sum(a.nbytes for a in arrays))
            del arrays
            yield Rows(rng.integers(0, 2, (512, self.num_columns)).astype("uint8"))


def peak(run: Callable[[Measured], Any], source: Measured) -> tuple[int, int]:
    """The most that NumPy and Python hold, and that JAX does at the borders of pieces."""
    gc.freeze()  # so that what is collected at every piece is quickly found
    tracemalloc.start()
    run(source)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.unfreeze()
    return most, max(source.held) - source.held[0]
