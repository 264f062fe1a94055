"""The store brought up to date with a data set: resumable, accounted for, nothing lost."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from vd.atomic import lock
from vd.config import Config, DecodeConfig, ExecutorConfig, decode_workers
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.compute import frame_settings, open_store, write_features
from vd.features.engines import Engine, make_engine
from vd.features.store import FeatureStore
from vd.features.verify import verify_store
from vd.progress import Ticker, say, track
from vd.tables import write_csv
from vd.videos.manifest import Video
from vd.videos.outcome import Outcome
from vd.videos.scan import Ledger, OutcomeLog, Sweep
from vd.videos.workers import probe_durations


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
                store.write_metadata()
    ledger = sweep.ledger(stored())
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract_here(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
) -> Iterator[tuple[int, Outcome]]:
    """Write the videos' features on this machine; yields each index and outcome."""
    with store.appending(engine.name) as append:
        yield from write_features(
            videos, store.directory, backbone, engine, decode, append
        )


def _follow(
    videos: Sequence[Video], done: Iterator[tuple[int, Outcome]], sweep: Sweep
) -> None:
    """Show progress; `sweep` takes the outcomes."""
    lost, frames = [0, 0], 0
    with track("extracting", len(videos), "videos") as ticker:
        for index, outcome in done:
            video = videos[index]
            lost[video.label] += outcome.outcome == "quarantined"
            frames += outcome.frames
            sweep.take(video, outcome)
            _advance(ticker, frames, lost)


def promise(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
) -> None:
    """Say images, hours and gigabytes before the work; stop when the disk is too small.

    Lengths are estimated from the sizes of the files, by the first that open; the speed
    is measured on the spot.
    """

    sample = [video.path for video in videos[:32]]
    durations = probe_durations(
        sample,
        workers=decode_workers(decode),
        deadline_seconds=decode.decode_timeout_seconds,
    )
    pairs = zip(map(_size, sample), durations, strict=True)
    known = [(size, seconds) for size, seconds in pairs if size and seconds]
    if not known:
        return
    bytes_per_second = sum(size for size, _ in known) / sum(
        seconds for _, seconds in known
    )
    total = sum(_size(v.path) for v in videos) / bytes_per_second
    frames = int(total * frame_settings(backbone).frames_per_second)
    images = frames * len(backbone.streams) * len(backbone.views)
    probe = np.zeros((16, backbone.size, backbone.size, 3), np.uint8)
    engine(probe)
    began = time.perf_counter()
    engine(probe)
    rate = len(probe) / (time.perf_counter() - began)
    size = images * engine.dim * np.float16().itemsize
    say(
        f"extracting {len(videos)} videos: about {images:,} images at {rate:.0f} a second here, "
        f"{images / rate / 3600:.2f} h, {decimal(size)} in {store.directory}"
    )
    store.directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.directory).free
    if size > free:
        raise VdError(
            f"--cache-dir {store.directory} has {decimal(free)} free but the features "
            f"need about {decimal(size)}; free some space or name another folder."
        )


def _size(path: Path) -> int:
    """Bytes of a regular file, 0 of anything else."""
    return path.stat().st_size if path.is_file() else 0


def _advance(ticker: Ticker, frames: int, lost: Sequence[int]) -> None:
    """Show progress with the rate of decoded frames and the files lost so far, per class."""
    rate = frames * ticker.rate() / (ticker.done + 1)
    note = f", {rate:.0f} frames/s"
    if any(lost):
        note += f", quarantined {sum(lost)} ({lost[1]} violent, {lost[0]} non-violent)"
    ticker.advance(note=note)
