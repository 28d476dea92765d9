"""The Gamma and Exponential families, whose Gaussian expectations have closed forms."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae.families import remainders, special
from glmvae.families.base import Family
from glmvae.families.support import Support


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gamma(Family):
    """Positive x with the log activation: theta = -exp(-eta), F = -log(-theta), mu = exp(eta), Var = phi mu^2.

        log p = (log(x / mu) - x / mu) / phi - log x - log Gamma(1 / phi) - log(phi) / phi

    a gamma density of shape 1 / phi. log p is concave in eta; its curvature x / (mu phi) depends on x, so expansions
    use the expectation, 1 / phi (Fisher scoring).

    Raises:
        ValueError: ``activation`` other than ``"log"``. The canonical one, theta = eta, needs eta < 0, which no
            Gaussian posterior respects: the exact ELBO of such a decoder is -infinity.

    Example:
        >>> from glmvae.families import Gamma
        >>> round(float(Gamma().log_prob(2.0, 0.0, dispersion=0.5)), 4)  # log(4 * 2 * exp(-4))
        -1.9206
    """

    activation: str = dataclasses.field(default="log", kw_only=True)

    static = ("activation",)
    fixed_dispersion: ClassVar[float | None] = None
    curvature_is_constant = False
    estimates_dispersion: ClassVar[bool] = True
    has_remainder = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation == "canonical":
            raise ValueError(
                'activation: expected "log", got "canonical": theta = eta needs eta < 0, which no Gaussian posterior '
                "respects, so the exact ELBO would be -inf"
            )
        if self.activation != "log":
            raise ValueError(f'activation: expected "log", got {self.activation!r}')

    @property
    def support(self) -> Support:
        return Support(0.0, open_lower=True)

    def natural_parameter(self, eta: Array) -> Array:
        """theta(eta) = -exp(-rho eta)."""
        return -jnp.exp(-eta)

    def log_normalizer(self, theta: Array) -> Array:
        return -jnp.log(-theta)

    def base_statistic(self, x: Array) -> Array:
        return jnp.log(x)

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        shape = 1.0 / jnp.asarray(dispersion, statistic.dtype)
        return (shape - 1) * statistic + shape + special.stirling(shape)

    def mean(self, eta: Array) -> Array:
        return jnp.exp(eta)

    def variance_function(self, eta: Array) -> Array:
        return jnp.exp(eta) ** 2

    def link(self, mean: Array) -> Array:
        return jnp.log(mean)

    def null_predictor(self, mean: Array) -> Array:
        # Positive data of any scale: only a mean that has underflowed is no mean of theirs.
        return self.link(special.positive(mean))

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return special.stirling(1.0 / jnp.asarray(dispersion, x.dtype)) - jnp.log(x)

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.saturated_log_prob(x, dispersion) - special.exp_remainder(jnp.log(x) - eta) / dispersion

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        # -E x / mu - m is the log-likelihood at -log E 1 / mu less v / 2: neither part of the sum cancels the other
        log_ratio = jnp.log(x) - mean + 0.5 * variance
        ratio = jnp.exp(log_ratio)  # E x / mu
        value = -(special.exp_remainder(log_ratio) + 0.5 * variance)
        return value / dispersion, (ratio - 1) / dispersion, ratio / dispersion

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        value, gradient, _ = self.expected_terms(x, mean, variance, dispersion)
        moved = (jnp.abs(value) + jnp.abs(gradient)) * (1 + jnp.abs(mean) + 0.5 * variance + jnp.abs(jnp.log(x)))
        return moved + jnp.abs(jnp.log(x)) + jnp.abs(special.stirling(1.0 / jnp.asarray(dispersion, x.dtype)))

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: ArrayLike = 1.0
    ) -> Array:
        mu = self.mean(eta0)  # whose square may be out of range
        ratio = mean / mu
        spread = variance / mu * jnp.exp(-eta0) + (ratio - 1) ** 2  # two divisions XLA makes one, by the square
        at_eta0 = (statistic - eta0 - ratio + 1 + 0.5 * spread) / dispersion
        return at_eta0 + special.stirling(1.0 / jnp.asarray(dispersion, mean.dtype)) - statistic

    def remainder_of_step(self, step: Array, start: Array, x: Any, dispersion: Array) -> tuple[Array, Array]:
        return _gamma_remainder(remainders.exponential_remainder(-step), step**2, start, x, dispersion)

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Any, dispersion: Array
    ) -> tuple[Array, Array]:
        third = remainders.expected_exponential(-mean, variance)
        return _gamma_remainder(third, mean**2 + variance, start, x, dispersion)

    def dispersion_from(self, deviance: Array) -> Array:
        return 1 / _gamma_shape(deviance)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        mean, phi = jnp.broadcast_arrays(self.mean(eta), jnp.asarray(dispersion, eta.dtype))
        return mean * phi * jax.random.gamma(key, 1 / phi, dtype=mean.dtype)


def _gamma_remainder(
    third: remainders.Interval, square: Array, start: Array, x: Array, dispersion: Array
) -> tuple[Array, Array]:
    """-x / mu times the third order, and (1 - x / mu) / 2 times the square: the weight is Fisher's."""
    ratio = x * jnp.exp(-start)
    eps = 8 * jnp.finfo(square.dtype).eps
    second = remainders.around(0.5 * (1 - ratio) * square, eps * (1 + ratio * (1 + jnp.abs(start))) * square)
    found = third.negated().scaled(ratio, 1 + jnp.abs(start)).plus(second).scaled(1 / dispersion)
    return found.lower, found.upper


def _gamma_shape(deviance: Array) -> Array:
    """The k with log k - digamma(k) = deviance, by Newton's method in log k from Minka's start."""
    start = (3 - deviance + jnp.sqrt((deviance - 3) ** 2 + 24 * deviance)) / (12 * deviance)

    def step(_: Any, log_shape: Array) -> Array:
        shape = jnp.exp(log_shape)
        gap = jnp.log(shape) - jax.scipy.special.digamma(shape) - deviance
        return log_shape - gap / (1 - shape * jax.scipy.special.polygamma(1, shape))

    return jnp.exp(jax.lax.fori_loop(0, 8, step, jnp.log(start)))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Exponential(Gamma):
    """Waiting times with the log activation, :class:`Gamma` at phi = 1: log p = -eta - x exp(-eta).

    Example:
        >>> from glmvae.families import Exponential
        >>> round(float(Exponential().log_prob(3.0, 0.0)), 4)
        -3.0
    """

    fixed_dispersion = 1.0
    estimates_dispersion = False
