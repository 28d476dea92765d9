"""Rows: images and what models make of them, latent means, and a biplot of rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae._optional import optional
from glmvae.ascent import best_posterior
from glmvae.factors import explained_variance
from glmvae.model import as_model
from glmvae.optimum import AffineOptimum, posterior
from glmvae.plots.figures import MARKERS, new_axes, numbers, require
from glmvae.sources import as_source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = 20
# Points from which on they are drawn small.
_MANY = 400
# Of the reach of the scores, that of the longest arrow.
_REACH = 0.85
# Where a name may stand: points from the tip of its arrow outwards, and turns of that direction.
_AWAY = (4, 14, 24, 36, 48, 64, 80, 100)
_TURNS = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5)


def reconstructions(
    rows: Mapping[str, ArrayLike], image_shape: tuple[int, int], *, most: int = 10, ax: Axes | None = None
) -> Axes:
    """Images in rows: the data, and what each model makes of them.

    Args:
        rows: label to (n, d), such as ``{"data": x, "net": family.mean(vae.decoder(vae.encoder(x).mean))}``.
        image_shape: (height, width), with height * width = d.
        most: how many images a row.
        ax: where to draw.

    Returns:
        The Axes; one grey scale for all images.

    Raises:
        ValueError: no rows, rows of different shapes or of another size than the images.
        TypeError: rows that are no mapping of labels to arrays, an image_shape that is no pair of integers.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.reconstructions({"data": x, "net": mean}, (28, 20))  # doctest: +SKIP
    """
    require(isinstance(rows, Mapping), "rows", 'a mapping such as {"data": x}', rows)
    most = _settings.integer(most, "most")
    arrays = {label: numbers(value, f"rows[{label!r}]")[:most] for label, value in rows.items()}
    shapes = {value.shape for value in arrays.values()}
    pair = isinstance(image_shape, tuple | list) and len(image_shape) == 2
    require(pair, "image_shape", "(height, width)", image_shape)
    height, width = (_settings.integer(length, "image_shape") for length in image_shape)
    if len(shapes) != 1 or (shape := shapes.pop())[1:] != (height * width,):
        raise ValueError(
            f"rows: expected arrays of one shape (n, {height * width}), got {[*map(np.shape, rows.values())]}"
        )
    pictures = np.stack([*arrays.values()]).reshape(len(arrays), shape[0], height, width)
    framed = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    mosaic = framed.transpose(0, 2, 1, 3).reshape(len(arrays) * (height + 2), -1)
    ax = new_axes(ax, (1.0 + 0.8 * shape[0], 0.4 + 0.8 * len(arrays) * height / width))
    ax.imshow(mosaic, cmap="gray", interpolation="nearest")
    ax.set_yticks((np.arange(len(arrays)) + 0.5) * (height + 2) - 0.5, list(arrays))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def latent_scatter(
    mean: ArrayLike, labels: ArrayLike | None = None, *, units: Sequence[int] = (0, 1), ax: Axes | None = None
) -> Axes:
    """Posterior means of two latent units, a point a row.

    Args:
        mean: (N, kappa), such as ``posterior(optimum, x).mean``.
        labels: (N,), for colour: classes, or numbers, which get a colour scale where more than 20 of them differ. Rows
            without one (NaN, None) are grey, and labelled "missing".
        units: the two units to show.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        ValueError: fewer units than asked for, labels of another length.
        TypeError: means that are not numbers, units that are no pair of integers.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.latent_scatter(vae.encoder(x).mean, labels)  # doctest: +SKIP
    """
    points = numbers(mean, "mean")
    first, second = units = _pair(units)
    if points.ndim != 2 or not 0 <= min(units) <= max(units) < points.shape[1]:
        raise ValueError(f"mean: expected shape (N, kappa) with units {units}, got shape {points.shape}")
    if labels is not None and np.shape(labels) != points.shape[:1]:
        raise ValueError(f"labels: expected shape ({len(points)},), got shape {np.shape(labels)}")
    ax = new_axes(ax, (5.4, 4.6))
    settings: dict[str, Any] = {"s": 8 if len(points) > _MANY else 18, "alpha": 0.7, "linewidths": 0}
    if labels is None:
        ax.scatter(points[:, first], points[:, second], **settings)
    else:
        _draw_labelled(ax, points[:, [first, second]], labels, settings)
    ax.set(xlabel=f"posterior mean of factor {first}", ylabel=f"posterior mean of factor {second}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(alpha=0.3)
    return ax


def _pair(units: Any) -> tuple[int, int]:
    is_pair = isinstance(units, tuple | list) and len(units) == 2
    require(is_pair, "units", "a pair of integers such as (0, 1)", units)
    first, second = (_settings.integer(unit, "units", least=0) for unit in units)
    return first, second


def _draw_labelled(ax: Axes, points: np.ndarray, labels: Any, settings: dict[str, Any]) -> None:
    """Points in the colour of their label; those without one are grey."""
    missing = _without_label(labels)
    labels, shown, others = np.asarray(labels)[~missing], points[~missing], points[missing]
    if labels.dtype == object and len({type(label) for label in labels}) > 1:
        labels = labels.astype(str)  # of several kinds, which have no order
    classes, of_row = np.unique(labels, return_inverse=True)
    scale = len(classes) > _MOST_CLASSES and np.issubdtype(labels.dtype, np.number)
    if scale:
        drawn = ax.scatter(shown[:, 0], shown[:, 1], c=labels, **settings)
        ax.figure.colorbar(drawn, ax=ax)
    else:
        for i, label in enumerate(classes):
            chosen = shown[of_row == i]
            look: dict[str, Any] = {"color": f"C{i % 10}", "marker": MARKERS[i // 10 % len(MARKERS)]}
            ax.scatter(chosen[:, 0], chosen[:, 1], label=str(label), **look, **settings)
    if len(others):
        ax.scatter(others[:, 0], others[:, 1], color="0.6", label="missing", **settings)
    if len(others) or not scale:
        place: dict[str, Any] = {} if scale else {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
        ax.legend(fontsize=8, markerscale=2, **place)


def _without_label(labels: Any) -> np.ndarray:
    """Where there is none: masked, None, NaN, and what pandas has for them."""
    values = np.asarray(labels)
    missing = np.ma.getmaskarray(labels) if isinstance(labels, np.ma.MaskedArray) else np.zeros(values.shape, bool)
    if values.dtype.kind == "O":
        return missing | [_is_no_label(value) for value in values]
    return missing | (values != values)


def _is_no_label(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA does not say whether it is itself
        return True


def biplot(
    optimum: Any,
    x: Any,
    *,
    units: Sequence[int] = (0, 1),
    names: Sequence[str] | None = None,
    labels: ArrayLike | None = None,
    most: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Rows and columns in one picture: posterior means of two units as points, loadings as arrows with their names.

    Args:
        optimum: from :func:`glmvae.fit`, :func:`glmvae.tighten`, :func:`glmvae.refine` or :func:`glmvae.varimax`, or an
            :class:`~glmvae.AffineModel`.
        x: the rows to show, as ``fit`` or ``refine`` take them, but for an iterator, which gives one pass.
        units: the two units to show.
        names: of the columns, (d,); None takes those of a table, or their numbers.
        labels: (N,), for colour, as in :func:`latent_scatter`.
        most: how many of the longest arrows are named; the others are pale.
        ax: where to draw.

    Returns:
        The Axes. The points are in the units of z, whose prior has standard deviation 1; all arrows are scaled by one
        factor, so that their directions and relative lengths count. The axes say which share of the variance each unit
        (factor) explains among these rows (:func:`glmvae.explained_variance`).

    Raises:
        ValueError: fewer units than asked for, names or labels of another number, an iterator over batches.
        TypeError: no model; units that are no pair of integers.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.biplot(optimum, table)  # doctest: +SKIP
    """
    model = as_model(optimum, "optimum")
    most = _settings.integer(most, "most", least=0)
    source: Any = as_source(x, like=optimum)  # one, so that an iterator is known as what gives one pass
    given: Any = source.column_names or getattr(optimum, "column_names", None)
    loadings = np.asarray(model.loadings, float)
    shown = [str(name) for name in (range(len(loadings)) if given is None else given)] if names is None else [*names]
    if len(shown) != len(loadings):
        raise ValueError(f"names: expected {len(loadings)}, one a column, got {len(shown)}")
    pair = _pair(units)
    if max(pair) >= loadings.shape[1]:
        kappa = _checks.counted(loadings.shape[1], "latent unit")
        raise ValueError(f"units: the optimum has {kappa}, so there is no pair {pair}")
    q = posterior(optimum, source) if isinstance(optimum, AffineOptimum) else best_posterior(model, source)
    share = np.asarray(explained_variance(optimum, source).by_factor)
    ax = latent_scatter(q.mean, labels, units=units, ax=ax if ax is not None else new_axes(None, (6.6, 5.6)))
    first, second = units
    points, arrows = np.asarray(q.mean)[:, [first, second]], loadings[:, [first, second]]
    length = np.linalg.norm(arrows, axis=1)
    if length.max() > 0:
        arrows = arrows * (_REACH * np.abs(points).max() / np.abs(arrows).max())
        named = np.argsort(-length, kind="stable")[:most]
        _draw_arrows(ax, arrows, named)
        _write_names(ax, arrows[named], [shown[i] for i in named])
    ax.set(xlabel=f"factor {first} ({share[first]:.0%} of the variance)")
    ax.set(ylabel=f"factor {second} ({share[second]:.0%} of the variance)")
    return ax


