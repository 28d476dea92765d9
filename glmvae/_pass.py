"""One pass over the data: it improves the posteriors and sums up what the decoder needs next.

After a step of every q (``_rows``), (W, b) of column j move by one step of weighted least squares, A_j^-1 s_j with

    A_j = sum_i w_ij E z~ z~',     s_j = d/d(W_j, b_j) sum_i E log p(x_ij),     z~ = (z, 1).

Last, z is standardised: with c = mean mu and T T' = mean E zz' - c c', the change z -> T^-1 (z - c), W -> W T,
b -> b + W c leaves every eta as it is and lowers the KL divergence. Without it a decoder whose posteriors are narrow
would grow to its size in many small steps (parameter expansion; Liu, Rubin and Wu 1998).

The pass goes over blocks of rows and keeps only q and these sums.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from glmvae._problem import Problem, block_of, blocks
from glmvae._rows import Decoder, RowPosteriors, evaluate, improve, pairs, pick, starting_rows, symmetric_inverse


class Standardisation(NamedTuple):
    """z -> T^-1 (z - c): ``root`` T, ``inverse`` T^-1, ``shift`` c, ``log_det`` log|T|."""

    root: Float[Array, "k k"]
    inverse: Float[Array, "k k"]
    shift: Float[Array, " k"]
    log_det: Float[Array, ""]


class Summary(NamedTuple):
    """Of one pass: mean ELBO, and what to do next.

    ``step`` is the step of (W, b) by weighted least squares, ``change`` how z is standardised after it, ``gain`` what
    both are predicted to gain, ``metric`` that of the least squares; ``weight`` and ``mean`` are the means of w and mu
    over the rows. ``before`` and ``after`` are the sums of E log p by column before the step of the q and after it.
    """

    elbo: Float[Array, ""]
    before: Float[Array, " d"]
    after: Float[Array, " d"]
    step: Decoder
    change: Standardisation
    gain: Float[Array, ""]
    metric: Float[Array, "d k1"]
    weight: Float[Array, " d"]
    mean: Float[Array, " k"]


@jax.jit
def pass_over_rows(
    decoder: Decoder,
    problem: Problem,
    rows: RowPosteriors,
    change: Standardisation,
    steps: ArrayLike,
    tolerance: ArrayLike,
    anew: ArrayLike,
) -> tuple[RowPosteriors, Summary]:
    """Steps of every q from the changed ``rows``, or anew, and the step of (W, b) that the result calls for.

    So many steps, or as many as it takes until no row of the block gains more than ``tolerance``, or would with a full
    step.
    """
    num_rows, columns = problem.x.shape
    units = decoder.loadings.shape[1]
    dtype = problem.x.dtype
    size, num_blocks = blocks(problem)
    first, second, where = pairs(units + 1)

    def body(i: Array, carry: tuple) -> tuple:
        rows, elbo, before, after, gram, score, spread = carry
        start = jnp.minimum(i * size, num_rows - size)
        block = block_of(problem, start, size)
        # The last block is as long as the others; rows it shares with the one before are not counted again.
        new_rows = jnp.arange(size) + start >= i * size
        old = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), rows)

        changed = old._replace(
            mean=(old.mean - change.shift) @ change.inverse.T,
            covariance=jnp.einsum("ak,nkl,bl->nab", change.inverse, old.covariance, change.inverse),
            log_det=old.log_det - 2 * change.log_det,
        )
        changed = jax.lax.cond(anew, lambda: starting_rows(decoder, block), lambda: changed)
        at_changed = evaluate(decoder, block, changed)

        def go_on(carry: tuple) -> Array:
            step, _, _, gain = carry
            return (step < steps) & ((step == 0) | jnp.any(gain > tolerance))

        def step(carry: tuple) -> tuple:
            step, q, terms, _ = carry
            new, new_terms = improve(decoder, block, q, terms)
            gain = jnp.where(jnp.isfinite(new_terms.elbo), new_terms.elbo - terms.elbo, 0.0)
            return step + 1, new, new_terms, gain * 2.0**new.caution

        _, q, terms, _ = jax.lax.while_loop(go_on, step, (0, changed, at_changed, jnp.zeros(size, dtype)))
        q = pick(new_rows, q, old)
        rows = jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, 0), rows, q)

        counted = new_rows.astype(dtype)[:, None]
        weight, gradient = terms.weight * counted, terms.gradient * counted
        before = before + jnp.sum(jnp.where(new_rows[:, None], at_changed.value, 0.0), axis=0)
        after = after + jnp.sum(jnp.where(new_rows[:, None], terms.value, 0.0), axis=0)
        mean = jnp.concatenate([q.mean, jnp.ones((size, 1), dtype)], axis=1)
        second_moment = jnp.pad(q.covariance, ((0, 0), (0, 1), (0, 1))) + mean[:, :, None] * mean[:, None]
        second_moment = second_moment[:, first, second]
        gram = gram + weight.T @ second_moment
        spread = spread + counted[:, 0] @ second_moment / num_rows
        linear = q.mean @ decoder.loadings.T  # m less intercept and offset
        score = score + (gradient + weight * linear).T @ mean
        elbo = elbo + jnp.sum(jnp.where(new_rows, terms.elbo, 0.0)) / num_rows
        return rows, elbo, before, after, gram, score, spread

    carry = (
        rows,
        jnp.zeros((), dtype),
        jnp.zeros(columns, dtype),
        jnp.zeros(columns, dtype),
        jnp.zeros((columns, len(first)), dtype),
        jnp.zeros((columns, units + 1), dtype),
        jnp.zeros(len(first), dtype),
    )
    rows, elbo, before, after, gram, score, spread = jax.lax.fori_loop(0, num_blocks, body, carry)
    gram = gram[:, where]
    # sum w (Sigma W_j + mu mu' W_j) less sum w mu mu' W_j: what the spread of z takes from the gradient
    score = score - jnp.einsum("dkl,dl->dk", gram[:, :, :units], decoder.loadings)
    # The same scale in every row and column of the matrix to be swept
    scale = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
    scale = jnp.where(scale > 0, scale, 1.0)
    inverse, _ = symmetric_inverse(gram / (scale[:, :, None] * scale[:, None]))
    scaled = score / scale
    solved = jnp.einsum("dkl,dl->dk", inverse, scaled)
    gain = 0.5 * jnp.sum(scaled * solved) / num_rows
    step = Decoder((solved / scale)[:, :units], (solved / scale)[:, units])

    spread = spread[where]
    centre, moment = spread[units, :units], spread[:units, :units]
    root = jnp.linalg.cholesky(moment - jnp.outer(centre, centre))
    # What has no root stays as it is.
    rooted = jnp.all(jnp.isfinite(root))
    root, shift = jnp.where(rooted, root, jnp.eye(units, dtype=dtype)), jnp.where(rooted, centre, 0.0)
    log_det = jnp.sum(jnp.log(jnp.diag(root)))
    inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(units, dtype=dtype), lower=True)
    change = Standardisation(root, inverse, shift, log_det)
    gain = gain + jnp.where(rooted, problem.beta * (0.5 * (jnp.trace(moment) - units) - log_det), 0.0)
    return rows, Summary(elbo, before, after, step, change, gain, scale, gram[:, units, units] / num_rows, centre)


def best_rows(decoder: Decoder, problem: Problem, tolerance: float, max_steps: int) -> tuple[RowPosteriors, Summary]:
    """The best q of every row for a fixed decoder, to within ``tolerance``."""
    num_rows, dtype = problem.x.shape[0], problem.x.dtype
    units = decoder.loadings.shape[1]
    shapes = ((num_rows, units), (num_rows, units, units), (num_rows,), (num_rows,))
    none = RowPosteriors(*(jnp.zeros(shape, dtype) for shape in shapes))
    return pass_over_rows(decoder, problem, none, no_change(units, dtype), max_steps, tolerance, True)


def no_change(units: int, dtype: DTypeLike) -> Standardisation:
    """z as it is."""
    same = jnp.eye(units, dtype=dtype)
    return Standardisation(same, same, jnp.zeros(units, dtype), jnp.zeros((), dtype))


@jax.jit
def mean_elbo(decoder: Decoder, problem: Problem, rows: RowPosteriors) -> Float[Array, ""]:
    """The mean ELBO of given q, in blocks; a covariance may be one for all rows, (1, kappa, kappa)."""
    num_rows = problem.x.shape[0]
    size, num_blocks = blocks(problem)

    def cut(a: Array, start: Array) -> Array:
        if a.shape[0] == 1:  # one for all rows
            return jnp.broadcast_to(a, (size, *a.shape[1:]))
        return jax.lax.dynamic_slice_in_dim(a, start, size)

    def body(i: Array, total: Array) -> Array:
        start = jnp.minimum(i * size, num_rows - size)
        q = jax.tree.map(lambda a: cut(a, start), rows)
        elbo = evaluate(decoder, block_of(problem, start, size), q).elbo
        return total + jnp.sum(jnp.where(jnp.arange(size) + start >= i * size, elbo, 0.0)) / num_rows

    return jax.lax.fori_loop(0, num_blocks, body, jnp.zeros((), problem.x.dtype))


@jax.jit
def gradient_moments(decoder: Decoder, problem: Problem, rows: RowPosteriors) -> Float[Array, "d d"]:
    """The mean over rows of g g': what a further latent unit could explain."""
    num_rows, columns = problem.x.shape
    size, num_blocks = blocks(problem)

    def body(i: Array, total: Array) -> Array:
        start = jnp.minimum(i * size, num_rows - size)
        q = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), rows)
        gradient = evaluate(decoder, block_of(problem, start, size), q).gradient
        gradient = jnp.where((jnp.arange(size) + start >= i * size)[:, None], gradient, 0.0)
        return total + gradient.T @ gradient / num_rows

    return jax.lax.fori_loop(0, num_blocks, body, jnp.zeros((columns, columns), problem.x.dtype))
