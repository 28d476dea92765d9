"""Mixed columns: with one family it is that family; with several, each block by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from family_cases import run
from scipy.special import digamma

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Rows,
    activity,
    activity_path,
    affine_posterior,
    beta_for_active_units,
    collapse_onset,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    expand,
    expected_remainder_bounds,
    fit,
    kl_divergence,
    merge,
    moments,
    optimal_posterior,
    posterior,
    refine,
    remainder_bounds,
    tighten,
)
from glmvae.families import (
    Bernoulli,
    Binomial,
    Exponential,
    Family,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
)

# Sums of a few dozen terms in another order; float32 has 24 bits.
RELATIVE = {"float64": 1e-11, "float32": 2e-4}
ROWS, COLUMNS, UNITS = 30, 5, 2

TABLE = Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1]), (Gaussian(), [4, 2])])
PHI = (1.0, 1.0, 0.3, 1.0, 0.6)


def table(dtype, seed=0):
    """Binary, count, real, binary, real, all driven by one factor."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(ROWS, 1))
    eta = z @ [[1.5, 0.5, 1.0, -1.5, 0.7]] + [0.0, 0.7, 2.0, -0.3, -1.0]
    x = eta + 0.5 * rng.normal(size=eta.shape)
    x[:, [0, 3]] = rng.random((ROWS, 2)) < 1 / (1 + np.exp(-eta[:, [0, 3]]))
    x[:, 1] = rng.poisson(np.exp(eta[:, 1]))
    return x.astype(dtype)


def close(got, expected, dtype, factor=1.0):
    tolerance = factor * RELATIVE[dtype.name]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


# One family -----------------------------------------------------------------------------------------------

TRIALS = np.array([1.0, 2.0, 5.0, 3.0, 9.0])
ALONE = [
    (Gaussian(), Mixed([(Gaussian(), slice(0, 5))])),
    pytest.param(
        Binomial(TRIALS),
        Mixed([(Binomial(TRIALS[[2, 0]]), [2, 0]), (Binomial(TRIALS[[1, 3, 4]]), [1, 3, 4])]),
        marks=pytest.mark.float64,
    ),
    pytest.param(Gamma(), Mixed([(Gamma(), np.array([4, 3, 2, 1, 0]))]), marks=pytest.mark.float64),
]


def plain_data(family, dtype):
    rng = np.random.default_rng(1)
    level = np.exp(rng.normal(size=(ROWS, 1)) * [0.5, -0.3, 0.4, 0.6, -0.4])
    if isinstance(family, Gaussian | Gamma):
        return (level * rng.gamma(2.0, 0.5, size=(ROWS, COLUMNS))).astype(dtype)
    return np.minimum(rng.poisson(2 * level), TRIALS).astype(dtype)


@jax.jit
def methods(f, x, eta, phi):
    """Those of a family that take columns."""
    mean, variance = x * 0 + eta, x * 0 + 0.3
    return {
        "link": f.link(f.mean(eta)),
        "expected": f.expected_terms(x, mean, variance, phi),
        "saturated": f.saturated_log_prob(x, phi),
        "rounding": f.rounding_size(x, mean, variance, phi),
        "log_normalizer": f.log_normalizer(f.natural_parameter(eta)),
        "mean_derivative": f.mean_derivative(eta),
        "log_base_measure": f.log_base_measure(x, phi),
    }


