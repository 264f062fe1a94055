"""CSV files: read whatever bytes their names hold, written whole or not at all."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vd.atomic import write_text
from vd.errors import VdError


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


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (at least one) as CSV, whole or not at all."""
    text = io.StringIO()
    # a carriage return in a name is quoted only if all is (Python's gh-83938)
    returns = any("\r" in str(value) for row in rows for value in row.values())
    writer = csv.DictWriter(
        text,
        fieldnames=list(rows[0]),
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
