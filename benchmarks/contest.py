"""Ours beside other packages' low-rank models of the same data.

They maximise different things, so each is scored by what is theirs and by what is ours:

    refine        the exact beta-ELBO at beta 1, a full Gaussian posterior a row
    PlnPCA        the same ELBO, a diagonal posterior a row, with Stirling's approximation of log x! in what it reports
    glmpca        half the deviance plus half the penalty times the squares of factors and loadings: no posterior
    logisticpca   the deviance alone, the scores a projection of saturated parameters +-m: no posterior

Deviance is of fitted means, 2 (log p of the saturated model less log p) an entry; ours are at the posterior means,
which the prior shrinks. The exact ELBO is taken in float64. A model without posteriors gets factors of mean 0 and
covariance I, and the best posteriors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from benchmarks.peers import COUNTS, FactorFit, PlnFit
from benchmarks.report import aligned, duration
from benchmarks.timing import timed
from glmvae import Affine, AffineModel, Posterior, RefinedOptimum, best_posterior, elbo_exact, fit, refine
from glmvae.families import Bernoulli, Family, Poisson

RANKS = (2, 5)
#: Where our ascents of counts start; the best is ours, and the seconds are of all.
STARTS = ("zero", "null")
_STEPS = 500


class Ours(NamedTuple):
    """The best of our starts, and the seconds that all of them took, first and warm."""

    optimum: RefinedOptimum
    start: str
    cold_seconds: float
    seconds: float


def ours(x: np.ndarray, family: Family, rank: int, starts: tuple[str, ...] = STARTS) -> Ours:
    """``refine(fit(x, expand_at=...), x)`` from every start, in float64."""
    jax.clear_caches()
    with jax.enable_x64(True):
        data = jnp.asarray(x, jnp.float64)

        def run() -> list[RefinedOptimum]:
            return [refine(fit(data, family, rank, expand_at=at), data) for at in starts]

        cold = timed(run).seconds
        found, warm, _ = timed(run)
    best = max(range(len(starts)), key=lambda i: float(found[i].elbo))
    return Ours(found[best], starts[best], cold, warm)


def passing(x: np.ndarray, family: Family, rank: int, found: Ours, target: float) -> tuple[int, float, float] | None:
    """Rounds from that start until the ELBO exceeds ``target``, the ELBO then and the warm seconds of just these."""
    above = np.flatnonzero(np.asarray(found.optimum.history) > target)
    if not above.size:
        return None
    rounds = max(int(above[0]), 1)
    with jax.enable_x64(True):
        data = jnp.asarray(x, jnp.float64)

        def run() -> RefinedOptimum:
            return refine(fit(data, family, rank, expand_at=found.start), data, max_rounds=rounds)

        timed(run)
        optimum, seconds, _ = timed(run)
    return rounds, float(optimum.elbo), seconds


def score(loadings: Any, intercept: Any, x: Any, q: Posterior | None, family: Family) -> tuple[float, float]:
    """The exact ELBO, nats per row in float64: with the given posteriors (NaN if None), and with the best.

    Where a given posterior is better than the one that was found for that row, it stands for it. A given covariance
    that is not positive definite makes the first NaN: an ELBO that was claimed for it is then not confirmed.
    """
    with jax.enable_x64(True):
        w, b, x = (jnp.asarray(np.asarray(a), jnp.float64) for a in (loadings, intercept, x))
        model = AffineModel(Affine(w, b), family)
        best = elbo_exact(model, x, best_posterior(model, x, max_steps=_STEPS))
        if q is None:
            return float("nan"), float(jnp.mean(best))
        given = elbo_exact(model, x, jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), q))
        return float(jnp.mean(given)), float(jnp.mean(jnp.where(given > best, given, best)))


def score_pln(found: PlnFit, x: np.ndarray) -> tuple[float, float]:
    """:func:`score` of PlnPCA."""
    covariance: Any = found.variance[:, :, None] * np.eye(found.variance.shape[1])
    mean: Any = found.mean
    return score(found.loadings, found.intercept, x, Posterior(mean, covariance), Poisson())


def standardised(found: FactorFit) -> tuple[np.ndarray, np.ndarray]:
    """Loadings and intercept of the same model with factors of mean 0 and covariance I."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(found.factors.T, bias=True)))
    loadings = found.loadings @ vectors * np.sqrt(np.maximum(values, 0.0))
    return loadings, found.intercept + found.loadings @ found.factors.mean(axis=0)


