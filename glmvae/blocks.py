"""The loop over rows: one map over blocks and an associative sum.

    f(rows, old, *args) -> (summand, new)

is pure, stands at module level and is compiled once for each padded size. The loop cuts blocks on the host (views of
NumPy arrays), all of one rung of a short ladder, pads the last by repeating a row at weight 0, calls f, and adds the
summands up. So the number of rows never enters a compiled program, and another number compiles next to nothing. What a
row keeps (``old`` and ``new``) lies in a store, which drops the padding. Blocks may be computed side by side
(:mod:`glmvae.threads`); they are added in order all the same. Under a transformation the same f runs in ``lax.scan``.

In f every row has a weight, 0 for padding: sums are masked by it, results a row are not. A result that the rows share
has a leading axis of 1, as everything here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from glmvae import _checks
from glmvae._lost_digits import warn_of_lost_digits
from glmvae._precision import in_full
from glmvae.cuts import block_size, cut_rows, cut_tree, layout, lies_on_host
from glmvae.entries import all_inside, inside, look_at, refuse_entry
from glmvae.families import Family
from glmvae.rows import Rows, check_rows, entered
from glmvae.sources import Source, concrete
from glmvae.stores import Block as Block
from glmvae.stores import Store as Store
from glmvae.threads import programs_side_by_side

Function = Callable[..., tuple[Any, Any]]


def total(
    f: Function, source: Source, *args: Any, family: Family | None = None, add: Callable | None = None, **options: Any
) -> Any:
    """The sum over blocks of what f returns first; see :func:`sweep`."""
    return sweep(f, source, *args, family=family, add=add, **options)


def per_row(f: Function, source: Source, *args: Any, family: Family | None = None, **options: Any) -> Any:
    """What f returns second, for every row in order; see :func:`sweep`."""
    if traced(source, args, options.get("given")):
        return _scan(f, source, args, family, _add, options)[1]
    store = Store()
    sweep(f, source, *args, family=family, store=store, **options)
    store.commit()
    with _checks.at_once():
        return store.gathered()


def sweep(
    f: Function,
    source: Source,
    *args: Any,
    family: Family | None = None,
    check: bool | Callable[[Rows, Any, Any], Array] = True,
    num_covariates: int | None = 0,
    given: Any = None,
    store: Store | None = None,
    add: Callable | None = None,
    size: int | None = None,
    compiled: bool = True,
    threads: bool = False,
    on_host: Function | None = None,
    whole: Callable[[Rows], bool] | None = None,
    name: str = "x",
) -> Any:
    """One pass of f over all rows.

    Args:
        f: ``(rows, old, *args) -> (summand, new)``.
        source: the rows.
        args: pytrees of arrays, the same for every block.
        family: whose support the rows are checked against, and from which missing entries are filled; may be None.
        check: look at the values, in the first pass over them; or a function of rows, family and summand that does.
        num_covariates: how many the rows have to bring, None for any.
        given: arrays with a leading axis N or 1 that are cut as the rows are, and handed over as ``old``.
        store: where ``old`` comes from and ``new`` goes (into its shadow).
        add: of two summands; the sum of all leaves where it is None.
        size: rows of a full block.
        compiled: f is compiled, once for each padded size; otherwise it runs as it is, operation by operation.
        threads: blocks are computed side by side, in threads: it pays where f is long and its operations small.
        on_host: what stands in for f, uncompiled, where rows lie on the host: it gets them as they come, not cast.
        whole: whether it gets all rows of a piece at once, without padding; otherwise it has blocks as f has.

    Returns:
        The sum, or None where f returns none.

    Raises:
        ValueError: rows that do not bring what the family needs, or values out of its support; it names the first.
            Another number of rows than ``given`` is for.
        TypeError: rows that are not in memory, under a transformation.
    """
    add = _add if add is None else add
    _checks.not_forked()
    if traced(source, args, given):
        options = {"check": check, "num_covariates": num_covariates, "given": given, "size": size, "name": name}
        return _scan(f, source, args, family, add, options)[0]
    size = block_size(source.num_columns) if size is None else size
    dtype = common_dtype(source, args)
    run = _program(f, check, dtype) if compiled else _eager(f, check, dtype)
    args = jax.tree.map(lambda leaf: np.asarray(leaf, dtype) if getattr(leaf, "weak_type", False) else leaf, args)
    with _checks.at_once():  # what is concrete stays so, inside somebody's jit too
        plain = None if on_host is None else _plain(on_host, check)
        return _pass(run, plain, whole, source, args, family, num_covariates, given, store, add, size, name, threads)


def _pass(
    run: Callable,
    plain: Callable | None,
    whole: Callable[[Rows], bool] | None,
    source: Source,
    args: tuple,
    family: Family | None,
    num_covariates: int | None,
    given: Any,
    store: Store | None,
    add: Callable,
    size: int,
    name: str,
    threads: bool,
) -> Any:
    """The loop itself, on the host."""
    result, last, verdicts, first, index = None, None, [], 0, 0
    for piece in source.pieces():
        if family is not None:
            check_rows(piece, family, num_covariates, name)
        here = plain if plain is not None and lies_on_host(piece.x) else run
        _check_given(given, first + piece.num_rows, False)
        n, before = piece.num_rows, index
        cuts = [(0, n, n)] if here is plain and whole is not None and whole(piece) else layout(n, size)
        blocks = (Block(before + i, first + start, count, padded) for i, (start, count, padded) in enumerate(cuts))

        def outcome(block: Block, piece: Rows = piece, first: int = first, here: Callable = here) -> tuple[Rows, Any]:
            cut = cut_rows(piece, block.start - first, block.count, block.size)
            old = store.read(block) if given is None and store is not None else cut_tree(given, block, source.num_rows)
            return cut, here(cut, old, family, args)

        each = programs_side_by_side(outcome, blocks) if threads else ((block, outcome(block)) for block in blocks)
        for block, (cut, (summand, new, valid)) in each:
            if store is not None and new is not None:
                store.write(block, new)
            if valid is not None:
                verdicts.append((valid, cut, block))
                if index == 0 and here is run:  # what stays on the host is centred before it is cast
                    warn_of_lost_digits(piece.x, common_dtype(source, args), name)
            # The one before is added while this one is computed.
            result, last = last if result is None else add(result, last), summand
            index += 1
        first += piece.num_rows
        if source.rows is None:
            _judge(verdicts, family, name, source.column_names)
            verdicts = []
    _judge(verdicts, family, name, source.column_names)
    _check_given(given, first, True)
    result = last if result is None else add(result, last)
    return jax.device_put(result) if add is _add and index > 1 else result  # the summand of one block is there


def _check_given(given: Any, num_rows: int, last: bool) -> None:
    """What goes with the rows has as many."""
    for leaf in jax.tree.leaves(given):
        if leaf.shape[0] != 1 and (leaf.shape[0] < num_rows or (last and leaf.shape[0] > num_rows)):
            rows = f"{num_rows} rows" if last else f"at least {num_rows} rows"
            raise ValueError(f"posterior: expected {rows}, as many as x has, got {leaf.shape[0]}")


@functools.cache
def _program(f: Function | None, check: Any, dtype: Any) -> Callable:
    """f on what enters it, compiled; without f what enters it."""

    @in_full
    def program(rows: Rows, old: Any, family: Family | None, args: tuple) -> tuple[Any, ...]:
        rows = entered(rows, family, dtype)
        old, args = as_dtype((old, args), dtype)
        out = (rows, old, args) if f is None else f(rows, old, *args)
        look = all_inside if check is True else check
        return *out, look(rows, family, out[0]) if look else None

    if f is not None:
        program.__name__ = f.__name__  # by which JAX's logs and profiles tell it
    return jax.jit(program)


def _eager(f: Function, check: Any, dtype: Any) -> Callable:
    enter, f = _program(None, check, dtype), in_full(f)

    def run(rows: Rows, old: Any, family: Family | None, args: tuple) -> tuple[Any, ...]:
        rows, old, args, valid = enter(rows, old, family, args)
        return *f(rows, old, *args), valid

    return run


def _plain(f: Function, check: Any) -> Callable:
    def run(rows: Rows, old: Any, family: Family | None, args: tuple) -> tuple[Any, ...]:
        out = f(rows, old, *args)
        return *out, check(rows, family, out[0]) if callable(check) else None

    return run


def common_dtype(source: Any, args: Any) -> np.dtype:
    """The widest of the precisions of the rows and of what meets them; numbers without one follow."""
    strong = [a.dtype for a in jax.tree.leaves(args) if hasattr(a, "dtype") and not getattr(a, "weak_type", False)]
    floating = [_checks.compute_dtype(dtype) for dtype in strong if jnp.issubdtype(dtype, jnp.floating)]
    return max([np.dtype(source.dtype), *floating], key=lambda dtype: dtype.itemsize)


def as_dtype(tree: Any, dtype: DTypeLike) -> Any:
    """The tree with all its floating leaves in one precision."""

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _add(a: Any, b: Any) -> Any:
    """Of results that are there, on the host: it compiles nothing, and is as silent as JAX where a sum overflows."""
    numpy: Any = np if _checks.concrete((a, b)) else jnp
    with np.errstate(over="ignore", invalid="ignore"):
        return jax.tree.map(numpy.add, a, b)


def _judge(
    verdicts: list[tuple[Any, Rows, Block]], family: Family | None, name: str, column_names: tuple[str, ...] | None
) -> None:
    for valid, rows, block in verdicts:
        if not bool(valid):
            refuse_entry(rows, family, block.start, name, column_names)


# Under a transformation -----------------------------------------------------------------------------------


def traced(source: Source, args: Any, given: Any = None) -> bool:
    """Whether a transformation traces the rows or what meets them."""
    if concrete(source) and _checks.concrete((args, given)):
        return False
    if source.rows is None:
        raise TypeError("x: under a transformation the rows have to be in memory, an array or Rows")
    return True


@in_full
def _scan(
    f: Function, source: Source, args: tuple, family: Family | None, add: Callable, options: dict[str, Any]
) -> tuple[Any, Any]:
    """The sum and the results a row, by ``lax.scan``; an entry out of the support is NaN."""
    rows = source.rows
    assert rows is not None
    if family is not None:
        check_rows(rows, family, options.get("num_covariates", 0), options.get("name", "x"))
    if options.get("check", True) and concrete(source):
        look_at(rows, family, options.get("name", "x"))
    n, given = rows.num_rows, options.get("given")
    size = min(n, options.get("size") or block_size(rows.num_columns))
    dtype = common_dtype(source, args)
    rows, (given, args) = rows.map(jnp.asarray), as_dtype((given, args), dtype)

    def block(start: Any, length: int) -> tuple[Any, Any]:
        def part(leaf: Array) -> Array:
            return leaf if leaf.shape[0] != n else jax.lax.dynamic_slice_in_dim(leaf, start, length)

        cut = entered(rows.map(part), family, dtype)
        cut = cut.replace(x=jnp.where(inside(cut, family), cut.x, jnp.nan))
        return f(cut, jax.tree.map(part, given), *args)

    if n <= size:
        return block(0, n)
    shape = jax.eval_shape(lambda: block(0, size)[0])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

    def body(carry: Any, start: Array) -> tuple[Any, Any]:
        summand, new = block(start, size)
        return add(carry, summand), new

    whole = n // size * size
    result, stacked = jax.lax.scan(body, zero, jnp.arange(0, whole, size))
    values = jax.tree.map(lambda a: a[0] if a.shape[1] == 1 < size else a.reshape(-1, *a.shape[2:]), stacked)
    if whole < n:
        summand, new = block(whole, n - whole)
        result = add(result, summand)
        values = jax.tree.map(lambda a, b: a if len(a) == 1 else jnp.concatenate([a, b]), values, new)
    return result, values
