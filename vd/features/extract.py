"""Videos to features: decoding overlapped with the backbone, resumable, nothing lost."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.filesize import decimal

from vd.atomic import lock
from vd.config import Config, DecodeConfig, decode_workers
from vd.errors import VdError
from vd.features.backbone import Backbone, find_backbone
from vd.features.engines import Engine, make_engine
from vd.features.shards import PART_FRAMES, Extracted, Part, Spool
from vd.features.store import FeatureStore
from vd.progress import Ticker, say, track
from vd.tables import write_csv
from vd.videos.frames import FrameSettings
from vd.videos.manifest import Video
from vd.videos.motion import ENERGY, FINE, LEAST
from vd.videos.outcome import Outcome
from vd.videos.scan import Ledger, OutcomeLog, is_known, ledger_of
from vd.videos.workers import decode_videos, probe_durations

_FORMAT = 1  # of the records; another number is another fingerprint


@dataclass(frozen=True)
class VideoPiece:
    """Features of a stretch of one video; `outcome` is set on the last."""

    index: int
    features_VxFxSxD: Part
    outcome: Outcome | None


@dataclass(frozen=True)
class VideoFeatures:
    """One video's features, or why there are none."""

    index: int
    outcome: Outcome
    features_VxFxSxD: Part | None


def frame_settings(backbone: Backbone) -> FrameSettings:
    """The frames that a backbone wants."""
    return FrameSettings(backbone.size, backbone.size, streams=backbone.streams)


def features_description(backbone: Backbone) -> dict[str, Any]:
    """All that the features of a backbone depend on, in JSON values."""
    frames = frame_settings(backbone)
    square = {"fine": FINE, "energy": ENERGY, "least": LEAST}
    return {
        "format": _FORMAT,
        "frames_per_second": frames.frames_per_second,
        "motion_gap_seconds": frames.motion_gap_seconds,
        "part_frames": PART_FRAMES,
        "streams": list(backbone.streams),
        **({"square": square} if "square" in backbone.streams else {}),
        "views": list(backbone.views),
        "backbone": backbone.description,
    }


def open_store(cache_dir: Path, backbone: Backbone, dim: int) -> FeatureStore:
    """The store of this backbone and this geometry of a clip."""
    description = features_description(backbone)
    return FeatureStore(cache_dir, description, streams=len(backbone.streams), dim=dim)


def video_pieces(
    paths: Sequence[Path],
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
    views: Sequence[str] | None = None,
) -> Iterator[VideoPiece]:
    """Features of each video in the backbone's views, or in `views`, in order.

    Workers decode the next stretches while the backbone runs on this one, so neither the
    frames nor the features of a long video are in memory at once.
    """
    pieces = decode_videos(
        paths,
        frame_settings(backbone),
        workers=decode_workers(decode),
        deadline_seconds=decode.decode_timeout_seconds,
    )
    for piece in pieces:
        features = _run_views(piece.images, engine, views or backbone.views)
        yield VideoPiece(piece.index, features, piece.outcome)


def video_features(
    paths: Sequence[Path],
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
    views: Sequence[str] | None = None,
) -> Iterator[VideoFeatures]:
    """The same, a whole video at a time."""
    parts: list[Part] = []
    for piece in video_pieces(paths, backbone, engine, decode, views):
        parts.append(piece.features_VxFxSxD)
        if piece.outcome is None:
            continue
        used = piece.outcome.outcome != "quarantined"
        features = np.concatenate(parts, axis=1) if used else None
        parts = []
        yield VideoFeatures(piece.index, piece.outcome, features)


def extract(
    videos: Sequence[Video], config: Config, verify: bool = False
) -> tuple[FeatureStore, Ledger]:
    """Bring the store up to date with `videos`; returns it and the ledger.

    Finished videos are skipped by content hash; with `verify` after their records were
    read against their checksums, and damaged ones are extracted again. Files that `vd
    scan` quarantined are not decoded again. Raises `VdError` when the disk is too small, or the store has a writer.
    """
    backbone = find_backbone(config.backbone)
    engine = make_engine(backbone, config.backbone.engine)
    store = open_store(config.data.cache_dir, backbone, engine.dim)
    log = OutcomeLog(config.data.cache_dir)
    scanned = {k: o for k, o in log.known.items() if o.outcome == "quarantined"}

    def stored() -> dict[str, Outcome]:
        return scanned | {row.id: row.outcome for row in store.rows.values()}

    def lacking() -> list[Video]:
        known = stored()
        todo = (v for v in videos if not is_known(v, known, config.decode))
        return list({video.id or video.name: video for video in todo}.values())

    unreadable: dict[Path, Outcome] = {}
    if verify:
        with lock(store.lock_file, "vd extract"):
            store.recover()
            _verify(store, videos)
    if lacking():
        with lock(store.lock_file, "vd extract"):
            store.recover()  # another writer may have been quicker
            if todo := lacking():
                unreadable = _extract(todo, store, backbone, engine, config)
    ledger = ledger_of(videos, stored(), unreadable)
    write_csv(config.data.cache_dir / "ledger.csv", ledger.rows())
    return store, ledger


