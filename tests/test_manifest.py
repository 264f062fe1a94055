"""Reading data sets: every form of the input contract, every fault in one sentence."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unprivileged import open_folder, unprivileged
from vd.config import DataConfig
from vd.data.manifest import read_manifest, write_manifest
from vd.data.outcome import check_file
from vd.errors import VdError
from vd.files import read_csv, write_csv


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def read(root, **settings):
    return read_manifest(DataConfig(root, **settings))


def facts(manifest):
    return [(v.name, v.label, v.split, v.group) for v in manifest.videos]


def test_class_folders_in_any_spelling(tmp_path):
    touch(tmp_path, "Fights/a.mp4", "no-Fight/b.AVI", "no-Fight/deep/c.mkv")
    assert facts(read(tmp_path)) == [
        ("Fights/a.mp4", 1, "", ""),
        ("no-Fight/b.AVI", 0, "", ""),
        ("no-Fight/deep/c.mkv", 0, "", ""),
    ]


def test_split_folders(tmp_path):
    touch(
        tmp_path,
        "Training/violent/a.mp4",
        "valid/Non_Violent/b.mp4",
        "test/fight/c.mp4",
    )
    assert [(v.split, v.label) for v in read(tmp_path).videos] == [
        ("train", 1),
        ("test", 1),
        ("val", 0),
    ]


def test_other_files_are_listed_as_ignored_and_hidden_ones_are_not(tmp_path):
    touch(
        tmp_path,
        "fight/a.mp4",
        "normal/b.mp4",
        "normal/notes.txt",
        "x.md",
        "normal/.hidden",
    )
    assert read(tmp_path).ignored == ("x.md", "normal/notes.txt")


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_without_a_video_is_no_class(tmp_path, split):
    """As vd's own cache, report and run are, when they lie in the data set."""
    touch(
        tmp_path, f"{split}fight/a.mp4", f"{split}normal/b.mp4", "cache/catalog.sqlite"
    )
    touch(tmp_path, "scan/scan.csv", f"{split}runs/run/report.html")
    manifest = read(tmp_path)
    assert [v.name for v in manifest.videos] == [f"{split}fight/a.mp4", f"{split}normal/b.mp4"]  # fmt: skip
    assert set(manifest.ignored) == {"cache", "scan", f"{split}runs"}
    touch(tmp_path, f"{split}figth/c.mp4")
    with pytest.raises(VdError, match="'figth' is no class that vd knows"):
        read(tmp_path)


