"""The closed form of rows with weights, covariates, an offset and trials an entry: right, or refused by name."""

import jax
import numpy as np
import pytest
import scipy.optimize
from dense_reference import MODELS, OTHERS, draw, problem, profile
from dense_reference import fit as dense_fit

from glmvae import Rows, activity_path, beta_for_active_units, collapse_onset, fit, moments, posterior, spectrum
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, Poisson

RTOL = {"float64": 1e-10, "float32": 2e-4}
N = 40


def given(*names, seed=1):
    rng = np.random.default_rng(seed)
    every = {
        "weight": rng.uniform(0.2, 2.0, N),
        "covariates": np.column_stack([rng.normal(size=N), rng.normal(size=N) ** 2]),
        "offset": 0.7 * rng.normal(size=(N, 4)),
        "a row": 0.7 * rng.normal(size=N),
        "trials": rng.integers(5, 12, size=(N, 4)).astype(float),
    }
    return {"offset" if name == "a row" else name: every[name] for name in names}


CASES = {
    "weights": ("poisson", given("weight")),
    "covariates": ("bernoulli", given("covariates")),
    "covariates of counts": ("poisson", given("covariates", "weight")),
    "covariates, gamma": ("gamma", given("covariates")),
    "gaussian, all": ("gaussian", given("covariates", "offset", "weight")),
    "gaussian, one a row": ("gaussian", given("a row")),
    "bernoulli, offset": ("bernoulli", given("offset", "weight")),
    "bernoulli, scaled": ("bernoulli_tanh", given("a row", "covariates")),
    "binomial, columns": ("binomial_columns", given("offset")),
    "trials": ("binomial", given("trials", "weight")),
    "trials, all": ("binomial", given("trials", "offset", "covariates")),
}
IN_FLOAT32 = ("gaussian, all", "trials, all")


def arguments(case, dtype, beta=0.7, phi=None):
    name, fields = CASES[case]
    model, x = (MODELS | OTHERS)[name], draw(name)
    phi = 0.5 if name == "gamma" else phi
    family = Binomial(None, activation_scale=model.scale) if "trials" in fields else model.family
    return Rows(x.astype(dtype), **fields), family, problem(x, model, beta=beta, phi=phi, **fields), phi


@pytest.mark.parametrize("case", [c if c in IN_FLOAT32 else pytest.param(c, marks=pytest.mark.float64) for c in CASES])
def test_equal_to_the_dense_reference(case, dtype):
    for phi in (None, 0.6):
        rows, family, p, phi = arguments(case, dtype, phi=phi)
        o, r = fit(rows, family, 2, beta=0.7, dispersion=phi), dense_fit(p, 2)
        rtol = 4 * RTOL[str(dtype)]
        near = {"rtol": rtol, "atol": rtol * (1 + np.abs(r.intercept).max() + np.abs(r.loadings).max())}
        loadings = np.asarray(o.loadings)
        np.testing.assert_allclose(o.eigenvalues, r.eigenvalues, rtol=rtol, atol=rtol * r.eigenvalues[0])
        np.testing.assert_allclose(o.dispersion, r.dispersion, rtol=rtol)
        np.testing.assert_allclose(o.intercept, r.intercept, **near)
        np.testing.assert_allclose(loadings @ loadings.T, r.loadings @ r.loadings.T, **near)
        np.testing.assert_allclose(o.elbo_taylor, r.elbo, rtol=rtol, atol=rtol)
        if "covariates" in CASES[case][1]:
            np.testing.assert_allclose(o.decoder.coefficients, r.coefficients, **near)
        else:
            assert o.decoder.coefficients is None
        q = posterior(o, rows)
        assert q.covariance.shape == (1, 2, 2)
        np.testing.assert_allclose(np.asarray(q.mean) @ loadings.T, r.mean @ r.loadings.T, **near)
        again = fit(moments(rows, family=family), family, 2, beta=0.7, dispersion=phi)
        np.testing.assert_array_equal(again.loadings, o.loadings)


@pytest.mark.float64
@pytest.mark.parametrize("case", ["covariates", "gaussian, all", "trials, all"])
def test_it_is_the_joint_optimum(case):
    """Of loadings, intercept and coefficients together: BFGS from elsewhere ends there, and nothing near is better."""
    rows, family, p, _ = arguments(case, "float64", phi=0.6)
    o = fit(rows, family, 1, beta=0.7, dispersion=0.6)
    found = dense_fit(p, 1).decoder

    def value(theta):
        parts = np.split(theta, [4, 8])
        decoder = found._replace(loadings=parts[0][:, None], intercept=parts[1], coefficients=parts[2].reshape(-1, 4))
        return -profile(p, decoder)

    size = 8 + 4 * found.coefficients.shape[0]
    ends = [
        scipy.optimize.minimize(value, np.random.default_rng(seed).normal(size=size), method="BFGS").fun
        for seed in range(2)
    ]
    np.testing.assert_allclose(-np.min(ends), o.elbo_taylor, rtol=1e-7)
    assert np.all(-np.asarray(ends) <= float(o.elbo_taylor) + 1e-7)


