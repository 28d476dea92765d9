"""The estimator: PCA where it is PCA, the functions of the library where it is not, tables, pipelines, bad input."""

import functools
import io
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import all_refused

from glmvae import Rows, best_posterior, elbo_exact, fit, posterior, tighten
from glmvae.estimator import AffineVAE
from glmvae.families import Bernoulli, Gaussian, Mixed, Poisson

pytestmark = pytest.mark.any_precision

N, D, K = 120, 5, 2
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(N, K))
ETA = SCORES @ RNG.normal(size=(K, D)) * 1.2
GAUSSIAN = ETA + 0.5 * RNG.normal(size=(N, D)) + [0.0, 3.0, 0.0, -1.0, 0.5]
COUNTS = RNG.poisson(np.exp(0.4 * ETA)).astype(float)
BINARY = (RNG.logistic(size=(N, D)) < ETA).astype(float)
OFFSET = RNG.normal(size=N)
TABLE = pd.DataFrame(
    {"ill": BINARY[:, 0] > 0, "visits": COUNTS[:, 1].astype(int), "age": GAUSSIAN[:, 2], "bmi": GAUSSIAN[:, 4]}
)
KINDS = {"bernoulli": ["ill"], Poisson(): "visits", "gaussian": ["bmi", "age"]}
MIXED = Mixed([(Bernoulli(), [0]), (Poisson(), [1]), (Gaussian(), [2, 3])])


# PCA --------------------------------------------------------------------------------------------------------


def test_gaussian_factors_at_a_vanishing_beta_are_those_of_pca():
    def gaps(beta):
        vae, pca = AffineVAE(K, beta=beta).fit(GAUSSIAN), PCA(K, whiten=True).fit(GAUSSIAN)
        z, whitened = vae.transform(GAUSSIAN), pca.transform(GAUSSIAN) * np.sqrt(N / (N - 1))
        whitened *= np.sign(np.sum(z * whitened, axis=0))
        means = pca.inverse_transform(pca.transform(GAUSSIAN))
        return np.max(np.abs(z - whitened)), np.max(np.abs(vae.inverse_transform(z) - means))

    with jax.enable_x64(True):
        # the posterior mean shrinks by 1 - beta / lambda, lambda above 1 in units of the noise
        for gap in gaps(1e-6):
            assert gap < 1e-6 * np.max(np.abs(GAUSSIAN)) * 10
        assert min(gaps(1.0)) > 1e-2  # the control: at beta 1 it does


def test_the_score_at_beta_1_is_that_of_probabilistic_pca():
    def of_pca(units):
        pca = PCA(units).fit(GAUSSIAN)
        pca.explained_variance_ *= (N - 1) / N  # its maximum of the likelihood, which divides by N
        pca.noise_variance_ *= (N - 1) / N
        return pca.score_samples(GAUSSIAN)

    with jax.enable_x64(True):
        for scoring in ("likelihood", "elbo"):  # for Gaussian the best posterior is the exact one
            values = AffineVAE(K, scoring=scoring).fit(GAUSSIAN).score_samples(GAUSSIAN)
            np.testing.assert_allclose(values, of_pca(K), rtol=1e-10)
            assert np.max(np.abs(values - of_pca(1))) > 0.1  # the control


# The functions of the library -------------------------------------------------------------------------------


def test_it_is_the_functions_of_the_library():
    with jax.enable_x64(True):
        closed, tight = (AffineVAE(K, family="bernoulli", method=m, beta=0.7) for m in ("closed-form", "tightened"))
        start = fit(BINARY, Bernoulli(), K, beta=0.7)
        bound = tighten(start, BINARY)
        at = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)
        at(closed.fit_transform(BINARY), posterior(start, BINARY).mean)
        at(closed.components_, start.loadings.T)
        at(tight.fit_transform(BINARY), best_posterior(bound, BINARY).mean)
        for vae, optimum in ((closed, start), (tight, bound)):
            model = optimum.model.with_beta(1.0)
            best = best_posterior(model, BINARY)
            at(vae.score_samples(BINARY), elbo_exact(model, BINARY, best))
            weight = np.arange(1.0, N + 1)
            at(vae.score(BINARY, sample_weight=weight), np.average(vae.score_samples(BINARY), weights=weight))
            z = vae.transform(BINARY)
            at(vae.inverse_transform(z), jax.nn.sigmoid(optimum.decoder(jnp.asarray(z))))
        assert (
            vae.set_params(scoring="likelihood", num_samples=100).score(BINARY)
            > np.mean(elbo_exact(model, BINARY, best)) + 1e-3
        )


