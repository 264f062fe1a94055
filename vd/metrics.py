"""Binary classification metrics: arrays in, numbers out; None where undefined.

`labels_N` is 0 or 1 (violent); `probability_N` is of violence.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn import metrics as sk

_COLLAPSED_RECALL = 0.20
_COLLAPSED_SHARE = 0.98
_RESAMPLES = 2000

Labels = Int[np.ndarray, " N"]
Probabilities = Float[np.ndarray, " N"]


def recall(
    labels_N: Labels, predicted_N: Bool[np.ndarray, " N"], label: int
) -> float | None:
    """Share of the clips of class `label` that were predicted so."""
    of_class = labels_N == label
    if not of_class.any():
        return None
    return float(np.mean(predicted_N[of_class] == bool(label)))


def collapsed(labels_N: Labels, predicted_N: Bool[np.ndarray, " N"]) -> bool:
    """Whether nearly all predictions are one class, or a recall is under 20 %."""
    recalls = [recall(labels_N, predicted_N, label) for label in (0, 1)]
    share = float(np.mean(predicted_N))
    return max(share, 1 - share) > _COLLAPSED_SHARE or any(
        r is not None and r < _COLLAPSED_RECALL for r in recalls
    )


def roc_auc(labels_N: Labels, scores_N: Probabilities) -> float | None:
    """Area under the ROC curve; None with one class only."""
    if len(np.unique(labels_N)) < 2:
        return None
    return float(sk.roc_auc_score(labels_N, scores_N))


def expected_calibration_error(
    labels_N: Labels, probability_N: Probabilities, bins: int = 10
) -> float:
    """Mean |confidence − frequency| over bins of equal count (Nguyen and O'Connor 2015)."""
    order = np.argsort(probability_N, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [
        abs(float(np.mean(probability_N[p]) - np.mean(labels_N[p]))) * len(p)
        for p in parts
    ]
    return float(sum(gaps) / len(order))


def bootstrap_accuracy(
    correct_N: Bool[np.ndarray, " N"], group_N: Shaped[np.ndarray, " N"], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of accuracy, resampling whole groups (Efron 1979).

    When all or none are right resampling shows no spread: then the exact binomial interval
    with a trial a group (Clopper and Pearson 1934).
    """
    _, member_N = np.unique(group_N, return_inverse=True)
    size_G = np.bincount(member_N)
    if correct_N.all() or not correct_N.any():
        surely = 0.025 ** (1 / len(size_G))
        return (surely, 1.0) if correct_N.all() else (0.0, 1.0 - surely)
    right_G = np.bincount(member_N, weights=correct_N)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.integers(len(size_G), size=(_RESAMPLES, len(size_G)))
    accuracy = right_G[drawn].sum(axis=1) / size_G[drawn].sum(axis=1)
    low, high = np.quantile(accuracy, [0.025, 0.975])
    return float(low), float(high)


def evaluation_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    group_N: Shaped[np.ndarray, " N"],
    threshold: float,
) -> dict[str, Any]:
    """The metrics of evaluation_<split>.json; accuracy, recalls and F1 at `threshold`.

    Brier score: Brier (1950). One class only: what needs both is None.
    """
    predicted_N = probability_N >= threshold
    correct_N = predicted_N == (labels_N == 1)
    has_violent = bool((labels_N == 1).any())
    f1 = sk.f1_score(labels_N, predicted_N, zero_division=0.0) if has_violent else None
    ap = sk.average_precision_score(labels_N, probability_N) if has_violent else None
    return {
        "n": len(labels_N),
        "accuracy": float(np.mean(correct_N)),
        "accuracy_ci95": list(bootstrap_accuracy(correct_N, group_N)),
        "accuracy_at_0.5": float(np.mean((probability_N >= 0.5) == (labels_N == 1))),
        "recall_violent": recall(labels_N, predicted_N, 1),
        "recall_nonviolent": recall(labels_N, predicted_N, 0),
        "f1_violent": None if f1 is None else float(f1),
        "roc_auc": roc_auc(labels_N, probability_N),
        "average_precision": None if ap is None else float(ap),
        "ece": expected_calibration_error(labels_N, probability_N),
        "brier": float(np.mean((probability_N - labels_N) ** 2)),
        "collapsed": collapsed(labels_N, predicted_N),
    }
