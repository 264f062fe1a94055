"""Prediction: what `vd predict` says of each file, and windows by time."""

import json

import pytest

from tests.broken import noisy_frames, render, render_paused
from tests.command_line import vd


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
