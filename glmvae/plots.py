"""Figures: training curves with the closed form's lines, activities over beta, spectra, images, latent means.

Each function draws on ``ax`` (None makes a new figure) and returns the Axes. Needs matplotlib, which is optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from glmvae import _checks
from glmvae._optional import optional
from glmvae.optimum import AffineOptimum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from glmvae.monitor import Evaluation, Reference

_MARKERS = "osD^v<>P"
_MOST_CLASSES = 20


def _axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    if ax is not None:
        _require(hasattr(ax, "plot") and hasattr(ax, "get_xlabel"), "ax", "matplotlib Axes", ax)
        return ax
    return optional("matplotlib.pyplot", "a plot").subplots(figsize=size, layout="constrained")[1]


def _require(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise TypeError(f"{name}: expected {expected}, got {type(got).__name__}")


def _numbers(value: Any, name: str) -> np.ndarray:
    advice = " (pass its .mean)" if hasattr(value, "mean") and hasattr(value, "covariance") else ""
    _require(not advice and not isinstance(value, Mapping), name, f"an array{advice}", value)
    return np.asarray(_checks.array(value, name), float)


def elbo_curves(
    curves: Mapping[str, Evaluation],
    reference: Reference | None = None,
    *,
    on: str = "train",
    ax: Axes | None = None,
) -> Axes:
    """ELBO against training steps, with the L-hat line and the bracket of Corollary 1: the paper's figure 1.

    Args:
        curves: label to the evaluations of a run.
        reference: from :func:`glmvae.monitor.reference`, on the same data.
        on: ``"train"`` or ``"test"``.
        ax: where to draw.

    Returns:
        The Axes. Where a curve starts so far below that nothing else could be told apart, the vertical axis leaves its
        start out and the title says where that is.

    Raises:
        ValueError: another word for ``on``, no curves, a curve without evaluations on those data.
        TypeError: curves that are no mapping of labels to evaluations, a reference that is none.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.elbo_curves({"pass-through": run.evaluations}, line)  # doctest: +SKIP
    """
    if on not in ("train", "test"):
        raise ValueError(f'on: expected "train" or "test", got {on!r}')
    _require(isinstance(curves, Mapping), "curves", 'a mapping such as {"He": run.evaluations}', curves)
    if not curves:
        raise ValueError("curves: expected at least one")
    for label, at in curves.items():
        _require(hasattr(at, "train_elbo"), f"curves[{label!r}]", "the evaluations of a run, run.evaluations", at)
    _require(reference is None or hasattr(reference, "elbo_taylor"), "reference", "a monitor.Reference", reference)
    values = {label: np.asarray(getattr(at, f"{on}_elbo"), float) for label, at in curves.items()}
    for label, value in values.items():
        if not value.size or np.isnan(value).any():
            raise ValueError(f"curves: {label!r} has no evaluations on {on} data")
    ax = _axes(ax)
    for (label, at), value, marker in zip(curves.items(), values.values(), _MARKERS * len(curves), strict=False):
        ax.plot(np.asarray(at.step), value, marker=marker, markersize=3.5, linewidth=1.4, label=label)
    top = max(v.max() for v in values.values())
    low = min(v.min() for v in values.values())
    if reference is not None:
        line, lower, upper = (float(v) for v in (reference.elbo_taylor, reference.lower, reference.upper))
        ax.axhline(line, color="black", linestyle="--", linewidth=1, label="L-hat at the optimum")
        if upper > lower:
            ax.axhspan(lower, upper, color="0.6", alpha=0.35, linewidth=0, label="its ELBO (Corollary 1)")
        top, low = max(top, line if np.isnan(upper) else upper), min(low, line)
    # Show what ends near the top; a He start may lie hundreds of nats below it.
    ends = min(v[len(v) // 4 :].min() for v in values.values())
    if reference is not None:
        ends = min(ends, line)
    if low < ends - 2 * (top - ends):
        span = top - ends
        ax.set_ylim(ends - 0.25 * span, top + 0.1 * span)
        hidden = [f"{label} starts at {v[0]:.0f}" for label, v in values.items() if v[0] < ends - 0.25 * span]
        ax.set_title("; ".join(hidden), fontsize=9)
    ax.set(xlabel="training step", ylabel=f"{on} ELBO (nats per row)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=True, fontsize=9, loc="best")
    return ax


def activities(
    betas: ArrayLike,
    analytic: ArrayLike,
    trained: Mapping[str, ArrayLike] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Activities over beta, the closed form's as lines and those of trained nets as marks: the paper's figure 2.

    Args:
        betas: (B,).
        analytic: (B, kappa), from :func:`glmvae.activity_path`.
        trained: label to (B, kappa) activities of nets; each row is sorted, since a net's units have no order.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        ValueError: activities of another shape than (B, kappa).
        TypeError: trained that is no mapping of labels to arrays; not numbers.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import activity_path, plots
        >>> plots.activities(betas, activity_path(data, family, betas, 40))  # doctest: +SKIP
    """
    _require(isinstance(trained, Mapping | None), "trained", 'a mapping such as {"net": activities}', trained)
    grid, lines = _numbers(betas, "betas"), _numbers(analytic, "analytic")
    if grid.ndim != 1:
        raise ValueError(f"betas: expected shape (B,), got shape {grid.shape}")
    nets = {label: _numbers(value, f"trained[{label!r}]") for label, value in (trained or {}).items()}
    for name, value in {"analytic": lines, **nets}.items():
        if value.ndim != 2 or len(value) != len(grid) or value.shape != lines.shape:
            raise ValueError(f"{name}: expected shape ({len(grid)}, kappa) as betas and analytic, got {value.shape}")
    ax = _axes(ax)
    for j, unit in enumerate(lines.T):
        ax.plot(grid, unit, color="0.35", linewidth=1, label="closed form, (21)" if j == 0 else None)
    for i, (label, marks) in enumerate(nets.items()):
        ordered = -np.sort(-marks, axis=1)
        settings: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "color": f"C{i}", "markerfacecolor": "none"}
        for j, unit in enumerate(ordered.T):
            ax.plot(grid, unit, linestyle="", markersize=5, label=label if j == 0 else None, **settings)
    if grid.min() > 0 and grid.max() > 20 * grid.min():
        ax.set_xscale("log")
    ax.set(xlabel="beta", ylabel="activity of a latent unit", ylim=(-0.03, 1.05))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax


