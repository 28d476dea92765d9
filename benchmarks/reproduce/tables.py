"""Tables of stored results, as text: a blank where something is not there yet."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.report import aligned
from benchmarks.reproduce import measures
from benchmarks.reproduce.measures import Result, one
from benchmarks.reproduce.setups import ANNEALED_DATA, ANNEALED_KAPPA, BETAS, DATA, DECODERS, KAPPAS, START_STEPS

RULES = {"closed": "zero", "null": "null", "tightened": "tight."}


def starts(results: list[Result]) -> str:
    """Where every start ends, and how many steps it takes to Bench's end."""
    head = ["data", "kappa", "decoder", "L-hat", "closed", "tight.", *START_STEPS, *START_STEPS, "burn-in"]
    lines = []
    for data, kappa, decoder, of in _groups(results):
        lines_of: dict[str, float] = next((r["lines"]["train"] for r in of.values() if r), {})
        line = [data, str(kappa), decoder]
        line += [_nats(lines_of.get(name)) for name in ("elbo_taylor", "elbo_exact", "tightened")]
        line += [_end(r) for r in of.values()]
        line += [steps(measures.steps_to(r, of["he"])) for r in of.values()]
        line.append(steps(max(measures.burn_in(of["mle-b"], on) for on in ("train", "test"))) if of["mle-b"] else "")
        lines.append(line)
    text = aligned(head, lines, left=3, split=10, banner=("train ELBO", "steps to Bench's end"))
    return (
        text
        + "\nhe, mle-b: the paper's Bench and MLE-B. burn-in: of mle-b, until above L-hat for good, on train and test."
    )


def over_fitting(results: list[Result]) -> str:
    """Test ELBOs over kappa: of no unit, of the optima, of the nets, and how far those fell from their best."""
    paper = [(decoder, start) for decoder in DECODERS for start in ("he", "mle-b")]
    names = [f"{decoder} {start}" for decoder, start in paper]
    head = ["data", "kappa", "no unit", "closed", "tight.", *names, *names]
    lines = []
    for data in DATA:
        for kappa in KAPPAS:
            of = [_start(results, data, kappa, decoder, start) for decoder, start in paper]
            lines_of: dict[str, float] = next((r["lines"]["test"] for r in of if r), {})
            line = [data, str(kappa), *(_nats(lines_of.get(n)) for n in ("no_unit", "elbo_exact", "tightened"))]
            line += [_end(r, "test") for r in of]
            line += ["" if r is None else _fall(r) for r in of]
            lines.append(line)
    text = aligned(head, lines, left=2, split=9, banner=("test ELBO at the end", "below its best by (! over-fitting)"))
    return text


def _fall(result: Result) -> str:
    nats, over = measures.fall(result)
    return f"{nats:.2f}{'!' if over else ''}"


def units(results: list[Result]) -> str:
    """Active units of section 4.1: predicted by each rule and trained."""
    paper = [(decoder, start) for decoder in DECODERS for start in START_STEPS]
    head = ["data", "kappa", *RULES.values(), *(f"{decoder} {start}" for decoder, start in paper)]
    lines = []
    for data in DATA:
        for kappa in KAPPAS:
            of = [_start(results, data, kappa, decoder, start) for decoder, start in paper]
            predicted: dict[str, Any] = next((r["predicted"] for r in of if r), {})
            line = [data, str(kappa), *(str(measures.count(predicted[n])) if n in predicted else "" for n in RULES)]
            lines.append(line + ["" if r is None else str(measures.active(r)) for r in of])
    return aligned(head, lines, left=2, split=2 + len(RULES), banner=("predicted", "trained"))


def activities(results: list[Result]) -> str:
    """Section 4.2: units predicted and trained at every beta, and the mean error of an activity by each rule."""
    head = ["family", "beta", *RULES.values(), *DECODERS]
    head += [f"{decoder}-{rule}" for decoder in DECODERS for rule in RULES.values()] + ["still"]
    lines = []
    for family, betas in BETAS.items():
        for beta in betas:
            of = {d: one(results, section="activities", family=family, beta=beta, decoder=d) for d in DECODERS}
            predicted: dict[str, Any] = next((r["predicted"] for r in of.values() if r), {})
            rules = {n: predicted.get(n) for n in (RULES if family == "Bernoulli" else ("closed",))}
            counts = [str(measures.count(rules[n] or [])) if rules.get(n) else "" for n in RULES]
            line = [family, f"{beta:g}", *counts, *("" if r is None else str(measures.active(r)) for r in of.values())]
            for result in of.values():
                for name in RULES:
                    rule = rules.get(name)
                    known = result is not None and rule is not None
                    line.append(f"{measures.distance(result['end']['activity'], rule):.3f}" if known else "")  # type: ignore[index, arg-type]
            unsettled = [d for d, r in of.items() if r and not measures.still(r)]
            line.append("" if not any(of.values()) else "yes" if not unsettled else f"not {', '.join(unsettled)}")
            lines.append(line)
    return aligned(head, lines, left=1, split=7, banner=("active of 40", "mean error of a unit's activity"))


def annealing(results: list[Result]) -> str:
    """Final count of active units and final ELBO, on train and on test, annealed and not."""
    head = ["data", "kappa", "decoder", *3 * ["constant", "annealed"], "still"]
    lines = []
    for data in ANNEALED_DATA:
        for decoder in DECODERS:
            pair = (_start(results, data, ANNEALED_KAPPA, decoder, "he"), annealed(results, data, decoder))
            line = [data, str(ANNEALED_KAPPA), decoder]
            line += ["" if r is None else str(measures.active(r)) for r in pair]
            line += [_end(r, on) for on in ("train", "test") for r in pair]
            line.append(
                "" if None in pair else "yes" if all(r is not None and measures.still(r) for r in pair) else "no"
            )
            lines.append(line)
    return aligned(head, lines, left=3, split=5, banner=("active", "ELBO at the end: train, then test"))


def annealed(results: list[Result], data: str, decoder: str) -> Result | None:
    """The run whose beta rose."""
    return one(results, section="annealing", data=data, decoder=decoder)


def steps(value: float) -> str:
    """A number of steps; ``never`` within the run; blank where it is not known."""
    return "" if math.isnan(value) else "never" if math.isinf(value) else f"{value:.0f}"


def _start(results: list[Result], data: str, kappa: int, decoder: str, start: str) -> Result | None:
    return one(results, section="starts", data=data, latent_dim=kappa, decoder=decoder, start=start)


def _groups(results: list[Result]) -> list[tuple[str, int, str, dict[str, Result | None]]]:
    return [
        (data, kappa, decoder, {start: _start(results, data, kappa, decoder, start) for start in START_STEPS})
        for data in DATA
        for kappa in KAPPAS
        for decoder in DECODERS
    ]


def _end(result: Result | None, on: str = "train") -> str:
    return "" if result is None else _nats(measures.end(result, on))


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


#: In the order in which they are printed.
TABLES = {
    "Section 4.1: starts": starts,
    "Section 4.1: over-fitting": over_fitting,
    "Section 4.1: active units": units,
    "Section 4.2: activities on MNIST, 40 latent units": activities,
    "Annealing": annealing,
}
