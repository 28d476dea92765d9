"""The closed-form optimum of L-hat over affine decoders and Gaussian posteriors: probabilistic PCA, whitened.

With working responses y and weights G = diag(w) of :mod:`glmvae.expansion`, the beta-ELBO's expansion is maximised by
the eigenpairs (lambda, U) of S~ = G^1/2 Cov(y) G^1/2:

    b = mean y                                                                      (15)
    k_j = max(lambda_j, beta),   W = G^-1/2 U (K - beta I)^1/2                      (16), (17)
    Sigma_z = beta K^-1,   mu_z(x) = K^-1 (K - beta I)^1/2 U' G^1/2 (y - b)         (19), (20)
    L-hat = -1/2 [sum_{j<=kappa} (beta lambda_j / k_j + beta log(k_j / beta)) + sum_{j>kappa} lambda_j + D]

The data enter through their mean and covariance alone. The rotation R of (16) is the identity.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae.expansion import expansion_point, working_response, working_weight
from glmvae.families import Family, Gaussian
from glmvae.moments import Moments, moments


class Posterior(NamedTuple):
    """q(z | x) = N(mean, covariance), row by row.

    Fields:
        mean: mu_z, (N, kappa).
        covariance: Sigma_z, (kappa, kappa) where all rows share it, else (N, kappa, kappa).
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "*n k k"]


class AffineOptimum(NamedTuple):
    """An affine decoder eta = W z + b with its optimal affine encoder; a pytree of arrays.

    Fields:
        loadings: W, (d, kappa); columns of pruned units are 0.
        intercept: b, (d,).
        dispersion: phi, a scalar or (d,).
        beta: weight of the KL divergence.
        eigenvalues: of the whitened covariance S~, all d, descending; a unit is active where they exceed beta.
        elbo_taylor: L-hat at the optimum, nats per row. Without a base statistic in the moments it lacks
            the mean log base measure of binomial, Poisson and custom families.
        encoder_weight: (kappa, d), and
        encoder_bias: (kappa,): mu_z(x) = encoder_weight x + encoder_bias.
        covariance: Sigma_z, (kappa, kappa), diagonal, the same for every row.
        expansion_point: eta0, (d,).
    """

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    dispersion: Float[Array, "*d"]
    beta: Float[Array, ""]
    eigenvalues: Float[Array, " d"]
    elbo_taylor: Float[Array, ""]
    encoder_weight: Float[Array, "k d"]
    encoder_bias: Float[Array, " k"]
    covariance: Float[Array, "k k"]
    expansion_point: Float[Array, " d"]

    def decoder(self, z: Float[Array, "*n k"]) -> Float[Array, "*n d"]:
        """eta = W z + b."""
        return z @ self.loadings.T + self.intercept

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.loadings) != 2:
            return f"AffineOptimum(loadings={self.loadings}, intercept={self.intercept}, ...)"
        columns, units = self.loadings.shape
        active = int(jnp.sum(self.eigenvalues[:units] > self.beta))
        phi = np.asarray(self.dispersion)
        shown = f"{float(phi):.6g}" if phi.ndim == 0 else f"{phi.min():.6g} to {phi.max():.6g}"
        leading = ", ".join(f"{v:.4g}" for v in self.eigenvalues[: min(units, 5)].tolist())
        return (
            f"AffineOptimum: {columns} columns, {units} latent units, {active} active at beta = {float(self.beta):g}\n"
            f"  L-hat        {float(self.elbo_taylor):.6g} nats per row\n"
            f"  dispersion   {shown}\n"
            f"  eigenvalues  {leading}{', ...' if columns > min(units, 5) else ''} (cut-off {float(self.beta):g})"
        )


