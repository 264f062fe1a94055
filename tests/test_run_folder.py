"""A run folder: another run's is refused, what is damaged is named, nothing else is deleted."""

import json
import re
import shutil
import socket
import subprocess

import pytest

from tests.command_line import digests, train, vd
from tests.fabricated import write_tiny_backbone

pytestmark = pytest.mark.slow


def test_another_setting_in_the_same_folder_is_named(trained, clips, backbone):
    done = train(clips, backbone, trained[0], "--learning-rate", "0.1", code=2)
    assert "training.learning_rate was 0.0005, now 0.1" in done.stderr
    assert "--fresh" in done.stderr


def test_another_data_set_is_told_by_its_clips_and_its_splits_file_stays(
    clips, backbone, tmp_path
):
    flat = tmp_path / "flat"
    for path in sorted(clips.rglob("*.mp4")):
        place = flat / path.parent.name / f"{path.parent.parent.name}-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    train(flat, backbone, tmp_path, "--epochs", "1")
    (kept,) = (tmp_path / "cache" / "splits").glob("*.csv")
    before = kept.read_bytes()
    resplit = ["--epochs", "1", "--resplit", "--split-seed", "5"]
    done = train(flat, backbone, tmp_path, *resplit, code=2)
    assert re.search(
        r"\d+ clips are new, gone, or have another label, split or group, for example "
        r"'v?n?\w+/\S+mp4'",
        done.stderr,
    )
    assert kept.read_bytes() == before
    gone = next(flat.rglob("*.mp4"))
    gone.unlink()
    done = train(flat, backbone, tmp_path, "--epochs", "1", code=2)
    assert "(1 clips are new, gone, or have another" in done.stderr
    assert f"for example '{gone.relative_to(flat)}'" in done.stderr


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda content: content[:100]),
        ("calibration.json", lambda _: b"\xff"),
        ("splits.csv", lambda content: content[: content[:-1].rindex(b"\n") + 1]),
    ],
)
def test_evaluate_names_a_damaged_file_and_overwrites_nothing(
    trained, tmp_path, name, damage
):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    path = tmp_path / "run" / name
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    before = digests(tmp_path / "run")
    done = vd("evaluate", "--checkpoint-dir", tmp_path / "run", code=2)
    assert str(path) in done.stderr
    assert digests(tmp_path / "run") == before


def test_a_run_with_another_backbone_predicts_nothing(trained, clips, tmp_path):
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    write_tiny_backbone(tmp_path / "run" / "backbone.onnx", metadata={"vd.std": "2"})
    video = next(clips.rglob("*.mp4"))
    for command in (["evaluate"], ["predict", video]):
        done = vd(*command, "--checkpoint-dir", tmp_path / "run", code=2)
        assert "trained on other features" in done.stderr


def test_what_a_finished_run_lost_is_made_again_by_its_command(
    trained, clips, backbone, tmp_path
):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    before = digests(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "weights.npz").unlink()
    vd("evaluate", "--checkpoint-dir", tmp_path / "run", code=2)
    for name in ("splits.csv", "calibration.json"):
        (tmp_path / "run" / name).unlink()
    train(clips, backbone, tmp_path)
    after = digests(tmp_path / "run")
    kept = "predictions_", "evaluation_", "splits", "calibration"
    for name in before:
        if name.startswith(kept):
            assert after[name] == before[name], name


def test_a_run_killed_while_it_began_is_gone_on_with(
    trained, clips, backbone, tmp_path
):
    shutil.copytree(trained[0] / "cache", tmp_path / "cache")
    (tmp_path / "run").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    name = f"config.json.tmp-{socket.gethostname()}-{dead.pid}"
    (tmp_path / "run" / name).write_text("{")
    train(clips, backbone, tmp_path, "--epochs", "1")
    assert not (tmp_path / "run" / name).exists()


def test_fresh_deletes_nothing_when_a_flag_is_wrong(trained, clips, backbone):
    before = digests(trained[0] / "run") | {".lock": ""}
    more = ["--fresh", "--batch-size", "64", "--devices", "64"]
    done = train(clips, backbone, trained[0], *more, code=2)
    assert "--devices 64 is more than the 2 devices of this machine" in done.stderr
    assert digests(trained[0] / "run") | {".lock": ""} == before


def test_a_damaged_evaluation_is_named_and_made_again(
    trained, clips, backbone, tmp_path
):
    shutil.copytree(trained[0], tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "evaluation_test.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    done = train(clips, backbone, path.parent.parent, code=2)
    assert f"{path} is damaged" in done.stderr
    assert "delete it, and the same command evaluates again" in done.stderr
    path.unlink()
    train(clips, backbone, path.parent.parent)
    assert path.read_bytes() == whole


def test_fresh_starts_over_and_touches_no_foreign_file(
    trained, clips, backbone, tmp_path
):
    shutil.copytree(trained[0], tmp_path / "copy")
    (tmp_path / "copy" / "run" / "my_notes.txt").write_text("mine")
    train(clips, backbone, tmp_path / "copy", "--fresh", "--seed", "1", "--epochs", "1")
    assert (tmp_path / "copy" / "run" / "my_notes.txt").read_text() == "mine"
    config = json.loads((tmp_path / "copy" / "run" / "config.json").read_text())
    assert config["settings"]["training"]["seed"] == 1


def test_a_folder_that_is_no_run_is_left_alone(clips, backbone, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    done = train(clips, backbone, tmp_path, code=2)
    assert "is not a run folder" in done.stderr
