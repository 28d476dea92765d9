"""A certified bracket of the beta-ELBO of an affine decoder, row by row, without quadrature and without Monte Carlo.

For t ~ N(m, v) the gap g = E softplus(t) - softplus(m) is enclosed by, with r(t) = log(1 + exp(-|t|)),

    g >= 0                                                                          Jensen
    g >= log 2 - |m| / 2 + (m^2 + v) / 8 - (m^4 + 6 m^2 v + 3 v^2) / 192 - r(m)     Corollary 1, at eta0 = 0
    g <= v / 8                                                                      Boehning, at eta0 = m
    g <= v / (2 (xi + |m|)) + r(xi) - r(m),   xi^2 = m^2 + v                        Jaakkola and Jordan

and E log p = log p(x | m) - trials g / phi. The paper's L-hat is Boehning's bound at eta0 = 0, which the one at m never
falls behind. The best of each is taken entry by entry, and what rounding may do to it is added. Families without a
logistic form enclose the expected remainder of the quadratic at m instead; for most that is a closed form.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae._numerics import trace_of
from glmvae.blocks import per_row
from glmvae.elbo import affine_arguments
from glmvae.expansion import working_weight
from glmvae.families import Family
from glmvae.families.softplus_calculus import sigmoid
from glmvae.model import Affine, AffineModel
from glmvae.rows import Rows, observed
from glmvae.variational import Posterior, as_posterior, gaussian_kl, one_a_row, predictor_moments

# Rounding units allowed for in a term, those of ``Family.rounding_size`` too, beyond those of the sums that make it.
_ROUNDING = 16
# At least the largest |sigmoid''|, sqrt(3) / 18.
_LARGEST_BEND = 0.0963


def bracket(model: Any, x: Any, posterior: Posterior) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Enclose the exact beta-ELBO of an affine decoder and any Gaussian posterior.

    Args:
        model, x, posterior: as in :func:`~glmvae.elbo.elbo_exact`. The family is a built-in one, a Mixed of these, or
            one of your own with a logistic form or a remainder.

    Returns:
        (lower, upper), each (N,), nats. An end that overflows is infinite.

    Raises:
        ValueError, TypeError: as :func:`~glmvae.elbo.elbo_exact`; TypeError for a family without known bounds.

    Exactness: lower <= ELBO <= upper, floating point included. Gaussian, Poisson, Gamma and Exponential: as wide as
    rounding. Bernoulli, binomial, negative binomial: beside rounding at most trials v / 8 an entry, v the variance of
    rho eta. A family of your own: its expected remainder at the mean of eta, or the former where it is logistic.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Affine, AffineModel, Posterior, bracket
        >>> from glmvae.families import Bernoulli
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
        >>> lower, upper = bracket(AffineModel(Affine([[1.0]], [0.0]), Bernoulli()), [[1.0]], q)
        >>> print(f"{lower[0]:.3f} {upper[0]:.3f}")  # the ELBO is -0.806
        -0.813 -0.803

    Source: Boehning (1992); Jaakkola and Jordan (2000); Corollary 1.
    """
    model, source = affine_arguments(model, x)
    posterior = as_posterior(posterior, model.decoder.latent_dim, source.num_rows)
    model.family.by_member(_require_bounds)
    options: dict[str, Any] = {"family": model.family, "num_covariates": model.decoder.num_covariates}
    return one_a_row(per_row(_bracket, source, model, given=posterior, **options), posterior)


def _require_bounds(family: Family) -> None:
    if not (family.is_logistic or family.has_remainder):
        raise TypeError(f"family: no bounds are known for {family!r}: it has no logistic form and no remainder")


def _bracket(rows: Rows, posterior: Posterior, model: AffineModel) -> tuple[None, tuple[Array, Array]]:
    eps = float(jnp.finfo(rows.x.dtype).eps)
    # What is missing must not overflow: 0 times infinity is no gradient
    m, v, m_error, v_error = (observed(rows, part) for part in _predictor(rows, posterior, model.decoder, eps))
    family, columns = model.family.for_rows(rows), rows.num_columns
    phi = jnp.broadcast_to(model.objective.dispersion_of_entries, (1, columns))
    width = (_ROUNDING + math.ceil(math.log2(max(2, columns)))) * eps
    ends = family.by_member(functools.partial(_entries, width=width), rows.x, m, v, m_error, v_error, phi)
    lower, upper = (_pairwise(observed(rows, end)) for end in ends)
    kl, kl_error = _kl(posterior, eps)
    lower, upper = lower - model.beta * (kl + kl_error), upper - model.beta * (kl - kl_error)
    rounding = width * (jnp.abs(lower) + jnp.abs(upper) + model.beta * jnp.abs(kl))
    lower, upper = lower - rounding, upper + rounding
    # What overflowed is infinite; bad data and a bad covariance are not
    valid = jnp.logical_not(jnp.any(jnp.isnan(rows.x), axis=1) | jnp.isnan(kl))
    lower = jnp.where(valid, jnp.where(jnp.isnan(lower), -jnp.inf, lower), jnp.nan)
    return None, (lower, jnp.where(valid, jnp.where(jnp.isnan(upper), jnp.inf, upper), jnp.nan))


