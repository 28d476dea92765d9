"""Many small symmetric matrices at once, packed or not.

They are inverted without LAPACK: its batched solvers can wait for each other for ever.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

# The largest matrices that are summed up entry by entry; of larger ones a matrix product is faster.
_SUMMED = 8


def symmetric_inverse(matrices: Float[Array, "k k n"]) -> tuple[Float[Array, "n k k"], Float[Array, " n"]]:
    """Inverses and log-determinants of many symmetric positive definite matrices, which lie along the last axis.

    Every operation runs along it.

    A^-1 = L^-T L^-1 with A = L L': positive semidefinite, and in agreement with the determinant, whatever the rounding.
    A pivot that is nothing but rounding counts for nothing in either.
    """
    size, many = matrices.shape[1:]
    if size == 0:
        return jnp.zeros((many, 0, 0), matrices.dtype), jnp.zeros(many, matrices.dtype)
    unit = jnp.arange(size)[:, None]
    barrier = jax.lax.optimization_barrier  # or XLA computes a column again for every entry that needs it
    least = size * jnp.finfo(matrices.dtype).eps * matrices[np.arange(size), np.arange(size)]

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Rows below j: what is left of A to the right of j, what there is of L^-1 to the left. Above: L^-1 alone.
        reduced, log_det = carry
        pivot = reduced[j, j]
        usable = pivot > least[j]
        reciprocal = barrier(jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, pivot, 1.0)), 0.0))
        column = jnp.where(unit > j, reduced[:, j] * reciprocal[None], 0.0)
        row = jnp.where(unit == j, reciprocal[None], reduced[j] * reciprocal[None])
        column, row = barrier((column, row))
        reduced = jnp.where((unit == j)[None], 0.0, reduced) - column[:, None] * row[None]
        reduced = jax.lax.dynamic_update_index_in_dim(reduced, row, j, 0)
        return reduced, log_det + jnp.log(jnp.where(usable, pivot, 1.0))

    none = jnp.zeros(many, matrices.dtype)
    root, log_det = jax.lax.fori_loop(0, size, eliminate, (matrices, none))
    root = barrier(jnp.where((unit >= unit.T)[..., None], root, 0.0))
    if size > _SUMMED:
        root = jnp.moveaxis(root, -1, 0)
        return jnp.einsum("nji,njk->nik", root, root), log_det
    return jnp.moveaxis(sum(row[:, None] * row[None] for row in root), -1, 0), log_det


def trace_of(matrices: Float[Array, "n k k"]) -> Float[Array, " n"]:
    """Traces; ``jnp.trace`` reads all of a matrix."""
    return jnp.sum(jnp.diagonal(matrices, axis1=-2, axis2=-1), axis=-1)


def upper_triangle(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column index of the upper triangle, and where in it each entry of the full matrix lies.

    Column by column, so that it begins with that of every smaller matrix in the corner.
    """
    column, row = np.tril_indices(size)
    where = np.zeros((size, size), int)
    where[row, column] = where[column, row] = np.arange(len(row))
    return row, column, where


def unpacked(packed: Float[Array, "n p"], size: int) -> Float[Array, "n k k"]:
    """Symmetric matrices from their upper triangles."""
    return packed[:, upper_triangle(size)[2]]


def congruent(transform: Float[Array, "m k"], packed: Float[Array, "n p"]) -> Float[Array, "n m m"]:
    """T S T' of symmetric S from their upper triangles, in two products that move nothing."""
    where = upper_triangle(transform.shape[1])[2]
    half = jnp.tensordot(packed.T[where], transform, ((0,), (1,)))
    return jnp.tensordot(half, transform, ((0,), (1,)))
