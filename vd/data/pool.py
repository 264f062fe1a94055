"""Processes that decode. None outlives its parent, and each is ended when it is stuck.

They are Pebble's, spawned (JAX runs threads, so a fork could hang). Frames come back as
files in shared memory, not through the pipe.
"""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

from pebble import ProcessPool

from vd.config import DecodeConfig, usable_cores
from vd.data.decode import FrameSettings
from vd.errors import VdError

AHEAD = 2  # videos decoded beyond those in the workers
_TASKS_A_WORKER = 200  # decoders leak memory
_SHARED_MEMORY = Path("/dev/shm")
_BEAT_SECONDS, _HALT_SECONDS = 0.25, 3.0
_OWNER = "owner"  # a file that the owner of an exchange folder has locked


class DecodePool(NamedTuple):
    """Processes that decode, and how they do it."""

    processes: ProcessPool
    workers: int
    settings: FrameSettings
    stretch_seconds: float  # of a video, at most, in one task
    deadline_seconds: float  # of a task
    folder: Path  # where frames are handed over
    halted: Callable[[float], bool]  # whether this process stood still since then


@contextmanager
def decode_pool(
    settings: FrameSettings,
    decode: DecodeConfig,
    videos: int,
    stretch_seconds: float = 30.0,
) -> Iterator[DecodePool]:
    """Yield a pool for so many videos; it is stopped, however the block ends.

    Raises VdError when decoded frames have no place, or the workers cannot start.
    """
    workers = max(1, min(decode.decode_workers or usable_cores(), videos))
    frames = stretch_seconds * settings.frames_per_second * len(settings.streams)
    stretch_bytes = frames * settings.height * settings.width * 3
    with (
        _exchange_folder((workers + AHEAD) * stretch_bytes) as folder,
        _pulse() as halted,
    ):
        processes = ProcessPool(
            max_workers=workers,
            max_tasks=_TASKS_A_WORKER,
            initializer=_start_worker,
            initargs=[os.getpid()],
            context=multiprocessing.get_context("spawn"),
        )
        try:
            with _signals_for_the_parent_alone():
                processes.schedule(os.getpid)  # which starts the pool
            yield DecodePool(
                processes, workers, settings, stretch_seconds,
                decode.decode_timeout_seconds, folder, halted,
            )  # fmt: skip
        except BrokenProcessPool as error:
            raise VdError(
                "the decoding processes ended before they had work: a script that decodes "
                'videos must do it under `if __name__ == "__main__":`, and the machine needs '
                "free memory; mend that, or lower --decode-workers."
            ) from error
        finally:
            processes.stop()
            processes.join()


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
    """Remove a folder whose owner has gone; its lock tells, from another container too."""
    with contextlib.suppress(OSError), open(folder / _OWNER) as owner:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
