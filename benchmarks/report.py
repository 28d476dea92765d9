"""What every page of the benchmark writes: a JSON file, a picture and aligned text.

``PAGE.json`` carries the mark :data:`MARK`, ``PAGE.png`` too (in its metadata). A file of one of these names without it
is someone else's and is never replaced.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import textwrap
from pathlib import Path
from typing import Any

import jax

from benchmarks import packages

MARK = "glmvae benchmarks"
#: Width of a letter, on average and generously, over the size of type.
_TYPE = 0.58
#: Processes that want a core, per core, from which on a machine counts as busy.
_BUSY = 0.5
_PACKAGES = ("glmvae", "jax", "jaxlib", "numpy", "scipy", "optax", "flax", "scikit-learn")
#: Told apart by those who do not see all colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def prepare(folder: Path, page: str) -> None:
    """Make the output folder, or see that what it holds under our names is ours.

    Raises:
        FileExistsError: ``PAGE.json`` or ``PAGE.png`` is there and was not made by this benchmark.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / f"{page}.json", folder / f"{page}.png"):
        if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()):
            raise FileExistsError(f"{path} was not made by this benchmark: move it, or choose another --output")


def environment() -> dict[str, Any]:
    """Versions, machine with what else it was doing, and precision."""
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
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
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


def write_json(folder: Path, page: str, result: dict[str, Any]) -> Path:
    """Write the result, marked; the file is complete or as it was before."""
    path = folder / f"{page}.json"
    part = folder / f".{path.name}.{os.getpid()}"
    part.write_text(json.dumps({"made_by": MARK, **_finite(result)}, indent=1, allow_nan=False) + "\n")
    part.replace(path)
    return path


def write_png(folder: Path, page: str, figure: Any, *, source: str = "") -> Path:
    """Write the picture, marked, and with what it was drawn from; the file is complete or as it was before."""
    path = folder / f"{page}.png"
    part = folder / f".{path.name}.{os.getpid()}"
    figure.savefig(part, dpi=110, format="png", metadata={"Software": MARK, "Source": source})
    part.replace(path)
    return path


def panels(count: int, title: str, *, across: int = 3, size: tuple[float, float] = (5.0, 4.6)) -> tuple[Any, list[Any]]:
    """A figure of so many panels, at most ``across`` side by side; it belongs to no window and to no global state.

    A title that is wider than the figure goes on in another line.
    """
    backend = packages.needed("matplotlib.backends.backend_agg")
    down = math.ceil(count / across)
    across = math.ceil(count / down)
    figure = packages.needed("matplotlib.figure").Figure(
        figsize=(size[0] * across, size[1] * down), layout="constrained"
    )
    backend.FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.remove()
    figure.suptitle(wrapped(title, size[0] * across, 12))
    return figure, axes[:count]


def wrapped(text: str, inches: float, points: float) -> str:
    """The text in lines that are no wider than so many inches at that size of type."""
    width = max(int(inches * 72 / (_TYPE * points)), 20)
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""])


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def busy(result: dict[str, Any]) -> str:
    """What is to be said of the seconds of a result that was made beside other work; empty if there was none."""
    load, cores = result["machine"]["load"], result["machine"]["cpu_count"]
    if load < _BUSY * cores:
        return ""
    return f"The machine was busy when this began (load {load:.1f}, {cores} cores): on a quiet one seconds are fewer."


def aligned(
    head: list[str],
    lines: list[list[str]],
    *,
    left: int,
    split: int | None = None,
    banner: tuple[str, str] | None = None,
) -> str:
    """Cells in columns: the first ``left`` flush left, a bar before number ``split``, a banner over its two sides."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def join(cells: list[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        if split is None:
            return "  ".join(padded).rstrip()
        return ("  ".join(padded[:split]) + "  | " + "  ".join(padded[split:])).rstrip()

    text = [join(line) for line in [head, *lines]]
    text.insert(1, "-" * max(len(line) for line in text))
    if banner is not None and split is not None:
        start = sum(widths[: left + 1]) + 2 * (left + 1)
        text.insert(0, " " * start + banner[0].ljust(sum(widths[:split]) + 2 * split - start) + "| " + banner[1])
    return "\n".join(text)


def duration(seconds: float | None) -> str:
    """In milliseconds below a second; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def number(value: float | None, form: str = ".3f") -> str:
    """In that form; a dash where it is not known or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"
