"""Frames of one video.

Everything here may hang or crash on a broken file, so it runs in a worker process
(`vd.data.workers`).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import av

from vd.data.frames import ROUNDING, FrameSettings, Keep, Keeper
from vd.data.outcome import (
    Outcome,
    Tally,
    check_file,
    read_header,
    why_not_opened,
)
from vd.data.packets import Clock, Reader

_MARGINS = 2.0, 20.0, math.inf  # seconds to seek ahead of a stretch; the last: no seek


class Position(NamedTuple):
    """Where the next stretch of a video begins; `origin` is its first frame's time stamp."""

    seconds: float = 0.0
    origin: int | None = None


@dataclass(frozen=True)
class Stretch:
    """What one stretch of a video says of it, and where the next begins."""

    tally: Tally
    next: Position | None  # None: the video has ended


def decode_stretch(
    path: Path,
    settings: FrameSettings,
    position: Position = Position(),  # noqa: B008  # immutable
    seconds: float = 30.0,
    keep: Keep | None = None,
) -> Stretch:
    """Decode the frames of [position, position + seconds); `seconds` must be whole slots.

    A frame is kept when it is the first in its slot of 1 / frames_per_second. Its motion
    is the difference to the later frame, which is the first frame at least
    `motion_gap_seconds` less half a usual step after it: the nearest, and the earlier of
    two, at a constant rate. A frame without a later one is not kept. Damaged frames are
    left out and counted. What the streams show of each kept frame is handed to `keep` as it
    is made; without it frames are only counted. Never raises for a bad file:
    `tally.header.reason` says why.
    """
    reason = check_file(path)
    try:
        for margin in () if reason else _MARGINS:
            with _open(path) as container:
                if not len(container.streams):
                    reason = why_not_opened(path)
                    break
                keeper = Keeper(settings, keep)
                stretch = _decode(container, keeper, position, seconds, margin)
            if stretch is not None:
                return stretch
    except av.error.FFmpegError as error:
        reason = why_not_opened(path, error)
    return _refused(Outcome("quarantined", reason))


def probe_header(path: Path) -> Outcome:
    """What a video's header says, quarantined so far; no frame is decoded."""
    if reason := check_file(path):
        return Outcome("quarantined", reason)
    try:
        with _open(path) as container:
            return read_header(container)[1]
    except av.error.FFmpegError as error:
        return Outcome("quarantined", why_not_opened(path, error))


def _open(path: Path) -> Any:
    """Open a file whatever its name: FFmpeg takes `12:30.mp4` for an address."""
    return av.open(str(path.absolute()), metadata_errors="replace")


def _decode(
    container: Any,
    keeper: Keeper,
    position: Position,
    seconds: float,
    margin: float,
) -> Stretch | None:
    """Decode a stretch, from `margin` ahead of it; None when seeking landed too late."""
    settings = keeper.settings
    stream, header = _picture_stream(container, settings)
    if header.reason:
        return _refused(header)
    landed = position.origin is None or position.seconds <= margin
    if not landed and not _seek(container, stream, position, margin):
        return None
    slots = round(seconds * settings.frames_per_second)
    first_slot = round(position.seconds * settings.frames_per_second)
    clock = Clock(stream.time_base, header.fps, position.origin)
    keeper.usual_step = 1 / header.fps
    slot = -1 if position.seconds else 0  # of the frame before
    good, last = 0, 0.0
    after = None
    reader = Reader(container, stream)
    for frame in reader.frames():
        if frame is None:
            if slot >= first_slot and after is None:
                reader.fault()
            continue
        if frame.width * frame.height > settings.max_pixels:  # the header says less
            return _refused(replace(header, reason="too-large"))
        time = clock(frame)
        landed = landed or time <= position.seconds - margin / 2
        if not landed:
            return None
        slot = math.floor((time + ROUNDING) * settings.frames_per_second)
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
    if not header.frames:  # else the count tells
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


def _picture_stream(container: Any, settings: FrameSettings) -> tuple[Any, Outcome]:
    """The stream to decode, and what the header says or why it is refused."""
    stream, header = read_header(container)
    if header.width * header.height > settings.max_pixels:
        header = replace(header, reason="too-large")
    if not header.reason:
        stream.thread_type = "NONE"  # processes are the parallelism
        if header.codec == "mjpeg":  # else it fills in what a cut picture lacks
            stream.codec_context.options = {"err_detect": "explode"}
    return stream, header


def _seek(container: Any, stream: Any, position: Position, margin: float) -> bool:
    """Go to a key frame `margin` ahead of a position; whether the container can."""
    ahead = round((position.seconds - margin) / stream.time_base)
    try:
        container.seek(position.origin + ahead, stream=stream)
    except (av.error.FFmpegError, OverflowError):
        return False
    return True


def _refused(header: Outcome) -> Stretch:
    """The end of a video that is not decoded."""
    return Stretch(Tally(header), None)
