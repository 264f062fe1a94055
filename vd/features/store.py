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
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float16

from vd.atomic import remove_orphans, write_bytes, write_json, writing
from vd.errors import VdError
from vd.tables import read_csv, write_csv
from vd.videos.outcome import Outcome
from vd.videos.scan import outcome_from_row

_SPLIT = "videos"  # TFDS reserves "all"
_INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # new shards rename nothing


@dataclass(frozen=True)
class Extracted:
    """What extraction made of one video; `features_VxFxSxD` is None when quarantined."""

    id: str
    outcome: Outcome
    features_VxFxSxD: Float16[np.ndarray, "V F S D"] | None


@dataclass(frozen=True)
class StoredVideo:
    """A row of the store's index."""

    id: str
    first: int  # record of its first view, counted from the store's beginning
    views: int
    frames: int  # stored frames (F)
    outcome: Outcome
    engine: str
    sha256: str  # of its serialised records, one after the other


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
        self._schema = _schema(streams, dim)
        self._serializer = tfds.core.example_serializer.ExampleSerializer(
            self._schema.get_serialized_info()
        )
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
        number = len(self._shard_lengths)
        if number == 0:
            write_json(self.directory.parent / "fingerprint.json", self.description)
        with writing(self._shard(number)) as path:
            rows = self._write_shard(path, chunk, engine)
        write_csv(self._index(number), rows)
        self._read_index(self._index(number))
        self.__dict__.pop("_source", None)

    def read(self, video_id: str, view: int) -> Float16[np.ndarray, "F SD"]:
        """Features of one view of a stored video, streams side by side."""
        try:
            record = self._source[self.rows[video_id].first + view]
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise VdError(
                f"{self.directory} is damaged ({str(error).splitlines()[0]}); delete this "
                "folder, and its features are extracted again."
            ) from error
        if (record["id"].decode(), record["view"]) != (video_id, view):
            raise VdError(
                f"{self.directory} is damaged (its index names another record); delete "
                "this folder, and its features are extracted again."
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
                features=self._schema,
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

    def _write_shard(
        self, path: Path, chunk: Sequence[Extracted], engine: str
    ) -> list[dict[str, Any]]:
        """Write the records of a chunk; returns the rows of its index."""
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        rows: list[dict[str, Any]] = []
        first = 0
        try:
            for item in chunk:
                records = self._serialize(item)
                for record in records:
                    writer.write(record)
                features = item.features_VxFxSxD
                rows.append(
                    {
                        "id": item.id,
                        "first": first,
                        "views": len(records),
                        "stored_frames": 0 if features is None else features.shape[1],
                        **asdict(item.outcome),
                        "engine": engine,
                        "sha256": hashlib.sha256(b"".join(records)).hexdigest(),
                    }
                )
                first += len(records)
            writer.close()
        except RuntimeError as error:  # so ArrayRecord says that the disk is full
            raise OSError(str(error)) from error
        return rows

    def _serialize(self, item: Extracted) -> list[bytes]:
        """The records of one video, a view each; none when it is quarantined."""
        views = () if item.features_VxFxSxD is None else item.features_VxFxSxD
        return [
            self._serializer.serialize_example(
                self._schema.encode_example(
                    {"id": item.id, "view": view, "features": features_FxSxD}
                )
            )
            for view, features_FxSxD in enumerate(views)
        ]

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
                stored = _stored_video(row, before)
                self.rows[stored.id] = stored
                length += stored.views
        except (KeyError, ValueError, TypeError) as error:
            raise VdError(
                f"{path} is damaged ({error}); delete the folder {self.directory} and "
                "extract again."
            ) from error
        self._shard_lengths.append(length)


def fingerprint(description: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything the features depend on."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _schema(streams: int, dim: int) -> Any:
    """The TFDS features of a record."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "view": tfds.features.Scalar(np.int32),
            "features": tfds.features.Tensor(
                shape=(None, streams, dim),
                dtype=np.float16,
                encoding=tfds.features.Encoding.BYTES,
            ),
        }
    )


def _stored_video(row: Mapping[str, str], before: int) -> StoredVideo:
    """An index row from its CSV form; `before` records stand in earlier shards."""
    return StoredVideo(
        id=row["id"],
        first=before + int(row["first"]),
        views=int(row["views"]),
        frames=int(row["stored_frames"]),
        outcome=outcome_from_row(row),
        engine=row["engine"],
        sha256=row["sha256"],
    )
