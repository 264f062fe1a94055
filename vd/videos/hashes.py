"""Content hashes of videos, kept so that unchanged files are not read again."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vd.atomic import sha256_file
from vd.tables import read_csv, write_csv
from vd.videos.manifest import Video
from vd.videos.outcome import check_file

_HASH_COLUMNS = {"path", "size", "mtime", "sha256"}


def identify(videos: Sequence[Video], hashes_file: Path) -> list[Video]:
    """Give every readable video its content hash; unchanged files are not read again.

    A file is unchanged when its path, size and modification time are those in
    `hashes_file`. Files that are missing, empty, unreadable or not regular get "".
    """
    known = {
        row["path"]: row for row in read_csv(hashes_file) if set(row) == _HASH_COLUMNS
    }
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        rows = list(pool.map(lambda video: _hash(video.path, known), videos))
    fresh = {row["path"]: row for row in rows if row is not None}
    if any(known.get(path) != row for path, row in fresh.items()):
        write_csv(hashes_file, list((known | fresh).values()))
    return [
        dataclasses.replace(video, id=row["sha256"] if row else "")
        for video, row in zip(videos, rows, strict=True)
    ]


def _hash(path: Path, known: Mapping[str, dict[str, str]]) -> dict[str, str] | None:
    """The row of one file in the hashes file, or None when it has no content."""
    key = str(path.absolute())
    try:
        status = os.stat(path)
        if check_file(path):
            return None  # decoding says why
        row = {
            "path": key,
            "size": str(status.st_size),
            "mtime": str(status.st_mtime_ns),
        }
        old = known.get(key, {})
        if all(old.get(field) == value for field, value in row.items()):
            return old
        return row | {"sha256": sha256_file(path)}
    except (OSError, ValueError):  # ValueError: a NUL in its name
        return None  # decoding says why
