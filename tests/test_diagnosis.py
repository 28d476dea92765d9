"""The report before training: its numbers are those of the functions it gathers, it says which to believe."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import all_refused

import glmvae.decomposition
from glmvae import Rows, activity, beta_for_active_units, collapse_onset, fit, moments, refine
from glmvae.diagnosis import diagnose
from glmvae.diagnosis.noise import directions_above_noise, noise_edge
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, Mixed, Poisson

# Recomputed by hand in float64, and in float32 through another eigensolver.
RELATIVE = {"float64": 1e-10, "float32": 1e-3}
ROWS, COLUMNS, UNITS = 200, 6, 3


def binary(dtype, seed=0):
    """Six columns: four driven by two factors, one constant at 0, one on its own."""
    rng = np.random.default_rng(seed)
    eta = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS)) * 3
    x = (eta + rng.logistic(size=eta.shape) > 0).astype(float)
    x[:, 2] = 0.0
    x[:, 4] = rng.random(ROWS) < 0.3
    return jnp.asarray(x, dtype)


def by_hand(x):
    """The two spectra of binary data."""
    x = np.asarray(x, float)
    covariance = np.cov(x.T, bias=True)
    sd = np.sqrt(np.diag(covariance))
    sd[sd == 0] = 1.0
    return tuple(np.linalg.eigvalsh(m)[::-1] for m in (4 * covariance, covariance / np.outer(sd, sd)))


@pytest.mark.parametrize("beta", [0.7, 1.7])
def test_the_numbers_by_hand(beta, dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS, beta=beta, units=1)
    zero, null = by_hand(x)
    tolerance = {"rtol": RELATIVE[dtype.name], "atol": RELATIVE[dtype.name]}
    np.testing.assert_allclose(report.eigenvalues, zero, **tolerance)
    np.testing.assert_allclose(report.null_eigenvalues, null, **tolerance)
    np.testing.assert_allclose(report.correlation_eigenvalues, null, **tolerance)
    np.testing.assert_allclose(report.activity, np.maximum(1 - beta / zero[:UNITS], 0), **tolerance)
    np.testing.assert_allclose(report.null_activity, np.maximum(1 - beta / null[:UNITS], 0), **tolerance)
    assert int(report.active_units) == np.sum(zero[:UNITS] > beta)
    assert int(report.null_active_units) == int(report.expected_units) == np.sum(null[:UNITS] > beta)
    np.testing.assert_allclose(report.collapse_onset, null[0], **tolerance)
    np.testing.assert_allclose(report.beta_range, [zero[1], zero[0]], **tolerance)
    np.testing.assert_allclose(report.null_beta_range, [null[1], null[0]], **tolerance)
    assert int(report.wanted_units) == 1
    assert report.refined_active_units is None
    assert bool(report.collapsed) == (beta >= null[0])
    assert float(report.rows) == ROWS
    p = np.asarray(x, float).mean(axis=0)[[0, 1, 3, 4, 5]]
    np.testing.assert_allclose(report.collapse_elbo, np.sum(p * np.log(p) + (1 - p) * np.log(1 - p)), rtol=1e-4)
    assert np.max(np.abs(zero - null)) > 0.05  # the two rules are two


def test_it_takes_two_decompositions(monkeypatch, dtype):
    """Of binary data, whose correlations are the null model's matrix; of counts one more."""
    calls = []
    plain = glmvae.decomposition.decomposed
    for module in ("spectral", "diagnosis.null_model"):
        counted = lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(f"glmvae.{module}.decomposed", counted)
    diagnose(moments(binary(dtype), family=Bernoulli()), Bernoulli(), UNITS)
    assert len(calls) == 2
    diagnose(moments(binary(dtype), family=Poisson()), Poisson(), UNITS)
    assert len(calls) == 5


