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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import decoding
from tests.broken import (
    grey_frames,
    make_broken,
    noisy_frames,
    render,
    render_lossless,
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
    names = list(expected)
    paths = [clip, *(tmp_path / name for name in names), clip]
    pieces = list(decode(paths))
    assert [piece.index for piece in pieces] == list(range(len(paths)))
    found = outcomes(pieces)
    assert found == [("used", ""), *expected.values(), ("used", "")]
    kinds = [kind for kind, _ in found]
    assert sum(map(kinds.count, ("used", "partial", "quarantined"))) == len(paths)
    alone, _ = decoding.decode_all(clip)
    for piece in (pieces[0], pieces[-1]):
        np.testing.assert_array_equal(piece.images, alone)


def test_a_long_video_comes_in_stretches(clip, long):
    pieces = list(decode([clip, long, clip], stretch_seconds=1.0))
    assert [piece.index for piece in pieces] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert [piece.outcome is not None for piece in pieces] == [
        *(False, True), *(False, False, False, False, True), *(False, True)
    ]  # fmt: skip
    whole, _ = decoding.decode_all(long)
    parts = np.concatenate([piece.images for piece in pieces if piece.index == 1])
    np.testing.assert_array_equal(parts, whole)


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
    "hangs twice at one frame": ("hang", (80, 80), ("partial", "timeout"), 2),
    "hangs once": ("hang", (80,), ("used", ""), 2),
    "hangs before its header": ("hang", (-1, -1), ("quarantined", "timeout"), 1),
    "hangs early": ("hang", (40, 40), ("quarantined", "timeout"), 1),
    "hangs here and there": ("hang", (80, 90), ("quarantined", "timeout"), 2),
    "hangs there and here": ("hang", (90, 60), ("quarantined", "timeout"), 2),
    "crashes twice at one frame": ("crash", (80, 80), ("partial", "corrupt-frames"), 2),
    "crashes early": ("crash", (40, 40), ("quarantined", "corrupt-frames"), 2),
    "crashes here and there": ("crash", (80, 70), ("quarantined", "corrupt-frames"), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("keep_images", [True, False])
@pytest.mark.parametrize(
    ("kind", "at", "outcome", "passes"), LOST.values(), ids=list(LOST)
)
def test_a_video_that_stops_counts_if_it_stops_at_the_same_frame_again(
    clip, long, kind, at, outcome, passes, keep_images
):
    video = Faulty(long, kind, *at)
    options = {"stretch_seconds": 1.0, "deadline_seconds": 1}
    pieces = list(decode([video, clip], keep_images=keep_images, **options))
    assert outcomes(pieces) == [outcome, ("used", "")]
    assert len(video.passes.read_text()) == passes
    result = next(piece.outcome for piece in pieces if piece.outcome)
    header = (64, 48, "h264") if at[0] >= 0 else (0, 0, "")
    assert (result.width, result.height, result.codec) == header
    if outcome[0] == "partial":
        assert 75 <= result.frames <= 80
        assert result.duration == pytest.approx(result.frames / 25, abs=0.15)
        if keep_images:
            images = np.concatenate([p.images for p in pieces if p.index == 0])
            whole, _ = decoding.decode_all(long)
            np.testing.assert_array_equal(images, whole[: len(images)])
            assert len(images) == 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "at", "frames", "passes"),
    [("hang", (40, 40), 40, 1), ("crash", (40, 30), 40, 2), ("crash", (40, 80), 80, 2)],
)
def test_without_confirmation_a_video_gives_what_came(
    clip, long, kind, at, frames, passes
):
    video = Faulty(long, kind, *at)
    options = {"stretch_seconds": 1.0, "deadline_seconds": 1}
    pieces = list(decode([video, clip], confirm=False, **options))
    reason = "timeout" if kind == "hang" else "corrupt-frames"
    assert outcomes(pieces) == [("partial", reason), ("used", "")]
    assert len(video.passes.read_text()) == passes
    result = next(piece.outcome for piece in pieces if piece.outcome)
    assert frames - 5 <= result.frames <= frames
    images = np.concatenate([piece.images for piece in pieces if piece.index == 0])
    whole, _ = decoding.decode_all(long)
    np.testing.assert_array_equal(images, whole[: len(images)])
    assert len(images) >= min(frames // 25 * 8, 8)


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


def test_images_are_left_out_on_request(clip):
    (piece,) = decode([clip], keep_images=False)
    assert piece.images.shape == (0, 2, 48, 64, 3)
    assert outcomes([piece]) == [("used", "")]


def test_nothing_to_decode():
    assert list(decode([])) == []


def test_images_of_two_calls_at_once_do_not_mix(tmp_path):
    dark = render_lossless(tmp_path / "dark.mkv", grey_frames(20))
    bright = render_lossless(tmp_path / "bright.mkv", list(grey_frames(50))[30:])
    calls = decode([dark] * 4, workers=1), decode([bright] * 4, workers=1)
    for one, other in zip(*calls, strict=True):
        assert one.images[:, 0].max() < 40
        assert other.images[:, 0].min() >= 60
        assert len(one.images) == len(other.images) == 6


@pytest.mark.slow
def test_a_video_that_misses_the_deadline_costs_itself_only(clip, slow):
    began = time.monotonic()
    pieces = list(decode([clip, slow, clip, clip], deadline_seconds=1.5))
    assert outcomes(pieces) == [
        ("used", ""), ("quarantined", "timeout"), ("used", ""), ("used", "")
    ]  # fmt: skip
    assert len(pieces[1].images) == 0
    assert time.monotonic() - began < 10


@needs_proc
@pytest.mark.parametrize(
    ("crashes", "outcome"), [(1, ("used", "")), (2, ("quarantined", "corrupt-frames"))]
)
def test_a_video_whose_worker_crashes_is_tried_once_more(
    tmp_path, clip, crashes, outcome
):
    longer = render_slow(tmp_path / "longer.mkv", 150)

    def kill() -> None:
        for _ in range(crashes):
            (pid,) = workers_reading(longer, os.getpid())
            os.kill(pid, signal.SIGKILL)
            assert_end([pid], seconds=5)

    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill)
        pieces = list(decode([clip, longer, clip], workers=1))
        killing.result()
    assert outcomes(pieces) == [("used", ""), outcome, ("used", "")]


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("abandon", ["close", "forget"])
def test_a_call_that_is_left_early_stops_its_workers(clip, slow, abandon):
    pieces = decode([clip, slow, slow])
    next(pieces)
    workers = workers_reading(slow, os.getpid(), count=2)
    if abandon == "close":
        pieces.close()
    del pieces
    assert_end(workers, seconds=2)
    assert not exchange_folders(os.getpid())


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_the_workers_too(start_script, clip, slow):
    process = start_script([clip, slow, slow])
    assert process.stdout.readline() == "used \n"
    workers = workers_reading(slow, process.pid, count=2)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    assert_end([process.pid, *workers], seconds=5)
    assert not exchange_folders(process.pid)


