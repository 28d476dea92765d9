"""The rows of the benchmark as a JSON file and as a table.

``benchmark.json`` carries the mark :data:`MARK`, ``benchmark.png`` too (in its metadata). A file of one of these names
without it is someone else's and is never replaced.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import jax

MARK = "glmvae benchmarks"
JSON_NAME, PNG_NAME = "benchmark.json", "benchmark.png"
_PACKAGES = ("glmvae", "jax", "jaxlib", "numpy", "scipy", "optax", "scikit-learn")


def prepare(folder: Path) -> None:
    """Make the output folder, or see that what it holds under our names is ours.

    Raises:
        FileExistsError: ``benchmark.json`` or ``benchmark.png`` is there and was not made by this benchmark.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (JSON_NAME, PNG_NAME):
        path = folder / name
        if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()):
            raise FileExistsError(f"{path} was not made by this benchmark: move it, or choose another --output")


def environment() -> dict[str, Any]:
    """Versions, machine and precision."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = {
        "platform": platform.platform(),
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "jax_device": str(jax.devices()[0]),
    }
    return {"versions": versions, "machine": machine, "precision": "float32"}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_json(folder: Path, result: dict[str, Any]) -> Path:
    """Write the result, marked; the file is complete or as it was before."""
    path = folder / JSON_NAME
    part = folder / f".{JSON_NAME}.{os.getpid()}"
    part.write_text(json.dumps({"made_by": MARK, **_finite(result)}, indent=1, allow_nan=False) + "\n")
    part.replace(path)
    return path


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text: one line each for the closed form and for what training does in the same place."""
    peers = any(row["closed_form"]["peer_seconds"] is not None for row in rows)
    head = ["data", "family", "kappa", "compile", "warm", "L-hat", "ELBO", "active"]
    head += ["PCA", "ours/PCA"] if peers else []
    head += ["rate", "steps", "seconds", "ratio", "gap", "ELBO"]
    lines = [_cells(row, peers) for row in rows]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    split = len(head) - 6
    groups = ["closed form", "trained"]
    left = sum(widths[:3]) + 2 * 3
    middle = sum(widths[3:split]) + 2 * (split - 3)
    banner = " " * left + groups[0].ljust(middle) + "| " + groups[1]
    text = [banner, *(_join(line, widths, split) for line in [head, *lines])]
    text.insert(2, "-" * max(len(line) for line in text))
    target = rows[0]["training"]["target_gap"] if rows else 0.1
    text += [
        "",
        "L-hat, ELBO and gap in nats per row; the gap is that of the trained L-hat below the closed form's.",
        f"steps, seconds: until the gap is {target:g}. ratio: those seconds over the warm time of the closed form.",
        "> : the target was not reached in that many steps and seconds.",
    ]
    partial = sorted({f"{r['data']} {r['elbo_exact_rows']}" for r in rows if r["elbo_exact_rows"] < r["rows"]})
    if partial:
        text.append(f"The exact ELBOs are means over the first rows only: {', '.join(partial)} rows.")
    return "\n".join(text)


def _join(cells: list[str], widths: list[int], split: int) -> str:
    padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return ("  ".join(padded[:split]) + "  | " + "  ".join(padded[split:])).rstrip()


def _cells(row: dict[str, Any], peers: bool) -> list[str]:
    closed, trained = row["closed_form"], row["training"]
    cells = [row["data"], row["family"], str(row["latent_dim"]), duration(closed["compile_seconds"])]
    cells += [duration(closed["warm_seconds"]), f"{closed['elbo_taylor']:.3f}", f"{closed['elbo_exact']:.3f}"]
    cells.append(str(closed["active_units"]))
    if peers:
        cells += [duration(closed["peer_seconds"]), f"{closed['peer_ratio']:.2f}"]
    more = "" if trained["reached"] else "> "
    cells += [f"{trained['learning_rate']:g}", f"{more}{trained['steps']}", f"{more}{trained['seconds']:.2f}"]
    cells += [f"{more}{trained['ratio']:.3g}", f"{trained['final_gap']:.4f}", f"{trained['elbo_exact']:.3f}"]
    return cells


def duration(seconds: float) -> str:
    """In milliseconds below a second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
