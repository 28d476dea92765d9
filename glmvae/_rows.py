"""Posteriors row by row: for a given decoder, the q of every row that maximises its ELBO.

For eta_i = W z_i + b + offset_i and q_i = N(mu_i, Sigma_i), with m_ij, v_ij the mean and variance of eta_ij,

    g_ij = d/dm E log p(x_ij),     w_ij = -d2/dm2 E log p(x_ij)
    Sigma_i = (I + W' diag(w_i) W / beta)^-1,     mu_i <- mu_i + Sigma_i (W' g_i / beta - mu_i)

is a natural-gradient step of length 1 whose fixed point is the best q_i. Rows whose ELBO would fall take a shorter
one, and begin with it the next time.

No LAPACK: the small inverses are swept, many at once, which neither waits nor hangs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae._problem import Problem, rows_of

# The most cautious step that is tried is 2^-_MOST long; what caution a step that succeeds takes away.
_MOST = 12
_RELIEF = 0.25
# Rows that are tried together, at least.
_FEW = 16
# The largest matrices that are summed up entry by entry; of larger ones a matrix product is faster.
_SUMMED = 8
# Times 1 / eps: the largest trace of W' diag(w) W / beta, beyond which no Cholesky factor of a posterior is left.
_WIDEST = 0.1
# Rounding units of a row's ELBO by which it may seem to fall.
_ROUNDING = 16


class Decoder(NamedTuple):
    """An affine decoder: eta = z @ loadings.T + intercept."""

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]


class RowPosteriors(NamedTuple):
    """q of every row: mean (N, kappa), covariance (N, kappa, kappa), log|covariance| (N,).

    ``caution`` (N,) is how careful the next step is to be: 0 for a full one, c for one of about 2^-c.
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "n k k"]
    log_det: Float[Array, " n"]
    caution: Float[Array, " n"]


class Terms(NamedTuple):
    """E log p, its gradient and weight in m, entry by entry, and the ELBO of each row."""

    value: Float[Array, "n d"]
    gradient: Float[Array, "n d"]
    weight: Float[Array, "n d"]
    elbo: Float[Array, " n"]


def symmetric_inverse(matrix: Float[Array, "n k k"]) -> tuple[Float[Array, "n k k"], Float[Array, " n"]]:
    """Inverses and log-determinants of many symmetric positive definite matrices.

    A^-1 = L^-T L^-1 with A = L L': positive semidefinite, and in agreement with the determinant, whatever the rounding.
    A pivot that is nothing but rounding counts for nothing in either.
    """
    reduced = jnp.moveaxis(matrix, 0, -1)  # the batch last: every operation below runs along it
    size = matrix.shape[-1]
    unit = jnp.arange(size)[:, None]
    barrier = jax.lax.optimization_barrier  # or XLA computes a column again for every entry that needs it
    least = size * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix, axis1=1, axis2=2).T

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Rows below j: what is left of A to the right of j, what there is of L^-1 to the left. Above: L^-1 alone.
        reduced, log_det = carry
        pivot = reduced[j, j]
        usable = pivot > least[j]
        reciprocal = barrier(jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, pivot, 1.0)), 0.0))
        column = jnp.where(unit > j, reduced[:, j] * reciprocal, 0.0)
        row = jnp.where(unit == j, reciprocal, reduced[j] * reciprocal)
        column, row = barrier((column, row))
        reduced = jnp.where((unit == j)[None], 0.0, reduced) - column[:, None] * row[None]
        reduced = jax.lax.dynamic_update_index_in_dim(reduced, row, j, 0)
        return reduced, log_det + jnp.log(jnp.where(usable, pivot, 1.0))

    none = jnp.zeros(matrix.shape[0], matrix.dtype)
    root, log_det = jax.lax.fori_loop(0, size, eliminate, (reduced, none))
    root = barrier(jnp.where((unit >= unit.T)[..., None], root, 0.0))
    if size > _SUMMED:
        root = jnp.moveaxis(root, -1, 0)
        return jnp.einsum("nji,njk->nik", root, root), log_det
    return jnp.moveaxis(sum(row[:, None] * row[None] for row in root), -1, 0), log_det