def test_a_beta_in_its_range_leaves_the_wanted_units(dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS, units=2)
    for name, at, count in (("beta_range", "zero", "active_units"), ("null_beta_range", "null", "null_active_units")):
        low, high = (float(v) for v in getattr(report, name))
        expected = beta_for_active_units(x, Bernoulli(), 2, latent_dim=UNITS, expand_at=at)
        np.testing.assert_allclose((low, high), expected, rtol=1e-5)
        inside, above = (diagnose(x, Bernoulli(), UNITS, beta=b) for b in (0.5 * (low + high), 1.01 * high))
        assert int(getattr(inside, count)) == 2
        assert int(getattr(above, count)) == 1
        assert int(jnp.sum(activity(fit(x, Bernoulli(), UNITS, beta=0.5 * (low + high), expand_at=at)) > 0)) == 2
    default = diagnose(x, Bernoulli(), UNITS)
    assert int(default.wanted_units) == UNITS
    assert float(default.beta_range[0]) == 0.0


@pytest.mark.float64
def test_the_refined_optimum_keeps_the_units_that_the_onset_says(dtype):
    x = binary(dtype)
    onset = float(diagnose(x, Bernoulli(), UNITS).collapse_onset)
    below, above = (diagnose(x, Bernoulli(), UNITS, beta=f * onset, refine="exact") for f in (0.9, 1.1))
    assert int(below.refined_active_units) == int(below.expected_units) >= 1
    assert int(above.refined_active_units) == 0
    assert "at the refined optimum: believe the refined one" in " ".join(repr(below).split())
    # Is collapse inevitable, or only reached?
    assert float(below.optimum_elbo) > float(below.collapse_elbo) + 1e-4
    assert "collapse is not inevitable, it costs" in " ".join(repr(below).split())
    np.testing.assert_allclose(above.optimum_elbo, above.collapse_elbo, rtol=1e-9)
    assert "no affine optimum above that is known at this beta" in " ".join(repr(above).split())


def test_moments_do_for_the_tightened_optimum(dtype):
    data = moments(binary(dtype), family=Bernoulli())
    onset = float(diagnose(data, Bernoulli(), UNITS).collapse_onset)
    below, above = (diagnose(data, Bernoulli(), UNITS, beta=f * onset, refine="tighten") for f in (0.9, 1.1))
    assert int(below.refined_active_units) >= 1
    assert int(above.refined_active_units) == 0
    assert bool(below.optimum_elbo_is_bound)
    assert float(below.optimum_elbo) > float(below.collapse_elbo)
    assert "at least" in repr(below)


@pytest.mark.float64
def test_the_elbo_of_the_optimum(dtype):
    """A bound where it tells enough, the exact value where it does not or there is none, and Gaussian's own."""
    x = binary(dtype)
    told = diagnose(x, Bernoulli(), UNITS)
    assert bool(told.optimum_elbo_is_bound)
    np.testing.assert_allclose(told.optimum_elbo, fit(x, Bernoulli(), UNITS).elbo_taylor, rtol=1e-9)
    close = diagnose(x, Bernoulli(), UNITS, beta=0.98 * float(told.collapse_onset))
    assert not bool(close.optimum_elbo_is_bound)
    assert float(close.optimum_elbo) > float(close.collapse_elbo)
    alone = diagnose(moments(x, family=Bernoulli()), Bernoulli(), UNITS, beta=float(close.beta))
    assert bool(alone.optimum_elbo_is_bound)
    assert float(alone.optimum_elbo) < float(alone.collapse_elbo)
    assert "since beta is below the onset" in " ".join(repr(alone).split())
    counts = np.random.default_rng(0).poisson(2.0, size=(ROWS, COLUMNS)).astype(dtype)
    assert diagnose(moments(counts, family=Poisson()), Poisson(), UNITS).optimum_elbo is None
    assert diagnose(counts, Poisson(), UNITS).optimum_elbo is not None
    normal = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(dtype)
    found = diagnose(moments(normal), Gaussian(), UNITS)
    np.testing.assert_allclose(found.optimum_elbo, fit(normal, Gaussian(), UNITS).elbo_taylor, rtol=1e-9)
    assert not bool(found.optimum_elbo_is_bound)


