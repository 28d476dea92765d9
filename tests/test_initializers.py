"""Pass-through is the closed form at step 0, MLE-B is near it, and He is where the paper's benchmark starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from start_cases import (
    ARCHITECTURES,
    COLUMNS,
    FAMILIES,
    INPUTS,
    LATENT,
    ROUNDING,
    ROWS,
    STANDARDISE,
    changed,
    closed_form,
    draw,
    net,
)

from glmvae import (
    Rows,
    elbo_exact,
    elbo_monte_carlo,
    fit,
    initializers,
    nets,
    posterior,
    refine,
    tighten,
    training,
)
from glmvae.families import (
    Bernoulli,
    Binomial,
)

IN_FLOAT32 = ("bernoulli", "mixed")  # the code is the same for all


@pytest.fixture(params=[n if n in IN_FLOAT32 else pytest.param(n, marks=pytest.mark.float64) for n in FAMILIES])
def family(request):
    return FAMILIES[request.param]


@INPUTS
@ARCHITECTURES
def test_pass_through_starts_at_the_closed_form(architecture, standardise, family, dtype):
    x = draw(family, dtype)
    optimum = closed_form(family, x)
    assert float(optimum.eigenvalues[0]) > 1  # a collapsed optimum would prove little
    like = net(architecture, optimum.model.objective, standardise=standardise)
    vae = initializers.pass_through(jax.random.key(1), like, optimum)
    q, expected = vae.encoder(x), posterior(optimum, x)
    close = {"rtol": 0, "atol": ROUNDING[str(dtype)] * (1 if standardise is None else 10)}
    np.testing.assert_allclose(q.mean, expected.mean, **close)
    np.testing.assert_allclose(q.covariance, np.broadcast_to(expected.covariance, q.covariance.shape), **close)
    assert q.mean.dtype == q.covariance.dtype == dtype
    z = jnp.asarray(np.random.default_rng(1).normal(size=(9, LATENT)), dtype)
    np.testing.assert_allclose(vae.decoder(z), optimum.decoder(z), **close)

    # loadings and encoder weights 10 % off are far outside the tolerance
    wrong = changed(optimum, loadings=0.9 * optimum.loadings, weight=0.9 * optimum.encoder.weight)
    off = initializers.pass_through(jax.random.key(1), like, wrong)
    far = 1e3 * ROUNDING[str(dtype)]
    assert np.max(np.abs(np.asarray(off.decoder(z)) - np.asarray(optimum.decoder(z)))) > far
    assert np.max(np.abs(np.asarray(off.encoder(x).mean) - np.asarray(expected.mean))) > far


@pytest.mark.any_precision
def test_the_elbo_at_step_0_is_the_exact_elbo_of_the_optimum(family):
    """In float32; the nets of all architectures are the same maps, so the noise tells them apart, not the value."""
    x = draw(family, jnp.float32)
    optimum = closed_form(family, x)
    exact = jnp.mean(elbo_exact(optimum, x, posterior(optimum, x)))
    like = net("deep", optimum.model.objective, dtype=jnp.float32)

    def estimate(optimum):
        vae = initializers.pass_through(jax.random.key(1), like, optimum)
        key, q = jax.random.key(2), vae.encoder(x)
        value, error = elbo_monte_carlo(key, vae.decoder, x, q, vae.objective, num_samples=400)
        return np.mean(value), np.sqrt(np.sum(np.square(error))) / ROWS

    value, error = estimate(optimum)
    assert abs(value - exact) < 5 * error
    value, error = estimate(changed(optimum, intercept=optimum.intercept + 0.5))
    assert abs(value - exact) > 5 * error  # another intercept is told apart


@pytest.mark.any_precision
@ARCHITECTURES
def test_pass_through_takes_refined_optima(architecture):
    """What an ascent found starts a net where it ended, if it has an affine encoder, and the start rises with it."""
    family = FAMILIES["bernoulli"]
    x = draw(family, jnp.float32)
    closed = closed_form(family, x)
    elbos = []
    for optimum in (closed, tighten(closed, x), refine(closed, x, max_rounds=20)):
        vae = initializers.pass_through(jax.random.key(1), net(architecture, family, full_covariance=True), optimum)
        np.testing.assert_allclose(vae.encoder(x).mean, posterior(optimum, x).mean, atol=1e-4)
        elbos.append(float(elbo_exact(optimum, x, vae.encoder(x)).mean()))
    assert elbos[0] < elbos[1] < elbos[2]


@pytest.mark.any_precision
def test_trials_an_entry_start_at_the_closed_form_too():
    rng = np.random.default_rng(0)
    trials = rng.integers(1, 9, size=(ROWS, COLUMNS)).astype(float)
    eta = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS))
    rows = Rows(rng.binomial(trials.astype(int), 1 / (1 + np.exp(-2 * eta))).astype(float), trials=trials)
    optimum = fit(rows, Binomial(None), LATENT)
    assert float(optimum.eigenvalues[0]) > 1
    standardise = nets.standardisation(rows, Binomial(None))
    vae = net("deep", Binomial(None), standardise=standardise)
    vae = initializers.pass_through(jax.random.key(1), vae, optimum)
    np.testing.assert_allclose(vae.encoder(rows).mean, posterior(optimum, rows).mean, atol=1e-5)
    scrambled = Rows(rows.x, trials=np.maximum(trials[::-1], rows.x))
    assert np.abs(np.asarray(vae.encoder(scrambled).mean) - np.asarray(posterior(optimum, rows).mean)).max() > 0.1


@INPUTS
@ARCHITECTURES
@pytest.mark.parametrize("latent_dim", [2, *(pytest.param(k, marks=pytest.mark.float64) for k in (1, 3))])
def test_pass_through_of_a_full_covariance_net(architecture, latent_dim, standardise, dtype):
    x = draw(Bernoulli(), dtype)
    # An optimum whose units are mixed by a rotation is as good, and its covariance is not diagonal.
    optimum = closed_form(Bernoulli(), x, latent_dim)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(3).normal(size=(latent_dim, latent_dim)))[0], dtype)
    rotated = changed(
        optimum,
        loadings=optimum.loadings @ rotation,
        weight=rotation.T @ optimum.encoder.weight,
        bias=rotation.T @ optimum.encoder.bias,
        covariance=rotation.T @ optimum.encoder.covariance @ rotation,
    )
    like = net(architecture, Bernoulli(), latent_dim, full_covariance=True, standardise=standardise)
    vae = initializers.pass_through(jax.random.key(1), like, rotated)
    q, expected = vae.encoder(x), posterior(rotated, x)
    close = {"rtol": 0, "atol": ROUNDING[str(dtype)] * (1 if standardise is None else 10)}
    np.testing.assert_allclose(q.mean, expected.mean, **close)
    np.testing.assert_allclose(q.covariance, jnp.broadcast_to(expected.covariance, q.covariance.shape), **close)


@pytest.mark.any_precision
@ARCHITECTURES
def test_the_units_that_do_not_carry_are_he_and_learn(architecture, dtype):
    family = Bernoulli()
    x = draw(family, dtype)
    vae = initializers.pass_through(jax.random.key(1), net(architecture, family), closed_form(family, x))
    he, carrying = initializers.he(jax.random.key(1), vae), 0 if vae.skip else 2 * LATENT
    first = (vae.encoder_layers[0].kernel[...], he.encoder_layers[0].kernel[...])
    np.testing.assert_array_equal(first[0][:, carrying:], first[1][:, carrying:])

    structure, params, rest = nnx.split(vae, nnx.Param, ...)

    def loss(params, key):
        noise = jax.random.normal(key, (ROWS, LATENT), dtype)
        return training.negative_elbo(nnx.merge(structure, params, rest), x, noise)

    def hidden_units(gradient):
        hidden = [
            (layers[i], slice(carrying, None))
            for layers in (gradient.get("encoder_layers", {}), gradient.get("decoder_layers", {}))
            for i in range(len(layers))
        ]
        return [np.asarray(layer["kernel"][...])[:, units] for layer, units in hidden]

    gradient = jax.jit(jax.grad(loss))

    @jax.jit
    def descend(params, key):
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient(params, key))

    start = hidden_units(gradient(params, jax.random.key(0)))
    assert not any(g.any() for g in start)  # nothing leaves these units yet ...
    for step in range(100):
        params = descend(params, jax.random.fold_in(jax.random.key(3), step))
    for kernel in hidden_units(gradient(params, jax.random.key(0))):
        assert kernel.any()  # ... and after 100 steps they take part


@pytest.mark.any_precision
@ARCHITECTURES
def test_the_net_passed_in_is_not_changed(architecture, dtype):
    x = draw(Bernoulli(), dtype)
    vae, optimum = net(architecture, Bernoulli(), standardise=STANDARDISE), closed_form(Bernoulli(), x)
    if architecture == "skip":  # wide enough for MLE-B
        vae = net(architecture, Bernoulli(), encoder_widths=(8, 6), standardise=STANDARDISE)
    before = jax.tree.map(np.array, nnx.state(vae))
    for initialize in (initializers.he, initializers.mle_b, initializers.pass_through):
        made = initialize(jax.random.key(1), vae, optimum)
        assert jax.tree.structure(made) == jax.tree.structure(vae)
        assert made.family == vae.family
        again = initialize(jax.random.key(1), vae, optimum)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, nnx.state(made), nnx.state(again))))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, nnx.state(vae))))


class Branched(nets.VAE):
    """A net with a layer of its own beside the decoder, which begins at zero."""

    def __init__(self, key, **settings):
        super().__init__(key, **settings)
        zeros = nnx.initializers.zeros
        self.branch = nnx.Linear(LATENT, COLUMNS, kernel_init=zeros, param_dtype=self.dtype, rngs=nnx.Rngs(0))

    @property
    def decoder(self):
        return lambda z: nets.VAE.decoder.fget(self)(z) + self.branch(z)


@pytest.mark.any_precision
def test_a_subclass_is_refused_and_started_as_the_error_says(dtype):
    x = draw(Bernoulli(), dtype)
    optimum = closed_form(Bernoulli(), x)
    vae = Branched(jax.random.key(0), **net("canonical", Bernoulli()).settings())
    for initialize in (initializers.he, initializers.mle_b, initializers.pass_through):
        with pytest.raises(TypeError, match=r"vae: expected a net as .* makes it, got Branched, .*start nets.VAE"):
            initialize(jax.random.key(1), vae, optimum)
    plain = nets.VAE(jax.random.key(0), **vae.settings())
    nnx.update(vae, nnx.state(initializers.pass_through(jax.random.key(1), plain, optimum), nnx.Param))
    z = jnp.ones(LATENT, dtype)
    np.testing.assert_allclose(vae.decoder(z), optimum.decoder(z), atol=ROUNDING[str(dtype)])
    trained = training.train(jax.random.key(2), vae, x, steps=2, batch_size=ROWS).vae
    assert isinstance(trained, Branched)
    assert np.asarray(trained.branch.kernel[...]).any()
