"""Threads that read addresses and cameras, and what waits between them and the backbone."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from vd.config import LiveConfig
from vd.data.clock import FRAMES_PER_SECOND, GAP_STEPS
from vd.data.decode import FrameFeed, FrameSettings, Sink, open_decoder
from vd.data.outcome import select_stream
from vd.errors import VdError
from vd.predict.live import Lost, Pair

_MOST_WAITING = (
    32  # pairs a source: the seconds that come at once when a stream is opened
)
_HOLE = GAP_STEPS / FRAMES_PER_SECOND  # seconds of dropped pairs that no window spans
_OPTIONS = {
    "rtsp_transport": "tcp",
    "overrun_nonfatal": "1",  # of UDP: a full buffer loses packets, not the stream
    "buffer_size": str(1 << 22),
    "correct_ts_overflow": "0",  # as for files: the clock takes a restart for one
}

Opener = Callable[[str, float], Any]  # address and timeout in seconds → av container


class Connected(NamedTuple):
    """The first frame of a connection has come."""

    description: str
    began: float  # Unix time of the source's second 0


class Ended(NamedTuple):
    """The source is not opened again."""

    reason: str


class Failed(NamedTuple):
    """The reader met an error that is no source's."""

    error: Exception


Note = Pair | Lost | Connected | Ended | Failed


class Taken(NamedTuple):
    """What came of a source, and when, in seconds of `time.monotonic`."""

    source: int
    note: Note
    arrived: float


class Backlog:
    """What has come of all sources and is not processed.

    Where more than a few seconds of pairs wait, the oldest is dropped and counted; nothing
    else is dropped.
    """

    def __init__(self, sources: int, most_pairs: int = _MOST_WAITING) -> None:
        self.dropped = [0] * sources
        self._most = most_pairs
        self._changed = threading.Condition()
        self._closed = False
        self._waiting = [deque[Taken]() for _ in range(sources)]
        self._last = [0.0] * sources  # seconds of the last pair that was taken
        self._skips = [False] * sources  # whether a pair has been dropped since

    def put(self, source: int, note: Note, wait: bool = False) -> None:
        """Add what has come; with `wait` a pair waits for room, so that none is dropped."""
        with self._changed:
            if isinstance(note, Pair):
                while wait and self._is_full(source) and not self._closed:
                    self._changed.wait()
                if self._is_full(source):
                    self._drop(source)
            self._waiting[source].append(Taken(source, note, time.monotonic()))
            self._changed.notify_all()

    def take(self, most_pairs: int, timeout: float) -> list[Taken]:
        """What came first of all sources, in order; waits so many seconds at most."""
        with self._changed:
            if not any(self._waiting):
                self._changed.wait(timeout)
            taken, pairs = list[Taken](), 0
            while pairs < most_pairs and any(self._waiting):
                queues = (queue for queue in self._waiting if queue)
                first = min(queues, key=lambda queue: queue[0].arrived).popleft()
                if isinstance(first.note, Pair):
                    pairs += 1
                    taken += self._hole(first, first.note)
                taken.append(first)
            self._changed.notify_all()
            return taken

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        with self._changed:
            return not any(self._waiting)

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_full(self, source: int) -> bool:
        waiting = self._waiting[source]
        return sum(isinstance(taken.note, Pair) for taken in waiting) >= self._most

    def _drop(self, source: int) -> None:
        """Drop the oldest pair of a source."""
        waiting = self._waiting[source]
        del waiting[next(i for i, t in enumerate(waiting) if isinstance(t.note, Pair))]
        self.dropped[source] += 1
        self._skips[source] = True

    def _hole(self, first: Taken, pair: Pair) -> list[Taken]:
        """A loss before a pair, where so many were dropped that no window may span them."""
        source, missing = first.source, pair.seconds - self._last[first.source]
        hole = self._skips[source] and missing > _HOLE
        self._last[source], self._skips[source] = pair.seconds, False
        return [first._replace(note=Lost("dropped"))] if hole else []


def open_source(address: str, timeout: float) -> Any:
    """Open an address, or a camera by its number; raises `av.error.FFmpegError`."""
    if not address.isdigit():
        return av.open(
            address, options=_OPTIONS, timeout=timeout, metadata_errors="replace"
        )
    if sys.platform == "linux":
        return av.open(f"/dev/video{address}", format="v4l2", timeout=timeout)
    if sys.platform == "darwin":
        rate = {"framerate": "30"}
        return av.open(address, format="avfoundation", options=rate, timeout=timeout)
    raise VdError(
        f"camera {address} cannot be opened: cameras are read on Linux and macOS; give the "
        "address of a stream."
    )


