"""The expansion against autodiff, row fields against the dense reference; tests/test_bounds.py has its remainder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import MODELS, OTHERS, draw
from family_cases import CASES, COLUMNS
from scipy.special import gammaln

from glmvae import Rows, expand, moments
from glmvae.expansion import expansion_point, null_point, working_response, working_weight
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gamma, Gaussian, NegativeBinomial, Poisson
from glmvae.sources import as_source

# Two routes through a dozen operations each; log p itself is a sum of terms up to 50.
AGREES = {"float64": 1e-11, "float32": 2e-5}

# The code is the same for all: in float32 these are enough.
IN_FLOAT32 = ("Bernoulli", "Poisson rho=2", "Custom gamma")
every_family = pytest.mark.parametrize(
    "case", [c if n in IN_FLOAT32 else pytest.param(c, marks=pytest.mark.float64) for n, c in CASES.items()], ids=CASES
)
POINTS = ("zero", "null", np.array([0.3, -0.7, 1.1]))


# The quadratic ------------------------------------------------------------------------------------------------


@jax.jit
def autodiff(x, family, eta0, phi):
    """log p, its gradient at every entry, its second derivative in the first row, and at x = mu."""

    def f(eta, x):
        return jnp.sum(family.log_prob(x, eta, phi))

    def curvature(x):  # entry by entry: the matrix is diagonal
        return jax.jvp(lambda eta: jax.grad(f)(eta, x), (eta0,), (jnp.ones_like(eta0),))[1]

    at = jnp.broadcast_to(eta0, x.shape)
    return family.log_prob(x, at, phi), jax.grad(f)(at, x), curvature(x[0]), curvature(family.mean(eta0))


@every_family
def test_response_and_weight_are_gradient_and_hessian(case, dtype):
    x, phi, family = case.x.astype(dtype), jnp.asarray(case.dispersion, dtype), case.family
    for expand_at in POINTS:
        quadratic = expand(x, family, expand_at=expand_at, dispersion=phi)
        assert {leaf.dtype for leaf in quadratic} == {jnp.dtype(dtype)}
        eta0 = expansion_point(expand_at, family, jnp.asarray(x.mean(axis=0)))
        value, gradient, one_row, at_mean = autodiff(x, family, eta0, phi)
        tolerance = AGREES[str(dtype)]
        response, weight, _ = (np.asarray(part) for part in quadratic)
        np.testing.assert_allclose(weight * (response - eta0), gradient, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(quadratic(eta0), value, rtol=tolerance, atol=tolerance)
        if family.curvature_is_constant:
            np.testing.assert_allclose(-one_row, weight[0], rtol=tolerance)
        else:
            # Fisher scoring: minus the second derivative at x = mu, its mean over x since log p is linear in x
            np.testing.assert_allclose(-at_mean, weight[0], rtol=10 * tolerance)
            if np.any(eta0):  # at 0 the probit bends neither way
                assert np.max(np.abs(-one_row - weight)) > 1e-3


@pytest.mark.any_precision
def test_points_of_expansion(dtype):
    x = jnp.asarray([[0.0, 1.0], [1.0, 3.0]], dtype)
    mean = jnp.mean(x, axis=0)
    np.testing.assert_array_equal(expansion_point("zero", Poisson(), mean), jnp.zeros(2))
    np.testing.assert_allclose(expansion_point("null", Poisson(), mean), jnp.log(mean), rtol=1e-6)
    np.testing.assert_array_equal(expansion_point(0.5, Poisson(), mean), jnp.full(2, 0.5))
    # at the null model the whitened responses are the Pearson residuals
    quadratic = expand(x, Poisson(), expand_at="null")
    pearson = (x - mean) / jnp.sqrt(mean)
    eta0 = jnp.log(mean)
    np.testing.assert_allclose(
        jnp.sqrt(quadratic.weight) * (quadratic.response - eta0), pearson, rtol=AGREES[str(dtype)], atol=1e-6
    )


def test_the_constant_where_the_square_of_the_mean_underflows(dtype):
    mu = {"float64": 1e-170, "float32": 1e-20}[str(dtype)]
    x = np.asarray([[0.5, 1.0, 2.0], [1.5, 1.0, 1.0]]) * mu
    quadratic = expand(x.astype(dtype), Gamma(), expand_at="null")
    mean = x.mean(axis=0)
    found = quadratic(jnp.asarray(np.log(mean), dtype))
    np.testing.assert_allclose(found, -np.log(mean) - x / mean, rtol=AGREES[str(dtype)])


def test_the_quadratic_at_other_shapes(dtype):
    x = jnp.asarray(CASES["Poisson"].x, dtype)
    quadratic = expand(x, Poisson())
    eta = jnp.asarray([0.1, -0.2, 0.3], dtype)
    np.testing.assert_array_equal(quadratic(eta), quadratic(jnp.broadcast_to(eta, x.shape)))
    assert working_response(Poisson(), x[0], eta).shape == (COLUMNS,)
    np.testing.assert_allclose(working_weight(Poisson(), eta, 2.0), jnp.exp(eta) / 2, rtol=AGREES[str(dtype)])


@pytest.mark.any_precision
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_table_2(beta, dtype):
    # beta d log(F''(0) / phi) + D(phi), with log prod x_j! where the paper prints log prod x_j
    rng = np.random.default_rng(0)
    tolerance = 10 * AGREES[str(dtype)]
    d, sigma2 = COLUMNS, 0.7
    samples = {
        "Bernoulli": rng.integers(0, 2, (6, d)).astype(float),
        "Gaussian": rng.normal(size=(6, d)),
        "Poisson": rng.poisson(3.0, (6, d)).astype(float),
    }
    for name, x in samples.items():
        family = {"Bernoulli": Bernoulli(), "Gaussian": Gaussian(), "Poisson": Poisson()}[name]
        phi = sigma2 if name == "Gaussian" else 1.0
        quadratic = expand(jnp.asarray(x, dtype), family, dispersion=phi)
        constant = -2 * float(jnp.mean(jnp.sum(quadratic.constant, axis=1)))
        ours = beta * float(jnp.sum(jnp.log(quadratic.weight))) + constant
        table = {
            "Bernoulli": (1 - beta) * d * np.log(4) - 4 * np.mean(np.sum((x - 0.5) ** 2, axis=1)),
            "Gaussian": d * np.log(2 * np.pi * sigma2 ** (1 - beta)),
            "Poisson": 2 * d + np.mean(-np.sum((x - 1) ** 2, axis=1) + 2 * gammaln(x + 1).sum(axis=1)),
        }[name]
        np.testing.assert_allclose(ours, table, rtol=tolerance)
        if name == "Poisson":
            x = np.maximum(x, 1)
            printed = 2 * d + np.mean(-np.sum((x - 1) ** 2, axis=1) + 2 * np.log(x).sum(axis=1))
            assert abs(ours - printed) > 1.0


@jax.jit
def constant_from(data, family, eta0, phi):
    return family.expansion_constant(data.mean, jnp.diag(data.covariance), data.base_statistic, eta0, phi)


@every_family
def test_the_constant_from_the_moments_is_the_mean_of_the_rows(case, dtype):
    x, family = case.x.astype(dtype), case.family
    # moments carry a custom family's K at phi = 1
    phi = 1.0 if isinstance(family, CustomFamily) else case.dispersion
    data = moments(x, family=family)
    for expand_at in POINTS:
        eta0 = expansion_point(expand_at, family, data.mean)
        rows = expand(x, family, expand_at=eta0, dispersion=phi).constant
        whole = constant_from(data._replace(family=None), family, eta0, phi)
        tolerance = AGREES[str(dtype)]
        np.testing.assert_allclose(whole, np.mean(rows, axis=0), rtol=tolerance, atol=tolerance)


@pytest.mark.any_precision
def test_the_null_point_is_that_of_what_was_observed(dtype):
    rng = np.random.default_rng(1)
    x, missing, weight = draw("poisson"), rng.random((40, 4)) < 0.3, rng.uniform(0.2, 2.0, 40)
    w = weight[:, None] * ~missing
    rows = Rows(np.where(missing, np.nan, x).astype(dtype), missing=missing, weight=weight)
    expected = np.log((w * x).sum(axis=0) / w.sum(axis=0))
    np.testing.assert_allclose(null_point(as_source(rows), Poisson()), expected, rtol=AGREES[str(dtype)], atol=1e-6)
    assert np.abs(expected - np.log(x.mean(axis=0))).max() > 1e-3
    n = rng.integers(1, 9, size=(40, 4)).astype(float)
    y = rng.binomial(n.astype(int), 0.4).astype(float)
    p = y.sum(axis=0) / n.sum(axis=0)
    rows = Rows(y.astype(dtype), trials=n)
    found = null_point(as_source(rows), Binomial(None))
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=AGREES[str(dtype)], atol=1e-6)


def test_rare_counts_keep_their_rate(dtype):
    """A rounding unit of the trials is more than a count, and one of 1 more than some means."""
    mean = np.asarray([5.0, 1e-9, 1e-20, 0.0])
    for family, n in ((Binomial(1e9), 1e9), (Poisson(), np.inf), (NegativeBinomial(2.0), 2.0)):
        link = np.log(mean[:3] / (n - mean[:3]) if n == 1e9 else mean[:3] / (2.0 if n == 2 else 1.0))
        found = np.asarray(expansion_point("null", family, jnp.asarray(mean, dtype)))
        np.testing.assert_allclose(found[:3], link, rtol=AGREES[str(dtype)])
        assert -100 < found[3] < found[0]  # what was never seen is rarer than what was


ROWS = {
    "plain": ("binomial", {}),
    "trials": ("binomial", {"trials": np.random.default_rng(2).integers(5, 9, size=(40, 4)).astype(float)}),
    "missing": ("poisson", {"missing": np.random.default_rng(3).random((40, 4)) < 0.3}),
    "offset and covariates": ("gamma", {"offset": np.ones(40), "covariates": np.ones((40, 1))}),
    "weight": ("negative_binomial", {"weight": np.arange(40.0)}),
}


@pytest.mark.any_precision
@pytest.mark.parametrize("which", ROWS)
def test_rows_and_what_they_bring(which, dtype):
    """The quadratic is in eta, which offset and covariates are part of; what is missing is 0; weights change no row."""
    name, fields = ROWS[which]
    model, x = (MODELS | OTHERS)[name], draw(name)
    family = Binomial(None) if "trials" in fields else model.family
    model = model.with_trials(fields["trials"]) if "trials" in fields else model
    missing = fields.get("missing", np.zeros(x.shape, bool))
    eta0, phi = np.array([0.3, -0.7, 0.0, 1.1]), 0.8
    rows = Rows(np.where(missing, np.nan, x).astype(dtype), **fields)
    quadratic = expand(rows, family, expand_at=eta0, dispersion=phi)
    eta = np.random.default_rng(4).normal(size=x.shape)
    score, weight = model.score(x, eta0 + 0 * x, phi), model.weight(eta0 + 0 * x, phi)
    step = eta - eta0
    expected = model.log_prob(x, eta0 + 0 * x, phi) + score * step - 0.5 * weight * step**2
    tolerance = 10 * AGREES[str(dtype)]
    np.testing.assert_allclose(quadratic(eta), np.where(missing, 0.0, expected), rtol=tolerance, atol=tolerance)
    shared = "trials" not in fields and "missing" not in fields
    assert quadratic.weight.shape == ((1, 4) if shared else (40, 4))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[-1.0, 0.0]]}, ValueError, r"x: .*support.*-1 at \[0, 0\]"),
        ({"x": [["a"]]}, TypeError, "x: "),
        ({"family": Poisson}, TypeError, "family: .*the class Poisson"),
        ({"family": Binomial([1.0, 2.0, 3.0])}, ValueError, "x: expected 3 columns"),
        ({"family": Binomial(None)}, ValueError, "x: .*has its trials from the rows"),
        ({"expand_at": "mean"}, ValueError, "expand_at: .*'mean'"),
        ({"expand_at": [0.0]}, ValueError, "expand_at: .*shape"),
        ({"expand_at": np.inf}, ValueError, "expand_at: .*inf"),
        ({"expand_at": [0.0, -800.0]}, ValueError, r"expand_at: .*weight is not positive at \[1\], .*-800"),
        ({"dispersion": 0.0}, ValueError, "dispersion: .*got 0"),
        ({"dispersion": [1.0, 2.0, 3.0]}, ValueError, "dispersion: .*shape"),
        ({"dispersion": 1e-46}, ValueError, "dispersion: .*float32 can hold"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"x": np.ones((1, 2), "float32"), "family": Poisson(), **change}
    with pytest.raises(error, match=message):
        expand(arguments.pop("x"), arguments.pop("family"), **arguments)


def test_jit_and_eager_agree(dtype):
    x = jnp.asarray(CASES["Bernoulli"].x, dtype)
    eager = expand(x, Bernoulli(), expand_at="null")
    jitted = jax.jit(lambda x: expand(x, Bernoulli(), expand_at="null"))(x)
    for a, b in zip(eager, jitted, strict=True):
        np.testing.assert_allclose(b, a, rtol=AGREES[str(dtype)], atol=AGREES[str(dtype)])
