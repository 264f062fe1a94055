"""Which clips a network has seen: those, and their groups, may not judge it.

The file of an adapted network lists the clips that it was made from (docs/data_format.md),
so a copy or a renamed folder changes nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vd.data.manifest import Video
from vd.errors import VdError

_PARTS = "trained_on", "chosen_on"


class Seen(NamedTuple):
    """Contents that a network has seen, and groups of one data set."""

    ids: set[str]
    groups: set[str]

    def among(self, videos: Iterable[Video]) -> list[Video]:
        """The seen ones of some videos of that data set."""
        return [v for v in videos if v.id in self.ids or v.group in self.groups]


def contents_fingerprint(videos: Iterable[Video]) -> str:
    """A hash over the contents of a data set's usable videos: no paths, splits or groups."""
    text = json.dumps(sorted({video.id for video in videos}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seen_rows(
    trained_on: Iterable[Video], chosen_on: Iterable[Video], dataset: str
) -> dict[str, list[dict[str, str]]]:
    """What a network's file says of the clips that it was made from.

    `dataset` is the `contents_fingerprint` of the data set that their groups belong to.
    """
    return {
        part: [
            {"id": video.id, "group": video.group, "dataset": dataset}
            for video in videos
        ]
        for part, videos in zip(_PARTS, (trained_on, chosen_on), strict=True)
    }


def find_seen(rows: Mapping[str, Any], dataset: Sequence[Video]) -> Seen:
    """What a network has seen of a data set, whose usable videos are `dataset`.

    `rows` are those of `seen_rows`. A group is seen when a network saw a clip of it in this
    data set under other splits, or when it contains a seen content.
    """
    listed = [row for part in _PARTS for row in rows.get(part, ())]
    ids = {row["id"] for row in listed}
    here = contents_fingerprint(dataset)
    groups = {row["group"] for row in listed if row.get("dataset") == here}
    groups |= {video.group for video in dataset if video.id in ids}
    return Seen(ids, groups - {""})


def check_unseen(
    backbone: str,
    rows: Mapping[str, Any],
    judging: Mapping[str, Sequence[Video]],
    dataset: Sequence[Video],
) -> None:
    """Raise `VdError` when the network has seen clips that calibrate or test a model.

    `judging` has these clips by split. `backbone` names the network's file.
    """
    if not rows:
        return
    seen = find_seen(rows, dataset)
    counts = {split: len(seen.among(videos)) for split, videos in judging.items()}
    if not any(counts.values()):
        return
    listed = ", ".join(
        f"{count} of the {len(judging[split])} {split} clips"
        for split, count in counts.items()
        if count
    )
    raise VdError(
        f"the backbone {backbone} was adapted on {listed}, which calibrate or test the "
        "model, or on clips of their groups, so figures would be too good; name clips that "
        "it has not seen, another --backbone, or adapt one on each training part with vd "
        "adapt or vd crossval --adapt."
    )
