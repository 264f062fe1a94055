"""The manifest: a row a video, read from a folder or a CSV, and its rows in a run."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vd.config import DataConfig
from vd.errors import VdError
from vd.files import read_csv, reading, write_csv

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


def read_manifest(config: DataConfig, both_classes: bool = True) -> Manifest:
    """Read `config.dataset_path`, a folder or a CSV (docs/data_format.md).

    Raises `VdError` for a wrong path, an unknown class or split name, a missing column, a
    path that is listed twice, a --positive-class without a clip and, with `both_classes`,
    any class without a clip.
    """
    path = config.dataset_path
    if path.is_dir():
        manifest = _read_folder(path, config)
    elif path.is_file():
        manifest = _read_csv(path, config)
    else:
        raise VdError(
            f"--dataset-path {path} does not exist; name a folder of class folders or "
            "a CSV with the columns path,label."
        )
    videos = manifest.videos
    if not videos:
        raise VdError(
            f"--dataset-path {path} has no video ({len(manifest.ignored)} other files are "
            "ignored); name the folder that holds the class folders."
        )
    if config.group_from is not None:
        videos = tuple(_group_from_path(videos, config.group_from))
    if config.positive_class and not any(video.label for video in videos):
        raise VdError(
            f"--positive-class {config.positive_class} is no class of {path}; give the name "
            "of the violent one as its folder or label has it, or leave it out."
        )
    if both_classes:
        check_classes(videos, f"--dataset-path {path}")
    return dataclasses.replace(manifest, videos=videos)


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
    """A name without case, underscore, hyphen and space."""
    return re.sub(r"[_\- ]", "", name.casefold())


def _label(name: str, where: str, positive_class: str | None) -> int:
    """0 or 1 for a class name."""
    if positive_class is not None:
        return int(_normal(name) == _normal(positive_class))
    if _normal(name) not in _LABELS:
        raise VdError(
            f"{where}: {name!r} is no class that vd knows; name the violent class with "
            "--positive-class, and every other one counts as non-violent."
        )
    return _LABELS[_normal(name)]


def _read_folder(root: Path, config: DataConfig) -> Manifest:
    """Read ROOT/<split>/<class>/… or ROOT/<class>/…."""
    ignored: list[Path] = []
    folders = _video_folders(root, ignored)
    splits = [_SPLIT_NAMES.get(_normal(folder.name), "") for folder in folders]
    if any(splits) and not all(splits):
        raise VdError(
            f"{folders[splits.index('')]} is beside split folders but is none of train, val, "
            "test; move it elsewhere, or remove the split folders."
        )
    videos: list[Video] = []
    for folder, split in zip(folders, splits, strict=True):
        for class_folder in _video_folders(folder, ignored) if split else [folder]:
            label = _label(class_folder.name, str(class_folder), config.positive_class)
            for path in _files(class_folder):
                if _is_video(path):
                    name = path.relative_to(root).as_posix()
                    videos.append(Video(path, name, label, split))
                else:
                    ignored.append(path)
    names = tuple(path.relative_to(root).as_posix() for path in ignored)
    return Manifest(tuple(videos), names)


def _video_folders(parent: Path, ignored: list[Path]) -> list[Path]:
    """The folders in `parent` that have the name of a split or a class, or hold a video.

    Everything else goes to `ignored`, so that a cache or a report that vd wrote into the
    data set is not taken for a class.
    """
    folders = []
    for entry in _entries(parent):
        name = _normal(entry.name)
        known = name in _SPLIT_NAMES or name in _LABELS
        if entry.is_dir() and (known or any(map(_is_video, _files(entry)))):
            folders.append(entry)
        else:
            ignored.append(entry)
    return folders


def _files(folder: Path) -> Iterator[Path]:
    """Files below `folder` in order of name; links to folders are not followed.

    A folder that is named like a video is a file, which the ledger has as not regular.
    """
    for entry in _entries(folder):
        if entry.is_dir() and not entry.is_symlink() and not _is_video(entry):
            yield from _files(entry)
        else:
            yield entry


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, in order of name."""
    with reading(folder):
        return sorted(e for e in folder.iterdir() if not e.name.startswith("."))


def _is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in _VIDEO_SUFFIXES


def _read_csv(path: Path, config: DataConfig) -> Manifest:
    """Read a CSV with path,label and optionally split,group."""
    rows = read_csv(path)
    names = [name.strip() for name in rows[0] if name] if rows else []
    if not {"path", "label"} <= set(names):
        raise VdError(
            f"{path} names the columns {','.join(names)!r:.80} and has {len(rows)} rows; its "
            "first line must name path,label and may name split,group, in UTF-8, with commas."
        )
    videos = [_listed_video(row, path, config) for row in rows]
    # b/../a is a, and so is an absolute path
    places = Counter(os.path.abspath(video.path) for video in videos)
    place, count = places.most_common(1)[0]
    if count > 1:
        raise VdError(f"{path} lists {place!r} {count} times; keep one of these rows.")
    without = [video.name for video in videos if not video.split]
    if 0 < len(without) < len(videos):
        raise VdError(
            f"{path}: {without[0]!r} has no split while other rows have one; fill the "
            "column, or remove it to have splits assigned."
        )
    if not any(os.path.lexists(video.path) for video in videos):
        raise VdError(
            f"none of the {len(videos)} files listed in {path} exists, for example "
            f"{str(videos[0].path)!r}; its paths must be relative to its folder."
        )
    return Manifest(tuple(sorted(videos, key=lambda video: video.name)))


def _listed_video(row: Mapping[str, str], path: Path, config: DataConfig) -> Video:
    """The video in a row of the CSV at `path`."""
    values = {name.strip(): value or "" for name, value in row.items() if name}
    where = f"{path}, row {','.join(values.values())!r:.80}"
    if not values["path"] or not values["label"]:
        raise VdError(f"{where} has no path or no label; add it, or delete the row.")
    split = values.get("split", "")
    if split and _normal(split) not in _SPLIT_NAMES:
        raise VdError(f"{where}: {split!r} is no split; write train, val or test.")
    name = Path(values["path"]).as_posix()  # ./a.mp4 is a.mp4
    return Video(
        path.parent / name,
        name,
        _label(values["label"], where, config.positive_class),
        _SPLIT_NAMES.get(_normal(split), ""),
        values.get("group", ""),
    )


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
        yield dataclasses.replace(video, group=group)


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


def write_manifest(path: Path, videos: Sequence[Video]) -> None:
    """Write a CSV that `read_manifest` reads: path,label,split,group."""
    rows = split_rows(videos)
    for row, video in zip(rows, videos, strict=True):
        del row["id"]
        row["path"] = os.path.relpath(video.path, path.parent)
    write_csv(path, rows)
