"""The reference's families, expectations, bounds and row fields against SciPy, mpmath and differences."""

import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.integrate
from dense_reference import (
    DISPERSIONS,
    MODELS,
    OTHERS,
    Binomial,
    Decoder,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
    best_posterior,
    draw,
    elbo,
    elbo_and_gradient,
    exact,
    example,
    expectation,
    expected_log_prob,
    jaakkola,
    jaakkola_column,
    jaakkola_entry,
    kl_divergence,
    log_likelihood,
    predictor,
    problem,
    quadratic,
)

pytestmark = pytest.mark.any_precision

ALL = MODELS | OTHERS
LOGISTIC = ["bernoulli", "bernoulli_tanh", "binomial_columns", "negative_binomial_columns"]
#: Sums of a few dozen float64 terms of order one.
EXACT = 1e-12
#: A central difference of a sum of order ten, at its best step.
DIFFERENCE = 1e-7
FIELDS = ("offset", "covariates", "missing", "weight")


def test_it_stands_alone():
    """Nothing of the library, and no JAX, behind a number of the reference."""
    script = "import sys, dense_reference; print(sorted({m.split('.')[0] for m in sys.modules} & {'glmvae', 'jax'}))"
    here = Path(__file__).parent
    assert subprocess.check_output([sys.executable, "-c", script], text=True, cwd=here).strip() == "[]"


# Families --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [1.0, 0.4])
@pytest.mark.parametrize("name", sorted(set(ALL) - {"mixed", "bernoulli_grey"}))
def test_log_prob_is_scipys(name, phi):
    family, x = ALL[name], draw(name, rows=8)
    eta = np.random.default_rng(1).normal(size=x.shape)
    owns = isinstance(family, Gaussian | Gamma)  # its dispersion; that of the others divides all but K
    base = 0.0 if owns else family.log_base_measure(x)

    def expected(eta):
        if owns:
            return family.distribution(family.scale * eta, phi).logpdf(x)
        return base + (family.distribution(family.scale * eta, 1.0).logpmf(x) - base) / phi

    np.testing.assert_allclose(family.log_prob(x, eta, phi), expected(eta), rtol=EXACT, atol=EXACT)
    assert np.abs(family.log_prob(x, eta, phi) - expected(eta + 0.1)).max() > 1e-3
    np.testing.assert_allclose(family.fitted(eta), family.distribution(family.scale * eta, phi).mean(), rtol=EXACT)
    np.testing.assert_allclose(family.fitted(family.null(family.fitted(eta))), family.fitted(eta), rtol=EXACT)


def test_log_prob_keeps_its_digits_where_a_probability_has_none():
    with mpmath.workdps(40):
        for family, x, eta, exact_form in (
            (Binomial(9.0), 8.0, 30.0, lambda t: mpmath.log(9) + 8 * t - 9 * mpmath.log1p(mpmath.exp(t))),
            (Binomial(1.0), 0.3, 40.0, lambda t: mpmath.mpf(0.3) * t - mpmath.log1p(mpmath.exp(t))),
            (Poisson(), 3.0, -40.0, lambda t: 3 * t - mpmath.exp(t) - mpmath.log(6)),
            (NegativeBinomial(2.0), 3.0, 35.0, lambda t: mpmath.log(4) + 3 * t - 5 * mpmath.log1p(mpmath.exp(t))),
        ):
            assert abs(float(exact_form(mpmath.mpf(eta))) / family.log_prob(x, eta) - 1) < EXACT
    with np.errstate(divide="ignore"):
        assert abs(Binomial(9.0).distribution(30.0, 1.0).logpmf(8.0) - Binomial(9.0).log_prob(8.0, 30.0)) > 1e-5