def test_the_columns(dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS)
    np.testing.assert_array_equal(report.constant_columns, [False, False, True, False, False, False])
    np.testing.assert_array_equal(report.boundary_columns, report.constant_columns)
    np.testing.assert_array_equal(report.collapsed_columns, report.constant_columns)
    optimum = fit(x, Bernoulli(), UNITS, expand_at="null")
    p = np.asarray(x, float).mean(axis=0)
    share = np.sum(np.asarray(optimum.loadings, float) ** 2, axis=1) * p * (1 - p)  # of Pearson residuals of variance 1
    np.testing.assert_allclose(report.explained, share, rtol=1e-3, atol=1e-5)
    assert np.all(report.explained <= 1)
    beyond = diagnose(x, Bernoulli(), UNITS, beta=1.01 * float(report.null_eigenvalues[0]))
    assert bool(jnp.all(beyond.collapsed_columns))
    assert int(beyond.null_active_units) == 0


def test_constant_columns_inside_the_support_are_not_at_its_end(dtype):
    x = np.array(binary(dtype))
    x[:, 1], x[:, 3], x[:, 5] = 0.1, 1.0, 0.0
    report = diagnose(jnp.asarray(x), Bernoulli(), UNITS)
    np.testing.assert_array_equal(report.constant_columns, [False, True, True, True, False, True])
    np.testing.assert_array_equal(report.boundary_columns, [False, False, True, True, False, True])
    small = jnp.asarray(1e-12 * (1 + np.arange(12.0).reshape(6, 2) % 5), dtype)
    positive = diagnose(moments(small, family=Gamma()), Gamma(), 1, dispersion=0.5)
    assert not np.any(positive.boundary_columns)
    assert not np.any(positive.constant_columns)
    assert np.all(np.isfinite(positive.null_eigenvalues))
    counts = diagnose(moments([[0.0, 3.0], [0.0, 1.0]], family=Poisson()), Poisson(), 1)
    np.testing.assert_array_equal(counts.boundary_columns, [True, False])


@pytest.mark.any_precision
def test_columns_that_vary_in_their_last_digits_vary():
    rng = np.random.default_rng(0)
    x = (1e6 + 0.4 * (rng.normal(size=(300, 1)) + 0.5 * rng.normal(size=(300, 4)))).astype(np.float32)
    x[:, 2] = 1e6 + 0.3
    with warnings.catch_warnings(action="ignore"):  # of digits that float32 has lost
        for data in (x, moments(x)):
            np.testing.assert_array_equal(diagnose(data, Gaussian(), 2).constant_columns, [False, False, True, False])


@pytest.mark.parametrize("dispersion", [None, 0.5])
def test_for_gaussian_the_two_rules_agree(dispersion, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS)) + 0.5 * rng.normal(size=(ROWS, COLUMNS))
    report = diagnose(jnp.asarray(x, dtype), Gaussian(), UNITS, dispersion=dispersion)
    np.testing.assert_allclose(report.null_eigenvalues, report.eigenvalues, rtol=RELATIVE[dtype.name])
    np.testing.assert_allclose(report.null_beta_range, report.beta_range, rtol=RELATIVE[dtype.name])
    expected = fit(jnp.asarray(x, dtype), Gaussian(), UNITS, dispersion=dispersion)
    np.testing.assert_allclose(report.dispersion, expected.dispersion, rtol=RELATIVE[dtype.name])
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    phi = float(report.dispersion)
    np.testing.assert_allclose(report.eigenvalues * phi, values, rtol=RELATIVE[dtype.name])
    np.testing.assert_allclose(report.correlation_eigenvalues, np.linalg.eigvalsh(np.corrcoef(x.T))[::-1], rtol=1e-3)
    assert int(report.directions_above_noise) == 2


