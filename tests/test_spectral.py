"""The spectrum: decompositions, gradients where eigenvalues are equal, the dispersion against brute force."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from dense_reference import MODELS, best_gaussian_dispersion, draw, gaussian_profile, searched_gaussian_dispersion
from hypothesis import given
from hypothesis import strategies as st

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    elbo_exact,
    fit,
    gaussian_dispersion,
    moments,
    optimum_at,
    posterior,
    spectrum,
)
from glmvae.decomposition import decompose, decomposed, signs
from glmvae.families import Bernoulli, Gaussian, Poisson
from glmvae.solution import solve
from glmvae.spectral import Quadratic, decomposed_spectrum, spectrum_of

RTOL = {"float64": 1e-10, "float32": 2e-4}
SEEDS = st.integers(0, 2**32 - 1)


def covariance(columns, dtype="float64", seed=0, rank=None):
    x = np.random.default_rng(seed).normal(size=(3 * columns, rank or columns))
    x = x @ np.random.default_rng(seed + 1).normal(size=(rank or columns, columns))
    return np.cov(x, rowvar=False, bias=True).reshape(columns, columns).astype(dtype)


# Decompositions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "units"), [(1, None), (5, None), (40, None), (40, 3), (40, 20), (100, 8)])
@pytest.mark.parametrize("constant", [False, True])
def test_eigenvectors_of_all_or_the_leading_eigenvalues(columns, units, constant, dtype):
    matrix = covariance(columns, dtype)
    if constant and columns > 4:
        matrix[[1, 3]] = matrix[:, [1, 3]] = 0
    found = decomposed(matrix, units)
    eps = np.finfo(dtype).eps
    values, vectors = np.asarray(found.values, np.float64), np.asarray(found.vectors, np.float64)
    assert found.values.dtype == found.vectors.dtype == dtype
    assert vectors.shape == (columns, units or columns)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.astype(np.float64))[::-1], atol=8 * eps * values[0])
    kept = values[: vectors.shape[1]]
    np.testing.assert_allclose(matrix @ vectors, vectors * kept, atol=8 * eps * values[0])
    # Representations that are relatively robust give vectors orthogonal to d rounding units (Dhillon and Parlett, 2004)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(kept)), atol=max(columns, 8) * eps)
    assert np.all(signs(vectors) == 1)
    if constant and columns > 4:
        np.testing.assert_array_equal(vectors[[1, 3]][:, kept > 0], 0.0)  # to the last digit
        np.testing.assert_array_equal(values[-2:], 0.0)


def test_more_vectors_than_columns_that_vary(dtype):
    matrix = np.zeros((40, 40), dtype)
    matrix[3, 3] = 2.0
    found = decomposed(matrix, 8)
    vectors = np.asarray(found.vectors)
    np.testing.assert_array_equal(vectors.T @ vectors, np.eye(8))
    np.testing.assert_array_equal(np.asarray(found.values)[:2], [2.0, 0.0])
    assert np.isfinite(decomposed(np.zeros((2, 2), dtype)).vectors).all()


def test_signs_do_not_hang_on_rounding(dtype):
    """Of two entries of one size the first is positive, whichever rounding made the larger."""
    vector = np.array([[-0.5], [0.5], [0.1]], dtype)
    for i in range(2):
        nudged = vector.copy()
        nudged[i] *= 1 + 4 * np.finfo(dtype).eps
        np.testing.assert_array_equal(signs(nudged), [-1.0])
        np.testing.assert_array_equal(jax.jit(signs)(nudged), [-1.0])
    np.testing.assert_array_equal(signs(np.array([[-0.4], [0.5]], dtype)), [1.0])


def test_jit_and_eager_agree(dtype):
    matrix = covariance(5, dtype)
    values, vectors = decompose(matrix)
    traced = jax.jit(decompose)(matrix)
    np.testing.assert_allclose(traced[0], values, rtol=RTOL[str(dtype)])
    np.testing.assert_allclose(traced[1], vectors, atol=10 * RTOL[str(dtype)])


@pytest.mark.any_precision
def test_noise_of_the_entries_is_no_signal():
    """Known to float32: rank 2 of 6 columns, in which what is left is rounding, whatever the columns' scales."""
    matrix = covariance(6, rank=2)
    scales = np.array([1.0, 1e3, 1.0, 10.0, 1e-2, 1.0])
    for scale in (np.ones(6), scales):
        rounded = (matrix * np.outer(scale, scale)).astype("float32")
        plain, cleaned = decomposed(rounded), decomposed(rounded, noise=float(np.finfo("float32").eps))
        assert np.sum(np.asarray(plain.values) > 0) > 2
        assert np.sum(np.asarray(cleaned.values) > 0) == 2
    # and signal that is small is none of it
    graded = np.diag([2.5e9, 100.0, 1.0]).astype("float32")
    graded[0, 2] = graded[2, 0] = 1e4
    values = np.asarray(decomposed(graded, noise=float(np.finfo("float32").eps)).values)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(graded.astype(float))[::-1], rtol=1e-5)


