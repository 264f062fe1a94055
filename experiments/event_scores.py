"""Events in time: which alarms met a true event, how many were false, and how late they came.

Matching is ActivityNet's (Caba Heilbron et al. 2015, its eval_detection.py): predictions, the
highest first, each take the free true event of greatest temporal intersection over union, if
that is large enough. With a least overlap of 0 any common time is enough, which is what an
alarm has to do. Alarms an hour beside recall are the terms of sound event detection (Bilen et
al. 2020, PSDS), where detections are counted as false by the hour too.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

Spans = Float64[np.ndarray, "N 2"]  # start and end in seconds
Values = Float64[np.ndarray, " N"]


class EventCounts(NamedTuple):
    """What matching came to in one recording; those of several are added up."""

    true: int
    found: int
    false_alarms: int
    delays: tuple[float, ...]  # of found events, seconds from onset to alarm


class EventScores(NamedTuple):
    """Figures over all recordings; None where they are not defined."""

    recall: float | None  # share of true events that were found
    false_alarms_per_hour: float | None
    median_delay: float | None  # seconds; below 0 where alarms precede the onset


def temporal_iou(
    a_Nx2: Float64[np.ndarray, "N 2"], b_Mx2: Float64[np.ndarray, "M 2"]
) -> Float64[np.ndarray, "N M"]:
    """Intersection over union of spans of time, of each with each; 0 where they only touch."""
    start_NxM = np.maximum(a_Nx2[:, None, 0], b_Mx2[None, :, 0])
    end_NxM = np.minimum(a_Nx2[:, None, 1], b_Mx2[None, :, 1])
    common_NxM = np.maximum(end_NxM - start_NxM, 0.0)
    length_N, length_M = a_Nx2[:, 1] - a_Nx2[:, 0], b_Mx2[:, 1] - b_Mx2[:, 0]
    union_NxM = length_N[:, None] + length_M[None, :] - common_NxM
    no_time = np.zeros_like(common_NxM)
    return np.divide(common_NxM, union_NxM, out=no_time, where=common_NxM > 0)


def match_events(
    predicted_Px2: Spans, score_P: Values, true_Tx2: Spans, least_iou: float = 0.0
) -> Int[np.ndarray, " P"]:
    """The index of each predicted event's true event, -1 without; no true one twice."""
    iou_PxT = temporal_iou(predicted_Px2, true_Tx2)
    iou_PxT[iou_PxT < least_iou] = 0.0
    matched_P = np.full(len(predicted_Px2), -1)
    for index in np.argsort(-score_P, kind="stable"):
        if iou_PxT[index].max(initial=0.0) > 0:
            matched_P[index] = best = int(iou_PxT[index].argmax())
            iou_PxT[:, best] = 0.0  # taken
    return matched_P


def count_events(
    matched_P: Int[np.ndarray, " P"], alarm_P: Values, true_Tx2: Spans
) -> EventCounts:
    """Found and missed events of one recording, as `match_events` matched them.

    `alarm_P` are the times of the alarms. A second event on one true event is a false alarm.
    """
    hits = np.flatnonzero(matched_P >= 0)
    delays = alarm_P[hits] - true_Tx2[matched_P[hits], 0]
    false = len(matched_P) - len(hits)
    return EventCounts(len(true_Tx2), len(hits), false, tuple(delays.tolist()))


def event_scores(counts: Iterable[EventCounts], hours: float) -> EventScores:
    """Figures over recordings; false alarms are those in `hours`, whatever these count.

    For alarms in an hour of calm they are the calm hours. False alarms are all that met no
    true event of their own, so second alarms on one count too.
    """
    counts = list(counts)
    true = sum(one.true for one in counts)
    delays = [delay for one in counts for delay in one.delays]
    return EventScores(
        sum(one.found for one in counts) / true if true else None,
        sum(one.false_alarms for one in counts) / hours if hours else None,
        float(np.median(delays)) if delays else None,
    )
