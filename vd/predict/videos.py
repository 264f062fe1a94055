"""Pictures and videos of a predicted file: key frames, cut events, the annotated whole.

Written is what every player plays: H.264, yuv420p, in an MP4 whose index comes first, at the
source's times, upright, the sound copied.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from jaxtyping import UInt8

from vd.console import check_interrupt, clock, say
from vd.data.outcome import select_stream
from vd.errors import VdError
from vd.files import write_bytes, writing
from vd.predict.hysteresis import Event
from vd.predict.recording import Timeline
from vd.predict.windows import Span

Image = UInt8[np.ndarray, "H W 3"]  # RGB, upright
Draw = Callable[[Image, float], None]  # into an image, by its seconds in the file

_SOUND = (  # decoders of what MP4 files hold
    "aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "flac",
)  # fmt: skip
_RED, _WHITE, _BLACK = (213, 94, 0), (255, 255, 255), (0, 0, 0)


class _Source:
    """An open file, read from its first video frame or from a time on."""

    def __init__(self, container: Any, path: Path) -> None:
        stream, _ = select_stream(container, max_pixels=2**31)
        self.container, self.video, self.path = container, stream, path
        self.audio = container.streams.best("audio")
        stream.thread_type = "AUTO"
        self.origin = 0.0  # of the first frame, in seconds
        packets = container.demux(stream)
        found = (frame for packet in packets for frame, _ in self.frames(packet))
        self.first: Any = next(found, None)
        if self.first is None:
            raise VdError(f"{container.name} gives no frame when it is read again.")
        self.origin = float(self.first.time)

    def packets(self, start: float) -> Iterator[Any]:
        """Packets of picture and sound from a key frame before `start` on."""
        streams = [s for s in (self.video, self.audio) if s is not None]
        offset = round((self.origin + max(start, 0.0)) / self.video.time_base)
        self.container.seek(offset, stream=self.video)
        try:
            for packet in self.container.demux(streams):
                check_interrupt()
                yield packet
        except av.error.FFmpegError:  # damaged; prediction has said so
            return

    def frames(self, packet: Any) -> Iterator[tuple[Any, float]]:
        """The frames that a packet of the picture completes, with their seconds."""
        try:
            frames = packet.decode()
        except av.error.FFmpegError:  # damaged as well
            return
        for frame in frames:
            if frame.time is not None:
                yield frame, frame.time - self.origin


@contextmanager
def _open(path: Path) -> Iterator[_Source]:
    with av.open(str(path.absolute()), metadata_errors="replace") as container:
        yield _Source(container, path)


def write_key_frames(path: Path, events: Sequence[Event], folder: Path) -> None:
    """Write event-<id>.jpg of each event: the frame at its peak."""
    with _open(path) as source:
        for event in events:
            packets = source.packets(event.peak_time)
            frames = (
                f for p in packets if p.stream is source.video for f in source.frames(p)
            )
            frame = next((f for f, at in frames if at >= event.peak_time), source.first)
            bgr = cv2.cvtColor(_upright(frame), cv2.COLOR_RGB2BGR)
            _, content = cv2.imencode(".jpg", bgr)
            write_bytes(folder / f"event-{event.id}.jpg", content.tobytes())


def write_video(
    path: Path, target: Path, between: Span, cut: bool, draw: Draw | None = None
) -> None:
    """Write the part of a file between two times as MP4; `cut`: its times begin at 0."""
    start, end = between
    with (
        writing(target) as temporary,
        _open(path) as source,
        av.open(
            str(temporary), "w", format="mp4", options={"movflags": "faststart"}
        ) as output,
    ):
        shift = source.origin + start if cut else 0.0
        writer = _Writer(output, source, shift, draw)
        for packet in source.packets(start):
            if packet.stream is not source.video:
                at = None if packet.pts is None else packet.pts * packet.time_base
                if at is not None and start <= at - source.origin < end:
                    writer.copy(packet)
                continue
            for frame, seconds in source.frames(packet):
                if start <= seconds < end:
                    writer.encode(frame, seconds)
                elif seconds >= end + 1:  # the sound may lag behind
                    writer.finish()
                    return
        writer.finish()


class _Writer:
    """Encodes frames and copies sound into an MP4 file."""

    def __init__(
        self, output: Any, source: _Source, shift: float, draw: Draw | None
    ) -> None:
        self._output, self._shift, self._draw = output, shift, draw
        rate = source.video.average_rate or 25
        self._video = output.add_stream("libx264", rate, {"preset": "veryfast"})
        height, width = _upright(source.first).shape[:2]
        self._video.width, self._video.height = width - width % 2, height - height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = self._base = source.video.time_base
        self._audio, self._last = None, -(2**62)
        if source.audio is None:
            return
        if (name := source.audio.codec_context.name) in _SOUND:
            self._audio = output.add_stream_from_template(source.audio)
        else:
            _say_silent(source.path, name)

    def encode(self, frame: Any, seconds: float) -> None:
        """Write a frame, drawn on, at its time."""
        stamp = frame.pts - round(self._shift / self._base)
        if stamp <= self._last:
            return
        self._last = stamp
        image = np.ascontiguousarray(_upright(frame))
        if self._draw:
            self._draw(image, seconds)
        new = av.VideoFrame.from_ndarray(image, "rgb24")
        size = {"width": self._video.width, "height": self._video.height}
        new = new.reformat(format="yuv420p", **size)
        new.pts, new.time_base = stamp, self._base
        self._output.mux(self._video.encode(new))

    def copy(self, packet: Any) -> None:
        """Write a packet of the sound at its time."""
        if self._audio is None or packet.dts is None:
            return
        ticks = round(self._shift / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packet.stream = self._audio
        self._output.mux(packet)

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._output.mux(self._video.encode(None))


@cache  # once a file, of which several videos may be written
def _say_silent(path: Path, sound: str) -> None:
    """Say that what is written of a file has no sound."""
    say(
        f"{path}: its sound ({sound}) cannot be copied into an MP4 file and is left out"
    )


def _upright(frame: Any) -> Image:
    image: np.ndarray = np.rot90(
        frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4
    )
    return image


def annotation(timeline: Timeline, events: Sequence[Event]) -> Draw:
    """Draws time and probability into each frame, and a frame about it during events."""
    spans = [(event.start, event.end or event.start) for event in events]

    def draw(image: Image, seconds: float) -> None:
        height, width = image.shape[:2]
        nearest = int(np.argmin(np.abs(timeline.seconds_W - seconds)))
        probability = float(timeline.probability_W[nearest])
        bar = max(4, height // 40)
        cv2.rectangle(image, (0, height - bar), (width, height), _BLACK, -1)
        end = round(width * probability), height
        cv2.rectangle(image, (0, height - bar), end, _RED, -1)
        text = f"{clock(seconds)}  {probability:.2f}"
        scale, thick = height / 480, max(1, height // 240)
        place = bar, height - 2 * bar
        for colour, more in ((_BLACK, 2), (_WHITE, 0)):
            cv2.putText(
                image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour,
                thick + more, cv2.LINE_AA,
            )  # fmt: skip
        if any(start <= seconds <= end for start, end in spans):
            corner = width - 1, height - 1
            cv2.rectangle(image, (0, 0), corner, _RED, 2 * thick)

    return draw
