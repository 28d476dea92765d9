"""The closed form at its edges: columns that do not vary, data of few dimensions, columns of very different scale."""

import contextlib
import warnings

import jax
import numpy as np
import pytest
import scipy.stats
from dense_reference import MODELS, draw, gaussian_profile, problem
from dense_reference import fit as dense_fit

from glmvae import AffineOptimum, Rows, activity, fit, moments, posterior
from glmvae.families import Binomial, Gaussian

# One eigendecomposition of a well-scaled matrix and sums of 40 rows.
RTOL = {"float64": 1e-10, "float32": 2e-4}


def float32_keeps(kept, names):
    """Names for a test whose code is the same for all: in float32 only the first are tried."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.float64) for n in names]


def aligned(loadings, reference):
    """Loadings with the signs of the reference: an eigenvector's sign is free."""
    loadings, reference = np.asarray(loadings, np.float64), np.asarray(reference, np.float64)
    return loadings * np.where(np.sum(loadings * reference, axis=0) < 0, -1, 1)


def assert_finite(o: AffineOptimum, x, *, bounded=True):
    for leaf in jax.tree.leaves((o.decoder, o.dispersion, o.encoder)):
        assert np.isfinite(leaf).all()
    assert np.isfinite(posterior(o, x).mean).all()
    assert not np.isnan(o.eigenvalues).any()
    assert np.isfinite(o.elbo_taylor) == bounded


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("point", ["zero", "null"])
@pytest.mark.parametrize("name", float32_keeps(["gaussian", "bernoulli"], MODELS))
def test_constant_columns(name, point, phi, dtype):
    model, x = MODELS[name], draw(name)
    x[:, 1] = 1.0  # the upper end for Bernoulli
    x[:, 3] = 0.0  # the lower end for all but Gaussian
    family = model.family
    o = fit(x.astype(dtype), family, 4, beta=0.5, dispersion=phi, expand_at=point)
    if name == "gaussian" and phi is None:
        # the two columns that vary fill two dimensions: sigma^2 can vanish
        assert o.dispersion == 0
        assert o.elbo_taylor == np.inf
    else:
        assert_finite(o, x.astype(dtype))
    np.testing.assert_array_equal(np.asarray(o.loadings)[[1, 3]], 0.0)
    assert int((activity(o) > 0).sum()) <= 2
    # The columns that vary fare as they would alone.
    if not (name == "gaussian" and phi is None):
        varying = np.array([0, 2])
        alone_family = Binomial(family.trials[varying]) if name == "binomial_columns" else family
        alone = fit(x[:, varying].astype(dtype), alone_family, 2, beta=0.5, dispersion=phi, expand_at=point)
        rtol = 10 * RTOL[str(dtype)]
        near = {"rtol": rtol, "atol": rtol * (1 + np.abs(np.asarray(alone.loadings)).max())}
        loadings = np.asarray(o.loadings)[varying, :2]
        np.testing.assert_allclose(aligned(loadings, alone.loadings), alone.loadings, **near)
        np.testing.assert_allclose(o.eigenvalues[:2], alone.eigenvalues, rtol=rtol)


@pytest.mark.parametrize(("rows", "columns"), [(40, 6), (4, 6)])
@pytest.mark.parametrize("name", float32_keeps(["gaussian"], ["gaussian", "bernoulli", "poisson"]))
def test_rank_deficient_and_fewer_rows_than_columns(name, rows, columns, dtype):
    model = MODELS[name]
    x = draw(name, rows=rows, columns=columns)
    x[:, 5] = x[:, 4] = x[:, 3]
    rtol = RTOL[str(dtype)]
    for latent_dim in (2, 6):
        o = fit(x.astype(dtype), model.family, latent_dim, dispersion=0.5, beta=0.8)
        r = dense_fit(problem(x, model, beta=0.8, phi=0.5), latent_dim)
        assert_finite(o, x.astype(dtype))
        np.testing.assert_allclose(o.elbo_taylor, r.elbo, rtol=rtol)
        near = {"rtol": rtol, "atol": rtol * (1 + np.abs(r.loadings).max() ** 2)}
        loadings = np.asarray(o.loadings)
        np.testing.assert_allclose(loadings @ loadings.T, r.loadings @ r.loadings.T, **near)


