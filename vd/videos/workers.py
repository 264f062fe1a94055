"""Decoding in processes under a deadline: a stuck worker is ended, a crashed one replaced.

Workers are Pebble's, spawned (JAX runs threads, so a fork could hang). Frames come back
as files in shared memory, not through the pipe. No worker outlives its parent.
"""

import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as DeadlineError
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pebble import ProcessExpired, ProcessPool

from vd.atomic import owner_is_dead
from vd.errors import VdError
from vd.videos.decode import (
    Position,
    Stretch,
    decode_stretch,
    probe_brightness,
    probe_header,
)
from vd.videos.frames import FrameSettings
from vd.videos.outcome import Outcome, Tally, outcome_of

PROBED_SECONDS = 2.0  # of a video
_BEAT_SECONDS, _HALT_SECONDS = 0.25, 3.0
_TASKS_A_WORKER = 200  # decoders leak memory
_AHEAD = 2  # videos decoded beyond those in the workers
_AHEAD_WITHOUT_IMAGES = 32  # so that a slow one stops no other
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last."""

    index: int
    images: UInt8[np.ndarray, "F S H W 3"]
    outcome: Outcome | None


@dataclass
class _Video:
    """A video under way: one stretch of it is being decoded."""

    index: int
    path: Path
    target: Path
    future: Any = None
    position: Position = field(default_factory=Position)
    tallies: list[Tally] = field(default_factory=list)
    crashed: bool = False
    submitted: float = 0.0


def decode_videos(
    paths: Sequence[Path],
    settings: FrameSettings,
    *,
    workers: int,
    deadline_seconds: float,
    keep_images: bool = True,
    stretch_seconds: float = 30.0,
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    Each stretch of at most `stretch_seconds` has the deadline. A video that misses it ends
    as quarantined, timeout; one that crashes its worker twice as corrupt-frames. A few
    videos are decoded ahead of the one that is asked for, so memory is bounded.

    Raises VdError when decoded frames find no room, or when the workers cannot start.
    """
    workers = max(1, min(workers, len(paths)))
    ahead = _AHEAD if keep_images else _AHEAD_WITHOUT_IMAGES
    stretch_frames = stretch_seconds * settings.frames_per_second
    image_bytes = settings.height * settings.width * 3
    stretch_bytes = stretch_frames * len(settings.streams) * image_bytes
    needed_bytes = (workers + _AHEAD) * stretch_bytes
    with (
        _exchange_folder(needed_bytes) as folder,
        _pool(workers) as pool,
        _pulse() as halted,
    ):

        def submit(video: _Video) -> None:
            video.submitted = time.monotonic()
            target = video.target if keep_images else None
            arguments = [video.path, settings, video.position, stretch_seconds, target]
            try:
                video.future = pool.schedule(
                    _task, args=arguments, timeout=deadline_seconds
                )
            except RuntimeError as error:  # Pebble's, of a pool that broke meanwhile
                raise BrokenProcessPool(str(error)) from error

        targets = (folder / f"{index}.rgb" for index in range(len(paths)))
        waiting = map(_Video, range(len(paths)), paths, targets)
        under_way: deque[_Video] = deque()
        while True:
            for video in islice(waiting, workers + ahead - len(under_way)):
                submit(video)
                under_way.append(video)
            if not under_way:
                return
            video = under_way[0]
            outcome = _wait(video, halted)
            images = _collect(video.target, settings)
            if outcome is None:
                submit(video)
            else:
                under_way.popleft()
            yield Decoded(video.index, images, outcome)


def probe_videos(
    paths: Sequence[Path],
    settings: FrameSettings,
    *,
    workers: int,
    deadline_seconds: float,
    timed_every: int,
) -> list[tuple[float, float]]:
    """Seconds of each video by its header, and of decoding its first `PROBED_SECONDS`.

    Only every so many are decoded; else that is NaN. (0, 0) where a video does not say,
    hangs or crashes.
    """
    with _pool(max(1, min(workers, len(paths)))) as pool:
        futures = [
            pool.schedule(
                _probe,
                args=[path, settings, number % timed_every == 0],
                timeout=deadline_seconds,
            )
            for number, path in enumerate(paths)
        ]
        wait(futures)
        lost = 0.0, 0.0
        return [lost if future.exception() else future.result() for future in futures]


def probe_brightnesses(
    paths: Sequence[Path], *, workers: int, deadline_seconds: float
) -> Iterator[float | None]:
    """Mean grey of each video's first frame; None where there is none, it hangs or crashes."""
    with _pool(max(1, min(workers, len(paths)))) as pool:
        futures = [
            pool.schedule(probe_brightness, args=[path], timeout=deadline_seconds)
            for path in paths
        ]
        for future in futures:
            wait([future])
            yield None if future.exception() else future.result()


def _probe(path: Path, settings: FrameSettings, timed: bool) -> tuple[float, float]:
    """In the worker: seconds of a video, and those that decoding its beginning takes."""
    if not timed:
        return probe_header(path).duration, math.nan
    began = time.perf_counter()
    stretch = decode_stretch(
        path, settings, seconds=PROBED_SECONDS, keep=lambda image: None
    )
    return stretch.tally.header.duration, time.perf_counter() - began


