"""Windows over frames as they come: by time, none across a gap, blocks as in evaluation."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vd.features.sampling import SlidingWindows, scoring_windows
from vd.predict.windows import Cutter, with_lost

EIGHTHS = np.arange(40) / 8


def slide(seconds, gaps_before=(), length=2.0, stride=0.25, most=32):
    """Windows, each with the numbers of its first frame and of the one after its last."""
    sliding, windows = SlidingWindows(length, stride, most), []
    for number, time in enumerate(seconds):
        complete = sliding.push(time, number in gaps_before)
        windows += [(w, number - w.frames, number) for w in complete]
    last = len(seconds)
    return windows + [(w, last - w.frames, last) for w in sliding.finish()]


def test_windows_go_by_time():
    windows = slide(EIGHTHS)
    assert [w.middle for w, _, _ in windows] == [1 + i / 4 for i in range(13)]
    assert {(w.end - w.start, w.after_gap) for w, _, _ in windows} == {(2.0, False)}
    assert [frames for _, *frames in windows] == [
        [2 * i, 2 * i + 16] for i in range(13)
    ]


def test_no_window_spans_a_gap_and_a_short_piece_is_one():
    late = np.concatenate([EIGHTHS[:8], EIGHTHS[8:] + 60])
    windows = slide(late, gaps_before=[8])
    assert [w.middle for w, _, _ in windows[:3]] == [0.5, 62.0, 62.25]
    assert [w.after_gap for w, _, _ in windows[:3]] == [False, True, False]
    assert [frames for _, *frames in windows[:3]] == [[0, 8], [8, 24], [10, 26]]


def test_a_window_of_a_slow_video_has_a_frame_or_is_none():
    windows = slide(3.0 * np.arange(4))
    assert {w.frames for w, _, _ in windows} == {1}
    assert windows[0][0].middle == 1.0
    assert windows[-1][0].middle < 9.2
    ((window, _, _),) = slide([0.0])
    assert (window.middle, window.frames) == (1 / 16, 1)


def test_a_window_holds_no_more_than_the_newest_frames():
    windows = slide(EIGHTHS, length=4.0, most=10)
    assert {w.frames for w, _, _ in windows} == {10}
    assert windows[0][1:] == (22, 32)


def offline(seconds, gaps_before, length, stride):
    """(start, end, first frame, frame after the last), from all frames at once."""
    windows, cuts = [], [0, *sorted(gaps_before), len(seconds)]
    for first, end in pairwise(cuts):
        begin, span = seconds[first], seconds[end - 1] - seconds[first] + 1 / 8
        own = min(length, span)
        for start in begin + np.arange(0, span - own + 1e-6, stride):
            inside = np.searchsorted(seconds[first:end], [start, start + own])
            if inside[0] < inside[1]:
                windows.append((start, start + own, *(first + inside)))
    return windows


@given(
    st.lists(st.sampled_from([1, 1, 1, 2, 3, 20]), min_size=1, max_size=60),
    st.sets(st.integers(1, 59), max_size=3),
    st.sampled_from([0.5, 1.0, 2.25]),
    st.sampled_from([0.125, 0.25, 0.5, 1.0]),
)
def test_windows_as_they_come_are_those_of_the_whole_video(steps, gaps, length, stride):
    seconds = np.cumsum(steps) / 8
    gaps = {gap for gap in gaps if gap < len(seconds)}
    windows = slide(seconds, gaps, length, stride, most=100)
    made = [(w.start, w.end, first, end) for w, first, end in windows]
    assert made == offline(seconds, gaps, length, stride)


@given(st.integers(1, 90), st.integers(1, 12))
def test_blocks_are_the_windows_of_evaluation_and_few_frames_are_kept(stored, most):
    rows_FxD = np.arange(2 * stored, dtype=np.float16).reshape(stored, 2)
    cutter, blocks = Cutter(most, 0.5, 0.25), []
    for number, row_D in enumerate(rows_FxD):
        blocks += [c for c in cutter.push(row_D, number / 8, False) if c.window is None]
        assert len(cutter._rows) <= most
    blocks += [c for c in cutter.finish() if c.window is None]
    expected = [rows_FxD[window] for window in scoring_windows(stored, most)]
    assert len(blocks) == len(expected)
    for block, window in zip(blocks, expected, strict=True):
        np.testing.assert_array_equal(block.features_LxD, window)


def test_a_window_s_features_are_those_of_its_frames():
    rows_FxD = np.arange(40, dtype=np.float16)[:, None]
    cutter, cuts = Cutter(32, 2.0, 0.25), []
    for number, row_D in enumerate(rows_FxD):
        cuts += cutter.push(row_D, number / 8, False)
    windows = [cut for cut in (*cuts, *cutter.finish()) if cut.window]
    for cut in windows:
        first = round(8 * cut.window.start)
        assert cut.features_LxD[:, 0].tolist() == list(range(first, first + 16))


def test_lost_frames_are_added_to_the_gaps_of_the_clock():
    gaps, lost = [(1.0, 60.0)], [(0.9, 60.1), (0.2, 0.7), (70.0, 2.0)]
    assert with_lost(gaps, lost) == [(0.2, 0.7), (1.0, 60.0), (70.0, 2.0)]