def test_the_exact_method_is_better_and_keeps_no_row():
    with jax.enable_x64(True):
        closed = AffineVAE(K, family="poisson", expand_at="null").fit(COUNTS)
        exact = AffineVAE(K, family="poisson", method="exact", tolerance=1e-3).fit(COUNTS)
        assert exact.score(COUNTS) > closed.score(COUNTS) + 0.01
        weight = np.arange(N) % 3
        weighed = clone(exact).fit(COUNTS, sample_weight=weight).components_
        np.testing.assert_allclose(weighed, clone(exact).fit(COUNTS.repeat(weight, axis=0)).components_, rtol=1e-7)
        assert np.max(np.abs(weighed - exact.components_)) > 1e-3  # the control
        assert exact.optimum_.posterior is None
        assert max(np.size(leaf) for leaf in jax.tree.leaves(exact.optimum_)) < N


def test_rows_bring_covariates_an_offset_and_trials():
    with jax.enable_x64(True):
        covariates = RNG.normal(size=(N, 1))
        x = GAUSSIAN + covariates * np.arange(D) + OFFSET[:, None]
        brought = {"offset": OFFSET, "covariates": covariates}
        vae = AffineVAE(K).fit(x, **brought)
        assert np.max(np.abs(vae.coefficients_ - np.arange(D))) < 0.5
        z = vae.transform(x, **brought)
        expected = vae.optimum_.decoder(jnp.asarray(z), covariates) + OFFSET[:, None]
        np.testing.assert_allclose(vae.inverse_transform(z, **brought), expected, rtol=1e-10)
        assert vae.score(x, **brought) > AffineVAE(K).fit(x).score(x)
        assert vae.sample(N, random_state=0, **brought).shape == (N, D)

        trials = RNG.integers(1, 4, (N, D))
        shares = AffineVAE(1, family="binomial").fit(RNG.binomial(trials, 0.3), trials=trials)
        trials[0] = 0
        means, drawn = shares.inverse_transform(np.zeros((N, 1)), trials=trials), shares.sample(N, trials=trials)
        assert np.all((means <= trials) & ((means > 0) | (trials == 0)))
        assert np.all((drawn <= trials) & (drawn == np.round(drawn)))


def test_samples_are_those_of_the_model():
    with jax.enable_x64(True):
        vae = AffineVAE(K).fit(GAUSSIAN)
        drawn = vae.sample(4000, random_state=0)
        covariance = vae.components_.T @ vae.components_ + vae.dispersion_ * np.eye(D)
        # five standard errors of a covariance
        error = np.sqrt((np.outer(*[np.diag(covariance)] * 2) + covariance**2) / len(drawn))
        assert np.all(np.abs(np.cov(drawn.T) - covariance) < 5 * error)
        assert np.any(np.abs(np.cov(GAUSSIAN[:, ::-1].T) - covariance) > 5 * error)  # the control
        np.testing.assert_array_equal(drawn[:0], vae.sample(1, random_state=0)[:0])
        np.testing.assert_array_equal(drawn, vae.sample(4000, random_state=0))
        assert np.any(vae.sample(3) != vae.sample(3))


