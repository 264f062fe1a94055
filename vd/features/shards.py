"""One shard of the feature store: an ArrayRecord file of records, and its index as CSV.

A record is up to `PART_FRAMES` frames of one view of one video: content hash, view, part,
features. A video's records stand together, its first part in all views, then its second; a
clip has one part. A record holds no path, label, split or group.
"""

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from jaxtyping import Float16
from tensorflow_datasets.proto import tf_example_pb2

from vd.data.outcome import Outcome, outcome_from_row
from vd.files import SEAL, explaining, reading, sealed, write_csv, write_text

PART_FRAMES = 512  # of a record at most, so that a window of a long video is read alone
_MOST_VIDEOS, _MOST_BYTES = 64, 2**28  # a shard: what a kill costs at most
_MOST_RECORDS = 2**31  # of a shard, that is believed
_SPOOL_BYTES = 2**25  # of one video in memory

Part = Float16[np.ndarray, "V F S D"]


@dataclass(frozen=True)
class Extracted:
    """What extraction made of one video; it has no part when it is quarantined."""

    id: str
    outcome: Outcome
    parts: Iterable[Part] = ()  # of PART_FRAMES frames each, but for the last


@dataclass(frozen=True)
class StoredVideo:
    """A row of the store's index."""

    id: str
    first: int  # its first record, counted from the store's beginning
    views: int
    frames: int  # stored frames (F)
    outcome: Outcome
    engine: str
    sha256: str  # of its serialised records, one after the other

    @property
    def records(self) -> int:
        """Number of its records."""
        return self.views * -(-self.frames // PART_FRAMES)

    def part_frames(self, part: int) -> int:
        """Number of frames of one of its parts."""
        return min(self.frames - part * PART_FRAMES, PART_FRAMES)


def in_parts(features_VxFxSxD: Part) -> Iterator[Part]:
    """The parts of a video's features."""
    for start in range(0, features_VxFxSxD.shape[1], PART_FRAMES):
        yield features_VxFxSxD[:, start : start + PART_FRAMES]


class Spool:
    """A video's features until its outcome is known; in `folder` when they are many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # `close`
            _SPOOL_BYTES, "w+b", dir=str(folder)
        )
        self._frame_shape: tuple[int, ...] = ()

    def append(self, features_VxFxSxD: Part) -> None:
        """Take in further frames. Raises `VdError` when the disk is full."""
        features_FxVxSxD = np.ascontiguousarray(features_VxFxSxD.swapaxes(0, 1))
        self._frame_shape = features_FxVxSxD.shape[1:]
        with explaining(self._folder):
            self._file.write(features_FxVxSxD.data)

    def parts(self) -> Iterator[Part]:
        """The parts of all frames so far."""
        self._file.seek(0)
        size = PART_FRAMES * math.prod(self._frame_shape) * np.float16().itemsize
        while content := self._file.read(size):
            features = np.frombuffer(content, np.float16)
            yield features.reshape(-1, *self._frame_shape).swapaxes(0, 1)

    def close(self) -> None:
        """Give the memory or the disk back."""
        self._file.close()


class RecordFormat:
    """The TFDS features of a record of `streams` × `dim` values a frame."""

    def __init__(self, streams: int, dim: int) -> None:
        self._size = streams * dim
        self.features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "view": tfds.features.Scalar(np.int32),
                "part": tfds.features.Scalar(np.int32),
                "features": tfds.features.Tensor(
                    shape=(None, streams, dim),
                    dtype=np.float16,
                    encoding=tfds.features.Encoding.BYTES,
                ),
            }
        )

    @cached_property
    def description(self) -> bytes:
        """What TFDS keeps of the format in features.json, as its `save_config` writes it."""
        told = json_format.MessageToDict(self.features.to_proto())
        return json.dumps(told, indent=4, sort_keys=True).encode()

    @cached_property
    def _serializer(self) -> Any:
        return tfds.core.example_serializer.ExampleSerializer(
            self.features.get_serialized_info()
        )

    def serialize(self, video_id: str, number: int, part: Part) -> Iterator[bytes]:
        """The records of one part of a video, a view each."""
        for view, features_FxSxD in enumerate(part):
            example = {
                "id": video_id, "view": view, "part": number, "features": features_FxSxD,
            }  # fmt: skip
            made = self._serializer.get_tf_example(
                self.features.encode_example(example)
            )
            # else the order of the four differs from process to process
            yield made.SerializeToString(deterministic=True)

    def parse(
        self, record: bytes
    ) -> tuple[tuple[str, int, int], Float16[np.ndarray, "F SD"]]:
        """Video id, view and part of a record, and its features, streams side by side.

        What TFDS reads, in half its time. Raises `ValueError`, or `LookupError` where
        something lacks.
        """
        try:
            found = tf_example_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise ValueError("a record is no tf.train.Example") from error
        video_id, content = (
            found[key].bytes_list.value[0] for key in ("id", "features")
        )
        view, part = (found[key].int64_list.value[0] for key in ("view", "part"))
        features_FxSD = np.frombuffer(content, np.float16).reshape(-1, self._size)
        return (video_id.decode(), view, part), features_FxSD


class ShardWriter:
    """A shard in the making: records go to the disk as they come, into `path`.

    Raises `VdError` when the disk is full.
    """

    def __init__(self, path: Path, form: RecordFormat) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = []  # of its index
        self.whole = True  # not while a video is being written
        self._form, self._records, self._bytes = form, 0, 0
        with self._explaining():
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    @property
    def full(self) -> bool:
        """Whether the next video should go into another shard."""
        return len(self.rows) >= _MOST_VIDEOS or self._bytes >= _MOST_BYTES

    def add(self, item: Extracted, engine: str) -> None:
        """Append a video's records, and its row, which may have none."""
        self.whole, first, views, frames = False, self._records, 0, 0
        digest = hashlib.sha256()
        for number, part in enumerate(item.parts):
            views, frames = len(part), frames + part.shape[1]
            for record in self._form.serialize(item.id, number, part):
                digest.update(record)
                self._write(record)
        self.rows.append(
            {
                "id": item.id, "first": first, "views": views, "stored_frames": frames,
                **vars(item.outcome), "engine": engine,
                "sha256": digest.hexdigest(),
            }
        )  # fmt: skip
        self.whole = True

    def copy(self, row: Mapping[str, Any], records: Iterable[bytes]) -> None:
        """Append a video as another shard has it."""
        self.rows.append({**row, "first": self._records})
        for record in records:
            self._write(record)

    def close(self) -> None:
        """End the file."""
        with self._explaining():
            self._writer.close()

    def _write(self, record: bytes) -> None:
        with self._explaining():
            self._writer.write(record)
        self._records += 1
        self._bytes += len(record)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        with explaining(self.path):
            try:
                yield
            except RuntimeError as error:  # ArrayRecord's, without the system's number
                full = os.strerror(errno.ENOSPC)
                if full in str(error):
                    raise OSError(errno.ENOSPC, full) from error
                raise OSError(errno.EIO, str(error)) from error


def write_index(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a shard's index, after the shard: without it the shard does not count."""
    if rows:
        write_csv(path, rows)
    else:
        write_text(path, "id\n")


def checksum(records: Sequence[bytes]) -> str:
    """SHA-256 of a video's records."""
    return hashlib.sha256(b"".join(records)).hexdigest()


def read_records(shard: Path, first: int, count: int) -> list[bytes] | None:
    """Records of a shard as they were written; None when it is damaged there.

    Raises `VdError` when the file is there but cannot be read: that is no damage.
    """
    try:
        _check_readable(shard)
        with closing(ArrayRecordReader(str(shard))) as reader:
            return [bytes(r) for r in reader.read(list(range(first, first + count)))]
    except (RuntimeError, ValueError, IndexError, OSError):
        return None


def count_records(shard: Path) -> int | None:
    """Number of records in a shard's file; None when it is damaged. Raises as above."""
    try:
        _check_readable(shard)
        with closing(ArrayRecordReader(str(shard))) as reader:
            return int(reader.num_records())
    except (RuntimeError, ValueError, OSError):
        return None


def _check_readable(shard: Path) -> None:
    with reading(shard), open(shard, "rb", buffering=0) as handle:
        handle.read(1)


def stored_video(row: Mapping[str, str], before: int) -> StoredVideo:
    """An index row from its CSV form; `before` records stand in earlier shards.

    Raises `KeyError`, `ValueError` or `TypeError` for anything else.
    """
    numbers = [int(row[key]) for key in ("first", "views", "stored_frames")]
    if min(numbers) < 0 or max(numbers) > _MOST_RECORDS:
        raise ValueError("an impossible number")
    if row["outcome"] != "quarantined" and numbers[2] == 0:
        raise ValueError("a used video without frames")
    if SEAL in row and sealed(row) != row:  # older indexes lack it
        raise ValueError("it is not as it was written")
    return StoredVideo(
        id=row["id"],
        first=before + int(row["first"]),
        views=int(row["views"]),
        frames=int(row["stored_frames"]),
        outcome=outcome_from_row(row),
        engine=row["engine"],
        sha256=row["sha256"],
    )
