"""Page "under-load": the closed form beside as many busy processes as there are cores, and scikit-learn's PCA likewise.

Threads of a linear algebra library wait for each other by spinning: beside other work one of them is off its core, and
all wait. Both contestants are timed in turn, first quietly, then beside the busy processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.closed_form import pca
from benchmarks.problems import NAMES, QUICK_NAMES, Problem
from benchmarks.report import COLOURS, aligned, duration, panels
from benchmarks.timing import clocked, in_turn, timed
from glmvae import fit

LATENT_DIMS = (20,)
DATA, QUICK_DATA = NAMES, QUICK_NAMES
#: What the closed form may take beside the busy processes, in units of its quiet time: a fair share of the cores is 2.
LIMIT = 2.5
#: Of all rounds of the slower contestant, quietly and under load; and before the latter begin.
SECONDS, QUICK_SECONDS, SETTLE = 4.0, 0.5, 1.0
_WORST = ("quiet_worst", "loaded_worst")
CONTESTANTS = {"ours": "closed form", "pca": "scikit-learn's PCA"}
_LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that want a core each; they end with the block, or with this process."""
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())]) for _ in range(number)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Quietly and under load."""
    return 2 * len(found) * len(options.latent_dims)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every problem and kappa."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    processes = os.cpu_count() or 1
    result["settings"] |= {"seconds": seconds, "busy_processes": processes}
    for problem in found:
        for latent_dim in options.latent_dims:
            result["rows"].append(_row(problem, latent_dim, seconds, processes, bar))


def _row(problem: Problem, latent_dim: int, seconds: float, processes: int, bar: Any) -> dict[str, Any]:
    x, family = problem.x, problem.family
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: fit(x, family, latent_dim),
        "pca": pca(np.asarray(x), latent_dim),
    }
    for run in runs.values():
        timed(run)
    clocks = {name: clocked(run) for name, run in runs.items()}
    label = f"{problem.name}, kappa {latent_dim}"
    bar.set_description(f"{label}: quietly")
    quiet = in_turn(clocks, seconds=seconds)
    bar.update()
    bar.set_description(f"{label}: beside {processes} busy processes")
    with busy(processes):
        loaded = in_turn(clocks, seconds=seconds)
    bar.update()
    row: dict[str, Any] = {"data": problem.name, "family": problem.family_name, "latent_dim": latent_dim}
    row |= {"rows": x.shape[0], "columns": x.shape[1]}
    for name in CONTESTANTS:
        alone, beside = statistics.median(quiet[name]), statistics.median(loaded[name])
        worst = {"quiet_worst": max(quiet[name]), "loaded_worst": max(loaded[name])}
        row[name] = {"quiet": alone, "loaded": beside, "ratio": beside / alone, **worst, "rounds": len(loaded[name])}
    return row


def table(result: dict[str, Any]) -> str:
    """A line a row."""
    head = ["data", "family", "kappa"] + ["quiet", "beside", "ratio", "worst"] * 2
    lines = []
    for row in result["rows"]:
        line = [row["data"], row["family"], str(row["latent_dim"])]
        for name in CONTESTANTS:
            of = row[name]
            line += [duration(of["quiet"]), duration(of["loaded"]), f"{of['ratio']:.2f}", duration(of["loaded_worst"])]
        lines.append(line)
    banner = (CONTESTANTS["ours"], CONTESTANTS["pca"])
    over = [f"{row['data']} ({row['ours']['ratio']:.2f})" for row in result["rows"] if row["ours"]["ratio"] > LIMIT]
    return aligned(head, lines, left=2, split=7, banner=banner) + (
        f"\n\nbeside: with {result['settings']['busy_processes']} busy processes; worst: the longest round then.\n"
        f"The closed form may take {LIMIT} times its quiet time: "
        + (f"it takes more on {', '.join(over)}." if over else "it does not take more.")
    )


def draw(result: dict[str, Any]) -> Any:
    """Seconds quietly and under load, a panel a contestant, one axis for both."""
    rows = result["rows"]
    title = f"Beside {result['settings']['busy_processes']} busy processes: median seconds, and the longest (line)"
    figure, axes = panels(len(CONTESTANTS), title, size=(6.0, 4.2))
    for axis, (name, label) in zip(axes, CONTESTANTS.items(), strict=True):
        places = np.arange(len(rows))
        for shift, when, colour in ((-0.2, "quiet", COLOURS[0]), (0.2, "loaded", COLOURS[1])):
            values = np.array([row[name][when] for row in rows])
            longest = np.array([row[name][f"{when}_worst"] for row in rows])
            words = "quietly" if when == "quiet" else "beside busy processes"
            error = np.stack([np.zeros_like(values), longest - values])
            axis.bar(places + shift, values, width=0.38, color=colour, yerr=error, capsize=3, label=words)
        for place, row in zip(places, rows, strict=True):
            height = row[name]["loaded_worst"]
            axis.annotate(
                f"{row[name]['ratio']:.2f}x", (place + 0.2, height), (0, 4), textcoords="offset points", ha="center"
            )
        axis.set_xticks(places, [f"{row['data']}\nkappa {row['latent_dim']}" for row in rows])
        axis.set(yscale="log", ylabel="seconds", title=label)
        axis.grid(axis="y", alpha=0.3)
    ends = [row[name][when] for row in rows for name in CONTESTANTS for when in ("quiet", "loaded", *_WORST)]
    for axis in axes:
        axis.set_ylim(min(ends) / 2, max(ends) * 2)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9, ncols=2)
    return figure
