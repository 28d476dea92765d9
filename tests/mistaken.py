"""For the deliberate mistakes: what they are made with, and how one is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from dense_reference import MODELS, draw

from glmvae import Affine, AffineModel, Objective

# A correct implementation leaves rounding only.
ATOL = 1e-7
BETA, UNITS = 0.7, 2


class Case(NamedTuple):
    """A family by its name in the reference, its dispersion, and the point to expand at."""

    name: str
    phi: float
    expand_at: str


CASES = {
    "gaussian": Case("gaussian", 0.5, "zero"),
    "binomial": Case("binomial_columns", 1.0, "zero"),
    "tanh": Case("bernoulli_tanh", 1.0, "null"),
    "poisson": Case("poisson", 0.8, "null"),
}


def data_of(case: Case) -> tuple[np.ndarray, Any]:
    """Rows, and the reference's family."""
    return draw(case.name, seed=1), MODELS[case.name]


def objective_of(case: Case) -> Objective:
    """The library's."""
    return Objective(MODELS[case.name].family, BETA, case.phi)


def model_of(case: Case, loadings: Any, intercept: Any) -> AffineModel:
    """The library's, of a decoder."""
    return AffineModel(Affine(loadings, intercept), objective_of(case))


def caught(check: Callable[..., None], *args: Any) -> bool:
    """Whether the check notices."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False
