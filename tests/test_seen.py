"""No leak: clips that a network was adapted on neither calibrate nor test a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import train, vd
from tests.fabricated import make_videos
from vd.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    RunConfig,
    TrainingConfig,
)
from vd.data.catalog import identify
from vd.data.ledger import Entry, Ledger
from vd.data.manifest import read_manifest
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.experiment import check_backbone, open_run
from vd.features.backbone import find_backbone
from vd.features.network import built_in_network, read_network, write_network
from vd.features.seen import contents_fingerprint, find_seen, seen_rows
from vd.files import write_csv
from vd.models.plugins import BUILT_IN
from vd.training.run_folder import Data


def plain_rows(trained_on, chosen_on, dataset):
    """Rows as an earlier version wrote them, without fingerprints."""
    here = contents_fingerprint(dataset)
    rows = {v.id: {"id": v.id, "group": v.group, "dataset": here} for v in dataset}
    return seen_rows(trained_on, chosen_on, rows)


def seen_of(rows, dataset, folder=None):
    """What a network with these rows has seen, after all looking."""
    data = DataConfig(Path("unused"), cache_dir=folder)
    return list(find_seen(rows, dataset, data, DecodeConfig()))[-1]


def write_adapted(path, trained_on, dataset, chosen_on=(), rows=plain_rows):
    """A network that says it was adapted on some clips of a data set."""
    network = replace(
        built_in_network("efficientnet-lite0"),
        size=32,
        ranges=None,
        streams=("motion",),
        seen=rows(trained_on, chosen_on, dataset),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_network(path, network, half=True)
    return path


def data_of(videos, backbone):
    entries = tuple(Entry(video, Outcome("used")) for video in videos)
    found = find_backbone(BackboneConfig(backbone=str(backbone)))
    seen = seen_of(found.seen, videos)
    return Data(list(videos), list(videos), Ledger(entries), None, found, seen)


def check(config, data, **more):
    config = replace(config, backbone=BackboneConfig(backbone=data.backbone.name))
    check_backbone(config, data.videos, data.seen, **more)


def config_of(folder, **training):
    return Config(
        DataConfig(folder, folder / "cache"),
        training=TrainingConfig(**training),
        run=RunConfig(folder / "run"),
    )


def with_splits(videos, splits):
    return [replace(v, split=s) for v, s in zip(videos, splits, strict=True)]


@pytest.fixture
def videos():
    """Twelve clips: eight of train, two of val, two of test."""
    return with_splits(make_videos(12), ["train"] * 8 + ["val"] * 2 + ["test"] * 2)


def test_content_counts_wherever_it_lies(videos):
    rows = plain_rows(videos[:2], videos[2:3], videos)
    assert rows["chosen_on"][0]["id"] == videos[2].id
    others = make_videos(4, "new")
    renamed = replace(videos[2], path=Path("x/y.avi"), name="y.avi", group="g")
    assert seen_of(rows, [*others, renamed]).among([*others, renamed]) == [renamed]
    assert not seen_of(rows, others).among(others)


def test_a_group_counts_in_its_own_data_set_or_with_a_seen_content(videos):
    grouped = [replace(v, group=f"camera {i // 2}") for i, v in enumerate(videos)]
    rows = plain_rows(grouped[:1], (), grouped)
    assert seen_of(rows, grouped).among(grouped) == grouped[:2]
    # other splits, and other groups, of the same clips
    moved = [replace(video, split="test") for video in reversed(grouped)]
    assert len(seen_of(rows, moved).among(moved)) == 2
    regrouped = [
        replace(video, group="camera 0" if i == 5 else "")
        for i, video in enumerate(grouped)
    ]
    assert seen_of(rows, regrouped).among(regrouped) == [regrouped[0], regrouped[5]]
    # another data set with a group of that name, then with a seen clip among its own
    other = [replace(video, group="camera 0") for video in make_videos(3, "other")]
    assert not seen_of(rows, other).among(other)
    mixed = [replace(video, group="z") for video in (*other, grouped[0])]
    assert seen_of(rows, mixed).among(mixed) == mixed


def test_a_run_judged_by_seen_clips_is_refused_in_a_sentence(tmp_path, videos):
    config = config_of(tmp_path)
    seen = [videos[0], videos[9], videos[10]]
    path = write_adapted(tmp_path / "a" / "adapted.npz", seen, videos)
    copy = tmp_path / "elsewhere" / "innocent.npz"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    for file in (path, copy):
        own = replace(config, backbone=BackboneConfig(backbone=str(file)))
        with pytest.raises(VdError) as refused:
            open_run(own, BUILT_IN, data_of(videos, file))
        text = str(refused.value)
        assert (
            f"{file} was adapted on 1 of the 2 val clips, 1 of the 2 test clips" in text
        )
        assert "vd crossval --adapt" in text
        assert "\n" not in text
        assert not (tmp_path / "run").exists()


def test_training_clips_may_be_seen_unless_inner_folds_judge_by_them(tmp_path, videos):
    path = write_adapted(tmp_path / "adapted.npz", videos[:8], videos)
    data = data_of(videos, path)
    check(config_of(tmp_path), data)
    refit = config_of(tmp_path, refit=True)
    with pytest.raises(VdError, match="adapted on 8 of the 10 train clips"):
        check(refit, data)
    check(refit, data, adapted=True)  # its logits are of other networks
    # the adaptation itself must not have seen a test clip either
    path = write_adapted(tmp_path / "all.npz", videos, videos)
    with pytest.raises(VdError, match="adapted on 2 of the 2 test clips"):
        check(refit, data_of(videos, path), adapted=True)


def test_what_has_seen_other_clips_or_nothing_judges_freely(tmp_path, videos):
    refit = config_of(tmp_path, refit=True)
    path = write_adapted(tmp_path / "a.npz", make_videos(4, "b"), make_videos(9, "b"))
    check(refit, data_of(videos, path))
    network = replace(read_network(path), seen={})
    write_network(tmp_path / "blank.npz", network)
    for backbone in (tmp_path / "blank.npz", "efficientnet-lite0"):
        check(refit, data_of(videos, backbone))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, clips):
    """A folder, the clips, and a network that was adapted on the training clips."""
    folder = tmp_path_factory.mktemp("seen")
    found = identify(read_manifest(DataConfig(clips)).videos, folder / "cache")
    seen = [video for video in found if video.split == "train"]
    return folder, found, write_adapted(folder / "adapted.npz", seen, found)


def refused(folder, backbone, dataset, *command, run="run"):
    done = vd(
        *command, "--dataset-path", dataset, "--cache-dir", folder / "cache",
        "--checkpoint-dir", folder / run, "--backbone", backbone, code=2,
    )  # fmt: skip
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_cheats_are_refused_and_honest_runs_go_on(adapted, clips):
    folder, found, network = adapted
    train(clips, network, folder, "--epochs", 1)  # judged by clips that it has not seen
    assert (folder / "run" / "evaluation_test.json").exists()

    renamed = folder / "renamed"
    shutil.copytree(clips, renamed)
    (renamed / "test").rename(renamed / "keep")
    (renamed / "train").rename(renamed / "test")
    (renamed / "keep").rename(renamed / "train")
    said = refused(folder, network, renamed, "train", run="a")
    assert f"{network} was adapted on 16 of the 16 test clips" in said
    rows = [
        {"path": video.path, "label": ("nonviolent", "violent")[video.label]}
        for video in found
    ]
    write_csv(folder / "other.csv", rows)
    command = "train", "--split-seed", 5
    said = refused(folder, network, folder / "other.csv", *command, run="b")
    assert "was adapted on" in said
    said = refused(folder, network, clips, "train", "--refit", run="c")
    assert "was adapted on 16 of the 24 train clips" in said
    said = refused(folder, network, clips, "crossval", "--folds", 2, run="d")
    assert "vd crossval --adapt" in said
    assert not any((folder / name / "config.json").exists() for name in "abcd")


@pytest.mark.slow
def test_evaluation_leaves_out_what_the_backbone_has_seen(adapted, clips, tmp_path):
    """A run trained on other clips, then tested on the set that its network was adapted on."""
    _, found, _ = adapted
    run = tmp_path / "run"
    of_test = [video for video in found if video.split == "test"]
    network = write_adapted(tmp_path / "adapted.npz", of_test[:3], found)
    others = [video for video in found if video.split != "test"]
    parts = dict.fromkeys([v.id for v in others[::3]], "test")
    rows = [
        {
            "path": video.path,
            "label": ("nonviolent", "violent")[video.label],
            "split": parts.get(video.id, video.split),
        }
        for video in others
    ]
    write_csv(tmp_path / "own.csv", rows)
    train(tmp_path / "own.csv", network, tmp_path, "--epochs", 1)
    where = "--checkpoint-dir", run, "--cache-dir", tmp_path / "cache"
    done = vd("evaluate", *where, "--on", clips / "test", "--name", "other")
    result = json.loads(done.stdout)
    assert result["left_out"] == {"content": 3, "group": 0}
    assert result["n"] == 5
    assert "3 by content" in done.stderr

    # a run of before this rule: its test clips are those that the network has seen
    everything = write_adapted(tmp_path / "all.npz", others, others)
    seen = read_network(everything).seen
    copy = run / "backbone.npz"
    write_network(copy, replace(read_network(copy), seen=seen), half=True)
    done = vd("evaluate", *where, code=2)
    assert f"{copy} was adapted on 8 of the 8 test clips" in done.stderr
