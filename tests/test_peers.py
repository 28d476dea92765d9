"""Peers are scored by the exact ELBO and by the deviance, and left out where they are not installed."""

import importlib.util
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, gammaln

from benchmarks import contest, peers
from glmvae import Affine, AffineModel, Posterior, best_posterior
from glmvae.families import Bernoulli, Poisson

# Sums of some hundred terms in float64, in another order.
EXACT = 1e-12
# Nats: what the best posteriors of a row may be short of an independent optimiser's, and it of them.
STEP = 1e-5
ROWS, COLUMNS, UNITS = 30, 7, 2

pytestmark = pytest.mark.any_precision


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return rng.poisson(np.exp(rng.normal(1.0, 1.0, (ROWS, COLUMNS)))).astype(np.float32)


@pytest.fixture(scope="module")
def pln(x):
    """What PlnPCA might have found: off its optimum, so that every part counts."""
    rng = np.random.default_rng(1)
    w, b = 0.4 * rng.normal(size=(COLUMNS, UNITS)), rng.normal(1.0, 0.3, COLUMNS)
    mean, variance = rng.normal(size=(ROWS, UNITS)), rng.uniform(0.05, 0.5, (ROWS, UNITS))
    return peers.PlnFit(w, b, mean, variance, own_elbo=-1.0, iterations=3, seconds=2.0)


@pytest.fixture(scope="module")
def factors():
    rng = np.random.default_rng(2)
    skew = np.array([[2.0, 0.7], [0.0, 0.3]])
    return peers.FactorFit(
        0.3 * rng.normal(size=(COLUMNS, UNITS)),
        rng.normal(size=COLUMNS),
        rng.normal(1, 1, (ROWS, UNITS)) @ skew,
        "",
        0.5,
    )


def stirling(x):
    n = np.maximum(x, 1)
    return 0.5 * np.log(2 * np.pi * n) + n * np.log(n) - n


def poisson_elbo(found, x, log_factorial):
    x = np.asarray(x, np.float64)
    m = found.mean @ found.loadings.T + found.intercept
    v = found.variance @ (found.loadings**2).T
    fit = np.sum(x * m - np.exp(m + v / 2) - log_factorial(x), axis=1)
    kl = 0.5 * np.sum(found.variance + found.mean**2 - 1 - np.log(found.variance), axis=1)
    return np.mean(fit - kl)


def test_plnpca_is_scored_with_the_exact_factorial(x, pln):
    given, best = contest.score_pln(pln, x)
    assert given == pytest.approx(poisson_elbo(pln, x, lambda n: gammaln(n + 1)), rel=EXACT)
    # Stirling's formula is below log x!, so an ELBO by it is too high; by how much is seen
    too_high = np.mean(np.sum(gammaln(x.astype(float) + 1) - stirling(x.astype(float)), axis=1))
    assert poisson_elbo(pln, x, stirling) - given == pytest.approx(too_high, rel=1e-9)
    assert too_high > 0.1
    assert best > given


def test_the_best_posterior_is_best_and_a_better_given_one_is_kept(x, pln, monkeypatch):
    _, value = contest.score_pln(pln, x)
    found = best_of(pln, x)
    given, again = contest.score(pln.loadings, pln.intercept, x, found, Poisson())
    assert given == pytest.approx(value, abs=STEP)
    assert again >= given
    shifted = Posterior(found.mean + 0.1, found.covariance)
    assert contest.score(pln.loadings, pln.intercept, x, shifted, Poisson())[0] < value - 10 * STEP
    # a search that fails takes nothing from the peer
    monkeypatch.setattr(contest, "best_posterior", lambda *a, **k: Posterior(shifted.mean + 1, shifted.covariance))
    assert contest.score(pln.loadings, pln.intercept, x, found, Poisson())[1] == pytest.approx(given, rel=EXACT)
    assert math.isnan(contest.score(pln.loadings, pln.intercept, x, None, Poisson())[0])


def test_a_covariance_that_is_none_is_told_and_costs_the_best_nothing(x, pln):
    wrong = np.broadcast_to(np.diag([1.0, -1e-9]), (ROWS, UNITS, UNITS))
    given, best = contest.score(pln.loadings, pln.intercept, x, Posterior(pln.mean, wrong), Poisson())
    assert math.isnan(given)
    assert best == pytest.approx(contest.score_pln(pln, x)[1], rel=EXACT)


def best_of(pln, x):
    """The best posteriors of PlnPCA's decoder."""
    with jax.enable_x64(True):
        model = AffineModel(Affine(jnp.asarray(pln.loadings), jnp.asarray(pln.intercept)), Poisson())
        return best_posterior(model, jnp.asarray(x, jnp.float64), tolerance=1e-12, max_steps=500)


