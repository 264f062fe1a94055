"""The geometry of a clip: which stored frames, which view, in training and in scoring.

Every draw is a function of (seed, step, index in the global batch, purpose), through
NumPy's Philox counter generator (Salmon et al. 2011): a resumed run and another number of
devices see the same draws.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

VIEWS = ("plain", "mirrored")
CLIP_DRAWS = 0  # the purpose that separates these draws from any other


class ClipDraws(NamedTuple):
    """What is drawn for each training clip: a view, a window, a stretch and a shift of it."""

    view_B: Int[np.ndarray, " B"]
    start_B: Int[np.ndarray, " B"]  # the window's first frame
    stretch_B: Float[np.ndarray, " B"]  # in -1 to 1, as the shift
    shift_B: Float[np.ndarray, " B"]


def draw_clips(
    seed: int,
    step: int,
    index_B: Int[np.ndarray, " B"],
    stored_B: Int[np.ndarray, " B"],
    clip_frames: int,
    views: int,
) -> ClipDraws:
    """Draws for the clips at `index_B` of the global batch of `step`, of `stored_B` frames."""
    bits = np.random.Philox(key=[seed, CLIP_DRAWS])
    generator, state = np.random.Generator(bits), bits.state
    starts_B = stored_B - np.minimum(stored_B, clip_frames) + 1
    drawn = []
    for index, starts in zip(index_B.tolist(), starts_B.tolist(), strict=True):
        state["state"]["counter"][:] = 0, 0, step, index
        bits.state = state  # a quarter of what a generator of its own costs
        view, start = generator.integers(views), generator.integers(starts)
        drawn.append((view, start, *generator.random(2).tolist()))
    view_B, start_B, stretch_B, shift_B = map(np.array, zip(*drawn, strict=True))
    return ClipDraws(view_B, start_B, 2 * stretch_B - 1, 2 * shift_B - 1)


def middle_clips(stored_B: Int[np.ndarray, " B"], clip_frames: int) -> ClipDraws:
    """No draws: the middle one of the windows that scoring averages, as it is."""
    windows_B = [list(scoring_windows(stored, clip_frames)) for stored in stored_B]
    start_B = np.array([windows[len(windows) // 2][0] for windows in windows_B])
    zero_B = np.zeros_like(start_B)
    return ClipDraws(zero_B, start_B, zero_B, zero_B)


def training_frames(
    stored_B: Int[np.ndarray, " B"], clip_frames: int, jitter: float, draws: ClipDraws
) -> tuple[Int[np.ndarray, "B T"], Float32[np.ndarray, "B T"]]:
    """Indices of training clips' frames, and the mask: 1 for the first min(stored, T).

    A clip is a window of that length L; its time axis is stretched about its middle by a
    factor in 1 ± jitter and shifted by up to ± jitter · L, to the nearest stored frame.
    """
    length_B = np.minimum(stored_B, clip_frames)
    factor_B = 1.0 + jitter * draws.stretch_B
    shift_B = jitter * length_B * draws.shift_B
    middle_B = (length_B - 1) / 2
    number_T = np.arange(clip_frames)
    positions_BxT = (
        (draws.start_B + middle_B)[:, None]
        + (number_T - middle_B[:, None]) * factor_B[:, None]
        + shift_B[:, None]
    )
    frames_BxT = np.clip(np.rint(positions_BxT), 0, stored_B[:, None] - 1)
    mask_BxT = number_T < length_B[:, None]
    return (frames_BxT * mask_BxT).astype(np.int64), mask_BxT.astype(np.float32)


def scoring_windows(stored: int, clip_frames: int) -> Iterator[Int[np.ndarray, " L"]]:
    """Windows that scoring averages: consecutive blocks, and a last one that ends at the end.

    A recording can be scored while it comes, with no more than `clip_frames` frames kept.
    """
    length = min(stored, clip_frames)
    for start in range(0, stored, clip_frames):
        first = min(start, stored - length)
        yield np.arange(first, first + length)
