"""Decoding on real clips: vd's worker function, OpenCV and torchcodec, one thread each.

    pip install '.[bench]' torchcodec==0.11.1 && python -m benchmarks.decoding --dataset-path DATA

Every frame of a clip is decoded in order; the first of each eighth of a second, and the one
a tenth of a second later, are resized by area to 224 × 224 RGB. `ours` makes the motion
image too. torchcodec needs FFmpeg's shared libraries, and a version whose wheel is for the
CPU and the installed torch. Each line has the frames that each decoder gave.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import tyro

from vd.config import DataConfig
from vd.data.decode import FrameSettings, Sink, decode
from vd.data.manifest import read_manifest

SETTINGS = FrameSettings()


def ours(path: Path) -> int:
    """Frames decoded by vd, what is kept thrown away."""
    return decode(path, SETTINGS, Sink()).frames


def opencv(path: Path) -> int:
    """The same frames by OpenCV's FFmpeg."""
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0

    def frames() -> Iterator[np.ndarray]:
        while (read := reader.read())[0]:
            yield read[1]

    resized = lambda image: cv2.cvtColor(small(image), cv2.COLOR_BGR2RGB)
    return resize_needed(frames(), rate, resized)


def torchcodec(path: Path) -> int:
    """The same frames by torchcodec, as arrays of height × width × 3."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    frames = (frame.numpy() for frame in decoder)
    return resize_needed(frames, decoder.metadata.average_fps, small)


def small(image: np.ndarray) -> np.ndarray:
    """An image of the network's size."""
    size = SETTINGS.width, SETTINGS.height
    resized: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return resized


def resize_needed(
    frames: Iterable[np.ndarray], rate: float, resize: Callable[[np.ndarray], object]
) -> int:
    """Resize the frames that features need; returns the number of all frames."""
    gap = max(1, round(SETTINGS.motion_gap_seconds * rate))
    needed: set[int] = set()
    index, slot = -1, -1
    for index, image in enumerate(frames):
        now = int(index / rate * SETTINGS.frames_per_second + 1e-6)
        if now > slot:
            slot = now
            needed |= {index, index + gap}
        if index in needed:
            resize(image)
    return index + 1


def main(dataset_path: Path, clips: int = 60, repeats: int = 3, seed: int = 0) -> None:
    """A JSON line a peer; medians of interleaved repeats over the same drawn clips."""
    cv2.setNumThreads(1)
    every = read_manifest(DataConfig(dataset_path)).videos
    draw = np.random.default_rng(seed).permutation(len(every))[:clips]
    paths = [every[index].path for index in draw]
    decoders = {"ours": ours, "opencv": opencv, "torchcodec": torchcodec}
    times: dict[str, list[float]] = {name: [] for name in decoders}
    frames = dict.fromkeys(decoders, 0)
    for _ in range(repeats):
        for name, decoder in decoders.items():
            began = time.perf_counter()
            frames[name] = sum(map(decoder, paths))
            times[name].append(time.perf_counter() - began)
    rates = {name: frames[name] / median(times[name]) for name in decoders}
    for name in ("opencv", "torchcodec"):
        line = {
            "benchmark": "decoding",
            "peer": name,
            "unit": "frames/s",
            "ours": round(rates["ours"], 1),
            "theirs": round(rates[name], 1),
            "ratio": round(rates["ours"] / rates[name], 3),
            "frames_ours": frames["ours"],
            "frames_theirs": frames[name],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
