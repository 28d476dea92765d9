"""Models, rows and posteriors for the tests of ELBOs: at random, nothing optimal about them, one shape throughout."""

from __future__ import annotations

from typing import Any, NamedTuple

import dense_reference as dense
import numpy as np
import pytest

from glmvae import Affine, AffineModel, Objective, Posterior, Rows

ROWS, COLUMNS, UNITS, COVARIATES = 40, 4, 2, 2
ALL = dense.MODELS | dense.OTHERS
# Sums over 4 columns of terms up to a few hundred nats.
RTOL = {"float64": 1e-10, "float32": 1e-4}
#: Of every objective but where a test says otherwise.
BETA, PHI = 0.7, 0.8


def float32_keeps(kept, names):
    """Names for a test whose code is the same for all: in float32 only the first are tried."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.float64) for n in names]


class Setting(NamedTuple):
    """Data, a model, a posterior, and what rows bring beside x; the same for the reference."""

    name: str
    x: np.ndarray
    model: AffineModel
    q: Posterior
    fields: dict[str, Any]

    @property
    def rows(self) -> Any:
        return Rows(self.x, **self.fields) if self.fields else self.x

    @property
    def objective(self) -> Objective:
        return self.model.objective

    @property
    def family(self) -> Any:
        return self.model.family

    @property
    def problem(self) -> dense.Problem:
        beta, phi = float(self.model.beta), np.asarray(self.model.dispersion, float)
        return dense.problem(np.asarray(self.x, float), ALL[self.name], beta=beta, phi=phi, **self.fields)

    @property
    def decoder(self) -> dense.Decoder:
        return dense.decoder(self.model.loadings, self.model.intercept, self.model.coefficients)

    def dense(self, bound: Any = dense.exact, q: Any = None) -> np.ndarray:
        """The reference's beta-ELBO of every row."""
        mean, covariance = (np.asarray(part, float) for part in (self.q if q is None else q))
        return dense.elbo(self.problem, self.decoder, mean, covariance, bound)


def posterior(rng, dtype, rows=ROWS, units=UNITS, *, per_row=True) -> Posterior:
    root = 0.5 * rng.normal(size=(rows if per_row else 1, units, units))
    covariance = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(units)
    return Posterior(rng.normal(size=(rows, units)).astype(dtype), covariance.astype(dtype))


def setting(name, dtype, seed=0, *, per_row=True, size=1.0, beta=BETA, phi=PHI, family=None, fields=()) -> Setting:
    """``fields`` are names of what rows bring: offset, covariates, missing, weight, trials."""
    rng = np.random.default_rng(seed)
    x = dense.draw(name, rows=ROWS, columns=COLUMNS, seed=seed).astype(dtype)
    loadings = (0.7 * size * rng.normal(size=(COLUMNS, UNITS))).astype(dtype)
    intercept = (0.7 * size * rng.normal(size=COLUMNS)).astype(dtype)
    q = posterior(rng, dtype, per_row=per_row)
    brings = {
        "offset": 0.3 * rng.normal(size=(ROWS, COLUMNS)),
        "covariates": rng.normal(size=(ROWS, COVARIATES)),
        "missing": rng.random((ROWS, COLUMNS)) < 0.2,
        "weight": rng.random(ROWS) + 0.1,
        "trials": np.maximum(x, rng.integers(1, 9, size=x.shape)),
    }
    brings = {k: v if v.dtype == bool else v.astype(dtype) for k, v in brings.items() if k in fields}
    coefficients = (0.3 * rng.normal(size=(COVARIATES, COLUMNS))).astype(dtype) if "covariates" in fields else None
    objective = Objective(ALL[name].family if family is None else family, beta, phi)
    model = AffineModel(Affine(loadings, intercept, coefficients), objective)
    return Setting(name, x, model, q, brings)
