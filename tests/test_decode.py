"""Frames of one video: which are kept, what they show, what becomes of a broken file."""

import math
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from tests.broken import (
    LEVEL,
    cut,
    grey_frames,
    noisy_frames,
    render,
    render_lossless,
    render_with_sound,
    rotated,
    with_frame_rate,
)
from tests.decoding import decode_all, outcome, record
from tests.unprivileged import open_folder, unprivileged
from vd.data.decode import FrameSettings
from vd.data.outcome import Outcome


def kept_and_later(images_FxSxHxWx3):
    """Indices of the kept frames of grey frames, and of their later ones."""
    assert np.ptp(images_FxSxHxWx3, axis=(2, 3, 4)).max() == 0
    rgb_F, motion_F = images_FxSxHxWx3[:, :, 0, 0, 0].astype(int).T
    return [
        (a // LEVEL, (a + m - 127) // LEVEL)
        for a, m in zip(rgb_F, motion_F, strict=True)
    ]


@pytest.mark.parametrize("container", ["avi", "mkv"])
@pytest.mark.parametrize(
    ("fps", "kept", "step"),
    [
        (25, [0, 4, 7, 10, 13, 16, 19, 22, 25, 29, 32, 35, 38, 41, 44, 47], 2),
        (30, [0, 4, 8, 12, 15, 19, 23, 27, 30, 34, 38, 42, 45, 49, 53], 3),
        (20, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35], 2),
        (15, [0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27], 1),
        (5, [0, 1, 2, 3, 4, 5, 6, 7, 8], 1),
    ],
)
def test_keeps_the_first_frame_of_each_eighth_with_one_0_1_s_later(
    tmp_path, container, fps, kept, step
):
    path = render_lossless(tmp_path / f"a.{container}", grey_frames(2 * fps), fps=fps)
    images, result = decode_all(path)
    assert kept_and_later(images) == [(k, k + step) for k in kept]
    assert result.duration == pytest.approx(2.0, abs=1e-3)  # stamps of 1 ms in Matroska
    assert replace(result, duration=2.0, span=2.0) == Outcome(
        "used", "", 2 * fps, 64, 48, fps, 2.0, "ffv1", 0.0, 2.0, (), "stamps"
    )


def test_brightness_is_the_mean_grey_of_the_first_frame(tmp_path):
    frames = list(noisy_frames(50))
    frames[0] = np.full_like(frames[0], 180)
    frames[0][:24] = 60
    path = render_lossless(tmp_path / "a.mkv", frames)
    assert outcome(path).brightness == pytest.approx(120, abs=0.6)


def test_variable_frame_rate_goes_by_time_stamps(tmp_path):
    milliseconds = [0, 30, 70, 100, 130, 500, 510, 620, 640, 700, 1000]
    path = tmp_path / "a.mkv"
    render_lossless(path, grey_frames(11), stamps=milliseconds)
    # Slots begin every 125 ms; later is the frame nearest to 0.1 s after.
    expected = [(0, 3), (4, 5), (5, 7), (8, 9)]
    images, result = decode_all(path)
    assert kept_and_later(images) == expected
    assert result.outcome == "used"


def test_motion_is_the_clipped_difference_around_127(tmp_path):
    frames = np.random.default_rng(1).integers(0, 256, (50, 48, 64, 3), np.uint8)
    images, _ = decode_all(render_lossless(tmp_path / "a.mkv", frames))
    for (rgb, motion), index in zip(
        images, [0, 4, 7, 10, 13, 16, 19, 22, 25, 29], strict=False
    ):
        np.testing.assert_array_equal(rgb, frames[index])
        difference = frames[index + 2].astype(int) - frames[index].astype(int)
        np.testing.assert_array_equal(motion, np.clip(127 + difference, 0, 255))


