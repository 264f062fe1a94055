"""The clock: each kind of wrong stamp by hand, and whatever the stamps, times rise."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vd.data.clock import Clock


def run(stamps, base=Fraction(1, 100), rate=25.0):
    """The times of frames 0, 1, …, the clock, and which frames come after a gap."""
    held: list[int] = []
    clock: Clock[int] = Clock(base, rate, hold=held.append)
    timed = []
    for index, stamp in enumerate(stamps):
        timed += clock.add(index, stamp)
        assert len(timed) > index - 32  # at most so many wait
        waiting = set(range(index + 1)) - {frame for frame, _, _ in timed}
        assert waiting <= set(held)
    timed += clock.finish()
    assert [frame for frame, _, _ in timed] == list(range(len(stamps)))
    clock.after_gap = [frame for frame, _, gap in timed if gap]
    return [seconds for _, seconds, _ in timed], clock


def steady(count, start=0, step=4):
    return list(range(start, start + step * count, step))


def seconds(count, start=0.0, step=0.04):
    return pytest.approx([start + step * index for index in range(count)], abs=1e-9)


@pytest.mark.parametrize("start", [0, 360_000, -40])
def test_steady_stamps_are_their_distance_from_the_first(start):
    times, clock = run(steady(50, start))
    assert times == [4 * index / 100 for index in range(50)]
    assert (clock.span, clock.duration, clock.gaps) == (2.0, 2.0, [])
    assert clock.has_stamps


def test_frames_without_stamps_go_by_the_rate():
    times, clock = run([None] * 50, rate=10.0)
    assert times == seconds(50, step=0.1)
    assert clock.duration == pytest.approx(5.0)
    assert not clock.has_stamps


def test_a_missing_stamp_is_one_usual_step_after_the_last_frame():
    stamps = steady(50, step=10)
    stamps[0] = stamps[20] = stamps[21] = None
    times, _ = run(stamps)
    # the first step is not known yet: 1 / 25 s
    assert times == pytest.approx([0.0, *(0.1 * i + 0.04 for i in range(49))])


@pytest.mark.parametrize("wrong", [[4000], [4000, 4004, 0], [4000] * 20])
@pytest.mark.parametrize("first", [1, 20])
def test_stamps_that_jump_ahead_and_return_are_wrong(wrong, first):
    stamps = steady(100)
    stamps[first : first + len(wrong)] = wrong
    times, clock = run(stamps)
    assert times == seconds(100)
    assert clock.gaps == []


@pytest.mark.parametrize("length", [31, 60])
def test_stamps_that_stay_ahead_leave_a_gap(length):
    times, clock = run(steady(50) + steady(length, 1000))
    assert times[:50] == seconds(50)
    assert times[50:] == seconds(length, 10.0)
    assert clock.gaps == [pytest.approx((2.0, 8.0))]
    assert clock.after_gap == [50]
    assert clock.span == pytest.approx(10 + 0.04 * length)
    assert clock.duration == pytest.approx(2 + 0.04 * length)


def test_a_step_is_a_gap_when_longer_than_ten_usual_ones_and_half_a_second():
    def gaps(step, jump):
        stamps = steady(50, step=step)
        return len(run(stamps + steady(50, stamps[-1] + jump, step))[1].gaps)

    assert [gaps(4, jump) for jump in (50, 51)] == [0, 1]
    assert [gaps(10, jump) for jump in (100, 101)] == [0, 1]


@pytest.mark.parametrize("start", [0, 100, 188])
def test_stamps_that_restart_go_on_one_usual_step_later(start):
    times, clock = run(steady(50, 0) + steady(50, start) + steady(50, start))
    assert times == seconds(150)
    assert clock.duration == pytest.approx(6.0)


@pytest.mark.parametrize(
    "stamps",
    [
        [*steady(20), 0, *steady(30, 84)],  # one falls back
        [*steady(20), 72, *steady(30, 84)],  # one comes twice, a frame later
        [*steady(50), 9000, *steady(50)],  # one is wrong just before a restart
    ],
)
def test_a_stamp_that_is_wrong_moves_no_other(stamps):
    times, clock = run(stamps)
    assert times == seconds(len(stamps))
    assert clock.gaps == []


def test_two_frames_in_one_tick_move_no_other():
    # as screen recorders write: two frames in one tick, then caught up
    for back in (4, 8, 12):
        stamps = [stamp - back * (stamp % 40 in (20, 24)) for stamp in steady(200)]
        times, clock = run(stamps)
        assert all(a < b for a, b in pairwise(times))
        assert times == pytest.approx([4 * i / 100 for i in range(200)], abs=0.1)
        assert clock.duration == pytest.approx(8.0, abs=0.03)
    # a frame more in a tick here and there, as jitter in whole milliseconds gives
    times, clock = run(sorted([*steady(200), *steady(20, 0, 40)]))
    assert clock.duration == pytest.approx(8.0, abs=0.03)


def test_pictures_far_from_each_other_have_no_gaps():
    for count in (2, 3, 5, 100):
        times, clock = run(steady(count, step=300))
        assert times == seconds(count, step=3.0)
        assert (clock.gaps, clock.duration) == ([], 3.0 * count)


def test_a_slower_rate_is_no_row_of_gaps():
    times, clock = run(steady(50) + steady(50, 296, 100))
    assert clock.gaps == []
    assert times[50:] == seconds(50, 2.96, 1.0)


def test_a_last_stamp_far_ahead_is_a_gap():
    times, clock = run([*steady(50), 10**8])
    assert times[50] == 10**6
    assert clock.duration == pytest.approx(2.04)


wild = st.lists(st.none() | st.integers(-(2**62), 2**62))
near = st.lists(st.none() | st.integers(-300, 300))


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.builds(steady, st.integers(0, 60)) | wild | near, max_size=6),
    base=st.sampled_from([Fraction(1, 25), Fraction(1, 90000), Fraction(1001, 30000)]),
    rate=st.sampled_from([0.1, 25.0, 30000 / 1001, 1000.0]),
)
def test_whatever_the_stamps_times_rise_and_no_frame_is_lost(parts, base, rate):
    stamps = [stamp for part in parts for stamp in part]
    times, clock = run(stamps, base, rate)
    assert times[:1] in ([], [0.0])
    assert all(a < b for a, b in pairwise(times))
    assert 0 <= clock.duration <= clock.span * (1 + 1e-9)
    ends = [0.0, *(start for start, _ in clock.gaps)]
    assert ends == sorted(ends)
    assert all(length > 0 for _, length in clock.gaps)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    start=st.integers(-(10**6), 10**6),
)
def test_stamps_without_a_jump_are_exact(steps, start):
    stamps = [start]
    for step in steps:
        stamps.append(stamps[-1] + step)
    times, clock = run(stamps)
    assert times == [(stamp - start) / 100 for stamp in stamps]
    assert clock.gaps == []
