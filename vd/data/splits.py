"""Groups, splits and folds: stratified, seeded; assigned splits are kept in a file."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from vd.config import Config
from vd.console import say
from vd.data.catalog import identify
from vd.data.manifest import SPLITS, Video, check_classes, read_manifest, split_rows
from vd.errors import VdError
from vd.files import read_csv, write_csv

_COLUMNS = {"path", "label", "split", "group", "id"}  # of the splits file
_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
_RWF_2000 = {"train", "val"}  # the splits of this data set, and of others like it


def merge_groups(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> list[Video]:
    """Give one group to videos that belong together: by group, content, or pairs of ids.

    Its name is the first of its groups in alphabetical order, else `like <first clip>`.
    """
    merged = {}
    for key, members in _components(videos, pairs).items():
        first = min(video.name for video in members)
        several = len({_key(video) for video in members}) > 1
        named = key.startswith("group ")
        group = key.removeprefix("group ") if named else f"like {first}"
        for video in members:
            merged[video.name] = group if several else video.group
    return [replace(v, group=merged[v.name]) for v in videos]


def _components(
    videos: Sequence[Video], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, list[Video]]:
    """Videos that must stay together, by the first of their groups' and contents' names."""
    links = [(_key(v), f"group {v.group}" if v.group else _key(v)) for v in videos]
    links += [(f"id {first}", f"id {second}") for first, second in pairs]
    names = DisjointSet(name for link in links for name in link)
    for link in links:
        names.merge(*link)
    first_of: dict[str, str] = {}
    for component in names.subsets():
        first_of |= dict.fromkeys(component, min(component))
    together = defaultdict(list)
    for video in videos:
        together[first_of[_key(video)]].append(video)
    return together


def _key(video: Video) -> str:
    """Equal for files of the same content; unique for a file without content."""
    return f"id {video.id}" if video.id else f"name {video.name}"


def groups_cut(videos: Iterable[Video]) -> list[dict[str, Any]]:
    """Groups that lie in several splits, with the number of clips in each."""
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for video in videos:
        if video.group and video.split:
            splits[video.group][video.split] += 1
    return [
        {"group": group, "clips": dict(counts)}
        for group, counts in sorted(splits.items())
        if len(counts) > 1
    ]


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
    bound = _components(videos)
    generator = np.random.Generator(np.random.Philox(seed))
    tie_break = dict(zip(sorted(bound), generator.permutation(len(bound)), strict=True))
    totals = np.bincount([video.label for video in videos], minlength=2)
    names = list(shares)
    target = np.outer([shares[name] for name in names], totals).astype(float)
    scale = np.maximum(target, 1e-9)
    have = np.zeros_like(target)
    parts: dict[str, str] = {}

    def order(key: str) -> tuple[bool, int, int]:
        is_new = kept.keys().isdisjoint(video.id for video in bound[key])
        return is_new, -len(bound[key]), tie_break[key]

    for key in sorted(bound, key=order):
        former = [kept[video.id] for video in bound[key] if video.id in kept]
        counts = np.bincount([video.label for video in bound[key]], minlength=2)
        # change of Σ (have − target)² / target when the group goes to a part
        cost = ((2 * (have - target) + counts) * counts / scale).sum(axis=1)
        part = former[0] if former else names[np.argmin(cost)]
        for video in bound[key]:
            parts[video.id] = kept.get(video.id, part)
            have[names.index(parts[video.id]), video.label] += 1
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
    """
    fold_of = folds(videos, count, seed)
    for fold in range(count):
        others = [video for video in videos if fold_of[video.id] != fold]
        inner = assign(others, {"train": 0.85, "val": 0.15}, seed)
        result = [replace(video, split=inner.get(video.id, "test")) for video in videos]
        remedy = "give fewer --folds, or a data set with more groups of each class"
        _check_parts(result, f"fold {fold}", remedy)
        yield result


