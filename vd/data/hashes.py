"""Perceptual hashes of small grey frames, of their changes and of crops, and their search.

A hash is the signs of the 128 lowest DCT coefficients of an image (Zauner 2010). A
mirrored image has the same coefficients, the odd horizontal ones with the other sign.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float32, Int, Shaped, UInt8

from vd.data.crops import sampling
from vd.data.fingerprints import SIDE, Small

FRAMES_PER_SECOND = 8
LAG = 4  # frames: the change is over half a second
STILL = 1.0  # grey levels: a frame of less contrast, or change, is noise
WHOLE = -1  # in place of a window: the whole frame
_BITS = 128
_NEIGHBOURS, _NEAREST = 32, 8  # hashes looked at, and taken of other videos
# different bits of 128, at most: of frames, of their changes, of changes and their crops
_FRAME_DISTANCE, _CHANGE_DISTANCE, _CROP_DISTANCE = 12, 24, 30
_LEAST_KEYS = 4  # changes of a video whose crops are hashed
_DCT = scipy.fft.dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")
# rows and columns of the lowest coefficients, without the mean
_LOWEST = tuple(
    np.array(sorted(np.ndindex(SIDE, SIDE), key=lambda p: (sum(p), p))[1 : _BITS + 1]).T
)
_MIRROR = np.packbits(_LOWEST[1] % 2 == 1)  # the signs that a mirrored image inverts

# A hash bears an error of 4 % at each edge. So each crop of up to 15 % a side is near one
# of 16 windows, which cut two shares of each border.
_CUTS = 0.0375, 0.1125
WINDOWS = np.array(list(product(_CUTS, _CUTS, *[[1 - cut for cut in _CUTS]] * 2)))
CROPS = sampling(WINDOWS)
_COLUMNS, _ROWS = np.moveaxis(_DCT @ CROPS, 1, 0).astype(np.float32)

Codes = UInt8[np.ndarray, "N 16"]


class Hits(NamedTuple):
    """Two videos with near hashes."""

    first: int
    second: int
    mirrored: bool
    window: int  # of the first, in `WINDOWS`; or `WHOLE`
    frames_Hx2: Int[np.ndarray, "H 2"]  # of the first and of the second


class _Hashes(NamedTuple):
    codes_Nx16: Codes
    origins_Nx3: Int[np.ndarray, "N 3"]  # video, window, frame


def near_hashes(videos: Sequence[Small], references: int = 0) -> Iterator[Hits]:
    """Each two videos with near hashes of frames or changes, and the frames of these.

    Of each hash only the nearest few of other videos count, so that the many similar clips
    of one camera cost no more than their number. With `references`, that many last videos
    are compared with those before them alone.
    """
    frames, changes = _hashes(videos, False), _hashes(videos, True)
    crops = _crop_hashes(videos)
    both = _Hashes(*map(np.concatenate, zip(changes, crops, strict=True)))
    last_V = np.arange(len(videos)) >= len(videos) - references
    every_V = np.ones(len(videos), bool)
    sides = [(last_V, ~last_V), (~last_V, last_V)] if references else [(every_V,) * 2]
    tables = [
        _near(_of(stored, stored_V), _of(queries, queries_V), distance)
        for stored, queries, distance in (
            (frames, frames, _FRAME_DISTANCE),
            (both, changes, _CHANGE_DISTANCE),
        )
        for stored_V, queries_V in sides
    ]
    table = np.unique(np.concatenate(tables), axis=0)
    ends = np.flatnonzero(np.any(np.diff(table[:, :4], axis=0), axis=1)) + 1
    for part in np.split(table, ends) if len(table) else []:
        first, second, mirrored, window = part[0, :4].tolist()
        yield Hits(first, second, bool(mirrored), window, part[:, 4:])


def _of(hashes: _Hashes, chosen_V: Bool[np.ndarray, " V"]) -> _Hashes:
    """The hashes of some of the videos."""
    chosen_N = chosen_V[hashes.origins_Nx3[:, 0]]
    return _Hashes(hashes.codes_Nx16[chosen_N], hashes.origins_Nx3[chosen_N])


def _near(stored: _Hashes, queries: _Hashes, distance: int) -> Int[np.ndarray, "R 6"]:
    """Stored hashes of other videos near a query or its mirror image.

    `distance` is that of hashes of whole frames. Columns: first and second video, mirrored,
    window of the first, frame of each.
    """
    whole_N = stored.origins_Nx3[:, 1] == WHOLE
    distance_N = np.where(whole_N, distance, _CROP_DISTANCE)
    codes = np.concatenate([queries.codes_Nx16, queries.codes_Nx16 ^ _MIRROR])
    rows, places = neighbours(stored.codes_Nx16, codes, distance_N)
    mirrored, asked = np.divmod(rows, max(len(queries.codes_Nx16), 1))
    first, window, first_frame = stored.origins_Nx3[places].T
    second, _, second_frame = queries.origins_Nx3[asked].T
    table = np.stack([first, second, mirrored, window, first_frame, second_frame], 1)
    others = first != second
    rows, table = rows[others], table[others]
    # `rows` is sorted, and of each row the nearest come first
    table = table[np.arange(len(rows)) - np.searchsorted(rows, rows) < _NEAREST]
    # the crop is of the first, but whole frames have no order
    swapped = (table[:, 0] > table[:, 1]) & (table[:, 3] == WHOLE)
    table[swapped] = table[swapped][:, [1, 0, 2, 3, 5, 4]]
    return table


def neighbours(
    codes_Nx16: Codes, queries_Mx16: Codes, distance_N: Int[np.ndarray, "N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, code) of at most the code's distance in bits, nearest of a query first.

    An inverted file: codes are put to the nearest of about N / 400 centres, and a query
    looks at the codes of its 8 nearest centres. Below 4,000 codes it looks at all.
    """
    import faiss

    count = len(codes_Nx16)
    if not count:
        return np.zeros(0, int), np.zeros(0, int)
    cells = count // 400 if count >= 4000 else 1
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(_BITS), _BITS, cells)
    index.cp.niter, index.cp.max_points_per_centroid = 4, 64
    index.cp.min_points_per_centroid, index.cp.seed = 1, 0
    index.nprobe = min(8, cells)
    index.train(codes_Nx16)
    index.add(codes_Nx16)
    distances, columns = index.search(queries_Mx16, min(_NEIGHBOURS, count))
    near = (columns >= 0) & (distances <= distance_N[columns])
    return np.nonzero(near)[0], columns[near]