def spectrum(optimum: AffineOptimum, *, most: int = 50, ax: Axes | None = None) -> Axes:
    """The eigenvalues of the whitened covariance, with the cut-off beta below which a unit is pruned.

    Args:
        optimum: from :func:`glmvae.fit`.
        most: how many of the leading eigenvalues to show.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        TypeError: no optimum; most not an integer.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.spectrum(optimum)  # doctest: +SKIP
    """
    parts = all(hasattr(optimum, name) for name in ("eigenvalues", "beta", "loadings"))
    _require(parts, "optimum", "an optimum such as fit returns", optimum)
    most = _checks.integer(most, "most")
    values, beta = np.asarray(optimum.eigenvalues, float)[:most], float(optimum.beta)
    number, units = np.arange(1, len(values) + 1), optimum.loadings.shape[1]
    kept = (values > beta) & (number <= units)
    shown = values > 1e-6 * values[0]  # rounding is no eigenvalue to show on a logarithmic axis
    ax = _axes(ax)
    ax.plot(number[shown & kept], values[shown & kept], "o", color="C0", label=f"active ({int(kept.sum())})")
    rest = shown & ~kept
    ax.plot(number[rest], values[rest], "o", color="C0", markerfacecolor="none", label="pruned or not modelled")
    ax.axhline(beta, color="C3", linewidth=1, label=f"cut-off, beta = {beta:g}")
    if units < len(values):
        ax.axvline(units + 0.5, color="0.5", linestyle=":", linewidth=1, label=f"latent units ({units})")
    ax.set_yscale("log")
    ax.set(xlabel="number of the eigenvalue", ylabel="eigenvalue of the whitened covariance")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax


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
    _require(isinstance(rows, Mapping), "rows", 'a mapping such as {"data": x}', rows)
    most = _checks.integer(most, "most")
    arrays = {label: _numbers(value, f"rows[{label!r}]")[:most] for label, value in rows.items()}
    shapes = {value.shape for value in arrays.values()}
    pair = isinstance(image_shape, tuple | list) and len(image_shape) == 2
    _require(pair, "image_shape", "(height, width)", image_shape)
    height, width = (_checks.integer(length, "image_shape") for length in image_shape)
    if len(shapes) != 1 or (shape := shapes.pop())[1:] != (height * width,):
        raise ValueError(
            f"rows: expected arrays of one shape (n, {height * width}), got {[*map(np.shape, rows.values())]}"
        )
    pictures = np.stack([*arrays.values()]).reshape(len(arrays), shape[0], height, width)
    framed = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    mosaic = framed.transpose(0, 2, 1, 3).reshape(len(arrays) * (height + 2), -1)
    ax = _axes(ax, (1.0 + 0.8 * shape[0], 0.4 + 0.8 * len(arrays) * height / width))
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
        labels: (N,), for colour: classes, or numbers, which get a colour scale where more than 20 of them differ.
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
    points = _numbers(mean, "mean")
    pair = isinstance(units, tuple | list) and len(units) == 2
    _require(pair, "units", "a pair of integers such as (0, 1)", units)
    first, second = units = tuple(_checks.integer(unit, "units", least=0) for unit in units)
    if points.ndim != 2 or not 0 <= min(units) <= max(units) < points.shape[1]:
        raise ValueError(f"mean: expected shape (N, kappa) with units {units}, got shape {points.shape}")
    if labels is not None and np.shape(labels) != points.shape[:1]:
        raise ValueError(f"labels: expected shape ({len(points)},), got shape {np.shape(labels)}")
    ax = _axes(ax, (5.4, 4.6))
    settings: dict[str, Any] = {"s": 8, "alpha": 0.7, "linewidths": 0}
    if labels is None:
        ax.scatter(points[:, first], points[:, second], **settings)
    elif len(np.unique(labels)) > _MOST_CLASSES and np.issubdtype(np.asarray(labels).dtype, np.number):
        drawn = ax.scatter(points[:, first], points[:, second], c=np.asarray(labels), **settings)
        ax.figure.colorbar(drawn, ax=ax)
    else:
        for i, label in enumerate(np.unique(labels)):
            chosen = points[np.asarray(labels) == label]
            ax.scatter(chosen[:, first], chosen[:, second], color=f"C{i % 10}", label=str(label), **settings)
        ax.legend(fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set(xlabel=f"posterior mean of unit {first}", ylabel=f"posterior mean of unit {second}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(alpha=0.3)
    return ax
