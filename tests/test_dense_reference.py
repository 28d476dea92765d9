"""The reference's optima against statsmodels and their own gradients: what the library is compared with holds."""

import numpy as np
import pytest
import statsmodels.api as sm
from dense_reference import (
    DISPERSIONS,
    MODELS,
    OTHERS,
    TRIALS,
    Binomial,
    Gamma,
    Gaussian,
    NegativeBinomial,
    Poisson,
    best_gaussian_dispersion,
    best_posterior,
    closed_form_expansion,
    draw,
    elbo,
    elbo_and_gradient,
    exact,
    example,
    fit,
    gaussian_profile,
    glm,
    jaakkola_column,
    jaakkola_entry,
    moments,
    predictor,
    problem,
    profile,
    quadratic,
    refine,
    searched_gaussian_dispersion,
)

pytestmark = pytest.mark.any_precision

ALL = MODELS | OTHERS
FIELDS = ("offset", "covariates", "missing", "weight")
#: Sums of a few dozen float64 terms of order one.
EXACT = 1e-12
#: A gradient, in nats, at what BFGS calls an optimum.
STATIONARY = 1e-6


# The closed form -------------------------------------------------------------------------------------------

CLOSED = [
    *((name, (), point) for name in sorted(ALL) if name != "mixed" for point in ("null", "zero")),
    ("mixed", (), "null"),
    ("gaussian", ("offset", "covariates", "weight"), "zero"),
    ("bernoulli_tanh", ("offset", "covariates", "weight"), "zero"),
    ("binomial", ("trials", "offset", "covariates", "weight"), "zero"),
    ("binomial", ("trials",), "zero"),
    ("poisson", ("covariates", "weight"), "null"),
]


@pytest.mark.parametrize(("name", "fields", "point"), CLOSED)
def test_the_closed_form_is_stationary_and_its_elbo_the_profile(name, fields, point):
    p, *_ = example(name, rows=25, fields=fields, beta=0.1)
    o = fit(p, 2, expand_at=point)
    assert o.eigenvalues[1] > p.beta  # both units are active: else loadings of 0 are stationary too
    bound = quadratic(*closed_form_expansion(p, point))
    root = np.broadcast_to(np.linalg.cholesky(o.covariance), (25, 2, 2))
    value, gradient = elbo_and_gradient(p, o.decoder, o.mean, root, bound)
    np.testing.assert_allclose(o.elbo, value, rtol=EXACT)
    np.testing.assert_allclose(o.elbo, profile(p, o.decoder, point), rtol=1e-11, atol=1e-11)
    size = 1 + np.abs(o.loadings).max() + abs(o.elbo)
    for part in gradient:
        np.testing.assert_allclose(part, 0.0, atol=1e-11 * size)
    if not p.bounded and not p.covariates.size:
        np.testing.assert_allclose(p.x @ o.encoder_weight.T + o.encoder_bias, o.mean, atol=1e-10 * size)
    # Control: anything else is lower, and not stationary.
    for part, scale in enumerate((1.05, 0.98)):
        moved = o.decoder._replace(**{("loadings", "intercept")[part]: o.decoder[part] * scale + 0.01})
        assert profile(p, moved, point) < o.elbo
        assert max(np.abs(g).max() for g in elbo_and_gradient(p, moved, o.mean, root, bound)[1][:2]) > 1e-5


def test_the_closed_form_is_where_bfgs_ends():
    p, *_ = example("binomial", rows=10, fields=("trials", "offset", "covariates", "weight"), beta=0.3)
    o, bound = fit(p, 1), quadratic(*closed_form_expansion(p))
    r = refine(p, 1, bound)
    np.testing.assert_allclose(r.elbo, o.elbo, atol=1e-10)
    np.testing.assert_allclose(r.decoder.coefficients, o.coefficients, atol=1e-5)
    assert r.elbo > refine(p._replace(covariates=np.zeros((10, 0))), 1, bound).elbo + 1e-2  # they matter


def test_boehnings_weight_is_the_largest_and_the_mean_is_no_bound():
    p, d, mean, root = example("binomial", fields=("trials", "offset"))
    eta0, w = closed_form_expansion(p)
    m, v = predictor(p, d, mean, root @ np.swapaxes(root, 1, 2))
    m, v = 0.1 * m, 0.05 * v  # near 0, where the curvature is largest
    true = exact(p, m + p.offset, v)[0]
    assert np.all(quadratic(eta0, w)(p, m + p.offset, v)[0] <= true + EXACT)
    on_average = p.family.trials.mean(axis=0) / 4
    assert np.any(quadratic(eta0, on_average)(p, m, v)[0] > exact(p, m, v)[0] + 1e-4)
    with pytest.raises(ValueError, match="no closed form with an offset"):
        fit(example("poisson", fields=("offset",))[0], 2)
    with pytest.raises(ValueError, match="missing"):
        fit(example("gaussian", fields=("missing",))[0], 2)


