"""Dispersions that are part of the optimum: one for all columns, of a Mixed one a column."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import FactorAnalysis

from glmvae import Rows, best_posterior, fit, load, refine, save, select
from glmvae.estimator import AffineVAE
from glmvae.families import Bernoulli, Exponential, Gamma, Gaussian, Mixed, Poisson

N, D = 200, 8
RNG = np.random.default_rng(3)
Z = RNG.normal(size=(N, 1))
# A factor that many columns tell: else some noise goes to 0 (a Heywood case), and nothing stands still.
LOADINGS = np.array([[1.0, -0.8, 0.7, 1.2, 1.5, -0.7, 0.9, -1.1]])
AMOUNTS = Z @ LOADINGS + RNG.normal(size=(N, D)) * np.sqrt([0.5, 0.6, 1.0, 2.0, 0.7, 4.0, 0.8, 1.0])
ETA = Z @ LOADINGS * 0.7
KINDS = [(Gaussian(), [0, 3]), (Poisson(), [1, 6]), (Gamma(), [2, 7]), (Bernoulli(), [4]), (Exponential(), [5])]
MIXED = Mixed(KINDS)
OPEN = [0, 2, 3, 7]
TABLE = np.column_stack(
    [
        ETA[:, 0] + 0.6 * RNG.normal(size=N),
        RNG.poisson(np.exp(ETA[:, 1])),
        np.exp(ETA[:, 2]) * RNG.gamma(3.0, 1 / 3, size=N),
        5 + 3 * (ETA[:, 3] + RNG.normal(size=N)),
        RNG.random(N) < 1 / (1 + np.exp(-ETA[:, 4])),
        np.exp(ETA[:, 5]) * RNG.exponential(size=N),
        RNG.poisson(np.exp(ETA[:, 6])),
        np.exp(ETA[:, 7]) * RNG.gamma(1.5, 1 / 1.5, size=N),
    ]
)
TIGHT = {"tolerance": 1e-10, "max_rounds": 2000}


def mixed_start(rows=TABLE):
    return fit(rows, MIXED, 1, dispersion=MIXED.columnwise([1.0, 1.0, 0.5, 1.0, 1.0]), expand_at="null")


@pytest.mark.float64
def test_a_noise_a_column_of_gaussian_columns_is_factor_analysis():
    peer = FactorAnalysis(1, tol=1e-10, max_iter=10_000).fit(AMOUNTS)
    family = Mixed([(Gaussian(), range(D))])
    start = fit(AMOUNTS, family, 1, dispersion=AMOUNTS.var(axis=0) / 2)
    found = refine(start, AMOUNTS, dispersion="estimate", **TIGHT)
    assert found.converged
    assert found.dispersion_estimated
    np.testing.assert_allclose(found.elbo, peer.score(AMOUNTS), rtol=1e-7)
    np.testing.assert_allclose(found.dispersion, peer.noise_variance_, rtol=1e-2)
    covariance = found.loadings @ found.loadings.T + np.diag(found.dispersion)
    np.testing.assert_allclose(covariance, peer.get_covariance(), atol=2e-3)
    assert 2 * len(found.history) < peer.n_iter_  # EM without extrapolation
    shared = refine(fit(AMOUNTS, Gaussian(), 1), AMOUNTS, **TIGHT)  # the control: one noise for all is another model
    assert np.ndim(shared.dispersion) == 0
    assert shared.elbo < found.elbo - 0.1


@pytest.mark.float64
def test_every_column_that_leaves_it_open_has_the_best():
    hidden = RNG.random(TABLE.shape) < 0.15
    rows = Rows(TABLE, missing=hidden, weight=RNG.integers(0, 3, N).astype(float), offset=0.1 * RNG.normal(size=N))
    start = mixed_start()
    held = refine(start, rows, **TIGHT)
    np.testing.assert_array_equal(held.dispersion, start.dispersion)
    found = refine(start, rows, dispersion="estimate", **TIGHT)
    assert np.all(np.diff(found.history) >= 0)
    assert found.elbo > held.elbo + 0.1
    best = np.asarray(found.dispersion)
    np.testing.assert_array_equal(np.delete(best, OPEN), 1.0)
    q = best_posterior(found, rows, tolerance=1e-12)
    eta = np.asarray(found.decoder(q.mean)) + rows.offset
    variance = np.einsum("dk,nkl,dl->nd", found.loadings, q.covariance, found.loadings)
    counted = np.where(hidden, 0.0, np.asarray(rows.weight)[:, None])
    left = np.sum(counted * ((TABLE - eta) ** 2 + variance), axis=0) / counted.sum(axis=0)
    np.testing.assert_allclose(best[[0, 3]], left[[0, 3]], rtol=1e-4)
    for column in OPEN:
        for factor in (0.97, 1.03):
            other = best.copy()
            other[column] *= factor
            assert refine(found, rows, dispersion=other, **TIGHT).elbo < found.elbo - 1e-6


@pytest.mark.float64
def test_what_is_held_stays_to_the_last_digit():
    """The logarithm of a dispersion is what is extrapolated, and rounds."""
    tried = np.linspace(4.0, 5.0, 1001)
    odd = tried[np.exp(np.log(tried)) != tried]
    given = np.where(np.isin(np.arange(D), OPEN), 0.5, odd[:D])
    found = refine(fit(TABLE, MIXED, 1, dispersion=given), TABLE, dispersion="estimate", **TIGHT)
    assert len(found.history) > 10
    np.testing.assert_array_equal(np.delete(found.dispersion, OPEN), np.delete(given, OPEN))
    assert np.all(np.asarray(found.dispersion)[OPEN] != given[OPEN])


def test_it_goes_on_as_it_was(tmp_path, dtype):
    table = TABLE.astype(dtype)
    found = refine(mixed_start(table), table, dispersion="estimate", tolerance=1e-3)
    assert found.dispersion.shape == (D,)
    assert found.dispersion.dtype == dtype
    save(tmp_path / "found.npz", found)
    again = refine(load(tmp_path / "found.npz"), table, tolerance=1e-3)
    assert again.dispersion_estimated
    assert again.elbo >= found.elbo - 1e-3  # the tolerance
    assert not refine(found, table, dispersion=found.dispersion, tolerance=1e-3).dispersion_estimated


@pytest.mark.any_precision
def test_a_closed_form_says_who_estimates():
    for family in (MIXED, Mixed([(Gaussian(), range(D))])):
        with pytest.raises(ValueError, match=r'dispersion: .* needs one, got None; .*refine\(dispersion="estimate"\)'):
            fit(TABLE, family, 1)
    with pytest.raises(ValueError, match=r"dispersion: .*cannot estimate one"):
        refine(fit(TABLE[:, 1:2], Mixed([(Poisson(), [0])]), 1), TABLE[:, 1:2], dispersion="estimate")


@pytest.mark.any_precision
def test_a_column_without_noise_is_named():
    table = pd.DataFrame(TABLE, columns=list("abcdefgh")).assign(d=2.0)
    with pytest.raises(ValueError, match=r'left to estimate that of column 3 \(column "d"\) from'):
        refine(mixed_start(table), table, dispersion="estimate", **TIGHT)


@pytest.mark.any_precision
def test_other_doors_lead_there():
    kinds = {"gaussian": [0, 3], "poisson": [1, 6], "gamma": [2, 7], "bernoulli": [4], "exponential": [5]}
    vae = AffineVAE(1, family=kinds, method="exact", dispersion="estimate", tolerance=1e-3).fit(TABLE)
    found = refine(mixed_start(), TABLE, dispersion="estimate", tolerance=1e-3)
    np.testing.assert_allclose(vae.score(TABLE), found.elbo, atol=5e-3)
    assert vae.dispersion_.shape == (D,)
    chosen = select(TABLE, MIXED, [0, 1], method="exact", folds=2, tolerance=1e-2)  # no dispersion is asked for
    given = select(TABLE, MIXED, [0, 1], method="exact", folds=2, tolerance=1e-2, dispersion=1.0)
    assert np.all(chosen.table.score > given.table.score + 0.1)


def test_as_many_units_as_rows_leave_no_noise(dtype):
    """It used to come back at the rounding of the data, 1e-33, with an ELBO of 213 nats a row and a warning."""
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(dtype)
    start = fit(x, Gaussian(), 5, dispersion=1.0)
    with pytest.raises(ValueError, match="dispersion: nothing of x is left to estimate that from"):
        refine(start, x, dispersion="estimate", max_rounds=2000)
    with pytest.raises(ValueError, match="dispersion: nothing of x is left"):
        select(x, Gaussian(), [3], method="exact", folds=2)
    free = refine(fit(x, Gaussian(), 2, dispersion=1.0), x, dispersion="estimate")  # the control
    np.testing.assert_allclose(free.dispersion, fit(x, Gaussian(), 2).dispersion, rtol=0.05)
