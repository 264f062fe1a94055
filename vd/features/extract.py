"""The store brought up to date with a data set: resumable, accounted for, nothing lost."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from vd.atomic import lock
from vd.config import (
    Config,
    ExecutorConfig,
    usable_cores,
)
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.compute import Progress, frame_settings, open_store, write_features
from vd.features.engines import Engine, make_engine
from vd.features.store import FeatureStore
from vd.features.verify import verify_store
from vd.progress import say, track
from vd.tables import write_csv
from vd.videos.manifest import Video
from vd.videos.outcome import Outcome
from vd.videos.pool import DecodePool, decode_pool
from vd.videos.scan import Ledger, OutcomeLog, Sweep
from vd.videos.workers import PROBED_SECONDS, probe_videos

# of all videos those whose lengths, of these those whose decoding is measured: an eighth
_SAMPLE, _TIMED = (32, 256), (4, 12)  # at least, at most
_MOST_UNUSUAL = 20.0  # times as many seconds a byte as the median file


def extract(
    videos: Sequence[Video],
    config: Config,
    verify: bool = False,
    executor: ExecutorConfig = ExecutorConfig(),  # noqa: B008  # immutable
) -> tuple[FeatureStore, Ledger]:
    """Bring the store up to date with `videos`; returns it and the ledger.

    Finished videos are skipped by content hash; with `verify` after their records were
    read against their checksums, and damaged ones are extracted again. Files that `vd
    scan` quarantined are not decoded again. Raises `VdError` when the disk is too small,
    or the store has a writer.
    """
    if executor.executor == "ray":
        from vd.features.cluster import check_address, extract_on_ray

        check_address(executor.ray_address)
    backbone = find_backbone(config.backbone)
    engine = make_engine(backbone, config.backbone.engine)
    store = open_store(config.data.cache_dir, backbone, engine.dim)
    log = OutcomeLog(config.data.cache_dir)
    scanned = {k: o for k, o in log.known.items() if o.outcome == "quarantined"}

    def stored() -> dict[str, Outcome]:
        rows = store.rows.values()
        return scanned | {row.id: row.outcome for row in rows if row.outcome.of_content}

    def lacking() -> list[Video]:
        return sweep.lacking(stored())

    sweep = Sweep(videos, config.decode)
    if verify:
        with lock(store.lock_file, "vd extract"):
            store.recover()
            verify_store(store, videos)
    if lacking():
        with lock(store.lock_file, "vd extract"):
            store.recover()  # another writer may have been quicker
            while todo := lacking():
                frames = frame_settings(backbone)
                with decode_pool(frames, config.decode, len(todo)) as pool:
                    expected = promise(todo, store, backbone, engine, pool)
                    if executor.executor == "local":
                        done = _extract_here(todo, store, backbone, engine, pool)
                        _follow(todo, done, sweep, expected)
                if executor.executor == "ray":
                    done = extract_on_ray(todo, store, config, executor.ray_address)
                    _follow(todo, done, sweep, expected)
    store.write_metadata()  # for any TFDS reader, were it lost too
    ledger = sweep.ledger(stored())
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract_here(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    pool: DecodePool,
) -> Iterator[Progress]:
    """Write the videos' features on this machine."""
    with store.appending(engine.name) as append:
        yield from write_features(
            videos, store.directory, pool, engine, backbone.views, append
        )


def _follow(
    videos: Sequence[Video], done: Iterator[Progress], sweep: Sweep, expected: float
) -> None:
    """Show progress, of every stretch of a long video too; `sweep` takes the outcomes.

    `expected` frames tell how much is left.
    """
    lost, frames = [0, 0], 0
    with track("extracting", len(videos), "videos") as ticker:
        for number, more, outcome in done:
            frames += more
            if outcome is not None:
                video = videos[number]
                lost[video.label] += outcome.outcome == "quarantined"
                sweep.take(video, outcome)
            note = f", {frames / ticker.seconds():.0f} frames/s"
            if any(lost):
                note += (
                    f", quarantined {sum(lost)} ({lost[1]} violent, {lost[0]} "
                    "non-violent)"
                )
            share = frames / expected if expected else None
            ticker.advance(int(outcome is not None), note, share)


def promise(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    pool: DecodePool,
) -> float:
    """Say images, hours and gigabytes before the work; returns the frames to be stored.

    Lengths are estimated from the sizes of the files, by a sample from all over; the speeds
    are measured on the spot. 0 when nothing is known. Raises `VdError` when the disk holds
    less than half of what is needed: an estimate may err, so less is a warning.
    """
    step = _every(len(videos), *_SAMPLE)
    sampled = videos[::step]
    paths = [video.path for video in sampled]
    probes = probe_videos(paths, pool, timed_every=_every(len(paths), *_TIMED))
    sizes = np.array([_size(video.path) for video in videos], np.float64)
    known = [(size, *probe) for size, probe in zip(sizes[::step], probes, strict=True)]
    known = [row for row in known if row[0] and row[1]]
    if not known:
        return 0.0
    bytes_N, seconds_N, costs_N = np.array(known).T
    # a header may say anything, and one must not tell of all
    usual = np.median(seconds_N / bytes_N)
    seconds_N = np.minimum(seconds_N, _MOST_UNUSUAL * usual * bytes_N)
    seconds = sizes.sum() * seconds_N.sum() / bytes_N.sum()
    frames = seconds * frame_settings(backbone).frames_per_second
    images = frames * len(backbone.streams) * len(backbone.views)
    rate = _images_per_second(engine, backbone.size)
    timed_N = ~np.isnan(costs_N)
    decoded = seconds_N[timed_N].clip(max=PROBED_SECONDS).sum()
    decoding = seconds * costs_N[timed_N].sum() / decoded if decoded else 0.0
    hours = (images / rate + decoding / usable_cores()) / 3600
    size = images * engine.dim * np.float16().itemsize
    say(
        f"extracting {len(videos)} videos: about {images:,.0f} images at {rate:.0f} a second "
        f"here, {hours:.2f} h with decoding, {decimal(int(size))} in {store.directory}"
    )
    # the longest video lies beside the store until its outcome is known
    _check_space(store.directory, size * (1 + sizes.max() / sizes.sum()))
    return float(frames)


def _every(count: int, least: int, most: int) -> int:
    """Every so many of `count` are an eighth of them, within the bounds."""
    return -(-count // min(max(count // 8, least), most))


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


def _images_per_second(engine: Engine, side: int) -> float:
    """Speed of the backbone, measured."""
    probe = np.zeros((max(16, engine.batch), side, side, 3), np.uint8)
    engine(probe)
    began = time.perf_counter()
    engine(probe)
    return len(probe) / (time.perf_counter() - began)


def _size(path: Path) -> int:
    """Bytes of a regular file, 0 of anything else."""
    return path.stat().st_size if path.is_file() else 0
