"""The posteriors of one block of rows: for a given decoder, steps of every q towards the one that is best for its row.

With m_ij, v_ij the mean and variance of eta_ij under q_i = N(mu_i, Sigma_i), and g, w the gradient and weight of a
bound (:mod:`glmvae.ascent.terms`),

    Sigma_i <- (I + W' diag(w_i) W / beta)^-1,     mu_i <- mu_i + Sigma_i (W' g_i / beta - mu_i)

is a natural-gradient step of length 1, whose fixed point is the best q_i. A row whose ELBO would fall stays where it is
and takes a shorter step the next time. The bound is written once in the compiled loop: its first turn looks at the
posteriors as they are, each further one at a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae._numerics import symmetric_inverse
from glmvae.ascent.terms import Terms, entry_terms, exact_terms
from glmvae.blocks import Block, Store
from glmvae.model import Affine, Objective, fixed_predictor
from glmvae.rows import Rows
from glmvae.variational import Posterior, gaussian_kl, upper_triangle

# The most cautious step is about 2^-_MOST long, beyond which a row is taken for done: from the prior a full step to a
# count of 10^8 is 2^27 too long. What caution a step that succeeds takes away.
_MOST = 30.0
_RELIEF = 0.25
# Times 1 / eps: the trace of W' diag(w) W / beta beyond which I is lost beside it, and with I the Cholesky factor of
# units that go together: there they are held apart, by so many rounding units times their number.
_WIDEST = 0.1
_APART = 4
# Rounding units of a row's ELBO by which it may seem to fall.
_ROUNDING = 16


class RowPosteriors(NamedTuple):
    """q of every row: mean (n, kappa), packed covariance (n, kappa (kappa + 1) / 2), log|covariance| (n,).

    ``caution`` (n,) is how careful the next step is to be: 0 for a full one, c for one of about 2^-c.
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "n p"]
    log_det: Float[Array, " n"]
    caution: Float[Array, " n"]


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


class Sums(NamedTuple):
    """What a pass sums up over rows, each times its weight.

    ``elbo`` is without what depends on x alone. ``before`` and ``after`` are the values of the bound by column before
    the steps of the q and after them. ``gram`` (d, r (r + 1) / 2, packed) is of w E z~ z~', ``score`` (d, r) of the
    gradient of the bound in (W_j, b_j, B_j), less the part that the spread of z takes, ``spread`` of E z~ z~', all with
    z~ = (z, 1, covariates), r long. ``entries`` (d,) counts what was observed, ``num_rows`` the rows.
    """

    num_rows: Array
    elbo: Array
    before: Array
    after: Array
    gram: Array
    score: Array
    spread: Array
    entries: Array


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
    return RowPosteriors(numpy.zeros((1, units), dtype), packed, log_det, numpy.zeros(1, dtype))


class PosteriorStore(Store):
    """Posteriors of all rows, of those not met before as :func:`prior_like` has them."""

    def __init__(self, decoder: Affine) -> None:
        super().__init__()
        self._start = jax.tree.map(np.asarray, prior_like(decoder))

    def read(self, block: Block) -> Any:
        kept = super().read(block)
        return kept if kept is not None else jax.tree.map(lambda a: np.repeat(a, block.size, axis=0), self._start)