def test_one_file_by_two_paths_is_listed_twice(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = f"a.mp4,fight\n{tmp_path / 'a.mp4'},normal\nb.mp4,normal\n"
    (tmp_path / "set.csv").write_text("path,label\n" + rows)
    with pytest.raises(VdError, match=r"lists 'a\.mp4' 2 times"):
        read(tmp_path / "set.csv")


def test_a_file_beside_class_folders_of_a_split_is_listed(tmp_path):
    touch(tmp_path, "train/fight/a.mp4", "test/normal/b.mp4", "train/loose.mp4")
    assert read(tmp_path).ignored == ("train/loose.mp4",)


def test_folder_named_like_a_video_and_link_loops_are_entries(tmp_path):
    touch(tmp_path, "fight/a.mp4", "normal/b.mp4")
    (tmp_path / "normal" / "dir.mp4").mkdir()
    (tmp_path / "normal" / "loop").symlink_to(tmp_path)
    assert [v.name for v in read(tmp_path).videos] == [
        "fight/a.mp4",
        "normal/b.mp4",
        "normal/dir.mp4",
    ]


def test_a_folder_that_may_not_be_read_stands_for_its_files():
    with open_folder() as folder:
        touch(folder, "fight/a.mp4", "fight/shut/b.mp4", "fight/listed/c.mp4")
        touch(folder, "normal/d.mp4")
        for name, mode in (("shut", 0), ("listed", 0o444), ("", 0o755)):
            (folder / "fight" / name).chmod(mode)
        with unprivileged():
            videos = read(folder).videos
            reasons = {video.name: check_file(video.path) for video in videos}
        assert reasons == {
            "fight/a.mp4": "",
            "fight/listed": "unreadable",
            "fight/shut": "unreadable",
            "normal/d.mp4": "",
        }
        (folder / "normal").chmod(0)
        with unprivileged():
            assert [v.label for v in read(folder).videos] == [1, 1, 1, 0]


def test_a_split_folder_that_may_not_be_read_is_said(capsys):
    with open_folder() as folder:
        touch(folder, "train/fight/a.mp4", "train/normal/b.mp4", "test/fight/c.mp4")
        (folder / "test").chmod(0)
        with unprivileged():
            manifest = read(folder)
        assert [v.name for v in manifest.videos] == [
            "train/fight/a.mp4",
            "train/normal/b.mp4",
        ]
        assert manifest.ignored == ("test",)
        assert f"no permission to read {folder / 'test'}" in capsys.readouterr().err


def test_csv_with_groups_relative_to_it(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4")
    table = tmp_path / "m.csv"
    table.write_text(
        "path, label,split,group\nb.mp4,fight,train,g1\na.mp4,normal,Test,\n"
    )
    manifest = read(table)
    assert facts(manifest) == [("a.mp4", 0, "test", ""), ("b.mp4", 1, "train", "g1")]
    assert manifest.videos[0].path == tmp_path / "a.mp4"


def test_a_video_in_place_of_a_data_set_is_named(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(VdError, match="is a video; name a folder"):
        read(tmp_path / "a.mp4")


def test_a_positive_class_that_nobody_has_is_refused_with_one_class_too(tmp_path):
    touch(tmp_path, "foo/a.mp4", "bar/b.mp4")
    config = DataConfig(tmp_path, positive_class="zzz")
    with pytest.raises(VdError, match="--positive-class zzz is no class of"):
        read_manifest(config, both_classes=False)


def test_positive_class_makes_every_other_class_negative(tmp_path):
    touch(tmp_path, "assault/a.mp4", "street/b.mp4", "shop/c.mp4")
    labels = [v.label for v in read(tmp_path, positive_class="Assault").videos]
    assert labels == [1, 0, 0]


def test_group_from_path(tmp_path):
    touch(tmp_path, "fight/cam1_a.mp4", "normal/cam2_b.mp4")
    videos = read(tmp_path, group_from=r"(cam\d)_").videos
    assert [v.group for v in videos] == ["cam1", "cam2"]


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["fight/a.mp4", "weird/b.mp4"], {}, ["weird", "--positive-class"]),
        (["fight/a.mp4"], {}, ["nonviolent", "class folders"]),
        (["a/a.mp4", "b/b.mp4"], {"positive_class": "c"}, ["--positive-class c"]),
        (["fight/a.mp4", "normal/b.txt"], {}, ["nonviolent"]),
        (["train/fight/a.mp4", "extra/b.mp4"], {}, ["extra", "split folders"]),
        (["fight/a.mp4", "normal/b.mp4"], {"group_from": "("}, ["--group-from"]),
        (["fight/a.mp4", "normal/b.mp4"], {"group_from": "a.mp4"}, ["b.mp4"]),
    ],
)
def test_folder_faults(tmp_path, names, settings, words):
    touch(tmp_path, *names)
    with pytest.raises(VdError) as caught:
        read(tmp_path, **settings)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["path", "row"]),
        ("file,label\na,fight\n", ["'path'", "file,label"]),
        ("path;label\na;fight\n", ["path;label", "commas"]),
        ("path,label\nx/a.mp4,fight\nb.mp4,normal\n", ["none of the 2", "x/a.mp4"]),
        ("path,label\na.mp4,fight\na.mp4,normal\n", ["a.mp4", "2 times"]),
        ("path,label,split\na.mp4,fight,train\nb.mp4,normal,\n", ["b.mp4", "no split"]),
        ("path,label,split\na.mp4,fight,dev\nb.mp4,normal,dev\n", ["line 2", "dev"]),
        ("path,label\na.mp4,fight\n./a.mp4,normal\n", ["a.mp4", "2 times"]),
        ("path,label\nx/../a.mp4,fight\na.mp4,normal\n", ["a.mp4", "2 times"]),
        ("path,label,label\na.mp4,fight,normal\n", ["'label' twice"]),
        ("path,label\na.mp4,fight\n\n\nb.mp4,punch\n", ["line 5", "punch"]),
        (f"path,label\n{'x' * 200_000},fight\n", ["m.csv", "field", "CSV"]),
        ("path,label\na.mp4\n", ["line 2", "no label"]),
        ("path,label\na.mp4,punch\n", ["line 2", "punch", "--positive-class"]),
    ],
)
def test_csv_faults(tmp_path, text, words):
    table = tmp_path / "m.csv"
    table.write_text(text)
    with pytest.raises(VdError) as caught:
        read(table)
    assert all(word in str(caught.value) for word in words)


def test_wrong_path(tmp_path):
    with pytest.raises(VdError, match="does not exist"):
        read(tmp_path / "nowhere")


# what a file name can hold: bytes that are not UTF-8 come as lone low surrogates
names = st.text(
    st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    min_size=1,
)


@settings(deadline=None)  # every example waits for the disk
@given(st.lists(st.tuples(names, names), min_size=1))
def test_csv_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    written = [{"path": os.fsdecode(os.fsencode(a)), "group": b} for a, b in rows]
    write_csv(path, written)
    assert read_csv(path) == [
        {"path": a["path"], "group": _bytes_alike(a["group"])} for a in written
    ]


def _bytes_alike(name):
    """The name as its bytes decode: surrogates that form valid UTF-8 become it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def test_a_written_manifest_is_read_back(tmp_path):
    touch(tmp_path, "set/train/fight/a\n.mp4", "set/test/normal/b.mp4")
    manifest = read(tmp_path / "set", group_from="[ab]")
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other" / "m.csv", manifest.videos)
    again = read(tmp_path / "other" / "m.csv", group_from=None)
    assert [(v.label, v.split, v.group) for v in again.videos] == [
        (v.label, v.split, v.group) for v in manifest.videos
    ]
    assert all(v.path.exists() for v in again.videos)
