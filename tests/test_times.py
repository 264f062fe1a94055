"""Times of frames in whole files: every kind of stamp and container, and what is no fault."""

from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import av
import numpy as np
import pytest

from tests.broken import (
    LEVEL,
    cut,
    grey_frames,
    later_by,
    noisy_frames,
    remux,
    render,
    render_encrypted,
    render_lossless,
    render_pictures,
    render_repeats,
    render_with_cover,
    render_with_sound,
    trim_without_encoding,
    without_tables,
)
from tests.decoding import decode_all, outcome, record
from vd.data.decode import _decoding_stamps

KEPT = [0, 4, 7, 10, 13, 16, 19, 22, 25, 29, 32, 35, 38, 41, 44, 47]  # of 50, at 25 fps


def assert_50_frames_in_2_seconds(path):
    sink, result = record(path)
    assert (result.outcome, result.reason, result.frames) == ("used", "", 50)
    assert sink.seconds == pytest.approx([index / 25 for index in KEPT], abs=1e-3)
    assert result.duration == pytest.approx(2.0, abs=2e-3)
    assert result.gaps == ()
    return sink, result


@pytest.mark.parametrize("fps", [25, 30, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_the_same_frames_are_kept_in_every_container(tmp_path, fps):
    source = render(tmp_path / "a.mp4", noisy_frames(150), fps=fps, b_frames=2)
    first, result = record(source)
    assert (result.frames, result.clock) == (150, "stamps")
    for suffix in ("mkv", "ts", "avi", "mov", "flv", "asf"):
        sink, other = record(remux(source, tmp_path / f"a.{suffix}"))
        assert (other.outcome, other.frames) == ("used", 150), suffix
        assert sink.seconds == pytest.approx(first.seconds, abs=1.01e-3), suffix
        assert other.duration == pytest.approx(result.duration, abs=2e-3), suffix
        np.testing.assert_array_equal(sink.images, first.images, suffix)


def test_the_rate_that_a_header_claims_moves_no_frame(tmp_path):
    source = render(tmp_path / "a.avi", noisy_frames(50), codec="mpeg4", b_frames=0)
    matroska = remux(source, tmp_path / "a.mkv")
    again = remux(matroska, tmp_path / "b.avi")
    rates = [outcome(path).fps for path in (source, matroska, again)]
    assert rates == [25, 25, 1000]
    images = [decode_all(path)[0] for path in (source, matroska, again)]
    np.testing.assert_array_equal(images[1], images[0])
    np.testing.assert_array_equal(images[2], images[0])


@pytest.mark.parametrize("suffix", ["avi", "asf"])
def test_stamps_in_the_order_of_decoding_are_put_in_order(tmp_path, suffix):
    source = render(tmp_path / "a.mp4", noisy_frames(50), b_frames=3)
    assert_50_frames_in_2_seconds(remux(source, tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_keeps_the_last_step(tmp_path, codec):
    source = render(tmp_path / "a.mp4", noisy_frames(50), codec=codec, b_frames=0)
    assert_50_frames_in_2_seconds(remux(source, tmp_path / "a.avi"))


@pytest.mark.parametrize(
    ("shown", "decoded", "stamps"),
    [
        ([3, 5, 4, 6, 8], [0, 3, 4, 5, 6], ""),  # their own times
        ([None] * 5, [0, 1, 2, 3, 4], "dts"),  # AVI
        ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4], "dts"),  # written with pts = dts
        ([1, 2, 3, 4, 5], [None] * 5, "pts"),
        ([1, None, 3, 4, 5], [0, None, 1, 2, 3], ""),  # some are missing
    ],
)
def test_which_stamps_are_in_the_order_of_decoding(shown, decoded, stamps):
    pairs = zip(shown, decoded, strict=True)
    packets = [SimpleNamespace(pts=p, dts=d, size=9) for p, d in pairs]
    assert _decoding_stamps([*packets, None]) == stamps


def test_a_stream_without_stamps_goes_by_its_rate(tmp_path):
    source = render(tmp_path / "a.mp4", noisy_frames(50))
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        filters = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        packets = [
            p for packet in container.demux(stream) for p in filters.filter(packet)
        ]
        content = b"".join(map(bytes, packets))
    path = tmp_path / "a.h264"
    path.write_bytes(content)
    _, result = assert_50_frames_in_2_seconds(path)
    assert result.clock == "rate"
    assert outcome(source).clock == "stamps"


def test_joined_recordings_are_decoded_to_the_end(tmp_path):
    colours, content = [10, 70, 130, 190], b""
    for colour in colours:
        images = [np.full((48, 64, 3), colour, np.uint8)] * 500
        part = render(tmp_path / "part.ts", images, codec="mpeg2video")
        content += part.read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(content)
    sink, result = record(path)
    assert (result.outcome, result.frames) == ("used", 2000)
    assert result.duration == pytest.approx(80.0, abs=1e-3)
    levels = [image[0].mean() for image in sink.images]
    assert len(levels) == 640
    for index, colour in enumerate(colours):
        assert levels[160 * index + 80] == pytest.approx(colour, abs=3)
    assert len(sink.stretches) == 2  # at 30 and 60 s


@pytest.mark.parametrize("suffix", ["ts", "flv"])
def test_a_stream_that_begins_later_disturbs_no_other(tmp_path, suffix):
    silent = render(tmp_path / f"a.{suffix}", noisy_frames(50), b_frames=0).read_bytes()
    path = render_with_sound(tmp_path / f"b.{suffix}", 50, 2.0)
    header = 13 if suffix == "flv" else 0  # a file has one
    path.write_bytes(silent + path.read_bytes()[header:])
    assert (outcome(path).outcome, outcome(path).frames) == ("used", 100)


def test_a_clock_that_jumps_an_hour_adds_no_hour(tmp_path):
    source = render(tmp_path / "a.ts", noisy_frames(50), b_frames=2)
    later = remux(source, tmp_path / "b.ts", later_by(3600))
    path = tmp_path / "joined.ts"
    path.write_bytes(source.read_bytes() + later.read_bytes())
    sink, result = record(path)
    assert (result.outcome, result.frames) == ("used", 100)
    assert result.duration == pytest.approx(4.0, abs=1e-3)
    ((start, length),) = result.gaps
    assert start == pytest.approx(2.0, abs=1e-3)
    assert result.span == pytest.approx(length + 4.0)
    assert len(sink.seconds) == 32
    assert len(sink.stretches) == 1  # and not 120
    path.write_bytes(later.read_bytes() + source.read_bytes())  # FFmpeg's 26 hours
    assert record(path)[1].span == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_frames_that_are_reordered_late_keep_their_times(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), np.uint8)
    ramp = np.add.outer(np.arange(48), np.arange(64))[..., None].repeat(3, axis=2)
    images = [*noise, *[((ramp + 3 * i) % 256).astype(np.uint8) for i in range(100)]]
    path = render(tmp_path / f"a.{suffix}", images, b_frames=3)
    sink, result = record(path)
    assert result.duration == pytest.approx(6.0, abs=1e-3)
    steps = 25 * np.array(sink.seconds)
    np.testing.assert_allclose(steps, steps.round(), atol=0.05)


def test_one_stamp_far_ahead_loses_no_frame(tmp_path):
    source = render(tmp_path / "a.mp4", noisy_frames(50), b_frames=0)
    path = remux(source, tmp_path / "a.mkv", partial(later_by(40), only=20))
    assert_50_frames_in_2_seconds(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_pause_is_a_gap_and_no_fault(tmp_path, suffix):
    stamps = [40 * i for i in range(25)] + [30_000 + 40 * i for i in range(25, 50)]
    path = render(tmp_path / f"a.{suffix}", noisy_frames(50), stamps=stamps, b_frames=2)
    sink, result = record(path)
    assert (result.outcome, result.frames) == ("used", 50)
    assert [sink.seconds[frames] > 29 for frames in sink.gaps] == [True]
    assert sink.seconds[sink.gaps[0] - 1] < 1
    assert result.gaps == (pytest.approx((1.0, 30.0), abs=2e-3),)
    assert result.duration == pytest.approx(2.0, abs=2e-3)
    assert result.span == pytest.approx(32.0, abs=2e-3)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_part_of_a_video_gives_its_frames_and_nothing_is_missing(tmp_path, b_frames):
    path = render(tmp_path / "a.mp4", noisy_frames(250), b_frames=b_frames)
    whole, _ = record(path)
    sink, result = record(path, between=(2.0, 4.0))
    assert sink.seconds == [s for s in whole.seconds if 2 <= s < 4]
    chosen = [i for i, s in zip(whole.images, whole.seconds, strict=True) if 2 <= s < 4]
    np.testing.assert_array_equal(sink.images, chosen)
    assert (result.outcome, result.reason) == ("used", "")
    assert result.span == pytest.approx(4.2, abs=0.21)  # not 10
    for start in (10.0, 20.0):
        _, result = record(path, between=(start, 30.0))
        assert (result.outcome, result.reason) == ("quarantined", "starts-after-end")
    _, result = record(path, between=(9.97, 30.0))
    assert result.reason == "too-short"


UNEVEN = [40 * i + 13 * (i % 3) + 2000 * (i > 90) + 900 * (i > 300) for i in range(500)]


@pytest.mark.parametrize(
    ("name", "options", "skips"),
    [
        ("a.mp4", {}, True),
        ("a.mkv", {"b_frames": 3, "gop": 50}, True),
        ("open.mp4", {"codec_options": {"x264-params": "open-gop=1:bframes=3"}}, True),
        ("uneven.mp4", {"stamps": UNEVEN, "b_frames": 2}, True),
        ("uneven.mkv", {"stamps": UNEVEN, "b_frames": 2}, True),
        ("a.webm", {"codec": "libvpx-vp9"}, True),
        ("mpeg2.mkv", {"codec": "mpeg2video", "b_frames": 2}, True),
        ("frag.mp4", {"movflags": "frag_keyframe+empty_moov"}, None),
        ("a.ts", {"b_frames": 2}, False),
        ("a.avi", {"b_frames": 2}, False),
    ],
)
@pytest.mark.parametrize("between", [(9.3, 13.0), (12.0, float("inf"))])
def test_a_late_part_is_the_same_however_it_is_reached(
    tmp_path, name, options, skips, between
):
    path = render(tmp_path / name, noisy_frames(500), **options)
    whole, everything = record(path)
    part, result = record(path, between=between)
    inside = [between[0] <= s < between[1] for s in whole.seconds]
    assert sum(inside) > 20
    assert part.seconds == [s for s, i in zip(whole.seconds, inside, strict=True) if i]
    images = [image for image, i in zip(whole.images, inside, strict=True) if i]
    np.testing.assert_array_equal(part.images, images)
    assert (result.outcome, result.reason) == ("used", "")
    assert set(result.gaps) <= set(everything.gaps)
    late = [gap for gap in everything.gaps if between[0] <= gap[0] < between[1] - 1]
    assert set(late) <= set(result.gaps)
    if between[1] == float("inf"):
        assert result.span == everything.span
    if skips is not None:  # a key frame is at most 2 s before the 5 s of lead
        before = between[0] - part.frames[0] / 25
        assert (before > 1) == skips


def test_a_late_part_of_a_cut_file_is_partial(tmp_path):
    path = render(tmp_path / "a.mp4", noisy_frames(500), movflags="faststart")
    path.write_bytes(cut(path.read_bytes(), 0.8))
    sink, result = record(path, between=(12.0, float("inf")))
    assert (result.outcome, result.reason) == ("partial", "truncated")
    assert 12 <= sink.seconds[0] < sink.seconds[-1] < 18


def test_no_motion_spans_a_gap(tmp_path):
    stamps = [40 * i for i in range(25)] + [30_000 + 40 * i for i in range(25, 50)]
    path = render_lossless(tmp_path / "a.mkv", grey_frames(50), stamps=stamps)
    images, _ = decode_all(path)
    rgb, motion = images[:, :, 0, 0, 0].astype(int).T
    steps = (motion - 127) // LEVEL
    assert list(rgb // LEVEL) == KEPT
    assert set(steps) == {2}


def test_packets_that_repeat_a_frame_are_no_faults(tmp_path):
    result = outcome(render_repeats(tmp_path / "a.nut"))  # as Theora has them
    assert (result.outcome, result.frames) == ("used", 5)
    assert result.duration == pytest.approx(2.0)


def test_a_decoder_that_does_not_open_is_a_fault_at_once(tmp_path):
    path = without_tables(render_lossless(tmp_path / "a.mkv", noisy_frames(5)))
    result = outcome(path)
    assert (result.outcome, result.reason) == ("quarantined", "corrupt-frames")


@pytest.mark.parametrize("container", ["mjpeg", "mpjpeg"])
def test_raw_and_multipart_motion_jpeg_are_videos(tmp_path, container):
    assert_50_frames_in_2_seconds(render_pictures(tmp_path / "a.mjpeg", container))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_picture_before_the_video_is_passed_over(tmp_path, suffix):
    path = render_with_cover(tmp_path / f"a.{suffix}")
    _, result = assert_50_frames_in_2_seconds(path)
    assert result.codec == "h264"


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path, b_frames):
    path = render(tmp_path / "a.mp4", noisy_frames(50), gop=250, b_frames=b_frames)
    result = outcome(trim_without_encoding(path, tmp_path / "b.mp4", first_frame=40))
    assert (result.outcome, result.frames) == ("used", 10)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        *(("libx264", suffix) for suffix in ("ts", "mkv", "avi", "mp4", "flv")),
        *(("mpeg2video", suffix) for suffix in ("ts", "mkv", "avi", "mpg")),
        *(("mpeg4", suffix) for suffix in ("mkv", "avi", "mp4")),
    ],
)
def test_a_copy_that_begins_within_a_group_of_pictures_is_whole(
    tmp_path, codec, suffix
):
    source = render(tmp_path / "a.mp4", noisy_frames(100), codec=codec, gop=25)
    result = outcome(remux(source, tmp_path / f"b.{suffix}", first=10))
    assert (result.outcome, result.reason) == ("used", "")
    assert 75 <= result.frames <= 90


def test_an_encrypted_file_is_called_so(tmp_path):
    result = outcome(render_encrypted(tmp_path / "a.mp4"))
    assert (result.outcome, result.reason) == ("quarantined", "encrypted")


def test_a_cut_file_gives_what_it_has(tmp_path):
    path = render(tmp_path / "a.mp4", noisy_frames(50), movflags="faststart")
    path.write_bytes(cut(path.read_bytes(), 0.65))
    result = outcome(path)
    assert (result.outcome, result.reason) == ("partial", "truncated")
    assert 25 < result.frames < 45
    assert result.duration == pytest.approx(result.frames / 25)