def test_parts_are_fit_as_the_whole():
    with jax.enable_x64(True):
        for method in ("closed-form", "tightened"):
            whole = AffineVAE(K, family="bernoulli", method=method).fit(BINARY)
            parts = AffineVAE(K, family="bernoulli", method=method)
            for part in np.split(BINARY, [50, 51]):
                parts.partial_fit(part)
            np.testing.assert_allclose(parts.transform(BINARY), whole.transform(BINARY), rtol=1e-6, atol=1e-8)
            half = clone(whole).partial_fit(BINARY[:50]).transform(BINARY)
            assert np.max(np.abs(half - whole.transform(BINARY))) > 1e-2  # the control
            assert whole.fit(BINARY[:50]).moments_.count == 50  # fit begins again
        poisson, more = clone(whole).set_params(family="poisson"), np.ones((N, 1))
        poisson.moments_ = whole.moments_
        changed = r"^family: expected Bernoulli\(\) as of the rows before, got Poisson\(\); `fit` begins anew"
        all_refused(
            [
                (lambda: poisson.partial_fit(COUNTS), ValueError, changed),
                (lambda: whole.partial_fit(BINARY, covariates=more), ValueError, "^covariates: expected 0 as of .* 1;"),
                (lambda: whole.partial_fit(BINARY, offset=OFFSET), ValueError, "^offset: expected none as of .* one;"),
            ]
        )
        assert not hasattr(poisson, "family_")  # nothing of what is refused is kept
    exact = AffineVAE(method="exact")
    assert not hasattr(exact, "partial_fit")
    with pytest.raises(AttributeError) as error:
        _ = exact.partial_fit
    assert 'method: partial_fit merges moments, from which "exact"' in str(error.value.__cause__)


# Tables -----------------------------------------------------------------------------------------------------


def test_a_table_goes_in_and_comes_out():
    vae = AffineVAE(K, family=KINDS, dispersion=0.5).set_output(transform="pandas")
    found = vae.fit_transform(TABLE.set_index(TABLE.index + 7))
    assert list(found.columns) == list(vae.get_feature_names_out()) == ["affinevae0", "affinevae1"]
    assert found.index[0] == 7
    assert list(vae.feature_names_in_) == list(TABLE)
    assert vae.n_features_in_ == 4
    assert vae.family_ == MIXED
    np.testing.assert_array_equal(vae.dispersion_, [1.0, 1.0, 0.5, 0.5])  # a scalar is for those it is open for
    phi = MIXED.columnwise([1.0, 1.0, 0.5])
    again = fit(TABLE.to_numpy(float), MIXED, K, dispersion=phi)
    np.testing.assert_allclose(found, posterior(again, TABLE.to_numpy(float)).mean, rtol=1e-4, atol=1e-5)
    by_index = AffineVAE(K, family=[(Bernoulli(), 0), ("poisson", [1]), ("gaussian", range(2, 4))], dispersion=0.5)
    np.testing.assert_array_equal(by_index.fit(TABLE).components_, vae.components_)
    by_column = AffineVAE(K, family=KINDS, dispersion={"bmi": 0.25, 2: 0.5, "ill": 2}).fit(TABLE)
    np.testing.assert_array_equal(by_column.dispersion_, [2.0, 1.0, 0.5, 0.25])
    other = AffineVAE(K, family=KINDS, dispersion=0.5).fit(TABLE[["age", "ill", "bmi", "visits"]])
    assert other.family_.of_column(3) == Poisson()


@pytest.mark.parametrize("family", ["gaussian", KINDS, Mixed([(Gaussian(), range(4))])], ids=str)
def test_it_is_cloned_and_pickled(family):
    vae = AffineVAE(1, family=family, dispersion=0.5, beta=2.0).fit(TABLE)
    again = clone(vae)
    assert again.get_params() == vae.get_params()
    assert not hasattr(again, "optimum_")
    file = io.BytesIO()
    joblib.dump(vae, file)
    file.seek(0)
    for loaded in (pickle.loads(pickle.dumps(vae)), joblib.load(file)):
        np.testing.assert_array_equal(loaded.transform(TABLE), vae.transform(TABLE))
        np.testing.assert_array_equal(loaded.score_samples(TABLE), vae.score_samples(TABLE))


# Pipelines and searches -------------------------------------------------------------------------------------


def own_elbo(vae, x, y=None):
    """What the score is not: the beta-ELBO of the fit's own beta."""
    return float(np.mean(elbo_exact(vae.optimum_, x, best_posterior(vae.optimum_, x))))


def test_a_search_finds_the_planted_model_where_the_own_elbo_finds_the_smallest_beta():
    grid = {"n_components": [1, 2], "beta": [0.05, 1.0, 4.0]}
    search = GridSearchCV(AffineVAE(), grid, cv=3).fit(GAUSSIAN)
    assert search.best_params_ == {"n_components": K, "beta": 1.0}
    control = GridSearchCV(AffineVAE(), grid, cv=3, scoring=own_elbo).fit(GAUSSIAN)
    assert control.best_params_["beta"] == 0.05
    by_beta = pd.DataFrame(control.cv_results_).groupby("param_beta")["mean_test_score"].max()
    assert by_beta.is_monotonic_decreasing