def _wait(video: _Video, halted: Callable[[float], bool]) -> Outcome | None:
    """Wait for the stretch under way; the outcome if nothing of the video is left."""
    try:
        stretch: Stretch = video.future.result()
    except (ProcessExpired, DeadlineError) as error:
        video.target.unlink(missing_ok=True)  # half written
        if isinstance(error, DeadlineError):
            # what the whole program lost, asleep or stopped, is no fault of the video
            return None if halted(video.submitted) else _lost(video, "timeout")
        if video.crashed:
            return _lost(video, "corrupt-frames")
        video.crashed = True
        return None  # the same stretch again
    except OSError as error:
        raise VdError(
            f"{video.target.parent} cannot hold decoded frames "
            f"({error.strerror or error}); free some space, or name another folder in "
            "TMPDIR."
        ) from error
    except Exception as error:
        error.add_note(f"while decoding {video.path}")
        raise
    video.tallies.append(stretch.tally)
    if stretch.next is None:
        return outcome_of(video.tallies)
    video.position = stretch.next
    return None


def _task(
    path: Path,
    settings: FrameSettings,
    position: Position,
    seconds: float,
    target: Path | None,
) -> Stretch:
    """In the worker: decode a stretch, its images one after the other into `target`."""
    if target is None:
        return decode_stretch(path, settings, position, seconds)
    with open(target, "wb") as handle:
        return decode_stretch(
            path, settings, position, seconds, lambda image: handle.write(image.data)
        )


def _collect(target: Path, settings: FrameSettings) -> UInt8[np.ndarray, "F S H W 3"]:
    """The images that a worker left, read-only, without a copy; the file loses its name."""
    shape = len(settings.streams), settings.height, settings.width, 3
    count = target.stat().st_size // math.prod(shape) if target.exists() else 0
    if count == 0:  # which cannot be mapped
        target.unlink(missing_ok=True)
        return np.zeros((0, *shape), np.uint8)
    images = np.memmap(target, np.uint8, "r", shape=(count, *shape))
    target.unlink()
    return np.asarray(images)


def _lost(video: _Video, reason: Any) -> Outcome:
    """The outcome of a video whose worker was lost."""
    known = outcome_of(video.tallies) if video.tallies else Outcome("quarantined")
    return replace(known, outcome="quarantined", reason=reason)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPool]:
    """A pool that is stopped, its workers with it, however the block ends."""
    pool = ProcessPool(
        max_workers=workers,
        max_tasks=_TASKS_A_WORKER,
        initializer=_start_worker,
        initargs=[os.getpid()],
        context=multiprocessing.get_context("spawn"),
    )
    try:
        with _signals_for_the_parent_alone():
            pool.schedule(os.getpid)  # which starts the pool
        yield pool
    except BrokenProcessPool as error:
        raise VdError(
            "the decoding processes ended before they had work: a script that decodes "
            'videos must do it under `if __name__ == "__main__":`, and the machine needs '
            "free memory; mend that, or lower --decode-workers."
        ) from error
    finally:
        pool.stop()
        pool.join()


@contextmanager
def _signals_for_the_parent_alone() -> Iterator[None]:
    """Threads and processes that start in the block, and theirs, do not get these signals.

    A terminal sends them to all; a worker would print a traceback as it starts.
    """
    theirs = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, theirs)
    try:
        resource_tracker.ensure_running()  # which unblocks SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, theirs)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    """In the worker: die at once when told to, and never outlive the parent."""
    # Pebble's handler is Python's, which would wait for a decoder that is stuck.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Not PR_SET_PDEATHSIG: it fires when the thread that started the worker ends.
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this process when its parent has gone, even by kill −9."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def _pulse() -> Iterator[Callable[[float], bool]]:
    """Yield a function that says whether this process stood still at any time since then.

    A stopped job (Ctrl-Z) or a frozen container stands still, while deadlines go on.
    """
    gaps: list[float] = []  # when each ended
    ended = threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not ended.wait(_BEAT_SECONDS):
            now = time.monotonic()
            if now - before > _HALT_SECONDS:
                gaps.append(now)
            before = now

    def halted(since: float) -> bool:
        time.sleep(2 * _BEAT_SECONDS)  # a beat may be on its way
        return any(gap > since for gap in gaps)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield halted
    finally:
        ended.set()


def _temporary_folder() -> Path:
    """The system's folder for temporary files; raises `VdError` when there is none."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise VdError(
            f"decoded frames have no place ({error.strerror or error}); name a writable "
            "folder in TMPDIR."
        ) from error


@contextmanager
def _exchange_folder(needed_bytes: float) -> Iterator[Path]:
    """A private folder in shared memory where it is large enough, else on the disk."""
    root = _SHARED_MEMORY
    if not os.access(root, os.W_OK) or shutil.disk_usage(root).free < needed_bytes:
        root = _temporary_folder()
    for old in root.glob("vd-*"):
        owner = re.match(r"vd-(?P<host>.+)-(?P<pid>\d+)-", old.name)
        if owner and owner_is_dead(owner["host"], int(owner["pid"])):
            shutil.rmtree(old, ignore_errors=True)
    prefix = f"vd-{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as folder:
        yield Path(folder)
