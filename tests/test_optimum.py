"""The closed form against a dense reference, its own objective, scikit-learn, and a brute-force dispersion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import needs_frey
from dense_reference import MODELS, best_gaussian_dispersion, draw, expansion_point, gaussian_profile, profile
from dense_reference import fit as dense_fit
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from glmvae import (
    AffineOptimum,
    Posterior,
    activity,
    affine_posterior,
    datasets,
    elbo_exact,
    elbo_profile,
    elbo_quadratic,
    fit,
    gaussian_dispersion,
    moments,
    posterior,
)
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gaussian, Poisson, Support

SEEDS = st.integers(0, 2**32 - 1)
NAMES = st.sampled_from(sorted(MODELS))
# One eigendecomposition of a well-scaled 4 x 4 matrix and sums of 40 rows.
RTOL = {"float64": 1e-10, "float32": 2e-4}
POINTS = {"zero": "zero", "null": "null", "array": [0.3, -0.2, 0.0, 0.5]}
DISPERSIONS = {"default": None, "scalar": 0.5, "columns": [0.5, 1.0, 2.0, 0.25]}


def float32_keeps(kept, names):
    """Names for a test whose code is the same for all: in float32 only the first are tried."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.float64) for n in names]


def aligned(loadings, reference):
    """Loadings with the signs of the reference: an eigenvector's sign is free."""
    loadings = np.asarray(loadings, np.float64)
    return loadings * np.where(np.sum(loadings * reference, axis=0) < 0, -1, 1)


def log_base_for(model, x, phi):
    """Mean over rows of what moments without a family do not know."""
    return 0.0 if model.fixed_dispersion is None else model.log_base_measure(x, phi).sum(axis=1).mean()


