"""``python -m benchmarks``: a page of measurements on every data set that is found."""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import (
    comparison,
    first_call,
    full_size,
    nets,
    optimum,
    packages,
    problems,
    pytorch,
    refined,
    report,
    selection,
    under_load,
)
from benchmarks.arguments import whole
from benchmarks.problems import Problem
from benchmarks.reproduce import command as reproduce

#: A page says which kappas it runs (``LATENT_DIMS``; the first with ``--quick``) and on which data (``DATA``, and
#: ``QUICK_DATA``, empty where there is no quick form), how many units of progress it has (``total``), fills the result
#: (``measure``), and shows it (``table``, ``draw``).
PAGES: dict[str, Any] = {
    "optimum": optimum,
    "refined": refined,
    "nets": nets,
    "comparison": comparison,
    "selection": selection,
    "pytorch": pytorch,
    "first-call": first_call,
    "under-load": under_load,
    "full-size": full_size,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, ``--quick`` worked in; ends the program on bad ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        epilog="python -m benchmarks reproduce: the paper's simulations at full length, for hours; see its --help.",
    )  # fmt: skip
    parser.add_argument(
        "page", nargs="?", choices=PAGES, default="optimum",
        help="optimum (the default): the closed form against training; refined: bounds and the exact optimum beyond "
        "it; nets: three starts of Flax nets, activities over beta, speed; comparison: from a table to factors, a "
        "held-out score and a plot, beside other libraries; selection: planted numbers of units found; pytorch: "
        "three starts of a net in PyTorch, where it is installed; first-call: "
        "what a fresh process waits for; under-load: "
        "the closed form beside busy processes; full-size: the exact optimum of all of MNIST",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", choices=(*problems.NAMES, problems.COUNTS), metavar="NAME",
        help=f"of {', '.join((*problems.NAMES, problems.COUNTS))}; default: those of the page, without what is not "
        "found (GLMVAE_DATA_DIR)",
    )  # fmt: skip
    parser.add_argument(
        "--latent-dims", nargs="+", type=functools.partial(whole, least=1), metavar="KAPPA",
        help="default: " + "; ".join(f"{name} {' '.join(map(str, p.LATENT_DIMS))}" for name, p in PAGES.items()),
    )  # fmt: skip
    parser.add_argument(
        "--families", nargs="+", choices=[selection.name_of(family) for family in selection.FAMILIES], metavar="NAME",
        help=f"of selection; default: {', '.join(map(selection.name_of, selection.FAMILIES))}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a short run: small data, one kappa, few steps")
    parser.add_argument(
        "--peers", action="store_true",
        help="also time, where installed: scikit-learn's PCA (optimum); PlnPCA, logisticpca and glmpca (refined); "
        "PyTorch (nets)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=functools.partial(whole, least=0), default=0,
        help="of the starts, the batches and the synthetic data",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-results"), metavar="DIR",
        help="where PAGE.json and PAGE.png go; default: %(default)s",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    page = PAGES[options.page]
    if options.quick and not page.QUICK_DATA:
        parser.error(f"--quick: {options.page} has no quick form")
    if options.families and page is not selection:
        parser.error("--families: of selection alone")
    options.asked_for = options.data is not None
    options.data = list(dict.fromkeys(options.data or (page.QUICK_DATA if options.quick else page.DATA)))
    kappas = page.LATENT_DIMS
    options.latent_dims = sorted(set(options.latent_dims or (kappas[:1] if options.quick else kappas)))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a page; 0, or 130 when it was interrupted (what is done is kept), or 2 for bad options."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["reproduce"]:
        return reproduce.main(arguments[1:])
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
    if options.page == "selection":
        selection.check(options)
        return found, missing
    for problem in found:
        if options.latent_dims[-1] > problem.x.shape[1]:
            raise ValueError(
                f"--latent-dims: {problem.name} has {problem.x.shape[1]} columns, got {options.latent_dims[-1]}"
            )
    return found, missing


def _run(options: argparse.Namespace, found: list[Problem], missing: dict[str, str]) -> int:
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
        bar = packages.needed("tqdm").tqdm
        with bar(total=page.total(found, options), unit="run", miniters=0, dynamic_ncols=True) as shown:
            page.measure(found, options, result, shown)
    except KeyboardInterrupt:
        result["interrupted"] = True
    result["total_seconds"] = time.perf_counter() - began
    written = [report.write_json(options.output, options.page, result)]
    if result["rows"]:
        print(page.table(result))
        written.append(report.write_png(options.output, options.page, page.draw(result)))
    print(f"\n{'Interrupted' if result['interrupted'] else 'Done'} after {result['total_seconds']:.0f} s:", *written)
    if busy := report.busy(result):
        print(busy)
    return 130 if result["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
