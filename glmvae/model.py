"""What is optimised, and for which decoder.

    L = E_q log p(x | eta) - beta KL(q(z | x) || N(0, I)),     eta = W z + b + B' covariates + offset           (1)

An :class:`Objective` is the family with its beta and dispersion, an :class:`Affine` the decoder, and an
:class:`AffineModel` ties the two together, so that none is scored under a beta or a dispersion that is not its own. To
differentiate in the decoder differentiate the ``Affine``: the objective's leaves are numbers too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae._precision import in_full
from glmvae.families import Family
from glmvae.families.checks import check_columns, check_family
from glmvae.rows import Rows


def unchecked(cls: type, **fields: Any) -> Any:
    """An instance with those fields, without the checks of its making: of leaves, or of what is right already."""
    value: Any = object.__new__(cls)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value


def _rebuilt(cls: type, names: tuple[str, ...]) -> type:
    """A frozen dataclass as a pytree, rebuilt from its leaves without the checks of its making."""

    def flatten(value: Any) -> tuple[list[tuple[Any, Any]], None]:
        return [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names], None

    def unflatten(_: None, leaves: Any) -> Any:
        return unchecked(cls, **dict(zip(names, leaves, strict=True)))

    jax.tree_util.register_pytree_with_keys(
        cls, flatten, unflatten, lambda value: ([getattr(value, name) for name in names], None)
    )
    return cls


@dataclasses.dataclass(frozen=True, eq=False, init=False, repr=False)
class Objective:
    """What is maximised: the beta-ELBO of a family.

    Args:
        family: the observation model.
        beta: weight of the KL divergence, positive.
        dispersion: phi, positive, a scalar or one a column, (d,); None is 1 for the families that fix it.

    Raises:
        ValueError: beta or dispersion not positive (after rounding to the precision in use), a dispersion missing where
            the family does not fix it.
        TypeError: no family; not numbers.

    Example:
        >>> from glmvae import Objective
        >>> from glmvae.families import Gaussian, Poisson
        >>> Objective(Poisson(), beta=2.0)
        Objective(Poisson(), beta=2)
        >>> Objective(Gaussian(), dispersion=0.5).with_beta(4.0)
        Objective(Gaussian(), beta=4, dispersion=0.5)
    """

    family: Family
    beta: Array
    dispersion: Array

    def __init__(self, family: Family, beta: ArrayLike = 1.0, dispersion: ArrayLike | None = None) -> None:
        check_family(family)
        if dispersion is None:
            dispersion = family.fixed_dispersion
            if dispersion is None:
                raise ValueError(
                    f"dispersion: {family!r} does not fix it, so give one: Objective({family!r}, dispersion=...), a "
                    "positive scalar or one a column; `fit` estimates that of a Gaussian"
                )
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "beta", _settings.positive(beta, "beta"))
        object.__setattr__(
            self, "dispersion", _settings.positive(dispersion, "dispersion", family.columns, vector=True)
        )

    @property
    def dispersion_of_entries(self) -> Array:
        """phi beside arrays (N, d): a scalar, or (1, d)."""
        phi = jnp.asarray(self.dispersion)
        return phi[None] if phi.ndim else phi

    def with_beta(self, beta: ArrayLike) -> Objective:
        """The same with another beta, checked."""
        return Objective(self.family, beta, self.dispersion)

    def with_dispersion(self, dispersion: ArrayLike) -> Objective:
        """The same with another dispersion, checked."""
        return Objective(self.family, self.beta, dispersion)

    def __repr__(self) -> str:
        if not _checks.concrete((self.beta, self.dispersion)) or np.ndim(self.beta):
            return f"Objective({self.family!r}, beta={self.beta}, dispersion={self.dispersion})"
        phi = np.asarray(self.dispersion)
        shown = f"{float(phi):g}" if phi.ndim == 0 else f"{phi.min():g} to {phi.max():g}"
        fixed = (
            self.family.fixed_dispersion is not None and phi.ndim == 0 and float(phi) == self.family.fixed_dispersion
        )
        return f"Objective({self.family!r}, beta={float(self.beta):g}{'' if fixed else f', dispersion={shown}'})"


def as_objective(value: Any, name: str = "objective") -> Objective:
    """An objective as it is; a bare family stands for ``Objective(family)``."""
    if isinstance(value, Objective):
        return value
    if not isinstance(value, Family):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected an Objective, or a family such as Bernoulli(), got {got}")
    return Objective(value)


@dataclasses.dataclass(frozen=True, eq=False, init=False, repr=False)
class Affine:
    """An affine decoder, eta = W z + b + B' covariates.

    Args:
        loadings: W, (d, kappa); kappa may be 0, the intercept-only GLM.
        intercept: b, (d,).
        coefficients: B, (p, d), of known covariates; None without.

    Raises:
        ValueError: shapes that do not fit, values that are not finite.
        TypeError: not numbers.

    Example:
        >>> from glmvae import Affine
        >>> decoder = Affine([[1.0], [2.0]], [0.0, 1.0])
        >>> print(decoder([3.0]))
        [3. 7.]
    """

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    coefficients: Float[Array, "p d"] | None

    def __init__(self, loadings: ArrayLike, intercept: ArrayLike, coefficients: ArrayLike | None = None) -> None:
        loadings = _checks.matrix(loadings, "loadings", empty_columns=True)
        intercept = _checks.vector(intercept, "intercept", loadings.shape[0])
        if coefficients is not None:
            coefficients = _checks.matrix(coefficients, "coefficients", columns=loadings.shape[0])
        for name, value in zip(_AFFINE, (loadings, intercept, coefficients), strict=True):
            object.__setattr__(self, name, value)

    @property
    def num_covariates(self) -> int:
        """p, 0 without."""
        return 0 if self.coefficients is None else self.coefficients.shape[-2]

    @property
    def latent_dim(self) -> int:
        """kappa."""
        return self.loadings.shape[-1]

    @in_full
    def __call__(self, z: ArrayLike, covariates: ArrayLike | None = None) -> Float[Array, "*n d"]:
        """eta of a latent vector (kappa,), or of rows of them (N, kappa) with their covariates (N, p)."""
        eta = jnp.asarray(z) @ self.loadings.T
        eta = eta + (self.intercept if eta.ndim == 1 else self.intercept[None])
        return eta if self.coefficients is None or covariates is None else eta + covariates @ self.coefficients

    def __repr__(self) -> str:
        d, k = np.shape(self.loadings)[-2:]
        also = "" if self.coefficients is None else f", {_checks.counted(self.num_covariates, 'covariate')}"
        return f"Affine({_checks.counted(d, 'column')}, {_checks.counted(k, 'latent unit')}{also})"


_AFFINE = ("loadings", "intercept", "coefficients")


@dataclasses.dataclass(frozen=True, eq=False, init=False, repr=False)
class AffineModel:
    """A decoder and what it is for.

    Args:
        decoder: an :class:`Affine`.
        objective: an :class:`Objective`, or a family that fixes its dispersion.

    Raises:
        ValueError: an objective for another number of columns.
        TypeError: other objects.

    Example:
        >>> from glmvae import Affine, AffineModel
        >>> from glmvae.families import Poisson
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Poisson())
        >>> model.with_beta(2.0)
        AffineModel(Affine(1 column, 1 latent unit), Objective(Poisson(), beta=2))
    """

    decoder: Affine
    objective: Objective

    def __init__(self, decoder: Affine, objective: Objective | Family) -> None:
        if not isinstance(decoder, Affine):
            raise TypeError(f"decoder: expected an Affine(loadings, intercept), got {type(decoder).__name__}")
        objective = as_objective(objective)
        columns = decoder.loadings.shape[0]
        check_columns(columns, objective.family, "decoder.loadings")
        if jnp.ndim(objective.dispersion) == 1 and jnp.shape(objective.dispersion) != (columns,):
            raise ValueError(
                f"dispersion: expected a scalar or shape ({columns},), got {jnp.shape(objective.dispersion)}"
            )
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "objective", objective)

    @property
    def model(self) -> AffineModel:
        """Itself, as results have theirs."""
        return self

    @property
    def loadings(self) -> Array:
        """W, (d, kappa)."""
        return self.decoder.loadings

    @property
    def intercept(self) -> Array:
        """b, (d,)."""
        return self.decoder.intercept

    @property
    def coefficients(self) -> Array | None:
        """B, (p, d)."""
        return self.decoder.coefficients

    @property
    def family(self) -> Family:
        """The observation model."""
        return self.objective.family

    @property
    def beta(self) -> Array:
        """Weight of the KL divergence."""
        return self.objective.beta

    @property
    def dispersion(self) -> Array:
        """phi, a scalar or (d,)."""
        return self.objective.dispersion

    def with_beta(self, beta: ArrayLike) -> AffineModel:
        """The same decoder for another beta, checked."""
        return AffineModel(self.decoder, self.objective.with_beta(beta))

    def with_dispersion(self, dispersion: ArrayLike) -> AffineModel:
        """The same decoder for another dispersion, checked."""
        return AffineModel(self.decoder, self.objective.with_dispersion(dispersion))

    def __repr__(self) -> str:
        return f"AffineModel({self.decoder!r}, {self.objective!r})"


_rebuilt(Objective, ("family", "beta", "dispersion"))
_rebuilt(Affine, _AFFINE)
_rebuilt(AffineModel, ("decoder", "objective"))


def as_model(value: Any, name: str = "model") -> AffineModel:
    """An :class:`AffineModel`, or that of a result that has a ``.model``."""
    model = getattr(value, "model", None)
    if not isinstance(model, AffineModel):
        raise TypeError(f"{name}: expected an AffineModel or a result such as fit returns, got {type(value).__name__}")
    return model


def require_density(model: AffineModel, name: str = "model") -> AffineModel:
    """The model; ValueError for a dispersion of 0, that of a Gaussian optimum of as many units as directions."""
    if _checks.concrete(model.dispersion) and np.any(np.asarray(model.dispersion) == 0):
        raise ValueError(
            f"{name}: its dispersion is 0, since {_checks.counted(model.decoder.latent_dim, 'latent unit')} can "
            "reproduce the data without error, and there is no density to take the ELBO of; fit with fewer units, or "
            "with a dispersion"
        )
    return model


def fixed_predictor(decoder: Affine, rows: Rows) -> Array:
    """What of eta does not depend on z: b + B' covariates + offset, (1, d) or (N, d)."""
    eta = decoder.intercept[None]
    if decoder.coefficients is not None:
        eta = eta + rows.covariates @ decoder.coefficients
    return eta if rows.offset is None else eta + rows.offset
