"""The exact ascent: monotone, between the bounds, at the optimum, and honest about what it returns."""

import dense_reference as dense
import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from ascent_cases import ROUNDING, TIGHT, D, K, N, case, decoder
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    RefinedOptimum,
    Rows,
    best_posterior,
    elbo_exact,
    fit,
    moments,
    refine,
    tighten,
)
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, Mixed, Poisson

f64 = pytest.mark.float64

# Monotone, and between the bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["bernoulli", *(pytest.param(k, marks=f64) for k in ("poisson", "gaussian", "gamma", "negative binomial"))]
)
def test_it_rises_from_the_start_and_reports_the_exact_elbo(kind, dtype):
    c = case(kind, dtype)
    r = refine(c.start, c.x, tolerance=1e-4)
    assert isinstance(r, RefinedOptimum)
    assert r.converged
    assert np.all(np.diff(r.history) >= 0)
    assert r.history.dtype == r.loadings.dtype == r.elbo.dtype == r.posterior.mean.dtype == dtype
    np.testing.assert_allclose(r.elbo, r.history[-1], rtol=ROUNDING[dtype.name])
    np.testing.assert_allclose(r.elbo, c.elbo(r), rtol=ROUNDING[dtype.name])
    np.testing.assert_allclose(np.mean(elbo_exact(r, c.x, r.posterior)), r.elbo, rtol=ROUNDING[dtype.name])
    assert r.elbo >= c.null(c.start.dispersion) - ROUNDING[dtype.name]
    assert r.lower_bound is None
    q = best_posterior(r, c.x)
    assert q.mean.dtype == q.covariance.dtype == r.loadings.dtype == dtype
    assert c.elbo(r, q) >= r.elbo - ROUNDING[dtype.name] * abs(r.elbo)
    if kind == "gaussian":
        assert len(r.history) == 1  # zero rounds
        np.testing.assert_allclose(r.elbo, c.start.elbo_taylor, rtol=ROUNDING[dtype.name])
    else:
        assert r.elbo > r.history[0] + 1e-3  # nats: a start that nothing raised would not pass


@pytest.mark.parametrize("kind", ["bernoulli", pytest.param("negative binomial", marks=f64)])
def test_the_bound_by_entry_rises_and_stays_below_the_exact_elbo(kind, dtype):
    c = case(kind, dtype)
    r = refine(c.start, c.x, method="entry", tolerance=1e-5)
    assert np.all(np.diff(r.history) >= 0)
    assert r.history.dtype == r.loadings.dtype == r.elbo.dtype == dtype
    assert r.lower_bound < r.history[-1] < r.elbo  # less what rounding may have added
    np.testing.assert_allclose(r.elbo, c.elbo(r), rtol=ROUNDING[dtype.name])
    np.testing.assert_allclose(r.lower_bound, c.elbo(r, bound=dense.jaakkola_entry), rtol=ROUNDING[dtype.name])
    assert r.lower_bound > c.elbo(r, bound=dense.jaakkola_column) + 1e-3  # one xi a column is another bound


@pytest.mark.any_precision
def test_the_bound_by_entry_of_a_million_trials_is_one_in_single_precision():
    """Its own terms grow as the trials do, and lose tenths of a nat; the ELBO, in float64, tells."""
    rng = np.random.default_rng(0)
    eta = 0.5 * rng.normal(size=(150, 2)) @ rng.normal(size=(2, 5))
    x, family = rng.binomial(10**6, 1 / (1 + np.exp(-eta))).astype("float32"), Binomial(1e6)
    r = refine(fit(x, family, 2, beta=0.1), x, method="entry")
    with jax.enable_x64(True):
        model, q = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (r.model, r.posterior))
        exact = float(np.mean(elbo_exact(model, x.astype(float), q)))
    assert exact - 1e-3 < r.lower_bound < exact  # nats
    assert r.history[-1] > exact + 0.05  # the control: as it was climbed


@f64
@pytest.mark.parametrize(("kind", "method"), [("bernoulli", "exact"), ("bernoulli", "entry"), ("poisson", "exact")])
def test_it_agrees_with_bfgs_over_everything_at_once(kind, method):
    """On a dozen rows, which the reference can bear."""
    c = case(kind)
    x, bound = c.x[:12], {"exact": dense.exact, "entry": dense.jaakkola_entry}[method]
    start = fit(x, c.family, 1, expand_at="null")
    r = refine(start, x, method=method, tolerance=TIGHT, max_rounds=500)
    reference = dense.refine(c.problem(r, x=x), 1, bound, start=decoder(start))
    assert reference.gradient < 1e-5  # it did get there
    np.testing.assert_allclose(r.history[-1], reference.elbo, rtol=0, atol=1e-6)
    assert float(r.history[-1] - r.history[0]) > 1e-3  # the start would not have passed


