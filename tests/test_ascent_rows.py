"""What rows bring beside x, in the ascent and in posteriors: right against the dense reference, or refused."""

import warnings

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ascent_cases import TIGHT, D, K, N, case, decoder
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Posterior,
    Rows,
    best_posterior,
    elbo_exact,
    fit,
    posterior,
    refine,
    tighten,
)
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, Poisson

pytestmark = pytest.mark.float64

EVERY = ("offset", "covariates", "missing", "weight")
#: Columns of every kind; the rows bring the trials of the first.
TABLE = dense.Mixed(
    [
        (dense.Binomial(), [0]),
        (dense.Poisson(), [1]),
        (dense.Gamma(), [2]),
        (dense.NegativeBinomial(np.array([0.7, 12.0]), scale=-0.5), [3, 4]),
        (dense.Gaussian(), [5]),
    ]
)
PHI = np.array([1.0, 1.0, 0.4, 1.0, 1.0, 0.6])


def rows_of(p, trials=None):
    """A problem of the reference as rows that bring every field, neutral or not: one structure, so one program."""
    return Rows(np.where(p.missing, np.nan, p.x), trials=trials, **{name: getattr(p, name) for name in EVERY})


def model_of(p, d):
    objective = Objective(p.family.family, p.beta, 1.0 if p.phi is None else p.phi)
    return AffineModel(Affine(d.loadings, d.intercept, d.coefficients), objective)


def table(rows, units, seed=3):
    """A problem of all families with every field, the same as rows, and a decoder."""
    rng = np.random.default_rng(seed)
    d = dense.decoder(0.5 * rng.normal(size=(6, units)), 0.3 * rng.normal(size=6), 0.3 * rng.normal(size=(2, 6)))
    offset, covariates = 0.5 * rng.normal(size=(rows, 6)), rng.normal(size=(rows, 2))
    n = rng.integers(1, 9, size=(rows, 6)).astype(float)
    eta = rng.normal(size=(rows, units)) @ d.loadings.T + d.intercept + covariates @ d.coefficients + offset
    x = TABLE.with_trials(n).draw(rng, eta)
    weight, missing = rng.uniform(0.2, 2, rows), rng.random(x.shape) < 0.2
    brought = {"offset": offset, "covariates": covariates, "missing": missing, "weight": weight}
    p = dense.problem(x, TABLE, beta=0.9, phi=PHI, trials=n, **brought)
    return p, rows_of(p, n), d


# Posteriors -------------------------------------------------------------------------------------------------


def check_posteriors(p, rows, d):
    model = model_of(p, d)
    q = best_posterior(model, rows, tolerance=1e-14, max_steps=500)
    reference = dense.best_posterior(p, d)
    np.testing.assert_allclose(q.mean, reference[0], atol=1e-6)
    np.testing.assert_allclose(q.covariance, reference[1], atol=1e-6)
    np.testing.assert_allclose(elbo_exact(model, rows, q), dense.elbo(p, d, *reference), rtol=1e-9)
    return np.asarray(q.mean)


def test_the_best_posteriors_are_the_references():
    """Of Poisson columns with each field alone, then of columns of every kind with all of them."""
    found = {}
    for fields in (*((name,) for name in EVERY), ()):
        p, _, *_ = dense.example("poisson", fields=fields)
        d = dense.example("poisson", fields=EVERY)[1]
        p = p if p.covariates.shape[1] else p._replace(covariates=np.zeros((len(p.x), 2)))
        found[fields] = check_posteriors(p, rows_of(p), d)
    # Controls: without what the rows bring these are others; a weight changes no row's own
    gaps = {name: np.abs(found[(name,)] - found[()]).max() for name in EVERY}
    assert gaps["weight"] == 0
    assert min(gaps[name] for name in EVERY if name != "weight") > 1e-2
    p, rows, d = table(6, 2)
    together = check_posteriors(p, rows, d)
    other = best_posterior(model_of(p, d), rows.replace(trials=rows.trials + 1)).mean
    assert np.abs(together - other).max() > 1e-2


