"""Which beta and which dispersion a loss means, written as users write it.

A loss is a reconstruction term and a KL term, each reduced over the batch and the columns (or units) and weighted:

    loss = a mean_rows(reconstruction summed over columns) + b mean_rows(KL)
         = c mean_rows(-log p(x | z) + beta KL) + constant,        beta = b / c

where a and b gather the weights and reductions. Squared error is -log p of a Gaussian, times 2 phi: c = 2 phi a, so
beta phi = b / (2 a) is all that such a loss fixes, and all that the Gaussian optimum and its pruning depend on. What to
do about a beta that was not meant is the last line of the explanation: the weight of the KL term with which it is 1.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _settings
from glmvae.conventions.presets import LOSS_PRESETS as LOSS_PRESETS
from glmvae.conventions.presets import LossPreset as LossPreset
from glmvae.diagnosis import Diagnosis, diagnose
from glmvae.entries import look_at
from glmvae.families import Bernoulli, Family, Gaussian
from glmvae.sources import as_source
from glmvae.statistics import Moments

REDUCTIONS = ("sum", "batchmean", "mean")


@dataclasses.dataclass(frozen=True)
class LossConvention:
    """What a loss means: ``loss = scale (-log p + beta KL) + constant``, a mean over rows (a sum if both terms are).

    Fields:
        family: the observation model.
        beta: weight of the KL divergence against -log p.
        dispersion: phi at which that holds; None where it is learned. For squared error only beta phi is fixed.
        scale: c, what the learning rate sees.
        diagnosis: what it implies for the data; None where none were given.
        kl_weight: the factor on the KL term with which beta is 1, everything else as it is.
        explanation: the same in words, and what to change.
    """

    family: Family
    beta: Array
    dispersion: Array | None
    scale: Array
    kl_weight: Array
    diagnosis: Diagnosis | None
    explanation: str

    @property
    def active_units(self) -> Array | None:
        """Units that stay active on the data by the paper's rule; None where no data were given."""
        return None if self.diagnosis is None else self.diagnosis.active_units

    def __str__(self) -> str:
        return self.explanation if self.diagnosis is None else f"{self.explanation}\n{self.diagnosis!r}"


jax.tree_util.register_dataclass(
    LossConvention,
    data_fields=["family", "beta", "dispersion", "scale", "kl_weight", "diagnosis"],
    meta_fields=["explanation"],
)


def loss_convention(
    reconstruction: str,
    *,
    reduction: str = "batchmean",
    kl_reduction: str = "batchmean",
    reconstruction_weight: float = 1.0,
    kl_weight: float = 1.0,
    columns: int | None = None,
    latent_dim: int | None = None,
    batch_size: int | None = None,
    family: Family | None = None,
    dispersion: ArrayLike | None = None,
    data: Any = None,
) -> LossConvention:
    """The beta and the dispersion that a beta-VAE's loss means.

        loss = reconstruction_weight reduce(reconstruction) + kl_weight reduce(KL)
             = scale mean_rows(-log p + beta KL) + constant

    Args:
        reconstruction: ``"mse"``, squared error (x - eta)^2 of a linear output; ``"bce"``, binary cross-entropy of
            probabilities or logits; ``"nll"``, -log p of ``family``.
        reduction: of the reconstruction: ``"sum"`` over batch and columns, ``"batchmean"`` over columns and then the
            mean over the batch, ``"mean"`` over both.
        kl_reduction: of the KL divergence, the same with latent units for columns.
        reconstruction_weight, kl_weight: factors on the two, positive.
        columns: d, needed for ``reduction="mean"``; where data are given it may be left out.
        latent_dim: kappa, needed for ``kl_reduction="mean"`` and with data.
        batch_size: rows of a batch, needed where one reduction is ``"sum"`` and the other is not.
        family: for ``"nll"`` only.
        dispersion: for ``"mse"`` the phi at which to state beta, by default 1/2, where squared error is -log p; for
            ``"nll"`` that of its family, where None is 1 if the family fixes it and learned for Gaussian.
        data: (N, d), :class:`~glmvae.rows.Rows`, a :class:`~glmvae.sources.Source`, or their
            :class:`~glmvae.statistics.Moments`: what the loss implies for them.

    Returns:
        :class:`LossConvention`; its ``diagnosis`` has the number of active units.

    Raises:
        ValueError: an unknown word, a weight or dispersion that is not positive, a count that is missing, below 1 or
            not that of the data, a family or dispersion that the reconstruction does not take or lacks; bad data as
            :func:`~glmvae.diagnosis.diagnose`.
        TypeError: arguments that are not numbers.

    Exactness: exact, for the objective. A squared error of an output squashed by sigmoid or tanh has the same beta and
    phi, but its optimum is not that of the Gaussian family, whose mean is linear.

    Example:
        >>> from glmvae import loss_convention
        >>> print(loss_convention("mse", reduction="mean", columns=784))
        loss = 0.00127551 (-log p + 784 KL) + constant, a mean over rows, in Gaussian() with dispersion 0.5
        of beta and dispersion only the product 392 matters: the same optimum as beta = 1 with dispersion 392
        kl_weight = 1/784 gives beta 1 at dispersion 0.5

    Source: (1) with the Gaussian and Bernoulli families written out.
    """
    _check_words(reconstruction, reduction, kl_reduction)
    _settings.positive(reconstruction_weight, "reconstruction_weight")
    _settings.positive(kl_weight, "kl_weight")
    if data is not None:
        if latent_dim is None:
            raise ValueError("latent_dim: expected an integer where data are given, got None")
        data = data if isinstance(data, Moments) else as_source(data, "data")
        width = data.mean.shape[0] if isinstance(data, Moments) else data.num_columns
        if columns not in (None, width):
            raise ValueError(f"columns: expected {width}, the number the data have, or None, got {columns}")
        columns = width
    summed = reduction == kl_reduction == "sum"
    counts = {"columns": columns, "latent_dim": latent_dim, "batch_size": batch_size}
    a = float(reconstruction_weight) * _factor(reduction, "reduction", "columns", counts, summed)
    b = float(kl_weight) * _factor(kl_reduction, "kl_reduction", "latent_dim", counts, summed)

    family, phi = _family_of(reconstruction, family, dispersion)
    scale = 2 * phi * a if reconstruction == "mse" else a
    beta = b / scale
    diagnosis = None
    if data is not None and latent_dim is not None:
        if not isinstance(data, Moments) and data.rows is not None:
            look_at(data.rows, family, "data")
        diagnosis = diagnose(data, family, latent_dim, beta=beta, dispersion=phi)
    meant = float(kl_weight) / beta
    explanation = _explain(family, beta, phi, scale, reconstruction, "sum" if summed else "mean")
    return LossConvention(
        family=family,
        beta=jax.device_put(np.asarray(beta, float)),
        dispersion=None if phi is None else jax.device_put(np.asarray(phi, float)),
        scale=jax.device_put(np.asarray(scale, float)),
        kl_weight=jax.device_put(np.asarray(meant, float)),
        diagnosis=diagnosis,
        explanation=f"{explanation}\n{_remedy(beta, phi, meant)}",
    )


