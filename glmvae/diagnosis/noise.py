"""The edge of noise: how large an eigenvalue columns show that have nothing in common.

With N rows the sample correlations of independent columns have eigenvalues well above 1. Their largest lies, up to
fluctuations of order N^(-2/3), at the right end of Marchenko and Pastur's law,

    edge = (1 + 1/n sum_j t_j c / (1 - t_j c)) / c,     1/n sum_j (t_j c / (1 - t_j c))^2 = 1,     n = N - 1

for columns of variance t_j, which is (1 + sqrt(d / n))^2 where all are 1. What exceeds it by chance does so by Tracy
and Widom's law. Both need the variances and N alone, so that moments will do, where a permutation of each column would
need the rows, random numbers and an eigendecomposition a draw.

It is asked of correlations, whatever the family: a column of large variance has an eigenvalue to match on its own, and
would hide what others have in common. And direction after direction, of what those before it leave of each column: or a
strong factor would hide the next.
"""

from __future__ import annotations

import numpy as np

# The 0.999 quantile of Tracy and Widom's law of real matrices.
_QUANTILE = 3.272
_BISECTIONS = 100


def noise_edge(variances: np.ndarray, degrees: float) -> float:
    """What the largest eigenvalue of independent columns exceeds in one of a thousand data sets.

    Args:
        variances: of the columns, (d,).
        degrees: of freedom n: N - 1, or the sum of weights that count rows, less one; less one more a covariate.

    Returns:
        The edge; 0 where no column varies, infinite where n is below 1.

    Exactness: an asymptotic law for many rows and columns, good to a few per cent from 20 columns on. Binary columns
    with a handful of ones, and counts with a few huge ones, exceed it more often.

    Example:
        >>> import numpy as np
        >>> from glmvae.diagnosis.noise import noise_edge
        >>> print(f"{noise_edge(np.ones(400), 999):.3f}")  # (1 + sqrt(400 / 999))^2 = 2.666
        2.739

    Source: Marchenko and Pastur (1967); El Karoui (2007) for unequal variances; Johnstone (2001).
    """
    t = np.asarray(variances, np.float64)
    t = t[t > 0]
    if not t.size:
        return 0.0
    if degrees < 1:
        return float("inf")
    unit = float(t.max())
    t = t / unit
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle >= 1.0 or np.sum((t * middle / (1 - t * middle)) ** 2) > degrees:
            high = middle
        else:
            low = middle
    ratio = t * low / (1 - t * low)
    edge = (1 + np.sum(ratio) / degrees) / low
    width = (1 + np.sum(ratio**3) / degrees) ** (1 / 3) / low
    return unit * float(edge + _QUANTILE * width * degrees ** (-2 / 3))


def directions_above_noise(
    variances: np.ndarray, values: np.ndarray, vectors: np.ndarray, degrees: float
) -> tuple[int, float]:
    """How many eigenvalues columns without anything in common would not show, and the edge these exceed.

    Every direction is judged by the variances that those before it leave, as if they had taken no more than their share
    of the noise.

    Args:
        variances: of the columns, (d,): 1 for those of correlations, 0 where a column does not vary.
        values: eigenvalues, descending, (d,).
        vectors: the leading eigenvectors, (d, v); directions beyond them are judged as the last.
        degrees: of freedom n, as in :func:`noise_edge`.

    Returns:
        (number, edge): so many eigenvalues exceed the edge.

    Exactness: as :func:`noise_edge` for the first direction; those after it depend on how the signal was estimated.

    Example:
        >>> import numpy as np
        >>> from glmvae.diagnosis.noise import directions_above_noise
        >>> x = np.random.default_rng(0).normal(size=(1000, 20))
        >>> x[:, :5] += np.random.default_rng(1).normal(size=(1000, 1))
        >>> values, vectors = np.linalg.eigh(np.corrcoef(x.T))
        >>> directions_above_noise(np.ones(20), values[::-1], vectors[:, ::-1], 999)[0]
        1

    Source: parallel analysis (Horn 1965), deflated (Dobriban and Owen 2019), with the law in place of permutations.
    """
    left, vectors = np.array(variances, np.float64), np.asarray(vectors, np.float64)
    varying, edge = int(np.sum(left > 0)), noise_edge(left, degrees)
    for number, value in enumerate(np.asarray(values, np.float64).tolist()):
        if value <= 0 or number == varying:
            return number, edge
        if 0 < number <= vectors.shape[1]:
            left = np.maximum(left - values[number - 1] * vectors[:, number - 1] ** 2, 0.0)
            edge = min(edge, noise_edge(left * (varying / (varying - number)), degrees - number))
        if value <= edge:
            return number, edge
    return len(values), edge
