"""One shard of the feature store: an ArrayRecord file of records, and its index as CSV.

A record is one view of one video: content hash, view, features. It holds no path, label,
split or group.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)
from jaxtyping import Float16

from vd.atomic import write_text, writing
from vd.tables import write_csv
from vd.videos.outcome import Outcome
from vd.videos.scan import outcome_from_row


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


class Serialized(NamedTuple):
    """A video as it is written: the row of its index without `first`, and its records."""

    row: dict[str, Any]
    records: list[bytes]


class RecordFormat:
    """The TFDS features of a record of `streams` × `dim` values a frame."""

    def __init__(self, streams: int, dim: int) -> None:
        self.features = tfds.features.FeaturesDict(
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

    @cached_property
    def _serializer(self) -> Any:
        return tfds.core.example_serializer.ExampleSerializer(
            self.features.get_serialized_info()
        )

    def serialize(self, item: Extracted, engine: str) -> Serialized:
        """A video's row and records, a view each; none when it is quarantined."""
        features = item.features_VxFxSxD
        views: list[np.ndarray] = [] if features is None else list(features)
        records = [
            self._serializer.serialize_example(
                self.features.encode_example(
                    {"id": item.id, "view": view, "features": features_FxSxD}
                )
            )
            for view, features_FxSxD in enumerate(views)
        ]
        row = {
            "id": item.id,
            "views": len(records),
            "stored_frames": len(views[0]) if views else 0,
            **asdict(item.outcome),
            "engine": engine,
            "sha256": checksum(records),
        }
        return Serialized(row, records)


def checksum(records: Sequence[bytes]) -> str:
    """SHA-256 of a video's records."""
    return hashlib.sha256(b"".join(records)).hexdigest()


def write_shard(shard: Path, index: Path, items: Sequence[Serialized]) -> None:
    """Write a shard, then its index: whole on the disk, or not there at all.

    Raises `VdError` when the disk is full.
    """
    rows, first = [], 0
    with writing(shard) as path:
        try:
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for row, records in items:
                for record in records:
                    writer.write(record)
                rows.append({"id": row["id"], "first": first} | row)
                first += len(records)
            writer.close()
        except RuntimeError as error:  # so ArrayRecord says that the disk is full
            raise OSError(str(error)) from error
    if rows:
        write_csv(index, rows)
    else:
        write_text(index, "id\n")


def read_records(shard: Path, first: int, count: int) -> list[bytes] | None:
    """Records of a shard as they were written; None when it is damaged there."""
    try:
        reader = ArrayRecordReader(str(shard))
        try:
            return [bytes(r) for r in reader.read(list(range(first, first + count)))]
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError, OSError):
        return None


def stored_video(row: Mapping[str, str], before: int) -> StoredVideo:
    """An index row from its CSV form; `before` records stand in earlier shards.

    Raises `KeyError`, `ValueError` or `TypeError` for anything else.
    """
    return StoredVideo(
        id=row["id"],
        first=before + int(row["first"]),
        views=int(row["views"]),
        frames=int(row["stored_frames"]),
        outcome=outcome_from_row(row),
        engine=row["engine"],
        sha256=row["sha256"],
    )
