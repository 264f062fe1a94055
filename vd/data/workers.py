"""Decoding in worker processes: one that is stuck is ended, one that crashes is replaced.

The processes are Pebble's, and spawned because JAX runs threads and a fork could hang. None
outlives its parent. Frames come back as files in shared memory, not through the pipe.
"""

import contextlib
import fcntl
import math
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
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

from vd.config import DecodeConfig, usable_cores
from vd.console import SLICE_SECONDS, check_interrupt
from vd.data.decode import (
    FrameSettings,
    Position,
    Stretch,
    decode_stretch,
)
from vd.data.outcome import Outcome, Reason, Tally, outcome_of
from vd.errors import VdError

_HEADER_SECONDS = 15.0  # at most: a hanging video must not delay the start
_AHEAD, _AHEAD_WITHOUT_IMAGES = 2, 32  # videos decoded beyond those in the workers
_TASKS_A_WORKER = 200  # decoders leak memory
_LONGEST_TICK = 1.0
_SHARED_MEMORY = Path("/dev/shm")
_OWNER = "owner"  # a file that the owner of an exchange folder has locked


@dataclass
class DecodePool:
    """Decoding processes, their settings, and the deadlines of their tasks."""

    processes: ProcessPool
    workers: int
    settings: FrameSettings
    stretch_seconds: float  # of a video, at most, in one task
    deadline_seconds: float  # of a task
    folder: Path  # for frames on their way from a worker
    _left: dict[Any, float] = field(default_factory=dict)  # seconds of each open task
    _ticked: float = field(default_factory=time.monotonic)

    def schedule(
        self, function: Callable[..., Any], *args: Any, seconds: float = math.inf
    ) -> Any:
        """Have a worker call a function; its deadline is the pool's, or less `seconds`."""
        try:
            task = self.processes.schedule(function, args=list(args))
        except RuntimeError as error:  # Pebble's, of a pool that broke meanwhile
            raise BrokenProcessPool(str(error)) from error
        # a task may begin just before a tick, which counts in full
        self._left[task] = min(seconds, self.deadline_seconds) + _LONGEST_TICK
        return task

    def wait(self, task: Any) -> None:
        """Wait for a task, and cancel every running task that is past its deadline.

        Deadlines are counted in ticks of at most a second while somebody waits, so a pause
        of the whole program (Ctrl-Z, a sleeping laptop) is not a video's timeout.
        """
        while not task.done():
            check_interrupt()
            wait([task], SLICE_SECONDS)
            now = time.monotonic()
            tick = min(now - self._ticked, _LONGEST_TICK)
            self._ticked = now
            for other in [other for other in self._left if other.running()]:
                self._left[other] -= tick
                if self._left[other] < 0:
                    other.cancel()  # Pebble ends its process
        self._left.pop(task, None)


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last one."""

    index: int
    images: UInt8[np.ndarray, "F S H W 3"]
    outcome: Outcome | None


@contextmanager
def decode_pool(
    settings: FrameSettings,
    decode: DecodeConfig,
    videos: int,
    stretch_seconds: float = 30.0,
) -> Iterator[DecodePool]:
    """Yield a pool for so many videos; its processes are stopped however the block ends.

    Raises `VdError` if there is no place for decoded frames, or if the workers cannot start.
    """
    workers = max(1, min(decode.decode_workers or usable_cores(), videos))
    frames = stretch_seconds * settings.frames_per_second * len(settings.streams)
    stretch_bytes = frames * settings.height * settings.width * 3
    with _exchange_folder((workers + _AHEAD) * stretch_bytes) as folder:
        processes = ProcessPool(
            max_workers=workers,
            max_tasks=_TASKS_A_WORKER,
            initializer=_start_worker,
            initargs=[os.getpid()],
            context=multiprocessing.get_context("spawn"),
        )
        deadline = decode.decode_timeout_seconds
        try:
            with _signals_blocked():
                processes.schedule(os.getpid)  # which starts the processes
            yield DecodePool(
                processes, workers, settings, stretch_seconds, deadline, folder
            )
        except BrokenProcessPool as error:
            raise VdError(
                "the decoding processes ended before they began to work: decode videos "
                'under `if __name__ == "__main__":` if this is a script, else free some '
                "memory or lower --decode-workers."
            ) from error
        finally:
            processes.stop()
            processes.join()


def decode_videos(
    paths: Sequence[Path], pool: DecodePool, keep_images: bool = True
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    The workers begin with the first videos at once, and a few videos are always decoded
    ahead, so memory is bounded. Each stretch of a video has the pool's deadline. A video
    that misses it is quarantined as timeout; one that crashes its worker twice, as
    corrupt-frames. Raises `VdError` if decoded frames cannot be stored.
    """
    most = pool.workers + (_AHEAD if keep_images else _AHEAD_WITHOUT_IMAGES)
    videos = (_Video(i, path, pool, keep_images) for i, path in enumerate(paths))
    return _in_order(deque(islice(videos, most)), videos)


def _in_order(
    started: deque["_Video"], videos: Iterator["_Video"]
) -> Iterator[Decoded]:
    """The pieces of one video after another; when one has ended, another one starts."""
    while started:
        yield from started.popleft().pieces()
        started.extend(islice(videos, 1))


