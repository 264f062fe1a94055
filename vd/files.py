"""Files that are written whole or not at all; locks; JSON and CSV."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from vd.errors import VdError

_OWNED = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)$")


def temporary(path: Path) -> Path:
    """A name beside `path` that carries host and process, so a dead owner's is known."""
    return path.with_name(f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def make_folder(path: Path, flag: str) -> None:
    """Make the folder that a flag names, before any work whose result it shall hold."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VdError(
            f"{flag} {path} cannot be made ({error.strerror}); name another folder."
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary_path: Path, path: Path) -> None:
    """Give a finished temporary file its name: fsync, rename, fsync of the folder."""
    with open(temporary_path, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary_path, path)
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path` whole or not at all, unless it holds just that; a full disk is one sentence."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    with writing(path) as temporary_path:
        temporary_path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `path` as UTF-8, whole or not at all; undecodable names survive."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, values: Any) -> None:
    """Write JSON with sorted indentation; NaN is refused, an undefined number is null."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file of ours; raises `VdError`, with the remedy, if damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # no JSON, or no UTF-8
        raise VdError(f"{path} is damaged ({error}); {remedy}.") from error


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn the operating system's error while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise VdError(
            f"{path} cannot be written ({error.strerror or error}); "
            f"{'free some space or ' * full}name another folder, then run the same command "
            "again."
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's error while `path` is read into one sentence.

    That a file is missing stays `FileNotFoundError`: what reads it says what that means.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VdError(
            f"{path} cannot be read ({error.strerror or error}) and is left as it is; "
            "mend its rights or its disk, then run the same command again."
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends without an error."""
    temporary_path = temporary(path)
    try:
        with explaining(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary_path
            publish(temporary_path, path)
    finally:
        with contextlib.suppress(OSError):
            temporary_path.unlink()


def owner_is_dead(host: str, pid: int) -> bool:
    """Whether the process `pid` of `host` is surely gone (another host's is not known)."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def remove_orphans(folder: Path) -> None:
    """Remove temporary files and folders in `folder` whose owner is dead."""
    for path in folder.glob("*.tmp-*"):
        match = _OWNED.search(path.name)
        if match and owner_is_dead(match["host"], int(match["pid"])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Hold the only writer's lock at `path`; `doing` names the holder to a second writer.

    The name stands in a file beside the lock. Raises `VdError` when the lock is held.
    """
    owner = path.with_name(f"{path.name}-owner")
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = filelock.FileLock(path).acquire(blocking=False)
        except filelock.Timeout:
            holder = owner.read_text() if owner.exists() else "another process"
            raise VdError(
                f"{path.parent} is in use by {holder}; wait for it to end, or name "
                "another folder."
            ) from None
    with held:
        with explaining(owner):
            owner.write_text(
                f"{doing}, process {os.getpid()} on {socket.gethostname()}"
            )
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] when there is none."""
    return [row for _, row in numbered_rows(path)] if path.exists() else []


def numbered_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, each with the number of its last line.

    Raises `VdError` for a column that is named twice and for what is no CSV.
    """
    # names that are not UTF-8 are read and written as the bytes they are
    with open(
        path, encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as handle:
        reader = csv.DictReader(handle)
        try:
            names = Counter(name.strip() for name in reader.fieldnames or () if name)
            if names and max(names.values()) > 1:
                raise VdError(
                    f"{path} names the column {names.most_common(1)[0][0]!r} twice; remove "
                    "one."
                )
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise VdError(
                f"{path}, line {reader.line_num} is no CSV ({error}); correct the line."
            ) from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (at least one) as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
