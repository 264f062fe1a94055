"""`vd compare`: paired figures against known answers and other code; what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tests.command_line import digests, vd
from tests.fabricated import made_up_predictions
from vd.errors import VdError
from vd.evaluation.compare import compare, curve, text
from vd.evaluation.crossval import write_crossval
from vd.evaluation.predictions import Member, read_members, to_rows
from vd.files import read_csv, write_csv
from vd.metrics.significance import clips_needed, corrected_t_test, holm, mcnemar

KEPT = Path(__file__).parent / "kept_run" / "run"


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    b = np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    found = mcnemar(a, b)
    assert (found["only_a"], found["only_b"]) == (5, 1)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # two tails of six tosses
    assert mcnemar(a, a) == {"only_a": 0, "only_b": 0, "p": 1.0}


def test_corrected_t_test_by_hand():
    """Nadeau and Bengio's variance: (1/J + n_test/n_train) s²."""
    differences = np.array([0.02, 0.04, 0.01, 0.03])
    found = corrected_t_test(differences, 0.25)
    t = 0.025 / math.sqrt((0.25 + 0.25) * np.var(differences, ddof=1))
    assert found["t"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * (1 - stats.t.cdf(t, 3)))
    plain = stats.ttest_1samp(differences, 0)
    assert corrected_t_test(differences, 0)["p"] == pytest.approx(plain.pvalue)
    assert found["p"] > plain.pvalue
    assert corrected_t_test(np.zeros(4), 0.25)["p"] == 1.0
    assert corrected_t_test(np.full(4, 0.1), 0.25)["p"] is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, None, 0.5]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_clips_needed_are_enough():
    """Of simulated comparisons with so many clips about 80 % are significant."""
    count = clips_needed(0.10, 0.05)
    rng = np.random.default_rng(0)
    cells = rng.multinomial(count, [0.075, 0.025, 0.9], size=2000)
    z = (cells[:, 0] - cells[:, 1]) / np.sqrt(cells[:, 0] + cells[:, 1])
    assert 0.77 < np.mean(z > 1.959964) < 0.83
    assert clips_needed(0.0) == clips_needed(0.01)  # at least the difference itself


def write_run(run, rows):
    """The kept run with other predictions: path, label, group and score of each clip."""
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(KEPT / name, run / name)
    (run / "evaluation_test.json").write_text('{"threshold": 0.5}')
    paths, labels, groups, score = zip(*rows, strict=True)
    predictions = made_up_predictions(paths, labels, score, groups=groups)
    write_csv(run / "predictions_test.csv", to_rows(predictions))
    return run


