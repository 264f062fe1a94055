"""What an extraction will take: images, hours and gigabytes, said before the work."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from rich.filesize import decimal

from vd.config import usable_cores
from vd.console import duration, say
from vd.data.workers import PROBED_SECONDS, DecodePool, Probe, probe_videos
from vd.errors import VdError
from vd.features.backbone import Backbone
from vd.features.engines import Engine
from vd.features.store import FeatureStore

# of all videos those whose lengths, of these those whose decoding is measured: an eighth
_SAMPLE, _TIMED = (32, 256), (4, 8)  # about so many at least, at most
# what a header may say: so many times the frames a byte of the median file, between these
_MOST_UNUSUAL, _FRAMES_A_BYTE = 20.0, (0.01, 0.1)


class Sample(NamedTuple):
    """A sample of the files, by their sizes, which the workers look at."""

    size_N: Float64[np.ndarray, " N"]  # bytes of all files
    order_N: Int[np.ndarray, " N"]  # the largest first
    rank_S: Int[np.ndarray, " S"]  # of the sample, in that order
    probes: Callable[[], list[Probe]]


class _Estimate(NamedTuple):
    """What a sample tells of all videos."""

    frames_N: Float64[np.ndarray, " N"]  # to be stored
    decoding: float  # seconds of one core


def images_per_second(engine: Engine, side: int) -> float:
    """Speed of the backbone, measured while nothing decodes."""
    probe = np.zeros((max(16, engine.batch), side, side, 3), np.uint8)
    engine(probe)
    began = time.perf_counter()
    engine(probe)
    return len(probe) / (time.perf_counter() - began)


def draw_sample(paths: Sequence[Path], pool: DecodePool) -> Sample:
    """Have the workers look at files of all sizes; it is not waited for."""
    size_N = np.array([_size(path) for path in paths], np.float64)
    order_N = np.argsort(-size_N, kind="stable")
    rank_S = np.arange(len(paths))[:: _every(len(paths), *_SAMPLE)]
    sampled = [paths[i] for i in order_N[rank_S]]
    probes = probe_videos(sampled, pool, _every(len(sampled), *_TIMED))
    return Sample(size_N, order_N, rank_S, probes)


def promise(
    sample: Sample,
    store: FeatureStore,
    backbone: Backbone,
    rate: float,
    frames_per_second: float,
) -> Float64[np.ndarray, " N"]:
    """Say what the work will take; returns the frames to be stored of each video.

    Lengths and the cost of decoding are estimated from a sample, `rate` is the engine's in
    images/s. Zeros when nothing is known. Raises `VdError` when the disk holds less than
    half of what is needed: an estimate may err, so less is a warning.
    """
    estimate = _estimate(sample, frames_per_second)
    frames_N = estimate.frames_N
    if not frames_N.any():
        return frames_N
    images = frames_N.sum() * len(backbone.streams) * len(backbone.views)
    seconds = images / rate + estimate.decoding / usable_cores()
    size = images * store.dim * np.float16().itemsize
    say(
        f"extracting {len(frames_N)} videos: about {images:,.0f} images at {rate:.0f} a second "
        f"here, {duration(seconds)} with decoding, {decimal(int(size))} in "
        f"{store.directory}"
    )
    # the longest video lies beside the store until its outcome is known
    _check_space(store.directory, size * (1 + frames_N.max() / frames_N.sum()))
    return frames_N


def _estimate(sample: Sample, frames_per_second: float) -> _Estimate:
    """Stored frames and cost of all files by a sample in the order of their sizes.

    A file has as many frames a byte as the next larger one in the sample that says its
    length, so files of another kind, which have other sizes, tell nothing of it. A file of
    the sample that does not open counts nothing.
    """
    size_N, order_N, rank_S, probes = sample
    looked_S = probes()
    sampled_S = order_N[rank_S]
    seconds_S = np.array([probe.header.duration for probe in looked_S])
    rate_S = np.array([probe.header.fps or frames_per_second for probe in looked_S])
    rate_S = rate_S.clip(max=frames_per_second)  # of a slower video all are stored
    opened_S = np.array([not probe.header.reason for probe in looked_S])
    known_S = opened_S & (seconds_S > 0) & (size_N[sampled_S] > 0)
    if not known_S.any():
        return _Estimate(np.zeros(len(size_N)), 0.0)
    ratio_K = (seconds_S * rate_S)[known_S] / size_N[sampled_S[known_S]]
    most = np.clip(_MOST_UNUSUAL * np.median(ratio_K), *_FRAMES_A_BYTE)
    ratio_N = np.empty(len(size_N))
    ratio_N[order_N] = ratio_K.clip(max=most)[
        _next_larger(rank_S[known_S], len(size_N))
    ]
    ratio_N[sampled_S[~opened_S]] = 0
    frames_N = size_N * ratio_N
    cost_S = np.array([probe.cost for probe in looked_S])
    timed_S = known_S & ~np.isnan(cost_S)
    if not timed_S.any():
        return _Estimate(frames_N, 0.0)
    # a frame of a video costs as much as one of the next larger file that was decoded
    timed_frames_S = seconds_S.clip(max=PROBED_SECONDS) * rate_S
    price_T = cost_S[timed_S] / timed_frames_S[timed_S]
    price_N = price_T[_next_larger(rank_S[timed_S], len(size_N))]
    return _Estimate(frames_N, float(frames_N[order_N] @ price_N))


def _next_larger(rank_K: Int[np.ndarray, " K"], count: int) -> Int[np.ndarray, " N"]:
    """For each rank by size, which of the known ones is next above, else the first."""
    return (np.searchsorted(rank_K, np.arange(count), side="right") - 1).clip(min=0)


def _every(count: int, least: int, most: int) -> int:
    """Every so many of `count` are an eighth of them, within the bounds."""
    return max(1, count // min(max(count // 8, least), most))


def _check_space(folder: Path, needed: float) -> None:
    """Raise `VdError` when a disk is far too small, warn when it may be."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    words = f"has {decimal(free)} free and about {decimal(int(needed))} are needed"
    if needed > 2 * free:
        raise VdError(
            f"--cache-dir {folder} {words}; free some space or name another folder."
        )
    if needed > free:
        say(f"warning: --cache-dir {folder} {words}; what fits in whole shards is kept")


def _size(path: Path) -> int:
    """Bytes of a regular file, 0 of anything else."""
    return path.stat().st_size if path.is_file() else 0