class _Known(NamedTuple):
    """Posteriors, and the bound there: value, gradient and weight by entry, and the ELBO of each row."""

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
    known = _Known(start, nothing, nothing, nothing, start.log_det, start.log_det)

    def go_on(carry: tuple[Array, _Known, Array]) -> Array:
        turn, known, _ = carry
        return (turn <= steps) & ((turn <= 1) | jnp.any(known.gain > tolerance))

    def turn_of(carry: tuple[Array, _Known, Array]) -> tuple[Array, _Known, Array]:
        turn, known, before = carry
        first = turn == 0
        q = jax.lax.cond(first, lambda: known.q, lambda: _step(decoder, objective.beta, known))
        m, v = _predictor(decoder, fixed, q)
        value, gradient, weight = terms(objective, rows, m, v)
        elbo = jnp.sum(value, axis=1) - objective.beta * _kl(q)
        elbo = jnp.where(jnp.isnan(elbo), -jnp.inf, elbo)
        slack = _ROUNDING * jnp.finfo(elbo.dtype).eps * jnp.abs(known.elbo)
        better = first | ((elbo >= known.elbo - slack) & jnp.isfinite(elbo))
        relief = jnp.where(better, jnp.maximum(q.caution - _RELIEF, 0.0), jnp.minimum(q.caution + 1, _MOST))
        caution = jnp.where(first, q.caution, relief)
        gain = jnp.where(better & jnp.isfinite(known.elbo), (elbo - known.elbo) * 2.0**caution, jnp.inf)
        gain = jnp.where((caution >= _MOST) | (rows.weight <= 0), 0.0, gain)
        new = _pick(better, _Known(q, value, gradient, weight, elbo, gain), known)
        new = new._replace(q=new.q._replace(caution=caution), gain=gain)
        return turn + 1, new, jnp.where(first, _column_sum(rows, value), before)

    carry = (jnp.zeros((), jnp.int32), known, jnp.zeros(rows.x.shape[1], start.mean.dtype))
    _, known, before = jax.lax.while_loop(go_on, turn_of, carry)
    return known, before


def _pass(terms: Terms, rows: Rows, old: RowPosteriors, *args: Any) -> tuple[Sums, RowPosteriors]:
    known, before = steps_of(terms, rows, old, *args)
    decoder, q = args[0], known.q
    row_weight = rows.weight[:, None]
    weight, gradient = known.weight * row_weight, known.gradient * row_weight
    ones = jnp.ones((q.mean.shape[0], 1), q.mean.dtype)
    mean = jnp.concatenate([q.mean, ones, *([] if rows.covariates is None else [_full(rows.covariates, rows)])], axis=1)
    first, second, _ = upper_triangle(mean.shape[1])
    _, _, where = upper_triangle(decoder.latent_dim)
    # E z~ z~', packed: the covariance stands where both are latent
    latent = (first < decoder.latent_dim) & (second < decoder.latent_dim)
    moment = mean[:, first] * mean[:, second]
    moment = moment.at[:, np.flatnonzero(latent)].add(q.covariance[:, where[first[latent], second[latent]]])
    linear = q.mean @ decoder.loadings.T  # m less what does not depend on z
    entries = jnp.ones_like(known.value) if rows.missing is None else jnp.where(rows.missing, 0.0, 1.0)
    return Sums(
        jnp.sum(rows.weight),
        jnp.sum(jnp.where(rows.weight > 0, rows.weight * known.elbo, 0.0)),
        before,
        _column_sum(rows, known.value),
        weight.T @ moment,
        (gradient + weight * linear).T @ mean,
        rows.weight @ moment,
        _column_sum(rows, entries),
    ), q


def exact_pass(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[Sums, RowPosteriors]:
    """A pass under the exact ELBO."""
    return _pass(exact_terms, rows, old, *args)


def entry_pass(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[Sums, RowPosteriors]:
    """A pass under Jaakkola and Jordan's bound by entry."""
    return _pass(entry_terms, rows, old, *args)


def exact_steps(rows: Rows, old: RowPosteriors, *args: Any) -> tuple[None, Posterior]:
    """Steps of the q alone, under the exact ELBO, from posteriors that the rows may share."""
    n = rows.x.shape[0]
    old = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape[1:])), old)
    q = steps_of(exact_terms, rows, old, *args)[0].q
    return None, Posterior(q.mean, unpacked(q.covariance, q.mean.shape[1]))


def unpacked(packed: Float[Array, "n p"], size: int) -> Float[Array, "n k k"]:
    """Symmetric matrices from their upper triangles."""
    return packed[:, upper_triangle(size)[2]]


