"""Every kind of bad input at once through `vd scan`, and docs/reliability.md's table of it.

python -m tests.test_reliability > docs/reliability.md     writes the page again
"""

import glob
import multiprocessing
import os
import struct
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pytest

from tests.broken import (
    cut,
    flipped,
    later_by,
    make_broken,
    noisy_frames,
    remux,
    render,
    render_encrypted,
    render_growing,
    render_lossless,
    render_pictures,
    render_repeats,
    render_with_cover,
    render_with_sound,
    rotated,
    trim_without_encoding,
    with_cut_pictures,
    without_tables,
    zeroed,
)
from tests.command_line import vd
from vd.files import read_csv

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """# Reliability: what becomes of bad files

Each row is a kind of file that `tests/test_reliability.py` makes from a good clip. `vd scan` decodes all of them at
once, beside good clips. The test fails if a file differs from this page, if a good clip is affected, or if a worker is
left running. `python -m tests.test_reliability` prints this page.

- `used`: no damaged frame, and at most two frames, or 5 %, are missing. `partial`: at least half of the frames
  were decoded, and the frames before and after the fault are used. `quarantined`: nothing is used; the third column
  gives the reason.
- A worker that hangs is ended at its deadline (`timeout`), one that crashes is replaced (`corrupt-frames`). Its video
  is decoded once more: `partial` if both passes end at the same frame and gave at least half of the expected ones,
  else `quarantined` (`tests/test_workers.py`).
- Root can read every file, so a separate test covers `unreadable`.
- A longer step of the time stamps than ten usual ones and half a second is a gap: it is listed, counts for no hour,
  and is no fault, as a paused camera and lost data look alike.
- Known limits: a cut GIF, MPEG transport or program stream, raw MPEG, Motion JPEG, Ogg, DV, Y4M or WMV can count as whole, because
  nothing that FFmpeg reads in it gives its length; it is `partial`, however much is missing, if the cut breaks a frame.
  Damage inside a GIF ends it there unnoticed. The header of FLV, and of Matroska without a DURATION tag, gives only
  the end of the longest stream. Where sound outlasts the picture, such a file is judged by its sound: a picture that
  ends early counts as whole. Ogg, NUT and Y4M files joined one after the other give all frames, but count as `partial`.

| kind | outcome | reason |
|---|---|---|
"""
FILE_NAMES = (
    "line\nbreak.mp4",
    "'quotes\".mp4",
    "comma,semicolon;.mp4",
    "emoji🥊.mp4",
    "12:30.mp4",
    "caf\udce9.mp4",
)
USED = ("used", "")
PARTIAL = ("partial", "truncated")
CUT = ("quarantined", "truncated")
NO_VIDEO = ("quarantined", "not-a-video")
# (kind, (outcome, reason), patterns of file names)
KINDS = [
    ("a whole file in any common container, codec or pixel format", USED,
     ("good.* faststart.* fragments.* first_fragment.* moov_first.* plain.* a.* mpeg4.* "
      "vp9.* motion_jpeg.avi grey.* ten_bits.* 1x1.* rotated.*")),
    ("raw or multipart Motion JPEG", USED, "*.mjpeg"),
    ("another container than the name says", USED, "mp4_by_another_name.avi"),
    ("any name that the file system allows", USED, " ".join(map(glob.escape, FILE_NAMES))),
    ("sound that outlasts the picture, or a late start", USED, "sound_outlasts* begins_*"),
    ("a variable frame rate, a pause", USED, "variable_rate.mkv paused.*"),
    ("time stamps that restart, jump, return, or are missing or in the order of decoding", USED,
     "joined.ts clock_jump.ts one_stamp_ahead.mkv decoding_order.*"),
    ("a copy that begins within a group of pictures, or whose start is hidden", USED, "trimmed.*"),
    ("a picture as the first stream", USED, "cover_first.*"),
    ("packets that repeat the last frame", USED, "repeats*"),
    ("damage that decoding does not meet", USED, "one_bit_flipped.mp4 50_percent_a.gif"),
    ("cut in its second half", PARTIAL,
     "70_percent* 80_percent* 99_percent* 60_percent*.mkv 50_percent_a.ts 50_percent*fragment*"),
    ("cut in its first half, or where more than half is missing by its header", CUT,
     "30_percent* 50_percent_faststart.mp4 50_percent_plain.* 60_percent*.flv"),
    ("without an index, or only a start", CUT, "half.mp4 moov_gone.mp4 only_a_start.mkv start_of_a.*"),
    ("a hole in the middle", ("partial", "corrupt-frames"), "hole_faststart.mp4 hole_plain.avi"),
    ("a hole in Matroska, whose last frame refers to a missing one", PARTIAL, "hole_plain.mkv"),
    ("an end of zeros, or pictures cut short", ("partial", "corrupt-frames"),
     "end_zeroed.mp4 motion_jpeg_cut_pictures.avi"),
    ("a hole over half of it", ("quarantined", "corrupt-frames"), "large_hole.mp4"),
    ("a decoder that does not open", ("quarantined", "corrupt-frames"), "no_tables.mkv"),
    ("encrypted", ("quarantined", "encrypted"), "encrypted.mp4"),
    ("frames of more than 33 million pixels, also behind a header that claims fewer",
     ("quarantined", "too-large"), "large_frame*"),
    ("one or two frames", ("quarantined", "too-short"), "one_frame.mp4 two_frames.mp4"),
    ("no picture: sound alone, or streams of no known codec", ("quarantined", "no-video-stream"),
     "sound.mp4 2_percent*"),
    ("a still picture, a text, a playlist, zeros, a start that is no container's", NO_VIDEO,
     "picture_* subtitles.mp4 playlist.mp4 text.mp4 zeros.mp4 start_zeroed.mp4"),
    ("empty", ("quarantined", "empty"), "empty.mp4"),
    ("missing, or a link to nothing or to itself", ("quarantined", "missing"),
     "dangling.mp4 loop.mp4"),
    ("a folder, a pipe, a socket or a device", ("quarantined", "not-a-regular-file"),
     "folder.mp4 pipe.mp4 socket.mp4 device.mp4"),
]  # fmt: skip
FRAMES = {  # of used files that have not 50
    "50_percent_a.gif": "25",
    "clock_jump.ts": "100",
    "joined.ts": "100",
    "repeats_in_nut.mkv": "5",
}
MXF_KEY = bytes.fromhex("060e2b34020501010d01020101020400")


