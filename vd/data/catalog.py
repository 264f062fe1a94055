"""CACHE/catalog.sqlite: content hashes, outcomes and fingerprints of videos.

All of it can be made again, so a damaged catalog is renamed and a new one begun.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vd.config import DecodeConfig
from vd.console import SLICE_SECONDS, say, track
from vd.data.manifest import Video
from vd.data.outcome import Outcome, check_file, outcome_from_row, outcome_row
from vd.errors import VdError
from vd.files import explaining

_TABLES = """
    PRAGMA journal_mode = DELETE;  -- not WAL: network disks
    CREATE TABLE IF NOT EXISTS hashes (
        path BLOB PRIMARY KEY,  -- bytes, for names that are not UTF-8
        size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT);
    CREATE TABLE IF NOT EXISTS outcomes_2 (
        sha256 TEXT PRIMARY KEY, outcome TEXT, reason TEXT, frames INTEGER,
        width INTEGER, height INTEGER, fps REAL, duration REAL, codec TEXT,
        brightness REAL, span REAL, gaps TEXT, clock TEXT);
    CREATE TABLE IF NOT EXISTS fingerprints_2 (
        sha256 TEXT PRIMARY KEY, small BLOB, picture BLOB, brightness REAL,
        letterbox REAL);
    CREATE TABLE IF NOT EXISTS probes (sha256 TEXT PRIMARY KEY, is_video INTEGER);
"""
_BUSY_SECONDS = 60.0
_REASONS = {  # by SQLite's primary code, for which a catalog is renamed
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is damaged",
    sqlite3.SQLITE_ERROR: "is damaged",  # as by other columns
    sqlite3.SQLITE_BUSY: "cannot be locked",
    sqlite3.SQLITE_PROTOCOL: "cannot be locked",
}
_CHUNK_BYTES = 1 << 20

_T = TypeVar("_T")


class Catalog:
    """The catalog of a cache folder, for any number of processes on one machine.

    Every call is one short transaction, so an interrupt or a kill loses no earlier call.
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
        names = [field.name for field in fields(Outcome)]
        rows = self.select(f"SELECT sha256, {', '.join(names)} FROM outcomes_2")
        return {
            sha256: outcome_from_row(dict(zip(names, values, strict=True)))
            for sha256, *values in rows
        }

    def add_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add outcomes by content hash."""
        rows = [(key, *outcome_row(value).values()) for key, value in outcomes.items()]
        self.insert("outcomes_2", rows)

    def _run(self, work: Callable[[sqlite3.Connection], _T], again: bool = True) -> _T:
        """Do `work` in one transaction; once more on a new catalog if this is damaged."""
        with explaining(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
            with contextlib.closing(connection) as database, database:
                database.executescript(_TABLES)
                return work(database)
        except sqlite3.Error as error:
            # an error that is not SQLite's own is damage
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if not again or code not in _REASONS:
                raise VdError(
                    f"{self.path} cannot be used ({error}); free some space, give yourself "
                    "permission to write there, or name another --cache-dir."
                ) from error
            self._set_aside(f"{_REASONS[code]} ({error})")
        return self._run(work, again=False)

    def _set_aside(self, why: str) -> None:
        """Rename a catalog that cannot be used, with its journal."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        with explaining(self.path):
            # the journal first: SQLite would apply it to the next catalog
            for suffix in ("-journal", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        say(f"warning: {self.path} {why}; it is renamed to {aside.name} and made again")


class _File(NamedTuple):
    """A file as it was when it was hashed.

    Programs can set the time of modification back, but not that of change of the inode.
    """

    path: bytes
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int


def identify(videos: Sequence[Video], cache_dir: Path) -> list[Video]:
    """Give every readable video its content hash, size and time; unchanged files are not read.

    A file is unchanged when its path, size and times of modification and of change are
    those in the catalog. One that is missing, empty, unreadable or not regular gets "" and 0.
    """
    catalog = Catalog(cache_dir)
    rows = catalog.select("SELECT path, size, mtime_ns, ctime_ns, sha256 FROM hashes")
    known = {_File(*row[:4]): row[4] for row in rows}
    files = [_file(video.path) for video in videos]
    new = [file for file in dict.fromkeys(files) if file and file not in known]
    if new:
        known |= _hash_all(new, catalog)
    return [
        replace(video, id=known[file], size=file.size, modified=file.mtime_ns)
        if file in known
        else replace(video, id="", size=0)
        for video, file in zip(videos, files, strict=True)
    ]


def find_videos(
    files: Sequence[Video], cache_dir: Path, decode: DecodeConfig
) -> set[str]:
    """The names of the files that FFmpeg knows as videos; each content is probed once.

    One that hangs or crashes is none this time.
    """
    from vd.data.decode import FrameSettings
    from vd.data.workers import decode_pool, read_headers

    catalog = Catalog(cache_dir)
    files = identify(files, cache_dir)
    known = dict(catalog.select("SELECT sha256, is_video FROM probes"))
    new = {f.id: f.path for f in files if f.id and f.id not in known}
    if new:
        with (
            track("probing", len(new), "files") as ticker,
            decode_pool(FrameSettings(), decode, len(new)) as pool,
        ):
            headers = read_headers(list(new.values()), pool)
            for sha256, header in zip(new, headers, strict=True):
                if header.of_content:
                    known[sha256] = header.width > 0  # known where there is a video
                    catalog.insert("probes", [(sha256, known[sha256])])
                ticker.advance()
    return {file.name for file in files if known.get(file.id)}


def _file(path: Path) -> _File | None:
    """A file as it is now; None when it has no content to hash."""
    if check_file(path):
        return None  # opening a named pipe would wait for ever; decoding says why
    status = os.stat(path)
    name = os.fsencode(path.absolute())
    return _File(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _hash_all(files: Sequence[_File], catalog: Catalog) -> dict[_File, str]:
    """Hash files, in threads; hashes go to the catalog every half second.

    An interrupt ends it at once, whatever the size of the files under way.
    """
    stop = threading.Event()
    hashes: dict[_File, str] = {}
    pool = ThreadPoolExecutor()  # hashing releases the interpreter's lock
    try:
        with track("hashing", len(files), "files") as ticker:
            file_of = {pool.submit(_hash, file, stop): file for file in files}
            waiting = set(file_of)
            while waiting:
                done, waiting = wait(waiting, timeout=SLICE_SECONDS)
                new = {file_of[one]: one.result() for one in done if one.result()}
                catalog.insert("hashes", [(*file, new[file]) for file in new])
                hashes |= new
                ticker.advance(len(done))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return hashes


def _hash(file: _File, stop: threading.Event) -> str:
    """In a thread: a file's SHA-256, "" when it cannot be read or all is to stop."""
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb", buffering=0) as handle:
            while (chunk := handle.read(_CHUNK_BYTES)) and not stop.is_set():
                digest.update(chunk)
    except OSError:
        return ""  # decoding says why
    return "" if stop.is_set() else digest.hexdigest()
