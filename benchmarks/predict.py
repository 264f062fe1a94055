"""Times real time at which a recording is predicted, beside what its two halves allow.

    python -m benchmarks.predict --folder SCRATCH
    python -m benchmarks.predict --folder SCRATCH --memory-minutes 60

A rendered recording of 640 × 360 at 25 frames a second; the detector in the box, or `--run`.
`ours` is `vd predict` without the imports: the start of the decoding process, decoding,
backbone, windows and events. The peers:

- bound: 1 / (1 / backbone + 1 / decoding), each alone on all cores, in turn with ours. The
  sum, as both work on the same cores at the same time and one waits for the other nowhere;
  at most a core's share of decoding, as one recording is decoded by one process
- window_by_window: the same frames, windows, backbone and head, but the features of a window
  are computed for each window again, as MMAction2's demo/long_video_demo.py does, whose
  queue keeps frames. It predicts the first `--peer-seconds`, to the same probabilities

Each line has `idle`, the share of the cores' time in which ours computed nothing.

With `--memory-minutes`, of 5 or more, a line says how much memory all processes hold while so
long a recording is predicted: `theirs` at a tenth of it, `ours` at its end, `tenths` at each
tenth.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import numpy as np
import tyro
from jaxtyping import Float64

from benchmarks.extraction import used_seconds
from benchmarks.long_video import memory
from benchmarks.scratch import scratch
from experiments.rendering.figures import draw_frames, random_poses
from vd.config import PRETRAINED, DecodeConfig, usable_cores
from vd.data.workers import decode_pool, decode_videos
from vd.features.extract import frame_features
from vd.features.sampling import SlidingWindows, Window
from vd.predict.predictor import Predictor, load
from vd.predict.recording import Prediction

RATE, WIDTH, HEIGHT = 25, 640, 360
RENDERED_SECONDS, PROBE_SECONDS = 10, 60
LEAST_MEMORY_MINUTES = 5


def main(
    folder: Path,
    run: Path = PRETRAINED,
    minutes: float = 20.0,
    peer_seconds: float = 30.0,
    repeats: int = 3,
    memory_minutes: float = 0.0,
) -> None:
    """A JSON line a peer; what is written into `folder` is removed at the end."""
    if 0 < memory_minutes < LEAST_MEMORY_MINUTES:
        raise SystemExit(
            f"--memory-minutes {memory_minutes:g} is too short for tenths, as progress "
            f"comes every few seconds; give {LEAST_MEMORY_MINUTES} or more."
        )
    with scratch(folder):
        folder.mkdir(parents=True, exist_ok=True)
        short = render(folder / "short.mp4")
        predictor = load(run)
        if memory_minutes:
            path = repeat(short, folder / "long.mp4", 60 * memory_minutes)
            print(json.dumps(memory_line(predictor, path, memory_minutes)))
            return
        recording = repeat(short, folder / "recording.mp4", 60 * minutes)
        probe = repeat(short, folder / "probe.mp4", PROBE_SECONDS)
        for line in speed_lines(
            predictor, recording, probe, 60 * minutes, peer_seconds, repeats
        ):
            print(json.dumps(line), flush=True)


def render(path: Path, options: dict[str, str] | None = None) -> Path:
    """Two drawn figures, coded as most video is, by x264's defaults, or with its options."""
    rng = np.random.default_rng(0)
    phase_F = np.arange(RENDERED_SECONDS * RATE) / RATE
    images = draw_frames(rng, WIDTH, HEIGHT, random_poses(rng, phase_F))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE, options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image_HxWx3 in images:
            frame = av.VideoFrame.from_ndarray(image_HxWx3, "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat(source: Path, target: Path, seconds: float) -> Path:
    """The packets of a recording again and again, for so long."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        base = Fraction(stream.time_base or 0)
        packets = [packet for packet in old.demux(stream) if packet.size]
        known = [
            (bytes(p), p.pts or 0, p.dts or 0, p.duration, p.is_keyframe)
            for p in packets
        ]
        length = round(RENDERED_SECONDS / base)
        for number in range(max(1, round(seconds / RENDERED_SECONDS))):
            for content, pts, dts, duration, is_keyframe in known:
                packet = av.Packet(content)
                packet.stream, packet.time_base = copy, base
                packet.pts, packet.dts = pts + number * length, dts + number * length
                packet.duration, packet.is_keyframe = duration, is_keyframe
                new.mux(packet)
    return target


class Tenths:
    """Notes how much memory is held as each tenth of a recording is reached, and the most."""

    def __init__(self, seconds: float) -> None:
        self.held: list[float] = []  # MB
        self.most = 0.0
        self._seconds = seconds

    def expect(self, seconds: float) -> None:
        """Nothing: the length is known."""

    def reach(self, file: int, seconds: float) -> None:
        """So many seconds are done."""
        now = memory(os.getpid()) / 1e6
        self.most = max(self.most, now)
        if seconds >= (len(self.held) + 1) * self._seconds / 10 - 1:
            self.held.append(now)


def memory_line(predictor: Predictor, path: Path, minutes: float) -> dict[str, object]:
    """What all processes hold while a recording is predicted."""
    tenths = Tenths(60 * minutes)
    began = time.perf_counter()
    prediction = one(predictor.predict(path, progress=tenths))
    return {
        "benchmark": "predict",
        "peer": "memory at a tenth",
        "unit": "MB",
        "ours": round(tenths.held[-1]),
        "theirs": round(tenths.held[0]),
        "ratio": round(tenths.held[0] / tenths.held[-1], 3),
        "tenths": [round(held) for held in tenths.held],
        "most": round(tenths.most),
        "media_seconds": round(prediction.duration),
        "seconds": round(time.perf_counter() - began),
    }


def speed_lines(
    predictor: Predictor,
    recording: Path,
    probe: Path,
    seconds: float,
    peer_seconds: float,
    repeats: int,
) -> Iterator[dict[str, object]]:
    """Medians of interleaved repeats, in seconds of media a second."""
    ours = one(predictor.predict(recording, between=(0.0, peer_seconds))).timeline
    theirs = window_by_window(predictor, recording, peer_seconds)
    np.testing.assert_array_equal(ours.probability_W, theirs)  # the same work
    with halves_alone(predictor, probe) as halves:
        media = {"ours": seconds, "peer": peer_seconds}
        media |= {"backbone": PROBE_SECONDS, "decoding": PROBE_SECONDS * usable_cores()}
        runs: dict[str, Callable[[], object]] = {
            "ours": lambda: one(predictor.predict(recording)),
            "peer": lambda: window_by_window(predictor, recording, peer_seconds),
            **halves,
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        idle = []
        for _ in range(repeats):
            for name, function in runs.items():
                before, began = used_seconds(), time.perf_counter()
                function()
                times[name].append(time.perf_counter() - began)
                if name == "ours":
                    used = used_seconds() - before
                    idle.append(1 - used / (times[name][-1] * usable_cores()))
    rates = {name: media[name] / median(taken) for name, taken in times.items()}
    both = 1 / (1 / rates["backbone"] + 1 / rates["decoding"])
    rates["bound"] = min(both, rates["decoding"] / usable_cores())
    for name, key in (("bound", "bound"), ("window_by_window", "peer")):
        yield {
            "benchmark": "predict",
            "peer": name,
            "unit": "times real time",
            "ours": round(rates["ours"], 2),
            "theirs": round(rates[key], 2),
            "ratio": round(rates["ours"] / rates[key], 3),
            "backbone": round(rates["backbone"], 2),
            "decoding": round(rates["decoding"], 2),
            "idle": round(median(idle), 3),
            "cores": usable_cores(),
            "media_seconds": round(seconds),
        }


def one(predictions: Iterator[Prediction]) -> Prediction:
    """The prediction of the only file."""
    (prediction,) = predictions
    return prediction


@contextmanager
def halves_alone(
    predictor: Predictor, probe: Path
) -> Iterator[dict[str, Callable[[], object]]]:
    """Each half of prediction alone on all cores; its processes have started before."""
    copies = [probe] * usable_cores()
    with decode_pool(predictor.frames, DecodeConfig(), len(copies)) as pool:
        pieces = [p for p in decode_videos(copies, pool) if p.index == 0]
        engine, images = predictor._engine, [piece.images for piece in pieces]
        yield {
            "backbone": lambda: [frame_features(x, engine, "") for x in images],
            "decoding": lambda: sum(1 for _ in decode_videos(copies, pool)),
        }


def window_by_window(
    predictor: Predictor, recording: Path, seconds: float
) -> Float64[np.ndarray, " W"]:
    """Probability of each window of the first part, its features computed for it alone."""
    rules, length = predictor.plan.rules, predictor.plan.window_seconds
    clip_frames = predictor._restored.config.model.clip_frames
    sliding = SlidingWindows(length, rules.stride_seconds, clip_frames)
    queue: deque[np.ndarray] = deque(maxlen=clip_frames)
    features = list[np.ndarray]()

    def compute(windows: list[Window]) -> None:
        for window in windows:
            images_FxSxHxWx3 = np.stack([*queue][-window.frames :])
            features_FxKxD = frame_features(
                images_FxSxHxWx3, predictor._engine, str(recording)
            )
            features.append(features_FxKxD.reshape(window.frames, -1))

    with decode_pool(predictor.frames, DecodeConfig(), 1) as pool:
        between = 0.0, seconds
        for piece in decode_videos([recording], pool, between=between):
            for images, at in zip(piece.images, piece.seconds.tolist(), strict=True):
                compute(sliding.push(at))
                queue.append(images)
        compute(sliding.finish())
    return predictor._probabilities(features)  # in full batches, as ours


if __name__ == "__main__":
    tyro.cli(main)
