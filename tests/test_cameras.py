"""Addresses and cameras over loopback: events, gaps and states, whatever happens to them."""

import json
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from tests.broken import noisy_frames, remux, render
from tests.command_line import VD, vd
from vd.config import LiveConfig
from vd.predict.live import Lost, Pair
from vd.predict.readers import Backlog, Connected
from vd.predict.watch import watch

ONCE = LiveConfig(reconnect_attempts=0, read_timeout_seconds=20.0)
WINDOWS = ["--threshold", 0, "--window-seconds", 2, "--stride-seconds", 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """short: four seconds, which a backlog holds; long: ten, which it does not."""
    folder = tmp_path_factory.mktemp("streams")
    render(folder / "short.mp4", noisy_frames(100), b_frames=2)
    render(folder / "long.mp4", noisy_frames(250), b_frames=2, movflags="faststart")
    render(folder / "large.mp4", noisy_frames(100, 64, 96), b_frames=2)
    for name in ("short", "large"):
        remux(folder / f"{name}.mp4", folder / f"{name}.ts")
    return folder


def kinds(records):
    """Types in order; of a status its state too. Higher peaks are left out."""
    return [
        f"{r['type']} {r['state']}" if r["type"] == "status" else r["type"]
        for r in records
        if r["type"] != "update"
    ]


def of_type(records, kind):
    return [record for record in records if record["type"] == kind]


def pair(seconds):
    return Pair(np.zeros((1, 2, 2, 3), np.uint8), seconds)


def test_a_backlog_drops_the_oldest_pair_counts_it_and_keeps_what_is_no_pair():
    backlog = Backlog(2, most_pairs=3)
    notes = [Connected("", 0.0), pair(0.0), pair(0.1), Lost("x"), pair(0.2), pair(0.3)]
    for note in notes:
        backlog.put(0, note)
    backlog.put(1, pair(9.0))
    assert backlog.dropped == [1, 0]
    taken = backlog.take(3, timeout=0)
    assert [t.note for t in taken] == [notes[0], *notes[2:]]
    (other,) = backlog.take(3, timeout=0)
    assert (other.source, other.note.seconds) == (1, 9.0)
    assert backlog.take(3, timeout=0) == []


def test_no_window_spans_many_dropped_pairs():
    backlog = Backlog(1, most_pairs=2)
    backlog.put(0, pair(0.0))
    backlog.take(1, timeout=0)
    for eighth in range(1, 14):
        backlog.put(0, pair(eighth / 8))
    before, first, second = (t.note for t in backlog.take(9, timeout=0))
    assert before == Lost("dropped")
    assert (first.seconds, second.seconds, backlog.dropped) == (1.5, 1.625, [11])
    for eighth in (14, 15, 16):
        backlog.put(0, pair(eighth / 8))
    assert len(backlog.take(9, timeout=0)) == 2  # one is missing, which is no gap


def test_a_camera_has_the_events_of_the_file_that_it_plays(always, folder):
    (prediction,) = always.predict([folder / "short.mp4"])
    (event,) = prediction.events
    opened = []

    def opener(address, timeout):
        opened.append((address, timeout))
        return av.open(str(folder / "short.mp4"))

    before = time.time()
    records = list(watch(["0"], always, ONCE, opener=opener))
    assert opened == [("0", 20.0)]
    assert sorted(kinds(records)) == sorted(
        ["status connected", "new", "end", "gap", "status ended"]
    )
    (end,) = of_type(records, "end")
    assert {k: end[k] for k in event.to_dict()} == event.to_dict()
    last = records[-1]
    assert (last["reason"], last["frames"], last["dropped"]) == ("ended", 32, 0)
    assert (last["share_dropped"], last["seconds"]) == (0.0, pytest.approx(3.88))
    assert before <= last["began"] <= time.time()
    assert not [t for t in threading.enumerate() if t.name.startswith("source")]


def test_a_lost_camera_is_opened_again_and_its_times_go_on(always, folder, capsys):
    refused = av.error.ConnectionRefusedError(111, "refused", "rtsp://u:secret@h")
    turns = iter([refused, "short.mp4", refused, "large.mp4", refused, refused])

    def opener(address, timeout):
        turn = next(turns)
        if isinstance(turn, Exception):
            raise turn
        return av.open(str(folder / turn))

    config = LiveConfig(reconnect_seconds=0.0, reconnect_attempts=2)
    records = list(watch(["rtsp://u:secret@h"], always, config, opener=opener))
    assert {record["source"] for record in records} == {"rtsp://u:***@h"}
    first, second = of_type(records, "end")
    assert (first["id"], second["id"]) == (1, 2)
    begun, ended, last = of_type(records, "gap")
    assert begun == {**ended, "end": None}
    assert begun["start"] == pytest.approx(4.0, abs=0.01)
    assert first["end"] < begun["start"] <= ended["end"] < second["start"]
    assert ended["reason"] == "ended"
    assert last["end"] is None
    assert (records[-1]["state"], records[-1]["reason"]) == ("ended", "refused")
    printed = capsys.readouterr().err
    assert "rtsp://u:***@h: connected (96 × 64, h264)" in printed
    assert "secret" not in printed + json.dumps(records)


def test_an_error_of_the_program_is_raised_and_no_thread_is_left(always):
    def opener(address, timeout):
        raise LookupError("a mistake")

    with pytest.raises(LookupError, match="a mistake"):
        list(watch(["0", "1"], always, ONCE, opener=opener))
    assert not [t for t in threading.enumerate() if t.name.startswith("source")]


def test_an_interrupt_gives_the_ends_of_events_and_is_raised(always, folder):
    def opener(address, timeout):
        return av.open(str(folder / "short.mp4"))

    config = LiveConfig(reconnect_seconds=60.0)
    records = watch(["0"], always, config, opener=opener)
    assert "new" in (record["type"] for record in records)  # reads up to it
    rest = [records.throw(KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        rest += records
    assert kinds(rest)[-2:] == ["end", "status ended"]
    assert (rest[-1]["source"], rest[-1]["reason"]) == ("0", "stopped")


@contextmanager
def served(content_of):
    """An HTTP server; `content_of` gives bytes for a path, or chunks without a length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = content_of(self.path)
            self.send_response(200)
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
                content = [content]
            self.end_headers()
            with suppress(ConnectionError):
                for chunk in content:
                    self.wfile.write(chunk)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_changed_size_is_a_gap_and_other_cameras_go_on(always, folder):
    short, large = (folder / f"{n}.ts" for n in ("short", "large"))

    def content_of(path):
        yield short.read_bytes()
        if path == "/changes":
            yield large.read_bytes()

    with served(content_of) as address:
        names = [f"{address}/{path}" for path in ("same", "changes")]
        records = list(watch(names, always, ONCE))
    same, changes = ([r for r in records if r["source"] == name] for name in names)
    assert len(of_type(same, "end")) == 1
    first, second = of_type(changes, "end")
    begun, ended, _ = of_type(changes, "gap")
    assert begun["reason"] == ended["reason"] == "changed size"
    assert begun["start"] == ended["start"] == ended["end"]  # no time is missing
    assert begun["start"] == pytest.approx(4.0, abs=0.01)
    assert first["end"] < begun["start"] < second["start"]
    assert [r["dropped"] for r in records if r["type"] == "status"][-2:] == [0, 0]


def test_a_recording_at_an_address_is_predicted_whole(trained, always, folder):
    (prediction,) = always.predict([folder / "long.mp4"])
    with served(lambda path: (folder / "long.mp4").read_bytes()) as address:
        where = f"{address}/long.mp4?password=secret"
        run = "--checkpoint-dir", trained[0] / "run"
        done = vd("predict", where, *WINDOWS, *run, "--duration", 60)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    (end,), (event,) = of_type(records, "end"), prediction.events
    assert {k: end[k] for k in event.to_dict()} == event.to_dict()
    assert (records[-1]["frames"], records[-1]["dropped"]) == (80, 0)
    assert "password=***: ended\n" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def nobody_listens():
    """An address at which every connection is refused."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"rtsp://127.0.0.1:{free.getsockname()[1]}/door"


def test_what_was_never_there_ends_with_1(trained):
    address = nobody_listens()
    run = "--checkpoint-dir", trained[0] / "run"
    done = vd("predict", address, "--reconnect-attempts", 0, *run, code=1)
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert (record["state"], record["reason"]) == ("ended", "Connection refused")
    assert record["began"] is None


def test_a_watch_that_ends_in_time_is_1_when_a_source_gave_no_frame(trained, folder):
    run = "--checkpoint-dir", trained[0] / "run"
    missing, more = nobody_listens(), ("--reconnect-seconds", 60)
    with served(lambda _: (folder / "long.mp4").read_bytes()) as address:
        given = f"{address}/long.mp4"
        done = vd("predict", given, missing, *run, *more, "--duration", 5, code=1)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    last = {record["source"]: record for record in of_type(records, "status")}
    assert last[given]["frames"] > 0
    assert (last[missing]["state"], last[missing]["reason"]) == ("ended", "stopped")
    assert last[missing] == records[-1]


@pytest.mark.slow
def test_a_signal_ends_every_source_and_says_what_was_done(trained):
    asked = threading.Event()

    def content_of(_):
        asked.set()
        return b""

    with served(content_of) as address:
        command = [*VD, "predict", address, "--checkpoint-dir", str(trained[0] / "run")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            assert asked.wait(60)
            process.terminate()
            printed, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    record = json.loads(printed.splitlines()[-1])
    assert (record["state"], record["reason"]) == ("ended", "stopped")
    assert "vd: interrupted; what is printed is complete" in said


def send(path, address, rate, stopped):
    """Send the packets of a file as MPEG-TS, again and again, until it is stopped."""
    with av.open(str(path)) as source, av.open(address, "w", format="mpegts") as sink:
        stream = source.streams.video[0]
        copy, began, base = sink.add_stream_from_template(stream), time.monotonic(), 0.0
        while not stopped.is_set():
            source.seek(0)
            for packet in source.demux(stream):
                if packet.dts is None or stopped.is_set():
                    break
                packet.pts += round(base / packet.time_base)
                packet.dts += round(base / packet.time_base)
                due = began + float(packet.dts * packet.time_base) / rate
                time.sleep(max(0.0, due - time.monotonic()))
                packet.stream = copy
                with suppress(av.error.ConnectionRefusedError):  # nobody listens
                    sink.mux(packet)
            base += 4.0


@contextmanager
def sending(path, address):
    stopped = threading.Event()
    thread = threading.Thread(target=send, args=[path, address, 2.0, stopped])
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@pytest.mark.slow
def test_a_stalled_udp_stream_is_lost_and_found_again(always, folder):
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    config = LiveConfig(reconnect_seconds=0.1, read_timeout_seconds=2.0)
    records = watch([address], always, config, seconds=60.0)
    seen = []

    def until(kind):
        for record in records:
            seen.append(record)
            if kind in kinds([record]):
                return record
        raise AssertionError(f"{kind} did not come")

    sender = partial(sending, address=f"{address}?pkt_size=1316")
    with sender(folder / "short.mp4"):
        until("new")
    lost = until("status lost")
    assert lost["reason"] == "timeout"
    with sender(folder / "large.mp4"):
        assert until("status connected")["began"] == lost["began"]
        again = until("new")
    records.close()
    assert again["id"] == 2
    begun, ended = [gap for gap in of_type(seen, "gap") if gap["reason"] == "timeout"]
    assert begun["end"] is None
    assert ended["end"] - ended["start"] > 1.0
    assert of_type(seen, "end")[0]["end"] <= begun["start"] + 0.2
