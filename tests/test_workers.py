"""Decoding in processes: order, deadlines, crashes, and that no worker is left behind."""

import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests import decoding
from tests.broken import (
    make_broken,
    noisy_frames,
    render,
    render_slow,
)
from vd.config import DecodeConfig
from vd.data import workers
from vd.data.decode import FrameSettings
from vd.data.workers import decode_pool, decode_videos, read_headers
from vd.errors import VdError

SMALL = FrameSettings(height=48, width=64)  # the size of the rendered clips
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")

SCRIPT = """
import sys
from pathlib import Path
from vd.config import DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.workers import decode_pool
from vd.data.workers import decode_videos

if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]]
    limits = DecodeConfig(decode_timeout_seconds=60, decode_workers=2)
    with decode_pool(FrameSettings(), limits, len(paths)) as pool:
        for piece in decode_videos(paths, pool):
            if piece.outcome is not None:
                print(piece.outcome.outcome, piece.outcome.reason, flush=True)
"""


class Faulty(type(Path())):
    """A path whose decoding stops at a frame: at another one in each pass, then at none.

    `at` are numbers of frames, −1 for before the header; `kind` is `hang`, `crash`, `full`
    (crash when two other workers wait with a finished stretch), `wait` (crash while the
    first stretch waits) or `pause` (go on when the file `….go` is there).
    """

    def __new__(cls, path, kind, *at):
        self = super().__new__(cls, path)
        self.kind, self.at = kind, at
        self.passes = Path(f"{path}.passes")
        self.passes.write_text("")
        return self

    def __reduce__(self):
        return _spoil, (str(self), self.kind, self.at)


def _spoil(path, kind, at):
    """In the worker, as it takes the task: have the decoding of a path stop."""
    passes = Path(f"{path}.passes")
    number = len(passes.read_text())
    passes.write_text("x" * (number + 1))
    intact = workers.decode

    def stop(sink):
        folder = Path(sink._name).parent
        while kind == "full" and len(list(folder.glob("*.frames"))) < 2:
            time.sleep(0.01)
        while kind == "hang" or (kind == "pause" and not Path(f"{path}.go").exists()):
            time.sleep(0.01)
        if kind != "pause":
            os.kill(os.getpid(), signal.SIGKILL)

    def stopping(other, settings, sink, *options):
        workers.decode = intact
        keep, stretch = sink.keep, sink.stretch

        def crash_waiting():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
            stretch()

        def stop_or_keep(images, seconds, frames):
            if frames > at[number]:
                stop(sink)
            keep(images, seconds, frames)

        if kind == "wait":
            sink.stretch = crash_waiting
        elif at[number] < 0:
            stop(sink)
        else:
            sink.keep = stop_or_keep
        return intact(other, settings, sink, *options)

    if number < len(at):
        workers.decode = stopping
    return Path(path)


def decode(paths, workers=2, deadline_seconds=60, stretch_seconds=30.0, **options):
    limits = DecodeConfig(deadline_seconds, workers)
    with decode_pool(SMALL, limits, len(paths), stretch_seconds) as pool:
        yield from decode_videos(paths, pool, **options)


def outcomes(pieces):
    return [(p.outcome.outcome, p.outcome.reason) for p in pieces if p.outcome]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return render(tmp_path_factory.mktemp("clip") / "a.mp4", noisy_frames(50))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A clip of 11 s of decoding."""
    return render_slow(tmp_path_factory.mktemp("slow") / "slow.mkv", 1500)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A clip of 110 frames at 25 a second."""
    return render(tmp_path_factory.mktemp("long") / "long.mkv", noisy_frames(110))


def workers_of(parent: int) -> list[int]:
    """Process ids of the decoding workers of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(status[1]) == parent and b"spawn_main" in command:
            found.append(int(folder.name))
    return found


def workers_reading(path: Path, parent: int, count: int = 1) -> list[int]:
    """The workers that have a file open, once there are `count`."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        found = [pid for pid in workers_of(parent) if _has_open(pid, path)]
        if len(found) == count:
            return found
    raise AssertionError(f"too few workers open {path}")


