"""CSV files: read whatever bytes their names hold, written whole or not at all."""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vd.atomic import explaining, write_bytes
from vd.errors import VdError
from vd.progress import say

SEAL = "row_sha256"  # of a row, its last column


def sealed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the checksum of its other values."""
    told = {name: value for name, value in row.items() if name != SEAL}
    text = json.dumps([str(value) for value in told.values()])
    return {**told, SEAL: hashlib.sha256(text.encode()).hexdigest()[:16]}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; [] when there is none. Names that are not UTF-8 survive."""
    return [row for _, row in numbered_rows(path)] if path.exists() else []


def numbered_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, each with the line that it ends on."""
    with open(
        path, encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as handle:
        reader = csv.DictReader(handle)
        try:
            names = Counter(name.strip() for name in reader.fieldnames or () if name)
            if names and max(names.values()) > 1:
                raise VdError(
                    f"{path} names the column {names.most_common(1)[0][0]!r} twice; keep "
                    "one of them."
                )
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise VdError(
                f"{path}, line {reader.line_num}: {error}; mend the file, a CSV is needed."
            ) from error


def recover_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `append_csv` writes, without lines that a kill cut.

    What it keeps can be made again: a file that is none is begun anew.
    """
    try:
        rows = read_csv(path)
    except VdError as error:
        say(f"warning: {str(error).partition(';')[0]}; it is made again")
        path.unlink()
        return []
    whole = [row for row in rows if None not in row and None not in row.values()]
    if rows and not path.read_bytes().endswith(b"\n") and whole[-1:] == rows[-1:]:
        whole.pop()
    if whole and whole != rows:
        write_csv(path, whole)
    elif rows and not whole:
        path.unlink()
    return whole


def append_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file durably; a kill may cut the last line.

    A file that is not there, or has other columns, is begun anew.
    """
    if not rows:
        return
    if not path.exists() or _columns(path) != list(rows[0]):
        write_csv(path, rows)
        return
    with explaining(path), open(path, "ab") as handle:
        handle.write(_encoded(rows, header=False))
        handle.flush()
        os.fsync(handle.fileno())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (at least one) as CSV, whole or not at all."""
    write_bytes(path, _encoded(rows))


def _columns(path: Path) -> list[str]:
    """The names in the first line."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as handle:
        return next(csv.reader(handle), [])


def _encoded(rows: Sequence[Mapping[str, Any]], header: bool = True) -> bytes:
    """Rows as UTF-8; names that are not come back as the bytes they were."""
    text = io.StringIO()
    # a carriage return in a name is quoted only if all is (Python's gh-83938)
    returns = any("\r" in str(value) for row in rows for value in row.values())
    writer = csv.DictWriter(
        text,
        fieldnames=list(rows[0]),
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
    )
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