@pytest.mark.parametrize(("family", "mixed"), ALONE, ids=lambda f: type(f).__name__)
def test_with_one_family_every_function_gives_what_the_family_gives(family, mixed, dtype):
    x = plain_data(family, dtype)
    phi = np.asarray([0.5, 1.0, 0.7, 2.0, 0.9], dtype)
    options = {"beta": 0.5, "dispersion": phi}
    z = posterior(fit(x, family, UNITS, **options), x)  # one for both
    eta = np.linspace(-1, 1, COLUMNS, dtype=dtype)

    def everything(f):
        data = moments(x, family=f)
        zero, null = fit(x, f, UNITS, **options), fit(data, f, UNITS, expand_at="null", **options)
        w, model, decoder = np.asarray(zero.loadings), zero.model, zero.decoder

        results = {
            "moments": (data.mean, data.covariance, data.base_statistic),
            "merge": merge(data, data).base_statistic,
            "fit": (zero.eigenvalues, zero.elbo_taylor, null.eigenvalues, null.elbo_taylor, null.intercept),
            "activity": activity(zero),
            "decoder": w @ w.T,
            "posterior": np.asarray(posterior(zero, x).mean) @ w.T,
            "expand": tuple(expand(x, f, expand_at="null", dispersion=phi)),
            "elbo_exact": elbo_exact(model, x, z),
            "elbo_quadratic": elbo_quadratic(model, x, z, expand_at="null"),
            "elbo_taylor": elbo_taylor(decoder, x, z, model.objective),
            "elbo_profile": elbo_profile(model, data),
            "affine_posterior": np.asarray(affine_posterior(model, x).mean) @ w.T,
            "optimal_posterior": np.asarray(
                optimal_posterior(decoder, x, model.objective, z0=np.zeros(UNITS, dtype)).mean
            )
            @ w.T,
            "activity_path": activity_path(data, f, [0.1, 0.5, 2.0], UNITS, dispersion=phi),
            "beta_for_active_units": beta_for_active_units(data, f, 1, dispersion=phi),
            "collapse_onset": collapse_onset(data, f, dispersion=phi),
            "methods": methods(f, x, eta, phi),
        }
        results["remainder"] = remainder_bounds(f, eta, x=x, dispersion=phi)
        results["expected_remainder"] = expected_remainder_bounds(f, eta, eta**2, x=x, dispersion=phi)
        return results

    close(everything(mixed), everything(family), dtype, factor=10)
    assert mixed.curvature_is_constant == family.curvature_is_constant
    assert mixed.fixed_dispersion == family.fixed_dispersion


@pytest.mark.float64
def test_with_one_family_monte_carlo_and_samples_are_the_same_draws(dtype):
    x, key = plain_data(Gaussian(), dtype), jax.random.key(0)
    w, b = np.full((COLUMNS, UNITS), 0.3, dtype), np.zeros(COLUMNS, dtype)
    decoder, mixed = Affine(w, b), Mixed([(Gaussian(), range(COLUMNS))])
    objectives = [Objective(f, dispersion=1.0) for f in (Gaussian(), mixed)]
    q = affine_posterior(AffineModel(decoder, objectives[0]), x)
    one, two = (elbo_monte_carlo(key, decoder, x, q, objective, num_samples=20) for objective in objectives)
    close(one, two, dtype)
    drawn = np.asarray(run("sample", mixed, key, x, 0.5))
    same, other = (np.asarray(run("sample", Gaussian(), k, x, 0.5)) for k in (key, jax.random.key(1)))
    np.testing.assert_array_equal(drawn, same)
    assert not np.array_equal(drawn, other)


# Several families, block by block -------------------------------------------------------------------------


def by_hand(x, eta, phi=PHI):
    """log p of the table by SciPy, column by column."""
    x, eta = np.asarray(x, float), np.broadcast_to(np.asarray(eta, float), np.shape(x))
    p = 1 / (1 + np.exp(-eta))
    columns = [
        scipy.stats.bernoulli(p[:, 0]).logpmf(x[:, 0]),
        scipy.stats.poisson(np.exp(eta[:, 1])).logpmf(x[:, 1]),
        scipy.stats.norm(eta[:, 2], np.sqrt(phi[2])).logpdf(x[:, 2]),
        scipy.stats.bernoulli(p[:, 3]).logpmf(x[:, 3]),
        scipy.stats.norm(eta[:, 4], np.sqrt(phi[4])).logpdf(x[:, 4]),
    ]
    return np.stack(columns, axis=1)


def predictor(optimum, q):
    """Mean and variance of eta under a posterior whose rows share a covariance."""
    w, covariance = np.asarray(optimum.loadings), np.asarray(q.covariance)
    mean = np.asarray(q.mean) @ w.T + np.asarray(optimum.intercept)
    return mean, np.sum((w @ covariance[0]) * w, axis=1)


