"""Bad input gives an error that names the argument and the first bad entry; precision and flags stay the caller's."""

import inspect
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glmvae
from glmvae import Moments, Posterior, _checks, families
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gaussian, Poisson

N, D, K = 4, 3, 2
X = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
W = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]], np.float32)
B = np.zeros(D, np.float32)
DATA = glmvae.moments(X, family=Bernoulli())
OPTIMUM = glmvae.fit(DATA, Bernoulli(), K)
Q = Posterior(jnp.zeros((N, K)), jnp.eye(K))
KEY = jax.random.key(0)

# Errors are the same in both precisions; test_the_precision_of_the_data_is_that_of_the_result tries both itself.
pytestmark = pytest.mark.any_precision


def decoder(z):
    return jnp.asarray(W, z.dtype) @ z


# Every public function of the core, with arguments it accepts.
GOOD = {
    "affine_posterior": dict(loadings=W, intercept=B, x=X, family=Bernoulli()),
    "elbo_exact": dict(loadings=W, intercept=B, x=X, posterior=Q, family=Bernoulli()),
    "elbo_quadratic": dict(loadings=W, intercept=B, x=X, posterior=Q, family=Bernoulli()),
    "elbo_profile": dict(loadings=W, intercept=B, data=DATA, family=Bernoulli()),
    "elbo_taylor": dict(decoder=decoder, x=X, posterior=Q, family=Bernoulli()),
    "elbo_monte_carlo": dict(key=KEY, decoder=decoder, x=X, posterior=Q, family=Bernoulli(), num_samples=3),
    "optimal_posterior": dict(decoder=decoder, x=X, family=Bernoulli(), z0=np.zeros(K, np.float32)),
    "kl_divergence": dict(posterior=Q),
    "expand": dict(x=X, family=Bernoulli()),
    "remainder_bounds": dict(family=Bernoulli(), eta=X),
    "expected_remainder_bounds": dict(family=Bernoulli(), mean=X, variance=X),
    "moments": dict(x=X, family=Bernoulli()),
    "merge": dict(a=DATA, b=DATA),
    "fit": dict(x=X, family=Bernoulli(), latent_dim=K),
    "gaussian_dispersion": dict(eigenvalues=np.array([3.0, 1.0, 0.5], np.float32), latent_dim=K),
    "posterior": dict(optimum=OPTIMUM, x=X),
    "activity": dict(optimum=OPTIMUM),
    "activity_path": dict(moments=DATA, family=Bernoulli(), betas=np.array([0.5, 1.0], np.float32), latent_dim=K),
    "beta_for_active_units": dict(moments=DATA, family=Bernoulli(), units=1),
    "collapse_onset": dict(moments=DATA, family=Bernoulli()),
}
CORE = {f"glmvae.{module}" for module in ("elbo", "expansion", "moments", "optimum", "pruning")}


def call(function, **changed):
    return getattr(glmvae, function)(**{**GOOD[function], **changed})


def taking(argument):
    """The functions that have it."""
    return [f for f in GOOD if argument in inspect.signature(getattr(glmvae, f)).parameters]


def changed(array, index, value):
    array = np.array(array, np.float32)
    array[index] = value
    return array


@pytest.mark.parametrize("row", [0, 999, 1000, 1999, 2000, 2345])
def test_the_first_bad_entry_of_many_rows_is_found(row):
    good = np.zeros((2346, 2), np.float32)
    trials = np.full(good.shape, 3, np.float32)
    cases = [
        (Bernoulli(), np.nan, "expected finite numbers, got nan"),
        (Bernoulli(), 2.0, "expected values in the support .* got 2"),
        (families.Mixed([(Gaussian(), [0]), (Poisson(), [1])]), -1.0, "got -1"),
        (Binomial(trials), 4.0, "got 4"),
    ]
    for family, value, message in cases:
        _checks.rows_of(jnp.asarray(good), family)
        with pytest.raises(ValueError, match=message + re.escape(f" at [{row}, 1]")):
            _checks.rows_of(jnp.asarray(changed(good, (row, 1), value)), family)
    with pytest.raises(ValueError, match="got 3 at"):  # one trial fewer in that entry alone
        _checks.rows_of(jnp.asarray(good + 3), Binomial(changed(trials, (row, 1), 2.0)))


