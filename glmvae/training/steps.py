"""One step of training, and a compiled chunk of them.

    loss = - mean over the batch of [log p(x | decoder(z)) - beta KL(q(z | x) || N(0, I))],     z ~ q(z | x)

Batches and noise are functions of a key and the number of the step alone, so the size of a chunk changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae.nets import kl_of_scale, reparameterise
from glmvae.nets.autoencoder import VAE
from glmvae.rows import Rows, filled, observed, row_sum, without_idle
from glmvae.training.runs import State

Schedule = Callable[[Array], Array | float]


def negative_elbo(
    vae: VAE,
    rows: Rows | Array,
    noise: Float[Array, "n k"],
    beta: ArrayLike | None = None,
    dispersion: ArrayLike | None = None,
) -> Float[Array, ""]:
    """The loss of a batch with one draw of z a row, nats per row (1). Pure: no checks, differentiable in the net.

    Args:
        vae: the net.
        rows: the batch, (N, d), or :class:`~glmvae.rows.Rows` with their offset, trials, missing entries and weight;
            the loss is the mean of weight times the loss of a row. Whatever stands where an entry is missing or the
            weight is 0 changes neither the loss nor its gradient.
        noise: standard normal, (N, kappa).
        beta, dispersion: None are those of the net's objective.
    """
    if not isinstance(rows, Rows):
        rows = Rows.tree_unflatten(None, [rows, None, None, None, None, None])
    beta = vae.beta if beta is None else beta
    phi = jnp.asarray(vae.dispersion if dispersion is None else dispersion)
    rows = filled(without_idle(rows), vae.family)
    mean, scale = vae.encode(vae.inputs(rows))
    eta = vae.decoder(reparameterise(mean, scale, noise))
    eta = eta if rows.offset is None else eta + rows.offset
    # What is not summed must not overflow: 0 times infinity is no gradient
    log_prob = vae.family.for_rows(rows).log_prob(rows.x, observed(rows, eta), phi[None] if phi.ndim else phi)
    elbo = row_sum(rows, log_prob) - beta * kl_of_scale(mean, scale)
    return -jnp.mean(elbo if rows.weight is None else jnp.where(rows.weight > 0, rows.weight * elbo, 0.0))


class Task(NamedTuple):
    """What the steps of a run have in common, as arrays.

    Fields:
        rest: of the net, what is not trained.
        rows: the data, with weights of mean 1 or none.
        phi: the dispersion; where it is learned that of the columns that fix it.
        free: the columns whose dispersion is learned, (d,); None for all.
        beta: weight of the KL divergence where no schedule says it.
        batch_key, noise_key: of the orders of the rows, and of the draws of z.
    """

    rest: Any
    rows: Rows
    phi: Array
    free: Array | None
    beta: Array
    batch_key: Array
    noise_key: Array

    def dispersion(self, parameters: dict[str, Any]) -> Array:
        """phi under these parameters."""
        if "log_dispersion" not in parameters:
            return self.phi
        learned = jnp.exp(parameters["log_dispersion"])
        return learned if self.free is None else jnp.where(self.free, learned, self.phi)


class Plan(NamedTuple):
    """What the steps of a run have in common, as parts of the program.

    Fields:
        structure: of the net.
        optimizer: the optax transformation.
        schedule: beta of the step; None for that of the task.
        batch_size: rows a step.
    """

    structure: Any
    optimizer: optax.GradientTransformation
    schedule: Schedule | None
    batch_size: int

    def loss(self, parameters: dict[str, Any], task: Task, batch: Rows, step: Array) -> Array:
        """Of one batch, with the noise and the beta of that step."""
        vae = nnx.merge(self.structure, parameters["net"], task.rest)
        key = jax.random.fold_in(task.noise_key, step)
        noise = jax.random.normal(key, (self.batch_size, vae.latent_dim), batch.x.dtype)
        return negative_elbo(vae, batch, noise, self.beta(task, step), task.dispersion(parameters))

    def beta(self, task: Task, step: Array) -> Array:
        """The weight of the KL divergence in that step."""
        if self.schedule is None:
            return task.beta
        with as_they_like():
            return jnp.asarray(self.schedule(step), task.beta.dtype)

    def update(self, gradient: Any, memory: Any, parameters: Any) -> tuple[Any, Any]:
        """The optimizer's step: new parameters and its new state."""
        with as_they_like():
            updates, memory = self.optimizer.update(gradient, memory, parameters)
            return optax.apply_updates(parameters, updates), memory


@contextlib.contextmanager
def as_they_like() -> Iterator[None]:
    """Optimizers and schedules are not ours: JAX's strict modes are not for them."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def taken(rows: Rows, index: Array) -> Rows:
    """Those rows; what all share stays."""
    return rows.map(lambda leaf: leaf if leaf.shape[0] != rows.num_rows else leaf[index])


@partial(jax.jit, static_argnames=("plan", "room"))
def chunk(plan: Plan, task: Task, state: State, count: Array, *, room: int) -> tuple[State, Array, Array]:
    """``count`` steps, at most ``room``: one program for any count, so that none can round differently.

    Returns the state, the loss of every step, and whether all parameters are finite.
    """
    rows, size = task.rows, plan.batch_size
    per_epoch = rows.num_rows // size

    def order(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(task.batch_key, epoch), rows.num_rows)

    def body(carry: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array, Array]:
        i, (step, parameters, memory), permutation, losses = carry
        within = step % per_epoch
        permutation = jax.lax.cond((within == 0) & (i > 0), lambda: order(step // per_epoch), lambda: permutation)
        batch = taken(rows, jax.lax.dynamic_slice_in_dim(permutation, within * size, size))
        value, gradient = jax.value_and_grad(plan.loss)(parameters, task, batch, step)
        parameters, memory = plan.update(gradient, memory, parameters)
        return i + 1, State(step + 1, parameters, memory), permutation, losses.at[i].set(value)

    start = (jnp.zeros((), jnp.int32), state, order(state.step // per_epoch), jnp.zeros(room, rows.x.dtype))
    _, state, _, losses = jax.lax.while_loop(lambda carry: carry[0] < count, body, start)
    finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.parameters)])
    return state, losses, jnp.all(finite)
