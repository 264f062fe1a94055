"""The store brought up to date with a data set: resumable, accounted for, nothing lost."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from rich.filesize import decimal

from vd.atomic import lock
from vd.config import (
    Config,
    DecodeConfig,
    ExecutorConfig,
    decode_workers,
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
from vd.videos.scan import Ledger, OutcomeLog, Sweep
from vd.videos.workers import PROBED_SECONDS, probe_videos

_SAMPLE = 32  # videos that tell of all
_PROBE_SECONDS = 5.0  # a hanging one must not hold up the start


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
                promise(todo, store, backbone, engine, config.decode)
                if executor.executor == "ray":
                    from vd.features.cluster import extract_on_ray

                    done = extract_on_ray(todo, store, config, executor.ray_address)
                else:
                    done = _extract_here(todo, store, backbone, engine, config.decode)
                _follow(todo, done, sweep)
    store.write_metadata()  # for any TFDS reader, were it lost too
    ledger = sweep.ledger(stored())
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract_here(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
) -> Iterator[Progress]:
    """Write the videos' features on this machine."""
    with store.appending(engine.name) as append:
        yield from write_features(
            videos, store.directory, backbone, engine, decode, append
        )


def _follow(videos: Sequence[Video], done: Iterator[Progress], sweep: Sweep) -> None:
    """Show progress, of every stretch of a long video too; `sweep` takes the outcomes."""
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
            ticker.advance(int(outcome is not None), note)


def promise(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
) -> None:
    """Say images, hours and gigabytes before the work; stop when the disk is too small.

    Lengths are estimated from the sizes of the files, by a sample of them; the speeds are
    measured on the spot. A disk that the estimate fills, but its 95 % lower bound does not,
    is a warning.
    """
    step = -(-len(videos) // _SAMPLE)
    sample = [video.path for video in videos[::step]]
    probes = probe_videos(
        sample,
        frame_settings(backbone),
        workers=decode_workers(decode),
        deadline_seconds=min(decode.decode_timeout_seconds, _PROBE_SECONDS),
    )
    sizes = np.array([_size(video.path) for video in videos], np.float64)
    known = [(size, *probe) for size, probe in zip(sizes[::step], probes, strict=True)]
    known = [row for row in known if row[0] and row[1]]
    if not known:
        return
    bytes_N, seconds_N, costs_N = np.array(known).T
    seconds, error = ratio_estimate(bytes_N, seconds_N, sizes.sum())
    frames = seconds * frame_settings(backbone).frames_per_second
    images = frames * len(backbone.streams) * len(backbone.views)
    rate = _images_per_second(engine, backbone.size)
    decoding = seconds * costs_N.sum() / seconds_N.clip(max=PROBED_SECONDS).sum()
    hours = (images / rate + decoding / usable_cores()) / 3600
    size = images * engine.dim * np.float16().itemsize
    spool = size * sizes.max() / sizes.sum()  # of the longest, beside the store
    say(
        f"extracting {len(videos)} videos: about {images:,.0f} images at {rate:.0f} a second "
        f"here, {hours:.2f} h with decoding, {decimal(int(size))} in {store.directory}"
    )
    store.directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.directory).free
    words = f"has {decimal(free)} free but the features need about {decimal(int(size))}"
    if (size + spool) * max(0.0, 1 - 1.96 * error / seconds) > free:
        raise VdError(
            f"--cache-dir {store.directory} {words}; free some space or name another folder."
        )
    if size + spool > free:
        say(f"warning: --cache-dir {store.directory} {words}; what fits is kept")


def ratio_estimate(
    known_N: Float64[np.ndarray, " N"],
    values_N: Float64[np.ndarray, " N"],
    total: float,
) -> tuple[float, float]:
    """A total of values from that of a quantity known of all; and its standard error.

    The ratio estimator (Cochran, "Sampling Techniques", 1977, eq. 6.1 and 6.13, without the
    correction for a finite population).
    """
    ratio = values_N.sum() / known_N.sum()
    count = len(known_N)
    if count == 1:
        return ratio * total, ratio * total
    spread = np.sum((values_N - ratio * known_N) ** 2) / (count - 1)
    return ratio * total, total * float(np.sqrt(spread / count)) / known_N.mean()


def _images_per_second(engine: Engine, side: int) -> float:
    """Speed of the backbone, measured."""
    probe = np.zeros((16, side, side, 3), np.uint8)
    engine(probe)
    began = time.perf_counter()
    engine(probe)
    return len(probe) / (time.perf_counter() - began)


def _size(path: Path) -> int:
    """Bytes of a regular file, 0 of anything else."""
    return path.stat().st_size if path.is_file() else 0
