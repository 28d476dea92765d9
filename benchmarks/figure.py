"""The picture: the gap of the trained model to the closed-form optimum over the seconds it took."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from benchmarks.report import MARK, PNG_NAME, duration

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Where a gap is drawn that rounding has taken to 0 or below.
_FLOOR = 1e-3


def draw(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """One panel per data set and family, one colour per kappa.

    Args:
        folder: of the PNG.
        rows: of the benchmark, at least one.

    Returns:
        Where the PNG is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["data"], row["family"]), []).append(row)
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(5.0 * across, 4.6 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    kappas = sorted({row["latent_dim"] for row in rows})
    colours = {kappa: _COLOURS[i % len(_COLOURS)] for i, kappa in enumerate(kappas)}
    for axis, ((data, family), group) in zip(axes, panels.items(), strict=False):
        _panel(axis, f"{data}, {family}", group, colours)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(
        "Adam comes to the optimum that the closed form gives at once\n"
        "curves: trained model; dashed: closed form, from the data (warm); dot: within the target gap"
    )
    path = folder / PNG_NAME
    part = folder / f".{PNG_NAME}.{os.getpid()}"
    figure.savefig(part, dpi=110, format="png", metadata={"Software": MARK})
    part.replace(path)
    return path


def _panel(axis: Any, title: str, rows: list[dict[str, Any]], colours: dict[int, str]) -> None:
    target = rows[0]["training"]["target_gap"]
    for row in rows:
        kappa, closed, trained = row["latent_dim"], row["closed_form"], row["training"]
        colour, history = colours[kappa], trained["history"]
        when = duration(trained["seconds"])
        label = f"kappa {kappa}: closed form {duration(closed['warm_seconds'])}, trained "
        if trained["reached"]:
            label += f"{when}, {trained['ratio']:.3g}x"
            gap = history["gaps"][history["steps"].index(trained["steps"])]
            axis.plot(trained["seconds"], gap, "o", color=colour, markersize=5, zorder=3)
        else:
            label += f"not in {when}"
        gaps = [max(gap, _FLOOR) if math.isfinite(gap) else math.nan for gap in history["gaps"]]
        axis.plot(history["seconds"], gaps, color=colour, linewidth=1.3, label=label)
        axis.axvline(closed["warm_seconds"], color=colour, linestyle="--", linewidth=1.3)
    axis.axhline(target, color="0.5", linewidth=0.9, linestyle=":")
    axis.set(xscale="log", yscale="log", title=title, xlabel="seconds", ylabel="gap to the optimum, nats per row")
    axis.xaxis.set_minor_formatter("")  # within one decade matplotlib would label the minor ticks, one over another
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, handlelength=1.5)
