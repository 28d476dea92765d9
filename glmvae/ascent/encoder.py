"""The best affine encoder of a decoder, for the exact ELBO: mu(x) = A (x - mean x) + a, one Sigma for all rows.

The posteriors that an ascent finds are no affine function of x. With g_i the gradient of E log p in the predictor and
w_i its weights,

    d ELBO / d mu_i = r_i = W' g_i - beta mu_i,     - d r_i / d mu_i = H_i = beta I + W' diag(w_i) W

The ELBO is concave in (A, a) where log p is concave in eta, and the weights call for Sigma = beta (mean H)^-1. Newton's
method climbs it in (A Cov(x)^1/2, a). It starts where a GLM does, at least squares of the saturated model: the means
that the ascent found regressed on x, each with the H_i of its row there (of Sigma = 0), and its slopes shortened where
they overshoot by far (as a mean linear in x does where counts are large). Every H_i is kept with its row, and conjugate
gradients solve for the step

    sum_i (H_i + lambda W'W) D y_i y_i' = sum_i r_i y_i',     y = (Cov(x)^-1/2 (x - mean x), 1)

which costs passes of a few matrix products, and none over E log p. lambda is 0 until a step overshoots (Levenberg and
Marquardt's damping): rows of small counts, whose curvature is next to nothing, hold their predictors where those of
large counts would drive them out of range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae._numerics import unpacked
from glmvae.ascent.climb import Problem
from glmvae.ascent.decoder import in_double
from glmvae.ascent.encoder_passes import EncoderSums, curved, encoded
from glmvae.blocks import Store, sweep
from glmvae.cuts import seen_by_host
from glmvae.decomposition import one_thread
from glmvae.model import Affine, Objective
from glmvae.optimum import Encoder
from glmvae.sources import Source
from glmvae.spectral import decompose
from glmvae.statistics import moments
from glmvae.variational import Posterior, Spread, spread_of

# Halvings of the slopes at the start; steps of Newton's method, how far each is solved for, and the start.
_HALVINGS = 5
_STEPS = 80
_SOLVED = 0.1
_STARTED = 1e-2
_PRODUCTS = 40
# Columns from which the products of a block are worth a thread of their own.
_WIDE = 256
# The least damping, a share of the mean curvature; how much more where a step overshoots, ever more and so many times
# at most, and less where it does not.
_LEAST = 1e-6
_TRIES = 30
_MORE = 10.0
_LESS = 3.0
# An encoder need not be better than that: nats per row, of the ELBO, and of what it loses to the best posteriors.
_TOLERANCE = 2e-5
_RELATIVE = 2e-6
_OF_LOSS = 1e-3
# What a damped step is predicted to gain says less of what is left: the share of it below which no other is tried.
_OF_DAMPED = 1e-2


class _Point(NamedTuple):
    """An encoder, (A Cov(x)^1/2, a) and Sigma; the ELBO there in nats per row, its gradient in the former, H of the
    rows less beta I, and the mean of H."""

    whitened: np.ndarray
    covariance: np.ndarray
    elbo: float
    gradient: np.ndarray
    curvatures: Store
    curvature: np.ndarray


class _Data(NamedTuple):
    """The rows, their (weighted) number and mean, R (d, d) with R' Cov R = 1, so that y = (R' (x - mean), 1); W'W,
    of trace 1; means that are 0 for every row; beta."""

    source: Source
    num_rows: float
    centre: Array
    inverse_root: np.ndarray
    gram: np.ndarray
    nowhere: np.ndarray
    beta: float

    def against_y(self, sums: tuple[Any, Any]) -> np.ndarray:
        """The mean against y of what was added up against x - mean, and summed."""
        return np.concatenate([sums[0] @ self.inverse_root, sums[1][:, None]], axis=1) / self.num_rows


def best_encoder(problem: Problem, decoder: Affine, objective: Objective, posterior: Posterior, elbo: float) -> Encoder:
    """The encoder of plain rows, whose best posteriors reach ``elbo``."""
    known, loadings = moments(problem.source), np.asarray(decoder.loadings, np.float64)
    root, gram = _inverse_root(np.asarray(known.covariance)), _of_trace_1(loadings.T @ loadings)
    nowhere = np.broadcast_to(np.zeros((), decoder.loadings.dtype), posterior.mean.shape)
    data = _Data(problem.source, float(known.count), known.mean, root, gram, nowhere, float(objective.beta))
    # A step that is too long, and overflows, is damped
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        none = _at_means(data, decoder, objective, posterior.mean)
        at = functools.partial(_at, data, decoder, objective)
        found = _newton(none, data, 0.0, _STARTED)
        start = _start(found[:, :-1], found[:, -1], none.covariance, at, elbo)
        best = _climbed(start, data, at, elbo)
    weight = best.whitened[:, :-1] @ root.T
    bias = best.whitened[:, -1] - weight @ np.asarray(known.mean, np.float64)
    parts = weight, bias, best.covariance
    return Encoder(*(jax.device_put(np.asarray(part, decoder.loadings.dtype)) for part in parts))


def _at_means(data: _Data, decoder: Affine, objective: Objective, means: Array) -> _Point:
    """No slopes and no level, the pull of the given means on them, H of the rows there, of Sigma = 0, and the
    covariance that it calls for."""
    shape = decoder.latent_dim, len(data.inverse_root) + 1
    zero = Spread(*(np.zeros(size) for size in (shape[1] - 1, (), ())))
    sums, store, curvature = _looked(data, decoder, objective, np.zeros(shape), zero, means, 1.0)
    covariance = data.beta * _inverse(curvature)
    return _Point(np.zeros(shape), covariance, -np.inf, data.against_y(sums.pull), store, curvature)


def _at(data: _Data, decoder: Affine, objective: Objective, whitened: np.ndarray, covariance: np.ndarray) -> _Point:
    """An encoder looked at."""
    shared = spread_of(covariance, decoder.loadings)
    sums, store, curvature = _looked(data, decoder, objective, whitened, shared, data.nowhere, 0.0)
    value = float(sums.elbo) / data.num_rows if np.isfinite(curvature).all() and np.isfinite(sums.elbo) else -np.inf
    return _Point(whitened, covariance, value, data.against_y(sums.pull), store, curvature)


def _looked(
    data: _Data,
    decoder: Affine,
    objective: Objective,
    whitened: np.ndarray,
    shared: Spread,
    means: ArrayLike,
    share: float,
) -> tuple[EncoderSums, Store, np.ndarray]:
    """One pass: sums, H of every row less beta I, and the mean of H."""
    store, loadings, dtype = Store(), np.asarray(decoder.loadings, np.float64), decoder.loadings.dtype
    parts = whitened[:, :-1] @ data.inverse_root.T, whitened[:, -1], shared, share
    at = jax.tree.map(lambda part: np.asarray(part, dtype), parts)
    options: dict[str, Any] = {"family": objective.family, "check": False, "given": means, "store": store}
    sums = in_double(sweep(encoded, data.source, *at, data.centre, decoder, objective, **options))
    store.commit()
    store.replace(functools.partial(_unpacked, size=decoder.latent_dim))
    curvature = loadings.T @ (loadings * (sums.weight / data.num_rows)[:, None])
    return sums, store, curvature + data.beta * np.eye(decoder.latent_dim)


def _unpacked(packed: Any, size: int) -> Any:
    """H less beta I of every row of a block, where it lies."""
    return unpacked(seen_by_host(packed), size)


def _of_trace_1(gram: np.ndarray) -> np.ndarray:
    """At a trace of 1; the identity where nothing is left of it."""
    total = np.trace(gram)
    return gram / total if total > 0 else np.eye(len(gram)) / max(len(gram), 1)


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    """R (d, d) with R' Cov R = 1 in the directions that the columns fill, found at one scale for all columns."""
    variance = np.diagonal(covariance).astype(np.float64)
    scale = np.where(variance > 0, 1 / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    found = decompose((covariance * scale[:, None] * scale).astype(covariance.dtype))
    values, vectors = (np.asarray(a, np.float64) for a in found)
    usable = values > len(values) * np.finfo(covariance.dtype).eps * values[0]
    root: np.ndarray = scale[:, None] * vectors * np.where(usable, 1 / np.sqrt(np.where(usable, values, 1.0)), 0.0)
    return root


def _start(
    slopes: np.ndarray, mean: np.ndarray, covariance: np.ndarray, at: Callable[..., _Point], reachable: float
) -> _Point:
    """The longest slopes, each half the one before, that overshoot by less than what is left to gain; else none.

    A concave ELBO gains no more by shortening them than it falls along them.
    """

    def shortened(length: float) -> _Point:
        return at(np.concatenate([length * slopes, mean[:, None]], axis=1), covariance)

    best = shortened(1.0)
    for halvings in range(1, _HALVINGS + 1):
        along = np.sum(best.gradient[:, :-1] * best.whitened[:, :-1])
        if along >= best.elbo - reachable > -np.inf:
            return best
        found = shortened(0.5**halvings if halvings < _HALVINGS else 0.0)
        if found.elbo < best.elbo:
            return best
        best = found
    return best


def _climbed(start: _Point, data: _Data, at: Callable[..., _Point], reachable: float) -> _Point:
    """From a start on, until what a step would gain is less than the tolerance: as predicted, or, if gains go on to
    shrink as the last two did, without solving for it."""
    point, damping = start, 0.0
    gains: list[float] = []  # of the last steps, where none was damped
    for _ in range(_STEPS):
        enough = _TOLERANCE + max(_RELATIVE * abs(point.elbo), _OF_LOSS * (reachable - point.elbo))
        if len(gains) > 1 and gains[-1] ** 2 < enough * gains[-2]:
            break
        found, damping = _raised(point, damping, data, at, enough)
        if found is None:
            break
        gains = [] if damping else [*gains, found.elbo - point.elbo]
        point, damping = found, damping / _LESS if damping > _LEAST else 0.0
    return point


def _raised(
    point: _Point, damping: float, data: _Data, at: Callable[..., _Point], enough: float
) -> tuple[_Point | None, float]:
    """After a step, damped until it raises the ELBO; None where none is predicted to gain enough. And the damping."""
    spread = point.curvature @ point.covariance / data.beta
    of_spread = 0.5 * data.beta * (np.trace(spread) - len(spread) - np.linalg.slogdet(spread)[1])
    for tries in range(1, _TRIES + 1):
        step, length = _newton(point, data, damping, _SOLVED), 1 / (1 + damping)
        gain = 0.5 * np.sum(step * point.gradient) + length * of_spread
        if not gain >= (enough if damping == 0 else _OF_DAMPED * enough):
            break
        precision = (1 - length) * _inverse(point.covariance) + length * point.curvature / data.beta
        found = at(point.whitened + step, _inverse(precision))
        if found.elbo > point.elbo:
            return found, damping
        damping = max(damping * _MORE**tries, _LEAST)
    return None, damping


def _newton(point: _Point, data: _Data, damping: float, solved: float) -> np.ndarray:
    """D, by conjugate gradients in the metric of the mean H."""
    from scipy.sparse.linalg import LinearOperator, cg

    shape, centre = point.gradient.shape, np.asarray(data.centre)
    dtype, extra = centre.dtype, damping * np.trace(point.curvature) * data.gram
    shared = np.asarray(data.beta * np.eye(shape[0]) + extra, dtype)
    options: dict[str, Any] = {"check": False, "store": point.curvatures, "on_host": curved}
    options["threads"] = len(data.inverse_root) >= _WIDE

    def product(flat: np.ndarray) -> np.ndarray:
        step = flat.reshape(shape)
        parts = (np.asarray(part, dtype) for part in (step[:, :-1] @ data.inverse_root.T, step[:, -1]))
        pulled = sweep(curved, data.source, centre, shared, *parts, **options)
        return data.against_y(in_double(pulled)).ravel()

    inverse = _inverse(point.curvature + extra)
    size = point.gradient.size
    found, _ = cg(
        LinearOperator((size, size), product),
        point.gradient.ravel(),
        rtol=solved,
        maxiter=_PRODUCTS,
        M=LinearOperator((size, size), lambda flat: (inverse @ flat.reshape(shape)).ravel()),
    )
    return np.asarray(found).reshape(shape)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a matrix that may be singular up to rounding."""
    return np.linalg.pinv(matrix, hermitian=True)
