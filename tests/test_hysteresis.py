"""Events from a curve: every line and time by hand, and against a plain offline form."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vd.predict.hysteresis import EventMachine, EventRules

STRIDE, WINDOW = 0.5, 2.0
#          0     1    2    3    4    5    6    7    8    9    10   11   12
CURVE = [0.2, 0.7, 0.9, 0.5, 0.3, 0.8, 0.3, 0.1, 0.1, 0.1, 0.7, 0.1, 0.5]


def rules(min_seconds=0.0, merge_seconds=0.0, max_seconds=100.0):
    return EventRules(0.6, 0.4, STRIDE, min_seconds, merge_seconds, max_seconds)


def run(curve, rules, gaps_before=()):
    """Messages, each with the number of the window at which it came."""
    machine, messages = EventMachine(rules), []
    for number, probability in enumerate(curve):
        middle = 1.0 + STRIDE * number
        if number in gaps_before:
            messages += [(number, *message) for message in machine.finish()]
        pushed = machine.push(middle, middle + WINDOW / 2, probability)
        messages += [(number, *message) for message in pushed]
    return messages + [(len(curve), *message) for message in machine.finish()]


def line(message):
    number, kind, event = message
    return (
        number, kind, event.id, event.start, event.end, event.peak, event.peak_time,
        round(event.mean, 6), event.alarm_time,
    )  # fmt: skip


def test_every_message_of_a_curve_by_hand():
    # middles 1, 1.5, …; windows of 2 s end 1 s later; values reach 0.25 s either way
    assert [line(message) for message in run(CURVE, rules())] == [
        (1, "new", 1, 1.25, None, 0.7, 1.5, 0.7, 2.5),
        (2, "update", 1, 1.25, None, 0.9, 2.0, 0.8, 2.5),
        (4, "end", 1, 1.25, 2.75, 0.9, 2.0, 0.7, 2.5),  # 0.5 is above the lower one
        (5, "new", 2, 3.25, None, 0.8, 3.5, 0.8, 4.5),
        (6, "end", 2, 3.25, 3.75, 0.8, 3.5, 0.8, 4.5),
        (10, "new", 3, 5.75, None, 0.7, 6.0, 0.7, 7.0),
        (11, "end", 3, 5.75, 6.25, 0.7, 6.0, 0.7, 7.0),
    ]


def test_events_that_are_near_merge_and_their_mean_is_of_all_windows():
    # the second begins 0.5 s after the end of the first, the third 2 s after
    assert [line(message) for message in run(CURVE, rules(merge_seconds=0.5))] == [
        (1, "new", 1, 1.25, None, 0.7, 1.5, 0.7, 2.5),
        (2, "update", 1, 1.25, None, 0.9, 2.0, 0.8, 2.5),
        (7, "end", 1, 1.25, 3.75, 0.9, 2.0, 0.64, 2.5),  # (0.7+0.9+0.5+0.3+0.8) / 5
        (10, "new", 2, 5.75, None, 0.7, 6.0, 0.7, 7.0),
        (12, "end", 2, 5.75, 6.25, 0.7, 6.0, 0.7, 7.0),
    ]
    (event,) = (m[2] for m in run(CURVE, rules(merge_seconds=2.0)) if m[1] == "end")
    assert (event.start, event.end) == (1.25, 6.25)


def test_an_event_is_new_when_it_has_reached_the_minimum_merged_or_not():
    messages = run(CURVE, rules(min_seconds=1.5))
    assert [line(message) for message in messages] == [
        (3, "new", 1, 1.25, None, 0.9, 2.0, 0.7, 3.5),
        (4, "end", 1, 1.25, 2.75, 0.9, 2.0, 0.7, 3.5),
    ]
    messages = run(CURVE, rules(min_seconds=2.5, merge_seconds=0.5))
    assert [line(message)[:5] for message in messages] == [
        (5, "new", 1, 1.25, None),
        (7, "end", 1, 1.25, 3.75),
    ]


def test_at_the_maximum_the_event_ends_and_a_new_one_begins():
    curve = [0.7, 0.5, 0.5, 0.5, 0.5, 0.1]
    messages = run(curve, rules(min_seconds=1.0, merge_seconds=5.0, max_seconds=1.0))
    assert [line(message)[:5] for message in messages] == [
        (1, "new", 1, 0.75, None),
        (2, "end", 1, 0.75, 1.75),
        (2, "new", 2, 1.75, None),
        (4, "end", 2, 1.75, 2.75),
        (4, "new", 3, 2.75, None),  # it goes on, so no minimum
        (6, "end", 3, 2.75, 3.25),
    ]


def test_no_event_spans_a_gap():
    messages = run([0.7, 0.7, 0.7], rules(merge_seconds=5.0), gaps_before=[2])
    assert [line(message)[:5] for message in messages] == [
        (0, "new", 1, 0.75, None),
        (2, "end", 1, 0.75, 1.75),
        (2, "new", 2, 1.75, None),
        (3, "end", 2, 1.75, 2.25),
    ]


def test_an_event_of_a_short_piece_is_no_longer_than_its_window():
    machine = EventMachine(rules())
    machine.push(0.1, 0.2, 0.9)
    ((_, event),) = machine.finish()
    assert (event.start, event.end) == (0.0, 0.2)


def offline(curve, rules, gaps_before):
    """(start, end, mean, announced at) of each event, from the whole curve at once."""
    runs = []  # of windows, first and last, cut at gaps
    for number, probability in enumerate(curve):
        after_gap = number in gaps_before
        goes_on = runs and runs[-1][1] == number - 1 and not after_gap
        if goes_on and probability >= rules.end_threshold:
            runs[-1][1] = number
        elif probability >= rules.threshold:
            runs.append([number, number])
    events = []  # first window, last window, whether it goes on from the one before
    for first, last in runs:
        near = longer = False
        if events:
            before = events[-1][1]
            cut = any(before < gap <= first for gap in gaps_before)
            near = STRIDE * (first - before - 1) <= rules.merge_seconds and not cut
            longer = STRIDE * (first - events[-1][0] + 1) > rules.max_seconds
        if near and not longer:
            events[-1][1] = first
        else:
            events.append([first, first, False])
        for number in range(first + 1, last + 1):
            if STRIDE * (number - events[-1][0] + 1) > rules.max_seconds:
                events.append([number, number, True])
            events[-1][1] = number
    least = int(np.ceil(rules.min_seconds / STRIDE)) or 1  # windows
    return [
        (
            1.0 + STRIDE * (first - 0.5),
            1.0 + STRIDE * (last + 0.5),
            pytest.approx(np.mean(curve[first : last + 1])),
        )
        for first, last, goes_on in events
        if goes_on or last - first + 1 >= least
    ]


@given(
    st.lists(st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.6, 0.9]), max_size=40),
    st.sampled_from([0.0, 0.5, 1.0, 1.7, 2.0]),
    st.sampled_from([0.0, 0.4, 0.5, 1.0, 2.5]),
    st.sampled_from([0.5, 1.0, 1.5, 3.2, 100.0]),
    st.sets(st.integers(1, 39), max_size=3),
)
def test_streaming_equals_a_plain_offline_form(curve, least, merge, most, gaps):
    some = rules(least, merge, most)
    messages = run(curve, some, gaps)
    ends = [event for _, kind, event in messages if kind == "end"]
    assert [(e.start, e.end, e.mean) for e in ends] == offline(curve, some, gaps)
    assert all(before.end <= after.start for before, after in pairwise(ends))
    # every event is announced once, before its end, and its messages agree
    for event in ends:
        own = [(number, kind, e) for number, kind, e in messages if e.id == event.id]
        assert [kind for _, kind, _ in own][:: len(own) - 1] == ["new", "end"]
        assert own[0][2].alarm_time == 1.0 + STRIDE * own[0][0] + WINDOW / 2
        peaks = [e.peak for _, _, e in own]
        assert peaks == sorted(peaks)
        inside = [
            p
            for number, p in enumerate(curve)
            if event.start < 1.0 + STRIDE * number < event.end
        ]
        assert event.peak == max(inside)
