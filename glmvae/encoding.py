"""The affine encoder of an optimum, and the posteriors of rows that it gives."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae.blocks import per_row
from glmvae.families import Family
from glmvae.model import as_model
from glmvae.rows import Rows
from glmvae.sources import as_source
from glmvae.statistics.moment_checks import in_precision
from glmvae.statistics.residuals import brings_residuals, encoder_input
from glmvae.variational import Posterior

# Posterior means that rounding moves by more than that are worth a word.
_MOVED = 0.01


class Encoder(NamedTuple):
    """An affine encoder: mu_z = weight r + bias + coefficients' covariates, one covariance for all rows.

    It acts on the working residual r: x itself; with an offset o, x less what the offset explains, mu(o) - mu(0); with
    trials an entry x - mu(o).

    Fields:
        weight: (kappa, d).
        bias: (kappa,).
        covariance: Sigma_z, (kappa, kappa).
        coefficients: (p, kappa), of known covariates; None without.
    """

    weight: Float[Array, "k d"]
    bias: Float[Array, " k"]
    covariance: Float[Array, "k k"]
    coefficients: Float[Array, "p k"] | None = None

    def __repr__(self) -> str:
        if np.ndim(self.weight) != 2:
            return f"Encoder(weight={self.weight}, bias={self.bias}, ...)"
        units, columns = np.shape(self.weight)
        also = "" if self.coefficients is None else f", {_checks.counted(np.shape(self.coefficients)[0], 'covariate')}"
        return f"Encoder({_checks.counted(columns, 'column')}, {_checks.counted(units, 'latent unit')}{also})"


def posterior(optimum: Any, x: Any) -> Posterior:
    """The optimal posterior of rows, new ones too: the affine encoder (19), (20).

    Args:
        optimum: from :func:`fit`. Of a refined optimum it is the best affine encoder for the exact ELBO, and
            :func:`~glmvae.ascent.best_posterior` is better.
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`, with the covariates and trials
            that the optimum was fit with, and an offset where its expansion takes one.

    Returns:
        :class:`~glmvae.variational.Posterior` with mean (N, kappa) and one covariance (1, kappa, kappa).

    Raises:
        ValueError: rows of another width than the optimum's columns, NaN or infinity, not a matrix, values out of the
            support; missing entries; covariates or trials that are missing or have no use; an offset where the optimum
            is at another expansion point, is refined, or has a family without a closed form.
        TypeError: not numbers; an optimum that is none.

    Exactness: the maximum over all Gaussian posteriors of L-hat at the optimum's decoder; for Gaussian the exact
    posterior raised to beta. Where trials differ from row to row it is that of the column's largest: a posterior of the
    bound, and ``best_posterior`` is better.

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
    model, encoder = as_model(optimum, "optimum"), optimum.encoder
    if encoder is None:
        raise ValueError(
            "optimum: it has no affine encoder, its rows brought what none can follow; use `best_posterior`"
        )
    source = as_source(x, columns=model.loadings.shape[0], like=optimum)
    family = in_precision(model.family, encoder.weight.dtype)
    warn_of_rounding(encoder)
    mean = per_row(
        _encoded if _takes_residuals(optimum, model.family) else _encoded_plain,
        source,
        encoder,
        family,
        family=family,
        num_covariates=model.decoder.num_covariates,
    )
    covariance = encoder.covariance
    numpy: Any = np if _checks.concrete(covariance) else jnp
    return Posterior(mean, jax.device_put(numpy.asarray(covariance)[None]))


def check_optimum(optimum: Any) -> None:
    """An affine optimum: what fit returns, or whatever has the same fields."""
    if not all(hasattr(optimum, name) for name in ("model", "encoder", "eigenvalues")):
        raise TypeError(f"optimum: expected an AffineOptimum (see glmvae.fit), got {type(optimum).__name__}")


def _takes_residuals(optimum: Any, family: Family) -> bool:
    """Whether the encoder acts on working residuals: it is that of an expansion at 0, or beside an offset or trials.

    Under a transformation the point does not tell, what the rows of the optimum brought does.
    """
    if not hasattr(optimum, "expansion_point"):
        return False
    if family.is_quadratic or family.needs_trials or "offset" in (getattr(optimum, "brought", None) or ()):
        return True
    return _checks.concrete(optimum.expansion_point) and not np.any(np.asarray(optimum.expansion_point))


def warn_of_rounding(encoder: Encoder) -> None:
    """Say so of data far from 0: bias and weight times x are large, and what is left of their sum is rounding."""
    if not _checks.concrete(encoder) or np.ndim(encoder.bias) != 1 or not np.size(encoder.bias):
        return
    bias = np.asarray(encoder.bias)
    moved = float(np.max(np.abs(bias)) * np.finfo(bias.dtype).eps)
    if moved > _MOVED:
        warnings.warn(
            f"posterior: x is so far from 0 beside its spread that {bias.dtype} moves posterior means by {moved:.2g}; "
            "centre its columns before `fit`, or enable jax_enable_x64",
            stacklevel=3,
        )


def _encoded(rows: Rows, _: None, encoder: Encoder, family: Family) -> tuple[None, Array]:
    return None, affine_means(encoder, rows, encoder_input(family, rows))


def _encoded_plain(rows: Rows, _: None, encoder: Encoder, family: Family) -> tuple[None, Array]:
    if brings_residuals(family, rows):
        raise ValueError(
            "offset: this optimum's encoder knows x alone (it is refined, or expands elsewhere than at 0), so neither "
            "an offset nor trials; `best_posterior` takes them"
        )
    return None, affine_means(encoder, rows, rows.x)


def affine_means(encoder: Encoder, rows: Rows, residual: Array) -> Array:
    """The posterior means of rows without missing entries, from their working residuals."""
    if rows.missing is not None:
        raise ValueError("missing: an affine encoder needs every entry; `affine_posterior` and `best_posterior` do not")
    mean = residual @ encoder.weight.T + encoder.bias[None]
    return mean if encoder.coefficients is None else mean + rows.covariates @ encoder.coefficients
