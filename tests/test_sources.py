"""What `vd predict` was given: paths, folders, patterns, lists, times; or streams."""

import io
import math

import pytest

from vd.errors import VdError
from vd.predict.sources import find_files, find_streams, mask_password, parse_between


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a.mp4, b.mkv, notes.md, .hidden.mp4, sub/c.mp4, sub/deep/d.mp4; it is where we are."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in "a.mp4 b.mkv notes.md .hidden.mp4 sub/c.mp4 sub/deep/d.mp4".split():
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "files"),
    [
        (["./a.mp4", "missing.mp4"], ["./a.mp4", "missing.mp4"]),  # as they are named
        (["."], ["a.mp4", "b.mkv", "sub/c.mp4", "sub/deep/d.mp4"]),
        (["sub"], ["sub/c.mp4", "sub/deep/d.mp4"]),
        (["*.mp4"], ["a.mp4"]),
        (["**/*.mp4"], ["a.mp4", "sub/c.mp4", "sub/deep/d.mp4"]),
        (["sub/**", "b.mkv"], ["sub/c.mp4", "sub/deep/d.mp4", "b.mkv"]),
    ],
)
def test_files_folders_and_patterns(folder, sources, files):
    assert find_files(sources) == files


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder):
    (folder / "[a].mp4").touch()
    assert find_files(["[a].mp4"]) == ["[a].mp4"]
    assert find_files(["[b].mkv"]) == ["b.mkv"]


def test_what_vd_wrote_into_out_is_no_source_unless_it_is_named(folder, capsys):
    out = folder / "sub" / "found"
    (out / "h").mkdir(parents=True)
    for name in ("h/annotated.mp4", "h/event-12.mp4", "h/index.html", "own.mp4"):
        (out / name).touch()
    (folder / "sub" / "event-1.mp4").touch()  # not in --out
    kept = ["sub/c.mp4", "sub/deep/d.mp4", "sub/event-1.mp4", "sub/found/own.mp4"]
    assert find_files(["sub"], out=out) == kept
    assert find_files(["sub/**"], out=out.relative_to(folder)) == kept
    assert "3 files there have names that vd gives" in capsys.readouterr().err
    named = ["sub/found/h/event-12.mp4"]
    assert find_files(named, out=out) == named
    assert len(find_files(["sub"])) == len(find_files(["sub"], out=folder / "a")) == 6


def test_lists_name_files_relative_to_their_folder(folder):
    (folder / "sub" / "list.txt").write_text("c.mp4\n\n/elsewhere/x.mp4\r\n")
    (folder / "sub" / "list.csv").write_text("label;path\nfight;c.mp4\n")
    assert find_files(["sub/list.txt"]) == ["sub/c.mp4", "/elsewhere/x.mp4"]
    assert find_files(["sub/list.csv"]) == ["sub/c.mp4"]
    assert find_files(["-"], io.StringIO("a.mp4\nsub/c.mp4\n")) == [
        "a.mp4",
        "sub/c.mp4",
    ]


def test_lists_may_have_comments_and_spaces_around_lines(folder):
    text = "# doors\n  a.mp4 \t\n  # b.mkv\nx y.mp4\n"
    (folder / "list.txt").write_text(text)
    assert find_files(["list.txt"]) == ["a.mp4", "x y.mp4"]
    assert find_files(["-"], io.StringIO(text)) == ["a.mp4", "x y.mp4"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("*.avi", r"\*\.avi matches no file"),
        ("empty", "no file with the name of a video"),
        ("no.csv", "does not exist"),
        ("no.mp4", "no.mp4 does not exist"),
        ("other.csv", "no column path"),
        ("nothing.txt", "lists no file"),
        ("streams.txt", r"rtsp://u:\*\*\*@h is a stream in a list of files"),
    ],
)
def test_what_gives_no_file_is_one_sentence(folder, source, reason):
    (folder / "empty").mkdir()
    (folder / "other.csv").write_text("name\na.mp4\n")
    (folder / "nothing.txt").write_text("\n")
    (folder / "streams.txt").write_text("rtsp://u:secret@h\n")
    with pytest.raises(VdError, match=reason) as raised:
        find_files([source])
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_streams_are_addresses_cameras_and_lists_of_them(folder):
    lines = "# doors\nrtsp://u:p@h/1\n\n0\n"
    (folder / "cameras.streams").write_text(lines)
    named = ["udp://@239.0.0.1:5000", "cameras.streams", "12"]
    assert find_streams(named) == [named[0], "rtsp://u:p@h/1", "0", "12"]
    assert find_streams(["a.mp4", "sub", "*.mp4", "-"]) == []
    (folder / "0").touch()  # no camera then
    assert (find_streams(["0"]), find_files(["0"])) == ([], ["0"])


def test_a_listed_address_without_both_slashes_is_not_printed(tmp_path):
    (tmp_path / "a.streams").write_text("rtsp:/u:secret@h\n")
    with pytest.raises(VdError, match="not with rtsp://, as") as error:
        find_streams([str(tmp_path / "a.streams")])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        (
            ["a.mp4", "rtsp://u:secret@h"],
            r"a\.mp4 is a file and rtsp://u:\*\*\*@h a stream",
        ),
        (
            ["ftp://u:secret@h/x"],
            r"ftp://u:\*\*\*@h/x is no address of a stream; give one",
        ),
        (["rtsp:/u:secret@h"], r"begins with rtsp: but not with rtsp://, as"),
        (["no.streams"], r"no\.streams does not exist"),
        (["empty.streams"], r"empty\.streams names no stream"),
        (["files.streams"], r"the line 'a\.mp4', which is neither an address nor"),
    ],
)
def test_what_is_no_stream_is_one_sentence(folder, sources, reason):
    (folder / "empty.streams").write_text("# nothing\n")
    (folder / "files.streams").write_text("a.mp4\n")
    with pytest.raises(VdError, match=reason) as raised:
        find_streams(sources)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("rtsp://u:p@ss@h/x", "rtsp://u:***@h/x"),
        ("rtsp://u:a/b@h/x", "rtsp://u:***@h/x"),
        ("rtsp://h:554/cam@1", "rtsp://h:554/cam@1"),
        ("http://h/?user=u&password=p&n=1", "http://h/?user=u&password=***&n=1"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_passwords_are_masked_and_nothing_else(address, masked):
    assert mask_password(address) == masked


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [
        ((None, None, None), (0.0, math.inf)),
        (("90", None, None), (90.0, math.inf)),
        (("1:30.5", "0:02:00", None), (90.5, 120.0)),
        (("01:00:00", None, "10"), (3600.0, 3610.0)),
        ((None, None, ".5"), (0.0, 0.5)),
    ],
)
def test_times(flags, seconds):
    assert parse_between(*flags) == seconds


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("x", None, None), "--start-time 'x' is no time"),
        (("-1", None, None), "--start-time '-1' is no time"),
        ((None, "1:75", None), "--end-time '1:75' has 60 or more"),
        ((None, "5", "5"), "give one"),
        (("5", "5", None), "nothing lies between"),
    ],
)
def test_wrong_times_are_one_sentence(flags, reason):
    with pytest.raises(VdError, match=reason):
        parse_between(*flags)
