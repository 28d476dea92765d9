"""Claim by claim: what the paper says, what was measured, whether it holds. From stored results alone.

What a claim leaves open ("near", "short", "at once") is fixed here by a number, before the runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.reproduce import measures, tables
from benchmarks.reproduce.measures import Result, end, lead, one, pick
from benchmarks.reproduce.setups import ANNEALED_DATA, ANNEALED_KAPPA, BETAS, DATA, DECODERS, KAPPAS, UNITS

#: A burn-in is short up to so many batches; "at once" is within this share of the batches that Bench needs.
SHORT, AT_ONCE = 1_000, 0.1
#: ELBOs are near each other within this share of what they gain over no latent unit.
NEAR = 0.1
#: An early advantage is looked for at this batch.
EARLY = 300
#: Units by which a predicted count may be off: a tenth of the 40.
OFF = 4
PAPER = ("he", "mle-b")
REAL_DATA = ("frey", "mnist")
WORDS = ("holds", "does not hold", "not measured yet")


class Claim(NamedTuple):
    """``holds`` is None where nothing was measured; ``there`` of ``needed`` runs (or pairs of them) were. ``paper`` is
    empty where the paper does not have it."""

    title: str
    paper: str
    measured: str
    holds: bool | None
    there: int
    needed: int

    @property
    def word(self) -> str:
        """One of :data:`WORDS`."""
        return WORDS[2 if self.holds is None else 0 if self.holds else 1]

    @property
    def verdict(self) -> str:
        """That word, and how much was measured."""
        whole = self.holds is None or self.there == self.needed
        return self.word if whole else f"{self.word} so far ({self.there} of {self.needed})"


def _paper_runs(results: list[Result], **settings: object) -> list[Result]:
    return [r for start in PAPER for r in pick(results, section="starts", start=start, **settings)]


def paired(
    results: list[Result], name: str, values: tuple[object, object], **settings: object
) -> list[tuple[Result, Result]]:
    """Runs of section 4.1 that differ in one setting alone."""
    found = []
    for first in pick(results, section="starts", **{name: values[0]}, **settings):
        same = {k: first["settings"][k] for k in ("data", "latent_dim", "decoder", "start") if k != name}
        second = one(results, section="starts", **same, **{name: values[1]})
        if second is not None:
            found.append((first, second))
    return found


def bound(results: list[Result]) -> Claim:
    """Burn-in: the step from which a curve stays at or above L-hat."""
    runs = _paper_runs(results)
    text, holds = "", None
    if runs:
        by_start = {
            start: [max(measures.burn_in(r, on) for on in ("train", "test")) for r in pick(runs, start=start)]
            for start in PAPER
        }
        below = sum(math.isinf(b) for of in by_start.values() for b in of)
        text = (
            f"{len(runs) - below} of {len(runs)} runs end above L-hat, on train and on test; from batch "
            + ", ".join(
                f"{tables.steps(float(np.median(of)))} (median) and {tables.steps(max(of))} (last) on from {start}"
                for start, of in by_start.items()
                if of
            )
        )
        holds = below == 0 and max(by_start["mle-b"], default=0) <= SHORT
    return Claim(
        "L-hat is a lower bound that training respects",
        "the ELBO of both decoders lies above L-hat; MLE-B needs a very short burn-in",
        text, holds, len(runs), 36,
    )  # fmt: skip


def reasonable(results: list[Result]) -> Claim:
    """Above L-hat by how much, and whether within what Corollary 1 leaves open at the closed form; real data."""
    runs: list[Result] = []
    parts, within = [], 0
    for data in REAL_DATA:
        of = _paper_runs(results, data=data)
        gaps = [end(r) - r["lines"]["train"]["elbo_taylor"] for r in of]
        errors = [r["lines"]["train"]["corollary_1"] - r["lines"]["train"]["elbo_taylor"] for r in of]
        inside = sum(0 <= gap <= error for gap, error in zip(gaps, errors, strict=True))
        if of:
            parts.append(
                f"{data} {min(gaps):.2f} to {max(gaps):.2f}, {inside} of {len(of)} within the error of Corollary 1, "
                f"{min(errors):.2f} to {max(errors):.2f}"
            )
        runs, within = [*runs, *of], within + inside
    return Claim(
        "L-hat is reasonable to analyse the training performance",
        "reasonable on real data, for both decoders; on Frey with 2 units neither does significantly better",
        f"nats above L-hat at the end, train: {'; '.join(parts)}" if runs else "",
        within == len(runs) if runs else None, len(runs), 24,
    )  # fmt: skip


def decoders(results: list[Result]) -> Claim:
    """ReLU-Net minus affine."""
    pairs = [p for start in PAPER for p in paired(results, "decoder", ("relu", "affine"), start=start)]
    parts, near = [], True
    for data in DATA:
        of = [(end(a) - end(b), measures.gain(b)) for a, b in pairs if a["settings"]["data"] == data]
        if of:
            parts.append(f"{data} {min(d for d, _ in of):+.2f} to {max(d for d, _ in of):+.2f}")
            near = near and all(abs(d) <= NEAR * abs(g) for d, g in of)
    return Claim(
        "Affine and ReLU-Net decoders end near each other",
        "",
        f"ReLU-Net minus affine at the end, train, nats: {'; '.join(parts)}" if pairs else "",
        near if pairs else None, len(pairs), 18,
    )  # fmt: skip


def affine_start(results: list[Result]) -> Claim:
    """MLE-B against Bench, affine decoder: batches until Bench's end, and both ends."""
    pairs = paired(results, "start", ("mle-b", "he"), decoder="affine")
    ratios, parts, near = [], [], True
    for ours, bench in pairs:
        needed = [measures.steps_to(r, bench) for r in (ours, bench)]
        ratios.append(needed[0] / needed[1] if needed[1] else math.inf)
        near = near and abs(end(ours) - end(bench)) <= NEAR * abs(measures.gain(bench))
        where = f"{ours['settings']['data']} {ours['settings']['latent_dim']}"
        parts.append(f"{where}: {tables.steps(needed[0])} against {tables.steps(needed[1])}")
    difference = max((abs(end(a) - end(b)) for a, b in pairs), default=math.nan)
    text = f"batches until Bench's end: {'; '.join(parts)}. Ends differ by up to {difference:.2f} nats"
    return Claim(
        "MLE-B converges at once for the affine decoder",
        "MLE-B converges directly, the benchmark takes much more time; the end values are comparable",
        text if pairs else "", near and max(ratios) <= AT_ONCE if pairs else None, len(pairs), 9,
    )  # fmt: skip


