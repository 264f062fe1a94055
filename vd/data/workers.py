"""Decoding in worker processes: one that is stuck is ended, one that crashes is replaced.

They are spawned, because JAX runs threads and a fork could hang, and without the caller's
main script, so that it needs no `if __name__ == "__main__":`. A worker decodes a video in
one pass. Each stretch of it comes back as files in shared memory: renaming them hands the
stretch over, and the worker decodes on when they have been removed. No lock is held
meanwhile that a killed worker could keep.
"""

import contextlib
import fcntl
import json
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
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from multiprocessing import resource_tracker, spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from pebble import ProcessExpired, ProcessPool

from vd.config import DecodeConfig, usable_cores
from vd.console import check_interrupt, result_of
from vd.data.clock import Clock
from vd.data.decode import WHOLE, FrameSettings, Sink, decode, read_header
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
_POLL_SECONDS = 0.01
_LEAST_SHARE = 0.5  # of the expected frames of a video whose decoding never ends
_STUCK_SHARE = 0.1  # of the deadline, in which a decoder that is stuck gives no frame
_RECORD = np.dtype(  # of a kept frame
    [("seconds", "<f8"), ("frames", "<i8"), ("after_gap", "?")], align=True
)
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
    _line: deque["_Video"] = field(default_factory=deque)
    _running: list["_Video"] = field(default_factory=list)
    _ticked: float = field(default_factory=time.monotonic)

    def schedule(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        """Have a worker call a function; gives a future."""
        try:
            return self.processes.schedule(function, [*arguments], **options)
        except RuntimeError as error:  # Pebble's, of a pool that broke meanwhile
            raise BrokenProcessPool(str(error)) from error

    def add(self, video: "_Video") -> None:
        """Start a video, or put it at the end of the line."""
        self._line.append(video)
        self._start()

    def _start(self) -> None:
        while self._line and len(self._running) < self.workers:
            self._running.append(self._line.popleft())
            self._running[-1].start()

    def step(self, seconds: float) -> None:
        """Wait so long at most, settle passes that ended, count the time of the others.

        Time is counted in ticks of at most a second while somebody waits. So neither a pause
        of the whole program (Ctrl-Z, a sleeping laptop) nor a slow consumer is a timeout.
        """
        check_interrupt()
        futures = [video.future for video in self._running]
        # a cancelled one is among them when its process has ended, and not before
        done = wait(futures, seconds, FIRST_COMPLETED).done
        now = time.monotonic()
        tick = min(now - self._ticked, _LONGEST_TICK)
        self._ticked = now
        for video in list(self._running):
            if video.future in done:
                self._running.remove(video)
                video.end()
                if video.outcome is None:  # a second pass
                    self._line.appendleft(video)
            elif video.future.running():
                video.tick(tick)
        self._start()


class _Frames(NamedTuple):
    """Kept frames of a stretch, as `Decoded` has them."""

    images: UInt8[np.ndarray, "F S H W 3"]
    seconds: Float64[np.ndarray, "F"]
    after_gap: Bool[np.ndarray, "F"]


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last one."""

    index: int
    images: UInt8[np.ndarray, "F S H W 3"]
    seconds: Float64[np.ndarray, "F"]  # from the video's first frame
    after_gap: Bool[np.ndarray, "F"]  # whether it is the first one after a gap
    outcome: Outcome | None


@contextmanager
def decode_pool(
    settings: FrameSettings,
    decode: DecodeConfig,
    videos: int,
    stretch_seconds: float = 30.0,
) -> Iterator[DecodePool]:
    """Yield a pool for so many videos; its processes are stopped however the block ends.

    Raises `VdError` if the workers cannot start.
    """
    workers = max(1, min(decode.decode_workers or usable_cores(), videos))
    frames = stretch_seconds * settings.frames_per_second * len(settings.streams)
    stretch_bytes = frames * settings.height * settings.width * 3
    with _exchange_folder((workers + _AHEAD + 1) * stretch_bytes) as folder:
        processes = ProcessPool(
            max_workers=workers,
            max_tasks=_TASKS_A_WORKER,
            initializer=_start_worker,
            initargs=[os.getpid()],
            context=_WorkerContext(),
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
                "the decoding processes ended before they began to work; free some memory or "
                "lower --decode-workers."
            ) from error
        finally:
            processes.stop()
            processes.join()


def decode_videos(
    paths: Sequence[Path],
    pool: DecodePool,
    keep_images: bool = True,
    confirm: bool = True,
    between: tuple[float, float] = WHOLE,
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    A few videos are decoded ahead, so memory is bounded. Without `keep_images` each video is
    one piece without frames.

    A video whose decoding misses the pool's deadline (timeout) or crashes (corrupt-frames) is
    decoded once more. If both passes end at the same frame and gave at least half of the
    expected ones, it is partial, else quarantined. So the outcome does not depend on the
    machine's load. Without `confirm` what was handed over counts, only a crash is tried
    again, and the deadline is for a decoder that gives no frame. `between` are the seconds
    whose frames are kept; decoding stops after them. Raises `VdError` if decoded frames
    cannot be stored.
    """
    ahead = _AHEAD if keep_images else _AHEAD_WITHOUT_IMAGES
    videos = (
        _Video(index, path, pool, keep_images, confirm, between)
        for index, path in enumerate(paths)
    )
    started = deque(islice(videos, pool.workers + ahead))
    while started:
        yield from started.popleft().pieces()
        started.extend(islice(videos, 1))


def read_headers(paths: Sequence[Path], pool: DecodePool) -> Iterator[Outcome]:
    """What the header of each video says; one that hangs or crashes is unreadable."""
    limit = min(_HEADER_SECONDS, pool.deadline_seconds)
    futures = [
        pool.schedule(read_header, path, pool.settings, timeout=limit) for path in paths
    ]
    for future in futures:
        try:
            yield result_of(future)
        except (TimeoutError, ProcessExpired):
            yield Outcome("quarantined", "unreadable")


@dataclass(eq=False)
class _Video:
    """A video that is decoded in one pass, and in a second one if its worker was lost."""

    index: int
    path: Path
    pool: DecodePool
    keep_images: bool
    confirm: bool
    between: tuple[float, float]
    outcome: Outcome | None = None  # when no other pass follows
    _given: int = 0  # stretches that the consumer has, whichever pass they are of
    _lost_passes: list[np.ndarray] = field(default_factory=list)  # their records

    def __post_init__(self) -> None:
        self.pool.add(self)

    def start(self) -> None:
        """Start a pass, from the first frame."""
        pool = self.pool
        self._name = str(pool.folder / uuid.uuid4().hex)  # of its files
        self._records: list[np.ndarray] = []  # of each stretch of this pass
        # it may begin just before a tick, which counts in full
        self._left = pool.deadline_seconds + _LONGEST_TICK
        self._size = 0  # of its records when they were last looked at
        options = pool.stretch_seconds, self._name, self.keep_images, self.between
        self.future = pool.schedule(_decode, self.path, pool.settings, *options)

    def pieces(self) -> Iterator[Decoded]:
        """The frames of each stretch, and the outcome with the last one."""
        self.pool.step(0.0)  # a worker may have become free
        while self.outcome is None:
            if self._is_waiting():
                stretch = self._collect("frames")
                self._given = len(self._records)
                yield Decoded(self.index, *stretch, None)
            self.pool.step(_POLL_SECONDS)
        yield Decoded(self.index, *self._rest, self.outcome)

    def tick(self, seconds: float) -> None:
        """Count the time of a stretch that is not complete; cancel when it is over.

        Without confirmation it is the time without a frame, so that a slow decoder goes on.
        """
        self._drop_unwanted()
        if not self._is_waiting():
            self._left -= seconds
            if not self.confirm and self._has_grown():
                self._left = self.pool.deadline_seconds
            if self._left < 0:
                self.future.cancel()  # Pebble ends its process

    def end(self) -> None:
        """Take the last stretch and the outcome, unless a second pass is needed."""
        self._drop_unwanted()
        try:
            outcome = self.future.result()
        except CancelledError:
            self.outcome = self._lost("timeout")
        except ProcessExpired:
            self.outcome = self._lost("corrupt-frames")
        except OSError as error:
            raise VdError(
                f"decoded frames cannot be written into {self.pool.folder} "
                f"({error.strerror or error}); free some space there or name another folder "
                "in TMPDIR, then run the same command again."
            ) from error
        except Exception as error:
            error.add_note(f"while decoding {self.path}")
            raise
        else:
            self._rest = self._collect("frames.part")
            self.outcome = outcome
        Path(f"{self._name}.header").unlink(missing_ok=True)

    def _lost(self, reason: Reason) -> Outcome | None:
        """Take what a lost worker has written; None if a second pass is needed."""
        crashed = reason == "corrupt-frames"
        last = self._file("frames.part")
        if self._is_waiting():
            self._file("frames").rename(last)
        elif not last.exists():  # the worker ended before
            last.touch()
        # stuck: without a frame for a while; a slow decoder ends anywhere
        quiet = time.time() - last.stat().st_mtime
        stuck = crashed or quiet > _STUCK_SHARE * self.pool.deadline_seconds
        rest = self._collect("frames.part")
        header = Outcome("quarantined", reason)
        with contextlib.suppress(FileNotFoundError, ValueError):  # missing, or cut
            row = json.loads(Path(f"{self._name}.header").read_text())
            header = replace(outcome_from_row(row), reason=reason)
        records = np.concatenate(self._records)
        frames = int(records["frames"].max(initial=0))
        least = max(1, _LEAST_SHARE * expected_frames(header))  # 0: not even a header
        enough = stuck and frames >= least
        passes = self._lost_passes
        passes.append(records)
        if len(passes) == 1 and (crashed or (self.confirm and enough)):
            return None
        if self.confirm:
            counts = enough and np.array_equal(passes[0], records)
        else:
            records = max(passes, key=len)
            counts = len(records) > 0
        is_new = counts and len(self._records) > self._given
        self._rest = rest if is_new else _Frames(*(part[:0] for part in rest))
        return _partial(header, records) if counts else replace(header, frames=frames)

    def _file(self, ending: str) -> Path:
        """A file of the stretch that a worker decodes, or that is complete."""
        return Path(f"{self._name}.{len(self._records)}.{ending}")

    def _has_grown(self) -> bool:
        """Whether the stretch under way has more frames than when this was asked before."""
        before, size = self._size, self._size
        with contextlib.suppress(FileNotFoundError):  # complete meanwhile
            size = self._file("frames.part").stat().st_size
        self._size = size
        return size != before

    def _is_waiting(self) -> bool:
        """Whether a complete stretch waits for the consumer."""
        return not self._is_unwanted() and self._file("frames").exists()

    def _is_unwanted(self) -> bool:
        return not self.keep_images or len(self._records) < self._given

    def _drop_unwanted(self) -> None:
        """Collect the stretches that are not for the consumer, or that it has."""
        while self._is_unwanted() and self._file("frames").exists():
            self._collect("frames")

    def _collect(self, ending: str) -> "_Frames":
        """The frames of a stretch, the images without a copy; removes its files."""
        settings = self.pool.settings
        shape = len(settings.streams), settings.height, settings.width, 3
        records = np.fromfile(self._file(ending), _RECORD)
        kept = len(records) if self.keep_images else 0
        images: np.ndarray = np.zeros((0, *shape), np.uint8)
        if kept:  # an empty file cannot be mapped
            file = self._file("images")
            images = np.asarray(np.memmap(file, np.uint8, "r", shape=(kept, *shape)))
        self._file("images").unlink(missing_ok=True)
        self._file(ending).unlink()
        self._records.append(records)
        self._left = self.pool.deadline_seconds
        return _Frames(images, records["seconds"][:kept], records["after_gap"][:kept])


def _partial(header: Outcome, records: np.ndarray) -> Outcome:
    """The outcome of a video that gave these frames before its worker was lost."""
    clock = Clock[None](Fraction(1, 1000), header.fps, lambda _: None)
    for milliseconds in (1000 * records["seconds"]).round().astype(int).tolist():
        clock.add(None, milliseconds)
    clock.finish()
    known = replace(header, outcome="partial", frames=int(records["frames"][-1]))
    gaps = tuple(clock.gaps)
    return replace(known, duration=clock.duration, span=clock.span, gaps=gaps)


class _Handover(Sink):
    """In the worker: writes kept frames, and renames a file when a stretch is complete.

    A frame is written at once, so that it stays when the process is killed.
    """

    def __init__(self, name: str) -> None:
        self._name, self._stretch = name, 0
        self._after_gap = False
        self._open()

    def _open(self) -> None:
        self._file = f"{self._name}.{self._stretch}.frames"
        images = f"{self._name}.{self._stretch}.images"
        self._images = open(images, "wb")  # noqa: SIM115
        self._records = open(f"{self._file}.part", "wb", buffering=0)  # noqa: SIM115

    def header(self, header: Outcome) -> None:
        """Write the header, which is known of a lost video too then."""
        Path(f"{self._name}.header").write_text(json.dumps(outcome_row(header)))

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Write a frame's images, then its record."""
        if images is not None:
            self._images.write(images.data)
            self._images.flush()
        record = np.array((seconds, frames, self._after_gap), _RECORD)
        self._records.write(record.tobytes())
        self._after_gap = False

    def gap(self) -> None:
        """Note it for the next frame's record."""
        self._after_gap = True

    def stretch(self) -> None:
        """Hand over a stretch, and wait until it has been collected."""
        os.rename(f"{self._file}.part", self._file)
        while os.path.exists(self._file):
            time.sleep(_POLL_SECONDS)
        self._stretch += 1
        self._open()


def _decode(
    path: Path,
    settings: FrameSettings,
    seconds: float,
    name: str,
    keep_images: bool,
    between: tuple[float, float],
) -> Outcome:
    """In the worker: decode a video, and write what it gives into files of this name."""
    return decode(path, settings, _Handover(name), keep_images, seconds, between)


class _WorkerProcess(SpawnProcess):
    """A spawned process that does not run the caller's main script again."""

    @staticmethod
    def _Popen(process: Any) -> Any:
        with _start_lock, _without_main_script():
            return SpawnProcess._Popen(process)


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


_start_lock = threading.Lock()  # Pebble replaces workers in threads of its own


@contextmanager
def _without_main_script() -> Iterator[None]:
    """Leave the main script out of what a process that starts in the block is told.

    A script without a guard would decode again in every worker; one from standard input
    cannot be read again. `multiprocessing` has no setting for it.
    """
    original = spawn.get_preparation_data

    def without_main_script(name: str) -> dict[str, Any]:
        data = original(name)
        return {k: v for k, v in data.items() if not k.startswith("init_main")}

    spawn.get_preparation_data = without_main_script
    try:
        yield
    finally:
        spawn.get_preparation_data = original


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
        root = Path(tempfile.gettempdir())
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
