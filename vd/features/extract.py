"""The store brought up to date with a data set: resumable, accounted for, nothing lost."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from vd.config import Config, ExecutorConfig
from vd.console import track
from vd.data.ledger import Ledger, OutcomeLog, Sweep
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.data.pool import decode_pool
from vd.data.workers import decode_videos
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.cluster import check_address, extract_on_ray
from vd.features.compute import Progress, frame_settings, open_store, write_features
from vd.features.engines import Engine, make_engine
from vd.features.estimate import draw_sample, images_per_second, promise
from vd.features.store import FeatureStore
from vd.features.verify import verify_store
from vd.files import lock, write_csv


def extract(
    videos: Sequence[Video],
    config: Config,
    verify: bool = False,
    executor: ExecutorConfig = ExecutorConfig(),  # noqa: B008  # immutable
    only_stored: bool = False,
) -> tuple[FeatureStore, Ledger]:
    """Bring the store up to date with `videos`; returns it and the ledger.

    Finished videos are skipped by content hash; with `verify` after their records were
    read against their checksums, and damaged ones are extracted again. Files that `vd
    scan` quarantined are not decoded again. Raises `VdError` when the disk is too small,
    or the store has a writer; with `only_stored` when a video has no features.
    """
    if executor.executor == "ray":
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
    if only_stored and (missing := lacking()):
        raise VdError(
            f"--cache-dir {config.data.cache_dir} has no features of {len(missing)} of "
            f"{len(videos)} videos, and several processes extract none; run vd extract "
            "with the same --cache-dir first."
        )
    if verify:
        with lock(store.lock_file, "vd extract"):
            store.recover()
            verify_store(store, videos)
    if lacking():
        with lock(store.lock_file, "vd extract"):
            store.recover()  # another writer may have been quicker
            while todo := lacking():
                _extract_lacking(todo, store, backbone, engine, sweep, config, executor)
    store.write_metadata()  # for any TFDS reader, were it lost too
    ledger = sweep.ledger(stored())
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract_lacking(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    sweep: Sweep,
    config: Config,
    executor: ExecutorConfig,
) -> None:
    """Say what the work will take, and do it; `sweep` takes the outcomes."""
    settings = frame_settings(backbone)
    paths = [video.path for video in videos]
    rate = images_per_second(engine, backbone.size)
    here = executor.executor == "local"
    with decode_pool(settings, config.decode, len(paths)) as pool:
        sample = draw_sample(paths, pool)
        decoded = decode_videos(paths, pool) if here else None  # behind the sample
        expected = promise(sample, store, backbone, rate, settings.frames_per_second)
        if decoded is not None:
            with store.appending(engine.name) as append:
                done = write_features(
                    videos, decoded, store.directory, engine, backbone.views, append
                )
                _follow(videos, done, sweep, expected)
            return
    done = extract_on_ray(videos, store, config, executor.ray_address)
    _follow(videos, done, sweep, expected)


def _follow(
    videos: Sequence[Video],
    done: Iterator[Progress],
    sweep: Sweep,
    expected_N: Float64[np.ndarray, " N"],
) -> None:
    """Show progress, of every stretch of a long video too; `sweep` takes the outcomes.

    `expected_N` frames of each video tell how much is left, until they are known.
    """
    lost, frames, left_N = [0, 0], 0, expected_N.copy()
    known = bool(expected_N.any())
    with track("extracting", len(videos), "videos") as ticker:
        for number, more, outcome in done:
            frames += more
            left_N[number] = max(0.0, left_N[number] - more)
            if outcome is not None:
                left_N[number] = 0
                video = videos[number]
                lost[video.label] += outcome.outcome == "quarantined"
                sweep.take(video, outcome)
            note = f", {frames / ticker.seconds():.0f} frames/s"
            if any(lost):
                note += (
                    f", quarantined {sum(lost)} ({lost[1]} violent, {lost[0]} "
                    "non-violent)"
                )
            share = frames / (frames + left_N.sum()) if known and frames else None
            ticker.advance(int(outcome is not None), note, share)
