"""Fingerprints of videos: small grey frames by which copies are found, and a picture."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from vd.config import DataConfig, DecodeConfig
from vd.console import track
from vd.data.catalog import Catalog
from vd.data.decode import FrameSettings
from vd.data.ledger import DecodingPass, Ledger, settled
from vd.data.manifest import Video
from vd.data.workers import decode_pool, decode_videos

SIDE = 16  # of a small grey frame
_BLACK = 16  # grey level of a bar, at most
_OF_IDS = "FROM fingerprints WHERE sha256 IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one video in memory, 2 kB a second."""

    small_Fx16x16: UInt8[np.ndarray, "F 16 16"]  # grey, 8 frames a second
    brightness: float  # mean grey level, 0 to 255
    letterbox: float  # share of the frame that black bars cover


def fingerprint_videos(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> tuple[Ledger, dict[str, Fingerprint]]:
    """The ledger, and the fingerprint of every usable video by content hash.

    They are kept in the catalog; only videos without one are decoded.
    """
    catalog = Catalog(data.cache_dir)
    ids = json.dumps([video.id for video in videos])
    rows = catalog.select(f"SELECT sha256, small, brightness, letterbox {_OF_IDS}", ids)
    fingerprints = {
        video_id: Fingerprint(
            np.frombuffer(small, np.uint8).reshape(-1, SIDE, SIDE), *values
        )
        for video_id, small, *values in rows
    }
    known = {
        video_id: outcome
        for video_id, outcome in catalog.outcomes().items()
        if outcome.outcome == "quarantined" or video_id in fingerprints
    }
    decoding = DecodingPass(videos, decode)
    while pending := decoding.pending(known):
        paths = [video.path for video in pending]
        parts: list[tuple[Fingerprint, bytes]] = []  # of a video's stretches
        with (
            track("fingerprints", len(pending), "videos") as ticker,
            decode_pool(FrameSettings(), decode, len(pending)) as pool,
        ):
            for piece in decode_videos(paths, pool):
                if len(piece.images):
                    parts.append(fingerprint(piece.images[:, 0]))
                if piece.outcome is None:
                    continue
                video = pending[piece.index]
                outcome = settled(video, piece.outcome)
                if decoding.take(video, outcome):
                    if outcome.outcome != "quarantined":
                        fingerprints[video.id] = _keep(catalog, video.id, parts)
                    catalog.add_outcomes({video.id: outcome})
                    known[video.id] = outcome
                parts.clear()
                ticker.advance()
    ledger = decoding.ledger(known)
    usable = sorted({video.id for video in ledger.usable()})
    return ledger, {video_id: fingerprints[video_id] for video_id in usable}


def read_pictures(cache_dir: Path, ids: Collection[str]) -> dict[str, bytes]:
    """JPEG of the middle frame of fingerprinted videos (of the first 30 s, if longer)."""
    query = f"SELECT sha256, picture {_OF_IDS}"
    return dict(Catalog(cache_dir).select(query, json.dumps(list(ids))))


def fingerprint(
    images_FxHxWx3: UInt8[np.ndarray, "F H W 3"],
) -> tuple[Fingerprint, bytes]:
    """Fingerprint and picture of a video's RGB frames (at least one), 8 a second."""
    middle = cv2.cvtColor(images_FxHxWx3[len(images_FxHxWx3) // 2], cv2.COLOR_RGB2BGR)
    picture = cv2.imencode(".jpg", middle, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    grey_FxHxW = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images_FxHxWx3]
    small = [
        cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for grey in grey_FxHxW
    ]
    mean_HxW = np.mean(grey_FxHxW, axis=0)
    result = Fingerprint(
        np.array(small, np.uint8), float(mean_HxW.mean()), _letterbox(mean_HxW)
    )
    return result, picture


def _letterbox(mean_HxW: np.ndarray) -> float:
    """The share of a mean frame outside of the rectangle that is not black."""
    rows, columns = (np.flatnonzero(mean_HxW.mean(axis) > _BLACK) for axis in (1, 0))
    if not rows.size or not columns.size:
        return 1.0
    inner = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return float(1 - inner / mean_HxW.size)


def _keep(
    catalog: Catalog, video_id: str, parts: Sequence[tuple[Fingerprint, bytes]]
) -> Fingerprint:
    """Join the fingerprints of a video's stretches and keep them with the first picture."""
    stretches = [stretch for stretch, _ in parts]
    counts = [len(stretch.small_Fx16x16) for stretch in stretches]
    small_Fx16x16 = np.concatenate([stretch.small_Fx16x16 for stretch in stretches])
    brightness = float(np.average([s.brightness for s in stretches], weights=counts))
    letterbox = float(np.average([s.letterbox for s in stretches], weights=counts))
    row = video_id, small_Fx16x16.tobytes(), parts[0][1], brightness, letterbox
    catalog.insert("fingerprints", [row])
    return Fingerprint(small_Fx16x16, brightness, letterbox)
