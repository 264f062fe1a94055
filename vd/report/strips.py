"""What mistakes look like: frame strips, and the score over time of the few worst."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import UInt8

from vd import plots
from vd.config import DecodeConfig
from vd.console import duration, say
from vd.data.decode import FrameSettings
from vd.data.manifest import Video
from vd.data.outcome import check_file
from vd.data.workers import decode_pool, decode_videos
from vd.errors import VdError
from vd.report.facts import RunFacts
from vd.report.mistakes import Mistake
from vd.training.run_folder import videos_of

if TYPE_CHECKING:
    from vd.predict.predictor import Predictor

TIMELINES = 3  # of the worst: their frames go through the backbone again
_LONGEST_SECONDS = 120.0  # of a clip whose score over time is computed
_FRAMES, _HEIGHT, _WIDTH = 8, 84, 112  # of a strip, and of a frame in it
_MOST_KEPT = 8 * _FRAMES  # frames of a video in memory at once
_QUALITY = 80


@dataclass(frozen=True)
class Shown:
    """What a page shows of a mistake: pictures, or a word in their place."""

    mistake: Mistake
    strip: bytes | None = None  # JPEG
    timeline: bytes | None = None  # PNG
    word: str = ""


def show(
    mistakes: Sequence[Mistake], of_run: Mapping[Path, RunFacts], root: Path | None
) -> list[Shown]:
    """The mistakes with frame strips, and the first ones with their score over time.

    `of_run` are the runs by folder; `root` says where the data set has moved.
    """
    videos = [_video(m, of_run[m.run_dir], root) for m in mistakes]
    words = [_why_not(video) for video in videos]
    there = [i for i, word in enumerate(words) if not word]
    decode = next(iter(of_run.values())).config.decode if of_run else DecodeConfig()
    strips: dict[int, bytes] = {}
    for i, strip in zip(
        there, _strips([videos[i].path for i in there], decode), strict=True
    ):
        if strip is None:
            words[i] = "the video does not decode now; vd scan says why"
        else:
            strips[i] = strip
    chosen = [i for i in there if i in strips and i < TIMELINES]
    timelines = _timelines(
        [(m, videos[i].path, _seconds(m, of_run[m.run_dir]))
         for i in chosen for m in (mistakes[i],)]
    )  # fmt: skip
    by_place = dict(zip(chosen, timelines, strict=True))
    return [
        Shown(mistake, strips.get(i), by_place.get(i), words[i])
        for i, mistake in enumerate(mistakes)
    ]


def _video(mistake: Mistake, facts: RunFacts, root: Path | None) -> Video:
    """The clip of a mistake, where the data set is now."""
    videos = videos_of(mistake.run_dir, root or facts.config.data.dataset_path)
    for video in videos:
        if video.name == mistake.name:
            return video
    raise VdError(
        f"{mistake.run_dir / 'splits.csv'} lacks the clip {mistake.name!r} of its predictions; "
        "put back the files that training wrote, or train the run again."
    )


def _why_not(video: Video) -> str:
    """Why nothing of a video can be shown; "" when it can."""
    reason = check_file(video.path)
    if reason == "missing":
        return "the video is not there any more"
    try:
        if not reason:
            with open(video.path, "rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            if content != video.id:
                return "the file is another one than was tested"
    except OSError:
        reason = "unreadable"
    return f"the video cannot be read ({reason})" if reason else ""


def _strips(paths: Sequence[Path], decode: DecodeConfig) -> list[bytes | None]:
    """A JPEG of frames side by side of each video; None when it does not decode.

    Decoded by the workers of every other command, each under its deadline.
    """
    made: list[bytes | None] = []
    if not paths:
        return made
    settings = FrameSettings(_HEIGHT, _WIDTH, streams=("rgb",))
    kept, stride, seen = [], 1, 0
    with decode_pool(settings, decode, len(paths)) as pool:
        for piece in decode_videos(paths, pool):
            for image in piece.images:
                if seen % stride == 0:
                    kept.append(image[0].copy())
                seen += 1
                if len(kept) > _MOST_KEPT:  # a long video: every other of those
                    kept, stride = kept[::2], 2 * stride
            if piece.outcome is not None:
                usable = piece.outcome.outcome != "quarantined" and kept
                shape = piece.outcome.width / max(piece.outcome.height, 1)
                made.append(_strip(kept, shape) if usable else None)
                kept, stride, seen = [], 1, 0
    return made


def _strip(frames: Sequence[UInt8[np.ndarray, "H W 3"]], aspect: float) -> bytes:
    """Evenly spaced frames in two rows, so that a phone's width shows them, as JPEG."""
    places = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
    width = int(np.clip(round(_HEIGHT * aspect), _HEIGHT // 3, 3 * _HEIGHT))
    small = [cv2.resize(frames[i], (width, _HEIGHT)) for i in places]
    padded = [cv2.copyMakeBorder(f, 1, 1, 1, 1, cv2.BORDER_CONSTANT) for f in small]
    half = _FRAMES // 2
    whole = np.vstack([np.hstack(padded[:half]), np.hstack(padded[half:])])
    picture = cv2.cvtColor(whole, cv2.COLOR_RGB2BGR)
    flags = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    return bytes(cv2.imencode(".jpg", picture, flags)[1])


def _seconds(mistake: Mistake, facts: RunFacts) -> float:
    """The length of a clip, by the run's ledger; 0 where it is not known."""
    for row in facts.ledger:
        if row["path"] == mistake.name:
            return float(row["duration"])
    return 0.0


def _timelines(clips: Sequence[tuple[Mistake, Path, float]]) -> list[bytes | None]:
    """Score over time of clips of so many seconds, as PNG; None where it is not told."""
    if not clips:
        return []
    from vd.predict.predictor import Predictor

    say(
        f"score over time of {len(clips)} clips: their frames go through the backbone "
        "again (--mistakes 0 leaves that out)"
    )
    began = time.monotonic()
    predictors: dict[Path, Predictor] = {}
    made: list[bytes | None] = []
    for mistake, path, seconds in clips:
        try:
            if not 0 < seconds <= _LONGEST_SECONDS:
                raise VdError(f"its {seconds:.0f} s are too many, or not known.")
            if mistake.run_dir not in predictors:
                predictors[mistake.run_dir] = Predictor(mistake.run_dir)
            made.append(_timeline(predictors[mistake.run_dir], path, seconds))
        except VdError as error:
            say(f"no score over time of {mistake.name!r}: {error}")
            made.append(None)
    say(f"that took {duration(time.monotonic() - began)}")
    return made


def _timeline(predictor: "Predictor", path: Path, seconds: float) -> bytes | None:
    """The picture of one clip; a short one has windows of half its length."""
    window = min(2.0, max(0.5, seconds / 2))
    made = predictor.timeline(path, window_seconds=window, stride_seconds=0.125)
    if made is None:
        return None
    figure = plots.timeline(made.seconds_W, made.probability_W, made.threshold)
    figure.set_size_inches(5.6, 2.7)  # readable on a phone
    return plots.png(figure)
