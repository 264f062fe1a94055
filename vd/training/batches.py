"""Training batches: order, clips and draws as a function of (seed, step) alone."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Float16, Float32, Int

from vd.config import TrainingConfig
from vd.features.sampling import clip_generator, scoring_windows, training_frames
from vd.features.store import FeatureStore
from vd.videos.manifest import Video

_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
_MEMORY_SHARE = 1 / 6  # of a set; a run has three, so half of the memory at most


class Batch(NamedTuple):
    """A global batch on the host."""

    features_BxTxD: Float16[np.ndarray, "B T D"]
    mask_BxT: Float32[np.ndarray, "B T"]
    labels_B: Float32[np.ndarray, " B"]
    index_B: Int[
        np.ndarray, " B"
    ]  # index in the global batch, for the draws on devices


class FeatureSet:
    """The features of some videos: in memory when they fit, else read at random."""

    def __init__(self, videos: Sequence[Video], store: FeatureStore) -> None:
        self.videos, self.store = list(videos), store
        self.labels_N = np.array([video.label for video in videos], np.float32)
        rows = [store.rows[video.id] for video in videos]
        self.frames_N = np.array([row.frames for row in rows], np.int64)
        self.views = min(row.views for row in rows)
        self.dim = store.streams * store.dim
        self._offset_N = (
            np.cumsum(self.views * self.frames_N) - self.views * self.frames_N
        )
        self._memory = self._load()

    def __len__(self) -> int:
        return len(self.videos)

    def part(self, videos: Sequence[Video]) -> "FeatureSet":
        """Some of the videos, over the same memory."""
        places = {video.id: index for index, video in enumerate(self.videos)}
        chosen = [places[video.id] for video in videos]
        made = copy.copy(self)
        made.videos = list(videos)
        made.labels_N = np.array([video.label for video in videos], np.float32)
        made.frames_N, made._offset_N = self.frames_N[chosen], self._offset_N[chosen]
        return made

    def read(self, index: int, view: int) -> Float16[np.ndarray, "F D"]:
        """Features of one view of one video."""
        if self._memory is None:
            return self.store.read(self.videos[index].id, view)
        start = self._start(index, view)
        return self._memory[start : start + self.frames_N[index]]

    def gather(
        self,
        index_B: Sequence[int],
        view_B: Sequence[int],
        frames_BxT: Int[np.ndarray, "B T"],
    ) -> Float16[np.ndarray, "B T D"]:
        """The named frames of the named views."""
        if self._memory is None:
            pairs = zip(index_B, view_B, frames_BxT, strict=True)
            return np.stack(
                [
                    self.store.read(self.videos[i].id, v, frames)
                    for i, v, frames in pairs
                ]
            )
        start_B = [
            self._start(i, view) for i, view in zip(index_B, view_B, strict=True)
        ]
        return self._memory[np.array(start_B)[:, None] + frames_BxT]

    def _start(self, index: int, view: int) -> int:
        """Row of a view's first frame in `_memory`."""
        return int(self._offset_N[index] + view * self.frames_N[index])

    def _load(self) -> Float16[np.ndarray, "R D"] | None:
        """Every frame of every view in one array, when it takes its share of memory."""
        rows = int(self.views * self.frames_N.sum())
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if rows * self.dim * np.float16().itemsize > memory_bytes * _MEMORY_SHARE:
            return None
        memory = np.empty((rows, self.dim), np.float16)
        for index, video in enumerate(self.videos):
            for view in range(self.views):
                start = self._start(index, view)
                memory[start : start + self.frames_N[index]] = self.store.read(
                    video.id, view
                )
        return memory


def training_batches(
    data: FeatureSet,
    config: TrainingConfig,
    clip_frames: int,
    batch_size: int,
    first_step: int,
    rows: range | None = None,
) -> Iterator[Batch]:
    """Batches of the steps from `first_step` to the run's last, made ahead by Grain.

    With `rows` only these of each global batch are made: those of one process. Each epoch
    is a new order of the videos; what does not fill its last batch is left out and comes in
    another epoch. A step's batch depends on (seed, step) alone.
    """
    per_epoch = len(data) // batch_size
    order = (
        grain.MapDataset.range(len(data))
        .seed(config.seed)
        .shuffle()
        .repeat(config.epochs)
    )

    def make(step: int) -> Batch:
        epoch, number = divmod(int(step), per_epoch)
        begin = epoch * len(data) + number * batch_size
        chosen = {row: int(order[begin + row]) for row in rows or range(batch_size)}
        return _batch(data, config, clip_frames, int(step), chosen)

    steps = grain.MapDataset.range(first_step, config.epochs * per_epoch).map(make)
    yield from steps.to_iter_dataset(_READ)


def _batch(
    data: FeatureSet,
    config: TrainingConfig,
    clip_frames: int,
    step: int,
    chosen: Mapping[int, int],
) -> Batch:
    """One batch: for each clip a view and frames, drawn before anything is read.

    `chosen` are the videos by their index in the global batch.
    """
    views = []
    frames_BxT = np.zeros((len(chosen), clip_frames), np.int64)
    mask_BxT = np.zeros((len(chosen), clip_frames), np.float32)
    for place, (row, index) in enumerate(chosen.items()):
        view, frames = 0, None
        stored = int(data.frames_N[index])
        if config.augmentation:
            generator = clip_generator(config.seed, step, row)
            drawn = int(generator.integers(data.views))
            view = drawn if config.spatial_augmentation else 0
            frames = training_frames(
                stored, clip_frames, config.temporal_jitter, generator
            )
        else:
            windows = list(scoring_windows(stored, clip_frames))
            frames = windows[len(windows) // 2]
        views.append(view)
        frames_BxT[place, : len(frames)] = frames
        mask_BxT[place, : len(frames)] = 1.0
    videos = list(chosen.values())
    return Batch(
        data.gather(videos, views, frames_BxT),
        mask_BxT,
        data.labels_N[videos],
        np.array(list(chosen)),
    )
