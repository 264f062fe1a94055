"""A camera over loopback: an RTSP server that plays H.264 as RTP inside its TCP connection.

RFC 2326 from OPTIONS to PLAY, interleaved; RFC 6184 with single NAL units and FU-A. It wants a
user and password (Basic), as cameras do.
"""

import re
import select
import socketserver
import struct
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import av

STALL = "stall"  # send nothing until the client goes
_LARGEST = 500  # bytes of an RTP payload; small, so that most frames are fragmented
_CLOCK = 90_000
_LONGEST_STALL = 20.0  # seconds, so that a client that never closes fails its test
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
)


@contextmanager
def camera(
    *programs: Sequence[Path | str], rate: float = float("inf")
) -> Iterator["_Camera"]:
    """A server that plays the next program to each client, and hangs up on those after.

    A program is MP4 files and `STALL`, played in turn, so many times as fast as real time. A
    file of another size than the one before changes the size of the picture.
    """
    with _Camera(programs, rate) as server, server.served():
        yield server


class _Camera(socketserver.ThreadingTCPServer):
    """Listens; `server_close` waits for the threads of all clients."""

    def __init__(self, programs: Sequence[Sequence[Path | str]], rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.rate = rate
        self.came: list[float] = []  # when each client came
        self.methods: list[str] = []  # that were answered with 200
        self.address = f"rtsp://u:secret@127.0.0.1:{self.server_address[1]}/door"
        self._programs = iter(programs)

    def program(self) -> Sequence[Path | str]:
        """What the next client sees."""
        self.came.append(time.monotonic())
        return next(self._programs, ())

    def handle_error(self, request: object, client_address: object) -> None:
        """Raise a mistake of the server, which fails the test."""
        raise sys.exception()

    @contextmanager
    def served(self) -> Iterator[None]:
        """Clients are served while this lasts."""
        thread = threading.Thread(target=self.serve_forever, args=[0.05])
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()


class _Client(socketserver.StreamRequestHandler):
    """Answers one client, and plays to it."""

    server: _Camera

    def handle(self) -> None:
        """Answer requests until PLAY; play."""
        program = self.server.program()
        with suppress(ConnectionError):
            while program and (request := self._request()):
                if self._answer(*request):
                    self._play(program)
                    return

    def _request(self) -> tuple[str, dict[str, str]] | None:
        """Method and headers, names in lower case; None where the client has gone."""
        lines = list(iter(lambda: self.rfile.readline().decode().strip(), ""))
        if not lines:
            return None
        headers = (line.split(":", 1) for line in lines[1:])
        return lines[0].split()[0], {k.lower(): v.strip() for k, v in headers}

    def _answer(self, method: str, headers: dict[str, str]) -> bool:
        """Answer a request; whether it is time to play."""
        transport = "RTP/AVP/TCP;unicast;interleaved=0-1"
        more, body, status = "", "", "200 OK"
        if headers.get("authorization") != f"Basic {b64encode(b'u:secret').decode()}":
            status = "401 Unauthorized"
            more = 'WWW-Authenticate: Basic realm="door"\r\n'
        elif method == "DESCRIBE":
            body = _SDP
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            if "TCP" not in headers["transport"]:
                status = "461 Unsupported Transport"
            more = f"Transport: {transport}\r\n"
        if status == "200 OK":
            self.server.methods.append(method)
        head = f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\nSession: 1\r\n{more}"
        self.wfile.write(f"{head}\r\n{body}".encode())
        return method == "PLAY" and status == "200 OK"

    def _play(self, program: Sequence[Path | str]) -> None:
        """Send a program."""
        began, base, number = time.monotonic(), 0.0, 0
        for step in program:
            if step == STALL:
                # until TEARDOWN, or the connection's end
                select.select([self.connection], [], [], _LONGEST_STALL)
                return
            for seconds, units in _frames(Path(step)):
                due = began + (base + seconds) / self.server.rate
                time.sleep(max(0.0, due - time.monotonic()))
                for payload, is_last in _payloads(units):
                    stamp = (
                        round(_CLOCK * (base + seconds)) + 12345
                    )  # cameras begin anywhere
                    marked = 96 | is_last << 7
                    header = struct.pack(">BBHII", 0x80, marked, number, stamp, 1)
                    packet = header + payload
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                    number = (number + 1) % 65536
            base += seconds + 0.04


def _frames(path: Path) -> Iterator[tuple[float, list[bytes]]]:
    """Seconds and NAL units of each frame; parameter sets come before key frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start_codes = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            seconds = float((packet.pts or 0) * stream.time_base)
            for part in start_codes.filter(packet if packet.size else None):
                units = re.split(rb"\x00{2,3}\x01", bytes(part))
                yield seconds, [unit for unit in units if unit]


def _payloads(units: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """RTP payloads of a frame, and whether each is its last."""
    for number, unit in enumerate(units, 1):
        is_last = number == len(units)
        if len(unit) <= _LARGEST:
            yield unit, is_last
            continue
        kind, rest = unit[0] & 31, unit[1:]
        for first in range(0, len(rest), _LARGEST):
            ends = first + _LARGEST >= len(rest)
            header = kind | (not first) << 7 | ends << 6
            part = bytes([unit[0] & 0xE0 | 28, header]) + rest[first : first + _LARGEST]
            yield part, is_last and ends
