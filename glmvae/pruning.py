"""Which latent units stay active, at which beta, and when the posterior collapses.

    A_j = (1 - beta / lambda_j)+                                                    (21)

is the variance over the data of the posterior mean of unit j (Burda's statistic) at the closed-form optimum, lambda_j
the eigenvalues of the whitened covariance. Everything here comes from one eigendecomposition.

What is a theorem and what is not: at the optimum of L-hat the activities are exact. That all units of the *exact*
beta-ELBO are pruned (posterior collapse) is a local optimum exactly from ``collapse_onset`` on. Between, the count of
lambda_j > beta predicts the exact ELBO's active units; it is no theorem.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae.expansion import expansion_point
from glmvae.families import Family
from glmvae.moments import Moments
from glmvae.optimum import (
    AffineOptimum,
    _check_moments,
    check_optimum,
    dispersion_of,
    gaussian_dispersion,
    whitened_spectrum,
    without_rounding,
)


def activity(optimum: AffineOptimum) -> Float[Array, " k"]:
    """A_j = (1 - beta / lambda_j)+ of every latent unit (21): 0 is pruned, near 1 is all signal.

    Args:
        optimum: from :func:`~glmvae.optimum.fit`.

    Returns:
        (kappa,), descending.

    Raises:
        TypeError: an optimum that is none.

    Exactness: the variance over the data of the posterior mean, exact at the optimum of L-hat.

    Example:
        >>> from glmvae import activity, fit, moments
        >>> from glmvae.families import Gaussian
        >>> data = moments([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]])
        >>> print(activity(fit(data, Gaussian(), 2, dispersion=1.0, beta=2.0)))
        [0.5 0. ]

    Source: (21); Burda et al. (2015).
    """
    check_optimum(optimum)
    return _activity(optimum.eigenvalues[: optimum.loadings.shape[1]], optimum.beta)


def _activity(eigenvalues: Array, beta: Array) -> Array:
    active = eigenvalues > beta
    return jnp.where(active, 1 - beta / jnp.where(active, eigenvalues, 1.0), 0.0)


def activity_path(
    moments: Moments,
    family: Family,
    betas: ArrayLike,
    latent_dim: int,
    *,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> Float[Array, "b k"]:
    """The activities (21) over a grid of beta, from one eigendecomposition.

    Args:
        moments: of the data.
        family: the observation model.
        betas: (B,), positive.
        latent_dim: kappa.
        dispersion, expand_at: as in :func:`~glmvae.optimum.fit`; an estimated dispersion is estimated for each beta.

    Returns:
        (B, kappa): row i is ``activity(fit(moments, family, latent_dim, beta=betas[i], ...))``.

    Raises:
        ValueError, TypeError: as ``fit``; betas that are not a vector of positive numbers.

    Exactness: as :func:`activity`.

    Example:
        >>> from glmvae import activity_path, moments
        >>> from glmvae.families import Gaussian
        >>> data = moments([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]])
        >>> print(activity_path(data, Gaussian(), [1.0, 2.0, 4.0], 1, dispersion=1.0))
        [[0.75]
         [0.5 ]
         [0.  ]]

    Source: (21), figure 2.
    """
    data, eta0, phi = _arguments(moments, family, dispersion, expand_at)
    latent_dim = _checks.latent_dim(latent_dim, data.mean.shape[0])
    grid = _checks.numeric(betas, "betas").astype(data.mean.dtype)
    if grid.ndim != 1 or not grid.size:
        raise ValueError(f"betas: expected a vector, got shape {grid.shape}")
    if _checks.concrete(grid):
        bad = ~(np.isfinite(np.asarray(grid)) & (np.asarray(grid) > 0))
        if bad.any():
            raise ValueError(
                f"betas: expected positive finite numbers, got {float(grid[bad][0]):g} at {_checks.first_index(bad)}"
            )
    return _path(data, family, grid, phi, eta0, latent_dim=latent_dim)


@partial(jax.jit, static_argnames="latent_dim")
def _path(data: Moments, family: Family, betas: Array, phi: Array | None, eta0: Array, *, latent_dim: int) -> Array:
    values = _eigenvalues(data, family, phi, eta0)

    def at(beta: Array) -> Array:
        if phi is not None:
            return _activity(values[:latent_dim], beta)
        unit = gaussian_dispersion(values, latent_dim, beta)
        return _activity(jnp.where(unit > 0, values, without_rounding(values))[:latent_dim], beta * unit)

    return jax.vmap(at)(betas)


def _eigenvalues(data: Moments, family: Family, phi: Array | None, eta0: Array) -> Array:
    return whitened_spectrum(data, family, eta0, jnp.ones((), eta0.dtype) if phi is None else phi).eigenvalues


def beta_for_active_units(
    moments: Moments,
    family: Family,
    units: int,
    *,
    latent_dim: int | None = None,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> tuple[float, float]:
    """The interval of beta that leaves just ``units`` latent units active at the closed-form optimum.

    Args:
        moments: of the data.
        family: the observation model.
        units: wanted number of active units, 0 to ``latent_dim``.
        latent_dim: kappa; None is the number of columns.
        dispersion, expand_at: as in :func:`~glmvae.optimum.fit`.

    Returns:
        (lower, upper): every beta with lower <= beta < upper has ``units`` active units; empty (lower == upper) where
        two eigenvalues are equal. With as many units as ``latent_dim`` the lower end is 0 (excluded, since beta > 0);
        with none the upper end is infinite.

    Raises:
        ValueError, TypeError: as ``fit``; units out of range or not an integer.

    Exactness: exact for the optimum of L-hat.

    Example:
        >>> from glmvae import beta_for_active_units, moments
        >>> from glmvae.families import Gaussian
        >>> data = moments([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]])
        >>> beta_for_active_units(data, Gaussian(), 1, dispersion=1.0)
        (1.0, 4.0)

    Source: (17) read backwards; for an estimated dispersion with (18).
    """
    data, eta0, phi = _arguments(moments, family, dispersion, expand_at)
    d = data.mean.shape[0]
    latent_dim = d if latent_dim is None else _checks.latent_dim(latent_dim, d)
    units = _checks.latent_dim(units, latent_dim, "units", of="latent units", least=0)
    spectrum = _eigenvalues(data, family, phi, eta0)
    values = np.asarray(without_rounding(spectrum) if phi is None else spectrum, np.float64)
    rest = float(values[units:].sum())

    def leaves(value: float) -> float:
        """The beta at which an eigenvalue meets the cut-off while ``units`` are active."""
        if phi is not None:
            return value
        # value = beta sigma^2 with sigma^2 = rest / (d - beta units)
        return d * value / (rest + units * value) if value > 0 else 0.0

    lower = 0.0 if units == latent_dim else leaves(float(values[units]))
    upper = np.inf if units == 0 else leaves(float(values[units - 1]))
    return lower, float(upper)


def collapse_onset(moments: Moments, family: Family, *, dispersion: ArrayLike | None = None) -> Float[Array, ""]:
    """The beta from which posterior collapse (W = 0) is a local optimum of the exact beta-ELBO.

    It is the largest eigenvalue of the covariance of the Pearson residuals (x - mu) / sqrt(phi F'') of the
    intercept-only GLM: for Bernoulli data that are 0 or 1, of the correlation matrix.

    Args:
        moments: of the data.
        family: the observation model.
        dispersion: phi; None as in :func:`~glmvae.optimum.fit`, for Gaussian the mean variance of a column, which is
            the estimate where all units are pruned.

    Returns:
        beta, a scalar; 0 if no column varies.

    Raises:
        ValueError, TypeError: as ``fit``.

    Exactness: exact, for the beta-ELBO itself and not only for L-hat: below it some W != 0 is better than W = 0,
    from it on no small one is. A column whose mean is at an end of the support does not vary and takes no part.

    Example:
        >>> from glmvae import collapse_onset, moments
        >>> from glmvae.families import Bernoulli
        >>> print(collapse_onset(moments([[0.0, 0.0], [1.0, 1.0]]), Bernoulli()))
        2.0

    Source: not in the paper; second-order perturbation of (1) at W = 0.
    """
    data, eta0, phi = _arguments(moments, family, dispersion, "null")
    values = _eigenvalues(data, family, phi, eta0)
    if phi is not None:
        return values[0]
    total = jnp.sum(values)
    return jnp.where(total > 0, values[0] * values.shape[0] / jnp.where(total > 0, total, 1.0), 0.0)


def _arguments(
    moments: Moments, family: Family, dispersion: ArrayLike | None, expand_at: ArrayLike | str
) -> tuple[Moments, Array, Array | None]:
    _checks.family(family)
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: expected Moments (see glmvae.moments), got {type(moments).__name__}")
    data = _check_moments(moments)
    phi = dispersion_of(family, dispersion, data.mean)
    return data, expansion_point(expand_at, family, data.mean), phi
