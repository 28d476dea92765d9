"""The arguments of a training run: looked at, and brought to where and how the steps take them."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from glmvae import _settings
from glmvae._frames import names_for
from glmvae.blocks import sweep
from glmvae.monitor import Evaluation
from glmvae.nets.autoencoder import VAE, rows_for
from glmvae.rows import Rows, entered, named
from glmvae.sources import as_source, require_alike
from glmvae.training.steps import Task, as_they_like


def copied(tree: Any) -> Any:
    """The tree with containers of its own, Flax's variables among them; arrays cannot be changed anyway."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, Array) else jnp.array(leaf), tree)


def prepared(x: Any, vae: VAE, name: str, like: Rows | None = None) -> Rows:
    """The rows on the device, in the precision of the net, seen to be in the support, and no longer the caller's.

    Test data are to be like those of ``x``.
    """
    source = rows_for(vae, x, name)
    if source.rows is None:
        raise TypeError(
            f"{name}: training visits the rows in another order every epoch, so it takes an array or Rows in memory, "
            f"got {type(x).__name__}"
        )
    if like is not None:
        require_alike(source, as_source(like))
    sweep(_nothing, source, family=vae.family, name=name)
    owned = source.rows.map(lambda leaf: leaf if isinstance(leaf, Array) else jnp.array(leaf))
    rows = entered(owned, vae.family, vae.dtype)
    weight = None
    if owned.weight is not None:
        given = np.asarray(source.rows.weight, float)
        weight = jnp.asarray(given / given.mean(), vae.dtype)
    return named(rows.replace(weight=weight), **names_for(source))


def _nothing(rows: Rows, _: None) -> tuple[None, None]:
    return None, None


def task_of(
    key: Array, vae: VAE, rows: Rows, learn_dispersion: bool, scheduled: bool
) -> tuple[dict[str, Any], Any, Task]:
    """What is trained, the structure of the net, and what its steps have in common."""
    objective, family = vae.objective, vae.family
    if not scheduled:  # a run whose schedule ends at 0 leaves a net of that beta
        _settings.positive(objective.beta, "beta")
    _settings.positive(objective.dispersion, "dispersion", vae.columns)
    structure, net, rest = nnx.split(vae, nnx.Param, ...)  # type: ignore[misc]
    parameters, phi, free = {"net": net}, jnp.asarray(objective.dispersion, vae.dtype), None
    if learn_dispersion:
        if family.fixed_dispersion is not None:
            raise ValueError(f"learn_dispersion: {family!r} fixes it at {family.fixed_dispersion:g}")
        ones = jnp.ones(vae.columns, vae.dtype)
        learned = family.by_member(lambda member, one: one * float(member.fixed_dispersion is None), ones) > 0
        if not bool(jnp.all(learned)):
            free, phi = learned, jnp.broadcast_to(phi, ones.shape)
        parameters["log_dispersion"] = jnp.log(phi)
    batch_key, noise_key, _ = jax.random.split(key, 3)
    beta = jnp.asarray(objective.beta, vae.dtype)
    return parameters, structure, Task(rest, rows, phi, free, beta, batch_key, noise_key)


def check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks: expected a list of functions, got {type(callbacks).__name__}")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks: expected functions, got {type(callback).__name__} at [{i}]")
        _check_takes_one(callback, f"callbacks[{i}]", "the run")


def _check_takes_one(f: Any, name: str, what: str) -> None:
    try:
        signature = inspect.signature(f)
    except ValueError:  # some built-in functions have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(f"{name}: expected a function of {what}, got one that does not take it: {error}") from error


def first_memory(optimizer: Any, parameters: dict[str, Any]) -> Any:
    """The optimizer's state at step 0; it is tried once, on shapes alone."""
    if not isinstance(optimizer, optax.GradientTransformation):
        advice = ""
        if callable(optimizer):
            advice = "; call it, as in optax.adam(1e-3)"
        raise TypeError(f"optimizer: expected an optax transformation, got {type(optimizer).__name__}{advice}")
    with as_they_like():
        memory = optimizer.init(parameters)
        try:
            jax.eval_shape(optimizer.update, parameters, memory, parameters)
        except TypeError as error:
            raise TypeError(
                f"optimizer: expected one whose update takes gradient, state and parameters, got {error}"
            ) from error
    return memory


def last_change(beta: Any, steps: int) -> int:
    """The first step from which the schedule changes no more; it is looked at at every step."""
    if beta is None:
        return 0
    if not callable(beta):
        raise TypeError(
            f"beta: expected a function of the step or None, got {type(beta).__name__}; a constant is the objective's: "
            "vae.with_beta(...)"
        )
    _check_takes_one(beta, "beta", "the step")
    with as_they_like():
        try:
            values = jax.jit(jax.vmap(lambda step: _number(beta(step))))(jnp.arange(steps + 1, dtype=jnp.int32))
        except jax.errors.JAXTypeError as error:
            raise TypeError(
                "beta: expected a schedule in jax.numpy (jnp.minimum, jnp.where), got one that asks for the value of "
                "the step, as Python's min and if do"
            ) from error
    values = np.asarray(values)
    for step in np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[:1]:
        raise ValueError(f"beta: expected a schedule of finite numbers from 0 on, got {values[step]:g} at step {step}")
    changed = np.flatnonzero(values != values[-1])
    return int(changed[-1]) + 1 if changed.size else 0


def _number(value: Any) -> Array:
    kind = getattr(getattr(value, "dtype", None), "kind", "") or np.asarray(value).dtype.kind
    if kind not in "fiuV":  # V: bfloat16 and its like
        raise TypeError(f"beta: expected a schedule that returns a number, got {value!r}")
    value = jnp.asarray(value)
    if value.ndim:
        raise ValueError(f"beta: expected a schedule that returns a scalar, got shape {value.shape}")
    return value.astype(float)


def no_evaluations(vae: VAE) -> Evaluation:
    none, units = np.zeros(0, vae.dtype), np.zeros((0, vae.latent_dim), vae.dtype)
    return Evaluation(np.zeros(0, np.int32), none, none, none, none, none, units, units)
