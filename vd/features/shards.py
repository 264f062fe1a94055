"""One shard of the feature store: an ArrayRecord file of records, and its index as CSV.

A record holds up to `PART_FRAMES` frames of one view of one video: content hash, view,
part, features. The records of a video are consecutive: its first part in all views, then
its second; most clips have one part. A record holds no path, label, split or group.
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
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)
from google.protobuf import json_format
from jaxtyping import Float16
from tensorflow_datasets.proto import tf_example_pb2

from vd.data.outcome import Outcome, outcome_from_row
from vd.files import explaining

PART_FRAMES = 512  # at most in a record, so that a window of a long video is read alone
_MOST_VIDEOS, _MOST_BYTES = 64, 2**28  # of a shard: a kill costs at most one
_SPOOL_BYTES = 2**25  # of one video in memory

Part = Float16[np.ndarray, "V F S D"]


@dataclass(frozen=True)
class Extracted:
    """The result of extracting one video; a quarantined one has no parts."""

    id: str
    outcome: Outcome
    parts: Iterable[Part] = ()  # of PART_FRAMES frames each, the last may have fewer


@dataclass(frozen=True)
class StoredVideo:
    """A row of a shard's index."""

    id: str
    shard: int
    first: int  # its first record in the shard
    views: int
    frames: int  # stored frames (F)
    outcome: Outcome
    engine: str
    sha256: str  # of its serialised records, one after the other

    @property
    def records(self) -> int:
        """Number of its records."""
        return self.views * -(-self.frames // PART_FRAMES)


def stored_video(row: Mapping[str, Any], shard: int) -> StoredVideo:
    """A row of the index, also in its CSV form; raises an error if a value is invalid."""
    return StoredVideo(
        id=row["id"],
        shard=shard,
        first=int(row["first"]),
        views=int(row["views"]),
        frames=int(row["stored_frames"]),
        outcome=outcome_from_row(row),
        engine=row["engine"],
        sha256=row["sha256"],
    )


class Spool:
    """Holds a video's features until its outcome is known; large ones in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # `close`
            _SPOOL_BYTES, "w+b", dir=str(folder)
        )
        self._frame_shape: tuple[int, ...] = ()

    def append(self, features_VxFxSxD: Part) -> None:
        """Append frames. Raises `VdError` when the disk is full."""
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

    def clear(self) -> None:
        """Forget all frames."""
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Free the memory or the file."""
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
        self._serializer = tfds.core.example_serializer.ExampleSerializer(
            self.features.get_serialized_info()
        )

    @property
    def description(self) -> str:
        """The content of features.json, as TFDS's `save_config` writes it."""
        values = json_format.MessageToDict(self.features.to_proto())
        return json.dumps(values, indent=4, sort_keys=True)

    def serialize(self, video_id: str, number: int, part: Part) -> Iterator[bytes]:
        """The records of one part of a video, one for each view."""
        for view, features_FxSxD in enumerate(part):
            values = {
                "id": video_id, "view": view, "part": number, "features": features_FxSxD,
            }  # fmt: skip
            encoded = self.features.encode_example(values)
            example = self._serializer.get_tf_example(encoded)
            # the default order of the four keys differs between processes
            yield example.SerializeToString(deterministic=True)

    def parse(
        self, record: bytes
    ) -> tuple[tuple[str, int, int], Float16[np.ndarray, "F SD"]]:
        """Video id, view and part of a record, and its features, streams side by side.

        Reads what TFDS reads, in half the time. Raises `DecodeError`, `ValueError` or
        `LookupError` if the record is damaged.
        """
        values = tf_example_pb2.Example.FromString(record).features.feature
        video_id, content = (
            values[key].bytes_list.value[0] for key in ("id", "features")
        )
        view, part = (values[key].int64_list.value[0] for key in ("view", "part"))
        features_FxSD = np.frombuffer(content, np.float16).reshape(-1, self._size)
        return (video_id.decode(), view, part), features_FxSD


class ShardWriter:
    """Writes a shard into `path`; raises `VdError` when the disk is full."""

    def __init__(self, path: Path, form: RecordFormat) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = []  # of its index
        self.complete = True  # False while a video is being written
        self._form, self._records, self._bytes = form, 0, 0
        with self._explaining():
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    @property
    def full(self) -> bool:
        """Whether the next video should go into another shard."""
        return len(self.rows) >= _MOST_VIDEOS or self._bytes >= _MOST_BYTES

    def add(self, item: Extracted, engine: str) -> None:
        """Append a video's records, if any, and its row."""
        self.complete, first, views, frames = False, self._records, 0, 0
        digest = hashlib.sha256()
        for number, part in enumerate(item.parts):
            views, frames = len(part), frames + part.shape[1]
            for record in self._form.serialize(item.id, number, part):
                digest.update(record)
                with self._explaining():
                    self._writer.write(record)
                self._records += 1
                self._bytes += len(record)
        self.rows.append(
            {
                "id": item.id, "first": first, "views": views, "stored_frames": frames,
                **vars(item.outcome), "engine": engine, "sha256": digest.hexdigest(),
            }
        )  # fmt: skip
        self.complete = True

    def close(self) -> None:
        """End the file."""
        with self._explaining():
            self._writer.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        with explaining(self.path):
            try:
                yield
            except RuntimeError as error:  # ArrayRecord's, without an error number
                full = os.strerror(errno.ENOSPC) in str(error)
                number = errno.ENOSPC if full else errno.EIO
                raise OSError(number, str(error).splitlines()[0]) from error


def is_intact(shard: Path, rows: Sequence[StoredVideo]) -> bool:
    """Whether a shard has the records of its index, and these have their checksums.

    Raises `OSError` when the file cannot be read: a missing permission is no damage.
    """
    with open(shard, "rb", buffering=0) as handle:
        handle.read(1)
    try:
        with closing(ArrayRecordReader(str(shard))) as reader:
            count = sum(row.records for row in rows)
            return reader.num_records() == count and all(
                _checksum(reader, row) == row.sha256 for row in rows
            )
    except (RuntimeError, ValueError, LookupError, OSError):
        return False


def _checksum(reader: Any, row: StoredVideo) -> str:
    """The checksum of a video's records, read one by one."""
    digest = hashlib.sha256()
    for number in range(row.first, row.first + row.records):
        digest.update(reader.read([number])[0])
    return digest.hexdigest()
