"""What a refined optimum carries: an encoder, posteriors of its rows and of new ones, one precision."""

import warnings
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ascent_cases import ROUNDING, TIGHT, D, K, N, case
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.special import gammaln

from glmvae import Affine, Objective, Posterior, Rows, best_posterior, elbo_exact, fit, posterior, refine, tighten
from glmvae.ascent import encoder
from glmvae.ascent.encoder import _holds, _Point, _start
from glmvae.ascent.encoder_passes import Equations, called_for, curved
from glmvae.ascent.passes import entry_pass, exact_pass
from glmvae.ascent.row_posteriors import no_change, prior_like
from glmvae.blocks import Store, _program
from glmvae.families import Bernoulli, Binomial, Exponential, Gamma, Gaussian, NegativeBinomial, Poisson

pytestmark = pytest.mark.float64

# The encoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bernoulli", "poisson"])
def test_the_encoder_is_the_best_affine_one(kind):
    c = case(kind)
    x = np.asarray(c.x, float)
    r = refine(c.start, x, tolerance=1e-6)
    q = posterior(r, x)
    np.testing.assert_allclose(q.mean, x @ r.encoder.weight.T + r.encoder.bias, atol=1e-12)

    def value(weight, bias, covariance):
        mean = x @ weight.T + bias
        return c.elbo(r, q._replace(mean=mean, covariance=covariance[None]))

    weight, bias, covariance = (np.asarray(part) for part in r.encoder[:3])
    here = value(weight, bias, covariance)
    np.testing.assert_allclose(here, c.elbo(r, q), rtol=1e-9)
    assert here < r.elbo
    # a maximum in all three, to 2e-3 nats; its own tolerance is a hundredth of what it loses: 1e-4, and 0.04 of counts
    rng = np.random.default_rng(0)
    for size in (0.01, 0.1):
        for _ in range(10):
            assert value(weight + size * rng.normal(size=weight.shape), bias, covariance) < here + 2e-3
            assert value(weight, bias + size * rng.normal(size=K), covariance) < here + 2e-3
            assert value(weight, bias, covariance * (1 + size * rng.normal())) < here + 2e-3
    assert value(0.8 * weight, bias, covariance) < here - 2e-3  # nats: the claim is sharper than the tolerance
    # never below the encoder of the closed form, at its decoder
    assert here > c.elbo(c.start, posterior(c.start, x))


def test_columns_of_very_different_scale_are_all_looked_at():
    """In single precision the variance of small columns is nothing beside that of the largest."""
    c, scale = case("gaussian"), np.array([1e4, 1.0, 1.0, 1e-3, 1.0])
    x, phi = (c.x * scale).astype(np.float32), (0.5 * scale**2).astype(np.float32)
    start = fit(x, c.family, K, dispersion=phi)
    r = refine(start, x)
    assert r.loadings.dtype == np.float32

    def reached(encoder):
        return float(
            np.mean(elbo_exact(r, x, Posterior(x @ encoder.weight.T + encoder.bias, encoder.covariance[None])))
        )

    assert reached(r.encoder) > np.mean(elbo_exact(start, x, posterior(start, x))) - 1e-3
    # control: small columns left out, as their variance has it
    slopes = np.asarray(r.encoder.weight) * (scale > 1)
    bias = r.encoder.bias + (r.encoder.weight - slopes) @ x.mean(axis=0)
    assert reached(r.encoder._replace(weight=slopes, bias=bias)) < reached(r.encoder) - 0.1


def test_slopes_that_overshoot_by_more_than_is_left_to_gain_are_halved():
    def start_where(value, slope):
        def at(whitened, covariance):
            length = float(np.max(np.abs(whitened[:, :-1])))
            gradient = np.full(whitened.shape, slope(length) / (K * D))
            return _Point(whitened, covariance, value(length), gradient, Store(), covariance)

        found = _start(np.ones((K, D)), np.arange(float(K)), np.eye(K), at, 0.0).whitened
        np.testing.assert_array_equal(found[:, -1], np.arange(float(K)))
        assert np.ptp(found[:, :-1]) == 0
        return found[0, 0]

    for limit, length in ((1.0, 1.0), (0.6, 0.5), (0.1, 0.0625), (0.01, 0.0)):
        assert start_where(lambda t, limit=limit: t - 2 if t <= limit else -np.inf, lambda t: 1.0) == length
    assert start_where(lambda t: -100 * (t - 0.3) ** 2, lambda t: -200 * (t - 0.3)) == 0.25
    assert start_where(lambda t: -((t - 0.9) ** 2) - 1, lambda t: -2 * (t - 0.9)) == 1.0  # it falls, by less than 1
    assert start_where(lambda t: -2.0 if t < 1 else -1.0, lambda t: -10.0) == 1.0  # not concave: the better of two
    assert start_where(lambda t: -100 * t - t**2, lambda t: -100 - 2 * t) == 0.0  # Control: none may be the best


