"""Metrics of many resamples at once: weights say how often each clip counts in each.

`labels_N` is 0 or 1 (violent), `probability_N` of violence, `predicted_N` whether it is
said to be. A weight is a whole number; with all weights 1 the values are those of
`vd.metrics.binary`. NaN where undefined.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

Labels = Int[np.ndarray, " N"]
Probabilities = Float[np.ndarray, " N"]
Predicted = Bool[np.ndarray, " N"]
Weights = Float[np.ndarray, "R N"]
Values = Float[np.ndarray, " R"]

ECE_BINS = 10


def weighted_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    predicted_N: Predicted,
    weights_RxN: Weights,
) -> dict[str, Values]:
    """Every metric of each resample (a row of `weights_RxN`), by name."""
    half_N = (probability_N >= 0.5) == (labels_N == 1)
    total_R = weights_RxN.sum(axis=1)
    error_N = (probability_N - labels_N) ** 2
    order = _Order(probability_N)
    sorted_RxN = weights_RxN[:, order.order]
    auc_R, ap_R = _areas(order, labels_N, sorted_RxN)
    return {
        **threshold_metrics(labels_N, predicted_N, weights_RxN),
        "accuracy_at_0.5": _ratio(weights_RxN @ half_N, total_R),
        "roc_auc": auc_R,
        "average_precision": ap_R,
        "ece": _calibration_errors(order, labels_N, sorted_RxN, ECE_BINS),
        "brier": _ratio((weights_RxN * error_N).sum(axis=1), total_R),
    }


def threshold_metrics(
    labels_N: Labels, predicted_N: Predicted, weights_RxN: Weights
) -> dict[str, Values]:
    """What the confusion matrix gives: accuracies, recalls, precisions, F1."""
    cell_N = 2 * labels_N.astype(int) + predicted_N
    cells_Nx4 = np.eye(4)[cell_N]
    tn, fp, fn, tp = (weights_RxN @ cells_Nx4).T  # whole numbers: exact in any order
    recall_violent, recall_nonviolent = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    f1 = _ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "accuracy": _ratio(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (recall_violent + recall_nonviolent) / 2,
        "recall_violent": recall_violent,
        "recall_nonviolent": recall_nonviolent,
        "precision_violent": _ratio(tp, tp + fp),
        "precision_nonviolent": _ratio(tn, tn + fn),
        "f1_violent": np.where(tp + fn > 0, f1, np.nan),
    }


def roc_areas(
    labels_N: Labels, probability_N: Probabilities, weights_RxN: Weights
) -> Values:
    """Area under the ROC curve of each resample."""
    order = _Order(probability_N)
    return _areas(order, labels_N, weights_RxN[:, order.order])[0]


def calibration_errors(
    labels_N: Int[np.ndarray, "*R N"],
    probability_N: Probabilities,
    weights_RxN: Weights,
    bins: int,
) -> Values:
    """Mean |confidence − frequency| over bins of equal count (Nguyen and O'Connor 2015).

    The bins are those of each resample, the labels the same for all or each one's own. Clips
    of equal probability count as their mean, so their order, and a bin's end among them,
    change nothing.
    """
    order = _Order(probability_N)
    return _calibration_errors(order, labels_N, weights_RxN[:, order.order], bins)


class _Order:
    """Clips in the order of their probability, U different ones."""

    def __init__(self, probability_N: Probabilities) -> None:
        self.order = np.argsort(probability_N, kind="stable")
        self.probability_N = probability_N[self.order]
        rises = self.probability_N[1:] != self.probability_N[:-1]
        self._last_U = np.flatnonzero(np.append(rises, True))

    def cumulated(self, values_RxN: Weights) -> Float[np.ndarray, "R U"]:
        """Sum over the clips at or below each of the different probabilities."""
        sums_RxU: np.ndarray = np.cumsum(values_RxN, axis=1)[:, self._last_U]
        return sums_RxU


def _areas(
    order: _Order, labels_N: Labels, sorted_RxN: Weights
) -> tuple[Values, Values]:
    """Area under the ROC curve, ties counting half, and average precision."""
    violent_RxU = order.cumulated(sorted_RxN * labels_N[order.order])
    all_RxU = order.cumulated(sorted_RxN)
    others_RxU = all_RxU - violent_RxU
    violent_R, others_R = violent_RxU[:, -1], others_RxU[:, -1]
    here_RxU = np.diff(violent_RxU, axis=1, prepend=0)
    others_here_RxU = np.diff(others_RxU, axis=1, prepend=0)
    above_RxU = violent_R[:, None] - violent_RxU  # violent clips of higher probability
    pairs_R = (others_here_RxU * (above_RxU + here_RxU / 2)).sum(axis=1)
    found_RxU = above_RxU + here_RxU
    taken_RxU = found_RxU + (others_R[:, None] - others_RxU) + others_here_RxU
    precision_RxU = _ratio(found_RxU, taken_RxU)
    steps_RxU = np.where(here_RxU > 0, here_RxU * precision_RxU, 0)
    ap_R = _ratio(steps_RxU.sum(axis=1), violent_R)
    return _ratio(pairs_R, violent_R * others_R), np.where(others_R > 0, ap_R, np.nan)


def _calibration_errors(
    order: _Order, labels_N: Int[np.ndarray, "*R N"], sorted_RxN: Weights, bins: int
) -> Values:
    """The same with clips in order."""
    gap_xN = order.probability_N - labels_N[..., order.order]
    count_RxU = order.cumulated(sorted_RxN)
    gap_RxU = order.cumulated(sorted_RxN * gap_xN)
    made = []
    for count_U, gap_U in zip(count_RxU, gap_RxU, strict=True):
        total = round(count_U[-1])
        # the bins of np.array_split: the first ones hold one clip more
        size, more = divmod(total, min(bins, total))
        number_K = np.arange(min(bins, total) + 1)
        ends_K = number_K * size + np.minimum(number_K, more)
        sums_K = np.interp(ends_K, np.append(0, count_U), np.append(0, gap_U))
        made.append(np.abs(np.diff(sums_K)).sum() / total)
    return np.array(made)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where nothing is the whole."""
    nan = np.full(np.shape(whole), np.nan)
    result: np.ndarray = np.divide(part, whole, out=nan, where=whole > 0)
    return result
