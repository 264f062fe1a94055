"""Bootstrap intervals over groups: arrays in, numbers out.

A resample draws as many groups as there are, with replacement (Efron 1979; of clusters,
Davison and Hinkley 1997, 3.8). The same groups always give the same resamples. A figure
that a resample leaves undefined is NaN there.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

RESAMPLES = 1000
_ROUNDING = 1e-12
_TAIL = 0.025  # on either side of a 95 % interval
_MOST_WEIGHTS = 2**22  # in memory at once: 32 MB

Groups = Shaped[np.ndarray, " N"]
Labels = Int[np.ndarray, " N"]
Probabilities = Float[np.ndarray, " N"]
Interval = list[float] | None  # [low, high], in JSON as it is; None: not known
Values = Float[np.ndarray, " R"]


def group_numbers(group_N: Groups) -> Int[np.ndarray, " N"]:
    """Each clip's group as a number from 0, in the order of the groups' names."""
    numbers: np.ndarray = np.unique(group_N, return_inverse=True)[1]
    return numbers


def resample_counts(group_N: Groups) -> Iterator[Int[np.ndarray, "R G"]]:
    """How often each group is drawn in each resample, in blocks of resamples."""
    groups = len(np.unique(group_N))
    generator = np.random.Generator(np.random.Philox(0))
    block = max(1, _MOST_WEIGHTS // len(group_N))
    for begin in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - begin)
        drawn_RxG = generator.integers(groups, size=(rows, groups))
        drawn_RxG += np.arange(rows)[:, None] * groups
        counts = np.bincount(drawn_RxG.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups)


def resampled_ratio(
    part_N: Shaped[np.ndarray, " N"], whole_N: Shaped[np.ndarray, " N"], group_N: Groups
) -> Values:
    """Sum of `part_N` over sum of `whole_N` in each resample."""
    number_N = group_numbers(group_N)
    part_G, whole_G = (np.bincount(number_N, values) for values in (part_N, whole_N))
    blocks = [
        # no matrix product: its last bits depend on the number of threads
        _ratio((counts * part_G).sum(axis=1), (counts * whole_G).sum(axis=1))
        for counts in resample_counts(group_N)
    ]
    return np.concatenate(blocks)


def resampled_auc(
    labels_N: Labels, probability_N: Probabilities, group_N: Groups
) -> Values:
    """Area under the ROC curve of each resample; ties count half."""
    order = np.argsort(probability_N, kind="stable")
    rises = np.diff(probability_N[order], append=np.inf) > 0
    last_U = np.flatnonzero(rises)  # the last clip of each different probability
    number_N, labels_N = group_numbers(group_N)[order], labels_N[order]

    def at_or_below(weights_RxN: np.ndarray) -> np.ndarray:
        sums_RxU = np.cumsum(weights_RxN, axis=1)[:, last_U]
        return np.pad(sums_RxU, ((0, 0), (1, 0)))

    blocks = []
    for counts_RxG in resample_counts(group_N):
        weights_RxN = counts_RxG[:, number_N]
        violent = at_or_below(weights_RxN * labels_N)
        others = at_or_below(weights_RxN * (1 - labels_N))
        pairs_R = np.trapezoid(violent[:, -1:] - violent, others, axis=1)
        blocks.append(_ratio(pairs_R, violent[:, -1] * others[:, -1]))
    return np.concatenate(blocks)


def resampled_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    predicted_N: Bool[np.ndarray, " N"],
    group_N: Groups,
) -> dict[str, Values]:
    """The metrics that have an interval, in each resample."""
    violent_N = labels_N == 1
    right_N = predicted_N == violent_N
    recall_violent = resampled_ratio(right_N & violent_N, violent_N, group_N)
    recall_nonviolent = resampled_ratio(right_N & ~violent_N, ~violent_N, group_N)
    return {
        "accuracy": resampled_ratio(right_N, np.ones(len(labels_N)), group_N),
        "balanced_accuracy": (recall_violent + recall_nonviolent) / 2,
        "recall_violent": recall_violent,
        "recall_nonviolent": recall_nonviolent,
        "roc_auc": resampled_auc(labels_N, probability_N, group_N),
    }


def metric_intervals(
    values: Mapping[str, float | None],
    resampled: Sequence[Mapping[str, Values]],
    labels_N: Labels,
    group_N: Groups,
) -> dict[str, Interval]:
    """The 95 % interval `<metric>_ci95` of each resampled metric.

    `values` are those of one model, or means over several models of the same clips; a
    model has an entry in `resampled`.
    """
    shares = {  # of these clips' groups
        "accuracy": group_N,
        "recall_violent": group_N[labels_N == 1],
        "recall_nonviolent": group_N[labels_N == 0],
    }
    result: dict[str, Interval] = {}
    for name in resampled[0]:
        value, values_R = values[name], np.mean([r[name] for r in resampled], axis=0)
        if name in shares and value is not None:
            ends = share_interval(value, values_R, shares[name])
        else:  # an undefined value is undefined in all resamples
            ends = interval(values_R, group_N)
        result[f"{name}_ci95"] = ends
    return result


def interval(values_R: Values, group_N: Groups) -> Interval:
    """95 % percentile interval of a figure over resamples; undefined ones are left out.

    None when nothing shows its spread: fewer than two groups, or all resamples agree.
    """
    defined = values_R[np.isfinite(values_R)]
    if len(np.unique(group_N)) < 2 or not len(defined) or np.ptp(defined) < _ROUNDING:
        return None
    low, high = np.quantile(defined, [_TAIL, 1 - _TAIL])
    return [float(low), float(high)]


def share_interval(share: float, values_R: Values, group_N: Groups) -> Interval:
    """The same for a share of the clips in `group_N`.

    A share of 0 or 1 is the same in every resample: then the exact binomial interval with
    one trial per group (Clopper and Pearson 1934).
    """
    groups = len(np.unique(group_N))
    if 0 < share < 1 or groups < 2:
        return interval(values_R, group_N)
    end = float(_TAIL ** (1 / groups))
    return [end, 1.0] if share == 1 else [0.0, 1.0 - end]


def share(
    part_N: Bool[np.ndarray, " N"], whole_N: Bool[np.ndarray, " N"], group_N: Groups
) -> tuple[float | None, Interval]:
    """The share of the clips in `whole_N` that are in `part_N` too, and its interval."""
    if not whole_N.any():
        return None, None
    value = float(np.mean(part_N[whole_N]))
    values_R = resampled_ratio(part_N & whole_N, whole_N, group_N)
    return value, share_interval(value, values_R, group_N[whole_N])


def difference_interval(
    difference_N: Float[np.ndarray, " N"], values_R: Values, group_N: Groups
) -> Interval:
    """The same for the mean over clips of differences; where none differs, it is exact."""
    if np.any(difference_N):
        return interval(values_R, group_N)
    ends = share_interval(0.0, values_R, group_N)
    return ends and [-ends[1], ends[1]]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    nan = np.full(np.shape(whole), np.nan)
    result: np.ndarray = np.divide(part, whole, out=nan, where=whole > 0)
    return result