def test_slopes_hold_where_the_elbo_falls_along_them_by_no_more_than_is_left():
    eye = np.eye(1)
    point = _Point(np.array([[3.0, 5.0]]), eye, -10.0, np.array([[-4.0, 7.0]]), Store(), eye)  # it falls by 12
    assert _holds(point, 2.0)
    assert not _holds(point, 1.9)
    assert _holds(point, -8.0, 6.0)
    assert not _holds(point._replace(elbo=-np.inf), 2.0)


def test_damping_that_was_more_than_need_be_is_taken_back(monkeypatch):
    """1e-6, 1e-4, 0.1: too little. 1000: so much that nothing is left to gain."""
    point = _Point(np.zeros((1, 1)), np.array([[1e3]]), 0.0, np.ones((1, 1)), Store(), np.array([[1e-3]]))
    tried = []

    def newton(point, data, damping, solved):
        tried.append(damping)
        return point.gradient / (point.curvature + damping)

    def at(longest, whitened, covariance):
        return point._replace(whitened=whitened, elbo=1.0 if whitened[0, 0] <= longest else -1.0)

    monkeypatch.setattr(encoder, "_newton", newton)
    data = SimpleNamespace(beta=1.0)
    found, damping = encoder._raised(point, 0.0, data, partial(at, 1e-2), 0.1)
    assert max(tried) > damping == tried[-1]
    assert found.elbo == 1
    assert 1e-3 < 0.5 * found.whitened[0, 0] < 1e-2
    tried.clear()
    assert encoder._raised(point, 0.0, data, partial(at, 1e-5), 0.1)[0] is None  # Control: no step that gains enough
    assert len(tried) < 20


@pytest.mark.parametrize("kind", [np.float64, np.uint8])
def test_the_products_of_a_step_are_those_of_the_dense_curvature(kind, dtype):
    """Run as NumPy where rows lie on the host, compiled elsewhere."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 9, size=(20, D)).astype(kind), rng.integers(0, 3, size=20).astype(dtype)
    half = rng.normal(size=(20, K, K))
    centre, curvature = (a.astype(dtype) for a in (x.mean(axis=0), half @ half.transpose(0, 2, 1)))
    shared, slopes, level = (rng.normal(size=size).astype(dtype) for size in ((K, K), (K, D), K))
    args = (Equations(None, curvature), centre, slopes, level, shared + shared.T)
    dense = np.zeros((K, D + 1))
    for i in range(20):
        y = np.append(x[i] - centre.astype(float), 1.0)
        whole = weight[i] * (curvature[i].astype(float) + shared + shared.T)
        dense += np.outer(whole @ (np.column_stack([slopes, level]) @ y), y)
    for rows, f in (
        (Rows(x, weight=weight), curved),
        (Rows(jnp.asarray(x), weight=jnp.asarray(weight)), jax.jit(curved)),
    ):
        (against, summed), _ = f(rows, *args)
        assert isinstance(against, np.ndarray) == (f is curved)
        assert against.dtype == dtype
        found = np.column_stack([against, summed])
        np.testing.assert_allclose(found, dense, rtol=0, atol=64 * float(jnp.finfo(dtype).eps) * np.abs(dense).max())
    assert np.abs(dense - found).max() < 1e-3 * np.abs(dense[:, ::-1] - found).max()  # Control: columns the other way


def test_what_rows_call_for_is_summed_as_by_a_loop(dtype):
    """As NumPy where rows lie on the host, compiled elsewhere."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 9, size=(20, D)).astype(np.uint8), rng.integers(0, 3, size=20).astype(dtype)
    vectors, centre = rng.normal(size=(20, K)).astype(dtype), x.mean(axis=0).astype(dtype)
    expected = [np.zeros((K, D)), np.zeros(K)]
    for i in range(20):
        row = weight[i] * np.outer(vectors[i], x[i] - centre), weight[i] * vectors[i]
        expected = [a + b for a, b in zip(expected, row, strict=True)]
    for rows, f in (
        (Rows(x, weight=weight), called_for),
        (Rows(jnp.asarray(x), weight=jnp.asarray(weight)), jax.jit(called_for)),
    ):
        found, _ = f(rows, Equations(vectors, None), centre)
        for got, right in zip(found, expected, strict=True):
            assert isinstance(got, np.ndarray) == (f is called_for)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, right, rtol=0, atol=64 * float(jnp.finfo(dtype).eps) * np.abs(right).max())
    assert np.abs(np.sum(vectors, axis=0) - expected[1]).max() > 0.1  # Control: whatever they weigh


