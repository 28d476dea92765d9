"""Monotone ascent of an ELBO in the decoder and every row's posterior: variational IRLS, accelerated.

A round is one pass over the data (:mod:`glmvae._rows`) at a proposed (W, b). The proposal extrapolates the last few
steps (Anderson's method, in the metric of the weighted least squares); where the ELBO does not rise, the plain step is
taken instead. With q fixed the columns of x do not know of each other, so those that overshoot, and only those, take
half the step, then and in the rounds that follow. Only what rises is kept. Its fixed points are the stationary points
of the ELBO: there every gradient in (W, b) and in every q is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae._pass import Standardisation, Summary, best_rows, gradient_moments, no_change, pass_over_rows
from glmvae._problem import Problem
from glmvae._rows import Decoder, RowPosteriors
from glmvae._starts import STARTS, closed_form_start, null_intercept

# Steps of the past that an extrapolation looks at, and the rounding it allows for in their products.
_MEMORY = 6
_RIDGE = {"float64": 1e-11, "float32": 1e-5}
_LONGEST_PAUSE = 4
_HALVINGS = 10
# What caution a step of a column that succeeds takes away, and the rounding units by which it may seem to fall.
_RELIEF = 0.25
_ROUNDING = 64
# Steps of the q for the decoder of a start; enough to tell which of several is the best.
_ROW_STEPS = 30
_TELLING_STEPS = 8


class State(NamedTuple):
    """A decoder, its posteriors, and the summary of the pass that made them."""

    decoder: Decoder
    rows: RowPosteriors
    summary: Summary

    @property
    def elbo(self) -> float:
        return float(self.summary.elbo)


def at_decoder(decoder: Decoder, problem: Problem, tolerance: float, steps: int = _ROW_STEPS) -> State:
    """A decoder with the best posteriors for it, or as good as so many steps make them."""
    return State(decoder, *best_rows(decoder, problem, tolerance, steps))


def null_decoder(problem: Problem, mean: Array, units: int, closed_form: Array | None) -> Decoder:
    """No latent unit at work: W = 0 and the intercept-only GLM."""
    intercept = null_intercept(problem, mean) if closed_form is None else closed_form
    return Decoder(jnp.zeros((mean.shape[0], units), mean.dtype), intercept)


def safe_start(decoder: Decoder, problem: Problem, null: Decoder, tolerance: float) -> State:
    """The given decoder, or if the null model beats it the best closed-form start, at least as good as null."""
    floor = at_decoder(null, problem, tolerance)
    state = at_decoder(decoder, problem, tolerance)
    if state.elbo >= floor.elbo:
        return state
    units = decoder.loadings.shape[1]
    best = floor
    for kind in STARTS:
        candidate = closed_form_start(problem, null.intercept, kind=kind, latent_dim=units)
        length = 1.0
        # Loadings too long for the family (the zero start of large counts) may do better when shorter.
        for _ in range(4):
            shorter = candidate._replace(loadings=candidate.loadings * length)
            state = at_decoder(shorter, problem, tolerance, _TELLING_STEPS)
            if state.elbo > floor.elbo:
                break
            length *= 0.5
        if state.elbo > best.elbo:
            best = state
    return best


@jax.jit
def _add(decoder: Decoder, step: Decoder, length: float = 1.0) -> Decoder:
    return jax.tree.map(lambda a, b: a + jnp.asarray(length, a.dtype) * b, decoder, step)


def _flat(decoder: Decoder) -> Float[Array, "d k1"]:
    return jnp.concatenate([decoder.loadings, decoder.intercept[:, None]], axis=1)


@jax.jit
def _extrapolate(now: Decoder, step: Decoder, metric: Array, points: list[Decoder], steps: list[Decoder]) -> Decoder:
    """Anderson's proposal from this point and step and those before."""
    here, ahead = _flat(now), _flat(step)
    moved = jnp.stack([here - _flat(p) for p in points])
    changed = jnp.stack([ahead - _flat(s) for s in steps])
    weighted = (changed * metric).reshape(len(points), -1)
    gram = weighted @ weighted.T
    size = jnp.sqrt(jnp.diag(gram))
    size = jnp.where(size > 0, size, 1.0)
    ridge = _RIDGE[here.dtype.name] * jnp.eye(len(points), dtype=here.dtype)
    solved = jnp.linalg.solve(gram / (size[:, None] * size) + ridge, weighted @ (ahead * metric).ravel() / size)
    result = here + ahead - jnp.tensordot(solved / size, moved + changed, axes=1)
    return Decoder(result[:, :-1], result[:, -1])