def test_the_log_prob_of_each_block(dtype):
    x, eta, phi = table(dtype), np.linspace(-1, 1, COLUMNS, dtype=dtype), np.asarray(PHI, dtype)
    got = np.asarray(TABLE.log_prob(x, eta, phi))
    close(got, by_hand(x, eta), dtype)
    close(run("log_prob", TABLE, x, eta, phi), got, dtype)
    swapped = Mixed([(Bernoulli(), [0, 3]), (Poisson(), [2]), (Gaussian(), [4, 1])])
    # NaN where a real value meets the Poisson family
    wrong = np.asarray(run("log_prob", swapped, x, eta, phi))
    assert not np.all(np.abs(wrong[:, 1:3] - got[:, 1:3]) <= 0.1)
    assert np.max(np.abs(np.asarray(run("log_prob", TABLE, x, eta, np.ones_like(phi))) - got)) > 0.1


def test_the_closed_form_against_dense_algebra(dtype):
    x, beta = table(dtype), 0.8
    optimum = fit(x, TABLE, UNITS, beta=beta, dispersion=np.array(PHI))
    rows = np.asarray(x, float)
    # mu, mu' and F'' at eta0 = 0; Gaussian: 0, 1, 1
    mean, slope = np.array([0.5, 1, 0, 0.5, 0]), np.array([0.25, 1, 1, 0.25, 1])
    response, weight = (rows - mean) / slope, slope / np.array(PHI)
    whitened = (response - response.mean(0)) * np.sqrt(weight)
    values, vectors = np.linalg.eigh(whitened.T @ whitened / ROWS)
    values, vectors = values[::-1], vectors[:, ::-1]
    assert values[0] > beta > values[2]
    close(optimum.eigenvalues, values, dtype, factor=10)
    close(optimum.intercept, response.mean(0), dtype)
    length = np.sqrt(np.maximum(values[:UNITS] - beta, 0))
    scaled = vectors[:, :UNITS] * length / np.sqrt(weight)[:, None]
    close(np.asarray(optimum.loadings) @ np.asarray(optimum.loadings).T, scaled @ scaled.T, dtype, factor=10)
    constant = by_hand(rows, np.zeros(COLUMNS)) + 0.5 * weight * response**2
    quadratic = (
        np.sum(beta * np.minimum(values[:UNITS] / beta, 1) + beta * np.log(np.maximum(values[:UNITS] / beta, 1)))
        + values[UNITS:].sum()
    )
    close(optimum.elbo_taylor, constant.sum(1).mean() - 0.5 * quadratic, dtype, factor=10)
    unweighted = fit(x, TABLE, UNITS, beta=beta, dispersion=1.0)
    assert abs(float(unweighted.elbo_taylor - optimum.elbo_taylor)) > 0.1


def test_the_exact_elbo_of_each_block(dtype):
    x, phi = table(dtype), np.asarray(PHI, dtype)
    optimum = fit(x, TABLE, UNITS, beta=0.5, dispersion=phi)
    q = posterior(optimum, x)
    got = elbo_exact(optimum, x, q)
    mean, variance = predictor(optimum, q)
    blocks = [(Bernoulli(), [0, 3]), (Poisson(), [1]), (Gaussian(), [2, 4])]
    expected = -0.5 * np.asarray(kl_divergence(q)) + sum(
        np.sum(run("expected_log_prob", f, x[:, c], mean[:, c], variance[c], phi[c]), axis=1) for f, c in blocks
    )
    close(got, expected, dtype)
    objective = optimum.model.objective
    value, error = elbo_monte_carlo(jax.random.key(2), optimum.decoder, x, q, objective, num_samples=2000)
    standard_error = float(np.linalg.norm(error)) / ROWS
    apart = float(np.mean(np.asarray(value) - np.asarray(got)))
    assert abs(apart) < 5 * standard_error
    assert abs(apart + 2.0) > 5 * standard_error


@pytest.mark.float64
def test_taylor_and_quadratic_against_automatic_differentiation(dtype):
    x, phi = table(dtype), np.asarray(PHI, dtype)
    eta0 = np.asarray(run("null_predictor", TABLE, np.mean(x, axis=0)))
    quadratic = expand(x, TABLE, expand_at="null", dispersion=phi)
    at = np.broadcast_to(eta0, x.shape)

    @jax.jit
    def derivatives(at):
        """The gradient, and the Hessian, which is diagonal."""
        slope = jax.grad(lambda eta: jnp.sum(TABLE.log_prob(x, eta, phi)))
        return jax.jvp(slope, (at,), (jnp.ones_like(at),))

    gradient, curvature = derivatives(at)
    weight, response = np.asarray(quadratic.weight), np.asarray(quadratic.response)
    close(weight * (response - eta0), gradient, dtype, factor=10)
    close(-np.asarray(curvature), at * 0 + weight, dtype, factor=10)
    close(quadratic(eta0), run("log_prob", TABLE, x, eta0, phi), dtype, factor=10)


