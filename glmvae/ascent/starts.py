"""Where an ascent starts: the given optimum, or the best of the closed forms that the rows themselves give.

A closed-form start is probabilistic PCA of whitened scores g_ij / sqrt(w_j), the paper's closed form with a quadratic
whose weights are averaged over the rows, so that offsets, covariates, trials an entry and missing entries have a
place in it:

    zero            the expansion at eta = 0, or where the offset's level leaves eta there
    null            at the intercept-only GLM
    log-response    at the intercept-only GLM, the score w (link((x + mu) / 2) - eta0) in place of x - mu, which a
                    single large count cannot dominate

Nothing is started below the null model, no latent unit at work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae.ascent.climb import Climb, Problem, State, at_decoder
from glmvae.ascent.passes import exact_pass
from glmvae.ascent.row_posteriors import PosteriorStore, prior_like
from glmvae.blocks import total
from glmvae.entries import refuse_empty, refuse_weightless
from glmvae.expansion import null_predictor, working_weight
from glmvae.model import Affine, Objective, fixed_predictor
from glmvae.rows import Rows, observed, row_sum, weighted_sum
from glmvae.spectral import decompose

# Steps of the q for the decoder of a start: a few for one that they show to be good, more to be sure that it is not;
# enough to tell which of several is the best.
_FEW_STEPS = 4
_STEPS = 12
_TELLING_STEPS = 8
_SHORTER = 4
_NULL_ROUNDS = 50


class FirstLook(NamedTuple):
    """The rows summed up in the first pass.

    ``mean`` of the observed entries of each column, (d,); ``level`` of the offsets, log mean exp, (d,); ``constant``,
    the mean over rows of what of log p depends on x alone.
    """

    mean: Float[Array, " d"]
    level: Float[np.ndarray, " d"]
    constant: float


def first_look(problem: Problem, objective: Objective, num_covariates: int) -> FirstLook:
    """The first pass, which also checks the rows.

    Raises:
        ValueError: values out of the support; weights whose sum underflows or overflows; a column without any entry.
    """
    options: dict[str, Any] = {"family": objective.family, "num_covariates": num_covariates}
    (sums, entries, count, constant), level = total(_look, problem.source, objective, add=_looked, **options)
    refuse_weightless(count)
    refuse_empty(entries, problem.source.column_names)
    mean = jax.device_put(np.asarray(sums) / np.asarray(entries))
    level = np.zeros(mean.shape, mean.dtype) if level is None else np.asarray(level) - np.log(np.asarray(entries))
    return FirstLook(mean, level, float(constant) / float(count))


def _look(rows: Rows, _: None, objective: Objective) -> tuple[Any, None]:
    weight = rows.weight[:, None]
    constant = row_sum(
        rows, objective.family.for_rows(rows).saturated_log_prob(rows.x, objective.dispersion_of_entries)
    )
    counts = observed(rows, jnp.broadcast_to(weight, rows.x.shape))
    entries = jnp.sum(counts, axis=0)
    level = None
    if rows.offset is not None:
        level = jax.scipy.special.logsumexp(jnp.broadcast_to(rows.offset, rows.x.shape), axis=0, b=counts)
    sums = (
        jnp.sum(observed(rows, weight * rows.x), axis=0),
        entries,
        jnp.sum(rows.weight),
        weighted_sum(rows, constant),
    )
    return (sums, level), None


def _looked(a: Any, b: Any) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return jax.tree.map(np.add, a[0], b[0]), None if a[1] is None else np.logaddexp(a[1], b[1])


def null_decoder(
    problem: Problem, look: FirstLook, decoder: Affine, objective: Objective, plain: bool
) -> tuple[Affine, float]:
    """No latent unit at work, and its value in nats per row: the GLM of intercept, offset and covariates."""
    dtype = np.asarray(decoder.loadings).dtype
    loadings = np.zeros((decoder.loadings.shape[0], 0), dtype)
    coefficients = None if decoder.coefficients is None else np.zeros(decoder.coefficients.shape, dtype)
    if plain:  # looked at as a decoder whose units are off, for which the pass is compiled
        null = Affine(loadings, null_predictor(objective.family, look.mean))
        off = _padded(null, decoder.latent_dim)
        looked = at_decoder(problem, PosteriorStore(prior_like(off)), off, objective, steps=0, constant=look.constant)
        return null, looked.elbo
    start = Affine(loadings, -look.level.astype(dtype), coefficients)
    store = PosteriorStore(prior_like(start))
    fixed = Problem(problem.source, exact_pass, False)
    state = at_decoder(fixed, store, start, objective, steps=0, constant=look.constant)
    store.commit()
    climb = Climb(fixed, store, state, tolerance=1e-7, max_rounds=_NULL_ROUNDS, report=lambda value: None)
    climb.ascend()
    return climb.state.decoder, climb.state.elbo


def best_start(
    problem: Problem,
    given: Affine,
    objective: Objective,
    look: FirstLook,
    *,
    knows_rows: bool,
    tolerance: float,
) -> tuple[State, PosteriorStore]:
    """The given decoder, if it knows of all that the rows bring and is above the null model; else the best start.

    Where the rows bring an offset, covariates, trials or missing entries, of which the given decoder may know nothing,
    all starts are scored, so that little depends on it.
    """

    def reached(decoder: Affine, steps: int, store: PosteriorStore | None = None) -> tuple[State, PosteriorStore]:
        store = PosteriorStore(prior_like(decoder)) if store is None else store
        state = at_decoder(problem, store, decoder, objective, steps=steps, tolerance=tolerance, constant=look.constant)
        store.commit()
        return state, store

    null, floor = null_decoder(problem, look, given, objective, knows_rows and given.coefficients is None)
    best = reached(given, _FEW_STEPS)
    if not (knows_rows and best[0].elbo >= floor):
        best = reached(given, _STEPS - _FEW_STEPS, best[1])
    if knows_rows and best[0].elbo >= floor:
        return best
    units = given.latent_dim
    candidates = [_padded(null, units)]
    for kind in ("zero", "null", "log-response") if units else ():
        at = Affine(null.loadings, -look.level.astype(null.intercept.dtype), null.coefficients)
        start = closed_form_start(problem, at if kind == "zero" else null, objective, kind, units)
        # Loadings too long for the family (the zero start of large counts) may do better when shorter.
        candidates += [_shortened(start, 0.5**i) for i in range(_SHORTER)]
    other = reached(candidates[0], _TELLING_STEPS)
    for candidate in candidates[1:]:
        found = reached(candidate, _TELLING_STEPS)
        if not other[0].elbo >= found[0].elbo:
            other = found
    return best if best[0].elbo >= other[0].elbo else other


def _padded(null: Affine, units: int) -> Affine:
    return Affine(np.zeros((null.loadings.shape[0], units), null.intercept.dtype), null.intercept, null.coefficients)


def _shortened(decoder: Affine, length: float) -> Affine:
    return Affine(length * np.asarray(decoder.loadings), decoder.intercept, decoder.coefficients)


def closed_form_start(problem: Problem, at: Affine, objective: Objective, kind: str, units: int) -> Affine:
    """One of the three starts, around a model without latent units."""
    f = _responses if kind == "log-response" else _scores
    sums = total(
        f, problem.source, at, objective, family=objective.family, check=False, num_covariates=at.num_covariates
    )
    total_, gram, weights, count = (np.asarray(a, np.float64) for a in sums)
    mean, gram, weights = total_ / count, gram / count, weights / count
    usable = (weights > 0) & np.isfinite(weights) & np.isfinite(mean)
    scale = np.where(usable, 1 / np.sqrt(np.where(usable, weights, 1.0)), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # columns out of range take no part
        spread = (gram - np.outer(mean, mean)) * scale[:, None] * scale
        shift = mean * scale**2
    dtype = at.intercept.dtype
    values, vectors = (np.asarray(a) for a in decompose(np.where(np.isfinite(spread), spread, 0.0).astype(dtype)))
    length = np.sqrt(np.maximum(values[:units] - float(objective.beta), 0.0))
    loadings = (vectors[:, :units] * scale[:, None] * length).astype(dtype)
    shift = np.where(usable & np.isfinite(shift), shift, 0.0).astype(dtype)
    return Affine(loadings, np.asarray(at.intercept) + shift, at.coefficients)


def _scores(rows: Rows, _: None, at: Affine, objective: Objective) -> tuple[Any, None]:
    family, phi = objective.family.for_rows(rows), objective.dispersion_of_entries
    eta = jnp.broadcast_to(fixed_predictor(at, rows), rows.x.shape)
    score = family.natural_parameter_derivative(eta) * (rows.x - family.mean(eta)) / phi
    return _sums(rows, score, working_weight(family, eta, phi)), None


def _responses(rows: Rows, _: None, at: Affine, objective: Objective) -> tuple[Any, None]:
    family = objective.family.for_rows(rows)
    eta = jnp.broadcast_to(fixed_predictor(at, rows), rows.x.shape)
    weight = jnp.broadcast_to(working_weight(family, eta, objective.dispersion_of_entries), rows.x.shape)
    return _sums(rows, weight * (family.link(0.5 * (rows.x + family.mean(eta))) - eta), weight), None


def _sums(rows: Rows, score: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)[:, None]
    score, weight = observed(rows, score), observed(rows, jnp.broadcast_to(weight, score.shape))
    weighted = jnp.where(each > 0, each * score, 0.0)
    return jnp.sum(weighted, axis=0), weighted.T @ score, jnp.sum(each * weight, axis=0), jnp.sum(rows.weight)
