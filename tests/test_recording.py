"""A recording of hand-made logits: its line, with every number and time."""

from pathlib import Path

import numpy as np
import pytest

from vd.data.decode import WHOLE
from vd.data.outcome import Outcome
from vd.features.extract import Stretch
from vd.metrics.calibration import Calibration
from vd.predict.hysteresis import EventRules
from vd.predict.recording import Recording
from vd.predict.windows import Cutter

HIGH = 1 / (1 + np.exp(-2))  # of the logit 2
CLIP = 32  # frames, of four seconds


def mean_of_frames(views):
    """A head whose logit is the mean of the frames, which are logits."""
    return np.array([float(window_LxD.mean()) for (window_LxD,) in views])


def predicted(
    logit_F, seconds_F, gaps=(), cuts=(), outcome="used", between=WHOLE, span=None
):
    """The line of a recording that comes in stretches which end at `cuts`."""
    fitted = Calibration(1.0, 0.45, "made up")
    cutter = Cutter(CLIP, length=1.0, stride=0.5)
    rules = EventRules(0.6, 0.4, 0.5, merge_seconds=1.0)
    recording = Recording(mean_of_frames, fitted, rules, cutter)
    after_gap_F = np.isin(seconds_F, [start + length for start, length in gaps])
    features_FxD = np.array(logit_F, np.float16)[:, None]
    for first, last in zip([0, *cuts], [*cuts, len(logit_F)], strict=True):
        part = slice(first, last)
        recording.take(
            Stretch(0, features_FxD[part], seconds_F[part], after_gap_F[part], None)
        )
    span = span or seconds_F[-1] + 1 / 8
    duration = span - sum(length for _, length in gaps)
    reason = "" if outcome == "used" else "truncated"
    ended = Outcome(outcome, reason, frames=99, duration=duration, span=span, gaps=gaps)
    return recording.finish(Path("a.mp4"), ended, between).to_dict()


@pytest.mark.parametrize("cuts", [(), (32,), (1, 40, 79, 80)])
def test_every_number_and_time_of_a_recording(cuts):
    """Violent from 4 to 6 s and from 20 to 21 s; nothing between 10 and 20 s."""
    logit_F = [-2.0] * 32 + [2.0] * 16 + [-2.0] * 32 + [2.0] * 8
    seconds_F = np.concatenate([np.arange(80) / 8, 20 + np.arange(8) / 8])
    line = predicted(logit_F, seconds_F, gaps=((10.0, 10.0),), cuts=cuts)
    # windows about 4 and 6 s are half violent: 0.5, which opens nothing and closes nothing
    first = {
        "id": 1, "start": 4.25, "end": 6.25, "peak": HIGH, "peak_time": 4.5,
        "mean": pytest.approx((3 * HIGH + 0.5) / 4), "alarm_time": 5.0,
    }  # fmt: skip
    second = {
        "id": 2, "start": 20.25, "end": 20.75, "peak": HIGH, "peak_time": 20.5,
        "mean": HIGH, "alarm_time": 21.0,
    }  # fmt: skip
    assert line == {
        "version": 1,
        "path": "a.mp4",
        # blocks of 32 frames: all calm, half violent, the last 32 a quarter violent
        "probability": pytest.approx(1 / (1 + np.exp((2 + 0 + 1) / 3))),
        "label": "violent",
        "outcome": "used",
        "reason": "",
        "frames": 99,
        "duration": 11.0,
        "peak": HIGH,
        "peak_time": 4.5,
        "events": [first, second],
        "gaps": [[10.0, 10.0]],
    }


def test_up_to_the_frames_of_a_clip_its_own_threshold_decides():
    seconds_F = np.arange(40) / 8
    mean = 1 / (1 + np.exp(0.1))  # 0.475: above the clip's threshold, no event
    for frames, label in ((32, "violent"), (33, "nonviolent")):
        line = predicted([-0.1] * frames, seconds_F[:frames])
        assert line["probability"] == pytest.approx(mean, abs=1e-4)
        assert (line["label"], line["events"]) == (label, [])


def test_less_than_half_of_a_file_is_partial_and_has_its_numbers():
    line = predicted([2.0] * 16, np.arange(16) / 8, outcome="quarantined")
    assert (line["outcome"], line["reason"]) == ("partial", "truncated")
    assert line["probability"] == HIGH


def test_a_part_has_its_own_length_and_gaps():
    seconds_F = np.concatenate([8 + np.arange(16) / 8, 20 + np.arange(8) / 8])
    gaps, logit_F = ((2.0, 3.0), (10.0, 10.0)), [-2.0] * 24
    line = predicted(logit_F, seconds_F, gaps=gaps, between=(8.0, 21.0))
    assert line["duration"] == 3.0
    assert line["gaps"] == [[10.0, 10.0]]


def test_no_time_is_after_the_end_of_a_clip_shorter_than_a_window():
    """Three frames of 40 ms, of which one is stored; a window of it is an eighth long."""
    line = predicted([2.0], np.array([0.0]), span=0.12)
    (event,) = line["events"]
    assert (event["start"], event["end"]) == (0.0, 0.12)
    assert (event["peak_time"], event["alarm_time"]) == (0.0625, 0.12)
    (event,) = predicted([2.0], np.array([0.0]), span=0.04)["events"]
    assert event["end"] == event["peak_time"] == event["alarm_time"] == 0.04
