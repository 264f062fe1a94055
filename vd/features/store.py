"""The one copy of the features: a TFDS directory, written shard by shard, read at random.

CACHE/features/<fingerprint>/1.0.0/ holds `features-videos.array_record-00017`, a shard of
up to 64 videos, and `index-00017.csv`, which is written after it: a shard without its index
was cut short and is deleted. A record is one view of one video; path, label, split and
group are never stored but joined by content hash, so new labels rewrite nothing. Any TFDS
reader opens it: `tfds.builder_from_directory(dir).as_data_source("videos")`.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float16

from vd.atomic import remove_orphans, write_bytes, write_json
from vd.errors import VdError
from vd.features.shards import (
    Extracted,
    RecordFormat,
    Serialized,
    StoredVideo,
    checksum,
    read_records,
    stored_video,
    write_shard,
)
from vd.progress import track
from vd.tables import read_csv

_SPLIT = "videos"  # TFDS reserves "all"
_INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # new shards rename nothing


class FeatureStore:
    """The features of one fingerprint under `cache_dir`, read at random by content hash.

    `description` is whatever the features depend on; `streams` × `dim` is a frame's shape.
    Opening reads the indexes alone.
    """

    def __init__(
        self, cache_dir: Path, description: Mapping[str, Any], streams: int, dim: int
    ) -> None:
        self.fingerprint = fingerprint(description)
        self.directory = cache_dir / "features" / self.fingerprint / "1.0.0"
        self.description = dict(description)
        self.streams, self.dim = streams, dim
        self.rows: dict[str, StoredVideo] = {}
        self._shard_lengths: list[int] = []
        self._format = RecordFormat(streams, dim)
        self._read_new_indexes()

    @property
    def lock_file(self) -> Path:
        """What the only writer holds."""
        return self.directory / ".lock"

    def recover(self) -> None:
        """Remove what killed writers left: a shard without index, temporary files.

        The caller holds the lock. What another writer added meanwhile is taken in first.
        """
        self._read_new_indexes()
        remove_orphans(self.directory)
        count = len(self._shard_lengths)
        for shard in self.directory.glob(f"features-{_SPLIT}.array_record-?????"):
            if int(shard.name[-5:]) >= count:
                shard.unlink()
        for index in self.directory.glob("index-?????.csv"):  # behind a lost one
            if int(index.stem[-5:]) >= count:
                index.unlink()

    def add(self, chunk: Sequence[Extracted], engine: str) -> None:
        """Append one shard: whole on the disk, its index after it, or not there at all.

        Raises `VdError` when the disk is full; what was added before stays.
        """
        self._append([self._format.serialize(item, engine) for item in chunk])

    def verify(self) -> list[str]:
        """Read every record against its checksum; returns ids of the damaged videos.

        A damaged shard is emptied, after its good videos are written to a new one; the
        damaged ones are lacking from then on. The caller holds the lock.
        """
        damaged: list[str] = []
        with track("verifying", len(self.rows), "videos") as ticker:
            for number in range(len(self._shard_lengths)):
                before = sum(self._shard_lengths[:number])
                good, bad = [], []
                for row in read_csv(self._index(number)):
                    stored = stored_video(row, before)
                    if self.rows.get(stored.id) != stored:
                        continue  # a later row has replaced it
                    local = stored.first - before
                    records = read_records(self._shard(number), local, stored.views)
                    if records is None or checksum(records) != stored.sha256:
                        bad.append(stored.id)
                    else:
                        good.append(Serialized(dict(row), records))
                    ticker.advance()
                if bad:
                    self._append(good)
                    write_shard(self._shard(number), self._index(number), [])
                    damaged += bad
        if damaged:
            self._forget()
        return damaged

    def read(self, video_id: str, view: int) -> Float16[np.ndarray, "F SD"]:
        """Features of one view of a stored video, streams side by side."""
        try:
            record = self._source[self.rows[video_id].first + view]
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise VdError(
                f"{self.directory} is damaged ({str(error).splitlines()[0]}); vd extract "
                "--verify finds the damaged videos and extracts them again."
            ) from error
        if (record["id"].decode(), record["view"]) != (video_id, view):
            raise VdError(
                f"{self.directory} is damaged (its index names another record); vd "
                "extract --verify finds the damaged videos and extracts them again."
            )
        features_FxSxD = record["features"]
        flat: np.ndarray = features_FxSxD.reshape(len(features_FxSxD), -1)
        return flat

    def write_metadata(self) -> None:
        """Write the two JSON files by which TFDS opens the directory, if they are stale."""
        if self._described_lengths() == self._shard_lengths:
            return
        split = tfds.core.SplitInfo(
            name=_SPLIT,
            shard_lengths=self._shard_lengths,
            num_bytes=0,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=self.directory,
                dataset_name="features",
                split=_SPLIT,
                filetype_suffix="array_record",
                template=_TEMPLATE,
            ),
        )
        with tempfile.TemporaryDirectory() as folder:
            for number in range(
                len(self._shard_lengths)
            ):  # TFDS looks for the names alone
                (Path(folder) / self._shard(number).name).touch()
            tfds.folder_dataset.write_metadata(
                data_dir=folder,
                features=self._format.features,
                split_infos=[split],
                filename_template=_TEMPLATE,
                check_data=False,
            )
            for name in ("features.json", _INFO):  # what is compared comes last
                write_bytes(self.directory / name, (Path(folder) / name).read_bytes())

    def _described_lengths(self) -> list[int]:
        """Records of each shard as dataset_info.json has them; [] when there is none."""
        try:
            info = json.loads((self.directory / _INFO).read_text(encoding="utf-8"))
            return [int(length) for length in info["splits"][0]["shardLengths"]]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return []

    @cached_property
    def _source(self) -> Any:
        """The TFDS data source over all shards."""
        self.write_metadata()
        return tfds.builder_from_directory(self.directory).as_data_source(_SPLIT)

    def _shard(self, number: int) -> Path:
        return self.directory / f"features-{_SPLIT}.array_record-{number:05d}"

    def _index(self, number: int) -> Path:
        return self.directory / f"index-{number:05d}.csv"

    def _append(self, items: Sequence[Serialized]) -> None:
        """Write a new shard, and take it in."""
        if not items:
            return
        number = len(self._shard_lengths)
        if number == 0:
            write_json(self.directory.parent / "fingerprint.json", self.description)
        write_shard(self._shard(number), self._index(number), items)
        self._read_new_indexes()

    def _forget(self) -> None:
        """Read all indexes anew."""
        self.rows, self._shard_lengths = {}, []
        self._read_new_indexes()

    def _read_new_indexes(self) -> None:
        """Take in the shards beyond those known."""
        while (path := self._index(len(self._shard_lengths))).exists():
            self._read_index(path)
            self.__dict__.pop("_source", None)

    def _read_index(self, path: Path) -> None:
        """Take in the rows of one shard; a later row of a video replaces the former."""
        before, length = sum(self._shard_lengths), 0
        try:
            for row in read_csv(path):
                stored = stored_video(row, before)
                self.rows[stored.id] = stored
                length += stored.views
        except (KeyError, ValueError, TypeError) as error:
            raise VdError(
                f"{path} is damaged ({error}); write nothing but the word id into it, and "
                "the same command extracts its videos again."
            ) from error
        self._shard_lengths.append(length)


def fingerprint(description: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything the features depend on."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
