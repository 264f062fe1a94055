"""Near duplicates: the same footage, or the same scene, in two videos.

1. Hash: signs of the 128 lowest DCT coefficients (a perceptual hash, Zauner 2010) of every
   small grey frame, and of its change over half a second. The change distinguishes footage
   of a still camera, whose frames all look alike. A mirrored picture has the same
   coefficients, the odd horizontal ones with the other sign.
2. Search: the nearest hashes of other videos, plain and mirrored, by an inverted file over
   binary codes (faiss), so the cost grows far slower than the number of pairs.
3. Verify: at the shifts in time that the hits suggest, the changes of both videos must
   correlate, and their frames too: the same ticker may run over many places. Where nothing
   moves, or only single frames agree, it is the same scene.

Thresholds were set on re-encoded, scaled, mirrored, trimmed and resampled copies of real
clips: docs/results.md.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from vd.audit.fingerprints import SIDE, Fingerprint, fingerprint_videos
from vd.config import DataConfig, DecodeConfig
from vd.console import check_interrupt, say
from vd.data.manifest import Video

FRAMES_PER_SECOND = 8
_BITS = 128
_LAG = 4  # frames: the change is over half a second
_NEIGHBOURS, _NEAREST = 32, 8  # hashes looked at, and taken of other videos
_MOST = 8  # shifts in time, and pairs of frames, tried of two videos
_FRAME_DISTANCE, _CHANGE_DISTANCE = 12, 24  # bits of 128
_STILL = 1.0  # grey levels: a frame of less contrast, or change, is noise
_LEAST_OVERLAP, _LEAST_SHARE = 2, 0.5  # changes; of the shorter video
_HOPEFUL, _SAME_FOOTAGE = 0.4, 0.75  # correlation of the changes
_SAME_PLACE = 0.9  # mean correlation of the frames of the same footage
_SAME_SCENE = 0.99  # correlation of two frames
# rows and columns of the lowest coefficients, without the mean
_LOWEST = tuple(
    np.array(sorted(np.ndindex(SIDE, SIDE), key=lambda p: (sum(p), p))[1 : _BITS + 1]).T
)
_MIRROR = np.packbits(_LOWEST[1] % 2 == 1)  # the signs that a mirrored image inverts

Small = UInt8[np.ndarray, "F 16 16"]
Codes = UInt8[np.ndarray, "N 16"]


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
    small = {name: one.small_Fx16x16 for name, one in fingerprints.items()}
    names = list(small)
    pairs: dict[tuple[int, int], Pair] = {}
    for a, b, mirrored, frames_Hx2 in _hits(small.values()):
        check_interrupt()
        second = small[names[b]][:, :, ::-1] if mirrored else small[names[b]]
        match = compare(small[names[a]], second, frames_Hx2)
        if match is None:
            continue
        pair = Pair(names[a], names[b], *match[:2], mirrored, match[2])
        if (a, b) not in pairs or _rank(pair) > _rank(pairs[a, b]):
            pairs[a, b] = pair
    return sorted(pairs.values(), key=_rank, reverse=True)


def compare(
    first: Small, second: Small, frames_Hx2: Int[np.ndarray, "H 2"]
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
        best = max(best, *(_correlation(*changes, shift + h) for h in (-0.5, 0.5)))
    if best >= _SAME_FOOTAGE and _same_place(first, second, shift):
        return "duplicate", best, shift / FRAMES_PER_SECOND
    step = -(-len(frames_Hx2) // _MOST)
    alike, shift = max(
        (_alike(first[i], second[j]), i - j) for i, j in frames_Hx2[::step].tolist()
    )
    if alike >= _SAME_SCENE:
        return "same-scene", alike, shift / FRAMES_PER_SECOND
    return None


def _hits(
    videos: Collection[Small],
) -> Iterator[tuple[int, int, bool, Int[np.ndarray, "H 2"]]]:
    """Each two videos with near hashes, whether mirrored, and the frames that are near.

    Of each hash only the nearest few of other videos count, so that the many similar clips
    of one camera cost no more than their number.
    """
    tables = []
    for changes, distance in ((False, _FRAME_DISTANCE), (True, _CHANGE_DISTANCE)):
        codes, owner_N, frame_N = _hashes(videos, changes)
        queries = np.concatenate([codes, codes ^ _MIRROR])
        rows, places = neighbours(codes, queries, distance)
        mirrored, hashes = np.divmod(rows, max(len(codes), 1))
        others = owner_N[hashes] != owner_N[places]
        rows, hashes, places, mirrored = (
            column[others] for column in (rows, hashes, places, mirrored)
        )
        # `rows` is sorted, and of each row the nearest come first
        nearest = np.arange(len(rows)) - np.searchsorted(rows, rows) < _NEAREST
        hashes, places = hashes[nearest], places[nearest]
        first, second = owner_N[hashes], owner_N[places]
        table = np.stack(
            [first, second, mirrored[nearest], frame_N[hashes], frame_N[places]], axis=1
        )
        swapped = first > second
        table[swapped] = table[swapped][:, [1, 0, 2, 4, 3]]
        tables.append(table)
    table = np.unique(np.concatenate(tables), axis=0)
    ends = np.flatnonzero(np.any(np.diff(table[:, :3], axis=0), axis=1)) + 1
    for part in np.split(table, ends) if len(table) else []:
        a, b, mirror = part[0, :3].tolist()
        yield a, b, bool(mirror), part[:, 3:]


def neighbours(
    codes_Nx16: Codes, queries_Mx16: Codes, distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, code) of at most `distance` different bits, the nearest of each query.

    An inverted file: codes are put to the nearest of about N / 400 centres, and a query
    looks at the codes of its 8 nearest centres. Below 4,000 codes it looks at all.
    """
    import faiss

    count = len(codes_Nx16)
    if not count:
        return np.zeros(0, int), np.zeros(0, int)
    cells = count // 400 if count >= 4000 else 1
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(_BITS), _BITS, cells)
    index.cp.niter, index.cp.max_points_per_centroid = 10, 64
    index.cp.min_points_per_centroid, index.cp.seed = 1, 0
    index.nprobe = min(8, cells)
    index.train(codes_Nx16)
    index.add(codes_Nx16)
    distances, columns = index.search(queries_Mx16, min(_NEIGHBOURS, count))
    near = (columns >= 0) & (distances <= distance)
    return np.nonzero(near)[0], columns[near]


