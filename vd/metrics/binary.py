"""Binary classification metrics: arrays in, numbers out; None where undefined.

`labels_N` is 0 or 1 (violent), `probability_N` the probability of violence and
`predicted_N` whether a clip is predicted to be violent. A metric is added by one entry of
`METRICS`: evaluations, cross-validations and pages then have it, and early stopping takes
it as `val_<name>`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from vd.metrics.intervals import (
    Groups,
    Interval,
    Labels,
    Probabilities,
    metric_intervals,
    resampled_metrics,
)

COLLAPSE = "nearly all predictions are one class, or a recall is under 20 %"
_COLLAPSED_RECALL = 0.20
_COLLAPSED_SHARE = 0.98
_ECE_BINS = 10
_FEW_GROUPS = 20

Predicted = Bool[np.ndarray, " N"]


def accuracy(labels_N: Labels, predicted_N: Predicted) -> float:
    """Share of the clips that are predicted right."""
    return float(np.mean(predicted_N == (labels_N == 1)))


def recall(labels_N: Labels, predicted_N: Predicted, label: int) -> float | None:
    """Share of the clips of class `label` that are predicted so."""
    of_class = labels_N == label
    if not of_class.any():
        return None
    return float(np.mean(predicted_N[of_class] == bool(label)))


def balanced_accuracy(labels_N: Labels, predicted_N: Predicted) -> float | None:
    """Mean of both recalls; None with one class only."""
    calm, violent = (recall(labels_N, predicted_N, label) for label in (0, 1))
    return None if calm is None or violent is None else (calm + violent) / 2


def precision(labels_N: Labels, predicted_N: Predicted, label: int) -> float | None:
    """Share of the clips predicted as class `label` that are of it.

    None when no clip is predicted so, or none is of that class.
    """
    chosen = predicted_N == bool(label)
    if not chosen.any() or not (labels_N == label).any():
        return None
    return float(np.mean(labels_N[chosen] == label))


def f1(labels_N: Labels, predicted_N: Predicted) -> float | None:
    """Harmonic mean of precision and recall of the violent class; None without one."""
    violent, hits = int(np.sum(labels_N == 1)), np.sum(predicted_N & (labels_N == 1))
    return float(2 * hits / (violent + predicted_N.sum())) if violent else None


def roc_auc(labels_N: Labels, scores_N: Probabilities) -> float | None:
    """Area under the ROC curve; None with one class only."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels_N)) < 2:
        return None
    return float(roc_auc_score(labels_N, scores_N))


def average_precision(labels_N: Labels, scores_N: Probabilities) -> float | None:
    """Mean precision over the violent clips, best first; None with one class only."""
    from sklearn.metrics import average_precision_score

    if len(np.unique(labels_N)) < 2:
        return None
    return float(average_precision_score(labels_N, scores_N))


def expected_calibration_error(labels_N: Labels, probability_N: Probabilities) -> float:
    """Mean |confidence − frequency| over bins of equal count (Nguyen and O'Connor 2015).

    Clips of equal probability count as their mean, so their order, and a bin's end among
    them, change nothing.
    """
    order = np.argsort(probability_N, kind="stable")
    sorted_N, clips = probability_N[order], len(order)
    last_U = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
    gap_U = np.cumsum(sorted_N - labels_N[order])[last_U]
    # the bins of np.array_split: the first ones hold one clip more
    bins = min(_ECE_BINS, clips)
    size, more = divmod(clips, bins)
    number_K = np.arange(bins + 1)
    ends_K = number_K * size + np.minimum(number_K, more)
    sums_K = np.interp(ends_K, np.append(0, last_U + 1), np.append(0, gap_U))
    return float(np.abs(np.diff(sums_K)).sum() / clips)


class Metric(NamedTuple):
    """A metric and how it is shown."""

    compute: Callable[[Labels, Probabilities, Predicted], float | None]
    label: str  # for people
    higher_is_better: bool = True
    is_share: bool = True  # shown in percent


