"""`vd sweep`: members are ordinary runs, equal to single ones."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from tests.command_line import SMALL, VD, train, vd
from vd.config import Config, DataConfig
from vd.evaluation.evaluate import restore
from vd.files import read_csv, write_csv
from vd.sweep import member_configs, parse_grid
from vd.training.log import read_metrics
from vd.training.step import make_train_step

SETTINGS = ["--no-mixed-precision", "--feature-preset", "best", *SMALL]


def arguments(clips, backbone, folder):
    return [
        "sweep", "--dataset-path", clips, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / "sweep", "--backbone", backbone, *SETTINGS,
    ]  # fmt: skip


def same_run(one, other):
    """Two runs whose numbers agree within rounding."""
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        for key in ("step", "learning_rate", "train_loss", "val_loss", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), (key, a, b)
    first, second = (jax.tree.leaves(restore(run).params) for run in (one, other))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, clips, backbone):
    """Two seeds × two alphas."""
    folder = tmp_path_factory.mktemp("swept")
    asked = arguments(clips, backbone, folder)
    vd(*asked, "--set", "focal_alpha=0.25,0.5", "--set", "seed=0,1")
    return folder


@pytest.mark.slow
def test_each_member_equals_its_single_run(swept, clips, backbone, tmp_path):
    members = sorted(path.name for path in (swept / "sweep").iterdir() if path.is_dir())
    assert members == [
        f"seed-{seed}_focal-alpha-{alpha}" for seed in (0, 1) for alpha in (0.25, 0.5)
    ]
    train(clips, backbone, tmp_path, "--seed", "1", "--focal-alpha", "0.5")
    same_run(swept / "sweep" / "seed-1_focal-alpha-0.5", tmp_path / "run")
    with pytest.raises(AssertionError):
        same_run(swept / "sweep" / "seed-0_focal-alpha-0.5", tmp_path / "run")


@pytest.mark.slow
def test_a_member_is_a_run_folder_that_evaluates_and_trains_no_more(
    swept, clips, backbone
):
    run = swept / "sweep" / "seed-1_focal-alpha-0.25"
    before = (run / "evaluation_test.json").read_bytes()
    vd("evaluate", "--checkpoint-dir", run)
    assert (run / "evaluation_test.json").read_bytes() == before
    done = vd(
        "train", "--dataset-path", clips, "--cache-dir", swept / "cache",
        "--checkpoint-dir", run, "--backbone", backbone, "--seed", "1", *SETTINGS,
    )  # fmt: skip
    assert "is finished; nothing to do" in done.stderr


@pytest.mark.slow
def test_the_table_has_a_row_a_member_and_a_second_sweep_changes_nothing(
    swept, clips, backbone
):
    table = swept / "sweep" / "sweep.csv"
    before = table.read_bytes()
    rows = read_csv(table)
    assert [(row["seed"], row["focal_alpha"]) for row in rows] == [
        ("0", "0.25"), ("0", "0.5"), ("1", "0.25"), ("1", "0.5"),
    ]  # fmt: skip
    for row in rows:
        path = swept / "sweep" / row["member"] / "evaluation_test.json"
        assert float(row["accuracy"]) == json.loads(path.read_text())["accuracy"]
    asked = arguments(clips, backbone, swept)
    done = vd(*asked, "--set", "focal_alpha=0.25,0.5", "--set", "seed=0,1")
    assert "4 members, 4 of them finished" in done.stderr
    assert table.read_bytes() == before


@pytest.mark.slow
def test_ctrl_c_keeps_every_member_and_the_same_command_goes_on(
    swept, clips, backbone, tmp_path
):
    asked = [*arguments(clips, backbone, tmp_path), "--set", "seed=0,1",
             "--set", "focal_alpha=0.25,0.5"]  # fmt: skip
    with subprocess.Popen([*VD, *map(str, asked)], stderr=subprocess.PIPE) as process:
        folder = tmp_path / "sweep" / "seed-0_focal-alpha-0.25"
        while process.poll() is None and not read_metrics(folder):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    assert not (
        tmp_path / "sweep" / "sweep.csv"
    ).exists()  # written when all have ended
    vd(*asked)
    for row in read_csv(tmp_path / "sweep" / "sweep.csv"):
        same_run(tmp_path / "sweep" / row["member"], swept / "sweep" / row["member"])


@pytest.mark.slow
def test_folds_are_grouped_and_train_with_one_batch_whichever_are_left(
    clips, backbone, tmp_path
):
    rows = [
        {"path": path, "label": path.parent.name, "group": number % 7}
        for number, path in enumerate(sorted(clips.glob("*/*/*.mp4"))[:29])
    ]
    table = tmp_path / "clips.csv"
    write_csv(table, rows)
    asked = [*arguments(table, backbone, tmp_path), "--folds", "3", "--epochs", "1"]
    asked += ["--batch-size", "64"]
    vd(*asked)
    folders = [tmp_path / "sweep" / f"fold-{fold}" for fold in range(3)]
    splits = [read_csv(folder / "splits.csv") for folder in folders]
    tested = [row["id"] for rows in splits for row in rows if row["split"] == "test"]
    assert len(tested) == len(set(tested)) == 29  # each clip once
    for part in ("val", "test"):
        for rows in splits:
            inside = {row["group"] for row in rows if row["split"] == part}
            assert inside.isdisjoint(r["group"] for r in rows if r["split"] != part)
    trained = [sum(row["split"] == "train" for row in rows) for rows in splits]
    assert len(set(trained)) > 1
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert config["batch_size"] == min(trained)
    largest = folders[trained.index(max(trained))]
    before = tmp_path / "before"
    largest.rename(before)
    vd(*asked)  # alone
    same_run(largest, before)


@pytest.mark.slow
def test_one_member_that_diverges_leaves_the_others_their_rows(
    clips, backbone, tmp_path
):
    asked = arguments(clips, backbone, tmp_path)
    done = vd(*asked, "--set", "learning_rate=0.001,1e30", "--epochs", "2", code=2)
    assert "1 of 2 members failed; learning-rate-1e+30: " in done.stderr
    good, bad = read_csv(tmp_path / "sweep" / "sweep.csv")
    path = tmp_path / "sweep" / good["member"] / "evaluation_test.json"
    assert float(good["accuracy"]) == json.loads(path.read_text())["accuracy"]
    assert bad["accuracy"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "seed=1", "--set", "seed=2"], "--set gives seed twice"),
        (["--set", "fokal_alpha=1"], "with a name such as focal_alpha"),
        (["--set", "hidden_size=8,wide"], "a value is not a valid int"),
        (["--set", "augmentation=maybe"], "a value is not a valid bool"),
        (["--set", "focal_alpha=0.5,7"], "--focal-alpha is 7.0; give a value from 0"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_sentence(
    clips, backbone, tmp_path, flags, words
):
    assert words in vd(*arguments(clips, backbone, tmp_path), *flags, code=2).stderr


def test_values_that_agree_in_six_digits_are_two_members(tmp_path):
    grid = {"learning_rate": [0.00012345678, 0.00012345679]}
    names = {name for name, *_ in member_configs(Config(DataConfig(tmp_path)), grid)}
    assert names == {"learning-rate-0.00012345678", "learning-rate-0.00012345679"}


def test_members_are_named_alike_whatever_the_order_of_the_flags(tmp_path):
    config = Config(DataConfig(tmp_path))
    flags = ["focal_alpha=0.25,0.5", "seed=1", "hidden_size=8", "augmentation=false"]
    names = {
        tuple(name for name, *_ in member_configs(config, parse_grid(order), 2))
        for order in (flags, flags[::-1])
    }
    assert names == {
        tuple(
            f"fold-{fold}_seed-1_focal-alpha-{alpha}_augmentation-false_hidden-size-8"
            for fold in (0, 1)
            for alpha in (0.25, 0.5)
        )
    }


def test_one_compiled_step_serves_members_that_differ_in_its_numbers(tmp_path):
    config, devices = Config(DataConfig(tmp_path)), jax.local_devices()

    def steps(**grid):
        members = member_configs(config, grid)
        return {make_train_step(member, devices) for _, _, member in members}

    numbers = {"seed": [0, 1], "dropout_rate": [0.0, 0.5], "learning_rate": [0.1, 1.0]}
    assert len(steps(**numbers)) == 1
    assert len(steps(hidden_size=[8, 16])) == 2
