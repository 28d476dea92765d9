"""The paper's figures from stored results, on the paper's axes, so that the two can be laid side by side.

    figure-01           Frey, kappa 2, as in the text: MLE-B and Bench, L-hat, the error of Corollary 1
    figure-02, -03      activities of 40 units over beta, Gaussian and Bernoulli: analytic and trained, as heat maps
    figure-04 to -12    as figure 1 for every data set and kappa, with the starts that the paper does not have
    annealing           active units over batches, annealed and constant

What is not measured yet is left blank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.report import COLOURS, panels
from benchmarks.reproduce import measures, tables
from benchmarks.reproduce.measures import Result, one
from benchmarks.reproduce.setups import ANNEALED_DATA, ANNEALED_KAPPA, BETAS, DECODERS, KAPPAS, START_STEPS, UNITS

#: Label and colour of each start; the paper's first.
STARTS = {
    "mle-b": ("MLE-B", COLOURS[0]),
    "he": ("Bench", COLOURS[1]),
    "closed-form": ("pass-through, closed form", COLOURS[2]),
    "tightened": ("pass-through, tightened", COLOURS[3]),
}
TITLES = {"relu": "ReLU-Net", "affine": "Affine"}
DATA_TITLES = {"synthetic": "Synthetic", "frey": "Frey", "mnist": "MNIST"}
_ORDER = ("synthetic", "mnist", "frey")  # of figures 4 to 12
_LAST = max(START_STEPS.values())
#: The vertical axis where the paper's text gives it (figure 4); elsewhere it follows the curves.
_LIMITS = {"synthetic": (-142.2, -136.8)}


class Figure(NamedTuple):
    """What a figure is of, and how it is drawn."""

    title: str
    results: list[Result]
    draw: Callable[[], Any]

    @property
    def digest(self) -> str:
        """Of the results it is drawn from: kept in the file, so that a stale figure can be told."""
        return hashlib.sha256(json.dumps(self.results, sort_keys=True).encode()).hexdigest()[:16]


def plan(results: list[Result]) -> dict[str, Figure]:
    """By file name, every figure of which something is there."""
    made: dict[str, Figure] = {}

    def curves(name: str, title: str, data: str, kappa: int, starts: tuple[str, ...]) -> None:
        if found := _of(results, data, kappa, starts):
            made[name] = Figure(title, found, lambda: training(found, title, starts))

    curves("figure-01", "Data: Frey, Kappa: 2", "frey", 2, ("mle-b", "he"))
    for number, family in ((2, "Gaussian"), (3, "Bernoulli")):
        if found := measures.pick(results, section="activities", family=family):
            title = f"{family} observation model"
            made[f"figure-{number:02d}"] = Figure(title, found, lambda f=found, n=family: activities(f, n))  # type: ignore[misc]
    for number, (data, kappa) in enumerate(((d, k) for d in _ORDER for k in KAPPAS), 4):
        curves(f"figure-{number:02d}", f"Data: {DATA_TITLES[data]}, Kappa: {kappa}", data, kappa, tuple(STARTS))
    if rising := measures.pick(results, section="annealing"):
        constant = [r for data in ANNEALED_DATA for r in _of(results, data, ANNEALED_KAPPA, ("he",))]
        made["annealing"] = Figure(f"Active of {ANNEALED_KAPPA} units", rising + constant, lambda: annealing(results))
    return made


def draw(results: list[Result], folder: Path) -> list[Path]:
    """Write every figure into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        report.write_png(folder, name, figure.draw(), source=figure.digest) for name, figure in plan(results).items()
    ]


def _of(results: list[Result], data: str, kappa: int, starts: tuple[str, ...]) -> list[Result]:
    return [r for s in starts for r in measures.pick(results, section="starts", data=data, latent_dim=kappa, start=s)]


def training(results: list[Result], title: str, starts: tuple[str, ...]) -> Any:
    """ELBO over batches: decoders below each other, train and test side by side, one vertical axis for the four."""
    figure, axes = panels(4, title, across=2, size=(6.0, 3.7))
    low, high = _limits(results)
    places = [(decoder, on) for decoder in ("relu", "affine") for on in ("train", "test")]
    for axis, (decoder, on) in zip(axes, places, strict=True):
        for start in starts:
            result = one(results, decoder=decoder, start=start)
            if result is None:
                continue
            label, colour = STARTS[start]
            steps, elbo = measures.curve(result, "step"), measures.curve(result, f"{on}_elbo")
            axis.plot(steps, elbo, color=colour, linewidth=1.3, label=f"{label} {on.title()} ELBO")
            if steps[-1] < _LAST:  # a run that was to be short
                axis.plot(steps[-1:], elbo[-1:], "o", color=colour, markersize=4)
        if not any(r["settings"]["decoder"] == decoder for r in results):
            axis.text(0.5, 0.5, "not run yet", transform=axis.transAxes, ha="center", va="center", color="0.4")
        lines = results[0]["lines"][f"seen_{on}"]
        axis.axhline(lines["elbo_taylor"], color="black", linestyle="--", linewidth=1, label=f"L-hat for {on.title()}")
        band = {"color": "0.55", "alpha": 0.35, "linewidth": 0, "label": "Error from Corr. 1"}
        axis.axhspan(lines["elbo_taylor"], lines["corollary_1"], **band)
        axis.set(ylim=(low, high), xlim=(-400, _LAST + 400), xticks=range(0, _LAST, 3_000))
        axis.set_title({"train": "Training", "test": "Test"}[on] if decoder == "relu" else "", fontsize=11)
        if on == "train":
            axis.set_ylabel(f"{TITLES[decoder]}\nELBO and L-hat values")
        if decoder == "affine":
            axis.set_xlabel("Batch Evaluations")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7.5, loc="lower right")
    return figure


