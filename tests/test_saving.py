"""A model that was saved is the model that was loaded: bit for bit, or an error that says why not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from saving_cases import CUSTOM, FAMILIES, OWN, D, K, N, assert_same, fitted

import glmvae
from glmvae import Affine, AffineModel, Objective, Rows, best_posterior, elbo_exact, load, refine, save
from glmvae.families import Binomial, CustomFamily, Poisson, Support


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_loaded_is_what_was_saved(name, dtype, tmp_path):
    for latent_dim in (K, 0):
        optimum, _ = fitted(name, dtype, latent_dim)
        family = optimum.family if name in OWN else None
        for i, kept in enumerate((optimum, optimum.model)):
            save(tmp_path / f"{i}", kept)
            found = load(tmp_path / f"{i}", family=family)
            assert type(found) is type(kept)
            assert_same(kept, found)
            assert found.model.family == optimum.family
            assert repr(found) == repr(kept)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0", "1"]


def test_a_difference_of_one_bit_is_seen_by_these_tests(dtype, tmp_path):
    optimum, _ = fitted("Poisson", dtype)
    other = np.array(optimum.eigenvalues)
    other[0] = np.nextafter(other[0], 0)
    with pytest.raises(AssertionError, match="eigenvalues"):
        assert_same(optimum, optimum._replace(eigenvalues=jnp.asarray(other)))


@pytest.mark.parametrize("method", ["exact", "entry"])
def test_a_refined_optimum_scores_new_rows_as_before(method, dtype, tmp_path):
    optimum, x = fitted("Bernoulli", dtype)
    refined = refine(optimum, Rows(x, covariates=np.arange(N)[:, None] / N), method=method, max_rounds=3)
    save(tmp_path / "model.npz", refined)
    found = load(tmp_path / "model.npz")
    assert_same(refined, found)
    new = Rows(1 - x, covariates=np.ones((N, 1), dtype))
    scores = [np.asarray(elbo_exact(o, new, best_posterior(o, new))) for o in (refined, found)]
    assert scores[0].dtype == dtype
    assert scores[0].tobytes() == scores[1].tobytes()


@pytest.mark.any_precision
def test_a_tightened_optimum_and_one_from_moments_are_kept(tmp_path):
    optimum, x = fitted("Bernoulli", np.float32)
    kept = glmvae.tighten(optimum, glmvae.moments(x, family=optimum.family))
    save(tmp_path / "model", kept)
    assert_same(kept, load(tmp_path / "model"))
    assert kept.elbo is None


@pytest.mark.any_precision
def test_the_header_can_be_read_without_the_library(tmp_path):
    optimum, _ = fitted("Mixed", np.float32)
    save(tmp_path / "model.npz", optimum)
    with np.load(tmp_path / "model.npz") as file:
        header = json.loads(str(file["header"]))
        arrays = {name: file[name] for name in file.files}
    assert header["kind"] == "AffineOptimum"
    assert header["glmvae"] == glmvae.__version__
    assert header["family"] == repr(optimum.family)
    assert (header["columns"], header["latent_dim"], header["beta"]) == (D, K, 1.5)
    loadings = header["tree"]["fields"]["model"]["fields"]["decoder"]["fields"]["loadings"]["array"]
    np.testing.assert_array_equal(arrays[loadings], optimum.loadings)


# The family -------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_a_family_of_ones_own_is_given_at_loading(tmp_path):
    for name in OWN:
        optimum, _ = fitted(name, np.float32)
        save(tmp_path / name, optimum)
        with pytest.raises(ValueError, match=r"path: .* family of the user's own, .*load\(path, family=\.\.\.\)"):
            load(tmp_path / name)
        with pytest.raises(ValueError, match=r"family: expected that of .*, got Poisson\(\)"):
            load(tmp_path / name, family=Poisson())
    save(tmp_path / "scaled", AffineModel(Affine([[1.0]], [0.0]), Objective(CUSTOM, dispersion=1.0)))
    with pytest.raises(ValueError, match="family: expected that of"):
        load(tmp_path / "scaled", family=CustomFamily(jnp.exp, limits=Support(0.0), activation_scale=2.0))
    assert load(tmp_path / "scaled", family=CUSTOM).family is CUSTOM


@pytest.mark.any_precision
def test_a_family_that_the_file_knows_may_be_given_but_no_other(tmp_path):
    optimum, _ = fitted("Binomial", np.float32)
    save(tmp_path / "model", optimum)
    assert_same(load(tmp_path / "model", family=optimum.family), optimum)
    for other in (Binomial(np.array([3.0, 4.0, 3.0, 6.0])), Binomial(3), Poisson()):
        with pytest.raises(ValueError, match="family: expected that of"):
            load(tmp_path / "model", family=other)
    with pytest.raises(TypeError, match="family: expected a family such as"):
        load(tmp_path / "model", family=Binomial)
