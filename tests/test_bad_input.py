"""Bad input gives an error that names the argument; precision and flags stay the caller's.

One table by argument; one test a function, which runs the table of every argument that it has.
"""

import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glmvae
from glmvae import Affine, AffineModel, Moments, Objective, Posterior, Rows, families
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gamma, Gaussian, NegativeBinomial, Poisson

# Errors are the same in both precisions; test_the_precision_of_the_data_is_that_of_the_result tries both itself.
pytestmark = pytest.mark.any_precision

N, D, K = 4, 3, 2
X = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
W = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]], np.float32)
B = np.zeros(D, np.float32)
DATA = glmvae.moments(X, family=Bernoulli())
OPTIMUM = glmvae.fit(DATA, Bernoulli(), K)
MODEL = AffineModel(Affine(W, B), Bernoulli())
Q = Posterior(jnp.zeros((N, K), jnp.float32), jnp.eye(K, dtype=jnp.float32)[None])
SPECTRUM = glmvae.spectrum(DATA, Bernoulli())
KEY = jax.random.key(0)
FILE = pathlib.Path(tempfile.mkdtemp()) / "model"
glmvae.save(FILE, OPTIMUM)

# Every public function, with arguments it accepts.
GOOD = {
    "activity": dict(optimum=OPTIMUM),
    "activity_path": dict(x=DATA, family=Bernoulli(), betas=np.array([0.5, 1.0], np.float32), latent_dim=K),
    "affine_posterior": dict(model=MODEL, x=X),
    "best_posterior": dict(model=MODEL, x=X),
    "beta_for_active_units": dict(x=DATA, family=Bernoulli(), units=1),
    "bracket": dict(model=MODEL, x=X, posterior=Q),
    "collapse_onset": dict(x=DATA, family=Bernoulli()),
    "diagnose": dict(x=X, family=Bernoulli(), latent_dim=K),
    "elbo_exact": dict(model=MODEL, x=X, posterior=Q),
    "elbo_monte_carlo": dict(key=KEY, decoder=MODEL.decoder, x=X, posterior=Q, objective=Bernoulli(), num_samples=3),
    "elbo_profile": dict(model=MODEL, moments=DATA),
    "elbo_quadratic": dict(model=MODEL, x=X, posterior=Q),
    "elbo_taylor": dict(decoder=MODEL.decoder, x=X, posterior=Q, objective=Bernoulli()),
    "expand": dict(x=X, family=Bernoulli()),
    "expected_remainder_bounds": dict(family=Bernoulli(), mean=X, variance=X),
    "fit": dict(x=X, family=Bernoulli(), latent_dim=K),
    "gaussian_dispersion": dict(eigenvalues=np.array([3.0, 1.0, 0.5], np.float32), latent_dim=K),
    "kl_divergence": dict(posterior=Q),
    "effective_sample_size": dict(key=KEY, model=MODEL, x=X, num_samples=200),
    "load": dict(path=FILE),
    "log_likelihood": dict(key=KEY, model=MODEL, x=X, num_samples=200),
    "loss_convention": dict(reconstruction="bce"),
    "merge": dict(a=DATA, b=DATA),
    "moments": dict(x=X, family=Bernoulli()),
    "optimal_posterior": dict(decoder=MODEL.decoder, x=X, objective=Bernoulli(), z0=np.zeros(K, np.float32)),
    "optimum_at": dict(spectrum=SPECTRUM, latent_dim=K),
    "posterior": dict(optimum=OPTIMUM, x=X),
    "rate_distortion": dict(x=DATA, family=Bernoulli(), latent_dim=K, betas=np.array([0.5, 1.0], np.float32)),
    "refine": dict(optimum=OPTIMUM, x=X),
    "remainder_bounds": dict(family=Bernoulli(), eta=X),
    "rotate": dict(optimum=OPTIMUM),
    "save": dict(path=FILE, optimum=OPTIMUM),
    "select": dict(x=X, family=Bernoulli(), latent_dims=[0, 1], folds=2),
    "spectrum": dict(moments=DATA, family=Bernoulli()),
    "tighten": dict(optimum=OPTIMUM, x=X),
    "varimax": dict(optimum=OPTIMUM),
    "explained_variance": dict(model=MODEL, x=X),
}
GOOD = {name: arguments for name, arguments in GOOD.items() if hasattr(glmvae, name)}


