"""Figures of slices of the clips: by split, group, resolution, rate, brightness, length."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.evaluation.predictions import Predictions
from vd.metrics.binary import accuracy, recall, roc_auc
from vd.metrics.intervals import resampled_ratio, share_interval

_MOST_GROUPS = 100  # of the largest, so that the file can be read
_UNKNOWN = "unknown"
_EDGES = {  # of slices, in the unit of the name; a slice holds its lower edge
    "resolution": ("lines", (240, 360, 480, 720, 1080)),  # the shorter side
    "fps": ("frames/s", (15, 24, 29, 49)),
    "brightness": ("of 255", (50, 100, 150)),  # mean grey of the first frame
    "duration": ("s", (2, 5, 10, 30, 60)),
}


def slice_values(
    videos: Sequence[Video], outcomes: Sequence[Outcome]
) -> dict[str, list[str]]:
    """The slice that each video is in, by facet."""
    numbers: dict[str, list[float | None]] = {
        "resolution": [min(o.width, o.height) or None for o in outcomes],
        "fps": [o.fps or None for o in outcomes],
        "brightness": [o.brightness for o in outcomes],
        "duration": [seconds(o) or None for o in outcomes],
    }
    values = {"split": [video.split or "none" for video in videos]}
    if any(video.group for video in videos):
        values["group"] = [video.group or "none" for video in videos]
    return values | {
        facet: [_band(number, *_EDGES[facet]) for number in column]
        for facet, column in numbers.items()
    }


def seconds(outcome: Outcome) -> float:
    """Length of a video by its header, else by its frames; 0 where neither is known."""
    if outcome.duration > 0:
        return outcome.duration
    return outcome.frames / outcome.fps if outcome.fps > 0 else 0.0


def slices(
    values: Mapping[str, Sequence[str]], predictions: Predictions
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every slice of each facet, in order; of groups the largest."""
    cluster_N = predictions.cluster_N
    result: dict[str, list[dict[str, Any]]] = {}
    for facet, slice_of in values.items():
        slice_N = np.array(slice_of)
        result[facet] = []
        for name in _ordered(facet, slice_of):
            places = np.flatnonzero(slice_N == name)
            of, groups = predictions.chosen(places), cluster_N[places]
            y, predicted = of.labels_N, of.predicted_N
            share = accuracy(y, predicted)
            values_R = resampled_ratio(predicted == (y == 1), np.ones(len(y)), groups)
            result[facet].append(
                {
                    "slice": name,
                    "n": len(y),
                    "n_violent": int(y.sum()),
                    "accuracy": share,
                    "accuracy_ci95": share_interval(share, values_R, groups),
                    "recall_violent": recall(y, predicted, 1),
                    "recall_nonviolent": recall(y, predicted, 0),
                    "roc_auc": roc_auc(y, of.probability_N),
                }
            )
    return result


def _bands(unit: str, edges: Sequence[float]) -> list[str]:
    """The names of the slices between edges, in order."""
    between = [f"{low} to {high} {unit}" for low, high in pairwise(edges)]
    return [f"under {edges[0]} {unit}", *between, f"{edges[-1]} {unit} and more"]


def _band(value: float | None, unit: str, edges: Sequence[float]) -> str:
    """The name of the slice that a number is in."""
    if value is None:
        return _UNKNOWN
    return _bands(unit, edges)[int(np.searchsorted(edges, value, side="right"))]


def _ordered(facet: str, slice_of: Sequence[str]) -> list[str]:
    """The slices that have a clip, in the order of their edges, else of size or name."""
    present = Counter(slice_of)
    if facet == "group":
        return sorted(present, key=lambda name: (-present[name], name))[:_MOST_GROUPS]
    if facet not in _EDGES:
        return sorted(present)
    return [name for name in [*_bands(*_EDGES[facet]), _UNKNOWN] if name in present]