def test_deviance_is_that_of_scipy(x, factors):
    eta = factors.factors @ factors.loadings.T + factors.intercept
    counts = x.astype(int)
    saturated = stats.poisson.logpmf(counts, np.maximum(counts, 1e-300))
    expected = 2 * np.mean(saturated - stats.poisson.logpmf(counts, np.exp(eta)))
    assert contest.deviance(x, *factors[:3], Poisson()) == pytest.approx(expected, rel=1e-10)
    binary = (x > 2).astype(np.float32)
    expected = -2 * np.mean(stats.bernoulli.logpmf(binary.astype(int), expit(eta)))
    assert contest.deviance(binary, *factors[:3], Bernoulli()) == pytest.approx(expected, rel=1e-10)
    assert contest.deviance(x, factors.loadings, factors.intercept + 0.1, factors.factors, Poisson()) != pytest.approx(
        contest.deviance(x, *factors[:3], Poisson()), rel=1e-3
    )


def test_standardised_factors_make_the_same_model(factors):
    loadings, intercept = contest.standardised(factors)
    eta = factors.factors @ factors.loadings.T + factors.intercept
    np.testing.assert_allclose(intercept, eta.mean(axis=0), rtol=EXACT)
    np.testing.assert_allclose(loadings @ loadings.T, np.cov(eta.T, bias=True), atol=EXACT)
    assert not np.allclose(factors.loadings @ factors.loadings.T, np.cov(eta.T, bias=True), atol=0.01)


def test_what_is_not_installed_is_left_out(x, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.counts("oaks") is None
    assert peers.pln_pca(x, UNITS) is None
    assert peers.glm_pca(x, UNITS) is None
    assert peers.logistic_pca(x, UNITS) is None
    assert contest.compare() == []


def test_ours_is_the_best_of_the_starts(x, monkeypatch):
    values = {"zero": -3.0, "null": -2.0, "other": -4.0}
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(contest, "fit", lambda data, family, rank, expand_at: expand_at)
    monkeypatch.setattr(contest, "refine", lambda start, data: SimpleNamespace(elbo=jnp.asarray(values[start])))
    found = contest.ours(x, Poisson(), UNITS, tuple(values))
    assert (found.start, float(found.optimum.elbo)) == ("null", -2.0)
    assert min(found.seconds, found.cold_seconds) > 0


def test_passing_is_the_first_round_above(x, monkeypatch):
    monkeypatch.setattr(contest, "fit", lambda data, family, rank, expand_at: expand_at)
    monkeypatch.setattr(contest, "refine", lambda start, data, max_rounds: SimpleNamespace(elbo=-float(max_rounds)))
    found = contest.Ours(SimpleNamespace(history=np.array([-9.0, -5.0, -4.0, -3.0])), "null", 5.0, 1.0)
    assert contest.passing(x, Poisson(), UNITS, found, -4.5)[:2] == (2, -2.0)
    assert contest.passing(x, Poisson(), UNITS, found, -3.0) is None


def test_rows_are_complete_plain_and_printed(x, pln, factors, monkeypatch):
    # ours is PlnPCA's decoder with the best posteriors
    q = best_of(pln, x)
    mine = SimpleNamespace(loadings=pln.loadings, intercept=pln.intercept, posterior=q)
    mine.history, mine.converged = np.zeros(4), False
    monkeypatch.setattr(contest, "ours", lambda *a: contest.Ours(mine, "null", 5.0, 1.0))
    monkeypatch.setattr(contest, "passing", lambda *a: (3, -1.5, 0.2))
    monkeypatch.setattr(peers, "counts", lambda name: x)
    monkeypatch.setattr(peers, "pln_pca", lambda x, rank: pln)
    monkeypatch.setattr(peers, "glm_pca", lambda x, rank: factors)
    rows = contest.compare(("oaks",), (UNITS,))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [(row["peer"], row["value"], row["ratio"]) for row in rows] == [
        ("PlnPCA", "elbo", 0.5), ("PlnPCA", "elbo, best q", 0.5), ("PlnPCA", "elbo, first above", 0.1),
        ("glmpca", "deviance", 2.0), ("glmpca", "elbo, best q", 2.0),
    ]  # fmt: skip
    assert rows[0]["theirs"] == pytest.approx(poisson_elbo(pln, x, lambda n: gammaln(n + 1)), rel=EXACT)
    assert rows[0]["theirs"] < rows[0]["ours"] - 10 * STEP
    assert rows[1]["theirs"] == pytest.approx(rows[0]["ours"], abs=STEP)
    assert (rows[2]["ours"], rows[2]["our_seconds"]) == (-1.5, 0.2)
    assert rows[3]["ours"] == contest.deviance(x, pln.loadings, pln.intercept, q.mean, Poisson())
    assert rows[3]["theirs"] == contest.deviance(x, *factors[:3], Poisson())
    lines = contest.table(rows).splitlines()
    assert lines[0].split()[0] == "data"
    for row, line in zip(rows, lines[2:7], strict=True):
        assert (row["data"], row["rank"], row["rows"], row["columns"]) == ("oaks", UNITS, ROWS, COLUMNS)
        for text in (f"{row['ours']:.3f}", f"{row['theirs']:.3f}", row["note"], "from null, 3 rounds, not converged"):
            assert text in line
    # with no peer there is nothing to compare with
    monkeypatch.setattr(peers, "pln_pca", lambda x, rank: None)
    monkeypatch.setattr(peers, "glm_pca", lambda x, rank: None)
    assert contest.compare(("oaks",), (UNITS,)) == []
