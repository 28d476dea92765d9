"""What rows lack, and what they bring: NaN as a missing entry, an offset that is wanted again."""

import jax
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from tables import all_refused

from glmvae import Rows, best_posterior, elbo_exact, fit, refine
from glmvae.estimator import AffineVAE
from glmvae.estimator.parts import filled
from glmvae.families import Poisson

pytestmark = pytest.mark.any_precision

N, D, K = 120, 5, 2
RNG = np.random.default_rng(0)
ETA = RNG.normal(size=(N, K)) @ RNG.normal(size=(K, D))
COUNTS = RNG.poisson(np.exp(0.8 * ETA)).astype(float)
GONE = RNG.uniform(size=(N, D)) < 0.2
GONE[3] = True
HOLES = np.where(GONE, np.nan, COUNTS)
OFFSET = RNG.normal(size=N)


def exact(**parameters):
    return AffineVAE(K, family="poisson", method="exact", tolerance=1e-3, **parameters)


def test_nan_is_a_missing_entry():
    with jax.enable_x64(True):
        rows, means = Rows(COUNTS, missing=GONE), np.where(GONE, np.nanmean(HOLES, axis=0), COUNTS)
        best = refine(fit(means, Poisson(), K), rows, tolerance=1e-3)
        vae = exact().fit(pd.DataFrame(HOLES, columns=[*"abcde"]))
        np.testing.assert_allclose(vae.components_, best.loadings.T, rtol=1e-9)
        q = best_posterior(best, rows)
        z = vae.transform(pd.DataFrame(HOLES, columns=[*"abcde"]))
        np.testing.assert_allclose(z, q.mean, rtol=1e-8, atol=1e-9)
        scores = exact().fit(HOLES).score_samples(HOLES)
        np.testing.assert_allclose(scores, elbo_exact(best, rows, q), rtol=1e-8, atol=1e-9)
        assert scores[3] == 0
        assert not z[3].any()  # nothing is known of that row
        guess = vae.inverse_transform(z)
        assert np.abs(guess - COUNTS)[GONE].mean() < 0.9 * np.abs(means - COUNTS)[GONE].mean()
        masked = exact().fit(np.ma.masked_array(COUNTS, GONE))
        np.testing.assert_array_equal(masked.components_, vae.components_)
        # the control: what is filled in before is taken for data
        assert np.max(np.abs(exact().fit(means).components_ - vae.components_)) > 1e-2


def test_a_closed_form_starts_from_what_was_observed():
    trials = RNG.integers(1, 4, (N, D))
    x, weight = np.minimum(COUNTS, trials), np.arange(N) % 3
    seen = np.where(GONE, 0.0, weight[:, None])
    shares = np.sum(seen * x, axis=0) / np.sum(seen * trials, axis=0)
    found = filled(Rows(np.where(GONE, np.nan, x), trials=trials, missing=GONE, weight=weight, offset=OFFSET))
    np.testing.assert_allclose(found.x, np.where(GONE, trials * shares, x))
    assert found.missing is None
    assert found.offset is None
    trials[0] = 0  # of no trials nothing is known either
    share = AffineVAE(1, family="binomial", method="exact", tolerance=1e-2).fit(x, trials=trials)
    assert not share.transform(x, trials=trials)[0].any()
    message = (
        r'^trials: expected numbers above 0, got 0 at \[0, 0\], a missing entry; method="exact" takes missing entries'
    )
    closed = AffineVAE(1, family="binomial").fit(x, trials=np.where(trials == 0, 3, trials))
    all_refused(
        [
            (lambda: closed.transform(x, trials=trials), ValueError, message),
            (lambda: closed.fit(x, trials=trials), ValueError, message),
            (lambda: closed.partial_fit(x, trials=trials), ValueError, message),
        ]
    )


def test_names_beside_a_table_are_held_to_its_own_and_to_those_of_the_fit():
    x, known = pd.DataFrame(ETA, columns=[*"abcde"]), pd.DataFrame(ETA[:, :2], columns=["age", "treat"])
    vae = AffineVAE(1).fit(x, covariates=known)
    assert vae.covariate_names_in_ == ("age", "treat")
    z, turned, wild = vae.transform(x, covariates=known), known[["treat", "age"]], known.mask(known == ETA[7, 1])
    order = '^covariates: expected those of the fit, "age" at 0, got "treat"$'
    moved, other = ': expected the columns of X, "a" at 0, got "b"$', x[[*"bacde"]]
    all_refused(
        [
            (lambda: vae.score(x, covariates=turned), ValueError, order),
            (lambda: vae.transform(x, covariates=turned), ValueError, order),
            (lambda: vae.inverse_transform(z, covariates=turned), ValueError, order),
            (lambda: vae.sample(N, covariates=turned), ValueError, order),
            (lambda: vae.partial_fit(x, covariates=turned), ValueError, order),
            (lambda: AffineVAE(1).fit(x, offset=other), ValueError, "^offset" + moved),
            (lambda: AffineVAE(1, family="binomial").fit(x.abs(), trials=other.abs()), ValueError, "^trials" + moved),
            (lambda: AffineVAE(1).fit(x, covariates=wild), ValueError, r'^covariates: .*\[7, 1\] \(column "treat"\)$'),
        ]
    )
    np.testing.assert_array_equal(vae.transform(x, covariates=known.to_numpy()), z)
    assert AffineVAE(1).fit(x, covariates=known.to_numpy()).covariate_names_in_ is None


