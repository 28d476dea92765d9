"""How long the closed form takes, beside scikit-learn's PCA where asked for.

The data are an argument on the device, never a constant XLA could fold; every call waits for its result. The first
call after emptying JAX's caches, less a warm one, is the compile time; the warm time is the median of repeats. A peer's
repeats alternate with ours, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from glmvae import AffineOptimum, activity, fit
from glmvae.families import Family

_MIN_REPEATS, _MAX_REPEATS = 5, 31
# Between those, as many repeats as fit in this.
_SECONDS = 1.0


class ClosedForm(NamedTuple):
    """The optimum, and what it cost in seconds; ``peer_*`` are of PCA, None where it was not run."""

    optimum: AffineOptimum
    active_units: int
    compile_seconds: float
    warm_seconds: float
    repeats: int
    peer_seconds: float | None = None
    peer_ratio: float | None = None


def measure_fit(x: Array, family: Family, latent_dim: int, *, peer: bool = False) -> ClosedForm:
    """Time ``fit(x, family, latent_dim)``, its checks included, from cold and warm.

    Args:
        x: data on the device, (N, d).
        family: the observation model.
        latent_dim: kappa.
        peer: also time ``sklearn.decomposition.PCA(latent_dim, svd_solver="covariance_eigh")`` on the same
            numbers, in turn with ours.

    Returns:
        :class:`ClosedForm`; ``peer_ratio`` is our median over PCA's.
    """

    def ours() -> AffineOptimum:
        return fit(x, family, latent_dim)

    theirs = _peer(np.asarray(x), latent_dim) if peer else None
    jax.clear_caches()
    cold, optimum = _timed(ours)
    once, _ = _timed(ours)
    if theirs is not None:
        _timed(theirs)
    repeats = min(max(int(_SECONDS / once), _MIN_REPEATS), _MAX_REPEATS)
    our_times, their_times = [], []
    for _ in range(repeats):
        our_times.append(_timed(ours)[0])
        if theirs is not None:
            their_times.append(_timed(theirs)[0])
    warm = statistics.median(our_times)
    result = ClosedForm(optimum, int((activity(optimum) > 0).sum()), max(cold - warm, 0.0), warm, repeats)
    if theirs is None:
        return result
    peer_seconds = statistics.median(their_times)
    return result._replace(peer_seconds=peer_seconds, peer_ratio=warm / peer_seconds)


def _peer(x: np.ndarray, latent_dim: int) -> Callable[[], Any]:
    from sklearn.decomposition import PCA

    return lambda: PCA(n_components=latent_dim, svd_solver="covariance_eigh").fit(x).components_


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result
