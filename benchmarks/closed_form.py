"""How long the closed form takes, beside scikit-learn's PCA where asked for.

The first call after emptying JAX's caches, less a warm one, is the compile time; the warm time is the median of rounds
in turn with the peer's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from benchmarks import packages
from benchmarks.timing import clocked, in_turn, timed
from glmvae import AffineOptimum, activity, fit
from glmvae.families import Family


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
        peer: also time :func:`pca` on the same numbers, in turn with ours.

    Returns:
        :class:`ClosedForm`; ``peer_ratio`` is our median over PCA's.
    """

    def ours() -> AffineOptimum:
        return fit(x, family, latent_dim)

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    if peer:
        contestants["theirs"] = pca(np.asarray(x), latent_dim)
    jax.clear_caches()
    optimum, cold, _ = timed(ours)
    for run in contestants.values():
        timed(run)
    times = in_turn({name: clocked(run) for name, run in contestants.items()})
    warm = statistics.median(times["ours"])
    active = int((activity(optimum) > 0).sum())
    result = ClosedForm(optimum, active, max(cold - warm, 0.0), warm, len(times["ours"]))
    if not peer:
        return result
    peer_seconds = statistics.median(times["theirs"])
    return result._replace(peer_seconds=peer_seconds, peer_ratio=warm / peer_seconds)


def pca(x: np.ndarray, latent_dim: int) -> Callable[[], Any]:
    """``sklearn.decomposition.PCA(latent_dim, svd_solver="covariance_eigh")``, which works on a covariance as we do."""
    decomposition = packages.needed("sklearn.decomposition")
    return lambda: decomposition.PCA(n_components=latent_dim, svd_solver="covariance_eigh").fit(x).components_