@pytest.mark.parametrize(("latent_dim", "beta"), [(0, 1.0), (1, 0.3), (2, 1.0), (3, 1.3), (3, 4.0)])
def test_the_gaussian_dispersion_is_that_of_a_search(latent_dim, beta):
    values = np.array([5.0, 3.0, 0.5, 0.4, 0.3])
    found, searched = (f(values, latent_dim, beta) for f in (best_gaussian_dispersion, searched_gaussian_dispersion))
    np.testing.assert_allclose(found, searched, rtol=1e-6)  # a maximum is flat: half the digits
    best = gaussian_profile(values, latent_dim, beta, found)
    assert all(gaussian_profile(values, latent_dim, beta, found * f) < best - 1e-6 for f in (0.99, 1.01))


def test_the_gaussian_dispersion_belongs_to_the_optimum():
    x = np.random.default_rng(0).normal(size=(30, 2)) @ np.random.default_rng(1).normal(size=(2, 4)) + draw(
        "gaussian", rows=30
    )
    covariates, weight = np.random.default_rng(2).normal(size=(30, 1)), np.random.default_rng(3).uniform(0.5, 2, 30)
    p = problem(x, Gaussian(), beta=0.8, offset=np.sin(x), covariates=covariates, weight=weight)
    o = fit(p, 2)
    for factor in (0.98, 1.02):
        assert fit(p._replace(phi=factor * o.dispersion), 2).elbo < o.elbo - 1e-5
    np.testing.assert_allclose(fit(p._replace(phi=o.dispersion), 2).elbo, o.elbo, rtol=EXACT)
    with pytest.raises(ValueError, match="dispersion"):
        fit(problem(draw("gamma"), Gamma()), 2)


def test_a_weight_is_a_number_of_rows():
    x = draw("poisson", rows=8)
    twice = np.array([1, 1, 2, 1, 0, 1, 3, 1])
    weighted, repeated = problem(x, Poisson(), weight=twice), problem(np.repeat(x, twice, axis=0), Poisson())
    for a, b in zip(moments(x, twice), moments(repeated.x), strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT)
    o, r = fit(weighted, 2, expand_at="null"), fit(repeated, 2, expand_at="null")
    np.testing.assert_allclose(o.elbo, r.elbo, rtol=EXACT)
    np.testing.assert_allclose(o.loadings @ o.loadings.T, r.loadings @ r.loadings.T, rtol=1e-10)
    np.testing.assert_allclose(refine(weighted, 1).elbo, refine(repeated, 1).elbo, atol=1e-9)
    assert abs(fit(weighted._replace(weight=np.ones(8)), 2, expand_at="null").elbo - o.elbo) > 1e-2


# Posteriors and the ascent ---------------------------------------------------------------------------------


def test_the_best_posterior_of_a_quadratic_is_the_closed_form():
    p, d, *_ = example("poisson", fields=("offset", "covariates", "weight"))
    eta0 = np.array([0.3, -0.2, 0.0, 0.5])
    mean, covariance = best_posterior(p, d, quadratic(eta0))
    w, rest = p.family.weight(eta0, p.phi), p.offset + d.intercept + p.covariates @ d.coefficients
    for i in range(6):
        s = np.linalg.inv(np.eye(2) + d.loadings.T @ np.diag(w) @ d.loadings / p.beta)
        y = eta0 + p.family.score(p.x[i], eta0, p.phi) / w
        np.testing.assert_allclose(covariance[i], s, atol=1e-10)
        np.testing.assert_allclose(mean[i], s @ d.loadings.T @ (w * (y - rest[i])) / p.beta, atol=1e-9)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_best_posterior_is_the_best(name):
    p, d, *_ = example(name, fields=FIELDS)
    mean, covariance = best_posterior(p, d)
    best = elbo(p, d, mean, covariance)
    _, gradient = elbo_and_gradient(p, d, mean, np.linalg.cholesky(covariance))
    np.testing.assert_allclose(gradient[3], 0.0, atol=1e-9)
    np.testing.assert_allclose(gradient[4], 0.0, atol=1e-9)
    assert np.abs(gradient[0]).max() > 1e-3  # of the posterior alone
    for shift, factor in ((0.02, 1.0), (-0.02, 1.0), (0.0, 1.03), (0.0, 0.97)):
        assert np.all(elbo(p, d, mean + shift, covariance * factor) < best)


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "gamma", "negative_binomial", "mixed"])
def test_the_ascent_ends_where_no_gradient_is_left(name):
    p, *_ = example(name, rows=20, fields=FIELDS, beta=1.0)
    r = refine(p, 1)
    assert r.gradient < STATIONARY
    np.testing.assert_allclose(r.elbo, p.mean(elbo(p, r.decoder, r.mean, r.covariance)), rtol=EXACT)
    assert r.elbo > p.mean(glm(p)[1]) + 1e-3
    again = refine(p, 1, start=r.decoder)
    np.testing.assert_allclose(again.elbo, r.elbo, atol=1e-9)
    q = best_posterior(p, r.decoder)
    np.testing.assert_allclose(q[0], r.mean, atol=1e-5)
    # Control: a start is none.
    moved = r.decoder._replace(loadings=1.1 * r.decoder.loadings)
    assert p.mean(elbo(p, moved, *best_posterior(p, moved))) < r.elbo - 1e-6


