"""The beta-ELBO of a decoder and a posterior, row by row: exact, by Monte Carlo, and its expansion L-hat.

    L = E_q log p(x | decoder(z)) - beta KL(q(z | x) || N(0, I))                     (1)

Four ways to the expectation: ``elbo_exact`` (affine decoders, no Monte Carlo), ``elbo_monte_carlo`` (any decoder),
``elbo_taylor`` (any decoder, second order in z at z0, (25)) and ``elbo_quadratic`` (affine decoders, second order in
eta at eta0, whose maximum over q is (12), (14)). Each returns one value a row, in nats; the objective is their mean.
A decoder is a function of one latent vector, ``z (kappa,) -> eta (d,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae.expansion import expand_rows, expansion_point
from glmvae.families import Family
from glmvae.moments import Moments
from glmvae.optimum import Posterior

Decoder = Callable[[Array], Array]


def kl_divergence(posterior: Posterior) -> Float[Array, " n"]:
    """KL(N(mu_z, Sigma_z) || N(0, I)) of every row, in nats (24).

        1/2 (tr Sigma_z - log |Sigma_z| + |mu_z|^2 - kappa)

    Args:
        posterior: means (N, kappa) and covariance (kappa, kappa) or (N, kappa, kappa).

    Returns:
        (N,); NaN where a covariance is not positive definite.

    Raises:
        ValueError, TypeError: not a posterior, shapes that do not fit, values that are not finite.

    Exactness: exact.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, kl_divergence
        >>> print(kl_divergence(Posterior(jnp.array([[0.0, 2.0]]), jnp.eye(2))))
        [2.]
    """
    posterior = _check_posterior(posterior)
    cholesky = jnp.linalg.cholesky(posterior.covariance)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky, axis1=-2, axis2=-1)), axis=-1)
    trace = jnp.trace(posterior.covariance, axis1=-2, axis2=-1)
    return 0.5 * (trace - log_det + jnp.sum(posterior.mean**2, axis=-1) - posterior.mean.shape[-1])


def predictor_moments(
    loadings: Float[Array, "d k"], intercept: Float[Array, " d"], posterior: Posterior
) -> tuple[Float[Array, "n d"], Float[Array, "*n d"]]:
    """Mean (N, d) and variance (d,) or (N, d) of eta_j = w_j' z + b_j under the posterior of every row."""
    mean = posterior.mean @ loadings.T + intercept
    return mean, jnp.sum((loadings @ posterior.covariance) * loadings, axis=-1)


