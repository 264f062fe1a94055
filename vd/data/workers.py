"""Decoding in worker processes: one that is stuck is ended, one that crashes is replaced.

The processes are Pebble's, and spawned because JAX runs threads and a fork could hang. None
outlives its parent. A worker decodes a video in one pass. Each stretch of it comes back as
files in shared memory: renaming them hands the stretch over, and the worker decodes on when
they have been removed. No lock is held meanwhile that a killed worker could keep.
"""

import contextlib
import fcntl
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from pebble import ProcessExpired, ProcessPool

from vd.config import DecodeConfig, usable_cores
from vd.console import check_interrupt
from vd.data.decode import FrameSettings, Sink, decode, read_header
from vd.data.outcome import (
    Outcome,
    Reason,
    expected_frames,
    outcome_from_row,
    outcome_row,
)
from vd.errors import VdError

_HEADER_SECONDS = 15.0  # at most: a hanging video must not delay the start
_AHEAD, _AHEAD_WITHOUT_IMAGES = 2, 32  # videos decoded beyond those in the workers
_TASKS_A_WORKER = 200  # decoders leak memory
_LONGEST_TICK = 1.0
_POLL_SECONDS, _WORKER_POLL_SECONDS = 0.01, 0.005
_LEAST_SHARE = 0.5  # of the expected frames of a video whose decoding never ends
_RECORD = np.dtype([("seconds", "<f8"), ("frames", "<i8")])  # of a kept frame
_REMOVED = "another program removed them"
_SHARED_MEMORY = Path("/dev/shm")
_OWNER = "owner"  # a file that the owner of an exchange folder has locked


