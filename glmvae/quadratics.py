"""The expansion averaged over rows, one quadratic a column, from moments; and what covariates explain of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae._frames import ColumnNames, shown
from glmvae._precision import in_full
from glmvae.decomposition import one_thread
from glmvae.expansion import working_response, working_weight
from glmvae.families import Family
from glmvae.statistics import Covariates, Moments, columns_of
from glmvae.statistics.at_null import expansion_constant, of_dispersion
from glmvae.statistics.residuals import is_bounded

# Rounding units of a covariance, times the number of covariates, that each of them has to have of its own.
_OWN = 64


class Quadratic(NamedTuple):
    """The mean over rows of sum_j [constant_j - weight_j (y_j - eta_j)^2 / 2], y_j affine in x_j; all (d,).

    Fields:
        weight: w.
        response: y at the mean of x.
        slope: dy / dx.
        constant: the rest, the mean of w y^2 / 2 in it.
    """

    weight: Float[Array, " d"]
    response: Float[Array, " d"]
    slope: Float[Array, " d"]
    constant: Float[Array, " d"]


@jax.jit
def expanded(data: Moments, family: Family, eta0: Float[Array, " d"], phi: Array) -> Quadratic:
    """The expansion at eta0, or at the offset of each row where the moments are those of working residuals."""
    residual = data.at_offset is not None

    def of(member: Family, *parts: Any) -> Quadratic:
        known, at_offset, eta0, phi = parts
        mean = known.mean
        slope = jnp.broadcast_to(1 / member.mean_derivative(eta0), mean.shape)
        weight = jnp.broadcast_to(working_weight(member, eta0, phi), mean.shape)
        if not (residual and is_bounded(member)):
            constant = expansion_constant(member, known, eta0, phi)
            response = mean * slope if residual and member.is_quadratic else working_response(member, mean, eta0)
        else:
            response = mean * slope
            at_null = known.log_prob_of(member)
            if at_null is None:
                base = at_offset / phi + member.log_base_measure_from(known.statistic, phi)
            else:
                base = of_dispersion(member, at_null, known.statistic, phi)
            constant = base + 0.5 * weight * (slope**2 * known.variance + response**2)
        return Quadratic(weight, response, slope, jnp.broadcast_to(constant, mean.shape))

    at_offset = jnp.zeros_like(data.mean) if data.at_offset is None else data.at_offset
    return family.by_member(of, columns_of(data, family, phi), at_offset, eta0, phi)


def least_squares(covariates: Covariates, names: ColumnNames | None = None) -> Float[Array, "p d"]:
    """The coefficients of x on known covariates, from their moments; of concrete ones in double precision.

    Raises:
        ValueError: a covariate that does not vary, or that the others determine up to rounding; it names the column.
    """
    if not _checks.concrete(covariates):
        return jnp.linalg.solve(covariates.covariance, covariates.cross)
    dtype = np.asarray(covariates.covariance).dtype
    spread, cross = (np.asarray(a, np.float64) for a in covariates[1:])
    scale = np.sqrt(np.diagonal(spread))
    floor = np.finfo(dtype).eps * np.abs(np.asarray(covariates.mean, np.float64))
    if (still := scale <= floor).any():
        column = int(np.argmax(still))
        which = f"column {column}{shown(column, names)}"
        raise ValueError(f"covariates: {which} does not vary, the intercept stands for it; leave it out")
    _check_rank(spread / np.outer(scale, scale), dtype, names)
    solved = np.linalg.solve(spread / np.outer(scale, scale), cross / scale[:, None]) / scale[:, None]
    return jax.device_put(solved.astype(dtype))


def _check_rank(correlation: np.ndarray, dtype: np.dtype, names: ColumnNames | None) -> None:
    from scipy.linalg import qr

    with one_thread():
        triangle, order = qr(correlation, mode="r", pivoting=True, check_finite=False)
    own = np.abs(np.diagonal(triangle))
    rank = int(np.sum(own > _OWN * len(own) * np.finfo(dtype).eps * own[0]))
    if rank < len(own):
        column = int(max(order[rank:]))
        raise ValueError(
            f"covariates: column {column}{shown(column, names)} is a linear combination of the others (and the "
            f"intercept), so {rank} of {len(own)} covariates have coefficients of their own; leave it out"
        )


@in_full
def residual_covariance(data: Moments, coefficients: ArrayLike | None) -> Any:
    """The covariance of what the covariates leave of x; of concrete moments a NumPy array in double precision."""
    concrete = _checks.concrete((data, coefficients))

    def entering(value: Any) -> Any:
        return np.asarray(value, np.float64) if concrete else value

    covariance = entering(data.covariance)
    if coefficients is None or data.covariates is None:
        return covariance
    explained = entering(data.covariates.cross).T @ entering(coefficients)
    return covariance - 0.5 * (explained + explained.T)