def _has_open(pid: int, path: Path) -> bool:
    try:
        files = list(Path(f"/proc/{pid}/fd").iterdir())
        return any(os.path.samefile(file, path) for file in files)
    except OSError:  # closed meanwhile
        return False


def assert_end(pids: list[int], seconds: float) -> None:
    """Every one of some processes ends in time."""
    give_up = time.monotonic() + seconds
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        left = max(give_up - time.monotonic(), 0)
        assert select.select([handle], [], [], left)[0], f"{pid} lives"
        os.close(handle)


def exchange_folders(pid: int) -> list[Path]:
    """The folders through which a process takes frames from its workers."""
    roots = Path("/dev/shm"), Path(tempfile.gettempdir())
    return [folder for root in roots for folder in root.glob(f"vd-*-{pid}-*")]


@pytest.fixture
def start_script(tmp_path):
    """Start a script that decodes videos, in a session of its own."""
    processes = []

    def start(paths, source=SCRIPT):
        script = tmp_path / "script.py"
        script.write_text(source)
        process = subprocess.Popen(
            [sys.executable, script, *paths],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_pieces_come_in_order_each_file_with_its_own_outcome(tmp_path, clip):
    expected = make_broken(tmp_path)
    paths = [clip, *(tmp_path / name for name in expected), clip]
    with decode_pool(SMALL, DecodeConfig(60, 2), len(paths)) as pool:
        whole, *broken, _ = read_headers(paths, pool)
        pieces = list(decode_videos(paths, pool))
    assert whole.duration == 2.0
    assert all(0 <= header.duration <= 2 for header in broken)
    assert [piece.index for piece in pieces] == list(range(len(paths)))
    found = outcomes(pieces)
    assert found == [("used", ""), *expected.values(), ("used", "")]
    alone, _ = decoding.decode_all(clip)
    for piece in (pieces[0], pieces[-1]):
        np.testing.assert_array_equal(piece.images, alone)


def test_the_first_video_in_line_has_a_worker_whatever_the_others_do(long):
    """It crashes in its second stretch, when all other workers are full."""
    first = Faulty(long, "full", 60)
    pieces = list(decode([first, *[long] * 4], workers=3, stretch_seconds=1.0))
    assert first.passes.read_text() == "xx"
    assert outcomes(pieces) == [("used", "")] * 5
    assert [piece.index for piece in pieces] == np.repeat(range(5), 5).tolist()
    whole, _ = decoding.record(long)
    for index in range(5):
        images = [piece.images for piece in pieces if piece.index == index]
        np.testing.assert_array_equal(np.concatenate(images), whole.images)
        seconds = [piece.seconds for piece in pieces if piece.index == index]
        np.testing.assert_array_equal(np.concatenate(seconds), whole.seconds)


def test_a_stretch_that_waits_while_its_worker_crashes_comes_again(long):
    waiting = Faulty(long, "wait", 0)
    with decode_pool(SMALL, DecodeConfig(60, 2), 2, stretch_seconds=1.0) as pool:
        pieces = decode_videos([long, waiting], pool)
        collected = [next(pieces)]
        while len(list(pool.folder.glob("*.frames"))) < 2:
            time.sleep(0.01)
        time.sleep(1)  # it crashes
        collected += pieces
    assert waiting.passes.read_text() == "xx"
    assert outcomes(collected) == [("used", "")] * 2
    one, other = (
        np.concatenate([piece.images for piece in collected if piece.index == index])
        for index in (0, 1)
    )
    np.testing.assert_array_equal(one, other)


LOST = {
    "hangs twice at one frame": ("hang", (80, 80), ("partial", "timeout", 2)),
    "hangs once": ("hang", (80,), ("used", "", 2)),
    "hangs before its header": ("hang", (-1, -1), ("quarantined", "timeout", 1)),
    "hangs early": ("hang", (40, 40), ("quarantined", "timeout", 1)),
    "hangs here and there": ("hang", (80, 90), ("quarantined", "timeout", 2)),
    "hangs there and here": ("hang", (90, 60), ("quarantined", "timeout", 2)),
    "crashes twice at one frame": ("crash", (80, 80), ("partial", "corrupt-frames", 2)),
    "crashes early": ("crash", (40, 40), ("quarantined", "corrupt-frames", 2)),
    "crashes here and there": ("crash", (80, 70), ("quarantined", "corrupt-frames", 2)),
}
NOT_KEPT = {name: LOST[name] for name in LOST if name.endswith(("frame", "early"))}
NOT_CONFIRMED = {
    "hangs": ("hang", (40, 40), ("partial", "timeout", 1)),
    "crashes earlier": ("crash", (40, 30), ("partial", "corrupt-frames", 2)),
    "crashes later": ("crash", (40, 80), ("partial", "corrupt-frames", 2)),
}


@pytest.fixture(scope="module")
def decode_stopping(tmp_path_factory, clip, long):
    """Decode a copy of a clip that stops for each case, and a whole one beside them."""

    def decode_all(cases, **options):
        folder = tmp_path_factory.mktemp("stopping")
        videos = []
        for number, (kind, at, _) in enumerate(cases.values()):
            copy = shutil.copy(long, folder / f"{number}.mkv")
            videos.append(Faulty(copy, kind, *at))
        pieces = list(decode([*videos, clip], 3, 2, 1.0, **options))
        results = [piece.outcome for piece in pieces if piece.outcome]
        assert results.pop().outcome == "used"
        images = [
            np.concatenate([p.images for p in pieces if p.index == index])
            for index in range(len(cases))
        ]
        found = {
            name: (result.outcome, result.reason, len(video.passes.read_text()))
            for name, video, result in zip(cases, videos, results, strict=True)
        }
        assert found == {name: expected for name, (_, _, expected) in cases.items()}
        return dict(zip(cases, zip(results, images, strict=True), strict=True))

    return decode_all


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "keep_images"), [(LOST, True), (NOT_KEPT, False)])
def test_a_video_that_stops_counts_if_it_stops_at_the_same_frame_again(
    decode_stopping, long, cases, keep_images
):
    whole, _ = decoding.decode_all(long)
    results = decode_stopping(cases, keep_images=keep_images)
    for name, (result, images) in results.items():
        size = result.width, result.height, result.codec
        known = name != "hangs before its header"
        assert size == ((64, 48, "h264") if known else (0, 0, ""))
        if result.outcome == "partial":
            assert 75 <= result.frames <= 80
            assert result.duration == pytest.approx(result.frames / 25, abs=0.15)
            assert len(images) == (25 if keep_images else 0)
        if result.outcome != "quarantined":
            np.testing.assert_array_equal(images, whole[: len(images)])


