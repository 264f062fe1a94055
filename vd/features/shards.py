"""One shard of the feature store: an ArrayRecord file of records, and its index as CSV.

A record holds up to `PART_FRAMES` frames of one view of one video: content hash, view,
part, features, and the seconds of each frame from the video's first decoded one. The
records of a video are consecutive: its first part in all views, then its second; most clips
have one part. ArrayRecord keeps a checksum of each record and refuses a damaged one.
"""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf import json_format
from jaxtyping import Float16, Float64
from tensorflow_datasets.proto import tf_example_pb2

from vd.data.outcome import Outcome, outcome_from_row
from vd.files import explaining

PART_FRAMES = 512  # at most in a record, so that a window of a long video is read alone
_MOST_VIDEOS, _MOST_BYTES = 64, 2**28  # of a shard: a kill costs at most one
_SPOOL_BYTES = 2**25  # of one video in memory


class Part(NamedTuple):
    """Consecutive frames of a video in all views, with their seconds."""

    features_VxFxSxD: Float16[np.ndarray, "V F S D"]
    seconds_F: Float64[np.ndarray, " F"]


class Extracted(NamedTuple):
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

    @property
    def parts(self) -> int:
        """Number of its parts, each a record a view."""
        return -(-self.frames // PART_FRAMES)


def stored_video(row: Mapping[str, Any], shard: int) -> StoredVideo:
    """A row of the index from its CSV form; raises an error if a value is invalid."""
    return StoredVideo(
        id=row["id"],
        shard=shard,
        first=int(row["first"]),
        views=int(row["views"]),
        frames=int(row["stored_frames"]),
        outcome=outcome_from_row(row),
        engine=row["engine"],
    )


class Spool:
    """Holds a video's frames until its outcome is known; large videos in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # `close`
            _SPOOL_BYTES, "w+b", dir=str(folder)
        )
        self._frame_shape: tuple[int, ...] = ()
        self._seconds: list[float] = []

    def append(self, part: Part) -> None:
        """Append any number of frames. Raises `VdError` when the disk is full."""
        features_FxVxSxD = np.ascontiguousarray(part.features_VxFxSxD.swapaxes(0, 1))
        self._frame_shape = features_FxVxSxD.shape[1:]
        with explaining(self._folder):
            self._file.write(features_FxVxSxD.data)
        self._seconds += part.seconds_F.tolist()

    def parts(self) -> Iterator[Part]:
        """All frames so far, in parts of the records' size."""
        self._file.seek(0)
        values = math.prod(self._frame_shape)
        for start in range(0, len(self._seconds), PART_FRAMES):
            seconds_F = np.array(self._seconds[start : start + PART_FRAMES])
            size = len(seconds_F) * values * np.float16().itemsize
            features = np.frombuffer(self._file.read(size), np.float16)
            features_FxVxSxD = features.reshape(-1, *self._frame_shape)
            yield Part(features_FxVxSxD.swapaxes(0, 1), seconds_F)

    def clear(self) -> None:
        """Forget all frames."""
        self._file.seek(0)
        self._file.truncate()
        self._seconds.clear()

    def close(self) -> None:
        """Free the memory or the file."""
        self._file.close()


class Record(NamedTuple):
    """One part of a video in one view, streams side by side."""

    id: str
    view: int
    part: int
    features_FxSD: Float16[np.ndarray, "F SD"]
    seconds_F: Float64[np.ndarray, " F"]


class RecordFormat:
    """The TFDS features of a record of `streams` × `dim` values a frame."""

    def __init__(self, streams: int, dim: int) -> None:
        self._size = streams * dim
        raw = tfds.features.Encoding.BYTES
        self.features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "view": tfds.features.Scalar(np.int32),
                "part": tfds.features.Scalar(np.int32),
                "features": tfds.features.Tensor(
                    shape=(None, streams, dim), dtype=np.float16, encoding=raw
                ),
                "seconds": tfds.features.Tensor(
                    shape=(None,), dtype=np.float64, encoding=raw
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
        for view, features_FxSxD in enumerate(part.features_VxFxSxD):
            values = {
                "id": video_id, "view": view, "part": number,
                "features": features_FxSxD, "seconds": part.seconds_F,
            }  # fmt: skip
            encoded = self.features.encode_example(values)
            example = self._serializer.get_tf_example(encoded)
            # the default order of the keys differs between processes
            yield example.SerializeToString(deterministic=True)

    def parse(self, record: bytes) -> Record:
        """What TFDS reads in a record, in half the time.

        Raises `DecodeError`, `ValueError` or `LookupError` if it is damaged.
        """
        values = tf_example_pb2.Example.FromString(record).features.feature
        video_id, features, seconds = (
            values[key].bytes_list.value[0] for key in ("id", "features", "seconds")
        )
        view, part = (values[key].int64_list.value[0] for key in ("view", "part"))
        features_FxSD = np.frombuffer(features, np.float16).reshape(-1, self._size)
        seconds_F = np.frombuffer(seconds, np.float64)
        return Record(video_id.decode(), view, part, features_FxSD, seconds_F)


class ShardWriter:
    """Writes a shard into `path`; raises `VdError` when the disk is full."""

    def __init__(self, path: Path, form: RecordFormat) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = []  # of its index
        self._form, self._records, self._bytes = form, 0, 0
        with self._explaining():
            self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    @property
    def full(self) -> bool:
        """Whether the next video should go into another shard."""
        return len(self.rows) >= _MOST_VIDEOS or self._bytes >= _MOST_BYTES

    def add(self, item: Extracted, engine: str) -> None:
        """Append a video's records, if any, and its row."""
        first, views, frames = self._records, 0, 0
        for number, part in enumerate(item.parts):
            views, frames = len(part.features_VxFxSxD), frames + len(part.seconds_F)
            for record in self._form.serialize(item.id, number, part):
                with self._explaining():
                    self._writer.write(record)
                self._records += 1
                self._bytes += len(record)
        self.rows.append(
            {
                "id": item.id, "first": first, "views": views, "stored_frames": frames,
                **vars(item.outcome), "engine": engine,
            }
        )  # fmt: skip

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
