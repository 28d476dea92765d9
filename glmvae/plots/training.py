"""Nets beside the closed form: training curves with its lines, activities over beta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from glmvae.plots.figures import MARKERS, new_axes, numbers, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from glmvae.monitor import Evaluation, Reference


def elbo_curves(
    curves: Mapping[str, Evaluation],
    reference: Reference | None = None,
    *,
    on: str = "train",
    ax: Axes | None = None,
) -> Axes:
    """ELBO against training steps, with the L-hat line and the bracket of its remainder: the paper's figure 1.

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
    require(isinstance(curves, Mapping), "curves", 'a mapping such as {"He": run.evaluations}', curves)
    if not curves:
        raise ValueError("curves: expected at least one")
    for label, at in curves.items():
        many = np.ndim(getattr(at, "train_elbo", 0)) == 1
        require(many, f"curves[{label!r}]", "the evaluations of a run, run.evaluations", at)
    require(reference is None or hasattr(reference, "elbo_taylor"), "reference", "a monitor.Reference", reference)
    values = {label: np.asarray(getattr(at, f"{on}_elbo"), float) for label, at in curves.items()}
    for label, value in values.items():
        if not value.size or np.isnan(value).any():
            raise ValueError(f"curves: {label!r} has no evaluations on {on} data")
    ax = new_axes(ax)
    for (label, at), value, marker in zip(curves.items(), values.values(), MARKERS * len(curves), strict=False):
        ax.plot(np.asarray(at.step), value, marker=marker, markersize=3.5, linewidth=1.4, label=label)
    top = max(v.max() for v in values.values())
    low = min(v.min() for v in values.values())
    if reference is not None:
        line, lower, upper = (float(v) for v in (reference.elbo_taylor, reference.lower, reference.upper))
        ax.axhline(line, color="black", linestyle="--", linewidth=1, label="L-hat at the optimum")
        if upper > lower:
            ax.axhspan(lower, upper, color="0.6", alpha=0.35, linewidth=0, label="its ELBO, enclosed")
        top, low = max(top, line if np.isnan(upper) else upper), min(low, line)
    # Show what ends near the top; a He start may lie hundreds of nats below it.
    ends = min(v[len(v) // 4 :].min() for v in values.values())
    if reference is not None:
        ends = min(ends, line)
    if np.isfinite(ends) and low < ends - 2 * (top - ends):
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
    require(isinstance(trained, Mapping | None), "trained", 'a mapping such as {"net": activities}', trained)
    grid, lines = numbers(betas, "betas"), numbers(analytic, "analytic")
    if grid.ndim != 1:
        raise ValueError(f"betas: expected shape (B,), got shape {grid.shape}")
    if not grid.size:
        raise ValueError("betas: expected at least one, got none")
    nets = {label: numbers(value, f"trained[{label!r}]") for label, value in (trained or {}).items()}
    for name, value in {"analytic": lines, **{f"trained[{label!r}]": value for label, value in nets.items()}}.items():
        if value.ndim != 2 or len(value) != len(grid) or value.shape != lines.shape:
            raise ValueError(f"{name}: expected shape ({len(grid)}, kappa) as betas and analytic, got {value.shape}")
    ax = new_axes(ax)
    for j, unit in enumerate(lines.T):
        ax.plot(grid, unit, color="0.35", linewidth=1, label="closed form, (21)" if j == 0 else None)
    for i, (label, marks) in enumerate(nets.items()):
        ordered = -np.sort(-marks, axis=1)
        settings: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "color": f"C{i}", "markerfacecolor": "none"}
        for j, unit in enumerate(ordered.T):
            ax.plot(grid, unit, linestyle="", markersize=5, label=label if j == 0 else None, **settings)
    if grid.min() > 0 and grid.max() > 20 * grid.min():
        ax.set_xscale("log")
    ax.set(xlabel="beta", ylabel="activity of a latent unit", ylim=(-0.03, 1.05))
    ax.grid(alpha=0.3)
    if nets or lines.size:
        ax.legend(fontsize=9)
    return ax
