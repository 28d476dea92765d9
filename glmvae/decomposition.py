"""Eigendecompositions of symmetric matrices: descending, none below 0, with one sign for every vector.

Of concrete matrices by LAPACK in double precision, whatever the matrix comes in; and on one thread, since threads of a
BLAS that wait for each other on a busy machine cost far more than they ever gain. Where only leading vectors are asked
for, the matrix is made tridiagonal once, which gives all eigenvalues and those vectors. Each is off by rounding units
of the largest. Where columns of very different scale would lose the small ones to that, and what is left beside the
leading ones is asked for, Jacobi's rotations keep them. Of traced matrices by ``jnp.linalg.eigh`` in their own
precision, with a first derivative that stays finite and right where eigenvalues are equal; second ones want them apart.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from glmvae import _checks
from glmvae._precision import in_full

# Entries of a vector within that share of the largest are as large as it, whatever rounding says.
_AS_LARGE = 0.999
# Rounding units of an entry of a covariance, twice the most that was found; and of an eigenvalue below which two are
# one. Both go with the root of their number.
_ROUNDING = 6.0
_TIED = 4.0
# The digits that what is left has at least, and the ratio of variances from which on columns differ in scale.
_DIGITS = 1e-8
_SCALES = 1e6


class Decomposition(NamedTuple):
    """Eigenvalues, descending and not below 0, and the leading eigenvectors.

    Fields:
        values: (d,), all of them.
        vectors: (d, v), of the first v.
        coupling: (v, v), 0, with the derivative of V' A V between equal eigenvalues, where there is one; else None.
            In the plane of two equal eigenvalues the vectors are free: f(A) V has a derivative there, V f(values) none.
    """

    values: Float[Array, " d"]
    vectors: Float[Array, "d v"]
    coupling: Float[Array, "v v"] | None = None


def decompose(matrix: ArrayLike) -> tuple[Array, Array]:
    """Eigenvalues (d,), descending and not below 0, and eigenvectors (d, d) of a symmetric matrix."""
    found = decomposed(matrix)
    return found.values, found.vectors


def decomposed(
    matrix: Any, units: int | None = None, *, noise: float | None = None, dtype: DTypeLike | None = None
) -> Decomposition:
    """The eigendecomposition of a symmetric matrix.

    Args:
        matrix: (d, d).
        units: how many vectors are needed; None is all. More may come.
        noise: the precision of the entries, each relative to the roots of its two diagonal ones; eigenvalues that it
            may have made are 0. None leaves them.

    Returns:
        :class:`Decomposition`, in the precision of the matrix.
    """
    if not _checks.concrete(matrix):
        values, vectors, coupling = _traced(jnp.asarray(matrix))
        if noise is not None:
            made_by_noise = values <= _made_by(noise, jnp.diagonal(matrix), vectors)
            values = jnp.where(made_by_noise, values - jax.lax.stop_gradient(values), values)  # NaN stays NaN
        return Decomposition(values, vectors, coupling)
    host = np.asarray(matrix)
    found, basis = _on_host(host.astype(np.float64), host.shape[0] if units is None else units, noise)
    dtype = _checks.compute_dtype(host.dtype) if dtype is None else dtype
    with _checks.at_once():
        return Decomposition(jax.device_put(found.astype(dtype)), jax.device_put(basis.astype(dtype)))


def signs(vectors: ArrayLike) -> Any:
    """The signs (k,) that make the first of the largest entries of every column positive: runs and machines agree."""
    numpy: Any = np if _checks.concrete(vectors) else jnp
    size = numpy.abs(vectors)
    first = numpy.argmax(size >= _AS_LARGE * size.max(axis=0)[None], axis=0)
    entry = numpy.take_along_axis(numpy.asarray(vectors), first[None], axis=0)[0]
    return numpy.where(entry < 0, -1.0, 1.0).astype(size.dtype)


@in_full
def _made_by(eps: float, variance: Any, vectors: Any) -> Any:
    """What noise of eps sqrt(a_ii a_jj) in every entry (i, j) can make of the eigenvalues of these vectors."""
    numpy: Any = np if isinstance(vectors, np.ndarray) else jnp
    return _ROUNDING * len(variance) ** 0.5 * eps * (numpy.maximum(variance, 0.0) @ vectors**2)


def noise_beside(variance: np.ndarray, vectors: np.ndarray, eps: float) -> float:
    """The sum of :func:`_made_by` over all vectors but these."""
    beside = np.sum(variance * np.maximum(1 - np.sum(vectors**2, axis=1), 0.0))
    return float(_ROUNDING * len(variance) ** 0.5 * eps * beside)


# Concrete -------------------------------------------------------------------------------------------------


def _on_host(matrix: np.ndarray, units: int, noise: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Columns that are 0 are left out: their eigenvalue is 0, and the vectors of others are 0 there."""
    d = len(matrix)
    varies = np.flatnonzero(np.diagonal(matrix) > 0)
    values, vectors = np.zeros(d), np.eye(d, units)
    if not len(varies):
        return values, vectors
    inner = matrix if len(varies) == d else matrix[np.ix_(varies, varies)]
    graded = False
    with one_thread():
        found, basis = _lapack(inner, min(units, len(varies)))
        if noise is not None:
            variance = np.diagonal(inner)
            graded = _loses_what_is_left(found, variance, units)
            if graded or found[-1] <= _ROUNDING * d**0.5 * noise * np.max(variance):
                found, basis = _jacobi(inner) if graded else _lapack(inner, len(varies))
                found = np.where(found > _made_by(noise, variance, basis), found, 0.0)
    if not graded:  # LAPACK itself leaves a few units of the largest in every one
        found = np.where(found > d * np.finfo(np.float64).eps * found[0], found, 0.0)
    basis = basis[:, :units]
    known = basis.shape[1]
    values[: len(varies)] = found
    vectors[:, :known] = 0.0
    vectors[varies, :known] = basis * signs(basis)
    if known < units:  # the rest is any basis of the columns that do not vary
        still = np.setdiff1d(np.arange(d), varies)
        vectors[:, known:] = 0.0
        vectors[still[: units - known], np.arange(known, units)] = 1.0
    return values, vectors


