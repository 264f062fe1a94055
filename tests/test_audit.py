"""Audit: planted copies, leaks and shortcuts are named; a clean set is left in peace."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.copies import read_video, write_copies, write_video
from tests.command_line import vd
from vd.audit.leakage import groups_cut, video_pairs, without_leaks
from vd.audit.shortcuts import (
    is_testable,
    one_class_groups,
    permuted,
    picture_model,
    shortcut,
)
from vd.errors import VdError
from vd.tables import read_csv, write_csv
from vd.videos.duplicates import Pair
from vd.videos.manifest import Video


def video(name, label=0, split="", group="", id=None):
    return Video(name, name, label, split, group, id or f"id-{name}")


def audited(folder, dataset, backbone, *extra):
    """The content of audit.json and the page."""
    vd(
        "audit", "--dataset-path", dataset, "--cache-dir", folder / "cache", "--report-dir",
        folder / "report", "--backbone", backbone, *extra,
    )  # fmt: skip
    page = (folder / "report" / "audit.html").read_text()
    return json.loads((folder / "report" / "audit.json").read_text()), page


@pytest.fixture(scope="module")
def faulty(clips, tmp_path_factory):
    """Rendered clips with a mirrored copy under the other label, a trimmed one in another
    split, an exact copy, violent clips of another size, and a name that is markup."""
    root = tmp_path_factory.mktemp("faulty") / "set"
    shutil.copytree(clips, root)
    train, test = root / "train", root / "test"
    first, second, third = sorted((train / "nonviolent").iterdir())[:3]
    scratch = tmp_path_factory.mktemp("copies")
    made = [dict(write_copies(path, scratch, 0)) for path in (first, second)]
    shutil.copy(made[0]["mirrored"], train / "violent" / "both.mp4")
    shutil.copy(made[1]["trimmed"], test / "nonviolent" / "leak.mp4")
    shutil.copy(third, train / "nonviolent" / "<script>alert(1)<&'.mp4")
    for path in sorted(root.glob("*/violent/clip*.mp4")):
        frames, rate = read_video(path)
        write_video(
            path, [np.repeat(np.repeat(f, 2, 0), 2, 1) for f in frames], rate, 20
        )
    return root


def test_planted_faults_are_named_the_worst_first(faulty, backbone, tmp_path):
    values, page = audited(tmp_path, faulty, backbone)
    rows = values["pairs"]
    assert rows[0]["labels"] in (["violent", "nonviolent"], ["nonviolent", "violent"])
    assert "train/violent/both.mp4" in rows[0]["paths"]
    assert rows[0]["mirrored"]
    assert set(rows[1]["splits"]) == {"train", "test"}
    assert "test/nonviolent/leak.mp4" in rows[1]["paths"]
    assert [row["kind"] for row in rows] == ["duplicate", "duplicate", "copy"]
    findings = values["findings"]
    assert "both labels" in findings[0]
    assert "two splits" in findings[1]
    assert any(f.startswith("size, rate, length") for f in findings)
    assert values["shortcuts"]["metadata"]["auc"] > 0.9
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;&amp;&#39;.mp4" in page
    assert page.count("data:image/jpeg;base64,") == 2 * len(rows)
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained


def test_a_clean_set_has_no_pair_and_a_run_on_it_no_leak(
    trained, clips, backbone, tmp_path
):
    run = trained[0] / "run"
    values, page = audited(tmp_path, clips, backbone, "--checkpoint-dir", run)
    assert values["pairs"] == values["groups_cut"] == []
    assert "No two videos show the same." in page
    # a clip of either class has the same size, rate and length
    assert values["shortcuts"]["metadata"]["p"] > 0.01
    rows = values["run"]["test"]
    evaluation = json.loads((run / "evaluation_test.json").read_text())
    assert rows["all"]["accuracy"] == evaluation["accuracy"]
    assert rows["without_shared_group"]["left_out"] == 0
    assert "A run without leaked test clips" in page


def test_a_run_on_other_clips_is_refused(trained, clips, backbone, tmp_path):
    shutil.copytree(clips, tmp_path / "set")
    next((tmp_path / "set" / "test" / "violent").glob("*.mp4")).unlink()
    done = vd(
        "audit", "--dataset-path", tmp_path / "set", "--cache-dir", tmp_path / "cache",
        "--report-dir", tmp_path / "report", "--checkpoint-dir", trained[0] / "run", code=2,
    )  # fmt: skip
    assert "was trained on 1 files that" in done.stderr


def test_leaked_clips_are_left_out_by_hand(tmp_path):
    names = ("a", "b", "c", "d")
    labels, splits = (1, 1, 0, 0), ("test", "test", "test", "train")
    videos = [
        video(n, label, split, "g" if n in "cd" else "")
        for n, label, split in zip(names, labels, splits, strict=True)
    ]
    rows = [
        {"path": n, "label": ("nonviolent", "violent")[label], "probability": p}
        for n, label, p in zip("abc", labels[:3], (0.9, 0.2, 0.1), strict=True)
    ]
    write_csv(tmp_path / "predictions_test.csv", rows)
    (tmp_path / "evaluation_test.json").write_text('{"threshold": 0.5}')
    pairs = video_pairs(videos, [Pair("id-a", "id-d", "duplicate", 0.9, False, 0.0)])
    counted = without_leaks(tmp_path, videos, pairs)["test"]
    assert counted["all"] == {"clips": 3, "left_out": 0, "accuracy": 2 / 3}
    assert counted["without_shared_footage"] == {
        "clips": 2,
        "left_out": 1,
        "accuracy": 0.5,
    }
    assert counted["without_shared_scene"]["left_out"] == 1
    assert counted["without_shared_group"] == {
        "clips": 1,
        "left_out": 2,
        "accuracy": 0.0,
    }
    (tmp_path / "predictions_test.csv").write_text("path,label\na,violent\n")
    with pytest.raises(VdError, match=r"predictions_test\.csv is damaged"):
        without_leaks(tmp_path, videos, pairs)


def test_pairs_of_files_and_groups_cut_by_hand():
    videos = [
        video("a", 1, "train", "g"),
        video("b", 0, "test", "g", id="id-a"),
        video("c", 1, "train", "h"),
    ]
    pairs = video_pairs(videos, [Pair("id-a", "id-c", "same-scene", 0.99, False, 1.0)])
    assert [(p.kind, p.first.name, p.second.name) for p in pairs] == [
        ("copy", "a", "b"),
        ("same-scene", "b", "c"),
        ("same-scene", "a", "c"),
    ]
    assert pairs[0].both_labels
    assert pairs[1].across_splits
    assert not pairs[1].both_labels  # a place may see both
    assert groups_cut(videos) == [{"group": "g", "clips": {"train": 1, "test": 1}}]


def test_groups_of_one_class_by_hand():
    labels = {"a": [0] * 10, "b": [1, 1], "c": [0, 1], "d": [1]}
    rows = one_class_groups(labels, share_violent=0.25)
    assert [(row["group"], row["label"], row["clips"]) for row in rows] == [
        ("a", 0, 10),
        ("b", 1, 2),
    ]
    by_name = {row["group"]: row["p"] for row in rows}
    assert by_name["a"] == pytest.approx(4 * 0.75**10)
    assert by_name["b"] == pytest.approx(4 * 0.25**2)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40)
)
def test_permuted_labels_are_the_same_labels_in_other_places(rows):
    labels_N, groups_N = np.array(rows).T
    made = permuted(labels_N, groups_N, np.random.default_rng(0))
    assert sorted(made) == sorted(labels_N)


def test_permuted_labels_of_equal_groups_stay_together():
    labels_N = np.repeat([0, 0, 0, 1, 1], 4)
    groups_N = np.repeat(np.arange(5), 4)
    made = permuted(labels_N, groups_N, np.random.default_rng(1)).reshape(5, 4)
    assert (made == made[:, :1]).all()


def test_what_tells_the_label_is_found_and_noise_is_not():
    draw = np.random.default_rng(0)
    labels_N = np.arange(80) % 2
    groups_N = np.arange(80)
    noise_NxD = draw.normal(size=(80, 4))
    told_NxD = noise_NxD + 2 * labels_N[:, None]
    found = shortcut(picture_model(), told_NxD, labels_N, groups_N, permutations=19)
    assert found.auc > 0.95
    assert found.p == 0.05
    assert found.chance_95 < 0.75
    lost = shortcut(picture_model(), noise_NxD, labels_N, groups_N, permutations=19)
    assert lost.p > 0.05
    one_place = np.where(labels_N == 1, 0, groups_N)
    assert is_testable(labels_N, groups_N)
    assert not is_testable(labels_N, one_place)


def test_a_place_that_tells_the_label_is_not_learnt_from_itself():
    """Features that name the group and nothing else: p is uniform, one in ten below 0.1."""
    groups_N = np.repeat(np.arange(20), 10)
    labels_N = np.repeat(np.arange(20) % 2, 10)
    low = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        features_NxD = draw.normal(size=(20, 3))[groups_N]
        features_NxD += 0.01 * draw.normal(size=(200, 3))
        found = shortcut(
            picture_model(), features_NxD, labels_N, groups_N, permutations=9
        )
        low += found.p <= 0.1
    assert low <= 3


def test_a_set_without_a_usable_clip_is_audited_all_the_same(backbone, tmp_path):
    for name in ("fight/a.mp4", "normal/b.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(b"no video")
    values, page = audited(tmp_path, tmp_path / "set", backbone)
    assert values["ledger"]["usable"] == 0
    assert values["findings"] == ["nothing was found"]
    assert values["shortcuts"] == {"metadata": None, "frame": None, "borders": None}
    assert page.count("not tested") == 3


def test_split_merges_duplicates_and_training_takes_it_over(faulty, backbone, tmp_path):
    flat = tmp_path / "set"
    for path in faulty.rglob("*.mp4"):
        target = flat / path.parent.name / f"{path.parent.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (flat / "violent" / "train-both.mp4").unlink()
    cache = tmp_path / "cache"
    arguments = "--dataset-path", flat, "--cache-dir", cache
    done = vd("split", *arguments, "--merge-duplicates")
    (file,) = (cache / "splits").iterdir()
    rows = {row["path"]: row for row in read_csv(file)}
    leak = rows["nonviolent/test-leak.mp4"]
    groups = [row for row in rows.values() if row["group"] == leak["group"] != ""]
    assert len(groups) == 2
    assert len({row["split"] for row in groups}) == 1
    assert "train violent" in done.stderr
    before = file.read_bytes()
    vd("split", *arguments)  # kept, groups too
    assert file.read_bytes() == before
    done = vd("split", "--dataset-path", faulty, "--cache-dir", cache, code=2)
    assert "has splits already" in done.stderr
