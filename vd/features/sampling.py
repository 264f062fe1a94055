"""The geometry of a clip: which stored frames, which view, in training and in scoring.

Every draw is a function of (seed, step, index in the global batch, purpose), through
NumPy's Philox counter generator (Salmon et al. 2011): a resumed run and another number of
devices see the same draws.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Float64, Int

from vd.data.clock import FRAMES_PER_SECOND

VIEWS = ("plain", "mirrored")
CLIP_DRAWS = 0  # the purpose that separates these draws from any other
_ROUNDING = 1e-6  # seconds


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


def window_length(seconds_N: Float[np.ndarray, " N"], clip_frames: int) -> float:
    """Seconds of a sliding window: the median training clip's, at most `clip_frames`."""
    frames = round(float(np.median(seconds_N)) * FRAMES_PER_SECOND)
    return min(max(frames, 1), clip_frames) / FRAMES_PER_SECOND


class Window(NamedTuple):
    """A window in time: the newest `frames` frames when it was complete."""

    start: float  # seconds
    end: float
    frames: int
    after_gap: bool  # the first one after a gap

    @property
    def middle(self) -> float:
        """Where the value of the window stands, in seconds."""
        return (self.start + self.end) / 2


class TimedFeatures(NamedTuple):
    """Features of a video's frames, and their times."""

    features_FxD: Float16[np.ndarray, "F D"]
    seconds_F: Float64[np.ndarray, " F"]
    after_gap_F: Bool[np.ndarray, " F"]  # whether it is the first one after a gap


class SlidingWindows:
    """Windows of `length` seconds, each `stride` seconds, over frames as they come.

    None spans a gap; a piece between gaps that is shorter is one window. A window holds at
    most the newest `most_frames` of its frames; one without a frame, as a slow video has,
    is left out.
    """

    def __init__(self, length: float, stride: float, most_frames: int) -> None:
        self._length, self._stride = length, stride
        self._newest: deque[float] = deque(maxlen=most_frames)  # seconds, of this piece
        self._begin = 0.0  # of this piece
        self._windows = 0  # of this piece so far
        self._is_first_piece = True

    def push(self, seconds: float, after_gap: bool = False) -> list[Window]:
        """Take the next frame; the windows that the frames before it complete."""
        windows = self.finish() if after_gap else self._until(seconds)
        if not self._newest:
            self._begin = seconds
        self._newest.append(seconds)
        return windows

    def finish(self) -> list[Window]:
        """No frame follows, or a gap: the windows that are complete, or the whole piece."""
        if not self._newest:
            return []
        end = self._newest[-1] + 1 / FRAMES_PER_SECOND
        windows = self._until(end)
        if not self._windows:
            windows = self._window(self._begin, end)
        self._newest.clear()
        self._windows, self._is_first_piece = 0, False
        return windows

    def _until(self, seconds: float) -> list[Window]:
        """The windows of this piece that end by then; the newest frames are before."""
        windows = list[Window]()
        while self._newest:
            start = self._begin + self._windows * self._stride
            if start + self._length > seconds + _ROUNDING:
                break
            windows += self._window(start, start + self._length)
            self._windows += 1
        return windows

    def _window(self, start: float, end: float) -> list[Window]:
        frames = sum(seconds >= start - _ROUNDING for seconds in self._newest)
        after_gap = not self._windows and not self._is_first_piece
        return [Window(start, end, frames, after_gap)] if frames else []


def windows_of(
    video: TimedFeatures, length: float, stride: float, most_frames: int
) -> list[Float16[np.ndarray, "L D"]]:
    """The features of each of `SlidingWindows` over a whole video."""
    sliding, windows = SlidingWindows(length, stride, most_frames), []
    for number, (seconds, after_gap) in enumerate(
        zip(video.seconds_F.tolist(), video.after_gap_F.tolist(), strict=True)
    ):
        complete = sliding.push(seconds, after_gap)
        windows += [video.features_FxD[number - w.frames : number] for w in complete]
    count = len(video.seconds_F)
    rest = sliding.finish()
    return windows + [video.features_FxD[count - w.frames : count] for w in rest]
