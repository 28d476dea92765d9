"""A family of the user's own, from F, K, theta(eta) and a support."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae.families.base import Family
from glmvae.families.calculus import reads
from glmvae.families.support import Support, check_support
from glmvae.families.trees import hashable

REAL_LINE = Support()

Bounds = Callable[..., tuple[Array, Array]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class CustomFamily(Family):
    """Your own family from F, K, theta(eta) and a support; everything else follows by autodiff.

    Args:
        normalizer: F(theta), entry by entry in jax.numpy.
        base_measure: K(x, phi), entry by entry; needed for the value of the ELBO, not for its optimum.
        activation: theta(eta); None is the canonical one (times ``activation_scale``). With an activation of
            your own the curvature of log p may depend on x; expansions then use its expectation
            (Fisher scoring).
        limits: the :class:`Support`.
        sampler: ``(key, mean, dispersion) -> x``, if you want :meth:`sample`.
        remainder: ``(step, start, x, dispersion) -> (lower, upper)``, bounds of log p at t = start + step less its
            quadratic at ``start``, if you want :func:`~glmvae.elbo.bounds.remainder_bounds`. Here t = rho eta, and x is
            None where the activation is canonical and none was given.
        expected_remainder: ``(mean, variance, start, x, dispersion) -> (lower, upper)``, bounds of its expectation
            where the step is N(mean, variance).

    Raises:
        TypeError: something that is not a function, limits that are no Support; it names the argument.
        ValueError: limits between which there is nothing.

    The functions are part of the pytree's structure: keep them at module level, since a new lambda is a new
    family to ``jit``.

    ``Moments`` carry K at phi = 1. Where K depends on phi, what is computed from them alone (L-hat of ``fit``,
    ``elbo_profile``, the values of ``diagnose``) is NaN at another dispersion. Optimum, spectrum and activities do not
    need K, and ELBOs of rows have them.

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
    limits: Support = REAL_LINE
    sampler: Callable[[Array, Array, ArrayLike], Array] | None = None
    bounds: Bounds | None = None
    expected_bounds: Bounds | None = None

    static = ("normalizer", "base_measure", "activation", "limits", "sampler", "bounds", "expected_bounds")
    fixed_dispersion = None

    def __init__(
        self,
        normalizer: Callable[[Array], Array],
        base_measure: Callable[[Array, ArrayLike], Array] | None = None,
        activation: Callable[[Array], Array] | None = None,
        limits: Support = REAL_LINE,
        sampler: Callable[[Array, Array, ArrayLike], Array] | None = None,
        *,
        remainder: Bounds | None = None,
        expected_remainder: Bounds | None = None,
        activation_scale: ArrayLike = 1.0,
    ) -> None:
        functions = {
            "normalizer": normalizer,
            "base_measure": base_measure,
            "activation": activation,
            "sampler": sampler,
            "remainder": remainder,
            "expected_remainder": expected_remainder,
        }
        for name, f in functions.items():
            if not callable(f) and (f is not None or name == "normalizer"):
                raise TypeError(f"{name}: expected a function, got {type(f).__name__}")
        check_support(limits, "limits")
        functions |= {"bounds": functions.pop("remainder"), "expected_bounds": functions.pop("expected_remainder")}
        limits = Support(*map(hashable, limits))
        for name, value in {**functions, "limits": limits, "activation_scale": activation_scale}.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @property
    def curvature_is_constant(self) -> bool:  # type: ignore[override]
        return self.activation is None

    @property
    def has_remainder(self) -> bool:  # type: ignore[override]
        return self.bounds is not None and self.expected_bounds is not None

    @property
    def support(self) -> Support:
        return self.limits

    def natural_parameter(self, eta: Array) -> Array:
        return eta if self.activation is None else self.activation(eta)

    def log_normalizer(self, theta: Array) -> Array:
        return self.normalizer(theta)

    def base_statistic(self, x: Array) -> Array:
        return self.log_base_measure(x)

    @property
    def statistic_is_enough(self) -> bool:  # type: ignore[override]
        return self.base_measure is None or not reads(self.base_measure, 1, jnp.ones((1, 1)), jnp.ones(()))

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return jnp.zeros_like(x) if self.base_measure is None else self.base_measure(x, dispersion)

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        if self.bounds is None:
            raise TypeError(
                f"family: {self!r} knows no bounds of its remainder; give it CustomFamily(..., remainder=f) with "
                "f(step, start, x, dispersion) -> (lower, upper)"
            )
        return self.bounds(step, start, x, dispersion)

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        if self.expected_bounds is None:
            raise TypeError(
                f"family: {self!r} knows no bounds of its expected remainder; give it CustomFamily(..., "
                "expected_remainder=f) with f(mean, variance, start, x, dispersion) -> (lower, upper)"
            )
        return self.expected_bounds(mean, variance, start, x, dispersion)

    def __repr__(self) -> str:
        return super().__repr__().replace("expected_bounds=", "expected_remainder=").replace("bounds=", "remainder=")

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return super().sample(key, eta) if self.sampler is None else self.sampler(key, self.mean(eta), dispersion)
