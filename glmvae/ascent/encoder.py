"""The best affine encoder of a decoder, for the exact ELBO: mu(x) = A (x - mean x) + a, one Sigma for all rows.

The posteriors that an ascent finds are no affine function of x. With g_i the gradient of E log p in the predictor and
w_i its weights,

    d ELBO / d mu_i = r_i = W' g_i - beta mu_i,     - d r_i / d mu_i = H_i = beta I + W' diag(w_i) W

The ELBO is concave in (A, a) where log p is concave in eta, and the weights call for Sigma = beta (mean H)^-1. Newton's
method climbs it in (A Cov(x)^1/2, a), from the regression of the posterior means on x, its slopes shortened until they
are better than none (a mean linear in x overshoots where counts are large). Every H_i is kept with its row, and
conjugate gradients solve for the step

    sum_i H_i D y_i y_i' = sum_i r_i y_i',     y = (Cov(x)^-1/2 (x - mean x), 1)

which costs passes of two small matrix products, and none over E log p.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.ascent.climb import Problem
from glmvae.ascent.decoder import in_double
from glmvae.ascent.posteriors import packed_curvature
from glmvae.ascent.row_posteriors import unpacked
from glmvae.ascent.terms import exact_terms
from glmvae.blocks import Store, sweep, total
from glmvae.decomposition import one_thread
from glmvae.model import Affine, Objective
from glmvae.optimum import Encoder
from glmvae.rows import Rows
from glmvae.sources import Source
from glmvae.spectral import decompose
from glmvae.statistics import moments
from glmvae.variational import Posterior, kl_of, predictor_moments, upper_triangle

# Halvings of the slopes at the start; steps of Newton's method, how far each is solved for, and by how much it is
# shortened where it overshoots.
_HALVINGS = 5
_STEPS = 60
_SOLVED = 0.1
_PRODUCTS = 40
_SHORTER = 0.25
# An encoder need not be better than that: nats per row, of the ELBO, and of what it loses to the best posteriors.
_TOLERANCE = 2e-5
_RELATIVE = 2e-6
_OF_LOSS = 1e-3


class _Sums(NamedTuple):
    """Of rows: the ELBO, r_i, r_i (x_i - mean x)' and the weights by column."""

    elbo: Array
    residual: Array
    cross: Array
    weight: Array


class _Point(NamedTuple):
    """An encoder, (A Cov(x)^1/2, a) and Sigma; the ELBO there in nats per row, its gradient in the former, H of the
    rows, and its mean."""

    whitened: np.ndarray
    covariance: np.ndarray
    elbo: float
    gradient: np.ndarray
    curvatures: Store
    curvature: np.ndarray


class _Data(NamedTuple):
    """The rows, their (weighted) number and mean, and R (d, d) with R' Cov R = 1, so that y = (R' (x - mean), 1)."""

    source: Source
    num_rows: float
    centre: Array
    inverse_root: np.ndarray


def best_encoder(problem: Problem, decoder: Affine, objective: Objective, posterior: Posterior, elbo: float) -> Encoder:
    """The encoder of plain rows, whose best posteriors reach ``elbo``."""
    known = moments(problem.source)
    sums = total(_regression, problem.source, known.mean, given=posterior, family=objective.family, check=False)
    cross, mean, count, spread = in_double(sums)
    data = _Data(problem.source, float(count), known.mean, _inverse_root(np.asarray(known.covariance)))
    at = functools.partial(_at, data, decoder, objective)
    # A step that is too long, and overflows, is shortened
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        start = _start(cross @ data.inverse_root / count, mean / count, spread / count, at)
        best = _climbed(start, data, at, float(objective.beta), elbo)
    found = _encoder(best.whitened, best.covariance, data, decoder)
    bias = found.bias - found.weight @ np.asarray(data.centre)
    return Encoder(*(jnp.asarray(part) for part in (found.weight, bias, found.covariance)))


def _at(data: _Data, decoder: Affine, objective: Objective, whitened: np.ndarray, covariance: np.ndarray) -> _Point:
    """An encoder looked at, in one pass."""
    store, at = Store(), (_encoder(whitened, covariance, data, decoder), data.centre, decoder, objective)
    sums = in_double(sweep(_encoded, data.source, *at, family=objective.family, check=False, store=store))
    store.commit()
    gradient = np.concatenate([sums.cross @ data.inverse_root, sums.residual[:, None]], axis=1) / data.num_rows
    loadings = np.asarray(decoder.loadings, np.float64)
    curvature = loadings.T @ (loadings * (sums.weight / data.num_rows)[:, None])
    curvature += float(objective.beta) * np.eye(decoder.latent_dim)
    value = float(sums.elbo) / data.num_rows if np.isfinite(curvature).all() else -np.inf
    return _Point(whitened, covariance, value, gradient, store, curvature)


