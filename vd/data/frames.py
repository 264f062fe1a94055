"""Which frames of a video are kept, and in what form: streams of resized images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from vd.data.streams import STREAMS, Image

ROUNDING = 1e-3  # seconds: some containers round time stamps to it

_Sizes = dict[int | None, Image]  # a frame by `Stream.side`
Keep = Callable[[UInt8[np.ndarray, "S H W 3"]], object]


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are kept, and in what form."""

    height: int = 224
    width: int = 224
    frames_per_second: float = 8.0  # every frame of a slower video
    motion_gap_seconds: float = 0.1
    streams: tuple[str, ...] = ("rgb", "motion")  # names in `STREAMS`
    max_pixels: int = 7680 * 4320  # of a source frame; larger ones are refused


class Keeper:
    """Pairs each kept frame with its later one; converts only frames that are needed.

    What the streams show of a pair, (S, H, W, 3), goes to `keep`; without it frames are
    counted, and none is converted.
    """

    def __init__(self, settings: FrameSettings, keep: Keep | None) -> None:
        self.settings = settings
        self.usual_step = 0.0  # seconds from a frame to the next
        self.kept = 0
        self.waiting: list[tuple[float, _Sizes]] = []
        self._slot = -1
        self._keep = keep
        sides = {STREAMS[name].side for name in settings.streams if keep is not None}
        # one for each size: it keeps its tables from frame to frame
        self._reformatters = {side: VideoReformatter() for side in sides}

    def see(self, frame: Any, time: float, slot: int = -1) -> None:
        """Take a frame as the later one of those waiting; keep it if its slot is new."""
        image = None
        gap = self.settings.motion_gap_seconds - 0.5 * self.usual_step - ROUNDING
        while self.waiting and time >= self.waiting[0][0] + gap:
            image = self._convert(frame) if image is None else image
            earlier = self.waiting.pop(0)[1]
            self.kept += 1
            if self._keep is not None:
                self._keep(self._streams(earlier, image))
        if slot > self._slot:
            self._slot = slot
            image = self._convert(frame) if image is None else image
            self.waiting.append((time, image))

    def _streams(self, earlier: _Sizes, later: _Sizes) -> UInt8[np.ndarray, "S H W 3"]:
        """What each stream shows of a frame and its later one."""
        height, width = self.settings.height, self.settings.width
        images = []
        for name in self.settings.streams:
            stream = STREAMS[name]
            image = stream.image(earlier[stream.side], later[stream.side])
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            images.append(image)
        return np.stack(images)

    def _convert(self, frame: Any) -> _Sizes:
        """A frame in each size that a stream sees."""
        height, width = self.settings.height, self.settings.width
        return {
            side: _upright(frame, side or height, side or width, reformatter)
            for side, reformatter in self._reformatters.items()
        }


def _upright(
    frame: Any, height: int, width: int, reformatter: VideoReformatter
) -> UInt8[np.ndarray, "H W 3"]:
    """A frame resized by area, the aspect squashed, upright, as RGB."""
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns % 2:
        height, width = width, height
    small = reformatter.reformat(
        frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
    )
    upright: np.ndarray = np.rot90(small.to_ndarray(), quarter_turns)
    return upright
