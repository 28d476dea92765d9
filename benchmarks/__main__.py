"""``python -m benchmarks``: the closed form against training, on every data set that is found."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import figure, problems, report, training
from benchmarks.closed_form import ClosedForm, measure
from benchmarks.problems import Problem
from glmvae import Moments, Posterior, elbo_exact, moments, posterior

LATENT_DIMS, QUICK_LATENT_DIMS = (2, 5, 20), (2,)
MAX_STEPS, QUICK_MAX_STEPS = 20_000, 5_000
# The exact ELBO takes 20 softplus an entry and would cost more than all the rest on MNIST's 47 million.
EXACT_ROWS, QUICK_EXACT_ROWS = 10_000, 1_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, ``--quick`` worked in (it leaves the Gaussian out); ends the program on bad ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--data", nargs="+", choices=problems.NAMES, metavar="NAME",
        help=f"of {', '.join(problems.NAMES)}; default: the first two, and the others where found (GLMVAE_DATA_DIR)",
    )  # fmt: skip
    parser.add_argument("--latent-dims", nargs="+", type=_positive, metavar="KAPPA", help="default: 2 5 20")
    parser.add_argument("--quick", action="store_true", help="a short run: digits and synthetic, kappa 2, few steps")
    parser.add_argument("--peers", action="store_true", help="also time scikit-learn's PCA (covariance_eigh)")
    parser.add_argument("--seed", type=int, default=0, help="of the start, the batches and the synthetic data")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), metavar="DIR",
        help="where benchmark.json and benchmark.png go; default: %(default)s",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.asked_for = options.data is not None
    options.data = list(dict.fromkeys(options.data or (problems.QUICK_NAMES if options.quick else problems.NAMES)))
    options.latent_dims = sorted(set(options.latent_dims or (QUICK_LATENT_DIMS if options.quick else LATENT_DIMS)))
    options.max_steps = QUICK_MAX_STEPS if options.quick else MAX_STEPS
    options.exact_rows = QUICK_EXACT_ROWS if options.quick else EXACT_ROWS
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 130 when it was interrupted (what is done is kept), or 2 for bad options."""
    options = parse(arguments)
    with jax.enable_x64(False):
        try:
            report.prepare(options.output)
            found, missing = _load(options)
        except (OSError, ValueError) as error:
            print(f"python -m benchmarks: {error}", file=sys.stderr)
            return 2
        for name, reason in missing.items():
            print(f"{name} is left out: {reason}", file=sys.stderr)
        return _run(options, found, missing)


def _load(options: argparse.Namespace) -> tuple[list[Problem], dict[str, str]]:
    """The problems, and the data sets that were not found and not asked for by name."""
    found: list[Problem] = []
    missing: dict[str, str] = {}
    for name in options.data:
        try:
            of_name = problems.load(name, options.seed)
            found += of_name[:1] if options.quick else of_name
        except FileNotFoundError as error:
            if options.asked_for:
                raise
            missing[name] = str(error)
    for problem in found:
        if options.latent_dims[-1] > problem.x.shape[1]:
            raise ValueError(
                f"--latent-dims: {problem.name} has {problem.x.shape[1]} columns, got {options.latent_dims[-1]}"
            )
    return found, missing


def _run(options: argparse.Namespace, found: list[Problem], missing: dict[str, str]) -> int:
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    began, interrupted = time.perf_counter(), False
    total = len(found) * len(options.latent_dims) * (1 + len(training.RATES))
    try:
        with tqdm(total=total, unit="run", miniters=0, dynamic_ncols=True) as bar:
            for problem in found:
                _rows_of(problem, options, rows, bar)
    except KeyboardInterrupt:
        interrupted = True
    settings = {
        "data": options.data,
        "latent_dims": options.latent_dims,
        "batch_size": training.BATCH,
        "learning_rates": training.RATES,
        "decay_steps": training.DECAY_STEPS,
        "max_steps": options.max_steps,
        "seed": options.seed,
        "quick": options.quick,
        "peers": options.peers,
        "beta": 1.0,
        "expand_at": "zero",
    }
    result = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "interrupted": interrupted,
        "total_seconds": time.perf_counter() - began,
        **report.environment(),
        "settings": settings,
        "missing": missing,
        "rows": rows,
    }
    written = [report.write_json(options.output, result)]
    if rows:
        print(report.table(rows))
        written.append(figure.draw(options.output, rows))
    print(f"\n{'Interrupted' if interrupted else 'Done'} after {result['total_seconds']:.0f} s:", *written)
    return 130 if interrupted else 0


def _rows_of(problem: Problem, options: argparse.Namespace, rows: list[dict[str, Any]], bar: Any) -> None:
    """Append a row for every kappa, each as it is done."""
    name, family, x = problem
    closed = {}
    for latent_dim in options.latent_dims:  # first all of these: they empty the caches of compiled code
        bar.set_description(f"{name}, {problem.family_name}, kappa {latent_dim}: closed form")
        closed[latent_dim] = measure(x, family, latent_dim, peer=options.peers)
        bar.update()
    data = moments(x, family=family)
    for latent_dim in options.latent_dims:
        label = f"{name}, {problem.family_name}, kappa {latent_dim}"
        key = jax.random.fold_in(jax.random.key(options.seed), latent_dim)

        def show(rate: float, step: int, gap: float, label: str = label) -> None:
            bar.set_description(f"{label}: Adam {rate:g}, step {step}, gap {gap:.3g}", refresh=False)
            bar.update(0)

        optimum = closed[latent_dim].optimum.elbo_taylor
        runs, compiling = training.train(
            key, x, family, data, latent_dim, optimum, max_steps=options.max_steps, progress=show
        )
        bar.set_description(f"{label}: exact ELBO")
        rows.append(_row(problem, closed[latent_dim], runs, compiling, data, options))
        bar.update(len(training.RATES))


def _row(
    problem: Problem,
    closed: ClosedForm,
    runs: list[training.Run],
    compiling: float,
    data: Moments,
    options: argparse.Namespace,
) -> dict[str, Any]:
    family, x, best, optimum = problem.family, problem.x[: options.exact_rows], runs[0], closed.optimum
    units = options.latent_dims[-1]
    ours = _exact(optimum.loadings, optimum.intercept, x, posterior(optimum, x), problem, optimum.dispersion, units)
    model = best.model
    q = training.posterior_of(model, family, data.mean, x)
    trained = _exact(model.loadings, model.intercept, x, q, problem, training.dispersion(model), units)
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
            "target_gap": training.TARGET,
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


def _exact(
    loadings: Array, intercept: Array, x: Array, q: Posterior, problem: Problem, phi: Array, units: int
) -> float:
    """The mean exact ELBO. Units that do nothing (no loadings, prior posterior) are added up to ``units``: they change
    no ELBO, and with one shape for every kappa the quadrature is compiled once per data set."""
    extra = units - loadings.shape[1]
    covariance = jnp.eye(units, dtype=x.dtype).at[: units - extra, : units - extra].set(q.covariance)
    padded = Posterior(jnp.pad(q.mean, ((0, 0), (0, extra))), covariance)
    loadings = jnp.pad(loadings, ((0, 0), (0, extra)))
    return float(jnp.mean(elbo_exact(loadings, intercept, x, padded, problem.family, dispersion=phi)))


if __name__ == "__main__":
    sys.exit(main())
