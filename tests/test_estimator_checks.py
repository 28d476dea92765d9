"""scikit-learn's own checks of the estimator, all of them."""

import jax
import pytest
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from glmvae.estimator import AffineVAE

pytestmark = pytest.mark.any_precision

#: The last hands over NaN to what says that it takes it.
NOT_ALONE = ["check_methods_subset_invariance", "check_methods_sample_order_invariance", "check_estimators_pickle"]
# What scikit-learn's checks hand over and a Bernoulli column refuses: values that are not between 0 and 1.
NOT_BINARY = {
    name: "its data are not between 0 and 1, the support of Bernoulli()"
    for name in [
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_1feature",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_readonly_memmap_input",
        "check_sample_weights_not_an_array",
        "check_sample_weights_not_overwritten",
        "check_sample_weights_pandas_series",
        "check_sample_weights_shape",
        "check_transformer_data_not_an_array",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
    ]
}


def failures(estimator, **options):
    results = check_estimator(estimator, on_fail=None, on_skip=None, **options)
    assert len(results) > 50
    return [f"{r['check_name']}: {r['exception']}" for r in results if r["status"] == "failed"], results


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
@pytest.mark.filterwarnings("ignore")
def test_it_passes_every_check_of_scikit_learn(family):
    with jax.enable_x64(False):  # JAX as it comes
        failed, _ = failures(AffineVAE(family=family))
    assert not failed


@pytest.mark.filterwarnings("ignore")
def test_of_bernoulli_only_checks_with_other_data_fail():
    with jax.enable_x64(False):
        failed, results = failures(AffineVAE(family="bernoulli"), expected_failed_checks=NOT_BINARY)
    assert not failed
    expected = [r for r in results if r["status"] == "xfail"]
    assert {r["check_name"] for r in expected} == set(NOT_BINARY)
    refused = ["Bernoulli()" in str(r["exception"]) or "sample_weight" in str(r["exception"]) for r in expected]
    assert all(refused)


@pytest.mark.parametrize("method", ["exact", "tightened"])
def test_a_row_has_its_scores_whatever_rows_stand_beside_it(method):
    """Of the methods that take rounds, the check that they could fail; all pass, and take minutes with ``"exact"``."""
    with jax.enable_x64(True):
        estimator = AffineVAE(method=method, tolerance=1e-2)
        found = [c for _, c in estimator_checks_generator(estimator) if c.func.__name__ in NOT_ALONE]
        assert {check.func.__name__ for check in found} == {*NOT_ALONE}
        for check in found:
            check(estimator)
