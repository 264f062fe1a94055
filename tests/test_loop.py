"""The loop: early stopping, its log, a loss that is not finite, a collapse."""

import pytest

from tests.fabricated import metrics_without_timing, same_leaves, train_on_numbers
from vd.errors import VdError

EPOCHS = 8


def run(folder, epochs=EPOCHS, **settings):
    return train_on_numbers(folder, epochs, **settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def test_learns_and_keeps_best_and_last_two(unbroken):
    folder, _ = unbroken
    rows = metrics_without_timing(folder)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[-1]["step"] == EPOCHS * 4
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    best = min(rows, key=lambda row: row["val_loss"])["epoch"]
    kept = {
        int(p.name)
        for p in (folder / "run" / "checkpoints").iterdir()
        if p.name.isdigit()
    }
    assert kept == {best, EPOCHS - 1, EPOCHS}
    assert list((folder / "run").glob("events.out.tfevents.*"))


def test_a_second_call_changes_nothing(unbroken):
    folder, params = unbroken
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    assert same_leaves(run(folder), params)
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before


def test_patience_stops_and_the_best_by_the_metric_is_restored(tmp_path, capsys):
    settings = {"early_stopping_metric": "val_brier", "early_stopping_patience": 2}
    run(tmp_path, epochs=40, learning_rate=0.05, **settings)
    values = [row["val_brier"] for row in metrics_without_timing(tmp_path)]
    last, best = len(values), 1 + values.index(min(values))
    assert last == best + 2 < 40
    assert f"best epoch {best} of {last} by val_brier" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(tmp_path):
    with pytest.raises(
        VdError,
        match=r"(loss|grad_norm) is (nan|inf) at step \d+; .* --learning-rate",
    ):
        run(tmp_path, learning_rate=1e30, grad_clip_norm=0, warmup_epochs=0)
    assert metrics_without_timing(tmp_path) == []  # it had come in the first epoch


def test_an_undefined_metric_is_null_in_the_log(tmp_path):
    run(tmp_path, epochs=2, val=1)  # one clip, which is not violent
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.count('"val_roc_auc": null, ') == 2
    assert text.count('"val_recall_violent": null, ') == 2
    assert "NaN" not in text


def test_collapse_is_said_after_a_warmup_that_was_cut(tmp_path, capsys):
    run(tmp_path, epochs=4, signal=0.0, warmup_epochs=5, focal_alpha=0.0)
    assert "CLASS COLLAPSE" in capsys.readouterr().err
