"""Near duplicates: the same footage, or the same scene, in two videos.

1. Hash: small grey frames, and their changes over half a second (`vd.data.hashes`). The
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
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from vd.config import DataConfig, DecodeConfig
from vd.console import check_interrupt, say
from vd.data.crops import Images, as_coarse, crop, normalized, register, sampling
from vd.data.fingerprints import Fingerprint, Small, fingerprint_videos
from vd.data.hashes import (
    CROPS,
    FRAMES_PER_SECOND,
    LAG,
    STILL,
    WHOLE,
    WINDOWS,
    changes_of,
    near_hashes,
)
from vd.data.manifest import Video

_MOST = 8  # shifts in time, and pairs of frames, tried of two videos
_LEAST_OVERLAP, _LEAST_SHARE = 2, 0.5  # changes; of the shorter video
_HOPEFUL, _SAME_FOOTAGE = 0.4, 0.75  # correlation of the changes
_SAME_PLACE = 0.85  # mean correlation of the frames of the same footage
_SAME_SCENE = 0.99  # correlation of two frames

# kind, similarity and shift in seconds of two videos
Match = tuple[Literal["duplicate", "same-scene"], float, float]


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
    say(f"different files that show the same footage or scene: {len(pairs)} pairs")
    return [(pair.first, pair.second) for pair in pairs]


def find_pairs(fingerprints: Mapping[str, Fingerprint]) -> list[Pair]:
    """All pairs of the same footage or scene among videos, by name; the most alike first."""
    small = [one.small_Fx16x16 for one in fingerprints.values()]
    return _pairs(list(fingerprints), small)


def near_duplicates_of(
    known: Mapping[str, Small], others: Mapping[str, Small]
) -> set[str]:
    """Names of the other videos that show the footage or scene of a known one.

    Both are small grey frames by name, as fingerprints have them.
    """
    if not known or not others:
        return set()
    small = [*others.values(), *known.values()]
    pairs = _pairs([*others, *known], small, references=len(known))
    return {pair.first for pair in pairs}


def _pairs(
    names: Sequence[str], small: Sequence[Small], references: int = 0
) -> list[Pair]:
    """`find_pairs`; with `references`, the second of each pair is one of that many last."""
    if len(names) < 2:
        return []
    pairs: dict[tuple[int, int], Pair] = {}
    for first, second, mirrored, window, frames_Hx2 in near_hashes(small, references):
        check_interrupt()
        a, b = sorted((first, second))
        known = pairs.get((a, b))
        other = small[second][:, :, ::-1] if mirrored else small[second]
        if window == WHOLE:
            match = compare(small[first], other, frames_Hx2)
        elif known is not None and known.kind == "duplicate":
            continue
        else:
            match = _compare_crop(small[first], other, window, frames_Hx2)
        if match is not None:
            kind, similarity, shift = match
            shift = shift if first == a else -shift
            pair = Pair(names[a], names[b], kind, similarity, mirrored, shift)
            if known is None or _rank(pair) > _rank(known):
                pairs[a, b] = pair
    return sorted(pairs.values(), key=_rank, reverse=True)


def compare(
    first: Shaped[np.ndarray, "F 16 16"],
    second: Shaped[np.ndarray, "G 16 16"],
    frames_Hx2: Int[np.ndarray, "H 2"],
) -> Match | None:
    """Kind, similarity and shift of two videos; None when they are not alike.

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
    first_K, second_K = frames_Hx2[:: -(-len(frames_Hx2) // _MOST)].T
    alike_K = _alike(first[first_K], second[second_K])
    k = alike_K.argmax()
    if alike_K[k] < _SAME_SCENE:
        return None
    shift = float(first_K[k] - second_K[k])
    return "same-scene", float(alike_K[k]), shift / FRAMES_PER_SECOND


def _compare_crop(
    first: Small, second: Small, window: int, frames_Hx2: Int[np.ndarray, "H 2"]
) -> Match | None:
    """As `compare`, when the second shows about this window of the first; no scenes."""
    both = zip((first, second), frames_Hx2[0], strict=True)
    first_2x16x16, second_2x16x16 = (_frame_and_change(*one) for one in both)
    if _alike(crop(first_2x16x16, CROPS[window]), second_2x16x16).min() < _HOPEFUL:
        return None
    registered = register(first_2x16x16, second_2x16x16, WINDOWS[window])
    matrices = sampling(registered)
    match = compare(crop(first, matrices), as_coarse(second, matrices), frames_Hx2)
    return match if match is not None and match[0] == "duplicate" else None


def _frame_and_change(video: Small, number: int) -> Float32[np.ndarray, "2 16 16"]:
    frame, later = video[[number, number + LAG]].astype(np.float32)
    return np.stack([frame, later - frame])


def _correlation(first: np.ndarray, second: np.ndarray, shift: float) -> float:
    """Correlation of two videos' changes where they overlap; 0 where too little moves."""
    whole = math.floor(shift)
    if shift != whole:  # halfway between two frames
        second = (second[1:] + second[:-1]) / 2
        whole += 1
    a, b = _overlap(first, second, whole)
    if len(a) < max(_LEAST_OVERLAP, _LEAST_SHARE * min(len(first), len(second))):
        return 0.0
    powers = np.mean(a**2), np.mean(b**2)
    if min(powers) <= STILL**2:
        return 0.0
    return float(np.mean(a * b) / np.sqrt(powers[0] * powers[1]))


def _same_place(first: np.ndarray, second: np.ndarray, shift: float) -> bool:
    """Whether two videos' frames look alike where they overlap."""
    shifts = {math.floor(shift), math.ceil(shift)}
    means = [np.mean(_alike(*_overlap(first, second, whole))) for whole in shifts]
    return bool(max(means) >= _SAME_PLACE)


def _overlap(
    first: np.ndarray, second: np.ndarray, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of both videos at the same moments; the second is `shift` frames late."""
    begin = max(0, shift)
    end = max(begin, min(len(first), len(second) + shift))
    return first[begin:end], second[begin - shift : end - shift]


def _alike(first: Images, second: Images) -> Float[np.ndarray, "*N"]:
    """Correlation of each two images; 0 when one is a single grey."""
    return np.sum(normalized(first) * normalized(second), (-2, -1))


def _rank(pair: Pair) -> tuple[bool, float]:
    return pair.kind == "duplicate", pair.similarity
