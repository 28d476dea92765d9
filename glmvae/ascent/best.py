"""The best posteriors of rows for a given decoder, new rows too."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from glmvae import _settings
from glmvae.ascent.passes import exact_steps
from glmvae.ascent.row_posteriors import no_change, prior_like
from glmvae.blocks import per_row
from glmvae.model import as_model, require_density
from glmvae.sources import as_source
from glmvae.variational import Posterior


def best_posterior(model: Any, x: ArrayLike, *, tolerance: float = 1e-6, max_steps: int = 500) -> Posterior:
    """The posteriors of rows, new ones too, that maximise the exact beta-ELBO of a given decoder.

        Sigma_i = (I + W' diag(w_i) W / beta)^-1,     mu_i = W' g_i / beta

    with g_ij and -w_ij the first two derivatives of E log p(x_ij) in the mean of eta_ij.

    Args:
        model: an :class:`~glmvae.model.AffineModel`, or what :func:`~glmvae.optimum.fit` or
            :func:`~glmvae.ascent.refine` return.
        x: data, (N, d), :class:`~glmvae.rows.Rows` with offset, covariates, trials or missing entries (a row may be
            missing altogether), or a source.
        tolerance: nats; a row is done when a step gains less, or less than a few rounding units of its ELBO.
        max_steps: steps, at most.

    Returns:
        :class:`~glmvae.variational.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

    Raises:
        ValueError, TypeError: no model; rows of another width, out of the support, or that do not bring the
            covariates of the decoder; tolerance or max_steps not positive.

    Exactness: the maximum over all Gaussian posteriors where log p is concave in eta (all built-in families), to
    within the tolerance where ``max_steps`` are enough: most rows take a few, one of large counts under large loadings
    may take many.

    Example:
        >>> import numpy as np
        >>> from glmvae import Rows, best_posterior, fit
        >>> from glmvae.families import Poisson
        >>> x = np.random.default_rng(0).poisson(2.0, size=(200, 4)).astype("float32")
        >>> start = fit(x, Poisson(), 2, expand_at="null")
        >>> hidden = np.isin(np.arange(4), [1]) & np.ones((200, 1), bool)
        >>> best_posterior(start, Rows(x, missing=hidden)).covariance.shape
        (200, 2, 2)
    """
    _settings.positive(tolerance, "tolerance")
    max_steps = _settings.integer(max_steps, "max_steps")
    like, model = model, require_density(as_model(model))
    source = as_source(x, columns=model.loadings.shape[0], like=like)
    decoder, dtype = model.decoder, model.loadings.dtype
    return per_row(
        exact_steps,
        source,
        decoder,
        model.objective,
        no_change(decoder),
        np.int32(max_steps),
        np.asarray(tolerance, dtype),
        family=model.family,
        num_covariates=decoder.num_covariates,
        given=prior_like(decoder),
        threads=True,
    )
