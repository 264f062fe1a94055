"""`vd evaluate`: figures that other code finds again, slices, and other data sets."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tests.command_line import digests, vd
from tests.fabricated import made_up_predictions, make_videos
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.evaluation.cross_dataset import dataset_name, evaluate_on
from vd.evaluation.evaluate import operating_points
from vd.evaluation.slices import slices
from vd.files import read_csv, write_csv
from vd.metrics.binary import METRICS, evaluation_metrics
from vd.metrics.calibration import Calibration, false_alarm_threshold
from vd.metrics.intervals import resampled_metrics


def plain_ece(labels, probability, bins=10):
    """Equal-mass bins by sorting and splitting; probabilities all differ."""
    order = np.argsort(probability)
    parts = np.array_split(order, min(bins, len(order)))
    return sum(
        abs(probability[p].mean() - labels[p].mean()) * len(p) / len(order)
        for p in parts
    )


def plain_metrics(labels, probability, threshold):
    """By scikit-learn, and by the definitions."""
    predicted = (probability >= threshold).astype(int)
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "recall_violent": sk.recall_score(labels, predicted),
        "recall_nonviolent": sk.recall_score(labels, predicted, pos_label=0),
        "precision_violent": sk.precision_score(
            labels, predicted, zero_division=np.nan
        ),
        "precision_nonviolent": sk.precision_score(
            labels, predicted, pos_label=0, zero_division=np.nan
        ),
        "f1_violent": sk.f1_score(labels, predicted),
        "roc_auc": sk.roc_auc_score(labels, probability),
        "average_precision": sk.average_precision_score(labels, probability),
        "brier": sk.brier_score_loss(labels, probability),
    }


def made_up(count, groups, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    probability = 1 / (1 + np.exp(-(rng.normal(size=count) + 1.5 * labels - 0.5)))
    if digits is not None:
        probability = probability.round(digits)  # ties
    return labels, probability, rng.integers(0, groups, count)


def test_metrics_are_those_of_scikit_learn():
    labels, probability, group = made_up(200, 30)
    result = evaluation_metrics(labels, probability, group, 0.4)
    plain = plain_metrics(labels, probability, 0.4)
    plain["ece"] = plain_ece(labels, probability)
    assert set(plain) == set(METRICS)
    for name, value in plain.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("digits", [None, 1])
def test_vectorised_bootstrap_is_the_slow_plain_one(digits):
    """Whole groups drawn one by one, clips copied, scikit-learn asked each time."""
    labels, probability, group = made_up(60, 12, digits=digits)
    resampled = resampled_metrics(labels, probability, probability >= 0.4, group)
    generator = np.random.Generator(np.random.Philox(0))
    names = np.unique(group)
    for resample in range(1000):
        drawn = generator.integers(len(names), size=len(names))
        clips = np.concatenate([np.flatnonzero(group == names[g]) for g in drawn])
        if resample % 25:
            continue
        plain = plain_metrics(labels[clips], probability[clips], 0.4)
        for name, values in resampled.items():
            assert values[resample] == pytest.approx(plain[name], abs=1e-12), name
    result = evaluation_metrics(labels, probability, group, 0.4)
    assert [key for key in result if key.endswith("_ci95")] == [
        f"{name}_ci95" for name in resampled
    ]
    for name, values in resampled.items():
        if result[name] == 1:  # then the interval is the exact one
            continue
        quantiles = np.quantile(values, [0.025, 0.975])
        assert result[f"{name}_ci95"] == pytest.approx(list(quantiles))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    )
)
def test_figures_do_not_depend_on_the_order_of_the_clips(rows):
    """Any labels, tied probabilities and groups."""
    labels, fifths, group = np.array(rows).T
    probability = fifths / 5 + 0.05
    result = evaluation_metrics(labels, probability, group, 0.5)
    order = np.random.default_rng(0).permutation(len(labels))
    again = evaluation_metrics(labels[order], probability[order], group[order], 0.5)
    for name, value in result.items():
        assert again[name] == (
            pytest.approx(value, abs=1e-12) if isinstance(value, float) else value
        )


def test_a_detector_that_always_says_a_half_is_calibrated_on_balanced_clips():
    """Its clips all tie: no order of them may look like a fault."""
    result = evaluation_metrics(
        np.repeat([0, 1], 20), np.full(40, 0.5), np.arange(40), 0.5
    )
    assert result["ece"] == pytest.approx(0)
    assert result["roc_auc"] == 0.5
    assert result["average_precision"] == 0.5
    assert result["precision_nonviolent"] is None
    assert result["warnings"][0].startswith("undefined: precision non-violent; ")
    assert result["collapsed"]


def test_one_class_is_null_with_a_sentence_never_zero():
    result = evaluation_metrics(
        np.zeros(30, int), np.linspace(0, 1, 30), np.arange(30), 0.5
    )
    for name in ("balanced_accuracy", "recall_violent", "f1_violent", "roc_auc",
                 "average_precision", "precision_violent"):  # fmt: skip
        assert (result[name], result.get(f"{name}_ci95")) == (None, None)
    assert "ROC AUC, average precision; a class has no clip" in result["warnings"][0]
    assert result["recall_nonviolent"] == 0.5
    assert result["precision_nonviolent"] == 1


def test_perfect_predictions():
    labels, _, group = made_up(2000, 2000)
    perfect = evaluation_metrics(labels, labels * 0.98 + 0.01, group, 0.5)
    assert all(perfect[n] == 1 for n in METRICS if n not in ("ece", "brier"))
    assert perfect["accuracy_ci95"][0] < 1
    assert perfect["roc_auc_ci95"] is None  # no resample shows its spread


def test_three_clips_and_one_group():
    labels, probability = np.array([0, 1, 1]), np.array([0.2, 0.4, 0.9])
    few = evaluation_metrics(labels, probability, np.arange(3), 0.5)
    assert few["accuracy"] == pytest.approx(2 / 3)
    assert any("3 groups" in warning for warning in few["warnings"])
    alone = evaluation_metrics(labels, probability, np.zeros(3), 0.3)
    assert alone["accuracy"] == 1
    assert all(alone[name] is None for name in alone if name.endswith("_ci95"))
    json.dumps([few, alone], allow_nan=False)


def test_few_groups_of_one_class_are_a_warning():
    labels = np.repeat([1, 0], [25, 20])
    group = np.concatenate([np.arange(25), np.repeat([25, 26], 10)])
    score = np.where(np.arange(45) % 5, labels, 1 - labels)
    result = evaluation_metrics(labels, score.astype(float), group, 0.5)
    (warning,) = (w for w in result["warnings"] if "too narrow" in w)
    assert "27 groups (25 with violent, 2 with non-violent clips;" in warning


def test_threshold_of_five_percent_false_alarms_by_hand():
    labels = np.array([0] * 40 + [1] * 4)
    probability = np.concatenate([np.arange(40) / 100, [0.2, 0.375, 0.5, 0.6]])
    # two of the forty may be reached: 0.38 and 0.39, so just above 0.37
    threshold = false_alarm_threshold(probability, labels)
    assert threshold == pytest.approx((0.37 + 0.375) / 2)
    assert (probability[labels == 0] >= threshold).mean() == 0.05
    assert false_alarm_threshold(np.array([0.3, 0.4]), np.array([0, 0])) > 0.4
    assert false_alarm_threshold(np.array([0.3]), np.array([1])) is None
    tied = false_alarm_threshold(np.full(50, 0.5), np.repeat([0, 1], 25))
    assert tied > 0.5  # a tie is reached by all or none


def test_operating_points_by_hand():
    labels = np.array([1, 1, 0, 0, 0, 0])
    probability = np.array([0.9, 0.4, 0.8, 0.3, 0.2, 0.7])
    length = np.array([5, 5, 900, 900, 1800, 0.0])  # the last is not known
    tested = made_up_predictions("abcdef", labels, probability)
    points = operating_points(tested, length, Calibration(1.0, 0.5, "", 0.75))
    assert list(points) == ["best_balanced_accuracy", "false_alarms_5_percent"]
    balanced, strict = points.values()
    assert balanced["recall_violent"] == balanced["false_alarm_share"] == 0.5
    assert balanced["false_alarms_per_hour"] == pytest.approx(1.0)  # 1 in 3600 s
    assert strict["false_alarm_share"] == 0.25
    every, none = operating_points(tested, length, Calibration(1.0, 0.1, "")).values()
    assert every["false_alarms_per_hour"] == pytest.approx(3.0)  # all, of known length
    assert every["false_alarm_share_ci95"] == [pytest.approx(0.025 ** (1 / 4)), 1.0]
    assert none is None  # not fitted


def test_slices_are_the_clips_they_say():
    seen = [
        (640, 480, 1, 10.0), (480, 640, 2, None), (320, 240, 4.9, 50.0),
        (1920, 1080, 5, 99.0), (100, 100, 0, 100.0), (640, 360, 70, 150.0),
        (640, 359, 9, 255.0), (640, 480, 1, 0.0),
    ]  # fmt: skip
    outcomes = [
        Outcome("used", fps=25.0, width=w, height=h, duration=d, brightness=grey)
        for w, h, d, grey in seen
    ]
    labels = np.arange(8) % 2
    probability = labels * 0.5 + 0.25
    probability[0] = 0.9
    groups = ["", *"bcabcab"]
    tested = made_up_predictions("abcdefgh", labels, probability, groups=groups)
    videos = make_videos(8)
    made = slices(videos, outcomes, tested)
    names = {f: [(row["slice"], row["n"]) for row in made[f]] for f in made}
    assert names["group"] == [("b", 3), ("c", 2), ("a", 2), ("none", 1)]
    assert names["resolution"] == [
        ("under 240 lines", 1), ("240 to 360 lines", 2), ("360 to 480 lines", 1),
        ("480 to 720 lines", 3), ("1080 lines and more", 1),
    ]  # fmt: skip
    assert names["fps"] == [("24 to 29 frames/s", 8)]
    assert names["duration"][-2:] == [("60 s and more", 1), ("unknown", 1)]
    assert names["brightness"][0] == ("under 50 of 255", 2)
    short = made["duration"][0]
    assert (short["accuracy"], short["recall_violent"], short["recall_nonviolent"]) == (
        0.5, 1.0, 0.0,
    )  # fmt: skip
    assert made["resolution"][0]["roc_auc"] is None  # one class
    ungrouped = tested._replace(groups=np.array([""] * 8))
    assert "group" not in slices(videos, outcomes, ungrouped)


def test_copies_and_groups_are_resampled_together():
    groups, ids = ["", "", "g", "g"], "1123"
    tested = made_up_predictions("bacd", [0] * 4, [0.5] * 4, groups=groups, ids=ids)
    assert tested.cluster_N.tolist() == ["clip a", "clip a", "group g", "group g"]


def test_names_of_data_sets(tmp_path):
    assert dataset_name(tmp_path / "hockey" / "manifest.csv") == "hockey"
    assert dataset_name(tmp_path / "hockey" / "night.csv") == "night"
    assert dataset_name(tmp_path / "scfd") == "scfd"
    assert dataset_name(tmp_path / "hockey" / "test") == "hockey-test"


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The finished run and its cache, to be changed."""
    folder = tmp_path_factory.mktemp("copy") / "trained"
    shutil.copytree(trained[0], folder)
    return folder / "run"


