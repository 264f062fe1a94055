"""Splits: shares, classes, groups kept whole, and rows that stay when clips are added."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vd.config import Config, DataConfig, SplitConfig
from vd.data.catalog import identify
from vd.data.manifest import Video, read_manifest
from vd.data.splits import (
    assign,
    folds,
    keep_splits,
    kept_splits,
    merge_groups,
    split,
    splits_file,
    with_splits,
)
from vd.errors import VdError
from vd.files import read_csv

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def video(i, label=0, group="", split=""):
    return Video(Path(f"{i}.mp4"), f"{i}.mp4", label, split, group, id=f"id{i}")


def test_shares_and_classes_without_groups():
    videos = [video(i, i % 2) for i in range(200)]
    counts = Counter((assign(videos, SHARES, 0)[v.id], v.label) for v in videos)
    sizes = {"train": 70, "val": 15, "test": 15}
    assert counts == {(name, label): sizes[name] for name in sizes for label in (0, 1)}


def test_seed_changes_the_choice_and_nothing_else_does():
    videos = [video(i, i % 2) for i in range(100)]
    first = assign(videos, SHARES, 0)
    assert assign(videos[::-1], SHARES, 0) == first
    assert assign(videos, SHARES, 1) != first


clips = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=1, max_size=80
)


@settings(max_examples=50)
@given(clips, st.integers(0, 3), st.integers(2, 5))
def test_no_part_cuts_a_group(rows, seed, count):
    videos = [
        video(i, label, f"g{group}" if group else "")
        for i, (label, group) in enumerate(rows)
    ]
    for parts in (assign(videos, SHARES, seed), folds(videos, count, seed)):
        of_group = defaultdict(set)
        for v in videos:
            if v.group:
                of_group[v.group].add(parts[v.id])
        assert all(len(found) == 1 for found in of_group.values())
        assert set(parts) == {v.id for v in videos}


@settings(max_examples=50)
@given(clips, clips)
def test_added_clips_move_nobody_and_follow_their_group(before, after):
    old = [video(i, label, f"g{group}") for i, (label, group) in enumerate(before)]
    new = [
        video(1000 + i, label, f"g{group}") for i, (label, group) in enumerate(after)
    ]
    first = assign(old, SHARES, 0)
    second = assign(old + new, SHARES, 0, first)
    assert {key: second[key] for key in first} == first
    part_of = {v.group: first[v.id] for v in old}
    for v in new:
        assert second[v.id] == part_of.get(v.group, second[v.id])


def test_a_new_group_goes_where_the_share_is_shortest():
    old = [video(i, i % 2) for i in range(100)]
    kept = {v.id: "train" for v in old}
    new = [video(200, 0, "g"), video(201, 1, "g")]
    assert assign(old + new, SHARES, 0, kept)["id200"] in ("val", "test")


def test_same_content_twice_stays_together():
    videos = [video(i, i % 2, f"g{i}") for i in range(40)]
    twin = replace(videos[0], name="copy.mp4", group="g7")
    parts = assign([*videos, twin], SHARES, 0)
    assert parts["id0"] == parts["id7"]


def config(tmp_path, **split_settings):
    data = DataConfig(tmp_path / "set", cache_dir=tmp_path / "cache")
    return Config(data=data, splits=SplitConfig(**split_settings))


def test_assigned_once_and_kept_in_the_splits_file(tmp_path, capsys):
    videos = [video(i, i % 2) for i in range(40)]
    first = with_splits(videos, config(tmp_path))
    assert not splits_file(config(tmp_path)).exists()
    keep_splits(first, config(tmp_path))
    rows = read_csv(splits_file(config(tmp_path)))
    assert {row["id"]: row["split"] for row in rows} == {v.id: v.split for v in first}
    capsys.readouterr()
    assert with_splits(videos, config(tmp_path, split_seed=5)) == first
    printed = capsys.readouterr().err
    assert "--resplit" in printed
    assert "new clip" not in printed
    with_splits([*videos, *map(video, range(40, 46))], config(tmp_path))
    assert "6 new clips get a split: '40.mp4', '41.mp4'" in capsys.readouterr().err
    other = config(tmp_path, split_seed=5, resplit=True)
    second = with_splits(videos, other)
    assert second != first
    keep_splits(second[:30], other)
    rows = {row["id"]: row["split"] for row in read_csv(splits_file(other))}
    assert rows == {v.id: v.split for v in [*second[:30], *first[30:]]}


def test_without_test_part_val_becomes_test_and_groups_of_train_become_val(tmp_path):
    videos = [video(i, i % 2, f"g{i // 4}", "train") for i in range(80)]
    videos += [video(100 + i, i % 2, "", "val") for i in range(10)]
    made = with_splits(videos, config(tmp_path))
    assert {v.split for v in made if v.name.startswith("10") and len(v.name) == 7} == {
        "test"
    }
    val_groups = {v.group for v in made if v.split == "val"}
    assert val_groups
    assert not val_groups & {v.group for v in made if v.split == "train"}


@pytest.mark.parametrize("present", [["train", "test"], ["val", "test"], ["train"]])
def test_a_lacking_part_is_named(tmp_path, present):
    videos = [video(i, i % 2, "", present[i % len(present)]) for i in range(12)]
    with pytest.raises(VdError, match="has splits but no"):
        with_splits(videos, config(tmp_path))


def test_a_part_of_one_class_is_named(tmp_path):
    videos = [video(i, i % 2, f"g{i % 2}") for i in range(20)]
    with pytest.raises(VdError, match=r"the val part .* has no nonviolent"):
        with_splits(videos, config(tmp_path))


def test_a_group_in_two_splits_is_an_error_and_doubled_content_a_warning(
    tmp_path, capsys
):
    given = [video(i, i % 2, split=("train", "val", "test")[i % 3]) for i in range(12)]
    cut = [replace(v, group="g") if v.name in ("0.mp4", "1.mp4") else v for v in given]
    with pytest.raises(VdError, match="the group 'g' is in several splits"):
        with_splits(cut, config(tmp_path))
    twin = replace(given[0], name="twin.mp4", split="test")
    with_splits([*given, twin], config(tmp_path))
    assert "same content" in capsys.readouterr().err


def test_groups_learnt_later_do_not_move_kept_rows_in_silence(tmp_path):
    videos = [video(i, i % 2) for i in range(40)]
    keep_splits(with_splits(videos, config(tmp_path)), config(tmp_path))
    grouped = [replace(v, group=f"g{i // 4}") for i, v in enumerate(videos)]
    with pytest.raises(VdError, match="--resplit"):
        with_splits(grouped, config(tmp_path))
    with_splits(grouped, config(tmp_path, resplit=True))


@pytest.mark.parametrize("resplit", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "some notes\n",
        "path,label,split,group,id,comment\na,b,train,,c,d\n",
        "path,label,split,group,id\na,b,TRAINING SET,,c\n",
    ],
)
def test_a_file_that_holds_no_splits_is_never_overwritten(tmp_path, text, resplit):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(VdError, match="does not have the columns"):
        with_splits(
            [video(i, i % 2) for i in range(40)],
            config(tmp_path, splits_file=path, resplit=resplit),
        )
    assert path.read_text() == text


def test_the_splits_of_a_run_are_not_written_to(tmp_path):
    (tmp_path / "config.json").touch()
    settings = config(tmp_path, splits_file=tmp_path / "splits.csv")
    with pytest.raises(VdError, match="belongs to a run"):
        with_splits([video(i, i % 2) for i in range(40)], settings)


SCFD = Path(__file__).parents[2] / "shared" / "data" / "scfd" / "manifest.csv"


@pytest.mark.skipif(not SCFD.exists(), reason="needs the SCFD clips")
def test_scfd_grown_source_by_source_moves_no_clip_and_keeps_the_shares(tmp_path):
    settings = Config(data=DataConfig(SCFD, cache_dir=tmp_path))
    videos = identify(read_manifest(settings.data).videos, tmp_path)
    groups = list(dict.fromkeys(video.group for video in videos))
    assert len(groups) == 36
    have, parts = [], {}
    for number, group in enumerate(groups):
        have += [video for video in videos if video.group == group]
        if number < 8:  # too few sources for both classes in every part
            continue
        grown = with_splits(have, settings)
        keep_splits(grown, settings)
        assert all(parts.get(v.id, v.split) == v.split for v in grown)
        parts = {v.id: v.split for v in grown}
        whole = {(v.group, v.split) for v in grown}
        assert len(whole) == number + 1
    for label in (0, 1):
        shares = Counter(parts[v.id] for v in videos if v.label == label)
        total = sum(shares.values())
        assert all(abs(shares[k] / total - SHARES[k]) < 0.08 for k in SHARES), shares


def test_merged_groups_by_hand():
    videos = [
        video(0, group="b"),
        video(1, group="a"),
        video(2),
        video(3),
        video(4),
        replace(video(5), id="id4"),
        video(6, group="c"),
    ]
    merged = merge_groups(videos, [("id0", "id1"), ("id2", "id3"), ("id9", "id6")])
    like = "like 2.mp4"
    assert [v.group for v in merged] == ["a", "a", like, like, "", "", "c"]


def test_files_without_content_join_no_groups():
    videos = [
        replace(video(0, group="a"), id=""),
        replace(video(1, group="b"), id=""),
        video(2, group="a"),
        video(3, group="b"),
        replace(video(4), id=""),
    ]
    assert merge_groups(videos) == videos


def test_merged_groups_are_kept_with_the_splits(tmp_path):
    videos = [video(i, i % 2) for i in range(40)]
    settings = config(tmp_path)
    pairs = [(f"id{i}", f"id{i + 2}") for i in range(0, 36, 4)]
    keep_splits(with_splits(merge_groups(videos, pairs), settings), settings)
    again = with_splits(videos, settings)  # the manifest itself knows no group
    assert again == kept_splits(videos, settings)
    by_id = {v.id: v for v in again}
    for first, second in pairs:
        assert by_id[first].group == by_id[second].group != ""
        assert by_id[first].split == by_id[second].split


def test_the_splits_file_goes_by_where_a_data_set_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("set", "other/../set", str(tmp_path / "set"))
    assert (
        len({splits_file(Config(DataConfig(Path(name)))).name for name in names}) == 1
    )


def test_the_splits_file_beside_a_data_set_is_a_data_set(tmp_path):
    for i in range(20):
        path = tmp_path / ("fight", "normal")[i % 2] / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([i]))
    written = tmp_path / "splits.csv"
    data = DataConfig(tmp_path, tmp_path / "cache")
    videos = split(Config(data, SplitConfig(splits_file=written)))
    again = read_manifest(replace(data, dataset_path=written)).videos
    assert {v.path: (v.label, v.split) for v in again} == {
        v.path: (v.label, v.split) for v in videos
    }
    with pytest.raises(VdError, match="has splits already"):
        split(Config(replace(data, dataset_path=written)))
