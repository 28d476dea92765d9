"""What came of an ascent beyond the closed form."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from glmvae import _checks
from glmvae._frames import ColumnNames, listed
from glmvae.families import Family
from glmvae.model import Affine, AffineModel
from glmvae.optimum import Encoder
from glmvae.rows import Brought
from glmvae.variational import Posterior


class RefinedOptimum(NamedTuple):
    """An affine model beyond the paper's closed form.

    Fields:
        model: decoder, family, beta and dispersion; the loadings stand by descending strength, those of pruned units
        are 0.
        encoder: of :func:`~glmvae.jaakkola.tighten` the closed form's; of :func:`~glmvae.ascent.refine` the best affine
            one for the exact ELBO of the decoder, to a thousandth (a few, of counts of every size) of what it loses to
            the posteriors that the ascent found, which are not affine in x, or as far as 80 steps of Newton's method
            lead. None where the rows brought what no affine map of x can follow (an offset, covariates, missing
            entries, trials an entry): :func:`~glmvae.ascent.best_posterior` takes these.
        eigenvalues: of the whitened covariance, all d, of ``tighten``; otherwise beta plus the eigenvalues of
            W' diag(w) W with w the weights averaged over the rows, (kappa,). A unit is active where they exceed beta.
        elbo: the exact beta-ELBO, nats per row, mean over the data; None from moments alone.
        lower_bound: a certified lower bound of it, nats per row: what ``history`` ends with, less what rounding may
            have added; None where the objective is no bound.
        posterior: of the rows, those of weight 0 as far as the rounds for the others took them (``best_posterior``
            takes them to the end); None from ``tighten``.
        history: the objective at the start and after every round, (rounds + 1,).
        converged: whether what is left to gain fell below the tolerance.
        dispersion_estimated: whether phi was part of what was maximised.
        column_names: of a table's columns, its own or those of the start; rows with other names are refused.
        covariate_names: of a table's covariates, likewise.
        brought: ``("offset",)`` where the rows brought one: rows without are refused, zeros are taken; None where they
            did not. No leaf of the pytree; ``.model`` does not know it.
    """

    model: AffineModel
    encoder: Encoder | None
    eigenvalues: Float[Array, " d"]
    elbo: Float[Array, ""] | None
    lower_bound: Float[Array, ""] | None
    posterior: Posterior | None
    history: Float[Array, " r"]
    converged: Bool[Array, ""]
    dispersion_estimated: Bool[Array, ""]
    column_names: ColumnNames | None = None
    covariate_names: ColumnNames | None = None
    brought: Brought | None = None

    @property
    def decoder(self) -> Affine:
        """eta = W z + b."""
        return self.model.decoder

    @property
    def family(self) -> Family:
        """The observation model."""
        return self.model.family

    @property
    def loadings(self) -> Float[Array, "d k"]:
        """W."""
        return self.model.loadings

    @property
    def intercept(self) -> Float[Array, " d"]:
        """b."""
        return self.model.intercept

    @property
    def beta(self) -> Float[Array, ""]:
        """Weight of the KL divergence."""
        return self.model.beta

    @property
    def dispersion(self) -> Float[Array, "*d"]:
        """phi."""
        return self.model.dispersion

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.loadings) != 2:
            return f"RefinedOptimum(model={self.model!r}, ...)"
        columns, units = self.loadings.shape
        active = int(np.sum(np.asarray(self.eigenvalues)[:units] > float(self.beta)))
        value = "unknown" if self.elbo is None else f"{float(self.elbo):.6g} nats per row"
        bound = "" if self.lower_bound is None else f"\n  lower bound  {float(self.lower_bound):.6g} nats per row"
        size = f"{_checks.counted(columns, 'column')}, {_checks.counted(units, 'latent unit')}"
        return (
            f"RefinedOptimum: {size}, {active} active at beta = {float(self.beta):g}\n"
            f"  exact ELBO   {value}{bound}\n"
            f"  rounds       {self.history.shape[0] - 1}{'' if bool(self.converged) else ', not converged'}"
            f"{listed(self.column_names)}"
        )
