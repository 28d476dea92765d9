"""The closed form against a dense reference, its own objective, scikit-learn, and itself under transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted
from data_files import needs_frey
from dense_reference import MODELS, draw, expansion_point, problem
from dense_reference import fit as dense_fit
from hypothesis import given
from hypothesis import strategies as st

from glmvae import (
    Affine,
    AffineModel,
    AffineOptimum,
    Objective,
    Posterior,
    activity,
    affine_posterior,
    datasets,
    elbo_exact,
    elbo_profile,
    elbo_quadratic,
    fit,
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


# Against the dense reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", float32_keeps(["gaussian", "bernoulli"], MODELS))
def test_equal_to_the_dense_reference(name, point, dtype):
    model, x, expand_at = MODELS[name], draw(name), POINTS[point]
    for phi in DISPERSIONS.values():
        for latent_dim, beta in ((0, 1.0), (1, 0.3), (2, 1.0), (4, 2.5)):
            o = fit(x.astype(dtype), model.family, latent_dim, beta=beta, dispersion=phi, expand_at=expand_at)
            p = problem(x, model, beta=beta, phi=None if phi is None else np.asarray(phi))
            assert_is(o, dense_fit(p, latent_dim, expand_at=expand_at), dtype)
            near = {"rtol": RTOL[str(dtype)], "atol": RTOL[str(dtype)]}
            np.testing.assert_allclose(o.expansion_point, expansion_point(model, x, expand_at), **near)
            assert precisions(o) == {dtype}


def precisions(o):
    """Of all that floats, but for the family, which is the caller's."""
    parts = o.decoder, o.beta, o.dispersion, o.encoder, o.eigenvalues, o.elbo_taylor, o.expansion_point
    return {leaf.dtype for leaf in jax.tree.leaves(parts)}


def assert_is(o, r, dtype):
    rtol = RTOL[str(dtype)]
    near = {"rtol": rtol, "atol": rtol * max(1.0, np.abs(r.intercept).max(), np.abs(r.loadings).max(initial=0))}
    np.testing.assert_allclose(o.eigenvalues, r.eigenvalues, rtol=rtol, atol=rtol * r.eigenvalues[0])
    np.testing.assert_allclose(o.dispersion, r.dispersion, rtol=rtol)
    np.testing.assert_allclose(o.intercept, r.intercept, **near)
    np.testing.assert_allclose(o.elbo_taylor, r.elbo, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(np.diag(o.encoder.covariance), np.diag(r.covariance), rtol=rtol, atol=rtol)
    # Up to signs W is unique where no two eigenvalues are close; W W' and the decoded mean always are.
    loadings = np.asarray(o.loadings)
    np.testing.assert_allclose(loadings @ loadings.T, r.loadings @ r.loadings.T, **near)
    np.testing.assert_allclose(loadings @ o.encoder.weight, r.loadings @ r.encoder_weight, **near)
    np.testing.assert_allclose(loadings @ o.encoder.bias, r.loadings @ r.encoder_bias, **near)


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
    value = elbo_exact(o, x, posterior(o, x)).mean()
    assert abs(float(value) - exact) < FREY_TOLERANCE
    # A unit counts as active above 0.01 (Burda et al.): the fifth, just over the cut-off, does not.
    assert int((activity(o) > 0.01).sum()) == min(latent_dim, 4)
    assert int((activity(o) > 0).sum()) == min(latent_dim, 5)


# It is the optimum -----------------------------------------------------------------------------------------

# A gradient is a difference of terms of size sqrt(w) y / beta over 40 rows.
GRADIENT = {"float64": 1e-10, "float32": 2e-3}


@jax.jit
def profile_and_gradients(decoder, phi, data, objective, eta0):
    def value(decoder, phi):
        model = AffineModel(decoder, Objective(objective.family, objective.beta, phi))
        return elbo_profile(model, data, expand_at=eta0)

    return jax.value_and_grad(value, argnums=(0, 1))(decoder, phi)


@given(seed=SEEDS, name=NAMES, beta=st.sampled_from([0.3, 1.0, 4.0]), point=st.sampled_from(["zero", "null"]))
def test_zero_gradient_and_better_than_perturbations(seed, name, beta, point, dtype):
    model = MODELS[name]
    data = moments(draw(name, seed=seed).astype(dtype), family=model.family)
    o = fit(data, model.family, 3, beta=beta, expand_at=point)

    def at(loadings, intercept):
        decoder = Affine(np.asarray(loadings), np.asarray(intercept))
        value, gradients = profile_and_gradients(decoder, o.dispersion, data, o.model.objective, o.expansion_point)
        return value, (gradients[0].loadings, gradients[0].intercept, gradients[1])

    loadings, intercept = np.asarray(o.loadings), np.asarray(o.intercept)
    best, gradients = at(loadings, intercept)
    size = 1 + abs(float(best)) + float(o.eigenvalues[0])
    tolerance = GRADIENT[str(dtype)] * size
    np.testing.assert_allclose(o.elbo_taylor, best, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    # per unit of whitened loadings
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(data.covariance)), 1e-3))
    np.testing.assert_allclose(gradients[0] * scale[:, None], 0.0, atol=tolerance * (1 + np.abs(loadings).max()))
    np.testing.assert_allclose(gradients[1] * scale, 0.0, atol=tolerance)
    if model.fixed_dispersion is None:
        np.testing.assert_allclose(gradients[2] * o.dispersion, 0.0, atol=tolerance)
    rng = np.random.default_rng(seed)
    for step in (1e-2, 0.1, 1.0):
        moved = loadings + step * rng.normal(size=loadings.shape).astype(dtype)
        value = at(moved, intercept + step * rng.normal(size=intercept.shape).astype(dtype))[0]
        assert value <= best + RTOL[str(dtype)] * size
        assert value < best or step < 0.1
    # Negative control: away from the optimum the gradient is not 0.
    away = at(loadings, intercept + 5 * np.sqrt(1 + o.eigenvalues[0]))[1][1]
    assert np.abs(away * scale).max() > 10 * tolerance