@pytest.mark.float64
def test_a_mixed_table(dtype):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(ROWS, 1))
    x = z * [1.0, 0.5, -1.0, 2.0] + 0.3 * rng.normal(size=(ROWS, 4))
    x[:, 1] = rng.poisson(np.exp(x[:, 1]))
    x[:, 3] = x[:, 3] > 0
    family = Mixed([(Gaussian(), [0, 2]), (Poisson(), [1]), (Bernoulli(), [3])])
    phi = family.columnwise([0.1, 1.0, 1.0])
    data = moments(jnp.asarray(x, dtype), family=family)
    report = diagnose(data, family, 2, dispersion=phi)
    np.testing.assert_allclose(report.collapse_onset, collapse_onset(data, family, dispersion=phi), rtol=1e-5)
    assert "dispersion 0.1 to 1" in repr(report)
    assert int(report.active_units) == int(jnp.sum(activity(fit(data, family, 2, dispersion=phi)) > 0))
    flat = diagnose(data, family, 2, dispersion=1.0)
    assert abs(float(flat.collapse_onset / report.collapse_onset) - 1) > 0.1


def test_moments_do(dtype):
    x = binary(dtype)
    whole, parts = (diagnose(data, Bernoulli(), UNITS) for data in (x, moments(x, family=Bernoulli())))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert all(leaf.dtype in (dtype, jnp.bool_, jnp.int32, jnp.int64) for leaf in jax.tree.leaves(whole))


# Noise ----------------------------------------------------------------------------------------------------


@pytest.mark.float64
def test_coin_flips_are_noise_although_all_units_are_active(dtype):
    x = (np.random.default_rng(0).random((1000, 400)) < 0.5).astype(dtype)
    report = diagnose(moments(x, family=Bernoulli()), Bernoulli(), 20)
    assert int(report.active_units) == int(report.null_active_units) == 20
    assert int(report.units_above_noise) == int(report.directions_above_noise) == 0
    text = " ".join(repr(report).split())
    edge = float(report.noise_edge)
    wanted = (
        f"0 of these 20; 0 eigenvalues exceed the edge of noise {edge:.4g}, which columns without anything in common"
    )
    assert wanted in text
    assert "nothing stands above noise" in text
    assert "latent_dim=0" in text
    # Three factors among the same flips are found
    z = np.random.default_rng(1).normal(size=(1000, 3)) @ np.random.default_rng(2).normal(size=(3, 400))
    x = (np.random.default_rng(3).logistic(size=x.shape) < 0.7 * z).astype(dtype)
    found = diagnose(moments(x, family=Bernoulli()), Bernoulli(), 20)
    assert int(found.directions_above_noise) == 3
    text = " ".join(repr(found).split())
    assert "latent_dim=3 keeps what stands above noise" in text
    left = float(found.noise_edge)
    assert left < edge  # what the three explain is taken off
    assert (
        f"; 3 eigenvalues exceed the edge of noise {left:.4g}, which columns with nothing more in common reach" in text
    )


@pytest.mark.any_precision
def test_the_edge_is_that_of_marchenko_and_pastur_with_tracy_and_widom(dtype):
    """Of 200 tables of independent columns none or one exceeds it; half exceed the bare end of the law by far less."""
    n, d = 300, 60
    largest = []
    for seed in range(200):
        x = np.random.default_rng(seed).normal(size=(n, d))
        largest.append(np.linalg.eigvalsh(np.corrcoef(x.T))[-1])
    edge, bare = noise_edge(np.ones(d), n - 1), (1 + np.sqrt(d / (n - 1))) ** 2
    assert np.sum(np.array(largest) > edge) <= 1
    assert 5 < np.sum(np.array(largest) > bare) < 100
    assert edge < 1.1 * bare
    # Columns of other variances have another edge, which is no multiple of it
    t = np.linspace(0.2, 3, d)
    scaled = [
        np.linalg.eigvalsh(np.cov((np.sqrt(t) * np.random.default_rng(s).normal(size=(n, d))).T))[-1] for s in range(50)
    ]
    assert max(scaled) < noise_edge(t, n - 1) < 1.2 * max(scaled)
    assert abs(noise_edge(t, n - 1) / (t.max() * edge) - 1) > 0.1
    assert noise_edge(np.zeros(3), 10) == 0.0
    assert noise_edge(np.ones(3), 0) == np.inf