# Against the dense reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", DISPERSIONS)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", float32_keeps(["gaussian", "bernoulli"], MODELS))
def test_equal_to_the_dense_reference(name, point, phi, dtype):
    model, x = MODELS[name], draw(name)
    phi = DISPERSIONS[phi]
    expand_at = POINTS[point]
    for latent_dim, beta in ((1, 0.3), (2, 1.0), (4, 2.5)):
        o = fit(x.astype(dtype), model.family, latent_dim, beta=beta, dispersion=phi, expand_at=expand_at)
        r = dense_fit(
            model, x, latent_dim, beta=beta, phi=None if phi is None else np.asarray(phi), expand_at=expand_at
        )
        rtol = RTOL[str(dtype)]
        near = {"rtol": rtol, "atol": rtol * max(1.0, np.abs(r.intercept).max(), np.abs(r.loadings).max())}
        np.testing.assert_allclose(o.eigenvalues, r.eigenvalues, rtol=rtol, atol=rtol * r.eigenvalues[0])
        np.testing.assert_allclose(o.dispersion, r.dispersion, rtol=rtol)
        np.testing.assert_allclose(o.intercept, r.intercept, **near)
        np.testing.assert_allclose(o.elbo_taylor, r.elbo, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(np.diag(o.covariance), np.diag(r.covariance), rtol=rtol, atol=rtol)
        # Up to signs W is unique where no two eigenvalues are close; W W' and the decoded mean always are.
        np.testing.assert_allclose(o.loadings @ o.loadings.T, r.loadings @ r.loadings.T, **near)
        np.testing.assert_allclose(o.loadings @ o.encoder_weight, r.loadings @ r.encoder_weight, **near)
        np.testing.assert_allclose(o.loadings @ o.encoder_bias, r.loadings @ r.encoder_bias, **near)
        np.testing.assert_allclose(o.expansion_point, expansion_point(model, x, expand_at), **near)
        assert {leaf.dtype for leaf in jax.tree.leaves(o)} == {dtype}


@pytest.mark.any_precision
@pytest.mark.parametrize("name", ["gaussian", "poisson", "binomial_columns", "bernoulli_tanh"])
def test_the_reference_tells_the_cases_apart(name, dtype):
    """Were L-hat the same at every expansion point or dispersion, the test above would prove little."""
    model, x = MODELS[name], draw(name)
    values = [
        float(fit(x.astype(dtype), model.family, 2, dispersion=phi, expand_at=at).elbo_taylor)
        for phi in (0.5, 1.0, DISPERSIONS["columns"])
        for at in (("zero",) if name == "gaussian" else POINTS.values())
    ]
    assert np.min(np.abs(np.diff(np.sort(values)))) > 1e-3


@pytest.mark.any_precision
def test_a_custom_poisson_is_poisson(dtype):
    x = draw("poisson").astype(dtype)
    custom = CustomFamily(jnp.exp, limits=Support(0.0))
    a, b = fit(x, Poisson(), 2, expand_at="null"), fit(x, custom, 2, dispersion=1.0, expand_at="null")
    rtol = RTOL[str(dtype)]
    # bisection leaves the custom link a few rounding units more
    np.testing.assert_allclose(aligned(b.loadings, a.loadings), a.loadings, rtol=10 * rtol, atol=10 * rtol)
    np.testing.assert_allclose(b.eigenvalues, a.eigenvalues, rtol=10 * rtol)
    constant = MODELS["poisson"].log_base_measure(x.astype(np.float64), 1.0).sum(axis=1).mean()
    np.testing.assert_allclose(b.elbo_taylor + constant, a.elbo_taylor, rtol=10 * rtol)
    with pytest.raises(ValueError, match="dispersion"):
        fit(x, custom, 2)


# Frey ------------------------------------------------------------------------------------------------------

# Quoted to three decimals.
FREY_TOLERANCE = 1e-3


@needs_frey
@pytest.mark.float64
@pytest.mark.parametrize(
    ("latent_dim", "quadratic", "exact"), [(2, -351.243, -349.236), (5, -350.754, -348.632), (20, -350.754, -348.632)]
)
def test_frey_faces(latent_dim, quadratic, exact):
    x = datasets.frey(download=False).train.astype("float64")
    o = fit(x, Bernoulli(), latent_dim)
    assert abs(float(o.elbo_taylor) - quadratic) < FREY_TOLERANCE
    value = elbo_exact(o.loadings, o.intercept, x, posterior(o, x), Bernoulli()).mean()
    assert abs(float(value) - exact) < FREY_TOLERANCE
    # A unit counts as active above 0.01 (Burda et al.): the fifth, just over the cut-off, does not.
    assert int((activity(o) > 0.01).sum()) == min(latent_dim, 4)
    assert int((activity(o) > 0).sum()) == min(latent_dim, 5)


# It is the optimum -----------------------------------------------------------------------------------------

# A gradient is a difference of terms of size sqrt(w) y / beta over 40 rows.
GRADIENT = {"float64": 1e-10, "float32": 2e-3}


@partial(jax.jit, static_argnames="point")
def profile_and_gradients(loadings, intercept, phi, data, family, beta, *, point):
    def objective(loadings, intercept, phi):
        return elbo_profile(loadings, intercept, data, family, dispersion=phi, expand_at=point, beta=beta)

    return jax.value_and_grad(objective, argnums=(0, 1, 2))(loadings, intercept, phi)


@given(
    seed=SEEDS,
    name=NAMES,
    latent_dim=st.sampled_from([1, 3]),
    beta=st.sampled_from([0.3, 1.0, 4.0]),
    point=st.sampled_from(["zero", "null"]),
)
def test_zero_gradient_and_better_than_perturbations(seed, name, latent_dim, beta, point, dtype):
    model = MODELS[name]
    data = moments(draw(name, seed=seed).astype(dtype), family=model.family)
    o = fit(data, model.family, latent_dim, beta=beta, expand_at=point)

    def at(loadings, intercept):
        return profile_and_gradients(loadings, intercept, o.dispersion, data, model.family, beta, point=point)

    best, gradients = at(o.loadings, o.intercept)
    size = 1 + abs(float(best)) + float(o.eigenvalues[0])
    tolerance = GRADIENT[str(dtype)] * size
    np.testing.assert_allclose(o.elbo_taylor, best, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    # per unit of whitened loadings
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(data.covariance)), 1e-3))
    np.testing.assert_allclose(gradients[0] * scale[:, None], 0.0, atol=tolerance * (1 + np.abs(o.loadings).max()))
    np.testing.assert_allclose(gradients[1] * scale, 0.0, atol=tolerance)
    if model.fixed_dispersion is None:
        np.testing.assert_allclose(gradients[2] * o.dispersion, 0.0, atol=tolerance)
    rng = np.random.default_rng(seed)
    for step in (1e-2, 0.1, 1.0):
        loadings = o.loadings + step * rng.normal(size=o.loadings.shape).astype(dtype)
        intercept = o.intercept + step * rng.normal(size=o.intercept.shape).astype(dtype)
        value = at(loadings, intercept)[0]
        assert value <= best + RTOL[str(dtype)] * size
        assert value < best or step < 0.1
    # Negative control: away from the optimum the gradient is not 0.
    away = at(o.loadings, o.intercept + 5)[1][1]
    assert np.abs(away * scale).max() > 10 * tolerance