@given(seed=SEEDS, name=NAMES)
def test_a_rotation_of_the_latent_space_changes_nothing(seed, name, dtype):
    latent_dim = 3
    model, rng = MODELS[name], np.random.default_rng(seed)
    data = moments(draw(name, seed=seed).astype(dtype), family=model.family)
    o = fit(data, model.family, latent_dim)
    rotation = np.linalg.qr(rng.normal(size=(latent_dim, latent_dim)))[0].astype(dtype)

    def value(w):
        return float(elbo_profile(AffineModel(Affine(w, o.intercept), o.model.objective), data))

    rtol, loadings = RTOL[str(dtype)], np.asarray(o.loadings)
    np.testing.assert_allclose(value(loadings @ rotation), o.elbo_taylor, rtol=rtol, atol=rtol)
    if float(o.eigenvalues[0]) > 1.5:  # a stretch is no rotation
        assert value(loadings * 1.5) < value(loadings) - 1e-3


@given(seed=SEEDS, name=st.sampled_from(sorted(set(MODELS) - {"binomial_columns"})), order=st.permutations(range(4)))
def test_permuted_columns_permute_the_optimum(seed, name, order, dtype):
    model, x = MODELS[name], draw(name, seed=seed).astype(dtype)
    a, b = (jax.tree.map(np.asarray, fit(rows, model.family, 2)) for rows in (x, x[:, order]))
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
    q, best = posterior(o, x), affine_posterior(o, x, expand_at="null")
    rtol = 10 * RTOL[str(dtype)]
    np.testing.assert_allclose(q.mean, best.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(q.covariance, best.covariance, rtol=rtol, atol=rtol)
    value = elbo_quadratic(o, x, q, expand_at="null").mean()
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


# Transformations -------------------------------------------------------------------------------------------


@given(seed=SEEDS, name=NAMES, point=st.sampled_from(["zero", "null"]))
def test_from_moments_equals_from_data(seed, name, point, dtype):
    model, x = MODELS[name], draw(name, seed=seed).astype(dtype)
    a = fit(x, model.family, 2, expand_at=point)
    b = fit(moments(x, family=model.family), model.family, 2, expand_at=point)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)
    bare = fit(moments(x), model.family, 2, expand_at=point)
    x = x.astype(np.float64)
    missing = 0.0 if model.fixed_dispersion is None else model.log_base_measure(x).sum(axis=1).mean()
    rtol = RTOL[str(dtype)]  # without a family the rows are summed up in other parts
    np.testing.assert_allclose(bare.loadings @ bare.loadings.T, a.loadings @ a.loadings.T, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(bare.elbo_taylor + missing, a.elbo_taylor, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("phi", [None, 0.7])
@pytest.mark.parametrize("name", float32_keeps(["gaussian"], ["gaussian", "binomial_columns"]))
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
        leaves = (jax.tree.leaves(tree) for tree in (one, jitted(x, model.family, betas[i]), mapped))
        for a, b, c in zip(*leaves, strict=True):
            scale = 1 + np.abs(a).max(initial=0)
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * scale)
            np.testing.assert_allclose(np.asarray(c)[i], a, rtol=rtol, atol=rtol * scale)


@pytest.mark.any_precision
def test_pytree_round_trip(dtype):
    x = draw("bernoulli").astype(dtype)
    o = fit(x, Bernoulli(), 2)
    leaves, structure = jax.tree.flatten(o)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, AffineOptimum)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    assert isinstance(jax.tree.map(jnp.asarray, posterior(o, x)), Posterior)
    passed = jax.jit(lambda o: o)(o)
    assert isinstance(passed, AffineOptimum)
    assert repr(passed) == repr(o)
    assert repr(o.encoder) == "Encoder(4 columns, 2 latent units)"


