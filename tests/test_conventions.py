"""What a loss means, against the loss itself: its gradient is that of scale (-log p + beta KL)."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glmvae import Posterior, Rows, activity, fit, kl_divergence, moments
from glmvae.conventions import LOSS_PRESETS, loss_convention
from glmvae.families import Bernoulli, Exponential, Gamma, Gaussian, Poisson

# A gradient of a few sums against the same sums in another order.
RELATIVE = {"float64": 1e-11, "float32": 2e-5}
BATCH, COLUMNS, UNITS = 6, 5, 3


def a_batch(dtype, binary=False):
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, COLUMNS))
    outputs = rng.normal(size=(BATCH, COLUMNS)), rng.normal(size=(BATCH, UNITS)), rng.normal(size=(BATCH, UNITS)) / 2
    return jnp.asarray(x > 0.5 if binary else x, dtype), [jnp.asarray(o, dtype) for o in outputs]


# Users' terms, written out on their own.


def squared_error(x, output):
    return (x - output) ** 2


def cross_entropy(x, logit):
    p = jax.nn.sigmoid(logit)
    return -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p))


def kl_terms(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - jnp.exp(logvar))


REDUCE = {
    "sum": jnp.sum,
    "batchmean": lambda terms: jnp.mean(jnp.sum(terms, axis=1)),
    "mean": jnp.mean,
}


def gradient_of_loss(loss, x, outputs):
    return jnp.concatenate([g.ravel() for g in jax.grad(lambda o: loss(x, *o))(outputs)])


def gradient_of_elbo(convention, x, outputs, beta=None):
    def objective(o):
        eta, mu, logvar = o
        phi = 1.0 if convention.dispersion is None else convention.dispersion
        log_prob = jnp.sum(convention.family.log_prob(x, eta, phi), axis=1)
        q = Posterior(mu, jax.vmap(jnp.diag)(jnp.exp(logvar)))
        return jnp.mean((convention.beta if beta is None else beta) * kl_divergence(q) - log_prob)

    return jnp.concatenate([g.ravel() for g in jax.grad(objective)(outputs)])


def balance(theirs, ours):
    """How the weight of KL against the reconstruction in theirs compares with ours; 1 if they are the same."""
    cut = BATCH * COLUMNS  # the output's entries come first
    ratios = [float(jnp.linalg.norm(theirs[s]) / jnp.linalg.norm(ours[s])) for s in (slice(cut), slice(cut, None))]
    return ratios[1] / ratios[0]


@pytest.mark.parametrize("kl_reduction", ["sum", "batchmean", "mean"])
@pytest.mark.parametrize("reduction", ["sum", "batchmean", "mean"])
@pytest.mark.parametrize("reconstruction", ["mse", "bce"])
def test_the_gradient_is_that_of_the_elbo(reconstruction, reduction, kl_reduction, dtype):
    x, outputs = a_batch(dtype, binary=reconstruction == "bce")
    terms = squared_error if reconstruction == "mse" else cross_entropy

    def loss(x, out, mu, logvar):
        return 3.0 * REDUCE[reduction](terms(x, out)) + 0.7 * REDUCE[kl_reduction](kl_terms(mu, logvar))

    convention = loss_convention(
        reconstruction,
        reduction=reduction,
        kl_reduction=kl_reduction,
        reconstruction_weight=3.0,
        kl_weight=0.7,
        columns=COLUMNS,
        latent_dim=UNITS,
        batch_size=BATCH,
    )
    theirs, ours = gradient_of_loss(loss, x, outputs), gradient_of_elbo(convention, x, outputs)
    factor = float(convention.scale) * (BATCH if reduction == kl_reduction == "sum" else 1)
    np.testing.assert_allclose(theirs, factor * ours, rtol=RELATIVE[dtype.name], atol=RELATIVE[dtype.name])
    # another beta is another direction: no learning rate makes up for it
    for wrong in (2.0, 1 / COLUMNS, BATCH):
        other = gradient_of_elbo(convention, x, outputs, beta=wrong * convention.beta)
        assert abs(balance(theirs, other) - 1) > 0.1


@pytest.mark.parametrize("phi", [0.1, 0.5, 4.0])
def test_squared_error_fixes_the_product_of_beta_and_dispersion(phi, dtype):
    x, outputs = a_batch(dtype)

    def loss(x, out, mu, logvar):
        return jnp.mean(squared_error(x, out)) + 0.3 * jnp.mean(jnp.sum(kl_terms(mu, logvar), axis=1))

    convention = loss_convention("mse", reduction="mean", kl_weight=0.3, columns=COLUMNS, dispersion=phi)
    np.testing.assert_allclose(convention.beta * convention.dispersion, 0.3 * COLUMNS / 2, rtol=1e-6)
    theirs, ours = gradient_of_loss(loss, x, outputs), gradient_of_elbo(convention, x, outputs)
    np.testing.assert_allclose(theirs, convention.scale * ours, rtol=RELATIVE[dtype.name], atol=RELATIVE[dtype.name])
    data = moments(jax.random.normal(jax.random.key(0), (40, COLUMNS), dtype) * jnp.arange(1.0, 6.0, dtype=dtype))
    here = fit(data, Gaussian(), 3, beta=float(convention.beta), dispersion=phi)
    there = fit(data, Gaussian(), 3, beta=float(convention.beta * phi), dispersion=1.0)
    np.testing.assert_allclose(activity(here), activity(there), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(here.loadings, there.loadings, rtol=1e-3, atol=1e-3)
    if phi != 4.0:
        assert not np.allclose(activity(here), activity(fit(data, Gaussian(), 3, beta=4 / phi, dispersion=phi)))


@pytest.mark.any_precision
def test_the_two_conventions_everyone_mixes_up():
    summed = loss_convention("mse", columns=784)
    assert (float(summed.beta), float(summed.dispersion), float(summed.scale)) == (1.0, 0.5, 1.0)
    averaged = loss_convention("mse", reduction="mean", columns=784)
    np.testing.assert_allclose([averaged.beta, averaged.dispersion], [784.0, 0.5], rtol=1e-6)
    assert "only the product 392 matters" in averaged.explanation
    assert "product" not in loss_convention("bce").explanation
    cross = loss_convention("bce", reduction="mean", columns=784)
    np.testing.assert_allclose([cross.beta, cross.dispersion], [784.0, 1.0], rtol=1e-6)


MEAN = {"reduction": "mean", "columns": 784}


def remedy(convention):
    return str(convention.explanation).splitlines()[-1]


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"reconstruction": "mse"} | MEAN, "kl_weight = 1/784 gives beta 1 at dispersion 0.5"),
        ({"reconstruction": "bce"} | MEAN, "kl_weight = 1/784 gives beta 1"),
        ({"reconstruction": "bce", "kl_weight": 1 / 784} | MEAN, "beta is 1: this is the ELBO itself"),
        ({"reconstruction": "bce"}, "beta is 1: this is the ELBO itself"),
        ({"reconstruction": "bce", "kl_weight": 4.0}, "kl_weight = 1 gives beta 1"),
        ({"reconstruction": "bce", "kl_reduction": "mean", "latent_dim": 20}, "kl_weight = 20 gives beta 1"),
        ({"reconstruction": "bce", "reduction": "sum", "batch_size": 64}, "kl_weight = 64 gives beta 1"),
        ({"reconstruction": "bce", "reconstruction_weight": 0.1234567}, "kl_weight = 0.123457 gives beta 1"),
    ],
    ids=str,
)
def test_it_ends_in_what_to_change(arguments, line):
    """The line is true: with that weight beta is 1."""
    convention = loss_convention(**arguments)
    assert remedy(convention).startswith(line)
    mended = loss_convention(**(arguments | {"kl_weight": float(convention.kl_weight)}))
    np.testing.assert_allclose(mended.beta, 1.0, rtol=1e-6)
    written = re.search(r"kl_weight = (\d+)(?:/(\d+))? gives", remedy(convention))
    if written:
        np.testing.assert_allclose(int(written[1]) / int(written[2] or 1), convention.kl_weight, rtol=1e-6)
    assert remedy(mended).startswith("beta is 1")


def test_a_negative_log_likelihood_is_itself(dtype):
    x, outputs = a_batch(dtype)

    def loss(x, out, mu, logvar):
        terms = jnp.exp(out) - x * out  # Poisson without its constant
        return jnp.sum(terms) / BATCH + 2.5 * jnp.mean(jnp.sum(kl_terms(mu, logvar), axis=1))

    convention = loss_convention("nll", family=Poisson(), kl_weight=2.5)
    assert float(convention.beta) == 2.5
    np.testing.assert_allclose(
        gradient_of_loss(loss, x, outputs), gradient_of_elbo(convention, x, outputs), rtol=1e-4, atol=1e-5
    )
    assert loss_convention("nll", family=Gaussian()).dispersion is None
    assert "learned dispersion" in loss_convention("nll", family=Gaussian()).explanation
    assert float(loss_convention("nll", family=Gaussian(), dispersion=0.25).dispersion) == 0.25
    assert loss_convention("nll", family=Gaussian(), dispersion=[0.25, 1.0]).dispersion.shape == (2,)
    assert float(loss_convention("nll", family=Exponential()).dispersion) == 1.0


# The presets, each loss written out from its source -------------------------------------------------------

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


# With data ------------------------------------------------------------------------------------------------


def test_the_active_units_it_implies(dtype):
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 8))
    x = jnp.asarray(0.6 * signal + 0.2 * rng.normal(size=(200, 8)), dtype)
    summed = loss_convention("mse", latent_dim=4, data=x)
    averaged = loss_convention("mse", reduction="mean", latent_dim=4, data=moments(x, family=Gaussian()))
    values = np.linalg.eigvalsh(np.cov(np.asarray(x, float).T, bias=True))[::-1]
    assert int(summed.active_units) == np.sum(values[:4] > 0.5) == 2
    np.testing.assert_allclose(averaged.beta, 8.0, rtol=1e-6)
    assert int(averaged.active_units) == np.sum(values[:4] > 4.0) == 1
    assert "2 by the paper's rule" in str(summed)
    assert int(loss_convention("mse", latent_dim=4, data=Rows(x, weight=np.ones(200))).active_units) == 2
    assert loss_convention("mse").active_units is None
    leaves, structure = jax.tree.flatten(summed)
    assert all(isinstance(leaf, jax.Array | float) for leaf in leaves)
    assert str(jax.tree.unflatten(structure, leaves)) == str(summed)


@pytest.mark.float64
def test_the_active_units_it_implies_for_binary_data(dtype):
    x = jnp.asarray(
        np.random.default_rng(0).normal(size=(200, 8)) @ np.random.default_rng(1).normal(size=(8, 8)), dtype
    )
    binary = loss_convention("bce", latent_dim=2, data=(x > 0).astype(dtype))
    assert int(binary.active_units) == int(jnp.sum(fit((x > 0).astype(dtype), Bernoulli(), 2).eigenvalues[:2] > 1))


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reconstruction": "l1"}, ValueError, 'reconstruction: expected "mse", "bce" or "nll"'),
        ({"reduction": "none"}, ValueError, "reduction: expected .*, got 'none'"),
        ({"kl_reduction": "none"}, ValueError, "kl_reduction: expected .*, got 'none'"),
        ({"reconstruction_weight": 0.0}, ValueError, "reconstruction_weight: expected a positive"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight: expected a positive"),
        ({"kl_weight": "much"}, TypeError, "kl_weight: expected a number"),
        ({"reduction": "mean"}, ValueError, 'columns: expected an integer where reduction is "mean", got None'),
        ({"reduction": "mean", "columns": 0}, ValueError, "columns: expected an integer of at least 1, got 0"),
        ({"reduction": "mean", "columns": 2.0}, TypeError, "columns: expected an integer, got 2.0"),
        ({"kl_reduction": "mean"}, ValueError, "latent_dim: expected an integer where kl_reduction"),
        ({"reduction": "sum"}, ValueError, "batch_size: expected an integer where one reduction is a sum, got None"),
        ({"kl_reduction": "sum"}, ValueError, "batch_size: expected an integer where one reduction is a sum, got None"),
        ({"reduction": "sum", "batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
        ({"family": Gaussian()}, ValueError, 'family: expected none for "mse"'),
        ({"dispersion": -1.0}, ValueError, "dispersion: expected a positive"),
        ({"reconstruction": "bce", "dispersion": 1.0}, ValueError, 'dispersion: expected none for "bce"'),
        ({"reconstruction": "nll"}, ValueError, 'family: expected a family for "nll", got None'),
        ({"reconstruction": "nll", "family": Gamma()}, ValueError, r"dispersion: Gamma\(\) needs one, got None"),
        (
            {"reconstruction": "nll", "family": Gamma(), "dispersion": 0.0},
            ValueError,
            "dispersion: expected a positive",
        ),
        ({"data": [[1.0, 2.0]]}, ValueError, "latent_dim: expected an integer where data are given, got None"),
        ({"data": [[1.0, np.nan]], "latent_dim": 1}, ValueError, r"data: expected finite numbers, got nan at \[0, 1\]"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        loss_convention(**{"reconstruction": "mse", **arguments})
