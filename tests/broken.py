"""Good clips, rendered with PyAV, and bad files made from them."""

import os
import random
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVEL = 2  # grey levels from one frame to the next: a pixel gives the frame's number


def grey_frames(count, height=48, width=64) -> Iterator[np.ndarray]:
    """Flat frames whose grey level is LEVEL times their index."""
    for index in range(count):
        yield np.full((height, width, 3), LEVEL * index, np.uint8)


def noisy_frames(count, height=48, width=64) -> Iterator[np.ndarray]:
    """Moving noise: every frame costs bytes, so that damage to the file hits frames."""
    noise = np.random.default_rng(0).integers(0, 200, (height, width, 3), np.uint8)
    for index in range(count):
        yield np.roll(noise, index, axis=1)


def render(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    fps=25,
    codec="libx264",
    pix_fmt="yuv420p",
    gop=12,
    b_frames: int | None = None,
    stamps: Sequence[int] | None = None,
    clock: int = 1000,
    container: str | None = None,
    codec_options: dict[str, str] | None = None,
    **muxer: str,
) -> Path:
    """Encode RGB images; `stamps` are in 1 / clock s, for a variable frame rate."""
    images = list(images)
    with av.open(str(path), "w", container, options=muxer) as output:
        stream = output.add_stream(codec, fps, codec_options)
        stream.pix_fmt, stream.gop_size, stream.thread_count = pix_fmt, gop, 1
        stream.height, stream.width = images[0].shape[:2]
        if b_frames is not None:
            stream.max_b_frames = b_frames
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, clock)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[index], Fraction(1, clock)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def render_growing(path: Path, frames: int, height: int, width: int) -> Path:
    """Motion JPEG whose header claims a small size, and whose last frame is large."""
    grey = np.zeros((height, width, 3), np.uint8)
    large = av.CodecContext.create("mjpeg", "w")
    large.width, large.height, large.pix_fmt = width, height, "yuvj420p"
    large.time_base = Fraction(1, 25)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", 25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for image in noisy_frames(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        frame = av.VideoFrame.from_ndarray(grey, "rgb24").reformat(format="yuvj420p")
        frame.pts = frames
        for packet in large.encode(frame) + large.encode(None):
            packet.stream, packet.pts, packet.dts = stream, frames, frames
            packet.time_base = Fraction(1, 25)
            container.mux(packet)
    return path


