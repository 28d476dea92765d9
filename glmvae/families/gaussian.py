"""The Gaussian family, for which the expansion of the log-likelihood is exact."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae.families.base import Family


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Family):
    """The normal family: F = theta^2 / 2, phi = sigma^2, mu = theta. Every quadratic expansion is exact.

    Example:
        >>> from glmvae.families import Gaussian
        >>> round(float(Gaussian().log_prob(1.0, 0.0, dispersion=2.0)), 4)
        -1.5155
    """

    fixed_dispersion = None
    is_quadratic = True
    estimates_dispersion = True
    has_remainder = True

    def log_normalizer(self, theta: Array) -> Array:
        return 0.5 * theta**2

    def base_statistic(self, x: Array) -> Array:
        return x**2

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        return -0.5 * (statistic / dispersion + jnp.log(2 * math.pi * dispersion))

    def mean(self, eta: Array) -> Array:
        return eta

    def variance_function(self, eta: Array) -> Array:
        return jnp.ones_like(eta)

    def link(self, mean: Array) -> Array:
        return mean

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return -0.5 * (x - eta) ** 2 / dispersion + self.saturated_log_prob(x, dispersion)

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return jnp.zeros_like(x) - 0.5 * jnp.log(2 * math.pi * dispersion)

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        residual = x - mean
        weight = jnp.ones_like(residual) / dispersion
        return -0.5 * (residual**2 + variance) / dispersion, residual / dispersion, weight

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        squares = 0.5 * ((x - mean) ** 2 + variance) / dispersion
        return squares + jnp.abs(self.saturated_log_prob(x, dispersion)) + 0.5

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: ArrayLike = 1.0
    ) -> Array:
        # The squares of x cancel exactly; written out they would take the digits with them.
        return jnp.broadcast_to(-0.5 * jnp.log(2 * math.pi * dispersion), jnp.shape(mean))

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(step), jnp.zeros_like(step)

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        zero = jnp.zeros(jnp.broadcast_shapes(mean.shape, variance.shape), mean.dtype)
        return zero, zero

    def dispersion_from(self, deviance: Array) -> Array:
        return 2 * deviance

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return eta + jnp.sqrt(dispersion) * jax.random.normal(key, eta.shape, eta.dtype)
