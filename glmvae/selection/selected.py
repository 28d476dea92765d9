"""What a cross-validation found: its table, the best point, the one a standard error allows, and what to do."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

_WIDTH = 100


class Choice(NamedTuple):
    """A point of the grid."""

    latent_dim: int
    beta: float


@jax.tree_util.register_pytree_node_class
class Table(dict[str, np.ndarray]):
    """The grid, a row a point, by latent_dim and then beta: a dict of columns, which are attributes too.

    ``pandas.DataFrame(table)`` and ``polars.DataFrame(table)`` make one of theirs.

    Columns:
        latent_dim, beta: of the point, (G,).
        score: the mean over folds of what is held out, (G,), nats per row, or per entry.
        standard_error: of that mean, from the folds, (G,); mostly what folds differ in, whatever the model.
        below: how far the score is below the best one, (G,).
        standard_error_below: of that difference, from the differences fold by fold, (G,).
    """

    latent_dim: Int[np.ndarray, " g"]
    beta: Float[np.ndarray, " g"]
    score: Float[np.ndarray, " g"]
    standard_error: Float[np.ndarray, " g"]
    below: Float[np.ndarray, " g"]
    standard_error_below: Float[np.ndarray, " g"]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Table has no column {name!r}, only {', '.join(self)}") from None

    def tree_flatten(self) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """The columns, for JAX."""
        return [*self.values()], tuple(self)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], columns: Any) -> Table:
        """Rebuilt from its columns."""
        return cls(zip(names, columns, strict=True))

    def __repr__(self) -> str:
        head = f"{'units':>5s} {'beta':>9s} {'score':>11s} {'(s.e.)':>9s} {'below best':>11s} {'(s.e.)':>9s}"
        lines = [
            f"{k:5d} {beta:9.4g} {score:11.6g} {error:9.2g} {below:11.3g} {other:9.2g}"
            for k, beta, score, error, below, other in zip(*(column.tolist() for column in self.values()), strict=True)
        ]
        return "\n".join([head, *lines])


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Selection:
    """What :func:`select` found; ``print`` it for the table and a recommendation.

    Fields:
        table: a :class:`Table`; ``pandas.DataFrame(result.table)`` is one of pandas.
        fold_scores: of every point and fold, (G, F).
        unit: of the scores, ``"nats per row"`` or ``"nats per entry"``.
        setting: how they came about, in words.
        num_columns: d, beyond which no number of units can be tried; None where that is not known.
    """

    table: Table
    fold_scores: Float[np.ndarray, "g f"]
    unit: str
    setting: str
    num_columns: int | None = None

    @property
    def best(self) -> Choice:
        """The point with the largest score."""
        return self._at(int(np.argmax(self.table.score)))

    @property
    def latent_dim(self) -> int:
        """kappa of the best point."""
        return self.best.latent_dim

    @property
    def beta(self) -> float:
        """beta of the best point."""
        return self.best.beta

    @property
    def one_standard_error(self) -> Choice:
        """The fewest units that some beta brings to within a standard error of the best; of these betas the best."""
        near = np.isfinite(self.table.below) & (self.table.below <= self.table.standard_error_below)
        fewest = near & (self.table.latent_dim == self.table.latent_dim[near].min())
        return self._at(int(np.argmax(np.where(fewest, self.table.score, -np.inf))))

    def _at(self, index: int) -> Choice:
        return Choice(int(self.table.latent_dim[index]), float(self.table.beta[index]))

    def recommendation(self) -> str:
        """What to take, in words."""
        best, fewest, table = self.best, self.one_standard_error, self.table
        where = f"{_units(fewest.latent_dim)} at beta = {fewest.beta:g}"
        if fewest == best:
            text = f"Take {where}: the best score, and no smaller number comes within a standard error of it."
            if len({*table.latent_dim.tolist()}) == 1:
                text = f"Take beta = {best.beta:g}, the best for {_units(best.latent_dim)}."
        else:
            at = int(np.flatnonzero((table.latent_dim == fewest.latent_dim) & (table.beta == fewest.beta))[0])
            text = (
                f"Take {where}: the best score, of {_units(best.latent_dim)} at beta = {best.beta:g}, is "
                f"{table.below[at]:.2g} {self.unit} above, within a standard error "
                f"({table.standard_error_below[at]:.2g})."
            )
        most = int(table.latent_dim.max())
        if fewest.latent_dim == 0 < most:
            text += " No latent unit pays: the columns have little in common."
        elif fewest.latent_dim == most > table.latent_dim.min() and most != self.num_columns:
            text += " It is the most that was tried: try more."
        return text

    def __repr__(self) -> str:
        lines = repr(self.table).splitlines()
        marks = {self.best: " best", self.one_standard_error: " one standard error"}
        if self.best == self.one_standard_error:
            marks = {self.best: " best, one standard error"}
        shown = [lines[0], *(line + marks.get(self._at(i), "") for i, line in enumerate(lines[1:]))]
        head = f"Selection: {self.setting}, {self.unit}"
        return "\n".join([head, *(f"  {line}" for line in shown), textwrap.fill(self.recommendation(), _WIDTH)])


jax.tree_util.register_dataclass(Selection, ["table", "fold_scores"], ["unit", "setting", "num_columns"])


def _units(number: int) -> str:
    return f"{number} unit" if number == 1 else f"{number} units"


def table_of(points: list[Choice], scores: np.ndarray) -> Table:
    """Means and standard errors; what is not finite has minus infinity, infinitely below the best.

    Raises:
        ValueError: no point has a finite score.
    """
    finite = np.isfinite(scores).all(axis=1)
    if not finite.any():
        raise ValueError("latent_dims: no model gives what is held out a finite score; try another expand_at or method")
    known = np.where(finite[:, None], scores, 0.0)
    mean = np.where(finite, known.mean(axis=1), -np.inf)
    apart = known[np.argmax(mean)] - known
    below = np.where(finite, np.maximum(apart.mean(axis=1), 0.0), np.inf)
    errors = [np.std(part, axis=1, ddof=1) / np.sqrt(scores.shape[1]) for part in (known, apart)]
    units, betas = (np.array(column) for column in zip(*points, strict=True))
    return Table(
        latent_dim=units,
        beta=betas.astype(float),
        score=mean,
        standard_error=np.where(finite, errors[0], np.inf),
        below=below,
        standard_error_below=np.where(finite, errors[1], np.inf),
    )