def ascend(
    state: State, problem: Problem, *, tolerance: float, max_rounds: int, report: Callable[[float], None]
) -> tuple[State, list[float], bool]:
    """Rounds until the predicted and the last gain are below tolerance: state, ELBO by round, whether it got there."""
    history = [state.elbo]
    points: list[Decoder] = []
    steps: list[Decoder] = []
    caution = jnp.zeros_like(state.decoder.intercept)
    gain = 0.0
    # Plain rounds before the next extrapolation: twice as many after each that failed.
    wait = pause = 0
    for _ in range(max_rounds):
        # Below its own rounding an ELBO cannot be seen to rise.
        least = max(tolerance, 4 * float(jnp.finfo(problem.x.dtype).eps) * abs(state.elbo))
        if max(float(state.summary.gain), gain) < least:
            return state, history, True
        now, summary = state.decoder, state.summary
        ahead = _ahead(now, summary.step, summary.change, caution)
        new = None
        if points and wait == 0:
            missing = _MEMORY - len(points)  # always as many, so that it is compiled once; these count for nothing
            past = [*points, *[now] * missing], [*steps, *[ahead] * missing]
            new = _risen(state, problem, _extrapolate(now, ahead, summary.metric, *past), summary.change)
            if new is None:
                points.clear()
                steps.clear()
            wait = pause = 0 if new else min(max(1, 2 * pause), _LONGEST_PAUSE)
        else:
            wait = max(wait - 1, 0)
        if new is None:
            new, caution = _careful(state, problem, caution)
        if new is None:
            return state, history, float(summary.gain) < least
        points.append(now)
        steps.append(ahead)
        del points[:-_MEMORY], steps[:-_MEMORY]
        gain = new.elbo - state.elbo
        state = new
        history.append(state.elbo)
        report(state.elbo)
    return state, history, False


def _risen(state: State, problem: Problem, proposal: Decoder, change: Standardisation) -> State | None:
    """The state there, if it is better."""
    new = _at(state, problem, proposal, change)
    return new if _is_better(new, state) else None


def _at(state: State, problem: Problem, proposal: Decoder, change: Standardisation, steps: int = 1) -> State:
    """The state after so many steps of its posteriors for that decoder."""
    return State(proposal, *pass_over_rows(proposal, problem, state.rows, change, steps, -math.inf, False))


def _is_better(new: State, old: State) -> bool:
    return new.elbo > old.elbo and math.isfinite(float(new.summary.gain))


def _careful(state: State, problem: Problem, caution: Array) -> tuple[State | None, Array]:
    """The step of every column, 2^-caution long, shorter where it overshoots, until the ELBO rises; and its caution."""
    change = state.summary.change
    for _ in range(_HALVINGS):
        step = _ahead(state.decoder, state.summary.step, change, caution)
        new = _at(state, problem, _add(state.decoder, step), change)
        rose = _is_better(new, state)
        caution = _caution(caution, state.summary.after, new.summary.before, rose)
        if rose:
            return new, caution
        change = no_change(change.shift.shape[0], change.shift.dtype)
    return None, caution


@jax.jit
def _ahead(now: Decoder, step: Decoder, change: Standardisation, caution: Array) -> Decoder:
    """The step of every column, as long as its caution allows, and z standardised after it."""
    length = 2.0**-caution
    moved = now.loadings + length[:, None] * step.loadings
    return Decoder(moved @ change.root - now.loadings, length * step.intercept + moved @ change.shift)


@jax.jit
def _caution(caution: Array, old: Array, new: Array, rose: bool) -> Array:
    """More for the columns that fell, for all if none did and the ELBO did not rise; less for the others if it rose."""
    fell = ~(new >= old - _ROUNDING * jnp.finfo(old.dtype).eps * jnp.abs(old))
    fell = fell | (~rose & ~jnp.any(fell))
    return jnp.where(fell, caution + 1, jnp.where(rose, jnp.maximum(caution - _RELIEF, 0.0), caution))