def test_data_are_looked_at_where_the_family_alone_is_traced():
    def check(x):
        jax.jit(lambda trials: Binomial(trials).validate(x))(3.0)

    check(jnp.array([[4.0]]))  # whether 4 is in the support is not known
    with pytest.raises(ValueError, match=re.escape("expected finite numbers, got nan at [0, 0]")):
        check(jnp.array([[jnp.nan]]))


def test_checks_need_no_memory_that_grows_with_the_rows():
    support = Bernoulli().support

    def temporaries(check, rows):
        return jax.jit(check).lower(jnp.zeros((rows, 50)), support).compile().memory_analysis().temp_size_in_bytes

    def by_sorting(x, support):  # negative control: it holds all of x once more
        return jnp.all(jnp.diff(jnp.sort(support.contains(x), axis=0)))

    few, many = 4_000, 40_000
    assert temporaries(_checks._holds, many) == temporaries(_checks._holds, few)
    assert temporaries(by_sorting, many) > temporaries(by_sorting, few) + (many - few) * 50


@pytest.mark.parametrize("function", GOOD)
def test_the_good_arguments_are_good(function):
    leaves = jax.tree.leaves(call(function))
    assert leaves
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)


# Data ------------------------------------------------------------------------------------------------------

BAD_DATA = {
    "NaN": (changed(X, (2, 1), np.nan), ValueError, r"^x: .*nan at \[2, 1\]"),
    "infinity": (changed(X, (1, 0), np.inf), ValueError, r"^x: .*inf at \[1, 0\]"),
    "rank 1": (X[0], ValueError, r"^x: expected 2 dimensions .*\(3,\)"),
    "rank 3": (X[None], ValueError, r"^x: expected 2 dimensions .*\(1, 4, 3\)"),
    "no rows": (X[:0], ValueError, r"^x: expected at least one row .*\(0, 3\)"),
    "no columns": (X[:, :0], ValueError, r"^x: expected at least one .*column.*\(4, 0\)"),
    "strings": (np.array([["a", "b", "c"]]), TypeError, "^x: expected an array of numbers"),
    "None": (None, TypeError, "^x: expected an array of numbers"),
    "objects": ([[{}, 1.0, 2.0]], TypeError, "^x: expected an array of numbers"),
    "ragged": ([[0.0, 1.0, 1.0], [1.0, 0.0]], TypeError, "^x: .*unequal length"),
    "complex": (X.astype(complex), TypeError, "^x: .*complex"),
}