def made_up(count, shift, seed, groups):
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, 2, count)
    score = 1 / (1 + np.exp(-(rng.normal(size=count) + shift * (2 * labels - 1))))
    return [(f"{i}.mp4", labels[i], f"g{i % groups}", score[i]) for i in range(count)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A weak and a better detector of 400 clips in 50 groups."""
    folder = tmp_path_factory.mktemp("pair")
    write_run(folder / "weak", made_up(400, 0.5, 1, 50))
    write_run(folder / "good", made_up(400, 1.2, 2, 50)[::-1])  # in another order
    return folder


def test_figures_are_those_of_other_code(pair):
    result = compare([pair / "weak", pair / "good"])
    (found,) = result["comparisons"]
    _, labels, _, weak = map(np.array, zip(*made_up(400, 0.5, 1, 50), strict=True))
    good = np.array([score for *_, score in made_up(400, 1.2, 2, 50)])
    right = [(score >= 0.5) == labels for score in (weak, good)]
    difference = right[1].astype(int) - right[0].astype(int)
    assert found["accuracy_difference"] == pytest.approx(difference.mean())
    assert found["accuracy_a"] == right[0].mean()
    area = sk.roc_auc_score(labels, good) - sk.roc_auc_score(labels, weak)
    assert found["roc_auc_difference"] == pytest.approx(area)
    only = int((right[0] > right[1]).sum()), int((right[1] > right[0]).sum())
    (test,) = found["mcnemar"]
    assert (test["only_a"], test["only_b"]) == only
    assert found["p"] == pytest.approx(stats.binomtest(only[1], sum(only)).pvalue)
    assert found["corrected_t_test"] is None
    low, high = found["accuracy_difference_ci95"]
    assert low < difference.mean() < high
    assert found["groups"] == 50
    assert found["shown"]
    first = found["verdict"]
    assert first.startswith(
        f"good is better than weak by {100 * difference.mean():.3g} points"
    )
    assert first.endswith(": shown")
    psi = np.mean(right[0] != right[1])
    assert found["clips_needed_for_1_point"] == clips_needed(psi)
    swapped = compare([pair / "good", pair / "weak"])["comparisons"][0]
    assert swapped["accuracy_difference"] == -found["accuracy_difference"]
    assert swapped["verdict"].startswith("good is better than weak by")


def test_the_same_predictions_show_nothing(pair):
    write_run(pair / "twin", made_up(400, 1.2, 2, 50))
    result = compare([pair / "good", pair / "twin"])
    (found,) = result["comparisons"]
    assert found["accuracy_difference"] == 0
    assert found["p"] == 1.0
    low, high = found["accuracy_difference_ci95"]
    assert low == -high
    assert high == pytest.approx(1 - 0.025 ** (1 / 50))  # 50 groups, none differs
    assert found["roc_auc_difference"] == 0
    assert found["roc_auc_difference_ci95"] is None  # no resample shows its spread
    assert not found["shown"]
    assert "good and twin are equally accurate" in found["verdict"]


def test_a_collapse_is_a_warning(pair):
    fallen = [(p, y, g, 0.9) for p, y, g, _ in made_up(400, 1.2, 2, 50)]
    write_run(pair / "fallen", fallen)
    collapse, one_run = compare([pair / "good", pair / "fallen"])["warnings"]
    assert collapse.startswith("fallen: CLASS COLLAPSE in 1 of 1 members")
    assert "one training run of each" in one_run
    assert compare([pair / "good", pair / "weak"])["warnings"] == [one_run]


def test_several_are_corrected_and_a_chance_difference_is_not_shown(pair):
    for seed in (7, 8):
        write_run(pair / f"weak{seed}", made_up(400, 0.5, seed, 50))
    result = compare([pair / name for name in ("weak", "good", "weak7", "weak8")])
    found = result["comparisons"]
    raw = [one["p"] for one in found]
    assert [one["p_holm"] for one in found] == pytest.approx(holm(raw))
    assert [one["shown"] for one in found] == [True, False, False]
    assert "after Holm's correction for 3" in found[0]["verdict"]
    assert found[1]["verdict"].endswith(": not shown")
    printed = text(result).splitlines()
    assert printed[::3] == [one["verdict"] for one in found]
    assert f"accuracy {100 * found[0]['accuracy_a']:.1f} %, ROC AUC" in printed[1]


@pytest.mark.parametrize(
    ("labels", "group", "limits"),
    [
        ([0, 1, 1], "", ["too narrow", "no source groups"]),
        ([0, 0, 0], "", ["too narrow", "no source groups"]),
        ([0, 1, 1], "g", ["all clips are of one group"]),
    ],
)
def test_three_clips_one_class_and_one_group(tmp_path, labels, group, limits):
    sides = [
        write_run(
            tmp_path / name, list(zip("abc", labels, [group] * 3, score, strict=True))
        )
        for name, score in (("a", [0.2, 0.3, 0.9]), ("b", [0.9] * 3))
    ]
    result = compare(sides)
    json.dumps(result, allow_nan=False)
    (found,) = result["comparisons"]
    assert not found["shown"]
    assert (found["roc_auc_difference"] is None) == (1 not in labels)
    assert (found["accuracy_difference_ci95"] is None) == bool(group)
    assert ("no interval" in found["verdict"]) == bool(group)
    assert all(words in " ".join(result["warnings"]) for words in limits)


def test_what_is_not_paired_is_refused(pair, tmp_path):
    rows = made_up(400, 0.5, 1, 50)
    fewer = write_run(tmp_path / "fewer", rows[1:])
    with pytest.raises(VdError, match=r"different clips \(1 are in only one of them"):
        compare([pair / "weak", fewer])
    path, label, group, score = rows[0]
    other = [(path, 1 - label, group, score), *rows[1:]]
    relabelled = write_run(tmp_path / "relabelled", other)
    with pytest.raises(VdError, match=r"'0.mp4' has another label"):
        compare([pair / "weak", relabelled])


def test_clips_are_paired_by_content_where_paths_have_changed(pair, tmp_path):
    names = {f"new/{400 - i}.mp4": f"{i}.mp4" for i in range(400)}
    moved = zip(names, made_up(400, 1.2, 2, 50), strict=True)
    run = write_run(tmp_path / "good", [(name, *row[1:]) for name, row in moved])
    splits = [
        {"path": p, "id": content, "split": "test"} for p, content in names.items()
    ]
    write_csv(run / "splits.csv", splits)
    ours = compare([pair / "weak", run])["comparisons"][0]
    theirs = compare([pair / "weak", pair / "good"])["comparisons"][0]
    assert ours["accuracy_difference_ci95"] == theirs["accuracy_difference_ci95"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluation_test.json", "has no evaluation_test.json"),
        ("predictions_test.csv", "is missing or empty"),
        ("config.json", "neither config.json nor crossval.json"),
    ],
)
def test_an_unfinished_run_is_one_sentence(pair, tmp_path, name, words):
    shutil.copytree(pair / "good", tmp_path / "good")
    (tmp_path / "good" / name).unlink()
    with pytest.raises(VdError, match=words):
        compare([pair / "weak", tmp_path / "good"])


def test_the_command_writes_what_it_says(pair, tmp_path):
    out, both = tmp_path / "out", (pair / "weak", pair / "good")
    done = vd("compare", *both, "--out", out)
    assert {p.name for p in out.iterdir()} == {
        "compare.json", "compare.csv", "roc.png", "curves.csv", "curves.png",
    }  # fmt: skip
    result = json.loads((out / "compare.json").read_text())
    (row,) = read_csv(out / "compare.csv")
    found = result["comparisons"][0]
    assert float(row["accuracy_difference"]) == found["accuracy_difference"]
    assert found["verdict"] in done.stdout
    before = digests(tmp_path)
    vd("compare", *both, "--out", out)
    assert digests(tmp_path) == before
    kept = digests(pair / "good")
    for arguments, words in [
        ([], "needs a folder"),
        ([pair / "weak"], "was trained without a linear probe"),
        ([*both, "--out", both[1]], "is the folder of a run"),
    ]:
        refused = vd("compare", *arguments, code=2).stderr
        assert words in refused
        assert len(refused.strip().splitlines()) == 1
    assert digests(pair / "good") == kept


def write_crossed(folder, shift, seeds=(0, 1), salt=0, turn=0):
    """A cross-validation of 120 clips in 30 groups."""
    members = []
    for seed in seeds:
        rows = made_up(120, shift, 10 * seed + salt, 30)
        for fold in range(4):
            mine = [row for i, row in enumerate(rows) if (i % 30 + turn) % 4 == fold]
            paths, labels, groups, score = zip(*mine, strict=True)
            run = folder / f"fold-{fold}_seed-{seed}"
            threshold = 0.4 + 0.05 * fold
            predictions = made_up_predictions(
                paths, labels, score, threshold, groups, fold=fold
            )
            members.append(Member(run, fold, seed, threshold, 75, predictions))
    write_crossval(folder, members, {})
    return folder


def crossed_of(folder, right):
    """A cross-validation of folds of six clips: how many are right, a row a seed."""
    members = []
    for (seed, fold), count in np.ndenumerate(right):
        labels = np.arange(6) % 2
        score = np.where(np.arange(6) < count, labels, 1 - labels) * 0.8 + 0.1
        names = [f"{fold}-{i}" for i in range(6)]
        predictions = made_up_predictions(names, labels, score, groups=names, fold=fold)
        run = folder / f"fold-{fold}_seed-{seed}"
        members.append(Member(run, fold, seed, 0.5, 12, predictions))
    folder.mkdir()
    write_crossval(folder, members, {})
    return folder


def test_what_differs_by_rounding_alone_is_no_difference(tmp_path):
    base = crossed_of(tmp_path / "base", [[4, 3, 2], [3, 2, 1]])
    one_more = crossed_of(tmp_path / "one more", [[5, 4, 3], [4, 3, 2]])
    found = compare([base, one_more])["comparisons"][0]
    assert found["corrected_t_test"]["p"] is None
    assert found["test"] == "McNemar's exact test"
    assert found["p"] == mcnemar(np.zeros(3, bool), np.ones(3, bool))["p"] == 0.25
    assert not found["shown"]
    a = crossed_of(tmp_path / "a", [[4, 3, 2], [3, 2, 1], [5, 5, 1]])
    b = crossed_of(tmp_path / "b", [[3, 4, 2], [2, 2, 2], [5, 4, 2]])
    found = compare([a, b])["comparisons"][0]
    assert found["accuracy_difference"] == 0
    assert found["verdict"].startswith("a and b are equally accurate")


def test_cross_validations_by_fold_and_seed(tmp_path):
    a = write_crossed(tmp_path / "a", 0.5, salt=3)
    b = write_crossed(tmp_path / "b", 1.2, salt=4)
    (found,) = compare([a, b])["comparisons"]
    right = {}  # of each folder and seed: fold by clip, and whether it is right
    for folder in (a, b):
        for member in read_members(folder):
            labels, _, predicted = member.predictions.tested
            for path, one in zip(
                member.predictions.paths, predicted == labels, strict=True
            ):
                right[folder, member.seed, path] = member.fold, bool(one)
    paths = [row[0] for row in made_up(120, 0, 0, 30)]
    differences, only_a, only_b = [], [], []
    for seed in (0, 1):
        both = [(right[a, seed, path], right[b, seed, path]) for path in paths]
        only_a.append(sum(mine > its for (_, mine), (_, its) in both))
        only_b.append(sum(mine < its for (_, mine), (_, its) in both))
        for fold in range(4):
            own = [int(its) - mine for (f, mine), (_, its) in both if f == fold]
            differences.append(np.mean(own))
    share = 30 / 75
    t = np.mean(differences) / math.sqrt((1 / 8 + share) * np.var(differences, ddof=1))
    test = found["corrected_t_test"]
    assert test["test_to_train"] == share
    assert test["t"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 7))
    assert found["test"] == "corrected resampled t-test"
    assert found["accuracy_difference"] == (sum(only_b) - sum(only_a)) / 240
    assert [test["only_b"] for test in found["mcnemar"]] == only_b
    assert found["groups"] == 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"turn": 1}, "has another fold"),
        ({"seeds": (0, 2)}, r"has the seeds \[0, 1\] and .* \[0, 2\]"),
    ],
)
def test_other_folds_or_seeds_are_refused(tmp_path, settings, words):
    a = write_crossed(tmp_path / "a", 0.5)
    b = write_crossed(tmp_path / "b", 0.5, **settings)
    with pytest.raises(VdError, match=words):
        compare([a, b])


def test_curves_are_means_over_the_runs_that_got_there(tmp_path):
    for name, losses in (("a", [0.4, 0.2]), ("b", [0.6])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"epoch": e, "val_loss": v, "val_accuracy": None}) + "\n"
                for e, v in enumerate(losses, 1)
            )
        )
    rows = curve([tmp_path / "a", tmp_path / "b"])
    assert [row["members"] for row in rows] == [2, 1]
    assert rows[0]["val_loss_mean"] == pytest.approx(0.5)
    assert rows[0]["val_loss_sd"] == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert (rows[1]["val_loss_mean"], rows[1]["val_loss_sd"]) == (0.2, None)
    assert rows[0]["val_accuracy_mean"] is None
    assert curve([tmp_path / "none"]) == []
