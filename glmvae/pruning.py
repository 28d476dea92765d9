"""Which latent units stay active, at which beta, and when the posterior collapses.

    A_j = (1 - beta / lambda_j)+                                                    (21)

is the variance over the data of the posterior mean of unit j (Burda's statistic) at the closed-form optimum, lambda_j
the eigenvalues of the whitened covariance. Everything here comes from one eigendecomposition.

What is a theorem and what is not: at the optimum of L-hat the activities are exact. That all units of the *exact*
beta-ELBO are pruned (posterior collapse) is a local optimum exactly from ``collapse_onset`` on. Between, the count of
lambda_j > beta predicts the exact ELBO's active units; it is no theorem.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.optimum import check_optimum
from glmvae.spectral import Spectrum, as_concrete, dispersion_at, spectrum_of
from glmvae.statistics import Moments, as_moments


def activity(optimum: Any) -> Float[Array, " k"]:
    """A_j = (1 - beta / lambda_j)+ of every latent unit (21): 0 is pruned, near 1 is all signal.

    Args:
        optimum: from :func:`~glmvae.optimum.fit`, or a refined one.

    Returns:
        (kappa,), descending; after a rotation in the order of its factors.

    Raises:
        TypeError: an optimum that is none.

    Exactness: the variance over the data of the posterior mean, exact at the optimum of L-hat. Where trials differ from
    row to row it is that of the whitened responses at the column's largest.

    Example:
        >>> from glmvae import activity, fit, moments
        >>> from glmvae.families import Gaussian
        >>> data = moments([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]])
        >>> print(activity(fit(data, Gaussian(), 2, dispersion=1.0, beta=2.0)))
        [0.5 0. ]

    Source: (21); Burda et al. (2015).
    """
    check_optimum(optimum)
    values, beta, units = optimum.eigenvalues, optimum.beta, optimum.loadings.shape[1]
    numpy: Any = np if _checks.concrete((values, beta)) else jnp  # where it compiles nothing
    return jax.device_put(_activity(numpy.asarray(values)[:units], numpy.asarray(beta, values.dtype)))


def _activity(eigenvalues: Any, beta: Any) -> Any:
    """Of NumPy's arrays as NumPy has it."""
    numpy: Any = np if isinstance(eigenvalues, np.ndarray) else jnp
    active = ~(eigenvalues <= beta)  # NaN stays NaN
    return numpy.where(active, 1 - beta / numpy.where(active, eigenvalues, 1.0), 0.0)


