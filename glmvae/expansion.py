"""The second-order expansion of a GLM's log-likelihood: one IRLS step.

Around a linear predictor eta0, in every column j,

    log p(x | eta)  ~  c - w (y - eta)^2 / 2
    y = eta0 + (x - mu(eta0)) / mu'(eta0)               the working response
    w = theta'(eta0)^2 F''(theta(eta0)) / phi           the working weight

so that y and w hold what ``jax.grad`` and ``jax.hessian`` of log p at eta0 give: w (y - eta0) is the gradient and,
for linearly canonical families, -w the second derivative (otherwise its expectation: Fisher scoring). The paper's
expansion is eta0 = 0, (12); it expands in z at a z0 in the kernel of the decoder, which for fewer latent units
than columns does not exist unless the intercept lies in the span of the loadings. In eta no such point is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae.blocks import per_row, total
from glmvae.families import Family
from glmvae.families.calculus import half_spread
from glmvae.families.checks import check_columns, check_family
from glmvae.rows import Rows, observed, weighted_sum
from glmvae.sources import Source, as_source
from glmvae.statistics.moment_checks import in_precision
from glmvae.statistics.residuals import with_trials


class Expansion(NamedTuple):
    """A quadratic in eta, one a column: ``constant - weight (response - eta)^2 / 2`` in nats.

    Fields:
        response: working response y, (N, d).
        weight: working weight w, (1, d), or (N, d) where trials or missing entries (weight 0) give each row its own.
        constant: c(x), (N, d).
    """

    response: Float[Array, "n d"]
    weight: Float[Array, "m d"]
    constant: Float[Array, "n d"]

    def __call__(self, eta: Float[Array, "*#n d"]) -> Float[Array, "n d"]:
        """The quadratic at eta, entry by entry."""
        return self.constant - 0.5 * self.weight * (self.response - eta) ** 2


def expansion_point(expand_at: ArrayLike | str, family: Family, mean: Float[Array, " d"]) -> Float[Array, " d"]:
    """eta0, (d,): where to expand.

    Args:
        expand_at: ``"zero"`` (the paper), ``"null"`` (the intercept-only GLM, link of the column means; columns
            whose mean is at an end of the support are held one rounding unit inside it), a scalar or an
            array (d,).
        family: the observation model.
        mean: column means of the data, (d,).

    Raises:
        ValueError: an unknown word, another shape, a value that is not finite or where the working weight is 0.
        TypeError: not a number, an array or a word.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.expansion import expansion_point
        >>> from glmvae.families import Bernoulli
        >>> print(expansion_point("null", Bernoulli(), jnp.array([0.5, 0.75])))
        [0. 1.0986...]
    """
    if isinstance(expand_at, str):
        if expand_at == "zero":
            return jax.device_put(np.zeros(mean.shape, mean.dtype))
        if expand_at == "null":
            return null_predictor(family, mean)
        raise ValueError(f'expand_at: expected "zero", "null" or an array, got {expand_at!r}')
    eta0 = _checks.numeric(expand_at, "expand_at").astype(mean.dtype)
    if eta0.shape not in ((), mean.shape):
        raise ValueError(f"expand_at: expected a scalar or shape {mean.shape}, got shape {eta0.shape}")
    eta0 = jnp.broadcast_to(_checks.finite(eta0, "expand_at"), mean.shape)
    if _checks.concrete((eta0, family)):
        with _checks.at_once():
            weight = np.broadcast_to(np.ravel(np.asarray(_weight(family, eta0))), eta0.shape)
            bad = ~((weight > 0) & np.isfinite(weight))
        if bad.any():
            raise ValueError(
                f"expand_at: the working weight is not positive at {_checks.first_index(bad)}, "
                f"where expand_at is {float(np.asarray(eta0)[bad][0]):g}"
            )
    return eta0


@jax.jit
def null_predictor(family: Family, mean: Array) -> Array:
    """The intercept-only GLM, as one program."""
    return family.null_predictor(mean)


@jax.jit
def _weight(family: Family, eta0: Array) -> Array:
    return working_weight(family, eta0)


def working_weight(family: Family, eta0: Float[Array, "*s"], dispersion: ArrayLike = 1.0) -> Float[Array, "*s"]:
    """w = theta'(eta0)^2 F''(theta(eta0)) / phi: minus the (expected) second derivative of log p in eta, (28)."""
    # theta'^2 F'' = theta' mu', which does not overflow where F'' does
    return family.natural_parameter_derivative(eta0) * family.mean_derivative(eta0) / dispersion


def working_response(family: Family, x: Float[Array, "*n d"], eta0: Float[Array, "*m d"]) -> Float[Array, "*n d"]:
    """y = eta0 + (x - mu(eta0)) / mu'(eta0): what IRLS regresses on. At eta0 = 0 the bracket of (12)."""
    return eta0 + (x - family.mean(eta0)) / family.mean_derivative(eta0)


