"""Reading data sets: every form of the input contract, every fault in one sentence."""

import csv
import os
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command_line import vd
from tests.unprivileged import open_folder, unprivileged
from vd.config import DataConfig
from vd.data.manifest import count_ignored, read_manifest
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


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            ["Fights/a.mp4", "no-Fight/b.AVI", "no-Fight/deep/c.mkv"],
            [(1, ""), (0, ""), (0, "")],
        ),
        (
            ["Training/violent/a.mp4", "test/fight/c.mp4", "valid/Non_Violent/b.mp4"],
            [(1, "train"), (1, "test"), (0, "val")],
        ),
        (
            ["Fight/Train/a.mp4", "Fight/test/deep/b.mp4", "normal/valid/c.mp4"],
            [(1, "train"), (1, "test"), (0, "val")],
        ),
    ],
)
def test_folders_of_classes_and_splits_in_any_spelling(tmp_path, names, found):
    ignored = f"{names[0].split('/')[0]}/notes.txt", "loose.mp4"
    touch(tmp_path, *names, *ignored, ".hidden.mp4")
    manifest = read(tmp_path)
    assert [v.name for v in manifest.videos] == names
    assert [(v.label, v.split) for v in manifest.videos] == found
    assert manifest.ignored == ignored
    if found[0][1]:
        touch(tmp_path, "normal/d.mp4")
        with pytest.raises(VdError, match=r"normal/d.mp4' has no split while other"):
            read(tmp_path)


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_folder_without_a_video_is_no_class(tmp_path, split):
    """As vd's own cache, report and run are, when they lie in the data set."""
    touch(
        tmp_path, f"{split}fight/a.mp4", f"{split}normal/b.mp4", "cache/catalog.sqlite"
    )
    touch(tmp_path, "scan/scan.csv", f"{split}runs/run/report.html")
    manifest = read(tmp_path)
    assert [v.name for v in manifest.videos] == [f"{split}fight/a.mp4", f"{split}normal/b.mp4"]  # fmt: skip
    assert set(manifest.ignored) == {
        "cache/catalog.sqlite", "scan/scan.csv", f"{split}runs/run/report.html"
    }  # fmt: skip
    touch(tmp_path, f"{split}figth/c.mp4")
    with pytest.raises(
        VdError, match=r"c.mp4' has the class 'figth', which vd does not"
    ):
        read(tmp_path)


def test_a_linked_folder_is_read_once_and_a_loop_is_noticed(tmp_path):
    touch(tmp_path, "else/deep/a.mp4", "set/normal/b.mp4", "set/normal/real/c.mp4")
    root = tmp_path / "set"
    (root / "fight").symlink_to(tmp_path / "else")
    (root / "fight" / "back").symlink_to(root / "fight")
    (root / "normal" / "again").symlink_to(root / "normal" / "real")
    (root / "normal" / "above").symlink_to(tmp_path)
    (root / "normal" / "deep").symlink_to(tmp_path / "else" / "deep")
    manifest = read(root)
    names = ["fight/deep/a.mp4", "normal/b.mp4", "normal/real/c.mp4"]
    assert [v.name for v in manifest.videos] == names
    assert manifest.ignored == (
        "fight/back/", "normal/above/", "normal/again/", "normal/deep/"
    )  # fmt: skip


def test_ignored_files_are_counted_by_suffix_and_class():
    names = ["train/fight/b.JPG", "fight/a.jpg", "normal/c", "normal/loop/", "x.md"]
    assert count_ignored(names) == (
        "2 '.jpg' in 'fight', 1 without suffix in 'normal', 1 folders linked again in "
        "'normal', 1 '.md' in no class"
    )


@pytest.mark.parametrize("shut", ["test", "test/fight", "test/fight/deep"])
def test_a_folder_without_permission_to_read_it_is_named(shut):
    with open_folder() as folder:
        touch(folder, "train/normal/b.mp4", "test/fight/deep/c.mp4")
        (folder / shut).chmod(0)
        with unprivileged(), pytest.raises(PermissionError, match=shut):
            read(folder)


