"""What to do between two chunks of a training run: show it, or stop it when it no longer gains.

A callback takes the :class:`~glmvae.training.runs.Run` so far and stops the run by returning True. A run that goes on
from a checkpoint shows them the point it loaded before any step: those that are functions of the run alone, as
:func:`early_stop` is, stop it where they would have stopped the run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from glmvae import _settings
from glmvae._optional import optional
from glmvae.training.runs import Run

Callback = Callable[[Run], bool | None]


def progress_bar(steps: int) -> Callback:
    """A callback that shows the run with tqdm: steps taken, the loss, the last ELBO on test (else train) data.

    Args:
        steps: of the run, as for :func:`~glmvae.training.train`.

    Raises:
        ImportError: tqdm is not installed.
        ValueError, TypeError: steps not a positive integer.

    Example:
        >>> from glmvae import training
        >>> callbacks = [training.progress_bar(2000), training.early_stop(10)]
    """
    steps = _settings.integer(steps, "steps")
    bar = optional("tqdm", "progress_bar").tqdm(total=steps, unit="step")

    def show(run: Run) -> None:
        elbo = _watched(run)
        bar.set_postfix_str(f"loss {run.losses[-1]:.2f}" + (f", ELBO {elbo[-1]:.2f}" if elbo.size else ""))
        bar.update(run.step - bar.n)
        if run.step >= steps:
            bar.close()

    return show


def early_stop(patience: int) -> Callback:
    """A callback that stops the run when the ELBO on test (else train) data has not risen for a while.

    ELBOs at different beta do not compare: while beta is annealed the run goes on, and of the evaluations only those
    count that have the beta of the last one. A run without ``evaluate_every=`` has none on its way, and never stops.

    Args:
        patience: evaluations to wait for one that is better than all before.

    Raises:
        ValueError, TypeError: patience not a positive integer.

    Example:
        >>> from glmvae import training
        >>> stop = training.early_stop(5)
    """
    patience = _settings.integer(patience, "patience")

    def stop(run: Run) -> bool:
        elbo, beta = _watched(run), np.asarray(run.evaluations.beta)
        if run.annealing or not elbo.size:
            return False
        changed = np.flatnonzero(beta != beta[-1])
        elbo = elbo[changed[-1] + 1 if changed.size else 0 :]
        return elbo.size - 1 - int(np.argmax(elbo)) >= patience

    return stop


def _watched(run: Run) -> np.ndarray:
    """The ELBOs on test data, or on train data where there are none."""
    test = np.asarray(run.evaluations.test_elbo)
    elbo = np.asarray(run.evaluations.train_elbo) if np.isnan(test).all() else test
    return np.where(np.isnan(elbo), -np.inf, elbo)
