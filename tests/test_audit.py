"""Audit: planted copies, leaks and shortcuts are named; a clean set is left in peace."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

from benchmarks.copies import read_video, write_copies, write_video
from tests.command_line import vd
from vd.audit.audit import audit
from vd.audit.findings import video_pairs
from vd.audit.shortcuts import shortcut
from vd.config import BackboneConfig, Config, DataConfig
from vd.data.manifest import Video
from vd.data.near_duplicates import Pair, find_pairs
from vd.data.splits import groups_cut
from vd.files import read_csv


def video(name, label=0, split="", group="", id=None):
    return Video(name, name, label, split, group, id or f"id-{name}")


def audited(folder, dataset, backbone):
    """The content of audit.json and the page."""
    vd(
        "audit", "--dataset-path", dataset, "--cache-dir", folder / "cache", "--report-dir",
        folder / "report", "--backbone", backbone,
    )  # fmt: skip
    page = (folder / "report" / "audit.html").read_text()
    return json.loads((folder / "report" / "audit.json").read_text()), page


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch):
    """39 permutations of the labels in place of 99: p is 1/40 or more."""
    few = partial(shortcut, permutations=39)
    monkeypatch.setattr("vd.audit.shortcuts.shortcut", few)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_clean_set_has_no_pair(clips, backbone, tmp_path):
    values, page = audited(tmp_path, clips, backbone)
    assert values["pairs"] == values["groups_cut"] == []
    assert "No two videos show the same." in page
    # a clip of either class has the same size, rate and length
    assert values["shortcuts"]["metadata"]["p"] > 0.05


@pytest.mark.slow
def test_wrong_flags_end_the_audit_before_the_work(clips, tmp_path):
    (tmp_path / "file").touch()
    for flag, value in (("--report-dir", "file"), ("--backbone", "no.onnx")):
        done = vd(
            "audit", "--dataset-path", clips, "--cache-dir", tmp_path / "cache",
            "--report-dir", tmp_path / "report", flag, tmp_path / value, code=2,
        )  # fmt: skip
        assert str(tmp_path / value) in done.stderr
        assert not (tmp_path / "cache").exists()


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


def test_a_set_without_a_usable_clip_is_audited_all_the_same(backbone, tmp_path):
    for name in ("fight/a.mp4", "normal/b.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(b"no video")
    values, page = audited(tmp_path, tmp_path / "set", backbone)
    assert values["ledger"]["usable"] == 0
    assert "2 of 2 files are not usable" in values["findings"][0]
    untested = [f for f in values["findings"] if "was not tested" in f]
    assert ["splits" in untested[0], "borders" in untested[1]] == [True, True]
    assert values["shortcuts"] == {"metadata": None, "frame": None, "borders": None}
    assert page.count("fewer than two groups") == 3


@pytest.mark.slow
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
    done = vd(
        "split", "--dataset-path", faulty, "--cache-dir", cache, "--merge-duplicates", code=2
    )  # fmt: skip
    assert "has splits already" in done.stderr
    assert "fingerprints" not in done.stderr  # said before any work
    absent = tmp_path / "absent.csv"
    done = vd(
        "audit", *arguments, "--report-dir", tmp_path / "r", "--splits-file", absent, code=2
    )  # fmt: skip
    assert f"--splits-file {absent} does not exist" in done.stderr


@pytest.mark.slow
def test_a_file_that_vanishes_late_stays_in_the_report(
    clips, backbone, tmp_path, monkeypatch
):
    root = tmp_path / "set"
    shutil.copytree(clips / "train", root)
    config = Config(
        DataConfig(root, tmp_path / "cache"),
        backbone=BackboneConfig(backbone=str(backbone)),
    )

    def vanishing(fingerprints):
        for path in root.rglob("*.mp4"):
            path.unlink()
        return find_pairs(fingerprints)

    monkeypatch.setattr("vd.audit.audit.find_pairs", vanishing)
    quick = partial(shortcut, permutations=1)
    monkeypatch.setattr("vd.audit.shortcuts.shortcut", quick)
    values = audit(config, tmp_path / "report")
    assert values["ledger"]["usable"] == 16
    assert values["shortcuts"]["metadata"]["clips"] == 16
    assert (tmp_path / "report" / "audit.html").exists()
