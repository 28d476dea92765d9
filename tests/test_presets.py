"""Losses of public implementations, each written out from its source, against what their presets say."""

import pickle

import jax.numpy as jnp
import pytest
from loss_cases import (
    BATCH,
    COLUMNS,
    a_batch,
    balance,
    cross_entropy,
    gradient_of_elbo,
    gradient_of_loss,
    kl_terms,
    squared_error,
)

from glmvae.conventions import LOSS_PRESETS, loss_convention

KL_WEIGHT = 0.4


def _bce_and_kl_summed(x, out, mu, logvar):
    return jnp.sum(cross_entropy(x, out)) + KL_WEIGHT * jnp.sum(kl_terms(mu, logvar))


def _bce_and_kl_by_row(x, out, mu, logvar):
    return jnp.sum(cross_entropy(x, out)) / BATCH + KL_WEIGHT * jnp.mean(jnp.sum(kl_terms(mu, logvar), 1))


def _mse_by_entry(x, out, mu, logvar):
    return jnp.mean(squared_error(x, out)) + KL_WEIGHT * jnp.mean(jnp.sum(kl_terms(mu, logvar), 1))


def _mse_by_row(x, out, mu, logvar):
    return jnp.mean(jnp.sum(squared_error(x, out), 1) + KL_WEIGHT * jnp.sum(kl_terms(mu, logvar), 1))


def _mse_of_255(x, out, mu, logvar):
    return (
        jnp.sum(squared_error(255 * x, 255 * out)) / 255 / BATCH
        + KL_WEIGHT * jnp.mean(kl_terms(mu, logvar), axis=0).sum()
    )


PRESETS = {
    "pytorch-examples": _bce_and_kl_summed,
    "keras-io": _bce_and_kl_by_row,
    "pytorch-vae": _mse_by_entry,
    "pythae": _mse_by_row,
    "lightning-bolts": _mse_by_row,
    "beta-vae": _bce_and_kl_by_row,
    "disentanglement-lib": _bce_and_kl_by_row,
    "disentangling-vae-gaussian": _mse_of_255,
}


@pytest.mark.any_precision
def test_every_preset_has_its_test_and_its_source():
    assert set(PRESETS) == set(LOSS_PRESETS)
    assert all("/" in preset.source and ".py" in preset.source and preset.note for preset in LOSS_PRESETS.values())
    with pytest.raises(TypeError):
        LOSS_PRESETS["pythae"].arguments["reduction"] = "mean"
    with pytest.raises(TypeError):
        LOSS_PRESETS["mine"] = LOSS_PRESETS["pythae"]
    again = pickle.loads(pickle.dumps(LOSS_PRESETS))
    assert again == LOSS_PRESETS
    assert again["pythae"].arguments["reduction"] == "batchmean"
    assert "batchmean" in repr(again["pythae"])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_its_loss(name, dtype):
    preset = LOSS_PRESETS[name]
    x, outputs = a_batch(dtype, binary=preset.arguments["reconstruction"] == "bce")
    convention = loss_convention(**preset.arguments, kl_weight=KL_WEIGHT, columns=COLUMNS)
    theirs, ours = gradient_of_loss(PRESETS[name], x, outputs), gradient_of_elbo(convention, x, outputs)
    assert abs(balance(theirs, ours) - 1) < 1e-5
    size = float(jnp.linalg.norm(theirs) / jnp.linalg.norm(ours))
    assert abs(size / float(convention.scale) / (BATCH if name == "pytorch-examples" else 1) - 1) < 1e-5
    without_weight = loss_convention(**preset.arguments, columns=COLUMNS)
    assert abs(balance(theirs, gradient_of_elbo(without_weight, x, outputs)) - 1) > 0.1
