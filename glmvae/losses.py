"""Which beta and which dispersion a loss means, written as users write it.

A loss is a reconstruction term and a KL term, each reduced over the batch and the columns (or units) and weighted:

    loss = a mean_rows(reconstruction summed over columns) + b mean_rows(KL)
         = c mean_rows(-log p(x | z) + beta KL) + constant,        beta = b / c

where a and b gather the weights and reductions. Squared error is -log p of a Gaussian, times 2 phi: c = 2 phi a, so
beta phi = b / (2 a) is all that such a loss fixes, and all that the Gaussian optimum and its pruning depend on.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae.diagnosis import Diagnosis, diagnose
from glmvae.families import Bernoulli, Family, Gaussian
from glmvae.moments import Moments

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
        explanation: the same in words.
    """

    family: Family
    beta: Array
    dispersion: Array | None
    scale: Array
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
    data_fields=["family", "beta", "dispersion", "scale", "diagnosis"],
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
    data: ArrayLike | Moments | None = None,
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
        columns: d, needed for ``reduction="mean"``; that of the data where they are given.
        latent_dim: kappa, needed for ``kl_reduction="mean"`` and with data.
        batch_size: rows of a batch, needed where one reduction is ``"sum"`` and the other is not.
        family: for ``"nll"`` only.
        dispersion: for ``"mse"`` the phi at which to state beta, by default 1/2, where squared error is -log p; for
            ``"nll"`` that of its family, where None is 1 if the family fixes it and learned for Gaussian.
        data: (N, d) or their :class:`~glmvae.moments.Moments`: what the loss implies for them.

    Returns:
        :class:`LossConvention`; its ``diagnosis`` has the number of active units.

    Raises:
        ValueError: an unknown word, a weight or dispersion that is not positive, a count that is missing or below 1,
            a family or dispersion that the reconstruction does not take or lacks; bad data as
            :func:`~glmvae.diagnosis.diagnose`.
        TypeError: arguments that are not numbers.

    Exactness: exact, for the objective. A squared error of an output squashed by sigmoid or tanh has the same beta and
    phi, but its optimum is not that of the Gaussian family, whose mean is linear.

    Example:
        >>> from glmvae import loss_convention
        >>> print(loss_convention("mse", reduction="mean", columns=784))
        loss = 0.00127551 (-log p + 784 KL) + constant, a mean over rows, in Gaussian() with dispersion 0.5
        of beta and dispersion only the product 392 matters: the same optimum as beta = 1 with dispersion 392

    Source: (1) with the Gaussian and Bernoulli families written out.
    """
    if reconstruction not in ("mse", "bce", "nll"):
        raise ValueError(f'reconstruction: expected "mse", "bce" or "nll", got {reconstruction!r}')
    for word, name in ((reduction, "reduction"), (kl_reduction, "kl_reduction")):
        if word not in REDUCTIONS:
            raise ValueError(f'{name}: expected "sum", "batchmean" or "mean", got {word!r}')
    _checks.positive(reconstruction_weight, "reconstruction_weight")
    _checks.positive(kl_weight, "kl_weight")
    if data is not None:
        if latent_dim is None:
            raise ValueError("latent_dim: expected an integer where data are given, got None")
        data = data if isinstance(data, Moments) else _checks.matrix(data, "data")
        columns = data.mean.shape[0] if isinstance(data, Moments) else data.shape[1]
    summed = reduction == kl_reduction == "sum"

    a, b = float(reconstruction_weight), float(kl_weight)
    if reduction == "sum" and not summed:
        a *= _count(batch_size, "batch_size", "one reduction is a sum")
    if kl_reduction == "sum" and not summed:
        b *= _count(batch_size, "batch_size", "one reduction is a sum")
    if reduction == "mean":
        a /= _count(columns, "columns", 'reduction is "mean"')
    if kl_reduction == "mean":
        b /= _count(latent_dim, "latent_dim", 'kl_reduction is "mean"')

    family, phi = _family_of(reconstruction, family, dispersion)
    scale = 2 * phi * a if reconstruction == "mse" else a
    beta = b / scale
    diagnosis = None
    if data is not None and latent_dim is not None:
        diagnosis = diagnose(data, family, latent_dim, beta=beta, dispersion=phi)
    return LossConvention(
        family=family,
        beta=jnp.asarray(beta),
        dispersion=None if phi is None else jnp.asarray(phi),
        scale=jnp.asarray(scale),
        diagnosis=diagnosis,
        explanation=_explain(family, beta, phi, scale, reconstruction, "sum" if summed else "mean"),
    )


def _count(value: Any, name: str, why: str) -> int:
    if value is None:
        raise ValueError(f"{name}: expected an integer where {why}, got None")
    return _checks.integer(value, name)


def _family_of(reconstruction: str, family: Family | None, dispersion: ArrayLike | None) -> tuple[Family, Any]:
    """The family and phi, a float, an array or None where it is learned."""
    if reconstruction == "nll":
        if not isinstance(family, Family):
            raise ValueError(f'family: expected a family for "nll", got {family!r}')
        if dispersion is not None:
            _checks.positive_each(dispersion, "dispersion")
            return family, dispersion
        if family.fixed_dispersion is None and not isinstance(family, Gaussian):
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
    _checks.positive(dispersion, "dispersion")
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


# Well-known implementations -------------------------------------------------------------------------------


class LossPreset(NamedTuple):
    """The loss of a public implementation: ``loss_convention(**preset.arguments, kl_weight=...)``.

    Fields:
        arguments: for :func:`loss_convention`; what the implementation leaves to its user is not among them.
        source: repository and path where it was read.
        note: what to add, and what else to know.
    """

    arguments: MappingProxyType[str, Any]
    source: str
    note: str


def _preset(source: str, note: str, **arguments: Any) -> LossPreset:
    return LossPreset(MappingProxyType(arguments), source, note)


#: By name: losses of well-known implementations, as read in the sources they name.
LOSS_PRESETS = MappingProxyType(
    {
        "pytorch-examples": _preset(
            "pytorch/examples, vae/main.py",
            "both terms summed over the batch, which scales the loss and not beta",
            reconstruction="bce",
            reduction="sum",
            kl_reduction="sum",
        ),
        "keras-io": _preset(
            "keras-team/keras-io, examples/generative/vae.py",
            "the mean over the one channel changes nothing",
            reconstruction="bce",
            reduction="batchmean",
            kl_reduction="batchmean",
        ),
        "pytorch-vae": _preset(
            "AntixK/PyTorch-VAE, models/vanilla_vae.py and experiment.py",
            "give columns and kl_weight, which there is the batch size over the number of training images; "
            "beta_vae.py has the same loss with its own weight; the output is a tanh",
            reconstruction="mse",
            reduction="mean",
            kl_reduction="batchmean",
        ),
        "pythae": _preset(
            "clementchadebec/benchmark_VAE, src/pythae/models/vae/vae_model.py",
            'with the setting "mse"; with "bce" the reductions are the same',
            reconstruction="mse",
            reduction="batchmean",
            kl_reduction="batchmean",
        ),
        "lightning-bolts": _preset(
            "Lightning-Universe/lightning-bolts, pl_bolts/models/autoencoders/basic_vae/basic_vae_module.py",
            "an early version; the KL divergence is itself sampled; the output is a tanh",
            reconstruction="mse",
            reduction="batchmean",
            kl_reduction="batchmean",
        ),
        "beta-vae": _preset(
            "1Konny/Beta-VAE, solver.py",
            'objective "H" with the Bernoulli decoder; give kl_weight, its beta; its Gaussian decoder is the '
            "squared error of a sigmoid, reduced the same way",
            reconstruction="bce",
            reduction="batchmean",
            kl_reduction="batchmean",
        ),
        "disentanglement-lib": _preset(
            "google-research/disentanglement_lib, disentanglement_lib/methods/shared/losses.py and unsupervised/vae.py",
            "the Bernoulli loss; give kl_weight, its beta",
            reconstruction="bce",
            reduction="batchmean",
            kl_reduction="batchmean",
        ),
        "disentangling-vae-gaussian": _preset(
            "YannDubs/disentangling-vae, disvae/models/losses.py",
            "squared errors of 255 times the values, over 255; give kl_weight, its beta",
            reconstruction="mse",
            reduction="batchmean",
            kl_reduction="batchmean",
            reconstruction_weight=255.0,
        ),
    }
)
