"""Training a setup from wherever it was left: its progress outside the repository, its result, when done, inside.

    CHECKPOINTS/NAME.npz     the run itself, as glmvae.training keeps it (removed when the setup is done)
    CHECKPOINTS/NAME.json    its curve so far, and the time it took
    CHECKPOINTS/NAME.lock    held by the process that works on it
    RESULTS/NAME.json        the result, written as a whole

The curve is looked up between two pieces of the run, and the run goes on from its checkpoint bit for bit: so a setup
that was stopped, however often, ends with the numbers of one that was not.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import report
from benchmarks.reproduce import library
from benchmarks.reproduce.setups import Setup, looks
from benchmarks.timing import Clock

Report = Callable[[Setup, int], None]


class Folders(NamedTuple):
    """Where results and checkpoints lie."""

    results: Path
    checkpoints: Path


def status(setup: Setup, steps: int, folders: Folders) -> tuple[int, str]:
    """Steps done, and ``todo``, ``running``, ``stopped`` or ``done``."""
    result = stored(setup, folders.results)
    if result is not None and result["settings"]["steps"] >= steps:
        return result["settings"]["steps"], "done"
    progress = stored(setup, folders.checkpoints)
    done = 0 if progress is None else progress["step"]
    if _running(setup, folders):
        return done, "running"
    return done, "todo" if progress is None else "stopped"


def stored(setup: Setup, folder: Path) -> dict[str, Any] | None:
    """What is kept of a setup in a folder; None where there is nothing, or of other settings (steps apart)."""
    try:
        kept = json.loads((folder / f"{setup.name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return kept if {**kept.get("settings", {}), "steps": setup.steps} == setup.settings() else None


def run(setup: Setup, steps: int, folders: Folders, tell: Report = lambda setup, step: None) -> str:
    """Work on a setup until it has so many steps: ``done``, ``stopped`` by Ctrl-C, or ``running`` elsewhere.

    Args:
        setup: what to train.
        steps: to take in all, at most the setup's own.
        folders: where things lie; they are made.
        tell: called with the setup and the steps done, after each chunk.

    Raises:
        ValueError: the checkpoint is of another version of the library: remove it, or go on with that version.
        FileNotFoundError: the data are not there.
    """
    if status(setup, steps, folders)[1] == "done":
        return "done"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(setup, folders) as free:
        return _run(setup, steps, folders, tell) if free else "running"


def _run(setup: Setup, steps: int, folders: Folders, tell: Report) -> str:
    progress = _begun(setup, folders)
    clock = Clock()

    def add() -> None:
        for name, spent in zip(("seconds", "cpu_seconds"), clock.lap(), strict=True):
            progress[name] += spent

    def keep(step: int) -> None:
        progress["step"] = step
        add()
        write(folders.checkpoints / f"{setup.name}.json", progress)
        tell(setup, step)

    start = vae = library.start_of(setup)
    there = {point["step"] for point in progress["curve"]}
    for step in looks(steps):
        if step in there and step != steps:
            continue
        try:
            if step:
                vae, interrupted = library.train_to(setup, start, step, _checkpoint(setup, folders), keep)
                if interrupted:
                    return "stopped"
        except library.Diverged as error:
            vae, progress["diverged"] = error.vae, error.step
            break
        if step not in there:
            point = {"step": step, **library.look(setup, vae)}
            add()
            progress["curve"].append(point | {"cpu_seconds": progress["cpu_seconds"]})
        keep(step)
    found = _found(setup, steps, vae)
    add()
    curve = [point for point in progress["curve"] if point["step"] in looks(steps)]
    found |= {"diverged": progress["diverged"], "curve": {name: [point[name] for point in curve] for name in curve[0]}}
    found |= {name: progress[name] for name in ("seconds", "cpu_seconds", "made_on")}
    write(folders.results / f"{setup.name}.json", {"made_by": report.MARK, **found})
    if steps == setup.steps:
        _checkpoint(setup, folders).unlink(missing_ok=True)
    return "done"


def _checkpoint(setup: Setup, folders: Folders) -> Path:
    return folders.checkpoints / f"{setup.name}.npz"


def _begun(setup: Setup, folders: Folders) -> dict[str, Any]:
    """The progress so far, with this machine among those it was made on."""
    progress = stored(setup, folders.checkpoints)
    if progress is None:
        _checkpoint(setup, folders).unlink(missing_ok=True)
        progress = {"settings": setup.settings(), "step": 0, "curve": [], "seconds": 0.0, "cpu_seconds": 0.0}
        progress |= {"diverged": None, "made_on": []}
    made_on = made_with()
    if made_on not in progress["made_on"]:
        progress["made_on"].append(made_on)
    return progress


def _found(setup: Setup, steps: int, vae: Any) -> dict[str, Any]:
    """What is said of a net that has so many steps."""
    both = library.rows(setup.data)
    return {
        "settings": setup.settings() | {"steps": steps},
        "rows": [len(x) for x in both],
        "seen": [len(library.seen(x)) for x in both],
        "samples": 0 if setup.decoder == "affine" else library.SAMPLES,
        "dispersion": float(library.optima_of(setup).closed.dispersion),
        "lines": library.lines(setup.data, setup.family, setup.latent_dim, setup.beta),
        "predicted": library.predicted(setup),
        "end": library.look_at_all(setup, vae),
    }


def made_with() -> dict[str, Any]:
    """Versions, and the machine by its kind alone."""
    about = report.environment()
    machine = {name: about["machine"][name] for name in ("cpu_model", "cpu_count")}
    return {"versions": about["versions"], **machine, "device": jax.devices()[0].device_kind}


def write(path: Path, content: dict[str, Any]) -> None:
    """A line a key, numbers to 7 digits; the file is complete or as it was before."""
    text = ",\n".join(f" {json.dumps(k)}: {json.dumps(_rounded(v), allow_nan=False)}" for k, v in content.items())
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(f"{{\n{text}\n}}\n")
    part.replace(path)


def _rounded(value: Any) -> Any:
    """To 7 significant digits; what is not finite becomes null, since JSON has no word for it."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if abs(value) < float("inf") else None
    return value


@contextlib.contextmanager
def _lock(setup: Setup, folders: Folders) -> Iterator[bool]:
    """Whether no other process works on the setup; while the block lasts none can begin. Freed if this one dies."""
    import fcntl

    with open(folders.checkpoints / f"{setup.name}.lock", "w") as file:
        free = False
        for _ in range(5):  # one who only looks holds it for a moment
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
                break
            time.sleep(0.05)
        yield free


def _running(setup: Setup, folders: Folders) -> bool:
    """Whether another process works on the setup."""
    if not (folders.checkpoints / f"{setup.name}.lock").exists():
        return False
    with _lock(setup, folders) as free:
        return not free
