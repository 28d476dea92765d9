"""Jaakkola and Jordan's bound of the logistic log-likelihood: one xi a column, or one xi an entry.

    -softplus(t) >= -t / 2 - log(2 cosh(xi / 2)) - (omega / 2) (t^2 - xi^2),     omega = tanh(xi / 2) / (2 xi)

touches at t = +-xi; xi = 0 is the curvature 1/4 of the paper. With n trials, log p = x t - n softplus(t) + K has the
weight w = rho^2 n omega / phi and the response y = rho (x - n / 2) / (phi w), t = rho eta. Columns whose log-likelihood
is a quadratic already (Gaussian) stand beside them as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae.expansion import working_response, working_weight
from glmvae.families import Family
from glmvae.quadratics import Quadratic
from glmvae.statistics import Moments, columns_of
from glmvae.statistics.at_null import Columns, expansion_constant


def omega(xi: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """tanh(xi / 2) / (2 xi), 1/4 at 0."""
    small = jnp.abs(xi) < 1e-2
    safe = jnp.where(small, 1.0, xi)
    square = xi**2
    return jnp.where(small, 0.25 - square / 48 + square**2 / 480, jnp.tanh(0.5 * safe) / (2 * safe))


def log_two_cosh(xi: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(2 cosh(xi / 2)), without overflow."""
    size = jnp.abs(xi)
    return 0.5 * size + jnp.log1p(jnp.exp(-size))


def require_tangent(family: Family) -> None:
    """The bound is there for every column.

    Raises:
        TypeError: it names the first column whose log-likelihood is neither logistic nor quadratic, and its family.
    """
    for column in range(family.columns or 1):
        member = family.of_column(column)
        if not (member.is_logistic or member.is_quadratic):
            where = f"column {column} is " if family.columns else "got "
            raise TypeError(
                f"family: Jaakkola and Jordan's bound is for logistic and Gaussian columns, {where}{member!r}"
            )


def tangent_terms(
    family: Family, x: Array, mean: Array, variance: Array, dispersion: Array
) -> tuple[Array, Array, Array]:
    """E of the bound under eta ~ N(mean, variance) with the best xi an entry, xi^2 = E t^2: value, gradient, weight.

    The gradient in the mean and the weight, -2 d/dv, are those of the quadratic at that xi. The value is without
    ``saturated_log_prob``, as that of ``expected_terms``.
    """
    return family.by_member(_tangent_terms, x, mean, variance, dispersion)


def _tangent_terms(
    member: Family, x: Array, mean: Array, variance: Array, dispersion: Array
) -> tuple[Array, Array, Array]:
    form = member.logistic_form(x)
    if form is None:
        return member.expected_terms(x, mean, variance, dispersion)
    scale = jnp.asarray(form.scale)
    t = scale * mean
    xi = jnp.sqrt(t**2 + scale**2 * variance)
    weight = form.trials * omega(xi)
    centred = form.slope - 0.5 * form.trials
    # the bound touches where the variance is 0
    touching = member.expected_terms(x, mean, jnp.zeros_like(mean), dispersion)[0]
    value = touching - form.trials * (log_two_cosh(xi) - log_two_cosh(t)) / dispersion
    return value, scale * (centred - weight * t) / dispersion, scale**2 * weight / dispersion


@jax.jit
def tangent_quadratic(data: Moments, family: Family, dispersion: Array, xi: Float[Array, " d"]) -> Quadratic:
    """The bound with one xi a column, as a quadratic in eta that moments determine."""
    known = columns_of(data, family, dispersion)
    return Quadratic(*family.by_member(_tangent_quadratic, known, dispersion, xi))


def _tangent_quadratic(
    member: Family, known: Columns, dispersion: Array, xi: Array
) -> tuple[Array, Array, Array, Array]:
    """Weight, response at the mean of x, its slope in x, and the constant."""
    mean, variance = known.mean, known.variance
    form = member.logistic_form(mean)
    if form is None:
        eta0 = jnp.zeros_like(mean)
        return (
            working_weight(member, eta0, dispersion),
            working_response(member, mean, eta0),
            jnp.broadcast_to(1 / member.mean_derivative(eta0), mean.shape),
            expansion_constant(member, known, eta0, dispersion),
        )
    weight = form.scale**2 * form.trials * omega(xi) / dispersion
    response = form.scale * (form.slope - 0.5 * form.trials) / (dispersion * weight)
    slope = form.scale * _slope(member, mean, variance) / (dispersion * weight)
    constant = -form.trials * (log_two_cosh(xi) - 0.5 * omega(xi) * xi**2) / dispersion
    constant = constant + member.log_base_measure_from(known.statistic, dispersion)
    spread = weight * (slope**2 * variance + response**2)  # mean of w y^2
    shape = mean.shape
    return tuple(jnp.broadcast_to(a, shape) for a in (weight, response, slope, constant + 0.5 * spread))  # type: ignore[return-value]


def _slope(member: Family, mean: Array, variance: Array) -> Array:
    """How far slope - trials / 2 moves with x about its mean.

    Where trials move with x too (negative binomial) the score (x - mu) (1 - p) of the null model stands in, p the share
    of the mean. Where x spreads so far that this objective would have no maximum, less.
    """
    form, moved = jax.jvp(member.logistic_form, (mean,), (jnp.ones_like(mean),))
    score = 1 - form.slope / form.trials * moved.trials
    largest = jnp.sqrt(form.slope * (form.trials - form.slope) / jnp.where(variance > 0, variance, 1.0))
    return jnp.where((variance > 0) & (moved.trials > 0), jnp.minimum(score, largest), score)
