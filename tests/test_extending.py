"""docs/extending.md, word for word: a head, a loss, a backbone; and what restoring refuses."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import pytest

from tests.command_line import VD
from tests.fabricated import write_tiny_backbone
from vd.config import Config, DataConfig
from vd.errors import VdError
from vd.evaluation.evaluate import restore
from vd.files import read_csv
from vd.models.head import Head
from vd.models.parts import Parts, import_parts
from vd.training.log import read_metrics

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
TINY = [
    "--epochs",
    "3",
    "--batch-size",
    "8",
    "--warmup-epochs",
    "1",
    "--no-mixed-precision",
]


def call(folder, line, *more, code=0):
    """One of the page's commands, in `folder`."""
    words = shlex.split(line)
    start = [sys.executable] if words[0] == "python" else VD
    done = subprocess.run(
        [*start, *words[1:], *more],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def shown(tmp_path_factory, clips, backbone):
    """A folder where the page's files are and its first experiment was run."""
    folder = tmp_path_factory.mktemp("extending")
    for name, content in FILES:
        (folder / name).write_text(content)
    (folder / "DATA").symlink_to(clips)
    write_tiny_backbone(folder / "network.onnx")
    train, *_ = COMMANDS
    return folder, call(folder, train, *TINY, "--backbone", backbone)


def test_the_page_has_what_the_tests_run():
    assert [name for name, _ in FILES] == [
        "mean_head.py", "hinge_loss.py", "mean_experiment.py", "name_normalisation.py",
    ]  # fmt: skip
    assert len(COMMANDS) == 5


@pytest.mark.slow
def test_a_run_with_own_parts_is_evaluated_and_predicts_the_same_numbers(shown):
    folder, done = shown
    assert "--focal-alpha" not in done.stderr  # no advice on a loss that is not used
    run = folder / "RUN"
    identity = json.loads((run / "config.json").read_text())["identity"]
    assert identity["head"]["import"] == "mean_head:MeanHead"
    assert identity["loss"]["import"] == "hinge_loss:hinge_loss"
    rows = read_csv(run / "predictions_test.csv")
    clip = folder / "DATA" / rows[0]["path"]
    shutil.copy(clip, folder / "clip.mp4")
    evaluate, predict = COMMANDS[1:3]
    before = (run / "predictions_test.csv").read_bytes()
    call(folder, evaluate)
    assert (run / "predictions_test.csv").read_bytes() == before
    made = json.loads(call(folder, predict).stdout)
    assert made["probability"] == float(rows[0]["probability"])


@pytest.mark.slow
def test_the_losses_of_the_log_are_the_users(shown):
    """The hinge loss of the last checkpoint's validation logits, by hand."""
    run = shown[0] / "RUN"
    best = min(read_metrics(run), key=lambda row: row["val_loss"])
    losses = []
    for row in read_csv(run / "predictions_val.csv"):
        sign = 0.9 if row["label"] == "violent" else -0.9  # smoothed by 0.1
        losses.append(max(0.0, 1.0 - sign * float(row["logit"])))
    assert best["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.slow
def test_parts_are_found_from_another_folder_and_named_when_changed_or_gone(
    shown, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(shown[0], folder, symlinks=True)
    config = folder / "RUN" / "config.json"
    config.write_text(config.read_text().replace(str(shown[0]), str(folder)))
    assert restore(folder / "RUN").head.config.hidden_size == 32
    head = folder / "mean_head.py"
    head.write_text(head.read_text().replace("nn.relu", "nn.gelu"))
    what = f"{head}, which defines the head mean_head:MeanHead of this run, "
    with pytest.raises(VdError, match=re.escape(what + "has changed since; put back")):
        restore(folder / "RUN")
    done = call(folder, COMMANDS[0], *TINY, code=2)
    assert "head.sha256 was" in done.stderr
    head.unlink()
    with pytest.raises(VdError, match=re.escape(what + "is missing; put back")):
        restore(folder / "RUN")


@pytest.mark.slow
def test_the_built_in_head_does_not_go_on_with_the_run(shown):
    folder, _ = shown
    done = call(
        folder, "vd train --dataset-path DATA --checkpoint-dir RUN", *TINY, code=2
    )
    assert "head.import was mean_head:MeanHead, now vd.model:Detector" in done.stderr


@pytest.mark.slow
def test_an_onnx_backbone_is_trained_on(shown):
    folder, _ = shown
    for line in COMMANDS[3:]:
        few = "--epochs 1 --batch-size 8 --hidden-size 8 --no-mixed-precision".split()
        call(folder, line, *few if line.startswith("vd") else ())
    config = json.loads((folder / "RUN2" / "config.json").read_text())
    assert config["preprocessing"]["backbone"]["mean"] == 127.5
    assert (folder / "RUN2" / "backbone.onnx").exists()


def test_a_part_that_could_not_come_back_is_refused_at_once():
    for part in (lambda logits, targets: logits, print.__call__):
        with pytest.raises(VdError, match=r"not a class or function at the top of"):
            Parts(loss=part).identity()


class TwoLogits(Head):
    @nn.compact
    def __call__(self, features_BxTxD, mask_BxT, dropout=None):
        return nn.Dense(2)(features_BxTxD[:, 0])


class Counting(Head):
    @nn.compact
    def __call__(self, features_BxTxD, mask_BxT, dropout=None):
        self.variable("counts", "seen", lambda: 0)
        return nn.Dense(1)(features_BxTxD[:, 0])[:, 0]


def mean_over_clips(logits_B, targets_B):
    return jnp.mean(logits_B - targets_B)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (Parts(head=TwoLogits), r"head .*TwoLogits gives float32\[2, 2\] for 2 clips"),
        (Parts(head=Counting), r"Counting has counts beside params"),
        (
            Parts(loss=mean_over_clips),
            r"loss .*mean_over_clips gives float32\[\] for 2",
        ),
    ],
)
def test_what_a_part_gives_is_looked_at_before_training(parts, said):
    with pytest.raises(VdError, match=said):
        parts.check(Config(data=DataConfig(Path())), dim=12)


def test_what_a_users_file_raises_is_one_sentence(tmp_path):
    file = tmp_path / "broken_head.py"
    file.write_text("import no_such_module\n")
    built_in = Parts().identity()
    config = {
        "identity": built_in
        | {
            "head": {
                "import": "broken_head:Head",
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        },
        "part_files": {"head": str(file), "loss": None},
    }
    with pytest.raises(
        VdError, match=r"ModuleNotFoundError.*no_such_module.*PYTHONPATH"
    ):
        import_parts(config)
