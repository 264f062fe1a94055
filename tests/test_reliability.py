"""Every kind of bad input at once through `vd scan`, and docs/reliability.md's table of it.

python -m tests.test_reliability > docs/reliability.md     writes the page again
"""

import os
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.broken import (
    cut,
    flipped,
    make_broken,
    noisy_frames,
    render,
    render_growing,
    render_lossless,
    render_with_sound,
    rotated,
    with_cut_pictures,
    zeroed,
)
from tests.command_line import vd
from vd.config import DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.workers import decode_pool, decode_videos
from vd.files import read_csv

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """# Reliability: what becomes of bad files

Each row is a file that `tests/test_reliability.py` makes from a good clip of 50 frames (unless the file's name
gives another number). `vd scan` decodes all of them at once, beside good clips. The test fails if a row differs
from this page, if a good clip is affected, or if a worker is left running. `python -m tests.test_reliability`
prints this page.

- `used`: no damaged frame, and at most two frames, or 5 %, are missing. `partial`: at least half of the frames
  were decoded, and the frames before and after the fault are used. `quarantined`: nothing is used; the third column
  gives the reason.
- A file that FFmpeg cannot open is `truncated` if it begins like a video container, otherwise `not-a-video`.
- A worker that hangs is ended at its deadline (`timeout`), one that crashes is replaced (`corrupt-frames`). Its video
  is decoded once more: `partial` if both passes end at the same frame and gave at least half of the expected ones,
  else `quarantined` (`tests/test_workers.py`).
- A file without permission to read is `unreadable`. Root can read every file, so a separate test covers it.
- `truncated`: the end is missing according to the header or the index, or the file ends in a broken frame.
- Known limits: a cut GIF, MPEG transport or program stream, raw MPEG, Motion JPEG or WMV can count as whole, because
  nothing that FFmpeg reads in it gives its length; it is `partial`, however much is missing, if the cut breaks a frame.
  Damage inside a GIF ends it there unnoticed. The header of FLV, and of Matroska without a DURATION tag, gives only
  the end of the longest stream. Where sound outlasts the picture, such a file is judged by its sound: a picture that
  ends early counts as whole.

| file | outcome | reason | frames |
|---|---|---|---|
"""
NAMES = (
    "line\nbreak.mp4",
    "'quotes\".mp4",
    "comma,semicolon;.mp4",
    "emoji🥊.mp4",
    "12:30.mp4",
    "caf\udce9.mp4",
)
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
    large = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
    render(folder / "8192x4096_2_frames.avi", noisy_frames(2, 4096, 8192), **large)
    render(folder / "two_frames.mp4", noisy_frames(2))
    stamps = [40 * i + 13 * (i % 3) for i in range(50)]
    render(folder / "variable_rate.mkv", noisy_frames(50), stamps=stamps)
    for name, options in {
        "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
        "grey.mp4": {"pix_fmt": "gray"},
        "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
        "motion_jpeg.avi": large,
        "mpeg4.avi": {"codec": "mpeg4"},
        "a.wmv": {"codec": "wmv2"},
        "a.flv": {},
        "a.ts": {},
        "vp9.webm": {"codec": "libvpx-vp9"},
    }.items():
        render(folder / name, noisy_frames(50), **options)
    for name in NAMES:  # each of other content, for copies are decoded once
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


def scanned(root: Path, cache: Path) -> list[dict[str, str]]:
    """The rows of scan.csv."""
    vd(
        "scan", "--dataset-path", root, "--cache-dir", cache, "--report-dir", cache / "report",
        "--max-loss-gap", "1",
    )  # fmt: skip
    return read_csv(cache / "report" / "scan.csv")


def page(rows: list[dict[str, str]]) -> str:
    """The text of docs/reliability.md."""
    lines = []
    for row in rows:
        if row["label"] == "violent":
            name = (
                row["path"].removeprefix("violent/").encode("unicode_escape").decode()
            )
            cells = f"`{name}`", row["outcome"], row["reason"], row["frames"]
            lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def make_dataset(root: Path) -> None:
    """All bad files as violent, six good clips as the other class."""
    for name in ("violent", "normal"):
        (root / name).mkdir(parents=True)
    make_all(root / "violent")
    for number in range(6):
        render(root / "normal" / f"{number}.mp4", noisy_frames(50 + number))