def relu_start(results: list[Result]) -> Claim:
    """MLE-B minus Bench, ReLU decoder, early and at the end."""
    pairs = paired(results, "start", ("mle-b", "he"), decoder="relu")
    early = [lead(*pair, EARLY) for pair in pairs]
    late = [end(a) - end(b) for a, b in pairs]
    affine = [lead(*pair, EARLY) for pair in paired(results, "start", ("mle-b", "he"), decoder="affine")]
    text = ""
    if pairs:
        text = (
            f"MLE-B above Bench at batch {EARLY} in {sum(e > 0 for e in early)} of {len(pairs)}, by "
            f"{np.median(early):.2f} nats (median; {min(early):.2f} to {max(early):.2f}); "
            f"at the end by {min(late):.2f} to {max(late):.2f}"
        )
    if pairs and affine:
        text += f"; with an affine decoder {np.median(affine):.2f} at batch {EARLY} ({min(affine):.2f} to "
        text += f"{max(affine):.2f})"
    return Claim(
        "A small early advantage of MLE-B for the ReLU-Net decoder",
        "mostly a small initial advantage, not as clear as for the affine decoder",
        text, sum(e > 0 for e in early) > len(pairs) / 2 if pairs else None, len(pairs), 9,
    )  # fmt: skip


def new_starts(results: list[Result], start: str) -> Claim:
    """Pass-through against Bench: batches until Bench's end."""
    pairs = paired(results, "start", (start, "he"))
    needed = [(measures.steps_to(ours, bench), ours["settings"]["decoder"]) for ours, bench in pairs]
    parts = []
    for decoder in DECODERS:
        of = [n for n, d in needed if d == decoder]
        if of:
            there = [n for n in of if math.isfinite(n)]
            batches = f", after {min(there):.0f} to {max(there):.0f} batches" if there else ""
            parts.append(f"{decoder}: {len(there)} of {len(of)} reach it{batches}")
    steps = pairs[0][0]["settings"]["steps"] if pairs else 0
    return Claim(
        f"Pass-through from the {'closed form' if start == 'closed-form' else 'tightened optimum'} reaches Bench's end",
        "",
        f"Bench's end of 25000 batches, within {steps}: {'; '.join(parts)}" if pairs else "",
        all(math.isfinite(n) for n, _ in needed) if pairs else None, len(pairs), 18,
    )  # fmt: skip


