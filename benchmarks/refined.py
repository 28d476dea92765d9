"""Page "refined": the paper's L-hat, the tightened bound, the exact optimum and a trained net, and their seconds.

All with the same affine decoder. ``column`` needs moments alone; its time stands beside that of as many plain
eigendecompositions in the same run. The net is the paper's canonical one from a He start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from benchmarks import peers
from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, duration, panels
from benchmarks.timed import train_timed
from glmvae import elbo_exact, fit, moments, nets, posterior, refine
from glmvae.families import Binomial

LATENT_DIMS = (20,)
MAX_ROWS = 10_000
COLUMN_ROUNDS, EXACT_ROUNDS = 15, 30
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
        "column_rounds": COLUMN_ROUNDS,
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
        result["peers"] = peers.compare()
        bar.update()


def _timed(f: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = jax.block_until_ready(f())
    return value, time.perf_counter() - start


def _row(problem: Problem, latent_dim: int, steps: int, seed: int, bar: Any) -> dict[str, Any]:
    name, family, x = problem.name, problem.family, problem.x[:MAX_ROWS]
    bar.set_description(f"{name}, kappa {latent_dim}: closed forms")
    fit(x, family, latent_dim)
    start, fit_seconds = _timed(lambda: fit(x, family, latent_dim))

    def elbo(optimum: Any) -> float:
        q = posterior(optimum, x)
        return float(jnp.mean(elbo_exact(optimum.loadings, optimum.intercept, x, q, family)))

    row: dict[str, Any] = {
        "data": name,
        "family": problem.family_name,
        "rows": x.shape[0],
        "columns": x.shape[1],
        "latent_dim": latent_dim,
        "closed_form": {"elbo_taylor": float(start.elbo_taylor), "elbo": elbo(start), "seconds": fit_seconds},
        "column": _column(x, problem, start, elbo) if isinstance(family, Binomial) else None,
    }
    bar.update()
    bar.set_description(f"{name}, kappa {latent_dim}: exact optimum")
    refine(start, x, family, max_rounds=2, tolerance=TOLERANCE)
    exact, seconds = _timed(lambda: refine(start, x, family, max_rounds=EXACT_ROUNDS, tolerance=TOLERANCE))
    row["exact"] = {
        "elbo": float(exact.elbo),
        "seconds": seconds,
        "rounds": exact.history.shape[0] - 1,
        "converged": bool(exact.converged),
        "history": exact.history.tolist(),
    }
    bar.update()

    def show(step: int, at: float) -> None:
        bar.set_description(f"{name}, kappa {latent_dim}: net, step {step}, ELBO {at:.2f}")

    build_key, train_key = jax.random.split(jax.random.key(seed))
    vae = nets.canonical(build_key, x.shape[1], latent_dim, family, dtype=jnp.float32)
    adam, every = optax.adam(RATE), max(steps // 15, 1)
    curve = train_timed(train_key, vae, x, steps=steps, every=every, optimizer=adam, progress=show)
    row["net"] = {"elbo": curve.elbos[-1], "seconds": curve.seconds[-1], "curve": curve.as_dict()}
    bar.update()
    return row


def _column(x: Array, problem: Problem, start: Any, elbo: Callable[[Any], float]) -> dict[str, Any]:
    data = moments(x, family=problem.family)
    eigh = jax.jit(jnp.linalg.eigh)
    jax.block_until_ready(eigh(data.covariance))
    refine(start, data, problem.family, method="column", max_rounds=1)

    def rounds() -> Any:  # without a tolerance to speak of: as many rounds as are allowed
        return refine(start, data, problem.family, method="column", max_rounds=COLUMN_ROUNDS, tolerance=1e-12)

    best, seconds = _timed(rounds)
    number = best.history.shape[0]
    eigh_seconds = sum(_timed(lambda: eigh(data.covariance))[1] for _ in range(number))
    return {
        "bound": float(best.lower_bound),
        "elbo": elbo(best),
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
        closed, column, exact, net = (row[part] for part in ("closed_form", "column", "exact", "net"))
        line = [row["data"], row["family"], str(row["latent_dim"]), str(row["rows"])]
        line += [f"{closed['elbo_taylor']:.3f}", f"{closed['elbo']:.3f}", duration(closed["seconds"])]
        if column is None:
            line += ["-"] * 4
        else:
            line += [f"{column['bound']:.3f}", f"{column['elbo']:.3f}", duration(column["seconds"])]
            line.append(f"{column['eigh_ratio']:.2f}")
        line += [f"{exact['elbo']:.3f}", duration(exact["seconds"]), f"{net['elbo']:.3f}", duration(net["seconds"])]
        lines.append(line)
    text = aligned(head, lines, left=2, split=7, banner=("the paper's closed form", "by column, exactly, and trained"))
    text += (
        "\n\nNats per row. ELBO: the exact one of the decoder and encoder that maximise L-hat or the bound by column.\n"
        f"of eigh: the time of the {COLUMN_ROUNDS + 1} rounds by column, from the moments, over that of as many "
        "eigendecompositions.\n"
        f"net: after {result['settings']['net_steps']} steps."
    )
    if result.get("peers"):
        text += "\n\n" + peers.table(result["peers"])
    return text


def draw(result: dict[str, Any]) -> Any:
    """Nats over seconds, a panel for every data set and kappa: a bound is hollow, the exact ELBO full."""
    rows = result["rows"]
    figure, axes = panels(
        len(rows),
        "What a second buys: nats per row by time (warm). Hollow: a bound; full: exact ELBO\n"
        "the closed form is from the data, the rounds by column are from their moments",
    )
    for axis, row in zip(axes, rows, strict=True):
        closed, column, exact, net = (row[part] for part in ("closed_form", "column", "exact", "net"))
        parts = [("closed form", COLOURS[0], closed, closed["elbo_taylor"])]
        if column is not None:
            parts.append(("by column", COLOURS[2], column, column["bound"]))
        for name, colour, part, bound in parts:
            axis.plot([part["seconds"]] * 2, [bound, part["elbo"]], color=colour, linewidth=1)
            axis.plot(part["seconds"], bound, "o", color=colour, markerfacecolor="white")
            axis.plot(part["seconds"], part["elbo"], "o", color=colour, label=_label(name, part))
        times = [exact["seconds"] * i / max(exact["rounds"], 1) for i in range(1, exact["rounds"] + 1)]
        axis.plot(times, exact["history"][1:], ".-", color=COLOURS[1], label=_label("exact ascent", exact))
        curve = net["curve"]
        axis.plot(curve["seconds"][1:], curve["elbos"][1:], color=COLOURS[3], label=_label("net, Adam", net))
        axis.axhline(exact["elbo"], color="0.5", linestyle=":", linewidth=1)
        low, top = min(closed["elbo_taylor"], closed["elbo"]), max(exact["elbo"], net["elbo"])
        axis.set_ylim(low - 0.1 * (top - low), top + 0.1 * (top - low))  # a net may start far below
        axis.set(xscale="log", xlabel="seconds", ylabel="nats per row")
        axis.set_title(f"{row['data']}, {row['family']}, kappa {row['latent_dim']}", fontsize=10)
        axis.xaxis.set_minor_formatter("")
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, ncols=2)
    return figure


def _label(name: str, part: dict[str, Any]) -> str:
    return f"{name}: {part['elbo']:.2f}, {duration(part['seconds'])}"
