"""What every family shares: the support, the protocol, and what follows from it by automatic differentiation.

A family of your own is a subclass of :class:`Family`, or a :class:`~glmvae.families.CustomFamily` made of functions. It
gives ``log_normalizer``, ``log_base_measure``, ``support``, ``sample``, and what it knows better than autodiff; every
method is written for the predictor t = rho eta (:mod:`glmvae.families.scale`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae.families.calculus import derivative, half_spread, inverse_of_mean, terms_by_quadrature
from glmvae.families.scale import Logistic, apply_scale, as_floats, at_scale_one
from glmvae.families.support import Support, refuse_value
from glmvae.families.trees import is_same, register

if TYPE_CHECKING:
    from glmvae.rows import Rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Family:
    """The observation model of a column: log p(x | eta) = (x theta - F(theta)) / phi + K(x, phi), theta(eta).

    Give ``log_normalizer``; everything else here has a default. Methods take arrays that broadcast, work entry by entry
    and are written for t = rho eta: a class derived from this one never multiplies by ``activation_scale``.
    """

    #: Fields of the dataclass that are part of the pytree's structure; the others are its leaves.
    static: ClassVar[tuple[str, ...]] = ()
    #: phi where the family itself fixes it; None where it is estimated or given.
    fixed_dispersion: ClassVar[float | None] = 1.0
    #: theta = rho eta, so that the curvature of log p in eta does not depend on x.
    curvature_is_constant: ClassVar[bool] = True
    #: K(x, phi) follows from ``base_statistic`` at every phi, else at phi = 1 alone.
    statistic_is_enough: ClassVar[bool] = True
    #: log p is quadratic in eta: every expansion is exact.
    is_quadratic: ClassVar[bool] = False
    #: phi can be estimated: ``dispersion_from`` is there, of a Mixed in some member.
    estimates_dispersion: ClassVar[bool] = False
    #: ``log_prob`` has digits of large counts that K and F lose: moments keep its mean (statistics.at_null).
    keeps_log_prob: ClassVar[bool] = False
    #: Log p may have a logistic form, see ``logistic_form``.
    is_logistic: ClassVar[bool] = False
    #: ``remainder`` and ``expected_remainder`` are there.
    has_remainder: ClassVar[bool] = False
    #: The rows bring the trials, see ``for_rows``.
    needs_trials: ClassVar[bool] = False

    activation_scale: ArrayLike = dataclasses.field(default=1.0, kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        apply_scale(cls)
        register(cls)

    def __post_init__(self) -> None:
        _settings.nonzero_scalar(self.activation_scale, "activation_scale")

    # What it is for -----------------------------------------------------------------------------------------

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

    def for_rows(self, rows: Rows) -> Family:
        """The family of these rows: with their trials, where it takes them from there.

        Raises:
            ValueError: trials that no family asks for, or none where one does.
        """
        if rows.trials is not None:
            raise ValueError(f"trials: {self!r} takes none from the rows, Rows(trials=...) are for Binomial(None)")
        return self

    def by_member(self, f: Callable[..., Any], *values: Any) -> Any:
        """f(family, *values). A Mixed family calls f for each member with its columns, and joins the results."""
        return f(self, *values)

    @property
    def has_joint_dispersion(self) -> bool:
        """The best phi, one for all columns, has a closed form together with all else: ``fit`` estimates it."""
        return self.columns is None and self.is_quadratic and self.estimates_dispersion

    @property
    def remainder_depends_on_x(self) -> bool:
        """Whether ``remainder`` needs x."""
        return not self.curvature_is_constant

    # The density --------------------------------------------------------------------------------------------

    def natural_parameter(self, eta: Array) -> Array:
        """theta(eta): rho eta (10) unless the family has another activation."""
        return eta

    def log_normalizer(self, theta: Array) -> Array:
        """F(theta)."""
        raise NotImplementedError(f"{type(self).__name__} has no log_normalizer")

    def base_statistic(self, x: Array) -> Array:
        """The part of K(x, phi) that depends on x: K = ``log_base_measure_from(statistic, phi)``, affine in it."""
        return jnp.zeros_like(x)

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        """K(x, phi) from (the mean of) ``base_statistic``."""
        return statistic

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        """K(x, phi)."""
        return self.log_base_measure_from(self.base_statistic(x), dispersion)

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        """log p(x | eta) in nats, entry by entry (8)."""
        theta = self.natural_parameter(eta)
        return (x * theta - self.log_normalizer(theta)) / dispersion + self.log_base_measure(x, dispersion)

    # Mean and variance --------------------------------------------------------------------------------------

    def mean(self, eta: Array) -> Array:
        """mu = F'(theta(eta)), the activation (9)."""
        return derivative(self.log_normalizer)(self.natural_parameter(eta))

    def variance_function(self, eta: Array) -> Array:
        """F''(theta(eta)): the variance of x is phi times it."""
        return derivative(derivative(self.log_normalizer))(self.natural_parameter(eta))

    def natural_parameter_derivative(self, eta: ArrayLike) -> Array:
        """theta'(eta)."""
        return derivative(self.natural_parameter)(*as_floats(eta))

    def mean_derivative(self, eta: ArrayLike) -> Array:
        """mu'(eta) = F''(theta) theta'(eta)."""
        return derivative(self.mean)(*as_floats(eta))

    def link(self, mean: Array) -> Array:
        """The linear predictor with that mean: the inverse of :meth:`mean`, by bisection."""
        return inverse_of_mean(self, mean)

    def null_predictor(self, mean: Array) -> Array:
        """link(mean), the intercept-only GLM, kept finite for columns whose mean is at an end of the support."""
        return self.link(self.support.off_the_ends(mean))

    # Expectations under eta ~ N(mean, variance) -------------------------------------------------------------

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        """E log p(x | eta) less ``saturated_log_prob(x)``, its derivative in the mean of eta, and minus the second one.

        The weight is positive: where the curvature depends on x and is not positive, its expectation over x (Fisher's)
        stands in. Here all three by one trapezoid rule of 64 nodes, as good as log p is smooth on the scale of a
        standard deviation. The built-in families have closed forms or a rule of known accuracy.
        """
        return terms_by_quadrature(self, x, mean, variance, dispersion)

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        """What ``expected_terms`` leaves out of E log p: a function of x (and phi) alone."""
        return self.log_base_measure(x, dispersion)

    def expected_log_prob(
        self, x: ArrayLike, mean: ArrayLike, variance: ArrayLike, dispersion: ArrayLike = 1.0
    ) -> Array:
        """E log p(x | eta) for eta ~ N(mean, variance), entry by entry, in nats."""
        x, mean, variance, dispersion = as_floats(x, mean, variance, dispersion)
        return self.expected_terms(x, mean, variance, dispersion)[0] + self.saturated_log_prob(x, dispersion)

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        """The size of what E log p is made of: as computed it is right to a few dozen rounding units of this."""
        theta = self.natural_parameter(mean)
        value, gradient, weight = self.expected_terms(x, mean, variance, dispersion)
        made_of = (jnp.abs(x * theta) + jnp.abs(self.log_normalizer(theta))) / dispersion
        moved = jnp.abs(gradient) * (1 + jnp.abs(mean)) + weight * (jnp.abs(mean) + variance)
        return jnp.abs(value) + made_of + moved + jnp.abs(self.saturated_log_prob(x, dispersion))

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: ArrayLike = 1.0
    ) -> Array:
        """c: the mean over rows of log p(x | eta0) + w (y - eta0)^2 / 2, from the mean and variance of x.

        ``statistic`` is the mean of :meth:`base_statistic`. For one row the variance is 0. It is the constant of the
        quadratic in :mod:`glmvae.expansion`; -2 times its sum over columns is D, (33).
        """
        theta0 = self.natural_parameter(eta0)
        at_eta0 = (mean * theta0 - self.log_normalizer(theta0)) / dispersion
        at_eta0 = at_eta0 + self.log_base_measure_from(statistic, dispersion)
        return at_eta0 + half_spread(self, mean, variance, eta0, dispersion)

    # Capabilities -------------------------------------------------------------------------------------------

    def logistic_form(self, x: Array) -> Logistic | None:
        """log p as that of a logistic regression, or None."""
        return None

    def remainder(
        self, eta: ArrayLike, eta0: ArrayLike, x: ArrayLike | None = None, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array]:
        """(lower, upper) of log p(x | eta) less its quadratic at eta0, floating point included; x if it depends on it.

        Raises:
            TypeError: a family that knows none.
        """
        values = as_floats(eta, eta0, dispersion, *([] if x is None else [x]))
        eta, eta0, dispersion = values[:3]
        plain, rho = at_scale_one(self, eta)
        # rho times the difference, not the difference of products, which has lost the digits of a small step
        return plain.remainder_of_step(rho * (eta - eta0), rho * eta0, None if x is None else values[3], dispersion)

    def expected_remainder(
        self,
        mean: ArrayLike,
        variance: ArrayLike,
        eta0: ArrayLike,
        x: ArrayLike | None = None,
        dispersion: ArrayLike = 1.0,
    ) -> tuple[Array, Array]:
        """(lower, upper) of the expectation of that under eta ~ N(mean, variance); TypeError likewise."""
        values = as_floats(mean, variance, eta0, dispersion, *([] if x is None else [x]))
        mean, variance, eta0, dispersion = values[:4]
        plain, rho = at_scale_one(self, mean)
        step, data = rho * (mean - eta0), None if x is None else values[4]
        return plain.expected_remainder_of_step(step, rho**2 * variance, rho * eta0, data, dispersion)

    def remainder_of_step(self, step: Array, start: Array, x: Array | None, dispersion: Array) -> tuple[Array, Array]:
        """What a family gives for :meth:`remainder`: from t = ``start`` on, a step in t."""
        raise TypeError(f"family: {self!r} knows no bounds of its remainder; give it remainder_of_step")

    def expected_remainder_of_step(
        self, mean: Array, variance: Array, start: Array, x: Array | None, dispersion: Array
    ) -> tuple[Array, Array]:
        """What a family gives for :meth:`expected_remainder`: the step is N(mean, variance)."""
        missing = "bounds of its expected remainder; give it expected_remainder_of_step"
        raise TypeError(f"family: {self!r} knows no {missing}")

    def dispersion_from(self, deviance: Array) -> Array:
        """The phi that maximises E log p, from the mean of minus ``expected_terms(..., dispersion=1)[0]``.

        Raises:
            TypeError: a family that cannot estimate it.
        """
        raise TypeError(f"family: {self!r} cannot estimate a dispersion, give one")

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        """One draw of x for every entry of eta."""
        raise NotImplementedError(f"{type(self).__name__} has no sampler")

    # An object among others ---------------------------------------------------------------------------------

    def validate(self, x: ArrayLike) -> None:
        """Raise unless every entry is finite and in the support.

        Raises:
            TypeError: x is not numeric.
            ValueError: it names the first bad entry and its index.
        """
        x = _checks.numeric(x, "x")
        if not _checks.concrete((x, self)):
            _checks.finite(x, "x")
            return
        if x.ndim and self.columns not in (None, x.shape[-1]):
            raise ValueError(f"x: expected {self.columns} columns, the number {self!r} is for, got {x.shape[-1]}")
        with _checks.at_once():
            bad = ~np.asarray(self.support.contains(x))
        if bad.any():
            refuse_value(np.broadcast_to(np.asarray(x), bad.shape), bad, self, (0,) * bad.ndim, "x")

    def __eq__(self, other: object) -> bool:
        names = [f.name for f in dataclasses.fields(self)]
        return type(self) is type(other) and all(is_same(getattr(self, n), getattr(other, n)) for n in names)

    def __hash__(self) -> int:
        if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(self)):
            raise TypeError(f"{self!r} holds arrays and cannot be hashed; let jit trace it, do not make it static")
        return hash((type(self), *(getattr(self, f.name) for f in dataclasses.fields(self))))

    def __repr__(self) -> str:
        shown = [(f, getattr(self, f.name)) for f in dataclasses.fields(self) if f.init]
        arguments = [f"{f.name}={value}" for f, value in shown if not is_same(value, f.default)]
        return f"{type(self).__name__}({', '.join(arguments)})"


apply_scale(Family)