@pytest.mark.any_precision
def test_a_weight_for_the_mean_of_the_trials_would_be_no_bound(dtype):
    """The largest trials of a column bound the curvature of all its rows; the mean of them does not."""
    from glmvae import elbo_exact

    rng = np.random.default_rng(5)
    n = np.where(rng.random((N, 4)) < 0.2, 40.0, 1.0)
    x = rng.binomial(n.astype(int), 0.5 + 0.4 * np.sign(rng.normal(size=(N, 1)))).astype(float)
    rows = Rows(x.astype(dtype), trials=n)
    o = fit(rows, Binomial(None), 2)
    exact = np.mean(elbo_exact(o, rows, posterior(o, rows)))
    assert exact >= float(o.elbo_taylor) - 1e-6 * abs(exact)
    data = moments(rows, family=Binomial(None))
    wrong = fit(data._replace(trials=np.asarray(n.mean(axis=0), dtype)), Binomial(None), 2)
    value = np.mean(elbo_exact(wrong, rows, posterior(wrong, rows)))
    assert value < float(wrong.elbo_taylor) - 0.1


@pytest.mark.any_precision
def test_no_offset_is_an_offset_of_nought(dtype):
    x = draw("bernoulli").astype(dtype)
    a, b = fit(x, Bernoulli(), 2), fit(Rows(x, offset=np.zeros(N)), Bernoulli(), 2)
    rtol = RTOL[str(dtype)]
    for name in ("loadings", "intercept", "elbo_taylor"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=rtol)
    rows, none = Rows(x, offset=np.linspace(-1, 1, N)), Rows(x, offset=np.zeros(N))
    for o in (a, b):  # each takes rows of either kind
        np.testing.assert_allclose(posterior(o, none).mean, posterior(a, x).mean, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(posterior(o, rows).mean, posterior(a, rows).mean, rtol=rtol, atol=rtol)
    assert np.abs(posterior(a, rows).mean - posterior(a, x).mean).max() > 0.05


@pytest.mark.any_precision
def test_the_same_trials_in_rows_and_in_the_family(dtype):
    x, n = draw("binomial_columns").astype(dtype), np.array([1.0, 5.0, 9.0, 16.0])
    a, b = fit(x, Binomial(n), 2), fit(Rows(x, trials=n[None]), Binomial(None), 2)
    for left, right in ((a.loadings, b.loadings), (a.intercept, b.intercept), (a.elbo_taylor, b.elbo_taylor)):
        np.testing.assert_allclose(left, right, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    left, right = posterior(a, x), posterior(b, Rows(x, trials=n[None]))
    np.testing.assert_allclose(left.mean, right.mean, rtol=10 * RTOL[str(dtype)], atol=RTOL[str(dtype)])


@pytest.mark.any_precision
def test_the_trials_of_a_mixed_family(dtype):
    """The members that want trials take theirs, whatever stands in the other columns."""
    rng = np.random.default_rng(6)
    n = rng.integers(5, 9, size=(N, 4)).astype(float)
    x = np.column_stack([rng.binomial(5, 0.4, size=(N, 2)), rng.normal(size=N), rng.poisson(2.0, size=N)])
    family = Mixed([(Binomial(None), [0, 1]), (Gaussian(), [2]), (Poisson(), [3])])
    phi = [1.0, 1.0, 0.5, 1.0]
    o = fit(Rows(x.astype(dtype), trials=n), family, 2, dispersion=phi)
    nonsense = n.copy()
    nonsense[:, 2:] = rng.integers(1, 99, size=(N, 2))
    again = fit(Rows(x.astype(dtype), trials=nonsense), family, 2, dispersion=phi)
    np.testing.assert_array_equal(o.loadings, again.loadings)
    # the columns of one kind alone, no unit at work: each adds its own
    null = [
        fit(Rows(x[:, :2].astype(dtype), trials=n[:, :2]), Binomial(None), 0).elbo_taylor,
        fit(x[:, 2:3].astype(dtype), Gaussian(), 0, dispersion=0.5).elbo_taylor,
        fit(x[:, 3:].astype(dtype), Poisson(), 0).elbo_taylor,
    ]
    rows = Rows(x.astype(dtype), trials=n)
    np.testing.assert_allclose(fit(rows, family, 0, dispersion=phi).elbo_taylor, sum(map(float, null)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"offset: Poisson has no closed form with an offset"):
        fit(Rows(x.astype(dtype), trials=n, offset=np.zeros(N)), family, 2, dispersion=phi)


# Refused by name -------------------------------------------------------------------------------------------

X = draw("bernoulli").astype("float32")
OFFSET = Rows(X, offset=np.linspace(-1, 1, N))
COVARIATES = Rows(X, covariates=np.linspace(-1, 1, N)[:, None])
C = np.random.default_rng(8).normal(size=(N, 3))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit(OFFSET, Bernoulli(), 1, expand_at="null"),
            "expand_at: expected \"zero\", got 'null': with an offset",
        ),
        (lambda: fit(OFFSET, Bernoulli(), 1, expand_at=0.5), 'expand_at: expected "zero"'),
        (lambda: fit(OFFSET, Gaussian(), 1, expand_at="null"), 'expand_at: expected "zero"'),
        (
            lambda: spectrum(moments(OFFSET, family=Bernoulli()), Bernoulli(), expand_at="null"),
            'expand_at: expected "zero"',
        ),
        (lambda: collapse_onset(OFFSET, Bernoulli()), "x: the onset is that of the intercept-only model"),
        (lambda: collapse_onset(COVARIATES, Bernoulli()), "x: the onset is that of the intercept-only model"),
        (lambda: activity_path(OFFSET, Bernoulli(), [1.0], 1, expand_at="null"), 'expand_at: expected "zero"'),
        (lambda: beta_for_active_units(OFFSET, Bernoulli(), 1, expand_at="null"), 'expand_at: expected "zero"'),
        (lambda: fit(OFFSET, Poisson(), 1), "offset: Poisson has no closed form with an offset.*`refine`"),
        (lambda: fit(moments(OFFSET, family=Bernoulli()), Gaussian(), 1), "x: expected moments of Gaussian"),
        (lambda: fit(Rows(X, missing=X > 0), Bernoulli(), 1), "missing: .*`refine`"),
        (lambda: fit(Rows(X, covariates=np.ones((N, 1))), Bernoulli(), 1), "covariates: column 0 does not vary"),
        (
            lambda: fit(Rows(X, covariates=np.c_[C, C[:, :1]]), Bernoulli(), 1),
            "covariates: column 3 is a linear combination",
        ),
        (
            lambda: fit(Rows(X, covariates=np.c_[C, C @ [1, 2, 3]]), Bernoulli(), 1),
            "covariates: column . is a linear comb",
        ),
        (
            lambda: fit(Rows(X, covariates=np.c_[C, 1 + 1e9 * C[:, 1:2]]), Bernoulli(), 1),
            "covariates: column . is a linear",
        ),
        (
            lambda: posterior(fit(COVARIATES, Bernoulli(), 1), X),
            "covariates: the decoder has coefficients for 1, .* bring 0",
        ),
        (
            lambda: posterior(fit(X, Bernoulli(), 1), COVARIATES),
            "covariates: the decoder has coefficients for 0, .* bring 1",
        ),
        (lambda: posterior(fit(X, Bernoulli(), 1), Rows(X, missing=X > 0)), "missing: .*`best_posterior`"),
        (lambda: posterior(fit(X, Bernoulli(), 1, expand_at="null"), OFFSET), "offset: .*`best_posterior`"),
        (lambda: posterior(fit(X, Poisson(), 1), OFFSET), "offset: Poisson has no closed form"),
        (lambda: posterior(fit(X, Bernoulli(), 1), Rows(X, trials=X + 1)), "trials: .*takes none from the rows"),
    ],
)
def test_what_has_no_place_in_the_closed_form_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.any_precision
def test_covariates_that_are_nearly_collinear_are_taken(dtype):
    """Up to the rounding of the precision: the coefficients are those of least squares."""
    rng = np.random.default_rng(9)
    c = np.column_stack([C[:, 0], C[:, 0] + 0.05 * C[:, 1]])
    x = (C @ rng.normal(size=(3, 4)) + rng.normal(size=(N, 4))).astype(dtype)
    o = fit(Rows(x, covariates=c), Gaussian(), 1)
    expected = np.linalg.lstsq(np.column_stack([np.ones(N), c]), x.astype(np.float64), rcond=None)[0][1:]
    np.testing.assert_allclose(o.decoder.coefficients, expected, rtol=1e-2, atol=1e-2)
    assert np.linalg.cond(np.corrcoef(c, rowvar=False)) > 500


@pytest.mark.any_precision
def test_posteriors_beside_an_offset_or_trials_under_jit():
    rng = np.random.default_rng(0)
    x, offset, trials = (rng.random((30, 3)) < 0.4) * 1.0, rng.normal(size=(30, 1)), rng.integers(1, 5, (30, 3)) * 1.0
    for rows, family in ((Rows(x, offset=offset), Bernoulli()), (Rows(x, trials=trials), Binomial(None))):

        def mean(rows, family=family):
            return posterior(fit(rows, family, 2), rows).mean

        eager = np.asarray(mean(rows))
        np.testing.assert_allclose(np.abs(jax.jit(mean)(rows)), np.abs(eager), rtol=1e-4, atol=1e-6)  # signs of units
