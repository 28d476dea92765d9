"""The closed-form optimum of L-hat over affine decoders and Gaussian posteriors: probabilistic PCA, whitened.

:mod:`glmvae.spectral` has the formulas, (15)-(20). The data enter through their mean and covariance alone. The rotation
R of (16) is the identity.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from glmvae import _checks, _settings
from glmvae._frames import ColumnNames, listed, names_for
from glmvae.decomposition import noise_beside
from glmvae.encoding import Encoder as Encoder
from glmvae.encoding import check_optimum as check_optimum
from glmvae.encoding import posterior as posterior
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.model import Affine, AffineModel, Objective, unchecked
from glmvae.rows import Brought
from glmvae.solution import Solution, solve
from glmvae.sources import as_source, brought_by
from glmvae.spectral import Spectrum, spectrum_of, whitening_on_host
from glmvae.statistics import Moments, as_moments
from glmvae.statistics.residuals import is_bounded

# What part of a dispersion rounding may make up without a word; how many nats of L-hat, and what part of it.
_UNCERTAIN = 0.1
_SHARE = 1e-3


class AffineOptimum(NamedTuple):
    """An affine decoder eta = W z + b with its optimal affine encoder; a pytree of arrays.

    Fields:
        model: the decoder and what it is for; columns of loadings of pruned units are 0.
        encoder: the optimal :class:`Encoder`.
        eigenvalues: of the whitened covariance S~, all d, descending; a unit is active where they exceed beta.
        elbo_taylor: L-hat at the optimum, nats per row. Without a base statistic in the moments it lacks
            the mean log base measure of binomial, Poisson and custom families.
        expansion_point: eta0, (d,); added to an offset.
        dispersion_estimated: whether phi was part of what was maximised.
        column_names: of a table's columns; None of an array and of moments. Rows with other names are refused.
        covariate_names: of a table's covariates, likewise.
        brought: ``("offset",)`` where the rows brought one: rows without are refused, zeros are taken; None where they
            did not, and of moments with trials an entry. No leaf of the pytree; ``.model`` does not know it.
    """

    model: AffineModel
    encoder: Encoder
    eigenvalues: Float[Array, " d"]
    elbo_taylor: Float[Array, ""]
    expansion_point: Float[Array, " d"]
    dispersion_estimated: Bool[Array, ""]
    column_names: ColumnNames | None = None
    covariate_names: ColumnNames | None = None
    brought: Brought | None = None

    @property
    def decoder(self) -> Affine:
        """eta = W z + b."""
        return self.model.decoder

    @property
    def family(self) -> Family:
        """The observation model."""
        return self.model.family

    @property
    def loadings(self) -> Float[Array, "d k"]:
        """W."""
        return self.model.loadings

    @property
    def intercept(self) -> Float[Array, " d"]:
        """b."""
        return self.model.intercept

    @property
    def beta(self) -> Float[Array, ""]:
        """Weight of the KL divergence."""
        return self.model.beta

    @property
    def dispersion(self) -> Float[Array, "*d"]:
        """phi, a scalar or (d,)."""
        return self.model.dispersion

    def __repr__(self) -> str:
        if not _checks.concrete(self) or np.ndim(self.loadings) != 2:
            return f"AffineOptimum(loadings={self.loadings}, intercept={self.intercept}, ...)"
        columns, units = np.shape(self.loadings)
        values, beta, phi = (np.asarray(v) for v in (self.eigenvalues, self.beta, self.dispersion))
        active = int(np.sum(values[:units] > beta))
        shown = f"{float(phi):.6g}" if phi.ndim == 0 else f"{phi.min():.6g} to {phi.max():.6g}"
        leading = ", ".join(f"{v:.4g}" for v in values[: min(max(units, 1), 5)].tolist())
        size = f"{_checks.counted(columns, 'column')}, {_checks.counted(units, 'latent unit')}"
        return (
            f"AffineOptimum: {size}, {active} active at beta = {float(beta):g}\n"
            f"  L-hat        {float(self.elbo_taylor):.6g} nats per row, {_side(self)}\n"
            f"  dispersion   {shown}\n"
            f"  eigenvalues  {leading}{', ...' if columns > min(max(units, 1), 5) else ''} (cut-off {float(beta):g})"
            f"{listed(self.column_names)}"
        )


def _side(optimum: AffineOptimum) -> str:
    """What L-hat is to the ELBO."""
    family = optimum.family
    members = [family.of_column(j) for j in range(family.columns or 1)]
    if all(member.is_quadratic for member in members):
        return "the ELBO itself"
    at_zero = not np.any(np.asarray(optimum.expansion_point))
    bounded = at_zero and all(member.is_quadratic or is_bounded(member) for member in members)
    return "a lower bound of the ELBO" if bounded else "an approximation of the ELBO"


def fit(
    x: Any,
    family: Family,
    latent_dim: int,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
) -> AffineOptimum:
    """The closed-form optimum of L-hat, (15)-(20).

    Args:
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`; or their
            :class:`~glmvae.statistics.Moments`. Covariates are taken by least squares, jointly optimal with the rest;
            an offset by Gaussian, Bernoulli and binomial, whose trials may be one an entry.
        family: the observation model.
        latent_dim: number of latent units [kappa], from 0 (the intercept-only GLM) to d.
        beta: weight of the KL divergence, positive.
        dispersion: phi, positive, a scalar or (d,). None: 1 for the families that fix it, the joint maximum
            for Gaussian (:func:`~glmvae.spectral.gaussian_dispersion`). A value other than 1 for a family that fixes it
            is quasi-likelihood: the same as a beta larger by that factor.
        expand_at: where to expand, see :func:`~glmvae.expansion.expansion_point`; with an offset or trials an entry
            only ``"zero"``, which is then eta = offset.

    Returns:
        :class:`AffineOptimum`.

    Raises:
        ValueError: bad data (NaN, infinity, out of support, not a matrix, no rows, missing entries), latent_dim out of
            range, beta or dispersion not positive, dispersion missing where the family needs it, a bad ``expand_at``,
            an offset that the family has no closed form with, covariates that are collinear; moments of another family.
        TypeError: arguments that are not numbers; latent_dim not an integer; no family.

    Exactness: the global maximum of L-hat over loadings, intercept, coefficients and Gaussian posteriors. L-hat itself
    is the beta-ELBO for Gaussian, a lower bound of it for Bernoulli and binomial at ``"zero"``, otherwise an
    approximation. Gaussian data that fill at most ``latent_dim`` dimensions, and fewer than d / beta, have no finite
    optimum when the dispersion is estimated: the limit is returned, dispersion 0 and L-hat infinite. Where float32 does
    not tell it from little noise it warns, and where L-hat of a given dispersion loses its digits likewise. Under
    ``jit`` bad values give NaN, nothing warns, and what is small beside columns of far larger scale has the digits of
    the precision in use: float64 is for those.

    Cost: one pass over the data, O(N d^2), and one eigendecomposition, O(d^3); nothing of size N is kept.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit
        >>> from glmvae.families import Bernoulli
        >>> x = (np.random.default_rng(0).normal(size=(500, 1)) > np.zeros(6)).astype("float32")
        >>> fit(x, Bernoulli(), 2)
        AffineOptimum: 6 columns, 2 latent units, 1 active at beta = 1
          L-hat        -2.55... nats per row, a lower bound of the ELBO
          dispersion   1
          eigenvalues  5.986, 0, ... (cut-off 1)

    Source: section 3.4; Tipping and Bishop (1999) for the eigenvalue argument; Boehning (1992) for the bound with an
    offset.
    """
    check_family(family)
    if not isinstance(x, Moments):
        _settings.integer(latent_dim, "latent_dim", least=0)  # before a pass over the rows
    source = x if isinstance(x, Moments) else as_source(x)
    data = as_moments(source, family)
    latent_dim = _settings.latent_dim(latent_dim, data.mean.shape[0], least=0)
    beta = _settings.positive(beta, "beta", dtype=data.mean.dtype)
    names = names_for(source)
    spectrum = spectrum_of(data, family, dispersion, expand_at, max(latent_dim, 1), names["covariate_names"])
    found = _optimum(spectrum, latent_dim, beta, None)
    return found._replace(**names, brought=brought_by(data if source is x else source))


def optimum_at(
    spectrum: Spectrum, latent_dim: int, *, beta: float | Array = 1.0, dispersion: ArrayLike | None = None
) -> AffineOptimum:
    """The closed-form optimum that a spectrum says for one kappa and beta, without another decomposition.

    Args:
        spectrum: from :func:`~glmvae.spectral.spectrum`.
        latent_dim: number of latent units [kappa], from 0 to that of the spectrum's vectors.
        beta: weight of the KL divergence, positive.
        dispersion: of a spectrum whose dispersion is open (Gaussian), a positive scalar; None estimates it.

    Returns:
        :class:`AffineOptimum`, what :func:`fit` returns for the same arguments.

    Raises:
        ValueError: latent_dim out of range; beta or dispersion not positive; a dispersion where the spectrum has one.
        TypeError: no spectrum; arguments that are not numbers.

    Exactness: as :func:`fit`.

    Example:
        >>> from glmvae import optimum_at, spectrum
        >>> from glmvae.families import Gaussian
        >>> s = spectrum([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]], Gaussian())
        >>> print(optimum_at(s, 1).dispersion, optimum_at(s, 1, beta=2.0, dispersion=1.0).eigenvalues)
        1.0 [4. 1.]

    Source: section 3.4.
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum: expected a Spectrum (see glmvae.spectrum), got {type(spectrum).__name__}")
    latent_dim = _settings.latent_dim(latent_dim, spectrum.vectors.shape[1], of="vectors of the spectrum", least=0)
    dtype = spectrum.values.dtype
    beta = _settings.positive(beta, "beta", dtype=dtype)
    if dispersion is None:
        return _optimum(spectrum, latent_dim, beta, None)
    if spectrum.dispersion is not None:
        raise ValueError("dispersion: the spectrum has its own; give it to `spectrum`")
    return _optimum(spectrum, latent_dim, beta, _settings.positive(dispersion, "dispersion", dtype=dtype))


def _optimum(spectrum: Spectrum, latent_dim: int, beta: Array, dispersion: Array | None) -> AffineOptimum:
    found = solve(spectrum, latent_dim, beta, dispersion)
    _warn_of_rounding(spectrum, found)
    decoder = unchecked(Affine, loadings=found.loadings, intercept=found.intercept, coefficients=found.coefficients)
    # A dispersion of 0, the limit of data that fill few dimensions, is no argument one could give.
    objective = unchecked(Objective, family=spectrum.family, beta=beta, dispersion=found.dispersion)
    return AffineOptimum(
        unchecked(AffineModel, decoder=decoder, objective=objective),
        Encoder(found.encoder_weight, found.encoder_bias, found.covariance, found.encoder_coefficients),
        found.eigenvalues,
        found.elbo,
        spectrum.expansion_point,
        np.asarray(spectrum.dispersion is None and dispersion is None),  # type: ignore[arg-type]
    )


def _warn_of_rounding(spectrum: Spectrum, found: Solution) -> None:
    """Single precision does not tell what is left of the data from 0 where their columns are large beside it."""
    if not _checks.concrete((spectrum, found)) or spectrum.values.dtype != np.float32:
        return
    values, vectors = np.asarray(spectrum.values), np.asarray(spectrum.vectors)
    active = int(np.count_nonzero(np.diagonal(np.asarray(found.covariance)) < 1))
    variance = np.diagonal(np.asarray(spectrum.moments.covariance)) * whitening_on_host(spectrum.quadratic) ** 2
    noise = noise_beside(variance, vectors[:, :active], np.finfo(values.dtype).eps)
    if spectrum.dispersion is None:
        left = float(values[active:].sum() + np.asarray(spectrum.rest))
        off = f"be off by {noise / left:.0%}" if left > 0 else "not be 0, nor L-hat infinite"
        what = f"the dispersion, {float(found.dispersion):.3g}, may {off}" if noise > _UNCERTAIN * left else ""
    else:  # L-hat has half of what is left
        least = max(_UNCERTAIN, _SHARE * abs(float(found.elbo)))
        what = f"L-hat may be off by {0.5 * noise:.2g} nats" if 0.5 * noise > least else ""
    if what:
        warnings.warn(
            f"fit: {what}: {values.dtype} does not tell what is left of the data beside "
            f"{_checks.counted(active, 'latent unit')} from rounding; take fewer, or enable jax_enable_x64",
            stacklevel=4,
        )
