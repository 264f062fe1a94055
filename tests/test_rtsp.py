"""Cameras that speak RTSP: played, stalled, changed and lost; nothing is left of any."""

import json
import os
import stat
import threading
import time
from contextlib import suppress

import pytest

from tests.broken import noisy_frames, render
from tests.command_line import vd, vd_process
from tests.rtsp_server import STALL, camera
from tests.test_cameras import WINDOWS, kinds, of_type
from vd.config import LiveConfig
from vd.predict.watch import watch

ONCE = LiveConfig(reconnect_attempts=0, read_timeout_seconds=20.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four seconds, which a backlog holds, in two sizes."""
    folder = tmp_path_factory.mktemp("rtsp")
    render(folder / "short.mp4", noisy_frames(100), b_frames=0)
    render(folder / "large.mp4", noisy_frames(100, 64, 96), b_frames=0)
    return folder


def sockets():
    """Numbers of the open sockets."""
    found = set()
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the listing's own
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found.add(number)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Neither a socket nor the thread of a source."""
    before = sockets()
    yield
    assert sockets() <= before
    assert not [t for t in threading.enumerate() if t.name.startswith("source")]


def test_the_command_line_sees_the_events_of_the_file_that_a_camera_plays(
    trained, always, folder
):
    (prediction,) = always.predict([folder / "short.mp4"])
    (event,) = prediction.events
    run = "--checkpoint-dir", trained[0] / "run", "--reconnect-attempts", 0
    with camera([folder / "short.mp4"]) as server:
        done = vd("predict", server.address, *WINDOWS, *run)
    assert server.methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    (end,) = of_type(records, "end")
    assert {key: end[key] for key in event.to_dict()} == event.to_dict()
    assert (records[-1]["reason"], records[-1]["frames"]) == ("ended", 32)
    assert records[-1]["dropped"] == 0
    assert "rtsp://u:***@127.0.0.1" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_a_camera_that_stalls_is_opened_again_after_a_pause(always, folder):
    config = LiveConfig(
        reconnect_seconds=0.5, reconnect_attempts=1, read_timeout_seconds=2.0
    )
    programs = [folder / "short.mp4", STALL], [folder / "large.mp4"]
    with camera(*programs, rate=4.0) as server:
        records = list(watch([server.address], always, config))
    assert [kind for kind in kinds(records) if kind.startswith("status")] == [
        "status connected", "status lost", "status connected", "status lost",
        "status ended",
    ]  # fmt: skip
    reasons = [gap["reason"] for gap in of_type(records, "gap")]
    assert reasons == ["timeout", "timeout", "ended"]  # its beginning, and its end
    first, second, *_ = server.came
    played = 3.96 / 4  # to the last frame, at four times real time
    assert played + 2.0 + 0.5 < second - first < played + 2 * 2.0 + 0.5
    before, after = of_type(records, "end")
    assert (before["id"], after["id"]) == (1, 2)
    lost, found, _ = of_type(records, "gap")
    assert before["end"] <= lost["start"] <= found["end"] <= after["start"]


def test_a_camera_that_changes_its_size_starts_the_window_again(always, folder):
    with camera([folder / "short.mp4", folder / "large.mp4"]) as server:
        records = list(watch([server.address], always, ONCE))
    begun, ended, _ = of_type(records, "gap")
    assert begun["reason"] == ended["reason"] == "changed size"
    assert begun["start"] == ended["end"] == pytest.approx(4.0, abs=0.01)
    before, after = of_type(records, "end")
    assert before["end"] < begun["start"] < after["start"]
    assert (records[-1]["frames"], len(server.came)) == (64, 1)


@pytest.mark.slow
def test_a_process_ends_in_time_while_its_camera_stalls(trained, folder):
    run = "--checkpoint-dir", trained[0] / "run", "--read-timeout-seconds", 60
    began = time.monotonic()
    with camera([folder / "short.mp4", STALL]) as server:
        done = vd_process(
            "predict", server.address, *WINDOWS, *run, "--duration", 4, timeout=50
        )
    assert time.monotonic() - began < 50
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert kinds(records)[:2] == ["status connected", "new"]
    assert (records[-1]["state"], records[-1]["reason"]) == ("ended", "stopped")
