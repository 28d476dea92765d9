"""Activity, its path over beta, and the onset of collapse against the exact beta-ELBO itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import MODELS, draw
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Posterior,
    activity,
    activity_path,
    beta_for_active_units,
    collapse_onset,
    elbo_exact,
    fit,
    moments,
    posterior,
)
from glmvae.expansion import working_weight
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson

RTOL = {"float64": 1e-10, "float32": 1e-4}
SEEDS = st.integers(0, 2**32 - 1)


def float32_keeps(kept, names):
    """Names for a test whose code is the same for all: in float32 only the first are tried."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.float64) for n in names]


def data_for(name, dtype, seed=0):
    x = draw(name, seed=seed).astype(dtype)
    return x, moments(x, family=MODELS[name].family)


def active(optimum):
    return int((activity(optimum) > 0).sum())


def test_the_onset_of_counts_that_are_rare_among_their_trials(dtype):
    n, x = 1e7, np.random.default_rng(0).poisson(0.2, size=(2000, 3)).astype(float)
    p = x.mean(axis=0) / n
    pearson = (x - n * p) / np.sqrt(n * p * (1 - p))
    expected = np.linalg.eigvalsh(pearson.T @ pearson / len(x))[-1]
    np.testing.assert_allclose(collapse_onset(x.astype(dtype), Binomial(n)), expected, rtol=RTOL[str(dtype)])


# Activity --------------------------------------------------------------------------------------------------


@given(seed=SEEDS, name=st.sampled_from(sorted(MODELS)), beta=st.sampled_from([0.1, 1.0, 3.0]))
def test_activity_is_the_variance_of_the_posterior_mean(seed, name, beta, dtype):
    x, data = data_for(name, dtype, seed)
    o = fit(data, MODELS[name].family, 2, beta=beta, dispersion=0.8)
    variance = np.asarray(posterior(o, x).mean, np.float64).var(axis=0)
    np.testing.assert_allclose(activity(o), variance, rtol=10 * RTOL[str(dtype)], atol=10 * RTOL[str(dtype)])
    assert np.all((activity(o) >= 0) & (activity(o) < 1))


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("name", float32_keeps(["gaussian", "poisson"], MODELS))
def test_the_path_is_fit_at_every_beta(name, phi, dtype):
    _, data = data_for(name, dtype)
    betas = [0.05, 0.3, 1.0, 1.7, 5.0, 40.0]
    arguments, options = (data, MODELS[name].family, betas, 3), {"dispersion": phi, "expand_at": "null"}
    path = activity_path(*arguments, **options)
    for row, beta in zip(path, betas, strict=True):
        o = fit(data, MODELS[name].family, 3, beta=beta, dispersion=phi, expand_at="null")
        np.testing.assert_allclose(row, activity(o), rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    np.testing.assert_array_equal(path, activity_path(draw(name).astype(dtype), *arguments[1:], **options))
    assert path.shape == (6, 3)
    assert path.dtype == dtype
    assert len({int(n) for n in (path > 0).sum(axis=1)}) > 1  # the units do come and go


def test_the_path_of_low_rank_gaussian_data_counts_its_dimensions(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5)) + 1).astype(dtype)
    data = moments(x)
    path = activity_path(data, Gaussian(), [0.5, 1.0, 2.0], 4)
    np.testing.assert_array_equal((path > 0).sum(axis=1), 2)
    # sigma^2 = 0 up to beta = d / rank: two units and no third at any smaller beta
    lower, upper = beta_for_active_units(data, Gaussian(), 2)
    assert lower == 0.0
    np.testing.assert_allclose(upper, 5 / 2, rtol=RTOL[str(dtype)])


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("name", float32_keeps(["bernoulli"], MODELS))
def test_the_interval_of_beta_leaves_just_so_many_units(name, phi, dtype):
    _, data = data_for(name, dtype)
    family = MODELS[name].family
    previous = None
    for units in range(4):
        lower, upper = beta_for_active_units(data, family, units, latent_dim=3, dispersion=phi)
        if previous is not None:
            np.testing.assert_allclose(upper, previous)  # the intervals meet
        previous = lower
        for beta, expected in (
            (lower * (1 + 1e-3), units),
            (upper * (1 - 1e-3), units),
            (lower * (1 - 1e-3), units + 1),
            (upper * (1 + 1e-3), units - 1),
        ):
            if 0 < beta < np.inf:
                assert active(fit(data, family, 3, beta=beta, dispersion=phi)) == expected
    assert previous == 0.0


