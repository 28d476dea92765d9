"""What every family shares: the support, the interface, and its defaults by automatic differentiation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks

T = TypeVar("T")


class Support(NamedTuple):
    """The interval in which observations lie; the ends belong to it where they are finite and not open."""

    lower: ArrayLike = -math.inf
    upper: ArrayLike = math.inf
    open_lower: ArrayLike = False

    def contains(self, x: Array) -> Array:
        """Whether each entry lies in the support (NaN and infinity never do)."""
        above = (x > self.lower) | ((x == self.lower) & jnp.logical_not(self.open_lower))
        return jnp.isfinite(x) & above & (x <= self.upper)

    def __str__(self) -> str:
        if np.ndim(self.lower):
            return f"of {len(np.asarray(self.lower))} columns"
        left = f"({self.lower:g}" if self.open_lower or np.isinf(self.lower) else f"[{self.lower:g}"
        upper = np.asarray(self.upper)
        name = f"{float(upper):g}" if upper.ndim == 0 else "trials"
        return f"{left}, {name}" + (")" if np.all(np.isinf(upper)) else "]")


def pytree_family(*static: str) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as a pytree; ``static`` fields are part of its structure.

    Rebuilding goes round ``__init__``, so that its checks see what users pass and never a tracer's stand-in.
    """

    def register(cls: type[T]) -> type[T]:
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        dynamic = [n for n in names if n not in static]

        def flatten(family: Any) -> tuple[list, tuple]:
            return [getattr(family, n) for n in dynamic], tuple(getattr(family, n) for n in static)

        def unflatten(aux: tuple, children: Iterable) -> Any:
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

    @property
    def columns(self) -> int | None:
        """How many columns of data the family is for; None for any number."""
        return None

    def of_column(self, column: int) -> Family:
        """The family of that column of the data."""
        return self

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
        return elementwise(jax.grad(self.log_normalizer))(self.natural_parameter(eta))

    def variance_function(self, eta: Array) -> Array:
        """F''(theta(eta)): the variance of x is phi times it."""
        return elementwise(jax.grad(jax.grad(self.log_normalizer)))(self.natural_parameter(eta))

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
        x, eta, dispersion = as_floats(x, eta, dispersion)
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
        x, mean, variance, dispersion = as_floats(x, mean, variance, dispersion)
        return self._expected_log_prob(x, mean, variance, dispersion)

    def _expected_log_prob(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        return gaussian_expectation(lambda eta: self._log_prob(x, eta, dispersion), mean, variance)

    def expected_gradient(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        """The derivative of E log p(x | eta) in the mean of eta ~ N(mean, variance), entry by entry.

        theta' (x - E mu) / phi for linearly canonical families. Where it and :meth:`expected_log_prob` are
        quadratures, they are the same one.
        """
        slope = self.natural_parameter_derivative
        return gaussian_expectation(lambda eta: slope(eta) * (x - self.mean(eta)) / dispersion, mean, variance)

    def expected_weight(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        """Minus the second derivative of E log p(x | eta) in the mean of eta, entry by entry; positive.

        E theta'^2 F'' / phi for linearly canonical families, without x. For others the curvature depends on x; where it
        is not positive its expectation over x (Fisher's) stands in.
        """
        slope = self.natural_parameter_derivative

        def fisher(eta: Array) -> Array:
            return slope(eta) ** 2 * self.variance_function(eta) / dispersion

        expected = gaussian_expectation(fisher, mean, variance)
        if self.linearly_canonical:
            return expected
        bend = elementwise(jax.grad(lambda eta: slope(eta)))
        curvature = expected - gaussian_expectation(
            lambda eta: bend(eta) * (x - self.mean(eta)) / dispersion, mean, variance
        )
        return jnp.where(curvature > 0, curvature, expected)

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        """(:meth:`expected_log_prob`, :meth:`expected_gradient`, :meth:`expected_weight`): what an ascent asks for.

        A family may take the three from one quadrature, and leave :meth:`expected_terms_constant` out of the first.
        """
        return (
            self.expected_log_prob(x, mean, variance, dispersion),
            self.expected_gradient(x, mean, variance, dispersion),
            self.expected_weight(x, mean, variance, dispersion),
        )

    def expected_terms_constant(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        """What :meth:`expected_terms` leaves out of E log p: a function of x that costs more than the rest, or 0."""
        return jnp.zeros_like(x)

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
            if not _is_default(value, f.default):
                shown.append(f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    return default is not dataclasses.MISSING and _checks.concrete(value) and bool(np.all(np.asarray(value) == default))


def as_floats(*values: ArrayLike) -> list[Array]:
    """Arrays of one floating dtype: that of the widest floating argument among them."""
    dtype = jnp.result_type(*values)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return [jnp.asarray(v, dtype) for v in values]


def gaussian_expectation(f: Callable[[Array], Array], mean: Array, variance: Array) -> Array:
    """E f(eta) for eta ~ N(mean, variance), entry by entry, by a trapezoid rule of 64 nodes."""
    mean, variance = jnp.broadcast_arrays(mean, variance)
    z = np.linspace(-8.8, 8.8, 64)
    weights = np.exp(-0.5 * z**2) / np.sum(np.exp(-0.5 * z**2))
    # sqrt has no derivative at 0, where the expectation does not depend on it.
    sd = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    rule = jnp.asarray(np.stack([z, weights], axis=1), mean.dtype)

    # A loop, not 64 copies of a user's function: those took minutes to compile.
    def add(total: Array, node: Array) -> tuple[Array, None]:
        return total + node[1] * f(mean + node[0] * sd), None

    shape = jax.eval_shape(f, mean)
    return jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), rule)[0]


def elementwise(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.vmap(f)(x.ravel()).reshape(x.shape)


def _invert(mean: Callable[[Array], Array], target: Array) -> Array:
    """Solve mean(eta) = target for an increasing mean, by doubling a bracket and then bisecting it."""
    increasing = mean(jnp.ones((), target.dtype)) > mean(jnp.zeros((), target.dtype))
    sign = jnp.where(increasing, 1.0, -1.0).astype(target.dtype)
    low, high = -jnp.ones_like(target), jnp.ones_like(target)

    def widen(_: ArrayLike, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        return jnp.where(mean(sign * low) > target, 2 * low, low), jnp.where(mean(sign * high) < target, 2 * high, high)

    def bisect(_: ArrayLike, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = mean(sign * middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 10, widen, (low, high))
    low, high = jax.lax.fori_loop(0, 70, bisect, (low, high))
    return sign * 0.5 * (low + high)