def test_it_stands_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), AffineVAE(K))
    found = pipeline.fit_transform(GAUSSIAN)
    np.testing.assert_array_equal(found, pipeline.transform(GAUSSIAN))
    assert pipeline.inverse_transform(found).shape == GAUSSIAN.shape
    assert list(pipeline[-1:].get_feature_names_out()) == ["affinevae0", "affinevae1"]
    search = GridSearchCV(pipeline, {"affinevae__n_components": [0, 2]}, cv=2).fit(GAUSSIAN)
    assert search.best_params_["affinevae__n_components"] == 2


def test_an_offset_is_routed():
    x = (RNG.logistic(size=(N, D)) < ETA + 3 * OFFSET[:, None]).astype(float)
    vae = AffineVAE(1, family="bernoulli")
    direct = clone(vae).fit(x, offset=3 * OFFSET)
    with sklearn.config_context(enable_metadata_routing=True):
        for request in ("fit", "transform", "score"):
            getattr(vae, f"set_{request}_request")(offset=True)
        pipeline = make_pipeline("passthrough", vae)
        found = pipeline.fit_transform(x, offset=3 * OFFSET)
        np.testing.assert_array_equal(found, direct.transform(x, offset=3 * OFFSET))
        assert pipeline.score(x, offset=3 * OFFSET) == direct.score(x, offset=3 * OFFSET)
        assert np.max(np.abs(found - pipeline.fit(x).transform(x))) > 0.1  # the control: without it
        search = GridSearchCV(vae, {"beta": [0.5, 1.0]}, cv=2).fit(x, offset=3 * OFFSET)
        assert search.best_score_ > np.log(0.5) * D
        with pytest.raises(UnsetMetadataPassedError, match="offset"):
            make_pipeline(AffineVAE(1, family="bernoulli")).fit(x, offset=OFFSET)


# Bad input --------------------------------------------------------------------------------------------------


def fitting(x=GAUSSIAN, brought=(), **parameters):
    return lambda: AffineVAE(**parameters).fit(x, **dict(brought))


