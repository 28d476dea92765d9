"""MLE-B is near the closed form, errors name what does not fit, and Frey faces start where the paper has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import needs_frey
from start_cases import (
    ARCHITECTURES,
    COLUMNS,
    INPUTS,
    LATENT,
    ROUNDING,
    ROWS,
    changed,
    closed_form,
    draw,
    net,
)

from glmvae import (
    datasets,
    fit,
    initializers,
    monitor,
    nets,
    posterior,
)
from glmvae.families import (
    Bernoulli,
    Gaussian,
)


@INPUTS
@pytest.mark.parametrize("architecture", ["deep", "canonical"])
def test_mle_b_sets_three_layers_and_leaves_the_rest_to_he(architecture, standardise, dtype):
    family = Bernoulli()
    x = draw(family, dtype)
    optimum = closed_form(family, x)
    vae = net(architecture, family, standardise=standardise)
    he = initializers.he(jax.random.key(1), vae)
    made = initializers.mle_b(jax.random.key(1), vae, optimum)
    weight = np.zeros_like(made.mean_layer.kernel[...])
    # B.3 written out: W_e = Sigma W' / (phi beta), of inputs u = (x - mean) / sd
    mean, sd = (np.zeros(COLUMNS), np.ones(COLUMNS)) if standardise is None else standardise
    covariance = optimum.encoder.covariance
    by_hand = np.asarray(covariance @ optimum.loadings.T / (optimum.dispersion * optimum.beta)).T
    weight[:COLUMNS] = sd[:, None] * by_hand
    close = {"rtol": 0, "atol": 10 * ROUNDING[str(dtype)]}
    np.testing.assert_allclose(made.mean_layer.kernel[...], weight, **close)
    np.testing.assert_allclose(made.mean_layer.bias[...], (mean - np.asarray(x).mean(0)) @ by_hand, **close)
    np.testing.assert_allclose(made.scale_layer.bias[...], np.log(np.diag(covariance)), **close)
    np.testing.assert_array_equal(made.scale_layer.kernel[...], he.scale_layer.kernel[...])
    np.testing.assert_allclose(made.output_layer.kernel[...][:LATENT], optimum.loadings.T, **close)
    assert not np.asarray(made.output_layer.kernel[...][LATENT:]).any()
    np.testing.assert_array_equal(made.encoder_layers[0].kernel[...], he.encoder_layers[0].kernel[...])


@pytest.mark.any_precision
def test_mle_b_of_a_net_with_a_skip_is_that_of_the_net_without(dtype):
    family = Bernoulli()
    x = draw(family, dtype)
    optimum, widths = closed_form(family, x), {"encoder_widths": (9, 6), "decoder_widths": (7,)}
    vae = initializers.mle_b(jax.random.key(1), net("skip", family, **widths), optimum)
    for layer in (vae.encoder_skip, vae.decoder_skip):
        assert not np.asarray(layer.kernel[...]).any()
    np.testing.assert_allclose(vae.output_layer.bias[...], optimum.intercept, rtol=1e-6)


@pytest.mark.any_precision
@INPUTS
@ARCHITECTURES
def test_an_affine_encoder_is_the_optimal_one_under_every_informed_start(architecture, standardise, dtype):
    x = draw(Gaussian(), dtype)
    optimum = closed_form(Gaussian(), x)
    options = {"encoder_widths": (), "decoder_widths": (), "standardise": standardise, "skip": architecture == "skip"}
    affine = nets.deep(jax.random.key(0), COLUMNS, LATENT, optimum.model.objective, **options)
    for initialize in (initializers.pass_through, initializers.mle_b):
        made = initialize(jax.random.key(1), affine, optimum)
        np.testing.assert_allclose(made.encoder(x).mean, posterior(optimum, x).mean, atol=10 * ROUNDING[str(dtype)])


@pytest.mark.any_precision
def test_a_large_mean_is_taken_away_and_given_back_in_double_precision():
    """Counts near 1000 with a spread of 1, in float32: what the bias gives back is a thousand times what it leaves."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS))).astype("float32")
    optimum = fit(x, Gaussian(), LATENT, dispersion=0.5)
    standardise = nets.standardisation(x)
    like = net("deep", optimum.model.objective, standardise=standardise, dtype="float32")
    vae = initializers.pass_through(jax.random.key(1), like, optimum)
    truth = posterior(fit(x.astype(float), Gaussian(), LATENT, dispersion=0.5), x.astype(float)).mean
    signs = np.sign(np.sum(np.asarray(truth) * np.asarray(vae.encoder(x).mean), axis=0))
    # float32 of W x + b itself is good to 1000 eps |W|
    np.testing.assert_allclose(vae.encoder(x).mean * signs, truth, atol=5e-3)


