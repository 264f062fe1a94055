"""Cut clips and annotated files: what they hold, when, and in what form."""

import av
import numpy as np
import pytest

from tests.broken import grey_frames, render, render_with_sound, rotated
from vd.predict.hysteresis import Event
from vd.predict.recording import Timeline
from vd.predict.videos import annotation, write_key_frames, write_video

EVENT = Event(1, 2.0, 3.0, 0.9, 2.5, 0.8, 3.5)


def frames_of(path):
    """Times and images of a video; its form is what every player plays."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = list(container.decode(stream))
        assert {frame.format.name for frame in frames} == {"yuv420p"}
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    times = [float(frame.time) for frame in frames]
    return np.array(times), [frame.to_ndarray(format="rgb24") for frame in frames]


def test_a_clip_holds_the_frames_between_its_times_from_0_on(tmp_path):
    source = render(tmp_path / "a.mp4", grey_frames(100), gop=30, b_frames=2)
    write_video(source, tmp_path / "cut.mp4", (1.5, 2.5), cut=True)
    times, images = frames_of(tmp_path / "cut.mp4")
    np.testing.assert_allclose(times, (np.arange(38, 63) - 37.5) / 25, atol=0.021)
    levels = [image.mean() for image in images]
    np.testing.assert_allclose(levels, 2 * np.arange(38, 63), atol=4)


def test_variable_times_are_those_of_the_source(tmp_path):
    stamps = [40 * i + 700 * (i >= 25) for i in range(50)]
    source = render(tmp_path / "a.mkv", grey_frames(50), stamps=stamps, b_frames=0)
    write_video(source, tmp_path / "whole.mp4", (0.0, np.inf), cut=False)
    times, _ = frames_of(tmp_path / "whole.mp4")
    np.testing.assert_allclose(times, np.array(stamps) / 1000, atol=1e-3)


def test_a_rotated_video_stands_upright_and_odd_sizes_are_even(tmp_path):
    images = [np.zeros((48, 65, 3), np.uint8)] * 10
    images = [image.copy() for image in images]
    for image in images:
        image[:8] = 255  # its top
    source = render(tmp_path / "a.mp4", images, codec="libx264", pix_fmt="yuv444p")
    source.write_bytes(rotated(source.read_bytes(), 1))
    write_video(source, tmp_path / "whole.mp4", (0.0, np.inf), cut=False)
    _, (first, *_) = frames_of(tmp_path / "whole.mp4")
    assert first.shape == (64, 48, 3)
    assert first[:, :6].mean() > 200  # a quarter turn counterclockwise: at the left
    assert first[:, 12:].mean() < 20


@pytest.mark.parametrize("cut", [False, True])
def test_the_sound_is_copied_at_its_times(tmp_path, cut):
    source = render_with_sound(tmp_path / "a.mp4", 100, 4.0)
    between = (1.0, 3.0) if cut else (0.0, np.inf)
    write_video(source, tmp_path / "b.mp4", between, cut=cut)

    def sound(path):
        with av.open(str(path)) as container:
            packets = [p for p in container.demux(audio=0) if p.size]
            return [(float(p.pts * p.time_base), bytes(p)) for p in packets]

    expected = [
        (at - between[0], content)
        for at, content in sound(source)
        if between[0] <= at < between[1]
    ]
    copied = sound(tmp_path / "b.mp4")
    assert [content for _, content in copied] == [content for _, content in expected]
    assert [at for at, _ in copied] == pytest.approx(
        [at for at, _ in expected], abs=0.025
    )


def test_sound_that_an_mp4_cannot_hold_is_left_out_and_said(tmp_path, capsys):
    source = render_with_sound(tmp_path / "a.mkv", 50, 2.0, sound="pcm_s16le")
    for name in ("b.mp4", "c.mp4"):
        write_video(source, tmp_path / name, (0.0, np.inf), cut=False)
        assert len(frames_of(tmp_path / name)[0]) == 50
    printed = capsys.readouterr().err
    assert printed.count("a.mkv: its sound (pcm_s16le) cannot be copied") == 1


def test_the_annotation_shows_probability_and_event(tmp_path):
    timeline = Timeline(np.array([1.0, 2.5]), np.array([0.25, 0.75]))
    draw = annotation(timeline, [EVENT])
    for seconds, share, red in ((1.0, 0.25, False), (2.5, 0.75, True)):
        image = np.full((240, 320, 3), 128, np.uint8)
        draw(image, seconds)
        bar = image[237]  # a row of the bar at the bottom
        assert np.mean(bar[4:-4, 0] > 100) == pytest.approx(share, abs=0.02)
        assert (image[0, 160] == (213, 94, 0)).all() == red


def test_a_key_frame_is_the_frame_at_the_peak(tmp_path):
    source = render(tmp_path / "a.mp4", grey_frames(100), gop=30)
    write_key_frames(source, [EVENT], tmp_path)
    (image,) = (
        frame.to_ndarray(format="rgb24")
        for frame in av.open(str(tmp_path / "event-1.jpg")).decode(video=0)
    )
    assert image.mean() == pytest.approx(2 * 63, abs=3)  # at 2.52 s
