"""Page "selection": how often :func:`glmvae.select` finds the number of latent units that was planted, and how fast.

Draws of 1000 rows and 30 columns with three units, loadings N(0, 1), for every family by every way of holding out;
binary ones also by logisticpca's entrywise cross-validation, which is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import packages
from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, duration, panels
from benchmarks.timing import timed
from glmvae import select
from glmvae.families import Bernoulli, Family, Gaussian, Poisson

#: The planted number.
LATENT_DIMS = (3,)
#: It draws its own.
DATA: tuple[str, ...] = ()
QUICK_DATA: tuple[str, ...] = ("digits",)
PEER = "logisticpca, entries"
#: Numbers that are tried beyond the planted one.
BEYOND = 3
FOLDS = 5


class Size(NamedTuple):
    """Of a draw, and how many there are."""

    draws: int
    rows: int
    columns: int


FULL, QUICK = Size(10, 1000, 30), Size(2, 200, 12)
FAMILIES: tuple[Family, ...] = (Bernoulli(), Gaussian(), Poisson())

#: What one way finds in one table: the best number, and the one within a standard error (None where there is none).
Way = Callable[[np.ndarray, range, int], tuple[int, int | None]]


def drawn(family: Family, seed: int, size: Size, units: int) -> np.ndarray:
    """A table with so many planted units."""
    rng = np.random.default_rng(seed)
    eta = rng.normal(size=(size.rows, units)) @ rng.normal(size=(size.columns, units)).T
    if isinstance(family, Gaussian):
        return (eta + rng.normal(size=eta.shape)).astype(np.float32)
    if isinstance(family, Poisson):
        return rng.poisson(np.exp(eta)).astype(np.float32)
    return (rng.uniform(size=eta.shape) < 1 / (1 + np.exp(-eta))).astype(np.float32)


def ours(x: np.ndarray, tried: range, seed: int, *, family: Family, holdout: str, method: str) -> tuple[int, int]:
    """By :func:`glmvae.select`; the closed form of counts expands at the null model."""
    expand_at = "null" if isinstance(family, Poisson) and method == "closed-form" else "zero"
    found = select(x, family, tried, holdout=holdout, method=method, folds=FOLDS, expand_at=expand_at, seed=seed)
    return found.latent_dim, found.one_standard_error.latent_dim


def logistic_pca(x: np.ndarray, tried: range, seed: int) -> tuple[int, None]:
    """By logisticpca's entrywise cross-validation, as it comes but for the grid and the folds."""
    package = packages.needed("logisticpca")
    with packages.quiet():
        model = package.CVLogisticPCA(component_grid=[*tried], cv=FOLDS, random_state=seed).fit(x.astype(float))
    return int(model.best_n_components_), None


def ways(family: Family) -> dict[str, Way]:
    """All that find a number for the family here."""
    pairs = {"rows, closed form": ("rows", "closed-form")}
    if isinstance(family, Bernoulli):
        pairs["rows, tightened"] = ("rows", "tightened")
    pairs |= {"rows, exact": ("rows", "exact"), "entries, exact": ("entries", "exact")}
    found: dict[str, Way] = {
        name: functools.partial(ours, family=family, holdout=holdout, method=method)
        for name, (holdout, method) in pairs.items()
    }
    if isinstance(family, Bernoulli) and packages.peer("logisticpca", "sklearn") is not None:
        found[PEER] = logistic_pca
    return found


def name_of(family: Family) -> str:
    """As the table and ``--families`` have it."""
    return repr(family).replace("()", "")


def families(options: argparse.Namespace) -> list[Family]:
    """Those asked for, or all."""
    return [family for family in FAMILIES if not options.families or name_of(family) in options.families]