@pytest.mark.any_precision
def test_a_strong_factor_does_not_hide_the_next(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2)) @ rng.normal(size=(2, 8)) + rng.normal(size=(600, 8))
    values, vectors = np.linalg.eigh(np.corrcoef(x.T))
    count, edge = directions_above_noise(np.ones(8), values[::-1], vectors[:, ::-1], 599)
    assert count == 2
    assert np.sum(values > edge) == 2
    independent = rng.normal(size=(600, 8))
    values, vectors = np.linalg.eigh(np.corrcoef(independent.T))
    assert directions_above_noise(np.ones(8), values[::-1], vectors[:, ::-1], 599)[0] == 0


# What rows bring ------------------------------------------------------------------------------------------


def counts_with_offset(dtype):
    rng = np.random.default_rng(0)
    offset = rng.normal(size=ROWS).astype(dtype)
    z = rng.normal(size=(ROWS, 1))
    return rng.poisson(np.exp(0.6 * z * rng.normal(size=4) + offset[:, None])).astype(dtype), offset


@pytest.mark.float64
def test_the_onset_with_an_offset_is_where_the_ascent_wakes(dtype):
    """The null model is the GLM of the offset; leaving it out gives another onset, whose side the ascent refutes."""
    x, offset = counts_with_offset(dtype)
    rows = Rows(x, offset=offset)
    report = diagnose(rows, Poisson(), 1)
    onset, without = float(report.collapse_onset), float(collapse_onset(x, Poisson()))
    assert without > 1.1 * onset
    null = refine(fit(x, Poisson(), 0), rows)
    np.testing.assert_allclose(report.collapse_elbo, null.elbo, rtol=1e-6)
    start = fit(x, Poisson(), 1, expand_at="null")
    for beta, active in ((0.97 * onset, 1), (1.03 * onset, 0)):
        model = start.model.with_beta(beta)
        assert np.sum(np.any(np.asarray(refine(model, rows, tolerance=1e-9).loadings) != 0, axis=0)) == active
    assert report.eigenvalues is None
    assert report.active_units is None
    text = " ".join(repr(report).split())
    assert "left out the paper's rule, which has no closed form with an offset" in text
    np.testing.assert_array_equal(report.brought, [True, False, False, False])


@pytest.mark.float64
def test_missing_entries_by_hand(dtype):
    """Scores of 0 where an entry is missing, and the mean weight of those that are not."""
    x = np.asarray(binary(dtype))
    missing = np.random.default_rng(1).random(x.shape) < 0.3
    report = diagnose(Rows(x, missing=missing), Bernoulli(), UNITS)
    p = np.array([x[~missing[:, j], j].mean() for j in range(COLUMNS)])
    score = np.where(missing, 0.0, x - p)
    weight = (p * (1 - p)) * np.mean(~missing, axis=0)
    varies = weight > 1e-12
    s = np.cov(score[:, varies].T, bias=True) / np.sqrt(np.outer(weight[varies], weight[varies]))
    np.testing.assert_allclose(report.null_eigenvalues[: varies.sum()], np.linalg.eigvalsh(s)[::-1], rtol=1e-6)
    terms = p * np.log(np.where(varies, p, 1)) + (1 - p) * np.log(np.where(varies, 1 - p, 1))
    np.testing.assert_allclose(report.collapse_elbo, np.sum(np.mean(~missing, axis=0) * terms), rtol=1e-6)
    np.testing.assert_array_equal(report.constant_columns, ~varies)
    np.testing.assert_array_equal(report.boundary_columns, ~varies)
    assert "missing entries" in repr(report)
    masked = np.ma.MaskedArray(x, mask=missing)
    np.testing.assert_allclose(diagnose(masked, Bernoulli(), UNITS).null_eigenvalues, report.null_eigenvalues)
    complete = diagnose(Rows(x, missing=np.zeros_like(missing)), Bernoulli(), UNITS)
    plain = diagnose(x, Bernoulli(), UNITS)
    for name in ("null_eigenvalues", "collapse_onset", "collapse_elbo", "explained", "noise_edge"):
        np.testing.assert_allclose(getattr(complete, name), getattr(plain, name), rtol=1e-6, atol=1e-9)
    assert abs(float(report.collapse_onset / plain.collapse_onset) - 1) > 0.02