@pytest.mark.float64
def test_the_bracket_holds_column_by_column(dtype):
    x, phi = table(dtype), np.asarray(PHI, dtype)
    optimum = fit(x, TABLE, UNITS, dispersion=phi)
    q = posterior(optimum, x)
    mean, variance = predictor(optimum, q)
    lower, upper = (np.asarray(b) for b in expected_remainder_bounds(TABLE, mean, variance, dispersion=phi))
    quadratic, exact = np.asarray(elbo_quadratic(optimum, x, q)), np.asarray(elbo_exact(optimum, x, q))
    slack = RELATIVE[dtype.name] * np.abs(exact)
    assert np.all(quadratic + lower.sum(1) <= exact + slack)
    assert np.all(exact <= quadratic + upper.sum(1) + slack)
    assert not np.all(np.abs(exact - quadratic) <= slack)
    together = [np.asarray(b) for b in remainder_bounds(TABLE, mean, dispersion=phi)]
    for column, member in enumerate([Bernoulli(), Poisson(), Gaussian(), Bernoulli(), Gaussian()]):
        alone = remainder_bounds(member, mean[:, column], dispersion=phi[column])
        close([b[:, column] for b in together], list(alone), dtype)


def test_the_order_of_the_columns_does_not_matter(dtype):
    x, phi, order = table(dtype), np.array(PHI), np.array([4, 2, 0, 1, 3])
    where = np.argsort(order).tolist()  # where column j has gone
    moved = Mixed([(f, [where[j] for j in group]) for f, group in zip(TABLE.families, TABLE.groups, strict=True)])
    here = fit(x, TABLE, UNITS, dispersion=phi)
    there = fit(x[:, order], moved, UNITS, dispersion=phi[order])
    close(there.elbo_taylor, here.elbo_taylor, dtype, factor=10)
    close(there.intercept, np.asarray(here.intercept)[order], dtype)
    loadings, moved_loadings = np.asarray(here.loadings), np.asarray(there.loadings)
    product = loadings @ loadings.T
    close(moved_loadings @ moved_loadings.T, product[order][:, order], dtype, factor=100)
    wrong = fit(x[:, order], moved, UNITS, dispersion=phi)
    assert abs(float(wrong.elbo_taylor - here.elbo_taylor)) > 0.01


@pytest.mark.float64
def test_the_onset_of_collapse(dtype):
    x, phi = table(dtype), np.array(PHI)
    data = moments(x, family=TABLE)
    onset = float(collapse_onset(data, TABLE, dispersion=phi))
    rows = np.asarray(x)
    variance = np.array([rows[:, 0].var(), rows[:, 1].mean(), phi[2], rows[:, 3].var(), phi[4]])
    residuals = (rows - rows.mean(0)) / np.sqrt(variance)
    np.testing.assert_allclose(onset, np.linalg.eigvalsh(residuals.T @ residuals / ROWS)[-1], rtol=1e-10)
    null = np.asarray(run("null_predictor", TABLE, data.mean))
    top = fit(data, TABLE, 1, beta=onset / 2, dispersion=phi, expand_at="null").loadings

    def objective(scale, beta):
        model = AffineModel(Affine(scale * np.asarray(top), null), Objective(TABLE, beta, phi))
        q = affine_posterior(model, x, expand_at="null")
        return float(np.mean(elbo_exact(model, x, q)))

    assert objective(0.02, 0.98 * onset) > objective(0.0, 0.98 * onset)
    assert objective(0.02, 1.02 * onset) < objective(0.0, 1.02 * onset)


@pytest.mark.any_precision
def test_the_exact_elbo_can_be_climbed(dtype):
    x, phi = table(dtype), np.asarray(PHI, dtype)
    start = fit(x, TABLE, UNITS, beta=0.5, dispersion=phi, expand_at="null")
    best = refine(start, x, tolerance=1e-4)
    assert np.all(np.diff(best.history) >= 0)
    value = elbo_exact(best, x, best.posterior)
    np.testing.assert_allclose(best.elbo, np.mean(value), rtol=1e-4)
    q = posterior(start, x)
    before = elbo_exact(start, x, q)
    assert float(best.elbo) > float(np.mean(before)) + 1e-3
    for call in (lambda: tighten(start, x), lambda: refine(start, x, method="entry")):
        with pytest.raises(TypeError, match=r"family: .* column 1 is Poisson\(\)"):
            call()