def for_folds(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos without splits; groups that the splits file knows are kept together."""
    if not any(video.split for video in videos):
        videos = _kept(videos, config)
    return [replace(video, split="") for video in videos]


def split(
    config: Config,
    find_duplicates: Callable[[Sequence[Video]], Iterable[tuple[str, str]]]
    | None = None,
) -> list[Video]:
    """Assign splits and keep them in the splits file, which training then uses.

    `find_duplicates` returns pairs of ids whose videos become one group before that.
    Raises `VdError` when the data set has splits of its own.
    """
    manifest = read_manifest(config.data, config.decode)
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
        classes = f"violent {violent}, nonviolent {len(part) - violent}"
        groups = len({video.group or video.id for video in part})
        say(f"  {name:5} {classes}, in {groups} groups")
    keep_splits(videos, config)
    return videos


def with_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """Give every video its split: that of the data set, else the kept one, else a new one.

    Writes nothing: `keep_splits` does, when the run begins. Unreadable files without a
    split keep "". Raises `VdError` when a split has no clip of a class.
    """
    path = config.data.dataset_path
    present = {video.split for video in videos} - {""}
    if not present:
        videos = _assigned(videos, _SHARES, config)
    elif present == _RWF_2000:
        say("no test split: val becomes test, and a grouped part of train becomes val")
        test = [replace(v, split="test") for v in videos if v.split == "val"]
        train = [video for video in videos if video.split == "train"]
        videos = [*_assigned(train, {"train": 0.85, "val": 0.15}, config), *test]
    elif present != set(SPLITS):
        raise VdError(
            f"{path} has splits but no {min(set(SPLITS) - present)} part; add it, or remove "
            "the split folders or column to have splits assigned."
        )
    remedy = (
        "add clips, use smaller groups, or see with vd scan which files are unreadable"
    )
    _check_parts(videos, str(path), remedy)
    if cut := groups_cut(videos):
        raise VdError(
            f"the group {cut[0]['group']!r} is in several splits {cut[0]['clips']}; correct "
            "the splits of the data set, or assign all again with --resplit."
        )
    _warn_of_copies(videos)
    return list(videos)


def _assigned(
    videos: Sequence[Video], shares: Mapping[str, float], config: Config
) -> list[Video]:
    """The videos with the splits of the splits file, the others with new ones."""
    videos = _kept(videos, config)
    kept = {video.id: video.split for video in videos if video.split in shares}
    if kept:
        say(
            f"splits kept in {splits_file(config)} are used; --resplit assigns all again"
        )
    readable = [video for video in videos if video.id]
    new = [video.name for video in readable if video.id not in kept]
    if kept and new:
        names = ", ".join(map(repr, new[:5])) + (", …" if len(new) > 5 else "")
        say(f"{len(new)} new clips get a split: {names}")
    parts = assign(readable, shares, config.splits.split_seed, kept)
    return [replace(v, split=parts.get(v.id, "")) for v in videos]


def _kept(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos with the groups and splits of the splits file; the split of others is ""."""
    rows = kept_rows(config)
    if config.splits.resplit:
        rows = []
    first: dict[str, str] = {}  # id by group
    pairs = [
        (first.setdefault(row["group"], row["id"]), row["id"])
        for row in rows
        if row["group"]
    ]
    split_of = {row["id"]: row["split"] for row in rows}
    merged = merge_groups(videos, pairs)
    return [replace(v, split=split_of.get(v.id, "")) for v in merged]


def _check_parts(videos: Sequence[Video], whole: str, remedy: str) -> None:
    for split in SPLITS:
        part = [video for video in videos if video.split == split]
        check_classes(part, f"the {split} part of {whole}", remedy)


def _warn_of_copies(videos: Sequence[Video]) -> None:
    places = defaultdict(set)
    for video in videos:
        if video.id:
            places[video.id].add((video.split, video.label))
    copies = [video.name for video in videos if len(places[video.id]) > 1]
    if copies:
        say(
            f"WARNING: {len(copies)} files have the same content in several splits or "
            f"under both labels ({copies[0]!r}, {copies[1]!r}, …): keep one of each"
        )


def splits_file(config: Config) -> Path:
    """Where the assigned splits of a data set are kept."""
    if config.splits.splits_file is not None:
        return config.splits.splits_file
    path = Path(os.path.abspath(config.data.dataset_path))  # without ..
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return config.data.cache_dir / "splits" / f"{path.stem}-{key}.csv"


def keep_splits(videos: Sequence[Video], config: Config) -> None:
    """Write the splits and groups of these videos into the splits file; other rows stay."""
    path = splits_file(config)
    former = kept_rows(config)
    rows = {row["id"]: row for row in former}
    rows |= {row["id"]: row for row in split_rows(v for v in videos if v.id)}
    if list(rows.values()) != former:
        write_csv(path, list(rows.values()))
        say(f"splits kept in {path}")


def kept_splits(videos: Sequence[Video], config: Config) -> list[Video]:
    """The videos with the splits and merged groups of the splits file; none is assigned.

    Raises `VdError` when the file that --splits-file names is missing.
    """
    named = config.splits.splits_file
    if named is not None and not named.exists():
        raise VdError(f"--splits-file {named} does not exist; name one that vd wrote.")
    return _kept(videos, config)


def kept_rows(config: Config) -> list[dict[str, str]]:
    """The rows of the splits file; [] when there is none.

    Raises `VdError` when it is a run's own, or is no splits file.
    """
    path = splits_file(config)
    if (path.parent / "config.json").exists():
        raise VdError(
            f"--splits-file {path} belongs to a run and would be changed; copy it, and name "
            "the copy."
        )
    rows = read_csv(path)
    ours = rows and set(rows[0]) == _COLUMNS
    if path.exists() and not (ours and all(row["split"] in SPLITS for row in rows)):
        raise VdError(
            f"--splits-file {path} does not have the columns path,label,split,group,id and "
            "a split (train, val or test) in each row; name another file, or delete it."
        )
    return rows