# of labels y, probabilities p and v, whether a clip is predicted to be violent
METRICS = {
    "accuracy": Metric(lambda y, p, v: accuracy(y, v), "accuracy"),
    "balanced_accuracy": Metric(
        lambda y, p, v: balanced_accuracy(y, v), "balanced accuracy"
    ),
    "recall_violent": Metric(lambda y, p, v: recall(y, v, 1), "recall violent"),
    "recall_nonviolent": Metric(lambda y, p, v: recall(y, v, 0), "recall non-violent"),
    "precision_violent": Metric(
        lambda y, p, v: precision(y, v, 1), "precision violent"
    ),
    "precision_nonviolent": Metric(
        lambda y, p, v: precision(y, v, 0), "precision non-violent"
    ),
    "f1_violent": Metric(lambda y, p, v: f1(y, v), "F1 violent"),
    "roc_auc": Metric(lambda y, p, v: roc_auc(y, p), "ROC AUC", is_share=False),
    "average_precision": Metric(
        lambda y, p, v: average_precision(y, p), "average precision", is_share=False
    ),
    "brier": Metric(  # Brier (1950)
        lambda y, p, v: float(np.mean((p - y) ** 2)),
        "Brier score",
        higher_is_better=False,
        is_share=False,
    ),
    "ece": Metric(
        lambda y, p, v: expected_calibration_error(y, p),
        "calibration error",
        higher_is_better=False,
        is_share=False,
    ),
}


def shown(name: str, value: float | Interval) -> str:
    """A metric's value or interval for people: in percent, or with three decimals."""
    if value is None:
        return "undefined"
    if isinstance(value, list):
        return " to ".join(shown(name, end) for end in value)
    return f"{100 * value:.1f} %" if METRICS[name].is_share else f"{value:.3f}"


def point_metrics(
    labels_N: Labels, probability_N: Probabilities, predicted_N: Predicted
) -> dict[str, float | None]:
    """Every metric of `METRICS`, by name."""
    return {
        name: metric.compute(labels_N, probability_N, predicted_N)
        for name, metric in METRICS.items()
    }


def collapsed(labels_N: Labels, predicted_N: Predicted) -> bool:
    """Whether nearly all predictions are one class, unlike the labels, or a recall is < 20 %."""
    recalls = [recall(labels_N, predicted_N, label) for label in (0, 1)]
    share, truth = float(np.mean(predicted_N)), float(np.mean(labels_N))
    one_sided = max(share, 1 - share) > _COLLAPSED_SHARE >= max(truth, 1 - truth)
    return one_sided or any(r is not None and r < _COLLAPSED_RECALL for r in recalls)


def evaluation_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    group_N: Groups,
    threshold: float,
    grouped: bool = True,
) -> dict[str, Any]:
    """The metrics of evaluation_<split>.json, with intervals and warnings.

    `threshold` decides what is predicted, for accuracy, recalls, precisions and F1;
    `grouped` is whether source groups are known.
    """
    predicted_N = probability_N >= threshold
    values = point_metrics(labels_N, probability_N, predicted_N)
    resampled = resampled_metrics(labels_N, probability_N, predicted_N, group_N)
    remedy = "; vd crossval tests every clip"
    warnings = interval_warnings(labels_N, group_N, grouped, remedy)
    if names := [METRICS[name].label for name in values if values[name] is None]:
        why = "a class has no clip, or no clip is predicted to be of it"
        warnings.insert(0, f"undefined: {', '.join(names)}; {why}")
    return {
        "n": len(labels_N),
        "n_violent": int(labels_N.sum()),
        **values,
        "accuracy_at_0.5": accuracy(labels_N, probability_N >= 0.5),
        **metric_intervals(values, [resampled], labels_N, group_N),
        "collapsed": collapsed(labels_N, predicted_N),
        "warnings": warnings,
    }


def interval_warnings(
    labels_N: Labels, group_N: Groups, grouped: bool, remedy: str = ""
) -> list[str]:
    """What limits the intervals, in sentences; `grouped`: whether source groups are known."""
    warnings = []
    groups = len(np.unique(group_N))
    calm, violent = (len(np.unique(group_N[labels_N == label])) for label in (0, 1))
    if not grouped:
        warnings.append(
            "no source groups known: clips of one recording may be in train and test, and "
            "the intervals treat clips as independent; give groups by a CSV column or "
            "--group-from"
        )
    if groups < 2:
        warnings.append(
            "no intervals: all clips are of one group, which shows no spread"
        )
    elif min(calm, violent) < _FEW_GROUPS:
        warnings.append(
            f"the intervals rest on {groups} groups ({violent} with violent, {calm} with "
            f"non-violent clips; a clip without a group is its own); with under {_FEW_GROUPS} "
            f"of a class they are too narrow{remedy}"
        )
    return warnings