def make_all(folder: Path) -> None:
    """Bad and odd files of every kind in `folder`."""
    make_broken(folder)
    good = (folder / "good.mp4").read_bytes()
    first = render(folder / "moov_first.mp4", noisy_frames(50), movflags="faststart")
    content = first.read_bytes()
    for percent in (2, 30, 70, 99):
        (folder / f"{percent}_percent_moov_first.mp4").write_bytes(
            cut(content, percent / 100)
        )
    moov = good.index(b"moov") - 4
    (folder / "moov_gone.mp4").write_bytes(good[:moov])
    (folder / "start_zeroed.mp4").write_bytes(zeroed(content, 0, 0.02))
    (folder / "end_zeroed.mp4").write_bytes(zeroed(content, 0.98, 1))
    (folder / "one_bit_flipped.mp4").write_bytes(flipped(content, 0, bits=1))
    (folder / "mp4_by_another_name.avi").write_bytes(good)
    (folder / "rotated.mp4").write_bytes(rotated(good, 1))
    render_lossless(folder / "1x1.mkv", noisy_frames(50, 1, 1))
    render(folder / "two_frames.mp4", noisy_frames(2))
    stamps = [40 * i + 13 * (i % 3) for i in range(50)]
    render(folder / "variable_rate.mkv", noisy_frames(50), stamps=stamps)
    for name, options in {
        "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
        "grey.mp4": {"pix_fmt": "gray"},
        "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
        "motion_jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "mpeg4.avi": {"codec": "mpeg4"},
        "a.wmv": {"codec": "wmv2"},
        "a.flv": {},
        "a.ts": {},
        "vp9.webm": {"codec": "libvpx-vp9"},
    }.items():
        render(folder / name, noisy_frames(50), **options)
    for name in FILE_NAMES:  # each of other content, for copies are decoded once
        box = b"free" + os.fsencode(name)
        (folder / name).write_bytes(good + struct.pack(">I", len(box) + 4) + box)
    _make_ends(folder)
    pictures = (folder / "motion_jpeg.avi").read_bytes()
    cut_pictures = with_cut_pictures(pictures, every=3)
    (folder / "motion_jpeg_cut_pictures.avi").write_bytes(cut_pictures)
    render_growing(folder / "large_frame_behind_small_header.avi", 20, 4096, 8192)
    (folder / "start_of_a.mxf").write_bytes(MXF_KEY + bytes(180))
    program = render(folder / "a.mpg", noisy_frames(50), codec="mpeg2video")
    (folder / "start_of_a.mpg").write_bytes(program.read_bytes()[:12])
    (folder / "device.mp4").symlink_to("/dev/zero")
    _make_times(folder)
    render_encrypted(folder / "encrypted.mp4")
    without_tables(render_lossless(folder / "no_tables.mkv", noisy_frames(50)))


