"""Every clock of the benchmark: calls that wait for their result, and contestants in turn.

Data are arguments on the device, never constants that XLA could fold. Contestants alternate, so that whatever else the
machine does falls on all of them; what is compared is the median over rounds of their ratio, each round having both.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax

from benchmarks import packages

#: Rounds of contestants in turn: as many as fit in the seconds asked for, but not fewer or more than these.
MIN_ROUNDS, MAX_ROUNDS = 5, 31


class Timed(NamedTuple):
    """What a call returned, the seconds until it was there, and the processor seconds that this process spent on it."""

    value: Any
    seconds: float
    cpu_seconds: float


def timed(run: Callable[[], Any]) -> Timed:
    """Call and wait for the result."""
    clock = Clock()
    value = jax.block_until_ready(run())
    return Timed(value, *clock.lap())


class Clock:
    """Wall and processor seconds from one lap to the next; a stopped process takes no processor time."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Seconds of both kinds since the last lap, or since it was made."""
        wall, cpu = self._wall, self._cpu
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self._wall - wall, self._cpu - cpu


def in_turn(
    contestants: Mapping[str, Callable[[], float]], *, seconds: float = 1.0, rounds: int | None = None
) -> dict[str, list[float]]:
    """What each contestant measures, round after round; they are to be warm.

    Args:
        contestants: by name, a function that returns seconds (:func:`clocked` makes one of any call).
        seconds: for all rounds of the slowest.
        rounds: in place of as many as fit.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}

    def play() -> float:
        for name, run in contestants.items():
            times[name].append(run())
        return max(of[-1] for of in times.values())

    slowest = play()
    if rounds is None:
        rounds = min(max(int(seconds / max(slowest, 1e-9)), MIN_ROUNDS), MAX_ROUNDS)
    for _ in range(rounds - 1):
        play()
    return times


def clocked(run: Callable[[], Any]) -> Callable[[], float]:
    """The wall seconds of a call as a contestant."""
    return lambda: timed(run).seconds


def ratio(these: list[float], those: list[float]) -> float:
    """The median over rounds, each of which timed both."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


class Rounds:
    """Wall and processor seconds at the end of every round, counted from its making."""

    def __init__(self) -> None:
        self._clock = Clock()
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def add(self) -> None:
        """A round is over."""
        for ends, spent in zip((self.seconds, self.cpu_seconds), self._clock.lap(), strict=True):
            ends.append(spent + (ends[-1] if ends else 0.0))


@contextlib.contextmanager
def clocked_rounds(tell: Callable[[int], None] = lambda rounds: None) -> Iterator[Rounds]:
    """The rounds of a ``refine(..., progress=True)`` inside, clocked where the library moves its bar, which is tqdm's.

    The bar itself is not shown; ``tell`` is called with the number of rounds.
    """
    tqdm = packages.needed("tqdm")
    rounds = Rounds()

    class Bar(tqdm.tqdm):  # type: ignore[name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            rounds.add()
            tell(len(rounds.seconds))
            return None

    with mock.patch.object(tqdm, "tqdm", Bar):
        yield rounds
