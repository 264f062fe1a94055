"""Frames of one video: which are kept, what the streams show of them, and their times.

Anything here may hang or crash on a broken file, so it runs in a worker process
(`vd.data.workers`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from vd.data.outcome import Outcome, Tally, check_file, read_header, why_not_opened
from vd.data.streams import STREAMS, Image

_ROUNDING = 1e-3  # seconds: some containers round time stamps to it
_MARGINS = 2.0, 20.0, math.inf  # seconds to seek ahead of a stretch; the last: no seek
_HOLE_STEPS, _HOLE_SECONDS = 10, 0.5  # a longer step to the next frame is a hole
_READING_ERRORS = 50  # in a row, after which the rest of a file is given up

Keep = Callable[[UInt8[np.ndarray, "S H W 3"]], object]
_Sizes = dict[int | None, Image]  # a frame by `Stream.side`


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are kept, and in what form."""

    height: int = 224
    width: int = 224
    frames_per_second: float = 8.0  # every frame of a slower video
    motion_gap_seconds: float = 0.1
    streams: tuple[str, ...] = ("rgb", "motion")  # names in `STREAMS`
    max_pixels: int = 7680 * 4320  # of a source frame; larger ones are refused


class Position(NamedTuple):
    """Where the next stretch of a video begins; `origin` is its first frame's time stamp."""

    seconds: float = 0.0
    origin: int | None = None


class Stretch(NamedTuple):
    """The tally of one stretch of a video, and where the next one begins."""

    tally: Tally
    next: Position | None = None  # None: the video has ended


def decode_stretch(
    path: Path,
    settings: FrameSettings,
    position: Position = Position(),  # noqa: B008  # immutable
    seconds: float = 30.0,
    keep: Keep | None = None,
) -> Stretch:
    """Decode the frames of [position, position + seconds); `seconds` must be whole slots.

    With 0 seconds it reads the header alone.

    A frame is kept if it is the first in its slot of 1 / frames_per_second. Its later frame
    is the first one at least `motion_gap_seconds` less half a usual step after it. A frame
    without a later one is not kept. Damaged frames are counted and left out. `keep` receives
    the streams of each kept frame; without it frames are only counted. Never raises for a
    bad file: `tally.header.reason` says why it was refused.
    """
    if reason := check_file(path):
        return Stretch(Tally(Outcome("quarantined", reason)))
    try:
        for margin in _MARGINS:
            with _open(path) as container:
                keeper = _Keeper(settings, keep)
                stretch = _decode(container, keeper, position, seconds, margin)
            if stretch is not None:
                return stretch
    except av.error.FFmpegError as error:
        reason = why_not_opened(path, error)
    return Stretch(Tally(Outcome("quarantined", reason)))


def _open(path: Path) -> Any:
    """Open a file by its absolute path: FFmpeg takes `12:30.mp4` for an address."""
    return av.open(str(path.absolute()), metadata_errors="replace")