def _make_times(folder: Path) -> None:
    """Files whose time stamps or packets are odd, and that are whole all the same."""
    good = folder / "good.mp4"
    stamps = [40 * i + 9000 * (i > 24) for i in range(50)]
    for suffix in ("mkv", "ts"):
        render(folder / f"paused.{suffix}", noisy_frames(50), stamps=stamps)
    for suffix in ("avi", "asf"):
        remux(good, folder / f"decoding_order.{suffix}")
    stream = (folder / "a.ts").read_bytes()
    (folder / "joined.ts").write_bytes(stream + stream)
    later = remux(folder / "a.ts", folder / "later.ts", later_by(3600))
    (folder / "clock_jump.ts").write_bytes(stream + later.read_bytes())
    later.unlink()
    one_ahead = partial(later_by(40), only=20)
    no_b_frames = render(folder / "a.mov", noisy_frames(50), b_frames=0)
    remux(no_b_frames, folder / "one_stamp_ahead.mkv", one_ahead)
    long = render(folder / "long.mp4", noisy_frames(75), gop=25)
    remux(long, folder / "trimmed.ts", first=10)
    trim_without_encoding(long, folder / "trimmed.mp4", first_frame=25)
    long.unlink()
    render_repeats(folder / "repeats_in_nut.mkv")
    for container in ("mjpeg", "mpjpeg"):
        render_pictures(folder / f"{container}.mjpeg", container)
    for suffix in ("mp4", "mkv"):
        render_with_cover(folder / f"cover_first.{suffix}")


def _make_ends(folder: Path) -> None:
    """Files that end otherwise than their header seems to say, and cut ones like them."""
    for suffix in ("mkv", "flv"):
        whole = folder / f"sound_outlasts_picture.{suffix}"
        content = render_with_sound(whole, 50, 4.0).read_bytes()
        (folder / f"60_percent_{whole.name}").write_bytes(cut(content, 0.6))
    render_with_sound(folder / "begins_at_7_s.mkv", 50, 2.0, start=7.0)
    gif = (folder / "a.gif").read_bytes()
    (folder / "50_percent_a.gif").write_bytes(cut(gif, 0.5))
    (folder / "50_percent_a.ts").write_bytes(cut((folder / "a.ts").read_bytes(), 0.5))


def page() -> str:
    """The text of docs/reliability.md."""
    return HEAD + "".join(f"| {kind} | {' | '.join(end)} |\n" for kind, end, _ in KINDS)


def kinds(name: str) -> list[tuple[str, str]]:
    """Outcome and reason of each kind that a file is of."""
    return [
        end
        for _, end, patterns in KINDS
        if any(fnmatchcase(name, pattern) for pattern in patterns.split(" "))
    ]


def test_every_kind_ends_as_the_page_says_and_good_clips_are_untouched(tmp_path):
    root, report = tmp_path / "set", tmp_path / "report"
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    make_all(root / "violent")
    for number in range(6):
        render(root / "normal" / f"{number}.mp4", noisy_frames(50 + number))
    where = "--dataset-path", root, "--cache-dir", tmp_path / "cache"
    vd("scan", *where, "--report-dir", report, "--max-loss-gap", "1")
    rows = read_csv(report / "scan.csv")
    assert not multiprocessing.active_children()
    bad = {Path(row["path"]).name: row for row in rows if row["label"] == "violent"}
    ends = {name: [(row["outcome"], row["reason"])] for name, row in bad.items()}
    assert ends == {name: kinds(name) for name in bad}
    frames = {name: row["frames"] for name, row in bad.items() if kinds(name) == [USED]}
    assert {n: count for n, count in frames.items() if count != "50"} == FRAMES
    assert page() == PAGE.read_text(encoding="utf-8")
    assert len(bad) >= 80
    good = [row for row in rows if row["label"] == "nonviolent"]
    assert [row["frames"] for row in good] == [str(50 + n) for n in range(6)]
    assert {row["outcome"] for row in good} == {"used"}


if __name__ == "__main__":
    sys.stdout.write(page())