def fit(
    x: ArrayLike | Moments,
    family: Family,
    latent_dim: int,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> AffineOptimum:
    """The closed-form optimum of L-hat, (15)-(20).

    Args:
        x: data, (N, d), or their :class:`~glmvae.moments.Moments`.
        family: the observation model.
        latent_dim: number of latent units [kappa], from 1 to d.
        beta: weight of the KL divergence, positive.
        dispersion: phi, positive, a scalar or (d,). None: 1 for the families that fix it, the joint maximum
            for Gaussian (:func:`gaussian_dispersion`). A value other than 1 for a family that fixes it is
            quasi-likelihood: the same as a beta larger by that factor.
        expand_at: where to expand, see :func:`~glmvae.expansion.expansion_point`.

    Returns:
        :class:`AffineOptimum`.

    Raises:
        ValueError: bad data (NaN, infinity, out of support, not a matrix, no rows), latent_dim out of range, beta or
            dispersion not positive, dispersion missing where the family needs it, a bad ``expand_at``.
        TypeError: arguments that are not numbers; latent_dim not an integer.

    Exactness: the global maximum of L-hat over loadings, intercept and Gaussian posteriors. L-hat itself is the
    beta-ELBO for Gaussian, a lower bound of it for Bernoulli and binomial at ``"zero"``, otherwise an approximation.
    Gaussian data that fill at most ``latent_dim`` dimensions, and fewer than d / beta, have no finite optimum when the
    dispersion is estimated: the limit is returned, dispersion 0 and L-hat infinite. Under ``jit`` bad values give NaN.

    Cost: one pass over the data, O(N d^2), and one eigendecomposition, O(d^3); nothing of size N is kept.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit
        >>> from glmvae.families import Bernoulli
        >>> x = (np.random.default_rng(0).normal(size=(500, 1)) > np.zeros(6)).astype("float32")
        >>> fit(x, Bernoulli(), 2)
        AffineOptimum: 6 columns, 2 latent units, 1 active at beta = 1
          L-hat        -2.55... nats per row
          dispersion   1
          eigenvalues  5.986, ... (cut-off 1)

    Source: section 3.4; Tipping and Bishop (1999) for the eigenvalue argument.
    """
    _checks.family(family)
    data = _check_moments(x) if isinstance(x, Moments) else moments(x, family=family)
    columns = data.mean.shape[0]
    latent_dim = _checks.latent_dim(latent_dim, columns)
    _checks.positive(beta, "beta")
    phi = dispersion_of(family, dispersion, data.mean)
    eta0 = expansion_point(expand_at, family, data.mean)
    return _fit(data, family, jnp.asarray(beta, data.mean.dtype), phi, eta0, latent_dim=latent_dim)


def dispersion_of(family: Family, dispersion: ArrayLike | None, mean: Float[Array, " d"]) -> Array | None:
    """phi, checked; None where it is estimated: the joint maximum has a closed form for Gaussian."""
    columns = mean.shape[0]
    _checks.columns_of(mean, family, "x.mean")
    if dispersion is None:
        if isinstance(family, Gaussian):
            return None
        if family.fixed_dispersion is None:
            raise ValueError(
                f"dispersion: {family!r} needs one, got None; expected a positive scalar or shape ({columns},)"
            )
        dispersion = family.fixed_dispersion
    _checks.positive(dispersion, "dispersion", columns)
    return jnp.asarray(dispersion, mean.dtype)


def _check_moments(data: Moments) -> Moments:
    mean = _checks.numeric(data.mean, "x.mean")
    if mean.ndim != 1 or mean.shape[0] == 0:
        raise ValueError(f"x.mean: expected shape (d,), got shape {mean.shape}")
    covariance = _checks.matrix(data.covariance, "x.covariance", columns=mean.shape[0], rows=mean.shape[0])
    return data._replace(mean=_checks.finite(mean, "x.mean"), covariance=covariance)


class Spectrum(NamedTuple):
    """Eigenvalues (d,), descending, and eigenvectors (d, d) of the covariance of whitened working responses.

    ``weight`` is the working weight that whitens, at the given dispersion, or at phi = 1 where it is estimated.
    """

    eigenvalues: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"]
    weight: Float[Array, " d"]


def whitened_spectrum(data: Moments, family: Family, eta0: Float[Array, " d"], phi: Array) -> Spectrum:
    """The eigendecomposition of S~ = G^1/2 Cov(y) G^1/2 (the paper's S-hat, whitened)."""
    weight = working_weight(family, eta0, phi)
    scale = jnp.sqrt(weight) / family.mean_derivative(eta0)
    values, vectors = jnp.linalg.eigh(data.covariance * scale[:, None] * scale)
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # The sign is free: let the largest entry of each be positive, so that runs and machines agree.
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None], axis=0)
    return Spectrum(values, vectors * jnp.where(largest < 0, -1.0, 1.0).astype(vectors.dtype), weight)


