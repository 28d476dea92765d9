"""Numbers from stored results: pure functions of what a run left behind.

Everything that is compared along a curve is taken on the rows seen; what a run ends with, on all rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reproduce.runner import stored
from benchmarks.reproduce.setups import all_setups

Result = dict[str, Any]
#: A unit is active where its activity exceeds this (Burda et al. 2015).
ACTIVE = 0.01
#: "At" an ELBO is within this share of what it gains over no latent unit: MNIST 2 nats, the synthetic set 0.01.
AT = 0.02
#: Over-fitting is a fall of the test ELBO by more nats than this, and than so many Monte Carlo standard errors.
FALL, ERRORS = 0.1, 4.0
#: Looks that are averaged before a fall is measured: a single one carries the noise of training.
LOOKS = 5


def load(folder: Path, *, short: bool = False) -> list[Result]:
    """The results of the setups; those of fewer steps than a setup has only if asked for."""
    found = [(setup, stored(setup, folder)) for setup in all_setups()]
    return [r for setup, r in found if r is not None and (short or r["settings"]["steps"] == setup.steps)]


def pick(results: list[Result], **settings: Any) -> list[Result]:
    """Those with these settings."""
    return [r for r in results if all(r["settings"][name] == value for name, value in settings.items())]


def one(results: list[Result], **settings: Any) -> Result | None:
    """The one with these settings, where it is there."""
    found = pick(results, **settings)
    return found[0] if found else None


def curve(result: Result, name: str) -> np.ndarray:
    """A column of the curve; NaN where it was not finite."""
    return np.asarray(result["curve"][name], float)


def end(result: Result, on: str = "train") -> float:
    """The last ELBO, over all rows."""
    return _number(result["end"][f"{on}_elbo"])


def burn_in(result: Result, on: str) -> float:
    """The step from which on the ELBO stays at or above L-hat; infinite where it ends below."""
    below = np.flatnonzero(~(curve(result, f"{on}_elbo") >= result["lines"][f"seen_{on}"]["elbo_taylor"]))
    steps = np.append(curve(result, "step"), np.inf)
    return float(steps[below[-1] + 1] if below.size else steps[0])


def gain(result: Result) -> float:
    """What the end gains over no latent unit, train, nats."""
    return end(result) - _number(result["lines"]["train"]["no_unit"])


def steps_to(result: Result | None, bench: Result | None) -> float:
    """The first step at which the train ELBO is at the other run's end, or above; infinite where it never is."""
    if result is None or bench is None:
        return np.nan
    aim = curve(bench, "train_elbo")[-1] - AT * abs(gain(bench))
    there = np.flatnonzero(curve(result, "train_elbo") >= aim)
    return float(curve(result, "step")[there[0]] if there.size else np.inf)


def lead(first: Result, second: Result, step: int) -> float:
    """By how many nats the first train curve is above the second at a step."""
    values = [curve(r, "train_elbo")[list(r["curve"]["step"]).index(step)] for r in (first, second)]
    return float(values[0] - values[1])


def fall(result: Result) -> tuple[float, bool]:
    """Nats by which the test ELBO ends below its best (means of :data:`LOOKS`), and whether that is over-fitting."""
    width = min(LOOKS, len(result["curve"]["step"]))
    elbo = np.convolve(curve(result, "test_elbo"), np.full(width, 1 / width), "valid")
    nats = float(np.nanmax(elbo) - elbo[-1])
    return nats, nats > max(FALL, ERRORS * float(curve(result, "test_error")[-1]))


def active(result: Result) -> int:
    """Active units at the end."""
    return count(result["end"]["activity"])


def count(activities: list[float]) -> int:
    """How many are active."""
    return int(np.sum(np.asarray(activities, float) > ACTIVE))


def still(result: Result) -> bool:
    """Whether the count of active units is the same over the last fifth of the run."""
    steps, counts = curve(result, "step"), curve(result, "active")
    return len(set(counts[steps >= 0.8 * steps[-1]])) == 1


def distance(first: list[float], second: list[float]) -> float:
    """The mean difference of two sets of activities, each sorted: a net's units have no order."""
    sort = [-np.sort(-np.asarray(a, float)) for a in (first, second)]
    return float(np.mean(np.abs(sort[0] - sort[1])))


def _number(value: float | None) -> float:
    return np.nan if value is None else value
