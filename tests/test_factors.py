"""Factors with names: the rotation changes no ELBO, and is the one that varimax asks for."""

from __future__ import annotations

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Rows,
    activity,
    elbo_exact,
    fit,
    moments,
    posterior,
    refine,
)
from glmvae.factors import explained_variance, varimax, varimax_rotation
from glmvae.families import Binomial, Gaussian, Poisson

N, D, K = 60, 5, 3
#: An ELBO of a few nats a row, after a product with an orthogonal matrix.
ROUNDING = {"float64": 1e-12, "float32": 3e-6}


def table(dtype, name="poisson"):
    return dense.draw(name, rows=N, columns=D, rank=2, strength=0.7).astype(dtype)


def criterion(loadings, normalize=True):
    """Kaiser's, as he writes it."""
    loadings = np.asarray(loadings, float)
    if normalize:
        length = np.linalg.norm(loadings, axis=1, keepdims=True)
        loadings = loadings / np.where(length > 0, length, 1.0)
    return np.sum(np.mean(loadings**4, axis=0) - np.mean(loadings**2, axis=0) ** 2)


def by_svd(loadings, rounds=5000):
    """The textbook's iteration: the rotation nearest to the criterion's gradient, again and again."""
    rotation = np.eye(loadings.shape[1])
    for _ in range(rounds):
        turned = loadings @ rotation
        left, _, right = np.linalg.svd(loadings.T @ (turned**3 - turned * np.mean(turned**2, axis=0)))
        rotation = left @ right
    return rotation


@pytest.mark.float64
@pytest.mark.parametrize("shape", [(12, 2), (20, 4), (8, 3)])
def test_the_criterion_is_that_of_a_dense_reference(shape, dtype):
    loadings = np.random.default_rng(shape[1]).normal(size=shape)
    found = varimax_rotation(loadings)
    np.testing.assert_allclose(found.T @ found, np.eye(shape[1]), atol=1e-13)
    reached = criterion(loadings @ found, normalize=False)
    np.testing.assert_allclose(reached, criterion(loadings @ by_svd(loadings), normalize=False), rtol=1e-8)
    assert reached > 1.001 * criterion(loadings, normalize=False)
    if shape[1] == 2:  # no angle is better
        angles = np.linspace(0, np.pi, 2001)
        turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles]
        best = max(criterion(loadings @ turn, normalize=False) for turn in turns)
        assert best <= reached * (1 + 1e-12)
        np.testing.assert_allclose(best, reached, rtol=1e-5)


@pytest.mark.float64
@pytest.mark.parametrize("normalize", [True, False])
def test_a_simple_structure_is_found_again(normalize, dtype):
    """Loadings of blocks, turned by any rotation, come back, each of its own length."""
    rng = np.random.default_rng(0)
    simple = np.kron(np.eye(3), np.ones((4, 1))) * rng.uniform(0.5, 2.0, size=(12, 1))
    mixed = simple @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    model = AffineModel(Affine(mixed, np.zeros(12)), Objective(Gaussian(), dispersion=1.0))
    found = np.asarray(varimax(model, normalize=normalize).loadings)
    order = np.argsort(-np.sum(simple**2, axis=0))
    np.testing.assert_allclose(found, simple[:, order], atol=1e-9)
    assert np.max(np.abs(mixed - simple[:, order])) > 0.3


@pytest.mark.float64
def test_order_and_signs_are_free_of_the_units_of_measurement():
    loadings, size = np.random.default_rng(3).normal(size=(5, 2)), np.array([1.0, 1e3, 1.0, 1e-3, 1.0])
    found = []
    for unit in (np.ones(5), size):
        model = AffineModel(Affine(loadings * unit[:, None], np.zeros(5)), Objective(Gaussian(), dispersion=unit**2))
        found.append(np.asarray(varimax(model).loadings) / unit[:, None])
    np.testing.assert_allclose(found[1], found[0], atol=1e-9)
    raw = found[0] * size[:, None]  # control: in raw units another loading is the largest, of another sign
    largest = [np.take_along_axis(found[0], np.argmax(np.abs(a), axis=0)[None], 0)[0] for a in (raw, found[0])]
    assert np.any(np.sign(largest[0]) != np.sign(largest[1]))


