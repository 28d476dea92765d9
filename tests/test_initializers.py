"""Pass-through is the closed form at step 0, MLE-B is near it, and He is where the paper's benchmark starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import needs_frey
from flax import nnx

from glmvae import datasets, elbo_exact, elbo_monte_carlo, fit, initializers, monitor, nets, posterior
from glmvae.families import (
    Bernoulli,
    Binomial,
    CustomFamily,
    Exponential,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
    Support,
)

COLUMNS, LATENT, ROWS = 6, 2, 60


def _gamma_normalizer(theta):
    return -jnp.log(-theta)


def _negative_exp(eta):
    return -jnp.exp(-eta)


FAMILIES = {
    "gaussian": Gaussian(),
    "bernoulli": Bernoulli(),
    "bernoulli, rho = 2": Bernoulli(activation_scale=2.0),
    "binomial": Binomial(5),
    "binomial, trials a column": Binomial(np.arange(1.0, 7.0)),
    "poisson": Poisson(),
    "gamma": Gamma(),
    "exponential": Exponential(),
    "negative binomial": NegativeBinomial(3.0),
    "mixed": Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1, 2]), (Gaussian(), [4, 5])]),
    "custom, not canonical": CustomFamily(
        _gamma_normalizer, activation=_negative_exp, limits=Support(0.0, open_lower=True)
    ),
}
# The same map through other matrix products.
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


def draw(family, dtype):
    """Data of two strong latent units."""
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS))
    return jnp.asarray(_draw(family, rng, eta), dtype)


def _draw(family, rng, eta):
    if isinstance(family, Mixed):
        x = np.zeros_like(eta)
        for member, group in zip(family.families, family.groups, strict=True):
            x[:, list(group)] = _draw(member, rng, eta[:, list(group)])
        return x
    if isinstance(family, CustomFamily | Gamma):
        return rng.exponential(np.exp((0.3 if isinstance(family, CustomFamily) else 1.0) * eta)) + 0.05
    if isinstance(family, Binomial):
        return rng.binomial(np.asarray(family.trials, int), 1 / (1 + np.exp(-2 * eta)))
    if isinstance(family, Poisson | NegativeBinomial):
        return rng.poisson(np.exp((0.5 if isinstance(family, Poisson) else 1.5) * eta))
    return eta


IN_FLOAT32 = ("bernoulli", "mixed")  # the code is the same for all


@pytest.fixture(params=[n if n in IN_FLOAT32 else pytest.param(n, marks=pytest.mark.float64) for n in FAMILIES])
def family(request):
    return FAMILIES[request.param]


def net(architecture, family, full_covariance=False, latent_dim=LATENT, dtype=None):
    make, widths = {
        "deep": (nets.deep, {"encoder_widths": (9, 8), "decoder_widths": (7, 9)}),
        "canonical": (nets.canonical, {"encoder_widths": (9, 6)}),
    }[architecture]
    key = jax.random.key(0)
    return make(key, COLUMNS, latent_dim, family, **widths, full_covariance=full_covariance, dtype=dtype)


def closed_form(family, x, latent_dim=LATENT):
    dispersion = None if family.fixed_dispersion is not None else 0.7
    if isinstance(family, Mixed):
        dispersion = np.where(np.isin(np.arange(COLUMNS), family.groups[-1]), 0.7, 1.0)
    return fit(x, family, latent_dim, dispersion=dispersion)


ARCHITECTURES = pytest.mark.parametrize("architecture", ["deep", "canonical"])


@ARCHITECTURES
def test_pass_through_starts_at_the_closed_form(architecture, family, dtype):
    x = draw(family, dtype)
    optimum = closed_form(family, x)
    assert float(optimum.eigenvalues[0]) > 1  # a collapsed optimum would prove little
    vae = initializers.pass_through(jax.random.key(1), net(architecture, family), optimum)
    q, expected = vae.encoder(x), posterior(optimum, x)
    close = {"rtol": 0, "atol": ROUNDING[str(dtype)]}
    np.testing.assert_allclose(q.mean, expected.mean, **close)
    np.testing.assert_allclose(q.covariance, np.broadcast_to(expected.covariance, q.covariance.shape), **close)
    assert q.mean.dtype == q.covariance.dtype == dtype
    z = jnp.asarray(np.random.default_rng(1).normal(size=(9, LATENT)), dtype)
    np.testing.assert_allclose(vae.decoder(z), optimum.decoder(z), **close)

    # loadings 10 % off are far outside the tolerance
    off = initializers.pass_through(jax.random.key(1), vae, optimum._replace(loadings=0.9 * optimum.loadings))
    assert np.max(np.abs(np.asarray(off.decoder(z)) - np.asarray(optimum.decoder(z)))) > 1e3 * ROUNDING[str(dtype)]


@functools.partial(jax.jit, static_argnums=0)
def step_0(structure, parts, x, beta, dispersion):
    vae = nnx.merge(structure, parts)
    options = {"beta": beta, "dispersion": dispersion, "num_samples": 400}
    return elbo_monte_carlo(jax.random.key(2), vae.decoder, x, vae.encoder(x), vae.family, **options)


@pytest.mark.any_precision
def test_the_elbo_at_step_0_is_the_exact_elbo_of_the_optimum(family):
    """In float32; the nets of both architectures are the same maps, so the noise tells them apart, not the value."""
    x = draw(family, jnp.float32)
    optimum = closed_form(family, x)
    beta_and_phi = {"beta": optimum.beta, "dispersion": optimum.dispersion}
    exact = jnp.mean(elbo_exact(optimum.loadings, optimum.intercept, x, posterior(optimum, x), family, **beta_and_phi))

    def estimate(vae):
        value, error = step_0(*nnx.split(vae), x, **beta_and_phi)
        return np.mean(value), np.sqrt(np.sum(np.square(error))) / ROWS

    for architecture in ("deep", "canonical"):
        vae = net(architecture, family, dtype=jnp.float32)
        value, error = estimate(initializers.pass_through(jax.random.key(1), vae, optimum))
        assert abs(value - exact) < 5 * error
        shifted = optimum._replace(intercept=optimum.intercept + 0.5)
        value, error = estimate(initializers.pass_through(jax.random.key(1), vae, shifted))
        assert abs(value - exact) > 5 * error  # another intercept is told apart


@ARCHITECTURES
@pytest.mark.parametrize("latent_dim", [2, *(pytest.param(k, marks=pytest.mark.float64) for k in (1, 3))])
def test_pass_through_of_a_full_covariance_net(architecture, latent_dim, dtype):
    x = draw(Bernoulli(), dtype)
    # An optimum whose units are mixed by a rotation is as good, and its covariance is not diagonal.
    optimum = closed_form(Bernoulli(), x, latent_dim)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(3).normal(size=(latent_dim, latent_dim)))[0], dtype)
    rotated = optimum._replace(
        loadings=optimum.loadings @ rotation,
        encoder_weight=rotation.T @ optimum.encoder_weight,
        encoder_bias=rotation.T @ optimum.encoder_bias,
        covariance=rotation.T @ optimum.covariance @ rotation,
    )
    vae = initializers.pass_through(jax.random.key(1), net(architecture, Bernoulli(), True, latent_dim), rotated)
    q, expected = vae.encoder(x), posterior(rotated, x)
    close = {"rtol": 0, "atol": ROUNDING[str(dtype)]}
    np.testing.assert_allclose(q.mean, expected.mean, **close)
    np.testing.assert_allclose(q.covariance, jnp.broadcast_to(expected.covariance, q.covariance.shape), **close)


@pytest.mark.any_precision
@ARCHITECTURES
def test_the_units_that_do_not_carry_are_he_and_learn(architecture, dtype):
    family = Bernoulli()
    x = draw(family, dtype)
    vae = initializers.pass_through(jax.random.key(1), net(architecture, family), closed_form(family, x))
    he = initializers.he(jax.random.key(1), vae)
    first = (vae.encoder_layers[0].kernel[...], he.encoder_layers[0].kernel[...])
    np.testing.assert_array_equal(first[0][:, 2 * LATENT :], first[1][:, 2 * LATENT :])

    structure, params = nnx.split(vae)

    def loss(params, key):
        net = nnx.merge(structure, params)
        mean, scale = net.encode(x)
        z = nets.reparameterise(mean, scale, jax.random.normal(key, mean.shape, dtype))
        return -jnp.mean(jnp.sum(family.log_prob(x, net.decoder(z)), -1) - nets.kl_of_scale(mean, scale))

    def hidden_units(gradient):
        hidden = [
            (layers[i], slice(2 * LATENT, None))
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
    vae, optimum = net(architecture, Bernoulli()), closed_form(Bernoulli(), x)
    before = jax.tree.map(np.array, nnx.state(vae))
    for initialize in (initializers.he, initializers.mle_b, initializers.pass_through):
        made = initialize(jax.random.key(1), vae, optimum)
        assert made.settings() == vae.settings()
        again = initialize(jax.random.key(1), vae, optimum)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, nnx.state(made), nnx.state(again))))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, nnx.state(vae))))


@ARCHITECTURES
def test_mle_b_sets_three_layers_and_leaves_the_rest_to_he(architecture, dtype):
    family = Bernoulli()
    x = draw(family, dtype)
    optimum = closed_form(family, x)
    vae, he = net(architecture, family), initializers.he(jax.random.key(1), net(architecture, family))
    made = initializers.mle_b(jax.random.key(1), vae, optimum)
    weight = np.zeros_like(made.mean_layer.kernel[...])
    # B.3 written out: W_e = Sigma W' / (phi beta)
    weight[:COLUMNS] = (optimum.covariance @ optimum.loadings.T / (optimum.dispersion * optimum.beta)).T
    close = {"rtol": 0, "atol": ROUNDING[str(dtype)]}
    np.testing.assert_allclose(made.mean_layer.kernel[...], weight, **close)
    np.testing.assert_allclose(made.mean_layer.bias[...], -np.asarray(x).mean(0) @ weight[:COLUMNS], **close)
    np.testing.assert_allclose(made.scale_layer.bias[...], np.log(np.diag(optimum.covariance)), **close)
    np.testing.assert_array_equal(made.scale_layer.kernel[...], he.scale_layer.kernel[...])
    np.testing.assert_allclose(made.output_layer.kernel[...][:LATENT], optimum.loadings.T, **close)
    assert not np.asarray(made.output_layer.kernel[...][LATENT:]).any()
    np.testing.assert_array_equal(made.encoder_layers[0].kernel[...], he.encoder_layers[0].kernel[...])


@pytest.mark.any_precision
@ARCHITECTURES
def test_an_affine_encoder_is_the_optimal_one_under_every_informed_start(architecture, dtype):
    x = draw(Gaussian(), dtype)
    optimum = closed_form(Gaussian(), x)
    affine = nets.deep(jax.random.key(0), COLUMNS, LATENT, Gaussian(), encoder_widths=(), decoder_widths=())
    made = initializers.pass_through(jax.random.key(1), affine, optimum)
    np.testing.assert_allclose(made.encoder(x).mean, posterior(optimum, x).mean, atol=ROUNDING[str(dtype)])
    made = initializers.mle_b(jax.random.key(1), affine, optimum)
    np.testing.assert_allclose(made.encoder(x).mean, posterior(optimum, x).mean, atol=ROUNDING[str(dtype)])


@pytest.mark.any_precision
def test_errors_name_the_width_and_the_optimum(dtype):
    x = draw(Gaussian(), dtype)
    optimum, key = closed_form(Gaussian(), x), jax.random.key(0)

    def deep(encoder, decoder, columns=COLUMNS, latent_dim=LATENT):
        return nets.deep(key, columns, latent_dim, Gaussian(), encoder_widths=encoder, decoder_widths=decoder)

    with pytest.raises(ValueError, match=r"encoder_widths: expected every hidden width to be at least 4.* got 3"):
        initializers.pass_through(key, deep((8, 3), (8,)), optimum)
    with pytest.raises(ValueError, match=r"decoder_widths: expected every hidden width to be at least 4.* got 3"):
        initializers.pass_through(key, deep((8,), (3,)), optimum)
    initializers.pass_through(key, deep((4,), (4,)), optimum)
    with pytest.raises(ValueError, match=r"encoder_widths: expected the last hidden width to be at least 6.* got 5"):
        initializers.mle_b(key, deep((8, 5), (8,)), optimum)
    with pytest.raises(ValueError, match=r"decoder_widths: expected the last hidden width to be at least 2.* got 1"):
        initializers.mle_b(key, deep((8,), (1,)), optimum)
    infinite = optimum._replace(covariance=optimum.covariance.at[1, 1].set(jnp.inf))
    for initialize in (initializers.mle_b, initializers.pass_through):
        with pytest.raises(ValueError, match=r"optimum: expected loadings of shape \(6, 3\).* got \(6, 2\)"):
            initialize(key, deep((8,), (8,), latent_dim=3), optimum)
        with pytest.raises(ValueError, match=r"optimum: expected loadings of shape \(7, 2\).* got \(6, 2\)"):
            initialize(key, deep((8,), (8,), columns=7), optimum)
        with pytest.raises(ValueError, match=r"optimum.covariance: expected finite numbers, got inf at \[1, 1\]"):
            initialize(key, deep((8,), (8,)), infinite)
        with pytest.raises(TypeError, match=r"optimum: expected an AffineOptimum .* got dict"):
            initialize(key, deep((8,), (8,)), {})


@pytest.mark.any_precision
@needs_frey
@ARCHITECTURES
def test_the_three_starts_on_frey_faces(architecture):
    """The paper's comparison at its full size, in float32: kappa = 2, beta = 1, Bernoulli."""
    x = jnp.asarray(datasets.frey().train)
    optimum, make = fit(x, Bernoulli(), 2), {"deep": nets.deep, "canonical": nets.canonical}[architecture]
    vae = make(jax.random.key(0), 560, 2, Bernoulli(), dtype=jnp.float32)

    def start(initialize, optimum=optimum):
        made = initialize(jax.random.key(0), vae, optimum)
        at = monitor.evaluate(jax.random.key(1), made, x, num_samples=4)
        assert float(at.train_error) < 5
        return float(at.train_elbo), float(at.train_error)

    through, error = start(initializers.pass_through)
    # -349.2356 in float64; 2e-6 of it is float32 rounding over 560 columns
    assert abs(through + 349.2356) < 1e-3 + 5 * error
    # Random features: over keys MLE-B lies between -353 and -374, He between -490 and -710.
    near, far = start(initializers.mle_b)[0], start(initializers.he)[0]
    assert -385 < near < through - 2
    assert -800 < far < -450
    # with the sign of b_e as the paper prints it
    assert start(initializers.mle_b, optimum._replace(encoder_bias=-optimum.encoder_bias))[0] < near - 20
