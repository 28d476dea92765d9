"""Figures: training curves with the closed form's lines, activities over beta, spectra, rate and distortion, held-out
scores, biplots, images, latent means.

Each function draws on ``ax`` (None makes a new figure) and returns the Axes. Needs matplotlib, which is optional.
"""

from glmvae.plots.choices import rate_distortion as rate_distortion
from glmvae.plots.choices import selection as selection
from glmvae.plots.choices import spectrum as spectrum
from glmvae.plots.rows import biplot as biplot
from glmvae.plots.rows import latent_scatter as latent_scatter
from glmvae.plots.rows import reconstructions as reconstructions
from glmvae.plots.training import activities as activities
from glmvae.plots.training import elbo_curves as elbo_curves