@pytest.mark.any_precision
@pytest.mark.parametrize("name", ["gaussian", "binomial_columns"])
def test_float32_stays_float32(name, dtype):
    """Also where double precision is switched on."""
    x = draw(name).astype("float32")
    for phi, beta in ((None, 1.0), (np.float64(0.5), np.float64(0.5))):
        o = fit(x, MODELS[name].family, 2, dispersion=phi, beta=beta, expand_at="null")
        assert precisions(o) == {leaf.dtype for leaf in posterior(o, x)} == {np.dtype("float32")}


def test_the_gradient_passes_through_beta(dtype):
    data = moments(jnp.asarray(draw("bernoulli").astype(dtype)), family=Bernoulli())

    def value(beta):
        return fit(data, Bernoulli(), 2, beta=beta).elbo_taylor

    step = 1e-5 if dtype == "float64" else 1e-2
    numeric = (value(0.7 + step) - value(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.7), numeric, rtol=1e-6 if dtype == "float64" else 1e-2)


@pytest.mark.any_precision
def test_another_kappa_beta_or_number_of_rows_compiles_nothing(dtype):
    x = draw("bernoulli", rows=70).astype(dtype)
    fit(x[:40], Bernoulli(), 2)
    with counted() as compiled:
        for rows, latent_dim, beta in ((40, 1, 1.0), (40, 4, 0.3), (37, 3, 2.0), (33, 0, 1.0)):
            fit(x[:rows], Bernoulli(), latent_dim, beta=beta)
    assert compiled.number == 0


# Errors ----------------------------------------------------------------------------------------------------