@pytest.mark.any_precision
def test_errors_name_the_width_and_the_optimum(dtype):
    x = draw(Gaussian(), dtype)
    optimum, key = closed_form(Gaussian(), x), jax.random.key(0)
    objective = optimum.model.objective

    def deep(encoder, decoder, columns=COLUMNS, latent_dim=LATENT, objective=objective):
        return nets.deep(key, columns, latent_dim, objective, encoder_widths=encoder, decoder_widths=decoder)

    with pytest.raises(ValueError, match=r"encoder_widths: expected every hidden width to be at least 4.* got 3"):
        initializers.pass_through(key, deep((8, 3), (8,)), optimum)
    with pytest.raises(ValueError, match=r"decoder_widths: expected every hidden width to be at least 4.* got 3"):
        initializers.pass_through(key, deep((8,), (3,)), optimum)
    initializers.pass_through(key, deep((4,), (4,)), optimum)
    with pytest.raises(ValueError, match=r"encoder_widths: expected the last hidden width to be at least 6.* got 5"):
        initializers.mle_b(key, deep((8, 5), (8,)), optimum)
    with pytest.raises(ValueError, match=r"decoder_widths: expected the last hidden width to be at least 2.* got 1"):
        initializers.mle_b(key, deep((8,), (1,)), optimum)
    infinite = changed(optimum, covariance=optimum.encoder.covariance.at[1, 1].set(jnp.inf))
    for initialize in (initializers.mle_b, initializers.pass_through):
        with pytest.raises(ValueError, match=r"optimum: expected loadings of shape \(6, 3\).* got \(6, 2\)"):
            initialize(key, deep((8,), (8,), latent_dim=3), optimum)
        with pytest.raises(ValueError, match=r"optimum: expected loadings of shape \(7, 2\).* got \(6, 2\)"):
            initialize(key, deep((8,), (8,), columns=7), optimum)
        with pytest.raises(ValueError, match=r"optimum.covariance: expected finite numbers, got inf at \[1, 1\]"):
            initialize(key, deep((8,), (8,)), infinite)
        with pytest.raises(TypeError, match=r"optimum: expected an AffineModel or a result .* got dict"):
            initialize(key, deep((8,), (8,)), {})
        with pytest.raises(TypeError, match=r"optimum: expected one with an affine encoder, got AffineModel"):
            initialize(key, deep((8,), (8,)), optimum.model)
        with pytest.raises(TypeError, match="optimum: expected an optimum such as fit returns, got a net"):
            initialize(key, deep((8,), (8,)), deep((8,), ()))
        with pytest.raises(ValueError, match=r"optimum: .* the net's family, Bernoulli\(\), got Gaussian\(\)"):
            initialize(key, deep((8,), (8,), objective=Bernoulli()), optimum)
        with pytest.raises(TypeError, match=r"vae: expected a net from glmvae.nets, got AffineOptimum"):
            initialize(key, optimum, deep((8,), (8,)))
        with pytest.raises(TypeError, match=r"key: expected .*jax.random.key"):
            initialize(3, deep((8,), (8,)), optimum)
    with pytest.raises(TypeError, match=r"vae: expected a net from glmvae.nets, got NoneType"):
        initializers.he(key, None)


@pytest.mark.any_precision
def test_an_optimum_without_density_starts_nothing():
    """As many units as directions: the dispersion is 0, the scale of the encoder -infinity."""
    x = np.arange(ROWS)[:, None] * np.ones(COLUMNS)
    perfect = fit(x, Gaussian(), 3)
    assert float(perfect.dispersion) == 0
    vae = net("deep", closed_form(Gaussian(), draw(Gaussian(), float)).model.objective, 3)
    for initialize in (initializers.mle_b, initializers.pass_through):
        with pytest.raises(
            ValueError, match="optimum: its dispersion is 0, since 3 latent units can reproduce the data"
        ):
            initialize(jax.random.key(0), vae, perfect)
    with pytest.raises(ValueError, match="optimum: its dispersion is 0"):
        monitor.reference(perfect, x)


@pytest.mark.any_precision
@needs_frey
@pytest.mark.parametrize("architecture", ["deep", "canonical"])
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
    assert start(initializers.mle_b, changed(optimum, bias=-optimum.encoder.bias))[0] < near - 20
