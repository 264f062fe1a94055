"""Training batches: functions of (seed, step), from memory, from devices, from files."""

import os
import shutil

import jax
import numpy as np
import pytest

from tests.fabricated import make_set, make_videos, open_store
from vd.config import TrainingConfig
from vd.errors import VdError
from vd.training.batches import training_batches
from vd.training.feature_set import TRAINED_SHARE, FeatureSet, usable_memory


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


def test_reading_at_random_gives_what_memory_gives(tmp_path):
    data = make_set(tmp_path, make_videos(9))
    config = TrainingConfig(epochs=1)
    from_memory = list(training_batches(data, config, 8, 4, 0))
    at_random = FeatureSet(data.videos, data.store, share=0.0)
    from_store = list(training_batches(at_random, config, 8, 4, 0))
    for a, b in zip(from_memory, from_store, strict=True):
        np.testing.assert_array_equal(a.features_BxTxD, b.features_BxTxD)


def test_a_set_to_train_on_may_take_more_memory_than_one_to_score(
    tmp_path, monkeypatch
):
    made = make_set(tmp_path, make_videos(9), frames=lambda i: 8)
    taken = 9 * 2 * 8 * 12 * np.float16().itemsize  # videos, views, frames, values
    machine = {"SC_PHYS_PAGES": 6 * taken, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", machine.__getitem__)
    trained = FeatureSet(made.videos, open_store(tmp_path), share=TRAINED_SHARE)
    scored = FeatureSet(made.videos, open_store(tmp_path))
    shutil.rmtree(made.store.directory)
    np.testing.assert_array_equal(trained.read(4, 1), made.read(4, 1))
    with pytest.raises(VdError):  # it was to be read from there
        scored.read(4, 1)


@pytest.mark.parametrize(
    ("line", "limits", "expected"),
    [
        ("0::/", {"memory.max": "7000"}, 7000),  # a container
        (
            "0::/job/step",
            {"job/memory.max": "5000", "job/step/memory.max": "max"},
            5000,
        ),
        ("0::/job", {"job/memory.max": "9" * 20}, 10_000),
        (None, {}, 10_000),
    ],
)
def test_memory_is_what_a_container_or_job_may_take(
    line, limits, expected, tmp_path, monkeypatch
):
    machine = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(os, "sysconf", machine.__getitem__)
    if line is not None:
        (tmp_path / "cgroup").write_text(line + "\n")
    for name, limit in limits.items():
        file = tmp_path / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit + "\n")
    assert usable_memory(tmp_path / "cgroup", tmp_path / "mounted") == expected


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_cpu_takes_a_batch_where_it_lies(share, tmp_path):
    made = make_set(tmp_path, make_videos(9))
    data = FeatureSet(made.videos, made.store, jax.devices("cpu"), share)
    for batch in training_batches(data, TrainingConfig(epochs=2), 8, 4, 0):
        host = batch.features_BxTxD
        taken = jax.device_put(host, jax.devices("cpu")[0])
        assert taken.unsafe_buffer_pointer() == host.ctypes.data
        np.testing.assert_array_equal(taken, host)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_frame_past_the_end_of_its_video_is_refused(share, tmp_path):
    made = make_set(tmp_path, make_videos(3), frames=lambda i: 6)
    data = FeatureSet(made.videos, made.store, share=share)
    first = np.zeros((1, 1), np.int64)
    assert data.gather(first, first, np.array([[[5]]])).shape[:3] == (1, 1, 1)
    with pytest.raises(IndexError):
        data.gather(first, first, np.array([[[6]]]))


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_videos_come_in_order_with_their_views(share, tmp_path):
    made = make_set(tmp_path, make_videos(9))
    data = FeatureSet(made.videos, made.store, share=share)
    for views in (1, 2):
        listed = list(data.in_order(views))
        assert [len(video) for video in listed] == [views] * 9
        for index, video in enumerate(listed):
            for view, features in enumerate(video):
                np.testing.assert_array_equal(features, made.read(index, view))
    assert list(made.part([]).in_order()) == []


def orders(data, seed, epochs):
    """The order of each epoch's videos, by their lengths, which all differ."""
    config = TrainingConfig(epochs=epochs, augmentation=False, seed=seed)
    lengths = [
        batch.mask_BxT[0].sum(axis=1).astype(int)
        for batch in training_batches(data, config, 32, 4, 0)
    ]
    return np.concatenate(lengths).reshape(epochs, -1).tolist()


def test_each_epoch_is_a_new_permutation_drawn_from_the_seed(tmp_path):
    data = make_set(tmp_path, make_videos(12), frames=lambda i: 3 + i)
    of_seed = {seed: orders(data, seed, epochs=4) for seed in (3, 4)}
    drawn = [tuple(order) for epochs in of_seed.values() for order in epochs]
    assert all(sorted(order) == list(range(3, 15)) for order in drawn)
    assert len(set(drawn)) == 8
    assert tuple(range(3, 15)) not in drawn
    assert orders(data, seed=3, epochs=4) == of_seed[3]


def test_a_video_that_fills_no_batch_comes_in_another_epoch(tmp_path):
    data = make_set(tmp_path, make_videos(11), frames=lambda i: 3 + i)
    epochs = orders(data, seed=3, epochs=8)
    assert {len(set(order)) for order in epochs} == {8}
    assert set().union(*epochs) == set(range(3, 14))


@pytest.mark.parametrize("spatial", [True, False])
def test_spatial_augmentation_draws_both_views(tmp_path, spatial):
    data = make_set(tmp_path, make_videos(2), frames=lambda i: 6)
    config = TrainingConfig(
        epochs=40, temporal_jitter=0.0, spatial_augmentation=spatial
    )
    seen = {
        batch.features_BxTxD[0, row].tobytes()
        for batch in training_batches(data, config, 6, 2, 0)
        for row in range(2)
    }
    views = range(2) if spatial else [0]
    assert seen == {data.read(i, view).tobytes() for i in range(2) for view in views}