def test_a_bad_argument_is_named():
    fitted, table = AffineVAE(K).fit(GAUSSIAN), TABLE.assign(town="Oslo")
    negative = TABLE[["visits"]].assign(visits=-1)
    counted = AffineVAE(1, family="binomial").fit(BINARY, trials=np.ones(BINARY.shape, int))
    flat = AffineVAE(3).fit(SCORES @ np.ones((2, 5)))
    all_refused(
        [
            (fitting(n_components=6), ValueError, "^n_components: .* 5, got 6"),
            (fitting(n_components=1.5), TypeError, "^n_components: expected an integer"),
            (fitting(beta=0.0), ValueError, "^beta"),
            (fitting(dispersion=-1.0), ValueError, "^dispersion"),
            (fitting(dispersion="estimate"), ValueError, '^dispersion: .*"estimate" with "exact"'),
            (fitting(method="closed"), ValueError, '^method: expected one of "closed-form", "tightened", "exact"'),
            (fitting(scoring="r2"), ValueError, '^scoring: expected one of "elbo", "likelihood"'),
            (fitting(expand_at="one"), ValueError, "^expand_at"),
            (fitting(family="normal"), ValueError, "^family: expected one of .*'normal'"),
            (fitting(family=Gaussian), TypeError, "^family: .*class Gaussian"),
            (fitting(family={"gaussian": ["age"]}), ValueError, '^family: .*no column names to look "age" up'),
            (fitting(TABLE, family={"gaussian": ["age", "ag"]}), ValueError, '^family: .*"ag", of which there are 0'),
            (fitting(TABLE, family={"gaussian": ["age"]}), ValueError, '^family: .*none for column "ill"'),
            (fitting(TABLE, family={"poisson": "aa", "bernoulli": [*TABLE]}), ValueError, '^family: .*"aa", of which'),
            (fitting(TABLE, family={"poisson": ["ill"]}), ValueError, '^family: .*none for column "visits"'),
            (fitting(TABLE.where(TABLE.age > 0), family={"poison": [*TABLE]}), ValueError, "^family: .*'poison'"),
            (fitting(family=[("gaussian", range(5)), ("poisson", 4)]), ValueError, "column 4 more than once"),
            (fitting(family=[("gaussian", [5])]), ValueError, "^family: expected indices from 0 to 4, got 5"),
            (fitting(family=[("gaussian", [0.5])]), TypeError, "^family: expected names or indices .*0.5"),
            (fitting(TABLE, family=KINDS), ValueError, "^dispersion"),
            (fitting(TABLE, family=KINDS, dispersion={"age": 0.5}), ValueError, '^dispersion: .*none for column "bmi"'),
            (fitting(TABLE, family=KINDS, dispersion={"ag": 0.5}), ValueError, '^dispersion: .*"ag", of which there'),
            (fitting(TABLE, family=KINDS, dispersion={"age": 1, 2: 1}), ValueError, '^dispersion: .*"age" more'),
            (fitting(TABLE, family=KINDS, dispersion={"age": "1"}), TypeError, "^dispersion: .* '1' for 'age'"),
            (
                fitting(TABLE, dispersion={"age": -1.0} | dict.fromkeys([0, 1, 3], 1)),
                ValueError,
                r"^dispersion: .*\[2\]",
            ),
            (fitting(table), TypeError, '^X: .*str in column "town"; encode it'),
            (
                fitting(TABLE.assign(age=TABLE.age.where(TABLE.index != 3))),
                ValueError,
                r'^X: .* got NaN at \[3, 2\] \(column "age"\); method="exact" takes missing entries',
            ),
            (fitting(TABLE.assign(age=np.nan), method="exact"), ValueError, r'none at \[2\] \(column "age"\)'),
            (
                fitting(np.where(GAUSSIAN > 2, np.inf, GAUSSIAN), method="exact"),
                ValueError,
                r"^X: .*infinity at \[0, 1\]",
            ),
            (
                fitting(TABLE.assign(age=TABLE.age.where(TABLE.index != 3, -np.inf))),
                ValueError,
                r'^X: expected finite numbers, got -infinity at \[3, 2\] \(column "age"\)',
            ),
            (fitting(Rows(GAUSSIAN)), TypeError, "^X: expected a table, got Rows; an offset, .* are arguments"),
            (fitting(2 + BINARY, family="bernoulli"), ValueError, r"got 3 at \[0, \d\]|got 2 at \[0, 0\]"),
            (fitting(TABLE.abs() + 2, family="bernoulli"), ValueError, r'\[0, 0\] \(column "ill"\)'),
            (fitting(-COUNTS - 1, family="poisson"), ValueError, r"^Negative values in data .* at \[0, 0\]"),
            (fitting(negative, family="poisson"), ValueError, r'the first -1 at \[0, 0\] \(column "visits"\)'),
            (fitting(COUNTS, {"offset": OFFSET}, family="poisson"), ValueError, "^offset|^x: "),
            (fitting(brought={"offset": OFFSET[:3]}), ValueError, "^offset"),
            (fitting(brought={"covariates": OFFSET}), ValueError, "^covariates"),
            (fitting(BINARY, family="binomial"), ValueError, "^trials: expected .*, got None"),
            (lambda: fitted.transform(GAUSSIAN, covariates=np.ones((N, 1))), ValueError, "^covariates"),
            (lambda: fitted.inverse_transform(GAUSSIAN), ValueError, "^X: expected 2 columns, one a component"),
            (lambda: fitted.sample(0), ValueError, "^n_samples"),
            (lambda: counted.transform(BINARY), ValueError, "^trials: expected .*, got None"),
            (lambda: counted.inverse_transform(np.zeros((2, 1))), ValueError, "^trials: expected .*, got None"),
            (lambda: counted.sample(2), ValueError, "^trials: expected .*, got None"),
            (lambda: flat.score(GAUSSIAN), ValueError, "^optimum_: its dispersion is 0"),
        ]
    )


def test_without_scikit_learn_there_is_advice():
    program = "import sys; sys.modules['sklearn'] = None; import glmvae; import glmvae.estimator"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'needs scikit-learn, which is optional: pip install "glmvae[sklearn]"' in found.stderr
