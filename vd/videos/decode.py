"""Frames of one video, and what became of the file.

Everything here may hang or crash on a broken file, so it runs in a worker process
(`vd.videos.workers`).
"""

import logging
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation
from jaxtyping import UInt8

Reason = Literal[
    "", "empty", "not-a-video", "no-video-stream", "truncated", "corrupt-frames", "timeout",
    "too-short", "unreadable", "not-a-regular-file", "too-large", "missing",
]  # fmt: skip

_MOST_ERRORS = 50  # in a row without a frame; then the rest of the file is given up
_SAME_SLOT = 1e-3  # of a slot: time stamps are rounded
_USED_FRAMES = 0.5  # share of the frames that must come for a clip to be used
_MISSING_FRAMES = 2, 0.05  # so many, or such a share: headers count a little wrongly
_MAGIC = (
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"free"), (4, b"wide"), (0, b"RIFF"),
    (0, b"\x1aE\xdf\xa3"), (0, b"FLV"), (0, b"G"), (0, b"GIF8"), (0, b"OggS"),
    (0, b"\x00\x00\x01\xba"), (0, b"\x30\x26\xb2\x75"),
)  # fmt: skip
_NO_VIDEO_FORMATS = (
    "tty",
    "image2",
    "lrc",
    "srt",
    "ass",
    "webvtt",
    "subviewer",
    "microdvd",
)


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are kept, and in what form."""

    height: int = 224
    width: int = 224
    frames_per_second: float = 8.0  # every frame of a slower video
    motion_gap_seconds: float = 0.1
    max_pixels: int = 7680 * 4320  # of a source frame; larger ones are refused


@dataclass(frozen=True)
class Outcome:
    """What became of one file; `frames` counts its decodable frames."""

    outcome: Literal["used", "partial", "quarantined"]
    reason: Reason = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration: float = 0.0  # seconds, by its header
    codec: str = ""


class Position(NamedTuple):
    """Where the next stretch of a video begins; `origin` is its first frame's time stamp."""

    seconds: float = 0.0
    origin: int | None = None


@dataclass(frozen=True)
class Tally:
    """What one stretch says of its file."""

    failure: Reason = ""  # why it gives no frame at all
    good: int = 0  # frames decoded
    corrupt: int = (
        0  # frames that FFmpeg marks as damaged, and packets that do not decode
    )
    expected: int = 0  # frames by the header; 0: it does not say
    last: float = 0.0  # seconds from the first frame to the last
    kept: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration: float = 0.0
    codec: str = ""


@dataclass(frozen=True)
class Stretch:
    """Kept frames of a stretch of a video: stream 0 RGB, stream 1 motion."""

    images_Fx2xHxWx3: UInt8[np.ndarray, "F 2 H W 3"]
    tally: Tally
    next: Position | None  # None: the video has ended


def decode_stretch(
    path: Path,
    settings: FrameSettings,
    position: Position = Position(),  # noqa: B008  # immutable
    seconds: float = 60.0,
) -> Stretch:
    """Decode the frames of [position, position + seconds); `seconds` must be whole slots.

    A frame is kept when it is the first in its slot of 1 / frames_per_second. Its motion
    image is clip(127 + later − earlier, 0, 255), where `later` is the frame nearest to
    `motion_gap_seconds` after it, at least the next one; a frame without a later one is
    not kept. Damaged frames are left out and counted; what decodes before and after a
    fault is kept. Never raises for a bad file: `tally.failure` says why there is no frame.
    """
    failure = check_file(path)
    if failure:
        return _failed(settings, failure)
    av.logging.set_level(av.logging.PANIC)
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        with av.open(str(path)) as container:
            return _decode(container, settings, position, seconds)
    except PermissionError:
        return _failed(settings, "unreadable")
    except FileNotFoundError:
        return _failed(settings, "missing")
    except (av.error.FFmpegError, UnicodeError):
        return _failed(settings, "truncated" if _has_magic(path) else "not-a-video")


def check_file(path: Path) -> Reason:
    """Why a path cannot be a video, by `stat` alone: opening a named pipe would hang."""
    try:
        status = os.stat(path)
    except PermissionError:
        return "unreadable"
    except OSError:  # missing, a loop of links, a name too long
        return "missing"
    if not stat.S_ISREG(status.st_mode):
        return "not-a-regular-file"
    return "" if status.st_size else "empty"