def activity_path(
    x: Any,
    family: Family,
    betas: ArrayLike,
    latent_dim: int,
    *,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> Float[Array, "b k"]:
    """The activities (21) over a grid of beta, from one eigendecomposition.

    Args:
        x: data, or their :class:`~glmvae.statistics.Moments`, as in :func:`~glmvae.optimum.fit`.
        family: the observation model.
        betas: (B,), positive.
        latent_dim: kappa.
        dispersion, expand_at: as in :func:`~glmvae.optimum.fit`; an estimated dispersion is estimated for each beta.

    Returns:
        (B, kappa): row i is ``activity(fit(x, family, latent_dim, beta=betas[i], ...))``.

    Raises:
        ValueError, TypeError: as ``fit``; betas that are not a vector of positive numbers.

    Exactness: as :func:`activity`.

    Example:
        >>> from glmvae import activity_path
        >>> from glmvae.families import Gaussian
        >>> x = [[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]]
        >>> print(activity_path(x, Gaussian(), [1.0, 2.0, 4.0], 1, dispersion=1.0))
        [[0.75]
         [0.5 ]
         [0.  ]]

    Source: (21), figure 2.
    """
    data = _data(x, family)
    columns, dtype = data.mean.shape[0], data.mean.dtype
    latent_dim = _settings.latent_dim(latent_dim, columns, least=0)
    grid = _settings.positive_vector(betas, "betas", dtype)
    found = spectrum_of(data, family, dispersion, expand_at, 1)
    with as_concrete((found, grid)):
        path = _path(found, latent_dim, grid)
        return path[:, :latent_dim]


@jax.jit
def _path(spectrum: Spectrum, latent_dim: Array, betas: Array) -> Array:
    values, columns = spectrum.values, spectrum.vectors.shape[0]

    def at(beta: Array) -> Array:
        if spectrum.dispersion is not None:
            return _activity(values, beta)
        return _activity(values, beta * dispersion_at(values, spectrum.rest, columns, latent_dim, beta))

    return jax.vmap(at)(betas)


def beta_for_active_units(
    x: Any,
    family: Family,
    units: int,
    *,
    latent_dim: int | None = None,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> tuple[float, float]:
    """The interval of beta that leaves just ``units`` latent units active at the closed-form optimum.

    Args:
        x: data, or their :class:`~glmvae.statistics.Moments`, as in :func:`~glmvae.optimum.fit`.
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
        >>> from glmvae import beta_for_active_units
        >>> from glmvae.families import Gaussian
        >>> x = [[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]]
        >>> beta_for_active_units(x, Gaussian(), 1, dispersion=1.0)
        (1.0, 4.0)

    Source: (17) read backwards; for an estimated dispersion with (18).
    """
    data = _data(x, family)
    if not _checks.concrete(data):
        raise TypeError(
            "x: `beta_for_active_units` returns Python numbers, so it is not for use under a transformation"
        )
    d = data.mean.shape[0]
    latent_dim = d if latent_dim is None else _settings.latent_dim(latent_dim, d, least=0)
    units = _settings.latent_dim(units, latent_dim, "units", of="latent units", least=0)
    return betas_leaving(spectrum_of(data, family, dispersion, expand_at, 1), units, latent_dim)


def betas_leaving(spectrum: Spectrum, units: int, latent_dim: int) -> tuple[float, float]:
    """:func:`beta_for_active_units` of a spectrum, its arguments checked."""
    d = np.shape(spectrum.vectors)[0]
    values = np.asarray(spectrum.values, np.float64)
    rest = float(values[units:].sum() + np.asarray(spectrum.rest))

    def leaves(value: float) -> float:
        """The beta at which an eigenvalue meets the cut-off while ``units`` are active."""
        if spectrum.dispersion is not None:
            return value
        # value = beta sigma^2 with sigma^2 = rest / (d - beta units)
        return d * value / (rest + units * value) if value > 0 else 0.0

    lower = 0.0 if units == latent_dim else leaves(float(values[units]))
    upper = np.inf if units == 0 else leaves(float(values[units - 1]))
    return lower, float(upper)


def collapse_onset(x: Any, family: Family, *, dispersion: ArrayLike | None = None) -> Float[Array, ""]:
    """The beta from which posterior collapse (W = 0) is a local optimum of the exact beta-ELBO.

    It is the largest eigenvalue of the covariance of the Pearson residuals (x - mu) / sqrt(phi F'') of the
    intercept-only GLM: for Bernoulli data that are 0 or 1, of the correlation matrix.

    Args:
        x: data, or their :class:`~glmvae.statistics.Moments`, as in :func:`~glmvae.optimum.fit`.
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
        >>> from glmvae import collapse_onset
        >>> from glmvae.families import Bernoulli
        >>> print(collapse_onset([[0.0, 0.0], [1.0, 1.0]], Bernoulli()))
        2.0

    Source: not in the paper; second-order perturbation of (1) at W = 0.
    """
    data = _data(x, family)
    if data.at_offset is not None or data.covariates is not None:
        raise ValueError(
            "x: the onset is that of the intercept-only model, these moments know an offset, trials an entry or "
            "covariates; leave them out, or lower beta in `refine` until a unit is active"
        )
    found = spectrum_of(data, family, dispersion, "null", 1)
    with as_concrete(found):
        return onset_of(found)


def onset_of(spectrum: Spectrum) -> Array:
    """:func:`collapse_onset` of the spectrum at the null model."""
    numpy: Any = np if _checks.concrete(spectrum) else jnp  # where it compiles nothing
    values, columns = numpy.asarray(spectrum.values), spectrum.vectors.shape[0]
    onset = values[0]
    if spectrum.dispersion is None:
        mean = (numpy.sum(values) + numpy.asarray(spectrum.rest)) / columns
        onset = numpy.where(mean > 0, onset / numpy.where(mean > 0, mean, 1.0), 0.0)
    return jax.device_put(numpy.asarray(onset, values.dtype))


def _data(x: Any, family: Family) -> Moments:
    check_family(family)
    return as_moments(x, family)
