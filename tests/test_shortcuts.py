"""Shortcuts: what predicts the label is found, chance is not, groups are kept whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vd.audit.shortcuts import (
    PICTURE_MODEL,
    fewest_groups,
    one_class_groups,
    permuted,
    shortcut,
)
from vd.data.manifest import Video


def test_groups_of_one_class_by_hand():
    labels = {"a": [0] * 10, "b": [1, 1], "c": [0, 1], "d": [1], "": [0]}
    videos = [
        Video("", "", label, group=group)
        for group, members in labels.items()
        for label in members
    ]
    rows = one_class_groups(videos)
    assert [(row["group"], row["label"], row["clips"]) for row in rows] == [
        ("a", "nonviolent", 10),
        ("b", "violent", 2),
    ]
    by_name = {row["group"]: row["p"] for row in rows}
    assert by_name["a"] == pytest.approx(4 * 0.75**10)
    assert by_name["b"] == pytest.approx(4 * 0.25**2)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40)
)
def test_permuted_labels_are_the_same_labels_in_other_places(rows):
    labels_N, groups_N = np.array(rows).T
    result = permuted(labels_N, groups_N, np.random.default_rng(0))
    assert sorted(result) == sorted(labels_N)


def test_permuted_labels_of_equal_groups_stay_together():
    labels_N = np.repeat([0, 0, 0, 1, 1], 4)
    groups_N = np.repeat(np.arange(5), 4)
    result = permuted(labels_N, groups_N, np.random.default_rng(1)).reshape(5, 4)
    assert (result == result[:, :1]).all()


def test_what_predicts_the_label_is_found_and_noise_is_not():
    draw = np.random.default_rng(0)
    labels_N = np.arange(80) % 2
    groups_N = np.arange(80)
    noise_NxD = draw.normal(size=(80, 4))
    signal_NxD = noise_NxD + 2 * labels_N[:, None]
    found = shortcut(PICTURE_MODEL, signal_NxD, labels_N, groups_N, permutations=19)
    assert found["auc"] > 0.95
    assert found["p"] == 0.05
    assert found["chance_95"] < 0.75
    lost = shortcut(PICTURE_MODEL, noise_NxD, labels_N, groups_N, permutations=19)
    assert lost["p"] > 0.05
    one_place = np.where(labels_N == 1, 0, groups_N)
    assert fewest_groups(labels_N, groups_N) == 40
    assert fewest_groups(labels_N, one_place) == 1


@pytest.mark.slow
def test_a_place_that_predicts_the_label_is_not_learnt_from_itself():
    """Features that name the group and nothing else: p is uniform, one in ten below 0.1."""
    groups_N = np.repeat(np.arange(20), 10)
    labels_N = np.repeat(np.arange(20) % 2, 10)
    low = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        features_NxD = draw.normal(size=(20, 3))[groups_N]
        features_NxD += 0.01 * draw.normal(size=(200, 3))
        found = shortcut(
            PICTURE_MODEL, features_NxD, labels_N, groups_N, permutations=9
        )
        low += found["p"] <= 0.1
    assert low <= 3
