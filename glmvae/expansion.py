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

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks
from glmvae.families import Binomial, Family, Gaussian, Mixed, Poisson
from glmvae.families._base import as_floats


class Expansion(NamedTuple):
    """A quadratic in eta, one a column: ``constant - weight (response - eta)^2 / 2`` in nats.

    Fields:
        response: working response y, (N, d).
        weight: working weight w, (d,).
        constant: c(x), (N, d).
    """

    response: Float[Array, "n d"]
    weight: Float[Array, " d"]
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
            return jnp.zeros_like(mean)
        if expand_at == "null":
            return family.null_predictor(mean)
        raise ValueError(f'expand_at: expected "zero", "null" or an array, got {expand_at!r}')
    eta0 = _checks.numeric(expand_at, "expand_at").astype(mean.dtype)
    if eta0.shape not in ((), mean.shape):
        raise ValueError(f"expand_at: expected a scalar or shape {mean.shape}, got shape {eta0.shape}")
    eta0 = jnp.broadcast_to(_checks.finite(eta0, "expand_at"), mean.shape)
    if _checks.concrete((eta0, family)):
        with jax.ensure_compile_time_eval():
            weight = working_weight(family, eta0)
            bad = ~np.asarray((weight > 0) & jnp.isfinite(weight))
        if bad.any():
            raise ValueError(
                f"expand_at: the working weight is not positive at {_checks.first_index(bad)}, "
                f"where expand_at is {float(eta0[bad][0]):g}"
            )
    return eta0


def working_weight(family: Family, eta0: Float[Array, "*s"], dispersion: ArrayLike = 1.0) -> Float[Array, "*s"]:
    """w = theta'(eta0)^2 F''(theta(eta0)) / phi: minus the (expected) second derivative of log p in eta, (28)."""
    # theta'^2 F'' = theta' mu', which does not overflow where F'' does
    return family.natural_parameter_derivative(eta0) * family.mean_derivative(eta0) / dispersion


def working_response(family: Family, x: Float[Array, "*n d"], eta0: Float[Array, " d"]) -> Float[Array, "*n d"]:
    """y = eta0 + (x - mu(eta0)) / mu'(eta0): what IRLS regresses on. At eta0 = 0 the bracket of (12)."""
    return eta0 + (x - family.mean(eta0)) / family.mean_derivative(eta0)


def expand(
    x: ArrayLike, family: Family, *, expand_at: ArrayLike | str = "zero", dispersion: ArrayLike = 1.0
) -> Expansion:
    """Expand log p(x | eta) to second order in the linear predictor.

    Args:
        x: data, (N, d).
        family: the observation model.
        expand_at: see :func:`expansion_point`.
        dispersion: phi, a scalar or (d,).

    Returns:
        The :class:`Expansion`; call it with eta, (N, d) or (d,).

    Raises:
        ValueError, TypeError: bad data, ``expand_at`` or dispersion; each names the argument.

    Exactness: exact for Gaussian. At ``"zero"`` a lower bound of log p for Bernoulli and binomial at every eta
    (n / 4 is the largest curvature there is); otherwise an approximation whose error
    :func:`remainder_bounds` encloses.

    Example:
        >>> from glmvae.expansion import expand
        >>> from glmvae.families import Bernoulli
        >>> quadratic = expand([[0.0, 1.0]], Bernoulli())
        >>> print(quadratic.response, quadratic.weight)
        [[-2.  2.]] [0.25 0.25]

    Source: equations (12) and (25); McCullagh and Nelder (1989), section 2.5 for the GLM terms.
    """
    x = _checks.rows_of(x, family)
    _checks.positive(dispersion, "dispersion", x.shape[1])
    phi = jnp.asarray(dispersion, x.dtype)
    eta0 = expansion_point(expand_at, family, jnp.mean(x, axis=0))
    return expand_rows(x, family, eta0, phi)


def expand_rows(x: Float[Array, "n d"], family: Family, eta0: Float[Array, " d"], phi: Array) -> Expansion:
    """:func:`expand` on arguments already checked."""
    statistic = family.base_statistic(x)
    constant = family.expansion_constant(x, 0.0, statistic, eta0, phi)
    # 0 where the statistic determines K at every phi; a custom family's is K at phi = 1
    correction = family.log_base_measure(x, phi) - family.log_base_measure_from(statistic, phi)
    return Expansion(working_response(family, x, eta0), working_weight(family, eta0, phi), constant + correction)


# Remainder ----------------------------------------------------------------------------------------------

# Gauss-Legendre nodes on [0, 1]: for |eta - eta0| <= 2 the singularities of every F''' below lie outside the
# Bernstein ellipse of 6.4, so 14 nodes leave 6.4^-28 < 1e-22 of the integral.
_NODES, _WEIGHTS = (a.copy() for a in np.polynomial.legendre.leggauss(14))
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
_NEAR = 2.0
# Rounding units allowed for: of the value itself (sums of one sign), and of the largest term of the difference.
_ROUNDING = 32


