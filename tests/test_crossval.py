"""`vd crossval`: every clip tested once a seed, figures that other code finds again."""

import json
import re
import shutil
import signal
import subprocess
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from experiments.rendering.clips import render_dataset
from tests.command_line import SMALL, VD, digests, vd
from tests.fabricated import made_up_predictions
from vd.errors import VdError
from vd.evaluation.cross_dataset import cell
from vd.evaluation.crossval import summarise, write_crossval
from vd.evaluation.predictions import Member, read_members
from vd.files import read_csv
from vd.metrics.binary import shown
from vd.training.log import read_metrics


def arguments(clips, backbone, folder, *more):
    return [
        "crossval", "--dataset-path", clips, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / "cv", "--backbone", backbone, "--feature-preset",
        "best", "--no-mixed-precision", *SMALL, "--folds", "2", "--seeds", "0", "1",
        "--epochs", "2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def crossed(tmp_path_factory, clips, backbone, trained):
    """Two folds × two seeds of 32 clips that come with splits, which are not used."""
    folder = tmp_path_factory.mktemp("crossed")
    shutil.copytree(trained[0] / "cache", folder / "cache")
    done = vd(*arguments(clips, backbone, folder))
    return folder, done


@pytest.mark.slow
def test_every_clip_is_tested_once_a_seed_by_a_model_that_never_saw_it(crossed, clips):
    folder = crossed[0] / "cv"
    rows = read_csv(folder / "predictions.csv")
    assert list(rows[0]) == [
        "path", "label", "group", "fold", "seed", "probability", "logit",
    ]  # fmt: skip
    names = sorted(str(p.relative_to(clips)) for p in clips.rglob("*.mp4"))
    for seed in "01":
        assert sorted(r["path"] for r in rows if r["seed"] == seed) == names
    for row in rows:
        run = folder / f"fold-{row['fold']}_seed-{row['seed']}"
        split = {r["path"]: r["split"] for r in read_csv(run / "splits.csv")}
        assert split[row["path"]] == "test"
        assert {"train", "val"} <= set(split.values())
        own = {r["path"]: r for r in read_csv(run / "predictions_test.csv")}
        assert own[row["path"]]["probability"] == row["probability"]
    folds = [{r["path"]: r["fold"] for r in rows if r["seed"] == s} for s in "01"]
    assert folds[0] == folds[1]


@pytest.mark.slow
def test_figures_follow_from_the_pooled_predictions(crossed):
    folder = crossed[0] / "cv"
    result = json.loads((folder / "crossval.json").read_text())
    first, probe, by_fold = crossed[1].stdout.splitlines()
    assert first.startswith("2 folds × 2 seeds, 32 clips, each tested once a seed: ")
    accuracy = result["over_seeds"]["accuracy"]["mean"]
    assert f"accuracy {shown('accuracy', accuracy)}" in first
    assert probe.startswith("a linear probe on the same features: accuracy ")
    assert by_fold.startswith("accuracy of a fold: ")
    rows = read_csv(folder / "predictions.csv")
    threshold = {(r["fold"], r["seed"]): r["threshold"] for r in result["per_fold"]}
    assert len(threshold) == 4
    for one_seed in result["per_seed"]:
        mine = [row for row in rows if int(row["seed"]) == one_seed["seed"]]
        labels = np.array([row["label"] == "violent" for row in mine])
        probability = np.array([float(row["probability"]) for row in mine])
        limits = [threshold[int(r["fold"]), int(r["seed"])] for r in mine]
        assert one_seed["accuracy"] == np.mean((probability >= limits) == labels)
        area = sk.roc_auc_score(labels, probability)
        assert one_seed["roc_auc"] == pytest.approx(area)
        low, high = one_seed["accuracy_ci95"]
        assert low <= one_seed["accuracy"] <= high
    for over, each in (("over_seeds", "per_seed"), ("over_folds", "per_fold")):
        values = [row["accuracy"] for row in result[each]]
        assert result[over]["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert result[over]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    for row in result["per_fold"]:
        path = folder / row["member"] / "evaluation_test.json"
        assert row["accuracy"] == json.loads(path.read_text())["accuracy"]


@pytest.mark.slow
def test_the_probe_is_a_row_of_the_same_clips(crossed):
    folder = crossed[0] / "cv"
    row = json.loads((folder / "crossval.json").read_text())["probe"]
    labels, probability, right, areas = [], [], [], []
    for fold in range(2):
        run = folder / f"fold-{fold}_seed-0"
        threshold = json.loads((run / "evaluation_probe.json").read_text())["threshold"]
        rows = read_csv(run / "predictions_probe.csv")
        assert [r["path"] for r in rows] == [
            r["path"] for r in read_csv(run / "predictions_test.csv")
        ]
        y = np.array([r["label"] == "violent" for r in rows])
        p = np.array([float(r["probability"]) for r in rows])
        labels, probability = [*labels, *y], [*probability, *p]
        right, areas = (
            [*right, *((p >= threshold) == y)],
            [*areas, sk.roc_auc_score(y, p)],
        )
    for of in row["per_seed"]:  # no seed changes it
        assert of["accuracy"] == np.mean(right)
        assert of["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, probability))
    assert row["over_folds"]["roc_auc"]["mean"] == pytest.approx(np.mean(areas))
    accuracy = f"{100 * np.mean(right):.1f} %"
    said = f"\na linear probe on the same features: accuracy {accuracy} (95 % interval"
    assert said in crossed[1].stdout
    done = vd("compare", folder)
    assert f"the linear probe: accuracy {accuracy}" in done.stdout


@pytest.mark.slow
def test_its_page_shows_every_member(crossed):
    folder = crossed[0] / "cv"
    vd("report", folder, "--mistakes", "2", "--out", crossed[0] / "page.html")
    text = (crossed[0] / "page.html").read_text()
    record = json.loads((folder / "crossval.json").read_text())
    for row in [record["over_seeds"]["accuracy"]["mean"], *record["per_fold"]]:
        share = row if isinstance(row, float) else row["accuracy"]
        assert f"{100 * share:.1f} %</" in text
    members = re.findall(r"<tr><td>(fold-\S+)</td>", text)
    assert members == [row["member"] for row in record["per_fold"]]
    assert text.count('alt="Eight frames') == 2
    assert text.count("<img") == 4 + 2
    for warning in record["warnings"]:
        assert warning in unescape(text)


@pytest.mark.slow
def test_a_second_time_changes_nothing(crossed, clips, backbone):
    before = digests(crossed[0] / "cv")
    done = vd(*arguments(clips, backbone, crossed[0]))
    assert "4 members, 4 of them finished" in done.stderr
    assert digests(crossed[0] / "cv") == before


@pytest.mark.slow
def test_other_seeds_leave_no_page_of_the_former(crossed, clips, backbone, tmp_path):
    shutil.copytree(crossed[0], tmp_path / "again")
    folder = tmp_path / "again" / "cv"
    for name in ("report.html", "matrix.csv"):
        (folder / name).write_text("of two seeds")
    vd(*arguments(clips, backbone, tmp_path / "again", "--seeds", "1"))
    assert json.loads((folder / "crossval.json").read_text())["seeds"] == [1]
    assert not (folder / "report.html").exists()
    assert not (folder / "matrix.csv").exists()
    assert (folder / "fold-0_seed-0" / "report.html").exists()  # the member is kept


@pytest.mark.slow
def test_a_fresh_one_that_fails_leaves_nothing_of_the_former(
    crossed, clips, backbone, tmp_path
):
    """Not even figures, which would be taken for those of the new settings."""
    shutil.copytree(crossed[0], tmp_path / "again")
    folder = tmp_path / "again" / "cv"
    asked = map(str, arguments(clips, backbone, tmp_path / "again", "--fresh"))
    with subprocess.Popen([*VD, *asked], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (folder / "crossval.json").exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "predictions.csv").exists()
    with pytest.raises(VdError, match="has not ended; run its command again"):
        read_members(folder)


@pytest.mark.slow
def test_a_killed_one_goes_on(crossed, clips, backbone, tmp_path):
    shutil.copytree(crossed[0] / "cache", tmp_path / "cache")
    asked = list(map(str, arguments(clips, backbone, tmp_path, "--seeds", "0")))
    with subprocess.Popen([*VD, *asked], stderr=subprocess.DEVNULL) as process:
        first = tmp_path / "cv" / "fold-0_seed-0"
        while process.poll() is None and not read_metrics(first):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(VdError, match="has not ended; run its command again"):
        read_members(tmp_path / "cv")
    vd(*asked)
    ours, theirs = (
        read_csv(folder / "cv" / "predictions.csv") for folder in (tmp_path, crossed[0])
    )
    theirs = [row for row in theirs if row["seed"] == "0"]
    for a, b in zip(ours, theirs, strict=True):
        assert (a["path"], a["fold"]) == (b["path"], b["fold"])
        assert float(a["logit"]) == pytest.approx(float(b["logit"]), rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_wrong_flags_are_one_sentence(crossed, clips, backbone, tmp_path):
    shutil.copytree(crossed[0] / "cache", tmp_path / "cache")
    run, gone = crossed[0] / "cv" / "fold-0_seed-0", tmp_path / "gone"
    for more, words in [
        (["--folds", "1"], "--folds is 1; give a value from 2"),
        (["--checkpoint-dir", run], "is the folder of a run"),
        (["--cross-dataset", gone], f"{gone} does not"),
        (["--cross-dataset", clips], "are both called set"),
        (["--group-from", "(violent|nonviolent)/"], "fold 0 has no "),
    ]:
        done = vd(*arguments(clips, backbone, tmp_path, *more), code=2)
        assert words in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, clips, backbone):
    """Two data sets, in each of which the other's three clips lie too."""
    folder = tmp_path_factory.mktemp("matrix")
    other = render_dataset(folder / "other", clips={"a": 20}, seed=9)
    shared = sorted(clips.rglob("*.mp4"))[:3]
    for path in shared:
        place = other / "a" / path.parent.name / f"of-{path.name}"
        shutil.copy(path, place)
    inner = other / "a"
    more = ["--seeds", "0", "--cross-dataset", inner]
    asked = arguments(clips, backbone, folder, *more)
    vd(*asked)
    return folder, asked


@pytest.mark.slow
def test_trained_on_one_tested_on_the_other(matrix):
    folder, asked = matrix
    result = json.loads((folder / "cv" / "crossval.json").read_text())
    cells = {(c["trained_on"], c["tested_on"]): c for c in result["matrix"]}
    assert set(cells) == {(a, b) for a in ("set", "a") for b in ("set", "a")}
    assert cells["set", "set"]["accuracy"] == result["over_seeds"]["accuracy"]["mean"]
    there = json.loads((folder / "cv" / "on-a" / "crossval.json").read_text())
    assert cells["a", "a"]["accuracy"] == there["over_seeds"]["accuracy"]["mean"]
    # of 23 clips the three shared ones were trained on by one fold or the other
    assert cells["set", "a"]["n"] == 20
    each = []
    for run in sorted((folder / "cv").glob("fold-*")):
        evaluation = json.loads((run / "evaluation_a.json").read_text())
        own = json.loads((run / "evaluation_test.json").read_text())
        assert evaluation["threshold"] == own["threshold"]
        assert evaluation["n"] == 23 - evaluation["left_out"]["content"]
        rows = read_csv(run / "predictions_a.csv")
        rows = [row for row in rows if "/of-" not in row["path"]]
        predicted = [float(row["probability"]) >= own["threshold"] for row in rows]
        right = [
            s == (r["label"] == "violent") for s, r in zip(predicted, rows, strict=True)
        ]
        each.append(np.mean(right))
    assert len(each) == 2
    assert cells["set", "a"]["accuracy"] == pytest.approx(np.mean(each))
    assert len(read_csv(folder / "cv" / "matrix.csv")) == 4
    before = digests(folder / "cv")
    vd(*asked)
    assert digests(folder / "cv") == before


def member(fold, seed, labels, probability, threshold=0.5, groups=None, start=0):
    """A member that tested the clips c<start>, c<start + 1>, …"""
    paths = [f"c{start + i}" for i in range(len(labels))]
    predictions = made_up_predictions(
        paths, labels, probability, threshold, groups, [f"id{p}" for p in paths], fold
    )
    folder = Path("cv") / f"fold-{fold}_seed-{seed}"
    return Member(folder, fold, seed, threshold, 10, predictions)


def test_each_fold_is_judged_by_its_own_threshold(tmp_path):
    """0.3 is violent in fold 0 and not in fold 1."""
    members = [
        member(0, 0, [0, 1], [0.1, 0.3], threshold=0.2),
        member(1, 0, [0, 1], [0.3, 0.9], threshold=0.5, start=2),
    ]
    result = write_crossval(tmp_path, members, {})
    assert result["over_seeds"]["accuracy"]["mean"] == 1.0
    # the exact interval of four clips, and not [1, 1]
    assert result["over_seeds"]["accuracy"]["ci95"][0] == pytest.approx(
        0.025 ** (1 / 4)
    )
    assert result["over_seeds"]["accuracy"]["sd"] is None  # of one seed
    for one, other in zip(read_members(tmp_path), members, strict=True):
        assert list(one.predictions.paths) == list(other.predictions.paths)
        assert one.threshold == other.threshold


def test_a_perfect_recall_rests_on_the_groups_of_its_class():
    """Two seeds over four violent clips and two others, all right: each class by itself."""
    labels, probability = [1, 1, 1, 1, 0, 0], [0.9] * 4 + [0.1] * 2
    result = summarise([member(0, seed, labels, probability) for seed in (0, 1)])
    over = result["over_seeds"]
    for name, groups in (
        ("accuracy", 6),
        ("recall_violent", 4),
        ("recall_nonviolent", 2),
    ):
        assert over[name]["ci95"] == [pytest.approx(0.025 ** (1 / groups)), 1.0]
    assert over["roc_auc"]["ci95"] is None  # no resample shows its spread
    assert any("(4 with violent, 2 with" in warning for warning in result["warnings"])


def test_a_fold_of_one_class_is_left_out_of_the_mean_and_said():
    members = [
        member(0, 0, [0, 1, 1], [0.1, 0.3, 0.9]),
        member(1, 0, [0, 0], [0.3, 0.2], start=3),
    ]
    result = summarise(members)
    assert result["per_fold"][1]["roc_auc"] is None
    assert result["over_folds"]["roc_auc"]["mean"] == result["per_fold"][0]["roc_auc"]
    assert any("undefined in some fold" in warning for warning in result["warnings"])


def test_a_cell_counts_what_no_member_knew():
    one = member(0, 0, [0, 1, 1], [0.1, 0.9, 0.2])
    other = member(1, 0, [1, 1, 0], [0.9, 0.9, 0.9], start=1)  # c1, c2, c3
    figures = cell([one, other])
    assert figures["n"] == 2
    assert figures["accuracy"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["roc_auc"] is None
    assert figures["accuracy_ci95"] == [0.5, 1]  # only c2 on both sides, or only c1
    assert figures["collapsed"] == 0
    assert cell([member(0, 0, [0, 0, 1, 1], [0.9] * 4)])["collapsed"] == 1
    assert cell([one, None])["n"] == 0


@pytest.mark.parametrize("name", ["crossval.json", "predictions.csv"])
def test_a_damaged_crossval_is_one_sentence(tmp_path, name):
    write_crossval(tmp_path, [member(0, 0, [0, 1], [0.1, 0.3])], {})
    (tmp_path / name).write_text("")
    with pytest.raises(VdError, match=r"run its vd crossval command again"):
        read_members(tmp_path)