def test_a_row_that_weighs_nothing_does_nothing_to_the_encoder():
    """Whatever it is: an affine function of it may be out of range."""
    c = case("poisson")
    x = np.concatenate([np.asarray(c.x, float), np.full((1, D), 1e5)])
    start = fit(c.x, Poisson(), K, expand_at="null")
    alone = refine(start, c.x, tolerance=1e-6).encoder
    for weight, off in ((0.0, False), (1.0, True)):  # Control: of a weight of 1 it does
        there = refine(start, Rows(x, weight=np.r_[np.ones(N), weight]), tolerance=1e-6).encoder
        assert (np.abs(there.weight - alone.weight).max() > 1e-3 * np.abs(alone.weight).max()) == off


def test_the_encoder_of_heavy_tailed_counts_is_found_in_silence():
    rng = np.random.default_rng(1)
    level = 3.5 * rng.normal(size=(N, 1)) + rng.normal(size=(N, 1)) * rng.normal(size=(1, D))
    x = rng.poisson(np.exp(level)).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = refine(fit(x, Poisson(), K), x, tolerance=1e-3)
    shared, design = r.encoder.covariance[None], np.concatenate([x, np.ones((N, 1))], axis=1)
    linear = design @ np.linalg.lstsq(design, np.asarray(r.posterior.mean), rcond=None)[0]
    constant = np.broadcast_to(np.mean(r.posterior.mean, axis=0), (N, K))
    ways = (constant, linear, posterior(r, x).mean, r.posterior.mean)
    values = [float(np.mean(elbo_exact(r, x, Posterior(mean, shared)))) for mean in ways[:3]] + [float(r.elbo)]
    assert values == sorted(values)
    assert values[2] > values[1] + 1  # nats


@pytest.mark.parametrize("seed", [1, 3])
def test_of_heavy_tailed_counts_too_no_other_encoder_is_better(seed):
    """Where the regression overflows, an ascent that cannot see past the overflow stops far below the best."""
    rng = np.random.default_rng(seed)
    level = 3.5 * rng.normal(size=(80, 1)) + rng.normal(size=(80, 1)) * rng.normal(size=(1, D))
    x = rng.poisson(np.exp(np.minimum(level, 9))).astype(float)
    r = refine(fit(x, Poisson(), K), x, tolerance=1e-3)
    root, mean = np.linalg.cholesky(np.cov(x.T, bias=True)), x.mean(axis=0)
    y = np.concatenate([np.linalg.solve(root, (x - mean).T).T, np.ones((80, 1))], axis=1)

    @jax.jit
    def value(slopes, level):
        mean = y @ jnp.concatenate([slopes, level[:, None]], axis=1).T
        return jnp.mean(elbo_exact(r, x, Posterior(mean, r.encoder.covariance[None])))

    def left_to_gain(slopes):
        """By Newton's method, of one dense system."""
        parts = slopes, jnp.asarray(r.encoder.bias + r.encoder.weight @ mean)
        flat, back = ravel_pytree(parts)
        gradient = jax.grad(lambda flat: value(*back(flat)))(flat)
        return 0.5 * gradient @ jnp.linalg.solve(-jax.hessian(lambda flat: value(*back(flat)))(flat), gradient)

    slopes = r.encoder.weight @ root
    enough = 1e-3 * (r.elbo - value(slopes, r.encoder.bias + r.encoder.weight @ mean))  # of what the encoder loses
    assert 0 <= left_to_gain(slopes) < enough
    assert left_to_gain(0.9 * slopes) > enough


