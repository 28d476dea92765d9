"""One task in a fresh process: what it costs beyond the imports. ``python -m benchmarks.fresh TASK FILE KAPPA``.

FILE is a pickle of the rows and their family. Prints JSON: a list of steps, each with its processor and wall seconds,
the programs that JAX compiled in it, and the wall seconds of tracing, of lowering and of LLVM (of the backend).
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

#: A task gives the name of a step and what to call, and gets what the call returned.
Task = Generator[tuple[str, Callable[[], Any]], Any, None]
#: Rows of another N, and of posteriors: the first, and those for which nothing is left to compile.
OTHER_ROWS, FIRST_ROWS, NEW_ROWS = 777, 5, (7, 1)
OTHER = f"exact, {OTHER_ROWS} rows"
AGAIN = f"{OTHER}, again"
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace_seconds",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_seconds",
    "/jax/core/compile/backend_compile_duration": "llvm_seconds",
}


def _fit(glmvae: Any, x: Any, family: Any, kappa: int) -> Task:
    yield "fit", lambda: glmvae.fit(x, family, kappa)


def _diagnose(glmvae: Any, x: Any, family: Any, kappa: int) -> Task:
    yield "diagnose", lambda: glmvae.diagnose(x, family, kappa)


def _tighten(glmvae: Any, x: Any, family: Any, kappa: int) -> Task:
    start = yield "fit", lambda: glmvae.fit(x, family, kappa)
    yield "tighten", lambda: glmvae.tighten(start, x)


def _exact(glmvae: Any, x: Any, family: Any, kappa: int) -> Task:
    start = yield "fit", lambda: glmvae.fit(x, family, kappa)
    best = yield "exact", lambda: glmvae.refine(start, x)
    for name in (OTHER, AGAIN):
        yield name, lambda: glmvae.refine(start, x[:OTHER_ROWS])
    for rows in (FIRST_ROWS, *NEW_ROWS):
        yield posterior_of(rows), lambda rows=rows: glmvae.best_posterior(best, x[:rows])  # type: ignore[misc]


def posterior_of(rows: int) -> str:
    """The step that finds the best posteriors of so many rows."""
    return f"posterior, {rows} row{'s' * (rows > 1)}"


TASKS: dict[str, Callable[[Any, Any, Any, int], Task]] = {
    "fit": _fit, "diagnose": _diagnose, "tighten": _tighten, "exact": _exact,
}  # fmt: skip


def run(task: str, file: Path, kappa: int) -> list[dict[str, Any]]:
    """The steps of a task, after those of every process: the imports, and the start of JAX."""
    steps: list[dict[str, Any]] = []

    def step(name: str, call: Callable[[], Any]) -> Any:
        spent = dict.fromkeys(("programs", *_EVENTS.values()), 0.0)
        steps.append({"step": name, **spent})
        wall, cpu = time.perf_counter(), time.process_time()
        value = call()
        steps[-1]["seconds"], steps[-1]["cpu_seconds"] = time.perf_counter() - wall, time.process_time() - cpu
        return value

    def seen(event: str, seconds: float, **_: Any) -> None:
        if event in _EVENTS:
            steps[-1][_EVENTS[event]] += seconds
            steps[-1]["programs"] += _EVENTS[event] == "llvm_seconds"

    def imported() -> tuple[Any, Any]:
        import jax

        import glmvae

        return jax, glmvae

    jax, glmvae = step("import", imported)
    jax.monitoring.register_event_duration_secs_listener(seen)
    step("start of JAX", jax.devices)
    x, family = pickle.loads(file.read_bytes())
    going, value = TASKS[task](glmvae, x, family, kappa), None
    while True:
        try:
            name, call = going.send(value)
        except StopIteration:
            return steps
        value = step(name, lambda call=call: jax.block_until_ready(call()))  # type: ignore[misc]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
