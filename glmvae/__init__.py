"""glmvae: what a beta-VAE will do with your data, in closed form, before any training.

The public names, grouped by module. Families live in :mod:`glmvae.families`, data sets in :mod:`glmvae.datasets`.
"""

from glmvae import families as families
from glmvae.bracket import bracket as bracket
from glmvae.diagnosis import Diagnosis as Diagnosis
from glmvae.diagnosis import diagnose as diagnose
from glmvae.elbo import affine_posterior as affine_posterior
from glmvae.elbo import elbo_exact as elbo_exact
from glmvae.elbo import elbo_monte_carlo as elbo_monte_carlo
from glmvae.elbo import elbo_profile as elbo_profile
from glmvae.elbo import elbo_quadratic as elbo_quadratic
from glmvae.elbo import elbo_taylor as elbo_taylor
from glmvae.elbo import kl_divergence as kl_divergence
from glmvae.elbo import optimal_posterior as optimal_posterior
from glmvae.expansion import Expansion as Expansion
from glmvae.expansion import expand as expand
from glmvae.expansion import expected_remainder_bounds as expected_remainder_bounds
from glmvae.expansion import remainder_bounds as remainder_bounds
from glmvae.losses import LOSS_PRESETS as LOSS_PRESETS
from glmvae.losses import LossConvention as LossConvention
from glmvae.losses import LossPreset as LossPreset
from glmvae.losses import loss_convention as loss_convention
from glmvae.moments import Moments as Moments
from glmvae.moments import merge as merge
from glmvae.moments import moments as moments
from glmvae.optimum import AffineOptimum as AffineOptimum
from glmvae.optimum import Posterior as Posterior
from glmvae.optimum import fit as fit
from glmvae.optimum import gaussian_dispersion as gaussian_dispersion
from glmvae.optimum import posterior as posterior
from glmvae.pruning import activity as activity
from glmvae.pruning import activity_path as activity_path
from glmvae.pruning import beta_for_active_units as beta_for_active_units
from glmvae.pruning import collapse_onset as collapse_onset
from glmvae.refine import RefinedOptimum as RefinedOptimum
from glmvae.refine import refine as refine
from glmvae.refine import refined_posterior as refined_posterior

__version__ = "0.1.0"
