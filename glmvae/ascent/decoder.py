"""The decoder's step from the sums of a pass, and how z is standardised after it.

With the posteriors fixed the columns do not know of each other: theta_j = (W_j, b_j, B_j) moves by one step of weighted
least squares, A_j^-1 s_j, with

    A_j = sum_i w_ij E z~ z~',     s_j = d/d theta_j sum_i E log p(x_ij),     z~ = (z, 1, covariates)

no further than the trust region allows: where weights are tiny such a step may be longer than any quadratic holds.
Gaussian columns, whose quadratic holds everywhere, have none: theirs is at home in any unit of measurement.
Then z is standardised. With the least-squares fit of the posterior means on (1, covariates), c + D covariates, and
T T' what is left of mean E zz', the change z -> T^-1 (z - c - D covariates) leaves every eta as it is and lowers the KL
divergence: a decoder whose posteriors are narrow need not grow to its size in many small steps (parameter expansion;
Liu, Rubin and Wu 1998).

All this is small and on the host, in double precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae._numerics import upper_triangle
from glmvae.ascent.passes import Sums
from glmvae.ascent.row_posteriors import Change
from glmvae.model import Affine, Objective

# The root mean square by which a step may move the linear predictor of a column.
_TRUST = 4.0
# Rounding units of a pass by which the scaled matrices may be off; at least so much, which keeps a matrix of rank one
# from a pivot of 0.
_RIDGE = 32
_SOLVABLE = 1e-12


class DecoderStep(NamedTuple):
    """What a pass calls for, per row where it is a mean.

    ``step`` (d, r) of theta, ``change`` how z is standardised after it, ``dispersion`` the best phi for the posteriors
    of the pass, or None where it is held; ``gain`` what all of them are predicted to gain in nats per row, ``metric``
    (d, r) that of the least squares, and in a last column the root of the information of log phi where that is free,
    ``weight`` (d,) the mean of w.
    """

    step: np.ndarray
    change: Change
    dispersion: Array | None
    gain: float
    metric: np.ndarray
    weight: np.ndarray


def in_double(tree: Any) -> Any:
    """On the host, in double precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def stacked(decoder: Affine) -> np.ndarray:
    """theta = (W, b, B'), (d, r), in double precision."""
    coefficients = [] if decoder.coefficients is None else [np.asarray(decoder.coefficients).T]
    parts = [np.asarray(decoder.loadings), np.asarray(decoder.intercept)[:, None], *coefficients]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def unstacked(theta: np.ndarray, like: Affine) -> Affine:
    """The decoder of a theta, unchecked, in the precision of another."""
    units = like.latent_dim
    theta = theta.astype(like.loadings.dtype)
    coefficients = [] if like.coefficients is None else [np.ascontiguousarray(theta[:, units + 1 :].T)]
    leaves = [np.ascontiguousarray(theta[:, :units]), np.ascontiguousarray(theta[:, units]), *coefficients]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def joined(theta: np.ndarray, phi: Any) -> np.ndarray:
    """A point of the climb: theta (d, r), and log phi as one more column unless phi is None."""
    if phi is None:
        return theta
    log_phi = np.log(np.maximum(np.asarray(phi, np.float64), np.finfo(np.float64).tiny))
    return np.column_stack([theta, np.broadcast_to(log_phi, len(theta))])


