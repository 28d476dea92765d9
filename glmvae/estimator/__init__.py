"""A scikit-learn transformer: the affine model fit, asked and scored as Pipeline and GridSearchCV do it.

Nothing is computed here: ``fit``, ``tighten`` and ``refine``, ``posterior`` and ``best_posterior``, ``elbo_exact`` and
``log_likelihood`` do it all. It needs scikit-learn, ``pip install "glmvae[sklearn]"``, and is imported on its own.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from glmvae import _settings
from glmvae._frames import ColumnNames
from glmvae._optional import optional
from glmvae.ascent import best_posterior, refine
from glmvae.elbo import elbo_exact
from glmvae.estimator import parts
from glmvae.estimator.generation import mean_given, sample_given
from glmvae.estimator.incoming import FLOATS, beside, refuse_without_trials, rows_to_ask, rows_to_fit, weights_of
from glmvae.estimator.named_families import dispersion_of, is_never_negative
from glmvae.jaakkola import tighten
from glmvae.likelihood import log_likelihood
from glmvae.model import require_density
from glmvae.optimum import AffineOptimum, fit, posterior
from glmvae.quadratics import least_squares
from glmvae.refined import RefinedOptimum
from glmvae.rows import Rows
from glmvae.sources import as_source, brought_by
from glmvae.statistics import Moments, merge
from glmvae.variational import Posterior

_NEEDED_BY = "glmvae.estimator"
_base: Any = optional("sklearn.base", _NEEDED_BY, "sklearn")
_metaestimators: Any = optional("sklearn.utils.metaestimators", _NEEDED_BY, "sklearn")
_validation: Any = optional("sklearn.utils.validation", _NEEDED_BY, "sklearn")


class AffineVAE(_base.ClassNamePrefixFeaturesOutMixin, _base.TransformerMixin, _base.BaseEstimator):
    """Factors of a table by an affine beta-VAE: probabilistic PCA for binary values, counts, amounts, or all at once.

        eta_i = W z_i + b + B' covariates_i + offset_i,     x_ij ~ family(eta_ij),     z_i ~ N(0, I)          (1), (8)

    Args:
        n_components: number of latent units [kappa], from 0 to d.
        family: ``"gaussian"``, ``"bernoulli"``, ``"binomial"`` (with ``trials``), ``"poisson"``, ``"gamma"``,
            ``"exponential"``, or a :class:`~glmvae.families.Family`. For columns of several kinds
            ``{family: columns}``, or pairs ``(family, columns)``: names of a table's columns or indices, every column
            once.
        beta: weight of the KL divergence. As it goes to 0, Gaussian factors become those of ``PCA(whiten=True)``.
        method: ``"closed-form"``, :func:`~glmvae.fit` from moments; ``"tightened"``, :func:`~glmvae.tighten`, also
            from moments, for logistic and Gaussian columns; ``"exact"``, :func:`~glmvae.refine`, passes over the rows,
            and takes NaN (or what is masked) as a missing entry, in ``fit`` and in whatever else takes rows.
        expand_at: as in :func:`~glmvae.fit`; of ``"exact"`` it is a start only.
        dispersion: as in :func:`~glmvae.fit`. Where only some columns leave theirs open a scalar is for these, and
            ``{column: value}``, of names or indices, gives each its own. With ``"exact"`` also ``"estimate"``
            (Gaussian, Gamma, and such columns of several kinds).
        scoring: what ``score`` and ``score_samples`` give: ``"elbo"``, or ``"likelihood"``, by importance sampling
            (:func:`~glmvae.log_likelihood`).
        num_samples: draws a row of ``scoring="likelihood"``.
        random_state: of these draws; the default gives every model the same ones.
        tolerance, max_rounds: of ``"tightened"`` and ``"exact"``: nats per row; rounds, at most.

    Attributes:
        components_: W', (kappa, d).
        intercept_: b, (d,).
        coefficients_: B, (p, d), of covariates; None without.
        dispersion_: phi, a scalar or (d,).
        eigenvalues_: those of the optimum; a component is active where they exceed beta, else its loadings are 0.
        optimum_: the :class:`~glmvae.AffineOptimum` or :class:`~glmvae.RefinedOptimum` (without the posteriors of the
            rows), for every other function of the library.
        moments_: of all rows so far, what ``partial_fit`` adds to; None after ``"exact"``.
        family_: the family, of all columns.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
        covariate_names_in_: names of a table's covariates, which are refused in another order; None of an array.

    Raises:
        ValueError, TypeError: at ``fit``, bad parameters and data; NaN of every method but ``"exact"``, a column of
            nothing else of that too; it names the parameter, and the column of a table.
        ImportError: at import, without scikit-learn.

    Exactness: that of the functions named. ``transform`` of ``"closed-form"`` gives the posterior means of
    :func:`~glmvae.posterior`, linear in x; the other methods those of :func:`~glmvae.best_posterior`. Both are
    float32 unless JAX is set to 64 bits. ``score`` is of :func:`~glmvae.best_posterior` and at beta = 1, whatever beta
    the fit had: a bound of one and the same log-likelihood for all. By its own beta-ELBO the smallest beta would always
    win.

    Example:
        >>> import numpy as np
        >>> from glmvae.estimator import AffineVAE
        >>> rng = np.random.default_rng(0)
        >>> x = rng.poisson(np.exp(rng.normal(size=(200, 1)) * [1.0, 0.5, -0.5, 0.0]))
        >>> vae = AffineVAE(1, family="poisson", expand_at="null")
        >>> vae.fit_transform(x).shape, vae.inverse_transform(vae.transform(x)).shape
        ((200, 1), (200, 4))
        >>> AffineVAE(1, family="poisson", method="exact").fit(x).score(x) > vae.score(x)
        True

    Source: section 3.4; Tipping and Bishop (1999) for the Gaussian.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        family: Any = "gaussian",
        beta: float = 1.0,
        method: str = "closed-form",
        expand_at: Any = "zero",
        dispersion: Any = None,
        scoring: str = "elbo",
        num_samples: int = 1000,
        random_state: Any = 0,
        tolerance: float = 1e-6,
        max_rounds: int = 100,
    ) -> None:
        self.n_components = n_components
        self.family = family
        self.beta = beta
        self.method = method
        self.expand_at = expand_at
        self.dispersion = dispersion
        self.scoring = scoring
        self.num_samples = num_samples
        self.random_state = random_state
        self.tolerance = tolerance
        self.max_rounds = max_rounds

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        offset: Any = None,
        covariates: Any = None,
        trials: Any = None,
        sample_weight: Any = None,
    ) -> AffineVAE:
        """Fit to rows, (N, d); what else they bring is as in :class:`~glmvae.Rows`, and ``transform`` wants it too."""
        brought = {"offset": offset, "covariates": covariates, "trials": trials}
        rows = rows_to_fit(self, X, 2, True, sample_weight=sample_weight, **brought)
        if self.method != "exact":
            return self._keep(self._from_moments(parts.moments_of(rows, self.family_), rows))
        self.moments_: Any = None
        start = self._closed_form(parts.filled(rows))
        phi = "estimate" if isinstance(self.dispersion, str) else None
        return self._keep(refine(start, rows, dispersion=phi, **self._stopping())._replace(posterior=None))

    @_metaestimators.available_if(parts.merges_moments)
    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        offset: Any = None,
        covariates: Any = None,
        trials: Any = None,
        sample_weight: Any = None,
    ) -> AffineVAE:
        """Fit to these rows and all before, by merged moments: one eigendecomposition a call, nothing forgotten.

        Every call fits, so the first rows have to tell the covariates apart already.
        """
        first = getattr(self, "moments_", None) is None
        brought = {"offset": offset, "covariates": covariates, "trials": trials}
        rows = rows_to_fit(self, X, 1, first, sample_weight=sample_weight, **brought)
        new = parts.moments_of(rows, self.family_)
        return self._keep(self._from_moments(new if first else merge(self.moments_, new), None))

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        *,
        offset: Any = None,
        covariates: Any = None,
        trials: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        """Posterior means of the rows it is fit to."""
        brought = {"offset": offset, "covariates": covariates, "trials": trials}
        return self.fit(X, y, sample_weight=sample_weight, **brought).transform(X, **brought)

    def transform(self, X: Any, *, offset: Any = None, covariates: Any = None, trials: Any = None) -> Any:
        """Posterior means of rows, (N, kappa)."""
        _validation.check_is_fitted(self)
        rows = rows_to_ask(self, X, offset=offset, covariates=covariates, trials=trials)
        closed = isinstance(self.optimum_, AffineOptimum)
        if closed:
            refuse_without_trials(rows)
        found: Posterior = posterior(self.optimum_, rows) if closed else best_posterior(self.optimum_, rows)
        return np.asarray(found.mean)

    def inverse_transform(
        self, X: Any, *, offset: Any = None, covariates: Any = None, trials: Any = None
    ) -> np.ndarray:
        """Means of x, (N, d), at points of the latent space, (N, kappa)."""
        _validation.check_is_fitted(self)
        z = _validation.check_array(X, dtype=FLOATS, input_name="X", ensure_min_features=0)
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"X: expected {self._n_features_out} columns, one a component, got shape {z.shape}")
        brought = beside(self, self.family_, offset=offset, covariates=covariates, trials=trials)
        return np.asarray(mean_given(self.optimum_, z, **brought))

    def score_samples(self, X: Any, *, offset: Any = None, covariates: Any = None, trials: Any = None) -> np.ndarray:
        """The ELBO of every row at beta = 1, or its log-likelihood, (N,), in nats."""
        _validation.check_is_fitted(self)
        parts.check_words(self.method, self.scoring, self.dispersion)
        rows: Any = rows_to_ask(self, X, offset=offset, covariates=covariates, trials=trials)
        rows = as_source(rows, like=self.optimum_)
        model = require_density(self.optimum_.model, "optimum_").with_beta(1.0)
        if self.scoring == "elbo":
            return np.asarray(elbo_exact(model, rows, best_posterior(model, rows)))
        return np.asarray(log_likelihood(self._key(self.random_state), model, rows, num_samples=self.num_samples)[0])

    def score(
        self,
        X: Any,
        y: Any = None,
        *,
        offset: Any = None,
        covariates: Any = None,
        trials: Any = None,
        sample_weight: Any = None,
    ) -> float:
        """The (weighted) mean of :meth:`score_samples`, nats per row: the larger the better."""
        values = self.score_samples(X, offset=offset, covariates=covariates, trials=trials).astype(np.float64)
        weight = weights_of(sample_weight, values)
        return float(np.average(values[weight > 0], weights=weight[weight > 0]))

    def sample(
        self,
        n_samples: int = 1,
        *,
        random_state: Any = None,
        offset: Any = None,
        covariates: Any = None,
        trials: Any = None,
    ) -> np.ndarray:
        """Rows drawn from the model, (n_samples, d), with z from N(0, I)."""
        _validation.check_is_fitted(self)
        n_samples = _settings.integer(n_samples, "n_samples")
        of_z, of_x = jax.random.split(self._key(random_state))
        z = jax.random.normal(of_z, (n_samples, self._n_features_out), self.components_.dtype)
        brought = beside(self, self.family_, offset=offset, covariates=covariates, trials=trials)
        return np.asarray(sample_given(of_x, self.optimum_, z, **brought))

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = is_never_negative(self.family)
        tags.input_tags.allow_nan = self.method == "exact"
        computed = {np.dtype(jax.dtypes.canonicalize_dtype(dtype)).name for dtype in FLOATS}
        tags.transformer_tags.preserves_dtype = sorted(computed)
        return tags

    def _key(self, random_state: Any) -> jax.Array:
        return parts.key_of(_validation.check_random_state(random_state))

    def _stopping(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance, "max_rounds": self.max_rounds}

    def _closed_form(self, data: Rows | Moments) -> AffineOptimum:
        names = getattr(self, "feature_names_in_", None)
        phi = dispersion_of(self.family_, self.dispersion, self.n_features_in_, names)
        if isinstance(data, Moments) and data.covariates is not None:
            least_squares(data.covariates, self.covariate_names_in_)  # `fit` of moments could not name a column
        return fit(data, self.family_, self.n_components, beta=self.beta, dispersion=phi, expand_at=self.expand_at)

    def _from_moments(self, data: Moments, rows: Rows | None) -> AffineOptimum | RefinedOptimum:
        start = self._closed_form(data)
        if rows is not None:
            start = start._replace(brought=brought_by(as_source(rows)))
        self.moments_ = data
        if self.method == "closed-form":
            return start
        is_bound = self.family_.curvature_is_constant  # else the rows tell whether it is worse than the null model
        return tighten(start, data if is_bound or rows is None else rows, **self._stopping())

    def _keep(self, optimum: AffineOptimum | RefinedOptimum) -> AffineVAE:
        names = getattr(self, "feature_names_in_", None)  # moments know none
        names = None if names is None else ColumnNames(names)
        self.optimum_ = optimum = optimum._replace(column_names=names, covariate_names=self.covariate_names_in_)
        self.components_ = np.asarray(optimum.loadings).T
        self.intercept_ = np.asarray(optimum.intercept)
        self.coefficients_ = None if (B := optimum.model.coefficients) is None else np.asarray(B)
        self.dispersion_ = np.asarray(optimum.dispersion)
        self.eigenvalues_ = np.asarray(optimum.eigenvalues)
        return self