def test_no_elbo_changes(dtype):
    x = table(dtype)
    start = fit(x, Poisson(), K, expand_at="null")
    best = refine(start, x, max_rounds=5)
    for optimum in (start, best):
        turned = varimax(optimum)
        assert type(turned) is type(optimum)
        before, after = (elbo_exact(o, x, posterior(o, x)) for o in (optimum, turned))
        np.testing.assert_allclose(after, before, rtol=ROUNDING[dtype.name], atol=ROUNDING[dtype.name])
        assert criterion(turned.loadings) > 1.001 * criterion(optimum.loadings)
        products = (np.asarray(o.loadings) @ np.asarray(o.loadings).T for o in (turned, optimum))
        np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-5)
        # The decoder alone in other axes is another model
        assert np.max(np.abs(elbo_exact(turned, x, posterior(optimum, x)) - before)) > 0.1
    rotated = varimax(best)
    values = elbo_exact(rotated, x, rotated.posterior)
    np.testing.assert_allclose(values, elbo_exact(best, x, best.posterior), rtol=10 * ROUNDING[dtype.name])


def test_covariates_turn_along(dtype):
    x = table(dtype, "gaussian")
    rows = Rows(x, covariates=np.linspace(-1, 1, N, dtype=dtype)[:, None])
    optimum = fit(rows, Gaussian(), 2)
    turned = varimax(optimum)
    before, after = (elbo_exact(o, rows, posterior(o, rows)) for o in (optimum, turned))
    np.testing.assert_allclose(after, before, rtol=10 * ROUNDING[dtype.name])
    assert turned.encoder.coefficients is not None


def test_activity_is_that_of_the_new_axes(dtype):
    x = table(dtype, "gaussian")
    optimum = fit(x, Gaussian(), 2)
    turned = varimax(optimum)
    spread = np.var(np.asarray(posterior(turned, x).mean, float), axis=0)
    np.testing.assert_allclose(activity(turned), spread, rtol=1e-4)
    assert np.max(np.abs(activity(turned) - activity(optimum))) > 1e-3
    np.testing.assert_array_equal(turned.eigenvalues[2:], optimum.eigenvalues[2:])


def test_pruned_units_stay_pruned(dtype):
    x = table(dtype, "gaussian")
    values = moments(x).covariance
    phi = 1.01 * float(np.linalg.eigvalsh(np.asarray(values, float))[-3])
    optimum = fit(x, Gaussian(), 4, dispersion=phi)
    assert np.all(np.asarray(optimum.loadings)[:, 2:] == 0)
    turned = varimax(optimum)
    assert np.all(np.asarray(turned.loadings)[:, 2:] == 0)
    assert np.all(np.any(np.asarray(turned.loadings)[:, :2] != 0, axis=0))
    np.testing.assert_array_equal(activity(turned)[2:], 0)
    np.testing.assert_allclose(turned.encoder.covariance[2:, 2:], np.eye(2), atol=1e-6)
    collapsed = varimax(fit(x, Gaussian(), 2, dispersion=1e3))
    assert np.all(np.asarray(collapsed.loadings) == 0)
    assert varimax(fit(x, Gaussian(), 0)).loadings.shape == (D, 0)


def test_explained_variance_of_a_gaussian_is_that_of_probabilistic_pca(dtype):
    x = table(dtype, "gaussian")
    optimum = fit(x, Gaussian(), 2)
    share = explained_variance(optimum)
    values = np.asarray(optimum.eigenvalues, float)
    np.testing.assert_allclose(share.by_factor, (values[:2] - 1) / values.sum(), rtol=1e-4)
    total = np.sum(np.asarray(optimum.loadings, float) ** 2, axis=1) + float(optimum.dispersion)
    np.testing.assert_allclose(np.sum(share.by_column, axis=1), 1 - float(optimum.dispersion) / total, rtol=1e-4)
    turned = explained_variance(varimax(optimum))
    np.testing.assert_allclose(turned.total, share.total, rtol=1e-5)
    np.testing.assert_allclose(np.sum(turned.by_column, axis=1), np.sum(share.by_column, axis=1), rtol=1e-4)
    assert np.all(np.diff(turned.by_factor) <= 0)
    assert np.max(np.abs(turned.by_factor - share.by_factor)) > 1e-3
    doubled = AffineModel(optimum.decoder, Objective(Gaussian(), dispersion=2 * float(optimum.dispersion)))
    assert float(explained_variance(doubled).total) < 0.9 * float(share.total)  # noise counts


