"""The best affine encoder of a decoder, for the exact ELBO: mu(x) = A (x - mean x) + a, one Sigma for all rows.

The posteriors that an ascent finds are no affine function of x. With g_i the gradient of E log p in the predictor,
w_i its weights, and C_i mu_i = h_i the normal equations that a pass hands back
(:data:`~glmvae.ascent.passes.EQUATIONS`),

    r_i = W' g_i - beta mu_i = h_i - H_i mu_i,     H_i = beta I + C_i,     C_i = W' diag(w_i) W

are the gradient in mu_i and minus the curvature, or more than that where weights know no bound
(:func:`~glmvae.ascent.terms.held_weight`). The ELBO is concave in (A, a) where log p is concave in eta, and the weights
call for Sigma = beta (mean H)^-1. Newton's method climbs it in (A Cov(x)^1/2, a). It starts where a GLM does,
at least squares of the saturated model: the means that the ascent found regressed on x, with Sigma their mean
covariance. Where that overshoots by far (as a mean linear in x does where counts are large) each has the weight H_i of
its row (of Sigma = 0), and slopes that still overshoot are halved. Every H_i is kept with its row, and conjugate
gradients solve for the step

    sum_i (H_i + lambda W'W) D y_i y_i' = sum_i r_i y_i',     y = (Cov(x)^-1/2 (x - mean x), 1)

which costs sweeps of a few matrix products, and none over E log p. lambda is 0 until a step overshoots (Levenberg and
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

from glmvae._numerics import unpacked
from glmvae.ascent.climb import Problem, passed
from glmvae.ascent.decoder import in_double
from glmvae.ascent.encoder_passes import Equations, called_for, curved, placed
from glmvae.ascent.passes import EQUATIONS, exact_pass
from glmvae.ascent.row_posteriors import PosteriorStore, RowPosteriors, with_shared_covariance
from glmvae.blocks import Store, per_row, sweep
from glmvae.cuts import seen_by_host
from glmvae.decomposition import one_thread
from glmvae.model import Affine, Objective
from glmvae.optimum import Encoder
from glmvae.sources import Source
from glmvae.spectral import decompose
from glmvae.statistics import moments
from glmvae.variational import Posterior

# Halvings of the slopes at the start; steps of Newton's method that are few, and too many; how far each is solved for,
# and the start.
_HALVINGS = 5
_FEW = 10.0
_STEPS = 80
_SOLVED = 0.1
_STARTED = 1e-3
_PRODUCTS = 40
# Columns from which products of a block are worth a thread of their own.
_WIDE = 256
# The least damping, a share of the mean curvature; how much more where a step overshoots, ever more and so many times
# at most, and less where it does not.
_LEAST = 1e-6
_TRIES = 30
_MORE = 10.0
_LESS = 5.0
# An encoder need not be better than that: nats per row, of the ELBO, and of what it loses to the best posteriors.
_TOLERANCE = 2e-5
_RELATIVE = 2e-6
_OF_LOSS = 1e-3
# What a damped step is predicted to gain says less of what is left: the share of it below which no other is tried.
_OF_DAMPED = 1e-2


class _Point(NamedTuple):
    """An encoder, (A Cov(x)^1/2, a) and Sigma; the ELBO there in nats per row, its gradient in the former, the
    equations of the rows, and the mean of H that calls for Sigma."""

    whitened: np.ndarray
    covariance: np.ndarray
    elbo: float
    gradient: np.ndarray
    equations: Store
    curvature: np.ndarray


class _Data(NamedTuple):
    """What is climbed, its rows' (weighted) number and mean, R (d, d) with R' Cov R = 1, so that
    y = (R' (x - mean), 1); W'W, of trace 1; beta."""

    problem: Problem
    num_rows: float
    centre: np.ndarray
    inverse_root: np.ndarray
    gram: np.ndarray
    beta: float

    def means(self, whitened: np.ndarray) -> Array:
        """Of rows, as an affine function of y."""
        return per_row(placed, *self._in_rows(whitened), **self._as(placed))

    def called(self, **equations: Any) -> np.ndarray:
        """The mean of h against y, of equations ``given`` or in a ``store``."""
        return self._against_y(in_double(sweep(called_for, *self._in_rows(), **equations | self._as(called_for))))

    def product(self, store: Store, whitened: np.ndarray, common: np.ndarray) -> np.ndarray:
        """The mean of H times an affine function of y, against y; H is C and what rows have in common."""
        shared = np.asarray(common, self.centre.dtype)
        summed = sweep(curved, *self._in_rows(whitened), shared, store=store, **self._as(curved))
        return self._against_y(in_double(summed))

    def _in_rows(self, whitened: np.ndarray | None = None) -> tuple[Any, ...]:
        """The rows and their mean, and slopes of x - mean with the intercept."""
        parts = () if whitened is None else (whitened[:, :-1] @ self.inverse_root.T, whitened[:, -1])
        return self.problem.source, self.centre, *(np.asarray(part, self.centre.dtype) for part in parts)

    def _against_y(self, sums: Any) -> np.ndarray:
        return np.concatenate([sums[0] @ self.inverse_root, sums[1][:, None]], axis=1) / self.num_rows

    def _as(self, f: Any) -> dict[str, Any]:
        return {"check": False, "on_host": f, "threads": len(self.inverse_root) >= _WIDE}


def best_encoder(source: Source, decoder: Affine, objective: Objective, posterior: Posterior, elbo: float) -> Encoder:
    """The encoder of plain rows, whose best posteriors reach ``elbo`` (less what depends on x alone)."""
    problem = Problem(source, exact_pass, False)
    known, loadings = moments(source), np.asarray(decoder.loadings, np.float64)
    root, gram = _inverse_root(np.asarray(known.covariance)), _of_trace_1(loadings.T @ loadings)
    centre = np.asarray(known.mean, decoder.loadings.dtype)
    data = _Data(problem, float(known.count), centre, root, gram, float(objective.beta))
    # A step that is too long, and overflows, is damped
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        at = functools.partial(_at, data, decoder, objective)
        regressed = data.called(given=Equations(posterior.mean, None))
        start = at(regressed, np.asarray(posterior.covariance).mean(axis=0, dtype=np.float64))
        if not _holds(start, elbo, _FEW):
            none = _at_means(data, decoder, objective, posterior.mean)
            found = _newton(none, data, 0.0, _STARTED)
            start = _start(found[:, :-1], found[:, -1], none.covariance, at, elbo)
        best = _climbed(start, data, at, elbo)
    weight = best.whitened[:, :-1] @ root.T
    bias = best.whitened[:, -1] - weight @ np.asarray(known.mean, np.float64)
    parts = weight, bias, best.covariance
    return Encoder(*(jax.device_put(np.asarray(part, decoder.loadings.dtype)) for part in parts))


def _at_means(data: _Data, decoder: Affine, objective: Objective, means: Array) -> _Point:
    """What best fits given means: no slopes and no level, the pull of the means on them, H of the rows there, of
    Sigma = 0, and the covariance that it calls for."""
    nothing = np.zeros((decoder.latent_dim, decoder.latent_dim))
    _, called, store, curvature = _looked(data, decoder, objective, means, nothing)
    return _Point(np.zeros_like(called), data.beta * _inverse(curvature), -np.inf, called, store, curvature)


def _at(data: _Data, decoder: Affine, objective: Objective, whitened: np.ndarray, covariance: np.ndarray) -> _Point:
    """An encoder looked at."""
    elbo, called, store, curvature = _looked(data, decoder, objective, data.means(whitened), covariance)
    gradient = called - data.product(store, whitened, data.beta * np.eye(decoder.latent_dim))
    value = elbo if np.isfinite(curvature).all() and np.isfinite(elbo) else -np.inf
    return _Point(whitened, covariance, value, gradient, store, curvature)


def _looked(
    data: _Data, decoder: Affine, objective: Objective, means: Array, covariance: np.ndarray
) -> tuple[float, np.ndarray, Store, np.ndarray]:
    """One pass: the ELBO, h of the rows against y, their equations, and the mean of H with the weights themselves."""
    store = PosteriorStore(with_shared_covariance(means, covariance))
    sums = passed(data.problem, store, decoder, objective, steps=EQUATIONS)
    store.commit()
    store.replace(functools.partial(_equations, size=decoder.latent_dim))
    loadings, weight = np.asarray(decoder.loadings, np.float64), np.asarray(sums.gram, np.float64)[:, 0]
    curvature = loadings.T @ (loadings * (weight / data.num_rows)[:, None]) + data.beta * np.eye(decoder.latent_dim)
    return float(sums.elbo) / data.num_rows, data.called(store=store), store, curvature


def _equations(handed_back: RowPosteriors, size: int) -> Equations:
    """Of a block, where they lie."""
    return Equations(seen_by_host(handed_back.mean), unpacked(seen_by_host(handed_back.covariance), size))


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
    """The longest slopes, each half the one before, that hold; else none."""

    def shortened(length: float) -> _Point:
        return at(np.concatenate([length * slopes, mean[:, None]], axis=1), covariance)

    best = shortened(1.0)
    for halvings in range(1, _HALVINGS + 1):
        if _holds(best, reachable):
            return best
        found = shortened(0.5**halvings if halvings < _HALVINGS else 0.0)
        if found.elbo < best.elbo:
            return best
        best = found
    return best


def _holds(point: _Point, reachable: float, times: float = 1.0) -> bool:
    """Whether the ELBO falls along the slopes by no more than so many times what is left to gain.

    If by no more than once it gains nothing by shortening them: it is concave. Where it overshoots as exponentials do,
    Newton's method takes about as many steps.
    """
    along = np.sum(point.gradient[:, :-1] * point.whitened[:, :-1])
    return bool(along >= times * (point.elbo - reachable) > -np.inf)


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
    low, high = 0.0, float(np.finfo(float).max)  # too little, and too much for a step that gains enough
    for tries in range(1, _TRIES + 1):
        step, length = _newton(point, data, damping, _SOLVED), 1 / (1 + damping)
        gain = 0.5 * np.sum(step * point.gradient) + length * of_spread
        if gain >= (enough if damping == 0 else _OF_DAMPED * enough):
            precision = (1 - length) * _inverse(point.covariance) + length * point.curvature / data.beta
            found = at(point.whitened + step, _inverse(precision))
            if found.elbo > point.elbo:
                return found, damping
            low = damping
        else:
            high = damping
        if high <= max(_MORE * low, _LEAST):
            break
        damping = max(min(low * _MORE**tries, float(np.sqrt(low * high))), _LEAST)
    return None, damping


def _newton(point: _Point, data: _Data, damping: float, solved: float) -> np.ndarray:
    """D, by conjugate gradients in the metric of the mean H."""
    from scipy.sparse.linalg import LinearOperator, cg

    shape, extra = point.gradient.shape, damping * np.trace(point.curvature) * data.gram
    common = data.beta * np.eye(shape[0]) + extra

    def product(flat: np.ndarray) -> np.ndarray:
        return data.product(point.equations, flat.reshape(shape), common).ravel()

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