def parted(point: np.ndarray, now: Any, best: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """theta and phi of a point; None where ``best``, the phi called for, is. Where it is as now, phi is held."""
    if best is None:
        return point, None
    now = np.asarray(now)
    with np.errstate(over="ignore"):
        phi = np.exp(point[:, -1] if now.ndim else point[0, -1]).astype(now.dtype)
    return point[:, :-1], np.where(np.asarray(best) == now, now, phi)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite is no step that is taken
def decoder_step(sums: Sums, decoder: Affine, objective: Objective, free_dispersion: bool) -> DecoderStep:
    """The step of a decoder from the sums of a pass at it."""
    eps = float(np.finfo(sums.gram.dtype).eps)
    host: Any = in_double(sums)
    units, beta = decoder.latent_dim, float(objective.beta)
    where = upper_triangle(units + 1 + decoder.num_covariates)[2]
    gram, spread = host.gram[:, where], host.spread[where] / host.num_rows
    # sum w (Sigma W_j + mu mu' W_j) less sum w mu mu' W_j: what the spread of z takes from the gradient
    score = host.score - np.einsum("dkl,dl->dk", gram[:, :, :units], np.asarray(decoder.loadings, np.float64))
    step, metric = _least_squares(gram, score, eps)
    length = np.sqrt(np.maximum(np.einsum("dk,kl,dl->d", step, spread, step), 0.0))
    if np.any(length > _TRUST):
        step *= _trusted(objective, length)[:, None]
    gain = (np.sum(score * step) - 0.5 * np.einsum("dk,dkl,dl->", step, gram, step)) / host.num_rows
    change, reduced = _standardisation(spread, units, np.asarray(decoder.loadings).dtype)
    weight = gram[:, units, units] / host.num_rows
    phi, by_phi = None, 0.0
    if free_dispersion:
        phi, by_phi = _dispersion(host, objective)
        metric = np.column_stack([metric, np.sqrt(0.5 * host.entries)])
    return DecoderStep(step, change, phi, float(gain + beta * reduced + by_phi), metric, weight)


def _trusted(objective: Objective, length: np.ndarray) -> np.ndarray:
    """The share of the step of every column that is taken."""

    def share(member: Any, length: Any) -> Any:
        return np.ones_like(length) if member.is_quadratic else _TRUST / np.maximum(length, _TRUST)

    return np.asarray(objective.family.by_member(share, length), np.float64)


def _dispersion(host: Sums, objective: Objective) -> tuple[Array, float]:
    """The best phi for the posteriors as they are, one for all columns or one a column as it is now, and its gain in
    nats per row.

    The gain is that of log p = -deviance / (2 phi) - log(phi) / 2 + ...: Gaussian's own, the saddlepoint approximation
    of others. It only tells whether to go on.
    """
    now, after, entries = (np.asarray(a, np.float64) for a in (objective.dispersion, host.after, host.entries))
    family, deviance = objective.family, -now * after
    if now.ndim:
        phi = family.by_member(_dispersion_of_columns, deviance / entries, now)
    else:
        phi = family.dispersion_from(jnp.asarray(float(np.sum(deviance) / np.sum(entries))))
    ratio = now / np.asarray(phi, np.float64)
    gain = np.sum(after * (ratio - 1) + 0.5 * entries * np.log(ratio)) / host.num_rows
    return phi, float(gain) if np.isfinite(gain) else 0.0


def _dispersion_of_columns(member: Any, deviance: Array, now: Array) -> Array:
    """The best phi of each column of a member, or what it is where none can be estimated."""
    return member.dispersion_from(deviance) if member.estimates_dispersion else now


def _least_squares(gram: np.ndarray, score: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """A_j^-1 s_j of every column, and the square roots of the diagonals of A."""
    finite = np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(score).all(axis=1)
    gram, score = np.where(finite[:, None, None], gram, 0.0), np.where(finite[:, None], score, 0.0)
    scale = np.sqrt(np.maximum(np.einsum("dkk->dk", gram), 0.0))
    safe = np.where(scale > 0, scale, 1.0)
    identity = np.eye(gram.shape[1])
    ridge = max(_RIDGE * eps, _SOLVABLE) * identity + (scale == 0)[:, :, None] * identity
    solved = np.linalg.solve(gram / (safe[:, :, None] * safe[:, None]) + ridge, (score / safe)[:, :, None])[:, :, 0]
    return np.where(np.isfinite(solved), solved, 0.0) / safe, safe


def _standardisation(spread: np.ndarray, units: int, dtype: np.dtype) -> tuple[Change, float]:
    """How z is standardised, and by how much that lowers the mean KL divergence."""
    known, cross = spread[units:, units:], spread[units:, :units]
    shift = np.linalg.pinv(known, hermitian=True) @ cross
    try:
        root = np.linalg.cholesky(spread[:units, :units] - cross.T @ shift)
    except np.linalg.LinAlgError:  # what has no root stays as it is
        root, shift = np.eye(units), np.zeros_like(shift)
        return _change(root, shift, dtype), 0.0
    reduced = 0.5 * (np.trace(spread[:units, :units]) - units) - np.sum(np.log(np.diag(root)))
    return _change(root, shift, dtype), float(reduced)


def _change(root: np.ndarray, shift: np.ndarray, dtype: np.dtype) -> Change:
    parts = root, np.linalg.inv(root), shift, np.sum(np.log(np.diag(root)))
    return Change(*(np.asarray(part, dtype) for part in parts))  # type: ignore[arg-type]


def moved(decoder: Affine, step: DecoderStep, caution: np.ndarray) -> np.ndarray:
    """theta after the step of every column, 2^-caution long, and z standardised after it."""
    units = decoder.latent_dim
    theta = stacked(decoder) + (2.0**-caution)[:, None] * step.step
    loadings, change = theta[:, :units], in_double(step.change)
    return np.concatenate([loadings @ change.root, theta[:, units:] + loadings @ change.shift.T], axis=1)
