"""Paired differences: two models, or two sets of seeds, tested on the same clips."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from vd.evaluation.predictions import Predictions
from vd.metrics.binary import roc_auc, shown
from vd.metrics.intervals import (
    Groups,
    difference_interval,
    interval,
    resampled_auc,
    resampled_ratio,
)
from vd.metrics.significance import clips_needed

Right = Bool[np.ndarray, "K N"]  # whether each of K models is right


def accuracy_difference(
    right_a: Right, right_b: Right, cluster_N: Groups
) -> dict[str, Any]:
    """Accuracies, their difference with its interval, and the clips that show one point."""
    difference_N = (right_b.astype(float) - right_a.astype(float)).mean(axis=0)
    values_R = resampled_ratio(difference_N, np.ones(len(difference_N)), cluster_N)
    discordant = float(np.mean(right_a != right_b))
    gained = int(right_b.sum()) - int(right_a.sum())
    return {
        "accuracy_a": float(np.mean(right_a)),
        "accuracy_b": float(np.mean(right_b)),
        "accuracy_difference": gained / right_a.size,  # exactly 0 where equal
        "accuracy_difference_ci95": difference_interval(
            difference_N, values_R, cluster_N
        ),
        "discordant_share": discordant,
        "clips_needed_for_1_point": clips_needed(discordant),
    }


def auc_difference(
    a: Sequence[Predictions], b: Sequence[Predictions], cluster_N: Groups
) -> dict[str, Any]:
    """ROC AUC of both, the mean over seeds; how far `b` is above `a`, with its interval."""
    auc_a, auc_b = _mean_auc(a), _mean_auc(b)
    resampled = [
        np.mean(
            [resampled_auc(p.labels_N, p.probability_N, cluster_N) for p in side], 0
        )
        for side in (a, b)
    ]
    return {
        "roc_auc_a": auc_a,
        "roc_auc_b": auc_b,
        "roc_auc_difference": None if auc_a is None or auc_b is None else auc_b - auc_a,
        "roc_auc_difference_ci95": interval(resampled[1] - resampled[0], cluster_N),
    }


def worse_than_probe(values: Mapping[str, Any]) -> list[str]:
    """A sentence when the linear probe's ROC AUC is above the model's.

    `values` has the model's less the probe's as `roc_auc_difference`, and its interval.
    """
    gain, ends = (values.get(f"roc_auc_difference{x}") for x in ("", "_ci95"))
    if gain is None or gain >= 0:
        return []
    between = (
        f" (95 % interval {shown('roc_auc', [-ends[1], -ends[0]])})" if ends else ""
    )
    sentence = (
        f"a linear probe on the same features is better by {shown('roc_auc', -gain)} of ROC "
        f"AUC{between}: the head is not shown to be worth its training"
    )
    return [sentence]


def _mean_auc(seeds: Sequence[Predictions]) -> float | None:
    """Mean over seeds; None with one class only."""
    areas = [roc_auc(*seed.tested[:2]) for seed in seeds]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None
