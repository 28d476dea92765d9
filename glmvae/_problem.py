"""What an ascent holds fixed, and how it is cut into blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# Entries (rows times columns) a block: the temporaries of a pass are a few dozen times that.
_BLOCK_ENTRIES = 1 << 18


class Problem(NamedTuple):
    """What stays fixed: data and model. ``offset`` is None, (d,) or (N, d); ``observed`` None or (N, d), bool.

    ``constant`` is what ``family.expected_terms`` leaves out, summed over the row; see :func:`problem_of`.
    """

    x: Float[Array, "n d"]
    family: Any
    beta: Float[Array, ""]
    dispersion: Float[Array, "*d"]
    offset: Array | None
    observed: Array | None
    constant: Float[Array, " n"]


def problem_of(
    x: Array, family: Any, beta: Array, dispersion: Array, offset: Array | None = None, observed: Array | None = None
) -> Problem:
    """The problem with its constants, which are computed once, block by block."""
    problem = Problem(x, family, beta, dispersion, offset, observed, jnp.zeros(x.shape[0], x.dtype))
    return problem._replace(constant=_constants(problem))


@jax.jit
def _constants(problem: Problem) -> Float[Array, " n"]:
    num_rows = problem.x.shape[0]
    size, num_blocks = blocks(problem)

    def body(i: Array, constants: Array) -> Array:
        start = jnp.minimum(i * size, num_rows - size)
        block = block_of(problem, start, size)
        values = jnp.broadcast_to(block.family.expected_terms_constant(block.x, block.dispersion), block.x.shape)
        if block.observed is not None:
            values = jnp.where(block.observed, values, 0.0)
        return jax.lax.dynamic_update_slice_in_dim(constants, jnp.sum(values, axis=1), start, 0)

    return jax.lax.fori_loop(0, num_blocks, body, problem.constant)


def block_of(problem: Problem, start: Array, size: int) -> Problem:
    """``size`` rows from ``start``."""
    return _cut(problem, lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), start, size))


def rows_of(problem: Problem, rows: Array) -> Problem:
    """The rows of these numbers."""
    return _cut(problem, lambda leaf: jnp.asarray(leaf)[rows])


def _cut(problem: Problem, part: Callable[[Any], Array]) -> Problem:
    """Whatever has one value an entry is cut alike, the family's trials too."""
    shape = problem.x.shape
    cut = jax.tree.map(lambda leaf: part(leaf) if jnp.ndim(leaf) == 2 and jnp.shape(leaf) == shape else leaf, problem)
    return cut._replace(constant=part(problem.constant))


def block_size(rows: int, columns: int) -> int:
    """Rows a block."""
    return max(1, min(rows, _BLOCK_ENTRIES // columns))


def blocks(problem: Problem) -> tuple[int, int]:
    """Rows a block, and blocks; the last is as long as the others and starts earlier."""
    rows, columns = problem.x.shape
    size = block_size(rows, columns)
    return size, math.ceil(rows / size)
