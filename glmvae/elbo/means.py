"""The mean of the exact beta-ELBO over rows: one pass, and nothing kept of a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae.blocks import total, traced
from glmvae.elbo import exact_of_rows, expected_of_rows, options_of
from glmvae.encoding import Encoder, affine_means, warn_of_rounding
from glmvae.model import AffineModel, fixed_predictor
from glmvae.rows import Rows, weighted_sum
from glmvae.sources import Source
from glmvae.variational import Posterior, Spread, gaussian_kl, hidden_if_none, spread_of


def mean_elbo(model: AffineModel, source: Source, q: Posterior | Encoder) -> Float[Array, ""]:
    """The weighted mean of :func:`~glmvae.elbo.elbo_exact`.

    Under an encoder, which takes rows without offset, trials or missing entries, outside of transformations.
    """
    if isinstance(q, Encoder):
        warn_of_rounding(q)
        dtype, spread = model.loadings.dtype, spread_of(q.covariance, model.loadings)
        shared = jax.tree.map(lambda part: np.asarray(part, dtype), spread)
        value, count = total(_encoded, source, q, shared, model, check=False, **options_of(model))
    else:
        value, count = total(_given, source, model, given=q, check=False, **options_of(model))
    return value / count if traced(source, (value, count)) else jax.device_put(np.asarray(value) / np.asarray(count))


def _encoded(
    rows: Rows, _: None, encoder: Encoder, shared: Spread, model: AffineModel
) -> tuple[tuple[Array, Array], None]:
    mean, decoder = affine_means(encoder, rows, rows.x), model.decoder
    m = mean @ decoder.loadings.T + fixed_predictor(decoder, rows)
    expected = expected_of_rows(rows, (m, hidden_if_none(shared.variance[None], decoder)), model)
    return _summed(rows, expected - model.beta * gaussian_kl(mean, shared.trace, shared.log_det)), None


def _given(rows: Rows, posterior: Posterior, model: AffineModel) -> tuple[tuple[Array, Array], None]:
    return _summed(rows, exact_of_rows(rows, posterior, model)), None


def _summed(rows: Rows, value: Array) -> tuple[Array, Array]:
    return weighted_sum(rows, value), jnp.sum(rows.weight)
