"""Files that are written whole or not at all; locks; JSON and CSV."""

import codecs
import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vd.console import SLICE_SECONDS, check_interrupt, say
from vd.errors import VdError


def temporary(path: Path) -> Path:
    """A name beside `path` that carries host and process, so a dead owner's is known."""
    return path.with_name(f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")


def publish(temporary_path: Path, path: Path) -> None:
    """Give a finished temporary file its name: fsync, rename, fsync of the folder."""
    with open(temporary_path, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary_path, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename durable
    finally:
        os.close(folder)


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
    """Write indented JSON; NaN is refused, an undefined number is null."""
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


def remove_orphans(folder: Path) -> None:
    """Remove temporary files and folders in `folder` of dead processes of this host."""
    ours = re.compile(rf"\.tmp-{re.escape(socket.gethostname())}-(\d+)$")
    for path in folder.glob("*.tmp-*"):
        if match := ours.search(path.name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except PermissionError:
                pass  # another user's process


@contextlib.contextmanager
def lock(path: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold the only writer's lock at `path`; `doing` names the holder to a second writer.

    When the lock is held, waits for it and says so, or raises `VdError`.
    """
    import filelock  # asyncio comes with it

    owner = path.with_name(f"{path.name}-owner")
    lock_file = filelock.FileLock(path)
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock_file.acquire(blocking=False)
        except filelock.Timeout:
            holder = owner.read_text() if owner.exists() else "another process"
            if not wait:
                raise VdError(
                    f"{path.parent} is in use by {holder}; wait for it to end, or name "
                    "another folder."
                ) from None
            say(f"waiting for {holder}, which writes into {path.parent}")
        while not lock_file.is_locked:
            check_interrupt()
            with contextlib.suppress(filelock.Timeout):
                lock_file.acquire(timeout=SLICE_SECONDS)
    try:
        with explaining(owner):
            owner.write_text(
                f"{doing}, process {os.getpid()} on {socket.gethostname()}"
            )
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock_file.release()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] when there is none. Raises `VdError` for anything else.

    Separated by commas, semicolons or tabs, by its first line; UTF-8, or UTF-16 with a mark.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # names that are not UTF-8 are read and written as the bytes they are
        text = content.decode("utf-16" if wide else "utf-8-sig", "surrogateescape")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = io.StringIO(text, newline="")
        return list(csv.DictReader(lines, delimiter=delimiter))
    except (csv.Error, UnicodeError) as error:
        raise VdError(f"{path} cannot be read as CSV ({error}); correct it.") from error


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()
) -> None:
    """Write rows as CSV, whole or not at all; without `columns` at least one row."""
    text = io.StringIO()
    columns = columns or list(rows[0])
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
