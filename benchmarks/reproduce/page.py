"""The page of the manual over the stored results: notebooks/reproduction.md, every number of it printed from them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.reproduce import claims, figures, measures, tables
from benchmarks.reproduce.claims import Claim
from benchmarks.reproduce.library import CHUNK, SAMPLES, SEEN
from benchmarks.reproduce.measures import Result
from benchmarks.reproduce.setups import ACTIVITY_STEPS, BETAS, DECODERS, START_STEPS, UNITS, all_setups

SECTIONS = {
    "starts": "section 4.1: where training starts",
    "activities": "section 4.2: which units stay active",
    "annealing": "annealing",
}
#: What the words of the claims mean, in numbers.
_TERMS = (
    "Words that a claim leaves open were fixed before the runs. A burn-in is short up to "
    f"{claims.SHORT} batches; a start is there at once within {claims.AT_ONCE:g} of the batches that Bench needs; ends "
    f"are near within {claims.NEAR:g} of what they gain over no latent unit, and a run is at an ELBO within "
    f"{measures.AT:g} of that gain. A unit is active above {measures.ACTIVE:g}. Over-fitting is a fall of the test "
    f"ELBO by more than {measures.FALL:g} nats and {measures.ERRORS:g} standard errors. Two were mended after the "
    "runs, and no verdict turned on it: L-hat is reasonable or not on real data alone, of which the paper says it, "
    "and a run that is worse on train too is not counted as over-fitting."
)
_SAID = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "not measured yet": ("is not measured yet", "are not measured yet"),
}
#: By the title of a claim: what to do where it holds, and where it does not.
ADVICE = {
    "L-hat is a lower bound that training respects": (
        "Draw the L-hat line beside your curve (`monitor.reference`). A net that stays below it after the first "
        "thousand batches is not trained, or not set up, as it should be.",
        "Do not wait for every net to pass L-hat: it bounds the optimum from below, not whatever training reaches.",
    ),
    "MLE-B converges at once for the affine decoder": (
        "With an affine decoder do not start at random: the closed form is where training goes.",
        "With an affine decoder start at an optimum itself (`pass_through`), not near one (`mle_b`): the hidden layers "
        "of the encoder must be learned either way.",
    ),
    "Pass-through from the tightened optimum reaches Bench's end": (
        "For binary data start at the tightened optimum: `initializers.pass_through(key, vae, tighten(optimum, x))`.",
        "A start at the tightened optimum is a head start, not the end: train on from it, as long as the curve rises.",
    ),
    "No over-fitting, not even at large kappa": (
        "On data like these a latent space too large costs no held-out nats.",
        "A latent space too large costs held-out nats on small data: choose kappa on rows that were held out.",
    ),
    "Analytic activities predict the trained: Bernoulli, relu": (
        "For Bernoulli data and a ReLU decoder read the units that a beta leaves from `activity_path` before training.",
        "For a ReLU decoder take the units that `activity_path` gives as where to look, not as the count.",
    ),
    "Annealing beta does not change the final count of active units": (
        "Anneal beta for the early steps if you like; the last beta decides which units stay.",
        "Annealing changed which units stayed in runs of this length: compare the test ELBOs, not the counts.",
    ),
}


def text(results: list[Result]) -> str:
    """The page, in MyST."""
    found, shown = claims.all_claims(results), figures.plan(results)
    parts = [_opening(results, found, shown), _verdicts(found), *_claims(found)]
    if more := list(shown.items())[1:]:
        parts += ["## The paper's figures", *(_figure(name, of) for name, of in more)]
    parts += [_tables(results), _made(results), _EXACT, _todo(results, found)]
    return "\n\n".join(parts) + "\n"


def plain(results: list[Result]) -> str:
    """Every claim, then every table, for a terminal."""
    parts = []
    for number, claim in enumerate(claims.all_claims(results), 1):
        paper = claim.paper or "does not have it"
        parts.append(f"{number}. {claim.title}: {claim.verdict}\n   paper:    {paper}")
        if claim.measured:
            parts[-1] += f"\n   measured: {claim.measured}"
    parts += [f"{title}\n\n{table(results)}" for title, table in tables.TABLES.items()]
    return "\n\n".join(parts)


def readme(results: list[Result]) -> str:
    """The lines of README.md under "Measured"."""
    counts = []
    for family, decoder in itertools.product(BETAS, DECODERS):
        runs = sorted(measures.pick(results, section="activities", family=family, decoder=decoder), key=_beta)
        both = [f"{_beta(r):g}: {measures.count(r['predicted']['closed'])} → {measures.active(r)}" for r in runs]
        counts.append(f"{family}, {figures.TITLES[decoder]}: {', '.join(both)}")
    near, at_optimum = (
        [measures.steps_to(*pair) for pair in claims.paired(results, "start", (start, "he"), decoder="affine")]
        for start in ("mle-b", "tightened")
    )
    least, most = (tables.steps(of(near, default=math.inf)) for of in (min, max))
    done, whole = len(results), len(all_setups())
    so_far = "" if done == whole else f" after {done} of {whole} runs"
    verdicts = [claim.holds is True for claim in claims.all_claims(results) if claim.paper]
    return (
        f"- **Units** of {UNITS} that stay active on MNIST, beta: predicted at zero → trained. "
        f"{'. '.join(counts)}.\n"
        f"- **Batches** until an affine decoder is where {START_STEPS['he']} of them lead from He's start: from the "
        f"paper's start {least} to {most}, from the tightened optimum 0 in "
        f"{at_optimum.count(0)} of {len(at_optimum)} setups.\n"
        f"- **Claims** of the paper that hold as they stand: {sum(verdicts)} of {len(verdicts)}{so_far}, each with its "
        "numbers [on its page](notebooks/reproduction.md)."
    )


def _beta(result: Result) -> float:
    return float(result["settings"]["beta"])


def write(results: list[Result], path: Path) -> Path:
    """Write it; whole or as it was before."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text(results))
    part.replace(path)
    return path


