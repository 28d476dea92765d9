"""The encoder and decoder nets of a beta-VAE whose decoder returns the linear predictor of a GLM (Flax NNX).

    deep        x(d) - 2000 - 1000 - (mu_z, log sigma_z^2)(kappa) - 1000 - 2000 - eta(d)
    canonical   x(d) - 2000 - d - (mu_z, log sigma_z^2)(kappa) - eta(d)

Hidden layers are ReLU, the others affine; the family turns eta into a mean. The canonical net's decoder is affine, so
everything the closed form says of affine decoders applies to it. ``skip=True`` adds an affine path beside each side's
hidden layers, eta = W z + b + net_d(z) and mu_z = E x + e + net_e(x). Not imported by ``import glmvae``::

    from glmvae import nets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from glmvae.blocks import total
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.model import Objective
from glmvae.nets.autoencoder import VAE as VAE
from glmvae.nets.layers import encoder_inputs
from glmvae.rows import Rows, observed
from glmvae.sources import as_source
from glmvae.statistics import Moments
from glmvae.statistics.residuals import encoder_shift
from glmvae.variational import gaussian_kl


def deep(
    key: Array,
    columns: int,
    latent_dim: int,
    objective: Objective | Family,
    *,
    encoder_widths: Sequence[int] = (2000, 1000),
    decoder_widths: Sequence[int] = (1000, 2000),
    full_covariance: bool = False,
    standardise: tuple[ArrayLike, ArrayLike] | None = None,
    skip: bool = False,
    dtype: DTypeLike | None = None,
) -> VAE:
    """The paper's deep architecture: ReLU nets on both sides.

    Args:
        key, columns, latent_dim, objective, full_covariance, standardise, skip, dtype: see
            :class:`~glmvae.nets.autoencoder.VAE`.
        encoder_widths, decoder_widths: of the hidden layers, in the order data pass them.

    Returns:
        A :class:`~glmvae.nets.autoencoder.VAE`, He-initialised.

    Raises:
        ValueError, TypeError: see :class:`~glmvae.nets.autoencoder.VAE`.

    Exactness: its ELBO has no closed form: Monte Carlo.

    Example:
        >>> import jax
        >>> from glmvae import nets
        >>> from glmvae.families import Bernoulli
        >>> vae = nets.deep(jax.random.key(0), 6, 2, Bernoulli(), encoder_widths=(8,), decoder_widths=(8,))
        >>> vae.decoder(jax.numpy.zeros(2)).shape
        (6,)

    Source: appendix B.1; Dai et al. (2018).
    """
    return VAE(
        key,
        columns,
        latent_dim,
        objective,
        encoder_widths=encoder_widths,
        decoder_widths=decoder_widths,
        full_covariance=full_covariance,
        standardise=standardise,
        skip=skip,
        dtype=dtype,
    )


def canonical(
    key: Array,
    columns: int,
    latent_dim: int,
    objective: Objective | Family,
    *,
    encoder_widths: Sequence[int] | None = None,
    full_covariance: bool = False,
    standardise: tuple[ArrayLike, ArrayLike] | None = None,
    skip: bool = False,
    dtype: DTypeLike | None = None,
) -> VAE:
    """The paper's canonical architecture: a ReLU encoder and an affine decoder.

    Args:
        key, columns, latent_dim, objective, full_covariance, standardise, skip, dtype: see
            :class:`~glmvae.nets.autoencoder.VAE`.
        encoder_widths: of the hidden layers; None is (2000, d).

    Returns:
        A :class:`~glmvae.nets.autoencoder.VAE`, He-initialised.

    Raises:
        ValueError, TypeError: see :class:`~glmvae.nets.autoencoder.VAE`.

    Exactness: its ELBO is ``elbo_exact(vae, x, vae.encoder(x))``, see :func:`~glmvae.elbo.elbo_exact`.

    Example:
        >>> import jax
        >>> from glmvae import nets
        >>> from glmvae.families import Bernoulli
        >>> vae = nets.canonical(jax.random.key(0), 6, 2, Bernoulli(), encoder_widths=(8, 6))
        >>> vae.encoder(jax.numpy.zeros((5, 6))).covariance.shape
        (5, 2, 2)

    Source: appendix B.1.
    """
    widths = (2000, columns) if encoder_widths is None else encoder_widths
    return VAE(
        key,
        columns,
        latent_dim,
        objective,
        encoder_widths=widths,
        decoder_widths=(),
        full_covariance=full_covariance,
        standardise=standardise,
        skip=skip,
        dtype=dtype,
    )


def standardisation(x: Any, family: Family | None = None) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """The mean and the standard deviation of every input of the encoder: what ``standardise=`` of a net takes.

    Args:
        x: the training data: an array (N, d), :class:`~glmvae.rows.Rows` (missing entries are left out, rows count by
            their weight) or a :class:`~glmvae.sources.Source`; or their :class:`~glmvae.statistics.Moments`.
        family: of the net; needed where rows bring an offset or trials, which then are part of the inputs.

    Returns:
        (mean, sd), each (d,). The sd of a constant column is 1.

    Raises:
        ValueError, TypeError: bad data; rows with an offset or trials and no family.

    Exactness: exact up to rounding.

    Example:
        >>> import jax
        >>> from glmvae import nets
        >>> from glmvae.families import Poisson
        >>> x = [[1.0, 900.0], [3.0, 1100.0]]
        >>> mean, sd = nets.standardisation(x)
        >>> print(mean, sd)
        [   2. 1000.] [  1. 100.]
        >>> vae = nets.canonical(jax.random.key(0), 2, 1, Poisson(), encoder_widths=(8,), standardise=(mean, sd))
    """
    if family is not None:
        check_family(family)
    if isinstance(x, Moments):
        mean, variance = x.mean, jnp.diagonal(x.covariance)
        if x.at_offset is not None and x.family is not None:
            mean = mean + encoder_shift(x.family, mean)
    else:
        count, mean, squares = total(_column_spread, as_source(x), family, family=family, add=_merged)
        variance = squares / jnp.where(count > 0, count, 1.0)
    deviation = jnp.sqrt(jnp.maximum(variance, 0.0))
    constant = deviation <= 4 * jnp.finfo(deviation.dtype).eps * jnp.abs(mean)
    return mean, jnp.where(constant, 1.0, deviation)


def _column_spread(rows: Rows, _: None, family: Family | None) -> tuple[tuple[Array, Array, Array], None]:
    """Of every column the weight, the mean and the sum of squared deviations of what was observed."""
    if family is None and (rows.offset is not None or rows.trials is not None):
        raise ValueError("family: expected that of the net, since rows bring an offset or trials, got None")
    weight = observed(rows, jnp.broadcast_to(rows.weight[:, None], rows.x.shape))
    x = jnp.where(weight > 0, rows.x if family is None else encoder_inputs(family, rows), 0.0)
    count = jnp.sum(weight, axis=0)
    mean = jnp.sum(weight * x, axis=0) / jnp.where(count > 0, count, 1.0)
    return (count, mean, jnp.sum(weight * (x - mean[None]) ** 2, axis=0)), None


@jax.jit
def _merged(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    (many, mean, squares), (more, other, others) = a, b
    count = many + more
    share, gap = more / jnp.where(count > 0, count, 1.0), other - mean
    return count, mean + share * gap, squares + others + many * share * gap**2


def reparameterise(mean: Float[Array, "n k"], scale: Array, noise: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """z = mu_z + scale * noise, with ``scale`` as :meth:`VAE.encode` returns it."""
    return mean + (scale * noise if scale.ndim == mean.ndim else jnp.einsum("nkl,nl->nk", scale, noise))


def kl_of_scale(mean: Float[Array, "n k"], scale: Array) -> Float[Array, " n"]:
    """KL(q || N(0, I)) of every row (24), from ``scale`` as :meth:`VAE.encode` returns it; no factorisation."""
    full = scale.ndim > mean.ndim
    diagonal = jnp.diagonal(scale, axis1=-2, axis2=-1) if full else scale
    trace = jnp.sum(scale**2, axis=(-2, -1) if full else -1)
    return gaussian_kl(mean, trace, 2 * jnp.sum(jnp.log(diagonal), axis=-1))
