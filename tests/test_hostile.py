"""What is asked for in bad faith, or at the edge of what a precision holds: a right number, or a word."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Moments,
    Objective,
    Posterior,
    Rows,
    activity_path,
    affine_posterior,
    best_posterior,
    bracket,
    diagnose,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    explained_variance,
    fit,
    gaussian_dispersion,
    moments,
    monitor,
    nets,
    optimal_posterior,
    posterior,
    refine,
    tighten,
)
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gaussian, NegativeBinomial, Poisson, Support

pytestmark = pytest.mark.any_precision

KEY = jax.random.key(0)
N, D = 30, 3
X = np.random.default_rng(0).integers(0, 2, size=(N, D)).astype("float32")


@pytest.fixture
def single():
    with jax.enable_x64(False):
        yield


# Masks ------------------------------------------------------------------------------------------------------


def test_a_mask_is_missing_entries_of_x_and_refused_elsewhere():
    def masked(shape):
        return np.ma.masked_array(np.ones(shape), mask=np.arange(np.prod(shape)).reshape(shape) == 1)

    assert Rows(np.ma.masked_array(X, mask=X > 0)).missing.sum() == (X > 0).sum()
    assert Rows(X, offset=np.ma.masked_array(X)).missing is None  # nothing is masked
    model = AffineModel(Affine(np.ones((D, 1)), np.zeros(D)), Bernoulli())
    all_refused(
        (call, TypeError, f"^{name}: .* masked")
        for name, call in {
            "offset": lambda: Rows(X, offset=masked((N, D))),
            "trials": lambda: Rows(X, trials=masked((N, D))),
            "covariates": lambda: Rows(X, covariates=masked((N, 2))),
            "weight": lambda: Rows(X, weight=masked(N)),
            "loadings": lambda: Affine(masked((D, 1)), np.zeros(D)),
            "dispersion": lambda: fit(X, Gaussian(), 1, dispersion=masked(D)),
            "beta": lambda: model.with_beta(np.ma.masked),
            "betas": lambda: activity_path(X, Bernoulli(), masked(3), 1),
            "expand_at": lambda: fit(X, Bernoulli(), 1, expand_at=masked(D)),
            "posterior.mean": lambda: elbo_exact(model, X, Posterior(masked((N, 1)), np.ones((1, 1, 1)))),
            "size": lambda: NegativeBinomial(masked(D)),
            "eigenvalues": lambda: gaussian_dispersion(masked(3), 1),
        }.items()
    )


# Precision --------------------------------------------------------------------------------------------------


def test_numbers_are_looked_at_in_the_precision_in_use(single):
    column = np.ones((N, 1))
    all_refused(
        [
            (lambda: NegativeBinomial(1e-46), ValueError, "^size: .*float32"),
            (lambda: NegativeBinomial([1.0, 1e39]), ValueError, r"^size: .*float32 .* got 1e\+39 at \[1\]"),
            (lambda: Binomial(1e39), ValueError, "^trials: .*float32"),
            (lambda: Bernoulli(activation_scale=1e-46), ValueError, "^activation_scale: .*float32"),
            (lambda: Poisson(activation_scale=-1e39), ValueError, "^activation_scale: .*float32"),
            (lambda: Rows(X, offset=1e39 * column), ValueError, r"^offset: .*float32 can hold, got 1e\+39 at \[0, 0\]"),
            (lambda: Rows(X, covariates=1e39 * column), ValueError, "^covariates: .*float32"),
            (lambda: Rows(X, weight=np.full(N, 1e39)), ValueError, "^weight: .*float32"),
        ]
    )
    assert NegativeBinomial(1e30).size == 1e30
    with jax.enable_x64(True):
        assert NegativeBinomial(1e39).size == 1e39
        Rows(X, offset=1e39 * column)


@pytest.mark.parametrize("levels", [(0.0, 1000.0), (-3000.0, 1000.0)])
def test_narrow_tables_of_few_levels_keep_what_is_beside_their_largest_direction(single, levels):
    """Products of rows that are alike round alike: in single precision, at 5000 beside 0.25, that was 5 percent."""
    rng = np.random.default_rng(0)
    x = levels[1] + 0.5 * rng.normal(size=(40_000, 2))
    x[:10_000] += levels[0] - levels[1]
    x = x.astype("float32")
    # what is left is the rounding of the covariance itself, half a unit an entry
    values = np.linalg.eigvalsh(np.cov(x.astype(float), rowvar=False, bias=True))
    error = float(moments(x).covariance.astype(float)[0, 0]) / np.cov(x[:, 0].astype(float), bias=True) - 1
    assert abs(error) < 2 * np.finfo(np.float32).eps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(fit(x, Gaussian(), 1).dispersion, values[0], atol=2e-7 * values[1])


def beside(strength, noise=1.0):
    """Three columns that one factor moves together, and noise beside."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 1)) * np.array([5.0, 3.0, 1.0]) * strength + noise * rng.normal(size=(500, 3))
    return x.astype("float32")


