"""Training batches: order, clips and draws are functions of (seed, step) alone."""

from collections.abc import Iterator

import grain
import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from vd.config import TrainingConfig
from vd.features.sampling import draw_clips, middle_clips, training_frames
from vd.training.feature_set import FeatureSet
from vd.training.step import Batch

_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def training_batches(
    data: FeatureSet,
    config: TrainingConfig,
    clip_frames: int,
    batch_size: int,
    first_step: int,
    devices: int = 1,
    rows: range | None = None,
) -> Iterator[Batch]:
    """Batches from `first_step` to the run's last step, made ahead by Grain.

    Each is the `rows` of the global batch (None: all), split over this process's `devices`.
    Every epoch has a new order of the videos; what fills no batch at its end is left out.
    """
    per_epoch = len(data) // batch_size
    row_B = np.array(rows or range(batch_size))

    def over_devices(array: np.ndarray) -> np.ndarray:
        return array.reshape(devices, -1, *array.shape[1:])

    def make(step: int) -> Batch:
        epoch, number = divmod(int(step), per_epoch)
        place_B = number * batch_size + row_B
        video_B = _order(config.seed, epoch, len(data), place_B)
        stored_B = data.frames_N[video_B]
        if config.augmentation:
            draws = draw_clips(
                config.seed, int(step), row_B, stored_B, clip_frames, data.views
            )
        else:
            draws = middle_clips(stored_B, clip_frames)
        view_B = draws.view_B * config.spatial_augmentation
        jitter = config.temporal_jitter
        frames_BxT, mask_BxT = training_frames(stored_B, clip_frames, jitter, draws)
        places = map(over_devices, (video_B, view_B, frames_BxT))
        rest = map(over_devices, (mask_BxT, data.labels_N[video_B], row_B))
        return Batch(data.gather(*places), *rest)

    steps = grain.MapDataset.range(first_step, config.epochs * per_epoch).map(make)
    yield from steps.to_iter_dataset(_READ)


def _order(
    seed: int, epoch: int, count: int, place_B: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """Which of `count` videos are at these places of an epoch's order.

    The order is that of `grain.MapDataset.range(count).seed(seed).shuffle().repeat()`, which
    itself takes twice as long as the rest of a batch.
    """
    key = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]) + epoch
    return np.array(
        [
            index_shuffle(place, max_index=count - 1, seed=key % 2**32, rounds=4)
            for place in place_B.tolist()
        ]
    )
