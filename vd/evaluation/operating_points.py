"""What a detector does at a threshold: violence found, and false alarms, also an hour."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vd.metrics.bootstrap import resample_weights, share_interval
from vd.metrics.calibration import FALSE_ALARMS, Calibration

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

    `seconds_N` is the length of each clip, 0 where unknown: such a clip tells nothing of
    alarms an hour. A clip that is said to be violent is one alarm.
    """
    thresholds = {
        "best_balanced_accuracy": (fitted.threshold, fitted.threshold_source),
        STRICT: (
            fitted.false_alarm_threshold,
            f"validation, at most {FALSE_ALARMS:.0%} of the non-violent clips",
        ),
    }
    made: dict[str, dict[str, Any] | None] = {}
    for name, (threshold, source) in thresholds.items():
        if threshold is None:
            made[name] = None
            continue
        made[name] = {
            "threshold": threshold,
            "threshold_source": source,
            **_at(labels_N, probability_N >= threshold, group_N, seconds_N),
        }
    return made


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
    """Recall, share of false alarms and false alarms an hour, each with its interval."""
    violent_N, calm_N = labels_N == 1, labels_N == 0
    timed_N = calm_N & (seconds_N > 0)
    hours_N = np.where(timed_N, seconds_N / _SECONDS_AN_HOUR, 0)
    figures = {
        "recall_violent": (violent_N & alarm_N, violent_N, violent_N),
        "false_alarm_share": (calm_N & alarm_N, calm_N, calm_N),
        "false_alarms_per_hour": (timed_N & alarm_N, hours_N, timed_N),
    }
    blocks = list(resample_weights(group_N))
    made: dict[str, Any] = {}
    for name, (part_N, whole_N, counted_N) in figures.items():
        value = found = None
        if whole_N.sum() > 0:
            value = float(part_N.sum() / whole_N.sum())
            with np.errstate(divide="ignore", invalid="ignore"):
                # not by a product: its last bits hang on the number of threads
                values_R = np.concatenate(
                    [
                        (weights * part_N).sum(axis=1) / (weights * whole_N).sum(axis=1)
                        for weights in blocks
                    ]
                )
            share = float(part_N[counted_N].mean())
            found = share_interval(share, values_R, group_N[counted_N])
            if found and name == "false_alarms_per_hour" and share in (0, 1):
                # as exact for none and for all, a clip's length being the mean
                a_clip = float(timed_N.sum() / whole_N.sum())
                found = [end * a_clip for end in found]
        made |= {name: value, f"{name}_ci95": found}
    return made
