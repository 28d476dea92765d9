"""The families once more, in plain NumPy float64: the textbook formula of each, an entry at a time.

Nothing of the library is used, so that it can be compared with this. ``distribution`` is SciPy's word for what a family
claims to be; the formulas are tested against it and against mpmath. They are not SciPy's own calls because those take a
probability, which has lost its digits where log(1 - p) needs them.

``eta`` is the linear predictor; t = scale eta, which for the canonical families is the natural parameter.
"""

from __future__ import annotations

import dataclasses
from functools import partialmethod
from typing import Any

import numpy as np
import scipy.stats
from scipy.special import expit, gammaln


@dataclasses.dataclass(frozen=True)
class Family:
    """Functions of t; below them, written once for all, functions of eta."""

    trials: Any = 1.0  # of a binomial; the size of a negative binomial: a scalar, (d,) or (N, d)
    scale: float = 1.0
    grey: bool = False  # draw means
    drawn_with = 1.0  # the dispersion
    fixed_dispersion = 1.0  # what ``dispersion=None`` means; None where it is estimated or has to be given

    def log_prob(self, x, eta, phi=1.0):
        """(x theta - F(theta)) / phi + K(x, phi), theta and F in terms of t."""
        return self.kernel(x, self.scale * eta) / phi + self.log_base_measure(x, phi)

    def fitted(self, eta):
        return self.mean(self.scale * eta)

    def weight(self, eta, phi=1.0):
        """Fisher's: (d mean / d eta)^2 / Var x."""
        t = self.scale * eta
        return self.scale**2 * self.slope(t) ** 2 / (phi * self.variance(t))

    def score(self, x, eta, phi=1.0):
        """d log p / d eta."""
        t = self.scale * eta
        return self.scale * self.slope(t) * (x - self.mean(t)) / (phi * self.variance(t))

    def observed_weight(self, x, eta, phi=1.0):
        """- d^2 log p / d eta^2."""
        return self.scale**2 * self.information(x, self.scale * eta) / phi

    def null(self, mean):
        """The eta whose mean this is."""
        return self.link(mean) / self.scale

    def slope(self, t):
        """d mean / dt: the variance where t is the natural parameter."""
        return self.variance(t)

    def information(self, x, t):
        """- phi d^2 log p / dt^2."""
        return self.variance(t) + 0 * x

    def logistic_trials(self, x):
        """n where log p = (x t - n softplus(t)) / phi + K, NaN where it has no such form."""
        return np.nan * x

    def largest_weight(self, x, counted):
        """Of every column, (d,), the largest observed weight that any eta has in the rows that count, at phi = 1."""
        raise ValueError(f"{self} has no largest weight, so no closed form with an offset")

    def of_rows(self, rows):
        """The family of these rows."""
        if np.ndim(self.trials) < 2:
            return self
        return dataclasses.replace(self, trials=np.asarray(self.trials)[rows])

    def with_trials(self, trials):
        return dataclasses.replace(self, trials=np.asarray(trials, float))

    @property
    def family(self):
        """The library's, for what is compared with this; nothing here uses it."""
        from glmvae import families

        return self.library(families)

    def library(self, families):
        return getattr(families, type(self).__name__)(activation_scale=self.scale)

    def draw(self, rng, eta):
        t = self.scale * eta
        return self.mean(t) if self.grey else self.distribution(t, self.drawn_with).rvs(random_state=rng).astype(float)


class Gaussian(Family):
    fixed_dispersion = None
    drawn_with = 0.25

    def kernel(self, x, t):
        return x * t - t**2 / 2

    def log_base_measure(self, x, phi=1.0):
        return -(x**2 / phi + np.log(2 * np.pi * phi)) / 2

    def mean(self, t):
        return t

    def variance(self, t):
        return np.ones_like(t)

    def link(self, mean):
        return mean

    def largest_weight(self, x, counted):
        return self.scale**2 * np.ones(x.shape[1])

    def distribution(self, t, phi):
        return scipy.stats.norm(t, np.sqrt(phi))


class Binomial(Family):
    def kernel(self, x, t):
        return x * t - self.trials * np.logaddexp(0, t)

    def log_base_measure(self, x, phi=1.0):
        # Grey values of a Bernoulli count as proportions: no binomial coefficient, as in the paper
        n = self.trials
        choose = gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)
        return np.where(np.equal(n, 1), 0.0, choose)

    def mean(self, t):
        return self.trials * expit(t)

    def variance(self, t):
        return self.trials * expit(t) * expit(-t)

    def link(self, mean):
        return np.log(mean / (self.trials - mean))

    def logistic_trials(self, x):
        return self.trials + 0 * x

    def largest_weight(self, x, counted):
        return self.scale**2 * np.max((self.trials + 0 * x)[counted], axis=0) / 4

    def distribution(self, t, phi):
        return scipy.stats.binom(np.asarray(self.trials, int), expit(t))

    def library(self, families):
        if np.ndim(self.trials) == 2:
            return families.Binomial(None, activation_scale=self.scale)
        if np.all(np.equal(self.trials, 1)):
            return families.Bernoulli(activation_scale=self.scale)
        return families.Binomial(self.trials, activation_scale=self.scale)


