"""What a user asks before training: how many latent units will stay active, and at which beta they collapse.

Two rules predict the number of active units, the count of lambda_j > beta in the whitened spectrum: the paper's, with
the expansion at eta = 0, and that of the null model, with the expansion at the intercept-only GLM, which knows the
onset of collapse exactly. Both need only the moments of the data. The third answer, the optimum refined beyond the
expansion, needs the data and some rounds over them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from glmvae import _checks
from glmvae.families import Family
from glmvae.moments import Moments, moments
from glmvae.optimum import AffineOptimum, fit
from glmvae.pruning import activity, beta_for_active_units, collapse_onset
from glmvae.refine import refine as refined_optimum


class Diagnosis(NamedTuple):
    """A report in numbers; ``print`` it to read it.

    Fields:
        rows: their number, or the sum of their weights.
        beta, dispersion: as asked for, or as estimated.
        eigenvalues: (d,) descending, of the whitened covariance at eta = 0; a unit is active above beta.
        null_eigenvalues: the same at the null model.
        activity: (kappa,), (21), under the paper's rule.
        null_activity: under the null-model rule.
        active_units, null_active_units: their numbers above 0.
        refined_active_units: the number at the refined optimum; None if not asked for.
        collapse_onset: the beta from which all units pruned is a local optimum of the exact ELBO.
        wanted_units: the number for which the next two hold.
        beta_range, null_beta_range: (2,), every beta in [lower, upper) leaves that many units active under the rule.
        constant_columns: (d,), columns that do not vary.
        boundary_columns: (d,), columns at an end of the support, where the best intercept is infinite.
        explained: (d,), share of the variance of a working response that the decoder explains, 0 to 1.
        collapsed_columns: (d,), columns the decoder gives the same value whatever z: all if all units are pruned.
    """

    rows: Float[Array, ""]
    beta: Float[Array, ""]
    dispersion: Float[Array, "*d"]
    eigenvalues: Float[Array, " d"]
    null_eigenvalues: Float[Array, " d"]
    activity: Float[Array, " k"]
    null_activity: Float[Array, " k"]
    active_units: Int[Array, ""]
    null_active_units: Int[Array, ""]
    refined_active_units: Int[Array, ""] | None
    collapse_onset: Float[Array, ""]
    wanted_units: Int[Array, ""]
    beta_range: Float[Array, " 2"]
    null_beta_range: Float[Array, " 2"]
    constant_columns: Bool[Array, " d"]
    boundary_columns: Bool[Array, " d"]
    explained: Float[Array, " d"]
    collapsed_columns: Bool[Array, " d"]

    @property
    def collapsed(self) -> Bool[Array, ""]:
        """Whether beta has reached the onset of posterior collapse."""
        return self.beta >= self.collapse_onset

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.eigenvalues) != 1:
            return f"Diagnosis(eigenvalues={self.eigenvalues}, ...)"
        units, beta = self.activity.shape[0], float(self.beta)
        counts = f"{int(self.active_units)} by the paper's rule, {int(self.null_active_units)} by the null model's"
        if self.refined_active_units is not None:
            counts += f", {int(self.refined_active_units)} at the refined optimum"
        reached = "reached" if bool(self.collapsed) else "not reached"
        constant, boundary = self.constant_columns, self.boundary_columns
        collapsed = self.collapsed_columns & ~constant
        return (
            f"Diagnosis: {float(self.rows):g} rows, {self.eigenvalues.shape[0]} columns, {units} latent units, "
            f"beta = {beta:g}, dispersion {_span(self.dispersion)}\n"
            f"  active units     {counts}\n"
            f"  collapse         of all units from beta = {float(self.collapse_onset):.5g} on, {reached}\n"
            f"  beta for {int(self.wanted_units):<8d}{_interval(self.beta_range)} by the paper's rule, "
            f"{_interval(self.null_beta_range)} by the null model's\n"
            f"  spectrum         {_leading(self.eigenvalues)}; at the null model {_leading(self.null_eigenvalues)}\n"
            f"  columns          {_named(constant, 'constant')}, {_named(boundary, 'at an end of the support')}, "
            f"{_named(collapsed, 'more not reached by any unit')}"
        )


def diagnose(
    x: ArrayLike | Moments,
    family: Family,
    latent_dim: int,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike | None = None,
    units: int | None = None,
    refine: str | None = None,
) -> Diagnosis:
    """Predict, before any training, what a beta-VAE with this many latent units will do with the data.

    Args:
        x: data, (N, d), or their :class:`~glmvae.moments.Moments`.
        family: the observation model.
        latent_dim: number of latent units [kappa], from 1 to d.
        beta: weight of the KL divergence, positive.
        dispersion: as in :func:`~glmvae.optimum.fit`.
        units: the number of active units to give the range of beta for; None is ``latent_dim``.
        refine: None, or the method of :func:`~glmvae.refine.refine`, ``"column"``, ``"entry"`` or ``"exact"``, by
            which to count the active units of a better optimum too.

    Returns:
        :class:`Diagnosis`, a pytree of numbers that prints as a report.

    Raises:
        ValueError, TypeError: as ``fit``; units out of range or not an integer; with ``refine`` as that function.

    Exactness: the onset of collapse is exact for the beta-ELBO of an affine decoder. The counts are exact for the
    optimum of L-hat at the two expansion points, and predictions for the beta-ELBO. For Gaussian all agree and are
    exact. Not for use under ``jit``; its result is a pytree like any other.

    Cost: five eigendecompositions, O(d^3), and one pass over the data; with ``refine`` its rounds.

    Example:
        >>> import numpy as np
        >>> from glmvae import diagnose
        >>> from glmvae.families import Bernoulli
        >>> z = np.random.default_rng(0).normal(size=(500, 1))
        >>> x = (z * [2.0, 2.0, 2.0, -2.0] + np.random.default_rng(1).logistic(size=(500, 4)) > 0).astype("float32")
        >>> diagnose(x, Bernoulli(), 2, beta=0.9)
        Diagnosis: 500 rows, 4 columns, 2 latent units, beta = 0.9, dispersion 1
          active units     1 by the paper's rule, 1 by the null model's
          collapse         of all units from beta = ... on, not reached
          beta for 2       ... by the paper's rule, ... by the null model's
          spectrum         ...; at the null model ...
          columns          0 constant, 0 at an end of the support, 0 more not reached by any unit

    Source: (17), (21); the onset of collapse as :func:`~glmvae.pruning.collapse_onset`.
    """
    data = x if isinstance(x, Moments) else moments(x, family=family)
    zero = fit(data, family, latent_dim, beta=beta, dispersion=dispersion)
    null = fit(data, family, latent_dim, beta=beta, dispersion=dispersion, expand_at="null")
    latent_dim = zero.loadings.shape[1]
    units = latent_dim if units is None else units
    ranges = [
        beta_for_active_units(data, family, units, latent_dim=latent_dim, dispersion=dispersion, expand_at=at)
        for at in ("zero", "null")
    ]
    refined = None
    if refine is not None:
        best = refined_optimum(null, x, family, method=refine)
        refined = jnp.sum(best.eigenvalues[:latent_dim] > best.beta)

    dtype = zero.loadings.dtype
    variance = jnp.diag(data.covariance)
    activities = activity(zero), activity(null)
    explained = _explained(zero, family, variance)
    eps = jnp.finfo(dtype).eps
    return Diagnosis(
        rows=jnp.asarray(data.count),
        beta=zero.beta,
        dispersion=zero.dispersion,
        eigenvalues=zero.eigenvalues,
        null_eigenvalues=null.eigenvalues,
        activity=activities[0],
        null_activity=activities[1],
        active_units=jnp.sum(activities[0] > 0),
        null_active_units=jnp.sum(activities[1] > 0),
        refined_active_units=refined,
        collapse_onset=collapse_onset(data, family, dispersion=dispersion),
        wanted_units=jnp.asarray(units),
        beta_range=jnp.asarray(ranges[0], dtype),
        null_beta_range=jnp.asarray(ranges[1], dtype),
        constant_columns=variance <= (8 * eps * data.mean) ** 2,
        boundary_columns=_at_an_end(data.mean, family),
        explained=explained,
        collapsed_columns=explained <= jnp.sqrt(eps),
    )


def _explained(optimum: AffineOptimum, family: Family, variance: Array) -> Array:
    """Diagonal of W W' over that of Cov(y)."""
    response = variance / family.mean_derivative(optimum.expansion_point) ** 2
    varies = response > 0
    return jnp.where(varies, jnp.sum(optimum.loadings**2, axis=1) / jnp.where(varies, response, 1.0), 0.0)


