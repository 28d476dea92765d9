"""What one chooses by: the spectrum with its cut-offs, rate and distortion, held-out scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glmvae import _settings
from glmvae._optional import optional
from glmvae.diagnosis.report import Diagnosis
from glmvae.plots.figures import new_axes, require
from glmvae.selection.selected import Selection
from glmvae.tradeoff import RateDistortion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Betas that are written beside a curve, at most.
_WRITTEN = 6


def spectrum(optimum: Any, *, most: int = 50, ax: Axes | None = None) -> Axes:
    """Eigenvalues, with the cut-off beta below which a unit is pruned; of a diagnosis by both rules, and beside noise.

    Args:
        optimum: from :func:`glmvae.fit`; or what :func:`glmvae.diagnose` returns: then the eigenvalues at eta = 0 (the
            paper's rule) and at the null model, and, where they are others, those of the correlations, which the edge
            of noise is for.
        most: how many of the leading eigenvalues to show.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        TypeError: no optimum; most not an integer.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots
        >>> plots.spectrum(diagnose(x, family, 16))  # doctest: +SKIP
    """
    most = _settings.integer(most, "most")
    if isinstance(optimum, Diagnosis):
        return _spectra(optimum, most, new_axes(ax))
    parts = all(hasattr(optimum, name) for name in ("eigenvalues", "beta", "loadings"))
    require(parts, "optimum", "an optimum such as fit returns", optimum)
    values, beta = np.asarray(optimum.eigenvalues, float), float(optimum.beta)
    ax, units = new_axes(ax), optimum.loadings.shape[1]
    active = int(np.sum(values[:units] > beta))
    _eigenvalues(ax, values[:most], active, "o", "C0", f"active ({active})", "pruned or not modelled")
    ax.axhline(beta, color="C3", linewidth=1, label=f"cut-off, beta = {beta:g}")
    if units < min(len(values), most):
        ax.axvline(units + 0.5, color="0.5", linestyle=":", linewidth=1, label=f"latent units ({units})")
    return _finished(ax, "eigenvalue of the whitened covariance")


def _spectra(d: Diagnosis, most: int, ax: Axes) -> Axes:
    beta, edge = float(d.beta), float(d.noise_edge)
    null, shared = np.asarray(d.null_eigenvalues, float), np.asarray(d.correlation_eigenvalues, float)
    paper = None if d.eigenvalues is None else np.asarray(d.eigenvalues, float)
    where = "at the null model"
    if paper is not None and np.allclose(paper, null, rtol=2e-2, atol=1e-6):
        where = "at eta = 0 and at the null model"
    elif paper is not None:
        above = int(np.sum(paper > beta))
        _eigenvalues(ax, paper[:most], above, "o", "C0", f"at eta = 0 ({above} above beta)", None)
    above = int(np.sum(null > beta))
    _eigenvalues(ax, null[:most], above, "s", "C1", f"{where} ({above} above beta)", None)
    ax.axhline(beta, color="C3", linewidth=1, label=f"cut-off, beta = {beta:g}")
    above = int(d.directions_above_noise)
    if not np.allclose(shared, null, rtol=2e-3, atol=1e-6):
        _eigenvalues(ax, shared[:most], above, "^", "C2", f"of the correlations ({above} above noise)", None)
        ax.axhline(edge, color="C2", linestyle="--", linewidth=1, label=f"edge of noise, {edge:.3g}, of these")
    else:
        ax.axhline(edge, color="0.4", linestyle="--", linewidth=1, label=f"edge of noise, {edge:.3g} ({above} above)")
    return _finished(ax, "eigenvalue")


def _eigenvalues(
    ax: Axes, values: np.ndarray, filled: int, marker: str, color: str, label: str, other: str | None
) -> None:
    """The eigenvalues, the first so many of them filled."""
    number = np.arange(1, len(values) + 1)
    shown = values > 1e-6 * values.max(initial=0.0)  # rounding is no eigenvalue to show on a logarithmic axis
    settings: dict[str, Any] = {"linestyle": "", "marker": marker, "color": color, "markersize": 5.5}
    first, rest = shown & (number <= filled), shown & (number > filled)
    ax.plot(number[first], values[first], label=label, **settings)
    ax.plot(number[rest], values[rest], markerfacecolor="none", label=other, **settings)


def _finished(ax: Axes, label: str) -> Axes:
    ax.set_yscale("log")
    ax.set(xlabel="number of the eigenvalue", ylabel=label)
    ax.xaxis.set_major_locator(optional("matplotlib.ticker", "a plot").MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax


def rate_distortion(curve: RateDistortion, *, ax: Axes | None = None) -> Axes:
    """Distortion against rate, with some of the betas, whose slope -beta is; exact points of optima as marks.

    Args:
        curve: from :func:`glmvae.rate_distortion`.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        TypeError: no curve.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots, rate_distortion
        >>> plots.rate_distortion(rate_distortion(x, family, 8, betas))  # doctest: +SKIP
    """
    require(isinstance(curve, RateDistortion), "curve", "what rate_distortion returns", curve)
    ax = new_axes(ax)
    beta, rate, distortion = (np.asarray(part, float) for part in (curve.beta, curve.rate, curve.distortion))
    order = np.argsort(rate, kind="stable")
    ax.plot(rate[order], distortion[order], color="C0", label="closed form")
    marked = _apart(rate, distortion)
    ax.plot(rate[marked], distortion[marked], ".", color="C0")
    for i in marked:
        at = (rate[i], distortion[i])
        ax.annotate(f"beta {beta[i]:.3g}", at, xytext=(6, 6), textcoords="offset points", color="C0", fontsize=8)
    if curve.exact is not None:
        points = [np.asarray(part, float) for part in (curve.exact.rate, curve.exact.distortion, curve.exact.beta)]
        ax.plot(*points[:2], "o", color="C3", label="of the optima given, exact")
        for r, d, b in zip(*points, strict=True):
            place: dict[str, Any] = {"xytext": (-6, -6), "ha": "right", "va": "top", "color": "C3"}
            ax.annotate(f"beta {b:.3g}", (r, d), textcoords="offset points", fontsize=8, **place)
    ax.margins(0.12)
    ax.set(xlabel="rate (nats per row)", ylabel="distortion (nats per row)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax


def _apart(rate: np.ndarray, distortion: np.ndarray) -> list[int]:
    """Finite points of the curve far enough from each other to be written at, its ends among them."""
    order = np.argsort(rate, kind="stable")
    order = order[np.isfinite(rate[order]) & np.isfinite(distortion[order])]
    if not order.size:
        return []
    span = [max(float(np.ptp(part[order])), 1e-300) for part in (rate, distortion)]
    place = np.stack([rate / span[0], distortion / span[1]], axis=1)[order]
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(place, axis=0), axis=1))])
    wanted = np.linspace(0, along[-1], min(_WRITTEN, len(order)))
    found = {int(np.argmin(np.abs(along - at))) for at in wanted}
    return [int(order[i]) for i in sorted(found)]


def selection(result: Selection, *, ax: Axes | None = None) -> Axes:
    """Held-out scores over the number of units, a line a beta, with the best point and that of one standard error.

    A bar is the standard error of the difference from the best point, which has none: where a bar reaches the dotted
    line, the point is within a standard error of the best.

    Args:
        result: from :func:`glmvae.select`.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        TypeError: no selection.
        ImportError: matplotlib is not installed.

    Example:
        >>> from glmvae import plots, select
        >>> plots.selection(select(x, family, range(1, 8)))  # doctest: +SKIP
    """
    require(isinstance(result, Selection), "result", "what select returns", result)
    ax, table = new_axes(ax), result.table
    betas = sorted({*table.beta.tolist()})
    for i, beta in enumerate(betas):
        of_beta = (table.beta == beta) & np.isfinite(table.score)
        units, score, error = (a[of_beta] for a in (table.latent_dim, table.score, table.standard_error_below))
        shift = 0.06 * (i - (len(betas) - 1) / 2)  # so that bars of several betas stand side by side
        label = f"beta = {beta:g}"
        ax.errorbar(units + shift, score, error, marker="o", markersize=4, capsize=2, linewidth=1.2, label=label)
    marks = ((result.best, "*", 14, "best"), (result.one_standard_error, "o", 13, "one standard error"))
    for choice, marker, size, label in marks:
        at = (table.latent_dim == choice.latent_dim) & (table.beta == choice.beta)
        shift = 0.06 * (betas.index(choice.beta) - (len(betas) - 1) / 2)
        settings: dict[str, Any] = {"color": "black", "markerfacecolor": "none", "markersize": size, "linestyle": ""}
        ax.plot(choice.latent_dim + shift, table.score[at], marker=marker, zorder=5, label=label, **settings)
    ax.axhline(table.score.max(), color="0.4", linestyle=":", linewidth=1)
    ax.set_xticks(sorted({*table.latent_dim.tolist()}))
    ax.set(xlabel="latent units", ylabel=f"held-out score ({result.unit})")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return ax
