"""Splits and folds: grouped, stratified, seeded, and kept when clips are added."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vd.config import Config, DataConfig
from vd.errors import VdError
from vd.progress import say
from vd.tables import read_csv, write_csv
from vd.videos.manifest import SPLITS, Video, split_rows

_COLUMNS = {"path", "label", "split", "group", "id"}
_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


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
    components = _components(videos)
    generator = np.random.Generator(np.random.Philox(seed))
    tie_break = dict(
        zip(sorted(components), generator.permutation(len(components)), strict=True)
    )
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
    for key, members in components.items():
        former = [kept[video.id] for video in members if video.id in kept]
        if former:
            for video in members:
                part = kept.get(video.id, former[0])
                place([video], names.index(part))
        else:
            waiting.append(key)
    waiting.sort(key=lambda key: (-len(components[key]), tie_break[key]))
    scale = np.maximum(target, 1e-9)
    for key in waiting:
        counts = np.bincount([video.label for video in components[key]], minlength=2)
        # change of Σ (have − target)² / target when the group goes to a part
        cost = ((2 * (have - target) + counts) * counts / scale).sum(axis=1)
        place(components[key], int(np.argmin(cost)))
    return parts


def folds(videos: Sequence[Video], count: int, seed: int) -> dict[str, int]:
    """Assign every video id to one of `count` grouped, stratified folds of equal share."""
    parts = assign(videos, {str(i): 1 / count for i in range(count)}, seed)
    return {video_id: int(part) for video_id, part in parts.items()}


def splits_file(config: Config) -> Path:
    """Where the assigned splits of a data set are kept."""
    if config.splits.splits_file is not None:
        return config.splits.splits_file
    path = config.data.dataset_path.absolute()
    key = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return config.data.cache_dir / "splits" / f"{path.stem}-{key}.csv"


def with_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """Give every video its split: as the data set has it, as kept, else assigned.

    Writes nothing: `keep_splits` does, once the run may begin. With train and val but no
    test part (RWF-2000), val becomes test and a grouped part of train becomes val, said
    aloud. Unreadable files without a split keep "".
    Raises `VdError` when a split lacks a class, or a data set lacks train or val.
    """
    present = {video.split for video in videos} - {""}
    if not present:
        videos = _assigned(videos, _SHARES, config)
    elif present == {"train", "val"}:
        say("no test split: val becomes test, and a grouped part of train becomes val")
        test = [
            dataclasses.replace(v, split="test") for v in videos if v.split == "val"
        ]
        train = [dataclasses.replace(v, split="") for v in videos if v.split == "train"]
        videos = [*_assigned(train, {"train": 0.85, "val": 0.15}, config), *test]
    elif present != set(SPLITS):
        lacking = min(set(SPLITS) - present)
        raise VdError(
            f"{config.data.dataset_path} has splits but no {lacking} part; add it, or "
            "drop the split folders or column to have splits assigned."
        )
    _check_classes(videos, config.data)
    _check_leaks(videos)
    return list(videos)


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


def count_splits(videos: Sequence[Video]) -> list[str]:
    """A line a split: clips of both classes, and groups."""
    lines = []
    for split in SPLITS:
        part = [video for video in videos if video.split == split]
        violent = sum(video.label for video in part)
        groups = len({video.group or video.id for video in part})
        lines.append(
            f"  {split:5} violent {violent}, nonviolent {len(part) - violent}, in {groups} "
            "groups"
        )
    return lines


def _check_leaks(videos: Sequence[Video]) -> None:
    """A group must lie in one split; the same content in two places is warned of."""
    splits_of, places_of = defaultdict(set), defaultdict(set)
    for video in videos:
        if video.group and video.split:
            splits_of[video.group].add(video.split)
        if video.id:
            places_of[video.id].add((video.split, video.label))
    for group, splits in splits_of.items():
        if len(splits) > 1:
            raise VdError(
                f"the group {group!r} lies in the splits {' and '.join(sorted(splits))}; "
                "mend the given splits, or assign kept ones anew with --resplit."
            )
    doubled = [v.name for v in videos if v.id and len(places_of[v.id]) > 1]
    if doubled:
        say(
            f"WARNING: {len(doubled)} files have the same content in several splits or "
            f"under both labels ({doubled[0]!r}, {doubled[1]!r}, …): keep one of each"
        )


def _check_classes(videos: Sequence[Video], config: DataConfig) -> None:
    """Every split needs both classes: without them neither training nor metrics work."""
    for split in SPLITS:
        labels = {video.label for video in videos if video.split == split}
        if len(labels) < 2:
            lost = [video for video in videos if not video.id]
            told = f" ({len(lost)} files are missing, empty or unreadable, " + (
                f"{lost[0].name!r} for one)" if lost else ""
            )
            raise VdError(
                f"the {split} split of {config.dataset_path} lacks a class or is empty"
                f"{told if lost else ''}; add clips, or use smaller groups."
            )


def kept_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos with the splits and merged groups of the splits file; none is assigned."""
    rows = _kept_rows(config)
    parts = {row["id"]: row["split"] for row in rows}
    grouped = merge_groups(videos, _kept_pairs(rows))
    return [dataclasses.replace(v, split=parts.get(v.id, "")) for v in grouped]


