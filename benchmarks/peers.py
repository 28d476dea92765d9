"""Other packages' low-rank models of counts and of binary data: PlnPCA (pyPLNmodels), glmpca and logisticpca.

What is not installed is None. :mod:`benchmarks.contest` scores them beside ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import packages
from benchmarks.timing import timed

COUNTS = ("oaks", "microcosm")
ITERATIONS = 2000
# Of glmpca, whose own is 1: the next one where it diverges.
PENALTIES = (1, 10, 100, 1000)


class PlnFit(NamedTuple):
    """PlnPCA's eta = W z + b, its posteriors N(mean, diag(variance)), its own figure in nats per row."""

    loadings: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    own_elbo: float
    iterations: int
    seconds: float


class FactorFit(NamedTuple):
    """A model without posteriors: eta = factors @ loadings.T + intercept."""

    loadings: np.ndarray
    intercept: np.ndarray
    factors: np.ndarray
    note: str
    seconds: float


def counts(name: str) -> np.ndarray | None:
    """The counts "oaks" or "microcosm" of pyPLNmodels, float32, without columns that are 0 everywhere."""
    package = packages.peer("pyPLNmodels", "pkg_resources")
    if package is None:
        return None
    with packages.quiet():
        x = getattr(package, f"load_{name}")()["endog"].to_numpy().astype(np.float32)
    return x[:, x.sum(axis=0) > 0]


def pln_pca(x: np.ndarray, rank: int, *, iterations: int = ITERATIONS, seed: int = 0) -> PlnFit | None:
    """PlnPCA with an intercept and no offset; a tolerance of 0 never stops it."""
    package = packages.peer("pyPLNmodels", "pkg_resources")
    if package is None:
        return None
    torch: Any = packages.peer("torch")

    def run() -> Any:
        model = package.PlnPCA(x, rank=rank, compute_offsets_method="zero", add_const=True)
        model.fit(maxiter=iterations, tol=0.0)
        return model

    with packages.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, seconds, _ = timed(run)
        tensors = (model.components, model.coef[0], model.latent_mean, model.latent_variance)
        w, b, mean, variance = (a.double().numpy() for a in tensors)
        own = float(model.compute_elbo()) / len(x)
        done = len(model._elbo_criterion_monitor.elbo_list)
    return PlnFit(w, b, mean, variance, own, done, seconds)


def logistic_pca(x: np.ndarray, rank: int) -> FactorFit | None:
    """logisticpca as it comes (m = 4)."""
    package = packages.peer("logisticpca")
    if package is None:
        return None
    model, seconds, _ = timed(lambda: package.LogisticPCA(n_components=rank).fit(x))
    return FactorFit(model.U_, model.mu_, model.scores_, f"m {model.m_:g}", seconds)


def glm_pca(x: np.ndarray, rank: int, *, seed: int = 0) -> FactorFit | None:
    """glmpca, Poisson, size factors 1, the first of :data:`PENALTIES` at which it stays finite; None if none does."""
    package = packages.peer("glmpca.glmpca", "statsmodels")
    if package is None:
        return None
    rows: dict[str, Any] = {"fam": "poi", "sz": np.ones(len(x))}
    state = np.random.get_state()  # noqa: NPY002 - the generator it draws from
    try:
        for penalty in PENALTIES:
            np.random.seed(seed)  # noqa: NPY002
            with packages.quiet(), contextlib.suppress(package.GlmpcaError):
                found, seconds, _ = timed(lambda p=penalty: package.glmpca(x.T.astype(float), rank, penalty=p, **rows))  # type: ignore[misc]
                intercept = found["coefX"][:, 0]
                return FactorFit(found["loadings"], intercept, found["factors"], f"penalty {penalty}", seconds)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return None


def faster(run: Callable[[], Any]) -> Any:
    """The faster of a fit with one thread and one with all: at these sizes threads often cost more than they save."""
    threads = packages.peer("threadpoolctl")
    alone = None
    if threads is not None:
        with threads.threadpool_limits(1):
            alone = run()
    found = run()
    return found if alone is None or found is None else min(alone, found, key=lambda fit: fit.seconds)


def digits() -> np.ndarray | None:
    """digits > 7, 1797 x 64."""
    sets = packages.peer("sklearn.datasets")
    return None if sets is None else (sets.load_digits().data > 7).astype(np.float32)
