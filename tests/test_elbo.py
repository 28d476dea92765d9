"""The four ELBOs against each other, quadrature in NumPy, Monte Carlo and automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import MODELS, draw
from dense_reference import elbo_exact as dense_exact
from dense_reference import expansion as dense_expansion
from dense_reference import kl_divergence as dense_kl
from hypothesis import given
from hypothesis import strategies as st

from glmvae import (
    Posterior,
    affine_posterior,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    expected_remainder_bounds,
    fit,
    kl_divergence,
    moments,
    optimal_posterior,
    posterior,
)
from glmvae.elbo import predictor_moments
from glmvae.families import Bernoulli, Gaussian, Poisson

SEEDS = st.integers(0, 2**32 - 1)
# Sums over 4 columns of terms up to a few hundred nats.
RTOL = {"float64": 1e-10, "float32": 1e-4}
ROWS, COLUMNS, UNITS = 40, 4, 2


def float32_keeps(kept, names):
    """Names for a test whose code is the same for all: in float32 only the first are tried."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.float64) for n in names]


def setting(name, dtype, seed=0, *, per_row=True, size=1.0):
    """Data, loadings, intercept and a posterior, at random and with nothing optimal about them."""
    rng = np.random.default_rng(seed)
    x = draw(name, rows=ROWS, columns=COLUMNS, seed=seed).astype(dtype)
    loadings = (0.7 * size * rng.normal(size=(COLUMNS, UNITS))).astype(dtype)
    intercept = (0.7 * size * rng.normal(size=COLUMNS)).astype(dtype)
    root = 0.5 * rng.normal(size=(ROWS, UNITS, UNITS) if per_row else (UNITS, UNITS))
    covariance = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(UNITS)
    return (
        x,
        loadings,
        intercept,
        Posterior(jnp.asarray(rng.normal(size=(ROWS, UNITS)), dtype), jnp.asarray(covariance, dtype)),
    )


def affine(loadings, intercept):
    loadings, intercept = jnp.asarray(loadings), jnp.asarray(intercept)
    return lambda z: loadings @ z + intercept


# KL divergence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [True, False])
def test_kl_divergence(per_row, dtype):
    q = setting("gaussian", dtype, per_row=per_row)[3]
    expected = dense_kl(np.asarray(q.mean, np.float64), np.asarray(q.covariance, np.float64))
    np.testing.assert_allclose(kl_divergence(q), expected, rtol=RTOL[str(dtype)])
    assert kl_divergence(q).shape == (ROWS,)
    np.testing.assert_allclose(kl_divergence(Posterior(jnp.zeros((3, 2), dtype), jnp.eye(2, dtype=dtype))), 0.0)


@pytest.mark.any_precision
def test_kl_divergence_by_sampling(dtype):
    q = Posterior(jnp.asarray([[0.5, -1.0]], dtype), jnp.asarray([[0.5, 0.2], [0.2, 0.8]], dtype))
    z = jax.random.multivariate_normal(jax.random.key(0), q.mean[0], q.covariance, (20000,), dtype=dtype)
    prior = jax.scipy.stats.multivariate_normal.logpdf(z, jnp.zeros(2, dtype), jnp.eye(2, dtype=dtype))
    gap = np.asarray(jax.scipy.stats.multivariate_normal.logpdf(z, q.mean[0], q.covariance) - prior)
    assert abs(gap.mean() - float(kl_divergence(q)[0])) < 5 * gap.std() / np.sqrt(len(gap))


# The exact ELBO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("name", float32_keeps(["bernoulli", "poisson"], MODELS))
def test_exact_equals_numpy_quadrature(name, per_row, dtype):
    x, w, b, q = setting(name, dtype, per_row=per_row)
    got = elbo_exact(w, b, x, q, MODELS[name].family, beta=0.7, dispersion=0.8)
    wide = [np.asarray(a, np.float64) for a in (w, b, x, q.mean, q.covariance)]
    expected = dense_exact(MODELS[name], *wide, beta=0.7, phi=0.8)
    np.testing.assert_allclose(got, expected, rtol=RTOL[str(dtype)])
    assert got.dtype == dtype
    # the spread of q matters: at its mean alone the value is another
    point = dense_exact(MODELS[name], *wide[:4], 1e-12 * np.eye(UNITS), beta=0.0, phi=0.8)
    assert np.abs(got + 0.7 * np.asarray(kl_divergence(q)) - point).max() > 1e-2