def test_csv_with_groups_relative_to_it(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4")
    table = tmp_path / "m.csv"
    table.write_text(
        "path, label,split,group\nb.mp4,fight,train,g1\na.mp4,normal,Test,\n"
    )
    manifest = read(table)
    assert facts(manifest) == [("a.mp4", 0, "test", ""), ("b.mp4", 1, "train", "g1")]
    assert manifest.videos[0].path == tmp_path / "a.mp4"


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_as_spreadsheets_write_it(tmp_path, delimiter, encoding):
    touch(tmp_path, "é, a;b.mp4", "b.mp4")
    with open(tmp_path / "m.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["path", "label", "group"], ["é, a;b.mp4", "fight", "ü"]])
        writer.writerow(["b.mp4", "normal", ""])
    manifest = read(tmp_path / "m.csv")
    assert facts(manifest) == [("b.mp4", 0, "", ""), ("é, a;b.mp4", 1, "", "ü")]


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_unicode_form_are_found(tmp_path, on_disk, listed):
    names = [normalize(form, "Gewalttätig/Schläger.mp4") for form in (on_disk, listed)]
    touch(tmp_path, names[0], "normal/b.mp4")
    table = tmp_path / "m.csv"
    table.write_text(f"path,label\n{names[1]},fight\nnormal/b.mp4,normal\n")
    assert all(video.path.exists() for video in read(table).videos)
    assert [video.name for video in read(table).videos] == [names[0], "normal/b.mp4"]
    table.unlink()
    positive = (normalize(listed, "gewalttätig"),)
    assert [v.label for v in read(tmp_path, positive_class=positive).videos] == [1, 0]


def test_a_group_of_nan_is_named_and_is_no_group(tmp_path, capsys):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    table = tmp_path / "m.csv"
    table.write_text(
        "path,label,group\na.mp4,fight,nan\nb.mp4,normal,nan\nc.mp4,fight,Nana\n"
    )
    assert [video.group for video in read(table).videos] == ["", "", "Nana"]
    assert f"{table}: the group 'nan' counts as no group" in capsys.readouterr().err


def test_positive_classes_make_every_other_class_negative(tmp_path, capsys):
    touch(tmp_path, "assault/a.mp4", "street/b.mp4", "shop/c.mp4", "fight/d.mp4")
    labels = [v.label for v in read(tmp_path, positive_class=("Assault",)).videos]
    assert labels == [1, 0, 0, 0]
    several = read(tmp_path, positive_class=("Assault", "fight"))
    assert [v.label for v in several.videos] == [1, 1, 0, 0]
    assert capsys.readouterr().err.splitlines() == [
        "classes: violent 'assault'; non-violent 'fight', 'shop', 'street'",
        "classes: violent 'assault', 'fight'; non-violent 'shop', 'street'",
    ]
    with pytest.raises(
        VdError, match=r"--positive-class robbery: .* has no such class"
    ):
        read(tmp_path, positive_class=("assault", "robbery"))


def test_the_flag_of_the_positive_class_may_be_repeated(tmp_path):
    touch(tmp_path, "assault/a.mp4", "robbery/b.mp4", "street/c.mp4")
    done = vd(
        "split", "--dataset-path", tmp_path, "--cache-dir", tmp_path / "cache",
        "--positive-class", "assault", "--positive-class", "robbery", code=2,
    )  # fmt: skip
    line = "classes: violent 'assault', 'robbery'; non-violent 'street'"
    assert done.stderr.splitlines()[0] == line


def test_group_from_path(tmp_path):
    touch(tmp_path, "fight/cam1_a.mp4", "normal/cam2_b.mp4")
    videos = read(tmp_path, group_from=r"(cam\d)_").videos
    assert [v.group for v in videos] == ["cam1", "cam2"]


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["fight/a.mp4", "weird/b.mp4"], {}, ["weird", "--positive-class"]),
        (["fight/a.mp4"], {}, ["nonviolent", "class folders"]),
        (["a/a.mp4", "b/b.mp4"], {"positive_class": ("c",)}, ["--positive-class c"]),
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
        ("path,label\n", ["no rows below its first line"]),
        ("file,label\na,fight\n", ["path,label", "'file,label'"]),
        ("path|label\na|fight\n", ["path|label", "commas"]),
        ("path,label\nx/a.mp4,fight\nb.mp4,normal\n", ["none of the 2", "x/a.mp4"]),
        ("path,label,split\na.mp4,fight,train\nb.mp4,normal,\n", ["b.mp4", "no split"]),
        (
            "path,label,split\na.mp4,fight,dev\nb.mp4,normal,dev\n",
            ["row 'a.mp4,fight,dev'", "'dev' is unknown"],
        ),
        ("path,label\nx/../a.mp4,fight\na.mp4,normal\n", ["a.mp4", "2 times"]),
        (f"path,label\n{'x' * 200_000},fight\n", ["m.csv", "field", "CSV"]),
        ("path,label\na.mp4\n", ["row 'a.mp4,'", "no label"]),
        ("path,label\na.mp4,punch\n", ["'a.mp4'", "--positive-class"]),
    ],
)
def test_csv_faults(tmp_path, text, words):
    touch(tmp_path, "a.mp4")
    table = tmp_path / "m.csv"
    table.write_text(text)
    with pytest.raises(VdError) as caught:
        read(table)
    assert all(word in str(caught.value) for word in words)


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
