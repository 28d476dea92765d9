"""The slow, obvious reference: what the library computes, once more, in plain NumPy and SciPy float64.

Nothing of the library is imported; tests compare it with this. Every function has one meaning and row fields:

    p = problem(x, MODELS["poisson"], beta=0.7, offset=..., covariates=..., missing=..., weight=...)
    o = fit(p, 2)                                  the closed form; o.decoder
    q = best_posterior(p, o.decoder)               means and covariances
    elbo(p, o.decoder, *q)                         one value a row; p.mean(...) is the objective
    refine(p, 2, exact, start=o.decoder)           the exact optimum, of a tiny problem
"""

from __future__ import annotations

import numpy as np
from dense_ascent import DenseMaximum as DenseMaximum
from dense_ascent import best_posterior as best_posterior
from dense_ascent import glm as glm
from dense_ascent import refine as refine
from dense_elbo import Decoder as Decoder
from dense_elbo import Problem as Problem
from dense_elbo import decoder as decoder
from dense_elbo import elbo as elbo
from dense_elbo import elbo_and_gradient as elbo_and_gradient
from dense_elbo import exact as exact
from dense_elbo import expectation as expectation
from dense_elbo import expected_log_prob as expected_log_prob
from dense_elbo import jaakkola as jaakkola
from dense_elbo import jaakkola_column as jaakkola_column
from dense_elbo import jaakkola_entry as jaakkola_entry
from dense_elbo import kl_divergence as kl_divergence
from dense_elbo import log_likelihood as log_likelihood
from dense_elbo import predictor as predictor
from dense_elbo import problem as problem
from dense_elbo import quadratic as quadratic
from dense_families import Binomial, Exponential, Gamma, Gaussian, Mixed, NegativeBinomial, Poisson
from dense_optimum import DenseOptimum as DenseOptimum
from dense_optimum import best_gaussian_dispersion as best_gaussian_dispersion
from dense_optimum import closed_form_expansion as closed_form_expansion
from dense_optimum import expansion as expansion
from dense_optimum import expansion_point as expansion_point
from dense_optimum import fit as fit
from dense_optimum import gaussian_profile as gaussian_profile
from dense_optimum import moments as moments
from dense_optimum import profile as profile
from dense_optimum import searched_gaussian_dispersion as searched_gaussian_dispersion

TRIALS = np.array([1.0, 5.0, 9.0, 16.0])

#: Families whose curvature does not depend on x; at most four columns.
MODELS = {
    "gaussian": Gaussian(),
    "bernoulli": Binomial(),
    "bernoulli_grey": Binomial(grey=True),
    "bernoulli_tanh": Binomial(scale=2.0),
    "binomial": Binomial(5.0),
    "binomial_columns": Binomial(TRIALS),
    "poisson": Poisson(),
}
#: The others, and one of several.
OTHERS = {
    "gamma": Gamma(),
    "exponential": Exponential(scale=0.5),
    "negative_binomial": NegativeBinomial(3.0),
    "negative_binomial_columns": NegativeBinomial(np.array([0.7, 3.0, 12.0, 40.0]), scale=-0.5),
    "mixed": Mixed([(Binomial(5.0), [0, 3]), (Gaussian(), [1]), (NegativeBinomial(2.0), [2])]),
}


def draw(name: str, *, rows=40, columns=4, rank=2, strength=1.0, seed=0) -> np.ndarray:
    """Float64 data with a low-rank signal; every column varies."""
    rng = np.random.default_rng(seed)
    eta = strength * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) + 0.3 * rng.normal(size=columns)
    family = (MODELS | OTHERS)[name]
    x = family.draw(rng, np.minimum(eta, 3.0) if name == "poisson" else eta)
    if family.fixed_dispersion is not None:  # so that no column is constant by accident
        x[0], x[1] = np.minimum(x[0], x.min(axis=0)), np.maximum(x[1], 1.0)
        x[0] = np.where(x.std(axis=0) > 0, x[0], 0.0)
    return x


#: For ``example``, where it is not 1.
DISPERSIONS = {"gaussian": 0.6, "gamma": 0.4, "mixed": np.array([1.0, 0.6, 1.0, 1.0])}


def example(name, *, rows=6, units=2, seed=3, fields=(), beta=0.7):
    """A problem with some row fields (names of ``problem``'s), a decoder, means and roots; nothing is optimal."""
    rng = np.random.default_rng(seed)
    x = draw(name, rows=rows, seed=seed)
    given = {
        "trials": (MODELS | OTHERS)[name].trials + rng.integers(0, 4, x.shape) if "trials" in fields else None,
        "offset": 0.5 * rng.normal(size=x.shape) if "offset" in fields else 0.0,
        "covariates": rng.normal(size=(rows, 2)) if "covariates" in fields else None,
        "missing": rng.random(x.shape) < 0.3 if "missing" in fields else False,
        "weight": rng.uniform(0.2, 2.0, rows) if "weight" in fields else 1.0,
    }
    p = problem(x, (MODELS | OTHERS)[name], beta=beta, phi=DISPERSIONS.get(name, 1.0), **given)
    d = decoder(
        0.6 * rng.normal(size=(4, units)), 0.3 * rng.normal(size=4), 0.4 * rng.normal(size=(p.covariates.shape[1], 4))
    )
    root = np.tril(0.4 * rng.normal(size=(rows, units, units)), -1) + rng.uniform(0.4, 1.1, (rows, 1, units)) * np.eye(
        units
    )
    return p, d, rng.normal(size=(rows, units)), root