@pytest.mark.parametrize("name", float32_keeps(["binomial"], MODELS))
def test_exact_agrees_with_monte_carlo(name, dtype):
    # small enough for Poisson that no rare large rate decides the mean
    x, w, b, q = setting(name, dtype, size=0.25 if name == "poisson" else 0.6)
    family = MODELS[name].family
    value, error = elbo_monte_carlo(
        jax.random.key(1), affine(w, b), x, q, family, beta=0.7, dispersion=0.8, num_samples=2000
    )
    exact = elbo_exact(w, b, x, q, family, beta=0.7, dispersion=0.8)
    assert value.dtype == error.dtype == dtype
    # By row, and for the mean, whose standard error is 40 times smaller against the total.
    assert np.all(np.abs(value - exact) < 5 * error)
    total = np.sqrt(np.sum(np.asarray(error) ** 2)) / ROWS
    assert abs(float(jnp.mean(value - exact))) < 5 * total
    # The quadratic is told apart from it (except where it is exact, or the spread of so small a setting hides it).
    if name not in ("gaussian", "poisson"):
        quadratic = elbo_quadratic(w, b, x, q, family, beta=0.7, dispersion=0.8)
        assert abs(float(jnp.mean(value - quadratic))) > 5 * total


@pytest.mark.any_precision
def test_the_standard_error_is_honest(dtype):
    x, w, b, q = setting("bernoulli", dtype)
    _, error = elbo_monte_carlo(jax.random.key(0), affine(w, b), x, q, Bernoulli(), num_samples=100)
    # that of 100 draws, over that of 25: the spread of many such means
    of_25 = jax.jit(lambda key: elbo_monte_carlo(key, affine(w, b), x, q, Bernoulli(), num_samples=25)[0])
    draws = np.stack([of_25(jax.random.key(i)) for i in range(2, 12)])
    ratio = np.sqrt(np.mean(draws.std(axis=0, ddof=1) ** 2) / 4) / np.sqrt(np.mean(np.asarray(error) ** 2))
    assert 0.8 < ratio < 1.25
    assert np.isnan(elbo_monte_carlo(jax.random.key(0), affine(w, b), x, q, Bernoulli(), num_samples=1)[1]).all()


# L-hat in z ------------------------------------------------------------------------------------------------


def curved(z):
    """A decoder that bends, R^2 -> R^4."""
    return jnp.stack([jnp.tanh(z[0] + z[1]), z[0] * z[1], jnp.sin(z[0]) - z[1], 0.3 * z[0] ** 2 + 0.5 * z[1]])


@functools.cache
def value_gradient_and_hessian(family):
    """Of log p(x | curved(z)) in z, by reverse mode twice."""

    def f(z, row):
        return jnp.sum(family.log_prob(row, curved(z), 0.8))

    return jax.jit(lambda z, row: (f(z, row), jax.grad(f)(z, row), jax.jacrev(jax.jacrev(f))(z, row)))


