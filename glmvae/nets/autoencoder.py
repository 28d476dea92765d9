"""A beta-VAE as a Flax module: ReLU nets for the encoder and the decoder, and the objective they are for.

mu_z = net_e(x),   log sigma_z^2 = net_s(x),   eta = net_d(z)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae._frames import names_for
from glmvae._lost_digits import warn_of_lost_digits
from glmvae.blocks import as_dtype, per_row
from glmvae.families import Family
from glmvae.model import Affine, AffineModel, Objective
from glmvae.nets.arguments import float_dtype, objective_for, scaling, widths
from glmvae.nets.layers import MOST, MOST_STANDARDISED, affine, bounded, encoder_inputs, eye, he_kernels, standardised
from glmvae.rows import Rows, named
from glmvae.sources import Source, as_source
from glmvae.variational import Posterior


class VAE(nnx.Module):
    """A beta-VAE's encoder and decoder, He-initialised, biases zero. Made by :func:`deep` or :func:`canonical`.

    Args:
        key: a JAX PRNG key.
        columns: number of columns of the data [d].
        latent_dim: number of latent units [kappa], 1 to d.
        objective: what the net is for, an :class:`~glmvae.model.Objective` or a family that fixes its dispersion.
        encoder_widths, decoder_widths: of the hidden layers, in the order data pass them; ``()`` is an affine map.
        full_covariance: the encoder returns a full covariance, through its Cholesky factor, in place of a diagonal.
        standardise: (mean, sd) of the training data, each (d,), see :func:`~glmvae.nets.standardisation`: the encoder's
            first layer is (x - mean) / sd, fixed, and no posterior is much wider than the prior. None for the paper's
            nets, whose inputs lie in [0, 1]; counts, and anything far from 1, want it.
        skip: add an affine path beside the hidden layers of each side that has any.
        dtype: of the parameters; None is JAX's default float.

    Raises:
        ValueError: a size below 1, latent_dim above columns, a dtype that is not float32 or float64 (or float64 without
            jax_enable_x64), a standard deviation that is not positive, an objective for another number of columns.
        TypeError: a size that is not an integer, widths that are no sequence; no key; no objective.
    """

    def __init__(
        self,
        key: Array,
        columns: int,
        latent_dim: int,
        objective: Objective | Family,
        *,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        full_covariance: bool = False,
        standardise: tuple[ArrayLike, ArrayLike] | None = None,
        skip: bool = False,
        dtype: DTypeLike | None = None,
    ) -> None:
        key = _settings.prng_key(key, "key")
        self.columns = _settings.integer(columns, "columns")
        self.latent_dim = _settings.latent_dim(latent_dim, self.columns)
        self.encoder_widths = widths(encoder_widths, "encoder_widths")
        self.decoder_widths = widths(decoder_widths, "decoder_widths")
        self.full_covariance = bool(full_covariance)
        self.skip = bool(skip)
        self.dtype = float_dtype(dtype)
        self.objective = nnx.data(objective_for(objective, self.columns, self.dtype))
        self.standardise = nnx.data(scaling(standardise, self.columns, self.dtype))

        k, depth = self.latent_dim, len(self.encoder_widths)
        into, out = (self.columns, *self.encoder_widths), (k, *self.decoder_widths)
        shapes = [*itertools.pairwise(into), (into[-1], k), (into[-1], k * (k + 1) // 2 if full_covariance else k)]
        shapes += [*itertools.pairwise(out), (out[-1], self.columns)]
        skips = [(self.columns, k)] * (self.skip and depth > 0) + [(k, self.columns)] * (self.skip and len(out) > 1)
        layers = [affine(kernel) for kernel in he_kernels(key, tuple(shapes + skips), self.dtype)]
        layers, beside = layers[: len(shapes)], layers[len(shapes) :]
        self.encoder_layers = nnx.List(layers[:depth])
        self.mean_layer, self.scale_layer = layers[depth : depth + 2]
        self.decoder_layers = nnx.List(layers[depth + 2 : -1])
        self.output_layer = layers[-1]
        self.encoder_skip = nnx.data(beside.pop(0) if self.skip and depth else None)
        self.decoder_skip = nnx.data(beside.pop(0) if beside else None)

    # What it is for -----------------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        """The observation model."""
        return self.objective.family

    @property
    def beta(self) -> Array:
        """Weight of the KL divergence."""
        return self.objective.beta

    @property
    def dispersion(self) -> Array:
        """phi."""
        return self.objective.dispersion

    def with_objective(self, objective: Objective | Family) -> VAE:
        """A net with the same weights (a copy) for another objective, checked."""
        vae = jax.tree.map(lambda leaf: leaf, self)
        vae.objective = nnx.data(objective_for(objective, self.columns, self.dtype))
        return vae

    def with_beta(self, beta: ArrayLike) -> VAE:
        """A net with the same weights for another beta, checked."""
        return self.with_objective(self.objective.with_beta(beta))

    def with_dispersion(self, dispersion: ArrayLike) -> VAE:
        """A net with the same weights for another dispersion, checked."""
        return self.with_objective(self.objective.with_dispersion(dispersion))

    @property
    def most_log_variance(self) -> float:
        """Where the log variance of the encoder begins to rise only slowly: at 10, with standardised inputs at 0."""
        return MOST if self.standardise is None else MOST_STANDARDISED

    def settings(self) -> dict[str, Any]:
        """The arguments, but for the key, that make a net of this shape."""
        shape = ("columns", "latent_dim", "encoder_widths", "decoder_widths", "full_covariance", "skip", "dtype")
        names = ("objective", "standardise", *shape)
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        widths = f"encoder {self.encoder_widths}, decoder {self.decoder_widths}"
        also = "".join(f", {name}" for name in ("full_covariance", "skip") if getattr(self, name))
        also += "" if self.standardise is None else ", standardise"
        size = f"{_checks.counted(self.columns, 'column')}, {_checks.counted(self.latent_dim, 'latent unit')}"
        return f"VAE({size}, {widths}{also}, {self.objective!r})"

    __str__ = __repr__

    # An affine decoder --------------------------------------------------------------------------------------

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
        bias = self.output_layer.bias
        assert bias is not None
        return bias[...]

    @property
    def model(self) -> AffineModel:
        """The affine decoder with the objective: what the ELBOs of affine models take."""
        self._require_affine("model")
        return AffineModel(Affine(self.loadings, self.intercept), self.objective)

    def _require_affine(self, what: str) -> None:
        if self.decoder_widths:
            raise ValueError(f"{what}: the decoder is not affine, it has hidden layers {self.decoder_widths}")

    # The maps -----------------------------------------------------------------------------------------------

    def encode(self, x: Float[Array, "*n d"]) -> tuple[Float[Array, "*n k"], Array]:
        """Posterior mean (N, kappa) and scale: standard deviations (N, kappa), or Cholesky factors (N, kappa, kappa).

        What training uses: no matrix is factored here, and none need be.
        """
        h = x = x if self.standardise is None else standardised(x, *self.standardise)
        for layer in self.encoder_layers:
            h = jax.nn.relu(layer(h))
        mean, raw = self.mean_layer(h), self.scale_layer(h)
        mean = mean if self.encoder_skip is None else mean + self.encoder_skip(x)
        deviation = jnp.exp(0.5 * bounded(raw[..., : self.latent_dim], self.most_log_variance))
        if not self.full_covariance:
            return mean, deviation
        factor = deviation[..., None] * eye(self.latent_dim, deviation)
        row, column = jnp.tril_indices(self.latent_dim, -1)
        return mean, factor.at[..., row, column].set(raw[..., self.latent_dim :])

    def inputs(self, rows: Rows) -> Float[Array, "n d"]:
        """What the encoder sees of rows, see :func:`~glmvae.nets.layers.encoder_inputs`.

        Where an entry is missing that is the mean it is standardised by, or else 0.
        """
        x = encoder_inputs(self.family, rows)
        if rows.missing is None:
            return x
        filler = jnp.zeros((1, self.columns), x.dtype) if self.standardise is None else self.standardise[0][None]
        return jnp.where(rows.missing, filler, x)

    def encoder(self, x: Any) -> Posterior:
        """q(z | x) of every row.

        Args:
            x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`.

        Returns:
            :class:`~glmvae.variational.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

        Raises:
            ValueError: another number of columns or of dimensions, NaN or infinity, values out of the support,
                covariates.
            TypeError: not numbers.
        """
        return as_dtype(per_row(encode_rows, rows_for(self, x), self, family=self.family), self.dtype)

    @property
    def decoder(self) -> jax.tree_util.Partial:
        """eta of a latent vector (kappa,) or of rows of them (N, kappa): a function that is a pytree."""
        return jax.tree_util.Partial(_decode, self)


def _decode(vae: VAE, z: Float[Array, "*n k"]) -> Float[Array, "*n d"]:
    h = z
    for layer in vae.decoder_layers:
        h = jax.nn.relu(layer(h))
    eta = vae.output_layer(h)
    return eta if vae.decoder_skip is None else eta + vae.decoder_skip(z)


def encode_rows(rows: Rows, _: None, vae: VAE) -> tuple[None, Posterior]:
    """q(z | x) of a block of rows, for the loop."""
    mean, scale = vae.encode(vae.inputs(rows))
    if vae.full_covariance:
        return None, Posterior(mean, scale @ jnp.swapaxes(scale, -1, -2))
    return None, Posterior(mean, scale[..., None] ** 2 * eye(vae.latent_dim, scale))


def rows_for(vae: VAE, x: Any, name: str = "x") -> Source:
    """Data for a net, in its precision where they are in memory."""
    if not isinstance(x, Rows | Source | Iterator) and (hasattr(x, "__array__") or not callable(x)):
        _checks.two_dimensional(_checks.array(x, name), name)  # so that an error has the name
    source = as_source(x, name, vae.columns)
    if source.rows is None or source.dtype == vae.dtype:
        return source
    warn_of_lost_digits(source.rows.x, vae.dtype, name, ", the precision of the net")
    rows = source.rows.map(lambda leaf: leaf if leaf.dtype == bool else leaf.astype(vae.dtype))
    return as_source(named(rows, **names_for(source)))


def as_vae(value: Any, name: str = "vae") -> VAE:
    """A net as it is.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, VAE):
        raise TypeError(f"{name}: expected a net from glmvae.nets, got {type(value).__name__}")
    return value
