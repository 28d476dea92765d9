"""Training a net on the beta-ELBO: one pure step, a compiled loop over chunks of steps, a callback between chunks.

    loss = - mean over the batch of [log p(x | decoder(z)) - beta KL(q(z | x) || N(0, I))],     z ~ q(z | x)

Batches and noise are functions of the key and the number of the step alone (:mod:`glmvae.training.steps`). So the size
of a chunk changes nothing, and a run that was stopped and resumed from its checkpoint is bit for bit the run that was
not.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from glmvae import _checkpoint, _files, _settings
from glmvae._fingerprint import of_arrays, of_program, versions
from glmvae.model import Objective, unchecked
from glmvae.monitor import evaluate
from glmvae.nets.autoencoder import VAE, as_vae
from glmvae.rows import Rows
from glmvae.training.callbacks import Callback as Callback
from glmvae.training.callbacks import early_stop as early_stop
from glmvae.training.callbacks import progress_bar as progress_bar
from glmvae.training.preparation import (
    check_callbacks,
    copied,
    first_memory,
    last_change,
    no_evaluations,
    prepared,
    task_of,
)
from glmvae.training.runs import CheckpointNotWritten as CheckpointNotWritten
from glmvae.training.runs import NonFiniteLoss as NonFiniteLoss
from glmvae.training.runs import Point, State
from glmvae.training.runs import Run as Run
from glmvae.training.steps import Plan, Schedule, Task, chunk, taken
from glmvae.training.steps import negative_elbo as negative_elbo

#: The paper's optimiser.
ADAM = optax.adam(1e-4)

# Losses a chunk has room for, in multiples of this: chunks of other sizes need not compile again.
_ROOM = 100


def train(
    key: Array,
    vae: VAE,
    x: Any,
    *,
    steps: int,
    test: Any = None,
    batch_size: int = 100,
    optimizer: optax.GradientTransformation = ADAM,
    beta: Schedule | None = None,
    learn_dispersion: bool = False,
    chunk_size: int = 100,
    evaluate_every: int | None = None,
    num_samples: int = 16,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
) -> Run:
    """Train a net on the beta-ELBO of its objective.

    Args:
        key: a JAX PRNG key: with the number of a step it gives the batch and the noise.
        vae: where to start, with its objective: family, beta, dispersion; it is not changed.
        x, test: data, (N, d), or :class:`~glmvae.rows.Rows`: offset (added to eta), trials, missing entries and weight
            travel with their rows; covariates are refused. Every epoch visits the rows in another order; rows beyond
            the last full batch wait for the next. Test data are only evaluated; their columns have the names and the
            order of those of x, and both bring an offset or neither.
        steps: steps to take in all, those of a resumed run included.
        batch_size: rows a step.
        optimizer: any optax transformation; the default is the paper's, Adam at 1e-4.
        beta: weight of the KL divergence as a function of the step in jax.numpy (annealing), in place of the
            objective's. The nets of the run then have the beta of their step.
        learn_dispersion: train log phi too, from the objective's; for families that do not fix it, and of a Mixed
            family for the columns that do not.
        chunk_size: steps between two callbacks and checkpoints: what an interrupt can lose.
        evaluate_every: steps between two evaluations (:func:`~glmvae.monitor.evaluate`), the first at step 0, each with
            the same noise; None for none.
        num_samples: draws a row in an evaluation.
        callbacks: called with the :class:`~glmvae.training.runs.Run` after each chunk, and of a run that goes on from a
            checkpoint with that first, before any step; one that returns True stops the run.
        checkpoint: a file to which the run is written after each chunk, all or nothing. If it exists the run goes on
            from it, unless a callback stops it there. It is the same run if all is the same that is computed with:
            data, key, net, optimizer and schedule, the last by what they compute. (A net that is computed anew on a GPU
            may differ in its last digits, and is then another.) A symbolic link is followed.

    Returns:
        :class:`~glmvae.training.runs.Run`. Ctrl-C returns the run as it was after the last chunk, with
        ``stopped="interrupt"``.

    Raises:
        ValueError: bad data, sizes or schedule; test data of other columns than x or where only one of the two has an
            offset; a dispersion that is not positive, or learned for a family that fixes it; a checkpoint of another
            run, whose first difference it names, or no checkpoint.
        TypeError: arguments of another kind: no net, no key, no optax transformation, callbacks that are no sequence of
            functions, rows that are not in memory.
        NonFiniteLoss: a loss or a parameter that is not finite; the error has the step and the last good run.
        CheckpointNotWritten: the checkpoint cannot be written, tried before step 0; an OSError that has the run.

    Exactness: a stochastic gradient, unbiased for the weighted mean of the rows. On a GPU or TPU its products are as
        ``jax.default_matmul_precision`` has them; those of an evaluation are in full.

    Example:
        >>> import jax
        >>> from glmvae import Objective, nets, training
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (200, 4))
        >>> objective = Objective(Gaussian(), dispersion=1.0)
        >>> vae = nets.canonical(jax.random.key(1), 4, 2, objective, encoder_widths=(8,))
        >>> run = training.train(jax.random.key(2), vae, x, steps=20, evaluate_every=10)
        >>> run.losses.shape, run.evaluations.step.tolist()
        ((20,), [0, 10, 20])
    """
    key, vae = _settings.prng_key(key, "key"), as_vae(vae)
    rows = prepared(x, vae, "x")
    tests = None if test is None else prepared(test, vae, "test", rows)
    steps, chunk_size = (_settings.integer(v, n) for v, n in ((steps, "steps"), (chunk_size, "chunk_size")))
    every = None if evaluate_every is None else _settings.integer(evaluate_every, "evaluate_every")
    batch_size = _settings.latent_dim(batch_size, rows.num_rows, "batch_size", of="rows")
    num_samples = _settings.integer(num_samples, "num_samples")
    check_callbacks(callbacks)
    parameters, structure, task = task_of(key, vae, rows, learn_dispersion, beta is not None)
    memory = first_memory(optimizer, parameters)
    plan = Plan(structure, optimizer, beta, batch_size)
    session = _Session(plan, task, tests, last_change(beta, steps), jax.random.split(key, 3)[2], every, num_samples)
    # A copy: what the caller or a callback holds of the net is not what is trained
    state = copied(State(jnp.zeros((), jnp.int32), parameters, memory))
    point = Point(state, np.zeros(0, vae.dtype), no_evaluations(vae))
    if checkpoint is None:
        return _run(session, point, steps, chunk_size, tuple(callbacks), lambda point: None)

    path, identity = _files.located(checkpoint, "checkpoint"), session.identity(key, state, vae)
    point = _checkpoint.load(path, identity, point)

    def save(point: Point, write: Any = _files.write) -> None:
        try:
            write(path, _checkpoint.pack(identity, point))
        except OSError as error:
            raise CheckpointNotWritten(error, path, session.at(point)) from error

    save(point, _files.rehearse)
    return _run(session, point, steps, chunk_size, tuple(callbacks), save)


def _run(
    session: _Session, point: Point, steps: int, chunk_size: int, callbacks: tuple[Callback, ...], save: Any
) -> Run:
    """Chunk after chunk; callbacks see a loaded point first, which may be the one at which they stopped the run."""

    def stops(point: Point) -> bool:
        return any([callback(session.at(point)) for callback in callbacks])

    try:
        point = session.evaluated(point)
        if len(point.losses) and stops(point):
            return session.at(point, "callback")
        while (step := len(point.losses)) < steps:
            # one assignment, so that an interrupt finds all of a chunk or nothing of it
            point = session.evaluated(session.advanced(point, min(chunk_size, steps - step), chunk_size))
            save(point)
            if stops(point):
                return session.at(point, "callback")
    except KeyboardInterrupt:
        return session.at(point, "interrupt")
    return session.at(point)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What does not change in the course of a run; its methods take the point where it stands."""

    plan: Plan
    task: Task
    test: Rows | None
    last_change: int
    key: Array
    every: int | None
    num_samples: int

    def at(self, point: Point, stopped: str | None = None) -> Run:
        """A copy of what the run has."""
        parameters = copied(point.state.parameters)
        vae = nnx.merge(self.plan.structure, parameters["net"], copied(self.task.rest))
        beta, phi = self.plan.beta(self.task, point.state.step), self.task.dispersion(parameters)
        vae.objective = nnx.data(unchecked(Objective, family=vae.family, beta=beta, dispersion=phi))  # beta may be 0
        step, losses, evaluations = len(point.losses), point.losses.copy(), jax.tree.map(np.copy, point.evaluations)
        return Run(vae, step, losses, evaluations, step < self.last_change, stopped)

    def evaluated(self, point: Point) -> Point:
        """The point with an evaluation, where one is due."""
        step, done = len(point.losses), point.evaluations
        if self.every is None or step % self.every or step in done.step:
            return point
        vae, options = self.at(point).vae, {"num_samples": self.num_samples, "step": step}
        record = evaluate(self.key, vae, self.task.rows, test=self.test, **options)
        join = jax.tree.map(lambda old, new: np.concatenate([old, np.asarray(new, old.dtype)[None]]), done, record)
        return point._replace(evaluations=join)

    def advanced(self, point: Point, count: int, chunk_size: int) -> Point:
        """A chunk further, but no further than the next evaluation."""
        step, room = len(point.losses), -(-chunk_size // _ROOM) * _ROOM
        count = count if self.every is None else min(count, self.every - step % self.every)
        state, losses, finite = chunk(self.plan, self.task, point.state, count, room=room)
        losses = np.asarray(losses)[:count]
        if not (np.isfinite(losses).all() and finite):
            bad = np.flatnonzero(~np.isfinite(losses))
            raise NonFiniteLoss(step + int(bad[0] if bad.size else count - 1), self.at(point))
        return Point(state, np.concatenate([point.losses, losses]), point.evaluations)

    def identity(self, key: Array, state: State, vae: VAE) -> _checkpoint.Identity:
        """What the run is: everything that it computes with."""
        plan, task, fixed = self.plan, self.task, vae.objective
        batch = jax.eval_shape(taken, task.rows, jnp.arange(plan.batch_size))
        gradient = jax.tree.map(jnp.zeros_like, state.parameters)
        loss = jax.value_and_grad(plan.loss)
        schedule = {} if plan.schedule is None else {"beta": of_program(lambda step: plan.beta(task, step), state.step)}
        programs = schedule | {
            "optimizer": of_program(plan.update, gradient, state.optimizer, state.parameters),
            "loss": of_program(loss, state.parameters, task, batch, state.step),
        }
        settings = {
            "batch_size": plan.batch_size,
            "beta": float(fixed.beta) if plan.schedule is None else "a schedule",
            "dispersion": of_arrays(fixed.dispersion),
            "family": f"{type(vae.family).__name__} {of_arrays(vae.family)}",
            "net": of_arrays(task.rest),
            "start": of_arrays((state.parameters, state.optimizer)),
            "data": of_arrays((task.rows, self.test)),
            "key": of_arrays(key),
            "evaluate_every": self.every,
            "num_samples": self.num_samples,
        }
        return _checkpoint.Identity(settings, programs, versions())
