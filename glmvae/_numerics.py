"""Many small symmetric matrices at once, packed or not.

They are inverted without LAPACK: its batched solvers can wait for each other for ever.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


def symmetric_inverse(matrices: Float[Array, "n k k"]) -> tuple[Float[Array, "n k k"], Float[Array, " n"]]:
    """Inverses and log-determinants of many symmetric positive definite matrices: :func:`packed_inverse`."""
    size = matrices.shape[-1]
    first, second, _ = upper_triangle(size)
    inverse, log_det = packed_inverse(matrices[:, first, second].T, size)
    return unpacked(inverse.T, size), log_det


def packed_inverse(packed: Float[Array, "p n"], size: int) -> tuple[Float[Array, "p n"], Float[Array, " n"]]:
    """From upper triangle to upper triangle; the matrices lie along the last axis, along which every operation runs.

    A^-1 = L^-T L^-1 with A = L L': positive semidefinite, and in agreement with the determinant, whatever the rounding.
    A pivot that is nothing but rounding counts for nothing in either.
    """
    if size == 0:
        return packed, jnp.zeros(packed.shape[1], packed.dtype)
    first, second, where = upper_triangle(size)
    unit = np.arange(size)[:, None]
    least = size * jnp.finfo(packed.dtype).eps * packed[np.diagonal(where)]

    def eliminate(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # Rows below j: what is left of A to the right of j, what there is of L^-1 to the left. Above: L^-1 alone.
        reduced, inverse, log_det, *last = carry

        def scaled() -> list[Array]:
            usable = reduced[j, j] > least[j]
            pivot = jnp.where(usable, reduced[j, j], 1.0)
            reciprocal = jnp.where(usable, jax.lax.rsqrt(pivot), 0.0)
            column = jnp.where(unit > j, reduced[:, j] * reciprocal[None], 0.0)
            row = jnp.where(unit == j, reciprocal[None], reduced[j] * reciprocal[None])
            return [column, row, log_det + jnp.log(pivot)]

        # Always so. What a branch returns is an array, XLA would compute anything else again wherever it is needed
        column, row, log_det = jax.lax.cond(j < size, scaled, lambda: [*last, log_det])
        reduced = jnp.where((unit == j)[None], 0.0, reduced) - column[:, None] * row[None]
        reduced = jnp.where((unit == j)[:, None], row[None], reduced)
        inverse = inverse + jnp.where((second <= j)[:, None], row[first] * row[second], 0.0)  # of L^-1
        return reduced, inverse, log_det, column, row

    start = packed[where], jnp.zeros_like(packed), jnp.zeros(packed.shape[1], packed.dtype), least, least
    _, inverse, log_det, *_ = jax.lax.fori_loop(0, size, eliminate, start)
    return inverse, log_det


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
    """Symmetric matrices from their upper triangles; NumPy's as NumPy's."""
    where = upper_triangle(size)[2]
    return np.take(packed, where, axis=1) if isinstance(packed, np.ndarray) else packed[:, where]


def packed_trace(packed: Float[Array, "p n"], size: int) -> Float[Array, " n"]:
    """Traces of matrices that lie along the last axis."""
    return jnp.sum(packed[np.diagonal(upper_triangle(size)[2])], axis=0)


def packed_product(packed: Float[Array, "p n"], vectors: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Matrices that lie along the last axis, each times its vector."""
    where = upper_triangle(vectors.shape[1])[2]
    return jnp.sum(packed[where] * vectors.T[None], axis=1).T


def congruent(transform: Float[Array, "k k"], packed: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """T S T' of symmetric S, from upper triangle to upper triangle."""
    first, second, where = upper_triangle(len(transform))
    half = jnp.einsum("ak,kln->aln", transform, packed.T[where])  # the rows last
    return jnp.einsum("bl,aln->abn", transform, half)[first, second].T
