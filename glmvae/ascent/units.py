"""Units that go off and on: pruning, waking, and the axes in which the units are handed over."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae._numerics import unpacked
from glmvae._precision import in_full
from glmvae.ascent.climb import Climb, Problem, State
from glmvae.ascent.decoder import stacked, unstacked
from glmvae.ascent.row_posteriors import PosteriorStore, RowPosteriors
from glmvae.ascent.terms import exact_terms
from glmvae.blocks import sweep
from glmvae.cuts import seen_by_host
from glmvae.decomposition import one_thread
from glmvae.model import Affine, Objective
from glmvae.rows import Rows
from glmvae.spectral import decompose
from glmvae.variational import Posterior, predictor_moments

# A unit of less strength may be tried without.
_WEAK = 0.1
_HALVINGS = 10


def prune(climb: Climb) -> bool:
    """Turn off the units whose removal does not lower the bound, weakest first; whether there was one."""
    any_pruned = False
    while climb.rounds_left > 0:
        state = climb.state
        loadings = np.asarray(state.decoder.loadings)
        strength = np.sum(state.step.weight[:, None] * loadings**2, axis=0) / float(state.objective.beta)
        if not np.any((strength > 0) & (strength < _WEAK)):
            return any_pruned
        weakest = int(np.argmin(np.where(strength > 0, strength, np.inf)))
        theta = stacked(state.decoder)
        theta[:, weakest] = 0.0
        without = climb.try_at(unstacked(theta, state.decoder), steps=2)
        if not without.elbo >= state.elbo:
            return any_pruned
        climb.keep(without)
        any_pruned = True
    return any_pruned


def wake(climb: Climb) -> bool:
    """Loadings for units that are off, where these raise the bound; whether they did.

    W_k = 0 is stationary whatever the ELBO is around it. To second order a unit of loadings u adds

        mean (u' g)^2 / (2 beta) - u' diag(w) u / 2

    so it pays if the largest eigenvalue of G^-1/2 (mean g g') G^-1/2 exceeds beta; with all units off that is the onset
    of collapse.
    """
    state = climb.state
    off = np.all(np.asarray(state.decoder.loadings) == 0, axis=0)
    if not off.any() or climb.rounds_left < 1:
        return False
    added = _further_loadings(state, gradient_moments(climb.problem, climb.store, state), off)
    if not np.any(added):
        return False
    theta = stacked(state.decoder)
    for i in range(_HALVINGS):
        proposal = theta.copy()
        proposal[:, : off.size] += 0.5**i * added
        woken = climb.try_at(unstacked(proposal, state.decoder), steps=2)
        if woken.elbo > state.elbo + climb.least:
            climb.keep(woken)
            return True
    return False


def gradient_moments(problem: Problem, store: PosteriorStore, state: State) -> Float[Array, "d d"]:
    """The mean over rows of g g': what a further latent unit could explain."""
    summed = sweep(
        _gradient_moments,
        problem.source,
        state.decoder,
        state.objective,
        family=state.objective.family,
        check=False,
        num_covariates=state.decoder.num_covariates,
        store=store,
    )
    return summed / state.sums.num_rows


def _gradient_moments(rows: Rows, q: RowPosteriors, decoder: Affine, objective: Objective) -> tuple[Array, None]:
    posterior = Posterior(q.mean, unpacked(q.covariance, decoder.latent_dim))
    m, v = predictor_moments(decoder, rows, posterior)
    gradient = exact_terms(objective, rows, m, v)[1]
    weighted = jnp.where(rows.weight[:, None] > 0, rows.weight[:, None] * gradient, 0.0)
    return weighted.T @ gradient, None


def _further_loadings(state: State, moment: Array, off: np.ndarray) -> np.ndarray:
    """What units that are off would add: leading directions of ``moment``, as long as the closed form's."""
    weight, beta = state.step.weight, float(state.objective.beta)
    host = np.asarray(moment)
    scale = np.where(weight > 0, 1 / np.sqrt(np.where(weight > 0, weight, 1.0)), 0.0).astype(host.dtype)
    values, vectors = (np.asarray(a) for a in decompose(host * scale[:, None] * scale))
    rounding = 1 + 64 * np.finfo(values.dtype).eps
    length = np.where(values > rounding * beta, np.sqrt(np.maximum(values - beta, 0.0)), 0.0)
    place = np.clip(np.cumsum(off) - 1, 0, None)
    return np.where(off, (vectors * scale[:, None] * length)[:, place], 0.0)


def principal_axes(state: State, store: PosteriorStore) -> tuple[Affine, Posterior, Float[np.ndarray, " k"]]:
    """The model with W' diag(w) W diagonal and descending, w the mean weights; its posteriors, and that diagonal."""
    decoder = state.decoder
    units = decoder.latent_dim
    if not units:
        mean = store.gathered().mean
        return decoder, Posterior(mean, jnp.zeros((1, 0, 0), mean.dtype)), np.zeros(0, decoder.loadings.dtype)
    loadings = np.asarray(decoder.loadings, np.float64)
    values, vectors = np.linalg.eigh((loadings * state.step.weight[:, None]).T @ loadings)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    rotated = loadings @ vectors
    largest = np.take_along_axis(rotated, np.argmax(np.abs(rotated), axis=0)[None], axis=0)[0]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    # Units that are off stay off, whatever the rounding of the rotation.
    off = np.sum(np.any(loadings != 0, axis=0)) <= np.arange(units)
    dtype = decoder.loadings.dtype
    rotated, vectors = np.where(off, 0.0, loadings @ vectors).astype(dtype), vectors.astype(dtype)
    with one_thread():
        store.replace(lambda q: _rotated(seen_by_host(q.mean), seen_by_host(q.covariance), vectors))
    posterior = Posterior(*store.gathered())
    return Affine(rotated, decoder.intercept, decoder.coefficients), posterior, np.where(off, 0.0, values).astype(dtype)


def _rotated(mean: Any, covariance: Any, vectors: np.ndarray) -> Any:
    """Means and (from packed ones) covariances in other axes; on the host without a program."""
    if isinstance(mean, np.ndarray):
        return jax.device_put(_in_axes(mean, covariance, vectors))
    return _in_axes_elsewhere(mean, covariance, vectors)


def _in_axes(mean: Any, covariance: Any, vectors: Any) -> tuple[Any, Any]:
    return mean @ vectors, vectors.T @ unpacked(covariance, len(vectors)) @ vectors


_in_axes_elsewhere = jax.jit(in_full(_in_axes))
