"""What enters a net: standardised, less what an offset explains, of any size; and what its scale and its skip do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from net_cases import COLUMNS, KINDS, LATENT, ROUNDING, ROWS, builder

from glmvae import Objective, Rows, datasets, fit, initializers, moments, monitor, nets, training
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, NegativeBinomial, Poisson
from glmvae.nets import layers


@pytest.fixture(params=KINDS)
def make(request):
    return builder(request.param)


@pytest.fixture
def x(dtype):
    return jnp.asarray(np.random.default_rng(0).random((ROWS, COLUMNS)), dtype)


def test_standardised_inputs_are_a_first_layer(make, x, dtype):
    mean, sd = np.arange(6.0) / 10, np.arange(1.0, 7.0) / 10
    vae, plain = make(standardise=(mean, sd)), make()
    by_hand = plain.encode(jnp.asarray((np.asarray(x) - mean) / sd, dtype))[0]
    np.testing.assert_allclose(vae.encoder(x).mean, by_hand, rtol=0, atol=100 * ROUNDING[str(dtype)])
    assert not np.allclose(vae.encoder(x).mean, plain.encoder(x).mean)
    # it is fixed: no parameter
    count = [sum(leaf.size for leaf in jax.tree.leaves(nnx.state(v, nnx.Param))) for v in (vae, plain)]
    assert count[0] == count[1]


def test_standardisation_is_the_mean_and_the_spread(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1500, COLUMNS)) * np.arange(1, 7) + 100 * np.arange(6)).astype(dtype)
    x[:, 3] = 7.0  # a constant column
    spread = x.std(0).copy()
    spread[3] = 1.0
    tolerance = {"float32": 1e-5, "float64": 1e-12}[str(dtype)]
    for given in (x, jnp.asarray(x), Rows(x), moments(x), lambda: iter([x[:700], x[700:]])):
        mean, sd = nets.standardisation(given)
        np.testing.assert_allclose(mean, x.mean(0, dtype=float), rtol=tolerance)
        np.testing.assert_allclose(sd, spread, rtol=tolerance)
        assert mean.dtype == sd.dtype == dtype
    missing, weight = rng.random(x.shape) < 0.3, rng.integers(0, 3, len(x)).astype(float)
    mean, sd = nets.standardisation(Rows(np.where(missing, np.nan, x), missing=missing, weight=weight))
    w = np.where(missing, 0.0, weight[:, None])
    expected = (w * x).sum(0) / w.sum(0)
    np.testing.assert_allclose(mean, expected, rtol=10 * tolerance)
    var = (w * (x - expected) ** 2).sum(0) / w.sum(0)
    np.testing.assert_allclose(np.asarray(sd)[[0, 1, 2, 4, 5]], np.sqrt(var)[[0, 1, 2, 4, 5]], rtol=10 * tolerance)
    assert np.abs(expected - x.mean(0)).max() > 1e-3


@pytest.mark.any_precision
def test_rows_enter_the_encoder_as_they_enter_the_closed_form():
    """Less what an offset explains of a Gaussian, or trials of a binomial; a count with an exposure as it is."""
    rng = np.random.default_rng(0)
    x, offset = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    gaussian = nets.canonical(jax.random.key(0), 4, 2, Objective(Gaussian(), dispersion=1.0), encoder_widths=(4,))
    moved = gaussian.encoder(Rows(x + offset, offset=offset)).mean
    np.testing.assert_allclose(moved, gaussian.encoder(x).mean, rtol=1e-4)
    assert not np.allclose(gaussian.encoder(x + offset).mean, moved)

    trials = rng.integers(1, 9, size=(9, 4)).astype(float)
    rows = Rows(trials / 2, trials=trials)  # residuals of 0
    binomial = nets.canonical(jax.random.key(0), 4, 2, Binomial(None), encoder_widths=(4,))
    same = np.asarray(binomial.encoder(rows).mean)
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-6)
    np.testing.assert_allclose(nets.standardisation(rows, Binomial(None))[0], 0, atol=1e-6)
    with_offset = Rows(x, offset=offset)
    for brings in (rows, lambda: iter([rows]), with_offset, iter([with_offset]), lambda: iter([x, rows])):
        with pytest.raises(ValueError, match="family: expected that of the net, since rows bring an offset or trials"):
            nets.standardisation(brings)
    with pytest.raises(TypeError, match=r"family: expected a family such as Bernoulli\(\), got str"):
        nets.standardisation(x, "gaussian")
    assert float(np.abs(nets.standardisation(iter([with_offset]), Gaussian())[0] - (x - offset).mean(0)).max()) < 1e-6

    poisson = nets.canonical(jax.random.key(0), 4, 2, Poisson(), encoder_widths=(4,))
    counts = rng.poisson(3.0, size=(9, 4)).astype(float)
    np.testing.assert_allclose(poisson.encoder(Rows(counts, offset=offset)).mean, poisson.encoder(counts).mean)
    both = Mixed([(Poisson(), [0, 1]), (Gaussian(), [2, 3])])
    mixed = nets.canonical(jax.random.key(0), 4, 2, Objective(both, dispersion=1.0), encoder_widths=(4,))
    table = np.hstack([counts[:, :2], x[:, 2:] + offset[:, 2:]])
    plain = np.hstack([counts[:, :2], x[:, 2:]])
    np.testing.assert_allclose(mixed.encoder(Rows(table, offset=offset)).mean, mixed.encoder(plain).mean, rtol=1e-4)


@pytest.mark.any_precision
def test_a_missing_entry_enters_as_the_mean_of_its_column():
    x = np.random.default_rng(0).random((5, COLUMNS))
    missing = x > 0.6
    filled, holes = np.where(missing, 0.4, x), np.where(missing, np.nan, x)
    standardise = (np.full(6, 0.4), np.ones(6))
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), encoder_widths=(4,), standardise=standardise)
    np.testing.assert_allclose(vae.encoder(Rows(holes, missing=missing)).mean, vae.encoder(filled).mean, rtol=1e-5)
    plain = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), encoder_widths=(4,))
    zeros = np.where(missing, 0.0, x)
    np.testing.assert_allclose(plain.encoder(Rows(holes, missing=missing)).mean, plain.encoder(zeros).mean, rtol=1e-5)
    with pytest.raises(ValueError, match="covariates: the decoder has coefficients for 0"):
        vae.encoder(Rows(filled, covariates=np.ones((5, 1))))


@pytest.mark.parametrize("most", [layers.MOST, layers.MOST_STANDARDISED])
def test_a_log_variance_is_bounded_and_goes_on_rising(most, dtype):
    inside = jnp.linspace(layers.LEAST, most, 101, dtype=dtype)
    np.testing.assert_array_equal(layers.bounded(inside, most), inside)
    ends = jnp.asarray([-1e6, -1e3, 20, 1e3, 1e6], dtype)
    values = np.asarray(layers.bounded(ends, most))
    assert (np.diff(values) > 0).all()
    assert (np.exp(values / 2) > 1e-25).all()
    assert (np.exp(values / 2) < 4 * np.exp(most / 2)).all()
    slopes = np.asarray(jax.vmap(jax.grad(layers.bounded), (0, None))(ends, most))
    assert (slopes > 0).all()  # training can come back
    near = np.array([-71.0, -1.0, most, most + 0.5])
    np.testing.assert_allclose(layers.bounded(jnp.asarray(layers.raw_log_variance(near, most)), most), near, rtol=1e-5)


@pytest.mark.any_precision
@pytest.mark.parametrize("standardise", [None, (np.zeros(6), np.ones(6))], ids=["plain", "standardised"])
def test_no_scale_overflows(standardise):
    options = {"encoder_widths": (8,), "standardise": standardise}
    vae = nets.canonical(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), **options)
    vae.scale_layer.bias[...] = jnp.asarray([3000.0, -3000.0], vae.dtype)
    mean, scale = vae.encode(jnp.ones((2, COLUMNS), vae.dtype))
    assert np.isfinite(nets.kl_of_scale(mean, scale)).all()
    assert not np.isfinite(jnp.exp(0.5 * jnp.asarray(3000.0))) or vae.dtype == "float64"  # as it would be


def skips(**changes):
    widths = {"encoder_widths": (8, 7), "decoder_widths": (7,)} | changes
    return nets.deep(jax.random.key(0), COLUMNS, LATENT, Bernoulli(), **widths, skip=True)


def test_an_affine_skip_is_added_on_both_sides(x, dtype):
    vae, z = skips(), jnp.ones((3, LATENT), dtype)
    before = np.asarray(vae.encoder(x).mean), np.asarray(vae.decoder(z))
    affine = [np.asarray(v @ s.kernel[...]) for v, s in ((x, vae.encoder_skip), (z, vae.decoder_skip))]
    for layer in (vae.encoder_skip, vae.decoder_skip):
        layer.kernel[...] = 0 * layer.kernel[...]
    after = np.asarray(vae.encoder(x).mean), np.asarray(vae.decoder(z))
    for one, other, part in zip(before, after, affine, strict=True):
        assert np.abs(part).max() > 0.1
        np.testing.assert_allclose(one - other, part, atol=10 * ROUNDING[str(dtype)])
    bare = skips(encoder_widths=(), decoder_widths=())  # affine already
    assert bare.encoder_skip is None
    assert bare.decoder_skip is None


# Counts that people have ----------------------------------------------------------------------------------


def counts(rows=300, columns=40):
    """Like single cells: means from 0.1 to 1000, library sizes that differ fivefold, overdispersed."""
    rng = np.random.default_rng(0)
    mean = np.exp(rng.uniform(np.log(0.1), np.log(1000), columns))
    groups = np.exp(0.7 * rng.normal(size=(3, columns)))[rng.integers(0, 3, rows)]
    rate = mean * groups * np.exp(0.5 * rng.normal(size=(rows, 1)))
    return rng.poisson(rng.gamma(2.0, rate / 2.0)).astype(float)


ADAM = optax.adam(1e-3)  # one, so that the starts share the compiled training
STARTS = [initializers.he, initializers.mle_b, initializers.pass_through]


def _digits():
    return datasets.digits().train[:400], Binomial(16)


@pytest.mark.any_precision
@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__)
@pytest.mark.parametrize("data", ["digits", "poisson", "negative binomial"])
def test_counts_train_from_every_start(data, start):
    """In float32, as people do. Without standardising a He net starts far lower, or nowhere."""
    x, family = _digits() if data == "digits" else (counts(), Poisson() if data == "poisson" else NegativeBinomial(2.0))
    x = x.astype("float32")
    optimum = fit(x, family, 3, expand_at="null")
    widths = {"encoder_widths": (80,), "decoder_widths": (32,)}
    standardise = nets.standardisation(x)
    vae = nets.deep(jax.random.key(0), x.shape[1], 3, family, **widths, standardise=standardise, dtype="float32")
    vae = start(jax.random.key(1), vae, optimum)
    options = {"batch_size": 100, "chunk_size": 300, "evaluate_every": 300, "optimizer": ADAM}
    elbo = training.train(jax.random.key(2), vae, x, steps=300, **options).evaluations.train_elbo
    assert np.isfinite(elbo).all()
    assert elbo[1] > elbo[0]
    if start is initializers.he:
        plain = nets.deep(jax.random.key(0), x.shape[1], 3, family, **widths, dtype="float32")
        begins = monitor.evaluate(jax.random.key(2), start(jax.random.key(1), plain), x).train_elbo
        assert not begins > 3 * elbo[0]