@f64
@pytest.mark.parametrize("kind", ["bernoulli", "poisson", "gamma", "negative binomial"])
def test_the_end_is_stationary_in_everything(kind):
    """By the reference's derivatives of the reference's ELBO."""
    c = case(kind)

    def slopes(r):
        mean, root = np.asarray(r.posterior.mean), np.linalg.cholesky(r.posterior.covariance)
        return [np.abs(g).max(initial=0) for g in dense.elbo_and_gradient(c.problem(r), decoder(r), mean, root)[1]]

    assert max(slopes(refine(c.start, c.x, tolerance=1e-12, max_rounds=1000))) < 1e-5
    # after a single round some q are so wide that the reference overflows
    assert max(slopes(refine(c.start, c.x, tolerance=1e-12, max_rounds=4))) > 1e-3


@f64
def test_the_axes_are_principal_and_the_eigenvalues_theirs():
    c = case("poisson")
    r = refine(c.start, c.x, tolerance=1e-8)
    p, d = c.problem(r), decoder(r)
    m, v = dense.predictor(p, d, np.asarray(r.posterior.mean), np.asarray(r.posterior.covariance))
    gram = d.loadings.T @ (dense.exact(p, m, v)[2].mean(axis=0)[:, None] * d.loadings)
    np.testing.assert_allclose(gram, np.diag(np.asarray(r.eigenvalues) - float(r.beta)), atol=1e-8)
    assert np.all(np.diff(r.eigenvalues) <= 0)
    assert not np.allclose(c.start.loadings.T @ c.start.loadings, np.diag(np.diag(gram)), atol=1e-2)
    assert np.all(d.loadings[np.argmax(np.abs(d.loadings), axis=0), range(K)] > 0) == np.all(
        np.asarray(c.start.loadings)[np.argmax(np.abs(c.start.loadings), axis=0), range(K)] > 0
    )


# What it starts from ----------------------------------------------------------------------------------------


@f64
def test_any_result_or_model_is_a_start_with_its_own_beta_and_dispersion():
    c = case("gamma")
    start = fit(c.x, Gamma(), K, beta=0.5, dispersion=0.4, expand_at="null")
    model = AffineModel(Affine(start.loadings, start.intercept), Objective(Gamma(), 0.5, 0.4))
    first = refine(start, c.x, tolerance=1e-7)
    assert (float(first.beta), float(first.dispersion)) == (0.5, 0.4)
    for other in (start.model, model, first):
        again = refine(other, c.x, tolerance=1e-7)
        np.testing.assert_allclose(again.elbo, first.elbo, atol=1e-5)
        assert not again.dispersion_estimated
    np.testing.assert_allclose(first.elbo, c.elbo(first), rtol=1e-9)
    assert abs(float(refine(model.with_beta(1.0), c.x).elbo) - float(first.elbo)) > 0.1
    column = tighten(fit(case("bernoulli").x, Bernoulli(), K), case("bernoulli").x)
    assert refine(column, case("bernoulli").x, tolerance=1e-4).elbo > column.elbo


@f64
@pytest.mark.parametrize("kind", ["gaussian", "gamma", "poisson"])
def test_no_latent_unit_is_the_glm(kind):
    c = case(kind)
    start = fit(c.x, c.family, 0, dispersion=None if kind == "gaussian" else c.start.dispersion)
    r = refine(start, c.x)
    assert r.loadings.shape == (D, 0)
    assert r.posterior.mean.shape == (N, 0)
    assert r.posterior.covariance.shape[1:] == (0, 0)
    np.testing.assert_allclose(r.elbo, c.null(r.dispersion), rtol=1e-9)
    assert best_posterior(r, c.x[:3]).mean.shape == (3, 0)
    assert r.elbo < refine(c.start, c.x).elbo - 0.01
    assert r.converged
    assert "0 latent units" in repr(r)


# The dispersion ---------------------------------------------------------------------------------------------