def changes_of(small: Small) -> Float32[np.ndarray, "C 16 16"]:
    """The change of each frame over the half second that follows."""
    frames = small.astype(np.float32)
    return frames[LAG:] - frames[:-LAG]


def codes_of(images_Nx16x16: Shaped[np.ndarray, "N 16 16"]) -> Codes:
    """The hash of each image."""
    return _signs(_DCT @ images_Nx16x16.astype(np.float32) @ _DCT.T)


def _signs(spectra: Float32[np.ndarray, "*N 16 16"]) -> Codes:
    return np.packbits(spectra[..., *_LOWEST] > 0, axis=-1).reshape(-1, _BITS // 8)


def _hashes(videos: Sequence[Small], changes: bool) -> _Hashes:
    """Hashes of the frames of all videos, or of their changes.

    Without those that are flat, still, or the same as the one before.
    """
    codes, origins = [], []
    for video, small in enumerate(videos):
        images = changes_of(small) if changes else small
        of_video = codes_of(images)
        power = np.mean(images**2.0, (1, 2)) if changes else images.var((1, 2))
        kept = power > STILL**2
        kept[1:] &= np.any(of_video[1:] != of_video[:-1], axis=1)
        codes.append(of_video[kept])
        origins.append(_origins(video, WHOLE, np.flatnonzero(kept)))
    return _Hashes(np.concatenate(codes), np.concatenate(origins))


def _crop_hashes(videos: Sequence[Small]) -> _Hashes:
    """Hashes of the crops of the strongest change of each second of all videos.

    A short video is cut into `_LEAST_KEYS` parts in place of seconds.
    """
    codes, origins = [], []
    for video, small in enumerate(videos):
        changes = changes_of(small)
        power = np.mean(changes**2, (1, 2))
        parts = max(_LEAST_KEYS, len(changes) // FRAMES_PER_SECOND)
        split = np.array_split(np.arange(len(changes)), parts)
        keys = np.array(
            [part[np.argmax(power[part])] for part in split if len(part)], int
        )
        keys = keys[power[keys] > STILL**2]
        codes.append(_signs(_ROWS @ changes[keys, None] @ _COLUMNS.swapaxes(1, 2)))
        origins.append(_origins(video, np.arange(len(WINDOWS)), keys[:, None]))
    return _Hashes(np.concatenate(codes), np.concatenate(origins))


def _origins(
    video: int, windows: int | np.ndarray, frames: np.ndarray
) -> Int[np.ndarray, "N 3"]:
    return np.stack(np.broadcast_arrays(video, windows, frames), -1).reshape(-1, 3)