@pytest.mark.parametrize("name", sorted(ALL))
def test_score_and_weight_are_derivatives(name):
    family, x, phi = ALL[name], draw(name, rows=5), DISPERSIONS.get(name, 1.0)
    eta = np.random.default_rng(2).normal(size=x.shape)
    h = 1e-4
    up, down, at = (family.log_prob(x, eta + s, phi) for s in (h, -h, 0.0))
    np.testing.assert_allclose(family.score(x, eta, phi), (up - down) / (2 * h), atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(family.observed_weight(x, eta, phi), (2 * at - up - down) / h**2, atol=1e-5, rtol=1e-5)
    # Fisher's weight is the observed one where x is its mean, for these; elsewhere, for three of them, it is not
    np.testing.assert_allclose(
        family.observed_weight(family.fitted(eta), eta, phi), family.weight(eta, phi), rtol=EXACT
    )
    moves = np.abs(family.observed_weight(x, eta, phi) - family.weight(eta, phi)).max() > 1e-3
    assert moves == (name in OTHERS)


def test_mixed_is_its_members():
    x, eta, family = draw("mixed", rows=5), np.random.default_rng(0).normal(size=(5, 4)), OTHERS["mixed"]
    phi = DISPERSIONS["mixed"]
    np.testing.assert_array_equal(family.log_prob(x, eta, phi)[:, 1], Gaussian().log_prob(x[:, 1], eta[:, 1], 0.6))
    np.testing.assert_array_equal(
        family.log_prob(x, eta, phi)[:, 2], NegativeBinomial(2.0).log_prob(x[:, 2], eta[:, 2])
    )
    assert np.isnan(family.logistic_trials(x)).any(axis=0).tolist() == [False, True, False, False]
    n = np.full((5, 4), 7.0)
    got = family.with_trials(n).log_prob(x, eta, phi)
    np.testing.assert_array_equal(got[:, 3], Binomial(7.0).log_prob(x[:, 3], eta[:, 3]))
    np.testing.assert_array_equal(got[:, 1:3], family.log_prob(x, eta, phi)[:, 1:3])


# Expectations and bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_expectations_are_those_of_an_adaptive_quadrature(name):
    p, d, mean, root = example(name, rows=3)
    m, v = predictor(p, d, mean, root @ np.swapaxes(root, 1, 2))
    got, i = expected_log_prob(p, m, v), 1
    for j in range(4):

        def density(eta, j=j):
            log_p = p.row(i).family.log_prob(p.x[i], np.full((1, 4), eta), p.phi)[0, j]
            return log_p * np.exp(-0.5 * (eta - m[i, j]) ** 2 / v[i, j]) / np.sqrt(2 * np.pi * v[i, j])

        reach = 14 * np.sqrt(v[i, j])
        value, _ = scipy.integrate.quad(
            density, m[i, j] - reach, m[i, j] + reach, epsabs=1e-13, epsrel=1e-12, limit=400
        )
        np.testing.assert_allclose(got[i, j], value, rtol=1e-10, atol=1e-11)
    assert np.abs(got - p.family.log_prob(p.x, m, p.phi)).max() > 1e-2  # the spread counts


def expected_softplus(m, s):
    if s == 0:
        return np.logaddexp(0, m)
    with mpmath.workdps(30):
        points = [t for t in sorted({m + s * t for t in (-14, -6, -2, 0, 2, 6, 14)} | {-20.0, 0.0, 20.0})]
        inside = [t for t in points if m - 14 * s <= t <= m + 14 * s]
        return float(mpmath.quad(lambda t: mpmath.log1p(mpmath.exp(t)) * mpmath.npdf(t, m, s), inside))


@pytest.mark.parametrize("deviation", [0.0, 0.1, 1.0, 4.0, 25.0, 200.0])
def test_expectations_at_any_width(deviation):
    mean = np.array([[-3.0, 0.0, 1.5]])
    v = np.full_like(mean, deviation**2)
    expected = [[expected_softplus(m, deviation) for m in mean[0]]]
    np.testing.assert_allclose(expectation(lambda eta: np.logaddexp(0, eta), mean, v), expected, rtol=1e-11)
    if deviation <= 4:
        np.testing.assert_allclose(expectation(np.exp, mean, v), np.exp(mean + v / 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, "exact") for n in sorted(ALL)] + [(n, k) for n in LOGISTIC for k in ("entry", "column")]
    + [(n, "quadratic") for n in ("gamma", "bernoulli", "mixed")] + [("mixed", "entry")],
)  # fmt: skip
def test_the_gradient_of_the_elbo_is_its_derivative(name, kind):
    p, d, mean, root = example(name, fields=FIELDS)
    if name == "mixed" and kind == "entry":
        p = p._replace(family=Mixed([(Binomial(5.0), [0, 3]), (Gaussian(), [1, 2])]))
    bound = {"exact": exact, "entry": jaakkola_entry, "column": jaakkola_column, "quadratic": quadratic(0.3)}[kind]
    value, gradient = elbo_and_gradient(p, d, mean, root, bound)
    np.testing.assert_allclose(value, p.mean(elbo(p, d, mean, root @ np.swapaxes(root, 1, 2), bound)), rtol=EXACT)
    parts, rng, h = [*d, mean, root], np.random.default_rng(5), 1e-5
    for i, part in enumerate(parts):
        direction = rng.normal(size=part.shape)
        if i == 4:
            direction = np.tril(direction)
        ends = []
        for s in (h, -h):
            moved = [a + s * direction if j == i else a for j, a in enumerate(parts)]
            ends.append(elbo_and_gradient(p, Decoder(*moved[:3]), *moved[3:], bound)[0])
        along = np.sum(gradient[i] * direction)
        np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * h), atol=DIFFERENCE, rtol=DIFFERENCE)
        assert abs(along) > 1e-3 * np.linalg.norm(gradient[i]) > 0  # not 0 = 0


