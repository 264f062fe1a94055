"""The whole way on real video files, with a tiny backbone: run folder, identity, commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.command_line import SMALL, VD, digests, train, vd
from tests.fabricated import write_tiny_backbone
from vd.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from vd.features.engines import find_backbone, make_engine
from vd.features.extract import extract
from vd.tables import read_csv
from vd.videos.manifest import identify, read_manifest

RUN_FILES = {
    "config.json", "splits.csv", "ledger.csv", "backbone.onnx", "metrics.jsonl", "checkpoints",
    "calibration.json", "evaluation_val.json", "evaluation_test.json", "predictions_val.csv",
    "predictions_test.csv", "curves.png", "confusion.png", "roc.png", "reliability.png",
}  # fmt: skip


def test_run_folder_is_complete(trained):
    run = trained[0] / "run"
    assert {p.name for p in run.iterdir()} >= RUN_FILES
    assert list(run.glob("events.out.tfevents.*"))
    config = json.loads((run / "config.json").read_text())
    assert config["format"] == 1
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
    assert "no source groups known" in trained[1].stderr


def test_second_invocation_says_finished_and_changes_nothing(trained, clips, backbone):
    folder, _ = trained
    before = digests(folder / "run")
    assert "is finished" in train(clips, backbone, folder).stderr
    assert digests(folder / "run") == before


def test_evaluation_by_a_second_process_is_the_same_to_the_last_digit(trained):
    run = trained[0] / "run"
    before = digests(run)
    printed = vd("evaluate", "--checkpoint-dir", run).stdout
    assert digests(run) == before
    assert json.loads(printed) == json.loads((run / "evaluation_test.json").read_text())


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


def test_predict_gives_the_number_that_evaluation_stored(trained, clips):
    run = trained[0] / "run"
    rows = read_csv(run / "predictions_test.csv")[:3]
    done = vd(
        "predict", *[clips / row["path"] for row in rows], "--checkpoint-dir", run
    )
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [m["probability"] for m in made] == [
        float(row["probability"]) for row in rows
    ]


def test_predict_goes_on_after_a_file_that_fails(trained, clips, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    good = clips / read_csv(trained[0] / "run" / "predictions_test.csv")[0]["path"]
    done = vd(
        "predict",
        tmp_path / "bad.mp4",
        good,
        "--checkpoint-dir",
        trained[0] / "run",
        code=1,
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["probability"] is None
    assert first["reason"] == "not-a-video"
    assert 0 < second["probability"] < 1


def test_a_timeout_says_how_to_try_again(clips, tmp_path):
    where = ["--dataset-path", clips, "--cache-dir", tmp_path / "cache"]
    short = ["--decode-timeout-seconds", "0.001"]
    done = vd("scan", *where, *short, cwd=tmp_path)
    assert "--retry-quarantined" in done.stderr
    done = vd("scan", *where, "--retry-quarantined", cwd=tmp_path)
    assert "quarantined 0" in done.stderr
    assert "--retry-quarantined" not in done.stderr


def test_a_reader_that_has_enough_is_no_error(trained, clips):
    files = sorted(str(path) for path in clips.rglob("*.mp4"))[:4]
    command = [*VD, "predict", *files, "--checkpoint-dir", str(trained[0] / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert b"Broken pipe" not in process.stderr.read()
    assert process.wait() == 141
    process.stderr.close()


def test_a_folder_of_empty_files_is_scanned(tmp_path):
    for name in ("fight/a.mp4", "normal/b.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).touch()
    done = vd("scan", "--dataset-path", tmp_path / "set", cwd=tmp_path)
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


def test_five_broken_files_are_reported_and_the_rest_is_used(clips, backbone, tmp_path):
    root = break_five(tmp_path / "set", clips)
    done = train(root, backbone, tmp_path, "--max-loss-gap", "1")
    ledger = {
        row["path"].removeprefix("train/violent/"): row
        for row in read_csv(tmp_path / "run" / "ledger.csv")
    }
    reasons = {
        name: ledger[f"{name}.mp4"]["reason"]
        for name in ("empty", "text", "half", "pipe", "one")
    }
    assert reasons == {
        "empty": "empty",
        "text": "not-a-video",
        "half": "truncated",
        "pipe": "not-a-regular-file",
        "one": "too-short",
    }
    others = [row for row in ledger.values() if row["reason"] == ""]
    assert len(others) == 32
    assert {row["outcome"] for row in others} == {"used"}
    assert "quarantined 5" in done.stderr


def test_scan_tells_the_same_resumes_and_exits_3_over_the_gap(clips, tmp_path):
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
    again = vd(*arguments, "--max-loss-gap", "1")
    assert read_csv(tmp_path / "report" / "scan.csv") == rows
    assert "quarantined 14" in again.stderr


def extraction(clips, backbone, cache, **decode):
    config = Config(
        data=DataConfig(clips, cache),
        decode=DecodeConfig(**decode),
        backbone=BackboneConfig(backbone=str(backbone)),
    )
    videos = identify(read_manifest(config.data).videos, cache / "hashes.csv")
    return extract(videos, config)


def records(store):
    return {key: store.read(key, v).tobytes() for key in store.rows for v in (0, 1)}


def test_killed_extraction_goes_on_to_the_same_records(clips, backbone, tmp_path):
    script = [*VD, "extract", "--dataset-path", str(clips), "--backbone", str(backbone)]
    process = subprocess.Popen(
        [*script, "--cache-dir", str(tmp_path / "a")], stderr=subprocess.PIPE
    )
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store, ledger = extraction(clips, backbone, tmp_path / "a")
    undisturbed, _ = extraction(clips, backbone, tmp_path / "b", decode_workers=1)
    assert records(store) == records(undisturbed)
    assert len(ledger.usable()) == 32
    assert not list(store.directory.glob("*.tmp-*"))


def test_ctrl_c_is_one_sentence_exit_130_and_the_same_command_goes_on(
    clips, backbone, tmp_path
):
    command = [
        *VD, "train", "--dataset-path", clips, "--backbone", backbone, "--cache-dir",
        tmp_path / "cache", "--checkpoint-dir", tmp_path / "run", "--no-mixed-precision",
        *SMALL, "--epochs", "12",
    ]  # fmt: skip
    arguments = list(map(str, command))
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert "going on after epoch" in vd(*command[3:]).stderr


def test_mirrored_view_is_the_plain_view_of_the_mirrored_images(
    clips, backbone, tmp_path
):
    store, ledger = extraction(clips, backbone, tmp_path)
    video = ledger.usable()[0]
    plain, mirrored = store.read(video.id, 0), store.read(video.id, 1)
    assert plain.shape == mirrored.shape == (store.rows[video.id].frames, 16)
    assert not np.array_equal(plain, mirrored)


@pytest.mark.parametrize("channels_first", [False, True])
def test_an_onnx_file_says_its_size_and_normalisation(tmp_path, channels_first):
    path = write_tiny_backbone(
        tmp_path / "b.onnx",
        channels_first=channels_first,
        metadata={"vd.mean": "127", "vd.std": "64"},
    )
    found = find_backbone(BackboneConfig(backbone=str(path)))
    assert (found.size, found.mean, found.std) == (32, 127.0, 64.0)
    engine = make_engine(found, "auto")
    grey = engine(np.full((5, 32, 32, 3), 127, np.uint8))
    assert grey.shape == (5, 8)
    np.testing.assert_allclose(grey, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset-path", "nowhere"], ["nowhere", "does not exist"]),
        (["--learning-rate", "-1"], ["--learning-rate", "above 0"]),
        (["--batch-size", "9", "--devices", "2"], ["--batch-size 9", "--devices 2"]),
        (["--backbone", "resnet"], ["--backbone resnet", "efficientnet-lite0"]),
        (["--focal-alpha", "1.5"], ["--focal-alpha", "from 0 to 1"]),
    ],
)
def test_wrong_values_are_one_sentence(clips, tmp_path, arguments, words):
    dataset = [] if "--dataset-path" in arguments else ["--dataset-path", clips]
    done = vd(
        "train", *dataset, *arguments, "--cache-dir", tmp_path / "c", "--checkpoint-dir",
        tmp_path / "r", code=2,
    )  # fmt: skip
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert not (tmp_path / "r").exists()


def test_an_unknown_flag_is_named():
    assert (
        "--epoch" in vd("train", "--dataset-path", "x", "--epoch", "3", code=2).stderr
    )


def test_help_is_quick_enough_to_need_no_heavy_module():
    code = "import sys, vd.cli; print([m for m in ('jax', 'onnxruntime', 'tensorflow_datasets', 'sklearn') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_training_without_run_settings_uses_the_recipe():
    training, model = TrainingConfig(), ModelConfig()
    assert (training.learning_rate, training.warmup_epochs, training.epochs) == (
        0.0005,
        5,
        150,
    )
    assert (training.focal_alpha, training.focal_gamma, training.label_smoothing) == (
        0.25,
        2.0,
        0.1,
    )
    assert (training.early_stopping_patience, training.batch_size) == (15, 64)
    assert (training.grad_clip_norm, training.temporal_jitter) == (1.0, 0.1)
    assert training.augmentation
    assert training.spatial_augmentation
    assert model.mixed_precision
    assert RunConfig().devices is None
