"""The posteriors of one block of rows: for a given decoder, steps of every q towards the one that is best for its row.

With m_ij, v_ij the mean and variance of eta_ij under q_i = N(mu_i, Sigma_i), and g, w the gradient and weight of a
bound (:mod:`glmvae.ascent.terms`),

    Sigma_i <- (I + W' diag(w_i) W / beta)^-1,     mu_i <- mu_i + Sigma_i (W' g_i / beta - mu_i)

is a natural-gradient step of length 1, whose fixed point is the best q_i. A row whose ELBO would fall stays where it is
and takes a shorter step the next time. Where that is not enough it moves its mean and its covariance in turns, each as
far as it bears. Where weights know no bound (counts) the mean then gives way to the covariance: with the variances of
eta changed by dv the best mean moves, to first order, by

    P^-1 W' (dg/dv dv) / beta,     P = I + W' diag(w) W / beta

The bound is written once in the compiled loop: its first turn looks at the posteriors as they are, each further one at
a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae._numerics import congruent, packed_inverse, packed_product, packed_trace, upper_triangle
from glmvae.ascent.row_posteriors import Change, RowPosteriors
from glmvae.ascent.terms import Terms
from glmvae.model import Affine, Objective, fixed_predictor
from glmvae.rows import Rows, weighted_sum
from glmvae.variational import gaussian_kl, hidden_if_none, packed_curvature, unit_products

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

    So many steps, or until no row, whatever it weighs, gains more than ``tolerance``, nor would with a full step.
    Padding repeats a row, and is done when that is. Without units there is no q to move.
    """
    start = _changed(old, change, rows)
    fixed = fixed_predictor(decoder, rows)
    if not decoder.latent_dim:
        value, gradient, weight = terms(objective, rows, *_predictor(decoder, fixed, start))
        elbo = jnp.sum(value, axis=1)
        known = _Known(start, value, gradient, weight, elbo, jnp.zeros_like(start.caution))
        return known, weighted_sum(rows, value)
    nothing = jnp.zeros(rows.x.shape, start.mean.dtype)
    known = _Known(start, nothing, nothing, nothing, start.log_det, start.caution)

    def bent(q: RowPosteriors, dv: Array) -> Array:
        """dg/dv dv; 0 where there is none, as of a quadrature at a variance of 0."""
        m, v = _predictor(decoder, fixed, q)
        _, found = jax.jvp(lambda v: terms(objective, rows, m, v)[1], (v,), (dv,))
        return jnp.where(jnp.isfinite(found), found, 0.0)

    gives_way = None if _is_bounded(objective) else bent

    def go_on(carry: tuple[Array, _Known, Array]) -> Array:
        turn, known, _ = carry
        return (turn // 2 <= steps) & ((turn <= 2) | jnp.any(known.gain > tolerance))

    def turn_of(carry: tuple[Array, _Known, Array]) -> tuple[Array, _Known, Array]:
        turn, known, before = carry
        first, in_turns = turn == 0, _in_turns(known.q)
        alone = in_turns & ~known.q.second
        q = jax.lax.cond(first, lambda: known.q, lambda: _step(decoder, objective.beta, known, gives_way))
        m, v = _predictor(decoder, fixed, q)
        value, gradient, weight = terms(objective, rows, m, v)
        elbo = jnp.sum(value, axis=1) - objective.beta * _kl(q)
        elbo = jnp.where(jnp.isnan(elbo), -jnp.inf, elbo)
        better, caution, gain = _judged(elbo, known, first, alone)
        known = _pick(better, _Known(q, value, gradient, weight, elbo, known.gain), known)
        taken = alone[:, None] == np.array([[True, False]])
        second = jnp.where(first, q.second, alone)
        q = known.q._replace(caution=jnp.where(taken, caution[:, None], q.caution), second=second)
        known = known._replace(q=q, gain=jnp.where(taken | first | ~in_turns[:, None], gain[:, None], known.gain))
        length = jnp.where(~first & (jnp.mean(in_turns) > _MANY), 1, 2)
        return turn + length, known, jnp.where(first, weighted_sum(rows, value), before)

    carry = (jnp.zeros((), jnp.int32), known, jnp.zeros(rows.x.shape[1], start.mean.dtype))
    _, known, before = jax.lax.while_loop(go_on, turn_of, carry)
    return known, before


def _judged(elbo: Array, known: _Known, first: Array, alone: Array) -> tuple[Array, Array, Array]:
    """Rows that do not fall, the caution that each learns from its step, and what a full one would have gained."""
    slack = _ROUNDING * jnp.finfo(elbo.dtype).eps * jnp.abs(known.elbo)
    better = first | ((elbo >= known.elbo - slack) & jnp.isfinite(elbo))
    before = jnp.where(alone, known.q.caution[:, 0], known.q.caution[:, 1])
    relieved = jnp.maximum(before - jnp.maximum(_RELIEF, _RELIEF_SHARE * before), 0.0)
    caution = jnp.where(first, before, jnp.where(better, relieved, jnp.minimum(before + 1, _MOST)))
    gained = jnp.where(elbo - known.elbo > slack, elbo - known.elbo, 0.0) * 2.0**caution
    gain = jnp.where(better & ~first & jnp.isfinite(known.elbo), gained, jnp.inf)
    return better, caution, jnp.where(caution >= _MOST, 0.0, gain)


def _is_bounded(objective: Objective) -> bool:
    """Whether no weight of an entry can grow beyond bounds."""
    members: list[Any] = []
    objective.family.by_member(members.append)
    return all(member.is_logistic or member.is_quadratic for member in members)


def _in_turns(q: RowPosteriors) -> Array:
    """Rows that move the mean, and then the covariance."""
    return q.caution[:, 1] >= _IN_TURNS


def full_rows(values: Array, rows: Rows) -> Array:
    """What may be one line for all rows, a line for each."""
    return jnp.broadcast_to(values, (rows.x.shape[0], values.shape[1]))


def _pick(take: Array, new: Any, old: Any) -> Any:
    """The new rows where ``take``, else the old."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.reshape(take, (-1,) + (1,) * (a.ndim - 1)), a, b), new, old)


def _changed(q: RowPosteriors, change: Change, rows: Rows) -> RowPosteriors:
    shift = change.shift[:1]
    if rows.covariates is not None:
        shift = shift + full_rows(rows.covariates, rows) @ change.shift[1:]
    mean, covariance = (q.mean - shift) @ change.inverse.T, congruent(change.inverse, q.covariance)
    return q._replace(mean=mean, covariance=covariance, log_det=q.log_det - 2 * change.log_det)


def _kl(q: RowPosteriors) -> Array:
    return gaussian_kl(q.mean, packed_trace(q.covariance.T, q.mean.shape[1]), q.log_det)


def _products(decoder: Affine) -> Array:
    """W_jk W_jl for the entries of a packed matrix, twice where k is not l, (p, d)."""
    first, second, _ = upper_triangle(decoder.latent_dim)
    twice = jnp.asarray(np.where(first == second, 1.0, 2.0), decoder.loadings.dtype)
    return unit_products(decoder.loadings) * twice[:, None]


def _predictor(decoder: Affine, fixed: Array, q: RowPosteriors) -> tuple[Array, Array]:
    """m and v of every entry."""
    variance = jnp.maximum(q.covariance @ _products(decoder), 0.0)
    return q.mean @ decoder.loadings.T + fixed, hidden_if_none(variance, decoder)


def _answer(decoder: Affine, beta: Array, bent: Array, precision: Array) -> Array:
    """How far the best mean of every row moves, to first order, where the gradient of its entries moves by so much.

    The precision is packed, the rows last.
    """
    inverse, _ = packed_inverse(precision, decoder.latent_dim)
    return packed_product(inverse, bent @ decoder.loadings / beta)


def _step(decoder: Affine, beta: Array, known: _Known, bent: Callable[..., Array] | None) -> RowPosteriors:
    """A step of every row as long as its caution allows, or of its mean or its covariance alone.

    The new precision is a P + (1 - a) S^-1, P the one that the weights call for, S the old covariance. A step that is
    not full ends between the two on a logarithmic scale, so that an S that is too narrow by orders of magnitude
    widens by half of them, then by a quarter, and so on.
    """
    loadings, q = decoder.loadings, known.q
    size = decoder.latent_dim
    first, second, _ = upper_triangle(size)
    same = (first == second)[:, None]
    curvature = packed_curvature(loadings, known.weight / beta).T  # the rows last, as the inverse has them
    eps = jnp.finfo(curvature.dtype).eps
    trace = packed_trace(curvature, size)
    off = jnp.where(~same & (trace > _WIDEST / eps)[None], 1 - _APART * size * eps, 1.0)
    precision = curvature * off + jnp.asarray(same, curvature.dtype)
    ahead = (known.gradient @ loadings) / beta - q.mean
    in_turns, caution = _in_turns(q), q.caution[:, 1]
    alone = in_turns & ~q.second

    def shortened() -> tuple[Array, Array]:
        old, _ = packed_inverse(q.covariance.T, size)
        ratio = (size + trace) / jnp.maximum(packed_trace(old, size), 1e-30)
        kept = jnp.where((caution > 0) & ~alone, jnp.sqrt(jnp.minimum(ratio, 1.0)) * 2.0 ** (caution - 1), 0.0)
        length = 1 / (1 + kept)
        of_mean = jnp.where(alone, 2.0 ** -q.caution[:, 0], jnp.where(in_turns, 0.0, length))
        return length[None] * precision + (length * kept)[None] * old, of_mean

    full = precision, jnp.ones_like(caution)
    mixed, length = jax.lax.cond(jnp.any(caution > 0), shortened, lambda: full)
    covariance, log_det = packed_inverse(mixed, size)
    mean = q.mean + length[:, None] * packed_product(covariance, ahead)
    packed = jnp.where(alone[:, None], q.covariance, covariance.T)
    if bent is not None:

        def answered() -> Array:
            return _answer(decoder, beta, bent(q, (packed - q.covariance) @ _products(decoder)), precision)

        second_half = in_turns & q.second
        moved = jax.lax.cond(jnp.any(second_half), answered, lambda: jnp.zeros_like(mean))
        mean = jnp.where(second_half[:, None], mean + moved, mean)
    return RowPosteriors(mean, packed, jnp.where(alone, q.log_det, -log_det), q.caution, q.second)
