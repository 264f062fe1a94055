"""A video's packets: its frames, their time, and what tells whether the end is there."""

from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from vd.data.outcome import Outcome

_HOLE_STEPS, _HOLE_SECONDS = 10, 0.5  # a longer way to the next frame is a hole
_STUMBLES = 50  # errors of reading in a row, then the rest of the file is given up


class Reader:
    """Decodes one stream; notes faults, and what the packets of all streams tell of the end."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self.end = 0.0  # seconds at which the last packet of all streams ends
        self._packets = 0  # of the one stream
        self._short = False  # whether the last one lacks bytes
        self._faults: list[int] = []  # the number of the packet read last at each

    def frames(self) -> Iterator[Any]:
        """Decoded frames; None for each packet that cannot be read or decoded."""
        packets = self._container.demux()
        stumbles = 0
        while stumbles < _STUMBLES:
            try:
                packet = next(packets)
                stumbles = 0
                self._note(packet)
                if packet.stream is self._stream:
                    yield from packet.decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError:
                stumbles += 1
                packets = self._container.demux()  # it may go on behind the fault
                yield None

    def fault(self) -> None:
        """Note that the frame at hand is damaged or lost."""
        self._faults.append(self._packets)

    def faults(self, header: Outcome, ended: bool) -> tuple[int, int]:
        """The number of faults, and of those with which the file ends, if it has `ended`.

        Behind the last of them may lack what no index counts, and behind a packet that
        lacks bytes there is nothing.
        """
        faults, tail = len(self._faults), 0
        if not ended:
            return faults, 0
        if self._short or not header.frames:
            tail = self._faults.count(self._packets)
        return faults, tail

    def _note(self, packet: Any) -> None:
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base is not None:
            seconds = (stamp + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, float(seconds))
        if packet.stream is self._stream and packet.size:
            self._packets += 1
            self._short = packet.is_corrupt


class Clock:
    """Seconds since a video's first frame: by time stamp, else by counting."""

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
        """The time of the next frame, after the one before."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        self.origin = stamp if self.origin is None else self.origin
        before = self._times[-1] if self._times else -self._step
        seconds = before
        if stamp is not None:
            seconds = float((stamp - self.origin) * self._time_base)
        if seconds <= before:
            seconds = before + self._step
        self._times.append(seconds)
        return seconds

    def holes(self, begin: float, end: float) -> int:
        """Number of steps that end in [begin, end) and are far longer than usual.

        Lost data and a paused camera look alike: so a hole makes a video partial, which
        is reported, and by itself never loses it.
        """
        if len(self._times) < 2:
            return 0
        steps, ends = np.diff(self._times), np.array(self._times[1:])
        least = max(_HOLE_STEPS * np.median(steps), _HOLE_SECONDS)
        return int(np.sum((steps > least) & (begin <= ends) & (ends < end)))