@pytest.mark.any_precision
def test_single_precision_is_told_of_where_the_value_lost_its_digits():
    """With a dispersion that is given too: what is left beside the units is in L-hat."""
    rng = np.random.default_rng(0)
    strong, weak = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 5)), rng.normal(size=(200, 5))
    for scale, lost in ((1e2, False), (1e4, True)):
        x = (scale * strong + weak).astype("float32")
        told = pytest.warns(UserWarning, match="fit: L-hat may be off by .* nats: float32 does not tell")
        with told if lost else contextlib.nullcontext():
            single = fit(x, Gaussian(), 2, dispersion=1.0)
        with jax.enable_x64(True):
            double = fit(x.astype(float), Gaussian(), 2, dispersion=1.0)
        assert (abs(single.elbo_taylor - double.elbo_taylor) > 0.1) == lost


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.3])
def test_gaussian_data_that_fill_at_most_latent_dim_dimensions(rank, beta, dtype):
    rng = np.random.default_rng(rank)
    x = (rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 5)) + 1).astype(dtype)
    unsure = pytest.warns(UserWarning, match="the dispersion, 0, may not be 0")  # in single precision
    with unsure if dtype == np.float32 else contextlib.nullcontext():
        o = fit(x, Gaussian(), 3, beta=beta)
    assert o.dispersion == 0
    assert o.elbo_taylor == np.inf
    assert_finite(o, x, bounded=False)
    q = posterior(o, x)
    # Only as many units are active as there are dimensions: rounding is no signal.
    assert int((activity(o) > 0).sum()) == rank
    np.testing.assert_array_equal(q.mean[:, rank:], 0.0)
    np.testing.assert_array_equal(np.diag(o.encoder.covariance), [0.0] * rank + [1.0] * (3 - rank))
    # The limit decodes the data exactly.
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    decoded = np.asarray(q.mean) @ np.asarray(o.loadings).T + np.asarray(o.intercept)
    np.testing.assert_allclose(decoded, x, rtol=tolerance, atol=tolerance * np.abs(x).max())
    # One unit fewer than dimensions, and there is noise left.
    if rank > 1:
        fewer = fit(x, Gaussian(), rank - 1, beta=beta)
        assert fewer.dispersion > 0
        assert np.isfinite(fewer.elbo_taylor)


