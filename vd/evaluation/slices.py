"""Figures of slices of the clips: by split, group, resolution, rate, brightness, length."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.evaluation.predictions import Predictions
from vd.metrics.binary import accuracy, recall, roc_auc
from vd.metrics.intervals import resampled_ratio, share_interval

Slice = tuple[int, str]  # its place among the slices of its facet, and its name

_MOST_SLICES = 100  # of groups the largest, so that the file can be read
_EDGES = {  # of slices, in the unit of the name; a slice holds its lower edge
    "resolution": ("lines", (240, 360, 480, 720, 1080)),  # the shorter side
    "fps": ("frames/s", (15, 24, 29, 49)),
    "brightness": ("of 255", (50, 100, 150)),  # mean grey of the first frame
    "duration": ("s", (2, 5, 10, 30, 60)),
}


def slice_values(
    videos: Sequence[Video], outcomes: Sequence[Outcome]
) -> dict[str, list[Slice]]:
    """The slice that each video is in, by facet."""
    values = {"split": [(0, video.split or "none") for video in videos]}
    if any(video.group for video in videos):
        clips = Counter(video.group for video in videos)
        values["group"] = [(-clips[v.group], v.group or "none") for v in videos]
    numbers: dict[str, list[float | None]] = {
        "resolution": [min(o.width, o.height) or None for o in outcomes],
        "fps": [o.fps or None for o in outcomes],
        "brightness": [o.brightness for o in outcomes],
        "duration": [seconds(o) or None for o in outcomes],
    }
    return values | {
        facet: [_band(number, *_EDGES[facet]) for number in column]
        for facet, column in numbers.items()
    }


def _band(value: float | None, unit: str, edges: Sequence[float]) -> Slice:
    """The slice between two edges that a number is in."""
    if value is None:
        return len(edges) + 1, "unknown"
    place = int(np.searchsorted(edges, value, side="right"))
    if place == 0:
        return place, f"under {edges[0]} {unit}"
    if place == len(edges):
        return place, f"{edges[-1]} {unit} and more"
    return place, f"{edges[place - 1]} to {edges[place]} {unit}"


def seconds(outcome: Outcome) -> float:
    """Length of a video by its header, else by its frames; 0 where neither is known."""
    if outcome.duration > 0:
        return outcome.duration
    return outcome.frames / outcome.fps if outcome.fps > 0 else 0.0


def slices(
    values: Mapping[str, Sequence[Slice]], predictions: Predictions
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every slice of each facet, in order; of groups the largest."""
    cluster_N = predictions.cluster_N
    result: dict[str, list[dict[str, Any]]] = {}
    for facet, slice_of in values.items():
        result[facet] = []
        for one in sorted(set(slice_of))[:_MOST_SLICES]:
            places = [i for i, value in enumerate(slice_of) if value == one]
            of, groups = predictions.chosen(places), cluster_N[places]
            y, predicted = of.labels_N, of.predicted_N
            share = accuracy(y, predicted)
            values_R = resampled_ratio(predicted == (y == 1), np.ones(len(y)), groups)
            result[facet].append(
                {
                    "slice": one[1],
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
