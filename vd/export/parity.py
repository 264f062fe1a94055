"""How far an export is from `vd`, measured on the run's own test clips."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16

from vd.config import Config
from vd.data.manifest import CLASSES
from vd.evaluation.restore import Restored
from vd.features.backbone import Backbone
from vd.features.engines import make_engine
from vd.features.extract import video_stretches
from vd.features.sampling import scoring_windows
from vd.models.scoring import score
from vd.training.run_folder import read_config, videos_of

LIMIT = 0.03  # of a probability, from the frames that OpenCV decodes
_CLIPS = 20
_RANDOM_WINDOWS = 8

# logits of windows of features, each F×D
HeadFunction = Callable[[Sequence[np.ndarray]], Float[np.ndarray, " N"]]


class TestClip(NamedTuple):
    """A test clip, and its features by the way of `vd`."""

    path: Path
    features_FxD: Float16[np.ndarray, "F D"]


def read_test_clips(
    run_dir: Path, config: Config, backbone: Backbone
) -> list[TestClip]:
    """Up to twenty test clips of a run whose videos are still there, of both classes."""
    videos = [
        v for v in videos_of(run_dir, config.data.dataset_path) if v.split == "test"
    ]
    by_class = ([v.path for v in videos if v.label == i] for i in range(len(CLASSES)))
    in_turn = chain.from_iterable(zip_longest(*by_class))
    paths = [path for path in in_turn if path and path.exists()][:_CLIPS]
    engine = make_engine(backbone, "auto", read_config(run_dir)["engine"])
    parts: dict[Path, list[np.ndarray]] = {}
    for stretch in video_stretches(paths, backbone, engine, config.decode):
        if len(stretch.features_FxSD):
            parts.setdefault(paths[stretch.video], []).append(stretch.features_FxSD)
    return [TestClip(path, np.concatenate(own)) for path, own in parts.items()]


def head_parity(
    restored: Restored, clips: Sequence[TestClip], exported: HeadFunction
) -> dict[str, Any]:
    """Largest difference of a window's logit, given the same features.

    In float32, and from the products in bfloat16 with which the run was trained, if so.
    """
    frames = restored.config.model.clip_frames
    windows = [
        clip.features_FxD[window]
        for clip in clips
        for window in scoring_windows(len(clip.features_FxD), frames)
    ]
    if not windows:
        normal = np.random.default_rng(0).normal(
            size=(_RANDOM_WINDOWS, frames, restored.dim)
        )
        windows = list(np.abs(normal).astype(np.float16))
    logit_N = exported(windows)
    model = restored.config.model
    heads = {"float32": restored.head}
    if model.mixed_precision:
        in_float32 = restored.head.clone(config=replace(model, mixed_precision=False))
        heads = {"float32": in_float32, "bfloat16": restored.head}
    largest = {}
    for name, head in heads.items():
        ours_N = score(head, restored.params, [[window] for window in windows])
        largest[name] = float(np.abs(ours_N - logit_N).max())
    return {
        "windows": len(windows),
        "features": "test clips" if clips else "random",
        "largest_logit_difference": largest,
    }


def whole_way_parity(
    restored: Restored, clips: Sequence[TestClip], example: Path
) -> dict[str, Any] | None:
    """Differences of a clip's probability from the video file on, by example.py.

    None without clips. A clip that OpenCV does not read counts as `unread`.
    """
    if not clips:
        return None
    views = [[clip.features_FxD] for clip in clips]
    logit_N = score(restored.head, restored.params, views)
    ours_N = restored.calibration.probability(logit_N)
    command = [sys.executable, str(example), *(str(clip.path) for clip in clips)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) != len(clips):
        raise RuntimeError(f"{example} ended early: {done.stderr}")
    pairs = [
        {"path": str(clip.path), "vd": float(ours), "example": row["probability"]}
        for clip, ours, row in zip(clips, ours_N, rows, strict=True)
    ]
    differences = [
        abs(pair["vd"] - pair["example"])
        for pair in pairs
        if pair["example"] is not None
    ]
    return {
        "clips": len(differences),
        "unread": len(pairs) - len(differences),
        "largest_probability_difference": max(differences, default=None),
        "mean_probability_difference": float(np.mean(differences))
        if differences
        else None,
        "limit": LIMIT,
        "per_clip": pairs,
    }