def probe_duration(path: Path) -> float:
    """Seconds of a video by its header; 0 when it does not say or does not open."""
    if check_file(path):
        return 0.0
    av.logging.set_level(av.logging.PANIC)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            return 0.0 if stream is None else _duration(container, stream)
    except (OSError, av.error.FFmpegError, UnicodeError):
        return 0.0


def outcome_of(tallies: Iterable[Tally]) -> Outcome:
    """The outcome of a file from the tallies of all its stretches."""
    tallies = list(tallies)
    head = tallies[0]
    good = sum(tally.good for tally in tallies)
    corrupt = sum(tally.corrupt for tally in tallies)
    facts: dict[str, Any] = {
        "frames": good, "width": head.width, "height": head.height, "fps": head.fps,
        "duration": head.duration, "codec": head.codec,
    }  # fmt: skip
    if head.failure:
        return Outcome("quarantined", head.failure, **facts)
    reached = max(tally.last for tally in tallies) + 1 / head.fps
    share = reached / head.duration if head.duration else 1.0
    if head.expected:
        share = good / head.expected
        missing = head.expected - good
        whole = missing <= max(_MISSING_FRAMES[0], _MISSING_FRAMES[1] * head.expected)
    else:
        whole = (
            share >= 1 - _MISSING_FRAMES[1] or head.duration - reached <= 2 / head.fps
        )
    if whole and not corrupt:
        if not any(tally.kept for tally in tallies):
            return Outcome("quarantined", "too-short", **facts)
        return Outcome("used", "", **facts)
    cut = head.duration > 0 and reached < 0.9 * head.duration
    reason: Reason = "truncated" if cut or not corrupt else "corrupt-frames"
    enough = share >= _USED_FRAMES and any(tally.kept for tally in tallies)
    return Outcome("partial" if enough else "quarantined", reason, **facts)


def _decode(
    container: Any, settings: FrameSettings, position: Position, seconds: float
) -> Stretch:
    """Decode one stretch of an open container."""
    stream = _video_stream(container)
    if stream is None:
        return _failed(settings, "no-video-stream")
    if container.format.name in _NO_VIDEO_FORMATS or container.format.name.endswith(
        "_pipe"
    ):
        return _failed(settings, "not-a-video")
    facts = _facts(container, stream)
    if facts["width"] * facts["height"] > settings.max_pixels:
        return _failed(settings, "too-large", **facts)
    stream.thread_type = "NONE"  # processes are the parallelism
    if position.origin is not None:
        container.seek(
            position.origin + round(position.seconds / stream.time_base), stream=stream
        )
    clock = _Clock(stream, facts["fps"], position.origin)
    keeper = _Keeper(settings, facts["fps"])
    first_slot = round(position.seconds * settings.frames_per_second)
    end_slot = first_slot + round(seconds * settings.frames_per_second)
    good = corrupt = 0
    last = 0.0
    ended = True
    for frame in _frames(container, stream):
        if frame is None:
            corrupt += 1
            continue
        time = clock(frame)
        slot = math.floor(time * settings.frames_per_second + _SAME_SLOT)
        if slot < first_slot:
            continue  # between the key frame before and the stretch
        if slot >= end_slot:
            ended = False
            keeper.see(frame, time)
            if not keeper.waiting:
                break
            continue
        if frame.is_corrupt:
            corrupt += 1
            continue
        good += 1
        last = max(last, time)
        keeper.see(frame, time, slot)
    tally = Tally("", good, corrupt, last=last, kept=len(keeper.images), **facts)
    after = None if ended else Position(position.seconds + seconds, clock.origin)
    return Stretch(keeper.stack(), tally, after)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; None for each packet that does not decode. Salvages what it can."""
    errors = 0
    while errors < _MOST_ERRORS:
        try:
            for packet in container.demux(stream):
                try:
                    for frame in packet.decode():
                        errors = 0
                        yield frame
                except av.error.FFmpegError:
                    errors += 1
                    yield None
                    if errors >= _MOST_ERRORS:
                        return
            return
        except av.error.EOFError:
            return
        except (
            av.error.FFmpegError
        ):  # the demuxer stumbled: it may go on behind the fault
            errors += 1
            yield None


@dataclass
class _Clock:
    """Seconds since a video's first frame: by time stamp, else by counting."""

    stream: Any
    fps: float
    origin: int | None
    _before: float = field(default=-1.0)

    def __call__(self, frame: Any) -> float:
        stamp = frame.pts if frame.pts is not None else frame.dts
        seconds = -1.0
        if stamp is not None:
            if self.origin is None:
                self.origin = stamp
            seconds = float((stamp - self.origin) * self.stream.time_base)
        if seconds <= self._before:  # missing, or not increasing
            seconds = 0.0 if self._before < 0 else self._before + 1 / self.fps
        self._before = seconds
        return seconds