def _full(values: Array, rows: Rows) -> Array:
    return jnp.broadcast_to(values, (rows.x.shape[0], values.shape[1]))


def _column_sum(rows: Rows, values: Array) -> Array:
    return jnp.sum(jnp.where(rows.weight[:, None] > 0, rows.weight[:, None] * values, 0.0), axis=0)


def _pick(take: Array, new: Any, old: Any) -> Any:
    """The new rows where ``take``, else the old."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.reshape(take, (-1,) + (1,) * (a.ndim - 1)), a, b), new, old)


def _changed(q: RowPosteriors, change: Change, rows: Rows) -> RowPosteriors:
    shift = change.shift[:1]
    if rows.covariates is not None:
        shift = shift + _full(rows.covariates, rows) @ change.shift[1:]
    size = q.mean.shape[1]
    first, second, _ = upper_triangle(size)
    full = change.inverse @ unpacked(q.covariance, size) @ change.inverse.T
    mean = (q.mean - shift) @ change.inverse.T
    return q._replace(mean=mean, covariance=full[:, first, second], log_det=q.log_det - 2 * change.log_det)


def _kl(q: RowPosteriors) -> Array:
    first, second, _ = upper_triangle(q.mean.shape[1])
    return gaussian_kl(q.mean, jnp.sum(q.covariance[:, np.flatnonzero(first == second)], axis=1), q.log_det)


def _predictor(decoder: Affine, fixed: Array, q: RowPosteriors) -> tuple[Array, Array]:
    """m and v of every entry."""
    first, second, _ = upper_triangle(decoder.latent_dim)
    double = jnp.asarray(np.where(first == second, 1.0, 2.0), q.mean.dtype)
    products = decoder.loadings[:, first] * decoder.loadings[:, second] * double[None]
    return q.mean @ decoder.loadings.T + fixed, jnp.maximum(q.covariance @ products.T, 0.0)


def _step(decoder: Affine, beta: Array, known: _Known) -> RowPosteriors:
    """A step of every row as long as its caution allows.

    The new precision is a P + (1 - a) S^-1, P the one that the weights call for, S the old covariance. A step that is
    not full ends between the two on a logarithmic scale, so that an S that is too narrow by orders of magnitude
    widens by half of them, then by a quarter, and so on.
    """
    loadings, q = decoder.loadings, known.q
    size = decoder.latent_dim
    first, second, where = upper_triangle(size)
    diagonal = np.flatnonzero(first == second)
    packed = (known.weight / beta) @ (loadings[:, first] * loadings[:, second])
    eps = jnp.finfo(packed.dtype).eps
    is_wide = jnp.sum(packed[:, diagonal], axis=1) > _WIDEST / eps
    together = jnp.asarray(first != second)[None] & is_wide[:, None]
    off = jnp.where(together, 1 - _APART * size * eps, 1.0)
    precision = (packed * off)[:, where] + jnp.eye(size, dtype=packed.dtype)[None]
    ahead = (known.gradient @ loadings) / beta - q.mean

    def shortened() -> tuple[Array, Array]:
        old, _ = symmetric_inverse(unpacked(q.covariance, size))
        ratio = jnp.trace(precision, axis1=1, axis2=2) / jnp.maximum(jnp.trace(old, axis1=1, axis2=2), 1e-30)
        kept = jnp.where(q.caution > 0, jnp.sqrt(jnp.minimum(ratio, 1.0)) * 2.0 ** (q.caution - 1), 0.0)
        length = 1 / (1 + kept)
        return length[:, None, None] * precision + (length * kept)[:, None, None] * old, length

    full = precision, jnp.ones_like(q.caution)
    precision, length = jax.lax.cond(jnp.any(q.caution > 0), shortened, lambda: full)
    covariance, log_det = symmetric_inverse(precision)
    mean = q.mean + length[:, None] * jnp.sum(covariance * ahead[:, None], axis=-1)
    return RowPosteriors(mean, covariance[:, first, second], -log_det, q.caution)
