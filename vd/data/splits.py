"""Splits and folds: grouped, stratified, seeded; assigned ones are kept in the splits file."""

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.groups import components, merge_groups
from vd.data.manifest import (
    SPLITS,
    Video,
    check_classes,
    read_manifest,
    split_rows,
    write_manifest,
)
from vd.errors import VdError
from vd.files import read_csv, write_csv

_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
_RWF_2000 = {"train", "val"}  # the splits of this data set, and of others like it
_COLUMNS = {"path", "label", "split", "group", "id"}  # of the splits file


def assign(
    videos: Sequence[Video],
    shares: Mapping[str, float],
    seed: int,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give every video id a part, so that both classes come near `shares` in each.

    Clips of one group, and clips of the same content, stay together; ids in `kept`
    keep their part, the rest of their group follows. The largest groups are placed
    first, each where the squared shortfall falls most; ties are broken by `seed`.
    """
    kept = kept or {}
    bound = components(videos)
    generator = np.random.Generator(np.random.Philox(seed))
    tie_break = dict(zip(sorted(bound), generator.permutation(len(bound)), strict=True))
    totals = np.bincount([video.label for video in videos], minlength=2)
    names = list(shares)
    target = np.outer([shares[name] for name in names], totals).astype(float)
    have = np.zeros_like(target)
    parts: dict[str, str] = {}

    def place(members: list[Video], part: int) -> None:
        for video in members:
            have[part, video.label] += 1
            parts[video.id] = names[part]

    waiting = []
    for key, members in bound.items():
        former = [kept[video.id] for video in members if video.id in kept]
        if former:
            for video in members:
                part = kept.get(video.id, former[0])
                place([video], names.index(part))
        else:
            waiting.append(key)
    waiting.sort(key=lambda key: (-len(bound[key]), tie_break[key]))
    scale = np.maximum(target, 1e-9)
    for key in waiting:
        counts = np.bincount([video.label for video in bound[key]], minlength=2)
        # change of Σ (have − target)² / target when the group goes to a part
        cost = ((2 * (have - target) + counts) * counts / scale).sum(axis=1)
        place(bound[key], int(np.argmin(cost)))
    return parts


def folds(videos: Sequence[Video], count: int, seed: int) -> dict[str, int]:
    """Assign every video id to one of `count` grouped, stratified folds of equal share."""
    parts = assign(videos, {str(i): 1 / count for i in range(count)}, seed)
    return {video_id: int(part) for video_id, part in parts.items()}


def fold_splits(
    videos: Sequence[Video], count: int, seed: int
) -> Iterator[list[Video]]:
    """The videos with the splits of each fold, which is the test part.

    15 % of the others validate: early stopping and threshold never see the test part.
    Raises `VdError` when a part has no clip of a class.
    """
    fold_of = folds(videos, count, seed)
    for fold in range(count):
        others = [video for video in videos if fold_of[video.id] != fold]
        inner = assign(others, {"train": 0.85, "val": 0.15}, seed)
        result = [
            dataclasses.replace(video, split=inner.get(video.id, "test"))
            for video in videos
        ]
        for split in SPLITS:
            check_classes(
                [video for video in result if video.split == split],
                f"--folds {count}: the {split} part of fold {fold}",
                "give fewer folds, or a data set with more groups of each class",
            )
        yield result


def for_folds(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos without splits; groups that the splits file knows are kept together."""
    if not any(video.split for video in videos) and not config.splits.resplit:
        videos = merge_groups(videos, _kept_pairs(kept_rows(config)))
    return [dataclasses.replace(video, split="") for video in videos]


def split(
    config: Config,
    find_duplicates: Callable[[Sequence[Video]], Iterable[tuple[str, str]]]
    | None = None,
    manifest_file: Path | None = None,
) -> list[Video]:
    """Assign splits and keep them in the splits file, which training then uses.

    `find_duplicates` returns pairs of ids whose videos become one group before that.
    `manifest_file` is written as well. Raises `VdError` when the data set has splits of
    its own, or `manifest_file` would overwrite it.
    """
    for path in (config.data.dataset_path, splits_file(config)):
        if manifest_file is not None and manifest_file.resolve() == path.resolve():
            raise VdError(
                f"--manifest {manifest_file} is the file of the data set or of the splits "
                "and would be overwritten; name another file."
            )
    manifest = read_manifest(config.data)
    if {video.split for video in manifest.videos} - {""} not in (set(), _RWF_2000):
        raise VdError(
            f"--dataset-path {config.data.dataset_path} has splits already; remove its "
            "split folders or column to have splits assigned."
        )
    kept_rows(config)  # a wrong --splits-file is an error before any decoding
    videos = identify(manifest.videos, config.data.cache_dir)
    if find_duplicates is not None:
        videos = merge_groups(videos, find_duplicates(videos))
    videos = with_splits(videos, config)
    for name in SPLITS:
        part = [video for video in videos if video.split == name]
        violent = sum(video.label for video in part)
        groups = len({video.group or video.id for video in part})
        say(
            f"  {name:5} violent {violent}, nonviolent {len(part) - violent}, in {groups} "
            "groups"
        )
    keep_splits(videos, config)
    if manifest_file is not None:
        write_manifest(manifest_file, videos)
        say(f"written: {manifest_file}")
    return videos


def with_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """Give every video its split: that of the data set, else the kept one, else a new one.

    Writes nothing: `keep_splits` does, when the run begins. With train and val but no test
    part (RWF-2000), val becomes test and a grouped part of train becomes val. Unreadable
    files without a split keep "". Raises `VdError` when a split has no clip of a class, or
    the data set has splits but not all of them.
    """
    path = config.data.dataset_path
    present = {video.split for video in videos} - {""}
    if not present:
        videos = _assigned(videos, _SHARES, config)
    elif present == _RWF_2000:
        say("no test split: val becomes test, and a grouped part of train becomes val")
        test = [
            dataclasses.replace(v, split="test") for v in videos if v.split == "val"
        ]
        train = [dataclasses.replace(v, split="") for v in videos if v.split == "train"]
        videos = [*_assigned(train, {"train": 0.85, "val": 0.15}, config), *test]
    elif present != set(SPLITS):
        raise VdError(
            f"{path} has splits but no {min(set(SPLITS) - present)} part; add it, or remove "
            "the split folders or column to have splits assigned."
        )
    remedy = "add clips, or use smaller groups"
    if lost := [video.name for video in videos if not video.id]:
        remedy += (
            f", or repair the {len(lost)} files that are missing, empty or unreadable, for "
            f"example {lost[0]!r}"
        )
    for split in SPLITS:
        part = [video for video in videos if video.split == split]
        check_classes(part, f"the {split} split of {path}", remedy)
    given = "correct the given splits, or leave out one of the two"
    _check_leaks(videos, given if present else "assign all splits again with --resplit")
    return list(videos)


def _assigned(
    videos: Sequence[Video], shares: Mapping[str, float], config: Config
) -> list[Video]:
    """The videos with the splits of the splits file, the others with new ones."""
    rows, path = kept_rows(config), splits_file(config)
    if config.splits.resplit:
        _say_dropped(rows, videos, path)
        rows = []
    kept = {row["id"]: row["split"] for row in rows if row["split"] in shares}
    if kept:
        say(f"splits kept in {path} are used; --resplit assigns all again")
    merged = merge_groups(videos, _kept_pairs(rows))
    readable = [video for video in merged if video.id]
    parts = assign(readable, shares, config.splits.split_seed, kept)
    return [dataclasses.replace(v, split=parts.get(v.id, "")) for v in merged]


def _check_leaks(videos: Sequence[Video], remedy: str) -> None:
    """Refuse a group in two splits; warn of the same content in two places."""
    first_of: dict[str, dict[str, str]] = defaultdict(dict)
    places_of = defaultdict(set)
    for video in videos:
        if video.group and video.split:
            first_of[video.group].setdefault(video.split, video.name)
        if video.id:
            places_of[video.id].add((video.split, video.label))
    for group, names in first_of.items():
        if len(names) > 1:
            (a, first), (b, second) = sorted(names.items())[:2]
            raise VdError(
                f"the group {group!r} is in two splits ({first!r} in {a}, {second!r} in "
                f"{b}); {remedy}."
            )
    doubled = [v.name for v in videos if v.id and len(places_of[v.id]) > 1]
    if doubled:
        say(
            f"WARNING: {len(doubled)} files have the same content in several splits or "
            f"under both labels ({doubled[0]!r}, {doubled[1]!r}, …): keep one of each"
        )


def splits_file(config: Config) -> Path:
    """Where the assigned splits of a data set are kept."""
    if config.splits.splits_file is not None:
        return config.splits.splits_file
    path = Path(os.path.abspath(config.data.dataset_path))  # without ..
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return config.data.cache_dir / "splits" / f"{path.stem}-{key}.csv"


def keep_splits(videos: Sequence[Video], config: Config) -> None:
    """Write the splits file, unless it has the splits and groups of these videos already."""
    path = splits_file(config)
    rows = split_rows(video for video in videos if video.id)
    old = {row.get("id"): row for row in read_csv(path)}
    if all(
        row["id"] in old
        and all(old[row["id"]].get(key, "") == row[key] for key in ("split", "group"))
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
    grouped = merge_groups(videos, _kept_pairs(rows))
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
                f"({row.get('path') or row['id']}); write train, val or test, or assign "
                "all splits again with --resplit."
            )
    return rows


def _kept_pairs(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Pairs of ids that hold the groups of the splits file together."""
    first: dict[str, str] = {}  # id by group
    named = [row for row in rows if row.get("group")]
    return [(first.setdefault(row["group"], row["id"]), row["id"]) for row in named]


def _say_dropped(
    rows: Sequence[Mapping[str, str]], videos: Sequence[Video], path: Path
) -> None:
    """Warn of groups that only the splits file knows and --resplit drops."""
    given = {video.id: video.group for video in videos}
    dropped = {
        row["group"]
        for row in rows
        if row.get("group") and given.get(row["id"], row["group"]) != row["group"]
    }
    if dropped:
        say(
            f"WARNING: --resplit drops {len(dropped)} groups that only {path} has, for "
            f"example {min(dropped)!r}; vd split --resplit --merge-duplicates makes those of "
            "duplicates again"
        )
