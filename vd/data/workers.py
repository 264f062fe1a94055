"""Decoding in a pool under a deadline: a stuck worker is ended, a crashed one replaced."""

import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as DeadlineError
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pebble import ProcessExpired

from vd.data.decode import Position, Stretch, decode_stretch, probe_header
from vd.data.frames import FrameSettings
from vd.data.outcome import Outcome, Tally, outcome_of
from vd.data.pool import AHEAD, DecodePool
from vd.errors import VdError

PROBED_SECONDS = 1.0  # of a video
_PROBE_SECONDS = 15.0  # at most: a hanging video must not hold up the start
_AHEAD_WITHOUT_IMAGES = 32  # so that a slow one stops no other


@dataclass(frozen=True)
class Decoded:
    """A piece of a video; `outcome` is set on the last."""

    index: int
    images: UInt8[np.ndarray, "F S H W 3"]
    outcome: Outcome | None


class Probe(NamedTuple):
    """What a look at a video tells."""

    header: Outcome  # quarantined, with a reason where it does not open
    cost: float  # seconds of decoding its first `PROBED_SECONDS`; NaN: not tried


@dataclass
class _Video:
    """A video under way: one stretch of it is being decoded."""

    index: int
    path: Path
    target: Path | None  # where its images go
    future: Any = None
    position: Position = field(default_factory=Position)
    tallies: list[Tally] = field(default_factory=list)
    kept: int = 0  # images of the stretch that was decoded last
    crashed: bool = False
    submitted: float = 0.0


def decode_videos(
    paths: Sequence[Path], pool: DecodePool, keep_images: bool = True
) -> Iterator[Decoded]:
    """Decode videos in parallel; pieces come in the order of `paths`.

    The first videos are handed to the workers before anything is asked for, and a few are
    always decoded ahead, so memory is bounded. Each stretch of a video has the pool's
    deadline. A video that misses it ends as quarantined, timeout; one that crashes its
    worker twice as corrupt-frames.

    Raises VdError when decoded frames find no room.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=pool.folder))  # two calls must not mix
    except FileNotFoundError as error:
        raise _vanished(pool) from error
    most = pool.workers + (AHEAD if keep_images else _AHEAD_WITHOUT_IMAGES)
    waiting = (
        _Video(index, path, folder / f"{index}.rgb" if keep_images else None)
        for index, path in enumerate(paths)
    )
    under_way = deque(islice(waiting, most))
    for video in under_way:
        _submit(video, pool)
    return _decoded(under_way, waiting, pool)


def _decoded(
    under_way: deque[_Video], waiting: Iterator[_Video], pool: DecodePool
) -> Iterator[Decoded]:
    """The pieces of the videos under way, then of the waiting ones."""
    while under_way:
        video = under_way[0]
        outcome = _wait(video, pool)
        images = _collect(video, pool)
        if outcome is None:
            _submit(video, pool)
        else:
            under_way.popleft()
        yield Decoded(video.index, images, outcome)
        if outcome is not None and (following := next(waiting, None)):
            _submit(following, pool)
            under_way.append(following)


def probe_videos(
    paths: Sequence[Path], pool: DecodePool, timed_every: int
) -> Callable[[], list[Probe]]:
    """Look at each video's header, and decode the beginning of every so many.

    One that hangs or crashes counts as unreadable. The workers begin at once; the call of
    what is returned waits.
    """
    futures = [
        pool.processes.schedule(
            _probe,
            args=[path, pool.settings, number % timed_every == 0],
            timeout=min(pool.deadline_seconds, _PROBE_SECONDS),
        )
        for number, path in enumerate(paths)
    ]

    def results() -> list[Probe]:
        wait(futures)
        lost = Probe(Outcome("quarantined", "unreadable"), math.nan)
        return [lost if future.exception() else future.result() for future in futures]

    return results


def _submit(video: _Video, pool: DecodePool) -> None:
    """Have the next stretch of a video decoded."""
    video.submitted = time.monotonic()
    try:
        video.future = pool.processes.schedule(
            _task,
            args=[
                video.path,
                pool.settings,
                video.position,
                pool.stretch_seconds,
                video.target,
            ],
            timeout=pool.deadline_seconds,
        )
    except RuntimeError as error:  # Pebble's, of a pool that broke meanwhile
        raise BrokenProcessPool(str(error)) from error


def _probe(path: Path, settings: FrameSettings, timed: bool) -> Probe:
    """In the worker: a look at a video."""
    if not timed:
        return Probe(probe_header(path), math.nan)
    began = time.perf_counter()
    stretch = decode_stretch(
        path, settings, seconds=PROBED_SECONDS, keep=lambda image: None
    )
    return Probe(stretch.tally.header, time.perf_counter() - began)


def _wait(video: _Video, pool: DecodePool) -> Outcome | None:
    """Wait for the stretch under way; the outcome if nothing of the video is left."""
    try:
        stretch: Stretch = video.future.result()
    except (ProcessExpired, DeadlineError) as error:
        video.kept = 0
        if isinstance(error, DeadlineError):
            # what the whole program lost, asleep or stopped, is no fault of the video
            return None if pool.halted(video.submitted) else _lost(video, "timeout")
        if video.crashed:
            return _lost(video, "corrupt-frames")
        video.crashed = True
        return None  # the same stretch again
    except FileNotFoundError as error:
        raise _vanished(pool) from error
    except OSError as error:
        raise VdError(
            f"{pool.folder} cannot hold decoded frames "
            f"({error.strerror or error}); free some space, or name another folder in "
            "TMPDIR."
        ) from error
    except Exception as error:
        error.add_note(f"while decoding {video.path}")
        raise
    video.tallies.append(stretch.tally)
    video.kept = stretch.tally.kept
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


def _collect(video: _Video, pool: DecodePool) -> UInt8[np.ndarray, "F S H W 3"]:
    """The images that a worker left, read-only, without a copy; the file loses its name.

    Raises `VdError` unless they are as many as the worker says.
    """
    settings = pool.settings
    shape = len(settings.streams), settings.height, settings.width, 3
    none: np.ndarray = np.zeros((0, *shape), np.uint8)
    if video.target is None:
        return none
    if not video.kept:  # an empty file, or what a lost worker half wrote
        video.target.unlink(missing_ok=True)
        return none
    try:
        images = np.memmap(video.target, np.uint8, "r").reshape(video.kept, *shape)
        video.target.unlink()
    except (OSError, ValueError) as error:  # gone, or cut
        raise _vanished(pool) from error
    return np.asarray(images)


def _vanished(pool: DecodePool) -> VdError:
    return VdError(
        f"something else removed decoded frames from {pool.folder}; "
        "name another folder for them in TMPDIR if it was no accident, and run the same "
        "command again."
    )


def _lost(video: _Video, reason: Any) -> Outcome:
    """The outcome of a video whose worker was lost."""
    known = outcome_of(video.tallies) if video.tallies else Outcome("quarantined")
    return replace(known, outcome="quarantined", reason=reason)
