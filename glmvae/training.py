"""Training a net on the beta-ELBO: one pure step, a compiled loop over chunks of steps, a callback between chunks.

    loss = - mean over the batch of [log p(x | decoder(z)) - beta KL(q(z | x) || N(0, I))],     z ~ q(z | x)

Batches and noise are functions of the key and the number of the step alone. So the size of a chunk changes nothing, and
a run that was stopped and resumed from its checkpoint is bit for bit the run that was not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae import _checkpoint, _checks
from glmvae.monitor import Evaluation, evaluate
from glmvae.nets import VAE, kl_of_scale, reparameterise

#: The paper's optimiser.
ADAM = optax.adam(1e-4)

# Losses a chunk has room for, in multiples of this: chunks of other sizes need not compile again.
_ROOM = 100

Schedule = Callable[[Array], Array | float]


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
    """A training run so far: what callbacks see and :func:`train` returns.

    Fields:
        vae: the net after ``step`` steps.
        dispersion: phi, learned or as given.
        step: steps taken.
        losses: the loss of every step's batch, (step,), nats per row.
        evaluations: :class:`~glmvae.monitor.Evaluation` with a leading axis, empty where none was asked for.
        stopped: None for a run that took all its steps, else ``"callback"`` or ``"interrupt"``.
    """

    vae: VAE
    dispersion: Array
    step: int
    losses: Float[np.ndarray, " step"]
    evaluations: Evaluation
    stopped: str | None = None


Callback = Callable[[Run], bool | None]


class NonFiniteLoss(FloatingPointError):
    """A loss or an update was not finite.

    Attributes:
        step: the number of the step, counted from 0, at which it was seen.
        run: the last good :class:`Run`, at the end of the chunk before.
    """

    def __init__(self, step: int, run: Run) -> None:
        super().__init__(f"the loss or the update of step {step} is not finite; the state of step {run.step} is kept")
        self.step, self.run = step, run


def negative_elbo(
    vae: VAE, x: Float[Array, "n d"], noise: Float[Array, "n k"], beta: ArrayLike, dispersion: ArrayLike = 1.0
) -> Float[Array, ""]:
    """The loss of a batch with one draw of z a row, nats per row (1). Pure: no checks, differentiable in the net."""
    mean, scale = vae.encode(x)
    eta = vae.decoder(reparameterise(mean, scale, noise))
    log_prob = jnp.sum(vae.family.log_prob(x, eta, dispersion), axis=-1)
    return -jnp.mean(log_prob - beta * kl_of_scale(mean, scale))


def train(
    key: Array,
    vae: VAE,
    x: ArrayLike,
    *,
    steps: int,
    test: ArrayLike | None = None,
    batch_size: int = 100,
    optimizer: optax.GradientTransformation = ADAM,
    beta: float | Schedule = 1.0,
    dispersion: ArrayLike | None = None,
    learn_dispersion: bool = False,
    chunk_size: int = 100,
    evaluate_every: int | None = None,
    num_samples: int = 16,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
) -> Run:
    """Train a net on the beta-ELBO.

    Args:
        key: a JAX PRNG key: with the number of a step it gives the batch and the noise.
        vae: where to start; it is not changed.
        x, test: data, (N, d). Every epoch visits the rows in another order; rows beyond the last full batch wait for
            the next. Test data are only evaluated.
        steps: steps to take in all, those of a resumed run included.
        batch_size: rows a step.
        optimizer: any optax transformation; the default is the paper's, Adam at 1e-4.
        beta: weight of the KL divergence, or a function of the step in jax.numpy (annealing).
        dispersion: phi, as in :func:`~glmvae.optimum.fit` but for Gaussian, which here needs one.
        learn_dispersion: train log phi too, from there; for families that do not fix it.
        chunk_size: steps between two callbacks and checkpoints: what an interrupt can lose.
        evaluate_every: steps between two evaluations (:func:`~glmvae.monitor.evaluate`), the first at step 0, each with
            the same noise; None for none.
        num_samples: draws a row in an evaluation.
        callbacks: called with the :class:`Run` after each chunk; one that returns True stops the run.
        checkpoint: a file to which the run is written after each chunk, all or nothing. If it exists the run goes on
            from it.

    Returns:
        :class:`Run`. Ctrl-C returns the run as it was after the last chunk, with ``stopped="interrupt"``.

    Raises:
        ValueError: bad data, sizes, beta or dispersion; a dispersion missing, or learned for a family that fixes it;
            a checkpoint of another run, whose first difference it names (a function given as beta or optimizer is
            compared by what it returns at some steps).
        TypeError: a size that is not an integer; an optimizer that is not an optax transformation.
        NonFiniteLoss: a loss or a parameter that is not finite; the error has the step and the last good run.

    Exactness: a stochastic gradient, unbiased.

    Example:
        >>> import jax
        >>> from glmvae import nets, training
        >>> from glmvae.families import Gaussian
        >>> x = jax.random.normal(jax.random.key(0), (200, 4))
        >>> vae = nets.canonical(jax.random.key(1), 4, 2, Gaussian(), encoder_widths=(8,))
        >>> run = training.train(jax.random.key(2), vae, x, steps=20, dispersion=1.0, evaluate_every=10)
        >>> run.losses.shape, run.evaluations.step.tolist()
        ((20,), [0, 10, 20])
    """
    x = _checks.rows_of(x, vae.family, vae.columns).astype(vae.dtype)
    test = None if test is None else _checks.rows_of(test, vae.family, vae.columns, "test").astype(vae.dtype)
    batch_size = _checks.latent_dim(batch_size, x.shape[0], "batch_size", of="rows")
    steps, chunk_size = (_checks.integer(v, n) for v, n in ((steps, "steps"), (chunk_size, "chunk_size")))
    every = None if evaluate_every is None else _checks.integer(evaluate_every, "evaluate_every")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer: expected an optax transformation, got {type(optimizer).__name__}")
    schedule = beta if callable(beta) else None
    if schedule is None:
        _checks.positive(beta, "beta")
    constant = jnp.asarray(1.0 if callable(beta) else beta, vae.dtype)
    phi = _dispersion(vae, dispersion, learn_dispersion)
    batch_key, noise_key, evaluation_key = jax.random.split(key, 3)

    structure, net, rest = nnx.split(vae, nnx.Param, ...)  # type: ignore[misc]
    parameters = {"net": net, "log_dispersion": jnp.log(phi)} if learn_dispersion else {"net": net}
    state = State(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters))
    point = Point(state, np.zeros(0, vae.dtype), _no_evaluations(vae))

    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        probes = [float(schedule(jnp.asarray(s)) if schedule else constant) for s in (0, 1, 10, 100, 1000, 10000)]
        settings = {
            "net": str(vae.settings()),
            "start": _digest(parameters),
            "data": _digest((x, test)),
            "key": _digest(jax.random.key_data(key)),
            "batch_size": batch_size,
            "beta": probes,
            "dispersion": _digest(phi),
            "optimizer": _describe(optimizer, state),
            "evaluate_every": every,
            "num_samples": num_samples,
        }
        if path.exists():
            point = _checkpoint.load(path, settings, point)

    def run_at(point: Point, stopped: str | None = None) -> Run:
        learned = point.state.parameters.get("log_dispersion")
        net = nnx.merge(structure, point.state.parameters["net"], rest)
        learned_phi = phi if learned is None else jnp.exp(learned)
        return Run(net, learned_phi, len(point.losses), point.losses, point.evaluations, stopped)

    def evaluated(point: Point) -> Point:
        run, done = run_at(point), point.evaluations
        if every is None or run.step % every or run.step in done.step:
            return point
        record = evaluate(
            evaluation_key,
            run.vae,
            x,
            test=test,
            beta=constant if schedule is None else schedule(point.state.step),
            dispersion=run.dispersion,
            num_samples=num_samples,
            step=run.step,
        )
        join = jax.tree.map(lambda old, new: np.concatenate([old, np.asarray(new, old.dtype)[None]]), done, record)
        return point._replace(evaluations=join)

    try:
        point = evaluated(point)
        while (step := len(point.losses)) < steps:
            count = min(chunk_size, steps - step, chunk_size if every is None else every - step % every)
            state, losses, finite = _chunk(
                structure,
                rest,
                point.state,
                x,
                batch_key,
                noise_key,
                constant,
                phi,
                count,
                optimizer=optimizer,
                schedule=schedule,
                batch_size=batch_size,
                room=-(-chunk_size // _ROOM) * _ROOM,
            )
            chunk = np.asarray(losses)[:count]
            if not (np.isfinite(chunk).all() and finite):
                bad = np.flatnonzero(~np.isfinite(chunk))
                raise NonFiniteLoss(step + int(bad[0] if bad.size else count - 1), run_at(point))
            # one assignment, so that an interrupt finds all of a chunk or nothing of it
            point = evaluated(Point(state, np.concatenate([point.losses, chunk]), point.evaluations))
            if path is not None:
                _checkpoint.save(path, settings, point)
            run = run_at(point)
            if any([callback(run) for callback in callbacks]):
                return run._replace(stopped="callback")
    except KeyboardInterrupt:
        return run_at(point, "interrupt")
    return run_at(point)


@partial(jax.jit, static_argnames=("structure", "optimizer", "schedule", "batch_size", "room"))
def _chunk(
    structure: Any,
    rest: Any,
    state: State,
    x: Array,
    batch_key: Array,
    noise_key: Array,
    beta: Array,
    phi: Array,
    count: Array,
    *,
    optimizer: optax.GradientTransformation,
    schedule: Schedule | None,
    batch_size: int,
    room: int,
) -> tuple[State, Array, Array]:
    """``count`` steps, at most ``room``: one program for any count, so that none can round differently."""
    rows = x.shape[0]
    per_epoch = rows // batch_size

    def order(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(batch_key, epoch), rows)

    def loss(parameters: dict[str, Any], batch: Array, step: Array) -> Array:
        vae = nnx.merge(structure, parameters["net"], rest)
        noise = jax.random.normal(jax.random.fold_in(noise_key, step), (batch_size, vae.latent_dim), x.dtype)
        weight = beta if schedule is None else jnp.asarray(schedule(step), x.dtype)
        dispersion = jnp.exp(parameters["log_dispersion"]) if "log_dispersion" in parameters else phi
        return negative_elbo(vae, batch, noise, weight, dispersion)

    def body(carry: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array, Array]:
        i, (step, parameters, memory), permutation, losses = carry
        within = step % per_epoch
        permutation = jax.lax.cond((within == 0) & (i > 0), lambda: order(step // per_epoch), lambda: permutation)
        batch = x[jax.lax.dynamic_slice_in_dim(permutation, within * batch_size, batch_size)]
        value, gradient = jax.value_and_grad(loss)(parameters, batch, step)
        updates, memory = optimizer.update(gradient, memory, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return i + 1, State(step + 1, parameters, memory), permutation, losses.at[i].set(value)

    start = (jnp.zeros((), jnp.int32), state, order(state.step // per_epoch), jnp.zeros(room, x.dtype))
    _, state, _, losses = jax.lax.while_loop(lambda carry: carry[0] < count, body, start)
    finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.parameters)])
    return state, losses, jnp.all(finite)


def progress_bar(steps: int) -> Callback:
    """A callback that shows the run with tqdm: steps taken, the loss, the last ELBO on test (else train) data.

    Args:
        steps: of the run, as for :func:`train`.

    Raises:
        ImportError: tqdm is not installed.

    Example:
        >>> from glmvae import training
        >>> callbacks = [training.progress_bar(2000), training.early_stop(10)]
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('progress_bar needs tqdm, which is optional: pip install "glmvae[data]"') from error
    bar = tqdm(total=steps, unit="step")

    def show(run: Run) -> None:
        bar.set_postfix_str(f"loss {run.losses[-1]:.2f}" + (f", ELBO {elbo:.2f}" if (elbo := _last(run)) else ""))
        bar.update(run.step - bar.n)
        if run.step >= steps:
            bar.close()

    return show


