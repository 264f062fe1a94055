"""Decoding in processes under a deadline: a stuck worker is ended, a crashed one replaced.

Workers are Pebble's, spawned (JAX runs threads, so a fork could hang). Frames come back
as files in shared memory, not through the pipe. No worker outlives its parent.
"""

import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as DeadlineError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pebble import ProcessExpired, ProcessPool

from vd.atomic import owner_is_dead
from vd.videos.decode import (
    FrameSettings,
    Outcome,
    Position,
    Stretch,
    Tally,
    decode_stretch,
    outcome_of,
)

_TASKS_A_WORKER = 200  # decoders leak memory
_AHEAD = 2  # videos decoded beyond those in the workers
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_BYTES = 1 << 30  # a container's 64 MB would not hold the stretches under way


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last."""

    index: int
    images: UInt8[np.ndarray, "F 2 H W 3"]
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


def decode_videos(
    paths: Sequence[Path],
    settings: FrameSettings,
    *,
    workers: int,
    deadline_seconds: float,
    keep_images: bool = True,
    stretch_seconds: float = 60.0,
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    Each stretch of at most `stretch_seconds` has the deadline. A video that misses it ends
    as quarantined, timeout; one that crashes its worker twice as corrupt-frames. A few
    videos are decoded ahead of the one that is asked for, so memory is bounded.
    """
    waiting = iter(enumerate(paths))
    under_way: deque[_Video] = deque()
    with _exchange_folder() as folder, _pool(workers) as pool:

        def submit(video: _Video) -> None:
            target = video.target if keep_images else None
            arguments = [video.path, settings, video.position, stretch_seconds, target]
            video.future = pool.schedule(
                _task, args=arguments, timeout=deadline_seconds
            )

        def fill() -> None:
            while len(under_way) < workers + _AHEAD:
                index, path = next(waiting, (-1, None))
                if path is None:
                    return
                video = _Video(index, path, folder / f"{index}.npy")
                submit(video)
                under_way.append(video)

        fill()
        while under_way:
            video = under_way[0]
            try:
                stretch: Stretch = video.future.result()
            except ProcessExpired:
                if not video.crashed:
                    video.crashed = True
                    submit(video)
                    continue
                yield Decoded(
                    video.index, _none(settings), _lost(video, "corrupt-frames")
                )
            except DeadlineError:
                yield Decoded(video.index, _none(settings), _lost(video, "timeout"))
            else:
                video.tallies.append(stretch.tally)
                images = _collect(video.target, settings)
                if stretch.next is not None:
                    video.position = stretch.next
                    submit(video)
                    yield Decoded(video.index, images, None)
                    continue
                yield Decoded(video.index, images, outcome_of(video.tallies))
            video.target.unlink(missing_ok=True)
            under_way.popleft()
            fill()


def _task(
    path: Path,
    settings: FrameSettings,
    position: Position,
    seconds: float,
    target: Path | None,
) -> Stretch:
    """In the worker: decode a stretch and leave its images in `target`."""
    stretch = decode_stretch(path, settings, position, seconds)
    if target is not None and len(stretch.images_Fx2xHxWx3):
        np.save(target, stretch.images_Fx2xHxWx3)
    return replace(stretch, images_Fx2xHxWx3=_none(settings))


def _collect(target: Path, settings: FrameSettings) -> UInt8[np.ndarray, "F 2 H W 3"]:
    """Take over the images that a worker left, if any."""
    if not target.exists():
        return _none(settings)
    images: np.ndarray = np.load(target)
    target.unlink()
    return images


def _none(settings: FrameSettings) -> UInt8[np.ndarray, "0 2 H W 3"]:
    return np.zeros((0, 2, settings.height, settings.width, 3), np.uint8)


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
        yield pool
    finally:
        pool.stop()
        pool.join()


def _start_worker(parent: int) -> None:
    """In the worker: leave Ctrl-C to the parent, and never outlive it, even after kill −9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this process when its parent has gone (where the kernel does not do it)."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def _exchange_folder() -> Iterator[Path]:
    """A private folder in shared memory where it is large enough, else on the disk."""
    root = Path(tempfile.gettempdir())
    if os.access(_SHARED_MEMORY, os.W_OK):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        root = _SHARED_MEMORY if free >= _SHARED_BYTES else root
    for old in root.glob("vd-*"):
        owner = re.match(r"vd-(\d+)-", old.name)
        if owner and owner_is_dead(socket.gethostname(), int(owner[1])):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"vd-{os.getpid()}-", dir=root) as folder:
        yield Path(folder)