GOOD = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]], "float32")


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.where(GOOD == 0, np.nan, GOOD)}, ValueError, r"x: .*nan at \[0, 0\]"),
        ({"x": GOOD + 0.5}, ValueError, r"x: .*support.*1.5 at \[0, 1\]"),
        ({"x": GOOD[0]}, ValueError, r"x: .*2 dimensions"),
        ({"x": GOOD[:0]}, ValueError, r"x: .*at least one row"),
        ({"x": [["a"]]}, TypeError, "x: "),
        ({"latent_dim": -1}, ValueError, "latent_dim: .*got -1"),
        ({"latent_dim": 4}, ValueError, "latent_dim: .*got 4"),
        ({"latent_dim": 1.0}, TypeError, "latent_dim: .*integer"),
        ({"latent_dim": True}, TypeError, "latent_dim: .*integer"),
        ({"beta": 0.0}, ValueError, "beta: .*got 0"),
        ({"beta": -1.0}, ValueError, "beta: .*got -1"),
        ({"beta": np.nan}, ValueError, "beta: .*nan"),
        ({"beta": "one"}, TypeError, "beta: "),
        ({"beta": [1.0, 2.0, 1.0]}, ValueError, "beta: .*a scalar, got shape"),
        ({"beta": 1e-46}, ValueError, "beta: .*float32 can hold, got 1e-46"),
        ({"beta": 1e39}, ValueError, "beta: .*float32 can hold"),
        ({"dispersion": 1e-38}, ValueError, "dispersion: .*float32 can hold"),
        ({"family": Bernoulli}, TypeError, "family: .*the class Bernoulli"),
        ({"family": Objective(Bernoulli())}, TypeError, "family: .*got Objective; pass its .family"),
        ({"family": Gaussian, "x": None}, TypeError, "family: "),
        ({"x": None}, TypeError, "x: .*NoneType"),
        ({"x": np.ma.masked_equal(GOOD, 0)}, ValueError, "missing: "),
        ({"dispersion": 0.0}, ValueError, "dispersion: .*got 0"),
        ({"dispersion": [1.0, -2.0, 1.0]}, ValueError, r"dispersion: .*-2 at \[1\]"),
        ({"dispersion": [1.0, 2.0]}, ValueError, "dispersion: .*shape"),
        ({"expand_at": "mean"}, ValueError, "expand_at: .*'mean'"),
        ({"expand_at": [0.0, 0.0]}, ValueError, "expand_at: .*shape"),
        ({"expand_at": np.nan}, ValueError, "expand_at: .*nan"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"x": GOOD, "family": Bernoulli(), "latent_dim": 2, **change}
    x, family, latent_dim = (arguments.pop(name) for name in ("x", "family", "latent_dim"))
    with pytest.raises(error, match=message):
        fit(x, family, latent_dim, **arguments)


@pytest.mark.any_precision
def test_a_row_of_another_width_is_refused():
    o = fit(GOOD, Bernoulli(), 2)
    with pytest.raises(ValueError, match=r"x: expected 3 columns"):
        posterior(o, GOOD[:, :2])
    with pytest.raises(ValueError, match=r"x: .*nan at \[0, 1\]"):
        posterior(o, [[0.0, np.nan, 0.0]])
    with pytest.raises(TypeError, match="x: "):
        posterior(o, [["a", "b", "c"]])
    with pytest.raises(ValueError, match=r"x: .*support.*1.5 at \[0, 1\]"):
        posterior(o, [[0.0, 1.5, 0.0]])
    with pytest.raises(TypeError, match="optimum: expected an AffineOptimum"):
        posterior(GOOD, GOOD)


@pytest.mark.any_precision
def test_concrete_arguments_beside_traced_ones_are_still_checked(dtype):
    """Arrays closed over by a jitted function are concrete, and what is done to them there is not."""
    x = jnp.asarray(draw("bernoulli").astype(dtype))
    eager = fit(x, Bernoulli(), 2, beta=0.7, expand_at=0.1).elbo_taylor
    jitted = jax.jit(lambda beta: fit(x, Bernoulli(), 2, beta=beta, expand_at=np.full(4, 0.1)).elbo_taylor)(0.7)
    np.testing.assert_allclose(jitted, eager, rtol=RTOL[str(dtype)])
    with pytest.raises(ValueError, match=r"x: .*support"):
        jax.jit(lambda beta: fit(np.asarray(x) + 5, Bernoulli(), 2, beta=beta).elbo_taylor)(0.7)
    bad = jax.jit(lambda beta: fit(x, Bernoulli(), 2, beta=beta).elbo_taylor)(-1.0)
    assert np.isnan(bad)  # traced, so it is not looked at
