"""Do random draws agree with their closed form, within the tolerance that their number and FAILURE imply?

Every test here has an exact null distribution for independent normal draws: a correct implementation fails an
assertion with probability FAILURE at most, whatever the number of draws; more draws only find smaller errors.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

FAILURE = 1e-9  # probability that a correct implementation fails one assertion


def assert_plausible(p_values: ArrayLike) -> None:
    """No p-value of k is below FAILURE/k, which happens by chance with probability FAILURE at most [Bonferroni]."""
    values = np.asarray(p_values)
    assert values.size and (values >= FAILURE / values.size).all(), values.min()


def assert_normal(draws: Tensor, mean: Tensor, sd: Tensor) -> None:
    """The draws (n, ...) of every quantity are n independent N(mean, sd^2); where sd is 0, they are the mean exactly.

    Three assertions:
    - (sample mean - mean) sqrt(n)/sd is N(0, 1);
    - (n - 1) s^2/sd^2 is chi-square with n - 1 degrees of freedom;
    - the distance of the empirical distribution from the normal one has Kolmogorov's distribution.
    """
    samples, means, sds = (_array(each).reshape(len(each), -1) for each in (draws, mean[None], sd[None]))
    certain = sds[0] == 0
    assert (samples[:, certain] == means[:, certain]).all()
    z = (samples - means)[:, ~certain] / sds[:, ~certain]
    n = len(z)
    assert_plausible(2 * stats.norm.sf(np.abs(z.mean(0)) * np.sqrt(n)))
    chi_square = np.square(z - z.mean(0)).sum(0)
    both_tails = np.minimum(stats.chi2.cdf(chi_square, n - 1), stats.chi2.sf(chi_square, n - 1))
    assert_plausible(2 * both_tails)
    assert_plausible([stats.kstest(column, "norm").pvalue for column in z.T])


def assert_uncorrelated(draws: Tensor) -> None:
    """The normal quantities of the draws (n, ...) are independent of each other, pair by pair.

    The correlation r of n draws of two independent normals has r sqrt((n - 2)/(1 - r^2)) ~ Student(n - 2).
    """
    samples = _array(draws).reshape(len(draws), -1)
    n, quantities = samples.shape
    r = np.asarray(np.corrcoef(samples.T))[np.triu_indices(quantities, k=1)]
    assert (np.abs(r) < 1).all()
    assert_plausible(2 * stats.t.sf(np.abs(r) * np.sqrt((n - 2) / (1 - r**2)), n - 2))


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()