@dataclass
class DecodePool:
    """Decoding processes and their tasks; for one `decode_videos` at a time.

    Pebble has at most one task for each worker, so every task has one. The others wait in a
    line of ours, where a second pass goes to the front.
    """

    processes: ProcessPool
    workers: int
    settings: FrameSettings
    stretch_seconds: float  # of a video, handed over at once
    deadline_seconds: float  # of decoding a stretch
    folder: Path  # for frames on their way from a worker
    _line: deque["_Task"] = field(default_factory=deque)
    _running: list["_Task"] = field(default_factory=list)
    _ticked: float = field(default_factory=time.monotonic)

    def add(self, task: "_Task") -> None:
        """Start a task, or put it at the end of the line."""
        self._line.append(task)
        self._start()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`; meanwhile tasks are started, ended and cancelled."""
        self._step(0.0)  # a worker may have become free
        while not ready():
            self._step(_POLL_SECONDS)

    def _start(self) -> None:
        while self._line and len(self._running) < self.workers:
            task = self._line.popleft()
            try:
                task.future = self.processes.schedule(task.function, task.arguments())
            except RuntimeError as error:  # Pebble's, of a pool that broke meanwhile
                raise BrokenProcessPool(str(error)) from error
            self._running.append(task)

    def _step(self, seconds: float) -> None:
        """Wait so long at most, end tasks that are done, count the time of the others.

        Time is counted in ticks of at most a second while somebody waits. So neither a pause
        of the whole program (Ctrl-Z, a sleeping laptop) nor a slow consumer is a timeout.
        """
        check_interrupt()
        futures = [task.future for task in self._running]
        # a cancelled one is among them when its process has ended, and not before
        done = wait(futures, seconds, FIRST_COMPLETED).done
        now = time.monotonic()
        tick = min(now - self._ticked, _LONGEST_TICK)
        self._ticked = now
        for task in list(self._running):
            if task.future in done:
                self._running.remove(task)
                if not task.end():
                    self._line.appendleft(task)
            elif task.future.running():
                task.tick(tick)
        self._start()


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last one."""

    index: int
    images: UInt8[np.ndarray, "F S H W 3"]
    seconds: Float64[np.ndarray, "F"]  # from the video's first frame
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
    paths: Sequence[Path],
    pool: DecodePool,
    keep_images: bool = True,
    confirm: bool = True,
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    The workers begin with the first videos at once, and a few videos are always decoded
    ahead, so memory is bounded. Without `keep_images` each video is one piece without frames.

    A video whose decoding misses the pool's deadline (timeout) or crashes (corrupt-frames) is
    decoded once more. If both passes end at the same frame and gave at least half of the
    expected ones, it is partial, else quarantined. So the outcome does not depend on the
    machine's load. Without `confirm` what was handed over counts, and only a crash is tried
    again. Raises `VdError` if decoded frames cannot be stored.
    """
    ahead = _AHEAD if keep_images else _AHEAD_WITHOUT_IMAGES
    videos = (
        _Video(index, path, pool, keep_images, confirm)
        for index, path in enumerate(paths)
    )
    return _in_order(deque(islice(videos, pool.workers + ahead)), videos)


def _in_order(
    started: deque["_Video"], videos: Iterator["_Video"]
) -> Iterator[Decoded]:
    """The pieces of one video after another; when one has ended, another one starts."""
    while started:
        yield from started.popleft().pieces()
        started.extend(islice(videos, 1))


def read_headers(paths: Sequence[Path], pool: DecodePool) -> list[Outcome]:
    """What the header of each video says; one that hangs or crashes is unreadable."""
    headers = [_Header(path, pool) for path in paths]
    pool.wait(lambda: all(header.outcome is not None for header in headers))
    return [header.outcome for header in headers if header.outcome is not None]


class _Task:
    """A function for a worker to call; cancelled when its time is over."""

    future: Any = None  # Pebble's
    outcome: Outcome | None = None  # when it has ended

    def __init__(self, function: Callable[..., Outcome], seconds: float) -> None:
        self.function = function
        # it may begin just before a tick, which counts in full
        self._most = self._left = seconds + _LONGEST_TICK

    def arguments(self) -> list[Any]:
        """The arguments of the function."""
        raise NotImplementedError

    def tick(self, seconds: float) -> None:
        """Count time; Pebble ends the process of a cancelled task."""
        self._left -= seconds
        if self._left < 0:
            self.future.cancel()

    def end(self) -> bool:
        """Take the result; False if the task is to be done again."""
        raise NotImplementedError


class _Header(_Task):
    """Reads the header of a video."""

    def __init__(self, path: Path, pool: DecodePool) -> None:
        super().__init__(read_header, min(_HEADER_SECONDS, pool.deadline_seconds))
        self._arguments = [path, pool.settings]
        pool.add(self)

    def arguments(self) -> list[Any]:
        return self._arguments

    def end(self) -> bool:
        lost = self.future.cancelled() or self.future.exception()
        unreadable = Outcome("quarantined", "unreadable")
        self.outcome = unreadable if lost else self.future.result()
        return True


class _Video(_Task):
    """Decodes a video in one pass, and in a second one if the worker was lost."""

    def __init__(
        self,
        index: int,
        path: Path,
        pool: DecodePool,
        keep_images: bool,
        confirm: bool,
    ) -> None:
        super().__init__(_decode, pool.deadline_seconds)
        self._index, self._path, self._pool = index, path, pool
        self._keep_images, self._confirm = keep_images, confirm
        self._header = Outcome("quarantined")
        self._records: list[np.ndarray] = []  # of the stretches that were collected
        self._ends: list[int] = []  # frames decoded in each pass that was lost
        self._begin()
        pool.add(self)

    def _begin(self) -> None:
        """Begin a pass."""
        self._name = uuid.uuid4().hex  # of its files
        self._stretch = 0  # the one that a worker decodes, or that waits
        self._frames = 0  # decoded before it
        self._left = self._most
        self._is_lost = False

    def pieces(self) -> Iterator[Decoded]:
        """The frames of each stretch, and the outcome with the last one."""
        outcome = None
        while outcome is None:
            self._pool.wait(lambda: self.outcome is not None or self._is_waiting())
            outcome = None if self._is_waiting() else self.outcome
            images, records = self._collect()
            seconds = np.ascontiguousarray(records["seconds"][: len(images)])
            yield Decoded(self._index, images, seconds, outcome)

    def arguments(self) -> list[Any]:
        pool, first = self._pool, len(self._records) if self._keep_images else math.inf
        return [
            self._path,
            pool.settings,
            pool.stretch_seconds,
            pool.folder / self._name,
            first,
        ]

    def tick(self, seconds: float) -> None:
        """Count time, but not while a stretch waits."""
        self._collect_without_images()
        if not self._is_waiting():
            super().tick(seconds)

    def end(self) -> bool:
        """Take the outcome; False if a second pass is needed."""
        self._collect_without_images()
        try:
            self.outcome = self.future.result()
        except CancelledError:
            return self._lose("timeout")
        except ProcessExpired:
            return self._lose("corrupt-frames")
        except OSError as error:
            reason = error.strerror or str(error)
            raise _exchange_error(self._pool, reason) from error
        except Exception as error:
            error.add_note(f"while decoding {self._path}")
            raise
        self._file("header").unlink(missing_ok=True)
        return True

    def _lose(self, reason: Reason) -> bool:
        """End a pass whose worker was lost; False if a second pass is needed."""
        self._is_lost = True
        with contextlib.suppress(FileNotFoundError):
            row = json.loads(self._file("header").read_text())
            self._header = outcome_from_row(row)
        if self._file(f"{self._stretch + 1}.frames.part").exists():
            raise _exchange_error(self._pool, _REMOVED)  # it waited for this stretch
        records = self._load()[1]
        end = int(records["frames"][-1]) if len(records) else self._frames
        confirmed = end in self._ends
        self._ends.append(end)
        enough = end >= _LEAST_SHARE * expected_frames(self._header)
        again = reason == "corrupt-frames" or (self._confirm and enough)
        if again and len(self._ends) == 1:
            self._remove_files()
            self._begin()
            return False
        if self._stretch < len(self._records):  # the consumer has more
            records = records[:0]
        records = np.concatenate([*self._records, records])
        if len(records) and ((enough and confirmed) or not self._confirm):
            self.outcome = _partial(self._header, reason, records)
        else:
            self._remove_files()
            lost = replace(self._header, outcome="quarantined", reason=reason)
            self.outcome = replace(lost, frames=end)
        return True

    def _is_waiting(self) -> bool:
        """Whether the consumer can have a stretch that is not the last."""
        return not self._is_light() and self._file(f"{self._stretch}.frames").exists()

    def _is_light(self) -> bool:
        """Whether the stretch comes without images: nobody wants it, or has it already."""
        return not self._keep_images or self._stretch < len(self._records)

    def _file(self, ending: str) -> Path:
        return self._pool.folder / f"{self._name}.{ending}"

    def _collect_without_images(self) -> None:
        """Note the stretches that have passed and that the consumer does not get."""
        while self._is_light() and self._file(f"{self._stretch}.frames").exists():
            self._collect()

    def _collect(self) -> tuple[UInt8[np.ndarray, "F S H W 3"], np.ndarray]:
        """The images and records of a stretch; removes their files, so the worker goes on."""
        images, records = self._load()
        for ending in ("images", "frames", "frames.part"):
            self._file(f"{self._stretch}.{ending}").unlink(missing_ok=True)
        if self._stretch == len(self._records):
            self._records.append(records)
        if len(records):
            self._frames = int(records["frames"][-1])
        self._stretch += 1
        self._left = self._most
        return images, records

    def _load(self) -> tuple[UInt8[np.ndarray, "F S H W 3"], np.ndarray]:
        """The images and records of a stretch, read-only; the images without a copy.

        Of a pass that was lost, whatever is whole. Raises `VdError` when something is
        missing.
        """
        settings = self._pool.settings
        shape = len(settings.streams), settings.height, settings.width, 3
        images: np.ndarray = np.zeros((0, *shape), np.uint8)
        file = self._file(f"{self._stretch}.frames")
        is_whole = file.exists() or not self._is_lost
        try:
            content = (
                file if file.exists() else file.with_suffix(".frames.part")
            ).read_bytes()
            records = np.frombuffer(
                content[: len(content) // _RECORD.itemsize * _RECORD.itemsize], _RECORD
            )
            if not self._is_light() and len(records):
                file = file.with_suffix(".images")
                count = file.stat().st_size // math.prod(shape)
                if is_whole and count != len(records):
                    raise ValueError
                records = records[:count]
                images = np.memmap(file, np.uint8, "r", shape=(len(records), *shape))
        except (OSError, ValueError) as error:
            if is_whole:
                raise _exchange_error(self._pool, _REMOVED) from error
            records = np.zeros(0, _RECORD)
        return np.asarray(images), records

    def _remove_files(self) -> None:
        for file in self._pool.folder.glob(f"{self._name}.*"):
            file.unlink(missing_ok=True)


def _partial(header: Outcome, reason: Reason, records: np.ndarray) -> Outcome:
    """The outcome of a video that gave these frames before its worker was lost."""
    seconds_F = records["seconds"]
    steps = np.diff(seconds_F)
    usual = float(np.median(steps)) if len(steps) else 1 / header.fps
    is_gap = steps > max(10 * usual, 0.5)
    gaps = zip(seconds_F[:-1][is_gap].tolist(), steps[is_gap].tolist(), strict=True)
    span = float(seconds_F[-1]) + usual
    return replace(
        header,
        outcome="partial",
        reason=reason,
        frames=int(records["frames"][-1]),
        duration=span - float(steps[is_gap].sum()),
        span=span,
        gaps=tuple(gaps),
    )


def _exchange_error(pool: DecodePool, reason: str) -> VdError:
    return VdError(
        f"decoded frames in {pool.folder} are lost ({reason}); free some space there or name "
        "another folder in TMPDIR, then run the same command again."
    )


class _Handover(Sink):
    """In the worker: writes kept frames, and renames a file when a stretch is complete."""

    def __init__(self, prefix: Path, first: float) -> None:
        self._prefix = prefix
        self._first = first  # the first stretch of which images are wanted
        self._stretch = 0
        self._open()

    def _open(self) -> None:
        self._file = f"{self._prefix}.{self._stretch}.frames"
        self._records = open(f"{self._file}.part", "wb", buffering=0)
        self._images = None
        if self._stretch >= self._first:
            self._images = open(f"{self._prefix}.{self._stretch}.images", "wb")

    def header(self, header: Outcome) -> None:
        Path(f"{self._prefix}.header").write_text(json.dumps(outcome_row(header)))

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Write a frame so that it stays when this process is killed."""
        if self._images is not None and images is not None:
            self._images.write(images.data)
            self._images.flush()
        self._records.write(struct.pack("<dq", seconds, frames))

    def stretch(self) -> None:
        """Hand over a stretch; wait until its images have been collected."""
        self.close()
        os.rename(f"{self._file}.part", self._file)
        while self._images is not None and os.path.exists(self._file):
            time.sleep(_WORKER_POLL_SECONDS)
        self._stretch += 1
        self._open()

    def close(self) -> None:
        """Close the files of a stretch."""
        self._records.close()
        if self._images is not None:
            self._images.close()


def _decode(
    path: Path, settings: FrameSettings, seconds: float, prefix: Path, first: float
) -> Outcome:
    """In the worker: decode a video; images are written from stretch `first` on."""
    with contextlib.closing(_Handover(prefix, first)) as sink:
        return decode(path, settings, sink, first < math.inf, seconds)


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
