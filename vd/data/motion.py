"""Motion images: the signed difference of two frames, and the square that holds most of it.

A fight fills a small part of a surveillance frame; in the square it is seen larger.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

FINE = 448  # side of the squashed frame that squares are cut from, in pixels
ENERGY = 0.7  # share of the motion between a square's edges, along each axis
LEAST = 112  # side of the smallest square

Image = UInt8[np.ndarray, "H W 3"]


def difference(earlier_HxWx3: Image, later_HxWx3: Image) -> Image:
    """clip(127 + later − earlier, 0, 255)."""
    signed: Image = cv2.addWeighted(later_HxWx3, 1, earlier_HxWx3, -1, 127)
    return signed


def square_difference(earlier_HxWx3: Image, later_HxWx3: Image, side: int) -> Image:
    """The difference of two fine frames within the moving square, resized to `side`."""
    motion = difference(earlier_HxWx3, later_HxWx3)
    square = motion[moving_square(motion)]
    resized: Image = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return resized


def moving_square(motion_HxWx3: Image) -> tuple[slice, slice]:
    """Rows and columns of the square around the middle share of the motion's energy.

    Energy is the absolute difference, summed over colours. Along each axis the middle
    `ENERGY` of it lies between two lines; the square has the longer of the two distances
    as its side, `LEAST` at least, and their middle as its own, as far as the frame goes.
    """
    height, width = motion_HxWx3.shape[:2]
    energy_HxWx3 = cv2.absdiff(motion_HxWx3, np.full_like(motion_HxWx3, 127))
    flat = energy_HxWx3.reshape(height, 3 * width)  # one channel, which reduces faster
    middles, lengths = [], []
    for axis, length in ((1, height), (0, width)):
        sums = cv2.reduce(flat, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        share = np.cumsum(sums.reshape(length, -1).sum(1, dtype=np.int64) + 1e-9)
        tails = (1 - ENERGY) / 2 * share[-1], (1 + ENERGY) / 2 * share[-1]
        low, high = np.searchsorted(share, tails)
        middles.append((low + high) / 2)
        lengths.append(high - low)
    side = int(np.clip(max(lengths), LEAST, min(height, width)))
    starts = [
        int(np.clip(middle - side / 2, 0, length - side))
        for middle, length in zip(middles, (height, width), strict=True)
    ]
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns
