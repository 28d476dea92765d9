"""What a training run has, and the errors that hand it over."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae.monitor import Evaluation
from glmvae.nets import VAE


class State(NamedTuple):
    """What a step changes.

    Fields:
        step: steps taken.
        parameters: ``{"net": ...}``, and ``"log_dispersion"`` where the dispersion is learned.
        optimizer: the state of the optax transformation.
    """

    step: Array
    parameters: dict[str, Any]
    optimizer: Any


class Point(NamedTuple):
    """What a checkpoint holds: the state, and the curves so far."""

    state: State
    losses: np.ndarray
    evaluations: Evaluation


class Run(NamedTuple):
    """A training run so far: what callbacks see and :func:`~glmvae.training.train` returns.

    All of it is a copy: whatever a callback does to it, the training goes on as if it had only looked.

    Fields:
        vae: the net after ``step`` steps. Its objective has the beta of that step and the dispersion learned so far.
        step: steps taken.
        losses: the loss of every step's batch, (step,), nats per row.
        evaluations: :class:`~glmvae.monitor.Evaluation` with a leading axis, empty where none was asked for.
        annealing: whether beta will still change in the steps to come.
        stopped: None for a run that took all its steps, else ``"callback"`` or ``"interrupt"``.
    """

    vae: VAE
    step: int
    losses: Float[np.ndarray, " step"]
    evaluations: Evaluation
    annealing: bool = False
    stopped: str | None = None

    @property
    def dispersion(self) -> Array:
        """phi, learned or as given."""
        return self.vae.objective.dispersion

    def __repr__(self) -> str:
        loss = f", last loss {self.losses[-1]:g}" if self.step else ""
        stopped = "" if self.stopped is None else f", stopped by {self.stopped}"
        return f"Run: {self.step} steps{loss}, {len(self.evaluations.step)} evaluations{stopped}, of {self.vae!r}"


class NonFiniteLoss(FloatingPointError):
    """A loss or an update was not finite.

    Attributes:
        step: the number of the step, counted from 0, at which it was seen.
        run: the last good :class:`Run`, at the end of the chunk before.
    """

    def __init__(self, step: int, run: Run) -> None:
        super().__init__(
            f"the loss or the update of step {step} is not finite; the state of step {run.step} is kept as the run of "
            "this error. Perhaps the learning rate is too large, or inputs are far from 1 (see nets.standardisation)"
        )
        self.step, self.run = step, run

    def __reduce__(self) -> tuple[type, tuple[int, Run]]:
        return NonFiniteLoss, (self.step, self.run)


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written: no such folder, not allowed, no room.

    Attributes:
        run: the :class:`Run` in memory, all its chunks included.
        errno, filename: as those of the operating system's error, which is the cause of this one.
    """

    def __init__(self, error: OSError, path: str | os.PathLike[str], run: Run) -> None:
        why = f"checkpoint: cannot be written ({error.strerror}); the run of {run.step} steps is kept in this error"
        super().__init__(error.errno, why, str(path))
        self._why, self.run = error.strerror, run

    def __reduce__(self) -> tuple[type, tuple[OSError, str, Run]]:
        return CheckpointNotWritten, (OSError(self.errno, self._why), self.filename, self.run)
