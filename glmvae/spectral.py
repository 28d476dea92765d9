"""The spectrum of the whitened working responses: one eigendecomposition, asked for any kappa, beta and dispersion.

With working responses y, weights G = diag(w) and the eigenpairs (lambda, U) of S~ = G^1/2 Cov(y) G^1/2, the beta-ELBO's
expansion is largest at

    b = mean y                                                                      (15)
    k_j = max(lambda_j, beta),   W = G^-1/2 U (K - beta I)^1/2                      (16), (17)
    Sigma_z = beta K^-1,   mu_z(x) = K^-1 (K - beta I)^1/2 U' G^1/2 (y - b)         (19), (20)
    L-hat = -1/2 [sum_{j<=kappa} (beta lambda_j / k_j + beta log(k_j / beta)) + sum_{j>kappa} lambda_j + D]

Covariates C enter by least squares of y on (1, C): the residual covariance is the smallest there is, so with the closed
form on it this is the joint optimum. The data enter through their moments alone.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae._frames import ColumnNames
from glmvae.decomposition import decompose as decompose
from glmvae.decomposition import decomposed
from glmvae.decomposition import signs as signs
from glmvae.expansion import expansion_point
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.quadratics import Quadratic as Quadratic
from glmvae.quadratics import expanded, least_squares, residual_covariance
from glmvae.statistics import Moments, as_moments
from glmvae.statistics.moment_checks import in_precision
from glmvae.statistics.residuals import with_trials

# Vectors that are known at least, the first of these that serves: another kappa between them compiles nothing.
_UNITS = (8, 32, 128, 512)


class Spectrum(NamedTuple):
    """The eigendecomposition of whitened working responses, with what it takes to read an optimum off it; a pytree.

    Fields:
        values: eigenvalues lambda, descending, (d,) or the leading ones; at phi = 1 where the dispersion is estimated.
        vectors: eigenvectors of the first of them, (d, v).
        rest: the sum of eigenvalues that are not among ``values``; ``trace`` is that of all.
        quadratic: the expansion averaged over rows; ``scale`` whitens x.
        moments: of the data.
        family: the observation model.
        dispersion: phi, or None where it is estimated.
        expansion_point: eta0, (d,).
        coefficients: least squares of x on the covariates, (p, d); None without.
        coupling: see :class:`~glmvae.decomposition.Decomposition`.
    """

    values: Float[Array, " m"]
    vectors: Float[Array, "d v"]
    rest: Float[Array, ""]
    quadratic: Quadratic
    moments: Moments
    family: Family
    dispersion: Float[Array, "*d"] | None
    expansion_point: Float[Array, " d"]
    coefficients: Float[Array, "p d"] | None = None
    coupling: Float[Array, "v v"] | None = None

    @property
    def scale(self) -> Float[Array, " d"]:
        """How far a whitened response moves with x, G^1/2 dy / dx."""
        return _scale(self.quadratic.weight, self.quadratic.slope)

    @property
    def trace(self) -> Float[Array, ""]:
        """The sum of all eigenvalues."""
        return jnp.sum(self.values) + self.rest

    def __repr__(self) -> str:
        if not _checks.concrete(self) or np.ndim(self.values) != 1:
            return f"Spectrum(values={self.values}, ...)"
        leading = ", ".join(f"{v:.4g}" for v in np.asarray(self.values)[:5].tolist())
        columns = np.shape(self.vectors)[0]
        phi = "estimated" if self.dispersion is None else "given"
        trace = float(np.sum(np.asarray(self.values)) + np.asarray(self.rest))
        return (
            f"Spectrum: {_checks.counted(columns, 'column')}, {self.family!r}, dispersion {phi}\n"
            f"  eigenvalues  {leading}{', ...' if columns > 5 else ''} (trace {trace:.4g})"
        )


def whitening(weight: Any, slope: Any) -> Any:
    """How far a whitened response moves with x, (d,), from the weights and slopes of a :class:`Quadratic`."""
    numpy: Any = np if isinstance(weight, np.ndarray) else jnp
    return numpy.sqrt(weight) * slope


_scale = jax.jit(whitening)


def whitening_on_host(quadratic: Quadratic) -> np.ndarray:
    """:func:`whitening` of a concrete quadratic, (d,), in double precision; it compiles nothing."""
    return whitening(*(np.asarray(part, np.float64) for part in (quadratic.weight, quadratic.slope)))


def spectrum(
    moments: Any, family: Family, *, dispersion: ArrayLike | None = None, expand_at: ArrayLike | str = "zero"
) -> Spectrum:
    """The spectrum of the whitened covariance S~, from one eigendecomposition.

    Args:
        moments: of the data, :class:`~glmvae.statistics.Moments`, or the data themselves.
        family: the observation model.
        dispersion: phi, positive, a scalar or (d,). None: 1 for the families that fix it; for Gaussian it stays open,
            and is estimated for every kappa and beta, or given then.
        expand_at: where to expand, see :func:`~glmvae.expansion.expansion_point`.

    Returns:
        :class:`Spectrum`; ask it with :func:`~glmvae.optimum.optimum_at`.

    Raises:
        ValueError, TypeError: as :func:`~glmvae.optimum.fit`.

    Exactness: exact up to rounding. Concrete moments are decomposed in double precision, whatever they come in.

    Example:
        >>> from glmvae import moments, spectrum
        >>> from glmvae.families import Gaussian
        >>> s = spectrum(moments([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]]), Gaussian())
        >>> print(s.values, s.trace)
        [4. 1.] 5.0

    Source: section 3.4.
    """
    check_family(family)
    return spectrum_of(as_moments(moments, family, "moments"), family, dispersion, expand_at)


def spectrum_of(
    data: Moments,
    family: Family,
    dispersion: ArrayLike | None,
    expand_at: ArrayLike | str,
    units: int | None = None,
    covariate_names: ColumnNames | None = None,
) -> Spectrum:
    """:func:`spectrum` of moments already checked, with at least ``units`` vectors; None is all."""
    dtype = data.mean.dtype
    phi = dispersion_of(family, dispersion, data.mean.shape[0], dtype)
    known = in_precision(with_trials(family, data.trials), dtype)
    if data.at_offset is not None and not (isinstance(expand_at, str) and expand_at == "zero"):
        raise ValueError(
            f'expand_at: expected "zero", got {expand_at!r}: with an offset or trials an entry the closed form stands '
            "at eta = offset, where one weight a column bounds the curvature of all its rows"
        )
    eta0 = expansion_point(expand_at, known, data.mean)
    with as_concrete((data, known, phi, eta0)):
        plain = data._replace(family=None)
        quadratic = expanded(plain, known, eta0, np.ones((), dtype) if phi is None else phi)
    return decomposed_spectrum(data, family, quadratic, phi, eta0, units, covariate_names)


def decomposed_spectrum(
    data: Moments,
    family: Family,
    quadratic: Quadratic,
    phi: Array | None,
    eta0: Array,
    units: int | None = None,
    covariate_names: ColumnNames | None = None,
) -> Spectrum:
    """The spectrum of any quadratic; phi is None where it is open, and 1 in the quadratic."""
    dtype = data.mean.dtype
    coefficients = None if data.covariates is None else least_squares(data.covariates, covariate_names)
    covariance = residual_covariance(data, coefficients)
    numpy: Any = np if _checks.concrete((covariance, quadratic)) else jnp
    precision = np.float64 if numpy is np else dtype
    covariance, weight, slope = (numpy.asarray(a, precision) for a in (covariance, quadratic.weight, quadratic.slope))
    scale = whitening(weight, slope)
    noise = float(jnp.finfo(dtype).eps) if phi is None else None
    if units is not None:
        units = min([known for known in _UNITS if known >= units], default=data.mean.shape[0])
        units = min(units, data.mean.shape[0])
    found = decomposed(covariance * scale[:, None] * scale[None], units, noise=noise, dtype=dtype)
    rest: Any = np.zeros((), dtype)
    return Spectrum(found.values, found.vectors, rest, quadratic, data, family, phi, eta0, coefficients, found.coupling)


def as_concrete(values: Any) -> Any:
    """A context in which what is done to concrete values is done at once, whoever traces what else."""
    return _checks.at_once() if _checks.concrete(values) else contextlib.nullcontext()


# The dispersion -------------------------------------------------------------------------------------------


def dispersion_of(family: Family, dispersion: ArrayLike | None, columns: int, dtype: Any) -> Array | None:
    """phi, checked; None where it is estimated: the joint maximum has a closed form for Gaussian.

    Raises:
        ValueError: none where the family needs one, one that is not positive or of another shape.
    """
    if dispersion is None:
        if family.has_joint_dispersion:
            return None
        if family.fixed_dispersion is None:
            advice = ', from which refine(dispersion="estimate") finds the best' if family.estimates_dispersion else ""
            raise ValueError(
                f"dispersion: {family!r} needs one, got None; expected a positive scalar or shape ({columns},){advice}"
            )
        dispersion = family.fixed_dispersion
    phi = _settings.positive(dispersion, "dispersion", columns, dtype=dtype)
    return phi if _checks.concrete(phi) else jnp.where(phi > 0, phi, jnp.nan)


def gaussian_dispersion(eigenvalues: Float[Array, " d"], latent_dim: int, beta: ArrayLike = 1.0) -> Float[Array, ""]:
    """The dispersion sigma^2 that maximises the Gaussian beta-ELBO jointly with everything else.

        sigma^2 = sum_{j>a} lambda_j / (d - beta a)

    for the one a <= kappa with lambda_a > beta sigma^2 and, if a < kappa, beta sigma^2 >= lambda_{a+1}: the number of
    active units. The paper's (18) is a = kappa, and needs beta < d / kappa; with pruning every beta > 0 is covered.

    Args:
        eigenvalues: of the covariance of the data (unwhitened), (d,), descending.
        latent_dim: kappa, from 0 to d.
        beta: weight of the KL divergence, positive.

    Returns:
        sigma^2, a scalar; 0 where the ELBO grows without bound: the data fill at most kappa dimensions, and beta
        times their number is below d.

    Raises:
        ValueError: eigenvalues that are no vector, below 0 or not descending; latent_dim out of range; beta not
            positive.
        TypeError: arguments that are not numbers; latent_dim not an integer.

    Exactness: the global maximum. The profile of the ELBO in sigma^2 has one mode. Eigenvalues are taken as they are:
    what is 0 but for rounding has to be 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import gaussian_dispersion
        >>> print(gaussian_dispersion(jnp.array([4.0, 1.0, 1.0]), 1))
        1.0

    Source: (18); Tipping and Bishop (1999).
    """
    eigenvalues = _checks.numeric(eigenvalues, "eigenvalues")
    if eigenvalues.ndim != 1 or not eigenvalues.size:
        raise ValueError(f"eigenvalues: expected a vector, got shape {eigenvalues.shape}")
    _settings.not_negative(eigenvalues, "eigenvalues")
    if _checks.concrete(eigenvalues) and (rises := np.diff(np.asarray(eigenvalues)) > 0).any():
        raise ValueError(f"eigenvalues: expected them descending, got a larger one after {_checks.first_index(rises)}")
    latent_dim = _settings.latent_dim(latent_dim, eigenvalues.shape[0], least=0)
    beta = _settings.positive(beta, "beta", dtype=eigenvalues.dtype)
    return _compiled(eigenvalues, np.zeros((), eigenvalues.dtype), eigenvalues.shape[0], latent_dim, beta)


def dispersion_at(values: Array, rest: Array, columns: ArrayLike, latent_dim: ArrayLike, beta: Array) -> Array:
    """:func:`gaussian_dispersion` unchecked, from the leading eigenvalues and the sum of the others."""
    numpy: Any = np if isinstance(values, np.ndarray) else jnp
    tail = numpy.cumsum(values[::-1])[::-1] + rest  # tail[a] = sum_{j>a}
    tail = numpy.concatenate([tail, rest[None]])
    units = numpy.arange(values.shape[0], dtype=values.dtype)
    left = numpy.asarray(columns, values.dtype) - beta * units
    # Unit a + 1 joins while it exceeds the cut-off of the a before it; then d - beta a stays positive by itself.
    joins = (units < latent_dim) & (values * left > beta * tail[:-1]) & (tail[:-1] > 0) & (left > 0)
    active = numpy.sum(numpy.cumprod(joins.astype(np.int32)))
    remaining = numpy.asarray(columns, values.dtype) - beta * active.astype(values.dtype)
    return tail[active] / numpy.where(remaining > 0, remaining, 1.0)


_compiled = jax.jit(dispersion_at)
