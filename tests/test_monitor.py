"""An evaluation against the core's ELBOs on all rows at once, and the reference line against Corollary 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from tables import all_refused

from glmvae import (
    Objective,
    Rows,
    elbo_exact,
    elbo_monte_carlo,
    elbo_quadratic,
    expected_remainder_bounds,
    fit,
    initializers,
    kl_divergence,
    monitor,
    nets,
    posterior,
    tighten,
    training,
)
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gamma, Gaussian, Mixed, NegativeBinomial, Poisson
from glmvae.model import unchecked

COLUMNS, LATENT = 5, 2
# Sums over 1203 rows in another order.
ROUNDING = {"float32": 1e-5, "float64": 1e-12}


def counts(dtype, rows=1203):  # two full blocks and a part of one
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, COLUMNS))
    return rng.poisson(np.exp(0.4 * eta)).astype(dtype)


@pytest.fixture(scope="module", params=["canonical", pytest.param("deep", marks=pytest.mark.float64)])
def started(request):
    x = jnp.asarray(counts(jnp.result_type(float)))
    optimum = fit(x, Poisson(), LATENT)
    key = jax.random.key(0)
    if request.param == "canonical":
        vae = nets.canonical(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    else:
        vae = nets.deep(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,), decoder_widths=(8,))
    return initializers.pass_through(key, vae, optimum), optimum, x


def test_an_evaluation_is_that_of_all_rows_at_once(started, dtype):
    vae, optimum, x = started
    at = monitor.evaluate(jax.random.key(1), vae, x, test=x[:7], num_samples=50, step=3)
    expected = elbo_exact(optimum, x, posterior(optimum, x))
    if vae.affine_decoder:
        tolerance = ROUNDING[str(dtype)] * abs(float(expected.mean()))
        assert float(at.train_error) == float(at.test_error) == 0
    else:
        key, q = jax.random.key(1), vae.encoder(x)
        error = np.asarray(elbo_monte_carlo(key, vae.decoder, x, q, vae.objective, num_samples=50)[1])
        np.testing.assert_allclose(at.train_error, np.sqrt(np.sum(error**2)) / len(x), rtol=1e-5)
        assert 0 < float(at.train_error) < 0.1 * error.max()
        tolerance = 5 * float(at.train_error)
    assert abs(float(at.train_elbo - expected.mean())) <= tolerance
    # rows counted twice, as they would be were the last block not weighted, show
    expected = np.asarray(expected)
    twice = np.concatenate([expected[:1000], expected[703:]]).mean()
    assert abs(float(twice - expected.mean())) > 10 * ROUNDING[str(dtype)]
    test_gap = abs(float(at.test_elbo - expected[:7].mean()))
    assert test_gap <= (ROUNDING[str(dtype)] * 10 if vae.affine_decoder else 5 * float(at.test_error))
    q = vae.encoder(x)
    np.testing.assert_allclose(at.kl.sum(), kl_divergence(q).mean(), rtol=ROUNDING[str(dtype)])
    np.testing.assert_allclose(at.activity, np.var(np.asarray(q.mean), axis=0), rtol=10 * ROUNDING[str(dtype)])
    assert int(at.active_units) == 2
    assert int(at.step) == 3
    assert at.train_elbo.dtype == dtype


@pytest.mark.any_precision
def test_a_pruned_unit_is_not_active(dtype):
    x = counts(dtype)
    optimum = fit(x, Poisson(), LATENT, beta=float(fit(x, Poisson(), LATENT).eigenvalues[1]) * 1.01)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    at = monitor.evaluate(jax.random.key(1), initializers.pass_through(jax.random.key(0), vae, optimum), x)
    assert int(at.active_units) == 1
    assert float(at.kl[1]) == 0
    assert jnp.isnan(at.test_elbo)


def test_the_objective_of_the_net_enters(dtype):
    x = np.random.default_rng(0).normal(size=(40, COLUMNS)).astype(dtype)
    optimum = fit(x, Gaussian(), LATENT, beta=0.1, dispersion=0.5)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, optimum.model.objective, encoder_widths=(8,))
    vae = initializers.pass_through(jax.random.key(0), vae, optimum)
    at = monitor.evaluate(jax.random.key(1), vae, x)
    np.testing.assert_allclose(at.train_elbo, optimum.elbo_taylor, rtol=ROUNDING[str(dtype)])
    np.testing.assert_allclose(at.beta, 0.1, rtol=1e-6)
    for wrong in (vae.with_beta(1.0), vae.with_dispersion(1.0)):
        off = monitor.evaluate(jax.random.key(1), wrong, x)
        assert abs(float(off.train_elbo - optimum.elbo_taylor)) > 0.01


# Rows with what they bring --------------------------------------------------------------------------------


def poisson_rows(n):
    rng = np.random.default_rng(0)
    offset = rng.normal(size=(n, 1))
    x = rng.poisson(np.exp(0.4 * rng.normal(size=(n, COLUMNS)) + offset)).astype(float)
    return Rows(x, offset=offset, missing=rng.random(x.shape) < 0.2, weight=rng.integers(0, 4, n).astype(float))


def binomial_rows(n):
    trials = np.random.default_rng(0).integers(1, 9, size=(n, COLUMNS)).astype(float)
    return Rows(np.floor(trials / 2), trials=trials)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("architecture", "make", "family"),
    [
        ("canonical", poisson_rows, Poisson()),
        ("deep", poisson_rows, Poisson()),
        ("deep", binomial_rows, Binomial(None)),
    ],
    ids=["poisson, canonical", "poisson, deep", "binomial, deep"],
)
def test_what_rows_bring_stays_with_them_in_blocks(architecture, make, family):
    """Two blocks, against the mean of parts that are evaluated on their own."""
    rows = make(160)
    widths = {"encoder_widths": (8,), "decoder_widths": () if architecture == "canonical" else (8,)}
    standardise = nets.standardisation(rows, family)
    vae = nets.deep(jax.random.key(0), COLUMNS, LATENT, family, **widths, standardise=standardise)
    whole = monitor.evaluate(jax.random.key(1), vae, rows, num_samples=100)
    parts, weights = [], []
    for cut in (slice(0, 128), slice(128, 160)):
        part = rows.map(lambda leaf, cut=cut: leaf[cut])
        parts.append(monitor.evaluate(jax.random.key(1), vae, part, num_samples=100))
        weights.append(len(part.x) if part.weight is None else part.weight.sum())
    mean = np.average([p.train_elbo for p in parts], weights=weights)
    error = np.sqrt(np.sum([(w * p.train_error / np.sum(weights)) ** 2 for w, p in zip(weights, parts, strict=True)]))
    assert abs(whole.train_elbo - mean) <= 5 * np.hypot(error, whole.train_error) + 1e-5 * abs(mean)
    np.testing.assert_allclose(whole.kl, np.average([p.kl for p in parts], axis=0, weights=weights), rtol=1e-5)
    # without what they bring it is another number
    bare = Rows(np.asarray(rows.x), trials=None if rows.trials is None else np.maximum(rows.trials[::-1], rows.x))
    other = monitor.evaluate(jax.random.key(1), vae, bare, num_samples=100)
    assert abs(other.train_elbo - mean) > 0.05


@pytest.mark.any_precision
def test_evaluations_read_batches_too():
    x = counts(np.float32, 300)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    whole = monitor.evaluate(jax.random.key(1), vae, x)
    batches = monitor.evaluate(jax.random.key(1), vae, lambda: iter([x[:100], x[100:]]))
    np.testing.assert_allclose(batches.train_elbo, whole.train_elbo, rtol=1e-6)
    with pytest.raises(ValueError, match="several passes"):
        monitor.evaluate(jax.random.key(1), vae, iter([x[:100], x[100:]]))


# The reference --------------------------------------------------------------------------------------------

MIXED = Mixed([(Bernoulli(), [0]), (Poisson(), [1, 2]), (Gaussian(), [3, 4])])
REFERENCES = [
    Poisson(),
    MIXED,
    *(pytest.param(f, marks=pytest.mark.float64) for f in (Bernoulli(), Gaussian(), Gamma(), NegativeBinomial(3.0))),
]


@pytest.mark.parametrize("family", REFERENCES, ids=repr)
def test_the_bracket_holds_the_exact_elbo_of_the_optimum(family, dtype):
    x = counts(dtype)
    x = (x + (0.5 if isinstance(family, Gamma) else 0)).astype(dtype)
    if isinstance(family, Bernoulli | Mixed):
        columns = slice(None) if isinstance(family, Bernoulli) else 0
        x[:, columns] = np.minimum(x[:, columns], 1.0)
    optimum = fit(x, family, LATENT, dispersion=1.0)
    line = monitor.reference(optimum, x)
    q = posterior(optimum, x)
    exact = np.asarray(elbo_exact(optimum, x, q)).mean()
    slack = ROUNDING[str(dtype)] * 10
    np.testing.assert_allclose(line.elbo_exact, exact, rtol=slack)
    np.testing.assert_allclose(line.elbo_taylor, optimum.elbo_taylor, rtol=slack)
    assert line.lower - slack <= exact <= line.upper + slack
    w, taylor = np.asarray(optimum.loadings), np.asarray(optimum.elbo_taylor)
    mean = np.asarray(q.mean) @ w.T + np.asarray(optimum.intercept)
    variance = np.diagonal(w @ np.asarray(optimum.encoder.covariance) @ w.T)
    bounds = expected_remainder_bounds(family, mean, variance, optimum.expansion_point, x=x)
    lower, upper = map(np.asarray, bounds)
    np.testing.assert_allclose(line.lower, taylor + lower.sum(1).mean(), rtol=slack)
    np.testing.assert_allclose(line.upper, taylor + upper.sum(1).mean(), rtol=slack)
    if isinstance(family, Gaussian):
        assert float(line.upper) == float(line.lower)
    else:
        assert not float(optimum.elbo_taylor) + 2 * slack >= exact >= float(optimum.elbo_taylor) - 2 * slack


@pytest.mark.any_precision
def test_a_reference_at_its_own_beta_dispersion_and_expansion_point():
    x = counts(jnp.float32)
    for options in ({"beta": 0.5}, {"expand_at": "null"}):
        optimum = fit(x, Poisson(), LATENT, **options)
        line = monitor.reference(optimum, x)
        np.testing.assert_allclose(line.elbo_taylor, optimum.elbo_taylor, rtol=1e-5)
        assert line.lower <= line.elbo_exact <= line.upper
    test = monitor.reference(optimum, x[:50])  # other rows than those of the fit
    assert abs(test.elbo_taylor - line.elbo_taylor) > 0.01
    weighted = monitor.reference(optimum, Rows(x, weight=np.arange(len(x)) < 50))
    np.testing.assert_allclose(weighted, test, rtol=1e-5)


@pytest.mark.any_precision
def test_a_reference_of_trials_an_entry_and_of_an_offset():
    rows = binomial_rows(160)
    optimum = fit(rows, Binomial(None), LATENT)
    line = monitor.reference(optimum, rows)
    np.testing.assert_allclose(line.elbo_taylor, optimum.elbo_taylor, rtol=1e-5)
    slack = 1e-12 * abs(line.elbo_exact)  # the docstring's "up to rounding": sums over rows in three orders
    assert line.lower - slack <= line.elbo_exact <= line.upper + slack
    rng = np.random.default_rng(0)
    gaussian = Rows(rng.normal(size=(300, COLUMNS)), offset=rng.normal(size=(300, 1)))
    optimum = fit(gaussian, Gaussian(), LATENT)
    line = monitor.reference(optimum, gaussian)
    np.testing.assert_allclose(line.elbo_exact, optimum.elbo_taylor, rtol=1e-5)
    far = 3.0 * rng.normal(size=(300, 1))
    binary = Rows((rng.normal(size=(300, COLUMNS)) + far > 0).astype(float), offset=far)
    optimum = fit(binary, Bernoulli(), LATENT)
    line = monitor.reference(optimum, binary)
    np.testing.assert_allclose(line.elbo_taylor, optimum.elbo_taylor, rtol=1e-5)
    assert line.lower - slack <= line.elbo_exact <= line.upper + slack
    at_zero = elbo_quadratic(optimum, binary, posterior(optimum, binary))
    assert np.mean(at_zero) < line.elbo_taylor - 1  # expanded at 0, an offset left aside


@pytest.mark.any_precision
def test_a_family_without_remainder_bounds_has_no_bracket(dtype):
    x = counts(dtype)
    poisson = CustomFamily(jnp.exp)
    line = monitor.reference(fit(x, poisson, LATENT, dispersion=1.0), x)
    assert np.isnan(line.lower)
    assert np.isnan(line.upper)
    assert np.isfinite(line.elbo_exact)


@pytest.mark.any_precision
def test_no_nan_is_made_where_jax_looks_for_it(dtype):
    """Without test data, and for a family without bounds, a NaN is what is meant."""
    x = counts(dtype, 40)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,))
    deep = nets.deep(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,), decoder_widths=(8,))
    optimum = fit(x, CustomFamily(jnp.exp), LATENT, dispersion=1.0)
    gamma = fit(x + 1, Gamma(), LATENT, dispersion=1.0)
    with jax.debug_nans(True):
        assert np.isnan(monitor.evaluate(jax.random.key(1), vae, x).test_elbo)
        assert np.isnan(monitor.evaluate(jax.random.key(1), deep, x, num_samples=1).train_error)
        assert np.isnan(monitor.reference(optimum, x).lower)
        assert np.isfinite(monitor.reference(gamma, x + 1).lower)


@pytest.mark.any_precision
def test_bad_arguments_are_named(started):
    vae, optimum, x = started
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="x: expected 5 columns"):
        monitor.evaluate(key, vae, x[:, :3])
    with pytest.raises(ValueError, match="test: expected values in the support"):
        monitor.evaluate(key, vae, x, test=-x)
    with pytest.raises(ValueError, match="x: expected 5 columns"):
        monitor.reference(optimum, x[:, :3])
    deep = nets.deep(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,), decoder_widths=(8,))
    with pytest.raises(ValueError, match="num_samples: expected an integer of at least 1"):
        monitor.evaluate(key, deep, x, num_samples=0)
    with pytest.raises(TypeError, match=r"vae: expected a net from glmvae.nets, got AffineOptimum"):
        monitor.evaluate(key, optimum, x)
    with pytest.raises(TypeError, match=r"key: expected .*jax.random.key"):
        monitor.evaluate(0, vae, x)
    for wrong in (Poisson(), vae, deep, None):
        with pytest.raises(TypeError, match="optimum: expected an AffineOptimum, as fit returns, got "):
            monitor.reference(wrong, x)
    with pytest.raises(TypeError, match="test: expected an array of numbers, got dict"):
        monitor.evaluate(key, vae, x, test={})
    with pytest.raises(TypeError, match=r"optimum: expected an AffineOptimum, .* got RefinedOptimum"):
        monitor.reference(tighten(fit(np.minimum(x, 1.0), Bernoulli(), LATENT), np.minimum(x, 1.0)), x)
    with pytest.raises(ValueError, match=r"trials: Poisson\(\) takes none"):
        monitor.evaluate(key, vae, Rows(x, trials=np.ones((1, COLUMNS))))
    with pytest.raises(ValueError, match="covariates: the decoder has coefficients for 0"):
        monitor.evaluate(key, vae, Rows(x, covariates=np.ones((len(x), 1))))


@pytest.mark.any_precision
@pytest.mark.parametrize("precision", ["float32", None])
def test_test_data_unlike_those_of_training_are_refused(precision):
    """By the names of the columns, whatever the precision of the net, and by what the rows bring."""
    x, key = counts(np.float64, 40), jax.random.key(0)
    vae = nets.canonical(key, COLUMNS, LATENT, Poisson(), encoder_widths=(8,), dtype=precision)
    table, offset = pd.DataFrame(x, columns=list("abcde")), Rows(x, offset=np.zeros(40))
    wrong = [
        (table, table[list("abdce")], r'test: expected the columns of x, "c" at 2, got "d"'),
        (offset, x, r"test: expected an offset as x brings one, got none; zeros say"),
        (table, offset, r"test: expected no offset as x brings none, got one; zeros say"),
    ]

    def evaluate(data, test):
        return monitor.evaluate(key, vae, data, test=test)

    def train(data, test):
        return training.train(key, vae, data, test=test, steps=1, batch_size=40)

    checks = [(lambda f=f, d=d, t=t: f(d, t), ValueError, said) for d, t, said in wrong for f in (evaluate, train)]
    all_refused([*checks, (lambda: evaluate(lambda: iter([table]), wrong[0][1]), ValueError, wrong[0][2])])
    at = evaluate(table, table[:20])
    np.testing.assert_array_equal(at.test_elbo, evaluate(table, x[:20]).test_elbo)  # one without names


@pytest.mark.any_precision
def test_an_evaluation_at_beta_0_is_the_reconstruction(started, dtype):
    """Where annealing starts; `train` asks for it, an Objective would refuse."""
    vae, _, x = started
    vae = vae.with_beta(1.0)
    one = monitor.evaluate(jax.random.key(1), vae, x[:50])
    vae.objective = unchecked(Objective, family=vae.family, beta=jnp.zeros((), dtype), dispersion=vae.dispersion)
    zero = monitor.evaluate(jax.random.key(1), vae, x[:50])
    np.testing.assert_allclose(zero.train_elbo, one.train_elbo + one.kl.sum(), rtol=1e-5)
    assert float(zero.beta) == 0


@pytest.mark.any_precision
def test_an_elbo_out_of_range_is_no_warning():
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Poisson(), encoder_widths=(8,), dtype="float32")
    vae.output_layer.bias[...] = vae.output_layer.bias[...] + 200.0
    assert not np.isfinite(monitor.evaluate(jax.random.key(1), vae, counts(jnp.float32, 40)).train_elbo)
