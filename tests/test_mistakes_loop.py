"""Deliberate mistakes in the loop over rows, its stores, the merge of moments, and the ascent."""

from typing import NamedTuple

import dense_reference as dense
import jax.numpy as jnp
import numpy as np
import pytest
from mistaken import caught

from glmvae import Affine, AffineModel, Objective, Rows, merge, moments, refine
from glmvae.blocks import Block, Store, per_row, sweep
from glmvae.cuts import layout
from glmvae.sources import as_source

pytestmark = pytest.mark.float64

N, D, SIZE = 60, 3, 32

# The loop --------------------------------------------------------------------------------------------------


class Passed(NamedTuple):
    count: float
    total: np.ndarray
    each: np.ndarray


def loop(x, weight, size=SIZE, wrong=""):
    """Count, weighted sum, and the sum of every row, block by block."""
    blocks, count, total, each = list(layout(len(x), size)), 0.0, 0.0, []
    if wrong == "a block counted twice":
        blocks = [*blocks, blocks[0]]
    if wrong == "the last block dropped":
        blocks = blocks[:-1]
    if wrong == "blocks in another order":
        blocks = blocks[::-1]
    for start, n, padded in blocks:
        rows = np.concatenate([x[start : start + n], np.repeat(x[start : start + 1], padded - n, axis=0)])
        w = np.concatenate([weight[start : start + n], np.zeros(padded - n)])
        if wrong == "the weight dropped in padding":
            w[n:] = 1.0
        if wrong == "the weight of other rows":
            w[:n] = weight[:n]
        count, total = count + w.sum(), total + w @ rows
        result = rows.sum(axis=1) * (w if wrong == "results weighted" else 1.0)
        each.append(result if wrong == "padding among the results" else result[:n])
    return Passed(count, total, np.concatenate(each))


def _sums(rows, _):
    x = jnp.where(rows.weight[:, None] > 0, rows.x, 0.0)
    return (rows.weight.sum(), rows.weight @ x), rows.x.sum(axis=1)


def library_loop(x, weight, size=SIZE):
    source = as_source(Rows(x, weight=weight))
    return Passed(*sweep(_sums, source, size=size), per_row(_sums, source, size=size))


def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)), rng.uniform(0.5, 2, N)


def check_sums(run):
    x, weight = table()
    found = run(x, weight)
    np.testing.assert_allclose(found.count, weight.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.total, weight @ x, rtol=1e-12)


def check_results(run):
    x, weight = table()
    found = run(x, weight)
    assert found.each.shape == (N,)
    np.testing.assert_allclose(found.each, x.sum(axis=1), rtol=1e-12)


LOOP = [
    ("the weight dropped in padding", check_sums),
    ("the weight of other rows", check_sums),
    ("a block counted twice", check_sums),
    ("the last block dropped", check_sums),
    ("blocks in another order", check_results),
    ("padding among the results", check_results),
    ("results weighted", check_results),
]


def test_a_mistake_in_the_loop_is_caught():
    assert not [wrong for wrong, check in LOOP if not caught(check, lambda x, w, wrong=wrong: loop(x, w, wrong=wrong))]
    for run in (loop, library_loop, lambda x, w: loop(x, w, 8), lambda x, w: library_loop(x, w, 8)):
        check_sums(run)
        check_results(run)


# Stores ----------------------------------------------------------------------------------------------------


class MistakenStore(Store):
    wrong = ""

    def read(self, block):
        if self.wrong == "what is tried is read" and block.index in self._shadow:
            return self._shadow[block.index]
        return super().read(block._replace(index=0) if self.wrong == "another block is read" else block)

    def write(self, block, value):
        super().write(block, value)
        if self.wrong == "a rolled-back step is kept":
            self._kept[block.index] = value

    def commit(self):
        if self.wrong == "only new blocks are committed":
            self._kept = self._shadow | self._kept
        elif self.wrong != "nothing is committed":
            super().commit()