def test_a_dispersion_that_rounding_decides_is_said_to_be_one(single):
    for strength in (1, 10, 100, 200, 300, 1000, 1e4):
        x = beside(strength)
        truth = np.linalg.eigvalsh(np.cov(x.astype(float), rowvar=False, bias=True))[:2].mean()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            off = abs(float(fit(x, Gaussian(), 1).dispersion) / truth - 1)
        told = [str(w.message) for w in caught if "fit: the dispersion" in str(w.message)]
        assert bool(told) or off < 0.05, (strength, off)
        assert not told or strength > 100  # not where all is well
    assert "0, may not be 0" in told[0]
    with warnings.catch_warnings(), jax.enable_x64(True):  # control: double precision tells
        warnings.simplefilter("error")
        np.testing.assert_allclose(fit(x.astype(float), Gaussian(), 1).dispersion, truth, rtol=1e-6)


FAR = 1e8 + 0.3 * np.random.default_rng(0).normal(size=(40, D))


def test_digits_that_a_row_loses_are_told(single):
    """float64 data far from 0, in single precision: `moments` centre them first, what looks at rows cannot."""
    gaussian = Objective(Gaussian(), dispersion=0.1)
    model = AffineModel(Affine(np.full((D, 1), 0.1), FAR.mean(axis=0)), gaussian)
    q = Posterior(np.zeros((40, 1)), np.ones((1, 1, 1)))
    vae = nets.canonical(KEY, D, 1, gaussian, encoder_widths=(4,))
    for name, call in {
        "elbo_exact": lambda x: elbo_exact(model, x, q),
        "elbo_quadratic": lambda x: elbo_quadratic(model, x, q),
        "elbo_taylor": lambda x: elbo_taylor(model.decoder, x, q, gaussian),
        "elbo_monte_carlo": lambda x: elbo_monte_carlo(KEY, model.decoder, x, q, gaussian, num_samples=2),
        "bracket": lambda x: bracket(model, x, q),
        "best_posterior": lambda x: best_posterior(model, x),
        "affine_posterior": lambda x: affine_posterior(model, x),
        "refine": lambda x: refine(model, x, max_rounds=1),
        "in batches": lambda x: refine(model, lambda: [x[:20], x[20:]], max_rounds=1),
        "monitor.evaluate": lambda x: monitor.evaluate(KEY, vae, x),
    }.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(FAR)
        assert any("column 0 loses its digits in float32" in str(w.message) for w in caught), name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(FAR - FAR.mean(axis=0))
            call(np.round(1e6 * (FAR - 1e8)))  # counts far from 0 that float32 holds


# Under a transformation -------------------------------------------------------------------------------------


def test_what_is_wrong_is_nan_under_jit_and_never_a_limit(single):
    x = np.random.default_rng(1).normal(size=(N, D)).astype("float32")

    def dispersion_and_elbo(x):
        o = fit(x, Gaussian(), 1)
        return o.dispersion, o.elbo_taylor, o.loadings

    wrong = x.copy()
    wrong[4, 1] = np.nan
    for bad in (wrong, 1e-22 * x):  # eagerly: refused
        for value in jax.jit(dispersion_and_elbo)(bad):
            assert np.isnan(value).any()
    assert all(np.isfinite(value).all() for value in jax.jit(dispersion_and_elbo)(1e-3 * x))
    weighted = jax.jit(lambda w: fit(Rows(X, weight=w), Bernoulli(), 1).elbo_taylor)
    assert np.isnan(weighted(np.zeros(N, "float32")))
    assert np.isfinite(weighted(np.ones(N, "float32")))
    path = jax.jit(lambda betas: activity_path(X, Bernoulli(), betas, 1))(jnp.array([-1.0, 0.5]))
    assert np.isnan(path[0]).all()
    assert np.isfinite(path[1]).all()


