"""Page "comparison": from a table to factors, a held-out score and a plot, beside other libraries on the same work.

Every decoder that comes of it is scored by one formula: the exact ELBO at beta 1 of the held-out rows, with the best
posterior of each, an entry, in float64. Real numbers are Gaussian, with the noise that each model found; counts are
Poisson: what models log(1 + count) lends its loadings and its mean as a decoder of the log rate.

Every library has the number of threads that suits it: beside threads of others those of OpenMP wait for each other, and
a fit of half a second can take half a minute.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import from_table, packages
from benchmarks.problems import Problem
from benchmarks.report import COLOURS, aligned, duration, number, panels
from benchmarks.timing import in_turn, timed
from glmvae import Affine, AffineModel, Objective, best_posterior, elbo_exact, fit
from glmvae.families import Family, Gaussian, Poisson

LATENT_DIMS = (5,)
#: It has tables of its own.
DATA: tuple[str, ...] = ()
QUICK_DATA: tuple[str, ...] = ("digits",)
#: Steps of a row's best posterior, at most; rounds of the routes in turn.
STEPS, ROUNDS, QUICK_ROUNDS = 500, 5, 1


class Route(NamedTuple):
    """A way from a table to factors: whose, what to call, what it needs, and its decoder for the common score."""

    name: str
    run: from_table.Route
    decoder: Callable[[Any, Family], AffineModel]
    needs: tuple[str, ...] = ("sklearn",)


class Table(NamedTuple):
    """A table in two parts, what its columns are, and the routes from it."""

    name: str
    train: Any
    test: Any
    family: Family
    routes: tuple[Route, ...]


def _sklearn(model: Any, family: Family) -> AffineModel:
    """Of PCA (probabilistic: loadings without the noise) and of FactorAnalysis."""
    components, noise = model.components_, model.noise_variance_
    if hasattr(model, "explained_variance_"):
        components = components * np.sqrt(np.maximum(model.explained_variance_ - noise, 0.0))[:, None]
    return _model(components.T, model.mean_, family, noise)


def _pln(model: Any, family: Family) -> AffineModel:
    return _model(np.asarray(model.components), np.asarray(model.coef[0]), family)


def _own(model: Any, family: Family) -> AffineModel:
    return _model(model.loadings, model.intercept, family, model.dispersion)


def _model(loadings: Any, intercept: Any, family: Family, noise: Any = None) -> AffineModel:
    phi = None if family.fixed_dispersion is not None else np.asarray(noise, float)
    return AffineModel(
        Affine(np.asarray(loadings, float), np.asarray(intercept, float)), Objective(family, dispersion=phi)
    )


REAL = (
    Route("PCA", from_table.pca, _sklearn),
    Route("FactorAnalysis", from_table.factor_analysis, _sklearn),
    Route("ours, closed form", from_table.gaussian, _own, ()),
)
COUNTS = (
    Route("PCA of log(1 + x)", from_table.log_pca, _sklearn),
    Route("FactorAnalysis of log(1 + x)", from_table.log_factor_analysis, _sklearn),
    Route("PlnPCA", from_table.pln_pca, _pln, ("pyPLNmodels", "pkg_resources")),
    Route("ours, exact ascent", from_table.poisson, _own, ()),
)


def tables() -> list[Table]:
    """Real numbers (standardised), counts, and, where pyPLNmodels is installed, its table of microbes on oaks."""
    sets, pandas = packages.needed("sklearn.datasets"), packages.needed("pandas")
    cells = sets.load_breast_cancer(as_frame=True).data
    train, test = _split(cells)
    mean, spread = train.mean(), train.std(ddof=0)
    found = [Table("breast cancer", (train - mean) / spread, (test - mean) / spread, Gaussian(), REAL)]
    pixels = sets.load_digits(as_frame=True).data
    found.append(Table("digits", *_split(pixels.loc[:, pixels.mean() > 0.5]), Poisson(), COUNTS))
    oaks = packages.peer("pyPLNmodels", "pkg_resources")
    if oaks is not None:
        with packages.quiet():
            microbes = pandas.DataFrame(oaks.load_oaks()["endog"])
        train, test = _split(microbes)
        seen = train.sum() > 0
        found.append(Table("oaks", train.loc[:, seen], test.loc[:, seen], Poisson(), COUNTS))
    return found


def _split(table: Any) -> tuple[Any, Any]:
    """Every third row is held out."""
    out = np.arange(len(table)) % 3 == 2
    return table[~out].astype(float), table[out].astype(float)


def routes(table: Table) -> list[Route]:
    """Those whose library is installed."""
    return [route for route in table.routes if not route.needs or packages.peer(*route.needs) is not None]


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Every route from every table, and the rounds in turn."""
    return sum(len(routes(table)) + 1 for table in tables()) * len(options.latent_dims)


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every table, kappa and route."""
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    result["settings"] |= {"rounds": rounds}
    result["no_unit"] = []
    for table in tables():
        for latent_dim in options.latent_dims:
            result["rows"] += _rows(table, latent_dim, rounds, bar)
        with jax.enable_x64(True):
            score = held_out(_own(fit(table.train, table.family, 0, expand_at="null"), table.family), table.test)
        result["no_unit"].append({"data": table.name, "elbo": score})


def _rows(table: Table, latent_dim: int, rounds: int, bar: Any) -> list[dict[str, Any]]:
    taken = routes(table)
    runs: dict[str, Callable[[], from_table.Found]] = {}
    jax.clear_caches()
    first, found = {}, {}
    for route in taken:
        bar.set_description(f"{table.name}, {route.name}")
        alone, together = (_run(route, table, latent_dim, threads) for threads in (1, None))
        found[route.name], first[route.name], _ = timed(alone)
        runs[route.name] = min((alone, together), key=lambda run: timed(run).seconds)
        bar.update()
    bar.set_description(f"{table.name}, in turn")
    times = in_turn({name: lambda run=run: timed(run).seconds for name, run in runs.items()}, rounds=rounds)  # type: ignore[misc]
    bar.update()
    rows = []
    for route in taken:
        model, factors, own = found[route.name]
        assert np.shape(factors) == (len(table.train), latent_dim)
        with jax.enable_x64(True):
            elbo = held_out(route.decoder(model, table.family), table.test)
        rows.append(
            {
                "data": table.name,
                "rows": len(table.train),
                "held_out_rows": len(table.test),
                "columns": table.train.shape[1],
                "family": repr(table.family).replace("()", ""),
                "latent_dim": latent_dim,
                "route": route.name,
                "lines": from_table.lines(route.run),
                "first_seconds": first[route.name],
                "seconds": statistics.median(times[route.name]),
                "elbo_per_entry": elbo,
                "own_score": None if own is None else float(own),
            }
        )
    return rows


def _run(route: Route, table: Table, latent_dim: int, threads: int | None) -> Callable[[], from_table.Found]:
    """The route on axes of its own, with so many threads of BLAS and OpenMP, all with None."""

    def run() -> from_table.Found:
        _, (axis,) = panels(1, "")
        with packages.quiet(), threadpool_limits(threads):
            return route.run(table.train, table.test, latent_dim, axis)

    return run


def held_out(model: AffineModel, test: Any) -> float:
    """The exact ELBO at beta 1 of held-out rows with the best posterior of each, nats an entry."""
    x = jnp.asarray(np.asarray(test), model.loadings.dtype)
    q = best_posterior(model, x, max_steps=STEPS)
    return float(jnp.mean(elbo_exact(model, x, q))) / x.shape[1]


def table(result: dict[str, Any]) -> str:
    """A line a route."""
    head = ["data", "route", "kappa", "lines", "first", "warm", "held-out ELBO", "gain", "own score"]
    none = {row["data"]: row["elbo"] for row in result["no_unit"]}
    lines = []
    for row in result["rows"]:
        line = [row["data"], row["route"], str(row["latent_dim"]), str(row["lines"]), duration(row["first_seconds"])]
        gain = row["elbo_per_entry"] - none.get(row["data"], float("nan"))
        line += [duration(row["seconds"]), number(row["elbo_per_entry"], ".4f"), number(gain, "+.4f")]
        lines.append([*line, "none" if row["own_score"] is None else number(row["own_score"], ".2f")])
    sizes = {row["data"]: (row["rows"], row["held_out_rows"], row["columns"], row["family"]) for row in result["rows"]}
    about = "; ".join(f"{name} {n} + {m} rows, {d} columns, {family}" for name, (n, m, d, family) in sizes.items())
    return aligned(head, lines, left=2, split=6) + (
        f"\n\n{about}.\n"
        "lines: of code from the table to factors, held-out score and plot. first: with nothing compiled, one thread;\n"
        "warm: with one thread of BLAS and OpenMP or all, whichever suits the library.\n"
        "held-out ELBO: one formula for all, nats an entry; gain: over a model without latent units.\n"
        "own score: what the library itself says of the held-out rows, a row: comparable within its own kind alone."
    )


def draw(result: dict[str, Any]) -> Any:
    """Held-out ELBO by seconds, a panel a table: the warm call full, the first one hollow."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["data"], row["latent_dim"]), []).append(row)
    none = {row["data"]: row["elbo"] for row in result["no_unit"]}
    title = (
        "From a table to factors, held-out score and plot. Full: warm; hollow: a first call. Lines of code in brackets"
    )
    figure, axes = panels(len(groups), title, size=(5.6, 4.8))
    for axis, ((data, latent_dim), rows) in zip(axes, groups.items(), strict=True):
        for colour, row in zip(COLOURS, rows, strict=False):
            times, elbo = [row["seconds"], row["first_seconds"]], [row["elbo_per_entry"]] * 2
            axis.plot(times, elbo, color=colour, linewidth=1)
            axis.plot(times[1], elbo[1], "o", color=colour, markerfacecolor="white")
            label = f"{row['route']} ({row['lines']}): {row['elbo_per_entry']:.3f}, {duration(row['seconds'])}"
            axis.plot(times[0], elbo[0], "o", color=colour, label=label)
        if data in none:
            axis.axhline(none[data], color="0.5", linestyle=":", linewidth=1, label=f"no latent unit: {none[data]:.3f}")
        axis.set(xscale="log", xlabel="seconds", ylabel="held-out ELBO, nats an entry")
        axis.set_title(f"{data}, {rows[0]['family']}, kappa {latent_dim}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=8.5)
    return figure