def check_store(make):
    store, blocks = make(), [Block(0, 0, 8, 8), Block(1, 8, 3, 8)]
    for round_ in range(2):
        for block in blocks:
            store.write(block, np.full(8, 10.0 * round_ + block.index))
        store.commit()
        for block in blocks:  # tried, and let go
            store.write(block, np.full(8, -1.0))
        for block in blocks:
            np.testing.assert_array_equal(store.read(block), 10.0 * round_ + block.index)
    np.testing.assert_array_equal(store.gathered(), np.repeat([10.0, 11.0], [8, 3]))


def test_a_mistake_in_a_store_is_caught():
    wrongs = [
        "a rolled-back step is kept",
        "what is tried is read",
        "another block is read",
        "only new blocks are committed",
        "nothing is committed",
    ]
    for wrong in wrongs:
        made = type("Mistaken", (MistakenStore,), {"wrong": wrong})
        with pytest.raises((AssertionError, ValueError, TypeError)):  # a store that has nothing returns None
            check_store(made)
    check_store(MistakenStore)
    check_store(Store)


# Moments of parts ------------------------------------------------------------------------------------------


def merged(a, b, wrong=""):
    """(count, mean, covariance) of both."""
    count = a[0] + b[0]
    share, step = b[0] / count, b[1] - a[1]
    share = 0.5 if wrong == "parts of equal size" else share
    between = 0.0 if wrong == "the difference of the means dropped" else share * (1 - share) * np.outer(step, step)
    between = between * (count if wrong == "counted and not averaged" else 1.0)
    return count, a[1] + share * step, (1 - share) * a[2] + share * b[2] + between


