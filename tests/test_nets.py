"""The nets against the same nets written out in NumPy, and their posterior against the core's own formulas."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from net_cases import COLUMNS, KINDS, LATENT, ROUNDING, ROWS, builder

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    elbo_exact,
    elbo_monte_carlo,
    kl_divergence,
    nets,
)
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson


@pytest.fixture(params=KINDS)
def make(request):
    return builder(request.param)


@pytest.fixture
def x(dtype):
    return jnp.asarray(np.random.default_rng(0).random((ROWS, COLUMNS)), dtype)


def numpy_layers(h, layers, last):
    for layer in layers:
        h = np.maximum(h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), 0)
    return h @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])


def test_the_encoder_is_the_relu_net_of_its_weights(make, x, dtype):
    vae = make()
    q = vae.encoder(x)
    assert q.mean.shape == (ROWS, LATENT)
    assert q.covariance.shape == (ROWS, LATENT, LATENT)
    assert q.mean.dtype == q.covariance.dtype == dtype
    mean = numpy_layers(np.asarray(x), vae.encoder_layers, vae.mean_layer)
    variance = np.exp(numpy_layers(np.asarray(x), vae.encoder_layers, vae.scale_layer))
    np.testing.assert_allclose(q.mean, mean, rtol=0, atol=ROUNDING[str(dtype)] * np.abs(mean).max())
    np.testing.assert_allclose(q.covariance, [np.diag(v) for v in variance], rtol=100 * ROUNDING[str(dtype)])


def test_the_decoder_takes_one_latent_vector_or_rows_of_them(make, dtype):
    vae = make()
    z = jnp.asarray(np.random.default_rng(1).normal(size=(4, LATENT)), dtype)
    rows = vae.decoder(z)
    expected = numpy_layers(np.asarray(z), vae.decoder_layers, vae.output_layer)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING[str(dtype)] * np.abs(expected).max())
    np.testing.assert_allclose(jax.vmap(vae.decoder)(z), rows, rtol=0, atol=ROUNDING[str(dtype)])
    assert vae.decoder(z[0]).shape == (COLUMNS,)
    assert rows.dtype == dtype


@pytest.mark.any_precision
def test_a_full_covariance_is_positive_definite_and_not_diagonal(make, x):
    q = make(full_covariance=True).encoder(x)
    assert (np.linalg.eigvalsh(q.covariance) > 0).all()
    assert (np.abs(q.covariance[:, 0, 1]) > 1e-3).all()


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_kl_and_draws_from_the_scale_are_those_of_the_covariance(make, x, dtype, full):
    vae = make(full_covariance=full)
    q, (mean, scale) = vae.encoder(x), vae.encode(x)
    tolerance = {"float32": 1e-4, "float64": 1e-11}[str(dtype)]  # kl_divergence factors the covariance again
    np.testing.assert_allclose(nets.kl_of_scale(mean, scale), kl_divergence(q), rtol=tolerance, atol=tolerance)
    # each unit vector as noise gives the columns of a square root of the covariance
    roots = jnp.stack(
        [nets.reparameterise(mean, scale, jnp.broadcast_to(e, mean.shape)) - mean for e in jnp.eye(LATENT, dtype=dtype)]
    )
    np.testing.assert_allclose(jnp.einsum("lnk,lnm->nkm", roots, roots), q.covariance, rtol=tolerance, atol=tolerance)


def test_only_an_affine_decoder_has_loadings(dtype):
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), encoder_widths=(8,))
    z = jnp.ones((3, LATENT), dtype)
    assert vae.affine_decoder
    np.testing.assert_allclose(vae.decoder(z), z @ vae.loadings.T + vae.intercept, atol=ROUNDING[str(dtype)])
    deep = nets.deep(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), encoder_widths=(8,), decoder_widths=(8,))
    assert not deep.affine_decoder
    for name in ("loadings", "intercept", "model"):
        with pytest.raises(ValueError, match=f"{name}: the decoder is not affine"):
            getattr(deep, name)


@pytest.mark.any_precision
def test_he_weights_have_variance_two_over_fan_in():
    vae = nets.deep(jax.random.key(0), 500, 2, Bernoulli(), encoder_widths=(400,), decoder_widths=(400,))
    for layer, fan_in in ((vae.encoder_layers[0], 500), (vae.output_layer, 400)):
        kernel = np.asarray(layer.kernel[...])
        # 200,000 draws: the sample variance has a relative standard error of 0.3 %
        assert abs(kernel.var() * fan_in / 2 - 1) < 5 * np.sqrt(2 / kernel.size)
        assert not np.asarray(layer.bias[...]).any()


@pytest.mark.any_precision
def test_the_default_widths_are_the_papers():
    deep = jax.eval_shape(lambda: nnx.state(nets.deep(jax.random.key(0), 50, 3, Bernoulli()), nnx.Param))
    canonical = jax.eval_shape(lambda: nnx.state(nets.canonical(jax.random.key(0), 50, 3, Bernoulli()), nnx.Param))

    def shapes(state):
        return sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 2)

    assert shapes(deep) == sorted([(50, 2000), (2000, 1000), (1000, 3), (1000, 3), (3, 1000), (1000, 2000), (2000, 50)])
    assert shapes(canonical) == sorted([(50, 2000), (2000, 50), (50, 3), (50, 3), (3, 50)])


@pytest.mark.any_precision
def test_a_key_makes_one_net(make):
    first, again, other = (nnx.state(make(seed=s)) for s in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, again)))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, other)))


OBJECTIVES = [
    Objective(Bernoulli()),
    *(
        pytest.param(o, marks=pytest.mark.float64)
        for o in (
            Objective(Binomial(np.arange(1.0, 7.0)), beta=0.5),
            Objective(Gaussian(), dispersion=np.arange(1.0, 7.0)),
            Objective(Poisson()),
        )
    ),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_net_passes_through_jit_split_and_the_cores_elbo(make, x, objective):
    vae = make(objective)
    structure, params, rest = nnx.split(vae, nnx.Param, ...)

    @jax.jit
    @jax.value_and_grad
    def elbo_and_gradient(params, x):
        net = nnx.merge(structure, params, rest)
        key, q = jax.random.key(0), net.encoder(x)
        return elbo_monte_carlo(key, net.decoder, x, q, net.objective, num_samples=2)[0].sum()

    elbo, gradient = elbo_and_gradient(params, x)
    assert elbo.dtype == x.dtype
    assert np.isfinite(elbo)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradient))


# What it is for -------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_a_net_has_an_objective_and_changes_it_in_a_copy(make):
    vae = make(Objective(Gaussian(), beta=2.0, dispersion=0.5))
    assert (vae.family, float(vae.beta), float(vae.dispersion)) == (Gaussian(), 2.0, 0.5)
    other = vae.with_beta(3.0).with_dispersion(0.25)
    assert (float(other.beta), float(other.dispersion)) == (3.0, 0.25)
    other.mean_layer.bias[...] = other.mean_layer.bias[...] + 1
    other.output_layer.kernel[...] = 0 * other.output_layer.kernel[...]
    assert (float(vae.beta), float(vae.mean_layer.bias[...][0])) == (2.0, 0.0)
    assert np.asarray(vae.output_layer.kernel[...]).any()
    assert make(Bernoulli()).objective.beta == 1
    with pytest.raises(ValueError, match="beta: expected a positive"):
        vae.with_beta(-1.0)


@pytest.mark.any_precision
def test_an_affine_decoder_with_its_objective_is_a_model(x):
    objective = Objective(Gaussian(), beta=2.0, dispersion=0.5)
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, objective, encoder_widths=(8,))
    q = vae.encoder(x)
    by_hand = AffineModel(Affine(vae.loadings, vae.intercept), objective)
    np.testing.assert_allclose(elbo_exact(vae, x, q), elbo_exact(by_hand, x, q), rtol=1e-6)
    assert np.abs(elbo_exact(vae, x, q) - elbo_exact(vae.with_beta(1.0), x, q)).min() > 1e-3


@pytest.mark.any_precision
def test_the_decoder_is_an_argument_of_a_program(make, dtype):
    """A net after a step of training meets the program of the net before it."""
    traced = []

    @jax.jit
    def eta(decoder, z):
        traced.append(1)
        return decoder(z)

    z = jnp.ones(LATENT, dtype)
    first, second = eta(make(seed=0).decoder, z), eta(make(seed=1).decoder, z)
    assert len(traced) == 1
    assert not np.allclose(first, second)


@pytest.mark.float64
def test_the_dtype_may_be_chosen(make, x):
    assert make(dtype=jnp.float32).encoder(x).mean.dtype == jnp.float32
    assert make().encoder(x).mean.dtype == jnp.float64


GOOD = {"columns": 6, "latent_dim": 2, "objective": Bernoulli(), "encoder_widths": (8,), "decoder_widths": (8,)}


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"columns": 0}, ValueError, "columns: expected an integer of at least 1, got 0"),
        ({"columns": 2.5}, TypeError, "columns: expected an integer"),
        ({"latent_dim": 7}, ValueError, "latent_dim: expected an integer from 1 to the number of columns, 6, got 7"),
        ({"latent_dim": True}, TypeError, "latent_dim: expected an integer"),
        ({"encoder_widths": (8, 0)}, ValueError, "encoder_widths: expected an integer of at least 1, got 0"),
        ({"decoder_widths": (1.5,)}, TypeError, "decoder_widths: expected an integer"),
        ({"encoder_widths": 8}, TypeError, r"encoder_widths: expected a sequence of integers such as \(100,\), got 8"),
        ({"objective": "bernoulli"}, TypeError, "objective: expected an Objective, or a family .* got str"),
        ({"objective": Bernoulli}, TypeError, "objective: expected .* got the class Bernoulli"),
        ({"objective": Gaussian()}, ValueError, r"dispersion: Gaussian\(\) does not fix it"),
        ({"objective": Binomial([1.0, 2.0])}, ValueError, "columns: expected 2 columns, the number .* got 6"),
        ({"objective": Objective(Gaussian(), dispersion=[1.0, 2.0])}, ValueError, r"dispersion: .* \(6,\)"),
        ({"dtype": jnp.int32}, ValueError, "dtype: expected float32 or float64, got int32"),
        ({"dtype": "floating"}, TypeError, "dtype: expected float32 or float64, got 'floating'"),
        ({"standardise": np.ones(6)}, TypeError, r"standardise: expected \(mean, sd\), see nets.standardisation"),
        ({"standardise": (np.ones(5), np.ones(6))}, ValueError, r"standardise\[0\]: expected shape \(6,\)"),
        ({"standardise": (np.ones(6), np.zeros(6))}, ValueError, r"standardise\[1\]: expected a positive"),
    ],
)
def test_wrong_arguments_are_named(wrong, error, message):
    with pytest.raises(error, match=message):
        nets.deep(jax.random.key(0), **(GOOD | wrong))


@pytest.mark.any_precision
def test_a_key_and_a_precision_that_are_not_there_are_named():
    for key in (0, None, "key"):
        with pytest.raises(TypeError, match=r"key: expected .*jax.random.key\(0\)"):
            nets.deep(key, **GOOD)
    nets.deep(jax.random.PRNGKey(0), **GOOD)
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"dtype: float64 needs .*enable_x64.* is off"):
        nets.deep(jax.random.key(0), **GOOD, dtype="float64")


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, 5)), ValueError, "x: expected 6 columns"),
        (np.ones(6), ValueError, "x: expected 2 dimensions"),
        (np.full((1, 6), np.nan), ValueError, r"x: expected finite numbers, got nan at \[0, 0\]"),
        ([["a"] * 6], TypeError, "x: expected an array of numbers"),
    ],
)
def test_the_encoder_names_bad_data(x, error, message):
    with pytest.raises(error, match=message):
        nets.deep(jax.random.key(0), **GOOD).encoder(x)


@pytest.mark.any_precision
def test_importing_the_library_does_not_import_flax_or_optax():
    code = "import sys, glmvae; sys.exit(any(m in sys.modules for m in ('flax', 'optax', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    code = "import sys; from glmvae import nets; sys.exit('flax' not in sys.modules)"  # the check can fail
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
