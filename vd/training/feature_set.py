"""Features of a set of videos: in memory and on the GPUs when they fit, else read at random."""

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float16, Float64, Int

from vd.console import track
from vd.data.clock import FRAMES_PER_SECOND
from vd.data.manifest import Video
from vd.features.sampling import TimedFeatures
from vd.features.store import FeatureStore

# of the usable memory; a set to train on and two to score take half of it at most
TRAINED_SHARE, _SCORED_SHARE = 1 / 3, 1 / 12
_DEVICE_SHARE = 1 / 2  # of what JAX may take
_NEXT_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)  # whole videos
_ALIGNED = 64  # bytes; arrays that begin elsewhere are copied by XLA


class FeatureSet:
    """The features of some videos, in memory if they take at most `share` of it.

    If the `devices` to train on have dedicated memory that holds them, each keeps a copy
    and gathers its batches there.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        store: FeatureStore,
        devices: Sequence[jax.Device] = (),
        share: float = _SCORED_SHARE,
    ) -> None:
        self.videos, self.store = list(videos), store
        self.labels_N = np.array([video.label for video in videos], np.float32)
        rows = [store.rows[video.id] for video in videos]
        self.frames_N = np.array([row.frames for row in rows], np.int64)
        self.views = min(row.views for row in rows)
        self.dim = store.streams * store.dim
        rows_N = self.views * self.frames_N
        self._offset_N = np.cumsum(rows_N) - rows_N
        self._memory: Float16[np.ndarray, "R D"] | None = None
        self._take: Callable[[Any], Any] | None = None
        size = int(rows_N.sum()) * self.dim * np.float16().itemsize
        if size > usable_memory() * share:
            store.open()
            return
        self._memory = np.empty((int(rows_N.sum()), self.dim), np.float16)
        with track("features into memory", len(self), "videos") as ticker:
            for index, video in enumerate(self.videos):
                for view in range(self.views):
                    self.read(index, view)[:] = store.read(video.id, view)
                ticker.advance()
        if fits(size, devices):
            self._take = take_on(devices, self._memory)

    def __len__(self) -> int:
        return len(self.videos)

    def part(self, videos: Sequence[Video]) -> "FeatureSet":
        """A subset of the videos, over the same memory."""
        places = {video.id: index for index, video in enumerate(self.videos)}
        chosen = [places[video.id] for video in videos]
        subset = copy.copy(self)
        subset.videos = list(videos)
        subset.labels_N = np.array([video.label for video in videos], np.float32)
        subset.frames_N = self.frames_N[chosen]
        subset._offset_N = self._offset_N[chosen]
        return subset

    def read(self, index: int, view: int) -> Float16[np.ndarray, "F D"]:
        """Features of one view of one video."""
        if self._memory is None:
            return self.store.read(self.videos[index].id, view)
        start = self._offset_N[index] + view * self.frames_N[index]
        return self._memory[start : start + self.frames_N[index]]

    def in_order(self, views: int = 1) -> Iterator[list[Float16[np.ndarray, "F D"]]]:
        """Features of the first `views` views of each video; the next video is read ahead."""

        def read(index: int) -> list[Float16[np.ndarray, "F D"]]:
            return [self.read(int(index), view) for view in range(views)]

        if self._memory is not None:
            return map(read, range(len(self)))
        return iter(
            grain.MapDataset.range(len(self)).map(read).to_iter_dataset(_NEXT_AHEAD)
        )

    @property
    def seconds_N(self) -> Float64[np.ndarray, " N"]:
        """Length of each video without its gaps; by its frames where it is unknown."""
        known_N = [self.store.rows[v.id].outcome.duration for v in self.videos]
        return np.where(known_N, known_N, self.frames_N / FRAMES_PER_SECOND)

    def in_time(self) -> Iterator[TimedFeatures]:
        """The plain view of each video, in order, with the times of its frames."""
        for video, views in zip(self.videos, self.in_order(), strict=True):
            seconds_F = self.store.seconds(video.id)
            gaps = self.store.rows[video.id].outcome.gaps
            middles = [start + length / 2 for start, length in gaps]
            after_gap_F = np.zeros(len(seconds_F), bool)
            places = np.searchsorted(seconds_F, middles)
            after_gap_F[places[places < len(seconds_F)]] = True
            yield TimedFeatures(views[0], seconds_F, after_gap_F)

    def gather(
        self,
        index_NxB: Int[np.ndarray, "N B"],
        view_NxB: Int[np.ndarray, "N B"],
        frames_NxBxT: Int[np.ndarray, "N B T"],
    ) -> Float16[np.ndarray | jax.Array, "N B T D"]:
        """The given frames of the given views for N devices, on them if they keep a copy.

        Raises `IndexError` for a frame past the end of its video.
        """
        if self._memory is None:
            features_NxBxTxD = host_array((*frames_NxBxT.shape, self.dim))
            for at in np.ndindex(index_NxB.shape):
                video, view = self.videos[index_NxB[at]], int(view_NxB[at])
                self.store.read(video.id, view, frames_NxBxT[at], features_NxBxTxD[at])
            return features_NxBxTxD
        if np.any(frames_NxBxT >= self.frames_N[index_NxB][..., None]):
            raise IndexError("a frame past the end of its video")
        start_NxB = self._offset_N[index_NxB] + view_NxB * self.frames_N[index_NxB]
        rows_NxBxT = start_NxB[..., None] + frames_NxBxT
        if self._take is not None:
            return self._take(rows_NxBxT)
        features_NxBxTxD = host_array((*rows_NxBxT.shape, self.dim))
        # "wrap": into `out` as it is, where "raise" goes by way of a copy
        return self._memory.take(rows_NxBxT, axis=0, out=features_NxBxTxD, mode="wrap")


def usable_memory(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that this process may use: the machine's memory, or a control group's limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if groups.exists():
        own = Path(groups.read_text().rpartition("::/")[2].strip())
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # none, or "max"
                limits.append(int((mounted / group / "memory.max").read_text()))
    return min(limits)


def host_array(shape: Sequence[int]) -> Float16[np.ndarray, "..."]:
    """An uninitialised array that JAX uses on a CPU without copying it, nor parts of it."""
    size = math.prod(shape) * np.float16().itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    begin = -raw.ctypes.data % _ALIGNED
    return raw[begin : begin + size].view(np.float16).reshape(shape)


def fits(
    size: int, devices: Sequence[jax.Device], share: float = _DEVICE_SHARE
) -> bool:
    """True if every device has its own memory, and `size` bytes fit into `share` of it."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return bool(limits) and size <= share * min(limits)


def take_on(
    devices: Sequence[jax.Device], memory_RxD: Float16[np.ndarray, "R D"]
) -> Callable[[Int[np.ndarray, "N B T"]], Float16[jax.Array, "N B T D"]]:
    """A function that gathers rows on the devices; each gets a copy of the memory."""
    everywhere = NamedSharding(Mesh(np.array(devices), "devices"), PartitionSpec())
    held_RxD = jax.device_put(memory_RxD, everywhere)  # else pmap would, at every call
    take = jax.pmap(
        lambda memory, rows: memory.at[rows].get(mode="promise_in_bounds"),
        in_axes=(None, 0),
        devices=list(devices),
    )
    return lambda rows_NxBxT: take(held_RxD, rows_NxBxT.astype(np.uint32))
