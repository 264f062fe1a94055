"""Near duplicates: the same footage, or the same scene, in two videos.

1. Hash: small grey frames, and their changes over half a second (`vd.audit.hashes`). The
   change distinguishes footage of a still camera, whose frames all look alike.
2. Search: the nearest hashes of other videos, plain and mirrored, by an inverted file over
   binary codes (faiss), so the cost grows far slower than the number of pairs. The hashes
   of 16 fixed crops of the strongest changes are searched too.
3. Verify: at the shifts in time that the hits suggest, the changes of both videos must
   correlate, and their frames too: the same ticker may run over many places. Where nothing
   moves, or only single frames agree, it is the same scene. A crop is registered first:
   its edges move until it correlates most with the other video's frame and change.

Thresholds were set on altered copies of real clips: docs/results.md.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from vd.audit.crops import as_coarse, crop, normalized, register
from vd.audit.fingerprints import Fingerprint, fingerprint_videos
from vd.audit.hashes import (
    FRAMES_PER_SECOND,
    LAG,
    STILL,
    WHOLE,
    WINDOWS,
    Hits,
    Small,
    changes_of,
    near_hashes,
)
from vd.config import DataConfig, DecodeConfig
from vd.console import check_interrupt, say
from vd.data.manifest import Video

_MOST = 8  # shifts in time, and pairs of frames, tried of two videos
_LEAST_OVERLAP, _LEAST_SHARE = 2, 0.5  # changes; of the shorter video
_HOPEFUL, _SAME_FOOTAGE = 0.4, 0.75  # correlation of the changes
_SAME_PLACE = 0.85  # mean correlation of the frames of the same footage
_SAME_SCENE = 0.99  # correlation of two frames
_REGISTERED_AT_ONCE = 1000  # crops, 4 kB each and several times that meanwhile


class Pair(NamedTuple):
    """Two videos of the same footage or scene; the second begins `shift` s into the first."""

    first: str
    second: str
    kind: Literal["duplicate", "same-scene"]
    similarity: float  # correlation, 1 at most
    mirrored: bool
    shift: float


def duplicate_ids(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> list[tuple[str, str]]:
    """Pairs of ids of videos that show the same footage or scene; decodes every file."""
    pairs = find_pairs(fingerprint_videos(videos, data, decode)[1])
    say(f"{len(pairs)} pairs of different files show the same footage or scene")
    return [(pair.first, pair.second) for pair in pairs]


def find_pairs(fingerprints: Mapping[str, Fingerprint]) -> list[Pair]:
    """All pairs of the same footage or scene among videos, by name; the most alike first."""
    if len(fingerprints) < 2:
        return []
    names = list(fingerprints)
    small = [one.small_Fx16x16 for one in fingerprints.values()]
    pairs: dict[tuple[int, int], Pair] = {}
    crops: dict[tuple[int, int], list[Hits]] = defaultdict(list)
    for hits in near_hashes(small):
        check_interrupt()
        a, b, mirrored, window, frames_Hx2 = hits
        if window != WHOLE:
            crops[min(a, b), max(a, b)].append(hits)
            continue
        match = compare(small[a], _seen(small[b], mirrored), frames_Hx2)
        if match is not None:
            pair = Pair(names[a], names[b], *match[:2], mirrored, match[2])
            if (a, b) not in pairs or _rank(pair) > _rank(pairs[a, b]):
                pairs[a, b] = pair
    unknown = [
        hits
        for key, of_pair in crops.items()
        if key not in pairs or pairs[key].kind != "duplicate"
        for hits in of_pair
    ]
    for hits, similarity, shift in _crops(small, unknown):
        a, b = sorted((hits.first, hits.second))
        shift = shift if a == hits.first else -shift
        pairs[a, b] = Pair(
            names[a], names[b], "duplicate", similarity, hits.mirrored, shift
        )
    return sorted(pairs.values(), key=_rank, reverse=True)


def _crops(
    small: Sequence[Small], hits: Sequence[Hits]
) -> Iterator[tuple[Hits, float, float]]:
    """Hits whose second video is a crop of the first; similarity and shift in seconds.

    `hits` lists all hits of two videos one after the other; the best of them counts.
    """
    for begin in range(0, len(hits), _REGISTERED_AT_ONCE):
        check_interrupt()
        some = hits[begin : begin + _REGISTERED_AT_ONCE]
        first_Nx2x16x16 = _frames_and_changes(small, some, second=False)
        second_Nx2x16x16 = _frames_and_changes(small, some, second=True)
        windows_Nx4 = WINDOWS[[one.window for one in some]]
        cropped_Nx2x16x16 = normalized(crop(first_Nx2x16x16, windows_Nx4[:, None]))
        alike_Nx2 = np.sum(cropped_Nx2x16x16 * normalized(second_Nx2x16x16), (2, 3))
        best: dict[tuple[int, int], int] = {}
        for i in np.argsort(alike_Nx2.sum(1)).tolist():
            if alike_Nx2[i].min() >= _HOPEFUL:
                key = some[i].first, some[i].second
                best[min(key), max(key)] = i
        chosen = list(best.values())
        windows_Cx4 = register(
            first_Nx2x16x16[chosen], second_Nx2x16x16[chosen], windows_Nx4[chosen]
        )
        for i, window in zip(chosen, windows_Cx4, strict=True):
            one = some[i]
            second = _seen(small[one.second], one.mirrored).astype(np.float32)
            match = compare(
                crop(small[one.first].astype(np.float32), window),
                as_coarse(second, window),
                one.frames_Hx2,
            )
            if match is not None and match[0] == "duplicate":
                yield one, *match[1:]


def _frames_and_changes(
    small: Sequence[Small], hits: Sequence[Hits], second: bool
) -> Float32[np.ndarray, "N 2 16 16"]:
    """The first near frame, and its change, of the first or second video of each hit."""
    images = []
    for one in hits:
        video = one.second if second else one.first
        frame = one.frames_Hx2[0, int(second)]
        both = small[video][[frame, frame + LAG]].astype(np.float32)
        images.append(_seen(both, second and one.mirrored))
    images_Nx2x16x16 = np.stack(images)
    images_Nx2x16x16[:, 1] -= images_Nx2x16x16[:, 0]
    return images_Nx2x16x16


def _seen(images: np.ndarray, mirrored: bool) -> np.ndarray:
    return images[:, :, ::-1] if mirrored else images


def compare(
    first: np.ndarray, second: np.ndarray, frames_Hx2: Int[np.ndarray, "H 2"]
) -> tuple[Literal["duplicate", "same-scene"], float, float] | None:
    """Kind, similarity and shift in seconds of two videos; None when they are not alike.

    `frames_Hx2` (at least one) are frames of the first and of the second that look alike,
    or after which both change alike; only their commonest shifts in time are tried.
    """
    shifts, counts = np.unique(frames_Hx2[:, 0] - frames_Hx2[:, 1], return_counts=True)
    changes = changes_of(first), changes_of(second)
    commonest = shifts[np.argsort(-counts, kind="stable")[:_MOST]].tolist()
    best, shift = max((_correlation(*changes, shift), shift) for shift in commonest)
    if _HOPEFUL < best < _SAME_FOOTAGE:
        # a copy's frames may lie between the original's
        between = shift - 0.5, shift + 0.5
        best, shift = max(
            (best, shift), *((_correlation(*changes, s), s) for s in between)
        )
    if best >= _SAME_FOOTAGE and _same_place(first, second, shift):
        return "duplicate", best, shift / FRAMES_PER_SECOND
    step = -(-len(frames_Hx2) // _MOST)
    alike, shift = max(
        (_alike(first[i], second[j]), i - j) for i, j in frames_Hx2[::step].tolist()
    )
    if alike >= _SAME_SCENE:
        return "same-scene", alike, shift / FRAMES_PER_SECOND
    return None


def _correlation(first: np.ndarray, second: np.ndarray, shift: float) -> float:
    """Correlation of two videos' changes where they overlap; 0 where too little moves."""
    whole = math.floor(shift)
    if shift != whole:  # halfway between two frames
        second = (second[1:] + second[:-1]) / 2
        whole += 1
    begin, end = max(0, whole), min(len(first), len(second) + whole)
    if end - begin < max(_LEAST_OVERLAP, _LEAST_SHARE * min(len(first), len(second))):
        return 0.0
    a, b = first[begin:end], second[begin - whole : end - whole]
    powers = np.mean(a**2), np.mean(b**2)
    if min(powers) <= STILL**2:
        return 0.0
    return float(np.mean(a * b) / np.sqrt(powers[0] * powers[1]))


def _same_place(first: np.ndarray, second: np.ndarray, shift: float) -> bool:
    """Whether two videos' frames look alike where they overlap."""
    means = []
    for whole in {math.floor(shift), math.ceil(shift)}:
        begin, end = max(0, whole), min(len(first), len(second) + whole)
        alike = [_alike(first[i], second[i - whole]) for i in range(begin, end)]
        means.append(np.mean(alike))
    return bool(max(means) >= _SAME_PLACE)


def _alike(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two small frames; 0 when one is a single grey."""
    a, b = (frame - frame.mean() for frame in (first, second))
    power = np.sum(a**2) * np.sum(b**2)
    return float(np.sum(a * b) / np.sqrt(power)) if power else 0.0


def _rank(pair: Pair) -> tuple[bool, float]:
    return pair.kind == "duplicate", pair.similarity
