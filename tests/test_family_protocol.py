"""What every family promises whatever its mathematics: one scale, values that compare, capabilities, members."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from family_cases import CASES, probit

from glmvae import Rows, moments
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
from glmvae.families.softplus_calculus import softplus

# A few dozen rounding units of values of order one.
RELATIVE = {"float64": 1e-12, "float32": 1e-5}

MAKERS = {
    "Gaussian": Gaussian,
    "Bernoulli": Bernoulli,
    "Binomial": functools.partial(Binomial, 40.0),
    "Poisson": Poisson,
    "Gamma": Gamma,
    "NegativeBinomial": functools.partial(NegativeBinomial, 3.0),
    "CustomFamily": functools.partial(CustomFamily, softplus, activation=probit),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
BUILT_IN = [Gaussian(), Bernoulli(), Binomial(40.0), Poisson(), Gamma(), Exponential(), NegativeBinomial(3.0)]


# The scale ------------------------------------------------------------------------------------------------------


@jax.jit
def everything(family, x, eta, variance, phi):
    """Every method that a scale enters, and what the scale makes of the result."""
    value, gradient, weight = family.expected_terms(x, eta, variance, phi)
    results = {
        "natural_parameter": family.natural_parameter(eta),
        "mean": family.mean(eta),
        "variance_function": family.variance_function(eta),
        "log_prob": family.log_prob(x, eta, phi),
        "value": value,
        "rounding_size": family.rounding_size(x, eta, variance, phi),
        "expansion_constant": family.expansion_constant(x, 0.5, family.base_statistic(x), eta, phi),
        "sample": family.sample(jax.random.key(0), eta, phi) if not isinstance(family, CustomFamily) else eta * 0,
    }
    if family.has_remainder:
        results["remainder"] = family.remainder(eta + 0.25 * eta**2, eta, x, phi)
        results["expected_remainder"] = family.expected_remainder(eta + 0.25 * eta**2, variance, eta, x, phi)
    once = {
        "gradient": gradient,
        "mean_derivative": family.mean_derivative(eta),
        "natural_parameter_derivative": family.natural_parameter_derivative(eta),
        "inverse link": 1 / family.link(family.mean(eta)),
    }
    return results, once, {"weight": weight}


@every_maker
def test_a_scale_is_applied_once_and_everywhere(make, dtype):
    rho = -0.5
    x, eta = jnp.asarray([1.0, 0.5, 1.0], dtype), jnp.asarray([-1.0, 0.5, 2.0], dtype)
    variance, phi = jnp.asarray([0.0, 0.3, 1.0], dtype), jnp.asarray(0.8, dtype)
    scaled = everything(make(activation_scale=rho), x, eta, variance, phi)
    plain = everything(make(), x, rho * eta, rho**2 * variance, phi)
    # the step of the remainder is one in t
    plain[0].pop("remainder", None), plain[0].pop("expected_remainder", None)
    if "remainder" in scaled[0]:
        ahead = rho * (eta + 0.25 * eta**2)
        family = make()
        plain[0]["remainder"] = jax.jit(type(family).remainder)(family, ahead, rho * eta, x, phi)
        spread = rho**2 * variance
        plain[0]["expected_remainder"] = jax.jit(type(family).expected_remainder)(
            family, ahead, spread, rho * eta, x, phi
        )
    tolerance = RELATIVE[dtype.name]
    for power, (got, expected) in enumerate(zip(scaled, plain, strict=True)):
        assert got.keys() == expected.keys()
        for name in got:
            for g, e in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected[name]), strict=True):
                np.testing.assert_allclose(g, rho**power * e, rtol=tolerance, atol=tolerance, err_msg=name)
    assert np.max(np.abs(scaled[1]["gradient"] - plain[1]["gradient"])) > 0.1  # a rho dropped


def test_methods_may_call_each_other_and_their_parents(dtype):
    class Shifted(Poisson):
        def mean(self, eta):
            return super().mean(eta) + 0 * self.natural_parameter(eta)

        def log_prob(self, x, eta, dispersion=1.0):
            return super().log_prob(x, jnp.log(self.mean(eta)), dispersion)

    eta, x = jnp.asarray([0.3, -0.4], dtype), jnp.asarray([2.0, 1.0], dtype)
    for name, values in (("mean", (eta,)), ("log_prob", (x, eta))):
        got = getattr(Shifted(activation_scale=3.0), name)(*values)
        np.testing.assert_allclose(
            got, getattr(Poisson(activation_scale=3.0), name)(*values), rtol=RELATIVE[dtype.name]
        )


# Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@every_maker
def test_families_are_equal_by_value(make):
    assert make() == make()
    assert make() == jax.tree.map(lambda leaf: leaf, make())
    assert make() != make(activation_scale=2.0)
    assert make() != "family"
    assert hash(make()) == hash(make())


@pytest.mark.any_precision
def test_equality_of_parameters():
    assert Binomial(3) == Binomial(3.0)
    assert Binomial(3) != Binomial(4)
    assert Binomial([1.0, 2.0]) == Binomial(np.array([1.0, 2.0]))
    assert Binomial([1.0, 2.0]) != Binomial([1.0, 3.0])
    assert Binomial([1.0, 1.0]) != Binomial(1.0)
    assert Bernoulli() != Binomial(1.0)
    assert Gamma() != Exponential()
    assert Mixed([(Bernoulli(), [0]), (Poisson(), [1])]) == Mixed([(Bernoulli(), [0]), (Poisson(), [1])])
    assert Mixed([(Bernoulli(), [0]), (Poisson(), [1])]) != Mixed([(Bernoulli(), [1]), (Poisson(), [0])])
    assert CustomFamily(jnp.exp) != CustomFamily(jnp.expm1)

    def traced(scale):
        assert Bernoulli(activation_scale=scale) != Bernoulli()  # not known to be
        return scale

    jax.jit(traced)(1.0)


def constant_measure(x, dispersion):
    return -0.5 * jnp.log(2 * jnp.pi * dispersion)


def limited():
    """Limits of two columns, made afresh, and a K that no x changes."""
    return CustomFamily(square, constant_measure, limits=Support(np.array([-50.0, -60.0]), jnp.array([50.0, 60.0])))


@pytest.mark.any_precision
def test_limits_a_column_are_equal_by_value():
    assert limited() == limited()
    assert hash(limited()) == hash(limited())
    assert limited() != CustomFamily(square, constant_measure, limits=Support(-50.0, [50.0, 60.0]))
    limited().validate([[50.0, 60.0]])
    with pytest.raises(ValueError, match=r"x: .*55 at \[0, 0\]"):
        limited().validate([[55.0, 55.0]])
    seen = []

    @jax.jit
    def program(family):
        seen.append(family)
        return family.activation_scale

    assert program(limited()) == program(limited()) == 1.0
    assert len(seen) == 1


@pytest.mark.any_precision
def test_a_base_measure_may_leave_x_out():
    x = np.random.default_rng(0).normal(size=(5, 2))
    family, K = limited(), -0.5 * np.log(2 * np.pi)
    data = moments(x, family=family)
    np.testing.assert_allclose(data.base_statistic, np.full(2, K), rtol=1e-6)
    np.testing.assert_allclose(family.log_base_measure(x, 2.0), np.full((5, 2), K - 0.5 * np.log(2)), rtol=1e-6)
    trials = Rows(x > 0, trials=np.full((1, 2), 3.0))  # beside rows that are looked at one by one
    both = Mixed([(family, [0, 1]), (Binomial(None), [2, 3])])
    wide = Rows(np.concatenate([x, trials.x], axis=1), trials=np.ones((1, 4)))
    np.testing.assert_allclose(moments(wide, family=both).base_statistic, [K, K, 0.0, 0.0], rtol=1e-6, atol=1e-12)


@pytest.mark.any_precision
def test_a_family_that_holds_arrays_says_why_it_has_no_hash():
    with pytest.raises(TypeError, match=r"Binomial\(trials=.*holds arrays and cannot be hashed"):
        hash(Binomial([1.0, 2.0]))


@pytest.mark.any_precision
def test_a_subclass_is_a_pytree_by_itself():
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class Zeroed(Poisson):
        share: float = 0.5
        label: str = "zeros"

        static = ("label",)

    family = Zeroed(0.25, label="more")
    leaves, structure = jax.tree.flatten(family)
    assert leaves == [1.0, 0.25]
    assert jax.tree.unflatten(structure, leaves) == family
    assert jax.jit(lambda f: f.share * 2)(family) == 0.5


# Members and rows -----------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_by_member_joins_what_each_member_returns():
    inner = Mixed([(Gaussian(), [1]), (Poisson(), [0])])
    family = Mixed([(inner, [3, 1]), (Bernoulli(), [0, 2])])
    x = jnp.arange(8.0).reshape(2, 4)

    def names(member, rows, scale, nothing, pair):
        assert nothing is None
        assert not isinstance(member, Mixed)
        return {"x": rows * scale, "kind": jnp.float32(member.is_logistic), "sum": pair[0] + pair[1]}

    joined = family.by_member(names, x, 2.0, None, (x, jnp.ones((1, 4))))
    np.testing.assert_array_equal(joined["x"], 2 * x)
    np.testing.assert_array_equal(joined["kind"], [1, 0, 1, 0])
    np.testing.assert_array_equal(joined["sum"], x + 1)
    assert Poisson().by_member(lambda f, v: (f, v), 3) == (Poisson(), 3)


@pytest.mark.any_precision
def test_trials_come_from_the_rows_or_from_the_family():
    rows, none = SimpleNamespace(trials=jnp.asarray([[3.0, 20.0], [4.0, 0.0]])), SimpleNamespace(trials=None)
    family = Binomial(None).for_rows(rows)
    x, eta = jnp.asarray([[1.0, 12.0], [4.0, 0.0]]), jnp.asarray([0.5, -0.5])
    expected = scipy.stats.binom(np.asarray(rows.trials, int), scipy.special.expit(eta)).logpmf(x)
    assert expected[1, 1] == 0.0  # no trial, no information
    got = jax.jit(lambda trials: Binomial(None).for_rows(SimpleNamespace(trials=trials)).log_prob(x, eta))(rows.trials)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert family.columns is None
    assert bool(jnp.all(family.support.contains(x)))
    mixed = Mixed([(Binomial(None), [1]), (Poisson(), [0])]).for_rows(rows)
    np.testing.assert_allclose(mixed.mean(jnp.zeros(2)), [[1.0, 10.0], [1.0, 0.0]])
    for f in (Binomial(None), Mixed([(Binomial(None), [1]), (Poisson(), [0])])):
        with pytest.raises(ValueError, match=r"trials: Binomial\(trials=None\) takes them from the rows.*got none"):
            f.for_rows(none)
    for f in (Poisson(), Binomial(4.0), Mixed([(Bernoulli(), [0]), (Poisson(), [1])])):
        assert f.for_rows(none) is f
        with pytest.raises(ValueError, match=r"trials: .* takes none from the rows"):
            f.for_rows(rows)
    with pytest.raises(ValueError, match=r"trials: Binomial\(trials=None\) takes them from the rows"):
        Binomial(None).mean(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"trials: expected a scalar.*got shape \(2, 2\).*Binomial\(None\) and Rows"):
        Binomial(rows.trials)


# A link beyond every bracket ------------------------------------------------------------------------------------


def square(theta):
    return 0.5 * theta**2


def test_the_link_of_a_custom_family_far_out(dtype):
    family = CustomFamily(square)
    mean = jnp.asarray([5000.0, -5000.0, 1e-6, 1e30, 0.0], dtype)
    np.testing.assert_allclose(family.link(mean), mean, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-20)
    np.testing.assert_allclose(jax.grad(family.link)(mean[0]), 1.0)
    counts = CustomFamily(jnp.exp, limits=Support(0.0), activation_scale=2.0)
    rate = jnp.asarray([1e30, 1e-30, 5.0], dtype)
    np.testing.assert_allclose(counts.link(rate), np.log(np.asarray(rate, float)) / 2, rtol=RELATIVE[dtype.name])
    assert np.all(np.isneginf(counts.link(jnp.zeros(2, dtype))))
    assert float(CustomFamily(softplus, activation_scale=-1.0).link(jnp.ones((), dtype))) == -np.inf


def test_derivatives_of_a_link_are_those_of_the_implicit_function(dtype):
    tolerance = 100 * RELATIVE[dtype.name]
    p = jnp.asarray(0.3, dtype)
    link = CustomFamily(softplus).link
    slope, bend = jax.jit(jax.grad(link))(p), jax.jit(jax.grad(jax.grad(link)))(p)
    np.testing.assert_allclose(slope, 1 / 0.21, rtol=tolerance)
    np.testing.assert_allclose(bend, -1 / 0.09 + 1 / 0.49, rtol=tolerance)
    by_scale = jax.grad(lambda rho: CustomFamily(softplus, activation_scale=rho).link(p))(jnp.asarray(2.0, dtype))
    np.testing.assert_allclose(by_scale, -scipy.special.logit(0.3) / 4, rtol=tolerance)


@pytest.mark.any_precision
def test_the_cases_of_the_other_tests_cover_all_families():
    assert {type(case.family).__name__ for case in CASES.values()} | {"Gamma", "Exponential", "NegativeBinomial"} == {
        "Gaussian",
        "Bernoulli",
        "Binomial",
        "Poisson",
        "CustomFamily",
        "Gamma",
        "Exponential",
        "NegativeBinomial",
    }