def _draw_arrows(ax: Axes, arrows: np.ndarray, named: np.ndarray) -> None:
    for i, (along, up) in enumerate(arrows):
        is_named = bool(np.isin(i, named))
        style: dict[str, Any] = {"color": "black" if is_named else "0.75", "linewidth": 1.0, "arrowstyle": "->"}
        ax.annotate("", (along, up), (0, 0), arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=3 + is_named)
    ax.scatter(arrows[:, 0], arrows[:, 1], s=0)  # so that the limits know of them


def _write_names(ax: Axes, tips: np.ndarray, names: list[str]) -> None:
    """The names beyond the tips, longest arrow first, each where it covers no other."""
    text_of, box_of = optional("matplotlib.text", "a plot").Text, optional("matplotlib.transforms", "a plot").Bbox

    ax.margins(0.12)
    figure: Any = ax.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else figure._get_renderer()
    taken: list[Any] = []
    for tip, name in zip(tips, names, strict=True):
        angle = np.arctan2(tip[1], tip[0])
        best, least = None, np.inf
        for away in _AWAY:
            for turn in _TURNS:
                direction = np.array([np.cos(angle + turn), np.sin(angle + turn)])
                text = _name(ax, tip, name, away * direction, leader=away > _AWAY[1])
                text.update_positions(renderer)
                box = text_of.get_window_extent(text, renderer).expanded(1.04, 1.1)  # without the leader
                covered = sum(_area(box_of.intersection(box, other)) for other in taken)
                covered += _area(box) - _area(box_of.intersection(box, ax.bbox))  # what reaches beyond the picture
                if covered < least:
                    if best is not None:
                        best.remove()
                    best, least, kept = text, covered, box
                else:
                    text.remove()
                if least < 1e-6:
                    break
            if least < 1e-6:
                break
        taken.append(kept)


def _name(ax: Axes, tip: Any, name: str, offset: Any, *, leader: bool) -> Any:
    where = [("right", "center", "left")[1 + int(np.sign(np.round(v / np.linalg.norm(offset))))] for v in offset]
    vertical = {"right": "top", "center": "center", "left": "bottom"}[where[1]]
    return ax.annotate(
        name, tip, offset, textcoords="offset points", ha=where[0], va=vertical, fontsize=9, zorder=6,
        arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": 1} if leader else None,
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )  # fmt: skip


def _area(box: Any) -> float:
    return 0.0 if box is None else float(box.width * box.height)