def test_resizes_by_area_and_squashes_the_aspect(tmp_path):
    large = np.random.default_rng(2).integers(0, 256, (40, 80, 3), np.uint8)
    path = render_lossless(tmp_path / "a.mkv", [large] * 5)
    images, _ = decode_all(path, settings=FrameSettings(height=4, width=4))
    tiles = large.reshape(4, 10, 4, 20, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(images[0, 0].astype(int), tiles, atol=2)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotated_video_stands_upright(tmp_path, turns):
    upright = next(noisy_frames(1)).copy()
    upright[:24, :32] = 0  # black corner at the top left
    upright[24:, 32:] = 255
    stored = [np.rot90(upright, -turns)] * 5
    path = render(tmp_path / "a.mp4", stored)
    path.write_bytes(rotated(path.read_bytes(), turns))
    images, _ = decode_all(path)
    assert images[0, 0, 4:20, 4:28].mean() < 10
    assert images[0, 0, 28:44, 36:60].mean() > 245


def test_a_sink_takes_the_header_the_kept_frames_and_the_ends_of_stretches(tmp_path):
    path = render(tmp_path / "a.mp4", islice(cycle(noisy_frames(60)), 250))
    sink, result = record(path, stretch_seconds=4.0)
    assert [(h.frames, h.duration, h.reason) for h in sink.headers] == [(250, 10.0, "")]
    assert sink.seconds == pytest.approx(
        [math.ceil(slot / 8 * 25) / 25 for slot in range(80)]
    )
    assert sink.frames == [round(25 * time) + 4 for time in sink.seconds[:-1]] + [250]
    # the frame at 4 s ends a stretch; the one at 3.88 s waits for its later one at 3.96 s
    assert sink.stretches == [32, 64]
    counted, same = record(path, images=False)
    assert (counted.seconds, same) == (sink.seconds, result)
    assert counted.images == [None] * 80


def test_a_file_that_may_not_be_read_is_unreadable():
    with open_folder() as folder:
        path = render(folder / "a.mp4", noisy_frames(50))
        path.chmod(0)
        with unprivileged():
            assert outcome(path) == Outcome("quarantined", "unreadable")


def test_odd_sizes_are_used(tmp_path):
    images, result = decode_all(
        render_lossless(tmp_path / "a.mkv", noisy_frames(50, 33, 51))
    )
    assert len(images) == 16
    assert (result.outcome, result.height, result.width) == ("used", 33, 51)


@pytest.mark.parametrize("name", ["12:30.mp4", "-i.mp4", "a%03d.mp4", "caf\udce9.mp4"])
def test_odd_names_are_used(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    render(tmp_path / "a.mp4", noisy_frames(50)).rename(name)
    assert outcome(Path(name)).outcome == "used"
    assert outcome(Path("nul\0.mp4")).reason == "missing"


def test_metadata_in_another_encoding_do_no_harm(tmp_path):
    path = render(tmp_path / "a.avi", noisy_frames(50))
    assert b"Lavf" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"Lavf", "Müß!".encode("latin-1")))
    assert outcome(path).outcome == "used"


def test_frames_that_the_writer_of_an_avi_left_out_do_not_lack(tmp_path):
    stamps = range(0, 100, 3)  # of 100 frames two in three
    path = render(tmp_path / "a.avi", noisy_frames(34), stamps=stamps, clock=25)
    assert (outcome(path).outcome, outcome(path).frames) == ("used", 34)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert outcome(path).reason == "truncated"


def test_a_nonsensical_frame_rate_does_no_harm(tmp_path):
    path = render(tmp_path / "a.avi", noisy_frames(50))
    content = path.read_bytes()
    path.write_bytes(with_frame_rate(content, 0))
    assert outcome(path).outcome == "used"
    path.write_bytes(with_frame_rate(content, 2**31))
    assert outcome(path).frames == 50


def test_a_video_with_too_many_pixels_is_refused(tmp_path):
    path = render(tmp_path / "a.mp4", noisy_frames(50))
    settings = FrameSettings(max_pixels=64 * 48 - 1)
    assert outcome(path, settings=settings).reason == "too-large"


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.mp4", "a.ts"])
@pytest.mark.parametrize(("sound", "start"), [(5.0, 0.0), (1.0, 0.0), (5.0, 7.0)])
def test_sound_that_outlasts_the_picture_and_a_late_start_lose_nothing(
    tmp_path, name, sound, start
):
    result = outcome(render_with_sound(tmp_path / name, 60, sound, start=start))
    assert (result.outcome, result.frames) == ("used", 60)


@pytest.mark.parametrize("name", ["a.mkv", "a.flv"])
@pytest.mark.parametrize(("sound", "start"), [(5.0, 0.0), (2.4, 0.0), (2.4, 7.0)])
def test_a_cut_file_with_sound_is_truncated_all_the_same(tmp_path, name, sound, start):
    path = render_with_sound(tmp_path / name, 60, sound, start=start)
    content = path.read_bytes()
    for share in (0.3, 0.6):
        path.write_bytes(cut(content, share))
        result = outcome(path)
        assert result.reason == "truncated", (name, share)
        assert result.frames < 60 or sound == 5.0


def test_the_picture_s_own_length_tells_what_of_it_lacks(tmp_path):
    path = render_with_sound(tmp_path / "a.mkv", 60, 5.0)
    path.write_bytes(cut(path.read_bytes(), 0.8))  # cut where only sound is left
    assert outcome(path).outcome == "used"
    path.write_bytes(cut(path.read_bytes(), 0.6))
    assert outcome(path).outcome == "partial"  # of 60 frames, not of 125


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("a.mp4", {"movflags": "faststart"}, 0.99),
        ("a.mp4", {"movflags": "faststart"}, 0.9),
        ("a.avi", {}, 0.9),
        ("a.ts", {}, 0.5),
        ("a.mpg", {"codec": "mpeg2video"}, 0.5),
        ("a.m2v", {"codec": "mpeg2video"}, 0.5),
        ("a.mjpeg", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 0.5),
    ],
)
def test_a_fault_with_which_a_file_ends_is_truncation(tmp_path, name, options, share):
    path = render(tmp_path / name, noisy_frames(50), **options)
    path.write_bytes(cut(path.read_bytes(), share))
    result = outcome(path)
    assert (result.outcome, result.reason) == ("partial", "truncated")
