"""A certified bracket of the beta-ELBO of an affine decoder, row by row, without quadrature and without Monte Carlo.

For t ~ N(m, v) and r the excess of softplus over max(t, 0), the expectation E softplus(t) = max(m, 0) + e with

    e >= r(m)                                                               Jensen
    e >= log 2 - |m| / 2 + (m^2 + v) / 8 - (m^4 + 6 m^2 v + 3 v^2) / 192    Corollary 1, at eta0 = 0
    e <= r(m) + v / 8                                                       Boehning, at eta0 = m
    e <= v / (2 (xi + |m|)) + r(xi),   xi^2 = m^2 + v                       Jaakkola and Jordan

The paper's L-hat is Boehning's bound at eta0 = 0, which the one at m never falls behind. The best of each is taken
entry by entry. All upper bounds of e are sums of positive terms, so rounding is a few units of the sum, and is added.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae._jaakkola import is_logistic, logistic_form
from glmvae.elbo import _affine_arguments, kl_divergence, predictor_moments
from glmvae.families import Family, Gamma, Gaussian, Mixed, Poisson
from glmvae.optimum import Posterior

# Rounding units allowed for in a term, beyond those of the sums that make it.
_ROUNDING = 16


def bracket(
    loadings: ArrayLike,
    intercept: ArrayLike,
    x: ArrayLike,
    posterior: Posterior,
    family: Family,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Enclose the exact beta-ELBO of an affine decoder and any Gaussian posterior.

    Args:
        loadings: W, (d, kappa).
        intercept: b, (d,).
        x: data, (N, d).
        posterior: means (N, kappa), covariance (kappa, kappa) or (N, kappa, kappa).
        family: Bernoulli, binomial, negative binomial, Gaussian, Poisson, Gamma, Exponential, or Mixed of these.
        beta: weight of the KL divergence, positive.
        dispersion: phi, a scalar or (d,).

    Returns:
        (lower, upper), each (N,), nats.

    Raises:
        ValueError, TypeError: as :func:`~glmvae.elbo.elbo_exact`; TypeError for a family without known bounds.

    Exactness: lower <= ELBO <= upper, floating point included. Gaussian, Poisson and Gamma: the closed form, with its
    rounding. Otherwise the bracket is at most trials v / 8 an entry wide, v the variance of rho eta.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior
        >>> from glmvae.bracket import bracket
        >>> from glmvae.families import Bernoulli
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
        >>> lower, upper = bracket([[1.0]], [0.0], [[1.0]], q, Bernoulli())
        >>> print(f"{lower[0]:.3f} {upper[0]:.3f}")  # the ELBO is -0.806
        -0.813 -0.803

    Source: Boehning (1992); Jaakkola and Jordan (2000); Corollary 1.
    """
    _known(family)
    return _bracket(*_affine_arguments(loadings, intercept, x, posterior, family, beta, dispersion))


def _known(family: Any) -> None:
    members = family.families if isinstance(family, Mixed) else (family,)
    for member in members:
        if not (is_logistic(member) or isinstance(member, Gaussian | Poisson | Gamma)):
            raise TypeError(f"family: no bounds are known for {member!r}")


@jax.jit
def _bracket(
    loadings: Array, intercept: Array, x: Array, posterior: Posterior, family: Any, beta: Array, phi: Array
) -> tuple[Array, Array]:
    eps = float(jnp.finfo(x.dtype).eps)
    units = loadings.shape[1]
    m, v = predictor_moments(loadings, intercept, posterior)
    m, v = jnp.broadcast_arrays(m, v)
    v = jnp.maximum(v, 0.0)
    # What the sums over latent units may be off by
    sizes = Posterior(jnp.abs(posterior.mean), jnp.abs(posterior.covariance))
    m_error, v_error = predictor_moments(jnp.abs(loadings), jnp.abs(intercept), sizes)
    m_error, v_error = (units + 4) * eps * m_error, 2 * (units + 4) * eps * jnp.broadcast_to(v_error, m.shape)

    lower, upper, error = _entries(family, x, m, v, m_error, v_error, phi)
    kl = kl_divergence(posterior)
    diagonal = jnp.diagonal(jnp.linalg.cholesky(posterior.covariance), axis1=-2, axis2=-1)
    trace = jnp.trace(posterior.covariance, axis1=-2, axis2=-1)
    terms = trace + jnp.sum(posterior.mean**2, axis=-1) + 2 * jnp.sum(jnp.abs(jnp.log(diagonal)), axis=-1) + units
    # a Cholesky factor is that of a matrix off by a few units of its trace
    terms = terms + units * trace / jnp.min(diagonal, axis=-1) ** 2
    total_error = _pairwise(error) + beta * (units + _ROUNDING) * eps * terms
    lower, upper = _pairwise(lower) - beta * kl, _pairwise(upper) - beta * kl
    width = _ROUNDING * eps
    return (
        lower - total_error - width * jnp.abs(lower),
        upper + total_error + width * jnp.abs(upper),
    )


