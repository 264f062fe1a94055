"""The manifest: a row a video, read from a folder or a CSV, and its rows in a run."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vd.config import DataConfig, DecodeConfig
from vd.console import say
from vd.errors import VdError
from vd.files import read_csv

CLASSES = ("nonviolent", "violent")  # label 0, label 1
SPLITS = ("train", "val", "test")

_VIOLENT = "violent", "violence", "fight", "fights"
_NONVIOLENT = (
    "nonviolent", "nonviolence", "noviolence", "nofight", "nofights", "nonfight", "normal",
    "neutral",
)  # fmt: skip
_LABELS = dict.fromkeys(_VIOLENT, 1) | dict.fromkeys(_NONVIOLENT, 0)
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 "
    ".mpeg .mpg .mts .mxf .ogm .ogv .rm .rmvb .ts .vob .webm .wmv".split()
)
# of videos only if FFmpeg knows the content
_POSSIBLE_SUFFIXES = frozenset(
    ("", *".264 .265 .dat .dav .dv .h264 .h265 .hevc .ivf .nut .qt .y4m".split())
)
_NO_GROUP = ("nan", "none", "null", "<na>")  # what programs write for an empty cell


@dataclass(frozen=True)
class Video:
    """One file of the data set; `id` is the SHA-256 of its content, "" if unreadable."""

    path: Path
    name: str  # the path as the data set has it, relative to its root
    label: int  # 1 violent, 0 non-violent
    split: str = ""  # train, val, test, or "" while unassigned
    group: str = ""  # all clips of a group are in one split; "": the clip alone
    id: str = ""
    size: int = 0  # bytes, when its content is known
    modified: int = 0  # nanoseconds, when its content was hashed


@dataclass(frozen=True)
class Manifest:
    """The videos of a data set, in the order of their names, and what was ignored."""

    videos: tuple[Video, ...]
    ignored: tuple[str, ...] = ()


class _Row(NamedTuple):
    video: Video  # without its label
    class_name: str


def read_manifest(
    config: DataConfig,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008  # immutable
    both_classes: bool = True,
) -> Manifest:
    """Read `config.dataset_path`, a folder or a CSV (docs/data_format.md).

    Files of a folder whose names leave it open are probed. Prints which classes count as
    violent. Raises `VdError` for any fault of it and, with `both_classes`, for a class
    without a clip.
    """
    path = config.dataset_path
    if path.is_dir():
        rows, ignored = _read_folder(config, decode)
    elif path.is_file():
        rows, ignored = _read_table(path), []
    else:
        raise VdError(
            f"--dataset-path {path} does not exist; name a folder of class folders or "
            "a CSV with the columns path,label."
        )
    if not rows:
        raise VdError(
            f"--dataset-path {path} has no video ({len(ignored)} other files are "
            "ignored); name the folder that holds the class folders."
        )
    without = [video.name for video, _ in rows if not video.split]
    if 0 < len(without) < len(rows):
        raise VdError(
            f"--dataset-path {path}: {without[0]!r} has no split while other videos have "
            "one; give it one, move it elsewhere, or remove the split folders or column to "
            "have splits assigned."
        )
    labels = _labels(rows, config)
    videos = [replace(video, label=labels[name]) for video, name in rows]
    if config.group_from is not None:
        videos = list(_group_from_path(videos, config.group_from))
    if both_classes:
        check_classes(videos, f"--dataset-path {path}")
    return Manifest(tuple(videos), tuple(ignored))


def check_classes(
    videos: Sequence[Video],
    where: str,
    remedy: str = "add some, or check the names of the class folders",
) -> None:
    """Raise `VdError` when a class has no clip: neither training nor metrics work then."""
    for label, name in enumerate(CLASSES):
        if not any(video.label == label for video in videos):
            raise VdError(f"{where} has no {name} clip; {remedy}.")


def _normal(name: str) -> str:
    """A name in one Unicode form, without case, underscore, hyphen and space."""
    return re.sub(r"[_\- ]", "", unicodedata.normalize("NFC", name.casefold()))


def _split(name: str) -> str:
    return _SPLIT_NAMES.get(_normal(name), "")


def _labels(rows: Sequence[_Row], config: DataConfig) -> dict[str, int]:
    """The label of each class name of the data set; prints which is which."""
    path, clip_of = config.dataset_path, {name: video.name for video, name in rows}
    violent = {_normal(name): name for name in config.positive_class}
    for missing in violent.keys() - set(map(_normal, clip_of)):
        raise VdError(
            f"--positive-class {violent[missing]}: {path} has no such class; give the name "
            "of a violent one as its folder or label has it, or leave it out."
        )
    labels = {}
    for name, clip in clip_of.items():
        key = _normal(name)
        if not violent and key not in _LABELS:
            raise VdError(
                f"--dataset-path {path}: {clip!r} has the class {name!r}, which vd does "
                "not know; name each violent class with --positive-class, and every other "
                "one counts as non-violent."
            )
        labels[name] = int(key in violent) if violent else _LABELS[key]
    names = [
        ", ".join(repr(n) for n in sorted(labels) if labels[n] == i) for i in (0, 1)
    ]
    say(f"classes: violent {names[1] or 'none'}; non-violent {names[0] or 'none'}")
    return labels


def _read_folder(
    config: DataConfig, decode: DecodeConfig
) -> tuple[list[_Row], list[str]]:
    """The videos of ROOT/<class>/… with or without split folders; names of other files."""
    root = config.dataset_path
    paths, ignored = _files(root)
    rows, possible = [], []
    for path in paths:
        name = path.relative_to(root).as_posix()
        class_name, split = _class_and_split(name)
        row = _Row(Video(path, name, 0, _split(split)), class_name)
        if class_name and is_video(path):
            rows.append(row)
        elif class_name and path.suffix.lower() in _POSSIBLE_SUFFIXES:
            possible.append(row)
        else:
            ignored.append(name)
    if possible:
        from vd.data.catalog import find_videos  # which loads the decoder

        files = [row.video for row in possible]
        videos = find_videos(files, config.cache_dir, decode)
        rows += (row for row in possible if row.video.name in videos)
        ignored += (file.name for file in files if file.name not in videos)
    return sorted(rows, key=lambda row: row.video.path), sorted(ignored)


def _class_and_split(name: str) -> tuple[str, str]:
    """The names of the folders that give a file its class and its split, if any."""
    first, second = [*name.split("/")[:-1], "", ""][:2]
    return (second, first) if _split(first) else (first, second)


def count_ignored(names: Iterable[str]) -> str:
    """How many ignored files there are of each suffix and class, the most frequent first."""
    kinds: Counter[str] = Counter()
    for name in names:
        suffix = Path(name).suffix.lower()
        kind = repr(suffix) if suffix else "without suffix"
        if name.endswith("/"):
            kind = "folders linked again"
        class_name = _class_and_split(name)[0]
        kinds[f"{kind} in {class_name!r}" if class_name else f"{kind} in no class"] += 1
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(10)]
    return ", ".join(listed + ["…"] * (len(kinds) > 10))


def visible_files(root: Path) -> list[Path]:
    """The files in a folder, and in those in it, that are not hidden; each folder once."""
    return _files(root)[0]


def _files(root: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder that are not hidden; names of linked folders left out.

    Each folder is read once, before the linked ones, and a link to one that holds `root` is
    a loop. A folder that is named like a video is a file, which the ledger has as not regular.
    """
    files: list[Path] = []
    left_out = []
    folders, linked = [root], list[Path]()
    seen = set(root.resolve().parents)
    while folders or linked:
        folder = (folders or linked).pop(0)
        if folder.resolve() in seen:
            left_out.append(f"{folder.relative_to(root).as_posix()}/")
            continue
        seen.add(folder.resolve())
        entries = sorted(e for e in folder.iterdir() if not e.name.startswith("."))
        for entry in entries:
            kind = linked if entry.is_symlink() else folders
            is_folder = os.path.isdir(entry) and not is_video(entry)
            (kind if is_folder else files).append(entry)
    return files, left_out


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def _read_table(path: Path) -> list[_Row]:
    """The rows of a CSV with path,label and optionally split,group, in order of path."""
    table = [
        {name.strip(): value or "" for name, value in row.items() if name}
        for row in read_csv(path)
    ]
    if not table:
        raise VdError(f"{path} has no rows below its first line; list the clips there.")
    if not {"path", "label"} <= table[0].keys():
        raise VdError(
            f"{path} names the columns {','.join(table[0])!r:.80}; "
            "its first line must name path,label and may name split,group, separated by "
            "commas, semicolons or tabs, in UTF-8 or UTF-16."
        )
    rows = [_listed_row(row, path) for row in table]
    videos = [row.video for row in rows]
    # b/../a is a, and so is an absolute path
    places = Counter(os.path.abspath(video.path) for video in videos)
    place, count = places.most_common(1)[0]
    if count > 1:
        raise VdError(f"{path} lists {place!r} {count} times; keep one of these rows.")
    if not any(os.path.lexists(video.path) for video in videos):
        raise VdError(
            f"none of the {len(rows)} files listed in {path} exists, for example "
            f"{str(videos[0].path)!r}; its paths must be relative to its folder."
        )
    for group in sorted({row.get("group", "") for row in table}):
        if group.lower() in _NO_GROUP:
            say(f"{path}: the group {group!r} counts as no group")
    return sorted(rows, key=lambda row: row.video.name)


