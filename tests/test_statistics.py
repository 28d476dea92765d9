"""Moments against NumPy in float64: weighted, merged, batched, sharded, and where float32 has few digits to spare."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_families import Binomial as DenseBinomial
from dense_reference import MODELS, OTHERS, draw
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from glmvae import Moments, Rows, fit, merge, moments
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, NegativeBinomial, Poisson
from glmvae.statistics import as_moments

# Sums of up to 2500 products of size one: a few rounding units times the square root of their number.
RTOL = {"float64": 1e-13, "float32": 1e-5}
# Mean 100, standard deviation 0.5: what the docstring of moments promises in float32.
DWARFED = 1e-5


def reference(x, weights=None):
    x = np.asarray(x, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    mean = w @ x / w.sum()
    return w.sum(), mean, (x - mean).T @ ((x - mean) * w[:, None]) / w.sum()


def assert_moments(result, x, weights=None, rtol=None):
    count, mean, covariance = reference(x, weights)
    rtol = RTOL[str(result.mean.dtype)] if rtol is None else rtol
    np.testing.assert_allclose(result.count, count, rtol=rtol)
    np.testing.assert_allclose(result.mean, mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(result.covariance, covariance, rtol=rtol, atol=rtol * np.abs(covariance).max())


def normal(rows, columns, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + rng.normal(size=columns)).astype(
        dtype
    )


def assert_no_eigenvalue_below_rounding(covariance):
    covariance = np.asarray(covariance, np.float64)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] >= -4 * len(values) * np.finfo(np.float32).eps * values[-1], values


# Rows in any number, order, weight and source --------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 3), (2, 3), (9, 3), (1023, 1), (1025, 3), (2500, 3), (300, 250)], ids=str
)
def test_equal_to_numpy_on_either_side_of_a_block(rows, columns, dtype):
    x = normal(rows, columns, dtype)
    result = moments(x)
    assert_moments(result, x)
    assert result.mean.dtype == result.covariance.dtype == result.count.dtype == dtype
    np.testing.assert_array_equal(result.covariance, result.covariance.T)


@pytest.mark.parametrize("rows", [9, 2500])
def test_weights(rows, dtype):
    x = normal(rows, 3, dtype)
    weights = np.random.default_rng(1).gamma(1.0, size=rows).astype(dtype)
    result = moments(Rows(x, weight=weights))
    assert_moments(result, x, weights)
    unweighted = moments(x)
    assert np.abs(result.covariance - unweighted.covariance).max() > 100 * RTOL[str(dtype)]  # they do matter


def test_whole_weights_repeat_rows(dtype):
    x = normal(50, 3, dtype)
    weights = np.random.default_rng(2).integers(0, 4, size=50)
    assert_moments(moments(Rows(x, weight=weights)), np.repeat(x, weights, axis=0))


def test_rows_of_weight_nought_never_count(dtype):
    """First, last, a whole block of them, and however far off: nothing is said of the data by them."""
    x = normal(1100, 3, dtype)
    weight = np.random.default_rng(3).gamma(2.0, size=1100).astype(dtype)
    for out in (slice(0, 2), slice(1098, 1100), slice(0, 1030)):
        far, w = x.copy(), weight.copy()
        far[out], w[out] = -99999.0, 0.0
        result = moments(Rows(far, weight=w))
        assert_moments(result, far, w)
        assert_no_eigenvalue_below_rounding(result.covariance)
    with pytest.raises(AssertionError):
        assert_moments(moments(far), far, w)


@pytest.mark.any_precision
def test_the_covariance_divides_by_the_number_of_rows(dtype):
    x = normal(9, 2, dtype)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(moments(x).covariance, np.cov(x, rowvar=False, bias=True), rtol=rtol, atol=rtol)
    assert not np.allclose(moments(x).covariance, np.cov(x, rowvar=False), rtol=1e-2)  # N - 1 is another matrix


@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(4)), weighted=st.booleans(), far=st.booleans())
def test_merged_in_any_order_equals_at_once(seed, order, weighted, far, dtype):
    x = normal(100, 3, dtype, seed) + (50.0 if far else 0.0)
    x = x.astype(dtype)
    family = Gaussian()
    w = np.random.default_rng(seed).gamma(2.0, size=100).astype(dtype) if weighted else None

    def rows(cut):
        return Rows(x[cut], weight=None if w is None else w[cut])

    parts = [moments(rows(slice(25 * i, 25 * i + 25)), family=family) for i in order]
    whole = moments(rows(slice(None)), family=family)
    chain = merge(merge(merge(parts[0], parts[1]), parts[2]), parts[3])
    tree = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
    for merged in (chain, tree):
        assert_moments(merged, x, w)
        assert merged.family == family
        np.testing.assert_allclose(merged.base_statistic, whole.base_statistic, rtol=4 * RTOL[str(dtype)])


def test_merging_without_the_gap_between_the_means_would_be_noticed(dtype):
    x = np.concatenate([normal(25, 3, dtype), normal(25, 3, dtype) + 3]).astype(dtype)
    a, b = moments(x[:25]), moments(x[25:])
    wrong = Moments(a.count + b.count, (a.mean + b.mean) / 2, (a.covariance + b.covariance) / 2)
    with pytest.raises(AssertionError):
        assert_moments(wrong, x)
    assert_moments(merge(a, b), x)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_from_an_iterator_and_from_a_function(weighted, dtype):
    x = normal(100, 3, dtype)
    w = np.random.default_rng(3).gamma(2.0, size=100).astype(dtype) if weighted else None
    cuts = [slice(0, 50), slice(50, 51), slice(51, 100)]
    batches = [x[c] if w is None else Rows(x[c], weight=w[c]) for c in cuts]
    assert_moments(moments(batch for batch in batches), x, w)
    assert_moments(moments(lambda: iter(batches)), x, w)


@pytest.mark.any_precision
@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float16", "fortran", "memmap", "strided", "jax"])
def test_whatever_holds_the_numbers(kind, dtype, tmp_path):
    x = np.random.default_rng(5).integers(0, 2 if kind == "bool" else 200, size=(100, 3))
    held = x.astype(kind) if kind in ("uint8", "int64", "bool", "float16") else x.astype(dtype)
    if kind == "fortran":
        held = np.asfortranarray(held)
    elif kind == "strided":
        held = np.repeat(held, 2, axis=1)[:, ::2]
    elif kind == "jax":
        held = jnp.asarray(held)
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", held)
        held = np.load(tmp_path / "x.npy", mmap_mode="r")
    result = moments(held)
    assert result.mean.dtype == (jnp.result_type(float) if held.dtype.kind != "f" or kind == "float16" else dtype)
    assert_moments(result, x)


# Digits ----------------------------------------------------------------------------------------------------


def test_float32_keeps_its_digits_when_the_mean_dwarfs_the_spread():
    x = (100 + 0.5 * np.random.default_rng(6).normal(size=(2500, 3))).astype("float32")
    exact = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    scale = np.abs(exact).max()
    error = np.abs(np.asarray(moments(x).covariance, np.float64) - exact).max() / scale
    assert error < DWARFED
    batched = moments(iter([x[:800], x[800:1600], x[1600:]]))
    assert np.abs(np.asarray(batched.covariance, np.float64) - exact).max() / scale < DWARFED
    # The sum of squares less the square of the sum, in float32, loses nearly everything.
    mean = x.mean(axis=0, dtype=np.float32)
    one_pass = x.T @ x / np.float32(len(x)) - np.outer(mean, mean)
    assert np.abs(one_pass - exact).max() / scale > 100 * DWARFED


def test_no_first_block_is_trusted():
    """Rows sorted by their level: a shift by what comes first would lose all digits of what comes later."""
    rng = np.random.default_rng(7)
    x = (1000 + 0.5 * rng.normal(size=(20_000, 2))).astype("float32")
    x[:2000] = 0.0
    for weight in (None, np.r_[np.zeros(2000), np.ones(18_000)]):
        result = moments(Rows(x, weight=weight))
        assert_moments(result, x, weight)
        assert_no_eigenvalue_below_rounding(result.covariance)


def test_columns_of_very_different_scale():
    """Every entry is good to rounding beside the standard deviations of its own two columns."""
    scales = np.array([5e4, 10.0, 1.0])
    x = (np.random.default_rng(8).normal(size=(2500, 3)) * scales).astype("float32")
    error = np.asarray(moments(x).covariance, np.float64) - np.cov(x.astype(np.float64), rowvar=False, bias=True)
    assert np.abs(error / np.outer(scales, scales)).max() < RTOL["float32"]


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("base", "spread", "kind"),
    [
        (1.7e9, 1.0, "float64"),
        (-1e7, 0.3, "float64"),
        (1e8, 0.3, "float64"),
        (1_700_000_000, 30, "int64"),
        (2**30, 9, "int32"),
    ],
)
def test_float64_is_centred_before_it_is_cast(base, spread, kind):
    rng = np.random.default_rng(9)
    x = np.column_stack([base + spread * rng.normal(size=2500), rng.integers(0, 9, 2500)]).astype(kind)
    x[7] = 0  # one row that is far off does not spoil it, where it does not count
    weight = np.ones(2500)
    weight[7] = 0
    with jax.enable_x64(False):
        result = moments(Rows(x, weight=weight))
        batched = moments(iter([Rows(x[:100], weight=weight[:100]), x[100:]]))
    assert result.mean.dtype == np.float32
    for found in (result, batched):
        assert_moments(found, x, weight, rtol=1e-5)
    cast = moments(Rows(x.astype("float32"), weight=weight))
    with pytest.raises(AssertionError):  # what the cast leaves
        assert_moments(cast, x, weight, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4 / 3])
@pytest.mark.parametrize("rows", [1, 9, 1025])
def test_a_constant_column_has_variance_nought(value, rows, dtype):
    x = normal(rows, 3, dtype)
    x[:, 1] = value
    result = moments(x)
    assert result.mean[1] == x[0, 1]
    np.testing.assert_array_equal(result.covariance[1], 0.0)


@pytest.mark.any_precision
@pytest.mark.parametrize(("scale", "what"), [(1e-22, "underflows"), (1e-17, "underflows"), (1e25, "overflows")])
def test_a_covariance_that_float32_cannot_hold_is_refused(scale, what, dtype):
    x = normal(25, 3, "float32")
    x[:, 2] *= np.float32(scale)
    for call in (lambda: moments(x), lambda: moments(iter([x])), lambda: fit(x, Gaussian(), 1)):
        with pytest.raises(ValueError, match=rf"x: the covariance {what} in float32; rescale .*column 2"):
            call()
    with pytest.raises(ValueError, match="the covariance overflows in float32; rescale"):  # their sum, in an eigenvalue
        fit(np.float32(1.2e19) * normal(25, 3, "float32"), Gaussian(), 1)
    x[:, 2] = np.float32(scale)  # a constant is no spread
    if what == "underflows":
        assert moments(x).covariance[2, 2] == 0
    with jax.enable_x64(True):
        assert_moments(moments(1e-22 * normal(25, 3, "float64")), 1e-22 * normal(25, 3, "float64"), rtol=1e-13)


# What goes with a family -----------------------------------------------------------------------------------


STATISTICS = {
    "gaussian": (Gaussian(), lambda x: x**2),
    "bernoulli": (Bernoulli(), lambda x: 0 * x),
    "binomial": (Binomial(9), DenseBinomial(9.0).log_base_measure),
    "mixed": (
        Mixed([(Poisson(), [0, 2]), (Bernoulli(), [1])]),
        lambda x: MODELS["poisson"].log_base_measure(x) * [1, 0, 1],
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_base_statistic_is_its_mean_over_rows(name, weighted, dtype):
    (family, statistic), rows = STATISTICS[name], 50
    x = np.random.default_rng(4).binomial(9, 0.3, size=(rows, 3)).astype(dtype)
    x[:, 1] = np.minimum(x[:, 1], 1.0)
    x = np.minimum(x, 1.0) if name == "bernoulli" else x
    w = np.random.default_rng(5).gamma(2.0, size=rows).astype(dtype) if weighted else None
    expected = np.average(statistic(x.astype(np.float64)), axis=0, weights=w)
    result = moments(Rows(x, weight=w), family=family)
    np.testing.assert_allclose(result.base_statistic, expected, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    assert result.family == family
    assert moments(x).base_statistic is None
    assert merge(result, moments(x)).base_statistic is None
    assert merge(result, moments(x)).family is None


def joint_reference(x, covariates, weights):
    _, mean, covariance = reference(np.column_stack([x, covariates]), weights)
    d = x.shape[1]
    return mean[d:], covariance[d:, d:], covariance[d:, :d]


@pytest.mark.parametrize("weighted", [False, True])
def test_covariates_beside_x(weighted, dtype):
    x, rng = normal(100, 3, dtype), np.random.default_rng(11)
    c = (rng.normal(size=(100, 2)) + x[:, :1]).astype(dtype)
    w = rng.gamma(2.0, size=100).astype(dtype) if weighted else None
    result = moments(Rows(x, covariates=c, weight=w))
    assert_moments(result, x, w)
    halves = [
        moments(Rows(x[i], covariates=c[i], weight=None if w is None else w[i])) for i in np.split(np.arange(100), 2)
    ]
    for found in (result, merge(*halves)):
        for part, expected in zip(found.covariates, joint_reference(x, c, w), strict=True):
            np.testing.assert_allclose(part, expected, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    with pytest.raises(ValueError, match="b: expected 2 covariates as in a, got 0"):
        merge(result, moments(x))


# x theta(o) - F(theta(o)) and mu(o), written out for the families that have a closed form with an offset
RESIDUALS = {
    "gaussian": (lambda x, o, n: x - o, lambda x, o, n: 0 * x),
    "bernoulli": (lambda x, o, n: x - expit(o), lambda x, o, n: x * o - np.logaddexp(0, o)),
    "bernoulli_tanh": (lambda x, o, n: x - expit(2 * o), lambda x, o, n: 2 * x * o - np.logaddexp(0, 2 * o)),
    "binomial": (lambda x, o, n: x - 5 * expit(o), lambda x, o, n: x * o - 5 * np.logaddexp(0, o)),
    "trials": (lambda x, o, n: x - n * expit(o), lambda x, o, n: x * o - n * np.logaddexp(0, o)),
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("trials", (40, 1)),
        *(pytest.param(name, (40, 4), marks=pytest.mark.float64) for name in RESIDUALS),
        *(pytest.param(*case, marks=pytest.mark.float64) for case in (("trials", None), ("bernoulli", (1, 4)))),
    ],
    ids=str,
)
def test_rows_with_an_offset_are_working_residuals(name, shape, dtype):
    rng = np.random.default_rng(12)
    model = DenseBinomial() if name == "trials" else MODELS[name]
    x, n = draw("bernoulli" if name == "trials" else name), rng.integers(1, 9, size=(40, 4)).astype(float)
    x = rng.binomial(n.astype(int), 0.4).astype(float) if name == "trials" else x
    family = Binomial(None) if name == "trials" else model.family
    o = None if shape is None else rng.normal(size=shape)
    rows = Rows(x.astype(dtype), offset=o, trials=n if name == "trials" else None)
    full = np.broadcast_to(0.0 if o is None else o, x.shape)
    residual, kernel = (f(x, full, n) for f in RESIDUALS[name])
    result = moments(rows, family=family)
    assert_moments(result, residual)
    np.testing.assert_allclose(result.at_offset, kernel.mean(axis=0), rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    statistic = model.with_trials(n) if name == "trials" else model
    if name != "gaussian":
        expected = statistic.log_base_measure(x).mean(axis=0)
        np.testing.assert_allclose(result.base_statistic, expected, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    if name == "trials":
        np.testing.assert_array_equal(result.trials, n.max(axis=0))
    else:
        assert result.trials is None
    halves = [rows.map(lambda leaf, i=i: leaf if len(leaf) == 1 else leaf[i]) for i in (slice(0, 20), slice(20, 40))]
    merged = merge(*(moments(half, family=family) for half in halves))
    np.testing.assert_allclose(merged.at_offset, result.at_offset, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
    assert_moments(merged, residual)
    with pytest.raises(ValueError, match=r"b: of a and b one is of rows with an offset or trials"):
        merge(result, result._replace(at_offset=None, trials=None))


@pytest.mark.any_precision
def test_in_a_mixed_family_each_column_has_its_own(dtype):
    rng = np.random.default_rng(13)
    n = rng.integers(1, 9, size=(30, 3)).astype(float)
    x = np.column_stack([rng.binomial(n[:, 0].astype(int), 0.4), rng.normal(size=30), rng.binomial(5, 0.4, size=30)])
    family = Mixed([(Binomial(None), [0]), (Gaussian(), [1]), (Binomial(5), [2])])
    o = rng.normal(size=(30, 3))
    result = moments(Rows(x.astype(dtype), trials=n, offset=o), family=family)
    assert_moments(result, x - np.column_stack([n[:, 0] * expit(o[:, 0]), o[:, 1], 5 * expit(o[:, 2])]))
    # without an offset a Poisson column may stand beside trials, as it is
    family = Mixed([(Binomial(None), [0]), (Gaussian(), [1]), (Poisson(), [2])])
    result = moments(Rows(x.astype(dtype), trials=n), family=family)
    assert_moments(result, x - np.column_stack([n[:, 0] / 2, 0 * x[:, 1:]]))
    with pytest.raises(ValueError, match=r"offset: Poisson has no closed form with an offset, .*`refine`"):
        moments(Rows(x.astype(dtype), trials=n, offset=o), family=family)


@pytest.mark.any_precision
@pytest.mark.parametrize("name", ["poisson", "gamma", "negative_binomial"])
def test_other_families_have_no_closed_form_with_an_offset(name, dtype):
    model, x = (MODELS | OTHERS)[name], draw(name).astype(dtype)
    with pytest.raises(ValueError, match=r"offset: .*has no closed form with an offset.*`refine`"):
        moments(Rows(x, offset=np.zeros(40)), family=model.family)


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: moments(x[:0]), r"x: .*at least one row"),
        (lambda x: moments(x[0]), r"x: .*2 dimensions"),
        (lambda x: moments(np.where(x == x[3, 1], np.nan, x)), r"x: .*finite.*nan at \[3, 1\]"),
        (lambda x: moments(np.where(x == x[3, 1], np.inf, x)), r"x: .*inf at \[3, 1\]"),
        (lambda x: moments(-np.abs(x), family=Poisson()), r"x: .*support.*\[0, 0\]"),
        (lambda x: moments(x, family=Binomial([1.0, 2.0])), r"x: expected 2 columns"),
        (lambda x: moments(iter([])), "at least one batch"),
        (lambda x: moments(iter([x, x[:, :2]])), "batch 1"),
        (lambda x: moments(iter([x, np.where(x == x[3, 1], np.nan, x)])), r"nan at \[13, 1\]"),
        (lambda x: moments(iter([Rows(x, covariates=x), x])), "x: expected every batch to bring .*covariates"),
        (lambda x: moments(iter([Rows(x, offset=x), x]), family=Gaussian()), "x: expected every batch to bring"),
        (lambda x: moments([x, x]), r"x: .*2 dimensions.*iter\(list\)"),
        (lambda x: moments(Rows(x, missing=x > 1)), "missing: .*`refine`"),
        (lambda x: moments(np.ma.masked_greater(x, 1)), "missing: .*`refine`"),
        (
            lambda x: moments(Rows(0 * x, trials=np.where(x > 1, 0, 2)), family=Binomial(None)),
            "missing: .*trial count of 0",
        ),
        (lambda x: moments(Rows(0 * x, trials=1 + 0 * x)), "trials: .*need the family"),
        (lambda x: moments(Rows(x, offset=x)), "offset: .*need the family"),
        (lambda x: moments(Rows(0 * x, trials=1 + 0 * x), family=Bernoulli()), "trials: .*takes none from the rows"),
        (lambda x: moments(0 * x, family=Binomial(None)), "has its trials from the rows"),
        (lambda x: moments(Rows(x, weight=np.full(10, 1e38, "float32"))), "weight: .*sum that float32 can hold"),
        (lambda x: merge(moments(x), moments(x[:, :2])), r"b: .*3 columns.*2"),
        (
            lambda x: merge(moments(x * 0, family=Poisson()), moments(x * 0, family=Bernoulli())),
            r"b: .*Poisson.*Bernoulli",
        ),
        (
            lambda x: merge(moments(x * 0, family=Binomial(3)), moments(x * 0, family=Binomial(4))),
            r"b: .*trials=3.*trials=4",
        ),
    ],
)
def test_errors_say_what_and_where(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(10, 3, "float32"))


@pytest.mark.any_precision
@pytest.mark.parametrize("bad", [[["a", "b"]], [[1.0], [1.0, 2.0]], np.ones((2, 2), complex), None, {"x": 1}])
def test_what_is_no_number_is_a_type_error(bad):
    with pytest.raises(TypeError, match="x: "):
        moments(bad)
    with pytest.raises(TypeError, match="a: expected Moments"):
        merge(bad, bad)


GOOD = {"count": 5.0, "mean": [0.2, 0.5], "covariance": [[0.1, 0.0], [0.0, 0.2]]}


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "family", "message"),
    [
        ({}, Bernoulli(), None),  # lists are numbers
        ({"mean": [[0.2, 0.5]]}, Bernoulli(), r"x.mean: expected shape \(d,\)"),
        ({"mean": [0.2, np.nan]}, Bernoulli(), r"x.mean: .*nan at \[1\]"),
        ({"covariance": np.eye(3)}, Bernoulli(), "x.covariance: expected 2 columns"),
        ({"covariance": [[0.1, 0.2], [0.0, 0.2]]}, Bernoulli(), r"x.covariance: .*symmetric.*\[0, 1\]"),
        ({"covariance": [[-0.1, 0.0], [0.0, 0.2]]}, Bernoulli(), r"x.covariance: .*\[0\]"),
        ({"base_statistic": [0.0]}, Bernoulli(), r"x.base_statistic: expected shape \(2,\)"),
        ({"base_statistic": [0.0, np.nan]}, Bernoulli(), r"x.base_statistic: .*nan at \[1\]"),
        ({"count": 0.0}, Bernoulli(), "x.count: .*got 0"),
        ({"mean": [0.2, 1.5]}, Bernoulli(), r"x.mean: .*support \[0, 1\] of Bernoulli\(\), got 1.5 in column 1"),
        ({"covariance": [[0.1, 0.0], [0.0, 0.4]]}, Bernoulli(), "x.covariance: .*got 0.4 in column 1"),
        ({"covariance": [[0.1, 0.0], [0.0, 0.4]]}, Poisson(), None),
        ({"mean": [-0.2, 1.5]}, Poisson(), "x.mean: .*support"),
        ({}, Binomial([1.0, 2.0, 3.0]), "x.mean: expected 3 columns"),
        ({}, Binomial(None), r"x: .*has its trials from the rows"),
        ({"family": Poisson()}, Bernoulli(), r"x: expected moments of Bernoulli\(\), got those of Poisson\(\)"),
        ({"family": Binomial(3)}, Binomial(4), "x: expected moments of .*trials=4.*trials=3"),
        ({"family": Binomial(3)}, Binomial(3), None),
        ({"family": "Poisson"}, Bernoulli(), "x.family: "),
    ],
)
def test_moments_made_by_hand_are_checked(change, family, message):
    data = Moments(**{**GOOD, **change})
    if message is None:
        assert np.isfinite(as_moments(data, family).mean).all()
        return
    with pytest.raises((ValueError, TypeError), match=message):
        as_moments(data, family)


# Transformations -------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_float32_stays_float32():
    x = normal(25, 3, np.float32)
    for family in (Gaussian(), Binomial(np.array([3.0, 4.0, 5.0])), Bernoulli()):
        result = moments(Rows(0 * x, weight=np.ones(25), covariates=x.astype("float64")), family=family)
        assert {leaf.dtype for leaf in jax.tree.leaves(result._replace(family=None))} == {np.dtype("float32")}


@pytest.mark.parametrize("weighted", [False, True])
def test_jit_vmap_and_eager_agree(weighted, dtype):
    x = jnp.asarray(normal(100, 3, dtype))
    w = jnp.asarray(np.random.default_rng(7).gamma(2.0, size=100).astype(dtype)) if weighted else None

    def bare(x, w):
        return moments(Rows(x, weight=w), family=Gaussian())._replace(family=None)

    eager, jitted = bare(x, w), jax.jit(bare)(x, w)
    mapped = jax.jit(jax.vmap(lambda x: bare(x, w)))(np.stack([x, 2 * x]))
    assert_moments(jitted, x, w)
    for a, b, c in zip(*(jax.tree.leaves(m) for m in (eager, jitted, mapped)), strict=True):
        np.testing.assert_allclose(b, a, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
        np.testing.assert_allclose(c[0], a, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])


def test_the_gradient_is_that_of_the_covariance(dtype):
    x = jnp.asarray(normal(9, 3, dtype))
    gradient = jax.jit(jax.grad(lambda x: moments(x).covariance[0, 1]))(x)
    centred = np.asarray(x - x.mean(axis=0))
    expected = np.column_stack([centred[:, 1], centred[:, 0], 0 * centred[:, 0]]) / 9
    np.testing.assert_allclose(gradient, expected, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])


def test_under_jit_bad_values_show_as_nan(dtype):
    x = jnp.asarray(normal(9, 3, dtype))
    assert np.isnan(jax.jit(moments)(x.at[3, 1].set(jnp.nan)).covariance[1, 1])
    outside = jax.jit(lambda x: moments(x, family=NegativeBinomial(2.0)).covariance)(jnp.abs(x).at[3, 1].set(-1.0))
    assert np.isnan(outside[1, 1])


@pytest.mark.any_precision
def test_pytree_round_trip():
    result = moments(normal(25, 3, "float32"), family=Gaussian())
    leaves, structure = jax.tree.flatten(result)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Moments)
    assert again.family == Gaussian()
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(result), strict=True))
    assert "25 rows, 3 columns" in repr(result)
    assert "Gaussian()" in repr(result)


SHARDED = """
import jax, numpy as np
jax.config.update("jax_enable_x64", {x64})
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from glmvae import moments
from glmvae.families import Gaussian
assert len(jax.devices()) == 2
mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
for rows in (100, 2500):
    x = np.random.default_rng(0).normal(size=(rows, 5)).astype("{dtype}") + 3
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    assert len(sharded.addressable_shards) == 2 and sharded.addressable_shards[0].data.shape[0] == rows // 2
    for a, b in zip(moments(x, family=Gaussian())[:4], moments(sharded, family=Gaussian())[:4]):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol={rtol}, atol={rtol})
print("same")
"""


@pytest.mark.any_precision
def test_rows_sharded_over_two_devices_give_the_same(dtype):
    code = SHARDED.format(x64=dtype == "float64", dtype=dtype, rtol=RTOL[str(dtype)])
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "same"