@pytest.mark.any_precision
@pytest.mark.parametrize("scales", [(1.0, 1e8, 1.0, 1e4), 10.0 ** np.linspace(-8, 8, 8), (1.0, 1e5, 1e5, 3.0)])
def test_small_eigenvalues_beside_columns_of_far_larger_scale(scales):
    """To the digits of the correlations, against 50-digit mpmath; LAPACK's are off by rounding units of the largest."""
    x = np.random.default_rng(1).normal(size=(200, len(scales))) * scales
    matrix, eps = np.cov(x, rowvar=False, bias=True), np.finfo(float).eps
    with mp.workdps(50):
        exact = sorted((float(v) for v in mp.eigsy(mp.matrix(matrix.tolist()), eigvals_only=True)), reverse=True)
    with jax.enable_x64(True):
        found, plain = (jax.tree.map(np.asarray, decomposed(matrix, 2, noise=noise)) for noise in (eps, None))
    np.testing.assert_allclose(found.values, exact, rtol=1e-13)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(found.vectors.shape[1]), atol=1e-14)
    assert np.max(np.abs(plain.values / exact - 1)) > 1e-8  # the control
    dependent = np.column_stack([x, x[:, :1] + x[:, -1:]])  # and what is no dimension of its own is none here
    with jax.enable_x64(True):
        last = decomposed(np.cov(dependent, rowvar=False, bias=True), len(scales), noise=eps).values[-1]
    assert last == 0


@pytest.mark.any_precision
def test_the_dispersion_beside_columns_of_far_larger_scale():
    x = np.random.default_rng(0).normal(size=(300, 4)) * [1e8, 1e4, 1.0, 1.0]
    with jax.enable_x64(True):
        optimum = fit(x, Gaussian(), 2)
        elbo = jnp.mean(elbo_exact(optimum, x, posterior(optimum, x)))
    with mp.workdps(50):
        rows = mp.matrix((x - x.mean(axis=0)).tolist())
        exact = sorted(float(v) for v in mp.eigsy(rows.T * rows / len(x), eigvals_only=True))
    np.testing.assert_allclose(optimum.dispersion, np.mean(exact[:2]), rtol=1e-12)
    np.testing.assert_allclose(optimum.elbo_taylor, elbo, rtol=1e-12)