def _entries(
    family: Any, x: Array, m: Array, v: Array, m_error: Array, v_error: Array, phi: Array
) -> tuple[Array, Array, Array]:
    """Lower and upper bound of E log p entry by entry, and by how much either may be off."""
    if isinstance(family, Mixed):
        parts = zip(
            family.families, *(family.split(a) for a in (x, m, v, m_error, v_error)), family.split(phi), strict=True
        )
        bounds = zip(*(_entries(*part) for part in parts), strict=True)
        lower, upper, error = (family.join(b) for b in bounds)
        return lower, upper, error
    eps = float(jnp.finfo(x.dtype).eps)
    width = (_ROUNDING + math.ceil(math.log2(max(2, x.shape[-1])))) * eps
    base = family.log_base_measure(x, phi)
    if not is_logistic(family):
        value = family.expected_log_prob(x, m, v, phi)
        gradient = jnp.abs(family.expected_gradient(x, m, v, phi))
        weight = family.expected_weight(x, m, v, phi)
        # both gradient and value are differences; the terms they are made of
        size = jnp.abs(value) + jnp.abs(base) + (gradient + weight) * (1 + jnp.abs(m) + v) + jnp.abs(jnp.log(phi))
        size = size + _squares(family, x, m, phi)
        error = 4 * width * size + gradient * m_error + weight * (m_error * (1 + m_error) + v_error)
        return value, value, error
    form = logistic_form(family, x)
    scale = family._scale(m)
    t, u, distance = scale * m, scale**2 * v, jnp.abs(scale * m)
    xi = jnp.sqrt(t**2 + u)
    tangent = jnp.log1p(jnp.exp(-distance))
    most = jnp.minimum(tangent + u / 8, 0.5 * u / jnp.maximum(xi + distance, 1e-30) + jnp.log1p(jnp.exp(-xi)))
    fourth = (t**4 + 6 * t**2 * u + 3 * u**2) / 192
    quadratic = math.log(2) - 0.5 * distance + (t**2 + u) / 8
    quadratic_size = math.log(2) + 0.5 * distance + (t**2 + u) / 8 + fourth
    least = jnp.maximum(tangent, quadratic - fourth - width * quadratic_size)
    rest = form.trials - form.slope
    kink = form.slope * jnp.maximum(-t, 0.0) + rest * jnp.maximum(t, 0.0)
    lower = -(kink + form.trials * most) / phi + base
    upper = -(kink + form.trials * least) / phi + base
    size = (kink + form.trials * most) / phi + jnp.abs(base)
    slope = jnp.maximum(form.slope, rest) * jnp.abs(scale) / phi
    error = width * size + _base_error(form.trials, x, base, width)
    return lower, upper, error + 2 * slope * m_error + form.trials * scale**2 / phi * v_error / 4


def _squares(family: Any, x: Array, m: Array, phi: Array) -> Array:
    if isinstance(family, Gaussian):
        return (x**2 + (family._scale(m) * m) ** 2) / phi
    return jnp.abs(x * family._scale(m) * m) / phi + (jnp.abs(jnp.log(x)) / phi if isinstance(family, Gamma) else 0.0)


def _base_error(trials: Array, x: Array, base: Array, width: float) -> Array:
    """log C(n, x) is a difference of values of log Gamma near n log n."""
    size = (trials + 1) * (1 + jnp.log1p(trials))
    return jnp.where(base == 0, 0.0, width * size)


def _pairwise(values: Array) -> Array:
    """The sum over columns by halves, so that rounding grows with the logarithm of their number."""
    while values.shape[-1] > 1:
        if values.shape[-1] % 2:
            values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
        values = values[..., ::2] + values[..., 1::2]
    return values[..., 0]