def with_cut_pictures(avi: bytes, every: int) -> bytes:
    """A Motion JPEG AVI, the second half of every so many pictures zeroed."""
    content, place = bytearray(avi), 0
    for number in range(avi.count(b"00dc")):
        place = avi.find(b"00dc", place) + 8
        size = int.from_bytes(avi[place - 4 : place], "little")
        if number % every == 0 and avi[place : place + 2] == b"\xff\xd8":
            content[place + size // 2 : place + size] = bytes(size - size // 2)
    return bytes(content)


def render_lossless(path: Path, images: Iterable[np.ndarray], **options) -> Path:
    """Encode RGB images so that decoding gives every pixel back."""
    return render(path, images, codec="ffv1", pix_fmt="bgr0", **options)


def render_slow(path: Path, frames: int) -> Path:
    """One 4K key frame many times over, 100 a second: 8 ms of decoding a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 100, {"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 2160, 3840, "yuv420p"
        image = np.full((2160, 3840, 3), 99, np.uint8)
        packets = stream.encode(av.VideoFrame.from_ndarray(image, "rgb24"))
        content = bytes((packets + stream.encode(None))[0])
        for index in range(frames):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 100)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)
    return path


def render_late(path: Path) -> Path:
    """Two seconds whose last frame's time is seven weeks later, and so the length."""
    stamps = [40 * i for i in range(49)] + [2**32]
    return render(path, noisy_frames(50), stamps=stamps, b_frames=0)


def render_paused(path: Path) -> Path:
    """Two seconds of video with a pause of a minute in the middle."""
    stamps = [40 * i + 60_000 * (i >= 25) for i in range(50)]
    return render(path, noisy_frames(50), stamps=stamps)


def render_sound(path: Path) -> Path:
    """A second of silence, and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 44100)
        for start in range(0, 44100, 1024):
            silence = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def render_with_sound(
    path: Path, frames: int, seconds: float, sound="aac", start=0.0
) -> Path:
    """Moving noise of 25 frames a second from `start` on, and `seconds` of sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", 25, {"preset": "ultrafast"})
        video.height, video.width, video.pix_fmt, video.gop_size = 48, 64, "yuv420p", 12
        audio = container.add_stream(sound, 44100)
        packets = []
        for index, image in enumerate(noisy_frames(frames)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = index + round(25 * start), Fraction(1, 25)
            packets += video.encode(frame)
        noise = np.random.default_rng(0).normal(0, 0.1, (1, 1024)).astype(np.float32)
        for first in range(0, int(44100 * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, first + round(44100 * start)
            packets += audio.encode(frame)
        packets += video.encode(None) + audio.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


def trim_without_encoding(source: Path, path: Path, first_frame: int) -> Path:
    """What `ffmpeg -ss … -c copy` writes: an edit list hides the first frames."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new,
    ):
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        offset = int(first_frame / stream.average_rate / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = copy
                new.mux(packet)
    return path


def remux(
    source: Path,
    path: Path,
    restamp: Callable[[int, av.Packet], object] = lambda index, packet: None,
    first: int = 0,
) -> Path:
    """Copy the packets of a video from `first` on, with other stamps, without encoding."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        annex = path.suffix in (".avi", ".asf") and stream.codec_context.name == "h264"
        start_codes = annex and av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for index, packet in enumerate(old.demux(stream)):
            if packet.size and index >= first:
                restamp(index, packet)
                for part in start_codes.filter(packet) if start_codes else [packet]:
                    part.stream = copy
                    new.mux(part)
    return path


def later_by(seconds: float) -> Callable[..., None]:
    """Sets the stamps of all packets, or of `only` one, so many seconds later."""

    def restamp(index: int, packet: av.Packet, only: int | None = None) -> None:
        ticks = int(seconds / packet.time_base)
        if only in (None, index):
            packet.pts += ticks
        if only is None:
            packet.dts += ticks

    return restamp


def render_pictures(path: Path, container: str) -> Path:
    """50 JPEG pictures, one after another or as parts of a message."""
    pictures = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
    return render(path, noisy_frames(50), container=container, **pictures)


def render_with_cover(path: Path) -> Path:
    """50 frames of H.264 as the second stream, behind one JPEG picture."""
    with av.open(str(path), "w") as new:
        cover, stream = new.add_stream("mjpeg", 25), new.add_stream("libx264", 25)
        cover.pix_fmt, stream.pix_fmt = "yuvj420p", "yuv420p"
        for each in (cover, stream):
            each.height, each.width = 48, 64
        for index, image in enumerate(noisy_frames(50)):
            for each in (cover, stream):
                if index == 0 or each is stream:
                    frame = av.VideoFrame.from_ndarray(image, "rgb24")
                    new.mux(each.encode(frame.reformat(format=each.pix_fmt)))
        new.mux(cover.encode(None))
        new.mux(stream.encode(None))
    return path


def render_encrypted(path: Path) -> Path:
    """MP4 under a key that is nowhere in it."""
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    return render(path, noisy_frames(50), **options)


def without_tables(path: Path) -> Path:
    """Zero what the decoder of a file needs to open."""
    with av.open(str(path)) as container:
        tables = bytes(container.streams.video[0].codec_context.extradata)
    path.write_bytes(path.read_bytes().replace(tables, bytes(len(tables))))
    return path


def render_repeats(path: Path) -> Path:
    """Five pictures in two seconds of NUT, each shown ten times by empty packets."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.max_b_frames = 0
        for index, image in enumerate(noisy_frames(5)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = 10 * index, Fraction(1, 25)
            repeats = [av.Packet(b"") for _ in range(9)]
            for number, packet in enumerate(repeats, 10 * index + 1):
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
            container.mux(stream.encode(frame) + repeats)
    return path


def cut(content: bytes, share: float) -> bytes:
    """The first part of a file."""
    return content[: int(share * len(content))]


def zeroed(content: bytes, begin: float = 0.4, end: float = 0.6) -> bytes:
    """A file with a part of it set to zero, as a lost disk block leaves it."""
    first, last = int(begin * len(content)), int(end * len(content))
    return content[:first] + bytes(last - first) + content[last:]


def flipped(content: bytes, seed: int, bits: int = 8) -> bytes:
    """A file with some bits flipped anywhere."""
    generator = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(bits):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def rotated(mp4: bytes, quarter_turns: int) -> bytes:
    """An MP4 file that asks players to turn its pictures counterclockwise."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    at = mp4.index(b"tkhd") + 4 + 40  # the matrix of TrackHeaderBox, in 16.16 bits
    matrix = [value << 16 for value in (cosine, -sine, 0, sine, cosine)]
    return mp4[:at] + struct.pack(">5i", *matrix) + mp4[at + 20 :]


def with_frame_rate(avi: bytes, rate: int) -> bytes:
    """An AVI file whose header claims another frame rate."""
    at = avi.index(b"strh") + 8 + 20  # dwScale and dwRate of AVISTREAMHEADER
    return avi[:at] + struct.pack("<II", 1, rate) + avi[at + 8 :]


def make_broken(folder: Path) -> dict[str, tuple[str, str]]:
    """Bad files of every kind in `folder`: name → outcome and reason."""
    good = render(folder / "good.mp4", noisy_frames(50)).read_bytes()
    expected = _make_impossible(folder, good)
    for name, muxer in {
        "faststart.mp4": {"movflags": "faststart"},
        "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
        "first_fragment.mp4": {"movflags": "frag_keyframe"},
        "plain.avi": {},
        "plain.mkv": {},
    }.items():
        content = render(folder / name, noisy_frames(50), **muxer).read_bytes()
        for percent in (50, 80):
            file = folder / f"{percent}_percent_{name}"
            file.write_bytes(cut(content, percent / 100))
            # A fragment counts its own frames; nothing says that others should follow.
            enough = percent == 80 or "fragment" in name
            expected[file.name] = ("partial" if enough else "quarantined", "truncated")
        if "fragment" not in name:
            file = folder / f"hole_{name}"
            file.write_bytes(zeroed(content, 0.4, 0.5))
            # Matroska ends in a frame that refers to a missing one
            reason = "truncated" if name.endswith("mkv") else "corrupt-frames"
            expected[file.name] = ("partial", reason)
    faststart = (folder / "faststart.mp4").read_bytes()
    (folder / "large_hole.mp4").write_bytes(zeroed(faststart, 0.3, 0.95))
    expected["large_hole.mp4"] = ("quarantined", "corrupt-frames")
    return expected


def _make_impossible(folder: Path, good: bytes) -> dict[str, tuple[str, str]]:
    """Files that give no frame at all, and things that are no files."""
    contents = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"This is no video.\n" * 99, "not-a-video"),
        "subtitles.mp4": (b"1\n00:00:01,000 --> 00:00:02,000\nNo!\n", "not-a-video"),
        "playlist.mp4": (b"ffconcat version 1.0\nfile good.mp4\n", "not-a-video"),
        "zeros.mp4": (bytes(9999), "not-a-video"),
        "half.mp4": (cut(good, 0.5), "truncated"),
        "only_a_start.mkv": (b"\x1aE\xdf\xa3", "truncated"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in contents.items()}
    for codec, pix_fmt in (("png", "rgb24"), ("mjpeg", "yuvj420p")):
        name = f"picture_{codec}.mp4"
        (folder / name).write_bytes(_picture(codec, pix_fmt))
        reasons[name] = "not-a-video"
    render(folder / "one_frame.mp4", noisy_frames(1))
    render_sound(folder / "sound.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to("nowhere")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.mp4"))
    reasons |= {"one_frame.mp4": "too-short", "sound.mp4": "no-video-stream"}
    reasons |= dict.fromkeys(("missing.mp4", "dangling.mp4", "loop.mp4"), "missing")
    irregular = ("pipe.mp4", "folder.mp4", "socket.mp4")
    reasons |= dict.fromkeys(irregular, "not-a-regular-file")
    return {name: ("quarantined", reason) for name, reason in reasons.items()}


def _picture(codec: str, pix_fmt: str) -> bytes:
    """One encoded picture."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, pix_fmt
    encoder.time_base = Fraction(1, 25)
    (image,) = noisy_frames(1)
    frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pix_fmt)
    return b"".join(map(bytes, encoder.encode(frame) + encoder.encode(None)))