# The onset of collapse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli_tanh"])
def test_onset_for_binary_data_is_the_top_of_the_correlation_matrix(name, dtype):
    x, data = data_for(name, dtype)
    top = np.linalg.eigvalsh(np.corrcoef(x.astype(np.float64), rowvar=False))[-1]
    np.testing.assert_allclose(collapse_onset(data, MODELS[name].family), top, rtol=RTOL[str(dtype)])


@pytest.mark.parametrize("name", MODELS)
def test_onset_is_the_top_of_the_pearson_residuals(name, dtype):
    x, data = data_for(name, dtype)
    x, model = x.astype(np.float64), MODELS[name]
    t = model.scale * model.null(x.mean(axis=0))
    for phi in (None, 0.5, np.array([0.5, 1.0, 2.0, 0.25])):
        scale = phi
        if phi is None:
            scale = x.var(axis=0).mean() if model.fixed_dispersion is None else 1.0
        residual = (x - x.mean(axis=0)) / np.sqrt(scale * model.variance(t))
        top = np.linalg.eigvalsh(residual.T @ residual / len(x))[-1]
        np.testing.assert_allclose(collapse_onset(data, model.family, dispersion=phi), top, rtol=RTOL[str(dtype)])


@pytest.mark.any_precision
def test_a_column_that_does_not_vary_takes_no_part(dtype):
    x = np.tile([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], (4, 1)).astype(dtype)
    family = Bernoulli()
    with_it, without = (collapse_onset(moments(a, family=family), family) for a in (x, x[:, :2]))
    np.testing.assert_allclose(with_it, without, rtol=RTOL[str(dtype)])
    assert collapse_onset(moments(x[:, 2:], family=family), family) == 0
    assert collapse_onset(moments(x[:, 2:]), Gaussian()) == 0


def exact_profile(x, family, loadings, beta, phi):
    """The exact beta-ELBO of one latent unit, maximised over the intercept and a posterior for every row.

    It is concave in all of them (in the standard deviations, not their logarithms), so a local search finds it.
    """
    rows, columns = x.shape

    @jax.jit
    def negative(theta):
        b, mean, sd = theta[:columns], theta[columns : columns + rows], theta[columns + rows :]
        q = Posterior(mean[:, None], (sd**2)[:, None, None])
        model = AffineModel(Affine(loadings[:, None], b), Objective(family, beta, phi))
        return -jnp.mean(elbo_exact(model, x, q))

    start = np.concatenate([family.link(x.mean(axis=0)), np.zeros(rows), np.ones(rows)])
    objective = jax.jit(jax.value_and_grad(negative))
    found = minimize(
        lambda t: tuple(np.asarray(v, np.float64) for v in objective(t)),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 2000, "maxcor": 30},
    )
    return -found.fun


@pytest.mark.float64
@pytest.mark.parametrize("name", ["bernoulli", "poisson", "gaussian"])
def test_from_the_onset_on_collapse_is_a_local_optimum_of_the_exact_elbo(name):
    """W = eps u against W = 0, everything else at its best: the loss of 2 % in beta decides the sign."""
    family = MODELS[name].family
    x = jnp.asarray(draw(name, rows=20, columns=3, rank=1, seed=3))
    phi = 0.8 if name == "gaussian" else 1.0
    data = moments(x, family=family)
    onset = float(collapse_onset(data, family, dispersion=phi))
    null = fit(data, family, 3, beta=0.1 * onset, dispersion=phi, expand_at="null")
    whiten = 1 / np.sqrt(np.asarray(working_weight(family, null.expansion_point, phi)))
    top = np.asarray(null.loadings[:, 0]) / whiten
    top /= np.linalg.norm(top)
    others = np.random.default_rng(0).normal(size=(2, 3))
    directions = [top, *(u / np.linalg.norm(u) for u in others)]
    step = 0.03
    for factor, wins in ((1.02, False), (0.98, True)):
        collapsed = exact_profile(x, family, jnp.zeros(3), factor * onset, phi)
        gains = [
            exact_profile(x, family, jnp.asarray(step * whiten * u), factor * onset, phi) - collapsed
            for u in (directions if not wins else directions[:1])
        ]
        # to second order the gain is step^2 / 2 (1 / factor - 1); rounding is far below it
        np.testing.assert_allclose(gains[0], step**2 / 2 * (1 / factor - 1), rtol=0.2)
        assert (max(gains) > 0) == wins