def remainder_bounds(
    family: Family, eta: ArrayLike, expand_at: ArrayLike = 0.0, *, dispersion: ArrayLike = 1.0
) -> tuple[Array, Array]:
    """Enclose R2 = log p(x | eta) - quadratic, which for these families does not depend on x (Corollary 1).

        R2 = -(1 / phi) int_0^1 (1 - t)^2 / 2  F'''(theta0 + t delta) dt  delta^3,      delta = theta - theta0

    The integral has no cancellation, so the enclosure is a few rounding units wide also at \\|eta\\| = 1e-6; for
    \\|delta\\| > 2 the difference itself is taken, with its rounding.

    Args:
        family: Gaussian (0), Bernoulli, Binomial or Poisson, with any ``activation_scale``, or Mixed of these.
        eta: linear predictors, any shape.
        expand_at: eta0, broadcast against eta.
        dispersion: phi.

    Returns:
        (lower, upper), of the broadcast shape, in nats, entry by entry; a row's remainder is their sum over columns.

    Raises:
        TypeError: a family whose remainder is not known; arguments that are not numbers.
        ValueError: NaN or infinity; a dispersion that is not positive.

    Exactness: lower <= R2 <= upper, floating point included. At eta0 = 0 inside the paper's bounds, which are
    n eta^4 / 192 [0, 1] for binomial and [-eta^3 e^eta / 6, -eta^3 / 6] for Poisson.

    Example:
        >>> from glmvae.expansion import remainder_bounds
        >>> from glmvae.families import Bernoulli
        >>> lower, upper = remainder_bounds(Bernoulli(), 1.0)
        >>> print(f"{lower:.5f} {upper:.5f} {1 / 192:.5f}")
        0.00489 0.00489 0.00521

    Source: Corollary 1, appendix A.3, with the remainder in integral form.
    """
    _checks.family(family)
    eta, eta0 = (_checks.finite(_checks.numeric(v, n), n) for v, n in ((eta, "eta"), (expand_at, "expand_at")))
    _checks.positive_each(dispersion, "dispersion")
    eta, eta0, phi = as_floats(eta, eta0, dispersion)
    if isinstance(family, Mixed):
        return _over_members(remainder_bounds, family, eta, eta0, dispersion=phi)
    eta, eta0 = jnp.broadcast_arrays(eta, eta0)
    if isinstance(family, Gaussian):
        return jnp.zeros_like(eta), jnp.zeros_like(eta)
    if not isinstance(family, Binomial | Poisson):
        raise TypeError(f"family: remainder bounds are known for Gaussian, Binomial, Poisson; got {family!r}")
    theta, theta0 = family.natural_parameter(eta), family.natural_parameter(eta0)
    delta = theta - theta0
    near = jnp.abs(delta) <= _NEAR
    eps = jnp.finfo(eta.dtype).eps

    # (1 - t)^2 / 2 F''' has one sign for Poisson, and for binomial at theta0 = 0; elsewhere the terms of the sum
    # bound what rounding can do.
    step = jnp.where(near, delta, 0.0)
    terms = [
        0.5 * w * (1 - t) ** 2 * _third_derivative(family, theta0 + t * step)
        for t, w in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True)
    ]
    integral = -(step**3) * sum(terms)
    integral_error = jnp.abs(step) ** 3 * sum(jnp.abs(t) for t in terms)

    far = jnp.where(near, 0.0, delta)
    parts = [
        -family.log_normalizer(theta0 + far),
        family.log_normalizer(theta0),
        family.mean(eta0) * far,
        0.5 * family.variance_function(eta0) * far**2,
    ]
    value = jnp.where(near, integral, sum(parts))
    error = jnp.where(near, integral_error, sum(jnp.abs(p) for p in parts))
    # A product that underflows may be off by the smallest normal number.
    error = _ROUNDING * (eps * error + jnp.where(delta == 0, 0.0, jnp.finfo(eta.dtype).tiny))
    lower, upper = value - error, value + error

    centred = eta0 == 0
    paper_lower, paper_upper = _paper_bounds(family, theta)
    slack = 4 * eps
    lower = jnp.where(centred, jnp.maximum(lower, paper_lower - slack * jnp.abs(paper_lower)), lower)
    upper = jnp.where(centred, jnp.minimum(upper, paper_upper + slack * jnp.abs(paper_upper)), upper)
    return lower / phi, upper / phi


def _over_members(
    bounds: Callable[..., tuple[Array, Array]], family: Mixed, *values: Array, dispersion: Array
) -> tuple[Array, Array]:
    parts = zip(family.families, *(family.split(v) for v in values), family.split(dispersion), strict=True)
    lower, upper = zip(*(bounds(member, *v, dispersion=phi) for member, *v, phi in parts), strict=True)
    return family.join(lower), family.join(upper)


