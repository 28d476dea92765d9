"""The best affine encoder of a decoder, for the exact ELBO: mu(x) = A (x - mean x) + a, one Sigma for all rows.

The posteriors that an ascent finds are no affine function of x. With g_i the gradient of E log p in the predictor and w
the weights averaged over rows,

    d ELBO / d mu_i = r_i = W' g_i - beta mu_i,     Sigma = beta H^-1,     H = beta I + W' diag(w) W

The ELBO is concave in (A, a) where log p is concave in eta. L-BFGS climbs it in H^1/2 (A Cov(x)^1/2, a), where its
curvature is near 1, from the regression of the posterior means on x, its slopes shortened until they are better than
none (a mean linear in x overshoots where counts are large). Sigma follows it: at every point that is the best
so far it is set to what the weights there call for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.ascent.climb import Problem
from glmvae.ascent.terms import exact_terms
from glmvae.blocks import total
from glmvae.decomposition import one_thread
from glmvae.model import Affine, Objective
from glmvae.optimum import Encoder
from glmvae.rows import Rows
from glmvae.spectral import decompose
from glmvae.statistics import moments
from glmvae.variational import Posterior, kl_of, predictor_moments

# Halvings of the slopes at the start, steps of L-BFGS, and those whose curvature it remembers.
_HALVINGS = 5
_STEPS = 60
_MEMORY = 8
# An encoder need not be better than that: nats per row, of the ELBO, and of what it loses to the best posteriors.
_TOLERANCE = 2e-4
_RELATIVE = 2e-5
_OF_LOSS = 1e-2


class _Sums(NamedTuple):
    """Of rows: the ELBO, r_i, r_i (x_i - mean x)' and the weights by column."""

    num_rows: Array
    elbo: Array
    residual: Array
    cross: Array
    weight: Array


class _Point(NamedTuple):
    """An encoder, (A Cov(x)^1/2, a) and Sigma; the ELBO there in nats per row, its gradient in the former, and H."""

    whitened: np.ndarray
    covariance: np.ndarray
    elbo: float
    gradient: np.ndarray
    curvature: np.ndarray


def best_encoder(problem: Problem, decoder: Affine, objective: Objective, posterior: Posterior, elbo: float) -> Encoder:
    """The encoder of plain rows, whose best posteriors reach ``elbo``."""
    data = moments(problem.source)
    inverse_root = _inverse_root(np.asarray(data.covariance))
    dtype = decoder.loadings.dtype

    def at(whitened: np.ndarray, covariance: np.ndarray) -> _Point:
        encoder = _encoder(whitened, inverse_root, covariance, dtype)
        sums = total(
            _encoded, problem.source, encoder, data.mean, decoder, objective, family=objective.family, check=False
        )
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)
        gradient = np.concatenate([sums.cross @ inverse_root, sums.residual[:, None]], axis=1) / sums.num_rows
        curvature = _curvature(sums, decoder, objective)
        value = float(sums.elbo / sums.num_rows) if np.isfinite(curvature).all() else -np.inf
        return _Point(whitened, covariance, value, gradient, curvature)

    cross, mean, count, spread = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        total(_regression, problem.source, data.mean, given=posterior, family=objective.family, check=False),
    )
    # A step that is too long, and overflows, is shortened
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        start = _start(cross @ inverse_root / count, mean / count, spread / count, at)
        best = _climbed(start, at, float(objective.beta), elbo)
    found = _encoder(best.whitened, inverse_root, best.covariance, dtype)
    bias = found.bias - found.weight @ np.asarray(data.mean)
    return Encoder(*(jnp.asarray(a, dtype) for a in (found.weight, bias, found.covariance)))


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


def _climbed(start: _Point, at: Callable[..., _Point], beta: float, reachable: float) -> _Point:
    """The best point met from a start until a step raises the ELBO by less than a tenth of the tolerance."""
    from scipy.optimize import minimize

    best, before, root = start, start.elbo, np.linalg.cholesky(start.curvature)
    shape = start.whitened.shape

    def negative(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        here = at(np.linalg.solve(root.T, scaled.reshape(shape)), beta * np.linalg.inv(best.curvature))
        best = here if here.elbo > best.elbo else best
        return -here.elbo, -np.linalg.solve(root, here.gradient).ravel()

    def stop_where_flat(_: np.ndarray) -> None:
        nonlocal before
        enough = _TOLERANCE + max(_RELATIVE * abs(best.elbo), _OF_LOSS * (reachable - best.elbo))
        if best.elbo - before < 0.1 * enough:
            raise StopIteration
        before = best.elbo

    options = {"maxiter": _STEPS, "maxcor": _MEMORY, "ftol": 0.0, "gtol": 1e-6}
    scaled = (root.T @ start.whitened).ravel()
    minimize(negative, scaled, jac=True, method="L-BFGS-B", callback=stop_where_flat, options=options)
    return best


def _encoder(whitened: np.ndarray, inverse_root: np.ndarray, covariance: np.ndarray, dtype: Any) -> Encoder:
    parts = whitened[:, :-1] @ inverse_root.T, whitened[:, -1], covariance
    return Encoder(*(np.asarray(part, dtype) for part in parts))  # type: ignore[arg-type]


def _curvature(sums: _Sums, decoder: Affine, objective: Objective) -> np.ndarray:
    """H, (kappa, kappa)."""
    loadings = np.asarray(decoder.loadings, np.float64)
    curvature = loadings.T @ (loadings * (sums.weight / sums.num_rows)[:, None])
    return float(objective.beta) * np.eye(decoder.latent_dim) + curvature


def _regression(rows: Rows, q: Posterior, centre: Array) -> tuple[tuple[Array, Array, Array, Array], None]:
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    weighted = each[:, None] * q.mean
    covariance = jnp.sum(each[:, None, None] * q.covariance, axis=0)
    return (weighted.T @ (rows.x - centre[None]), jnp.sum(weighted, axis=0), jnp.sum(each), covariance), None


def _encoded(
    rows: Rows, _: None, encoder: Encoder, centre: Array, decoder: Affine, objective: Objective
) -> tuple[_Sums, None]:
    mean = (rows.x - centre[None]) @ encoder.weight.T + encoder.bias[None]
    q = Posterior(mean, encoder.covariance[None])
    m, v = predictor_moments(decoder, rows, q)
    value, gradient, weight = exact_terms(objective, rows, m, v)
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    elbo = jnp.sum(value, axis=1) - objective.beta * kl_of(q)
    residual = each[:, None] * (gradient @ decoder.loadings - objective.beta * mean)
    return _Sums(
        jnp.sum(each),
        jnp.sum(jnp.where(each > 0, each * elbo, 0.0)),
        jnp.sum(residual, axis=0),
        residual.T @ (rows.x - centre[None]),
        each @ weight,
    ), None