@pytest.mark.float64
def test_samples_of_each_block(dtype):
    eta, phi = np.asarray([0.5, 1.0, 3.0, -1.0, -2.0], dtype), np.asarray(PHI, dtype)
    x = np.asarray(run("sample", TABLE, jax.random.key(0), np.broadcast_to(eta, (5000, COLUMNS)), phi))
    assert x.dtype == dtype
    TABLE.validate(x)
    variance = phi * np.asarray(run("variance_function", TABLE, eta))
    assert np.all(np.abs(x.mean(0) - np.asarray(run("mean", TABLE, eta))) < 5 * np.sqrt(variance / 5000))
    assert np.all(np.abs(x.var(0) / variance - 1) < 0.12)  # 5 / sqrt(5000), a little more for the Poisson
    correlation = np.corrcoef(x.astype(float).T)
    assert np.max(np.abs(correlation - np.eye(COLUMNS))) < 5 / np.sqrt(5000)  # no key used twice


# Dispersion, transformations ------------------------------------------------------------------------------


def test_a_dispersion_is_one_where_every_member_fixes_it(dtype):
    x = table(dtype)[:, [0, 1, 3]]
    family = Mixed([(Bernoulli(), [0, 2]), (Poisson(), [1])])
    close(jax.tree.leaves(fit(x, family, 1)), jax.tree.leaves(fit(x, family, 1, dispersion=1.0)), dtype)
    assert family.fixed_dispersion == 1.0
    with_exponential = Mixed([(Exponential(), [1]), (NegativeBinomial([1.0, 2.0]), [0, 2])])
    assert with_exponential.fixed_dispersion == 1.0


def test_a_dispersion_is_asked_for_where_one_does_not(dtype):
    x = table(dtype)
    for call in (
        lambda: fit(x, TABLE, 1),
        lambda: collapse_onset(moments(x), TABLE),
        lambda: fit(x, Mixed([(Gaussian(), range(5))]), 1),
    ):
        with pytest.raises(ValueError, match=r"dispersion: Mixed.* needs one, got None; .* or shape \(5,\)"):
            call()


@pytest.mark.any_precision
def test_a_value_a_member_becomes_one_a_column():
    np.testing.assert_array_equal(TABLE.columnwise([1.0, 2.0, 3.0]), [1, 2, 3, 1, 3])
    with pytest.raises(ValueError, match="values: expected 3, one a member, got 2"):
        TABLE.columnwise([1.0, 2.0])


@pytest.mark.float64
def test_it_is_a_pytree_of_its_members(dtype):
    family = Mixed([(NegativeBinomial(np.asarray(2.0, dtype)), [1]), (Bernoulli(), [0, 2])])
    leaves, structure = jax.tree.flatten(family)
    assert repr(jax.tree.unflatten(structure, leaves)) == repr(family)
    x, eta = np.asarray([1.0, 3.0, 0.0], dtype), np.asarray([0.1, 0.2, 0.3], dtype)
    slope = jax.jit(jax.grad(lambda f: jnp.sum(f.log_prob(x, eta)), allow_int=True))(family)
    # of log C(x + size - 1, x) + size log(1 - p) in the size
    alone = digamma(x[1] + 2.0) - digamma(2.0) - np.log1p(np.exp(eta[1]))
    close(slope.families[0].size, alone, dtype)
    assert abs(alone) > 0.1
    batched = jax.jit(jax.vmap(lambda e: family.log_prob(x, e)))(np.stack([eta, 2 * eta]))
    p = 1 / (1 + np.exp(-2 * eta))
    expected = scipy.stats.bernoulli(p).logpmf(x)
    expected[1] = scipy.stats.nbinom(2.0, 1 - p[1]).logpmf(x[1])
    close(batched[1], expected, dtype)
    assert isinstance(family.of_column(1), NegativeBinomial)
    assert isinstance(family.of_column(2), Bernoulli)


