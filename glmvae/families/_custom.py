"""A family of the user's own, from F, K, theta(eta) and a support."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from glmvae.families._base import Family, Support, elementwise, pytree_family

REAL_LINE = Support()


@pytree_family("normalizer", "base_measure", "activation", "limits", "sampler")
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
    limits: Support = REAL_LINE
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
        return elementwise(jax.grad(self.natural_parameter))(eta)

    def log_normalizer(self, theta: Array) -> Array:
        return self.normalizer(theta)

    def base_statistic(self, x: Array) -> Array:
        return self.log_base_measure(x)

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return jnp.zeros_like(x) if self.base_measure is None else self.base_measure(x, dispersion)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return super().sample(key, eta) if self.sampler is None else self.sampler(key, self.mean(eta), dispersion)
