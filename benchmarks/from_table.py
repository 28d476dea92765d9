"""From a DataFrame to factors, a held-out score and a plot, as a user of each library writes it.

Each function is one such piece of code: its lines are counted as they stand here (:func:`lines`), its seconds are those
of the call. It gets a training and a test table, the number of units and the axes to plot on, and returns the fitted
model, the factors of the training rows, and the library's own held-out score (a row, higher is better; None where there
is none).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

Found = tuple[Any, Any, Any]
Route = Callable[[Any, Any, int, Any], Found]


def pca(train: Any, test: Any, units: int, axis: Any) -> Found:
    """scikit-learn's PCA, probabilistic where it scores."""
    from sklearn.decomposition import PCA

    model = PCA(units).fit(train)
    factors = model.transform(train)
    score = model.score(test)
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def factor_analysis(train: Any, test: Any, units: int, axis: Any) -> Found:
    """scikit-learn's FactorAnalysis: a noise variance a column."""
    from sklearn.decomposition import FactorAnalysis

    model = FactorAnalysis(units).fit(train)
    factors = model.transform(train)
    score = model.score(test)
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def gaussian(train: Any, test: Any, units: int, axis: Any) -> Found:
    """Ours for real numbers: the closed form is the optimum."""
    from glmvae import elbo_exact, fit, posterior
    from glmvae.families import Gaussian

    model = fit(train, Gaussian(), units)
    factors = posterior(model, train).mean
    score = elbo_exact(model, test, posterior(model, test)).mean()
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def log_pca(train: Any, test: Any, units: int, axis: Any) -> Found:
    """PCA of log(1 + count)."""
    import numpy as np
    from sklearn.decomposition import PCA

    model = PCA(units).fit(np.log1p(train))
    factors = model.transform(np.log1p(train))
    score = model.score(np.log1p(test))
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def log_factor_analysis(train: Any, test: Any, units: int, axis: Any) -> Found:
    """FactorAnalysis of log(1 + count)."""
    import numpy as np
    from sklearn.decomposition import FactorAnalysis

    model = FactorAnalysis(units).fit(np.log1p(train))
    factors = model.transform(np.log1p(train))
    score = model.score(np.log1p(test))
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def pln_pca(train: Any, test: Any, units: int, axis: Any) -> Found:
    """pyPLNmodels' PlnPCA, which has no score of new rows."""
    from pyPLNmodels import PlnPCA  # type: ignore[import-not-found, import-untyped, unused-ignore]

    model = PlnPCA(train, rank=units).fit()
    factors = np.asarray(model.latent_mean)
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, None


def poisson(train: Any, test: Any, units: int, axis: Any) -> Found:
    """Ours for counts: the exact ascent from the closed form."""
    from glmvae import best_posterior, elbo_exact, fit, refine
    from glmvae.families import Poisson

    model = refine(fit(train, Poisson(), units, expand_at="null"), train)
    factors = model.posterior.mean  # type: ignore[union-attr]
    score = elbo_exact(model, test, best_posterior(model, test)).mean()
    axis.scatter(factors[:, 0], factors[:, 1])
    return model, factors, score


def lines(route: Route) -> int:
    """Lines of code of a route: those of its body, without the docstring, blank lines and the return."""
    body = inspect.getsource(route).split('"""', 2)[2].splitlines()
    return sum(bool(line.strip()) and not line.strip().startswith("return ") for line in body)
