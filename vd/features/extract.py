"""Videos to features: decoding in other processes, overlapped with the backbone.

`extract` brings the store up to date with a data set and can be resumed; `video_stretches`
gives the features of any videos without a store, for prediction.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float64, UInt8
from rich.filesize import decimal

from vd.config import Config, DecodeConfig, ExecutorConfig
from vd.console import duration, say, track
from vd.data.catalog import Catalog
from vd.data.decode import WHOLE
from vd.data.ledger import DecodingPass, Ledger, settled
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.data.workers import (
    Decoded,
    DecodePool,
    decode_pool,
    decode_videos,
    read_headers,
)
from vd.errors import VdError
from vd.features.backbone import Backbone
from vd.features.engines import Engine, make_engine
from vd.features.shards import Part, Spool
from vd.features.store import FeatureStore, open_store
from vd.files import lock, write_csv

_PROBED = 32  # videos of an estimate
_FEWEST_BYTES = 100  # of a second of video; a header that claims less is not believed
_FLOAT16 = np.finfo(np.float16)


class StretchDone(NamedTuple):
    """A stretch of one video was processed; `outcome` is set on the last."""

    video: int  # its index
    frames: int  # stored frames
    outcome: Outcome | None


class Stretch(NamedTuple):
    """A stretch of one video, its plain view as the store reads it."""

    video: int  # its index
    features_FxSD: Float16[np.ndarray, "F SD"]
    seconds_F: Float64[np.ndarray, " F"]  # from the first decoded frame
    after_gap_F: Bool[np.ndarray, " F"]  # whether it is the first one after a gap
    outcome: Outcome | None  # on the last


def extract(
    videos: Sequence[Video],
    config: Config,
    backbone: Backbone,
    executor: ExecutorConfig = ExecutorConfig(),  # noqa: B008  # immutable
    only_stored: bool = False,
) -> tuple[FeatureStore, Ledger]:
    """Bring the store up to date with `videos`; returns it and the ledger.

    Videos with stored features are skipped by content hash; files that `vd scan`
    quarantined are not decoded again. The engine is built only when a video is missing.
    Raises `VdError` when the disk is too small; with `only_stored` when a video has no
    features. Waits for another process that writes into the store.
    """
    dim = backbone.dim or make_engine(backbone, config.backbone.engine).dim
    store = open_store(config.data.cache_dir, backbone, dim)
    known = Catalog(config.data.cache_dir).outcomes()
    scanned = {k: o for k, o in known.items() if o.outcome == "quarantined"}
    decoding = DecodingPass(videos, config.decode)

    def stored() -> dict[str, Outcome]:
        return scanned | {row.id: row.outcome for row in store.rows.values()}

    if only_stored and (missing := decoding.pending(stored())):
        raise VdError(
            f"--cache-dir {config.data.cache_dir} has no features of {len(missing)} of "
            f"{len(videos)} videos, and several processes extract none; run vd extract "
            "with the same --cache-dir first."
        )
    if decoding.pending(stored()):
        with lock(store.directory / ".lock", "an extraction", wait=True):
            store.recover()  # another writer may have added shards
            while missing := decoding.pending(stored()):
                _extract_missing(missing, store, backbone, decoding, config, executor)
    store.write_metadata()  # also when the files were deleted
    ledger = decoding.ledger(stored())
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract_missing(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    decoding: DecodingPass,
    config: Config,
    executor: ExecutorConfig,
) -> None:
    """Print the estimate, extract the videos, record their outcomes in `decoding`."""
    engine = make_engine(backbone, config.backbone.engine)
    with decode_pool(backbone.frames, config.decode, len(videos)) as pool:
        frames = _estimate(videos, pool, store, backbone, engine)
        if executor.executor == "local":
            stretches = extract_videos(
                videos, pool, engine, backbone.views, store.directory, store.add
            )
            try:
                _follow(stretches, videos, decoding, frames)
            finally:
                store.finish()
            return
    from vd.features.cluster import extract_on_ray

    stretches = extract_on_ray(videos, store, config, executor.ray_address)
    _follow(stretches, videos, decoding, frames)


def _estimate(
    videos: Sequence[Video],
    pool: DecodePool,
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
) -> float:
    """Print the work ahead; returns the expected stored frames of a video, 0 if unknown.

    The headers of some videos of all sizes are read, then the engine is timed while nothing
    decodes. Raises `VdError` when less than half of the estimated size is free on the disk.
    """
    by_size = sorted(videos, key=lambda video: -video.size)
    sampled = by_size[:: max(1, len(videos) // _PROBED)]
    headers = read_headers([video.path for video in sampled], pool)
    most = backbone.frames.frames_per_second  # a slower video is stored whole
    frames_S = [
        header.duration * min(header.fps or most, most)
        for video, header in zip(sampled, headers, strict=True)
        if 0 < header.duration * _FEWEST_BYTES <= video.size  # it may claim weeks
    ]
    if not frames_S:
        return 0.0
    frames = float(np.mean(frames_S))
    images = len(videos) * frames * backbone.vectors * len(backbone.views)
    probe = np.zeros((max(16, engine.batch), backbone.size, backbone.size, 3), np.uint8)
    engine(probe)
    began = time.perf_counter()
    engine(probe)
    rate = len(probe) / (time.perf_counter() - began)
    size = int(images * store.dim * np.float16().itemsize)
    free = shutil.disk_usage(store.directory).free
    say(
        f"extracting {len(videos)} videos: about {images:,.0f} images at {rate:.0f} a second "
        f"here, at least {duration(images / rate)}; {decimal(size)} of the {decimal(free)} "
        f"that are free in {store.directory}"
    )
    if size > 2 * free:  # the estimate may err
        raise VdError(
            f"--cache-dir {store.directory} has {decimal(free)} free and about "
            f"{decimal(size)} are needed; free some space or name another folder."
        )
    return frames


def _follow(
    stretches: Iterable[StretchDone],
    videos: Sequence[Video],
    decoding: DecodingPass,
    frames_per_video: float,
) -> None:
    """Show the progress of the stretches; `decoding` takes the videos' outcomes.

    The time left is by frames: a video that has not ended counts as `frames_per_video`, or
    not at all while that is 0, unknown.
    """
    lost, frames, ended = [0, 0], 0, 0
    expected = frames_per_video * len(videos)
    with track("extracting", len(videos), "videos") as ticker:
        for stretch in stretches:
            frames += stretch.frames
            if stretch.outcome is not None:
                ended += 1
                expected = frames + frames_per_video * (len(videos) - ended)
                video = videos[stretch.video]
                lost[video.label] += stretch.outcome.outcome == "quarantined"
                decoding.take(video, stretch.outcome)
            note = f", {frames / ticker.seconds():.0f} frames/s"
            if any(lost):
                note += f", quarantined {sum(lost)} ({lost[1]} violent, {lost[0]} non-violent)"
            share = frames / max(frames, expected) if frames_per_video else None
            ticker.advance(stretch.outcome is not None, note, share)


def extract_videos(
    videos: Sequence[Video],
    pool: DecodePool,
    engine: Engine,
    views: Sequence[str],
    spool_folder: Path,
    add: Callable[[str, Outcome, str, Iterable[Part]], None],
) -> Iterator[StretchDone]:
    """Decode videos, make their features and `add` them to a shard; yields every stretch.

    Outcomes of a path rather than of the content (unreadable, changed since it was hashed)
    are not stored: another copy may be good.
    """
    decoded = decode_videos([video.path for video in videos], pool)
    for index, pieces in groupby(decoded, lambda piece: piece.index):
        video = videos[index]
        with closing(Spool(spool_folder)) as spool:
            for piece in pieces:
                spool.append(_run_views(piece, engine, views, video.path))
                outcome = piece.outcome
                if outcome is not None:
                    outcome = settled(video, outcome)
                    if video.id and outcome.of_content:
                        used = outcome.outcome != "quarantined"
                        parts = spool.parts() if used else ()
                        add(video.id, outcome, engine.name, parts)
                yield StretchDone(index, len(piece.seconds), outcome)


def video_stretches(
    paths: Sequence[Path],
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
    between: tuple[float, float] = WHOLE,
    expect: Callable[[float], None] | None = None,
) -> Iterator[Stretch]:
    """Features of the frames of each video between two times, stretch by stretch, in order.

    A video that stops early gives what it has, whatever its outcome. `expect` is called
    first, with about how many seconds of video there are by the headers.
    """
    size = backbone.vectors * engine.dim
    with decode_pool(backbone.frames, decode, len(paths)) as pool:
        if expect:
            expect(_media_seconds(paths, pool, between))
        for piece in decode_videos(paths, pool, confirm=False, between=between):
            if piece.outcome and piece.index == len(paths) - 1:
                pool.processes.stop()  # its threads take a tenth of a second to end
            part = _run_views(piece, engine, ("plain",), paths[piece.index])
            yield Stretch(
                piece.index, part.features_VxFxSxD.reshape(-1, size), part.seconds_F, piece.after_gap,
                piece.outcome,
            )  # fmt: skip


def _media_seconds(
    paths: Sequence[Path], pool: DecodePool, between: tuple[float, float]
) -> float:
    """Length of all videos between two times, by the headers of some of them."""
    sampled = paths[:: max(1, len(paths) // _PROBED)]
    seconds = 0.0
    for path, header in zip(sampled, read_headers(sampled, pool), strict=True):
        claimed = header.duration
        if claimed and claimed * _FEWEST_BYTES <= path.stat().st_size:
            seconds += max(0.0, min(claimed, between[1]) - between[0])
    return seconds * len(paths) / len(sampled)


def _run_views(
    piece: Decoded, engine: Engine, views: Sequence[str], path: Path
) -> Part:
    """Features of a stretch's images in each view, plain or mirrored.

    Raises `VdError` when the values do not fit into float16.
    """
    features_V = []
    for view in views:
        images = piece.images
        if view != "plain":
            images = np.ascontiguousarray(images[:, :, :, ::-1])
        features_V.append(frame_features(images, engine, str(path)))
    return Part(np.stack(features_V), piece.seconds)


def frame_features(
    images_FxSxHxWx3: UInt8[np.ndarray, "F S H W 3"], engine: Engine, source: str
) -> Float16[np.ndarray, "F K D"]:
    """Features of frames as they are stored and scored: K vectors a frame.

    They are those of each network in order, and of a network those of each of its streams.
    Raises `VdError`, with the source, when the values do not fit into float16.
    """
    frames, _, *shape = images_FxSxHxWx3.shape
    parts = []
    for network, places in enumerate(engine.reads):
        images_NxHxWx3 = images_FxSxHxWx3[:, places].reshape(
            frames * len(places), *shape
        )
        features_NxD = engine(images_NxHxWx3, network)
        parts.append(features_NxD.reshape(frames, len(places), engine.dim))
    features_FxKxD = np.concatenate(parts, axis=1)
    largest = np.abs(features_FxKxD).max(initial=0.0)
    if largest and not _FLOAT16.smallest_subnormal <= largest <= _FLOAT16.max:
        raise VdError(
            f"the backbone gives values of up to {largest:.2g} for {source}, which float16 "
            "cannot hold; scale its output, check --backbone-mean and --backbone-std, or "
            "leave that video out."
        )
    return features_FxKxD.astype(np.float16)