def _lapack(matrix: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues and the leading vectors, descending."""
    from scipy.linalg import eigh, get_lapack_funcs

    d = len(matrix)
    if 3 * units < d:
        names = ("sytrd", "sterf", "stemr", "ormqr")
        tridiagonal, eigenvalues, eigenvectors, rotate = get_lapack_funcs(names, (matrix,))
        reflectors, diagonal, beside, tau, failed = tridiagonal(matrix, lower=1, lwork=64 * d)
        values, failed_too = eigenvalues(diagonal, beside)
        beside = np.append(beside, 0.0)
        _, _, vectors, failed_also = eigenvectors(diagonal, beside, 2, 0.0, 0.0, d - units + 1, d)
        if not (failed or failed_too or failed_also):
            vectors = np.asfortranarray(vectors[:, units - 1 :: -1])
            vectors[1:], _, failed = rotate("L", "N", reflectors[1:, :-1], tau, vectors[1:], lwork=64 * d)
            if not failed:
                return values[::-1], vectors
    values, vectors = eigh(matrix, driver="evd", check_finite=False)
    return values[::-1], vectors[:, ::-1]


def _loses_what_is_left(values: np.ndarray, variance: np.ndarray, units: int) -> bool:
    """Whether rounding of the largest eigenvalue hides those beyond the leading ones, of columns of unlike scales."""
    left = values[units:].sum() if units < len(values) else values[-1]
    hidden = left < len(values) * np.finfo(np.float64).eps / _DIGITS * values[0]
    return bool(hidden and variance.max() > _SCALES * variance.min())


def _jacobi(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues and vectors of D A D, D the scales of the columns, each to the digits that A has of its own.

    They are the squares of singular values of D L, L L' = A, by one-sided Jacobi rotations.

    Source: Drmac and Veselic (2008), "New fast and accurate Jacobi SVD algorithm".
    """
    from scipy.linalg import get_lapack_funcs

    d, scale = len(matrix), np.sqrt(np.diagonal(matrix))
    cholesky, rotations = get_lapack_funcs(("pstrf", "gejsv"), (matrix,))
    rounding = _ROUNDING * d * float(np.finfo(np.float64).eps)
    factor, order, rank, _ = cholesky(matrix / scale[:, None] / scale, tol=rounding, lower=1)
    rows = np.empty((d, rank))
    rows[order - 1] = np.tril(factor)[:, :rank]
    jobs = {"joba": 2, "jobu": 1, "jobv": 3}  # rows of any scale, all left vectors, no right ones
    found, vectors, _, scaling, _, failed = rotations(scale[:, None] * rows, **jobs)
    if failed:
        raise np.linalg.LinAlgError(f"Jacobi's rotations did not converge for {d} columns")
    values = np.zeros(d)
    values[:rank] = (found * (scaling[0] / scaling[1])) ** 2
    return values, vectors


def one_thread() -> Any:
    """A context in which BLAS and LAPACK run on one thread. Results are to be waited for inside."""
    return _threads().limit(limits=1, user_api="blas")


@functools.cache
def _threads() -> Any:
    import scipy.linalg  # noqa: F401  # its BLAS has to be there to be found
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


# Traced ---------------------------------------------------------------------------------------------------


@jax.custom_jvp
def _traced(matrix: Float[Array, "d d"]) -> tuple[Array, Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
    return values, vectors * signs(vectors)[None], jnp.zeros_like(matrix)


@_traced.defjvp
@in_full
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    """dV = V (F o M) with M = V' dA V and F_ij = 1 / (lambda_j - lambda_i), 0 between equal ones."""
    values, vectors, coupling = _traced(*primals)
    moved = vectors.T @ tangents[0] @ vectors
    moved = 0.5 * (moved + moved.T)
    gap = values[None] - values[:, None]
    d = values.shape[0]
    tied = jnp.abs(gap) <= _TIED * d**0.5 * jnp.finfo(values.dtype).eps * values[0]
    turned = jnp.where(tied, 0.0, moved / jnp.where(tied, 1.0, gap))
    between = jnp.where(tied & ~jnp.eye(d, dtype=bool), moved, 0.0)
    return (values, vectors, coupling), (jnp.diagonal(moved), vectors @ turned, between)