# The spectrum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", pytest.param("poisson", marks=pytest.mark.float64)])
def test_one_decomposition_answers_for_every_kappa_beta_and_dispersion(name, dtype):
    model = MODELS[name]
    data = moments(draw(name).astype(dtype), family=model.family)
    found = spectrum(data, model.family, expand_at="null")
    assert found.dispersion is None if name == "gaussian" else found.dispersion == 1
    for latent_dim, beta, phi in ((0, 1.0, None), (1, 0.3, None), (4, 2.0, None), (2, 1.0, 0.5)):
        if phi is not None and name != "gaussian":
            continue
        a = optimum_at(found, latent_dim, beta=beta, dispersion=phi)
        b = fit(data, model.family, latent_dim, beta=beta, dispersion=phi, expand_at="null")
        assert bool(a.dispersion_estimated) == bool(b.dispersion_estimated) == (name == "gaussian" and phi is None)
        for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(left, right, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    whitened = np.asarray(data.covariance) * np.outer(found.scale, found.scale)
    np.testing.assert_allclose(found.trace, np.trace(whitened), rtol=RTOL[str(dtype)])
    np.testing.assert_allclose(np.linalg.eigvalsh(whitened)[::-1], found.values, rtol=RTOL[str(dtype)], atol=1e-6)


def test_a_leading_part_and_the_trace_say_the_same(dtype):
    """The place for spectra of which only the leading eigenvalues are known: what is left enters by its sum."""
    data = moments(draw("gaussian", columns=4).astype(dtype), family=Gaussian())
    whole = spectrum(data, Gaussian())
    part = whole._replace(values=whole.values[:3], vectors=whole.vectors[:, :3], rest=whole.values[3])
    np.testing.assert_allclose(part.trace, whole.trace, rtol=RTOL[str(dtype)])
    for latent_dim, beta in ((1, 1.0), (2, 0.3), (3, 4.0)):
        a, b = (optimum_at(s, latent_dim, beta=beta) for s in (whole, part))
        for name in ("elbo_taylor", "dispersion", "loadings"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=RTOL[str(dtype)])
    with pytest.raises(ValueError, match=r"latent_dim: .*from 0 to the number of vectors of the spectrum, 3"):
        optimum_at(part, 4)


def test_the_rate_is_the_mean_kl_divergence(dtype):
    from glmvae import kl_divergence

    x = draw("bernoulli").astype(dtype)
    found = solve(spectrum(x, Bernoulli(), dispersion=0.3), 3, jnp.asarray(0.5, dtype))
    o = optimum_at(spectrum(x, Bernoulli(), dispersion=0.3), 3, beta=0.5)
    np.testing.assert_allclose(found.rate, np.mean(kl_divergence(posterior(o, x))), rtol=10 * RTOL[str(dtype)])


def test_any_quadratic_has_a_spectrum(dtype):
    """A weight, response and slope of one's own (a tightened bound's): the optimum is probabilistic PCA of these."""
    x = draw("bernoulli").astype(dtype)
    data, rng = moments(x, family=Bernoulli()), np.random.default_rng(1)
    w, s = rng.uniform(0.1, 0.25, 4).astype(dtype), rng.uniform(3.0, 5.0, 4).astype(dtype)
    q = Quadratic(w, s * (np.asarray(data.mean) - np.asarray(0.5, dtype)), s, np.zeros(4, dtype))
    one, zero = jnp.ones((), dtype), jnp.zeros(4, dtype)
    found = solve(decomposed_spectrum(data, Bernoulli(), q, one, zero), 2, one)
    y = s * (x - 0.5)
    white = np.sqrt(w) * (y - y.mean(axis=0))
    values = np.linalg.eigvalsh(white.T @ white / len(x))[::-1]
    np.testing.assert_allclose(found.eigenvalues, values, rtol=10 * RTOL[str(dtype)], atol=RTOL[str(dtype)])
    k = np.maximum(values[:2], 1.0)
    elbo = -0.5 * (np.sum(values[:2] / k + np.log(k)) + values[2:].sum())
    np.testing.assert_allclose(found.elbo, elbo, rtol=10 * RTOL[str(dtype)])


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: optimum_at("spectrum", 1), TypeError, "spectrum: expected a Spectrum"),
        (lambda s: optimum_at(s, 5), ValueError, "latent_dim: .*got 5"),
        (lambda s: optimum_at(s, -1), ValueError, "latent_dim: .*got -1"),
        (lambda s: optimum_at(s, 1.0), TypeError, "latent_dim: "),
        (lambda s: optimum_at(s, 1, beta=0.0), ValueError, "beta: "),
        (lambda s: optimum_at(s, 1, dispersion=[1.0] * 4), ValueError, "dispersion: .*a scalar"),
        (lambda s: optimum_at(s, 1, dispersion=-1.0), ValueError, "dispersion: "),
        (
            lambda s: optimum_at(spectrum(s.moments, Gaussian(), dispersion=1.0), 1, dispersion=1.0),
            ValueError,
            "its own",
        ),
        (lambda s: spectrum(s.moments, Gaussian(), dispersion=0.0), ValueError, "dispersion: "),
        (lambda s: spectrum(s.moments, Gaussian(), expand_at="mean"), ValueError, "expand_at: "),
        (lambda s: spectrum(s.moments, Gaussian), TypeError, "family: "),
        (lambda s: spectrum(None, Gaussian()), TypeError, "x: "),
    ],
)
def test_bad_input_is_named(call, error, message):
    found = spectrum(draw("gaussian"), Gaussian())
    assert "Spectrum: 4 columns, Gaussian(), dispersion estimated" in repr(found)
    with pytest.raises(error, match=message):
        call(found)


# Gradients -------------------------------------------------------------------------------------------------

# Central differences of step 1e-5, and of 1e-2 in float32.
STEP = {"float64": (1e-5, 1e-6), "float32": (1e-2, 2e-2)}


def assert_gradient(f, x, dtype, entries=6):
    gradient = np.asarray(jax.jit(jax.grad(f))(np.asarray(x, dtype)))
    assert np.isfinite(gradient).all()
    step, tolerance = STEP[str(dtype)]
    for seed in range(entries):
        direction = np.random.default_rng(seed).normal(size=x.shape) * (x != x[:1]).any(axis=0)
        numeric = (float(f(x + step * direction)) - float(f(x - step * direction))) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("constant", [0, 1, 2])
