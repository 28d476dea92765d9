"""The report before training: its numbers are those of the functions it gathers, and it reads well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glmvae import activity, collapse_onset, diagnose, fit, moments
from glmvae.families import Bernoulli, Gamma, Gaussian, Mixed, Poisson

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


@pytest.mark.parametrize("beta", [0.7, 1.0, 1.7])
def test_the_numbers_by_hand(beta, dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS, beta=beta, units=1)
    zero, null = by_hand(x)
    tolerance = {"rtol": RELATIVE[dtype.name], "atol": RELATIVE[dtype.name]}
    np.testing.assert_allclose(report.eigenvalues, zero, **tolerance)
    np.testing.assert_allclose(report.null_eigenvalues, null, **tolerance)
    np.testing.assert_allclose(report.activity, np.maximum(1 - beta / zero[:UNITS], 0), **tolerance)
    np.testing.assert_allclose(report.null_activity, np.maximum(1 - beta / null[:UNITS], 0), **tolerance)
    assert int(report.active_units) == np.sum(zero[:UNITS] > beta)
    assert int(report.null_active_units) == np.sum(null[:UNITS] > beta)
    np.testing.assert_allclose(report.collapse_onset, null[0], **tolerance)
    np.testing.assert_allclose(report.beta_range, [zero[1], zero[0]], **tolerance)
    np.testing.assert_allclose(report.null_beta_range, [null[1], null[0]], **tolerance)
    assert int(report.wanted_units) == 1
    assert report.refined_active_units is None
    assert bool(report.collapsed) == (beta >= null[0])
    assert float(report.rows) == ROWS
    assert np.max(np.abs(zero - null)) > 0.05  # the two rules are two


def test_a_beta_in_its_range_leaves_the_wanted_units(dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS, units=2)
    for name, at, count in (("beta_range", "zero", "active_units"), ("null_beta_range", "null", "null_active_units")):
        low, high = (float(v) for v in getattr(report, name))
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
    assert int(below.refined_active_units) >= 1
    assert int(above.refined_active_units) == 0
    assert "at the refined optimum" in repr(below)


def test_moments_do_for_the_refined_optimum_by_column(dtype):
    data = moments(binary(dtype), family=Bernoulli())
    onset = float(diagnose(data, Bernoulli(), UNITS).collapse_onset)
    below, above = (diagnose(data, Bernoulli(), UNITS, beta=f * onset, refine="column") for f in (0.9, 1.1))
    assert int(below.refined_active_units) >= 1
    assert int(above.refined_active_units) == 0


def test_the_columns(dtype):
    x = binary(dtype)
    report = diagnose(x, Bernoulli(), UNITS)
    np.testing.assert_array_equal(report.constant_columns, [False, False, True, False, False, False])
    np.testing.assert_array_equal(report.boundary_columns, report.constant_columns)
    np.testing.assert_array_equal(report.collapsed_columns, report.constant_columns)
    optimum = fit(x, Bernoulli(), UNITS)
    response = 16 * np.var(np.asarray(x, float), axis=0)
    share = np.sum(np.asarray(optimum.loadings, float) ** 2, axis=1) / np.where(response > 0, response, 1)
    np.testing.assert_allclose(report.explained, share, rtol=1e-3, atol=1e-5)
    assert np.all(report.explained <= 1)
    beyond = diagnose(x, Bernoulli(), UNITS, beta=1.01 * float(report.eigenvalues[0]))
    assert bool(jnp.all(beyond.collapsed_columns))
    assert int(beyond.active_units) == 0


def test_constant_columns_inside_the_support_are_not_at_its_end(dtype):
    x = np.array(binary(dtype))
    x[:, 1], x[:, 3], x[:, 5] = 0.1, 1.0, 0.0
    report = diagnose(jnp.asarray(x), Bernoulli(), UNITS)
    np.testing.assert_array_equal(report.constant_columns, [False, True, True, True, False, True])
    np.testing.assert_array_equal(report.boundary_columns, [False, False, True, True, False, True])
    small = jnp.asarray(1e-12 * (1 + np.arange(12.0).reshape(6, 2) % 5), dtype)
    positive = diagnose(small, Gamma(), 1, dispersion=0.5)
    assert not np.any(positive.boundary_columns)
    assert not np.any(positive.constant_columns)
    assert np.all(np.isfinite(positive.null_eigenvalues))
    counts = diagnose(jnp.asarray([[0.0, 3.0], [0.0, 1.0]], dtype), Poisson(), 1)
    np.testing.assert_array_equal(counts.boundary_columns, [True, False])


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


@pytest.mark.float64
def test_a_mixed_table(dtype):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(ROWS, 1))
    x = z * [1.0, 0.5, -1.0, 2.0] + 0.3 * rng.normal(size=(ROWS, 4))
    x[:, 1] = rng.poisson(np.exp(x[:, 1]))
    x[:, 3] = x[:, 3] > 0
    family = Mixed([(Gaussian(), [0, 2]), (Poisson(), [1]), (Bernoulli(), [3])])
    phi = family.columnwise([0.1, 1.0, 1.0])
    report = diagnose(jnp.asarray(x, dtype), family, 2, dispersion=phi)
    np.testing.assert_allclose(
        report.collapse_onset, collapse_onset(moments(jnp.asarray(x, dtype)), family, dispersion=phi), rtol=1e-5
    )
    assert "dispersion 0.1 to 1" in repr(report)
    optimum = fit(jnp.asarray(x, dtype), family, 2, dispersion=phi)
    assert int(report.active_units) == int(jnp.sum(activity(optimum) > 0))
    flat = diagnose(jnp.asarray(x, dtype), family, 2, dispersion=1.0)
    assert abs(float(flat.collapse_onset / report.collapse_onset) - 1) > 0.1


def test_moments_do(dtype):
    x = binary(dtype)
    whole, parts = (diagnose(data, Bernoulli(), UNITS) for data in (x, moments(x, family=Bernoulli())))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert all(leaf.dtype in (dtype, jnp.bool_, jnp.int32, jnp.int64) for leaf in jax.tree.leaves(whole))


@pytest.mark.any_precision
def test_the_report_reads_well(dtype):
    text = str(diagnose(binary(dtype), Bernoulli(), UNITS, beta=0.9))
    lines = text.splitlines()
    assert lines[0] == "Diagnosis: 200 rows, 6 columns, 3 latent units, beta = 0.9, dispersion 1"
    assert [line.split()[0] for line in lines[1:]] == ["active", "collapse", "beta", "spectrum", "columns"]
    assert "1 constant (2), 1 at an end of the support (2), 0 more not reached" in text
    assert "not reached" in lines[2]
    assert max(map(len, lines)) < 130
    late = str(diagnose(binary(dtype), Bernoulli(), UNITS, beta=9.0, units=0))
    assert "on, reached" in late
    assert "inf)" in late
    assert "5 more not reached by any unit (0, 1, 3, 4, ...)" in late


def test_it_passes_through_transformations(dtype):
    report, seen = diagnose(binary(dtype), Bernoulli(), UNITS), []
    doubled = jax.jit(lambda r: (seen.append(repr(r)), jax.tree.map(lambda v: v * 2, r))[1])(report)
    assert seen[0].startswith("Diagnosis(eigenvalues=")
    np.testing.assert_array_equal(doubled.eigenvalues, 2 * report.eigenvalues)


@pytest.mark.any_precision
def test_arguments_that_do_not_fit(dtype):
    x = binary(dtype)
    with pytest.raises(ValueError, match=r"x: expected values in the support .* at \[3, 1\]"):
        diagnose(x.at[3, 1].set(2.0), Bernoulli(), UNITS)
    with pytest.raises(ValueError, match="latent_dim: expected an integer from 1"):
        diagnose(x, Bernoulli(), 7)
    with pytest.raises(ValueError, match="beta: expected a positive finite number"):
        diagnose(x, Bernoulli(), UNITS, beta=0.0)
    with pytest.raises(ValueError, match="dispersion: expected a positive finite number"):
        diagnose(x, Bernoulli(), UNITS, dispersion=-1.0)
    with pytest.raises(ValueError, match="units: expected an integer from 0 to"):
        diagnose(x, Bernoulli(), UNITS, units=4)
    with pytest.raises(TypeError, match="units: expected an integer"):
        diagnose(x, Bernoulli(), UNITS, units=1.5)
    with pytest.raises(ValueError, match="method: expected"):
        diagnose(x, Bernoulli(), UNITS, refine="better")
    with pytest.raises(TypeError, match="x: "):
        diagnose(moments(x), Bernoulli(), UNITS, refine="exact")