@pytest.mark.parametrize("function", taking("x"))
@pytest.mark.parametrize("bad", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(function, bad):
    value, error, match = bad
    with pytest.raises(error, match=match):
        call(function, x=value)


OUTSIDE = {
    "Bernoulli": (Bernoulli(), 1.5, r"\[0, 1\]"),
    "Bernoulli, negative": (Bernoulli(), -0.25, r"\[0, 1\]"),
    "Binomial": (Binomial(5), 6.0, r"\[0, 5\]"),
    "Binomial, columns": (Binomial([5, 3, 5]), 4.0, "3"),
    "Poisson": (Poisson(), -1.0, r"\[0, inf\)"),
    "custom": (CustomFamily(jnp.exp, limits=families.Support(0.0)), -1.0, r"\[0, inf\)"),
}


@pytest.mark.parametrize("function", [f for f in taking("x") if f != "posterior"])
@pytest.mark.parametrize("outside", OUTSIDE.values(), ids=OUTSIDE)
def test_data_out_of_the_support(function, outside):
    family, value, support = outside
    with pytest.raises(ValueError, match=rf"^x: .*support .*{support}.* got {value:g} at \[2, 1\]"):
        call(function, x=changed(X, (2, 1), value), family=family)


def test_grey_values_are_not_out_of_the_support():
    assert bool(jnp.isfinite(call("fit", x=X / 3).elbo_taylor))


@pytest.mark.parametrize("function", [f for f in taking("x") if f not in ("fit", "moments", "expand")])
def test_rows_of_another_width(function):
    with pytest.raises(ValueError, match=r"^(x|loadings|decoder|intercept): expected"):
        call(function, x=X[:, :2])


def test_a_row_of_another_width_for_the_posterior():
    with pytest.raises(ValueError, match=r"^x: expected 3 columns, got shape \(4, 2\)"):
        glmvae.posterior(OPTIMUM, X[:, :2])
    with pytest.raises(ValueError, match=r"^x: expected 2 dimensions"):
        glmvae.posterior(OPTIMUM, X[0])


@pytest.mark.parametrize("function", [f for f in taking("x") if f != "posterior"])
def test_trials_of_another_width(function):
    with pytest.raises(ValueError, match=r"^x: expected 2 columns"):
        call(function, family=Binomial([5, 5]))


# Numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", taking("latent_dim"))
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[
            (0, ValueError),
            (-1, ValueError),
            (D + 1, ValueError),
            (1.0, TypeError),
            (True, TypeError),
            ("2", TypeError),
        ],
        *[(np.array([1, 2]), TypeError), (jnp.float32(2), TypeError)],
    ],
    ids=str,
)
def test_latent_dim(function, value, error):
    with pytest.raises(error, match=r"^latent_dim: expected an integer"):
        call(function, latent_dim=value)


@pytest.mark.parametrize("function", taking("latent_dim"))
def test_integers_of_any_kind_are_integers(function):
    for value in (np.int64(2), jnp.asarray(2)):
        for a, b in zip(
            jax.tree.leaves(call(function, latent_dim=value)), jax.tree.leaves(call(function)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("function", taking("units"))
@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (4, ValueError), (False, TypeError), (0.5, TypeError)])
def test_units(function, value, error):
    with pytest.raises(error, match=r"^units: expected an integer"):
        call(function, units=value)


NOT_POSITIVE = [(0.0, ValueError), (-1.0, ValueError), (np.nan, ValueError), (np.inf, ValueError)]
NOT_NUMBERS = [("1", TypeError), (True, TypeError), (1j, TypeError)]


@pytest.mark.parametrize("function", taking("beta"))
@pytest.mark.parametrize(("value", "error"), [*NOT_POSITIVE, *NOT_NUMBERS, ([1.0], ValueError), (None, TypeError)])
def test_beta(function, value, error):
    with pytest.raises(error, match=r"^beta: expected"):
        call(function, beta=value)


@pytest.mark.parametrize("function", taking("dispersion"))
@pytest.mark.parametrize(("value", "error"), [*NOT_POSITIVE, *NOT_NUMBERS, (np.ones((2, 2)), ValueError)], ids=str)
def test_dispersion(function, value, error):
    with pytest.raises(error, match=r"^dispersion: expected"):
        call(function, dispersion=value)


@pytest.mark.parametrize("function", taking("dispersion"))
def test_a_dispersion_for_each_column(function):
    with pytest.raises(ValueError, match=r"^dispersion: .*at \[1\]"):
        call(function, dispersion=np.array([1.0, 0.0, 1.0]))
    if "remainder" not in function:
        with pytest.raises(ValueError, match=r"^dispersion: .*shape \(3,\), got shape \(2,\)"):
            call(function, dispersion=np.ones(2))


@pytest.mark.parametrize("function", ["fit", "activity_path", "beta_for_active_units", "collapse_onset"])
def test_a_dispersion_that_is_needed(function):
    with pytest.raises(ValueError, match=r"^dispersion: .* needs one"):
        call(function, family=CustomFamily(jnp.exp))


BAD_POINTS = {
    "word": ("mean", ValueError, 'expected "zero", "null" or an array'),
    "shape": (np.zeros(2), ValueError, r"shape \(3,\), got shape \(2,\)"),
    "rank": (np.zeros((1, 3)), ValueError, "expected a scalar or shape"),
    "NaN": (np.array([0.0, np.nan, 0.0]), ValueError, r"nan at \[1\]"),
    "no weight": (np.array([0.0, 0.0, 1e6]), ValueError, r"working weight is not positive at \[2\]"),
    "strings": (["a", "b", "c"], TypeError, "expected an array of numbers"),
    "None": (None, TypeError, "expected an array of numbers"),
}


