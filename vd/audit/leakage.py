"""Copies and leakage: pairs of videos, what parts and classes they join, what they change."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from vd.audit.near_duplicates import Pair
from vd.data.manifest import CLASSES, Video
from vd.errors import VdError
from vd.evaluation.predictions import Member, read_run


@dataclass(frozen=True)
class VideoPair:
    """Two files that show the same; `shift` seconds into the first, the second begins."""

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
        """Whether a split lies between the two."""
        return "" not in self.splits and len(set(self.splits)) == 2

    @property
    def splits(self) -> tuple[str, str]:
        """The parts they are in."""
        return self.first.split, self.second.split

    @property
    def grouped(self) -> bool:
        """Whether a group already says that they belong together."""
        return self.first.group != "" and self.first.group == self.second.group

    def row(self) -> dict[str, Any]:
        """The pair in JSON values."""
        both = self.first, self.second
        return {
            "kind": self.kind,
            "paths": [video.name for video in both],
            "labels": [CLASSES[video.label] for video in both],
            "splits": list(self.splits),
            "groups": [video.group for video in both],
            "similarity": round(self.similarity, 4),
            "mirrored": self.mirrored,
            "shift_seconds": self.shift,
        }


def video_pairs(videos: Iterable[Video], found: Iterable[Pair]) -> list[VideoPair]:
    """Copies by content, then the pairs found by content hash; the worst first.

    Worst: the same footage under both labels, then across splits, then footage before
    scene, then what no group holds together.
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
    for pair in found:
        for first, second in product(by_id[pair.first], by_id[pair.second]):
            pairs.append(VideoPair(first, second, *pair[2:]))
    return sorted(
        pairs,
        key=lambda pair: (
            not pair.both_labels, not pair.across_splits, not pair.same_footage, pair.grouped,
            -pair.similarity, pair.first.name, pair.second.name,
        ),
    )  # fmt: skip


def groups_cut(videos: Iterable[Video]) -> list[dict[str, Any]]:
    """Groups that lie in several splits, with the clips in each."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for video in videos:
        if video.group and video.split:
            parts[video.group][video.split] += 1
    return [
        {"group": group, "clips": dict(counts)}
        for group, counts in sorted(parts.items())
        if len(counts) > 1
    ]


def read_tested(run_dir: Path, videos: Iterable[Video]) -> Member:
    """What a run said of its test clips; `videos` carry the run's splits.

    Raises `VdError` when the run is not evaluated, or its predictions are damaged or not
    those of its test clips: what they lacked would pass for free of leaks.
    """
    member = read_run(run_dir)
    told = set(member.predictions.paths)
    names = {video.name for video in videos if video.split == "test"}
    if told != names:
        raise VdError(
            f"{run_dir / 'predictions_test.csv'} has {len(told)} clips that are not the run's "
            f"{len(names)} test clips ({min(told ^ names)!r} for one that differs); run vd "
            "evaluate on the run to write it again."
        )
    return member


def without_leaks(
    tested: Member, videos: Sequence[Video], pairs: Iterable[VideoPair]
) -> dict[str, Any]:
    """A run's test accuracy with all its predictions, and without the leaked clips.

    A test clip is leaked when its footage, its scene or its group is in another part.
    `videos` and `pairs` carry the run's splits. Nothing is trained or scored.
    """
    leaked: dict[str, set[str]] = {"footage": set(), "scene": set(), "group": set()}
    for pair in pairs:
        if pair.across_splits and "test" in pair.splits:
            clip = pair.first if pair.first.split == "test" else pair.second
            leaked["footage" if pair.same_footage else "scene"].add(clip.name)
    cut = {row["group"] for row in groups_cut(videos)}
    leaked["group"] = {v.name for v in videos if v.split == "test" and v.group in cut}
    said = tested.predictions
    right_N = said.predicted_N == (said.labels_N == 1)
    correct = dict(zip(said.paths, right_N.tolist(), strict=True))
    rows = {"all": _accuracy(correct, set())}
    seen: set[str] = set()
    for reason, names in leaked.items():
        seen = seen | names
        rows[f"without_shared_{reason}"] = _accuracy(correct, seen)
    return {"run": str(tested.run_dir), "threshold": tested.threshold, "test": rows}


def _accuracy(correct: Mapping[str, bool], left_out: set[str]) -> dict[str, Any]:
    """Accuracy over the clips that are not left out; None when none is left."""
    kept = [right for name, right in correct.items() if name not in left_out]
    return {
        "clips": len(kept),
        "left_out": len(correct) - len(kept),
        "accuracy": sum(kept) / len(kept) if kept else None,
    }