def test_figures_follow_from_the_csv(run):
    result = json.loads((run / "evaluation_test.json").read_text())
    rows = read_csv(run / "predictions_test.csv")
    labels = np.array([row["label"] == "violent" for row in rows]).astype(int)
    probability = np.array([float(row["probability"]) for row in rows])
    plain = plain_metrics(labels, probability, result["threshold"])
    for name in ("accuracy", "recall_violent", "roc_auc", "brier"):
        assert result[name] == pytest.approx(plain[name], abs=1e-12)
    validation = read_csv(run / "predictions_val.csv")
    calm = [float(r["probability"]) for r in validation if r["label"] == "nonviolent"]
    strict = result["operating_points"]["false_alarms_5_percent"]
    assert sum(p >= strict["threshold"] for p in calm) <= 0.05 * len(calm)
    alarm = probability >= strict["threshold"]
    assert strict["recall_violent"] == pytest.approx(alarm[labels == 1].mean())
    ledger = {row["path"]: row for row in read_csv(run / "ledger.csv")}
    seconds = [float(ledger[r["path"]]["duration"]) for r in rows if r["label"][0] == "n"]  # fmt: skip
    assert result["nonviolent_hours"] == pytest.approx(sum(seconds) / 3600)
    for facet in result["slices"].values():
        assert sum(row["n"] for row in facet) == result["n"] == 8


