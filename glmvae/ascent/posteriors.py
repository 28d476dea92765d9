"""The posteriors of one block of rows: for a given decoder, steps of every q towards the one that is best for its row.

With m_ij, v_ij the mean and variance of eta_ij under q_i = N(mu_i, Sigma_i), and g, w the gradient and weight of a
bound (:mod:`glmvae.ascent.terms`),

    Sigma_i <- (I + W' diag(w_i) W / beta)^-1,     mu_i <- mu_i + Sigma_i (W' g_i / beta - mu_i)

is a natural-gradient step of length 1, whose fixed point is the best q_i. A row whose ELBO would fall stays where it is
and takes a shorter step the next time. Where that is not enough it moves its mean and its covariance in turns, each as
far as it bears, and where the covariance moves the mean gives way: with log p an exponential in eta, d log w / dm = a
(``curvature_growth``), the gradient falls by a w dv / 2 where the variance of eta grows by dv, and the best mean moves
by

    - P^-1 W' (a w dv) / 2 beta,     P = I + W' diag(w) W / beta

The bound is written once in the compiled loop: its first turn looks at the posteriors as they are, each further one at
a step.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from glmvae import _checks
from glmvae._numerics import symmetric_inverse
from glmvae.ascent.terms import Terms
from glmvae.blocks import Block, Store
from glmvae.model import Affine, Objective, fixed_predictor
from glmvae.rows import Rows
from glmvae.variational import gaussian_kl, upper_triangle

# The most cautious step is about 2^-_MOST long, beyond which a row is taken for done: from the prior a full step to a
# count of 10^8 is 2^27 too long. What caution a step that succeeds takes away: so much, or that share of it.
_MOST = 30.0
_RELIEF = 0.25
_RELIEF_SHARE = 1 / 8
# The caution from which on a row moves its mean and its covariance in turns, and the share of such rows in a block from
# which on two turns are one step.
_IN_TURNS = 2.0
_MANY = 0.1
# Times 1 / eps: the trace of W' diag(w) W / beta beyond which I is lost beside it, and with I the Cholesky factor of
# units that go together: there they are held apart, by so many rounding units times their number.
_WIDEST = 0.1
_APART = 4
# Rounding units of a row's ELBO by which it may seem to fall or to rise.
_ROUNDING = 16


class RowPosteriors(NamedTuple):
    """q of every row: mean (n, kappa), packed covariance (n, kappa (kappa + 1) / 2), log|covariance| (n,).

    ``caution`` (n, 2) is how careful a step is to be, of the mean alone and any other: 0 for a full one, c for one of
    about 2^-c. ``second`` (n,) tells where the covariance is next, of rows that move the two in turns.
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "n p"]
    log_det: Float[Array, " n"]
    caution: Float[Array, "n 2"]
    second: Bool[Array, " n"]


class Change(NamedTuple):
    """z -> T^-1 (z - c - D covariates): ``root`` T, ``inverse`` T^-1, ``shift`` (1 + p, kappa), ``log_det`` log|T|.

    With W -> W T, b -> b + W c, B -> B + (W D)' it leaves every eta as it is.
    """

    root: Float[Array, "k k"]
    inverse: Float[Array, "k k"]
    shift: Float[Array, "q k"]
    log_det: Float[Array, ""]


def no_change(decoder: Affine) -> Change:
    """z as it is."""
    units, dtype = decoder.latent_dim, decoder.loadings.dtype
    same = np.eye(units, dtype=dtype)
    return Change(same, same, np.zeros((1 + decoder.num_covariates, units), dtype), np.zeros((), dtype))  # type: ignore[arg-type]


