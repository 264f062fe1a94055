"""Leakage: pairs of videos, the splits and classes they join, a run without leaked clips."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

import numpy as np

from vd.audit.near_duplicates import Pair
from vd.data.manifest import CLASSES, Video
from vd.data.splits import groups_cut
from vd.evaluation.predictions import Member


@dataclass(frozen=True)
class VideoPair:
    """Two files that show the same; the second begins `shift` seconds into the first."""

    first: Video
    second: Video
    kind: Literal["copy", "duplicate", "same-scene"]  # copy: the same bytes
    similarity: float = 1.0
    mirrored: bool = False
    shift: float = 0.0

    @property
    def same_footage(self) -> bool:
        """Whether both show the same moments, not just the same place."""
        return self.kind != "same-scene"

    @property
    def both_labels(self) -> bool:
        """Whether the same footage has both labels: one of them is wrong."""
        return self.same_footage and self.first.label != self.second.label

    @property
    def across_splits(self) -> bool:
        """Whether the two are in different splits."""
        splits = {self.first.split, self.second.split}
        return len(splits) == 2 and "" not in splits

    @property
    def grouped(self) -> bool:
        """Whether both are in one group already."""
        return self.first.group != "" and self.first.group == self.second.group

    def row(self) -> dict[str, Any]:
        """The pair in JSON values."""
        both = self.first, self.second
        return {
            "kind": self.kind,
            "paths": [video.name for video in both],
            "labels": [CLASSES[video.label] for video in both],
            "splits": [video.split for video in both],
            "groups": [video.group for video in both],
            "similarity": round(self.similarity, 4),
            "mirrored": self.mirrored,
            "shift_seconds": self.shift,
        }


def video_pairs(videos: Iterable[Video], alike: Iterable[Pair]) -> list[VideoPair]:
    """Pairs of files with the same content, and of those whose contents are `alike`.

    The worst first: the same footage under both labels, then across splits, then footage
    before scene, then pairs that are in no common group.
    """
    by_id: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        if video.id:
            by_id[video.id].append(video)
    pairs = [
        VideoPair(first, second, "copy")
        for same in by_id.values()
        for first, second in combinations(same, 2)
    ]
    for pair in alike:
        for first, second in product(by_id[pair.first], by_id[pair.second]):
            pairs.append(VideoPair(first, second, *pair[2:]))
    return sorted(
        pairs,
        key=lambda pair: (
            not pair.both_labels, not pair.across_splits, not pair.same_footage, pair.grouped,
            -pair.similarity, pair.first.name, pair.second.name,
        ),
    )  # fmt: skip


def without_leaks(
    tested: Member, videos: Sequence[Video], pairs: Iterable[VideoPair]
) -> dict[str, Any]:
    """A run's test accuracy with all its predictions, and without the leaked clips.

    A test clip is leaked when its footage, its scene or its group is in another split.
    `videos` and `pairs` carry the run's splits. Nothing is trained or scored.
    """
    cut = {row["group"] for row in groups_cut(videos)}
    leaked: dict[str, set[str]] = {
        "footage": set(),
        "scene": set(),
        "group": {video.name for video in videos if video.group in cut},
    }
    for pair in pairs:
        if pair.across_splits:
            reason = "footage" if pair.same_footage else "scene"
            leaked[reason] |= {pair.first.name, pair.second.name}
    predictions = tested.predictions
    correct_N = predictions.predicted_N == (predictions.labels_N == 1)
    kept_N = np.ones(len(correct_N), bool)
    rows = {"all": _accuracy(correct_N, kept_N)}
    for reason, names in leaked.items():
        kept_N &= [path not in names for path in predictions.paths]
        rows[f"without_shared_{reason}"] = _accuracy(correct_N, kept_N)
    return {"run": str(tested.run_dir), "threshold": tested.threshold, "test": rows}


def _accuracy(correct_N: np.ndarray, kept_N: np.ndarray) -> dict[str, Any]:
    """Accuracy over the clips that are kept; None when there are none."""
    return {
        "clips": int(kept_N.sum()),
        "left_out": int((~kept_N).sum()),
        "accuracy": float(correct_N[kept_N].mean()) if kept_N.any() else None,
    }
