"""The beta-ELBO of any decoder, row by row: by expansion in z, and by Monte Carlo.

A decoder is a function of one latent vector, ``z (kappa,) -> eta (d,)``; rows add their offset to what it returns, and
covariates need an :class:`~glmvae.model.Affine` with coefficients. One that is a pytree (an ``Affine``,
``jax.tree_util.Partial``, a Flax module) is an argument of a compiled program. A plain Python function cannot be
compiled once, since each new lambda would compile again: it runs eagerly, block by block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _settings
from glmvae._numerics import symmetric_inverse
from glmvae.elbo.decoding import Decoder, decoded, decoder_arguments, expansion_point_in_z, per_row_of
from glmvae.elbo.sampling import draw, log_prob_of, over_draws, rows_of, sampler
from glmvae.model import Objective
from glmvae.rows import Rows
from glmvae.variational import Posterior, as_posterior, kl_of, one_a_row


def elbo_taylor(
    decoder: Decoder, x: Any, posterior: Posterior, objective: Any, *, z0: ArrayLike | None = None
) -> Float[Array, " n"]:
    """L-hat in z: the beta-ELBO of any decoder with f(z) = log p(x | decoder(z)) expanded to second order at z0.

        f(z0) + J (mu_z - z0) + tr(H Sigma_z) / 2 + (mu_z - z0)' H (mu_z - z0) / 2 - beta KL          (25)

    with J and H from ``jax.grad`` and ``jax.hessian``, row by row. The paper's (4) leaves out the quadratic in the
    mean, which vanishes only for z0 = mu_z.

    Args:
        decoder: ``z (kappa,) -> eta (d,)``, a jax function; see :mod:`glmvae.elbo.decoders` for which kinds are
            compiled.
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`.
        posterior: means (N, kappa), covariance (N, kappa, kappa) or (1, kappa, kappa).
        objective: an :class:`~glmvae.model.Objective`, or a family that fixes its dispersion.
        z0: where to expand, (kappa,) or (N, kappa); None is the posterior mean (Kumar and Poole's choice).

    Returns:
        (N,), nats. Under a transformation a row with a value out of the support is NaN.

    Raises:
        ValueError, TypeError: bad data, shapes that do not fit, a decoder that is no function or returns another width,
            covariates for a decoder that takes none; each names the argument.

    Exactness: exact for Gaussian if the decoder is affine on the support of q (a ReLU net bends, so it is not, whatever
    Corollary 1 says); an approximation otherwise, and for an affine decoder with decoder(z0) = 0 and a Bernoulli
    or binomial family a lower bound.

    Cost: kappa + 1 gradients of the decoder a row; blocks of rows, so that memory does not grow with N.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_taylor
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
        >>> print(f"{elbo_taylor(lambda z: z, [[0.0]], q, Poisson())[0]:.4f}")
        -1.5000

    Source: (2)-(4), (25).
    """
    source, objective, units = decoder_arguments(decoder, x, objective)
    posterior = as_posterior(posterior, units, source.num_rows)
    units = posterior.mean.shape[1]
    z0 = None if z0 is None else expansion_point_in_z(z0, source.num_rows, units)
    value = per_row_of(_taylor, decoder, source, objective, posterior.mean, (posterior, z0), width=units + 1)
    return one_a_row(value, posterior)


def _taylor(rows: Rows, old: Any, decoder: Decoder, objective: Objective) -> tuple[None, Array]:
    posterior, z0 = old
    z0 = posterior.mean if z0 is None else z0  # what the rows share has one row
    z0 = jnp.broadcast_to(z0, (rows.num_rows, posterior.mean.shape[1]))
    value, gradient, hessian = _expansion_in_z(rows, z0, decoder, objective)
    step = posterior.mean - z0
    second = posterior.covariance + step[:, :, None] * step[:, None]
    curved = 0.5 * jnp.sum(hessian * second, axis=(-2, -1))
    return None, value + jnp.sum(gradient * step, axis=-1) + curved - objective.beta * kl_of(posterior)


def optimal_posterior(decoder: Decoder, x: Any, objective: Any, *, z0: ArrayLike) -> Posterior:
    """The posterior that maximises :func:`elbo_taylor` at given z0: (5), (6).

        Sigma_z = (I - H / beta)^-1,       mu_z = Sigma_z (J' - H z0) / beta

    Args:
        decoder, x, objective: as in :func:`elbo_taylor`.
        z0: where to expand, (kappa,) or (N, kappa).

    Returns:
        :class:`~glmvae.variational.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

    Raises:
        ValueError, TypeError: as :func:`elbo_taylor`.

    Exactness: the maximum over all Gaussian posteriors of L-hat at z0 wherever I - H / beta is positive definite, which
    piecewise linear decoders ensure if log p is concave in eta, as that of every built-in family is; elsewhere L-hat
    has no maximum, and the row is NaN.

    Example:
        >>> from glmvae import Objective, optimal_posterior
        >>> from glmvae.families import Gaussian
        >>> q = optimal_posterior(lambda z: z, [[3.0]], Objective(Gaussian(), dispersion=1.0), z0=[0.0])
        >>> print(f"{q.mean[0, 0]:.4f}")
        1.5000

    Source: (5), (6), (26), (30).
    """
    source, objective, units = decoder_arguments(decoder, x, objective)
    z0 = expansion_point_in_z(z0, source.num_rows, units)
    return per_row_of(_optimal, decoder, source, objective, z0, z0, width=z0.shape[1] + 1)


def _optimal(rows: Rows, z0: Array, decoder: Decoder, objective: Objective) -> tuple[None, Posterior]:
    z0 = jnp.broadcast_to(z0, (rows.num_rows, z0.shape[1]))
    _, gradient, hessian = _expansion_in_z(rows, z0, decoder, objective)
    return None, _best(z0, gradient, hessian, objective.beta)


@jax.jit
def _best(z0: Array, gradient: Array, hessian: Array, beta: Array) -> Posterior:
    precision = jnp.eye(z0.shape[1], dtype=z0.dtype)[None] - hessian / beta
    covariance, _ = symmetric_inverse(precision)
    if z0.shape[1]:
        has_maximum = jnp.isfinite(jnp.linalg.cholesky(precision)).all(axis=(1, 2), keepdims=True)
        covariance = jnp.where(has_maximum, covariance, jnp.nan)
    ahead = gradient - jnp.squeeze(hessian @ z0[..., None], -1)
    return Posterior(jnp.squeeze(covariance @ ahead[..., None], -1) / beta, covariance)


def _expansion_in_z(rows: Rows, z0: Array, decoder: Decoder, objective: Objective) -> tuple[Array, Array, Array]:
    """f, its gradient and Hessian in z at every row's z0. Rows do not meet, so one gradient of the sum serves all."""

    def value_and_gradient(z: Array) -> tuple[Array, Array]:
        value, pullback = jax.vjp(lambda z: log_prob_of(rows, decoded(decoder, z, rows), objective)[0], z)
        return value, pullback(jnp.ones_like(value))[0]

    value, gradient = value_and_gradient(z0)

    def along(direction: Array) -> Array:
        tangent = jnp.broadcast_to(direction[None], z0.shape)
        return jax.jvp(lambda z: value_and_gradient(z)[1], (z0,), (tangent,))[1]

    return value, gradient, jax.vmap(along, out_axes=2)(jnp.eye(z0.shape[1], dtype=z0.dtype))


