"""Study: which geometry of a clip is worth its images? Frame rate, T, streams, views.

    python experiments/geometry.py --dataset-path SCFD --cache-dir CACHE
    python experiments/geometry.py --dataset-path HOCKEY --cache-dir CACHE --views 1

A probe, not the model: logistic regression on mean and deviation over a clip's frames.
Features at 16 frames/s are kept in CACHE/geometry, one file a clip.
Cost:     32,000 images for 240 clips of SCFD, 30,000 for 600 of hockey, then 25 fits a row
Measured: docs/results.md, "Geometry of a clip"
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Float16, Int

from vd.atomic import writing
from vd.cli import run_command
from vd.config import BackboneConfig, DataConfig, usable_cores
from vd.errors import VdError
from vd.progress import track
from vd.videos.decode import FrameSettings
from vd.videos.manifest import identify, read_manifest
from vd.videos.splits import folds
from vd.videos.workers import decode_videos

RATE = 16  # stored frames a second
STREAMS = {"both": [0, 1], "motion": [1], "RGB": [0]}
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
    rows = [Geometry(rate, streams) for streams in STREAMS for rate in (8, 4, 16)]
    rows += [Geometry(8, frames=8), Geometry(16, frames=8), Geometry(16, frames=16)]
    mirrored = [Geometry(r, "both", 999, 2, n) for n in (1, 2) for r in (8, 4, 16)]
    return rows + mirrored if views == 2 else rows


def extract(todo: dict[Path, Path], views: int) -> None:
    """Write features (V × F × S × D) and frame rate of each short video to its file."""
    from vd.features.engines import find_backbone, make_engine

    engine = make_engine(find_backbone(BackboneConfig()), "auto")
    paths, frames = list(todo), FrameSettings(frames_per_second=RATE)
    decoded = decode_videos(paths, frames, workers=usable_cores(), deadline_seconds=30)
    with track("extracting", len(todo), "clips") as ticker:
        for piece in decoded:
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
    x = features_VxFxSxD[: row.train_views, kept].astype(np.float32)
    x = x[:, :, STREAMS[row.streams]]
    return np.concatenate([x.mean(1), x.std(1)], axis=1).reshape(len(x), -1), len(kept)


def out_of_fold(
    x_VxNxP: Float[np.ndarray, "V N P"],
    labels_N: Int[np.ndarray, " N"],
    fold_N: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "V N"]:
    """Logits of every view of every clip, from the probe that has not seen its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    views = len(x_VxNxP)
    # the loss is a sum over samples: a clip weighs the same in one view or two
    regression = LogisticRegression(C=C / views, max_iter=1000)
    probe = make_pipeline(StandardScaler(), regression)
    x, y = np.concatenate(x_VxNxP), np.tile(labels_N, views)
    cv = PredefinedSplit(np.tile(fold_N, views))
    logits = cross_val_predict(probe, x, y, cv=cv, method="decision_function")
    return logits.reshape(views, -1)


def half_width(gain_N: Float[np.ndarray, " N"], groups: list[str]) -> float:
    """Half of the 95 % interval of a mean, clustered by group (Liang and Zeger 1986)."""
    member_N = np.unique(groups, return_inverse=True)[1]
    residual_G = np.bincount(member_N, gain_N - gain_N.mean())
    return float(1.96 * np.sqrt(np.sum(residual_G**2)) / len(gain_N))


def main(
    dataset_path: Path, cache_dir: Path, seeds: int = 5, views: Literal[1, 2] = 2
) -> int:
    """Extract what is missing, then print a row a geometry; `seeds` draw the folds."""
    from sklearn.metrics import roc_auc_score

    if seeds < 1:
        raise VdError(f"--seeds is {seeds}; give a value of 1 or more.")
    manifest = read_manifest(DataConfig(dataset_path))
    videos = identify(manifest.videos, cache_dir / "hashes.csv")
    files = {v.path: cache_dir / f"geometry/{v.id}-{views}.npz" for v in videos}
    extract({path: f for path, f in files.items() if not f.exists()}, views)
    clips = [(a["features"], float(a["fps"])) for a in map(np.load, files.values())]
    labels_N = np.array([v.label for v in videos])
    groups = [v.group or v.id for v in videos]
    parts = [folds(videos, FOLDS, seed) for seed in range(seeds)]
    fold_SxN = np.array([[part[v.id] for v in videos] for part in parts])
    right: list[np.ndarray] = []
    print(*Geometry._fields, "images accuracy auc sd_accuracy sd_auc gain ci95")
    for row in geometries(views):
        x, kept = zip(*(pooled(*clip, row) for clip in clips), strict=True)
        logits = [out_of_fold(np.stack(x, axis=1), labels_N, fold) for fold in fold_SxN]
        logits_SxN = np.array(logits)[:, : row.test_views].mean(axis=1)
        right_SxN = (logits_SxN > 0) == labels_N
        auc_S = [roc_auc_score(labels_N, logits_N) for logits_N in logits_SxN]
        scores_2xS = 100 * np.array([right_SxN.mean(axis=1), auc_S])
        right.append(100 * right_SxN.mean(axis=0))
        gain_N = right[-1] - right[0]
        gain = gain_N.mean(), half_width(gain_N, groups)
        images = np.mean(kept) * len(STREAMS[row.streams])
        numbers = [images, *scores_2xS.mean(axis=1), *scores_2xS.std(axis=1), *gain]
        print(*row, *np.round(numbers, 1), flush=True)
    return 0


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
