"""A diagnosis in words: what the numbers say, which of them to believe, and what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from glmvae import _checks
from glmvae._frames import ColumnNames

_WIDTH = 118
_INDENT = 19
# Rounding units of an ELBO, or of an eigenvalue, below which no gain can be seen.
_ROUNDING = 8
#: What rows may bring beside x, in the order of ``Diagnosis.brought``.
BROUGHT = ("offset", "covariates", "trials", "missing")


class Diagnosis(NamedTuple):
    """A report in numbers; ``print`` it to read it.

    Fields:
        rows: their number, or the sum of their weights.
        beta, dispersion: as asked for, or as estimated.
        eigenvalues: (d,) descending, of the whitened covariance at eta = 0; a unit is active above beta. None, as all
            of the paper's rule, where the rows bring what it has no closed form with.
        null_eigenvalues: the same at the null model.
        activity: (kappa,), (21), under the paper's rule.
        null_activity: under the null-model rule.
        active_units, null_active_units: their numbers above 0.
        refined_active_units: the number at the refined optimum; None if not asked for.
        correlation_eigenvalues: (d,) descending, of the correlations of the columns, of their scores at the null model.
        noise_edge: what columns reach there by chance with nothing more in common than the directions above it: lower
            than for columns without anything in common where there are such, see :mod:`glmvae.diagnosis.noise`.
        directions_above_noise: how many exceed it, whatever beta and ``latent_dim``.
        collapse_onset: the beta from which all units pruned is a local optimum of the exact ELBO.
        collapse_elbo: the beta-ELBO with all units pruned, nats per row, exact.
        optimum_elbo: that of the best affine optimum at hand: of the refined one, or of the better closed form; None
            where that takes more than was given.
        optimum_elbo_is_bound: whether it is a lower bound, L-hat at eta = 0 for Bernoulli and binomial (which is taken
            where it is above collapse already, or only moments are given), or that of ``"tighten"``.
        wanted_units: the number for which the next two hold.
        beta_range, null_beta_range: (2,), every beta in [lower, upper) leaves that many units active under the rule.
        constant_columns: (d,), columns that do not vary.
        boundary_columns: (d,), columns at an end of the support, where the best intercept is infinite.
        explained: (d,), share of the variance of a working response that the decoder explains at the null model.
        collapsed_columns: (d,), columns the decoder gives the same value whatever z: all if all units are pruned.
        brought: (4,), whether the rows brought an offset, covariates, trials, missing entries, see ``BROUGHT``.
        column_names: of the columns of a table, no leaf of the pytree; None without.
    """

    rows: Float[Array, ""]
    beta: Float[Array, ""]
    dispersion: Float[Array, "*d"]
    eigenvalues: Float[Array, " d"] | None
    null_eigenvalues: Float[Array, " d"]
    activity: Float[Array, " k"] | None
    null_activity: Float[Array, " k"]
    active_units: Int[Array, ""] | None
    null_active_units: Int[Array, ""]
    refined_active_units: Int[Array, ""] | None
    correlation_eigenvalues: Float[Array, " d"]
    noise_edge: Float[Array, ""]
    directions_above_noise: Int[Array, ""]
    collapse_onset: Float[Array, ""]
    collapse_elbo: Float[Array, ""]
    optimum_elbo: Float[Array, ""] | None
    optimum_elbo_is_bound: Bool[Array, ""]
    wanted_units: Int[Array, ""]
    beta_range: Float[Array, " 2"] | None
    null_beta_range: Float[Array, " 2"]
    constant_columns: Bool[Array, " d"]
    boundary_columns: Bool[Array, " d"]
    explained: Float[Array, " d"]
    collapsed_columns: Bool[Array, " d"]
    brought: Bool[Array, " 4"]
    column_names: ColumnNames | None = None

    @property
    def collapsed(self) -> Bool[Array, ""]:
        """Whether beta has reached the onset of posterior collapse, up to rounding."""
        return ~above_rounding(self.collapse_onset, self.beta)

    @property
    def expected_units(self) -> Int[Array, ""]:
        """The number of active units to believe: of the refined optimum if there is one, else the null model's."""
        return self.null_active_units if self.refined_active_units is None else self.refined_active_units

    @property
    def units_above_noise(self) -> Int[Array, ""]:
        """How many of those to believe stand above the edge of noise."""
        return jnp.minimum(self.expected_units, self.directions_above_noise)

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.null_eigenvalues) != 1:
            return f"Diagnosis(null_eigenvalues={self.null_eigenvalues}, ...)"
        return _report(jax.tree.map(np.asarray, self))  # NumPy compiles nothing


