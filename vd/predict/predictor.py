"""Prediction: files in, probabilities out, by the very path that evaluation takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from vd.config import DecodeConfig, EngineName
from vd.data.decode import FrameSettings
from vd.data.manifest import CLASSES
from vd.data.outcome import Outcome
from vd.devices import prepare_jax
from vd.evaluation.restore import check_features, moved, restore
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import VideoFeatures, video_features
from vd.models.scoring import score
from vd.training.run_folder import read_config

_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one file; `probability` and `label` None when it failed."""

    path: Path
    outcome: Outcome
    probability: float | None
    label: str | None


def load(run_dir: Path | str, engine: EngineName = "auto") -> "Predictor":
    """The detector of a finished run, from its folder alone; `vd.load` is the same.

    Raises `VdError` when training has not ended or a file of the run is missing.
    """
    prepare_jax()
    return Predictor(Path(run_dir), engine)


class Timeline(NamedTuple):
    """Probability of violence in windows of a video, at their middles in seconds."""

    seconds_W: Float64[np.ndarray, " W"]
    probability_W: Float64[np.ndarray, " W"]
    threshold: float


class Predictor:
    """A trained run, from its folder alone.

    `engine` "auto" takes the engine of the run's features where it can.
    """

    def __init__(
        self,
        run_dir: Path,
        engine: EngineName = "auto",
        decode: DecodeConfig | None = None,
    ) -> None:
        self._restored = restore(run_dir)
        config = moved(self._restored.config, run_dir, None, None)
        self._decode = decode or config.decode
        self._backbone = find_backbone(config.backbone)
        check_features(self._backbone, run_dir)
        before = read_config(run_dir)["engine"]
        self._engine = make_engine(self._backbone, engine, before)

    def predict(self, files: Sequence[Path | str]) -> Iterator[Prediction]:
        """Probability of violence of each file, in order, as each is done."""
        paths = list(map(Path, files))
        restored = self._restored
        for path, video in zip(paths, self._features(paths), strict=True):
            probability = label = None
            if len(video.seconds_F):
                logit_N = score(restored.head, restored.params, [[video.features_FxSD]])
                probability = float(restored.calibration.probability(logit_N)[0])
                label = CLASSES[probability >= restored.calibration.threshold]
            yield Prediction(path, video.outcome, probability, label)

    def timeline(
        self,
        path: Path | str,
        window_seconds: float = 2.0,
        stride_seconds: float = 0.25,
    ) -> Timeline | None:
        """Probability in sliding windows over one video; None when it cannot be decoded.

        No window spans a gap in the video's time.
        """
        (video,) = self._features([Path(path)])
        if not len(video.seconds_F):
            return None
        middle_W, windows = sliding_windows(
            video.seconds_F, video.outcome.gaps, window_seconds, stride_seconds
        )
        restored = self._restored
        one_by_one = ([video.features_FxSD[window]] for window in windows)
        logit_W = score(restored.head, restored.params, one_by_one)
        probability_W = restored.calibration.probability(logit_W)
        return Timeline(middle_W, probability_W, restored.calibration.threshold)

    def _features(self, paths: Sequence[Path]) -> Iterator[VideoFeatures]:
        return video_features(paths, self._backbone, self._engine, self._decode)


def sliding_windows(
    seconds_F: Float64[np.ndarray, " F"],
    gaps: Sequence[tuple[float, float]],
    length: float,
    stride: float,
) -> tuple[Float64[np.ndarray, " W"], list[slice]]:
    """Middles, in seconds, and frames of windows of `length` seconds, each `stride` seconds.

    None spans a gap (start, length); a piece between gaps that is shorter is one window.
    """
    step = 1 / FrameSettings().frames_per_second
    cuts = np.searchsorted(seconds_F, [start + gap / 2 for start, gap in gaps])
    middles, windows = [], []
    for first, end in pairwise([0, *cuts, len(seconds_F)]):
        if first == end:
            continue
        begin, span = seconds_F[first], seconds_F[end - 1] - seconds_F[first] + step
        window = min(length, span)
        for start in begin + np.arange(0, span - window + _ROUNDING, stride):
            frames = slice(*np.searchsorted(seconds_F, [start, start + window]))
            if frames.start < frames.stop:  # a slow video has windows without a frame
                middles.append(start + window / 2)
                windows.append(frames)
    return np.array(middles), windows