def test_functions_for_the_host_say_so_at_once():
    optimum = fit(X, Bernoulli(), 1)
    stack = X[None]
    all_refused(
        (call, TypeError, f"^x: {name} runs on the host")
        for name, call in [
            ("refine", lambda: jax.jit(lambda x: refine(optimum, x).elbo)(X)),
            ("refine", lambda: jax.vmap(lambda x: refine(optimum, x).elbo)(stack)),
            ("refine", lambda: jax.grad(lambda x: refine(optimum, x).elbo)(X)),
            ("refine", lambda: jax.jit(lambda o: refine(optimum, Rows(X, offset=o)).elbo)(X)),
            ("tighten", lambda: jax.jit(lambda x: tighten(optimum, x).elbo)(X)),
            ("diagnose", lambda: jax.jit(lambda x: diagnose(x, Bernoulli(), 1).collapse_onset)(X)),
        ]
    )


# A dispersion of 0 ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:fit. the dispersion, 0, may not be 0")
def test_no_function_scores_an_optimum_without_density():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)) @ rng.normal(size=(2, D))
    perfect = fit(x, Gaussian(), 2)
    assert float(perfect.dispersion) == 0
    q, objective, decoder = posterior(perfect, x), perfect.model.objective, perfect.decoder
    all_refused(
        (call, ValueError, "its dispersion is 0")
        for call in [
            lambda: elbo_exact(perfect, x, q),
            lambda: elbo_quadratic(perfect, x, q),
            lambda: elbo_profile(perfect, moments(x)),
            lambda: bracket(perfect, x, q),
            lambda: affine_posterior(perfect, x),
            lambda: best_posterior(perfect, x),
            lambda: refine(perfect, x),
            lambda: tighten(perfect, x),
            lambda: explained_variance(perfect),
            lambda: monitor.reference(perfect, x),
            lambda: elbo_taylor(decoder, x, q, objective),
            lambda: elbo_monte_carlo(KEY, decoder, x, q, objective, num_samples=2),
            lambda: optimal_posterior(decoder, x, objective, z0=np.zeros(2)),
        ]
    )
    given = perfect.model.with_dispersion(0.1)
    assert np.isfinite(elbo_exact(given, x, best_posterior(given, x))).all()


# What is made -----------------------------------------------------------------------------------------------


def test_moments_and_limits_that_nothing_has():
    over = Moments(50.0, np.full(2, 0.5), np.array([[0.2, 0.21], [0.21, 0.2]]))
    all_refused(
        [
            (
                lambda: fit(over, Bernoulli(), 1),
                ValueError,
                r"^x.covariance: .*correlation beyond 1, got one at \[0, 1\]",
            ),
            (lambda: CustomFamily(jnp.exp, limits=3), TypeError, "^limits: expected a Support"),
            (lambda: CustomFamily(jnp.exp, limits=(0.0, 1.0)), TypeError, "^limits: expected a Support"),
            (lambda: CustomFamily(jnp.exp, limits=Support(1.0, 0.0)), ValueError, "^limits: .*below the upper"),
        ]
    )
    tiny = Moments(50.0, np.zeros(2), np.full((2, 2), 1e-30, "float32"))  # of which products underflow
    fit(tiny, Gaussian(), 1, dispersion=1.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_of_a_process_that_has_computed_says_so():
    """JAX would wait for ever in it; before the first computation nothing is in the way."""
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from glmvae import fit
from glmvae.families import Gaussian
x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
if sys.argv[1] == "after":
    fit(x, Gaussian(), 1)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    fit(x, Gaussian(), 1)
except RuntimeError as error:
    os._exit(7 if "forked" in str(error) and "spawn" in str(error) else 1)
os._exit(0)
"""
    codes = [
        subprocess.run([sys.executable, "-c", program, when], timeout=120).returncode for when in ("after", "before")
    ]
    assert codes == [7, 0]