def test_gaussian_ascent_is_the_closed_form():
    p = problem(draw("gaussian", rows=10), Gaussian(), beta=0.8)
    o, r = fit(p, 1), refine(p, 1)
    np.testing.assert_allclose(r.elbo, o.elbo, atol=1e-8)
    np.testing.assert_allclose(r.dispersion, o.dispersion, rtol=1e-5)
    assert abs(refine(p._replace(phi=1.2 * o.dispersion), 1).elbo - o.elbo) > 1e-3


def test_each_bound_is_above_the_one_before():
    p, *_ = example("bernoulli", rows=20, beta=1.0)
    o = fit(p, 1)
    column, entry, best = (refine(p, 1, b, start=o.decoder) for b in (jaakkola_column, jaakkola_entry, exact))
    values = [o.elbo, column.elbo, entry.elbo, best.elbo]
    assert np.all(np.diff(values) > 1e-4)
    assert max(column.gradient, entry.gradient, best.gradient) < STATIONARY
    # one xi a column and no offset: the posteriors share their covariance and are affine in x
    np.testing.assert_allclose(column.covariance, column.covariance[:1] + 0 * column.covariance, atol=1e-5)
    assert np.ptp(entry.covariance) > 1e-3


# Without latent units: the GLM ------------------------------------------------------------------------------

STATSMODELS = {
    "gaussian": (sm.families.Gaussian(), Gaussian(), None),
    "poisson": (sm.families.Poisson(), Poisson(), None),
    "binomial": (sm.families.Binomial(), Binomial(), np.arange(3.0, 43.0)[:, None] % 7 + TRIALS),
    "gamma": (sm.families.Gamma(sm.families.links.Log()), Gamma(), None),
    "negative_binomial": (sm.families.NegativeBinomial(alpha=1 / 3), NegativeBinomial(3.0), None),
}


@pytest.mark.parametrize("name", STATSMODELS)
def test_the_glm_is_statsmodels(name):
    theirs, ours, trials = STATSMODELS[name]
    rng = np.random.default_rng(4)
    x = draw(name, strength=0.4)
    if trials is not None:
        x = np.minimum(x, trials)
    covariates, offset, weight = rng.normal(size=(40, 2)), 0.5 * rng.normal(size=(40, 4)), rng.integers(1, 4, 40)
    phi = DISPERSIONS.get(name, 1.0)
    p = problem(x, ours, phi=phi, trials=trials, offset=offset, covariates=covariates, weight=weight)
    d, log_p = glm(p)
    total = 0.0
    for j in range(4):
        y = x[:, j] if trials is None else np.column_stack([x[:, j], trials[:, j] - x[:, j]])
        model = sm.GLM(y, sm.add_constant(covariates), family=theirs, offset=offset[:, j], freq_weights=weight)
        found = model.fit(tol=1e-14)
        shift = np.log(3.0) if name == "negative_binomial" else 0.0  # ours is log(mean / size)
        expected = np.append(found.params[0] - shift, found.params[1:])
        np.testing.assert_allclose(np.append(d.intercept[j], d.coefficients[:, j]), expected, rtol=1e-6, atol=1e-8)
        total += model.loglike(found.params, scale=phi)
    np.testing.assert_allclose(p.weight @ log_p, total, rtol=1e-9)
    np.testing.assert_allclose(refine(p, 0).elbo, p.mean(log_p), rtol=1e-10)
    without = glm(p._replace(covariates=np.zeros((40, 0))))[1]
    assert p.weight @ without < total - 1e-2  # the covariates, the offset and the weights are in it
    assert abs(p.weight @ glm(p._replace(offset=0 * p.offset))[1] - total) > 1e-2
    assert abs(log_p.sum() * weight.mean() - total) > 1e-2


def test_the_glm_without_entries_that_are_missing():
    p, *_ = example("poisson", rows=12, fields=("missing", "covariates"))
    d, _ = glm(p)
    for j in range(4):
        seen = ~p.missing[:, j]
        alone = problem(p.x[seen][:, [j]], Poisson(), covariates=p.covariates[seen])
        np.testing.assert_allclose(glm(alone)[0].intercept, d.intercept[[j]], rtol=1e-9)
    assert np.abs(glm(p._replace(missing=np.zeros_like(p.missing)))[0].intercept - d.intercept).max() > 1e-2
