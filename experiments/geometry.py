"""Study: which geometry of a clip is worth its images? Frame rate, T, streams, views.

    python experiments/geometry.py --dataset-path SCFD --cache-dir CACHE
    python experiments/geometry.py --dataset-path HOCKEY --cache-dir CACHE --views 1

A probe, not the model: logistic regression on mean and deviation over a clip's frames.
Features at 16 frames/s are kept in CACHE/geometry, one file a clip.
Cost:     32,000 images for 240 clips of SCFD, 30,000 for 600 of hockey, then 25 fits a row
Measured: docs/results.md, "Geometry of a clip"
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Float16
from probe import Variant, mean_and_deviation, table

from vd.cli import run_command
from vd.config import BackboneConfig, DataConfig, DecodeConfig
from vd.console import track
from vd.data.catalog import identify
from vd.data.decode import FrameSettings
from vd.data.manifest import read_manifest
from vd.data.workers import decode_pool, decode_videos
from vd.errors import VdError
from vd.files import writing

RATE = 16  # stored frames a second
STREAMS = {"both": [0, 1], "motion": [1], "RGB": [0]}


class Geometry(NamedTuple):
    """What a probe sees: up to `frames` from the middle; views are averaged at test."""

    rate: int
    streams: str = "both"
    frames: int = 999
    train_views: int = 1
    test_views: int = 1


def geometries(views: int) -> list[Geometry]:
    """The rows of the table; the first is what the others are compared with."""
    rows = [Geometry(rate, streams) for streams in STREAMS for rate in (8, 4, 16)]
    rows += [Geometry(8, frames=8), Geometry(16, frames=8), Geometry(16, frames=16)]
    mirrored = [Geometry(r, "both", 999, 2, n) for n in (1, 2) for r in (8, 4, 16)]
    return rows + mirrored if views == 2 else rows


def extract(todo: dict[Path, Path], views: int) -> None:
    """Write features (V × F × S × D) and frame rate of each short video to its file."""
    from vd.features.backbone import find_backbone
    from vd.features.engines import make_engine

    engine = make_engine(find_backbone(BackboneConfig()), "auto")
    paths, frames = list(todo), FrameSettings(frames_per_second=RATE)
    with (
        track("extracting", len(todo), "clips") as ticker,
        decode_pool(frames, DecodeConfig(), len(todo)) as pool,
    ):
        for piece in decode_videos(paths, pool):
            path = paths[piece.index]
            if piece.outcome is None or piece.outcome.outcome == "quarantined":
                raise VdError(f"{path} is no whole, short clip; leave it out.")
            plain = piece.images.reshape(-1, *piece.images.shape[2:])
            mirrored = np.ascontiguousarray(plain[:, :, ::-1])
            made = np.stack([engine(x) for x in (plain, mirrored)[:views]])
            features = made.astype(np.float16).reshape(views, -1, 2, engine.dim)
            with writing(todo[path]) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, features=features, fps=piece.outcome.fps)
            ticker.advance()


def pooled(
    features_VxFxSxD: Float16[np.ndarray, "V F S D"], fps: float, row: Geometry
) -> tuple[Float[np.ndarray, "V P"], int]:
    """Mean and deviation over the first frame in each slot of the rate; their number."""
    slot_F = np.arange(features_VxFxSxD.shape[1]) * row.rate / min(RATE, fps)
    kept = np.unique(np.floor(slot_F + 1e-3), return_index=True)[1]
    kept = kept[max(0, len(kept) - row.frames) // 2 :][: row.frames]
    x = features_VxFxSxD[: row.train_views, kept][:, :, STREAMS[row.streams]]
    return mean_and_deviation(x.reshape(*x.shape[:2], -1)), len(kept)


def main(
    dataset_path: Path, cache_dir: Path, seeds: int = 5, views: Literal[1, 2] = 2
) -> int:
    """Extract what is missing, then print a row a geometry; `seeds` draw the folds."""
    if seeds < 1:
        raise VdError(f"--seeds is {seeds}; give a value of 1 or more.")
    manifest = read_manifest(DataConfig(dataset_path))
    videos = identify(manifest.videos, cache_dir)
    files = {v.path: cache_dir / f"geometry/{v.id}-{views}.npz" for v in videos}
    extract({path: f for path, f in files.items() if not f.exists()}, views)
    clips = [(a["features"], float(a["fps"])) for a in map(np.load, files.values())]

    def variants() -> Iterator[Variant]:
        for row in geometries(views):
            x, kept = zip(*(pooled(*clip, row) for clip in clips), strict=True)
            images = float(np.mean(kept)) * len(STREAMS[row.streams])
            name = " ".join(map(str, row))
            yield Variant(name, images, np.stack(x, axis=1), row.test_views)

    table(videos, variants(), seeds)
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
