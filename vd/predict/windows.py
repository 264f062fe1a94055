"""The frames of one source, cut into what is scored, as they come; T frames are kept."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16

from vd.features.sampling import SlidingWindows, Window

Features = Float16[np.ndarray, "L D"]
Span = tuple[float, float]


class Cut(NamedTuple):
    """Frames to score: a window in time, or with None a block of the clip's own number."""

    features_LxD: Features
    window: Window | None


class Cutter:
    """Cuts frames into sliding windows, and into the blocks whose mean is the clip's logit.

    The blocks are those of `vd.features.sampling.scoring_windows`.
    """

    def __init__(self, clip_frames: int, length: float, stride: float) -> None:
        self.frames = 0
        self._clip_frames = clip_frames
        self._rows: deque[np.ndarray] = deque(maxlen=clip_frames)
        self._sliding = SlidingWindows(length, stride, clip_frames)

    @property
    def is_longer_than_a_clip(self) -> bool:
        """Whether more frames came than a clip has."""
        return self.frames > self._clip_frames

    def push(
        self, row_D: Float16[np.ndarray, " D"], seconds: float, after_gap: bool
    ) -> list[Cut]:
        """Take a frame; what it completes, in order of time."""
        cuts = self._cut(self._sliding.push(seconds, after_gap))
        self._rows.append(row_D)
        self.frames += 1
        if self.frames % self._clip_frames == 0:
            cuts.append(self._block())
        return cuts

    def gap(self) -> list[Cut]:
        """Nothing comes for now: the windows that are complete, and none spans what follows."""
        return self._cut(self._sliding.finish())

    def finish(self) -> list[Cut]:
        """No frame follows: the windows that are complete, and the last block."""
        cuts = self.gap()
        if self.frames % self._clip_frames:
            cuts.append(self._block())
        return cuts

    def _cut(self, windows: list[Window]) -> list[Cut]:
        return [Cut(np.stack([*self._rows][-w.frames :]), w) for w in windows]

    def _block(self) -> Cut:
        return Cut(np.stack(self._rows), None)


def with_lost(gaps: Sequence[Span], lost: Sequence[Span]) -> list[tuple[float, float]]:
    """Gaps of the clock, and spans where frames do not decode; start and length each.

    What is lost about a gap of the clock is that gap, whose times are exact.
    """
    more = [
        (start, length)
        for start, length in lost
        if all(start >= g + size or start + length <= g for g, size in gaps)
    ]
    return sorted([*gaps, *more])