@pytest.mark.parametrize("seed", [1, 3])
def test_of_sparse_counts_of_every_size_the_encoder_is_no_dead_end(seed):
    """Far below the best whole steps overshoot by orders of magnitude, and short ones lead nowhere near it."""
    rng = np.random.default_rng(seed)
    sizes = np.floor(np.exp(np.minimum(4 * rng.normal(size=(60, 20)) + 1, 11)))
    x = np.where(rng.uniform(size=sizes.shape) < 0.1, sizes, 0.0)
    x[0] += x.sum(axis=0) == 0
    r = refine(fit(x, Poisson(), 2), x, max_rounds=40)
    w, b, spread = np.asarray(r.loadings), np.asarray(r.intercept), x.std(axis=0)
    y, base = (x - x.mean(axis=0)) / spread, np.mean(np.sum(gammaln(x + 1), axis=1))
    lower = np.tril_indices(2)

    def loss(flat):
        """Less the ELBO, and its gradient, in the slopes, the level and a Cholesky factor."""
        slopes, level, root = flat[:40].reshape(2, 20), flat[40:42], np.zeros((2, 2))
        root[lower] = flat[42:]
        mean, covariance = y @ slopes.T + level, root @ root.T
        rate = np.exp(np.minimum(mean @ w.T + b + np.einsum("jk,kl,jl->j", w, covariance, w) / 2, 300))
        kl = 0.5 * (np.sum(mean**2) / 60 + np.trace(covariance) - 2 - 2 * np.log(np.abs(np.diag(root))).sum())
        residual = ((x - rate) @ w - mean) / 60
        curvature = w.T @ (w * rate.mean(axis=0)[:, None]) + np.eye(2)
        factor = (curvature @ root - np.linalg.inv(root).T)[lower]
        value = np.mean(np.sum(x * (mean @ w.T + b) - rate, axis=1)) - base - kl
        return -value, np.concatenate([-(residual.T @ y).ravel(), -residual.sum(axis=0), factor])

    root = np.linalg.cholesky(np.asarray(r.encoder.covariance))[lower]
    level = r.encoder.bias + r.encoder.weight @ x.mean(axis=0)
    found = np.r_[np.ravel(r.encoder.weight * spread), level, root]
    reached, best = -loss(found)[0], -minimize(loss, found, jac=True, options={"maxiter": 3000}).fun
    np.testing.assert_allclose(reached, np.mean(elbo_exact(r, x, posterior(r, x))), rtol=1e-9)
    enough = best - 2e-3 * (r.elbo - best)  # "about a thousandth of what it loses", twice that
    assert enough < reached <= best
    # Control: a regression of the posterior means on x
    regression = np.linalg.lstsq(np.c_[y, np.ones(60)], np.asarray(r.posterior.mean), rcond=None)[0]
    assert -loss(np.r_[np.ravel(regression[:-1].T), regression[-1], root])[0] < enough


def test_starts_rise_with_the_optimum():
    """A net is started by the encoder: the best optimum used to be the worst start (digits, beta 0.64)."""
    sklearn = pytest.importorskip("sklearn.datasets")
    x = (sklearn.load_digits().data[:500] > 7).astype("float32")
    start = fit(x, Bernoulli(), 8, beta=0.64)
    column, exact = tighten(start, x), refine(start, x, tolerance=1e-3, max_rounds=12)
    values = [float(np.mean(elbo_exact(o, x, posterior(o, x)))) for o in (start, column, exact)]
    assert values == sorted(values)
    assert values[2] > values[0] + 0.5
    assert exact.elbo > values[2]


def test_rows_that_no_affine_map_of_x_can_follow_have_no_encoder():
    c = case("poisson")
    fields = {"offset": np.zeros(N), "missing": np.eye(N, D, dtype=bool), "covariates": np.arange(N)[:, None] / N}
    for name, field in fields.items():
        r = refine(c.start, Rows(c.x, **{name: field}), max_rounds=2)
        assert r.encoder is None
        with pytest.raises(ValueError, match="best_posterior"):
            posterior(r, c.x)
    assert refine(c.start, Rows(c.x, weight=np.arange(N)), max_rounds=2).encoder is not None


# New rows ---------------------------------------------------------------------------------------------------