def check(options: argparse.Namespace) -> None:
    """The tables drawn have room for what is tried."""
    columns = (QUICK if options.quick else FULL).columns
    if options.latent_dims[-1] + BEYOND > columns:
        raise ValueError(
            f"--latent-dims: expected at most {columns - BEYOND}, since {BEYOND} more are tried in tables of {columns} "
            f"columns, got {options.latent_dims[-1]}"
        )


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Every draw by every way."""
    size = QUICK if options.quick else FULL
    return sum(len(ways(family)) for family in families(options)) * size.draws * len(options.latent_dims)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every planted number, family and way, after each draw."""
    size = QUICK if options.quick else FULL
    result["settings"] |= {**size._asdict(), "folds": FOLDS, "beyond": BEYOND}
    for units in options.latent_dims:
        for family in families(options):
            for name, way in ways(family).items():
                row: dict[str, Any] = {"family": name_of(family), "latent_dim": units, "way": name}
                row |= {"best": [], "one_standard_error": [], "seconds": []}
                result["rows"].append(row)
                for draw_ in range(size.draws):
                    bar.set_description(f"{row['family']}, {name}")
                    x = drawn(family, options.seed + draw_, size, units)
                    (best, fewest), seconds, _ = timed(lambda: way(x, range(1, units + BEYOND + 1), draw_))  # noqa: B023
                    row["best"].append(best)
                    row["one_standard_error"].append(fewest)
                    row["seconds"].append(seconds)
                    bar.update()


def hits(row: dict[str, Any], rule: str) -> int | None:
    """Draws whose planted number the rule found; None where there is no such rule."""
    found = row[rule]
    return None if None in found or not found else sum(value == row["latent_dim"] for value in found)


def table(result: dict[str, Any]) -> str:
    """A line a family and way."""
    head = ["family", "held out, fit", "planted", "draws", "best", "one s.e.", "first", "then"]
    lines = []
    for row in result["rows"]:
        seconds, counts = row["seconds"], [hits(row, rule) for rule in ("best", "one_standard_error")]
        shown = ["-" if count is None else str(count) for count in counts]
        then = statistics.median(seconds[1:]) if len(seconds) > 1 else None
        first = duration(seconds[0] if seconds else None)
        lines.append(
            [row["family"], row["way"], str(row["latent_dim"]), str(len(seconds)), *shown, first, duration(then)]
        )
    settings = result["settings"]
    text = aligned(head, lines, left=2, split=6) + (
        f"\n\n{settings['rows']} rows, {settings['columns']} columns, loadings N(0, 1), {settings['folds']} folds, "
        f"every number to {settings['beyond']} beyond the planted one tried.\n"
        "best, one s.e.: draws in which the best number, or the smallest within a standard error of it, is the planted "
        "one.\nfirst: with nothing compiled for the way; then: the median of the other draws."
    )
    if all(row["way"] != PEER for row in result["rows"]):
        text += '\nlogisticpca is left out: it is not installed (pip install -e ".[peers]").'
    return text


def draw(result: dict[str, Any]) -> Any:
    """Hits by seconds, a panel a family: by the best score hollow, within a standard error full."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["family"], []).append(row)
    title = "Draws whose planted number of units was found. Hollow: the best; full: one standard error"
    figure, axes = panels(len(groups), title, size=(4.6, 4.6))
    for axis, (family, rows) in zip(axes, groups.items(), strict=True):
        for colour, row in zip(COLOURS, rows, strict=False):
            if not row["seconds"]:
                continue
            at = statistics.median(row["seconds"])
            settings = {"color": colour, "markersize": 8}
            axis.plot(at, hits(row, "best"), "o", markerfacecolor="none", label=row["way"], **settings)
            if (count := hits(row, "one_standard_error")) is not None:
                axis.plot(at, count, "o", **settings)
        axis.set(xscale="log", xlabel="seconds a table", ylabel="draws", title=family)
        axis.xaxis.set_minor_formatter("")
        axis.margins(x=0.15)
        axis.set_ylim(-0.5, result["settings"]["draws"] + 0.5)
        axis.grid(alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8.5)
    return figure
