"""What a spectrum says for one kappa and beta: loadings, encoder, covariance, dispersion and L-hat, (15)-(20)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae.spectral import Spectrum, as_concrete, dispersion_at
from glmvae.statistics.residuals import encoder_shift


class Solution(NamedTuple):
    """The closed-form optimum, in arrays.

    Fields:
        loadings, intercept, coefficients: of the decoder, (d, kappa), (d,), (p, d) or None.
        encoder_weight, encoder_bias, encoder_coefficients: of the encoder, (kappa, d), (kappa,), (p, kappa) or None.
        covariance: of the posteriors, (kappa, kappa), diagonal.
        dispersion: phi, a scalar or (d,).
        eigenvalues: of S~, at that dispersion.
        elbo: L-hat, nats per row.
        rate: the mean KL divergence, nats per row: 1/2 sum log(lambda / beta) over active units.
    """

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    coefficients: Float[Array, "p d"] | None
    encoder_weight: Float[Array, "k d"]
    encoder_bias: Float[Array, " k"]
    encoder_coefficients: Float[Array, "p k"] | None
    covariance: Float[Array, "k k"]
    dispersion: Float[Array, "*d"]
    eigenvalues: Float[Array, " m"]
    elbo: Float[Array, ""]
    rate: Float[Array, ""]


def solve(spectrum: Spectrum, latent_dim: int, beta: Array, dispersion: Array | None = None) -> Solution:
    """The optimum at kappa, beta and, where the spectrum's is open, a dispersion (None estimates it)."""
    with as_concrete((spectrum, beta, dispersion)):
        padded = _padded(spectrum, latent_dim, beta, dispersion)
        first = slice(latent_dim)

        def cut(array: Array, *index: slice) -> Array:
            return jax.device_put(np.asarray(array)[index]) if _checks.concrete(array) else array[index]

        beside = padded.encoder_coefficients
        return padded._replace(
            loadings=cut(padded.loadings, slice(None), first),
            encoder_weight=cut(padded.encoder_weight, first),
            encoder_bias=cut(padded.encoder_bias, first),
            encoder_coefficients=None if beside is None else cut(beside, slice(None), first),
            covariance=cut(padded.covariance, first, first),
        )


class _Units(NamedTuple):
    """The first units of a spectrum, as many as it has vectors; those that do not take part have no length."""

    top: Array
    kept: Array
    length: Array
    active: Array


def _units(spectrum: Spectrum, latent_dim: Any, cutoff: Array) -> _Units:
    known = spectrum.vectors.shape[1]
    top = spectrum.values[:known]
    active = (jnp.arange(known) < latent_dim) & ~(top <= cutoff)  # NaN stays NaN
    # sqrt has no derivative at 0, where a pruned unit is
    length = jnp.where(active, jnp.sqrt(jnp.where(active, top - cutoff, 1.0)), 0.0)
    return _Units(top, jnp.where(active, top, cutoff), length, active)


@jax.jit
def _padded(spectrum: Spectrum, latent_dim: Any, beta: Array, given: Array | None) -> Solution:
    values, vectors, quadratic = spectrum.values, spectrum.vectors, spectrum.quadratic
    # ``unit`` is the dispersion the whitening has left out: eigenvalues are lambda * unit, the cut-off beta * unit.
    if spectrum.dispersion is not None:
        unit = jnp.ones((), values.dtype)
    elif given is not None:
        unit = given
    else:
        unit = dispersion_at(values, spectrum.rest, vectors.shape[0], latent_dim, beta)
    phi = unit if spectrum.dispersion is None else spectrum.dispersion
    cutoff = jnp.where(beta > 0, beta, jnp.nan) * unit
    units = _units(spectrum, latent_dim, cutoff)
    safe = jnp.where(units.kept > 0, units.kept, 1.0)
    outward, inward = vectors / jnp.sqrt(quadratic.weight)[:, None], vectors * spectrum.scale[:, None]
    loadings = outward * units.length[None]
    encoder = (units.length / safe)[:, None] * inward.T
    covariance = jnp.diag(jnp.where(units.kept > 0, cutoff / safe, 1.0))
    if spectrum.coupling is not None:
        turned = _coupled(units, cutoff, spectrum.coupling)
        loadings, encoder = loadings + outward @ turned[0], encoder + turned[1].T @ inward.T
        covariance = covariance + turned[2]
    positive = ~(unit <= 0)  # NaN stays NaN
    divisor = jnp.where(positive, unit, 1.0)
    ratio = safe / jnp.where(cutoff == 0, 1.0, cutoff)
    log_ratio = jnp.where(units.active & (cutoff != 0), jnp.log(jnp.where(units.active, ratio, 1.0)), 0.0)
    fitted = jnp.sum(jnp.where(units.active, beta * (1 + log_ratio), 0.0))
    left = jnp.sum(values) - jnp.sum(jnp.where(units.active, units.top, 0.0)) + spectrum.rest
    elbo = _constant(spectrum, phi) - 0.5 * (fitted + left / divisor)
    intercept, bias, coefficients, beside = _shifts(spectrum, encoder)
    return Solution(
        loadings,
        intercept,
        coefficients,
        encoder,
        bias,
        beside,
        covariance,
        phi,
        jnp.where(positive, values / divisor, jnp.where(values > 0, jnp.inf, 0.0)),
        jnp.where(positive, elbo, jnp.inf),
        jnp.where(positive, 0.5 * jnp.sum(log_ratio), jnp.where(jnp.any(units.active), jnp.inf, 0.0)),
    )


def _coupled(units: _Units, cutoff: Array, coupling: Array) -> tuple[Array, Array, Array]:
    """0, with the derivative of lengths, of encoder lengths and of covariances between units of equal eigenvalues."""
    top, length = (jax.lax.stop_gradient(jnp.where(units.active, a, 1.0)) for a in (units.top, units.length))
    between = jnp.where(units.active[:, None] & units.active[None], coupling, 0.0)
    slope = 0.5 / length
    slopes = slope, slope / top - length / top**2, -jax.lax.stop_gradient(cutoff) / top**2
    return tuple(between * s[None] for s in slopes)  # type: ignore[return-value]


def _constant(spectrum: Spectrum, phi: Array) -> Array:
    if spectrum.dispersion is not None:
        return jnp.sum(spectrum.quadratic.constant)
    data = spectrum.moments
    statistic = jnp.zeros_like(data.mean) if data.base_statistic is None else data.base_statistic
    variance = jnp.diagonal(data.covariance)
    family, eta0 = spectrum.family, spectrum.expansion_point
    return jnp.sum(family.expansion_constant(data.mean, variance, statistic, eta0, phi))


def _shifts(spectrum: Spectrum, encoder: Array) -> tuple[Array, Array, Array | None, Array | None]:
    """Intercept and bias, and what covariates add to predictor and posterior mean."""
    data = spectrum.moments
    mean = data.mean
    if data.at_offset is not None:
        mean = mean + encoder_shift(spectrum.family, mean)
    intercept = spectrum.quadratic.response
    if spectrum.coefficients is None or data.covariates is None:
        return intercept, -encoder @ mean, None, None
    coefficients = spectrum.coefficients * spectrum.quadratic.slope[None]
    centre = mean - data.covariates.mean @ spectrum.coefficients
    return (
        intercept - data.covariates.mean @ coefficients,
        -encoder @ centre,
        coefficients,
        -spectrum.coefficients @ encoder.T,
    )