@partial(jax.jit, static_argnames="latent_dim")
def _fit(
    data: Moments, family: Family, beta: Array, dispersion: Array | None, eta0: Array, *, latent_dim: int
) -> AffineOptimum:
    dtype = data.mean.dtype
    estimate = dispersion is None
    spectrum = whitened_spectrum(data, family, eta0, jnp.ones((), dtype) if dispersion is None else dispersion)
    values, weight = spectrum.eigenvalues, spectrum.weight
    # ``unit`` is the dispersion the whitening has left out: eigenvalues are lambda * unit, the cut-off beta * unit.
    unit = gaussian_dispersion(values, latent_dim, beta) if estimate else jnp.ones((), dtype)
    values = jnp.where(unit > 0, values, without_rounding(values))  # without noise there is no other cut-off
    phi = unit if dispersion is None else dispersion
    cutoff = beta * unit
    top, vectors = values[:latent_dim], spectrum.eigenvectors[:, :latent_dim]

    kept = jnp.maximum(top, cutoff)  # K times unit
    safe = jnp.where(kept > 0, kept, 1.0)
    length = jnp.sqrt(kept - cutoff)
    loadings = vectors / jnp.sqrt(weight)[:, None] * length
    response = working_response(family, data.mean, eta0)
    encoder = (length / safe)[:, None] * (vectors * (jnp.sqrt(weight) / family.mean_derivative(eta0))[:, None]).T
    covariance = jnp.diag(jnp.where(kept > 0, cutoff / safe, 1.0))

    statistic = jnp.zeros_like(data.mean) if data.base_statistic is None else data.base_statistic
    variance = jnp.diag(data.covariance)
    constant = jnp.sum(family.expansion_constant(data.mean, variance, statistic, eta0, phi))
    positive = unit > 0
    divisor = jnp.where(positive, unit, 1.0)
    log_ratio = jnp.log(jnp.where(positive, safe / (jnp.where(positive, beta, 1.0) * divisor), 1.0))
    quadratic = jnp.sum(beta * top / safe + beta * log_ratio) + jnp.sum(values[latent_dim:]) / divisor
    elbo = jnp.where(positive, constant - 0.5 * quadratic, jnp.inf)
    return AffineOptimum(
        loadings=loadings,
        intercept=response,
        dispersion=phi,
        beta=beta,
        eigenvalues=jnp.where(positive, values / divisor, jnp.where(values > 0, jnp.inf, 0.0)),
        elbo_taylor=elbo,
        encoder_weight=encoder,
        encoder_bias=-encoder @ data.mean,
        covariance=covariance,
        expansion_point=eta0,
    )


