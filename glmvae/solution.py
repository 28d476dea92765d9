"""What a spectrum says for one kappa and beta: loadings, encoder, covariance, dispersion and L-hat, (15)-(20)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae._precision import in_full
from glmvae.families import Family
from glmvae.quadratics import Quadratic
from glmvae.spectral import Spectrum, dispersion_at, whitening
from glmvae.statistics import Moments, statistic_of
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
    if not _checks.concrete((spectrum, beta, dispersion)):
        return _traced(spectrum, beta, dispersion, latent_dim=latent_dim)
    with _checks.at_once(), np.errstate(all="ignore"):
        found = _solution(np, spectrum, latent_dim, beta, dispersion)
        return jax.device_put(jax.tree.map(lambda a: np.asarray(a, spectrum.values.dtype), found))


@functools.partial(jax.jit, static_argnames="latent_dim")
@in_full
def _traced(spectrum: Spectrum, beta: Array, given: Array | None, *, latent_dim: int) -> Solution:
    return _solution(jnp, spectrum, latent_dim, beta, given)


class _Units(NamedTuple):
    """The first units of a spectrum; those that are pruned have no length."""

    top: Array
    kept: Array
    length: Array
    active: Array


def _units(numpy: Any, top: Array, cutoff: Array) -> _Units:
    active = ~(top <= cutoff)  # NaN stays NaN
    # sqrt has no derivative at 0, where a pruned unit is
    length = numpy.where(active, numpy.sqrt(numpy.where(active, top - cutoff, 1.0)), 0.0)
    return _Units(top, numpy.where(active, top, cutoff), length, active)


def _solution(numpy: Any, spectrum: Spectrum, latent_dim: int, beta: Any, given: Any) -> Solution:
    """By NumPy, which compiles nothing, or JAX's."""
    parts = spectrum.values, spectrum.vectors, spectrum.rest, spectrum.quadratic, spectrum.dispersion, beta, given
    values, vectors, rest, quadratic, dispersion, beta, given = jax.tree.map(numpy.asarray, parts)
    # ``unit`` is the dispersion the whitening has left out: eigenvalues are lambda * unit, the cut-off beta * unit.
    if dispersion is not None:
        unit = numpy.ones((), values.dtype)
    elif given is not None:
        unit = given
    else:
        unit = dispersion_at(values, rest, vectors.shape[0], latent_dim, beta)
    phi = unit if dispersion is None else dispersion
    cutoff = numpy.where(beta > 0, beta, numpy.nan) * unit
    units = _units(numpy, values[:latent_dim], cutoff)
    safe = numpy.where(units.kept > 0, units.kept, 1.0)
    vectors, scale = vectors[:, :latent_dim], whitening(quadratic.weight, quadratic.slope)
    outward, inward = vectors / numpy.sqrt(quadratic.weight)[:, None], vectors * scale[:, None]
    loadings = outward * units.length[None]
    encoder = (units.length / safe)[:, None] * inward.T
    covariance = numpy.diag(numpy.where(units.kept > 0, cutoff / safe, 1.0))
    if spectrum.coupling is not None:
        turned = _coupled(units, cutoff, spectrum.coupling[:latent_dim, :latent_dim])
        loadings, encoder = loadings + outward @ turned[0], encoder + turned[1].T @ inward.T
        covariance = covariance + turned[2]
    positive = ~(unit <= 0)  # NaN stays NaN
    divisor = numpy.where(positive, unit, 1.0)
    ratio = safe / numpy.where(cutoff == 0, 1.0, cutoff)
    log_ratio = numpy.where(units.active & (cutoff != 0), numpy.log(numpy.where(units.active, ratio, 1.0)), 0.0)
    fitted = numpy.sum(numpy.where(units.active, beta * (1 + log_ratio), 0.0))
    # Never the sum of all less that of the active: what is left may be nothing beside the largest
    left = numpy.sum(values[latent_dim:]) + numpy.sum(numpy.where(units.active, 0.0, units.top)) + rest
    elbo = _constant(numpy, spectrum, quadratic, phi) - 0.5 * (fitted + left / divisor)
    intercept, bias, coefficients, beside = _shifts(numpy, spectrum, quadratic, encoder)
    return Solution(
        loadings,
        intercept,
        coefficients,
        encoder,
        bias,
        beside,
        covariance,
        phi,
        numpy.where(positive, values / divisor, numpy.where(values > 0, numpy.inf, 0.0)),
        numpy.where(positive, elbo, numpy.inf),
        numpy.where(positive, 0.5 * numpy.sum(log_ratio), numpy.where(numpy.any(units.active), numpy.inf, 0.0)),
    )


def _coupled(units: _Units, cutoff: Array, coupling: Array) -> tuple[Array, Array, Array]:
    """0, with the derivative of lengths, of encoder lengths and of covariances between units of equal eigenvalues."""
    top, length = (jax.lax.stop_gradient(jnp.where(units.active, a, 1.0)) for a in (units.top, units.length))
    between = jnp.where(units.active[:, None] & units.active[None], coupling, 0.0)
    slope = 0.5 / length
    slopes = slope, slope / top - length / top**2, -jax.lax.stop_gradient(cutoff) / top**2
    return tuple(between * s[None] for s in slopes)  # type: ignore[return-value]


def _constant(numpy: Any, spectrum: Spectrum, quadratic: Quadratic, phi: Array) -> Array:
    if spectrum.dispersion is not None:
        return numpy.sum(quadratic.constant)
    data = spectrum.moments._replace(family=None)
    return numpy.asarray(_expansion_constant(spectrum.family, data, spectrum.expansion_point, phi))


@jax.jit
def _expansion_constant(family: Family, data: Moments, eta0: Array, phi: Array) -> Array:
    statistic = statistic_of(data, family, phi)
    return jnp.sum(family.expansion_constant(data.mean, jnp.diagonal(data.covariance), statistic, eta0, phi))


def _shifts(
    numpy: Any, spectrum: Spectrum, quadratic: Quadratic, encoder: Array
) -> tuple[Array, Array, Array | None, Array | None]:
    """Intercept and bias, and what covariates add to predictor and posterior mean."""
    data = spectrum.moments
    mean = numpy.asarray(data.mean)
    if data.at_offset is not None:
        mean = mean + numpy.asarray(_encoder_shift(spectrum.family, data.mean))
    if spectrum.coefficients is None or data.covariates is None:
        return quadratic.response, -encoder @ mean, None, None
    least, beside = numpy.asarray(spectrum.coefficients), numpy.asarray(data.covariates.mean)
    coefficients = least * quadratic.slope[None]
    centre = mean - beside @ least
    return quadratic.response - beside @ coefficients, -encoder @ centre, coefficients, -least @ encoder.T


_encoder_shift = jax.jit(encoder_shift)
