"""Watching a run: progress, TensorBoard's curves, warnings, NaN, a trace."""

import io
import itertools
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.fabricated import train_on_numbers
from vd.config import TrainingConfig
from vd.console import track, track_media
from vd.errors import VdError
from vd.training import loop
from vd.training.log import EarlyStopping, Watch, read_metrics

ROW = {
    "epoch": 2, "step": 20, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.75,
    "val_recall_violent": 0.5, "val_recall_nonviolent": None, "learning_rate": 0.001,
    "videos_per_second": 40.0, "seconds": 3.0, "val_collapsed": False,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for what a test adds."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def shown(clock, rows):
    """The third epoch, ten steps at 2 s a step."""
    config = TrainingConfig(epochs=3, warmup_epochs=1)
    with track("training", 10, "steps") as ticker:
        watch = Watch(config, np.zeros(30), rows, ticker)
        for _ in range(10):
            clock[0] += 2.0
            watch.step(loss=0.125)


def test_steps_are_shown_in_plain_lines_with_loss_and_recalls(clock, capsys):
    shown(clock, [ROW] * 2)
    (line,) = capsys.readouterr().err.splitlines()  # the second comes after 30 s
    assert line == (
        "training: 5/10 steps, 0.5 steps/s, 10 s left at most, epoch 3/3, loss 0.1250, "
        "recall violent 50 % non-violent –"
    )


def test_a_terminal_has_one_line_that_is_gone_at_the_end(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown(clock, [])
    text = terminal.getvalue()
    assert "epoch 1/3, loss 0.1250" in text
    assert text.endswith("\x1b[2K")


def test_lines_of_data_go_to_standard_output_beside_a_bar(clock, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with track_media("predicting") as ticker:
        ticker.expect(3700.0)
        assert terminal.getvalue() == ""  # before the first number
        clock[0] += 10.0
        ticker.reach(0, 30.0)
        ticker.make_room()
        print("{}")
    assert capsys.readouterr().out == "{}\n"
    assert "0:30 of 1:01:40 of video 3.0 times real time" in terminal.getvalue()


def test_prediction_is_shown_in_times_real_time(clock, capsys):
    with track_media("predicting") as ticker:
        ticker.expect(120.0)
        clock[0] += 10.0
        ticker.reach(0, 30.0)
        clock[0] += 20.0
        ticker.reach(1, 40.0)  # the first file had 30 s
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "predicting: 0:30 of 2:00 of video, 3.0 times real time, 30 s left"
    )
    assert second == (
        "predicting: 1:10 of 2:00 of video, 2.3 times real time, 21 s left"
    )


def test_the_time_left_is_unknown_where_no_header_says_a_length(clock, capsys):
    with track_media("predicting") as ticker:
        ticker.expect(0.0)
        clock[0] += 10.0
        ticker.reach(0, 30.0)
    assert capsys.readouterr().err.endswith("real time, time left unknown\n")


def test_short_epochs_share_a_line_and_the_last_one_has_its_own(clock, capsys):
    config = TrainingConfig(epochs=8)
    watch = Watch(config, np.zeros(80), [], None)
    for epoch in range(1, 9):
        clock[0] += 2.0
        watch.epoch(ROW | {"epoch": epoch}, EarlyStopping("val_loss", 9))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/8", "4/8", "7/8", "8/8"]


def test_a_collapse_is_said_when_it_begins(clock, capsys):
    config, collapsed = TrainingConfig(epochs=9), [False, True, True, False, True]
    warned = []
    watch = Watch(config, np.zeros(90), [], None)
    for epoch, value in enumerate(collapsed, start=1):
        row = ROW | {"epoch": epoch, "val_collapsed": value}
        watch.epoch(row, EarlyStopping("val_loss", 9))
        warned.append("CLASS COLLAPSE" in capsys.readouterr().err)
    assert warned == [False, True, False, False, True]


def events(folder):
    """The scalars in a run's TensorBoard files: {(tag, epoch): values}."""
    found = {}
    for path in (folder / "run").glob("events.out.tfevents.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
            at += 12 + length + 4
    return found


def test_tensorboard_has_every_curve_once_after_a_second_call_too(tmp_path):
    train_on_numbers(tmp_path, epochs=2)
    train_on_numbers(tmp_path, epochs=3)
    found = events(tmp_path)
    rows = read_metrics(tmp_path / "run")
    for row, name in itertools.product(rows, rows[0].keys() - {"epoch", "step"}):
        assert found.pop((name, row["epoch"])) == [pytest.approx(float(row[name]))]
    assert len(rows) == 3
    assert not found


def test_a_validation_loss_that_is_not_finite_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop.Validation, "metrics", lambda *_: {"val_loss": float("inf")}
    )
    with pytest.raises(VdError, match="val_loss is inf at step 4; start a run"):
        train_on_numbers(tmp_path, epochs=3)


def test_profile_writes_a_trace_of_ten_steps_and_says_where(tmp_path, capsys):
    train_on_numbers(tmp_path, epochs=4, profile=True)
    trace = tmp_path / "run" / "profile"
    assert f"the trace of 10 steps is in {trace}" in capsys.readouterr().err
    (made,) = trace.rglob("*.xplane.pb")
    assert made.stat().st_size > 0
    assert b"train" in made.read_bytes()
