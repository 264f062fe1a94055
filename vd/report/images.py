"""Pictures of a report: curves and diagrams of the figures, frames of misclassified clips."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vd import plots
from vd.config import DecodeConfig
from vd.data.decode import FrameSettings
from vd.data.manifest import Video
from vd.data.outcome import check_file
from vd.data.workers import decode_pool, decode_videos
from vd.evaluation.compare import PANELS
from vd.evaluation.predictions import Predictions
from vd.report.page import Picture, picture

_FRAMES, _HEIGHT, _WIDTH = 8, 84, 112  # of a strip, and the size of a frame in it
_MOST_KEPT = 8 * _FRAMES  # frames of a video in memory at once
_QUALITY = 80


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Loss, accuracy, recalls and learning rate of a run; `rows` are metrics.jsonl."""
    figure = plots.learning_curves({"": rows})
    return _drawn(figure, f"Learning curves over {len(rows)} epochs")


def bands(name: str, rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Mean and spread of the validation curves over the members of a cross-validation."""
    return _drawn(plots.bands({name: rows}, PANELS), "Validation curves over members")


def of_tested(pooled: Mapping[int, Predictions], title: str) -> list[Picture]:
    """Confusion, ROC, precision–recall and reliability of the tested clips of each seed."""
    labels_N, predicted_N, probability_N = (
        np.concatenate([getattr(one, name) for one in pooled.values()])
        for name in ("labels_N", "predicted_N", "probability_N")
    )
    of_seed = {
        f"seed {seed}": (one.labels_N, one.probability_N)
        for seed, one in pooled.items()
    }
    confusion = plots.confusion(labels_N, predicted_N.astype(float), 0.5, title)
    reliability = plots.reliability(labels_N, probability_N, times=len(pooled))
    return [
        _drawn(confusion, title),
        _drawn(plots.rates(of_seed, "roc"), "ROC curve"),
        _drawn(plots.rates(of_seed, "precision-recall"), "Precision–recall curve"),
        _drawn(reliability, "Reliability diagram"),
    ]


def _drawn(figure: Figure, alt: str) -> Picture:
    return picture(plots.png(figure), "png", alt)


def frame_strips(
    videos: Sequence[Video], decode: DecodeConfig
) -> list[tuple[Picture | None, str]]:
    """Eight frames of each video, or the reason why there are none."""
    reasons = [_why_not(video) for video in videos]
    there = [video for video, reason in zip(videos, reasons, strict=True) if not reason]
    strips = iter(_strips([video.path for video in there], decode))
    shown: list[tuple[Picture | None, str]] = []
    for video, reason in zip(videos, reasons, strict=True):
        content = None if reason else next(strips)
        if content is None:
            reason = reason or "the video no longer decodes; vd scan gives the reason"
            shown.append((None, reason))
        else:
            alt = f"Eight frames of {video.name}, in order"
            shown.append((picture(content, "jpeg", alt), ""))
    return shown


def _why_not(video: Video) -> str:
    """Why no frames of a video can be shown; "" when they can."""
    reason = check_file(video.path)
    if reason == "missing":
        return "the video is not there any more"
    try:
        if not reason:
            with open(video.path, "rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            if content != video.id:
                return "the file has changed since it was tested"
    except OSError:
        reason = "unreadable"
    return f"the video cannot be read ({reason})" if reason else ""


def _strips(paths: Sequence[Path], decode: DecodeConfig) -> list[bytes | None]:
    """A JPEG of frames side by side of each video; None when it does not decode.

    Decoded by the workers of every other command, each under its deadline.
    """
    strips: list[bytes | None] = []
    if not paths:
        return strips
    settings = FrameSettings(_HEIGHT, _WIDTH, streams=("rgb",))
    kept, stride, seen = [], 1, 0
    with decode_pool(settings, decode, len(paths)) as pool:
        for piece in decode_videos(paths, pool):
            for image in piece.images:
                if seen % stride == 0:
                    kept.append(image[0].copy())
                seen += 1
                if len(kept) > _MOST_KEPT:  # of a long video, every second one
                    kept, stride = kept[::2], 2 * stride
            if piece.outcome is not None:
                usable = piece.outcome.outcome != "quarantined" and kept
                aspect = piece.outcome.width / max(piece.outcome.height, 1)
                strips.append(_strip(kept, aspect) if usable else None)
                kept, stride, seen = [], 1, 0
    return strips


def _strip(frames: Sequence[UInt8[np.ndarray, "H W 3"]], aspect: float) -> bytes:
    """Evenly spaced frames in two rows, as JPEG."""
    places = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
    width = int(np.clip(round(_HEIGHT * aspect), _HEIGHT // 3, 3 * _HEIGHT))
    small = [cv2.resize(frames[i], (width, _HEIGHT)) for i in places]
    padded = [cv2.copyMakeBorder(f, 1, 1, 1, 1, cv2.BORDER_CONSTANT) for f in small]
    half = _FRAMES // 2
    whole = np.vstack([np.hstack(padded[:half]), np.hstack(padded[half:])])
    flags = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(whole, cv2.COLOR_RGB2BGR), flags)[1])