def check_merge(merge_parts):
    x, weight = table()
    parts = [dense.moments(x[rows] + shift, weight[rows]) for rows, shift in ((slice(20), 0.0), (slice(20, N), 3.0))]
    whole = dense.moments(np.concatenate([x[:20], x[20:] + 3.0]), weight)
    for a, b in zip(merge_parts(*parts), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def library_merge(a, b):
    empty = moments(np.ones((1, D)), family=None)
    parts = (empty._replace(count=p[0], mean=p[1], covariance=p[2]) for p in (a, b))
    return merge(*parts)[:3]


def test_a_mistake_in_the_merge_is_caught():
    wrongs = ["parts of equal size", "the difference of the means dropped", "counted and not averaged"]
    assert not [wrong for wrong in wrongs if not caught(check_merge, lambda a, b, wrong=wrong: merged(a, b, wrong))]
    check_merge(merged)
    check_merge(library_merge)


# The ascent ------------------------------------------------------------------------------------------------


class Climbed(NamedTuple):
    decoder: dense.Decoder
    mean: np.ndarray
    root: np.ndarray
    history: list


def best_rows(p, d, mean, covariance, wrong):
    """Full natural-gradient steps of every q."""
    k = mean.shape[1]
    for _ in range(10):
        m, v = dense.predictor(p, d, mean, covariance)
        _, gradient, w = dense.exact(p, m, 0 * v if wrong == "variance dropped from the bound" else v)
        gradient, w = (np.where(p.missing & (wrong != "missing entries counted"), 0.0, a) for a in (gradient, w))
        beta = 1.0 if wrong == "beta dropped from the posteriors" else p.beta
        covariance = np.linalg.inv(np.eye(k) + np.einsum("dk,nd,dl->nkl", d.loadings, w, d.loadings) / beta)
        mean = mean + np.einsum("nkl,nl->nk", covariance, gradient @ d.loadings / beta - mean)
    return mean, covariance


def decoder_after(p, d, mean, covariance, wrong):
    """One step of weighted least squares of every column."""
    m, v = dense.predictor(p, d, mean, covariance)
    _, gradient, w = dense.exact(p, m, v)
    row = np.ones(len(mean)) if wrong == "row weights dropped" else p.weight
    share = row[:, None] * ~p.missing
    k, z = mean.shape[1], np.column_stack([mean, np.ones(len(mean)), p.covariates])
    second = z[:, :, None] * z[:, None, :]
    second[:, :k, :k] += covariance
    score = (share * gradient).T @ z
    spread = np.einsum("nd,nkl,dl->dk", share * w, covariance, d.loadings)
    if wrong != "the spread of z dropped from the gradient":
        score[:, :k] -= spread
    step = np.linalg.solve(np.einsum("nd,nkl->dkl", share * w, second), score[..., None])[..., 0]
    step = -step if wrong == "the sign of the step" else step
    intercept = d.intercept + (0.0 if wrong == "the intercept is not moved" else step[:, k])
    coefficients = d.coefficients + (0.0 if wrong == "the coefficients are not moved" else step[:, k + 1 :].T)
    return dense.Decoder(d.loadings + step[:, :k], intercept, coefficients)


def climb(p, d, wrong="", rounds=60):
    """The exact ascent once more, of few rows: halved steps, only what rises is kept."""
    n, k = len(p.x), d.loadings.shape[1]
    q = best_rows(p, d, np.zeros((n, k)), np.broadcast_to(0.3 * np.eye(k), (n, k, k)), wrong)

    def value(d, q):
        return p.mean(dense.elbo(p, d, *q))

    history = [value(d, q)]
    for _ in range(rounds):
        ahead = decoder_after(p, d, *q, wrong)
        for length in 0.5 ** np.arange(12):
            new = dense.Decoder(*(a + length * (b - a) for a, b in zip(d, ahead, strict=True)))
            found = best_rows(p, new, *q, wrong)
            rose = value(new, found) > history[-1]
            if rose or wrong == "a step that falls is kept":
                d, q = new, (q if wrong == "posteriors of the round before" else found)
                history.append(value(new, found))
                break
        if not rose and wrong != "a step that falls is kept":
            break
    if wrong == "a rolled-back step is kept":  # the last extrapolation was too long
        q = best_rows(p, dense.Decoder(*(a + 1.0 for a in d)), *q, wrong)
    return Climbed(d, q[0], np.linalg.cholesky(q[1]), history)


def check_climb(p, r):
    """What was claimed is so, never fell, and nothing is left to gain."""
    covariance = r.root @ np.swapaxes(r.root, 1, 2)
    np.testing.assert_allclose(r.history[-1], p.mean(dense.elbo(p, r.decoder, r.mean, covariance)), rtol=1e-12)
    assert np.all(np.diff(r.history) >= 0)
    gradients = dense.elbo_and_gradient(p, r.decoder, r.mean, r.root)[1]
    assert max(np.abs(g).max() for g in gradients) < 1e-4


def test_a_mistake_in_the_ascent_is_caught():
    p, d, *_ = dense.example("binomial", rows=12, units=1, fields=("offset", "covariates", "missing", "weight"))
    wrongs = [
        "variance dropped from the bound",
        "missing entries counted",
        "beta dropped from the posteriors",
        "row weights dropped",
        "the spread of z dropped from the gradient",
        "the sign of the step",
        "the intercept is not moved",
        "the coefficients are not moved",
        "posteriors of the round before",
        "a rolled-back step is kept",
    ]
    missed = [wrong for wrong in wrongs if not caught(check_climb, p, climb(p, d, wrong))]
    assert not missed
    check_climb(p, climb(p, d))
    brought = {name: getattr(p, name) for name in ("offset", "covariates", "missing", "weight")}
    rows = Rows(np.where(p.missing, np.nan, p.x), **brought)
    model = AffineModel(Affine(*d), Objective(p.family.family, p.beta))
    r = refine(model, rows, tolerance=1e-12, max_rounds=2000)
    found = dense.decoder(r.loadings, r.intercept, r.model.coefficients)
    history = [float(value) for value in r.history[:-1]] + [float(r.elbo)]
    at_end = p.mean(dense.elbo(p, found, np.asarray(r.posterior.mean), np.asarray(r.posterior.covariance)))
    np.testing.assert_allclose(history[-1], at_end, rtol=1e-9)
    root = np.linalg.cholesky(np.asarray(r.posterior.covariance))
    check_climb(p, Climbed(found, np.asarray(r.posterior.mean), root, [*history[:-1], at_end]))