def pairs(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column index of the upper triangle, and where in it each entry of the full matrix lies."""
    upper = np.triu_indices(size)
    where = np.zeros((size, size), int)
    where[upper] = np.arange(len(upper[0]))
    where = np.maximum(where, where.T)
    return upper[0], upper[1], where


def _predictor(decoder: Decoder, problem: Problem, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """m and v of every entry."""
    first, second, _ = pairs(mean.shape[1])
    double = jnp.asarray(np.where(first == second, 1.0, 2.0), mean.dtype)
    loadings = decoder.loadings
    m = mean @ loadings.T + decoder.intercept
    if problem.offset is not None:
        m = m + problem.offset
    v = covariance[:, first, second] @ (loadings[:, first] * loadings[:, second] * double).T
    return m, jnp.maximum(v, 0.0)


def _precision(decoder: Decoder, weight: Array, beta: Array) -> tuple[Array, Array]:
    """a W' diag(w) W / beta + I, and the a of every row: 1, or less where the posterior would be too narrow for the
    rounding, as happens far from any optimum."""
    first, second, where = pairs(decoder.loadings.shape[1])
    packed = (weight / beta) @ (decoder.loadings[:, first] * decoder.loadings[:, second])
    most = _WIDEST / jnp.finfo(weight.dtype).eps
    share = most / jnp.maximum(jnp.sum(packed[:, np.flatnonzero(first == second)], axis=1), most)
    packed = packed * share[:, None]
    return packed[:, where] + jnp.eye(decoder.loadings.shape[1], dtype=weight.dtype), share[:, None]


def evaluate(decoder: Decoder, problem: Problem, q: RowPosteriors) -> Terms:
    """The terms under q."""
    m, v = _predictor(decoder, problem, q.mean, q.covariance)
    family, x, phi = problem.family, problem.x, problem.dispersion
    value, gradient, weight = (jnp.broadcast_to(a, x.shape) for a in family.expected_terms(x, m, v, phi))
    if problem.observed is not None:
        value, gradient, weight = (jnp.where(problem.observed, a, 0.0) for a in (value, gradient, weight))
    trace = jnp.trace(q.covariance, axis1=1, axis2=2)
    kl = 0.5 * (trace - q.log_det + jnp.sum(q.mean**2, axis=1) - q.mean.shape[1])
    elbo = jnp.sum(value, axis=1) + problem.constant - problem.beta * kl
    return Terms(value, gradient, weight, jnp.where(jnp.isnan(elbo), -jnp.inf, elbo))


def pick(take: Array, new: Any, old: Any) -> Any:
    """The new rows where ``take``, else the old."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.reshape(take, (-1,) + (1,) * (a.ndim - 1)), a, b), new, old)


class _Target(NamedTuple):
    """Where a full step goes: its precision, and W' g / beta - mu."""

    precision: Float[Array, "n k k"]
    ahead: Float[Array, "n k"]


def improve(decoder: Decoder, problem: Problem, q: RowPosteriors, at_q: Terms) -> tuple[RowPosteriors, Terms]:
    """One natural-gradient step of every row, shorter where the row's ELBO would fall.

    Only rows that fall are tried again, a quarter of them at a time.
    """
    precision, share = _precision(decoder, at_q.weight, problem.beta)
    target = _Target(precision, share * (at_q.gradient @ decoder.loadings) / problem.beta - q.mean)
    new, new_terms, better = _step(decoder, problem, q, at_q, target, q.caution, jnp.ones((), int))
    new = new._replace(caution=jnp.maximum(q.caution - _RELIEF, 0.0))
    num_rows = q.mean.shape[0]
    size = min(num_rows, max(_FEW, num_rows // 4))

    def some(carry: tuple) -> tuple:
        kept, terms, done = carry
        these = jnp.argsort(done)[:size]  # first those that are not done
        before, at_before, to = jax.tree.map(lambda leaf: leaf[these], (q, at_q, target))
        found, found_terms = _shorter(decoder, rows_of(problem, these), before, at_before, to)
        place = jnp.where(done[these], num_rows, these)  # the others are not written
        put = partial(jax.tree.map, lambda old, new: old.at[place].set(new, mode="drop"))
        return put(kept, found), put(terms, found_terms), done.at[these].set(True)

    carry = (pick(better, new, q), pick(better, new_terms, at_q), better)
    kept, terms, _ = jax.lax.while_loop(lambda c: ~jnp.all(c[2]), some, carry)
    return kept, terms


def _step(
    decoder: Decoder, problem: Problem, q: RowPosteriors, at_q: Terms, target: _Target, caution: Array, tries: Array
) -> tuple[RowPosteriors, Terms, Array]:
    """A step as cautious as that, and whether it is not worse.

    The new precision is a P + (1 - a) S^-1, P the one that the weights call for, S the old covariance. A step that is
    not full ends on the first try between the two on a logarithmic scale, so that an S that is too narrow by orders of
    magnitude widens by half of them, on the next by a quarter, and so on.
    """

    def shortened() -> tuple[Array, Array]:
        old, _ = symmetric_inverse(q.covariance)
        ratio = jnp.trace(target.precision, axis1=1, axis2=2) / jnp.maximum(jnp.trace(old, axis1=1, axis2=2), 1e-30)
        kept = jnp.where(caution > 0, jnp.minimum(ratio, 1.0) ** (0.5**tries) * 2.0 ** (caution - 1), 0.0)
        length = 1 / (1 + kept)
        return length[:, None, None] * target.precision + (length * kept)[:, None, None] * old, length

    full = target.precision, jnp.ones_like(caution)
    precision, length = jax.lax.cond(jnp.any(caution > 0), shortened, lambda: full)
    covariance, log_det = symmetric_inverse(precision)
    mean = q.mean + length[:, None] * jnp.einsum("nkl,nl->nk", covariance, target.ahead)
    new = RowPosteriors(mean, covariance, -log_det, caution)
    terms = evaluate(decoder, problem, new)
    slack = _ROUNDING * jnp.finfo(q.mean.dtype).eps * jnp.abs(at_q.elbo)
    return new, terms, (terms.elbo >= at_q.elbo - slack) & jnp.isfinite(terms.elbo)


def _shorter(
    decoder: Decoder, problem: Problem, q: RowPosteriors, at_q: Terms, target: _Target
) -> tuple[RowPosteriors, Terms]:
    """The first of the shorter steps that is not worse, row by row; q where none is."""

    def again(carry: tuple) -> tuple:
        tries, kept, terms, done = carry
        new, new_terms, better = _step(decoder, problem, q, at_q, target, q.caution + tries, tries)
        take = ~done & better
        return tries + 1, pick(take, new, kept), pick(take, new_terms, terms), done | better

    carry = (jnp.ones((), int), q, at_q, jnp.zeros(q.mean.shape[0], bool))
    carry = jax.lax.while_loop(lambda c: ~jnp.all(c[3] | (q.caution + c[0] > _MOST)), again, carry)
    return carry[1], carry[2]


def starting_rows(decoder: Decoder, problem: Problem) -> RowPosteriors:
    """Mean 0 and the covariance that the weights at eta = b call for, or weights of 1 where these are less: so that no
    spread of eta is above 1, which a log link could not bear."""
    family, x = problem.family, problem.x
    m = jnp.broadcast_to(decoder.intercept, x.shape)
    if problem.offset is not None:
        m = m + problem.offset
    weight = jnp.broadcast_to(family.expected_terms(x, m, jnp.zeros_like(m), problem.dispersion)[2], x.shape)
    weight = jnp.maximum(weight, 1.0)
    if problem.observed is not None:
        weight = jnp.where(problem.observed, weight, 0.0)
    precision, _ = _precision(decoder, weight, problem.beta)
    covariance, log_det = symmetric_inverse(precision)
    mean = jnp.zeros((x.shape[0], decoder.loadings.shape[1]), x.dtype)
    return RowPosteriors(mean, covariance, -log_det, jnp.zeros(x.shape[0], x.dtype))