def _third_derivative(family: Family, theta: Array) -> Array:
    if isinstance(family, Poisson):
        return jnp.exp(theta)
    # n p (1 - p) (1 - 2p), the last factor as -tanh so that it is exact near 0
    assert isinstance(family, Binomial)
    curvature = family.variance_function(theta / jnp.asarray(family.activation_scale, theta.dtype))
    return -curvature * jnp.tanh(0.5 * theta)


def _paper_bounds(family: Family, theta: Array) -> tuple[Array, Array]:
    """Corollary 1 as printed, at theta0 = 0 and on a straight segment."""
    if isinstance(family, Poisson):
        cube = -(theta**3) / 6
        return cube * jnp.exp(theta), cube
    return jnp.zeros_like(theta), family._trials(theta) * theta**4 / 192  # type: ignore[attr-defined]


def expected_remainder_bounds(
    family: Family,
    mean: ArrayLike,
    variance: ArrayLike,
    expand_at: ArrayLike = 0.0,
    *,
    dispersion: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """Enclose E R2 for eta ~ N(mean, variance): what stands between L-hat and the ELBO (Corollary 1).

    With delta = theta - theta0 ~ N(m, v), closed forms of the bounds' Gaussian moments:

        binomial at 0:   n / 192 E delta^4 [0, 1],   E delta^4 = m^4 + 6 m^2 v + 3 v^2
        binomial:        -F'''(theta0) E delta^3 / 6 + n E delta^4 / 24 [-1/24, 1/8]
        Poisson:         e^theta0 / 6 [-E delta^3 e^delta, -E delta^3]

    Args:
        family: Gaussian (0), Bernoulli, Binomial or Poisson, or Mixed of these.
        mean, variance: of the linear predictors, any shapes that broadcast; ``W mu_z + b`` and
            ``diag(W Sigma_z W')`` under a posterior.
        expand_at: eta0.
        dispersion: phi.

    Returns:
        (lower, upper) in nats, entry by entry. Summed over columns and added to a row of ``elbo_quadratic`` they
        bracket that row of ``elbo_exact``.

    Raises:
        TypeError: a family whose remainder is not known; arguments that are not numbers.
        ValueError: NaN or infinity, a variance below 0, a dispersion that is not positive.

    Exactness: a lower and an upper bound of E R2, widened by the rounding of the moments.

    Example:
        >>> from glmvae.expansion import expected_remainder_bounds
        >>> from glmvae.families import Bernoulli
        >>> lower, upper = expected_remainder_bounds(Bernoulli(), 0.0, 1.0)
        >>> print(f"{lower:.5f} {upper:.5f}")  # 3 / 192
        0.00000 0.01563

    Source: Corollary 1 ("the expected error" of figure 1).
    """
    _checks.family(family)
    named = ((mean, "mean"), (variance, "variance"), (expand_at, "expand_at"))
    m, v, eta0 = (_checks.finite(_checks.numeric(a, n), n) for a, n in named)
    _checks.not_negative(v, "variance")
    _checks.positive_each(dispersion, "dispersion")
    m, v, eta0, phi = as_floats(m, v, eta0, dispersion)
    if isinstance(family, Mixed):
        return _over_members(expected_remainder_bounds, family, m, v, eta0, dispersion=phi)
    m, v, eta0 = jnp.broadcast_arrays(m, v, eta0)
    if isinstance(family, Gaussian):
        return jnp.zeros_like(m), jnp.zeros_like(m)
    if not isinstance(family, Binomial | Poisson):
        raise TypeError(f"family: remainder bounds are known for Gaussian, Binomial, Poisson; got {family!r}")
    theta0 = family.natural_parameter(eta0)
    delta = family.natural_parameter(m) - theta0
    v = family.natural_parameter(family.natural_parameter(v))
    eps = _ROUNDING * jnp.finfo(m.dtype).eps
    third, third_size = delta**3 + 3 * delta * v, jnp.abs(delta) ** 3 + 3 * jnp.abs(delta) * v
    fourth = delta**4 + 6 * delta**2 * v + 3 * v**2
    if isinstance(family, Poisson):
        # under the tilted density e^delta N(m, v) the moments are those of N(m + v, v)
        tilted = delta + v
        tilted_third, tilted_size = tilted**3 + 3 * tilted * v, jnp.abs(tilted) ** 3 + 3 * jnp.abs(tilted) * v
        growth = jnp.exp(delta + 0.5 * v) * (1 + eps * (jnp.abs(delta) + v))
        scale = jnp.exp(theta0) / 6
        lower = -scale * growth * (tilted_third + eps * tilted_size)
        upper = -scale * (third - eps * third_size)
        return lower / phi, upper / phi
    n = family._trials(m)
    slope = _third_derivative(family, theta0)
    cubic, size = -slope * third / 6, jnp.abs(slope) * third_size / 6
    lower = cubic - n * fourth / 576 - eps * (size + n * fourth)
    lower = jnp.where(eta0 == 0, 0.0, lower)  # R2 >= 0: w is the largest curvature
    return lower / phi, (cubic + n * fourth / 192 * (1 + eps) + eps * size) / phi