class _Keeper:
    """Pairs each kept frame with its later one; converts only frames that are needed."""

    def __init__(self, settings: FrameSettings, fps: float) -> None:
        self._settings = settings
        self._gap = settings.motion_gap_seconds - 0.5 / fps  # the nearest frame will do
        self._slot = -1
        self.images: list[UInt8[np.ndarray, "2 H W 3"]] = []
        self.waiting: list[tuple[float, UInt8[np.ndarray, "H W 3"]]] = []

    def see(self, frame: Any, time: float, slot: int | None = None) -> None:
        """Take a frame as the later one of those waiting, and keep it if `slot` is new."""
        image = None
        while self.waiting and time >= self.waiting[0][0] + self._gap:
            image = self._convert(frame) if image is None else image
            earlier = self.waiting.pop(0)[1]
            motion = np.clip(127 + image.astype(np.int16) - earlier, 0, 255).astype(
                np.uint8
            )
            self.images.append(np.stack([earlier, motion]))
        if slot is not None and slot > self._slot:
            self._slot = slot
            image = self._convert(frame) if image is None else image
            self.waiting.append((time, image))

    def stack(self) -> UInt8[np.ndarray, "F 2 H W 3"]:
        """All pairs so far."""
        shape = (0, 2, self._settings.height, self._settings.width, 3)
        return np.stack(self.images) if self.images else np.zeros(shape, np.uint8)

    def _convert(self, frame: Any) -> UInt8[np.ndarray, "H W 3"]:
        """A frame resized by area, the aspect squashed, upright, as RGB."""
        quarter_turns = round(frame.rotation / 90) % 4
        height, width = self._settings.height, self._settings.width
        if quarter_turns % 2:
            height, width = width, height
        small = frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA)
        upright: np.ndarray = np.rot90(small.to_ndarray(), quarter_turns)
        return np.ascontiguousarray(upright)


def _failed(settings: FrameSettings, reason: Reason, **facts: Any) -> Stretch:
    """A stretch without a frame."""
    empty = np.zeros((0, 2, settings.height, settings.width, 3), np.uint8)
    return Stretch(empty, Tally(failure=reason, **facts), None)


def _video_stream(container: Any) -> Any | None:
    """The first video stream that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def _facts(container: Any, stream: Any) -> dict[str, Any]:
    """What the header says."""
    context = stream.codec_context
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return {
        "expected": max(stream.frames, 0),
        "width": context.width,
        "height": context.height,
        "fps": rate if 0 < rate <= 1000 else 25.0,
        "duration": _duration(container, stream),
        "codec": context.name,
    }


def _duration(container: Any, stream: Any) -> float:
    """Seconds by the header, 0 when it does not say."""
    if stream.duration:
        return max(float(stream.duration * stream.time_base), 0.0)
    return max((container.duration or 0) / av.time_base, 0.0)


def _has_magic(path: Path) -> bool:
    """Whether a file begins like one of the known containers."""
    with open(path, "rb") as handle:
        head = handle.read(377)
    if head[:1] == b"G" and not head.startswith(
        b"GIF8"
    ):  # MPEG-TS: a sync byte a packet
        return len(head) > 376 and head[188] == head[376] == ord("G")
    return any(
        head[at : at + len(magic)] == magic for at, magic in _MAGIC if magic != b"G"
    )
