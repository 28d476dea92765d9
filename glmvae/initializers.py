"""Where training starts: He, the paper's MLE-B, and pass-through, which starts at the closed-form optimum itself.

Each is ``(key, vae, optimum) -> vae``: a new net of the same shape; the one passed in is not changed.

Pass-through uses that z = relu(z) - relu(-z): 2 kappa units of every hidden layer carry the affine maps of the optimum
through a ReLU net exactly, of any depth. All other units keep He weights, and their edges into the carrying units and
into the outputs are zero: at step 0 the net *is* the closed form, and from step 1 on training can use all of it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from glmvae import _checks
from glmvae.nets import VAE
from glmvae.optimum import AffineOptimum


def he(key: Array, vae: VAE, optimum: AffineOptimum | None = None) -> VAE:
    """He et al. (2015): every weight N(0, 2 / fan-in), every bias 0. The paper's "Bench".

    Args:
        key: a JAX PRNG key.
        vae: a net; its shape is used, its parameters are not.
        optimum: not used; it is there so that the three initialisers are called alike.

    Returns:
        A new :class:`~glmvae.nets.VAE`.

    Exactness: none is claimed; where it starts is up to the key.

    Example:
        >>> import jax
        >>> from glmvae import initializers, nets
        >>> from glmvae.families import Gaussian
        >>> vae = nets.canonical(jax.random.key(0), 4, 1, Gaussian(), encoder_widths=(8,))
        >>> print(initializers.he(jax.random.key(1), vae).intercept)
        [0. 0. 0. 0.]

    Source: appendix B.3; He et al. (2015).
    """
    return VAE(key, **vae.settings())


def mle_b(key: Array, vae: VAE, optimum: AffineOptimum) -> VAE:
    """The paper's MLE-B: He, but the mean, scale and output layers take the closed form's weights and biases.

        mean layer     W_e = Sigma_z W' / (phi beta),   b_e = - W_e x-bar     (the paper prints b_e without its minus)
        scale layer    bias log diag Sigma_z, He weights
        output layer   W, b

    Weights of these layers that the optimum does not need are zero. Hidden layers stand between the data and W_e, and
    between z and W of a deep net, so this start is near the closed form only as far as random features are near
    the identity; :func:`pass_through` starts at it.

    Args:
        key: a JAX PRNG key.
        vae: a net; its shape is used, its parameters are not.
        optimum: from :func:`~glmvae.optimum.fit`, with as many columns and latent units as the net.

    Returns:
        A new :class:`~glmvae.nets.VAE`.

    Raises:
        ValueError: an optimum of another size or that is not finite; a last encoder layer narrower than the number
            of columns; a last decoder layer narrower than the latent space.
        TypeError: not an optimum.

    Exactness: an approximation of the closed form.

    Example:
        >>> import jax
        >>> from glmvae import fit, initializers, nets
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (50, 4))
        >>> vae = nets.canonical(jax.random.key(0), 4, 1, Gaussian(), encoder_widths=(8,))
        >>> optimum = fit(x, Gaussian(), 1)
        >>> bool((initializers.mle_b(jax.random.key(1), vae, optimum).loadings == optimum.loadings).all())
        True

    Source: appendix B.3.
    """
    optimum = _check_optimum(vae, optimum)
    columns, k = vae.columns, vae.latent_dim
    _require_width(vae.encoder_widths[-1:], columns, "encoder_widths", "the last", "the number of columns")
    _require_width(vae.decoder_widths[-1:], k, "decoder_widths", "the last", "the latent dimension")
    vae = he(key, vae)
    _set(vae.mean_layer, optimum.encoder_weight.T, optimum.encoder_bias)
    vae.scale_layer.bias = nnx.Param(_raw_scale(vae, optimum.covariance))
    _set(vae.output_layer, optimum.loadings.T, optimum.intercept)
    return vae


def pass_through(key: Array, vae: VAE, optimum: AffineOptimum) -> VAE:
    """The whole net, encoder and decoder, starts at the closed-form optimum, whatever its depth.

    Units 0..kappa-1 of every hidden layer carry relu(mu), units kappa..2 kappa-1 relu(-mu), the next layer takes
    their difference; likewise z through the decoder. The others are He units with zero weights into these and into the
    outputs, so that they change nothing at step 0 and have gradients from step 1 on.

    Args:
        key: a JAX PRNG key, for the He units.
        vae: a net; its shape is used, its parameters are not.
        optimum: from :func:`~glmvae.optimum.fit`, with as many columns and latent units as the net.

    Returns:
        A new :class:`~glmvae.nets.VAE`.

    Raises:
        ValueError: an optimum of another size or that is not finite; a hidden layer narrower than 2 kappa.
        TypeError: not an optimum.

    Exactness: encoder and decoder equal the optimum's up to rounding, at every x and z, so the ELBO does too; with a
    diagonal-covariance net provided the optimum's covariance is diagonal, as that of ``fit`` is.

    Example:
        >>> import jax
        >>> from glmvae import fit, initializers, nets
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (50, 4))
        >>> vae = nets.deep(jax.random.key(0), 4, 1, Gaussian(), encoder_widths=(8, 6), decoder_widths=(6, 8))
        >>> optimum = fit(x, Gaussian(), 1)
        >>> vae = initializers.pass_through(jax.random.key(1), vae, optimum)
        >>> z = jax.numpy.array([0.5])
        >>> bool(jax.numpy.allclose(vae.decoder(z), optimum.decoder(z), atol=1e-5))
        True
    """
    optimum = _check_optimum(vae, optimum)
    k = vae.latent_dim
    for name in ("encoder_widths", "decoder_widths"):
        _require_width(getattr(vae, name), 2 * k, name, "every", "twice the latent dimension")
    vae = he(key, vae)
    _carry(vae.encoder_layers, vae.mean_layer, optimum.encoder_weight, optimum.encoder_bias, at_the_end=False)
    _set(vae.scale_layer, np.zeros((0, 0)), _raw_scale(vae, optimum.covariance))
    _carry(vae.decoder_layers, vae.output_layer, optimum.loadings, optimum.intercept, at_the_end=True)
    return vae


def _carry(hidden: Any, last: nnx.Linear, weight: Array, bias: Array, *, at_the_end: bool) -> None:
    """Let the net compute ``weight h + bias``: in its last layer, after h, or in its first, before the latents."""
    if not len(hidden):
        return _set(last, weight.T, bias)
    identity = np.eye(weight.shape[1 if at_the_end else 0])
    first, start = (identity, np.zeros(len(identity))) if at_the_end else (np.asarray(weight).T, np.asarray(bias))
    carried = 2 * len(identity)
    kernels = [np.hstack([first, -first])] + [np.eye(carried)] * (len(hidden) - 1)  # h -> (h, -h), then kept
    for layer, kernel in zip(hidden, kernels, strict=True):
        padded = _padded(kernel, (layer.kernel.shape[0], carried), layer.kernel.dtype)
        layer.kernel[...] = layer.kernel[...].at[:, :carried].set(padded)
    signed = jnp.asarray(np.concatenate([start, -start]), weight.dtype)
    hidden[0].bias[...] = hidden[0].bias[...].at[:carried].set(signed)
    joined = np.vstack([identity, -identity])  # (relu(h), relu(-h)) -> h
    return _set(last, joined @ np.asarray(weight).T, bias) if at_the_end else _set(last, joined, jnp.zeros_like(bias))


def _set(layer: nnx.Linear, kernel: ArrayLike, bias: Array) -> None:
    """The kernel, then zeros."""
    layer.kernel[...] = _padded(np.asarray(kernel), layer.kernel.shape, layer.kernel.dtype)
    layer.bias = nnx.Param(bias)


def _padded(kernel: np.ndarray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.asarray(np.pad(kernel, [(0, new - old) for old, new in zip(kernel.shape, shape, strict=True)]), dtype)


def _raw_scale(vae: VAE, covariance: Array) -> Array:
    """What the scale layer must return for that covariance."""
    if not vae.full_covariance:
        return jnp.log(jnp.diagonal(covariance))
    factor = jnp.linalg.cholesky(covariance)
    return jnp.concatenate([2 * jnp.log(jnp.diagonal(factor)), factor[jnp.tril_indices(vae.latent_dim, -1)]])


def _check_optimum(vae: VAE, optimum: AffineOptimum) -> AffineOptimum:
    """The optimum, in the precision of the net."""
    if not all(hasattr(optimum, f) for f in AffineOptimum._fields):
        raise TypeError(f"optimum: expected an AffineOptimum (see glmvae.fit), got {type(optimum).__name__}")
    expected = (vae.columns, vae.latent_dim)
    if jnp.shape(optimum.loadings) != expected:
        raise ValueError(
            f"optimum: expected loadings of shape {expected}, as the net has, got {jnp.shape(optimum.loadings)}"
        )
    used = ("loadings", "intercept", "encoder_weight", "encoder_bias", "covariance")
    for name in used:
        _checks.finite(getattr(optimum, name), f"optimum.{name}")
    return optimum._replace(**{name: getattr(optimum, name).astype(vae.dtype) for name in used})


def _require_width(widths: tuple[int, ...], least: int, name: str, which: str, why: str) -> None:
    for width in widths:
        if width < least:
            raise ValueError(f"{name}: expected {which} hidden width to be at least {least}, {why}, got {width}")