@pytest.mark.parametrize("trials", [False, True])
def test_explained_variance_by_the_weights_of_rows(trials, dtype):
    """The mean over what was observed of the weights at each row's own predictor, by the formula."""
    x = table(dtype)
    rng = np.random.default_rng(1)
    c, o, weight = rng.normal(size=(N, 1)), rng.normal(size=(N, 1)), rng.integers(0, 3, N).astype(float)
    n, missing = rng.integers(1, 9, (N, D)), rng.uniform(size=(N, D)) < 0.2
    loadings, b, coefficients = rng.normal(size=(D, 2)), rng.normal(size=D), rng.normal(size=(1, D))
    arrays = (loadings.astype(dtype), b.astype(dtype), coefficients.astype(dtype))
    model = AffineModel(Affine(*arrays), Binomial(None) if trials else Poisson())
    brought = {"covariates": c, "offset": o, "missing": missing, "weight": weight, "trials": n if trials else None}
    rows = Rows(np.minimum(x, n) if trials else x, **brought)

    def share(eta, counted):
        mu = np.exp(eta) if not trials else n * np.exp(eta) / (1 + np.exp(eta)) ** 2
        w = np.sum(counted * mu, axis=0) / np.sum(counted, axis=0)
        return w @ loadings**2 / np.sum(w * np.sum(loadings**2, axis=1) + 1)

    counted, eta = np.where(missing, 0.0, weight[:, None]), b + c @ coefficients + o
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    found = explained_variance(model, rows)
    np.testing.assert_allclose(found.by_factor, share(eta, counted), rtol=tolerance)
    for wrong in (share(eta - o, counted), share(eta - c @ coefficients, counted), share(eta, ~missing)):
        assert np.max(np.abs(found.by_factor - wrong)) > 1e-4  # the control: each field counts
    traced = jax.jit(explained_variance)(model, rows.map(jnp.asarray))
    np.testing.assert_allclose(traced.by_column, found.by_column, rtol=tolerance)
    if not trials:  # rows that bring nothing are as none
        plain = AffineModel(Affine(*arrays[:2]), Poisson())
        np.testing.assert_allclose(
            explained_variance(plain, x).by_factor, explained_variance(plain).by_factor, rtol=tolerance
        )


def test_explained_variance_reads_well(dtype):
    x = table(dtype)
    text = repr(explained_variance(fit(x, Poisson(), K, expand_at="null", beta=1e3)))
    assert text.startswith("ExplainedVariance: 5 columns, 3 factors, 0.0% together")
    assert text.count("pruned") == K
    text = repr(explained_variance(fit(x, Poisson(), K, expand_at="null")))
    assert "factor 0" in text
    assert "columns" in text.splitlines()[1]
    seen = []
    jax.jit(lambda m: seen.append(repr(explained_variance(m))) or explained_variance(m))(fit(x, Poisson(), K).model)
    assert seen[0].startswith("ExplainedVariance(by_factor=")


@pytest.mark.any_precision
def test_arguments_that_do_not_fit(dtype):
    x = table(dtype)
    optimum = fit(x, Poisson(), 2)
    trials = AffineModel(Affine(jnp.ones((2, 1)), jnp.zeros(2)), Binomial(None))
    all_refused(
        [
            (lambda: explained_variance(None), TypeError, "model: expected an AffineModel"),
            (lambda: explained_variance(trials), ValueError, "x: .* has its trials from the rows, give them"),
            (lambda: explained_variance(optimum, x[:, :3]), ValueError, "x: expected 5 columns, got 3"),
            (
                lambda: explained_variance(optimum, Rows(x, missing=np.arange(D)[None] == 1)),
                ValueError,
                r"missing: .* none at \[1\]",
            ),
            (lambda: varimax(x), TypeError, "optimum: expected an AffineModel"),
            (lambda: jax.jit(varimax)(optimum), TypeError, "optimum: varimax runs on the host"),
        ]
    )