def changes_of(small: Small) -> Float32[np.ndarray, "C 16 16"]:
    """The change of each frame over the half second that follows."""
    frames = small.astype(np.float32)
    return frames[_LAG:] - frames[:-_LAG]


def codes_of(images: np.ndarray) -> Codes:
    """The hash of each image, (N, 16, 16): signs of its lowest DCT coefficients but the mean."""
    spectra = [cv2.dct(image)[_LOWEST] for image in images.astype(np.float32)]
    return np.packbits(np.array(spectra).reshape(-1, _BITS) > 0, axis=1)


def _hashes(
    videos: Collection[Small], changes: bool
) -> tuple[Codes, np.ndarray, np.ndarray]:
    """Hashes of the frames of all videos, or of their changes; video and frame of each.

    Without those that are flat, still, or the same as the one before.
    """
    codes, owners, frames = [], [], []
    for owner, small in enumerate(videos):
        images = changes_of(small) if changes else small
        of_video = codes_of(images)
        power = np.mean(images**2.0, (1, 2)) if changes else images.var((1, 2))
        kept = power > _STILL**2
        kept[1:] &= np.any(of_video[1:] != of_video[:-1], axis=1)
        codes.append(of_video[kept])
        frames.append(np.flatnonzero(kept))
        owners.append(np.full(kept.sum(), owner))
    return np.concatenate(codes), np.concatenate(owners), np.concatenate(frames)


def _correlation(first: np.ndarray, second: np.ndarray, shift: float) -> float:
    """Correlation of two videos' changes where they overlap; 0 where too little moves."""
    whole = int(np.floor(shift))
    if shift != whole:  # halfway between two frames
        second = (second[1:] + second[:-1]) / 2
        whole += 1
    begin, end = max(0, whole), min(len(first), len(second) + whole)
    if end - begin < max(_LEAST_OVERLAP, _LEAST_SHARE * min(len(first), len(second))):
        return 0.0
    a, b = first[begin:end], second[begin - whole : end - whole]
    powers = np.mean(a**2), np.mean(b**2)
    if min(powers) <= _STILL**2:
        return 0.0
    return float(np.mean(a * b) / np.sqrt(powers[0] * powers[1]))


def _same_place(first: Small, second: Small, shift: int) -> bool:
    """Whether two videos' frames look alike where they overlap."""
    begin, end = max(0, shift), min(len(first), len(second) + shift)
    alike = [_alike(first[i], second[i - shift]) for i in range(begin, end)]
    return float(np.mean(alike)) >= _SAME_PLACE


def _alike(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two small frames; 0 when one is a single grey."""
    a, b = (frame - frame.mean() for frame in (first, second))
    power = np.sum(a**2) * np.sum(b**2)
    return float(np.sum(a * b) / np.sqrt(power)) if power else 0.0


def _rank(pair: Pair) -> tuple[bool, float]:
    return pair.kind == "duplicate", pair.similarity
