"""Exponential dispersion families: the observation models of a beta-VAE whose decoder is a GLM.

    log p(x | eta) = (x theta - F(theta)) / phi + K(x, phi),    theta = theta(eta)          (8)

``eta`` is the linear predictor (what the decoder returns), ``theta`` the natural parameter, ``F`` the
log-normalizer, ``phi`` the dispersion. Then

    E x = mu = F'(theta)        Var x = phi F''(theta)

(the paper's Lemma 1 prints ``F'' / phi``). A family is an immutable pytree: it passes through ``jit``, ``vmap``
and ``grad``. Every method works entry by entry and broadcasts; nothing is summed over columns.

The canonical activation has theta = eta. ``activation_scale`` [rho] gives the paper's linearly canonical ones,
theta = rho eta (10): ``Bernoulli(activation_scale=2.0)`` has the mean (tanh(eta) + 1) / 2.
"""

from glmvae.families.base import Family as Family
from glmvae.families.custom import CustomFamily as CustomFamily
from glmvae.families.gamma import Exponential as Exponential
from glmvae.families.gamma import Gamma as Gamma
from glmvae.families.gaussian import Gaussian as Gaussian
from glmvae.families.logistic import Bernoulli as Bernoulli
from glmvae.families.logistic import Binomial as Binomial
from glmvae.families.logistic import NegativeBinomial as NegativeBinomial
from glmvae.families.mixed import Mixed as Mixed
from glmvae.families.poisson import Poisson as Poisson
from glmvae.families.scale import Logistic as Logistic
from glmvae.families.support import Support as Support