def elbo_monte_carlo(
    key: Array, decoder: Decoder, x: Any, posterior: Posterior, objective: Any, *, num_samples: int = 100
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The beta-ELBO of any decoder by Monte Carlo over z, with its standard error (1).

    Args:
        key: a JAX PRNG key; rows draw independently, and what a row draws does not depend on the other rows.
        decoder, x, posterior, objective: as in :func:`elbo_taylor`.
        num_samples: draws of z a row.

    Returns:
        (value, standard_error), each (N,), nats. The mean over rows has the standard error
        ``sqrt(sum(standard_error**2)) / N``. With one sample the standard error is NaN.

    Raises:
        ValueError, TypeError: as :func:`elbo_taylor`; num_samples not a positive integer, no key.

    Exactness: unbiased; the KL divergence is exact.

    Cost: num_samples decoder evaluations a row; memory grows neither with num_samples nor with N.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_monte_carlo
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
        >>> value, error = elbo_monte_carlo(
        ...     jax.random.key(0), lambda z: z, [[0.0]], q, Poisson(), num_samples=10000)
        >>> bool(abs(value[0] + jnp.exp(0.5)) < 5 * error[0])
        True
    """
    key = _settings.prng_key(key, "key")
    source, objective, units = decoder_arguments(decoder, x, objective)
    posterior = as_posterior(posterior, units, source.num_rows)
    draws = np.arange(_settings.integer(num_samples, "num_samples"))
    given = (posterior, np.arange(posterior.mean.shape[0]))
    found = per_row_of(_monte_carlo, decoder, source, objective, posterior.mean, given, key, draws, width=1)
    value, error = one_a_row(found, posterior)
    if len(draws) == 1:  # the NaN is meant
        with jax.debug_nans(False):
            error = jnp.full_like(error, jnp.nan)
    return value, error


def _monte_carlo(
    rows: Rows, old: Any, decoder: Decoder, objective: Objective, key: Array, draws: Array
) -> tuple[None, tuple[Array, Array]]:
    posterior, index = old
    q = sampler(key, index, posterior, rows.num_rows)

    def add(state: tuple[Array, Array, Array], draws: Array) -> tuple[Array, Array, Array]:
        z, _ = draw(q, draws)
        return _merge(state, log_prob_of(rows, decoded(decoder, rows_of(z), rows), objective))

    zero = jnp.zeros(rows.num_rows, rows.x.dtype)
    count, mean, squares = over_draws(add, (zero[0], zero, zero), draws, rows)
    differ = squares > 0  # else the root has no derivative
    error = jnp.where(differ, jnp.sqrt(jnp.where(differ, squares, 1.0) / jnp.maximum(count - 1, 1) / count), squares)
    return None, (mean - objective.beta * kl_of(posterior), error)


@jax.jit
def _merge(state: tuple[Array, Array, Array], values: Array) -> tuple[Array, Array, Array]:
    """Number, mean and sum of squared deviations of the draws of log p, with further ones (draws, N)."""
    count, mean, squares = state
    more = jnp.asarray(len(values), mean.dtype)
    mean_of_more = jnp.mean(values, axis=0)
    gap = mean_of_more - mean
    squares = squares + jnp.sum((values - mean_of_more[None]) ** 2, axis=0) + gap**2 * (count * more / (count + more))
    joined = mean + gap * (more / (count + more))
    finite = jnp.isfinite(mean) & jnp.isfinite(mean_of_more)  # -inf stays -inf, where the gap is no number
    return count + more, jnp.where(finite, joined, mean + mean_of_more), squares
