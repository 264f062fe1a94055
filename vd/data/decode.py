"""Frames of one video: which are kept, what the streams show of them, and their times.

Anything here may hang or crash on a broken file, so it runs in a worker process
(`vd.data.workers`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from vd.data.outcome import (
    Counts,
    Outcome,
    check_file,
    outcome_of,
    select_stream,
    why_not_opened,
)
from vd.data.streams import STREAMS, Image

_ROUNDING = 1e-3  # seconds: some containers round time stamps to it
_READING_ERRORS = 50  # in a row, after which the rest of a file is given up

_Sizes = dict[int | None, Image]  # a frame by `Stream.side`


class Sink:
    """Takes what a video gives, in order; this one does nothing with it."""

    def header(self, header: Outcome) -> None:
        """The header, once, before the first frame."""

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """The streams of a kept frame (None when only counting), and its time.

        `seconds` count from the first decoded frame; `frames` were decoded so far.
        """

    def stretch(self) -> None:
        """A stretch of the video has passed; may wait. Not called at the end."""


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are kept, and in what form."""

    height: int = 224
    width: int = 224
    frames_per_second: float = 8.0  # every frame of a slower video
    motion_gap_seconds: float = 0.1
    streams: tuple[str, ...] = ("rgb", "motion")  # names in `STREAMS`
    max_pixels: int = 7680 * 4320  # of a source frame; larger ones are refused


def decode(
    path: Path,
    settings: FrameSettings,
    sink: Sink | None = None,
    images: bool = True,
    stretch_seconds: float = 30.0,
) -> Outcome:
    """Decode a video in one pass, from its first frame to its last; its outcome.

    A frame is kept if it is the first in its slot of 1 / frames_per_second. Its later frame
    is the first one at least `motion_gap_seconds` less half a usual step after it. A frame
    without a later one is not kept. Damaged frames are counted and left out. With `images`
    false, frames are only counted. Never raises for a bad file.
    """
    if reason := check_file(path):
        return Outcome("quarantined", reason)
    try:
        with _open(path) as container:
            keeper = _Keeper(settings, sink or Sink(), images and sink is not None)
            return _decode(container, keeper, stretch_seconds)
    except av.error.FFmpegError as error:
        return Outcome("quarantined", why_not_opened(path, error))


def read_header(path: Path, settings: FrameSettings) -> Outcome:
    """The header of a video, quarantined so far; never raises for a bad file."""
    if reason := check_file(path):
        return Outcome("quarantined", reason)
    try:
        with _open(path) as container:
            return select_stream(container, settings.max_pixels)[1]
    except av.error.FFmpegError as error:
        return Outcome("quarantined", why_not_opened(path, error))


def _open(path: Path) -> Any:
    """Open a file by its absolute path: FFmpeg takes `12:30.mp4` for an address."""
    return av.open(str(path.absolute()), metadata_errors="replace")


def _decode(container: Any, keeper: "_Keeper", stretch_seconds: float) -> Outcome:
    """Decode the best stream of an open file."""
    settings, sink = keeper.settings, keeper.sink
    stream, header = select_stream(container, settings.max_pixels)
    if header.reason:
        return header
    sink.header(header)
    stream.thread_type = "NONE"  # processes are the parallelism
    if header.codec == "mjpeg":  # otherwise it fills in the rest of a cut picture
        stream.codec_context.options = {"err_detect": "explode"}
    clock = _Clock(stream.time_base, header.fps)
    keeper.usual_step = 1 / header.fps
    good, last, stretch_end = 0, 0.0, stretch_seconds
    reader = _Reader(container, stream)
    for frame in reader.frames():
        if frame is None:
            reader.fault()
            continue
        # the header may give a smaller size
        if frame.width * frame.height > settings.max_pixels:
            return replace(header, reason="too-large")
        time = clock(frame)
        if frame.is_corrupt:
            reader.fault()
            continue
        if not good:
            header = replace(header, brightness=_brightness(frame))
        good, last = good + 1, time
        keeper.see(frame, time, good)
        if time >= stretch_end:
            stretch_end = time // stretch_seconds * stretch_seconds + stretch_seconds
            sink.stretch()
    faults, tail = reader.faults(header)
    end = reader.end - clock.start if stream.duration is None else 0.0
    counts = Counts(good, keeper.kept, faults, tail, max(last + 1 / header.fps, end))
    span = last + 1 / header.fps
    return replace(outcome_of(header, counts), duration=span, span=span)


