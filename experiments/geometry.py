"""Study: which geometry of a clip is worth its images? Frame rate, T, streams, views.

    python experiments/geometry.py --dataset-path SCFD/manifest.csv --cache-dir CACHE
    python experiments/geometry.py --dataset-path HOCKEY/manifest.csv --cache-dir CACHE \
        --views 1

A probe, not the model: logistic regression on mean and deviation over a clip's frames.
Features at 16 frames/s are kept in CACHE/geometry, one file a clip.
Cost:     32,000 images for 240 clips of SCFD, 30,000 for 600 of hockey, then 25 fits a row
Measured: docs/results.md, "Geometry of a clip"
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Float16, Int

from vd.atomic import writing
from vd.config import BackboneConfig, DataConfig, usable_cores
from vd.errors import VdError
from vd.progress import say, track
from vd.videos.decode import FrameSettings
from vd.videos.manifest import identify, read_manifest
from vd.videos.splits import folds
from vd.videos.workers import decode_videos

RATE = 16  # stored frames a second
STREAMS = {"RGB": [0], "motion": [1], "both": [0, 1]}
FOLDS = 5
C = 0.01  # inverse L2 penalty of the probe, chosen before the first run


class Geometry(NamedTuple):
    """What a probe sees: up to `frames` from the middle; views are averaged at test."""

    rate: int
    streams: str = "both"
    frames: int = 999
    train_views: int = 1
    test_views: int = 1


def geometries(views: int) -> list[Geometry]:
    """The rows of the table; the first is what the others are compared with."""
    rows = [Geometry(r, s) for s in ("both", "motion", "RGB") for r in (8, 4, 16)]
    rows += [Geometry(r, "both", frames) for r, frames in ((8, 8), (16, 8), (16, 16))]
    pairs = ((2, 1), (2, 2)) if views == 2 else ()
    return rows + [Geometry(r, "both", 999, *pair) for pair in pairs for r in (8, 4, 16)]


def extract(todo: Sequence[tuple[Path, Path]], views: int) -> None:
    """Write features (V × F × S × D) and frame rate of each short video to its file."""
    from vd.features.engines import find_backbone, make_engine

    backbone = find_backbone(BackboneConfig())
    engine = make_engine(backbone, "auto")
    frames = FrameSettings(backbone.size, backbone.size, RATE)
    paths = [path for path, _ in todo]
    decoded = decode_videos(paths, frames, workers=usable_cores(), deadline_seconds=30)
    with track("extracting", len(todo), "clips") as ticker:
        for piece in decoded:
            path, file = todo[piece.index]
            if piece.outcome is None or piece.outcome.outcome == "quarantined":
                raise VdError(f"{path} is no whole, short clip; leave it out.")
            plain = piece.images.reshape(-1, *piece.images.shape[2:])
            mirrored = np.ascontiguousarray(plain[:, :, ::-1])
            features = np.stack([engine(x) for x in (plain, mirrored)[:views]])
            half = features.astype(np.float16).reshape(views, -1, 2, engine.dim)
            with writing(file) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, features=half, fps=piece.outcome.fps)
            ticker.advance()


def kept_frames(stored: int, fps: float, geometry: Geometry) -> Int[np.ndarray, " T"]:
    """The first stored frame in each slot of the rate, or the middle ones of these."""
    slot_F = np.floor(np.arange(stored) * geometry.rate / min(RATE, fps) + 1e-3)
    kept = np.unique(slot_F, return_index=True)[1]
    start = max(0, len(kept) - geometry.frames) // 2
    return kept[start : start + geometry.frames]


def pooled(
    features_VxFxSxD: Float16[np.ndarray, "V F S D"], fps: float, geometry: Geometry
) -> Float[np.ndarray, "V P"]:
    """Mean and deviation of a clip over the frames, in the streams that are kept."""
    kept = kept_frames(features_VxFxSxD.shape[1], fps, geometry)
    x = features_VxFxSxD[: geometry.train_views, kept].astype(np.float32)
    x = x[:, :, STREAMS[geometry.streams]]
    return np.concatenate([x.mean(1), x.std(1)], axis=1).reshape(len(x), -1)


def out_of_fold(
    pooled_VxNxP: Float[np.ndarray, "V N P"],
    labels_N: Int[np.ndarray, " N"],
    fold_N: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "V N"]:
    """Logits of every view of every clip, from the probe that has not seen its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    views = len(pooled_VxNxP)
    # the loss is a sum over samples: a clip weighs the same in one view or two
    regression = LogisticRegression(C=C / views, max_iter=1000)
    return cross_val_predict(
        make_pipeline(StandardScaler(), regression),
        np.concatenate(pooled_VxNxP),
        np.tile(labels_N, views),
        cv=PredefinedSplit(np.tile(fold_N, views)),
        method="decision_function",
    ).reshape(views, -1)


def gain_interval(gain_N: Float[np.ndarray, " N"], groups: Sequence[str]) -> str:
    """Mean gain in points and its 95 % interval, resampling whole groups."""
    _, member_N = np.unique(groups, return_inverse=True)
    sums_Gx2 = np.stack([np.bincount(member_N, gain_N), np.bincount(member_N)], axis=1)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(sums_Gx2), size=(2000, len(sums_Gx2)))
    gain, clips = sums_Gx2[drawn].sum(axis=1).T
    low, high = np.quantile(100 * gain / clips, [0.025, 0.975])
    return f"{100 * gain_N.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def main(dataset_path: Path, cache_dir: Path, seeds: int = 5, views: int = 2) -> None:
    """Extract what is missing, then print a row a geometry; `seeds` draw the folds."""
    from sklearn.metrics import roc_auc_score

    manifest = read_manifest(DataConfig(dataset_path))
    videos = identify(manifest.videos, cache_dir / "hashes.csv")
    files = [cache_dir / "geometry" / f"{v.id}-{views}.npz" for v in videos]
    pairs = zip((v.path for v in videos), files, strict=True)
    extract([pair for pair in pairs if not pair[1].exists()], views)
    clips = [(a["features"], float(a["fps"])) for a in map(np.load, files)]
    labels_N = np.array([v.label for v in videos])
    groups = [v.group or v.id for v in videos]
    drawn = [folds(videos, FOLDS, seed) for seed in range(seeds)]
    share_right_N = []
    for row in geometries(views):
        pooled_VxNxP = np.stack([pooled(*clip, row) for clip in clips], axis=1)
        logits_SxN = np.array([
            out_of_fold(pooled_VxNxP, labels_N, np.array([d[v.id] for v in videos]))[: row.test_views].mean(axis=0)
            for d in drawn
        ])
        print("todo")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except VdError as error:
        say(f"vd: {error}")
        sys.exit(error.exit_code)