def elbo_exact(
    loadings: ArrayLike,
    intercept: ArrayLike,
    x: ArrayLike,
    posterior: Posterior,
    family: Family,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Float[Array, " n"]:
    """The exact beta-ELBO of an affine decoder, without Monte Carlo (1).

    Under an affine decoder every eta_j is Gaussian, so the expectation is one-dimensional, column by column: closed for
    Gaussian, (m^2 + v) / 2, and Poisson, exp(m + v / 2); a quadrature for the others.

    Args:
        loadings: W, (d, kappa).
        intercept: b, (d,).
        x: data, (N, d).
        posterior: means (N, kappa), covariance (kappa, kappa) or (N, kappa, kappa).
        family: the observation model.
        beta: weight of the KL divergence, positive.
        dispersion: phi, a scalar or (d,).

    Returns:
        (N,), nats.

    Raises:
        ValueError, TypeError: shapes that do not fit, values that are not finite or out of the support, beta or
            dispersion not positive; each names the argument.

    Exactness: exact up to rounding for Gaussian and Poisson. Bernoulli and binomial: E softplus to a relative error
    below 1e-10 in float64 (3e-5 in float32) for |m| <= 30 and any standard deviation, at 64 (20) softplus evaluations
    an entry, and 98 (54) of a Gaussian density where any standard deviation exceeds 2.25 (1.5). Custom families: a
    trapezoid rule of 64 nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_exact
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
        >>> value = elbo_exact([[1.0]], [0.0], [[0.0]], q, Poisson())
        >>> print(f"{value[0]:.4f}")  # -exp(1/2)
        -1.6487
    """
    args = _affine_arguments(loadings, intercept, x, posterior, family, beta, dispersion)
    return _elbo_exact(*args)


@jax.jit
def _elbo_exact(
    loadings: Array, intercept: Array, x: Array, posterior: Posterior, family: Family, beta: Array, phi: Array
) -> Array:
    mean, variance = predictor_moments(loadings, intercept, posterior)
    expected = family.expected_log_prob(x, mean, variance, phi)
    return jnp.sum(expected, axis=-1) - beta * kl_divergence(posterior)


def elbo_quadratic(
    loadings: ArrayLike,
    intercept: ArrayLike,
    x: ArrayLike,
    posterior: Posterior,
    family: Family,
    *,
    expand_at: ArrayLike | str = "zero",
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Float[Array, " n"]:
    """L-hat in eta: the beta-ELBO of an affine decoder and any Gaussian q, with log p expanded at eta0.

        sum_j [c_j - w_j ((y_j - m_j)^2 + v_j) / 2] - beta KL,       eta_j ~ N(m_j, v_j) under q

    Args:
        loadings, intercept, x, posterior, family, beta, dispersion: as in :func:`elbo_exact`.
        expand_at: eta0, see :func:`~glmvae.expansion.expansion_point`; ``"null"`` takes the column means of x.

    Returns:
        (N,), nats.

    Raises:
        ValueError, TypeError: as :func:`elbo_exact`, and a bad ``expand_at``.

    Exactness: equal to :func:`elbo_exact` for Gaussian; for Bernoulli and binomial at ``"zero"`` below it, at any
    loadings, intercept, posterior and beta; otherwise an approximation, see
    :func:`~glmvae.expansion.expected_remainder_bounds`. It equals :func:`elbo_taylor` where decoder(z0) = eta0, and
    always for Gaussian.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_quadratic
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
        >>> value = elbo_quadratic([[1.0]], [0.0], [[0.0]], q, Poisson())
        >>> print(f"{value[0]:.4f}")  # -(1 + 1/2)
        -1.5000

    Source: (25) in eta; its maximum over q is (12), (14).
    """
    args = _affine_arguments(loadings, intercept, x, posterior, family, beta, dispersion)
    eta0 = expansion_point(expand_at, family, jnp.mean(args[2], axis=0))
    return _elbo_quadratic(*args, eta0)


@jax.jit
def _elbo_quadratic(
    loadings: Array,
    intercept: Array,
    x: Array,
    posterior: Posterior,
    family: Family,
    beta: Array,
    phi: Array,
    eta0: Array,
) -> Array:
    mean, variance = predictor_moments(loadings, intercept, posterior)
    quadratic = expand_rows(x, family, eta0, phi)
    expected = quadratic(mean) - 0.5 * quadratic.weight * variance
    return jnp.sum(expected, axis=-1) - beta * kl_divergence(posterior)


def affine_posterior(
    loadings: ArrayLike,
    intercept: ArrayLike,
    x: ArrayLike,
    family: Family,
    *,
    expand_at: ArrayLike | str = "zero",
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Posterior:
    """The posterior that maximises :func:`elbo_quadratic` for given loadings and intercept.

        Sigma_z = (I + W' G W / beta)^-1,     mu_z = Sigma_z W' G (y - b) / beta

    Args:
        loadings, intercept, x, family, expand_at, beta, dispersion: as in :func:`elbo_quadratic`.

    Returns:
        :class:`~glmvae.optimum.Posterior`, means (N, kappa), one covariance (kappa, kappa).

    Raises:
        ValueError, TypeError: as :func:`elbo_quadratic`.

    Exactness: the maximum of L-hat over all Gaussian posteriors; exact posterior (raised to beta) for Gaussian.

    Example:
        >>> from glmvae import affine_posterior
        >>> from glmvae.families import Gaussian
        >>> print(affine_posterior([[1.0]], [0.0], [[3.0]], Gaussian()))
        Posterior(mean=Array([[1.5]], dtype=float32), covariance=Array([[0.5]], dtype=float32))

    Source: (5), (6) for an affine decoder.
    """
    loadings, intercept, x, beta, phi = _decoder_arguments(loadings, intercept, x, family, beta, dispersion)
    eta0 = expansion_point(expand_at, family, jnp.mean(x, axis=0))
    return _affine_posterior(loadings, intercept, x, family, beta, phi, eta0)


@jax.jit
def _affine_posterior(
    loadings: Array, intercept: Array, x: Array, family: Family, beta: Array, phi: Array, eta0: Array
) -> Posterior:
    quadratic = expand_rows(x, family, eta0, phi)
    weighted = loadings * quadratic.weight[:, None] / beta
    covariance = _inverse(jnp.eye(loadings.shape[1], dtype=x.dtype) + loadings.T @ weighted)
    return Posterior((quadratic.response - intercept) @ weighted @ covariance, covariance)


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix, symmetric."""
    inverse = jnp.linalg.inv(matrix)
    return 0.5 * (inverse + jnp.swapaxes(inverse, -1, -2))


def elbo_profile(
    loadings: ArrayLike,
    intercept: ArrayLike,
    data: Moments,
    family: Family,
    *,
    expand_at: ArrayLike | str = "zero",
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """L-hat of an affine decoder under its best posterior, from the moments of the data alone: (12), (14).

        C = G^-1 + W W' / beta,      S = mean (y - b)(y - b)'
        L-hat = -1/2 [tr(C^-1 S) + beta log|C| + beta log|G| + D]

    Args:
        loadings: W, (d, kappa).
        intercept: b, (d,).
        data: :class:`~glmvae.moments.Moments`, made for the family if the constant matters.
        family, expand_at, beta, dispersion: as in :func:`elbo_quadratic`.

    Returns:
        A scalar, nats per row: the mean of :func:`elbo_quadratic` at :func:`affine_posterior`.

    Raises:
        ValueError, TypeError: as :func:`elbo_quadratic`.

    Exactness: equal to that mean; see :func:`elbo_quadratic` for how it compares with the beta-ELBO. Its maximum over
    loadings and intercept is ``fit(...).elbo_taylor``.

    Cost: O(d^2 kappa): no matrix of size d is inverted.

    Example:
        >>> from glmvae import elbo_profile, moments
        >>> from glmvae.families import Gaussian
        >>> print(f"{elbo_profile([[0.0]], [0.0], moments([[1.0], [-1.0]]), Gaussian()):.4f}")
        -1.4189

    Source: (12), (14), (33).
    """
    if not isinstance(data, Moments):
        raise TypeError(f"data: expected Moments (see glmvae.moments), got {type(data).__name__}")
    mean = _checks.numeric(data.mean, "data.mean")
    loadings, intercept, _, beta, phi = _decoder_arguments(
        loadings, intercept, mean[None], family, beta, dispersion, name="data.mean"
    )
    eta0 = expansion_point(expand_at, family, mean)
    return _elbo_profile(loadings, intercept, data, family, beta, phi, eta0)


@jax.jit
def _elbo_profile(
    loadings: Array, intercept: Array, data: Moments, family: Family, beta: Array, phi: Array, eta0: Array
) -> Array:
    statistic = jnp.zeros_like(data.mean) if data.base_statistic is None else data.base_statistic
    mean = expand_rows(data.mean[None], family, eta0, phi)
    constant = family.expansion_constant(data.mean, jnp.diag(data.covariance), statistic, eta0, phi)
    scale = jnp.sqrt(mean.weight)
    per_x = scale / family.mean_derivative(eta0)  # whitened response = per_x * x + ...
    whitened = loadings * scale[:, None]
    residual = scale * (mean.response[0] - intercept)
    # (I + W~ W~' / beta)^-1 = I - W~ (beta I + W~' W~)^-1 W~'
    inner = beta * jnp.eye(loadings.shape[1], dtype=mean.weight.dtype) + whitened.T @ whitened
    projected = whitened * per_x[:, None]
    cross = projected.T @ data.covariance @ projected + jnp.outer(whitened.T @ residual, whitened.T @ residual)
    total = jnp.sum(per_x**2 * jnp.diag(data.covariance)) + jnp.sum(residual**2)
    trace = total - jnp.trace(jnp.linalg.solve(inner, cross))
    log_det = jnp.linalg.slogdet(inner / beta)[1]
    return jnp.sum(constant) - 0.5 * (trace + beta * log_det)


def elbo_taylor(
    decoder: Decoder,
    x: ArrayLike,
    posterior: Posterior,
    family: Family,
    *,
    z0: ArrayLike | None = None,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Float[Array, " n"]:
    """L-hat in z: the beta-ELBO of any decoder with f(z) = log p(x | decoder(z)) expanded to second order at z0.

        f(z0) + J (mu_z - z0) + tr(H Sigma_z) / 2 + (mu_z - z0)' H (mu_z - z0) / 2 - beta KL          (25)

    with J and H from ``jax.grad`` and ``jax.hessian``, row by row. The paper's (4) leaves out the quadratic in the
    mean, which vanishes only for z0 = mu_z.

    Args:
        decoder: ``z (kappa,) -> eta (d,)``, a jax function.
        x: data, (N, d).
        posterior: means (N, kappa), covariance (kappa, kappa) or (N, kappa, kappa).
        family: the observation model.
        z0: where to expand, (kappa,) or (N, kappa); None is the posterior mean (Kumar and Poole's choice).
        beta, dispersion: as in :func:`elbo_exact`.

    Returns:
        (N,), nats.

    Raises:
        ValueError, TypeError: bad data, shapes that do not fit, a decoder that is no function or returns another width.

    Exactness: exact for Gaussian if the decoder is affine on the support of q (a ReLU net bends, so it is not, whatever
    Corollary 1 says); an approximation otherwise, and for an affine decoder with decoder(z0) = 0 and a Bernoulli
    or binomial family a lower bound.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_taylor
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
        >>> print(f"{elbo_taylor(lambda z: z, [[0.0]], q, Poisson())[0]:.4f}")
        -1.5000

    Source: (2)-(4), (25).
    """
    x, beta, phi = _data_arguments(decoder, x, family, beta, dispersion)
    posterior = _check_posterior(posterior, x)
    z0 = _check_z0(posterior.mean if z0 is None else z0, x, posterior.mean.shape[1])
    value, gradient, hessian = _expand_in_z(decoder, x, z0, family, phi)
    step = posterior.mean - z0
    curved = jnp.einsum("...kl,...lk->...", hessian, posterior.covariance)
    curved = curved + jnp.einsum("nk,nkl,nl->n", step, hessian, step)
    return value + jnp.sum(gradient * step, axis=-1) + 0.5 * curved - beta * kl_divergence(posterior)


def optimal_posterior(
    decoder: Decoder,
    x: ArrayLike,
    family: Family,
    *,
    z0: ArrayLike,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
) -> Posterior:
    """The posterior that maximises :func:`elbo_taylor` at given z0: (5), (6).

        Sigma_z = (I - H / beta)^-1,       mu_z = Sigma_z (J' - H z0) / beta

    Args:
        decoder, x, family, beta, dispersion: as in :func:`elbo_taylor`.
        z0: where to expand, (kappa,) or (N, kappa).

    Returns:
        :class:`~glmvae.optimum.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

    Raises:
        ValueError, TypeError: as :func:`elbo_taylor`.

    Exactness: the maximum over all Gaussian posteriors of L-hat at z0 wherever I - H / beta is positive definite, which
    piecewise linear decoders of a linearly canonical family ensure; elsewhere L-hat has no maximum.

    Example:
        >>> from glmvae import optimal_posterior
        >>> from glmvae.families import Gaussian
        >>> print(optimal_posterior(lambda z: z, [[3.0]], Gaussian(), z0=[0.0]).mean)
        [[1.5]]

    Source: (5), (6), (26), (30).
    """
    x, beta, phi = _data_arguments(decoder, x, family, beta, dispersion)
    z0 = _check_z0(z0, x, None)
    _, gradient, hessian = _expand_in_z(decoder, x, z0, family, phi)
    covariance = _inverse(jnp.eye(z0.shape[1], dtype=x.dtype) - hessian / beta)
    ahead = gradient - jnp.einsum("nkl,nl->nk", hessian, z0)
    return Posterior(jnp.einsum("nkl,nl->nk", covariance, ahead) / beta, covariance)


def _expand_in_z(decoder: Decoder, x: Array, z0: Array, family: Family, phi: Array) -> tuple[Array, Array, Array]:
    def log_prob(z: Array, row: Array) -> Array:
        return jnp.sum(family.log_prob(row, _decode(decoder, z, row.shape[0]), phi))

    value, gradient = jax.vmap(jax.value_and_grad(log_prob))(z0, x)
    return value, gradient, jax.vmap(jax.hessian(log_prob))(z0, x)


def _decode(decoder: Decoder, z: Array, columns: int) -> Array:
    eta = decoder(z)
    if jnp.shape(eta) != (columns,):
        raise ValueError(f"decoder: expected it to return shape ({columns},), got shape {jnp.shape(eta)}")
    return eta


def elbo_monte_carlo(
    key: Array,
    decoder: Decoder,
    x: ArrayLike,
    posterior: Posterior,
    family: Family,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
    num_samples: int = 100,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The beta-ELBO of any decoder by Monte Carlo over z, with its standard error (1).

    Args:
        key: a JAX PRNG key; rows draw independently.
        decoder: ``z (kappa,) -> eta (d,)``, a jax function.
        x, posterior, family, beta, dispersion: as in :func:`elbo_exact`.
        num_samples: draws of z a row.

    Returns:
        (value, standard_error), each (N,), nats. The mean over rows has the standard error
        ``sqrt(sum(standard_error**2)) / N``. With one sample the standard error is NaN.

    Raises:
        ValueError, TypeError: as :func:`elbo_taylor`; num_samples not a positive integer.

    Exactness: unbiased; the KL divergence is exact.

    Cost: num_samples decoder evaluations a row; memory does not grow with num_samples. A decoder may hold weights that
    change, so outside ``jax.jit`` every call compiles its loop again: for repeated calls, jit a function of the weights
    that makes the decoder and calls this.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from glmvae import Posterior, elbo_monte_carlo
        >>> from glmvae.families import Poisson
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
        >>> value, error = elbo_monte_carlo(
        ...     jax.random.key(0), lambda z: z, [[0.0]], q, Poisson(), num_samples=10000)
        >>> bool(abs(value[0] + jnp.exp(0.5)) < 5 * error[0])
        True
    """
    x, beta, phi = _data_arguments(decoder, x, family, beta, dispersion)
    posterior = _check_posterior(posterior, x)
    num_samples = _checks.integer(num_samples, "num_samples")
    cholesky = jnp.linalg.cholesky(posterior.covariance)

    def log_prob(z: Array, row: Array) -> Array:
        return jnp.sum(family.log_prob(row, _decode(decoder, z, row.shape[0]), phi))

    def add(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        mean, squares = carry
        noise = jax.random.normal(jax.random.fold_in(key, i), posterior.mean.shape, x.dtype)
        z = posterior.mean + jnp.einsum("...kl,...l->...k", cholesky, noise)
        value = jax.vmap(log_prob)(z, x)
        gap = value - mean
        mean = mean + gap / (i + 1)
        return (mean, squares + gap * (value - mean)), None

    zeros = jnp.zeros(x.shape[0], x.dtype)
    (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), jnp.arange(num_samples))
    count = jnp.asarray(num_samples, x.dtype)
    error = jnp.sqrt(squares / jnp.where(count > 1, count - 1, jnp.nan) / count)
    return mean - beta * kl_divergence(posterior), error


# The eager boundary ---------------------------------------------------------------------------------------


def _data_arguments(decoder: Any, x: Any, family: Family, beta: Any, dispersion: Any) -> tuple[Array, Array, Array]:
    if not callable(decoder):
        raise TypeError(f"decoder: expected a function of z, got {type(decoder).__name__}")
    x = _checks.rows_of(x, family)
    _checks.positive(beta, "beta")
    _checks.positive(dispersion, "dispersion", x.shape[1])
    return x, jnp.asarray(beta, x.dtype), jnp.asarray(dispersion, x.dtype)


def _decoder_arguments(
    loadings: Any, intercept: Any, x: Any, family: Family, beta: Any, dispersion: Any, name: str = "x"
) -> tuple[Array, Array, Array, Array, Array]:
    x = _checks.rows_of(x, family, name=name)
    columns = x.shape[1]
    loadings = _checks.matrix(loadings, "loadings", rows=columns).astype(x.dtype)
    intercept = _checks.vector(intercept, "intercept", columns).astype(x.dtype)
    _checks.positive(beta, "beta")
    _checks.positive(dispersion, "dispersion", columns)
    return loadings, intercept, x, jnp.asarray(beta, x.dtype), jnp.asarray(dispersion, x.dtype)


def _affine_arguments(
    loadings: Any, intercept: Any, x: Any, posterior: Posterior, family: Family, beta: Any, dispersion: Any
) -> tuple[Array, Array, Array, Posterior, Family, Array, Array]:
    loadings, intercept, x, beta, phi = _decoder_arguments(loadings, intercept, x, family, beta, dispersion)
    return loadings, intercept, x, _check_posterior(posterior, x, loadings.shape[1]), family, beta, phi


def _check_posterior(posterior: Any, x: Array | None = None, latent_dim: int | None = None) -> Posterior:
    if not isinstance(posterior, tuple) or len(posterior) != 2:
        raise TypeError(f"posterior: expected a Posterior(mean, covariance), got {type(posterior).__name__}")
    rows = None if x is None else x.shape[0]
    mean = _checks.matrix(posterior[0], "posterior.mean", rows=rows, columns=latent_dim)
    dtype = mean.dtype if x is None else x.dtype
    covariance = _checks.finite(_checks.numeric(posterior[1], "posterior.covariance"), "posterior.covariance")
    n, k = mean.shape
    if covariance.shape not in ((k, k), (n, k, k)):
        raise ValueError(f"posterior.covariance: expected shape {(k, k)} or {(n, k, k)}, got shape {covariance.shape}")
    return Posterior(mean.astype(dtype), covariance.astype(dtype))


def _check_z0(z0: Any, x: Array, latent_dim: int | None) -> Array:
    z0 = _checks.finite(_checks.numeric(z0, "z0"), "z0").astype(x.dtype)
    width = z0.shape[-1] if latent_dim is None and z0.ndim else latent_dim
    if z0.shape not in ((width,), (x.shape[0], width)):
        raise ValueError(f"z0: expected shape ({width},) or ({x.shape[0]}, {width}), got shape {z0.shape}")
    return jnp.broadcast_to(z0, (x.shape[0], z0.shape[-1]))