@pytest.mark.slow
def test_without_confirmation_a_video_gives_what_came(decode_stopping, long):
    whole, _ = decoding.decode_all(long)
    results = decode_stopping(NOT_CONFIRMED, confirm=False)
    frames = [result.frames for result, _ in results.values()]
    assert 35 <= frames[0] <= 40
    assert 35 <= frames[1] <= 40
    assert 75 <= frames[2] <= 80
    for _, images in results.values():
        assert len(images) >= 8
        np.testing.assert_array_equal(images, whole[: len(images)])


@pytest.mark.slow
def test_without_confirmation_a_slow_decoder_is_no_timeout(slow):
    pieces = list(decode([slow], 1, deadline_seconds=2, confirm=False))
    assert outcomes(pieces) == [("used", "")]
    assert outcomes(decode([slow], 1, deadline_seconds=2)) == [
        ("quarantined", "timeout")
    ]


@pytest.mark.slow
@needs_proc
def test_a_slow_consumer_is_no_timeout_and_few_stretches_wait_for_it(long):
    ended, most = [], 0
    with decode_pool(SMALL, DecodeConfig(1, 2), 8, stretch_seconds=1.0) as pool:
        for number, piece in enumerate(decode_videos([long] * 8, pool)):
            ended += outcomes([piece])
            for _ in range(31 if number == 2 else 1):  # once three deadlines
                time.sleep(0.1)
                maps = Path("/proc/self/maps").read_text()
                mapped = maps.count(f"{pool.folder}/")
                most = max(most, mapped + len(list(pool.folder.glob("*.images"))))
    assert ended == [("used", "")] * 8
    assert 3 <= most <= 2 + 2 + 1  # one of them is the consumer's


