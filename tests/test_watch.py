"""Watching a run: the live line, TensorBoard's curves, warnings, NaN, a trace."""

import io
import itertools
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.fabricated import metrics_without_timing, train_on_numbers
from vd.config import TrainingConfig
from vd.console import live
from vd.errors import VdError
from vd.training import loop
from vd.training.log import Watch, overfits, read_metrics
from vd.training.validation import EarlyStopping

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
    """The third epoch, ten steps of four clips, at 2 s a step."""
    config = TrainingConfig(epochs=3, warmup_epochs=1)
    with live() as show:
        watch = Watch(config, 0.001 * np.arange(30), 10, 4, rows, show)
        for step in range(21, 31):
            clock[0] += 2.0
            watch.step(step, loss=0.125)


def test_a_long_epoch_is_told_of_in_plain_lines_every_ten_seconds(clock, capsys):
    shown(clock, [ROW])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # of 20 s
    for fact in (
        "epoch 3/3", "step 25/30", "loss 0.125", "recall violent 50 % non-violent –",
        "2 videos/s",
        # five steps of 2 s, and the validation: 3 s less the 10 × 4 / 40 of the steps
        "12 s left",
    ):  # fmt: skip
        assert fact in lines[0]
    assert re.search(r"lr 2\.4\d*e-02", lines[0])  # of the step before
    assert "step 30/30" in lines[1]


def test_a_terminal_has_one_live_line(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown(clock, [])
    text = terminal.getvalue()
    steps = re.findall(r"epoch 3/3  step (\d+)/30", text)
    assert set(steps) == {str(step) for step in range(22, 31)}  # the first may compile
    assert "recall violent – non-violent –" in text
    assert text.endswith("\x1b[2K")  # and is gone at the end


def curve(*pairs):
    return [{"train_loss": train, "val_loss": val} for train, val in pairs]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], False),
        (curve((9, 9), (8, 8), (7, 9), (6, 9), (5, 9)), True),
        (curve((9, 9), (8, 8), (7, 9), (6, 9)), False),  # two epochs only
        (curve((9, 9), (8, 8), (7, 9), (6, 8.7), (5, 9)), False),  # hardly worse
        (curve((9, 9), (8, 8), (7, 9), (8, 9), (5, 9)), False),  # not learnt either
        (curve((9, 9), (8, 8), (7, 9), (6, 9), (5, 7)), False),  # a new best
    ],
)
def test_overfitting_is_three_epochs_of_a_widening_gap(rows, expected):
    assert overfits(rows) == expected


def test_short_epochs_share_a_line_and_the_last_one_has_its_own(clock, capsys):
    config = TrainingConfig(epochs=8)
    watch = Watch(config, np.zeros(80), 10, 4, [], lambda words: None)
    for epoch in range(1, 9):
        clock[0] += 2.0
        watch.epoch(ROW | {"epoch": epoch}, EarlyStopping("val_loss", 9))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/8", "4/8", "7/8", "8/8"]


def test_a_collapse_is_said_when_it_begins(clock, capsys):
    config, collapsed = TrainingConfig(epochs=9), [False, True, True, False, True]
    warned = []
    watch = Watch(config, np.zeros(90), 10, 4, [], lambda words: None)
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


def spoil_step(monkeypatch, number):
    """Let the so-many-th step of this process give a NaN as its loss."""
    make = loop.make_train_step
    calls = itertools.count(1)

    def spoilt(*args):
        step = make(*args)

        def run(*arguments):
            state, metrics = step(*arguments)
            if next(calls) == number:
                metrics = metrics._replace(loss=jnp.float32(jnp.nan))
            return state, metrics

        return run

    monkeypatch.setattr(loop, "make_train_step", spoilt)


def test_nan_stops_with_step_and_metric(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil_step(patch, 10)  # four steps an epoch
        with pytest.raises(VdError, match=r"loss is nan at step 10; .*--learning-rate"):
            train_on_numbers(tmp_path, epochs=3)
    assert [row["epoch"] for row in metrics_without_timing(tmp_path)] == [1, 2]


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