@pytest.mark.float64
def test_a_member_may_be_mixed(dtype):
    inner = Mixed([(Gaussian(), [1]), (Poisson(), [0])])
    family = Mixed([(inner, [3, 1]), (Bernoulli(), [0, 2])])
    x, eta = np.asarray([[1.0, 0.3, 0.0, 4.0]], dtype), np.asarray([0.1, 0.2, 0.3, 0.4], dtype)
    flat = Mixed([(Gaussian(), [1]), (Poisson(), [3]), (Bernoulli(), [0, 2])])
    close(run("log_prob", family, x, eta), run("log_prob", flat, x, eta), dtype)
    assert isinstance(family.of_column(3), Poisson)


@pytest.mark.any_precision
def test_the_name():
    assert repr(TABLE) == "Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1]), (Gaussian(), [4, 2])])"
    assert repr(Mixed([(Poisson(), range(7))])) == "Mixed([(Poisson(), slice(0, 7))])"


def left_by_the_model(optimum, x, columns):
    """What the model leaves of each of the columns on average, and of that the part at the posterior mean."""
    q, loadings = optimum.posterior, np.asarray(optimum.loadings)[columns]
    at_mean = np.mean((x - np.asarray(optimum.decoder(q.mean)))[:, columns] ** 2, axis=0)
    return at_mean + np.mean(np.einsum("jk,ikl,jl->ij", loadings, q.covariance, loadings), axis=0), at_mean


@pytest.mark.any_precision
def test_the_noise_of_gaussian_columns_is_found_by_repeating(dtype):
    """phi_j = mean (x - m)^2 + v, the M-step of EM, on the page of mixed tables; the square alone goes below."""
    rng, gaussian = np.random.default_rng(0), np.arange(4)
    eta = rng.normal(size=(3000, 1)) @ [[1.0, -0.8, 1.2, 0.7, 1.5, -1.0, 1.2, 2.0, 0.6]]
    x = eta + np.sqrt(0.5) * rng.normal(size=eta.shape)
    x[:, 4:8] = rng.logistic(size=(3000, 4)) < eta[:, 4:8]
    x[:, 8] = rng.poisson(np.exp(eta[:, 8]))
    x = x.astype(dtype)
    family = Mixed([(Gaussian(), gaussian), (Bernoulli(), range(4, 8)), (Poisson(), [8])])

    def still(which):
        best = refine(fit(x, family, 1, dispersion=1.0, expand_at="null"), x, tolerance=1e-4)
        elbos, noise = [float(best.elbo)], np.ones(9, dtype)
        for _ in range(6):
            noise[gaussian] = left_by_the_model(best, x, gaussian)[which]
            best = refine(best, x, dispersion=noise, tolerance=1e-4)
            elbos.append(float(best.elbo))
        return elbos, noise[gaussian], best

    elbos, noise, best = still(0)
    assert np.all(np.diff(elbos) > -1e-4)
    # 4 standard errors of a variance with 3000 degrees of freedom
    np.testing.assert_allclose(noise, 0.5, rtol=4 * np.sqrt(2 / 3000))
    at_mean = left_by_the_model(best, x, gaussian)[1]
    assert np.all(at_mean < 0.93 * noise)  # although the noise is right
    fallen, too_little, _ = still(1)
    assert np.min(too_little) < 0.2
    assert fallen[-1] < elbos[-1] - 0.01


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_data_out_of_the_support_of_their_member(dtype):
    x = np.array(table(dtype))
    for (row, column), value, member in [
        ((2, 3), 1.5, r"\[0, 1\] of Bernoulli"),
        ((4, 1), -1.0, r"\[0, inf\) of Poisson"),
    ]:
        bad = x.copy()
        bad[row, column] = value
        with pytest.raises(ValueError, match=rf"x: .* support {member}\(\), got {value:g} at \[{row}, {column}\]"):
            TABLE.validate(bad)
        with pytest.raises(ValueError, match=rf"x: .* at \[{row}, {column}\]"):
            fit(bad, TABLE, 1, dispersion=1.0)
    bad = x.copy()
    bad[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"x: expected finite numbers, got nan at \[0, 2\]"):
        TABLE.validate(bad)
    bad[0, 2] = -1e3  # a real column takes it
    TABLE.validate(bad)


