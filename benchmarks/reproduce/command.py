"""``python -m benchmarks reproduce``: run what is not done; or say how far it is, draw it, say what it shows."""

from __future__ import annotations

import argparse
import fnmatch
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.arguments import whole
from benchmarks.reproduce import figures, measures, page, runner
from benchmarks.reproduce.runner import Folders
from benchmarks.reproduce.setups import Setup, all_setups

#: Beside the page of the manual that shows them.
RESULTS, PAGE = Path(__file__).parents[2] / "notebooks" / "reproduced", "reproduction.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; ends the program on bad ones."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "glmvae" / "reproduce"
    parser = argparse.ArgumentParser(prog="python -m benchmarks reproduce", description=__doc__)
    parser.add_argument(
        "--list", action="store_true", help="a line a setup: its name, steps done, steps asked, and todo, running, "
        "stopped or done; nothing is run",
    )  # fmt: skip
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help="names as in --list, or patterns such as 'starts-frey-*'",
    )
    parser.add_argument(
        "--steps",
        type=functools.partial(whole, least=1),
        help="of each setup, at most; a longer run goes on from there",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="draw the paper's figures of the results that are there, short runs too",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="write the page of the manual over the results that are there, reproduction.md, and its figures; the page "
        "goes beside the folder of results",
    )
    parser.add_argument(
        "--claims", action="store_true", help="print what the paper says, what was measured and whether it holds"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: notebooks/reproduced")
    parser.add_argument("--checkpoints", type=Path, default=cache, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.folders = Folders(options.results.expanduser(), options.checkpoints.expanduser())
    options.setups = [s for s in all_setups() if any(fnmatch.fnmatchcase(s.name, only) for only in options.only)]
    if not options.setups:
        parser.error(f"--only: no setup is called {' or '.join(options.only)} (see --list)")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the setups, smallest first: 0, 1 where one could not be run, or 130 when interrupted; what is done stays."""
    options = parse(arguments)
    asked = {setup: min(setup.steps, options.steps or setup.steps) for setup in options.setups}
    if options.list:
        print(listing(asked, options.folders))
        return 0
    if options.figures or options.claims or options.page:
        _show(options)
        return 0
    with jax.enable_x64(False):
        return _run_all(asked, options.folders)


def _show(options: argparse.Namespace) -> None:
    """What is there, without a run."""
    folder = options.folders.results
    if options.figures and not options.page:
        print(*figures.draw(measures.load(folder, short=True), folder / "figures"), sep="\n")
    results = measures.load(folder)
    if options.page:
        print(*figures.draw(results, folder / "figures"), page.write(results, folder.with_name(PAGE)), sep="\n")
        print(f"README.md, Measured:\n{page.readme(results)}")
    if options.claims:
        print(page.plain(results))


def listing(asked: dict[Setup, int], folders: Folders) -> str:
    """A line a setup."""
    width = max(len(setup.name) for setup in asked)
    lines = []
    for setup, steps in asked.items():
        done, state = runner.status(setup, steps, folders)
        lines.append(f"{setup.name:{width}}  {done:6d}  {steps:6d}  {state}")
    return "\n".join(lines)


def _run_all(asked: dict[Setup, int], folders: Folders) -> int:
    from tqdm import tqdm

    before = {setup: runner.status(setup, steps, folders) for setup, steps in asked.items()}
    todo = [setup for setup, (_, state) in before.items() if state != "done"]
    total, failed = sum(asked[setup] for setup in todo), False
    # in a log file a line now and then will do
    slowly: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": 60}
    with tqdm(total=total, initial=sum(before[s][0] for s in todo), unit="step", dynamic_ncols=True, **slowly) as bar:
        shown = {setup: before[setup][0] for setup in todo}

        def tell(setup: Setup, step: int) -> None:
            bar.set_description(setup.name, refresh=False)
            bar.update(max(0, step - shown[setup]))
            shown[setup] = max(step, shown[setup])

        for setup in todo:
            try:
                state = runner.run(setup, asked[setup], folders, tell)
            except KeyboardInterrupt:
                state = "stopped"
            except (ValueError, OSError) as error:
                tqdm.write(f"{setup.name}: {error}", file=sys.stderr)
                failed = True
                continue
            if state == "stopped":
                return 130
            tqdm.write(f"{setup.name}: {state}", file=sys.stdout)
            sys.stdout.flush()
            jax.clear_caches()  # no two setups share much, and a day of them would fill the memory
    return int(failed)