def _watched(run: Run) -> np.ndarray:
    """The ELBOs on test data, or on train data where there are none."""
    test = np.asarray(run.evaluations.test_elbo)
    return np.asarray(run.evaluations.train_elbo) if np.isnan(test).any() else test


def _last(run: Run) -> float | None:
    elbo = _watched(run)
    return float(elbo[-1]) if elbo.size else None


def early_stop(patience: int) -> Callback:
    """A callback that stops the run when the ELBO on test (else train) data has not risen for a while.

    Args:
        patience: evaluations to wait for one that is better than all before.

    Raises:
        ValueError, TypeError: patience not a positive integer.

    Example:
        >>> from glmvae import training
        >>> stop = training.early_stop(5)
    """
    patience = _checks.integer(patience, "patience")

    def stop(run: Run) -> bool:
        elbo = _watched(run)
        return elbo.size > 0 and elbo.size - 1 - int(np.argmax(elbo)) >= patience

    return stop


def _dispersion(vae: VAE, dispersion: ArrayLike | None, learn: bool) -> Array:
    fixed = vae.family.fixed_dispersion
    if learn and fixed is not None:
        raise ValueError(f"learn_dispersion: {vae.family!r} fixes it at {fixed:g}")
    if dispersion is None:
        if fixed is None:
            raise ValueError(f"dispersion: {vae.family!r} needs one, got None")
        dispersion = fixed
    _checks.positive(dispersion, "dispersion", vae.columns)
    return jnp.asarray(dispersion, vae.dtype)


def _no_evaluations(vae: VAE) -> Evaluation:
    none, units = np.zeros(0, vae.dtype), np.zeros((0, vae.latent_dim), vae.dtype)
    return Evaluation(np.zeros(0, np.int32), none, none, none, none, none, units, units)  # type: ignore[arg-type]


def _digest(tree: Any) -> str:
    """A hash of all arrays in a pytree: shapes, dtypes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _describe(optimizer: optax.GradientTransformation, state: State) -> str:
    """What the optimizer makes of a first gradient of ones, to three digits: it tells learning rates apart."""
    updates, memory = optimizer.update(jax.tree.map(jnp.ones_like, state.parameters), state.optimizer, state.parameters)
    size = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(updates))
    return f"{size:.3g} {jax.tree.structure(memory)}"
