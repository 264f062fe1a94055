"""Videos to features: decoding in other processes, overlapped with the backbone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vd.config import DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.ledger import settled
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.data.streams import stream_settings
from vd.data.workers import Decoded, decode_pool, decode_videos
from vd.errors import VdError
from vd.features.backbone import Backbone
from vd.features.engines import Engine
from vd.features.shards import PART_FRAMES, Extracted, Part, Spool
from vd.features.store import FeatureStore

_FORMAT = 1  # of the records; another number is another fingerprint


def frame_settings(backbone: Backbone) -> FrameSettings:
    """The frames that a backbone wants."""
    return FrameSettings(backbone.size, backbone.size, streams=backbone.streams)


def features_description(backbone: Backbone) -> dict[str, Any]:
    """All that the features of a backbone depend on, in JSON values."""
    frames = frame_settings(backbone)
    return {
        "format": _FORMAT,
        "frames_per_second": frames.frames_per_second,
        "motion_gap_seconds": frames.motion_gap_seconds,
        "part_frames": PART_FRAMES,
        "streams": list(backbone.streams),
        **stream_settings(backbone.streams),
        "views": list(backbone.views),
        "backbone": backbone.description,
    }


def open_store(cache_dir: Path, backbone: Backbone, dim: int) -> FeatureStore:
    """The store of this backbone and this geometry of a clip."""
    description = features_description(backbone)
    return FeatureStore(cache_dir, description, streams=len(backbone.streams), dim=dim)


@dataclass(frozen=True)
class VideoPiece:
    """Features of a stretch of one video; `outcome` is set on the last."""

    index: int
    features_VxFxSxD: Part
    outcome: Outcome | None


class Progress(NamedTuple):
    """A stretch of one video was done; `outcome` is set when it was the last."""

    video: int  # its index
    frames: int  # stored frames that it gave
    outcome: Outcome | None


@dataclass(frozen=True)
class VideoFeatures:
    """One video's features, or why there are none."""

    index: int
    outcome: Outcome
    features_VxFxSxD: Part | None


def video_pieces(
    paths: Sequence[Path],
    decoded: Iterable[Decoded],
    engine: Engine,
    views: Sequence[str],
) -> Iterator[VideoPiece]:
    """Features of each video in the views, in order.

    Workers decode the next stretches while the backbone runs on this one, so neither the
    frames nor the features of a long video are in memory at once.
    """
    for piece in decoded:
        features = _run_views(piece.images, engine, views, paths[piece.index])
        yield VideoPiece(piece.index, features, piece.outcome)


def video_features(
    paths: Sequence[Path],
    backbone: Backbone,
    engine: Engine,
    decode: DecodeConfig,
    views: Sequence[str],
) -> Iterator[VideoFeatures]:
    """The same, a whole video at a time, from a pool of its own."""
    parts: list[Part] = []
    with decode_pool(frame_settings(backbone), decode, len(paths)) as pool:
        decoded = decode_videos(paths, pool)
        for piece in video_pieces(paths, decoded, engine, views):
            parts.append(piece.features_VxFxSxD)
            if piece.outcome is None:
                continue
            used = piece.outcome.outcome != "quarantined"
            features = np.concatenate(parts, axis=1) if used else None
            parts = []
            yield VideoFeatures(piece.index, piece.outcome, features)


def write_features(
    videos: Sequence[Video],
    decoded: Iterable[Decoded],
    spool_folder: Path,
    engine: Engine,
    views: Sequence[str],
    append: Callable[[Extracted], None],
) -> Iterator[Progress]:
    """Hand each video's features to `append`; yields the progress of every stretch.

    A video's outcome comes after it was appended. Not appended are files without content,
    which have no id, those that could not be read, for another copy may be, and those that
    changed since they were hashed.
    """
    paths = [video.path for video in videos]
    spool_folder.mkdir(parents=True, exist_ok=True)
    spool = None
    for piece in video_pieces(paths, decoded, engine, views):
        spool = spool or Spool(spool_folder)
        spool.append(piece.features_VxFxSxD)
        outcome, video = piece.outcome, videos[piece.index]
        if outcome is not None:
            outcome = settled(video, outcome)
            if video.id and outcome.of_content:
                used = outcome.outcome != "quarantined"
                append(Extracted(video.id, outcome, spool.parts() if used else ()))
            spool.close()
            spool = None
        yield Progress(piece.index, piece.features_VxFxSxD.shape[1], outcome)


def _run_views(
    images_FxSxHxWx3: UInt8[np.ndarray, "F S H W 3"],
    engine: Engine,
    views: Sequence[str],
    path: Path,
) -> Part:
    """Features of a file's images in each view: plain, mirrored."""
    frames, streams = images_FxSxHxWx3.shape[:2]
    flat = images_FxSxHxWx3.reshape(frames * streams, *images_FxSxHxWx3.shape[2:])
    made = []
    for view in views:
        images = flat if view == "plain" else np.ascontiguousarray(flat[:, :, ::-1])
        features = engine(images)
        exact = np.abs(features).max(initial=0.0)
        with np.errstate(over="ignore", under="ignore"):  # said below
            greatest = np.float16(exact)
        if np.isnan(greatest):  # as the maximum is with one among the values
            raise VdError(
                f"the backbone gives NaN for an image of {path}; mend the network (a division "
                "by a deviation of 0?), or leave that video out."
            )
        if np.isinf(greatest) or greatest == 0 < exact:
            raise VdError(
                f"the backbone gives values that float16 cannot hold for {path}, {exact:.2g} "
                "at most; scale its output, or check --backbone-mean and --backbone-std."
            )
        stored = features.astype(np.float16)
        made.append(stored.reshape(frames, streams, engine.dim))
    return np.stack(made)