class _Video:
    """A video that is decoded stretch by stretch; the first one starts at once."""

    def __init__(
        self, index: int, path: Path, pool: DecodePool, keep_images: bool
    ) -> None:
        self._index, self._path, self._pool = index, path, pool
        self._target = pool.folder / f"{uuid.uuid4().hex}.rgb" if keep_images else None
        self._tallies: list[Tally] = []
        self._task = self._start(Position())

    def pieces(self) -> Iterator[Decoded]:
        """The images of each stretch, and the outcome with the last one."""
        position: Position | None = Position()
        crashed = False
        while position is not None:
            self._pool.wait(self._task)
            try:
                stretch: Stretch = self._task.result()
            except CancelledError:
                yield self._lost("timeout")
                return
            except ProcessExpired:
                if crashed:
                    yield self._lost("corrupt-frames")
                    return
                crashed = True
                self._task = self._start(position)
                continue
            except OSError as error:
                reason = error.strerror or str(error)
                raise _exchange_error(self._pool, reason) from error
            except Exception as error:
                error.add_note(f"while decoding {self._path}")
                raise
            images = self._collect(stretch.tally.kept)
            self._tallies.append(stretch.tally)
            position = stretch.next
            if position is not None:
                self._task = self._start(position)
            outcome = outcome_of(self._tallies) if position is None else None
            yield Decoded(self._index, images, outcome)

    def _start(self, position: Position) -> Any:
        pool = self._pool
        arguments = self._path, pool.settings, position, pool.stretch_seconds
        return pool.schedule(_decode, *arguments, self._target)

    def _collect(self, count: int) -> UInt8[np.ndarray, "F S H W 3"]:
        """The images that a worker wrote, read-only and without a copy; removes their file.

        Raises `VdError` unless there are `count`.
        """
        settings = self._pool.settings
        shape = len(settings.streams), settings.height, settings.width, 3
        images: np.ndarray = np.zeros((0, *shape), np.uint8)
        if self._target is None:
            return images
        try:
            if count:  # an empty file cannot be mapped
                images = np.memmap(self._target, np.uint8, "r").reshape(count, *shape)
            self._target.unlink(missing_ok=count == 0)
        except (OSError, ValueError) as error:  # gone, or cut
            reason = "another program removed them"
            raise _exchange_error(self._pool, reason) from error
        return np.asarray(images)

    def _lost(self, reason: Reason) -> Decoded:
        """The last piece of a video whose worker was lost."""
        tallies = self._tallies
        known = outcome_of(tallies) if tallies else Outcome("quarantined")
        outcome = replace(known, outcome="quarantined", reason=reason)
        return Decoded(self._index, self._collect(0), outcome)


def read_headers(paths: Sequence[Path], pool: DecodePool) -> list[Outcome]:
    """What the header of each video says; one that hangs or crashes is unreadable."""
    tasks = [
        pool.schedule(
            decode_stretch,
            path,
            pool.settings,
            Position(),
            0.0,
            seconds=_HEADER_SECONDS,
        )
        for path in paths
    ]
    for task in tasks:
        pool.wait(task)
    lost = Outcome("quarantined", "unreadable")
    return [
        lost if task.cancelled() or task.exception() else task.result().tally.header
        for task in tasks
    ]


def _exchange_error(pool: DecodePool, reason: str) -> VdError:
    return VdError(
        f"decoded frames in {pool.folder} are lost ({reason}); free some space there or name "
        "another folder in TMPDIR, then run the same command again."
    )


def _decode(
    path: Path,
    settings: FrameSettings,
    position: Position,
    seconds: float,
    target: Path | None,
) -> Stretch:
    """In the worker: decode a stretch, and write its images one after another."""
    if target is None:
        return decode_stretch(path, settings, position, seconds)
    with open(target, "wb") as handle:
        return decode_stretch(
            path, settings, position, seconds, lambda image: handle.write(image.data)
        )


def _start_worker(parent: int) -> None:
    """In the worker: die at once on SIGTERM, and never outlive the parent."""
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
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGHUP for all threads and processes that start in the block.

    A terminal sends them to every process; a worker would print a traceback as it starts.
    """
    blocked = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()  # which unblocks SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _exchange_folder(needed_bytes: float) -> Iterator[Path]:
    """A private folder in shared memory if it is large enough, else on the disk."""
    root = _SHARED_MEMORY
    if not os.access(root, os.W_OK) or shutil.disk_usage(root).free < needed_bytes:
        try:
            root = Path(tempfile.gettempdir())
        except FileNotFoundError as error:
            raise VdError(
                f"there is no folder for decoded frames ({error.strerror or error}); name "
                "a writable folder in TMPDIR."
            ) from error
    prefix = f"vd-{socket.gethostname()}-"
    for old in root.glob(f"{prefix}*"):
        _remove_if_left(old)
    prefix += f"{os.getpid()}-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=root) as folder,
        open(Path(folder, "owner.new"), "w") as owner,
    ):
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(owner, fcntl.LOCK_EX)
            os.rename(owner.name, Path(folder, _OWNER))
        yield Path(folder)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose owner has gone; its lock shows it across containers too."""
    with contextlib.suppress(OSError), open(folder / _OWNER) as owner:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