def _listed_row(values: Mapping[str, str], path: Path) -> _Row:
    """A row of the CSV at `path`, checked."""
    where = f"{path}, row {','.join(values.values())!r:.80}"
    if not values["path"] or not values["label"]:
        raise VdError(f"{where} has no path or no label; add it, or delete the row.")
    split = values.get("split", "")
    if split and not _split(split):
        raise VdError(
            f"{where}: the split {split!r} is unknown; write train, val or test."
        )
    name = Path(values["path"]).as_posix()  # ./a.mp4 is a.mp4
    # the disk may have é in another Unicode form
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    name = next((f for f in forms if os.path.lexists(path.parent / f)), name)
    group = values.get("group", "")
    if group.lower() in _NO_GROUP:
        group = ""
    video = Video(path.parent / name, name, 0, _split(split), group)
    return _Row(video, values["label"])


def _group_from_path(videos: Iterable[Video], pattern: str) -> Iterator[Video]:
    """Set each clip's group from its path: the pattern's first group, else its match."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise VdError(
            f"--group-from {pattern!r} is not a valid regular expression: {error}."
        ) from error
    for video in videos:
        match = expression.search(video.name)
        group = (match[1] if expression.groups else match[0]) if match else None
        if not group:
            raise VdError(
                f"--group-from {pattern!r} finds nothing in {video.name!r}; change the "
                "expression so that it matches every path."
            )
        yield replace(video, group=group)


def split_rows(videos: Iterable[Video]) -> list[dict[str, str]]:
    """The rows of a run's splits.csv: a manifest with `split` and content hash."""
    return [
        {
            "path": video.name,
            "label": CLASSES[video.label],
            "split": video.split,
            "group": video.group,
            "id": video.id,
        }
        for video in videos
    ]
