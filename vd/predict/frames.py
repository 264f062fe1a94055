"""Frames that a program has decoded itself, as image pairs for the backbone."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8

from vd.console import check_interrupt
from vd.data.decode import FrameFeed, FrameSettings, Sink
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.features.engines import Engine
from vd.features.extract import Stretch, frame_features

_STRETCH = 56  # pairs: 7 s, whose windows and blocks fill a batch of scoring

Image = UInt8[np.ndarray, "H W 3"]


def rgb_frame(frame_HxWx3: Image, taker: str) -> av.VideoFrame:
    """An RGB frame as FFmpeg takes it; raises `VdError` for another array."""
    frame = np.asarray(frame_HxWx3)
    if (
        frame.dtype != np.uint8
        or frame.ndim != 3
        or frame.shape[2] != 3
        or not frame.size
    ):
        raise VdError(
            f"{taker} was given an array of {frame.dtype} and shape {frame.shape}; give "
            "an RGB frame of uint8 and shape (height, width, 3)."
        )
    return av.VideoFrame.from_ndarray(frame, format="rgb24")


def frame_stretches(
    frames: Iterable[Image], fps: float, settings: FrameSettings, engine: Engine
) -> Iterator[Stretch]:
    """Features of RGB frames at a constant rate, stretch by stretch, as those of a file.

    The frames are taken once, and few are kept. Raises `VdError` for an array that is no
    frame, and for a rate that is none.
    """
    fps = float(fps)  # a Fraction or a NumPy number is no JSON value
    if not 0 < fps < np.inf:
        raise VdError(f"predict() was given {fps} frames a second; give their rate.")
    pairs, count, frame = _Pairs(), 0, None
    feed = FrameFeed(settings, pairs, 1 / Fraction(fps), fps)
    for count, image_HxWx3 in enumerate(frames, 1):
        check_interrupt()
        frame = rgb_frame(image_HxWx3, "predict()")
        feed.add(frame, count - 1)
        if len(pairs.images) >= _STRETCH:
            yield pairs.features(engine)
    feed.finish()
    width, height = (frame.width, frame.height) if frame else (0, 0)
    outcome = Outcome(
        "used", "", count, width, height, fps, count / fps, span=count / fps
    )
    if not pairs.kept:
        outcome = Outcome("quarantined", "too-short", count, width, height, fps)
    yield pairs.features(engine, outcome)


class _Pairs(Sink):
    """Image pairs of a stretch; at a constant rate there is no gap."""

    def __init__(self) -> None:
        self.kept = 0
        self.images = list[UInt8[np.ndarray, "S H W 3"]]()
        self._seconds = list[float]()

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Note a pair."""
        assert images is not None
        self.kept += 1
        self.images.append(images)
        self._seconds.append(seconds)

    def features(self, engine: Engine, outcome: Outcome | None = None) -> Stretch:
        """The features of the pairs so far, which are dropped."""
        images, seconds_F = self.images, np.array(self._seconds)
        self.images, self._seconds = [], []
        features_FxD = np.zeros((0, 0), np.float16)
        if images:
            features_FxKxD = frame_features(np.stack(images), engine, "the frames")
            features_FxD = features_FxKxD.reshape(len(images), -1)
        after_gap_F = np.zeros(len(images), bool)
        return Stretch(0, features_FxD, seconds_F, after_gap_F, outcome)
