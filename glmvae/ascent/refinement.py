"""`refine`: from an optimum to the optimum of a tighter bound or of the exact beta-ELBO."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae._frames import ColumnNames, names_for, shown
from glmvae._progress import bar
from glmvae.ascent.centring import centred, recentred
from glmvae.ascent.climb import Climb, Problem, State
from glmvae.ascent.decoder import in_double
from glmvae.ascent.encoder import best_encoder
from glmvae.ascent.passes import entry_pass, exact_pass
from glmvae.ascent.starts import best_start, first_look
from glmvae.ascent.units import principal_axes, prune, wake
from glmvae.elbo.means import mean_elbo
from glmvae.model import Affine, AffineModel, Objective, as_model
from glmvae.quadratics import least_squares
from glmvae.refined import RefinedOptimum
from glmvae.rows import Rows
from glmvae.sources import Source, as_source, brought_by
from glmvae.statistics import Covariates, Moments, merge, moments
from glmvae.tangents import require_tangent

_BOUNDS = {"exact": exact_pass, "entry": entry_pass}
# Times the tolerance: what may be left to gain, by its own prediction, when an ascent that stopped is not told of.
_FAR = 1e4
# Rounding units of a column within which all noise is rounding; and by which a mean of ELBOs may be off.
_LEFT = 8
_OF_ELBO = 8


def refine(
    optimum: Any,
    x: ArrayLike,
    *,
    method: str = "exact",
    dispersion: ArrayLike | str | None = None,
    tolerance: float = 1e-6,
    max_rounds: int = 100,
    progress: bool = False,
) -> RefinedOptimum:
    """Raise an optimum to that of the exact beta-ELBO, or of a tighter bound of it, over all that an affine model has.

    ``"exact"``: variational IRLS on E log p itself, with response m + g / w, g and -w the derivatives of E log p in m.

    ``"entry"``: on -softplus(t) >= -t/2 - log(2 cosh(xi/2)) - (omega/2)(t^2 - xi^2), omega = tanh(xi/2) / (2 xi),
    with one xi_ij^2 = E t_ij^2 an entry. (One xi a column needs moments only: :func:`~glmvae.jaakkola.tighten`.)

    Args:
        optimum: where to start, from :func:`~glmvae.optimum.fit`, :func:`~glmvae.jaakkola.tighten` or an earlier
            :func:`refine`, or an :class:`~glmvae.model.AffineModel`; it sets latent_dim, beta and the family. Where
            the rows bring an offset, covariates, trials or missing entries, closed-form starts of their own are
            scored beside it.
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a source that can be passed over many times. Covariates give the
            decoder ``coefficients``.
        method: ``"exact"`` (any family) or ``"entry"`` (columns with a logistic form, or Gaussian).
        dispersion: None goes on as the optimum did: phi is estimated if ``fit`` estimated it, else held. ``"estimate"``
            (Gaussian, Gamma; of a Mixed one a column of these) or a value say otherwise. A Gaussian's is the mean of
            (x - m)^2 + v, with m and v the posterior mean and variance of eta.
        tolerance: nats per row; stop when what is left to gain is predicted to be less. Below a few rounding units of
            the ELBO no gain can be seen, so in float32 it is at least that.
        max_rounds: passes over the data that are kept, at most.
        progress: show a bar (needs tqdm).

    Returns:
        :class:`~glmvae.refined.RefinedOptimum`.

    Raises:
        ValueError: an unknown method; shapes that do not fit; values that are not finite or out of the support; a
            column without any entry; tolerance or max_rounds not positive; a start of dispersion 0, or data that leave
            no noise to estimate one from. TypeError: a family the bound is not for; moments in place of rows; arguments
            of another type. ImportError: ``progress`` without tqdm.

    Exactness: every entry of ``history`` is at least the one before. ``"entry"`` maximises a lower bound of the exact
    ELBO; ``"exact"`` reaches a stationary point of the exact ELBO to within the tolerance, not proven global. A warning
    tells where the ascent could not go on although much was left to gain. Nothing is returned that is worse than the
    null model.

    Cost: O(N d kappa^2) a round, in blocks: memory beside x and the posteriors (two copies) does not grow with N.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit, refine
        >>> from glmvae.families import Bernoulli
        >>> z = np.random.default_rng(0).normal(size=(300, 1))
        >>> x = (np.random.default_rng(1).normal(size=(300, 6)) < 2 * z).astype("float32")
        >>> start = fit(x, Bernoulli(), 1)
        >>> best = refine(start, x)
        >>> bool(start.elbo_taylor < best.elbo)
        True

    Source: Jaakkola and Jordan (2000), Tipping (1998) for one xi an entry. The rest is not in the paper.
    """
    if method not in _BOUNDS:
        advice = "; one xi a column is `tighten`" if method == "column" else ""
        raise ValueError(f'method: expected "exact" or "entry", got {method!r}{advice}')
    _settings.positive(tolerance, "tolerance")
    max_rounds = _settings.integer(max_rounds, "max_rounds")
    _checks.on_host("refine", optimum=optimum, x=x)
    model = as_model(optimum, "optimum")
    if isinstance(x, Moments):
        raise TypeError("x: expected rows, got Moments, which `tighten` takes")
    source = as_source(x, columns=model.loadings.shape[0], like=optimum)
    if source.passes == 1:
        raise ValueError(
            "x: refine passes over the rows many times, an iterator gives one pass; pass an array, a memmap, or a "
            "function that returns a fresh iterator"
        )
    if method == "entry":
        require_tangent(model.family)
    objective, free = _dispersion(optimum, model, dispersion)
    decoder, centre = _with_covariates(model.decoder, source)
    rows = source if centre is None else centred(source, centre)
    problem = Problem(rows, _BOUNDS[method], free)
    with bar(progress, max_rounds, f"refine {method}", "nats per row") as report:
        found = _refined(problem, decoder, objective, method, float(tolerance), max_rounds, report)
    if centre is not None:
        found = found._replace(model=AffineModel(recentred(found.decoder, -centre), found.model.objective))
    return found._replace(**names_for(source, optimum), brought=brought_by(source))


def _dispersion(optimum: Any, model: AffineModel, asked: Any) -> tuple[Objective, bool]:
    """The objective to start with, and whether its dispersion is free."""
    objective = model.objective
    if asked is None:
        free = bool(getattr(optimum, "dispersion_estimated", False))
    elif isinstance(asked, str):
        if asked != "estimate":
            raise ValueError(f'dispersion: expected "estimate", a positive number or None, got {asked!r}')
        if not objective.family.estimates_dispersion:
            raise ValueError(f"dispersion: {objective.family!r} cannot estimate one, give a value")
        free = True
    else:
        phi = _settings.positive(asked, "dispersion", model.loadings.shape[0], dtype=model.loadings.dtype)
        objective, free = model.with_dispersion(phi).objective, False
    if not np.all(np.asarray(objective.dispersion) > 0):
        raise ValueError("optimum: its dispersion is 0 (the data fill too few dimensions); give `dispersion=` a value")
    if free:  # one for all columns, of a Mixed one a column
        start, columns = np.asarray(objective.dispersion), objective.family.columns
        objective = objective.with_dispersion(np.mean(start) if columns is None else np.broadcast_to(start, columns))
    return objective, free


def _with_covariates(decoder: Affine, source: Source) -> tuple[Affine, np.ndarray | None]:
    """The decoder with coefficients of 0 for covariates that it does not know, about their means; and these."""
    wanted = next(iter(_pieces(source))).num_covariates
    centre = _means_of_covariates(source) if wanted else None
    if decoder.num_covariates not in (0, wanted):
        raise ValueError(
            f"covariates: the optimum has coefficients for {decoder.num_covariates}, the rows bring {wanted}"
        )
    if centre is None:
        return decoder, None
    if not decoder.num_covariates:
        zeros = jnp.zeros((wanted, decoder.intercept.shape[0]), decoder.intercept.dtype)
        decoder = Affine(decoder.loadings, decoder.intercept, zeros)
    return recentred(decoder, centre), centre


def is_plain(source: Source, family: Any) -> bool:
    """Whether the rows bring nothing but x (and weights), so that an affine map of x can follow them."""
    if family.needs_trials:
        return False
    return all(p.offset is None and p.covariates is None and p.missing is None for p in _pieces(source))


def _pieces(source: Source) -> Iterable[Rows]:
    return [source.rows] if source.rows is not None else source.pieces()


def _means_of_covariates(source: Source) -> np.ndarray:
    """(p,); each has a coefficient of its own beside the intercept, else ValueError, naming the column."""

    def summed(piece: Rows) -> Moments:
        shared = piece.covariates.shape[0] != piece.num_rows  # one line for all rows, whatever their weights
        return moments(Rows(piece.covariates, weight=None if shared else piece.weight))

    found = functools.reduce(merge, map(summed, _pieces(source)))
    nothing = jnp.zeros((found.mean.shape[0], 1), found.mean.dtype)
    least_squares(Covariates(found.mean, found.covariance, nothing), source.covariate_names)
    return np.asarray(found.mean, np.float64)


def _refined(
    problem: Problem,
    decoder: Affine,
    objective: Objective,
    method: str,
    tolerance: float,
    max_rounds: int,
    report: Callable[[float], None],
) -> RefinedOptimum:
    plain = is_plain(problem.source, objective.family)
    look = first_look(problem, objective, decoder.num_covariates)
    state, store = best_start(problem, decoder, objective, look, knows_rows=plain, tolerance=tolerance)
    climb = Climb(problem, store, state, tolerance=tolerance, max_rounds=max_rounds, report=report)
    while climb.rounds_left > 0:
        climb.ascend()
        pruned = prune(climb)
        if not (wake(climb) or pruned):
            break
    state = climb.state
    if state.step.dispersion is not None:
        _refuse_without_noise(np.asarray(state.step.dispersion), state, problem.source.column_names)
    _tell_if_stuck(climb)
    final, posterior, strength = principal_axes(state, store)
    value = jax.device_put(np.asarray(state.elbo, decoder.loadings.dtype))
    exact, bound = value, None
    reached = float(state.sums.elbo) / float(state.sums.num_rows)
    if method == "entry":
        exact = mean_elbo(AffineModel(final, state.objective), problem.source, posterior)
        bound = _below(exact, value, state.elbo - reached)
        reached += float(exact) - state.elbo
    encoder = best_encoder(problem.source, final, state.objective, posterior, reached) if plain else None
    return RefinedOptimum(
        model=AffineModel(final, state.objective),
        encoder=encoder,
        eigenvalues=jax.device_put(np.asarray(float(state.objective.beta) + strength, decoder.loadings.dtype)),
        elbo=exact,
        lower_bound=bound,
        posterior=posterior,
        history=jax.device_put(np.asarray(climb.history, decoder.loadings.dtype)),
        converged=jax.device_put(climb.converged),
        dispersion_estimated=jax.device_put(problem.free_dispersion),
    )


def _below(exact: Array, bound: Array, constant: float) -> Array:
    """The bound less what rounding may have added, to the ELBO too, of which ``constant`` depends on x alone.

    The bound is a difference of terms that grow as the trials do; the ELBO is not, and is above it.
    """
    elbo, eps = float(exact), float(np.finfo(exact.dtype).eps)
    return min(bound, exact, key=float) - _OF_ELBO * eps * (abs(elbo - constant) + abs(constant))


def _refuse_without_noise(phi: np.ndarray, state: State, column_names: ColumnNames | None) -> None:
    """Not where what is left is but the rounding of what the decoder makes of each column."""
    eps, decoder = np.finfo(state.decoder.loadings.dtype).eps, in_double(state.decoder)
    size = decoder.intercept**2 + np.sum(decoder.loadings**2, axis=1)
    size = np.asarray(state.objective.family.by_member(_squared_size, size), np.float64)
    there = phi > (_LEFT * eps) ** 2 * (size if phi.ndim else np.mean(size))
    if not np.all(there):
        column = int(np.argmin(there))
        where = f" of column {column}{shown(column, column_names)}" if phi.ndim else ""
        raise ValueError(
            f"dispersion: nothing of x is left to estimate that{where} from, the ELBO grows without bound as it goes "
            "to 0; give `dispersion=` a value"
        )


def _squared_size(member: Any, of_predictor: Any) -> Any:
    """Of the values that rounding is relative to: of a Gaussian x itself, of others a share of it."""
    return of_predictor if member.is_quadratic else np.ones_like(of_predictor)


def _tell_if_stuck(climb: Climb) -> None:
    gain = climb.state.step.gain
    if not climb.converged and climb.rounds_left > 0 and not gain < _FAR * climb.least:
        warnings.warn(
            f"refine: no step raised the ELBO any more after {len(climb.history) - 1} rounds, although {gain:.3g} nats "
            'per row are predicted; try another start (fit with expand_at="null", or "zero")',
            stacklevel=4,
        )
