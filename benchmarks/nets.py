"""Page "nets": Flax nets from three starts, the activities they end with, and the speed of a training step.

Every net is the paper's (B.1), trained with Adam at 1e-4 in batches of 100; from pass-through also at a third of that,
decaying, since a start at an optimum has nothing to gain from steps that never shorten. What is asked of He and MLE-B
is the steps and seconds until the ELBO at which pass-through starts, that of the closed form.

Activities are of nets that are trained until they change little: a small encoder, many steps, a decaying rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import speed
from benchmarks.problems import COUNTS, NAMES, Problem
from benchmarks.report import COLOURS, aligned, duration, number, panels
from benchmarks.timed_training import Curve, bearable, train_timed
from glmvae import Objective, activity_path, fit, initializers, moments, nets, plots

LATENT_DIMS = (2,)
DATA, QUICK_DATA = (*NAMES, COUNTS), ("digits", COUNTS)
ARCHITECTURES: dict[str, Callable[..., nets.VAE]] = {"canonical": nets.canonical, "deep": nets.deep}
STARTS = {"He": initializers.he, "MLE-B": initializers.mle_b, "pass-through": initializers.pass_through}
DECAYING = "pass-through, decaying"
#: Steps from pass-through; and the most that the others get.
FIRST_STEPS, MAX_STEPS, QUICK_STEPS = 500, 1_000, 50
EVERY = 50
#: Of the small net that --quick times: as many as take about as long as 100 of the paper's.
QUICK_TIMED_STEPS = 1_000
RATE, DECAYING_RATE = 1e-4, 3e-5
CONSTANT = optax.adam(RATE)
# Activities, from a He start: latent units, values of beta, hidden units of the encoder, steps, the first rate.
UNITS, BETAS, ACTIVITY_WIDTHS, ACTIVITY_STEPS, ACTIVITY_RATE = 5, 5, (250,), 8_000, 3e-3
# Only sets on which a step is fast.
ACTIVITY_COLUMNS = 600


def total(found: list[Problem], options: argparse.Namespace) -> int:
    """Four runs of two nets for every problem and kappa; every beta; and the timing."""
    slow = 0 if options.quick else sum(BETAS for problem in found if _is_fast(problem))
    return len(found) * len(options.latent_dims) * 8 + slow + 1


def _is_fast(problem: Problem) -> bool:
    """Whether its activities are looked at; those of counts are nets that have far to go from He."""
    return problem.x.shape[1] <= ACTIVITY_COLUMNS and problem.name != COUNTS


def measure(found: list[Problem], options: argparse.Namespace, result: dict[str, Any], bar: Any) -> None:
    """Append a row for every problem, kappa and net; then the activities and the speed."""
    first, most = (QUICK_STEPS, QUICK_STEPS) if options.quick else (FIRST_STEPS, MAX_STEPS)
    result["settings"] |= {"first_steps": first, "max_steps": most, "batch_size": 100}
    result["settings"] |= {"learning_rate": RATE, "decaying_from": DECAYING_RATE}
    result["activities"] = []
    bar.set_description("speed of a step")
    size: dict[str, Any] = {"columns": 64, "widths": (50, 20), "steps": QUICK_TIMED_STEPS} if options.quick else {}
    result["step"] = speed.step_time(peers=options.peers, **size)
    bar.update()
    for problem in found:
        for latent_dim in options.latent_dims:
            for architecture in ARCHITECTURES:
                result["rows"].append(_starts(problem, latent_dim, architecture, first, most, options.seed, bar))
        if not options.quick and _is_fast(problem):
            result["activities"].append(_activities(problem, options.seed, bar))


def _starts(
    problem: Problem, latent_dim: int, architecture: str, first: int, most: int, seed: int, bar: Any
) -> dict[str, Any]:
    optimum = fit(problem.x, problem.family, latent_dim, expand_at=problem.expand_at)
    build_key, start_key, train_key = jax.random.split(jax.random.key(seed), 3)
    sizes: dict[str, Any] = {"standardise": bearable(problem.x, problem.family), "dtype": jnp.float32}
    objective = optimum.model.objective
    vae = ARCHITECTURES[architecture](build_key, problem.x.shape[1], latent_dim, objective, **sizes)
    curves: dict[str, Curve] = {}
    decaying = optax.adam(optax.cosine_decay_schedule(DECAYING_RATE, first))
    runs: list[tuple[str, str, Any, int]] = [(DECAYING, "pass-through", decaying, first)]
    runs += [(name, name, CONSTANT, first if name == "pass-through" else most) for name in reversed(STARTS)]
    for name, initializer, optimizer, steps in runs:  # pass-through first: where it starts is where the others go
        label = f"{problem.name}, {architecture}, {name}"
        bar.set_description(label)

        def show(step: int, elbo: float, label: str = label) -> None:
            bar.set_description(f"{label}, step {step}: {elbo:.2f}")

        curves[name] = train_timed(
            train_key,
            STARTS[initializer](start_key, vae, optimum),
            problem.x,
            steps=steps,
            every=max(1, min(EVERY, first // 10)),
            optimizer=optimizer,
            until=None if initializer == "pass-through" else curves["pass-through"].elbos[0],
            progress=show,
        )
        bar.update()
    about = {"data": problem.name, "family": problem.family_name, "rows": problem.x.shape[0]}
    return about | {
        "columns": problem.x.shape[1],
        "latent_dim": latent_dim,
        "architecture": architecture,
        **_told(curves),
    }


def _told(curves: dict[str, Curve]) -> dict[str, Any]:
    """The curves, and what the table says of them."""
    ours = curves["pass-through"]
    told: dict[str, Any] = {"curves": {name: curves[name].as_dict() for name in (*STARTS, DECAYING)}}
    for name in ("He", "MLE-B"):
        told[name] = {
            "start": curves[name].elbos[0],
            "reached": curves[name].elbos[-1] >= ours.elbos[0],
            "steps": curves[name].steps[-1],
            "seconds": curves[name].seconds[-1],
            "diverged": curves[name].diverged,
        }
    told["pass-through"] = {
        "start": ours.elbos[0],
        "start_error": ours.errors[0],
        "steps": ours.steps[-1],
        "end": ours.elbos[-1],
        "end_error": ours.errors[-1],
        "decaying_end": curves[DECAYING].elbos[-1],
    }
    return told


def _activities(problem: Problem, seed: int, bar: Any) -> dict[str, Any]:
    """Of canonical nets trained from He at some betas, and what the closed form says of them."""
    data = moments(problem.x, family=problem.family)
    values = np.asarray(fit(data, problem.family, UNITS).eigenvalues)
    # from where the last unit is half gone to where the first is just off
    betas = np.geomspace(0.5 * values[UNITS - 1], 1.1 * values[0], BETAS).astype(np.float32)
    steps = ACTIVITY_STEPS
    optimizer = optax.adam(optax.cosine_decay_schedule(ACTIVITY_RATE, steps))
    build_key, train_key = jax.random.split(jax.random.key(seed))
    trained = []
    for beta in betas:
        bar.set_description(f"{problem.name}, activities at beta {beta:.3g}")
        vae = nets.canonical(
            build_key,
            problem.x.shape[1],
            UNITS,
            Objective(problem.family, beta),
            encoder_widths=ACTIVITY_WIDTHS,
            standardise=bearable(problem.x, problem.family),
            dtype=jnp.float32,
        )
        curve = train_timed(train_key, vae, problem.x, steps=steps, every=steps, optimizer=optimizer)
        mean = np.asarray(curve.vae.encoder(problem.x[:10_000]).mean)
        trained.append(mean.var(axis=0).tolist())
        bar.update()
    return {
        "data": problem.name,
        "family": problem.family_name,
        "latent_dim": UNITS,
        "betas": betas.tolist(),
        "zero": np.asarray(activity_path(data, problem.family, betas, UNITS)).tolist(),
        "null": np.asarray(activity_path(data, problem.family, betas, UNITS, expand_at="null")).tolist(),
        "trained": trained,
        "steps": steps,
        "learning_rate": ACTIVITY_RATE,
        "encoder_widths": list(ACTIVITY_WIDTHS),
    }


def table(result: dict[str, Any]) -> str:
    """The starts, line by line, then the speed and the activities in words."""
    head = ["data", "net", "kappa", "start", "steps", "after", "decaying", "std. error"]
    head += ["He start", "steps", "seconds", "MLE-B start", "steps", "seconds"]
    lines = []
    for row in result["rows"]:
        ours = row["pass-through"]
        line = [row["data"], row["architecture"], str(row["latent_dim"]), f"{ours['start']:.3f}", str(ours["steps"])]
        line += [number(ours[name]) for name in ("end", "decaying_end", "end_error")]
        for name in ("He", "MLE-B"):
            more = "" if row[name]["reached"] else "> "
            steps = "diverged" if row[name]["diverged"] else f"{more}{row[name]['steps']}"
            line += [number(row[name]["start"], ".4g"), steps, f"{more}{row[name]['seconds']:.2f}"]
        lines.append(line)
    banner = ("pass-through", "until pass-through's start")
    text = aligned(head, lines, left=2, split=8, banner=banner)
    text += "\n\nELBOs in nats per row. decaying: after as many steps at a third of the rate, decaying to 0."
    text += "\n> : not reached in that many steps and seconds.\n\n" + _step(result["step"])
    for of_set in result["activities"]:
        most = np.abs(-np.sort(-np.asarray(of_set["trained"]), axis=1) - np.asarray(of_set["null"])).max()
        text += (
            f"\nActivities on {of_set['data']}, {len(of_set['betas'])} betas, trained for {of_set['steps']} steps: "
            f"largest difference to the closed form expanded at null {most:.3f}."
        )
    return text


def _step(step: dict[str, Any]) -> str:
    text = (
        f"A step of {step['net']}, batch {step['batch_size']}: {duration(step['seconds'])}, "
        f"{step['ratio_to_bare']:.2f} times bare JAX, {100 * step['share_of_matmul_rate']:.0f} % of the "
        f"{step['matmul_gflops']:.0f} Gflop/s of a matrix product in this run."
    )
    text += (
        f"\nIts products at that rate, then Adam's update ({duration(step['adam_seconds'])}), one after the other: "
        f"{duration(step['parts_seconds'])}."
    )
    if "torch_seconds" in step:
        text += (
            f"\nPyTorch with fused Adam: {duration(step['torch_seconds'])}, {step['speed_over_torch']:.2f} times the "
            f"library's step, {step['torch_seconds'] / step['parts_seconds']:.2f} times those parts."
        )
    return text


def draw(result: dict[str, Any]) -> Any:
    """ELBO over steps, a panel for every data set and net; then the activities over beta."""
    rows, activities = result["rows"], result["activities"]
    also = ", and the activities of trained nets" if activities else ""
    title = f"Starts of the same net: nats per row above the ELBO of the closed form{also}"
    figure, axes = panels(len(rows) + len(activities), title, size=(5.0, 5.2))
    for axis, row in zip(axes, rows, strict=False):
        start = row["pass-through"]["start"]
        for colour, (name, curve) in zip(COLOURS, row["curves"].items(), strict=False):
            above = np.asarray(curve["elbos"], float) - start
            label = f"{name}: from {curve['elbos'][0]:.4g} by {above[-1] - above[0]:+.3g}"
            axis.plot(curve["steps"], above, color=colour, linewidth=1.4, label=label)
        axis.axhline(0.0, color="0.4", linestyle="--", linewidth=1, label=f"the closed form: {start:.4g}")
        axis.set_yscale("symlog", linthresh=1.0)  # a net may start thousands of nats below
        axis.set_title(f"{row['data']}, {row['architecture']}, kappa {row['latent_dim']}", fontsize=10)
        axis.set(xlabel="training step", ylabel="nats per row above the closed form")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=8.5)
    for axis, of_set in zip(axes[len(rows) :], activities, strict=True):
        marks = {"trained net": of_set["trained"], "expanded at null": of_set["null"]}
        plots.activities(of_set["betas"], of_set["zero"], marks, ax=axis)
        about = f"{of_set['data']}, canonical, kappa {of_set['latent_dim']}, trained out from He"
        axis.set_title(about, fontsize=10)
    return figure
