"""How many latent units, and which beta: cross-validation over a grid of both.

Rows held out: models are fitted to the other rows and score these by their ELBO at beta = 1, under the best posterior.
Entries held out (speckled, Wold's): each row is fitted without some of its entries, and these are predicted from the
rest of the row. The first asks how well new rows are described; the second whether a further unit says something of an
entry that the other entries of its row do not hide.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _settings
from glmvae._frames import names_for
from glmvae._progress import bar
from glmvae.ascent import refine
from glmvae.blocks import total
from glmvae.families import Family
from glmvae.families.checks import check_columns, check_family
from glmvae.jaakkola import tighten
from glmvae.model import Affine, AffineModel, Objective
from glmvae.optimum import optimum_at
from glmvae.rows import Rows, named
from glmvae.selection.holdout import Fold, entries_without, folds_of_rows, padded, rows_without, score_of
from glmvae.selection.selected import Choice as Choice
from glmvae.selection.selected import Selection as Selection
from glmvae.selection.selected import table_of
from glmvae.sources import as_source
from glmvae.spectral import dispersion_of, spectrum_of
from glmvae.statistics import Moments, merge, moments
from glmvae.tangents import require_tangent

_ASCENTS = ("exact", "entry")
_METHODS = ("closed-form", "tightened", *_ASCENTS)
_METRICS = ("elbo", "log_likelihood")
# A fit that stops before it converges scores by where it stopped: of counts in the thousands most need several hundred.
_MOST_ROUNDS = 2000


def select(
    x: Any,
    family: Family,
    latent_dims: Sequence[int],
    betas: Sequence[float] | ArrayLike = (1.0,),
    *,
    holdout: str = "rows",
    folds: int = 5,
    method: str = "closed-form",
    metric: str | None = None,
    dispersion: ArrayLike | None = None,
    expand_at: ArrayLike | str = "zero",
    tolerance: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Selection:
    """Choose the number of latent units, and beta, by what models give data that they have not seen.

    Args:
        x: data in memory, (N, d), a memmap or :class:`~glmvae.rows.Rows`.
        family: the observation model.
        latent_dims: numbers of units to try [kappa], each from 0 to d.
        betas: betas to try with each, positive.
        holdout: ``"rows"``, or ``"entries"`` (for ``"exact"`` and ``"entry"``), which takes rows with missing entries
            too.
        folds: parts that the rows, or the entries of every column, are divided into, from 2.
        method: ``"closed-form"`` (:func:`~glmvae.optimum.fit`: the grid from one eigendecomposition a fold),
            ``"tightened"`` (:func:`~glmvae.jaakkola.tighten`), ``"exact"`` or ``"entry"``
            (:func:`~glmvae.ascent.refine`, each number of units started from the next larger).
        metric: of rows ``"elbo"``, the default, or ``"log_likelihood"`` (:func:`~glmvae.likelihood.log_likelihood`, 100
            draws); of entries ``"log_likelihood"``, the default: the log of the density that the rest of the row
            predicts, or ``"elbo"``, the expectation of log p in its place.
        dispersion: as in ``fit``; None estimates that of Gaussian columns in every fit.
        expand_at: as in ``fit``, of ``"closed-form"`` and ``"tightened"`` alone.
        tolerance: of ``"exact"`` and ``"entry"``, nats per row; each fit goes on until it is reached, or for 2000
            rounds.
        seed: of the division into folds, and of the draws.
        progress: show a bar (needs tqdm).

    Returns:
        :class:`Selection`, with ``.latent_dim``, ``.beta``, ``.one_standard_error``, ``.table``.

    Raises:
        ValueError, TypeError: as the fits; latent_dims, betas or folds out of range; an unknown word, or one that does
            not go with another; data that are not in memory; a dispersion that is estimated as 0. Each names the
            argument. ImportError: ``progress`` without tqdm.

    Exactness: scores are at beta = 1, whatever beta the fit had, so that they compare; the ELBO of a row is exact, a
    lower bound of its log-likelihood. Standard errors come from few folds that share most of their training data:
    they guide, no more.

    Cost: a pass over the data and an eigendecomposition a fold for ``"closed-form"``, and for every point the
    posteriors of the rows; an ascent a point and fold for ``"exact"`` and ``"entry"``.

    Example:
        >>> import numpy as np
        >>> from glmvae import select
        >>> from glmvae.families import Gaussian
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 8)) + rng.normal(size=(200, 8))
        >>> found = select(x.astype("float32"), Gaussian(), range(5))
        >>> found.one_standard_error
        Choice(latent_dim=2, beta=1.0)

    Source: Hastie, Tibshirani and Friedman (2009), section 7.10, for the rule of one standard error (theirs is of the
    score, ours of the difference from the best, in which what folds differ in cancels); Wold (1978) and Owen and Perry
    (2009) for held-out entries.
    """
    grid = _Grid(x, family, latent_dims, betas, dispersion, method in _ASCENTS)
    by_entry = _check_words(holdout, method, metric, family, expand_at)
    folds = _settings.integer(folds, "folds", least=2)
    seed = _settings.integer(seed, "seed", least=0)
    if seed >= 2**63:
        raise ValueError(f"seed: expected an integer below 2^63, got {seed}")
    _settings.positive(tolerance, "tolerance")
    metric = metric or ("log_likelihood" if by_entry else "elbo")
    split = entries_without if by_entry else rows_without
    parts: list[Moments] = []
    if method not in _ASCENTS:
        parts = [moments(rows, family=grid.family) for rows in folds_of_rows(grid.rows, folds, seed)]
    unit = f"nats per {'entry' if by_entry else 'row'}"
    scores = np.empty((len(grid.points), folds))
    key = jax.random.key(seed)
    with bar(progress, scores.size, f"select {method}", unit) as report:
        for fold, part in enumerate(split(grid.rows, folds, seed)):
            if parts:
                models = _from_spectrum(grid, _without(parts, fold), expand_at, method)
            else:
                models = _ascents(grid, part, method, float(tolerance))
            try:
                for i, model in models:
                    scores[i, fold] = score_of(padded(model, grid.most), part, metric, by_entry, key)
                    report(float(scores[i, fold]))
            except ValueError as error:
                error.add_note(f"select: in what is left of the data without fold {fold} of {folds}")
                raise
    setting = f"{family!r}, {method}, {folds} folds of {holdout}, {metric.replace('_', '-')}"
    return Selection(table_of(grid.points, scores), scores, unit, setting, grid.rows.num_columns)


# Arguments --------------------------------------------------------------------------------------------------


class _Grid:
    """The rows, and the points to try on them, checked."""

    def __init__(self, x: Any, family: Family, latent_dims: Any, betas: Any, dispersion: Any, ascends: bool) -> None:
        check_family(family)
        if isinstance(x, Moments):
            raise TypeError("x: expected rows, got Moments, of which none can be held out")
        source = as_source(x)
        if source.rows is None:
            raise ValueError("x: select divides the rows at random, so they must be in memory or a memmap")
        check_columns(source.num_columns, family, "x")
        total(_weight, source, family=family, num_covariates=None)  # looks at every entry, by the index it has in x
        self.rows, self.family, self.dtype = source.rows, family, source.dtype
        if isinstance(latent_dims, int | np.integer | str) or not np.iterable(latent_dims):
            raise TypeError(f"latent_dims: expected a list such as range(1, 8), got {latent_dims!r}")
        units = [_settings.latent_dim(k, source.num_columns, "latent_dims", least=0) for k in latent_dims]
        if not units:
            raise ValueError("latent_dims: expected at least one number")
        _settings.positive_vector(betas, "betas")
        values = np.asarray(betas, np.float64)
        self.points = [Choice(k, beta) for k in sorted({*units}) for beta in sorted({*values.tolist()})]
        self.most = max(units)
        self.given = None  # where it is estimated
        if not (dispersion is None and ascends and family.estimates_dispersion):
            self.given = dispersion_of(family, dispersion, source.num_columns, self.dtype)


def _weight(rows: Rows, _: None) -> tuple[Array, None]:
    return jnp.sum(rows.weight), None


def _check_words(holdout: str, method: str, metric: str | None, family: Family, expand_at: Any) -> bool:
    """Whether entries are held out."""
    if holdout not in ("rows", "entries"):
        raise ValueError(f'holdout: expected "rows" or "entries", got {holdout!r}')
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(_METHODS)}, got {method!r}")
    if metric is not None and metric not in _METRICS:
        raise ValueError(f'metric: expected "elbo" or "log_likelihood", got {metric!r}')
    if holdout == "entries" and method not in _ASCENTS:
        raise ValueError(
            f'method: with holdout="entries" expected "exact" or "entry", got {method!r}: it knows the data by their '
            "moments, which have no place for a missing entry"
        )
    if method in _ASCENTS and not (isinstance(expand_at, str) and expand_at == "zero"):
        raise ValueError(f'expand_at: method "{method}" expands nowhere, so it takes none, got {expand_at!r}')
    if method in ("tightened", "entry"):
        require_tangent(family)
    return holdout == "entries"


# Fits -------------------------------------------------------------------------------------------------------


def _without(parts: list[Moments], fold: int) -> Moments:
    """The moments of all parts but one."""
    return functools.reduce(merge, [part for i, part in enumerate(parts) if i != fold])


def _from_spectrum(
    grid: _Grid, data: Moments, expand_at: ArrayLike | str, method: str
) -> Iterator[tuple[int, AffineModel]]:
    names = grid.rows.covariate_names
    spectrum = spectrum_of(data, grid.family, grid.given, expand_at, max(grid.most, 1), names)
    for i, point in enumerate(grid.points):
        optimum = optimum_at(spectrum, point.latent_dim, beta=point.beta)
        if not np.all(np.asarray(optimum.dispersion) > 0):
            raise ValueError(
                f"dispersion: latent_dim={point.latent_dim} leaves none to estimate (the data fill too few "
                "dimensions); give one"
            )
        yield i, (tighten(optimum, data) if method == "tightened" else optimum).model


def _ascents(grid: _Grid, fold: Fold, method: str, tolerance: float) -> Iterator[tuple[int, AffineModel]]:
    """The models of all points, from the most units down: each starts as the one before without its weakest units.

    The other way round a model of too few units leads the next into a local optimum.
    """
    phi, asked = (1.0, "estimate") if grid.given is None else (grid.given, grid.given)
    train = named(fold.train(), **names_for(grid.rows))
    columns = train.num_columns
    zero = Affine(np.zeros((columns, grid.most), grid.dtype), np.zeros(columns, grid.dtype))
    before: dict[float, AffineModel] = {}
    last: AffineModel | None = None
    for i in sorted(range(len(grid.points)), key=lambda i: (-grid.points[i].latent_dim, grid.points[i].beta)):
        k, beta = grid.points[i]
        start = before.get(beta, last)
        start = AffineModel(zero, Objective(grid.family, beta, phi)) if start is None else start.with_beta(beta)
        decoder = Affine(np.asarray(start.loadings)[:, :k], start.intercept, start.coefficients)
        rows: Any = train
        start = AffineModel(decoder, start.objective)
        options: dict[str, Any] = {"tolerance": tolerance, "max_rounds": _MOST_ROUNDS}
        last = refine(start, rows, method=method, dispersion=asked, **options).model
        before[beta] = last
        yield i, last
