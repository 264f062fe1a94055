"""The command line: wrong values, pipes and signals are one sentence and an exit code."""

import subprocess

import pytest

from tests.command_line import VD, vd
from vd.config import ModelConfig, RunConfig, TrainingConfig


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset-path", "nowhere"], ["nowhere", "does not exist"]),
        (["--learning-rate", "-1"], ["--learning-rate", "from 1e-30 to 1e+30"]),
        (["--batch-size", "9", "--devices", "2"], ["--batch-size 9", "over 2 devices"]),
        (["--backbone", "resnet"], ["--backbone resnet", "efficientnet-lite0"]),
        (["--focal-alpha", "1.5"], ["--focal-alpha", "from 0 to 1"]),
        (["--hidden-size", "1000000"], ["--hidden-size", "from 0 to 4096"]),
        (["--early-stopping-metric", "val_roc"], ["val_roc is unknown", "val_roc_auc"]),
    ],
)
def test_wrong_values_are_one_sentence(clips, tmp_path, arguments, words):
    dataset = [] if "--dataset-path" in arguments else ["--dataset-path", clips]
    done = vd(
        "train", *dataset, *arguments, "--cache-dir", tmp_path / "c", "--checkpoint-dir",
        tmp_path / "r", code=2,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines()
    assert len([line for line in lines if not line.startswith("classes:")]) == 1
    assert all(word in done.stderr for word in words)
    assert not (tmp_path / "r").exists()


def test_a_file_in_place_of_a_folder_is_named_and_no_space_is_asked_for(
    clips, tmp_path
):
    (tmp_path / "file").touch()
    done = vd(
        "scan", "--dataset-path", clips, "--report-dir", tmp_path / "file", code=2
    )
    assert str(tmp_path / "file") in done.stderr
    assert "space" not in done.stderr


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(trained, clips):
    files = sorted(str(path) for path in clips.rglob("*.mp4"))[:4]
    command = [*VD, "predict", *files, "--checkpoint-dir", str(trained[0] / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert b"Broken pipe" not in process.stderr.read()
    assert process.wait() == 141
    process.stderr.close()


def test_the_defaults_are_the_recipe():
    settings = vars(TrainingConfig()) | vars(ModelConfig()) | vars(RunConfig())
    recipe = {
        "learning_rate": 0.0005, "warmup_epochs": 5, "epochs": 150, "batch_size": 64,
        "early_stopping_patience": 15, "mixed_precision": True, "focal_alpha": 0.25,
        "focal_gamma": 2.0, "label_smoothing": 0.1, "grad_clip_norm": 1.0,
        "augmentation": True, "temporal_jitter": 0.1, "spatial_augmentation": True,
        "devices": None,
    }  # fmt: skip
    assert settings.items() >= recipe.items()


def test_flags_that_an_adaptation_does_not_use_are_neither_shown_nor_taken(tmp_path):
    for command in (["adapt"], ["crossval", "--adapt"]):
        shown = vd(*command, "--help").stdout
        assert "--fixed-blocks" in shown
        assert "--seed" in shown
        for flag in ("--early-stopping-patience", "--mixup-alpha", "--process-id"):
            assert flag not in shown
            done = vd(*command, "--dataset-path", tmp_path, flag, 1, code=2)
            assert flag in done.stderr


def test_the_help_of_a_cross_validation_names_adaptation():
    shown = vd("crossval", "--help").stdout
    assert "--adapt" in shown
    assert "--cross-dataset" in shown
