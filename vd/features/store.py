"""The one copy of the features: a TFDS directory, written shard by shard, read at random.

CACHE/features/<fingerprint>/1.0.0/ holds `features-videos.array_record-00017`, a shard of
up to 64 videos, and `index-00017.csv`, which is written after it: a shard without an index
is not read. Path, label, split and group are joined by content hash, so new labels rewrite
nothing. Any TFDS reader opens the directory:
`tfds.builder_from_directory(dir).as_data_source("videos")`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Float64, Int

from vd.console import say
from vd.data.outcome import Outcome, outcome_from_row
from vd.data.streams import stream_settings
from vd.errors import VdError
from vd.features.shards import (
    PART_FRAMES,
    Part,
    RecordFormat,
    ShardWriter,
    StoredVideo,
)
from vd.files import (
    explaining,
    publish,
    read_csv,
    remove_orphans,
    temporary,
    write_csv,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from vd.features.backbone import Backbone

_FORMAT = 2  # of the records; another number is another fingerprint
_SPLIT = "videos"  # TFDS reserves "all"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # new shards rename nothing


class FeatureStore:
    """The features of one fingerprint under `cache_dir`, read at random by content hash.

    `description` is everything that the features depend on; a frame has the shape
    `streams` × `dim`, where a stream counts for each network that reads it. Opening reads
    only the indexes. A shard that is missing or damaged, or whose index is, counts as empty
    and is listed in `damaged`.
    """

    def __init__(
        self, cache_dir: Path, description: Mapping[str, Any], streams: int, dim: int
    ) -> None:
        self.fingerprint = fingerprint(description)
        self.directory = cache_dir / "features" / self.fingerprint / "1.0.0"
        self.description = dict(description)
        self.streams, self.dim = streams, dim
        self.rows: dict[str, StoredVideo] = {}
        self.lengths: list[int] = []  # records of each shard
        self.damaged: list[int] = []
        self.format = RecordFormat(streams, dim)
        self._writer: ShardWriter | None = None
        self._read_new_indexes()

    def recover(self) -> None:
        """Drop damaged shards and remove what killed writers left. The caller holds the lock.

        Shards that another writer added meanwhile are read first.
        """
        self._read_new_indexes()
        dropped, self.damaged = self.damaged, []
        for number in dropped:
            say(
                f"warning: shard {number} of {self.directory} is missing or damaged; its "
                "videos will be extracted again"
            )
            self._index(number).unlink(missing_ok=True)
            self._shard(number).unlink(missing_ok=True)
        remove_orphans(self.directory)

    def add(
        self, video_id: str, outcome: Outcome, engine: str, parts: Iterable[Part] = ()
    ) -> None:
        """Append a video as `ShardWriter.add` does. The caller holds the lock.

        A full shard becomes part of the store; call `finish` after the last video, also
        after an error. Raises `VdError` when the disk is full; the shards before stay.
        """
        if self._writer is None:
            path = temporary(self._shard(len(self.lengths)))
            self._writer = ShardWriter(path, self.format)
        self._writer.add(video_id, outcome, engine, parts)
        if self._writer.full:
            self.finish()

    def finish(self) -> None:
        """Close the shard that is being written, and make it part of the store."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
                self.adopt(writer.path, writer.rows)
            finally:
                writer.path.unlink(missing_ok=True)

    def adopt(self, shard: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Give a finished shard its name, then its index, unless it holds no video.

        It lies in the same file system. The caller holds the lock.
        """
        if not rows:
            return
        number, size = len(self.lengths), shard.stat().st_size
        with explaining(self._shard(number)):
            publish(shard, self._shard(number))  # replaces one that has no index
        write_csv(self._index(number), [{**row, "shard_bytes": size} for row in rows])
        self._read_new_indexes()

    def read(
        self,
        video_id: str,
        view: int,
        frames_L: Int[np.ndarray, " L"] | None = None,
        out: Float16[np.ndarray, "L SD"] | None = None,
    ) -> Float16[np.ndarray, "F SD"]:
        """Features of one view of a stored video, streams side by side.

        All its frames, or `frames_L`, written into `out` if given; only the parts that
        hold them are read. Raises `IndexError` for a frame past the end, `VdError` when the
        video is not in the store or its records are damaged.
        """
        stored = self._stored(video_id)
        first, last = 0, stored.frames - 1
        if frames_L is not None:
            first, last = int(frames_L.min()), int(frames_L.max())
        if last >= stored.frames:
            raise IndexError("a frame past the end of its video")
        numbers = range(first // PART_FRAMES, last // PART_FRAMES + 1)
        parts = [self._read_part(stored, view, number)[0] for number in numbers]
        features_FxSD = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if frames_L is None:
            return features_FxSD
        places_L = frames_L - numbers[0] * PART_FRAMES
        # "wrap" writes into `out` directly, "raise" makes a copy
        return features_FxSD.take(places_L, axis=0, out=out, mode="wrap")

    def seconds(self, video_id: str) -> Float64[np.ndarray, " F"]:
        """Time of each stored frame of a video, from its first decoded one; as `read`."""
        stored = self._stored(video_id)
        parts = [self._read_part(stored, 0, part) for part in range(stored.parts)]
        return np.concatenate([seconds_F for _, seconds_F in parts])

    def _stored(self, video_id: str) -> StoredVideo:
        if (stored := self.rows.get(video_id)) is None:
            raise VdError(
                f"{self.directory} has no features of the video with the hash "
                f"{video_id:.12}; run vd extract to make them."
            )
        return stored

    def _read_part(
        self, stored: StoredVideo, view: int, part: int
    ) -> tuple[Float16[np.ndarray, "F SD"], Float64[np.ndarray, " F"]]:
        """Features and seconds of the record that the index names."""
        from google.protobuf.message import DecodeError

        start = sum(self.lengths[: stored.shard]) + stored.first
        try:
            record = self._source[start + part * stored.views + view]
            return self.format.parse(record, stored.id, view, part)
        except (DecodeError, RuntimeError, ValueError, LookupError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise VdError(
                f"{self._shard(stored.shard)} is damaged ({reason}); delete it and run vd "
                "extract: its videos are extracted again."
            ) from error

    def write_metadata(self) -> None:
        """Write the description, and the two JSON files by which TFDS opens the directory."""
        lengths = [str(length) for length in self.lengths]
        split = {"name": _SPLIT, "shardLengths": lengths, "filepathTemplate": _TEMPLATE}
        info = {
            "name": "features",
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": [split],
        }
        write_json(self.directory.parent / "fingerprint.json", self.description)
        write_text(self.directory / "features.json", self.format.description)
        write_text(self.directory / "dataset_info.json", json.dumps(info, indent=2))

    def open(self) -> None:
        """Open the shards once, before several threads read."""
        self._source  # noqa: B018  # a cached property

    @cached_property
    def _source(self) -> Any:
        """The TFDS data source of the serialised records of all shards."""
        import tensorflow_datasets as tfds

        self.write_metadata()
        builder = tfds.builder_from_directory(self.directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(_SPLIT, deserialize_method=raw)

    def _shard(self, number: int) -> Path:
        return self.directory / f"features-{_SPLIT}.array_record-{number:05d}"

    def _index(self, number: int) -> Path:
        return self.directory / f"index-{number:05d}.csv"

    def _read_new_indexes(self) -> None:
        """Read the indexes that were added since, up to the last one."""
        indexes = self.directory.glob("index-*.csv")
        last = max((int(path.stem[-5:]) for path in indexes), default=-1)
        for number in range(len(self.lengths), last + 1):
            rows = self._read_index(number)
            self.rows |= {row.id: row for row in rows}  # a later row replaces another
            self.lengths.append(sum(row.parts * row.views for row in rows))
            self.__dict__.pop("_source", None)  # which has fewer shards

    def _read_index(self, number: int) -> list[StoredVideo]:
        """The rows of one shard; none when it has been dropped, or now counts as damaged."""
        index, shard = self._index(number), self._shard(number)
        if not index.exists() and not shard.exists():
            return []
        try:
            rows = read_csv(index)
            with shard.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
            if rows and all(int(row["shard_bytes"]) == size for row in rows):
                return [
                    StoredVideo(
                        id=row["id"],
                        shard=number,
                        first=int(row["first"]),
                        views=int(row["views"]),
                        frames=int(row["stored_frames"]),
                        outcome=outcome_from_row(row),
                        engine=row["engine"],
                    )
                    for row in rows
                ]
        except (FileNotFoundError, LookupError, ValueError, TypeError):
            pass
        self.damaged.append(number)
        return []


def open_store(cache_dir: Path, backbone: "Backbone", dim: int) -> FeatureStore:
    """The store of a backbone with features of length `dim`."""
    description = features_description(backbone)
    return FeatureStore(cache_dir, description, streams=backbone.vectors, dim=dim)


def features_description(backbone: "Backbone") -> dict[str, Any]:
    """Everything that the features of a backbone depend on, in JSON values."""
    return {
        "format": _FORMAT,
        "frames_per_second": backbone.frames.frames_per_second,
        "motion_gap_seconds": backbone.frames.motion_gap_seconds,
        "part_frames": PART_FRAMES,
        "streams": list(backbone.streams),
        **stream_settings(backbone.streams),
        "views": list(backbone.views),
        "backbone": backbone.description,
    }


def fingerprint(description: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything the features depend on."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
