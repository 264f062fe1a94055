"""Prediction: what `vd predict` says of each file, of short and of long ones."""

import io
import json
import shutil

import numpy as np
import pytest

from tests.broken import noisy_frames, remux, render, render_paused, zeroed
from tests.command_line import vd
from vd.config import DecodeConfig, EventConfig
from vd.evaluation.restore import restore
from vd.features.extract import video_stretches
from vd.files import read_csv, read_json, write_json
from vd.models.scoring import score
from vd.predict.predictor import Predictor

KEYS = (
    "version path probability label outcome reason frames duration peak peak_time events "
    "gaps"
).split()


def predict(run_dir, *arguments, code=0, cwd="."):
    """The JSON lines of `vd predict`, and what it printed for people."""
    done = vd("predict", *arguments, "--checkpoint-dir", run_dir, code=code, cwd=cwd)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_file_cut_short_is_predicted_and_called_partial(trained, tmp_path):
    whole = render(
        tmp_path / "whole.mp4", noisy_frames(50), b_frames=2, movflags="faststart"
    )
    content = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(0.65 * len(content))])
    (tmp_path / "text.mp4").write_text("no video")
    render_paused(tmp_path / "paused.mkv")
    names = ["./whole.mp4", "cut.mp4", "text.mp4", "paused.mkv"]
    rows, printed = predict(trained[0] / "run", *names, code=1, cwd=tmp_path)
    assert [row["path"] for row in rows] == names
    assert [row["outcome"] for row in rows] == [
        "used",
        "partial",
        "quarantined",
        "used",
    ]
    assert [row["reason"] for row in rows] == ["", "truncated", "not-a-video", ""]
    assert rows[0]["frames"] == 50
    assert 25 <= rows[1]["frames"] <= 40
    assert rows[0]["duration"] == pytest.approx(2.0)
    assert [len(row["gaps"]) for row in rows] == [0, 0, 0, 1]
    assert rows[3]["gaps"][0] == pytest.approx([1.0, 60.0])
    assert rows[3]["duration"] == pytest.approx(2.0)
    assert all(0 < row["probability"] < 1 for row in (*rows[:2], rows[3]))
    assert rows[2]["probability"] is rows[2]["label"] is None
    assert (
        f"cut.mp4 is partial (truncated): predicted from the {rows[1]['frames']} frames"
        in printed
    )
    assert "text.mp4 could not be predicted: not-a-video" in printed
    assert "whole.mp4" not in printed


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Ten seconds, of which a clip of 32 frames is four."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return render(path, noisy_frames(250), b_frames=2)


def test_a_long_file_has_the_number_of_evaluation_and_a_curve_over_time(trained, long):
    run = trained[0] / "run"
    events = EventConfig(window_seconds=2.0, stride_seconds=0.5)
    predictor = Predictor(run, events=events)
    (prediction,) = predictor.predict([long])
    restored = restore(run)
    stretches = list(
        video_stretches([long], predictor._backbone, predictor._engine, DecodeConfig())
    )
    features_FxD = np.concatenate([s.features_FxSD for s in stretches])
    seconds_F = np.concatenate([s.seconds_F for s in stretches])
    assert len(features_FxD) == 80
    (logit,) = score(restored.head, restored.params, [[features_FxD]])
    assert prediction.probability == float(restored.calibration.probability(logit))
    middles = np.arange(1, 9.1, 0.5)
    np.testing.assert_allclose(prediction.timeline.seconds_W, middles)
    inside = (seconds_F >= 3.0) & (seconds_F < 5.0)
    (logit,) = score(restored.head, restored.params, [[features_FxD[inside]]])
    by_hand = restored.calibration.probability(logit)
    assert prediction.timeline.probability_W[6] == by_hand
    peak = prediction.timeline.probability_W.max()
    assert (prediction.peak, prediction.peak in prediction.timeline.probability_W) == (
        peak,
        True,
    )


def test_a_long_file_is_violent_if_and_only_if_it_has_an_event(trained, long):
    run, options = trained[0] / "run", ["--window-seconds", 2, "--stride-seconds", 0.5]
    ((calm,), _) = predict(run, long, *options, "--threshold", 1)
    assert list(calm) == KEYS
    assert (calm["label"], calm["events"]) == ("nonviolent", [])
    ((violent,), _) = predict(run, long, *options, "--threshold", 0)
    assert violent["label"] == "violent"
    (event,) = violent["events"]
    assert (event["id"], event["start"], event["end"]) == (1, 0.75, 9.25)
    assert event["alarm_time"] == 2.0
    assert event["peak"] == violent["peak"] == calm["peak"]
    assert event["peak_time"] == violent["peak_time"]
    assert violent["probability"] == calm["probability"]
    cut = ["--max-event-seconds", 4, "--threshold", 0]
    (row,), _ = predict(run, long, *options, *cut)
    times = [(event["start"], event["end"]) for event in row["events"]]
    assert times == [(0.75, 4.75), (4.75, 8.75), (8.75, 9.25)]


def test_a_part_of_a_file_is_predicted_at_the_times_of_the_file(trained, long):
    run, options = trained[0] / "run", ["--window-seconds", 1, "--threshold", 0]
    part = ["--start-time", "0:04", "--duration", 3]
    (row,), _ = predict(run, long, *options, *part)
    (event,) = row["events"]
    assert event["start"] == pytest.approx(4.0 + 0.5 - 0.125)
    assert event["end"] == pytest.approx(7.0 - 0.5 + 0.125, abs=0.13)
    assert row["duration"] == pytest.approx(3.0, abs=1e-3)
    assert row["outcome"] == "used"


