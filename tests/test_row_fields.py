"""What rows bring, function by function: each cell of the table is right by the reference, or refused by name.

Binomial columns, for which most of it has a closed form. Every check fails if the field is dropped on the way: the last
test holds that the reference moves with each of them.
"""

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from elbo_cases import BETA, COLUMNS, PHI, UNITS, setting
from flax import nnx
from tables import refused

from glmvae import (
    affine_posterior,
    best_posterior,
    bracket,
    diagnose,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    expand,
    fit,
    moments,
    monitor,
    nets,
    optimal_posterior,
    posterior,
    refine,
    tighten,
    training,
)
from glmvae.families import Binomial

pytestmark = pytest.mark.any_precision

FIELDS = ("offset", "covariates", "trials", "missing", "weight")
Z0 = np.array([0.4, -0.3])


def rows_with(field):
    return setting("binomial", np.float64, family=Binomial(None) if field == "trials" else None, fields=(field,))


def close(got, expected, rtol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def decoder_of(result):
    return dense.decoder(result.loadings, result.intercept, result.model.coefficients)


def mean_elbo(s, result, q, bound=dense.exact):
    """Of any decoder and posterior, by the reference."""
    covariance = np.broadcast_to(q.covariance, (len(s.x), UNITS, UNITS))
    return s.problem.mean(dense.elbo(s.problem, decoder_of(result), np.asarray(q.mean), covariance, bound))


def fitted(s):
    return fit(s.rows, s.family, UNITS, beta=BETA, dispersion=PHI)


def best_at(s, eta0):
    """The maximum of the quadratic at eta0, (N, d), over all Gaussian posteriors, row by row."""
    p, d = s.problem, s.decoder
    weight = np.where(p.missing, 0.0, p.family.weight(eta0, p.phi))
    ahead = p.family.score(p.x, eta0, p.phi) + weight * (eta0 - d.intercept - p.covariates @ d.coefficients - p.offset)
    covariance = [np.linalg.inv(np.eye(UNITS) + d.loadings.T @ np.diag(w) @ d.loadings / p.beta) for w in weight]
    ahead = np.where(p.missing, 0.0, ahead) @ d.loadings / p.beta
    return np.einsum("nkl,nl->nk", covariance, ahead), np.array(covariance)


def null_point(s):
    """The predictor of the weighted mean of what was observed, and of its trials."""
    seen = s.problem.weight[:, None] * ~s.problem.missing
    trials = s.problem.family.trials + 0 * s.x
    share = (seen * np.where(s.problem.missing, 0.0, s.x)).sum(axis=0) / (seen * trials).sum(axis=0)
    return np.log(share / (1 - share)) + 0 * s.x


# One function a row of the table --------------------------------------------------------------------------


def check_moments(s):
    data, p = moments(s.rows, family=s.family), s.problem
    residual = s.fields.keys() & {"offset", "trials"}
    x = p.x - p.family.fitted(p.offset) if residual else p.x
    _, mean, covariance = dense.moments(np.column_stack([x, p.covariates]), p.weight)
    close(data.mean, mean[:COLUMNS])
    close(data.covariance, covariance[:COLUMNS, :COLUMNS])
    if p.covariates.size:
        close(data.covariates.mean, mean[COLUMNS:])
        close(data.covariates.cross, covariance[COLUMNS:, :COLUMNS])


def check_expand(s):
    """Offset and covariates are parts of eta, which comes later."""
    quadratic, p, eta0 = expand(s.rows, s.family, expand_at=0.3, dispersion=PHI), s.problem, 0.3 + 0 * s.x
    close(quadratic.weight + 0 * s.x, np.where(p.missing, 0.0, p.family.weight(eta0, PHI)))
    value = p.family.log_prob(p.x, eta0, PHI)
    close(quadratic(jnp.asarray(eta0)), np.where(p.missing, 0.0, value))


def check_fit(s):
    mine, theirs = fitted(s), dense.fit(s.problem, UNITS)
    close(mine.elbo_taylor, theirs.elbo)
    close(mine.loadings @ mine.loadings.T, theirs.loadings @ theirs.loadings.T)


def check_posterior(s):
    start, theirs = fitted(s), dense.fit(s.problem, UNITS)
    q = posterior(start, s.rows)
    close(start.loadings @ q.mean.T, theirs.loadings @ theirs.mean.T)  # whatever the signs of the units
    close(np.diagonal(q.covariance[0]), np.diagonal(theirs.covariance))


def check_elbo_exact(s):
    close(elbo_exact(s.model, s.rows, s.q), s.dense())


def check_elbo_quadratic(s):
    close(elbo_quadratic(s.model, s.rows, s.q), s.dense(dense.quadratic(0.0)))
    close(elbo_quadratic(s.model, s.rows, s.q, expand_at="null"), s.dense(dense.quadratic(null_point(s))))


def check_elbo_profile(s):
    data = moments(s.rows, family=s.family)
    if data.at_offset is None:
        close(elbo_profile(s.model, data), s.problem.mean(s.dense(dense.quadratic(0.0), best_at(s, 0 * s.x))))
    start = fitted(s)
    close(elbo_profile(start, data), dense.fit(s.problem, UNITS).elbo)


def check_affine_posterior(s):
    q = affine_posterior(s.model, s.rows)
    mean, covariance = best_at(s, 0 * s.x)
    close(q.mean, mean)
    close(q.covariance + 0 * covariance, covariance)
    assert len(q.covariance) == (len(s.x) if s.fields.keys() & {"trials", "missing"} else 1)


def check_bracket(s):
    lower, upper = bracket(s.model, s.rows, s.q)
    assert np.all(lower <= s.dense())
    assert np.all(s.dense() <= upper)
    assert np.all(upper - lower < 4)


def check_elbo_taylor(s):
    eta0 = dense.predictor(s.problem, s.decoder, Z0 + 0 * s.q.mean, np.zeros((UNITS, UNITS)))[0]
    close(elbo_taylor(s.model.decoder, s.rows, s.q, s.objective, z0=Z0), s.dense(dense.quadratic(eta0)))
    if "covariates" not in s.fields:
        w, b = s.model.loadings, s.model.intercept
        close(elbo_taylor(lambda z: w @ z + b, s.rows, s.q, s.objective, z0=Z0), s.dense(dense.quadratic(eta0)))


def check_optimal_posterior(s):
    eta0 = dense.predictor(s.problem, s.decoder, Z0 + 0 * s.q.mean, np.zeros((UNITS, UNITS)))[0]
    q = optimal_posterior(s.model.decoder, s.rows, s.objective, z0=Z0)
    for mine, theirs in zip(q, best_at(s, eta0), strict=True):
        close(mine, theirs)


def check_elbo_monte_carlo(s):
    decoder = s.model.decoder
    for kind in (decoder,) if "covariates" in s.fields else (decoder, lambda z: decoder(z)):
        value, error = elbo_monte_carlo(jax.random.key(1), kind, s.rows, s.q, s.objective, num_samples=500)
        assert np.all(np.abs(value - s.dense()) < 5 * error)
        assert np.max(error) < 0.5


def check_refine(s):
    start = fit(s.x, s.family, UNITS, beta=BETA, dispersion=PHI) if "missing" in s.fields else fitted(s)
    found = refine(start, s.rows, tolerance=1e-11)
    close(found.elbo, mean_elbo(s, found, found.posterior))
    root = np.linalg.cholesky(found.posterior.covariance)
    _, gradient = dense.elbo_and_gradient(s.problem, decoder_of(found), np.asarray(found.posterior.mean), root)
    for part in gradient:
        np.testing.assert_allclose(part, 0.0, atol=1e-4)


def check_best_posterior(s):
    q = best_posterior(s.model, s.rows, tolerance=1e-12)
    root = np.linalg.cholesky(q.covariance)
    _, gradient = dense.elbo_and_gradient(s.problem, s.decoder, np.asarray(q.mean), root)
    for part in gradient[3:]:
        np.testing.assert_allclose(part, 0.0, atol=1e-6)


def check_tighten(s):
    found = tighten(fitted(s), s.rows, tolerance=1e-10)
    q = posterior(found, s.rows)
    close(found.elbo, mean_elbo(s, found, q))
    close(found.lower_bound, mean_elbo(s, found, q, dense.jaakkola_column), rtol=1e-6)


def check_diagnose(s):
    report, p = diagnose(s.rows, s.family, UNITS, beta=BETA, dispersion=PHI), s.problem
    null = dense.glm(p)[0]
    eta = null.intercept + p.covariates @ null.coefficients + p.offset
    value = np.where(p.missing, 0.0, p.family.log_prob(p.x, eta, PHI)).sum(axis=1)
    close(report.collapse_elbo, p.mean(value), rtol=1e-7)
    score = np.where(p.missing, 0.0, p.family.score(p.x, eta, PHI))
    weight = np.average(np.where(p.missing, 0.0, p.family.weight(eta, PHI)), axis=0, weights=p.weight)
    covariance = dense.moments(score, p.weight)[2] / np.sqrt(np.outer(weight, weight))
    close(report.collapse_onset, np.linalg.eigvalsh(covariance)[-1], rtol=1e-6)


def net(s):
    return nets.canonical(jax.random.key(0), COLUMNS, UNITS, s.objective, encoder_widths=(5,), dtype=jnp.float64)


def check_evaluate(s):
    vae = net(s)
    q = vae.encoder(s.rows)
    close(monitor.evaluate(jax.random.key(1), vae, s.rows).train_elbo, mean_elbo(s, vae, q))


def check_reference(s):
    start = fitted(s)
    line = monitor.reference(start, s.rows)
    close(line.elbo_exact, mean_elbo(s, start, posterior(start, s.rows)))
    assert line.lower <= line.elbo_exact <= line.upper


def check_train(s):
    """A net of zeros: eta is 0 but for the offset, and q the prior, so the first loss is known."""
    vae = net(s)
    nnx.update(vae, jax.tree.map(jnp.zeros_like, nnx.state(vae, nnx.Param)))
    options = {"steps": 1, "batch_size": len(s.x), "optimizer": optax.sgd(0.0)}
    loss = training.train(jax.random.key(1), vae, s.rows, **options).losses[0]
    p = s.problem
    value = np.where(p.missing, 0.0, p.family.log_prob(p.x, p.offset, p.phi)).sum(axis=1)
    close(loss, -p.mean(value))


CHECKS = {name.removeprefix("check_"): f for name, f in list(globals().items()) if name.startswith("check_")}
#: The other cells: what the message has to say.
REFUSED = {
    ("moments", "missing"): "missing: .*refine",
    ("fit", "missing"): "missing: .*refine",
    ("posterior", "missing"): "missing: ",
    ("elbo_profile", "missing"): "missing: ",
    ("reference", "missing"): "missing: ",
    ("tighten", "offset"): "offset",
    ("tighten", "trials"): "trials",
    ("tighten", "missing"): "missing: ",
    ("evaluate", "covariates"): "covariates: ",
    ("train", "covariates"): "covariates: ",
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("function", CHECKS)
def test_right_or_refused(function, field):
    s = rows_with(field)
    if (function, field) in REFUSED:
        assert not refused(lambda: CHECKS[function](s), ValueError, REFUSED[function, field])
    else:
        CHECKS[function](s)


@pytest.mark.parametrize("field", FIELDS)
def test_the_reference_knows_the_field(field):
    s = rows_with(field)
    without = {"covariates": 0 * s.fields["covariates"]} if field == "covariates" else {}
    with_it, lost = s.dense(), s._replace(fields=without).dense()
    if field == "weight":  # it counts in means alone
        assert abs(s.problem.mean(with_it) - lost.mean()) > 1e-2
    else:
        assert np.abs(with_it - lost).max() > 1e-2
