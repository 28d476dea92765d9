"""The setups: which nets are trained, on what, from where and for how long, and the steps at which they are looked at.

starts      section 4.1 and B.5: Bernoulli, beta 1; three data sets, three kappas, two decoders, four starts
activities  section 4.2 and B.4: MNIST, 40 latent units, Gaussian and Bernoulli, five betas, two decoders
annealing   section 2: beta rises from 0 to 1 over the first half; a constant beta is a He run of ``starts``
"""

from __future__ import annotations

from typing import Any, NamedTuple

DATA = {"synthetic": 200, "frey": 560, "mnist": 784}  #: columns
KAPPAS = (2, 5, 20)
DECODERS = ("affine", "relu")
#: Steps from each start; the first two are the paper's "Bench" and "MLE-B".
START_STEPS = {"he": 25_000, "mle-b": 25_000, "closed-form": 5_000, "tightened": 2_000}
UNITS = 40
#: From most of the 40 units active to few.
BETAS = {"Gaussian": (8.0, 12.0, 16.0, 24.0, 40.0), "Bernoulli": (1.0, 2.0, 4.0, 8.0, 16.0)}
ACTIVITY_STEPS = 30_000
ANNEALED_DATA, ANNEALED_KAPPA = ("synthetic", "frey"), 20
_EARLY = (0, 10, 20, 50, 100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 2_500)
_EVERY = 1_000


class Setup(NamedTuple):
    """One net, trained once. The fields are the settings that its result is known by.

    Fields:
        section: ``starts``, ``activities`` or ``annealing``.
        data, family, latent_dim, beta: what is modelled.
        decoder: ``affine`` (the paper's canonical net) or ``relu`` (its deep one).
        start: a key of :data:`START_STEPS`.
        annealed: beta rises from 0 over the first half of the steps.
        steps: batches.
        seed: of the start, the batches and the noise.
        batch_size, learning_rate: of Adam.
        widths: hidden units, from the data on; the canonical net has the first only, then as many as columns.
    """

    section: str
    data: str
    family: str
    latent_dim: int
    decoder: str
    start: str
    beta: float
    annealed: bool
    steps: int
    seed: int = 0
    batch_size: int = 100
    learning_rate: float = 1e-4
    widths: tuple[int, int] = (2000, 1000)

    @property
    def name(self) -> str:
        """What tells it from the others: also its file name."""
        if self.section == "activities":
            return f"activities-{self.family.lower()}-{self.beta:g}-{self.decoder}"
        last = "" if self.section == "annealing" else f"-{self.start}"
        return f"{self.section}-{self.data}-{self.latent_dim}-{self.decoder}{last}"

    @property
    def cost(self) -> float:
        """Weights times steps: what a run takes, up to a factor."""
        d, k, (wide, narrow) = DATA[self.data], self.latent_dim, self.widths
        last = d if self.decoder == "affine" else narrow
        encoder = d * wide + wide * last + 2 * last * k
        return self.steps * (encoder + (k * d if self.decoder == "affine" else d * wide + wide * narrow + narrow * k))

    def settings(self) -> dict[str, Any]:
        """The fields as JSON gives them back."""
        return {**self._asdict(), "widths": list(self.widths)}


def all_setups() -> list[Setup]:
    """Every setup, the one that takes least first."""
    found = [
        Setup("starts", data, "Bernoulli", kappa, decoder, start, 1.0, False, steps)
        for data in DATA
        for kappa in KAPPAS
        for decoder in DECODERS
        for start, steps in START_STEPS.items()
    ]
    found += [
        Setup("activities", "mnist", family, UNITS, decoder, "he", beta, False, ACTIVITY_STEPS)
        for family, betas in BETAS.items()
        for beta in betas
        for decoder in DECODERS
    ]
    found += [
        Setup("annealing", data, "Bernoulli", ANNEALED_KAPPA, decoder, "he", 1.0, True, START_STEPS["he"])
        for data in ANNEALED_DATA
        for decoder in DECODERS
    ]
    return sorted(found, key=lambda setup: setup.cost)


def looks(steps: int) -> list[int]:
    """The steps at which a run of so many is looked at: dense at first, then every thousand, and the last."""
    regular = (*_EARLY, *range(3_000, steps, _EVERY))
    return [step for step in regular if step < steps] + [steps]
