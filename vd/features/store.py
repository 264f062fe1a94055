"""The one copy of the features: a TFDS directory, written shard by shard, read at random.

CACHE/features/<fingerprint>/1.0.0/ holds `features-videos.array_record-00017`, a shard of
up to 64 videos, and `index-00017.csv`, which is written after it: a shard without its index
was cut short and is deleted. A record is up to 512 frames of one view of one video; path,
label, split and group are never stored but joined by content hash, so new labels rewrite
nothing. Any TFDS
reader opens it: `tfds.builder_from_directory(dir).as_data_source("videos")`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float16, Int

from vd.console import say
from vd.errors import VdError
from vd.features.metadata import SPLIT, shard_file, shard_files, write_metadata
from vd.features.shards import (
    PART_FRAMES,
    Extracted,
    RecordFormat,
    ShardWriter,
    StoredVideo,
    checksum,
    count_records,
    read_records,
    stored_video,
    write_index,
)
from vd.files import (
    explaining,
    publish,
    read_csv,
    reading,
    remove_orphans,
    sealed,
    temporary,
    write_json,
    writing,
)

_MOST_LOST = 1000  # indexes that may lack before another


class FeatureStore:
    """The features of one fingerprint under `cache_dir`, read at random by content hash.

    `description` is whatever the features depend on; `streams` × `dim` is a frame's shape.
    Opening reads the indexes alone. A shard without its file, or whose index is damaged,
    is in `damaged` and counts as empty, so that its videos lack.
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
        """What the only writer holds."""
        return self.directory / ".lock"

    def recover(self) -> None:
        """Remove what killed writers left behind the last index; empty damaged shards.

        The caller holds the lock. What another writer added meanwhile is taken in first.
        """
        self._read_new_indexes()
        for number in self.damaged:
            say(
                f"warning: shard {number} of {self.directory}, or its index, was lost or is "
                "damaged; its videos are extracted again when a data set has them"
            )
            self._empty(number)
        self.damaged = []
        remove_orphans(self.directory)
        for shard in shard_files(self.directory):
            if int(shard.name[-5:]) >= len(self.lengths):
                say(f"{shard.name} has no index, so it is removed: it is not whole")
                shard.unlink()

    def add(self, videos: Iterable[Extracted], engine: str) -> None:
        """Append videos. The caller holds the lock."""
        with self.appending(engine) as append:
            for item in videos:
                append(item)

    @contextmanager
    def appending(self, engine: str) -> Iterator[Callable[[Extracted], None]]:
        """Yield a function that appends a video; the caller holds the lock.

        A shard is whole on the disk, its index after it, or not there at all. When the
        block ends, by an interrupt too, the last one is closed with what it has. Raises
        `VdError` when the disk is full; the shards before stay.
        """
        shard: ShardWriter | None = None

        def append(item: Extracted) -> None:
            nonlocal shard
            shard = shard or self.new_shard(temporary(self._shard(len(self.lengths))))
            shard.add(item, engine)
            if shard.full:
                done, shard = shard, None
                self._finish(done)

        try:
            yield append
        finally:
            if shard is not None:
                self._finish(shard)

    def new_shard(self, path: Path) -> ShardWriter:
        """A shard to be written into `path`, anywhere, and then given to `adopt`."""
        return ShardWriter(path, self._format)

    def adopt(self, shard: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in a finished shard of the same file system. The caller holds the lock."""
        number = len(self.lengths)
        size = shard.stat().st_size
        with explaining(self._shard(number)):
            publish(shard, self._shard(number))
        write_index(
            self._index(number), [sealed({**row, "shard_bytes": size}) for row in rows]
        )
        self._read_new_indexes()

    def shard_rows(self, number: int) -> list[tuple[StoredVideo, dict[str, str]]]:
        """The videos of a shard that no later row replaces, and their rows as written."""
        before = sum(self.lengths[:number])
        rows = [(stored_video(r, before), r) for r in read_csv(self._index(number))]
        return [(made, r) for made, r in rows if self.rows.get(made.id) == made]

    def read_records(self, number: int, stored: StoredVideo) -> list[bytes] | None:
        """A video's records as they were written; None when they are damaged."""
        first = stored.first - sum(self.lengths[:number])
        records = read_records(self._shard(number), first, stored.records)
        if records is None or checksum(records) != stored.sha256:
            return None
        for place, record in enumerate(records):
            part, view = divmod(place, stored.views)
            found, features_FxSD = self._format.parse(record)
            if found != (stored.id, view, part):
                return None
            if len(features_FxSD) != stored.part_frames(part):
                return None
        return records

    def is_counted(self, number: int) -> bool:
        """Whether a shard's file has as many records as its index says."""
        return count_records(self._shard(number)) == self.lengths[number]

    def replace(
        self, number: int, good: Sequence[tuple[StoredVideo, dict[str, str]]]
    ) -> None:
        """Empty a damaged shard, after its good videos are in a new one; lock held."""
        moved = self.new_shard(temporary(self._shard(len(self.lengths))))
        for stored, row in good:
            moved.copy(row, self.read_records(number, stored) or [])
        self._finish(moved)
        self._empty(number)
        self.rows, self.lengths = {}, []
        self._read_new_indexes()

    def read(
        self,
        video_id: str,
        view: int,
        frames_L: Int[np.ndarray, " L"] | None = None,
        out: Float16[np.ndarray, "L SD"] | None = None,
    ) -> Float16[np.ndarray, "F SD"]:
        """Features of one view of a stored video, streams side by side.

        All its frames, or those of `frames_L`, put into `out` where it is given; only the
        parts between them are read. Raises `IndexError` for a frame past the end.
        """
        if (stored := self.rows.get(video_id)) is None:
            raise VdError(
                f"{self.directory} is damaged or lacks the video with the hash "
                f"{video_id:.12}; vd extract makes its features."
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
        # "wrap": into `out` as it is, where "raise" goes by way of a copy
        return features_FxSD.take(places_L, axis=0, out=out, mode="wrap")

    def _read_part(
        self, stored: StoredVideo, view: int, part: int
    ) -> Float16[np.ndarray, "F SD"]:
        """One record, checked to be the one that the index means."""
        with self._explaining_damage():
            record = self._source[stored.first + part * stored.views + view]
            found, features_FxSD = self._format.parse(record)
        expected = (stored.id, view, part), stored.part_frames(part)
        if (found, len(features_FxSD)) != expected:
            raise VdError(
                f"{self.directory} is damaged (its index names another record); vd "
                "extract --verify finds the damaged videos and extracts them again."
            )
        return features_FxSD

    def write_metadata(self) -> None:
        """Write what tells of the directory, unless it is as it should be.

        The two JSON files by which TFDS opens it, and what the features depend on.
        """
        if self.lengths:
            described = self.directory.parent / "fingerprint.json"
            write_json(described, self.description)
            write_metadata(self.directory, self._format, self.lengths)

    def open(self) -> None:
        """Open the shards, before several threads read: not each by itself."""
        with self._explaining_damage():
            self._source  # noqa: B018  # a cached property

    @contextmanager
    def _explaining_damage(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise VdError(
                f"{self.directory} is damaged ({reason}); vd extract --verify finds the "
                "damaged videos and extracts them again."
            ) from error

    @cached_property
    def _source(self) -> Any:
        """The TFDS data source over all shards, of records as they were written."""
        self.write_metadata()
        builder = tfds.builder_from_directory(self.directory)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(SPLIT, deserialize_method=raw)

    def _shard(self, number: int) -> Path:
        return shard_file(self.directory, number)

    def _index(self, number: int) -> Path:
        return self.directory / f"index-{number:05d}.csv"

    def _empty(self, number: int) -> None:
        """Leave a shard no videos, nor records. The caller holds the lock."""
        with writing(self._shard(number)) as path:
            self.new_shard(path).close()
        write_index(self._index(number), [])

    def _finish(self, shard: ShardWriter) -> None:
        """Take in a shard, unless an error came in the midst of a video."""
        try:
            shard.close()
            if shard.whole and shard.rows:
                self.adopt(shard.path, shard.rows)
        finally:
            shard.path.unlink(missing_ok=True)

    def _read_new_indexes(self) -> None:
        """Take in the shards beyond those known, up to the last that has an index."""
        numbers = [
            int(p.stem[-5:]) for p in self.directory.glob(f"index-{'[0-9]' * 5}.csv")
        ]
        if max(numbers, default=0) >= len(numbers) + _MOST_LOST:
            raise VdError(
                f"{self._index(max(numbers))} is no index of this store, which has "
                f"{len(numbers) - 1} others; remove that file."
            )
        for number in range(len(self.lengths), max(numbers, default=-1) + 1):
            self._read_index(self._index(number))
            self.__dict__.pop("_source", None)

    def _read_index(self, path: Path) -> None:
        """Take in the rows of one shard; a later row of a video replaces the former."""
        number, before, length = len(self.lengths), sum(self.lengths), 0
        rows = {}
        try:
            with reading(path):
                size = os.stat(self._shard(number)).st_size
                content = path.read_bytes()
        except FileNotFoundError:
            size, content = 0, b""
        try:
            if not content.endswith(b"\n"):
                raise ValueError("it was lost or cut")
            for row in read_csv(path):
                stored = stored_video(row, before)
                if stored.first != before + length:
                    raise ValueError("its records do not follow one another")
                rows[stored.id] = stored
                length += stored.records
                if int(row.get("shard_bytes", size)) != size:  # older indexes lack it
                    raise ValueError("its shard has another size")
        except (OSError, VdError, KeyError, ValueError, TypeError):
            self.damaged.append(number)
            rows, length = {}, 0
        self.rows |= rows
        self.lengths.append(length)


def fingerprint(description: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything the features depend on."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
