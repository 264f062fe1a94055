"""Brightness of videos, kept by content hash so that a file is opened once."""

from collections.abc import Sequence

from vd.config import DataConfig, DecodeConfig
from vd.console import track
from vd.data.decode import FrameSettings
from vd.data.hashes import identify
from vd.data.manifest import Video
from vd.data.workers import decode_pool, probe_brightnesses
from vd.files import append_csv, recover_csv


def brightness(
    videos: Sequence[Video], data: DataConfig, decode: DecodeConfig
) -> list[float | None] | None:
    """Mean grey (0 to 255) of each video's first frame, None where it has none.

    None in place of all when a file whose brightness is not kept in CACHE/brightness.csv is
    missing or is another.
    """
    path = data.cache_dir / "brightness.csv"
    known = {row["id"]: row["brightness"] for row in recover_csv(path)}
    lacking = list({v.id: v for v in videos if v.id not in known}.values())
    if lacking:
        now = identify(lacking, data.cache_dir / "hashes.csv")
        if any(a.id != b.id for a, b in zip(lacking, now, strict=True)):
            return None
        rows = []
        paths = [video.path for video in lacking]
        with (
            track("brightness", len(lacking), "videos") as ticker,
            decode_pool(FrameSettings(), decode, len(lacking)) as pool,
        ):
            found = probe_brightnesses(paths, pool)
            for video, value in zip(lacking, found, strict=True):
                rows.append(
                    {"id": video.id, "brightness": "" if value is None else repr(value)}
                )
                ticker.advance()
        append_csv(path, rows)
        known |= {row["id"]: row["brightness"] for row in rows}
    return [float(known[v.id]) if known[v.id] else None for v in videos]