def test_of_rows_with_missing_entries_the_other_columns_decide():
    c = case("bernoulli")
    hidden = np.zeros((N, D), bool)
    hidden[:, 3:] = True
    garbage = np.where(hidden, np.nan, c.x)
    q = best_posterior(c.start, Rows(garbage, missing=hidden), tolerance=1e-12)
    fewer = AffineModel(Affine(c.start.loadings[:3], c.start.intercept[:3]), Bernoulli())
    reference = best_posterior(fewer, c.x[:, :3], tolerance=1e-12)
    np.testing.assert_allclose(q.mean, reference.mean, atol=1e-10)
    np.testing.assert_allclose(q.covariance, reference.covariance, atol=1e-10)
    shared = best_posterior(c.start, Rows(garbage, missing=hidden[:1]), tolerance=1e-12)
    np.testing.assert_allclose(shared.mean, reference.mean, atol=1e-10)
    masked = best_posterior(c.start, np.ma.array(c.x, mask=hidden), tolerance=1e-12)
    np.testing.assert_allclose(masked.mean, reference.mean, atol=1e-10)
    assert np.abs(q.mean - best_posterior(c.start, c.x).mean).max() > 1e-2
    empty = best_posterior(c.start, Rows(garbage, missing=np.ones((N, D), bool)))
    np.testing.assert_allclose(empty.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(empty.covariance, np.broadcast_to(np.eye(K), (N, K, K)), atol=1e-12)


# The ascent -------------------------------------------------------------------------------------------------


def check_optimum(p, rows, d, estimated=False):
    """Everything at once, over decoder, coefficients, posteriors and, where it is free, the dispersion."""
    dispersion = "estimate" if estimated else None
    r = refine(model_of(p, d), rows, tolerance=1e-11, max_rounds=2000, dispersion=dispersion)
    assert np.all(np.diff(r.history) >= 0)
    assert bool(r.dispersion_estimated) == estimated
    at_end = p._replace(phi=np.asarray(r.dispersion))
    q = [np.asarray(part) for part in r.posterior]
    np.testing.assert_allclose(r.elbo, p.mean(dense.elbo(at_end, decoder(r), *q)), rtol=1e-9)
    np.testing.assert_allclose(np.average(elbo_exact(r, rows, r.posterior), weights=p.weight), r.elbo, rtol=1e-9)
    reference = dense.refine(p._replace(phi=None if estimated else p.phi), 1, start=decoder(r))
    assert reference.gradient < 1e-4
    np.testing.assert_allclose(r.elbo, reference.elbo, rtol=0, atol=1e-6)
    if estimated:
        np.testing.assert_allclose(r.dispersion, reference.dispersion, rtol=1e-3)
    assert r.elbo > p.mean(dense.elbo(p, d, *dense.best_posterior(p, d))) + 1e-2


def test_the_optimum_is_one_of_the_reference():
    check_optimum(*table(12, 1))


@pytest.mark.parametrize("name", ["gaussian", "gamma"])
def test_the_optimum_with_a_free_dispersion_is_one_of_the_reference(name):
    p, d, *_ = dense.example(name, rows=12, units=1, fields=EVERY, beta=0.9)
    check_optimum(p, rows_of(p), d, estimated=True)


def test_no_latent_unit_with_covariates_is_the_glm():
    p, rows, _ = table(30, 0)
    expected, log_p = dense.glm(p)
    r = refine(model_of(p, dense.decoder(np.zeros((6, 0)), np.zeros(6), np.zeros((2, 6)))), rows, tolerance=1e-12)
    np.testing.assert_allclose(r.elbo, p.mean(log_p), rtol=1e-9)
    np.testing.assert_allclose(r.intercept, expected.intercept, atol=1e-4)
    np.testing.assert_allclose(r.model.coefficients, expected.coefficients, atol=1e-4)
    without = dense.glm(p._replace(covariates=p.covariates[:, :0]))[1]
    assert r.elbo > p.mean(without) + 1e-2


@pytest.mark.parametrize("batches", [False, True])
def test_a_year_is_a_covariate_like_any_other(batches):
    """2000 +- 1 in single precision, whose squares leave nothing of the +- 1; in rows and in batches of them."""
    c = case("bernoulli", "float32")
    year = np.round(np.random.default_rng(2).normal(size=(N, 1)), 3).astype(np.float32)
    start = fit(c.x, c.family, K)

    def rows(covariates):
        parts = [Rows(c.x[i], covariates=covariates[i]) for i in (slice(0, 32), slice(32, N))]
        return (lambda: iter(parts)) if batches else Rows(c.x, covariates=covariates)

    plain = refine(start, rows(year))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = refine(start, rows(2000 + year))
    assert r.converged
    assert abs(len(r.history) - len(plain.history)) <= 2
    np.testing.assert_allclose(r.elbo, plain.elbo, atol=1e-4)
    np.testing.assert_allclose(r.model.coefficients, plain.model.coefficients, atol=2e-3)
    predictor = r.intercept + 2000 * r.model.coefficients[0]  # rounded to 2000 eps
    np.testing.assert_allclose(predictor, plain.intercept, atol=2e-2)
    np.testing.assert_allclose(np.mean(elbo_exact(r, rows(2000 + year), r.posterior)), plain.elbo, atol=1e-3)
    again = refine(r, rows(2000 + year))  # goes on from there
    np.testing.assert_allclose(again.elbo, r.elbo, atol=1e-4)


def test_collinear_covariates_are_named():
    c = case("poisson")
    z = np.random.default_rng(0).normal(size=(N, 2))
    twice = np.column_stack([z, z[:, 0] - 2 * z[:, 1] + 1])  # with the intercept
    all_refused(
        [
            (lambda: refine(c.start, Rows(c.x, covariates=twice)), ValueError, "covariates: .*column"),
            (lambda: refine(c.start, Rows(c.x, covariates=np.ones((N, 1)))), ValueError, "covariates: .*column 0"),
            # one line for all rows, whatever their weights
            (
                lambda: refine(c.start, Rows(c.x, covariates=np.ones((1, 1)), weight=np.ones(N))),
                ValueError,
                "covariates: .*column 0",
            ),
        ]
    )


@pytest.mark.parametrize("count", [1e3, 1e5, 1e6])
def test_a_row_of_a_huge_count_leaves_the_prior(count):
    """The best q of one latent unit by SciPy, from the truth; from the prior a full step is up to 2^20 too long."""
    w = np.array([4.5, 2.0, 1.0, -1.0, -2.0, 0.5])
    z = np.log(count) / w[0]
    x = np.round(np.exp(w * z))

    def loss(q):
        mean, log_variance = q
        expected = x * w * mean - np.exp(w * mean + w**2 * np.exp(log_variance) / 2)
        return -np.sum(expected) + 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance)

    wanted = scipy.optimize.minimize(loss, [z, -np.log(w**2 @ x)], method="BFGS").x
    q = best_posterior(AffineModel(Affine(w[:, None], np.zeros(6)), Poisson()), x[None])
    np.testing.assert_allclose(q.mean[0, 0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(q.covariance[0, 0, 0], np.exp(wanted[1]), rtol=1e-2)
    found = loss([float(q.mean[0, 0]), np.log(float(q.covariance[0, 0, 0]))])
    assert found < loss(wanted) + 1e-3
    assert loss([0.0, -np.log(1 + w @ w)]) > found + 3 * count  # the control: where it starts


def test_what_a_row_weighs_does_not_change_its_best_posterior():
    """It used to stay at the prior: no step was waited for that only a row of weight 0 could gain by."""
    model = AffineModel(Affine([[1.0], [-1.0], [0.5], [0.2]], np.zeros(4)), Poisson())
    x = np.array([[1e3, 0.0, 2.0, 1.0], [1.0, 1.0, 0.0, 2.0]])
    wanted = best_posterior(model, x)
    found = best_posterior(model, Rows(x, weight=np.array([0.0, 1.0])))
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.covariance, wanted.covariance)
    assert abs(float(wanted.mean[0, 0])) > 5  # the control: the prior is far


def test_an_offset_of_zero_changes_nothing_and_a_constant_one_moves_the_intercept():
    c = case("poisson")
    plain = refine(c.start, c.x, tolerance=TIGHT)
    zero = refine(c.start, Rows(c.x, offset=np.zeros(N)), tolerance=TIGHT)
    np.testing.assert_allclose(zero.elbo, plain.elbo, atol=1e-8)
    np.testing.assert_allclose(zero.intercept, plain.intercept, atol=1e-3)
    shift = np.linspace(-1, 1, D)
    moved = refine(c.start, Rows(c.x, offset=shift[None]), tolerance=TIGHT)
    np.testing.assert_allclose(moved.elbo, plain.elbo, atol=1e-8)
    np.testing.assert_allclose(moved.intercept + shift, plain.intercept, atol=1e-3)
    # Control: an offset that differs between the rows is something else.
    rows = Rows(c.x, offset=np.linspace(-1, 1, N))
    other = refine(c.start, rows, tolerance=TIGHT)
    assert abs(other.elbo - plain.elbo) > 1e-2
    # and is scored with it: the same decoder without it is another model
    np.testing.assert_allclose(np.mean(elbo_exact(other, rows, other.posterior)), other.elbo, rtol=1e-9)
    assert np.mean(elbo_exact(other.model, c.x, other.posterior)) < other.elbo - 1e-2
    new = Rows(c.x[:7], offset=np.linspace(-1, 1, N)[:7])
    np.testing.assert_allclose(best_posterior(other, new, tolerance=1e-12).mean, other.posterior.mean[:7], atol=2e-3)


def test_trials_an_entry():
    c = case("binomial")
    each = refine(c.start, c.x, tolerance=TIGHT)
    open_trials = AffineModel(c.start.decoder, Binomial(None))
    same = refine(open_trials, Rows(c.x, trials=np.full((N, D), 6.0)), tolerance=TIGHT)
    np.testing.assert_allclose(same.elbo, each.elbo, atol=1e-8)
    trials = 6.0 + np.arange(N)[:, None] % 3 + np.zeros(D)
    start = AffineModel(fit(c.x / trials, Bernoulli(), K).decoder, Binomial(None))
    r = refine(start, Rows(c.x, trials=trials), tolerance=1e-6)
    p = dense.problem(c.x, dense.Binomial(), trials=trials)
    q = (np.asarray(part) for part in r.posterior)
    np.testing.assert_allclose(r.elbo, p.mean(dense.elbo(p, decoder(r), *q)), rtol=1e-9)
    assert abs(r.elbo - each.elbo) > 1e-2
    none = trials.copy()
    none[4, 2] = 0  # is a missing entry
    hidden = np.zeros((N, D), bool)
    hidden[4, 2] = True
    a, b = (best_posterior(r, Rows(c.x, trials=t, missing=m)).mean for t, m in ((none, None), (trials, hidden)))
    np.testing.assert_array_equal(a, b)
    wanting = r"x: Binomial\(trials=None\) has its trials from the rows"
    all_refused(
        [
            (lambda: refine(r, c.x), ValueError, wanting),
            (lambda: best_posterior(r, c.x[:10]), ValueError, wanting),
            (lambda: refine(c.start, Rows(c.x, trials=trials)), ValueError, r"trials: Binomial\(trials=6\) takes none"),
        ]
    )


def test_gaussian_with_missing_entries_is_the_dense_marginal_likelihood():
    c = case("gaussian")
    hidden = np.random.default_rng(1).random(c.x.shape) < 0.3
    phi = float(c.start.dispersion)
    rows = Rows(np.where(hidden, np.nan, c.x), missing=hidden)
    r = refine(c.start, rows, dispersion=phi, tolerance=1e-13, max_rounds=400)

    def log_marginal(loadings, intercept):
        def of_row(x, seen):
            # what is hidden is made independent of the rest, with variance 1 and residual 0
            covariance = jnp.where(jnp.outer(seen, seen), loadings @ loadings.T + phi * jnp.eye(D), jnp.eye(D))
            residual = jnp.where(seen, x - intercept, 0.0)
            quadratic = residual @ jnp.linalg.inv(covariance) @ residual
            return -0.5 * (quadratic + jnp.linalg.slogdet(covariance)[1] + jnp.sum(seen) * np.log(2 * np.pi))

        return jnp.mean(jax.vmap(of_row)(jnp.asarray(c.x), jnp.asarray(~hidden)))

    both = jax.jit(jax.value_and_grad(log_marginal, (0, 1)))
    value, gradient = both(r.loadings, r.intercept)
    np.testing.assert_allclose(r.elbo, value, rtol=1e-10)
    assert max(float(jnp.max(jnp.abs(g))) for g in gradient) < 1e-5
    at_start = both(c.start.loadings, c.start.intercept)[1][0]
    assert float(jnp.max(jnp.abs(at_start))) > 1e-3
    i = int(np.argmax(hidden.sum(1)))
    seen = np.flatnonzero(~hidden[i])
    w = np.asarray(r.loadings)[seen]
    covariance = np.linalg.inv(np.eye(K) + w.T @ w / phi)
    np.testing.assert_allclose(r.posterior.covariance[i], covariance, atol=1e-9)
    mean = covariance @ w.T @ (c.x[i, seen] - np.asarray(r.intercept)[seen]) / phi
    np.testing.assert_allclose(r.posterior.mean[i], mean, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_measurement_change_no_round(scale):
    """Gaussian columns in other units: the same ascent, alone and beside binary ones, which keep their trust region."""
    c = case("gaussian")
    hidden = np.random.default_rng(1).random(c.x.shape) < 0.3
    binary = [0, 3]
    mixed = Mixed([(Bernoulli(), binary), (Gaussian(), [1, 2, 4])])
    for family, columns in ((Gaussian(), range(D)), (mixed, [1, 2, 4])):
        x = np.where(hidden, 0.0, c.x)
        if family is mixed:
            x[:, binary] = x[:, binary] > 0
        found = []
        for unit in (1.0, scale):
            size = np.ones(D)
            size[[*columns]] = unit
            phi = 0.8 * size**2
            found.append(refine(fit(x * size, family, K, dispersion=phi), Rows(x * size, missing=hidden)))
        logs = np.sum(~hidden[:, [*columns]]) / N * np.log(scale)
        np.testing.assert_allclose(found[1].elbo + logs, found[0].elbo, atol=1e-7)
        assert len(found[1].history) == len(found[0].history) < 30
        assert len(found[0].history) > 3


def test_missing_nothing_is_no_information():
    c = case("bernoulli")
    plain = refine(c.start, c.x, tolerance=TIGHT)
    nothing = refine(c.start, Rows(c.x, missing=np.zeros((N, D), bool)), tolerance=TIGHT)
    np.testing.assert_allclose(nothing.elbo, plain.elbo, atol=1e-9)


def test_a_weight_is_a_number_of_rows_and_none_is_no_row():
    c = case("poisson")
    times = np.arange(N) % 3
    weighted = refine(c.start, Rows(c.x, weight=times), tolerance=TIGHT)
    repeated = refine(c.start, np.repeat(c.x, times, axis=0), tolerance=TIGHT)
    np.testing.assert_allclose(weighted.elbo, repeated.elbo, atol=1e-8)
    np.testing.assert_allclose(weighted.intercept, repeated.intercept, atol=1e-4)
    assert abs(weighted.elbo - refine(c.start, c.x, tolerance=TIGHT).elbo) > 1e-2
    # every real row has its posterior, of weight 0 too
    assert weighted.posterior.mean.shape == (N, K)
    np.testing.assert_allclose(best_posterior(weighted, c.x, tolerance=1e-13).mean, weighted.posterior.mean, atol=5e-3)
    wild = np.where(times[:, None] == 0, 1e4, c.x)
    untouched = refine(c.start, Rows(wild, weight=times), tolerance=TIGHT)
    np.testing.assert_allclose(untouched.elbo, weighted.elbo, atol=1e-8)


# Refused by name --------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_by_name():
    c, g = case("bernoulli"), case("gaussian")
    hidden, z = np.zeros((N, D), bool), np.random.default_rng(0).normal(size=(N, 2))
    hidden[0, 0] = True
    knows = AffineModel(Affine(c.start.loadings, c.start.intercept, np.zeros((2, D))), Bernoulli())
    known, ones = Rows(c.x, covariates=z), np.ones((N, D))
    unknown = "covariates: the decoder has coefficients for 2, the rows bring 0"
    with_gaps = refine(c.start, Rows(c.x, missing=hidden), max_rounds=1)
    q = Posterior(np.zeros((N, K)), np.eye(K)[None])
    all_refused(
        [
            (lambda: best_posterior(c.start, known), ValueError, "covariates: the decoder has coefficients for 0"),
            (lambda: best_posterior(knows, c.x), ValueError, unknown),
            (lambda: elbo_exact(knows, c.x, q), ValueError, unknown),
            (lambda: refine(knows, c.x), ValueError, "covariates: .* coefficients for 2, the rows bring 0"),
            (lambda: tighten(c.start, Rows(c.x, missing=hidden)), ValueError, "missing"),
            (lambda: tighten(c.start, Rows(c.x, offset=np.ones(N))), ValueError, "offset"),
            (lambda: posterior(with_gaps, c.x), ValueError, "best_posterior"),
            (lambda: refine(g.start, Rows(g.x, trials=ones)), ValueError, r"trials: Gaussian\(\) takes none"),
            (lambda: refine(c.start, Rows(c.x, offset=ones[:1, :3])), ValueError, r"offset: .*\(1, 3\)"),
        ]
    )