def _opening(results: list[Result], found: list[Claim], shown: dict[str, figures.Figure]) -> str:
    opening = (
        "# Do trained nets do what the closed form says?\n\n"
        "*The paper's experiments of sections 4.1 and 4.2, run again at full length, with two starts and an annealed "
        "beta that it does not have.*\n\n"
        f"Of the paper's {_counted([claim for claim in found if claim.paper])}; of our own "
        f"{_counted([claim for claim in found if not claim.paper])}. "
        f"{len(results)} of {len(all_setups())} runs are done."
    )
    if not shown:
        return opening
    name, figure = next(iter(shown.items()))
    return f"{opening}\n\n{_figure(name, figure)}"


def _counted(found: list[Claim]) -> str:
    counts = Counter(claim.word for claim in found)
    verdicts = [f"{counts[word]} {_SAID[word][counts[word] > 1]}" for word in claims.WORDS if counts[word]]
    return f"{len(found)} claims {', '.join(verdicts)}"


def _about(results: list[Result]) -> str:
    """What a figure of training curves says, in numbers: L-hat, and where each run ends."""
    if results[0]["settings"]["section"] != "starts":
        runs = len(results)
        return f"{runs} run{'s' * (runs > 1)}."
    settings = results[0]["settings"]
    ends = [
        f"{figures.TITLES[r['settings']['decoder']]} from {figures.STARTS[r['settings']['start']][0]} "
        f"{measures.end(r):.2f} ({measures.end(r, 'test'):.2f})"
        for r in results
    ]
    line = results[0]["lines"]
    return (
        f"{figures.DATA_TITLES[settings['data']]}, {settings['latent_dim']} latent units. L-hat is "
        f"{line['train']['elbo_taylor']:.2f} on train ({line['test']['elbo_taylor']:.2f} on test); a model without "
        f"latent units has {line['train']['no_unit']:.2f} ({line['test']['no_unit']:.2f}). The ELBO at the end, nats a "
        f"row: {'; '.join(ends)}."
    )


def _verdicts(found: list[Claim]) -> str:
    lines = [f"| {number} | {claim.title} | {claim.verdict} |" for number, claim in enumerate(found, 1)]
    return "\n".join(["| | claim | verdict |", "|---|---|---|", *lines])


def _claims(found: list[Claim]) -> list[str]:
    parts = ["## Claim by claim"]
    for number, claim in enumerate(found, 1):
        paper = f"Paper: {claim.paper}." if claim.paper else "The paper does not have it."
        parts.append(f"### {number}. {claim.title}")
        if claim.holds is None:
            parts.append(f"**Not measured yet**: none of {claim.needed} runs or pairs of runs. {paper}")
        else:
            parts += [f"**{claim.verdict.capitalize()}.** {paper}", f"Measured: {claim.measured.rstrip('.')}."]
    return [*parts, _TERMS]


