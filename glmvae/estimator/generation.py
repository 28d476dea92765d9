"""What a model says of rows whose latent variables are given: their means, and draws of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae.blocks import per_row
from glmvae.families import Family
from glmvae.model import Affine, AffineModel, Objective, fixed_predictor
from glmvae.rows import Rows, observed
from glmvae.sources import as_source
from glmvae.statistics.moment_checks import in_precision


def mean_given(optimum: Any, z: Float[Array, "n k"], **brought: Any) -> Float[Array, "n d"]:
    """The means of x given z: mu(W z + b + B' covariates + offset), times the trials.

    Args:
        optimum: an :class:`~glmvae.model.AffineModel` or a result that has one.
        z: (N, kappa).
        brought: offset, covariates and trials, as :class:`~glmvae.rows.Rows` takes them. No trials, a mean of 0.

    Raises:
        ValueError: rows that do not bring what the model needs, or the offset that the optimum's rows brought.
    """
    return _given(_mean, optimum.model, z, _rows(optimum, len(z), brought))


def sample_given(key: Array, optimum: Any, z: Float[Array, "n k"], **brought: Any) -> Float[Array, "n d"]:
    """A draw of x given z, with arguments as :func:`mean_given`."""
    rows = _rows(optimum, len(z), brought)
    eta = _given(_predictor, optimum.model, z, rows)
    return _drawn(key, optimum.model.objective, rows.replace(x=eta))


def _rows(optimum: Any, num_rows: int, brought: dict[str, Any]) -> Rows:
    """Rows with what they bring beside x, of which nothing is known."""
    loadings = optimum.model.loadings
    nothing = np.zeros((1, loadings.shape[0]), loadings.dtype)
    rows = Rows(np.broadcast_to(nothing, (num_rows, nothing.shape[1])), **brought)
    as_source(rows, like=optimum)
    return rows


def _given(f: Any, model: AffineModel, z: Array, rows: Rows) -> Array:
    family = in_precision(model.family, model.loadings.dtype)
    options = {"family": family, "num_covariates": model.decoder.num_covariates, "check": False, "given": z}
    result: Array = per_row(f, as_source(rows), model.decoder, family, **options)
    return result


def _predictor(rows: Rows, z: Array, decoder: Affine, family: Family) -> tuple[None, Array]:
    return None, z @ decoder.loadings.T + fixed_predictor(decoder, rows)


def _mean(rows: Rows, z: Array, decoder: Affine, family: Family) -> tuple[None, Array]:
    _, eta = _predictor(rows, z, decoder, family)
    return None, observed(rows, family.for_rows(rows).mean(eta))


@jax.jit
def _drawn(key: Array, objective: Objective, rows: Rows) -> Array:
    return observed(rows, objective.family.for_rows(rows).sample(key, rows.x, objective.dispersion))
