"""Gaussian posteriors q(z | x) = N(mu_z, Sigma_z): what they cost, and what they say about the predictor eta."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae._numerics import trace_of, upper_triangle
from glmvae.model import Affine, fixed_predictor
from glmvae.rows import Rows


class Posterior(NamedTuple):
    """q(z | x) = N(mean, covariance), row by row.

    Fields:
        mean: mu_z, (N, kappa); kappa may be 0.
        covariance: Sigma_z, (N, kappa, kappa), or (1, kappa, kappa) where the rows share it.
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "m k k"]


def as_posterior(value: Any, latent_dim: int | None = None, num_rows: int | None = None) -> Posterior:
    """A posterior, checked.

    Raises:
        TypeError: no posterior.
        ValueError: shapes that do not fit, values that are not finite; it names the part.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"posterior: expected a Posterior(mean, covariance), got {type(value).__name__}")
    mean = _checks.matrix(value[0], "posterior.mean", rows=num_rows, columns=latent_dim, empty_columns=True)
    covariance = _checks.finite(_checks.numeric(value[1], "posterior.covariance"), "posterior.covariance")
    n, k = mean.shape
    if covariance.shape not in ((1, k, k), (n, k, k)):
        advice = "; one for all rows is covariance[None]" if covariance.shape == (k, k) else ""
        raise ValueError(
            f"posterior.covariance: expected shape {(n, k, k)} or {(1, k, k)}, got shape {covariance.shape}{advice}"
        )
    return Posterior(mean, covariance)


def one_a_row(values: Any, posterior: Posterior) -> Any:
    """Values a row (N, ...), seen to be of a posterior of N rows: how many there are a stream tells at its end.

    Raises:
        ValueError: they are not; covariances may be shared, a mean may not.
    """
    rows, got = jax.tree.leaves(values)[0].shape[0], posterior.mean.shape[0]
    if rows != got:
        raise ValueError(f"posterior.mean: expected {rows} rows, as many as x has, got {got}")
    return values


def kl_divergence(posterior: Posterior) -> Float[Array, " n"]:
    """KL(N(mu_z, Sigma_z) || N(0, I)) of every row, in nats (24).

        1/2 (tr Sigma_z - log |Sigma_z| + |mu_z|^2 - kappa)

    Args:
        posterior: means (N, kappa) and covariance (N, kappa, kappa) or (1, kappa, kappa).

    Returns:
        (N,); NaN where a covariance is not positive definite.

    Raises:
        ValueError, TypeError: not a posterior, shapes that do not fit, values that are not finite.

    Exactness: exact.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, kl_divergence
        >>> print(kl_divergence(Posterior(jnp.array([[0.0, 2.0]]), jnp.eye(2)[None])))
        [2.]
    """
    return kl_of(as_posterior(posterior))


@jax.jit
def kl_of(posterior: Posterior) -> Float[Array, " n"]:
    """:func:`kl_divergence` of a posterior already checked."""
    if posterior.mean.shape[-1] == 0:
        return jnp.zeros(posterior.mean.shape[0], posterior.mean.dtype)
    cholesky = jnp.linalg.cholesky(posterior.covariance)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky, axis1=-2, axis2=-1)), axis=-1)
    return gaussian_kl(posterior.mean, trace_of(posterior.covariance), log_det)


def gaussian_kl(mean: Float[Array, "n k"], trace: Array, log_det: Array) -> Float[Array, " n"]:
    """KL(N(mean, Sigma) || N(0, I)) from the trace and the log-determinant of Sigma (24)."""
    return 0.5 * (trace - log_det + jnp.sum(mean**2, axis=-1) - mean.shape[-1])


class Spread(NamedTuple):
    """What rows of one covariance share: the variances of eta, (d,); trace and log-determinant of Sigma."""

    variance: Any
    trace: Any
    log_det: Any


def spread_of(covariance: ArrayLike, loadings: ArrayLike) -> Spread:
    """On the host, in double precision; NaN where the covariance (kappa, kappa) is not positive definite."""
    covariance, loadings = np.asarray(covariance, np.float64), np.asarray(loadings, np.float64)
    sign, log_det = np.linalg.slogdet(covariance)
    variance = np.maximum(np.sum(loadings @ covariance * loadings, axis=1), 0.0)
    return Spread(variance, np.trace(covariance), log_det if sign > 0 else np.nan)


def predictor_moments(decoder: Affine, rows: Rows, posterior: Posterior) -> tuple[Array, Array]:
    """Mean (N, d) and variance, (N, d) or (1, d), of eta = W z + b + B' covariates + offset under a row's posterior."""
    first, second, _ = upper_triangle(decoder.latent_dim)
    share = jnp.asarray(np.where(first == second, 0.5, 1.0), posterior.mean.dtype)
    mean = posterior.mean @ decoder.loadings.T + fixed_predictor(decoder, rows)
    both = (
        posterior.covariance[:, first, second] + posterior.covariance[:, second, first]
    )  # so that gradients are symmetric
    variance = both @ (unit_products(decoder.loadings) * share[:, None])
    # not `maximum`, whose derivative where both are 0 is half that of either: loadings of 0 are a collapse
    return mean, hidden_if_none(jnp.where(variance < 0, 0.0, variance), decoder)


def unit_products(loadings: Float[Array, "d k"]) -> Float[Array, "p d"]:
    """W_jk W_jl for the entries of a packed matrix."""
    first, second, _ = upper_triangle(loadings.shape[1])
    units = loadings.T
    return units[first] * units[second]


def packed_curvature(loadings: Float[Array, "d k"], weight: Float[Array, "n d"]) -> Float[Array, "n p"]:
    """W' diag(w_i) W of every row, packed."""
    return weight @ unit_products(loadings).T


def hidden_if_none(variance: Array, decoder: Affine) -> Array:
    """The variance of eta; of a decoder without units, where it is 0, as XLA cannot see.

    Over a variance known to be 0 its simplifier goes in circles through the logistic families, and says so.
    """
    return variance if decoder.latent_dim else jax.lax.optimization_barrier(variance)
