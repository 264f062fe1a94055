"""Frames of one video: which are kept, what the streams show of them, and their times.

Anything here may hang or crash on a broken file, so it runs in a worker process
(`vd.data.workers`).
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from vd.data.clock import (
    FRAMES_PER_SECOND,
    GAP_SECONDS,
    GAP_STEPS,
    Clock,
    Timed,
)
from vd.data.outcome import (
    PICTURE,
    Counts,
    Outcome,
    check_file,
    outcome_of,
    select_stream,
    why_not_opened,
)
from vd.data.streams import STREAMS, Image

# Seconds to which some containers round time stamps. Not 1 ms sharp: frames of 24 and 30
# fps over 1.001 lie exactly so far before a slot, where a float decides.
_ROUNDING = 1.01e-3
_COARSE = 1 / 5000  # seconds: time bases above it round the times of common rates
_TIE = 2 * _ROUNDING  # seconds: two distances that rounding can make unequal
_NEAR = 0.025 + _ROUNDING  # seconds: how early the last later frame may be
_READING_ERRORS = 50  # in a row, after which the rest of a file is given up
_PACKETS_AHEAD = 32  # read to see whether stamps are in the order of decoding
_MOST_IN_DECODER = 16  # frames that a decoder may reorder
_SEEKABLE = "mp4", "matroska"  # by an index whose times are those of the frames
_LEAD_SECONDS = 5.0  # decoded before the first time, so that slots and steps are known

WHOLE = 0.0, math.inf  # seconds of a video

_Sizes = dict[int | None, Image]  # a frame by `Stream.side`


class Sink:
    """Takes what a video gives, in order; this one drops it."""

    def header(self, header: Outcome) -> None:
        """The header, once, before the first frame."""

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """The streams of a kept frame (None when only counting), and its time.

        `seconds` count from the first decoded frame; `frames` were decoded so far.
        """

    def gap(self) -> None:
        """The next kept frame comes after a gap in time, or after frames that are damaged."""

    def stretch(self) -> None:
        """A stretch of the video has passed; may wait. Not called at the end."""


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a video are kept, and in what form."""

    height: int = 224
    width: int = 224
    frames_per_second: float = FRAMES_PER_SECOND  # every frame of a slower video
    motion_gap_seconds: float = 0.1
    streams: tuple[str, ...] = ("rgb", "motion")  # names in `STREAMS`
    max_pixels: int = 7680 * 4320  # of a source frame; larger ones are refused


def decode(
    path: Path,
    settings: FrameSettings,
    sink: Sink,
    images: bool = True,
    stretch_seconds: float = 30.0,
    between: tuple[float, float] = WHOLE,
) -> Outcome:
    """Decode a video in one pass; its outcome.

    A frame is kept if it is the first in its slot of 1 / frames_per_second and another one
    follows it about `motion_gap_seconds` later. Damaged frames are counted and left out.
    With `images` false, frames are only counted. Frames are kept from the first of the two
    times `between` until the second; what follows is not decoded, nor in MP4 and Matroska
    what precedes a key frame some seconds before, whose faults are then not known. Never
    raises for a bad file.
    """
    keeper = _Keeper(settings, sink, images, between)
    return _open(path, lambda container: _decode(container, keeper, stretch_seconds))


def read_header(path: Path, settings: FrameSettings) -> Outcome:
    """The header of a video, quarantined so far; never raises for a bad file.

    A single frame is not a video, and what FFmpeg takes by chance for one has no more.
    """

    def header_of(container: Any) -> Outcome:
        stream, header = select_stream(container, settings.max_pixels)
        packets = islice(container.demux(stream), 2) if stream else ()
        # the packet that ends a file has neither size nor time stamp
        still = any(not p.size and p.dts is None for p in packets)
        return Outcome("quarantined", "not-a-video") if still else header

    return _open(path, header_of)


def _open(path: Path, read: Callable[[Any], Outcome]) -> Outcome:
    """What `read` makes of an opened file, or why it cannot be opened."""
    if reason := check_file(path):
        return Outcome("quarantined", reason)
    try:
        # by its absolute path: FFmpeg takes `12:30.mp4` for an address
        with av.open(
            str(path.absolute()),
            metadata_errors="replace",
            options={
                "correct_ts_overflow": "0"
            },  # the clock does: a restart is no wrap
        ) as container:
            return read(container)
    except av.error.FFmpegError as error:
        return Outcome("quarantined", why_not_opened(path, error))