def over_fitting(results: list[Result]) -> Claim:
    """The test ELBO: below its best, and at the largest kappa against the smallest and against no unit."""
    runs = _paper_runs(results)
    falls = [(measures.fall(r), r["settings"]) for r in runs]
    bad = [f"{s['data']} {s['latent_dim']} {s['decoder']} {s['start']} ({n:.2f})" for (n, over), s in falls if over]
    largest, smallest = max(KAPPAS), min(KAPPAS)
    worse = [
        f"{r['settings']['data']} {r['settings']['decoder']} {r['settings']['start']} ({end(r, 'test') - best:.2f})"
        for start in PAPER
        for r, small in paired(results, "latent_dim", (largest, smallest), start=start)
        for best in [max(end(small, "test"), r["lines"]["test"]["no_unit"])]
        # on train it is better for its units: what is worse there too has not learned
        if end(r) > end(small) and end(r, "test") < best - measures.FALL
    ]
    text = (
        f"{len(bad)} of {len(runs)} runs end below their best test ELBO by more than {measures.FALL} nats and the error"
    )
    text += f": {', '.join(bad)}" if bad else ""
    text += f". At kappa {largest} below kappa {smallest} or no unit, test: {', '.join(worse) or 'none'}"
    for r in pick(runs, latent_dim=largest, start="mle-b", decoder="affine"):
        small = one(runs, latent_dim=smallest, start="mle-b", decoder="affine", data=r["settings"]["data"])
        at = [x["lines"]["test"]["elbo_exact"] for x in (r, small) if x]
        if small and at[0] < at[1] - measures.FALL:
            text += f". The closed form itself on {r['settings']['data']}: {at[0]:.2f} against {at[1]:.2f}"
    return Claim(
        "No over-fitting, not even at large kappa",
        "in no setup was a net over-fitting, not even for large kappa with synthetic data",
        text if runs else "", not bad and not worse if runs else None, len(runs), 36,
    )  # fmt: skip


def auto_pruning(results: list[Result]) -> Claim:
    """Active units on the synthetic data, which have two, at the largest kappa."""
    runs = _paper_runs(results, data="synthetic", latent_dim=max(KAPPAS))
    counts = [f"{r['settings']['decoder']} {r['settings']['start']} {measures.active(r)}" for r in runs]
    text = ""
    if runs:
        rules = {n: measures.count(a) for n, a in runs[0]["predicted"].items()}
        text = f"active of {max(KAPPAS)}: {', '.join(counts)}; predicted: " + ", ".join(
            f"{n} {c}" for n, c in rules.items()
        )
    return Claim(
        "Auto-pruning on the synthetic data, whose signal has two dimensions",
        "a much smaller kappa was needed; that nets do not over-fit is a consequence of the auto-pruning",
        text, all(measures.active(r) < max(KAPPAS) for r in runs) if runs else None, len(runs), 4,
    )  # fmt: skip


def activities(results: list[Result], family: str, decoder: str) -> Claim:
    """Counts at each beta: by (21) as the paper has it, by the others, trained."""
    runs = pick(results, section="activities", family=family, decoder=decoder)
    runs.sort(key=lambda r: r["settings"]["beta"])
    parts, off = [], []
    for r in runs:
        rules = r["predicted"] if family == "Bernoulli" else {"closed": r["predicted"]["closed"]}
        predicted = "/".join(str(measures.count(a)) for a in rules.values())
        unsettled = "" if measures.still(r) else ", not still"
        parts.append(f"beta {r['settings']['beta']:g}: {predicted}, trained {measures.active(r)}{unsettled}")
        off.append(abs(measures.count(r["predicted"]["closed"]) - measures.active(r)))
    which = "zero (21)/null/tightened" if family == "Bernoulli" else "(21)"
    word = "trustworthy" if decoder == "affine" else "approximate"
    text = f"active of {UNITS}, predicted by {which}: {'; '.join(parts)}. Within {OFF} of (21) is taken as right"
    return Claim(
        f"Analytic activities predict the trained: {family}, {decoder}",
        f"{word} predictions of how many latent dimensions become inactive",
        text if runs else "",
        max(off) <= OFF if runs else None, len(runs), len(BETAS[family]),
    )  # fmt: skip


def annealing(results: list[Result]) -> Claim:
    """Final counts, annealed and constant."""
    parts, same = [], []
    for data in ANNEALED_DATA:
        for decoder in DECODERS:
            rising = tables.annealed(results, data, decoder)
            constant = one(results, section="starts", data=data, latent_dim=ANNEALED_KAPPA, decoder=decoder, start="he")
            if rising and constant:
                counts = measures.active(rising), measures.active(constant)
                same.append(counts[0] == counts[1])
                unsettled = "" if measures.still(rising) and measures.still(constant) else ", not still"
                parts.append(f"{data} {decoder}: {counts[0]} against {counts[1]}{unsettled}")
    return Claim(
        "Annealing beta does not change the final count of active units",
        "annealing does not influence the final amount of active units, if training is long and the loss smooth enough",
        f"annealed against constant, of {ANNEALED_KAPPA}: {'; '.join(parts)}" if parts else "",
        all(same) if same else None, len(same), len(ANNEALED_DATA) * len(DECODERS),
    )  # fmt: skip


def all_claims(results: list[Result]) -> list[Claim]:
    """In the paper's order."""
    first: list[Callable[[list[Result]], Claim]] = [bound, reasonable, decoders, affine_start, relu_start]
    found = [claim(results) for claim in first]
    found += [new_starts(results, start) for start in ("closed-form", "tightened")]
    found += [over_fitting(results), auto_pruning(results)]
    found += [activities(results, family, decoder) for family in BETAS for decoder in DECODERS]
    return [*found, annealing(results)]