@given(seed=SEEDS, name=NAMES, latent_dim=st.sampled_from([2, 4]))
def test_a_rotation_of_the_latent_space_changes_nothing(seed, name, latent_dim, dtype):
    model, rng = MODELS[name], np.random.default_rng(seed)
    data = moments(draw(name, seed=seed).astype(dtype), family=model.family)
    o = fit(data, model.family, latent_dim)
    rotation = np.linalg.qr(rng.normal(size=(latent_dim, latent_dim)))[0].astype(dtype)

    def value(w):
        return float(elbo_profile(w, o.intercept, data, model.family, dispersion=o.dispersion))

    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(value(o.loadings @ rotation), o.elbo_taylor, rtol=rtol, atol=rtol)
    if float(o.eigenvalues[0]) > 1.5:  # a stretch is no rotation
        assert value(o.loadings * 1.5) < value(o.loadings) - 1e-3


@given(seed=SEEDS, name=st.sampled_from(sorted(set(MODELS) - {"binomial_columns"})), order=st.permutations(range(4)))
def test_permuted_columns_permute_the_optimum(seed, name, order, dtype):
    model, x = MODELS[name], draw(name, seed=seed).astype(dtype)
    a, b = fit(x, model.family, 2), fit(x[:, order], model.family, 2)
    rtol = RTOL[str(dtype)]
    near = {"rtol": rtol, "atol": rtol * (1 + np.abs(a.loadings).max() ** 2 + np.abs(a.intercept).max())}
    np.testing.assert_allclose(b.elbo_taylor, a.elbo_taylor, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(b.intercept, a.intercept[np.array(order)], **near)
    gap = float((a.eigenvalues[1] - a.eigenvalues[2]) / a.eigenvalues[0])
    if gap > 0.05 or float(a.eigenvalues[1]) < 1:
        np.testing.assert_allclose(b.loadings @ b.loadings.T, (a.loadings @ a.loadings.T)[np.ix_(order, order)], **near)


@pytest.mark.any_precision
def test_trials_permute_with_their_columns(dtype):
    x, order = draw("binomial_columns").astype(dtype), np.array([2, 0, 3, 1])
    trials = jnp.asarray([1.0, 5.0, 9.0, 16.0], dtype)
    a, b = fit(x, Binomial(trials), 2), fit(x[:, order], Binomial(trials[order]), 2)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(b.elbo_taylor, a.elbo_taylor, rtol=rtol)
    np.testing.assert_allclose(aligned(b.loadings, a.loadings[order]), a.loadings[order], rtol=rtol, atol=10 * rtol)


@pytest.mark.parametrize("name", float32_keeps(["binomial"], MODELS))
def test_the_posterior_is_the_best_one(name, dtype):
    model, x = MODELS[name], draw(name).astype(dtype)
    o = fit(x, model.family, 2, beta=0.7, expand_at="null")
    options = {"expand_at": "null", "beta": 0.7, "dispersion": o.dispersion}
    q, best = posterior(o, x), affine_posterior(o.loadings, o.intercept, x, model.family, **options)
    rtol = 10 * RTOL[str(dtype)]
    np.testing.assert_allclose(q.mean, best.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(q.covariance, best.covariance, rtol=rtol, atol=rtol)
    value = elbo_quadratic(o.loadings, o.intercept, x, q, model.family, **options).mean()
    np.testing.assert_allclose(value, o.elbo_taylor, rtol=rtol)


# Gaussian --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_gaussian_is_scikit_learns_pca(latent_dim, dtype):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 3)) @ rng.normal(size=(3, 5)) + 0.3 * rng.normal(size=(60, 5)) + 2).astype(dtype)
    n = len(x)
    o = fit(x, Gaussian(), latent_dim)
    # PCA divides by N - 1: on data shrunk by sqrt((N - 1) / N) about the mean its covariance is ours.
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    shrunk = x.mean(axis=0, dtype=np.float64) + centred * np.sqrt((n - 1) / n)
    pca = PCA(latent_dim, svd_solver="full").fit(shrunk)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(o.dispersion, pca.noise_variance_, rtol=rtol)
    np.testing.assert_allclose(o.intercept, pca.mean_, rtol=rtol)
    loadings = pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    np.testing.assert_allclose(aligned(o.loadings, loadings), loadings, rtol=rtol, atol=10 * rtol)
    np.testing.assert_allclose(o.elbo_taylor, pca.score(x.astype(np.float64)), rtol=rtol)
    # Not accounted for, N - 1 is another noise variance.
    plain = PCA(latent_dim, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(o.dispersion, plain.noise_variance_ * (n - 1) / n, rtol=rtol)
    assert abs(float(o.dispersion) / plain.noise_variance_ - 1) > 1e-2


def printed_dispersion(eigenvalues, latent_dim, beta):
    """(18) as printed: every unit active."""
    return eigenvalues[latent_dim:].sum() / (len(eigenvalues) - beta * latent_dim)


@given(
    seed=SEEDS,
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    latent_dim=st.integers(1, 6),
    beta=st.sampled_from([0.1, 0.5, 1.0, 1.2, 1.5, 2.0, 3.0, 6.0, 20.0]),
)
def test_dispersion_is_the_best_by_brute_force(seed, spread, latent_dim, beta, dtype):
    values = np.sort(np.exp(spread * np.random.default_rng(seed).normal(size=6)))[::-1].astype(dtype)
    exact = values.astype(np.float64)
    got = float(gaussian_dispersion(jnp.asarray(values), latent_dim, beta))
    if latent_dim == 6 and beta < 1:
        assert got == 0.0  # nothing is left to be noise, and beta rank < d: no finite optimum
        return
    if latent_dim == 6 and beta == 1.0:
        return  # the profile flattens towards 0: its supremum is no point
    grid = np.geomspace(exact[-1] * 1e-3, exact.sum() * 10, 400)
    profile_at = [gaussian_profile(exact, latent_dim, beta, s) for s in grid]
    i = int(np.argmax(profile_at))
    lower, upper = np.log(grid[max(i - 1, 0)]), np.log(grid[min(i + 1, len(grid) - 1)])
    found = minimize_scalar(
        lambda s: -gaussian_profile(exact, latent_dim, beta, np.exp(s)), bounds=(lower, upper), method="bounded"
    )
    tolerance = 1e-9 if dtype == "float64" else 1e-5  # of the value: at a maximum half the digits of sigma^2
    assert gaussian_profile(exact, latent_dim, beta, got) >= -found.fun - tolerance
    assert abs(np.log(got) - found.x) < 1e-2
    np.testing.assert_allclose(got, best_gaussian_dispersion(exact, latent_dim, beta), rtol=RTOL[str(dtype)])


@pytest.mark.any_precision
def test_18_is_the_case_without_pruning_and_wrong_with_it(dtype):
    values = np.array([5.0, 3.0, 0.5, 0.4, 0.3])
    spectrum = jnp.asarray(values, dtype)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(gaussian_dispersion(spectrum, 2), printed_dispersion(values, 2, 1.0), rtol=rtol)
    # beta = 2: the second unit (3) is over the cut-off; beta = 2.4: d / kappa = 2.5, (18) still defined but wrong
    for latent_dim, beta in ((3, 1.5), (2, 2.4), (4, 1.2)):
        ours, printed = (
            float(gaussian_dispersion(spectrum, latent_dim, beta)),
            printed_dispersion(values, latent_dim, beta),
        )
        assert beta < 5 / latent_dim
        assert abs(printed / ours - 1) > 0.05
        assert gaussian_profile(values, latent_dim, beta, ours) > gaussian_profile(values, latent_dim, beta, printed)
    # from d / kappa on it has no positive value at all
    assert printed_dispersion(values, 2, 3.0) < 0 < float(gaussian_dispersion(spectrum, 2, 3.0))


# Edge cases ------------------------------------------------------------------------------------------------


def assert_finite(o: AffineOptimum, x, *, bounded=True):
    for name in ("loadings", "intercept", "dispersion", "encoder_weight", "encoder_bias", "covariance"):
        assert np.isfinite(getattr(o, name)).all(), name
    assert np.isfinite(posterior(o, x).mean).all()
    assert not np.isnan(o.eigenvalues).any()
    assert np.isfinite(o.elbo_taylor) == bounded


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("point", ["zero", "null"])
@pytest.mark.parametrize("name", float32_keeps(["gaussian", "bernoulli"], MODELS))
def test_constant_columns(name, point, phi, dtype):
    model, x = MODELS[name], draw(name)
    x[:, 1] = 1.0  # the upper end for Bernoulli
    x[:, 3] = 0.0  # the lower end for all but Gaussian
    family = model.family
    o = fit(x.astype(dtype), family, 4, beta=0.5, dispersion=phi, expand_at=point)
    if name == "gaussian" and phi is None:
        # the two columns that vary fill two dimensions: sigma^2 can vanish
        assert o.dispersion == 0
        assert o.elbo_taylor == np.inf
    else:
        assert_finite(o, x.astype(dtype))
    # The eigensolver leaves them a rounding unit, over the square root of their working weight.
    rounding = 8 * np.finfo(dtype).eps / np.sqrt(np.finfo(dtype).eps)
    np.testing.assert_allclose(o.loadings[np.array([1, 3])], 0.0, atol=rounding)
    assert int((activity(o) > 0).sum()) <= 2
    # The columns that vary fare as they would alone.
    if not (name == "gaussian" and phi is None):
        varying = np.array([0, 2])
        alone_family = Binomial(family.trials[varying]) if name == "binomial_columns" else family
        alone = fit(x[:, varying].astype(dtype), alone_family, 2, beta=0.5, dispersion=phi, expand_at=point)
        rtol = 10 * RTOL[str(dtype)]
        near = {"rtol": rtol, "atol": rtol * (1 + np.abs(alone.loadings).max())}
        np.testing.assert_allclose(aligned(o.loadings[varying, :2], alone.loadings), alone.loadings, **near)
        np.testing.assert_allclose(o.eigenvalues[:2], alone.eigenvalues, rtol=rtol)


@pytest.mark.parametrize(("rows", "columns"), [(40, 6), (4, 6)])
@pytest.mark.parametrize("name", float32_keeps(["gaussian"], ["gaussian", "bernoulli", "poisson"]))
def test_rank_deficient_and_fewer_rows_than_columns(name, rows, columns, dtype):
    model = MODELS[name]
    x = draw(name, rows=rows, columns=columns)
    x[:, 5] = x[:, 4] = x[:, 3]
    rtol = RTOL[str(dtype)]
    for latent_dim in (2, 6):
        o = fit(x.astype(dtype), model.family, latent_dim, dispersion=0.5, beta=0.8)
        r = dense_fit(model, x, latent_dim, beta=0.8, phi=0.5)
        assert_finite(o, x.astype(dtype))
        np.testing.assert_allclose(o.elbo_taylor, r.elbo, rtol=rtol)
        near = {"rtol": rtol, "atol": rtol * (1 + np.abs(r.loadings).max() ** 2)}
        np.testing.assert_allclose(o.loadings @ o.loadings.T, r.loadings @ r.loadings.T, **near)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.3])
def test_gaussian_data_that_fill_at_most_latent_dim_dimensions(rank, beta, dtype):
    rng = np.random.default_rng(rank)
    x = (rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 5)) + 1).astype(dtype)
    o = fit(x, Gaussian(), 3, beta=beta)
    assert o.dispersion == 0
    assert o.elbo_taylor == np.inf
    assert_finite(o, x, bounded=False)
    q = posterior(o, x)
    # Only as many units are active as there are dimensions: rounding is no signal.
    assert int((activity(o) > 0).sum()) == rank
    np.testing.assert_array_equal(q.mean[:, rank:], 0.0)
    np.testing.assert_array_equal(np.diag(o.covariance), [0.0] * rank + [1.0] * (3 - rank))
    # The limit decodes the data exactly.
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(q.mean @ o.loadings.T + o.intercept, x, rtol=tolerance, atol=tolerance * np.abs(x).max())
    # One unit fewer than dimensions, and there is noise left.
    if rank > 1:
        fewer = fit(x, Gaussian(), rank - 1, beta=beta)
        assert fewer.dispersion > 0
        assert np.isfinite(fewer.elbo_taylor)


