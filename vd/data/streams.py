"""Streams: the images of each kept frame that the backbone sees.

To add one, write a function of a frame and its later one, give it an entry in `STREAMS`, and
name it in a preset (`vd.features.backbone.PRESETS`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

_FINE = 448  # side of the squashed frame that squares are cut from, in pixels
_ENERGY = 0.7  # share of the motion between a square's edges, along each axis
_LEAST = 112  # side of the smallest square

Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Stream:
    """One image a kept frame; resized to the backbone's input if it has another size."""

    image: Callable[[Image, Image], Image]  # of a frame and the later one
    side: int | None = None  # of the squashed frames it sees; None: the input's size
    settings: Mapping[str, Any] = field(default_factory=dict)  # part of the fingerprint


def difference(earlier_HxWx3: Image, later_HxWx3: Image) -> Image:
    """clip(127 + later − earlier, 0, 255)."""
    signed: Image = cv2.addWeighted(later_HxWx3, 1, earlier_HxWx3, -1, 127)
    return signed


def square(earlier_HxWx3: Image, later_HxWx3: Image) -> Image:
    """The difference within the square that holds most of the motion."""
    motion = difference(earlier_HxWx3, later_HxWx3)
    return motion[moving_square(motion)]


def moving_square(motion_HxWx3: Image) -> tuple[slice, slice]:
    """Rows and columns of the square around the middle share of the motion's energy.

    Energy is the absolute difference, summed over colours. Along each axis the middle
    `_ENERGY` of it lies between two lines; the square has the longer of the two distances
    as its side, `_LEAST` at least, and their middle as its own, as far as the frame goes.
    """
    height, width = motion_HxWx3.shape[:2]
    energy_HxWx3 = cv2.absdiff(motion_HxWx3, np.full_like(motion_HxWx3, 127))
    flat = energy_HxWx3.reshape(height, 3 * width)  # one channel, which reduces faster
    middles, lengths = [], []
    for axis, length in ((1, height), (0, width)):
        sums = cv2.reduce(flat, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        share = np.cumsum(sums.reshape(length, -1).sum(1, dtype=np.int64) + 1e-9)
        tails = (1 - _ENERGY) / 2 * share[-1], (1 + _ENERGY) / 2 * share[-1]
        low, high = np.searchsorted(share, tails)
        middles.append((low + high) / 2)
        lengths.append(high - low)
    side = int(np.clip(max(lengths), _LEAST, min(height, width)))
    starts = [
        int(np.clip(middle - side / 2, 0, length - side))
        for middle, length in zip(middles, (height, width), strict=True)
    ]
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns


STREAMS: dict[str, Stream] = {
    "rgb": Stream(lambda earlier, later: earlier),
    "motion": Stream(difference),
    # A fight fills a small part of a surveillance frame; its square shows it larger.
    "square": Stream(
        square, _FINE, {"fine": _FINE, "energy": _ENERGY, "least": _LEAST}
    ),
}


def stream_settings(streams: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of the named streams that have any, in JSON values."""
    return {
        name: dict(STREAMS[name].settings) for name in streams if STREAMS[name].settings
    }