def test_all_splits_at_once(run):
    result = json.loads(vd("evaluate", "--checkpoint-dir", run, "--split", "all").stdout)  # fmt: skip
    by_split = {row["slice"]: row for row in result["slices"]["split"]}
    assert {name: row["n"] for name, row in by_split.items()} == {
        "test": 8, "train": 16, "val": 8,
    }  # fmt: skip
    own = json.loads((run / "evaluation_test.json").read_text())
    assert by_split["test"]["accuracy_ci95"] == own["accuracy_ci95"]
    assert any("trained on most of these" in warning for warning in result["warnings"])


def write_other(folder, clips, run):
    """A data set of the run's 8 test clips, 2 train clips, and 1 in a train clip's group."""
    rows = read_csv(run / "splits.csv")
    test = [row for row in rows if row["split"] == "test"]
    train = [row for row in rows if row["split"] == "train"]
    chosen = [(row, "") for row in test[:7]]
    chosen += [(test[7], "shared"), (train[0], "shared"), (train[1], "")]
    folder.mkdir()
    made = [
        {"path": clips / row["path"], "label": row["label"], "group": group}
        for row, group in chosen
    ]
    write_csv(folder / "manifest.csv", made)
    return folder / "manifest.csv", test[:7]


def test_another_data_set_without_what_was_trained_on(run, clips, tmp_path):
    other, kept = write_other(tmp_path / "scfd", clips, run)
    before = digests(run)
    where = ["--checkpoint-dir", run, "--cache-dir", run.parent / "cache"]
    done = vd("evaluate", *where, "--on", other)
    result = json.loads(done.stdout)
    assert result["left_out"] == {"content": 2, "near_duplicate": 0, "group": 1}
    assert "2 by content, 0 more as near duplicates, 1 more by group" in done.stderr
    assert result["n"] == 7
    own = json.loads((run / "evaluation_test.json").read_text())
    assert (result["threshold"], result["temperature"]) == (
        own["threshold"], own["temperature"],
    )  # fmt: skip
    logits = {
        row["path"]: row["logit"] for row in read_csv(run / "predictions_test.csv")
    }
    there = read_csv(run / "predictions_scfd.csv")
    assert [row["logit"] for row in there] == [
        logits[row["path"]] for row in sorted(kept, key=lambda row: row["path"])
    ]
    after = digests(run)
    assert before.items() <= after.items()  # its own figures stay
    vd("evaluate", *where, "--on", other)
    assert digests(run) == after
    elsewhere, _ = write_other(tmp_path / "x", clips, run)
    done = vd("evaluate", *where, "--on", elsewhere, "--name", "scfd", code=2)
    assert "is of another data set" in done.stderr
    assert "--name" in done.stderr
    assert digests(run) == after


