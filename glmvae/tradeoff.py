"""What a beta buys: the rate, nats a row through the latent units, against the distortion of what comes out.

    beta-ELBO = -distortion - beta rate,     rate = mean KL(q(z | x) || N(0, I)),   distortion = -mean E_q log p(x | z)

At the optimum of L-hat both are read off the whitened spectrum, reverse water-filling with beta for the water:

    rate = 1/2 sum_{j active} log(lambda_j / beta)
    distortion = 1/2 [ sum_{j<=kappa} min(lambda_j, beta) + sum_{j>kappa} lambda_j + D ]

so the whole curve comes from one eigendecomposition, and its slope at every point is -beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from glmvae import _checks, _settings
from glmvae.ascent import best_posterior
from glmvae.blocks import total
from glmvae.elbo.means import mean_elbo
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.model import AffineModel, as_model
from glmvae.rows import Rows, weighted_sum
from glmvae.solution import solve
from glmvae.sources import as_source
from glmvae.spectral import spectrum_of
from glmvae.statistics import Moments, as_moments
from glmvae.variational import Posterior, kl_of

_SHOWN = 12


class ExactPoints(NamedTuple):
    """Rate and distortion of given models on the rows, at the posteriors that are best for each row.

    Fields:
        beta: of each model, (M,).
        rate: (M,), nats per row.
        distortion: (M,), nats per row.
    """

    beta: Float[Array, " m"]
    rate: Float[Array, " m"]
    distortion: Float[Array, " m"]


class RateDistortion(NamedTuple):
    """The curve over beta; ``print`` it to read it.

    Fields:
        beta: as asked for, (B,).
        rate: of the closed-form optimum, nats per row, (B,).
        distortion: of its expansion, nats per row, (B,).
        active_units: (B,).
        exact: of the given optima; None without any.
    """

    beta: Float[Array, " b"]
    rate: Float[Array, " b"]
    distortion: Float[Array, " b"]
    active_units: Int[Array, " b"]
    exact: ExactPoints | None

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.beta) != 1:
            return f"RateDistortion(beta={self.beta}, ...)"
        rows = [*zip(*(np.asarray(v).tolist() for v in self[:4]), strict=True)]
        step = -(-len(rows) // _SHOWN)
        lines = [f"RateDistortion: {len(rows)} betas, nats per row"]
        lines += [f"  {'beta':>9s} {'rate':>9s} {'distortion':>11s}  units"]
        lines += [f"  {b:9.4g} {r:9.4g} {d:11.6g}  {int(n):5d}" for b, r, d, n in rows[::step]]
        if self.exact is not None:
            points = zip(*(np.asarray(v).tolist() for v in self.exact), strict=True)
            lines += [f"  {b:9.4g} {r:9.4g} {d:11.6g}  exact, of the optimum given" for b, r, d in points]
        return "\n".join(lines)


def rate_distortion(
    x: Any,
    family: Family,
    latent_dim: int,
    betas: ArrayLike,
    *,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
    optima: Sequence[Any] = (),
) -> RateDistortion:
    """Rate and distortion of the optimum over a grid of beta, from one eigendecomposition.

    Args:
        x: data, or their :class:`~glmvae.statistics.Moments`, as in :func:`~glmvae.optimum.fit`; rows where there are
            ``optima``.
        family: the observation model.
        latent_dim: kappa, from 0 to d.
        betas: (B,), positive.
        dispersion, expand_at: as in ``fit``; an estimated dispersion is estimated for each beta.
        optima: results of ``fit``, ``tighten`` or ``refine``, or models, whose exact rate and distortion stand beside
            the curve, each at its own beta.

    Returns:
        :class:`RateDistortion`; ``-distortion - beta * rate`` is ``elbo_taylor`` of the optimum at that beta.

    Raises:
        ValueError, TypeError: as ``fit``; betas that are not a vector of positive numbers; optima that are none or of
            another family; optima with moments alone.

    Exactness: for Gaussian both are exact. Otherwise the rate is exactly that of the closed form's encoder, and the
    distortion that of the expansion: for Bernoulli and binomial at ``"zero"`` at least the true one of that decoder and
    encoder, elsewhere an approximation. ``exact`` is exact, as :func:`~glmvae.elbo.elbo_exact` is.

    Example:
        >>> from glmvae.families import Gaussian
        >>> from glmvae.tradeoff import rate_distortion
        >>> x = [[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]]
        >>> rate_distortion(x, Gaussian(), 2, [0.5, 1.0, 2.0, 4.0], dispersion=1.0)
        RateDistortion: 4 betas, nats per row
               beta      rate  distortion  units
                0.5     1.386     2.33788      2
                  1    0.6931     2.83788      1
                  2    0.3466     3.33788      1
                  4         0     4.33788      0

    Source: (17)-(21); Alemi et al. (2018) for the two axes, Cover and Thomas, section 10.3.3, for the water-filling.
    """
    check_family(family)
    models = [_model_for(optimum, family, f"optima[{i}]") for i, optimum in enumerate(optima)]
    source = None
    if models:
        if isinstance(x, Moments):
            raise TypeError("x: the exact rate and distortion of optima need rows, got Moments")
        source = as_source(x)
        for optimum in optima:
            as_source(source, like=optimum)
    data = as_moments(x if source is None else source, family)
    latent_dim = _settings.latent_dim(latent_dim, data.mean.shape[0], least=0)
    grid = _settings.positive_vector(betas, "betas", data.mean.dtype)
    found = spectrum_of(data, family, dispersion, expand_at, max(latent_dim, 1))
    points = [solve(found, latent_dim, beta) for beta in grid]
    numpy: Any = np if _checks.concrete((points, grid)) else jnp
    rate, elbo = (numpy.stack([getattr(point, name) for point in points]) for name in ("rate", "elbo"))
    values = numpy.stack([numpy.asarray(point.eigenvalues)[:latent_dim] for point in points])
    distortion = -elbo - numpy.asarray(grid) * rate
    units = numpy.sum(values > numpy.asarray(grid)[:, None], axis=1)
    exact = None if source is None else _exact(models, source)
    return RateDistortion(grid, jnp.asarray(rate), jnp.asarray(distortion), jnp.asarray(units), exact)


def _model_for(optimum: Any, family: Family, name: str) -> AffineModel:
    model = as_model(optimum, name)
    if _checks.concrete((model.family, family)) and model.family != family:
        raise ValueError(f"{name}: expected a model of {family!r}, got one of {model.family!r}")
    return model


def _exact(models: list[AffineModel], source: Any) -> ExactPoints:
    """The points of the models, each at the posteriors that are best for the rows."""
    points = []
    for model in models:
        posterior = best_posterior(model, source)
        elbo = mean_elbo(model, source, posterior)
        summed, weight = total(_divergence, source, given=posterior, check=False, num_covariates=None)
        points.append((jnp.asarray(model.beta, elbo.dtype), summed / weight, -elbo - model.beta * (summed / weight)))
    return ExactPoints(*(jnp.stack(values) for values in zip(*points, strict=True)))


def _divergence(rows: Rows, posterior: Posterior) -> tuple[tuple[Array, Array], None]:
    return (weighted_sum(rows, kl_of(posterior)), jnp.sum(rows.weight)), None