def _decode(container: Any, keeper: "_Keeper", stretch_seconds: float) -> Outcome:
    stream, header = select_stream(container, keeper.settings.max_pixels)
    if header.reason:
        return replace(header, frames=0)
    keeper.sink.header(header)
    if not open_decoder(stream):
        return replace(header, reason="corrupt-frames", frames=0)
    reader = _Reader(container, stream)
    clock = Clock(stream.time_base, header.fps, hold=_Picture.sizes)
    keeper.grid = _grid(header.fps) if stream.time_base > _COARSE else 0.0
    stretch_end = stretch_seconds
    for frame, stamp in reader.frames(seek_to=keeper.begin - _LEAD_SECONDS):
        if reader.has_jumped:
            clock.skip_to(stamp)
            header = replace(header, frames=0)  # the file's count is no longer ours
        picture = _Picture(frame, keeper.convert)
        if picture.usable:
            # the header may give a smaller size
            if frame.width * frame.height > keeper.settings.max_pixels:
                return replace(header, reason="too-large", frames=0)
            if header.brightness is None:
                grey = frame.to_ndarray(format="gray")
                header = replace(header, brightness=float(grey.mean()))
        for timed in clock.add(picture, stamp):
            keeper.see(timed)
            if timed.seconds >= stretch_end:
                stretches = timed.seconds // stretch_seconds + 1
                stretch_end = stretches * stretch_seconds
                keeper.sink.stretch()
        if keeper.is_done:
            header = _until_now(header, clock.reach)
            break
    for timed in clock.finish():
        keeper.see(timed)
    keeper.finish()
    if reader.encrypted:
        return replace(header, reason="encrypted", frames=0)
    counts = reader.counts(header, keeper.kept, clock.reach)
    if container.format.name == PICTURE and counts.packets < 2:
        return Outcome("quarantined", "not-a-video")
    result = outcome_of(header, counts)
    if result.reason == "too-short" and keeper.begin >= clock.span:
        result = replace(result, reason="starts-after-end", frames=0)
    return replace(
        result,
        duration=clock.duration,
        span=clock.span,
        gaps=tuple(clock.gaps),
        clock="stamps" if clock.has_stamps else "rate",
    )


def _until_now(header: Outcome, reach: float) -> Outcome:
    """The header as if the file ended there: what is not decoded is not missing."""
    return replace(header, frames=0, duration=min(header.duration or reach, reach))


def open_decoder(stream: Any) -> bool:
    """Whether the decoder of a stream can be opened."""
    stream.thread_type = "NONE"  # processes are the parallelism
    context = stream.codec_context
    if context.name == "mjpeg":  # otherwise it fills in the rest of a cut picture
        context.options = {"err_detect": "explode"}
    try:
        context.open(strict=False)
    except av.error.FFmpegError:
        return False
    return True


def _grid(fps: float) -> float:
    """A rate, exact if it is one of television's: FLV gives 29.9697 for 30 / 1.001."""
    exact = round(fps * 1.001) / 1.001
    return exact if abs(exact / fps - 1) < 1e-4 else fps


class FrameFeed:
    """Takes frames as they come, and hands the streams of kept ones to a sink.

    Times and kept frames are those that `decode` gives a file with the same frames.
    """

    def __init__(
        self, settings: FrameSettings, sink: Sink, time_base: Fraction, rate: float
    ) -> None:
        """Stamps count in `time_base` seconds; `rate` is that until the stamps show it."""
        self._keeper = _Keeper(settings, sink, images=True, between=WHOLE)
        self._keeper.grid = _grid(rate) if time_base > _COARSE else 0.0
        self._clock = Clock[_Picture](time_base, rate, hold=_Picture.sizes)

    def add(self, frame: av.VideoFrame, stamp: int | None) -> None:
        """Take the next frame."""
        picture = _Picture(frame, self._keeper.convert)
        for timed in self._clock.add(picture, stamp):
            self._keeper.see(timed)

    def finish(self) -> None:
        """No frame follows: hand over what waits for one."""
        for timed in self._clock.finish():
            self._keeper.see(timed)
        self._keeper.finish()


class _Picture:
    """A decoded frame, None for a repeat; once converted, it frees the decoder's buffer."""

    def __init__(self, frame: Any, convert: Callable[[Any], _Sizes]) -> None:
        self.usable = frame is not None and not frame.is_corrupt
        self._frame, self._convert = frame, convert
        self._sizes: _Sizes = {}

    def sizes(self) -> _Sizes:
        """The frame in each size that a stream sees."""
        if self._frame is not None:
            self._sizes, self._frame = self._convert(self._frame), None
        return self._sizes


