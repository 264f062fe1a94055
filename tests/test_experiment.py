"""The whole way on real video files, with a tiny backbone: run folder, identity, commands."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.broken import render_slow
from tests.command_line import SMALL, digests, train, vd, vd_process
from vd.files import read_csv
from vd.training import run_folder

RUN_FILES = {
    "config.json", "splits.csv", "ledger.csv", "backbone.onnx", "metrics.jsonl", "checkpoints",
    "calibration.json", "evaluation_val.json", "evaluation_test.json", "predictions_val.csv",
    "predictions_test.csv", "curves.png", "confusion.png", "roc.png", "reliability.png",
    "report.html", "evaluation_probe.json", "predictions_probe.csv",
}  # fmt: skip


def test_run_folder_is_complete(trained):
    run = trained[0] / "run"
    assert {p.name for p in run.iterdir()} >= RUN_FILES
    assert list(run.glob("events.out.tfevents.*"))
    config = json.loads((run / "config.json").read_text())
    assert config["format"] == run_folder.FORMAT
    assert config["label_map"] == {"nonviolent": 0, "violent": 1}
    assert config["settings"]["training"]["epochs"] == 3
    rows = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {
        "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "val_loss",
        "val_accuracy", "val_recall_violent", "val_recall_nonviolent", "val_roc_auc",
        "grad_norm", "videos_per_second", "input_wait_fraction", "seconds",
    } <= set(rows[0])  # fmt: skip


def test_evaluation_follows_from_the_predictions(trained):
    run = trained[0] / "run"
    result = json.loads((run / "evaluation_test.json").read_text())
    rows = read_csv(run / "predictions_test.csv")
    temperature, threshold = result["temperature"], result["threshold"]
    right = 0
    for row in rows:
        probability = float(row["probability"])
        assert probability == pytest.approx(
            1 / (1 + np.exp(-float(row["logit"]) / temperature)), rel=1e-12
        )
        right += (probability >= threshold) == (row["label"] == "violent")
    assert result["n"] == len(rows) == 8
    assert result["accuracy"] == right / 8
    assert result["groups"] is None


def test_what_limits_the_figures_stands_in_one_block_at_the_end(trained):
    messages, limits = trained[1].stderr.split("before you trust this:\n")
    assert "warning" not in messages.lower().replace("warning: class collapse", "")
    *listed, last = limits.splitlines()
    assert all(line.startswith("  - ") for line in listed)
    assert any("no source groups known" in line for line in listed)
    assert len(listed) == len(set(listed))
    assert last.startswith("metrics, predictions")


def test_second_invocation_says_finished_and_changes_nothing(trained, clips, backbone):
    folder, _ = trained
    before = digests(folder / "run")
    assert "is finished" in train(clips, backbone, folder).stderr
    assert digests(folder / "run") == before


def test_evaluation_by_a_second_process_is_the_same_to_the_last_digit(trained):
    run = trained[0] / "run"
    before = digests(run)
    printed = vd_process("evaluate", "--checkpoint-dir", run).stdout
    assert digests(run) == before
    assert json.loads(printed) == json.loads((run / "evaluation_test.json").read_text())


@pytest.mark.slow
def test_evaluation_extracts_again_what_has_gone(trained, clips, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    before = digests(run)
    vd("evaluate", "--checkpoint-dir", run, "--cache-dir", tmp_path / "new")
    assert digests(run) == before
    moved = vd(
        "evaluate", "--checkpoint-dir", run, "--cache-dir", tmp_path / "newer",
        "--dataset-path", tmp_path / "nowhere", code=2,
    )  # fmt: skip
    assert "--dataset-path" in moved.stderr


def test_test_time_views_change_the_logits(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    result = json.loads(vd("evaluate", "--checkpoint-dir", run, "--tta").stdout)
    assert result["tta"] is True
    before = read_csv(trained[0] / "run" / "predictions_test.csv")
    after = read_csv(run / "predictions_test_tta.csv")
    assert digests(run).items() >= digests(trained[0] / "run").items()
    assert [row["path"] for row in before] == [row["path"] for row in after]
    assert [row["logit"] for row in before] != [row["logit"] for row in after]


def test_predict_gives_the_number_that_evaluation_stored_and_goes_on_after_a_failure(
    trained, clips, tmp_path
):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    run = trained[0] / "run"
    rows = read_csv(run / "predictions_test.csv")[:3]
    paths = [bad, *(clips / row["path"] for row in rows)]
    done = vd("predict", *paths, "--checkpoint-dir", run, code=1)
    failed, *predicted = (json.loads(line) for line in done.stdout.splitlines())
    assert failed["probability"] is None
    assert failed["reason"] == "not-a-video"
    probabilities = [row["probability"] for row in predicted]
    assert probabilities == [float(row["probability"]) for row in rows]


@pytest.mark.slow
def test_a_timeout_says_how_to_try_again(tmp_path):
    for name in ("fight", "normal"):  # several seconds of decoding each
        (tmp_path / "set" / name).mkdir(parents=True)
        render_slow(tmp_path / "set" / name / "slow.mkv", 900)
    where = ["--dataset-path", tmp_path / "set", "--cache-dir", tmp_path / "cache"]
    short = ["--decode-timeout-seconds", "0.01"]
    done = vd("scan", *where, *short, cwd=tmp_path, code=2)
    assert done.stderr.count("1 timeout") == 2  # a line a class
    assert "--retry-quarantined" in done.stderr
    done = vd("scan", *where, "--retry-quarantined", cwd=tmp_path)
    assert "quarantined 0" in done.stderr
    assert "--retry-quarantined" not in done.stderr


def test_a_folder_of_empty_files_is_scanned(tmp_path):
    for name in ("fight/a.mp4", "normal/b.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).touch()
    done = vd("scan", "--dataset-path", tmp_path / "set", cwd=tmp_path, code=2)
    assert "none of the 2 files is usable" in done.stderr
    assert (tmp_path / "scan" / "scan.json").exists()
    assert "quarantined 1 (1 empty)" in done.stderr


def break_five(root, clips):
    """A copy of the clips beside five files that are broken in five ways."""
    shutil.copytree(clips, root)
    folder = root / "train" / "violent"
    good = min(folder.glob("*.mp4"))
    content = good.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "half.mp4").write_bytes(content[: len(content) // 2])
    os.mkfifo(folder / "pipe.mp4")
    import av

    with av.open(str(folder / "one.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return root


@pytest.mark.slow
def test_scan_tells_what_is_broken_resumes_and_exits_3_over_the_gap(clips, tmp_path):
    root = break_five(tmp_path / "set", clips)
    for i in range(9):
        (root / "train" / "violent" / f"more{i}.mp4").write_text(f"no video {i}")
    arguments = ("scan", "--dataset-path", root, "--cache-dir", tmp_path / "cache")
    arguments += ("--report-dir", tmp_path / "report")
    done = vd(*arguments, code=3)
    assert "--max-loss-gap" in done.stderr
    summary = json.loads((tmp_path / "report" / "scan.json").read_text())
    assert summary["found"] == 32 + 14
    counts = {
        (row["split"], row["class"]): row for row in summary["per_split_and_class"]
    }
    violent = counts["train", "violent"]
    assert (violent["found"], violent["used"], violent["quarantined"]) == (22, 8, 14)
    assert violent["reasons"]["not-a-video"] == 10
    rows = read_csv(tmp_path / "report" / "scan.csv")
    assert len(rows) == 46
    reasons = {
        row["path"].removeprefix("train/violent/"): row["reason"] for row in rows
    }
    assert reasons["empty.mp4"] == "empty"
    assert reasons["half.mp4"] == "truncated"
    assert reasons["pipe.mp4"] == "not-a-regular-file"
    assert reasons["one.mp4"] == "too-short"
    again = vd(*arguments, "--max-loss-gap", "1")
    assert read_csv(tmp_path / "report" / "scan.csv") == rows
    assert "quarantined 14" in again.stderr


@pytest.mark.slow
def test_two_trainings_at_once_share_a_new_cache(clips, backbone, tmp_path):
    """One extracts; the other waits, and takes the same features."""
    cache = tmp_path / "cache"
    data = ["--dataset-path", clips, "--cache-dir", cache, "--backbone", backbone]

    def train(run):
        return vd_process("train", *data, "--checkpoint-dir", run, *SMALL)

    runs = tmp_path / "a", tmp_path / "b"
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(train, runs))
    printed = "".join(done.stderr for done in ended)
    assert [done.returncode for done in ended] == [0, 0], printed
    assert printed.count("extracting 32 videos") == 1
    stored = [row["id"] for index in cache.rglob("index-*") for row in read_csv(index)]
    assert len(stored) == len(set(stored)) == 32
    assert "warning" not in vd("extract", *data).stderr
    first, second = ((run / "predictions_test.csv").read_bytes() for run in runs)
    assert first == second