@f64
def test_a_free_dispersion_is_part_of_the_optimum():
    """With entries hidden the Gaussian's is not that of filled data; Gamma's has no closed form anywhere."""
    rng = np.random.default_rng(0)
    for kind, phi in (("gaussian", 3.0), ("gamma", 1.7)):
        c = case(kind)
        hidden = rng.random(c.x.shape) < 0.2
        rows = Rows(c.x, missing=hidden)
        start = fit(c.x, c.family, K, dispersion=phi, expand_at="null")
        held = refine(start, rows, tolerance=1e-9, max_rounds=500)
        assert float(held.dispersion) == phi
        assert not held.dispersion_estimated
        free = refine(start, rows, dispersion="estimate", tolerance=1e-11, max_rounds=1000)
        assert free.dispersion_estimated
        assert free.elbo > held.elbo + 0.1
        assert np.all(np.diff(free.history) >= 0)
        np.testing.assert_allclose(free.elbo, c.elbo(free, missing=hidden), rtol=1e-9)
        best = float(free.dispersion)
        for factor in (0.99, 1.01):
            moved = refine(free, rows, dispersion=factor * best, tolerance=1e-11, max_rounds=1000)
            assert float(moved.dispersion) == factor * best
            assert moved.elbo < free.elbo
        # and it goes on as it was: estimated
        assert refine(free, rows).dispersion_estimated


@f64
@pytest.mark.parametrize("held", [0.05, 1.0, 30.0])
def test_a_free_dispersion_moves_from_where_nothing_else_does(held):
    """A closed form at a phi that was given is stationary in all but phi."""
    c = case("gaussian")
    start = fit(c.x, c.family, K, dispersion=held)
    still = refine(start, c.x, tolerance=TIGHT)
    assert len(still.history) == 1  # control: at that phi there is nothing to gain
    free = refine(start, c.x, dispersion="estimate", tolerance=TIGHT, max_rounds=500)
    assert free.converged
    np.testing.assert_allclose(free.elbo, c.start.elbo_taylor, rtol=1e-8)
    np.testing.assert_allclose(free.dispersion, c.start.dispersion, rtol=1e-4)
    assert free.elbo > still.elbo + 0.01


