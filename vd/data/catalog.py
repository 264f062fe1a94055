"""CACHE/catalog.sqlite: content hashes, outcomes and fingerprints of videos.

All of it can be made again, so a damaged catalog is renamed and a new one begun.
"""

import contextlib
import dataclasses
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from vd.console import SLICE_SECONDS, check_interrupt, say, track
from vd.data.manifest import Video
from vd.data.outcome import Outcome, check_file
from vd.errors import VdError
from vd.files import explaining

_VERSION = 1  # of the tables; a catalog of another version is not read
_TABLES = """
    CREATE TABLE hashes (
        path BLOB PRIMARY KEY,  -- bytes, for names that are not UTF-8
        size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT);
    CREATE TABLE outcomes (
        sha256 TEXT PRIMARY KEY, outcome TEXT, reason TEXT, frames INTEGER,
        width INTEGER, height INTEGER, fps REAL, duration REAL, codec TEXT,
        brightness REAL);
    CREATE TABLE fingerprints (
        sha256 TEXT PRIMARY KEY, small BLOB, picture BLOB, brightness REAL,
        letterbox REAL);
"""
_BUSY_SECONDS = 60.0
_DAMAGE = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR
_NO_LOCK = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL
_CHUNK_BYTES, _MEGABYTE = 1 << 20, 10**6
_COMMIT_EVERY_SECONDS = 2.0

_T = TypeVar("_T")


class Catalog:
    """The catalog of a cache folder, for any number of processes on one machine.

    Every call is one short transaction, so an interrupt or a kill loses no earlier call.
    Raises `VdError` when the file cannot be read or written.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.path = cache_dir / "catalog.sqlite"

    def select(self, query: str, *values: Any) -> list[tuple]:
        """The rows of a query."""
        return self._run(lambda database: database.execute(query, values).fetchall())

    def insert(self, table: str, rows: Sequence[tuple]) -> None:
        """Add whole rows durably, in place of those with the same key."""
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            query = f"INSERT OR REPLACE INTO {table} VALUES ({marks})"
            self._run(lambda database: database.executemany(query, rows))

    def outcomes(self) -> dict[str, Outcome]:
        """All outcomes by content hash."""
        rows = self.select("SELECT * FROM outcomes")
        return {sha256: Outcome(*values) for sha256, *values in rows}

    def add_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add outcomes by content hash."""
        rows = [(key, *dataclasses.astuple(value)) for key, value in outcomes.items()]
        self.insert("outcomes", rows)

    def _run(self, work: Callable[[sqlite3.Connection], _T], again: bool = True) -> _T:
        """Do `work` in one transaction; once more on a new catalog if this is damaged."""
        with explaining(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
            with contextlib.closing(connection) as database, database:
                _make_tables(database)
                return work(database)
        except sqlite3.Error as error:
            if not again or _code(error) not in (*_DAMAGE, *_NO_LOCK):
                raise VdError(
                    f"{self.path} cannot be used ({error}); free some space, give yourself "
                    "permission to write there, or name another --cache-dir."
                ) from error
            self._set_aside(error)
        return self._run(work, again=False)

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a catalog that cannot be used, with its journal."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        with explaining(self.path):
            # the journal first: SQLite would apply it to the next catalog
            for suffix in ("-journal", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        why = "cannot be locked" if _code(error) in _NO_LOCK else "is damaged"
        say(
            f"warning: {self.path} {why} ({error}); it is renamed to {aside.name} and made "
            "again"
        )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code of an error; what is not SQLite's own is damage."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _make_tables(database: sqlite3.Connection) -> None:
    """Make the tables of a new catalog; raises `sqlite3.Error` for another version."""

    def version() -> int:
        return int(database.execute("PRAGMA user_version").fetchone()[0])

    database.execute("PRAGMA journal_mode = DELETE")  # WAL fails on network disks
    if version() == 0:
        database.execute("BEGIN IMMEDIATE")  # others wait, then find the tables
    if version() == 0:
        for statement in _TABLES.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    if version() != _VERSION:
        raise sqlite3.DatabaseError("another version of vd wrote it")


class _File(NamedTuple):
    """A file as it was when it was hashed; nothing but a write sets the time of change."""

    path: bytes
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int


def identify(videos: Sequence[Video], cache_dir: Path) -> list[Video]:
    """Give every readable video its content hash, size and time; unchanged files are not read.

    A file is unchanged when its path, size and times of modification and of change are
    those in the catalog. Hashes are kept as they are made, so an interrupt loses none.
    Files that are missing, empty, unreadable or not regular get "" and 0.
    """
    catalog = Catalog(cache_dir)
    rows = catalog.select("SELECT path, size, mtime_ns, ctime_ns, sha256 FROM hashes")
    known = {_File(*row[:4]): row[4] for row in rows}
    files = [_file(video.path) for video in videos]
    new = [file for file in dict.fromkeys(files) if file and file not in known]
    if new:
        known |= _hash_all(new, catalog)
    return [
        dataclasses.replace(
            video, id=known[file], size=file.size, modified=file.mtime_ns
        )
        if file in known
        else dataclasses.replace(video, id="", size=0)
        for video, file in zip(videos, files, strict=True)
    ]


def _file(path: Path) -> _File | None:
    """A file as it is now; None when it has no content to hash."""
    if check_file(path):
        return None  # opening a named pipe would wait for ever; decoding says why
    try:
        status = os.stat(path)
    except OSError:  # it has gone meanwhile
        return None
    name = os.fsencode(path.absolute())
    return _File(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_Event = int | Future[str | None]  # bytes read, or a file is finished


def _hash_all(files: Sequence[_File], catalog: Catalog) -> dict[_File, str]:
    """Hash files, in threads; hashes go to the catalog every few seconds.

    An interrupt ends it at once, whatever the size of the files under way.
    """
    stop = threading.Event()
    events: SimpleQueue[_Event] = SimpleQueue()
    hashes: dict[_File, str] = {}
    new_rows: list[tuple] = []
    read, committed = 0, time.monotonic()
    pool = ThreadPoolExecutor()  # hashing releases the interpreter's lock
    try:
        total = sum(file.size for file in files)
        with track("hashing", total // _MEGABYTE, "MB") as ticker:
            file_of = {pool.submit(_hash, file, stop, events): file for file in files}
            for future in file_of:
                future.add_done_callback(events.put)
            while file_of:
                try:
                    event = events.get(timeout=SLICE_SECONDS)
                except Empty:
                    check_interrupt()
                    continue
                if isinstance(event, int):
                    read += event
                    ticker.advance(read // _MEGABYTE - ticker.done)
                else:
                    file = file_of.pop(event)
                    if sha256 := event.result():
                        hashes[file] = sha256
                        new_rows.append((*file, sha256))
                if time.monotonic() - committed > _COMMIT_EVERY_SECONDS:
                    committed = time.monotonic()
                    catalog.insert("hashes", new_rows)
                    new_rows.clear()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        catalog.insert("hashes", new_rows)
    return hashes


def _hash(
    file: _File, stop: threading.Event, events: SimpleQueue[_Event]
) -> str | None:
    """In a thread: a file's SHA-256, None when it cannot be read or all is to stop."""
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb", buffering=0) as handle:
            while (chunk := handle.read(_CHUNK_BYTES)) and not stop.is_set():
                digest.update(chunk)
                events.put(len(chunk))
    except OSError:
        return None  # decoding says why
    return None if stop.is_set() else digest.hexdigest()
