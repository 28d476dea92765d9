"""``python -m benchmarks``: a page of measurements on every data set that is found."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import nets, optimum, problems, refined, report
from benchmarks.problems import Problem

#: A page says which kappas it runs (``LATENT_DIMS``; the first with ``--quick``), how many units of progress it has
#: (``total``), fills the result (``measure``), and shows it (``table``, ``draw``).
PAGES: dict[str, Any] = {"optimum": optimum, "refined": refined, "nets": nets}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, ``--quick`` worked in; ends the program on bad ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "page", nargs="?", choices=PAGES, default="optimum",
        help="optimum (the default): the closed form against training; refined: bounds and the exact optimum beyond "
        "it; nets: three starts of Flax nets, activities over beta, speed",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", choices=problems.NAMES, metavar="NAME",
        help=f"of {', '.join(problems.NAMES)}; default: the first two, and the others where found (GLMVAE_DATA_DIR)",
    )  # fmt: skip
    parser.add_argument(
        "--latent-dims", nargs="+", type=_positive, metavar="KAPPA",
        help="default: " + "; ".join(f"{name} {' '.join(map(str, p.LATENT_DIMS))}" for name, p in PAGES.items()),
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a short run: digits and synthetic, one kappa, few steps")
    parser.add_argument(
        "--peers", action="store_true",
        help="also time, where installed: scikit-learn's PCA (optimum); PlnPCA, logisticpca and glmpca (refined); "
        "PyTorch (nets)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the starts, the batches and the synthetic data")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), metavar="DIR",
        help="where PAGE.json and PAGE.png go; default: %(default)s",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.asked_for = options.data is not None
    options.data = list(dict.fromkeys(options.data or (problems.QUICK_NAMES if options.quick else problems.NAMES)))
    kappas = PAGES[options.page].LATENT_DIMS
    options.latent_dims = sorted(set(options.latent_dims or (kappas[:1] if options.quick else kappas)))
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a page; 0, or 130 when it was interrupted (what is done is kept), or 2 for bad options."""
    options = parse(arguments)
    with jax.enable_x64(False):
        try:
            report.prepare(options.output, options.page)
            found, missing = load(options)
        except (OSError, ValueError) as error:
            print(f"python -m benchmarks: {error}", file=sys.stderr)
            return 2
        for name, reason in missing.items():
            print(f"{name} is left out: {reason}", file=sys.stderr)
        return _run(options, found, missing)


def load(options: argparse.Namespace) -> tuple[list[Problem], dict[str, str]]:
    """The problems, and the data sets that were not found and not asked for by name."""
    found: list[Problem] = []
    missing: dict[str, str] = {}
    for name in options.data:
        try:
            of_name = problems.load(name, options.seed)
            found += of_name if options.page == "optimum" and not options.quick else of_name[:1]
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

    page = PAGES[options.page]
    began = time.perf_counter()
    result: dict[str, Any] = {
        "page": options.page,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "interrupted": False,
        **report.environment(),
        "settings": {
            **{name: getattr(options, name) for name in ("data", "latent_dims", "seed", "quick", "peers")},
            "beta": 1.0,
        },
        "missing": missing,
        "rows": [],
    }
    try:
        with tqdm(total=page.total(found, options), unit="run", miniters=0, dynamic_ncols=True) as bar:
            page.measure(found, options, result, bar)
    except KeyboardInterrupt:
        result["interrupted"] = True
    result["total_seconds"] = time.perf_counter() - began
    written = [report.write_json(options.output, options.page, result)]
    if result["rows"]:
        print(page.table(result))
        written.append(report.write_png(options.output, options.page, page.draw(result)))
    print(f"\n{'Interrupted' if result['interrupted'] else 'Done'} after {result['total_seconds']:.0f} s:", *written)
    return 130 if result["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