@pytest.mark.parametrize("at", float32_keeps(["rows"], ["mean", "shared", "rows"]))
@pytest.mark.parametrize("name", float32_keeps(["bernoulli"], ["gaussian", "bernoulli", "poisson"]))
def test_taylor_equals_25_by_hand(name, at, dtype):
    x, _, _, q = setting(name, dtype)
    family = MODELS[name].family
    rng = np.random.default_rng(5)
    z0 = {
        "mean": None,
        "shared": jnp.asarray([0.2, -0.1], dtype),
        "rows": jnp.asarray(rng.normal(size=(ROWS, 2)), dtype),
    }[at]
    got = elbo_taylor(curved, x, q, family, z0=z0, beta=0.6, dispersion=0.8)
    rows = q.mean if z0 is None else jnp.broadcast_to(z0, q.mean.shape)
    derivatives = value_gradient_and_hessian(family)
    rows, mean, covariance = (np.asarray(a) for a in (rows, q.mean, q.covariance))
    printed = []
    for i in range(4):
        step = mean[i] - rows[i]
        value, gradient, h = (np.asarray(a) for a in derivatives(rows[i], x[i]))
        first = value + gradient @ step + 0.5 * np.trace(h @ covariance[i])
        kl = 0.6 * dense_kl(mean[i : i + 1], covariance[i])[0]
        np.testing.assert_allclose(got[i], first + 0.5 * step @ h @ step - kl, rtol=RTOL[str(dtype)])
        printed.append(float(first - kl))
    if at != "mean":  # (4) as printed leaves the quadratic in the mean out
        assert np.abs(np.asarray(got[:4]) - printed).max() > 1e-2


@pytest.mark.parametrize(
    "name",
    float32_keeps(["bernoulli_tanh"], ["gaussian", "bernoulli", "binomial_columns", "poisson", "bernoulli_tanh"]),
)
def test_taylor_and_quadratic_agree_where_the_decoder_meets_eta0(name, dtype):
    x, w, b, q = setting(name, dtype)
    family, z0 = MODELS[name].family, np.asarray([0.4, -0.3], dtype)
    options = {"beta": 0.6, "dispersion": 0.8}
    meets = w @ z0 + b
    taylor = elbo_taylor(affine(w, b), x, q, family, z0=z0, **options)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(taylor, elbo_quadratic(w, b, x, q, family, expand_at=meets, **options), rtol=rtol)
    elsewhere = elbo_quadratic(w, b, x, q, family, expand_at="zero", **options)
    if name == "gaussian":
        np.testing.assert_allclose(taylor, elsewhere, rtol=rtol)
    else:
        assert np.abs(taylor - elsewhere).max() > 1e-2


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "bernoulli_tanh", "poisson"]))
def test_optimal_posterior_is_stationary_and_affine_posterior_for_an_affine_decoder(name, dtype):
    x, w, b, _ = setting(name, dtype)
    family, z0 = MODELS[name].family, jnp.asarray([0.4, -0.3], dtype)
    options = {"beta": 0.6, "dispersion": 0.8}
    q = optimal_posterior(affine(w, b), x, family, z0=z0, **options)
    best = affine_posterior(w, b, x, family, expand_at=w @ z0 + b, **options)
    rtol = 10 * RTOL[str(dtype)]
    np.testing.assert_allclose(q.mean, best.mean, rtol=rtol, atol=rtol * np.abs(best.mean).max())
    np.testing.assert_allclose(q.covariance, np.broadcast_to(best.covariance, q.covariance.shape), rtol=rtol, atol=rtol)

    @jax.jit
    def objective(mean, covariance):
        return jnp.sum(elbo_taylor(affine(w, b), x, Posterior(mean, covariance), family, z0=z0, **options))

    slope = jax.jit(jax.grad(objective, argnums=(0, 1)))
    scale = rtol * 10 * (1 + np.abs(x).max())
    for gradient in slope(*q):
        np.testing.assert_allclose(gradient, 0.0, atol=scale)
    assert np.abs(slope(q.mean + 1.0, q.covariance)[0]).max() > 10 * scale
    assert np.abs(slope(q.mean, 0.2 * q.covariance)[1]).max() > 10 * scale


@pytest.mark.any_precision
def test_optimal_posterior_of_a_relu_net_beats_others(dtype):
    """Piecewise linear: H = J' diag(-w) J is negative semi-definite, so (5), (6) are a maximum."""
    x, _, b, _ = setting("bernoulli", dtype)
    inner = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2)), dtype)
    outer = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5)), dtype)

    def net(z):
        return outer @ jax.nn.relu(inner @ z + 0.5) + jnp.asarray(b)

    z0 = jnp.asarray([0.3, 0.2], dtype)
    q = optimal_posterior(net, x, Bernoulli(), z0=z0, beta=0.6)
    best = elbo_taylor(net, x, q, Bernoulli(), z0=z0, beta=0.6)
    for other in (Posterior(q.mean + 0.1, q.covariance), Posterior(q.mean, 0.8 * q.covariance)):
        assert np.all(elbo_taylor(net, x, other, Bernoulli(), z0=z0, beta=0.6) < best)


