"""Page "full-size": the exact optimum of all of MNIST, 60000 x 784, round by round. It has no quick form.

The clock runs from the data on: moments, closed form, start and rounds. What is compiled was compiled before, on the
first rows, since the number of rows is part of no program. Rounds are clocked where the library shows its progress.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from typing import Any

from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, duration, number, panels
from benchmarks.timing import Rounds, clocked_rounds, timed
from glmvae import RefinedOptimum, fit, refine

LATENT_DIMS = (20,)
DATA: tuple[str, ...] = ("mnist",)
QUICK_DATA: tuple[str, ...] = ()
ROUNDS, TOLERANCE = 40, 1e-3
#: Rows on which everything is compiled: more than a block has.
FIRST_ROWS = 6_000
#: The ELBO is told at these seconds.
MARKS = (30, 60, 100)
#: Of MNIST with 20 units on two quiet cores: nats after so many seconds, and processor seconds a round.
GOAL_SECONDS, GOAL_ELBO, GOAL_ROUND = 60, -114.0, 4.5


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Compiling, and the ascent."""
    return 2 * len(found) * len(options.latent_dims)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every problem and kappa."""
    result["settings"] |= {"max_rounds": ROUNDS, "tolerance": TOLERANCE, "first_rows": FIRST_ROWS}
    for problem in found:
        for latent_dim in options.latent_dims:
            result["rows"].append(_row(problem, latent_dim, bar))


def _row(problem: Problem, latent_dim: int, bar: Any) -> dict[str, Any]:
    x, family = problem.x, problem.family
    bar.set_description(f"{problem.name}, kappa {latent_dim}: compiling")
    part = x[:FIRST_ROWS]
    _, first_seconds, _ = timed(lambda: refine(fit(part, family, latent_dim), part, max_rounds=2))
    bar.update()
    before = _peak_memory()

    def show(rounds: int) -> None:
        bar.set_description(f"{problem.name}, kappa {latent_dim}: {rounds} rounds")

    show(0)
    with clocked_rounds(show) as rounds:
        start, fit_seconds, fit_cpu = timed(lambda: fit(x, family, latent_dim))
        found, seconds, cpu = timed(lambda: refine(start, x, max_rounds=ROUNDS, tolerance=TOLERANCE, progress=True))
    bar.update()
    about = {"data": problem.name, "family": problem.family_name, "rows": x.shape[0], "columns": x.shape[1]}
    about |= {"latent_dim": latent_dim, "first_call_seconds": first_seconds, "fit_seconds": fit_seconds}
    about |= {"seconds": fit_seconds + seconds, "cpu_seconds": fit_cpu + cpu, "x_bytes": x.nbytes}
    about |= {"posterior_bytes": 4 * x.shape[0] * latent_dim * (latent_dim + 3) // 2}
    return about | {"peak_bytes": _peak_memory(), "peak_bytes_before": before, **_course(found, rounds)}


def _course(found: RefinedOptimum, rounds: Rounds) -> dict[str, Any]:
    """ELBO by seconds, and what a round takes."""
    history = found.history.tolist()
    spent = [b - a for a, b in zip(rounds.cpu_seconds, rounds.cpu_seconds[1:], strict=False)]
    walls = [b - a for a, b in zip(rounds.seconds, rounds.seconds[1:], strict=False)]
    at = {
        str(mark): max(
            (elbo for elbo, when in zip(history[1:], rounds.seconds, strict=True) if when <= mark), default=None
        )
        for mark in MARKS
    }
    return {
        "start_elbo": history[0],
        "elbo": history[-1],
        "rounds": len(history) - 1,
        "converged": bool(found.converged),
        "history": history,
        "round_ends": rounds.seconds,
        "elbo_at": at,
        "first_round_ends": rounds.seconds[0] if rounds.seconds else None,
        "round_seconds": statistics.median(walls) if walls else None,
        "round_cpu_seconds": statistics.median(spent) if spent else None,
    }


def _peak_memory() -> int:
    """The most that this process ever had in memory, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(result: dict[str, Any]) -> str:
    """A line a row."""
    head = ["data", "rows", "kappa", *(f"at {mark} s" for mark in MARKS), "end", "seconds", "rounds", "first ends"]
    head += ["wall", "CPU", "peak", "x", "posteriors"]
    lines = []
    for row in result["rows"]:
        line = [row["data"], str(row["rows"]), str(row["latent_dim"])]
        line += [number(row["elbo_at"][str(mark)]) for mark in MARKS]
        line += [number(row["elbo"]), f"{row['seconds']:.1f}", str(row["rounds"]), duration(row["first_round_ends"])]
        line += [duration(row["round_seconds"]), duration(row["round_cpu_seconds"])]
        lines.append(line + [f"{row[name] / 2**20:.0f} MiB" for name in ("peak_bytes", "x_bytes", "posterior_bytes")])
    return aligned(head, lines, left=1, split=10, banner=("exact ELBO", "a round; memory")) + (
        "\n\nELBO in nats per row, seconds from the data on, with everything compiled.\n"
        "A round: the median, from one that was kept to the next.\n"
        "peak: the most that the process ever held; posteriors: one copy of means and packed covariances.\n"
        f"Asked for of MNIST and 20 units, on two quiet cores: {GOAL_ELBO} within {GOAL_SECONDS} s, "
        f"{GOAL_ROUND} s of processor time a round."
    )


def draw(result: dict[str, Any]) -> Any:
    """ELBO by seconds."""
    rows = result["rows"]
    figure, axes = panels(
        len(rows), "The exact optimum at full size: ELBO by seconds, from the data on", size=(7.0, 4.6)
    )
    for axis, row in zip(axes, rows, strict=True):
        label = f"a round {duration(row['round_seconds'])}, {duration(row['round_cpu_seconds'])} of processor time"
        axis.plot(row["round_ends"], row["history"][1:], ".-", color=COLOURS[0], label=label)
        axis.axhline(
            row["start_elbo"], color="0.5", linestyle=":", linewidth=1, label=f"start: {row['start_elbo']:.2f}"
        )
        if row["data"] == "mnist":
            goal = f"asked for: {GOAL_ELBO} within {GOAL_SECONDS} s"
            axis.plot(GOAL_SECONDS, GOAL_ELBO, "x", color="black", markersize=8, label=goal)
        axis.set(xlabel="seconds", ylabel="exact ELBO, nats per row")
        axis.set_title(f"{row['data']}, {row['rows']} rows, {row['family']}, kappa {row['latent_dim']}", fontsize=10)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, loc="lower right")
    return figure