def deviance(x: np.ndarray, loadings: Any, intercept: Any, factors: Any, family: Family) -> float:
    """Of an entry, at eta = factors @ loadings.T + intercept."""
    x, w, b, z = (np.asarray(a, np.float64) for a in (x, loadings, intercept, factors))
    eta = z @ w.T + b
    if isinstance(family, Poisson):
        return float(2 * np.mean(x * (np.log(np.where(x > 0, x, 1.0)) - eta) - x + np.exp(eta)))
    return float(2 * np.mean(np.logaddexp(0.0, eta) - x * eta))


def compare(data: tuple[str, ...] = (*COUNTS, "digits"), ranks: tuple[int, ...] = RANKS) -> list[dict[str, Any]]:
    """A row for every data set, rank, peer and value; those of peers that are not installed are left out."""
    sets = [(name, peers.digits() if name == "digits" else peers.counts(name)) for name in data]
    return [row for name, x in sets if x is not None for rank in ranks for row in _compared(name, x, rank)]


def _compared(name: str, x: np.ndarray, rank: int) -> list[dict[str, Any]]:
    binary = name == "digits"
    family: Family = Bernoulli() if binary else Poisson()
    pln = None if binary else peers.faster(lambda: peers.pln_pca(x, rank))
    peer, fit_peer = ("logisticpca", peers.logistic_pca) if binary else ("glmpca", peers.glm_pca)
    factors = peers.faster(lambda: fit_peer(x, rank))
    if pln is None and factors is None:
        return []
    found = ours(x, family, rank, STARTS[:1] if binary else STARTS)
    best, start, cold, warm = found
    assert best.posterior is not None
    given, refined = score(best.loadings, best.intercept, x, best.posterior, family)
    about = f"ours from {start}, {best.history.shape[0] - 1} rounds{'' if best.converged else ', not converged'}"
    shared = {"data": name, "rank": rank, "rows": x.shape[0], "columns": x.shape[1]}
    shared |= {"our_seconds": warm, "our_cold_seconds": cold, "our_note": about}

    def row(peer: str, value: str, mine: float, theirs: float, seconds: float, note: str) -> dict[str, Any]:
        times = {"their_seconds": seconds, "ratio": warm / seconds}
        return shared | {"peer": peer, "value": value, "ours": mine, "theirs": theirs, **times, "note": note}

    rows = []
    if pln is not None:
        theirs, theirs_best = score_pln(pln, x)
        note = f"{pln.iterations} iterations; it reports {pln.own_elbo:.3f}, {pln.own_elbo - theirs:.3f} too high"
        rows.append(row("PlnPCA", "elbo", given, theirs, pln.seconds, note))
        rows.append(row("PlnPCA", "elbo, best q", refined, theirs_best, pln.seconds, "its decoder alone"))
        passed = passing(x, family, rank, found, theirs)
        if passed is not None:
            rounds, value, seconds = passed
            note = f"as soon as it is above, after {rounds} rounds"
            late = row("PlnPCA", "elbo, first above", value, theirs, pln.seconds, note)
            rows.append(late | {"our_seconds": seconds, "ratio": seconds / pln.seconds})
    if factors is not None:
        mine = deviance(x, best.loadings, best.intercept, best.posterior.mean, family)
        theirs = deviance(x, factors.loadings, factors.intercept, factors.factors, family)
        rows.append(row(peer, "deviance", mine, theirs, factors.seconds, factors.note))
        theirs = score(*standardised(factors), x, None, family)[1]
        rows.append(row(peer, "elbo, best q", refined, theirs, factors.seconds, factors.note))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row."""
    head = ["data", "peer", "value", "rank", "shape", "ours", "theirs", "ours in", "cold", "theirs in", "ratio"]
    lines = []
    for row in rows:
        line = [row["data"], row["peer"], row["value"], str(row["rank"]), f"{row['rows']} x {row['columns']}"]
        line += [f"{row[key]:.3f}" for key in ("ours", "theirs")]
        line += [duration(row[key]) for key in ("our_seconds", "our_cold_seconds", "their_seconds")]
        lines.append([*line, f"{row['ratio']:.3f}"])
    text = aligned(head, lines, left=3, split=5, banner=None).splitlines()
    text[2:] = [f"{line}  {row['note']}; {row['our_note']}" for line, row in zip(text[2:], rows, strict=True)]
    return "\n".join(text) + (
        "\n\nelbo: exact, nats per row, higher is better; best q: the decoder with its best posteriors.\n"
        "deviance: of an entry, lower is better. PlnPCA maximises the ELBO too, glmpca a penalised likelihood,\n"
        "logisticpca a likelihood. Ours: the best of all starts, the time of all of them;\n"
        "theirs: the faster of one thread and all."
    )
