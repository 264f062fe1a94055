"""What a detector does at a threshold: violence found, false alarms, also per hour."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vd.metrics.calibration import FALSE_ALARMS, Calibration
from vd.metrics.intervals import resampled_ratio, share_interval

STRICT = f"false_alarms_{FALSE_ALARMS:.0%}".replace("%", "_percent")
_SECONDS_AN_HOUR = 3600


def operating_points(
    labels_N: Int[np.ndarray, " N"],
    probability_N: Float[np.ndarray, " N"],
    group_N: Shaped[np.ndarray, " N"],
    seconds_N: Float[np.ndarray, " N"],
    fitted: Calibration,
) -> dict[str, dict[str, Any] | None]:
    """Figures at each threshold that was fitted on validation; None where none was.

    `seconds_N` is the length of each clip, 0 where unknown: such a clip counts in no
    figure per hour. A clip that is predicted to be violent is one alarm.
    """
    thresholds = {
        "best_balanced_accuracy": (fitted.threshold, fitted.threshold_source),
        STRICT: (
            fitted.false_alarm_threshold,
            f"validation, at most {FALSE_ALARMS:.0%} of the non-violent clips",
        ),
    }
    return {
        name: threshold
        if threshold is None
        else {
            "threshold": threshold,
            "threshold_source": source,
            **_at(labels_N, probability_N >= threshold, group_N, seconds_N),
        }
        for name, (threshold, source) in thresholds.items()
    }


def nonviolent_hours(
    labels_N: Int[np.ndarray, " N"], seconds_N: Float[np.ndarray, " N"]
) -> float:
    """Hours of non-violent video of known length."""
    return float(seconds_N[labels_N == 0].sum() / _SECONDS_AN_HOUR)


def _at(
    labels_N: Int[np.ndarray, " N"],
    alarm_N: Bool[np.ndarray, " N"],
    group_N: Shaped[np.ndarray, " N"],
    seconds_N: Float[np.ndarray, " N"],
) -> dict[str, Any]:
    """Recall and share of false alarms, each with its interval; false alarms per hour."""
    result: dict[str, Any] = {}
    for name, of_class_N in (
        ("recall_violent", labels_N == 1),
        ("false_alarm_share", labels_N == 0),
    ):
        share = ends = None
        if of_class_N.any():
            share = float(np.mean(alarm_N[of_class_N]))
            values_R = resampled_ratio(alarm_N & of_class_N, of_class_N, group_N)
            ends = share_interval(share, values_R, group_N[of_class_N])
        result |= {name: share, f"{name}_ci95": ends}
    alarms = alarm_N & (labels_N == 0) & (seconds_N > 0)
    hours = np.where(labels_N == 0, seconds_N / _SECONDS_AN_HOUR, 0).sum()
    return result | {
        "false_alarms_per_hour": float(alarms.sum() / hours) if hours else None
    }
