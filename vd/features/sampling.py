"""The geometry of a clip: which stored frames, which view, in training and in scoring.

Every draw is a function of (seed, step, index in the global batch, purpose), through
NumPy's Philox counter generator (Salmon et al. 2011): a resumed run and another number of
devices see the same draws.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

VIEWS = ("plain", "mirrored")
CLIP_DRAWS = 0  # the purpose that separates these draws from any other


def clip_generator(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator for the clip at `index` of the global batch of `step`."""
    return np.random.Generator(
        np.random.Philox(key=[seed, CLIP_DRAWS], counter=[0, 0, step, index])
    )


def training_frames(
    stored: int, clip_frames: int, jitter: float, generator: np.random.Generator
) -> Int[np.ndarray, " L"]:
    """Indices of a training clip's frames, L = min(stored, clip_frames).

    A window of L frames is drawn; its time axis is stretched about its middle by a factor
    in 1 ± jitter and shifted by up to ± jitter · L, to the nearest stored frame.
    """
    length = min(stored, clip_frames)
    start = generator.integers(stored - length + 1)
    factor = 1.0 + jitter * generator.uniform(-1.0, 1.0)
    shift = jitter * length * generator.uniform(-1.0, 1.0)
    middle = (length - 1) / 2
    positions = start + middle + (np.arange(length) - middle) * factor + shift
    return np.clip(np.rint(positions), 0, stored - 1).astype(np.int64)


def scoring_windows(stored: int, clip_frames: int) -> Iterator[Int[np.ndarray, " L"]]:
    """Windows that scoring averages: the fewest that cover a video, evenly spread."""
    length = min(stored, clip_frames)
    count = -(-stored // clip_frames)
    for start in np.rint(np.linspace(0, stored - length, count)).astype(np.int64):
        yield np.arange(start, start + length)
