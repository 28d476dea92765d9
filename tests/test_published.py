"""Numbers that others published, or whose code prints them: the source of each, what is compared, why it may differ.

data                        theirs                                    here
spider, 2 units             gllvm: -845.8277                          N times the exact ELBO of ``refine``
trichoptera, 17 units       PLNmodels: -1129.386, -1051.580           ``refine`` is above
LSAT, 1 unit                ltm: -2466.653                            L-hat < tightened < entry < exact <= it
five tables                 scikit-learn: PCA.score                   L-hat at beta 1
two tables                  scikit-learn: FactorAnalysis.score        L-hat with its noise as the dispersion
iris                        Kunin et al. (2019)                       decoder times encoder at beta = lambda / n
simulated tables            statsmodels: GLMs with offsets, trials    ``refine`` without latent units
star98, cpunish, scotland   statsmodels: null models, deviances       ``refine`` without latent units
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.datasets
import statsmodels.api as sm
from dense_reference import MODELS, decoder, elbo, log_likelihood, problem
from sklearn.decomposition import PCA, FactorAnalysis

from glmvae import Rows, fit, refine, tighten
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, NegativeBinomial, Poisson

pytestmark = pytest.mark.float64

#: Of a sum of log-likelihoods that two programs form in another order.
RELATIVE = 1e-9
#: Nats a row: what an ascent may be short of its optimum, far below the last digit of what is quoted.
TIGHT = {"tolerance": 1e-10, "max_rounds": 3000}


def table(name):
    return np.loadtxt(Path(__file__).parent / "published" / f"{name}.csv", delimiter=",")


def total(optimum, x):
    """Of all rows, in place of a mean."""
    return len(x) * float(optimum.elbo)


# Latent variables ------------------------------------------------------------------------------------------


def test_gllvms_spider():
    """28 sites, 12 species (van der Aart and Smeenk-Enserink 1975): Poisson, 2 latent variables.

    gllvm's vignette prints its variational log-likelihood, -845.8277: the same bound, a full Gaussian posterior a site,
    E log p in closed form, the exact log x!, summed over sites.
    """
    x = table("spider")
    for point in ("zero", "null"):
        r = refine(fit(x, Poisson(), 2, expand_at=point), x, **TIGHT)
        assert abs(total(r, x) - -845.8277) < 5e-5
    # By NumPy alone, from the decoder and the posteriors
    p, q = problem(x, MODELS["poisson"]), r.posterior
    alone = elbo(p, decoder(r.loadings, r.intercept), np.asarray(q.mean), np.asarray(q.covariance))
    np.testing.assert_allclose(r.elbo, p.mean(alone), rtol=1e-11)
    assert total(refine(fit(x, Poisson(), 1, expand_at="null"), x, **TIGHT), x) < -845.8277 - 50


@pytest.mark.parametrize(
    ("with_offset", "printed", "exact"), [(False, -1129.386, -1129.369), (True, -1051.580, -1051.467)]
)
def test_plnmodels_trichoptera(with_offset, printed, exact):
    """49 nights, 17 species (Usseglio-Polatera and Auda 1987): Poisson log-normal, full covariance.

    PLNmodels' bound has diagonal posteriors in the space of the columns (``printed``, with the exact log x! in place of
    its approximation; ``exact``, the ELBO of its solution). With as many units as columns the decoders are the same
    set and the posteriors here are full, so the optimum is above both: by 60.5 and 69.5.
    """
    x = table("trichoptera")
    rows = Rows(x, offset=np.log(x.sum(axis=1)) if with_offset else None)
    r = refine(fit(x, Poisson(), x.shape[1], expand_at="null"), rows, tolerance=1e-5, max_rounds=500)
    assert total(r, x) > exact > printed
    assert abs(total(r, x) - exact - (69.5 if with_offset else 60.5)) < 0.5
    # By NumPy alone: the offset and log x! are in it
    p, q = problem(x, MODELS["poisson"], offset=np.log(x.sum(axis=1)) if with_offset else 0.0), r.posterior
    alone = elbo(p, decoder(r.loadings, r.intercept), np.asarray(q.mean), np.asarray(q.covariance))
    np.testing.assert_allclose(r.elbo, p.mean(alone), rtol=1e-11)


def test_ltms_lsat():
    """1000 examinees, 5 items (Bock and Lieberman 1970): the two-parameter logistic model.

    ltm (JSS 17(5)) prints the largest marginal log-likelihood, -2466.653, an integral over z by quadrature. Every
    bound is below it: the paper's, Jaakkola and Jordan's a column and an entry, the exact ELBO.
    """
    x = table("lsat")
    start = fit(x, Bernoulli(), 1)
    entry, exact = (refine(start, x, method=method, **TIGHT) for method in ("entry", "exact"))
    patterns, counts = np.unique(x, axis=0, return_counts=True)
    p = problem(patterns, MODELS["bernoulli"], weight=counts)

    def marginal(loadings, intercept):
        return float(counts @ log_likelihood(p, decoder(np.reshape(loadings, (5, 1)), intercept), nodes=91))

    there = marginal(exact.loadings, exact.intercept)
    best = scipy.optimize.minimize(lambda flat: -marginal(flat[:5], flat[5:]), np.ones(10), options={"gtol": 1e-3})
    assert abs(-best.fun - -2466.653) < 5e-4
    assert total(exact, x) == pytest.approx(-2467.045, abs=5e-4)
    assert there == pytest.approx(-2466.667, abs=5e-4)
    bounds = [start.elbo_taylor, tighten(start, x).lower_bound, entry.lower_bound, exact.elbo]
    chain = [*(len(x) * float(b) for b in bounds), there, -best.fun]
    assert np.all(np.diff(chain) > 5e-3)


# Gaussian --------------------------------------------------------------------------------------------------

TABLES = ["iris", "digits", "breast_cancer", "diabetes", "wine"]


def sklearn_table(name):
    return np.asarray(getattr(sklearn.datasets, f"load_{name}")().data, float)


@pytest.mark.parametrize(("name", "rows"), [*((name, None) for name in TABLES), ("digits", 30), ("breast_cancer", 20)])
def test_scikit_learns_pca(name, rows):
    """``PCA.score`` is the mean log-likelihood of probabilistic PCA: L-hat at beta 1, where the bound is exact.

    Its covariance is divided by n - 1: it is fitted to data shrunk by sqrt((n - 1) / n) about their mean, and scores
    the data. With fewer rows than columns "covariance_eigh" averages the eigenvalues over d, which is the maximum,
    "full" over n: L-hat with that one's noise as the dispersion.
    """
    x = sklearn_table(name)[:rows]
    n, mean = len(x), x.mean(axis=0)
    shrunk = mean + (x - mean) * np.sqrt((n - 1) / n)
    for units in (1, 3):
        theirs = PCA(units, svd_solver="covariance_eigh").fit(shrunk)
        ours = fit(x, Gaussian(), units)
        np.testing.assert_allclose(ours.elbo_taylor, theirs.score(x), rtol=RELATIVE)
        np.testing.assert_allclose(ours.dispersion, theirs.noise_variance_, rtol=RELATIVE)
        full = PCA(units, svd_solver="full").fit(shrunk)
        given = fit(x, Gaussian(), units, dispersion=full.noise_variance_)
        np.testing.assert_allclose(given.elbo_taylor, full.score(x), rtol=RELATIVE)
        if n < x.shape[1]:
            assert ours.elbo_taylor > given.elbo_taylor + 0.1
        # Control: n - 1 is told apart from n
        assert abs(PCA(units, svd_solver="full").fit(x).score(x) - full.score(x)) > 10 * RELATIVE * abs(full.score(x))


@pytest.mark.parametrize(("name", "units"), [("iris", 3), ("breast_cancer", 1)])
def test_scikit_learns_factor_analysis(name, units):
    """``FactorAnalysis``, its noise variances given as ``dispersion``, (d,): L-hat is its score.

    Its loadings are the best ones at the noise of the round before, so they differ by what its last round gained. (Two
    tables on which its rounds come to an end; elsewhere a noise variance creeps towards 0.) Its rounds, an SVD of the
    table each, know the mean and covariance alone: they are given the smallest table that has these.
    """
    x = sklearn_table(name)
    n, d = x.shape
    root = np.linalg.qr(x - x.mean(axis=0), mode="r") * np.sqrt(d / n)
    small = x.mean(axis=0) + np.concatenate([root, -root])
    np.testing.assert_allclose(np.cov(small.T, bias=True), np.cov(x.T, bias=True), rtol=1e-6, atol=1e-12)
    theirs = FactorAnalysis(units, tol=1e-8 * 2 * d / n, svd_method="lapack").fit(small)
    ours = fit(x, Gaussian(), units, dispersion=theirs.noise_variance_)
    np.testing.assert_allclose(ours.elbo_taylor, theirs.score(x), rtol=RELATIVE)
    turned = fit(x, Gaussian(), units, dispersion=theirs.noise_variance_[::-1])
    assert float(ours.elbo_taylor) > float(turned.elbo_taylor) + 1e-2  # the noise belongs to its columns


def test_kunins_regularised_autoencoder():
    """Kunin, Bloom, Goeva and Seed (2019): a linear autoencoder with both matrices penalised by lambda.

    min |x - W2 W1 x|^2 + lambda (|W1|^2 + |W2|^2) over n centred rows has W2 W1 = U (1 - lambda / sigma^2)+ U', sigma
    the singular values of the data: decoder times encoder of the Gaussian closed form at dispersion 1 and beta =
    lambda / n. Their theorem, and BFGS on their loss, which knows no formula.
    """
    x = sklearn_table("iris")
    x = x - x.mean(axis=0)
    n, dim, units, penalty = len(x), 4, 3, 20.0

    def loss(flat):
        w2, w1 = flat[: dim * units].reshape(dim, units), flat[dim * units :].reshape(units, dim)
        residual = x @ w1.T @ w2.T - x
        value = np.sum(residual**2) + penalty * np.sum(flat**2)
        gradient = 2 * np.concatenate([(residual.T @ x @ w1.T).ravel(), (w2.T @ residual.T @ x).ravel()])
        return value, gradient + 2 * penalty * flat

    flat = np.random.default_rng(0).normal(size=2 * dim * units)
    found = scipy.optimize.minimize(loss, flat, jac=True, method="BFGS", options={"gtol": 1e-9})
    product = found.x[: dim * units].reshape(dim, units) @ found.x[dim * units :].reshape(units, dim)
    _, sigma, vectors = np.linalg.svd(x, full_matrices=False)
    theorem = (vectors[:units].T * np.maximum(1 - penalty / sigma[:units] ** 2, 0)) @ vectors[:units]
    np.testing.assert_allclose(product, theorem, atol=1e-6)
    assert np.sum(penalty < sigma[:units] ** 2) == 2  # the third is off

    def ours(beta):
        o = fit(x, Gaussian(), units, beta=beta, dispersion=1.0)
        return np.asarray(o.loadings @ o.encoder.weight)

    np.testing.assert_allclose(ours(penalty / n), theorem, atol=1e-12)
    assert np.abs(ours(2 * penalty / n) - theorem).max() > 1e-2


# Without latent units: GLMs --------------------------------------------------------------------------------

GLMS = {
    "poisson": (sm.families.Poisson(), Poisson(), 1.0),
    "binomial": (sm.families.Binomial(), Binomial(None), 1.0),
    "gamma": (sm.families.Gamma(sm.families.links.Log()), Gamma(), 0.4),
    "negative binomial": (sm.families.NegativeBinomial(alpha=1 / 3), NegativeBinomial(3.0), 1.0),
}


def simulated(name, rng):
    """x, offset and, for a binomial, trials an entry, (50, 3) each."""
    offset = 0.6 * rng.normal(size=(50, 3))
    rate = np.exp(offset + np.array([0.5, 0.0, 1.0]))
    trials = rng.integers(1, 12, (50, 3)).astype(float) if name == "binomial" else None
    x = {
        "poisson": lambda: rng.poisson(rate),
        "binomial": lambda: rng.binomial(trials.astype(int), rate / (1 + rate)),
        "gamma": lambda: rng.gamma(2.5, rate / 2.5),
        "negative binomial": lambda: rng.poisson(rng.gamma(3.0, rate / 3)),
    }[name]()
    return x.astype(float), offset, trials


def statsmodels_log_likelihood(family, x, offset, trials, covariates, phi):
    """Of all columns, each a GLM; and of the same without the offset."""
    values = []
    for each in (offset, 0 * offset):
        value = 0.0
        for j in range(x.shape[1]):
            y = x[:, j] if trials is None else np.column_stack([x[:, j], trials[:, j] - x[:, j]])
            model = sm.GLM(y, covariates, family=family, offset=each[:, j])
            value += model.loglike(model.fit(tol=1e-14, maxiter=500).params, scale=phi)
        values.append(value)
    return values


@pytest.mark.parametrize("name", GLMS)
def test_statsmodels_glms(name):
    """statsmodels' ``GLM`` of every column, with an offset and trials an entry: ``refine`` without latent units.

    Without covariates it is the null model. Gamma's scale is given to both; the negative binomial's alpha is 1 / size.
    """
    theirs, family, phi = GLMS[name]
    rng = np.random.default_rng(0)
    x, offset, trials = simulated(name, rng)
    covariates = rng.normal(size=(50, 2))
    given = None if name != "gamma" else phi
    start = fit(Rows(x, trials=trials), family, 0, dispersion=given)
    null = refine(start, Rows(x, trials=trials, offset=offset), **TIGHT)
    expected, without = statsmodels_log_likelihood(theirs, x, offset, trials, np.ones((50, 1)), phi)
    np.testing.assert_allclose(total(null, x), expected, rtol=RELATIVE)
    assert abs(expected - without) > 1  # the offset counts
    start = fit(Rows(x, trials=trials, covariates=covariates), family, 0, dispersion=given)
    full = refine(start, Rows(x, trials=trials, offset=offset, covariates=covariates), **TIGHT)
    expected, without = statsmodels_log_likelihood(theirs, x, offset, trials, sm.add_constant(covariates), phi)
    np.testing.assert_allclose(total(full, x), expected, rtol=RELATIVE)
    assert total(full, x) > total(null, x) + 0.1


def test_star98():
    """303 school districts, successes of trials (Gill 2000, in statsmodels): the null model and 20 covariates.

    statsmodels prints -18131.914297 and, on its page on GLMs, -2998.6126: sums with the binomial coefficients.
    """
    data = sm.datasets.star98.load()
    both, covariates = np.asarray(data.endog, float), np.asarray(data.exog, float)
    x, trials = both[:, :1], both.sum(axis=1, keepdims=True)
    null = refine(fit(Rows(x, trials=trials), Binomial(None), 0), Rows(x, trials=trials), **TIGHT)
    assert abs(total(null, x) - -18131.914297) < 1e-6
    scaled = (covariates - covariates.mean(axis=0)) / covariates.std(axis=0)  # of the same span
    rows = Rows(x, trials=trials, covariates=scaled)
    full = refine(fit(rows, Binomial(None), 0), rows, **TIGHT)
    assert abs(total(full, x) - -2998.6125589939) < 1e-6


def test_cpunish_and_scotland():
    """Null deviances, twice the log-likelihood that is lost to the saturated model (Gill 2000, in statsmodels).

    17 states' executions, Poisson: 136.572817. 32 Scottish districts, Gamma at phi = 1 (a deviance does not depend on
    it): 0.536072.
    """
    x = np.asarray(sm.datasets.cpunish.load().endog, float)[:, None]
    null = refine(fit(x, Poisson(), 0), x, **TIGHT)
    saturated = scipy.stats.poisson.logpmf(x, np.maximum(x, 1e-300)).sum()
    assert abs(2 * (saturated - total(null, x)) - 136.572817) < 1e-6
    x = np.asarray(sm.datasets.scotland.load().endog, float)[:, None]
    null = refine(fit(x, Gamma(), 0, dispersion=1.0), x, **TIGHT)
    saturated = scipy.stats.expon.logpdf(x, scale=x).sum()
    assert abs(2 * (saturated - total(null, x)) - 0.536072) < 1e-6
