"""Columns of several kinds: one family for each group of columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae.families.base import Family
from glmvae.families.groups import check_cover, group_of, index_of, text_of
from glmvae.families.scale import Logistic
from glmvae.families.support import Support
from glmvae.families.trees import replaced

if TYPE_CHECKING:
    from glmvae.rows import Rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Mixed(Family):
    """Columns of several kinds, say binary, counts and reals: a family for each group of columns.

        log p(x | eta) = sum over groups g of sum_{j in g} log p_g(x_j | eta_j)

    Every function of the library works on it; arrays keep the order of the columns of the data. The dispersion is
    a value a column, (d,), see :meth:`columnwise`, or one scalar for all; ``dispersion=None`` means 1 where every
    member fixes it and is refused otherwise, since those of several columns have no joint closed form: start from
    values and let :func:`~glmvae.ascent.refine` estimate them, ``dispersion="estimate"``, one a column.

    Args:
        members: pairs (family, columns). Columns are integers from 0, as a list, an array, a range or a slice
            with a stop; together they are 0 to d - 1, each once.

    Raises:
        ValueError: no members; columns that overlap, leave a gap, are negative or none, a slice without a stop, or
            another number of columns than the member is for (a vector of trials or sizes).
        TypeError: a member that is no pair or no family; columns that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae.families import Bernoulli, Gaussian, Mixed, Poisson
        >>> family = Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1]), (Gaussian(), [2])])
        >>> family
        Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1]), (Gaussian(), [2])])
        >>> print(family.mean(jnp.zeros(4)))
        [0.5 1.  0.  0.5]
    """

    families: tuple[Family, ...]
    groups: tuple[tuple[int, ...], ...]
    activation_scale: ArrayLike = dataclasses.field(default=1.0, init=False)

    static = ("groups", "activation_scale")

    def __init__(self, members: Sequence[tuple[Family, Any]]) -> None:
        families, groups = [], []
        if not isinstance(members, Sequence):
            raise TypeError(f"members: expected a list of pairs (family, columns), got {members!r}")
        for i, member in enumerate(members):
            if not isinstance(member, Sequence) or len(member) != 2:
                raise TypeError(f"members: expected pairs (family, columns), got {member!r} at [{i}]")
            family, columns = member
            if not isinstance(family, Family):
                raise TypeError(f"members: expected a family first, got {family!r} at [{i}]")
            group = group_of(columns, f"columns of members[{i}]")
            if family.columns not in (None, len(group)):
                raise ValueError(
                    f"columns of members[{i}]: expected {family.columns}, the number {family!r} is for, "
                    f"got {len(group)}"
                )
            families.append(family)
            groups.append(group)
        check_cover(groups)
        object.__setattr__(self, "families", tuple(families))
        object.__setattr__(self, "groups", tuple(groups))
        object.__setattr__(self, "activation_scale", 1.0)

    @property
    def columns(self) -> int:
        return sum(len(group) for group in self.groups)

    def of_column(self, column: int) -> Family:
        """The member that column belongs to."""
        family, group = next((f, g) for f, g in zip(self.families, self.groups, strict=True) if column in g)
        return family.of_column(group.index(column))

    def columnwise(self, values: Sequence[ArrayLike]) -> Array:
        """One value a member, in their order, as one value a column, (d,): for ``dispersion`` or ``expand_at``.

        Raises:
            ValueError: another number of values than members.

        Example:
            >>> from glmvae.families import Bernoulli, Gaussian, Mixed
            >>> print(Mixed([(Bernoulli(), [0, 2]), (Gaussian(), [1])]).columnwise([1.0, 0.25]))
            [1.   0.25 1.  ]
        """
        if len(values) != len(self.families):
            raise ValueError(f"values: expected {len(self.families)}, one a member, got {len(values)}")
        return self.join([jnp.asarray(value, jnp.result_type(float)) for value in values])

    def split(self, values: ArrayLike) -> list[Any]:
        """Every member's columns of values (..., d); a scalar, or a last axis of 1, is for every column."""
        shape = jnp.shape(values)
        if not shape or (shape[-1] == 1 and self.columns != 1):
            return [values for _ in self.groups]
        if shape[-1] != self.columns:
            raise ValueError(f"expected {self.columns} columns, the number {self!r} is for, got shape {shape}")
        if _checks.concrete(values):  # NumPy compiles nothing
            host = np.asarray(values, jnp.result_type(values))
            return [jax.device_put(host[..., index_of(group)]) for group in self.groups]
        return [jnp.asarray(values)[..., index_of(group)] for group in self.groups]

    def join(self, parts: Sequence[ArrayLike]) -> Array:
        """The inverse of :meth:`split`, (..., d); a scalar is for all columns of its member."""
        known = _checks.concrete(parts)
        numpy: Any = np if known else jnp
        dtype = jnp.result_type(*parts)
        arrays = [numpy.asarray(part, dtype) for part in parts]
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in arrays))
        arrays = [numpy.broadcast_to(p, (*lead, len(g))) for p, g in zip(arrays, self.groups, strict=True)]
        joined = numpy.concatenate(arrays, axis=-1)
        order = np.argsort([column for group in self.groups for column in group])
        joined = joined if np.array_equal(order, np.arange(self.columns)) else joined[..., order]
        return jax.device_put(joined) if known else joined

    def by_member(self, f: Callable[..., Any], *values: Any) -> Any:
        """f(member, *its columns of each value), for every member; the results, arrays or pytrees of them, joined.

        Example:
            >>> import jax.numpy as jnp
            >>> from glmvae.families import Bernoulli, Gaussian, Mixed
            >>> family = Mixed([(Bernoulli(), [0, 2]), (Gaussian(), [1])])
            >>> print(family.by_member(lambda member, x: x if member.is_logistic else -x, jnp.arange(3.0)))
            [ 0. -1.  2.]
        """
        leaves, structure = jax.tree.flatten(values)
        parts = [self.split(leaf) for leaf in leaves]
        results = [
            family.by_member(f, *jax.tree.unflatten(structure, [part[i] for part in parts]))
            for i, family in enumerate(self.families)
        ]
        return jax.tree.map(lambda *joined: self.join(joined), *results)

    def each(self, method: str, *values: Any) -> Any:
        """The method of every member, on its columns of the values."""
        return self.by_member(lambda family, *parts: getattr(family, method)(*parts), *values)

    # The family, column by column -------------------------------------------------------------------------

    @property
    def fixed_dispersion(self) -> float | None:  # type: ignore[override]
        return 1.0 if all(family.fixed_dispersion == 1.0 for family in self.families) else None

    @property
    def estimates_dispersion(self) -> bool:  # type: ignore[override]
        return any(family.estimates_dispersion for family in self.families)

    @property
    def curvature_is_constant(self) -> bool:  # type: ignore[override]
        return all(family.curvature_is_constant for family in self.families)

    @property
    def is_quadratic(self) -> bool:  # type: ignore[override]
        return all(family.is_quadratic for family in self.families)

    @property
    def is_logistic(self) -> bool:  # type: ignore[override]
        return all(family.is_logistic for family in self.families)

    @property
    def has_remainder(self) -> bool:  # type: ignore[override]
        return all(family.has_remainder for family in self.families)

    @property
    def keeps_log_prob(self) -> bool:  # type: ignore[override]
        return any(family.keeps_log_prob for family in self.families)

    @property
    def needs_trials(self) -> bool:  # type: ignore[override]
        return any(family.needs_trials for family in self.families)

    @property
    def remainder_depends_on_x(self) -> bool:
        return any(family.remainder_depends_on_x for family in self.families)

    @property
    def support(self) -> Support:
        """The limits of every column, (d,), or those of every entry where the rows brought trials."""
        supports = [family.support for family in self.families]
        return Support(*(self.join([jnp.asarray(limit) for limit in limits]) for limits in zip(*supports, strict=True)))

    def for_rows(self, rows: Rows) -> Family:
        if not self.needs_trials:
            return super().for_rows(rows)
        trials = [None for _ in self.groups] if rows.trials is None else self.split(rows.trials)
        members = [
            family.for_rows(SimpleNamespace(trials=part)) if family.needs_trials else family  # type: ignore[arg-type]
            for family, part in zip(self.families, trials, strict=True)
        ]
        return replaced(self, families=tuple(members))

    def natural_parameter(self, eta: Array) -> Array:
        """theta(eta) of every column's member."""
        return self.each("natural_parameter", eta)

    def log_normalizer(self, theta: Array) -> Array:
        return self.each("log_normalizer", theta)

    def base_statistic(self, x: Array) -> Array:
        return self.each("base_statistic", x)

    def log_base_measure_from(self, statistic: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.each("log_base_measure_from", statistic, dispersion)

    def log_base_measure(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.each("log_base_measure", x, dispersion)

    def log_prob(self, x: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.each("log_prob", x, eta, dispersion)

    def mean(self, eta: Array) -> Array:
        return self.each("mean", eta)

    def variance_function(self, eta: Array) -> Array:
        return self.each("variance_function", eta)

    def link(self, mean: Array) -> Array:
        return self.each("link", mean)

    def null_predictor(self, mean: Array) -> Array:
        return self.each("null_predictor", mean)

    def expected_terms(
        self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array, Array]:
        return self.each("expected_terms", x, mean, variance, dispersion)

    def saturated_log_prob(self, x: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.each("saturated_log_prob", x, dispersion)

    def rounding_size(self, x: Array, mean: Array, variance: Array, dispersion: ArrayLike = 1.0) -> Array:
        return self.each("rounding_size", x, mean, variance, dispersion)

    def expansion_constant(
        self, mean: Array, variance: ArrayLike, statistic: Array, eta0: Array, dispersion: ArrayLike = 1.0
    ) -> Array:
        return self.each("expansion_constant", mean, variance, statistic, eta0, dispersion)

    def logistic_form(self, x: Array) -> Logistic | None:
        return self.each("logistic_form", x) if self.is_logistic else None

    def remainder(
        self, eta: ArrayLike, eta0: ArrayLike, x: ArrayLike | None = None, dispersion: ArrayLike = 1.0
    ) -> tuple[Array, Array]:
        return self.each("remainder", eta, eta0, x, dispersion)

    def expected_remainder(
        self,
        mean: ArrayLike,
        variance: ArrayLike,
        eta0: ArrayLike,
        x: ArrayLike | None = None,
        dispersion: ArrayLike = 1.0,
    ) -> tuple[Array, Array]:
        return self.each("expected_remainder", mean, variance, eta0, x, dispersion)

    def sample(self, key: Array, eta: Array, dispersion: ArrayLike = 1.0) -> Array:
        """One draw of x for every entry of eta; each member has a key of its own."""
        keys = jax.random.split(key, len(self.families)) if len(self.families) > 1 else [key]
        parts = zip(self.families, keys, self.split(eta), self.split(dispersion), strict=True)
        return self.join([family.sample(k, e, phi) for family, k, e, phi in parts])

    def __repr__(self) -> str:
        members = ", ".join(f"({f!r}, {text_of(g)})" for f, g in zip(self.families, self.groups, strict=True))
        return f"Mixed([{members}])"