def _encoder(whitened: np.ndarray, covariance: np.ndarray, data: _Data, decoder: Affine) -> Encoder:
    parts = whitened[:, :-1] @ data.inverse_root.T, whitened[:, -1], covariance
    return Encoder(*(np.asarray(part, decoder.loadings.dtype) for part in parts))  # type: ignore[arg-type]


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """R (d, d) with R' Cov R = 1 in the directions that the columns fill, found at one scale for all columns."""
    variance = np.diagonal(covariance).astype(np.float64)
    scale = np.where(variance > 0, 1 / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    found = decompose((covariance * scale[:, None] * scale).astype(covariance.dtype))
    values, vectors = (np.asarray(a, np.float64) for a in found)
    usable = values > len(values) * np.finfo(covariance.dtype).eps * values[0]
    root: np.ndarray = scale[:, None] * vectors * np.where(usable, 1 / np.sqrt(np.where(usable, values, 1.0)), 0.0)
    return root


def _start(slopes: np.ndarray, mean: np.ndarray, covariance: np.ndarray, at: Callable[..., _Point]) -> _Point:
    """The longest slopes, each half the one before, that are better than none."""

    def shortened(length: float) -> _Point:
        return at(np.concatenate([length * slopes, mean[:, None]], axis=1), covariance)

    none = shortened(0.0)
    for halvings in range(_HALVINGS):
        found = shortened(0.5**halvings)
        if found.elbo > none.elbo:
            return found
    return none


def _climbed(start: _Point, data: _Data, at: Callable[..., _Point], beta: float, reachable: float) -> _Point:
    """From a start on, until a step is predicted to raise the ELBO by less than the tolerance."""
    point, length = start, 1.0
    for _ in range(_STEPS):
        step = _newton(point, data)
        spread = point.curvature @ point.covariance / beta
        gain = 0.5 * np.sum(step * point.gradient)
        gain += 0.5 * beta * (np.trace(spread) - len(spread) - np.linalg.slogdet(spread)[1])
        enough = _TOLERANCE + max(_RELATIVE * abs(point.elbo), _OF_LOSS * (reachable - point.elbo))
        while gain * length >= enough:
            precision = (1 - length) * _inverse(point.covariance) + length * point.curvature / beta
            found = at(point.whitened + length * step, _inverse(precision))
            if found.elbo > point.elbo:
                break
            length *= _SHORTER
        else:
            return point
        point, length = found, min(length / _SHORTER, 1.0)
    return point


def _newton(point: _Point, data: _Data) -> np.ndarray:
    """D, by conjugate gradients in the metric of the mean H."""
    from scipy.sparse.linalg import LinearOperator, cg

    shape, dtype = point.gradient.shape, np.asarray(data.centre).dtype

    def product(flat: np.ndarray) -> np.ndarray:
        step = flat.reshape(shape)
        parts = (np.asarray(part, dtype) for part in (step[:, :-1] @ data.inverse_root.T, step[:, -1]))
        pulled = sweep(_curved, data.source, data.centre, *parts, check=False, store=point.curvatures)
        cross, summed = in_double(pulled)
        return np.concatenate([cross @ data.inverse_root, summed[:, None]], axis=1).ravel() / data.num_rows

    inverse = _inverse(point.curvature)
    size = point.gradient.size
    solved, _ = cg(
        LinearOperator((size, size), product),
        point.gradient.ravel(),
        rtol=_SOLVED,
        maxiter=_PRODUCTS,
        M=LinearOperator((size, size), lambda flat: (inverse @ flat.reshape(shape)).ravel()),
    )
    return np.asarray(solved).reshape(shape)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a matrix that may be singular up to rounding."""
    return np.linalg.pinv(matrix, hermitian=True)


def _regression(rows: Rows, q: Posterior, centre: Array) -> tuple[tuple[Array, Array, Array, Array], None]:
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    weighted = each[:, None] * q.mean
    covariance = jnp.sum(each[:, None, None] * q.covariance, axis=0)
    return (weighted.T @ (rows.x - centre[None]), jnp.sum(weighted, axis=0), jnp.sum(each), covariance), None


def _encoded(
    rows: Rows, _: Any, encoder: Encoder, centre: Array, decoder: Affine, objective: Objective
) -> tuple[_Sums, Array]:
    mean = (rows.x - centre[None]) @ encoder.weight.T + encoder.bias[None]
    q = Posterior(mean, encoder.covariance[None])
    m, v = predictor_moments(decoder, rows, q)
    value, gradient, weight = exact_terms(objective, rows, m, v)
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    elbo = jnp.sum(value, axis=1) - objective.beta * kl_of(q)
    residual = each[:, None] * (gradient @ decoder.loadings - objective.beta * mean)
    first, second, _ = upper_triangle(decoder.latent_dim)
    same = jnp.asarray(np.where(first == second, 1.0, 0.0), mean.dtype)
    curvature = each[:, None] * (packed_curvature(decoder.loadings, weight) + objective.beta * same[None])
    sums = _Sums(
        jnp.sum(jnp.where(each > 0, each * elbo, 0.0)),
        jnp.sum(residual, axis=0),
        residual.T @ (rows.x - centre[None]),
        each @ weight,
    )
    return sums, jnp.where(each[:, None] > 0, curvature, 0.0)


def _curved(
    rows: Rows, curvature: Array, centre: Array, slopes: Array, intercept: Array
) -> tuple[tuple[Array, Array], None]:
    """What H makes of a step, against x and summed."""
    centred = rows.x - centre[None]
    moved = centred @ slopes.T + intercept[None]
    pulled = jnp.sum(unpacked(curvature, moved.shape[1]) * moved[:, None], axis=-1)
    return (pulled.T @ centred, jnp.sum(pulled, axis=0)), None
