"""docs/extending.md, word for word: a head, a loss, an augmentation, a backbone."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import cv2
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests.command_line import vd, vd_process
from tests.decoding import decode_all
from tests.fabricated import write_tiny_backbone
from vd.config import Config, DataConfig
from vd.data.decode import FrameSettings
from vd.data.streams import STREAMS
from vd.errors import VdError
from vd.evaluation.evaluate import restore
from vd.files import read_csv
from vd.models.head import Head, check_shapes
from vd.models.plugins import Plugins
from vd.training.log import read_metrics

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
TINY = "--epochs 3 --batch-size 8 --warmup-epochs 1 --no-mixed-precision".split()


def call(folder, line, *more, code=0):
    """One of the page's commands, in `folder`."""
    name, *words = shlex.split(line)
    if name == "vd":
        return vd(*words, *more, code=code, cwd=folder)
    return subprocess.run(
        [sys.executable, *words, *more],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory, clips, backbone):
    """A folder with the page's files, where its first commands have run."""
    folder = tmp_path_factory.mktemp("extending")
    for name, content in FILES:
        (folder / name).write_text(content)
    (folder / "DATA").symlink_to(clips)
    write_tiny_backbone(folder / "network.onnx")
    shutil.copy(next(clips.glob("test/*/*.mp4")), folder / "clip.mp4")
    call(folder, COMMANDS[0], *TINY, "--backbone", backbone)
    return folder, call(folder, COMMANDS[3], *TINY, "--backbone", backbone)


def identity(run):
    return json.loads((run / "config.json").read_text())["identity"]


def test_the_page_has_what_the_tests_run():
    assert [name for name, _ in FILES] == [
        "mean_head.py", "dropout_head.py", "hinge_loss.py", "reversal.py",
        "mean_experiment.py", "name_normalisation.py",
    ]  # fmt: skip
    assert len(COMMANDS) == 6
    for name, content in FILES:
        code = [line for line in content.splitlines() if line and "import" not in line]
        assert len(code) < 20, name


@pytest.mark.slow
def test_a_run_with_an_own_head_is_evaluated_and_predicts_the_same_numbers(shown):
    folder, _ = shown
    run = folder / "RUN"
    assert identity(run)["head"] == {
        "import": "mean_head:MeanHead",
        "settings": {"width": 16},
    }
    head = restore(run)
    assert head.params["Dense_0"]["kernel"].shape[-1] == 16
    before = (run / "predictions_test.csv").read_bytes()
    evaluate, predict = COMMANDS[1:3]
    call(folder, evaluate)
    assert (run / "predictions_test.csv").read_bytes() == before
    made = json.loads(call(folder, predict).stdout)
    content = (folder / "clip.mp4").read_bytes()
    (row,) = (
        row
        for row in read_csv(run / "predictions_test.csv")
        if (folder / "DATA" / row["path"]).read_bytes() == content
    )
    assert made["probability"] == float(row["probability"])


@pytest.mark.slow
def test_an_own_head_is_exported_as_stablehlo_and_not_as_onnx(shown, tmp_path):
    run = shown[0] / "RUN"
    done = vd("export", run, "--out", tmp_path, code=2)
    assert "was trained with MeanHead; give --format stablehlo" in done.stderr
    assert not list(tmp_path.iterdir())
    done = vd("export", run, "--out", tmp_path, "--format", "stablehlo")
    difference = json.loads(done.stdout)["head"]["largest_logit_difference"]
    assert difference["float32"] < 1e-5
    assert (tmp_path / "head.mlirbc").stat().st_size > 100


@pytest.mark.slow
def test_an_experiment_records_its_loss_and_augmentation(shown):
    folder, done = shown
    assert "weighs the" not in done.stderr  # no advice on a loss that is not used
    record = identity(folder / "RUN2")
    assert record["loss"] == {"import": "hinge_loss:hinge_loss"}
    assert record["augmentation"] == {"import": "reversal:reverse_half"}
    assert record["head"]["settings"] == {"width": 16}
    call(folder, "vd evaluate --checkpoint-dir RUN2")


