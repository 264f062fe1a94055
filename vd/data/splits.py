"""Splits and folds: grouped, stratified, seeded; the splits file keeps what was assigned."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vd.config import Config, DataConfig
from vd.console import say
from vd.data.catalog import identify
from vd.data.groups import components, merge_groups
from vd.data.manifest import SPLITS, Video, read_manifest, write_manifest
from vd.data.splits_file import (
    keep_splits,
    kept_pairs,
    kept_rows,
    say_dropped,
    splits_file,
)
from vd.errors import VdError

_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
_RWF_2000 = {"train", "val"}  # the parts that this data set has, and others like it


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

    Of the others 15 % validate: early stopping and threshold never see the test part.
    """
    fold_of = folds(videos, count, seed)
    for fold in range(count):
        others = [video for video in videos if fold_of[video.id] != fold]
        inner = assign(others, {"train": 0.85, "val": 0.15}, seed)
        made = [
            dataclasses.replace(video, split=inner.get(video.id, "test"))
            for video in videos
        ]
        for split in SPLITS:
            if len({video.label for video in made if video.split == split}) < 2:
                raise VdError(
                    f"--folds {count}: the {split} part of fold {fold} lacks a class; give "
                    "fewer folds, or a data set with more groups of each class."
                )
        yield made


def for_folds(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos without splits; groups that the splits file knows are kept together."""
    if not any(video.split for video in videos):
        readable = [video for video in videos if video.id]
        rows = [] if config.splits.resplit else kept_rows(config)
        merged = merge_groups(readable, kept_pairs(rows))
        grouped = {video.name: video for video in merged}
        videos = [grouped.get(video.name, video) for video in videos]
    return [dataclasses.replace(video, split="") for video in videos]


def split(
    config: Config,
    find_duplicates: Callable[[Sequence[Video]], Iterable[tuple[str, str]]]
    | None = None,
    manifest_file: Path | None = None,
) -> list[Video]:
    """Assign splits and keep them in the splits file, which training then takes.

    `find_duplicates` returns pairs of ids whose videos become one group before that.
    `manifest_file` is written as well. Raises `VdError` when the data set has splits of
    its own, or is the file to be written.
    """
    for path in (config.data.dataset_path, splits_file(config)):
        if manifest_file is not None and manifest_file.resolve() == path.resolve():
            raise VdError(
                f"--manifest {manifest_file} is the file of the data set or of the splits, "
                "and would be overwritten; name another file."
            )
    manifest = read_manifest(config.data)
    if {video.split for video in manifest.videos} - {""} not in (set(), _RWF_2000):
        raise VdError(
            f"--dataset-path {config.data.dataset_path} has splits already; drop its "
            "split folders or column to have splits assigned."
        )
    kept_rows(config)  # a wrong --splits-file is said before anything is decoded
    videos = identify(manifest.videos, config.data.cache_dir)
    if find_duplicates is not None:
        videos = merge_groups(videos, find_duplicates(videos))
    videos = with_splits(videos, config)
    for line in _count_splits(videos):
        say(line)
    keep_splits(videos, config)
    if manifest_file is not None:
        write_manifest(manifest_file, videos)
        say(f"written: {manifest_file}")
    return videos


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
    elif present == _RWF_2000:
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
    given = "mend the given splits, or leave one of the two out"
    _check_leaks(videos, given if present else "assign all anew with --resplit")
    return list(videos)


def _count_splits(videos: Sequence[Video]) -> list[str]:
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


def _check_leaks(videos: Sequence[Video], remedy: str) -> None:
    """A group must lie in one split; the same content in two places is warned of."""
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
                f"the group {group!r} lies in two splits ({first!r} in {a}, {second!r} in "
                f"{b}); {remedy}."
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


def _assigned(
    videos: Sequence[Video], shares: Mapping[str, float], config: Config
) -> list[Video]:
    """Splits from the splits file, the others anew."""
    rows = kept_rows(config)
    if config.splits.resplit:
        say_dropped(rows, videos, splits_file(config))
        rows = []
    kept = {row["id"]: row["split"] for row in rows if row["split"] in shares}
    if kept:
        say(
            f"splits kept in {splits_file(config)} are used; --resplit assigns them anew"
        )
    readable = [video for video in videos if video.id]
    readable = merge_groups(readable, kept_pairs(rows))
    parts = assign(readable, shares, config.splits.split_seed, kept)
    assigned = {v.name: dataclasses.replace(v, split=parts[v.id]) for v in readable}
    return [assigned.get(v.name, dataclasses.replace(v, split="")) for v in videos]
