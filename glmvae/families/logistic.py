"""Binomial, Bernoulli and negative binomial: one formula.

    log p(x | t) = x t - n softplus(t) + K(x),      n the trials, or x + size for a negative binomial

With ``rest`` = n - x, a negative binomial's size, the score is x sigmoid(-t) - rest sigmoid(t), the observed weight
n sigmoid'(t), and K the logarithm of C(n, x) up to a factor. For large n see :mod:`glmvae.families.special`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae.families import remainders, samplers, special
from glmvae.families.base import Family
from glmvae.families.logistic_expectation import Kind, at_mean, logistic_terms, many
from glmvae.families.scale import Logistic
from glmvae.families.softplus_calculus import sigmoid, softplus, softplus_derivative
from glmvae.families.support import Support, of_rank
from glmvae.families.trees import replaced

if TYPE_CHECKING:
    from glmvae.rows import Rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogisticFamily(Family):
    """log p = x t - n softplus(t) + K. A family gives its ``kind``, ``parameter``, and ``log_coefficient`` [K]."""

    is_logistic = True
    has_remainder = True
    #: The parameter is n, and not n - x; no trials are ever so many that log p is to be taken apart.
    kind: ClassVar[Kind] = Kind(given_trials=True, few=False)

    @property
    def keeps_log_prob(self) -> bool:  # type: ignore[override]
        return not self.kind.few

    def parameter(self, x: Array) -> Array:
        """The trials or the size, as numbers of the precision of x."""
        raise NotImplementedError

    def rest(self, x: Array) -> Array:
        """n - x."""
        return self.kind.rest(x, self.parameter(x))

    def log_coefficient(self, x: Array, log_choose: Array) -> Array:
        """K(x), from log C(n, x)."""
        raise NotImplementedError

    def base_statistic(self, x: Array) -> Array:
        return self.log_coefficient(x, special.log_choose(x, self.rest(x)))

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        """K(x) where trials are few, log p at the mean x where they are many."""
        if self.kind.few:
            return self.base_statistic(x)
        rest = self.rest(x)
        at_x = self.log_coefficient(x, special.log_binomial_saturated(x, rest))
        at_x = at_x + (1 / dispersion - 1) * special.log_shares(x, rest)
        return jnp.where(many(x + rest), at_x, self.base_statistic(x))

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        lacking = at_mean(self.kind, x, self.parameter(x), eta)
        return self.saturated_log_prob(x, dispersion) - lacking / dispersion

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        value, gradient, weight = logistic_terms(self.kind, x, self.parameter(x), mean, variance)
        return value / dispersion, gradient / dispersion, weight / dispersion

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        value, gradient, _ = self.expected_terms(x, mean, variance, dispersion)
        moved = (jnp.abs(value) + jnp.abs(gradient)) * (1 + jnp.abs(mean))
        return moved + jnp.abs(self.saturated_log_prob(x, dispersion))

    def logistic_form(self, x: Array) -> Logistic:
        return Logistic(x, x + self.rest(x))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Binomial(LogisticFamily):
    """x successes in ``trials`` [n]: F = n softplus(theta), K = log C(n, x), mu = n sigmoid(theta).

    ``trials`` is a scalar, one value a column, (d,), or None, where the rows bring one an entry:
    ``Rows(x, trials=...)``. Values of x between the integers count as proportions.

    Raises:
        ValueError: a trial count below 1 or not finite, it names the first; trials an entry, (N, d).

    Example:
        >>> from glmvae.families import Binomial
        >>> round(float(Binomial(16).log_prob(8, 0.0)), 4)  # log C(16, 8) / 2^16
        -1.6277
    """

    static: ClassVar[tuple[str, ...]] = ("few",)

    trials: Any
    #: No trials are many: known where they are numbers when the family is made.
    few: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials is None:
            return
        if np.ndim(self.trials) == 2:
            raise ValueError(
                f"trials: expected a scalar or one a column, got shape {np.shape(self.trials)}; trials an entry travel "
                "with their rows, as Binomial(None) and Rows(x, trials=...)"
            )
        _settings.at_least(self.trials, 1.0, "trials")
        if isinstance(self.trials, list | tuple):
            object.__setattr__(self, "trials", np.asarray(self.trials))
        if _checks.concrete(self.trials):
            object.__setattr__(self, "few", not bool(np.any(many(np.asarray(self.trials)))))

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return Kind(given_trials=True, few=self.few)

    @property
    def needs_trials(self) -> bool:  # type: ignore[override]
        return self.trials is None

    def for_rows(self, rows: Rows) -> Family:
        if self.trials is not None:
            return super().for_rows(rows)
        if rows.trials is None:
            raise ValueError(f"trials: {self!r} takes them from the rows, Rows(x, trials=...), got none")
        return replaced(self, trials=rows.trials)

    @property
    def columns(self) -> int | None:
        return np.shape(self.trials)[0] if np.ndim(self.trials) == 1 else None

    def of_column(self, column: int) -> Family:
        return self if self.columns is None else replaced(self, trials=np.asarray(self.trials)[column])

    @property
    def support(self) -> Support:
        return Support(0.0, math.inf if self.trials is None else self.trials)

    def parameter(self, x: Array) -> Array:
        if self.trials is None:
            raise ValueError(f"trials: {self!r} takes them from the rows, Rows(x, trials=...)")
        return of_rank(jnp.asarray(self.trials, x.dtype), x.ndim)

    def log_coefficient(self, x: Array, log_choose: Array) -> Array:
        return log_choose

    def log_normalizer(self, theta: Array) -> Array:
        return self.parameter(theta) * softplus(theta)

    def mean(self, eta: Array) -> Array:
        return self.parameter(eta) * sigmoid(eta)

    def variance_function(self, eta: Array) -> Array:
        return self.parameter(eta) * softplus_derivative(2, eta)

    def link(self, mean: Array) -> Array:
        return jnp.log(mean) - jnp.log(self.parameter(mean) - mean)

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        found = remainders.logistic_remainder(start, step).negated().scaled(self.parameter(step) / dispersion)
        return found.lower, found.upper

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        found = remainders.expected_logistic(start, mean, variance).negated()
        found = found.scaled(self.parameter(mean) / dispersion)
        return found.lower, found.upper

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return samplers.binomial_counts(key, self.parameter(eta), eta)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bernoulli(Binomial):
    """Binary x, or grey values in [0, 1] read as proportions: F = softplus(theta), K = 0, mu = sigmoid(theta).

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.families import Bernoulli
        >>> print(Bernoulli().log_prob(jnp.array([0.0, 1.0]), 0.0))
        [-0.693... -0.693...]
    """

    static: ClassVar[tuple[str, ...]] = ("trials", "few")

    trials: ArrayLike = dataclasses.field(default=1.0, init=False)

    def base_statistic(self, x: Array) -> Array:
        return jnp.zeros_like(x)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        p = sigmoid(eta)
        return jax.random.bernoulli(key, p).astype(p.dtype)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NegativeBinomial(LogisticFamily):
    """Overdispersed counts, ``size`` [r], logit form: log p = x eta - (x + r) softplus(eta) + log C(x + r - 1, x).

    theta = log sigmoid(eta), F = -r log(1 - exp(theta)), mu = r exp(eta), Var = mu + mu^2 / r. ``size`` is a scalar or
    one value a column, (d,). The larger it is the nearer to Poisson, with eta = log(mu / r). The curvature of log p
    depends on x; expansions use its expectation, r sigmoid(eta) (Fisher scoring).

    Raises:
        ValueError: a size that is not positive and finite; it names the first.

    Example:
        >>> from glmvae.families import NegativeBinomial
        >>> round(float(NegativeBinomial(3.0).log_prob(2, 0.0)), 4)  # log(C(4, 2) / 2^5)
        -1.674
    """

    size: Any

    kind = Kind(given_trials=False, few=False)
    curvature_is_constant = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _settings.positive_each(self.size, "size")
        if isinstance(self.size, list | tuple):
            object.__setattr__(self, "size", np.asarray(self.size))

    @property
    def columns(self) -> int | None:
        return _settings.length(self.size)

    def of_column(self, column: int) -> Family:
        return self if self.columns is None else replaced(self, size=np.asarray(self.size)[column])

    @property
    def support(self) -> Support:
        return Support(0.0)

    def parameter(self, x: Array) -> Array:
        return of_rank(jnp.asarray(self.size, x.dtype), x.ndim)

    def log_coefficient(self, x: Array, log_choose: Array) -> Array:
        return log_choose - jnp.log1p(x / self.parameter(x))  # times r / (x + r)

    def natural_parameter(self, eta: Array) -> Array:
        """theta(eta) = log sigmoid(rho eta)."""
        return -softplus(-eta)

    def log_normalizer(self, theta: Array) -> Array:
        # log(1 - e^theta), by whichever of its two forms keeps the digits
        near = theta > -math.log(2)
        close = jnp.log(-jnp.expm1(jnp.where(near, theta, -1.0)))
        return -self.parameter(theta) * jnp.where(near, close, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, theta))))

    def mean(self, eta: Array) -> Array:
        return self.parameter(eta) * jnp.exp(eta)

    def variance_function(self, eta: Array) -> Array:
        return self.mean(eta) * (1 + jnp.exp(eta))

    def link(self, mean: Array) -> Array:
        return jnp.log(mean / self.parameter(mean))

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        return self._with_second_order(remainders.logistic_remainder(start, step), step**2, start, x, dispersion)

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        third = remainders.expected_logistic(start, mean, variance)
        return self._with_second_order(third, mean**2 + variance, start, x, dispersion)

    def _with_second_order(
        self, third: remainders.Interval, square: Array, start: Array, x: Any, dispersion: Array
    ) -> tuple[Array, Array]:
        """-(x + r) times the third order, and -p (x - mu q) / 2 times the square: the weight is Fisher's."""
        rest = self.parameter(start)
        p, q = sigmoid(start), sigmoid(-start)
        observed, expected = 0.5 * p * x * q * square, 0.5 * p * rest * p * square
        eps = 16 * jnp.finfo(square.dtype).eps * (1 + jnp.abs(start))
        second = remainders.around(expected - observed, eps * (expected + observed))
        found = third.negated().scaled(x + rest).plus(second).scaled(1 / dispersion)
        return found.lower, found.upper

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        rate_key, count_key = jax.random.split(key)
        shape = jnp.broadcast_shapes(eta.shape, jnp.shape(self.size))
        gamma = jax.random.gamma(rate_key, jnp.broadcast_to(self.parameter(eta), shape), dtype=eta.dtype)
        return samplers.poisson_counts(count_key, jnp.exp(eta) * gamma)
