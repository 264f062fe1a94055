"""predictions_<name>.csv: written, and read back with whatever a damaged file holds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Shaped

from vd.data.manifest import CLASSES, Video, class_label
from vd.errors import VdError, damage
from vd.files import read_csv, write_csv


class Predictions(NamedTuple):
    """What a run said of N clips, in the order of its file."""

    paths: list[str]
    groups: list[str]  # as given, "" where none is known
    labels_N: Int[np.ndarray, " N"]
    probability_N: Float64[np.ndarray, " N"]
    logit_N: Float64[np.ndarray, " N"]


def write_predictions(
    path: Path, videos: Sequence[Video], probability_N: np.ndarray, logit_N: np.ndarray
) -> None:
    """predictions_<split>.csv; decimals that read back to the same float64."""
    write_csv(path, prediction_rows(videos, probability_N, logit_N))


def prediction_rows(
    videos: Sequence[Video], probability_N: np.ndarray, logit_N: np.ndarray
) -> list[dict[str, Any]]:
    """The rows of predictions_<split>.csv."""
    return [
        {
            "path": video.name,
            "label": CLASSES[video.label],
            "group": video.group,
            "probability": repr(float(probability)),
            "logit": repr(float(logit)),
        }
        for video, probability, logit in zip(
            videos, probability_N, logit_N, strict=True
        )
    ]


def read_predictions(path: Path, remedy: str) -> Predictions:
    """A predictions file; raises `VdError`, with the remedy, when it is none."""
    if not path.exists():
        raise VdError(f"{path} does not exist; {remedy}.")
    rows = read_csv(path)
    try:
        if not rows:
            raise ValueError("it has no row")
        return Predictions(
            [row["path"] for row in rows],
            [row["group"] for row in rows],
            np.array([class_label(row["label"]) for row in rows]),
            np.array([_number(row, "probability", 0, 1) for row in rows]),
            np.array([_number(row, "logit", -math.inf, math.inf) for row in rows]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VdError(f"{path} is damaged ({damage(error)}); {remedy}.") from error


def _number(row: Mapping[str, str], name: str, low: float, high: float) -> float:
    """A number of a row; raises `ValueError` when it is none, or out of range."""
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{row[name]!r} is no {name}")
    return value


def cluster_names(
    paths: Sequence[str], groups: Sequence[str], ids: Sequence[str]
) -> Shaped[np.ndarray, " N"]:
    """What is resampled as a whole: the group, else the clip, once for all its copies.

    `ids` are content hashes, "" where unknown.
    """
    first: dict[str, str] = {}
    for path, content in sorted(zip(paths, ids, strict=True)):
        first.setdefault(content or path, path)
    return np.array(
        [
            f"group {group}" if group else f"clip {first[content or path]}"
            for path, group, content in zip(paths, groups, ids, strict=True)
        ]
    )