def _predictor(rows: Rows, posterior: Posterior, decoder: Affine, eps: float) -> list[Array]:
    """Mean and variance of eta, and what the sums over latent units and covariates may be off by, each (n, d)."""
    coefficients = None if decoder.coefficients is None else jnp.abs(decoder.coefficients)
    sizes = Affine(jnp.abs(decoder.loadings), jnp.abs(decoder.intercept), coefficients)
    fields = {name: jnp.abs(value) for name in ("offset", "covariates") if (value := getattr(rows, name)) is not None}
    q = Posterior(jnp.abs(posterior.mean), jnp.abs(posterior.covariance))
    m, v = predictor_moments(decoder, rows, posterior)
    m_size, v_size = predictor_moments(sizes, rows.replace(**fields), q)
    terms = (decoder.latent_dim + decoder.num_covariates + 4) * eps
    return [jnp.broadcast_to(part, rows.x.shape) for part in (m, v, terms * m_size, 2 * terms * v_size)]


def _entries(
    family: Family, x: Array, m: Array, v: Array, m_error: Array, v_error: Array, phi: Array, *, width: float
) -> tuple[Array, Array]:
    """Lower and upper bound of E log p, entry by entry, floating point and the errors of m and v included."""
    at_mean = family.log_prob(x, m, phi)
    rounding = width * family.rounding_size(x, m, jnp.zeros_like(v), phi)
    form = family.logistic_form(x)
    if form is None:
        # The quadratic at m, and the expectation of what it leaves out
        lower, upper = family.expected_remainder(m, v, m, x, phi)
        spread = 0.5 * working_weight(family, m, phi) * v
        rounding = rounding + width * spread
        fallen, risen = _moved(family, x, m, v, m_error, v_error, phi)
        lower = at_mean - spread + lower - width * jnp.abs(lower) - fallen - rounding
        return lower, at_mean - spread + upper + width * jnp.abs(upper) + risen + rounding
    scale, n = jnp.abs(form.scale), form.trials / phi
    t, u = scale * m, scale**2 * v
    least, most = _gap(jnp.abs(t), u, width)
    residual = jnp.abs(form.slope - form.trials * sigmoid(jnp.asarray(form.scale) * m)) / phi
    slope = residual + n * (width + jnp.minimum(1.0, 0.5 * _LARGEST_BEND * u))
    moved = slope * scale * m_error + n * scale**2 / 8 * (m_error**2 + v_error)
    error = rounding + width * n * most + moved
    return at_mean - n * most - error, at_mean - n * least + error


def _moved(
    family: Family, x: Array, m: Array, v: Array, m_error: Array, v_error: Array, phi: Array
) -> tuple[Array, Array]:
    """How far E log p may fall and rise where m and v move by their errors; it is concave in both, and falls with v."""
    value, gradient, weight = family.expected_terms(x, m, v, phi)
    least = [family.expected_terms(x, m + error, v + v_error, phi)[0] for error in (-m_error, m_error)]
    fallen = jnp.maximum(value - jnp.minimum(*least), 0.0)
    return fallen, jnp.abs(gradient) * m_error + 0.5 * weight * v_error


def _gap(distance: Array, u: Array, width: float) -> tuple[Array, Array]:
    """Lower and upper bound of E softplus(t) - softplus(m) for |m| = distance and variance u, rounding included."""
    rest = jnp.log1p(jnp.exp(-distance))
    fourth = (distance**4 + 6 * distance**2 * u + 3 * u**2) / 192
    parts: tuple[Any, ...] = (math.log(2), -0.5 * distance, 0.125 * (distance**2 + u), -fourth, -rest)
    corollary = sum(parts) - width * sum(jnp.abs(part) for part in parts)
    square = distance**2 + u
    still = square <= 0  # where a root has no derivative
    xi = jnp.where(still, 0.0, jnp.sqrt(jnp.where(still, 1.0, square)))
    outer = jnp.where(still, 0.0, 0.5 * u / jnp.where(still, 1.0, xi + distance))
    jaakkola = outer + jnp.log1p(jnp.exp(-xi)) - rest + width * (outer + 2 * rest)
    return jnp.fmax(0.0, corollary), jnp.fmin(0.125 * u * (1 + width), jaakkola)


def _kl(posterior: Posterior, eps: float) -> tuple[Array, Array]:
    """KL(q || N(0, I)) of every row, and what rounding may do to it."""
    units = posterior.mean.shape[-1]
    if units == 0:
        zero = jnp.zeros(posterior.mean.shape[0], posterior.mean.dtype)
        return zero, zero
    diagonal = jnp.diagonal(jnp.linalg.cholesky(posterior.covariance), axis1=-2, axis2=-1)
    trace = trace_of(posterior.covariance)
    kl = gaussian_kl(posterior.mean, trace, 2 * jnp.sum(jnp.log(diagonal), axis=-1))
    terms = trace + jnp.sum(posterior.mean**2, axis=-1) + 2 * jnp.sum(jnp.abs(jnp.log(diagonal)), axis=-1) + units
    # a Cholesky factor is that of a matrix off by a few units of its trace
    terms = terms + units * trace / jnp.min(diagonal, axis=-1) ** 2
    return kl, (units + _ROUNDING) * eps * terms


def _pairwise(values: Array) -> Array:
    """The sum over columns by halves, so that rounding grows with the logarithm of their number."""
    while values.shape[-1] > 1:
        if values.shape[-1] % 2:
            values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
        values = values[..., ::2] + values[..., 1::2]
    return values[..., 0]
