"""Exponential dispersion families: the observation models of a beta-VAE whose decoder is a GLM.

    log p(x | eta) = (x theta - F(theta)) / phi + K(x, phi),    theta = theta(eta)          (8)

``eta`` is the linear predictor (what the decoder returns), ``theta`` the natural parameter, ``F`` the
log-normalizer, ``phi`` the dispersion. Then

    E x = mu = F'(theta)        Var x = phi F''(theta)

(the paper's Lemma 1 prints ``F'' / phi``). A family is an immutable pytree: it passes through ``jit``, ``vmap``
and ``grad``. Every method works entry by entry and broadcasts; nothing is summed over columns.

The canonical activation has theta = eta. ``activation_scale`` [rho] gives the paper's linearly canonical ones,
theta = rho eta (10): ``Bernoulli(activation_scale=2.0)`` has the mean (tanh(eta) + 1) / 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae._softplus import expected_excess, sigmoid, softplus, softplus_derivative

T = TypeVar("T")


class Support(NamedTuple):
    """The interval in which observations lie; the ends belong to it where they are finite and not open."""

    lower: float = -math.inf
    upper: ArrayLike = math.inf
    open_lower: bool = False

    def contains(self, x: Array) -> Array:
        """Whether each entry lies in the support (NaN and infinity never do)."""
        above = x > self.lower if self.open_lower else x >= self.lower
        return jnp.isfinite(x) & above & (x <= self.upper)

    def __str__(self) -> str:
        left = f"({self.lower}" if self.open_lower or math.isinf(self.lower) else f"[{self.lower:g}"
        upper = np.asarray(self.upper)
        name = f"{float(upper):g}" if upper.ndim == 0 else "trials"
        return f"{left}, {name}" + (")" if np.all(np.isinf(upper)) else "]")


def _pytree(*static: str) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as a pytree; ``static`` fields are part of its structure.

    Rebuilding goes round ``__init__``, so that its checks see what users pass and never a tracer's stand-in.
    """

    def register(cls: type[T]) -> type[T]:
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        dynamic = [n for n in names if n not in static]

        def flatten(family: Any) -> tuple[list, tuple]:
            return [getattr(family, n) for n in dynamic], tuple(getattr(family, n) for n in static)

        def unflatten(aux: tuple, children: list) -> Any:
            family = object.__new__(cls)
            for name, value in [*zip(dynamic, children, strict=True), *zip(static, aux, strict=True)]:
                object.__setattr__(family, name, value)
            return family

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """What all families share; everything here follows from F and theta(eta) by automatic differentiation.

    Subclasses give the closed forms. For a family of your own see :class:`CustomFamily`.
    """

    #: phi where the family itself fixes it; None where it is estimated or given.
    fixed_dispersion: ClassVar[float | None] = 1.0
    #: theta = rho eta, so that the curvature of log p in eta does not depend on x.
    linearly_canonical: ClassVar[bool] = True

    activation_scale: ArrayLike = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _checks.nonzero_scalar(self.activation_scale, "activation_scale")

    @property
    def support(self) -> Support:
        """Where observations lie."""
        return Support()

    def _scale(self, eta: ArrayLike) -> Array:
        return jnp.asarray(self.activation_scale, jnp.asarray(eta).dtype)

    def natural_parameter(self, eta: Array) -> Array:
        """theta(eta) = rho eta (10)."""
        return self._scale(eta) * eta

    def log_normalizer(self, theta: Array) -> Array:
        """F(theta)."""
        raise NotImplementedError

    def base_statistic(self, x: Array) -> Array:
        """The part of K(x, phi) that depends on x: K = ``log_base_measure_from(statistic, phi)``, affine in it."""
        return jnp.zeros_like(x)

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        """K(x, phi) from (the mean of) ``base_statistic``."""
        return statistic

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        """K(x, phi)."""
        return self.log_base_measure_from(self.base_statistic(x), dispersion)

    def mean(self, eta: Array) -> Array:
        """mu = F'(theta(eta)), the activation (9)."""
        return _elementwise(jax.grad(self.log_normalizer))(self.natural_parameter(eta))

    def variance_function(self, eta: Array) -> Array:
        """F''(theta(eta)): the variance of x is phi times it."""
        return _elementwise(jax.grad(jax.grad(self.log_normalizer)))(self.natural_parameter(eta))

    def natural_parameter_derivative(self, eta: Array) -> Array:
        """theta'(eta)."""
        return jnp.broadcast_to(self._scale(eta), eta.shape)

    def mean_derivative(self, eta: Array) -> Array:
        """mu'(eta) = F''(theta) theta'(eta)."""
        return self.variance_function(eta) * self.natural_parameter_derivative(eta)

    def link(self, mean: Array) -> Array:
        """The linear predictor with that mean: the inverse of :meth:`mean`, by safeguarded bisection."""
        return _invert(self.mean, mean)

    def log_prob(self, x: ArrayLike, eta: ArrayLike, dispersion: ArrayLike = 1.0) -> Array:
        """log p(x | eta) in nats, entry by entry (8)."""
        x, eta, dispersion = _as_floats(x, eta, dispersion)
        return self._log_prob(x, eta, dispersion)

    def _log_prob(self, x: Array, eta: Array, dispersion: Array) -> Array:
        theta = self.natural_parameter(eta)
        return (x * theta - self.log_normalizer(theta)) / dispersion + self.log_base_measure(x, dispersion)

    def expected_log_prob(
        self, x: ArrayLike, mean: ArrayLike, variance: ArrayLike, dispersion: ArrayLike = 1.0
    ) -> Array:
        """E log p(x | eta) for eta ~ N(mean, variance), entry by entry, in nats.

        Here by a trapezoid rule of 64 nodes: an approximation that is as good as log p is smooth on the scale
        of a standard deviation. The built-in families have closed forms or a rule of known accuracy.
        """
        x, mean, variance, dispersion = _as_floats(x, mean, variance, dispersion)
        return self._expected_log_prob(x, mean, variance, dispersion)

    def _expected_log_prob(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        z = np.linspace(-8.8, 8.8, 64)
        weights = np.exp(-0.5 * z**2) / np.sum(np.exp(-0.5 * z**2))
        # sqrt has no derivative at 0, where the expectation does not depend on it.
        sd = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        values = [
            w * self._log_prob(x, mean + jnp.asarray(t, x.dtype) * sd, dispersion)
            for t, w in zip(z, weights.tolist(), strict=True)
        ]
        return jnp.asarray(sum(values))

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: Array
    ) -> Array:
        """c: the mean over rows of log p(x | eta0) + w (y - eta0)^2 / 2, from the mean and variance of x.

        ``statistic`` is the mean of :meth:`base_statistic`. For one row the variance is 0. It is the constant
        of the quadratic in :mod:`glmvae.expansion`; -2 times its sum over columns is D, (33).
        """
        theta0 = self.natural_parameter(eta0)
        at_eta0 = (mean * theta0 - self.log_normalizer(theta0)) / dispersion
        spread = (variance + (mean - self.mean(eta0)) ** 2) / (dispersion * self.variance_function(eta0))
        return at_eta0 + self.log_base_measure_from(statistic, dispersion) + 0.5 * spread

    def null_predictor(self, mean: Array) -> Array:
        """link(mean), the intercept-only GLM, kept finite for columns whose mean is at an end of the support."""
        eps = jnp.finfo(mean.dtype).eps
        lower, upper = (
            jnp.asarray(self.support.lower, mean.dtype),
            jnp.asarray(self.support.upper, mean.dtype),
        )
        scale = jnp.where(jnp.isfinite(lower) & jnp.isfinite(upper), upper - lower, 1.0)
        return self.link(jnp.clip(mean, lower + eps * scale, upper - eps * scale))

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        """One draw of x for every entry of eta."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler")

    def validate(self, x: ArrayLike) -> None:
        """Raise unless every entry is finite and in the support.

        Raises:
            TypeError: x is not numeric.
            ValueError: it names the first bad entry and its index.
        """
        _checks.in_support(_checks.numeric(x, "x"), self, "x")

    def __repr__(self) -> str:
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "activation_scale" and not isinstance(value, jax.core.Tracer) and np.all(value == 1.0):
                continue
            shown.append(f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _as_floats(*values: ArrayLike) -> list[Array]:
    """Arrays of one floating dtype: that of the widest floating argument among them."""
    dtype = jnp.result_type(*values)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return [jnp.asarray(v, dtype) for v in values]


def _elementwise(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.vmap(f)(x.ravel()).reshape(x.shape)


def _invert(mean: Callable[[Array], Array], target: Array) -> Array:
    """Solve mean(eta) = target for an increasing mean, by doubling a bracket and then bisecting it."""
    increasing = mean(jnp.ones((), target.dtype)) > mean(jnp.zeros((), target.dtype))
    sign = jnp.where(increasing, 1.0, -1.0).astype(target.dtype)
    low, high = -jnp.ones_like(target), jnp.ones_like(target)

    def widen(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        return jnp.where(mean(sign * low) > target, 2 * low, low), jnp.where(mean(sign * high) < target, 2 * high, high)

    def bisect(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = mean(sign * middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 10, widen, (low, high))
    low, high = jax.lax.fori_loop(0, 70, bisect, (low, high))
    return sign * 0.5 * (low + high)


@_pytree()
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

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: Array
    ) -> Array:
        # The squares of x cancel exactly; written out they would take the digits with them.
        return jnp.broadcast_to(-0.5 * jnp.log(2 * math.pi * dispersion), jnp.shape(mean))

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        noise = jax.random.normal(key, jnp.shape(eta), jnp.asarray(eta).dtype)
        return self.mean(eta) + jnp.sqrt(jnp.asarray(dispersion, noise.dtype)) * noise


@_pytree()
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Binomial(Family):
    """x successes in ``trials`` [n]: F = n softplus(theta), K = log C(n, x), mu = n sigmoid(theta).

    ``trials`` is a scalar or one value a column, (d,). Values of x between the integers count as proportions.

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
        _checks.at_least(self.trials, 1, "trials")

    def _trials(self, like: Array) -> Array:
        return jnp.asarray(self.trials, like.dtype)

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

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        p = sigmoid(self.natural_parameter(eta))
        return jax.random.binomial(key, self._trials(p), p, dtype=p.dtype)