# L-hat in eta ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["bernoulli_tanh"], MODELS))
def test_quadratic_equals_its_definition(name, dtype):
    x, w, b, q = setting(name, dtype)
    eta0 = np.array([0.3, -0.2, 0.1, 0.0])
    got = elbo_quadratic(w, b, x, q, MODELS[name].family, expand_at=eta0, beta=0.7, dispersion=0.8)
    w, b, x, m, s = (np.asarray(a, np.float64) for a in (w, b, x, q.mean, q.covariance))
    response, weight, constant = dense_expansion(MODELS[name], x, eta0, 0.8)
    mean, variance = m @ w.T + b, np.einsum("jk,nkl,jl->nj", w, s, w)
    expected = (constant - 0.5 * weight * ((response - mean) ** 2 + variance)).sum(axis=1) - 0.7 * dense_kl(m, s)
    np.testing.assert_allclose(got, expected, rtol=RTOL[str(dtype)])


@pytest.mark.parametrize("point", ["zero", "null"])
@pytest.mark.parametrize("name", float32_keeps(["bernoulli_tanh", "poisson"], MODELS))
def test_profile_is_the_mean_at_the_best_posterior(name, point, dtype):
    x, w, b, other = setting(name, dtype)
    family = MODELS[name].family
    options = {"expand_at": point, "beta": 0.7, "dispersion": 0.8}
    profile = elbo_profile(w, b, moments(x, family=family), family, **options)
    q = affine_posterior(w, b, x, family, **options)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(profile, elbo_quadratic(w, b, x, q, family, **options).mean(), rtol=10 * rtol)
    for worse in (other, Posterior(q.mean + 0.1, q.covariance), Posterior(q.mean, 1.2 * q.covariance)):
        assert elbo_quadratic(w, b, x, worse, family, **options).mean() < profile


# Bounds ----------------------------------------------------------------------------------------------------

# Each row sums some ten terms of at most a few times the value's own size; after rounding the two sides may cross
# by that many units of it.
UNITS_OF_ROUNDING = 64


def rounding(dtype, *values):
    return UNITS_OF_ROUNDING * np.finfo(dtype).eps * (1 + sum(np.abs(np.asarray(v)) for v in values))


@given(
    seed=SEEDS,
    name=st.sampled_from(["bernoulli", "bernoulli_grey", "bernoulli_tanh", "binomial", "binomial_columns"]),
    size=st.sampled_from([1e-3, 0.1, 1.0, 5.0]),
    beta=st.sampled_from([0.01, 1.0, 10.0]),
)
def test_quadratic_at_zero_is_below_the_exact_elbo(seed, name, size, beta, dtype):
    x, w, b, q = setting(name, dtype, seed, size=size)
    exact = np.asarray(elbo_exact(w, b, x, q, MODELS[name].family, beta=beta))
    bound = np.asarray(elbo_quadratic(w, b, x, q, MODELS[name].family, beta=beta))
    slack = rounding(dtype, exact, bound, beta * kl_divergence(q))
    assert np.all(bound <= exact + slack)


@pytest.mark.any_precision
def test_elsewhere_the_quadratic_is_no_bound(dtype):
    """At eta0 = 3 the curvature is not the largest: the expansion overshoots far from it."""
    x, w, b, q = setting("bernoulli", dtype, size=3.0)
    exact = elbo_exact(w, b, x, q, Bernoulli())
    assert np.any(elbo_quadratic(w, b, x, q, Bernoulli(), expand_at=3.0) > exact + 1e-2)
    x, w, b, q = setting("poisson", dtype)
    assert np.any(elbo_quadratic(w, b, x, q, Poisson()) > elbo_exact(w, b, x, q, Poisson()) + 1e-2)