def _at_an_end(mean: Array, family: Family) -> Array:
    """Columns whose mean the null model has to hold inside the support."""
    support, eps = family.support, jnp.finfo(mean.dtype).eps
    lower, upper = (jnp.asarray(v, mean.dtype) for v in (support.lower, support.upper))
    slack = eps * jnp.where(jnp.isfinite(lower) & jnp.isfinite(upper), upper - lower, 1.0)
    at_lower = (mean <= lower + slack) & jnp.logical_not(support.open_lower)
    return jnp.broadcast_to(at_lower | (mean >= upper - slack), mean.shape)


# The report -----------------------------------------------------------------------------------------------


def _span(values: ArrayLike) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


def _interval(ends: Array) -> str:
    low, high = (float(end) for end in ends)
    return "no beta" if low == high else f"{'(' if low == 0 else '['}{low:.5g}, {high:.5g})"


def _leading(values: Array) -> str:
    shown = ", ".join(f"{v:.4g}" for v in values[:5].tolist())
    return shown + (", ..." if values.shape[0] > 5 else "")


def _named(mask: Array, what: str) -> str:
    indices = np.flatnonzero(np.asarray(mask)).tolist()
    some = ", ".join(str(i) for i in indices[:4]) + (", ..." if len(indices) > 4 else "")
    return f"{len(indices)} {what}" + (f" ({some})" if indices else "")