def expand(x: Any, family: Family, *, expand_at: ArrayLike | str = "zero", dispersion: ArrayLike = 1.0) -> Expansion:
    """Expand log p(x | eta) to second order in the linear predictor.

    Args:
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`. Of what rows bring, offset and
            covariates are parts of eta and not looked at.
        family: the observation model.
        expand_at: see :func:`expansion_point`.
        dispersion: phi, a scalar or (d,).

    Returns:
        The :class:`Expansion`; call it with eta, (N, d) or (d,). A missing entry is 0 whatever eta.

    Raises:
        ValueError, TypeError: bad data, ``expand_at`` or dispersion; each names the argument.

    Exactness: exact for Gaussian. At ``"zero"`` a lower bound of log p for Bernoulli and binomial at every eta
    (n / 4 is the largest curvature there is); otherwise an approximation whose error
    :func:`~glmvae.elbo.bounds.remainder_bounds` encloses.

    Example:
        >>> from glmvae.expansion import expand
        >>> from glmvae.families import Bernoulli
        >>> quadratic = expand([[0.0, 1.0]], Bernoulli())
        >>> print(quadratic.response, quadratic.weight)
        [[-2.  2.]] [[0.25 0.25]]

    Source: equations (12) and (25); McCullagh and Nelder (1989), section 2.5 for the GLM terms.
    """
    check_family(family)
    source = as_source(x)
    columns, dtype = source.num_columns, source.dtype
    check_columns(columns, family, "x")
    phi = _settings.positive(dispersion, "dispersion", columns, dtype=dtype)
    family = in_precision(family, dtype)
    if isinstance(expand_at, str) and expand_at == "null":
        eta0 = null_point(source, family)
    else:
        eta0 = expansion_point(expand_at, with_trials(family, np.ones(columns, dtype)), jnp.zeros(columns, dtype))
    phi = phi[None] if phi.ndim else phi
    result: Expansion = per_row(_expanded, source, eta0[None], phi, family, family=family, num_covariates=None)
    return result


def _expanded(rows: Rows, _: None, eta0: Array, phi: Array, family: Family) -> tuple[None, Expansion]:
    expansion = expand_rows(rows.x, family.for_rows(rows), eta0, phi)
    if rows.missing is None:
        return None, expansion
    return None, Expansion(
        expansion.response,
        observed(rows, jnp.broadcast_to(expansion.weight, rows.x.shape)),
        observed(rows, expansion.constant),
    )


def expand_rows(x: Float[Array, "n d"], family: Family, eta0: Float[Array, "#n d"], phi: Array) -> Expansion:
    """:func:`expand` on arguments already checked; the weight has the shape of eta0, or that of the trials."""
    constant = family.by_member(_constant, x, eta0, phi)
    return Expansion(working_response(family, x, eta0), working_weight(family, eta0, phi), constant)


def _constant(member: Family, x: Array, eta0: Array, phi: Array) -> Array:
    if member.keeps_log_prob:
        return member.log_prob(x, eta0, phi) + half_spread(member, x, 0.0, eta0, phi)
    statistic = member.base_statistic(x)
    # 0 where the statistic determines K at every phi; a custom family's is K at phi = 1
    correction = member.log_base_measure(x, phi) - member.log_base_measure_from(statistic, phi)
    return member.expansion_constant(x, 0.0, statistic, eta0, phi) + correction


def null_point(source: Source, family: Family, num_covariates: int | None = None) -> Float[Array, " d"]:
    """eta0 of the intercept-only GLM, of what was observed of each column and of its trials; one pass over the rows."""
    sums = total(_column_sums, source, family=family, num_covariates=num_covariates)
    return _null_of_sums(sums, family)


def _column_sums(rows: Rows, _: None) -> tuple[tuple[Array, Array, Array], None]:
    """Of x, of its trials and of the weights, over what was observed."""

    def summed(values: Any) -> Array:
        return weighted_sum(rows, observed(rows, jnp.broadcast_to(values, rows.x.shape)))

    return (summed(rows.x), summed(1.0 if rows.trials is None else rows.trials), summed(1.0)), None


@jax.jit
def _null_of_sums(sums: tuple[Array, Array, Array], family: Family) -> Float[Array, " d"]:
    x, trials, weight = sums
    seen, divisor = weight > 0, jnp.where(weight > 0, weight, 1.0)
    family = with_trials(family, jnp.where(seen, trials / divisor, 1.0)[None])
    mean = jnp.where(seen, x / divisor, family.mean(jnp.zeros((1, x.shape[0]), x.dtype)))
    return jnp.broadcast_to(family.null_predictor(mean), (1, x.shape[0]))[0]