@pytest.mark.slow
@needs_proc
def test_a_call_that_is_left_early_stops_its_workers(clip, slow):
    pieces = decode([clip, slow, slow])
    next(pieces)
    workers = workers_reading(slow, os.getpid(), count=2)
    del pieces
    assert_end(workers, seconds=2)
    assert not exchange_folders(os.getpid())


@pytest.mark.slow
@needs_proc
def test_ctrl_c_and_kill_9_leave_no_worker_and_the_next_call_tidies_up(
    start_script, clip, slow
):
    for number in (signal.SIGINT, signal.SIGKILL):
        process = start_script([clip, slow, slow])
        assert process.stdout.readline() == "used \n"
        workers = workers_reading(slow, process.pid, count=2)
        loaded = Path(f"/proc/{workers[0]}/maps").read_text()
        assert "libavcodec" in loaded
        assert "jaxlib" not in loaded
        assert exchange_folders(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as the terminal does
        else:
            process.kill()
        assert_end([process.pid, *workers], seconds=5)
        process.wait()
    assert exchange_folders(process.pid)
    assert outcomes(decode([clip])) == [("used", "")]
    assert not exchange_folders(process.pid)


def test_the_exchange_folder_of_a_live_process_stays_whatever_its_number(clip):
    """In another container it has a number that here is nobody's, or another's."""
    name = f"vd-{socket.gethostname()}-999999999-live"
    folder = Path(tempfile.mkdtemp(prefix=name, dir="/dev/shm"))
    try:
        with open(folder / "owner", "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            assert outcomes(decode([clip])) == [("used", "")]
            assert folder.exists()
        assert outcomes(decode([clip])) == [("used", "")]
        assert not folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("from_input", [False, True])
def test_a_script_needs_no_main_guard(tmp_path, clip, from_input):
    """A worker that ran the script again would start workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('__name__ == "__main__"', "True"))
    with script.open() as source:
        done = subprocess.run(
            [sys.executable, "-" if from_input else script, clip],
            stdin=source if from_input else None,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == ("used \n", "")


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, clip):
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with pytest.raises(VdError, match="No space left on device"):
            list(decode([clip], stretch_seconds=1e7))  # too long for shared memory
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_stopped_program_is_no_timeout_but_a_stuck_worker_is(
    start_script, clip, long
):
    """Stopped for longer than the deadline and one tick, which a video has in all."""
    faulty = 'Faulty(sys.argv[1], "pause", 20), Faulty(sys.argv[2], "hang", 40)'
    script = SCRIPT.replace("Path(name) for name in sys.argv[1:]", faulty)
    script = script.replace("timeout_seconds=60", "timeout_seconds=2")
    imported = "from tests.test_workers import Faulty"
    process = start_script([clip, long], f"{imported}\n{script}")
    passes = Path(f"{clip}.passes"), Path(f"{long}.passes")
    while not all(file.exists() and file.read_text() for file in passes):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGSTOP)
    Path(f"{clip}.go").touch()
    time.sleep(4)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "used \nquarantined timeout\n"
    assert [file.read_text() for file in passes] == ["x", "x"]