def _report(d: Diagnosis) -> str:
    """The report, a line or two for each question."""
    lines = [
        ("active units", _counts(d)),
        ("above noise", _noise(d)),
        ("collapse", _collapse(d)),
        ("ELBO", _elbos(d)),
        (f"beta for {int(d.wanted_units)}", _ranges(d)),
        ("spectrum", _spectra(d)),
        ("columns", _columns(d)),
    ]
    if left := _left_out(d):
        lines.append(("left out", left))
    lines += [("remedy", sentence) for sentence in remedies(d)]
    head = (
        f"Diagnosis: {_checks.counted(d.rows, 'row')}, {_checks.counted(d.null_eigenvalues.shape[0], 'column')}, "
        f"{_checks.counted(d.null_activity.shape[0], 'latent unit')}, beta = {float(d.beta):g}, "
        f"dispersion {_span(d.dispersion)}"
    )
    return "\n".join([head, *(_wrapped(name, text) for name, text in lines)])


def above_rounding(value: Any, other: Any) -> Any:
    """Whether ELBOs or eigenvalues exceed another by more than rounding; of NumPy's arrays, it compiles nothing."""
    return value > other + _ROUNDING * np.finfo(other.dtype).eps * abs(other)


def remedies(d: Diagnosis) -> list[str]:
    """What to do, in words."""
    units, wanted = d.null_activity.shape[0], int(d.wanted_units)
    expected, above = int(d.expected_units), int(d.directions_above_noise)
    worthwhile = int(np.sum(above_rounding(d.null_eigenvalues, d.beta)))
    if above == 0:
        return [
            "nothing stands above noise: the columns look independent of each other, and no latent unit is called for "
            "(latent_dim=0 is the intercept-only model)"
        ]
    if expected == 0:
        return [f"a smaller beta{_keeps(d, wanted)}{_keeps(d, above) if above < wanted else ''}"] if units else []
    found: list[str] = []
    if expected < units:
        more = _keeps(d, wanted) if wanted > expected else ""
        pruned = f"{units - expected} unit{'s are' if units - expected > 1 else ' is'} pruned"
        found.append(f"latent_dim={expected} loses nothing: {pruned} at this beta{more}")
    if above < expected:
        found.append(f"latent_dim={above} keeps what stands above noise{_keeps(d, above, 'so does')}")
    elif expected == units < worthwhile:
        signal = f", {min(above, worthwhile)} of them above noise" if above < worthwhile else ""
        found.append(f"all units are used; latent_dim={worthwhile} would be too, at this beta{signal}")
    if not bool(d.collapsed):
        found.append(
            f"a net that keeps fewer than {min(expected, above)}, and whose ELBO is below the affine optimum's, has "
            "stopped short of an optimum: start it at the closed form (glmvae.initializers)"
        )
    return found


def _keeps(d: Diagnosis, units: int, how: str = "") -> str:
    """The betas that keep so many units by the null model's rule, where the report knows them."""
    eigenvalues = np.asarray(d.null_eigenvalues, float)
    if units == int(d.wanted_units):
        low, high = (float(end) for end in d.null_beta_range)
    elif np.isclose(float(d.collapse_onset), eigenvalues[0], rtol=1e-4):  # no dispersion moves with beta
        low, high = eigenvalues[units] if units < eigenvalues.size else 0.0, eigenvalues[units - 1]
    else:
        return ""
    if low == high or not units:
        return ""
    interval = f"beta below {high:.4g}" if low == 0 else f"beta from {low:.4g} to {high:.4g}"
    by = "by the null model's rule"
    return f"; {how} {interval}, {by}" if how else f"; {interval} keeps {units} {by}"


def _counts(d: Diagnosis) -> str:
    counts = [f"{int(d.active_units)} by the paper's rule"] if d.active_units is not None else []
    counts.append(f"{int(d.null_active_units)} by the null model's")
    believe = "believe the null model's" if len(counts) > 1 else "a prediction"
    if d.refined_active_units is not None:
        counts.append(f"{int(d.refined_active_units)} at the refined optimum")
        believe = "believe the refined one"
    return f"{', '.join(counts)}: {believe}"


def _noise(d: Diagnosis) -> str:
    expected, above = int(d.expected_units), int(d.directions_above_noise)
    exceed = f"{above} eigenvalue{'s exceed' if above != 1 else ' exceeds'}"
    shared = "with nothing more in common" if above else "without anything in common"
    return (
        f"{min(expected, above)} of these {expected}; {exceed} the edge of noise {float(d.noise_edge):.4g}, which "
        f"columns {shared} reach by chance"
    )


