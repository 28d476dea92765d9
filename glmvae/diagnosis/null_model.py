"""The null model, no latent unit at work, and the spectrum that says when some would be.

With r the score of a row in eta at the null model, C = Cov r and G = diag(mean weight), a unit of small loadings raises
the beta-ELBO if and only if the largest eigenvalue of

    G^-1/2 C G^-1/2

exceeds beta: the onset of collapse, for every decoder that can add a small affine term. Where the rows bring nothing
but x the null model is the mean of each column, and moments tell all: the spectrum of the Pearson residuals. Where they
bring an offset, covariates, trials or missing entries it is the GLM of these, and takes passes over them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from glmvae.ascent import refine
from glmvae.ascent.terms import exact_terms
from glmvae.blocks import total
from glmvae.decomposition import Decomposition, decomposed
from glmvae.entries import refuse_empty, refuse_weightless
from glmvae.expansion import null_point
from glmvae.families import Family
from glmvae.model import Affine, AffineModel, Objective, fixed_predictor
from glmvae.optimum import optimum_at
from glmvae.pruning import onset_of
from glmvae.quadratics import Quadratic, residual_covariance
from glmvae.rows import Rows, row_sum
from glmvae.sources import Source
from glmvae.spectral import Spectrum, decomposed_spectrum, dispersion_of, spectrum_of, whitening_on_host
from glmvae.statistics import Moments
from glmvae.statistics.residuals import with_trials

# Nats per row to which the GLM of an offset and covariates is found.
_TOLERANCE = 1e-9
# Variances that differ by less are equal.
_EQUAL = 1e-3


class NullModel(NamedTuple):
    """The null model and its spectrum.

    Fields:
        spectrum: at the null model; at phi = 1 where the dispersion is estimated, as are the next.
        variances: of the columns of what it decomposes, (d,).
        rows: their number, or the sum of their weights.
        degrees: rows less what the null model has of each column.
        elbo: the beta-ELBO of posterior collapse, exact, nats per row.
        onset: the beta from which it is a local optimum.
        constant_columns: (d,), columns that do not vary.
        boundary_columns: (d,), columns at an end of the support, where the best intercept is infinite.
    """

    spectrum: Spectrum
    variances: np.ndarray
    rows: Float[Array, ""]
    degrees: float
    elbo: Float[Array, ""]
    onset: Float[Array, ""]
    constant_columns: Bool[Array, " d"]
    boundary_columns: Bool[Array, " d"]


def null_of_moments(data: Moments, family: Family, dispersion: ArrayLike | None, units: int) -> NullModel:
    """The null model of the mean of each column.

    Raises:
        ValueError: moments that know an offset, trials or covariates, whose null model needs the rows.
    """
    if data.at_offset is not None or data.covariates is not None:
        raise ValueError(
            "x: these moments know an offset, trials an entry or covariates, and the null model with them takes passes "
            "over the rows; pass the rows"
        )
    spectrum = spectrum_of(data, family, dispersion, "null", units)
    still = np.diagonal(np.asarray(data.covariance)) == 0  # to the digit: moments of a constant column are
    return NullModel(
        spectrum,
        whitened_variances(spectrum),
        jax.device_put(data.count),
        float(data.count) - 1,
        optimum_at(spectrum, 0).elbo_taylor,
        onset_of(spectrum),
        jax.device_put(still),
        jax.device_put(_at_an_end(data.mean, data.mean, family)),
    )


def correlations(null: NullModel) -> Decomposition:
    """The eigendecomposition of the columns' correlations: the null model's own where their variances are equal."""
    spectrum, varies = null.spectrum, null.variances > 0
    if not varies.any():
        return Decomposition(jnp.zeros_like(spectrum.values), spectrum.vectors)
    most = float(null.variances.max())
    if np.all(null.variances[varies] > (1 - _EQUAL) * most):
        return Decomposition(spectrum.values / most, spectrum.vectors)
    covariance = np.asarray(residual_covariance(spectrum.moments, spectrum.coefficients), np.float64)
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, np.diagonal(covariance), 1.0)), 0.0)
    return decomposed(covariance * scale[:, None] * scale, spectrum.vectors.shape[1], dtype=spectrum.values.dtype)


def whitened_variances(spectrum: Spectrum) -> np.ndarray:
    """The diagonal of the matrix that a spectrum decomposes, (d,)."""
    covariance = residual_covariance(spectrum.moments, spectrum.coefficients)
    return np.diagonal(np.asarray(covariance, np.float64)) * whitening_on_host(spectrum.quadratic) ** 2


def null_of_rows(source: Source, family: Family, dispersion: ArrayLike | None, units: int) -> NullModel:
    """The null model of rows that bring an offset, covariates, trials or missing entries.

    Raises:
        ValueError, TypeError: as :func:`~glmvae.ascent.refine`; a column without any entry.
    """
    phi = dispersion_of(family, dispersion, source.num_columns, source.dtype)
    objective = Objective(family, dispersion=1.0 if phi is None else phi)
    decoder = _null_decoder(source, objective)
    sums = _summed(source, decoder, objective)
    refuse_weightless(sums.rows)
    refuse_empty(sums.entries, source.column_names)
    shares = with_trials(family, jnp.ones((1, source.num_columns), source.dtype))
    boundary = _at_an_end(sums.low, sums.high, shares)
    spectrum = _spectrum(sums, ~boundary, decoder, family, phi, units)
    elbo, onset = sums.log_prob / sums.rows, spectrum.values[0]
    if phi is None:
        phi = jnp.maximum(family.dispersion_from(-sums.value / jnp.sum(sums.entries)), 0.0)
        if phi > 0:
            elbo = _summed(source, decoder, objective.with_dispersion(phi)).log_prob / sums.rows
            onset = onset / phi
        else:  # nothing varies
            elbo, onset = jnp.full_like(elbo, jnp.inf), jnp.zeros_like(onset)
    return NullModel(
        spectrum,
        whitened_variances(spectrum),
        sums.rows,
        float(sums.rows) - 1 - decoder.num_covariates,
        elbo,
        onset,
        jax.device_put(np.asarray(sums.low) == np.asarray(sums.high)),
        jax.device_put(boundary),
    )


def _null_decoder(source: Source, objective: Objective) -> Affine:
    """The GLM of intercept, offset and covariates; without these two the mean of what was observed is enough."""
    intercept = null_point(source, objective.family)
    start = Affine(jnp.zeros((intercept.shape[0], 0), intercept.dtype), intercept)
    pieces = [source.rows] if source.rows is not None else list(source.pieces())
    if all(piece.offset is None and piece.covariates is None for piece in pieces if piece is not None):
        return start
    return refine(AffineModel(start, objective), source, tolerance=_TOLERANCE).decoder  # type: ignore[arg-type]


def _at_an_end(low: ArrayLike, high: ArrayLike, family: Family) -> np.ndarray:
    """Columns between ``low`` and ``high`` that the null model has to hold inside the support."""
    low, high = np.atleast_1d(np.asarray(low)), np.atleast_1d(np.asarray(high))
    support, eps = family.support, np.finfo(low.dtype).eps
    lower, upper = (np.broadcast_to(np.squeeze(np.asarray(v, low.dtype)), low.shape) for v in support[:2])
    with np.errstate(invalid="ignore"):
        slack = eps * np.where(np.isfinite(lower) & np.isfinite(upper), upper - lower, 1.0)  # as the null predictor has
    at_lower = (high <= lower) & np.logical_not(np.squeeze(np.asarray(support.open_lower)))
    return at_lower | (low >= upper - slack)


# The pass over rows ---------------------------------------------------------------------------------------


class _Sums(NamedTuple):
    """Weighted sums over rows; ``low`` and ``high`` bound what was observed, as a share of any trials."""

    rows: Array
    score: Array
    gram: Array
    weight: Array
    entries: Array
    value: Array
    log_prob: Array
    low: Array
    high: Array


def _summed(source: Source, decoder: Affine, objective: Objective) -> _Sums:
    return total(
        _scores,
        source,
        decoder,
        objective,
        family=objective.family,
        num_covariates=decoder.num_covariates,
        add=_joined,
    )


def _scores(rows: Rows, _: None, decoder: Affine, objective: Objective) -> tuple[_Sums, None]:
    shape, dtype = rows.x.shape, rows.x.dtype
    eta = jnp.broadcast_to(fixed_predictor(decoder, rows), shape)
    value, score, weight = exact_terms(objective, rows, eta, jnp.zeros_like(eta))
    family = objective.family.for_rows(rows)
    saturated = row_sum(rows, family.saturated_log_prob(rows.x, objective.dispersion_of_entries))
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    seen = jnp.broadcast_to(each[:, None] > 0, shape)
    seen = seen if rows.missing is None else seen & ~rows.missing
    share = rows.x if rows.trials is None else rows.x / rows.trials
    values = jnp.sum(value, axis=-1)
    return _Sums(
        jnp.sum(each),
        each @ score,
        (each[:, None] * score).T @ score,
        each @ weight,
        each @ seen.astype(dtype),
        each @ values,
        each @ (values + saturated),
        jnp.min(jnp.where(seen, share, jnp.inf), axis=0),
        jnp.max(jnp.where(seen, share, -jnp.inf), axis=0),
    ), None


@jax.jit
def _joined(a: _Sums, b: _Sums) -> _Sums:
    low, high = jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    return jax.tree.map(jnp.add, a, b)._replace(low=low, high=high)


def _spectrum(
    sums: _Sums, inside: np.ndarray, decoder: Affine, family: Family, phi: Array | None, units: int
) -> Spectrum:
    """That of G^-1/2 C G^-1/2, as the spectrum of working residuals r / w with weights w.

    Columns at an end of the support, where both are nothing but rounding, take no part.
    """
    gram, score, weight = (np.asarray(v, np.float64) / float(sums.rows) for v in (sums.gram, sums.score, sums.weight))
    usable = inside & (weight > 0)
    inverse = np.where(usable, 1 / np.where(usable, weight, 1.0), 0.0)
    covariance = (gram - np.outer(score, score)) * inverse[:, None] * inverse
    dtype = np.asarray(sums.gram).dtype
    zero, one = np.zeros_like(weight, dtype), np.ones_like(weight, dtype)
    data: Any = Moments(sums.rows, jnp.asarray(zero), jnp.asarray(covariance.astype(dtype)))
    quadratic = Quadratic(
        jnp.asarray(np.where(usable, weight, 1.0).astype(dtype)), decoder.intercept, jnp.asarray(one), jnp.asarray(zero)
    )
    return decomposed_spectrum(data, family, quadratic, phi, decoder.intercept, units)
