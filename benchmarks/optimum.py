"""Page "optimum": the analytic optimum of L-hat against the same affine model trained with Adam on the same L-hat."""

from __future__ import annotations

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import affine_training
from benchmarks.closed_form import ClosedForm, measure_fit
from benchmarks.problems import NAMES, QUICK_NAMES, Problem
from benchmarks.report import COLOURS, aligned, duration, number, panels
from glmvae import Affine, AffineModel, Moments, Posterior, elbo_exact, moments, posterior

LATENT_DIMS = (2, 5, 20)
DATA, QUICK_DATA = NAMES, QUICK_NAMES
MAX_STEPS, QUICK_MAX_STEPS = 20_000, 5_000
# The exact ELBO takes 20 softplus an entry and would cost more than all the rest on MNIST's 47 million.
EXACT_ROWS, QUICK_EXACT_ROWS = 10_000, 1_000
# Where a gap is drawn that rounding has taken to 0 or below.
_FLOOR = 1e-3


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """A closed form and three rates for every problem and kappa."""
    return len(found) * len(options.latent_dims) * (1 + len(affine_training.RATES))


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every problem and kappa, each as it is done."""
    max_steps = QUICK_MAX_STEPS if options.quick else MAX_STEPS
    result["settings"] |= {
        "expand_at": "zero",
        "batch_size": affine_training.BATCH,
        "learning_rates": affine_training.RATES,
        "decay_steps": affine_training.DECAY_STEPS,
        "max_steps": max_steps,
    }
    for problem in found:
        _rows_of(problem, options, max_steps, result["rows"], bar)


def _rows_of(
    problem: Problem, options: argparse.Namespace, max_steps: int, rows: list[dict[str, Any]], bar: Any
) -> None:
    name, family, x = problem
    closed = {}
    for latent_dim in options.latent_dims:  # first all of these: they empty the caches of compiled code
        bar.set_description(f"{name}, {problem.family_name}, kappa {latent_dim}: closed form")
        closed[latent_dim] = measure_fit(x, family, latent_dim, peer=options.peers)
        bar.update()
    data = moments(x, family=family)
    for latent_dim in options.latent_dims:
        label = f"{name}, {problem.family_name}, kappa {latent_dim}"
        key = jax.random.fold_in(jax.random.key(options.seed), latent_dim)

        def show(rate: float, step: int, gap: float, label: str = label) -> None:
            bar.set_description(f"{label}: Adam {rate:g}, step {step}, gap {gap:.3g}", refresh=False)
            bar.update(0)

        best = closed[latent_dim].optimum.elbo_taylor
        runs, compiling = affine_training.train(
            key, x, family, data, latent_dim, best, max_steps=max_steps, progress=show
        )
        bar.set_description(f"{label}: exact ELBO")
        rows.append(_row(problem, closed[latent_dim], runs, compiling, data, options))
        bar.update(len(affine_training.RATES))


def _row(
    problem: Problem,
    closed: ClosedForm,
    runs: list[affine_training.Run],
    compiling: float,
    data: Moments,
    options: argparse.Namespace,
) -> dict[str, Any]:
    family, best, optimum = problem.family, runs[0], closed.optimum
    x = problem.x[: QUICK_EXACT_ROWS if options.quick else EXACT_ROWS]
    units = options.latent_dims[-1]
    ours = exact(optimum.model, x, posterior(optimum, x), units)
    q = affine_training.posterior_of(best.model, family, data.mean, x)
    trained = exact(affine_training.affine_model(best.model, family), x, q, units)
    reached = best.target_seconds is not None
    seconds = best.target_seconds if best.target_seconds is not None else best.seconds[-1]
    measured = {k: v for k, v in closed._asdict().items() if k != "optimum"}
    return {
        "data": problem.name,
        "family": problem.family_name,
        "rows": problem.x.shape[0],
        "columns": problem.x.shape[1],
        "latent_dim": optimum.loadings.shape[1],
        "elbo_exact_rows": x.shape[0],
        "closed_form": {**measured, "elbo_taylor": float(optimum.elbo_taylor), "elbo_exact": ours},
        "training": {
            "target_gap": affine_training.TARGET,
            "reached": reached,
            "learning_rate": best.learning_rate,
            "steps": best.target_steps if reached else best.steps[-1],
            "seconds": seconds,
            "ratio": seconds / closed.warm_seconds,
            "final_steps": best.steps[-1],
            "final_seconds": best.seconds[-1],
            "final_gap": best.gaps[-1],
            "elbo_taylor": float(optimum.elbo_taylor) - best.gaps[-1],
            "elbo_exact": trained,
            "compile_seconds": compiling,
            "history": {"steps": best.steps, "seconds": best.seconds, "gaps": best.gaps},
            "runs": [
                {
                    "learning_rate": run.learning_rate,
                    "target_steps": run.target_steps,
                    "target_seconds": run.target_seconds,
                    "final_seconds": run.seconds[-1],
                    "final_steps": run.steps[-1],
                    "final_gap": run.gaps[-1],
                    "stopped": run.stopped,
                }
                for run in runs
            ],
        },
    }


def exact(model: AffineModel, x: Array, q: Posterior, units: int) -> float:
    """The mean exact ELBO. Units that do nothing (no loadings, prior posterior) are added up to ``units``: they change
    no ELBO, and with one shape for every kappa the quadrature is compiled once per data set."""
    kappa = model.loadings.shape[1]
    extra = units - kappa
    covariance = jnp.eye(units, dtype=x.dtype)[None].at[:, :kappa, :kappa].set(q.covariance)
    padded = Posterior(jnp.pad(q.mean, ((0, 0), (0, extra))), covariance)
    wide = Affine(jnp.pad(model.loadings, ((0, 0), (0, extra))), model.intercept)
    return float(jnp.mean(elbo_exact(AffineModel(wide, model.objective), x, padded)))


def table(result: dict[str, Any]) -> str:
    """One line a row: the closed form, and what training does in the same place."""
    rows = result["rows"]
    peers = any(row["closed_form"]["peer_seconds"] is not None for row in rows)
    head = ["data", "family", "kappa", "compile", "warm", "L-hat", "ELBO", "active"]
    head += ["PCA", "ours/PCA"] if peers else []
    head += ["rate", "steps", "seconds", "ratio", "gap", "ELBO"]
    lines = [_cells(row, peers) for row in rows]
    text = aligned(head, lines, left=2, split=len(head) - 6, banner=("closed form", "trained"))
    text += (
        "\n\nL-hat, ELBO and gap in nats per row; the gap is that of the trained L-hat below the closed form's.\n"
        f"steps, seconds: until the gap is {affine_training.TARGET:g}. "
        "ratio: those seconds over the warm time of the closed form.\n"
        "> : the target was not reached in that many steps and seconds."
    )
    partial = sorted({f"{r['data']} {r['elbo_exact_rows']}" for r in rows if r["elbo_exact_rows"] < r["rows"]})
    if partial:
        text += f"\nThe exact ELBOs are means over the first rows only: {', '.join(partial)} rows."
    return text


def _cells(row: dict[str, Any], peers: bool) -> list[str]:
    closed, trained = row["closed_form"], row["training"]
    cells = [row["data"], row["family"], str(row["latent_dim"]), duration(closed["compile_seconds"])]
    cells += [duration(closed["warm_seconds"]), f"{closed['elbo_taylor']:.3f}", f"{closed['elbo_exact']:.3f}"]
    cells.append(str(closed["active_units"]))
    if peers:
        cells += [duration(closed["peer_seconds"]), f"{closed['peer_ratio']:.2f}"]
    more = "" if trained["reached"] else "> "
    cells += [f"{trained['learning_rate']:g}", f"{more}{trained['steps']}", f"{more}{trained['seconds']:.2f}"]
    cells += [f"{more}{trained['ratio']:.3g}", number(trained["final_gap"], ".4f"), number(trained["elbo_exact"])]
    return cells


def draw(result: dict[str, Any]) -> Any:
    """The gap of the trained model over the seconds it took: a panel per data set and family, a colour per kappa."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["data"], row["family"]), []).append(row)
    figure, axes = panels(
        len(groups),
        "A model trained with Adam, on its way to the optimum that the closed form gives at once\n"
        "curves: trained model; dashed: closed form, from the data (warm); dot: within the target gap",
    )
    kappas = sorted({row["latent_dim"] for row in result["rows"]})
    colours = {kappa: COLOURS[i % len(COLOURS)] for i, kappa in enumerate(kappas)}
    for axis, ((data, family), group) in zip(axes, groups.items(), strict=True):
        _panel(axis, f"{data}, {family}", group, colours)
    return figure


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
        gaps = [max(gap, _FLOOR) if gap is not None and math.isfinite(gap) else math.nan for gap in history["gaps"]]
        axis.plot(history["seconds"], gaps, color=colour, linewidth=1.3, label=label)
        axis.axvline(closed["warm_seconds"], color=colour, linestyle="--", linewidth=1.3)
    axis.axhline(target, color="0.5", linewidth=0.9, linestyle=":")
    axis.set(xscale="log", yscale="log", title=title, xlabel="seconds", ylabel="gap to the optimum, nats per row")
    axis.xaxis.set_minor_formatter("")  # within one decade matplotlib would label the minor ticks, one over another
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, handlelength=1.5)
