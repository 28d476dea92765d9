"""Beyond the closed form: tighter quadratics from moments alone, and ascent to the optimum of the exact ELBO.

    "column"    Jaakkola and Jordan's bound with one xi a column: the closed form again and again, from moments
    "entry"     the same bound with one xi an entry, maximised over everything
    "exact"     the exact beta-ELBO of any family, maximised over everything

All three rise in every round and start from :func:`~glmvae.optimum.fit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from glmvae import _checks
from glmvae._ascent import State, ascend, at_decoder, null_decoder, principal_axes, prune, safe_start, wake
from glmvae._jaakkola import ColumnRound, LogisticBound, column_null, column_round, is_logistic
from glmvae._pass import best_rows, mean_elbo
from glmvae._problem import Problem, problem_of
from glmvae._rows import Decoder, RowPosteriors
from glmvae.families import Binomial, Family
from glmvae.moments import Moments, moments
from glmvae.optimum import Posterior

METHODS = ("column", "entry", "exact")


class RefinedOptimum(NamedTuple):
    """An affine decoder eta = W z + b beyond the paper's: the fields of ``AffineOptimum`` and what came of the ascent.

    Fields:
        loadings: W, (d, kappa), its columns by descending strength; columns of pruned units are 0.
        intercept: b, (d,).
        dispersion: phi, that of the start.
        beta: weight of the KL divergence.
        eigenvalues: of the whitened covariance: all d for ``"column"``; otherwise beta plus the eigenvalues of
            W' diag(w) W with w the weights averaged over the rows, (kappa,). A unit is active where they exceed beta.
        elbo_taylor: L-hat of the start, nats per row.
        encoder_weight, encoder_bias, covariance: the affine encoder, mu_z(x) = encoder_weight x + encoder_bias, as in
            ``AffineOptimum``. For ``"entry"`` and ``"exact"``, whose posteriors are not affine in x, the one of the
            averaged weights; ``rows`` and :func:`refined_posterior` have the posteriors themselves.
        expansion_point: eta0 of the start, (d,).
        elbo: the exact beta-ELBO, nats per row, mean over the data; None for ``"column"`` from moments alone.
        lower_bound: a certified lower bound of it, nats per row: the bound that ``"column"`` and ``"entry"`` maximise;
            None for ``"exact"``, and where the objective is no bound (negative binomial by column).
        history: the objective at the start and after every round, (rounds + 1,): the bound, or the exact ELBO.
        rows: the posteriors of the rows, None for ``"column"``.
        converged: whether the gain fell below the tolerance.
    """

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    dispersion: Float[Array, "*d"]
    beta: Float[Array, ""]
    eigenvalues: Float[Array, " d"]
    elbo_taylor: Float[Array, ""]
    encoder_weight: Float[Array, "k d"]
    encoder_bias: Float[Array, " k"]
    covariance: Float[Array, "k k"]
    expansion_point: Float[Array, " d"]
    elbo: Float[Array, ""] | None
    lower_bound: Float[Array, ""] | None
    history: Float[Array, " r"]
    rows: Posterior | None
    converged: Bool[Array, ""]

    def decoder(self, z: Float[Array, "*n k"]) -> Float[Array, "*n d"]:
        """eta = W z + b."""
        return z @ self.loadings.T + self.intercept

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.loadings) != 2:
            return f"RefinedOptimum(loadings={self.loadings}, intercept={self.intercept}, ...)"
        columns, units = self.loadings.shape
        active = int(jnp.sum(self.eigenvalues[:units] > self.beta))
        value = "unknown" if self.elbo is None else f"{float(self.elbo):.6g} nats per row"
        bound = "" if self.lower_bound is None else f"\n  lower bound  {float(self.lower_bound):.6g} nats per row"
        return (
            f"RefinedOptimum: {columns} columns, {units} latent units, {active} active at beta = {float(self.beta):g}\n"
            f"  exact ELBO   {value}{bound}\n"
            f"  rounds       {self.history.shape[0] - 1}{'' if bool(self.converged) else ', not converged'}"
        )


def refine(
    optimum: Any,
    x: ArrayLike | Moments,
    family: Family,
    *,
    method: str = "exact",
    offset: ArrayLike | None = None,
    missing: ArrayLike | None = None,
    tolerance: float = 1e-6,
    max_rounds: int = 100,
    progress: bool = False,
) -> RefinedOptimum:
    """Raise a closed-form optimum to a tighter bound or to the optimum of the exact beta-ELBO.

    ``"column"``: -softplus(t) >= -t/2 - log(2 cosh(xi/2)) - (omega/2)(t^2 - xi^2), omega = tanh(xi/2) / (2 xi), with
    one xi a column. Given xi the closed form of :func:`~glmvae.optimum.fit` applies with weight rho^2 n omega / phi;
    then xi_j^2 = mean E t_j^2. Moments suffice; a round is one eigendecomposition.

    ``"entry"``: one xi_ij^2 = E t_ij^2 an entry, a posterior a row, weighted least squares for (W, b).

    ``"exact"``: variational IRLS on E log p itself, with response m + g / w, g and -w the derivatives of E log p in m.

    Args:
        optimum: where to start, from :func:`~glmvae.optimum.fit` or an earlier :func:`refine`; it sets latent_dim, beta
            and the dispersion, which stays as it is. A start that is worse than the null model is replaced by the best
            of three closed forms (expanded at zero, at null, and from log-responses).
        x: data, (N, d); for ``"column"`` also their :class:`~glmvae.moments.Moments`.
        family: the observation model. For ``"entry"`` and ``"exact"`` a binomial may have trials of shape (N, d);
            start it from ``fit(x / trials, Bernoulli(), ...)``.
        method: ``"column"`` or ``"entry"`` (Bernoulli, binomial, negative binomial), or ``"exact"`` (any family).
        offset: added to eta (log exposure, library size), (d,) or (N, d). Not for ``"column"``.
        missing: (N, d), true where an entry of x is to be ignored, whatever stands there. Not for ``"column"``.
        tolerance: nats per row; stop when the last gain and the predicted one are below. Below a few rounding units of
            the ELBO no gain can be seen, so in float32 it is at least that.
        max_rounds: passes over the data that are kept, at most.
        progress: show a bar (needs tqdm).

    Returns:
        :class:`RefinedOptimum`.

    Raises:
        ValueError: an unknown method; offset or missing with ``"column"``; shapes that do not fit; values that are not
            finite or out of the support; a column without any entry; tolerance or max_rounds not positive.
        TypeError: a family the bound is not for; moments for ``"entry"`` or ``"exact"``; arguments of another type.
        ImportError: ``progress`` without tqdm.

    Exactness: every entry of ``history`` is at least the one before. ``"column"`` and ``"entry"`` maximise a lower
    bound of the exact ELBO (not ``"column"`` for a negative binomial, whose trials x + r it averages over a column);
    ``"exact"`` reaches a stationary point of the exact ELBO to within the tolerance, not proven global.
    Nothing is returned that is worse than the null model.

    Cost: ``"column"`` O(d^3) a round. Others O(N d kappa^2) a round, in blocks: beside x and several copies of the
    posteriors (old, new, tried) the memory does not grow with N.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit, refine
        >>> from glmvae.families import Bernoulli
        >>> z = np.random.default_rng(0).normal(size=(300, 1))
        >>> x = (np.random.default_rng(1).normal(size=(300, 6)) < 2 * z).astype("float32")
        >>> start = fit(x, Bernoulli(), 1)
        >>> bound, best = (refine(start, x, Bernoulli(), method=m) for m in ("column", "exact"))
        >>> bool(start.elbo_taylor < bound.lower_bound < bound.elbo < best.elbo)
        True

    Source: Jaakkola and Jordan (2000) for the bound; Tipping (1998) for one xi an entry. The rest is not in the paper.
    """
    if method not in METHODS:
        raise ValueError(f'method: expected "column", "entry" or "exact", got {method!r}')
    _checks.positive(tolerance, "tolerance")
    max_rounds = _checks.integer(max_rounds, "max_rounds")
    if method != "exact" and not is_logistic(family):
        raise TypeError(f"family: {method!r} needs a Bernoulli, binomial or negative binomial, got {family!r}")
    with _bar(progress, max_rounds, method) as report:
        if method == "column":
            for value, name in ((offset, "offset"), (missing, "missing")):
                if value is not None:
                    raise ValueError(f'{name}: expected None for method "column", which sees moments alone')
            return _by_column(optimum, x, family, float(tolerance), max_rounds, report)
        problem, mean = _problem(optimum, x, family, offset, missing)
        return _by_rows(optimum, problem, mean, method, float(tolerance), max_rounds, report)


def refined_posterior(
    optimum: Any,
    x: ArrayLike,
    family: Family,
    *,
    offset: ArrayLike | None = None,
    missing: ArrayLike | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 100,
) -> Posterior:
    """The posteriors of rows, new ones too, that maximise the exact beta-ELBO of a given decoder.

        Sigma_i = (I + W' diag(w_i) W / beta)^-1,     mu_i = W' g_i / beta

    with g_ij and -w_ij the first two derivatives of E log p(x_ij) in the mean of eta_ij.

    Args:
        optimum: from :func:`refine` or :func:`~glmvae.optimum.fit`.
        x, family, offset, missing: as in :func:`refine`, for these rows; a row may be missing altogether.
        tolerance: nats; a row is done when a step gains less.
        max_steps: steps, at most.

    Returns:
        :class:`~glmvae.optimum.Posterior`, means (N, kappa), covariances (N, kappa, kappa).

    Raises:
        ValueError, TypeError: as :func:`refine`.

    Exactness: the maximum over all Gaussian posteriors where log p is concave in eta (all built-in families), to
    within the tolerance.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit, refined_posterior
        >>> from glmvae.families import Poisson
        >>> x = np.random.default_rng(0).poisson(2.0, size=(200, 4)).astype("float32")
        >>> start = fit(x, Poisson(), 2, expand_at="null")
        >>> hidden = np.isin(np.arange(4), [1]) & np.ones((200, 1), bool)
        >>> refined_posterior(start, x, Poisson(), missing=hidden).covariance.shape
        (200, 2, 2)
    """
    _checks.positive(tolerance, "tolerance")
    max_steps = _checks.integer(max_steps, "max_steps")
    problem, _ = _problem(optimum, x, family, offset, missing, whole_columns=False)
    rows, _ = best_rows(Decoder(optimum.loadings, optimum.intercept), problem, float(tolerance), max_steps)
    return Posterior(rows.mean, rows.covariance)


def _by_column(
    optimum: Any, x: Any, family: Any, tolerance: float, max_rounds: int, report: Callable[[float], None]
) -> RefinedOptimum:
    columns, units = optimum.loadings.shape
    dtype = optimum.loadings.dtype
    data = x if isinstance(x, Moments) else None
    if data is None:
        x = _checks.rows_of(x, family, columns).astype(dtype)
        data = moments(x, family=family)
    _checks.vector(data.mean, "x.mean", columns)
    data = jax.tree.map(lambda a: jnp.asarray(a, dtype), data)
    beta, phi = optimum.beta, optimum.dispersion
    xi = jnp.abs(family._scale(data.mean)) * jnp.sqrt(optimum.intercept**2 + jnp.sum(optimum.loadings**2, axis=1))
    null = column_null(data, family, phi)
    now = column_round(data, family, beta, phi, xi, latent_dim=units)
    if not float(now.bound) >= float(null.bound):
        now = column_round(data, family, beta, phi, null.xi, latent_dim=units)
    history, converged = [float(now.bound)], False
    for _ in range(max_rounds):
        new = column_round(data, family, beta, phi, now.xi, latent_dim=units)
        gain = float(new.bound) - history[-1]
        if gain > 0:
            now = new
            history.append(float(now.bound))
            report(history[-1])
        if not gain >= max(tolerance, 4 * float(jnp.finfo(dtype).eps) * abs(history[-1])):
            converged = True
            break
    elbo = None
    if not isinstance(x, Moments):
        problem = problem_of(x, family, beta, phi)
        elbo = mean_elbo(Decoder(now.loadings, now.intercept), problem, _shared(now, x))
    return RefinedOptimum(
        loadings=now.loadings,
        intercept=now.intercept,
        dispersion=phi,
        beta=beta,
        eigenvalues=now.eigenvalues,
        elbo_taylor=optimum.elbo_taylor,
        encoder_weight=now.encoder_weight,
        encoder_bias=now.encoder_bias,
        covariance=now.covariance,
        expansion_point=optimum.expansion_point,
        elbo=elbo,
        lower_bound=now.bound if isinstance(family, Binomial) else None,
        history=jnp.asarray(history, dtype),
        rows=None,
        converged=jnp.asarray(converged),
    )


def _shared(now: ColumnRound, x: Array) -> RowPosteriors:
    """The affine encoder's posteriors; the covariance of all rows is one, repeated by the pass block by block."""
    log_det = jnp.sum(jnp.log(jnp.diag(now.covariance)))
    mean = x @ now.encoder_weight.T + now.encoder_bias
    return RowPosteriors(mean, now.covariance[None], log_det[None], jnp.zeros_like(log_det[None]))


def _by_rows(
    optimum: Any,
    problem: Problem,
    mean: Array,
    method: str,
    tolerance: float,
    max_rounds: int,
    report: Callable[[float], None],
) -> RefinedOptimum:
    dtype = problem.x.dtype
    family = problem.family
    target = problem._replace(family=LogisticBound(family)) if method == "entry" else problem
    plain = problem.offset is None and jnp.ndim(getattr(family, "trials", 0)) < 2
    null = null_decoder(problem, mean, optimum.loadings.shape[1], family.null_predictor(mean) if plain else None)
    state = safe_start(Decoder(optimum.loadings, optimum.intercept), problem, null, tolerance)
    if method == "entry":
        state = at_decoder(state.decoder, target, tolerance)
    history = [state.elbo]
    while True:
        left = max_rounds - (len(history) - 1)
        state, more, converged = ascend(state, target, tolerance=tolerance, max_rounds=left, report=report)
        history += more[1:]
        pruned = prune(state, target)
        if pruned is not state:
            history.append(pruned.elbo)
        state = wake(pruned, target, tolerance)
        if state is pruned or len(history) > max_rounds:
            break
        history.append(state.elbo)
    if state is not pruned:
        history.append(state.elbo)
    state, strength = principal_axes(state)
    encoder, bias, covariance = _mean_encoder(state, problem, mean)
    value = state.summary.elbo
    return RefinedOptimum(
        loadings=state.decoder.loadings,
        intercept=state.decoder.intercept,
        dispersion=problem.dispersion,
        beta=problem.beta,
        eigenvalues=problem.beta + strength,
        elbo_taylor=optimum.elbo_taylor,
        encoder_weight=encoder,
        encoder_bias=bias,
        covariance=covariance,
        expansion_point=optimum.expansion_point,
        elbo=mean_elbo(state.decoder, problem, state.rows) if method == "entry" else value,
        lower_bound=value if method == "entry" else None,
        history=jnp.asarray(history, dtype),
        rows=Posterior(state.rows.mean, state.rows.covariance),
        converged=jnp.asarray(converged),
    )


def _mean_encoder(state: State, problem: Problem, mean: Array) -> tuple[Array, Array, Array]:
    """The affine encoder of the averaged weights: mu = mean mu + Sigma W' diag(dg / dx) (x - mean x) / beta."""
    loadings, intercept = state.decoder
    weighted = loadings * (state.summary.weight / problem.beta)[:, None]
    covariance = jnp.linalg.inv(jnp.eye(loadings.shape[1], dtype=loadings.dtype) + loadings.T @ weighted)
    covariance = 0.5 * (covariance + covariance.T)
    slope = problem.family.natural_parameter_derivative(intercept + loadings @ state.summary.mean)
    encoder = covariance @ (loadings * (slope / (problem.dispersion * problem.beta))[:, None]).T
    return encoder, state.summary.mean - encoder @ mean, covariance


# The eager boundary ---------------------------------------------------------------------------------------


def _problem(
    optimum: Any, x: Any, family: Family, offset: Any, missing: Any, *, whole_columns: bool = True
) -> tuple[Problem, Array]:
    """The checked problem, its missing entries filled with a value of the support, and the means of the columns."""
    if isinstance(x, Moments):
        raise TypeError('x: expected rows, got Moments, which only the method "column" takes')
    columns = optimum.loadings.shape[0]
    dtype = optimum.loadings.dtype
    x = _checks.numeric(x, "x").astype(dtype)
    if x.ndim != 2 or 0 in x.shape or x.shape[1] != columns:
        x = _checks.matrix(x, "x", columns=columns)
    observed = None
    if missing is not None:
        hidden = np.asarray(missing)
        if hidden.dtype != bool:
            raise TypeError(f"missing: expected booleans, got dtype {hidden.dtype}")
        if hidden.shape != x.shape:
            raise ValueError(f"missing: expected shape {x.shape}, got shape {hidden.shape}")
        observed = jnp.asarray(~hidden)
        count = jnp.sum(observed, axis=0)
        if whole_columns and not bool(jnp.all(count > 0)):
            bad = np.asarray(count == 0)
            raise ValueError(f"missing: expected an entry in every column, got none at {_checks.first_index(bad)}")
        filler = jnp.sum(jnp.where(observed, x, 0.0), axis=0) / jnp.maximum(count, 1)
        filler = jnp.where(count > 0, filler, 1.0)
        upper = jnp.asarray(family.support.upper, dtype)
        x = jnp.where(observed, x, jnp.minimum(filler, upper) if upper.ndim == 2 else filler)
    x = _checks.rows_of(x, family, columns)
    mean = jnp.mean(x, axis=0)
    if offset is not None:
        offset = _checks.finite(_checks.numeric(offset, "offset"), "offset").astype(dtype)
        if offset.shape not in ((columns,), x.shape):
            raise ValueError(f"offset: expected shape ({columns},) or {x.shape}, got shape {offset.shape}")
    return problem_of(x, family, optimum.beta, optimum.dispersion, offset, observed), mean


@contextlib.contextmanager
def _bar(progress: bool, total: int, name: str) -> Iterator[Callable[[float], None]]:
    """A function to call with the objective after every round."""
    if not progress:
        yield lambda value: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress: the bar needs tqdm; pip install tqdm") from error
    with tqdm(total=total, desc=f"refine {name}") as bar:

        def report(value: float) -> None:
            bar.set_postfix_str(f"{value:.6g} nats per row", refresh=False)
            bar.update()

        yield report