@f64
def test_a_free_dispersion_starts_from_one_a_column_too():
    """It used to stay there, converged: to pool them at the same posteriors is a step down."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 4)) + rng.normal(size=(200, 4)) * np.sqrt([0.1, 1, 10, 0.5])
    start = fit(x, Gaussian(), 2, dispersion=np.array([0.4, 4.0, 40.0, 2.0]))
    wanted, free = fit(x, Gaussian(), 2), refine(start, x, dispersion="estimate", tolerance=1e-10, max_rounds=1000)
    assert free.dispersion_estimated
    np.testing.assert_allclose(free.elbo, wanted.elbo_taylor, rtol=1e-7)
    np.testing.assert_allclose(free.dispersion, wanted.dispersion, rtol=1e-3)


@f64
@pytest.mark.parametrize("family", [Gaussian(), Gamma()])
def test_of_data_without_noise_no_dispersion_is_estimated(family):
    """The one of the start used to come back, converged; the ELBO has no upper bound."""
    start = fit(np.full((40, 4), 3.0), family, 1, dispersion=0.5, expand_at="null")
    assert float(refine(start, np.full((40, 4), 3.0)).dispersion) == 0.5  # the control: given, there is an optimum
    with pytest.raises(ValueError, match="dispersion: nothing of x is left"):
        refine(start, np.full((40, 4), 3.0), dispersion="estimate")


@f64
def test_without_latent_units_the_dispersion_is_that_of_maximum_likelihood():
    c = case("gamma")
    for held in (0.05, 1.0, 30.0):
        r = refine(fit(c.x, c.family, 0, dispersion=held), c.x, dispersion="estimate", tolerance=TIGHT)
        assert r.converged
        rate = c.x / c.x.mean(axis=0)

        def loss(log_phi, rate=rate):
            return -scipy.stats.gamma.logpdf(rate, np.exp(-log_phi), scale=np.exp(log_phi)).mean()

        found = scipy.optimize.minimize_scalar(loss, bounds=(-5, 5), options={"xatol": 1e-9})
        np.testing.assert_allclose(r.dispersion, np.exp(found.x), rtol=1e-5)
        np.testing.assert_allclose(r.elbo, -D * found.fun - np.log(c.x.mean(axis=0)).sum(), rtol=1e-8)


@f64
def test_a_unit_that_wakes_in_the_last_round_has_not_converged():
    c = case("bernoulli")
    one = refine(fit(c.x, c.family, 1, expand_at="null"), c.x, tolerance=TIGHT)
    loadings = np.concatenate([one.loadings, np.zeros((D, 1))], axis=1)
    start = AffineModel(Affine(loadings, one.intercept), one.model.objective)
    best = refine(start, c.x, max_rounds=200)
    assert best.converged
    cut = refine(start, c.x, max_rounds=1)
    assert cut.elbo < best.elbo - 0.01
    assert not cut.converged


@f64
def test_whether_the_dispersion_is_estimated_goes_on_from_the_fit():
    c = case("gaussian")
    hidden = np.random.default_rng(0).random(c.x.shape) < 0.2
    assert c.start.dispersion_estimated
    r = refine(c.start, Rows(c.x, missing=hidden))
    assert r.dispersion_estimated
    assert abs(float(r.dispersion - c.start.dispersion)) > 1e-3
    assert not refine(c.start, c.x, dispersion=1.0).dispersion_estimated
    one_a_column = refine(c.start, c.x, dispersion=np.linspace(0.5, 1.5, D), tolerance=1e-8)
    np.testing.assert_allclose(one_a_column.elbo, c.elbo(one_a_column), rtol=1e-9)


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_the_progress_bar_counts_the_rounds(capfd):
    c = case("bernoulli")
    r = refine(c.start, c.x, max_rounds=2, progress=True)
    shown = capfd.readouterr().err
    assert "refine exact" in shown
    assert f"{len(r.history) - 1}/2" in shown


@pytest.mark.any_precision
def test_bad_arguments_are_named():
    c = case("bernoulli")
    poisson = case("poisson")
    mixed = fit(np.abs(c.x), Mixed([(Bernoulli(), [0, 1, 2]), (Poisson(), [3, 4])]), 1)

    def call(optimum=c.start, x=c.x, **options):
        return lambda: refine(optimum, x, **options)

    def best(model=c.start, x=c.x, **options):
        return lambda: best_posterior(model, x, **options)

    all_refused(
        [
            (call(method="rows"), ValueError, 'method: expected "exact" or "entry", got \'rows\''),
            (call(method="column"), ValueError, "method: .*tighten"),
            (call(tolerance=0.0), ValueError, "tolerance: expected a positive"),
            (call(tolerance="small"), TypeError, "tolerance: expected a number"),
            (call(max_rounds=0), ValueError, "max_rounds: expected an integer of at least 1"),
            (call(max_rounds=1.5), TypeError, "max_rounds: expected an integer"),
            (call(max_rounds=True), TypeError, "max_rounds: expected an integer"),
            (call(dispersion="guess"), ValueError, 'dispersion: expected "estimate", a positive number or None'),
            (call(dispersion="estimate"), ValueError, r"dispersion: Bernoulli\(\) cannot estimate one, give a value"),
            (call(optimum=mixed, dispersion="estimate"), ValueError, "dispersion: Mixed.* cannot estimate one"),
            (call(dispersion=-1.0), ValueError, "dispersion: expected a positive"),
            (call(optimum=None), TypeError, "optimum: expected an AffineModel or a result"),
            (call(optimum=c.start.loadings), TypeError, "optimum: expected an AffineModel or a result"),
            (call(optimum=c.x, x=c.start), TypeError, "optimum: expected an AffineModel or a result"),
            (call(x=np.ones((N, D + 1))), ValueError, r"x: expected 5 columns, got 6 \(shape \(60, 6\)\)"),
            (call(x=np.full((N, D), np.nan)), ValueError, r"x: expected .*got nan at \[0, 0\]"),
            (call(x=np.full((N, D), 2.0)), ValueError, r"x: expected values in the support \[0, 1\]"),
            (call(x=Rows(c.x, weight=np.full(N, 1e-320))), ValueError, "weight: expected a sum that float.. can hold"),
            (call(x=Rows(c.x, missing=np.arange(D)[None] == 2)), ValueError, r"missing: .*got none at \[2\]"),
            (call(x=Rows(c.x, trials=np.ones((N, D)))), ValueError, r"trials: Bernoulli\(\) takes none"),
            (call(optimum=poisson.start, x=poisson.x, method="entry"), TypeError, r"family: .*Poisson\(\)"),
            (call(optimum=mixed, method="entry"), TypeError, r"family: .*column 3 is Poisson\(\)"),
            (call(x=moments(c.x)), TypeError, "x: expected rows, got Moments, which `tighten` takes"),
            (best(max_steps=0), ValueError, "max_steps: expected an integer of at least 1"),
            (best(tolerance=-1.0), ValueError, "tolerance: expected a positive"),
            (best(x=c.x[:, :3]), ValueError, "x: expected 5 columns"),
            (best(model=None), TypeError, "model: expected an AffineModel or a result"),
            (best(x=-c.x - 1), ValueError, r"x: expected values in the support \[0, 1\]"),
        ]
    )


@f64
def test_a_start_of_dispersion_0_is_refused():
    flat = np.outer(np.arange(N), np.ones(D)) + np.arange(D)  # one dimension
    start = fit(flat, Gaussian(), K)
    with pytest.raises(ValueError, match=r"optimum: its dispersion is 0.*dispersion="):
        refine(start, flat)
    assert refine(start, flat, dispersion=0.1).elbo > -100
