"""The names and the two JSON files by which any TFDS reader opens a store's directory."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from vd.features.shards import RecordFormat
from vd.files import explaining, temporary, write_bytes

SPLIT = "videos"  # TFDS reserves "all"
_FEATURES, _INFO = "features.json", "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # new shards rename nothing


def shard_file(directory: Path, number: int) -> Path:
    """A shard's file, in TFDS's form."""
    return directory / f"features-{SPLIT}.array_record-{number:05d}"


def shard_files(directory: Path) -> Iterable[Path]:
    """The shards in a directory, whole or not."""
    return directory.glob(f"features-{SPLIT}.array_record-{'[0-9]' * 5}")


def write_metadata(directory: Path, form: RecordFormat, lengths: Sequence[int]) -> None:
    """Write both files for shards of so many records, unless they are as they should be.

    Raises `VdError` when the disk is full.
    """
    if _described_lengths(directory, form) == lengths:
        return
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=list(lengths),
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=directory,
            dataset_name="features",
            split=SPLIT,
            filetype_suffix="array_record",
            template=_TEMPLATE,
        ),
    )
    folder = temporary(directory / "metadata")
    try:
        with explaining(folder):
            folder.mkdir()
        for number in range(len(lengths)):  # TFDS looks for the names alone
            shard_file(folder, number).touch()
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=form.features,
            split_infos=[split],
            filename_template=_TEMPLATE,
            check_data=False,
        )
        for name in (_FEATURES, _INFO):  # what is compared comes last
            write_bytes(directory / name, (folder / name).read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _described_lengths(directory: Path, form: RecordFormat) -> list[int]:
    """Records of each shard as dataset_info.json has them; [] when one file is wrong."""
    try:
        if (directory / _FEATURES).read_bytes() != form.description:
            return []
        info = json.loads((directory / _INFO).read_text(encoding="utf-8"))
        split = info["splits"][0]
        lengths = [int(length) for length in split.pop("shardLengths")]
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return []
    except (AttributeError, RecursionError):  # other things than TFDS writes
        return []
    ours = {"name": SPLIT, "filepathTemplate": _TEMPLATE}
    whole = info["fileFormat"] == "array_record" and info["splits"] == [ours]
    return lengths if whole else []