def call(function, **changed):
    return getattr(glmvae, function)(**{**GOOD[function], **changed})


def changed(array, index, value):
    array = np.array(array, np.float32)
    array[index] = value
    return array


# By argument: a value, and what the message says besides the argument's name, a pattern.
NOT_AN_ARRAY = [
    (None, ""),
    ("abc", ""),
    (np.array([["a", "b", "c"]]), "numbers"),
    ([[{}, 1.0, 2.0]], "numbers"),
    ([[0.0, 1.0, 1.0], [1.0, 0.0]], "unequal length"),
    (Bernoulli(), "got Bernoulli$"),
    (Q, "got Posterior$"),
    (X.astype(complex), "complex"),
]
DATA_TABLE = [
    *NOT_AN_ARRAY,
    (changed(X, (2, 1), np.nan), r"nan at \[2, 1\]"),
    (changed(X, (1, 0), np.inf), r"inf at \[1, 0\]"),
    (changed(X, (3, 2), 2.0), r"support \[0, 1\] of Bernoulli\(\), got 2 at \[3, 2\]"),
    (changed(X, (0, 1), -0.5), r"got -0.5 at \[0, 1\]"),
    (X[0], r"expected 2 dimensions .*\(3,\)"),
    (X[None], r"expected 2 dimensions .*\(1, 4, 3\)"),
    (X[:0], r"expected at least one row .*\(0, 3\)"),
    (X[:, :0], r"expected at least one .*column.*\(4, 0\)"),
]
NUMBER_TABLE = [
    (0.0, ""),
    (-1.0, "got -1"),
    (np.nan, ""),
    (np.inf, ""),
    ("1", "number"),
    (1j, ""),
    (np.ones((2, 2)), ""),
]
POSTERIOR_TABLE = [
    (None, "NoneType"),
    (Q.mean, "Posterior"),
    (Q._replace(covariance=Q.covariance[0]), r"covariance\[None\]"),
    (Q._replace(mean=Q.mean[0]), "posterior.mean"),
    (Q._replace(mean=Q.mean.at[1, 0].set(jnp.nan)), r"posterior.mean: .*\[1, 0\]"),
    (Q._replace(covariance=jnp.ones((1, K, K + 1))), "posterior.covariance"),
]
EXPAND_TABLE = [("one", '"zero", "null"'), (np.zeros(D + 1), "shape"), (np.nan, ""), (None, "")]
TABLES = {
    "x": DATA_TABLE,
    "model": [(None, "NoneType"), (W, ""), (MODEL.decoder, "Affine"), (Bernoulli(), "Bernoulli")],
    "optimum": [(None, "NoneType"), (W, ""), (Bernoulli(), "")],
    "posterior": POSTERIOR_TABLE,
    "family": [(None, ""), ("bernoulli", ""), (Bernoulli, "class Bernoulli"), (Objective(Bernoulli()), "")],
    "objective": [(None, ""), (Bernoulli, "class Bernoulli"), (W, "")],
    "decoder": [(None, ""), (W, ""), ("decoder", "")],
    "moments": [(None, ""), (DATA._replace(mean=np.array([1.0, np.nan, 0.0])), "mean")],
    "spectrum": [(None, ""), (DATA, "")],
    "a": [(None, "Moments"), (X, "Moments")],
    "b": [(None, "Moments"), (glmvae.moments(X[:, :2]), "columns")],
    "beta": [*NUMBER_TABLE, (1e-46, ""), (1e39, ""), (np.ones(2), "scalar")],
    "dispersion": [*NUMBER_TABLE, (np.ones(D + 1), ""), (1e-46, "")],
    "latent_dim": [(-1, ""), (D + 1, ""), (1.5, "integer"), ("2", "integer"), (True, "integer"), (None, "integer")],
    "units": [(-1, ""), (D + 1, ""), (1.5, "integer"), ("2", "integer")],
    "expand_at": EXPAND_TABLE,
    "key": [(0, ""), ("key", "")],
    "num_samples": [(0, "at least 1"), (1.5, "integer"), ("3", "integer")],
    "z0": [(np.zeros(K + 1), "shape"), (changed(np.zeros(K), 1, np.nan), r"nan at \[1\]"), ("z", "")],
    "betas": [(1.0, ""), (np.ones((2, 2)), ""), ([1.0, 0.0], r"got 0 at \[1\]"), ([1.0, np.nan], ""), ("a", "")],
    "eigenvalues": [(np.ones((2, 2)), "vector"), ([1.0, 2.0], "descending"), ([1.0, -1.0], "below 0"), ("a", "")],
    "eta": [*NOT_AN_ARRAY, (np.nan, "")],
    "mean": [*NOT_AN_ARRAY, (np.nan, "")],
    "variance": [*NOT_AN_ARRAY, (-1.0, "")],
    "tolerance": NUMBER_TABLE,
    "max_rounds": [(0, "at least 1"), (1.5, "integer"), ("3", "integer"), (True, "integer")],
    "max_steps": [(0, "at least 1"), (1.5, "integer"), ("3", "integer")],
    "method": [("columns", '"exact"'), (None, ""), ("column", "tighten")],
    "path": [(None, "NoneType"), (3, "path")],
    "latent_dims": [(3, "list"), ("3", "list"), ([], "at least one"), ([D + 1], ""), ([1, -1], ""), ([1.5], "integer")],
    "holdout": [("columns", '"rows"'), (None, "")],
    "folds": [(1, "at least 2"), (N + 1, "4 rows"), (2.5, "integer")],
    "metric": [("deviance", '"elbo"'), (1, "")],
    "seed": [(-1, ""), (0.5, "integer"), ("a", "integer")],
    "reconstruction": [("l2", ""), (None, "")],
    "reduction": [("max", ""), (None, "")],
    "kl_reduction": [("max", ""), (None, "")],
    "kl_weight": NUMBER_TABLE,
    "reconstruction_weight": NUMBER_TABLE,
}
# What an argument means elsewhere.
SPECIAL = {
    ("posterior", "model"): None,
    ("elbo_taylor", "z0"): [case for case in TABLES["z0"]],
    ("moments", "family"): [case for case in TABLES["family"] if case[0] is not None],
    ("loss_convention", "family"): None,
    ("loss_convention", "latent_dim"): None,
    ("loss_convention", "dispersion"): None,
    ("log_likelihood", "model"): [(None, ""), (W, ""), (Bernoulli(), "")],
    ("effective_sample_size", "model"): [(None, ""), (W, ""), (Bernoulli(), "")],
    ("effective_sample_size", "objective"): None,
    ("effective_sample_size", "posterior"): None,
    ("log_likelihood", "objective"): None,
    ("log_likelihood", "posterior"): None,
    ("optimum_at", "dispersion"): [(1.0, "the spectrum has its own")],
    ("remainder_bounds", "x"): None,
    ("remainder_bounds", "expand_at"): [("one", "numbers"), (np.nan, "")],
    ("remainder_bounds", "dispersion"): NUMBER_TABLE[:6],
    ("expected_remainder_bounds", "x"): None,
    ("expected_remainder_bounds", "expand_at"): [("one", "numbers"), (np.nan, "")],
    ("expected_remainder_bounds", "dispersion"): NUMBER_TABLE[:6],
    ("beta_for_active_units", "latent_dim"): [case for case in TABLES["latent_dim"] if case[0] is not None],
    ("diagnose", "units"): TABLES["units"],
    ("diagnose", "refine"): [("best", "")],
    ("tighten", "x"): [case for case in DATA_TABLE],
    ("load", "family"): [("bernoulli", ""), (Bernoulli, "class Bernoulli"), (Poisson(), "expected that of")],
    ("explained_variance", "x"): [case for case in DATA_TABLE if case[0] is not None],
    ("select", "method"): [("best", "closed-form"), (None, "")],
}


