"""An optimum whose rows brought an offset knows it, and refuses rows without."""

import jax
import numpy as np
import pytest
from compilations import counted
from tables import all_refused

from glmvae import (
    Rows,
    _files,
    affine_posterior,
    best_posterior,
    bracket,
    elbo_exact,
    elbo_profile,
    elbo_quadratic,
    explained_variance,
    fit,
    load,
    log_likelihood,
    moments,
    monitor,
    posterior,
    rate_distortion,
    refine,
    save,
    tighten,
    varimax,
)
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson

pytestmark = pytest.mark.any_precision

N, D, K = 40, 3, 1
RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (N, D)).astype("float32")
OFFSET = RNG.normal(size=N).astype("float32")
ROWS = Rows(X, offset=OFFSET)
NONE = Rows(X, offset=np.zeros(N, "float32"))
WANTED = '^offset: the rows of the optimum brought one, these bring none; zeros say "none"'


def batches():
    return [Rows(X[:25], offset=OFFSET[:25]), Rows(X[25:], offset=OFFSET[25:])]


def test_every_fit_remembers_an_offset():
    for family in (Bernoulli(), Gaussian()):
        for data in (ROWS, batches, moments(ROWS, family=family)):
            found = fit(data, family, K)
            assert found.brought == ("offset",), (family, data)
            assert jax.tree.map(lambda leaf: leaf, varimax(found)).brought == ("offset",)
            assert not any(isinstance(leaf, str) for leaf in jax.tree.leaves(found))
        for data in (X, lambda: [X], moments(X), moments(X, family=family)):
            assert fit(data, family, K).brought is None
    counts = fit(X, Poisson(), K)
    refined = refine(counts, ROWS, max_rounds=2)
    assert (counts.brought, refined.brought) == (None, ("offset",))
    # of trials alone nothing follows, and of moments with trials nobody knows
    trials = {"trials": np.full((N, 1), 2.0)}
    assert fit(Rows(X, **trials), Binomial(None), K).brought is None
    assert fit(Rows(X, offset=OFFSET, **trials), Binomial(None), K).brought == ("offset",)
    summed = moments(Rows(X, offset=OFFSET, **trials), family=Binomial(None))
    assert fit(summed, Binomial(None), K).brought is None


def test_rows_without_are_refused_and_zeros_are_none():
    optimum, key = fit(ROWS, Bernoulli(), K), jax.random.key(0)
    q = posterior(optimum, ROWS)
    calls = {
        "elbo_exact": lambda o, x: elbo_exact(o, x, q),
        "elbo_quadratic": lambda o, x: elbo_quadratic(o, x, q),
        "affine_posterior": affine_posterior,
        "posterior": posterior,
        "best_posterior": best_posterior,
        "bracket": lambda o, x: bracket(o, x, q),
        "log_likelihood": lambda o, x: log_likelihood(key, o, x, num_samples=2, posterior=q),
        "refine": lambda o, x: refine(o, x, max_rounds=1),
        "reference": monitor.reference,
        "explained_variance": explained_variance,
        "rate_distortion": lambda o, x: rate_distortion(x, Bernoulli(), K, [1.0], optima=[o]),
    }
    cases = [(lambda call=call: call(optimum, X), ValueError, WANTED) for call in calls.values()]
    cases += [
        (lambda: tighten(optimum, X), ValueError, WANTED),
        (lambda: tighten(optimum, moments(X)), ValueError, WANTED),
        (lambda: elbo_profile(optimum, moments(X)), ValueError, WANTED),
        (lambda: best_posterior(optimum, lambda: [X, X]), ValueError, WANTED),
        (lambda: best_posterior(refine(optimum, ROWS, max_rounds=1), X), ValueError, WANTED),
        (lambda: jax.jit(lambda x: elbo_exact(optimum, x, q))(X), ValueError, WANTED),
        (
            lambda: moments(lambda: [ROWS, X], family=Bernoulli()),
            ValueError,
            "x: .* bring an offset as batch 0 does, got none in batch 1",
        ),
        (
            lambda: moments(lambda: [X, ROWS], family=Bernoulli()),
            ValueError,
            "x: .* bring no offset as batch 0 does, got one in batch 1",
        ),
    ]
    all_refused(cases)
    for name in (
        "elbo_exact",
        "best_posterior",
        "explained_variance",
    ):  # zeros are an offset; the model alone knows none
        of_zeros, bare = calls[name](optimum, NONE), calls[name](optimum.model, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), of_zeros, bare)
    # the control: the offset is worth being asked for
    assert np.max(np.abs(elbo_exact(optimum, ROWS, q) - elbo_exact(optimum, NONE, q))) > 0.1


def test_to_know_it_compiles_nothing():
    optimum = fit(ROWS, Bernoulli(), K)
    q = posterior(optimum, ROWS)
    elbo_exact(optimum.model, ROWS, q)
    best_posterior(optimum.model, ROWS)
    with counted() as found:
        elbo_exact(optimum, ROWS, q)
        best_posterior(optimum, ROWS)
    assert found.number == 0
    with counted() as found:  # the control: rows that bring something else do
        elbo_exact(optimum.model, Rows(X, missing=X > 2, offset=OFFSET), q)
    assert found.number > 0


def test_a_file_keeps_it_and_one_from_before_is_read(tmp_path):
    path = tmp_path / "model.npz"
    for optimum in (fit(ROWS, Bernoulli(), K), refine(fit(X, Bernoulli(), K), ROWS, max_rounds=1)):
        save(path, optimum)
        assert load(path).brought == ("offset",)
        assert jax.tree.structure(load(path)) == jax.tree.structure(optimum)
        assert load(path, family=Bernoulli()).brought == ("offset",)
        header, arrays = _files.unpack(path.read_bytes())
        del header["tree"]["fields"]["brought"]
        path.write_bytes(_files.pack(header, arrays))
        found = load(path)
        assert found.brought is None
        np.testing.assert_array_equal(found.loadings, optimum.loadings)
        assert best_posterior(found, X).mean.shape == (N, K)
