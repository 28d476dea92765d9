"""Losses of well-known implementations, read in their sources: ``loss_convention(**LOSS_PRESETS[name].arguments)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Frozen(Mapping[str, Any]):
    """A dictionary that nobody changes."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


class LossPreset(NamedTuple):
    """The loss of a public implementation: ``loss_convention(**preset.arguments, kl_weight=...)``.

    Fields:
        arguments: for :func:`loss_convention`; what the implementation leaves to its user is not among them.
        source: repository and path where it was read.
        note: what to add, and what else to know.
    """

    arguments: Frozen
    source: str
    note: str


def _preset(source: str, note: str, **arguments: Any) -> LossPreset:
    return LossPreset(Frozen(**arguments), source, note)


#: By name: losses of well-known implementations, as read in the sources they name.
LOSS_PRESETS = Frozen(
    **{
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