def _collapse(d: Diagnosis) -> str:
    onset, beta = float(d.collapse_onset), float(d.beta)
    if bool(d.collapsed):
        here = f"reached: at {beta:g} it is stable whatever the decoder, though something better may exist"
    else:
        here = f"not reached: at {beta:g} it is no optimum of a decoder that can add a small affine term"
    return f"of all units is a local optimum from beta = {onset:.5g} on, {here}"


def _elbos(d: Diagnosis) -> str:
    text = f"{float(d.collapse_elbo):.6g} nats per row collapsed (exact)"
    if d.optimum_elbo is not None and above_rounding(d.optimum_elbo, d.collapse_elbo):
        least = "at least " if bool(d.optimum_elbo_is_bound) else ""
        where = "the refined optimum" if d.refined_active_units is not None else "the closed form"
        costs = f"it costs {least}{float(d.optimum_elbo) - float(d.collapse_elbo):.4g}"
        return f"{text}, {least}{float(d.optimum_elbo):.6g} at {where}: collapse is not inevitable, {costs}"
    if not d.null_activity.shape[0]:
        return f"{text}, as of all decoders without a latent unit"
    if bool(d.collapsed):
        further = "" if d.refined_active_units is not None else " (refine= looks further)"
        return f"{text}; no affine optimum above that is known at this beta{further}"
    known = d.refined_active_units is not None
    further = "not the refined one, a stationary point" if known else "refine= tells by how much"
    return f"{text}; an optimum is above that, since beta is below the onset: {further}"


def _ranges(d: Diagnosis) -> str:
    null = f"{_interval(d.null_beta_range)} by the null model's"
    return null if d.beta_range is None else f"{_interval(d.beta_range)} by the paper's rule, {null}"


def _spectra(d: Diagnosis) -> str:
    null = f"at the null model {_leading(d.null_eigenvalues)}"
    paper = "" if d.eigenvalues is None else f"{_leading(d.eigenvalues)} by the paper's rule; "
    shared = f"of the correlations {_leading(d.correlation_eigenvalues)} (edge of noise {float(d.noise_edge):.4g})"
    if np.allclose(d.correlation_eigenvalues, d.null_eigenvalues, rtol=2e-3):
        return f"{paper}{null} (edge of noise {float(d.noise_edge):.4g})"
    return f"{paper}{null}; {shared}"


def _columns(d: Diagnosis) -> str:
    constant, boundary = d.constant_columns, d.boundary_columns
    collapsed = d.collapsed_columns & ~constant
    return (
        f"{_named(constant, 'constant', d.column_names)}, "
        f"{_named(boundary, 'at an end of the support', d.column_names)}, "
        f"{_named(collapsed, 'more not reached by any unit', d.column_names)}"
    )


def _left_out(d: Diagnosis) -> str:
    if d.active_units is not None:
        return ""
    brought = [name for name, there in zip(BROUGHT, np.asarray(d.brought).tolist(), strict=True) if there]
    names = {"missing": "missing entries", "trials": "trials an entry", "offset": "an offset"}
    said = " and ".join(names.get(name, name) for name in brought)
    return f"the paper's rule, which has no closed form with {said}"


def _span(values: ArrayLike) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


def _interval(ends: Array) -> str:
    low, high = (float(end) for end in ends)
    return "no beta" if low == high else f"{'(' if low == 0 else '['}{low:.5g}, {high:.5g})"


def _leading(values: Array) -> str:
    shown = ", ".join(f"{v:.4g}" for v in values[:5].tolist())
    return shown + (", ..." if values.shape[0] > 5 else "")


def _named(mask: Any, what: str, names: tuple[str, ...] | None) -> str:
    indices = np.flatnonzero(np.asarray(mask)).tolist()
    each = [str(i) if names is None else f'{i} "{names[i]}"' for i in indices[:4]]
    some = ", ".join(each) + (", ..." if len(indices) > 4 else "")
    return f"{len(indices)} {what}" + (f" ({some})" if indices else "")


def _wrapped(name: str, text: str) -> str:
    """A name and its text, broken between words."""
    lines, line = [], f"  {name:<{_INDENT - 2}s}"
    start = len(line)
    for word in text.split(" "):
        if len(line) > start and len(line) + len(word) >= _WIDTH:
            lines.append(line.rstrip())
            line = " " * _INDENT
            start = len(line)
        line += word + " "
    return "\n".join([*lines, line.rstrip()])
