"""The one copy of the features: a TFDS directory, written shard by shard, read at random.

CACHE/features/<fingerprint>/1.0.0/ holds `features-videos.array_record-00017`, a shard of
up to 64 videos, and `index-00017.csv`, which is written after it: a shard without an index
is incomplete and is deleted. Path, label, split and group are joined by content hash, so
new labels rewrite nothing. Any TFDS reader opens the directory:
`tfds.builder_from_directory(dir).as_data_source("videos")`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from jaxtyping import Float16, Int

from vd.console import say, track
from vd.data.streams import stream_settings
from vd.errors import VdError
from vd.features.shards import (
    PART_FRAMES,
    Extracted,
    RecordFormat,
    ShardWriter,
    StoredVideo,
    is_intact,
    stored_video,
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
    writing,
)

if TYPE_CHECKING:
    from vd.features.backbone import Backbone

_FORMAT = 1  # of the records; another number is another fingerprint
_SPLIT = "videos"  # TFDS reserves "all"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # new shards rename nothing
_DIGITS = "[0-9]" * 5


class FeatureStore:
    """The features of one fingerprint under `cache_dir`, read at random by content hash.

    `description` is everything that the features depend on; a frame has the shape
    `streams` × `dim`. Opening reads only the indexes. A shard that is missing or has a
    damaged index is listed in `damaged` and counts as empty.
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
        self._format = RecordFormat(streams, dim)
        self._read_new_indexes()

    @property
    def lock_file(self) -> Path:
        """The lock of the only writer."""
        return self.directory / ".lock"

    def recover(self) -> None:
        """Drop damaged shards and remove what killed writers left. The caller holds the lock.

        Shards that another writer added meanwhile are read first.
        """
        self._read_new_indexes()
        for number in self.damaged:
            self._drop(number)
        self.damaged = []
        remove_orphans(self.directory)
        for shard in self.directory.glob(self._shard(0).name[:-5] + _DIGITS):
            if int(shard.name[-5:]) >= len(self.lengths):
                say(f"removing {shard.name}, which is incomplete: it has no index")
                shard.unlink()

    def verify(self) -> list[int]:
        """Drop shards whose records do not match their checksums; the caller has the lock."""
        dropped = list(self.damaged)
        self.recover()
        with track("verifying", len(self.lengths), "shards") as ticker:
            for number in range(len(self.lengths)):
                rows = self._read_index(number)
                if rows is None or not is_intact(self._shard(number), rows):
                    self._drop(number)
                    dropped.append(number)
                ticker.advance()
        say(f"verified {len(self.lengths)} shards: {len(dropped) or 'none'} damaged")
        self.rows, self.lengths = {}, []
        self._read_new_indexes()
        return dropped

    def add(self, videos: Iterable[Extracted], engine: str) -> None:
        """Append videos as they come. The caller holds the lock.

        A shard gets its name when it is complete on the disk, then its index. At the end,
        also by an interrupt, the last shard is closed with what it has. Raises `VdError`
        when the disk is full; the shards before stay.
        """
        shard: ShardWriter | None = None
        try:
            for item in videos:
                shard = shard or self.new_shard(
                    temporary(self._shard(len(self.lengths)))
                )
                shard.add(item, engine)
                if shard.full:
                    full, shard = shard, None
                    self._finish(full)
        finally:
            if shard is not None:
                self._finish(shard)

    def new_shard(self, path: Path) -> ShardWriter:
        """A writer for a shard at any `path`; `adopt` makes the shard part of the store."""
        return ShardWriter(path, self._format)

    def adopt(self, shard: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a finished shard of the same file system. The caller holds the lock."""
        number, size = len(self.lengths), shard.stat().st_size
        with explaining(self._shard(number)):
            publish(shard, self._shard(number))
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
        if (stored := self.rows.get(video_id)) is None:
            raise VdError(
                f"{self.directory} has no features of the video with the hash "
                f"{video_id:.12}; run vd extract to make them."
            )
        first, last = 0, stored.frames - 1
        if frames_L is not None:
            first, last = int(frames_L.min()), int(frames_L.max())
        if last >= stored.frames:
            raise IndexError("a frame past the end of its video")
        numbers = range(first // PART_FRAMES, last // PART_FRAMES + 1)
        parts = [self._read_part(stored, view, number) for number in numbers]
        features_FxSD = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if frames_L is None:
            return features_FxSD
        places_L = frames_L - numbers[0] * PART_FRAMES
        # "wrap" writes into `out` directly, "raise" makes a copy
        return features_FxSD.take(places_L, axis=0, out=out, mode="wrap")

    def _read_part(
        self, stored: StoredVideo, view: int, part: int
    ) -> Float16[np.ndarray, "F SD"]:
        """One record, if it is the one that the index names."""
        start = sum(self.lengths[: stored.shard]) + stored.first
        with self._explaining_damage():
            record = self._source[start + part * stored.views + view]
            name, features_FxSD = self._format.parse(record)
            if name != (stored.id, view, part):
                raise ValueError("its index names another record")
        return features_FxSD

    def write_metadata(self) -> None:
        """Write the description, and the two JSON files by which TFDS opens the directory."""
        if not self.lengths:
            return
        split = {
            "filepathTemplate": _TEMPLATE,
            "name": _SPLIT,
            "shardLengths": [str(length) for length in self.lengths],
        }
        info = {
            "fileFormat": "array_record",
            "name": "features",
            "splits": [split],
            "version": "1.0.0",
        }
        write_json(self.directory.parent / "fingerprint.json", self.description)
        write_text(self.directory / "features.json", self._format.description)
        write_text(self.directory / "dataset_info.json", json.dumps(info, indent=2))

    def open(self) -> None:
        """Open the shards once, before several threads read."""
        with self._explaining_damage():
            self._source  # noqa: B018  # a cached property

    @contextmanager
    def _explaining_damage(self) -> Iterator[None]:
        try:
            yield
        except (DecodeError, RuntimeError, ValueError, LookupError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise VdError(
                f"{self.directory} is damaged ({reason}); run vd extract --verify, which "
                "extracts the damaged videos again."
            ) from error

    @cached_property
    def _source(self) -> Any:
        """The TFDS data source of the serialised records of all shards."""
        self.write_metadata()
        builder = tfds.builder_from_directory(self.directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(_SPLIT, deserialize_method=raw)

    def _shard(self, number: int) -> Path:
        return self.directory / f"features-{_SPLIT}.array_record-{number:05d}"

    def _index(self, number: int) -> Path:
        return self.directory / f"index-{number:05d}.csv"

    def _drop(self, number: int) -> None:
        """Replace a damaged shard by an empty one: the numbers of the others stay."""
        say(
            f"warning: shard {number} of {self.directory} is missing or damaged; its videos "
            "will be extracted again"
        )
        with writing(self._shard(number)) as path:
            self.new_shard(path).close()
        write_text(self._index(number), "id\n")

    def _finish(self, shard: ShardWriter) -> None:
        """Adopt a shard, unless an error interrupted the writing of a video."""
        try:
            shard.close()
            if shard.complete and shard.rows:
                self.adopt(shard.path, shard.rows)
        finally:
            shard.path.unlink(missing_ok=True)

    def _read_new_indexes(self) -> None:
        """Read the indexes that were added since, up to the last one."""
        indexes = self.directory.glob(f"index-{_DIGITS}.csv")
        last = max((int(path.stem[-5:]) for path in indexes), default=-1)
        for number in range(len(self.lengths), last + 1):
            rows = self._read_index(number)
            if rows is None:
                self.damaged.append(number)
                rows = []
            self.rows |= {row.id: row for row in rows}  # a later row replaces another
            self.lengths.append(sum(row.records for row in rows))
            self.__dict__.pop("_source", None)  # which has fewer shards

    def _read_index(self, number: int) -> list[StoredVideo] | None:
        """The rows of one shard; None when the shard or its index is missing or damaged."""
        path = self._index(number)
        try:
            size = self._shard(number).stat().st_size
            complete = path.read_bytes().endswith(b"\n")
            rows = read_csv(path)
            if complete and all(int(r.get("shard_bytes", size)) == size for r in rows):
                return [stored_video(row, number) for row in rows]
        except (FileNotFoundError, LookupError, ValueError, TypeError):
            pass
        return None


def open_store(cache_dir: Path, backbone: "Backbone", dim: int) -> FeatureStore:
    """The store of a backbone with features of length `dim`."""
    description = features_description(backbone)
    return FeatureStore(cache_dir, description, streams=len(backbone.streams), dim=dim)


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