@pytest.mark.slow
def test_the_losses_of_the_log_are_the_users(shown):
    """The hinge loss of the best checkpoint's validation logits, by hand."""
    run = shown[0] / "RUN2"
    best = min(read_metrics(run), key=lambda row: row["val_loss"])
    losses = []
    for row in read_csv(run / "predictions_val.csv"):
        target = 0.95 if row["label"] == "violent" else 0.05  # smoothed by 0.1
        weight = 0.25 * target + 0.75 * (1 - target)
        margin = (2 * target - 1) * float(row["logit"])
        losses.append(weight * max(0.0, 1.0 - margin))
    assert best["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.slow
def test_a_head_is_found_from_another_folder_changed_or_not_and_named_when_gone(
    shown, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(shown[0], folder, symlinks=True)
    config = folder / "RUN" / "config.json"
    config.write_text(config.read_text().replace(str(shown[0]), str(folder)))
    head = folder / "mean_head.py"
    head.write_text(head.read_text() + "# a comment\n")
    evaluate = "evaluate", "--checkpoint-dir", folder / "RUN"
    vd_process(*evaluate)
    head.unlink()
    done = vd_process(*evaluate, code=2)
    assert "the head mean_head:MeanHead of this run cannot be imported" in done.stderr
    assert "PYTHONPATH" in done.stderr


@pytest.mark.slow
def test_another_head_or_width_does_not_continue_the_run_but_trains_its_own(
    shown, backbone
):
    folder, _ = shown
    train = "vd train --dataset-path DATA --checkpoint-dir RUN"
    done = call(folder, train, *TINY, code=2)
    assert (
        "head.import was mean_head:MeanHead, now vd.models.detector:Detector"
        in done.stderr
    )
    done = call(folder, COMMANDS[0].replace("16", "24"), *TINY, code=2)
    assert "head.settings.width was 16, now 24" in done.stderr
    other = "--head dropout_head:DropoutHead --checkpoint-dir RUN4 --epochs 1".split()
    call(folder, "vd train --dataset-path DATA", *other, "--backbone", backbone)


@pytest.mark.slow
def test_an_onnx_backbone_is_trained_on(shown):
    folder, _ = shown
    for line in COMMANDS[4:]:
        few = "--epochs 1 --batch-size 8 --hidden-size 8 --no-mixed-precision".split()
        call(folder, line, *few if line.startswith("vd") else ())
    config = json.loads((folder / "RUN3" / "config.json").read_text())
    assert config["preprocessing"]["backbone"]["mean"] == 127.5
    assert (folder / "RUN3" / "backbone.onnx").exists()


def test_a_stream_is_added_in_one_place(clips):
    """As the page adds it; tests/test_metrics.py does the same for a metric."""
    code = PAGE.partition("## A stream")[2].split("```")[1].removeprefix("python")
    path = next(clips.glob("train/*/*.mp4"))
    with patch.dict(STREAMS):
        exec(code, {})  # noqa: S102
        settings = FrameSettings(height=24, width=32, streams=("rgb", "edges"))
        images = decode_all(path, settings=settings)[0]
    expected = cv2.Laplacian(images[0, 0], cv2.CV_8U)
    np.testing.assert_array_equal(images[0, 1], expected)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("no_such:Head", "--head no_such:Head cannot be imported (ModuleNotFoundError"),
        (
            "MeanHead",
            "--head MeanHead names no class in a module; give package.module:",
        ),
        (
            "pathlib:Path",
            "--head pathlib:Path is not a subclass of vd.models.head.Head",
        ),
    ],
)
def test_a_head_that_cannot_be_used_is_one_sentence(head, words):
    done = vd("train", "--head", head, "--dataset-path", "x", code=2)
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_heads_fields_are_flags_with_their_own_names(tmp_path, capsys):
    (tmp_path / "clash_head.py").write_text(
        "from vd.models.head import Head\n"
        "class Clash(Head):\n    hidden_size: int = 3\n"
        "class Fine(Head):\n    depths: tuple[int, ...] = (1, 2)\n"
    )
    asked = ["--dataset-path", "x"]
    done = vd("train", "--head", "clash_head:Clash", *asked, code=2, cwd=tmp_path)
    assert "the head Clash has a field hidden_size, which is the name" in done.stderr
    done = vd("train", "--head", "clash_head:Fine", "--help", cwd=tmp_path)
    assert "--depths" in done.stdout


def test_a_part_that_could_not_come_back_is_refused_at_once():
    for part in (lambda logits, targets: logits, print.__call__):
        with pytest.raises(VdError, match=r"not a class or function at the top of"):
            Plugins(loss=part).identity()


class TwoLogits(Head):
    @nn.compact
    def __call__(self, features_BxTxD, mask_BxT, dropout=None):
        return nn.Dense(2)(features_BxTxD[:, 0])


def mean_over_clips(logits_B, targets_B):
    return jnp.mean(logits_B - targets_B)


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        (Plugins(head=TwoLogits), r"TwoLogits gives float32\[2, 2\] for 2 clips"),
        (Plugins(loss=mean_over_clips), r"mean_over_clips gives float32\[\] for 2"),
    ],
)
def test_what_a_part_gives_is_looked_at_before_training(plugins, words):
    with pytest.raises(VdError, match=words):
        check_shapes(plugins, Config(data=DataConfig(Path())), dim=12)
