"""Pass-through is the closed form at step 0, MLE-B is near it, and He is where the paper's benchmark starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import needs_frey
from flax import nnx

from glmvae import (
    Affine,
    AffineModel,
    Rows,
    datasets,
    elbo_exact,
    elbo_monte_carlo,
    fit,
    initializers,
    monitor,
    nets,
    posterior,
    refine,
    tighten,
    training,
)
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


def net(architecture, objective, latent_dim=LATENT, **options):
    make, widths = {
        "deep": (nets.deep, {"encoder_widths": (9, 8), "decoder_widths": (7, 9)}),
        "canonical": (nets.canonical, {"encoder_widths": (9, 6)}),
        "skip": (nets.deep, {"encoder_widths": (3, 2), "decoder_widths": (3,), "skip": True}),  # too narrow to carry
    }[architecture]
    return make(jax.random.key(0), COLUMNS, latent_dim, objective, **(widths | options))


# Far from 0 and from 1, so that an encoder that forgot them would be seen.
STANDARDISE = (np.linspace(-1.0, 3.0, COLUMNS), np.linspace(0.5, 4.0, COLUMNS))


def changed(optimum, loadings=None, intercept=None, **encoder):
    """The optimum with other parts."""
    decoder = Affine(
        optimum.loadings if loadings is None else loadings, optimum.intercept if intercept is None else intercept
    )
    model = AffineModel(decoder, optimum.model.objective)
    return optimum._replace(model=model, encoder=optimum.encoder._replace(**encoder))


def closed_form(family, x, latent_dim=LATENT):
    dispersion = None if family.fixed_dispersion is not None else 0.7
    if isinstance(family, Mixed):
        dispersion = np.where(np.isin(np.arange(COLUMNS), family.groups[-1]), 0.7, 1.0)
    return fit(x, family, latent_dim, dispersion=dispersion)


ARCHITECTURES = pytest.mark.parametrize("architecture", ["deep", "canonical", "skip"])
INPUTS = pytest.mark.parametrize("standardise", [None, STANDARDISE], ids=["plain", "standardised"])


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
        with pytest.raises(ValueError, match="optimum: its dispersion is 0, since 3 latent units reproduce the data"):
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