@_pytree()
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

    def __repr__(self) -> str:
        return super().__repr__().replace("trials=1.0, ", "").replace("trials=1.0", "")


@_pytree()
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
        scale = self._scale(mean)
        kernel = x * scale * mean - jnp.exp(scale * mean + 0.5 * scale**2 * variance)
        return kernel / dispersion + self.log_base_measure(x)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        rate = self.mean(eta)
        return jax.random.poisson(key, rate).astype(rate.dtype)


@_pytree("normalizer", "base_measure", "activation", "limits", "sampler")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CustomFamily(Family):
    """Your own family from F, K, theta(eta) and a support; everything else follows by autodiff.

    Args:
        normalizer: F(theta), a scalar function in jax.numpy.
        base_measure: K(x, phi), entry by entry; needed for the value of the ELBO, not for its optimum.
        activation: theta(eta); None is the canonical one (times ``activation_scale``). With an activation of
            your own the curvature of log p may depend on x; expansions then use its expectation
            (Fisher scoring).
        limits: the :class:`Support`.
        sampler: ``(key, mean, dispersion) -> x``, if you want :meth:`sample`.

    The functions are part of the pytree's structure: keep them at module level, since a new lambda is a new
    family to ``jit``. ``Moments`` carry K at phi = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.families import CustomFamily, Support
        >>> poisson = CustomFamily(jnp.exp, limits=Support(0.0))
        >>> print(poisson.mean(jnp.array([0.0])), poisson.link(jnp.array([1.0])))
        [1.] [...]
    """

    normalizer: Callable[[Array], Array]
    base_measure: Callable[[Array, ArrayLike], Array] | None = None
    activation: Callable[[Array], Array] | None = None
    limits: Support = Support()
    sampler: Callable[[Array, Array, ArrayLike], Array] | None = None

    fixed_dispersion = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("normalizer", "base_measure", "activation", "sampler"):
            f = getattr(self, name)
            if not callable(f) and (f is not None or name == "normalizer"):
                raise TypeError(f"{name}: expected a function, got {type(f).__name__}")

    @property
    def linearly_canonical(self) -> bool:  # type: ignore[override]
        return self.activation is None

    @property
    def support(self) -> Support:
        return self.limits

    def natural_parameter(self, eta: Array) -> Array:
        eta = super().natural_parameter(eta)
        return eta if self.activation is None else self.activation(eta)

    def natural_parameter_derivative(self, eta: Array) -> Array:
        return _elementwise(jax.grad(self.natural_parameter))(eta)

    def log_normalizer(self, theta: Array) -> Array:
        return self.normalizer(theta)

    def base_statistic(self, x: Array) -> Array:
        return self.log_base_measure(x)

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return jnp.zeros_like(x) if self.base_measure is None else self.base_measure(x, dispersion)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return super().sample(key, eta) if self.sampler is None else self.sampler(key, self.mean(eta), dispersion)