@pytest.mark.slow
@needs_proc
def test_kill_9_leaves_no_worker_and_the_next_call_tidies_up(start_script, clip, slow):
    process = start_script([clip, slow, slow])
    assert process.stdout.readline() == "used \n"
    workers = workers_reading(slow, process.pid, count=2)
    assert exchange_folders(process.pid)
    process.kill()
    assert_end(workers, seconds=2)
    process.wait()
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


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 9216)])
def test_decoded_frames_that_vanish_are_an_error_not_a_video_without_frames(
    clip, damage
):
    with decode_pool(SMALL, DecodeConfig(), 4) as pool:
        pieces = decode_videos([clip] * 4, pool)
        assert len(next(pieces).images) == 16
        time.sleep(2)  # the next ones are decoded
        for path in list(pool.folder.rglob("*.images")):
            damage(path)
        with pytest.raises(VdError, match="another program removed them"):
            list(pieces)


@pytest.mark.slow
@needs_proc
def test_a_worker_does_not_load_jax(start_script, slow):
    process = start_script([slow])
    (worker,) = workers_reading(slow, process.pid)
    loaded = Path(f"/proc/{worker}/maps").read_text()
    assert "libavcodec" in loaded
    assert "jaxlib" not in loaded


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_one_sentence(start_script, clip):
    unguarded = SCRIPT.replace('__name__ == "__main__"', "True")
    process = start_script([clip], unguarded)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert "VdError: the decoding processes ended" in error.splitlines()[-1]


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


def test_headers_of_whole_and_of_broken_videos(tmp_path):
    paths = [render(tmp_path / "a.mkv", noisy_frames(50))]
    paths += [tmp_path / name for name in make_broken(tmp_path)]
    with decode_pool(SMALL, DecodeConfig(10, 2), len(paths)) as pool:
        whole, *broken = read_headers(paths, pool)
    assert whole.duration == 2.0
    assert all(0 <= header.duration <= 2 for header in broken)


def test_the_first_videos_are_decoded_before_they_are_asked_for(tmp_path):
    clip = render(tmp_path / "a.mkv", noisy_frames(50))
    with decode_pool(SMALL, DecodeConfig(10, 2), 2) as pool:
        pieces = decode_videos([clip] * 2, pool)
        whole = 16 * 2 * 48 * 64 * 3  # bytes of two seconds of both streams
        ended = time.monotonic() + 30
        while [p.stat().st_size for p in pool.folder.rglob("*.images")] != [whole] * 2:
            assert time.monotonic() < ended
            time.sleep(0.05)
        assert len(list(pieces)) == 2


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
