"""Cameras in one process: lag, share of image pairs dropped, and how many drop nothing.

    python -m benchmarks.streams --folder SCRATCH

Rendered H.264 of 640 × 360 at 25 frames a second, in real time: each camera is a reader of
`vd.predict.watch` whose packets come when they are due. Measured are the detector in the box
and a small run of each preset, trained here. `ours` of `1 camera`, `4 cameras` and so on is the
share of image pairs that were not dropped, of 1; `lag` is in seconds from a frame's arrival to
its score, the median and the longest over cameras and seconds, after `--settle-seconds`.

`bound` is the number of cameras that all cores could serve if there were no more to do than to
decode a camera, make its images (both timed on one core) and run the backbone (timed on all).
`ours` is the largest number, by bisection, that drops nothing: of which no camera dropped a
pair or was two seconds late, which is half of what may wait.
"""

import json
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Self

import av
import numpy as np
import tyro
from jaxtyping import UInt8

from benchmarks.predict import RATE, RENDERED_SECONDS, render
from benchmarks.scratch import scratch
from experiments.rendering.clips import render_dataset
from vd.config import (
    PRETRAINED,
    BackboneConfig,
    Config,
    DataConfig,
    LiveConfig,
    PresetName,
    RunConfig,
    TrainingConfig,
    usable_cores,
)
from vd.data.decode import Sink, decode
from vd.experiment import run
from vd.features.extract import frame_features
from vd.predict.predictor import Predictor, load
from vd.predict.watch import watch

LATE_SECONDS = 2.0
# as a camera codes: no B-frames, a key frame every two seconds
CAMERA_CODING = {"bf": "0", "g": str(2 * RATE)}
CLIPS = {"train": 8, "val": 4, "test": 4}


def main(
    folder: Path,
    presets: tuple[PresetName, ...] = ("fast", "default", "best"),
    cameras: tuple[int, ...] = (1, 4, 16),
    seconds: float = 30.0,
    settle_seconds: float = 10.0,
    most_cameras: int = 64,
) -> None:
    """JSON lines of each detector; what is written into `folder` is removed at the end."""
    with scratch(folder):
        folder.mkdir(parents=True)
        video = render(folder / "video.mp4", CAMERA_CODING)
        runs: dict[str, Path] = {"in the box": PRETRAINED}
        runs |= {preset: train(folder, preset) for preset in presets}
        for name, run_dir in runs.items():
            site = Site(load(run_dir), video, seconds, settle_seconds)
            for line in lines(site, cameras, most_cameras):
                print(json.dumps(line | {"detector": name}), flush=True)


def train(folder: Path, preset: PresetName) -> Path:
    """A run of a preset; what it has learned changes no time."""
    data = render_dataset(folder / "set", clips=CLIPS, seed=0)
    config = Config(
        data=DataConfig(data, folder / f"cache-{preset}"),
        backbone=BackboneConfig(preset),
        training=TrainingConfig(epochs=1, batch_size=8, warmup_epochs=0),
        run=RunConfig(folder / f"run-{preset}"),
    )
    run(config)
    return config.run.checkpoint_dir


class Camera:
    """An open container whose packets come in real time, again and again."""

    def __init__(self, video: Path) -> None:
        self._container = av.open(str(video))
        self.duration = None  # a stream has none

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, stream: Any) -> Iterator[Any]:
        """Packets, each when it is due."""
        began, base = time.monotonic(), 0
        length = round(RENDERED_SECONDS / Fraction(stream.time_base))
        while True:
            self._container.seek(0)
            for packet in self._container.demux(stream):
                if not packet.size:  # the end of the file
                    break
                packet.pts, packet.dts = packet.pts + base, packet.dts + base
                due = began + float(packet.dts * stream.time_base)
                time.sleep(max(0.0, due - time.monotonic()))
                yield packet
            base += length


class Watched(NamedTuple):
    """What came of some cameras together."""

    share_seen: float  # of image pairs
    median_lag: float
    longest_lag: float


