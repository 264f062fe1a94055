"""Videos a second from files to features: vd's pipeline, its two halves, and a DataLoader.

    pip install '.[bench]' && python -m benchmarks.extraction --dataset-path DATA

`ours` is `vd extract` into an empty cache, without the imports: RGB and motion in the plain
view, through the float32 network. The peers:

- backbone_only: the engine on the same images, decoded beforehand
- decode_only: the decoding workers alone, images handed over and thrown away; `ours` is
  the pipeline with a network that costs nothing, so that decoding is the slower half
- both_bound: what two stages on the same cores can reach at most, 1 / (1 / b + 1 / d)
- torch_dataloader: what one would write instead: a DataLoader of as many workers as
  cores, OpenCV, the same frames and views, the same network in torch channels-last; on
  a GPU, where there is one, in bfloat16; left out where torch is not installed
- fast, box: theirs is the default preset (RGB, motion and square of 224 pixels), here `ours`
  is `--feature-preset fast`, and the networks of the detector in the box
- default_torch: here `ours` is the default preset, theirs torch on two of its three streams

Lines whose `ours` is that run of `vd extract` have `idle`, the share of the cores' time in
which it computed nothing.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import tyro

from benchmarks.backbone import batched, torch_peer
from experiments.front_speed import decoded, extract_anew
from vd.config import (
    PRETRAINED,
    BackboneConfig,
    DataConfig,
    usable_cores,
)
from vd.console import say
from vd.data.catalog import identify
from vd.data.decode import FrameSettings
from vd.data.manifest import Video, read_manifest
from vd.features.backbone import Backbone, find_backbone
from vd.features.efficientnet import FEATURES
from vd.features.engines import Engine, make_engine

DEFAULT, FAST = BackboneConfig(), BackboneConfig("fast")
BOX = BackboneConfig(backbone=str(PRETRAINED / "backbone.npz"))
BATCH, GPU_BATCH = 8, 64  # of the torch network: its best (benchmarks/backbone.py)


class Clips:
    """A torch data set of one clip's RGB and motion images, by OpenCV."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Images, N × 224 × 224 × 3: the first frame of each eighth and its motion."""
        settings = FrameSettings()
        size = settings.width, settings.height
        reader = cv2.VideoCapture(str(self.paths[index]))
        rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
        gap = max(1, round(settings.motion_gap_seconds * rate))
        frames = []
        while (read := reader.read())[0]:
            small = cv2.resize(read[1], size, interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
        slots = np.floor(np.arange(len(frames)) / rate * settings.frames_per_second)
        images = []
        for first in np.unique(slots, return_index=True)[1]:
            if first + gap < len(frames):
                earlier, later = frames[first], frames[first + gap].astype(np.int16)
                images.append(earlier)
                images.append(np.clip(127 + later - earlier, 0, 255).astype(np.uint8))
        return np.stack(images)


def torch_dataloader(paths: Sequence[Path], on_gpu: bool) -> Callable[[], None]:
    """The peer; its network is made once, its workers each time, as ours are."""
    from torch.utils.data import DataLoader

    if on_gpu:
        network = batched(torch_peer(True, "cuda", "bfloat16"), GPU_BATCH)
    else:
        network = batched(torch_peer(channels_last=True), BATCH)

    def run() -> None:
        clips: Any = Clips(paths)  # what a DataLoader takes by its methods
        loader: Any = DataLoader(
            clips, batch_size=None, num_workers=usable_cores(),
            multiprocessing_context="spawn" if on_gpu else "fork",
        )  # fmt: skip
        for images in loader:
            network(np.asarray(images))

    return run


def main(dataset_path: Path, clips: int = 60, repeats: int = 3, seed: int = 0) -> None:
    """A JSON line a peer; medians of interleaved repeats over the same drawn clips."""
    every = read_manifest(DataConfig(dataset_path)).videos
    draw = np.random.default_rng(seed).permutation(len(every))[:clips]
    default, fast, box = map(find_backbone, (DEFAULT, FAST, BOX))
    backbone = replace(default, reads=(("rgb", "motion"),))
    engine = make_engine(backbone, "auto")
    with tempfile.TemporaryDirectory() as scratch:
        videos = identify([every[i] for i in draw], Path(scratch))
        paths = [video.path for video in videos]
        runs = {
            "ours": lambda: extract_anew(videos, backbone),
            "preset_fast": lambda: extract_anew(videos, fast),
            "preset_default": lambda: extract_anew(videos, default),
            "detector": lambda: extract_anew(videos, box),
            "free": lambda: run_free(videos, backbone),
            "backbone_only": backbone_only(paths, backbone, engine),
            "decode_only": lambda: decode_only(paths, backbone),
        }
        if find_spec("torch"):
            runs["torch_dataloader"] = torch_dataloader(paths, engine.name == "jax")
        else:
            say("note: torch is not installed, so its peer is left out")
        times: dict[str, list[float]] = {name: [] for name in runs}
        idle = []
        for _ in range(repeats):
            for name, run in runs.items():
                before, began = used_seconds(), time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
                if name == "ours":
                    used = used_seconds() - before
                    idle.append(1 - used / (times[name][-1] * usable_cores()))
    rates = {name: len(videos) / median(taken) for name, taken in times.items()}
    rates["both_bound"] = 1 / (1 / rates["backbone_only"] + 1 / rates["decode_only"])
    names = "preset_fast", "preset_default", "detector", "free", "ours"
    fast_rate, default_rate, box_rate, free, ours = (rates.pop(n) for n in names)
    pairs = [
        (name, free if name == "decode_only" else ours, rate)
        for name, rate in rates.items()
    ]
    pairs += [("fast", fast_rate, default_rate), ("box", box_rate, default_rate)]
    if "torch_dataloader" in rates:
        pairs.append(("default_torch", default_rate, rates["torch_dataloader"]))
    for name, mine, theirs in pairs:
        line = {
            "benchmark": "extraction",
            "peer": name,
            "unit": "videos/s",
            "ours": round(mine, 3),
            "theirs": round(theirs, 3),
            "ratio": round(mine / theirs, 3),
        }
        if mine is ours:
            line["idle"] = round(median(idle), 3)
        print(json.dumps(line), flush=True)


def run_free(videos: Sequence[Video], backbone: Backbone) -> None:
    """The same with the network at no cost."""
    with patch(
        "vd.features.extract.make_engine", lambda backbone, *_: FreeEngine(backbone)
    ):
        extract_anew(videos, backbone)


class FreeEngine:
    """An engine that costs nothing, as wide as the backbone."""

    name, batch, dim = "free", 1, FEATURES

    def __init__(self, backbone: Backbone) -> None:
        self.reads = backbone.places

    def __call__(self, images_NxHxWx3: np.ndarray, network: int = 0) -> np.ndarray:
        """No features."""
        return np.zeros((len(images_NxHxWx3), self.dim), np.float32)


def backbone_only(
    paths: Sequence[Path], backbone: Backbone, engine: Engine
) -> Callable[[], None]:
    """The engine on images that were decoded beforehand."""
    images = list(decoded(paths, backbone))

    def run() -> None:
        for piece in images:
            engine(piece)

    return run


def decode_only(paths: Sequence[Path], backbone: Backbone) -> None:
    """The workers alone."""
    for _ in decoded(paths, backbone):
        pass


def used_seconds() -> float:
    """Processor time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    tyro.cli(main)
