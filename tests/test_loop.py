"""The loop: early stopping, exact resumption after kill −9, damaged checkpoints."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fabricated import make_set, make_videos
from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.errors import VdError
from vd.training.checkpoints import Checkpoints
from vd.training.log import read_metrics
from vd.training.loop import train

TIMING = {"seconds", "videos_per_second", "input_wait_fraction"}
EPOCHS = 8


def run(folder, epochs=EPOCHS, signal=1.0, **settings):
    """Train on made-up features in `folder`/run, or go on with it."""
    training = TrainingConfig(
        **{
            "epochs": epochs,
            "batch_size": 4,
            "warmup_epochs": 1,
            "learning_rate": 0.01,
            "early_stopping_patience": 50,
            **settings,
        }
    )
    model = ModelConfig(8, 16, 8, 0.3, mixed_precision=False)
    config = Config(data=DataConfig(folder), model=model, training=training)
    train_set = make_set(folder / "cache", make_videos(16), signal=signal)
    val_set = make_set(folder / "cache", make_videos(9, "val"), signal=signal)
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    return train(config, train_set, val_set, run_dir, jax.local_devices()[:2], 4)


def lines(folder):
    """The run's metrics without their timing fields."""
    return [
        {key: value for key, value in row.items() if key not in TIMING}
        for row in read_metrics(folder / "run")
    ]


def same(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def test_learns_and_keeps_best_and_last_two(unbroken):
    folder, trained = unbroken
    rows = lines(folder)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[-1]["step"] == EPOCHS * 4
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    best = min(rows, key=lambda row: row["val_loss"])["epoch"]
    assert trained.best_epoch == best
    kept = {
        int(p.name)
        for p in (folder / "run" / "checkpoints").iterdir()
        if p.name.isdigit()
    }
    assert kept == {best, EPOCHS - 1, EPOCHS}
    assert list((folder / "run").glob("events.out.tfevents.*"))


def test_a_second_call_changes_nothing(unbroken):
    folder, trained = unbroken
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    again = run(folder)
    assert same(again.params, trained.params)
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before


def _run_in(folder):
    jax.config.update("jax_num_cpu_devices", 2)
    run(Path(folder))


@pytest.mark.parametrize("lines_before_kill", [1, 4])
def test_kill_9_and_the_same_command_equal_the_unbroken_run(
    tmp_path, unbroken, lines_before_kill
):
    process = multiprocessing.get_context("spawn").Process(
        target=_run_in, args=(tmp_path,)
    )
    process.start()
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run")) < lines_before_kill:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(lines(tmp_path)) < EPOCHS, "the kill came too late to show anything"
    resumed = run(tmp_path)
    folder, trained = unbroken
    assert lines(tmp_path) == lines(folder)
    assert resumed.best_epoch == trained.best_epoch
    assert same(resumed.params, trained.params)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_in_the_newest_checkpoint_is_found_and_said(
    tmp_path, unbroken, capsys
):
    folder, trained = unbroken
    shutil.copytree(folder, tmp_path / "copy")
    newest = tmp_path / "copy" / "run" / "checkpoints" / str(EPOCHS)
    largest = max(
        (p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    _flip(largest)
    resumed = run(tmp_path / "copy")
    assert "damaged" in capsys.readouterr().err
    assert (newest.parent / f"damaged-{EPOCHS}").is_dir()  # set aside, not deleted
    assert lines(tmp_path / "copy") == lines(folder)
    assert same(resumed.params, trained.params)


def test_a_damaged_best_checkpoint_is_an_error_not_another_model(tmp_path, unbroken):
    folder, trained = unbroken
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "checkpoints")
    best = tmp_path / "checkpoints" / str(trained.best_epoch) / "params"
    for path in best.rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            _flip(path)
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(VdError, match="damaged"),
    ):
        checkpoints.restore_best(trained.params)


def test_patience_stops_and_the_best_is_restored(tmp_path):
    trained = run(tmp_path, epochs=40, early_stopping_patience=2, learning_rate=0.05)
    rows = lines(tmp_path)
    assert trained.last_epoch == len(rows) < 40
    assert trained.last_epoch - trained.best_epoch == 2


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(tmp_path):
    with pytest.raises(
        VdError,
        match=r"(loss|grad_norm) is (nan|inf) at step \d+, .*no checkpoint yet; .* --learning-rate",
    ):
        run(tmp_path, learning_rate=1e30, grad_clip_norm=1e30, warmup_epochs=0)
    assert json.dumps(lines(tmp_path))


def test_a_checkpoint_without_room_is_one_sentence_and_the_one_before_stays(
    tmp_path, monkeypatch, capfd
):
    run(tmp_path, epochs=2)
    before = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 100)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(VdError, match=r"has 100 bytes free .* free some space"):
            run(tmp_path, epochs=3)
    assert "Traceback" not in capfd.readouterr().err
    assert (
        sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == before
    )
    assert run(tmp_path, epochs=3).last_epoch == 3


def test_collapse_is_said_after_a_warmup_that_was_cut(tmp_path, capsys):
    run(tmp_path, epochs=4, signal=0.0, warmup_epochs=5, focal_alpha=0.0)
    assert capsys.readouterr().err.count("CLASS COLLAPSE") >= 2