class _Keeper:
    """Pairs each kept frame with its later one, and hands their streams to the sink.

    Converts only the frames of pairs; without images it counts pairs and converts none.
    """

    def __init__(
        self,
        settings: FrameSettings,
        sink: Sink,
        images: bool,
        between: tuple[float, float],
    ) -> None:
        self.settings, self.sink = settings, sink
        self.is_done = False  # all frames between the two times are kept
        self.begin, self._end = between
        self.grid = 0.0  # frames a second at which rounded time stamps lie
        self.kept = self._seen = 0  # frames
        self._damaged = 0  # frames since the last usable one
        self._waiting: deque[Timed[_Picture]] = deque()  # for their later frames
        self._last: Timed[_Picture] | None = None
        self._slot = -1
        self._images = images
        sides = {STREAMS[name].side for name in settings.streams if images}
        # one a size, because it keeps its tables from frame to frame
        self._reformatters = {side: VideoReformatter() for side in sides}

    def see(self, timed: Timed[_Picture]) -> None:
        """Take a frame as the later one of those waiting; keep it if its slot is new.

        Later is the frame nearest to `motion_gap_seconds` later, of two as near the earlier
        one.
        """
        if timed.after_gap:
            self.finish()
            self.sink.gap()
        if not timed.frame.usable:
            self._damaged += 1
            return
        self._seen += 1
        while self._waiting and timed.seconds >= self._target() - _ROUNDING:
            late = timed.seconds - self._target()
            self._keep(self._last_within(late + _TIE) or timed)
        if self._is_after_damage(timed):
            self.sink.gap()
        self._damaged = 0
        seconds = self._unrounded(timed.seconds) + _ROUNDING
        slot = math.floor(seconds * self.settings.frames_per_second)
        if slot > self._slot:
            self._slot = slot
            if self.begin <= timed.seconds < self._end:
                self._waiting.append(timed)
        self._last = timed
        self.is_done = timed.seconds >= self._end and not self._waiting

    def finish(self) -> None:
        """No frame follows, or a gap: the last one may still be the later one."""
        while self._waiting:
            if later := self._last_within(_NEAR):
                self._keep(later)
            else:
                self._waiting.popleft()
        self._last = None

    def _is_after_damage(self, timed: Timed[_Picture]) -> bool:
        """Whether so many damaged frames precede a frame as would make a gap."""
        if self._last is None or self._damaged < GAP_STEPS:
            return False
        return timed.seconds - self._last.seconds > GAP_SECONDS

    def _target(self) -> float:
        """When the later frame of the first waiting one should come."""
        return self._waiting[0].seconds + self.settings.motion_gap_seconds

    def _last_within(self, seconds: float) -> Timed[_Picture] | None:
        """The last frame, if it is the first waiting one's later one, so early at most."""
        last = self._last
        if last is None or last.seconds <= self._waiting[0].seconds:
            return None
        return last if self._target() - last.seconds <= seconds else None

    def _unrounded(self, seconds: float) -> float:
        """A time before its container rounded it, if it was on the grid of the rate."""
        exact = round(seconds * self.grid) / self.grid if self.grid else seconds
        return exact if abs(exact - seconds) < _ROUNDING else seconds

    def _keep(self, later: Timed[_Picture]) -> None:
        earlier = self._waiting.popleft()
        images = None
        if self._images:
            images = self._streams(earlier.frame.sizes(), later.frame.sizes())
        self.kept += 1
        self.sink.keep(images, earlier.seconds, self._seen)

    def _streams(self, earlier: _Sizes, later: _Sizes) -> UInt8[np.ndarray, "S H W 3"]:
        height, width = self.settings.height, self.settings.width
        images = []
        for name in self.settings.streams:
            stream = STREAMS[name]
            image = stream.image(earlier[stream.side], later[stream.side])
            if image.shape[:2] != (height, width):
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            images.append(image)
        return np.stack(images)

    def convert(self, frame: Any) -> _Sizes:
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
    """Decodes one stream; counts its packets and faults, and notes where it ends."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.good = 0  # frames decoded so far
        self.encrypted = False
        self.has_jumped = False  # to the last frame: those before it were not decoded
        self._container, self._stream = container, stream
        self._end = 0.0  # seconds, of all streams if the one has no own duration
        self._packets = 0  # read so far, of the one stream
        self._shown = 0  # of these, not hidden by an edit list
        self._cut = False  # whether the last of them is incomplete
        self._started = False  # whether one of them begins a group of pictures
        self._faults: list[int] = []  # the value of `_packets` at each fault
        self._queued = ""  # which stamps of packets wait for the frames, if any
        self._queue: deque[int | None] = deque(maxlen=_MOST_IN_DECODER)

    def frames(self, seek_to: float) -> Iterator[tuple[Any, int | None]]:
        """Decoded frames with their time stamps, from the first good one on.

        Where the file can be read from a key frame, the second one is at most `seek_to`
        seconds later than the first.
        None stands for an empty packet, by which Theora shows the last frame once more.
        """
        packets = self._read()
        ahead: list[Any] = []
        reorders = self._stream.codec_context.reorder_depth > 0
        container = self._container.format.name
        avi = container == "avi"  # where FFmpeg makes the pts up
        if avi or (reorders and container == "asf"):
            ahead = list(islice(packets, _PACKETS_AHEAD))
            self._queued = _decoding_stamps(ahead)
        for packet in chain(ahead, packets):
            if packet is not None and not packet.size and packet.dts is not None:
                if self.good and not reorders:
                    yield None, _stamp(packet)
                continue
            for frame in self._decode(packet):
                stamp = frame.dts if avi else _stamp(frame)
                if self._queue:
                    stamp = self._queue.popleft()
                if frame.is_corrupt:
                    self._fault()
                self.good += not frame.is_corrupt
                if self.good:
                    yield frame, stamp
                    self.has_jumped = False
                    if seek_to > 0 and stamp is not None:
                        self._seek(stamp + round(seek_to / self._stream.time_base))
                        seek_to = 0.0  # once
                    if self.has_jumped:
                        break

    def _seek(self, stamp: int) -> None:
        """Read on from the last key frame until then, and count from there, if possible."""
        if not any(name in self._container.format.name for name in _SEEKABLE):
            return
        with contextlib.suppress(av.error.FFmpegError):
            self._container.seek(stamp, stream=self._stream)
            self.has_jumped, self._started, self._faults = True, False, []
            self.good = self._packets = self._shown = 0

    def counts(self, header: Outcome, kept: int, reach: float) -> Counts:
        """What decoding came to, with frames kept and the reach of the clock.

        Frames after the last fault can be missing without the index showing it, and nothing
        follows an incomplete packet.
        """
        start = float((self._stream.start_time or 0) * self._stream.time_base)
        faults = len(self._faults)
        ends = self._cut or not header.frames
        return Counts(
            good=self.good,
            kept=kept,
            packets=self._packets,
            faults=faults,
            tail=self._faults.count(self._packets) if ends else 0,
            lost=max(faults, self._shown - self.good) if faults else 0,
            reached=max(reach, self._end - start),
        )

    def _read(self) -> Iterator[Any]:
        """The packets of the stream; None for each that cannot be read."""
        packets = self._container.demux()
        errors = 0
        while errors < _READING_ERRORS:
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                return
            except (av.error.FFmpegError, IndexError) as error:
                errors += 1
                packets = self._container.demux()  # reading may go on after the fault
                # A stream that begins later has no index, and mpjpeg no other end.
                new = isinstance(error, IndexError)
                if not new and self._container.format.name != "mpjpeg":
                    yield None
                continue
            errors = 0
            own = packet.stream is self._stream
            stamp = _stamp(packet)
            if stamp is not None and (own or self._stream.duration is None):
                end = (stamp + (packet.duration or 0)) * (packet.time_base or 0)
                self._end = max(self._end, float(end))
            if own:
                yield packet

    def _decode(self, packet: Any) -> list[Any]:
        """The frames that a packet completes."""
        if packet is None:
            self._fault()
            return []
        if packet.size:
            self._packets += 1
            self._shown += not packet.is_discard
            self._cut = packet.is_corrupt
            self._started = self._started or packet.is_keyframe
            self.encrypted |= packet.has_sidedata("encryption_info")
            if self._queued:
                self._queue.append(getattr(packet, self._queued))
        try:
            frames: list[Any] = packet.decode()
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self._fault()
            if self._queue:
                self._queue.pop()
            return []
        return frames

    def _fault(self) -> None:
        """Count a frame as damaged or missing, unless it precedes all key frames."""
        if self._started or self.good:
            self._faults.append(self._packets)


def _stamp(unit: Any) -> int | None:
    """When a packet or a frame is shown, as far as its file says."""
    stamp: int | None = unit.dts if unit.pts is None else unit.pts
    return stamp


def _decoding_stamps(packets: list[Any]) -> str:
    """Which stamps of AVI or ASF are in the order of decoding, though frames are reordered.

    FFmpeg then takes the next packet's for the time at which a frame is shown. "": packets
    have the times of their own frames.
    """
    packets = [packet for packet in packets if packet is not None and packet.size]
    shown = [packet.pts for packet in packets]
    decoded = [packet.dts for packet in packets]
    if None not in shown and any(a >= b for a, b in pairwise(shown)):
        return ""
    if None not in decoded:
        return "dts"
    return "" if None in shown else "pts"
