"""The activation scale rho, applied once: a family of scale rho at eta is the family of scale 1 at t = rho eta.

A family writes its methods for t and never sees rho. Each is wrapped where its class is made:

    eta -> rho eta     (m, v) -> (rho m, rho^2 v)     gradient -> rho gradient     weight -> rho^2 weight     link / rho

and called on the family at scale 1, so methods may call each other and their parents'. The wrappers also bring what
they get to one floating dtype and rank, and what does not depend on x to its shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae.families.support import of_rank
from glmvae.families.trees import replaced


class Logistic(NamedTuple):
    """log p = (slope t - trials softplus(t)) / phi + K(x, phi), with t = scale eta."""

    slope: Array
    trials: Array
    scale: ArrayLike = 1.0


def as_floats(*values: ArrayLike) -> list[Array]:
    """Arrays of one rank but for scalars, in the precision that the widest floating argument is computed in."""
    dtype = _checks.compute_dtype(jnp.result_type(*values))
    arrays = [jnp.asarray(v, dtype) for v in values]
    rank = max(a.ndim for a in arrays)
    return [of_rank(a, rank) for a in arrays]


def at_scale_one(family: Any, like: Array) -> tuple[Any, Any]:
    """The family at scale 1, and its scale."""
    rho = family.activation_scale
    if type(rho) is float and rho == 1.0:
        return family, 1.0
    return replaced(family, activation_scale=1.0), jnp.asarray(rho, like.dtype)


def _of_predictor(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapped(self: Any, eta: ArrayLike) -> Array:
        (eta,) = as_floats(eta)
        plain, rho = at_scale_one(self, eta)
        return method(plain, rho * eta)

    return wrapped


def _of_one(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapped(self: Any, value: ArrayLike, *others: ArrayLike, **named: ArrayLike) -> Array:
        return method(self, *as_floats(value), *others, **named)

    return wrapped


def _of_data(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapped(self: Any, x: ArrayLike, *dispersion: ArrayLike, **named: ArrayLike) -> Array:
        x, *values = as_floats(x, *dispersion, *named.values())
        value = method(self, x, *values[: len(dispersion)], **dict(zip(named, values[len(dispersion) :], strict=True)))
        return jnp.broadcast_to(value, jnp.broadcast_shapes(x.shape, jnp.shape(value)))

    return wrapped


def _link(method: Callable) -> Callable:
    @functools.wraps(method)
    def link(self: Any, mean: ArrayLike) -> Array:
        (mean,) = as_floats(mean)
        plain, rho = at_scale_one(self, mean)
        return method(plain, mean) / rho

    return link


def _log_prob(method: Callable) -> Callable:
    @functools.wraps(method)
    def log_prob(self: Any, x: ArrayLike, eta: ArrayLike, dispersion: ArrayLike = 1.0) -> Array:
        x, eta, dispersion = as_floats(x, eta, dispersion)
        plain, rho = at_scale_one(self, eta)
        return method(plain, x, rho * eta, dispersion)

    return log_prob


def _expected_terms(method: Callable) -> Callable:
    @functools.wraps(method)
    def expected_terms(
        self: Any, x: ArrayLike, mean: ArrayLike, variance: ArrayLike, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, ...]:
        x, mean, variance, dispersion = as_floats(x, mean, variance, dispersion)
        plain, rho = at_scale_one(self, mean)
        value, gradient, weight = method(plain, x, rho * mean, rho**2 * variance, dispersion)
        shape = jnp.broadcast_shapes(x.shape, mean.shape, variance.shape, dispersion.shape)
        return tuple(jnp.broadcast_to(part, shape) for part in (value, rho * gradient, rho**2 * weight))

    return expected_terms


def _rounding_size(method: Callable) -> Callable:
    @functools.wraps(method)
    def rounding_size(
        self: Any, x: ArrayLike, mean: ArrayLike, variance: ArrayLike, dispersion: ArrayLike = 1.0
    ) -> Array:
        x, mean, variance, dispersion = as_floats(x, mean, variance, dispersion)
        plain, rho = at_scale_one(self, mean)
        return method(plain, x, rho * mean, rho**2 * variance, dispersion)

    return rounding_size


def _expansion_constant(method: Callable) -> Callable:
    @functools.wraps(method)
    def expansion_constant(
        self: Any, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: ArrayLike = 1.0
    ) -> Array:
        (mean,) = as_floats(mean)
        plain, rho = at_scale_one(self, mean)
        return method(plain, mean, variance, statistic, rho * eta0, jnp.asarray(dispersion, mean.dtype))

    return expansion_constant


def _sample(method: Callable) -> Callable:
    @functools.wraps(method)
    def sample(self: Any, key: Array, eta: ArrayLike, dispersion: ArrayLike = 1.0) -> Array:
        eta, dispersion = as_floats(eta, dispersion)
        plain, rho = at_scale_one(self, eta)
        each = jnp.broadcast_to(rho * eta, jnp.broadcast_shapes(eta.shape, dispersion.shape))  # a draw for each
        return method(plain, key, each, dispersion)

    return sample


def _logistic_form(method: Callable) -> Callable:
    @functools.wraps(method)
    def logistic_form(self: Any, x: ArrayLike) -> Any:
        (x,) = as_floats(x)
        plain, rho = at_scale_one(self, x)
        form = method(plain, x)
        return form if form is None else form._replace(scale=rho * form.scale)

    return logistic_form


_WRAPPERS = {
    "log_normalizer": _of_one,
    "log_base_measure_from": _of_one,
    "null_predictor": _of_one,
    "dispersion_from": _of_one,
    "natural_parameter": _of_predictor,
    "mean": _of_predictor,
    "variance_function": _of_predictor,
    "link": _link,
    "base_statistic": _of_data,
    "log_base_measure": _of_data,
    "saturated_log_prob": _of_data,
    "log_prob": _log_prob,
    "expected_terms": _expected_terms,
    "rounding_size": _rounding_size,
    "expansion_constant": _expansion_constant,
    "sample": _sample,
    "logistic_form": _logistic_form,
}


def apply_scale(cls: type) -> None:
    """Wrap the methods that a class writes itself."""
    for name, wrapper in _WRAPPERS.items():
        if name in vars(cls):
            setattr(cls, name, wrapper(vars(cls)[name]))