def test_trials_an_entry_and_covariates(dtype):
    rng = np.random.default_rng(0)
    trials = rng.integers(1, 9, size=(ROWS, 4)).astype(dtype)
    z = rng.normal(size=(ROWS, 1))
    x = rng.binomial(trials.astype(int), 1 / (1 + np.exp(-2 * z))).astype(dtype)
    report = diagnose(Rows(x, trials=trials), Binomial(None), 2)
    p = x.sum(axis=0) / trials.sum(axis=0)
    weight = p * (1 - p) * trials.mean(axis=0)
    s = np.cov((x - trials * p).T, bias=True) / np.sqrt(np.outer(weight, weight))
    np.testing.assert_allclose(report.null_eigenvalues, np.linalg.eigvalsh(s)[::-1], rtol=1e-3)
    assert report.eigenvalues is not None  # Boehning's bound is a closed form
    known = diagnose(Rows(x, trials=trials, covariates=z.astype(dtype)), Binomial(None), 2)
    assert float(known.collapse_onset) < 0.5 * float(report.collapse_onset)  # what z explains needs no unit


@pytest.mark.float64
def test_a_learned_dispersion_with_missing_entries(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 1)) * [1.0, 2.0, -1.0, 0.5] + rng.normal(size=(ROWS, 4))
    missing = rng.random(x.shape) < 0.2
    report = diagnose(Rows(x, missing=missing), Gaussian(), 2)
    residual = np.where(missing, 0.0, x - np.array([x[~missing[:, j], j].mean() for j in range(4)]))
    phi = np.sum(residual**2) / np.sum(~missing)
    truth = -0.5 * np.sum(~missing) / ROWS * (1 + np.log(2 * np.pi * phi))
    np.testing.assert_allclose(report.collapse_elbo, truth, rtol=1e-9)
    share = np.mean(~missing, axis=0)
    s = np.cov(residual.T, bias=True) / np.sqrt(np.outer(share, share)) / phi
    np.testing.assert_allclose(report.collapse_onset, np.linalg.eigvalsh(s)[-1], rtol=1e-9)


def test_rows_that_do_not_vary_say_what_their_moments_do(dtype):
    x = np.tile([[1.0, -2.0, 0.5]], (9, 1)).astype(dtype)
    for found in (diagnose(x, Gaussian(), 1), diagnose(Rows(x, missing=np.zeros(x.shape, bool)), Gaussian(), 1)):
        assert found.collapse_elbo == np.inf
        assert found.collapse_onset == 0
        assert found.constant_columns.all()