@pytest.mark.parametrize("function", [f for f in taking("expand_at") if "remainder" not in f])
@pytest.mark.parametrize("bad", BAD_POINTS.values(), ids=BAD_POINTS)
def test_expand_at(function, bad):
    value, error, match = bad
    with pytest.raises(error, match=f"^expand_at: .*{match}"):
        call(function, expand_at=value)


@pytest.mark.parametrize("function", taking("family"))
@pytest.mark.parametrize("value", ["Bernoulli", Bernoulli, 1.0], ids=str)
def test_family(function, value):
    with pytest.raises(TypeError, match=r"^family: expected a family"):
        call(function, family=value)


@pytest.mark.parametrize(
    ("argument", "value", "error", "match"),
    [
        ("eta", "a", TypeError, "expected an array of numbers"),
        ("eta", [0.0, np.nan], ValueError, r"nan at \[1\]"),
        ("mean", [np.inf], ValueError, r"inf at \[0\]"),
        ("variance", [1.0, -1.0], ValueError, r"-1 at \[1\]"),
        ("expand_at", "null", TypeError, "expected an array of numbers"),
        ("expand_at", np.nan, ValueError, "nan"),
    ],
)
def test_remainder_bounds(argument, value, error, match):
    for function in ("remainder_bounds", "expected_remainder_bounds"):
        if function in taking(argument):
            with pytest.raises(error, match=f"^{argument}: .*{match}"):
                call(function, **{argument: value})


# Decoders and posteriors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", taking("loadings"))
@pytest.mark.parametrize(
    ("argument", "value", "match"),
    [
        ("loadings", W[:2], r"expected 3 rows, got shape \(2, 2\)"),
        ("loadings", W[:, 0], "expected 2 dimensions"),
        ("loadings", changed(W, (1, 1), np.nan), r"nan at \[1, 1\]"),
        ("intercept", B[:2], r"expected shape \(3,\), got shape \(2,\)"),
        ("intercept", changed(B, 2, np.inf), r"inf at \[2\]"),
    ],
)
def test_affine_decoders(function, argument, value, match):
    with pytest.raises(ValueError, match=f"^{argument}: .*{match}"):
        call(function, **{argument: value})


@pytest.mark.parametrize("function", taking("decoder"))
def test_decoders(function):
    with pytest.raises(TypeError, match=r"^decoder: expected a function"):
        call(function, decoder=W)
    with pytest.raises(ValueError, match=r"^decoder: expected .*\(3,\)"):
        call(function, decoder=lambda z: z)


BAD_POSTERIORS = {
    "array": (np.zeros((N, K)), TypeError, "posterior: expected a Posterior"),
    "mean rank": (Posterior(np.zeros(K), np.eye(K)), ValueError, "posterior.mean: expected 2 dimensions"),
    "mean rows": (Posterior(np.zeros((N + 1, K)), np.eye(K)), ValueError, "posterior.mean: expected 4 rows"),
    "mean NaN": (Posterior(changed(Q.mean, (3, 1), np.nan), np.eye(K)), ValueError, r"posterior.mean: .*\[3, 1\]"),
    "covariance": (Posterior(np.zeros((N, K)), np.eye(3)), ValueError, r"posterior.covariance: expected .*\(2, 2\)"),
    "covariance rank": (Posterior(np.zeros((N, K)), np.ones(K)), ValueError, "posterior.covariance: expected shape"),
    "covariance NaN": (
        Posterior(np.zeros((N, K)), changed(np.eye(K), (0, 1), np.nan)),
        ValueError,
        r"posterior.covariance: .*nan at \[0, 1\]",
    ),
}


