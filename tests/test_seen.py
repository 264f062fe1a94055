"""No leak: clips that a network was adapted on neither calibrate nor test a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.copies import read_video
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
from vd.data.fingerprints import as_text
from vd.data.ledger import Entry, Ledger
from vd.data.manifest import read_manifest
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.experiment import check_backbone, open_run
from vd.features.backbone import find_backbone
from vd.features.network import built_in_network, read_networks, write_networks
from vd.features.seen import clip_rows, contents_fingerprint, find_seen, seen_rows
from vd.files import write_csv
from vd.models.plugins import BUILT_IN
from vd.training.adapt import inner_parts
from vd.training.refit import inner_folds
from vd.training.run_folder import Data


def plain_rows(trained_on, chosen_on, dataset):
    """Rows of clips that have no files."""
    row = {
        "dataset": contents_fingerprint(dataset),
        "fingerprint": as_text(np.full((8, 16, 16), 7, np.uint8)),
    }
    rows = {v.id: {"id": v.id, "group": v.group, **row} for v in dataset}
    return seen_rows(trained_on, chosen_on, rows)


def seen_of(rows, dataset, folder=None):
    """What a network with these rows has seen; without a folder, copies aside."""
    data = DataConfig(Path("unused"), cache_dir=folder)
    steps = find_seen(rows, dataset, data, DecodeConfig())
    return list(steps)[-1] if folder else next(steps)


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
    write_networks(path, [network], half=True)
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


def test_clips_that_cannot_be_compared_are_counted(tmp_path, videos, capsys):
    rows = plain_rows(videos[:1], (), videos)
    assert not seen_of(rows, videos, tmp_path / "cache").copies  # the files are gone
    assert "11 clips could not be compared" in capsys.readouterr().err


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
    network = replace(read_networks(path)[0], seen={})
    write_networks(tmp_path / "blank.npz", [network])
    for backbone in (tmp_path / "blank.npz", "efficientnet-lite0"):
        check(refit, data_of(videos, backbone))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, clips):
    """A folder, the clips, and a network that was adapted on the training clips."""
    folder = tmp_path_factory.mktemp("seen")
    found = identify(read_manifest(DataConfig(clips)).videos, folder / "cache")
    seen = [video for video in found if video.split == "train"]
    rows = rows_with_fingerprints(folder / "cache")
    return folder, found, write_adapted(folder / "adapted.npz", seen, found, rows=rows)


def rows_with_fingerprints(cache):
    """Rows as this version writes them."""

    def rows(trained_on, chosen_on, dataset):
        made = clip_rows(dataset, DataConfig(Path("unused"), cache), DecodeConfig())
        return seen_rows(trained_on, chosen_on, made)

    return rows


def write_reencoded(path, copy):
    """Write a clip again as MPEG-4 of few bits, smaller and of another shape."""
    frames, rate = read_video(path)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(copy), "w") as container:
        stream = container.add_stream("mpeg4", rate=round(rate))
        stream.width, stream.height, stream.pix_fmt = 128, 80, "yuv420p"
        stream.bit_rate = 200_000
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame).reformat(128, 80, "yuv420p")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def reencoded(tmp_path_factory, clips):
    """A data set whose test part has four of the training clips, re-encoded."""
    root = tmp_path_factory.mktemp("reencoded") / "own"
    for label in ("violent", "nonviolent"):
        for part, source in (("train", "test"), ("val", "val"), ("test", "train")):
            for number, path in enumerate(
                sorted((clips / source / label).iterdir())[:2]
            ):
                copy = root / part / label / f"mine{number}.mp4"
                if part == "test":
                    write_reencoded(path, copy)
                else:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)
    return root


def refused(folder, backbone, dataset, *command, run="run"):
    """The message of a command that ends before the backbone runs."""
    cache = folder / f"cache-{run}"
    done = vd(
        *command, "--dataset-path", dataset, "--cache-dir", cache,
        "--checkpoint-dir", folder / run, "--backbone", backbone, code=2,
    )  # fmt: skip
    assert not (cache / "features").exists()
    assert not (folder / run / "config.json").exists()
    return done.stderr.strip().splitlines()[-1]


def test_cheats_are_refused_before_the_backbone_runs(adapted, clips):
    folder, found, network = adapted
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
    grid = "sweep", "--set", "refit=false,true"
    said = refused(folder, network, clips, *grid, run="e")
    assert "was adapted on 16 of the 24 train clips" in said


def test_reencoded_copies_are_refused_before_the_backbone_runs(adapted, reencoded):
    folder, _, network = adapted
    said = refused(folder, network, reencoded, "train", run="f")
    assert f"{network} was adapted on 4 of the 4 test clips" in said
    again = refused(folder, network, reencoded, "train", run="f")  # from the catalog
    assert again == said


def test_a_copy_puts_its_group_among_the_seen(adapted, clips, reencoded):
    folder, _, network = adapted
    videos = identify(read_manifest(DataConfig(reencoded)).videos, folder / "cache")
    copies = [video for video in videos if video.split == "test"]
    fresh = [video for video in videos if video.split != "test"]
    grouped = [replace(v, group="a") for v in (copies[0], fresh[0])]
    videos = [*grouped, *copies[1:], *fresh[1:]]
    seen = seen_of(read_networks(network)[0].seen, videos, folder / "cache")
    assert seen.copies == {video.id for video in copies}
    assert seen.among(videos) == [*grouped, *copies[1:]]


def test_inner_folds_of_an_adaptation_keep_copies_whole(adapted, reencoded):
    folder, found, _ = adapted
    others = identify(read_manifest(DataConfig(reencoded)).videos, folder / "cache")
    copies = [video for video in others if video.split == "test"]
    originals = [video for video in found if video.split == "train"]
    config = Config(DataConfig(Path("unused"), folder / "cache"))
    videos = [*originals, *copies]
    source = {
        copy.id: sorted(v.path for v in originals if v.label == copy.label)[n % 2]
        for n, copy in enumerate(sorted(copies, key=lambda v: v.path))
    }

    def apart(parts):
        part_of = {video.path: n for n, part in enumerate(parts) for video in part}
        return [v for v in copies if part_of[v.path] != part_of[source[v.id]]]

    assert apart(inner_folds(videos, config.splits.split_seed))
    assert not apart(inner_parts(videos, config))


def test_a_row_needs_its_fingerprint(adapted, tmp_path):
    _, found, _ = adapted
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    (video,) = identify([replace(found[0], path=broken)], tmp_path)
    rows = rows_with_fingerprints(tmp_path)
    with pytest.raises(VdError, match=r"broken\.mp4 could not be decoded"):
        rows([video], (), [video])


@pytest.mark.slow
def test_honest_runs_go_on(adapted, clips):
    folder, _, network = adapted
    train(clips, network, folder, "--epochs", 1)  # judged by clips that it has not seen
    assert (folder / "run" / "evaluation_test.json").exists()


@pytest.mark.slow
def test_parts_that_share_footage_adapt_nothing(tmp_path, clips):
    """A training clip, re-encoded, is in the test part."""
    root = tmp_path / "set"
    shutil.copytree(clips, root)
    path = min((clips / "train" / "violent").iterdir())
    write_reencoded(path, root / "test" / "violent" / "copy.mp4")
    done = vd(
        "adapt", "--dataset-path", root, "--cache-dir", tmp_path / "cache",
        "--checkpoint-dir", tmp_path / "run", "--size", 32, code=2,
    )  # fmt: skip
    said = done.stderr.strip().splitlines()[-1]
    assert "1 of the 9 test clips, for example 'test/violent/copy.mp4'" in said
    assert "vd split --merge-duplicates" in said
    assert not (tmp_path / "run" / "backbone.npz").exists()


@pytest.mark.slow
def test_evaluation_leaves_out_what_the_backbone_has_seen(adapted, clips, tmp_path):
    """A run trained on other clips, then tested on the set that its network was adapted on."""
    _, found, _ = adapted
    run = tmp_path / "run"
    of_test = [video for video in found if video.split == "test"]
    rows = rows_with_fingerprints(tmp_path / "cache")
    network = write_adapted(tmp_path / "adapted.npz", of_test[:3], found, rows=rows)
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
    other = tmp_path / "other"
    shutil.copytree(clips / "test", other)
    write_reencoded(of_test[0].path, other / "violent" / "copy.mp4")
    done = vd("evaluate", *where, "--on", other)
    result = json.loads(done.stdout)
    assert result["left_out"] == {"content": 3, "near_duplicate": 1, "group": 0}
    assert result["n"] == 5
    assert "3 by content, 1 more as near duplicates" in done.stderr
    for video in found:
        if video.split == "test" and video not in of_test[:3]:
            (other / "/".join(video.path.parts[-2:])).unlink()
    done = vd("evaluate", *where, "--on", other, "--name", "rest", code=2)
    assert "all of its 4 usable clips" in done.stderr

    # put into the run's folder by hand: its test clips are those that this one has seen
    everything = write_adapted(tmp_path / "all.npz", others, others)
    seen = read_networks(everything)[0].seen
    copy = run / "backbone.npz"
    write_networks(copy, [replace(read_networks(copy)[0], seen=seen)], half=True)
    done = vd("evaluate", *where, code=2)
    assert f"{copy} was adapted on 8 of the 8 test clips" in done.stderr
