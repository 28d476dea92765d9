"""What a loss means, against the loss itself: its gradient is that of scale (-log p + beta KL)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import (
    BATCH,
    COLUMNS,
    REDUCE,
    RELATIVE,
    UNITS,
    a_batch,
    balance,
    cross_entropy,
    gradient_of_elbo,
    gradient_of_loss,
    kl_terms,
    squared_error,
)

from glmvae import Rows, activity, fit, moments
from glmvae.conventions import loss_convention
from glmvae.families import Bernoulli, Exponential, Gamma, Gaussian, Poisson


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
        ({"columns": 3, "data": np.eye(4), "latent_dim": 1}, ValueError, "columns: expected 4, .* or None, got 3"),
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
