"""Where training starts: He, the paper's MLE-B, and pass-through, which starts at the closed-form optimum itself.

Each is ``(key, vae, optimum) -> vae``: a new net of the same shape, for the objective that the net is for; the one
passed in is not changed. What the encoder standardises its inputs by is undone in the weights, so the maps are the
same. The layers of a subclass of the net are its own: these starts refuse it, and say how its plain part is started.

Pass-through uses that z = relu(z) - relu(-z): 2 kappa units of every hidden layer carry the affine maps of the optimum
through a ReLU net exactly, of any depth. All other units keep He weights, and their edges into the carrying units and
into the outputs are zero: at step 0 the net *is* the closed form, and from step 1 on training can use all of it. In a
net with an affine skip that path has the maps, and the last layers of the nets beside it are zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from glmvae import _checks
from glmvae.model import as_model, require_density
from glmvae.nets.autoencoder import VAE, as_vae
from glmvae.nets.layers import raw_log_variance
from glmvae.optimum import AffineOptimum
from glmvae.refined import RefinedOptimum

Optimum = AffineOptimum | RefinedOptimum


def he(key: Array, vae: VAE, optimum: Optimum | None = None) -> VAE:
    """He et al. (2015): every weight N(0, 2 / fan-in), every bias 0. The paper's "Bench".

    Args:
        key: a JAX PRNG key.
        vae: a net; its shape is used, its parameters are not.
        optimum: not used; it is there so that the three initialisers are called alike.

    Returns:
        A new :class:`~glmvae.nets.autoencoder.VAE`.

    Raises:
        TypeError: no net, a subclass of one, whose further layers no start knows; no key.

    Exactness: none is claimed; where it starts is up to the key.

    Example:
        >>> import jax
        >>> from glmvae import initializers, nets
        >>> from glmvae.families import Bernoulli
        >>> vae = nets.canonical(jax.random.key(0), 4, 1, Bernoulli(), encoder_widths=(8,))
        >>> print(initializers.he(jax.random.key(1), vae).intercept)
        [0. 0. 0. 0.]

    Source: appendix B.3; He et al. (2015).
    """
    return VAE(key, **_plain(vae).settings())


def mle_b(key: Array, vae: VAE, optimum: Optimum) -> VAE:
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
        optimum: from :func:`~glmvae.optimum.fit`, :func:`~glmvae.jaakkola.tighten` or :func:`~glmvae.ascent.refine`, of
            the net's family, with as many columns and latent units as the net.

    Returns:
        A new :class:`~glmvae.nets.autoencoder.VAE`.

    Raises:
        ValueError: an optimum of another size or family, that is not finite, or whose dispersion is 0; a last encoder
            layer narrower than the number of columns; a last decoder layer narrower than the latent space.
        TypeError: not an optimum, or one without an affine encoder; no net or a subclass of one; no key.

    Exactness: an approximation of the closed form.

    Example:
        >>> import jax
        >>> from glmvae import fit, initializers, nets
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (50, 4))
        >>> optimum = fit(x, Gaussian(), 1)
        >>> vae = nets.canonical(jax.random.key(0), 4, 1, optimum.model.objective, encoder_widths=(8,))
        >>> bool((initializers.mle_b(jax.random.key(1), vae, optimum).loadings == optimum.loadings).all())
        True

    Source: appendix B.3.
    """
    vae = _plain(vae)
    maps, columns, k = _maps(vae, optimum), vae.columns, vae.latent_dim
    _require_width(vae.encoder_widths[-1:], columns, "encoder_widths", "the last", "the number of columns")
    _require_width(vae.decoder_widths[-1:], k, "decoder_widths", "the last", "the latent dimension")
    vae = he(key, vae)
    _set(vae.mean_layer, maps.weight.T, maps.bias)
    _set_bias(vae.scale_layer, maps.raw_scale)
    _set(vae.output_layer, maps.loadings.T, maps.intercept)
    for layer in (vae.encoder_skip, vae.decoder_skip):
        if layer is not None:
            _set(layer, np.zeros((0, 0)), np.zeros(0))
    return vae