def test_what_cannot_be_evaluated_on_is_refused(run, clips, tmp_path):
    (tmp_path / "empty").mkdir()
    for where, name, words in [
        (tmp_path / "gone", None, "gone does not exist"),
        (tmp_path / "empty", None, "has no video"),
        (clips, "test", "is the name of a run's own evaluation"),
        (clips, "../x", "or cannot name a file"),
        (clips / "train", None, "trained or validated on all of its 16"),
    ]:
        with pytest.raises(VdError, match=re.escape(words)):
            evaluate_on(run, where, name, cache_dir=run.parent / "cache")
    for more, words in [
        (["--on", clips, "--split", "val"], "--split are for the run's own"),
        (["--name", "x"], "--group-from for another one"),
    ]:
        done = vd("evaluate", "--checkpoint-dir", run, *more, code=2)
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_without_its_videos_a_run_is_evaluated_from_its_features(run, clips, tmp_path):
    shutil.copytree(run.parent, tmp_path, dirs_exist_ok=True)
    arguments = [
        "--checkpoint-dir",
        tmp_path / "run",
        "--cache-dir",
        tmp_path / "cache",
    ]
    (tmp_path / "nowhere").mkdir()
    arguments += ["--dataset-path", tmp_path / "nowhere"]
    refused = vd("evaluate", *arguments, code=2)
    assert "has none of the clips" in refused.stderr  # of a data set that is another
    first = read_csv(run / "predictions_test.csv")[0]["path"]
    (tmp_path / "nowhere" / first).parent.mkdir(parents=True)
    shutil.copy(clips / first, tmp_path / "nowhere" / first)
    before = (tmp_path / "run" / "evaluation_test.json").read_bytes()
    vd("evaluate", *arguments)
    assert (tmp_path / "run" / "evaluation_test.json").read_bytes() == before