def test_a_large_beta_keeps_the_dispersion_of_low_rank_data(dtype):
    """beta rank >= d: the KL divergence outweighs the noise, and there is a finite optimum after all."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5))).astype(dtype)
    o = fit(x, Gaussian(), 3, beta=4.0)
    assert o.dispersion > 0
    values = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False, bias=True))[::-1]
    grid = np.geomspace(1e-6, 1e3, 2000)
    best = max(gaussian_profile(np.maximum(values, 0), 3, 4.0, s) for s in grid)
    assert float(o.elbo_taylor) >= best - (1e-9 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("name", float32_keeps(["gaussian", "poisson"], MODELS))
def test_as_many_units_as_columns_and_all_units_pruned(name, dtype):
    model, x = MODELS[name], draw(name).astype(dtype)
    full = fit(x, model.family, 4, dispersion=1.0)
    assert_finite(full, x)
    pruned = fit(x, model.family, 4, beta=1e4)
    assert_finite(pruned, x)
    np.testing.assert_array_equal(pruned.loadings, 0.0)
    np.testing.assert_array_equal(pruned.encoder_weight, 0.0)
    np.testing.assert_allclose(pruned.covariance, np.eye(4), rtol=RTOL[str(dtype)])
    np.testing.assert_array_equal(posterior(pruned, x).mean, 0.0)
    assert int((activity(pruned) > 0).sum()) == 0
    if model.fixed_dispersion is None:
        np.testing.assert_allclose(pruned.dispersion, x.var(axis=0).mean(), rtol=RTOL[str(dtype)])


@pytest.mark.parametrize("phi", [None, 0.5])
@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "bernoulli_grey", "poisson"]))
@pytest.mark.parametrize("shape", [(1, 4), (40, 1), (1, 1)])
def test_one_row_and_one_column(name, shape, phi, dtype):
    model = MODELS[name]
    x = draw(name)[: shape[0], : shape[1]].astype(dtype)
    o = fit(x, model.family, 1, dispersion=phi, beta=0.5)
    assert_finite(o, x, bounded=name != "gaussian" or phi is not None)
    assert "L-hat" in repr(o)


# Transformations -------------------------------------------------------------------------------------------


@given(seed=SEEDS, name=NAMES, point=st.sampled_from(["zero", "null"]))
def test_from_moments_equals_from_data(seed, name, point, dtype):
    model, x = MODELS[name], draw(name, seed=seed).astype(dtype)
    a = fit(x, model.family, 2, expand_at=point)
    b = fit(moments(x, family=model.family), model.family, 2, expand_at=point)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)
    bare = fit(moments(x), model.family, 2, expand_at=point)
    np.testing.assert_array_equal(bare.loadings, a.loadings)
    missing = log_base_for(model, x.astype(np.float64), 1.0)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(bare.elbo_taylor + missing, a.elbo_taylor, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("phi", [None, 0.7])
@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "bernoulli", "binomial_columns", "poisson"]))
def test_jit_vmap_and_eager_agree(name, phi, dtype):
    model, x = MODELS[name], jnp.asarray(draw(name).astype(dtype))
    betas = jnp.asarray([0.3, 1.0, 3.0], dtype)
    eager = [fit(x, model.family, 2, beta=b, dispersion=phi, expand_at="null") for b in betas]

    @jax.jit
    def jitted(x, family, beta):  # the family is a pytree, an argument like any other
        return fit(x, family, 2, beta=beta, dispersion=phi, expand_at="null")

    data = moments(x, family=model.family)
    mapped = jax.vmap(lambda b: fit(data, model.family, 2, beta=b, dispersion=phi, expand_at="null"))(betas)
    rtol = RTOL[str(dtype)]
    for i, one in enumerate(eager):
        for a, b, c in zip(one, jitted(x, model.family, betas[i]), mapped, strict=True):
            scale = 1 + np.abs(a).max()
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * scale)
            np.testing.assert_allclose(np.asarray(c)[i], a, rtol=rtol, atol=rtol * scale)


@pytest.mark.any_precision
def test_pytree_round_trip(dtype):
    x = draw("bernoulli").astype(dtype)
    o = fit(x, Bernoulli(), 2)
    leaves, structure = jax.tree.flatten(o)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, AffineOptimum)
    assert all(a is b for a, b in zip(again, o, strict=True))
    q = posterior(o, x)
    assert isinstance(jax.tree.map(jnp.asarray, q), Posterior)
    assert isinstance(jax.jit(lambda o: o)(o), AffineOptimum)


@pytest.mark.any_precision
@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32(name, dtype):
    """Also where double precision is switched on."""
    x = draw(name).astype("float32")
    for phi, beta in ((None, 1.0), (np.float64(0.5), np.float64(0.5))):
        o = fit(x, MODELS[name].family, 2, dispersion=phi, beta=beta, expand_at="null")
        assert {leaf.dtype for leaf in jax.tree.leaves((o, posterior(o, x)))} == {np.dtype("float32")}


def test_the_gradient_passes_through_beta(dtype):
    data = moments(jnp.asarray(draw("bernoulli").astype(dtype)), family=Bernoulli())

    def value(beta):
        return fit(data, Bernoulli(), 2, beta=beta).elbo_taylor

    step = 1e-5 if dtype == "float64" else 1e-2
    numeric = (value(0.7 + step) - value(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.7), numeric, rtol=1e-6 if dtype == "float64" else 1e-2)


@pytest.mark.any_precision
def test_the_profile_of_the_reference_is_the_librarys(dtype):
    rng = np.random.default_rng(9)
    for name, model in MODELS.items():
        x = draw(name)
        w, b, eta0 = rng.normal(size=(4, 2)), rng.normal(size=4), rng.normal(size=4)
        expected = profile(model, x, w, b, eta0=eta0, beta=0.6, phi=0.8)
        data = moments(x.astype(dtype), family=model.family)
        got = elbo_profile(w, b, data, model.family, expand_at=eta0, beta=0.6, dispersion=0.8)
        np.testing.assert_allclose(got, expected, rtol=RTOL[str(dtype)])


# Errors ----------------------------------------------------------------------------------------------------

GOOD = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.where(GOOD == 0, np.nan, GOOD)}, ValueError, r"x: .*nan at \[0, 0\]"),
        ({"x": GOOD + 0.5}, ValueError, r"x: .*support.*1.5 at \[0, 1\]"),
        ({"x": GOOD[0]}, ValueError, r"x: .*2 dimensions"),
        ({"x": GOOD[:0]}, ValueError, r"x: .*at least one row"),
        ({"x": [["a"]]}, TypeError, "x: "),
        ({"latent_dim": 0}, ValueError, "latent_dim: .*got 0"),
        ({"latent_dim": 4}, ValueError, "latent_dim: .*got 4"),
        ({"latent_dim": 1.0}, TypeError, "latent_dim: .*integer"),
        ({"latent_dim": True}, TypeError, "latent_dim: .*integer"),
        ({"beta": 0.0}, ValueError, "beta: .*got 0"),
        ({"beta": -1.0}, ValueError, "beta: .*got -1"),
        ({"beta": np.nan}, ValueError, "beta: .*nan"),
        ({"beta": "one"}, TypeError, "beta: "),
        ({"dispersion": 0.0}, ValueError, "dispersion: .*got 0"),
        ({"dispersion": [1.0, -2.0, 1.0]}, ValueError, r"dispersion: .*-2 at \[1\]"),
        ({"dispersion": [1.0, 2.0]}, ValueError, "dispersion: .*shape"),
        ({"expand_at": "mean"}, ValueError, "expand_at: .*'mean'"),
        ({"expand_at": [0.0, 0.0]}, ValueError, "expand_at: .*shape"),
        ({"expand_at": np.nan}, ValueError, "expand_at: .*nan"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"x": GOOD, "latent_dim": 2, **change}
    x, latent_dim = arguments.pop("x"), arguments.pop("latent_dim")
    with pytest.raises(error, match=message):
        fit(x, Bernoulli(), latent_dim, **arguments)


@pytest.mark.any_precision
def test_a_row_of_another_width_is_refused():
    o = fit(GOOD, Bernoulli(), 2)
    with pytest.raises(ValueError, match=r"x: expected 3 columns"):
        posterior(o, GOOD[:, :2])
    with pytest.raises(ValueError, match=r"x: .*nan at \[0, 1\]"):
        posterior(o, [[0.0, np.nan, 0.0]])
    with pytest.raises(TypeError, match="x: "):
        posterior(o, [["a", "b", "c"]])


@pytest.mark.any_precision
def test_concrete_arguments_beside_traced_ones_are_still_checked(dtype):
    """Arrays closed over by a jitted function are concrete, and what is done to them there is not."""
    x = jnp.asarray(draw("bernoulli").astype(dtype))
    eager = fit(x, Bernoulli(), 2, beta=0.7, expand_at=0.1).elbo_taylor
    jitted = jax.jit(lambda beta: fit(x, Bernoulli(), 2, beta=beta, expand_at=np.full(4, 0.1)).elbo_taylor)(0.7)
    np.testing.assert_allclose(jitted, eager, rtol=RTOL[str(dtype)])
    bad, q = x + 5, Posterior(np.zeros((40, 1)), np.eye(1))
    with pytest.raises(ValueError, match=r"x: .*support"):
        jax.jit(lambda beta: elbo_exact(np.zeros((4, 1)), np.zeros(4), bad, q, Bernoulli(), beta=beta))(0.7)