class Reader(threading.Thread):
    """Reads and decodes one source, and opens it again when it is lost."""

    def __init__(
        self,
        source: int,
        address: str,
        backlog: Backlog,
        frames: FrameSettings,
        config: LiveConfig,
        opener: Opener,
    ) -> None:
        # a daemon: the process may end while a read waits for its timeout
        super().__init__(name=f"source {source}", daemon=True)
        self._source, self._address, self._backlog = source, address, backlog
        self._frames, self._config, self._opener = frames, config, opener
        self._stopped = threading.Event()
        self._began: tuple[float, float] | None = None  # monotonic and Unix time
        self._sink = _ToBacklog(source, backlog)

    def stop(self) -> None:
        """Read no more; a read under way ends by itself, at the latest at its timeout."""
        self._stopped.set()

    def run(self) -> None:
        """Read until the source has ended or `stop` is called."""
        try:
            self._read_again_and_again()
        except Exception as error:  # noqa: BLE001  # raised by `watch`
            self._put(Failed(error))

    def _put(self, note: Note) -> None:
        self._backlog.put(self._source, note)

    def _read_again_and_again(self) -> None:
        attempts, failures = self._config.reconnect_attempts, 0
        while not self._stopped.is_set():
            before = self._sink.kept
            reason = self._read_once()
            gave = self._sink.kept > before
            failures = 1 if gave else failures + 1
            tired = attempts is not None and failures > attempts
            if tired or (gave and self._sink.wait):  # a recording would begin again
                self._put(Ended(reason))
                return
            self._put(Lost(reason, is_closed=True))
            self._stopped.wait(self._config.reconnect_seconds)

    def _read_once(self) -> str:
        """Open the source and read it; why that ended."""
        try:
            timeout = self._config.read_timeout_seconds
            with self._opener(self._address, timeout) as container:
                return self._read(container)
        except (av.error.ExitError, TimeoutError):
            return "timeout"
        except (av.error.FFmpegError, OSError) as error:
            return error.strerror or type(error).__name__  # else it names the address

    def _read(self, container: Any) -> str:
        stream, header = select_stream(container, self._frames.max_pixels)
        if header.reason:
            return header.reason
        if not open_decoder(stream):
            return "corrupt-frames"
        # what has a length is a recording, which comes faster than real time
        self._sink.wait = self._address.startswith("http") and bool(container.duration)
        feed = FrameFeed(self._frames, self._sink, stream.time_base, header.fps)
        try:
            return self._decode(container, stream, feed)
        finally:
            feed.finish()

    def _decode(self, container: Any, stream: Any, feed: FrameFeed) -> str:
        size: tuple[int, int] | None = None
        timeout = self._config.read_timeout_seconds
        for frame in _frames(container, stream, timeout):
            if self._stopped.is_set():
                return "stopped"
            now = frame.width, frame.height
            if now[0] * now[1] > self._frames.max_pixels:
                return "too-large"
            if size is None:
                if frame.is_corrupt:  # before the first key frame
                    continue
                self._connect(f"{now[0]} × {now[1]}, {stream.codec_context.name}")
            elif now != size:  # no motion between frames of two sizes
                feed.finish()
                self._put(Lost("changed size"))
            size = now
            feed.add(frame, frame.dts if frame.pts is None else frame.pts)
        return "ended"

    def _connect(self, description: str) -> None:
        """Set the time of the connection's first frame, and say that it has come."""
        if self._began is None:
            self._began = time.monotonic(), time.time()
        else:
            now = time.monotonic() - self._began[0]
            after = self._sink.last + 1 / FRAMES_PER_SECOND
            self._sink.origin = max(now, after)
        self._put(Connected(description, self._began[1]))


def _frames(container: Any, stream: Any, timeout: float) -> Iterator[Any]:
    """Decoded frames; what is damaged is left out. Raises the errors of reading."""
    packets = container.demux(stream)
    while True:
        asked = time.monotonic()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:  # another stream has begun, and has no index
            packets = container.demux(stream)
            continue
        # on an error FFmpeg first gives the packet that its parser holds
        is_late = time.monotonic() - asked >= timeout
        if not packet.size and packet.dts is not None:
            continue
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:  # a damaged packet
            frames = []
        yield from frames
        if is_late:
            raise TimeoutError


class _ToBacklog(Sink):
    """Hands over what a connection gives, at the times of its source."""

    def __init__(self, source: int, backlog: Backlog) -> None:
        self.kept, self.last = 0, 0.0  # frames, and seconds of the last one
        self.origin = 0.0  # seconds of the connection's first frame
        self.wait = False  # for room, rather than drop
        self._source, self._backlog = source, backlog

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Hand over a pair."""
        assert images is not None
        self.kept, self.last = self.kept + 1, self.origin + seconds
        self._backlog.put(self._source, Pair(images, self.last), self.wait)

    def gap(self) -> None:
        """Hand over a gap."""
        self._backlog.put(self._source, Lost("missing"))