def _brightness(frame: Any) -> float | None:
    """Mean grey of a frame, 0 to 255; None when FFmpeg cannot convert it."""
    try:
        return float(frame.to_ndarray(format="gray").mean())
    except (av.error.FFmpegError, ValueError):
        return None


class _Keeper:
    """Pairs each kept frame with its later one, and hands their streams to the sink.

    Converts only the frames of pairs; without images it counts pairs and converts none.
    """

    def __init__(self, settings: FrameSettings, sink: Sink, images: bool) -> None:
        self.settings, self.sink = settings, sink
        self.usual_step = 0.0  # seconds from a frame to the next
        self.kept = 0
        self._waiting: list[tuple[float, _Sizes]] = []
        self._slot = -1
        self._images = images
        sides = {STREAMS[name].side for name in settings.streams if self._images}
        # one a size, because it keeps its tables from frame to frame
        self._reformatters = {side: VideoReformatter() for side in sides}

    def see(self, frame: Any, time: float, frames: int) -> None:
        """Take a frame as the later one of those waiting; keep it if its slot is new."""
        image = None
        gap = self.settings.motion_gap_seconds - 0.5 * self.usual_step - _ROUNDING
        while self._waiting and time >= self._waiting[0][0] + gap:
            image = self._convert(frame) if image is None else image
            seconds, earlier = self._waiting.pop(0)
            self.kept += 1
            images = self._streams(earlier, image) if self._images else None
            self.sink.keep(images, seconds, frames)
        slot = math.floor((time + _ROUNDING) * self.settings.frames_per_second)
        if slot > self._slot:
            self._slot = slot
            image = self._convert(frame) if image is None else image
            self._waiting.append((time, image))

    def _streams(self, earlier: _Sizes, later: _Sizes) -> UInt8[np.ndarray, "S H W 3"]:
        """The image of each stream, in the size of the settings."""
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
    """A frame as RGB, upright, resized by area without keeping the aspect ratio."""
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns % 2:
        height, width = width, height
    small = reformatter.reformat(
        frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
    )
    upright: np.ndarray = np.rot90(small.to_ndarray(), quarter_turns)
    return upright


class _Reader:
    """Decodes one stream; counts its faults, and notes where all streams end."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self.end = 0.0  # seconds at which the last packet of all streams ends
        self._packets = 0  # read so far, of the one stream
        self._cut = False  # whether the last of them is incomplete
        self._faults: list[int] = []  # the value of `_packets` at each fault

    def frames(self) -> Iterator[Any]:
        """Decoded frames; None for each packet that cannot be read or decoded."""
        packets = self._container.demux()
        errors = 0
        while errors < _READING_ERRORS:
            try:
                packet = next(packets)
                errors = 0
                self._note(packet)
                if packet.stream is self._stream:
                    yield from packet.decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError:
                errors += 1
                packets = self._container.demux()  # reading may go on after the fault
                yield None

    def fault(self) -> None:
        """Count the current frame as damaged or missing."""
        self._faults.append(self._packets)

    def faults(self, header: Outcome) -> tuple[int, int]:
        """The number of faults, and how many of them end the file.

        Frames after the last fault can be missing without the index showing it, and nothing
        follows an incomplete packet.
        """
        last = self._cut or not header.frames
        return len(self._faults), self._faults.count(self._packets) if last else 0

    def _note(self, packet: Any) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base is not None:
            seconds = (stamp + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, float(seconds))
        if packet.stream is self._stream and packet.size:
            self._packets += 1
            self._cut = packet.is_corrupt


class _Clock:
    """Seconds since a video's first frame, from time stamps, else from the frame rate."""

    def __init__(self, time_base: Any, fps: float) -> None:
        self._origin: int | None = None
        self._time_base = time_base
        self._step = 1 / fps
        self._last = -self._step

    @property
    def start(self) -> float:
        """The first frame's time stamp in seconds."""
        return float((self._origin or 0) * self._time_base)

    def __call__(self, frame: Any) -> float:
        """The time of the next frame, always later than the previous one."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        self._origin = stamp if self._origin is None else self._origin
        seconds = self._last
        if stamp is not None:
            seconds = float((stamp - self._origin) * self._time_base)
        if seconds <= self._last:
            seconds = self._last + self._step
        self._last = seconds
        return seconds
