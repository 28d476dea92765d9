"""The climb: rounds of one pass over the rows each, of which only those are kept that raise the bound.

A round proposes a decoder, the step that the last pass calls for or its extrapolation from the last few (Anderson's
method, in the metric of the weighted least squares), and passes over the rows with it. Columns that overshoot, and only
those, take half the step, then and in the rounds that follow. Where an extrapolation fails the posteriors lag behind,
as they do with large counts: a pass takes two steps of them until a few extrapolations have held. A dispersion that is
free moves along, to the best for the posteriors of the last pass, or extrapolated as the decoder is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae.ascent.decoder import DecoderStep, decoder_step, joined, moved, parted, stacked, unstacked
from glmvae.ascent.passes import Sums
from glmvae.ascent.row_posteriors import Change, PosteriorStore, RowPosteriors, no_change
from glmvae.blocks import sweep, total
from glmvae.extrapolation import Memory
from glmvae.model import Affine, Objective
from glmvae.rows import Rows, row_sum, weighted_sum
from glmvae.sources import Source

_LONGEST_PAUSE = 4
# Extrapolations that hold, one after the other, before a pass takes one step of the posteriors again.
_HELD = 4
_HALVINGS = 12
# What caution a step of a column that succeeds takes away, and the rounding units by which it may seem to fall.
_RELIEF = 0.25
_ROUNDING = 64

Pass = Callable[..., tuple[Sums, RowPosteriors]]


class Problem(NamedTuple):
    """What stays fixed: the rows, the bound (a pass of :mod:`~glmvae.ascent.passes`), whether phi is free."""

    source: Source
    bound: Pass
    free_dispersion: bool


class State(NamedTuple):
    """A decoder and its objective, the sums of the pass at it, the step they call for, and the bound in nats per row.

    Its posteriors are what the store has committed.
    """

    decoder: Affine
    objective: Objective
    sums: Sums
    step: DecoderStep
    elbo: float


def at_decoder(
    problem: Problem,
    store: PosteriorStore,
    decoder: Affine,
    objective: Objective,
    *,
    constant: float | None = None,
    **how: Any,
) -> State:
    """The state after a pass, for which ``how`` is as :func:`passed` takes it; its posteriors are not yet committed.

    ``constant`` is the mean over rows of what depends on x alone, found by a pass of its own where it is None.
    """
    sums = passed(problem, store, decoder, objective, **how)
    step = decoder_step(sums, decoder, objective, problem.free_dispersion)
    if constant is None:
        constant = saturated(problem.source, objective)
    return State(decoder, objective, sums, step, float(sums.elbo) / float(sums.num_rows) + constant)


def passed(
    problem: Problem,
    store: PosteriorStore,
    decoder: Affine,
    objective: Objective,
    change: Change | None = None,
    steps: int = 1,
    tolerance: float = -math.inf,
) -> Sums:
    """One pass over the rows: so many steps of the posteriors for that decoder."""
    return sweep(
        problem.bound,
        problem.source,
        decoder,
        objective,
        no_change(decoder) if change is None else change,
        np.int32(steps),
        np.asarray(tolerance, decoder.loadings.dtype),
        family=objective.family,
        check=False,
        num_covariates=decoder.num_covariates,
        store=store,
        threads=True,
    )


def saturated(source: Source, objective: Objective) -> float:
    """The mean over rows of log p at the saturated model: what depends on x alone."""
    value, count = total(_saturated, source, objective, family=objective.family, check=False, num_covariates=None)
    return float(value) / float(count)


def _saturated(rows: Rows, _: None, objective: Objective) -> tuple[tuple[Array, Array], None]:
    value = row_sum(rows, objective.family.for_rows(rows).saturated_log_prob(rows.x, objective.dispersion_of_entries))
    return (weighted_sum(rows, value), jnp.sum(rows.weight)), None


class Climb:
    """Rounds from a state on; ``state``, ``history`` and ``converged`` tell how far it got."""

    def __init__(
        self,
        problem: Problem,
        store: PosteriorStore,
        state: State,
        *,
        tolerance: float,
        max_rounds: int,
        report: Callable[[float], None],
    ) -> None:
        self.problem, self.store, self.state, self.report = problem, store, state, report
        self.tolerance, self.max_rounds = tolerance, max_rounds
        self.history = [state.elbo]
        self.converged = False
        self._constant = state.elbo - float(state.sums.elbo) / float(state.sums.num_rows)
        self._caution = np.zeros(state.decoder.loadings.shape[0])
        self._held = _HELD

    @property
    def rounds_left(self) -> int:
        """Rounds that may still be made."""
        return self.max_rounds - (len(self.history) - 1)

    @property
    def eps(self) -> float:
        """The rounding unit of a pass."""
        return float(np.finfo(self.state.decoder.loadings.dtype).eps)

    @property
    def least(self) -> float:
        """The gain that counts: below its own rounding an ELBO cannot be seen to rise."""
        return max(self.tolerance, 4 * self.eps * abs(self.state.elbo))

    def try_at(
        self,
        decoder: Affine,
        change: Change | None = None,
        steps: int | None = None,
        dispersion: ArrayLike | None = None,
    ) -> State:
        """A pass at a proposal, its dispersion that of the state where it is None; nothing is kept yet."""
        if steps is None:
            steps = 1 if self._held >= _HELD else 2
        objective: Objective = self.state.objective
        constant: float | None = self._constant
        if dispersion is not None:
            objective, constant = _with_dispersion(objective, dispersion), None
        return at_decoder(self.problem, self.store, decoder, objective, change=change, steps=steps, constant=constant)

    def keep(self, new: State) -> None:
        """Commit a proposal as the next round; whether more is to gain is then open."""
        self.store.commit()
        self.converged = False
        self.state = new
        self._constant = new.elbo - float(new.sums.elbo) / float(new.sums.num_rows)
        self.history.append(new.elbo)
        self.report(new.elbo)

    def ascend(self) -> None:
        """Rounds until what is left to gain is below the tolerance."""
        past = Memory(self.eps)
        gains: list[float] = []
        # Plain rounds before the next extrapolation: twice as many after each that failed.
        wait = pause = 0
        self.converged = False
        while self.rounds_left > 0:
            if max(self.state.step.gain, _remaining(gains)) < self.least:
                self.converged = True
                return
            step, phi = self.state.step, self.state.objective.dispersion
            here = joined(stacked(self.state.decoder), None if step.dispersion is None else phi)
            ahead = joined(moved(self.state.decoder, step, self._caution), step.dispersion) - here
            before = self.state.elbo
            rose = False
            if past and wait == 0:
                rose = self._rises(past.extrapolated(here, ahead, step.metric))
                if not rose:
                    past.forget()
                wait = pause = 0 if rose else min(max(1, 2 * pause), _LONGEST_PAUSE)
            else:
                wait = max(wait - 1, 0)
            if not rose and not self._careful():
                self.converged = self.state.step.gain < self.least
                return
            past.remember(here, ahead)
            gains.append(self.state.elbo - before)

    def _rises(self, point: np.ndarray) -> bool:
        theta, dispersion = parted(point, self.state.objective.dispersion, self.state.step.dispersion)
        new = self.try_at(unstacked(theta, self.state.decoder), self.state.step.change, dispersion=dispersion)
        if _is_better(new, self.state):
            self.keep(new)
            self._held += 1
            return True
        self._held = 0
        return False

    def _careful(self) -> bool:
        """The step of every column, 2^-caution long, shorter where it overshoots, until the bound rises."""
        step = self.state.step
        for _ in range(_HALVINGS):
            proposal = unstacked(moved(self.state.decoder, step, self._caution), self.state.decoder)
            new = self.try_at(proposal, step.change, dispersion=step.dispersion)
            rose = _is_better(new, self.state)
            was = np.asarray(self.state.objective.dispersion) * np.asarray(self.state.sums.after, np.float64)
            now = np.asarray(new.objective.dispersion) * np.asarray(new.sums.before, np.float64)
            self._caution = _cautioned(self._caution, was, now, rose, self.eps)
            if rose:
                self.keep(new)
                return True
            if step.gain < self.least:  # nor would a shorter one be seen to
                return False
            step = step._replace(change=no_change(self.state.decoder))
        return False


def _with_dispersion(objective: Objective, phi: ArrayLike) -> Objective:
    """Another dispersion, unchecked."""
    phi = jnp.asarray(phi, objective.dispersion.dtype)
    return jax.tree.unflatten(jax.tree.structure(objective), [*jax.tree.leaves(objective)[:-1], phi])


def _is_better(new: State, old: State) -> bool:
    return new.elbo > old.elbo and math.isfinite(new.step.gain)


def _remaining(gains: list[float]) -> float:
    """What is left to gain if gains go on to shrink as they do: a slow tail that no quadratic sees."""
    if not gains:
        return 0.0
    if len(gains) < 3:
        return gains[-1]
    rate = min(max(gains[-1] / max(gains[-3], 1e-300), 0.0), 0.9999) ** 0.5
    return gains[-1] * max(1.0, rate / (1 - rate))


def _cautioned(caution: np.ndarray, old: np.ndarray, new: np.ndarray, rose: bool, eps: float) -> np.ndarray:
    """More for columns that fell, for all if none did and the bound did not rise; less for the others if it rose."""
    fell = ~(new >= old - _ROUNDING * eps * np.abs(old))
    if not rose and not fell.any():
        fell[:] = True
    return np.where(fell, caution + 1, np.maximum(caution - _RELIEF, 0.0) if rose else caution)
