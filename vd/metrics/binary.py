"""Binary classification metrics: arrays in, numbers out; None where undefined.

`labels_N` is 0 or 1 (violent); `probability_N` is of violence; `predicted_N` says whether
a clip is said to be. Intervals are of resamples of whole groups (`vd.metrics.bootstrap`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn import metrics as sk

from vd.metrics.bootstrap import (
    RESAMPLES,
    Interval,
    interval,
    resample_weights,
    share_interval,
)
from vd.metrics.weighted import (
    ECE_BINS,
    calibration_errors,
    threshold_metrics,
    weighted_metrics,
)

COLLAPSE = "nearly all predictions are one class, or a recall is under 20 %"
_COLLAPSED_RECALL = 0.20
_COLLAPSED_SHARE = 0.98

Labels = Int[np.ndarray, " N"]
Probabilities = Float[np.ndarray, " N"]
Predicted = Bool[np.ndarray, " N"]
Groups = Shaped[np.ndarray, " N"]

NAMES = {  # for people
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "recall_violent": "recall violent",
    "recall_nonviolent": "recall non-violent",
    "precision_violent": "precision violent",
    "precision_nonviolent": "precision non-violent",
    "f1_violent": "F1 violent",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "calibration error",
}
METRICS = tuple(NAMES)


def recall(labels_N: Labels, predicted_N: Predicted, label: int) -> float | None:
    """Share of the clips of class `label` that were predicted so."""
    of_class = labels_N == label
    if not of_class.any():
        return None
    return float(np.mean(predicted_N[of_class] == bool(label)))


def precision(labels_N: Labels, predicted_N: Predicted, label: int) -> float | None:
    """Share of the clips predicted as class `label` that are of it."""
    said = predicted_N == bool(label)
    return float(np.mean(labels_N[said] == label)) if said.any() else None


def collapsed(labels_N: Labels, predicted_N: Predicted) -> bool:
    """Whether nearly all predictions are one class, unlike the labels, or a recall is < 20 %."""
    recalls = [recall(labels_N, predicted_N, label) for label in (0, 1)]
    share, truth = float(np.mean(predicted_N)), float(np.mean(labels_N))
    one_sided = max(share, 1 - share) > _COLLAPSED_SHARE >= max(truth, 1 - truth)
    return one_sided or any(r is not None and r < _COLLAPSED_RECALL for r in recalls)


def roc_auc(labels_N: Labels, scores_N: Probabilities) -> float | None:
    """Area under the ROC curve; None with one class only."""
    if len(np.unique(labels_N)) < 2:
        return None
    return float(sk.roc_auc_score(labels_N, scores_N))


def average_precision(labels_N: Labels, scores_N: Probabilities) -> float | None:
    """Mean precision over the violent clips, best first; None with one class only."""
    if len(np.unique(labels_N)) < 2:
        return None
    return float(sk.average_precision_score(labels_N, scores_N))


def expected_calibration_error(
    labels_N: Labels, probability_N: Probabilities, bins: int = ECE_BINS
) -> float:
    """Mean |confidence − frequency| over bins of equal count (Nguyen and O'Connor 2015).

    Clips of equal probability count as their mean.
    """
    once_1xN = np.ones((1, len(labels_N)))
    return float(calibration_errors(labels_N, probability_N, once_1xN, bins)[0])


def calibration_error_by_chance(
    probability_N: Probabilities, draws: int = 100
) -> float:
    """What a calibrated detector with these probabilities shows on average.

    The mean of the expected calibration error over labels drawn by the probabilities: the
    fewer the clips, the higher (Bröcker and Smith 2007).
    """
    generator = np.random.Generator(np.random.Philox(0))
    drawn_RxN = generator.random((draws, len(probability_N))) < probability_N
    errors_R = calibration_errors(
        drawn_RxN.astype(int), probability_N, np.ones(drawn_RxN.shape), ECE_BINS
    )
    return float(np.mean(errors_R))


def point_metrics(
    labels_N: Labels, probability_N: Probabilities, predicted_N: Predicted
) -> dict[str, float | None]:
    """`METRICS` and `accuracy_at_0.5`, by name. Brier score: Brier (1950)."""
    violent = labels_N == 1
    recalls = [recall(labels_N, predicted_N, label) for label in (0, 1)]
    precisions = [precision(labels_N, predicted_N, label) for label in (0, 1)]
    known = [r for r in recalls if r is not None]
    f1 = (
        sk.f1_score(labels_N, predicted_N, zero_division=0.0) if violent.any() else None
    )
    return {
        "accuracy": float(np.mean(predicted_N == violent)),
        "balanced_accuracy": sum(known) / 2 if len(known) == 2 else None,
        "accuracy_at_0.5": float(np.mean((probability_N >= 0.5) == violent)),
        "recall_violent": recalls[1],
        "recall_nonviolent": recalls[0],
        "precision_violent": None if recalls[1] is None else precisions[1],
        "precision_nonviolent": None if recalls[0] is None else precisions[0],
        "f1_violent": None if f1 is None else float(f1),
        "roc_auc": roc_auc(labels_N, probability_N),
        "average_precision": average_precision(labels_N, probability_N),
        "brier": float(np.mean((probability_N - labels_N) ** 2)),
        "ece": expected_calibration_error(labels_N, probability_N),
    }


def resampled_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    predicted_N: Predicted,
    group_N: Groups,
) -> dict[str, Float[np.ndarray, " R"]]:
    """The same of every resample; NaN where undefined."""
    blocks = [
        weighted_metrics(labels_N, probability_N, predicted_N, weights_RxN)
        for weights_RxN in resample_weights(group_N)
    ]
    return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}


def intervals(
    metrics: dict[str, float | None],
    resampled: dict[str, Float[np.ndarray, " R"]],
    labels_N: Labels,
    predicted_N: Predicted,
    group_N: Groups,
) -> dict[str, Interval]:
    """The 95 % interval of each metric, `<metric>_ci95`; None where it is not known."""
    everyone = np.ones(len(labels_N), bool)
    counted = {  # of which clips a metric is a share
        "accuracy": everyone,
        "accuracy_at_0.5": everyone,
        "recall_violent": labels_N == 1,
        "recall_nonviolent": labels_N == 0,
        "precision_violent": predicted_N,
        "precision_nonviolent": ~predicted_N,
    }
    made: dict[str, Interval] = {}
    for name, value in metrics.items():
        if value is None:
            found = None
        elif name in counted:
            groups = group_N[counted[name]]
            found = share_interval(value, resampled[name], groups)
        else:
            found = interval(resampled[name], group_N)
        made[f"{name}_ci95"] = found
    return made


def mean_interval(
    mean: float,
    resampled: Sequence[Float[np.ndarray, " R"]],
    alone: Sequence[Interval],
    group_N: Groups,
) -> Interval:
    """Interval of a metric's mean over models of the same clips, resampled together.

    `alone` are the intervals of each. A share that is 0 or 1 for all shows no spread: then
    the widest of theirs, which are exact.
    """
    if 0 < mean < 1:
        return interval(np.mean(resampled, axis=0), group_N)
    known = [found for found in alone if found is not None]
    return max(known, key=lambda found: found[1] - found[0], default=None)


def bootstrap_accuracy(
    correct_N: Bool[np.ndarray, " N"], group_N: Groups, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of accuracy alone; exact when all or none are right.

    None where all clips are of one group.
    """
    labels_N = correct_N.astype(
        int
    )  # predicted violent everywhere: right where they are
    said_N = np.ones(len(correct_N), bool)
    values_R = np.concatenate(
        [
            threshold_metrics(labels_N, said_N, weights_RxN)["accuracy"]
            for weights_RxN in resample_weights(group_N, seed=seed)
        ]
    )
    found = share_interval(float(np.mean(correct_N)), values_R, group_N)
    return None if found is None else (found[0], found[1])


def evaluation_metrics(
    labels_N: Labels,
    probability_N: Probabilities,
    group_N: Groups,
    threshold: float | Float[np.ndarray, " N"],
) -> dict[str, Any]:
    """The metrics of evaluation_<split>.json, with intervals and what is to be warned of.

    `threshold`, one or each clip's own, is for accuracy, recalls, precisions and F1. With
    one class only what needs both is None.
    """
    predicted_N = probability_N >= threshold
    metrics = point_metrics(labels_N, probability_N, predicted_N)
    resampled = resampled_metrics(labels_N, probability_N, predicted_N, group_N)
    found = intervals(metrics, resampled, labels_N, predicted_N, group_N)
    values: dict[str, Any] = {"n": len(labels_N), "n_violent": int(labels_N.sum())}
    for name, value in metrics.items():
        values |= {name: value, f"{name}_ci95": found[f"{name}_ci95"]}
    return {
        **values,
        "ece_by_chance": calibration_error_by_chance(probability_N),
        "collapsed": collapsed(labels_N, predicted_N),
        "resamples": RESAMPLES,
        "resampled_groups": len(np.unique(group_N)),
        "warnings": [
            *_undefined(labels_N, predicted_N, values),
            *interval_warnings(
                labels_N, group_N, {name: values[f"{name}_ci95"] for name in METRICS}
            ),
            *below_interval(values["ece"], values["ece_ci95"]),
        ],
    }


def _undefined(
    labels_N: Labels, predicted_N: Predicted, values: dict[str, Any]
) -> Iterator[str]:
    """What is undefined, and why."""
    names = [NAMES[name] for name in METRICS if values[name] is None]
    classes = list(enumerate(("non-violent", "violent")))
    for said, name in classes:
        if (predicted_N != said).all():
            names.remove(f"precision {name}")
            yield f"precision {name} undefined: no clip is predicted to be {name}"
    for said, name in classes:
        if names and (labels_N == said).all():
            yield f"{', '.join(names)} undefined: all clips are {name}"


def below_interval(ece: float | None, found: Interval) -> Iterator[str]:
    """Why a calibration error may lie outside its own interval."""
    if ece is not None and found is not None and ece < found[0]:
        yield (
            "the calibration error lies below its interval: resamples repeat clips, which "
            "raises it, so the interval is too high"
        )


def interval_warnings(
    labels_N: Labels, group_N: Groups, found: Mapping[str, Interval]
) -> Iterator[str]:
    """What a reader of the metrics' intervals must know, in sentences."""
    counts = {
        name: len(np.unique(group_N[labels_N == label]))
        for label, name in enumerate(("non-violent", "violent"))
    }
    groups = len(np.unique(group_N))
    if groups < 2:
        yield "no intervals: all clips are of one group, which shows no spread"
        return
    flat = [
        NAMES[name]
        for name, ci in found.items()
        if ci is not None and math.isclose(*ci, rel_tol=1e-9, abs_tol=1e-12)
    ]
    if flat:
        yield (
            f"{', '.join(flat)}: the same in every resample, so that the interval has no "
            "width; that is no certainty"
        )
    few = [f"{count} with {name} clips" for name, count in counts.items() if count < 20]
    if few:
        yield (
            f"the intervals rest on {groups} groups ({', '.join(few)}; a clip without a "
            "group is its own); with so few they are too narrow"
        )