def _extract(
    videos: Sequence[Video],
    store: FeatureStore,
    backbone: Backbone,
    engine: Engine,
    config: Config,
) -> dict[Path, Outcome]:
    """Write the videos' features; returns the outcomes of files without content."""
    promise(videos, store, backbone, engine, config.decode)
    unreadable: dict[Path, Outcome] = {}
    lost, frames = [0, 0], 0
    with (
        track("extracting", len(videos), "videos") as ticker,
        store.appending(engine.name) as append,
    ):
        for index, outcome in write_features(
            videos, store.directory, backbone, engine, config.decode, append
        ):
            video = videos[index]
            lost[video.label] += outcome.outcome == "quarantined"
            frames += outcome.frames
            if not video.id:
                unreadable[video.path] = outcome
            _advance(ticker, frames, lost)
    store.write_metadata()
    return unreadable


def write_features(
    videos: Sequence[Video],
    spool_folder: Path,
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
    append: Callable[[Extracted], None],
) -> Iterator[tuple[int, Outcome]]:
    """Hand each video's features to `append`; yields its index and outcome after that.

    Files without content, which have no id, are not appended.
    """
    paths = [video.path for video in videos]
    spool = None
    for piece in video_pieces(paths, backbone, engine, decode):
        spool = spool or Spool(spool_folder)
        spool.append(piece.features_VxFxSxD)
        if piece.outcome is None:
            continue
        used = piece.outcome.outcome != "quarantined"
        if video_id := videos[piece.index].id:
            parts = spool.parts() if used else ()
            append(Extracted(video_id, piece.outcome, parts))
        spool.close()
        spool = None
        yield piece.index, piece.outcome


def _verify(store: FeatureStore, videos: Sequence[Video]) -> None:
    """Check the store, and say what was found and done."""
    count = len(store.rows)
    damaged = set(store.verify())
    store.write_metadata()
    if not damaged:
        say(f"verified: the records of {count} videos are as they were written")
        return
    names = [video.name for video in videos if video.id in damaged]
    told = f" ({names[0]!r} for one)" if names else ""
    say(
        f"verified: of {count} videos {len(damaged)} have damaged records{told}: they were "
        "removed, and those of this data set are extracted again"
    )


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
        f"extracting {len(videos)} videos: about {images:,} images at {rate:.0f} a second, "
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


def _run_views(
    images_FxSxHxWx3: UInt8[np.ndarray, "F S H W 3"],
    engine: Engine,
    views: Sequence[str],
) -> Part:
    """Features of the images in each view: plain, mirrored."""
    frames, streams = images_FxSxHxWx3.shape[:2]
    flat = images_FxSxHxWx3.reshape(frames * streams, *images_FxSxHxWx3.shape[2:])
    made = []
    for view in views:
        images = flat if view == "plain" else np.ascontiguousarray(flat[:, :, ::-1])
        features = engine(images).astype(np.float16)
        if not np.isfinite(features).all():
            raise VdError(
                "the backbone gives values that float16 cannot hold; scale its output, or "
                "check --backbone-mean and --backbone-std."
            )
        made.append(features.reshape(frames, streams, engine.dim))
    return np.stack(made)


def _advance(ticker: Ticker, frames: int, lost: Sequence[int]) -> None:
    """Show progress with the rate of decoded frames and the files lost so far, per class."""
    rate = frames * ticker.rate() / (ticker.done + 1)
    note = f", {rate:.0f} frames/s"
    if any(lost):
        note += f", quarantined {sum(lost)} ({lost[1]} violent, {lost[0]} non-violent)"
    ticker.advance(note=note)
