"""Fingerprints of videos: small grey frames by which copies are found, and a picture."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from vd.config import DataConfig, DecodeConfig
from vd.console import track
from vd.data.decode import FrameSettings
from vd.data.ledger import Ledger, OutcomeLog, Sweep, settled
from vd.data.manifest import Video
from vd.data.outcome import Outcome
from vd.data.workers import decode_pool, decode_videos
from vd.errors import VdError

SIDE = 16  # of a small grey frame
_TABLE = "fingerprints_2"  # another number is another form
_COLUMNS = (
    "id TEXT PRIMARY KEY, small BLOB, picture BLOB, brightness REAL, letterbox REAL, "
    "small_sha256 BLOB, picture_sha256 BLOB"
)
_BLACK = 16  # grey level of a bar, at most


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one video in memory, 2 kB a second."""

    small_Fx16x16: UInt8[np.ndarray, "F 16 16"]  # grey, 8 frames a second
    brightness: float  # mean grey level, 0 to 255
    letterbox: float  # share of the frame that black bars cover


_Made = tuple[Fingerprint, bytes]  # with the picture


def fingerprint_videos(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> tuple[Ledger, dict[str, Fingerprint]]:
    """The ledger, and the fingerprint of every usable video by content hash.

    They are kept in CACHE/fingerprints.sqlite; only videos without one are decoded.
    Raises `VdError` when that file cannot be read or written.
    """
    log = OutcomeLog(data.cache_dir)
    sweep = Sweep(videos, decode)
    with _database(data.cache_dir) as database:
        present = {row[0] for row in database.execute(f"SELECT id FROM {_TABLE}")}
        known = {
            video_id: outcome
            for video_id, outcome in log.known.items()
            if outcome.outcome == "quarantined" or video_id in present
        }
        while todo := sweep.lacking(known):
            with track("fingerprints", len(todo), "videos") as ticker:
                for video, outcome, made in _decode(todo, decode):
                    if sweep.take(video, outcome):
                        if made is not None:  # first, so that no outcome lacks its own
                            _add(database, video.id, *made)
                        log.add({video.id: outcome})
                        known[video.id] = outcome
                    ticker.advance()
        ledger = sweep.ledger(known)
        usable = {video.id for video in ledger.usable()}
        rows = database.execute(
            f"SELECT id, small, brightness, letterbox, small_sha256 FROM {_TABLE}"
        )
        found = {row[0]: _fingerprint(*row[1:]) for row in rows if row[0] in usable}
    return ledger, {video_id: found[video_id] for video_id in sorted(usable)}


def read_pictures(cache_dir: Path, ids: Collection[str]) -> dict[str, bytes]:
    """JPEG of the middle frame of fingerprinted videos (of the first 30 s, if longer)."""
    with _database(cache_dir) as database:
        return {video_id: _picture(database, video_id) for video_id in set(ids)}


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
    made = Fingerprint(
        np.array(small, np.uint8), float(mean_HxW.mean()), _letterbox(mean_HxW)
    )
    return made, picture


def _letterbox(mean_HxW: np.ndarray) -> float:
    """The share of a mean frame outside of the rectangle that is not black."""
    rows, columns = (np.flatnonzero(mean_HxW.mean(axis) > _BLACK) for axis in (1, 0))
    if not rows.size or not columns.size:
        return 1.0
    inner = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return float(1 - inner / mean_HxW.size)


def _decode(
    videos: Sequence[Video], decode: DecodeConfig
) -> Iterator[tuple[Video, Outcome, _Made | None]]:
    """Outcome and fingerprint of each video; only one stretch's frames are in memory."""
    paths = [video.path for video in videos]
    parts: list[_Made] = []
    with decode_pool(FrameSettings(), decode, len(videos)) as pool:
        for piece in decode_videos(paths, pool):
            if len(piece.images):
                parts.append(fingerprint(piece.images[:, 0]))
            if piece.outcome is None:
                continue
            video = videos[piece.index]
            outcome = settled(video, piece.outcome)
            made = _joined(parts) if outcome.outcome != "quarantined" else None
            parts = []
            yield video, outcome, made


def _joined(stretches: Sequence[_Made]) -> _Made:
    """One fingerprint from those of a video's stretches, and the first one's picture."""
    parts = [part for part, _ in stretches]
    counts = [len(part.small_Fx16x16) for part in parts]
    made = Fingerprint(
        np.concatenate([part.small_Fx16x16 for part in parts]),
        float(np.average([part.brightness for part in parts], weights=counts)),
        float(np.average([part.letterbox for part in parts], weights=counts)),
    )
    return made, stretches[0][1]


def _add(
    database: sqlite3.Connection, video_id: str, made: Fingerprint, picture: bytes
) -> None:
    """Keep a fingerprint durably."""
    small = made.small_Fx16x16.tobytes()
    row = (
        video_id, small, picture, made.brightness, made.letterbox, _sha256(small),
        _sha256(picture),
    )  # fmt: skip
    with database:
        database.execute(
            f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _fingerprint(
    small: bytes, brightness: float, letterbox: float, digest: bytes
) -> Fingerprint:
    """The fingerprint in a row; raises `ValueError` when it is damaged."""
    if _sha256(small) != digest:
        raise ValueError("a fingerprint is damaged")
    frames = np.frombuffer(small, np.uint8).reshape(-1, SIDE, SIDE)
    return Fingerprint(frames, brightness, letterbox)


def _picture(database: sqlite3.Connection, video_id: str) -> bytes:
    """A video's picture; raises `ValueError` when it is damaged."""
    picture, digest = database.execute(
        f"SELECT picture, picture_sha256 FROM {_TABLE} WHERE id = ?", (video_id,)
    ).fetchone()
    if _sha256(picture) != digest:
        raise ValueError("a picture is damaged")
    return bytes(picture)


@contextlib.contextmanager
def _database(cache_dir: Path) -> Iterator[sqlite3.Connection]:
    """The open database; a full disk and a damaged file are one sentence."""
    path = cache_dir / "fingerprints.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = sqlite3.connect(path, timeout=60)
        with contextlib.closing(database):
            database.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} ({_COLUMNS})")
            yield database
    except (sqlite3.Error, ValueError) as error:
        raise VdError(
            f"{path} cannot be used ({error}); free some space, or delete it: the same "
            "command makes it again."
        ) from error