def cases_of(function):
    for argument in inspect.signature(getattr(glmvae, function)).parameters:
        table = SPECIAL.get((function, argument), TABLES.get(argument))
        for value, message in table or ():
            yield argument, value, message


def refusal(function, argument, value, message):
    """Empty if the call is refused with a message that begins with the argument's name; else what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(function, **{argument: value})
    except (TypeError, ValueError) as error:
        text = str(error)
        named = re.match(rf"{argument}\b", text) or (argument in ("x", "moments") and re.match(r"(x|moments)\b", text))
        return "" if named and re.search(message, text) else f"{type(error).__name__}: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("function", GOOD)
def test_every_bad_argument_is_named(function):
    found = {f"{a}={v!r:.60}": refusal(function, a, v, m) for a, v, m in cases_of(function)}
    wrong = [f"{case}: {what}" for case, what in found.items() if what]
    assert found
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("function", GOOD)
def test_the_good_arguments_are_good(function):
    leaves = [leaf for leaf in jax.tree.leaves(call(function)) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    assert leaves or function == "save"
    assert not any(bool(jnp.any(jnp.isnan(leaf))) for leaf in leaves)


def test_every_public_function_is_here():
    public = {name for name, value in vars(glmvae).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public <= set(GOOD)


# What is made ----------------------------------------------------------------------------------------------

MADE = [
    (lambda: Objective(None), "family"),
    (lambda: Objective(Bernoulli), "family: .*class Bernoulli"),
    (lambda: Objective(Gaussian()), r"dispersion: Gaussian\(\) .*Objective\(Gaussian\(\), dispersion="),
    (lambda: Objective(Gamma()), "dispersion"),
    (lambda: Objective(Bernoulli(), beta=0.0), "beta"),
    (lambda: Objective(Bernoulli(), beta=[1.0, 2.0]), "beta"),
    (lambda: Objective(Gaussian(), dispersion=-1.0), "dispersion"),
    (lambda: Objective(Bernoulli()).with_beta(-2.0), "beta"),
    (lambda: MODEL.with_beta(np.nan), "beta"),
    (lambda: MODEL.with_dispersion("1"), "dispersion"),
    (lambda: Affine(W[0], B), "loadings"),
    (lambda: Affine(W, B[:2]), "intercept"),
    (lambda: Affine(changed(W, (1, 1), np.nan), B), r"loadings: .*\[1, 1\]"),
    (lambda: Affine(W, B, np.ones((2, D + 1))), "coefficients"),
    (lambda: AffineModel(W, Bernoulli()), "decoder"),
    (lambda: AffineModel(Affine(W, B), None), "objective"),
    (lambda: AffineModel(Affine(W, B), Binomial([1.0, 2.0])), "columns"),
    (lambda: Rows(X, offset=np.zeros(D)), r"offset: .*offset\[None\]"),
    (lambda: Rows(X, offset=np.full(N, np.inf)), "offset"),
    (lambda: Rows(X, trials=np.ones((N + 1, D))), "trials"),
    (lambda: Rows(X, trials=-np.ones((N, D))), "trials"),
    (lambda: Rows(X, covariates=np.ones(N)), "covariates"),
    (lambda: Rows(X, covariates=np.full((N, 1), np.nan)), "covariates"),
    (lambda: Rows(X, missing=X), "missing: expected an array of booleans"),
    (lambda: Rows(X, missing=X[:2] > 0), "missing"),
    (lambda: Rows(X, weight=np.ones(N - 1)), "weight"),
    (lambda: Rows(X, weight=-np.ones(N)), "weight"),
    (lambda: Rows(X, weight=np.zeros(N)), "weight"),
    (lambda: Binomial(0.5), "trials"),
    (lambda: Binomial(np.ones((N, D))), r"trials: .*Rows\(x, trials="),
    (lambda: Binomial("3"), "trials"),
    (lambda: NegativeBinomial(0.0), "size"),
    (lambda: Bernoulli(activation_scale=0.0), "activation_scale"),
    (lambda: CustomFamily(1.0), "normalizer"),
    (lambda: families.Mixed(Bernoulli()), "members"),
    (lambda: families.Mixed([(Bernoulli(), [0]), (Poisson(), [2])]), "members"),
]


def test_what_is_made_is_checked():
    wrong = []
    for i, (make, message) in enumerate(MADE):
        try:
            made = make()
        except (TypeError, ValueError) as error:
            if not re.match(message, str(error)) and not re.search(message, str(error)):
                wrong.append(f"{i}: {message}: {error}")
        else:
            wrong.append(f"{i}: {message}: made {made!r}")
    assert not wrong, "\n".join(wrong)


# Rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 999, 1000, 2345])
def test_the_first_bad_entry_of_many_rows_is_found(row):
    good = np.zeros((2346, 2), np.float32)
    cases = [
        (Bernoulli(), np.nan, "expected finite numbers, got nan"),
        (Bernoulli(), 2.0, "expected values in the support .* got 2"),
        (families.Mixed([(Gaussian(), [0]), (Poisson(), [1])]), -1.0, "got -1"),
    ]
    for family, value, message in cases:
        glmvae.moments(good, family=family)
        with pytest.raises(ValueError, match=message + re.escape(f" at [{row}, 1]")):
            glmvae.moments(changed(good, (row, 1), value), family=family)
    trials = np.full(good.shape, 3, np.float32)
    message = f"[0, 2] of Binomial(trials=None), the entry having 2 trials, got 3 at [{row}, 1]"
    with pytest.raises(ValueError, match=re.escape(message)):  # one trial fewer in that entry alone
        glmvae.moments(Rows(good + 3, trials=changed(trials, (row, 1), 2.0)), family=Binomial(None))


def test_grey_values_are_not_out_of_the_support():
    assert np.isfinite(glmvae.fit(0.25 + 0.5 * X, Bernoulli(), 1).elbo_taylor)


def test_batches_are_named():
    good = [X, X, X]
    assert float(glmvae.moments(iter(good)).count) == 12
    for bad, message in (
        ([X, X[:, :2]], "2 in batch 1"),
        ([X, X[0]], "in batch 1"),
        ([X, X, changed(X, (1, 2), np.nan)], r"nan at \[9, 2\]"),
        ([], "at least one batch"),
    ):
        with pytest.raises(ValueError, match=message):
            glmvae.moments(iter(bad))
    with pytest.raises(ValueError, match=r"iter\(list\)"):
        glmvae.moments(good)
    with pytest.raises(ValueError, match=r"several passes|many times"):
        glmvae.refine(OPTIMUM, iter(good))


# Precision and flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_precision_of_the_data_is_that_of_the_result(precision):
    with jax.enable_x64(True):
        x = X.astype(precision)
        model = AffineModel(Affine(W.astype(precision), B.astype(precision)), Bernoulli())
        q = Posterior(jnp.zeros((N, K), precision), jnp.eye(K, dtype=precision)[None])
        results = {
            "moments": glmvae.moments(x, family=Bernoulli()).covariance,
            "fit": glmvae.fit(x, Bernoulli(), K).loadings,
            "posterior": glmvae.posterior(glmvae.fit(x, Bernoulli(), K), x).mean,
            "elbo_exact": glmvae.elbo_exact(model, x, q),
            "elbo_quadratic": glmvae.elbo_quadratic(model, x, q),
            "bracket": glmvae.bracket(model, x, q)[0],
            "affine_posterior": glmvae.affine_posterior(model, x).mean,
            "elbo_taylor": glmvae.elbo_taylor(model.decoder, x, q, Bernoulli()),
            "elbo_monte_carlo": glmvae.elbo_monte_carlo(KEY, model.decoder, x, q, Bernoulli(), num_samples=2)[0],
            "best_posterior": glmvae.best_posterior(model, x).covariance,
            "refine": glmvae.refine(model, x).loadings,
            "tighten": glmvae.tighten(glmvae.fit(x, Bernoulli(), K), x).loadings,
        }
    assert {name: value.dtype.name for name, value in results.items()} == dict.fromkeys(results, precision)


FLAGS = """
import jax
def flags():
    names = ("jax_enable_x64", "jax_debug_nans", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
    return {name: getattr(jax.config, name) for name in names}
before = flags()
import glmvae, numpy as np
from glmvae.families import Bernoulli
x = np.random.default_rng(0).integers(0, 2, (20, 3)).astype("float32")
glmvae.elbo_exact(glmvae.fit(x, Bernoulli(), 1), x, glmvae.posterior(glmvae.fit(x, Bernoulli(), 1), x))
assert flags() == before, flags()
"""


def test_no_global_flag_is_touched():
    subprocess.run([sys.executable, "-c", FLAGS], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def test_hand_made_moments_are_looked_at():
    for bad, message in (
        (Moments(4.0, [0.5, 0.5], np.eye(3)), "covariance"),
        (DATA._replace(base_statistic=np.full(D, np.nan)), "base_statistic"),
        (DATA._replace(covariance=np.eye(2)), "covariance"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            glmvae.fit(bad, Bernoulli(), 1)
    with pytest.raises(ValueError, match="Bernoulli"):
        glmvae.fit(DATA, Poisson(), 1)  # the base statistic of another family