def pass_through(key: Array, vae: VAE, optimum: Optimum) -> VAE:
    """The whole net, encoder and decoder, starts at the closed-form optimum, whatever its depth.

    Units 0..kappa-1 of every hidden layer carry relu(mu), units kappa..2 kappa-1 relu(-mu), the next layer takes
    their difference; likewise z through the decoder. The others are He units with zero weights into these and into the
    outputs, so that they change nothing at step 0 and have gradients from step 1 on.

    Args:
        key: a JAX PRNG key, for the He units.
        vae: a net; its shape is used, its parameters are not.
        optimum: from :func:`~glmvae.optimum.fit`, :func:`~glmvae.jaakkola.tighten` or :func:`~glmvae.ascent.refine`, of
            the net's family, with as many columns and latent units as the net.

    Returns:
        A new :class:`~glmvae.nets.autoencoder.VAE`.

    Raises:
        ValueError: an optimum of another size or family, that is not finite, or whose dispersion is 0; a hidden layer
            narrower than 2 kappa.
        TypeError: not an optimum, or one without an affine encoder; no net or a subclass of one; no key.

    Exactness: encoder and decoder equal the optimum's up to rounding, at every x and z, so under one objective
    (``optimum.model.objective``) the ELBO does too; with a diagonal-covariance net provided the optimum's covariance is
    diagonal, as that of ``fit`` is.

    Example:
        >>> import jax
        >>> from glmvae import fit, initializers, nets
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (50, 4))
        >>> optimum, widths = fit(x, Gaussian(), 1), {"encoder_widths": (8, 6), "decoder_widths": (6, 8)}
        >>> vae = nets.deep(jax.random.key(0), 4, 1, optimum.model.objective, **widths)
        >>> vae = initializers.pass_through(jax.random.key(1), vae, optimum)
        >>> z = jax.numpy.array([0.5])
        >>> bool(jax.numpy.allclose(vae.decoder(z), optimum.decoder(z), atol=1e-5))
        True
    """
    vae = _plain(vae)
    maps, k = _maps(vae, optimum), vae.latent_dim
    if not vae.skip:
        for name in ("encoder_widths", "decoder_widths"):
            _require_width(getattr(vae, name), 2 * k, name, "every", "twice the latent dimension")
    vae = he(key, vae)
    _set(vae.scale_layer, np.zeros((0, 0)), maps.raw_scale)
    sides = (
        (vae.encoder_skip, vae.encoder_layers, vae.mean_layer, maps.weight, maps.bias, False),
        (vae.decoder_skip, vae.decoder_layers, vae.output_layer, maps.loadings, maps.intercept, True),
    )
    for skip, hidden, last, weight, bias, at_the_end in sides:
        if skip is not None:
            _set(skip, weight.T, bias)
            _set(last, np.zeros((0, 0)), np.zeros(0))
        else:
            _carry(hidden, last, weight, bias, at_the_end=at_the_end)
    return vae


def _plain(vae: VAE) -> VAE:
    """A net all of whose layers are known here: those of a subclass may change what it computes."""
    if type(as_vae(vae)) is not VAE:
        raise TypeError(
            f"vae: expected a net as nets.deep, nets.canonical or nets.VAE makes it, got {type(vae).__name__}, a "
            "subclass whose own layers a start cannot set; start nets.VAE(key, **vae.settings()), take its layers over "
            "with nnx.update(vae, nnx.state(start, nnx.Param)), and let yours begin at zero"
        )
    return vae


