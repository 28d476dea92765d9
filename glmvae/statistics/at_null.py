"""The mean of log p at the null model, which moments of counts keep beside that of K.

The mean over rows of log p(x | eta) is that of x theta - F(theta), which the mean m of x tells, and that of K. For
large counts the two cancel: log x! of a count of 1e5 is 1e6, and one rounding unit of it in single precision 0.06 nats.
So where a family says so (``keeps_log_prob``) moments hold, at phi = 1,

    s = mean log p(x | eta_m),     eta_m = link(m)

which is small, and the largest there is. From there everything is a difference of two values of log p at m, which the
family computes without cancellation: log p but for K is affine in x, so

    mean log p(x | eta) = s + log p(m | eta) - log p(m | eta_m)

and it tells s about another mean too, when two sets of rows are taken together. Of working residuals s is the mean of
log p at the offset.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from glmvae.families import Family
from glmvae.families.calculus import half_spread
from glmvae.rows import Rows
from glmvae.statistics.centring import divisor, merged
from glmvae.statistics.residuals import is_bounded, with_trials


def log_prob_at_null(family: Family, rows: Rows, mean: Array, residual: bool) -> Array:
    """Log p of every entry at the null model of its column, or at its offset, (n, d); 0 of families that keep none."""
    offset = jnp.zeros((1, 1), rows.x.dtype) if rows.offset is None else rows.offset

    def of(member: Family, x: Array, mean: Array, offset: Array, trials: Array | None) -> Array:
        if not member.keeps_log_prob:
            return jnp.zeros_like(x)
        if residual and is_bounded(member):
            return with_trials(member, trials).log_prob(x, offset)
        return member.log_prob(x, member.null_predictor(mean))

    found: Array = family.by_member(of, rows.x, mean, offset, rows.trials)
    return found


def joined(family: Family | None, a: Any, b: Any) -> Any:
    """Moments of two sets of rows taken together, :func:`~glmvae.statistics.centring.merged` and s."""
    result = merged(a, b)
    if family is None or a.null_log_prob is None or b.null_log_prob is None:
        return result._replace(null_log_prob=None)
    residual, share = a.at_offset is not None, b.count / divisor(result.count)
    left, right = (moved(family, part.null_log_prob, part.mean, result.mean, residual) for part in (a, b))
    return result._replace(null_log_prob=left + share * (right - left))


def moved(family: Family, at_null: Array, mean: Array, to: Array, residual: bool) -> Array:
    """s about another mean of its column; at the offset it is what it was."""

    def of(member: Family, at_null: Array, mean: Array, to: Array) -> Array:
        if not member.keeps_log_prob or (residual and is_bounded(member)):
            return at_null
        return at_null + _beyond(member, mean, member.null_predictor(to))

    found: Array = family.by_member(of, at_null, mean, to)
    return found


def _beyond(member: Family, mean: Array, eta: Array) -> Array:
    return member.log_prob(mean, eta) - member.log_prob(mean, member.null_predictor(mean))


class Columns(NamedTuple):
    """What moments know of each column, (d,): see :class:`~glmvae.statistics.Moments`."""

    mean: Array
    variance: Array
    statistic: Array
    null_log_prob: Array | None

    def log_prob_of(self, member: Family) -> Array | None:
        """s, where it is known of a family's columns."""
        return self.null_log_prob if member.keeps_log_prob else None


def mean_log_prob(member: Family, of: Columns, eta: Array, phi: Array) -> Array:
    """The mean over rows of log p(x | eta), (d,), in nats, from moments of x."""
    at_null = of.log_prob_of(member)
    if at_null is None:
        constant = member.expansion_constant(of.mean, of.variance, of.statistic, eta, phi)
        return constant - half_spread(member, of.mean, of.variance, eta, phi)
    return of_dispersion(member, at_null + _beyond(member, of.mean, eta), of.statistic, phi)


def of_dispersion(member: Family, at_one: Array, statistic: Array, phi: Array) -> Array:
    """The mean of log p at phi, from that at phi = 1; there no digit changes."""
    return at_one / phi + (
        member.log_base_measure_from(statistic, phi) - member.log_base_measure_from(statistic, 1.0) / phi
    )


def expansion_constant(member: Family, of: Columns, eta0: Array, phi: Array) -> Array:
    """``Family.expansion_constant``, with all digits of large counts where moments know them."""
    if of.log_prob_of(member) is None:
        return member.expansion_constant(of.mean, of.variance, of.statistic, eta0, phi)
    return mean_log_prob(member, of, eta0, phi) + half_spread(member, of.mean, of.variance, eta0, phi)