def prune(state: State, problem: Problem) -> State:
    """Without the units whose removal does not lower the ELBO, weakest first."""
    same = no_change(state.rows.mean.shape[1], state.rows.mean.dtype)
    while True:
        strength = jnp.sum(state.summary.weight[:, None] * state.decoder.loadings**2, axis=0) / problem.beta
        if not bool(jnp.any((strength > 0) & (strength < 0.1))):
            return state
        weakest = jnp.argmin(jnp.where(strength > 0, strength, jnp.inf))
        decoder = state.decoder._replace(loadings=state.decoder.loadings.at[:, weakest].set(0.0))
        without = _at(state, problem, decoder, same, 2)
        if not without.elbo >= state.elbo:
            return state
        state = without


def wake(state: State, problem: Problem, tolerance: float) -> State:
    """Loadings for units that are off, where these raise the ELBO.

    W_k = 0 is stationary whatever the ELBO is around it. To second order a unit of loadings u adds

        mean (u' g)^2 / (2 beta) - u' diag(w) u / 2

    so it pays if the largest eigenvalue of G^-1/2 (mean g g') G^-1/2 exceeds beta; with all units off that is the
    onset of collapse.
    """
    off = jnp.all(state.decoder.loadings == 0, axis=0)
    if not bool(jnp.any(off)):
        return state
    loadings = _further_loadings(state, problem, gradient_moments(state.decoder, problem, state.rows), off)
    if not bool(jnp.any(loadings != state.decoder.loadings)):
        return state
    same = no_change(off.shape[0], loadings.dtype)
    for i in range(_HALVINGS):
        length = 0.5**i
        added = _add(state.decoder, Decoder(loadings - state.decoder.loadings, 0 * state.decoder.intercept), length)
        woken = _at(state, problem, added, same, 2)
        if woken.elbo > state.elbo + tolerance:
            return woken
    return state


@jax.jit
def _further_loadings(state: State, problem: Problem, moment: Array, off: Array) -> Array:
    """The loadings; units that are off get the leading directions of ``moment``, as long as the closed form's."""
    weight = state.summary.weight
    scale = jnp.where(weight > 0, jax.lax.rsqrt(jnp.where(weight > 0, weight, 1.0)), 0.0)
    values, vectors = jnp.linalg.eigh(moment * scale[:, None] * scale)
    values, vectors = values[::-1], vectors[:, ::-1]
    rounding = 1 + 64 * jnp.finfo(values.dtype).eps
    length = jnp.where(values > rounding * problem.beta, jnp.sqrt(jnp.maximum(values - problem.beta, 0.0)), 0.0)
    place = jnp.clip(jnp.cumsum(off) - 1, 0)
    return jnp.where(off, (vectors * scale[:, None] * length)[:, place], state.decoder.loadings)


@jax.jit
def principal_axes(state: State) -> tuple[State, Float[Array, " k"]]:
    """The same model with W' diag(w) W diagonal and descending, w the mean weights, and that diagonal."""
    decoder, rows = state.decoder, state.rows
    values, vectors = jnp.linalg.eigh((decoder.loadings * state.summary.weight[:, None]).T @ decoder.loadings)
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
    loadings = decoder.loadings @ vectors
    largest = jnp.take_along_axis(loadings, jnp.argmax(jnp.abs(loadings), axis=0)[None], axis=0)
    vectors = vectors * jnp.where(largest < 0, -1.0, 1.0).astype(loadings.dtype)
    # Units that are off stay off, whatever the rounding of the rotation.
    off = jnp.sum(jnp.any(decoder.loadings != 0, axis=0)) <= jnp.arange(values.shape[0])
    loadings = jnp.where(off, 0.0, decoder.loadings @ vectors)
    rows = rows._replace(
        mean=rows.mean @ vectors,
        covariance=jnp.einsum("ka,nkl,lb->nab", vectors, rows.covariance, vectors),
    )
    summary = state.summary._replace(mean=state.summary.mean @ vectors)
    return State(decoder._replace(loadings=loadings), rows, summary), jnp.where(off, 0.0, values)