def test_posteriors_of_the_training_rows_are_those_of_the_ascent():
    c = case("poisson")
    r = refine(c.start, c.x, tolerance=TIGHT)
    q = best_posterior(r, c.x, tolerance=1e-13)
    np.testing.assert_allclose(q.mean, r.posterior.mean, atol=2e-3)
    # Stationary: no perturbation of a mean or a covariance does better.
    best = elbo_exact(r, c.x, q)
    for shift, factor in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.1), (0.0, 0.9)):
        assert np.all(elbo_exact(r, c.x, q._replace(mean=q.mean + shift, covariance=q.covariance * factor)) < best)
    some = best_posterior(r, c.x[7:10], tolerance=1e-13)
    np.testing.assert_allclose(some.mean, q.mean[7:10], atol=1e-6)


def test_posteriors_pass_through_transformations():
    c = case("bernoulli")
    q = best_posterior(c.start, c.x)
    compiled = jax.jit(lambda model, x: best_posterior(model, x))(c.start.model, c.x)
    np.testing.assert_allclose(compiled.mean, q.mean, atol=1e-9)
    betas = np.array([0.5, 1.0])
    each = jax.vmap(lambda beta: best_posterior(c.start.model.with_beta(beta), c.x).mean)(betas)
    np.testing.assert_allclose(each[1], q.mean, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 0.1


def test_the_strictest_settings_of_jax_are_borne():
    c = case("poisson")
    rows = Rows(c.x, offset=np.linspace(-1, 1, N), missing=np.eye(N, D, dtype=bool), weight=np.arange(N) % 3)
    start = fit(c.x, c.family, K, expand_at="null")
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        r = refine(start, rows, max_rounds=3)
        q = best_posterior(r, rows)
        plain = refine(start, c.x, max_rounds=3)
    assert np.all(np.isfinite(q.mean))
    assert plain.encoder is not None


# Precision --------------------------------------------------------------------------------------------------


def test_float32_rows_are_climbed_in_float32_while_x64_is_on():
    """Every bundled data set is float32, whatever the switch says; branches used to disagree in their types."""
    decoder, ones = Affine(np.ones((D, K), "float32"), np.zeros(D, "float32")), np.ones((N, D), "float32")
    settings = no_change(decoder), jnp.int32(3), jnp.float32(1e-6)
    for family in (Bernoulli(), Binomial(6), Poisson(), Gaussian(), Gamma(), Exponential(), NegativeBinomial(3.0)):
        objective = Objective(family, dispersion=np.float32(0.7))
        for one_pass in (exact_pass, entry_pass) if family.is_logistic else (exact_pass,):
            program = _program(one_pass, False, np.dtype("float32"))
            old = jax.tree.map(lambda a: np.repeat(a, N, axis=0), prior_like(decoder))
            found = jax.eval_shape(program, Rows(ones), old, family, (decoder, objective, *settings))
            assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "bool"}, family
    c = case("poisson", "float32")
    r = refine(c.start, c.x, tolerance=1e-4)
    parts = (r.model.decoder, r.beta, r.dispersion, r.posterior, r.encoder)
    leaves = [*jax.tree.leaves(parts), r.elbo, r.history, r.eigenvalues]
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    np.testing.assert_allclose(r.elbo, c.elbo(r), rtol=ROUNDING["float32"])
    assert {a.dtype.name for a in best_posterior(r, c.x)} == {"float32"}
    # and float64 rows meet a float32 optimum in float64 posteriors: never a mixture
    assert {a.dtype.name for a in best_posterior(r, case("poisson").x)} == {"float64"}


@pytest.mark.parametrize("level", [1e6, 1e7])
def test_large_counts_have_their_optimum_in_float32_too(level):
    """W' diag(w) W is up to 60 times what leaves I a digit beside it; units apart keep theirs."""
    rng = np.random.default_rng(0)
    x = rng.poisson(level * np.exp(rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) / 2)).astype("float64")
    single, double = (refine(fit(rows, Poisson(), 2, expand_at="null"), rows) for rows in (x.astype("float32"), x))
    assert single.elbo.dtype == np.float32
    # rounding: eta = 16 is held to 1e-6, so a mean of 1e7 to 10, beside a standard deviation of 3e3
    assert abs(float(single.elbo) - float(double.elbo)) < 1e-2
    wide = double.posterior._replace(covariance=12 * double.posterior.covariance)
    assert elbo_exact(double, x, wide).mean() < double.elbo - 5  # what a posterior that is too wide loses