def gaussian_dispersion(eigenvalues: Float[Array, " d"], latent_dim: int, beta: ArrayLike = 1.0) -> Float[Array, ""]:
    """The dispersion sigma^2 that maximises the Gaussian beta-ELBO jointly with everything else.

        sigma^2 = sum_{j>a} lambda_j / (d - beta a)

    for the one a <= kappa with lambda_a > beta sigma^2 and, if a < kappa, beta sigma^2 >= lambda_{a+1}: the number of
    active units. The paper's (18) is a = kappa, and needs beta < d / kappa; with pruning every beta > 0 is covered.

    Args:
        eigenvalues: of the covariance of the data (unwhitened), (d,), descending.
        latent_dim: kappa.
        beta: weight of the KL divergence, positive.

    Returns:
        sigma^2, a scalar; 0 where the ELBO grows without bound: the data fill at most kappa dimensions, and beta
        times their number is below d.

    Raises:
        ValueError: eigenvalues that are no vector, below 0 or not descending; latent_dim out of range; beta not
            positive.
        TypeError: arguments that are not numbers; latent_dim not an integer.

    Exactness: the global maximum. The profile of the ELBO in sigma^2 has one mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.optimum import gaussian_dispersion
        >>> print(gaussian_dispersion(jnp.array([4.0, 1.0, 1.0]), 1))
        1.0

    Source: (18); Tipping and Bishop (1999).
    """
    eigenvalues = _checks.numeric(eigenvalues, "eigenvalues")
    if eigenvalues.ndim != 1 or not eigenvalues.size:
        raise ValueError(f"eigenvalues: expected a vector, got shape {eigenvalues.shape}")
    _checks.not_negative(eigenvalues, "eigenvalues")
    if _checks.concrete(eigenvalues) and (rises := np.diff(np.asarray(eigenvalues)) > 0).any():
        raise ValueError(f"eigenvalues: expected them descending, got a larger one after {_checks.first_index(rises)}")
    d = eigenvalues.shape[0]
    latent_dim = _checks.latent_dim(latent_dim, d)
    _checks.positive(beta, "beta")
    eigenvalues = without_rounding(eigenvalues)
    tail = jnp.cumsum(eigenvalues[::-1])[::-1]  # tail[a] = sum_{j>a}
    tail = jnp.concatenate([tail, jnp.zeros(1, tail.dtype)])
    beta = jnp.asarray(beta, tail.dtype)
    units = jnp.arange(latent_dim, dtype=tail.dtype)
    # Unit a + 1 joins while it exceeds the cut-off of the a before it; then d - beta a stays positive by itself.
    joins = eigenvalues[:latent_dim] * (d - beta * units) > beta * tail[:latent_dim]
    joins &= (tail[:latent_dim] > 0) & (d - beta * units > 0)
    active = jnp.sum(jnp.cumprod(joins.astype(jnp.int32)))
    remaining = d - beta * active.astype(tail.dtype)
    return tail[active] / jnp.where(remaining > 0, remaining, 1.0)


def without_rounding(eigenvalues: Float[Array, " d"]) -> Float[Array, " d"]:
    """Descending eigenvalues, the last of them set to 0 where their sum is no more than the rounding of the first."""
    tail = jnp.cumsum(eigenvalues[::-1])[::-1]
    rounding = eigenvalues.shape[0] * jnp.finfo(eigenvalues.dtype).eps * tail[0]
    return jnp.where(tail > rounding, eigenvalues, 0.0)


def posterior(optimum: AffineOptimum, x: ArrayLike) -> Posterior:
    """The optimal posterior of rows, new ones too: the affine encoder (19), (20).

    Args:
        optimum: from :func:`fit`.
        x: data, (N, d).

    Returns:
        :class:`Posterior` with mean (N, kappa) and one covariance (kappa, kappa).

    Raises:
        ValueError: rows of another width than the optimum's columns, NaN or infinity, not a matrix.
        TypeError: not numbers; an optimum that is none.

    Exactness: the maximum over all Gaussian posteriors of L-hat at the optimum's decoder; for Gaussian the exact
    posterior raised to beta.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit, posterior
        >>> from glmvae.families import Gaussian
        >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
        >>> posterior(fit(x, Gaussian(), 2), x).mean.shape
        (50, 2)

    Source: equations (19), (20).
    """
    check_optimum(optimum)
    x = _checks.matrix(x, "x", columns=optimum.loadings.shape[0]).astype(optimum.loadings.dtype)
    return Posterior(_encode(optimum.encoder_weight, optimum.encoder_bias, x), optimum.covariance)


def check_optimum(optimum: Any) -> None:
    """An affine optimum: what fit returns, or whatever has the same fields."""
    if not all(hasattr(optimum, name) for name in ("loadings", "encoder_weight", "eigenvalues")):
        raise TypeError(f"optimum: expected an AffineOptimum (see glmvae.fit), got {type(optimum).__name__}")


@jax.jit
def _encode(weight: Array, bias: Array, x: Array) -> Array:
    return x @ weight.T + bias
