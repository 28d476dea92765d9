"""The Poisson family, whose Gaussian expectations have closed forms."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae.families import remainders, samplers, special
from glmvae.families.base import Family
from glmvae.families.support import Support


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Poisson(Family):
    """Counts: F = exp(theta), K = -log x!, mu = exp(theta).

    Example:
        >>> from glmvae.families import Poisson
        >>> round(float(Poisson().log_prob(3, 0.0)), 4)  # -1 - log 3!
        -2.7918
    """

    has_remainder = True
    keeps_log_prob = True

    @property
    def support(self) -> Support:
        return Support(0.0)

    def log_normalizer(self, theta: Array) -> Array:
        return jnp.exp(theta)

    def base_statistic(self, x: Array) -> Array:
        return special.log_poisson_saturated(x) - (special.x_log(x) - x)

    def mean(self, eta: Array) -> Array:
        return jnp.exp(eta)

    def variance_function(self, eta: Array) -> Array:
        return jnp.exp(eta)

    def link(self, mean: Array) -> Array:
        return jnp.log(mean)

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return special.log_poisson_saturated(x) + (1 / dispersion - 1) * (special.x_log(x) - x)

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.saturated_log_prob(x, dispersion) - special.poisson_deviance(x, eta) / dispersion

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        # x m - E e^eta is the log-likelihood at log E e^eta less x v / 2: neither part of the sum cancels the other
        log_rate = mean + 0.5 * variance
        rate = jnp.exp(log_rate)
        value = -(special.poisson_deviance(x, log_rate) + 0.5 * x * jnp.where(x == 0, 0.0, variance))
        return value / dispersion, (x - rate) / dispersion, rate / dispersion

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        value, gradient, _ = self.expected_terms(x, mean, variance, dispersion)
        moved = (jnp.abs(value) + jnp.abs(gradient)) * (1 + jnp.abs(mean) + 0.5 * variance)
        return moved + jnp.abs(self.saturated_log_prob(x, dispersion))

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        return _times_rate(remainders.exponential_remainder(step), start, dispersion)

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        return _times_rate(remainders.expected_exponential(mean, variance), start, dispersion)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return samplers.poisson_counts(key, self.mean(eta))


def _times_rate(found: remainders.Interval, start: Array, dispersion: Array) -> tuple[Array, Array]:
    found = found.negated().scaled(jnp.exp(start) / dispersion, 1 + jnp.abs(start))
    return found.lower, found.upper