@pytest.mark.float64
def test_trials_are_for_the_columns_of_the_binomial_alone(dtype):
    family = Mixed([(Bernoulli(), [0]), (Binomial(None), [3, 1]), (Gaussian(), [4, 2])])
    x, trials = table(dtype), np.where(np.arange(COLUMNS) % 2, 9.0, 1.0).astype(dtype)
    trials = np.tile(trials, (ROWS, 1))

    def found(trials):
        return float(fit(Rows(x, trials=trials), family, UNITS, dispersion=1.0).elbo_taylor)

    other = trials.copy()
    other[:, [0, 2, 4]] = np.arange(2.0, 5.0)
    assert found(other) == found(trials)
    assert found(2 * trials) != found(trials)  # the control
    other[7, 4] = 0
    with pytest.raises(ValueError, match=r"trials: expected 1 in a column of Gaussian\(\).* got 0 at \[7, 4\]"):
        found(other)


@pytest.mark.any_precision
def test_another_number_of_columns():
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"x: expected 5 columns, the number Mixed.* is for, got"):
        moments(x, family=TABLE)
    with pytest.raises(ValueError, match=r"x: expected 5 columns"):
        expand(x, TABLE)
    with pytest.raises(ValueError, match=r"expected 5 columns"):
        fit(moments(x), TABLE, 1, dispersion=1.0)
    with pytest.raises(ValueError, match=r"expected 5 columns, the number Mixed"):
        TABLE.mean(jnp.zeros(4))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([], ValueError, "members: expected at least one pair"),
        ([Bernoulli()], TypeError, r"members: expected pairs \(family, columns\), got Bernoulli\(\) at \[0\]"),
        (
            [(Bernoulli(), [0]), ("poisson", [1])],
            TypeError,
            r"members: expected a family first, got 'poisson' at \[1\]",
        ),
        ([(Bernoulli(), [0, 1]), (Poisson(), [1])], ValueError, "every column once, got column 1 more than once"),
        ([(Bernoulli(), [0, 0])], ValueError, "every column once, got column 0 more than once"),
        ([(Bernoulli(), [0]), (Poisson(), [2])], ValueError, "expected columns 0 to 2, got none for column 1"),
        ([(Bernoulli(), [-1])], ValueError, r"columns of members\[0\]: expected columns from 0, got -1 at \[0\]"),
        ([(Bernoulli(), [])], ValueError, r"columns of members\[0\]: expected a list of at least one column"),
        ([(Bernoulli(), 0)], ValueError, r"columns of members\[0\]: expected a list of at least one column"),
        ([(Bernoulli(), [0.0])], TypeError, r"columns of members\[0\]: expected integers, got dtype float64"),
        ([(Bernoulli(), [True])], TypeError, r"columns of members\[0\]: expected integers, got dtype bool"),
        ([(Bernoulli(), slice(0, None))], ValueError, r"columns of members\[0\]: expected a slice with a stop"),
        ([(Bernoulli(), slice(0, -1))], ValueError, r"columns of members\[0\]: expected a slice with a stop"),
        ([(Binomial([1.0, 2.0]), [0])], ValueError, r"columns of members\[0\]: expected 2, the number Binomial"),
    ],
)
def test_members_that_do_not_fit(members, error, message):
    with pytest.raises(error, match=message):
        Mixed(members)


@pytest.mark.any_precision
def test_a_mixed_family_has_no_activation_scale_of_its_own():
    with pytest.raises(TypeError, match="activation_scale"):
        Mixed([(Gaussian(), [0])], activation_scale=2.0)
    scaled = Mixed([(Gaussian(activation_scale=2.0), [0])])
    assert float(scaled.mean(jnp.ones(1))[0]) == 2.0


@pytest.mark.any_precision
def test_every_method_of_a_family_is_dispatched():
    """A method that Mixed inherits would see the columns of all members at once."""
    # built from the others, checks, what a group of columns cannot be asked, and what only its members are asked
    derived = {"expected_log_prob", "mean_derivative", "natural_parameter_derivative"}
    harmless = derived | {"validate", "dispersion_from", "remainder_of_step", "expected_remainder_of_step"}
    methods = {n for n, v in vars(Family).items() if callable(v) and not n.startswith("_")}
    assert "link" in methods
    assert methods - harmless <= set(vars(Mixed))
