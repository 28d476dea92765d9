"""glmvae: what a beta-VAE will do with your data, in closed form, before any training.

One idea: the decoder is a GLM, so a second-order expansion of its log-likelihood in the linear predictor is one IRLS
step, and the beta-ELBO becomes probabilistic PCA of the working responses. The concepts, each in one place, from the
first to the last (a module imports only from those above it):

    families/              Family: the observation model of a column, and all that is known of it
    rows, sources          Rows: data with all that differs from row to row; Source: where they come from, in pieces
    threads                work side by side, its results in order
    stores, cuts, blocks   the loop over rows: one function of a block, an associative sum; Store: what rows keep
    model, variational     Objective (family, beta, dispersion), Affine (a decoder), AffineModel (the two); Posterior
    statistics/            Moments: one pass, mergeable, weighted
    expansion, quadratics  the quadratic at eta0: working response, weight, constant
    spectral, solution     Spectrum: one decomposition, asked for any latent_dim, beta and dispersion
    optimum, encoding      fit; posterior
    pruning                activity, onset of collapse, betas for a number of units
    elbo/                  the beta-ELBO: exact, expanded, of any decoder; what an expansion leaves out, the bracket
    tangents, jaakkola     beyond the closed form, from moments: Jaakkola and Jordan's bound, tighten
    ascent/                and from rows: refine, best_posterior
    likelihood, tradeoff   held-out likelihood; rate and distortion
    factors                explained variance, rotation
    diagnosis/             what a user asks before any training
    conventions/           which beta a loss means; presets
    selection/             how many units, at which beta: cross-validation
    saving, datasets       a file that keeps an optimum; data
    plots/                 pictures
    estimator/             the scikit-learn transformer, imported on its own
    nets/, initializers    Flax, imported on its own: architectures; where they start
    training/, monitor     Flax and optax: a loop that resumes; ELBO and activity beside the closed form

A new family is one class in a file of its own, a new bound one ``terms`` function (:mod:`glmvae.ascent.terms`), a new
source of rows one class (:mod:`glmvae.sources`), a new way to run the loop one branch of :func:`glmvae.blocks.sweep`.
What begins with an underscore is for all: checks at the boundary, small inverses, files, progress.
"""

from glmvae import families as families
from glmvae.ascent import best_posterior as best_posterior
from glmvae.ascent import refine as refine
from glmvae.conventions import LossConvention as LossConvention
from glmvae.conventions import loss_convention as loss_convention
from glmvae.conventions.presets import LOSS_PRESETS as LOSS_PRESETS
from glmvae.conventions.presets import LossPreset as LossPreset
from glmvae.diagnosis import diagnose as diagnose
from glmvae.diagnosis.report import Diagnosis as Diagnosis
from glmvae.elbo import affine_posterior as affine_posterior
from glmvae.elbo import elbo_exact as elbo_exact
from glmvae.elbo import elbo_profile as elbo_profile
from glmvae.elbo import elbo_quadratic as elbo_quadratic
from glmvae.elbo.bounds import expected_remainder_bounds as expected_remainder_bounds
from glmvae.elbo.bounds import remainder_bounds as remainder_bounds
from glmvae.elbo.brackets import bracket as bracket
from glmvae.elbo.decoders import elbo_monte_carlo as elbo_monte_carlo
from glmvae.elbo.decoders import elbo_taylor as elbo_taylor
from glmvae.elbo.decoders import optimal_posterior as optimal_posterior
from glmvae.encoding import Encoder as Encoder
from glmvae.encoding import posterior as posterior
from glmvae.expansion import Expansion as Expansion
from glmvae.expansion import expand as expand
from glmvae.factors import ExplainedVariance as ExplainedVariance
from glmvae.factors import explained_variance as explained_variance
from glmvae.factors import varimax as varimax
from glmvae.jaakkola import tighten as tighten
from glmvae.likelihood import effective_sample_size as effective_sample_size
from glmvae.likelihood import log_likelihood as log_likelihood
from glmvae.model import Affine as Affine
from glmvae.model import AffineModel as AffineModel
from glmvae.model import Objective as Objective
from glmvae.optimum import AffineOptimum as AffineOptimum
from glmvae.optimum import fit as fit
from glmvae.optimum import optimum_at as optimum_at
from glmvae.pruning import activity as activity
from glmvae.pruning import activity_path as activity_path
from glmvae.pruning import beta_for_active_units as beta_for_active_units
from glmvae.pruning import collapse_onset as collapse_onset
from glmvae.refined import RefinedOptimum as RefinedOptimum
from glmvae.rows import Rows as Rows
from glmvae.saving import load as load
from glmvae.saving import save as save
from glmvae.selection import select as select
from glmvae.selection.selected import Selection as Selection
from glmvae.sources import Source as Source
from glmvae.spectral import Spectrum as Spectrum
from glmvae.spectral import gaussian_dispersion as gaussian_dispersion
from glmvae.spectral import spectrum as spectrum
from glmvae.statistics import Moments as Moments
from glmvae.statistics import merge as merge
from glmvae.statistics import moments as moments
from glmvae.tradeoff import RateDistortion as RateDistortion
from glmvae.tradeoff import rate_distortion as rate_distortion
from glmvae.variational import Posterior as Posterior
from glmvae.variational import kl_divergence as kl_divergence

__version__ = "0.1.0"