def test_only_the_exact_method_says_that_it_takes_nan():
    allowed = {method: get_tags(AffineVAE(method=method)).input_tags.allow_nan for method in ("exact", "tightened")}
    assert allowed == {"exact": True, "tightened": False}
    gaussian = AffineVAE(1, method="exact", tolerance=1e-2).fit(np.where(GONE, np.nan, ETA))
    closed = AffineVAE(1).fit(ETA)
    message = r'^X: .*NaN at \[\d, \d\]; method="exact" takes missing entries'
    all_refused(
        [
            (lambda: AffineVAE().fit(HOLES), ValueError, message),
            (lambda: AffineVAE(family="poisson").partial_fit(np.ma.masked_array(COUNTS, GONE)), ValueError, message),
            (lambda: AffineVAE(method="tightened").fit(HOLES), ValueError, message),
            (lambda: closed.transform(HOLES), ValueError, message),
            (lambda: closed.score(HOLES), ValueError, message),
            (lambda: gaussian.transform(np.where(GONE, np.inf, ETA)), ValueError, "infinity"),
        ]
    )
    assert np.isfinite(gaussian.score(np.where(GONE, np.nan, ETA)))


@pytest.mark.parametrize("method", ["closed-form", "exact"])
def test_an_offset_of_the_fit_is_wanted_again(method):
    x = (ETA + OFFSET[:, None] > 0).astype(float)
    vae = AffineVAE(1, family="bernoulli", method=method, tolerance=1e-2).fit(x, offset=OFFSET)
    z = vae.transform(x, offset=OFFSET)
    wanted = 'offset: the rows of the optimum brought one, these bring none; zeros say "none"'
    with sklearn.config_context(enable_metadata_routing=True):
        routed = make_pipeline(vae.set_fit_request(offset=True)).fit(x, offset=OFFSET)
        all_refused(
            [
                (lambda: vae.transform(x), ValueError, wanted),
                (lambda: vae.score(x), ValueError, wanted),
                (lambda: vae.inverse_transform(z), ValueError, wanted),
                (lambda: vae.sample(3), ValueError, wanted),
                (lambda: routed.score(x), ValueError, wanted),
            ]
        )
    none = np.zeros(N)
    assert vae.score(x, offset=OFFSET) > vae.score(x, offset=none) + 0.01
    assert vae.inverse_transform(z, offset=none).shape == x.shape
    without = AffineVAE(1, family="bernoulli", method=method, tolerance=1e-2).fit(x)  # the control
    assert without.transform(x).shape == (N, 1)


def test_what_is_missing_of_whole_numbers_starts_at_their_mean():
    rows = Rows(np.array([[1, 1], [0, 1], [1, 0]]), missing=np.array([[False, True], [False, False], [False, False]]))
    assert filled(rows).x[0, 1] == 0.5
    assert filled(rows.replace(x=rows.x.astype(bool))).x[0, 1] == 0.5


@pytest.mark.parametrize("method", ["closed-form", "tightened", "exact"])
def test_the_optimum_knows_the_columns_of_the_table(method):
    x = np.random.default_rng(0).normal(size=(40, 3))
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    vae = AffineVAE(1, method=method, dispersion=1.0, max_rounds=3)
    for of in [vae.fit] if method == "exact" else [vae.fit, vae.partial_fit]:
        with pytest.raises(ValueError, match='expected the columns of the optimum, "a" at 0, got "c"'):
            best_posterior(of(table).optimum_, table[["c", "b", "a"]])
    assert vae.fit(x).optimum_.column_names is None


@pytest.mark.parametrize(("scale", "what"), [(1e-22, "underflows"), (1e-19, "underflows"), (1e25, "overflows")])
def test_a_unit_that_single_precision_cannot_hold_is_refused(scale, what):
    x = scale * np.random.default_rng(0).normal(size=(40, 3))
    with jax.enable_x64(False):
        for method in ("closed-form", "exact"):
            with pytest.raises(ValueError, match=rf"the covariance {what} in float32; rescale .*column 0"):
                AffineVAE(1, method=method).fit(x)
        with pytest.raises(ValueError, match="rescale"):
            AffineVAE(1).partial_fit(x)
        assert AffineVAE(1).fit(x / scale).dispersion_ > 0


def test_weights_of_a_score_are_looked_at():
    x = np.random.default_rng(0).normal(size=(20, 3))
    vae = AffineVAE(1).fit(x)
    weight = np.arange(20.0)
    each = vae.score_samples(x).astype(float)
    np.testing.assert_allclose(vae.score(x, sample_weight=weight), weight @ each / weight.sum(), rtol=1e-12)
    assert vae.score(x, sample_weight=2.0) == pytest.approx(vae.score(x))
    for wrong in (-weight, weight + np.nan, weight[:3], weight[:, None], 0 * weight, np.full(20, "heavy")):
        with pytest.raises(ValueError, match=r"[sS]ample.?weight|could not convert"):
            vae.score(x, sample_weight=wrong)
    for call in (vae.fit, vae.score):
        with pytest.raises(ValueError, match=r"sample_weight: expected no number below 0, got -1 at \[1\]"):
            call(x, sample_weight=-weight)


@pytest.mark.parametrize("method", ["closed-form", "exact"])
def test_covariates_that_cannot_be_told_apart_are_named(method):
    rng = np.random.default_rng(0)
    x, known = rng.normal(size=(40, 4)), pd.DataFrame(rng.normal(size=(40, 2)), columns=["age", "year"])
    vae = AffineVAE(1, method=method)
    with pytest.raises(ValueError, match=r'^covariates: column . .column "(age|year|both)". is a linear combination'):
        vae.fit(x, covariates=known.assign(both=known.age + known.year))
    with pytest.raises(ValueError, match=r'^covariates: column 2 .column "still". does not vary'):
        vae.fit(x, covariates=known.assign(still=3.0))
    vae.fit(x, covariates=known)  # Control
