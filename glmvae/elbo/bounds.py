"""What the quadratic in eta leaves out: R2 = log p(x | eta) - quadratic, enclosed, and its expectation (Corollary 1).

The mathematics is the family's own, ``Family.remainder`` and ``Family.expected_remainder``; here its arguments are
checked and brought to one shape. Where the curvature of log p depends on x (Gamma, Exponential, negative binomial) the
quadratic has Fisher's weight, so the remainder begins at second order, (1 - observed / Fisher) w delta^2 / 2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae.families import Family
from glmvae.families.checks import check_columns, check_family


def remainder_bounds(
    family: Family,
    eta: ArrayLike,
    expand_at: ArrayLike = 0.0,
    *,
    x: ArrayLike | None = None,
    dispersion: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """Enclose R2 = log p(x | eta) - quadratic at eta0 (Corollary 1).

        R2 = -(1 / phi) int_0^1 (1 - t)^2 / 2  F'''(theta0 + t delta) dt  delta^3,      delta = theta - theta0

    where the curvature does not depend on x. The integral has no cancellation, so the enclosure is a few rounding units
    wide also at \\|eta\\| = 1e-6; for \\|delta\\| > 2 the difference itself is taken, with its rounding.

    Args:
        family: a built-in family, with any ``activation_scale``, or one of your own that gives its remainder.
        eta: linear predictors, any shape, (..., d) for a family of d columns.
        expand_at: eta0, broadcast against eta.
        x: data, broadcast against eta; needed where ``family.remainder_depends_on_x``.
        dispersion: phi.

    Returns:
        (lower, upper), of the broadcast shape, in nats, entry by entry; a row's remainder is their sum over columns. An
        end that overflows is infinite.

    Raises:
        TypeError: a family that knows no remainder; arguments that are not numbers.
        ValueError: NaN or infinity; data out of the support, or none where they are needed; a dispersion that is not
            positive; shapes that do not broadcast.

    Exactness: lower <= R2 <= upper, floating point included. At eta0 = 0 inside the paper's bounds, which are
    n eta^4 / 192 [0, 1] for binomial and [-eta^3 e^eta / 6, -eta^3 / 6] for Poisson; 0 for Gaussian.

    Example:
        >>> from glmvae import remainder_bounds
        >>> from glmvae.families import Bernoulli
        >>> lower, upper = remainder_bounds(Bernoulli(), 1.0)
        >>> print(f"{lower:.5f} {upper:.5f} {1 / 192:.5f}")
        0.00489 0.00489 0.00521

    Source: Corollary 1, appendix A.3, with the remainder in integral form.
    """
    values = _arguments(family, x, dispersion, eta=eta, expand_at=expand_at)
    return _remainder(family, *values)


@jax.jit
def _remainder(family: Family, x: Array | None, phi: Array, eta: Array, eta0: Array) -> tuple[Array, Array]:
    eta, eta0, *_ = jnp.broadcast_arrays(eta, eta0, phi, eta if x is None else x)
    return family.remainder(eta, eta0, x, phi)


def expected_remainder_bounds(
    family: Family,
    mean: ArrayLike,
    variance: ArrayLike,
    expand_at: ArrayLike = 0.0,
    *,
    x: ArrayLike | None = None,
    dispersion: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """Enclose E R2 for eta ~ N(mean, variance): what stands between L-hat and the ELBO (Corollary 1).

    With delta = theta - theta0 ~ N(m, v), from the Gaussian moments of bounds of R2, E delta^4 = m^4 + 6 m^2 v + 3 v^2:

        binomial at 0:   n / 192 E delta^4 [0, 1]
        binomial:        -F'''(theta0) E delta^3 / 6 + n E delta^4 / 24 [-1/24, 1/8]

    or, where that is sharper, from R2 at the mean and what the variance can add to it; in closed form where E log p is:
    Poisson, Gamma and Exponential.

    Args:
        family, expand_at, x, dispersion: as in :func:`remainder_bounds`.
        mean, variance: of the linear predictors, shapes that broadcast; ``W mu_z + b`` and ``diag(W Sigma_z W')``
            under a posterior.

    Returns:
        (lower, upper) in nats, entry by entry. Summed over columns and added to a row of
        :func:`~glmvae.elbo.elbo_quadratic` they bracket that row of :func:`~glmvae.elbo.elbo_exact`. An end that
        overflows is infinite.

    Raises:
        TypeError, ValueError: as :func:`remainder_bounds`; a variance below 0.

    Exactness: a lower and an upper bound of E R2, floating point included.

    Example:
        >>> from glmvae import expected_remainder_bounds
        >>> from glmvae.families import Bernoulli
        >>> lower, upper = expected_remainder_bounds(Bernoulli(), 0.0, 1.0)
        >>> print(f"{abs(lower):.5f} {upper:.5f}")  # 3 / 192
        0.00000 0.01563

    Source: Corollary 1 ("the expected error" of figure 1).
    """
    values = _arguments(family, x, dispersion, mean=mean, variance=variance, expand_at=expand_at)
    _settings.not_negative(values[3], "variance")
    return _expected_remainder(family, *values)


@jax.jit
def _expected_remainder(
    family: Family, x: Array | None, phi: Array, mean: Array, variance: Array, eta0: Array
) -> tuple[Array, Array]:
    mean, variance, eta0, *_ = jnp.broadcast_arrays(mean, variance, eta0, phi, mean if x is None else x)
    return family.expected_remainder(mean, variance, eta0, x, phi)


def _arguments(family: Any, x: Any, dispersion: Any, **named: Any) -> list[Any]:
    """x, the dispersion and the named values, of one rank and precision."""
    check_family(family)
    if family.has_remainder and family.remainder_depends_on_x and x is None:
        raise ValueError(f"x: the remainder of {family!r} depends on it, got None")
    values = {name: _checks.finite(_checks.numeric(value, name), name) for name, value in named.items()}
    _settings.positive_each(dispersion, "dispersion")
    values = {"dispersion": _checks.numeric(dispersion, "dispersion"), **values}
    if x is not None:
        family.validate(x)
        values = {"x": _checks.numeric(x, "x"), **values}
    try:
        shape = np.broadcast_shapes(*(value.shape for value in values.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in values.items())
        raise ValueError(f"expected shapes that broadcast, got {shapes}") from error
    if shape and shape[-1] != 1:
        check_columns(shape[-1], family, next(iter(named)))
    strong = [value.dtype for value in values.values() if not value.weak_type]
    dtype = max(strong or [jnp.result_type(float)], key=lambda dtype: dtype.itemsize)
    alike = [jnp.expand_dims(value.astype(dtype), tuple(range(len(shape) - value.ndim))) for value in values.values()]
    return alike if x is not None else [None, *alike]