def prior_like(decoder: Affine) -> RowPosteriors:
    """Where steps start, the same for all rows: mean 0 and a covariance under which no eta varies by more than 1."""
    loadings = decoder.loadings
    units, dtype = decoder.latent_dim, loadings.dtype
    if _checks.concrete(loadings):
        host = np.asarray(loadings, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # loadings out of range are those of no start
            covariance = np.linalg.inv(np.eye(units) + host.T @ host)
            log_det: Any = np.linalg.slogdet(covariance)[1]
    else:
        covariance = jnp.linalg.inv(jnp.eye(units, dtype=dtype) + loadings.T @ loadings)
        log_det = jnp.linalg.slogdet(covariance)[1]
    first, second, _ = upper_triangle(units)
    numpy: Any = np if isinstance(covariance, np.ndarray) else jnp
    packed, log_det = numpy.asarray(covariance[first, second], dtype)[None], numpy.asarray(log_det, dtype)[None]
    return RowPosteriors(
        numpy.zeros((1, units), dtype), packed, log_det, numpy.zeros((1, 2), dtype), numpy.zeros(1, bool)
    )


class PosteriorStore(Store):
    """Posteriors of all rows, of those not met before as :func:`prior_like` has them."""

    def __init__(self, decoder: Affine) -> None:
        super().__init__()
        self._start = jax.tree.map(np.asarray, prior_like(decoder))

    def read(self, block: Block) -> Any:
        kept = super().read(block)
        return kept if kept is not None else jax.tree.map(lambda a: np.repeat(a, block.size, axis=0), self._start)


class _Known(NamedTuple):
    """Posteriors, and the bound there: value, gradient and weight by entry, and the ELBO of each row.

    ``gain`` (n, 2) is what the last step gained, of the mean alone and any other, as if it had been a full one.
    """

    q: RowPosteriors
    value: Array
    gradient: Array
    weight: Array
    elbo: Array
    gain: Array


def steps_of(
    terms: Terms,
    rows: Rows,
    old: RowPosteriors,
    decoder: Affine,
    objective: Objective,
    change: Change,
    steps: Array,
    tolerance: Array,
) -> tuple[_Known, Array]:
    """Steps of every q from the changed ``old``, and the sums of the bound by column before the first.

    So many steps, or until no row gains more than ``tolerance``, nor would with a full step.
    """
    start = _changed(old, change, rows)
    fixed = fixed_predictor(decoder, rows)
    nothing = jnp.zeros(rows.x.shape, start.mean.dtype)
    known = _Known(start, nothing, nothing, nothing, start.log_det, start.caution)

    def go_on(carry: tuple[Array, _Known, Array]) -> Array:
        turn, known, _ = carry
        return (turn // 2 <= steps) & ((turn <= 2) | jnp.any(known.gain > tolerance))

    def turn_of(carry: tuple[Array, _Known, Array]) -> tuple[Array, _Known, Array]:
        turn, known, before = carry
        first, in_turns = turn == 0, _in_turns(known.q)
        alone = in_turns & ~known.q.second
        q = jax.lax.cond(first, lambda: known.q, lambda: _step(decoder, objective, known))
        m, v = _predictor(decoder, fixed, q)
        value, gradient, weight = terms(objective, rows, m, v)
        elbo = jnp.sum(value, axis=1) - objective.beta * _kl(q)
        elbo = jnp.where(jnp.isnan(elbo), -jnp.inf, elbo)
        slack = _ROUNDING * jnp.finfo(elbo.dtype).eps * jnp.abs(known.elbo)
        better = first | ((elbo >= known.elbo - slack) & jnp.isfinite(elbo))
        of_step = jnp.where(alone, q.caution[:, 0], q.caution[:, 1])
        relief = jnp.maximum(of_step - jnp.maximum(_RELIEF, _RELIEF_SHARE * of_step), 0.0)
        of_step = jnp.where(first, of_step, jnp.where(better, relief, jnp.minimum(of_step + 1, _MOST)))
        gained = jnp.where(elbo - known.elbo > slack, elbo - known.elbo, 0.0)
        gain = jnp.where(better & ~first & jnp.isfinite(known.elbo), gained * 2.0**of_step, jnp.inf)
        gain = jnp.where((of_step >= _MOST) | (rows.weight <= 0), 0.0, gain)[:, None]
        known = _pick(better, _Known(q, value, gradient, weight, elbo, known.gain), known)
        taken = alone[:, None] == np.array([[True, False]])
        second = jnp.where(first, q.second, alone)
        q = known.q._replace(caution=jnp.where(taken, of_step[:, None], q.caution), second=second)
        known = known._replace(q=q, gain=jnp.where(taken | first | ~in_turns[:, None], gain, known.gain))
        length = jnp.where(~first & (jnp.mean(in_turns) > _MANY), 1, 2)
        return turn + length, known, jnp.where(first, column_sum(rows, value), before)

    carry = (jnp.zeros((), jnp.int32), known, jnp.zeros(rows.x.shape[1], start.mean.dtype))
    _, known, before = jax.lax.while_loop(go_on, turn_of, carry)
    return known, before


def _in_turns(q: RowPosteriors) -> Array:
    """Rows that move the mean, and then the covariance."""
    return q.caution[:, 1] >= _IN_TURNS


def unpacked(packed: Float[Array, "n p"], size: int) -> Float[Array, "n k k"]:
    """Symmetric matrices from their upper triangles."""
    return packed[:, upper_triangle(size)[2]]


def full_rows(values: Array, rows: Rows) -> Array:
    """What may be one line for all rows, a line for each."""
    return jnp.broadcast_to(values, (rows.x.shape[0], values.shape[1]))


def column_sum(rows: Rows, values: Array) -> Array:
    """Over the rows, each times its weight."""
    return jnp.sum(jnp.where(rows.weight[:, None] > 0, rows.weight[:, None] * values, 0.0), axis=0)


def _pick(take: Array, new: Any, old: Any) -> Any:
    """The new rows where ``take``, else the old."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.reshape(take, (-1,) + (1,) * (a.ndim - 1)), a, b), new, old)


def _changed(q: RowPosteriors, change: Change, rows: Rows) -> RowPosteriors:
    shift = change.shift[:1]
    if rows.covariates is not None:
        shift = shift + full_rows(rows.covariates, rows) @ change.shift[1:]
    size = q.mean.shape[1]
    first, second, _ = upper_triangle(size)
    full = change.inverse @ unpacked(q.covariance, size) @ change.inverse.T
    mean = (q.mean - shift) @ change.inverse.T
    return q._replace(mean=mean, covariance=full[:, first, second], log_det=q.log_det - 2 * change.log_det)


def _kl(q: RowPosteriors) -> Array:
    first, second, _ = upper_triangle(q.mean.shape[1])
    return gaussian_kl(q.mean, jnp.sum(q.covariance[:, np.flatnonzero(first == second)], axis=1), q.log_det)


def _products(decoder: Affine) -> Array:
    """W_jk W_jl for the entries of a packed matrix, twice where k is not l, (d, p)."""
    first, second, _ = upper_triangle(decoder.latent_dim)
    double = jnp.asarray(np.where(first == second, 1.0, 2.0), decoder.loadings.dtype)
    return decoder.loadings[:, first] * decoder.loadings[:, second] * double[None]


def _predictor(decoder: Affine, fixed: Array, q: RowPosteriors) -> tuple[Array, Array]:
    """m and v of every entry."""
    return q.mean @ decoder.loadings.T + fixed, jnp.maximum(q.covariance @ _products(decoder).T, 0.0)


def _answer(decoder: Affine, objective: Objective, weight: Array, precision: Array, change: Array) -> Array:
    """How far the best mean of every row moves with a change of its packed covariance, to first order."""
    grown = objective.family.by_member(lambda f, w: f.curvature_growth * f.activation_scale * w, weight)
    pull = (grown * (change @ _products(decoder).T)) @ decoder.loadings / (2 * objective.beta)
    inverse, _ = symmetric_inverse(precision)
    return -jnp.sum(inverse * pull[:, None], axis=-1)


def _step(decoder: Affine, objective: Objective, known: _Known) -> RowPosteriors:
    """A step of every row as long as its caution allows, or of its mean or its covariance alone.

    The new precision is a P + (1 - a) S^-1, P the one that the weights call for, S the old covariance. A step that is
    not full ends between the two on a logarithmic scale, so that an S that is too narrow by orders of magnitude
    widens by half of them, then by a quarter, and so on.
    """
    loadings, q = decoder.loadings, known.q
    size = decoder.latent_dim
    rows_of, columns_of, where = upper_triangle(size)
    same = rows_of == columns_of
    packed = (known.weight / objective.beta) @ (loadings[:, rows_of] * loadings[:, columns_of])
    eps = jnp.finfo(packed.dtype).eps
    is_wide = jnp.sum(packed[:, np.flatnonzero(same)], axis=1) > _WIDEST / eps
    together = jnp.asarray(~same)[None] & is_wide[:, None]
    off = jnp.where(together, 1 - _APART * size * eps, 1.0)
    precision = (packed * off)[:, where] + jnp.eye(size, dtype=packed.dtype)[None]
    ahead = (known.gradient @ loadings) / objective.beta - q.mean
    in_turns, caution = _in_turns(q), q.caution[:, 1]
    alone = in_turns & ~q.second

    def shortened() -> tuple[Array, Array]:
        old, _ = symmetric_inverse(unpacked(q.covariance, size))
        ratio = jnp.trace(precision, axis1=1, axis2=2) / jnp.maximum(jnp.trace(old, axis1=1, axis2=2), 1e-30)
        kept = jnp.where((caution > 0) & ~alone, jnp.sqrt(jnp.minimum(ratio, 1.0)) * 2.0 ** (caution - 1), 0.0)
        length = 1 / (1 + kept)
        of_mean = jnp.where(alone, 2.0 ** -q.caution[:, 0], jnp.where(in_turns, 0.0, length))
        return length[:, None, None] * precision + (length * kept)[:, None, None] * old, of_mean

    full = precision, jnp.ones_like(caution)
    mixed, length = jax.lax.cond(jnp.any(caution > 0), shortened, lambda: full)
    covariance, log_det = symmetric_inverse(mixed)
    mean = q.mean + length[:, None] * jnp.sum(covariance * ahead[:, None], axis=-1)
    packed = jnp.where(alone[:, None], q.covariance, covariance[:, rows_of, columns_of])
    second = in_turns & q.second
    if objective.family.curvature_growth:
        answer = functools.partial(_answer, decoder, objective, known.weight, precision, packed - q.covariance)
        given = jax.lax.cond(jnp.any(second), answer, lambda: jnp.zeros_like(mean))
        mean = jnp.where(second[:, None], mean + given, mean)
    return RowPosteriors(mean, packed, jnp.where(alone, q.log_det, -log_det), q.caution, q.second)