@given(seed=SEEDS, size=st.sampled_from([0.1, 1.0, 5.0]), beta=st.sampled_from([0.1, 1.0, 10.0]))
def test_quadratic_is_exact_for_gaussian(seed, size, beta, dtype):
    x, w, b, q = setting("gaussian", dtype, seed, size=size)
    options = {"beta": beta, "dispersion": 0.8}
    exact = elbo_exact(w, b, x, q, Gaussian(), **options)
    rtol = 1e-12 if dtype == "float64" else 1e-5
    for point in ("zero", "null", 2.0):
        got = np.asarray(elbo_quadratic(w, b, x, q, Gaussian(), expand_at=point, **options))
        size_of_terms = np.abs(exact) + beta * np.asarray(kl_divergence(q))
        assert np.all(np.abs(got - exact) <= rtol * size_of_terms)


@given(
    seed=SEEDS,
    name=st.sampled_from(["gaussian", "bernoulli_tanh", "binomial_columns", "poisson"]),
    point=st.sampled_from(["zero", "null", "array"]),
    optimal=st.booleans(),
)
def test_the_expected_remainder_brackets_the_exact_elbo(seed, name, point, optimal, dtype):
    x, w, b, q = setting(name, dtype, seed, size=0.5)
    family = MODELS[name].family
    at = jnp.asarray([0.3, -0.2, 0.1, 0.0], dtype) if point == "array" else point
    if optimal:
        o = fit(x, family, UNITS, dispersion=0.8, expand_at=at)
        w, b, q = o.loadings, o.intercept, posterior(o, x)
    options = {"dispersion": 0.8}
    eta0 = fit(x, family, 1, dispersion=0.8, expand_at=at).expansion_point
    mean, variance = predictor_moments(jnp.asarray(w), jnp.asarray(b), q)
    lower, upper = expected_remainder_bounds(family, mean, variance, eta0, **options)
    quadratic = np.asarray(elbo_quadratic(w, b, x, q, family, expand_at=at, **options))
    exact = np.asarray(elbo_exact(w, b, x, q, family, **options))
    slack = rounding(dtype, exact, quadratic, kl_divergence(q), np.square(x / 0.8).sum(axis=1))
    low, high = quadratic + lower.sum(axis=-1), quadratic + upper.sum(axis=-1)
    assert np.all(low <= exact + slack)
    assert np.all(exact <= high + slack)
    if name != "gaussian":
        assert np.all(high - low > 0)  # without the remainder the quadratic is another number
        assert np.abs(quadratic - exact).max() > 1e-4


# Transformations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "binomial_columns", "poisson"]))
def test_jit_vmap_and_eager_agree(name, dtype):
    x, w, b, q = setting(name, dtype)
    family, x = MODELS[name].family, jnp.asarray(x)
    key, z0, decoder = jax.random.key(0), jnp.asarray([0.1, 0.2], dtype), affine(w, b)

    def everything(beta, x, q, family):
        return (
            elbo_exact(w, b, x, q, family, beta=beta),
            elbo_quadratic(w, b, x, q, family, beta=beta, expand_at="null"),
            elbo_taylor(decoder, x, q, family, beta=beta),
            optimal_posterior(decoder, x, family, z0=z0, beta=beta),
            affine_posterior(w, b, x, family, beta=beta),
            elbo_profile(w, b, moments(x, family=family), family, beta=beta),
            elbo_monte_carlo(key, decoder, x, q, family, beta=beta, num_samples=3),
        )

    betas = jnp.asarray([0.5, 2.0], dtype)
    jitted = jax.jit(everything)
    mapped = jax.jit(jax.vmap(everything, in_axes=(0, None, None, None)))(betas, x, q, family)
    eager, *compiled = everything(betas[0], x, q, family), *(jitted(beta, x, q, family) for beta in betas)
    for a, first, second, both in zip(*map(jax.tree.leaves, (eager, *compiled, mapped)), strict=True):
        for value, other in ((first, a), (both[0], a), (both[1], second)):
            scale = RTOL[str(dtype)] * (1 + np.abs(other).max())
            np.testing.assert_allclose(value, other, rtol=RTOL[str(dtype)], atol=scale)