class Site:
    """A detector and as many cameras as are wanted."""

    def __init__(
        self, predictor: Predictor, video: Path, seconds: float, settle_seconds: float
    ) -> None:
        self._predictor, self._video = predictor, video
        self._seconds, self._settle = seconds, settle_seconds
        self.watch = cache(self._watch)

    def _watch(self, cameras: int) -> Watched:
        """Watch so many cameras; what comes while they settle is left out."""
        began, lags = time.monotonic(), list[float]()
        first, last = dict[str, Any](), dict[str, Any]()
        for record in watch(
            [str(number) for number in range(cameras)],
            self._predictor,
            LiveConfig(reconnect_attempts=0),
            self._settle + self._seconds,
            opener=lambda *_: Camera(self._video),
            status_seconds=1.0,
        ):
            is_settled = time.monotonic() - began >= self._settle
            if record["type"] != "status" or not is_settled:
                continue
            source = record["source"]
            if source in first:
                lags.append(record["lag"])
            last[source] = record
            first.setdefault(source, record)
        dropped, frames = (
            sum(last[source][key] - first[source][key] for source in last)
            for key in ("dropped", "frames")
        )
        measured = {name for name in first if last[name] is not first[name]}
        if len(measured) < cameras or not frames + dropped:
            raise SystemExit(
                f"--seconds {self._seconds:g}: one of {cameras} cameras gave fewer than two "
                "statuses after --settle-seconds, or no image pair came between; watch for "
                "longer."
            )
        return Watched(frames / (frames + dropped), median(lags), max(lags))

    def largest(self, counts: Sequence[int], most: int) -> int:
        """The largest number of cameras that drop nothing, of which `counts` are measured."""
        good = max((n for n in counts if self._is_whole(n)), default=0)
        bad = min((n for n in counts if not self._is_whole(n)), default=most + 1)
        while bad - good > 1:
            half = min(2 * good, most) if bad > most and good else (good + bad) // 2
            if self._is_whole(half):
                good = half
            else:
                bad = half
        return good

    def _is_whole(self, cameras: int) -> bool:
        seen = self.watch(cameras)
        return seen.share_seen == 1.0 and seen.longest_lag < LATE_SECONDS

    def bound(self) -> float:
        """Cameras that could be served if decoding and the backbone were all."""
        pairs, began = _Pairs(), time.thread_time()
        decode(self._video, self._predictor.frames, pairs)
        one_core = time.thread_time() - began
        engine = self._predictor._engine
        images = np.stack(pairs.images)
        frame_features(images, engine, "the rendered camera")  # warm
        began = time.perf_counter()
        frame_features(images, engine, "the rendered camera")
        all_cores = time.perf_counter() - began
        return RENDERED_SECONDS / (all_cores + one_core / usable_cores())


class _Pairs(Sink):
    """Keeps the image pairs of a video."""

    def __init__(self) -> None:
        self.images = list[UInt8[np.ndarray, "S H W 3"]]()

    def keep(
        self, images: UInt8[np.ndarray, "S H W 3"] | None, seconds: float, frames: int
    ) -> None:
        """Keep a pair."""
        assert images is not None
        self.images.append(images)


def lines(site: Site, counts: Sequence[int], most: int) -> Iterator[dict[str, Any]]:
    """The JSON lines of one detector."""
    for cameras in counts:
        seen = site.watch(cameras)
        yield {
            "benchmark": "streams",
            "peer": f"{cameras} camera{'s' * (cameras > 1)}",
            "unit": "share of pairs seen",
            "ours": round(seen.share_seen, 4),
            "theirs": 1.0,
            "ratio": round(seen.share_seen, 4),
            "share_dropped": round(1 - seen.share_seen, 4),
            "median_lag": round(seen.median_lag, 3),
            "longest_lag": round(seen.longest_lag, 3),
        }
    largest, bound = site.largest(counts, most), site.bound()
    yield {
        "benchmark": "streams",
        "peer": "bound",
        "unit": "cameras",
        "ours": largest,
        "theirs": round(bound, 1),
        "ratio": round(largest / bound, 3),
    }


if __name__ == "__main__":
    tyro.cli(main)