def _decode(
    container: Any,
    keeper: "_Keeper",
    position: Position,
    seconds: float,
    margin: float,
) -> Stretch | None:
    """Decode a stretch from `margin` seconds ahead; None if seeking landed too late."""
    settings = keeper.settings
    stream, header = read_header(container, settings.max_pixels)
    if header.reason or not seconds:
        return Stretch(Tally(header))
    stream.thread_type = "NONE"  # processes are the parallelism
    if header.codec == "mjpeg":  # otherwise it fills in the rest of a cut picture
        stream.codec_context.options = {"err_detect": "explode"}
    landed = position.origin is None or position.seconds <= margin
    if not landed and not _seek(container, stream, position, margin):
        return None
    slots = round(seconds * settings.frames_per_second)
    first_slot = round(position.seconds * settings.frames_per_second)
    clock = _Clock(stream.time_base, header.fps, position.origin)
    keeper.usual_step = 1 / header.fps
    slot = -1 if position.seconds else 0  # of the previous frame
    good, last = 0, 0.0
    after = None
    reader = _Reader(container, stream)
    for frame in reader.frames():
        if frame is None:
            if slot >= first_slot and after is None:
                reader.fault()
            continue
        # the header may give a smaller size
        if frame.width * frame.height > settings.max_pixels:
            return Stretch(Tally(replace(header, reason="too-large")))
        time = clock(frame)
        landed = landed or time <= position.seconds - margin / 2
        if not landed:
            return None
        slot = math.floor((time + _ROUNDING) * settings.frames_per_second)
        if slot < first_slot:
            continue
        if slot >= first_slot + slots:
            after = after or Position(slot // slots * seconds, clock.origin)
        if frame.is_corrupt:
            if after is None:
                reader.fault()
        elif after is None:
            if position.origin is None and not good:
                header = replace(header, brightness=_brightness(frame))
            good, last = good + 1, time
            keeper.see(frame, time, slot)
        else:
            keeper.see(frame, time)
        if after is not None and not keeper.waiting:
            break
    if not landed:
        return None
    holes = 0
    if not header.frames:  # otherwise the frame count shows them
        holes = clock.holes(position.seconds, position.seconds + seconds)
    faults, tail = reader.faults(header, ended=after is None)
    end = reader.end - clock.start if stream.duration is None else 0.0
    tally = Tally(header, good, faults + holes, last, keeper.kept, end, tail)
    return Stretch(tally, after)


def _brightness(frame: Any) -> float | None:
    """Mean grey of a frame, 0 to 255; None when FFmpeg cannot convert it."""
    try:
        return float(frame.to_ndarray(format="gray").mean())
    except (av.error.FFmpegError, ValueError):
        return None


def _seek(container: Any, stream: Any, position: Position, margin: float) -> bool:
    """Seek to a key frame `margin` seconds ahead; whether the container can."""
    ahead = round((position.seconds - margin) / stream.time_base)
    try:
        container.seek(position.origin + ahead, stream=stream)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


class _Keeper:
    """Pairs each kept frame with its later one, and hands their streams to `keep`.

    Converts only the frames of pairs; without `keep` it counts pairs and converts none.
    """

    def __init__(self, settings: FrameSettings, keep: Keep | None) -> None:
        self.settings = settings
        self.usual_step = 0.0  # seconds from a frame to the next
        self.kept = 0
        self.waiting: list[tuple[float, _Sizes]] = []
        self._slot = -1
        self._keep = keep
        sides = {STREAMS[name].side for name in settings.streams if keep is not None}
        # one for each size, because it keeps its tables from frame to frame
        self._reformatters = {side: VideoReformatter() for side in sides}

    def see(self, frame: Any, time: float, slot: int = -1) -> None:
        """Take a frame as the later one of those waiting; keep it if its slot is new."""
        image = None
        gap = self.settings.motion_gap_seconds - 0.5 * self.usual_step - _ROUNDING
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

    def faults(self, header: Outcome, ended: bool) -> tuple[int, int]:
        """The number of faults; and if the file has `ended`, how many of them end it.

        Frames after the last fault can be missing without the index showing it, and nothing
        follows an incomplete packet.
        """
        last = ended and (self._cut or not header.frames)
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

    def __init__(self, time_base: Any, fps: float, origin: int | None) -> None:
        self.origin = origin
        self._time_base = time_base
        self._step = 1 / fps
        self._times: list[float] = []

    @property
    def start(self) -> float:
        """The first frame's time stamp in seconds."""
        return float((self.origin or 0) * self._time_base)

    def __call__(self, frame: Any) -> float:
        """The time of the next frame, always later than the previous one."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        self.origin = stamp if self.origin is None else self.origin
        previous = self._times[-1] if self._times else -self._step
        seconds = previous
        if stamp is not None:
            seconds = float((stamp - self.origin) * self._time_base)
        if seconds <= previous:
            seconds = previous + self._step
        self._times.append(seconds)
        return seconds

    def holes(self, begin: float, end: float) -> int:
        """Number of steps that end in [begin, end) and are far longer than usual.

        Lost data and a paused camera look alike, so a hole makes a video partial and never
        loses it.
        """
        if len(self._times) < 2:
            return 0
        steps, ends = np.diff(self._times), np.array(self._times[1:])
        least = max(_HOLE_STEPS * np.median(steps), _HOLE_SECONDS)
        return int(np.sum((steps > least) & (begin <= ends) & (ends < end)))
