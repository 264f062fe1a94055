"""Fingerprints of videos: small grey frames by which copies are found, and a picture."""

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from vd.config import DataConfig, DecodeConfig
from vd.data.catalog import Catalog
from vd.data.ledger import DecodingPass, Ledger
from vd.data.manifest import Video

SIDE = 16  # of a small grey frame
_BLACK = 16  # grey level of a bar, at most
_LEAST_INSIDE = 0.25  # of a frame; bars that leave less are darkness
_TABLE = "fingerprints_2"  # another number makes all of them again
_OF_IDS = f"FROM {_TABLE} WHERE sha256 IN (SELECT value FROM json_each(?))"

Small = UInt8[np.ndarray, "F 16 16"]
Inside = tuple[slice, slice]  # rows and columns of the picture, without black bars


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one video in memory, 2 kB a second."""

    small_Fx16x16: Small  # grey, inside of bars, 8 a second
    brightness: float  # mean grey level of the first 30 s, 0 to 255
    letterbox: float  # share of the frame that black bars cover in the first 30 s


def fingerprint_videos(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> tuple[Ledger, dict[str, Fingerprint]]:
    """The ledger, and the fingerprint of every usable video by content hash.

    They are kept in the catalog; only videos without one are decoded.
    """
    catalog = Catalog(data.cache_dir)
    fingerprints = kept_fingerprints(videos, data.cache_dir)
    known = {
        video_id: outcome
        for video_id, outcome in catalog.outcomes().items()
        if outcome.outcome == "quarantined" or video_id in fingerprints
    }
    decoding = DecodingPass(videos, decode)
    stretches: list[tuple[Fingerprint, bytes, Inside]] = []  # of one video
    for video, images, outcome in decoding.stretches(known, catalog, "fingerprints"):
        if len(images):
            inside = stretches[0][2] if stretches else None
            stretches.append(fingerprint(images[:, 0], inside))
        if outcome is None:
            continue
        if video.id in known and outcome.outcome != "quarantined":
            first, picture, _ = stretches[0]
            small = np.concatenate([one.small_Fx16x16 for one, *_ in stretches])
            row = video.id, small.tobytes(), picture, first.brightness, first.letterbox
            catalog.insert(_TABLE, [row])
            fingerprints[video.id] = replace(first, small_Fx16x16=small)
        stretches.clear()
    ledger = decoding.ledger(known)
    usable = sorted({video.id for video in ledger.usable()})
    return ledger, {video_id: fingerprints[video_id] for video_id in usable}


def kept_fingerprints(
    videos: Iterable[Video], cache_dir: Path
) -> dict[str, Fingerprint]:
    """The fingerprints that the catalog has of these videos, by content hash."""
    ids = json.dumps([video.id for video in videos])
    query = f"SELECT sha256, small, brightness, letterbox {_OF_IDS}"
    return {
        video_id: Fingerprint(
            np.frombuffer(small, np.uint8).reshape(-1, SIDE, SIDE), *values
        )
        for video_id, small, *values in Catalog(cache_dir).select(query, ids)
    }


def as_text(small_Fx16x16: Small) -> str:
    """Small grey frames without loss, as a PNG with a row a frame, in base64.

    PNG stores differences to the row above, so that is half their size.
    """
    rows_FxP = small_Fx16x16.reshape(-1, SIDE * SIDE)
    png = cv2.imencode(".png", rows_FxP, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return base64.b64encode(png.tobytes()).decode()


def from_text(text: str) -> Small:
    """The small grey frames of `as_text`."""
    png = np.frombuffer(base64.b64decode(text), np.uint8)
    rows_FxP = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    assert rows_FxP is not None  # a PNG that `as_text` made
    return rows_FxP.reshape(-1, SIDE, SIDE).astype(np.uint8)


def read_pictures(cache_dir: Path, ids: Collection[str]) -> dict[str, bytes]:
    """JPEG of the middle frame of fingerprinted videos (of the first 30 s, if longer)."""
    query = f"SELECT sha256, picture {_OF_IDS}"
    return dict(Catalog(cache_dir).select(query, json.dumps(list(ids))))


def fingerprint(
    images_FxHxWx3: UInt8[np.ndarray, "F H W 3"], inside: Inside | None = None
) -> tuple[Fingerprint, bytes, Inside]:
    """Fingerprint, picture and inside of a video's RGB frames (at least one), 8 a second.

    `inside` is that of the video's earlier frames, if there are any.
    """
    middle = cv2.cvtColor(images_FxHxWx3[len(images_FxHxWx3) // 2], cv2.COLOR_RGB2BGR)
    picture = cv2.imencode(".jpg", middle, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    grey_FxHxW = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images_FxHxWx3]
    mean_HxW = np.mean(grey_FxHxW, axis=0)
    whole = slice(None), slice(None)
    own = _inside(mean_HxW)
    letterbox = 1.0 - mean_HxW[own].size / mean_HxW.size
    inside = inside or (own if letterbox <= 1 - _LEAST_INSIDE else whole)
    small = [
        cv2.resize(grey[inside], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for grey in grey_FxHxW
    ]
    result = Fingerprint(np.array(small, np.uint8), float(mean_HxW.mean()), letterbox)
    return result, picture, inside


def _inside(mean_HxW: np.ndarray) -> Inside:
    """Rows and columns of a mean frame that are not, at the edges, black all along."""
    rows, columns = (np.flatnonzero(mean_HxW.max(axis) > _BLACK) for axis in (1, 0))
    if not rows.size:
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