@pytest.mark.parametrize("function", taking("posterior"))
@pytest.mark.parametrize("name", BAD_POSTERIORS)
def test_posteriors(function, name):
    value, error, match = BAD_POSTERIORS[name]
    if name == "mean rows" and function == "kl_divergence":
        return  # has no rows to compare with
    with pytest.raises(error, match=f"^{match}"):
        call(function, posterior=value)


@pytest.mark.parametrize("function", ["elbo_exact", "elbo_quadratic"])
def test_posteriors_of_another_width(function):
    with pytest.raises(ValueError, match=r"^posterior.mean: expected 2 columns"):
        call(function, posterior=Posterior(np.zeros((N, 1)), np.eye(1)))


@pytest.mark.parametrize("function", taking("z0"))
def test_z0(function):
    for value, match in ((np.zeros((N + 1, K)), "expected shape"), (np.array([np.nan, 0.0]), r"nan at \[0\]")):
        with pytest.raises(ValueError, match=f"^z0: .*{match}"):
            call(function, z0=value)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("3", TypeError)]
)
def test_num_samples(value, error):
    with pytest.raises(error, match=r"^num_samples: expected"):
        call("elbo_monte_carlo", num_samples=value)


# Moments and optima ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (np.ones(3), ValueError, r"expected shape \(4,\)"),
        (np.ones((4, 1)), ValueError, r"expected shape \(4,\)"),
        (np.array([1.0, -1.0, 1.0, 1.0]), ValueError, r"-1 at \[1\]"),
        (np.array([1.0, 1.0, np.nan, 1.0]), ValueError, r"nan at \[2\]"),
        (np.zeros(4), ValueError, "positive sum"),
        (np.array(["a"] * 4), TypeError, "expected an array of numbers"),
    ],
    ids=str,
)
def test_weights(value, error, match):
    with pytest.raises(error, match=f"^weights: .*{match}"):
        call("moments", weights=value)


def test_batches():
    with pytest.raises(ValueError, match=r"^x: expected at least one batch"):
        glmvae.moments(iter([]))
    with pytest.raises(ValueError, match=r"^x: .*nan at \[2, 1\]"):
        glmvae.moments(iter([X, changed(X, (2, 1), np.nan)]))
    with pytest.raises(ValueError, match=r"^b: expected 3 columns"):
        glmvae.moments(iter([X, X[:, :2]]))
    with pytest.raises(TypeError, match=r"^weights: expected an iterator"):
        glmvae.moments(iter([X]), weights=np.ones(N))


@pytest.mark.parametrize("argument", ["a", "b"])
def test_merging_what_is_no_moments(argument):
    with pytest.raises(TypeError, match=f"^{argument}: expected Moments"):
        call("merge", **{argument: X})


@pytest.mark.parametrize("function", taking("moments"))
def test_moments_that_are_none(function):
    with pytest.raises(TypeError, match=r"^moments: expected Moments"):
        call(function, moments=X)
    with pytest.raises(ValueError, match=r"nan at \[1\]"):
        call(function, moments=DATA._replace(mean=changed(DATA.mean, 1, np.nan)))


def test_moments_of_the_wrong_shape():
    for bad in (Moments(4.0, np.zeros((2, 2)), np.eye(2)), Moments(4.0, np.zeros(3), np.eye(2))):
        with pytest.raises(ValueError, match=r"^x\.(mean|covariance): expected"):
            call("fit", x=bad)
    with pytest.raises(TypeError, match=r"^data: expected Moments"):
        call("elbo_profile", data=X)


@pytest.mark.parametrize("function", taking("optimum"))
def test_an_optimum_that_is_none(function):
    with pytest.raises(TypeError, match=r"^optimum: expected an AffineOptimum"):
        call(function, optimum=W)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (np.eye(3), ValueError, "expected a vector"),
        (np.array([2.0, -1.0]), ValueError, r"-1 at \[1\]"),
        (np.array([1.0, 2.0]), ValueError, r"descending.*\[0\]"),
        (np.array([np.nan, 2.0]), ValueError, r"nan at \[0\]"),
        ("abc", TypeError, "expected an array of numbers"),
    ],
    ids=str,
)
def test_eigenvalues(value, error, match):
    with pytest.raises(error, match=f"^eigenvalues: .*{match}"):
        call("gaussian_dispersion", eigenvalues=value)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ([], ValueError, "expected a vector"),
        (1.0, ValueError, "expected a vector"),
        ([1.0, 0.0], ValueError, r"0 at \[1\]"),
        ([np.nan], ValueError, r"nan at \[0\]"),
        (["a"], TypeError, "expected an array of numbers"),
    ],
    ids=str,
)
def test_betas(value, error, match):
    with pytest.raises(error, match=f"^betas: .*{match}"):
        call("activity_path", betas=value)


