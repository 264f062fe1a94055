"""Training batches: functions of (seed, step), from memory, from devices, from files."""

import grain
import jax
import numpy as np
import pytest

from tests.fabricated import make_set, make_videos
from vd.config import TrainingConfig
from vd.training.batches import Batch, training_batches
from vd.training.feature_set import fits


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    data = make_set(tmp_path, make_videos(10))
    config = TrainingConfig(epochs=3, batch_size=4, seed=3)
    first = list(training_batches(data, config, 8, 4, 0))
    assert len(first) == 3 * (10 // 4)
    later = list(training_batches(data, config, 8, 4, 4))
    for a, b in zip(first[4:], later, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    other = next(training_batches(data, TrainingConfig(epochs=3, seed=4), 8, 4, 0))
    assert not np.array_equal(other.features_BxTxD, first[0].features_BxTxD)


def test_an_epoch_takes_each_video_at_most_once(tmp_path):
    data = make_set(tmp_path, make_videos(12), frames=lambda i: 3 + i, signal=0)
    config = TrainingConfig(epochs=2, augmentation=False)
    batches = list(training_batches(data, config, 32, 4, 0))
    for epoch in (batches[:3], batches[3:]):
        lengths = np.concatenate([batch.mask_BxT[0].sum(axis=1) for batch in epoch])
        assert sorted(lengths) == list(range(3, 15))  # each length is one video


def test_reading_at_random_gives_what_memory_gives(tmp_path):
    data = make_set(tmp_path, make_videos(9))
    config = TrainingConfig(epochs=1)
    from_memory = list(training_batches(data, config, 8, 4, 0))
    data._memory = None  # as when the set does not fit
    from_store = list(training_batches(data, config, 8, 4, 0))
    for a, b in zip(from_memory, from_store, strict=True):
        np.testing.assert_array_equal(a.features_BxTxD, b.features_BxTxD)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cpu_takes_a_batch_where_it_lies(in_memory, tmp_path):
    data = make_set(tmp_path, make_videos(9))
    if not in_memory:
        data._memory = None
    for batch in training_batches(data, TrainingConfig(epochs=2), 8, 4, 0):
        host = batch.features_BxTxD
        taken = jax.device_put(host, jax.devices("cpu")[0])
        assert taken.unsafe_buffer_pointer() == host.ctypes.data
        np.testing.assert_array_equal(taken, host)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_frame_past_the_end_of_its_video_is_refused(in_memory, tmp_path):
    data = make_set(tmp_path, make_videos(3), frames=lambda i: 6)
    if not in_memory:
        data._memory = None
    first = np.zeros((1, 1), np.int64)
    assert data.gather(first, first, np.array([[[5]]])).shape[:3] == (1, 1, 1)
    with pytest.raises(IndexError):
        data.gather(first, first, np.array([[[6]]]))


def test_an_epochs_order_is_grains(tmp_path):
    data = make_set(tmp_path, make_videos(10), signal=0)
    config = TrainingConfig(epochs=3, augmentation=False, seed=3)
    order = grain.MapDataset.range(10).seed(3).shuffle().repeat(3)
    made = training_batches(data, config, 32, 4, 0)
    for step, batch in enumerate(made):
        begin = step // 2 * 10 + step % 2 * 4
        for row in range(4):
            video = data.read(order[begin + row], 0)
            features = batch.features_BxTxD[0, row, : len(video)]
            np.testing.assert_array_equal(features, video)


def test_a_cpu_holds_no_second_copy():
    assert not fits(1, jax.devices("cpu")[:1])
    assert not fits(0, [])


def test_spatial_augmentation_draws_both_views(tmp_path):
    data = make_set(tmp_path, make_videos(2), frames=lambda i: 6)
    config = TrainingConfig(epochs=40, temporal_jitter=0.0)
    seen = {
        batch.features_BxTxD[0, row].tobytes()
        for batch in training_batches(data, config, 6, 2, 0)
        for row in range(2)
    }
    expected = {data.read(i, view).tobytes() for i in range(2) for view in range(2)}
    assert seen == expected
    assert isinstance(next(training_batches(data, config, 6, 2, 0)), Batch)
