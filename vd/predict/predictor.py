"""Prediction: files in, probabilities out, by the very path that evaluation takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float64

from vd import plots
from vd.config import DecodeConfig, EngineName
from vd.data.decode import FrameSettings
from vd.data.manifest import CLASSES
from vd.data.outcome import Outcome
from vd.devices import prepare_jax
from vd.errors import VdError
from vd.evaluation.restore import check_features, moved, restore
from vd.features.backbone import find_backbone
from vd.features.engines import make_engine
from vd.features.extract import video_features
from vd.models.scoring import score
from vd.training.run_folder import read_config


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

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """Probability of violence of each file, in order, as each is done."""
        restored = self._restored
        for index, outcome, features_FxD in self._features(paths):
            probability = label = None
            if features_FxD is not None:
                logit_N = score(restored.head, restored.params, [[features_FxD]])
                probability = float(restored.calibration.probability(logit_N)[0])
                label = CLASSES[probability >= restored.calibration.threshold]
            yield Prediction(paths[index], outcome, probability, label)

    def timeline(
        self, path: Path, window_seconds: float = 2.0, stride_seconds: float = 0.25
    ) -> Timeline | None:
        """Probability in sliding windows over one video; None when it cannot be decoded.

        Stored frames are taken to be evenly spaced over the video.
        """
        ((_, outcome, features_FxD),) = self._features([path])
        if features_FxD is None:
            return None
        rate = min(FrameSettings().frames_per_second, outcome.fps)
        length = max(1, min(round(window_seconds * rate), len(features_FxD)))
        stride = max(1, round(stride_seconds * rate))
        starts = np.arange(0, len(features_FxD) - length + 1, stride)
        windows = ([features_FxD[start : start + length]] for start in starts)
        restored = self._restored
        logit_W = score(restored.head, restored.params, windows)
        probability_W = restored.calibration.probability(logit_W)
        middles_W = (starts + length / 2) / rate
        return Timeline(middles_W, probability_W, restored.calibration.threshold)

    def _features(
        self, paths: Sequence[Path]
    ) -> Iterator[tuple[int, Outcome, Float16[np.ndarray, "F D"] | None]]:
        """Features of the plain view of each file, streams side by side as in the store."""
        plain = self._backbone.views[:1]
        for one in video_features(
            paths, self._backbone, self._engine, self._decode, plain
        ):
            features_FxD = None
            if one.features_VxFxSxD is not None:
                plain_FxSxD = one.features_VxFxSxD[0]
                features_FxD = plain_FxSxD.reshape(len(plain_FxSxD), -1)
            yield one.index, one.outcome, features_FxD


def draw_timeline(
    run_dir: Path,
    video: Path,
    picture: Path,
    violent_spans: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw the probability of violence over a video; known violent spans are shaded.

    Raises `VdError` when the video cannot be decoded.
    """
    timeline = Predictor(run_dir).timeline(video)
    if timeline is None:
        raise VdError(f"{video} cannot be decoded; run vd scan on it to see why.")
    plots.save(plots.timeline(*timeline, violent_spans), picture)