def test_a_large_beta_keeps_the_dispersion_of_low_rank_data(dtype):
    """beta rank >= d: the KL divergence outweighs the noise, and there is a finite optimum after all."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5))).astype(dtype)
    o = fit(x, Gaussian(), 3, beta=4.0)
    assert o.dispersion > 0
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False, bias=True))[::-1]
    grid = np.geomspace(1e-6, 1e3, 2000)
    best = max(gaussian_profile(np.maximum(values, 0), 3, 4.0, s) for s in grid)
    assert float(o.elbo_taylor) >= best - (1e-9 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("name", float32_keeps(["gaussian", "poisson"], MODELS))
def test_as_many_units_as_columns_and_all_units_pruned(name, dtype):
    model, x = MODELS[name], draw(name).astype(dtype)
    full = fit(x, model.family, 4, dispersion=1.0)
    assert_finite(full, x)
    pruned = fit(x, model.family, 4, beta=1e4)
    assert_finite(pruned, x)
    np.testing.assert_array_equal(pruned.loadings, 0.0)
    np.testing.assert_array_equal(pruned.encoder.weight, 0.0)
    np.testing.assert_allclose(pruned.encoder.covariance, np.eye(4), rtol=RTOL[str(dtype)])
    np.testing.assert_array_equal(posterior(pruned, x).mean, 0.0)
    assert int((activity(pruned) > 0).sum()) == 0
    if model.fixed_dispersion is None:
        np.testing.assert_allclose(pruned.dispersion, x.var(axis=0).mean(), rtol=RTOL[str(dtype)])


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "bernoulli_grey", "poisson"]))
@pytest.mark.parametrize("shape", [(1, 4), (40, 1), (1, 1)])
def test_one_row_and_one_column(name, shape, phi, dtype):
    model = MODELS[name]
    x = draw(name)[: shape[0], : shape[1]].astype(dtype)
    o = fit(x, model.family, 1, dispersion=phi, beta=0.5)
    assert_finite(o, x, bounded=name != "gaussian" or phi is not None)
    assert "L-hat" in repr(o)


# Digits ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("scales", [(5e4, 10.0, 1.0), (3000.0, 2.0, 1.0), (1.0, 1e-3, 1e-6)])
def test_float32_and_columns_of_very_different_scale(scales):
    """The noise of the small columns is not the rounding of the large one, and there is no limit at dispersion 0."""
    x = (np.random.default_rng(0).normal(size=(500, 3)) * np.array(scales)).astype("float32")
    o = fit(x, Gaussian(), 1)
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(o.dispersion, values[1:].mean(), rtol=1e-5)
    np.testing.assert_allclose(o.eigenvalues, values / values[1:].mean(), rtol=1e-5)
    # what the unit leaves, and not the rounding of what it takes
    phi = np.asarray(scales, np.float32) ** 2
    for found in (o, fit(x, Gaussian(), 1, dispersion=phi), fit(x, Gaussian(), 1, dispersion=phi[-1])):
        # each column in its own unit, which SciPy needs
        noise = np.broadcast_to(np.asarray(found.dispersion, float), 3) / np.square(scales)
        w, y = np.asarray(found.loadings, float) / np.array(scales)[:, None], x.astype(float) / scales
        density = scipy.stats.multivariate_normal(y.mean(axis=0), w @ w.T + np.diag(noise)).logpdf(y).mean()
        np.testing.assert_allclose(found.elbo_taylor, density - np.log(scales).sum(), rtol=1e-5)


@pytest.mark.any_precision
@pytest.mark.parametrize(("base", "spread"), [(1.7e9, 1.0), (1e7, 0.3), (1e8, 0.3)])
def test_float64_data_without_x64(base, spread):
    x = base + spread * np.random.default_rng(1).normal(size=(500, 4))
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1]
    with jax.enable_x64(False):
        o = fit(x, Gaussian(), 1)
        assert o.dispersion.dtype == np.float32
        np.testing.assert_allclose(o.dispersion, values[1:].mean(), rtol=1e-5)
        # what float32 cannot say of a row is said so
        lost = pytest.warns(UserWarning, match="x: column 0 loses its digits in float32")
        with lost, pytest.warns(UserWarning, match="posterior: x is so far from 0"):
            posterior(o, x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            centred = x - x.mean(axis=0)
            posterior(fit(centred, Gaussian(), 1), centred)


@pytest.mark.filterwarnings("ignore:fit. the dispersion, 0, may not be 0")  # in float32
@pytest.mark.any_precision
@pytest.mark.parametrize("rows", [40, 2500])
@pytest.mark.parametrize("columns", [3, 12, 60])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_rank_is_told_from_rounding(rows, columns, kind):
    """Of whatever shape, scale and precision: what is left after the last dimension of the data counts as nothing."""
    rng = np.random.default_rng(rows + columns)
    scale = 10.0 ** rng.uniform(-3, 3, size=columns)
    for rank in (1, min(2, columns - 1)):
        x = ((rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) + 1) * scale).astype(kind)
        o = fit(moments(x), Gaussian(), columns - 1)
        assert o.dispersion == 0
        assert int((activity(o) > 0).sum()) == rank
        # and noise of a hundredth of each column is noise
        noisy = x * (1 + 1e-2 * rng.normal(size=x.shape)).astype(kind)
        assert fit(moments(noisy), Gaussian(), rank).dispersion > 0


def test_one_of_a_thing_is_singular():
    m = moments(Rows([[1.0], [3.0]], weight=[0.5, 0.5], covariates=[[0.0], [1.0]]))
    assert repr(m).startswith("Moments of 1 row, 1 column, ")
    assert repr(m).endswith(", 1 covariate")
    optimum = fit(moments([[1.0], [3.0]], family=Gaussian()), Gaussian(), 1, dispersion=0.5)
    assert repr(optimum).startswith("AffineOptimum: 1 column, 1 latent unit, 1 active")
    assert repr(optimum.decoder) == "Affine(1 column, 1 latent unit)"
    assert repr(optimum.encoder) == "Encoder(1 column, 1 latent unit)"
    assert (
        repr(fit([[1.0, 2.0], [3.0, 1.0]], Gaussian(), 2, dispersion=0.1).decoder)
        == "Affine(2 columns, 2 latent units)"
    )