# Families --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "at least 1, got 0"),
        (0.5, ValueError, "at least 1"),
        (np.nan, ValueError, "at least 1"),
        (np.inf, ValueError, "at least 1"),
        ([4, 0, -1], ValueError, r"at least 1, got 0 at \[1\]"),
        (np.ones((2, 2, 2)), ValueError, "a scalar or a vector"),
        ("5", TypeError, "expected a number"),
        (True, TypeError, "expected a number"),
    ],
    ids=str,
)
def test_trials(value, error, match):
    with pytest.raises(error, match=f"^trials: .*{match}"):
        Binomial(value)


@pytest.mark.parametrize("family", [Gaussian, Bernoulli, Poisson])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0.0, ValueError), (np.nan, ValueError), (np.inf, ValueError), ([1.0], ValueError), ("2", TypeError)],
    ids=str,
)
def test_activation_scale(family, value, error):
    with pytest.raises(error, match=r"^activation_scale: expected"):
        family(activation_scale=value)


@pytest.mark.parametrize("argument", ["normalizer", "base_measure", "activation", "sampler"])
def test_custom_families(argument):
    with pytest.raises(TypeError, match=f"^{argument}: expected a function"):
        CustomFamily(**{"normalizer": jnp.exp, argument: 1.0})


# Precision and flags ---------------------------------------------------------------------------------------


def cast(tree, dtype):
    def leaf(value):
        floating = isinstance(value, np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
        return jnp.asarray(value, dtype) if floating else value

    return jax.tree.map(leaf, tree)


@pytest.mark.float64
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("family", [Gaussian(), Binomial([1, 2, 3]), Poisson()])
@pytest.mark.parametrize("function", GOOD)
def test_the_precision_of_the_data_is_that_of_the_result(function, family, precision):
    arguments = cast(dict(GOOD[function]), precision)
    if "family" in arguments:
        arguments["family"] = family
    elif family.__class__ is not Gaussian:
        return
    for leaf in jax.tree.leaves(getattr(glmvae, function)(**arguments)):
        if not isinstance(leaf, float):
            assert leaf.dtype == precision


FLAGS = """
import jax
def flags():
    return {k: v for k, v in jax.config.values.items()}
before = flags()
import glmvae, glmvae.datasets
import numpy as np
x = np.array([[0., 1.], [1., 1.], [0., 0.]], "float32")
from glmvae.families import Bernoulli
optimum = glmvae.fit(x, Bernoulli(), 1)
q = glmvae.posterior(optimum, x)
glmvae.elbo_exact(optimum.loadings, optimum.intercept, x, q, Bernoulli())
glmvae.elbo_taylor(optimum.decoder, x, q, Bernoulli())
after = flags()
assert before == after, {k: (before[k], after.get(k)) for k in before if before[k] != after.get(k)}
assert len(before) > 20
print("same")
"""


@pytest.mark.parametrize("x64", ["0", "1"])
def test_no_global_flag_is_touched(x64):
    environment = {**os.environ, "JAX_ENABLE_X64": x64}
    done = subprocess.run(
        [sys.executable, "-c", FLAGS], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert re.search("same", done.stdout), done.stderr


def test_every_public_function_is_here():
    functions = {
        n for n, v in vars(glmvae).items() if callable(v) and not n.startswith("_") and not isinstance(v, type)
    }
    core = {n for n in functions if getattr(glmvae, n).__module__.split(".")[1] in CORE}
    assert core == set(GOOD)


CORE = {"elbo", "expansion", "moments", "optimum", "pruning"}
