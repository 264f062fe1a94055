"""Prediction: what `vd predict` says of each file, and windows by time."""

import json

import numpy as np
import pytest

from tests.broken import noisy_frames, render, render_paused
from tests.command_line import vd
from vd.predict.predictor import sliding_windows


def predict(run_dir, *files, code=0, cwd=None):
    """The JSON lines of `vd predict`, and what it printed for people."""
    done = vd("predict", *files, "--checkpoint-dir", run_dir, code=code, cwd=cwd)
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


def test_windows_go_by_time():
    seconds_F = np.arange(40) / 8
    middle_W, windows = sliding_windows(seconds_F, (), 2.0, 0.25)
    np.testing.assert_allclose(middle_W, 1 + np.arange(13) / 4)
    assert windows == [slice(2 * i, 2 * i + 16) for i in range(13)]
    late = np.concatenate([seconds_F[:8], seconds_F[8:] + 60])
    middle_W, windows = sliding_windows(late, [(1.0, 60.0)], 2.0, 0.25)
    assert windows[0] == slice(0, 8)  # shorter than a window
    np.testing.assert_allclose(middle_W[:2], [0.5, 62])
    assert [(w.start, w.stop) for w in windows[1:3]] == [(8, 24), (10, 26)]


def test_a_window_of_a_slow_video_has_a_frame_or_is_none():
    middle_W, windows = sliding_windows(3.0 * np.arange(4), (), 2.0, 0.25)
    assert {window.stop - window.start for window in windows} == {1}
    assert middle_W[0] == 1.0
    assert middle_W[-1] < 9.2
    middle_W, windows = sliding_windows(np.zeros(1), (), 2.0, 0.25)
    assert (middle_W.tolist(), windows) == ([1 / 16], [slice(0, 1)])
