"""Copies of a clip as people make them: re-encoded, scaled, mirrored, trimmed, cropped, …"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

KINDS = (
    "re-encoded",
    "scaled",
    "mirrored",
    "trimmed",
    "resampled",
    "all at once",
    "cropped 5 %",
    "cropped 10 %",
    "cropped 15 %",
    "cropped unevenly",
    "letterboxed",
    "all at once, cropped",
)

Frames = Sequence[np.ndarray]


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """All RGB frames of a video and their rate a second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 25)
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)], rate


def write_video(path: Path, frames: Frames, rate: float, quality: int) -> None:
    """Write H.264 of constant quality (a higher number is a worse picture)."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        options = {"crf": str(quality), "preset": "veryfast"}
        exact = Fraction(rate).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=exact, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            image = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def write_copies(path: Path, folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Write a copy of each kind into `folder`; yields its kind and path.

    Trimmed: 5 to 15 % of the length from either end. Resampled: 12.5 to 30 frames a
    second. Scaled: by 0.5 to 1.5. Cropped: this share of each border; unevenly, 0 to 15 %.
    Letterboxed: bars above and below, as 16:9 within 4:3. Quality 26, re-encoded 35, all at
    once 32.
    """
    frames, rate = read_video(path)
    draw = np.random.default_rng(seed)
    begin, end = (round(share * len(frames)) for share in draw.uniform(0.05, 0.15, 2))
    trimmed = frames[begin : len(frames) - end]
    other = float(draw.choice([12.5, 15, 20, 30]))
    factor = float(draw.uniform(0.5, 1.5))
    uneven = draw.uniform(0, 0.15, 4).tolist()
    everything = _resampled(_scaled(_mirrored(trimmed), factor), rate, other)
    versions: list[tuple[Frames, float, int]] = [
        (frames, rate, 35),
        (_scaled(frames, factor), rate, 26),
        (_mirrored(frames), rate, 26),
        (trimmed, rate, 26),
        (_resampled(frames, rate, other), other, 26),
        (everything, other, 32),
        (_cropped(frames, [0.05] * 4), rate, 26),
        (_cropped(frames, [0.1] * 4), rate, 26),
        (_cropped(frames, [0.15] * 4), rate, 26),
        (_cropped(frames, uneven), rate, 26),
        (_letterboxed(frames), rate, 26),
        (_cropped(everything, uneven), other, 32),
    ]
    for number, (kind, version) in enumerate(zip(KINDS, versions, strict=True)):
        target = folder / f"{path.stem}-{number}.mp4"
        write_video(target, *version)
        yield kind, target


def _scaled(frames: Frames, factor: float) -> Frames:
    height, width = (max(2, round(side * factor)) for side in frames[0].shape[:2])
    return [
        cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames
    ]


def _mirrored(frames: Frames) -> Frames:
    return [frame[:, ::-1] for frame in frames]


def _cropped(frames: Frames, shares: Sequence[float]) -> Frames:
    """Frames without shares of their left, upper, right and lower borders."""
    height, width = frames[0].shape[:2]
    left, right = round(shares[0] * width), round((1 - shares[2]) * width)
    top, bottom = round(shares[1] * height), round((1 - shares[3]) * height)
    return [frame[top:bottom, left:right] for frame in frames]


def _letterboxed(frames: Frames) -> Frames:
    bar = len(frames[0]) // 6
    return [np.pad(frame, ((bar, bar), (0, 0), (0, 0))) for frame in frames]


def _resampled(frames: Frames, rate: float, other: float) -> Frames:
    count = int(len(frames) / rate * other)
    return [frames[min(len(frames) - 1, round(i / other * rate))] for i in range(count)]
