"""Page "first-call": what a fresh process waits for, with nothing compiled, and with JAX's persistent cache turned on.

Each task runs in processes of its own (:mod:`benchmarks.fresh`); its processor seconds are those beyond the imports.
With the cache a first process fills it, which is not counted::

    jax.config.update("jax_compilation_cache_dir", "~/.cache/jax")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fresh
from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, duration, panels

LATENT_DIMS = (20,)
DATA = QUICK_DATA = ("digits",)
QUICK_TASKS = ("fit", "exact")
REPEATS = 3
#: What a step may take, in processor seconds, another N beyond the same again; the others have no limit.
LIMITS = {"fit": 1.0, "diagnose": 1.0, "tighten": 1.2, "exact": 4.0, fresh.OTHER: 0.3}
#: Steps in which nothing may be compiled any more.
WARM = tuple(fresh.posterior_of(rows) for rows in fresh.NEW_ROWS)
_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
_KEPT = ("cpu_seconds", "seconds", "trace_seconds", "lower_seconds", "llvm_seconds")


def tasks(options: argparse.Namespace) -> tuple[str, ...]:
    """Those that are run."""
    return QUICK_TASKS if options.quick else tuple(fresh.TASKS)


def repeats(options: argparse.Namespace) -> int:
    """Processes a task and state of the cache."""
    return 1 if options.quick else REPEATS


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """A process each, and one that fills the cache."""
    return len(found) * len(options.latent_dims) * len(tasks(options)) * (2 * repeats(options) + 1)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every step of every task."""
    result["settings"] |= {"repeats": repeats(options)}
    for problem in found:
        for latent_dim in options.latent_dims:
            for task in tasks(options):
                result["rows"] += _rows(problem, latent_dim, task, repeats(options), bar)


def _rows(problem: Problem, latent_dim: int, task: str, number: int, bar: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file, cache = Path(folder, "data.pickle"), {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache")), **_CACHE}
        file.write_bytes(pickle.dumps((np.asarray(problem.x), problem.family)))

        def runs(many: int, environment: dict[str, str], about: str) -> list[list[dict[str, Any]]]:
            found = []
            for _ in range(many):
                bar.set_description(f"{problem.name}, {task}, {about}")
                found.append(_child(task, file, latent_dim, environment))
                bar.update()
            return found

        cold = _median(runs(number, {}, "nothing compiled"))
        runs(1, cache, "filling the cache")
        cached = _median(runs(number, cache, "compiled before"))
    about = {"data": problem.name, "family": problem.family_name, "latent_dim": latent_dim, "task": task}
    about |= {"rows": problem.x.shape[0], "columns": problem.x.shape[1]}
    return [about | {**a, "cached_cpu_seconds": b["cpu_seconds"]} for a, b in zip(cold, cached, strict=True)]


def _child(task: str, file: Path, latent_dim: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """The steps of one process; it has no cache but that of ``environment``."""
    around = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMPILATION_CACHE", "JAX_ENABLE_X64"))
    }
    arguments = [sys.executable, "-m", "benchmarks.fresh", task, str(file), str(latent_dim)]
    done = subprocess.run(
        arguments, cwd=Path(__file__).parents[1], env=around | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ChildProcessError(f"{task} failed in a fresh process:\n{done.stderr}")
    steps: list[dict[str, Any]] = json.loads(done.stdout)
    return steps


def _median(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Step by step."""
    merged = []
    for same in zip(*runs, strict=True):
        kept = {name: statistics.median(step[name] for step in same) for name in _KEPT}
        merged.append({"step": same[0]["step"], "programs": int(same[0]["programs"]), **kept})
    return merged


def limit(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """What a step may take, in processor seconds."""
    most = LIMITS.get(row["step"])
    if most is None or row["step"] != fresh.OTHER:
        return most
    same = {name: row[name] for name in ("data", "latent_dim", "task")}
    again = next(r for r in rows if r["step"] == fresh.AGAIN and all(r[name] == same[name] for name in same))
    return most + float(again["cpu_seconds"])


def within(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """``yes`` or ``no``: whether a step is within what it may take; empty where nothing is asked of it."""
    if row["step"] in WARM:
        return "yes" if row["programs"] == 0 else "no"
    most = limit(row, rows)
    return "" if most is None else "yes" if row["cpu_seconds"] <= most else "no"


def table(result: dict[str, Any]) -> str:
    """A line a step."""
    head = [
        "data",
        "task",
        "step",
        "CPU",
        "at most",
        "within",
        "wall",
        "programs",
        "trace",
        "lower",
        "LLVM",
        "cached",
    ]
    lines = []
    for row in result["rows"]:
        most = "0 programs" if row["step"] in WARM else duration(limit(row, result["rows"]))
        line = [row["data"], row["task"], row["step"], duration(row["cpu_seconds"]), most, within(row, result["rows"])]
        line += [duration(row["seconds"]), str(row["programs"])]
        line += [duration(row[name]) for name in ("trace_seconds", "lower_seconds", "llvm_seconds")]
        lines.append([*line, duration(row["cached_cpu_seconds"])])
    return aligned(head, lines, left=3, split=7) + (
        f"\n\nCPU: seconds of all cores, the median of {result['settings']['repeats']} fresh processes.\n"
        "trace, lower, LLVM: wall seconds; a trace counts those inside it once more.\n"
        "cached: CPU with JAX's persistent cache, filled by an earlier process.\n"
        f"{fresh.OTHER}: it may take {LIMITS[fresh.OTHER]:g} s more than the same again."
    )


def draw(result: dict[str, Any]) -> Any:
    """Processor seconds of every step: nothing compiled, and compiled before; a mark where its limit is."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["step"] != "import":
            groups.setdefault((row["data"], row["task"]), []).append(row)
    title = "A first call: processor seconds in a fresh process, beyond the imports. Black line: what a step may take"
    figure, axes = panels(len(groups), title, across=2, size=(6.4, 3.2))
    for axis, ((data, task), rows) in zip(axes, groups.items(), strict=True):
        places = np.arange(len(rows))
        for shift, name, label, colour in (
            (-0.2, "cpu_seconds", "nothing compiled", COLOURS[1]),
            (0.2, "cached_cpu_seconds", "JAX's persistent cache", COLOURS[0]),
        ):
            axis.barh(places + shift, [row[name] for row in rows], height=0.38, color=colour, label=label)
        for place, row in zip(places, rows, strict=True):
            most = limit(row, rows)
            if most is not None:
                axis.plot([most] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
        axis.set_yticks(places, [row["step"] for row in rows])
        axis.invert_yaxis()
        axis.set(xlabel="processor seconds", title=f"{data}, kappa {rows[0]['latent_dim']}: {task}")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=8.5, ncols=2)
    return figure