def test_the_gradient_of_a_fit_with_columns_that_do_not_vary(constant, dtype):
    """Two zero eigenvalues are equal, and nothing is asked of their vectors."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(dtype)
    x[:, 3 - constant :] = 2.0
    weight = np.random.default_rng(1).normal(size=(3, 1))

    @jax.jit
    def value(x):
        o = fit(x, Gaussian(), 1, dispersion=0.5)
        return o.elbo_taylor + jnp.sum((o.loadings * weight) ** 2) + jnp.sum(o.encoder.weight @ o.loadings)

    assert_gradient(value, x, dtype)


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_the_gradient_of_a_fit_in_which_units_are_pruned(latent_dim, dtype):
    x = draw("gaussian").astype(dtype)
    beta = 1.3 * float(fit(x, Gaussian(), 1, dispersion=1.0).eigenvalues[1])  # all but one

    @jax.jit
    def value(x):
        o = fit(x, Gaussian(), latent_dim, beta=beta, dispersion=1.0)
        return jnp.sum(o.loadings @ o.encoder.weight) + jnp.sum(o.encoder.covariance) + o.elbo_taylor

    assert_gradient(value, x, dtype)
    # all units off: what is left of W has no gradient, rather than NaN
    gradient = jax.grad(lambda x: jnp.sum(fit(x, Gaussian(), latent_dim, beta=1e4, dispersion=1.0).loadings))(
        jnp.asarray(x)
    )
    np.testing.assert_array_equal(gradient, 0.0)


def equal_eigenvalues(dtype):
    """Four points of a simplex and their mirror images: all eigenvalues are one, and the vectors are any."""
    points = np.concatenate([np.eye(3), -np.eye(3)]) * 2.0
    return points.astype(dtype)


def test_the_gradient_where_active_eigenvalues_are_equal(dtype):
    """The loadings are free to turn there, what does not turn with them has a gradient: W W', the decoded mean."""
    x = equal_eigenvalues(dtype)
    weight = np.random.default_rng(2).normal(size=(3, 3))

    @jax.jit
    def value(x):
        o = fit(x, Gaussian(), 3, dispersion=0.4, beta=0.8)
        covariance = o.loadings @ o.encoder.covariance @ o.loadings.T
        return jnp.sum(weight * (o.loadings @ o.loadings.T)) + jnp.sum(
            weight * (o.loadings @ o.encoder.weight + covariance)
        )

    assert_gradient(value, x, dtype)

    # without what couples them the off-diagonal part would be lost
    def lost(x):
        found = spectrum_of(moments(x), Gaussian(), 0.4, "zero")
        loadings = solve(found._replace(coupling=None), 3, jnp.asarray(0.8, dtype)).loadings
        return jnp.sum(weight * (loadings @ loadings.T))

    with pytest.raises(AssertionError):
        assert_gradient(jax.jit(lost), x, dtype)


@pytest.mark.float64
def test_the_gradient_of_the_exact_elbo_through_a_fit():
    x = equal_eigenvalues("float64") * [1.0, 1.0, 0.7]

    @jax.jit
    def value(x):
        o = fit(x, Gaussian(), 2, dispersion=0.4)
        model = AffineModel(Affine(o.loadings, o.intercept), Objective(Gaussian(), 1.0, 0.4))
        return jnp.mean(elbo_exact(model, x, posterior(o, x)))

    assert_gradient(value, x, jnp.dtype("float64"))


# The dispersion --------------------------------------------------------------------------------------------


def printed_dispersion(eigenvalues, latent_dim, beta):
    """(18) as printed: every unit active."""
    return eigenvalues[latent_dim:].sum() / (len(eigenvalues) - beta * latent_dim)


@given(
    seed=SEEDS,
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    latent_dim=st.integers(0, 6),
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
    found = searched_gaussian_dispersion(exact, latent_dim, beta)
    tolerance = 1e-9 if dtype == "float64" else 1e-5  # of the value: at a maximum half the digits of sigma^2
    best = gaussian_profile(exact, latent_dim, beta, found)
    assert gaussian_profile(exact, latent_dim, beta, got) >= best - tolerance
    assert abs(np.log(got / found)) < 1e-2
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


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], 1), ValueError, "eigenvalues: expected a vector"),
        (([1.0, -1.0], 1), ValueError, r"eigenvalues: .*below 0, got -1 at \[1\]"),
        (([1.0, 2.0], 1), ValueError, r"eigenvalues: .*descending.*after \[0\]"),
        (([2.0, 1.0], 3), ValueError, "latent_dim: "),
        (([2.0, 1.0], 1, 0.0), ValueError, "beta: "),
        ((["a"], 1), TypeError, "eigenvalues: "),
    ],
)
def test_bad_eigenvalues_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        gaussian_dispersion(*arguments)


@pytest.mark.any_precision
def test_poisson_takes_no_open_dispersion():
    """What is not Gaussian has its dispersion fixed, or needs one."""
    assert spectrum(draw("poisson"), Poisson()).dispersion == 1
