"""Page "refined": the paper's L-hat, the tightened bound, the exact optimum and a trained net, and their seconds.

All with the same affine decoder. ``tighten`` needs moments alone; its time stands beside that of as many plain
eigendecompositions in the same run. The net is the paper's canonical one from a He start.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks import contest
from benchmarks.problems import NAMES, QUICK_NAMES, Problem
from benchmarks.report import COLOURS, aligned, duration, number, panels
from benchmarks.timed_training import bearable, train_timed
from benchmarks.timing import clocked_rounds, timed
from glmvae import AffineOptimum, RefinedOptimum, elbo_exact, fit, moments, nets, posterior, refine, tighten

LATENT_DIMS = (20,)
DATA, QUICK_DATA = NAMES, QUICK_NAMES
MAX_ROWS = 10_000
TIGHTENED_ROUNDS, EXACT_ROUNDS = 15, 30
# Of the net: Adam's rate is the fastest that is stable on all sets.
STEPS, QUICK_STEPS, RATE = 3_000, 100, 1e-3
# Nats per row: what the last round of the exact ascent may gain.
TOLERANCE = 1e-3


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Two closed forms, an ascent and a net for every problem and kappa; the peers are one."""
    return len(found) * len(options.latent_dims) * 3 + options.peers


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every problem and kappa, each as it is done."""
    steps = QUICK_STEPS if options.quick else STEPS
    result["settings"] |= {
        "max_rows": MAX_ROWS,
        "tightened_rounds": TIGHTENED_ROUNDS,
        "exact_rounds": EXACT_ROUNDS,
        "tolerance": TOLERANCE,
        "net_steps": steps,
        "net_rate": RATE,
    }
    for problem in found:
        for latent_dim in options.latent_dims:
            result["rows"].append(_row(problem, latent_dim, steps, options.seed, bar))
    if options.peers:
        bar.set_description("peers")
        result["peers"] = contest.compare()
        bar.update()


def _row(problem: Problem, latent_dim: int, steps: int, seed: int, bar: Any) -> dict[str, Any]:
    name, family, x = problem.name, problem.family, problem.x[:MAX_ROWS]
    bar.set_description(f"{name}, kappa {latent_dim}: closed forms")
    fit(x, family, latent_dim)
    start, fit_seconds, _ = timed(lambda: fit(x, family, latent_dim))
    row: dict[str, Any] = {
        "data": name,
        "family": problem.family_name,
        "rows": x.shape[0],
        "columns": x.shape[1],
        "latent_dim": latent_dim,
        "closed_form": {"elbo_taylor": float(start.elbo_taylor), "elbo": _elbo(start, x), "seconds": fit_seconds},
        "tightened": _tightened(x, start) if family.is_logistic else None,
    }
    bar.update()
    bar.set_description(f"{name}, kappa {latent_dim}: exact optimum")
    row["exact"] = _exact(x, start)
    bar.update()

    def show(step: int, at: float) -> None:
        bar.set_description(f"{name}, kappa {latent_dim}: net, step {step}, ELBO {at:.2f}")

    build_key, train_key = jax.random.split(jax.random.key(seed))
    inputs: dict[str, Any] = {"standardise": bearable(x, family), "dtype": jnp.float32}
    vae = nets.canonical(build_key, x.shape[1], latent_dim, start.model.objective, **inputs)
    adam, every = optax.adam(RATE), max(steps // 15, 1)
    curve = train_timed(train_key, vae, x, steps=steps, every=every, optimizer=adam, progress=show)
    row["net"] = {"elbo": curve.elbos[-1], "seconds": curve.seconds[-1], "curve": curve.as_dict()}
    bar.update()
    return row


def _elbo(optimum: AffineOptimum | RefinedOptimum, x: Array) -> float:
    """The exact one, with the affine encoder of the optimum."""
    return float(jnp.mean(elbo_exact(optimum, x, posterior(optimum, x))))


def _exact(x: Array, start: AffineOptimum) -> dict[str, Any]:
    refine(start, x, max_rounds=2, tolerance=TOLERANCE)
    settings: dict[str, Any] = {"max_rounds": EXACT_ROUNDS, "tolerance": TOLERANCE, "progress": True}
    with clocked_rounds() as rounds:
        exact, seconds, _ = timed(lambda: refine(start, x, **settings))
    return {
        "elbo": float(exact.elbo),
        "seconds": seconds,
        "rounds": exact.history.shape[0] - 1,
        "converged": bool(exact.converged),
        "history": exact.history.tolist(),
        "round_ends": rounds.seconds,
    }


def _tightened(x: Array, start: AffineOptimum) -> dict[str, Any]:
    data = moments(x, family=start.family)
    eigh = jax.jit(jnp.linalg.eigh)
    jax.block_until_ready(eigh(data.covariance))
    tighten(start, data, max_rounds=1)
    # without a tolerance to speak of: as many rounds as are allowed
    best, seconds, _ = timed(lambda: tighten(start, data, max_rounds=TIGHTENED_ROUNDS, tolerance=1e-12))
    number = best.history.shape[0]
    eigh_seconds = sum(timed(lambda: eigh(data.covariance)).seconds for _ in range(number))
    return {
        "bound": float(best.lower_bound),
        "elbo": _elbo(best, x),
        "seconds": seconds,
        "rounds": number,
        "eigh_seconds": eigh_seconds,
        "eigh_ratio": seconds / eigh_seconds,
    }


def table(result: dict[str, Any]) -> str:
    """One line a row."""
    head = ["data", "family", "kappa", "rows", "L-hat", "ELBO", "seconds", "bound", "ELBO", "seconds", "of eigh"]
    head += ["exact", "seconds", "net", "seconds"]
    lines = []
    for row in result["rows"]:
        closed, tightened, exact, net = (row[part] for part in ("closed_form", "tightened", "exact", "net"))
        line = [row["data"], row["family"], str(row["latent_dim"]), str(row["rows"])]
        line += [f"{closed['elbo_taylor']:.3f}", f"{closed['elbo']:.3f}", duration(closed["seconds"])]
        if tightened is None:
            line += ["-"] * 4
        else:
            line += [f"{tightened['bound']:.3f}", f"{tightened['elbo']:.3f}", duration(tightened["seconds"])]
            line.append(f"{tightened['eigh_ratio']:.2f}")
        line += [f"{exact['elbo']:.3f}", duration(exact["seconds"]), number(net["elbo"]), duration(net["seconds"])]
        lines.append(line)
    text = aligned(head, lines, left=2, split=7, banner=("the paper's closed form", "tightened, exactly, and trained"))
    text += (
        "\n\nNats per row. ELBO: the exact one of the decoder and encoder that maximise L-hat or the tightened bound.\n"
        f"of eigh: the time of the {TIGHTENED_ROUNDS + 1} tightened rounds, from the moments, over that of as many "
        "eigendecompositions.\n"
        f"net: after {result['settings']['net_steps']} steps."
    )
    if result.get("peers"):
        text += "\n\n" + contest.table(result["peers"])
    return text


def draw(result: dict[str, Any]) -> Any:
    """What is left to the best value, over seconds, a panel for every data set and kappa."""
    rows = result["rows"]
    figure, axes = panels(
        len(rows),
        "What a second buys: nats per row below the best ELBO found, by seconds (warm); higher is better\n"
        "hollow: a bound; full: exact ELBO. Closed form and exact ascent from the data, tightened rounds from moments",
        size=(5.6, 4.8),
    )
    for axis, row in zip(axes, rows, strict=True):
        _panel(axis, row, result["settings"]["tolerance"])
    return figure


def _panel(axis: Any, row: dict[str, Any], least: float) -> None:
    closed, tightened, exact, net = (row[part] for part in ("closed_form", "tightened", "exact", "net"))
    curve = net["curve"]
    best = max(exact["elbo"], *curve["elbos"])

    def left(values: Any) -> np.ndarray:
        return np.maximum(best - np.asarray(values, float), least)

    parts = [("closed form", COLOURS[0], closed, closed["elbo_taylor"])]
    if tightened is not None:
        parts.append(("tightened", COLOURS[2], tightened, tightened["bound"]))
    for name, colour, part, bound in parts:
        axis.plot([part["seconds"]] * 2, left([bound, part["elbo"]]), color=colour, linewidth=1)
        axis.plot(part["seconds"], left(bound), "o", color=colour, markerfacecolor="white")
        axis.plot(part["seconds"], left(part["elbo"]), "o", color=colour, label=_label(name, part))
    course = left(exact["history"][1:])
    axis.plot(exact["round_ends"], course, ".-", color=COLOURS[1], label=_label("exact ascent", exact))
    axis.plot(curve["seconds"][1:], left(curve["elbos"][1:]), color=COLOURS[3], label=_label("net, Adam", net))
    axis.set(xscale="log", yscale="log", xlabel="seconds", ylabel="nats per row below the best")
    axis.invert_yaxis()
    axis.set_title(f"{row['data']}, {row['family']}, kappa {row['latent_dim']}", fontsize=10)
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, ncols=2)


def _label(name: str, part: dict[str, Any]) -> str:
    return f"{name}: {part['elbo']:.2f}, {duration(part['seconds'])}"