def test_windows_and_events_of_a_part_do_not_depend_on_how_it_is_reached(
    trained, tmp_path
):
    sought = render(tmp_path / "a.mp4", noisy_frames(500), b_frames=2)
    decoded = remux(sought, tmp_path / "a.ts")
    events = EventConfig(window_seconds=1.0, threshold=0.0)
    predictor = Predictor(trained[0] / "run", events=events)
    a, b = predictor.predict([sought, decoded], between=(9.3, 15.0))
    assert a.outcome.frames < b.outcome.frames
    np.testing.assert_array_equal(a.timeline, b.timeline)
    assert (a.probability, a.events, a.gaps) == (b.probability, b.events, b.gaps)
    assert len(a.timeline.seconds_W) == 19


def test_a_part_behind_the_end_is_said_to_be(trained, long):
    (row,), printed = predict(trained[0] / "run", long, "--start-time", 20, code=1)
    assert (row["probability"], row["reason"]) == (None, "starts-after-end")
    assert (row["frames"], row["duration"]) == (0, 0.0)
    assert "long.mp4 could not be predicted: starts-after-end" in printed


def test_no_event_spans_a_gap(trained, tmp_path):
    path = render_paused(tmp_path / "paused.mkv")
    (row,), _ = predict(trained[0] / "run", path, "--threshold", 0)
    before, after = row["events"]
    assert before["end"] <= 1.0
    assert after["start"] >= 61.0


def test_less_than_half_of_a_file_is_predicted_and_its_gap_is_marked(
    trained, long, tmp_path
):
    path = tmp_path / "hole.mp4"
    content = render(
        tmp_path / "a.mp4", noisy_frames(250), movflags="faststart"
    ).read_bytes()
    path.write_bytes(zeroed(content, 0.2, 0.8))
    (row,), printed = predict(trained[0] / "run", path, "--threshold", 0)
    assert (row["outcome"], row["reason"]) == ("partial", "corrupt-frames")
    assert 0 < row["probability"] < 1
    assert row["frames"] < 125
    (start, length), *_ = row["gaps"]
    assert start == pytest.approx(2.0, abs=0.7)
    assert length == pytest.approx(6.0, abs=1.2)
    for event in row["events"]:
        assert event["end"] <= start + 0.2 or event["start"] >= start + length - 0.2
    assert "hole.mp4 is partial (corrupt-frames)" in printed


def test_sources_are_lists_patterns_and_standard_input(
    trained, clips, tmp_path, monkeypatch
):
    run = trained[0] / "run"
    names = sorted(str(p) for p in (clips / "test").glob("*/*2.mp4"))
    assert len(names) == 2
    rows, _ = predict(run, "test/**/*2.mp4", cwd=clips)
    assert [str(clips / row["path"]) for row in rows] == names
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names)))
    listed, _ = predict(run, "-")
    assert [row["path"] for row in listed] == names
    assert [r["probability"] for r in listed] == [r["probability"] for r in rows]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.mp4", "rtsp://me:secret@h/1"], "a file and rtsp://me:***@h/1 a stream"),
        (["rtsp://me:secret@h/1", "--out", "out"], "--out are for files"),
        (["a.mp4", "--end-time", "x"], "--end-time 'x' is no time"),
        (["missing.mp4"], "missing.mp4 does not exist"),
        ([".", "--window-seconds", "5"], "is longer than what the detector sees"),
        ([".", "--stride-seconds", "9"], "longer than a window of"),
        ([".", "--end-threshold", "1"], "is above the threshold"),
        ([".", "--max-event-seconds", "0.1"], "is less than"),
        ([".", "--clips"], "--clips needs a folder to write into"),
        ([], "was given no file"),
    ],
)
def test_wrong_flags_are_one_sentence(trained, clips, arguments, reason):
    options = "--checkpoint-dir", trained[0] / "run"
    done = vd("predict", *arguments, *options, code=2, cwd=clips)
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert "secret" not in line
    assert done.stdout == ""


def test_the_threshold_of_windows_is_what_few_calm_clips_reach(trained, clips):
    run = trained[0] / "run"
    fitted = read_json(run / "calibration.json", "")
    rows = [row for row in read_csv(run / "ledger.csv") if row["split"] == "val"]
    calm = [row for row in rows if row["label"] == "nonviolent"]
    seconds = sum(float(row["duration"]) for row in calm)
    assert fitted["calm_hours"] == pytest.approx(seconds / 3600)
    assert fitted["event_threshold_source"].startswith("validation, what 5 % of the")
    predictor = Predictor(run)
    peaks = [
        prediction.peak
        for prediction in predictor.predict([clips / row["path"] for row in calm])
    ]
    assert max(peaks) < fitted["event_threshold"]  # 5 % of eight are none
    assert predictor.plan.rules.threshold == fitted["event_threshold"]
    assert predictor.plan.rules.end_threshold == pytest.approx(
        fitted["event_threshold"] * 2 / 3
    )
    train = [float(r["duration"]) for r in read_csv(run / "ledger.csv")
             if r["split"] == "train" and r["outcome"] != "quarantined"]  # fmt: skip
    assert predictor.plan.window_seconds == min(round(8 * np.median(train)), 32) / 8


def test_an_older_run_takes_the_threshold_of_clips_and_says_so(trained, tmp_path):
    run = shutil.copytree(trained[0] / "run", tmp_path / "run")
    fitted = read_json(run / "calibration.json", "")
    old = {k: fitted[k] for k in ("temperature", "threshold", "threshold_source")}
    write_json(run / "calibration.json", old)
    plan, now = Predictor(run).plan, Predictor(trained[0] / "run").plan
    assert plan.rules.threshold == fitted["threshold"]
    assert plan.window_seconds == now.window_seconds
    assert plan.threshold_source.startswith("the threshold of whole clips (validation")