class Poisson(Family):
    def kernel(self, x, t):
        return x * t - np.exp(t)

    def log_base_measure(self, x, phi=1.0):
        return -gammaln(x + 1)

    def mean(self, t):
        return np.exp(t)

    def variance(self, t):
        return np.exp(t)

    def link(self, mean):
        return np.log(mean)

    def distribution(self, t, phi):
        return scipy.stats.poisson(np.exp(t))


class Gamma(Family):
    """With the log activation, theta = -exp(-t); shape 1 / phi."""

    fixed_dispersion = None
    drawn_with = 0.5

    def kernel(self, x, t):
        return -x * np.exp(-t) - t

    def log_base_measure(self, x, phi=1.0):
        return (1 / phi - 1) * np.log(x) - gammaln(1 / phi) - np.log(phi) / phi

    def mean(self, t):
        return np.exp(t)

    def slope(self, t):
        return np.exp(t)

    def variance(self, t):
        return np.exp(2 * t)

    def information(self, x, t):
        return x * np.exp(-t)

    def link(self, mean):
        return np.log(mean)

    def distribution(self, t, phi):
        return scipy.stats.gamma(1 / phi, scale=phi * np.exp(t))


class Exponential(Gamma):
    fixed_dispersion = 1.0
    drawn_with = 1.0


class NegativeBinomial(Family):
    """With t = log(mean / size)."""

    def kernel(self, x, t):
        return x * t - (x + self.trials) * np.logaddexp(0, t)

    def log_base_measure(self, x, phi=1.0):
        return gammaln(x + self.trials) - gammaln(self.trials) - gammaln(x + 1)

    def mean(self, t):
        return self.trials * np.exp(t)

    def slope(self, t):
        return self.mean(t)

    def variance(self, t):
        return self.mean(t) * (1 + np.exp(t))

    def information(self, x, t):
        return (x + self.trials) * expit(t) * expit(-t)

    def link(self, mean):
        return np.log(mean / self.trials)

    def logistic_trials(self, x):
        return x + self.trials

    def distribution(self, t, phi):
        return scipy.stats.nbinom(self.trials, expit(-t))

    def library(self, families):
        return families.NegativeBinomial(self.trials, activation_scale=self.scale)


class Mixed:
    """A family for each group of columns: members are pairs (family, list of columns)."""

    fixed_dispersion = None

    def __init__(self, members):
        self.members = [(family, list(columns)) for family, columns in members]
        self.columns = sum(len(columns) for _, columns in self.members)
        self.scale = np.ones(self.columns)
        for family, columns in self.members:
            self.scale[columns] = family.scale

    def _each(self, name, *values):
        values = np.broadcast_arrays(*(np.asarray(v, float) + np.zeros(self.columns) for v in values))
        out = np.empty(values[0].shape)
        for family, columns in self.members:
            out[..., columns] = getattr(family, name)(*(v[..., columns] for v in values))
        return out

    log_prob = partialmethod(_each, "log_prob")
    log_base_measure = partialmethod(_each, "log_base_measure")
    fitted = partialmethod(_each, "fitted")
    weight = partialmethod(_each, "weight")
    score = partialmethod(_each, "score")
    observed_weight = partialmethod(_each, "observed_weight")
    null = partialmethod(_each, "null")
    logistic_trials = partialmethod(_each, "logistic_trials")

    def draw(self, rng, eta):
        out = np.empty(eta.shape)
        for family, columns in self.members:
            out[:, columns] = family.draw(rng, eta[:, columns])
        return out

    def largest_weight(self, x, counted):
        out = np.empty(self.columns)
        for family, columns in self.members:
            out[columns] = family.largest_weight(x[:, columns], counted)
        return out

    def of_rows(self, rows):
        return Mixed([(family.of_rows(rows), columns) for family, columns in self.members])

    def with_trials(self, trials):
        """Of the binomial members alone: what stands in other columns is ignored."""
        return Mixed([(f.with_trials(trials[:, c]) if isinstance(f, Binomial) else f, c) for f, c in self.members])

    @property
    def family(self):
        """The library's."""
        from glmvae import families

        return families.Mixed([(family.family, columns) for family, columns in self.members])
