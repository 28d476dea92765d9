"""The encoder and decoder nets of a beta-VAE whose decoder returns the linear predictor of a GLM (Flax NNX).

    deep        x(d) - 2000 - 1000 - (mu_z, log sigma_z^2)(kappa) - 1000 - 2000 - eta(d)
    canonical   x(d) - 2000 - d - (mu_z, log sigma_z^2)(kappa) - eta(d)

Hidden layers are ReLU, the others affine; the family turns eta into a mean. The canonical net's decoder is affine, so
everything the closed form says of affine decoders applies to it. Not imported by ``import glmvae``::

    from glmvae import nets
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from glmvae import _checks
from glmvae.families import Family
from glmvae.optimum import Posterior


class VAE(nnx.Module):
    """A beta-VAE's encoder and decoder, He-initialised, biases zero. Made by :func:`deep` or :func:`canonical`.

    Args:
        key: a JAX PRNG key.
        columns: number of columns of the data [d].
        latent_dim: number of latent units [kappa], 1 to d.
        family: the observation model.
        encoder_widths, decoder_widths: of the hidden layers, in the order data pass them; ``()`` is an affine map.
        full_covariance: the encoder returns a full covariance, through its Cholesky factor, in place of a diagonal.
        dtype: of the parameters; None is JAX's default float.

    Raises:
        ValueError: a size below 1, latent_dim above columns, a dtype that is not float32 or float64.
        TypeError: a size that is not an integer; family not a :class:`~glmvae.families.Family`.
    """

    def __init__(
        self,
        key: Array,
        columns: int,
        latent_dim: int,
        family: Family,
        *,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        full_covariance: bool = False,
        dtype: DTypeLike | None = None,
    ) -> None:
        if not isinstance(family, Family):
            raise TypeError(f"family: expected a Family, got {type(family).__name__}")
        self.columns = _checks.integer(columns, "columns")
        self.latent_dim = _checks.latent_dim(latent_dim, self.columns)
        self.encoder_widths = tuple(_checks.integer(w, "encoder_widths") for w in encoder_widths)
        self.decoder_widths = tuple(_checks.integer(w, "decoder_widths") for w in decoder_widths)
        self.full_covariance = bool(full_covariance)
        self.dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        if self.dtype not in (jnp.dtype("float32"), jnp.dtype("float64")):
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype}")
        self.family = nnx.data(family)

        k = self.latent_dim
        into, out = (self.columns, *self.encoder_widths), (k, *self.decoder_widths)
        shapes = [*itertools.pairwise(into), (into[-1], k), (into[-1], k * (k + 1) // 2 if full_covariance else k)]
        shapes += [*itertools.pairwise(out), (out[-1], self.columns)]
        kernels = _he_kernels(key, tuple(shapes), self.dtype)
        layers = [_affine(kernel) for kernel in kernels]
        depth = len(self.encoder_widths)
        self.encoder_layers = nnx.List(layers[:depth])
        self.mean_layer, self.scale_layer = layers[depth : depth + 2]
        self.decoder_layers = nnx.List(layers[depth + 2 : -1])
        self.output_layer = layers[-1]

    @property
    def affine_decoder(self) -> bool:
        """Whether the decoder has no hidden layer: eta = W z + b."""
        return not self.decoder_widths

    @property
    def loadings(self) -> Float[Array, "d k"]:
        """W of an affine decoder."""
        self._require_affine("loadings")
        return self.output_layer.kernel[...].T

    @property
    def intercept(self) -> Float[Array, " d"]:
        """b of an affine decoder."""
        self._require_affine("intercept")
        return self.output_layer(jnp.zeros(self.latent_dim, self.dtype))

    def _require_affine(self, what: str) -> None:
        if not self.affine_decoder:
            raise ValueError(f"{what}: the decoder is not affine, it has hidden layers {self.decoder_widths}")

    def settings(self) -> dict[str, Any]:
        """The arguments, but for the key, that make a net of this shape."""
        names = ("columns", "latent_dim", "family", "encoder_widths", "decoder_widths", "full_covariance", "dtype")
        return {name: getattr(self, name) for name in names}

    def encode(self, x: Float[Array, "*n d"]) -> tuple[Float[Array, "*n k"], Array]:
        """Posterior mean (N, kappa) and scale: standard deviations (N, kappa), or Cholesky factors (N, kappa, kappa).

        What training uses: no matrix is factored here, and none need be.
        """
        h = x
        for layer in self.encoder_layers:
            h = jax.nn.relu(layer(h))
        mean, raw = self.mean_layer(h), self.scale_layer(h)
        deviation = jnp.exp(0.5 * raw[..., : self.latent_dim])
        if not self.full_covariance:
            return mean, deviation
        factor = deviation[..., None] * jnp.eye(self.latent_dim, dtype=raw.dtype)
        row, column = jnp.tril_indices(self.latent_dim, -1)
        return mean, factor.at[..., row, column].set(raw[..., self.latent_dim :])

    def encoder(self, x: ArrayLike) -> Posterior:
        """q(z | x) of every row.

        Args:
            x: data, (N, d).

        Returns:
            :class:`~glmvae.optimum.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

        Raises:
            ValueError: another number of columns or of dimensions, NaN or infinity.
            TypeError: not numbers.
        """
        x = _checks.matrix(x, "x", columns=self.columns).astype(self.dtype)
        mean, scale = self.encode(x)
        if self.full_covariance:
            return Posterior(mean, scale @ jnp.swapaxes(scale, -1, -2))
        return Posterior(mean, scale[..., None] ** 2 * jnp.eye(self.latent_dim, dtype=scale.dtype))

    def decoder(self, z: Float[Array, "*n k"]) -> Float[Array, "*n d"]:
        """eta of a latent vector (kappa,) or of rows of them (N, kappa)."""
        for layer in self.decoder_layers:
            z = jax.nn.relu(layer(z))
        return self.output_layer(z)


@partial(jax.jit, static_argnames=("shapes", "dtype"))
def _he_kernels(key: Array, shapes: tuple[tuple[int, int], ...], dtype: DTypeLike) -> list[Array]:
    """He et al. (2015): N(0, 2 / fan-in), which keeps the scale of activations through ReLU layers."""
    ends = list(itertools.accumulate(rows * columns for rows, columns in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],), dtype), ends[:-1])  # one draw compiles faster than many
    return [part.reshape(shape) * (2 / shape[0]) ** 0.5 for part, shape in zip(parts, shapes, strict=True)]


def _affine(kernel: Array) -> nnx.Linear:
    def init(*_: Any) -> Array:
        return kernel

    return nnx.Linear(*kernel.shape, kernel_init=init, param_dtype=kernel.dtype, rngs=nnx.Rngs(0))


def deep(
    key: Array,
    columns: int,
    latent_dim: int,
    family: Family,
    *,
    encoder_widths: Sequence[int] = (2000, 1000),
    decoder_widths: Sequence[int] = (1000, 2000),
    full_covariance: bool = False,
    dtype: DTypeLike | None = None,
) -> VAE:
    """The paper's deep architecture: ReLU nets on both sides.

    Args:
        key, columns, latent_dim, family, full_covariance, dtype: see :class:`VAE`.
        encoder_widths, decoder_widths: of the hidden layers, in the order data pass them.

    Returns:
        A :class:`VAE`, He-initialised.

    Raises:
        ValueError, TypeError: see :class:`VAE`.

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
        family,
        encoder_widths=encoder_widths,
        decoder_widths=decoder_widths,
        full_covariance=full_covariance,
        dtype=dtype,
    )


def canonical(
    key: Array,
    columns: int,
    latent_dim: int,
    family: Family,
    *,
    encoder_widths: Sequence[int] | None = None,
    full_covariance: bool = False,
    dtype: DTypeLike | None = None,
) -> VAE:
    """The paper's canonical architecture: a ReLU encoder and an affine decoder.

    Args:
        key, columns, latent_dim, family, full_covariance, dtype: see :class:`VAE`.
        encoder_widths: of the hidden layers; None is (2000, d).

    Returns:
        A :class:`VAE`, He-initialised.

    Raises:
        ValueError, TypeError: see :class:`VAE`.

    Exactness: its ELBO is :func:`~glmvae.elbo.elbo_exact` of ``vae.loadings`` and ``vae.intercept``.

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
        family,
        encoder_widths=widths,
        decoder_widths=(),
        full_covariance=full_covariance,
        dtype=dtype,
    )


def reparameterise(mean: Float[Array, "n k"], scale: Array, noise: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """z = mu_z + scale * noise, with ``scale`` as :meth:`VAE.encode` returns it."""
    return mean + (scale * noise if scale.ndim == mean.ndim else jnp.einsum("nkl,nl->nk", scale, noise))


def kl_of_scale(mean: Float[Array, "n k"], scale: Array) -> Float[Array, " n"]:
    """KL(q || N(0, I)) of every row (24), from ``scale`` as :meth:`VAE.encode` returns it; no factorisation."""
    full = scale.ndim > mean.ndim
    diagonal = jnp.diagonal(scale, axis1=-2, axis2=-1) if full else scale
    trace = jnp.sum(scale**2, axis=(-2, -1) if full else -1)
    return 0.5 * (trace + jnp.sum(mean**2 - 2 * jnp.log(diagonal) - 1, axis=-1))
