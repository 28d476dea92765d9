"""What an offset leaves of the rows for the closed form: working residuals x - mu(o).

For a logistic column with n trials, t = rho eta, the curvature of log p is at most rho^2 n / (4 phi), so at eta = o + u

    log p(x | o + u) >= log p(x | o) + rho (x - mu(o)) u / phi - w u^2 / 2,     w = rho^2 n / (4 phi)

(Boehning 1992). With one w a column, for which trials an entry need the largest n of the column (their mean is no
bound), the closed form holds for the responses rho (x - mu(o)) / (phi w). For a Gaussian column the same is an equality
with w = rho^2 / phi. Other families have no closed form with an offset.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae.families import Family
from glmvae.rows import Rows


def brings_residuals(family: Family, rows: Rows) -> bool:
    """Whether the closed form of these rows is that of residuals: they bring an offset, or trials an entry."""
    return rows.offset is not None or family.needs_trials


def is_bounded(family: Family) -> bool:
    """Whether log p of a column is logistic with trials that do not depend on x: Boehning's bound is there."""
    return family.is_logistic and family.curvature_is_constant


def with_trials(family: Family, trials: Any) -> Family:
    """The family, with those trials where it leaves them to the rows."""
    if not family.needs_trials:
        return family
    return family.for_rows(Rows.tree_unflatten(None, [trials, trials, None, None, None, None]))


def explained(family: Family, rows: Rows) -> tuple[Array, Array]:
    """mu(o), and x theta(o) - F(theta(o)), both (N, d), o = 0 without an offset; x - mu(o) is the working residual.

    Columns whose family knows neither have 0 in both, where there is no offset.

    Args:
        family: as the rows' trials have not yet met it.
        rows: the rows.

    Raises:
        ValueError: an offset, and a column whose family has no closed form with one.
    """
    offset = jnp.zeros((1, 1), rows.x.dtype) if rows.offset is None else rows.offset

    def of(member: Family, x: Array, offset: Array, trials: Array | None) -> tuple[Array, Array]:
        if not (member.is_quadratic or is_bounded(member)):
            if rows.offset is not None:
                raise ValueError(
                    f"offset: {type(member).__name__} has no closed form with an offset, Gaussian, Bernoulli and "
                    "Binomial have one; fit without it, then `refine` with it"
                )
            return jnp.zeros_like(x), jnp.zeros_like(x)
        known = with_trials(member, trials)
        mean = jnp.broadcast_to(known.mean(offset), x.shape)
        if member.is_quadratic:
            return mean, jnp.zeros_like(x)
        theta = known.natural_parameter(offset)
        return mean, x * theta - known.log_normalizer(theta)

    return family.by_member(of, rows.x, offset, rows.trials)


def encoder_shift(family: Family, like: Float[Array, " d"]) -> Float[Array, " d"]:
    """What an encoder adds to x - mu(o), to act on x without an offset: mu(0), or 0 where rows bring trials."""

    def of(member: Family, zero: Array) -> Array:
        plain = member.is_quadratic or (is_bounded(member) and not member.needs_trials)
        return member.mean(zero) if plain else zero

    return family.by_member(of, jnp.zeros_like(like))


def encoder_input(family: Family, rows: Rows) -> Float[Array, "n d"]:
    """What the affine encoder of the closed form acts on: x, less what offset and trials explain."""
    if not brings_residuals(family, rows):
        return rows.x
    return rows.x - explained(family, rows)[0] + encoder_shift(family, rows.x[0])[None]