def _figure(name: str, figure: figures.Figure) -> str:
    number = name.removeprefix("figure-").lstrip("0")
    label = f"Figure {number}" if name.startswith("figure-") else name.capitalize()
    image = f"![{label}: {figure.title}](reproduced/figures/{name}.png)"
    return f"{image}\n\n**{label}.** {_about(figure.results)}"


def _tables(results: list[Result]) -> str:
    parts = ["## The numbers"]
    for title, table in tables.TABLES.items():
        parts.append(f"### {title}\n\n```text\n{table(results)}\n```")
    return "\n\n".join(parts)


def _made(results: list[Result]) -> str:
    steps = ", ".join(f"{start} {count}" for start, count in START_STEPS.items())
    betas = "; ".join(f"{family} {', '.join(f'{beta:g}' for beta in values)}" for family, values in BETAS.items())
    lines = [
        "## How it was run",
        "Nets, optimiser and batches are the paper's: Adam at 1e-4, batches of 100, hidden layers of 2000 and 1000 (an "
        f"affine decoder: 2000 and as many as columns). Steps of section 4.1 by start: {steps}; he and mle-b are the "
        "paper's Bench and MLE-B, the others start the whole net at the closed form and at the tightened optimum "
        f"(`pass_through`). Section 4.2: {ACTIVITY_STEPS} steps from he, at beta {betas}. Annealing: he's steps, beta "
        "from 0 to 1 over the first half. One seed each. "
        f"A curve is of at most {SEEN} rows of train and of test, evenly spaced; what a run ends with is of all rows.",
    ]
    rows = []
    for section, about in SECTIONS.items():
        needed = sum(setup.section == section for setup in all_setups())
        of = measures.pick(results, section=section)
        hours = sum(r["cpu_seconds"] for r in of) / 3600
        rows.append(f"| {about} | {len(of)} of {needed} | {hours:.1f} |")
    lines.append("\n".join(["| runs | done | processor hours |", "|---|---|---|", *rows]))
    machines = Counter(_machine(made) for r in results for made in r["made_on"])
    if machines:
        made_on = "Made on: " + "; ".join(f"{where} ({number} runs)" for where, number in machines.items()) + "."
        if any(made["device"] != "cpu" for r in results for made in r["made_on"]):
            made_on += " On an accelerator the products of training are JAX's default there, of rounded factors; every "
            made_on += "ELBO is computed in full."
        lines.append(made_on)
    if diverged := [f"{_name(r)} at step {r['diverged']}" for r in results if r["diverged"] is not None]:
        lines.append(f"Diverged, and counted with what they had before: {', '.join(diverged)}.")
    return "\n\n".join(lines)


def _machine(made: dict[str, Any]) -> str:
    versions = made["versions"]
    kind = made["cpu_model"] if made["device"] == "cpu" else made["device"]
    return f"{kind}, {made['cpu_count']} cores, jax {versions['jax']}, Python {versions['python']}"


def _name(result: Result) -> str:
    return next(s.name for s in all_setups() if s.settings() == result["settings"])


_EXACT = (
    "## What is exact, what is a prediction\n\n"
    "For Bernoulli data L-hat at eta = 0 is a lower bound of the ELBO of its own optimum, and that ELBO lies within "
    "the error of Corollary 1: both are exact, on train and on test. That a net ends above L-hat is no theorem but "
    "what training to an optimum makes of it. The ELBO of an affine decoder is exact; that of a ReLU net is a Monte "
    f"Carlo estimate with {SAMPLES} draws a row, the same at every look. The activities (21) are exact at the optimum "
    "of L-hat and a prediction of a trained net; for Gaussian data and an affine decoder it is the ELBO's own optimum."
)


def _todo(results: list[Result], found: list[Claim]) -> str:
    lines = ["## What to do"]
    bullets = []
    for claim in found:
        if claim.title in ADVICE and claim.holds is not None:
            bullets.append(f"- {ADVICE[claim.title][0 if claim.holds else 1]} (Claim {found.index(claim) + 1}.)")
    if bullets:
        lines.append("\n".join(bullets))
    if len(results) < len(all_setups()):
        lines.append("`python -m benchmarks reproduce --list` says which runs are left.")
    lines.append(
        "`python -m benchmarks reproduce` makes the runs that are not done, smallest first; it may be stopped at any "
        f"time and goes on where it was, but for at most {CHUNK} steps. `python -m benchmarks reproduce --page` writes "
        "this page and its figures again from what is stored in `notebooks/reproduced/`."
    )
    return "\n\n".join(lines)
