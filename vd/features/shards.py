"""One shard of the feature store: an ArrayRecord file of records, and its index as CSV.

A record holds up to `PART_FRAMES` frames of one view of one video: content hash, view,
part, features, and the seconds of each frame from the video's first decoded one. The
records of a video are consecutive: its first part in all views, then its second; most clips
have one part. ArrayRecord keeps a checksum of each record and refuses a damaged one.
"""

import errno
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float64

from vd.data.outcome import Outcome, outcome_row
from vd.files import explaining

PART_FRAMES = 512  # at most in a record, so that a window of a long video is read alone
_MOST_VIDEOS, _MOST_BYTES = 64, 2**28  # of a shard: a kill costs at most one
_SPOOL_BYTES = 2**25  # of one video in memory


class Part(NamedTuple):
    """Consecutive frames of a video in all views, with their seconds."""

    features_VxFxSxD: Float16[np.ndarray, "V F S D"]
    seconds_F: Float64[np.ndarray, " F"]


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


class Spool:
    """Holds one video's frames until its outcome is known; many in a file in `folder`."""

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

    def close(self) -> None:
        """Free the memory or the file."""
        self._file.close()


class RecordFormat:
    """The TFDS features of a record of `streams` × `dim` values a frame."""

    def __init__(self, streams: int, dim: int) -> None:
        # prediction imports this module, and not TFDS
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        self._example, self._size = tf_example_pb2.Example, streams * dim
        tensor = partial(tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES)
        self.features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "view": tfds.features.Scalar(np.int32),
                "part": tfds.features.Scalar(np.int32),
                "features": tensor(shape=(None, streams, dim), dtype=np.float16),
                "seconds": tensor(shape=(None,), dtype=np.float64),
            }
        )
        self._serializer = tfds.core.example_serializer.ExampleSerializer(
            self.features.get_serialized_info()
        )

    @property
    def description(self) -> str:
        """The content of features.json, as TFDS's `save_config` writes it."""
        from google.protobuf import json_format

        proto = self.features.to_proto()
        return json_format.MessageToJson(proto, indent=4, sort_keys=True)

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

    def parse(
        self, record: bytes, video_id: str, view: int, part: int
    ) -> tuple[Float16[np.ndarray, "F SD"], Float64[np.ndarray, " F"]]:
        """Features of a record, streams side by side, and seconds; TFDS takes twice as long.

        Raises `DecodeError`, `ValueError` or `LookupError` if it is damaged or another one.
        """
        values = self._example.FromString(record).features.feature
        name, features, seconds = (
            values[key].bytes_list.value[0] for key in ("id", "features", "seconds")
        )
        place = [values[key].int64_list.value[0] for key in ("view", "part")]
        if [name.decode(), *place] != [video_id, view, part]:
            raise ValueError("its index names another record")
        features_FxSD = np.frombuffer(features, np.float16).reshape(-1, self._size)
        return features_FxSD, np.frombuffer(seconds, np.float64)


class ShardWriter:
    """Writes a shard into `path`; raises `VdError` when the disk is full."""

    def __init__(self, path: Path, form: RecordFormat) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

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

    def add(
        self, video_id: str, outcome: Outcome, engine: str, parts: Iterable[Part] = ()
    ) -> None:
        """Append a video's row and its records; a quarantined video has no parts.

        Each part has `PART_FRAMES` frames, the last may have fewer; `engine` made them.
        """
        first, views, frames = self._records, 0, 0
        for number, part in enumerate(parts):
            views, frames = len(part.features_VxFxSxD), frames + len(part.seconds_F)
            for record in self._form.serialize(video_id, number, part):
                with self._explaining():
                    self._writer.write(record)
                self._records += 1
                self._bytes += len(record)
        self.rows.append(
            {
                "id": video_id, "first": first, "views": views, "stored_frames": frames,
                **outcome_row(outcome), "engine": engine,
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
