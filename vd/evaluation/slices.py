"""Slices of tested clips: by split, group, resolution, rate, brightness and length."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool

from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.evaluation.predictions import Predictions
from vd.metrics.binary import recall, roc_auc
from vd.metrics.intervals import share

_MOST_GROUPS = 100  # the largest, so that the file can be read
_BANDS = {  # unit and edges of slices by a number; a slice holds its lower edge
    "resolution": ("lines", (240, 360, 480, 720, 1080)),  # the shorter side
    "fps": ("frames/s", (15, 24, 29, 49)),
    "brightness": ("of 255", (50, 100, 150)),  # mean grey of the first frame
    "duration": ("s", (2, 5, 10, 30, 60)),
}

Inside = Bool[np.ndarray, " N"]  # which clips are in a slice


def slices(
    videos: Sequence[Video], outcomes: Sequence[Outcome], predictions: Predictions
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every slice of each facet, in order; of groups the largest."""
    numbers: dict[str, list[float | None]] = {
        "resolution": [min(o.width, o.height) or None for o in outcomes],
        "fps": [o.fps or None for o in outcomes],
        "brightness": [o.brightness for o in outcomes],
        "duration": [o.duration or None for o in outcomes],
    }
    splits = np.array([video.split for video in videos], object)
    facets = {"split": {s or "none": splits == s for s in sorted(set(splits))}}
    if predictions.grouped:
        largest = Counter(predictions.groups).most_common(_MOST_GROUPS)
        facets["group"] = {g or "none": predictions.groups == g for g, _ in largest}
    facets |= {facet: _bands(facet, values) for facet, values in numbers.items()}
    return {
        facet: [
            _figures_of_slice(name, inside_N, predictions)
            for name, inside_N in parts.items()
            if inside_N.any()
        ]
        for facet, parts in facets.items()
    }


def _bands(facet: str, values: Sequence[float | None]) -> dict[str, Inside]:
    """The clips of each slice by a number."""
    unit, edges = _BANDS[facet]
    value_N = np.array(values, float)  # NaN where unknown
    bands = {f"under {edges[0]} {unit}": value_N < edges[0]}
    for low, high in pairwise(edges):
        bands[f"{low} to {high} {unit}"] = (low <= value_N) & (value_N < high)
    bands[f"{edges[-1]} {unit} and more"] = value_N >= edges[-1]
    bands["unknown"] = np.isnan(value_N)
    return bands


def _figures_of_slice(
    name: str, inside_N: Inside, predictions: Predictions
) -> dict[str, Any]:
    """The row of one slice."""
    inside = predictions.chosen(np.flatnonzero(inside_N))
    labels_N, probability_N, predicted_N = inside.tested
    right_N, every_N = predicted_N == (labels_N == 1), np.ones(len(labels_N), bool)
    accuracy, ends = share(right_N, every_N, inside.cluster_N)
    return {
        "slice": name,
        "n": len(labels_N),
        "n_violent": int(labels_N.sum()),
        "accuracy": accuracy,
        "accuracy_ci95": ends,
        "recall_violent": recall(labels_N, predicted_N, 1),
        "recall_nonviolent": recall(labels_N, predicted_N, 0),
        "roc_auc": roc_auc(labels_N, probability_N),
    }