@pytest.mark.any_precision
@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32(name, dtype):
    x, w, b, q = setting(name, np.float32)
    family = MODELS[name].family
    options = {"beta": np.float64(0.5), "dispersion": np.float64(0.8)}

    def everything():
        return [
            elbo_exact(w, b, x, q, family, **options),
            elbo_quadratic(w, b, x, q, family, expand_at="null", **options),
            elbo_taylor(affine(w, b), x, q, family, **options),
            optimal_posterior(affine(w, b), x, family, z0=np.zeros(UNITS), **options),
            affine_posterior(w, b, x, family, **options),
            elbo_profile(w, b, moments(x, family=family), family, **options),
            elbo_monte_carlo(jax.random.key(0), affine(w, b), x, q, family, num_samples=2, **options),
        ]

    out = jax.eval_shape(everything)  # dtypes need no compilation
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {np.dtype("float32")}


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.full((2, 3), 1.5)}, ValueError, r"x: .*1.5 at \[0, 0\]"),
        ({"x": np.full((2, 3), np.nan)}, ValueError, r"x: .*nan at \[0, 0\]"),
        ({"x": np.zeros((2, 2))}, ValueError, r"loadings: expected 2 rows"),
        ({"loadings": np.zeros(3)}, ValueError, "loadings: .*2 dimensions"),
        ({"loadings": [["a"]]}, TypeError, "loadings: "),
        ({"intercept": np.zeros(2)}, ValueError, r"intercept: expected shape \(3,\)"),
        ({"posterior": np.zeros((2, 1))}, TypeError, "posterior: "),
        ({"posterior": Posterior(np.zeros((3, 1)), np.eye(1))}, ValueError, "posterior.mean: expected 2 rows"),
        ({"posterior": Posterior(np.zeros((2, 2)), np.eye(2))}, ValueError, "posterior.mean: expected 1 columns"),
        ({"posterior": Posterior(np.zeros((2, 1)), np.eye(2))}, ValueError, r"posterior.covariance: .*\(1, 1\)"),
        ({"beta": 0.0}, ValueError, "beta: "),
        ({"dispersion": -1.0}, ValueError, "dispersion: "),
    ],
)
def test_bad_input_is_named(change, error, message):
    given_ = {
        "loadings": np.zeros((3, 1)),
        "intercept": np.zeros(3),
        "x": np.zeros((2, 3)),
        "posterior": Posterior(np.zeros((2, 1)), np.eye(1)),
        **change,
    }
    args = [given_.pop(n) for n in ("loadings", "intercept", "x", "posterior")]
    for function in (elbo_exact, elbo_quadratic):
        with pytest.raises(error, match=message):
            function(*args, Bernoulli(), **given_)


@pytest.mark.any_precision
def test_bad_decoders_and_points_are_named():
    x, q = np.zeros((2, 3)), Posterior(np.zeros((2, 1)), np.eye(1))
    with pytest.raises(TypeError, match="decoder: "):
        elbo_taylor(np.zeros((3, 1)), x, q, Bernoulli())
    with pytest.raises(ValueError, match=r"decoder: .*\(3,\)"):
        elbo_taylor(lambda z: z, x, q, Bernoulli())
    with pytest.raises(ValueError, match=r"decoder: .*\(3,\)"):
        elbo_monte_carlo(jax.random.key(0), lambda z: z, x, q, Bernoulli())
    with pytest.raises(ValueError, match="z0: "):
        elbo_taylor(lambda z: jnp.zeros(3), x, q, Bernoulli(), z0=np.zeros(2))
    with pytest.raises(ValueError, match="z0: "):
        optimal_posterior(lambda z: jnp.zeros(3), x, Bernoulli(), z0=0.0)
    with pytest.raises(ValueError, match=r"z0: .*nan"):
        optimal_posterior(lambda z: jnp.zeros(3), x, Bernoulli(), z0=[np.nan])
    for bad, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_samples: "):
            elbo_monte_carlo(jax.random.key(0), lambda z: jnp.zeros(3), x, q, Bernoulli(), num_samples=bad)
