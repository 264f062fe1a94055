"""Which clips a network has seen: those, their copies and their groups may not judge it.

The file of an adapted network lists the clips that it was made from (docs/data_format.md),
so a copy or a renamed folder changes nothing. A clip counts as seen by its content, as a
near duplicate by the rule of `vd audit`, or by its group.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vd.config import DataConfig, DecodeConfig
from vd.console import say
from vd.data.catalog import identify
from vd.data.manifest import Video
from vd.errors import VdError

if TYPE_CHECKING:
    from vd.data.fingerprints import Fingerprint

_PARTS = "trained_on", "chosen_on"

Row = Mapping[str, str]  # of a clip in a network's file


class Seen(NamedTuple):
    """What a network has seen of one data set: contents, near duplicates of them, groups."""

    ids: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()  # contents; none of them is in `ids`
    groups: frozenset[str] = frozenset()

    def among(self, videos: Iterable[Video]) -> list[Video]:
        """The seen ones of some videos of that data set."""
        ids = self.ids | self.copies
        return [v for v in videos if v.id in ids or v.group in self.groups]


def contents_fingerprint(videos: Iterable[Video]) -> str:
    """A hash over the contents of a data set's usable videos: no paths, splits or groups."""
    text = json.dumps(sorted({video.id for video in videos}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clip_rows(
    dataset: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> dict[str, Row]:
    """What a network's file says of each clip of a data set, by content hash.

    `dataset` are all usable clips; those without a fingerprint in the catalog are decoded.
    """
    from vd.data.fingerprints import as_text

    here = contents_fingerprint(dataset)
    groups = {video.id: video.group for video in dataset}
    return {
        video_id: {
            "id": video_id,
            "group": groups[video_id],
            "dataset": here,
            "fingerprint": as_text(fingerprint.small_Fx16x16),
        }
        for video_id, fingerprint in _fingerprints(dataset, data, decode).items()
    }


def seen_rows(
    trained_on: Iterable[Video], chosen_on: Iterable[Video], rows: Mapping[str, Row]
) -> dict[str, list[Row]]:
    """What a network's file says of the clips that it was made from.

    `rows` are the `clip_rows` of their data set. Raises `VdError` when one of them has
    no row, as after a clip could not be decoded for it.
    """
    trained_on, chosen_on = list(trained_on), list(chosen_on)
    for video in (*trained_on, *chosen_on):
        if video.id not in rows:
            raise VdError(
                f"{video.path} could not be decoded for its fingerprint, by which copies of "
                "what an adapted network has seen are found; put the file back, repair it, "
                "or leave it out."
            )
    return {
        part: [rows[video.id] for video in videos]
        for part, videos in zip(_PARTS, (trained_on, chosen_on), strict=True)
    }


def find_seen(
    rows: Mapping[str, Sequence[Row]],
    dataset: Sequence[Video],
    data: DataConfig,
    decode: DecodeConfig,
) -> Iterator[Seen]:
    """What a network has seen of a data set: at once by content and group, then with copies.

    `rows` are those of `seen_rows`. A group is seen when the network saw a clip of it in
    this data set under other splits, or when it contains a seen clip. Clips without a
    fingerprint in the catalog are decoded for it.
    """
    listed = [row for part in _PARTS for row in rows.get(part, ())]
    ids = {row["id"] for row in listed}
    groups = _seen_groups(listed, ids, dataset)
    yield Seen(frozenset(ids), groups=groups)
    others = [video for video in dataset if video.id not in ids]
    if not listed or not others:
        return
    from vd.data.fingerprints import from_text
    from vd.data.near_duplicates import near_duplicates_of

    known = {row["id"]: from_text(row["fingerprint"]) for row in listed}
    small = {
        video_id: one.small_Fx16x16
        for video_id, one in _fingerprints(others, data, decode).items()
    }
    if missing := {video.id for video in others} - small.keys():
        say(
            f"{len(missing)} clips could not be compared with those that the network has "
            "seen: their files are gone, changed or not decodable, and the catalog has no "
            "fingerprint of them"
        )
    copies = near_duplicates_of(known, small)
    # a file that cannot be decoded is no part of what the network's data set was
    usable = [video for video in dataset if video.id in ids or video.id in small]
    groups |= _seen_groups(listed, ids | copies, usable)
    yield Seen(frozenset(ids), frozenset(copies), groups)


def _seen_groups(
    listed: Iterable[Row], ids: set[str], dataset: Sequence[Video]
) -> frozenset[str]:
    """Groups of a data set that a network saw in just this set, or of these contents."""
    here = contents_fingerprint(dataset)
    groups = {row["group"] for row in listed if row["dataset"] == here}
    return frozenset(groups | {v.group for v in dataset if v.id in ids}) - {""}


def _fingerprints(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> "dict[str, Fingerprint]":
    """Fingerprints by content hash; of a file that is gone or changed, the catalog's."""
    from vd.data.fingerprints import fingerprint_videos, kept_fingerprints

    now = identify(videos, data.cache_dir)
    there = [b for a, b in zip(videos, now, strict=True) if a.id == b.id]
    kept = kept_fingerprints(videos, data.cache_dir)
    return kept | fingerprint_videos(there, data, decode)[1]


def check_unseen(
    backbone: str, seen: Seen, judging: Mapping[str, Sequence[Video]]
) -> None:
    """Raise `VdError` when the network has seen clips that calibrate or test a model.

    `judging` has these clips by split. `backbone` names the network's file.
    """
    if listed := _seen_counts(seen, judging):
        raise VdError(
            f"the backbone {backbone} was adapted on {listed}, which calibrate or test the "
            "model, on copies of them, or on clips of their groups, so figures would be too "
            "good; name clips that it has not seen, another --backbone, or adapt one on "
            "each training part with vd adapt or vd crossval --adapt."
        )


def check_apart(seen: Seen, judging: Mapping[str, Sequence[Video]]) -> None:
    """Raise `VdError` when a clip that calibrates or tests resembles one that would adapt.

    `seen` is what a backbone would have seen that is adapted on the training clips.
    """
    if listed := _seen_counts(seen, judging):
        example = next(v for part in judging.values() for v in seen.among(part))
        raise VdError(
            f"{listed}, for example {example.name!r}, have the content or group of a "
            "training clip or show the same footage or scene, so the figures of a backbone "
            "that is adapted on these would be too good; keep one of each, or let vd split "
            "--merge-duplicates put them into one part."
        )


def _seen_counts(seen: Seen, judging: Mapping[str, Sequence[Video]]) -> str:
    """How many clips of each split are seen, in words; "" when none is."""
    counts = {split: len(seen.among(videos)) for split, videos in judging.items()}
    return ", ".join(
        f"{count} of the {len(judging[split])} {split} clips"
        for split, count in counts.items()
        if count
    )
