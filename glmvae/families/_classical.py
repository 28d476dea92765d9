"""The families of the paper's Table 1: Gaussian, binomial, Bernoulli, Poisson."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae._logistic_mixture import expected_logistic
from glmvae._softplus import expected_excess, sigmoid, softplus, softplus_derivative
from glmvae.families._base import Family, Support, pytree_family


@pytree_family()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Family):
    """The normal family: F = theta^2 / 2, phi = sigma^2, mu = theta. Every quadratic expansion is exact.

    Example:
        >>> from glmvae.families import Gaussian
        >>> round(float(Gaussian().log_prob(1.0, 0.0, dispersion=2.0)), 4)
        -1.5155
    """

    fixed_dispersion = None

    def log_normalizer(self, theta: Array) -> Array:
        return 0.5 * theta**2

    def base_statistic(self, x: Array) -> Array:
        return x**2

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        return -0.5 * (statistic / dispersion + jnp.log(2 * math.pi * dispersion))

    def mean(self, eta: Array) -> Array:
        return self.natural_parameter(eta)

    def variance_function(self, eta: Array) -> Array:
        return jnp.ones_like(eta)

    def link(self, mean: Array) -> Array:
        return mean / self._scale(mean)

    def _log_prob(self, x: Array, eta: Array, dispersion: Array) -> Array:
        residual = x - self.mean(eta)
        return -0.5 * (residual**2 / dispersion + jnp.log(2 * math.pi * dispersion))

    def _expected_log_prob(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        return self._log_prob(x, mean, dispersion) - 0.5 * self._scale(mean) ** 2 * variance / dispersion

    def expected_gradient(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self._scale(mean) * (x - self.mean(mean)) / dispersion

    def expected_weight(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        return jnp.broadcast_to(self._scale(mean) ** 2 / dispersion, jnp.broadcast_shapes(mean.shape, variance.shape))

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: Array
    ) -> Array:
        # The squares of x cancel exactly; written out they would take the digits with them.
        return jnp.broadcast_to(-0.5 * jnp.log(2 * math.pi * dispersion), jnp.shape(mean))

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        noise = jax.random.normal(key, jnp.shape(eta), jnp.asarray(eta).dtype)
        return self.mean(eta) + jnp.sqrt(jnp.asarray(dispersion, noise.dtype)) * noise


@pytree_family()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Binomial(Family):
    """x successes in ``trials`` [n]: F = n softplus(theta), K = log C(n, x), mu = n sigmoid(theta).

    ``trials`` is a scalar, one value a column, (d,), or one an entry, (N, d), which the moments behind the closed form
    know nothing of but ELBOs and :func:`~glmvae.refine.refine` do. Values of x between the integers count as
    proportions.

    Raises:
        ValueError: a trial count below 1 or not finite; it names the first.

    Example:
        >>> from glmvae.families import Binomial
        >>> round(float(Binomial(16).log_prob(8, 0.0)), 4)  # log C(16, 8) / 2^16
        -1.6277
    """

    trials: ArrayLike

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.at_least(self.trials, 1.0, "trials", entries=True)
        if isinstance(self.trials, list | tuple):
            object.__setattr__(self, "trials", np.asarray(self.trials))

    def _trials(self, like: Array) -> Array:
        return jnp.asarray(self.trials, like.dtype)

    @property
    def columns(self) -> int | None:
        return _checks.length(self.trials)

    def of_column(self, column: int) -> Family:
        return self if self.columns is None else dataclasses.replace(self, trials=np.asarray(self.trials)[..., column])

    @property
    def support(self) -> Support:
        return Support(0.0, self.trials)

    def log_normalizer(self, theta: Array) -> Array:
        return self._trials(theta) * softplus(theta)

    def base_statistic(self, x: Array) -> Array:
        n = self._trials(x)
        return gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)

    def mean(self, eta: Array) -> Array:
        return self._trials(eta) * sigmoid(self.natural_parameter(eta))

    def variance_function(self, eta: Array) -> Array:
        return self._trials(eta) * softplus_derivative(2, self.natural_parameter(eta))

    def link(self, mean: Array) -> Array:
        return (jnp.log(mean) - jnp.log(self._trials(mean) - mean)) / self._scale(mean)

    def _log_prob(self, x: Array, eta: Array, dispersion: Array) -> Array:
        # x log sigmoid + (n - x) log(1 - sigmoid): no cancellation however far out.
        theta = self.natural_parameter(eta)
        kernel = -(x * softplus(-theta) + (self._trials(x) - x) * softplus(theta))
        return kernel / dispersion + self.log_base_measure(x)

    def _expected_log_prob(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        scale, n = self._scale(mean), self._trials(x)
        m = scale * mean
        # E softplus(m) = max(m, 0) + r and E softplus(-m) = max(-m, 0) + r share the small part r.
        kink = x * jnp.maximum(-m, 0.0) + (n - x) * jnp.maximum(m, 0.0)
        return -(kink + n * expected_excess(0, m, scale**2 * variance)) / dispersion + self.log_base_measure(x)

    def expected_gradient(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        scale, n = self._scale(mean), self._trials(x)
        m, excess = scale * mean, expected_excess(1, scale * mean, scale**2 * variance)
        # x - n E sigmoid, with n - x taken first where sigmoid is near 1
        return scale * (jnp.where(m > 0, x - n, jnp.where(m < 0, x, x - 0.5 * n)) - n * excess) / dispersion

    def expected_weight(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        scale = self._scale(mean)
        return self._trials(x) * scale**2 * expected_excess(2, scale * mean, scale**2 * variance) / dispersion

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        # An absolute error of 3e-12 n (float64), at an eighth of the cost of the three apart
        scale, n = self._scale(mean), self._trials(x)
        m = scale * mean
        excess, tail, slope = expected_logistic(m, scale**2 * variance)
        kink = x * jnp.maximum(-m, 0.0) + (n - x) * jnp.maximum(m, 0.0)
        value = -(kink + n * excess) / dispersion
        gradient = scale * jnp.where(m > 0, n * tail - (n - x), x - n * tail) / dispersion
        return value, gradient, n * scale**2 * slope / dispersion

    def expected_terms_constant(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.log_base_measure(x)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        p = sigmoid(self.natural_parameter(eta))
        return jax.random.binomial(key, self._trials(p), p, dtype=p.dtype)


@pytree_family()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bernoulli(Binomial):
    """Binary x, or grey values in [0, 1] read as proportions: F = softplus(theta), K = 0, mu = sigmoid(theta).

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.families import Bernoulli
        >>> print(Bernoulli().log_prob(jnp.array([0.0, 1.0]), 0.0))
        [-0.693... -0.693...]
    """

    trials: ArrayLike = dataclasses.field(default=1.0, init=False)

    def base_statistic(self, x: Array) -> Array:
        return jnp.zeros_like(x)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        p = sigmoid(self.natural_parameter(eta))
        return jax.random.bernoulli(key, p).astype(p.dtype)


@pytree_family()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Poisson(Family):
    """Counts: F = exp(theta), K = -log x!, mu = exp(theta).

    Example:
        >>> from glmvae.families import Poisson
        >>> round(float(Poisson().log_prob(3, 0.0)), 4)  # -1 - log 3!
        -2.7918
    """

    @property
    def support(self) -> Support:
        return Support(0.0)

    def log_normalizer(self, theta: Array) -> Array:
        return jnp.exp(theta)

    def base_statistic(self, x: Array) -> Array:
        return -gammaln(x + 1)

    def mean(self, eta: Array) -> Array:
        return jnp.exp(self.natural_parameter(eta))

    def variance_function(self, eta: Array) -> Array:
        return self.mean(eta)

    def link(self, mean: Array) -> Array:
        return jnp.log(mean) / self._scale(mean)

    def _expected_log_prob(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        kernel = x * self._scale(mean) * mean - self._expected_rate(mean, variance)
        return kernel / dispersion + self.log_base_measure(x)

    def _expected_rate(self, mean: Array, variance: Array) -> Array:
        scale = self._scale(mean)
        return jnp.exp(scale * mean + 0.5 * scale**2 * variance)

    def expected_gradient(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self._scale(mean) * (x - self._expected_rate(mean, variance)) / dispersion

    def expected_weight(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self._scale(mean) ** 2 * self._expected_rate(mean, variance) / dispersion

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        scale, rate = self._scale(mean), self._expected_rate(mean, variance)
        value = (x * scale * mean - rate) / dispersion
        return value, scale * (x - rate) / dispersion, scale**2 * rate / dispersion

    def expected_terms_constant(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.log_base_measure(x)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        rate = self.mean(eta)
        return jax.random.poisson(key, rate).astype(rate.dtype)
