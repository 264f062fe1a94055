"""The manifest: a row a video, read from a folder or a CSV, and its rows in a run."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vd.config import DataConfig
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
    """A video as the data set has it, with the name of its class."""

    path: Path
    name: str
    class_name: str
    split: str
    group: str = ""


def read_manifest(config: DataConfig, both_classes: bool = True) -> Manifest:
    """Read `config.dataset_path`, a folder or a CSV (docs/data_format.md).

    Prints which classes count as violent. Raises `VdError` for any fault of it and, with
    `both_classes`, for a class without a clip.
    """
    path = config.dataset_path
    if path.is_dir():
        rows, ignored = _read_folder(path)
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
    without = [row.name for row in rows if not row.split]
    if 0 < len(without) < len(rows):
        raise VdError(
            f"--dataset-path {path}: {without[0]!r} has no split while other videos have "
            "one; give it one, move it elsewhere, or remove the split folders or column to "
            "have splits assigned."
        )
    labels = _labels(rows, config)
    videos = [
        Video(row.path, row.name, labels[row.class_name], row.split, row.group)
        for row in rows
    ]
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
    """The split of this name, else ""."""
    return _SPLIT_NAMES.get(_normal(name), "")


def _labels(rows: Sequence[_Row], config: DataConfig) -> dict[str, int]:
    """The label of each class name of the data set; prints which is which."""
    path, clip_of = config.dataset_path, {row.class_name: row.name for row in rows}
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


def _read_folder(root: Path) -> tuple[list[_Row], list[str]]:
    """The videos of ROOT/<class>/… with or without split folders; names of other files."""
    tops = [
        _entries(top) if _split(top.name) and top.is_dir() else [top]
        for top in _entries(root)
    ]
    rows, ignored = [], []
    for path in itertools.chain.from_iterable(map(_files, itertools.chain(*tops))):
        name = path.relative_to(root).as_posix()
        first, second = [*name.split("/")[:-1], "", ""][:2]
        class_name, split = (second, first) if _split(first) else (first, second)
        if class_name and _is_video(path):
            rows.append(_Row(path, name, class_name, _split(split)))
        else:
            ignored.append(name)
    return rows, ignored


def _files(entry: Path) -> Iterator[Path]:
    """The file, or those below a folder in order of name, where links are not followed.

    A folder that is named like a video is a file, which the ledger has as not regular.
    """
    if not entry.is_dir() or _is_video(entry):
        yield entry
        return
    for inner in _entries(entry):
        yield from [inner] if inner.is_symlink() else _files(inner)


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, in order of name."""
    return sorted(e for e in folder.iterdir() if not e.name.startswith("."))


def _is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def _read_table(path: Path) -> list[_Row]:
    """The rows of a CSV with path,label and optionally split,group, in order of path."""
    table = read_csv(path)
    columns = [name.strip() for name in table[0] if name] if table else []
    if not {"path", "label"} <= set(columns):
        raise VdError(
            f"{path} names the columns {','.join(columns)!r:.80} and has {len(table)} rows; "
            "its first line must name path,label and may name split,group, separated by "
            "commas, semicolons or tabs, in UTF-8 or UTF-16."
        )
    rows = [_listed_row(row, path) for row in table]
    # b/../a is a, and so is an absolute path
    places = Counter(os.path.abspath(row.path) for row in rows)
    place, count = places.most_common(1)[0]
    if count > 1:
        raise VdError(f"{path} lists {place!r} {count} times; keep one of these rows.")
    if not any(os.path.lexists(row.path) for row in rows):
        raise VdError(
            f"none of the {len(rows)} files listed in {path} exists, for example "
            f"{str(rows[0].path)!r}; its paths must be relative to its folder."
        )
    for group in sorted({row.group for row in rows if row.group.lower() in _NO_GROUP}):
        say(f"{path}: the group {group!r} counts as no group")
        rows = [r._replace(group="") if r.group == group else r for r in rows]
    return sorted(rows, key=lambda row: row.name)


def _listed_row(row: Mapping[str, str], path: Path) -> _Row:
    """A row of the CSV at `path`, checked."""
    values = {name.strip(): value or "" for name, value in row.items() if name}
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
    return _Row(path.parent / name, name, values["label"], _split(split), group)


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