# The report -----------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_the_report_reads_well(dtype):
    text = str(diagnose(binary(dtype), Bernoulli(), UNITS, beta=0.9))
    lines = text.splitlines()
    assert lines[0] == "Diagnosis: 200 rows, 6 columns, 3 latent units, beta = 0.9, dispersion 1"
    names = [line[2:19].strip() for line in lines[1:] if line[2:19].strip()]
    expected = ["active units", "above noise", "collapse", "ELBO", "beta for 3", "spectrum", "columns", "remedy"]
    assert list(dict.fromkeys(names)) == expected
    joined = " ".join(text.split())
    assert "believe the null model's" in joined
    assert "1 constant (2), 1 at an end of the support (2), 0 more not reached" in joined
    assert "not reached: at 0.9 it is no optimum of a decoder that can add a small affine term" in joined
    assert "and whose ELBO is below the affine optimum's, has stopped short of an optimum" in joined
    assert max(map(len, lines)) <= 120
    late = str(diagnose(binary(dtype), Bernoulli(), UNITS, beta=9.0, units=1))
    joined = " ".join(late.split())
    assert "reached: at 9 it is stable whatever the decoder, though something better may exist" in joined
    assert "remedy a smaller beta; beta from" in joined
    assert "keeps 1 by the null model's rule" in joined
    assert "5 more not reached by any unit (0, 1, 3, 4, ...)" in joined
    for refinement in (None, "exact"):
        none = " ".join(str(diagnose(binary(dtype), Bernoulli(), 0, refine=refinement)).split())
        assert "0 latent units" in none
        assert "collapsed (exact), as of all decoders without a latent unit" in none
    few = " ".join(str(diagnose(binary(dtype), Bernoulli(), 1, beta=0.5)).split())
    assert "all units are used; latent_dim=" in few


def test_one_binary_column_is_collapsed_at_its_onset_which_is_1(dtype):
    above = 0
    for seed in range(20):
        x = (np.random.default_rng(seed).random((20 + seed, 1)) < 0.3).astype(dtype)
        report = diagnose(x, Bernoulli(), 1)
        above += int(report.collapse_onset > 1)  # by rounding
        assert report.collapsed
        assert report.null_active_units == 0
        assert "reached: at 1 it is stable" in " ".join(str(report).split())
    assert above  # the control: some would not be without a margin
    assert not diagnose(x, Bernoulli(), 1, beta=0.999).collapsed


def test_it_passes_through_transformations(dtype):
    report, seen = diagnose(binary(dtype), Bernoulli(), UNITS), []
    doubled = jax.jit(lambda r: (seen.append(repr(r)), jax.tree.map(lambda v: v * 2, r))[1])(report)
    assert seen[0].startswith("Diagnosis(null_eigenvalues=")
    np.testing.assert_array_equal(doubled.eigenvalues, 2 * report.eigenvalues)


@pytest.mark.any_precision
def test_arguments_that_do_not_fit(dtype):
    x = np.array(binary(dtype))
    outside = x.copy()
    outside[3, 1] = 2.0
    offset = moments(Rows(x, offset=np.ones(ROWS)), family=Bernoulli())
    all_refused(
        [
            (lambda: diagnose(outside, Bernoulli(), 1), ValueError, r"x: expected values in the .* at \[3, 1\]"),
            (lambda: diagnose(x, Bernoulli(), 7), ValueError, "latent_dim: expected an integer from 0"),
            (lambda: diagnose(x, Bernoulli(), UNITS, beta=0.0), ValueError, "beta: expected a positive finite number"),
            (lambda: diagnose(x, Bernoulli(), 1, dispersion=-1.0), ValueError, "dispersion: expected a positive"),
            (lambda: diagnose(x + 1, Gamma(), 1), ValueError, "dispersion: Gamma"),
            (lambda: diagnose(x, Bernoulli(), UNITS, units=4), ValueError, "units: expected an integer from 0 to"),
            (lambda: diagnose(x, Bernoulli(), UNITS, units=1.5), TypeError, "units: expected an integer"),
            (lambda: diagnose(x, Bernoulli(), UNITS, refine="better"), ValueError, "refine: expected None"),
            (lambda: diagnose(x, Poisson(), UNITS, refine="tighten"), TypeError, "family: Jaakkola and Jordan"),
            (lambda: diagnose(moments(x), Bernoulli(), 1, refine="exact"), TypeError, "x: expected rows, got Moments"),
            (lambda: diagnose(offset, Bernoulli(), UNITS), ValueError, "x: these moments know an offset"),
            (lambda: diagnose(x, Bernoulli, UNITS), TypeError, "family: expected a family"),
        ]
    )