def merge_groups(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> list[Video]:
    """Give one group to all that belongs together: by group, by content, by pairs of ids.

    It is called like the first of its groups, by name, else like the first of its clips.
    """
    merged = {}
    for key, members in _components(videos, pairs).items():
        name = min(video.name for video in members)
        several = len({video.id for video in members}) > 1
        group = key.removeprefix("group ") if key.startswith("group ") else name
        for video in members:
            merged[video.name] = group if several else video.group
    return [dataclasses.replace(v, group=merged[v.name]) for v in videos]


def _assigned(
    videos: Sequence[Video], shares: Mapping[str, float], config: Config
) -> list[Video]:
    """Splits from the splits file, the others anew."""
    rows = _kept_rows(config)
    rows = [] if config.splits.resplit else rows
    kept = {row["id"]: row["split"] for row in rows if row["split"] in shares}
    if kept:
        say(
            f"splits kept in {splits_file(config)} are used; --resplit assigns them anew"
        )
    readable = [video for video in videos if video.id]
    readable = merge_groups(readable, _kept_pairs(rows))
    parts = assign(readable, shares, config.splits.split_seed, kept)
    assigned = {v.name: dataclasses.replace(v, split=parts[v.id]) for v in readable}
    return [assigned.get(v.name, dataclasses.replace(v, split="")) for v in videos]


def _kept_rows(config: Config) -> list[dict[str, str]]:
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
                f"({row.get('path')}); write train, val or test, or assign all anew with "
                "--resplit."
            )
    return rows


def _kept_pairs(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Pairs of ids that hold the groups of the splits file together."""
    first: dict[str, str] = {}
    named = [row for row in rows if row.get("group")]
    return [(first.setdefault(row["group"], row["id"]), row["id"]) for row in named]


def _components(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, list[Video]]:
    """Videos that must stay together, by the least of their groups' and contents' names."""
    links = [
        (f"id {v.id}", f"group {v.group}" if v.group else f"id {v.id}") for v in videos
    ]
    links += [(f"id {first}", f"id {second}") for first, second in pairs]
    names = sorted({name for link in links for name in link})
    number = {name: i for i, name in enumerate(names)}
    rows, columns = (
        np.array([[number[a], number[b]] for a, b in links]).reshape(-1, 2).T
    )
    graph = coo_array((np.ones(len(rows)), (rows, columns)), (len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    least: dict[int, str] = {}
    for name, label in zip(names, component, strict=True):  # in order of name
        least.setdefault(label, name)
    components = defaultdict(list)
    for video in videos:
        components[least[component[number[f"id {video.id}"]]]].append(video)
    return dict(components)