def _check_words(reconstruction: Any, reduction: Any, kl_reduction: Any) -> None:
    if reconstruction not in ("mse", "bce", "nll"):
        raise ValueError(f'reconstruction: expected "mse", "bce" or "nll", got {reconstruction!r}')
    for word, name in ((reduction, "reduction"), (kl_reduction, "kl_reduction")):
        if word not in REDUCTIONS:
            raise ValueError(f'{name}: expected "sum", "batchmean" or "mean", got {word!r}')


def _factor(word: str, name: str, mean_over: str, counts: dict[str, Any], summed: bool) -> float:
    """What a reduction makes of the sum over a row's columns (or units), meant over rows."""
    if word == "sum" and not summed:
        return _count(counts["batch_size"], "batch_size", "one reduction is a sum")
    if word == "mean":
        return 1 / _count(counts[mean_over], mean_over, f'{name} is "mean"')
    return 1.0


def _count(value: Any, name: str, why: str) -> int:
    if value is None:
        raise ValueError(f"{name}: expected an integer where {why}, got None")
    return _settings.integer(value, name)


def _family_of(reconstruction: str, family: Family | None, dispersion: ArrayLike | None) -> tuple[Family, Any]:
    """The family and phi, a float, an array or None where it is learned."""
    if reconstruction == "nll":
        if not isinstance(family, Family):
            raise ValueError(f'family: expected a family for "nll", got {family!r}')
        if dispersion is not None:
            _settings.positive_each(dispersion, "dispersion")
            return family, dispersion
        if family.fixed_dispersion is None and not family.has_joint_dispersion:
            raise ValueError(f"dispersion: {family!r} needs one, got None")
        return family, family.fixed_dispersion
    if family is not None:
        raise ValueError(f'family: expected none for "{reconstruction}", which says it, got {family!r}')
    if reconstruction == "bce":
        if dispersion is not None:
            raise ValueError(f'dispersion: expected none for "bce", where it is 1, got {dispersion!r}')
        return Bernoulli(), 1.0
    if dispersion is None:
        return Gaussian(), 0.5
    _settings.positive(dispersion, "dispersion")
    return Gaussian(), float(dispersion)  # type: ignore[arg-type]


def _explain(family: Family, beta: float, phi: Any, scale: float, reconstruction: str, over_rows: str) -> str:
    if phi is None:
        at = "learned dispersion"
    else:
        at = f"dispersion {phi:g}" if np.ndim(phi) == 0 else "the given dispersions"
    text = f"loss = {scale:g} (-log p + {beta:g} KL) + constant, a {over_rows} over rows, in {family!r} with {at}"
    if reconstruction == "mse":
        text += (
            f"\nof beta and dispersion only the product {beta * phi:g} matters: "
            f"the same optimum as beta = 1 with dispersion {beta * phi:g}"
        )
    return text


def _remedy(beta: float, phi: Any, kl_weight: float) -> str:
    """What to change for beta = 1, or that nothing is to be."""
    at = f" at dispersion {phi:g}" if phi is not None and np.ndim(phi) == 0 and phi != 1.0 else ""
    if abs(beta - 1) < 1e-12:
        return f"beta is 1{at}: this is the ELBO itself"
    near = Fraction(kl_weight).limit_denominator(10**7)
    exact = near.numerator < 10**4 and abs(float(near) / kl_weight - 1) < 1e-12
    return f"kl_weight = {near if exact else f'{kl_weight:g}'} gives beta 1{at}"