def test_kl_divergence_is_an_integral():
    mean, variance = np.array([[0.7]]), np.array([[[0.4]]])
    q, prior = scipy.stats.norm(0.7, np.sqrt(0.4)), scipy.stats.norm()
    value = scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - prior.logpdf(z)), -8, 8, epsabs=1e-12)[0]
    np.testing.assert_allclose(kl_divergence(mean, variance), [value], rtol=1e-10)
    # Independent units add; a rotation of both changes nothing, a rotation of one does.
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    m, s = np.array([[0.7, -1.0]]), np.diag([0.4, 2.0])
    both = kl_divergence(m, s)
    np.testing.assert_allclose(both, value + kl_divergence(np.array([[-1.0]]), np.array([[2.0]])), rtol=1e-10)
    np.testing.assert_allclose(kl_divergence(m @ turn.T, turn @ s @ turn.T), both, rtol=EXACT)
    tilted = np.array([[0.4, 0.3], [0.3, 2.0]])
    assert kl_divergence(m, tilted)[0] > both[0] + 1e-3
    assert kl_divergence(np.zeros((3, 0)), np.zeros((0, 0))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_elbo_is_below_the_log_likelihood_and_the_best_posterior_brings_it_nearer(name):
    p, d, mean, root = example(name, units=1, fields=FIELDS, beta=1.0)
    below, above = elbo(p, d, mean, root**2), log_likelihood(p, d)
    assert np.all(below < above)
    np.testing.assert_allclose(log_likelihood(p, d, nodes=901), above, rtol=EXACT)  # the quadrature is done
    q = best_posterior(p, d)
    best = elbo(p, d, *q)
    assert np.all((best >= below) & (best <= above + 1e-11))
    if name == "gaussian":
        np.testing.assert_allclose(best, above, rtol=1e-11)
    else:
        assert np.max(above - best) > 1e-5
    # A weight of less than 1 on the KL divergence is no bound
    assert np.any(elbo(p._replace(beta=0.01), d, *best_posterior(p._replace(beta=0.01), d)) > above)


def test_the_quadratic_is_exact_for_gaussian_alone():
    for name in ("gaussian", "poisson", "gamma"):
        p, d, mean, root = example(name, fields=FIELDS)
        s = root @ np.swapaxes(root, 1, 2)
        gap = np.abs(elbo(p, d, mean, s, quadratic(0.4)) - elbo(p, d, mean, s)).max()
        assert gap < 1e-11 if name == "gaussian" else gap > 1e-2
        # At its own point, and without spread, it touches.
        point = np.zeros_like(s)
        eta = predictor(p, d, mean, point)[0]
        touched = quadratic(eta)(p, eta, 0 * eta)[0]
        np.testing.assert_allclose(touched, p.family.log_prob(p.x, eta, p.phi), rtol=EXACT)


@pytest.mark.parametrize("name", LOGISTIC)
def test_jaakkola_is_a_bound_and_the_entry_wise_one_the_tightest(name):
    p, d, mean, root = example(name, fields=FIELDS)
    s = root @ np.swapaxes(root, 1, 2)
    m, v = predictor(p, d, mean, s)
    by_column, by_entry, true = (
        np.where(p.missing, 0.0, b(p, m, v)[0]) for b in (jaakkola_column, jaakkola_entry, exact)
    )
    assert np.all(by_column <= by_entry + EXACT)
    assert np.all(by_entry <= true + 1e-11)
    assert p.mean((by_entry - by_column).sum(axis=1)) > 1e-4
    # xi^2 = E t^2 is the best an entry: any other is lower.
    square = p.family.scale**2 * (m**2 + v)
    for factor in (0.5, 2.0):
        assert np.all(jaakkola(p, m, v, factor * square)[0] < jaakkola_entry(p, m, v)[0])


# Row fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binomial", "mixed", "poisson", "gaussian"])
def test_row_fields_mean_what_they_say(name):
    p, d, mean, root = example(name, fields=("offset", "missing"))
    s = root @ np.swapaxes(root, 1, 2)
    plain = elbo(p._replace(missing=np.zeros_like(p.missing)), d, mean, s)
    # an entry that is missing is left out of the sum over columns, whatever stands there
    value = np.where(p.missing, 0.0, exact(p, *predictor(p, d, mean, s))[0])
    np.testing.assert_allclose(elbo(p, d, mean, s), value.sum(axis=1) - p.beta * kl_divergence(mean, s), rtol=EXACT)
    assert np.abs(plain - elbo(p, d, mean, s)).max() > 1e-2
    nan = problem(
        np.where(p.missing, np.nan, p.x), p.family, beta=p.beta, phi=p.phi, offset=p.offset, missing=p.missing
    )
    np.testing.assert_array_equal(elbo(nan, d, mean, s), elbo(p, d, mean, s))
    # an offset of a constant a column is the intercept's
    moved = problem(p.x, p.family, beta=p.beta, phi=p.phi, offset=np.arange(4.0), missing=p.missing)
    there = d._replace(intercept=d.intercept + np.arange(4.0))
    np.testing.assert_allclose(
        elbo(moved, d, mean, s), elbo(moved._replace(offset=0 * p.x), there, mean, s), rtol=EXACT
    )
    # one a row is that of every column
    a_row = problem(p.x, p.family, beta=p.beta, phi=p.phi, offset=np.arange(6.0) / 6)
    each = problem(p.x, p.family, beta=p.beta, phi=p.phi, offset=np.arange(6.0)[:, None] / 6 + np.zeros(4))
    np.testing.assert_array_equal(a_row.offset, each.offset)
    # a row is alone what it is among others
    for i in (0, 4):
        one = elbo(p.row(i), d, mean[i : i + 1], s[i : i + 1])
        np.testing.assert_allclose(one, elbo(p, d, mean, s)[i : i + 1], rtol=EXACT)


def test_trials_an_entry():
    p, d, mean, root = example("binomial", fields=("trials",))
    s = root @ np.swapaxes(root, 1, 2)
    got = elbo(p, d, mean, s)
    for i in range(6):
        row = p.row(i)
        by_hand = problem(row.x, Binomial(p.family.trials[i]), beta=p.beta)
        np.testing.assert_allclose(elbo(by_hand, d, mean[i : i + 1], s[i : i + 1]), got[i : i + 1], rtol=EXACT)
    assert np.abs(got - elbo(p._replace(family=Binomial(5.0)), d, mean, s)).max() > 1e-2
    # none of an entry: the entry is missing
    n = np.array(p.family.trials)
    n[2, 1] = 0
    none = problem(np.where(n == 0, 0.0, p.x), Binomial(), beta=p.beta, trials=n)
    hidden = p._replace(missing=n == 0)
    np.testing.assert_allclose(elbo(none, d, mean, s), elbo(hidden, d, mean, s), rtol=EXACT)
    assert elbo(none, d, mean, s)[2] > got[2]
