"""Times of the study `front.py`: files to features at each point in turns."""

import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vd.config import Config, DataConfig, DecodeConfig, usable_cores
from vd.data.catalog import identify
from vd.data.manifest import Video, read_manifest
from vd.data.workers import decode_pool, decode_videos
from vd.features.backbone import Backbone
from vd.features.engines import make_engine
from vd.features.extract import extract

STAGES = "extraction", "decoding", "backbone"


def measure_speed(
    lines: Path,
    points: Mapping[str, Backbone],
    dataset: str,
    dataset_path: Path,
    clips: int,
    repeats: int,
    seed: int,
) -> None:
    """Add a line with the seconds of each stage at each point, all points in turns."""
    every = read_manifest(DataConfig(dataset_path)).videos
    drawn = np.random.default_rng(seed).permutation(len(every))[:clips]
    seconds: dict[str, dict[str, list[float]]] = {
        name: {stage: [] for stage in STAGES} for name in points
    }
    with tempfile.TemporaryDirectory() as scratch:
        videos = identify([every[i] for i in drawn], Path(scratch))
        for _ in range(repeats):
            for name, backbone in points.items():
                for stage, taken in stage_seconds(backbone, videos).items():
                    seconds[name][stage].append(round(taken, 3))
    line = {
        "dataset": dataset, "seconds": seconds, "timed_clips": len(videos),
        "cores": usable_cores(), "processor": processor(),
    }  # fmt: skip
    with lines.open("a") as handle:
        handle.write(json.dumps(line) + "\n")


def stage_seconds(backbone: Backbone, videos: Sequence[Video]) -> dict[str, float]:
    """Extraction into an empty cache; decoding alone; then the network on those images."""
    began = time.perf_counter()
    extract_anew(videos, backbone)
    extraction = time.perf_counter() - began
    engine = make_engine(backbone, "auto")
    began = time.perf_counter()
    images = list(decoded([video.path for video in videos], backbone))
    decoding = time.perf_counter() - began
    began = time.perf_counter()
    for piece in images:
        for _ in backbone.views:  # mirroring costs nothing beside the network
            engine(piece)
    network = time.perf_counter() - began
    return dict(zip(STAGES, (extraction, decoding, network), strict=True))


def extract_anew(videos: Sequence[Video], backbone: Backbone) -> None:
    """Extract into an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        extract(videos, Config(DataConfig(Path(), Path(cache))), backbone)


def decoded(
    paths: Sequence[Path], backbone: Backbone
) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
    """The images of each stretch, from the decoding workers alone."""
    with decode_pool(backbone.frames, DecodeConfig(), len(paths)) as pool:
        for piece in decode_videos(paths, pool):
            yield piece.images.reshape(-1, *piece.images.shape[2:])


def processor() -> str:
    """The processor's class, and whether it has the instructions of the 8-bit network."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = text.partition("model name")[2].partition("\n")[0].strip(" \t:")
    except OSError:  # not on Linux
        return platform.machine()
    return f"{name or platform.machine()}, {'' if 'vnni' in text else 'no '}VNNI"
