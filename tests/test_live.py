"""Streams that a program pushes: the events of a file with the same frames, and no gap spanned."""

import av
import numpy as np
import pytest

from tests.broken import noisy_frames, render, render_paused
from tests.decoding import record
from vd.config import EventConfig
from vd.errors import VdError
from vd.predict.live import Pair, Pipeline
from vd.predict.predictor import Predictor

KEYS = "type id source start end peak peak_time mean alarm_time".split()


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return render(path, noisy_frames(250), b_frames=2)


def rgb_frames(path):
    """The frames of a file as RGB, and their seconds from the first."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [
        (f.to_ndarray(format="rgb24"), float(f.time - frames[0].time)) for f in frames
    ]


def push_all(stream, frames, offset=0.0):
    return [
        r for frame, seconds in frames for r in stream.push(frame, offset + seconds)
    ]


def test_the_images_of_a_file_give_its_windows(trained, long):
    windows = EventConfig(window_seconds=2.0, stride_seconds=0.5)
    predictor = Predictor(trained[0] / "run", events=windows)
    (prediction,) = predictor.predict([long])
    sink, _ = record(long, predictor.frames)
    found = []

    def noted(windows):
        found.extend(predictor._probabilities(windows).tolist())
        return np.array(found[-len(windows) :])

    pipeline, source = Pipeline(predictor._engine, noted), predictor.live_source("s")
    for images, seconds in zip(sink.images, sink.seconds, strict=True):
        pipeline.run([(source, Pair(images, seconds))])
    expected = prediction.timeline.probability_W
    assert len(expected) - len(found) in (0, 1)  # the last one waits for a frame
    np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=1e-7)


def test_pushed_frames_give_the_events_of_the_file(always, long):
    (prediction,) = always.predict([long])
    (event,) = prediction.events
    stream = always.stream("door")
    frames = rgb_frames(long)
    first = push_all(stream, frames[:54])  # the later frame of 2.0 s, too
    assert [r["type"] for r in first] == ["new"]
    assert list(first[0]) == KEYS
    assert (first[0]["source"], first[0]["id"], first[0]["end"]) == ("door", 1, None)
    assert (first[0]["start"], first[0]["alarm_time"]) == (0.75, 2.0)
    rest = push_all(stream, frames[54:]) + stream.finish()
    assert [r["type"] for r in rest] == ["update"] * (len(rest) - 1) + ["end"]
    assert (rest[-1]["start"], rest[-1]["end"]) == (event.start, event.end)
    assert rest[-1]["peak"] == pytest.approx(event.peak, abs=0.01)
    assert rest[-1]["mean"] == pytest.approx(event.mean, abs=0.01)


def test_no_event_spans_a_gap_and_times_are_those_that_were_pushed(always, tmp_path):
    frames, began = rgb_frames(render_paused(tmp_path / "paused.mkv")), 1.7e9
    stream = always.stream()
    records = push_all(stream, frames, began) + stream.finish()
    ends = [r for r in records if r["type"] == "end"]
    assert [r["type"] for r in records].count("new") == len(ends) == 2
    before, after = ends
    assert 0 < before["start"] - began < before["end"] - began <= 1.0
    assert 61.0 <= after["start"] - began < after["end"] - began <= 62.0


def test_a_slow_stream_has_events(always):
    stream = always.stream()
    frames = [(frame, float(s)) for s, frame in enumerate(noisy_frames(12))]
    assert [r["type"] for r in push_all(stream, frames)][:1] == ["new"]


def test_wrong_frames_and_times_are_one_sentence(always):
    stream, frame = always.stream(), np.zeros((48, 64, 3), np.uint8)
    for wrong in (frame[..., 0], frame.astype(np.float32), frame[:0]):
        with pytest.raises(VdError, match="give an RGB frame of uint8"):
            stream.push(wrong, 0.0)
    assert stream.push(frame, 5.0) == []
    for seconds in (5.0, 4.0, float("nan")):
        with pytest.raises(VdError, match=r"after 5.0 s; give the time of each frame"):
            stream.push(frame, seconds)
    assert stream.push(frame[:, ::-1], 5.1) == []  # goes on; any memory layout
