"""Bootstrap over groups: resamples as how often each clip is drawn, and their intervals."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped

RESAMPLES = 1000
_TAIL = 0.025  # on either side of a 95 % interval
_MOST_WEIGHTS = 2**22  # in memory at once: 32 MB

Interval = list[float] | None  # [low, high], in JSON as it is; None: not known


def group_numbers(group_N: Shaped[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Each clip's group as a number from 0, in the order of their names."""
    numbers: np.ndarray = np.unique(group_N, return_inverse=True)[1]
    return numbers


def resample_weights(
    group_N: Shaped[np.ndarray, " N"], count: int = RESAMPLES, seed: int = 0
) -> Iterator[Float[np.ndarray, "R N"]]:
    """How often each clip is drawn when whole groups are drawn, in blocks of resamples.

    As many groups are drawn as there are, with replacement (Efron 1979; of clusters, Davison
    and Hinkley 1997, 3.8). The same groups and seed give the same resamples.
    """
    number_N = group_numbers(group_N)
    groups = int(number_N.max()) + 1
    generator = np.random.Generator(np.random.Philox(seed))
    block = max(1, _MOST_WEIGHTS // len(number_N))
    for begin in range(0, count, block):
        rows = min(block, count - begin)
        drawn_RxG = generator.integers(groups, size=(rows, groups))
        drawn_RxG += np.arange(rows)[:, None] * groups
        counts = np.bincount(drawn_RxG.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups)[:, number_N].astype(np.float64)


def interval(
    values_R: Float[np.ndarray, " R"], group_N: Shaped[np.ndarray, " N"]
) -> Interval:
    """95 % percentile interval of a figure over resamples; NaN, undefined, is left out.

    None with fewer than two groups, which show no spread, and where it is never defined.
    """
    defined = values_R[np.isfinite(values_R)]
    if not len(defined) or len(np.unique(group_N)) < 2:
        return None
    low, high = np.quantile(defined, [_TAIL, 1 - _TAIL])
    return [float(low), float(high)]


def share_interval(
    share: float,
    values_R: Float[np.ndarray, " R"],
    group_N: Shaped[np.ndarray, " N"],
) -> Interval:
    """The same of a share of the clips in `group_N`.

    When all or none have the property resampling shows no spread: then the exact binomial
    interval with a trial a group (Clopper and Pearson 1934).
    """
    groups = len(np.unique(group_N))
    if 0 < share < 1 or groups < 2:
        return interval(values_R, group_N)
    surely = float(_TAIL ** (1 / groups))
    return [surely, 1.0] if share == 1 else [0.0, 1.0 - surely]


def difference_interval(
    difference_N: Float[np.ndarray, " N"],
    values_R: Float[np.ndarray, " R"],
    group_N: Shaped[np.ndarray, " N"],
) -> Interval:
    """The same of a mean over clips of differences in -1 to 1, `values_R` over resamples.

    When none of the clips differ, or all do by 1, it is as exact as that of a share.
    """
    mean = float(np.mean(difference_N))
    if np.any(difference_N != mean) or abs(mean) not in (0.0, 1.0):
        return interval(values_R, group_N)
    share = share_interval(abs(mean), values_R, group_N)
    if share is None:
        return None
    low, high = share
    if mean == 0:
        return [-high, high]
    return [low, high] if mean > 0 else [-high, -low]