def workers(mark: str) -> set[str]:
    """Ids of the decoding processes that have `mark` in their environment."""
    return {
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if b"spawn_main" in _read(path / "cmdline")
        and mark.encode() in _read(path / "environ")
    }


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_every_kind_ends_as_the_page_says_and_good_clips_are_untouched(
    tmp_path, monkeypatch
):
    make_dataset(tmp_path / "set")
    monkeypatch.setenv("SCANNED_BY", str(tmp_path))  # other tests may run beside
    seen = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            seen.update(workers(str(tmp_path)))

    thread = threading.Thread(target=watch)
    thread.start()
    rows = scanned(tmp_path / "set", tmp_path / "cache")
    done.set()
    thread.join()
    assert seen
    assert not workers(str(tmp_path))
    assert page(rows) == PAGE.read_text(encoding="utf-8")
    assert len(rows) >= 40 + 6
    good = [row for row in rows if row["label"] == "nonviolent"]
    assert [row["frames"] for row in good] == [str(50 + n) for n in range(6)]
    assert {row["outcome"] for row in good} == {"used"}


def test_flipped_bits_at_100_seeds_never_crash(tmp_path):
    content = render(
        tmp_path / "a.mp4", noisy_frames(50), movflags="faststart"
    ).read_bytes()
    paths = []
    for seed in range(100):
        paths.append(tmp_path / f"{seed}.mp4")
        paths[-1].write_bytes(flipped(content, seed))
    settings = FrameSettings(height=48, width=64)
    with decode_pool(settings, DecodeConfig(20, 2), len(paths)) as pool:
        made = list(decode_videos(paths, pool))
    ends = Counter(piece.outcome.outcome for piece in made if piece.outcome is not None)
    assert sum(ends.values()) == 100
    assert ends["used"] + ends["partial"] >= 50  # most of a file is picture


def test_a_file_that_grows_and_one_that_vanishes_while_it_is_read(tmp_path):
    content = render(
        tmp_path / "a.mp4", noisy_frames(50), movflags="faststart"
    ).read_bytes()
    grows, vanishes = tmp_path / "grows.mp4", tmp_path / "vanishes.mp4"
    grows.write_bytes(cut(content, 0.3))
    vanishes.write_bytes(content)
    done = threading.Event()

    def grow() -> None:
        with open(grows, "ab") as handle:
            for byte in content[len(content) * 3 // 10 :]:
                handle.write(bytes([byte]))
                if done.wait(0.0005):
                    return

    paths = [tmp_path / "a.mp4", vanishes, grows, tmp_path / "a.mp4"]
    vanishes.unlink()  # after it was listed
    thread = threading.Thread(target=grow)
    thread.start()
    began = time.monotonic()
    with decode_pool(FrameSettings(), DecodeConfig(20, 2), len(paths)) as pool:
        made = list(decode_videos(paths, pool))
    done.set()
    thread.join()
    outcomes = [piece.outcome for piece in made if piece.outcome is not None]
    assert [o.outcome for o in outcomes[:1] + outcomes[3:]] == ["used", "used"]
    assert outcomes[1].reason == "missing"
    assert outcomes[2].outcome in ("used", "partial", "quarantined")
    assert time.monotonic() - began < 60


def test_a_class_without_a_file_is_named(tmp_path):
    make_dataset(tmp_path)
    for path in (tmp_path / "normal").iterdir():
        path.unlink()
    arguments = "--dataset-path", tmp_path, "--cache-dir", tmp_path / "c"
    report = tmp_path / "report"
    done = vd("scan", *arguments, "--report-dir", report, code=2)
    assert "has no nonviolent clip" in done.stderr
    assert len(read_csv(report / "scan.csv")) > 40  # all the same


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make_dataset(Path(scratch) / "set")
        sys.stdout.write(page(scanned(Path(scratch) / "set", Path(scratch) / "cache")))