@pytest.mark.float64
def test_the_papers_cutoff_is_not_the_onset():
    """Where the paper's expansion at 0 has pruned everything, the exact ELBO still gains from W != 0."""
    family = Bernoulli()
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(40, 1))
    x = jnp.asarray((shared + 0.5 * rng.normal(size=(40, 3)) > 1.0).astype(float))
    data = moments(x, family=family)
    paper = float(fit(data, family, 3).eigenvalues[0])
    onset = float(collapse_onset(data, family))
    assert 1.1 * paper < onset
    beta = 1.05 * paper
    assert active(fit(data, family, 3, beta=beta)) == 0
    null = fit(data, family, 3, beta=0.9 * onset, expand_at="null")
    direction = np.asarray(null.loadings[:, 0]) / np.linalg.norm(null.loadings[:, 0])
    gain = exact_profile(x, family, 0.1 * direction, beta, 1.0) - exact_profile(x, family, jnp.zeros(3), beta, 1.0)
    assert gain > 1e-6


# Transformations and errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "poisson"]))
def test_jit_and_eager_agree(name, dtype):
    _, data = data_for(name, dtype)
    family, betas = MODELS[name].family, jnp.asarray([0.5, 1.0], dtype)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(
        jax.jit(lambda m, b: activity_path(m, family, b, 2))(data, betas),
        activity_path(data, family, betas, 2),
        rtol=rtol,
        atol=rtol,
    )
    np.testing.assert_allclose(
        jax.jit(lambda m, f: collapse_onset(m, f))(data, family), collapse_onset(data, family), rtol=rtol
    )


@pytest.mark.any_precision
def test_float32_stays_float32(dtype):
    _, data = data_for("poisson", np.float32)
    assert activity_path(data, Poisson(), np.array([0.5, 1.0]), 2).dtype == np.float32
    assert collapse_onset(data, Poisson()).dtype == np.float32


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: activity_path(m, Bernoulli(), 1.0, 2), ValueError, "betas: expected a vector"),
        (lambda m: activity_path(m, Bernoulli(), [], 2), ValueError, "betas: expected a vector"),
        (lambda m: activity_path(m, Bernoulli(), [1.0, 0.0], 2), ValueError, r"betas: .*0 at \[1\]"),
        (lambda m: activity_path(m, Bernoulli(), [np.nan], 2), ValueError, r"betas: .*nan at \[0\]"),
        (lambda m: activity_path(m, Bernoulli(), ["a"], 2), TypeError, "betas: "),
        (lambda m: activity_path(m, Bernoulli(), [1.0], 9), ValueError, "latent_dim: "),
        (lambda m: activity_path(m, Bernoulli(), [1.0, 1e-46], 2), ValueError, r"betas: .*float32 can hold.* at \[1\]"),
        (lambda m: activity_path(np.ones((3, 2)) + 1, Bernoulli(), [1.0], 2), ValueError, "x: .*support"),
        (lambda m: activity_path("moments", Bernoulli(), [1.0], 2), TypeError, "x: "),
        (lambda m: activity_path(m, Poisson(), [1.0], 2), ValueError, "x: expected moments of Poisson"),
        (lambda m: activity("optimum"), TypeError, "optimum: expected an AffineOptimum"),
        (lambda m: beta_for_active_units(m, Bernoulli(), 9), ValueError, "units: .*got 9"),
        (lambda m: beta_for_active_units(m, Bernoulli(), -1), ValueError, "units: .*got -1"),
        (lambda m: beta_for_active_units(m, Bernoulli(), 0.0), TypeError, "units: .*integer"),
        (lambda m: beta_for_active_units(m, Bernoulli(), False), TypeError, "units: .*integer"),
        (lambda m: collapse_onset(m, Bernoulli(), dispersion=0.0), ValueError, "dispersion: "),
        (lambda m: collapse_onset("moments", Bernoulli()), TypeError, "x: "),
        (lambda m: collapse_onset(m, Bernoulli), TypeError, "family: "),
        (lambda m: jax.jit(lambda m: beta_for_active_units(m, Bernoulli(), 1))(m), TypeError, "x: .*transformation"),
    ],
)
def test_bad_input_is_named(call, error, message):
    data = moments(draw("bernoulli").astype("float32"), family=Bernoulli())
    with pytest.raises(error, match=message):
        call(data)
