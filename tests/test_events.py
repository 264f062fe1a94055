"""Events in time: matching, recall, false alarms and delay, against values by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.event_scores import (
    EventCounts,
    count_events,
    event_scores,
    match_events,
    temporal_iou,
)


def spans(*pairs):
    return np.array(pairs, np.float64).reshape(-1, 2)


def test_overlap_by_hand():
    iou = temporal_iou(spans((0, 4), (4, 6)), spans((2, 6), (6, 8), (0, 4)))
    np.testing.assert_allclose(iou, [[2 / 6, 0, 1], [2 / 4, 0, 0]])
    assert temporal_iou(spans(), spans((0, 1))).shape == (0, 1)


def test_the_highest_takes_the_true_event_of_greatest_overlap():
    true = spans((10, 20), (30, 40))
    predicted = spans((12, 34), (11, 21), (35, 36), (50, 60))
    # the first overlaps both (8 of 24 s, 4 of 28 s), the second the first alone
    assert match_events(predicted, np.array([0.9, 0.8, 0.7, 0.6]), true).tolist() == [
        0, -1, 1, -1,
    ]  # fmt: skip
    assert match_events(predicted, np.array([0.7, 0.8, 0.6, 0.9]), true).tolist() == [
        1, 0, -1, -1,
    ]  # fmt: skip
    scores = np.array([0.7, 0.8, 0.6, 0.9])
    assert match_events(predicted, scores, true, 0.5).tolist() == [-1, 0, -1, -1]


def test_figures_by_hand():
    true = spans((10, 20), (40, 50))
    matched = match_events(
        spans((12, 22), (70, 75), (80, 85)), np.array([0.9, 0.8, 0.9]), true
    )
    one = count_events(matched, np.array([13.0, 72, 82]), true)
    assert one == EventCounts(true=2, found=1, false_alarms=2, delays=(3.0,))
    true = spans((5, 9), (20, 21))
    matched = match_events(spans((4, 9)), np.array([0.5]), true)
    other = count_events(matched, np.array([4.5]), true)
    assert other == EventCounts(2, 1, 0, (-0.5,))
    scores = event_scores([one, other], hours=0.5)
    assert scores == (0.5, 4.0, 1.25)


def test_what_is_not_defined_is_none():
    nothing = count_events(np.zeros(0, int), np.zeros(0), spans())
    assert nothing == EventCounts(0, 0, 0, ())
    assert event_scores([nothing], 0.0) == (None, None, None)
    assert event_scores([EventCounts(3, 0, 0, ())], 1.0) == (0.0, 0.0, None)


times = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=8
).map(lambda pairs: spans(*((start, start + length) for start, length in pairs)))  # fmt: skip


@given(times, times, st.sampled_from([0.0, 0.3, 0.5]), st.randoms())
def test_matching_is_one_to_one_and_leaves_no_pair_that_could_match(
    predicted, true, least, random
):
    score = np.array([random.random() for _ in predicted])
    matched = match_events(predicted, score, true, least)
    iou = temporal_iou(predicted, true)
    taken = matched[matched >= 0].tolist()
    assert len(set(taken)) == len(taken)
    for index, best in enumerate(matched):
        free = [t for t in range(len(true)) if t not in taken]
        if best >= 0:
            assert iou[index, best] >= max(least, 1e-9)
        else:
            assert all(iou[index, t] < least or iou[index, t] == 0 for t in free)
    count = count_events(matched, np.zeros(len(score)), true)
    assert count.found + count.false_alarms == len(predicted)
    later = match_events(predicted + 7, score, true + 7, least)
    assert later.tolist() == matched.tolist()


def test_the_truth_itself_has_no_fault():
    true = spans((0, 1), (2, 4), (4, 9))
    matched = match_events(true, np.ones(3), true, least_iou=1.0)
    counts = count_events(matched, true[:, 0], true)
    assert event_scores([counts], 1.0) == pytest.approx((1.0, 0.0, 0.0))
