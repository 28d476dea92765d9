"""The exact ascent: beyond the closed form, to the optimum of the exact beta-ELBO.

The model is eta_i = W z_i + b + B' c_i + offset_i with q_i = N(mu_i, Sigma_i); what is raised is

    mean_i [ sum_j E log p(x_ij | eta_ij) - beta KL(q_i || N(0, I)) ]

or a lower bound of it, over W, b, B, every q_i and, where it is free, phi. One round is one pass over the rows;
covariates are taken about their means (:mod:`~glmvae.ascent.centring`).

1.  **A bound** (:mod:`~glmvae.ascent.terms`) is a function ``terms(objective, rows, m, v) -> (value, gradient,
    weight)`` of each entry's predictor eta_ij ~ N(m_ij, v_ij): ``exact_terms``, or ``entry_terms`` for Jaakkola and
    Jordan's.
2.  **The posteriors of one block** (:mod:`~glmvae.ascent.posteriors`): ``steps_of`` moves every q_i by
    natural-gradient steps towards the best for its row; a row that would fall stays and is more cautious next time,
    and moves mean and covariance in turns.
    A pass (:mod:`~glmvae.ascent.passes`) adds up, block by block, what the decoder needs:
    :class:`~glmvae.ascent.passes.Sums`.
3.  **The decoder** (:mod:`~glmvae.ascent.decoder`): ``decoder_step`` turns the sums into one weighted least-squares
    step of every column, within a trust region, and says how to standardise z after it (``Change``), which leaves eta
    as it is.
4.  **The climb** (:mod:`~glmvae.ascent.climb`): ``Climb.ascend`` proposes the step, or its extrapolation from the
    last few (:mod:`~glmvae.extrapolation`), and passes over the rows with it (``at_decoder``). The posteriors it
    finds lie in the shadow of a :class:`~glmvae.ascent.row_posteriors.PosteriorStore`: ``Climb.keep`` commits them if
    the bound rose, else they are let go and the columns that overshot take half the step.
5.  **Phases** (:mod:`~glmvae.ascent.refinement`): ``best_start`` (:mod:`~glmvae.ascent.starts`), then ``ascend``,
    ``prune`` units that do not pay, ``wake`` those that would (:mod:`~glmvae.ascent.units`), and again, until nothing
    changes; last ``principal_axes`` and, for plain rows, ``best_encoder`` (:mod:`~glmvae.ascent.encoder`).

Only what raises the bound is kept, and a fixed point has every gradient 0: it is a stationary point of the bound.
"""

from glmvae.ascent.best import best_posterior as best_posterior
from glmvae.ascent.refinement import refine as refine
