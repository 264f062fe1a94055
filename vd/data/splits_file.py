"""The splits file: the parts and merged groups that were assigned, kept when clips are added."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vd.config import Config
from vd.console import say
from vd.data.groups import merge_groups
from vd.data.manifest import SPLITS, Video, split_rows
from vd.errors import VdError
from vd.files import read_csv, write_csv

_COLUMNS = {"path", "label", "split", "group", "id"}


def splits_file(config: Config) -> Path:
    """Where the assigned splits of a data set are kept."""
    if config.splits.splits_file is not None:
        return config.splits.splits_file
    path = Path(os.path.abspath(config.data.dataset_path))  # without ..
    key = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return config.data.cache_dir / "splits" / f"{path.stem}-{key}.csv"


def keep_splits(videos: Sequence[Video], config: Config) -> None:
    """Write the splits file when `with_splits` assigned what it lacks or has otherwise."""
    path = splits_file(config)
    rows = split_rows(video for video in videos if video.id)
    old = {row.get("id"): row for row in read_csv(path)}
    told = ("split", "group")
    if all(
        row["id"] in old and all(old[row["id"]].get(t, "") == row[t] for t in told)
        for row in rows
    ):
        return
    for row in rows:
        old.pop(row["id"], None)
    gone = [{key: row.get(key, "") for key in rows[0]} for row in old.values()]
    write_csv(path, rows + gone)
    say(f"splits kept in {path}")


def kept_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos with the splits and merged groups of the splits file; none is assigned."""
    named = config.splits.splits_file
    if named is not None and not named.exists():
        raise VdError(f"--splits-file {named} does not exist; name one that vd wrote.")
    rows = kept_rows(config)
    parts = {row["id"]: row["split"] for row in rows}
    grouped = merge_groups(videos, kept_pairs(rows))
    return [dataclasses.replace(v, split=parts.get(v.id, "")) for v in grouped]


def kept_rows(config: Config) -> list[dict[str, str]]:
    """The rows of the splits file, checked; [] when there is none."""
    path = splits_file(config)
    if (path.parent / "config.json").exists():
        raise VdError(
            f"--splits-file {path} belongs to a run and would be changed; copy it, and name "
            "the copy."
        )
    rows = read_csv(path)
    names = set(rows[0]) if rows else set()
    ours = {"id", "split"} <= names <= _COLUMNS
    if path.exists() and path.stat().st_size and not ours:
        raise VdError(
            f"--splits-file {path} is no splits file, or has no row: it must have the "
            "columns id,split and no other than path,label,group; name another file, or "
            "delete it."
        )
    for row in rows:
        if row["split"] not in ("", *SPLITS) and not config.splits.resplit:
            raise VdError(
                f"--splits-file {path}: {row['split'] or 'nothing'!r} is no split "
                f"({row.get('path') or row['id']}); write train, val or test, or assign all anew with "
                "--resplit."
            )
    return rows


def kept_pairs(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Pairs of ids that hold the groups of the splits file together."""
    first: dict[str, str] = {}  # id by group
    named = [row for row in rows if row.get("group")]
    return [(first.setdefault(row["group"], row["id"]), row["id"]) for row in named]


def say_dropped(
    rows: Sequence[Mapping[str, str]], videos: Sequence[Video], path: Path
) -> None:
    """Say which groups --resplit forgets, that only the splits file knows."""
    given = {video.id: video.group for video in videos}
    dropped = {
        row["group"]
        for row in rows
        if row.get("group") and given.get(row["id"], row["group"]) != row["group"]
    }
    if dropped:
        say(
            f"WARNING: --resplit drops {len(dropped)} groups that only {path} knew "
            f"({min(dropped)!r} for one); vd split --resplit --merge-duplicates makes those "
            "of duplicates again"
        )