def _carry(hidden: Any, last: nnx.Linear, weight: np.ndarray, bias: np.ndarray, *, at_the_end: bool) -> None:
    """Let the net compute ``weight h + bias``: in its last layer, after h, or in its first, before the latents."""
    if not len(hidden):
        return _set(last, weight.T, bias)
    identity = np.eye(weight.shape[1 if at_the_end else 0])
    first, start = (identity, np.zeros(len(identity))) if at_the_end else (weight.T, bias)
    carried = 2 * len(identity)
    kernels = [np.hstack([first, -first])] + [np.eye(carried)] * (len(hidden) - 1)  # h -> (h, -h), then kept
    for layer, kernel in zip(hidden, kernels, strict=True):
        padded = _cast(_padded(kernel, (layer.kernel.shape[0], carried)), layer)
        layer.kernel[...] = layer.kernel[...].at[:, :carried].set(padded)
    _set_bias(hidden[0], np.concatenate([start, -start]))
    joined = np.vstack([identity, -identity])  # (relu(h), relu(-h)) -> h
    return _set(last, joined @ weight.T, bias) if at_the_end else _set(last, joined, np.zeros(0))


def _set(layer: nnx.Linear, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Kernel and bias, then zeros."""
    layer.kernel[...] = _cast(_padded(kernel, layer.kernel.shape), layer)
    _set_bias(layer, bias)


def _set_bias(layer: nnx.Linear, bias: np.ndarray) -> None:
    assert layer.bias is not None
    layer.bias[...] = _cast(_padded(bias, layer.bias.shape), layer)


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])


def _cast(array: np.ndarray, like: nnx.Linear) -> Array:
    return jnp.asarray(array, like.kernel.dtype)


class _Maps(NamedTuple):
    """The maps of an optimum, as the layers of the net are to compute them."""

    loadings: np.ndarray
    intercept: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    raw_scale: np.ndarray


def _maps(vae: VAE, optimum: Optimum) -> _Maps:
    """The maps of the optimum: its encoder on standardised inputs, its covariance as the scale layer says it."""
    if isinstance(optimum, VAE):
        raise TypeError("optimum: expected an optimum such as fit returns, got a net")
    model = as_model(optimum, "optimum")
    encoder = getattr(optimum, "encoder", None)
    if encoder is None:
        raise TypeError(
            f"optimum: expected one with an affine encoder, got {type(optimum).__name__} without; "
            "one refined with offset, covariates, trials or missing entries has none"
        )
    expected = (vae.columns, vae.latent_dim)
    if np.shape(model.loadings) != expected:
        raise ValueError(
            f"optimum: expected loadings of shape {expected}, as the net has, got {np.shape(model.loadings)}"
        )
    if model.family != vae.family:
        raise ValueError(f"optimum: expected one of the net's family, {vae.family!r}, got {model.family!r}")
    if model.coefficients is not None:
        raise ValueError("optimum: expected one without covariates, which nets do not take")
    require_density(model, "optimum")
    names = ("weight", "bias", "covariance")
    parts = {"loadings": model.loadings, "intercept": model.intercept, **{n: getattr(encoder, n) for n in names}}
    for name, part in parts.items():
        _checks.finite(part, f"optimum.{name}")
    # In double precision: what standardising takes away and the bias gives back may be large
    loadings, intercept, weight, bias, covariance = (np.asarray(part, float) for part in parts.values())
    if vae.standardise is not None:
        mean, deviation = (np.asarray(part, float) for part in vae.standardise)
        weight, bias = weight * deviation, bias + weight @ mean
    return _Maps(loadings, intercept, weight, bias, _raw_scale(vae, covariance))


def _raw_scale(vae: VAE, covariance: np.ndarray) -> np.ndarray:
    """What the scale layer must return for that covariance."""
    if not vae.full_covariance:
        return raw_log_variance(np.log(np.diagonal(covariance)), vae.most_log_variance)
    factor = np.linalg.cholesky(covariance)
    lower = factor[np.tril_indices(vae.latent_dim, -1)]
    return np.concatenate([raw_log_variance(2 * np.log(np.diagonal(factor)), vae.most_log_variance), lower])


def _require_width(widths: tuple[int, ...], least: int, name: str, which: str, why: str) -> None:
    for width in widths:
        if width < least:
            raise ValueError(f"{name}: expected {which} hidden width to be at least {least}, {why}, got {width}")
