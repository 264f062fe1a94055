"""Content hashes of videos, kept so that unchanged files are not read again."""

import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from vd.console import track
from vd.data.manifest import Video
from vd.data.outcome import check_file
from vd.files import append_csv, recover_csv, sealed

_CHUNK, _MEGABYTE = 1 << 20, 10**6
_KEPT_EVERY_SECONDS = 2.0

Row = dict[str, str]


def identify(videos: Sequence[Video], hashes_file: Path) -> list[Video]:
    """Give every readable video its content hash, size and time; unchanged files are not read.

    A file is unchanged when its path, size and times of modification and of change (which
    no program sets) are those in `hashes_file`, which grows as hashes are made, so that an
    interrupt loses none; a row that is not as it was written does not count. Files
    that are missing, empty, unreadable or not regular get "" and 0.
    """
    known = {row["path"]: row for row in recover_csv(hashes_file) if sealed(row) == row}
    now = [_describe(video.path) for video in videos]
    todo = {row["path"]: row for row in now if row and not _is_same(row, known)}
    _hash_all(list(todo.values()), known, hashes_file)
    return [
        dataclasses.replace(
            video,
            id=known[row["path"]]["sha256"],
            size=int(row["size"]),
            modified=int(row["mtime"]),
        )
        if row and _is_same(row, known)
        else dataclasses.replace(video, id="", size=0)
        for video, row in zip(videos, now, strict=True)
    ]


def _describe(path: Path) -> Row | None:
    """A file's row in the hashes file but for the hash; None when it has no content."""
    if check_file(path):
        return None  # opening a named pipe would wait for ever; decoding says why
    try:
        status = os.stat(path)
    except OSError:  # it has gone meanwhile
        return None
    return {
        "path": str(path.absolute()),
        "size": str(status.st_size),
        "mtime": str(status.st_mtime_ns),
        "ctime": str(status.st_ctime_ns),
    }


def _is_same(row: Row, known: Mapping[str, Row]) -> bool:
    """Whether a file is as it was when its hash was made."""
    return row.items() <= known.get(row["path"], {}).items()


def _hash_all(rows: Sequence[Row], known: dict[str, Row], hashes_file: Path) -> None:
    """Hash files into `known` and, every few seconds, into the hashes file.

    An interrupt ends it at once, whatever the size of the files under way.
    """
    stop = threading.Event()
    events: SimpleQueue[int | Future[Row | None]] = SimpleQueue()
    made: list[Row] = []
    left, seen, kept = len(rows), 0, time.monotonic()
    total = sum(int(row["size"]) for row in rows)
    pool = ThreadPoolExecutor()  # hashing releases the interpreter's lock
    try:
        with track("hashing", total // _MEGABYTE, "MB") as ticker:
            for row in rows:
                future = pool.submit(_hash, row, stop, events)
                future.add_done_callback(events.put)
            while left:
                event = events.get()
                if isinstance(event, int):
                    seen += event
                    ticker.advance(seen // _MEGABYTE - ticker.done)
                else:
                    left -= 1
                    if hashed := event.result():
                        made.append(hashed)
                        known[hashed["path"]] = hashed
                if time.monotonic() - kept > _KEPT_EVERY_SECONDS:
                    kept = time.monotonic()
                    append_csv(hashes_file, made)
                    made.clear()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        append_csv(hashes_file, made)


def _hash(
    row: Row, stop: threading.Event, events: "SimpleQueue[int | Future[Row | None]]"
) -> Row | None:
    """In a thread: the row with its hash, None when it cannot be read; tells bytes as read."""
    digest = hashlib.sha256()
    try:
        with open(row["path"], "rb", buffering=0) as handle:
            while (chunk := handle.read(_CHUNK)) and not stop.is_set():
                digest.update(chunk)
                events.put(len(chunk))
    except OSError:
        return None  # decoding says why
    return None if stop.is_set() else sealed(row | {"sha256": digest.hexdigest()})