def _limits(results: list[Result]) -> tuple[float, float]:
    """From below L-hat and the later half of every curve to a little above the best; starts may fall off."""
    if (data := results[0]["settings"]["data"]) in _LIMITS:
        return _LIMITS[data]
    values, late = [], []
    for result in results:
        for on in ("train", "test"):
            elbo = measures.curve(result, f"{on}_elbo")
            values.append(np.nanmax(elbo))
            late.append(np.nanmin(elbo[len(elbo) // 2 :]))
            values += [result["lines"][f"seen_{on}"][name] for name in ("elbo_taylor", "corollary_1")]
    top, bottom = max(values), min([*late, *values])
    span = max(top - bottom, 1e-3 * abs(top))
    return bottom - 0.6 * span, top + 0.1 * span


def activities(results: list[Result], family: str) -> Any:
    """A heat map of each rule and each trained decoder: units, sorted, over beta; how many are active beside it."""
    betas = BETAS[family]
    rows: dict[str, dict[float, list[float]]] = {}
    rules = {
        "closed": "Analytical",
        "null": "Analytical, expanded at the null model",
        "tightened": "Analytical, tightened",
    }
    for rule, label in rules.items() if family == "Bernoulli" else [("closed", "Analytical")]:
        rows[label] = {r["settings"]["beta"]: r["predicted"][rule] for r in results}
    for decoder in DECODERS:
        trained = measures.pick(results, decoder=decoder)
        rows[f"{TITLES[decoder]}, trained"] = {r["settings"]["beta"]: r["end"]["activity"] for r in trained}
    figure, axes = panels(len(rows), f"{family} observation model", across=1, size=(8.6, 1.75))
    for axis, (label, known) in zip(axes, rows.items(), strict=True):
        image = np.full((len(betas), UNITS), np.nan)
        for i, beta in enumerate(betas):
            if beta in known:
                image[i] = -np.sort(-np.asarray(known[beta], float))
                axis.text(UNITS + 0.7, i, str(measures.count(known[beta])), va="center", fontsize=9)
        shown = axis.imshow(
            image, aspect="auto", vmin=0, vmax=1, cmap="viridis", extent=(0.5, UNITS + 0.5, len(betas) - 0.5, -0.5)
        )
        axis.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axis.set_ylabel("beta")
        axis.set_title(label, fontsize=10)
        axis.text(UNITS + 0.7, -0.75, "active", fontsize=8)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set_xlabel("latent unit, by activity")
    figure.colorbar(shown, ax=axes, label="activity", fraction=0.03, pad=0.06)
    return figure


def annealing(results: list[Result]) -> Any:
    """Active units over batches: beta constant, and beta rising over the first half."""
    places = [(data, decoder) for data in ANNEALED_DATA for decoder in DECODERS]
    figure, axes = panels(len(places), f"Active of {ANNEALED_KAPPA} units", across=2, size=(6.0, 3.0))
    for axis, (data, decoder) in zip(axes, places, strict=True):
        same = {"section": "starts", "data": data, "latent_dim": ANNEALED_KAPPA, "decoder": decoder}
        runs = {
            "beta constant": one(results, **same, start="he"),
            "beta rises until half": tables.annealed(results, data, decoder),
        }
        for (label, result), colour in zip(runs.items(), (COLOURS[1], COLOURS[0]), strict=True):
            if result is not None:
                steps, units = measures.curve(result, "step"), measures.curve(result, "active")
                axis.plot(steps, units, color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
                axis.axhline(measures.count(result["predicted"]["closed"]), color="black", linestyle="--", linewidth=1)
        axis.axvline(_LAST / 2, color="0.6", linestyle=":", linewidth=1)
        axis.set(
            ylim=(-0.5, ANNEALED_KAPPA + 0.5), title=f"{DATA_TITLES[data]}, {TITLES[decoder]} (dashed: analytical)"
        )
        axis.title.set_fontsize(10)
        axis.set(xlabel="Batch Evaluations", ylabel="active units")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "not run yet", transform=axis.transAxes, ha="center", va="center", color="0.5")
    return figure
